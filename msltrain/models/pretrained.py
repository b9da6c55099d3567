"""Pretrained weights for a backbone: a timm tag, a model on the Hugging Face hub, a local .pth / .safetensors file.

On the hub ``hf://OWNER/NAME`` is any model, ours or another's, or ``hf://OWNER/NAME/FILE`` a file in it; ``hf-hub:`` is
timm's own way to name one.

Files keep their author's layout. Names are matched first (torchvision's and timm's ResNets use the same names); a file
with other names but the same tensors in the same order (torchvision's mobilenet_v2) is matched by position. Files are
only ever read in ways that cannot run code.
"""

from __future__ import annotations

import argparse
import logging
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from msldata.errors import UserError, counted, first_line
from msldata.storage.hub import fetch_from_hub, is_hub_place
from msltrain.models.weights_place import FILE_SUFFIXES, HUB_PREFIX

_log = logging.getLogger(__name__)

HUB_FILES = ("model.safetensors", "config.json")
"""What is fetched of a model on the hub."""
_COUNTER = "num_batches_tracked"
"""BatchNorm's step counter: not a weight; old files lack it, and nothing here reads it."""


@dataclass(frozen=True, kw_only=True)
class WeightsReport:
    """What was taken, and from where, when a backbone was filled with pretrained weights."""

    source: str
    """The file, or the full timm name."""
    matched_by: Literal["timm", "names", "order"]
    num_loaded: int
    """Tensors of the network that were filled."""
    missing: tuple[str, ...] = ()
    """Tensors of the network that the file does not hold."""
    ignored: tuple[str, ...] = ()
    """Tensors of the file that the network has no place for, usually its classifier."""
    fills_head: bool = False
    """Whether the head was filled too, from a released checkpoint."""
    head: str = ""
    """What was taken from the head of one of our models, in words."""
    lost: tuple[str, ...] = ()
    """Classes that one of our models knows beside those of the data, and that the new one will not know."""

    def warning(self) -> str:
        """What nobody may miss, in words: classes that get lost, or that nothing but the order of the tensors says
        which is which; empty where neither is so."""
        if self.lost:
            return (
                f"{self.source} knows {shortened(self.lost)} too, and the data has no such class: the new model will "
                "not know what it does not have. To keep them, build the photographs of before and the new ones "
                "together, from one table, and train on all of them"
            )
        if self.matched_by != "order":
            return ""
        return (
            f"the tensors in {self.source} have other names than the network's; they were taken in the order in which "
            "they are stored, because all shapes agree. If the file is of another network, what was learnt is in the "
            "wrong places: compare the first validation with that of weights by name"
        )

    def summary(self) -> str:
        """One sentence for a log."""
        head = (
            ", for the head as well, its classes by position as the file does not name them" if self.fills_head else ""
        )
        ignored = f"; not used: {shortened(self.ignored)}" if self.ignored else ""
        order = ", taken in their order, as their names are others" if self.matched_by == "order" else ""
        how = f"first weights: {self.source} ({counted(self.num_loaded, 'tensor')}{order}){head}"
        return how + (f"; {self.head}" if self.head else "") + ignored


def local_weights(weights: str) -> str:
    """``weights`` as they are, or the local copy of those that ``hf://`` names: a folder, or a file."""
    return str(fetch_from_hub(weights, HUB_FILES)) if is_hub_place(weights) else weights


def read_source(weights: str) -> dict[str, Tensor]:
    """The tensors of a local file, or of a model on the Hugging Face hub, by name.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it cannot be fetched, is damaged, or holds anything other than tensors.
    """
    if not weights.startswith(HUB_PREFIX):
        path = Path(local_weights(weights)).expanduser()
        return read_tensors(path / HUB_FILES[0] if is_hub_place(weights) and path.is_dir() else path)
    from timm.models import load_state_dict_from_hf

    try:
        content = load_state_dict_from_hf(weights.removeprefix(HUB_PREFIX), weights_only=True)
    except Exception as error:  # the hub's client and torch raise a dozen types
        raise UserError(
            f"{weights}: cannot be fetched as a weights file ({first_line(error)}); check the name (OWNER/NAME) and "
            "the network, or download the file elsewhere and set model.weights=FILE"
        ) from error
    return _tensors_of(content, weights)


