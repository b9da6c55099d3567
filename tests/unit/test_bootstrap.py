"""Bootstrap intervals of all measures, against drawing the images one by one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from msltrain.measures import bootstrap
from msltrain.measures.bootstrap import (
    interval_around,
    mean_ap_difference,
    resampled_mean_ap,
    resampled_rates,
    resampled_share,
    summary_intervals,
)
from msltrain.measures.metrics import RATES, SUMMARY, compute_metrics
from msltrain.measures.predictions import Origin, Predictions


@pytest.fixture
def predictions() -> Predictions:
    rng = np.random.default_rng(3)
    shape = (40, 4)
    target_NK = (rng.random(shape) < 0.4).astype(np.uint8)
    return Predictions(
        keys=tuple(f"{n:03d}" for n in range(40)),
        logit_NK=(rng.standard_normal(shape) + 2 * target_NK - 1).astype(np.float32),
        target_NK=target_NK,
        ignore_NK=(rng.random(shape) < 0.1) & (target_NK == 0),
        classes=tuple("abcd"),
    )


def test_ranks_may_be_beyond_what_16_bits_hold():
    """As in a test set like COCO's, for positives that come last."""
    num, last = 40_000, slice(-40, None)
    target_N1 = np.zeros((num, 1), np.uint8)
    target_N1[last] = 1
    one = Predictions(
        keys=tuple(map(str, range(num))),
        logit_NK=-np.arange(num, dtype=np.float32)[:, None],
        target_NK=target_N1,
        ignore_NK=np.zeros((num, 1), bool),
        classes=("a",),
    )
    [weight_N] = np.random.default_rng(5).multinomial(num, np.full(num, 1 / num), size=1)
    precision_P = weight_N[last].cumsum() / weight_N.cumsum()[last]
    expected = np.average(precision_P, weights=weight_N[last])
    assert resampled_mean_ap(one, num_resamples=1, seed=5) == pytest.approx([expected])


@pytest.mark.parametrize("rule", ["left out", "negative"])
def test_resampled_measures_are_those_of_the_drawn_images(predictions, rule):
    predictions = replace(predictions, origin=Origin(ignored_in_rates=rule))
    rates = resampled_rates(predictions, num_resamples=3, seed=5)
    mean_ap_R = resampled_mean_ap(predictions, num_resamples=3, seed=5)
    weight_RN = np.random.default_rng(5).multinomial(40, np.full(40, 1 / 40), size=3)
    for r, weight_N in enumerate(weight_RN):
        drawn_N = np.repeat(np.arange(40), weight_N)
        drawn = replace(
            predictions,
            keys=tuple(map(str, range(40))),
            logit_NK=predictions.logit_NK[drawn_N],
            target_NK=predictions.target_NK[drawn_N],
            ignore_NK=predictions.ignore_NK[drawn_N],
        )
        metrics = compute_metrics(drawn)
        for name in RATES:
            assert rates[name][r] == pytest.approx(getattr(metrics, name)), name
        assert mean_ap_R[r] == pytest.approx(mean_ap_by_hand(predictions, weight_N))


def test_an_ignored_pair_is_no_positive_in_a_resample_either(predictions):
    ignored_NK = predictions.ignore_NK | (np.random.default_rng(1).random((40, 4)) < 0.3)
    said = replace(predictions, ignore_NK=ignored_NK)
    assert ((said.target_NK > 0) & ignored_NK).sum() > 5
    unsaid = replace(said, target_NK=said.target_NK * ~ignored_NK)
    assert summary_intervals(said, num_resamples=5) == summary_intervals(unsaid, num_resamples=5)


def mean_ap_by_hand(predictions: Predictions, weight_N) -> float:
    """An image that was drawn w times is one step of the list, of w images; classes that nobody drew are left out."""
    values = []
    for k in range(len(predictions.classes)):
        rows = [n for n in range(len(predictions.keys)) if not predictions.ignore_NK[n, k]]
        hits = ahead = total = 0
        for n in sorted(rows, key=lambda n: -predictions.logit_NK[n, k]):
            ahead += weight_N[n]
            if predictions.target_NK[n, k] and weight_N[n]:
                hits += weight_N[n]
                total += weight_N[n] * hits / ahead
        if hits:
            values.append(total / hits)
    return sum(values) / len(values) if values else 0.0


