"""What a fetcher is: it is asked for samples of a shard set ahead of need, and hands out their checked bytes."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from threading import Lock

import numpy as np

from msltrain.stream.samples.shardset import SampleRows

Buffer = bytes | memoryview


class Request(ABC):
    """Samples that were asked for."""

    @abstractmethod
    def read(self, position: int) -> Buffer:
        """The bytes of one of them, checked against their CRC-32; waits, from any thread. Each is read once.

        Raises:
            SampleError: they do not match, also when read anew from the source.
            StorageError, FileNotFoundError: they cannot be had.
            CancelledError: the fetcher was closed.
        """


class Fetcher(ABC):
    """Reads samples of one shard set, ahead of need; ``request`` is called from one thread at a time."""

    @abstractmethod
    def request(self, shard_N: np.ndarray, rows: SampleRows) -> Request:
        """Start reading samples."""

    @abstractmethod
    def close(self) -> None:
        """Give up what is not read yet, and let go of all files."""


noted: set[str] = set()
"""What `note_once` has said."""
_noting = Lock()


def note_once(message: str) -> None:
    """Tell the user of something that costs speed, not results; every message once in the life of the process."""
    with _noting:  # several threads meet the same full disk at the same moment
        if message in noted:
            return
        noted.add(message)
    # Without any configuration, logging prints the bare message to stderr.
    logging.getLogger("msltrain").warning("%s", message)


class SomeOf(Request):
    """A request for some samples of a batch, read by their positions in the batch.

    Args:
        request: for the samples alone.
        position_M: their positions in the batch, in the order of ``request``.
    """

    def __init__(self, request: Request, position_M: np.ndarray):
        self._request = request
        self._places = {position: place for place, position in enumerate(position_M.tolist())}

    def read(self, position: int) -> Buffer:
        return self._request.read(self._places[position])
