"""What a training run reports to its caller as it goes; only the first process reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class PhaseEvent:
    """Something begins that takes its time and is no step."""

    what: str
    """As in "waiting for the first batch"."""
    step: int | None = None
    """Steps taken, once the first one of this start is over: from there on the speed says something."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StartEvent:
    """Everything is open and built; the first batch is next."""

    run_dir: str | Path
    device: str
    world_size: int
    num_train: int
    """Training samples, without those held out."""
    num_validation: int
    """Samples held out to choose the best checkpoint; 0: none."""
    num_keep_masks: int
    num_parameters: int
    """Number of trainable parameters."""
    steps_per_epoch: int
    num_steps: int
    """Steps of the whole run."""
    step: int
    """Steps already taken by the run that is continued; 0 for a new one."""
    changes: tuple[str, ...] = ()
    """What the run goes on with that is not as it was, and what follows from that, in sentences."""
    notes: tuple[str, ...] = ()
    """Sentences worth showing: which weights were loaded, which setting has no effect here."""
    warnings: tuple[str, ...] = ()
    """Those that nobody may miss: what the run rests on may be wrong."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepEvent:
    """A log interval ended."""

    step: int
    """Steps taken, counted over the whole run."""
    num_steps: int
    epoch: int
    """Counted from 0."""
    num_epochs: int
    losses: Mapping[str, float]
    """Mean of each term over the interval and all processes: ``total``, ``clean``, ``masked``, ``consistency``."""
    learning_rate: float
    """The backbone's learning rate in the last step."""
    images_per_second: float
    """Images per second over all processes; an image counts once, though the network may see it twice."""
    data_wait: float
    """Share of the interval spent waiting for a batch, 0 to 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TickEvent:
    """Steps go on, slowly, and the log interval is not over: how far it is, once a second at most."""

    step: int
    epoch: int
    """Counted from 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochEvent:
    """An epoch ended, was validated and saved."""

    epoch: int
    """Counted from 0."""
    num_epochs: int
    step: int
    validation_mAP: float | None
    """0 to 1; None without a validation split."""
    is_best: bool
    """So far; False where validation shows too little to choose by."""
    seconds: float
    """Training, validation and saving of this epoch, as far as they happened in this start of the run."""
    ends_early: bool = False
    """Whether the run ends here, because ``optim.patience`` epochs brought no better one."""
    num_skipped: int = 0
    """Bad samples that the run has skipped so far; the run folder lists them."""


Event = PhaseEvent | StartEvent | StepEvent | TickEvent | EpochEvent
OnEvent = Callable[[Event], None]
