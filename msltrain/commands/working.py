"""A word about what takes its time: at once on a terminal, and where nobody watches as soon as it is not fast."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

from msldata.console import err, show
from msldata.progress import Bars, progress_bar

FAST_SECONDS = 5.0
"""In a log, nothing is said of what is over by then."""
QUIET_SECONDS = 30.0
"""A line comes so often there."""


@contextmanager
def working(what: str) -> Iterator[None]:
    """Say what the block does: on a terminal beside the seconds, which vanish with it; in a log a line if it lasts.

    Args:
        what: such as "loading the model".
    """
    bars = Bars(SpinnerColumn("line"), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with bars:
        bars.add_task(what, total=None)
        with _lines(lambda: what, is_needed=bars.disable):
            yield


@contextmanager
def counting(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar, as `progress_bar` has; in a log a line within seconds and twice a minute, if it lasts."""
    so_far = [0, 0]

    def said() -> str:
        done, total = so_far
        return f"{what}: {done:,} of {total:,}" if total else what

    with progress_bar(what) as update, _lines(said, is_needed=is_unwatched()):

        def progress(done: int, total: int) -> None:
            so_far[:] = done, total
            update(done, total)

        yield progress


def is_unwatched() -> bool:
    """Whether nobody would see a bar."""
    return bool(Bars().disable)


@contextmanager
def _lines(said: Callable[[], str], *, is_needed: bool) -> Iterator[None]:
    """Lines on standard error while the block lasts."""
    is_over = threading.Event()

    def speak() -> None:
        patience = FAST_SECONDS
        began = time.monotonic()
        while not is_over.wait(patience):
            show(err, f"{said()}, {time.monotonic() - began:.0f} s so far")
            patience = QUIET_SECONDS

    thread = threading.Thread(target=speak, daemon=True)
    if is_needed:
        thread.start()
    try:
        yield
    finally:
        is_over.set()
        if is_needed:
            thread.join()
