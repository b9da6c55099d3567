"""Job: one batch on its way through the pipeline."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import numpy as np

from msltrain.stream.lookup import Samples
from msltrain.stream.request import Request
from msltrain.stream.slots import Slot


@dataclass(eq=False, slots=True)
class Job:
    """A batch on its way."""

    samples: Samples
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
        good_N = np.setdiff1d(np.arange(len(self.samples)), list(self.errors))
        self.slot.keep(good_N)
        self.samples = self.samples.take(good_N)
        self.left_out = True

    def take_over(self, other: Job, position: int) -> None:
        """Put the one sample of ``other`` into a place of this batch."""
        assert self.slot is not None and other.slot is not None
        self.slot.adopt(position, other.slot)
        self.samples.put(position, other.samples)
