"""Jobs in worker processes, one at a time on each GPU, or one at a time in all: a failed job never affects another one.

A worker is a process in its own session, so that Ctrl-C reaches only the parent, which then asks every worker once to
stop: training saves its state first. A worker whose parent is killed notices and does the same.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing.connection import Connection, wait
from typing import Any

from msldata.errors import UserError
from msldata.workers.lifeline import Lifeline, watch
from msltrain.grids.jobs import Job, only_one

_ASK_AGAIN_S = 2.0
_CPU = ""
"""The one slot of a host without GPUs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JobStarted:
    job: Job
    slot: str
    """``CUDA_VISIBLE_DEVICES`` of its process; empty: what this process has."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JobProgress:
    job: Job
    doing: str
    done: int
    total: int


@dataclass(frozen=True, kw_only=True, slots=True)
class JobEnded:
    job: Job
    seconds: float
    problem: str
    """Empty: the job succeeded."""


JobEvent = JobStarted | JobProgress | JobEnded
OnJob = Callable[[JobEvent], None]


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What a worker says about a job."""

    problem: str = ""
    stopped: bool = False
    """It was asked to stop, and is stopping."""
    sound: bool = True
    """Whether the process can be trusted with another job; after a GPU error often none succeeds."""


@dataclass(slots=True, eq=False)
class _Worker:
    slot: str
    process: Any
    pipe: Connection
    job: Job | None = None
    began: datetime = field(default_factory=lambda: datetime.now(UTC))


def gpu_slots(gpus: str) -> list[str]:
    """A ``CUDA_VISIBLE_DEVICES`` for each process that may run at the same time.

    Args:
        gpus: ``auto`` (all that are visible) or a number.

    Raises:
        UserError: not a number, or more than there are.
    """
    if gpus != "auto" and not (gpus.isdecimal() and int(gpus)):
        raise UserError(f"--gpus is '{gpus}'; give a number, or auto for all there are")
    import torch

    available = torch.cuda.device_count()
    number = max(1, available) if gpus == "auto" else int(gpus)
    if number > max(1, available):
        raise UserError(f"--gpus {gpus}: this host has {available}; give at most that many, or auto")
    if not available:
        return [_CPU]
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return (visible or [str(index) for index in range(number)])[:number]


def run_jobs(jobs: Sequence[Job], slots: Sequence[str], on_event: OnJob = lambda event: None) -> dict[str, str]:
    """Do jobs, in order as far as the jobs that they need are done.

    Args:
        jobs: unfinished jobs; the jobs they need are among them or were done before.
        slots: one worker for each.
        on_event: called when a job starts, makes progress, and ends.

    Returns:
        What went wrong, by job name; the others were done.

    Raises:
        KeyboardInterrupt: SIGINT or SIGTERM came; the workers have saved and ended.
    """
    queue = _Queue(jobs, on_event)
    context = multiprocessing.get_context("spawn")
    lifeline = Lifeline(context)
    workers: list[_Worker] = []

    def start(slot: str) -> _Worker:
        ours, theirs = context.Pipe()
        share = slots.index(slot), len(slots)
        process = context.Process(target=_work, args=(theirs, lifeline.end, slot, share), daemon=True)
        process.start()
        theirs.close()
        return _Worker(slot, process, ours)

    try:
        with _sigterm_as_interrupt():
            workers += [start(slot) for slot in slots[: len(jobs)]]
            while queue.waiting or any(worker.job for worker in workers):
                for worker in workers:
                    queue.give(worker)
                for pipe in wait([worker.pipe for worker in workers if worker.job]):
                    worker = next(worker for worker in workers if worker.pipe is pipe)
                    if not queue.listen(worker):
                        worker.process.join()
                        workers.remove(worker)
                        if queue.waiting:
                            workers.append(start(worker.slot))
    finally:
        _end(workers)
        lifeline.close()
    return queue.problems


