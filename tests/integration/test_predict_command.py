"""``msl predict`` as a user meets it: four formats, pictures, a broken image among many, and its messages."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from msltrain.__main__ import app
from msltrain.pages.text import percent_beside
from msltrain.use.output_formats import line_of, write_answers
from msltrain.use.predict import ImagePrediction
from tests.answers import predict_images
from tests.integration.test_evaluate import write_checkpoint
from tests.smallshards import CLASSES, photo

NUM_PHOTOS = 12
BROKEN = ("p003.jpg", "p007.jpg")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Photographs, two of them broken, a mask and the run of a random model."""
    folder = tmp_path_factory.mktemp("predict-command")
    (folder / "photos").mkdir()
    for number in range(NUM_PHOTOS):
        (folder / "photos" / f"p{number:03d}.jpg").write_bytes(photo(number, 60 + number, 40))
    for name in BROKEN:
        (folder / "photos" / name).write_bytes(b"broken")
    hole_HW = np.zeros((50, 50), np.uint8)
    hole_HW[10:40, 10:40] = 255
    Image.fromarray(hole_HW).save(folder / "mask.png")
    write_checkpoint(folder / "run", CLASSES)
    (folder / "empty").mkdir()
    return folder


def run(place: Path, *arguments: object) -> tuple[int, str, str]:
    command = ["predict", "--checkpoint", str(place / "run"), "--device", "cpu", *map(str, arguments)]
    result = CliRunner().invoke(app, command, env={"COLUMNS": "200"})
    return result.exit_code, result.stdout, result.stderr


MASKED = ("--keep-mask", "mask.png", "--polarity", "hole-white")


@pytest.fixture(scope="module")
def expected(place):
    return predict_images(
        place / "run",
        [place / "photos"],
        top_k=2,
        keep_mask=place / "mask.png",
        polarity="hole-white",
        device="cpu",
        on_error="skip",
    )


@pytest.fixture
def asked(place, monkeypatch):
    """The arguments that ``expected`` is the answer to."""
    monkeypatch.chdir(place)
    return [place / "photos", "--top-k", 2, *MASKED, "--on-error", "skip"]


def test_broken_images_are_counted_and_named_and_the_rest_is_answered(place, asked):
    code, output, errors = run(place, *asked)
    assert code == 1 and len(output.splitlines()) == NUM_PHOTOS
    assert f"2 of {NUM_PHOTOS} images could not be read and were left out" in errors
    for name in BROKEN:
        assert f"{name}: not an image" in errors and f"{name}  not read: not an image" in output
    assert run(place, *asked[:-2])[:2] == (1, output), "to leave out is the default"
    code, _, errors = run(place, place / "photos", "--on-error", "fail")
    assert code == 2 and "p003.jpg: not an image" in errors and "--on-error skip" in errors


def test_lost_pixels_are_no_answer(place, tmp_path):
    """Its markers are all there, and a forgiving decoder would fill the rest with grey."""
    (tmp_path / "cut.jpg").write_bytes(photo(1)[:-200] + b"\xff\xd9")
    code, output, errors = run(place, tmp_path)
    assert code == 1 and "cut.jpg  not read: truncated JPEG" in output
    assert "1 of 1 image could not be read and was left out" in errors


def test_lines_show_both_scores_and_what_is_predicted(place, asked, expected):
    _, output, _ = run(place, *asked)
    for line, image in zip(output.splitlines(), expected, strict=True):
        masked = dict(image.masked_scores)
        for name, score in image.scores:
            assert image.error or f"{name} {100 * score:.0f} → {100 * masked[name]:.0f} %" in line
            predicted, _, below = line.partition("; below the threshold")
            is_predicted = name in image.predicted or name in image.masked_predicted
            assert name in (predicted if is_predicted else below)
    assert "nothing predicted; below the threshold" in run(place, *asked, "--threshold", 1)[1]


def test_what_is_predicted_beyond_the_classes_that_are_shown_is_counted():
    """With thresholds of their own, a class may be predicted whose score is below that of others that are not."""
    image = ImagePrediction(file="a", scores=(("cat", 0.8), ("dog", 0.4)), thresholds=(0.5, 0.5))
    for predicted, said in (
        (("cat", "owl", "cow"), "cat 80 %, and 2 more; below the threshold: dog 40 %"),
        (("cat",), "cat 80 %; below the threshold: dog 40 %"),
        (("cow",), "1 other; below the threshold: cat 80 %, dog 40 %"),
    ):
        assert line_of(replace(image, predicted=predicted)) == said
    assert line_of(replace(image, masked_predicted=("owl", "cow"))).startswith("2 others; below")


def test_a_score_just_below_its_threshold_does_not_look_like_it():
    near = ImagePrediction(file="a", scores=(("cat", 0.4983), ("dog", 0.49996)), thresholds=(0.5, 0.5))
    assert line_of(near) == "nothing predicted; below the threshold: cat 49.8 %, dog 49.9960 %"
    assert [percent_beside(0.6, 0.5), percent_beside(0.5, 0.5), percent_beside(0.334, 0.333)] == ["60", "50", "33.4"]


