"""A worker's tie to its parent: a pipe that carries nothing and closes when the parent ends."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any


class Lifeline:
    """The parent's side: closing it, or ending in any way, tells every worker.

    Args:
        context: the ``multiprocessing`` context that starts the workers.

    Attributes:
        end: what each worker is given, for `watch`.
    """

    def __init__(self, context: Any):
        self.end, self._held = context.Pipe(duplex=False)

    def close(self) -> None:
        """Tell the workers to end."""
        self._held.close()
        self.end.close()


def watch(end: Connection, then: Callable[[], None]) -> None:
    """In a worker: call ``then`` in a separate thread once the parent has closed its side or is gone."""

    def wait() -> None:
        with suppress(EOFError, OSError):
            end.recv_bytes()
        then()

    threading.Thread(target=wait, daemon=True).start()
