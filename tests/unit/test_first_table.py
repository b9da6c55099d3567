"""The first build of somebody's own photographs: what is asked for, found missing, kept, and built anew."""

from __future__ import annotations

import random
import re
import unicodedata
from pathlib import Path

import pytest
from typer.testing import CliRunner

from msldata.build.shards import build_shards, plan_build
from msldata.contract.manifest import read_manifest
from msldata.errors import OptionsNeeded, UserError, counted, replaced
from msldata.sources.kinds import open_source, recognise, select_sources
from msldata.sources.source import SourceOptions
from msldata.storage import LocalStorage
from msltrain.__main__ import app
from msltrain.recipes.own_fit import fit_own, in_short
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


def test_what_cannot_be_guessed_is_asked_for_at_once(place):
    path = table(place, ['IMG_0.jpg,IMG_1.jpg,x,"cat, chair"'], "front,back,note,what")
    with pytest.raises(OptionsNeeded) as caught:
        open_source("table", path, "all")
    assert caught.value.options == ("--image-column", "front", "--labels-column", "what", "--separator", ",")
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


@pytest.mark.parametrize("words", ["build-shards one.csv two.csv", "train one two"])
def test_a_second_table_is_answered_with_what_to_do(words):
    said = CliRunner().invoke(app, words.split(), env={"COLUMNS": "300"}).output
    assert "unexpected extra argument" in said and "one table" in said.replace("tables into one", "one table")


def test_a_separator_is_asked_about_with_the_whole_command(place):
    table(place, ['IMG_0.jpg,"cat, chair"', "IMG_1.jpg,cat"])
    said = msl("build-shards", "labels.csv", "--name", "mine", code=2)
    assert said.endswith("to split them, run: root build-shards labels.csv --name mine --separator ,")


def test_photographs_on_no_line_are_named(place):
    table(place, rows()[:-2])
    (place / "photos" / "._IMG_1.jpg").touch()
    said = msl("build-shards", "labels.csv", "--name", "mine", "--workers", "1", "--dry-run")
    assert said.count("2 photographs are on no line: photos/IMG_22.jpg, photos/IMG_23.jpg; they are left out") == 1
    table(place, rows())
    assert "on no line" not in msl("build-shards", "labels.csv", "--name", "mine", "--workers", "1", "--dry-run")


def test_photographs_without_a_label_are_named(place):
    lines = rows()
    for number in (1, 4, 7, 9):
        lines[number] = f"IMG_{number}.jpg,"
    table(place, lines)
    said = msl("build-shards", "labels.csv", "--name", "mine", "--workers", "1", "--keep-unlabelled")
    assert said.count("4 photographs without a label: photos/IMG_1.jpg (line 3), photos/IMG_4.jpg (line 6), ") == 1
    assert "photos/IMG_7.jpg (line 9) and 1 more; kept, as negatives of every class" in said
    said = msl("build-shards", "labels.csv", "--name", "less", "--split", "all", "--workers", "1", "--drop-unlabelled")
    assert "photos/IMG_7.jpg (line 9) and 1 more; left out; without --drop-unlabelled kept" in said
    assert "all: 20 samples" in said and "4 dropped without annotations" in said


def test_all_missing_photographs_are_named_before_anything_is_written(place):
    lines = rows()
    for number in (0, 3, 5, 8, 13, 17):
        lines[number] = lines[number].replace(".jpg", "x.jpg")
    table(place, lines)
    said = msl("build-shards", "labels.csv", "--name", "mine", "--workers", "1", code=2)
    assert "6 images are missing: " in said and "and 1 more; put them there, take them off the list" in said
    assert said.partition("6 images")[2].count("photos/IMG_") == 5 and not (place / "shards").exists()
    (place / "photos/IMG_3x.jpg").write_bytes(jpeg(3))
    said = msl("build-shards", "labels.csv", "--name", "mine", "--workers", "1", "--overwrite", code=2)
    assert "5 images are missing: " in said and "IMG_3x" not in said


def test_what_has_nearly_the_name_of_a_missing_photograph_is_said(place):
    table(place, [*rows()[1:], "IMG_0.png,cat", "IMG_99.jpg,cat"])
    said = msl("build-shards", "labels.csv", "--workers", "1", code=2)
    assert "photos/IMG_0.png (but IMG_0.jpg is there)" in said and "photos/IMG_99.jpg (" not in said
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
    other = CliRunner().invoke(app, [*words], prog_name="python -m msldata").output
    assert "run: python -m msldata build-shards labels.csv" in " ".join(other.split())
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
    table(place, rows()[:12])
    assert "next:" not in msl("build-shards", "labels.csv", "--name", "n12", "--workers", "1")
    [warning, *_] = in_short(*fit_own("shards/n12/all", settings=["model.weights=", "model.backbone=test_resnet"]))
    assert warning.startswith("12 photographs: too few to learn from; at least 20 are needed, better 50 of each class")
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


