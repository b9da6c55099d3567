"""Mask sources on real files: folders, zips, tars, and what is refused."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from msldata.contract.maskgenerator import generate_hole_mask
from msldata.errors import BadInputError, UserError
from msldata.masks.sources import GeneratedMasks, open_mask_source


def mask_png(index: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(generate_hole_mask(0, index, 32) * np.uint8(255)).save(buffer, "PNG")
    return buffer.getvalue()


FILES = {"set/b/1.png": mask_png(1), "set/a/0.png": mask_png(0), "set/2.png": mask_png(2)}
CLUTTER = {"set/.DS_Store": b"x", "__MACOSX/set/._2.png": b"x", "set/Thumbs.db": b"x"}


@pytest.fixture
def folder(tmp_path):
    for name, data in {**FILES, **CLUTTER}.items():
        path = tmp_path / "masks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path / "masks"


@pytest.fixture
def zipped(tmp_path):
    path = tmp_path / "masks.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("set")
        for name, data in {**FILES, **CLUTTER}.items():
            archive.writestr(name, data)
    return path


def write_tar(path, files, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture
def tarred(tmp_path):
    return write_tar(tmp_path / "masks.tar", {**FILES, **CLUTTER})


@pytest.fixture
def dotted(tmp_path):
    """As ``tar cf masks.tar .`` writes it."""
    return write_tar(tmp_path / "dotted.tar", {f"./{name}": data for name, data in {**FILES, **CLUTTER}.items()})


@pytest.fixture
def gzipped(tmp_path):
    return write_tar(tmp_path / "masks.tar.gz", {**FILES, **CLUTTER}, "w:gz")


@pytest.mark.parametrize("place", ["folder", "zipped", "tarred", "dotted", "gzipped"])
def test_every_place_yields_the_same_masks(place, request):
    source = pickle.loads(pickle.dumps(open_mask_source(request.getfixturevalue(place))))
    assert source.names() == ["set/2.png", "set/a/0.png", "set/b/1.png"]
    for name, index in zip(source.names(), (2, 0, 1), strict=True):
        assert (source.read_gray(name) == generate_hole_mask(0, index, 32) * 255).all()
    assert source.polarity is None
    assert source.provenance == {"source": Path(request.getfixturevalue(place)).name}


@pytest.mark.parametrize("place", ["folder", "zip", "tar"])
def test_a_file_that_is_no_image_is_named_with_its_place(place, tmp_path):
    where = tmp_path / f"masks.{place}"
    if place == "folder":
        where.mkdir()
        (where / "readme.txt").write_text("hello")
    elif place == "zip":
        with zipfile.ZipFile(where, "w") as archive:
            archive.writestr("readme.txt", "hello")
    else:
        write_tar(where, {"readme.txt": b"hello"})
    with pytest.raises(BadInputError) as caught:
        open_mask_source(where).read_gray("readme.txt")
    assert str(caught.value).startswith(f"{where}/readme.txt: not an image")


@pytest.mark.parametrize("name", ["../evil.png", "a/../../evil.png", "/etc/evil.png", "C:/evil.png", "..\\evil.png"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_archives_that_lead_outside_are_refused(kind, name, tmp_path):
    path = tmp_path / f"masks.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("good.png", mask_png(0))
            archive.writestr(name, mask_png(0))
    else:
        write_tar(path, {"good.png": mask_png(0), name: mask_png(0)})
    with pytest.raises(UserError, match="leads outside of the archive") as caught:
        open_mask_source(path).names()
    assert str(path) in str(caught.value)


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path):
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0.png", bytes(2**26 + 1))
    assert path.stat().st_size < 200_000
    with pytest.raises(BadInputError, match=r"67,108,865 bytes unpacked is too large"):
        open_mask_source(path).read_gray("0.png")


def test_a_zip_whose_header_lies_about_the_size_is_named(tmp_path):
    path = tmp_path / "liar.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0.png", bytes(1_000_000))
    data = path.read_bytes()
    assert data.count(struct.pack("<I", 1_000_000)) == 2
    path.write_bytes(data.replace(struct.pack("<I", 1_000_000), struct.pack("<I", 1000)))
    with pytest.raises(BadInputError, match=r"liar\.zip/0\.png: cannot be read from the zip"):
        open_mask_source(path).read_gray("0.png")


def test_a_damaged_zip_member_is_named(zipped):
    data = bytearray(zipped.read_bytes())
    with zipfile.ZipFile(zipped) as archive:
        start = archive.getinfo("set/a/0.png").header_offset
    data[start + 60 : start + 70] = bytes(10)
    zipped.write_bytes(data)
    with pytest.raises(BadInputError, match=r"masks\.zip/set/a/0\.png: cannot be read from the zip"):
        open_mask_source(zipped).read_gray("set/a/0.png")


def test_a_rewritten_archive_is_read_anew(zipped):
    source = open_mask_source(zipped)
    assert len(source.names()) == 3
    zipped.unlink()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("other.png", mask_png(5))
    assert source.names() == ["other.png"]


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_an_empty_place_is_one_clear_message(kind, tmp_path):
    path = tmp_path / f"empty.{kind}"
    if kind == "folder":
        path.mkdir()
        (path / ".DS_Store").write_bytes(b"x")
    elif kind == "zip":
        zipfile.ZipFile(path, "w").close()
    else:
        write_tar(path, {})
    with pytest.raises(UserError, match="no mask files here") as caught:
        open_mask_source(path).names()
    assert str(path) in str(caught.value)


def test_wrong_places_are_one_clear_message(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder or archive"):
        open_mask_source(tmp_path / "nowhere")
    (tmp_path / "note.md").write_text("hello")
    with pytest.raises(UserError, match=r"note\.md: neither a folder, a zip or tar archive, nor a list"):
        open_mask_source(tmp_path / "note.md")
    with pytest.raises(UserError, match=r"masks\.zip: archives and lists are read from a local disk only"):
        open_mask_source("https://example.org/masks.zip")
    packed = write_tar(tmp_path / "masks.tar.gz", FILES, "w:gz")
    packed.write_bytes(packed.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"masks\.tar\.gz: .*unpack it and give the folder"):
        open_mask_source(packed).names()


def test_generated_masks_know_their_polarity():
    source = pickle.loads(pickle.dumps(GeneratedMasks(3, seed=5, size=64)))
    assert source.names() == ["generated-000000", "generated-000001", "generated-000002"]
    assert source.polarity == "hole-white"
    assert (source.read_gray("generated-000002") == generate_hole_mask(5, 2, 64) * 255).all()
    assert source.provenance == {"source": "generated", "generator_seed": 5, "generator_size": 64}


@pytest.mark.parametrize(("count", "size"), [(0, 512), (-1, 512), (10, 8)])
def test_generator_options_out_of_range_are_refused(count, size):
    with pytest.raises(UserError, match=f"{count if count < 1 else size}"):
        GeneratedMasks(count, size=size)
