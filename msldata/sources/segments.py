"""What COCO's segments say about occlusion: which object is seen inside another's outline, and which is cut into parts.

Segments hold visible pixels, so two of them hardly overlap. The outline of an object is the convex hull of its
segment, a stand-in for what it would fill with nothing in front of it. Where another object's segment lies in it and
its own does not, that object is in front, or seen through a gap in this one; the share of the outline taken in this way
is what others cover.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from msldata.contract.records import Occlusion

_POLYGON_FROM = 6
"""Numbers: three corners."""
_UNKNOWN = Occlusion(None, None)


def compact_segment(segment: Any) -> Any:
    """A parsed segment at a fifth of its size, for ``occlusion_of``: corners as arrays, run lengths as they are."""
    if not isinstance(segment, list):
        return segment
    return [np.asarray(polygon, np.float32) for polygon in segment if len(polygon) >= _POLYGON_FROM]


def occlusion_of(annotations: Sequence[Mapping[str, Any]], height: int, width: int) -> tuple[Occlusion, ...]:
    """What the segments of one image say about each of its objects.

    A crowd covers nothing, and nothing is said about crowds or about objects without a segment.

    Args:
        annotations: with their ``segmentation`` as ``compact_segment`` gives it.
        height, width: of the image, in pixels.

    Raises:
        ValueError, TypeError: a malformed segment.
    """
    from pycocotools import mask

    runs = [None if item.get("iscrowd") else _runs(item.get("segmentation"), height, width) for item in annotations]
    found = []
    for number, (mine, item) in enumerate(zip(runs, annotations, strict=True)):
        if mine is None or not (outline := _outline(item["segmentation"], mine, height, width)):
            found.append(_UNKNOWN)
            continue
        covered, hull_area = 0.0, float(mask.area(outline))
        if others := [one for place, one in enumerate(runs) if place != number and one is not None]:
            taken = mask.merge([mask.merge(others), outline], intersect=True)
            covered = float(mask.area(taken)) - float(mask.area(mask.merge([taken, mine], intersect=True)))
        separated = isinstance(item["segmentation"], list) and len(item["segmentation"]) > 1
        found.append(Occlusion(covered / hull_area if hull_area else 0.0, separated))
    return tuple(found)


def _runs(segment: Any, height: int, width: int) -> Any:
    """The segment in run lengths; None where there is none."""
    from pycocotools import mask

    if not segment:
        return None
    if isinstance(segment, list):
        return mask.merge(mask.frPyObjects([polygon.astype(np.float64) for polygon in segment], height, width))
    return mask.frPyObjects(segment, height, width) if isinstance(segment["counts"], list) else segment


def _outline(segment: Any, runs: Any, height: int, width: int) -> Any:
    """The convex hull of a segment in run lengths; None for a segment without area."""
    from pycocotools import mask

    if isinstance(segment, list):
        corner_P2 = np.concatenate(segment).reshape(-1, 2).astype(np.float64)
    else:
        corner_P2 = np.argwhere(mask.decode(runs).T).astype(np.float64)
    hull = _convex_hull(corner_P2)
    return mask.merge(mask.frPyObjects([hull.ravel()], height, width)) if len(hull) >= _POLYGON_FROM / 2 else None


def _convex_hull(corner_P2: np.ndarray) -> np.ndarray:
    """The corners of the hull, around (Andrew's chains)."""
    points = sorted(set(map(tuple, corner_P2.tolist())))

    def chain(ordered: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        kept: list[tuple[float, float]] = []
        for x, y in ordered:
            while len(kept) > 1 and (kept[-1][0] - kept[-2][0]) * (y - kept[-2][1]) <= (
                (kept[-1][1] - kept[-2][1]) * (x - kept[-2][0])
            ):
                kept.pop()
            kept.append((x, y))
        return kept[:-1]

    return np.array(chain(points) + chain(points[::-1]))
