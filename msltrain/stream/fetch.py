"""Brings the encoded bytes of samples: memory maps for local shards, checked ranged reads for remote ones."""

from __future__ import annotations

import mmap
import threading
import zlib
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future, wait

import numpy as np

from msldata.format import FormatError
from msldata.storage import StorageError
from msltrain.stream.readers import Readers
from msltrain.stream.shardset import SampleRows, ShardSet

Buffer = bytes | memoryview
_OPEN_MAPS = 128
_PARALLEL_READS = 32


class Request(ABC):
    """Samples that were asked for."""

    @abstractmethod
    def read(self, position: int) -> Buffer:
        """Wait for one of them, from any thread. Raises SampleError, StorageError or FileNotFoundError."""


class Fetcher(ABC):
    """Reads samples of one shard set, ahead of need; ``request`` is called from one thread."""

    @abstractmethod
    def request(self, shard_N: np.ndarray, rows: SampleRows) -> Request:
        """Start reading samples."""

    @abstractmethod
    def close(self) -> None:
        """Give up what is not read yet, and let go of all files."""


def open_fetcher(shards: ShardSet) -> Fetcher:
    """The fetcher for the place where ``shards`` lies."""
    return RemoteFetcher(shards) if shards.storage.path() is None else LocalFetcher(shards)


class _Mapped(Request):
    def __init__(self, views: list[memoryview]):
        self._views = views

    def read(self, position: int) -> memoryview:
        return self._views[position]


class LocalFetcher(Fetcher):
    """Views into memory-mapped shards: nothing is copied, and the kernel is told in advance what will be needed.

    The checksum is not computed here: a decoder error leads to it, and reading it all would cost 5 % of the rate.
    """

    def __init__(self, shards: ShardSet):
        self._shards = shards
        self._maps: OrderedDict[int, mmap.mmap] = OrderedDict()

    def request(self, shard_N: np.ndarray, rows: SampleRows) -> Request:
        views = []
        for shard, offset, length in zip(shard_N.tolist(), rows.offset_N.tolist(), rows.length_N.tolist()):
            mapped = self._map(shard)
            page = offset - offset % mmap.PAGESIZE
            mapped.madvise(mmap.MADV_WILLNEED, page, offset + length - page)
            views.append(memoryview(mapped)[offset : offset + length])
        return _Mapped(views)

    def close(self) -> None:
        # A map is closed by its last view; closing it here would fail while a thread still decodes from it.
        self._maps.clear()

    def _map(self, shard: int) -> mmap.mmap:
        mapped = self._maps.get(shard)
        if mapped is not None:
            self._maps.move_to_end(shard)
            return mapped
        info = self._shards.manifest.shards[shard]
        path = self._shards.storage.path(info.name)
        assert path is not None
        try:
            with open(path, "rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise FileNotFoundError(f"{path}: the shard is missing; copy or build the dataset again") from None
        except (OSError, ValueError) as error:
            raise StorageError(f"{path}: {error}") from error
        if len(mapped) != info.num_bytes:
            raise FormatError(
                f"{path}: {len(mapped)} bytes, the manifest says {info.num_bytes}; copy or build the dataset again"
            )
        self._maps[shard] = mapped
        if len(self._maps) > _OPEN_MAPS:
            self._maps.popitem(last=False)
        return mapped


class _Ranges(Request):
    def __init__(self, reads: dict[int, tuple[Future[list[bytes]], int]], closing: threading.Event):
        self._reads = reads
        self._closing = closing

    def read(self, position: int) -> bytes:
        future, place = self._reads[position]
        # A server that stalls must not keep the program from ending.
        while not future.done():
            if self._closing.is_set():
                raise CancelledError
            wait([future], timeout=0.5)
        return future.result()[place]


class RemoteFetcher(Fetcher):
    """Ranged reads, one request per shard of a batch, many in flight; every sample is checked against its CRC-32."""

    def __init__(self, shards: ShardSet):
        self._shards = shards
        self._closing = threading.Event()
        self._readers = Readers(_PARALLEL_READS)

    def request(self, shard_N: np.ndarray, rows: SampleRows) -> Request:
        reads: dict[int, tuple[Future[list[bytes]], int]] = {}
        for shard in np.unique(shard_N).tolist():
            members = np.flatnonzero(shard_N == shard).tolist()
            future = self._readers.submit(self._read, shard, rows, members)
            reads.update({member: (future, place) for place, member in enumerate(members)})
        return _Ranges(reads, self._closing)

    def close(self) -> None:
        self._closing.set()
        self._readers.close()

    def _read(self, shard: int, rows: SampleRows, members: Sequence[int]) -> list[bytes]:
        name = self._shards.manifest.shards[shard].name
        parts = self._shards.storage.read_ranges(
            name, [int(rows.offset_N[member]) for member in members], [int(rows.length_N[member]) for member in members]
        )
        for place, member in enumerate(members):
            if zlib.crc32(parts[place]) != rows.crc32_N[member]:
                parts[place] = self._read_again(shard, rows, member)
        return parts

    def _read_again(self, shard: int, rows: SampleRows, member: int) -> bytes:
        offset, length = int(rows.offset_N[member]), int(rows.length_N[member])
        name = self._shards.manifest.shards[shard].name
        part = self._shards.storage.read_ranges(name, [offset], [length])[0]
        if zlib.crc32(part) != rows.crc32_N[member]:
            reason = "the bytes do not match their CRC-32, also when read a second time"
            raise self._shards.error(shard, rows.key_N[member], offset, reason)
        return part
