"""A series: the same run with several seeds, each in its own folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from msldata.errors import UserError
from msltrain.config import TrainConfig

if TYPE_CHECKING:
    from msltrain.training.events import OnEvent, TrainResult
    from msltrain.training.resume import Resume


def parse_seeds(text: str) -> tuple[int, ...]:
    """``0,1,2`` → (0, 1, 2). Raises UserError for anything but different whole numbers."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in words) or len(set(words)) < len(words):
        raise UserError(f"--seeds is '{text}'; give different whole numbers, such as 0,1,2")
    return tuple(map(int, words))


def train_series(
    config: TrainConfig,
    seeds: Sequence[int],
    *,
    run_dir: str | Path,
    resume: Resume = False,
    allow_changes: bool = False,
    on_event: OnEvent | None = None,
) -> list[TrainResult]:
    """Train once per seed, one after the other, in ``run_dir/seed0`` and so on.

    With ``resume="auto"`` a stopped series continues: finished runs are left alone. All are validated on the same
    samples. Arguments and errors are those of `train`.
    """
    from msltrain.training.trainer import train

    return [
        train(
            replace(config, run=replace(config.run, seed=seed)),
            run_dir=f"{str(run_dir).rstrip('/')}/seed{seed}",
            resume=resume,
            allow_changes=allow_changes,
            on_event=on_event,
        )
        for seed in seeds
    ]
