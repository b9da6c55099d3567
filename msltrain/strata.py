"""AP and recall by object size and occlusion: the paper's claim about small and occluded objects, measured.

A positive (image, class) pair belongs to the stratum of its largest object. A stratum's AP ranks its positives against
all negatives of the class; positives of other strata are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from msltrain.metrics import average_precision
from msltrain.predictions import LargestObjects, Predictions

SMALL_BELOW = 32**2
LARGE_FROM = 96**2
"""COCO's limits, in square pixels of the source image."""
REFERENCE_AREA = 640 * 480
"""The relative limits are COCO's on an image of this size: 0.33 % and 3 % of the image."""


@dataclass(frozen=True, kw_only=True)
class StratumMetrics:
    """One stratum. mAP and CR are None when it is empty, else means over the classes that have a positive in it."""

    name: str
    """``small``, ``medium``, ``large``, ``small share``, ``medium share``, ``large share`` (of the image that the
    object takes), ``truncated``, ``not truncated``, ``occluded``, ``crowded``, …"""
    num_positive: int
    """Positive (image, class) pairs."""
    num_classes: int
    """Classes with at least one of them."""
    mAP: float | None
    CR: float | None


def compute_strata(predictions: Predictions) -> tuple[StratumMetrics, ...]:
    """mAP and class-mean recall (score ≥ 0.5) for every stratum that the annotations speak of.

    Size comes from the area of the largest object (the segment's where the dataset has segments, else the box's), in
    pixels of the stored image and as a share of it. Where the build made the images smaller only the share compares
    with other work; ``size_note`` says so.
    Truncation, occlusion and crowds are reported only where the dataset marks them. Empty without object annotations.
    """
    if predictions.objects is None:
        return ()
    return tuple(
        _measure(name, predictions, member_NK & (predictions.target_NK > 0) & ~predictions.ignore_NK)
        for name, member_NK in _strata(predictions.objects)
    )


def _strata(objects: LargestObjects) -> Iterator[tuple[str, np.ndarray]]:
    yield from _by_size(objects.area_NK, SMALL_BELOW, LARGE_FROM, "")
    if objects.relative_area_NK is not None:
        limits = SMALL_BELOW / REFERENCE_AREA, LARGE_FROM / REFERENCE_AREA
        yield from _by_size(objects.relative_area_NK, *limits, " share")
    for name, flag_NK in (
        ("truncated", objects.truncated_NK),
        ("occluded", objects.occluded_NK),
        ("crowded", objects.crowd_NK),
    ):
        if (flag_NK == 1).any():
            yield name, flag_NK == 1
            yield f"not {name}", flag_NK == 0


def _by_size(
    area_NK: np.ndarray, small_below: float, large_from: float, suffix: str
) -> Iterator[tuple[str, np.ndarray]]:
    known_NK = area_NK > 0
    yield f"small{suffix}", known_NK & (area_NK < small_below)
    yield f"medium{suffix}", known_NK & (area_NK >= small_below) & (area_NK < large_from)
    yield f"large{suffix}", known_NK & (area_NK >= large_from)


def size_note(predictions: Predictions) -> str:
    """What a reader of the size strata must know about their pixels; empty when they are the source's."""
    resize = predictions.origin.resize
    if not resize or predictions.objects is None:
        return ""
    return (
        f"small, medium and large are in pixels of the stored images, which the build made smaller ({resize}): they "
        "hold smaller objects than COCO's; the parts of the image do not change with the size"
    )


def _measure(name: str, predictions: Predictions, member_NK: np.ndarray) -> StratumMetrics:
    precisions, recalls = [], []
    for k in np.flatnonzero(member_NK.any(axis=0)):
        logit_N, member_N = predictions.logit_NK[:, k], member_NK[:, k]
        negative_N = (predictions.target_NK[:, k] == 0) & ~predictions.ignore_NK[:, k]
        kept_N = member_N | negative_N
        precisions.append(average_precision(logit_N[kept_N], member_N[kept_N]))
        recalls.append((logit_N[member_N] >= 0).mean())
    return StratumMetrics(
        name=name,
        num_positive=int(member_NK.sum()),
        num_classes=len(precisions),
        mAP=float(np.mean([value for value in precisions if value is not None])) if precisions else None,
        CR=float(np.mean(recalls)) if recalls else None,
    )
