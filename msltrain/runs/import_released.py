"""Released checkpoints (MSL, CSRA, ML-Decoder, Query2Label, ASL) as checkpoint folders, evaluated like our own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from msldata.contract.manifest import read_manifest
from msldata.errors import UserError, counted
from msltrain.config import TrainConfig
from msltrain.models.build import build_model
from msltrain.models.pretrained import WeightsReport, read_source
from msltrain.models.released import KINDS, take_apart
from msltrain.runs.checkpoint import Checkpoint, save_checkpoint


def import_released(file: str | Path, config: TrainConfig, *, data: str, folder: Path) -> WeightsReport:
    """Write the checkpoint folder ``folder`` with the weights of ``file``.

    No file holds λ or the normalisation of its inputs; they come from the config. A decoder's sizes are the file's.

    Args:
        file: a released checkpoint, such as ``msl_c_voc.pth``; see `msltrain.models.released`.
        config: the run it came from; only network and image size matter.
        data: shards of the dataset it was trained on, whose classes are the released order.
        folder: must not be there yet.

    Raises:
        UserError: ``folder`` exists, or the file does not fit the network, its head or the classes.
        FileNotFoundError, StorageError: a file cannot be read or written.
    """
    if folder.exists():
        raise UserError(f"{folder}: exists already; choose another --out")
    classes = read_manifest(data).classes
    released = take_apart(read_source(str(file)), str(file))
    if released is None:
        raise UserError(
            f"{file}: holds no head of a released checkpoint, {KINDS}; to start training from it, use "
            "`msl train --weights`"
        )
    wanted = {name: released.settings[name] for name in ("head", "num_heads") if name in released.settings}
    if any(getattr(config.model, name) != value for name, value in wanted.items()):
        found = ", ".join(f"{name}={getattr(config.model, name)}" for name in wanted)
        raise UserError(
            f"{file}: is {released.kind}'s with {', '.join(f'{name}={value}' for name, value in wanted.items())}, and "
            f"the recipe has {found}; choose its recipe, or "
            + " ".join(f"--set model.{name}={value}" for name, value in wanted.items())
        )
    if released.num_classes != len(classes):
        raise UserError(
            f"{file}: has {counted(released.num_classes, 'class')} and {data} has {len(classes)}; give "
            "shards of its own dataset"
        )
    config = replace(config, model=replace(config.model, weights=str(file), **released.settings))
    recogniser = build_model(config.model, len(classes), image_size=config.stream.image_size)
    report = recogniser.weights
    if report is None or not report.fills_head:
        raise UserError(
            f"{file}: its head does not fit the {recogniser.backbone.num_features} feature channels of "
            f"'{config.model.backbone}'; choose the recipe it was made with"
        )
    checkpoint = Checkpoint(
        config=config,
        classes=classes,
        step=0,
        epoch=0,
        validation_mAP=None,
        weights=recogniser.state_dict(),
        train_state={},
    )
    save_checkpoint(checkpoint, folder)
    return report
