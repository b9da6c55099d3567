"""RangeFetcher: samples of remote shards by ranged reads, many in flight, within a bound on the memory they take.

Samples of a batch that lie close together in a shard come in one read. Reads are queued in the order of the batches and
start while all that was read and not yet handed out stays within the bound. A read that a decoding thread already waits
for starts regardless: so a sample larger than the bound passes, and no order of reading can block itself.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, wait

import numpy as np
from zlib_ng.zlib_ng import crc32

from msltrain.stream.errors import SampleError
from msltrain.stream.readers import Readers
from msltrain.stream.request import Buffer, Fetcher, Request
from msltrain.stream.shardset import SampleRows, ShardSet

_PARALLEL_READS = 32
_GAP = 64 << 10
"""Bytes between two samples that are cheaper to read than a second request: neighbours lie 2-4 kB apart, samples that
are not neighbours an image or more, which at this limit would be read in vain."""
_LARGEST_READ = 4 << 20
"""Samples are no longer put together beyond this: memory is given back only when a whole read is handed out."""


class _Read:
    """One ranged read: neighbouring samples of one shard."""

    __slots__ = ("future", "members", "num_left", "rows", "shard", "start", "started", "stop")

    def __init__(self, shard: int, rows: SampleRows, members: list[int], start: int, stop: int):
        self.shard, self.rows, self.start, self.stop = shard, rows, start, stop
        self.members = members
        """Positions in ``rows``."""
        self.num_left = len(members)
        self.started = False
        self.future: Future[dict[int, Buffer | SampleError]] | None = Future()

    @property
    def num_bytes(self) -> int:
        return self.stop - self.start


class RangeFetcher(Fetcher):
    """Ranged reads straight from remote storage; every sample is checked against its CRC-32, and read again once.

    Args:
        shards: what to read.
        memory_bytes: bound on what is read or being read and not handed out yet. Each decoding thread may add one read.
    """

    def __init__(self, shards: ShardSet, memory_bytes: int):
        self._shards = shards
        self._memory_bytes = memory_bytes
        self._held = 0
        self._lock = threading.Lock()
        self._queue: deque[_Read] = deque()
        self._closing = threading.Event()
        self._readers = Readers(_PARALLEL_READS)

    def request(self, shard_N: np.ndarray, rows: SampleRows) -> Request:
        return self.request_some(shard_N, rows, np.arange(len(rows)))

    def request_some(self, shard_N: np.ndarray, rows: SampleRows, position_M: np.ndarray) -> Request:
        """As ``request``, for some positions of ``rows`` only."""
        reads = list(_reads(shard_N, rows, position_M))
        with self._lock:
            self._queue.extend(reads)
            self._start_reads()
        return _Ranges(self, {position: read for read in reads for position in read.members})

    def close(self) -> None:
        self._closing.set()
        self._readers.close()
        with self._lock:
            self._queue.clear()

    def read_sample(self, shard: int, rows: SampleRows, position: int) -> bytes:
        """Read one sample now and check it. Raises SampleError."""
        offset, length = int(rows.offset_N[position]), int(rows.length_N[position])
        (data,) = self._shards.storage.read_ranges(self._shards.manifest.shards[shard].name, [offset], [length])
        if crc32(data) != rows.crc32_N[position]:
            reason = "the bytes do not match their CRC-32, also when read a second time"
            raise self._shards.error(shard, rows.key_N[position], offset, reason)
        return data

    def hand_out(self, read: _Read, position: int) -> Buffer:
        """The bytes of one sample of a read, which is started if it is still in the queue."""
        with self._lock:
            if not read.started:
                self._start(read)
            future = read.future
            assert future is not None, "a sample was read twice"
        try:
            # A server that stalls must not keep the program from ending.
            while not future.done():
                if self._closing.is_set():
                    raise CancelledError
                wait([future], timeout=0.5)
            found = future.result()[position]
        finally:
            with self._lock:
                read.num_left -= 1
                if not read.num_left:
                    read.future = None
                    self._held -= read.num_bytes
                    self._start_reads()
        if isinstance(found, SampleError):
            raise found
        return found

    def _start_reads(self) -> None:
        """Start what fits. The lock is held."""
        while self._queue and not self._closing.is_set():
            read = self._queue[0]
            if not read.started:
                if self._held and self._held + read.num_bytes > self._memory_bytes:
                    return
                self._start(read)
            self._queue.popleft()

    def _start(self, read: _Read) -> None:
        read.started = True
        self._held += read.num_bytes
        self._readers.submit(self._run, read, read.future)

    def _run(self, read: _Read, future: Future[dict[int, Buffer | SampleError]]) -> None:
        if self._closing.is_set():
            future.cancel()
            return
        try:
            future.set_result(self._fetch(read))
        except BaseException as error:
            future.set_exception(error)

    def _fetch(self, read: _Read) -> dict[int, Buffer | SampleError]:
        name = self._shards.manifest.shards[read.shard].name
        rows = read.rows
        (data,) = self._shards.storage.read_ranges(name, [read.start], [read.num_bytes])
        whole = memoryview(data)
        found: dict[int, Buffer | SampleError] = {}
        for position in read.members:
            offset = int(rows.offset_N[position]) - read.start
            sample = whole[offset : offset + int(rows.length_N[position])]
            if crc32(sample) == rows.crc32_N[position]:
                found[position] = sample
                continue
            try:
                found[position] = self.read_sample(read.shard, rows, position)
            except SampleError as error:
                found[position] = error
        return found


class _Ranges(Request):
    def __init__(self, fetcher: RangeFetcher, reads: dict[int, _Read]):
        self._fetcher = fetcher
        self._reads = reads

    def read(self, position: int) -> Buffer:
        return self._fetcher.hand_out(self._reads[position], position)


def _reads(shard_N: np.ndarray, rows: SampleRows, position_M: np.ndarray) -> Iterator[_Read]:
    """The reads that bring some positions of ``rows``, in the order in which they are needed first."""
    order_M = position_M[np.lexsort((rows.offset_N[position_M], shard_N[position_M]))]
    found: list[_Read] = []
    for position in order_M.tolist():
        shard, start = int(shard_N[position]), int(rows.offset_N[position])
        stop = start + int(rows.length_N[position])
        last = found[-1] if found else None
        if (
            last is not None
            and last.shard == shard
            and start - last.stop <= _GAP
            and max(stop, last.stop) - last.start <= _LARGEST_READ
        ):
            last.members.append(position)
            last.num_left += 1
            last.stop = max(stop, last.stop)
        else:
            found.append(_Read(shard, rows, [position], start, stop))
    return iter(sorted(found, key=lambda read: min(read.members)))
