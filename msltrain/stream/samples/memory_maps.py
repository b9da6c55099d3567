"""ShardMaps: the shards of a local folder as memory maps, open from one epoch to the next."""

from __future__ import annotations

import mmap
import threading
from collections import OrderedDict

from msldata.contract.manifest import FormatError, Manifest
from msldata.storage import Storage, StorageError, regular

_OPEN_MAPS = 128
"""Each takes a file descriptor."""


class ShardMaps:
    """Maps that are opened when they are first asked for; the least recently used ones are dropped.

    Unmapping a large shard takes milliseconds, and so does touching all its pages again: between the epochs of a small
    dataset, nothing is decoded during that time. Used from any thread.
    """

    def __init__(self, storage: Storage, manifest: Manifest):
        self._storage, self._manifest = storage, manifest
        self._lock = threading.Lock()
        self._maps: OrderedDict[int, mmap.mmap] = OrderedDict()

    def __len__(self) -> int:
        return len(self._maps)

    def open(self, shard: int) -> mmap.mmap:
        """The bytes of shard number ``shard``.

        Raises:
            FileNotFoundError, StorageError: the file is missing or cannot be read.
            FormatError: it has another length than the manifest says.
        """
        with self._lock:
            mapped = self._maps.get(shard)
            if mapped is None:
                mapped = self._maps[shard] = self._open(shard)
                if len(self._maps) > _OPEN_MAPS:
                    self._maps.popitem(last=False)
            self._maps.move_to_end(shard)
            return mapped

    def clear(self) -> None:
        """Close all files. A map lives until its last view is gone: a thread may still be decoding from it."""
        with self._lock:
            self._maps.clear()

    def _open(self, shard: int) -> mmap.mmap:
        info = self._manifest.shards[shard]
        path = self._storage.path(info.name)
        assert path is not None, "only local shards are mapped"
        try:
            with open(path, "rb", opener=regular) as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise FileNotFoundError(f"{path}: the shard is missing; copy or build the dataset again") from None
        except (OSError, ValueError) as error:
            raise StorageError(f"{path}: {error}") from error
        if len(mapped) != info.num_bytes:
            raise FormatError(
                f"{path}: {len(mapped)} bytes, the manifest says {info.num_bytes}; copy or build the dataset again"
            )
        return mapped
