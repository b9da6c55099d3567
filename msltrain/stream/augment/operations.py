"""RandAugment: random operations on the pixels of each image, by torchvision.

Legend: B samples, C channels, H, W pixels.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from msltrain.stream.order.random import RANDAUGMENT, hash64


def random_operations(
    pixel_BCHW: Tensor, key_hash_B: np.ndarray, *, seed: int, epoch: int, num_operations: int, magnitude: int
) -> Tensor:
    """RandAugment (Cubuk et al., NeurIPS 2020, arXiv 1909.13719) of each image.

    torchvision draws from torch's generator, which is seeded for each image by (seed, epoch, key) and left as it was.

    Args:
        pixel_BCHW: uint8.
        key_hash_B: uint64.
        num_operations: the paper's N.
        magnitude: the paper's M, of 0 to 30.

    Returns:
        uint8 (B, C, H, W).
    """
    transform = v2.RandAugment(num_ops=num_operations, magnitude=magnitude, num_magnitude_bins=31)
    lot_B = (hash64(seed, epoch, RANDAUGMENT, key_hash_B) >> np.uint64(1)).tolist()
    images = []
    with torch.random.fork_rng(devices=[]):
        for pixel_CHW, lot in zip(pixel_BCHW, lot_B, strict=True):
            torch.default_generator.manual_seed(lot)
            images.append(transform(pixel_CHW))
    return torch.stack(images)
