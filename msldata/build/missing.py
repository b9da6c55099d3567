"""Photographs that are not there: found before anything is written, and named with what may have been meant."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath

from msldata.contract.listing import IMAGE_SUFFIXES
from msldata.errors import SKIP_BAD, BadInputError, UserError, counted
from msldata.sources.spelling import composed
from msldata.storage import Storage

_SHOWN = 5
_REASON = "the image is missing"
_HINT = f"put it there, take it off the list, or {SKIP_BAD}"


def missing_image(images: Storage, name: str) -> BadInputError:
    """The error for one image that is not there."""
    near = _of_nearly_that_name(images.path(name))
    if near:
        hint = f"write that name in the list, rename the file, or {SKIP_BAD}"
        return BadInputError(images.where(name), f"{_REASON}, but {near} is there", hint)
    return BadInputError(images.where(name), _REASON, _HINT)


def refuse_missing(missing: Sequence[tuple[Storage, str]]) -> None:
    """Raise an error that names the first of the images that are not there, and says how many they are.

    Args:
        missing: the folder of each, and its name there; one that is there by now is none of them.

    Raises:
        BadInputError: one is missing. UserError: several are.
    """
    missing = [(images, name) for images, name in missing if not images.exists(name)]
    if len(missing) == 1:
        raise missing_image(*missing[0])
    if not missing:
        return
    shown = []
    for images, name in missing[:_SHOWN]:
        near = _of_nearly_that_name(images.path(name))
        shown.append(f"{images.where(name)}{f' (but {near} is there)' if near else ''}")
    more = f" and {len(missing) - _SHOWN:,} more" if len(missing) > _SHOWN else ""
    raise UserError(
        f"{counted(len(missing), 'image')} are missing: {', '.join(shown)}{more}; put them there, take them off the "
        f"list, or {SKIP_BAD}"
    )


def _of_nearly_that_name(path: Path | None) -> str:
    """A file beside it whose name differs in the case of letters or in its extension alone; empty where none is."""
    if path is None:
        return ""
    stem = composed(PurePosixPath(path.name).stem).casefold()
    try:
        changed = path.parent.stat().st_mtime_ns
    except OSError:
        return ""
    near = [name for name in _images_in(str(path.parent), changed).get(stem, ()) if name != path.name]
    return next(iter(sorted(near, key=lambda name: name.casefold() != path.name.casefold())), "")


@lru_cache(maxsize=4)
def _images_in(folder: str, changed: int) -> dict[str, list[str]]:
    """The images in a folder that changed last at that time, by their names without case and extension."""
    found: dict[str, list[str]] = {}
    for name in sorted(os.listdir(folder)) if os.access(folder, os.R_OK) else ():
        path = PurePosixPath(name)
        if path.suffix.lower() in IMAGE_SUFFIXES:
            found.setdefault(composed(path.stem).casefold(), []).append(name)
    return found
