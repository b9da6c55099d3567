"""Bootstrap intervals of the measures over the test images, and of the difference between two models on the same
images.

Shapes: N samples, K classes, R resamples, P positives of one class.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from msltrain.measures.metrics import RATES, compute_metrics, mean_average_precision
from msltrain.measures.predictions import Predictions

NUM_RESAMPLES = 500
CONFIDENCE = 0.95
_CHUNK = 100


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A value measured on all images, and a range around it as wide as the spread of 95 % of the resamples.

    A resample repeats images, and a repeated positive raises the AP: the spread is moved back so that its mean is the
    measured value.
    """

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole range lies on one side of zero."""
        return self.low > 0 or self.high < 0


def interval_around(value: float, value_R: np.ndarray) -> Interval:
    """The interval of a measured value with the resampled values ``value_R``."""
    low, high = np.quantile(value_R, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]) - value_R.mean() + value
    return Interval(value=value, low=float(low), high=float(high))


def mean_ap_difference(first: Predictions, second: Predictions) -> Interval:
    """mAP of ``second`` minus that of ``first``, each resample taking the same images for both.

    The interval says how far the difference depends on the test images. It says nothing about another training seed.

    Raises:
        ValueError: the two were not measured on the same samples and classes.
    """
    if first.keys != second.keys or first.classes != second.classes:
        raise ValueError("a paired difference needs predictions for the same samples and classes")
    value = _value(second) - _value(first)
    return interval_around(value, resampled_mean_ap(second) - resampled_mean_ap(first))


def resampled_mean_ap(predictions: Predictions, *, num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> np.ndarray:
    """mAP of each resample, float64 (R,); equal seeds draw equal images. Classes without a positive in it are left
    out."""
    chunks = []
    for weight_RN in _weights(len(predictions.keys), num_resamples, seed):
        value_RK = np.stack([_weighted_ap(predictions, k, weight_RN) for k in range(len(predictions.classes))], axis=1)
        known_RK = np.isfinite(value_RK)
        chunks.append(np.where(known_RK, value_RK, 0).sum(axis=1) / np.maximum(known_RK.sum(axis=1), 1))
    return np.concatenate(chunks)


def summary_intervals(predictions: Predictions, *, num_resamples: int = NUM_RESAMPLES) -> dict[str, Interval]:
    """The seven published measures, each with its interval; every resample uses the same images for all of them."""
    value_by_name = compute_metrics(predictions).summary()
    rates_R = resampled_rates(predictions, num_resamples=num_resamples)
    mean_ap_R = resampled_mean_ap(predictions, num_resamples=num_resamples)
    sampled = {"mAP": mean_ap_R, **rates_R}
    return {name: _within_one(interval_around(value, sampled[name])) for name, value in value_by_name.items()}


def resampled_mean(value_N: np.ndarray, *, num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> np.ndarray:
    """Mean of a value per image over each resample, float64 (R,), with the same images as `resampled_mean_ap`."""
    weights = _weights(len(value_N), num_resamples, seed)
    return np.concatenate([weight_RN @ value_N.astype(np.float64) for weight_RN in weights]) / len(value_N)


def resampled_rates(
    predictions: Predictions, *, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> dict[str, np.ndarray]:
    """CP, CR, CF1, OP, OR and OF1 of each resample, float64 (R,), on the images that `resampled_mean_ap` draws."""
    left_out = predictions.origin.ignored_in_rates != "negative"
    target_NK = predictions.target_NK > 0
    predicted_NK = (predictions.logit_NK >= 0) & ~(predictions.ignore_NK & left_out)
    flags = [flag_NK.astype(np.float64) for flag_NK in (target_NK, predicted_NK, predicted_NK & target_NK)]
    positive_RK, predicted_RK, correct_RK = (
        np.concatenate(parts)
        for parts in zip(
            *(
                [weight_RN @ flag_NK for flag_NK in flags]
                for weight_RN in _weights(len(predictions.keys), num_resamples, seed)
            )
        )
    )
    counted_RK = np.maximum(predicted_RK, 1)
    present_RK = positive_RK > 0
    num_present_R = np.maximum(present_RK.sum(axis=1), 1)
    class_precision_R = np.where(present_RK, correct_RK / counted_RK, 0).sum(axis=1) / num_present_R
    class_recall_R = (correct_RK / np.maximum(positive_RK, 1)).sum(axis=1) / num_present_R
    overall_precision_R = correct_RK.sum(axis=1) / counted_RK.sum(axis=1)
    overall_recall_R = correct_RK.sum(axis=1) / np.maximum(positive_RK.sum(axis=1), 1)
    values = (
        class_precision_R,
        class_recall_R,
        _harmonic(class_precision_R, class_recall_R),
        overall_precision_R,
        overall_recall_R,
        _harmonic(overall_precision_R, overall_recall_R),
    )
    return dict(zip(RATES, values, strict=True))


def _weights(num_samples: int, num_resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each image occurs in each resample, int16 (r, N), a few resamples at a time."""
    rng = np.random.default_rng(seed)
    for start in range(0, num_resamples, _CHUNK):
        size = min(_CHUNK, num_resamples - start)
        weight_RN = rng.multinomial(num_samples, np.full(num_samples, 1 / num_samples), size=size)
        yield weight_RN.astype(np.int16)  # sorting and summing them by class is limited by memory traffic


def _harmonic(first_R: np.ndarray, second_R: np.ndarray) -> np.ndarray:
    return 2 * first_R * second_R / np.maximum(first_R + second_R, np.finfo(float).tiny)


def _weighted_ap(predictions: Predictions, k: int, weight_RN: np.ndarray) -> np.ndarray:
    """AP of class ``k`` when sample n appears ``weight[r, n]`` times; NaN where no positive was drawn."""
    kept_N = np.flatnonzero(~predictions.ignore_NK[:, k])
    order_N = kept_N[np.argsort(-predictions.logit_NK[kept_N, k], kind="stable")]
    rank_P = np.flatnonzero(predictions.target_NK[order_N, k])
    ahead_RP = np.cumsum(weight_RN.take(order_N, axis=1), axis=1, dtype=np.int32)[:, rank_P]
    weight_RP = weight_RN[:, order_N[rank_P]].astype(np.int64)
    hit_RP = np.cumsum(weight_RP, axis=1)
    with np.errstate(invalid="ignore"):
        return (weight_RP * hit_RP / np.maximum(ahead_RP, 1)).sum(axis=1) / weight_RP.sum(axis=1)


def _value(predictions: Predictions) -> float:
    return mean_average_precision(predictions.logit_NK, predictions.target_NK, predictions.ignore_NK)


def _within_one(interval: Interval) -> Interval:
    """Clip to the values that a measure can take: moving the spread may have pushed one end beyond 0 or 1."""
    return replace(interval, low=max(interval.low, 0.0), high=min(interval.high, 1.0))
