"""What a training run reports to its caller as it goes, and at its end; only the first process reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from msldata.errors import UserError, first_line

if TYPE_CHECKING:
    from torch import nn

    from msltrain.hosts.distributed import Ranks


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
OnStep = Callable[[StepEvent], object]
"""A caller's own, in the first process: what is true ends the run. So for `OnEpoch`."""
OnEpoch = Callable[[EpochEvent, "nn.Module"], object]


def ask(ranks: Ranks, name: str, call: Callable[[], object]) -> bool | Exception:
    """What a function of the caller's says, called in the first process, or what it raised.

    Args:
        name: of the function, for the other processes: they get a UserError, as no error can be sent for certain.
    """
    import torch

    raised: list[Exception] = []

    def answer() -> tuple[bool, str]:
        devices = [ranks.device] if ranks.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices):  # what it draws changes nothing of the run
                return bool(call()), ""
        except Exception as error:  # anything: the code is somebody else's
            raised.append(error)
            return False, f"{type(error).__name__}: {first_line(error)}"

    said, failed = ranks.first_does(answer)
    if not failed:
        return said
    return raised[0] if raised else UserError(f"{name} failed in the first process: {failed}")


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """A finished run.

    Example:
        config = msltrain.recipe("demo", settings=["optim.num_epochs=1", "stream.batch_size=8"])
        result: msltrain.TrainResult = msltrain.train(config, "runs/another")
        predictor = msltrain.load(result.best)
    """

    run_dir: str | Path
    """A URL for a run in object storage; then the checkpoints are URLs too."""
    num_steps: int
    first_step: int = 0
    """How many of them were taken before this start of the run."""
    last: str | Path
    """Checkpoint after the last step."""
    best: str | Path | None
    """Checkpoint with the highest validation mAP; the last one where validation shows most classes too rarely to choose
    by; None without a validation split."""
    best_epoch: int | None
    """Counted from 1, as it is shown: in a run of four epochs the last is 4."""
    validation_mAP: float | None
    """Validation mAP of ``best``, 0 to 1."""
    is_chosen: bool = False
    """Whether validation chose ``best``."""
    doubt: str = ""
    """In words, that validation shows too few photographs of some classes to be relied on; empty where it does not."""
    seconds: float
    """Wall time of this start of the run."""
