"""Job: one batch on its way through the pipeline. Slot: the buffer of the ring that it is decoded into."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import numpy as np
import torch

from msltrain.stream.request import Request
from msltrain.stream.shardset import SampleRows


class Slot:
    """One buffer of the ring, with a ready-made view of each sample's place.

    With ``encoded`` it holds no pixels but a place for each sample's file, which the device decodes.
    """

    def __init__(self, num_samples: int, image_size: int, pinned: bool, encoded: bool = False):
        self.encoded: list[torch.Tensor] | None = [torch.empty(0)] * num_samples if encoded else None
        image_size = 0 if encoded else image_size
        self.pixel_BHWC = torch.empty((num_samples, image_size, image_size, 3), dtype=torch.uint8, pin_memory=pinned)
        self.views = list(self.pixel_BHWC.permute(0, 3, 1, 2).split(1)) if num_samples else []


@dataclass(eq=False, slots=True)
class Job:
    """A batch on its way."""

    start: int
    """Position of its first sample in the epoch's order."""
    shard_N: np.ndarray
    index_N: np.ndarray
    rows: SampleRows
    crop_N4: list[list[int]]
    flip_N: np.ndarray
    request: Request
    num_bytes: int
    cached: dict[int, np.ndarray]
    """Decoded images that were at hand, by position in the batch; ``request`` is for the others."""
    slot: Slot | None = None
    num_left: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    finished: threading.Event = field(default_factory=threading.Event)
    errors: dict[int, BaseException] = field(default_factory=dict)
    """By position in the batch."""
    left_out: bool = False
    """Whether bad samples were left out."""

    def finish_one(self, position: int, error: BaseException | None) -> None:
        with self.lock:
            if error is not None:
                self.errors[position] = error
            self.num_left -= 1
            if self.num_left == 0:
                self.finished.set()

    def leave_out_bad(self) -> None:
        """Close the gaps that bad samples left."""
        assert self.slot is not None
        good_N = np.setdiff1d(np.arange(len(self.rows)), list(self.errors))
        self.slot.pixel_BHWC[: len(good_N)] = self.slot.pixel_BHWC[good_N]
        self.rows, self.index_N, self.flip_N = self.rows.take(good_N), self.index_N[good_N], self.flip_N[good_N]
        self.crop_N4 = [self.crop_N4[position] for position in good_N.tolist()]
        self.left_out = True

    def take_over(self, other: Job, position: int) -> None:
        """Put the one sample of ``other`` into a place of this batch."""
        assert self.slot is not None and other.slot is not None
        self.slot.pixel_BHWC[position] = other.slot.pixel_BHWC[0]
        for name in SampleRows.__slots__:
            getattr(self.rows, name)[position] = getattr(other.rows, name)[0]
        self.index_N[position], self.flip_N[position] = other.index_N[0], other.flip_N[0]
        self.crop_N4[position] = other.crop_N4[0]
