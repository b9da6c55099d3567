"""A photograph as a file, in a shard built from it and in a tar of another program: the same pixels to a model."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from msldata.build.index_tars import index_shards
from msldata.build.shards import build_shards, plan_build
from msldata.inspect.verify import verify
from msldata.sources.kinds import open_source
from msldata.storage import LocalStorage, open_storage
from msltrain.stream.config import StreamConfig
from msltrain.stream.loader import Loader
from msltrain.stream.samples.shardset import open_shard_set
from msltrain.use.read_images import find_images, read_square
from tests.oddimages import odd_images, picture

SIDE = 32


def as_training_sees_them(folder: Path) -> dict[str, np.ndarray]:
    """Key → image_SSC of the stream, uint8, whole images squashed."""
    found = {}
    config = StreamConfig(image_size=SIDE, batch_size=4, num_threads=1, drop_last=False, mean=(0, 0, 0), std=(1, 1, 1))
    with Loader(open_shard_set(folder), config, device="cpu", training=False) as loader:
        for batch in loader:
            pixels = (batch.image_BCHW.permute(0, 2, 3, 1) * 255).round().byte().numpy()
            found |= dict(zip(batch.keys, pixels))
    return found


def damage(folder: Path) -> list:
    """What verify finds, but that one picture is there many times."""
    return [finding for finding in verify(LocalStorage(folder), num_workers=1).findings if finding.what != "image"]


def square(file: Path) -> np.ndarray:
    return read_square(file, SIDE)[0].permute(1, 2, 0).numpy()


@pytest.fixture
def files(tmp_path) -> dict[str, Path]:
    """Key → file."""
    folder = tmp_path / "files"
    folder.mkdir()
    found = {}
    for name, (data, _) in odd_images().items():
        key = name.replace(".", "-")
        found[key] = folder / f"{key}{Path(name).suffix}"
        found[key].write_bytes(data)
    return found


def test_file_and_shard(files, tmp_path):
    rows = "".join(f"files/{file.name},a\n" for file in files.values())
    (tmp_path / "t.csv").write_text(f"image,labels\n{rows}")
    plan = plan_build(open_source("table", tmp_path / "t.csv", "all"))
    manifest = build_shards(plan, open_storage(tmp_path / "out"), num_workers=1)
    assert manifest.counts["turned_upright"] == 9  # seven JPEGs, a PNG and a WebP
    assert not damage(tmp_path / "out")
    seen = {key.removeprefix("files_"): pixels for key, pixels in as_training_sees_them(tmp_path / "out").items()}
    assert seen.keys() == files.keys() and len(seen) >= 30
    for key, file in files.items():
        assert np.abs(seen[key].astype(int) - square(file)).mean() < 2, key
    predicted = {shown.name.rpartition("#files_")[2]: shown for shown in find_images([tmp_path / "out"])}
    for key, shown in predicted.items():
        assert np.abs(seen[key].astype(int) - read_square(shown, SIDE)[0].permute(1, 2, 0).numpy()).max() <= 1, key


def test_file_and_tar_of_another_program(files, tmp_path):
    """Its bytes stay as they are, so the stream turns, scales and converts what the builds would have."""
    folder = tmp_path / "tars"
    folder.mkdir()
    taken = {key: file for key, file in files.items() if file.suffix in (".jpg", ".png", ".webp")}
    with tarfile.open(folder / "a.tar", "w") as tar:
        for key, file in taken.items():
            for suffix, data in ((file.suffix, file.read_bytes()), (".cls", b"0")):
                info = tarfile.TarInfo(f"{key}{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    index_shards(LocalStorage(folder), classes=("a",), num_workers=1)
    assert not damage(folder)
    seen = as_training_sees_them(folder)
    assert seen.keys() == taken.keys()
    for key, file in taken.items():
        assert np.abs(seen[key].astype(int) - square(file)).max() <= 1, key
    upright = np.abs(seen["exif6-jpg"].astype(int) - seen["plain-jpg"]).mean()
    assert upright < 3 and picture().shape == (48, 64, 3)


def test_a_webp_with_an_array_of_labels_is_indexed_as_clip_benchmark_publishes_it(files, tmp_path):
    folder = tmp_path / "tars"
    folder.mkdir()
    with tarfile.open(folder / "0.tar", "w") as tar:
        for number, labels in enumerate(([1, 0, 1], [0, 1, 0])):
            array = io.BytesIO()
            np.save(array, np.array(labels, np.int64))
            for suffix, data in ((".npy", array.getvalue()), (".webp", files["plain-webp"].read_bytes())):
                info = tarfile.TarInfo(f"s{number:07d}{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    manifest = index_shards(LocalStorage(folder), classes=("x", "y", "z"), num_workers=1)
    assert manifest.options["labels_from"] == "npy"
    assert [counts["positive"] for counts in manifest.label_histogram.values()] == [1, 1, 1]
    assert len(as_training_sees_them(folder)) == 2 and not damage(folder)
