"""Large photographs are decoded at a part of their size: nearly the pixels of the whole, and the same to everybody."""

from __future__ import annotations

import functools
import io
import json
import tarfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from msldata.build import image as image_module
from msldata.build import shards as shards_module
from msldata.build.image import Resize, prepare_image
from msldata.build.index_tars import index_shards
from msldata.build.shards import build_shards, plan_build
from msldata.contract.manifest import read_manifest
from msldata.contract.pixels import LARGE, decode_jpeg, reduction_to, reductions
from msldata.contract.resize_advice import advise_resize
from msldata.errors import UserError
from msldata.sources.kinds import open_source
from msldata.storage import LocalStorage
from msltrain.__main__ import app
from msltrain.stream.config import StreamConfig
from msltrain.stream.loader import Loader
from msltrain.stream.order.crop_and_flip import random_crops
from msltrain.stream.pixels.decode import Decoder, resize_crop
from msltrain.stream.samples.shardset import open_shard_set
from msltrain.use.read_images import read_square
from tests.smallshards import photo, write_images

SIDE = 80
CONFIG = StreamConfig(image_size=SIDE, batch_size=2, num_threads=2, drop_last=False)


@functools.cache
def natural(seed: int, width: int, height: int, orientation: int = 1) -> bytes:
    """A JPEG whose spectrum falls as that of photographs does, with colours weaker than brightness and some noise."""
    rng = np.random.default_rng(seed)
    frequency_HW = np.hypot(np.fft.fftfreq(height)[:, None] * height, np.fft.rfftfreq(width) * width).clip(1)
    planes = [
        np.fft.irfft2(np.fft.rfft2(rng.normal(size=(height, width))) / frequency_HW, (height, width)) for _ in "YC"
    ]
    bright_HW, colour_HW = (plane / plane.std() for plane in planes)
    image_HWC = np.stack([bright_HW * 40 + colour_HW * change for change in (15, 0, -15)], axis=2)
    image_HWC += rng.normal(128, 2, (height, width, 1))
    exif, data = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(image_HWC.clip(0, 255).astype(np.uint8)).save(data, "JPEG", quality=92, exif=exif.tobytes())
    return data.getvalue()