def test_how_many_show_nothing_is_said_once_with_a_lower_threshold(place, asked, expected):
    num_read = NUM_PHOTOS - len(BROKEN)
    advice = f"in {num_read} of {num_read} photographs no class reaches its threshold, which is right where none of "
    errors = run(place, *asked, "--threshold", 1)[2]
    assert errors.count(advice) == 1
    assert "--threshold 0.3, for one, names more, and more that is not there" in errors
    assert "no class reaches" not in run(place, *asked, "--threshold", 0)[2]
    highest = sorted(max(score for _, score in (*one.scores, *one.masked_scores)) for one in expected if not one.error)
    between = (highest[1] + highest[2]) / 2  # two of them show nothing then
    _, output, errors = run(place, *asked, "--threshold", between)
    assert output.count("nothing predicted") == 2
    assert f"note: in 2 of {num_read} photographs no class reaches its threshold" in " ".join(errors.split())
    lower = f"--threshold {0.3 if between > 0.3 else between / 2:.2g}, for one, names more"
    assert lower in " ".join(errors.split())
    assert "1 of 1 photograph no class" in run(place, place / "photos" / "p000.jpg", "--threshold", 1)[2]


@pytest.mark.parametrize(("typed", "said"), [("0,3", "'0,3' is no number; write 0.3"), ("low", "'low' is no number")])
def test_a_number_with_a_comma_is_answered_with_the_point(place, asked, typed, said):
    code, _, errors = run(place, *asked, "--threshold", typed)
    assert code == 2 and said in " ".join(errors.split()) and ("write" in said) == ("write" in errors)


def test_a_threshold_may_be_of_one_class(place, asked):
    name = CLASSES[0]
    code, output, errors = run(place, *asked, "--threshold", 1, "--threshold", f"{name}=0", "--format", "json")
    assert code == 1 and f"thresholds: 1, as asked; {name} 0, as asked" in errors
    lines = [json.loads(line) for line in output.splitlines()]
    assert all(line["predicted"] == [name] for line in lines if "error" not in line)
    code, _, errors = run(place, *asked, "--threshold", f"{name}x=0.5")
    assert code == 2 and f"the model knows no such class; did you mean {name}?" in " ".join(errors.split())


def test_a_file_with_some_of_the_classes_says_so(place, asked, tmp_path):
    _, output, _ = run(place, *asked, "--out", tmp_path / "some.csv")
    assert f"the 2 highest of {len(CLASSES)} classes each; --top-k all writes all" in output
    _, output, _ = run(place, place / "photos", "--top-k", "all", "--out", tmp_path / "all.csv")
    assert "some.csv" not in output and "highest of" not in output


def test_a_prediction_is_printed_as_a_line(expected):
    image = next(one for one in expected if not one.error)
    assert str(image) == f"{image.file}: {line_of(image)}" and repr([image]) == f"[<{image}>]"
    many = replace(image, scores=tuple((str(number), 0.4) for number in range(9)), masked_scores=(), thresholds=())
    assert str(many).count("40 %") == 5


def test_json(place, asked, expected):
    lines = [json.loads(line) for line in run(place, *asked, "--format", "json")[1].splitlines()]
    for line, image in zip(lines, expected, strict=True):
        assert line["file"] == image.file
        if image.error:
            assert line["file"] == image.file and line["error"].startswith("not an image")
        else:
            assert line["scores"] == dict(image.scores) and line["masked_scores"] == dict(image.masked_scores)
            assert line["predicted"] == list(image.predicted)


def test_csv_and_parquet_hold_the_same(place, asked, expected, tmp_path):
    code, output, _ = run(place, *asked, "--out", tmp_path / "deeper" / "all.csv")
    assert code == 1 and f"{NUM_PHOTOS} images" in output
    run(place, *asked, "--out", tmp_path / "all.parquet")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "deeper" / "all.csv").read_text())))
    table = pq.read_table(tmp_path / "all.parquet").to_pylist()
    assert len(rows) == len(table) == 2 * (NUM_PHOTOS - 2) + 2
    scores = {(image.file, name): score for image in expected for name, score in image.masked_scores}
    for row, stored in zip(rows, table, strict=True):
        assert row["file"] == stored["file"] and (row["class"] or None) == stored["class"]
        assert bool(row["error"]) == bool(stored["error"])
        if not row["error"]:
            assert float(row["score"]) == pytest.approx(stored["score"], abs=1e-6)
            assert stored["masked_score"] == pytest.approx(scores[row["file"], row["class"]], abs=1e-6)
            assert bool(int(row["predicted"])) == stored["predicted"]


