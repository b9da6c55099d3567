"""What a preview shows: one tile a sample, with its labels, boxes and keep mask."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from msldata.contract import keepmask


@dataclass(frozen=True, slots=True)
class Label:
    """A class that is positive in an image, or ignored in it."""

    name: str
    colour: str
    ignored: bool


@dataclass(frozen=True, slots=True)
class Box:
    """One object: its class and where it is, in pixels of the image."""

    name: str
    colour: str
    left: float
    top: float
    width: float
    height: float
    faint: bool
    """Difficult, or a crowd: it does not count like the others."""


@dataclass(frozen=True, slots=True)
class HeldMask:
    """A keep mask: key, pixels (uint8 HW, 0 = hole … 255 = visible) and hole fraction."""

    key: str
    level_HW: np.ndarray
    hole_fraction: float


@dataclass(frozen=True, slots=True)
class Tile:
    """One sample to be shown; either the image or the keep mask may be missing."""

    key: str
    image: Image.Image | None = None
    labels: tuple[Label, ...] = ()
    boxes: tuple[Box, ...] = ()
    mask: HeldMask | None = None

    def masked_image(self) -> Image.Image | None:
        """The image with black holes, which is what a network without mean and std normalisation sees."""
        if self.image is None or self.mask is None:
            return None
        level_HW = keepmask.resize_nearest(self.mask.level_HW, self.image.height, self.image.width)
        return Image.fromarray((np.asarray(self.image) * (level_HW[..., None] / 255)).round().astype(np.uint8))


@dataclass(frozen=True, slots=True)
class Preview:
    """What a sheet or a page shows."""

    title: str
    subtitle: str
    tiles: tuple[Tile, ...]
