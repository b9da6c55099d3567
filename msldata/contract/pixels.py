"""One decoder for one photograph: how the bytes of an image file become pixels, for builds, training and predictions.

The rule, whoever asks: RGB, 8 bits, three channels, upright as the EXIF orientation says, and the first frame of an
animation. Transparency is dropped. CMYK and palettes are converted. Pixels of more than 8 bits are scaled: full scale
is the smallest of 8, 12 and 16 bits that holds the largest value. Floating-point pixels have no known range and are
refused. A JPEG whose pixels end early is refused, for the decoder would fill the rest with grey; so is one in whose
pixels it has lost its place, and shows stripes. Padding before the end of a file is no damage, and is passed over.

A JPEG of more than a million pixels is decoded at a half, a quarter or an eighth of its size, in the inverse cosine
transform itself, where what is made of it stays smaller still (`reductions`): a photograph of a telephone has sixty
times the pixels that a network sees at 448. Who asks for the same square gets the same pixels.
"""

from __future__ import annotations

import io
import os
import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import simplejpeg

from msldata.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

_PILLOWS_MOST = 178_956_970


def _most_pixels() -> int:
    given = os.environ.get("MSL_MAX_PIXELS") or "178000000"
    if not given.isdecimal():
        raise UserError(f"MSL_MAX_PIXELS is '{given}'; give a number of pixels, as 400000000")
    return int(given)


MAX_PIXELS = _most_pixels()
"""Larger images are taken for decompression bombs: these are 534 MB once decoded. ``MSL_MAX_PIXELS`` sets another
bound, for every process of a command."""

JPEG_START = b"\xff\xd8\xff"
ORIENTATION_TAG = 0x0112
SIDEWAYS = (5, 6, 7, 8)
"""EXIF orientations that swap width and height."""

LARGE = 1 << 20
"""Images of up to this many pixels are always decoded at their full size."""
MARGIN = 1.5
"""How many times larger than the result a reduced image must be: with less, the cosine transform's filter shows."""

_SEGMENT = struct.Struct(">BBH")
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_TOO_LARGE = f"too large, more than {MAX_PIXELS // 1_000_000} million pixels"
_ENDS_EARLY = "remature end"
_PILLOW_ENDS_EARLY = re.compile(r"truncated file read|expected to read \d+ bytes but", re.IGNORECASE)
"""What Pillow says of files that end in their headers; of those that end later it says that they are truncated."""
_LOST = re.compile(f"{_ENDS_EARLY}|bad Huffman code|instead of RST|extraneous bytes before marker 0x(d[0-7]|c4|da)")
"""Of libjpeg's complaints, those that mean other pixels than were stored: they end early, or something else stands
where they should go on."""


class LostPixels(ValueError):
    """A JPEG of which some pixels are gone, whatever a forgiving decoder shows in their place."""


class JpegHeader(NamedTuple):
    """What the header of a JPEG says; width and height are those before turning."""

    width: int
    height: int
    orientation: int
    """EXIF's, 1 (upright) to 8."""
    colour_space: str

    @property
    def upright(self) -> tuple[int, int]:
        """Width and height once it is turned."""
        return (self.height, self.width) if self.orientation in SIDEWAYS else (self.width, self.height)


def reductions(
    width_N: np.ndarray, height_N: np.ndarray, crop_N4: np.ndarray, size: int, margin: float = MARGIN
) -> np.ndarray:
    """By how much JPEGs are reduced in decoding, when a part of each becomes ``size`` × ``size`` pixels.

    Args:
        width_N, height_N: of the images, upright, in pixels.
        crop_N4: (top, left, height, width) of the parts, in pixels.

    Returns:
        reduction_N: int64; 1, 2, 4 or 8: sides are divided by this and rounded up. The part then still has ``margin``
        times the result's sides at least, so that the result differs from that of the full size by less than 1.5 grey
        levels on average.
    """
    times_N = crop_N4[:, 2:].min(axis=1) / (margin * size)
    reduction_N = 2 ** np.log2(times_N.clip(1, 8)).astype(np.int64)
    return np.where(np.multiply(width_N, height_N, dtype=np.int64) > LARGE, reduction_N, 1)


def reduction_to(width: int, height: int, size: int, margin: float = MARGIN) -> int:
    """The `reductions` of one whole image."""
    return int(reductions(np.array([width]), np.array([height]), np.array([[0, 0, height, width]]), size, margin)[0])


