"""Commands of this program as steps, each in its own process, run in order; finished ones are not run again."""

from __future__ import annotations

import json
import shlex
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from msldata.console import show
from msldata.errors import UserError
from msldata.storage import LocalStorage
from msltrain.hosts.program import program_command, program_environment

_LIST_NAME = "steps.json"
_GRACE_SECONDS = 3


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
    """The running command printed a line."""

    line: str


@dataclass(frozen=True, kw_only=True, slots=True)
class StepFinished:
    """A command succeeded, now or in an earlier call."""

    seconds: float
    """Wall time; that of the earlier run when ``skipped``."""
    skipped: bool


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

    @property
    def command(self) -> str:
        """As a user would type it."""
        return shlex.join(("msl", *self.arguments))


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
    for number, step in enumerate(steps, start=1):
        on_event(StepStarted(number=number, num_steps=len(steps), title=step.title, command=step.command))
        skipped = step.command in finished and step.product.exists()
        if not skipped:
            finished[step.command] = _run(step, out, what, on_event)
            LocalStorage(out).put(_LIST_NAME, (json.dumps(finished, indent=2) + "\n").encode())
        on_event(StepFinished(seconds=finished[step.command], skipped=skipped))


def _run(step: Step, out: Path, what: str, on_event: OnStep) -> float:
    """Run one command, pass on its output and keep it in a log; return the seconds it took."""
    log = out / "logs" / f"{step.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    arguments = step.arguments
    if step.begun is not None and step.begun.exists():
        arguments += ("--resume", "auto")
    began = time.perf_counter()
    lines: list[str] = []
    with (
        open(log, "w", encoding="utf-8") as file,
        subprocess.Popen(
            program_command(*arguments),
            env=patient_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
        ) as process,
    ):
        assert process.stdout is not None
        try:
            print(f"$ {step.command}", file=file, flush=True)
            for line in process.stdout:
                file.write(line)
                file.flush()
                if line.strip():
                    lines.append(line.rstrip())
                    on_event(StepOutput(line=line.rstrip()))
        except BaseException:
            _let_end(process)
            raise
    if process.returncode != 0:
        last_words = "\n  ".join(lines[-8:]) or "(it printed nothing)"
        raise UserError(
            f"this step of the {what} failed with exit code {process.returncode}:\n  {step.command}\n  {last_words}\n"
            f"its log is {log}; run the same {what} again to go on from here, or delete {out} to start over"
        )
    if not step.product.exists():
        raise UserError(
            f"this step of the {what} ended without its product, {step.product}:\n  {step.command}\nits log is {log}"
        )
    return time.perf_counter() - began


def _let_end(process: subprocess.Popen[str]) -> None:
    """Leave no command running: Ctrl-C in a terminal has reached it too, so it first gets time to save its state."""
    try:
        process.wait(timeout=_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.terminate()
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
            out.print(f"  {event.line}", style="dim", markup=False, soft_wrap=True)
        case StepFinished():
            out.print("  done before" if event.skipped else f"  {event.seconds:.0f} s")
