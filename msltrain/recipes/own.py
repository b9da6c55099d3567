"""The recipe for photographs of one's own; `msltrain.recipes.own_fit` fits it to them and to the machine."""

from __future__ import annotations

from typing import Literal

from msltrain.config import DataConfig, LossConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
from msltrain.stream.config import KeepMaskConfig, StreamConfig

METHOD = LossConfig(
    clean_weight=1.0,
    masked_weight=1.0,
    consistency_weight=0.0,
    masked_target="whole_image",
    bn_mode="running",
)
"""How masks are trained with. The study in docs/methods.md decides; this is the one place to change it.

``running``: with 400 photographs and ImageNet's weights, most of what masks cost on whole images came from BatchNorm,
whose running statistics the masked images had moved; normalised by those of whole images they also gain most.
"""
BN_MODE_FROM_NOTHING: Literal["clean_only"] = "clean_only"
"""A network that starts at random learns too fast for its running statistics, so there masked images keep their own."""
METHOD_SAID = (
    "every photograph is shown whole and with parts hidden: the whole one learns its labels, the hidden one to say "
    "what the whole one says"
)
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def own() -> TrainConfig:
    """Photographs of your own: what fits them and this machine is chosen, and said at the start.

    ``msl train NAME`` · no published number
    """
    return TrainConfig(
        data=DataConfig(validation_fraction=0.15),
        stream=StreamConfig(image_size=160, batch_size=8, mean=_MEAN, std=_STD),
        keep_mask=KeepMaskConfig(kind="generated", augment=("flip", "rotate", "shift")),
        model=ModelConfig(backbone="mobilenetv2_100"),
        loss=METHOD,
        optim=OptimConfig(lr=0.01, lr_batch_size=16, num_epochs=30, schedule="cosine"),
        run=RunConfig(channels_last=True, log_every=5),
    )