def create_pretrained(name: str, tag: str) -> tuple[nn.Module, WeightsReport]:
    """The timm network ``name`` with the pretrained weights ``tag``, downloaded or from timm's cache.

    Raises:
        UserError: timm has no such weights (the message lists those it has), or they cannot be fetched.
    """
    import timm

    architecture = name.split(".")[0]
    known = sorted(full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*"))
    if tag not in known:
        raise UserError(
            f"timm has no weights '{tag}' for '{architecture}'; it has: {', '.join(known) or 'none'}; "
            f"a local file ({', '.join(FILE_SUFFIXES)}) can be given in their place"
        )
    try:
        network = timm.create_model(f"{architecture}.{tag}", pretrained=True, num_classes=0)
    except Exception as error:  # as above: a connection that breaks is no OSError
        raise UserError(
            f"{architecture}.{tag}: the weights could not be fetched ({first_line(error)}); check the "
            "network, or download the file elsewhere and set model.weights=FILE"
        ) from error
    return network, WeightsReport(
        source=f"{architecture}.{tag}", matched_by="timm", num_loaded=len(network.state_dict())
    )


def fill_network(network: nn.Module, found: Mapping[str, Tensor], source: str) -> WeightsReport:
    """Fill ``network`` in place.

    Args:
        network: the timm network.
        found: what `read_source` gave.
        source: its name, for messages.

    Raises:
        UserError: the tensors do not fit the network.
    """
    found = _in_timm_names(network, found)
    wanted = {name: tensor for name, tensor in network.state_dict().items() if not name.endswith(_COUNTER)}
    shared = [name for name in wanted if name in found]
    if 2 * len(shared) >= len(wanted):
        return _load_by_names(network, wanted, found, source)
    return _load_by_order(network, wanted, found, source)


def _in_timm_names(network: nn.Module, found: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """A TResNet's tensors under timm's names, if they have their authors': those norms use the absolute weight."""
    from timm.models.tresnet import TResNet, checkpoint_filter_fn

    return checkpoint_filter_fn(dict(found), network) if isinstance(network, TResNet) else found


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file by name, without the prefixes of wrappers (``module.``, ``model.`` …) and without
    BatchNorm's counters; a moving average instead of the weights beside it, where the file holds one.

    A .pth file is only ever read with ``weights_only=True``: it cannot run code.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it is damaged, holds objects other than tensors and plain data, or tensors with NaN or infinity.
    """
    if not path.is_file():
        folder = "a folder, not a weights file, and neither a run nor a checkpoint nor an export; name the file in it"
        what = folder if path.is_dir() else "no such weights file"
        raise FileNotFoundError(f"{path}: {what}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: object = load_file(path)
        else:
            with torch.serialization.safe_globals(_plain_types()):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not _is_torch_file(path):
            raise UserError(
                f"{path}: not a weights file; a state_dict saved by torch, or .safetensors, is needed"
            ) from None
        raise UserError(
            f"{path}: holds Python objects besides tensors{_object_in(error)} and was not opened, since that could "
            "run code; save its state_dict alone, or as .safetensors, where you trust it"
        ) from None
    except Exception as error:  # torch and safetensors raise a dozen types for a damaged file
        raise UserError(f"{path}: cannot be read as a weights file ({first_line(error)})") from error
    return _tensors_of(content, str(path))


def _plain_types() -> list[Any]:
    """What checkpoints of timm and of training loops hold beside tensors, and runs no code: options and numbers."""
    from numpy._core import multiarray

    types: list[Any] = [argparse.Namespace, np.dtype, np.ndarray]
    for name in ("scalar", "_reconstruct"):
        made = getattr(multiarray, name)
        types += [made, (made, f"numpy.core.multiarray.{name}")]  # the latter as numpy 1 wrote it
    numbers = {type(np.dtype(kind)) for kind in np.sctypeDict.values() if kind is not np.object_}
    return [*types, *sorted(numbers, key=lambda kind: kind.__name__)]


def _object_in(error: Exception) -> str:
    """The type that was met, as torch's message names it."""
    found = re.search(r"(?:GLOBAL |got <class ')([\w.]+)", str(error))
    return f" ({found[1]})" if found else ""


def _is_torch_file(path: Path) -> bool:
    """Whether a file begins like those of ``torch.save``: a zip archive, or a pickle before torch 1.6."""
    with path.open("rb") as file:
        return file.read(4).startswith((b"PK", b"\x80"))


_AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "module")
"""What other programs call the state_dict in their checkpoints: moving averages, which they evaluate, come first."""
_FRONTS = ("module.", "_orig_mod.", "model.", "net.", "network.")
"""What wrappers (DataParallel, torch.compile, Lightning) put before every name."""
_BESIDE = "n_averaged"
"""A counter of averaged models."""


_DEEPEST = 8
"""Wrappers around a state_dict; a file can hold one that is inside of itself."""


def _holds_tensors(content: object, depth: int = _DEEPEST) -> bool:
    """Whether it is a mapping with tensors in it, or in a mapping of it: the settings of an average are none."""
    if not isinstance(content, Mapping) or not depth:
        return False
    return any(isinstance(value, Tensor) or _holds_tensors(value, depth - 1) for value in content.values())


def _tensors_of(content: object, source: str) -> dict[str, Tensor]:
    """The state_dict in what a file held, however it is wrapped; a moving average rather than the weights."""
    for _ in range(_DEEPEST):
        if not isinstance(content, Mapping):
            break
        known: Mapping[Any, Any] = content
        inner = next((name for name in (*_AVERAGES, *_WRAPPERS) if _holds_tensors(known.get(name))), None)
        if inner is None:
            break
        if inner in _AVERAGES:
            _log.warning("%s: holds a moving average of the weights beside them (%s); that is taken", source, inner)
        content = known[inner]
    tensors = dict(content) if isinstance(content, Mapping) else {}
    tensors = {str(name): value for name, value in tensors.items() if isinstance(value, Tensor)}
    tensors.pop(_BESIDE, None)
    if not tensors:
        raise UserError(f"{source}: no tensors found; a state_dict (name → tensor) is needed")
    while front := next((one for one in _FRONTS if all(name.startswith(one) for name in tensors)), ""):
        tensors = {name.removeprefix(front): value for name, value in tensors.items()}
    tensors.pop(_BESIDE, None)
    tensors = {name: value for name, value in tensors.items() if not name.endswith(_COUNTER)}
    require_usable(tensors, source)
    return tensors


def fill_whole(network: nn.Module, tensors: Mapping[str, Any], source: str) -> None:
    """Fill every tensor of ``network``, in place.

    Args:
        tensors: by the network's own names; only BatchNorm's counters may be absent.

    Raises:
        UserError: they are not the tensors of this network.
    """
    strange = [str(name) for name, value in tensors.items() if not isinstance(value, Tensor)]
    if strange:
        raise UserError(f"{source}: holds something else than tensors ({shortened(strange)})")
    require_usable(tensors, source)
    wanted = network.state_dict()
    lacking = [name for name in wanted if name not in tensors and not name.endswith(_COUNTER)]
    foreign = [name for name in tensors if name not in wanted]
    others = [name for name in wanted if name in tensors and tensors[name].shape != wanted[name].shape]
    found = {"it lacks": lacking, "it has": foreign, "other shapes have": others}
    if wrong := [f"{what} {shortened(names)}" for what, names in found.items() if names]:
        raise UserError(f"{source}: does not fit the network that is described beside it ({'; '.join(wrong)})")
    network.load_state_dict(tensors, strict=False)


def require_usable(tensors: Mapping[str, Tensor], source: str) -> None:
    """Raise UserError where a tensor holds NaN or infinity, claims to be larger than what was read of it, or is a
    weight in whole numbers, of which torch would make fractions without a word, and without their scale."""
    odd = [name for name, value in tensors.items() if not _is_plain(value)]
    if odd:
        raise UserError(f"{source}: {len(odd)} of its tensors are not stored number by number ({shortened(odd)})")
    whole = [
        name
        for name, value in tensors.items()
        if name.rpartition(".")[2] in ("weight", "bias") and not value.is_floating_point()
    ]
    if whole:
        raise UserError(
            f"{source}: {len(whole)} of its weights hold no fractions ({shortened(whole)}); save them unquantised"
        )
    bad = [name for name, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()]
    if bad:
        raise UserError(
            f"{source}: {len(bad)} of its tensors hold NaN or infinity ({shortened(bad)}), as after a training that "
            "broke off; take an earlier checkpoint"
        )


def _is_plain(tensor: Tensor) -> bool:
    """Whether each of its numbers has a place of its own: a view of one number can pretend to be terabytes."""
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _load_by_names(
    network: nn.Module, wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], source: str
) -> WeightsReport:
    wrong = [
        f"{name} is {tuple(found[name].shape)}, not {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in found and found[name].shape != tensor.shape
    ]
    if wrong:
        raise UserError(
            f"{source}: {len(wrong)} tensors have another shape than the backbone's: {shortened(wrong)}; "
            "the file belongs to another variant; choose the backbone it was made with"
        )
    chosen = {name: found[name] for name in wanted if name in found}
    network.load_state_dict(chosen, strict=False)
    return WeightsReport(
        source=source,
        matched_by="names",
        num_loaded=len(chosen),
        missing=tuple(name for name in wanted if name not in found),
        ignored=tuple(name for name in found if name not in wanted),
    )


def _load_by_order(
    network: nn.Module, wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], source: str
) -> WeightsReport:
    """Pair the tensors by position; only a complete match of shapes and roles is accepted."""
    names = list(found)
    for position, (ours, theirs) in enumerate(zip(wanted, names)):
        if wanted[ours].shape != found[theirs].shape or ours.rpartition(".")[2] != theirs.rpartition(".")[2]:
            raise UserError(
                f"{source}: its names differ from the backbone's and tensor {position} does not fit: {theirs} "
                f"{tuple(found[theirs].shape)} in the file, {ours} {tuple(wanted[ours].shape)} in the backbone; "
                "choose the backbone it was made with"
            )
    if len(names) < len(wanted):
        raise UserError(
            f"{source}: holds {len(names)} tensors and the backbone needs {len(wanted)}; "
            "choose the backbone it was made with"
        )
    network.load_state_dict({ours: found[theirs] for ours, theirs in zip(wanted, names)}, strict=False)
    return WeightsReport(source=source, matched_by="order", num_loaded=len(wanted), ignored=tuple(names[len(wanted) :]))


def shortened(names: list[str] | tuple[str, ...]) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
