"""What shows in the holes of a study: nothing, a filling made from the image itself, or pixels of other photographs.

B batch, C channels, S = H = W image size, K classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from msldata.errors import UserError
from msltrain.robustness.kinds import FILLED, PASTED
from msltrain.stream.config import Fill, StreamConfig
from msltrain.stream.keepmasks.donors import Donors
from msltrain.stream.keepmasks.fill import fill_holes, make_filling
from msltrain.stream.pixels.batch import Batch
from msltrain.stream.samples.shardset import ShardSet

EPOCH = 0
"""What training draws anew in every epoch, a study always takes from this epoch."""


class Filling:
    """What shows in the holes of one kind.

    Args:
        kind: of ``kinds.KINDS``.
        shard_set: the images of the study, which the pixels of other photographs come from.
        stream: what the loader of the batches is given.
        device: of the batches.
        seed: with a sample's key it decides noise and donor.

    Raises:
        UserError: no object to paste.
    """

    def __init__(self, kind: str, shard_set: ShardSet, stream: StreamConfig, device: torch.device, seed: int):
        self._fill: Fill = FILLED.get(kind, "zero")
        self._seed, self._is_pasted = seed, kind == PASTED
        self._donors: Donors | None = None
        if self._is_pasted:
            try:
                self._donors = Donors("object", shard_set, stream, device)
            except UserError:
                raise UserError(
                    f"{shard_set.name}: no annotated object is large enough to paste; leave out --kind {PASTED}"
                ) from None
        elif self._fill == "image":
            self._donors = Donors("image", shard_set, stream, device)

    @property
    def shows_classes(self) -> bool:
        """Whether what shows in the holes has classes of its own."""
        return self._donors is not None

    def hide(self, batch: Batch, keep_mask_B1HW: Tensor) -> tuple[Tensor, Tensor | None]:
        """The images as a model sees them, and the classes that show in their holes, bool (B, K), if any can."""
        image_BCHW, keys = batch.image_BCHW, batch.key_hash_B
        if self._donors is None:
            filling_BCHW = make_filling(self._fill, image_BCHW, keys, seed=self._seed, epoch=EPOCH)
            return fill_holes(image_BCHW, keep_mask_B1HW, filling_BCHW), None
        filling_BCHW, shown_BK = self._donors.filling(keys, seed=self._seed, epoch=EPOCH)
        if self._is_pasted:
            filling_BCHW = _fit_into_boxes(filling_BCHW, keep_mask_B1HW)
        has_hole_B1 = (keep_mask_B1HW.amin(dim=(1, 2, 3)) < 1)[:, None]
        return fill_holes(image_BCHW, keep_mask_B1HW, filling_BCHW), shown_BK & has_hole_B1


def _fit_into_boxes(filling_BCHW: Tensor, keep_mask_B1HW: Tensor) -> Tensor:
    """Each filling squeezed into the box around its hole, so that the whole cut-out is seen there."""
    fitted_BCHW = torch.zeros_like(filling_BCHW)
    hole_BHW = keep_mask_B1HW[:, 0] < 1
    for place, hole_HW in enumerate(hole_BHW):
        rows, columns = hole_HW.any(dim=1).nonzero(), hole_HW.any(dim=0).nonzero()
        if len(rows):
            top, bottom = int(rows[0]), int(rows[-1]) + 1
            left, right = int(columns[0]), int(columns[-1]) + 1
            fitted_BCHW[place, :, top:bottom, left:right] = F.interpolate(
                filling_BCHW[place : place + 1],
                size=(bottom - top, right - left),
                mode="bilinear",
                align_corners=False,
                antialias=True,
            )[0]
    return fitted_BCHW
