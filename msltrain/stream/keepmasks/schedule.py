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
from msltrain.stream.keepmasks.bank import KeepMasks
from msltrain.stream.keepmasks.choice import choose_folder
from msltrain.stream.pixels.batch import Batch


class MaskSchedule:
    """Which folder, and how far into its lightest masks, is decided by (seed, epoch, key) like the mask itself.

    Args:
        banks: one per folder.
        weights: the share of the samples that each serves; the rest stays whole.
        ramp_epochs: see ``KeepMaskConfig``.
        first_epoch: the epoch, counted from 0, from which images are masked.
    """

    def __init__(self, banks: Sequence[KeepMasks], weights: Sequence[float], ramp_epochs: int, first_epoch: int):
        self._banks, self._ramp_epochs, self._first_epoch = list(banks), ramp_epochs, first_epoch
        self._weights = tuple(weights)

    @classmethod
    def open(
        cls,
        config: KeepMaskConfig,
        places: Sequence[str | Path],
        image_size: int,
        device: str | torch.device,
        *,
        first_epoch: int = 0,
    ) -> MaskSchedule:
        """Load the masks that ``config`` asks for; ``first_epoch``: see the class.

        Raises:
            UserError: not as many weights as folders, or no folder.
            FormatError, StorageError, FileNotFoundError: as in ``KeepMasks.open``.
        """
        if not config.subset_weights:  # a ramp alone: all masks as one set
            together = KeepMasks.open(places, image_size, device, augment=config.augment)
            return cls([together], [1.0], config.ramp_epochs, first_epoch)
        if len(config.subset_weights) != len(places):
            raise UserError(
                f"keep_mask.subset_weights has {len(config.subset_weights)} numbers for {len(places)} folders of "
                "data.keep_masks; give one for each folder, in the same order"
            )
        banks = [KeepMasks.open([place], image_size, device, augment=config.augment) for place in places]
        return cls(banks, config.subset_weights, config.ramp_epochs, first_epoch)

    def __len__(self) -> int:
        return sum(map(len, self._banks))

    def keep_masks(self, batch: Batch, *, seed: int, epoch: int) -> torch.Tensor:
        """See ``AnyKeepMasks``."""
        number = max(0, epoch - self._first_epoch) + 1
        lightest = min(1.0, number / self._ramp_epochs) if self._ramp_epochs else 1.0
        folder_B = choose_folder(batch.key_hash_B, self._weights, seed=seed, epoch=epoch)
        size, device = self._banks[0].image_size, self._banks[0].device
        keep_mask_B1HW = torch.ones((len(folder_B), 1, size, size), device=device)
        for number, bank in enumerate(self._banks):
            row_b = np.flatnonzero(folder_B == number)
            if len(row_b):
                masks = bank.of_hashes(batch.key_hash_B[row_b], seed=seed, epoch=epoch, lightest=lightest)
                keep_mask_B1HW[torch.from_numpy(row_b).to(device)] = masks
        return keep_mask_B1HW
