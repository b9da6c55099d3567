"""USTAR tars: the header of a member to write, and the members of a tar in order, up to the first damaged one.

The header code is our own because Python's ``tarfile`` takes as long for the headers of a sample as everything else
of a build together.
"""

from __future__ import annotations

import mmap
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

from msldata.contract.format import MAX_KEY_BYTES, TARGET_SUFFIX

BLOCK_BYTES = tarfile.BLOCKSIZE
END_BYTES = 2 * BLOCK_BYTES
"""Zeros that close a tar."""

_FIELD_BYTES = 100
_NAME_BYTES = MAX_KEY_BYTES + len(TARGET_SUFFIX)
_MAX_MEMBER_BYTES = 0o77777777777
_OWNERS = b"".join((b"0000644\0", b"0000000\0", b"0000000\0"))  # mode, uid, gid
_TIME = b"".join((b"\0", b"00000000000\0"))  # end of the size field, time stamp
_KIND = b"".join((b"0", bytes(100), b"ustar\0", b"00", bytes(247)))  # regular file, no link, no owner's name
_CONSTANT_SUM = sum(_OWNERS + _TIME + _KIND) + 8 * ord(" ")  # the checksum counts its own field as spaces
_PART_BYTES = 1 << 20
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
        if (plain := plain_member(header)) is None:
            try:
                info = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
            except (tarfile.TarError, UnicodeDecodeError) as error:
                raise DamagedTar(what, "a member", str(error)) from None
            if not info.isreg():
                raise DamagedTar(what, "a regular file", f"{info.name} of type {info.type.decode('latin-1')!r}")
            plain = info.name, info.size
        name, size = plain
        member = _whole_member(name, position + BLOCK_BYTES, size, len(data))
        yield member
        position = member.offset + _in_blocks(size)
    _check_end(data, position, END_BYTES)


def walk_any_tar(data: mmap.mmap) -> Iterator[TarMember]:
    """Yield the regular files of a tar that any program wrote: USTAR, GNU or PAX; folders are passed over.

    Raises:
        DamagedTar: as ``walk_tar`` does, and for links, devices and sparse files, whose bytes do not lie in the tar.
    """
    position, general = 0, None
    while any(header := data[position : position + BLOCK_BYTES]):
        plain = None if general is not None and general.pax_headers else plain_member(header)
        if plain is not None:
            member = _whole_member(plain[0], position + BLOCK_BYTES, plain[1], len(data))
            yield member
            position = member.offset + _in_blocks(member.length)
            continue
        try:  # a folder, a long name …: Python's reader takes the header and all that belongs to it
            if general is None:
                data.seek(position)
                general = tarfile.open(fileobj=data, mode="r:", encoding="utf-8")  # noqa: SIM115  (`data` stays open)
            else:
                general.offset = position
            info = general.next()
        except tarfile.TarError as error:
            packed = data[:4].startswith((b"\x1f\x8b", b"BZh", b"\x28\xb5\x2f\xfd"))
            found = "a compressed one, which must be unpacked first" if packed else str(error)
            raise DamagedTar("the tar", "a plain tar", found) from None
        if info is None:
            break  # that reader takes a broken header for the end
        if not info.isdir():
            if not info.isreg() or info.issparse():
                found = f"{info.name}, a link, device or sparse file"
                raise DamagedTar(f"tar header at byte {info.offset}", "a regular file", found)
            yield _whole_member(info.name, info.offset_data, info.size, len(data))
        position = general.offset
    _check_end(data, position, BLOCK_BYTES)


def plain_member(header: bytes) -> tuple[str, int] | None:
    """Name and size of a regular file from a header as nearly all are; None: a general reader must look at it."""
    if len(header) < BLOCK_BYTES or header[156:157] not in (b"0", b"\0") or header[345]:
        return None
    size, checksum = header[124:135], header[148:154]
    name = header[:_FIELD_BYTES].partition(b"\0")[0]
    if not size.isdigit() or not checksum.isdigit() or header[135] not in b"\0 " or name.endswith(b"/"):
        return None
    try:
        if int(checksum, 8) != sum(header) - sum(header[148:156]) + 8 * ord(" "):
            return None
        return name.decode(), int(size, 8)
    except ValueError:  # no octal digits, or no UTF-8
        return None


def _whole_member(name: str, offset: int, size: int, num_bytes: int) -> TarMember:
    if not 0 <= size <= num_bytes - offset:
        raise DamagedTar(f"tar member {name}", f"{size} bytes", f"{num_bytes - offset}, cut off")
    return TarMember(name, offset, size)


def _check_end(data: bytes | mmap.mmap, position: int, least: int) -> None:
    """The end of a whole tar is nothing but zeros."""
    num_bytes = len(data) - position
    other = any(data[place : place + _PART_BYTES].strip(b"\0") for place in range(position, len(data), _PART_BYTES))
    if other or num_bytes < least:
        found = "other bytes" if other else f"{max(0, num_bytes)} bytes"
        raise DamagedTar(f"end of the tar, from byte {position}", f"{END_BYTES} empty bytes or more", found)


def _in_blocks(num_bytes: int) -> int:
    return -(-num_bytes // BLOCK_BYTES) * BLOCK_BYTES


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
    return BLOCK_BYTES + _in_blocks(num_bytes)


def padding(num_bytes: int) -> bytes:
    """The zeros that follow a member of ``num_bytes`` up to the next whole block."""
    return _PADDING[num_bytes % BLOCK_BYTES]
