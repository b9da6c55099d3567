"""Bootstrap intervals of mAP over the test images, and of the difference between two models on the same images.

Shapes: N samples, K classes, R resamples, P positives of one class.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from msltrain.metrics import mean_average_precision
from msltrain.predictions import Predictions

NUM_RESAMPLES = 500
CONFIDENCE = 0.95
_CHUNK = 100


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A value measured on all images, and a range around it as wide as 95 % of the resamples spread.

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


def mean_ap_interval(predictions: Predictions) -> Interval:
    """mAP with its bootstrap interval; the images are resampled with replacement, from a fixed seed."""
    return _interval(_value(predictions), resampled_mean_ap(predictions))


def mean_ap_difference(first: Predictions, second: Predictions) -> Interval:
    """mAP of ``second`` minus that of ``first``, each resample taking the same images for both.

    The interval says how far the difference depends on the test images. It says nothing about another training seed.

    Raises:
        ValueError: the two were not measured on the same samples and classes.
    """
    if first.keys != second.keys or first.classes != second.classes:
        raise ValueError("a paired difference needs predictions for the same samples and classes")
    return _interval(_value(second) - _value(first), resampled_mean_ap(second) - resampled_mean_ap(first))


def resampled_mean_ap(predictions: Predictions, *, num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> np.ndarray:
    """mAP of each resample, float64 (R,); equal seeds draw equal images. Classes it has no positive of are left out."""
    rng = np.random.default_rng(seed)
    num_samples = len(predictions.keys)
    chunks = []
    for start in range(0, num_resamples, _CHUNK):
        size = min(_CHUNK, num_resamples - start)
        weight_RN = rng.multinomial(num_samples, np.full(num_samples, 1 / num_samples), size=size)
        value_RK = np.stack([_weighted_ap(predictions, k, weight_RN) for k in range(len(predictions.classes))], axis=1)
        known_RK = np.isfinite(value_RK)
        chunks.append(np.where(known_RK, value_RK, 0).sum(axis=1) / np.maximum(known_RK.sum(axis=1), 1))
    return np.concatenate(chunks)


def _weighted_ap(predictions: Predictions, k: int, weight_RN: np.ndarray) -> np.ndarray:
    """AP of class ``k`` when sample n appears ``weight[r, n]`` times; NaN where no positive was drawn."""
    kept_N = np.flatnonzero(~predictions.ignore_NK[:, k])
    order_N = kept_N[np.argsort(-predictions.logit_NK[kept_N, k], kind="stable")]
    rank_P = np.flatnonzero(predictions.target_NK[order_N, k])
    ahead_RP = np.cumsum(weight_RN[:, order_N], axis=1)[:, rank_P]
    weight_RP = weight_RN[:, order_N[rank_P]]
    hit_RP = np.cumsum(weight_RP, axis=1)
    with np.errstate(invalid="ignore"):
        return (weight_RP * hit_RP / np.maximum(ahead_RP, 1)).sum(axis=1) / weight_RP.sum(axis=1)


def _value(predictions: Predictions) -> float:
    return mean_average_precision(predictions.logit_NK, predictions.target_NK, predictions.ignore_NK)


def _interval(value: float, value_R: np.ndarray) -> Interval:
    low, high = np.quantile(value_R, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]) - value_R.mean() + value
    return Interval(value=value, low=float(low), high=float(high))
