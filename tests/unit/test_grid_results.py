"""Means and deviations over seeds, and curves by how much is hidden."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from msltrain.grids.jobs import StudyJob
from msltrain.grids.results import OverSeeds, curves_of
from msltrain.reproduce.content import beside_mean, hidden
from msltrain.runs.run_places import WHOLE


@pytest.mark.parametrize(
    ("by_seed", "mean", "std", "of_two", "of_three"),
    [
        ({}, None, None, "", ""),
        ({4: 0.5}, 0.5, None, "(1 seed)", "(1 seed)"),
        ({0: 0.25, 1: 0.75}, 0.5, 0.125**0.5, "± 35.4", "(2 seeds)"),
        ({0: 0.25, 1: 0.5, 2: 0.75}, 0.5, 0.25, "± 25.0", "± 25.0"),
    ],
)
def test_a_mean_is_of_all_seeds_or_says_of_how_many(by_seed, mean, std, of_two: str, of_three: str):
    """The deviation is that of a sample: divided by one less than there are."""
    spread = OverSeeds(by_seed)
    assert spread.mean == mean and spread.std == (None if std is None else pytest.approx(std))
    assert beside_mean(spread, 2) == of_two and beside_mean(spread, 3) == of_three
    assert spread.to_json()["by_seed"] == {str(seed): value for seed, value in by_seed.items()}


def test_conditions_in_words():
    assert hidden(WHOLE, 0.0) == "Whole images" and hidden("low", None) == "Behind held-out masks, low"
    assert hidden("high", 0.549) == "Behind held-out masks, high, 55\u00a0% hidden"


def study(folder: Path, seed: int, cells: dict[tuple[str, str], tuple[float, float]]) -> StudyJob:
    """The curves of a seed: (hole fraction, mAP) by model and condition; CR is a tenth less, CF1 two."""
    job = StudyJob(
        grid="g",
        seed=seed,
        models=(),
        shards="s",
        keep_masks=(),
        recalibration=("t", ()),
        folder=folder / f"seed{seed}",
        needs=(),
    )
    counts = {"visible_share": [], "num_pairs": [], "num_predicted": [], "num_negative": 0, "num_false": 0}
    rows = [
        {"model": model, "kind": "" if condition == WHOLE else "irregular", "condition": condition, **counts}
        | {"hole_fraction": hole, "mAP": value, "CR": value - 0.1, "CF1": value - 0.2}
        for (model, condition), (hole, value) in cells.items()
    ]
    job.folder.mkdir()
    job.result.write_text(json.dumps({"cells": rows, "areas": []}))
    return job


def test_curves_are_of_all_seeds_by_what_is_hidden(tmp_path: Path):
    first = {
        ("MSL", "irregular-20-30"): (0.25, 0.7),
        ("Baseline", "irregular-20-30"): (0.25, 0.5),
        ("Baseline", WHOLE): (0.0, 0.85),
        ("MSL", WHOLE): (0.0, 0.9),
        ("MSL", "irregular-high"): (0.55, 0.4),
        ("MSL", "irregular-10-20"): (0.15, 0.8),
    }
    second = {place: (hole * 1.2, value - 0.1) for place, (hole, value) in first.items() if place[0] == "MSL"}
    unfinished = study(tmp_path, 2, first)
    unfinished.result.unlink()
    curves = curves_of([study(tmp_path, 0, first), study(tmp_path, 1, second), unfinished])
    assert list(curves) == ["MSL", "Baseline"]
    shown = {point.condition: point for point in curves["MSL"]}
    assert list(shown) == [WHOLE, "irregular-10-20", "irregular-20-30", "irregular-high"]
    assert [point.on_curve for point in shown.values()] == [True, True, True, False], "it overlaps the others"
    assert [point.hole_fraction for point in shown.values()] == pytest.approx([0, 0.165, 0.275, 0.605])
    spreads = shown["irregular-20-30"].spreads
    assert spreads["mAP"].by_seed == {0: 0.7, 1: pytest.approx(0.6)} and spreads["mAP"].mean == pytest.approx(0.65)
    assert spreads["CR"].mean == pytest.approx(0.55) and spreads["CF1"].mean == pytest.approx(0.45)
    assert [(point.hole_fraction, point.spreads["mAP"].by_seed) for point in curves["Baseline"]] == [
        (0.0, {0: 0.85}),
        (0.25, {0: 0.5}),
    ]
