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
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from msldata.errors import StorageError, UserError, counted
from msldata.storage import Storage, flush_to_disk
from msltrain.config import TrainConfig, to_json
from msltrain.models.build import Recogniser, build_model
from msltrain.models.pretrained import fill_whole
from msltrain.models.timm_view import TimmView
from msltrain.runs.find_checkpoint import (
    META_NAME,
    SCHEMA_VERSION,
    STATE_NAME,
    WEIGHTS_NAME,
    digest_of,
    open_checkpoint,
    read_meta,
    set_aside,
    unfinished,
)
from msltrain.runs.run_places import run_folder


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
    ended: bool = False
    """Whether whoever started the run has ended it here, before its last epoch."""
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

    @property
    def reading(self) -> str:
        """See `Origin.reading`: one file of weights may be read by several recipes."""
        model, stream = self.config.model, self.config.stream
        head = [model.head, model.num_heads, model.attention_weight]
        head += [model.num_queries, model.decoder_width, model.decoder_hidden]
        view = None if self.view is None else asdict(self.view)
        content = json.dumps([head, stream.mean, stream.std, view], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def prediction_files(self, pattern: str = "*.parquet") -> list[Path]:
        """Predictions files of its run by name; they are not looked for in object storage."""
        if isinstance(self.path, str):
            return []
        return sorted((run_folder(self.path) / "predictions").glob(pattern))

    def unfinished(self) -> str:
        """In words, that the training of its run has not come to its end; empty if it has, or nothing here tells."""
        if isinstance(self.path, str):
            return ""
        return unfinished(run_folder(self.path))

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
        detail = f"{counted(len(self.classes), 'class')} in the checkpoint, {len(classes)} in the data"
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
        if checkpoint.ended:
            meta["ended"] = True
        meta["meta_sha256"] = digest_of(meta)
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
        ended=meta.get("ended", False),
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
    part, old = folder.with_name(f".{folder.name}.part"), set_aside(folder)
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
