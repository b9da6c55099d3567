"""The methods that MSL is compared with, each with its authors' network and settings: METHOD-NETWORK-DATASET.

Letters stand for networks: c ResNet-101 trained with CutMix, r plain ResNet-101, t TResNet-L. The last lines of a
docstring, which `msl recipes` reads, are: command · where the number comes from · number.

As everywhere, 5 % of the training set choose the best epoch, where the authors chose it on the test set, and order,
crops and flips are a hash of (seed, epoch, sample). The code of ASL and ML-Decoder has Adam with the decay in the
gradient, and sums the loss over the batch; here it is AdamW and the mean, a factor that Adam does not notice. What
their authors changed for VOC2007 is in no released code; those recipes have the settings of COCO-2014.
"""

from __future__ import annotations

from dataclasses import replace

from msltrain.config import DataConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
from msltrain.recipes import paper as published
from msltrain.recipes.backbones import resnet101
from msltrain.recipes.paper import BASELINE_LOSS
from msltrain.recipes.variants import baseline
from msltrain.stream.config import NO_CROP, AugmentConfig, StreamConfig

_ASL = replace(
    BASELINE_LOSS,
    recognition="asl",
    asl_gamma_positive=0.0,
    asl_gamma_negative=4.0,
    asl_margin=0.05,
    asl_detach=True,
)
_AUTOMATED = AugmentConfig(randaugment=2, erase="cutout")
"""RandAugment and Cutout of half the side, as ASL, Query2Label and ML-Decoder train."""


def csra_c_voc2007() -> TrainConfig:
    """CSRA on ResNet-101 (CutMix) as its authors trained it: batches of 16, 30 epochs.

    ``msl train --recipe csra-c-voc2007`` · CSRA's authors · mAP 95.2
    """
    return _csra(published.c_voc2007())


def csra_c_coco2014() -> TrainConfig:
    """CSRA on ResNet-101 (CutMix) as its authors trained it, on COCO-2014.

    ``msl train --recipe csra-c-coco2014`` · CSRA's authors · mAP 85.6
    """
    return _csra(published.c_coco2014())


def asl_t_voc2007() -> TrainConfig:
    """Asymmetric loss on TResNet-L with a pooled linear head.

    ``msl train --recipe asl-t-voc2007`` · Ridnik et al., ICCV 2021 · mAP 94.6
    """
    return _asl(_voc2007())


def asl_t_coco2014() -> TrainConfig:
    """Asymmetric loss on TResNet-L with a pooled linear head, on COCO-2014.

    ``msl train --recipe asl-t-coco2014`` · Ridnik et al., ICCV 2021 · mAP 86.6
    """
    return _asl(_coco2014())


def mldecoder_t_voc2007() -> TrainConfig:
    """ML-Decoder with the asymmetric loss on TResNet-L (its second version, pretrained on ImageNet-21k).

    ``msl train --recipe mldecoder-t-voc2007`` · Ridnik et al., WACV 2023 · mAP 96.6
    """
    return _mldecoder(_voc2007())


def mldecoder_t_coco2014() -> TrainConfig:
    """ML-Decoder with the asymmetric loss on TResNet-L (its second version, pretrained on ImageNet-21k), on COCO-2014.

    ``msl train --recipe mldecoder-t-coco2014`` · ML-Decoder's authors, model zoo · mAP 90.0
    """
    return _mldecoder(_coco2014())


def q2l_r_voc2007() -> TrainConfig:
    """Query2Label with the asymmetric loss on ResNet-101; on VOC2007 its authors print a TResNet-L alone.

    ``msl train --recipe q2l-r-voc2007`` · Liu et al., 2021 · mAP 96.1 with TResNet-L
    """
    return _q2l(_voc2007())


def q2l_r_coco2014() -> TrainConfig:
    """Query2Label with the asymmetric loss on ResNet-101, on COCO-2014.

    ``msl train --recipe q2l-r-coco2014`` · Liu et al., 2021 · mAP 84.9
    """
    return _q2l(_coco2014())


def splicemix_r_voc2007() -> TrainConfig:
    """SpliceMix on ResNet-101 with a max-pooled linear head.

    Deviation: one step of the learning rate, after 40 epochs; the authors' second comes after 60.

    ``msl train --recipe splicemix-r-voc2007`` · Wang et al., 2023 · number not checked
    """
    return _splicemix(_voc2007(), lr=0.001, warmup_epochs=0.0, batch_size=16, amp=False)


