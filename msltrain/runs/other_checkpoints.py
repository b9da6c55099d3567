"""Any checkpoint as a recogniser: a run of this program, a released file, a plain timm classifier.

K classes, H attention heads, D feature channels.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from msldata.contract.manifest import is_digest, read_manifest
from msldata.contract.records import read_class_list
from msldata.errors import UserError, counted, first_line
from msldata.storage import open_storage, read_local, regular
from msldata.storage.hub import fetch_from_hub, is_hub_place
from msltrain.config import ModelConfig, TrainConfig, from_json
from msltrain.models.build import Recogniser, build_model
from msltrain.models.own_weights import in_our_names
from msltrain.models.pretrained import fill_whole, read_tensors
from msltrain.models.released import KINDS, take_apart
from msltrain.models.timm_view import TimmView
from msltrain.models.weights_place import FILE_SUFFIXES
from msltrain.recipes import recipe
from msltrain.registered import OF_YOURS, load_own
from msltrain.runs.checkpoint import LoadedRecogniser, load_recogniser, rebuild_recogniser
from msltrain.runs.find_checkpoint import (
    EXPORT_CONFIG,
    EXPORT_WEIGHTS,
    Foreign,
    folder_of_weights,
    is_export,
    refuse_part,
)
from msltrain.runs.run_places import find_run
from msltrain.stream.config import StreamConfig

_log = logging.getLogger(__name__)

_MANY = 100
_EXPORT = (EXPORT_CONFIG, EXPORT_WEIGHTS)


def load_any(path: str | Path, foreign: Foreign, classes: tuple[str, ...], device: torch.device) -> LoadedRecogniser:
    """A recogniser in evaluation mode.

    Args:
        path: a checkpoint or run folder of this program, in ``runs/`` by its name, or its URL, or an exported folder,
            or a local .pth / .safetensors file; ``hf://OWNER/NAME`` is an export on the hub, or a file there.
        foreign: for a file, how to read it.
        classes: the classes of the data. A folder knows its own; a file is taken to have these, in this order.

    Raises:
        FileNotFoundError: there is nothing at ``path``.
        UserError: it is not clear how to read the file, it does not fit, or has another number of outputs.
    """
    path = find_run(path)
    if is_hub_place(path):
        there = load_any(fetch_from_hub(str(path), _EXPORT), foreign, classes, device)
        return replace(there, path=str(path))
    if (local := open_storage(path).path()) is None:
        if str(path).endswith(FILE_SUFFIXES):
            raise UserError(f"{path}: weights files are only read from a disk; copy it here, then give its path")
        return load_recogniser(path, device)
    refuse_part(path)
    path = folder_of_weights(local)
    if is_export(path):
        return _exported(path, device)
    if not path.is_file():
        return load_recogniser(path, device)
    if bool(foreign.recipe) == bool(foreign.model):
        raise UserError(
            f"{path}: a weights file does not say which network it belongs to; give --recipe NAME for a released "
            "checkpoint (`msl recipes` lists them), or --model NAME for a timm classifier"
        )
    if not classes:
        raise UserError(
            f"{path}: a weights file does not name its classes; give --classes SHARDS of the dataset it was trained "
            "on, or a text file with one name per line"
        )
    found = read_tensors(path)
    module: nn.Module
    view = None
    if foreign.recipe:
        module, config = _released(path, found, recipe(foreign.recipe), len(classes))
    else:
        module, config, view = _timm_classifier(path, found, foreign.model, len(classes))
    return LoadedRecogniser(
        recogniser=module.to(device).eval(),
        classes=classes,
        config=config,
        path=path,
        sha256=_sha256(path),
        view=view,
    )


def _sha256(file: Path) -> str:
    with open(file, "rb", opener=regular) as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _exported(folder: Path, device: torch.device) -> LoadedRecogniser:
    """What ``msl export`` wrote."""
    file, weights = folder / EXPORT_CONFIG, folder / EXPORT_WEIGHTS
    try:
        content = json.loads(read_local(file))
        named, sha256 = content["classes"], content["weights_sha256"]
        is_list = isinstance(named, list) and named and all(isinstance(name, str) and name for name in named)
        if not is_list or len(set(named)) < len(named) or not is_digest(sha256):
            raise ValueError("its classes or its digest are malformed")
        classes, origin = tuple(named), content.get("threshold_origin", "")
        if not isinstance(origin, str):
            raise ValueError("its thresholds have no origin in words")
        wanted = content.get("model_sha256")
        thresholds = tuple(float(content["thresholds"][name]) for name in classes) if "thresholds" in content else ()
        if not all(0 <= threshold <= 1 for threshold in thresholds):
            raise ValueError("its thresholds are not scores")
        config = from_json(json.dumps(content["config"]), str(file)) if "config" in content else None
        name = "" if config else content["timm_model"]
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{file}: not what `msl export` writes ({error}); export the model again") from None
    found = _sha256(weights)
    if wanted not in (None, "", found):
        raise UserError(f"{weights}: damaged (sha256 {found[:12]}…, {EXPORT_CONFIG} says {str(wanted)[:12]}…)")
    tensors = read_tensors(weights)
    view = None
    if config is None:
        module, config, view = _timm_classifier(weights, tensors, name, len(classes))
    else:
        module = rebuild_recogniser(config, len(classes))
        fill_whole(module, in_our_names(tensors, file), str(weights))
    return LoadedRecogniser(
        recogniser=module.to(device).eval(),
        classes=classes,
        config=config,
        path=folder,
        sha256=sha256,
        view=view,
        thresholds=thresholds,
        threshold_origin=origin,
    )


def _released(
    path: Path, found: dict[str, Tensor], config: TrainConfig, num_classes: int
) -> tuple[Recogniser, TrainConfig]:
    released = take_apart(found, str(path))
    if released is None:
        raise UserError(
            f"{path}: holds no head of a released checkpoint, {KINDS}; give --model NAME for a timm classifier"
        )
    if released.num_classes != num_classes:
        raise UserError(
            f"{path}: its head has {counted(released.num_classes, 'class')}, the data {num_classes}; give those of the "
            "dataset it was trained on"
        )
    model = replace(config.model, weights=str(path), **released.settings)
    module = build_model(model, num_classes, image_size=config.stream.image_size)
    if module.weights is None or not module.weights.fills_head:
        raise UserError(
            f"{path}: its head does not fit the {module.backbone.num_features} feature channels of "
            f"'{model.backbone}'; choose the recipe it was made with"
        )
    return module, replace(config, model=model)


def _timm_classifier(
    path: Path, found: dict[str, Tensor], name: str, num_classes: int
) -> tuple[nn.Module, TrainConfig, TimmView]:
    import timm

    load_own()
    if not timm.is_model(name):
        raise UserError(f"timm has no model '{name}'; `timm.list_models()` lists them; {OF_YOURS}")
    module = timm.create_model(name, pretrained=False, num_classes=num_classes)
    wanted = module.state_dict()
    # The last tensor of the classifier shows how many outputs the file has; a wrong number is the likeliest mistake.
    last = next((key for key in reversed(wanted) if key in found and wanted[key].shape != found[key].shape), None)
    if last is not None and found[last].shape[1:] == wanted[last].shape[1:]:
        raise UserError(
            f"{path}: has {counted(len(found[last]), 'output')} ({last}), the data "
            f"{counted(num_classes, 'class')}; give those of the dataset it was trained on"
        )
    try:
        missing, unexpected = module.load_state_dict(found, strict=False)
    except RuntimeError as error:
        raise UserError(f"{path}: its tensors do not fit timm's '{name}' ({first_line(error)})") from None
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise UserError(
            f"{path}: not a whole '{name}': {len(missing)} of its tensors are missing, {len(unexpected)} are not its "
            f"own, such as {', '.join([*missing[:2], *unexpected[:2]])}; choose the model it was made with"
        )
    pretraining: Any = module.default_cfg
    if num_classes >= _MANY and num_classes == pretraining.get("num_classes"):
        _log.warning(
            "%s: '%s' has the %d classes of its pretraining, which chose one class per image (softmax): the order of "
            "its scores means something, the scores themselves and their thresholds do not",
            *(path, name, num_classes),
        )
    data = timm.data.resolve_data_config({}, model=module)
    stream = StreamConfig(image_size=data["input_size"][-1], mean=tuple(data["mean"]), std=tuple(data["std"]))
    return module, TrainConfig(stream=stream, model=ModelConfig(backbone=name)), TimmView.of(data)


def read_classes(location: str) -> tuple[str, ...]:
    """Class names in the order of the outputs.

    Args:
        location: shards of the dataset that the file was trained on, or a text file with one name per line.

    Raises:
        FileNotFoundError: there is nothing there.
        UserError: it is neither, names no class, or one twice.
    """
    file = Path(location).expanduser()
    if file.is_file():
        return read_class_list(open_storage(file.parent), file.name).classes
    classes = read_manifest(location).classes
    if not classes:
        raise UserError(
            f"{location}: names no classes; give shards with a class list, or a file with one name per line"
        )
    return classes
