"""What a robustness study is: which models, which images, which holes."""

from __future__ import annotations

from dataclasses import dataclass, field

from msldata.errors import UserError
from msltrain.robustness.kinds import IRREGULAR, check_kinds
from msltrain.runs.find_checkpoint import Foreign

RECALIBRATED = " recalibrated"
"""Added to the name of the recalibrated model."""
PREDICTIONS = "predictions"
"""Folder of a study that holds them."""


@dataclass(frozen=True, kw_only=True)
class Recalibration:
    """The data on which the first model's BatchNorm is measured anew, as a control."""

    shards: str
    """Training images."""
    keep_masks: tuple[str, ...]
    """Keep masks for them; not the held-out ones of the study."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """Which models are measured, on which data.

    Raises:
        UserError: no model, names that repeat, unknown kinds, or recalibration on the masks of the study.
    """

    models: tuple[tuple[str, str], ...]
    """(name, checkpoint or run folder or weights file); the reference first."""
    shards: str
    keep_masks: tuple[str, ...]
    """Held-out keep masks; those of training would flatter a model that was trained with them. None: some are drawn."""
    kinds: tuple[str, ...] = (IRREGULAR,)
    """See ``kinds.KINDS``."""
    recalibration: Recalibration | None = None
    foreign: Foreign = field(default_factory=Foreign)
    seed: int = 0

    def __post_init__(self) -> None:
        names = [name for name, _ in self.models]
        if not names:
            raise UserError("a robustness study needs at least one model")
        for name in names:
            if names.count(name) > 1 or not name or "/" in name or name.startswith("."):
                raise UserError(
                    f"'{name}' cannot name a model here: names become folders and must differ; give --name once per "
                    "checkpoint"
                )
        check_kinds(self.kinds)
        if self.recalibration and set(self.recalibration.keep_masks) & set(self.keep_masks):
            raise UserError("recalibrate on the training keep masks, not on the held-out ones that are measured with")
