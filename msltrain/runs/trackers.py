"""TensorBoard and Weights & Biases: the rows of ``metrics.jsonl`` in other places too."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from msldata.errors import UserError
from msltrain.config import TrainConfig

TENSORBOARD_FOLDER = "tensorboard"


class Tracker(Protocol):
    """Somewhere that rows go to."""

    def add(self, row: Mapping[str, Any]) -> None:
        """A row with a ``step``; its other numbers are shown over it."""

    def close(self) -> None:
        """Write what is left."""


def check_trackers(config: TrainConfig) -> None:
    """Raise UserError when a package that the config asks for is missing."""
    for wanted, field, package in (
        (config.run.tensorboard, "run.tensorboard=true", "tensorboard"),
        (config.run.wandb, f"run.wandb={config.run.wandb}", "wandb"),
    ):
        if wanted and not _installed(package):
            raise UserError(f"{field} needs the package {package}: pip install 'msltrain[{package}]'")


def open_trackers(config: TrainConfig, folder: Path, *, place: str, step: int) -> list[Tracker]:
    """Those that ``config.run`` names, for a run at ``place`` that starts or goes on at ``step``."""
    trackers: list[Tracker] = []
    if config.run.tensorboard:
        trackers.append(_TensorBoard(folder / TENSORBOARD_FOLDER, step))
    if config.run.wandb:
        trackers.append(_WandB(config, folder, place))
    return trackers


class _TensorBoard:
    def __init__(self, folder: Path, step: int):
        from torch.utils.tensorboard import SummaryWriter

        # What a killed run logged after its checkpoint is taken again, and must not be shown twice.
        self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def add(self, row: Mapping[str, Any]) -> None:
        for name, value in _numbers(row).items():
            self._writer.add_scalar(name, value, row["step"])
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _WandB:
    def __init__(self, config: TrainConfig, folder: Path, place: str):
        import wandb

        self._run = wandb.init(
            project=config.run.wandb,
            name=place.rstrip("/").rpartition("/")[2],
            # The same for every start of a run, so that it goes on as one curve.
            id=hashlib.sha256(place.encode()).hexdigest()[:16],
            resume="allow",
            dir=str(folder),
            config=asdict(config),
        )

    def add(self, row: Mapping[str, Any]) -> None:
        self._run.log(_numbers(row), step=row["step"])

    def close(self) -> None:
        self._run.finish()


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in row.items() if name != "step" and isinstance(value, (int, float))}


def _installed(package: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(package) is not None
