"""MaskBank: keep masks at image size, bit-packed on the device, and which one a sample meets.

    bank = MaskBank.open(["shards/masks/high"], image_size=448, device="cuda")
    keep_mask_B1HW = bank.keep_masks(batch.key_hash_B, seed=0, epoch=3)

A mask of 448×448 takes 25 kB, so 12,000 of them take 301 MB. Legend: B samples, N masks, H = W = image size.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from msldata.errors import UserError
from msldata.format import KEEP_MASKS, FormatError, decode_index, read_manifest
from msldata.keepmask import decode_png, pack_bits, resize_nearest
from msldata.storage import Storage, open_storage
from msltrain.stream.random import KEEP_MASK, uniform

_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)
_NUM_ONES = _BITS.sum(axis=1, dtype=np.uint8)
_COLUMNS = ("key", "offset", "length", "crc32")


class MaskBank:
    """Keep masks on a device.

    Args:
        packed: uint8 (N, H, ceil(W / 8)) as ``keepmask.pack_bits`` makes them; N at least 1.
        image_size: H = W in pixels.
        device: where the masks live and are handed out.

    Attributes:
        hole_fraction_N: float64, share of zeros of each mask at image size: the paper's p.
    """

    def __init__(self, packed: np.ndarray, image_size: int, device: str | torch.device):
        self.image_size = image_size
        self.device = torch.device(device)
        # Padding bits are zero, so counting ones needs no unpacking.
        visible_N = _NUM_ONES[packed].sum(axis=(1, 2), dtype=np.int64)
        self.hole_fraction_N = 1.0 - visible_N / image_size**2
        self._packed_NHW8 = torch.from_numpy(packed).to(self.device)
        self._bit_256_8 = torch.from_numpy(_BITS).to(self.device, torch.float32)

    def __len__(self) -> int:
        return len(self.hole_fraction_N)

    @classmethod
    def open(
        cls,
        locations: Sequence[str | Path],
        image_size: int,
        device: str | torch.device,
        *,
        limit: int | None = None,
    ) -> MaskBank:
        """Load keep masks, resized to the image size by nearest neighbour.

        Args:
            locations: keep-mask dataset folders, local or remote; their masks follow each other.
            limit: at most this many masks of each location, the first ones in stored order.

        Raises:
            UserError: no location, or one without any mask in it: training with fewer sets than asked would go unseen.
            FormatError: a location holds something else, or damaged masks.
            StorageError, FileNotFoundError: it cannot be read.
        """
        with ThreadPoolExecutor(os.cpu_count()) as workers:
            packed = [
                mask
                for location in locations
                for mask in workers.map(
                    lambda item: pack_bits(resize_nearest(decode_png(*item), image_size, image_size)),
                    _stored_masks(open_storage(location), limit),
                )
            ]
        if not packed:
            raise UserError("no keep masks were named; give at least one folder of them, such as shards/masks/high")
        return cls(np.stack(packed), image_size, device)

    def within(self, low: float, high: float) -> MaskBank | None:
        """The masks whose hole fraction lies in (low, high], as a bank of their own; None where there are none."""
        which_N = np.flatnonzero((self.hole_fraction_N > low) & (self.hole_fraction_N <= high))
        return (
            MaskBank(self._packed_NHW8.cpu().numpy()[which_N], self.image_size, self.device) if len(which_N) else None
        )

    def chosen(self, key_hash_B: np.ndarray, *, seed: int, epoch: int) -> np.ndarray:
        """Number of the mask that each sample meets, int64 (B,): uniform, and decided by (seed, epoch, key) alone."""
        return (uniform(key_hash_B, seed, epoch, KEEP_MASK, 1)[:, 0] * len(self)).astype(np.int64)

    def keep_masks(self, key_hash_B: np.ndarray, *, seed: int, epoch: int) -> torch.Tensor:
        """The keep mask of each sample.

        Masks are not augmented, as published. Evaluation with fixed masks passes one epoch, 0, every time.

        Args:
            key_hash_B: uint64 key hashes, ``Batch.key_hash_B``.

        Returns:
            keep_mask_B1HW: float32 on the device; 1 = visible, 0 = hole.

        Deviation: the official code draws from Python's global generator, in the order the loader's workers happen on.
        """
        chosen_B = torch.from_numpy(self.chosen(key_hash_B, seed=seed, epoch=epoch))
        byte_BHW8 = self._packed_NHW8[chosen_B.to(self.device, non_blocking=True)]
        bit_BHW = torch.nn.functional.embedding(byte_BHW8.int(), self._bit_256_8).flatten(2)
        return bit_BHW[:, None, :, : self.image_size]


def _stored_masks(storage: Storage, limit: int | None) -> Iterable[tuple[bytes, str]]:
    """The PNG bytes of a location's first masks, each with its place for messages."""
    manifest = read_manifest(storage)
    if manifest.kind != KEEP_MASKS:
        raise FormatError(f"{storage.url}: holds {manifest.kind}, not keep masks; build them with `msl build-masks`")
    if not manifest.num_samples:
        raise UserError(
            f"{storage.url}: this subset was built without any mask, because its source had none of this kind "
            f"({manifest.counts.get('masks_read', 0):,} masks were read); leave it out, or build masks from another "
            "source or with another --threshold with `msl build-masks`"
        )
    wanted = manifest.num_samples if limit is None else limit
    for shard in manifest.shards:
        if wanted <= 0:
            return
        index = decode_index(KEEP_MASKS, storage.read(shard.index_name), storage.where(shard.index_name), _COLUMNS)
        tar = storage.read(shard.name)
        for row in index.slice(0, wanted).to_pylist():
            where = f"{storage.where(shard.name)}, keep mask '{row['key']}' at byte {row['offset']}"
            png = tar[row["offset"] : row["offset"] + row["length"]]
            if zlib.crc32(png) != row["crc32"]:
                raise FormatError(f"{where}: the bytes do not match their CRC-32; copy or build the masks again")
            yield png, where
        wanted -= len(index)
