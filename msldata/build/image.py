"""One image on its way into a shard: checked cheaply, its bytes kept whenever every JPEG decoder can read them.

With a ``Resize`` it is made smaller from the decoded original, and turned upright as its EXIF orientation says.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import simplejpeg

from msldata.contract.records import ObjectRecord
from msldata.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

TRANSCODE_QUALITY = 95
MAX_PIXELS = 100_000_000
"""Larger images are taken for decompression bombs: 100 megapixels are 300 MB once decoded."""

_TOO_LARGE = f"more than {MAX_PIXELS // 1_000_000} million pixels"
_JPEG_START = b"\xff\xd8\xff"
_JPEG_END = b"\xff\xd9"
_TAIL_BYTES = 64
_ORIENTATION_TAG = 0x0112
# Of Pillow's formats those that only decode pixels; its PostScript reader, for one, would start another program.
_PILLOW_FORMATS = ("PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG", "JPEG2000")


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """JPEG bytes with their size in pixels; ``transcoded`` when they are not the source's own."""

    data: bytes
    width: int
    height: int
    transcoded: bool
    placement: Placement | None = None
    """Where the source's pixels are now, for boxes to move with them; None: where they were."""


def prepare_image(
    data: bytes, resize: Resize | None = None, crop: tuple[float, float, float, float] | None = None
) -> PreparedImage:
    """Check an image file and make it a JPEG that is grey or three-channel.

    A JPEG keeps its bytes: its header is parsed and its end looked for, but it is decoded only when the end-of-image
    marker is not where it belongs. Everything else (PNG, WebP, CMYK JPEG …) becomes an RGB JPEG of quality 95;
    transparency is dropped, of an animation the first frame is taken, grey images of 16 bits are brought down to 8.

    With ``resize`` a JPEG keeps its bytes only when it is small enough and upright already. All others are decoded,
    made smaller with Pillow's LANCZOS filter, turned upright, and become RGB JPEGs of the quality asked for. Nothing
    is ever enlarged.

    With ``crop`` (x, y, width, height) only that part of the image is taken, as far as it lies inside.

    Raises:
        ValueError: why this is not an image that can be used: empty, another file type, truncated, damaged, too large.
    """
    if not data:
        raise ValueError("the file is empty")
    if resize is not None or crop is not None:
        return _redrawn(data, resize, crop)
    if not data.startswith(_JPEG_START):
        return _transcode(data)
    return check_jpeg(data) or _transcode(data)


def check_jpeg(data: bytes) -> PreparedImage | None:
    """The JPEG with its own bytes, or None when only a general decoder might read it.

    Raises:
        ValueError: truncated, or too large.
    """
    try:
        height, width, colour_space, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        # Either damaged, or sampled in a way that only a general decoder reads: Pillow knows which.
        return None
    _check_size(width, height)
    if colour_space == "CMYK":
        return None
    if data.find(_JPEG_END, max(0, len(data) - _TAIL_BYTES)) < 0:
        _decode_fully(data)
    return PreparedImage(data, width, height, transcoded=False)


def _decode_fully(data: bytes) -> None:
    """Bytes may follow the end of an image, so only a decoder can tell a long tail from a missing one."""
    try:
        simplejpeg.decode_jpeg(data, strict=True)
    except ValueError as error:
        raise ValueError(f"truncated JPEG: {_reason(error)}") from None


def _transcode(data: bytes) -> PreparedImage:
    with _opened(data) as image:
        pixels = _eight_bits(image).convert("RGB")
    return PreparedImage(_encoded(pixels, TRANSCODE_QUALITY), *pixels.size, transcoded=True)


def _redrawn(data: bytes, resize: Resize | None, crop: tuple[float, float, float, float] | None) -> PreparedImage:
    with _opened(data) as image:
        orientation = _orientation(image)
        part = image if crop is None else image.crop(_inside(crop, *image.size))
        placement = None if resize is None else resize.placement(*part.size, orientation)
        if crop is None and placement is not None and placement.is_identity and data.startswith(_JPEG_START):
            kept = check_jpeg(data)
            if kept is not None:
                return kept
        pixels = _eight_bits(part).convert("RGB")
        if placement is not None:
            pixels = placement.apply(pixels)
    quality = TRANSCODE_QUALITY if resize is None else resize.quality
    return PreparedImage(_encoded(pixels, quality), *pixels.size, transcoded=True, placement=placement)


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


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """The image, not yet decoded; whatever goes wrong with it inside the block becomes a ValueError."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on damaged metadata and on large images, both dealt with here
            image = Image.open(io.BytesIO(data), formats=_PILLOW_FORMATS)
            _check_size(*image.size)
            yield image
    except UnidentifiedImageError:
        kind = "damaged JPEG" if data.startswith(_JPEG_START) else "not an image"
        raise ValueError(f"{kind}: the file starts with {data[:16]!r}") from None
    except Image.DecompressionBombError:
        raise ValueError(_TOO_LARGE) from None
    except Exception as error:  # damaged files make Pillow's decoders raise almost anything
        raise ValueError(_reason(error)) from None


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none that makes sense."""
    if image.format == "TIFF":
        return 1  # Pillow turns these itself when it decodes them
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # damaged EXIF says nothing of the pixels
        return 1
    return value if value in range(1, 9) else 1


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey images of 16 bits a pixel brought down to 8; all others as they are."""
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range; convert it to 8 bits first")
    if not image.mode.startswith("I"):
        return image
    import numpy as np
    from PIL import Image

    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"values from {values.min()} to {values.max()} are not 16 bits; convert it to 8 bits first")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ValueError(f"{_TOO_LARGE} ({width} × {height})")


def _reason(error: Exception) -> str:
    return str(error).strip().rstrip(".") or type(error).__name__


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
