"""Cutout and Random Erasing: a box of each image is overwritten; labels stay.

Boxes are (top, left, bottom, right) in pixels, bottom and right exclusive. Legend: B samples, C channels, H = W = S
pixels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from msltrain.stream.keepmasks.fill import fill_holes
from msltrain.stream.keepmasks.shapes import hide_boxes
from msltrain.stream.order.crop_and_flip import random_crops
from msltrain.stream.order.random import ERASE, ERASED_BOX, hash64, uniform

Normalise = Callable[[Tensor], Tensor]
"""From 8-bit pixels (…, C, H, W) to the values of a batch."""
_CUTOUT_SIDE = 0.5
_ERASED_SHARE, _ERASED_RATIO, _ERASED_OFTEN = (0.02, 0.33), (0.3, 1 / 0.3), 0.5
_NOISE_SEED = 0x4552415345


def cutout(image_BCHW: Tensor, key_hash_B: np.ndarray, normalise: Normalise, *, seed: int, epoch: int) -> Tensor:
    """In every image a square of half its side becomes one random colour; its centre is any pixel, what lies beyond the
    edge is cut off (DeVries and Taylor, arXiv 1708.04552, 2017).

    Deviation: they fill with the mean colour; the random one is that of the code of ASL, Query2Label and ML-Decoder.

    Args:
        image_BCHW: normalised.
        key_hash_B: uint64; with seed and epoch it decides square and colour.
        normalise: as the images were.
    """
    size = image_BCHW.shape[-1]
    lot_B5 = uniform(key_hash_B, seed, epoch, ERASE, 5)
    start_B2 = np.floor(lot_B5[:, :2] * size) - round(_CUTOUT_SIDE * size) // 2
    box_B4 = np.concatenate([start_B2, start_B2 + round(_CUTOUT_SIDE * size)], axis=1).clip(0, size)
    colour_BC = torch.from_numpy(np.floor(lot_B5[:, 2:] * 256).astype(np.float32)).to(image_BCHW.device)
    return fill_holes(image_BCHW, hide_boxes(box_B4, size, image_BCHW.device), normalise(colour_BC[:, :, None, None]))


def random_erasing(
    image_BCHW: Tensor, key_hash_B: np.ndarray, normalise: Normalise, *, seed: int, epoch: int
) -> Tensor:
    """In half of the images a box of 2 to 33 % of the area, with a ratio of 0.3 to 3.3, becomes random pixels (Random
    Erasing, RE-R; Zhong et al., AAAI 2020, arXiv 1708.04896).

    Args:
        image_BCHW, key_hash_B, normalise: as in `cutout`.
    """
    size = image_BCHW.shape[-1]
    chosen_B, down_B, across_B = uniform(key_hash_B, seed, epoch, ERASE, 3).T
    side_B = np.full(len(key_hash_B), size)
    top_B, left_B, height_B, width_B = random_crops(
        key_hash_B,
        side_B,
        side_B,
        seed=seed,
        epoch=epoch,
        scale=_ERASED_SHARE,
        ratio=_ERASED_RATIO,
        stream=ERASED_BOX,
    ).T
    box_B4 = np.stack([top_B, left_B, top_B + height_B, left_B + width_B], axis=1)
    box_B4[chosen_B >= _ERASED_OFTEN] = 0
    noise_CHW = _noise(size).to(image_BCHW.device)
    shifts = zip((down_B * size).astype(int).tolist(), (across_B * size).astype(int).tolist(), strict=True)
    noise_BCHW = torch.stack([noise_CHW.roll(shift, dims=(1, 2)) for shift in shifts])
    return fill_holes(image_BCHW, hide_boxes(box_B4, size, image_BCHW.device), normalise(noise_BCHW))


@functools.cache
def _noise(size: int) -> Tensor:
    """Random pixels, uint8 (3, S, S), the same on every machine; each image meets them in another place."""
    number = np.arange(3 * size * size, dtype=np.uint64)
    return torch.from_numpy((hash64(_NOISE_SEED, number) >> np.uint64(56)).astype(np.uint8)).view(3, size, size)
