"""One command on one host: start its processes, act as their terminal, and restart them when one is lost.

torchrun does the same for several hosts (docs/runs.md). It cannot tell a mistake from an accident, though: it restarts
a run that rejects its data again and again, repeats each message once per process, and ends with 1 whatever happened.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from msldata.console import err
from msldata.errors import UserError
from msltrain.hosts.interrupt import SAVED, STOP_SIGNALS
from msltrain.hosts.program import program_command, program_environment

MAX_RESTARTS = 3
"""Restarts after lost workers, in a run that may continue from its checkpoint (``--resume auto``)."""
_MISTAKE = 2
_GRACE = 10.0
"""Seconds that the others have to end after one has: longer than it takes to notice a lost connection."""
_POLL = 0.02


def num_processes(processes: str, device: str) -> int:
    """How many processes this command starts.

    Args:
        processes: ``auto`` (one per visible GPU) or a number.
        device: ``auto``, ``cpu`` or ``cuda``; on CPUs any number is allowed.

    Returns:
        1 where there is no GPU, and inside a process that this command has started.

    Raises:
        UserError: not a number, or more than there are GPUs.
    """
    if "LOCAL_RANK" in os.environ:
        return 1
    if processes != "auto" and not (processes.isdecimal() and int(processes)):
        raise UserError(f"--processes is '{processes}'; give a number, or auto for one per GPU")
    if processes == "1" or (processes == "auto" and device == "cpu"):
        return 1
    import torch

    available = 0 if device == "cpu" else torch.cuda.device_count()
    if processes == "auto":
        return max(1, available)
    if int(processes) > available > 0:
        raise UserError(
            f"--processes {processes}: this host has {available} GPUs; give at most that many, or auto; processes on "
            "CPUs need --device cpu, in training --set run.device=cpu"
        )
    return int(processes)


def launch(arguments: Sequence[str], processes: int, *, max_restarts: int = 0) -> int:
    """Run this program once per process and return the exit code of all.

    Ctrl-C reaches the processes directly, since they share the terminal; signals that reach only this one are passed
    on.

    Args:
        arguments: of the command line, without the program.
        processes: on this host; they meet at a free loopback port.
        max_restarts: how often all are started again after one was lost. They must then continue from a checkpoint.

    Returns:
        0; 2 after a mistake; `SAVED` after a stop that was saved; else the exit code of the process that failed, or 128
        + the number of the signal that ended it.
    """
    with _Host() as host:
        return _launch(host, arguments, processes, max_restarts)


def _launch(host: _Host, arguments: Sequence[str], processes: int, max_restarts: int) -> int:
    for restart in range(max_restarts + 1):
        with host.started(arguments, processes) as workers:
            codes = _wait(workers)
        lost = {rank: code for rank, code in enumerate(codes) if code < 0}
        if host.heard or not lost or _MISTAKE in codes:
            break
        rank, code = next(iter(lost.items()))
        how = f"process {rank} of {processes} was lost ({signal.Signals(-code).name})"
        if restart < max_restarts:
            err.print(f"{how}; all start again from the last checkpoint, restart {restart + 1} of {max_restarts}")
        elif max_restarts:
            err.print(f"{how} once more; the same command goes on from the last checkpoint", soft_wrap=True)
        else:
            err.print(f"{how}; most likely memory ran out", soft_wrap=True)
    return _exit_code(codes)


def _exit_code(codes: Sequence[int]) -> int:
    if _MISTAKE in codes:
        return _MISTAKE
    # The other exit codes are consequences of the process that was ended by a signal.
    code = min(codes) or next((code for code in codes if code), 0)
    return code if code >= 0 else 128 - code


class _Host:
    """The processes of this host; while entered, signals that would end this one go to them, and they save and end."""

    def __init__(self) -> None:
        self.heard: list[int] = []
        self._workers: list[subprocess.Popen] = []
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> _Host:
        for number in STOP_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup; they ignore it, too
                self._before[number] = signal.signal(number, self._pass_on)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _pass_on(self, number: int, _: FrameType | None) -> None:
        self.heard.append(number)
        for worker in self._workers:
            worker.send_signal(number)

    @contextmanager
    def started(self, arguments: Sequence[str], processes: int) -> Iterator[list[subprocess.Popen]]:
        """The processes, set up to find each other as torchrun does; none outlives the block."""
        from torch.distributed import TCPStore

        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        environment = {
            "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes)),
            **program_environment(),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",  # no process has to host the store, and it outlives each of them
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes),
        }
        workers = self._workers = []
        try:
            for rank in range(processes):
                place = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                workers.append(subprocess.Popen(program_command(*arguments), env=environment | place))
            for number in self.heard:  # perhaps before all were there
                for worker in workers:
                    worker.send_signal(number)
            yield workers
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
            del store


def _wait(workers: Sequence[subprocess.Popen]) -> list[int]:
    """The exit codes of all; once one has failed, the others get only a while to end."""
    deadline = None
    while True:
        codes = [worker.poll() for worker in workers]
        if None not in codes:
            return [code for code in codes if code is not None]
        if deadline is None and any(code not in (None, 0, SAVED) for code in codes):
            deadline = time.monotonic() + _GRACE
        if deadline is not None and time.monotonic() > deadline:
            return [_GAVE_UP if code is None else code for code in codes]
        time.sleep(_POLL)


_GAVE_UP = 1
"""Exit code of a process that had to be killed because another one had failed."""
