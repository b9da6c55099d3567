"""Which classes occur together in the images, and which ones a model sees because another one is there.

Shapes: N images, K classes. In every K × K matrix, row i is the class that is present, column j the other one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from msltrain.measures.predictions import Predictions

FEW_IMAGES = 10
"""A rate over fewer images than this is neither drawn nor ranked."""


@dataclass(frozen=True, kw_only=True)
class Companions:
    """Labels that occur together."""

    num_present_K: np.ndarray
    """int64, images with the class."""
    num_both_KK: np.ndarray
    """int64, images with both."""

    @property
    def share_KK(self) -> np.ndarray:
        """Share of the images with i that also have j; NaN on the diagonal and where images are few."""
        return _rate(self.num_both_KK, np.broadcast_to(self.num_present_K[:, None], self.num_both_KK.shape))


@dataclass(frozen=True, kw_only=True)
class FalseAlarms:
    """How often an absent class is predicted where a companion is present, and where it is not. All int64 (K, K)."""

    num_images_KK: np.ndarray
    """Images with i and without j."""
    num_seen_KK: np.ndarray
    """Images among them in which j is predicted."""
    num_elsewhere_KK: np.ndarray
    """Images with neither."""
    num_seen_elsewhere_KK: np.ndarray
    """Images among them in which j is predicted."""

    @property
    def rate_KK(self) -> np.ndarray:
        """The rate where i is present; NaN on the diagonal and where images are few."""
        return _rate(self.num_seen_KK, self.num_images_KK)

    @property
    def rate_elsewhere_KK(self) -> np.ndarray:
        """The rate where i is absent as well."""
        return _rate(self.num_seen_elsewhere_KK, self.num_elsewhere_KK)


def count_companions(predictions: Predictions, classes: Sequence[int]) -> Companions:
    """Count the targets of some classes; an ignored pair counts as absent, as it does in the labels."""
    present_NK = _float((predictions.target_NK[:, classes] > 0) & ~predictions.ignore_NK[:, classes])
    both_KK = _count(present_NK, present_NK)
    return Companions(num_present_K=np.diagonal(both_KK).copy(), num_both_KK=both_KK)


def count_false_alarms(predictions: Predictions, classes: Sequence[int]) -> FalseAlarms:
    """Count predictions of some classes at score ≥ 0.5. Images in which either one is ignored do not count for the
    pair."""
    target_NK, ignore_NK = predictions.target_NK[:, classes], predictions.ignore_NK[:, classes]
    present_NK = _float((target_NK > 0) & ~ignore_NK)
    absent_bool_NK = (target_NK == 0) & ~ignore_NK
    absent_NK, seen_NK = _float(absent_bool_NK), _float(absent_bool_NK & (predictions.logit_NK[:, classes] >= 0))
    return FalseAlarms(
        num_images_KK=_count(present_NK, absent_NK),
        num_seen_KK=_count(present_NK, seen_NK),
        num_elsewhere_KK=_count(absent_NK, absent_NK),
        num_seen_elsewhere_KK=_count(absent_NK, seen_NK),
    )


def leaning_pairs(alarms: Sequence[FalseAlarms], num_pairs: int) -> list[tuple[int, int]]:
    """Pairs (i, j) with the most false alarms of j beyond j's usual rate, in any of the models.

    Args:
        alarms: the alarms of each model; no model is favoured.
        num_pairs: at most this many, the largest excess first. Pairs without any excess are left out.
    """
    excess_KK = np.full(alarms[0].num_images_KK.shape, -np.inf)
    for one in alarms:
        here_KK = one.num_images_KK * (one.rate_KK - one.rate_elsewhere_KK)
        excess_KK = np.fmax(excess_KK, here_KK)
    order = np.argsort(-excess_KK, axis=None, kind="stable")[:num_pairs]
    pairs = zip(*np.unravel_index(order, excess_KK.shape), strict=True)
    return [(int(i), int(j)) for i, j in pairs if excess_KK[i, j] > 0]


def _float(flag_NK: np.ndarray) -> np.ndarray:
    """float32, for which matrix products are fast; counts below 2²⁴ stay exact."""
    return flag_NK.astype(np.float32)


def _count(first_NK: np.ndarray, second_NK: np.ndarray) -> np.ndarray:
    return np.rint(first_NK.T @ second_NK).astype(np.int64)


def _rate(part_KK: np.ndarray, whole_KK: np.ndarray) -> np.ndarray:
    known_KK = (whole_KK >= FEW_IMAGES) & ~np.eye(len(whole_KK), dtype=bool)
    return np.where(known_KK, part_KK / np.maximum(whole_KK, 1), np.nan)
