"""The variants of one published run: its baselines, and our default with the same network and data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from msltrain.config import LossConfig, TrainConfig
from msltrain.recipes.paper import BASELINE_LOSS

DISTIL_LOSS = LossConfig(
    clean_weight=0.5,
    masked_weight=0.5,
    consistency_weight=0.0,
    masked_target="whole_image",
    bn_mode="running",
)
"""Our own way to train with masks: the masked image learns what the network says of the whole one.

The study in docs/methods.md decides; this is the one place to change it. With pretrained weights and few photographs
two things cost whole images most. Masked images moved BatchNorm's running statistics: ``running`` normalises them by
those of whole images. And weights that add up to more than the baseline's are a higher learning rate, by which the
network forgets what it knew: these add up to 1.
"""
DISTIL_START = 0.25
"""No image is masked in the first quarter of the epochs: with few photographs whole images then lose nothing."""
PRECISE_BN_IMAGES = 1024
"""Training images on which BatchNorm's running statistics are measured after every epoch; more change nothing."""
PRECISE_BN_FROM = 1000
"""With fewer photographs they stay moving averages: of 400, a network knows each so well that its statistics on them
are not those on others, and whole images lose a point; of 2,334 they gain one."""
TWIN_SHARE = 0.25
"""Of a twin that learns from whole images alone, in the weights that are shipped: wins back what masks cost there."""
DISTIL_LOSS_FROM_NOTHING = replace(DISTIL_LOSS, bn_mode="shared", branches="concatenated")
"""The same for a network that starts at random: it learns too fast for its running statistics, but whole and masked
images in one batch are normalised in training as at test time."""
DISTIL_SHARE_FROM_NOTHING, DISTIL_START_FROM_NOTHING = 0.35, 0.34
"""Of that batch's whole images, so many are in it once more, masked, but none in the first third of the epochs: what a
green network says of the whole image teaches nothing, and masks then cost most on whole images."""

TUNED_MASKS = "shards/masks/high"
"""Masks from any source that hide more than half of the image."""
Form = Callable[[TrainConfig], TrainConfig]
"""Turns a published run into the one to train."""


def as_published(config: TrainConfig) -> TrainConfig:
    """The run with its published values."""
    return config


def tuned(config: TrainConfig) -> TrainConfig:
    """Our default for a published run: bf16, NHWC, batches of 32 on any number of GPUs, 20 epochs, 5 % held out.

    Keep masks may be any that hide more than half; the last, incomplete batch of an epoch is left out, so that several
    GPUs can share each batch. The learning rate is the published one, taken as CSRA's authors used it, for batches of
    16, and scaled to 32. The published steps make it practically zero after 16 epochs; a half cosine to zero over 20
    epochs replaces them.
    """
    return replace(
        config,
        data=replace(config.data, keep_masks=(TUNED_MASKS,), validation_fraction=0.05),
        stream=replace(config.stream, batch_size=32, drop_last=True),
        optim=replace(config.optim, lr_batch_size=16, num_epochs=20, schedule="cosine"),
        run=replace(config.run, amp=True, channels_last=True),
    )


def distilled(config: TrainConfig) -> TrainConfig:
    """The run with our own loss in the place of the published one."""
    keep_mask = replace(config.keep_mask, share=1.0, start=DISTIL_START)
    optim = replace(config.optim, precise_bn_images=PRECISE_BN_IMAGES)
    return replace(config, loss=DISTIL_LOSS, keep_mask=keep_mask, optim=optim)


def distilled_from_nothing(config: TrainConfig) -> TrainConfig:
    """The same for a network without pretrained weights."""
    keep_mask = replace(config.keep_mask, share=DISTIL_SHARE_FROM_NOTHING, start=DISTIL_START_FROM_NOTHING)
    return replace(config, loss=DISTIL_LOSS_FROM_NOTHING, keep_mask=keep_mask)


def distilled_with_twin(config: TrainConfig) -> TrainConfig:
    """The same for few photographs and pretrained weights: what is shipped is the average with a plain twin."""
    config = distilled(config)
    keep_mask, optim = replace(config.keep_mask, start=0.0), replace(config.optim, twin_share=TWIN_SHARE)
    return replace(config, keep_mask=keep_mask, optim=optim)


def baseline(config: TrainConfig) -> TrainConfig:
    """The published baseline: no masked branch, α = (1, 0, 0)."""
    return replace(config, data=replace(config.data, keep_masks=()), loss=BASELINE_LOSS)


def matched_baseline(config: TrainConfig) -> TrainConfig:
    """The baseline that learns recognition at MSL's rate, α = (α1 + α2, 0, 0): the masks alone make the difference."""
    return replace(config, data=replace(config.data, keep_masks=()), loss=config.loss.rate_matched_baseline())
