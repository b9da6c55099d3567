"""Commands of this program as steps, each in its own process, run in order; finished ones are not run again."""

from __future__ import annotations

import json
import shlex
import subprocess
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from queue import SimpleQueue
from threading import Thread

from rich.console import Console

from msldata.console import show
from msldata.errors import UserError
from msldata.storage import LocalStorage
from msldata.workers.processes import available_cpus
from msltrain.hosts.program import program_command, program_environment

_LIST_NAME = "steps.json"
_GRACE_SECONDS = 3
_ONE_THREAD = {"OMP_NUM_THREADS": "1"}


@dataclass(frozen=True, kw_only=True, slots=True)
class StepStarted:
    """A command is about to run."""

    number: int
    """Counted from 1."""
    num_steps: int
    title: str
    command: str
    """As a user would type it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepOutput:
    """A running command printed a line."""

    line: str
    number: int = 0
    """Of its step, where several run beside each other."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepFinished:
    """A command succeeded, now or in an earlier call."""

    seconds: float
    """Wall time; that of the earlier run when ``skipped``."""
    skipped: bool
    number: int = 0
    """As in `StepOutput`."""


CommandEvent = StepStarted | StepOutput | StepFinished
OnStep = Callable[[CommandEvent], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One command."""

    name: str
    """The name of its log, ``logs/NAME.log``."""
    title: str
    arguments: tuple[str, ...]
    """As typed after ``msl``."""
    product: Path
    """A path that exists once the command has succeeded."""
    begun: Path | None = None
    """For a training run: a path that exists once ``--resume auto`` has something to continue from."""
    beside: bool = False
    """Its neighbours that may, too, run at the same time, as many as there are cores. Small networks learn faster so
    than one after the other with all cores each, and one thread adds up in the same order on any machine."""

    @property
    def command(self) -> str:
        """As a user would type it."""
        one_thread = "".join(f"{name}={value} " for name, value in _ONE_THREAD.items()) if self.beside else ""
        return one_thread + shlex.join(("msl", *self.arguments))


def run_steps(steps: Sequence[Step], out: Path, *, what: str, on_event: OnStep = lambda event: None) -> None:
    """Run the steps that an earlier call in ``out`` has not finished.

    Args:
        steps: in order.
        out: folder of the logs and of the list of finished commands.
        what: what the steps are part of, such as ``demo``.
        on_event: called when a command starts, prints a line, and ends.

    Raises:
        UserError: a command failed, or its product is missing; the message names it, its last words and its log.
    """
    finished = _read_finished(out)
    waiting = list(enumerate(steps, start=1))
    while waiting:
        together = list(takewhile(lambda one: one[1].beside, waiting)) or waiting[:1]
        del waiting[: len(together)]
        _run_together(together, len(steps), out, what, finished, on_event)


def _run_together(
    steps: Sequence[tuple[int, Step]],
    num_steps: int,
    out: Path,
    what: str,
    finished: dict[str, float],
    on_event: OnStep,
) -> None:
    """Run numbered steps beside each other, add them to the finished ones, and leave none running whatever happens."""
    waiting, running = deque(steps), list[_Running]()
    heard = SimpleQueue[tuple[_Running, str | None]]()
    try:
        while waiting or running:
            while waiting and len(running) < available_cpus():
                number, step = waiting.popleft()
                on_event(StepStarted(number=number, num_steps=num_steps, title=step.title, command=step.command))
                marked = number if len(steps) > 1 else 0
                if step.command in finished and step.product.exists():
                    on_event(StepFinished(seconds=finished[step.command], skipped=True, number=marked))
                else:
                    running.append(_Running(step, marked, out, heard))
            if not running:
                continue
            one, line = heard.get()
            if line is not None:
                on_event(StepOutput(line=line, number=one.number))
                continue
            finished[one.step.command] = seconds = one.result(what)
            running.remove(one)
            LocalStorage(out).put(_LIST_NAME, (json.dumps(finished, indent=2) + "\n").encode())
            on_event(StepFinished(seconds=seconds, skipped=False, number=one.number))
    finally:
        _let_end([one.process for one in running])


class _Running:
    """A command in its process: a thread keeps what it prints in a log, and puts it into a queue; at its end, None.

    Args:
        number: passed on with each line.
        out: folder of the logs.
        heard: where the lines go.
    """

    def __init__(self, step: Step, number: int, out: Path, heard: SimpleQueue[tuple[_Running, str | None]]):
        self.step, self.number, self._out, self._heard = step, number, out, heard
        self._log = out / "logs" / f"{step.name}.log"
        self._log.parent.mkdir(parents=True, exist_ok=True)
        self._lines: list[str] = []
        self._failure: OSError | None = None
        goes_on = step.begun is not None and step.begun.exists()
        self._began = time.perf_counter()
        self.process = subprocess.Popen(
            program_command(*step.arguments, *(("--resume", "auto") if goes_on else ())),
            env=patient_environment() | (_ONE_THREAD if step.beside else {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        try:
            with self.process.stdout as lines, open(self._log, "w", encoding="utf-8") as file:
                print(f"$ {self.step.command}", file=file, flush=True)
                for line in lines:
                    file.write(line)
                    file.flush()
                    if line.strip():
                        self._lines.append(line.rstrip())
                        self._heard.put((self, line.rstrip()))
        except OSError as error:  # such as a full disk
            self._failure = error
        self._heard.put((self, None))

    def result(self, what: str) -> float:
        """The seconds it took, once it has closed its output.

        Raises:
            UserError: it failed. OSError: its log could not be written.
        """
        if self._failure is not None:
            raise self._failure
        code, step = self.process.wait(), self.step
        if code != 0:
            last_words = "\n  ".join(self._lines[-8:]) or "(it printed nothing)"
            raise UserError(
                f"this step of the {what} failed with exit code {code}:\n  {step.command}\n  {last_words}\n"
                f"its log is {self._log}; run the same {what} again to go on from here, or delete {self._out} to start "
                "over"
            )
        if not step.product.exists():
            raise UserError(
                f"this step of the {what} ended without its product, {step.product}:\n  {step.command}\n"
                f"its log is {self._log}"
            )
        return time.perf_counter() - self._began


def _let_end(processes: Sequence[subprocess.Popen[str]]) -> None:
    """Leave no command running: Ctrl-C in a terminal has reached them, too, so they first get time to save."""
    until = time.monotonic() + _GRACE_SECONDS
    for process in processes:
        try:
            process.wait(timeout=max(0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.terminate()
    for process in processes:
        process.wait()


def patient_environment() -> dict[str, str]:
    """This process's environment, with threads that sleep while they wait, unless the user decided otherwise.

    By default the OpenMP of torch's Linux wheels spins while it waits; if another program wants the same cores, a small
    network then trains several times slower.
    """
    return {"GOMP_SPINCOUNT": "1000", **program_environment()}


def _read_finished(out: Path) -> dict[str, float]:
    """Commands that have succeeded here, and how many seconds each took."""
    try:
        finished = json.loads((out / _LIST_NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        raise UserError(f"{out / _LIST_NAME}: not a list of finished steps; delete {out} to start over") from None
    return {str(command): float(seconds) for command, seconds in finished.items()}


def show_step(out: Console, event: CommandEvent) -> None:
    """Print a command that is about to run, what it prints, and how long it took."""
    match event:
        case StepStarted():
            show(out, (f"\n{event.number}/{event.num_steps} {event.title}", "bold"))
            out.print(f"$ {event.command}", style="cyan", markup=False, soft_wrap=True)
        case StepOutput():
            out.print(_mark(event) + event.line, style="dim", markup=False, soft_wrap=True)
        case StepFinished():
            took = "done before" if event.skipped else f"{event.seconds:.0f} s"
            out.print(_mark(event) + took, markup=False)


def _mark(event: StepOutput | StepFinished) -> str:
    """What a line begins with: which of the steps that run beside each other it is of, as short as 80 columns ask."""
    return f"{event.number}: " if event.number else "  "
