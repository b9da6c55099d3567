"""Columns of a table by their headers and cells: what is looked at in each of them, and not in the first alone."""

from __future__ import annotations

from typing import Any

import pytest

from msldata.contract.judging import too_few_to_judge
from msldata.contract.listing import columns_of_images, delimiter_of, image_column_of
from msldata.inspect.preview import spread
from msldata.sources.tables.arrow import named_cell
from msldata.sources.tables.column_contents import holds_words, is_binary, may_name_classes, tells_apart
from msldata.sources.tables.column_words import is_time, may_have_several_rows, names_of_labels, numbered_alike
from msldata.sources.tables.count_columns import columns_of_counts, holds_counts


def rows(**columns: list[Any]) -> list[tuple[str, dict[str, Any]]]:
    number = len(next(iter(columns.values())))
    return [(f"line {n + 2}", {name: cells[n] for name, cells in columns.items()}) for n in range(number)]


@pytest.mark.parametrize(
    ("header", "delimiter"),
    [
        ('"a, b, c, d";labels', ";"),
        ("image,labels;more", ","),
        ("image", ","),
        ("image|a;b|c", "|"),
        ("sep=\t\nx,y", "\t"),
    ],
)
def test_what_stands_between_cells(header, delimiter):
    assert delimiter_of(f"{header}\n1,2,3,4,5\n") == delimiter


def test_the_column_of_images_by_its_header_is_the_first_of_the_likeliest_word():
    assert image_column_of(["id", "File", "file ", "image_name"]) == "File"
    assert image_column_of(["Path", "IMAGE", "Image"]) == "IMAGE"
    assert image_column_of(["number", "labels"]) is None


@pytest.mark.parametrize(("others", "is_one"), [(0, True), (1, True), (2, False)])
def test_nearly_all_cells_of_images_are_names_of_images(others, is_one):
    cells = [f"{n}.JPG" for n in range(10 - others)] + ["?"] * others + ["", None]
    assert columns_of_images(["x"], rows(x=cells)) == (["x"] if is_one else [])


def test_counts_are_small_numbers_somewhere_0_in_whichever_row():
    table = rows(
        fox=["1", "2", "1", "0"],
        ape=[1, "0", "", 3],
        elk=["1", "2", "3", "4"],  # nowhere 0
        cow=["0", "x", "2", "3"],  # something else
        age=["0", "1", "2", "3"],  # a measure by its name
        emu=["0", "1", "1", "0"],
    )
    assert columns_of_counts(["fox", "ape", "elk", "cow", "age", "emu"], table) == ["fox", "ape"]
    assert [holds_counts(name, table) for name in ("fox", "ape", "elk", "cow", "emu")] == [
        True,
        True,
        True,
        False,
        False,
    ]
    slip = rows(fox=["0", "2", "1"], ape=["0", "1", "1"])
    assert columns_of_counts(["fox", "ape"], slip) == []  # a single cell above 1
    few = rows(fox=["0"] * 18 + ["21", "900"], ape=["0"] * 17 + ["21", "22", "23"], elk=["0"] * 19 + ["1000"])
    assert columns_of_counts(["fox", "ape", "elk"], few) == ["fox"]  # nine in ten are at most 20, and all below 1,000


def test_a_column_of_noughts_alone_is_of_0_and_1():
    table = rows(a=["0", "0.0", ""], b=["", "nan", "none"], c=["1", "-1", "0"], d=["0", "2", "1"])
    assert [is_binary(name, table) for name in "abcd"] == [True, False, True, False]


def test_words_in_any_cell_are_words():
    table = rows(a=["1", "", "fox"], b=["1", None, "2,5"], c=[1, 2.5, None], d=["", "", ""])
    assert [holds_words(name, table) for name in "abcd"] == [True, False, False, False]


def test_words_that_recur_may_name_classes_and_those_of_each_row_tell_rows_apart():
    table = rows(
        a=["fox", "ape"] * 5,
        b=[*"abcdefghi", "a"],
        c=["fox"] * 10,
        d=[*"abcdefg", "a", "b", "c"],
        e=[str(n) for n in range(10)],
    )
    assert [may_name_classes(name, table) for name in "abcde"] == [True, False, False, False, False]
    assert [tells_apart(name, table) for name in "abcde"] == [False, False, True, False, True]


def test_headers_that_say_labels():
    assert [may_have_several_rows(name) for name in ("species", "Klasse", "labels", "Arten", "classes", "kind")] == [
        True, True, False, False, False, False
    ]  # fmt: skip
    assert names_of_labels(["Artenkürzel", "siteCode", "ArtName", "Label 2", "labels"]) == [
        "labels", "ArtName", "Artenkürzel", "Label 2"
    ]  # fmt: skip
    assert numbered_alike("Art 1", ["Art 2", "Artist", "Art 1"]) == ["Art 2", "Art 1"]
    assert numbered_alike("Art", ["Art", "Artist"]) == ["Art"]


def test_an_empty_column_is_no_time():
    table = rows(date=["", None], x=["2024-01-02", "12:30"], y=["2024-01-02", "fox"])
    assert [is_time(name, table) for name in ("date", "x", "y")] == [False, True, False]


def test_positions_of_a_list_of_classes():
    assert named_cell([1, -1, None, "ape", 0], "", ("ape", "fox")) == ["fox", None, None, "ape", "ape"]
    assert named_cell([{"kind": 1, "box": 3}], "kind", ("ape", "fox")) == ["fox"]


def test_a_class_that_one_photograph_shows_is_too_rare_to_judge_by():
    said = too_few_to_judge({"val": {"ape": 1, "fox": 2, "elk": 0}, "test": {"ape": 2, "fox": 2}})
    assert said.endswith("val has one or none of 'ape', 'elk' (2 of 3 classes)")


@pytest.mark.parametrize(
    ("total", "num", "places"), [(10, 3, [1, 5, 8]), (7, 7, [*range(7)]), (5, 1, [2]), (9, 2, [2, 6])]
)
def test_samples_of_a_preview_lie_as_far_from_the_ends_as_from_each_other(total, num, places):
    assert spread(total, num) == places
