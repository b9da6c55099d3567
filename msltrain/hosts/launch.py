"""One command on a host with several GPUs: start one process per GPU through torchrun, and be their terminal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence

from msldata.errors import UserError

MAX_RESTARTS = 3
"""After lost workers, in a run that may go on where it was (``--resume auto``)."""


def num_processes(gpus: str) -> int:
    """How many processes to start.

    Args:
        gpus: ``auto`` (all that are visible) or a number.

    Returns:
        1 where there is no GPU, and inside a process that torchrun started already.

    Raises:
        UserError: not a number, or more than there are.
    """
    if "LOCAL_RANK" in os.environ:
        return 1
    if gpus != "auto" and not (gpus.isdigit() and int(gpus)):
        raise UserError(f"--gpus is '{gpus}'; give a number, or auto for all there are")
    import torch

    available = torch.cuda.device_count()
    if gpus == "auto":
        return max(1, available)
    if int(gpus) > max(1, available):
        raise UserError(f"--gpus {gpus}: this host has {available}; give at most that many, or auto")
    return int(gpus)


def launch(command: Sequence[str], processes: int, *, max_restarts: int = 0) -> int:
    """Run a Python program once per process under torchrun and return the exit code.

    Ctrl-C reaches the processes directly, for they share the terminal; this one waits until they have saved and ended.
    SIGTERM reaches this one alone and is passed on.

    Args:
        command: the program's file and its arguments, as in ``sys.argv``.
        processes: on this host; the rendezvous is on a free loopback port.
        max_restarts: how often all processes are started again after one was lost. They must then go on where they
            were.
    """
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    child = subprocess.Popen([*torchrun, f"--max-restarts={max_restarts}", *command])
    before = signal.signal(signal.SIGTERM, lambda number, frame: child.send_signal(number))
    try:
        while True:
            try:
                return child.wait()
            except KeyboardInterrupt:
                continue
    finally:
        signal.signal(signal.SIGTERM, before)
