"""The interface of a fetcher: it is asked in advance for samples of a shard set, and hands out their checked bytes."""

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
            SampleError: they do not match, even when read again from the source.
            StorageError, FileNotFoundError: they are not available.
            CancelledError: the fetcher was closed.
        """


class Fetcher(ABC):
    """Reads samples of one shard set in advance; ``request`` is called from one thread at a time."""

    @abstractmethod
    def request(self, shard_N: np.ndarray, rows: SampleRows) -> Request:
        """Start reading samples."""

    @abstractmethod
    def close(self) -> None:
        """Drop what is not read yet, and close all files."""


noted: set[str] = set()
"""The messages that `note_once` has shown."""
_noting = Lock()


def note_once(message: str) -> None:
    """Tell the user about something that costs speed, not results; each message once per process."""
    with _noting:  # several threads may find the disk full at the same moment
        if message in noted:
            return
        noted.add(message)
    # Without any configuration, logging prints the bare message to stderr.
    logging.getLogger("msltrain").warning("%s", message)


class SomeOf(Request):
    """A request for some samples of a batch, addressed by their positions in the batch.

    Args:
        request: the request for only those samples.
        position_M: their positions in the batch, in the order of ``request``.
    """

    def __init__(self, request: Request, position_M: np.ndarray):
        self._request = request
        self._places = {position: place for place, position in enumerate(position_M.tolist())}

    def read(self, position: int) -> Buffer:
        return self._request.read(self._places[position])
