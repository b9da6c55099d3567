"""Decoded images kept in memory: the same batches bit for bit, within the limit, without reading or decoding again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from msltrain.stream.config import StreamConfig
from msltrain.stream.loader import Loader
from msltrain.stream.pixels.decode import Decoder
from msltrain.stream.pixels.imagecache import ImageCache
from msltrain.stream.samples.shardset import open_shard_set
from tests.smallshards import write_images

CONFIG = StreamConfig(image_size=24, batch_size=8, num_threads=2, drop_last=False)
EVERYTHING = 1e-3
"""GB; all 101 images are 0.6 MB."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("shards")
    write_images(path, [40, 61])
    return path


def epochs(folder, config, num_epochs=3, **options) -> list:
    with Loader(open_shard_set(folder), config, device="cpu", training=True, **options) as loader:
        return [
            [(batch.keys, batch.index_B.tolist(), batch.image_BCHW.numpy().tobytes()) for batch in loader]
            for _ in range(num_epochs)
        ]


@pytest.mark.parametrize("gigabytes", [2e-4, EVERYTHING])
def test_the_cache_leaves_no_trace(folder, gigabytes):
    assert epochs(folder, replace(CONFIG, ram_cache_gb=gigabytes)) == epochs(folder, CONFIG)


def test_two_ranks_see_what_one_sees(folder):
    config = replace(CONFIG, ram_cache_gb=2e-4, drop_last=True)
    ranks = [epochs(folder, config, rank=rank, world_size=2) for rank in range(2)]
    keys = [[sorted(one[0] + other[0]) for one, other in zip(*parts)] for parts in zip(*ranks)]
    assert keys == [[sorted(batch[0]) for batch in epoch] for epoch in epochs(folder, replace(CONFIG, drop_last=True))]


def test_several_ranks_share_the_memory_and_most_images_come_home(tmp_path):
    write_images(tmp_path, [160, 160])
    config = StreamConfig(image_size=16, batch_size=32, num_threads=1, ram_cache_gb=EVERYTHING)
    parts, read_again = [], []
    for rank in range(4):
        options = {"device": "cpu", "training": True, "rank": rank, "world_size": 4}
        with Loader(open_shard_set(tmp_path), config, **options) as loader:
            parts.append({key for batch in loader for key in batch.keys})
            before = loader.stats.num_bytes
            assert sum(map(len, loader)) == 80
            read_again.append((loader.stats.num_bytes - before) / before)
    assert len(set.union(*parts)) == sum(map(len, parts)) == 320
    assert np.mean(read_again) < 0.35, "any quarter at random would read three quarters again"


def test_later_epochs_neither_read_nor_decode(folder, monkeypatch):
    with Loader(
        open_shard_set(folder), replace(CONFIG, ram_cache_gb=EVERYTHING), device="cpu", training=True
    ) as loader:
        assert sum(map(len, loader)) == 101
        read = loader.stats.num_bytes
        assert read > 0
        monkeypatch.setattr(Decoder, "decode", lambda *_: pytest.fail("decoded again"))
        assert sum(map(len, loader)) == 101 and loader.stats.num_bytes == read


def test_an_evaluation_keeps_nothing(folder):
    with Loader(
        open_shard_set(folder), replace(CONFIG, ram_cache_gb=EVERYTHING), device="cpu", training=False
    ) as loader:
        assert sum(map(len, loader)) == 101
        once = loader.stats.num_bytes
        assert sum(map(len, loader)) == 101 and loader.stats.num_bytes == 2 * once


def test_the_limit_holds_and_who_comes_first_stays():
    cache = ImageCache(limit=250)
    for index in range(4):
        cache.offer(index, 1, np.full((10, 10, 1), index, np.uint8))
    cache.offer(4, 1, np.full((5, 10, 1), 4, np.uint8))
    assert cache.num_bytes == 250 and len(cache) == 3
    found = cache.find(np.array([9, 4, 3, 0]), np.ones(4, np.int64))
    assert {position: int(image.max()) for position, image in found.items()} == {1: 4, 3: 0}
    cache.offer(0, 1, np.full((1, 1, 1), 7, np.uint8))
    assert cache.find(np.array([0]), np.array([1]))[0].shape == (10, 10, 1)


def test_what_is_kept_does_not_change_with_the_scratch_it_came_from():
    cache = ImageCache(limit=100)
    scratch = np.zeros((3, 3, 3), np.uint8)
    cache.offer(0, 1, scratch)
    scratch[:] = 9
    assert not cache.find(np.array([0]), np.array([1]))[0].any()