def test_a_column_that_is_not_there_is_a_slip_in_the_command(place):
    table(place, [f"{line},x" for line in rows()], "Datei,Motive,Note")
    words = ("build-shards", "labels.csv", "--name", "mine", "--workers", "1")
    said = msl(*words, "--image-column=Dateien", "--labels-column", "Motiv", code=2)
    assert "no column 'Dateien', as --image-column says and no column 'Motiv', as --labels-column says; " in said
    assert "mend" not in said
    assert said.endswith(f"are meant, run: root {' '.join(words)} --image-column Datei --labels-column Motive")
    said = msl(*words, "--labels-column", "Motiv", code=2)
    assert "there are Datei, Motive, Note; if 'Motive' is meant, run: " in said and said.count("labels.csv: ") == 1
    assert said.endswith(f"run: root {' '.join(words)} --labels-column Motive")
    said = msl(*words, "--labels-column", "zzz", code=2)
    assert said.endswith("no column 'zzz', as --labels-column says; there are Datei, Motive, Note; name one of these")


def test_columns_of_classes_keep_the_order_in_which_they_were_named(place):
    path = table(place, ["IMG_0.jpg,1,0", "IMG_1.jpg,0,1"], "image,Hund,Katze")
    with pytest.raises(OptionsNeeded) as caught:
        open_source("table", path, "all", options=SourceOptions(labels_columns=("katze", "Hund")))
    assert caught.value.options == ("--labels-column", "Katze", "--labels-column", "Hund")
    assert caught.value.instead_of == ("--labels-column", "katze", "--labels-column", "Hund")


def test_a_columns_accents_may_be_stored_otherwise(place):
    path = table(place, rows(), unicodedata.normalize("NFD", "Bild,Möbel"))
    assert open_source("table", path, "all", options=SourceOptions(labels_columns=("Möbel",))).labels.classes


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (("--classes", "clases.txt"), "did you mean classes.txt?"),
        (("--labels-are", "name"), "did you mean names?"),
        (("--dataset", "tabel"), "did you mean table?"),
        (("--split", "al"), "did you mean all?"),
    ],
)
def test_other_options_with_a_slip_are_answered_with_what_may_be_meant(place, words, meant):
    table(place, rows())
    (place / "classes.txt").write_text("cat\nchair\n")
    assert msl("build-shards", "labels.csv", *words, code=2).endswith(meant)


def test_what_takes_the_place_of_a_typed_option():
    typed = ["build", "--a", "1", "--b=2", "--a", "3"]
    assert replaced(typed, ("--a", "1", "--b", "2"), ("--c", "4")) == ["build", "--a", "3", "--c", "4"]


def test_what_leaves_out_photographs_is_said_as_a_whole_command(place):
    folder = place / "Meine Fotos"
    (place / "photos").rename(folder)
    lines = rows()
    words = ("build-shards", "Meine Fotos/labels.csv", "--name", "mine", "--workers", "1", "--split", "all")
    again = "run: root build-shards 'Meine Fotos/labels.csv' --name mine --workers 1 --split all --on-error skip"
    for number in (2, 5):  # one that is missing, then several
        lines[number] = lines[number].replace(".jpg", "x.jpg")
        table(folder, lines)
        said = msl(*words, code=2)
        assert said.endswith(f"take {'it' if number == 2 else 'them'} off the list, or {again}")
        assert msl(*words, "--on-error", "fail", code=2).endswith(again)
    table(folder, rows())
    (folder / "IMG_3.jpg").write_bytes(b"<html>")
    said = msl(*words, "--on-error=fail", code=2)
    assert f"; repair or remove the file, or, to leave out and list all such images, {again}" in said
    msl(*words, "--on-error", "skip")


def test_all_broken_photographs_of_a_shard_are_named(place):
    table(place, rows())
    broken = (3, 4, 7)
    for number in broken:
        (place / f"photos/IMG_{number}.jpg").write_bytes(b"<html>")
    for workers in ("1", "4"):  # one thread for the shard, and several
        said = msl("build-shards", "labels.csv", "--workers", workers, "--split", "all", "--resize", "fit=16", code=2)
        assert "photos/IMG_3.jpg: not an image" in said
        assert re.search(r", and also photos/IMG_4\.jpg \(not an image[^)]*\), photos/IMG_7\.jpg \(not an image", said)
    for number in range(10, 24):
        (place / f"photos/IMG_{number}.jpg").write_bytes(b"<html>")
    said = msl("build-shards", "labels.csv", "--workers", "1", "--split", "all", code=2)
    assert said.count(" (not an image") == 9 and "and 7 more; repair" in said
