"""Making images smaller at build time: what was asked for, and where each pixel and box goes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from msldata.errors import UserError
from msldata.records import ObjectRecord

if TYPE_CHECKING:
    from PIL import Image

DEFAULT_QUALITY = 90
_TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the pixels of a source image are in the stored one: scaled to a size, then turned upright.

    ``scaled_width`` and ``scaled_height`` are the size before turning; ``orientation`` is EXIF's, 1 (upright) to 8.
    """

    width: int
    height: int
    scaled_width: int
    scaled_height: int
    orientation: int = 1

    @property
    def is_identity(self) -> bool:
        return self.orientation == 1 and (self.width, self.height) == (self.scaled_width, self.scaled_height)

    def apply(self, image: Image.Image) -> Image.Image:
        """The image as it is stored."""
        from PIL import Image

        size = (self.scaled_width, self.scaled_height)
        if image.size != size:
            image = image.resize(size, Image.Resampling.LANCZOS)
        if self.orientation == 1:
            return image
        turn = Image.Transpose
        return image.transpose(
            {
                2: turn.FLIP_LEFT_RIGHT,
                3: turn.ROTATE_180,
                4: turn.FLIP_TOP_BOTTOM,
                5: turn.TRANSPOSE,
                6: turn.ROTATE_270,
                7: turn.TRANSVERSE,
                8: turn.ROTATE_90,
            }[self.orientation]
        )

    def move(self, item: ObjectRecord) -> ObjectRecord:
        """An object with its box and area in pixels of the stored image."""
        if self.is_identity:
            return item
        across, down = self.scaled_width / self.width, self.scaled_height / self.height
        left, top, width, height = (
            value * factor for value, factor in zip(item.box, (across, down, across, down), strict=True)
        )
        right, bottom = self.scaled_width - left - width, self.scaled_height - top - height
        # By where row 0 and column 0 of the stored pixels are seen, as EXIF defines its orientations.
        x, y = {
            1: (left, top),
            2: (right, top),
            3: (right, bottom),
            4: (left, bottom),
            5: (top, left),
            6: (bottom, left),
            7: (bottom, right),
            8: (top, right),
        }[self.orientation]
        if self.orientation in _TURNED:
            width, height = height, width
        return item._replace(box=(x, y, width, height), area=item.area * across * down)


@dataclass(frozen=True, slots=True)
class Resize:
    """Smaller images: ``shorter`` brings the shorter side to ``size`` pixels, ``fit`` the longer one."""

    side: Literal["shorter", "fit"]
    size: int
    quality: int = DEFAULT_QUALITY
    """Of the JPEGs that are written, 1 to 100."""

    def placement(self, width: int, height: int, orientation: int) -> Placement:
        """Where the pixels of an image of ``width`` × ``height`` go; it is never enlarged."""
        side = min(width, height) if self.side == "shorter" else max(width, height)
        if side <= self.size:
            return Placement(width, height, width, height, orientation)
        across, down = (max(1, round(length * self.size / side)) for length in (width, height))
        return Placement(width, height, across, down, orientation)

    def options(self) -> dict[str, Any]:
        """What a plan records of it."""
        return {"resize": f"{self.side}={self.size}", "resize_quality": self.quality}


def parse_resize(text: str | None, quality: int | None = None) -> Resize | None:
    """``shorter=448`` or ``fit=1024``, with the quality of the JPEGs; None for None.

    Raises:
        UserError: another text, a size of 0, a quality that is not 1 to 100, or a quality alone.
    """
    if text is None:
        if quality is not None:
            raise UserError("--quality belongs to --resize; without it images keep their own bytes")
        return None
    match = re.fullmatch(r"(shorter|fit)=([1-9][0-9]{0,4})", text)
    if match is None:
        raise UserError(f"--resize {text}: expected shorter=N or fit=N, in pixels, for example shorter=512")
    quality = DEFAULT_QUALITY if quality is None else quality
    if not 1 <= quality <= 100:
        raise UserError(f"--quality {quality}: expected 1 to 100")
    return Resize("shorter" if match[1] == "shorter" else "fit", int(match[2]), quality)
