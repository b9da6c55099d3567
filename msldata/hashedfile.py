"""A file that is hashed and written by a thread of its own, past the page cache, while the next bytes are fetched.

Both choices were measured: the thread brings one worker to nearly two processors' speed, and direct writes take a third
of the processor time of cached ones and leave nothing for the final flush to wait for.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import queue
import threading
from collections.abc import Sequence
from pathlib import Path

_CHUNK_BYTES = 1 << 20
_NUM_CHUNKS = 3  # one is filled, one is hashed and written, one waits


class HashedFile:
    """A new file, its size and its SHA-256; nothing is certain to be written before ``finish``.

    What is added is gathered in chunks of a megabyte. Hashing and writing such a chunk needs no interpreter lock. A
    file of less than a chunk starts no thread.

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
        """Stop where it is; after ``finish`` this does nothing."""
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
            if self._failure is None:  # after a failure chunks are only handed back, so that nobody waits for one
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
        """Go past the page cache or not; returns whether that changed anything."""
        try:
            import fcntl

            flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
            wanted_flags = flags | os.O_DIRECT if wanted else flags & ~os.O_DIRECT
            fcntl.fcntl(self._descriptor, fcntl.F_SETFL, wanted_flags)
        except (ImportError, AttributeError, OSError):  # not Linux, or a file system without direct writes
            return False
        return flags != wanted_flags


def _new_chunk() -> memoryview:
    """Memory that begins at a page, as direct writes ask for."""
    return memoryview(mmap.mmap(-1, _CHUNK_BYTES))
