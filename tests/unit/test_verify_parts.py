"""What `verify` says of copies, of bytes that no sample holds, and without decoding."""

from __future__ import annotations

import io
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from msldata.build.index_tars import index_shards
from msldata.contract.manifest import read_manifest
from msldata.contract.publish import write_manifest
from msldata.inspect.describe import describe
from msldata.inspect.verify import verify
from msldata.storage import LocalStorage
from tests.smallshards import photo, write_images
from tests.tinydata import jpeg


def tar(folder: Path, **members: bytes) -> Path:
    """A tar of another program; members are named ``a_jpg`` for ``a.jpg``."""
    path = folder / "x-train-000000.tar"
    with tarfile.open(path, "w") as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name.replace("_", "."))
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    index_shards(folder, num_workers=1)
    return path


def test_copies_are_named_beside_the_first_and_need_no_repair(tmp_path):
    """Unless something is damaged, too: it may be why they are alike."""
    same = {f"{key}_jpg": jpeg(0) for key in "acd"}
    members = {**same, "b_jpg": jpeg(1), **{f"{key}_cls": b"cat" for key in "abcd"}}
    tar(tmp_path, **dict(sorted(members.items())))
    found = verify(tmp_path, num_workers=1)
    first = "the same bytes as a in x-train-000000.tar"
    assert [(one.key, one.what, one.found) for one in found.findings] == [("c", "image", first), ("d", "image", first)]
    assert found.next_step.startswith("take one image of each pair out of the source")
    storage = LocalStorage(tmp_path)
    manifest = read_manifest(storage)
    write_manifest(storage, replace(manifest, counts={**manifest.counts, "objects": 9}))
    found = verify(tmp_path, num_workers=1)
    assert len(found.findings) == 3 and "take one image" not in found.next_step
    write_manifest(storage, replace(manifest, plan="another"))
    assert "shard and plan" in [one.what for one in verify(tmp_path, num_workers=1).findings]


@pytest.mark.parametrize("decode", [True, False])
def test_pixels_that_are_missing_are_found_by_decoding_alone(tmp_path, decode):
    whole = photo(1, 64, 64)
    cut = whole[: len(whole) // 2] + b"\xff\xd9"
    write_images(tmp_path, [2], {"s000001": cut}, size=(64, 64))
    found = [finding.what for finding in verify(tmp_path, num_workers=1, decode=decode).findings]
    assert ("decoding the image" in found) == decode


def test_a_byte_that_no_sample_holds_is_found_by_the_digest(tmp_path):
    """In the tar of another program, beside its samples."""
    path = tar(tmp_path, a_jpg=jpeg(0), a_cls=b"cat", a_txt=b"a caption")
    assert not verify(tmp_path, num_workers=1).findings
    path.write_bytes(path.read_bytes().replace(b"a caption", b"A caption"))
    assert [finding.what for finding in verify(tmp_path, num_workers=1).findings] == ["sha256"]


def test_as_many_pairs_are_named_as_are_asked_for(tmp_path):
    """Of ten classes of one photograph there are 45."""
    tar(tmp_path, a_jpg=jpeg(0), a_cls=";".join("abcdefghij").encode())
    assert [len(describe(tmp_path, max_pairs=most).pairs) for most in (0, 9, 99)] == [0, 9, 45]
