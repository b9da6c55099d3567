"""A robustness study as JSON: read back as it was, or refused, whatever became of the file."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import numpy as np
import pytest

from msltrain.measures.bootstrap import interval_around, resampled_mean_ap
from msltrain.measures.predictions import Origin, Predictions
from msltrain.pages.text import points
from msltrain.robustness.curves import (
    VISIBLE_BINS,
    Cell,
    Curves,
    compute_curves,
    pooled_false_rate,
    pooled_visibility,
    read_curves,
)
from msltrain.robustness.figure import areas_table, robustness_markdown, study_plots

ODD = (
    None,
    True,
    -1,
    0,
    2**70,
    0.5,
    1.5,
    float("nan"),
    float("inf"),
    "",
    "box",
    "whole",
    "[/x]",
    [],
    {},
    [[1]],
    {"a": 1},
)


def cell(model: str, kind: str, condition: str, hole_fraction: float, mAP: float) -> Cell:
    known = VISIBLE_BINS if kind else ()
    return Cell(
        **{"model": model, "kind": kind, "condition": condition, "hole_fraction": hole_fraction, "mAP": mAP},
        **{"CR": 0.5, "CF1": 0.4, "visible_share": known, "num_pairs": (3,) * len(known), "num_negative": 9},
        **{"num_predicted": (1,) * len(known), "num_false": 2},
        intervals=((mAP - 0.1, mAP + 0.1), (0.4, 0.6), (0.3, 0.5)),
        gains=((-0.1, 0.2), (0.0, 0.1), (-0.2, -0.1)) if model == "b" else (),
    )


@pytest.fixture
def content() -> dict:
    curves = [
        *(cell(model, "", "whole", 0.0, 0.8) for model in ("a", "b")),
        *(cell(model, "box", f"box-{n}", n / 10, 0.8 - n / 10) for model in ("a", "b") for n in (1, 2, 3)),
    ]
    return json.loads(Curves(cells=tuple(curves), areas=(), num_samples=9).to_json())


def read(content: object) -> Curves:
    return read_curves(json.dumps(content).encode())


def test_whiskers_and_differences_are_over_the_same_images():
    """Resampled once for all cells: a model less itself has no interval at all."""
    rng = np.random.default_rng(3)
    target_NK = (rng.random((80, 3)) < 0.4).astype(np.uint8)

    def of(skill: float, hole: float = 0.0) -> Predictions:
        noise_NK = np.random.default_rng(5).standard_normal((80, 3))
        return Predictions(
            keys=tuple(map(str, range(80))),
            classes=("x", "y", "z"),
            logit_NK=(noise_NK + skill * (target_NK - 0.5)).astype(np.float32),
            target_NK=target_NK,
            ignore_NK=np.zeros((80, 3), bool),
            origin=Origin(kind="box" if hole else "", hole_fraction=hole),
        )

    study = {name: {"whole": of(skill), "box-10-20": of(skill / 2, 0.15)} for name, skill in (("a", 1), ("b", 3))}
    study["same"] = study["a"]
    curves = compute_curves(study, with_intervals=True)
    by = {(cell.model, cell.condition): cell for cell in curves.cells}
    a, b, same = (by[name, "whole"] for name in ("a", "b", "same"))
    drawn = [resampled_mean_ap(study[name]["whole"], num_resamples=200) for name in ("a", "b")]
    expected = interval_around(b.mAP - a.mAP, drawn[1] - drawn[0])
    assert b.gains[0] == pytest.approx((expected.low, expected.high)) and a.gains == ()
    assert same.gains == ((0.0, 0.0),) * 3 and same.intervals == a.intervals
    assert a.intervals[0][0] < a.mAP < a.intervals[0][1]
    assert compute_curves(study).has_intervals is False and read_curves(curves.to_json().encode()) == curves
    text = robustness_markdown(curves)
    assert f"| b − a | {points(b.mAP - a.mAP)}" in text and f"{points(expected.low)} to {points(expected.high)}" in text
    plots = study_plots(curves, {"a": 0, "b": 1, "same": 2})
    assert all(line.whiskers for plot in plots for line in plot.lines)
    changed = json.loads(curves.to_json())
    changed["cells"][0]["intervals"] = [[0.9, 0.1]] * 3
    with pytest.raises(ValueError, match="cannot be"):
        read(changed)


def test_areas_are_those_of_the_cells(content):
    curves = read(content)
    assert [(area.model, area.kind, area.mAP) for area in curves.areas] == [
        (model, "box", pytest.approx(0.65)) for model in ("a", "b")
    ]
    assert read_curves(curves.to_json().encode()) == curves


def test_whatever_became_of_the_file_it_can_be_shown_or_is_refused(content):
    """Leaving out the areas of a model once was a traceback of the page that shows them."""
    chance, num_refused = random.Random(0), 0
    for _ in range(400):
        changed = json.loads(json.dumps(content))
        holder, name = chance.choice(list(places(changed)))
        if chance.random() < 0.3:
            del holder[name]
        else:
            holder[name] = chance.choice(ODD)
        try:
            curves = read(changed)
        except ValueError as error:
            num_refused += 1
            assert "\n" not in str(error)
            continue
        assert (
            robustness_markdown(curves) is not None
            and areas_table(curves)
            and study_plots(curves, dict.fromkeys(curves.models, 0)) is not None
        )
    assert num_refused > 100


def places(content: object):
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for name, value in list(items):
        yield content, name
        yield from places(value)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"null", b"[]"])
def test_what_is_no_study(data):
    with pytest.raises(ValueError):
        read_curves(data)


def test_the_height_of_a_curve_weighs_each_stretch_by_its_width():
    cells = [
        cell("a", "box", name, at, mAP)
        for name, at, mAP in (("box-30-40", 0.4, 0.1), ("box-00-10", 0.1, 0.5), ("box-high", 0.9, 0.0))
    ]
    curves = read_curves(Curves(cells=(*cells, cell("a", "", "whole", 0.0, 0.9)), areas=()).to_json().encode())
    [area] = curves.areas
    assert (area.up_to, area.mAP) == (0.4, pytest.approx((0.1 * 0.7 + 0.3 * 0.3) / 0.4))


def test_areas_compare_models_at_the_bins_that_all_have(content):
    """Without its last bin a model would look better than the same one with it."""
    without = [one for one in content["cells"] if (one["model"], one["condition"]) != ("b", "box-3")]
    curves = read({**content, "cells": without})
    assert [(area.up_to, area.mAP) for area in curves.areas] == [(0.2, pytest.approx(0.7))] * 2


def predictions(kind: str, hole_fraction: float, visible: list[list[float]] | None, more: float = 0) -> Predictions:
    """Two classes on five images; a score of exactly 0.5 is predicted, and two pairs are ignored."""
    logit = [[1.0, -2.0], [-1.0, 0.5], [0.0, 3.0], [2.0, -0.1], [-3.0, 0.0]]
    target = [[1, 0], [1, 1], [1, 0], [1, 1], [0, 0]]
    ignore = [[0, 0], [0, 1], [0, 0], [0, 0], [1, 0]]
    return Predictions(
        keys=tuple("vwxyz"),
        logit_NK=np.float32(logit) + np.float32(more),
        target_NK=np.uint8(target),
        ignore_NK=np.array(ignore, bool),
        classes=("cat", "dog"),
        visible_NK=None if visible is None else np.float32(visible),
        origin=Origin(kind=kind, hole_fraction=hole_fraction),
    )


def test_a_cell_by_hand():
    """Bins hold their upper end, and the first one only what is wholly hidden."""
    visible = [[0.0, -1.0], [0.25, 0.1], [0.26, 0.9], [0.5, 0.75], [-1.0, -1.0]]
    row = {
        "whole": predictions("", 0.0, None, more=-9),
        "box-10-20": predictions("box", 0.15, visible),
        "box-20-30": predictions("box", 0.25, np.minimum(1, np.float32(visible) + 0.25).tolist()),
        "box-high": predictions("box", 0.6, visible, more=9),
    }
    curves = compute_curves({"a": row})
    whole, first, second, high = curves.of("a", "box")
    assert (whole.num_pairs, whole.num_negative, whole.num_false) == ((), 3, 0)
    assert (first.num_pairs, first.num_predicted) == ((1, 1, 2, 1, 0), (1, 0, 2, 0, 0))
    assert (second.num_pairs, second.num_predicted) == ((0, 1, 1, 2, 1), (0, 1, 0, 2, 0))
    assert (first.num_negative, first.num_false, first.hole_fraction) == (3, 2, 0.15)
    assert (high.num_negative, high.num_false, high.hole_fraction) == (3, 3, 0.6)
    assert pooled_visibility(curves.of("a", "box")) == [(1, 1), (1, 2), (2, 3), (2, 3), (0, 1)]
    assert pooled_false_rate(curves.of("a", "box")) == pytest.approx(4 / 6) and curves.num_samples == 5


def test_a_curve_that_the_order_of_the_samples_decides_says_so():
    """The collapsed model's figures are those of the stored order; the other one's are not."""
    first = predictions("", 0.0, None)
    same = replace(first, logit_NK=np.zeros_like(first.logit_NK))
    behind = replace(same, origin=Origin(kind="box", hole_fraction=0.15))
    curves = compute_curves({"a": {"whole": first}, "b": {"whole": same, "box-10-20": behind}})
    [said] = [note for note in curves.notes if "logit with a negative" in note]
    assert said.startswith("“b”, whole: 1 positive shares") and said.endswith("; the same in 1 more condition")


def test_every_value_stands_under_its_own_condition():
    """Resized to another side, masks fall into other ranges: b has none of 10 %, and hides more of 20 % than of 30."""
    hidden = {"a": {"1": 0.1, "2": 0.2, "3": 0.3}, "b": {"3": 0.26, "2": 0.27}}
    cells = [
        *(cell(model, "", "whole", 0.0, 0.9) for model in hidden),
        *(
            cell(model, "box", f"box-{n}", share, int(n) / 10 + (model == "b") / 100)
            for model, by_range in hidden.items()
            for n, share in by_range.items()
        ),
    ]
    curves = read_curves(Curves(cells=tuple(cells), areas=(), num_samples=9).to_json().encode())
    lines = robustness_markdown(curves).partition("mAP, box holes")[2].splitlines()
    head, a, b = ([part.strip() for part in line.strip("|").split("|")] for line in (lines[2], lines[4], lines[5]))
    assert head[1:5] == ["whole (0.0)", "1 (10.0)", "2 (20.0)", "3 (30.0)"]
    assert a[:5] == ["a", "90.0", "10.0", "20.0", "30.0"]
    assert b[:5] == ["b", "90.0", "–", "21.0", "31.0"]
