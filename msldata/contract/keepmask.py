"""Keep masks: which pixels of an image stay visible. Pure numpy and Pillow; used by both packages.

A *keep mask* is uint8, 1 = visible, 0 = hole. Mask files come in both polarities, so the polarity is settled first and
everything else is computed on the keep mask. Shapes: H, W height and width; a leading ``...`` is any batch shape.
"""

from __future__ import annotations

import io
import zlib
from bisect import bisect_left
from collections.abc import Iterable

import numpy as np
from PIL import Image, UnidentifiedImageError

from msldata.contract.deflate import compress
from msldata.errors import BadInputError, UserError

HOLE_WHITE = "hole-white"
HOLE_BLACK = "hole-black"
POLARITIES = (HOLE_WHITE, HOLE_BLACK)

MAX_MASK_PIXELS = 2**26
"""Largest mask that is decoded (8192×8192); a small file can declare far more."""

_FORMATS = ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "PPM")
"""The file formats of masks. Pillow knows more, but hands one of them (EPS) to another program."""

_MAX_GREY_SHARE = 0.25
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_FILTER_UP = 2  # PNG's filter type: the difference to the row above


def to_keep_mask(gray_HW: np.ndarray, polarity: str) -> np.ndarray:
    """Binarise a mask image at half brightness and make 1 the visible side.

    Args:
        gray_HW: uint8, 0 black … 255 white; above 127 counts as white.
        polarity: ``hole-white`` (white hides the image, as in the NVIDIA set) or ``hole-black``.

    Returns:
        keep_mask_HW: uint8, 1 = visible, 0 = hole.

    Deviation: the official code feeds the palette value of an un-binarised file (0.884 for "visible") in one ablation.
    """
    if polarity not in POLARITIES:
        raise UserError(f"unknown polarity '{polarity}'; use {HOLE_WHITE} or {HOLE_BLACK}")
    return ((gray_HW > 127) == (polarity == HOLE_BLACK)).astype(np.uint8)


def hole_fraction(keep_mask_HW: np.ndarray) -> float:
    """Share of zeros, in [0, 1]: the paper's p."""
    return (keep_mask_HW.size - np.count_nonzero(keep_mask_HW)) / keep_mask_HW.size


