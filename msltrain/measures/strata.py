"""AP and recall by object size and occlusion: the paper's claim about small and occluded objects, measured.

A positive (image, class) pair belongs to the stratum of its largest object. A stratum's AP ranks its positives against
all negatives of the class; positives of other strata are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from msldata.contract.records import LARGE_FROM, SMALL_BELOW
from msltrain.measures.average_precision import ranked_by_class
from msltrain.measures.metrics import checked_arrays
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
    ranked = _Ranked.of(predictions)
    return tuple(_measure(name, ranked, member_M) for name, member_M in strata_members(predictions.objects))


def strata_members(objects: LargestObjects) -> Iterator[tuple[str, np.ndarray]]:
    """The name of each stratum, and which pairs with an object are in it, bool (M,)."""
    yield from _by_size(objects.area_M, SMALL_BELOW, LARGE_FROM, "")
    if objects.relative_area_M is not None:
        limits = SMALL_BELOW / REFERENCE_AREA, LARGE_FROM / REFERENCE_AREA
        yield from _by_size(objects.relative_area_M, *limits, " share")
    for name, flag_M in (
        ("truncated", objects.truncated_M),
        ("occluded", objects.occluded_M),
        ("crowded", objects.crowd_M),
        ("separated", objects.separated_M),
    ):
        if flag_M is not None and (flag_M == 1).any():
            yield name, flag_M == 1
            yield f"not {name}", flag_M == 0
    if (covered_M := objects.covered_M) is not None and (covered_M > 0).any():
        for name, low, high in COVERED_BINS:
            yield name, (covered_M > low) & (covered_M <= high)


def _by_size(
    area_M: np.ndarray, small_below: float, large_from: float, suffix: str
) -> Iterator[tuple[str, np.ndarray]]:
    known_M = area_M > 0
    yield f"small{suffix}", known_M & (area_M < small_below)
    yield f"medium{suffix}", known_M & (area_M >= small_below) & (area_M < large_from)
    yield f"large{suffix}", known_M & (area_M >= large_from)


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
    if objects.covered_M is not None and (objects.covered_M > 0).any():
        notes.append(_COVERED_BY["boxes" if objects.separated_M is None else "segments"])
    return "; ".join(notes)


@dataclass(frozen=True, slots=True, eq=False)
class _Ranked:
    """All P positives that have an object, class after class, highest logit first, equal ones in file order."""

    class_P: np.ndarray
    num_negatives_P: np.ndarray
    """The number of negatives of the class ranked above each positive."""
    is_predicted_P: np.ndarray
    object_P: np.ndarray
    """The number m of its largest object."""

    @staticmethod
    def of(predictions: Predictions) -> _Ranked:
        objects = predictions.objects
        assert objects is not None
        pair_M = objects.class_M * objects.shape[0] + objects.row_M
        order_M = np.argsort(pair_M)
        pair_M = pair_M[order_M]
        parts = []
        arrays = checked_arrays(predictions.logit_NK, predictions.target_NK, predictions.ignore_NK)
        for k, ranked in enumerate(ranked_by_class(*arrays)):
            num_negatives_P = ranked.rank_P - np.arange(1, len(ranked.rank_P) + 1)
            parts.append((np.full(len(ranked.row_P), k), num_negatives_P, ranked.logit_P >= 0, ranked.row_P))
        class_P, num_negatives_P, is_predicted_P, row_P = (np.concatenate(column) for column in zip(*parts))
        pair_P = class_P * objects.shape[0] + row_P
        place_P = np.searchsorted(pair_M, pair_P)
        has_object = np.flatnonzero(np.append(pair_M, -1)[place_P] == pair_P)
        return _Ranked(
            class_P[has_object],
            num_negatives_P[has_object],
            is_predicted_P[has_object],
            order_M[place_P[has_object]],
        )


def _measure(name: str, ranked: _Ranked, member_M: np.ndarray) -> StratumMetrics:
    member = np.flatnonzero(member_M[ranked.object_P])
    _, first, count = np.unique(ranked.class_P[member], return_index=True, return_counts=True)
    hit_P = np.arange(len(member)) - np.repeat(first, count) + 1
    precision_P = hit_P / (hit_P + ranked.num_negatives_P[member])
    classes = np.repeat(np.arange(len(count)), count)
    mean = [np.bincount(classes, value_P) / count for value_P in (precision_P, ranked.is_predicted_P[member])]
    return StratumMetrics(
        name=name,
        num_positive=len(member),
        num_classes=len(count),
        mAP=float(mean[0].mean()) if len(count) else None,
        CR=float(mean[1].mean()) if len(count) else None,
    )
