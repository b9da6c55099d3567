"""Keep masks: which pixels of an image stay visible. Pure numpy and Pillow; used by both packages.

A *keep mask* is uint8, 1 = visible, 0 = hole. Mask files come in both polarities, so the polarity is settled first and
everything else is computed on the keep mask. Shapes: H, W height and width; a leading ``...`` is any batch shape.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
from PIL import Image, UnidentifiedImageError

from msldata.deflate import compress
from msldata.errors import BadInputError, UserError

HOLE_WHITE = "hole-white"
HOLE_BLACK = "hole-black"
AUTO = "auto"
POLARITIES = (HOLE_WHITE, HOLE_BLACK)

MAX_MASK_PIXELS = 2**26
"""Largest mask that is decoded (8192×8192); a small file can declare far more."""

_MIN_BORDER_VOTES = 5
_MIN_BORDER_SHARE = 0.1
_MAX_BORDER_DISSENT = 0.05
_MINORITY = 0.15
_MAX_GREY_SHARE = 0.25


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
    rows = (2 * np.arange(height) + 1) * keep_mask_HW.shape[-2] // (2 * height)
    columns = (2 * np.arange(width) + 1) * keep_mask_HW.shape[-1] // (2 * width)
    return keep_mask_HW.take(rows, axis=-2).take(columns, axis=-1)  # in two steps, which is twice as fast


def pack_bits(keep_mask_HW: np.ndarray) -> np.ndarray:
    """Eight pixels a byte, row by row, first pixel in the highest bit: (..., H, W) to uint8 (..., H, ceil(W / 8))."""
    return np.packbits(keep_mask_HW, axis=-1)


def unpack_bits(packed: np.ndarray, width: int) -> np.ndarray:
    """The inverse of ``pack_bits``: uint8 0/1 of shape (..., H, width)."""
    return np.unpackbits(packed, axis=-1, count=width)


def encode_png(keep_mask_HW: np.ndarray) -> bytes:
    """A 1-bit greyscale PNG, white = visible. Its bytes depend on the mask alone, not on a library's version."""
    height, width = keep_mask_HW.shape
    packed = pack_bits(keep_mask_HW)
    rows = np.full((height, packed.shape[1] + 1), 2, dtype=np.uint8)  # filter type 2: difference to the row above
    rows[0, 1:] = packed[0]
    np.subtract(packed[1:], packed[:-1], out=rows[1:, 1:])
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([1, 0, 0, 0, 0])
    chunks = [(b"IHDR", header), (b"IDAT", compress(rows.ravel())), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big") for name, data in chunks
    )


def decode_png(data: bytes, where: str) -> np.ndarray:
    """keep_mask_HW of a stored keep mask (white = visible). Raises BadInputError naming ``where``."""
    return to_keep_mask(decode_gray(data, where), HOLE_BLACK)


