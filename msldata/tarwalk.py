"""The members of a tar, in order, up to its end or to the first thing that is not right."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

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


def walk_any_tar(path: Path) -> Iterator[TarMember]:
    """Yield the regular files of a tar that any program wrote: USTAR, GNU or PAX; folders are passed over.

    Raises:
        DamagedTar: as ``walk_tar`` does, and for links, devices and sparse files, whose bytes do not lie in the tar.
    """
    size = path.stat().st_size
    try:
        with closing(tarfile.open(path, "r:", encoding="utf-8")) as tar:
            for info in tar:
                if info.isdir():
                    continue
                if not info.isreg() or info.issparse():
                    raise DamagedTar(
                        f"tar header at byte {info.offset}",
                        "a regular file",
                        f"{info.name}, a link, device or sparse file",
                    )
                if info.offset_data + info.size > size:
                    rest = size - info.offset_data
                    raise DamagedTar(f"tar member {info.name}", f"{info.size} bytes", f"{rest}, cut off")
                yield TarMember(info.name, info.offset_data, info.size)
            end = tar.offset
    except tarfile.TarError as error:
        with open(path, "rb") as file:
            packed = file.read(4).startswith((b"\x1f\x8b", b"BZh", b"\x28\xb5\x2f\xfd"))
        found = "a compressed one, which must be unpacked first" if packed else str(error)
        raise DamagedTar("the tar", "a plain tar", found) from None
    # Python's reader takes a broken header for the end; the end of a whole tar is nothing but zeros.
    with open(path, "rb") as file:
        file.seek(end)
        rest, num_bytes = True, 0
        while block := file.read(1 << 20):
            rest, num_bytes = rest and not any(block), num_bytes + len(block)
    if not rest or num_bytes < _BLOCK:
        found = f"{num_bytes} bytes" if rest else "other bytes"
        raise DamagedTar(f"end of the tar, from byte {end}", f"{_END} empty bytes", found)
