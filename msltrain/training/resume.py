"""Where a run begins: in an unused folder, or at the last checkpoint of the run in the folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from msldata.errors import UserError
from msltrain.config import DataConfig, OptimConfig, TrainConfig, differences
from msltrain.runs.checkpoint import Checkpoint, copy_checkpoint, load_checkpoint
from msltrain.runs.find_checkpoint import CHECKPOINTS, LAST, META_NAME, STATE_NAME
from msltrain.runs.folder import MAY_DIFFER, OTHER_DATA, RunFolder
from msltrain.stream.loader import Loader
from msltrain.training.data import TrainData
from msltrain.training.optim import is_optimizer_state, learning_rate

Resume = bool | Literal["auto"]
"""Whether to continue. False: never; True: the run that must be there; auto: a run if there is one."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where a run begins."""

    checkpoint: Checkpoint | None = None
    """None: start from the beginning."""
    changes: tuple[str, ...] = ()
    """What the user changed since the checkpoint was made."""
    validates_anew: bool = False
    """Whether validation is on other samples than before, so that the mAP of before says nothing beside theirs."""

    def notes(self, best: dict[str, Any] | None) -> list[str]:
        """What to say of the changes, in sentences; ``best`` is the best epoch that the run goes on with."""
        found = [f"continued with a change: {change}" for change in self.changes]
        if self.validates_anew and best is None and self.checkpoint and self.checkpoint.train_state["best"]:
            found.append("validation is on other samples now: the best epoch is chosen anew from here on")
        return found


def open_run(folder: RunFolder, config: TrainConfig, data: TrainData, resume: Resume, allow_changes: bool) -> Start:
    """Check that ``folder`` is free for a new run, or holds this one; where to begin."""
    folder.claim()
    if not resume:
        folder.check_unused()
    if not resume or (resume == "auto" and not folder.is_used):
        return Start()
    changes = folder.changes(config, data.identities)
    if changes and not allow_changes:
        folder.check_same(config, data.identities)
    try:
        checkpoint = load_checkpoint(folder.last)
    except FileNotFoundError:
        return Start(changes=tuple(changes))  # stopped before the first checkpoint
    _check_state(checkpoint, f"{folder.place(CHECKPOINTS, LAST, STATE_NAME)}")
    if checkpoint.classes != data.classes:
        known = set(checkpoint.classes) == set(data.classes)
        what = "the same classes in another order" if known else "other classes"
        raise UserError(
            f"{config.data.train}: {what} than the run in {folder.location} has ({_some(checkpoint.classes)}; here "
            f"{_some(data.classes)}), so its outputs would mean other things; start a new run in another folder, with "
            f"--weights {folder.location} to begin with what this one learnt"
        )
    if not changes and not folder.was_changed:
        _check_run(checkpoint, config, data.training, f"{folder.place(CHECKPOINTS, LAST, META_NAME)}")
    best = checkpoint.train_state["best"]
    if best is not None and checkpoint.validation_mAP is not None and checkpoint.epoch == best["epoch"] + 1:
        copy_checkpoint(folder.last, folder.best)  # in case it was killed between saving the two
    return Start(
        checkpoint=checkpoint,
        changes=tuple(changes),
        validates_anew=_has_other_validation(checkpoint.config.data, config.data, changes),
    )


def _has_other_validation(before: DataConfig, now: DataConfig, changes: Sequence[str]) -> bool:
    """Whether a run goes on with other validation samples, by what it sets aside and what is said to have changed."""
    if bool(before.validation) != bool(now.validation):
        return True
    role = "validation" if now.validation else "train"
    other_part = not now.validation and before.validation_fraction != now.validation_fraction
    return other_part or any(one.startswith(f"{OTHER_DATA} for {role}:") for one in changes)


