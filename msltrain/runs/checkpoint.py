"""Checkpoints: a folder with safetensors weights, the state of training and a readable ``meta.json``.

``weights.safetensors``  what is evaluated and shipped: the weights, or their moving average where one is kept.
``train_state.pt``       all that continuing needs; read with ``weights_only=True``, so it cannot run code.
``meta.json``            config, classes, step, validation mAP, versions, and the SHA-256 of every file, of its own
                         content as well.

A checkpoint appears and is replaced as a whole: it is written beside its place and swapped in by renaming.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from msldata.contract.manifest import is_digest
from msldata.errors import StorageError, UserError, did_you_mean
from msldata.storage import LocalStorage, Storage, flush_to_disk, open_storage
from msltrain.config import TrainConfig, from_json, to_json
from msltrain.models.build import Recogniser, build_model
from msltrain.models.pretrained import fill_whole
from msltrain.models.timm_view import TimmView
from msltrain.runs.run_places import RUNS, SHARDS, run_folder

WEIGHTS_NAME = "weights.safetensors"
STATE_NAME = "train_state.pt"
META_NAME = "meta.json"
CHECKPOINTS = "checkpoints"
"""Folder of a run that holds its checkpoints."""
BEST, LAST, FAILED = "best", "last", "failed"
SCHEMA_VERSION = 2
"""Version 2 added digests of the training state and of ``meta.json``. Version 1 is still read."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Everything a checkpoint folder holds."""

    config: TrainConfig
    classes: tuple[str, ...]
    """Class names in logit order."""
    step: int
    """Steps taken, over the whole run."""
    epoch: int
    """Whole epochs finished."""
    validation_mAP: float | None
    """mAP of these weights on the validation split, 0 to 1; None when it was not measured."""
    weights: dict[str, Tensor]
    """The tensors of the recogniser to evaluate and ship, by name, on the CPU."""
    train_state: dict[str, Any]
    """Optimiser, position of the stream, random-number states and what else the trainer keeps: tensors, numbers, text,
    lists and dicts only."""


@dataclass(frozen=True, kw_only=True)
class LoadedRecogniser:
    """A trained recogniser, ready to run, and what it was trained as."""

    recogniser: nn.Module
    """In evaluation mode."""
    classes: tuple[str, ...]
    config: TrainConfig
    path: str | Path
    """The checkpoint folder it came from; a URL if that is in object storage."""
    sha256: str
    """SHA-256 of its weights file, in hex."""
    thresholds: tuple[float, ...] = ()
    """The lowest score at which each class counts as predicted; empty if the checkpoint has no thresholds."""
    threshold_origin: str = ""
    """Where the thresholds come from, in words."""
    view: TimmView | None = None
    """What it sees of a photograph; None: all of it, squashed, as everything that is trained here."""

    def prediction_files(self, pattern: str = "*.parquet") -> list[Path]:
        """Predictions files of its run by name; they are not looked for in object storage."""
        if isinstance(self.path, str):
            return []
        return sorted((run_folder(self.path) / "predictions").glob(pattern))

    def unfinished(self) -> str:
        """In words, that the training of its run has not come to its end; empty if it has, or nothing here tells."""
        if isinstance(self.path, str):
            return ""
        folder = run_folder(self.path) / CHECKPOINTS
        try:
            last, config = read_meta(LocalStorage(folder / LAST))
            best = read_meta(LocalStorage(folder / BEST))[0] if (folder / BEST).is_dir() else last
        except (OSError, UserError):
            return ""
        num_epochs, patience = config.optim.num_epochs, config.optim.patience
        if last["epoch"] >= num_epochs or 0 < patience <= last["epoch"] - best["epoch"]:
            return ""
        return (
            f"{run_folder(self.path)}: its training was stopped after {last['epoch']} of {num_epochs} epochs, so these "
            "are not the scores of a finished model; --resume auto of `msl train` goes on"
        )

    def columns_of(self, classes: tuple[str, ...], where: str) -> np.ndarray:
        """For each of its classes, int64 (K,), the position in ``classes`` (of the data at ``where``), by name.

        The data may have them in another order, and have others too. Raises UserError if it lacks one.
        """
        if set(self.classes) - set(classes):
            raise self._other_classes(classes, where)
        position = {name: number for number, name in enumerate(classes)}
        return np.array([position[name] for name in self.classes], np.int64)

    def ordered_as(self, classes: tuple[str, ...], where: str) -> LoadedRecogniser:
        """Itself with its outputs in the order of ``classes`` (of the data at ``where``), matched by name.

        Raises UserError unless these are its own classes, in whatever order.
        """
        if tuple(classes) == self.classes:
            return self
        if set(classes) != set(self.classes) or len(classes) != len(self.classes):
            raise self._other_classes(classes, where)
        order = [self.classes.index(name) for name in classes]
        return replace(
            self,
            recogniser=_Reordered(self.recogniser, order).eval(),
            classes=tuple(classes),
            thresholds=tuple(self.thresholds[number] for number in order) if self.thresholds else (),
        )

    def _other_classes(self, classes: tuple[str, ...], where: str) -> UserError:
        """That ``classes`` (of the data at ``where``) are not its own, with the names that one side lacks."""
        there, here = set(classes), set(self.classes)
        missing = [name for name in self.classes if name not in there]
        unknown = [name for name in classes if name not in here]
        detail = f"{len(self.classes)} classes in the checkpoint, {len(classes)} in the data"
        if missing:
            detail += f"; the data lacks {', '.join(missing[:5])}"
        if unknown:
            detail += f"; the checkpoint does not know {', '.join(unknown[:5])}"
        return UserError(
            f"{where}: its classes are not those of {self.path} ({detail}); use shards of the dataset it was trained on"
        )


