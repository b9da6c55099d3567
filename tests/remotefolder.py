"""RemoteFolder: a local folder that the stream takes for a remote one; it counts, spoils and stalls as it is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from msldata.storage import LocalStorage
from msltrain.stream.samples.shardset import ShardSet, open_shard_set


class Tracked(bytes):
    """Bytes that tell their folder when they are freed."""

    folder: RemoteFolder

    def __del__(self) -> None:
        with self.folder.lock:
            self.folder.held -= len(self)


class RemoteFolder(LocalStorage):
    """Attributes: the next ``spoil`` reads of tars come with wrong bytes; reads wait while ``stall``, and ``stalled``
    is set once one does; ``reads`` lists (name, start, length); ``peak`` is the most bytes of tars that were handed
    out and not freed again at any time."""

    def __init__(self, root: Path):
        super().__init__(root)
        self.spoil = 0
        self.stall = False
        self.stalled = threading.Event()
        self.reads: list[tuple[str, int, int]] = []
        self.held = self.peak = 0
        self.lock = threading.Lock()

    def path(self, name=""):
        return None

    def read_ranges(self, name, starts, lengths):
        while self.stall:
            self.stalled.set()
            time.sleep(0.02)
        with self.lock:
            self.reads += [(name, start, length) for start, length in zip(starts, lengths)]
        return [self._handed_out(part) for part in super().read_ranges(name, starts, lengths)]

    @contextmanager
    def stalling(self) -> Iterator[None]:
        """Reads wait until the block ends or ``stall`` is over: a test that fails in it must not wait for them."""
        self.stall = True
        try:
            yield
        finally:
            self.stall = False

    def _handed_out(self, part: bytes) -> bytes:
        with self.lock:
            if self.spoil > 0:
                self.spoil -= 1
                part = bytes(len(part))
            self.held += len(part)
            self.peak = max(self.peak, self.held)
        tracked = Tracked(part)
        tracked.folder = self
        return tracked


def remote(folder: Path) -> ShardSet:
    """The dataset in ``folder`` as if it were remote."""
    return ShardSet(RemoteFolder(folder), open_shard_set(folder).manifest)
