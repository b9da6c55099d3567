"""Masks named in a text file, one path or URL per line: for sets that lie in several places, or far away."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from msldata.contract.keepmask import decode_gray
from msldata.errors import BadInputError, StorageError, UserError
from msldata.storage import REMOTE_SCHEMES, LocalStorage, Storage, clear_local_errors, open_storage

LIST_SUFFIXES = (".txt", ".lst", ".list")
MAX_LIST_BYTES = 2**26
"""Longest list that is read: about half a million lines."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")
# No shell ever sees a name; but a list with such names was written for one, and should not be trusted or passed on.
_SHELL = re.compile(r"^[-!~]|[|;&<>`$\x00-\x1f\x7f]")


@dataclass(frozen=True)
class ListedMasks:
    """The masks that a text file names; relative paths count from the folder of that file.

    Empty lines and lines that begin with ``#`` are ignored. A line is a local path, or an ``s3://``, ``gs://``,
    ``az://`` or ``http(s)://`` address.
    """

    path: Path
    polarity: str | None = None

    @property
    def provenance(self) -> dict[str, Any]:
        return {"source": self.path.name}

    def names(self) -> list[str]:
        names: list[str] = []
        lines: dict[str, int] = {}
        for number, line in enumerate(self._text().splitlines(), 1):
            name = line.strip()
            if not name or name.startswith("#"):
                continue
            self._check(name, number)
            file = name if _SCHEME.match(name) else os.path.normpath(self.path.parent / name)
            if file in lines:
                raise UserError(f"{self.path}, line {number}: '{name}' is in line {lines[file]} already; remove one")
            lines[file] = number
            names.append(name)
        if not names:
            raise UserError(f"{self.path}: the list names no mask; give one path or URL a line")
        return sorted(names)

    def read_gray(self, name: str, *, soft: bool = False) -> np.ndarray:
        whole = name if _SCHEME.match(name) else str(self.path.parent / name)
        folder, _, file = whole.rpartition("/")
        storage = _storage(folder or "/")
        try:
            data = storage.read(file)
        except (FileNotFoundError, StorageError) as error:
            reason = str(error).removeprefix(f"{storage.where(file)}: ")
            raise BadInputError(storage.where(file), f"{reason} (named in {self.path})") from None
        return decode_gray(data, storage.where(file), soft=soft)

    def _text(self) -> str:
        with clear_local_errors(str(self.path)):
            size = self.path.stat().st_size
            if size > MAX_LIST_BYTES:
                raise UserError(f"{self.path}: {size:,} bytes is too long for a list of masks; split it")
            try:
                return LocalStorage(self.path.parent).read(self.path.name).decode("utf-8-sig")
            except UnicodeDecodeError:
                raise UserError(
                    f"{self.path}: not a text file in UTF-8; a list of masks has one path or URL a line"
                ) from None

    def _check(self, name: str, number: int) -> None:
        where = f"{self.path}, line {number}: '{name}'"
        scheme = _SCHEME.match(name)
        if scheme and not (scheme[1] in REMOTE_SCHEMES and name.startswith(f"{scheme[1]}://")):
            known = ", ".join(f"{scheme}://" for scheme in REMOTE_SCHEMES)
            raise UserError(f"{where} is of the unknown kind '{scheme[1]}:'; use local paths or {known}")
        if odd := _SHELL.search(name):
            raise UserError(
                f"{where} looks like a command (it holds {odd[0]!r}), not like the name of a mask; this list is not to "
                "be trusted, or the file needs another name"
            )
        if scheme and ("?" in name or "#" in name):
            raise UserError(f"{where} has a query; its masks could change unseen. Give the plain address of the file")
        if scheme and not re.fullmatch(r"[^/]+//[^/]+/(.*/)?[^/]+", name):
            raise UserError(f"{where} is not the address of a file; a list of masks has one file a line")


@lru_cache(maxsize=64)
def _storage(folder: str) -> Storage:
    """One connection pool per folder and process, not one per file."""
    return open_storage(folder)
