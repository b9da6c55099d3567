"""Ctrl-C and SIGTERM during training: finish the step, save, say how to continue."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from msldata.errors import UserError

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(UserError):
    """Training was asked to stop, and everything needed to continue is on disk.

    Attributes:
        signal: what asked, such as ``signal.SIGTERM``; None in a process that followed another one.
        step: steps taken.
        checkpoint: where they were saved.
    """

    def __init__(self, *, signal: signal.Signals | None, step: int, num_steps: int, checkpoint: str | Path):
        self.signal, self.step, self.num_steps, self.checkpoint = signal, step, num_steps, checkpoint
        asked = signal.name if signal is not None else "another process"
        super().__init__(
            f"stopped by {asked} after step {step} of {num_steps}; saved in {checkpoint}; "
            "run the same command with --resume auto to continue"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (self.signal, self.step, self.num_steps, self.checkpoint)


def _rebuilt(asked: signal.Signals | None, step: int, num_steps: int, checkpoint: str | Path) -> Interrupted:
    return Interrupted(signal=asked, step=step, num_steps=num_steps, checkpoint=checkpoint)


class StopSignals:
    """While entered, the first SIGINT or SIGTERM is only noted; a second one has its usual effect.

    Signals can only be caught by a program's main thread; in another thread this does nothing.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _note(self, number: int, _: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self.__exit__()
