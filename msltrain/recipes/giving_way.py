"""What the recipe ``own`` chose gives way to what the user set: where both cannot hold, the choice is left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from msltrain.config import TrainConfig
from msltrain.settings import Settings, override, values_of
from msltrain.typed_values import hints_of

_Values = dict[str, Any]


def _has_masks(value: _Values) -> bool:
    return bool(value["loss.masked_weight"] > 0 or value["loss.consistency_weight"] > 0)


def _no_recognition(value: _Values) -> bool:
    return _has_masks(value) and value["loss.clean_weight"] + value["loss.masked_weight"] == 0


_RULES: Sequence[tuple[str, Any, Callable[[_Values], bool]]] = (
    ("loss.masked_weight", 0.0, lambda value: value["loss.branches"] == "single"),
    (
        "loss.branches",
        "auto",
        lambda value: (
            value["loss.branches"] == "concatenated"
            and (value["loss.bn_mode"] != "shared" or value["loss.drop_hidden_tokens"] > 0)
        ),
    ),
    (
        "loss.bn_mode",
        "shared",
        lambda value: (
            value["loss.branches"] in ("single", "concatenated")
            or value["model.freeze_batchnorm"]
            or value["model.freeze_backbone"]
        ),
    ),
    ("loss.masked_target", "labels", lambda value: value["loss.recognition"] != "bce"),
    (
        "keep_mask.start",
        0.0,
        lambda value: _no_recognition(value) or (_has_masks(value) and value["loss.bn_mode"] == "split"),
    ),
    ("keep_mask.augment", (), lambda value: value["keep_mask.kind"] not in ("stored", "generated")),
    (
        "optim.twin_share",
        0.0,
        lambda value: not _has_masks(value) or value["optim.ema_decay"] is not None or value["run.shard_weights"],
    ),
)
"""A field that `own_fit` chooses, the value that every config bears, and when that takes its place, in turn."""


def with_settings(chosen: TrainConfig, settings: Settings) -> TrainConfig:
    """A chosen config with what the user set, before which every choice gives way that cannot hold beside it.

    Args:
        chosen: of the recipe.
        settings: as `override` takes them.

    Raises:
        UserError: a setting that is none, or settings that contradict one another.
    """
    value: _Values = {
        f"{section}.{name}": getattr(getattr(chosen, section), name)
        for section in hints_of(TrainConfig)
        for name in hints_of(type(getattr(chosen, section)))
    }
    asked = values_of(chosen, settings)
    value |= asked
    gone = {}
    for field, plain, is_due in _RULES:
        if field not in asked and value[field] != plain and is_due(value):
            value[field] = gone[field] = plain
    return override(chosen, gone | asked)
