"""Decoding on the device, run on the CPU through the same path: equal pixels, errors that name the sample.

nvJPEG itself runs only in the one test that needs a GPU.
"""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from msldata.errors import UserError
from msltrain.stream import loader as loader_module
from msltrain.stream.config import StreamConfig
from msltrain.stream.errors import SampleError
from msltrain.stream.loader import Loader
from msltrain.stream.pixels.nvjpeg import check_device_decoding, decode_jpegs
from msltrain.stream.samples.shardset import open_shard_set
from tests.smallshards import photo, write_images

HOST = StreamConfig(image_size=32, batch_size=8, num_threads=2, drop_last=False)
DEVICE = replace(HOST, decode="device")


@pytest.fixture
def on_cpu(monkeypatch):
    """Let ``decode=device`` run on the CPU."""
    monkeypatch.setattr(loader_module, "check_device_decoding", lambda device: None)


def cmyk(width: int, height: int) -> bytes:
    data = io.BytesIO()
    Image.new("CMYK", (width, height), (10, 200, 30, 40)).save(data, "JPEG")
    return data.getvalue()


def batches(folder, config, device="cpu", training=True) -> list:
    with Loader(open_shard_set(folder), config, device=device, training=training) as loader:
        return [(batch.keys, batch.target_BK.tolist(), batch.image_BCHW.cpu()) for batch in loader]


def assert_same(found, expected) -> None:
    assert [batch[:2] for batch in found] == [batch[:2] for batch in expected]
    for (*_, image), (*_, other) in zip(found, expected):
        assert image.shape == other.shape and image.is_contiguous(memory_format=torch.channels_last)
        assert (image - other).abs().mean() < 1 / 255


@pytest.mark.parametrize("training", [True, False])
def test_same_batches_as_on_the_host(tmp_path, on_cpu, training):
    write_images(tmp_path, [9, 13], photos={"s000004": photo(4, 44, 40, mode="L"), "s000007": cmyk(47, 43)})
    assert_same(batches(tmp_path, DEVICE, training=training), batches(tmp_path, HOST, training=training))


def test_a_file_the_device_refuses_is_decoded_on_the_host(tmp_path, on_cpu, monkeypatch):
    write_images(tmp_path, [10])

    def choosy(data, device):
        if any(len(one) % 2 for one in data):
            raise RuntimeError("nvjpegDecode failed")
        return decode_jpegs(data, device)

    monkeypatch.setattr("msltrain.stream.pixels.nvjpeg.decode_jpegs", choosy)
    assert_same(batches(tmp_path, DEVICE), batches(tmp_path, HOST))


def test_what_is_no_image_is_named(tmp_path, on_cpu):
    write_images(tmp_path, [20], photos={"s000013": b"not an image, but as stored"})
    with pytest.raises(SampleError, match="small/train: sample 's000013' at byte") as found:
        batches(tmp_path, DEVICE, training=False)
    assert "not an image" in found.value.reason


def test_another_size_than_the_index_says_is_named(tmp_path, on_cpu):
    write_images(tmp_path, [20], photos={"s000013": photo(1, 99, 9)})
    with pytest.raises(SampleError, match=r"sample 's000013'.*the image is 99×9 pixels, its index says 53×49"):
        batches(tmp_path, DEVICE, training=False)


def test_refused_where_it_cannot_work(tmp_path):
    write_images(tmp_path, [10])
    with pytest.raises(UserError, match=r"needs a CUDA GPU; this process runs on cpu; set stream\.decode=host"):
        batches(tmp_path, DEVICE)
    for changes in ({"ram_cache_gb": 1.0}, {"on_sample_error": "skip"}):
        with pytest.raises(UserError, match=r"stream\.decode=host"):
            replace(DEVICE, **changes)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("decode_jpegs_cuda: torchvision not compiled with nvJPEG support\nmore"), "nvJPEG support"),
        (ImportError("cannot import name 'decode_jpeg' from 'torchvision.io'"), "cannot import name 'decode_jpeg'.*"),
    ],
)
def test_a_torchvision_without_nvjpeg_is_refused(monkeypatch, error, words):
    def without(data, device):
        raise error

    monkeypatch.setattr("msltrain.stream.pixels.nvjpeg.decode_jpegs", without)
    with pytest.raises(UserError, match=rf"cannot decode on cuda:0 \(.*{words}\); set stream\.decode=host"):
        check_device_decoding(torch.device("cuda", 0))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_nvjpeg(tmp_path):
    write_images(tmp_path, [9, 13], photos={"s000007": cmyk(47, 43)})
    found, expected = batches(tmp_path, DEVICE, device="cuda"), batches(tmp_path, HOST)
    assert [batch[:2] for batch in found] == [batch[:2] for batch in expected]
    difference = np.mean([float((one[2] - other[2]).abs().mean()) for one, other in zip(found, expected)])
    assert difference < 2 / 255
