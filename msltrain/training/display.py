"""What a training run, or a row of commands, shows on a terminal."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.table import Column

from msldata.console import is_watched, show_below
from msldata.progress import Bars
from msldata.storage import LocalStorage
from msltrain.training.events import EpochEvent, Event, PhaseEvent, StartEvent, StepEvent

_WIDE = 120
"""Columns from which on there is room for every loss term."""
_QUIET_SECONDS = 30.0
"""Where nobody watches, as in a log, a line about the steps comes so often at most."""
_MOST_EPOCHS, _SHORT = 30, 20
"""About so many epochs get a line where they are shorter than so many steps."""
START_NAME = "start.txt"
"""In a run folder: what was said at its start, and left out on the terminal."""


class TrainingDisplay:
    """A bar with the time left, and lines that stay: what is being done, and every epoch.

    Args:
        out: results.
        err: where the bar goes when ``out`` is a file.
        details: None: all that the start of a run has to say is shown. Else it goes into ``START_NAME`` of a run folder
            on this machine, with these lines before it.
    """

    def __init__(self, out: Console, err: Console, details: Sequence[str] | None = None):
        self._out, self._err = out, err
        console = out if is_watched(out) else err
        self._watched = is_watched(console)
        self._wide = console.width >= _WIDE
        columns = (
            BarColumn(bar_width=24 if self._wide else 12),
            TextColumn("{task.fields[left]}", markup=False),
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
        )
        self._bar = Bars(*columns, results=out, messages=err)
        self._task = self._bar.add_task("starting", total=None, left="")
        self._last = ""
        self._best: EpochEvent | None = None
        self._is_first_step = True
        self._began: tuple[float, int] | None = None
        self._said = 0.0
        self._details = details
        self._every = 1

    def __enter__(self) -> TrainingDisplay:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, event: Event) -> None:
        match event:
            case PhaseEvent():
                self._bar.update(self._task, description=event.what)
                if not self._watched and self._details is None:
                    self._err.print(event.what, soft_wrap=True)
                if event.step is not None:
                    self._began = time.monotonic(), event.step
            case StartEvent():
                self._show_start(event)
                self._bar.update(self._task, total=event.num_steps, completed=event.step)
            case StepEvent():
                self._show_step(event)
            case EpochEvent():
                self._best = event if event.is_best else self._best
                is_last = event.epoch + 1 == event.num_epochs or event.ends_early
                if (event.epoch + 1) % self._every and not is_last:
                    return
                validation = ""
                if event.validation_mAP is not None:
                    validation = f"  validation mAP {100 * event.validation_mAP:.1f}{self._best_said(event)}"
                epoch = f"epoch {event.epoch + 1}/{event.num_epochs}"
                samples = "bad sample" if event.num_skipped == 1 else "bad samples"
                skipped = f"  {event.num_skipped} {samples} skipped" if event.num_skipped else ""
                ended = "  no better epoch for optim.patience: the run ends" if event.ends_early else ""
                self._print(f"{epoch}  {self._last}{validation}  {event.seconds:.0f} s{skipped}{ended}")

    def _best_said(self, event: EpochEvent) -> str:
        """Whether this epoch is the best so far; else which is, where that was not said yet: not each has a line."""
        best, self._best = self._best, None
        if best is None or best.validation_mAP is None:
            return ""
        earlier = "" if best is event else f" {100 * best.validation_mAP:.1f}, epoch {best.epoch + 1}"
        return f" (best so far{':' * bool(earlier)}{earlier})"

    def _show_start(self, event: StartEvent) -> None:
        head = (
            f"{event.num_parameters / 1e6:.1f} M parameters on {event.world_size} × {event.device}, "
            f"{event.num_train:,} training and {event.num_validation:,} validation samples, "
            f"{event.num_keep_masks:,} keep masks, {event.num_steps:,} steps"
        )
        if event.steps_per_epoch < _SHORT:
            self._every = max(1, round(event.num_steps / event.steps_per_epoch / _MOST_EPOCHS))
        if self._details is not None and isinstance(event.run_dir, Path):
            folder = LocalStorage(event.run_dir)
            before = folder.read(START_NAME).decode(errors="replace") + "\n" if folder.exists(START_NAME) else ""
            lines = [*self._details, head, *event.changes, *event.notes]
            folder.put(START_NAME, (before + "\n".join(lines) + "\n").encode())
        else:
            for line in self._details or ():
                show_below(self._out, line)
            self._print(head)
            for note in event.notes:
                show_below(self._out, note)
        for change in event.changes:
            show_below(self._out, change, "yellow")
        if event.step >= event.num_steps:
            self._print(f"all {event.num_steps:,} steps were taken before: there is nothing to train")
        elif event.step:
            self._print(f"goes on after step {event.step:,} of {event.num_steps:,}")

    def _show_step(self, event: StepEvent) -> None:
        now = time.monotonic()
        began, first = self._began or (now, event.step)
        taken = event.step - first
        left = f"{clock((now - began) / taken * (event.num_steps - event.step))} left" if taken else ""
        losses = dict(event.losses)
        total = losses.pop("total", None)
        loss = [] if total is None else [f"loss {total:.4f}"]
        terms = [f"{name} {value:.4f}" for name, value in losses.items()] if len(losses) > 1 else []
        speed = f"{rate(event.images_per_second)} images/s"
        wait = f"data wait {100 * event.data_wait:.0f} %"
        # At 80 columns the terms stay in metrics.jsonl.
        self._last = "  ".join([*loss, *(terms if self._wide else []), speed, *([wait] if self._wide else [])])
        epoch = f"epoch {event.epoch + 1}/{event.num_epochs}"
        self._bar.update(
            self._task,
            description=f"{epoch}  {self._last}",
            completed=event.step,
            total=event.num_steps,
            left=left or f"{event.step:,}/{event.num_steps:,}",
        )
        if not self._watched and (self._is_first_step or now - self._said > _QUIET_SECONDS):
            self._said = now
            share = f"step {event.step:,}/{event.num_steps:,}"
            self._print("  ".join(filter(None, [f"{epoch}, {share}", self._last, left])))
        self._is_first_step = False

    def _print(self, text: str) -> None:
        self._out.print(text, soft_wrap=not self._out.is_terminal)  # a terminal alone would break words


def rate(per_second: float) -> str:
    """A speed with three digits that say something: 0.42, 4.2, 42, 4,200."""
    digits = 2 if per_second < 1 else 1 if per_second < 20 else 0
    return f"{per_second:,.{digits}f}"


def clock(seconds: float) -> str:
    """Seconds as 0:42, 12:05 or 3:12:05."""
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"
