"""Readers: threads that wait for slow storage and never keep the program from ending."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any

from msldata.storage.remoteerrors import under_way


class Readers:
    """A fixed number of daemon threads that run blocking calls in the order they are given.

    ``concurrent.futures.ThreadPoolExecutor`` joins its threads when the interpreter ends, so a server that stalls would
    hold up Ctrl-C until its last timeout.
    """

    def __init__(self, num_threads: int):
        self._closing = False
        self._num_threads = num_threads
        self._calls: SimpleQueue[tuple[Future, Callable[..., Any], tuple[Any, ...]] | None] = SimpleQueue()
        for number in range(num_threads):
            threading.Thread(target=self._run, name=f"msl-read-{number}", daemon=True).start()

    def submit(self, call: Callable[..., Any], *arguments: Any) -> Future:
        """Run ``call(*arguments)`` on one of the threads. Calls still waiting when ``close`` is called are
        cancelled."""
        future: Future = Future()
        self._calls.put((future, call, arguments))
        return future

    def close(self) -> None:
        """Let each thread end after its current call; does not wait for them."""
        self._closing = True
        for _ in range(self._num_threads):
            self._calls.put(None)

    def _run(self) -> None:
        while (task := self._calls.get()) is not None:
            future, call, arguments = task
            if self._closing:
                future.cancel()
                continue
            try:
                with under_way():
                    result = call(*arguments)
                future.set_result(result)
                del result
            except BaseException as error:
                future.set_exception(error)
            # A thread that waits for work must not keep the last result's memory.
            del task, future, call, arguments
