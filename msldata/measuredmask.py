"""A mask file as read: what a build must know of it, in a few kilobytes, so that each file is decoded once."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from msldata.engine import run_tasks
from msldata.errors import BadInputError, UserError
from msldata.keepmask import HOLE_WHITE, PolarityClue, pack_bits, polarity_clue, unpack_bits
from msldata.masksources import MaskSource

_NAMES_PER_TASK = 64


@dataclass(frozen=True, slots=True)
class MeasuredMask:
    """Everything about one mask file but its polarity, which only the whole set can tell."""

    name: str
    width: int
    height: int
    white_pixels: int
    clue: PolarityClue
    white_bits: bytes
    """White pixels as ``pack_bits`` packs them, compressed: about 3 KB for 512×512."""
    digest: str
    """SHA-256 of the packed white pixels, in hex."""

    @classmethod
    def of_gray(cls, name: str, gray_HW: np.ndarray) -> MeasuredMask:
        """Measure a decoded mask, uint8, 0 black … 255 white."""
        height, width = gray_HW.shape
        white_HW = gray_HW > 127
        bits = pack_bits(white_HW).tobytes()
        return cls(
            name=name,
            width=width,
            height=height,
            white_pixels=int(np.count_nonzero(white_HW)),
            clue=polarity_clue(gray_HW),
            white_bits=zlib.compress(bits, 1),
            digest=hashlib.sha256(bits).hexdigest(),
        )

    def hole_fraction(self, polarity: str) -> float:
        """Share of hole pixels under ``polarity``, in [0, 1]; equals ``keepmask.hole_fraction`` of the keep mask."""
        num_pixels = self.width * self.height
        holes = self.white_pixels if polarity == HOLE_WHITE else num_pixels - self.white_pixels
        return holes / num_pixels

    def keep_mask(self, polarity: str) -> np.ndarray:
        """keep_mask_HW, uint8, 1 = visible, 0 = hole."""
        packed = np.frombuffer(zlib.decompress(self.white_bits), dtype=np.uint8).reshape(self.height, -1)
        white_HW = unpack_bits(packed, self.width)
        return 1 - white_HW if polarity == HOLE_WHITE else white_HW


def measure_masks(
    source: MaskSource,
    names: Sequence[str],
    *,
    num_workers: int | None = None,
    on_error: Literal["fail", "skip"] = "fail",
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[MeasuredMask], tuple[BadInputError, ...]]:
    """Read masks in worker processes.

    Args:
        source: where they are.
        names: which of its masks.
        num_workers: processes; default one per available processor.
        on_error: ``fail`` or ``skip``.
        progress: called with (done, total), in masks.

    Returns:
        The masks in the order of ``names``, and the files that are none (empty with ``fail``).

    Raises:
        BadInputError: a file that is no mask (with ``fail``).
        UserError: no file is a mask (with ``skip``).
    """
    done = 0

    def count(results: list[MeasuredMask | BadInputError]) -> None:
        nonlocal done
        done += len(results)
        if progress is not None:
            progress(done, len(names))

    tasks = [
        (source, names[start : start + _NAMES_PER_TASK], on_error) for start in range(0, len(names), _NAMES_PER_TASK)
    ]
    results = [result for chunk in run_tasks(_measure_some, tasks, num_workers, count) for result in chunk]
    masks = [result for result in results if isinstance(result, MeasuredMask)]
    rejected = tuple(result for result in results if isinstance(result, BadInputError))
    if not masks:
        raise UserError(f"none of {len(names)} files is a mask; the first: {rejected[0]}")
    return masks, rejected


def _measure_some(task: tuple[MaskSource, Sequence[str], str]) -> list[MeasuredMask | BadInputError]:
    source, names, on_error = task
    results: list[MeasuredMask | BadInputError] = []
    for name in names:
        try:
            results.append(MeasuredMask.of_gray(name, source.read_gray(name)))
        except BadInputError as error:
            if on_error == "fail":
                raise
            results.append(error)
    return results
