"""Heads, losses and batch augmentations of one's own, by the names under which a module of one's own registers them.

Which module that is, the environment says, never a run's file: a run that was downloaded chooses nothing to import.
Networks of one's own are timm's to register, by the same module.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Collection
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar, get_args

from msldata.errors import UserError, did_you_mean, first_line

if TYPE_CHECKING:
    from torch import Tensor, nn

HeadName = Literal["csra", "mean", "max", "mldecoder", "q2l"]
LossName = Literal["bce", "asl", "hill", "splc"]
_OURS = {"model.head": get_args(HeadName), "loss.recognition": get_args(LossName), "augment.batch": ("",)}
"""What msltrain itself knows under a field."""

MODULES = "MSL_IMPORT"
"""The environment variable that names modules or ``.py`` files, separated by commas."""
ENTRY_POINTS = "msltrain"
"""The group of entry points by which an installed package names its module."""

_Head = TypeVar("_Head", bound="Callable[[int, int], nn.Module]")
_Loss = TypeVar("_Loss", bound="Callable[[Tensor, Tensor], Tensor]")
_Augmentation = TypeVar("_Augmentation", bound=Callable)

HEADS: dict[str, Callable[[int, int], nn.Module]] = {}
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {}
AUGMENTATIONS: dict[str, Callable] = {}

_is_loaded = False


def register_head(name: str) -> Callable[[_Head], _Head]:
    """Decorate a class or function that makes a head, so that ``model.head=NAME`` takes it.

    It is called with the number of feature channels D and of classes K. The module that it gives turns a feature map
    (B, D, H, W), float32, into logits (B, K). Activation maps ask it about single places, (B, D, 1, 1).

    Raises:
        UserError: the name is taken, or is none.

    Example:
        @msltrain.register_head("logmeanexp")
        class LogMeanExp(torch.nn.Module):
            def __init__(self, num_features: int, num_classes: int):
                super().__init__()
                self.linear = torch.nn.Linear(num_features, num_classes)

            def forward(self, feature_BDHW):
                return self.linear(feature_BDHW.flatten(2).transpose(1, 2)).exp().mean(1).log()

        print(msltrain.recipe("demo", settings={"model.head": "logmeanexp"}).model.head)
    """
    return _register(HEADS, "model.head", name)


def register_loss(name: str) -> Callable[[_Loss], _Loss]:
    """Decorate a recognition loss, so that ``loss.recognition=NAME`` takes it.

    It is called with logits (B, K) and targets (B, K), float32: 0 or 1, or between them where images are mixed, labels
    smoothed, or soft targets asked for. It gives the loss of each pair, (B, K). Weights of classes, ignored pairs and
    the mean are seen to.

    Raises:
        UserError: the name is taken, or is none.

    Example:
        @msltrain.register_loss("focal")
        def focal(logit_BK, target_BK):
            loss_BK = torch.nn.functional.binary_cross_entropy_with_logits(logit_BK, target_BK, reduction="none")
            return (target_BK - logit_BK.sigmoid()).square() * loss_BK

        step = msltrain.SiameseStep(torch.nn.Linear(3, 2), msltrain.LossConfig(recognition="focal"))
    """
    return _register(LOSSES, "loss.recognition", name)


def register_augmentation(name: str) -> Callable[[_Augmentation], _Augmentation]:
    """Decorate a function of a training batch, so that ``augment.batch=NAME`` takes it: after all other augmentation,
    before keep masks.

    It is called with a `Batch` on its device, ``seed`` and ``epoch``, and gives a `Batch`. For a run that resumes bit
    for bit it draws from these and from ``batch.key_hash_B`` alone.

    Raises:
        UserError: the name is taken, or is none.

    Example:
        @msltrain.register_augmentation("grey")
        def grey(batch, *, seed: int, epoch: int):
            draw = np.random.default_rng([seed, epoch, *batch.key_hash_B])
            is_grey_B = torch.from_numpy(draw.random(len(batch)) < 0.2).to(batch.image_BCHW.device)
            grey_BCHW = batch.image_BCHW.mean(1, keepdim=True).expand_as(batch.image_BCHW)
            return dataclasses.replace(
                batch, image_BCHW=torch.where(is_grey_B[:, None, None, None], grey_BCHW, batch.image_BCHW)
            )

        print(msltrain.recipe("demo", settings={"augment.batch": "grey"}).augment.batch)
    """
    return _register(AUGMENTATIONS, "augment.batch", name)


def _register(known: dict, field: str, name: str) -> Callable:
    if not isinstance(name, str) or not re.fullmatch(r"[\w-]+", name):
        raise UserError(f"{field}: {name!r} is no name; take letters, digits, _ and -")
    if name in _OURS[field]:
        raise UserError(f"{field}: '{name}' is one of msltrain's own; register yours under another name")

    def decorate(thing):
        before = known.get(name)
        if before is not None and _origin(before) != _origin(thing):  # the cell of a notebook may run again
            raise UserError(f"{field}: '{name}' is registered twice, by {_origin(before)} and by {_origin(thing)}")
        known[name] = thing
        return thing

    return decorate


def _origin(thing: object) -> str:
    return f"{getattr(thing, '__module__', '?')}.{getattr(thing, '__qualname__', thing)}"


def check_registered(field: str, name: str, own: Collection[str]) -> None:
    """Raise UserError unless a field may have this value: one of ours, or one that a module registers.

    Args:
        field: ``section.field``.
        name: its value.
        own: where names of that kind are registered.
    """
    ours = _OURS[field]
    if name in ours:
        return
    if name not in own:
        load_own()
    if name not in own:
        known = [*filter(None, ours), *own]
        is_so = f"is not one of {', '.join(known)}" if known else "is registered nowhere"
        raise UserError(f"{field}: {name!r} {is_so}{did_you_mean(str(name), known)}; {OF_YOURS}")


OF_YOURS = f"one of your own is found where {MODULES} names the module that registers it (docs/python.md)"
"""The end of a message about a name that nobody knows."""


def load_own() -> None:
    """Import, once, the modules that the environment names. Raises UserError where that fails."""
    global _is_loaded
    if _is_loaded:
        return
    _is_loaded = True  # at once, for they may call what calls this
    try:
        for point in metadata.entry_points(group=ENTRY_POINTS):
            _import(point.module, f"entry point {point.name} of the group {ENTRY_POINTS}")
        for name in filter(None, map(str.strip, os.environ.get(MODULES, "").split(","))):
            _import(name, f"{MODULES}={os.environ[MODULES]}")
    except UserError:
        _is_loaded = False
        raise


def _import(name: str, named_by: str) -> None:
    file = Path(name).expanduser()
    try:
        if file.suffix != ".py":
            importlib.import_module(name)
            return
        if not file.is_file():
            raise UserError(f"{named_by}: no file {name} in {Path.cwd()}")
        spec = importlib.util.spec_from_file_location(file.stem, file)
        assert spec is not None and spec.loader is not None
        sys.modules[file.stem] = module = importlib.util.module_from_spec(spec)  # where timm looks for it
        spec.loader.exec_module(module)
    except UserError:
        raise
    except Exception as error:
        advice = ""
        if isinstance(error, ModuleNotFoundError) and error.name == name:
            advice = f"; install it, put its folder on PYTHONPATH, or name its file, {name}.py"
        said = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"{named_by}: {name} cannot be imported ({said}){advice}") from error
