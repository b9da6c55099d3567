"""Donors: training images, or the objects in them, whose pixels fill the holes of other images.

A fixed choice of training images is read once and kept on the device. So what fills a hole depends on (seed, epoch,
key) alone, not on which images a batch or a process happens to hold. Legend: B samples, D donors, S = H = W pixels,
K classes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from msldata.errors import UserError
from msltrain.stream.config import StreamConfig
from msltrain.stream.keepmasks.objects import Objects
from msltrain.stream.loader import Loader
from msltrain.stream.order.random import DONOR, uniform
from msltrain.stream.samples.holdout import hold_out
from msltrain.stream.samples.shardset import ShardSet

NUM_IMAGES = 256
"""About this many images are kept; at 448 pixels they take 154 MB."""
_BATCH = 16
_SMALLEST = 1 / 6
"""An object fills holes when its box is at least this share of the image on both sides: smaller ones turn to mush."""
_SEED = 1
"""Not the seed that sets validation samples aside: those are never donors."""


class Donors:
    """Pixels of other photographs.

    Args:
        kind: ``image``: whole images, squashed to the square. ``object``: boxes of annotated objects, squashed in the
        same way.
        shards: the training set.
        stream: what its loader was given.
        device: where the pixels are kept.

    Raises:
        UserError: no object is large enough.
        SampleError, StorageError, FormatError: the images cannot be read.
    """

    def __init__(
        self, kind: Literal["image", "object"], shards: ShardSet, stream: StreamConfig, device: str | torch.device
    ):
        device = torch.device(device)
        some = shards
        if shards.num_samples > NUM_IMAGES:
            some = hold_out(shards, NUM_IMAGES / shards.num_samples, seed=_SEED)[1]
        reading = replace(
            stream, batch_size=_BATCH, decode="host", resize="host", ram_cache_gb=0, on_sample_error="skip"
        )
        pixels, shown, boxes, box_donors, keys = [], [], [], [], []
        objects = Objects(shards) if kind == "object" else None
        done = 0
        with Loader(some, reading, device="cpu", rank=0, world_size=1, training=False) as loader:
            for batch in loader.host_batches():
                assert isinstance(batch.pixels, Tensor)
                pixels.append(batch.pixels.clone())
                # A class that is ignored in the donor (VOC: its objects there are difficult) shows as well.
                shown_BK = batch.target_BK.bool() | batch.ignore_BK
                keys.append(batch.key_hash_B)
                if objects is not None:
                    plain = replace(batch, flip_B=np.zeros(len(batch), bool))  # type: ignore[arg-type]
                    sample_P, object_P = objects.of(plain)  # type: ignore[arg-type]
                    box_P4 = objects.boxes(plain, sample_P, object_P, stream.image_size)  # type: ignore[arg-type]
                    large_P = (box_P4[:, 2:] - box_P4[:, :2]).min(axis=1) >= _SMALLEST * stream.image_size
                    large_P &= ~objects.crowd_M[object_P]
                    boxes.append(box_P4[large_P].astype(np.int64))
                    box_donors.append(sample_P[large_P] + done)
                    # With an object comes whatever its box shows as well: who sits on a sofa, a sofa behind a person.
                    is_class_PK = objects.class_M[object_P][:, None] == np.arange(shown_BK.shape[1])
                    shown_BK = torch.from_numpy(objects.meet(sample_P, object_P)[large_P] @ is_class_PK)
                shown.append(shown_BK)
                done += len(batch)
        self._pixel_DHWC = torch.cat(pixels).to(device)
        self._shown_DK = torch.cat(shown).to(device)  # of objects: in the order of the boxes
        scale = torch.tensor([stream.mean, stream.std], dtype=torch.float32, device=device)
        self._mean_C11, self._std_C11 = scale[0][:, None, None], scale[1][:, None, None]
        self._owner_D = np.concatenate(keys)
        self._boxes: list[tuple[int, tuple[int, ...]]] | None = None
        if kind == "object":
            self._boxes = [
                (int(donor), tuple(box.tolist()))
                for donor, box in zip(np.concatenate(box_donors), np.concatenate(boxes), strict=True)
            ]
            self._owner_D = self._owner_D[[donor for donor, _ in self._boxes]]
            if not self._boxes:
                raise UserError(
                    f"{shards.name}: no annotated object is large enough to fill holes with (keep_mask.fill=object); "
                    "set keep_mask.fill to image"
                )

    def __len__(self) -> int:
        return len(self._pixel_DHWC) if self._boxes is None else len(self._boxes)

    def filling(self, key_hash_B: np.ndarray, *, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
        """What fills the holes of each sample, and the classes it shows. It is never the sample itself.

        Args:
            key_hash_B: uint64; with seed and epoch it decides the donor and whether it is mirrored.

        Returns:
            filling_BCHW: float32, normalised like the batch.
            shown_BK: bool.
        """
        donor_B, flip_B = (uniform(key_hash_B, seed, epoch, DONOR, 2) * (len(self), 2)).astype(np.int64).T
        for _ in range(len(self)):
            if not (own_B := self._owner_D[donor_B] == key_hash_B).any():
                break
            donor_B = np.where(own_B, (donor_B + 1) % len(self), donor_B)
        chosen_B = torch.from_numpy(np.ascontiguousarray(donor_B)).to(self._pixel_DHWC.device)
        shown_BK = self._shown_DK[chosen_B]
        if self._boxes is None:
            pixel_BCHW = self._pixel_DHWC[chosen_B].permute(0, 3, 1, 2).float()
        else:
            pixel_BCHW = torch.stack([self._cut_out(*self._boxes[number]) for number in donor_B])
        flip_B111 = torch.from_numpy(flip_B == 1).to(pixel_BCHW.device)[:, None, None, None]
        pixel_BCHW = torch.where(flip_B111, pixel_BCHW.flip(3), pixel_BCHW)
        return (pixel_BCHW / 255 - self._mean_C11) / self._std_C11, shown_BK

    def _cut_out(self, donor: int, box: tuple[int, ...]) -> Tensor:
        top, left, bottom, right = box
        part_1CHW = self._pixel_DHWC[donor, top:bottom, left:right].permute(2, 0, 1)[None].float()
        side = self._pixel_DHWC.shape[1]
        return F.interpolate(part_1CHW, size=(side, side), mode="bilinear", align_corners=False)[0]
