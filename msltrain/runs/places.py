"""Where a run's files lie by default."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from msldata.storage import open_storage

_SEED = re.compile(r"seed(\d{1,9})")


def default_file(
    checkpoint: str | Path, shards: str | Path, keep_masks: Sequence[str | Path] = (), *, held_out: bool = False
) -> Path:
    """Where an evaluation puts its predictions: in the run folder, named after what was evaluated.

    ``shards/voc2007/test`` through ``shards/masks/high`` gives ``predictions/voc2007-test-masks-high.parquet``. For a
    run in object storage that folder is made here, with the run's name in front of the file's.
    """
    places = [str(place).rstrip("/").split("/")[-2:] for place in (shards, *keep_masks)]
    name = "-".join(part for place in places for part in place if part)
    name += "-held-out" if held_out else ""
    if open_storage(checkpoint).path() is None:
        return Path("predictions", f"{run_folder(checkpoint).name}-{name}.parquet")
    return run_folder(checkpoint) / "predictions" / f"{name}.parquet"


def find_series(place: str | Path) -> list[Path]:
    """The runs of a series by seed (``seed0``, ``seed1`` …, as ``msl train --seeds`` writes them); empty for a run."""
    if open_storage(place).path() is None or not (folder := Path(place).expanduser()).is_dir():
        return []
    if (folder / "checkpoints").is_dir() or (folder / "meta.json").is_file():
        return []
    found = [(int(match[1]), run) for run in folder.iterdir() if (match := _SEED.fullmatch(run.name)) and run.is_dir()]
    return [run for _, run in sorted(found)]


def run_folder(checkpoint: str | Path) -> Path:
    """The run that a checkpoint belongs to; of a weights file from elsewhere the folder that it lies in."""
    run = Path(checkpoint)
    if run.is_file():
        run = run.parent
    if run.parent.name == "checkpoints":  # a checkpoint folder is replaced as a whole when training goes on
        run = run.parent.parent
    return run


def predictions_file(folder: Path, name: str) -> Path:
    """Where a model's folder has the predictions of a condition."""
    return folder / f"{name}.parquet"
