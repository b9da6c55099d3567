"""USTAR tars: the header of a member to write, and the members of a tar in order, up to the first damaged one.

The header code is our own because Python's ``tarfile`` takes as long for the headers of a sample as everything else
of a build together.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from msldata.contract.format import MAX_KEY_BYTES, TARGET_SUFFIX

BLOCK_BYTES = tarfile.BLOCKSIZE
END_BYTES = 2 * BLOCK_BYTES
"""Zeros that close a tar."""

_NAME_BYTES = MAX_KEY_BYTES + len(TARGET_SUFFIX)
_MAX_MEMBER_BYTES = 0o77777777777
_OWNERS = b"".join((b"0000644\0", b"0000000\0", b"0000000\0"))  # mode, uid, gid
_TIME = b"".join((b"\0", b"00000000000\0"))  # end of the size field, time stamp
_KIND = b"".join((b"0", bytes(100), b"ustar\0", b"00", bytes(247)))  # regular file, no link, no owner's name
_CONSTANT_SUM = sum(_OWNERS + _TIME + _KIND) + 8 * ord(" ")  # the checksum counts its own field as spaces
_PADDING = [bytes(-size % BLOCK_BYTES) for size in range(BLOCK_BYTES)]


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
        DamagedTar: a broken header, a member that is not a regular file, a member that is cut off, or a missing end.
            By then, the members before it have been yielded.
    """
    position = 0
    while any(header := data[position : position + BLOCK_BYTES]):
        what = f"tar header at byte {position}"
        try:
            info = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
        except (tarfile.TarError, UnicodeDecodeError) as error:
            raise DamagedTar(what, "a member", str(error)) from None
        if not info.isreg():
            raise DamagedTar(what, "a regular file", f"{info.name} of type {info.type.decode('latin-1')!r}")
        start = position + BLOCK_BYTES
        if start + info.size > len(data):
            raise DamagedTar(f"tar member {info.name}", f"{info.size} bytes", f"{len(data) - start}, cut off")
        yield TarMember(info.name, start, info.size)
        position = start + info.size + -info.size % BLOCK_BYTES
    rest = data[position:]
    if len(rest) < END_BYTES or any(rest):
        found = "other bytes" if any(rest) else f"{len(rest)} bytes"
        raise DamagedTar(f"end of the tar, from byte {position}", f"{END_BYTES} empty bytes or more", found)


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
    if not rest or num_bytes < BLOCK_BYTES:
        found = f"{num_bytes} bytes" if rest else "other bytes"
        raise DamagedTar(f"end of the tar, from byte {end}", f"{END_BYTES} empty bytes", found)


def tar_header(name: str, num_bytes: int) -> bytes:
    """The 512-byte USTAR header of a regular file: mode 0644, owners and time stamp zero.

    Only the name, the size and the checksum differ from member to member.

    Raises:
        ValueError: the name is longer than 100 bytes or the member larger than 8 GiB, which USTAR cannot express.
    """
    encoded = name.encode()
    if len(encoded) > _NAME_BYTES or num_bytes > _MAX_MEMBER_BYTES:
        raise ValueError(f"{name}: {num_bytes} bytes under a name of {len(encoded)} bytes do not fit a USTAR header")
    size = b"%011o" % num_bytes
    checksum = _CONSTANT_SUM + sum(encoded) + sum(size)
    return b"".join((encoded.ljust(_NAME_BYTES, b"\0"), _OWNERS, size, _TIME, b"%06o\0 " % checksum, _KIND))


def tar_member_bytes(num_bytes: int) -> int:
    """The space that a member of ``num_bytes`` takes in a tar: its header, itself, and the padding to whole blocks."""
    return BLOCK_BYTES + -(-num_bytes // BLOCK_BYTES) * BLOCK_BYTES


def padding(num_bytes: int) -> bytes:
    """The zeros that follow a member of ``num_bytes`` up to the next whole block."""
    return _PADDING[num_bytes % BLOCK_BYTES]
