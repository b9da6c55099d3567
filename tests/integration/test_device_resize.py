"""Crop and resize left to the device: the batches are those of the host within a fraction of a grey level.

On the CPU the same function runs as on a GPU; what only a GPU has, pinned memory and its streams, one test needs.
"""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from msldata.errors import UserError
from msltrain.stream.config import StreamConfig
from msltrain.stream.loader import Loader
from msltrain.stream.pixels import buffers as slots_module
from msltrain.stream.pixels.decode import resize_crop
from msltrain.stream.pixels.resize import WholeImages, resize_on_device
from msltrain.stream.samples.shardset import open_shard_set
from tests.smallshards import photo, write_images

HOST = StreamConfig(image_size=32, batch_size=8, num_threads=2, drop_last=False, resize="host")
DEVICE = replace(HOST, resize="device")


def batches(folder, config, device="cpu", training=True, num_epochs=1) -> list:
    with Loader(open_shard_set(folder), config, device=device, training=training, seed=3) as loader:
        return [
            (batch.keys, batch.target_BK.tolist(), batch.image_BCHW.cpu().clone())
            for _ in range(num_epochs)
            for batch in loader
        ]


def assert_close(found, expected) -> None:
    assert [batch[:2] for batch in found] == [batch[:2] for batch in expected]
    for (*_, image), (*_, other) in zip(found, expected, strict=True):
        difference = (image - other).abs() * 255
        assert difference.mean() < 0.05 and difference.max() < 2.01
        assert image.shape == other.shape and image.is_contiguous(memory_format=torch.channels_last)


def cmyk(width: int, height: int) -> bytes:
    data = io.BytesIO()
    Image.new("CMYK", (width, height), (10, 200, 30, 40)).save(data, "JPEG")
    return data.getvalue()


@pytest.mark.parametrize(
    ("height", "width", "crop", "size"),
    [
        (40, 60, [3, 5, 30, 50], 64),
        (64, 64, [0, 0, 64, 64], 64),
        (11, 300, [0, 7, 11, 290], 32),
        (200, 9, [100, 0, 1, 1], 32),
        (333, 500, [17, 3, 301, 417], 96),
    ],
)
def test_one_image_as_the_host_makes_it(height, width, crop, size):
    image_HWC = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    expected = torch.empty((1, size, size, 3), dtype=torch.uint8)
    resize_crop(image_HWC, crop, expected.permute(0, 3, 1, 2))
    # Behind another image, and in a batch whose largest crop is larger: neither may show.
    flat = np.concatenate([np.full(500 * 400 * 3, 255, np.uint8), image_HWC.reshape(-1)])
    images = WholeImages(
        torch.from_numpy(flat),
        np.array([0, 500 * 400]),
        np.array([500, width]),
        np.array([[0, 0, 400, 500], crop]),
    )
    found = resize_on_device(images, size, torch.device("cpu"))
    assert (found[0] == 255).all()
    difference = (found[1].int() - expected[0].int()).abs()
    assert difference.float().mean() < 0.05 and difference.max() <= 2


@pytest.mark.parametrize("training", [True, False])
def test_same_batches_as_from_the_host(tmp_path, training):
    # Grey, and one that only Pillow decodes, into memory of its own.
    write_images(tmp_path, [9, 13], photos={"s000004": photo(4, 44, 40, mode="L"), "s000007": cmyk(47, 43)})
    assert_close(batches(tmp_path, DEVICE, training=training), batches(tmp_path, HOST, training=training))


def test_the_buffers_grow_and_large_images_are_resized_on_the_host(tmp_path, monkeypatch):
    write_images(tmp_path, [40])
    config, expected = replace(DEVICE, image_size=8), batches(tmp_path, replace(HOST, image_size=8), num_epochs=2)
    assert_close(batches(tmp_path, config, num_epochs=2), expected)
    monkeypatch.setattr(slots_module, "LARGEST", 50 * 46)  # samples beyond s000010
    assert_close(batches(tmp_path, config, num_epochs=2), expected)
    with Loader(open_shard_set(tmp_path), config, device="cpu", training=False) as loader:
        first, second, *_ = ([*host.pixels.width_B] for host in loader.host_batches())
    assert first == [40, 41, 42, 43, 44, 45, 46, 47] and second == [48, 49, 50, 8, 8, 8, 8, 8]


def test_kept_images_are_handed_out_whole(tmp_path):
    write_images(tmp_path, [20])
    kept = replace(DEVICE, ram_cache_gb=1.0)
    assert_close(batches(tmp_path, kept, num_epochs=3), batches(tmp_path, HOST, num_epochs=3))


@pytest.mark.parametrize("training", [True, False])
def test_bad_samples_are_skipped_as_on_the_host(tmp_path, training):
    write_images(tmp_path, [30], photos={f"s{number:06d}": b"no image, but as stored" for number in (3, 12, 13)})
    skipping = replace(DEVICE, on_sample_error="skip")
    expected = batches(tmp_path, replace(HOST, on_sample_error="skip"), training=training)
    assert_close(batches(tmp_path, skipping, training=training), expected)
    assert sum(len(keys) for keys, *_ in expected) == (30 if training else 27)


def test_where_it_is_done_by_default():
    config = StreamConfig()
    assert (config.resizes_on("cuda"), config.resizes_on("cpu")) == ("device", "host")
    assert (HOST.resizes_on("cuda"), DEVICE.resizes_on("cpu")) == ("host", "device")
    with pytest.raises(UserError, match=r"leave stream\.resize at auto"):
        StreamConfig(decode="device", resize="host")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu(tmp_path):
    write_images(tmp_path, [40, 13])
    found = batches(tmp_path, replace(DEVICE, image_size=8), device="cuda", num_epochs=3)
    assert_close(found, batches(tmp_path, replace(HOST, image_size=8), num_epochs=3))
