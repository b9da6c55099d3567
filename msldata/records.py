"""What every source yields: one record per image, with labels, ignored labels and the objects behind them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class ObjectRecord(NamedTuple):
    """One annotated object; a tuple, because plans and indices of a million of them are made of tuples.

    ``box`` is (x, y, width, height) in pixels of the source image, origin at the top left corner, x and y counted
    from 0. ``area`` is in square pixels: the segment's where the source has one (COCO), else the box's. ``truncated``
    and ``occluded`` are None where the source does not say.
    """

    class_index: int
    box: tuple[float, float, float, float]
    area: float
    difficult: bool = False
    truncated: bool | None = None
    occluded: bool | None = None
    crowd: bool = False


@dataclass(frozen=True, slots=True)
class Record:
    """One image to be written: where its bytes are and what it shows.

    ``key`` names the sample in the shard: unique within its dataset and split, without dots or slashes. ``image`` is
    the path of the image file, relative to the source's root. ``positives`` and ``ignored`` are ascending, disjoint
    class indices; an ignored class (VOC "difficult", WIDER "unspecified") is 0 in the target vector and is left out of
    evaluation by the index.
    """

    key: str
    image: str
    positives: tuple[int, ...]
    ignored: tuple[int, ...] = ()
    objects: tuple[ObjectRecord, ...] = ()
    image_id: str = ""
    """The source's own id for the image, as text; the key where the source has none."""
    crop: tuple[float, float, float, float] | None = None
    """Only this part of the image (x, y, width, height in its pixels) is the sample; boxes count from its corner."""
