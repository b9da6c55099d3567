"""The sets of masks there are, in the folders and archives they come in, and users' own masks in every kind of file."""

from __future__ import annotations

import io
import shutil
import tarfile
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from PIL import Image

from msldata.contract.maskgenerator import generate_hole_mask
from msldata.errors import UserError
from msldata.masks.sources import open_mask_source, select_mask_source
from msldata.storage import LocalStorage, open_storage
from tests.integration.test_build_masks import png, rows, shards
from tests.tinydata import build_masks

HOLES = {f"{number:05d}.png": generate_hole_mask(7, number, 64) * np.uint8(255) for number in range(16)}


def write_folder(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def below(folder: str) -> dict[str, bytes]:
    return {f"{folder}/{name}": png(gray) for name, gray in HOLES.items()}


LAYOUTS = {
    "NVIDIA test set, unpacked": lambda root: write_folder(root, below("mask/testing_mask_dataset")),
    "NVIDIA test set, one folder down": lambda root: write_folder(
        root, below("irregular_mask/mask/testing_mask_dataset")
    ),
    "NVIDIA test set, as it comes": lambda root: write_zip(root / "test_mask.zip", below("mask/testing_mask_dataset")),
    "NVIDIA training set": lambda root: write_folder(root, below("irregular_mask/disocclusion_img_mask")),
    "NVIDIA training set, as it comes": lambda root: write_zip(
        root / "irregular_mask.zip", below("irregular_mask/disocclusion_img_mask")
    ),
    "the official release": lambda root: write_zip(
        root / "SCRIBBLES.zip", {**below("SCRIBBLES"), "__MACOSX/SCRIBBLES/._00000.png": b"x"}
    ),
}


@pytest.fixture
def expected(tmp_path) -> dict[str, bytes]:
    source = write_folder(tmp_path / "plain", {name: png(gray) for name, gray in HOLES.items()})
    build_masks(open_mask_source(source), LocalStorage(tmp_path / "expected"), num_workers=1)
    return shards(tmp_path / "expected")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_known_sets_are_found_where_they_are_put(layout, expected, tmp_path):
    root = tmp_path / "datasets"
    root.mkdir()
    LAYOUTS[layout](root)
    build_masks(select_mask_source(root), LocalStorage(tmp_path / "out"), num_workers=1)
    assert shards(tmp_path / "out") == expected


@pytest.mark.parametrize("name", ["masks.tar", "masks.tar.gz"])
@pytest.mark.parametrize("num_workers", [1, 2])
def test_tars_give_the_same_shards(name, num_workers, expected, tmp_path):
    source = open_mask_source(write_tar(tmp_path / name, below("some/where")))
    build_masks(source, LocalStorage(tmp_path / "out"), num_workers=num_workers)
    assert shards(tmp_path / "out") == expected


def test_a_list_of_addresses_gives_the_same_masks(expected, tmp_path):
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "plain"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        lines = [f"http://127.0.0.1:{server.server_port}/{name}" for name in list(HOLES)[:8]]
        lines += [f"plain/{name}" for name in list(HOLES)[8:]]
        (tmp_path / "masks.txt").write_text("\n".join(lines))
        build_masks(open_mask_source(tmp_path / "masks.txt"), LocalStorage(tmp_path / "out"), num_workers=2)
        server.shutdown()
    for subset in ("high", "low"):
        found = {(Path(row["source"]).name, row["crc32"]) for row in rows(tmp_path / "out", subset)}
        assert found == {(row["source"], row["crc32"]) for row in rows(tmp_path / "expected", subset)}


def test_the_test_set_is_preferred_to_the_training_set(tmp_path):
    write_folder(
        tmp_path, {**below("irregular_mask/mask/testing_mask_dataset"), **below("irregular_mask/disocclusion_img_mask")}
    )
    assert len(select_mask_source(tmp_path).names()) == len(HOLES)


@pytest.mark.real
def test_official_order_from_the_real_masks_in_a_zip(sample, tmp_path):
    folder = sample / "irregular_mask"
    shutil.make_archive(str(tmp_path / "test_mask"), "zip", folder)
    for name, source in (("folder", folder), ("zip", tmp_path / "test_mask.zip")):
        build_masks(open_mask_source(source), open_storage(tmp_path / name), order="official", num_workers=2)
    assert shards(tmp_path / "folder") == shards(tmp_path / "zip") != {}


# --- users' own masks -------------------------------------------------------------------------------------------------


def saved(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def in_every_kind(gray_HW: np.ndarray) -> dict[str, bytes]:
    image = Image.fromarray(gray_HW)
    palette = Image.frombytes("P", image.size, (gray_HW == 0).astype(np.uint8).tobytes())
    palette.putpalette([255, 255, 255, 0, 0, 0])
    return {
        "grey.png": saved(image),
        "rgb.png": saved(image.convert("RGB")),
        "palette.png": saved(palette),
        "one-bit.png": saved(image.convert("1")),
        "grey-with-opacity.png": saved(image.convert("LA")),
        "16-bit.png": saved(Image.fromarray(gray_HW.astype(np.uint16) * 257)),
        "zero-one.png": saved(Image.fromarray(gray_HW // 255)),
        "ringing.jpg": saved(image, "JPEG", quality=60),
        "upper-case.PNG": saved(image),
        "lossless.webp": saved(image.convert("RGB"), "WEBP", lossless=True),
        "fax.tiff": saved(image.convert("1"), "TIFF"),
    }


def test_the_kind_of_file_does_not_matter(tmp_path):
    blocky_HW = np.kron(generate_hole_mask(1, 2, 32), np.ones((8, 8), np.uint8)) * np.uint8(255)
    source = write_folder(tmp_path / "own", in_every_kind(blocky_HW))
    build_masks(open_mask_source(source), LocalStorage(tmp_path / "out"), num_workers=1, polarity="hole-white")
    found = {row["source"]: row["crc32"] for subset in ("high", "low") for row in rows(tmp_path / "out", subset)}
    assert found.keys() == in_every_kind(blocky_HW).keys()
    assert len(set(found.values())) == 1, found


def test_a_photograph_among_the_masks_is_named_unless_grey_is_meant(tmp_path):
    y, x = np.mgrid[0:64, 0:64]
    photograph = Image.fromarray((127 + 100 * np.sin(x / 9) * np.cos(y / 7)).astype(np.uint8))
    source = write_folder(tmp_path / "own", {"a.png": png(HOLES["00000.png"]), "photo.jpg": saved(photograph, "JPEG")})
    build = partial(build_masks, open_mask_source(source), num_workers=1, polarity="hole-white")
    with pytest.raises(UserError, match=r"photo\.jpg: .* it is a picture, not a mask"):
        build(LocalStorage(tmp_path / "out"))
    made = build(LocalStorage(tmp_path / "skipped"), on_error="skip")
    assert {manifest.counts["quarantined"] for manifest in made.manifests.values()} == {1}
    made = build(LocalStorage(tmp_path / "grey"), binarize=False)
    assert sum(manifest.num_samples for manifest in made.manifests.values()) == 2
