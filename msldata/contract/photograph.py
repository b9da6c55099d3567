"""A photograph as the network wants it, with Pillow and numpy alone: upright, RGB of 8 bits, or refused.

    from photograph import photographs
    for file, image in photographs(["a.jpg", "folder"]): ...

This program and the folders that `msl export` writes read what is no plain JPEG by this one file, which lies there
beside `model.py`. Transparency is dropped, CMYK and palettes are converted, the first frame of an animation counts.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType

import numpy as np
from PIL import Image

try:
    from PIL import AvifImagePlugin
except ImportError:  # Pillow before 11.3
    _AVIF: tuple[str, ...] = ()
else:
    _AVIF = (AvifImagePlugin.AvifImageFile.format,)

FORMATS = ("PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG", "JPEG2000", *_AVIF)
"""Those of Pillow's formats that only decode pixels; its PostScript reader, for one, would start another program."""
DEPTHS = (8, 12, 16)
_OTHER_BYTE = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
"""For each of Pillow's 16-bit raw modes, which take the high byte, the mode that takes the low byte instead."""


class photographs:
    """(file, its photograph) of each that can be read; of any other a line in standard error says why not.

    Args:
        files: files, and folders, which stand for the images in them and below.

    Attributes:
        left_out: files that could not be read.

    Raises:
        SystemExit: nothing is named, with a line that says so.
    """

    def __init__(self, files: Iterable[str]):
        self._named, self.left_out = list(files), list[str]()
        if not self._named:
            raise SystemExit("name photographs, or folders of them")
        sys.excepthook = _uncaught

    def __iter__(self) -> Iterator[tuple[str, Image.Image]]:
        for file in itertools.chain.from_iterable(map(_files_in, self._named)):
            try:
                with Image.open(file, formats=FORMATS) as image:
                    photograph = upright_rgb(image)
            except Exception as error:  # damaged files make Pillow's decoders raise almost anything
                print(f"{file}: {error}", file=sys.stderr)
                self.left_out.append(file)
            else:
                yield file, photograph
                _flush()


def _flush() -> None:
    """Hand on what was printed, so that it is noticed here where nobody reads it any more."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _end_unread()


def _end_unread() -> None:
    """End as any program does whose reader is gone, as after ``| head``: with exit code 141, and without a word."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain when it flushes
    os._exit(141)


def _uncaught(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """What becomes of an error that ends the program: one of a closed pipe ends it quietly."""
    if issubclass(kind, BrokenPipeError):  # of a print that was not buffered
        _end_unread()
    sys.__excepthook__(kind, error, traceback)


def _files_in(place: str) -> list[str]:
    """The files whose names are those of images in a folder and below it; of anything else the place itself."""
    if not Path(place).is_dir():
        return [place]
    suffixes = {suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS}
    return sorted(str(file) for file in Path(place).rglob("*") if file.suffix.lower() in suffixes and file.is_file())


def upright_rgb(image: Image.Image) -> Image.Image:
    """An image that Pillow has opened or made, turned upright by its EXIF orientation, in RGB.

    Raises:
        ValueError: its pixels have no clear range.
    """

    def opened_again() -> Image.Image:
        if not (file := getattr(image, "filename", "")):
            raise ValueError("colours of 12 bits, of which Pillow reads the highest four; open it by its file's name")
        return Image.open(file, formats=FORMATS)

    raw_mode, orientation = raw_mode_of(image), orientation_of(image)
    upright = turn(rgb(image, raw_mode, opened_again), orientation)
    upright.info = {}  # or the next reader would turn it once more
    return upright


def orientation_of(image: Image.Image) -> int:
    """By how much the decoded pixels have yet to be turned: EXIF's orientation, 1 (upright) to 8."""
    if image.format == "TIFF":
        return 1  # Pillow turns these itself when it decodes them
    try:
        exif = image.getexif()
        if image.format in ("JPEG", "MPO"):  # of these only EXIF's own word counts, as in browsers; Pillow asks XMP too
            exif = Image.Exif()
            exif.load(image.info.get("exif", b""))
        value = exif.get(0x0112, 1)
    except Exception:  # damaged EXIF says nothing about the pixels
        return 1
    return value if value in range(1, 9) else 1


def turn(image: Image.Image, orientation: int) -> Image.Image:
    """An image upright, by its EXIF orientation."""
    way = Image.Transpose
    turns = {
        2: way.FLIP_LEFT_RIGHT,
        3: way.ROTATE_180,
        4: way.FLIP_TOP_BOTTOM,
        5: way.TRANSPOSE,
        6: way.ROTATE_270,
        7: way.TRANSVERSE,
        8: way.ROTATE_90,
    }
    return image if orientation == 1 else image.transpose(turns[orientation])


def raw_mode_of(image: Image.Image) -> str:
    """How Pillow will unpack the file's pixels; it knows only until it has."""
    tile = getattr(image, "tile", None)
    how = tile[0][3] if tile else ""
    return str(how[0] if isinstance(how, tuple) and how else how)


def rgb(image: Image.Image, raw_mode: str, opened_again: Callable[[], Image.Image]) -> Image.Image:
    """The pixels in RGB, 8 bits, turned no further than Pillow turns them.

    Args:
        image: not decoded yet.
        raw_mode: of `raw_mode_of`, before anything decoded it.
        opened_again: gives the same image once more, not decoded; asked where Pillow leaves half of its bits out.

    Raises:
        ValueError: floating-point pixels, or others without a clear range.
    """
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range; convert it to 8 bits first")
    if image.mode.startswith("I"):
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    pixels = image.convert("RGB")
    if ";16" not in raw_mode or np.asarray(pixels).max() >= 16:
        return pixels
    # 12-bit colours stored in 16 bits: Pillow takes only their high bytes, which leaves almost nothing.
    swapped = raw_mode[:-1] + _OTHER_BYTE.get(raw_mode[-1], "")
    with opened_again() as again:
        again.tile = [  # type: ignore[attr-defined]
            tile._replace(args=(swapped, *tile.args[1:]) if isinstance(tile.args, tuple) else swapped)
            for tile in again.tile  # type: ignore[attr-defined]
        ]
        try:
            low_HWC = np.asarray(again.convert("RGB"))
        except ValueError:
            raise ValueError(f"dark {raw_mode} pixels of 16 bits; convert it to 8 bits first") from None
    return Image.fromarray(_eight_bits(np.asarray(pixels).astype(np.int64) << 8 | low_HWC))


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """Pixels of more than 8 bits brought down to 8, rounded: full scale is the least of 8, 12 and 16 bits that holds
    the largest."""
    values = values.astype(np.int64)
    lowest, highest = int(values.min()), int(values.max())
    full_scale = next((2**depth - 1 for depth in DEPTHS if highest < 2**depth), 0)
    if lowest < 0 or not full_scale:
        raise ValueError(f"values from {lowest} to {highest} are not 16 bits; convert it to 8 bits first")
    return ((values * 510 + full_scale) // (2 * full_scale)).astype(np.uint8)
