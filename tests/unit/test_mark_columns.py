"""Tables with a column for each class and a mark, such as ``x``, where a photograph shows it."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from msldata.contract.manifest import read_manifest
from msldata.errors import BadInputError, OptionsNeeded, UserError
from msldata.sources.kinds import open_source
from msldata.sources.source import NO_OPTIONS, SourceOptions
from msldata.storage import LocalStorage
from msltrain.__main__ import app
from tests.tinydata import jpeg

HEADER = "Datei,Person,Hund,Auto"
ROWS = ["a.jpg,x,,x", "b.jpg,,x,", "c.jpg,,,"]


def table(folder: Path, rows: list[str], header: str = HEADER, name: str = "labels.csv") -> Path:
    (folder / name).write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return folder / name


def shown(path: Path, options: SourceOptions = NO_OPTIONS) -> tuple[tuple[str, ...], list[str], str]:
    """The classes, those of each photograph, and how the table was read."""
    source = open_source("table", path, "all", options=options)
    labels = [" ".join(source.labels.classes[k] for k in record.positives) for record in source.records()]
    return source.labels.classes, labels, source.provenance["labels"]


def needed(path: Path, options: SourceOptions = NO_OPTIONS) -> OptionsNeeded:
    with pytest.raises(OptionsNeeded) as caught:
        open_source("table", path, "all", options=options)
    return caught.value


@pytest.mark.parametrize(
    ("yes", "no"),
    [
        *(("x", ""), ("X", ""), ("✓", ""), ("✔", "-"), ("ja", "nein"), ("Ja", ""), ("yes", "no"), ("y", "n")),
        *(("true", "-"), ("wahr", "falsch"), ("oui", "non"), ("si", "no"), ("sí", "0"), ("1", "-"), ("+", "-")),
        ("si\u0301", "na\u0303o"),  # an accent may be a letter of its own
    ],
)
def test_columns_of_marks_are_columns_of_classes(tmp_path, yes, no):
    rows = [",".join({"x": yes, "": no}.get(cell, cell) for cell in row.split(",")) for row in ROWS]
    for options in (NO_OPTIONS, SourceOptions(labels_columns=("Person", "Hund", "Auto"))):
        classes, labels, said = shown(table(tmp_path, rows), options)
        assert classes == ("Person", "Hund", "Auto") and labels == ["Person Auto", "Hund", ""]
        no_said = f", {no} = 0" if no else ""
        assert f"labels in 3 columns of marks ({yes} = 1{no_said}), blank negative" in said
    (one,) = (shown(table(tmp_path, rows), SourceOptions(labels_columns=("Hund",))),)
    assert one[:2] == (("Hund",), ["", "Hund", ""]) and "columns left alone: Person, Auto" in one[2]


@pytest.mark.parametrize(("yes", "no"), [("1,0", "-"), ("1,00", "nein"), ("1.0", "-")])
def test_a_one_with_a_decimal_comma_or_point_is_a_one(tmp_path, yes, no):
    rows = [row.replace(",", ";").replace("x", yes).replace(";;", f";{no};") for row in ("a.jpg,x,,x", "b.jpg,,x,x")]
    classes, labels, said = shown(table(tmp_path, rows, HEADER.replace(",", ";")))
    assert classes == ("Person", "Hund", "Auto") and labels == ["Person Auto", "Hund Auto"]
    assert f"labels in 3 columns of marks ({yes} = 1, {no} = 0)" in said


def test_upper_and_lower_case_are_one_mark_and_remarks_are_left_alone(tmp_path):
    path = table(tmp_path, ["a.jpg,X,,x,am See", "b.jpg,, x ,,", "c.jpg,,,,im Wald"], f"{HEADER},Bemerkung")
    classes, labels, said = shown(path)
    assert classes == ("Person", "Hund", "Auto") and labels == ["Person Auto", "Hund", ""]
    assert "columns of marks (X = 1), blank negative; columns left alone: Bemerkung" in said
    path = table(tmp_path, ["a.jpg,x,", "b.jpg,,x"], "Datei,Tag,Nacht")  # a name for labels in English, a day in German
    assert shown(path)[:2] == (("Tag", "Nacht"), ["Tag", "Nacht"])


def test_a_table_of_marks_is_built_as_one_of_0_and_1(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in "abc":
        (tmp_path / f"{name}.jpg").write_bytes(jpeg(ord(name)))
    for name, rows in (("marks", ROWS), ("numbers", [row.replace("x", "1") for row in ROWS])):
        table(tmp_path, rows)
        words = ["build-shards", "labels.csv", "--name", "mine", "--out", name, "--workers", "1", "--split", "all"]
        run = CliRunner().invoke(app, words, env={"COLUMNS": "300"})
        assert run.exit_code == 0, run.output
        assert ("labels in 3 columns of marks (x = 1)" in run.output) is (name == "marks")
    one, other = (read_manifest(LocalStorage(tmp_path / name / "mine/all")) for name in ("marks", "numbers"))
    assert [shard.sha256 for shard in one.shards] == [shard.sha256 for shard in other.shards]
    assert one.label_histogram["Person"]["positive"] == 1


def test_marks_of_two_kinds_are_asked_about(tmp_path):
    every = tuple(word for name in ("Person", "Hund", "Auto") for word in ("--labels-column", name))
    named = SourceOptions(labels_columns=("Person", "Hund", "Auto"))
    for rows in (["a.jpg,x,,x", "b.jpg,x,ja,"], ["a.jpg,x,0,x", "b.jpg,x,1,"], ["a.jpg,ja,,ja", "b.jpg,yes,ja,"]):
        error = needed(path := table(tmp_path, rows))
        assert error.options == every and "are marks of two kinds" in str(error)
        assert str(error).count("(line 2)") == 1 and str(error).count("(line 3)") == 1
        assert len(shown(path, named)[0]) == 3
    assert "(x = 1, 1 = 1, 0 = 0)" in shown(table(tmp_path, ["a.jpg,x,0,x", "b.jpg,x,1,"]), named)[2]


@pytest.mark.parametrize("other", ["✓", "✗", "ja", "1"])
def test_beside_x_another_mark_may_be_the_yes(tmp_path, other):
    path = table(tmp_path, ["a.jpg,x,,x", f"b.jpg,{other},x,"])
    for options in (
        NO_OPTIONS,
        SourceOptions(labels_columns=("Person", "Hund")),
        SourceOptions(labels_columns=("Person",)),
    ):
        with pytest.raises(
            BadInputError, match=f"column 'Person' holds 'x' in line 2 and '{other}' in line 3, and either may say no"
        ):
            shown(path, options)


def test_a_column_that_is_almost_of_marks_is_not_passed_over(tmp_path):
    path = table(tmp_path, ["a.jpg,x,,x", "b.jpg,x?,x,", "c.jpg,x,,x"])
    for options in (NO_OPTIONS, SourceOptions(labels_columns=("Person",))):
        with pytest.raises(
            BadInputError, match=r"column 'Person' holds 'x\?' in line 3 and 'x' in line 2, a mark as in"
        ):
            shown(path, options)
    with pytest.raises(BadInputError, match=r"line 3: .*'x\?' is neither a mark, such as x, nor empty"):
        shown(path, SourceOptions(labels_columns=("Person", "Hund")))
    assert shown(path, SourceOptions(labels_columns=("Hund", "Auto")))[0] == ("Hund", "Auto")


def test_words_beside_marks_may_be_the_labels(tmp_path):
    rows = ["a.jpg,See,x,", "b.jpg,See,,x", "c.jpg,Wald,x,", "d.jpg,Wald,,"]
    error = needed(path := table(tmp_path, rows, "Datei,Motiv,fertig,scharf"))
    assert "column 'Motiv' ('See' in line 2) or the 2 columns of marks ('x' in line 2) may say what" in str(error)
    assert error.other == ("if 'Motiv' holds the names of what they show", ["--labels-column", "Motiv"])
    assert error.options == ("--labels-column", "fertig", "--labels-column", "scharf")
    assert shown(path, SourceOptions(labels_columns=("Motiv",)))[0] == ("See", "Wald")
    path = table(tmp_path, rows, "Datei,labels,fertig,scharf")
    assert shown(path)[0] == ("See", "Wald")  # its name says it
    sparse = [*rows[:3], "d.jpg,,,"]
    assert shown(table(tmp_path, sparse, "Datei,Bemerkung,fertig,scharf"))[0] == ("fertig", "scharf")


def test_one_column_of_marks_is_asked_about(tmp_path):
    error = needed(path := table(tmp_path, ["a.jpg,x", "b.jpg,"], "Datei,Hund"))
    assert error.options == ("--labels-column", "Hund")
    assert error.provided == "if a mark in 'Hund' says that a photograph shows that"
    assert shown(path, SourceOptions(labels_columns=("Hund",)))[:2] == (("Hund",), ["Hund", ""])
    error = needed(table(tmp_path, ["a.jpg,x,am See", "b.jpg,,im Wald"], "Datei,Hund,Motiv"))
    assert error.options == ("--labels-column", "Motiv")


@pytest.mark.parametrize("mark", ["x", "X", "1", "+"])
def test_a_mark_alone_names_no_class(tmp_path, mark):
    path = table(tmp_path, [f"a.jpg,{mark}", "b.jpg,", f"c.jpg,{mark}"], "image,labels")
    error = needed(path)
    assert f"column 'labels' holds '{mark}' in line 2, and nothing in line 3, and no other label" in str(error)
    meant = "indices" if mark == "1" else "names"
    assert error.options == ("--labels-are", meant)
    assert mark in shown(path, SourceOptions(labels_are=meant))[0]
    classes = tmp_path / "classes.txt"
    classes.write_text(f"{mark}\n" if mark != "1" else "no\nyes\n")
    assert shown(path, SourceOptions(classes=classes))[1][1] == ""


@pytest.mark.parametrize("cells", [("yes",), ("ja",), ("ja", "nein"), ("Oui", "non"), ("wahr", "falsch"), ("✓", "✗")])
def test_yes_and_no_name_no_classes(tmp_path, cells):
    path = table(tmp_path, [f"{number}.jpg,{cell}" for number, cell in enumerate(cells)], "image,labels")
    with pytest.raises(UserError, match="--labels-are names"):
        shown(path)
    assert shown(path, SourceOptions(labels_are="names"))[0] == tuple(sorted(cells))


def test_what_is_asked_about_0_and_1_stays(tmp_path):
    path = table(tmp_path, ["a.jpg,1,0,no", "b.jpg,0,1,no"], "image,cat,dog,note")
    assert shown(path)[0] == ("cat", "dog")
    path = table(tmp_path, ["a.jpg,1,x", "b.jpg,0,"], "image,label,checked")
    assert shown(path)[0] == ("0", "1")
