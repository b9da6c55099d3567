"""Tables that list photographs: which character stands between cells, and which column says where the images are."""

from __future__ import annotations

import csv
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

Row = tuple[str, Mapping[str, Any]]
"""Its place in the file (``line 3`` or, where there are no lines, ``row 3``), and its cells by column."""

IMAGE_SUFFIXES = tuple(".jpg .jpeg .png .webp .jpe .jfif .bmp .gif .tif .tiff .ppm .pgm .jp2 .avif .heic .heif".split())
"""Suffixes of the images that are looked for; of two images with one name, the one with the earlier suffix counts."""
DELIMITERS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar"}
SAYS_DELIMITER = re.compile(r"sep=([,;|\t])?")
"""The first line that Excel takes for a statement about the others."""

# Compared by ``bare``; earlier ones win.
_IMAGES = (
    "image filename fname filepath file imagepath imagefile imagefilename imagename path img imgpath imgname imgfile "
    "photo photos photograph photographs photoname photofile photopath picture pictures picturename picturefile "
    "picturepath url imageindex imageurl imageuri imageid id"
).split()
_OFTEN_NUMBERS = frozenset({"imageindex", "imageid", "id", "url"})
"""Of these, names of columns that as often say something else."""
_NEARLY_ALL = 0.9


def delimiter_of(text: str) -> str:
    """The one that the first line states, as Excel has it, or that makes the most cells of it; a comma if none does."""
    header = next((line for line in text.splitlines() if line.strip()), "")
    if match := SAYS_DELIMITER.fullmatch(header.strip('"\r\n ')):
        return match[1]
    return max(DELIMITERS, key=lambda character: len(next(csv.reader([header], delimiter=character), ())))


def refuse_no_header(columns: Sequence[str], delimiter: str) -> None:
    """Raise ValueError where the first line of a table seems to be a row."""
    if any(map(is_image_name, columns)):
        raise ValueError(
            f"it seems to have no header line, for it begins with '{', '.join(columns)}'; write one above it, such as "
            f"image{delimiter}labels"
        )


def bare(name: str) -> str:
    """A header in the form used for comparison: in lower case, without accents, spaces and signs; one that is nothing
    but signs is all that it is."""
    letters = unicodedata.normalize("NFKD", name).lower()
    return "".join(character for character in letters if character.isalnum()) or name.strip()


def image_column_of(columns: Sequence[str]) -> str | None:
    """The column whose name says that it holds the images' paths; None if there is none."""
    by_name = {bare(name): name for name in reversed(columns)}
    return next((by_name[name] for name in _IMAGES if name in by_name), None)


def guess_image_column(columns: Sequence[str], rows: Sequence[Row]) -> str | None:
    """The column that holds the images' paths: by its name, else the only one whose cells look like that; None if that
    leaves none, or several."""
    by_name = image_column_of(columns)
    if by_name is not None and bare(by_name) not in _OFTEN_NUMBERS:
        return by_name
    alike = columns_of_images(columns, rows)
    return alike[0] if len(alike) == 1 else by_name


def columns_of_images(columns: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """The columns in which nearly every cell that is not empty looks like the name of an image file."""
    found = []
    for name in columns:
        cells = [cell for _, row in rows if (cell := row.get(name)) not in (None, "")]
        if cells and sum(map(is_image_name, cells)) >= _NEARLY_ALL * len(cells):
            found.append(name)
    return found


def is_image_name(cell: Any) -> bool:
    """Whether a cell ends as the name of an image file does."""
    return isinstance(cell, str) and PurePosixPath(cell).suffix.lower() in IMAGE_SUFFIXES
