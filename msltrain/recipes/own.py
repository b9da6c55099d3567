"""The recipe for photographs of one's own; `msltrain.recipes.own_fit` fits it to them and to the machine."""

from __future__ import annotations

from collections.abc import Mapping

from msltrain.config import DataConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
from msltrain.recipes.variants import baseline, distilled_from_nothing
from msltrain.stream.config import KeepMaskConfig, StreamConfig

OWN, OWN_BASELINE = "own", "own-baseline"
"""Names of the recipes that are fitted to photographs and machine."""
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

CHOSEN: Mapping[str, str] = {
    "data.train": "the training photographs of the dataset",
    "data.validation": "its val split; where it has none, a part of train is set aside",
    "data.keep_masks": "those of --keep-masks",
    "stream.image_size": "the median of the photographs' shorter sides, down to a multiple of 32; at most 160, on a "
    "GPU 448; with weights of a run, its size",
    "stream.batch_size": "8 below 200 photographs to train on, 16 below 1,000, else 32",
    "stream.mean": "what the weights were trained with",
    "stream.std": "what the weights were trained with",
    "keep_mask.kind": "generated; stored with --keep-masks",
    "keep_mask.share": "1 with pretrained weights, 0.35 from nothing",
    "keep_mask.start": "0 with pretrained weights and a twin, 0.25 without the twin, 0.34 from nothing",
    "model.backbone": "the best network whose weights can be had: mobilenetv2_100, on a GPU resnet101, first; with "
    "weights of a run, its network and head",
    "model.weights": "those of --weights, else of timm; none where none can be fetched",
    "loss.bn_mode": "running with pretrained weights, shared from nothing",
    "loss.branches": "auto with pretrained weights, concatenated from nothing",
    "optim.num_epochs": "as many as make 25 × √photographs steps, at least 150; four times that from nothing",
    "optim.warmup_epochs": "a tenth of the epochs",
    "optim.twin_share": "0.25 with pretrained weights, 0 from nothing",
    "optim.precise_bn_images": "1024 with pretrained weights and 1,000 photographs to train on or more, else 0",
    "run.amp": "true on a GPU",
    "run.log_every": "20 on a GPU, else 5",
}
"""Fields that `own_fit` chooses when a run begins, and by which rule; what a user sets is not chosen."""
CHOSEN_OF_BASELINE: Mapping[str, str] = {
    field: rule
    for field, rule in CHOSEN.items()
    if field not in ("data.keep_masks", "optim.twin_share") and not field.startswith(("keep_mask.", "loss."))
}
"""The same of `own_baseline`, which hides nothing."""


def own() -> TrainConfig:
    """Photographs of your own: what fits them and this machine is chosen, and said at the start.

    ``msl train NAME`` · no published number
    """
    config = TrainConfig(
        data=DataConfig(validation_fraction=0.15),
        stream=StreamConfig(image_size=160, batch_size=8, mean=_MEAN, std=_STD),
        keep_mask=KeepMaskConfig(kind="generated", augment=("flip", "rotate", "shift")),
        model=ModelConfig(backbone="mobilenetv2_100"),
        optim=OptimConfig(lr=0.005, lr_batch_size=16, num_epochs=30, schedule="cosine"),
        run=RunConfig(channels_last=True, log_every=5),
    )
    return distilled_from_nothing(config)  # `own_fit` finds pretrained weights, and takes `distilled_with_twin`


def own_baseline() -> TrainConfig:
    """Photographs of your own by plain training, with nothing hidden: to compare `own` with.

    ``msl train NAME --recipe own-baseline`` · no published number
    """
    return baseline(own())