def test_a_class_that_a_resample_lacks_is_left_out_of_its_means(predictions):
    """Class b has one positive, which a third of the resamples do not draw; class c has none at all."""
    target_NK = np.zeros((40, 4), np.uint8)
    target_NK[:20, 0], target_NK[7, 1], target_NK[::2, 3] = 1, 1, 1
    lacking = replace(predictions, target_NK=target_NK, ignore_NK=np.zeros((40, 4), bool))
    rates = resampled_rates(lacking, num_resamples=20, seed=1)
    mean_ap_R = resampled_mean_ap(lacking, num_resamples=20, seed=1)
    weight_RN = np.random.default_rng(1).multinomial(40, np.full(40, 1 / 40), size=20)
    assert 3 < (weight_RN[:, 7] == 0).sum() < 17
    predicted_NK = lacking.logit_NK >= 0
    for r, weight_N in enumerate(weight_RN):
        assert mean_ap_R[r] == pytest.approx(mean_ap_by_hand(lacking, weight_N))
        present = [k for k in range(4) if weight_N @ target_NK[:, k]]
        correct_K = weight_N @ (predicted_NK & (target_NK > 0))
        predicted_K, positive_K = weight_N @ predicted_NK, weight_N @ target_NK
        assert rates["CP"][r] == pytest.approx(np.mean([correct_K[k] / max(predicted_K[k], 1) for k in present]))
        assert rates["CR"][r] == pytest.approx(np.mean([correct_K[k] / positive_K[k] for k in present]))
        assert rates["OP"][r] == pytest.approx(correct_K.sum() / np.maximum(predicted_K, 1).sum())
        assert rates["OR"][r] == pytest.approx(correct_K.sum() / positive_K.sum())


def test_a_resample_that_shows_no_class_at_all_is_zero_and_not_nan(predictions):
    target_NK = np.zeros((40, 4), np.uint8)
    target_NK[7, 1] = 1
    lonely = replace(predictions, target_NK=target_NK, ignore_NK=np.zeros((40, 4), bool))
    without_R = np.random.default_rng(0).multinomial(40, np.full(40, 1 / 40), size=20)[:, 7] == 0
    assert without_R.any()
    assert (resampled_mean_ap(lonely, num_resamples=20)[without_R] == 0).all()
    for value_R in resampled_rates(lonely, num_resamples=20).values():
        assert (value_R[without_R] == 0).all()


def test_a_logit_of_zero_is_predicted_and_one_prediction_is_one():
    """Two images of one class that is predicted for the first alone, at logit 0: by hand for every resample of two."""
    two = Predictions(
        keys=("a", "b"),
        logit_NK=np.float32([[0], [-1]]),
        target_NK=np.uint8([[1], [1]]),
        ignore_NK=np.zeros((2, 1), bool),
        classes=("x",),
    )
    rates = resampled_rates(two, num_resamples=30)
    num_first_R = np.random.default_rng(0).multinomial(2, [0.5, 0.5], size=30)[:, 0]
    assert set(num_first_R) == {0, 1, 2}
    for name in ("CP", "OP"):
        assert rates[name].tolist() == [0.0 if num == 0 else 1.0 for num in num_first_R]
    for name in ("CR", "OR"):
        assert rates[name].tolist() == [num / 2 for num in num_first_R]
    # One negative image of two: a resample of it alone has no positive, one of the other alone a single class.
    half = replace(two, target_NK=np.uint8([[1], [0]]))
    rates = resampled_rates(half, num_resamples=30)
    for name in RATES:
        assert rates[name].tolist() == [0.0 if num == 0 else 1.0 for num in num_first_R]
    assert resampled_mean_ap(half, num_resamples=30).tolist() == [0.0 if num == 0 else 1.0 for num in num_first_R]


def test_equal_logits_are_resampled_in_the_order_of_the_samples(predictions):
    tied = replace(predictions, logit_NK=np.zeros((40, 4), np.float32))
    weight_RN = np.random.default_rng(0).multinomial(40, np.full(40, 1 / 40), size=3)
    expected = [mean_ap_by_hand(tied, weight_N) for weight_N in weight_RN]
    assert resampled_mean_ap(tied, num_resamples=3) == pytest.approx(expected)


def test_an_interval_by_hand():
    """Of 0, 1 … 200 the quantiles 2.5 % and 97.5 % are 5 and 195; their mean, 100, is moved to the measured 7."""
    interval = interval_around(7.0, np.random.default_rng(0).permutation(201).astype(float))
    assert (interval.value, interval.low, interval.high) == (7.0, pytest.approx(-88), pytest.approx(102))
    # 1, 2 … 40 squared: positions 0.975 and 38.025 of the sorted values, mean 553.5.
    interval = interval_around(0.0, np.arange(1, 41, dtype=float) ** 2)
    assert interval.low == pytest.approx(1 + 0.975 * 3 - 553.5)
    assert interval.high == pytest.approx(39**2 + 0.025 * 79 - 553.5)


