"""Recipes: functions that return a whole `TrainConfig`; their docstrings hold command, table and published number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from msldata.errors import UserError
from msltrain.config import TrainConfig, override
from msltrain.recipes import published, small

RECIPES: dict[str, Callable[[], TrainConfig]] = {
    "msl-c-voc2007": published.msl_c_voc2007,
    "msl-c-coco2014": published.msl_c_coco2014,
    "msl-v-voc2007": published.msl_v_voc2007,
    "msl-v-coco2014": published.msl_v_coco2014,
    "baseline-c-voc2007": published.baseline_c_voc2007,
    "baseline-c-coco2014": published.baseline_c_coco2014,
    "baseline-v-voc2007": published.baseline_v_voc2007,
    "baseline-v-coco2014": published.baseline_v_coco2014,
    "smoke": small.smoke,
    "demo": small.demo,
    "demo-baseline": small.demo_baseline,
}


def recipe(name: str) -> TrainConfig:
    """The config of the recipe ``name``. Raises UserError that lists the recipes."""
    if name not in RECIPES:
        raise UserError(f"no recipe '{name}'; there are: {', '.join(RECIPES)}")
    return RECIPES[name]()


def configure(
    name: str,
    *,
    train: str | None = None,
    keep_masks: Sequence[str] | None = None,
    weights: str | None = None,
    settings: Sequence[str] = (),
) -> TrainConfig:
    """A recipe with the user's own data and settings.

    Args:
        name: of the recipe.
        train: training shards, instead of the recipe's.
        keep_masks: keep-mask shards, instead of the recipe's.
        weights: first weights of the network, instead of the recipe's; see ``model.weights``.
        settings: ``section.field=value``, applied last.

    Raises:
        UserError: unknown recipe or field, or a value that the field cannot take.
    """
    config = recipe(name)
    data = replace(config.data, train=train or config.data.train)
    if keep_masks:
        data = replace(data, keep_masks=tuple(keep_masks))
    model = config.model if weights is None else replace(config.model, weights=weights)
    return override(replace(config, data=data, model=model), settings)
