"""The paper's runs with its own values: every network on every dataset that the paper or its official code trains.

Letters stand for networks: c ResNet-101 trained with CutMix (the paper's MSL-C), r plain ResNet-101, v ViT-L/16
(MSL-V), b ViT-B/16. The last lines of a docstring, which `msl recipes` reads, are: command · where the number comes
from · number.

Each function returns the run with the published values: batches of 6, the incomplete last one too (836 steps an epoch
on VOC2007, 13,681 on COCO-2014), float32, no validation split, and the official code's slice of the keep masks
(``msl build-masks --order official --out shards/masks/official``). The differences: the backbone starts from the
nearest weights that timm can fetch (`msltrain.recipes.backbones`), because the published files have no timm tag;
``--weights resnet_cut.pth`` takes the authors' own. Order, crops, flips and masks are drawn by a hash of (seed, epoch,
sample), not by global generators; of the slice's 1,000 masks, the official code only ever draws the last 951.
Float32 means PyTorch's default, as in the official code: GPUs that have TF32 use it for convolutions, but not for
matrix products.
"""

from __future__ import annotations

from dataclasses import replace

from msltrain.config import DataConfig, LossConfig, ModelConfig, OptimConfig, TrainConfig
from msltrain.recipes.backbones import resnet101, resnet_cut, vit_b16, vit_l16
from msltrain.stream.config import NO_CROP, StreamConfig

PUBLISHED_LOSS = LossConfig(clean_weight=0.3, masked_weight=0.2, consistency_weight=0.5)
OFFICIAL_MASKS = "shards/masks/official/high"
"""Files 11000 to 11999 of NVIDIA's test masks, the official code's slice."""
BASELINE_LOSS = LossConfig(clean_weight=1.0, masked_weight=0.0, consistency_weight=0.0)
"""Plain binary cross-entropy on whole images."""


def c_voc2007() -> TrainConfig:
    """ResNet-101 (CutMix), CSRA with 1 head and λ 0.1, on VOC2007 at 448 pixels.

    ``msl train --recipe msl-c-voc2007`` · Tables 1, 4 · mAP 96.1, CR 92.4, CF1 91.6
    ``msl train --recipe baseline-c-voc2007`` · Tables 1, 9 · mAP 93.7 (95.2 by CSRA's authors, batch 16)
    """
    return _voc2007(_csra(resnet_cut(), num_heads=1, attention_weight=0.1), image_size=448)


def r_voc2007() -> TrainConfig:
    """ResNet-101, CSRA with 1 head and λ 0.1, on VOC2007 at 448 pixels.

    ``msl train --recipe msl-r-voc2007`` · official code · no published number
    ``msl train --recipe baseline-r-voc2007`` · CSRA's authors, batch 16 · mAP 94.7
    """
    return _voc2007(_csra(resnet101(), num_heads=1, attention_weight=0.1), image_size=448)


def v_voc2007() -> TrainConfig:
    """ViT-L/16, CSRA with 1 head and λ 0.3, on VOC2007 at 224 pixels.

    ``msl train --recipe msl-v-voc2007`` · Tables 1, 4 · mAP 95.0, CR 84.8, CF1 89.5
    ``msl train --recipe baseline-v-voc2007`` · Tables 4, 9 · mAP 94.4
    """
    return _voc2007(_csra(vit_l16(), num_heads=1, attention_weight=0.3), image_size=224)


def c_coco2014() -> TrainConfig:
    """ResNet-101 (CutMix), CSRA with 6 heads and λ 0.4, on COCO-2014 at 448 pixels.

    ``msl train --recipe msl-c-coco2014`` · Tables 2, 4 · mAP 86.4, CR 76.3, CF1 80.4
    ``msl train --recipe baseline-c-coco2014`` · Tables 2, 9 · mAP 84.3 (85.6 by CSRA's authors, batch 16)
    """
    return _coco2014(_csra(resnet_cut(), num_heads=6, attention_weight=0.4), image_size=448, num_epochs=60)


def r_coco2014() -> TrainConfig:
    """ResNet-101, CSRA with 4 heads and λ 0.5, on COCO-2014 at 448 pixels.

    ``msl train --recipe msl-r-coco2014`` · official code · no published number
    ``msl train --recipe baseline-r-coco2014`` · CSRA's authors, batch 16 · mAP 83.3
    """
    return _coco2014(_csra(resnet101(), num_heads=4, attention_weight=0.5), image_size=448, num_epochs=60)


def v_coco2014() -> TrainConfig:
    """ViT-L/16, CSRA with 8 heads and λ 1, on COCO-2014 at 224 pixels.

    ``msl train --recipe msl-v-coco2014`` · Table 4 · mAP 79.0
    ``msl train --recipe baseline-v-coco2014`` · Tables 4, 9 · mAP 76.8
    """
    return _coco2014(_csra(vit_l16(), num_heads=8, attention_weight=1.0), image_size=224, num_epochs=40)


def v_wider() -> TrainConfig:
    """ViT-L/16, CSRA with 1 head and λ 0.3, on WIDER-Attribute at 224 pixels.

    ``msl train --recipe msl-v-wider`` · official README · mAP 90.6
    ``msl train --recipe baseline-v-wider`` · CSRA's authors · mAP 90.2
    """
    return _wider(_csra(vit_l16(), num_heads=1, attention_weight=0.3))


def b_wider() -> TrainConfig:
    """ViT-B/16, CSRA with 1 head and λ 0.3, on WIDER-Attribute at 224 pixels.

    ``msl train --recipe msl-b-wider`` · official code · no published number
    ``msl train --recipe baseline-b-wider`` · CSRA's authors · mAP 89.0
    """
    return _wider(_csra(vit_b16(), num_heads=1, attention_weight=0.3))


def _csra(model: ModelConfig, *, num_heads: int, attention_weight: float) -> ModelConfig:
    return replace(model, head="csra", num_heads=num_heads, attention_weight=attention_weight)


def _voc2007(model: ModelConfig, *, image_size: int) -> TrainConfig:
    """Section 4.1 and the official defaults: SGD, the head ten times as fast, a tenth of the rate every 4 epochs."""
    return TrainConfig(
        data=DataConfig(train="shards/voc2007/trainval", keep_masks=(OFFICIAL_MASKS,), validation_fraction=0.0),
        stream=StreamConfig(image_size=image_size, batch_size=6, drop_last=False),
        model=model,
        loss=PUBLISHED_LOSS,
        optim=OptimConfig(
            optimizer="sgd",
            lr=0.01,
            classifier_lr_factor=10.0,
            momentum=0.9,
            weight_decay=1e-4,
            num_epochs=60,
            warmup_epochs=2.0,
            schedule="step",
            step_epochs=4,
            step_factor=0.1,
        ),
    )


def _coco2014(model: ModelConfig, *, image_size: int, num_epochs: int) -> TrainConfig:
    voc = _voc2007(model, image_size=image_size)
    return replace(
        voc,
        data=replace(voc.data, train="shards/coco2014/train"),
        optim=replace(voc.optim, num_epochs=num_epochs, step_epochs=5),
    )


def _wider(model: ModelConfig) -> TrainConfig:
    """Person boxes, mirrored but never cropped, with inputs from -1 to 1: a hole is mid-grey there."""
    voc = _voc2007(model, image_size=224)
    return replace(
        voc,
        data=replace(voc.data, train="shards/wider/trainval"),
        stream=replace(voc.stream, crop_scale=NO_CROP, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        optim=replace(voc.optim, num_epochs=40, step_epochs=5),
    )
