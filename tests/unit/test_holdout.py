"""The validation part: every class in both parts as far as it fits, the same whatever the order of the shards."""

from __future__ import annotations

import math
import zlib
from pathlib import Path

import numpy as np
import pytest

from msldata.build.writer import ShardWriter
from msldata.contract.format import encode_target
from msldata.contract.manifest import IMAGES, Manifest, shard_name
from msldata.contract.publish import write_manifest
from msldata.errors import UserError
from msldata.storage import LocalStorage
from msltrain.stream.order.plan import EpochPlan
from msltrain.stream.order.random import key_hash
from msltrain.stream.samples.holdout import choose_held_out, hold_out
from msltrain.stream.samples.shardset import Labels, ShardSet, open_shard_set

NUM_CLASSES = 6
SAMPLES = {f"k{number:03d}": [0] if number % 2 else [0, 1] for number in range(120)}
SAMPLES |= {"rare1": [2], "rare2": [2, 3], "pair1": [4], "pair2": [4], "once": [3, 5], "nothing": []}


def write(folder: Path, keys: list[str], per_shard: int) -> ShardSet:
    storage, shards = LocalStorage(folder), []
    for start in range(0, len(keys), per_shard):
        with ShardWriter(storage, shard_name("s", "train", len(shards)), kind=IMAGES, plan="test") as writer:
            for key in keys[start : start + per_shard]:
                row = {"width": 4, "height": 4, "positives": SAMPLES[key], "ignored": [], "objects": []}
                target = encode_target(SAMPLES[key], NUM_CLASSES)
                writer.add(key, [(".jpg", b"-"), (".json", b"{}"), (".target.npy", target)], row)
            shards.append(writer.publish())
    classes = tuple(f"c{k}" for k in range(NUM_CLASSES))
    write_manifest(storage, Manifest(kind=IMAGES, dataset="s", split="train", classes=classes, shards=tuple(shards)))
    return open_shard_set(folder)


def keys_of(part: ShardSet) -> set[str]:
    plan = EpochPlan(part.counts, seed=0, epoch=0, shuffle=False)
    return set(part.rows(*plan.items(0, part.num_samples))[1].key_N)


def num_positive(keys: set[str]) -> np.ndarray:
    return np.bincount([k for key in keys for k in SAMPLES[key]], minlength=NUM_CLASSES)


def test_every_class_is_in_both_parts_as_far_as_its_samples_reach(tmp_path: Path):
    kept, out = map(keys_of, hold_out(write(tmp_path, list(SAMPLES), 50), 0.07))
    assert not kept & out and kept | out == set(SAMPLES)
    assert (num_positive(kept) > 0).all()
    # Class 5 has one sample, which is trained on. Class 3 may miss: its other sample can be the last one of class 2.
    assert (num_positive(out)[[0, 1, 2, 4]] > 0).all() and num_positive(out)[5] == 0
    assert 0.02 * len(SAMPLES) < len(out) <= 1.5 * 0.07 * len(SAMPLES)


def test_the_samples_held_out_never_change(tmp_path: Path):
    """Written down once: runs of different versions are validated on the same samples and can be compared."""
    _, out = hold_out(write(tmp_path, list(SAMPLES), 50), 0.05)
    assert sorted(keys_of(out)) == "k005 k016 k038 k039 k060 k087 k096 k116 pair1".split()


def test_a_part_of_a_part_has_its_own_samples(tmp_path: Path):
    whole = write(tmp_path, list(SAMPLES), 50)
    kept, _ = hold_out(whole, 0.3)
    assert (kept.classes, kept.name, kept.storage) == (whole.classes, "s/train", whole.storage)
    inner, rest = hold_out(kept, 0.4, seed=7)
    assert keys_of(inner) | keys_of(rest) == keys_of(kept) and not keys_of(inner) & keys_of(rest)
    shard_N, row_N = EpochPlan(rest.counts, seed=0, epoch=0, shuffle=False).items(0, rest.num_samples)
    index_N, rows = rest.rows(shard_N, row_N)
    assert rows.key_N.tolist() == [list(SAMPLES)[index] for index in index_N] and (np.diff(index_N) > 0).all()
    assert kept._indexes is whole._indexes, "an index is read once for all parts"


def test_order_and_size_of_the_shards_do_not_matter(tmp_path: Path):
    shuffled = list(np.random.default_rng(0).permutation(list(SAMPLES)))
    parts = [
        hold_out(write(tmp_path / "a", list(SAMPLES), 50), 0.05),
        hold_out(write(tmp_path / "b", shuffled, 7), 0.05),
    ]
    assert [keys_of(part) for part in parts[0]] == [keys_of(part) for part in parts[1]]
    other = hold_out(open_shard_set(tmp_path / "a"), 0.05, seed=1)
    assert keys_of(other[1]) != keys_of(parts[0][1])


def labels_of(positives: list[list[int]], num_classes: int) -> Labels:
    row_M = np.repeat(np.arange(len(positives)), [len(one) for one in positives])
    class_M = np.array([k for one in positives for k in one], np.int64)
    return Labels(np.zeros(len(positives), np.uint64), row_M, class_M, num_classes)


