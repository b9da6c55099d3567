"""Released MSL and CSRA checkpoints as checkpoint folders, to be evaluated like our own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from msldata.contract.manifest import read_manifest
from msldata.errors import UserError
from msltrain.config import TrainConfig
from msltrain.models.build import build_model
from msltrain.models.pretrained import WeightsReport, head_weights, read_source
from msltrain.runs.checkpoint import Checkpoint, save_checkpoint


def import_released(file: str | Path, config: TrainConfig, *, data: str, folder: Path) -> WeightsReport:
    """Write the checkpoint folder ``folder`` with the weights of ``file``.

    No file holds λ; it comes from the config.

    Args:
        file: a plain state_dict with a CSRA head, such as ``msl_c_voc.pth``.
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
    heads = head_weights(read_source(str(file)))
    if not heads:
        raise UserError(
            f"{file}: holds no CSRA head (classifier.multi_head.0.head.weight), so it is not a released MSL or CSRA "
            "checkpoint; to start training from it, use `msl train --weights`"
        )
    if len(heads) != config.model.num_heads or config.model.head != "csra":
        raise UserError(
            f"{file}: has {len(heads)} CSRA heads and the recipe {config.model.num_heads} of kind {config.model.head}; "
            f"choose its recipe, or --set model.head=csra --set model.num_heads={len(heads)}"
        )
    if len(heads[0]) != len(classes):
        raise UserError(
            f"{file}: has {len(heads[0])} classes and {data} has {len(classes)}; give shards of its own dataset"
        )
    config = replace(config, model=replace(config.model, weights=str(file)))
    recogniser = build_model(config.model, len(classes), image_size=config.stream.image_size)
    report = recogniser.weights
    assert report is not None and report.fills_head
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
