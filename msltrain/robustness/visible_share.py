"""How much of each object a keep mask leaves visible.

B batch, H = W image size, K classes, M objects of the batch.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from msltrain.evaluation.sweep import AllSamples


class ObjectBoxes:
    """The boxes of all objects of a dataset, difficult ones too, on the square that the model sees.

    Args:
        samples: the dataset. ``known`` is False if it has no object annotations.
    """

    def __init__(self, samples: AllSamples):
        array = samples.objects()
        flat = array.flatten()
        self.num_classes = len(samples.shard_set.classes)
        self.known = len(flat) > 0
        self._first_N1 = np.append(0, np.cumsum(array.value_lengths().to_numpy()))
        self._class_M = flat.field("class_index").to_numpy().astype(np.int64)
        box_M4 = flat.field("box").flatten().to_numpy().astype(np.float64).reshape(-1, 4)
        size_N2 = np.stack([samples.rows.width_N, samples.rows.height_N], axis=1)
        size_M2 = np.repeat(size_N2, np.diff(self._first_N1), axis=0)
        corner_M4 = np.concatenate([box_M4[:, :2], box_M4[:, :2] + box_M4[:, 2:]], axis=1)
        self._corner_M4 = np.clip(corner_M4 / np.tile(size_M2, 2), 0, 1)

    def visible_shares(self, visible_B1HW: Tensor, place_B: np.ndarray) -> np.ndarray:
        """The visible share of the box of each class's least hidden object.

        Args:
            visible_B1HW: 1 or True visible, 0 hole, and nothing between them.
            place_B: int64, number of each sample in the whole dataset.

        Returns:
            float32 (B, K) in [0, 1]; -1 where the image has no object of the class.
        """
        device, size = visible_B1HW.device, visible_B1HW.shape[2]
        count_B = self._first_N1[place_B + 1] - self._first_N1[place_B]
        row_M = np.repeat(np.arange(len(place_B)), count_B)
        object_M = np.concatenate([np.arange(*self._first_N1[place : place + 2]) for place in place_B])
        object_M = object_M.astype(np.int64)
        # The whole pixels that the box touches, at least one.
        low_M2 = np.minimum(np.floor(self._corner_M4[object_M, :2] * size).astype(np.int64), size - 1)
        high_M2 = np.maximum(np.ceil(self._corner_M4[object_M, 2:] * size).astype(np.int64), low_M2 + 1)
        left, top, right, bottom, row, class_ = (
            torch.from_numpy(np.ascontiguousarray(array)).to(device)
            for array in (*low_M2.T, *high_M2.T, row_M, self._class_M[object_M])
        )
        integral_BHW = torch.nn.functional.pad(visible_B1HW[:, 0].to(torch.int32), (1, 0, 1, 0))
        integral_BHW = integral_BHW.cumsum(1, dtype=torch.int32).cumsum(2, dtype=torch.int32)
        visible_M = (
            integral_BHW[row, bottom, right]
            - integral_BHW[row, top, right]
            - integral_BHW[row, bottom, left]
            + integral_BHW[row, top, left]
        )
        share_M = visible_M.float() / ((right - left) * (bottom - top)).float()
        share_BK = torch.full((len(place_B), self.num_classes), -1.0, device=device)
        share_BK.view(-1).scatter_reduce_(0, row * self.num_classes + class_, share_M, "amax")
        return share_BK.cpu().numpy()
