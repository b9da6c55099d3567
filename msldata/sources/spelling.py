"""Names of files whose accents are stored in another form than in the list that names them: ``ü``, or ``u`` and ``¨``.

macOS stores the second form, most other programs write the first; on a screen both are one name.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path

from msldata.errors import UserError
from msldata.storage import Storage


def composed(name: str) -> str:
    """A name with each accented letter in one piece."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def as_stored(place: Storage, name: str) -> str:
    """The name of a file as the file system has it: ``name`` where that is there, else one that only stores its accents
    in another form; ``name`` as well where none is, and in remote places.

    Raises:
        UserError: several files have such a name.
    """
    if name.isascii():  # nearly all of the many
        return name
    root = place.path()
    return name if root is None else as_stored_below(root, name)


def as_stored_below(root: Path, name: str) -> str:
    """As ``as_stored``, for a folder on this machine; the name may be a whole path as well."""
    if name.startswith("/"):
        return f"/{as_stored_below(Path('/'), name[1:])}"
    if name.isascii() or os.path.lexists(f"{root}/{name}"):
        return name
    found = [""]
    for part in name.split("/"):
        found = [f"{above}{own}/" for above in found for own in _alike(f"{root}/{above}", part)]
    found = [path for above in found if os.path.lexists(f"{root}/{(path := above[:-1])}")]
    if len(found) > 1:
        raise several_alike(name, [f"{root}/{path}" for path in found])
    return found[0] if found else name


def stored_among(names: Iterable[str]) -> Mapping[str, list[str]]:
    """Names by their composed form, for those that hold more than ASCII."""
    found: dict[str, list[str]] = {}
    for name in names:
        if not name.isascii():
            found.setdefault(composed(name), []).append(name)
    return found


def several_alike(name: str, files: Iterable[str]) -> UserError:
    """The error for a name that is no file's, and in another form of several."""
    shown = " and ".join(ascii(file) for file in files)
    return UserError(
        f"'{name}' may be any of several files whose names look the same, for they differ only in how accents are "
        f"stored: {shown}; rename them"
    )


def _alike(folder: str, part: str) -> list[str]:
    """What in a folder has a name, in whatever form."""
    if part.isascii():
        return [part]
    try:
        changed = os.stat(folder).st_mtime_ns  # noqa: PTH116
    except OSError:
        return []
    return _stored_in(folder, changed).get(composed(part), [])


@lru_cache(maxsize=64)
def _stored_in(folder: str, changed: int) -> Mapping[str, list[str]]:
    """The names in a folder that changed last at that time, by their composed form."""
    return stored_among(sorted(os.listdir(folder))) if os.access(folder, os.R_OK) else {}
