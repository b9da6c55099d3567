"""KeepMasks: stored keep masks at image size, bit-packed on the device, handed out by key and epoch.

    bank = KeepMasks.open("shards/masks/high", image_size=448, device="cuda")
    keep_mask_B1HW = bank.keep_masks(batch, seed=0, epoch=3)
    keep_mask_B1HW = bank.of_keys(["000012", "000017"], seed=0, epoch=3)  # for your own data

A mask of 448×448 takes 25 kB, so 12,000 of them take 301 MB; a grey one takes eight times that. Legend: B samples, N
masks, S = H = W = image size.
"""

from __future__ import annotations

import os
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from msldata.contract.format import read_index
from msldata.contract.keepmask import decode_levels, decode_packed, pack_bits, resize_area, resize_packed
from msldata.contract.manifest import KEEP_MASKS, FormatError, Manifest, ShardInfo, read_manifest
from msldata.contract.maskgenerator import MIN_SIZE, generate_hole_mask
from msldata.errors import UserError
from msldata.storage import Location, Storage, one_or_many, open_storage
from msltrain.stream.keepmasks.choice import choose, hashes_of, numbers
from msltrain.stream.pixels.batch import Batch

_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)
_NUM_ONES = _BITS.sum(axis=1, dtype=np.uint8)
_COLUMNS = ("key", "offset", "length", "crc32")
NUM_GENERATED = 200
"""Masks that are drawn where none are stored; it takes a few seconds."""
_MASKS_PER_TASK, _TASKS_AHEAD = 64, 32
_SIDE = ", the side of the square images in pixels"
_MOVES = frozenset({"flip", "rotate", "shift"})


