"""The smoke scale: every run of the paper's tables in about a minute each, on drawn images with tiny networks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from msldata.contract.manifest import MANIFEST_NAME
from msltrain.config import TrainConfig
from msltrain.demo.subprocesses import OnStep, Step, run_steps
from msltrain.grids.plan import DataPlaces

SEEDS = (0, 1)
IMAGE_SIZE = 32
NUM_TRAIN, NUM_TEST, NUM_MASKS = 64, 32, 48
_DATASET = "reef"
_DRAWN_SIZE = 48


def tiny(config: TrainConfig) -> TrainConfig:
    """A run of the paper reduced to the setting that it varies: one epoch of a tiny random network at 32 pixels."""
    transformer = config.model.backbone.startswith("vit")
    return replace(
        config,
        stream=replace(config.stream, image_size=IMAGE_SIZE, batch_size=16),
        model=replace(config.model, backbone="test_vit" if transformer else "test_resnet", weights=""),
        optim=replace(config.optim, num_epochs=1, warmup_epochs=0.5),
        run=replace(config.run, amp=False, channels_last=False),
    )


def smoke_places(out: Path) -> DataPlaces:
    """Where `make_data` puts the data; it stands in for every dataset of the paper."""
    shards = out / "data" / "shards"
    return DataPlaces(
        train=str(shards / _DATASET / "trainval"),
        test=str(shards / _DATASET / "test"),
        keep_masks=str(shards / "masks"),
        test_masks=(str(shards / "heldout"),),
    )


def make_data(out: Path, on_event: OnStep = lambda event: None) -> None:
    """Draw images, build their shards, generate two disjoint sets of keep masks; existing data is kept.

    Raises:
        UserError: a command failed.
    """
    folder = out / "data"
    raw, shards = folder / "raw", folder / "shards"
    voc = raw / "VOCdevkit" / "VOC2007"
    # fmt: off
    steps = [
        _step(
            "synthesize", "Draw a dataset in VOC's own layout", voc,
            "synthesize", "--out", raw, "--num-train", NUM_TRAIN, "--num-test", NUM_TEST, "--size", _DRAWN_SIZE,
        ),
        _step(
            "build-shards", "Build shards from the raw files", shards / _DATASET / "test" / MANIFEST_NAME,
            "build-shards", "--dataset", "voc2007", "--source", voc, "--name", _DATASET, "--out", shards,
        ),
    ]
    for seed, (name, what) in enumerate({"masks": "keep masks for training", "heldout": "others for the test"}.items()):
        steps.append(_step(
            f"build-{name}", f"Generate {what}", shards / name / "low" / MANIFEST_NAME,
            "build-masks", "--generate", NUM_MASKS, "--size", _DRAWN_SIZE, "--seed", seed, "--threshold", 0.5,
            "--per-subset", 0, "--out", shards / name,
        ))
    # fmt: on
    run_steps(steps, folder, what="data for the smoke scale", on_event=on_event)


def _step(name: str, title: str, product: Path, *arguments: object) -> Step:
    return Step(name=name, title=title, arguments=tuple(map(str, arguments)), product=product)
