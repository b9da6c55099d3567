"""Shards as a map-style dataset of torch, for loops with a DataLoader and transforms of their own."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from msldata.contract.pixels import decode
from msldata.storage import Location
from msltrain.stream.samples.shardset import ShardSet, open_shard_set


class Sample(NamedTuple):
    """One sample; a DataLoader makes batches of the same fields."""

    image: Any
    """What the transform makes of the photograph; without one, a PIL image."""
    target_K: Tensor
    """float32 multi-hot; ignored classes are 0."""
    ignore_K: Tensor
    """bool"""
    key: str


class ShardDataset(Dataset):
    """Samples by their number in the stored order, each read by itself; checked against its CRC-32.

    It goes to the workers of a DataLoader as it is. `Loader` is faster: it needs no workers, and reads in order.

    Args:
        shards: the place of a dataset, or a part of one that `hold_out` gave.
        transform: called with each photograph, a PIL image in RGB, upright.

    Raises:
        FormatError: no finished dataset of images there.

    Example:
        dataset = msltrain.ShardDataset("shards/voc2007/trainval", lambda image: np.asarray(image.resize((32, 32))))
        image, target_K, ignore_K, key = dataset[7]
        batches = torch.utils.data.DataLoader(dataset, batch_size=8, shuffle=True)
        print(len(dataset), key, next(iter(batches)).image.shape)
    """

    def __init__(self, shards: Location | ShardSet, transform: Callable[[Image.Image], Any] | None = None):
        self.shards = shards if isinstance(shards, ShardSet) else open_shard_set(shards)
        self.classes, self.transform = self.shards.classes, transform
        self._end_S = np.cumsum(self.shards.counts)

    def __len__(self) -> int:
        return self.shards.num_samples

    def __getitem__(self, index: int) -> Sample:
        """Raises SampleError: it is damaged. IndexError: there is none of this number."""
        number = index + len(self) if index < 0 else index
        if not 0 <= number < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        self.shards.reserve(len(self))  # a shuffled epoch asks for all shards in turn
        shard = int(np.searchsorted(self._end_S, number, side="right"))
        row = number - int(self._end_S[shard] - self.shards.counts[shard])
        _, rows = self.shards.rows(np.array([shard]), np.array([row]))
        key, offset = str(rows.key_N[0]), int(rows.offset_N[0])
        name = self.shards.manifest.shards[shard].name
        [data] = self.shards.storage.read_ranges(name, [offset], [int(rows.length_N[0])])
        try:
            if zlib.crc32(data) != int(rows.crc32_N[0]):
                raise ValueError("the bytes do not match their CRC-32")
            photograph = Image.fromarray(decode(data))
        except ValueError as error:
            raise self.shards.error(shard, key, offset, str(error)) from None
        image = photograph if self.transform is None else self.transform(photograph)
        return Sample(image, torch.from_numpy(rows.target_NK[0]).float(), torch.from_numpy(rows.ignore_NK[0]), key)