class KeepMasks:
    """Keep masks on a device.

    Args:
        stored: uint8 (N, S, ceil(S / 8)) as ``keepmask.pack_bits`` makes them, or with ``grey`` (N, S, S), 255 =
            visible; N at least 1.
        image_size: S in pixels.
        device: where the masks live and are handed out.
        grey: as above.
        augment: any of ``flip``, ``rotate`` and ``shift``; see ``KeepMaskConfig``. As published: none.

    Raises:
        UserError: any other word in ``augment``.

    Attributes:
        hole_fraction_N: float64, share of hidden pixels of each (binarised) mask at image size: the paper's p.

    Example:
        keep_masks = msltrain.KeepMasks.open("shards/masks/high", image_size=224)
        keep_mask_B1HW = keep_masks.of_keys(["street.jpg", "harbour.jpg"], epoch=3)
        print(len(keep_masks), keep_mask_B1HW.shape, keep_mask_B1HW.mean())
    """

    def __init__(
        self,
        stored: np.ndarray,
        image_size: int,
        device: str | torch.device,
        *,
        grey: bool = False,
        augment: Sequence[str] = (),
    ):
        self.image_size = image_size
        self.device = torch.device(device)
        self._grey, self._augment = grey, frozenset((augment,) if isinstance(augment, str) else augment)
        if unknown := sorted(self._augment - _MOVES):  # they would move nothing
            raise UserError(f"augment is {', '.join(unknown)}; it may be any of {', '.join(sorted(_MOVES))}")
        # Padding bits are zero, so counting ones needs no unpacking. In parts, which saves as much memory again.
        visible = [
            int(np.count_nonzero(mask > 127)) if grey else int(_NUM_ONES[mask].sum(dtype=np.int64)) for mask in stored
        ]
        self.hole_fraction_N = 1.0 - np.array(visible) / image_size**2
        self._lightest_first_N = np.argsort(self.hole_fraction_N, kind="stable")
        self._stored = torch.from_numpy(stored).to(self.device)
        self._bit_256_8 = torch.from_numpy(_BITS).to(self.device, torch.float32)

    def __len__(self) -> int:
        return len(self.hole_fraction_N)

    @classmethod
    def open(
        cls,
        locations: Location | Sequence[Location],
        image_size: int,
        device: str | torch.device = "cpu",
        *,
        limit: int | None = None,
        augment: Sequence[str] = (),
    ) -> KeepMasks:
        """Load keep masks, resized to the image size: by nearest pixel, grey ones by the mean of an area.

        Args:
            locations: a keep-mask dataset folder, local or remote, or several, whose masks are joined. A folder with
                grey masks makes the whole bank grey.
            limit: at most this many masks of each location, the first ones in stored order.
            augment: see the class.

        Raises:
            UserError: no location, or one without any masks, for training with fewer sets would go unnoticed; a size or
                limit that is no number from 1 on.
            FormatError: a location holds something else, or damaged masks.
            StorageError, FileNotFoundError: it cannot be read.
        """
        named = one_or_many(locations)
        for name, number in (("image_size", image_size), ("limit", 1 if limit is None else limit)):
            if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < 1:
                raise UserError(
                    f"{name} is {number!r}; it must be a whole number from 1 on" + _SIDE * (name != "limit")
                )
        if not named:
            raise UserError("no keep masks were named; give at least one folder of them, such as shards/masks/high")
        places = [_Place.open(location, limit) for location in named]
        grey = any(place.grey for place in places)
        num_masks = sum(place.num_masks for place in places)
        # Filled in place: a list of masks and their stack would need the memory twice.
        stored = np.empty((num_masks, image_size, image_size if grey else -(-image_size // 8)), dtype=np.uint8)

        def fill(first: int, masks: Sequence[tuple[bytes, str]]) -> None:
            for number, (png, where) in enumerate(masks, first):
                if grey:
                    stored[number] = resize_area(decode_levels(png, where), image_size, image_size)
                else:
                    stored[number] = resize_packed(*decode_packed(png, where), image_size, image_size)

        with ThreadPoolExecutor(os.cpu_count()) as workers:
            tasks: deque[Future[None]] = deque()
            first = 0
            for masks in (masks for place in places for masks in place.masks()):
                tasks.append(workers.submit(fill, first, masks))
                first += len(masks)
                if len(tasks) > _TASKS_AHEAD:
                    tasks.popleft().result()
            for task in tasks:
                task.result()
        return cls(stored, image_size, device, grey=grey, augment=augment)

    @classmethod
    def generate(
        cls, image_size: int, device: str | torch.device = "cpu", *, seed: int = 0, augment: Sequence[str] = ()
    ) -> KeepMasks:
        """Irregular masks that are drawn here, always the same: of 1 to 75 % holes, each share as often as any other.

        Args:
            seed: other masks for every number; training has those of 0.
            augment: see the class.

        Raises:
            UserError: images so small that no mask can be drawn.
        """
        if image_size < MIN_SIZE:
            raise UserError(
                f"stream.image_size is {image_size}; masks are drawn from {MIN_SIZE} pixels on; set keep_mask.kind=box"
            )
        keep_NSS = np.stack([1 - generate_hole_mask(seed, index, image_size) for index in range(NUM_GENERATED)])
        return cls(pack_bits(keep_NSS), image_size, device, augment=augment)

    def within(self, low: float, high: float) -> KeepMasks | None:
        """The masks whose hole fraction lies in (low, high], as a bank of their own; None where there are none."""
        which_N = np.flatnonzero((self.hole_fraction_N > low) & (self.hole_fraction_N <= high))
        if not len(which_N):
            return None
        stored = self._stored.cpu().numpy()[which_N]
        return KeepMasks(stored, self.image_size, self.device, grey=self._grey, augment=tuple(self._augment))

    def chosen(self, key_hash_B: np.ndarray, *, seed: int, epoch: int, lightest: float = 1.0) -> np.ndarray:
        """Number of the mask that each sample meets, int64 (B,); see ``choose``.

        Args:
            lightest: take from this share of the masks, those with the smallest holes; at least one.
        """
        if lightest >= 1:
            return choose(key_hash_B, len(self), seed=seed, epoch=epoch)
        number_B = choose(key_hash_B, max(1, round(lightest * len(self))), seed=seed, epoch=epoch)
        return self._lightest_first_N[number_B]

    def keep_masks(self, batch: Batch, *, seed: int, epoch: int) -> torch.Tensor:
        """The keep mask of each sample of a batch; see ``of_keys``."""
        return self.of_hashes(batch.key_hash_B, seed=seed, epoch=epoch)

    def of_keys(self, keys: Iterable[str], *, epoch: int, seed: int = 0) -> torch.Tensor:
        """The keep mask of each sample, for images from elsewhere: the same masks as training on shards would use.

        Evaluation with fixed masks passes one epoch, 0, every time.

        Args:
            keys: one text for each sample, such as the name of its file.
            epoch, seed: with the key, they decide which mask it is.

        Returns:
            keep_mask_B1HW: float32 on the device; 1 = visible, 0 = hole.

        Raises:
            UserError: a key that is not text.
        """
        return self.of_hashes(hashes_of(keys), seed=seed, epoch=epoch)

    def of_hashes(self, key_hash_B: np.ndarray, *, seed: int, epoch: int, lightest: float = 1.0) -> torch.Tensor:
        """As ``of_keys``.

        Args:
            key_hash_B: uint64, ``Batch.key_hash_B`` or from ``hashes_of``.
            lightest: see ``chosen``.

        Returns:
            keep_mask_B1HW: float32 on the device; 1 = visible, 0 = hole.

        Deviation: the official code draws from Python's global generator, in whatever order the loader's workers run.
        """
        chosen_B = torch.from_numpy(self.chosen(key_hash_B, seed=seed, epoch=epoch, lightest=lightest))
        stored_BSN = self._stored[chosen_B.to(self.device, non_blocking=True)]
        if self._grey:
            keep_mask_BSS = stored_BSN.float() / 255
        else:
            bit_BSN = torch.nn.functional.embedding(stored_BSN.int(), self._bit_256_8).flatten(2)
            keep_mask_BSS = bit_BSN[:, :, : self.image_size]
        if self._augment:
            # The choice is the first of these numbers, so augmentation does not change it.
            lot_B4 = numbers(key_hash_B, 5, seed=seed, epoch=epoch)[:, 1:]
            keep_mask_BSS = self._moved(keep_mask_BSS, lot_B4)
        return keep_mask_BSS[:, None]

    def _moved(self, mask_BSS: torch.Tensor, lot_B4: np.ndarray) -> torch.Tensor:
        """Masks mirrored, turned and shifted on the device: each pixel is fetched from its old place."""
        size = self.image_size
        flip_B, turns_B, down_B, across_B = (lot_B4 * (2, 4, size, size)).astype(np.int64).T
        flip_B = flip_B * ("flip" in self._augment)
        turns_B = turns_B * ("rotate" in self._augment)
        shift_2B = np.stack([down_B, across_B]) * ("shift" in self._augment)
        # A turn by 90° is a transposition and a flip; by 180° it is two flips.
        upside_down_B = (turns_B == 1) | (turns_B == 2)
        mirrored_B = (turns_B >= 2) != (flip_B == 1)
        turned_B11 = torch.from_numpy(turns_B % 2 == 1).to(self.device)[:, None, None]
        mask_BSS = torch.where(turned_B11, mask_BSS.transpose(1, 2), mask_BSS)
        reversed_2B1 = torch.from_numpy(np.stack([upside_down_B, mirrored_B])).to(self.device)[:, :, None]
        place_2BS = torch.arange(size, device=self.device) - torch.from_numpy(shift_2B).to(self.device)[:, :, None]
        place_2BS = place_2BS.remainder(size)
        row_BS, column_BS = torch.where(reversed_2B1, size - 1 - place_2BS, place_2BS)
        sample_B11 = torch.arange(len(mask_BSS), device=self.device)[:, None, None]
        return mask_BSS[sample_B11, row_BS[:, :, None], column_BS[:, None, :]]


@dataclass(frozen=True, slots=True)
class _Place:
    """A keep-mask dataset folder, and how many of its first masks are wanted."""

    storage: Storage
    manifest: Manifest
    num_masks: int

    @property
    def grey(self) -> bool:
        return self.manifest.options.get("binarize") is False

    @classmethod
    def open(cls, location: Location, limit: int | None) -> _Place:
        storage = open_storage(location)
        manifest = read_manifest(storage)
        if manifest.kind != KEEP_MASKS:
            raise FormatError(
                f"{storage.url}: holds {manifest.kind}, not keep masks; build them with `msl build-masks`"
            )
        if not manifest.num_samples:
            raise UserError(
                f"{storage.url}: this subset was built without any mask, because its source had none of this kind "
                f"({manifest.counts.get('masks_read', 0):,} masks were read); leave it out, or build masks from "
                "another source or with another --threshold with `msl build-masks`"
            )
        return cls(storage, manifest, min(manifest.num_samples, manifest.num_samples if limit is None else limit))

    def masks(self) -> Iterator[list[tuple[bytes, str]]]:
        """The PNG bytes of its first masks, each with its place for messages; a few at a time."""
        left = self.num_masks
        for shard in self.manifest.shards:
            if left <= 0:
                return
            index = read_index(self.storage, self.manifest, shard, _COLUMNS)
            rows = index.slice(0, left).to_pylist()
            tar = self.storage.read(shard.name)
            for start in range(0, len(rows), _MASKS_PER_TASK):
                yield [self._mask(shard, tar, row) for row in rows[start : start + _MASKS_PER_TASK]]
            left -= len(rows)

    def _mask(self, shard: ShardInfo, tar: bytes, row: Mapping[str, Any]) -> tuple[bytes, str]:
        where = f"{self.storage.where(shard.name)}, keep mask '{row['key']}' at byte {row['offset']}"
        png = tar[row["offset"] : row["offset"] + row["length"]]
        if zlib.crc32(png) != row["crc32"]:
            raise FormatError(f"{where}: the bytes do not match their CRC-32; copy or build the masks again")
        return png, where
