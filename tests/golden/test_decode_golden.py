"""Decoded, cropped and resized pixels against torchvision's own chain and the published Pillow chain."""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resize

from msltrain.stream.config import StreamConfig
from msltrain.stream.loader import Loader
from msltrain.stream.order.crop_and_flip import random_crops
from msltrain.stream.order.random import key_hash
from msltrain.stream.pixels.decode import Decoder, resize_crop
from msltrain.stream.pixels.nvjpeg import DeviceDecoder, EncodedImages
from msltrain.stream.samples.shardset import open_shard_set
from tests.smallshards import photo, write_images


def ours(data: bytes, crop, size: int) -> np.ndarray:
    """One image through our chain, as a batch of four would hold it in third place."""
    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size
    pixel_BHWC = torch.full((4, size, size, 3), 77, dtype=torch.uint8)
    slot = pixel_BHWC.permute(0, 3, 1, 2)[2:3]
    resize_crop(Decoder().decode(data, width, height, crc32=0), crop, slot)
    assert (pixel_BHWC[[0, 1, 3]] == 77).all(), "a neighbour's place was touched"
    return pixel_BHWC[2].numpy().astype(int)


def torchvisions(data: bytes, crop, size: int) -> np.ndarray:
    top, left, height, width = crop
    image = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
    image = image[:, top : top + height, left : left + width]
    return resize(image, [size, size], InterpolationMode.BILINEAR, antialias=True).permute(1, 2, 0).numpy().astype(int)


def pillows(data: bytes, crop, size: int) -> np.ndarray:
    top, left, height, width = crop
    with Image.open(io.BytesIO(data)) as image:
        box = image.convert("RGB").crop((left, top, left + width, top + height))
        return np.asarray(box.resize((size, size), Image.Resampling.BILINEAR)).astype(int)


def assert_close(data: bytes, crop, size: int) -> None:
    found = ours(data, crop, size)
    assert np.abs(found - torchvisions(data, crop, size)).mean() < 1
    assert np.abs(found - pillows(data, crop, size)).mean() < 2


@pytest.mark.real
@pytest.mark.parametrize("size", [448, 224])
@pytest.mark.parametrize("folder", ["VOCdevkit/VOC2007/JPEGImages", "coco2014/train2014"])
def test_real_photographs(sample, folder, size):
    paths = sorted((sample / folder).glob("*.jpg"))[::29][:12]
    assert len(paths) >= 4
    sizes = []
    for path in paths:
        with Image.open(path) as image:
            sizes.append(image.size)
    width_N, height_N = np.array(sizes).T
    options = {"seed": 0, "epoch": 0, "scale": (0.7, 1.0), "ratio": (3 / 4, 4 / 3)}
    crops = random_crops(key_hash(path.stem for path in paths), width_N, height_N, **options)
    for path, crop, (width, height) in zip(paths, crops.tolist(), sizes):
        assert_close(path.read_bytes(), crop, size)
        assert_close(path.read_bytes(), [0, 0, height, width], size)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(
    ("width", "height", "crop"),
    [(60, 40, [3, 5, 30, 50]), (64, 64, [0, 0, 64, 64]), (300, 11, [0, 7, 11, 290]), (9, 200, [100, 0, 1, 1])],
)
def test_odd_shapes_and_greyscale(mode, width, height, crop):
    assert_close(photo(1, width, height, mode), crop, 64)


