"""What a recipe costs on one GPU: arithmetic of the network × samples × epochs over a sustained rate.

The assumption: an H100 or H200 sustains 250 TFLOP/s in bf16, a quarter of its dense peak, and 30 in float32, half of
its peak without TF32. Evaluation, start-up and slow storage come on top.
"""

from __future__ import annotations

from msltrain.config import TrainConfig

GIGAFLOP_PER_IMAGE = {
    ("resnet101", 448): 62.4,
    ("tresnet_l", 448): 87.0,
    ("tresnet_v2_l", 448): 70.5,
    ("vit_large_patch16_224", 224): 123.1,
    ("vit_base_patch16_224", 224): 35.1,
}
"""Cost of one forward pass, by (backbone, image size); a multiplication and an addition count as two."""
HEAD_GIGAFLOP_PER_IMAGE = {
    ("mldecoder", "voc2007"): 1.3,
    ("mldecoder", "coco2014"): 1.8,
    ("q2l", "voc2007"): 30.0,
    ("q2l", "coco2014"): 40.3,
}
"""Cost of the heads that show in the sum, by (head, dataset), for 2048 channels at 14×14 places; always float32."""
NUM_SAMPLES = {
    ("voc2007", "trainval"): 5_011,
    ("voc2007", "test"): 4_952,
    ("coco2014", "train"): 82_081,
    ("coco2014", "val"): 40_137,
    ("wider", "trainval"): 28_345,
}
"""Sizes of the datasets that the published numbers were measured on, by name and split."""
BF16_TERAFLOPS, FLOAT32_TERAFLOPS = 250.0, 30.0
FORWARD_AND_BACKWARD = 3
"""A backward pass costs two forward passes."""


def gpu_hours(config: TrainConfig, num_samples: int | None = None) -> float | None:
    """Hours on one H100 or H200, by the assumption above; None for networks and data that no published recipe has.

    Args:
        config: the whole run.
        num_samples: size of the training set; by default that of the recipe's.
    """
    per_image = GIGAFLOP_PER_IMAGE.get((config.model.backbone, config.stream.image_size))
    num_samples = num_samples or num_published(config.data.train)
    if per_image is None or num_samples is None:
        return None
    num_passes = num_forward_passes(config) * config.optim.num_epochs
    kept = 1 if config.data.validation else 1 - config.data.validation_fraction
    teraflops = BF16_TERAFLOPS if config.run.amp else FLOAT32_TERAFLOPS
    head = HEAD_GIGAFLOP_PER_IMAGE.get((config.model.head, _dataset(config.data.train)), 0.0)
    seconds_per_pass = (per_image / teraflops + head / FLOAT32_TERAFLOPS) / 1e3
    return seconds_per_pass * num_samples * kept * num_passes / 3600


def num_forward_passes(config: TrainConfig) -> float:
    """What an epoch costs, in forward passes of the network over every image: 3 of the plain baseline, 6 of MSL."""
    images = 1.25 if config.augment.mix == "splicemix" else 1.0
    if not config.loss.has_masked_branch:
        return FORWARD_AND_BACKWARD * images
    masked = 1 - config.first_masked_epoch / config.optim.num_epochs
    teacher = masked * images if config.loss.masked_target == "teacher" else 0
    twin = 1 if config.optim.twin_share else 0
    return FORWARD_AND_BACKWARD * images * (1 + masked * config.keep_mask.share + twin) + teacher


def num_published(shards: str) -> int | None:
    """Samples of the dataset that a recipe finds at ``shards``, such as ``shards/voc2007/trainval``; None: unknown."""
    return NUM_SAMPLES.get((_dataset(shards), shards.rstrip("/").rpartition("/")[2]))


def _dataset(shards: str) -> str:
    return ("", *shards.rstrip("/").split("/"))[-2]
