"""What is hidden in a robustness study: kinds of keep masks by name, ranges of hole fraction, who meets which.

B batch, H, W image size, K classes, M samples of this rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from msldata.errors import UserError
from msltrain.objectboxes import ObjectBoxes
from msltrain.stream.batch import Batch
from msltrain.stream.maskbank import MaskBank

WHOLE = "whole"
"""The condition in which nothing is hidden."""
KINDS = ("irregular",)
"""``irregular``: the stored keep masks of the folders that were named."""
EPOCH = 0
"""Keep masks change with the epoch in training; a study always takes those of this one."""


@dataclass(frozen=True, slots=True)
class HoleRange:
    """Keep masks with a hole fraction in (low, high]."""

    name: str
    low: float
    high: float


_BINS = tuple(HoleRange(f"{10 * n:02d}-{10 * n + 10:02d}", n / 10, (n + 1) / 10) for n in range(6))
RANGES = (*_BINS, HoleRange("high", 0.5, 1.0))
"""Six bins of ten percent, as the irregular test masks come, and the paper's "high"."""


class Holes:
    """Keep masks of one kind in one range, and a record of what they hid.

    Args:
        kind: of ``KINDS``.
        range_: of ``RANGES``.
        choose: the keep masks (B, 1, H, W) of a batch.
        boxes: where the objects are; None: unknown.
        index_N: int64 ascending, positions of all samples in the stored order.
    """

    def __init__(
        self,
        kind: str,
        range_: HoleRange,
        choose: Callable[[Batch], Tensor],
        boxes: ObjectBoxes | None,
        index_N: np.ndarray,
    ):
        self.kind, self.range = kind, range_
        self._choose, self._boxes, self._index_N = choose, boxes, index_N
        self.records: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        """What the batches so far met: index (B,), hole fraction (B,), visible share (B, K; or 0 where unknown)."""

    @property
    def name(self) -> str:
        """Such as ``irregular-00-10``; names its predictions file."""
        return f"{self.kind}-{self.range.name}"

    def __call__(self, batch: Batch) -> Tensor:
        """The keep masks of a batch."""
        keep_mask_B1HW = self._choose(batch)
        hole_fraction_B = 1 - keep_mask_B1HW.mean(dim=(1, 2, 3), dtype=torch.float64).cpu().numpy()
        visible_BK = np.empty((len(batch), 0), np.float32)
        if self._boxes is not None:
            place_B = np.searchsorted(self._index_N, batch.index_B)
            visible_BK = self._boxes.visible_shares(keep_mask_B1HW, place_B)
        self.records.append((batch.index_B, hole_fraction_B, visible_BK))
        return keep_mask_B1HW


def open_kind(
    kind: str,
    ranges: Sequence[HoleRange],
    keep_masks: Sequence[str | Path],
    *,
    image_size: int,
    device: torch.device,
    seed: int,
) -> dict[HoleRange, Callable[[Batch], Tensor]]:
    """For each range that the kind has masks in, what chooses the keep masks (B, 1, H, W) of a batch.

    The choice depends on the sample's key and ``seed`` alone, so every model meets the same holes.

    Args:
        kind: of ``KINDS``.
        ranges: to look for.
        keep_masks: folders of held-out keep masks, for ``irregular``.

    Raises:
        UserError: an unknown kind, or no folder, or none of their masks lies in any range.
    """
    if kind not in KINDS:
        raise UserError(f"no kind of keep mask is called '{kind}'; there are: {', '.join(KINDS)}")
    bank = MaskBank.open(keep_masks, image_size, device)
    found = {range_: part for range_ in ranges if (part := bank.within(range_.low, range_.high)) is not None}
    if not found:
        raise UserError(f"{', '.join(map(str, keep_masks))}: no keep mask has a hole fraction above 0")
    return {range_: _chooser(part, seed) for range_, part in found.items()}


def _chooser(bank: MaskBank, seed: int) -> Callable[[Batch], Tensor]:
    return lambda batch: bank.keep_masks(batch.key_hash_B, seed=seed, epoch=EPOCH)