@pytest.mark.parametrize("red_mean", [0.1, 0.0])
def test_the_loader_hands_out_those_pixels(tmp_path, red_mean):
    write_images(tmp_path, [5])
    config = StreamConfig(image_size=48, batch_size=2, num_threads=1, mean=(red_mean, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    with Loader(open_shard_set(tmp_path), config, device="cpu", training=False) as loader:
        images = torch.cat([batch.image_BCHW for batch in loader])
    for number, image_CHW in enumerate(images):
        width, height = 40 + number % 37, 36 + number % 23
        expected = torchvisions(photo(number, width, height), [0, 0, height, width], 48) / 255
        expected = (expected - np.array(config.mean)) / np.array(config.std)
        assert np.abs(image_CHW.permute(1, 2, 0).numpy() - expected).mean() < 1 / 255 / 0.5


def test_the_last_row_and_column_of_a_reduced_photograph_count():
    """101 pixels are reduced to 51; of the square's 40 the last one's triangle reaches the two last, 0.707 and 0.501
    high."""
    image_HWC = np.zeros((51, 51, 3), np.uint8)
    image_HWC[-1] = image_HWC[:, -1] = 255
    pixel_BHWC = torch.empty((1, 40, 40, 3), dtype=torch.uint8)
    resize_crop(image_HWC, (0, 0, 101, 101), pixel_BHWC.permute(0, 3, 1, 2), 101)
    assert (pixel_BHWC[0, 20, -1] - 255 * 0.501 / 1.208).abs().max() <= 1
    assert (pixel_BHWC[0, -1, 20] - 255 * 0.501 / 1.208).abs().max() <= 1


@pytest.mark.parametrize(("height", "width"), [(75, 131), (99, 40)])
@pytest.mark.parametrize("reduction", [1, 2, 4])
def test_a_crop_with_sides_that_differ_is_stretched_by_each_of_them(reduction: int, height: int, width: int):
    """Red tells the column and green the row; a mean over an area is the value of its middle, reduced or not."""
    row_Y, column_X = (np.arange(side // reduction) * reduction + reduction / 2 for side in (120, 200))
    image_HWC = np.zeros((120 // reduction, 200 // reduction, 3), np.uint8)
    image_HWC[..., 0], image_HWC[..., 1] = column_X, row_Y[:, None]
    pixel_BHWC = torch.empty((1, 16, 16, 3), dtype=torch.uint8)
    top, left = 12, 20
    resize_crop(image_HWC, (top, left, height, width), pixel_BHWC.permute(0, 3, 1, 2), 200)
    middle_S = torch.arange(16) + 0.5
    inside = slice(1, -1)  # at an edge the pixels beyond it are missing
    for channel, expected_SS in (
        (0, (left + middle_S * width / 16)[None].expand(16, 16)),
        (1, (top + middle_S * height / 16)[:, None].expand(16, 16)),
    ):
        assert (pixel_BHWC[0, ..., channel] - expected_SS)[inside, inside].abs().max() <= 1.1


def test_images_that_a_device_refuses_have_memory_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The host decodes one after the other into the same memory, and each is what it is alone."""

    def refuse(data: list[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
        raise RuntimeError("nvjpegDecode failed")

    monkeypatch.setattr("msltrain.stream.pixels.nvjpeg.decode_jpegs", refuse)
    write_images(tmp_path, [5], size=(60, 40))
    shards = open_shard_set(tmp_path)
    rows = shards.rows(np.zeros(5, np.int64), np.arange(5))[1]
    tar = (tmp_path / shards.manifest.shards[0].name).read_bytes()
    places = zip(rows.offset_N.tolist(), rows.length_N.tolist(), strict=True)
    data_B = [torch.frombuffer(bytearray(tar[start : start + length]), dtype=torch.uint8) for start, length in places]
    decode = DeviceDecoder(torch.device("cpu"), 16)

    def found(numbers: list[int]) -> torch.Tensor:
        crops = [[2, 3, 30, 50]] * len(numbers)
        return decode(EncodedImages([data_B[n] for n in numbers], rows.take(np.array(numbers)), crops, ValueError))

    together = found([0, 1, 2, 3, 4])
    for number in range(5):
        alone = np.abs(together[number].numpy() - ours(data_B[number].numpy().tobytes(), [2, 3, 30, 50], 16))
        assert alone.max() <= 1
        assert torch.equal(together[number], found([number])[0])


def test_what_libjpeg_only_warns_of_is_forgiven_when_the_bytes_are_as_stored():
    data = photo(1)
    odd = data[:-2] + b"\x12\x34" * 30 + data[-2:]
    with pytest.raises(ValueError, match="extraneous bytes"):
        Decoder().decode(odd, 60, 40, crc32=0)
    expected = pillows(odd, [0, 0, 40, 60], 32)
    pixel_BHWC = torch.zeros((1, 32, 32, 3), dtype=torch.uint8)
    image_HWC = Decoder().decode(odd, 60, 40, zlib.crc32(odd))
    resize_crop(image_HWC, [0, 0, 40, 60], pixel_BHWC.permute(0, 3, 1, 2))
    assert np.abs(pixel_BHWC[0].numpy() - expected).mean() < 2


def test_damage_and_a_wrong_size_are_errors():
    data = photo(1)
    with pytest.raises(ValueError, match="do not match their CRC-32"):
        Decoder().decode(data[: len(data) // 2], 60, 40, crc32=1)
    with pytest.raises(ValueError, match="60×40 pixels, its index says 60×41"):
        Decoder().decode(data, 60, 41, crc32=0)
    with pytest.raises(ValueError, match="not an image"):
        Decoder().decode(b"not an image", 60, 40, crc32=zlib.crc32(b"not an image"))
