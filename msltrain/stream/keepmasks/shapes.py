"""Keep masks that are drawn instead of stored, to compare irregular holes with: patches, a box, an object's box, none.

Boxes are (top, left, bottom, right) in pixels of the square image, bottom and right exclusive. Legend: B samples,
S = H = W pixels, P objects of a batch.
"""

from __future__ import annotations

import numpy as np
import torch

from msldata.errors import UserError
from msltrain.stream.keepmasks.choice import choose, numbers
from msltrain.stream.keepmasks.objects import Objects
from msltrain.stream.pixels.batch import Batch
from msltrain.stream.samples.shardset import ShardSet

_LONGEST_BOX = 2.0
"""Height over width of a random box is at most this, and at least one over it."""


class NoHoles:
    """Nothing is hidden: shows what the masked branch does merely by being a second pass."""

    def __init__(self, image_size: int, device: str | torch.device):
        self._shape = (image_size, image_size)
        self._device = device

    def keep_masks(self, batch: Batch, *, seed: int, epoch: int) -> torch.Tensor:
        """See ``AnyKeepMasks``."""
        return torch.ones((len(batch.keys), 1, *self._shape), device=self._device)


class PatchMasks:
    """A grid of square patches, of which the same number is hidden in every image, chosen evenly (as MAE does).

    Args:
        patch_size: side in pixels; divides ``image_size``.
        hole_fraction: of the patches; the nearest whole number of them is hidden.

    Raises:
        UserError: the patches do not fit the image.
    """

    def __init__(self, image_size: int, device: str | torch.device, *, patch_size: int, hole_fraction: float):
        if image_size % patch_size:
            raise UserError(
                f"keep_mask.patch_size is {patch_size}, which does not divide stream.image_size {image_size}; "
                "set one that does"
            )
        self._side = image_size // patch_size
        self._patch_size = patch_size
        self._num_hidden = round(hole_fraction * self._side**2)
        self._device = device

    def keep_masks(self, batch: Batch, *, seed: int, epoch: int) -> torch.Tensor:
        """See ``AnyKeepMasks``."""
        lot_BN = numbers(batch.key_hash_B, self._side**2, seed=seed, epoch=epoch)
        patch_BN = np.ones(lot_BN.shape, dtype=np.float32)
        hidden = np.argsort(lot_BN, axis=1, kind="stable")[:, : self._num_hidden]
        np.put_along_axis(patch_BN, hidden, 0, axis=1)
        patch_B1hw = torch.from_numpy(patch_BN).to(self._device).unflatten(1, (1, self._side, self._side))
        return patch_B1hw.repeat_interleave(self._patch_size, 2).repeat_interleave(self._patch_size, 3)


class BoxMasks:
    """One box somewhere in the image.

    Args:
        hole_fraction: its share of the image, up to rounding to pixels; height over width is log-uniform in [1/2, 2] as
            far as such a box fits.
    """

    def __init__(self, image_size: int, device: str | torch.device, *, hole_fraction: float):
        self._size, self._hole_fraction, self._device = image_size, hole_fraction, device

    def keep_masks(self, batch: Batch, *, seed: int, epoch: int) -> torch.Tensor:
        """See ``AnyKeepMasks``."""
        shape_B, down_B, across_B = numbers(batch.key_hash_B, 3, seed=seed, epoch=epoch).T
        longest = min(_LONGEST_BOX, 1 / self._hole_fraction)
        ratio_B = longest ** (2 * shape_B - 1)
        height_B = np.rint(self._size * np.sqrt(self._hole_fraction * ratio_B)).clip(1, self._size)
        width_B = np.rint(self._hole_fraction * self._size**2 / height_B).clip(1, self._size)
        top_B = np.floor(down_B * (self._size - height_B + 1))
        left_B = np.floor(across_B * (self._size - width_B + 1))
        box_B4 = np.stack([top_B, left_B, top_B + height_B, left_B + width_B], axis=1)
        return hide_boxes(box_B4, self._size, self._device)


class ObjectMasks:
    """The box of one object of the image, chosen evenly among those that its crop shows; crowds are never chosen.

    The box follows the crop, the resize and the flip that the batch carries, and is larger than the object by as much
    as the resize smears it: no remaining pixel contains any part of the box. Where the crop shows no object, nothing is
    hidden.

    Raises:
        UserError: the dataset has no objects.
        FormatError: a sample index cannot be read.
    """

    def __init__(self, shards: ShardSet, image_size: int, device: str | torch.device):
        self._image_size, self._device = image_size, device
        self._objects = Objects(shards)
        if self._objects.crowd_M.all():
            raise UserError(
                f"{shards.name}: its sample indexes hold no objects, so keep_mask.kind=object has nothing to hide; "
                "set another kind"
            )

    def keep_masks(self, batch: Batch, *, seed: int, epoch: int) -> torch.Tensor:
        """See ``AnyKeepMasks``."""
        sample_P, object_P = self._objects.of(batch)
        box_P4 = self._objects.boxes(batch, sample_P, object_P, self._image_size)
        shown_P = (box_P4[:, :2] < box_P4[:, 2:]).all(axis=1) & ~self._objects.crowd_M[object_P]
        box_P4, sample_P = box_P4[shown_P], sample_P[shown_P]
        shown_B = np.bincount(sample_P, minlength=len(batch.keys))
        chosen_B = np.cumsum(shown_B) - shown_B
        chosen_B += choose(batch.key_hash_B, shown_B, seed=seed, epoch=epoch)
        box_B4 = np.zeros((len(shown_B), 4))
        box_B4[shown_B > 0] = box_P4[chosen_B[shown_B > 0]]
        return hide_boxes(box_B4, self._image_size, self._device)


def hide_boxes(box_B4: np.ndarray, image_size: int, device: str | torch.device) -> torch.Tensor:
    """keep_mask_B1HW: 0 inside a box, 1 elsewhere."""
    top_B1, left_B1, bottom_B1, right_B1 = torch.from_numpy(box_B4).to(device, torch.int64).split(1, dim=1)
    pixel_1S = torch.arange(image_size, device=device)[None]
    row_BS = (top_B1 <= pixel_1S) & (pixel_1S < bottom_B1)
    column_BS = (left_B1 <= pixel_1S) & (pixel_1S < right_B1)
    return 1.0 - (row_BS[:, :, None] & column_BS[:, None, :])[:, None].float()
