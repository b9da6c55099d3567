"""One image on its way into a shard: checked cheaply, its bytes kept whenever every JPEG decoder can read them.

What is stored is upright: a JPEG that its EXIF orientation would turn is turned here and its boxes with it, for most
readers of shards know nothing of EXIF. With a ``Resize`` it is made smaller, too.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import simplejpeg

from msldata.contract.pixels import (
    JPEG_START,
    SIDEWAYS,
    JpegHeader,
    check_whole,
    decode_jpeg,
    jpeg_header,
    opened,
    reduction_to,
)
from msldata.contract.records import ObjectRecord
from msldata.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

TRANSCODE_QUALITY = 95
DEFAULT_QUALITY = 90
_JPEG_END = b"\xff\xd9"
_TAIL_BYTES = 64
_MARGIN = 5 / 3
"""LANCZOS keeps more detail than the stream's filter, so it gets more pixels to work with. Encoding at quality 90 then
changes about three times what reducing did."""


class PreparedImage(NamedTuple):
    """JPEG bytes with their size in pixels; ``transcoded`` when they are not the source's own."""

    data: bytes
    width: int
    height: int
    transcoded: bool
    placement: Placement | None = None
    """Where the source's pixels are now, so that boxes can move with them; None: where they were."""


def prepare_image(
    data: bytes,
    resize: Resize | None = None,
    crop: tuple[float, float, float, float] | None = None,
    *,
    decode: bool = False,
) -> PreparedImage:
    """Check an image file and make it an upright JPEG that is grey or three-channel.

    A JPEG that is upright keeps its bytes: its header is parsed and its end is checked. Everything else (PNG, WebP,
    CMYK JPEG, one turned by its EXIF …) becomes an RGB JPEG of quality 95; ``contract.pixels`` decides what its pixels
    are.

    With ``resize`` a JPEG keeps its bytes only when it is small enough, too. All others are decoded (a large photograph
    as far reduced as `contract.pixels.reductions` allows), made smaller with Pillow's LANCZOS filter, and become RGB
    JPEGs of the requested quality. Nothing is ever enlarged.

    With ``crop`` (x, y, width, height, in the file's own frame) only that part of the image is taken, as far as it lies
    inside.

    Args:
        decode: decode every image, which alone can tell that pixels are missing before an end that is there; else
            this is done only where the end-of-image marker is not where it belongs.

    Raises:
        ValueError: why this is not an image that can be used: empty, another file type, truncated, damaged, too large.
    """
    if not data:
        raise ValueError("the file is empty")
    if resize is None and crop is None and data.startswith(JPEG_START):
        header = check_jpeg(data, decode=decode)
        if header is not None and header.orientation == 1:
            return PreparedImage(data, header.width, header.height, transcoded=False)
    return _redrawn(data, resize, crop, decode)


def check_jpeg(data: bytes, *, decode: bool = False) -> JpegHeader | None:
    """The header of a JPEG that can keep its bytes, or None when only a general decoder might read it.

    Raises:
        ValueError: truncated.
    """
    try:
        header = jpeg_header(data)
    except ValueError:
        # Damaged, too large, or sampled in a way that only a general decoder reads: Pillow knows which.
        return None
    if header.colour_space == "CMYK":
        return None
    if decode:
        check_whole(data)
    elif data.find(_JPEG_END, max(0, len(data) - _TAIL_BYTES)) < 0:
        _decode_fully(data)
    return header


def _decode_fully(data: bytes) -> None:
    """Bytes may follow the end of an image, so only a decoder can tell a long tail from a missing one."""
    try:
        simplejpeg.decode_jpeg(data, strict=True)
    except ValueError as error:
        raise ValueError(f"truncated JPEG: {str(error).strip().rstrip('.')}") from None


def _redrawn(
    data: bytes, resize: Resize | None, crop: tuple[float, float, float, float] | None, decode: bool
) -> PreparedImage:
    if resize is not None and crop is None and (reduced := _reduced(data, resize)) is not None:
        return reduced
    if data.startswith(JPEG_START) and decode:
        check_whole(data)
    with opened(data) as photo:
        size = photo.image.size
        box = None if crop is None else _inside(crop, *size)
        if box is not None:
            size = box[2] - box[0], box[3] - box[1]
        placement = (
            Placement(*size, *size, photo.orientation) if resize is None else resize.placement(*size, photo.orientation)
        )
        if crop is None and placement.is_identity and data.startswith(JPEG_START):
            kept = check_jpeg(data)
            if kept is not None:
                return PreparedImage(data, kept.width, kept.height, transcoded=False)
        pixels = photo.rgb() if box is None else photo.rgb().crop(box)
        pixels = placement.apply(pixels)
    quality = TRANSCODE_QUALITY if resize is None else resize.quality
    return PreparedImage(_encoded(pixels, quality), *pixels.size, transcoded=True, placement=placement)


