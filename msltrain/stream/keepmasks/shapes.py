"""Keep masks that are drawn instead of stored, to compare irregular holes with: patches, a box, an object's box, none.

Boxes are (top, left, bottom, right) in pixels of the square image, bottom and right exclusive. Legend: B samples,
S = H = W pixels, M objects of a dataset, P objects of a batch.
"""

from __future__ import annotations

import numpy as np
import torch

from msldata.contract.format import read_index
from msldata.errors import UserError
from msltrain.stream.config import StreamConfig
from msltrain.stream.keepmasks.choice import choose, numbers
from msltrain.stream.order.augment import random_crops, random_flips, whole_images
from msltrain.stream.pixels.batch import Batch
from msltrain.stream.samples.shardset import ShardSet

_LONGEST_BOX = 2.0
"""Height over width of a random box is at most this, and at least one over it."""


class WholeImages:
    """Nothing is hidden: what the masked branch does by being a second pass alone."""

    def __init__(self, image_size: int, device: str | torch.device):
        self._shape = (image_size, image_size)
        self._device = device

    def keep_masks(self, batch: Batch, *, seed: int, epoch: int) -> torch.Tensor:
        """See ``KeepMasks``."""
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
        """See ``KeepMasks``."""
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
        """See ``KeepMasks``."""
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

    The box follows the crop, the resize and the flip that the sample meets, and is larger than the object by as much as
    the resize smears it: no pixel that remains has seen any of the box. Where the crop shows no object, nothing is
    hidden. Reads the objects of the whole dataset at once, about 20 bytes each.

    Args:
        shards, stream, training: what the loader of the batches was given.

    Raises:
        UserError: the dataset knows no objects.
        FormatError: a sample index cannot be read.
    """

    def __init__(self, shards: ShardSet, stream: StreamConfig, device: str | torch.device, *, training: bool):
        self._stream, self._training, self._device = stream, training, device
        sizes, counts, boxes, crowds = [], [], [], []
        for shard in shards.manifest.shards:
            columns = ("width", "height", "objects")
            table = read_index(shards.storage, shards.manifest, shard, columns).combine_chunks()
            if not table.num_rows:
                continue
            sizes.append(np.stack([table[name].to_numpy() for name in ("width", "height")], axis=1))
            objects = table["objects"].chunk(0)
            counts.append(np.diff(objects.offsets.to_numpy()))
            flat = objects.flatten()
            boxes.append(flat.field("box").flatten().to_numpy().reshape(-1, 4))
            crowds.append(flat.field("crowd").to_numpy(zero_copy_only=False))
        self._size_N2 = np.concatenate(sizes).astype(np.int64)
        self._count_N = np.concatenate(counts).astype(np.int64)
        self._first_N = np.cumsum(self._count_N) - self._count_N
        self._box_M4 = np.concatenate(boxes)
        self._crowd_M = np.concatenate(crowds).astype(bool)
        if self._crowd_M.all():
            raise UserError(
                f"{shards.name}: its sample indexes hold no objects, so keep_mask.kind=object has nothing to hide; "
                "set another kind"
            )

    def keep_masks(self, batch: Batch, *, seed: int, epoch: int) -> torch.Tensor:
        """See ``KeepMasks``. ``seed`` and ``epoch`` must be the loader's, which decide the crops too."""
        return hide_boxes(self._boxes(batch, seed, epoch), self._stream.image_size, self._device)

    def _boxes(self, batch: Batch, seed: int, epoch: int) -> np.ndarray:
        """box_B4 of the chosen objects; of no extent where there is none."""
        count_B = self._count_N[batch.index_B]
        sample_P = np.repeat(np.arange(len(count_B)), count_B)
        nth_P = np.arange(len(sample_P)) - np.repeat(np.cumsum(count_B) - count_B, count_B)
        object_P = self._first_N[batch.index_B][sample_P] + nth_P
        box_P4 = self._on_square(batch, sample_P, self._box_M4[object_P], seed, epoch)
        shown_P = (box_P4[:, :2] < box_P4[:, 2:]).all(axis=1) & ~self._crowd_M[object_P]
        box_P4, sample_P = box_P4[shown_P], sample_P[shown_P]
        shown_B = np.bincount(sample_P, minlength=len(count_B))
        chosen_B = np.cumsum(shown_B) - shown_B
        chosen_B += choose(batch.key_hash_B, shown_B, seed=seed, epoch=epoch)
        box_B4 = np.zeros((len(count_B), 4))
        box_B4[shown_B > 0] = box_P4[chosen_B[shown_B > 0]]
        return box_B4

    def _on_square(self, batch: Batch, sample_P: np.ndarray, xywh_P4: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        """Boxes of the stored images as boxes of the cropped, resized and flipped ones, cut off at the edge."""
        stream, side = self._stream, self._stream.image_size
        width_B, height_B = self._size_N2[batch.index_B].T
        if self._training:
            crop_B4 = random_crops(
                batch.key_hash_B,
                width_B,
                height_B,
                seed=seed,
                epoch=epoch,
                scale=stream.crop_scale,
                ratio=stream.crop_ratio,
            )
            flip_B = random_flips(batch.key_hash_B, seed=seed, epoch=epoch, probability=stream.flip_probability)
        else:
            crop_B4, flip_B = whole_images(width_B, height_B), np.zeros(len(width_B), dtype=bool)
        origin_P2, extent_P2 = crop_B4[sample_P, :2], crop_B4[sample_P, 2:]
        # What of the object lies inside the crop, relative to it: rows, then columns, in whole pixels.
        first_P2 = np.floor(xywh_P4[:, 1::-1]) - origin_P2
        stop_P2 = np.ceil(xywh_P4[:, 1::-1] + xywh_P4[:, :1:-1]) - origin_P2
        first_P2, stop_P2 = first_P2.clip(0, extent_P2), stop_P2.clip(0, extent_P2)
        empty_P = (first_P2 >= stop_P2).any(axis=1)
        # Pixel o of the square is made of the pixels whose centres lie less than `reach` from (o + 0.5) · scale.
        scale_P2 = extent_P2 / side
        reach_P2 = np.maximum(scale_P2, 1)
        start_P2 = np.floor((first_P2 + 0.5 - reach_P2) / scale_P2 - 0.5) + 1
        end_P2 = np.ceil((stop_P2 - 0.5 + reach_P2) / scale_P2 - 0.5)
        start_P2, end_P2 = start_P2.clip(0, side), end_P2.clip(0, side)
        flip_P = flip_B[sample_P]
        left_P = np.where(flip_P, side - end_P2[:, 1], start_P2[:, 1])
        right_P = np.where(flip_P, side - start_P2[:, 1], end_P2[:, 1])
        box_P4 = np.stack([start_P2[:, 0], left_P, end_P2[:, 0], right_P], axis=1)
        box_P4[empty_P] = 0
        return box_P4


def hide_boxes(box_B4: np.ndarray, image_size: int, device: str | torch.device) -> torch.Tensor:
    """keep_mask_B1HW: 0 inside a box, 1 elsewhere."""
    top_B1, left_B1, bottom_B1, right_B1 = torch.from_numpy(box_B4).to(device, torch.int64).split(1, dim=1)
    pixel_1S = torch.arange(image_size, device=device)[None]
    row_BS = (top_B1 <= pixel_1S) & (pixel_1S < bottom_B1)
    column_BS = (left_B1 <= pixel_1S) & (pixel_1S < right_B1)
    return 1.0 - (row_BS[:, :, None] & column_BS[:, None, :])[:, None].float()
