"""Series beside each other, precision over recall, and co-occurrence in a report: each by its definition."""

from __future__ import annotations

import statistics
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from msltrain.measures.bootstrap import Interval, interval_around, resampled_mean_ap
from msltrain.measures.metrics import SUMMARY, compute_metrics
from msltrain.measures.predictions import Predictions
from msltrain.measures.summary import measure
from msltrain.pages.text import percent
from msltrain.report.classcurves import BOTTOM, LEFT, RIGHT, TOP, class_curves, curve
from msltrain.report.cooccurrence import FalseAlarms, leaning_pairs
from msltrain.report.headline import _series_at_half
from msltrain.report.heatmap import LEVELS, _map, _strongest
from msltrain.report.numbers import Found, compute_numbers
from msltrain.report.series import join_series
from tests.unit.test_report_of_three import CLASSES, RUNS, of

SERIES = ("a", "b", "a", "c", "b", "b")


def test_a_series_is_the_mean_of_its_runs_less_that_of_the_first():
    """Three series of two, three and one runs that do not stand together."""
    everything = [of(number % 3, end) for number, end in enumerate(("whole", "high") * 3)]
    measured = [{"whole": measure(one), "high": measure(of(0, "high"))} for one in everything]
    mean_ap_R = [{"whole": resampled_mean_ap(one, num_resamples=50), "high": np.arange(3.0)} for one in everything]
    found = join_series(SERIES, measured, mean_ap_R)
    assert [(one.name, one.members) for one in found] == [("a", (0, 2)), ("b", (1, 4, 5)), ("c", (3,))]
    means_R, means = [], []
    for one in found:
        values = {
            name: [measured[number]["whole"].metrics.summary()[name] for number in one.members] for name in SUMMARY
        }
        for name in SUMMARY:
            spread = statistics.stdev(values[name]) if len(one.members) > 1 else 0
            assert one.summary["whole"][name] == pytest.approx((statistics.fmean(values[name]), spread))
        means.append(statistics.fmean(values["mAP"]))
        means_R.append(sum(mean_ap_R[number]["whole"] for number in one.members) / len(one.members))
        expected = interval_around(means[-1], means_R[-1])
        assert (one.mAP["whole"].low, one.mAP["whole"].high) == pytest.approx((expected.low, expected.high))
        assert one.text("whole").startswith(percent(means[-1])) and ("±" in one.text("whole")) == (one.name != "c")
    assert found[0].mAP_minus_first == {} and set(found[2].mAP_minus_first) == {"whole", "high"}
    for number in (1, 2):
        expected = interval_around(means[number] - means[0], means_R[number] - means_R[0])
        got = found[number].mAP_minus_first["whole"]
        assert (got.value, got.low, got.high) == pytest.approx((expected.value, expected.low, expected.high))
    assert join_series(["x", "y"], measured[:2], mean_ap_R[:2]) == ()
    [alone] = join_series(["x", "x"], measured[:2], mean_ap_R[:2])
    assert alone.members == (0, 1)


@pytest.mark.parametrize("k", range(5))
def test_a_curve_goes_from_positive_to_positive_of_the_samples_that_count(k: int):
    one = of(1, "whole")
    kept = [n for n in range(len(one.keys)) if not one.ignore_NK[n, k]]
    kept.sort(key=lambda n: -one.logit_NK[n, k])  # stable: equal logits keep their order
    num_positive = sum(int(one.target_NK[n, k]) for n in kept)
    points, hits = [], 0
    for rank, n in enumerate(kept, 1):
        if one.target_NK[n, k]:
            hits += 1
            points.append((hits / num_positive, hits / rank))
    recall, precision = curve(one, k)
    if num_positive <= 40:
        assert list(zip(recall, precision)) == [pytest.approx(point) for point in points]
    else:
        assert len(recall) == 40 and recall.mean() == pytest.approx(np.mean([one for one, _ in points]), abs=0.02)
        assert recall[-1] == 1 and (np.diff(recall) > 0).all()
    assert precision.mean() == pytest.approx(compute_metrics(one).classes[k].average_precision, abs=0.01)


@pytest.mark.parametrize("num_positive", [1, 39, 40, 41, 51, 60, 79, 81, 399])
def test_the_mean_height_is_the_average_precision_however_many_there_are(num_positive: int):
    """Behind each positive one negative more than behind the last: early positives stand far above late ones."""
    place_P = np.cumsum(np.arange(num_positive))
    target_N = np.zeros(place_P[-1] + 1, np.uint8)
    target_N[place_P] = 1
    one = Predictions(
        keys=tuple(map(str, range(len(target_N)))),
        logit_NK=-np.arange(len(target_N), dtype=np.float32)[:, None],
        target_NK=target_N[:, None],
        ignore_NK=np.zeros((len(target_N), 1), bool),
        classes=("a",),
    )
    recall, precision = curve(one, 0)
    assert len(recall) == len(precision) == min(num_positive, 40)
    expected = np.mean(np.arange(1, num_positive + 1) / (place_P + 1))
    assert precision.mean() == pytest.approx(expected, abs=0.015)


