"""Batch: what a training or evaluation step gets. HostBatch: the same before it reaches the device.

Legend: B samples of this rank, C = 3 channels, H = W = S pixels, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from msltrain.stream.pixels.nvjpeg import EncodedImages
from msltrain.stream.pixels.resize import WholeImages

HostPixels = torch.Tensor | WholeImages | EncodedImages
"""What the pixels of a batch are on the host: pixel_BHWC (uint8 RGB, cropped and resized, not flipped), or the input
from which the device makes it. It lives in a buffer that is reused after the batch is released."""


# Not frozen: Lightning casts a batch field by field, by setting them on a copy, and refuses a frozen one.
@dataclass(slots=True, eq=False)
class Batch:
    """One batch of one rank, on the device.

    Example:
        with msltrain.Loader("shards/voc2007/test", training=False) as loader:
            batch = next(iter(loader)).to("cpu")
        print(batch.keys[0], batch.image_BCHW.shape, batch.target_BK.shape)
    """

    image_BCHW: torch.Tensor
    """float32, normalised and flipped, channels-last strides."""
    target_BK: torch.Tensor
    """float32 multi-hot; ignored classes are 0. Between 0 and 1 where `Augment` has mixed images."""
    ignore_BK: torch.Tensor
    """bool; True where evaluation leaves the class out for this image."""
    keys: list[str]
    key_hash_B: np.ndarray
    """uint64; hashes by which keep masks are chosen."""
    index_B: np.ndarray
    """int64; position of each sample in the stored order of the whole dataset."""
    crop_B4: np.ndarray
    """int64 (top, left, height, width) in pixels of the stored images: the part that was squashed to S×S."""
    flip_B: np.ndarray
    """bool; which images were then mirrored left to right."""

    def __len__(self) -> int:
        return len(self.keys)

    def to(self, device: str | torch.device, *, non_blocking: bool = False) -> Batch:
        """The same batch on another device; itself if it is there already."""
        moved = {
            name: getattr(self, name).to(device, non_blocking=non_blocking)
            for name in ("image_BCHW", "target_BK", "ignore_BK")
        }
        if all(moved[name] is getattr(self, name) for name in moved):
            return self
        return replace(self, **moved)


@dataclass(frozen=True, slots=True, eq=False)
class HostBatch:
    """One batch of one rank in host memory: pixels as decoded, everything else is still to be done on the device."""

    pixels: HostPixels
    flip_B: torch.Tensor
    """bool; which images are to be mirrored."""
    target_BK: torch.Tensor
    """uint8"""
    ignore_BK: torch.Tensor
    """bool"""
    keys: list[str]
    key_hash_B: np.ndarray
    index_B: np.ndarray
    crop_B4: np.ndarray
    """As in ``Batch``."""
    num_bytes: int
    """Encoded bytes that were read."""

    def __len__(self) -> int:
        return len(self.keys)
