"""The values of published recipes, as the papers and their code print them; whatever else a recipe says follows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from msltrain.config import LossConfig, OptimConfig, TrainConfig
from msltrain.recipes import recipe
from msltrain.stream.augment.augment import ALPHA
from msltrain.stream.config import AugmentConfig, KeepMaskConfig, StreamConfig

RESNET, VIT_L, VIT_B = "resnet101", "vit_large_patch16_224", "vit_base_patch16_224"


@pytest.mark.parametrize(
    ("target", "backbone", "image_size", "num_heads", "attention_weight", "num_epochs", "step_epochs", "shards"),
    [
        ("c-voc2007", RESNET, 448, 1, 0.1, 60, 4, "voc2007/trainval"),
        ("r-voc2007", RESNET, 448, 1, 0.1, 60, 4, "voc2007/trainval"),
        ("v-voc2007", VIT_L, 224, 1, 0.3, 60, 4, "voc2007/trainval"),
        ("c-coco2014", RESNET, 448, 6, 0.4, 60, 5, "coco2014/train"),
        ("r-coco2014", RESNET, 448, 4, 0.5, 60, 5, "coco2014/train"),
        ("v-coco2014", VIT_L, 224, 8, 1.0, 40, 5, "coco2014/train"),
        ("v-wider", VIT_L, 224, 1, 0.3, 40, 5, "wider/trainval"),
        ("b-wider", VIT_B, 224, 1, 0.3, 40, 5, "wider/trainval"),
    ],
)
def test_the_paper(target, backbone, image_size, num_heads, attention_weight, num_epochs, step_epochs, shards):
    published, tuned = recipe(f"msl-{target}-paper"), recipe(f"msl-{target}")
    for config in (published, tuned, recipe(f"baseline-{target}"), recipe(f"matched-{target}")):
        model = config.model
        assert (model.backbone, model.head) == (backbone, "csra")
        assert (model.num_heads, model.attention_weight) == (num_heads, attention_weight)
        assert (config.stream.image_size, config.data.train) == (image_size, f"shards/{shards}")
        values = {(0.5, 0.5, 0.5)} if "wider" in target else {(0.0, 0.0, 0.0), (1.0, 1.0, 1.0)}
        assert {config.stream.mean, config.stream.std} == values and config.stream.flip_probability == 0.5
        optim = config.optim
        assert (optim.optimizer, optim.lr, optim.classifier_lr_factor) == ("sgd", 0.01, 10)
        assert (optim.momentum, optim.weight_decay, optim.warmup_epochs) == (0.9, 1e-4, 2)
        assert optim.ema_decay is optim.clip_norm is None and optim.accumulation_steps == 1
    assert (published.optim.num_epochs, published.optim.step_epochs) == (num_epochs, step_epochs)
    assert (published.optim.schedule, published.optim.step_factor, published.optim.lr_batch_size) == ("step", 0.1, None)
    assert (tuned.optim.num_epochs, tuned.optim.schedule, tuned.optim.lr_batch_size) == (20, "cosine", 16)
    for config, alpha in (
        (tuned, (0.3, 0.2, 0.5)),
        (published, (0.3, 0.2, 0.5)),
        (recipe(f"baseline-{target}"), (1, 0, 0)),
        (recipe(f"matched-{target}"), (0.5, 0, 0)),
    ):
        loss = LossConfig(clean_weight=alpha[0], masked_weight=alpha[1], consistency_weight=alpha[2])
        assert config.loss == loss and config.keep_mask == KeepMaskConfig() and not config.augment.is_active


def test_crops_are_those_of_the_paper():
    stream = recipe("msl-c-voc2007-paper").stream
    assert stream.crop_scale == (0.7, 1.0) and stream.crop_ratio == (3 / 4, 4 / 3)
    assert recipe("msl-v-wider-paper").stream.crop_scale == (1.0, 1.0)


@pytest.mark.parametrize("dataset", ["voc2007", "coco2014"])
def test_those_it_is_compared_with(dataset: str):
    asl, decoder, q2l, splice, csra = (
        recipe(f"{name}-{dataset}") for name in ("asl-t", "mldecoder-t", "q2l-r", "splicemix-r", "csra-c")
    )
    for config, num_epochs, warmup, gamma_negative in ((asl, 80, 16, 4), (decoder, 40, 8, 4), (q2l, 80, 16, 2)):
        loss = config.loss
        assert (loss.recognition, loss.asl_gamma_positive, loss.asl_gamma_negative) == ("asl", 0, gamma_negative)
        assert (loss.asl_margin, loss.asl_detach, loss.clean_weight) == (0.05, True, 1)
        assert config.augment == AugmentConfig(randaugment=2, erase="cutout")
        optim = config.optim
        assert (optim.optimizer, optim.lr, optim.schedule) == ("adamw", 1e-4, "one_cycle")
        assert (optim.num_epochs, optim.warmup_epochs, optim.ema_decay) == (num_epochs, warmup, 0.9997)
        assert optim.classifier_lr_factor == 1 and optim.weight_decay == (1e-2 if config is q2l else 1e-4)
        assert config.stream.crop_scale == (1, 1) and config.stream.flip_probability == 0
    assert [config.stream.batch_size for config in (asl, decoder, q2l, csra)] == [56, 56, 128, 16]
    assert [config.model.head for config in (asl, decoder, q2l, splice, csra)] == [
        "mean", "mldecoder", "q2l", "max", "csra"
    ]  # fmt: skip
    rate, warmup, size = {"voc2007": (0.001, 0, 16), "coco2014": (0.005, 3, 32)}[dataset]
    assert (splice.optim.lr, splice.optim.warmup_epochs, splice.stream.batch_size) == (rate, warmup, size)
    assert (splice.optim.num_epochs, splice.optim.step_epochs, splice.optim.schedule) == (80, 40, "step")
    for config in (q2l, splice):
        assert config.stream.mean == (0.485, 0.456, 0.406) and config.stream.std == (0.229, 0.224, 0.225)
    assert (csra.optim.num_epochs, csra.data.validation_fraction) == (30, 0.05)
    published = recipe(f"msl-c-{dataset}-paper")
    plain = replace(csra, data=published.data, loss=published.loss, stream=replace(csra.stream, batch_size=6))
    assert replace(plain, optim=replace(csra.optim, num_epochs=60)) == published


def test_what_is_taken_where_nothing_is_said():
    """Changing one of these changes runs that did not ask for it."""
    config = TrainConfig(stream=StreamConfig())
    loss, optim, stream, mask = config.loss, config.optim, config.stream, config.keep_mask
    assert (loss.clean_weight, loss.masked_weight, loss.consistency_weight) == (0.3, 0.2, 0.5)
    assert (loss.train_ignored, loss.recognition, loss.masked_target) == ("negative", "bce", "labels")
    assert (loss.asl_gamma_positive, loss.asl_gamma_negative, loss.asl_margin) == (0, 4, 0.05)
    assert (loss.splc_threshold, loss.splc_epoch, loss.label_smoothing, loss.balance) == (0.6, 1, 0, 0)
    assert optim == OptimConfig(lr=0.01, classifier_lr_factor=10, momentum=0.9, weight_decay=1e-4, warmup_epochs=2)
    assert (optim.num_epochs, optim.layer_decay, optim.precise_bn_images, optim.patience) == (60, 1, 0, 0)
    assert (stream.image_size, stream.batch_size, stream.drop_last, stream.window) == (448, 32, True, 16384)
    assert (stream.on_sample_error, stream.max_skipped, stream.ram_cache_gb) == ("fail", 100, 0)
    assert (mask.kind, mask.share, mask.visible_level, mask.fill, mask.start) == ("stored", 1, 1, "zero", 0)
    assert (mask.hole_fraction, mask.patch_size, mask.ignore_below, mask.ramp_epochs) == (0.5, 16, 0, 0)
    assert config.data.validation_fraction == 0.05 and config.run.seed == 0 and not config.run.amp
    assert ALPHA == {"mixup": 0.2, "cutmix": 1.0} and config.augment.randaugment_magnitude == 9
