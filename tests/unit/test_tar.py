"""Walking through tars: our reader of plain headers says what Python's `tarfile` says."""

from __future__ import annotations

import io
import mmap
import random
import tarfile
from pathlib import Path

import pytest

from msldata.contract.tar import DamagedTar, TarMember, walk_any_tar, walk_tar


def written(form: int, seed: int) -> bytes:
    """A tar of 40 members: folders, long names, letters beyond ASCII, times of fractions, empty files."""
    draw = random.Random(seed)
    output = io.BytesIO()
    more = {"comment": "for all"} if form == tarfile.PAX_FORMAT and seed % 2 else None
    with tarfile.open(fileobj=output, mode="w", format=form, pax_headers=more) as tar:
        for number in range(40):
            name = draw.choice(("{}.jpg", "deep/er/{}.json", "folder" * 12 + "/{}.cls", "schön{}.txt")).format(number)
            if form != tarfile.USTAR_FORMAT and draw.random() < 0.2:
                name = "very/" * 60 + name
            info = tarfile.TarInfo(name)
            info.mtime = draw.choice((0, 1_700_000_000, 1_700_000_000.5)) if form == tarfile.PAX_FORMAT else 5
            if draw.random() < 0.1:
                info.type = tarfile.DIRTYPE
                tar.addfile(info)
                continue
            content = draw.randbytes(draw.choice((0, 1, 511, 512, 513, 3000)))
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return output.getvalue()


def walked(data: bytes, folder: Path) -> list[TarMember]:
    (folder / "x.tar").write_bytes(data)
    with open(folder / "x.tar", "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        return list(walk_any_tar(mapped))


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("seed", range(6))
def test_as_tarfile_has_it(form, seed, tmp_path):
    data = written(form, seed)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        wanted = [TarMember(info.name, info.offset_data, info.size) for info in tar if info.isreg()]
    assert walked(data, tmp_path) == wanted


def test_the_strict_reader_has_it_too():
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(9):
            info = tarfile.TarInfo("folder/" * 20 * (number % 2) + f"{number}.jpg")  # long ones have a prefix
            info.size = 100 * number
            tar.addfile(info, io.BytesIO(bytes(info.size)))
    with tarfile.open(fileobj=io.BytesIO(output.getvalue())) as tar:
        wanted = [TarMember(info.name, info.offset_data, info.size) for info in tar]
    assert list(walk_tar(output.getvalue())) == wanted


def test_names_that_a_header_for_all_members_changes(tmp_path):
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"path": "renamed"}) as tar:
        tar.addfile(tarfile.TarInfo("one.jpg"))
    assert [member.name for member in walked(output.getvalue(), tmp_path)] == ["renamed"]


@pytest.mark.parametrize("seed", range(200))
def test_a_changed_header_byte_is_refused_or_harmless(seed, tmp_path):
    """Whatever byte of a header changes: no other members than before, except that the walk may stop with an error."""
    data = bytearray(written(tarfile.GNU_FORMAT, 1))
    before = walked(bytes(data), tmp_path)
    draw = random.Random(seed)
    header = draw.choice(before).offset - tarfile.BLOCKSIZE
    place = header + draw.randrange(tarfile.BLOCKSIZE)
    data[place] ^= 1 << draw.randrange(8)
    try:
        after = walked(bytes(data), tmp_path)
    except DamagedTar:
        return
    assert after == before
