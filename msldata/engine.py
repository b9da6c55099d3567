"""Where the shard tasks of a build run: local worker processes. Tasks are independent and idempotent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from typing import TypeVar

from msldata.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")


def available_cpus() -> int:
    """Processors this process may use, which in a container or a batch job can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_tasks(
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    num_workers: int | None = None,
    on_result: Callable[[Result], None] | None = None,
) -> list[Result]:
    """Run ``function`` on every task and return the results in the order of the tasks.

    The first error stops all other tasks and is raised as itself. No worker outlives this process, however it ends.

    Args:
        function: a function at the top level of a module; it and the tasks are pickled.
        tasks: one argument each.
        num_workers: processes; 1 runs in this process. Default: one per available processor.
        on_result: called in this process with each result as soon as it is there, in any order.

    Raises:
        UserError: a worker process was killed from outside, or ``num_workers`` is below 1.
    """
    if num_workers is not None and num_workers < 1:
        raise UserError(f"num_workers is {num_workers}; it must be 1 or more")
    num_workers = min(num_workers or available_cpus(), len(tasks))
    if num_workers <= 1:
        return _run_here(function, tasks, on_result)
    # Never "fork": the caller may have threads (a progress bar, obstore's runtime), whose locks a fork would copy held.
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if "forkserver" in methods:
        context.set_forkserver_preload([function.__module__])
    lifeline, held_end = context.Pipe(duplex=False)
    executor = ProcessPoolExecutor(
        num_workers, context, initializer=_start_worker, initargs=(lifeline, dict(os.environ))
    )
    try:
        futures = [executor.submit(function, task) for task in tasks]
        for future in as_completed(futures):
            result = future.result()
            if on_result is not None:
                on_result(result)
        return [future.result() for future in futures]
    except BrokenProcessPool:
        held_end.close()
        raise UserError(
            "a worker process was killed, most likely because memory ran out; run the same command again to go on "
            "from the finished shards, with fewer --workers if it happens again"
        ) from None
    except BaseException:
        held_end.close()
        raise
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
        held_end.close()
        lifeline.close()


def _run_here(
    function: Callable[[Task], Result], tasks: Sequence[Task], on_result: Callable[[Result], None] | None
) -> list[Result]:
    results = []
    for task in tasks:
        results.append(function(task))
        if on_result is not None:
            on_result(results[-1])
    return results


def _start_worker(lifeline: Connection, environment: dict[str, str]) -> None:
    """Tie a worker's life to its parent's: the pipe ends when the parent closes its end, or dies of anything."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole process group; the parent decides
    os.environ.update(environment)  # the fork server keeps the environment of its own start, without later credentials
    threading.Thread(target=_exit_with_parent, args=(lifeline,), daemon=True).start()


def _exit_with_parent(lifeline: Connection) -> None:
    try:
        lifeline.recv_bytes()
    except (EOFError, OSError):
        os._exit(1)