def decode(data: bytes | memoryview, reduction: int = 1) -> np.ndarray:
    """image_HWC, uint8 RGB, upright, of any image file.

    Args:
        reduction: of a JPEG, as for ``decode_jpeg``; others, and JPEGs that libjpeg complains of, keep their size.

    Raises:
        ValueError: why the image cannot be used: another file type, truncated, damaged, too large, floats.
    """
    try:
        return decode_jpeg(data, reduction=reduction)
    except LostPixels:
        raise
    except ValueError:
        _refuse_damaged_cmyk(data)
    from msldata.contract.photograph import turn

    with opened(bytes(data)) as photo:
        return np.array(turn(photo.rgb(), photo.orientation))


def pixels_of(image: Image.Image) -> np.ndarray:
    """Pixels, as ``decode`` gives them, of an image that Pillow has opened or made. Raises ValueError as it does."""
    from msldata.contract.photograph import upright_rgb

    return np.array(upright_rgb(image))


def decode_jpeg(data: bytes | memoryview, into: np.ndarray | None = None, reduction: int = 1) -> np.ndarray:
    """Decode an undamaged JPEG in grey or YCbCr: most photographs, and the fastest way.

    Args:
        into: uint8, room for the image; not used by one that has to be turned.
        reduction: 1, 2, 4 or 8: sides are divided by this and rounded up. One that has to be turned is reduced only as
            far as its sides can be divided without a remainder, so that its corner stays where it is.

    Raises:
        ValueError: it is not such a JPEG; ``decode`` may still read it, unless it is truncated.
    """
    orientation, num_bits = _scan(data)
    if num_bits != 8:
        raise ValueError(f"a JPEG of {num_bits} bits a sample" if num_bits else "not a JPEG")
    least = {}
    if into is None or reduction > 1:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        check_size(width, height)
        while orientation != 1 and (width % reduction or height % reduction):
            reduction //= 2
        if reduction > 1:
            least = {"min_height": -(-height // reduction), "min_width": -(-width // reduction)}
            least |= {"min_factor": reduction}
    try:
        image_HWC = simplejpeg.decode_jpeg(data, buffer=into, **least)
    except ValueError as error:
        _refuse_lost(data, error)
        raise
    if orientation == 1:
        return image_HWC
    from PIL import Image

    from msldata.contract.photograph import turn

    return np.array(turn(Image.fromarray(image_HWC), orientation))


def jpeg_header(data: bytes | memoryview) -> JpegHeader:
    """What can be known about a JPEG without decoding it.

    Raises:
        ValueError: not an 8-bit JPEG, damaged, or too large.
    """
    orientation, num_bits = _scan(data)
    if num_bits not in (0, 8):
        raise ValueError(f"a JPEG of {num_bits} bits a sample, which hardly any decoder reads")
    height, width, colour_space, _ = simplejpeg.decode_jpeg_header(data)
    check_size(width, height)
    return JpegHeader(width, height, orientation, colour_space)


def upright_size(data: bytes | memoryview) -> tuple[int, int] | None:
    """Width and height that a JPEG has once it is turned; None for what has no header of a JPEG."""
    try:
        return jpeg_header(data).upright
    except ValueError:
        return None


def is_plain(data: bytes | memoryview) -> bool:
    """Whether it is an 8-bit JPEG that is already upright, which every JPEG decoder reads alike."""
    return _scan(data) == (1, 8)


def check_whole(data: bytes | memoryview) -> tuple[int, int]:
    """Width and height, upright, after decoding all of an image; raises ValueError as ``decode`` does."""
    try:
        header = jpeg_header(data)
        # An eighth of the size: reading the compressed data, which is what can end early, is then nearly all the work.
        simplejpeg.decode_jpeg(data, colorspace="GRAY", min_height=1, min_width=1, min_factor=8, strict=True)
        return header.upright
    except ValueError:  # strict is right for nearly all files and fast; of the others, some are only unusual
        height, width, _ = decode(data).shape
        return width, height


@dataclass(frozen=True, slots=True)
class OpenPhoto:
    """An image file whose pixels are decoded on request."""

    image: Image.Image
    orientation: int
    """EXIF's orientation, 1 to 8, by which the pixels have yet to be turned."""
    data: bytes
    raw_mode: str
    """How Pillow unpacks the file's pixels."""

    def rgb(self) -> Image.Image:
        """The pixels in RGB, 8 bits, not turned."""
        from PIL import Image

        from msldata.contract.photograph import FORMATS, rgb

        return rgb(self.image, self.raw_mode, lambda: Image.open(io.BytesIO(self.data), formats=FORMATS))


@contextmanager
def opened(data: bytes) -> Iterator[OpenPhoto]:
    """An image file, not yet decoded; whatever goes wrong with it inside the block becomes a ValueError."""
    from PIL import Image, UnidentifiedImageError

    from msldata.contract.photograph import raw_mode_of

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on damaged metadata and on large images, both dealt with here
            if MAX_PIXELS > _PILLOWS_MOST:
                Image.MAX_IMAGE_PIXELS = MAX_PIXELS
            image = Image.open(io.BytesIO(data), formats=_formats(data))
            check_size(*image.size)
            raw_mode = raw_mode_of(image)  # before the orientation, for which Pillow may decode
            yield OpenPhoto(image, _orientation(image, data), data, raw_mode)
    except UnidentifiedImageError:
        if data.startswith(JPEG_START):
            num_bits = _scan(data)[1]
            deep = f"a JPEG of {num_bits} bits a sample, which hardly any decoder reads"
            raise ValueError(deep if num_bits > 8 else f"damaged JPEG: the file starts with {data[:16]!r}") from None
        raise ValueError(f"not an image: the file starts with {data[:16]!r}") from None
    except Image.DecompressionBombError:
        raise ValueError(_TOO_LARGE) from None
    except Exception as error:  # damaged files make Pillow's decoders raise almost anything
        raise ValueError(_reason(error)) from None


def check_size(width: int, height: int) -> None:
    """Raise ValueError for an image of more than ``MAX_PIXELS``."""
    if width * height > MAX_PIXELS:
        raise ValueError(f"{_TOO_LARGE} ({width} × {height})")


def _scan(data: bytes | memoryview) -> tuple[int, int]:
    """(orientation, bits a sample) of a JPEG by its segments up to the frame's; 0 bits where there is no frame.

    Every image of an epoch comes by here: a few microseconds, where Pillow would take a tenth of a millisecond.
    """
    orientation, place, size = 1, 2, len(data)
    if data[:2] != b"\xff\xd8":
        return 1, 0
    while place + 4 <= size:
        start, marker, length = _SEGMENT.unpack_from(data, place)
        if marker in _FRAMES and start == 0xFF:
            return orientation, data[place + 4] if place + 4 < size else 0
        if marker == 0xFF and start == 0xFF:  # fill bytes may stand before a marker
            place += 1
            continue
        if marker == 0xDA or start != 0xFF:  # pixels without a frame, or no segment
            break
        if marker == 0xE1 and orientation == 1 and data[place + 4 : place + 10] == b"Exif\0\0":
            orientation = _exif_orientation(bytes(data[place + 10 : place + 2 + length]))
        place += 2 + length
    return orientation, 0


def _exif_orientation(exif: bytes) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none that makes sense."""
    order = {b"II*\0": "little", b"MM\0*": "big"}.get(exif[:4])
    if order is None:
        return 1

    def number(place: int, length: int) -> int:
        return int.from_bytes(exif[place : place + length], order)  # type: ignore[arg-type]

    directory = number(4, 4)
    for entry in range(directory + 2, directory + 2 + 12 * number(directory, 2), 12):
        if entry + 12 > len(exif):
            break
        if number(entry, 2) == ORIENTATION_TAG:
            value = number(entry + 8, 2)
            return value if 1 <= value <= 8 else 1
    return 1


def _orientation(image: Image.Image, data: bytes) -> int:
    from msldata.contract.photograph import orientation_of

    return _scan(data)[0] if image.format in ("JPEG", "MPO") else orientation_of(image)


def _formats(data: bytes) -> tuple[str, ...]:
    from PIL import Image, features

    from msldata.contract.photograph import FORMATS

    if data[4:8] != b"ftyp":
        return FORMATS
    if data[8:12] in (b"avif", b"avis"):
        if not features.check("avif"):
            raise ValueError("AVIF, which this Pillow does not read; pip install 'pillow>=11.3'")
        return ("AVIF",)
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        raise ValueError("HEIC (or a film), which needs an extra: pip install 'msltrain[heif]'") from None
    if "HEIF" not in Image.OPEN:
        register_heif_opener()
    return ("HEIF",)


def _refuse_damaged_cmyk(data: bytes | memoryview) -> None:
    """Pillow, which converts CMYK, does not report lost pixels."""
    try:
        if jpeg_header(data).colour_space == "CMYK":
            simplejpeg.decode_jpeg(data, colorspace="CMYK")
    except ValueError as error:
        _refuse_lost(data, error)


def _refuse_lost(data: bytes | memoryview, error: ValueError) -> None:
    """Raise LostPixels where a complaint of libjpeg means that."""
    if not _LOST.search(str(error)):
        return
    try:
        simplejpeg.decode_jpeg_header(data)
    except ValueError:  # of what stands between the segments before the pixels, where it does no harm
        return
    kind = "truncated" if _ENDS_EARLY in str(error) else "damaged"
    raise LostPixels(f"{kind} JPEG: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    text = str(error).strip().rstrip(".")
    if _PILLOW_ENDS_EARLY.match(text):
        return "image file is truncated"
    if text == "could not create decoder object":  # of WebP
        return "image file is truncated or damaged"
    return text or type(error).__name__
