"""Progress bars, and lines that stay above them, on one terminal; where nobody watches, a line about what lasts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from msldata.console import SafeConsole, err, is_watched, out, show

FAST_SECONDS = 5.0
"""In a log, nothing is said of what is over by then."""
QUIET_SECONDS = 30.0
"""A line comes so often there."""

_alive: list[Bars] = []


class Bars(Progress):
    """Bars that vanish when they are done, and none where nobody watches: Rich would leave empty lines for them.

    Bars and lines must go through one console, or they tear each other: that of the results where a terminal shows
    them, else that of the messages. What either prints in the meantime stays above the bars.

    Args:
        columns: of each bar.
        results: the console of the results.
        messages: where the bars go when ``results`` is a file.
    """

    def __init__(self, *columns: ProgressColumn, results: Console = out, messages: Console = err):
        console = results if is_watched(results) else messages
        watched = is_watched(console) and not console.is_dumb_terminal
        super().__init__(
            *columns,
            console=console,
            transient=True,
            disable=not watched,
            redirect_stdout=is_watched(results),  # a file gets what other libraries print to it
            redirect_stderr=is_watched(messages),
        )

    def start(self) -> None:
        super().start()
        if not self.disable:
            _alive.append(self)
            SafeConsole.bars_on = self.console

    def stop(self) -> None:
        if self in _alive:
            _alive.remove(self)
            SafeConsole.bars_on = _alive[-1].console if _alive else None
        super().stop()


@contextmanager
def no_bars() -> Iterator[None]:
    """Take the bars away for the block, in which somebody is asked something."""
    taken = list(_alive)
    for bars in taken:
        bars.stop()
    try:
        yield
    finally:
        for bars in taken:
            bars.start()


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
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar that vanishes when it is done; the block gets a function to feed it with (done, total).

    Results and messages that the block prints stay above it. Where nobody watches, as in a log, a line comes within
    seconds and then twice a minute, if it lasts.
    """
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    so_far = [0, 0]

    def said() -> str:
        done, total = so_far
        return f"{what}: {done:,} of {total:,}" if total else what

    with Bars(*columns) as bar, _lines(said, is_needed=bar.disable):
        task = bar.add_task(what, total=None)

        def update(done: int, total: int) -> None:
            so_far[:] = done, total
            bar.update(task, completed=done, total=total)

        yield update


@contextmanager
def byte_progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar for bytes, fed with (what is being done, bytes done, bytes in all)."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Bars(*columns, TimeRemainingColumn()) as bar:
        task, current = bar.add_task("connecting", total=None), "connecting"

        def update(what: str, done: int, total: int) -> None:
            nonlocal current
            if what != current:
                bar.reset(task, description=what, total=total)  # another speed, another time left
                current = what
            bar.update(task, completed=done, total=total)

        yield update


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
