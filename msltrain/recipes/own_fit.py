"""The recipe ``own`` fitted: network, size and length by the photographs and the machine, and why, in sentences."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from msldata.contract.judging import FEWEST, too_few_to_train
from msldata.errors import UserError, counted
from msldata.storage import read_local
from msltrain.config import TrainConfig, from_json
from msltrain.recipes.giving_way import with_settings
from msltrain.recipes.own import OWN, OWN_BASELINE, own, own_baseline
from msltrain.recipes.variants import PRECISE_BN_FROM, PRECISE_BN_IMAGES, distilled, distilled_with_twin
from msltrain.registered import load_own
from msltrain.settings import Settings, given
from msltrain.stream.config import StreamConfig
from msltrain.stream.samples.holdout import hold_out
from msltrain.stream.samples.shardset import open_shard_set

if TYPE_CHECKING:
    from torch import Tensor

ON_CPU = ("mobilenetv2_100.ra_in1k", "resnet18.tv_in1k", "resnet50.tv_in1k", "resnet101.tv_in1k")
ON_GPU = ("resnet101.tv_in1k", "resnet50.tv_in1k", "mobilenetv2_100.ra_in1k", "resnet18.tv_in1k")
"""Networks with weights, best first."""
STEPS_PER_ROOT = 25
"""Steps = this × √photographs: more photographs need more steps, each of them fewer."""
FEWEST_STEPS, FROM_NOTHING = 150, 4
"""At least so many; and so many times as many for a network that starts at random."""
LARGEST_CPU, LARGEST_GPU, SMALLEST = 160, 448, 64
"""Sides in pixels."""
_SEEN = 2000
_COUNTED_BELOW = 200
"""Photographs, below which those set aside are counted rather than estimated."""
_PATIENCE = 3.0


def fit_own(
    train: str,
    *,
    validation: str = "",
    keep_masks: Sequence[str] = (),
    weights: str | None = None,
    settings: Settings = (),
    on_gpu: bool | None = None,
    name: str = OWN,
) -> tuple[TrainConfig, list[str]]:
    """The recipe ``own`` or ``own-baseline`` for a dataset and a machine, and why it is so, in sentences.

    Both get the same network, size and length.

    Args:
        train, validation: shards; without the latter a part of the former is set aside.
        keep_masks: keep-mask shards; none: masks are drawn.
        weights: first weights, see ``model.weights``; None: the best that can be had.
        settings: see `msltrain.settings`: what is said here is not chosen.
        on_gpu: None: where there is a GPU, unless the settings say otherwise.
        name: of the recipe.

    Raises:
        UserError: weights that fit no network known here, or a setting that is none. FileNotFoundError, FormatError:
            the shards cannot be read.
    """
    asked = given(settings)
    is_plain = name == OWN_BASELINE
    chosen = own_baseline() if is_plain else own()
    kind: Literal["stored", "generated"] = "stored" if keep_masks else "generated"
    chosen = replace(chosen, keep_mask=replace(chosen.keep_mask, kind=kind))
    base = with_settings(chosen, settings)
    # What contradicts shows now, also beside the choices for pretrained weights.
    if asked.get("model.weights", weights) != "" and not is_plain:
        with_settings(distilled_with_twin(chosen), settings)
    num_train, num_validation, classes, side, num_all = _look_at(train, validation, base.data.validation_fraction)
    _refuse_too_few(train, num_train, num_validation, base if "stream.batch_size" in asked else None)
    import torch  # late: what is wrong with settings and data shows without it

    from msltrain.models.build import check_backbone
    from msltrain.models.own_weights import find_own_file

    load_own()  # the network may be one of them
    if on_gpu is None:
        on_gpu = torch.cuda.is_available() and base.run.device != "cpu"
    weights = base.model.weights if "model.weights" in asked else weights
    backbone = base.model.backbone if "model.backbone" in asked else None
    if backbone is not None:
        check_backbone(backbone)
    config, network_said = _with_network(base, weights, backbone, on_gpu)
    starts_at_random = not config.model.weights
    size, size_said = _image_size(
        config, "stream.image_size" in asked, bool(weights and find_own_file(weights)), side, on_gpu
    )
    batch_size = min(8 if num_train < 200 else 16 if num_train < 1000 else 32, num_train)
    if "stream.batch_size" in asked:
        batch_size = base.stream.batch_size
    per_epoch = max(1, num_train // batch_size)
    steps = max(FEWEST_STEPS, round(STEPS_PER_ROOT * math.sqrt(num_train))) * (FROM_NOTHING if starts_at_random else 1)
    num_epochs, why_steps = math.ceil(steps / per_epoch), f"{STEPS_PER_ROOT} × √photographs, at least {FEWEST_STEPS}"
    if starts_at_random:
        why_steps += f"; {FROM_NOTHING} times that from nothing"
    if "optim.num_epochs" in asked:
        num_epochs, why_steps = base.optim.num_epochs, "as asked"
    if is_plain and not starts_at_random:
        config = replace(config, optim=replace(config.optim, precise_bn_images=PRECISE_BN_IMAGES))
    elif not starts_at_random:
        # Without what was set: `with_settings` adds it again, and sees what contradicts.
        config = replace(config, loss=chosen.loss, optim=replace(config.optim, ema_decay=None))
        is_alone = "optim.twin_share" in asked and not base.optim.twin_share
        config = distilled(config) if is_alone else distilled_with_twin(config)
    config = replace(
        config,
        data=replace(config.data, train=train, validation=validation, keep_masks=tuple(keep_masks)),
        stream=replace(config.stream, image_size=size, batch_size=batch_size),
        optim=replace(
            config.optim,
            num_epochs=num_epochs,
            warmup_epochs=num_epochs / 10,
            precise_bn_images=config.optim.precise_bn_images if num_train >= PRECISE_BN_FROM else 0,
        ),
        run=replace(config.run, amp=on_gpu, log_every=20 if on_gpu else 5),
    )
    about, held_out = ("", f"{num_validation:,}") if num_validation else ("about ", "the others")
    masks = "those of --keep-masks" if keep_masks else "drawn here, as no --keep-masks are named"
    config = with_settings(config, settings)
    method = "every photograph is shown whole, and nothing is hidden" if is_plain else _method_said(config)
    return config, [
        f"photographs: {about}{num_train:,} to train on, {held_out} to validate on, {counted(classes, 'class')}",
        *([too_few_to_train(num_all)] if num_all < FEWEST else []),
        network_said,
        size_said,
        f"length: {about}{num_epochs * per_epoch:,} steps of {batch_size}, {num_epochs} times all photographs "
        f"({why_steps})",
        f"method: {method}" if is_plain else f"method: {method}; masks: {masks}",
    ]


def in_short(config: TrainConfig, reasons: Sequence[str]) -> list[str]:
    """A warning, empty where there is nothing to warn of; then on what is trained, which network, and how long.

    Args:
        config, reasons: what `fit_own` gives.
    """
    model, side = config.model, config.stream.image_size
    photographs, network, length = (
        next(one for one in reasons if one.startswith(f"{topic}: ")) for topic in ("photographs", "network", "length")
    )
    from_nothing = "FROM NOTHING" in network
    few = next((one for one in reasons if "too few to learn from" in one), "")
    warnings = [
        few,
        "FROM NOTHING: no pretrained weights are on this machine, and none can be fetched. The model will know far "
        "less than a pretrained one: stop, and give some with --weights FILE"
        if from_nothing
        else "",
    ]
    return [
        ". ".join(filter(None, warnings)),
        photographs,
        f"network: {model.backbone} "
        + (f"with the weights {model.weights}" if model.weights else "from nothing")
        + f", at {side} × {side} pixels",
        length.partition(" (")[0],
    ]


def _method_said(config: TrainConfig) -> str:
    share, twin = config.keep_mask.share, config.optim.twin_share
    if not config.loss.has_masked_branch:
        return "every photograph is shown whole" if not config.loss.needs_keep_masks else "masks as plain augmentation"
    hidden = "and with parts hidden" if share == 1 else f"and {100 * share:.0f} % of them with parts hidden as well"
    if config.first_masked_epoch:
        hidden += f", from epoch {config.first_masked_epoch + 1} on"
    beside = f"; a twin that sees whole ones alone makes up {100 * twin:.0f} % of the result" if twin else ""
    return (
        f"every photograph is shown whole, {hidden}: the whole one learns its labels, the hidden one to say what the "
        f"whole one says{beside}"
    )


def _look_at(train: str, validation: str, fraction: float) -> tuple[int, int, int, int, int]:
    """Photographs to train on and to validate on (0: a part of the former), classes, median shorter side in pixels,
    photographs in all."""
    shards = open_shard_set(train)
    num_seen = min(int(shards.counts[0]), _SEEN)
    _, rows = shards.rows(np.zeros(num_seen, np.int64), np.arange(num_seen))
    side = int(np.median(np.minimum(rows.width_N, rows.height_N)))
    if validation:
        num_validation = open_shard_set(validation).num_samples
        return shards.num_samples, num_validation, len(shards.classes), side, shards.num_samples + num_validation
    num_train = max(1, round((1 - fraction) * shards.num_samples))
    if fraction and 1 < shards.num_samples < _COUNTED_BELOW:  # where each counts
        try:
            num_train = hold_out(shards, fraction)[0].num_samples
        except UserError:
            if shards.num_samples >= FEWEST:
                raise
            few = too_few_to_train(shards.num_samples)
            raise UserError(f"{train}: {few}; none of these can be set aside to validate on") from None
    return num_train, 0, len(shards.classes), side, shards.num_samples


def _refuse_too_few(train: str, num_train: int, num_validation: int, asked: TrainConfig | None) -> None:
    """Raise UserError where no batch can be made, of the size that was asked for or of two, which BatchNorm needs."""
    least = asked.stream.batch_size if asked is not None and asked.stream.drop_last else 2
    if num_train >= least:
        return
    if least > 2:
        advice = f"give a smaller --batch-size than {least}"
    else:
        advice = f"build it from at least {FEWEST}, better 50 of each class, and train again"
    apart = "" if num_validation else " besides those set aside to validate on"
    raise UserError(f"{train}: {counted(num_train, 'photograph')} to train on{apart}, which is too few; {advice}")


def _image_size(config: TrainConfig, is_asked: bool, is_own: bool, side: int, on_gpu: bool) -> tuple[int, str]:
    """The side to train at, and why."""
    size = config.stream.image_size
    if is_asked or is_own:
        return size, f"image size: {size} pixels, {'as asked' if is_asked else 'that of the weights'}"
    largest = LARGEST_GPU if on_gpu else LARGEST_CPU
    size = max(SMALLEST, min(largest, side // 32 * 32))
    if side <= largest:
        return size, f"image size: {size} pixels, as the photographs' shorter side has {side}"
    machine = "" if on_gpu else " on a machine without GPU"
    more = "small objects may need more (--image-size)"
    return size, f"image size: {size} of the shorter side's {side} pixels, the most by default{machine}; {more}"


def _with_network(
    config: TrainConfig, weights: str | None, backbone: str | None, on_gpu: bool
) -> tuple[TrainConfig, str]:
    """The recipe with the network whose weights can be had, and why that one."""
    choices = (backbone,) if backbone is not None else ON_GPU if on_gpu else ON_CPU
    if weights is not None:
        return _with_weights(config, weights, choices, asked=backbone)
    tried = [name if "." in name else _with_tag(name) for name in choices]
    found = next(filter(is_cached, tried), "") or next(filter(is_reachable, tried[:1]), "")
    if not found:
        backbone = choices[0].partition(".")[0]
        return replace(config, model=replace(config.model, backbone=backbone)), (
            f"network: {backbone} FROM NOTHING: no pretrained weights are on this machine, and none can be fetched; it "
            "will know far less than a pretrained one (--weights FILE, or `timm` weights in the Hugging Face cache)"
        )
    backbone, _, tag = found.partition(".")
    where = "on this machine" if is_cached(found) else "to be fetched"
    model = replace(config.model, backbone=backbone, weights=tag)
    return replace(config, model=model, stream=_normalised(config.stream, found)), (
        f"network: {backbone} with the weights {tag} ({where})"
    )


def _with_weights(
    config: TrainConfig, weights: str, choices: Sequence[str], asked: str | None
) -> tuple[TrainConfig, str]:
    """The network that a weights file, a run or a tag of the user's belongs to."""
    from msltrain.models.own_weights import find_own_file
    from msltrain.models.pretrained import read_source
    from msltrain.models.weights_place import is_timm_tag

    model = replace(config.model, weights=weights)
    if not weights:
        backbone = (asked or choices[0]).partition(".")[0]
        return replace(config, model=replace(model, backbone=backbone)), f"network: {backbone} from nothing, as asked"
    if (file := find_own_file(weights)) is not None:
        theirs = _config_beside(file)
        if theirs is not None:
            config = replace(config, model=replace(theirs.model, weights=weights))
            stream = replace(
                config.stream, image_size=theirs.stream.image_size, mean=theirs.stream.mean, std=theirs.stream.std
            )
            return replace(config, stream=stream), f"network: {theirs.model.backbone}, continued from {weights}"
    if is_timm_tag(weights):
        backbone = (asked or choices[0]).partition(".")[0]
        config = replace(config, stream=_normalised(config.stream, f"{backbone}.{weights}"))
        return replace(config, model=replace(model, backbone=backbone)), f"network: {backbone} with the tag {weights}"
    names = [asked] if asked else list(dict.fromkeys((*choices, *ON_CPU)))
    fitting = _first_that_fits([name.partition(".")[0] for name in names], read_source(weights), weights)
    # A file does not say how its network's input was normalised: most likely as timm's own weights for it.
    config = replace(config, stream=_normalised(config.stream, _with_tag(fitting)))
    return replace(config, model=replace(model, backbone=fitting)), f"network: {fitting} with the weights of {weights}"


