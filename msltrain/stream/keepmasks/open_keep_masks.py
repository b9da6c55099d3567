"""AnyKeepMasks: what hides parts of a batch's images. One interface for stored, drawn and object-aligned keep masks.

    keep_masks = open_keep_masks(config, places, shards=shards, stream=stream, device="cuda")
    keep_mask_B1HW = keep_masks.keep_masks(batch, seed=0, epoch=3)

The keep mask of a sample is a function of (seed, epoch, key) and, where objects are hidden, of the sample itself; never
of the batch, the rank or the threads. Legend: B samples, S = H = W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch

from msltrain.stream.config import KeepMaskConfig, StreamConfig
from msltrain.stream.keepmasks.bank import KeepMasks
from msltrain.stream.keepmasks.schedule import MaskSchedule
from msltrain.stream.keepmasks.shapes import BoxMasks, NoHoles, ObjectMasks, PatchMasks
from msltrain.stream.pixels.batch import Batch
from msltrain.stream.samples.shardset import ShardSet


class AnyKeepMasks(Protocol):
    """Hands out keep masks."""

    def keep_masks(self, batch: Batch, *, seed: int, epoch: int) -> torch.Tensor:
        """keep_mask_B1HW: float32 in [0, 1] on the device; 1 = visible, 0 = hole."""


def open_keep_masks(
    config: KeepMaskConfig,
    places: Sequence[str | Path],
    *,
    shards: ShardSet,
    stream: StreamConfig,
    device: str | torch.device,
    first_epoch: int = 0,
) -> AnyKeepMasks:
    """The keep masks that ``config`` asks for.

    Args:
        places: keep-mask dataset folders, for stored masks.
        shards, stream: what the loader of the batches was given.
        first_epoch: the epoch, counted from 0, from which images are masked.

    Raises:
        UserError: the config does not fit the image size or the dataset.
        FormatError, StorageError, FileNotFoundError: the masks or the objects cannot be read.
    """
    size = stream.image_size
    match config.kind:
        case "stored":
            if config.subset_weights or config.ramp_epochs:
                return MaskSchedule.open(config, places, size, device, first_epoch=first_epoch)
            return KeepMasks.open(places, size, device, augment=config.augment)
        case "generated":
            return KeepMasks.generate(size, device, augment=config.augment)
        case "patch":
            return PatchMasks(size, device, patch_size=config.patch_size, hole_fraction=config.hole_fraction)
        case "box":
            return BoxMasks(size, device, hole_fraction=config.hole_fraction)
        case "object":
            return ObjectMasks(shards, size, device)
        case "none":
            return NoHoles(size, device)
