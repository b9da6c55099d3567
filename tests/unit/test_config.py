"""Configs: JSON round trip, typed overrides, recipes."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path
from typing import Any

import pytest

import msltrain.config
import msltrain.stream.config
from msldata.errors import UserError
from msltrain.config import (
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
    differences,
    from_json,
    override,
    to_json,
)
from msltrain.recipes import RECIPES, recipe
from msltrain.stream.config import NO_CROP, AugmentConfig, KeepMaskConfig, StreamConfig


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_survives_json(name: str):
    config = recipe(name)
    assert from_json(to_json(config)) == config


def test_override_parses_by_the_field_type():
    config = override(
        recipe("msl-c-voc2007"),
        [
            "optim.lr=0.02",
            "optim.clip_norm=1",
            "optim.num_epochs=7",
            "run.amp=true",
            "model.weights=",
            "model.head=max",
            "data.keep_masks=shards/masks/high, s3://bucket/masks",
            "stream.mean=0.485,0.456,0.406",
            "stream.num_threads=none",
        ],
    )
    assert config.optim.lr == 0.02
    assert config.optim.clip_norm == 1.0 and isinstance(config.optim.clip_norm, float)
    assert config.optim.num_epochs == 7
    assert config.run.amp is True
    assert config.model.weights == ""
    assert config.model.head == "max"
    assert config.data.keep_masks == ("shards/masks/high", "s3://bucket/masks")
    assert config.stream.mean == (0.485, 0.456, 0.406)
    assert config.stream.num_threads is None
    assert differences(recipe("msl-c-voc2007"), override(recipe("msl-c-voc2007"), ["optim.lr=0.02"])) == {
        "optim.lr": (0.01, 0.02)
    }


def test_overrides_of_one_section_are_judged_together():
    config = override(recipe("demo-baseline"), ["loss.clean_weight=0", "loss.masked_weight=1"])
    assert config.loss == LossConfig(clean_weight=0, masked_weight=1, consistency_weight=0)


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("lr=0.02", "section.field=value"),
        ("optim.lr", "section.field=value"),
        ("opt.lr=1", "no section 'opt'; there are data, stream, augment, keep_mask, model, loss, optim, run"),
        ("optim.rate=1", "no field 'rate' in optim; there are optimizer, lr, "),
        ("optim.lr=fast", "optim.lr: expected a number, found 'fast'"),
        ("optim.num_epochs=1.5", "optim.num_epochs: expected a whole number, found 1.5"),
        ("run.amp=1", "run.amp: expected true or false"),
        ("model.head=mlp", "'mlp' is not one of csra, mean, max"),
        ("model.num_heads=3", "model.num_heads: 3 is not 1, 2, 4, 6 or 8"),
        ("stream.mean=0.5,0.5", "expected 3 values, found 2"),
        ("optim.lr=-1", "optim.lr: -1.0 is not above 0"),
        ("optim.lr=nan", "optim.lr: nan is not above 0"),
    ],
)
def test_a_wrong_override_says_what_is_possible(assignment: str, words: str):
    with pytest.raises(UserError) as caught:
        override(recipe("smoke"), [assignment])
    assert words in str(caught.value)


def test_one_value_stands_for_all_of_a_fixed_number():
    config = override(recipe("msl-c-voc2007"), ["stream.crop_scale=1", "stream.mean=0.5", "data.keep_masks=one"])
    assert (config.stream.crop_scale, config.stream.mean) == (NO_CROP, (0.5, 0.5, 0.5))
    assert config.data.keep_masks == ("one",)


def test_a_damaged_config_file_is_named():
    with pytest.raises(UserError, match=r"run/config\.json: not JSON"):
        from_json("{", "run/config.json")
    with pytest.raises(UserError, match=r"optim: no field 'rate'; there are optimizer"):
        from_json(to_json(recipe("smoke")).replace('"lr"', '"rate"'))


def test_published_values():
    voc, coco, vit = (recipe(f"msl-{target}-paper") for target in ("c-voc2007", "c-coco2014", "v-coco2014"))
    assert (voc.loss.clean_weight, voc.loss.masked_weight, voc.loss.consistency_weight) == (0.3, 0.2, 0.5)
    assert (voc.stream.image_size, voc.stream.batch_size) == (448, 6)
    assert (voc.stream.crop_scale, voc.stream.crop_ratio) == ((0.7, 1.0), (3 / 4, 4 / 3))
    assert (voc.stream.flip_probability, voc.stream.mean, voc.stream.std) == (0.5, (0, 0, 0), (1, 1, 1))
    assert (voc.optim.optimizer, voc.optim.lr, voc.optim.classifier_lr_factor) == ("sgd", 0.01, 10)
    assert (voc.optim.momentum, voc.optim.weight_decay, voc.optim.num_epochs) == (0.9, 1e-4, 60)
    assert (voc.optim.warmup_epochs, voc.optim.step_epochs, voc.optim.step_factor) == (2, 4, 0.1)
    assert (voc.optim.clip_norm, voc.optim.ema_decay, voc.run.amp) == (None, None, False)
    assert (voc.loss.train_ignored, voc.loss.branches) == ("negative", "auto")
    assert (voc.loss.recognition, voc.loss.consistency, voc.loss.bn_mode) == ("bce", "mean", "shared")
    assert (voc.loss.stop_gradient, voc.loss.drop_hidden_tokens) == ("none", 0)
    assert (voc.model.num_heads, voc.model.attention_weight) == (1, 0.1)
    assert (coco.model.num_heads, coco.model.attention_weight, coco.optim.step_epochs) == (6, 0.4, 5)
    assert (vit.model.num_heads, vit.model.attention_weight, vit.optim.num_epochs) == (8, 1.0, 40)
    assert vit.stream.image_size == 224
    assert recipe("msl-v-voc2007-paper").model.attention_weight == 0.3
    assert voc.data.validation_fraction == 0
    wider = recipe("msl-b-wider-paper")
    assert (wider.stream.mean, wider.stream.std, wider.optim.num_epochs) == ((0.5,) * 3, (0.5,) * 3, 40)
    resnet = recipe("msl-r-coco2014-paper").model
    assert (resnet.num_heads, resnet.attention_weight) == (4, 0.5)


@pytest.mark.parametrize("name", [name for name in RECIPES if "baseline" in name])
def test_a_baseline_differs_in_its_loss_alone(name: str):
    method = name.replace("baseline-", "msl-") if name.startswith("baseline-") else name.replace("-baseline", "")
    changed = differences(recipe(method), recipe(name))
    others = {"data.keep_masks"} if recipe(method).data.keep_masks else set()  # of one's own, masks are drawn
    assert {field for field in changed if not field.startswith("loss.")} == others
    loss = recipe(name).loss
    assert (loss.clean_weight, loss.masked_weight, loss.consistency_weight) == (1, 0, 0)


def test_an_unknown_recipe_is_told_its_neighbour_and_where_the_list_is():
    with pytest.raises(UserError, match=r"no recipe 'onw'; `msl recipes` lists .*; did you mean own\?$"):
        recipe("onw")
    with pytest.raises(UserError, match=r"no recipe 'xyz'; `msl recipes` lists those that there are$"):
        recipe("xyz")


def test_every_field_is_explained():
    """A string stands under each field of each config class."""
    files = (msltrain.config, msltrain.stream.config, msltrain.stream.config)
    bodies = [node for file in files for node in ast.parse(Path(file.__file__).read_text()).body]
    classes = [node for node in bodies if isinstance(node, ast.ClassDef)]
    assert {entry.type for entry in dataclasses.fields(TrainConfig)} <= {node.name for node in classes}
    for node in classes:
        for here, below in zip(node.body, [*node.body[1:], None]):
            if isinstance(here, ast.AnnAssign):
                assert isinstance(below, ast.Expr), f"{node.name}.{ast.unparse(here.target)}"


@pytest.mark.parametrize(("start", "num_epochs", "first"), [(0.29, 100, 29), (0.58, 50, 29), (0.8, 3, 2), (0.0, 7, 0)])
def test_masks_start_in_the_epoch_that_the_share_says(start: float, num_epochs: int, first: int):
    """In floating point, 0.29 · 100 is a little less than 29."""
    settings = [f"keep_mask.start={start}", f"optim.num_epochs={num_epochs}"]
    assert override(recipe("msl-c-voc2007"), settings).first_masked_epoch == first


def test_dimmed_pixels_are_not_counted_as_hidden():
    """At a level of 0.882 no patch would have nine tenths of its pixels visible."""
    settings = ["keep_mask.visible_level=0.882", "loss.drop_hidden_tokens=0.9"]
    with pytest.raises(
        UserError, match=r"keep_mask\.visible_level: 0\.882 is not 1, as loss\.drop_hidden_tokens needs"
    ):
        override(recipe("msl-c-voc2007"), settings)


def test_a_list_is_the_tuple_of_its_values():
    """A scale of [1, 1] is no crop, as (1, 1) is; and a run goes on with the settings that it was begun with."""
    lists = {"crop_scale": [1, 1], "crop_ratio": [0.5, 2.0], "mean": [0.5] * 3, "std": [0.25] * 3}
    stream = StreamConfig(**lists)  # type: ignore[arg-type]
    assert stream == StreamConfig(**{name: tuple(values) for name, values in lists.items()})  # type: ignore[arg-type]
    assert stream.crop_scale == NO_CROP
    assert DataConfig(keep_masks="shards/masks/high").keep_masks == ("shards/masks/high",)  # type: ignore[arg-type]
    masks = KeepMaskConfig(augment=["flip"], subset_weights=[0.5])  # type: ignore[arg-type]
    assert masks == KeepMaskConfig(augment=("flip",), subset_weights=(0.5,))
    assert LossConfig(class_weights=[1.0, 2.0]).class_weights == (1, 2)  # type: ignore[arg-type]
    assert DataConfig(keep_masks=["a", "b"]).keep_masks == ("a", "b")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "words", "message"),
    [
        (AugmentConfig, {"erase": "Cutout"}, r"augment\.erase: 'Cutout' is not one of , cutout, random$"),
        (AugmentConfig, {"mix": "mix-up"}, r"augment\.mix: 'mix-up' is not one of , mixup, cutmix, splicemix$"),
        (LossConfig, {"consistency": "mse"}, r"loss\.consistency: 'mse' is not one of mean, sum, bce$"),
        (LossConfig, {"stop_gradient": "whole"}, r"loss\.stop_gradient: 'whole' is not one of none, clean, masked$"),
        (LossConfig, {"bn_mode": "clean-only"}, r"loss\.bn_mode: 'clean-only' is not one of shared, clean_only, "),
        (OptimConfig, {"optimizer": "adam"}, r"optim\.optimizer: 'adam' is not one of sgd, adamw$"),
        (OptimConfig, {"schedule": "linear"}, r"optim\.schedule: 'linear' is not one of step, cosine, one_cycle$"),
        (KeepMaskConfig, {"augment": ("mirror",)}, r"keep_mask\.augment: 'mirror' is not one of flip, rotate, shift$"),
        (KeepMaskConfig, {"augment": "mirror"}, r"keep_mask\.augment: 'mirror' is not one of flip, rotate, shift$"),
        (ModelConfig, {"head": "avg"}, r"model\.head: 'avg' is not one of csra, mean, max, mldecoder, q2l; one "),
        (RunConfig, {"device": "gpu"}, r"run\.device: 'gpu' is not one of auto, cpu, cuda$"),
        (StreamConfig, {"on_sample_error": "ignore"}, r"stream\.on_sample_error: 'ignore' is not one of fail, skip$"),
    ],
)
def test_a_word_that_a_field_does_not_know_is_refused_in_python_too(kind: Any, words: dict[str, Any], message: str):
    """It was taken for another one: noise for the square of cutout, AdamW for Adam, a cosine for a line."""
    with pytest.raises(UserError, match=message):
        kind(**words)
