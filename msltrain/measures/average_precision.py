"""Average precision of one class, in the four definitions that papers use.

Shapes: N samples, P positives. Ranks count from 1.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

ApKind = Literal["msl", "sklearn", "interpolated", "voc11"]
AP_KINDS: tuple[ApKind, ...] = get_args(ApKind)
"""``msl``: mean over the positives of the precision at their rank, as published by MSL and CSRA; equal logits keep the
order of the samples. ``sklearn``: scikit-learn's, which treats equal logits as one step; the same number without ties.
``interpolated``: under the envelope, each precision replaced by the highest one at its rank or a later one (VOC since
2010, COCO's detection code). ``voc11``: the envelope at recall 0, 0.1 … 1, averaged (VOC2007's own)."""


def average_precision(logit_N: np.ndarray, target_N: np.ndarray, kind: ApKind = "msl") -> float | None:
    """Average precision of a class, in [0, 1]; None without a positive.

    Args:
        logit_N: scores, higher is more likely; no NaN.
        target_N: bool.
        kind: see ``AP_KINDS``.
    """
    return average_precisions(logit_N, target_N, (kind,))[kind]


def average_precisions(
    logit_N: np.ndarray, target_N: np.ndarray, kinds: tuple[ApKind, ...] = AP_KINDS
) -> dict[ApKind, float | None]:
    """Several definitions from one sort."""
    order_N = np.argsort(-logit_N, kind="stable")
    rank_P = np.flatnonzero(target_N[order_N]) + 1
    if len(rank_P) == 0:
        return dict.fromkeys(kinds)
    hit_P = np.arange(1, len(rank_P) + 1)
    precision_P = hit_P / rank_P
    values: dict[ApKind, float | None] = {}
    for kind in kinds:
        if kind == "msl":
            values[kind] = float(precision_P.mean())
        elif kind == "sklearn":
            values[kind] = _by_steps(logit_N[order_N], rank_P)
        else:
            # Between two positives precision only falls, so the envelope is decided at the positives.
            envelope_P = np.maximum.accumulate(precision_P[::-1])[::-1]
            values[kind] = float(envelope_P.mean()) if kind == "interpolated" else _at_eleven_recalls(envelope_P)
    return values


def _by_steps(sorted_N: np.ndarray, rank_P: np.ndarray) -> float:
    """Each positive counts with the precision at the last rank that has its logit."""
    last_N = np.flatnonzero(np.append(sorted_N[1:] != sorted_N[:-1], True)) + 1
    end_P = last_N[np.searchsorted(last_N, rank_P)]
    return float((np.searchsorted(rank_P, end_P, side="right") / end_P).mean())


def _at_eleven_recalls(envelope_P: np.ndarray) -> float:
    """Mean of the envelope where recall first reaches 0, 0.1 … 1; integers, so that 3 of 10 is exactly 0.3."""
    needed = np.maximum(-(-np.arange(11) * len(envelope_P) // 10), 1)
    return float(envelope_P[needed - 1].mean())


def num_tied_positives(logit_N: np.ndarray, target_N: np.ndarray) -> int:
    """Number of positives whose logit some negative shares: their rank depends on the order of the samples."""
    return int(np.isin(logit_N[target_N], logit_N[~target_N]).sum())
