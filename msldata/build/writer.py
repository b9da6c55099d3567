"""Writes one shard: a deterministic USTAR tar and, after it, the sample index whose presence marks it complete.

The tar is staged as a hidden ``.NAME.<pid>.part`` file beside its place (in a temporary folder when the destination is
remote), forced to disk and moved in.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import queue
import secrets
import shutil
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zlib_ng.zlib_ng import crc32

from msldata.contract.format import encode_index, with_digests
from msldata.contract.manifest import ShardInfo, index_name
from msldata.contract.tar import BLOCK_BYTES, END_BYTES, padding, tar_header
from msldata.storage import PART_SUFFIX, Storage, clear_local_errors


class ShardWriter:
    """One shard being written; leaving the ``with`` block without ``publish`` leaves nothing behind.

    Args:
        out: the dataset folder, local or remote.
        name: file name of the tar.
        kind: ``manifest.IMAGES`` or ``manifest.KEEP_MASKS``; decides the columns of the sample index.
        plan: digest of the build plan, stored in the index.
    """

    def __init__(self, out: Storage, name: str, *, kind: str, plan: str):
        self.out = out
        self.name = name
        self.kind = kind
        self.plan = plan
        self._rows: list[dict[str, Any]] = []
        self._temporary: str | None = None
        with clear_local_errors(
            out.where(name) if out.path() else f"{tempfile.gettempdir()} (TMPDIR, staging for {name})"
        ):
            place = out.path(name)
            if place is None:
                self._temporary = tempfile.mkdtemp(prefix="msl-shard-")
                place = Path(self._temporary, name)
            place.parent.mkdir(parents=True, exist_ok=True)
            # Parts of an array job on several machines may write one shard twice, and have one process id.
            self._staged = place.with_name(f".{name}.{os.getpid()}-{secrets.token_hex(4)}{PART_SUFFIX}")
            self._file = HashedFile(self._staged)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._staged.unlink(missing_ok=True)
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)

    @property
    def num_samples(self) -> int:
        """Samples added so far."""
        return len(self._rows)

    def add(self, key: str, members: Sequence[tuple[str, bytes]], row: Mapping[str, Any]) -> None:
        """Append one sample; its members stay adjacent, in the order given.

        Args:
            key: the sample's key, checked by the plan with ``format.check_key``.
            members: pairs of suffix and bytes. The first is the image or keep mask that the index points at.
            row: the index columns besides ``key``, ``offset``, ``length`` and ``crc32``.
        """
        suffix, data = members[0]
        position = {
            "key": key,
            "offset": self._file.num_bytes + BLOCK_BYTES,
            "length": len(data),
            "crc32": crc32(data),
        }
        self._rows.append({**position, **row})
        # The image is written where it lies; everything after it is joined into one piece.
        rest = [padding(len(data))]
        for other, content in members[1:]:
            rest += (tar_header(key + other, len(content)), content, padding(len(content)))
        try:
            self._file.add((tar_header(key + suffix, len(data)), data, b"".join(rest)))
        except OSError:
            with clear_local_errors(str(self._staged)):
                raise

    def publish(self, report: Mapping[str, Any] | None = None) -> ShardInfo:
        """Finish the tar, move it in, then write its sample index. Raises StorageError (disk full, denied …).

        Args:
            report: what a resumed build must know about this shard without reading it again; must be valid as JSON.
        """
        with clear_local_errors(str(self._staged)):
            self._file.add((bytes(END_BYTES),))
            digest = self._file.finish()
        info = ShardInfo(
            name=self.name,
            num_samples=self.num_samples,
            num_bytes=self._file.num_bytes,
            sha256=digest,
        )
        index = encode_index(self.kind, self._rows, info, self.plan, report)
        # An older index must not vouch for the new tar. One for these very bytes stays: it is true, and another build
        # of the same plan may be publishing its manifest at this moment.
        if not self._is_published(index):
            self.out.delete(index_name(self.name))
        self.out.put(self.name, self._staged)
        self.out.put(index_name(self.name), index)
        return with_digests(info, index, self._rows)

    def _is_published(self, index: bytes) -> bool:
        try:
            return self.out.read(index_name(self.name)) == index
        except FileNotFoundError:
            return False


_CHUNK_BYTES = 1 << 20
_NUM_CHUNKS = 3  # one is filled, one is hashed and written, one waits


class HashedFile:
    """A new file, its size and its SHA-256; nothing is guaranteed to be on disk before ``finish``.

    What is added is gathered in chunks of a megabyte. Hashing and writing a chunk does not hold the interpreter lock. A
    file smaller than a chunk starts no thread.

    Every method raises OSError when the file cannot be written.
    """

    def __init__(self, path: Path):
        self.num_bytes = 0
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        self._digest = hashlib.sha256()
        self._chunk = _new_chunk()
        self._filled = 0
        self._thread: threading.Thread | None = None
        self._full: queue.SimpleQueue[memoryview | None] = queue.SimpleQueue()
        self._free: queue.SimpleQueue[memoryview] = queue.SimpleQueue()
        self._failure: OSError | None = None

    def add(self, pieces: Sequence[bytes]) -> None:
        """Append ``pieces`` one after the other."""
        for piece in pieces:
            end = self._filled + len(piece)
            if end < _CHUNK_BYTES:
                self._chunk[self._filled : end] = piece
                self._filled = end
            else:
                self._add_across_chunks(memoryview(piece))
            self.num_bytes += len(piece)

    def finish(self) -> str:
        """Write what is left, force the file to disk, close it; returns the SHA-256 in hex."""
        self._join()
        if self._failure is not None:
            raise self._failure
        self._write_direct(False)  # the last piece need not fill a block
        self._hash_and_write(self._chunk[: self._filled])
        os.fsync(self._descriptor)
        self.close()
        return self._digest.hexdigest()

    def close(self) -> None:
        """Stop without finishing; after ``finish`` this does nothing."""
        self._join()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _add_across_chunks(self, piece: memoryview) -> None:
        while piece:
            part = piece[: _CHUNK_BYTES - self._filled]
            self._chunk[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            piece = piece[len(part) :]
            if self._filled == _CHUNK_BYTES:
                self._hand_over()

    def _hand_over(self) -> None:
        if self._thread is None:
            self._write_direct(True)
            for _ in range(_NUM_CHUNKS - 1):
                self._free.put(_new_chunk())
            self._thread = threading.Thread(target=self._write_chunks, name="write_chunks", daemon=True)
            self._thread.start()
        self._full.put(self._chunk)
        self._chunk, self._filled = self._free.get(), 0
        if self._failure is not None:
            raise self._failure

    def _write_chunks(self) -> None:
        while (chunk := self._full.get()) is not None:
            if self._failure is None:  # after a failure, chunks are only handed back, so that nothing waits for one
                try:
                    self._hash_and_write(chunk)
                except OSError as failure:
                    self._failure = failure
            self._free.put(chunk)

    def _join(self) -> None:
        if self._thread is not None:
            self._full.put(None)
            self._thread.join()
            self._thread = None

    def _hash_and_write(self, data: memoryview) -> None:
        self._digest.update(data)
        while data:
            try:
                written = os.write(self._descriptor, data)
            except OSError as error:
                if error.errno != errno.EINVAL or not self._write_direct(False):
                    raise
                continue  # no direct writes on this file system, or no longer at the edge of a block
            data = data[written:]  # what is left is written next, which raises on a full disk

    def _write_direct(self, wanted: bool) -> bool:
        """Bypass the page cache or not; returns whether that changed anything."""
        try:
            import fcntl

            flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
            wanted_flags = flags | os.O_DIRECT if wanted else flags & ~os.O_DIRECT
            fcntl.fcntl(self._descriptor, fcntl.F_SETFL, wanted_flags)
        except (ImportError, AttributeError, OSError):  # not Linux, or a file system without direct writes
            return False
        return flags != wanted_flags


def _new_chunk() -> memoryview:
    """Memory that begins on a page boundary, as direct writes require."""
    return memoryview(mmap.mmap(-1, _CHUNK_BYTES))
