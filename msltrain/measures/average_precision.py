"""Average precision by class, in the four definitions that papers use.

Shapes: N samples, K classes, P positives of one class. Ranks count from 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

ApKind = Literal["msl", "sklearn", "interpolated", "voc11"]
AP_KINDS: tuple[ApKind, ...] = get_args(ApKind)
"""``msl``: mean over the positives of the precision at their rank, as published by MSL and CSRA; equal logits keep the
order of the samples. ``sklearn``: scikit-learn's, which treats equal logits as one step; the same number without ties.
``interpolated``: under the envelope, each precision replaced by the highest one at its rank or a later one (VOC since
2010, COCO's detection code). ``voc11``: the envelope at recall 0, 0.1 … 1, averaged (VOC2007's own)."""
_FEW = 8
"""Counting what lies above so few positives is faster than sorting all samples."""
_BLOCK = 1 << 20
"""About how many logits are copied class by class at a time."""


@dataclass(frozen=True, slots=True, eq=False)
class RankedPositives:
    """The positives of a class, highest logit first; equal logits keep the order of the samples."""

    row_P: np.ndarray
    """int64, sample number"""
    rank_P: np.ndarray
    """int64, among the samples that are not ignored"""
    last_rank_P: np.ndarray
    """int64, the rank of the last sample with the same logit"""
    first_rank_P: np.ndarray
    """int64, the rank of the first one"""
    logit_P: np.ndarray

    @property
    def precision_P(self) -> np.ndarray:
        """The precision at the rank of each."""
        return np.arange(1, len(self.rank_P) + 1) / self.rank_P

    @property
    def num_tied(self) -> int:
        """Positives whose logit some negative shares: their rank depends on the order of the samples."""
        same_P = np.searchsorted(self.rank_P, self.last_rank_P, side="right") - np.searchsorted(
            self.rank_P, self.first_rank_P
        )
        return int((self.last_rank_P - self.first_rank_P + 1 > same_P).sum())

    def average_precisions(self, kinds: tuple[ApKind, ...] = AP_KINDS) -> dict[ApKind, float | None]:
        """Average precision in several definitions, in [0, 1]; None without a positive."""
        if len(self.rank_P) == 0:
            return dict.fromkeys(kinds)
        precision_P = self.precision_P
        values: dict[ApKind, float | None] = {}
        for kind in kinds:
            if kind == "msl":
                values[kind] = float(precision_P.mean())
            elif kind == "sklearn":  # each positive counts with the precision at the last rank that has its logit
                hit_P = np.searchsorted(self.rank_P, self.last_rank_P, side="right")
                values[kind] = float((hit_P / self.last_rank_P).mean())
            else:
                # Between two positives precision only falls, so the envelope is decided at the positives.
                envelope_P = np.maximum.accumulate(precision_P[::-1])[::-1]
                values[kind] = float(envelope_P.mean()) if kind == "interpolated" else _at_eleven_recalls(envelope_P)
        return values


def rank_positives(logit_N: np.ndarray, target_N: np.ndarray) -> RankedPositives:
    """The positives of one class.

    Args:
        logit_N: scores, higher is more likely; NaN where a sample is ignored.
        target_N: bool; ignored samples are no positives.
    """
    row_P = np.flatnonzero(target_N & ~np.isnan(logit_N))
    logit_P = logit_N[row_P]
    if len(row_P) <= _FEW:
        above_P = np.array([np.count_nonzero(logit_N > logit) for logit in logit_P], np.int64)
        last_P = np.array([np.count_nonzero(logit_N >= logit) for logit in logit_P], np.int64)
    else:
        sorted_N = np.sort(logit_N)  # NaN comes last
        sorted_N = sorted_N[: len(sorted_N) - np.count_nonzero(np.isnan(logit_N))]
        above_P = len(sorted_N) - np.searchsorted(sorted_N, logit_P, side="right")
        last_P = len(sorted_N) - np.searchsorted(sorted_N, logit_P, side="left")
    rank_P = above_P + 1
    tied = np.flatnonzero(last_P > rank_P)
    if len(tied) > _FEW:
        order_N = np.argsort(-logit_N, kind="stable")
        rank_N = np.empty(len(logit_N), np.int64)
        rank_N[order_N] = np.arange(1, len(logit_N) + 1)
        rank_P = rank_N[row_P]
    else:
        for position in tied:  # equal logits keep the order of the samples
            rank_P[position] += np.count_nonzero(logit_N[: row_P[position]] == logit_P[position])
    order_P = np.argsort(rank_P)
    return RankedPositives(row_P[order_P], rank_P[order_P], last_P[order_P], above_P[order_P] + 1, logit_P[order_P])


def ranked_by_class(logit_NK: np.ndarray, target_NK: np.ndarray, ignore_NK: np.ndarray) -> Iterator[RankedPositives]:
    """The positives of each class in turn; only some classes are copied at a time, as columns are slow to read.

    Args:
        logit_NK: float, no NaN.
        target_NK: bool.
        ignore_NK: bool, True where the pair is left out of the ranking.
    """
    num_samples, num_classes = logit_NK.shape
    step = max(1, _BLOCK // max(1, num_samples))
    for start in range(0, num_classes, step):
        block = slice(start, start + step)
        logit_KN, ignore_KN = logit_NK[:, block].T.copy(), ignore_NK[:, block].T
        if ignore_KN.any():
            logit_KN[ignore_KN] = np.nan
        for logit_N, target_N in zip(logit_KN, target_NK[:, block].T.copy(), strict=True):
            yield rank_positives(logit_N, target_N)


def average_precision(logit_N: np.ndarray, target_N: np.ndarray, kind: ApKind = "msl") -> float | None:
    """Average precision of a class, in [0, 1]; None without a positive.

    Args:
        logit_N: scores, higher is more likely; no NaN.
        target_N: bool.
        kind: see ``AP_KINDS``.
    """
    return rank_positives(logit_N, target_N).average_precisions((kind,))[kind]


def _at_eleven_recalls(envelope_P: np.ndarray) -> float:
    """Mean of the envelope where recall first reaches 0, 0.1 … 1; integers, so that 3 of 10 is exactly 0.3."""
    needed = np.maximum(-(-np.arange(11) * len(envelope_P) // 10), 1)
    return float(envelope_P[needed - 1].mean())