def test_recall_goes_across_and_precision_up():
    numbers = compute_numbers(RUNS)
    for panel in class_curves(numbers):
        k = CLASSES.index(panel.name)
        for lines, end in zip(panel.ends, ("whole", "high"), strict=True):
            for number, line in enumerate(lines):
                metrics = compute_metrics(of(number, end)).classes[k]
                assert metrics.recall is not None and line.ap == percent(metrics.average_precision)
                across, down = LEFT + metrics.recall * (RIGHT - LEFT), BOTTOM - metrics.precision * (BOTTOM - TOP)
                assert line.dot == pytest.approx((across, down), abs=0.06)
                said = f"precision {percent(metrics.precision)} and recall {percent(metrics.recall)}"
                assert f"{RUNS[number].name} AP {line.ap}, at score ≥ 0.5 {said}" in panel.alt
                x, y = zip(*(map(float, point.split(",")) for point in line.path.split()))
                recall, precision = curve(of(number, end), k)
                assert x[1:] == pytest.approx((LEFT + recall * (RIGHT - LEFT)).tolist(), abs=0.06) and x[0] == LEFT
                assert y[1:] == pytest.approx((BOTTOM - precision * (BOTTOM - TOP)).tolist(), abs=0.06)


def alarms(
    images: list[list[int]], seen: list[list[int]], elsewhere: list[list[int]], there: list[list[int]]
) -> FalseAlarms:
    return FalseAlarms(
        num_images_KK=np.array(images),
        num_seen_KK=np.array(seen),
        num_elsewhere_KK=np.array(elsewhere),
        num_seen_elsewhere_KK=np.array(there),
    )


def test_pairs_are_ranked_by_alarms_and_not_by_rates():
    """Of 20 images half are wrong; of 200 a fifth: 10 and 40 beyond what is usual. A third pair has too few images in
    one model, and an excess of 5 in the other; a fourth has none."""
    many = [[100] * 3] * 3
    none = [[0] * 3] * 3
    first = alarms([[0, 20, 200], [0, 0, 5], [50, 0, 0]], [[0, 10, 40], [0, 0, 5], [0, 0, 0]], many, none)
    second = alarms([[0, 20, 200], [0, 0, 50], [50, 0, 0]], [[0, 0, 0], [0, 0, 5], [0, 0, 0]], many, none)
    for order in ([first, second], [second, first]):
        assert leaning_pairs(order, 9) == [(0, 2), (0, 1), (1, 2)]
        assert leaning_pairs(order, 2) == [(0, 2), (0, 1)]


def test_a_cell_is_dark_from_its_level_on_and_said_by_its_row():
    share_KK = np.array([[np.nan, LEVELS[0], LEVELS[1] - 1e-9], [LEVELS[-1], np.nan, 0.0], [0.009, LEVELS[2], np.nan]])
    found = _map(share_KK, ["ant", "bee", "cat"], "What")
    assert found is not None
    levels = dict(found.paths)
    # 0.01 and nearly 0.03 in the first row, 0.1 in the third, 0.6 in the second.
    assert levels == {1: "M1 0h2v1h-2z", 3: "M1 2h1v1h-1z", 5: "M0 1h1v1h-1z"}
    words = "Highest: ant with bee 60.0, bee with cat 10.0, cat with ant 3.0, bee with ant 1.0, ant with cat 0.9."
    assert _strongest(share_KK, ["ant", "bee", "cat"]) == words and found.alt == f"What, in percent. {words}"


def test_what_a_series_finds_at_one_half_is_the_mean_of_its_runs():
    """Not what they find at as many false alarms."""

    def found(num_found: int, num_false: int) -> Found:
        return Found(
            num_images=50,
            num_objects=200,
            num_found=num_found,
            num_false=num_false,
            num_found_alike=7,
            gain=Interval(value=0, low=0, high=0),
        )

    counts = [{"whole": found(*one)} for one in ((100, 10), (40, 5), (120, 20))]
    series = [SimpleNamespace(name="a", members=(0, 2)), SimpleNamespace(name="b", members=(1,))]
    numbers: Any = SimpleNamespace(ends=["whole"], series=series, found=counts)
    assert _series_at_half(numbers) == (
        "At a score of 0.5, on average over the seeds, on whole images “a” finds 55 of every 100 labels with 30 false "
        "alarms per 100 images and “b” finds 20 of every 100 labels with 10 false alarms per 100 images."
    )