def decode_gray(data: bytes, where: str) -> np.ndarray:
    """Decode any image that is meant as a mask to gray_HW, uint8, 0 black … 255 white.

    Palette, 1-bit, colour, 16-bit and transparent files are all reduced to what a person sees: palettes are looked up,
    full scale is the smallest of 1, 255 and 65535 that holds the largest value, and transparent pixels take the
    opposite of the colour that is drawn.

    Args:
        data: the bytes of one image file.
        where: its path, for the message.

    Raises:
        BadInputError: not an image, damaged, too large, or plainly not black and white (a photograph).
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_MASK_PIXELS:
                raise BadInputError(where, f"{image.width}×{image.height} pixels is too large for a mask")
            gray_HW = _gray_of_image(image, where)
    except BadInputError:
        raise
    except UnidentifiedImageError:
        raise BadInputError(where, "not an image") from None
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error …
        raise BadInputError(where, f"cannot be decoded ({error})") from None
    _check_black_and_white(gray_HW, where)
    return gray_HW


def _gray_of_image(image: Image.Image, where: str) -> np.ndarray:
    if image.mode.startswith("I") or image.mode == "F":
        # convert("L") would clip these at 255 instead of scaling them.
        return _to_full_scale(np.asarray(image))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        return _gray_of_transparent(image.convert("RGBA"), where)
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


def _check_black_and_white(gray_HW: np.ndarray, where: str) -> None:
    share = np.count_nonzero((gray_HW >= 64) & (gray_HW < 192)) / gray_HW.size
    if share > _MAX_GREY_SHARE:
        raise BadInputError(
            where, f"{share:.0%} of its pixels are neither black nor white, so it is a picture, not a mask"
        )
    low, high = int(gray_HW.min()), int(gray_HW.max())
    if high - low >= 16 and (low > 127) == (high > 127):
        raise BadInputError(
            where,
            f"brightness runs from {low} to {high} of 255, all on one side of the middle; save it in black and white",
        )


@dataclass(frozen=True, slots=True)
class PolarityClue:
    """What one mask file tells of its polarity."""

    white_fraction: float
    """Share of white pixels."""
    border: Literal["black", "white", "mixed"]
    """Colour of the outermost ring of pixels."""


@dataclass(frozen=True, slots=True)
class PolarityDecision:
    """Which colour of the files hides the image, and how that is known."""

    polarity: str
    """``hole-white`` or ``hole-black``."""
    origin: Literal["user", "auto", "generator"]
    explanation: str
    """One sentence with the evidence, for the screen and the manifest."""


def polarity_clue(gray_HW: np.ndarray) -> PolarityClue:
    """Measure one mask for ``decide_polarity``."""
    white_HW = gray_HW > 127
    ring = np.concatenate([white_HW[0], white_HW[-1], white_HW[:, 0], white_HW[:, -1]])
    border = "mixed" if ring.any() != ring.all() else "white" if ring[0] else "black"
    return PolarityClue(np.count_nonzero(white_HW) / white_HW.size, cast(Literal["black", "white", "mixed"], border))


def decide_polarity(clues: Iterable[PolarityClue]) -> PolarityDecision:
    """Tell which colour is the hole from the masks themselves, or refuse.

    Two clues count. Irregular-mask sets keep many holes away from the image's edge, so a colour that fills whole
    borders is the visible one. And a colour that covers less than 15 % on average is the hole, since no usual set hides
    85 % of its images. One clue is enough; they must not contradict each other.

    Raises:
        UserError: no clue, or contradicting clues; the message holds what was seen and the option to give.
    """
    # A mask of one colour has no hole or nothing else, so its border says nothing.
    shaped = [clue for clue in clues if 0 < clue.white_fraction < 1]
    black = sum(clue.border == "black" for clue in shaped)
    white = sum(clue.border == "white" for clue in shaped)
    winner, votes = ("black", black) if black >= white else ("white", white)
    mean = sum(clue.white_fraction for clue in shaped) / max(1, len(shaped))
    seen = (
        f"{black} of {len(shaped)} masks have an all-black border and {white} an all-white one; "
        f"white covers {mean:.1%} of a mask on average"
    )
    by_border = None
    if votes >= max(_MIN_BORDER_VOTES, _MIN_BORDER_SHARE * len(shaped)):
        by_border = HOLE_WHITE if winner == "black" else HOLE_BLACK
    by_minority = None
    if len(shaped) >= _MIN_BORDER_VOTES:
        by_minority = HOLE_WHITE if mean < _MINORITY else HOLE_BLACK if mean > 1 - _MINORITY else None
    polarity = by_border or by_minority
    dissent = white if polarity == HOLE_WHITE else black
    if polarity and by_minority in (None, polarity) and dissent <= _MAX_BORDER_DISSENT * len(shaped):
        hole, visible = ("white", "black") if polarity == HOLE_WHITE else ("black", "white")
        reason = (
            f"{visible} fills whole borders, so {visible} is the visible colour"
            if by_border
            else f"so little {hole} can only be the holes"
        )
        return PolarityDecision(polarity, "auto", f"{polarity}: {seen}; {reason}")
    problem = "the clues contradict each other" if polarity else "no clue is clear enough"
    raise UserError(
        f"which colour of the masks is the hole? {seen}; {problem}. Look at one mask and run again with "
        f"--polarity {HOLE_WHITE} (white hides the image) or --polarity {HOLE_BLACK}"
    )
