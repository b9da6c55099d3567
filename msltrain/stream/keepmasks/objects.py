"""Objects: where the annotated objects of a batch are on the squares that the network sees.

Boxes are (top, left, bottom, right) in pixels of the square image, bottom and right exclusive. Legend: B samples,
S = H = W pixels, K classes, M objects of a dataset, P objects of a batch.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from msldata.contract.format import read_index
from msltrain.stream.pixels.batch import Batch
from msltrain.stream.samples.shardset import ShardSet


class Objects:
    """The annotated objects of a dataset, difficult ones too, read from its sample indexes: about 24 bytes each.

    Args:
        shards: the dataset; for a part of one, the objects of the whole are read.

    Attributes:
        class_M: int64.
        crowd_M: bool.

    Raises:
        FormatError: a sample index cannot be read.
    """

    def __init__(self, shards: ShardSet):
        counts, boxes, classes, crowds = [], [], [], []
        for shard in shards.manifest.shards:
            table = read_index(shards.storage, shards.manifest, shard, ("objects",)).combine_chunks()
            if not table.num_rows:
                continue
            objects = table["objects"].chunk(0)
            counts.append(np.diff(objects.offsets.to_numpy()))
            flat = objects.flatten()
            boxes.append(flat.field("box").flatten().to_numpy().reshape(-1, 4))
            classes.append(flat.field("class_index").to_numpy())
            crowds.append(flat.field("crowd").to_numpy(zero_copy_only=False))
        self._count_N = np.concatenate(counts).astype(np.int64)
        self._first_N = np.cumsum(self._count_N) - self._count_N
        self._xywh_M4 = np.concatenate(boxes)
        self.class_M = np.concatenate(classes).astype(np.int64)
        self.crowd_M = np.concatenate(crowds).astype(bool)

    def __len__(self) -> int:
        return len(self.class_M)

    def of(self, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """The objects of a batch: sample_P, the place of each one's image in the batch, and object_P, its number."""
        count_B = self._count_N[batch.index_B]
        sample_P = np.repeat(np.arange(len(count_B)), count_B)
        nth_P = np.arange(len(sample_P)) - np.repeat(np.cumsum(count_B) - count_B, count_B)
        return sample_P, self._first_N[batch.index_B][sample_P] + nth_P

    def boxes(self, batch: Batch, sample_P: np.ndarray, object_P: np.ndarray, side: int) -> np.ndarray:
        """Boxes around all pixels of the squares that any part of an object contributes to, cut off at the edge.

        They follow the crop, the resize and the flip of the batch, and are larger than the object by as much as the
        resize smears it. An object that the crop does not show has a box of no extent.

        Args:
            sample_P, object_P: from ``of``.
            side: S in pixels.
        """
        first_P2, stop_P2, extent_P2 = self._in_crop(batch, sample_P, object_P)
        first_P2, stop_P2 = np.floor(first_P2), np.ceil(stop_P2)
        empty_P = (first_P2 >= stop_P2).any(axis=1)
        # Pixel o of the square is made from the pixels whose centres are less than `reach` from (o + 0.5) · scale.
        scale_P2 = extent_P2 / side
        reach_P2 = np.maximum(scale_P2, 1)
        start_P2 = np.floor((first_P2 + 0.5 - reach_P2) / scale_P2 - 0.5) + 1
        end_P2 = np.ceil((stop_P2 - 0.5 + reach_P2) / scale_P2 - 0.5)
        box_P4 = _mirrored(start_P2.clip(0, side), end_P2.clip(0, side), batch.flip_B[sample_P], side)
        box_P4[empty_P] = 0
        return box_P4

    def meet(self, sample_P: np.ndarray, object_P: np.ndarray) -> np.ndarray:
        """Which objects of the same image have boxes with some area in common, bool (P, P); each meets itself.

        Args:
            sample_P, object_P: from ``of``.
        """
        first_P2, size_P2 = self._xywh_M4[object_P, :2], self._xywh_M4[object_P, 2:]
        stop_P2 = first_P2 + size_P2
        common_PP2 = np.minimum(stop_P2[:, None], stop_P2) - np.maximum(first_P2[:, None], first_P2)
        return (common_PP2 > 0).all(axis=2) & (sample_P[:, None] == sample_P)

    def hidden(self, batch: Batch, keep_mask_B1HW: Tensor, least_visible: float, num_classes: int) -> Tensor:
        """Which classes of an image have objects, but none with more than a sliver left: bool (B, K).

        What an object's crop and hole leave is measured on its box: the share of the box that lies inside the crop,
        times the share of that part that is visible.

        Args:
            keep_mask_B1HW: 1 visible, 0 hole.
            least_visible: a class is hidden when each of its objects keeps less than this share.
            num_classes: K.
        """
        sample_P, object_P = self.of(batch)
        left_P = self._left(batch, keep_mask_B1HW, sample_P, object_P)
        device = keep_mask_B1HW.device
        most_BK = torch.full((len(batch), num_classes), -1.0, device=device)
        pair_P = torch.from_numpy(sample_P * num_classes + self.class_M[object_P]).to(device)
        most_BK.view(-1).scatter_reduce_(0, pair_P, left_P, "amax")
        return (most_BK >= 0) & (most_BK < least_visible)

    def _left(self, batch: Batch, keep_mask_B1HW: Tensor, sample_P: np.ndarray, object_P: np.ndarray) -> Tensor:
        """Share of each object's box that crop and hole leave visible, float32 (P,)."""
        side, device = keep_mask_B1HW.shape[2], keep_mask_B1HW.device
        first_P2, stop_P2, extent_P2 = self._in_crop(batch, sample_P, object_P)
        size_P2 = self._xywh_M4[object_P, 3:1:-1]
        inside_P = ((stop_P2 - first_P2).clip(0) / np.maximum(size_P2, 1e-9)).clip(0, 1).prod(axis=1)
        scale_P2 = extent_P2 / side
        start_P2 = np.floor(first_P2 / scale_P2).clip(0, side - 1)  # whole pixels that the box touches; never none
        end_P2 = np.maximum(np.ceil(stop_P2 / scale_P2).clip(0, side), start_P2 + 1)
        box_P4 = _mirrored(start_P2, end_P2, batch.flip_B[sample_P], side)
        top, left, bottom, right = torch.from_numpy(box_P4.astype(np.int64)).to(device).unbind(1)
        sample = torch.from_numpy(sample_P).to(device)
        sum_BHW = F.pad(keep_mask_B1HW[:, 0], (1, 0, 1, 0)).cumsum(1).cumsum(2)
        visible_P = (
            sum_BHW[sample, bottom, right]
            - sum_BHW[sample, top, right]
            - sum_BHW[sample, bottom, left]
            + sum_BHW[sample, top, left]
        )
        share_P = visible_P / ((bottom - top) * (right - left))
        return share_P * torch.from_numpy(inside_P.astype(np.float32)).to(device)

    def _in_crop(
        self, batch: Batch, sample_P: np.ndarray, object_P: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """First and last edge of each object's box inside its crop, and the crop's extent: (rows, columns), pixels."""
        xywh_P4, crop_P4 = self._xywh_M4[object_P].astype(np.float64), batch.crop_B4[sample_P]
        origin_P2, extent_P2 = crop_P4[:, :2], crop_P4[:, 2:]
        first_P2 = xywh_P4[:, 1::-1] - origin_P2
        stop_P2 = first_P2 + xywh_P4[:, :1:-1]
        return first_P2.clip(0, extent_P2), stop_P2.clip(0, extent_P2), extent_P2


def _mirrored(start_P2: np.ndarray, end_P2: np.ndarray, flip_P: np.ndarray, side: int) -> np.ndarray:
    """Boxes from edges that were measured before the flip."""
    left_P = np.where(flip_P, side - end_P2[:, 1], start_P2[:, 1])
    right_P = np.where(flip_P, side - start_P2[:, 1], end_P2[:, 1])
    return np.stack([start_P2[:, 0], left_P, end_P2[:, 0], right_P], axis=1)