class _Queue:
    """Which jobs are waiting, and what became of the others."""

    def __init__(self, jobs: Sequence[Job], on_event: OnJob):
        self.waiting = list(jobs)
        self.problems: dict[str, str] = {}
        self._on_event = on_event
        self._open = {job.name for job in jobs}

    def give(self, worker: _Worker) -> None:
        """Let an idle worker start the first job that is ready."""
        for job in list(self.waiting):
            if failed := [name for name in job.needs if name in self.problems]:
                self.waiting.remove(job)
                self._end(job, 0.0, f"needs {failed[0]}, which failed")
            elif worker.job is None and not any(name in self._open for name in job.needs):
                self.waiting.remove(job)
                worker.job, worker.began = job, datetime.now(UTC)
                with suppress(BrokenPipeError):  # it died; reading the pipe says so
                    worker.pipe.send(job)
                self._on_event(JobStarted(job=job, slot=worker.slot))

    def listen(self, worker: _Worker) -> bool:
        """Take what a worker says; whether it lives on."""
        job = worker.job
        assert job is not None
        try:
            said = worker.pipe.recv()
        except (EOFError, ConnectionResetError):
            worker.process.join()
            said = _Outcome(_death(worker.process.exitcode), sound=False)
        if isinstance(said, tuple):
            doing, done, total = said
            self._on_event(JobProgress(job=job, doing=doing, done=done, total=total))
            return True
        worker.job = None
        problem = "stopped from outside" if said.stopped else said.problem
        self._end(job, (datetime.now(UTC) - worker.began).total_seconds(), problem)
        if not said.sound or said.stopped:
            worker.pipe.close()
            return False
        return True

    def _end(self, job: Job, seconds: float, problem: str) -> None:
        self._open.discard(job.name)
        if problem:
            self.problems[job.name] = problem
        self._on_event(JobEnded(job=job, seconds=seconds, problem=problem))


def _end(workers: Sequence[_Worker]) -> None:
    """Ask the workers to stop and wait for them; one more Ctrl-C kills them."""
    for worker in workers:
        worker.pipe.close()  # an idle one ends when its pipe closes
    try:
        while busy := [worker for worker in workers if worker.process.is_alive()]:
            for worker in busy:
                if worker.job is not None:
                    worker.process.terminate()  # repeatedly: training that is only starting does not react yet
            busy[0].process.join(_ASK_AGAIN_S)
    except KeyboardInterrupt:
        for worker in workers:
            worker.process.kill()
        raise


def _death(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        name = signal.Signals(-exitcode).name
        hint = ", as when the machine is out of memory" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}"
    return f"its process ended with exit code {exitcode}"


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """SIGTERM stops the grid as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _work(pipe: Connection, lifeline: Connection, slot: str, share: tuple[int, int]) -> None:
    """What a worker process does: jobs from its pipe, until that is closed."""
    os.setsid()
    _take_cpus(*share)
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as in `msltrain.demo.subprocesses`
    if slot:
        os.environ["CUDA_VISIBLE_DEVICES"] = slot
    watch(lifeline, lambda: os.kill(os.getpid(), signal.SIGTERM))
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        outcome = _perform(job, pipe)
        with suppress(BrokenPipeError):
            pipe.send(outcome)
        if outcome.stopped or not outcome.sound:
            return


def _take_cpus(index: int, number: int) -> None:
    """Use only a share of the CPUs, so that the decoding threads of several runs do not compete for them."""
    if hasattr(os, "sched_setaffinity"):
        mine = sorted(os.sched_getaffinity(0))[index::number]
        if mine:
            os.sched_setaffinity(0, mine)


def _perform(job: Job, pipe: Connection) -> _Outcome:
    from msltrain.hosts.interrupt import Interrupted

    def progress(doing: str, done: int, total: int) -> None:
        with suppress(BrokenPipeError):
            pipe.send((doing, done, total))

    job.log.parent.mkdir(parents=True, exist_ok=True)
    with open(job.log, "a", encoding="utf-8") as log, _output_to(log.fileno()):
        print(f"== {job.name}, {datetime.now(UTC).isoformat(timespec='seconds')}", flush=True)
        try:
            with only_one(job.log.parent):
                job.perform(progress)
        except Interrupted as error:
            print(error)
            return _Outcome(stopped=True)
        except UserError as error:
            print(f"error: {error}")
            return _Outcome(str(error))
        except Exception as error:
            traceback.print_exc(file=sys.stdout)
            return _Outcome(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}", sound=False)
        finally:
            sys.stdout.flush()
        return _Outcome()


@contextmanager
def _output_to(log: int) -> Iterator[None]:
    """Send everything that this process prints, including libraries below Python, to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    before = os.dup(1), os.dup(2)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, saved in zip((1, 2), before):
            os.dup2(saved, number)
            os.close(saved)
