"""A mask file as read: what a build must know about it, in a few kilobytes, so that each file is decoded once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from msldata.contract.keepmask import (
    HOLE_WHITE,
    decode_levels,
    decode_packed,
    encode_level_png,
    encode_packed_png,
    invert_bits,
    pack_bits,
    resize_area,
    resize_nearest,
    to_levels,
    unpack_bits,
)
from msldata.errors import BadInputError, UserError
from msldata.masks.polarity import PolarityClue, polarity_clue
from msldata.masks.sources import MaskSource
from msldata.workers.engine import run_tasks

_NAMES_PER_TASK = 64


@dataclass(frozen=True, slots=True)
class MeasuredMask:
    """Everything about one mask file except its polarity, which only the whole set can show.

    Width, height and white pixels are those of the mask that is stored, which can be smaller than its source.
    """

    name: str
    width: int
    height: int
    white_pixels: int
    source_width: int
    source_height: int
    source_white_pixels: int
    clue: PolarityClue
    hole_white_png: bytes
    """The keep mask as it is stored if white turns out to be the hole, as in nearly all sets; about 3 kB for
    512×512."""
    soft: bool
    """Whether that is a grey keep mask."""
    digest: str
    """SHA-256 of the packed white pixels, or of the grey ones, in hex."""

    @classmethod
    def of_gray(cls, name: str, gray_HW: np.ndarray, size: int | None = None, soft: bool = False) -> MeasuredMask:
        """Measure a decoded mask, uint8, 0 black … 255 white, and resize it to size × size.

        Args:
            size: None leaves it unchanged. A binary mask takes the nearest pixel, a soft one the mean of an area.
            soft: keep the grey instead of binarising at half brightness.
        """
        source_height, source_width = gray_HW.shape
        white_HW = gray_HW > 127
        source_white_pixels = white_pixels = int(np.count_nonzero(white_HW))
        clue = polarity_clue(white_HW)
        if size is not None:
            if soft:
                gray_HW = resize_area(gray_HW, size, size)
            white_HW = gray_HW > 127 if soft else resize_nearest(white_HW, size, size)
            white_pixels = int(np.count_nonzero(white_HW))
        height, width = white_HW.shape
        if soft:
            content = np.ascontiguousarray(gray_HW)
            png = encode_level_png(to_levels(gray_HW, HOLE_WHITE))
        else:
            content = pack_bits(white_HW)
            png = encode_packed_png(invert_bits(content, width), width)
        return cls(
            name=name,
            width=width,
            height=height,
            white_pixels=white_pixels,
            source_width=source_width,
            source_height=source_height,
            source_white_pixels=source_white_pixels,
            clue=clue,
            hole_white_png=png,
            soft=soft,
            digest=hashlib.sha256(content.data).hexdigest(),
        )

    def hole_fraction(self, polarity: str) -> float:
        """Share of hole pixels under ``polarity``, in [0, 1]; equals ``keepmask.hole_fraction`` of the keep mask."""
        return _hole_fraction(self.white_pixels, self.width * self.height, polarity)

    def source_hole_fraction(self, polarity: str) -> float:
        """Share of hole pixels in the file, before it was resized."""
        return _hole_fraction(self.source_white_pixels, self.source_width * self.source_height, polarity)

    def keep_mask_png(self, polarity: str) -> bytes:
        """The keep mask as it is stored: 1-bit, white = visible; or 8-bit if it is soft, 255 = visible."""
        if polarity == HOLE_WHITE:
            return self.hole_white_png
        if self.soft:
            return encode_level_png(255 - decode_levels(self.hole_white_png, self.name))
        packed, width = decode_packed(self.hole_white_png, self.name)
        return encode_packed_png(invert_bits(packed, width), width)

    def reach(self, polarity: str, target: float) -> MeasuredMask:
        """This mask with its holes grown or shrunk, a pixel at a time, until their share is ``target``.

        Raises:
            BadInputError: there is no hole to grow from, or nothing visible to shrink from.
        """
        packed, width = decode_packed(self.keep_mask_png(polarity), self.name)
        hole_HW = unpack_bits(packed, width) == 0
        if not 0 < np.count_nonzero(hole_HW) < hole_HW.size:
            raise BadInputError(self.name, "all hole or no hole, so --to-fraction has no edge to move")
        hole_HW = reach_fraction(hole_HW, target)
        white_HW = hole_HW if polarity == HOLE_WHITE else ~hole_HW
        moved = MeasuredMask.of_gray(self.name, white_HW * np.uint8(255))
        return replace(
            moved,
            source_width=self.source_width,
            source_height=self.source_height,
            source_white_pixels=self.source_white_pixels,
            clue=self.clue,
        )


def reach_fraction(hole_HW: np.ndarray, target: float) -> np.ndarray:
    """Dilate or erode holes until their share of the image is ``target``, to the pixel; bool in, bool out.

    Four and eight neighbours count in turn, so that a point grows into an octagon. The image's edge is not a neighbour.
    Only as much of the last ring is taken as is needed, starting with the pixels that fill notches.
    """
    grows = np.count_nonzero(hole_HW) < target * hole_HW.size
    inner_HW = hole_HW.copy() if grows else ~hole_HW
    wanted = (target if grows else 1 - target) * hole_HW.size
    share, eight = np.count_nonzero(inner_HW), False
    while share < wanted:
        outer_HW, eight = _dilated(inner_HW, eight), not eight
        grown = np.count_nonzero(outer_HW)
        if grown > wanted:
            ring_N = np.flatnonzero(outer_HW & ~inner_HW)
            order_N = np.argsort(-_neighbours(inner_HW).ravel()[ring_N], kind="stable")
            inner_HW.ravel()[ring_N[order_N[: round(wanted - share)]]] = True
            break
        inner_HW, share = outer_HW, grown
    return inner_HW if grows else ~inner_HW


def _neighbours(inner_HW: np.ndarray) -> np.ndarray:
    """How many of the eight pixels round each are set, int16."""
    framed = np.pad(inner_HW, 1).astype(np.int16)
    height, width = inner_HW.shape
    rows = ((row, column) for row in range(3) for column in range(3) if (row, column) != (1, 1))
    shifted = [framed[row : row + height, column : column + width] for row, column in rows]
    return np.add.reduce(shifted, axis=0)


def _dilated(inner_HW: np.ndarray, eight: bool) -> np.ndarray:
    outer_HW = inner_HW.copy()
    outer_HW[1:] |= inner_HW[:-1]
    outer_HW[:-1] |= inner_HW[1:]
    rows_HW = outer_HW.copy() if eight else inner_HW
    outer_HW[:, 1:] |= rows_HW[:, :-1]
    outer_HW[:, :-1] |= rows_HW[:, 1:]
    return outer_HW


def reach_all(
    masks: Sequence[MeasuredMask],
    polarity: str,
    target: float,
    *,
    num_workers: int | None = None,
    on_error: Literal["fail", "skip"] = "fail",
) -> tuple[list[MeasuredMask], tuple[BadInputError, ...]]:
    """``MeasuredMask.reach`` for many masks, in worker processes; arguments and errors as in ``measure_masks``."""
    tasks = [
        (masks[start : start + _NAMES_PER_TASK], polarity, target, on_error)
        for start in range(0, len(masks), _NAMES_PER_TASK)
    ]
    results = [result for chunk in run_tasks(_reach_some, tasks, num_workers) for result in chunk]
    moved = [result for result in results if isinstance(result, MeasuredMask)]
    rejected = tuple(result for result in results if isinstance(result, BadInputError))
    if not moved:
        raise UserError(f"none of {len(masks)} masks can reach another hole fraction; the first: {rejected[0]}")
    return moved, rejected


def _reach_some(task: tuple[Sequence[MeasuredMask], str, float, str]) -> list[MeasuredMask | BadInputError]:
    masks, polarity, target, on_error = task
    results: list[MeasuredMask | BadInputError] = []
    for mask in masks:
        try:
            results.append(mask.reach(polarity, target))
        except BadInputError as error:
            if on_error == "fail":
                raise
            results.append(error)
    return results


def measure_masks(
    source: MaskSource,
    names: Sequence[str],
    *,
    size: int | None = None,
    soft: bool = False,
    num_workers: int | None = None,
    on_error: Literal["fail", "skip"] = "fail",
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[MeasuredMask], tuple[BadInputError, ...]]:
    """Read masks in worker processes.

    Args:
        source: where they are.
        names: which of its masks to read.
        size: side in pixels that masks are resized to; None: not resized.
        soft: keep the grey of the files.
        num_workers: processes; default one per available processor.
        on_error: ``fail`` or ``skip``.
        progress: called with (done, total), in masks.

    Returns:
        The masks in the order of ``names``, and the files that are not masks (empty with ``fail``).

    Raises:
        BadInputError: a file that is not a mask (with ``fail``).
        UserError: no file is a mask (with ``skip``).
    """
    done = 0

    def count(results: list[MeasuredMask | BadInputError]) -> None:
        nonlocal done
        done += len(results)
        if progress is not None:
            progress(done, len(names))

    tasks = [
        (source, names[start : start + _NAMES_PER_TASK], size, soft, on_error)
        for start in range(0, len(names), _NAMES_PER_TASK)
    ]
    results = [result for chunk in run_tasks(_measure_some, tasks, num_workers, count) for result in chunk]
    masks = [result for result in results if isinstance(result, MeasuredMask)]
    rejected = tuple(result for result in results if isinstance(result, BadInputError))
    if not masks:
        raise UserError(f"none of {len(names)} files is a mask; the first: {rejected[0]}")
    return masks, rejected


def _hole_fraction(white_pixels: int, num_pixels: int, polarity: str) -> float:
    return (white_pixels if polarity == HOLE_WHITE else num_pixels - white_pixels) / num_pixels


def _measure_some(
    task: tuple[MaskSource, Sequence[str], int | None, bool, str],
) -> list[MeasuredMask | BadInputError]:
    source, names, size, soft, on_error = task
    results: list[MeasuredMask | BadInputError] = []
    for name in names:
        try:
            results.append(MeasuredMask.of_gray(name, source.read_gray(name, soft=soft), size, soft))
        except BadInputError as error:
            if on_error == "fail":
                raise
            # The list of what was left out goes with the masks, and names no place of this machine.
            results.append(BadInputError(name, error.reason, error.hint))
    return results
