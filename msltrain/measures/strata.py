"""AP and recall by object size and occlusion: the paper's claim about small and occluded objects, measured.

A positive (image, class) pair belongs to the stratum of its largest object. A stratum's AP ranks its positives against
all negatives of the class; positives of other strata are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from msldata.contract.records import LARGE_FROM, SMALL_BELOW
from msltrain.measures.predictions import LargestObjects, Predictions

REFERENCE_AREA = 640 * 480
"""The relative limits are COCO's on an image of this size: 0.33 % and 3 % of the image."""
COVERED_BINS = (
    ("covered 0 %", -0.5, 0.0),
    ("covered to 25 %", 0.0, 0.25),
    ("covered 25–50 %", 0.25, 0.5),
    ("covered over 50 %", 0.5, 1.0),
)
"""Share of the object under other annotated objects, (low, high]."""


@dataclass(frozen=True, kw_only=True)
class StratumMetrics:
    """One stratum. mAP and CR are None when it is empty, else means over the classes with a positive in it."""

    name: str
    """``small``, ``medium``, ``large``, ``small share``, ``medium share``, ``large share`` (of the image that the
    object takes), ``truncated``, ``not truncated``, ``occluded``, ``crowded``, ``separated``, …, and the names of
    ``COVERED_BINS``."""
    num_positive: int
    """Positive (image, class) pairs."""
    num_classes: int
    """Classes with at least one of them."""
    mAP: float | None
    CR: float | None


def compute_strata(predictions: Predictions) -> tuple[StratumMetrics, ...]:
    """mAP and class-mean recall (score ≥ 0.5) for every stratum that the annotations support.

    Size comes from the area of the largest object (the segment's where the dataset has segments, else the box's), in
    pixels of the stored image and as a share of it. Where the build made the images smaller, only the share can be
    compared with other work; ``strata_note`` says so. Truncation, occlusion and crowds are reported only where the
    dataset marks them; covered objects, by the share that other annotated objects cover, where any covers another;
    separated objects, whose segment is in several parts, where the index says so (``msl build-shards --segments``).
    Empty without object annotations.
    """
    if predictions.objects is None:
        return ()
    ranked_K = [_ranked(predictions, k) for k in range(len(predictions.classes))]
    return tuple(_measure(name, ranked_K, member_NK) for name, member_NK in _strata(predictions.objects))


def _strata(objects: LargestObjects) -> Iterator[tuple[str, np.ndarray]]:
    yield from _by_size(objects.area_NK, SMALL_BELOW, LARGE_FROM, "")
    if objects.relative_area_NK is not None:
        limits = SMALL_BELOW / REFERENCE_AREA, LARGE_FROM / REFERENCE_AREA
        yield from _by_size(objects.relative_area_NK, *limits, " share")
    for name, flag_NK in (
        ("truncated", objects.truncated_NK),
        ("occluded", objects.occluded_NK),
        ("crowded", objects.crowd_NK),
        ("separated", objects.separated_NK),
    ):
        if flag_NK is not None and (flag_NK == 1).any():
            yield name, flag_NK == 1
            yield f"not {name}", flag_NK == 0
    if (covered_NK := objects.covered_NK) is not None and (covered_NK > 0).any():
        for name, low, high in COVERED_BINS:
            yield name, (covered_NK > low) & (covered_NK <= high)


def _by_size(
    area_NK: np.ndarray, small_below: float, large_from: float, suffix: str
) -> Iterator[tuple[str, np.ndarray]]:
    known_NK = area_NK > 0
    yield f"small{suffix}", known_NK & (area_NK < small_below)
    yield f"medium{suffix}", known_NK & (area_NK >= small_below) & (area_NK < large_from)
    yield f"large{suffix}", known_NK & (area_NK >= large_from)


_COVERED_BY = {
    "segments": "covered is the share of the object's outline (the convex hull of its segment) in which the segments "
    "of other annotated objects are seen; separated objects have a segment in several parts",
    "boxes": "covered is the share of the object's box under smaller boxes of other annotated objects; which one is in "
    "front, boxes do not say (the smaller one is in 78 % of COCO's pairs), so it is an upper estimate",
}


def strata_note(predictions: Predictions) -> str:
    """What a reader of the strata must know: in whose pixels the sizes are, and what counts as covered."""
    objects, notes = predictions.objects, []
    if objects is None:
        return ""
    if resize := predictions.origin.resize:
        notes.append(
            f"small, medium and large are in pixels of the stored images, which the build made smaller ({resize}): "
            "they hold smaller objects than COCO's; the parts of the image do not change with the size"
        )
    if objects.covered_NK is not None and (objects.covered_NK > 0).any():
        notes.append(_COVERED_BY["boxes" if objects.separated_NK is None else "segments"])
    return "; ".join(notes)


@dataclass(frozen=True, slots=True, eq=False)
class _Ranked:
    """The P positives of a class, highest logit first, equal ones in file order. All strata share it."""

    row_P: np.ndarray
    num_negatives_P: np.ndarray
    """The number of negatives ranked above each positive."""
    is_predicted_P: np.ndarray


def _ranked(predictions: Predictions, k: int) -> _Ranked:
    logit_N = np.ascontiguousarray(predictions.logit_NK[:, k])
    order_N = np.argsort(-logit_N, kind="stable")
    order_N = order_N[~predictions.ignore_NK[order_N, k]]
    is_positive_N = predictions.target_NK[order_N, k] > 0
    row_P = order_N[is_positive_N]
    return _Ranked(row_P, np.cumsum(~is_positive_N)[is_positive_N], logit_N[row_P] >= 0)


def _measure(name: str, ranked_K: Sequence[_Ranked], member_NK: np.ndarray) -> StratumMetrics:
    precisions, recalls, num_positive = [], [], 0
    for k, ranked in enumerate(ranked_K):
        member_P = member_NK[ranked.row_P, k]
        if member_P.any():
            hit_P = np.arange(1, member_P.sum() + 1)
            precisions.append((hit_P / (hit_P + ranked.num_negatives_P[member_P])).mean())
            recalls.append(ranked.is_predicted_P[member_P].mean())
            num_positive += len(hit_P)
    return StratumMetrics(
        name=name,
        num_positive=num_positive,
        num_classes=len(precisions),
        mAP=float(np.mean(precisions)) if precisions else None,
        CR=float(np.mean(recalls)) if recalls else None,
    )