class _Reordered(nn.Module):
    """A recogniser with its outputs in another order; ``order`` says which of its own stands where, int (K,)."""

    def __init__(self, recogniser: nn.Module, order: list[int]):
        super().__init__()
        self.recogniser, self.order = recogniser, order

    def forward(self, image_BCHW: Tensor) -> Tensor:
        return self.recogniser(image_BCHW)[:, self.order]


def save_checkpoint(checkpoint: Checkpoint, folder: Path) -> None:
    """Write ``folder``, replacing it as a whole; until everything is on disk the previous one stays in place.

    Raises:
        StorageError: it cannot be written (disk full, no permission); what was there before is untouched.
    """
    from safetensors.torch import save

    def write(part: Path) -> None:
        # Bytes first: safetensors and torch report a full disk with their own error types, a file with an OSError.
        weights = save({name: tensor.contiguous() for name, tensor in checkpoint.weights.items()})
        (part / WEIGHTS_NAME).write_bytes(weights)
        state = io.BytesIO()
        torch.save(checkpoint.train_state, state)
        (part / STATE_NAME).write_bytes(state.getbuffer())
        meta = {
            "schema_version": SCHEMA_VERSION,
            "step": checkpoint.step,
            "epoch": checkpoint.epoch,
            "validation_mAP": checkpoint.validation_mAP,
            "classes": checkpoint.classes,
            "weights_sha256": hashlib.sha256(weights).hexdigest(),
            "train_state_sha256": hashlib.sha256(state.getbuffer()).hexdigest(),
            "torch": torch.__version__,
            "config": json.loads(to_json(checkpoint.config)),
        }
        meta["meta_sha256"] = _digest_of(meta)
        (part / META_NAME).write_text(json.dumps(meta, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    replace_folder(folder, write)


def copy_checkpoint(source: Path, folder: Path) -> None:
    """Make ``folder`` the same checkpoint as ``source``, by hard links where the file system has them.

    Raises:
        StorageError: as `save_checkpoint`.
    """

    def write(part: Path) -> None:
        for file in source.iterdir():
            try:
                os.link(file, part / file.name)
            except OSError:
                shutil.copyfile(file, part / file.name)

    replace_folder(folder, write)


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint folder that ``path`` means: itself, or the best (else the last) one in a run folder.

    Raises:
        FileNotFoundError: there is none.
    """
    path = Path(path).expanduser()
    parents = (path / CHECKPOINTS, path)
    for candidate in (path, *(parent / name for parent in parents for name in (BEST, LAST))):
        for folder in (candidate, _old(candidate)):  # the latter if a crash came between the two renames of a swap
            if (folder / META_NAME).is_file():
                return folder
    if len(path.parts) == 1 and not path.exists():
        raise FileNotFoundError(f"{path}: no run of this name, here or in {RUNS}/{_nearest_run(path.name)}")
    raise FileNotFoundError(
        f"{path}: no checkpoint here (no {META_NAME}); give a run folder or a folder such as "
        f"RUN/{CHECKPOINTS}/{BEST}, made by `msl train`"
    )


def _nearest_run(name: str) -> str:
    """The end of a message: the command that trains on the dataset of this name, or a run with a name like it."""
    if Path(SHARDS, name).is_dir():
        return f"; `msl train {name}` makes one"
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


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint, named as for `open_checkpoint`, onto the CPU.

    Raises:
        FileNotFoundError: there is none at ``path``.
        UserError: one of its files is missing or damaged, or holds anything but plain data.
    """
    folder = open_checkpoint(path)
    meta, config = read_meta(folder)
    weights, _ = _read_weights(folder, meta)
    train_state = _read_state(folder, meta)
    return Checkpoint(
        config=config,
        classes=tuple(meta["classes"]),
        step=meta["step"],
        epoch=meta["epoch"],
        validation_mAP=meta["validation_mAP"],
        weights=weights,
        train_state=train_state,
    )


def load_recogniser(path: str | Path, device: str | torch.device = "cpu") -> LoadedRecogniser:
    """The recogniser of a checkpoint or run folder, in evaluation mode on ``device``. Nothing is downloaded.

    Args:
        path: a checkpoint folder, or a run folder, whose best checkpoint is taken (the last where there is no best);
            a URL as well.

    Raises:
        FileNotFoundError: there is no checkpoint.
        UserError: one of its files is damaged.
    """
    folder = open_checkpoint(path)
    meta, config = read_meta(folder)
    weights, sha256 = _read_weights(folder, meta)
    recogniser = rebuild_recogniser(config, len(meta["classes"]))
    fill_whole(recogniser, weights, folder.where(WEIGHTS_NAME))
    return LoadedRecogniser(
        recogniser=recogniser.to(device).eval(),
        classes=tuple(meta["classes"]),
        config=config,
        path=folder.path() or folder.url,
        sha256=sha256,
    )


def rebuild_recogniser(config: TrainConfig, num_classes: int) -> Recogniser:
    """The network of ``config`` with random weights, to be filled from a checkpoint."""
    return build_model(replace(config.model, weights=""), num_classes, image_size=config.stream.image_size)


def read_meta(folder: Storage) -> tuple[dict[str, Any], TrainConfig]:
    """What ``meta.json`` of a checkpoint folder says, and the config in it. Raises UserError if it is damaged."""
    file = folder.where(META_NAME)
    try:
        meta = json.loads(folder.read(META_NAME).decode("utf-8"))
        version = meta["schema_version"]
        if version not in (1, SCHEMA_VERSION) or isinstance(version, bool):
            raise UserError(f"{file}: schema version {version}, this program reads 1 to {SCHEMA_VERSION}")
        if version > 1 and meta.pop("meta_sha256") != _digest_of(meta):
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
        (
            meta["schema_version"] == 1 or is_digest(meta.get("train_state_sha256")),
            "train_state_sha256 is no digest",
        ),
    ):
        if not holds:
            raise UserError(f"{file}: {what}; copy the checkpoint again")


def _digest_of(meta: dict[str, Any]) -> str:
    """SHA-256 of what ``meta.json`` says, however it is laid out."""
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _read_state(folder: Storage, meta: dict[str, Any]) -> dict[str, Any]:
    """The training state, with everything in it that continuing needs."""
    file = folder.where(STATE_NAME)
    try:
        data = folder.read(STATE_NAME)
    except FileNotFoundError:
        raise UserError(f"{file}: missing, so this checkpoint can be evaluated but not continued") from None
    wanted = meta.get("train_state_sha256")
    if wanted is not None and (found := hashlib.sha256(data).hexdigest()) != wanted:
        raise UserError(f"{file}: damaged (sha256 {found[:12]}…, {META_NAME} says {wanted[:12]}…); copy it again")
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for a damaged file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{file}: damaged, or not plain data ({reason})") from error
    if not isinstance(state, dict):
        raise UserError(f"{file}: not a training state")
    return state


def _read_weights(folder: Storage, meta: dict[str, Any]) -> tuple[dict[str, Tensor], str]:
    from safetensors.torch import load

    file = folder.where(WEIGHTS_NAME)
    try:
        data = folder.read(WEIGHTS_NAME)
    except FileNotFoundError:
        raise UserError(f"{file}: missing; copy the whole checkpoint folder") from None
    found = hashlib.sha256(data).hexdigest()
    if found != meta["weights_sha256"]:
        raise UserError(
            f"{file}: damaged (sha256 {found[:12]}…, {META_NAME} says {meta['weights_sha256'][:12]}…); copy it again"
        )
    try:
        return load(data), found
    except Exception as error:  # safetensors raises its own types
        raise UserError(f"{file}: not a weights file ({(str(error).splitlines() or [''])[0]}); copy it again") from None


def replace_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a folder beside ``folder``, then put it in its place."""
    part, old = folder.with_name(f".{folder.name}.part"), _old(folder)
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        write(part)
        for file in part.rglob("*"):
            if file.is_file():
                flush_to_disk(file)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        part.rename(folder)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "the disk is full" if full else (error.strerror or str(error)).lower()
        kept = f"; {folder} is still the previous one" if folder.exists() else ""
        raise StorageError(f"{folder}: could not be written: {reason}{kept}") from error
    shutil.rmtree(old, ignore_errors=True)


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")
