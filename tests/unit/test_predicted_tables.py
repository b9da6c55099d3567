"""What ``msl predict`` writes: tables that spreadsheets open, and that builds read back as labels."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from msldata.errors import UserError
from msldata.sources.kinds import open_source, recognise
from msltrain.measures.predictions import read_predictions
from msltrain.use.output_formats import Printer, Table, write_answers
from msltrain.use.predict import ImagePrediction
from tests.tinydata import jpeg

CLASSES = ("Wolf", "Füchse", "=Luchs", "Art")
FOUND = {"a.jpg": ("Füchse", "Wolf"), "b.jpg": ("Art",), "c.jpg": ()}


def answer(file: str, predicted: tuple[str, ...], **more) -> ImagePrediction:
    scores = {name: 0.93 if name in predicted else 0.0625 for name in CLASSES}
    ordered = tuple(sorted(scores.items(), key=lambda pair: -pair[1]))
    limits = (0.5,) * len(CLASSES)
    return ImagePrediction(file=file, scores=ordered, predicted=predicted, thresholds=limits, **more)


ANSWERS = [answer(file, predicted) for file, predicted in FOUND.items()]


def written(kind: str, table: Table, answers=ANSWERS) -> bytes:
    file = io.BytesIO()
    write_answers(iter(answers), kind, file, table)
    return file.getvalue()


@pytest.mark.parametrize("comma", [True, False])
def test_a_wide_table_has_a_row_per_photograph_and_a_column_per_class(comma):
    data = written("wide", Table(comma, CLASSES))
    assert data.startswith(b"\xef\xbb\xbffile")  # by which a spreadsheet knows that ü is one letter
    header, *rows = csv.reader(io.StringIO(data.decode("utf-8-sig")), delimiter=";" if comma else ",")
    assert header == ["file", "labels", "score Wolf", "score Füchse", "score =Luchs", "score Art", "error"]
    high, low = ("0,930000", "0,062500") if comma else ("0.930000", "0.062500")
    assert rows == [
        ["a.jpg", "Füchse;Wolf", high, high, low, low, ""],
        ["b.jpg", "Art", low, low, low, high, ""],
        ["c.jpg", "", low, low, low, low, ""],
    ]


def test_what_is_seen_behind_a_mask_and_what_was_not_read_have_columns_too():
    masked = answer("a.jpg", ("Wolf",), masked_scores=tuple((n, 0.25) for n in CLASSES), masked_predicted=("Art",))
    broken = ImagePrediction(file="b.jpg", error="not an image")
    text = written("wide", Table(False, CLASSES, masked=True), [broken, masked]).decode("utf-8-sig")
    failed, read = csv.DictReader(io.StringIO(text))
    assert failed["error"] == "not an image" and set(failed.values()) == {"b.jpg", "", "not an image"}
    assert (read["labels"], read["masked_labels"], read["masked_score Wolf"]) == ("Wolf", "Art", "0.250000")


def test_long_csv_has_decimal_commas_where_they_are_asked_for():
    plain, comma = (written("csv", Table(mark)).decode() for mark in (False, True))
    assert not plain.startswith("\ufeff") and comma.startswith("\ufeff")  # the plain one is for programs
    first, second = (
        list(csv.DictReader(io.StringIO(text.removeprefix("\ufeff")), delimiter=delimiter))
        for text, delimiter in ((plain, ","), (comma, ";"))
    )
    assert second[0]["score"] == "0,930000" and second[0]["threshold"] == "0,500000"
    assert [{key: value.replace(",", ".") for key, value in row.items()} for row in second] == first


def test_what_is_printed_is_what_is_written():
    from rich.console import Console

    printed = io.StringIO()
    printer = Printer("csv", Console(file=printed), Table(True))
    for one in ANSWERS:
        printer.show(one)
    assert printed.getvalue().encode() == written("csv", Table(True))


def test_a_decimal_comma_is_for_csv_alone():
    Table(True).check("csv")
    Table(True).check("wide")
    Table(False).check("json")
    with pytest.raises(UserError, match="--decimal-comma is for CSV: add --format wide"):
        Table(True).check("json")


FILES = {
    "wide.csv": ("wide", Table(False, CLASSES)),
    "wide-comma.csv": ("wide", Table(True, CLASSES)),
    "long.csv": ("csv", Table()),
    "long-comma.csv": ("csv", Table(True)),
    "long.parquet": ("parquet", Table()),
    "lines.jsonl": ("json", Table()),
    "fiftyone.json": ("fiftyone", Table()),
}


@pytest.mark.parametrize("name", FILES)
def test_builds_read_back_what_was_predicted_and_nothing_else(tmp_path: Path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)  # FiftyOne's names are absolute
    for file in FOUND:
        (tmp_path / file).write_bytes(jpeg(len(file)))
    kind, table = FILES[name]
    (tmp_path / name).write_bytes(written(kind, table))
    assert recognise(tmp_path / name)[0] == "table"
    source = open_source("table", tmp_path / name, "all")
    read = {Path(record.image).name: source.labels.names(record.positives) for record in source.records()}
    assert read == {file: sorted(predicted) for file, predicted in FOUND.items()}


def test_a_long_table_says_which_rows_count(tmp_path: Path):
    (tmp_path / "long.csv").write_bytes(written("csv", Table()))
    said = open_source("table", tmp_path / "long.csv", "all").provenance["labels"]
    assert "labels in 'class' where 'predicted' is 1" in said
    text = (tmp_path / "long.csv").read_text().replace(",0.930000,1,", ",0.930000,maybe,", 1)
    (tmp_path / "long.csv").write_text(text)
    with pytest.raises(UserError, match="line 2: predicted is 'maybe', not 1 or 0"):
        open_source("table", tmp_path / "long.csv", "all")


@pytest.mark.parametrize("name", FILES)
def test_what_measures_predictions_says_why_it_cannot_use_them(tmp_path: Path, name):
    (tmp_path / name).write_bytes(written(*FILES[name]))
    why = "it holds no truth" if name.endswith("parquet") else "a table of text, which is for reading"
    with pytest.raises(UserError, match=f"not a predictions file.* {why}.*write one with `msl evaluate"):
        read_predictions(tmp_path / name)
