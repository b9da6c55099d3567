"""Sample indexes are read when their shards come up, and let go of again: a dataset may be larger than memory."""

from __future__ import annotations

import pytest

from msltrain.stream.config import StreamConfig
from msltrain.stream.loader import Loader
from msltrain.stream.order.plan import EpochPlan
from msltrain.stream.samples import shardset
from msltrain.stream.samples.shardset import open_shard_set
from tests.smallshards import write_images


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("shards")
    write_images(path, [5] * 60)
    return path


@pytest.fixture
def read(monkeypatch) -> list[int]:
    """The shards whose index was read, in order."""
    numbers: list[int] = []
    original = shardset._IndexCache._read

    def note(self, shard):
        numbers.append(shard)
        return original(self, shard)

    monkeypatch.setattr(shardset._IndexCache, "_read", note)
    return numbers


def test_opening_reads_no_index(folder, read):
    config = StreamConfig(image_size=24, batch_size=4, num_threads=1)
    with Loader(open_shard_set(folder), config, device="cpu", training=True) as loader:
        assert len(loader) == 75
    assert read == []


@pytest.mark.parametrize("step", [0, 40])
def test_the_first_batch_reads_the_indexes_of_its_window_only(folder, read, step):
    # Read-ahead is bounded by bytes, and these images are tiny: the plan is asked directly.
    shards, window = open_shard_set(folder), 20
    plan = EpochPlan(shards.counts, seed=0, epoch=0, window=window)
    shards.rows(*plan.items(4 * step, 4 * step + 4))
    assert set(read) <= set(next(plan.shards_by_window(4 * step)).tolist()) and len(read) <= window // 5


def test_an_epoch_reads_every_index_once_and_holds_a_window(folder, read, monkeypatch):
    monkeypatch.setattr(shardset, "INDEX_CAPACITY", 1)
    config = StreamConfig(image_size=24, batch_size=4, window=20, num_threads=1)
    with Loader(open_shard_set(folder), config, device="cpu", training=True) as loader:
        assert sum(map(len, loader)) == 300
        held = loader.shards._indexes._held
    assert sorted(read) == list(range(60))
    assert held <= 4 * config.window + 5
