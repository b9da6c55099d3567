"""The numbers of a report's tables, by hand: two models on whole images and behind masks."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from msltrain.config import TrainConfig
from msltrain.measures.predictions import LargestObjects, Origin, Predictions
from msltrain.pages.tables import Cell, Table
from msltrain.report import numbers as numbers_module
from msltrain.report.numbers import Numbers, compute_numbers
from msltrain.report.open_runs import RunReport
from msltrain.report.tables import (
    all_classes,
    class_rows,
    class_table,
    measures_table,
    settings_table,
    strata_table,
)
from msltrain.stream.config import StreamConfig

CONFIG = TrainConfig(stream=StreamConfig(image_size=32))
TARGET = [[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 1, 0]]
SURE = [[2, 1, -1], [1, -1, -2], [-1, -2, -3], [-2, 2, -4]]
"""Cats are found first; of two dogs one is found first and the other third: AP 1 and (1 + 2/3) / 2. No owl is there."""
OTHER = [[1, -1, -1], [-1, 2, -2], [2, -2, -3], [-2, 1, -4]]
"""Both dogs come first; the cats are second and third: AP (1/2 + 2/3) / 2 and 1."""
AREA = [[400, 0, 0], [90_000, 900, 0], [0, 0, 0], [0, 30_000, 0]]


def predictions(logit: list[list[int]], hole_fraction: float) -> Predictions:
    return Predictions(
        keys=tuple("abcd"),
        logit_NK=np.float32(logit),
        target_NK=np.uint8(TARGET),
        ignore_NK=np.zeros((4, 3), bool),
        classes=("cat", "dog", "owl"),
        objects=LargestObjects.of_arrays(
            area_NK=np.float32(AREA),
            truncated_NK=np.where(np.array(TARGET) > 0, 0, -1).astype(np.int8),
            occluded_NK=np.full((4, 3), -1, np.int8),
            crowd_NK=np.where(np.array(TARGET) > 0, 0, -1).astype(np.int8),
        ),
        origin=Origin(hole_fraction=hole_fraction),
    )


@cache
def numbers(num_runs: int = 2) -> Numbers:
    """Behind the masks each answers as the other does on whole images."""
    runs = [
        RunReport(
            name=name,
            clean=predictions(whole, 0.0),
            masked={"high": predictions(hidden, 0.55)},
            config=CONFIG,
            history=(),
        )
        for name, whole, hidden in (("Sure", SURE, OTHER), ("Other", OTHER, SURE))[:num_runs]
    ]
    return compute_numbers(runs)


def shown(table: Table) -> dict[str, dict[str, list[str]]]:
    """Text of the cells, the best ones with a star, by group and row."""

    def text(cell: Cell | str) -> str:
        return cell if isinstance(cell, str) else cell.text + "*" * (cell.style == "best")

    return {group.title: {row.name: list(map(text, row.cells)) for row in group.rows} for group in table.groups}


def test_measures_and_what_the_last_model_has_more_of():
    """Each names one class rightly throughout and half of the other one: at 0.5 nothing tells them apart."""
    table = measures_table(numbers())
    assert list(table.columns) == ["mAP", "CP", "CR", "CF1", "OP", "OR", "OF1"]
    whole, high = shown(table).values()
    assert (whole["Sure"][0], whole["Other"][0], whole["difference"][0]) == ("91.7*", "79.2", "−12.5")
    assert (high["Sure"][0], high["Other"][0], high["difference"][0]) == ("79.2", "91.7*", "+12.5")
    for group in (whole, high):
        assert group["Sure"][1:] == group["Other"][1:] and group["difference"][1:] == ["0.0"] * 6
    titles = list(shown(table))
    assert titles[0] == "Whole images" and "high" in titles[1].lower() and "55" in titles[1]


def test_the_best_is_the_highest_and_not_the_last_in_the_alphabet():
    def whole(**logits: list[list[int]]) -> dict[str, list[str]]:
        like = numbers().runs[0]
        runs = [replace(like, name=name, masked={}, clean=predictions(logit, 0)) for name, logit in logits.items()]
        return shown(measures_table(compute_numbers(runs)))["Whole images"]

    perfect = [[4 * positive - 2 for positive in row] for row in TARGET]
    found = whole(sure=SURE, perfect=perfect, other=OTHER)
    assert [found[name][0] for name in ("sure", "perfect", "other")] == ["91.7", "100.0*", "79.2"]
    assert [found[f"{name} − sure"][0] for name in ("perfect", "other")] == ["+8.3", "−12.5"]
    assert "*" not in "".join(cell for row in whole(a=SURE, b=SURE).values() for cell in row)


def test_objects_by_size_and_no_row_without_any():
    table = strata_table(numbers())
    assert table is not None and list(table.columns) == ["Pairs", "Sure", "Other", "Sure", "Other"]
    assert list(table.over) == [("mAP", 2), ("CR", 2)]
    whole = shown(table)["Whole images"]
    sizes = {name: cells for name, cells in whole.items() if name.split()[0] in ("small", "medium", "large")}
    assert {name: cells[0] for name, cells in sizes.items()} == {"small": "2", "large": "2"}
    assert sum(int(cells[0]) for cells in sizes.values()) == sum(map(sum, TARGET))
    single = strata_table(numbers(1))
    assert single is not None and list(single.columns) == ["Pairs", "mAP", "CR"] and list(single.over) == []
    assert shown(single)["Whole images"]["small"][0] == "2"


def test_classes_come_by_what_is_gained_behind_the_masks():
    rows = class_rows(numbers())
    assert [(row.name, row.num_images) for row in rows] == [("cat", 2), ("dog", 2), ("owl", 0)]
    assert [[bar.text for bar in bars] for bars in rows[0].ends] == [["100.0", "58.3"], ["58.3", "100.0"]]
    assert [[bar.text for bar in bars] for bars in rows[1].ends] == [["83.3", "100.0"], ["100.0", "83.3"]]
    assert [[bar.text for bar in bars] for bars in rows[2].ends] == [["–", "–"], ["–", "–"]]
    assert [bar.share for bar in rows[1].ends[0]] == ["83.3%", "100.0%"]
    assert [[bar.found for bar in bars] for bars in rows[0].ends] == [["2 of 2", "1 of 2 +1"], ["1 of 2 +1", "2 of 2"]]
    assert [[bar.found for bar in bars] for bars in rows[2].ends] == [["", ""], ["", ""]]
    assert shown(class_table(numbers()))[""]["dog"] == ["2", "83.3", "100.0", "100.0", "83.3"]


def test_of_very_many_classes_the_first_and_the_last_are_on_the_page_and_all_in_the_file(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(numbers_module, "MOST_CLASSES", 2)
    assert [row.name for row in class_rows(numbers())] == ["cat", "dog"], "those with a value"
    head, *rows = csv.reader(io.StringIO(all_classes(numbers())))
    assert head[:2] == ["class", "images"] and [name.partition(",")[0] for name in head[2:]] == [
        "AP Sure", "AP Other", "AP Sure", "AP Other"
    ]  # fmt: skip
    assert rows == [
        ["cat", "2", "1", "0.583333", "0.583333", "1"],
        ["dog", "2", "0.833333", "1", "1", "0.833333"],
        ["owl", "0", "", "", "", ""],
    ]


def test_settings_are_shown_where_they_differ():
    first, second = numbers().runs
    assert settings_table([first, second]) is None
    other = replace(CONFIG, run=replace(CONFIG.run, seed=7), data=replace(CONFIG.data, keep_masks=("a", "b")))
    table = settings_table([first, replace(second, config=other)])
    assert table is not None and list(table.columns) == ["Sure", "Other"]
    assert shown(table) == {"": {"data.keep_masks": ["none", "a, b"], "run.seed": ["0", "7"]}}
