"""ShardSet: one image dataset folder as the stream sees it: sample counts per shard and, lazily, index columns.

Legend: S shards, N or B samples, K classes.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from msldata.contract.format import read_index
from msldata.contract.manifest import IMAGES, FormatError, Manifest, read_manifest
from msldata.storage import Location, Storage, open_storage
from msltrain.stream.errors import SampleError
from msltrain.stream.order.random import key_hash
from msltrain.stream.samples.memory_maps import ShardMaps
from msltrain.stream.threads import Readers

_COLUMNS = ("key", "offset", "length", "crc32", "width", "height", "positives", "ignored")
_PARALLEL_READS = 16
INDEX_CAPACITY = 1 << 17
"""Samples whose index rows are kept in memory, about 0.4 kB each with 80 classes."""


@dataclass(frozen=True, slots=True)
class SampleRows:
    """Index rows of some samples, one array per column: those of a whole shard, or of a batch in batch order."""

    key_N: np.ndarray
    """object array of str"""
    key_hash_N: np.ndarray
    """uint64"""
    offset_N: np.ndarray
    """int64, bytes from the start of the tar"""
    length_N: np.ndarray
    """int64, bytes"""
    crc32_N: np.ndarray
    """uint32"""
    width_N: np.ndarray
    """int64, pixels"""
    height_N: np.ndarray
    """int64, pixels"""
    target_NK: np.ndarray
    """uint8 multi-hot; ignored classes are 0"""
    ignore_NK: np.ndarray
    """bool"""

    def __len__(self) -> int:
        return len(self.key_N)

    def take(self, row_N: np.ndarray | slice) -> SampleRows:
        """The rows numbered ``row_N``, in that order; for a slice, views."""
        return SampleRows(*(getattr(self, name)[row_N] for name in SampleRows.__slots__))

    def put(self, position: int, other: SampleRows) -> None:
        """Replace one of these rows with the single row of ``other``."""
        for name in SampleRows.__slots__:
            getattr(self, name)[position] = getattr(other, name)[0]

    @staticmethod
    def concatenate(parts: Sequence[SampleRows]) -> SampleRows:
        """The rows of all parts, in sequence."""
        return SampleRows(*(np.concatenate([getattr(part, name) for part in parts]) for name in SampleRows.__slots__))


class ShardSet:
    """The samples of a dataset folder, or those that a filter keeps.

    Args:
        storage: the dataset folder.
        manifest: its manifest, of kind ``images``.

    Attributes:
        counts: int64 (S,), samples kept per shard.
        classes: class names in target order.
        maps: the shards as memory maps, where they are local files.
    """

    def __init__(self, storage: Storage, manifest: Manifest):
        self.storage = storage
        self.manifest = manifest
        self.classes = manifest.classes
        self.counts = np.array([shard.num_samples for shard in manifest.shards], dtype=np.int64)
        self._first_sample_S = np.cumsum(self.counts) - self.counts
        self._kept_rows_S: list[np.ndarray] | None = None
        self.maps = ShardMaps(storage, manifest)
        self._indexes = _IndexCache(storage, manifest)

    @property
    def num_samples(self) -> int:
        return int(self.counts.sum())

    @property
    def name(self) -> str:
        """Dataset and split, for messages."""
        return f"{self.manifest.dataset}/{self.manifest.split}"

    def rows(self, shard_N: np.ndarray, row_N: np.ndarray) -> tuple[np.ndarray, SampleRows]:
        """The index rows of the samples that a plan over ``counts`` names.

        Args:
            shard_N, row_N: int64; rows count the kept samples of a shard.

        Returns:
            index_N, int64: positions of the samples in the whole dataset's order, with or without a filter; and their
            rows.

        Raises:
            FormatError: a sample index is missing, damaged or of another build.
        """
        if not len(shard_N):
            return shard_N, self._indexes.get_many([0])[0].take(shard_N)
        grouped_N = np.argsort(shard_N, kind="stable")
        shards, first = np.unique(shard_N[grouped_N], return_index=True)
        indexes = self._indexes.get_many(shards.tolist())
        stored = np.split(row_N[grouped_N], first[1:])
        if self._kept_rows_S is not None:
            stored = [self._kept_rows_S[shard][rows] for shard, rows in zip(shards, stored)]
        # The parts lie in shard order; `place_N` takes them back to the order asked for.
        place_N = np.argsort(grouped_N)
        parts = SampleRows.concatenate([index.take(rows) for index, rows in zip(indexes, stored)])
        return self._first_sample_S[shard_N] + np.concatenate(stored)[place_N], parts.take(place_N)

    def reserve(self, num_samples: int) -> None:
        """Keep the index rows of at least this many samples in memory."""
        self._indexes.capacity = max(self._indexes.capacity, num_samples)

    def error(self, shard: int, key: str, offset: int, reason: str) -> SampleError:
        """The error that names one sample of shard number ``shard``."""
        return SampleError(self.name, self.storage.where(self.manifest.shards[shard].name), key, offset, reason)


def open_shard_set(location: Location | Storage) -> ShardSet:
    """Open the dataset folder at ``location``, local or remote; only its manifest is read.

    Raises:
        FormatError: no finished dataset there, or one of keep masks.
        StorageError: the place cannot be read.
    """
    storage = open_storage(location)
    manifest = read_manifest(storage)
    if manifest.kind != IMAGES:
        raise FormatError(f"{storage.url}: holds {manifest.kind}, not images; give the folder of an image dataset")
    if not manifest.num_samples:
        raise FormatError(f"{storage.url}: the dataset has no samples; build it again with `msl build-shards`")
    return ShardSet(storage, manifest)


class _IndexCache:
    """Decoded sample indexes; the least recently used ones are dropped first; safe to use from several threads."""

    def __init__(self, storage: Storage, manifest: Manifest):
        self.capacity = INDEX_CAPACITY
        self._storage = storage
        self._manifest = manifest
        self._lock = threading.Lock()
        self._indexes: OrderedDict[int, SampleRows] = OrderedDict()
        self._held = 0

    def get_many(self, shards: Sequence[int]) -> list[SampleRows]:
        with self._lock:
            found = {shard: self._indexes[shard] for shard in shards if shard in self._indexes}
            for shard in found:
                self._indexes.move_to_end(shard)
        missing = [shard for shard in shards if shard not in found]
        if missing:
            readers = Readers(min(_PARALLEL_READS, len(missing)))
            try:
                reads = [readers.submit(self._read, shard) for shard in missing]
                found.update((shard, read.result()) for shard, read in zip(missing, reads))
            finally:
                readers.close()
            with self._lock:
                for shard in missing:
                    self._held += len(found[shard]) if shard not in self._indexes else 0
                    self._indexes[shard] = found[shard]
                while self._held > self.capacity and len(self._indexes) > 1:
                    self._held -= len(self._indexes.popitem(last=False)[1])
        return [found[shard] for shard in shards]

    def _read(self, shard: int) -> SampleRows:
        info = self._manifest.shards[shard]
        table = read_index(self._storage, self._manifest, info, _COLUMNS)
        keys = table["key"].to_pylist()
        num_classes = len(self._manifest.classes)
        numbers = {
            name: table[name].to_numpy().astype(np.int64) for name in ("offset", "length", "crc32", "width", "height")
        }
        return SampleRows(
            key_N=np.array(keys, dtype=object),
            key_hash_N=key_hash(keys),
            offset_N=numbers["offset"],
            length_N=numbers["length"],
            crc32_N=numbers["crc32"],
            width_N=numbers["width"],
            height_N=numbers["height"],
            target_NK=_multi_hot(table["positives"], num_classes).astype(np.uint8),
            ignore_NK=_multi_hot(table["ignored"], num_classes),
        )


def _multi_hot(lists: pa.ChunkedArray, num_classes: int) -> np.ndarray:
    """Class numbers per sample as bool (N, K)."""
    column = lists.combine_chunks()
    row = np.repeat(np.arange(len(column)), np.diff(column.offsets.to_numpy()))
    number = column.flatten().to_numpy()
    hot = np.zeros((len(column), num_classes), dtype=bool)
    hot[row, number] = True
    return hot
