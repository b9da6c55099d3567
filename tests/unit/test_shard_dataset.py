"""The map-style dataset: every sample by its number, with the labels and pixels that the loader has."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import msltrain
from msltrain.stream.errors import SampleError
from msltrain.stream.pixels.decode import resize_crop
from tests.smallshards import write_images

STREAM = msltrain.StreamConfig(image_size=16, batch_size=23, num_threads=1)


def small(photograph) -> torch.Tensor:
    """As the loader squashes a whole photograph to its square, normalised."""
    slot_1CSS = torch.empty(1, 3, 16, 16, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    resize_crop(np.asarray(photograph), (0, 0, photograph.height, photograph.width), slot_1CSS)
    return slot_1CSS[0].float() / 255


def test_it_gives_what_the_loader_gives_of_a_dataset_and_of_a_part(tmp_path: Path):
    write_images(tmp_path, [9, 8, 6])
    for shards in (tmp_path, *msltrain.hold_out(tmp_path, 0.3)):
        dataset = pickle.loads(pickle.dumps(msltrain.ShardDataset(shards, small)))
        with msltrain.Loader(shards, STREAM, training=False) as loader:
            [batch] = list(loader)
        assert [sample.key for sample in dataset] == batch.keys and len(dataset) == len(batch)
        [found] = list(DataLoader(dataset, batch_size=len(dataset), num_workers=1))
        torch.testing.assert_close(found.image, batch.image_BCHW.contiguous())
        assert torch.equal(found.target_K, batch.target_BK) and torch.equal(found.ignore_K, batch.ignore_BK)
        assert list(found.key) == batch.keys and dataset[-1].key == batch.keys[-1]
        for number in (len(dataset), -len(dataset) - 1):
            with pytest.raises(IndexError):
                dataset[number]
    plain = msltrain.ShardDataset(tmp_path)[3]
    assert plain.image.mode == "RGB" and plain.target_K.dtype == torch.float32


def test_a_damaged_sample_is_named_and_the_others_are_whole(tmp_path: Path):
    write_images(tmp_path, [3])
    dataset = msltrain.ShardDataset(tmp_path)
    _, rows = dataset.shards.rows(np.array([0]), np.array([1]))
    [tar] = tmp_path.glob("*.tar")
    data = bytearray(tar.read_bytes())
    data[int(rows.offset_N[0]) + int(rows.length_N[0]) // 2] ^= 255
    tar.write_bytes(data)
    with pytest.raises(SampleError, match=r"s000001.*do not match their CRC-32"):
        dataset[1]
    assert [dataset[number].key for number in (0, 2)] == ["s000000", "s000002"]
