"""Progress bars, and lines that stay above them, on one terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from msldata.console import SafeConsole, err, is_watched, out

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
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar that vanishes when it is done; the block gets a function to feed it with (done, total).

    Results and messages that the block prints stay above it. Where nobody watches, as in a log, there is none.
    """
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bars(*columns) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


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
