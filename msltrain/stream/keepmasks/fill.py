"""What shows in a hole instead of nothing: a flat colour, noise, a blur, or the pixels of another photograph.

    filling_BCHW = make_filling("blur", image_BCHW)
    masked_image_BCHW = fill_holes(image_BCHW, keep_mask_B1HW, filling_BCHW)

All of it is computed image by image on the device, so it is the same whatever the batch, the process or the order in
which an image comes. Legend: B samples, C channels, S = H = W pixels.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from msltrain.stream.config import Fill
from msltrain.stream.order.random import hash64

OF_ITSELF = ("mean", "noise", "blur")
"""Fillings that are made from the image alone."""
_BLUR_CELLS = 5
"""A blurred image has this many cells per side, with smooth transitions between them."""
_NOISE_SEED = 0x4E4F495345


def fill_holes(image_BCHW: Tensor, keep_mask_B1HW: Tensor, filling_BCHW: Tensor | None = None) -> Tensor:
    """The masked images: ``image · keep + filling · (1 − keep)``.

    Args:
        image_BCHW: normalised, float32.
        keep_mask_B1HW: 1 = visible, 0 = hole; between them both are mixed.
        filling_BCHW: what shows in the holes, normalised, broadcast over pixels where it is (B, C, 1, 1); None: 0.
    """
    masked_BCHW = image_BCHW * keep_mask_B1HW
    return masked_BCHW if filling_BCHW is None else masked_BCHW + filling_BCHW * (1 - keep_mask_B1HW)


def make_filling(fill: Fill, image_BCHW: Tensor, key_hash_B: np.ndarray, *, seed: int, epoch: int) -> Tensor | None:
    """What shows in the holes of each image when it is made from the image itself; None for zero.

    Args:
        fill: zero, mean, noise or blur.
        image_BCHW: normalised, float32.
        key_hash_B: uint64; with seed and epoch it decides the noise of an image.
    """
    match fill:
        case "zero":
            return None
        case "mean":
            return image_BCHW.mean(dim=(2, 3), keepdim=True)
        case "noise":
            return _noise(image_BCHW, hash64(seed, epoch, key_hash_B))
        case "blur":
            cells_BCss = F.adaptive_avg_pool2d(image_BCHW, _BLUR_CELLS)
            return F.interpolate(cells_BCss, size=image_BCHW.shape[2:], mode="bilinear", align_corners=False)
        case _:
            raise AssertionError(f"{fill} is not made of the image itself")


def _noise(image_BCHW: Tensor, lot_B: np.ndarray) -> Tensor:
    """Normal noise with each image's own mean and deviation per channel.

    One field of noise is drawn once and shifted differently for each image: a new field for each would cost the host
    more than the network costs the device.
    """
    channels, height, width = image_BCHW.shape[1:]
    field_CHW = _noise_field(channels, height, width).to(image_BCHW.device)
    down_B, across_B = (lot_B % np.uint64(height)).tolist(), (lot_B // np.uint64(height) % np.uint64(width)).tolist()
    noise_BCHW = torch.stack([field_CHW.roll(shifts, dims=(1, 2)) for shifts in zip(down_B, across_B, strict=True)])
    std_BC11, mean_BC11 = torch.std_mean(image_BCHW, dim=(2, 3), keepdim=True)
    return mean_BC11 + std_BC11 * noise_BCHW


@functools.cache
def _noise_field(channels: int, height: int, width: int) -> Tensor:
    """Standard normal numbers (C, H, W), the same on every machine."""
    number = np.arange(2 * channels * height * width, dtype=np.uint64)
    uniform_2N = ((hash64(_NOISE_SEED, number) >> np.uint64(11)) + 0.5).reshape(2, -1) * 2.0**-53
    normal_N = np.sqrt(-2 * np.log(uniform_2N[0])) * np.cos(2 * np.pi * uniform_2N[1])  # Box and Muller
    return torch.from_numpy(normal_N.astype(np.float32)).view(channels, height, width)
