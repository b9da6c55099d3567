"""The list of recipes and grids: what is in it, what it costs, and that the networks exist."""

from __future__ import annotations

from dataclasses import replace

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from msltrain.__main__ import app
from msltrain.config import differences, from_json, to_json
from msltrain.models.query_heads import MLDecoderHead, Query2LabelHead
from msltrain.recipes import RECIPES, recipe
from msltrain.recipes.ablations import GRIDS, reference_row
from msltrain.recipes.catalogue import NO_NUMBER
from msltrain.recipes.cost import GIGAFLOP_PER_IMAGE, HEAD_GIGAFLOP_PER_IMAGE
from msltrain.recipes.variants import DISTIL_LOSS, as_published, tuned
from msltrain.reproduce.published_numbers import RIVALS
from msltrain.stream.config import KeepMaskConfig
from msltrain.stream.order.plan import steps

TARGETS = ("c-voc2007", "r-voc2007", "v-voc2007", "c-coco2014", "r-coco2014", "v-coco2014", "v-wider", "b-wider")
EVERY_CONFIG = [
    *(entry() for entry in RECIPES.values()),
    *(config for grid in GRIDS.values() for config in grid(tuned).values()),
]


@pytest.mark.parametrize("target", TARGETS)
def test_every_run_of_the_paper_is_there_in_each_form(target: str):
    assert {f"{method}-{target}" for method in ("msl", "baseline", "matched")} <= set(RECIPES)
    assert {f"{method}-{target}-paper" for method in ("msl", "baseline")} <= set(RECIPES)
    tuned, paper = recipe(f"msl-{target}"), recipe(f"msl-{target}-paper")
    assert (tuned.model, tuned.loss, tuned.optim.lr) == (paper.model, paper.loss, paper.optim.lr)
    assert (paper.stream.batch_size, paper.run.amp, paper.data.validation_fraction) == (6, False, 0)
    assert (paper.stream.drop_last, paper.data.keep_masks) == (False, ("shards/masks/official/high",))
    assert (tuned.stream.drop_last, tuned.data.keep_masks) == (True, ("shards/masks/high",))
    assert (paper.stream.crop_scale == tuned.stream.crop_scale == (1, 1)) is target.endswith("wider")
    assert (tuned.stream.batch_size, tuned.run.amp, tuned.data.validation_fraction) == (32, True, 0.05)
    changed = differences(tuned, recipe(f"matched-{target}"))
    assert set(changed) == {
        "data.keep_masks", "loss.clean_weight", "loss.masked_weight", "loss.consistency_weight"
    }  # fmt: skip
    assert changed["loss.clean_weight"] == (0.3, 0.5)


@pytest.mark.parametrize("target", TARGETS)
def test_our_own_recipe_changes_loss_start_and_statistics_alone(target: str):
    msl, distil = recipe(f"msl-{target}"), recipe(f"distil-{target}")
    ours = replace(msl, keep_mask=replace(msl.keep_mask, start=0.25))
    assert replace(ours, loss=DISTIL_LOSS, optim=replace(msl.optim, precise_bn_images=1024)) == distil
    assert distil.loss.clean_weight + distil.loss.masked_weight == 1, "else it learns at another rate than its baseline"
    assert distil.loss.masked_target == "whole_image" and distil.loss.consistency_weight == 0


def test_published_numbers_are_those_of_the_sources():
    numbers = {name: (entry.source, entry.number) for name, entry in RECIPES.items()}
    assert numbers["msl-c-voc2007"] == numbers["msl-c-voc2007-paper"] == ("Tables 1, 4", "mAP 96.1, CR 92.4, CF1 91.6")
    assert numbers["msl-v-voc2007"][1] == "mAP 95.0, CR 84.8, CF1 89.5" and numbers["msl-v-coco2014"][1] == "mAP 79.0"
    assert numbers["baseline-v-voc2007"] == ("Tables 4, 9", "mAP 94.4")
    assert numbers["baseline-v-coco2014"] == ("Tables 4, 9", "mAP 76.8")
    assert numbers["msl-v-wider"] == ("official README", "mAP 90.6")
    assert [numbers[f"baseline-{network}-wider"][1] for network in "bv"] == ["mAP 89.0", "mAP 90.2"]
    assert numbers["baseline-c-voc2007"][1].startswith("mAP 93.7 (95.2 by CSRA's authors")
    assert numbers["baseline-r-coco2014"] == ("CSRA's authors, batch 16", "mAP 83.3")
    assert all(number == "no published number" for _, number in (numbers["matched-c-voc2007"], numbers["smoke"]))


def test_only_what_somebody_published_says_as_published():
    for name, entry in RECIPES.items():
        theirs = entry.number != NO_NUMBER and "CSRA" not in entry.source  # whose batches were of 16
        assert ("as published" in entry.what) is (name.endswith("-paper") and theirs), name
        assert "exactly" not in entry.what
    assert "nobody published" in RECIPES["msl-r-voc2007-paper"].what


def test_steps_of_a_published_epoch():
    stream = recipe("msl-c-voc2007-paper").stream
    assert steps(5_011, stream.batch_size, stream.drop_last) == 836
    assert steps(82_081, stream.batch_size, stream.drop_last) == 13_681


def test_weights_are_tags_that_timm_has():
    tags = {f"{config.model.backbone}.{config.model.weights}" for config in EVERY_CONFIG if config.model.weights}
    assert {"resnet101.tv_in1k", "vit_large_patch16_224.mae"} <= tags
    assert tags <= set(timm.list_pretrained())


