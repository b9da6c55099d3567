"""Lookup: where the samples of the next batches are and how they are cropped and flipped, for many batches at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from msltrain.stream.order.plan import EpochPlan
from msltrain.stream.samples.shardset import SampleRows, ShardSet

Augment = Callable[[SampleRows], tuple[np.ndarray, np.ndarray, np.ndarray]]
"""Index rows to crop_N4 (top, left, height, width; int64), reduction_N (int64) and flip_N (bool)."""

_MOST_ITEMS = 1024
"""How many samples in the epoch's order are looked up together. Numpy needs about as long for a thousand samples as for
one batch, and meanwhile holds the interpreter, so that the decoding threads have to wait."""
_MOST_LABELS = 1 << 20
"""How many pairs of sample and class are looked up together, in bytes of their targets."""


@dataclass(eq=False, slots=True)
class Samples:
    """The samples of a batch, before any of their bytes are read."""

    item_N: np.ndarray
    """int64; their places in the epoch's order, ascending."""
    shard_N: np.ndarray
    """int64"""
    index_N: np.ndarray
    """int64; their positions in the stored order of the whole dataset."""
    rows: SampleRows
    crop_N4: np.ndarray
    """int64 (top, left, height, width) in pixels."""
    reduction_N: np.ndarray
    """int64; by how much each is reduced in decoding if it is a JPEG: 1, 2, 4 or 8."""
    flip_N: np.ndarray
    """bool"""
    target_NK: np.ndarray
    """uint8"""
    ignore_NK: np.ndarray
    """bool"""

    def __len__(self) -> int:
        return len(self.item_N)

    def take(self, chosen: np.ndarray | slice) -> Samples:
        """Some of the samples; for a slice, views."""
        return Samples(
            self.item_N[chosen],
            self.shard_N[chosen],
            self.index_N[chosen],
            self.rows.take(chosen),
            self.crop_N4[chosen],
            self.reduction_N[chosen],
            self.flip_N[chosen],
            self.target_NK[chosen],
            self.ignore_NK[chosen],
        )

    def put(self, position: int, other: Samples) -> None:
        """Put the single sample of ``other`` at a place in this batch."""
        self.rows.put(position, other.rows)
        for name in ("shard_N", "index_N", "crop_N4", "reduction_N", "flip_N", "target_NK", "ignore_NK"):
            getattr(self, name)[position] = getattr(other, name)[0]


class Lookup:
    """Looks up the samples of an epoch.

    Args:
        shards, plan: which samples there are, and in which order.
        augment: crops, reductions and flips of some rows.
    """

    def __init__(self, shards: ShardSet, plan: EpochPlan, augment: Augment):
        self.shards, self.plan, self._augment = shards, plan, augment

    def samples(self, item_N: np.ndarray) -> Samples:
        """The samples at ascending places of the epoch's order that are near each other.

        Raises:
            FormatError, StorageError, FileNotFoundError: a sample index cannot be read.
        """
        shard_N, row_N = self.plan.at(item_N)
        index_N, rows = self.shards.rows(shard_N, row_N)
        return Samples(item_N, shard_N, index_N, rows, *self._augment(rows), rows.target_NK, rows.ignore_NK)

    def batches(self, places: Iterable[np.ndarray]) -> Iterator[Samples]:
        """Yield batch after batch, for the item_N of each; the first one is looked up alone, so that it is not late."""
        together: list[np.ndarray] = []
        stretch, most = 1, min(_MOST_ITEMS, _MOST_LABELS // max(1, len(self.shards.classes)))
        for item_N in places:
            together.append(item_N)
            if not len(item_N) or item_N[-1] - together[0][0] + 1 >= stretch:
                yield from self._batches(together)
                together, stretch = [], most
        if together:
            yield from self._batches(together)

    def _batches(self, places: list[np.ndarray]) -> Iterator[Samples]:
        all_samples, start = self.samples(np.concatenate(places)), 0
        for item_N in places:
            yield all_samples.take(slice(start, start + len(item_N)))
            start += len(item_N)
