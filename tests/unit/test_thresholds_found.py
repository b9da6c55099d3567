"""Which predictions thresholds are tuned on, of several beside each other; and each threshold against a plain loop."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from msltrain.measures.predictions import Origin, Predictions, write_predictions
from msltrain.measures.summary import measure
from msltrain.measures.thresholds import (
    MIN_POSITIVES,
    held_out_beside,
    other_thresholds,
    threshold_origin,
    tune_thresholds,
)

OF_MODEL = Origin(checkpoint_sha256="a" * 64, image_size=64, reading="one")


def predictions(
    seed: int, num: int = 40, classes: tuple[str, ...] = ("cat", "dog", "owl"), **origin: Any
) -> Predictions:
    """Logits in steps, so that many are equal; some pairs are ignored, of positives too; the last class is rare."""
    rng = np.random.default_rng(seed)
    shape = (num, len(classes))
    target_NK = rng.random(shape) < np.linspace(0.6, 0.2, len(classes))
    logit_NK = np.round(rng.normal(size=shape) + target_NK, 1).astype(np.float32)
    return Predictions(
        keys=tuple(f"{seed}-{number}" for number in range(num)),
        logit_NK=logit_NK,
        target_NK=target_NK.astype(np.uint8),
        ignore_NK=rng.random(shape) < 0.2,
        classes=classes,
        origin=replace(OF_MODEL, **origin),
    )


def f1(predicted_N: np.ndarray, target_N: np.ndarray) -> float:
    return 2 * (predicted_N & target_N).sum() / (predicted_N.sum() + target_N.sum())


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("least", [1, 8, 12])
def test_a_threshold_is_the_best_of_all_that_part_two_logits(seed: int, least: int):
    one = predictions(seed)
    found_K = tune_thresholds(one, least)
    for k in range(3):
        kept_N = ~one.ignore_NK[:, k]
        logit_N, target_N = one.logit_NK[kept_N, k].astype(float), one.target_NK[kept_N, k] > 0
        if target_N.sum() < least:
            assert found_K[k] == 0
            continue
        levels = sorted(set(logit_N))
        between = [levels[0], *((low + high) / 2 for low, high in pairwise(levels))]
        values = [round(f1(logit_N >= level, target_N), 12) for level in between]
        best = max(level for level, value in zip(between, values) if value == max(values))
        assert found_K[k] == pytest.approx(best)


def test_a_class_has_positives_enough_from_ten_that_count():
    target_NK = np.zeros((30, 3), np.uint8)
    target_NK[:MIN_POSITIVES], target_NK[: MIN_POSITIVES + 1, 2] = 1, 1
    ignore_NK = np.zeros((30, 3), bool)
    ignore_NK[0, 1:] = True  # of a positive: nine and ten are left
    logit_NK = np.where(target_NK, 3, 2).astype(np.float32)
    one = replace(predictions(0, 30), logit_NK=logit_NK, target_NK=target_NK, ignore_NK=ignore_NK)
    assert tune_thresholds(one).tolist() == [2.5, 0, 2.5]
    assert "0.5 for dog, shown fewer than 10 times" in threshold_origin(one)
    found_K = other_thresholds(one)
    assert found_K is not None and found_K.tolist() == [2.5, 0, 2.5]  # one that keeps 0.5 does not keep the others


def test_measures_at_tuned_thresholds_are_those_tuned_on_the_others():
    test, validation = predictions(1), predictions(2)
    found = measure(test, validation=validation, with_intervals=True).metrics
    limit_K = tune_thresholds(validation)
    assert found.tuned is not None and found.thresholds == pytest.approx((1 / (1 + np.exp(-limit_K))).tolist())
    kept_NK = ~test.ignore_NK
    predicted_NK, target_NK = (test.logit_NK >= limit_K) & kept_NK, (test.target_NK > 0) & kept_NK
    right = (predicted_NK & target_NK).sum()
    assert pytest.approx(right / predicted_NK.sum()) == found.tuned.OP
    assert pytest.approx(right / target_NK.sum()) == found.tuned.OR
    assert pytest.approx(np.mean((predicted_NK & target_NK).sum(0) / target_NK.sum(0))) == found.tuned.CR


def test_intervals_are_of_what_is_measured():
    test, validation = predictions(1), predictions(2)
    found = measure(test, validation=validation, with_intervals=True)
    assert {name: one.value for name, one in found.intervals.items()} == pytest.approx(found.metrics.summary())
    assert all(0 <= one.low <= one.value <= one.high <= 1 for one in found.intervals.values())


@pytest.mark.parametrize(
    ("origin", "is_taken"),
    [
        ({}, True),
        ({"keep_masks": ("shards/masks/high",), "hole_fraction": 0.5}, True),
        ({"checkpoint_sha256": ""}, False),
        ({"part": "held out"}, False),
        ({"test_time": "flip"}, False),
        ({"recalibrated": "b" * 64}, False),
        ({"checkpoint_sha256": "b" * 64}, False),
        ({"image_size": 96}, False),
        ({"reading": "two"}, False),
        ({"reading": ""}, True),
        ({"image_size": 0}, True),
    ],
)
def test_thresholds_are_for_plain_views_of_the_same_model(tmp_path: Path, origin: dict[str, Any], is_taken: bool):
    write_predictions(predictions(2, part="held out"), tmp_path / "mine-held-out.parquet")
    found = held_out_beside(predictions(1, **origin), [tmp_path])
    assert (found is not None) == is_taken
    if found is not None:
        assert found.keys[0] == "2-0"


def test_files_that_say_nothing_are_passed_over_for_one_that_does(tmp_path: Path):
    """By name before the right one, which lies in the second folder: damaged, averaged views, masked, other classes,
    another model, the same photographs."""
    first, second = tmp_path / "a", tmp_path / "b"
    write_predictions(predictions(3, test_time="flip"), first / "1-held-out.parquet")
    write_predictions(predictions(4, keep_masks=("shards/masks/high",)), first / "2-held-out.parquet")
    write_predictions(predictions(5, classes=("cat", "dog", "elk")), first / "3-held-out.parquet")
    write_predictions(predictions(6, checkpoint_sha256="b" * 64), first / "4-held-out.parquet")
    write_predictions(predictions(1), first / "5-held-out.parquet")
    write_predictions(predictions(7), first / "6-test.parquet")
    (first / "0-held-out.parquet").write_bytes(b"nothing")
    assert held_out_beside(predictions(1), [first, first]) is None
    write_predictions(predictions(8), second / "mine-held-out.parquet")
    write_predictions(predictions(9), second / "other-held-out.parquet")
    found = held_out_beside(predictions(1), [first, second])
    assert found is not None and found.keys[0] == "8-0"
