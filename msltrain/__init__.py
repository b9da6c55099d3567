"""Streams shards into Masked Supervised Learning, and proves what the model learnt.

What is named here is the public face; ``docs/python.md`` shows it at work. Names are imported when they are first used,
so ``import msltrain`` does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from msldata.errors import UserError
    from msltrain.api import compute_metrics, evaluate, load, recipe, train
    from msltrain.config import DataConfig, LossConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
    from msltrain.measures.bootstrap import compare
    from msltrain.measures.metrics import Metrics
    from msltrain.measures.predictions import Predictions
    from msltrain.registered import register_augmentation, register_head, register_loss
    from msltrain.stream.augment.augment import Augment
    from msltrain.stream.config import AugmentConfig, KeepMaskConfig, StreamConfig
    from msltrain.stream.keepmasks.bank import KeepMasks
    from msltrain.stream.keepmasks.transform import IrregularHoles
    from msltrain.stream.loader import Loader
    from msltrain.stream.pixels.batch import Batch
    from msltrain.stream.samples.holdout import hold_out
    from msltrain.stream.shard_dataset import ShardDataset
    from msltrain.training.events import TrainResult
    from msltrain.training.siamese import SiameseStep, positive_weights
    from msltrain.use.predict import Predictor

__all__ = [
    "Augment",
    "AugmentConfig",
    "Batch",
    "DataConfig",
    "IrregularHoles",
    "KeepMaskConfig",
    "KeepMasks",
    "Loader",
    "LossConfig",
    "Metrics",
    "ModelConfig",
    "OptimConfig",
    "Predictions",
    "Predictor",
    "RunConfig",
    "ShardDataset",
    "SiameseStep",
    "StreamConfig",
    "TrainConfig",
    "TrainResult",
    "UserError",
    "compare",
    "compute_metrics",
    "evaluate",
    "hold_out",
    "load",
    "positive_weights",
    "recipe",
    "register_augmentation",
    "register_head",
    "register_loss",
    "train",
]

_HOMES = {
    "Augment": "msltrain.stream.augment.augment",
    "AugmentConfig": "msltrain.stream.config",
    "Batch": "msltrain.stream.pixels.batch",
    "DataConfig": "msltrain.config",
    "IrregularHoles": "msltrain.stream.keepmasks.transform",
    "KeepMaskConfig": "msltrain.stream.config",
    "KeepMasks": "msltrain.stream.keepmasks.bank",
    "Loader": "msltrain.stream.loader",
    "LossConfig": "msltrain.config",
    "Metrics": "msltrain.measures.metrics",
    "ModelConfig": "msltrain.config",
    "OptimConfig": "msltrain.config",
    "Predictions": "msltrain.measures.predictions",
    "Predictor": "msltrain.use.predict",
    "RunConfig": "msltrain.config",
    "ShardDataset": "msltrain.stream.shard_dataset",
    "SiameseStep": "msltrain.training.siamese",
    "StreamConfig": "msltrain.stream.config",
    "TrainConfig": "msltrain.config",
    "TrainResult": "msltrain.training.events",
    "UserError": "msldata.errors",
    **dict.fromkeys(("register_augmentation", "register_head", "register_loss"), "msltrain.registered"),
    "compare": "msltrain.measures.bootstrap",
    "hold_out": "msltrain.stream.samples.holdout",
    "positive_weights": "msltrain.training.siamese",
}
"""The module of each public name that is not a function of ``msltrain.api``."""

if not TYPE_CHECKING:  # a type checker would believe that every name exists

    def __getattr__(name: str):
        if name not in __all__:
            raise AttributeError(f"module 'msltrain' has no attribute '{name}'; it has {', '.join(__all__)}")
        value = getattr(importlib.import_module(_HOMES.get(name, "msltrain.api")), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
