"""Bootstrap intervals of the measures over the test images, and of the difference between two models on the same
images.

Shapes: N samples, K classes, R resamples, P positives of one class.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from msldata.errors import UserError
from msldata.storage import Location
from msltrain.measures.average_precision import RankedPositives, ranked_by_class
from msltrain.measures.metrics import RATES, checked_arrays, compute_metrics, mean_average_precision
from msltrain.measures.predictions import Predictions, read_predictions

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


def compare(first: Predictions | Location, second: Predictions | Location) -> dict[str, Interval]:
    """By how much a second model is better than a first one on the same images: the differences of the published
    measures (``mAP``, ``CP``, ``CR``, ``CF1``, ``OP``, ``OR``, ``OF1``), with paired 95 % bootstrap intervals.

    Each has ``value``, ``low``, ``high`` and ``excludes_zero``. They say how far a difference depends on the test
    images, and nothing about another training seed.

    Args:
        first, second: what `evaluate` gave, or predictions files. Images and classes may be in another order.

    Raises:
        UserError: other images, classes or labels. FileNotFoundError: no such file.

    Example:
        whole, _ = msltrain.evaluate("runs/msl", "shards/voc2007/test")
        hidden, _ = msltrain.evaluate("runs/msl", "shards/voc2007/test", keep_masks="shards/masks/high")
        difference = msltrain.compare(whole, hidden)["mAP"]
        print(f"{100 * difference.value:+.1f} ({100 * difference.low:.1f} to {100 * difference.high:.1f})")
    """
    one, other = (given if isinstance(given, Predictions) else read_predictions(given) for given in (first, second))
    other = _in_order_of(one, other)
    before, now = compute_metrics(one).summary(), compute_metrics(other).summary()
    mean_ap, rates = mean_ap_difference(one, other), (resampled_rates(one), resampled_rates(other))
    differences = {name: interval_around(now[name] - before[name], rates[1][name] - rates[0][name]) for name in RATES}
    return {"mAP": mean_ap, **differences}


def _in_order_of(like: Predictions, other: Predictions) -> Predictions:
    """Predictions of the same images, with rows and columns in the order of ``like``."""
    for what, here, there in (("images", like.keys, other.keys), ("classes", like.classes, other.classes)):
        if len(here) != len(there) or set(here) != set(there):
            only = next(iter(sorted(set(here) ^ set(there))), "")
            raise UserError(
                f"compare: the two are of different {what} ({len(here)} and {len(there)}; only in one: {only})"
            )
    rows = {key: number for number, key in enumerate(other.keys)}
    columns = {name: number for number, name in enumerate(other.classes)}
    place = np.ix_([rows[key] for key in like.keys], [columns[name] for name in like.classes])
    logit_NK, target_NK, ignore_NK = other.logit_NK[place], other.target_NK[place], other.ignore_NK[place]
    if not np.array_equal(target_NK, like.target_NK) or not np.array_equal(ignore_NK, like.ignore_NK):
        raise UserError("compare: the two say other labels of the same images; evaluate both on the same shards")
    return Predictions(
        keys=like.keys,
        classes=like.classes,
        logit_NK=logit_NK,
        target_NK=target_NK,
        ignore_NK=ignore_NK,
        origin=other.origin,
    )


def resampled_mean_ap(predictions: Predictions, *, num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> np.ndarray:
    """mAP of each resample, float64 (R,); equal seeds draw equal images. Classes without a positive in it are left
    out."""
    arrays = checked_arrays(predictions.logit_NK, predictions.target_NK, predictions.ignore_NK)
    ranked_K = list(ranked_by_class(*arrays))
    many = [k for k, ranked in enumerate(ranked_K) if len(ranked.row_P) > _FEW]
    few = [k for k, ranked in enumerate(ranked_K) if 0 < len(ranked.row_P) <= _FEW]
    if not many and not few:
        return np.zeros(num_resamples)
    together = max(1, _BLOCK // max(1, len(predictions.keys) * _FEW))
    blocks = [few[start : start + together] for start in range(0, len(few), together)]
    chunks = []
    for weight_RN in _weights(len(predictions.keys), num_resamples, seed):
        values = [_weighted_ap(predictions, k, ranked_K[k], weight_RN)[:, None] for k in many]
        values += [_weighted_aps(predictions, block, ranked_K, weight_RN) for block in blocks]
        value_RK = np.concatenate(values, axis=1)
        known_RK = np.isfinite(value_RK)
        chunks.append(np.where(known_RK, value_RK, 0).sum(axis=1) / np.maximum(known_RK.sum(axis=1), 1))
    return np.concatenate(chunks)


_FEW = 32
"""For the samples ahead of so few positives, a matrix product is faster than a running sum over all samples."""
_BLOCK = 1 << 24
"""At most about so many numbers in one side of a product."""
_SPARSE = 1 / 16
"""Below this share of set flags, only those are looked at."""


def summary_intervals(predictions: Predictions, *, num_resamples: int = NUM_RESAMPLES) -> dict[str, Interval]:
    """The seven published measures, each with its interval; every resample uses the same images for all of them."""
    return mean_intervals([predictions], num_resamples=num_resamples)


def mean_intervals(series: Sequence[Predictions], *, num_resamples: int = NUM_RESAMPLES) -> dict[str, Interval]:
    """The means of the published measures over the runs of a series, each with its interval: every resample takes the
    same images for all runs.

    Args:
        series: predictions of each run for the same samples, in the same order.
    """
    summaries = [compute_metrics(one).summary() for one in series]
    sampled = [
        {
            "mAP": resampled_mean_ap(one, num_resamples=num_resamples),
            **resampled_rates(one, num_resamples=num_resamples),
        }
        for one in series
    ]
    return {
        name: _within_one(
            interval_around(
                float(np.mean([one[name] for one in summaries])), np.mean([one[name] for one in sampled], axis=0)
            )
        )
        for name in summaries[0]
    }


def resampled_share(
    part_N: np.ndarray, whole_N: np.ndarray, *, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> np.ndarray:
    """Sum of ``part_N`` over that of ``whole_N`` in each resample, float64 (R,), with the same images as
    `resampled_mean_ap`; 0 where the whole is 0.
    """
    both_N2 = np.stack([part_N, whole_N], axis=1).astype(np.float64)
    sums_R2 = np.concatenate([weight_RN @ both_N2 for weight_RN in _weights(len(part_N), num_resamples, seed)])
    return sums_R2[:, 0] / np.maximum(sums_R2[:, 1], 1)


def resampled_rates(
    predictions: Predictions, *, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> dict[str, np.ndarray]:
    """CP, CR, CF1, OP, OR and OF1 of each resample, float64 (R,), on the images that `resampled_mean_ap` draws."""
    left_out = predictions.origin.ignored_in_rates != "negative"
    target_NK = (predictions.target_NK > 0) & ~predictions.ignore_NK
    predicted_NK = (predictions.logit_NK >= 0) & ~(predictions.ignore_NK & left_out)
    flags = [_Flags(flag_NK) for flag_NK in (target_NK, predicted_NK, predicted_NK & target_NK)]
    positive_RK, predicted_RK, correct_RK = (
        np.concatenate(parts)
        for parts in zip(
            *(
                [flag.drawn(weight_RN) for flag in flags]
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


class _Flags:
    """Flags (N, K) to be counted by class in every resample; where few are set, only those are looked at."""

    def __init__(self, flag_NK: np.ndarray):
        self._flag_NK = flag_NK
        self._is_sparse = np.count_nonzero(flag_NK) <= _SPARSE * flag_NK.size
        if self._is_sparse:
            row_M, class_M = np.nonzero(flag_NK)
            order_M = np.argsort(class_M, kind="stable")
            self._row_M = row_M[order_M]
            self._classes, self._starts = np.unique(class_M[order_M], return_index=True)

    def drawn(self, weight_RN: np.ndarray) -> np.ndarray:
        """How often each class is flagged in each resample, float64 (R, K)."""
        num_classes = self._flag_NK.shape[1]
        drawn_RK = np.zeros((len(weight_RN), num_classes))
        if not self._is_sparse:
            float_RN = weight_RN.astype(np.float32)  # exact below 2²⁴
            step = max(1, _BLOCK // max(1, len(self._flag_NK)))
            for start in range(0, num_classes, step):
                block = slice(start, start + step)
                drawn_RK[:, block] = float_RN @ self._flag_NK[:, block].astype(np.float32)
        elif len(self._classes):
            drawn_RM = weight_RN[:, self._row_M]
            drawn_RK[:, self._classes] = np.add.reduceat(drawn_RM, self._starts, axis=1, dtype=np.int64)
        return drawn_RK


def _weighted_ap(predictions: Predictions, k: int, ranked: RankedPositives, weight_RN: np.ndarray) -> np.ndarray:
    """AP of class ``k`` when sample n appears ``weight[r, n]`` times; NaN where no positive was drawn."""
    kept_N = np.flatnonzero(~predictions.ignore_NK[:, k])
    order_N = kept_N[np.argsort(-predictions.logit_NK[kept_N, k], kind="stable")]
    ahead_RP = np.cumsum(weight_RN.take(order_N, axis=1), axis=1, dtype=np.int32)[:, ranked.rank_P - 1]
    weight_RP = weight_RN[:, ranked.row_P].astype(np.int64)
    hit_RP = np.cumsum(weight_RP, axis=1)
    with np.errstate(invalid="ignore"):
        return (weight_RP * hit_RP / np.maximum(ahead_RP, 1)).sum(axis=1) / weight_RP.sum(axis=1)


def _weighted_aps(
    predictions: Predictions, classes: Sequence[int], ranked_K: Sequence[RankedPositives], weight_RN: np.ndarray
) -> np.ndarray:
    """The same of several classes with few positives, (R, K)."""
    number_N = np.arange(len(predictions.keys))[:, None]
    parts, rows = [], []
    for k in classes:
        ranked, logit_N1 = ranked_K[k], predictions.logit_NK[:, k, None]
        ahead_NP = (logit_N1 > ranked.logit_P) | ((logit_N1 == ranked.logit_P) & (number_N <= ranked.row_P))
        parts.append(ahead_NP & ~predictions.ignore_NK[:, k, None])
        rows.append(ranked.row_P)
    first = np.cumsum([0, *(len(row_P) for row_P in rows[:-1])])
    ahead_RP = weight_RN.astype(np.float32) @ np.concatenate(parts, axis=1).astype(np.float32)  # exact below 2²⁴
    weight_RP = weight_RN[:, np.concatenate(rows)].astype(np.int64)
    hit_RP = np.cumsum(weight_RP, axis=1)
    before_RK = np.concatenate([np.zeros((len(hit_RP), 1), np.int64), hit_RP[:, first[1:] - 1]], axis=1)
    hit_RP -= np.repeat(before_RK, [len(row_P) for row_P in rows], axis=1)
    with np.errstate(invalid="ignore"):
        sum_RK = np.add.reduceat(weight_RP * hit_RP / np.maximum(ahead_RP, 1), first, axis=1)
        return sum_RK / np.add.reduceat(weight_RP, first, axis=1)


def _value(predictions: Predictions) -> float:
    return mean_average_precision(predictions.logit_NK, predictions.target_NK, predictions.ignore_NK)


def _within_one(interval: Interval) -> Interval:
    """Clip to the values that a measure can take: moving the spread may have pushed one end beyond 0 or 1."""
    return replace(interval, low=max(interval.low, 0.0), high=min(interval.high, 1.0))
