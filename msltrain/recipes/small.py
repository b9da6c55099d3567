"""Runs for a laptop: a smoke test of the whole path, and the demo that compares ways to train with masks."""

from __future__ import annotations

from dataclasses import replace

from msltrain.config import DataConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
from msltrain.recipes.paper import BASELINE_LOSS
from msltrain.recipes.variants import baseline, distilled_from_nothing
from msltrain.stream.config import StreamConfig


def smoke() -> TrainConfig:
    """Two epochs of MSL with a tiny random network at 64 pixels: does everything work together?

    ``msl train --recipe smoke --data DIR --keep-masks DIR`` · no published number
    """
    return TrainConfig(
        data=DataConfig(train="shards/voc2007/trainval", keep_masks=("shards/masks/high",)),
        stream=StreamConfig(image_size=64, batch_size=8),
        model=ModelConfig(backbone="resnet10t", num_heads=2),
        optim=OptimConfig(lr=0.05, classifier_lr_factor=1.0, num_epochs=2, warmup_epochs=0.5, schedule="cosine"),
        run=RunConfig(log_every=1),
    )


def demo() -> TrainConfig:
    """MSL from scratch with a tiny ResNet on the synthetic dataset, minutes on two CPU cores.

    Deviation: the inputs are centred, so a hole is mid-grey. A network trained from scratch learns faster this way, and
    its plain baseline copes with these holes better than with the published black ones.

    ``msl demo`` · no published number
    """
    return TrainConfig(
        data=DataConfig(train="shards/voc2007/trainval", keep_masks=("shards/masks/high",)),
        stream=StreamConfig(image_size=64, batch_size=32, mean=(0.45, 0.45, 0.45), std=(0.25, 0.25, 0.25)),
        model=ModelConfig(backbone="test_resnet", num_heads=1, attention_weight=0.3),
        optim=OptimConfig(
            optimizer="adamw",
            lr=6e-3,
            classifier_lr_factor=1.0,
            weight_decay=0.05,
            num_epochs=9,
            warmup_epochs=1.0,
            schedule="cosine",
        ),
        run=RunConfig(channels_last=True),
    )


def demo_baseline() -> TrainConfig:
    """The demo's baseline: `demo` without the masked branch.

    ``msl demo`` · no published number
    """
    return baseline(demo())


def demo_augmentation() -> TrainConfig:
    """The demo with masks as plain augmentation: one branch, in which half of the images are masked.

    ``msl demo`` · no published number
    """
    config = demo()
    return replace(
        config, loss=replace(BASELINE_LOSS, branches="single"), keep_mask=replace(config.keep_mask, share=0.5)
    )


def demo_distil() -> TrainConfig:
    """The demo with our own loss: the masked image learns what the network says of the whole one.

    ``msl demo`` · no published number
    """
    return distilled_from_nothing(demo())