@pytest.mark.parametrize(("backbone", "image_size"), GIGAFLOP_PER_IMAGE)
def test_the_cost_is_what_a_forward_pass_takes(backbone: str, image_size: int):
    with torch.device("meta"), torch.no_grad():
        network = timm.create_model(backbone, num_classes=0)
        with FlopCounterMode(display=False) as counted:
            network(torch.empty(1, 3, image_size, image_size))
    assert GIGAFLOP_PER_IMAGE[backbone, image_size] == pytest.approx(counted.get_total_flops() / 1e9, rel=0.01)


@pytest.mark.parametrize(("head", "dataset"), HEAD_GIGAFLOP_PER_IMAGE)
def test_the_cost_of_a_head_is_what_it_takes(head: str, dataset: str):
    with torch.device("meta"), torch.no_grad():
        module = {"mldecoder": MLDecoderHead, "q2l": Query2LabelHead}[head](2048, 20 if "voc" in dataset else 80)
        with FlopCounterMode(display=False) as counted:
            module(torch.empty(1, 2048, 14, 14))
    assert HEAD_GIGAFLOP_PER_IMAGE[head, dataset] == pytest.approx(counted.get_total_flops() / 1e9, rel=0.04)


def test_hours():
    """374 GFLOP a sample: 62.4 for an image, twice for the masked one, three times for the way back."""
    hours = 62.4e9 * 2 * 3 * 82_081 * 60 / 30e12 / 3600
    assert RECIPES["msl-c-coco2014-paper"].gpu_hours == pytest.approx(hours)
    assert RECIPES["baseline-c-coco2014-paper"].gpu_hours == pytest.approx(hours / 2)
    assert RECIPES["smoke"].gpu_hours is None
    assert all(entry.gpu_hours for name, entry in RECIPES.items() if name.endswith(TARGETS))


@pytest.mark.parametrize("dataset", ["voc2007", "coco2014"])
def test_rivals_have_one_network_one_budget_and_their_own_methods(dataset: str):
    grid = GRIDS[f"rivals-{dataset}"](tuned)
    msl = grid["msl"]
    for row, config in grid.items():
        assert (config.model.backbone, config.model.weights) == ("resnet101", "tv2_in1k"), row
        for ours, theirs in ((config.stream, msl.stream), (config.optim, msl.optim)):
            fields = ("image_size", "batch_size", "drop_last", "mean", "std", "num_epochs")
            assert [getattr(ours, one, None) for one in fields] == [getattr(theirs, one, None) for one in fields], row
        assert config.run == msl.run and config.data.train == msl.data.train
        assert config.loss.has_masked_branch is (row == "msl")
    assert {row: config.model.head for row, config in grid.items()} == {
        "linear": "mean", "csra": "csra", "asl": "mean", "mldecoder": "mldecoder", "q2l": "q2l", "splicemix": "max",
        "msl": "csra",
    }  # fmt: skip
    network = {"voc2007": "c-voc2007", "coco2014": "c-coco2014"}[dataset]
    assert grid["csra"] == RECIPES[f"baseline-{network}"]()
    assert (grid["asl"].loss.recognition, grid["asl"].loss.asl_detach) == ("asl", True)
    assert grid["q2l"].loss.asl_gamma_negative == 2 and grid["splicemix"].augment.mix == "splicemix"
    assert grid["mldecoder"].augment == grid["q2l"].augment == grid["asl"].augment and grid["asl"].augment.randaugment
    assert grid["q2l"].optim.lr_batch_size == 128 and grid["q2l"].optim.warmup_epochs == pytest.approx(4)
    own = GRIDS[f"rivals-{dataset}"](as_published)
    assert own["asl"] == RECIPES[f"asl-t-{dataset}"]() and own["asl"].model.backbone == "tresnet_l"
    for row in ("csra", "asl", "mldecoder", "q2l"):
        [entry] = [one for name, one in RECIPES.items() if name.startswith(f"{row}-") and name.endswith(dataset)]
        assert entry.gpu_hours and entry.number.startswith(f"mAP {RIVALS[dataset][row]}"), row


@pytest.mark.parametrize("form", [tuned, as_published])
@pytest.mark.parametrize("name", GRIDS)
def test_a_grid_varies_the_method_and_nothing_else(name: str, form):
    grid = GRIDS[name](form)
    configs = list(grid.values())
    assert len({to_json(config) for config in configs}) == len(configs) > 1
    for row, config in grid.items():
        assert from_json(to_json(config)) == config, row
        reference = grid[reference_row(grid, row)]
        assert reference.loss.has_masked_branch and reference.keep_mask == KeepMaskConfig(), row
        if name.startswith("rivals"):  # a method brings its optimiser and its crops
            continue
        assert (config.optim, config.run, config.stream) == (reference.optim, reference.run, reference.stream), row
        assert config.model.backbone == reference.model.backbone and config.data.train == reference.data.train, row
        rate_and_size = config.optim.lr, config.stream.batch_size
        assert rate_and_size == (configs[0].optim.lr, configs[0].stream.batch_size), row


def test_what_newcomers_want_comes_first():
    assert next(iter(RECIPES)) == "own"
    said = " ".join(CliRunner().invoke(app, ["recipes"], env={"COLUMNS": "200"}).output.split())
    assert said.startswith("For photographs of your own take own, which `msl train NAME` does.")