def resize_nearest(keep_mask_HW: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize (..., H, W) to (..., height, width), taking for each pixel the one under its centre; stays 0 and 1."""
    rows, columns = _centres(keep_mask_HW.shape[-2], height), _centres(keep_mask_HW.shape[-1], width)
    return keep_mask_HW.take(rows, axis=-2).take(columns, axis=-1)  # in two steps, which is twice as fast


def resize_packed(packed: np.ndarray, width: int, to_height: int, to_width: int) -> np.ndarray:
    """Resize a mask of ``width`` pixels that ``pack_bits`` has packed; the result is packed again."""
    if packed.shape[0] != to_height:
        packed = packed.take(_centres(packed.shape[0], to_height), axis=0)
    if width != to_width:
        packed = pack_bits(unpack_bits(packed, width).take(_centres(width, to_width), axis=1))
    return packed


def _centres(length: int, to_length: int) -> np.ndarray:
    """Which of ``length`` pixels lie under the centres of ``to_length`` in the same place."""
    return (2 * np.arange(to_length) + 1) * length // (2 * to_length)


def resize_area(level_HW: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize uint8 (H, W) to (height, width): each pixel is the mean of the area it covers, rounded half up.

    Whole numbers only, so that a grey keep mask is the same on every machine.
    """
    fits = 2 * 255 * level_HW.size + level_HW.size < 2**31
    sum_hW = _sums_of_rows(level_HW.astype(np.int32 if fits else np.int64), height)
    sum_hw = _sums_of_rows(np.ascontiguousarray(sum_hW.T), width).T
    num_HW = level_HW.size
    return ((2 * sum_hw + num_HW) // (2 * num_HW)).astype(np.uint8)


def _sums_of_rows(value_HW: np.ndarray, height: int) -> np.ndarray:
    """Row sums over ``height`` equal strips, each row weighted by its part in the strip; a strip's weights sum to H."""
    num_rows = len(value_HW)
    edge = np.arange(height + 1) * num_rows  # in parts of a row, of which each has ``height``
    start, stop, first = edge[:-1], edge[1:], edge[:-1] // height
    total_hW = np.zeros((height, value_HW.shape[1]), dtype=value_HW.dtype)
    for row in (first + step for step in range(-(-num_rows // height) + 1)):
        weight = np.minimum((row + 1) * height, stop) - np.maximum(row * height, start)
        part_hW = value_HW[np.minimum(row, num_rows - 1)]
        part_hW *= np.maximum(weight, 0).astype(value_HW.dtype)[:, None]
        total_hW += part_hW
    return total_hW


def pack_bits(keep_mask_HW: np.ndarray) -> np.ndarray:
    """Eight pixels a byte, row by row, first pixel in the highest bit: (..., H, W) to uint8 (..., H, ceil(W / 8))."""
    return np.packbits(keep_mask_HW, axis=-1)


def unpack_bits(packed: np.ndarray, width: int) -> np.ndarray:
    """The inverse of ``pack_bits``: uint8 0/1 of shape (..., H, width)."""
    return np.unpackbits(packed, axis=-1, count=width)


def invert_bits(packed: np.ndarray, width: int) -> np.ndarray:
    """What ``pack_bits`` makes of the opposite mask: the bits beyond the width stay zero."""
    inverted = ~packed
    inverted[..., -1] &= _last_bits(width)
    return inverted


def encode_png(keep_mask_HW: np.ndarray) -> bytes:
    """A 1-bit greyscale PNG, white = visible. Its bytes depend on the mask alone, not on a library's version."""
    return encode_packed_png(pack_bits(keep_mask_HW), keep_mask_HW.shape[1])


def encode_packed_png(packed: np.ndarray, width: int) -> bytes:
    """A 1-bit greyscale PNG of a mask that ``pack_bits`` has packed."""
    return _encode_rows(packed, width, bit_depth=1)


def encode_level_png(level_HW: np.ndarray) -> bytes:
    """An 8-bit greyscale PNG of a grey keep mask, 255 = visible; its bytes depend on the mask alone, too."""
    return _encode_rows(level_HW, level_HW.shape[1], bit_depth=8)


def decode_png(data: bytes, where: str) -> np.ndarray:
    """keep_mask_HW of a stored keep mask (white = visible). Raises BadInputError naming ``where``."""
    return unpack_bits(*decode_packed(data, where))


def decode_packed(data: bytes, where: str) -> tuple[np.ndarray, int]:
    """A stored keep mask, still packed, and its width: (uint8 (H, ceil(W / 8)), W)."""
    rows, width, bit_depth = _decode_rows(data, where) or (None, 0, 0)
    if rows is None or bit_depth != 1:
        keep_mask_HW = to_keep_mask(decode_gray(data, where), HOLE_BLACK)
        return pack_bits(keep_mask_HW), keep_mask_HW.shape[1]
    rows[:, -1] &= _last_bits(width)
    return rows, width


def decode_levels(data: bytes, where: str) -> np.ndarray:
    """level_HW of a stored keep mask, grey or binary: uint8, 0 = hole … 255 = visible. Raises BadInputError."""
    rows, width, bit_depth = _decode_rows(data, where) or (None, 0, 0)
    if rows is None:
        return decode_gray(data, where, soft=True)
    return rows if bit_depth == 8 else unpack_bits(rows, width) * np.uint8(255)


def _last_bits(width: int) -> int:
    """Which bits of a packed row's last byte are pixels."""
    return 0xFF << (-width % 8) & 0xFF


def _encode_rows(row_HN: np.ndarray, width: int, bit_depth: int) -> bytes:
    height, num_bytes = row_HN.shape
    rows = np.full((height, num_bytes + 1), _FILTER_UP, dtype=np.uint8)
    rows[0, 1:] = row_HN[0]
    np.subtract(row_HN[1:], row_HN[:-1], out=rows[1:, 1:])
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([bit_depth, 0, 0, 0, 0])
    chunks = [(b"IHDR", header), (b"IDAT", compress(rows.ravel())), (b"IEND", b"")]
    return _SIGNATURE + b"".join(
        len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big") for name, data in chunks
    )


def _decode_rows(data: bytes, where: str) -> tuple[np.ndarray, int, int] | None:
    """(row_HN, width, bit depth) of a PNG as ``_encode_rows`` makes it, several times faster than Pillow.

    None for any other file: that is for Pillow, which forgives damage that is not forgiven here.
    """
    width, height, num_compressed = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20, 33))
    if (
        data[:16] != _SIGNATURE + b"\0\0\0\rIHDR"
        or data[24:29] not in (b"\1\0\0\0\0", b"\x08\0\0\0\0")
        or data[37:41] != b"IDAT"
        or len(data) != num_compressed + 57
        or not 0 < width * height <= MAX_MASK_PIXELS
    ):
        return None
    num_bytes = (width * data[24] + 7) // 8 + 1
    inflater = zlib.decompressobj()
    try:
        content = inflater.decompress(memoryview(data)[41:-16], height * num_bytes + 1)
    except zlib.error as error:
        raise BadInputError(where, f"cannot be decoded ({error})") from None
    if not inflater.eof or len(content) != height * num_bytes:
        raise BadInputError(where, f"cannot be decoded ({len(content):,} bytes of {height * num_bytes:,})")
    rows = np.frombuffer(content, dtype=np.uint8).reshape(height, num_bytes)
    if (rows[:, 0] != _FILTER_UP).any():
        return None
    return np.add.accumulate(rows[:, 1:], axis=0, dtype=np.uint8), width, data[24]


def to_levels(gray_HW: np.ndarray, polarity: str) -> np.ndarray:
    """A mask image as a grey keep mask: uint8, 255 = visible … 0 = hole; above 127 is what binarising makes visible."""
    return gray_HW if polarity == HOLE_BLACK else 255 - gray_HW


def decode_gray(data: bytes, where: str, *, soft: bool = False) -> np.ndarray:
    """Decode any image that is meant as a mask to gray_HW, uint8, 0 black … 255 white.

    Palette, 1-bit, colour, 16-bit and transparent files are all reduced to what a person sees: palettes are looked up,
    full scale is the smallest of 1, 255 and 65535 that holds the largest value, and transparent pixels take the
    opposite of the colour that is drawn.

    Args:
        data: the bytes of one image file.
        where: its path, for the message.
        soft: whether grey levels are meant; then any picture will do.

    Raises:
        BadInputError: not an image, damaged, too large, or (unless ``soft``) plainly not black and white.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if image.width * image.height > MAX_MASK_PIXELS:
                raise BadInputError(where, f"{image.width}×{image.height} pixels is too large for a mask")
            gray_HW = _gray_of_image(image, where)
            is_lossy = image.format in ("JPEG", "WEBP")
    except BadInputError:
        raise
    except UnidentifiedImageError:
        raise BadInputError(where, "not an image") from None
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error …
        raise BadInputError(where, f"cannot be decoded ({error})") from None
    if not soft:
        _check_black_and_white(gray_HW, where, is_lossy)
    return gray_HW


def _gray_of_image(image: Image.Image, where: str) -> np.ndarray:
    if image.mode.startswith("I") or image.mode == "F":
        # convert("L") would clip these at 255 instead of scaling them.
        return _to_full_scale(np.asarray(image))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        return _gray_of_transparent(image.convert("RGBA"), where)
    if image.mode == "L":
        return _to_full_scale(np.asarray(image))
    # np.asarray of a palette file would be its indices, and convert("P") of a colour file a palette's entries.
    return _to_full_scale(np.asarray(image.convert("L")))


def _gray_of_transparent(image: Image.Image, where: str) -> np.ndarray:
    gray_HW = np.asarray(image.convert("RGB").convert("L"))
    drawn_HW = np.asarray(image.getchannel("A")) > 127
    if drawn_HW.all():
        return _to_full_scale(gray_HW)
    if not drawn_HW.any():
        raise BadInputError(where, "entirely transparent, so it says nothing about holes")
    white_HW = gray_HW > 127
    colour = white_HW[drawn_HW][0]
    if (white_HW[drawn_HW] != colour).any():
        raise BadInputError(where, "both colour and transparency vary, so the mask is not clear; flatten the file")
    return np.where(drawn_HW == colour, np.uint8(255), np.uint8(0))


def _to_full_scale(value_HW: np.ndarray) -> np.ndarray:
    """Scale to 0 … 255 by the smallest full scale that fits: masks saved as 0/1 or with 16 bits are common."""
    highest = value_HW.max()
    if value_HW.dtype == np.uint8 and highest > 1:
        return value_HW
    full_scale = next((scale for scale in (1, 255, 65535) if highest <= scale), highest)
    return np.rint(np.clip(value_HW, 0, None) * (255 / full_scale)).astype(np.uint8)


def _check_black_and_white(gray_HW: np.ndarray, where: str, is_lossy: bool) -> None:
    # Nearly all files hold 0 and 255 only, which adding 1 to white turns into 0. In place: memory is what costs here.
    rest_HW = (gray_HW > 127).view(np.uint8)
    if not np.add(gray_HW, rest_HW, out=rest_HW).any():
        return
    share = np.count_nonzero((gray_HW >= 64) & (gray_HW < 192)) / gray_HW.size
    if share > _MAX_GREY_SHARE:
        raise BadInputError(
            where, f"{share:.0%} of its pixels are neither black nor white, so it is a picture, not a mask"
        )
    low, high = int(gray_HW.min()), int(gray_HW.max())
    # Labels 0 and 2, or 1 and 3, would all be black; a compressed file of one colour wavers a little.
    if high - low >= (16 if is_lossy else 1) and (low > 127) == (high > 127):
        raise BadInputError(
            where,
            f"brightness runs from {low} to {high} of 255, all on one side of the middle; save it in black and white",
        )


def hole_fraction_histogram(hole_fractions: Iterable[float]) -> dict[str, int]:
    """Masks per ten-percent bin, ``"0.0-0.1"`` to ``"0.9-1.0"``; a bin excludes its lower edge (but 0 counts)."""
    edges = [tenth / 10 for tenth in range(1, 10)]
    counts = [0] * 10
    for fraction in hole_fractions:
        counts[bisect_left(edges, fraction)] += 1
    return {f"{tenth / 10:.1f}-{(tenth + 1) / 10:.1f}": count for tenth, count in enumerate(counts)}
