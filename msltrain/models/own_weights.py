"""First weights from what this program itself wrote: a run, a checkpoint, its weights file, an exported model.

H attention heads, K classes, D feature channels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from msldata.errors import UserError, counted
from msldata.storage import read_local
from msltrain.models.pretrained import WeightsReport, local_weights, read_tensors, shortened

_FILES = ("weights.safetensors", "model.safetensors")
_FOLDERS = ("", "checkpoints/best", "checkpoints/last", "best", "last")
_BACKBONE, _HEAD = "backbone.network.", "classifier."


@dataclass(frozen=True, kw_only=True)
class OwnWeights:
    """The tensors of one of our recognisers, and what its outputs mean."""

    source: str
    tensors: Mapping[str, Tensor]
    classes: tuple[str, ...]
    """Class names in logit order; empty if nothing beside the file names them."""


def find_own_file(weights: str) -> Path | None:
    """The weights file in one of our folders (in a run the best, else the last); None for other folders."""
    folder = Path(local_weights(weights)).expanduser()
    if not weights or not folder.is_dir():
        return None
    files = (folder / place / name for place in _FOLDERS for name in _FILES)
    return next((file for file in files if file.is_file()), None)


def read_own(weights: str) -> OwnWeights | None:
    """Our own weights that ``weights`` names, a folder or a file; None if it names something else.

    Raises:
        UserError: damaged.
    """
    file = find_own_file(weights) or Path(local_weights(weights)).expanduser()
    if file.suffix != ".safetensors" or not file.is_file():
        return None
    tensors = in_our_names(read_tensors(file), file.with_name("config.json"))
    if not any(name.startswith(_BACKBONE) for name in tensors):
        return None
    return OwnWeights(source=str(file), tensors=tensors, classes=_classes_of(file))


def in_timm_names(tensors: Mapping[str, Tensor], classifier: str) -> dict[str, Tensor]:
    """The tensors of a recogniser with a pooled linear head as those of timm's own classifier of this name."""
    linear = f"{_HEAD}linear."
    renamed = {
        f"{classifier}.{name.removeprefix(linear)}": one for name, one in tensors.items() if name.startswith(linear)
    }
    return renamed | {name.removeprefix(_BACKBONE): one for name, one in tensors.items() if name.startswith(_BACKBONE)}


def in_our_names(tensors: Mapping[str, Tensor], config_file: Path) -> dict[str, Tensor]:
    """The opposite, where ``config.json`` beside an export says that it is in timm's names; else as they are."""
    try:
        classifier = json.loads(read_local(config_file)).get("timm_classifier")
    except (OSError, ValueError, AttributeError, RecursionError):
        return dict(tensors)
    if not classifier:
        return dict(tensors)
    front = f"{classifier}."
    return {
        f"{_HEAD}linear.{name.removeprefix(front)}" if name.startswith(front) else f"{_BACKBONE}{name}": tensor
        for name, tensor in tensors.items()
    }


def fill_from_own(network: nn.Module, head: nn.Module, own: OwnWeights, classes: tuple[str, ...]) -> WeightsReport:
    """Fill, in place, the backbone's network and the head's rows for the classes that both know.

    Raises:
        UserError: the backbone differs.
    """
    found = {name.removeprefix(_BACKBONE): one for name, one in own.tensors.items() if name.startswith(_BACKBONE)}
    wanted = network.state_dict()
    wrong = [name for name in wanted if name not in found and not name.endswith("num_batches_tracked")]
    wrong += [name for name in wanted if name in found and found[name].shape != wanted[name].shape]
    if wrong:
        sizes = (
            "; a transformer's positions fit one stream.image_size" if any("pos_embed" in one for one in wrong) else ""
        )
        raise UserError(
            f"{own.source}: {len(wrong)} tensors of the backbone are missing there or have another shape "
            f"({shortened(wrong)}); set model.backbone to the one it was trained with{sizes}"
        )
    network.load_state_dict({name: found[name] for name in wanted if name in found}, strict=False)
    return WeightsReport(
        source=own.source,
        matched_by="names",
        num_loaded=len(found),
        ignored=tuple(name for name in found if name not in wanted),
        head=_fill_head(head, own, classes),
        lost=_lost(own.classes, classes),
    )


def _lost(before: tuple[str, ...], now: tuple[str, ...]) -> tuple[str, ...]:
    """Classes that are known no more; none where none is shared, and others are all that was ever meant to be known."""
    return tuple(name for name in before if name not in now) if set(before) & set(now) else ()


def _fill_head(head: nn.Module, own: OwnWeights, classes: tuple[str, ...]) -> str:
    """Copy the rows of the classes that both know; return what was taken, in words."""
    theirs = {name.removeprefix(_HEAD): tensor for name, tensor in own.tensors.items() if name.startswith(_HEAD)}
    ours = head.state_dict()
    by_class = getattr(head, "per_class", tuple(ours))
    if set(ours) != set(theirs) or any(_row(ours, name, by_class) != _row(theirs, name, by_class) for name in ours):
        return "head not taken: it is of another kind"
    before, now = own.classes, classes
    if not before or not now:
        if any(ours[name].shape != theirs[name].shape for name in ours):
            return "head not taken: nothing names its classes, and their number differs"
        head.load_state_dict(theirs)
        return "head taken by position: nothing names its classes"
    if not by_class:
        if now != before:
            return "head not taken: its weights are shared by classes, and the data has others"
        head.load_state_dict(theirs)
        return "the head with all its classes"
    blocks = [(len(ours[name]) // len(now), len(theirs[name]) // len(before)) for name in by_class]
    if any(here != there for here, there in blocks) or any(len(theirs[name]) % len(before) for name in by_class):
        return "head not taken: it has another number of attention heads"
    shared = [name for name in now if name in before]
    if not shared:
        return "head not taken: none of its classes is one of the data's"
    rows, from_rows = [now.index(name) for name in shared], [before.index(name) for name in shared]
    with torch.no_grad():
        for name in set(ours) - set(by_class):
            ours[name].copy_(theirs[name])
        for name in by_class:
            # One block of K rows per attention head.
            target, source = (
                one.unflatten(0, (-1, k)) for one, k in ((ours[name], len(now)), (theirs[name], len(before)))
            )
            target[:, rows] = source[:, from_rows].to(target.dtype)
    if len(shared) == len(now):
        return "the head with all its classes" + ("" if now == before else ", matched by name")
    new = [name for name in now if name not in before]
    return f"the head's {counted(len(shared), 'class')} that both know; new: {shortened(new)}"


def _row(state: Mapping[str, Tensor], name: str, by_class: tuple[str, ...]) -> tuple[int, ...]:
    """The shape of a tensor without its classes."""
    return tuple(state[name].shape[1:] if name in by_class else state[name].shape)


def _classes_of(file: Path) -> tuple[str, ...]:
    """What ``meta.json`` of a checkpoint, or ``config.json`` of an export, beside the file says."""
    for name in ("meta.json", "config.json"):
        try:
            classes = json.loads(read_local(file.parent / name))["classes"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
        if isinstance(classes, list) and all(isinstance(one, str) for one in classes):
            return tuple(classes)
    return ()
