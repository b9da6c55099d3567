"""The first table of somebody's own: what is guessed of it, and what is said about its slips."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from msldata.build.shards import build_shards, plan_build
from msldata.commands.display import show_manifest
from msldata.console import out
from msldata.contract.classnames import slips
from msldata.contract.manifest import IMAGES, Manifest, read_manifest
from msldata.contract.records import listed_name
from msldata.errors import BadInputError, OptionsNeeded, UserError, counted
from msldata.sources.kinds import open_source, recognise, select_sources
from msldata.sources.source import NO_OPTIONS, SourceOptions
from msldata.storage import LocalStorage
from msltrain.__main__ import app
from msltrain.runs.run_places import find_dataset
from msltrain.use.read_images import find_images
from tests.tinydata import jpeg

LABELS = ("cat", "cat;chair", "chair")


def photographs(folder: Path, number: int = 24) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(number):
        (folder / f"IMG_{index}.jpg").write_bytes(jpeg(index))
    return folder


def rows(number: int = 24) -> list[str]:
    chance = random.Random(0)
    return [f"IMG_{index}.jpg,{chance.choice(LABELS)}" for index in range(number)]


def table(folder: Path, lines: list[str], header: str = "image,labels", name: str = "labels.csv") -> Path:
    (folder / name).write_text("\n".join([header, *lines] if header else lines) + "\n", encoding="utf-8")
    return folder / name


def msl(*words: str | Path, code: int = 0) -> str:
    result = CliRunner().invoke(app, [*map(str, words)])
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with photographs in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    photographs(tmp_path / "photos")
    return tmp_path


def notes(path: Path, options: SourceOptions = NO_OPTIONS) -> str:
    return " / ".join(open_source("table", path, "all", options=options).notes)


def test_columns_are_guessed_by_what_they_hold(tmp_path):
    path = table(tmp_path, ["a.jpg,cat", "b.JPEG,dog"], "aufnahme,what is in it")
    source = open_source("table", path, "all")
    assert [record.image for record in source.records()] == ["a.jpg", "b.JPEG"]
    assert source.provenance["labels"].startswith("images in column 'aufnahme', labels in 'what is in it'")
    path = table(tmp_path, ["1,a.jpg,cat", "2,b.jpg,dog"], "id,datei,tags")
    assert [record.image for record in open_source("table", path, "all").records()] == ["a.jpg", "b.jpg"]
    assert open_source("table", table(tmp_path, ["a,cat"], "photo,tags"), "all").labels.classes == ("cat",)
    # Numbers beside the images are no labels, and of two columns of words none is chosen.
    for header, line in (("image,width", "a.jpg,640"), ("image,this,that", "a.jpg,cat,dog")):
        with pytest.raises(UserError, match="no column 'labels' and no columns of 0 and 1"):
            open_source("table", table(tmp_path, [line], header), "all")


def test_what_cannot_be_guessed_is_asked_for_at_once(place):
    path = table(place, ['IMG_0.jpg,IMG_1.jpg,x,"cat, chair"'], "front,back,note,what")
    with pytest.raises(OptionsNeeded) as caught:
        open_source("table", path, "all")
    assert caught.value.options == ("--image-column", "front", "--labels-column", "note")
    path = table(place, ['1,"cat, chair"', "2,cat"], "number,what is in it")
    said = msl("build-shards", "labels.csv", "--name", "mine", code=2)
    assert "no column 'image' among number, what is in it" in said
    assert "; add a column 'labels' with what each photograph shows; or mend" not in said
    assert "; add a column 'labels' with what each photograph shows; mend the table" in said
    path = table(place, ['a,b,"cat, chair"', "c,d,cat"], "one,two,tags")
    said = msl("build-shards", "labels.csv", "--name", "mine", code=2)
    assert said.endswith("run: root build-shards labels.csv --name mine --image-column one --separator ,")
    with pytest.raises(OptionsNeeded) as caught:
        open_source("table", path, "all", options=SourceOptions(separator=","))
    assert caught.value.options == ("--image-column", "one")


def test_a_separator_is_asked_about_with_the_whole_command(place):
    table(place, ['IMG_0.jpg,"cat, chair"', "IMG_1.jpg,cat"])
    said = msl("build-shards", "labels.csv", "--name", "mine", code=2)
    assert said.endswith("to split them, run: root build-shards labels.csv --name mine --separator ,")


def test_a_table_without_a_header_line(tmp_path):
    path = table(tmp_path, ["IMG_1.jpg,cat", "IMG_2.jpg,cat"], "")
    with pytest.raises(
        BadInputError, match=r"no header line, for it begins with 'IMG_1\.jpg, cat'; write one above it"
    ):
        open_source("table", path, "all")
    with pytest.raises(UserError, match="no header line"):
        find_images([path])


def test_a_separator_that_leaves_names_together_is_said(tmp_path):
    path = table(tmp_path, ['a.jpg,"cat, chair"', "b.jpg,cat", "c.jpg,chair"])
    assert notes(path, SourceOptions(separator=";")) == (
        "line 2: 'cat, chair' stays one class with --separator ';'; if it is several, give --separator ','"
    )
    assert not notes(path, SourceOptions(separator=",")) and not notes(path, SourceOptions(separator="none"))
    path = table(tmp_path, ['a.jpg,"cat, chair;dog"', "b.jpg,cat;chair"])
    assert "give --separator ';,'" in notes(path, SourceOptions(separator=";"))
    path = table(tmp_path, ['a.jpg,"Paris, France;London, UK"', "b.jpg,sea"])  # where parts never recur
    assert not notes(path, SourceOptions(separator=";"))


@pytest.mark.parametrize("mark", ["?", "-", "--", "n/a", "???"])
def test_marks_are_no_classes(tmp_path, mark):
    path = table(
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


def test_photographs_without_a_label_are_named(place):
    lines = rows()
    for number in (1, 4, 7, 9):
        lines[number] = f"IMG_{number}.jpg,"
    table(place, lines)
    said = msl("build-shards", "labels.csv", "--name", "mine", "--workers", "1", "--keep-unlabelled")
    assert said.count("4 photographs without a label: photos/IMG_1.jpg (line 3), photos/IMG_4.jpg (line 6), ") == 1
    assert "photos/IMG_7.jpg (line 9) and 1 more; kept, as negatives of every class" in said


def test_a_photograph_that_is_listed_twice(tmp_path):
    for lines, says in (
        (
            ["a.jpg,cat", "b.jpg,dog", "a.jpg,cat"],
            "line 2 and line 4: 'a.jpg' is listed twice, with the same labels; delete one of the lines",
        ),
        (
            ["a.jpg,cat", "a.jpg,dog"],
            r"with different labels \('cat' and 'dog'\); keep one line with all of its labels",
        ),
        (
            ["a.jpg,x", "a.jpg,x", "b.jpg,x", "b.jpg,x"],
            r"delete one of the lines \(line 4 and line 5: another listed twice\)",
        ),
    ):
        with pytest.raises(BadInputError, match=says):
            open_source("table", table(tmp_path, lines), "all")
    path = table(tmp_path, ["a.jpg,cat,train", "a.jpg,cat,test"], "image,labels,split")
    with pytest.raises(BadInputError, match="is listed twice, in train and in test; delete the line"):
        open_source("table", path, "train")


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


def test_all_missing_photographs_are_named_before_anything_is_written(place):
    lines = rows()
    for number in (0, 3, 5, 8, 13, 17):
        lines[number] = lines[number].replace(".jpg", "x.jpg")
    table(place, lines)
    said = msl("build-shards", "labels.csv", "--name", "mine", "--workers", "1", code=2)
    assert "6 images are missing: " in said and "and 1 more; put them there, take them off the list" in said
    assert said.count("photos/IMG_") == 5 and not (place / "shards").exists()
    (place / "photos/IMG_3x.jpg").write_bytes(jpeg(3))
    said = msl("build-shards", "labels.csv", "--name", "mine", "--workers", "1", "--overwrite", code=2)
    assert "5 images are missing: " in said and "IMG_3x" not in said


def test_what_has_nearly_the_name_of_a_missing_photograph_is_said(place):
    table(place, [*rows()[1:], "IMG_0.JPG,cat", "IMG_99.jpg,cat"])
    said = msl("build-shards", "labels.csv", "--workers", "1", code=2)
    assert "photos/IMG_0.JPG (but IMG_0.jpg is there)" in said and "photos/IMG_99.jpg (" not in said
    table(place, [*rows()[1:], "IMG_0.png,cat"])
    said = msl("build-shards", "labels.csv", "--workers", "1", code=2)
    assert "photos/IMG_0.png: the image is missing, but IMG_0.jpg is there; write that name in the list" in said


def test_left_out_photographs_are_named_with_the_file_that_lists_them(place):
    lines = rows()
    lines[0], lines[3] = (line.replace(".jpg", "x.jpg") for line in (lines[0], lines[3]))
    table(place, lines)
    words = ("build-shards", "labels.csv", "--name", "mine", "--workers", "1", "--split", "all", "--on-error", "skip")
    said = msl(*words)
    assert "left out: photos/IMG_0x.jpg (the image is missing), photos/IMG_3x.jpg (the image is missing); " in said
    assert "shards/mine/all/quarantine.jsonl lists all" in said
    table(place, [line.replace(".jpg", "x.jpg") if number % 2 else line for number, line in enumerate(rows())])
    said = msl(*words, "--overwrite", "--yes", code=2)
    assert "12 of 24 images cannot be used" in said
    assert read_manifest(LocalStorage(place / "shards/mine/all")).num_samples == 22  # it was looked at before


def test_a_build_that_broke_off_is_said_by_what_uses_the_dataset(place):
    table(
        place,
        [f"{line},{'train' if number % 3 else 'test'}" for number, line in enumerate(rows())],
        "image,labels,split",
    )
    (place / "photos/IMG_3.jpg").write_bytes(b"<html>")  # of the second split
    lines = (place / "labels.csv").read_text().splitlines()
    table(place, sorted(lines[1:], key=lambda line: line.endswith("test")), "image,labels,split")
    words = ("build-shards", "labels.csv", "--name", "mine", "--workers", "1")
    assert "not an image" in msl(*words, code=2)
    assert find_dataset("mine").unfinished == ("test",)
    said = msl("train", "mine", "--batch-size", "999", code=2)
    assert "shards/mine: the build of test did not end; type the `msl build-shards` of this dataset again" in said
    (place / "photos/IMG_3.jpg").write_bytes(jpeg(3))
    msl(*words)
    assert find_dataset("mine").unfinished == ()


def test_a_mended_table_is_built_anew_by_one_command(place):
    lines = rows()
    lines[2] = "IMG_2.jpg,cta"
    path = table(place, lines)
    words = ("build-shards", "labels.csv", "--name", "mine", "--workers", "1")
    msl(*words)
    table(place, rows())
    said = msl(*words, code=2)
    assert (
        "since it was built the photographs, labels or options have changed: classes only in the old one: 'cta'" in said
    )
    assert "plan" not in said and said.endswith("to build it anew, run: root " + " ".join(words) + " --overwrite --yes")
    msl(*words, "--overwrite", "--yes")
    path.write_text(re.sub(r"IMG_4\.jpg,.*", "IMG_4.jpg,", path.read_text()))
    assert msl(*words, code=2).endswith("--workers 1 --overwrite")  # the classes are the same: nobody is asked
    msl(*words, "--overwrite")


def test_few_photographs_lead_to_no_training(place):
    for number, says in ((2, "1 photograph to train on besides those set aside"), (1, "1 photograph to train on")):
        table(place, rows()[:number])
        said = msl("build-shards", "labels.csv", "--name", f"n{number}", "--workers", "1")
        assert f"{counted(number, 'photograph')}: too few to learn from; at least 20 are needed" in said
        assert "next:" not in said
        assert says in msl("train", f"n{number}", code=2)
    table(place, rows())
    assert "next: msl train enough" in msl("build-shards", "labels.csv", "--name", "enough", "--workers", "1")
    said = msl("train", "enough", "--batch-size", "99", code=2)
    assert "photographs to train on, which is too few; give a smaller --batch-size than 99" in said


def test_images_beside_a_table_are_explained(place):
    path = table(place, rows())
    with pytest.raises(
        UserError, match=r"--images \.\./photos: a table finds its photographs itself, .* as with cp \S+ \.\./photos/"
    ):
        select_sources(place, "table", path, options=SourceOptions(images="../photos"))


def test_photographs_alone_are_told_from_an_unknown_dataset(place):
    with pytest.raises(UserError) as caught:
        recognise(place / "photos")
    assert "photos: 24 photographs, but nothing that says what they show: write a table " in str(caught.value)
    assert "\n  image,labels\n  IMG_0.jpg,cat;chair\n" in str(caught.value) and "voc2007" not in str(caught.value)


def test_tables_to_predict_are_read_as_builds_read_them(place):
    path = table(place, ["IMG_0.jpg;cat", "IMG_1.jpg;dog"], "aufnahme;was")
    assert [Path(one.name).name for one in find_images([path])] == ["IMG_0.jpg", "IMG_1.jpg"]
    assert all(one.read() for one in find_images([path]))  # found in the folder below
    path = table(place, ["IMG_0.jpg,IMG_1.jpg"], "a,b")
    with pytest.raises(UserError, match=r"several columns name photographs \(a, b\); call the one that counts 'image'"):
        find_images([path])


def test_a_plan_made_before_its_photographs_came(place):
    plan = plan_build(open_source("table", table(place, [*rows(), "late.jpg,cat"]), "all"))
    (place / "photos/late.jpg").write_bytes(jpeg(99))
    assert build_shards(plan, place / "out", num_workers=1).num_samples == 25