@pytest.mark.parametrize("together", [1 << 16, 50, 7, 1])
def test_labels_are_those_of_their_samples_however_many_are_read_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, together: int
):
    """Of a whole dataset and of a part of it, in shards that no such number divides."""
    monkeypatch.setattr("msltrain.stream.samples.shardset._TOGETHER", together)
    names = list(SAMPLES)
    whole = write(tmp_path, names, 20)
    for shards, keys in ((whole, names), *((part, None) for part in hold_out(whole, 0.4))):
        keys = keys or [key for key in names if key in keys_of(shards)]
        labels = shards.labels()
        pairs = [(row, k) for row, key in enumerate(keys) for k in SAMPLES[key]]
        assert list(zip(labels.row_M.tolist(), labels.class_M.tolist(), strict=True)) == pairs
        np.testing.assert_array_equal(labels.key_hash_N, key_hash(keys))
        assert labels.count_K.tolist() == num_positive(set(keys)).tolist()
        np.testing.assert_array_equal(shards.contents(), np.full(len(keys), 1 << 32 | zlib.crc32(b"-"), np.uint64))


def test_a_class_that_was_held_out_whole_comes_back():
    chosen_N = choose_held_out(np.array([0.1, 0.2, 0.3, 0.4]), labels_of([[0], [0], [1], [1]], 2), 0.34)
    assert chosen_N.tolist() == [True, False, True, False]


def test_thousands_of_rare_classes_take_half_as_much_again_and_the_commonest_come_first():
    rng = np.random.default_rng(0)
    num_classes, number_N = 2000, rng.random(6000)
    positives = [[int(k)] for k in (num_classes * rng.random(6000) ** 2).astype(int)]
    labels = labels_of(positives, num_classes)
    chosen_N = choose_held_out(number_N, labels, 0.05)
    assert chosen_N.sum() == int(1.5 * 0.05 * 6000)
    by_chance = number_N < 0.05
    held_K, count_K = (np.bincount(labels.class_M[rows], minlength=num_classes) for rows in (chosen_N, slice(None)))
    missing_K = np.bincount(labels.class_M[by_chance], minlength=num_classes) == 0
    assert count_K[missing_K & (held_K > 0)].min() >= count_K[missing_K & (held_K == 0) & (count_K > 1)].max()
    assert ((count_K > 0) <= (count_K - held_K > 0)).all()  # training sees every class that there is


def held_out_plainly(number_N: list[float], positives: list[list[int]], num_classes: int, fraction: float) -> set[int]:
    most = max(1, math.floor(1.5 * fraction * len(number_N)))
    by_number = sorted(range(len(number_N)), key=number_N.__getitem__)
    samples = [[n for n in by_number if k in positives[n]] for k in range(num_classes)]
    out = set([n for n in by_number if number_N[n] < fraction][:most])
    for shown in samples:
        if shown and out.issuperset(shown):
            out.remove(shown[-1])
    held, added = set(out), {}
    for k, shown in enumerate(samples):
        if held.isdisjoint(shown):
            spare = (n for n in shown if all(len(set(samples[c]) - held) > 1 for c in positives[n]))
            if (n := next(spare, None)) is not None:
                added[k] = n
                held.add(n)
    first = sorted(added, key=lambda k: -len(samples[k]))
    return out | {added[k] for k in first[: max(0, most - len(out))]}


@pytest.mark.parametrize("seed", range(400))
def test_equals_the_rule_written_for_one_sample_at_a_time(seed: int):
    rng = np.random.default_rng(seed)
    num_samples, num_classes = int(rng.integers(1, 14)), int(rng.integers(1, 6))
    positives = [sorted(set(rng.integers(0, num_classes, rng.integers(0, 4)).tolist())) for _ in range(num_samples)]
    number_N, fraction = rng.random(num_samples), float(rng.choice([0.1, 0.3, 0.5, 0.8]))
    chosen_N = choose_held_out(number_N, labels_of(positives, num_classes), fraction)
    expected = held_out_plainly(number_N.tolist(), positives, num_classes, fraction)
    assert set(np.flatnonzero(chosen_N).tolist()) == expected


def test_of_too_many_by_chance_the_smallest_numbers_are_held_out():
    chosen_N = choose_held_out(np.array([0.03, 0.01, 0.5, 0.02]), labels_of([[0]] * 4, 1), 0.1)
    assert chosen_N.tolist() == [False, True, False, False]


@pytest.mark.parametrize("seed", range(30))
def test_few_samples_keep_the_bound_too(seed: int):
    number_N = np.random.default_rng(seed).random(40)
    assert choose_held_out(number_N, labels_of([[n % 4] for n in range(40)], 4), 0.1).sum() <= 6


def test_parts_of_no_use_are_refused(tmp_path: Path):
    shards = write(tmp_path, ["once", "nothing"], 2)
    with pytest.raises(UserError, match=r"holding out 1e-09 of 2 samples leaves 2 to train on and 0 to validate"):
        hold_out(shards, 1e-9)
    with pytest.raises(UserError, match="held out for validation shows any class"):
        hold_out(shards, 1 - 1e-9)
