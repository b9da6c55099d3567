"""MaskSchedule: stored keep masks of several folders in given shares, the lightest holes first if asked for.

Legend: B samples, S = H = W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from msldata.errors import UserError
from msltrain.stream.config import KeepMaskConfig
from msltrain.stream.keepmasks.bank import MaskBank
from msltrain.stream.order.random import SUBSET, uniform
from msltrain.stream.pixels.batch import Batch


class MaskSchedule:
    """Which folder, and how far into its lightest masks, is decided by (seed, epoch, key) like the mask itself.

    Args:
        banks: one of each folder.
        weights: the share of the samples that each serves; the rest stays whole.
        ramp_epochs: see ``KeepMaskConfig``.
    """

    def __init__(self, banks: Sequence[MaskBank], weights: Sequence[float], ramp_epochs: int):
        self._banks, self._ramp_epochs = list(banks), ramp_epochs
        self._ends = np.cumsum(weights)

    @classmethod
    def open(
        cls, config: KeepMaskConfig, places: Sequence[str | Path], image_size: int, device: str | torch.device
    ) -> MaskSchedule:
        """Load the masks that ``config`` asks for.

        Raises:
            UserError: not as many weights as folders, or no folder.
            FormatError, StorageError, FileNotFoundError: as ``MaskBank.open``.
        """
        if not config.subset_weights:  # a ramp alone: all masks as one set
            return cls([MaskBank.open(places, image_size, device, augment=config.augment)], [1.0], config.ramp_epochs)
        if len(config.subset_weights) != len(places):
            raise UserError(
                f"keep_mask.subset_weights has {len(config.subset_weights)} numbers for {len(places)} folders of "
                "data.keep_masks; give one for each folder, in the same order"
            )
        banks = [MaskBank.open([place], image_size, device, augment=config.augment) for place in places]
        return cls(banks, config.subset_weights, config.ramp_epochs)

    def __len__(self) -> int:
        return sum(map(len, self._banks))

    def keep_masks(self, batch: Batch, *, seed: int, epoch: int) -> torch.Tensor:
        """See ``KeepMasks``."""
        lightest = min(1.0, (epoch + 1) / self._ramp_epochs) if self._ramp_epochs else 1.0
        lot_B = uniform(batch.key_hash_B, seed, epoch, SUBSET, 1)[:, 0]
        # Shares that add up to 1 but for rounding must leave no image whole.
        subset_B = np.searchsorted(np.where(self._ends > 1 - 1e-9, 1.0, self._ends), lot_B, side="right")
        size, device = self._banks[0].image_size, self._banks[0].device
        keep_mask_B1HW = torch.ones((len(lot_B), 1, size, size), device=device)
        for number, bank in enumerate(self._banks):
            row_b = np.flatnonzero(subset_B == number)
            if len(row_b):
                masks = bank.of_hashes(batch.key_hash_B[row_b], seed=seed, epoch=epoch, lightest=lightest)
                keep_mask_B1HW[torch.from_numpy(row_b).to(device)] = masks
        return keep_mask_B1HW
