"""One image on its way into a shard: checked cheaply, its bytes kept whenever every JPEG decoder can read them."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

import simplejpeg

TRANSCODE_QUALITY = 95
MAX_PIXELS = 100_000_000
"""Larger images are taken for decompression bombs: 100 megapixels are 300 MB once decoded."""

_TOO_LARGE = f"more than {MAX_PIXELS // 1_000_000} million pixels"
_JPEG_START = b"\xff\xd8\xff"
_JPEG_END = b"\xff\xd9"
_TAIL_BYTES = 64
# Of Pillow's formats those that only decode pixels; its PostScript reader, for one, would start another program.
_PILLOW_FORMATS = ("PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG", "JPEG2000")


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """JPEG bytes with their size in pixels; ``transcoded`` when they are not the source's own."""

    data: bytes
    width: int
    height: int
    transcoded: bool


def prepare_image(data: bytes) -> PreparedImage:
    """Check an image file and make it a JPEG that is grey or three-channel.

    A JPEG keeps its bytes: its header is parsed and its end looked for, but it is decoded only when the end-of-image
    marker is not where it belongs. Everything else (PNG, WebP, CMYK JPEG …) becomes an RGB JPEG of quality 95;
    transparency is dropped, of an animation the first frame is taken.

    Raises:
        ValueError: why this is not an image that can be used: empty, another file type, truncated, damaged, too large.
    """
    if not data:
        raise ValueError("the file is empty")
    if not data.startswith(_JPEG_START):
        return _transcode(data)
    try:
        height, width, colour_space, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        # Either damaged, or sampled in a way that only a general decoder reads: Pillow knows which.
        return _transcode(data)
    _check_size(width, height)
    if colour_space == "CMYK":
        return _transcode(data)
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
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on damaged metadata and on large images, both dealt with here
            image = Image.open(io.BytesIO(data), formats=_PILLOW_FORMATS)
            _check_size(*image.size)
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"more than 8 bits a channel (Pillow's mode {image.mode}); convert it to 8 bits first")
            pixels = image.convert("RGB")
    except UnidentifiedImageError:
        kind = "damaged JPEG" if data.startswith(_JPEG_START) else "not an image"
        raise ValueError(f"{kind}: the file starts with {data[:16]!r}") from None
    except Image.DecompressionBombError:
        raise ValueError(_TOO_LARGE) from None
    except Exception as error:  # damaged files make Pillow's decoders raise almost anything
        raise ValueError(_reason(error)) from None
    output = io.BytesIO()
    pixels.save(output, "JPEG", quality=TRANSCODE_QUALITY)
    return PreparedImage(output.getvalue(), *pixels.size, transcoded=True)


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ValueError(f"{_TOO_LARGE} ({width} × {height})")


def _reason(error: Exception) -> str:
    return str(error).strip().rstrip(".") or type(error).__name__
