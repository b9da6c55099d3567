"""What a pass over a dataset puts together: logits of any order beside the labels and objects of a model's classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from msltrain.evaluation.sweep import AllSamples, RankPart
from msltrain.measures.predictions import Origin, Predictions
from msltrain.stream.errors import SampleError
from msltrain.stream.samples.shardset import open_shard_set
from tests.smallshards import CLASSES, thing, write_images

NUM = 7
OBJECTS = {f"s{n:06d}": [thing(n % 3, 0, 0, 2, n + 1), thing((n + 1) % 3, 0, 0, 3, n + 1)] for n in range(NUM)}
"""Of sample n: one of 2(n + 1) square pixels of its positive class, and one of 3(n + 1) of the next class."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_images(tmp_path, [3, 4], size=(20, 10), objects=OBJECTS)
    return tmp_path


def assembled(folder: Path, column_K: list[int] | None, met: list[int], skipped: dict | None = None) -> Predictions:
    """Logits that say of which sample and class they are, met in this order."""
    column_K = None if column_K is None else np.array(column_K)
    samples = AllSamples(open_shard_set(folder), column_K)
    logit_MK = np.float32([[10 * n + k for k in (range(3) if column_K is None else column_K)] for n in met])
    part = RankPart(np.array(met), samples.key_hash_N[met], logit_MK)
    return samples.assemble(part, Origin(split="train"), skipped or {})


def areas(found: Predictions) -> np.ndarray:
    assert found.objects is not None
    return found.objects.dense("area")


@pytest.mark.parametrize("met", [list(range(NUM)), [6, 0, 3, 2, 5, 1, 4]])
@pytest.mark.parametrize("column_K", [None, [2, 0], [1, 2, 0], [1]])
def test_every_column_is_of_its_class_and_every_row_of_its_sample(folder, column_K, met):
    found = assembled(folder, column_K, met)
    columns = list(range(3)) if column_K is None else column_K
    assert found.keys == tuple(f"s{n:06d}" for n in range(NUM))
    assert found.classes == tuple(CLASSES[k] for k in columns)
    assert found.logit_NK.tolist() == [[10 * n + k for k in columns] for n in range(NUM)]
    assert found.target_NK.tolist() == [[int(k == n % 3) for k in columns] for n in range(NUM)]
    assert found.ignore_NK.tolist() == [[n % 4 == 0 and k == (n + 1) % 3 for k in columns] for n in range(NUM)]
    expected = [[{0: 2, 1: 3, 2: 0}[(k - n) % 3] * (n + 1) for k in columns] for n in range(NUM)]
    assert areas(found).tolist() == expected
    shares = found.objects.dense("relative_area")
    assert shares == pytest.approx(np.array(expected) / 200)


def test_damaged_samples_have_no_row_and_are_named(folder):
    skipped = {n: SampleError("d", "d-000000.tar", f"s{n:06d}", 9, "damaged") for n in (5, 2)}
    found = assembled(folder, [2, 0], [6, 0, 3, 1, 4], skipped)
    left = [0, 1, 3, 4, 6]
    assert found.keys == tuple(f"s{n:06d}" for n in left)
    assert found.logit_NK.tolist() == [[10 * n + 2, 10 * n] for n in left]
    assert found.target_NK.tolist() == [[int(n % 3 == 2), int(n % 3 == 0)] for n in left]
    assert areas(found).tolist() == [[{0: 2, 1: 3, 2: 0}[(k - n) % 3] * (n + 1) for k in (2, 0)] for n in left]
    assert found.origin.skipped == (skipped[2].short, skipped[5].short) and found.origin.split == "train"


@pytest.mark.parametrize(
    ("met", "said"),
    [
        ([0, 1, 2, 3, 4, 5], "of 7 samples 1 were never evaluated and 0 more than once"),
        ([0, 1, 2, 3, 4, 5, 6, 6], "of 7 samples 0 were never evaluated and 1 more than once"),
        ([0, 1, 2, 3, 4, 5, 5], "of 7 samples 1 were never evaluated and 1 more than once"),
    ],
)
def test_each_sample_is_there_once(folder, met, said):
    with pytest.raises(AssertionError, match=said):
        assembled(folder, None, met)


def test_logits_of_another_sample_are_not_taken_for_its_own(folder):
    samples = AllSamples(open_shard_set(folder))
    hashes = samples.key_hash_N.copy()
    hashes[[3, 4]] = hashes[[4, 3]]
    with pytest.raises(AssertionError, match="logits and keys do not belong together"):
        samples.assemble(RankPart(np.arange(NUM), hashes, np.zeros((NUM, 3), np.float32)), Origin())


def test_a_dataset_without_objects_has_none(tmp_path: Path):
    write_images(tmp_path, [2])
    found = assembled(tmp_path, [2, 0], [1, 0])
    assert found.objects is None and found.logit_NK.tolist() == [[2, 0], [12, 10]]
