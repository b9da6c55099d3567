"""Where a checkpoint is, and what its ``meta.json`` says: without torch, so that a mistake shows before it is imported.

What the other files of the folder hold is read by `msltrain.runs.checkpoint`.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msldata.contract.listing import IMAGE_SUFFIXES
from msldata.contract.manifest import MANIFEST_NAME, is_digest, read_manifest
from msldata.contract.recorded_command import build_other_split
from msldata.errors import UserError, counted, did_you_mean
from msldata.storage import LocalStorage, Storage, open_storage
from msldata.storage.hub import is_hub_place
from msltrain.config import TrainConfig, from_json
from msltrain.runs.run_places import (
    RUNS,
    SHARDS,
    TEST_SPLITS,
    find_series,
    find_test_shards,
    not_there,
    unfinished_said,
    unfinished_splits,
)

WEIGHTS_NAME = "weights.safetensors"
STATE_NAME = "train_state.pt"
META_NAME = "meta.json"
CHECKPOINTS = "checkpoints"
"""Folder of a run that holds its checkpoints."""
BEST, LAST, FAILED = "best", "last", "failed"
SCHEMA_VERSION = 2
"""Version 2 added digests of the training state and of ``meta.json``. Version 1 is still read."""
EXPORT_CONFIG, EXPORT_WEIGHTS = "config.json", "model.safetensors"
"""What an export holds besides the graphs."""
_GRAPHS = (".onnx", ".pt2")
_PARTS = (EXPORT_CONFIG, "README.md", "model.py", "photograph.py", META_NAME, STATE_NAME)
_TOGETHER = ("all", "trainval")
"""Splits of datasets that were not divided."""


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """How to read a weights file that holds only tensors; exactly one of the two fields is given."""

    recipe: str = ""
    """The file holds a backbone and a head as released for MSL, CSRA, ML-Decoder, Query2Label or ASL; network and input
    are those of this recipe."""
    model: str = ""
    """The file holds a timm classifier of this name; input size, mean, std and what it sees of a photograph are those
    of its timm config."""


def check_model(place: str | Path) -> None:
    """Raise the error of whoever loads a model, as far as it shows without torch: of one on the hub or in object
    storage, and of the tensors, it is left to them.

    Raises:
        FileNotFoundError: there is nothing at ``place``.
        UserError: the description of a checkpoint is damaged.
    """
    if is_hub_place(place) or (local := open_storage(place).path()) is None:
        return
    path = folder_of_weights(local)
    if not path.is_file() and not is_export(path):
        read_meta(LocalStorage(find_checkpoint(path)))


def is_model(place: str | Path) -> bool:
    """Whether there is a run, a series, a checkpoint or an export at a place on this machine."""
    if is_hub_place(place) or (path := open_storage(place).path()) is None or not path.is_dir():
        return False
    return is_export(path) or holds_run(path) or (path / META_NAME).is_file() or bool(find_series(path))


def refuse_part(place: str | Path) -> None:
    """Raise UserError for a file of an export or checkpoint on this machine that is no model by itself.

    Graphs are refused wherever they lie: other programs run them.
    """
    if is_hub_place(place) or (path := open_storage(place).path()) is None or not path.is_file():
        return
    folder = path.parent
    if path.suffix in _GRAPHS and not is_export(folder):
        raise UserError(
            f"{place}: a graph for other programs; give the run, or the folder that `msl export` wrote, with "
            f"{EXPORT_WEIGHTS} in it"
        )
    is_part = path.name in _PARTS and (is_export(folder) or (folder / META_NAME).is_file())
    if is_part or path.suffix in _GRAPHS:
        raise UserError(f"{place}: one file of a model; give its folder, {Path(place).parent}")


def folder_of_weights(path: Path) -> Path:
    """The folder of a checkpoint or export instead of the weights file in it, which says less by itself."""
    beside = {WEIGHTS_NAME: META_NAME, EXPORT_WEIGHTS: EXPORT_CONFIG}.get(path.name)
    return path.parent if path.is_file() and beside and (path.parent / beside).is_file() else path


def is_export(folder: Path) -> bool:
    """Whether ``msl export`` wrote this folder."""
    return (folder / EXPORT_CONFIG).is_file() and (folder / EXPORT_WEIGHTS).is_file()


def holds_run(folder: Path) -> bool:
    """Whether a folder holds a run that has reached a checkpoint."""
    return any((folder / CHECKPOINTS).glob(f"*/{META_NAME}"))


def check_unused(folder: Path, called: str | Path) -> None:
    """Raise UserError if the run folder that the user calls so holds a run already."""
    if holds_run(folder):
        raise UserError(
            f"{called}: holds a run already; continue it with --resume auto, or choose another folder with --run"
        )
    if (found := _held(folder)) is not None:
        raise UserError(f"{called}: holds other things, such as {found}; give the run a folder of its own with --run")


def _held(folder: Path) -> Path | None:
    """Another run, a dataset or a photograph in a folder, with which no run should be mixed; None if none is."""
    for pattern in (MANIFEST_NAME, f"*/{MANIFEST_NAME}", f"*/*/{MANIFEST_NAME}", f"*/{CHECKPOINTS}"):
        if found := next(iter(sorted(folder.glob(pattern))), None):
            return found.parent
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return next((file for file in files if file.suffix.lower() in IMAGE_SUFFIXES), None)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far the training of a run has come."""

    epoch: int
    """Whole epochs finished."""
    num_epochs: int
    step: int
    is_over: bool
    """Whether it has come to its end, or ``optim.patience`` or a caller's function ended it."""