def splicemix_r_coco2014() -> TrainConfig:
    """SpliceMix on ResNet-101 with a max-pooled linear head, on COCO-2014.

    Deviation: as on VOC2007.

    ``msl train --recipe splicemix-r-coco2014`` · Wang et al., 2023 · number not checked
    """
    return _splicemix(_coco2014(), lr=0.005, warmup_epochs=3.0, batch_size=32, amp=True)


def on_one_budget(rival: TrainConfig, msl: TrainConfig) -> TrainConfig:
    """A rival on the network, the images and the budget of an MSL run: what differs is its method.

    That is its head, its loss, its augmentation, and the optimiser and schedule that its authors chose for them, whose
    learning rate is scaled from their batches to these.
    """
    return replace(
        rival,
        data=replace(msl.data, keep_masks=()),
        stream=replace(
            rival.stream,
            image_size=msl.stream.image_size,
            batch_size=msl.stream.batch_size,
            drop_last=msl.stream.drop_last,
            mean=msl.stream.mean,
            std=msl.stream.std,
        ),
        model=replace(rival.model, backbone=msl.model.backbone, weights=msl.model.weights),
        optim=replace(
            rival.optim,
            lr_batch_size=rival.stream.batch_size,
            num_epochs=msl.optim.num_epochs,
            schedule=msl.optim.schedule if rival.optim.schedule == "step" else rival.optim.schedule,
            warmup_epochs=_share_of_warmup(rival.optim, msl.optim.num_epochs),
            ema_decay=None if rival.optim.ema_decay is None else 0.999,
        ),
        run=msl.run,
    )


def _share_of_warmup(optim: OptimConfig, num_epochs: int) -> float:
    """Of one cycle a share of the run, as its authors say it; of others as many epochs as theirs."""
    share = num_epochs / optim.num_epochs if optim.schedule == "one_cycle" else 1.0
    return optim.warmup_epochs * share


def _csra(config: TrainConfig) -> TrainConfig:
    plain = baseline(config)
    return replace(
        plain,
        data=replace(plain.data, validation_fraction=0.05),
        stream=replace(plain.stream, batch_size=16),
        optim=replace(plain.optim, num_epochs=30),
    )


def _asl(config: TrainConfig) -> TrainConfig:
    return replace(config, model=ModelConfig(backbone="tresnet_l", weights="miil_in1k_448", head="mean"))


def _mldecoder(config: TrainConfig) -> TrainConfig:
    model = ModelConfig(backbone="tresnet_v2_l", weights="miil_in21k_ft_in1k", head="mldecoder")
    return replace(config, model=model, optim=replace(config.optim, num_epochs=40, warmup_epochs=8.0))


def _q2l(config: TrainConfig) -> TrainConfig:
    return replace(
        config,
        stream=replace(config.stream, batch_size=128, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        model=replace(resnet101(), head="q2l"),
        loss=replace(config.loss, asl_gamma_negative=2.0),
        optim=replace(config.optim, weight_decay=1e-2),
    )


def _splicemix(config: TrainConfig, *, lr: float, warmup_epochs: float, batch_size: int, amp: bool) -> TrainConfig:
    plain = StreamConfig(batch_size=batch_size, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    return replace(
        config,
        stream=plain,
        augment=AugmentConfig(mix="splicemix"),
        model=replace(resnet101(), head="max"),
        loss=BASELINE_LOSS,
        optim=OptimConfig(lr=lr, num_epochs=80, warmup_epochs=warmup_epochs, schedule="step", step_epochs=40),
        run=replace(config.run, amp=amp),
    )


def _voc2007() -> TrainConfig:
    """ASL's training of 448-pixel images: squashed whole, batches of 56, one cycle to 1e-4, a moving average."""
    return TrainConfig(
        data=DataConfig(train="shards/voc2007/trainval"),
        stream=StreamConfig(image_size=448, batch_size=56, crop_scale=NO_CROP, flip_probability=0.0),
        augment=_AUTOMATED,
        loss=_ASL,
        optim=OptimConfig(
            optimizer="adamw",
            lr=1e-4,
            classifier_lr_factor=1.0,
            weight_decay=1e-4,
            num_epochs=80,
            warmup_epochs=16.0,
            schedule="one_cycle",
            ema_decay=0.9997,
        ),
        run=RunConfig(amp=True, channels_last=True),
    )


def _coco2014() -> TrainConfig:
    voc = _voc2007()
    return replace(voc, data=replace(voc.data, train="shards/coco2014/train"))
