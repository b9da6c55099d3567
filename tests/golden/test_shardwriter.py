"""One shard: headers byte for byte as ``tarfile`` writes them, members, index, and failures that leave nothing."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import os
import resource
import subprocess
import tarfile
import threading
import zlib

import numpy as np
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from msldata.build.writer import ShardWriter
from msldata.contract import format as contract
from msldata.contract.manifest import IMAGES, KEEP_MASKS
from msldata.contract.tar import tar_header
from msldata.errors import StorageError
from msldata.storage import RemoteStorage, open_storage

NAME = "voc2007-test-000000.tar"
ROW = {"width": 5, "height": 4, "positives": [1], "ignored": [], "objects": []}


class MemoryStorage(RemoteStorage):
    """A remote folder without a network."""

    def __init__(self):
        import obstore.store

        super().__init__("memory://test", obstore.store.MemoryStore())


def members(data: bytes) -> list[tuple[str, bytes]]:
    return [(".jpg", data), (".json", b"{}"), (".target.npy", contract.encode_target([1], 3))]


def write(out, images, **options):
    with ShardWriter(out, NAME, kind=IMAGES, plan="p") as writer:
        for number, data in enumerate(images):
            writer.add(f"{number:06d}", members(data), ROW)
        return writer.publish(**options)


@given(
    name=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0/"), min_size=1, max_size=25),
    size=st.integers(0, 0o77777777777),
)
def test_headers_equal_tarfile(name, size):
    entry = tarfile.TarInfo(name)
    entry.size = size
    assert tar_header(name, size) == entry.tobuf(tarfile.USTAR_FORMAT, "utf-8")


def test_headers_refuse_what_ustar_cannot_say():
    assert len(tar_header("x" * 100, 1)) == 512
    for name, size in (("x" * 101, 1), ("é" * 51, 1), ("x", 0o77777777777 + 1)):
        with pytest.raises(ValueError, match="do not fit a USTAR header"):
            tar_header(name, size)


@pytest.mark.parametrize("sizes", [[0, 1, 511, 512, 513, 100_000], [1]])
def test_members_index_and_digest(tmp_path, sizes):
    images = [os.urandom(size) for size in sizes]
    info = write(open_storage(tmp_path), images)
    data = (tmp_path / NAME).read_bytes()
    assert (info.name, info.num_samples, info.num_bytes) == (NAME, len(images), len(data))
    assert info.sha256 == hashlib.sha256(data).hexdigest()
    with tarfile.open(tmp_path / NAME) as tar:
        assert [entry.name for entry in tar] == [
            f"{number:06d}{suffix}" for number in range(len(images)) for suffix in (".jpg", ".json", ".target.npy")
        ]
        assert {(entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname, entry.mode) for entry in tar} == {
            (0, 0, 0, "", "", 0o644)
        }
    index = contract.decode_index(IMAGES, (tmp_path / info.index_name).read_bytes(), "index").to_pylist()
    assert [row["key"] for row in index] == [f"{number:06d}" for number in range(len(images))]
    for row, image in zip(index, images, strict=True):
        assert data[row["offset"] : row["offset"] + row["length"]] == image
        assert row["crc32"] == zlib.crc32(image)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([NAME, info.index_name])


def test_other_readers_agree(tmp_path):
    write(open_storage(tmp_path), [b"first", b"second"])
    listing = subprocess.run(["tar", "tf", tmp_path / NAME], capture_output=True, text=True, check=True)
    assert (len(listing.stdout.splitlines()), listing.stderr) == (6, "")
    first, second = webdataset.WebDataset(str(tmp_path / NAME), shardshuffle=False)
    assert (first["jpg"], second["jpg"], first["__key__"]) == (b"first", b"second", "000000")
    assert np.load(io.BytesIO(first["target.npy"])).tolist() == [0, 1, 0]


def test_keep_mask_shards(tmp_path):
    with ShardWriter(open_storage(tmp_path), NAME, kind=KEEP_MASKS, plan="p") as writer:
        row = {"width": 8, "height": 8, "hole_fraction": 0.5, "source": "00001.png"}
        writer.add("00001", [(".png", b"png"), (".json", b"{}")], row)
        info = writer.publish()
    (found,) = contract.decode_index(KEEP_MASKS, (tmp_path / info.index_name).read_bytes(), "index").to_pylist()
    assert (found["hole_fraction"], found["source"], found["length"]) == (0.5, "00001.png", 3)


def test_the_report_travels_with_the_index(tmp_path):
    info = write(open_storage(tmp_path), [b"x"], report={"transcoded": 3})
    data = (tmp_path / info.index_name).read_bytes()
    assert contract.decode_shard_metadata(data, "index") == (info, "p")
    assert contract.decode_shard_report(data, "index") == {"transcoded": 3}


def test_equal_input_equal_bytes_wherever_it_goes(tmp_path):
    write(open_storage(tmp_path / "a"), [b"x" * 700, b"y"])
    remote = MemoryStorage()
    info = write(remote, [b"x" * 700, b"y"])
    assert [entry.name for entry in remote.list_files()] == [info.index_name, NAME]
    for name in (NAME, info.index_name):
        assert remote.read(name) == (tmp_path / "a" / name).read_bytes()


def test_a_shard_that_is_not_published_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    for out in (open_storage(tmp_path / "out"), MemoryStorage()):
        with pytest.raises(KeyError), ShardWriter(out, NAME, kind=IMAGES, plan="p") as writer:
            writer.add("000000", members(b"x"), ROW)
            raise KeyError
        assert out.list_files() == []
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    write(MemoryStorage(), [b"x"])
    assert list((tmp_path / "temporary").iterdir()) == []


def test_an_older_index_never_vouches_for_a_newer_tar(tmp_path, monkeypatch):
    out = open_storage(tmp_path)
    info = write(out, [b"x"])
    put = type(out).put

    def fail_at_the_index(self, name, data):
        if name.endswith(".parquet"):
            raise StorageError("disk full")
        put(self, name, data)

    monkeypatch.setattr(type(out), "put", fail_at_the_index)
    with pytest.raises(StorageError):
        write(out, [b"y"])
    assert not out.exists(info.index_name)


def test_an_older_index_is_gone_before_the_newer_tar_is_there(tmp_path, monkeypatch):
    """Whoever is killed between the two must not leave them together."""
    out = open_storage(tmp_path)
    info = write(out, [b"x"])
    put, beside = type(out).put, []

    def look(self, name, data):
        put(self, name, data)
        beside.append((name, out.exists(info.index_name)))

    monkeypatch.setattr(type(out), "put", look)
    write(out, [b"y"])
    assert beside == [(NAME, False), (info.index_name, True)]


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    for call in ("write", "fsync"):
        for image in (b"x", bytes(5_000_000)):  # written at the end, and by the thread
            with monkeypatch.context() as patch:
                patch.setattr(os, call, full)
                with pytest.raises(StorageError, match=rf"{NAME}.*: the disk is full"):
                    write(open_storage(tmp_path), [image])
            assert list(tmp_path.iterdir()) == []
            assert not [thread for thread in threading.enumerate() if thread.name == "write_chunks"]


def test_a_write_that_failed_in_the_thread_is_never_forgotten(tmp_path, monkeypatch):
    """Room may come back before the end: the hole in the file stays."""
    real, failed = os.write, []

    def full_once(descriptor, data):
        if not failed:
            failed.append(descriptor)
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", full_once)
    with pytest.raises(StorageError, match="the disk is full"):
        write(open_storage(tmp_path), [bytes(1_100_000)])  # one chunk for the thread, the rest at the end
    assert list(tmp_path.iterdir()) == []


def test_a_short_write_is_completed(tmp_path, monkeypatch):
    """The kernel may take less than it is given; nothing of a sample may be lost then."""
    real = os.write
    images = [os.urandom(5000), os.urandom(2_500_000), b"y"]
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:70_000]))
    info = write(open_storage(tmp_path / "short"), images)
    monkeypatch.undo()
    assert write(open_storage(tmp_path / "whole"), images) == info
    assert (tmp_path / "short" / NAME).read_bytes() == (tmp_path / "whole" / NAME).read_bytes()


@pytest.mark.parametrize("refuses", ["to be set", "to write"])
def test_file_systems_without_direct_writes(tmp_path, monkeypatch, refuses):
    images = [os.urandom(1_700_000) for _ in range(3)]
    expected = write(open_storage(tmp_path / "direct"), images)
    real_fcntl, real_write = fcntl.fcntl, os.write
    refused = []

    def refuse_to_set(descriptor, command, argument=0):
        if command == fcntl.F_SETFL and argument & os.O_DIRECT:
            refused.append(descriptor)
            raise OSError(errno.EINVAL, "Invalid argument")
        return real_fcntl(descriptor, command, argument)

    def refuse_to_write(descriptor, data):
        if real_fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            refused.append(descriptor)
            raise OSError(errno.EINVAL, "Invalid argument")
        return real_write(descriptor, data)

    if refuses == "to be set":
        monkeypatch.setattr(fcntl, "fcntl", refuse_to_set)
    else:
        monkeypatch.setattr(os, "write", refuse_to_write)
    assert write(open_storage(tmp_path / "cached"), images) == expected
    assert len(refused) == 1


@pytest.mark.parametrize("size", [2**20 - 512 - 1, 2**20 - 512, 2**20 - 512 + 1, 2**20 - 511, 3 * 2**20, 9_999_999])
def test_images_at_the_edges_of_a_chunk(tmp_path, size):
    images = [os.urandom(size), os.urandom(1000)]
    info = write(open_storage(tmp_path), images)
    data = (tmp_path / NAME).read_bytes()
    assert (info.num_bytes, info.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    with tarfile.open(tmp_path / NAME) as tar:
        assert [tar.extractfile(entry).read() for entry in tar if entry.name.endswith(".jpg")] == images


def test_a_file_size_limit_is_said(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(StorageError, match="file too large"):
            write(open_storage(tmp_path), [bytes(60_000), bytes(60_000)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        write(open_storage(tmp_path / "file" / "out"), [b"x"])
