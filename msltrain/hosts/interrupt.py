"""Ctrl-C, SIGTERM and similar signals during training: finish the step, save, say how to continue."""

from __future__ import annotations

import os
import shlex
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from msldata.errors import UserError
from msltrain.hosts.rank_output import is_first_process

STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)
)
"""Ctrl-C; a scheduler or shutdown; a closed terminal; what SLURM's ``--signal=USR1@120`` sends."""
SAVED = 75
"""Exit code of a run that was stopped and has saved: "temporary failure, try again" of sysexits.h."""
_ONE_SECOND = 1.0
"""A signal that arrives again within this time is the same one, sent to the process and to its whole group."""


class Interrupted(UserError):
    """Training was asked to stop, and everything needed to continue is on disk.

    Attributes:
        signal: what asked, such as ``signal.SIGTERM``; None in a process that followed another one.
        step: steps taken.
        checkpoint: where they were saved.
        kept: the run's local copy, if its place could not be reached; "" if it is where it should be.
    """

    exit_code = SAVED

    def __init__(
        self,
        *,
        signal: signal.Signals | None,
        step: int,
        num_steps: int,
        checkpoint: str | Path,
        kept: str | Path = "",
    ):
        self.signal, self.step, self.num_steps, self.checkpoint, self.kept = signal, step, num_steps, checkpoint, kept
        asked = signal.name if signal is not None else "another process"
        super().__init__(
            f"stopped by {asked} after step {step} of {num_steps}; saved in {checkpoint}; "
            f"run the same command with {f'--run {shlex.quote(str(kept))} ' if kept else ''}--resume auto to continue"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (self.signal, self.step, self.num_steps, self.checkpoint, self.kept)


def _rebuilt(
    asked: signal.Signals | None, step: int, num_steps: int, checkpoint: str | Path, kept: str | Path
) -> Interrupted:
    return Interrupted(signal=asked, step=step, num_steps=num_steps, checkpoint=checkpoint, kept=kept)


class StopSignals:
    """While entered, the first of ``STOP_SIGNALS`` is only noted and reported; a second has its usual effect.

    Signals can only be caught by a program's main thread; in another thread this does nothing. A signal that is
    ignored, such as SIGHUP under nohup, stays ignored.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}
        self._since = 0.0

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            caught = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
            self._previous = {number: signal.signal(number, self._note) for number in caught}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.received is None:
            self.received, self._since = signal.Signals(number), time.monotonic()
            saved = "this step will be finished, then everything will be saved"
            _say(f"{self.received.name}: {saved}; a second time ends at once")
        elif time.monotonic() - self._since > _ONE_SECOND:
            self.__exit__()
            os.kill(os.getpid(), number)


def _say(text: str) -> None:
    """Write a line to stderr from a signal handler: the interrupted code may hold a console's lock."""
    if is_first_process():
        with suppress(OSError):  # the terminal is gone
            os.write(2, f"\r{text}\n".encode())
