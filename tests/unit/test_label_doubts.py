"""Labels that mean two things: what settles them, and what is asked about, in tables and in tars."""

from __future__ import annotations

import io
import shlex
import tarfile
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from msldata.build.index_tars import index_shards
from msldata.commands.display import show_manifest
from msldata.console import out
from msldata.contract.format import decode_index
from msldata.contract.manifest import IMAGES, Manifest, index_name
from msldata.contract.records import listed_name
from msldata.errors import BadInputError, OptionsNeeded, UserError, counted
from msldata.inspect.classnames import slips
from msldata.sources.kinds import open_source, recognise
from msldata.sources.source import NO_OPTIONS, SourceOptions
from msldata.storage import LocalStorage
from msltrain.__main__ import app
from tests.tinydata import jpeg


def table(folder: Path, rows: str, name: str = "t.csv") -> Path:
    (folder / name).write_text(rows, encoding="utf-8")
    return folder / name


def labels(path: Path, options: SourceOptions | None = None) -> list[list[str]]:
    source = open_source("table", path, "all", options=options or SourceOptions())
    return [source.labels.names(record.positives) for record in source.records()]


def tar(folder: Path, suffix: str, *contents: bytes | np.ndarray, image: bytes | None = None) -> Path:
    """One tar; each sample's labels are in a member of that suffix."""
    folder.mkdir(exist_ok=True)
    with tarfile.open(folder / "x-train-000000.tar", "w") as file:
        for number, content in enumerate(contents):
            if isinstance(content, np.ndarray):
                buffer = io.BytesIO()
                np.save(buffer, content)
                content = buffer.getvalue()
            for name, data in ((f"{number}.jpg", image or jpeg(number)), (f"{number}.{suffix}", content)):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                file.addfile(member, io.BytesIO(data))
    return folder


def test_a_tar_that_was_written_again_meanwhile_is_read_again(tmp_path):
    """What it held is kept, until a question about its labels is answered; by then it may hold something else, in as
    many bytes, and with as many members."""
    folder = tar(tmp_path / "tars", "cls", b"cat,cow", b"cat", b"cow")
    with pytest.raises(OptionsNeeded, match="names that may be separated by ','"):
        index_shards(folder, num_workers=1)
    size = (folder / "x-train-000000.tar").stat().st_size
    tar(folder, "cls", b"dog,emu", b"emu", b"dog")
    assert (folder / "x-train-000000.tar").stat().st_size == size
    assert indexed(folder, separator=",")[1] == [["dog", "emu"], ["emu"], ["dog"]]


def indexed(folder: Path, *classes: str, **options) -> tuple[Manifest, list[list[str]]]:
    manifest = index_shards(folder, classes=classes or None, num_workers=1, **options)
    rows = decode_index(IMAGES, (folder / index_name("x-train-000000.tar")).read_bytes(), "index").to_pylist()
    return manifest, [[manifest.classes[number] for number in row["positives"]] for row in rows]


@pytest.mark.parametrize("cells", ["1,0 3,0", "1,0 0,0 1,0", "1,0 3 2,0"])
def test_a_decimal_comma_is_no_list(tmp_path, cells):
    rows = "".join(f"{number}.jpg;{cell}\n" for number, cell in enumerate(cells.split()))
    with pytest.raises(UserError, match=r"numbers with a decimal comma, or lists of two: line \d is labelled"):
        labels(table(tmp_path, f"image;label\n{rows}"))
    folder = tar(tmp_path / "tars", "cls", *(cell.encode() for cell in cells.split()))
    with pytest.raises(UserError, match="decimal comma"):
        index_shards(folder, num_workers=1)


def test_lists_of_numbers_are_lists_where_some_are_plainly(tmp_path):
    assert labels(table(tmp_path, 'image,label\na.jpg,"1,0"\nb.jpg,"3,2"\n')) == [["0", "1"], ["2", "3"]]
    options = SourceOptions(labels_are="indices")
    assert labels(table(tmp_path, 'image,label\na.jpg,"1,0"\nb.jpg,"3,0"\n'), options) == [["0", "1"], ["0", "3"]]


