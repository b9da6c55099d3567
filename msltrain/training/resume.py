"""Where a run begins: in an unused folder, or at the last checkpoint of the run that the folder holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from msltrain.config import TrainConfig
from msltrain.runs.checkpoint import Checkpoint, copy_checkpoint, load_checkpoint
from msltrain.runs.folder import RunFolder
from msltrain.training.data import TrainData

Resume = bool | Literal["auto"]
"""Continue: False: never, True: what is there, auto: what is there if anything is."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where a run begins."""

    checkpoint: Checkpoint | None = None
    """None: at the beginning."""
    changes: tuple[str, ...] = ()
    """What the user changed since the checkpoint was made."""


def open_run(folder: RunFolder, config: TrainConfig, data: TrainData, resume: Resume, allow_changes: bool) -> Start:
    """Check that ``folder`` is free for a new run, or holds this one; where to begin."""
    folder.fetch()
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
    best = checkpoint.train_state["best"]
    if best is not None and checkpoint.validation_mAP is not None and checkpoint.epoch == best["epoch"] + 1:
        copy_checkpoint(folder.last, folder.best)  # in case it was killed between saving the two
    return Start(checkpoint=checkpoint, changes=tuple(changes))