def progress_of(run: Path, config: TrainConfig | None = None) -> Progress | None:
    """How far a run on this machine has come, by its last checkpoint; None where nothing tells.

    Args:
        config: what it is to be trained with from here on; None: what it was.
    """
    folder = run / CHECKPOINTS
    try:
        last, stored = read_meta(LocalStorage(folder / LAST))
        best = read_meta(LocalStorage(folder / BEST))[0] if (folder / BEST).is_dir() else last
    except (OSError, UserError):
        return None
    optim = (config or stored).optim
    is_over = last["epoch"] >= optim.num_epochs or 0 < optim.patience <= last["epoch"] - best["epoch"]
    is_over |= last.get("ended", False) and optim.num_epochs == stored.optim.num_epochs
    return Progress(epoch=last["epoch"], num_epochs=optim.num_epochs, step=last["step"], is_over=is_over)


def unfinished(run: Path) -> str:
    """In words, that the training of a run on this machine has not come to its end; empty if it has, or nothing
    tells."""
    if (now := progress_of(run)) is None or now.is_over:
        return ""
    return (
        f"{run}: {now.epoch} of {now.num_epochs} epochs of its training are done, so these are not the scores of a "
        "finished model; if it was stopped, --resume auto of `msl train` goes on"
    )


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint folder that ``path`` means: itself, or the best (else the last) one in a run folder.

    Raises:
        FileNotFoundError: there is none.
    """
    path = Path(path).expanduser()
    parents = (path / CHECKPOINTS, path)
    for candidate in (path, *(parent / name for parent in parents for name in (BEST, LAST))):
        for folder in (candidate, set_aside(candidate)):  # the latter if a crash came between the two renames of a swap
            if (folder / META_NAME).is_file():
                return folder
    if len(path.parts) == 1 and not path.exists():
        raise FileNotFoundError(
            f"{path}: no run of this name, here or in {RUNS}/{_nearest_run(path.name) or not_there(RUNS)}"
        )
    if series := find_series(path):
        raise FileNotFoundError(
            f"{path}: a series of {counted(len(series), 'run')}, and this takes single ones, such as {series[0]}"
        )
    raise FileNotFoundError(
        f"{path}: no checkpoint here (no {META_NAME}); give a run folder or a folder such as "
        f"RUN/{CHECKPOINTS}/{BEST}, made by `msl train`"
    )


def _nearest_run(name: str) -> str:
    """The end of a message: the command that trains on the dataset of this name, or a run with a name like it."""
    if Path(SHARDS, name).is_dir():
        return f"; `msl train {shlex.quote(name)}` makes one"
    return did_you_mean(name, (run.name for run in Path(RUNS).glob("*/")))


def open_checkpoint(place: str | Path) -> Storage:
    """The folder of the checkpoint that ``place`` means, as in `find_checkpoint`; also for a URL of a run or a
    checkpoint.

    Raises:
        FileNotFoundError: there is none.
        StorageError: the store cannot be read.
    """
    storage = open_storage(place)
    local = storage.path()
    if local is not None:
        return LocalStorage(find_checkpoint(local))
    if storage.exists(META_NAME):
        return storage
    parent, _, name = storage.url.rpartition("/")
    names = [BEST, LAST]
    if parent.endswith(f"/{CHECKPOINTS}"):  # RUN/checkpoints/best, as training calls it
        folder, names = open_storage(parent), [name]
    else:
        folder = storage if name == CHECKPOINTS else storage.child(CHECKPOINTS)
    files = [info.name for info in folder.list_files()] if folder.can_list else []
    for name in names:
        # `msltrain.runs.mirror` puts the step behind the name.
        found = [match for file in files if (match := re.fullmatch(rf"({re.escape(name)}\.(\d+))/{META_NAME}", file))]
        if found:
            return folder.child(max(found, key=lambda match: int(match[2]))[1])
        if folder.exists(f"{name}/{META_NAME}"):
            return folder.child(name)
    raise FileNotFoundError(f"{place}: no checkpoint here (no {META_NAME}); give the URL of a run or of a checkpoint")


def training_shards(checkpoint: str | Path) -> str:
    """The shards that hold what the run of ``checkpoint`` was validated on: its training shards, or others.

    Raises:
        FileNotFoundError, UserError: no checkpoint there, or it does not name the shards.
    """
    data = read_meta(open_checkpoint(checkpoint))[1].data
    if not data.train:
        raise UserError(f"{checkpoint}: does not say what it was trained on; name the shards with --data")
    return data.validation or data.train


def test_shards(checkpoint: str | Path) -> str | None:
    """The test shards beside those that the run of ``checkpoint`` was trained on; None where there are none."""
    try:
        train = read_meta(open_checkpoint(checkpoint))[1].data.train
    except (OSError, UserError):  # a weights file of elsewhere, or nothing: said where it is opened
        return None
    return find_test_shards(train) or None if train else None


def no_test_split(model: str | Path, otherwise: str) -> UserError:
    """The error where a model is to be measured, and there are no test shards beside those that it was trained on.

    Args:
        model: a run, a series or a checkpoint.
        otherwise: what else to type, as the end of the message.
    """
    try:
        train = read_meta(open_checkpoint(next(iter(find_series(model)), model)))[1].data.train
    except (OSError, UserError):
        train = ""
    if not train:
        return UserError(f"{model}: does not say what it was trained on; say what to measure on with --data SHARDS")
    folder = train.rstrip("/").rpartition("/")[0] or "."
    try:
        manifest = read_manifest(train)
    except (OSError, UserError):  # the photographs that it was trained on are gone
        return UserError(f"{folder}: no dataset is there any more; {otherwise}")
    if manifest.split in _TOGETHER:
        return UserError(f"{folder}: has no test split, for its photographs were kept together; {otherwise}")
    is_begun = [split for split in unfinished_splits(folder) if split in TEST_SPLITS]
    is_so = unfinished_said(folder, is_begun) if is_begun else f"{folder}: the test split is missing"
    build = build_other_split(open_storage(f"{folder}/test"), manifest, "test")
    return UserError(f"{is_so}{build and f'; to build it: {build}'}; or {otherwise}")


def read_meta(folder: Storage) -> tuple[dict[str, Any], TrainConfig]:
    """What ``meta.json`` of a checkpoint folder says, and the config in it. Raises UserError if it is damaged."""
    file = folder.where(META_NAME)
    try:
        meta = json.loads(folder.read(META_NAME).decode("utf-8"))
        version = meta["schema_version"]
        if version not in (1, SCHEMA_VERSION) or isinstance(version, bool):
            raise UserError(f"{file}: schema version {version}, this program reads 1 to {SCHEMA_VERSION}")
        if version > 1 and meta.pop("meta_sha256") != digest_of(meta):
            raise UserError(f"{file}: damaged or edited (it does not match its own digest); copy the checkpoint again")
        config = from_json(json.dumps(meta["config"]), file)
        missing = {"step", "epoch", "validation_mAP", "classes", "weights_sha256"} - set(meta)
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{file}: not the description of a checkpoint ({error!r})") from None
    if missing:
        raise UserError(f"{file}: lacks {', '.join(sorted(missing))}")
    _check_meta(meta, file)
    return meta, config


def _check_meta(meta: dict[str, Any], file: str) -> None:
    classes, mean_ap = meta["classes"], meta["validation_mAP"]
    is_number = isinstance(mean_ap, int | float) and not isinstance(mean_ap, bool)
    named = isinstance(classes, list) and all(isinstance(name, str) and name for name in classes)
    for holds, what in (
        (named and classes and len(set(classes)) == len(classes), "classes are not distinct names"),
        (
            all(type(meta[name]) is int and meta[name] >= 0 for name in ("step", "epoch")),
            "step or epoch is not a count",
        ),
        (mean_ap is None or (is_number and 0 <= mean_ap <= 1), "validation_mAP is not a number from 0 to 1"),
        (is_digest(meta["weights_sha256"]), "weights_sha256 is not 64 hex digits"),
        (isinstance(meta.get("ended", False), bool), "ended is neither true nor false"),
        (
            meta["schema_version"] == 1 or is_digest(meta.get("train_state_sha256")),
            "train_state_sha256 is no digest",
        ),
    ):
        if not holds:
            raise UserError(f"{file}: {what}; copy the checkpoint again")


def digest_of(meta: dict[str, Any]) -> str:
    """SHA-256 of what ``meta.json`` says, however it is laid out."""
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def set_aside(folder: Path) -> Path:
    """Where a folder is between the two renames that replace it."""
    return folder.with_name(f".{folder.name}.old")
