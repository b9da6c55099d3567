"""Tasks in local worker processes, one pipe each: a worker that dies affects only its own task."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import traceback
import types
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, TypeVar

from msldata.errors import UserError
from msldata.workers.lifeline import Lifeline, watch
from msldata.workers.no_pandas import hide_pandas

Task = TypeVar("Task")
Result = TypeVar("Result")

_ATTEMPTS = 2


@dataclass(frozen=True, slots=True, eq=False)
class _Worker:
    process: Any
    pipe: Connection


def prepare_workers(module: str) -> None:
    """Begin to start the process that workers are forked from, and return at once.

    It takes a fifth of a second to import ``module``, the one that holds the tasks' function; if it is called before a
    build plans its shards, that time costs nothing.
    """
    _context(module)


def run_in_processes(
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    num_workers: int,
    on_result: Callable[[Result], None] | None,
) -> list[Result]:
    """``engine.run_tasks`` with ``num_workers`` processes."""
    context = _context(function.__module__)
    lifeline = Lifeline(context)
    waiting = deque(range(len(tasks)))
    deaths: Counter[int] = Counter()
    results: dict[int, Result] = {}
    busy: dict[Connection, tuple[_Worker, int]] = {}

    def start_worker() -> _Worker:
        ours, theirs = context.Pipe()
        # Sent, not inherited: the fork server keeps the environment it started with, without later credentials.
        arguments = (function, theirs, lifeline.end, dict(os.environ))
        process = context.Process(target=_work, args=arguments, daemon=True)
        with without_main(function.__module__):
            process.start()
        theirs.close()
        return _Worker(process, ours)

    def give_task(worker: _Worker) -> None:
        if not waiting:
            worker.pipe.close()  # a worker without a task sees the end of its pipe and ends
            worker.process.join()
            return
        index = waiting.popleft()
        busy[worker.pipe] = worker, index
        with suppress(BrokenPipeError):  # it died; the pipe will say so when it is read
            worker.pipe.send(tasks[index])

    try:
        for worker in [start_worker() for _ in range(num_workers)]:
            give_task(worker)
        while busy:
            for pipe in wait(list(busy)):
                worker, index = busy[pipe]  # type: ignore[index]
                try:
                    result, error, trace = worker.pipe.recv()
                except (EOFError, ConnectionResetError):
                    worker.process.join()
                    del busy[worker.pipe]
                    deaths[index] += 1
                    if deaths[index] == _ATTEMPTS:
                        raise UserError(
                            f"{_ATTEMPTS} worker processes were killed by the same work, most likely because memory "
                            "ran out; run the same command again to go on from what is finished, with fewer --workers"
                        ) from None
                    waiting.appendleft(index)
                    give_task(start_worker())
                    continue
                if error is not None:
                    error.add_note(trace)
                    raise error
                del busy[worker.pipe]
                results[index] = result
                give_task(worker)
                if on_result is not None:
                    on_result(result)
    finally:
        # Workers that are still busy after an error are stopped at once.
        lifeline.close()
        for worker, _ in busy.values():
            worker.process.join()
            worker.pipe.close()
    return [results[index] for index in range(len(tasks))]


def _context(module: str) -> Any:
    """Where workers come from; the process that they are forked from is started unless it is running already."""
    # Never "fork": the caller may have threads (a progress bar, obstore's runtime), and a fork copies locks they hold.
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    from multiprocessing.forkserver import ensure_running

    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module])
    with without_main(module), same_search_path():
        ensure_running()
    return context


@contextmanager
def same_search_path() -> Iterator[None]:
    """A process that is started in the block imports the same packages as this one, not others."""
    wanted = {
        "PYTHONPATH": os.pathsep.join(place or str(Path.cwd()) for place in sys.path),
        "PYTHONSAFEPATH": "1",  # or the current folder would come first
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


@contextmanager
def without_main(module: str) -> Iterator[None]:
    """Hide the main script while a process starts: otherwise the whole command line would run there again."""
    main = sys.modules["__main__"]
    if module != "__main__":
        sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _work(function: Callable[[Any], Any], pipe: Connection, lifeline: Connection, environment: dict[str, str]) -> None:
    """The main loop of a worker: one task after the other, until the pipe closes."""
    hide_pandas()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole process group; the parent decides
    os.environ.update(environment)
    watch(lifeline, lambda: os._exit(1))
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        result = error = None
        trace = ""
        try:
            result = function(task)
        except Exception as caught:
            error, trace = caught, f"in a worker process:\n{traceback.format_exc()}"
        try:
            pipe.send((result, error, trace))
        except Exception as unsendable:  # the answer cannot be pickled
            pipe.send((None, RuntimeError(f"{unsendable}\n{trace}"), trace))


def available_cpus() -> int:
    """Processors that this process may use; in a container or a batch job, they can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
