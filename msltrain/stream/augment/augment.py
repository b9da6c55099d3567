"""Augment: what `AugmentConfig` asks for, done to a batch on its device.

Legend: B samples, C channels, H = W = S pixels, K classes.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from msldata.errors import UserError
from msltrain.registered import AUGMENTATIONS
from msltrain.stream.augment.erase import cutout, random_erasing
from msltrain.stream.augment.mix import cutmix, mixup, splicemix
from msltrain.stream.augment.operations import random_operations
from msltrain.stream.config import AugmentConfig, StreamConfig
from msltrain.stream.pixels.batch import Batch

ALPHA = {"mixup": 0.2, "cutmix": 1.0}
"""α of the Beta distribution where none is set."""


class Augment:
    """Augments training batches.

    Args:
        config: what is asked for.
        stream: what the loader of the batches was given.
        device: of the batches.

    Example:
        config = msltrain.StreamConfig(image_size=64, batch_size=8)
        augment = msltrain.Augment(msltrain.AugmentConfig(randaugment=2, mix="cutmix"), config)
        with msltrain.Loader("shards/voc2007/trainval", config, training=True) as loader:
            batch = augment(next(iter(loader)).to("cpu"), seed=loader.seed, epoch=loader.epoch)
        print(batch.image_BCHW.shape, batch.target_BK[0])
    """

    def __init__(self, config: AugmentConfig, stream: StreamConfig, device: str | torch.device = "cpu"):
        self.config = config
        # The loader's own numbers, so that a pixel that stays has the same bits.
        scale = torch.tensor([stream.mean, stream.std], dtype=torch.float32, device=device) * 255
        self._mean_C11, self._std_C11 = scale[0][:, None, None], scale[1][:, None, None]

    def __call__(self, batch: Batch, *, seed: int, epoch: int) -> Batch:
        """The augmented batch; itself where nothing is asked for. SpliceMix adds images at its end."""
        config, key_hash_B = self.config, batch.key_hash_B
        image_BCHW = batch.image_BCHW
        if config.randaugment:
            pixel_BCHW = self._pixels(image_BCHW)
            pixel_BCHW = random_operations(
                pixel_BCHW,
                key_hash_B,
                seed=seed,
                epoch=epoch,
                num_operations=config.randaugment,
                magnitude=config.randaugment_magnitude,
            )
            image_BCHW = self._normalised(pixel_BCHW).contiguous(memory_format=torch.channels_last)
        if config.erase:
            erase = cutout if config.erase == "cutout" else random_erasing
            image_BCHW = erase(image_BCHW, key_hash_B, self._normalised, seed=seed, epoch=epoch)
        if image_BCHW is not batch.image_BCHW:
            batch = replace(batch, image_BCHW=image_BCHW)
        match config.mix:
            case "mixup" | "cutmix":
                mix = mixup if config.mix == "mixup" else cutmix
                alpha = ALPHA[config.mix] if config.mix_alpha is None else config.mix_alpha
                batch = mix(batch, seed=seed, epoch=epoch, alpha=alpha)
            case "splicemix":
                batch = splicemix(batch, seed=seed, epoch=epoch)
        if config.batch:
            own = AUGMENTATIONS[config.batch](batch, seed=seed, epoch=epoch)
            if not isinstance(own, Batch):
                raise UserError(f"augment.batch={config.batch}: gives a {type(own).__name__}; it must give a Batch")
            return own
        return batch

    def _normalised(self, pixel_BCHW: Tensor) -> Tensor:
        """As the loader normalises 8-bit pixels."""
        return (pixel_BCHW.float() - self._mean_C11) / self._std_C11

    def _pixels(self, image_BCHW: Tensor) -> Tensor:
        """The 8-bit pixels that were normalised."""
        return (image_BCHW * self._std_C11 + self._mean_C11).round().clamp(0, 255).to(torch.uint8)