def test_a_class_may_be_called_none(tmp_path):
    path = table(tmp_path, "image,label\na.jpg,None\nb.jpg,NA;cat\nc.jpg,nan\n")
    assert labels(path) == [[], ["NA", "cat"], []]
    options = SourceOptions(classes=table(tmp_path, "None\nNA\ncat\n", "classes.txt"))
    assert labels(path, options) == [["None"], ["NA", "cat"], []]
    found = indexed(tar(tmp_path / "tars", "cls", b"None", b"cat"), "cat", "None")[1]
    assert found == [["None"], ["cat"]]


def test_class_labels_of_hugging_face_may_be_called_none(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Value("string"), "label": datasets.ClassLabel(names=["None", "x"])})
    rows = {"image": ["a.jpg", "b.jpg"], "label": [0, 1]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "t.parquet")
    assert labels(tmp_path / "t.parquet") == [["None"], ["x"]]


def test_numbers_beyond_the_list_of_classes_are_its_names(tmp_path):
    path = table(tmp_path, "image,label\na.jpg,7\nb.jpg,9\n")
    assert labels(path, SourceOptions(classes=table(tmp_path, "7\n8\n9\n", "c.txt"))) == [["7"], ["9"]]
    table(tmp_path, "image,label\na.jpg,1\nb.jpg,2\n")
    with pytest.raises(UserError, match="numbers that the list of classes has as names"):
        labels(path, SourceOptions(classes=table(tmp_path, "2\n1\n0\n", "c.txt")))


def test_scalars_in_npy_are_classes(tmp_path):
    numbers = [np.asarray(number) for number in (0, 1, 1)]
    assert indexed(tar(tmp_path / "a", "target.npy", *numbers), "cat", "dog")[1] == [["cat"], ["dog"], ["dog"]]
    assert indexed(tar(tmp_path / "b", "target.npy", *numbers))[1] == [["0"], ["1"], ["1"]]
    with pytest.raises(UserError, match="vectors and single numbers"):
        index_shards(tar(tmp_path / "c", "target.npy", np.asarray(1), np.asarray([0, 1, 1])), num_workers=1)
    assert indexed(tar(tmp_path / "d", "target.npy", np.asarray([1]), np.asarray([0])), "cat")[1] == [["cat"], []]


def test_a_cls_may_begin_with_a_byte_order_mark(tmp_path):
    assert indexed(tar(tmp_path / "a", "cls", "\ufeffcat".encode(), b"cat"))[0].classes == ("cat",)


def test_a_cut_jpeg_is_not_indexed(tmp_path):
    cut = jpeg(1, 200, 100)[:4000] + b"\xff\xd9"
    with pytest.raises(BadInputError, match=r"sample 0: truncated JPEG|sample 0: .*remature end"):
        index_shards(tar(tmp_path / "a", "cls", b"cat", image=cut), num_workers=1)


def test_a_column_that_divides_the_rows_is_no_class(tmp_path):
    path = table(tmp_path, "image,cat,dog,fold\na.jpg,1,0,0\nb.jpg,0,1,1\n")
    with pytest.raises(BadInputError, match="'fold' holds 0 and 1: a class, or the parts"):
        labels(path)
    assert labels(path, SourceOptions(labels_columns=("cat", "dog"))) == [["cat"], ["dog"]]


def test_an_option_that_settles_it_is_one_of_two_ways_on(tmp_path):
    with pytest.raises(
        BadInputError, match=r"say which with --labels-column 'class', .*; or mend the table and run again"
    ):
        labels(table(tmp_path, "image,class,cat\na.jpg,1,0\n"))


def test_objects_in_a_list_name_their_class(tmp_path):
    rows = '{"image": "a.jpg", "labels": [{"label": "cat", "score": 1.0}, {"label": "dog", "score": 0.5}]}\n'
    assert labels(table(tmp_path, rows, "t.jsonl")) == [["cat", "dog"]]
    with pytest.raises(BadInputError, match="expected a list"):  # a list in a list is no name
        labels(table(tmp_path, '{"image": "a.jpg", "labels": [["cat", "dog"]]}\n', "t.jsonl"))


