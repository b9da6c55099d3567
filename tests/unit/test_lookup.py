"""Lookup: batches looked up together are those looked up one by one."""

from __future__ import annotations

import numpy as np
import pytest

from msltrain.stream.order.crop_and_flip import whole_images
from msltrain.stream.order.plan import EpochPlan
from msltrain.stream.samples.lookup import Lookup, Samples
from msltrain.stream.samples.shardset import SampleRows, ShardSet, open_shard_set
from tests.smallshards import write_images


@pytest.fixture
def shards(tmp_path) -> ShardSet:
    write_images(tmp_path, [9, 4, 20, 7])
    return open_shard_set(tmp_path)


def make(shards: ShardSet, calls: list[int]) -> Lookup:
    def augment(rows: SampleRows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        calls.append(len(rows))
        crops = whole_images(rows.width_N, rows.height_N)
        return crops, 1 << rows.key_hash_N.astype(np.int64) % 4, rows.key_hash_N % 2 == 0

    return Lookup(shards, EpochPlan(shards.counts, seed=1, epoch=2, window=16), augment)


def content(samples: Samples) -> list:
    arrays = [samples.item_N, samples.shard_N, samples.index_N, samples.crop_N4]
    arrays += [samples.reduction_N, samples.flip_N, samples.target_NK, samples.ignore_NK]
    columns = [getattr(samples.rows, name) for name in SampleRows.__slots__ if name != "num_classes"]
    return [array.tolist() for array in arrays + columns]


@pytest.mark.parametrize("most", [1, 10, 1000])
def test_batches_together_equal_batches_alone(shards, monkeypatch, most):
    monkeypatch.setattr("msltrain.stream.samples.lookup._MOST_ITEMS", most)
    # A rank's part of every step: with gaps, and with nothing in the last steps.
    places = [np.arange(start + 1, start + 4) for start in range(0, 36, 6)] + [np.empty(0, np.int64)] * 2
    calls: list[int] = []
    lookup = make(shards, calls)
    found = list(lookup.batches(places))
    together = len(calls)
    assert [content(one) for one in found] == [content(lookup.samples(item_N)) for item_N in places]
    assert together == {1: 8, 10: 4, 1000: 3}[most]
    assert calls[0] == 3, "the first batch had to wait for others"


def test_targets_are_those_of_the_rows_and_many_classes_are_looked_up_a_few_at_a_time(shards, monkeypatch):
    calls: list[int] = []
    samples = make(shards, calls).samples(np.arange(4, 12))
    assert samples.target_NK.tolist() == samples.rows.target_NK.tolist() and samples.target_NK.any()
    assert samples.ignore_NK.tolist() == samples.rows.ignore_NK.tolist()
    monkeypatch.setattr("msltrain.stream.samples.lookup._MOST_LABELS", 9 * len(shards.classes))
    places = [np.arange(start, start + 3) for start in range(0, 36, 3)]
    list(make(shards, calls).batches(places))
    assert calls[1:] == [3, 9, 9, 9, 6], "targets of too many samples were made at once"


@pytest.mark.parametrize("number", range(20, 24))
def test_one_sample_takes_the_place_of_another(shards, number):
    lookup = make(shards, [])
    before, alone = lookup.samples(np.arange(5, 10)), lookup.samples(np.array([number]))
    assert {*lookup.samples(np.arange(20, 24)).flip_N} == {False, True}, "mirrored and not"
    samples = lookup.samples(np.arange(5, 10))
    samples.put(2, alone)
    expected = content(before)
    for column, one in zip(expected[1:], content(alone)[1:]):
        column[2] = one[0]
    assert content(samples) == expected
    assert content(lookup.samples(np.arange(5, 10))) == content(before), "the index itself was changed"
