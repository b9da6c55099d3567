"""MaskedViews: what the masked branch sees of a batch, and which pairs count there.

    views = MaskedViews(config, places, shards=shards, stream=stream, device="cuda")
    view = views.of(batch, seed=0, epoch=3)

Legend: B samples, C channels, S = H = W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from msldata.errors import UserError
from msltrain.stream.config import KeepMaskConfig, StreamConfig
from msltrain.stream.keepmasks.donors import Donors
from msltrain.stream.keepmasks.fill import make_filling
from msltrain.stream.keepmasks.objects import Objects
from msltrain.stream.keepmasks.open_keep_masks import open_keep_masks
from msltrain.stream.order.random import MASKED_VIEW, uniform
from msltrain.stream.pixels.batch import Batch
from msltrain.stream.samples.shardset import ShardSet


@dataclass(frozen=True, slots=True, eq=False)
class MaskedView:
    """What hides parts of the images of a batch; all on the device."""

    keep_mask_B1HW: Tensor
    """float32, 1 visible, 0 hole."""
    filling_BCHW: Tensor | None = None
    """What shows in the holes, normalised; None: 0, as published."""
    ignore_BK: Tensor | None = None
    """bool; pairs that count in no masked term; None: all count."""
    masked_B: Tensor | None = None
    """bool; which images have a masked view; None: all."""

    def chunk(self, num_parts: int) -> list[MaskedView]:
        """Cut into parts along B, as ``Tensor.chunk`` cuts."""
        masks = self.keep_mask_B1HW.chunk(num_parts)
        fillings, ignores, masked = (
            [None] * len(masks) if tensor is None else tensor.chunk(num_parts)
            for tensor in (self.filling_BCHW, self.ignore_BK, self.masked_B)
        )
        return [MaskedView(*parts) for parts in zip(masks, fillings, ignores, masked, strict=True)]


class MaskedViews:
    """Makes them: a function of (seed, epoch, key) and of the sample, never of the batch, the rank or the threads.

    Args:
        config: what is asked for.
        places: keep-mask dataset folders, for stored masks.
        shards: the training set.
        stream: what its loader was given.
        device: of the batches.
        first_epoch: the epoch, counted from 0, from which images are masked.

    Raises:
        UserError: the config does not fit the image size or the dataset.
        FormatError, StorageError, FileNotFoundError: masks, objects or filling images cannot be read.
    """

    def __init__(
        self,
        config: KeepMaskConfig,
        places: Sequence[str | Path],
        *,
        shards: ShardSet,
        stream: StreamConfig,
        device: str | torch.device,
        first_epoch: int = 0,
    ):
        self.config, self._num_classes = config, len(shards.classes)
        self.keep_masks = open_keep_masks(
            config, places, shards=shards, stream=stream, device=device, first_epoch=first_epoch
        )
        self._donors = self._objects = None
        if config.fill in ("image", "object"):
            self._donors = Donors(config.fill, shards, stream, device)
        if config.ignore_below:
            self._objects = Objects(shards)
            if not len(self._objects):
                raise UserError(
                    f"{shards.name}: its sample indexes hold no objects, so nothing tells which of them a mask hides; "
                    "set keep_mask.ignore_below=0"
                )

    def of(self, batch: Batch, *, seed: int, epoch: int) -> MaskedView:
        """The masked view of each sample of a training batch."""
        config = self.config
        keep_mask_B1HW = self.keep_masks.keep_masks(batch, seed=seed, epoch=epoch)
        device = keep_mask_B1HW.device
        ignore_BK = masked_B = None
        if self._objects is not None:
            ignore_BK = self._objects.hidden(batch, keep_mask_B1HW, config.ignore_below, self._num_classes)
            ignore_BK &= batch.target_BK > 0
        if self._donors is None:
            filling = make_filling(config.fill, batch.image_BCHW, batch.key_hash_B, seed=seed, epoch=epoch)
        else:
            filling, shown_BK = self._donors.filling(batch.key_hash_B, seed=seed, epoch=epoch)
            has_hole_B1 = (keep_mask_B1HW.amin(dim=(1, 2, 3)) < 1)[:, None]
            shown_BK = shown_BK & has_hole_B1 & (batch.target_BK == 0)
            ignore_BK = shown_BK if ignore_BK is None else ignore_BK | shown_BK
        if config.share < 1:
            lot_B = uniform(batch.key_hash_B, seed, epoch, MASKED_VIEW, 1)[:, 0]
            masked_B = torch.from_numpy(lot_B < config.share).to(device)
        if config.visible_level != 1:
            keep_mask_B1HW = keep_mask_B1HW * config.visible_level
        return MaskedView(keep_mask_B1HW, filling, ignore_BK, masked_B)
