"""The members of a tar in memory, in order, up to its end or to the first thing that is not right."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

_BLOCK = tarfile.BLOCKSIZE
_END = 2 * _BLOCK


class DamagedTar(ValueError):
    """The walk cannot go on: ``what`` was looked at, ``expected`` and ``found``."""

    def __init__(self, what: str, expected: str, found: str):
        super().__init__(f"{what}: expected {expected}, found {found}")
        self.what = what
        self.expected = expected
        self.found = found


@dataclass(frozen=True, slots=True)
class TarMember:
    """One regular file: its name and where its bytes are."""

    name: str
    offset: int
    length: int


def walk_tar(data: bytes) -> Iterator[TarMember]:
    """Yield the members of a plain USTAR tar. Header checksums are checked, names are never opened.

    Raises:
        DamagedTar: a broken header, a member that is no regular file, a member that is cut off, or a missing end. The
            members before it have been yielded by then.
    """
    position = 0
    while any(header := data[position : position + _BLOCK]):
        what = f"tar header at byte {position}"
        try:
            info = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
        except (tarfile.TarError, UnicodeDecodeError) as error:
            raise DamagedTar(what, "a member", str(error)) from None
        if not info.isreg():
            raise DamagedTar(what, "a regular file", f"{info.name} of type {info.type.decode('latin-1')!r}")
        start = position + _BLOCK
        if start + info.size > len(data):
            raise DamagedTar(f"tar member {info.name}", f"{info.size} bytes", f"{len(data) - start}, cut off")
        yield TarMember(info.name, start, info.size)
        position = start + info.size + -info.size % _BLOCK
    rest = data[position:]
    if len(rest) < _END or any(rest):
        found = "other bytes" if any(rest) else f"{len(rest)} bytes"
        raise DamagedTar(f"end of the tar, from byte {position}", f"{_END} empty bytes or more", found)
