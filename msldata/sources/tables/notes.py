"""What is said about a table's rows: photographs that are listed twice, not at all, or without a label."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from msldata.contract.listing import IMAGE_SUFFIXES
from msldata.errors import counted, few_of
from msldata.sources.places import is_address

_SHOWN = 3
_PAIRS_SHOWN = 10


def listed_twice(pairs: Sequence[tuple[str, str]], image: str, first: Any, second: Any, split: tuple[str, str]) -> str:
    """What to do about a photograph that has two rows where it may have one.

    Args:
        pairs: where both rows of each such photograph are; of the first one all else is.
        image: its path.
        first, second: the labels of the rows.
        split: the parts that the rows put it in.
    """
    (one, other), *others = pairs
    said = few_of([" and ".join(pair) for pair in others], _SHOWN)
    more = f" ({said}: {'another' if len(others) == 1 else 'others'} listed twice)" if others else ""
    where = f"{one} and {other}: '{image}' is listed twice"
    if split[0] != split[1]:
        return f"{where}, in {split[0]} and in {split[1]}; delete the line of the part that it is not for{more}"
    if _plain(first) == _plain(second):
        return f"{where}, with the same labels; delete one of the lines{more}"
    return (
        f"{where}, with different labels ('{_shown(first)}' and '{_shown(second)}'); keep one line with all of its "
        f"labels{more}"
    )


def one_key(pairs: Sequence[tuple[str, str, str, str, str]]) -> str:
    """What to do about photographs of one name that would be one sample.

    Args:
        pairs: of each two, where the first is listed, its path, the same of the second, and their key.
    """
    said = [
        f"{one} and {other}: '{first}' and '{second}' have one key, '{key}'" for one, first, other, second, key in pairs
    ]
    return (
        f"{few_of(said, _PAIRS_SHOWN)}; an image may be listed only once, and two must differ in more than extension, "
        "dots and spaces"
    )


def without_labels(rows: Sequence[tuple[str, str, Any]], *, kept: bool = True) -> str:
    """A note about photographs without a label; empty where there is none.

    Args:
        rows: place, path and label cell of each.
        kept: or left out.
    """
    if not rows:
        return ""
    named = [f"{image} ({place}{_cell(cell)})" for place, image, cell in rows]
    them, lines = ("it", "its line") if len(rows) == 1 else ("them", "their lines")
    said = f"{counted(len(rows), 'photograph')} without a label: {few_of(named, _SHOWN)}; "
    if not kept:
        return f"{said}left out; without --drop-unlabelled kept, as negatives of every class"
    return (
        f"{said}kept, as negatives of every class: if that is not meant, label {them}, delete {lines}, or add "
        "--drop-unlabelled"
    )


def not_listed(root: Path | None, images: Sequence[str], where: str = "on no line") -> str:
    """A note about photographs beside the listed ones that no label is for; empty where there is none.

    Args:
        root: the local folder of the images; of a remote one nothing is said.
        images: their paths there.
        where: they are not, in words.
    """
    if root is None:
        return ""
    listed = {image for image in images if not is_address(image)}
    left = []
    for folder in sorted({image.rpartition("/")[0] for image in listed}):
        place = root / folder
        for name in sorted(os.listdir(place)) if os.access(place, os.R_OK) and place.is_dir() else ():
            path = f"{folder}/{name}" if folder else name
            is_photograph = PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")
            if is_photograph and path not in listed:
                left.append(path)
    are, left_out = ("is", "it is left out") if len(left) == 1 else ("are", "they are left out")
    return f"{counted(len(left), 'photograph')} {are} {where}: {few_of(left, _SHOWN)}; {left_out}" if left else ""


def _cell(cell: Any) -> str:
    return "" if cell in (None, "") or not isinstance(cell, str) else f", '{cell}'"


def _plain(labels: Any) -> Any:
    return labels.strip() if isinstance(labels, str) else labels


def _shown(labels: Any) -> str:
    text = ", ".join(map(str, labels)) if isinstance(labels, list | tuple) else str("" if labels is None else labels)
    return text if len(text) <= 40 else f"{text[:40]}…"
