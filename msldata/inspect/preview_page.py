"""A preview as one self-contained page: pictures inside the file, boxes that name their object under the pointer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from msldata.contract.keepmask import encode_level_png, encode_png
from msldata.inspect.tiles import Box, HeldMask, Label, Preview, Tile
from msldata.pages.html import data_address, picture, render

_LONGEST_SIDE = 640


@dataclass(frozen=True, kw_only=True)
class _Shown:
    """A tile as the template gets it; pictures are addresses, empty where there is none."""

    key: str
    photo: str
    width: int
    height: int
    boxes: list[Box]
    """Large ones first, so that the pointer reaches those inside them."""
    mask: str
    mask_key: str
    hole: str
    masked: str
    labels: tuple[Label, ...]


def draw_page(preview: Preview) -> str:
    """One HTML document without scripts and with nothing to load."""
    first = preview.tiles[0]
    layout = "masks" if first.image is None else "photos" if first.mask is None else "both"
    tiles = [_show(tile) for tile in preview.tiles]
    return render(
        "msldata.inspect/preview.html",
        title=preview.title,
        subtitle=preview.subtitle,
        layout=layout,
        tiles=tiles,
    )


def _show(tile: Tile) -> _Shown:
    masked = tile.masked_image()
    return _Shown(
        key=tile.key,
        photo="" if tile.image is None else picture(tile.image, longest_side=_LONGEST_SIDE),
        width=0 if tile.image is None else tile.image.width,
        height=0 if tile.image is None else tile.image.height,
        boxes=sorted(tile.boxes, key=lambda box: -box.width * box.height),
        mask="" if tile.mask is None else _mask(tile.mask),
        mask_key="" if tile.mask is None else tile.mask.key,
        hole="" if tile.mask is None else f"{tile.mask.hole_fraction:.1%}",
        masked="" if masked is None else picture(masked, longest_side=_LONGEST_SIDE),
        labels=tile.labels,
    )


def _mask(mask: HeldMask) -> str:
    binary_HW = mask.level_HW > 127
    is_grey = not np.array_equal(mask.level_HW, binary_HW * np.uint8(255))
    return data_address("image/png", encode_level_png(mask.level_HW) if is_grey else encode_png(binary_HW))
