"""The order of an epoch: which samples each step of each rank takes. Pure: no files, no frameworks.

The order is one global sequence of (shard, row) pairs. Shards are permuted, cut into windows of about ``window``
samples, and the samples of a window are permuted among themselves; a batch is a slice of that sequence. So every sample
comes once per epoch, whatever the number of ranks or threads, and a run can be resumed at any step by computing one
window. Which rank computes which part of a batch changes nothing: in an evaluation the ranks take slices of it; in
training each takes the samples whose home it is, as far as its places go, and so sees most of them again in the next
epoch, when its memory may still hold them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

import numpy as np

from msltrain.stream.order.random import HOME_RANK, SAMPLE_ORDER, SHARD_ORDER, hash64

_CACHED_WINDOWS = 2


def steps(num_samples: int, batch_size: int, drop_last: bool) -> int:
    """Steps in an epoch; equal on all ranks."""
    return num_samples // batch_size if drop_last else -(-num_samples // batch_size)


def rank_slice(step: int, *, num_samples: int, batch_size: int, rank: int, world_size: int) -> tuple[int, int]:
    """The items ``[start, stop)`` that ``rank`` takes in ``step``.

    Item numbers are positions in the epoch's order. The parts of the ranks follow each other without gap or overlap and
    differ by at most one sample; in the last, incomplete batch a part may be empty.
    """
    start = step * batch_size
    size = min(batch_size, num_samples - start)
    return start + size * rank // world_size, start + size * (rank + 1) // world_size


def home_share(shard_N: np.ndarray, row_N: np.ndarray, *, rank: int, world_size: int) -> np.ndarray:
    """Which samples of a batch ``rank`` takes, most of them the same ones in every epoch.

    A hash gives every sample a home. A rank has as many places as with ``rank_slice``; samples that find no place at
    home fill those left elsewhere. With n places per rank, about 1 - 0.4 / √n of the samples are at home.

    Args:
        shard_N, row_N: the whole batch, over all ranks.

    Returns:
        position_M: int64, ascending.
    """
    if world_size == 1:
        return np.arange(len(shard_N))
    num_samples, rank_R = len(shard_N), np.arange(world_size + 1)
    places_R = np.diff(num_samples * rank_R // world_size)
    taker_N = (hash64(HOME_RANK, shard_N, row_N) % np.uint64(world_size)).astype(np.int64)
    by_home_N = np.argsort(taker_N, kind="stable")
    guests_R = np.bincount(taker_N, minlength=world_size)
    place_N = np.empty(num_samples, dtype=np.int64)
    place_N[by_home_N] = np.arange(num_samples) - np.repeat(np.cumsum(guests_R) - guests_R, guests_R)
    taker_N[place_N >= places_R[taker_N]] = np.repeat(rank_R[:-1], (places_R - guests_R).clip(min=0))
    return np.flatnonzero(taker_N == rank)


class EpochPlan:
    """The order of one epoch.

    Args:
        counts: samples per shard (S,); zeros are allowed.
        seed, epoch: decide the order.
        window: about how many samples are shuffled together. Shards are never cut, so a window has at least one.
        shuffle: False gives shards and rows in their stored order.
    """

    def __init__(
        self, counts: Sequence[int] | np.ndarray, *, seed: int, epoch: int, window: int = 16384, shuffle: bool = True
    ):
        counts_S = np.asarray(counts, dtype=np.int64)
        self.seed, self.epoch, self.shuffle = seed, epoch, shuffle
        self._order_S = np.arange(len(counts_S), dtype=np.int64)
        if shuffle:
            self._order_S = np.argsort(hash64(seed, epoch, SHARD_ORDER, self._order_S), kind="stable")
        self._counts_S = counts_S[self._order_S]
        ends_S = np.cumsum(self._counts_S)
        self.num_samples = int(ends_S[-1]) if len(ends_S) else 0
        starts_S = ends_S - self._counts_S
        # A shard belongs to the window that its first sample falls into when the sequence is cut at multiples of it.
        window_S = starts_S // window
        first_W = np.flatnonzero(np.diff(window_S, prepend=-1))
        self._first_shard_W = np.append(first_W, len(counts_S))
        self._first_item_W = np.append(starts_S[first_W], self.num_samples)
        self._windows: OrderedDict[int, tuple[np.ndarray, np.ndarray]] = OrderedDict()

    def items(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """The samples at positions ``[start, stop)`` of the epoch's order.

        Returns:
            shard_N, row_N: int64; shard numbers as in ``counts`` and rows within them.

        Raises:
            IndexError: the positions do not lie in ``[0, num_samples]``.
        """
        if not 0 <= start <= stop <= self.num_samples:
            raise IndexError(f"items {start} to {stop} of an epoch of {self.num_samples} samples")
        shards, rows = [], []
        while start < stop:
            number = int(np.searchsorted(self._first_item_W, start, side="right")) - 1
            begin, end = int(self._first_item_W[number]), min(stop, int(self._first_item_W[number + 1]))
            shard_N, row_N = self._window(number)
            shards.append(shard_N[start - begin : end - begin])
            rows.append(row_N[start - begin : end - begin])
            start = end
        if not shards:
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
        return np.concatenate(shards), np.concatenate(rows)

    def at(self, item_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The samples at ascending positions ``item_N`` that are near each other; as in ``items``."""
        if not len(item_N):
            return self.items(0, 0)
        first = int(item_N[0])
        shard_M, row_M = self.items(first, int(item_N[-1]) + 1)
        return shard_M[item_N - first], row_M[item_N - first]

    def shards_by_window(self, start: int) -> Iterator[np.ndarray]:
        """The shards (int64) with samples in each window, starting with the window that holds item ``start``."""
        first = int(np.searchsorted(self._first_item_W, start, side="right")) - 1
        for number in range(max(first, 0), len(self._first_shard_W) - 1):
            positions = slice(self._first_shard_W[number], self._first_shard_W[number + 1])
            shards = self._order_S[positions][self._counts_S[positions] > 0]
            if len(shards):
                yield shards

    def _window(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        cached = self._windows.get(number)
        if cached is None:
            cached = self._windows[number] = self._permuted(number)
            if len(self._windows) > _CACHED_WINDOWS:
                self._windows.popitem(last=False)
        return cached

    def _permuted(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        positions = slice(self._first_shard_W[number], self._first_shard_W[number + 1])
        counts = self._counts_S[positions]
        shard_N = np.repeat(self._order_S[positions], counts)
        row_N = np.arange(len(shard_N)) - np.repeat(np.cumsum(counts) - counts, counts)
        if not self.shuffle:
            return shard_N, row_N
        order = np.argsort(hash64(self.seed, self.epoch, SAMPLE_ORDER, shard_N, row_N), kind="stable")
        return shard_N[order], row_N[order]