def _first_that_fits(backbones: Sequence[str], tensors: dict[str, Tensor], weights: str) -> str:
    import timm

    from msltrain.models.pretrained import fill_network

    for name in backbones:
        if not timm.is_model(name):
            continue  # refused with those that are near when the network is built
        try:
            fill_network(timm.create_model(name, num_classes=0), tensors, weights)
        except UserError:
            continue
        return name
    if len(backbones) == 1:
        return backbones[0]
    raise UserError(f"{weights}: fits none of {', '.join(backbones)}; name its network with --backbone")


def _config_beside(file: Path) -> TrainConfig | None:
    """What a checkpoint, run or export of a weights file was trained with, where a file there says so."""
    for name in ("meta.json", "config.json"):
        try:
            content = json.loads(read_local(file.parent / name))["config"]
            return from_json(json.dumps(content), str(file.parent / name))
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
    return None


def _with_tag(backbone: str) -> str:
    """The full name of the weights that timm takes for a network by default; the network's alone where it has none."""
    import timm

    if not timm.is_model(backbone) or not timm.list_pretrained(f"{backbone}.*"):
        return backbone
    known = timm.get_pretrained_cfg(backbone)
    return f"{backbone}.{known.tag}" if known is not None and known.tag else backbone


def _normalised(stream: StreamConfig, name: str) -> StreamConfig:
    import timm

    known = timm.get_pretrained_cfg(name) if name in timm.list_pretrained() else None
    if known is None:
        return stream
    (*mean,), (*std,) = known.mean, known.std
    return replace(stream, mean=(mean[0], mean[1], mean[2]), std=(std[0], std[1], std[2]))


def _hub_place(name: str) -> str:
    import timm

    known = timm.get_pretrained_cfg(name) if "." in name and timm.is_model(name.partition(".")[0]) else None
    return "" if known is None else str(known.hf_hub_id or "")


def is_cached(name: str) -> bool:
    """Whether timm's weights ``NETWORK.TAG`` lie in the Hugging Face cache of this machine."""
    from huggingface_hub import try_to_load_from_cache

    place = _hub_place(name)
    return bool(place) and any(
        isinstance(try_to_load_from_cache(place, file), str) for file in ("model.safetensors", "pytorch_model.bin")
    )


def is_reachable(name: str) -> bool:
    """Whether timm's weights ``NETWORK.TAG`` can be fetched from the hub now; asked once, for seconds at most."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.constants import HF_HUB_OFFLINE

    place = _hub_place(name)
    if not place or HF_HUB_OFFLINE:
        return False
    try:
        get_hf_file_metadata(hf_hub_url(place, "model.safetensors"), timeout=_PATIENCE)
    except Exception:  # the hub's client raises a dozen types, and none of them is a mistake of the user's
        return False
    return True
