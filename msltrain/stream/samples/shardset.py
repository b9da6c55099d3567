"""ShardSet: one image dataset folder as the stream sees it: sample counts per shard and, lazily, index columns.

Legend: S shards, N or B samples, K classes.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from msldata.contract.format import read_index
from msldata.contract.manifest import IMAGES, FormatError, Manifest, read_manifest
from msldata.errors import UserError
from msldata.storage import Location, Storage, open_storage
from msltrain.stream.errors import SampleError
from msltrain.stream.order.plan import EpochPlan
from msltrain.stream.order.random import key_hash
from msltrain.stream.samples.memory_maps import ShardMaps
from msltrain.stream.threads import Readers

_COLUMNS = ("key", "offset", "length", "crc32", "width", "height", "positives", "ignored")
_PARALLEL_READS = 16
INDEX_CAPACITY = 1 << 17
"""Samples whose index rows are kept in memory, about 0.3 kB each."""
_TOGETHER = 1 << 16
"""About how many samples `ShardSet.labels` reads at once."""


@dataclass(slots=True)
class SampleRows:
    """Index rows of some samples, one array per column: those of a whole shard, or of a batch in batch order. Labels
    are lists of class numbers, so that the size of a row does not grow with the number of classes."""

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
    positives_N: pa.ListArray
    """a list of int16 for each sample"""
    ignored_N: pa.ListArray
    """a list of int16 for each sample"""
    num_classes: int

    def __len__(self) -> int:
        return len(self.key_N)

    @property
    def target_NK(self) -> np.ndarray:
        """uint8 multi-hot, made anew; ignored classes are 0."""
        return multi_hot(self.positives_N, self.num_classes).view(np.uint8)

    @property
    def ignore_NK(self) -> np.ndarray:
        """bool multi-hot, made anew."""
        return multi_hot(self.ignored_N, self.num_classes)

    def take(self, row_N: np.ndarray | slice) -> SampleRows:
        """The rows numbered ``row_N``, in that order; for a slice, views."""
        columns: dict[str, Any] = {name: getattr(self, name)[row_N] for name in _ARRAYS}
        if isinstance(row_N, slice):
            columns |= {name: getattr(self, name)[row_N] for name in _LISTS}
        else:
            number_N = pa.array(row_N)
            columns |= {name: getattr(self, name).take(number_N) for name in _LISTS}
        return SampleRows(**columns, num_classes=self.num_classes)

    def put(self, position: int, other: SampleRows) -> None:
        """Replace one of these rows with the single row of ``other``."""
        for name in _ARRAYS:
            getattr(self, name)[position] = getattr(other, name)[0]
        for name in _LISTS:
            mine = getattr(self, name)
            setattr(self, name, pa.concat_arrays([mine[:position], getattr(other, name), mine[position + 1 :]]))

    @staticmethod
    def concatenate(parts: Sequence[SampleRows]) -> SampleRows:
        """The rows of all parts, in sequence; at least one part."""
        columns: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _ARRAYS}
        columns |= {name: pa.concat_arrays([getattr(part, name) for part in parts]) for name in _LISTS}
        return SampleRows(**columns, num_classes=parts[0].num_classes)


_LISTS = ("positives_N", "ignored_N")
_ARRAYS = tuple(name for name in SampleRows.__slots__ if name not in (*_LISTS, "num_classes"))


@dataclass(frozen=True, slots=True)
class Labels:
    """Which samples show which classes, M pairs of them in the order of the samples; no array grows with N times K."""

    key_hash_N: np.ndarray
    """uint64"""
    row_M: np.ndarray
    """int64, the sample's number"""
    class_M: np.ndarray
    """int64, ascending within a sample where the index has it so"""
    num_classes: int

    @property
    def count_K(self) -> np.ndarray:
        """Samples with each class, int64 (K,)."""
        return np.bincount(self.class_M, minlength=self.num_classes)


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
        self.counts = np.array(manifest.shards.num_samples, dtype=np.int64)
        self._first_sample_S = np.cumsum(self.counts) - self.counts
        self._kept_row_N: np.ndarray | None = None  # of a part: its rows, in the stored order
        self._first_kept_S = self._first_sample_S  # where those of each shard begin
        self.maps = ShardMaps(storage, manifest)
        self._indexes = _IndexCache(storage, manifest)

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs: not the open files and what was read of the indexes."""
        left = ("maps", "_indexes")
        return {name: value for name, value in self.__dict__.items() if name not in left}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.maps = ShardMaps(self.storage, self.manifest)
        self._indexes = _IndexCache(self.storage, self.manifest)

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
        if self._kept_row_N is not None:
            stored = [self._kept_row_N[self._first_kept_S[shard] + rows] for shard, rows in zip(shards, stored)]
        # The parts lie in shard order; `place_N` takes them back to the order asked for.
        place_N = np.argsort(grouped_N)
        parts = SampleRows.concatenate([index.take(rows) for index, rows in zip(indexes, stored)])
        return self._first_sample_S[shard_N] + np.concatenate(stored)[place_N], parts.take(place_N)

    def labels(self) -> Labels:
        """The positive classes of every sample, in the stored order. Reads every sample index once, some at a time.

        Raises:
            FormatError: a sample index is missing, damaged or of another build.
        """
        hashes, rows, classes = [], [], []
        for start, found in self._in_parts():
            hashes.append(found.key_hash_N)
            rows.append(start + np.repeat(np.arange(len(found)), found.positives_N.value_lengths().to_numpy()))
            classes.append(found.positives_N.flatten().to_numpy().astype(np.int64))
        return Labels(np.concatenate(hashes), np.concatenate(rows), np.concatenate(classes), len(self.classes))

    def contents(self) -> np.ndarray:
        """A number for each image file, uint64 (N,), in the stored order: its length and its CRC32, which are the same
        for equal files, and hardly ever for others. Reads every sample index once, some at a time.

        Raises:
            FormatError: a sample index is missing, damaged or of another build.
        """
        parts = [
            found.length_N.astype(np.uint64) << 32 | found.crc32_N.astype(np.uint64) for _, found in self._in_parts()
        ]
        return np.concatenate(parts)

    def _in_parts(self) -> Iterator[tuple[int, SampleRows]]:
        """The rows of all samples in the stored order, some at a time, and the number of the first of them."""
        plan = EpochPlan(self.counts, seed=0, epoch=0, window=_TOGETHER, shuffle=False)
        for start in range(0, self.num_samples, _TOGETHER):
            yield start, self.rows(*plan.items(start, min(start + _TOGETHER, self.num_samples)))[1]

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


def open_images(shards: Location) -> ShardSet:
    """The dataset at ``shards``. Raises UserError when it is not a dataset, or has no class list."""
    shard_set = open_shard_set(shards)
    if not shard_set.classes:
        raise UserError(
            f"{shards}: its dataset.json names no classes, so the targets mean nothing; build the shards again from a "
            "source with a class list (`msl build-shards --classes FILE`)"
        )
    return shard_set


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
            positives_N=table["positives"].combine_chunks(),
            ignored_N=table["ignored"].combine_chunks(),
            num_classes=len(self._manifest.classes),
        )


def multi_hot(lists: pa.ListArray, num_classes: int, column_K: np.ndarray | None = None) -> np.ndarray:
    """Class numbers of N samples as bool (N, K).

    Args:
        lists: a list of class numbers for each sample.
        num_classes: of the dataset.
        column_K: int64, the class number of each column; None: all, in their order.
    """
    # Arrow's own ways to these numbers look up a function each time, which takes longer for a batch than all the rest.
    ends_N1 = lists.offsets.to_numpy()
    row_M = np.repeat(np.arange(len(lists)), np.diff(ends_N1))
    number_M = lists.values.to_numpy()[ends_N1[0] : ends_N1[-1]]
    if column_K is not None:
        column_of = np.full(num_classes, -1, np.int64)
        column_of[column_K] = np.arange(len(column_K))
        number_M = column_of[number_M]
        row_M, number_M = row_M[number_M >= 0], number_M[number_M >= 0]
    hot_NK = np.zeros((len(lists), num_classes if column_K is None else len(column_K)), dtype=bool)
    hot_NK[row_M, number_M] = True
    return hot_NK
