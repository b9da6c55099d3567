"""What is hidden in a robustness study: kinds of keep masks by name, ranges of hole fraction, and which sample meets
which mask.

B batch, H, W image size, K classes, M samples of this rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from msldata.errors import UserError
from msltrain.robustness.fillings import EPOCH, Filling
from msltrain.robustness.kinds import DRAWN_SEED, PASTED, STORED
from msltrain.robustness.visible_share import ObjectBoxes
from msltrain.stream.config import StreamConfig
from msltrain.stream.keepmasks.bank import KeepMasks
from msltrain.stream.keepmasks.open_keep_masks import AnyKeepMasks
from msltrain.stream.keepmasks.shapes import BoxMasks, ObjectMasks, PatchMasks
from msltrain.stream.pixels.batch import Batch
from msltrain.stream.samples.shardset import ShardSet


@dataclass(frozen=True, slots=True)
class HoleRange:
    """Keep masks with a hole fraction in (low, high]."""

    name: str
    low: float
    high: float


_BINS = tuple(HoleRange(f"{10 * n:02d}-{10 * n + 10:02d}", n / 10, (n + 1) / 10) for n in range(6))
RANGES = (*_BINS, HoleRange("high", 0.5, 1.0))
"""Six bins of ten percent, as the irregular test masks come, and the paper's "high"."""
OBJECT_RANGE = HoleRange("box", 0.0, 1.0)
_PATCHES_PER_SIDE = 14
"""About this many patches, as a ViT with 16-pixel patches has at 224 pixels."""


class Holes:
    """Keep masks of one kind in one range, what shows in their holes, and a record of what they hid.

    Args:
        kind: of ``kinds.KINDS``.
        range_: of ``RANGES``.
        choose: the keep masks (B, 1, H, W) of a batch.
        filling: what shows in the holes.
        boxes: where the objects are; None: unknown.
        index_N: int64 ascending, positions of all samples in the stored order.
    """

    def __init__(
        self,
        kind: str,
        range_: HoleRange,
        choose: Callable[[Batch], Tensor],
        filling: Filling,
        boxes: ObjectBoxes | None,
        index_N: np.ndarray,
    ):
        self.kind, self.range, self.filling = kind, range_, filling
        self._choose, self._boxes, self._index_N = choose, boxes, index_N
        self._records: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    @property
    def name(self) -> str:
        """The condition's name, such as ``irregular-00-10``, and its predictions file's."""
        return f"{self.kind}-{self.range.name}"

    def __call__(self, batch: Batch) -> Tensor:
        """The images of a batch behind its keep masks."""
        keep_mask_B1HW = self._choose(batch)
        visible_B1HW = keep_mask_B1HW > 0.5  # of grey masks too, as where they were built
        hole_fraction_B = 1 - visible_B1HW.double().mean(dim=(1, 2, 3)).cpu().numpy()
        visible_BK = np.empty((len(batch), 0), np.float32)
        if self._boxes is not None:
            place_B = np.searchsorted(self._index_N, batch.index_B)
            visible_BK = self._boxes.visible_shares(visible_B1HW, place_B)
        image_BCHW, shown_BK = self.filling.hide(batch, keep_mask_B1HW)
        shown = np.empty((len(batch), 0), bool) if shown_BK is None else shown_BK.cpu().numpy()
        self._records.append((hole_fraction_B, visible_BK, shown))
        return image_BCHW

    def take_record(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What the batches since the last call encountered.

        Returns:
            Hole fraction (M,); visible share (M, K; or 0 where unknown); classes that show in the holes, bool (M, K; or
            0 where none can).
        """
        hole_fractions, visible, shown = zip(*self._records, strict=True)
        self._records = []
        return np.concatenate(hole_fractions), np.concatenate(visible), np.concatenate(shown)


def open_stored(
    keep_masks: Sequence[str | Path], image_size: int, device: torch.device
) -> dict[HoleRange, AnyKeepMasks]:
    """The stored keep masks by range, without the empty ranges; where none are named, irregular ones drawn here.

    Raises:
        UserError: no mask in any range.
    """
    if keep_masks:
        bank = KeepMasks.open(keep_masks, image_size, device)
    else:
        bank = KeepMasks.generate(image_size, device, seed=DRAWN_SEED)
    found: dict[HoleRange, AnyKeepMasks] = {}
    for range_ in RANGES:
        if (part := bank.within(range_.low, range_.high)) is not None:
            found[range_] = part
    if not found:
        raise UserError(f"{', '.join(map(str, keep_masks))}: no keep mask has a hole fraction above 0")
    return found


def open_kind(
    kind: str,
    stored: Callable[[], Mapping[HoleRange, AnyKeepMasks]],
    *,
    shard_set: ShardSet,
    stream: StreamConfig,
    device: torch.device,
    seed: int,
) -> dict[HoleRange, Callable[[Batch], Tensor]]:
    """For each range that the kind has masks in, what chooses the keep masks (B, 1, H, W) of a batch.

    The choice depends on the sample and ``seed`` alone, so every model of one image size sees the same holes.

    Args:
        kind: of ``kinds.KINDS``.
        stored: gives the held-out keep masks, see ``open_stored``; called for the kinds in ``kinds.STORED``.
        shard_set, stream: what the loader of the batches is given.

    Raises:
        UserError: no folder or no mask in any range, or no objects to hide.
    """
    size = stream.image_size
    masks: Mapping[HoleRange, AnyKeepMasks]
    if kind in STORED:
        masks = stored()
    elif kind == "patch":
        masks = {
            range_: PatchMasks(size, device, patch_size=_patch_size(size), hole_fraction=(range_.low + range_.high) / 2)
            for range_ in _BINS
        }
    elif kind in ("box", PASTED):
        masks = {range_: BoxMasks(size, device, hole_fraction=(range_.low + range_.high) / 2) for range_ in _BINS}
    else:
        assert kind == "object", f"{kind}: an unknown kind, which a study refuses"
        masks = {OBJECT_RANGE: ObjectMasks(shard_set, size, device)}
    return {range_: _chooser(part, seed) for range_, part in masks.items()}


def _chooser(masks: AnyKeepMasks, seed: int) -> Callable[[Batch], Tensor]:
    return lambda batch: masks.keep_masks(batch, seed=seed, epoch=EPOCH)


def _patch_size(image_size: int) -> int:
    """The patch size that divides the image size and gives closest to ``_PATCHES_PER_SIDE`` patches per side."""
    divisors = [size for size in range(1, image_size + 1) if image_size % size == 0]
    return min(divisors, key=lambda size: abs(image_size / size - _PATCHES_PER_SIDE))
