"""What tables and label values may hold that whole tables by hand do not: odd cells, rows, parts and spellings."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from msldata.errors import UserError
from msldata.sources.kinds import KINDS, open_source
from msldata.sources.labels.marks import kind_of_yes, says_no
from msldata.sources.labels.reading import LabelReading, Labels, decide_reading
from msldata.sources.labels.survey import LabelSurvey
from msldata.sources.labels.values import maybe_negative, parse_value, split_at
from msldata.sources.source import SourceOptions
from msldata.sources.tables.columns import one_hot_value
from msldata.sources.tables.image_paths import checked_path
from msldata.sources.tables.label_studio import plain_path


def table(root: Path, text: Any, name: str = "labels.csv", images: Iterable[str] = "abc") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text if isinstance(text, str) else json.dumps(text), encoding="utf-8")
    for letter in images:
        (root / f"{letter}.jpg").touch()
    return root / name


def opened(path: Path, split: str = "all", **options: Any) -> Any:
    return open_source("table", path, split, options=SourceOptions(**options))


def shown(path: Path, split: str = "all", **options: Any) -> dict[str, list[str]]:
    source = opened(path, split, **options)
    return {one.image: source.labels.names(one.positives) for one in source.records()}


@pytest.mark.parametrize("listed", ["dog\ncat\n", "cat\n", "cat\ndog\nfox\n", "cat\nfox\n"])
def test_columns_of_classes_are_those_of_the_list_in_its_order(tmp_path, listed):
    path = table(tmp_path, "image,cat,dog\na.jpg,1,0\nb.jpg,0,1\n")
    (tmp_path / "classes.txt").write_text(listed)
    with pytest.raises(UserError, match="columns of 0 and 1 are cat, dog, which is another list or order than in"):
        shown(path, classes=tmp_path / "classes.txt")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    assert shown(path, classes=tmp_path / "classes.txt") == {"a.jpg": ["cat"], "b.jpg": ["dog"]}


# ---- Rows


def test_a_photograph_that_only_ignores_classes_is_labelled(tmp_path):
    path = table(tmp_path, "image,labels,ignored\na.jpg,,fox\nb.jpg,fox,\nc.jpg,,\n")
    for keep, images in ((None, "abc"), (True, "abc"), (False, "ab")):
        source = opened(path, keep_unlabelled=keep)
        assert [one.image[0] for one in source.records()] == list(images)
        dropped = {"dropped_without_annotations": 1} if keep is False else {}
        assert source.counts == {"without_any_class": len(images) - 1, **dropped}


def test_groups_are_those_of_samples_and_a_group_may_be_called_0(tmp_path):
    rows = [{"image": f"{letter}.b.jpg", "labels": "fox", "place": n} for n, letter in enumerate("abc")]
    rows[2]["place"] = None
    source = opened(table(tmp_path, rows, "labels.json", images=()), group="place")
    assert source.groups == {"a_b": "0", "b_b": "1"}


@pytest.mark.parametrize("groups", [("hill", ""), ("", "hill"), ("hill", "lake")])
def test_rows_of_one_photograph_are_of_one_group(tmp_path, groups):
    path = table(tmp_path, f"image,label,place\na.jpg,fox,{groups[0]}\na.jpg,ape,{groups[1]}\n", images="a")
    with pytest.raises(UserError, match="is in two groups"):
        opened(path, group="place")


def test_rows_of_one_photograph_are_of_one_part(tmp_path):
    path = table(tmp_path, "image,label,split\na.jpg,fox,train\na.jpg,ape,test\n", images="a")
    with pytest.raises(UserError, match=r"line 2 and line 3: 'a\.jpg' is listed twice, in train and in test"):
        opened(path, "train")


def test_what_rows_of_one_photograph_ignore_is_all_ignored(tmp_path):
    path = table(tmp_path, "image,label,ignored\na.jpg,fox,ape\na.jpg,ibex,elk\nb.jpg,elk,\nb.jpg,ape,\n", images="ab")
    source = opened(path)
    assert [(one.positives, one.ignored) for one in source.records()] == [((2, 3), (0, 1)), ((0, 1), ())]


def test_classes_that_only_rows_ignore_are_classes(tmp_path):
    source = opened(table(tmp_path, "image,labels,ignored\na.jpg,fox,ape\nb.jpg,fox,\nc.jpg,,ibex\n"))
    assert source.labels.classes == ("ape", "fox", "ibex")


def test_a_list_of_classes_of_the_same_length_is_read_anew(tmp_path):
    path = table(tmp_path, "image,labels\na.jpg,fox\nb.jpg,ape\nc.jpg,ape\n")
    classes = tmp_path / "classes.txt"
    for number, text in enumerate(("fox\nape\n", "ape\nfox\n")):
        classes.write_text(text)
        os.utime(classes, ns=(number, number))
        assert opened(path, classes=classes).labels.classes == tuple(text.split())


def test_parts_may_have_capitals_where_their_column_is_called_otherwise(tmp_path):
    path = table(tmp_path, "image,labels,Phase\na.jpg,fox,Train\nb.jpg,fox,TEST\nc.jpg,ape,Train\n")
    assert shown(path, "Train") == {"a.jpg": ["fox"], "c.jpg": ["ape"]}
    assert shown(path, "TEST") == {"b.jpg": ["fox"]}


def test_columns_of_pandas_keep_the_order_of_their_rows(tmp_path):
    columns = {"image": {"10": "a.jpg", "9": "b.jpg", "1": "c.jpg"}, "labels": {"10": "fox", "9": "ape", "1": "fox"}}
    assert list(shown(table(tmp_path, columns, "labels.json"))) == ["a.jpg", "b.jpg", "c.jpg"]


def test_a_line_of_json_ends_at_a_line_break_alone(tmp_path):
    lines = [
        json.dumps({"image": f"{one}.jpg", "labels": ["x\u2028y\x85z", "fox"]}, ensure_ascii=False) for one in "abc"
    ]
    assert shown(table(tmp_path, "\n".join(lines), "labels.jsonl"))["b.jpg"] == ["fox", "x\u2028y\x85z"]


def test_what_nobody_annotated_is_counted_in_its_table(tmp_path):
    def task(image: str, *chosen: str) -> dict[str, Any]:
        said = [{"result": [{"value": {"choices": [one]}}], "was_cancelled": one == "ape"} for one in chosen]
        return {"data": {"image": f"/data/local-files/?d={image}"}, "annotations": said}

    rows = [task("a.jpg", "fox"), task("b.jpg"), task("c.jpg", "ape"), task("d%20e.jpg", "elk"), task("f.jpg", "fox")]
    path = table(tmp_path, rows, "labels.json", images=["a", "b", "c", "d e", "f"])
    source = opened(path)
    assert {one.image: one.positives for one in source.records()} == {"a.jpg": (1,), "d e.jpg": (0,), "f.jpg": (1,)}
    assert source.counts == {"not_annotated": 2, "without_any_class": 0}


def test_where_a_missing_photograph_would_be_is_where_most_of_the_others_are(tmp_path):
    path = table(tmp_path, "image,labels\n" + "".join(f"{one}.jpg,fox\n" for one in "abcdx"), images=())
    table(tmp_path / "first", "", "note.txt", images="a")
    table(tmp_path / "second", "", "note.txt", images="bcd")
    expected = ["first/a.jpg", *(f"second/{one}.jpg" for one in "bcd"), "second/x.jpg"]
    assert [one.image for one in opened(path).records()] == expected


def test_photographs_of_two_folders_by_whole_paths_keep_their_labels(tmp_path):
    one, two = tmp_path / "z" / "b.jpg", tmp_path / "a" / "c.jpg"
    for file in (one, two):
        file.parent.mkdir()
        file.touch()
    path = table(tmp_path / "tables", f"image,labels\n{one},fox\n{two},ape\n", images=())
    assert shown(path) == {"z/b.jpg": ["fox"], "a/c.jpg": ["ape"]}


def test_tables_of_splits_lie_in_folders_of_this_one_alone(tmp_path):
    """And name photographs from there, but for those at addresses."""
    text = "image,labels\na.jpg,fox\nhttps://example.org/b.jpg,ape\n"
    table(tmp_path / "train", text, images="a")
    table(tmp_path / "train" / "old", text, images="a")
    assert KINDS["table"].splits(tmp_path) == ("train",)
    assert list(shown(tmp_path, "train")) == ["train/a.jpg", "https://example.org/b.jpg"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-8"])
def test_a_byte_order_mark_is_no_part_of_the_first_class(tmp_path, encoding):
    path = table(tmp_path, "", images="ab")
    path.write_bytes("Füchse,ape,image\n1,0,a.jpg\n0,1,b.jpg\n".encode(encoding))
    assert opened(path).labels.classes == ("Füchse", "ape")
    assert shown(path) == {"a.jpg": ["Füchse"], "b.jpg": ["ape"]}


@pytest.mark.parametrize("path", [r"D:\photos\a.jpg", "c:/photos/a.jpg", "/photos/./a.jpg", r"\photos\a.jpg"])
def test_paths_of_windows(path):
    assert checked_path(path) == "/photos/a.jpg"


# ---- Values


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        ({"b", "a", "c"}, ("a", "b", "c")),
        (float("nan"), None),
        ("3 1 2 1", (3, 1, 2, 1)),
        ("2.0", ("2.0",)),
        ([2.0, 10], (2, 10)),
        ({"fox": 1, "ape": 0, "elk": True}, ("fox", "elk")),
    ],
)
def test_the_parts_of_a_value(value, parts):
    assert parse_value(value) == parts


@pytest.mark.parametrize(
    ("text", "separator", "parts"),
    [
        ("Hund und Katze and Maus", " und  and ", ["Hund", "Katze", "Maus"]),
        ("Hund und Katze; Rind", "; und ", ["Hund", "Katze", "Rind"]),
        ("Hundert", " und ", ["Hundert"]),
        ("a;;b; ", ";", ["a", "b"]),
    ],
)
def test_words_between_names_stand_by_themselves(text, separator, parts):
    assert split_at(text, separator) == parts


@pytest.mark.parametrize("cell", [True, 1, "TRUE", " true ", "1.0", "1,"])
def test_yes_in_a_column_of_0_and_1(cell):
    assert one_hot_value(cell) == 1


def test_no_and_nothing_in_a_column_of_0_and_1():
    assert [one_hot_value(cell) for cell in (0, "0,0", False, "False", "", None, "nan", -1, "-1.0")] == [0] * 7 + [
        -1
    ] * 2


def test_marks_with_spaces_around_them():
    assert [kind_of_yes(cell) for cell in (" X ", "1.00", "JA\t", "0", 1.0)] == ["x", "1", "ja", "", "1"]
    assert says_no(" 0.0 ") and says_no("Nein ") and not says_no(" ")


@pytest.mark.parametrize("name", ["background", "_background_", " None", "-nothing-", "Hintergrund"])
def test_a_class_called_nothing_with_signs_around_it_is_asked_about(name):
    (said,) = maybe_negative(["fox", name])
    assert f"a class is called {name!r}" in said


def test_classes_that_stand_for_a_missing_value_are_kept_where_they_are_listed():
    reading = LabelReading("names", ";", kept=("NA", "-"))
    assert [reading.read(value).positives for value in ("NA", "-", "fox;-", "?", "None")] == [
        ("NA",), ("-",), ("fox", "-"), (), ()
    ]  # fmt: skip


def test_vectors_ignore_what_their_kind_says():
    row = [1, 0, -1, 0]
    assert LabelReading("multi-hot", length=4).read(row) == Labels((0,), (2,))
    assert LabelReading("signed", length=4).read(row) == Labels((0,), (1, 3))


@pytest.mark.parametrize(("number", "fits"), [(0, True), (2**15 - 1, True), (2**15, False), (-1, False)])
def test_class_numbers_that_can_be(number, fits):
    if fits:
        assert Labels((number,)).positives == (number,)
        return
    with pytest.raises(ValueError, match=f"class index {number} is not from 0 to 32767"):
        Labels((number,))


def surveyed(*values: Any, separator: str | None = None, place: str = "row") -> LabelSurvey:
    survey = LabelSurvey(separator)
    for number, value in enumerate(values):
        survey.add(f"{place} {number}", value)
    return survey


@pytest.mark.parametrize(("largest", "is_sparse"), [(255, False), (256, True), (300, True)])
def test_few_large_numbers_are_asked_about(largest, is_sparse):
    survey = surveyed(3, largest, 3)
    if not is_sparse:
        assert decide_reading(survey, "here").kind == "indices"
        return
    with pytest.raises(UserError, match=f"numbers up to {largest} of which only 2 occur"):
        decide_reading(survey, "here")


def test_all_numbers_of_lists_count_for_the_classes():
    survey = surveyed([5, 2], [7], [1, 3, 4])
    assert decide_reading(survey, "here").classes(survey) == tuple(map(str, range(8)))


def test_more_of_minus_one_than_of_zero_is_asked_about_however_many_ones_there_are():
    with pytest.raises(UserError, match="vectors with more of -1 than of 0"):
        decide_reading(surveyed([1, 1, 1, -1, -1, 0], [1, 1, 1, -1, 1, 0]), "here")


def test_surveys_of_parts_are_those_of_the_whole():
    """A place is that of the first; a vector that proves what it is stands first, in whichever part it is."""
    values = ["fox;ape", "fox", [0, 1], [1, 1, 0], "elk", [5, 6], "1,0", [0, 1, 1], "", "fox;ape", [1, 0], "fox"]
    for cut in range(len(values) + 1):
        whole, one, other = LabelSurvey(";"), LabelSurvey(";"), LabelSurvey(";")
        for number, value in enumerate(values):
            whole.add(f"row {number}", value)
            (one if number < cut else other).add(f"row {number}", value)
        one.merge(other)
        assert (one.cells, one.lists) == (whole.cells, whole.lists)
        assert (one.values, one.repeats) == (whole.values, whole.repeats)
        counts = ("num_missing", "num_values", "num_lists", "num_separated", "num_decimal_commas")
        assert [getattr(one, name) for name in counts] == [getattr(whole, name) for name in counts]
        assert one.vectors[3][0] == whole.vectors[3][0] == ("row 3", (1, 1, 0))
        assert [getattr(whole, name) for name in counts] == [1, 12, 7, 2, 0]


def test_a_file_that_label_studio_serves_from_a_folder():
    assert plain_path("/data/local-files/?d=/photos/a%20b%2Bc.jpg") == "photos/a b+c.jpg"
