"""Fetches the encoded bytes of samples: memory maps for local and cached shards, ranged reads for remote ones."""

from __future__ import annotations

import mmap
import threading
import time
from collections.abc import Collection, Iterator
from concurrent.futures import CancelledError, Future, wait

import numpy as np
from zlib_ng.zlib_ng import crc32

from msldata.storage import NoRangesError
from msltrain.stream.config import StreamConfig
from msltrain.stream.reading.cache import DamagedShard, NotCached, ShardCache
from msltrain.stream.reading.ranges import RangeFetcher
from msltrain.stream.reading.request import Buffer, Fetcher, Request, note_once
from msltrain.stream.samples.shardset import SampleRows, ShardSet
from msltrain.stream.threads import Readers

_PARALLEL_SHARDS = 8
"""Shards fetched at the same time; each takes the memory of one piece, 8 MiB."""
_MOST_SHARDS = 256
"""Shards of a window that are held open; each takes a file descriptor."""
_RETRY_AFTER = 5.0
"""Seconds between two attempts to cache a shard that found no room."""


def open_fetcher(shards: ShardSet, config: StreamConfig, windows: Iterator[np.ndarray]) -> Fetcher:
    """The fetcher for the place where ``shards`` is.

    Args:
        shards, config: what to read, and how.
        windows: the shards that will be read together, in order; ``EpochPlan.shards_by_window``.

    Raises:
        StorageError: the cache folder cannot be used.
    """
    if shards.storage.path() is not None:
        if config.cache:
            note_once(f"stream.cache is not used for {shards.storage.url}, which is local")
        return LocalFetcher(shards)
    ranges = RangeFetcher(shards, config.read_ahead_mb << 20)
    if not config.cache:
        return ranges
    return CachedFetcher(shards, ShardCache(config.cache, int(config.cache_limit_gb * 1e9)), ranges, windows)


class LocalFetcher(Fetcher):
    """Views into memory-mapped shards: nothing is copied, and the kernel is told in advance what will be needed.

    The checksum is computed by the decoding thread, right before it decodes the same bytes: 2 µs for a
    photograph of 90 kB, where zlib's own takes 13.
    """

    def __init__(self, shards: ShardSet):
        self._shards = shards

    def request(self, shard_N: np.ndarray, rows: SampleRows) -> Request:
        shards = shard_N.tolist()
        mapped = {shard: self._shards.maps.open(shard) for shard in set(shards)}
        places = zip(shards, rows.offset_N.tolist(), rows.length_N.tolist())
        views = [_view(mapped[shard], offset, length) for shard, offset, length in places]
        return _Mapped(self._shards, shard_N, rows, views)

    def close(self) -> None:
        """Nothing is waiting; the maps stay for the next epoch."""


class _Mapped(Request):
    def __init__(self, shards: ShardSet, shard_N: np.ndarray, rows: SampleRows, views: list[memoryview]):
        self._shards, self._shard_N, self._rows, self._views = shards, shard_N, rows, views

    def read(self, position: int) -> memoryview:
        view = self._views[position]
        if crc32(view) != self._rows.crc32_N[position]:
            raise self._shards.error(
                int(self._shard_N[position]),
                self._rows.key_N[position],
                int(self._rows.offset_N[position]),
                "the bytes do not match their CRC-32",
            )
        return view