def take_position(loader: Loader, position: dict[str, Any], changed: bool) -> None:
    """Let ``loader`` continue where ``position`` was saved.

    Args:
        changed: whether the user has changed the run: with another batch size it continues after the same number of
            samples, less at most part of a batch; inside an epoch of other samples a position means nothing, and the
            epoch starts again.

    Raises:
        UserError: the position does not fit, and nothing was changed.
    """
    try:
        loader.load_state_dict(position)
    except UserError:
        if not changed:
            raise
        here = loader.state_dict()
        batch_size = here["batch_size"]
        num_samples = position["step"] * position["batch_size"]
        try:
            step = min(num_samples // batch_size, len(loader))
            loader.load_state_dict({**position, "batch_size": batch_size, "step": step})
        except UserError:
            loader.set_epoch(position["epoch"])


def rate_note(before: OptimConfig, now: OptimConfig, epochs: float, steps_per_epoch: int) -> str:
    """A sentence if a changed schedule continues with another learning rate; empty if it does not.

    Args:
        before, now: the configs of the checkpoint and of the continued run.
        epochs: position in the run.
    """
    step = round(epochs * steps_per_epoch)
    if step >= now.num_epochs * steps_per_epoch:
        return ""
    old, new = (learning_rate(config, step, steps_per_epoch) for config in (before, now))
    if abs(new - old) <= 0.01 * max(new, old):
        return ""
    kind = {"cosine": "the cosine", "one_cycle": "the cycle"}.get(now.schedule, "the schedule")
    return f"the learning rate goes on at {new:.3g}, where it was {old:.3g}: {kind} is another one now"


def _check_state(checkpoint: Checkpoint, file: str) -> None:
    """Raise UserError unless ``file`` holds a state in which a training can have been.

    Its digest only says that it is as it was written, not by whom.
    """
    state, num_epochs = checkpoint.train_state, checkpoint.config.optim.num_epochs
    position, best, random = (state.get(name) for name in ("loader", "best", "random"))
    if not isinstance(position, dict) or not all(_is_count(position.get(name)) for name in _POSITION):
        raise _no_state(file, "its loader has no position")
    epoch, longest = position["epoch"], -(-position["num_samples"] // max(1, position["batch_size"]))
    known_best = best is None or (
        isinstance(best, dict)
        and _is_count(best.get("epoch"))
        and best["epoch"] <= epoch  # the one that it is in, where a run was ended in its middle
        and isinstance(best.get("mAP"), float | int)
        and 0 <= best["mAP"] <= 1
    )
    for holds, what in (
        (epoch <= num_epochs, f"it is in epoch {epoch + 1} of {num_epochs}"),
        (checkpoint.epoch in (epoch, epoch + 1), f"{META_NAME} says {checkpoint.epoch} epochs, and it {epoch}"),
        (position["step"] <= longest, f"it is at step {position['step']} of an epoch of {longest} at most"),
        ("best" in state and known_best, "its best epoch is none"),
        (is_optimizer_state(state.get("optimizer")), "its optimiser is none"),
        (
            isinstance(random, list) and random and all(isinstance(one, dict) for one in random),
            "it lacks the states of the random numbers",
        ),
        (_is_count(state.get("num_averaged", 0)), "num_averaged is not a count"),
        (
            all(isinstance(state.get(name, {}), dict) for name in ("weights", "twin", "masked_norms")),
            "its weights have no names",
        ),
    ):
        if not holds:
            raise _no_state(file, what)
    if (twin := state.get("twin")) is not None and not (
        isinstance(twin.get("weights"), dict) and is_optimizer_state(twin.get("optimizer"))
    ):
        raise _no_state(file, "its twin is none")


_POSITION = ("epoch", "step", "batch_size", "num_samples")


def _check_run(checkpoint: Checkpoint, config: TrainConfig, loader: Loader, file: str) -> None:
    """Raise UserError unless a run of which nothing was ever changed has this config and took the steps it says."""
    other = [name for name in differences(checkpoint.config, config) if name not in MAY_DIFFER]
    if other:
        raise UserError(f"{file}: of another run than the folder's, judging by {', '.join(other[:3])}; copy it again")
    position = checkpoint.train_state["loader"]
    taken = position["epoch"] * len(loader) + position["step"]
    if checkpoint.step != taken:
        raise UserError(
            f"{file}: says {checkpoint.step:,} steps, and the position in {STATE_NAME} is after {taken:,}; copy the "
            "checkpoint again"
        )


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _no_state(file: str, what: str) -> UserError:
    return UserError(f"{file}: not the state of a training ({what}); copy the checkpoint again")


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
