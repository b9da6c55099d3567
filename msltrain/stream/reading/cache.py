"""ShardCache: whole shards of remote datasets in a folder of this host, shared by all processes on it.

    DIR/<sha256>.tar        a finished shard: its digest was checked before it got this name
    DIR/<sha256>.tar.part   one that is being fetched by the process that holds a lock on it
    DIR/.lock               held for the moment in which room is made

Shards are named by their digest, so a rebuilt dataset never meets its old bytes, and two datasets share what they have
in common. A finished one has a modification time that is made from its digest: any later write changes it, and the
shard is hashed again before it is used. Locks are the kernel's (flock): when a process is killed, its locks go with it.
A mapped shard carries a shared lock for as long as the map lives; eviction, oldest use (time of access) first, takes an
exclusive one and so skips all shards in use.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import mmap
import os
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event

from msldata.contract.manifest import ShardInfo
from msldata.storage import NoRangesError, Storage, clear_local_errors

_PIECE = 8 << 20
"""Bytes per ranged read of a shard: the most that has to be read again after a broken connection."""
_POLL = 0.05
_PATIENCE = 60.0
"""Seconds after which a process that fetches a shard and makes no progress is no longer waited for."""


class NotCached(Exception):
    """A shard that is not available through the cache now; its samples can be read from the source."""


class DamagedShard(NotCached):
    """A shard whose source does not match its digest; fetching it again at once would be pointless."""


class ShardCache:
    """A bounded folder of shards.

    Args:
        folder: on a local disk; created if it does not exist.
        limit_bytes: what its shards may take together, including those being fetched.

    Raises:
        StorageError: the folder cannot be made, written to, or locked.
    """

    def __init__(self, folder: str | Path, limit_bytes: int):
        self.folder = Path(folder).expanduser()
        self.limit_bytes = limit_bytes
        self._hashed: set[tuple[int, int]] = set()
        with clear_local_errors(f"{self.folder} (stream.cache)"):
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._locked():
                pass

    def open(self, shard: ShardInfo) -> mmap.mmap | None:
        """Map a finished shard, or None if it is not here. While the map lives the shard is not evicted."""
        path = self._path(shard)
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            state = os.fstat(file)
            if state.st_nlink == 0:  # evicted between open and lock
                return None
            if state.st_size != shard.num_bytes:
                path.unlink(missing_ok=True)
                return None
            if not self._is_untouched(file, state, shard):
                path.unlink(missing_ok=True)
                return None
            return mmap.mmap(file, 0, access=mmap.ACCESS_READ)  # keeps a descriptor of its own, and so the lock
        except BlockingIOError:  # being evicted right now
            return None
        finally:
            os.close(file)

    def fetch(self, shard: ShardInfo, storage: Storage, closing: Event) -> mmap.mmap:
        """Map a shard, fetching it first unless this or another process has done so; waits for one that is fetching it.

        Raises:
            NotCached: no room beside the shards in use, or the disk is full.
            DamagedShard: it does not match its digest, even when fetched a second time.
            CancelledError: ``closing`` was set meanwhile.
            StorageError, FileNotFoundError: the source cannot be read.
        """
        while not closing.is_set():
            if (mapped := self.open(shard)) is not None:
                return mapped
            try:
                with self._claimed(shard) as file:
                    if file is not None:
                        # It may have been finished between the look and the claim.
                        return self.open(shard) or self._download(file, shard, storage, closing)
            except FileNotFoundError:  # the source's, or somebody removed the folder
                raise
            except OSError as error:
                full = error.errno in (errno.ENOSPC, errno.EDQUOT)
                reason = "the disk is full" if full else (error.strerror or str(error)).lower()
                raise NotCached(f"{self.folder}: {reason}") from None
            self._check_progress(shard)
            closing.wait(_POLL)
        raise CancelledError

    def discard(self, shard: ShardInfo) -> None:
        """Drop a shard whose bytes turned out to be damaged; existing maps of it stay valid."""
        self._path(shard).unlink(missing_ok=True)

    def _is_untouched(self, file: int, state: os.stat_result, shard: ShardInfo) -> bool:
        """Whether a cached shard is still what was fetched: by its modification time, or else by its hash."""
        if state.st_mtime_ns != _mark(shard) and (state.st_ino, state.st_mtime_ns) not in self._hashed:
            with open(os.dup(file), "rb") as content:
                if hashlib.file_digest(content, "sha256").hexdigest() != shard.sha256:
                    return False
            self._hashed.add((state.st_ino, state.st_mtime_ns))
        with suppress(PermissionError):  # a copy that another user fetched
            os.utime(file, ns=(time.time_ns(), _mark(shard)))  # the former is the order of eviction
        return True

    def _path(self, shard: ShardInfo) -> Path:
        return self.folder / f"{shard.sha256}.tar"

    def _part(self, shard: ShardInfo) -> Path:
        return self.folder / f"{shard.sha256}.tar.part"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """The lock under which room is made."""
        with open(self.folder / ".lock", "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _claimed(self, shard: ShardInfo) -> Iterator[int | None]:
        """The unfinished file of a shard, locked by this call alone; None while another process has it."""
        part = self._part(shard)
        file = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Between open and lock the one before may have finished it: then this is no longer the part.
                ours = os.path.samestat(os.fstat(file), part.stat())
            except (BlockingIOError, FileNotFoundError):
                ours = False
            if not ours:
                yield None
                return
            try:
                yield file
            finally:
                # A finished shard has been renamed; anything else is of no use.
                with suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(file), part.stat()):
                        part.unlink()
        finally:
            os.close(file)

    def _check_progress(self, shard: ShardInfo) -> None:
        try:
            # Not the modification time, which a finished shard has been given before it is renamed.
            idle = time.time() - self._part(shard).stat().st_ctime
        except FileNotFoundError:
            return
        if idle > _PATIENCE:
            raise NotCached(f"{self.folder}: another process is fetching {shard.name} and makes no progress")

    def _download(self, file: int, shard: ShardInfo, storage: Storage, closing: Event) -> mmap.mmap:
        self._make_room(file, shard)
        for _ in range(2):
            digest, written = hashlib.sha256(), 0
            for piece in _pieces(shard, storage):
                if closing.is_set():
                    raise CancelledError
                if written + len(piece) > shard.num_bytes:
                    break  # another file; its digest says so
                digest.update(piece)
                _write(file, piece, written)
                written += len(piece)
            if digest.hexdigest() == shard.sha256:
                break
        else:
            raise DamagedShard(f"{storage.where(shard.name)}: does not match the digest in the manifest")
        os.fsync(file)
        os.utime(file, ns=(time.time_ns(), _mark(shard)))
        # A shared lock from here on, so that others can use the shard at once; no moment without one.
        fcntl.flock(file, fcntl.LOCK_SH)
        with self._locked():
            os.replace(self._part(shard), self._path(shard))
        return mmap.mmap(file, 0, access=mmap.ACCESS_READ)

    def _entries(self) -> Iterator[tuple[os.stat_result, Path]]:
        with os.scandir(self.folder) as found:
            for entry in found:
                if entry.name.endswith((".tar", ".tar.part")):
                    with suppress(FileNotFoundError):  # its process has just given up
                        yield entry.stat(), Path(entry.path)

    def _make_room(self, file: int, shard: ShardInfo) -> None:
        """Reserve the disk space of a shard, evicting what was used longest ago. Raises NotCached, OSError."""
        if shard.num_bytes > self.limit_bytes:
            raise NotCached(f"{self.folder}: a shard is larger than the limit of {self.limit_bytes / 1e9:g} GB")
        with self._locked():
            os.ftruncate(file, 0)
            entries = list(self._entries())
            excess = sum(state.st_size for state, _ in entries) + shard.num_bytes - self.limit_bytes
            # What a killed process left half-way goes first.
            entries.sort(key=lambda entry: (entry[1].suffix != ".part", entry[0].st_atime_ns))
            for state, path in entries:
                if excess <= 0:
                    break
                if path != self._part(shard) and _remove_unused(path):
                    excess -= state.st_size
            if excess > 0:
                raise NotCached(
                    f"{self.folder}: no room beside the shards in use within the limit of {self.limit_bytes / 1e9:g} GB"
                )
            # Actually reserved: a disk that is too full reports it here, and other processes see the space as taken.
            reserve = getattr(os, "posix_fallocate", lambda file, _, size: os.ftruncate(file, size))
            reserve(file, 0, shard.num_bytes)


def _pieces(shard: ShardInfo, storage: Storage) -> Iterator[bytes]:
    """A shard's bytes in order: by ranges, so that a cut connection costs one piece, or whole where there are none."""
    for start in range(0, shard.num_bytes, _PIECE):
        try:
            (piece,) = storage.read_ranges(shard.name, [start], [min(_PIECE, shard.num_bytes - start)])
        except NoRangesError:
            yield from storage.stream(shard.name)
            return
        yield piece


def _mark(shard: ShardInfo) -> int:
    """The modification time of a shard as it was fetched, in nanoseconds: whole seconds, which every file system
    keeps."""
    return int(shard.sha256[:7], 16) * 10**9


def _remove_unused(path: Path) -> bool:
    """Remove a file that no process has locked."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(file)
    return True


def _write(file: int, data: bytes, start: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, start)
        view, start = view[written:], start + written
