"""Input that was made to do harm: refused by one clear message, with nothing run, nothing unpacked and no memory taken.

One place for all of it; what each reader makes of merely damaged files is tested beside that reader.
"""

from __future__ import annotations

import io
import pickle
import stat
import struct
import tarfile
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from msldata.build.image import prepare_image
from msldata.build.writer import ShardWriter
from msldata.contract.keepmask import decode_gray
from msldata.contract.manifest import IMAGES, Manifest, shard_name
from msldata.contract.publish import write_manifest
from msldata.errors import BadInputError, UserError
from msldata.inspect.verify import verify
from msldata.masks.sources import open_mask_source
from msldata.sources.voc import parse_objects
from msldata.storage import LocalStorage, open_storage
from tests.smallshards import photo
from tests.tinydata import build_masks

MEMORY_LIMIT = 64 << 20
"""Bytes that refusing may take: far below what any of the bombs would unpack to."""


@pytest.fixture
def little_memory():
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MEMORY_LIMIT, f"{peak:,} bytes were allocated"


@pytest.fixture
def booby_trap(tmp_path):
    """An object that makes a file when it is unpickled."""
    mark = tmp_path / "exploded"

    class Trap:
        def __reduce__(self):
            return Path.touch, (mark,)

    yield Trap()
    assert not mark.exists(), "the pickle was loaded"


