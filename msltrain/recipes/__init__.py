"""Recipes: functions that return a whole `TrainConfig`; their docstrings hold command, table and published number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from msldata.errors import UserError, did_you_mean
from msldata.storage import Location, one_or_many
from msltrain.config import TrainConfig, override
from msltrain.recipes.catalogue import RECIPES, Recipe
from msltrain.settings import Settings, given

__all__ = ["RECIPES", "Recipe", "configure", "recipe"]


def recipe(name: str) -> TrainConfig:
    """The config of the recipe ``name``. Raises UserError that names the nearest one."""
    if name not in RECIPES:
        raise UserError(f"no recipe '{name}'; `msl recipes` lists those that there are{did_you_mean(name, RECIPES)}")
    return RECIPES[name]()


def configure(
    base: str | TrainConfig,
    *,
    train: Location | None = None,
    keep_masks: Location | Sequence[Location] | None = None,
    weights: str | None = None,
    settings: Settings = (),
) -> TrainConfig:
    """A recipe with the user's own data and settings.

    Args:
        base: name of the recipe, or the config that takes its place.
        train: training shards, instead of the recipe's.
        keep_masks: keep-mask shards, instead of the recipe's.
        weights: first weights of the network, instead of the recipe's; see ``model.weights``.
        settings: see `msltrain.settings`; applied last. With another ``model.backbone`` the weights are that backbone's
            own unless others are named, since the recipe's tag belongs to the recipe's backbone.

    Raises:
        UserError: unknown recipe, field or backbone, or a value that the field cannot take.
    """
    config = recipe(base) if isinstance(base, str) else base
    data = replace(config.data, train=str(train or config.data.train))
    if keep_masks:
        data = replace(data, keep_masks=tuple(map(str, one_or_many(keep_masks))))
    model = config.model if weights is None else replace(config.model, weights=weights)
    changed = override(replace(config, data=data, model=model), settings)
    if changed.model.backbone != config.model.backbone:
        from msltrain.models.build import check_backbone  # late: torch and timm take seconds

        check_backbone(changed.model.backbone)
    asked = weights is not None or "model.weights" in given(settings)
    if asked or not config.model.weights or changed.model.backbone == config.model.backbone:
        return changed
    return replace(changed, model=replace(changed.model, weights=_own_tag(changed.model.backbone)))


def _own_tag(backbone: str) -> str:
    """The tag of timm's default weights for ``backbone``: the recipe's tag belongs to another network.

    Raises:
        UserError: timm has none.
    """
    import timm

    architecture, _, tag = backbone.partition(".")
    if tag:
        return tag
    known = timm.get_pretrained_cfg(architecture) if timm.list_pretrained(f"{architecture}.*") else None
    if known is None or not known.tag:
        raise UserError(
            f"timm has no pretrained weights for '{architecture}'; give some with --weights FILE, or start at random "
            "with --set model.weights="
        )
    return str(known.tag)