def made(data: bytes, width: int, height: int, crop: list[int], size: int, reduction: int) -> np.ndarray:
    slot_1CSS = torch.zeros((1, size, size, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    resize_crop(Decoder().decode(data, width, height, 0, reduction=reduction), crop, slot_1CSS, width)
    return slot_1CSS.numpy().astype(int)


def batches(
    folder: Path, config: StreamConfig, training: bool, num_epochs: int = 1
) -> dict[tuple[int, str], np.ndarray]:
    """(epoch, key) → what the stream yields, in grey levels."""
    found = {}
    with Loader(open_shard_set(folder), config, training=training, seed=3) as loader:
        for epoch in range(num_epochs):
            for batch in loader:
                pixels = (batch.image_BCHW * 255).round().numpy().astype(int)
                found |= {(epoch, key): pixels[row] for row, key in enumerate(batch.keys)}
    return found


@pytest.mark.parametrize(
    ("width", "height", "crop", "size", "expected"),
    [
        (4032, 3024, [0, 0, 3024, 4032], 448, 4),
        (3024, 4032, [0, 0, 4032, 3024], 224, 8),
        (6000, 4000, [0, 0, 4000, 6000], 448, 4),
        (6000, 4000, [9, 9, 1344, 2000], 448, 2),
        (6000, 4000, [9, 9, 1343, 2000], 448, 1),
        (1024, 1024, [0, 0, 1024, 1024], 8, 1),  # the largest image that is small
        (1025, 1024, [0, 0, 1024, 1025], 8, 8),
        (65535, 65535, [0, 0, 65535, 65535], 8, 8),
    ],
)
def test_reductions_by_hand(width, height, crop, size, expected):
    assert reductions(np.array([width]), np.array([height]), np.array([crop]), size).tolist() == [expected]


def test_small_photographs_are_never_reduced():
    width_N, height_N = np.mgrid[1:1025:31, 1:1025:31].reshape(2, -1)
    crop_N4 = np.stack([0 * width_N, 0 * width_N, height_N, width_N], axis=1)
    assert (width_N * height_N).max() <= LARGE
    assert all((reductions(width_N, height_N, crop_N4, size) == 1).all() for size in (1, 32, 448))


@pytest.mark.parametrize(("width", "height"), [(1400, 1000), (1403, 1001), (998, 1201)])
def test_within_one_and_a_half_grey_levels_of_the_whole(width, height):
    data, seen = natural(width, width, height), set()
    options = {"seed": 0, "epoch": 0, "scale": (0.7, 1.0), "ratio": (3 / 4, 4 / 3)}
    crop_N4 = random_crops(np.arange(4, dtype=np.uint64), np.full(4, width), np.full(4, height), **options)
    for size in (80, 150, 300):
        for crop in ([0, 0, height, width], *crop_N4.tolist()):
            reduction = int(reductions(np.array([width]), np.array([height]), np.array([crop]), size)[0])
            crop = [crop[0] // reduction * reduction, crop[1] // reduction * reduction, *crop[2:]]
            difference = np.abs(
                made(data, width, height, crop, size, reduction) - made(data, width, height, crop, size, 1)
            )
            assert difference.mean() < 1.5, (size, crop, reduction)
            seen.add(reduction)
    assert seen == {2, 4, 8}


def test_half_a_pixel_would_be_seen():
    """What the last test could miss: pixels that are right, but not in their place."""
    data = natural(5, 1403, 1001)
    whole = made(data, 1403, 1001, [0, 0, 1001, 1403], 80, 1)
    moved = made(data, 1403, 1001, [0, 8, 1001, 1395], 80, 8)
    assert np.abs(whole - moved).mean() > 1.5


def test_the_stream_and_a_file_give_the_same_pixels(tmp_path):
    """Also of a photograph that has to be turned, in a tar of another program, and of one that is no JPEG."""
    folder = tmp_path / "tars"
    folder.mkdir()
    files = {f"t{turn}.jpg": natural(turn, 1408, 1000, turn) for turn in (1, 3, 6)} | {
        "odd.jpg": natural(7, 1403, 1001, 6),  # cannot be divided, so it is not reduced
        "small.jpg": photo(3),
    }
    png = io.BytesIO()
    Image.open(io.BytesIO(files["t1.jpg"])).save(png, "PNG", compress_level=1)
    files["p.png"] = png.getvalue()
    with tarfile.open(folder / "a.tar", "w") as tar:
        for name, data in files.items():
            for suffix, member in ((Path(name).suffix, data), (".cls", b"0")):
                info = tarfile.TarInfo(f"{Path(name).stem}{suffix}")
                info.size = len(member)
                tar.addfile(info, io.BytesIO(member))
            (tmp_path / name).write_bytes(data)
    index_shards(LocalStorage(folder), classes=("a",), num_workers=1)
    seen = batches(folder, CONFIG, training=False)
    for name in files:
        square_CSS = read_square(tmp_path / name, SIDE)[0].numpy()
        assert np.array_equal(seen[0, Path(name).stem], square_CSS), name
    assert decode_jpeg(files["t6.jpg"], reduction=8).shape == (176, 125, 3)
    assert decode_jpeg(files["odd.jpg"], reduction=8).shape == (1403, 1001, 3)
    assert 0 < np.abs(seen[0, "p"] - seen[0, "t1"]).mean() < 1.5


@pytest.mark.parametrize("training", [True, False])
def test_wherever_it_is_resized_and_whatever_is_kept_the_batches_are_the_same(tmp_path, training):
    photos = {f"s{number:06d}": natural(number, 1200, 900) for number in range(2)}
    write_images(tmp_path, [2], photos=photos, size=(1200, 900))
    expected = batches(tmp_path, CONFIG, training, num_epochs=3)
    for config in (replace(CONFIG, ram_cache_gb=1.0), replace(CONFIG, resize="device"), replace(CONFIG, num_threads=1)):
        found = batches(tmp_path, config, training, num_epochs=3)
        assert found.keys() == expected.keys()
        assert all(np.array_equal(found[key], expected[key]) for key in expected)


def test_crops_begin_at_a_pixel_of_the_reduced_photograph(tmp_path):
    write_images(tmp_path, [6], size=(1200, 900))
    with Loader(open_shard_set(tmp_path), CONFIG, training=True) as loader:
        crop_N4 = np.concatenate([batch.crop_B4 for batch in loader])
    reduction_N = reductions(np.full(6, 1200), np.full(6, 900), crop_N4, SIDE)
    assert (reduction_N > 1).all() and crop_N4[:, :2].any()
    assert not (crop_N4[:, :2] % reduction_N[:, None]).any()


def test_damage_and_a_wrong_size_are_errors():
    data, reduction = natural(1, 1400, 1000), reduction_to(1400, 1000, SIDE)
    assert reduction == 8
    with pytest.raises(ValueError, match="do not match their CRC-32"):
        Decoder().decode(data[: len(data) // 2], 1400, 1000, crc32=1, reduction=reduction)
    with pytest.raises(ValueError, match="truncated"):
        Decoder().decode(data[: len(data) // 2], 1400, 1000, zlib.crc32(data[: len(data) // 2]), reduction=reduction)
    with pytest.raises(ValueError, match="1400×1000 pixels, its index says 1399×1000"):
        Decoder().decode(data, 1399, 1000, crc32=0, reduction=reduction)


@pytest.mark.parametrize(("size", "orientation"), [((1400, 1000), 1), ((1403, 1001), 1), ((1408, 1000), 6)])
def test_resized_builds_store_nearly_what_the_whole_would_give(size, orientation, monkeypatch):
    data, reductions_asked = natural(sum(size), *size, orientation), []
    plain = image_module.decode_jpeg

    def decode(data, into=None, reduction=1):
        reductions_asked.append(reduction)
        return plain(data, into, reduction)

    monkeypatch.setattr(image_module, "decode_jpeg", decode)
    for resize in (Resize("shorter", 60, 100), Resize("fit", 150, 100), Resize("shorter", 240, 100)):
        prepared = prepare_image(data, resize, decode=True)
        with monkeypatch.context() as whole:
            whole.setattr(image_module, "reduction_to", lambda *_: 1)
            expected = prepare_image(data, resize, decode=True)
        assert prepared[1:] == expected[1:], "all but the bytes"
        difference = decode_jpeg(prepared.data).astype(int) - decode_jpeg(expected.data)
        assert 0 < np.abs(difference).mean() < 1.5
    assert reductions_asked == [8, 4, 2]
    with pytest.raises(ValueError, match="truncated"):
        prepare_image(data[: len(data) // 2], Resize("fit", 200))


def test_what_resizes_small_photographs_is_what_it_was():
    """By the bytes that this build wrote before large ones were reduced."""
    for data in (photo(1, 500, 375), photo(2, 1024, 1024)):
        with Image.open(io.BytesIO(data)) as image:
            size = Resize("fit", 64).placement(*image.size, 1)
            buffer = io.BytesIO()
            pixels = image.convert("RGB").resize((size.scaled_width, size.scaled_height), Image.Resampling.LANCZOS)
            pixels.save(buffer, "JPEG", quality=90)
        assert prepare_image(data, Resize("fit", 64)).data == buffer.getvalue()


@pytest.mark.parametrize("resize", [None, Resize("fit", 32)])
def test_threads_share_the_images_of_one_shard_and_change_nothing(tmp_path, resize):
    images = tmp_path / "images" / "thing"
    images.mkdir(parents=True)
    for number in range(30):
        (images / f"{number:02}.jpg").write_bytes(photo(number) if number not in (3, 17) else b"damaged")
    plan = plan_build(open_source("folders", images.parent, "all"), resize=resize)
    built = []
    for num_workers in (1, 2, 5):
        out = tmp_path / str(num_workers)
        manifest = build_shards(plan, LocalStorage(out), num_workers=num_workers, on_error="skip")
        assert manifest.counts["quarantined"] == 2
        built.append({file.name: file.read_bytes() for file in out.iterdir()})
    assert built[0] == built[1] == built[2]
    assert [Path(row["file"]).stem for row in map(json.loads, built[0]["quarantine.jsonl"].splitlines())] == [
        "03",
        "17",
    ]
    with pytest.raises(UserError, match=r"03\.jpg"):
        build_shards(plan, LocalStorage(tmp_path / "refused"), num_workers=5)


def test_every_worker_has_work_however_many_shards_there_are(tmp_path):
    write_photos(tmp_path / "thing", 7, 60, 40)
    plan = plan_build(open_source("folders", tmp_path, "all"), samples_per_shard=1)
    assert plan.decode and len(plan.shards) == 7
    assert shards_module._threads(plan, 7, 3) == [1, 1, 1, 1, 1, 1, 3]
    assert shards_module._threads(plan, 2, 8) == [4, 4]
    assert shards_module._threads(plan, 8, 4) == [1] * 8
    assert shards_module._threads(replace(plan, decode=False), 1, 8) == [1]


def built_by_the_program(*arguments: object) -> str:
    done = CliRunner().invoke(app, ["build-shards", *map(str, arguments), "--split", "all", "--workers", "1"])
    assert done.exit_code == 0, done.output
    return " ".join(done.output.split())


def write_photos(folder: Path, count: int, width: int, height: int) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"{folder.name}{number}.jpg").write_bytes(photo(number, width, height))


def test_a_build_says_what_resizing_would_save(tmp_path):
    for kind in ("this", "that"):
        write_photos(tmp_path / "photos" / kind, 1, 1500, 1350)
        write_photos(tmp_path / "small" / kind, 1, 1500, 1330)
    for name, is_large in (("photos", True), ("small", False)):
        said = built_by_the_program(tmp_path / name, "--out", tmp_path / "out", "--name", name)
        assert (
            "photographs are large, 1500 × 1350 pixels: 10 times what training at 448 pixels sees" in said
        ) == is_large
        assert ("Built with `--resize shorter=672` they take" in said) == is_large
    folder = LocalStorage(tmp_path / "out" / "photos" / "all")
    advice = advise_resize(folder, read_manifest(folder))
    assert advice is not None and advice.num_bytes == sum(
        file.stat().st_size for file in (tmp_path / "photos").rglob("*.jpg")
    )
    assert 0.05 < advice.share_bytes < 0.6
    # What it advises is what it then finds good.
    resize = ("--resize", f"shorter={advice.shorter}")
    assert "are large" not in built_by_the_program(tmp_path / "photos", "--out", tmp_path / "smaller", *resize)
    smaller = LocalStorage(tmp_path / "smaller" / "folders" / "all")
    assert advise_resize(smaller, read_manifest(smaller)) is None
    assert advise_resize(folder, read_manifest(folder), image_size=224).shorter == 352
