"""Walking a tar: the members with their places, up to the first thing that is wrong, which is named."""

from __future__ import annotations

import bz2
import gzip
import io
import mmap
import re
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from msldata.contract.tar import (
    END_BYTES,
    DamagedTar,
    TarMember,
    padding,
    tar_header,
    tar_member_bytes,
    walk_any_tar,
    walk_tar,
)

FILES = {"a.jpg": b"photograph", "a.json": b"{}", "empty": b"", "whole": b"x" * 512, "more": b"y" * 513}


def ours(files: dict[str, bytes] = FILES) -> bytes:
    parts = [tar_header(name, len(data)) + data + padding(len(data)) for name, data in files.items()]
    return b"".join(parts) + bytes(END_BYTES)


def members(walk: Iterator[TarMember]) -> tuple[list[TarMember], str]:
    """What was walked, and what then was wrong."""
    found = []
    try:
        for member in walk:
            found.append(member)
    except DamagedTar as error:
        assert str(error) == f"{error.what}: expected {error.expected}, found {error.found}"
        return found, str(error)
    return found, ""


def walk_file(data: bytes, folder: Path) -> tuple[list[TarMember], str]:
    (folder / "x.tar").write_bytes(data)
    with open(folder / "x.tar", "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        return members(walk_any_tar(mapped))


@pytest.mark.parametrize("extra", [0, 1, 9216, 1 << 20])
def test_members_and_where_their_bytes_are(tmp_path: Path, extra: int):
    data = ours() + bytes(extra)
    expected, position = [], 512
    for name, content in FILES.items():
        expected.append(TarMember(name, position, len(content)))
        assert data[position : position + len(content)] == content
        position += tar_member_bytes(len(content))
    assert members(walk_tar(data)) == walk_file(data, tmp_path) == (expected, "")
    assert members(walk_tar(bytes(END_BYTES))) == ([], "")


def test_the_space_of_a_member():
    assert [tar_member_bytes(size) for size in (0, 1, 512, 513)] == [512, 1024, 1024, 1536]
    assert [len(padding(size)) for size in (0, 1, 511, 512, 513)] == [0, 511, 1, 0, 511]


def misnamed(tar: bytes) -> bytes:
    """The first name is no UTF-8, with the checksum that fits."""
    header = bytearray(tar[:512])
    header[0:1], header[148:156] = b"\xff", b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + tar[512:]


@pytest.mark.parametrize(
    ("damage", "num_members", "says"),
    [
        (
            lambda tar: tar[:-1],
            5,
            "end of the tar, from byte 5120: expected 1024 empty bytes or more, found 1023 bytes",
        ),
        (
            lambda tar: tar[:-END_BYTES],
            5,
            "end of the tar, from byte 5120: expected 1024 empty bytes or more, found 0 b",
        ),
        (
            lambda tar: tar + b"x",
            5,
            "end of the tar, from byte 5120: expected 1024 empty bytes or more, found other bytes",
        ),
        (lambda tar: tar[:4200], 4, "tar member more: expected 513 bytes, found 104, cut off"),
        (
            lambda tar: tar[:1024] + b"b" + tar[1025:],
            1,
            "tar header at byte 1024: expected a member, found bad checksum",
        ),
        (
            lambda tar: misnamed(tar),
            0,
            "tar header at byte 0: expected a member, found 'utf-8' codec can't decode byte",
        ),
        (lambda tar: b"\xff" * 512, 0, "tar header at byte 0: expected a member, found "),
        (lambda tar: b"", 0, "end of the tar, from byte 0: expected 1024 empty bytes or more, found 0 bytes"),
    ],
)
def test_what_is_wrong_with_one_of_ours(damage: Callable[[bytes], bytes], num_members: int, says: str):
    found, problem = members(walk_tar(damage(ours())))
    assert len(found) == num_members and problem.startswith(says), problem


def made(format: int, *extra: tarfile.TarInfo, name: str = "b.jpg") -> bytes:
    """A tar as Python writes it: what is given, then one file."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as tar:
        for info in extra:
            tar.addfile(info)
        info = tarfile.TarInfo(name)
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    return file.getvalue()


def of_type(kind: bytes, name: str = "odd") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "elsewhere"
    return info


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes):
    data = made(tarfile.USTAR_FORMAT, of_type(kind))
    found, problem = members(walk_tar(data))
    assert found == []
    assert problem == f"tar header at byte 0: expected a regular file, found odd of type {kind.decode()!r}"
    found, problem = walk_file(data, tmp_path)
    assert found == []
    assert problem == "tar header at byte 0: expected a regular file, found odd, a link, device or sparse file"


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tars_of_other_programs(tmp_path: Path, format: int):
    name = "a/" * 40 + "ü" * 30 + ".jpg" if format != tarfile.USTAR_FORMAT else "b.jpg"
    data = made(format, of_type(tarfile.DIRTYPE, "folder"), name=name)
    found, problem = walk_file(data, tmp_path)
    assert not problem and [member.name for member in found] == [name]
    assert data[found[0].offset : found[0].offset + 3] == b"abc" and found[0].length == 3


@pytest.mark.parametrize(
    ("damage", "num_members", "says"),
    [
        (lambda tar: tar[:4200], 4, "tar member more: expected 513 bytes, found 104, cut off"),
        (
            lambda tar: tar[:-END_BYTES],
            5,
            r"end of the tar, from byte \d+: expected 1024 empty bytes or more, found 0 bytes",
        ),
        (
            lambda tar: tar + b"x",
            5,
            r"end of the tar, from byte \d+: expected 1024 empty bytes or more, found other bytes",
        ),
        (
            lambda tar: tar + bytes(1 << 20) + b"x" + bytes(1 << 20),
            5,
            r"end of the tar, from byte \d+: expected 1024 empty bytes or more, found other bytes",
        ),
        (lambda tar: tar[:1024] + b"b" + tar[1025:], 1, r"end of the tar, from byte \d+: .* found other bytes"),
        (gzip.compress, 0, "the tar: expected a plain tar, found a compressed one, which must be unpacked first"),
        (bz2.compress, 0, "the tar: expected a plain tar, found a compressed one, which must be unpacked first"),
        (lambda tar: b"\x28\xb5\x2f\xfd" + bytes(99), 0, "the tar: expected a plain tar, found a compressed one"),
        (lambda tar: b"no tar at all " * 80, 0, "the tar: expected a plain tar, found (?!a compressed)."),
    ],
)
def test_what_is_wrong_with_one_of_others(
    tmp_path: Path, damage: Callable[[bytes], bytes], num_members: int, says: str
):
    found, problem = walk_file(damage(ours()), tmp_path)
    assert len(found) == num_members and re.match(says, problem), problem


def test_one_block_of_zeros_is_end_enough_for_other_programs(tmp_path: Path):
    assert walk_file(ours()[:-512], tmp_path)[1] == ""
    assert "found 511 bytes" in walk_file(ours()[:-513], tmp_path)[1]


def test_a_name_may_fill_its_field():
    name = "x" * 96 + ".jpg"
    [member] = walk_tar(ours({name: b"photograph"}))
    assert member.name == name


def with_field(header: bytes, place: int, content: bytes) -> bytes:
    """A header with another field, and the checksum that goes with it."""
    changed = header[:place] + content + header[place + len(content) :]
    return changed[:148] + b"%06o\0 " % (sum(changed) - sum(changed[148:156]) + 8 * ord(" ")) + changed[156:]


def test_owners_that_are_no_numbers_do_no_harm(tmp_path: Path):
    """Nothing that is read depends on who wrote the tar, or when."""
    tar = with_field(ours()[:512], 108, b"nobody\0\0") + ours()[512:]
    for walked, what in (members(walk_tar(tar)), walk_file(tar, tmp_path)):
        assert not what and [member.name for member in walked] == list(FILES)


@pytest.mark.parametrize("place", range(148, 154))
def test_every_digit_of_a_checksum_counts(tmp_path: Path, place: int):
    tar = bytearray(ours())
    tar[place] ^= 1
    for walked, what in (members(walk_tar(bytes(tar))), walk_file(bytes(tar), tmp_path)):
        assert not walked and what


def test_a_size_may_fill_its_field():
    """Twelve digits without an end, as old programs write them, and no time stamp."""
    header = bytearray(tar_header("a", 10))
    header[124:148] = b"000000000012" + b" " * 12
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    data = bytes(header) + b"photograph" + padding(10) + bytes(END_BYTES)
    assert list(walk_tar(data)) == [TarMember("a", 512, 10)]
