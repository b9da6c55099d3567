"""RangeFetcher: samples of remote shards by ranged reads, many in flight, within a limit on the memory they take.
Samples of a batch from the same shard come in one read of several ranges at once: every call into the storage library
costs the interpreter some 0.1 ms. Reads are queued in the order of the batches and start while everything that was read
and not yet handed out stays within the limit. A read that a decoding thread is already waiting for starts regardless,
so a sample larger than the limit still passes, and no order of reading can block itself.
"""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import CancelledError, Future, wait

import numpy as np
from zlib_ng.zlib_ng import crc32

from msltrain.stream.errors import SampleError
from msltrain.stream.reading.request import Buffer, Fetcher, Request
from msltrain.stream.samples.shardset import SampleRows, ShardSet
from msltrain.stream.threads import Readers

_PARALLEL_READS = 16
_MOST_RANGES = 4
"""Ranges of one read, which the storage library requests at the same time. More would save little and delay the first
batches: their reads share the connection with those that run ahead, and a read is complete only when its last range has
arrived."""
_LARGEST_READ = 4 << 20
"""Bytes beyond which samples are no longer combined: memory is freed when a whole read has been handed out."""


class _Read:
    """Samples of one shard that are read in one call."""

    __slots__ = ("future", "members", "num_bytes", "num_left", "rows", "shard")

    def __init__(self, shard: int, rows: SampleRows):
        self.shard, self.rows = shard, rows
        self.members: list[int] = []
        """Positions in ``rows``."""
        self.num_bytes = 0
        self.num_left = 0
        self.future: Future[dict[int, Buffer | SampleError]] | None = None
        """Set when the read is started."""

    def has_room(self, num_bytes: int) -> bool:
        return len(self.members) < _MOST_RANGES and self.num_bytes + num_bytes <= _LARGEST_READ

    def add(self, position: int, num_bytes: int) -> None:
        self.members.append(position)
        self.num_bytes += num_bytes
        self.num_left += 1


class RangeFetcher(Fetcher):
    """Ranged reads straight from remote storage; every sample is checked against its CRC-32, and read once more if that
    fails.

    Args:
        shards: what to read.
        memory_bytes: limit on what is read or being read and not handed out yet. Each decoding thread may add one read.
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
        """Like ``request``, but only for some positions in ``rows``."""
        reads: dict[int, _Read] = {}
        places = zip(position_M.tolist(), shard_N[position_M].tolist(), rows.length_N[position_M].tolist())
        newest: dict[int, _Read] = {}
        for position, shard, length in places:
            read = newest.get(shard)
            if read is None or not read.has_room(length):
                read = newest[shard] = _Read(shard, rows)
            read.add(position, length)
            reads[position] = read
        with self._lock:
            # In the order in which they are first needed; a dictionary keeps it.
            self._queue.extend(dict.fromkeys(reads.values()))
            self._start_reads()
        return _Ranges(self, reads)

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
        """The bytes of one sample of a read; the read is started if it is still in the queue."""
        with self._lock:
            future = read.future or self._start(read)
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
            if read.future is None and read.num_left:
                if self._held and self._held + read.num_bytes > self._memory_bytes:
                    return
                self._start(read)
            self._queue.popleft()

    def _start(self, read: _Read) -> Future[dict[int, Buffer | SampleError]]:
        assert read.num_left, "a sample was read twice"
        self._held += read.num_bytes
        read.future = self._readers.submit(self._fetch, read)
        return read.future

    def _fetch(self, read: _Read) -> dict[int, Buffer | SampleError]:
        name, rows, members = self._shards.manifest.shards[read.shard].name, read.rows, np.array(read.members)
        parts = self._shards.storage.read_ranges(name, rows.offset_N[members].tolist(), rows.length_N[members].tolist())
        found: dict[int, Buffer | SampleError] = {}
        for position, part in zip(read.members, parts):
            if crc32(part) == rows.crc32_N[position]:
                found[position] = part
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
