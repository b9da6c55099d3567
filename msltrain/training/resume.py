"""Where a run begins: in an unused folder, or at the last checkpoint of the run in the folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from msldata.errors import UserError
from msltrain.config import OptimConfig, TrainConfig
from msltrain.runs.checkpoint import CHECKPOINTS, LAST, Checkpoint, copy_checkpoint, load_checkpoint
from msltrain.runs.folder import RunFolder
from msltrain.stream.loader import Loader
from msltrain.training.data import TrainData
from msltrain.training.optim import learning_rate

Resume = bool | Literal["auto"]
"""Whether to continue. False: never; True: the run that must be there; auto: a run if there is one."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where a run begins."""

    checkpoint: Checkpoint | None = None
    """None: start from the beginning."""
    changes: tuple[str, ...] = ()
    """What the user changed since the checkpoint was made."""


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
    where = f"{folder.place(CHECKPOINTS, LAST)}"
    _check_state(checkpoint.train_state, where)
    if checkpoint.classes != data.classes:
        known = set(checkpoint.classes) == set(data.classes)
        what = "the same classes in another order" if known else "other classes"
        raise UserError(
            f"{config.data.train}: {what} than the run in {folder.location} has ({_some(checkpoint.classes)}; here "
            f"{_some(data.classes)}), so its outputs would mean other things; start a new run in another folder, with "
            f"--weights {folder.location} to begin with what this one learnt"
        )
    best = checkpoint.train_state["best"]
    if best is not None and checkpoint.validation_mAP is not None and checkpoint.epoch == best["epoch"] + 1:
        copy_checkpoint(folder.last, folder.best)  # in case it was killed between saving the two
    return Start(checkpoint=checkpoint, changes=tuple(changes))


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


_STATE = {"optimizer": dict, "loader": dict, "random": list}


def _check_state(state: dict[str, Any], where: str) -> None:
    """Raise UserError for a training state that lacks what continuing needs."""
    position, best = state.get("loader"), state.get("best")
    holds = all(isinstance(state.get(name), kind) for name, kind in _STATE.items())
    if holds and isinstance(position, dict):
        holds = all(type(position.get(name)) is int and position[name] >= 0 for name in ("epoch", "step", "batch_size"))
    if holds and best is not None:
        holds = isinstance(best, dict) and type(best.get("epoch")) is int and isinstance(best.get("mAP"), float | int)
    if not holds:
        raise UserError(f"{where}: its train_state.pt is not the state of a training; copy the checkpoint again")


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