def test_a_table_for_a_spreadsheet_has_every_class(place, asked, tmp_path):
    photos, out = place / "photos", tmp_path / "for Excel.csv"
    code, output, errors = run(place, photos, "--out", out, "--format", "wide", "--decimal-comma", *MASKED)
    assert code == 1 and "highest of" not in output, errors
    header, *rows = csv.reader(io.StringIO(out.read_text("utf-8-sig")), delimiter=";")
    scores = [f"score {name}" for name in CLASSES]
    masked = [f"masked_score {name}" for name in CLASSES]
    assert header == ["file", "labels", *scores, "masked_labels", *masked, "error"] and len(rows) == NUM_PHOTOS
    for row in rows:
        cells = dict(zip(header, row, strict=True))
        assert all((cells[name] == "") == bool(cells["error"]) for name in (*scores, *masked))
        over = {name for name in CLASSES if cells[f"score {name}"] >= "0,5"}
        assert over == set(filter(None, cells["labels"].split(";")))
    for words, said in (
        (("--format", "wide"), "wide cannot be printed; give the file to write with --out FILE.csv"),
        (("--format", "wide", "--top-k", 2, "--out", out), "leave --top-k out"),
        (("--out", "a.xlsx"), "a.xlsx: spreadsheet programs read CSV; give --out a.csv --format wide"),
        (("--decimal-comma",), "--decimal-comma is for CSV"),
        (("--decimal-comma", "--out", tmp_path / "x.parquet"), "--decimal-comma is for CSV"),
    ):
        code, _, errors = run(place, photos, *words)
        assert code == 2 and said in " ".join(errors.split())


def test_pictures_of_where_classes_are_seen(place, asked, tmp_path):
    code, output, errors = run(place, *asked, "--cam", tmp_path / "cam", "--format", "json")
    assert code == 1 and f"{NUM_PHOTOS - 2} pictures" in errors
    overlays = [json.loads(line).get("overlay") for line in output.splitlines()]
    files = sorted(map(str, (tmp_path / "cam").iterdir()))
    assert [file for file in overlays if file] == files and len(files) == NUM_PHOTOS - 2
    with Image.open(files[0]) as two_rows:
        assert two_rows.width > 3 * 300 and two_rows.height > 2 * 200  # photograph and two classes, whole and masked
    run(place, place / "photos" / "p000.jpg", "--top-k", 2, "--cam", tmp_path / "one")
    with Image.open(tmp_path / "one" / "p000.jpg") as one_row:
        assert one_row.height < 0.7 * two_rows.height


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["gone"], "gone: no such file or folder"),
        (["empty"], "empty: no images here"),
        (["photos/*.png"], "photos/*.png: no images here"),
        (["photos/p000.jpg", "--format", "parquet"], "--out FILE.parquet"),
        (["photos/p000.jpg", "--out", "scores.xls"], "--format"),
        (["photos/p000.jpg", "--threshold", "1.5"], "between 0 and 1"),
        (["photos/p000.jpg", "--keep-mask", "mask.png"], "--polarity hole-white"),
        (["photos/p000.jpg", "--keep-mask", "mask.png", "--polarity", "white"], "unknown polarity 'white'"),
        (["photos/p000.jpg", "--keep-mask", "photos/p000.jpg", "--polarity", "hole-white"], "not a mask"),
        (["ftp://host/photo.jpg"], "unknown kind of location 'ftp:'"),
    ],
)
def test_mistakes(place, monkeypatch, arguments, words):
    monkeypatch.chdir(place)
    code, _, errors = run(place, *arguments)
    assert code == 2 and words in " ".join(errors.split()) and "Traceback" not in errors


def test_odd_names_stay_on_their_line_and_are_no_formula(place, tmp_path):
    names = ["=cmd|' C calc'!A0.jpg", "two\nlines.jpg", "back\r.jpg"]
    for name in names:
        (tmp_path / name).write_bytes((place / "photos" / "p000.jpg").read_bytes())
    paths = [tmp_path / name for name in names]
    code, output, _ = run(place, *paths, "--top-k", "all")
    assert code == 0 and len(output.splitlines()) == 3 and r"two\nlines.jpg" in output
    assert all(name in line for line in output.splitlines() for name in CLASSES)  # every class has its score
    code, output, _ = run(place, *paths, "--cam", tmp_path / "sheets")
    assert code == 0 and len(list((tmp_path / "sheets").iterdir())) == 3, output
    code, output, _ = run(place, *paths, "--top-k", "all", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(output, newline="")))
    assert [row["file"] for row in rows] == [str(path) for path in paths for _ in CLASSES]
    written = io.BytesIO()
    write_answers([ImagePrediction(file=names[0], scores=(("=1+1", 0.5),), thresholds=(0.5,))], "csv", written)
    assert written.getvalue().decode().splitlines()[1].startswith("'=cmd|' C calc'!A0.jpg,'=1+1,")
    for wrong in ("0", "-1", "some"):
        code, _, errors = run(place, paths[0], "--top-k", wrong)
        assert code == 2 and f"--top-k is '{wrong}'" in errors