def _reduced(data: bytes, resize: Resize) -> PreparedImage | None:
    """A large JPEG made smaller from a half, a quarter or an eighth of its size, which takes a fraction of the time.

    Decoding so reads all of the compressed data, as strictly as ``check_whole`` does. None: not such a photograph.
    """
    try:
        header = jpeg_header(data)
        placement = resize.placement(header.width, header.height, header.orientation)
        upright = placement.drawn_upright()
        size = upright.scaled_width, upright.scaled_height
        reduction = reduction_to(upright.width, upright.height, min(size), _MARGIN)
        if reduction == 1:
            return None
        image_HWC = decode_jpeg(data, reduction=reduction)
    except ValueError:  # only a general decoder may read it, or can tell what is wrong
        return None
    from PIL import Image

    reduction = round(upright.width / image_HWC.shape[1])
    # The last row and column may stand for less than a whole one of the photograph's.
    box = (0, 0, upright.width / reduction, upright.height / reduction)
    pixels = Image.fromarray(image_HWC).resize(size, Image.Resampling.LANCZOS, box)
    return PreparedImage(_encoded(pixels, resize.quality), *size, transcoded=True, placement=placement)


def _inside(crop: tuple[float, float, float, float], width: int, height: int) -> tuple[int, int, int, int]:
    """The corners of the crop in whole pixels, cut off at the image's edges."""
    left, top = max(0, round(crop[0])), max(0, round(crop[1]))
    right, bottom = min(width, round(crop[0] + crop[2])), min(height, round(crop[1] + crop[3]))
    if left >= right or top >= bottom:
        raise ValueError(f"the part {crop} lies outside the image of {width} × {height}")
    return left, top, right, bottom


def _encoded(pixels: Image.Image, quality: int) -> bytes:
    output = io.BytesIO()
    pixels.save(output, "JPEG", quality=quality)
    return output.getvalue()


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

        from msldata.contract.photograph import turn

        size = (self.scaled_width, self.scaled_height)
        if image.size != size:
            image = image.resize(size, Image.Resampling.LANCZOS)
        return turn(image, self.orientation)

    def drawn_upright(self) -> Placement:
        """The placement for boxes that were drawn on the upright picture."""
        sizes = (self.width, self.height, self.scaled_width, self.scaled_height)
        if self.orientation in SIDEWAYS:
            sizes = (self.height, self.width, self.scaled_height, self.scaled_width)
        return Placement(*sizes)

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
        if self.orientation in SIDEWAYS:
            width, height = height, width
        return item._replace(box=(x, y, width, height), area=item.area * across * down)


@dataclass(frozen=True, slots=True)
class Resize:
    """Smaller images: ``shorter`` brings the shorter side to ``size`` pixels, ``fit`` the longer one."""

    side: Literal["shorter", "fit"]
    size: int
    quality: int = DEFAULT_QUALITY
    """JPEG quality of the written images, 1 to 100."""

    def placement(self, width: int, height: int, orientation: int) -> Placement:
        """Where the pixels of an image of ``width`` × ``height`` go; it is never enlarged."""
        side = min(width, height) if self.side == "shorter" else max(width, height)
        if side <= self.size:
            return Placement(width, height, width, height, orientation)
        across, down = (max(1, round(length * self.size / side)) for length in (width, height))
        return Placement(width, height, across, down, orientation)

    def options(self) -> dict[str, Any]:
        """What a plan records about it."""
        return {"resize": f"{self.side}={self.size}", "resize_quality": self.quality}


def parse_resize(text: str | None, quality: int | None = None) -> Resize | None:
    """``shorter=448`` or ``fit=1024``, with the quality of the JPEGs; None for None.

    Raises:
        UserError: any other text, a size of 0, a quality that is not 1 to 100, or a quality alone.
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
