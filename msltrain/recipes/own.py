"""The recipe for photographs of one's own; `msltrain.recipes.own_fit` fits it to them and to the machine."""

from __future__ import annotations

from msltrain.config import DataConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
from msltrain.recipes.variants import baseline, distilled_from_nothing
from msltrain.stream.config import KeepMaskConfig, StreamConfig

OWN, OWN_BASELINE = "own", "own-baseline"
"""Names of the recipes that are fitted to photographs and machine."""
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


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