def test_names_that_look_alike_are_shown(capsys):
    manifest = Manifest(kind=IMAGES, dataset="d", split="s", classes=("Cat", "cat", "cow", "cow\u200b"), shards=())
    show_manifest(out, manifest, "there")
    assert "alike, yet two classes: 'Cat' and 'cat', 'cow' and 'cow\\u200b'" in capsys.readouterr().out


def test_one_object_is_not_called_objects(capsys):
    expected = {
        1: ", 1 ignored label, 1 object, 3 turned upright",
        2: ", 2 ignored labels, 2 objects, 3 turned upright",
    }
    for count, words in expected.items():
        counts = {"objects": count, "ignored_labels": count, "turned_upright": 3, "transcoded": 0}
        show_manifest(out, Manifest(kind=IMAGES, dataset="d", split="s", shards=(), counts=counts), "there")
        assert capsys.readouterr().out.strip().endswith(words)


def test_links_to_folders_are_followed(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far/1.jpg").write_bytes(jpeg(1))
    for name in ("cat", "cow"):
        (tmp_path / "set" / name).mkdir(parents=True)
        (tmp_path / "set" / name / "2.jpg").write_bytes(jpeg(ord(name[1])))
    for name in ("dog", "fox"):  # both lead to one place
        (tmp_path / "set" / name).symlink_to(tmp_path / "far")
    (tmp_path / "set/cow/round").symlink_to(tmp_path / "set")
    assert recognise(tmp_path / "set")[0] == "folders"
    records = list(open_source("folders", tmp_path / "set", "all").records())
    assert {record.key for record in records} == {"cat_2", "cow_2", "dog_1"} and records[-1].positives == (2, 3)
    (tmp_path / "set/cat/gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    words = ["build-shards", str(tmp_path / "set"), "--out", str(tmp_path / "out"), "--workers", "1"]
    run = CliRunner().invoke(app, words)
    assert run.exit_code == 2 and "gone.jpg: the image is missing" in run.output, run.output
    names = [info.name for info in LocalStorage(tmp_path / "set").list_files()]
    assert "dog/1.jpg" not in names  # what is ours to delete is never behind a link


def listed(folder: Path, lines: list[str]) -> Path:
    return table(folder, "\n".join(["image,labels", *lines]) + "\n")


def notes(path: Path, options: SourceOptions = NO_OPTIONS) -> str:
    return " / ".join(open_source("table", path, "all", options=options).notes)


def test_a_separator_that_leaves_names_together_is_said(tmp_path):
    path = listed(tmp_path, ['a.jpg,"cat, chair"', "b.jpg,cat", "c.jpg,chair;dog"])
    assert notes(path, SourceOptions(separator=";")) == (
        "line 2: 'cat, chair' stays one class with --separator ';'; if it is several, give --separator ';,'"
    )
    assert not notes(path, SourceOptions(separator=";,")) and not notes(path, SourceOptions(separator="none"))
    path = listed(tmp_path, ['a.jpg,"cat, chair;dog"', "b.jpg,cat;chair"])
    assert "give --separator ';,'" in notes(path, SourceOptions(separator=";"))
    path = listed(tmp_path, ['a.jpg,"Paris, France;London, UK"', "b.jpg,sea"])  # where parts never recur
    assert not notes(path, SourceOptions(separator=";"))


@pytest.mark.parametrize(
    ("given", "cells", "right"),
    [
        (";", ["car, person", "car", "person, dog"], ","),
        (",", ["car;person", "car", "person;dog"], ";"),
        ("|", ["car#person", "car", "person#dog"], "#"),
        (";", ["car person", "car", "person"], " "),
    ],
)
def test_a_separator_that_no_label_holds_is_refused(tmp_path, given, cells, right):
    path = listed(tmp_path, [f'{number}.jpg,"{cell}"' for number, cell in enumerate(cells)])
    with pytest.raises(
        OptionsNeeded, match=r"and no label holds .*: line 2 is labelled .*, line 3 is labelled "
    ) as caught:
        labels(path, SourceOptions(separator=given))
    assert caught.value.options == ("--separator", right)
    words = ["build-shards", str(path), "--out", str(tmp_path / "out"), f"--separator={given}", "--name", "mine"]
    run = CliRunner().invoke(app, words, env={"COLUMNS": "300"})
    assert run.exit_code == 2 and "--separator none takes each for one name; to split them, run: root" in run.output
    again = shlex.split(run.output.partition("run: root ")[2])
    assert again == [word for word in words if word != f"--separator={given}"] + ["--separator", right]
    assert labels(path, SourceOptions(separator=right))[0] == ["car", "person"]
    assert labels(path, SourceOptions(separator="none"))[0] == [cells[0]]
    classes = tmp_path / "classes.txt"
    classes.write_text("\n".join(cells))
    assert labels(path, SourceOptions(separator=given, classes=classes))[0] == [cells[0]]  # so they are called
    with pytest.raises(UserError, match="and no label holds"):
        index_shards(tar(tmp_path / "tars", "cls", *map(str.encode, cells)), num_workers=1, separator=given)


def test_a_separator_may_be_named_where_each_photograph_has_one_label(tmp_path):
    path = listed(tmp_path, ["a.jpg,polar bear", "b.jpg,brown bear", "c.jpg,cat"])
    assert labels(path, SourceOptions(separator=";")) == [["polar bear"], ["brown bear"], ["cat"]]


@pytest.mark.parametrize("mark", ["?", "-", "--", "n/a", "???"])
def test_marks_are_no_classes(tmp_path, mark):
    path = listed(
        tmp_path,
        [f"a.jpg,{mark}", "b.jpg,cat", f"c.jpg,dog;{mark}"] if mark != "n/a" else ["a.jpg,n/a", "b.jpg,cat;dog"],
    )
    source = open_source("table", path, "all")
    assert source.labels.classes == ("cat", "dog")
    assert notes(path) == (
        f"1 photograph without a label: a.jpg (line 2, '{mark}'); kept, as negatives of every class: label it, or "
        "delete its line, if that is not meant"
    )
    classes = tmp_path / "classes.txt"
    classes.write_text(f"{mark}\ncat\ndog\n")
    first, *_ = open_source("table", path, "all", classes=classes).records()
    assert first.positives == (0,)  # who lists it means it


def test_slips_of_the_pen_are_seen():
    counts = {
        "cat": 120,
        "cta": 1,
        "caat": 1,
        "ct": 1,
        "cats": 2,
        "car": 60,
        "dog": 3,
        "size 1": 90,
        "size 2": 1,
        "Cat": 1,
    }
    assert slips(counts) == [("cta", "cat"), ("caat", "cat"), ("cats", "cat")]
    assert slips({"horse": 9, "hosre": 1}) == [] and slips({"horse": 30, "hosre": 3}) == [("hosre", "horse")]
    assert slips({"horse": 40, "hosre": 4}) == []


def test_slips_are_said_where_nobody_listed_the_classes(capsys):
    labels = {"cat": {"positive": 120, "ignored": 0}, "cta": {"positive": 1, "ignored": 0}}
    for provenance, says in (({}, True), ({"classes": {}}, False)):
        manifest = Manifest(
            kind=IMAGES,
            dataset="d",
            split="s",
            classes=("cat", "cta"),
            shards=(),
            label_histogram=labels,
            provenance=provenance,
        )
        show_manifest(out, manifest, "there")
        said = " ".join(capsys.readouterr().out.split())
        assert ("'cta' (1 photograph) may be meant as 'cat' (120)" in said) is says


def test_names_with_commas_stand_in_quotes(capsys):
    labels = {"cat, chair": {"positive": 2, "ignored": 0}, "cat": {"positive": 1, "ignored": 0}}
    manifest = Manifest(
        kind=IMAGES, dataset="d", split="s", classes=("cat", "cat, chair", "a; b"), shards=(), label_histogram=labels
    )
    show_manifest(out, manifest, "there")
    assert "3 classes: 'cat, chair' 2, cat 1; in no image: 'a; b'" in " ".join(capsys.readouterr().out.split())
    assert [listed_name(name) for name in ("a b", "size 2", "")] == ["a b", "'size 2'", "''"]


def test_one_is_counted_as_one():
    assert [counted(1, "class"), counted(2, "class"), counted(1, "image"), counted(1200, "image")] == [
        *("1 class", "2 classes", "1 image", "1,200 images")
    ]