def png_bomb(side: int) -> bytes:
    """A PNG of ``side`` × ``side`` white pixels, a thousand times smaller than they are."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    packer = zlib.compressobj(9)
    row = b"\0" + b"\xff" * side
    body = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def pickled_npy(trap: object) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([trap], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def refused(source: Path, tmp_path: Path, reason: str, error: type[UserError] = UserError) -> None:
    """The whole build stops with ``reason``, and has written nothing."""
    with pytest.raises(error, match=reason):
        build_masks(open_mask_source(source), open_storage(tmp_path / "out"), num_workers=1, polarity="hole-white")
    assert not (tmp_path / "out").exists()


# --- bombs ------------------------------------------------------------------------------------------------------------


def test_entity_bomb_in_an_annotation(little_memory):
    levels = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
    bomb = f'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY l0 "boom">{levels}]><annotation>&l9;</annotation>'
    with pytest.raises(BadInputError, match="document type declarations, entities"):
        parse_objects(bomb.encode(), "bomb.xml")


def test_an_annotation_that_names_a_file_of_this_machine():
    steal = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>'
    with pytest.raises(BadInputError, match="document type declarations, entities"):
        parse_objects(steal.encode(), "steal.xml")


def test_decompression_bomb_among_the_photographs(little_memory):
    bomb = png_bomb(13_400)
    assert len(bomb) < 400_000
    with pytest.raises(ValueError, match="more than 178 million pixels"):
        prepare_image(bomb)


def test_decompression_bomb_among_the_masks(little_memory, tmp_path):
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "0.png").write_bytes(png_bomb(8200))
    refused(tmp_path / "masks", tmp_path, "8200×8200 pixels is too large for a mask", BadInputError)


def test_a_png_with_more_behind_it_than_its_header_says(little_memory):
    bomb = bytearray(png_bomb(8000))
    bomb[16:24] = struct.pack(">II", 64, 64)
    bomb[29:33] = struct.pack(">I", zlib.crc32(bomb[12:29]))
    with pytest.raises(BadInputError, match="cannot be decoded"):
        decode_gray(bytes(bomb), "m")


def test_zip_bomb(little_memory, tmp_path):
    with (
        zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("0.png", "w") as file,
    ):
        for _ in range(100):
            file.write(bytes(1 << 20))
    refused(tmp_path / "bomb.zip", tmp_path, "104,857,600 bytes unpacked is too large for a mask", BadInputError)


def test_gzip_bomb(little_memory, tmp_path, monkeypatch):
    monkeypatch.setattr("msldata.masks.sources.MAX_UNPACKED_BYTES", 10 << 20)
    with tarfile.open(tmp_path / "bomb.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("0.png")
        member.size = 20 << 20
        archive.addfile(member, io.BytesIO(bytes(member.size)))
    refused(tmp_path / "bomb.tar.gz", tmp_path, "unpacks to more than 10,485,760 bytes")


# --- archives that reach outside --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../evil.png", "a/../../evil.png", "/etc/evil.png", "C:/evil.png", "..\\evil.png"])
@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_members_outside_of_the_archive(kind, name, tmp_path):
    path = tmp_path / f"masks.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, b"x")
    else:
        with tarfile.open(path, "w:gz" if kind == "tar.gz" else "w") as archive:
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    refused(path, tmp_path, "leads outside of the archive")
    assert not list(tmp_path.rglob("evil.png"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_links_devices_and_pipes_in_a_tar(kind, tmp_path):
    with tarfile.open(tmp_path / "masks.tar", "w") as archive:
        member = tarfile.TarInfo("0.png")
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member)
    refused(tmp_path / "masks.tar", tmp_path, r"member '0\.png' is a link, a device or a pipe, not a file")


def test_a_link_in_a_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "masks.zip", "w") as archive:
        link = zipfile.ZipInfo("0.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    refused(tmp_path / "masks.zip", tmp_path, r"member '0\.png' is a link")


# --- names that are commands ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("pipe:touch exploded", "of the unknown kind 'pipe:'"),
        ("pipe:curl https://host/0.png|tee exploded", "of the unknown kind 'pipe:'"),
        ("file:///etc/passwd", "of the unknown kind 'file:'"),
        ("$(touch exploded).png", "looks like a command"),
        ("`touch exploded`.png", "looks like a command"),
        ("0.png; touch exploded", "looks like a command"),
        ("| touch exploded", "looks like a command"),
        ("--checkpoint-action=exec=sh", "looks like a command"),
    ],
)
def test_a_list_that_names_commands(line, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "masks.txt").write_text(f"# masks\n{line}\n")
    with pytest.raises(UserError, match=r"masks\.txt, line 2: ") as caught:
        open_mask_source(tmp_path / "masks.txt").names()
    assert reason in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["masks.txt"]


# --- pickles ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".npy", ".png"])
def test_a_pickle_as_a_mask(suffix, booby_trap, tmp_path):
    (tmp_path / "masks").mkdir()
    for number, data in enumerate((pickled_npy(booby_trap), pickle.dumps(booby_trap))):
        (tmp_path / "masks" / f"0{suffix}").write_bytes(data)
        refused(tmp_path / "masks", tmp_path, r"0\.(npy|png): not an image", BadInputError), number


def test_a_pickled_target_in_a_shard(booby_trap, tmp_path):
    storage = LocalStorage(tmp_path / "shards")
    with ShardWriter(storage, shard_name("small", "train", 0), kind=IMAGES, plan="test") as writer:
        row = {"width": 60, "height": 40, "positives": [0], "ignored": [], "objects": []}
        meta = b'{"width":60,"height":40,"labels":["cat"],"ignored":[],"objects":[]}'
        members = [(".jpg", photo(0)), (".json", meta), (".target.npy", pickled_npy(booby_trap))]
        writer.add("s0", members, row)
        info = writer.publish()
    histogram = {"cat": {"positive": 1, "ignored": 0}}
    manifest = Manifest(
        kind=IMAGES, dataset="small", split="train", classes=("cat",), shards=(info,), label_histogram=histogram,
        plan="test",
    )  # fmt: skip
    write_manifest(storage, manifest)
    [finding] = [item for item in verify(storage, num_workers=1).findings if "target" in item.what]
    assert (finding.key, finding.expected) == ("s0", "an array without pickled objects")


def test_a_pickled_target_is_never_read_by_training(booby_trap, tmp_path):
    from msltrain.stream.config import StreamConfig
    from msltrain.stream.loader import Loader
    from msltrain.stream.samples.shardset import open_shard_set

    storage = LocalStorage(tmp_path / "shards")
    with ShardWriter(storage, shard_name("small", "train", 0), kind=IMAGES, plan="test") as writer:
        row = {"width": 60, "height": 40, "positives": [1], "ignored": [], "objects": []}
        writer.add("s0", [(".jpg", photo(0)), (".json", b"{}"), (".target.npy", pickled_npy(booby_trap))], row)
        info = writer.publish()
    write_manifest(storage, Manifest(kind=IMAGES, dataset="d", split="s", classes=("a", "b"), shards=(info,)))
    shards = open_shard_set(tmp_path / "shards")
    with Loader(shards, StreamConfig(image_size=8, batch_size=1), device="cpu", training=False) as loader:
        assert [batch.target_BK.tolist() for batch in loader] == [[[0, 1]]]
