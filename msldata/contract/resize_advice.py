"""What smaller photographs would save, where those of a dataset have many times the pixels that training sees."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import Image

from msldata.contract.format import decode_index
from msldata.contract.manifest import IMAGES, Manifest
from msldata.contract.pixels import decode, reduction_to
from msldata.storage import Storage

USUAL_SIZE = 448
"""Side of the squares that most recipes train on, in pixels."""
_ENOUGH = 1.5
"""Times the square's side: the smallest crop of training, 0.7 of the area and 3:4, still has more pixels than that."""
_STEP = 32
_MANY_TIMES = 4
"""Photographs of this many times the pixels of the resized ones are worth a word."""
_QUALITY = 90  # what builds store resized photographs with
_NUM_TRIED = 4


@dataclass(frozen=True, slots=True)
class ResizeAdvice:
    """What ``build-shards --resize shorter=N`` would do for a dataset."""

    width: int
    height: int
    """Of the photograph of median size, in pixels."""
    image_size: int
    shorter: int
    """The N that leaves a crop of training more pixels than its square has."""
    num_bytes: int
    """Of all photographs as they are."""
    share_bytes: float
    """What they would take then, by re-encoding a few."""
    share_seconds: float
    """How long decoding would take, to what it takes now."""

    def said(self) -> str:
        """A sentence for people."""
        times = self.width * self.height / (self.image_size**2)
        now, then = self.num_bytes / 1e9, self.num_bytes * self.share_bytes / 1e9
        return (
            f"photographs are large, {self.width} × {self.height} pixels: {times:.0f} times what training at "
            f"{self.image_size} pixels sees. Built with `--resize shorter={self.shorter}` they take {then:.2g} GB "
            f"instead of {now:.2g} GB, and decoding takes {100 * self.share_seconds:.0f} % of the time"
        )


def advise_resize(folder: Storage, manifest: Manifest, image_size: int = USUAL_SIZE) -> ResizeAdvice | None:
    """What smaller photographs would save; None where they are not many times larger than training needs.

    The first shard's index is read, and of large photographs a few are read and encoded anew. Whatever cannot be read
    is no matter of advice: None.
    """
    try:
        return _advise(folder, manifest, image_size)
    except (OSError, ValueError):
        return None


def _advise(folder: Storage, manifest: Manifest, image_size: int) -> ResizeAdvice | None:
    if not manifest.shards:
        return None
    shard = manifest.shards[0]
    names = ("width", "height", "offset", "length")
    rows = decode_index(IMAGES, folder.read(shard.index_name), folder.where(shard.index_name), names)
    width_N, height_N, offset_N, length_N = (rows[name].to_numpy().astype(np.int64) for name in names)
    middle = int(np.argsort(width_N * height_N, kind="stable")[len(width_N) // 2])
    width, height = int(width_N[middle]), int(height_N[middle])
    shorter = -(-int(_ENOUGH * image_size) // _STEP) * _STEP
    if min(width, height) < _MANY_TIMES**0.5 * shorter:
        return None
    tried = np.argsort(np.abs(width_N * height_N - width * height), kind="stable")[:_NUM_TRIED]
    photos = folder.read_ranges(shard.name, offset_N[tried].tolist(), length_N[tried].tolist())
    smaller = [_smaller(data, shorter) for data in photos]
    return ResizeAdvice(
        width=width,
        height=height,
        image_size=image_size,
        shorter=shorter,
        num_bytes=int(length_N.mean() * manifest.num_samples),
        share_bytes=sum(map(len, smaller)) / sum(map(len, photos)),
        share_seconds=_seconds(smaller, image_size) / _seconds(photos, image_size),
    )


def _smaller(data: bytes, shorter: int) -> bytes:
    image = Image.fromarray(decode(data))
    across, down = (round(side * shorter / min(image.size)) for side in image.size)
    pixels = np.asarray(image.resize((across, down), Image.Resampling.BOX))
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=_QUALITY, colorsubsampling="420")


def _seconds(images: list[bytes], image_size: int) -> float:
    """How long decoding them takes, as far reduced as the stream does it."""
    began = time.perf_counter()
    for data in images:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        decode(data, reduction_to(width, height, image_size))
    return time.perf_counter() - began