def test_a_range_excludes_zero_on_either_side():
    values = np.array([-0.1, 0.0, 0.1])
    assert interval_around(0.2, values).excludes_zero
    assert interval_around(-0.2, values).excludes_zero
    assert not interval_around(0.05, values).excludes_zero
    assert not interval_around(0.0, np.zeros(3)).excludes_zero, "its ends touch zero"


def test_a_difference_takes_the_same_images_for_both(predictions):
    """Two models whose difference is the same on any images have an interval without a width."""
    better = replace(predictions, logit_NK=(20 * predictions.target_NK - 10.0).astype(np.float32))
    interval = mean_ap_difference(predictions, better)
    assert interval.value == pytest.approx(1 - compute_metrics(predictions).mAP)
    spread_R = 1 - resampled_mean_ap(predictions)  # the better one is always right
    assert interval == interval_around(interval.value, spread_R)
    assert interval.low < interval.value < interval.high
    opposite = mean_ap_difference(better, predictions)
    assert (opposite.value, opposite.low) == (-interval.value, pytest.approx(-interval.high))
    for other in (replace(better, keys=tuple(map(str, range(40)))), replace(better, classes=tuple("abce"))):
        with pytest.raises(ValueError, match="same samples and classes"):
            mean_ap_difference(predictions, other)


def test_no_resample_comes_twice(predictions, monkeypatch: pytest.MonkeyPatch):
    """They are drawn some at a time; each time the draw goes on where it was."""
    several = resampled_mean_ap(predictions, num_resamples=250, seed=1)
    assert len(np.unique(several)) > 240
    monkeypatch.setattr(bootstrap, "_CHUNK", 250)
    assert np.array_equal(several, resampled_mean_ap(predictions, num_resamples=250, seed=1))


def test_a_share_is_resampled_with_the_images_of_the_other_measures():
    part_N, whole_N = np.arange(8), np.array([9, 0, 0, 7, 7, 0, 8, 9])
    weight_RN = np.random.default_rng(0).multinomial(8, np.full(8, 1 / 8), size=100)
    drawn = [np.repeat(np.arange(8), weight_N) for weight_N in weight_RN]
    expected = [part_N[i].sum() / whole_N[i].sum() for i in drawn]
    assert resampled_share(part_N, whole_N, num_resamples=100) == pytest.approx(expected)
    assert len(resampled_share(part_N, whole_N, num_resamples=250)) == 250
    assert len(resampled_share(part_N, whole_N)) == 500
    assert resampled_share(part_N, whole_N, num_resamples=100, seed=1) != pytest.approx(expected)
    assert np.all(resampled_share(part_N, np.zeros(8), num_resamples=5) >= 0), "nothing to divide by"


def test_few_positives_and_few_flags_are_counted_in_another_way_and_alike(predictions, monkeypatch):
    rare = replace(predictions, target_NK=predictions.target_NK * (np.arange(40) % 3 == 0)[:, None].astype(np.uint8))
    found = []
    for few, density in ((0, 0.0), (100, 1.0)):
        monkeypatch.setattr("msltrain.measures.bootstrap._FEW", few)
        monkeypatch.setattr("msltrain.measures.bootstrap._SPARSE", density)
        found.append((resampled_mean_ap(rare), resampled_rates(rare)))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-12)
    for name in RATES:
        np.testing.assert_allclose(found[0][1][name], found[1][1][name], rtol=1e-12)


def test_every_measure_has_an_interval_around_it(predictions):
    intervals = summary_intervals(predictions, num_resamples=200)
    assert tuple(intervals) == SUMMARY
    for name, value in compute_metrics(predictions).summary().items():
        assert intervals[name].value == value
        assert intervals[name].low < value < intervals[name].high
    rates = resampled_rates(predictions, num_resamples=200)
    resampled = {"mAP": resampled_mean_ap(predictions, num_resamples=200), **rates}
    for name, interval in intervals.items():
        expected = interval_around(interval.value, resampled[name])
        assert (interval.low, interval.high) == (max(expected.low, 0), min(expected.high, 1))


def test_no_interval_leaves_the_values_that_its_measure_can_take(predictions):
    """Near 0 and 1 the spread is lopsided: moved to the measured value, an end of it would lie outside."""
    clearest_NK = (10 * predictions.target_NK - 5.0).astype(np.float32)
    clearest_NK[0] = -clearest_NK[0]
    for logit_NK in (clearest_NK, -clearest_NK):
        for interval in summary_intervals(replace(predictions, logit_NK=logit_NK), num_resamples=200).values():
            assert 0 <= interval.low <= interval.value <= interval.high <= 1


def test_without_a_positive_there_is_nothing_to_resample(predictions):
    none = replace(predictions, target_NK=np.zeros_like(predictions.target_NK))
    assert resampled_mean_ap(none, num_resamples=7).tolist() == [0.0] * 7