class CachedFetcher(Fetcher):
    """Whole shards through a cache on this host: the next window's are fetched while this one's are read.

    The shards of a window are all needed from its first batch on. In the first window nobody waits for them: samples of
    a shard that is not here yet are read one by one, so that training starts as soon as it would without a cache; at
    worst that window is transferred twice. Later windows were fetched ahead, and a sample waits for its shard: the
    fastest way to the rest of it. A shard for which there is no room, because of the limit or a full disk, is read
    sample by sample too, and a note says so; it is tried again every few seconds, but one that is damaged at its source
    only in the next epoch.

    Args:
        shards, cache: what to read, through which folder.
        ranges: reads single samples; closed together with this fetcher.
        windows: the shards that will be read together, in order.
    """

    def __init__(self, shards: ShardSet, cache: ShardCache, ranges: RangeFetcher, windows: Iterator[np.ndarray]):
        self._shards, self._cache, self._ranges, self._windows = shards, cache, ranges, windows
        self._closing = threading.Event()
        self._readers = Readers(_PARALLEL_SHARDS)
        self._retry_at = 0.0
        self._in_first = True
        self._has_ranges = True
        self._this = self._look_ahead()
        self._next = self._look_ahead()

    def request(self, shard_N: np.ndarray, rows: SampleRows) -> Request:
        arrivals = {shard: self._arrival(shard) for shard in np.unique(shard_N).tolist()}
        if not self._next.keys().isdisjoint(arrivals):
            # The requests for the old window's last samples keep the maps alive that they are read from.
            self._this, self._next = self._next, {}
            self._next = self._look_ahead()
            self._in_first = False
        cached = {shard: arrival for shard, arrival in arrivals.items() if self._is_worth_waiting(arrival)}
        position_M = np.flatnonzero(~np.isin(shard_N, list(cached)))
        singles = self._ranges.request_some(shard_N, rows, position_M)
        return _Cached(self, shard_N, rows, arrivals, cached.keys(), singles)

    def close(self) -> None:
        self._closing.set()
        self._readers.close()
        self._ranges.close()
        self._this, self._next = {}, {}

    def read(self, arrival: Future[mmap.mmap], shard: int, rows: SampleRows, position: int) -> Buffer:
        """A sample from the cache, or from the source if the shard did not arrive or is damaged."""
        while not arrival.done():
            if self._closing.is_set():
                raise CancelledError
            wait([arrival], timeout=0.5)
        if arrival.cancelled() or arrival.exception() is not None:
            return self._ranges.read_sample(shard, rows, position)
        view = _view(arrival.result(), int(rows.offset_N[position]), int(rows.length_N[position]))
        if crc32(view) == rows.crc32_N[position]:
            return view
        info = self._shards.manifest.shards[shard]
        self._cache.discard(info)
        note_once(f"{self._cache.folder}: the copy of {info.name} was damaged; it will be fetched again")
        return self._ranges.read_sample(shard, rows, position)

    def do_without_ranges(self) -> None:
        """From now on, wait for whole shards in the first window too."""
        self._has_ranges = False

    def _arrival(self, shard: int) -> Future[mmap.mmap] | None:
        """The map of a shard, here or on its way; None for a shard outside these two windows."""
        window = self._this if shard in self._this else self._next
        arrival = window.get(shard)
        if arrival is not None and _may_be_retried(arrival) and time.monotonic() > self._retry_at:
            arrival = window[shard] = self._start(shard)
        return arrival

    def _is_worth_waiting(self, arrival: Future[mmap.mmap] | None) -> bool:
        if arrival is None or (self._in_first and self._has_ranges and not arrival.done()):
            return False
        return not _has_failed(arrival)

    def _look_ahead(self) -> dict[int, Future[mmap.mmap]]:
        """Start fetching the next window's shards."""
        shards = next(self._windows, np.empty(0, np.int64)).tolist()
        if len(shards) > _MOST_SHARDS:
            note_once(
                f"{self._shards.name}: {len(shards)} shards are read together, of which {_MOST_SHARDS} are cached; "
                "build larger shards (--samples-per-shard)"
            )
        # Shards that are here come first: once held, they cannot be evicted for the others.
        here = {shard: self._cache.open(self._shards.manifest.shards[shard]) for shard in shards[:_MOST_SHARDS]}
        return {shard: self._start(shard) if mapped is None else _done(mapped) for shard, mapped in here.items()}

    def _start(self, shard: int) -> Future[mmap.mmap]:
        return self._readers.submit(self._fetch, shard)

    def _fetch(self, shard: int) -> mmap.mmap:
        try:
            return self._cache.fetch(self._shards.manifest.shards[shard], self._shards.storage, self._closing)
        except Exception as error:
            if isinstance(error, NotCached):
                note_once(f"{error}; samples are read one by one from {self._shards.storage.url} instead")
            self._retry_at = time.monotonic() + _RETRY_AFTER
            raise


class _Cached(Request):
    def __init__(
        self,
        fetcher: CachedFetcher,
        shard_N: np.ndarray,
        rows: SampleRows,
        arrivals: dict[int, Future[mmap.mmap] | None],
        waited_for: Collection[int],
        singles: Request,
    ):
        self._fetcher, self._shard_N, self._rows = fetcher, shard_N, rows
        self._arrivals, self._waited_for, self._singles = arrivals, waited_for, singles

    def read(self, position: int) -> Buffer:
        shard = int(self._shard_N[position])
        arrival = self._arrivals.get(shard)
        if shard not in self._waited_for:
            try:
                return self._singles.read(position)
            except NoRangesError:
                self._fetcher.do_without_ranges()
                if arrival is None:
                    raise
        assert arrival is not None
        return self._fetcher.read(arrival, shard, self._rows, position)


def _view(mapped: mmap.mmap, offset: int, length: int) -> memoryview:
    """Bytes of a mapped shard; the kernel is told that they will be needed."""
    page = offset - offset % mmap.PAGESIZE
    mapped.madvise(mmap.MADV_WILLNEED, page, offset + length - page)
    return memoryview(mapped)[offset : offset + length]


def _done(mapped: mmap.mmap) -> Future[mmap.mmap]:
    future: Future[mmap.mmap] = Future()
    future.set_result(mapped)
    return future


def _has_failed(arrival: Future[mmap.mmap]) -> bool:
    return arrival.done() and (arrival.cancelled() or arrival.exception() is not None)


def _may_be_retried(arrival: Future[mmap.mmap]) -> bool:
    return _has_failed(arrival) and (arrival.cancelled() or not isinstance(arrival.exception(), DamagedShard))
