"""Which keep mask a sample meets, and from which folder: by hand from the numbers drawn, and within their shares."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from msldata.errors import UserError
from msltrain.stream.config import KeepMaskConfig
from msltrain.stream.keepmasks.bank import KeepMasks
from msltrain.stream.keepmasks.choice import choose, choose_folder, hashes_of, numbers
from msltrain.stream.keepmasks.schedule import MaskSchedule
from msltrain.stream.order.random import KEEP_MASK, SUBSET, key_hash, uniform
from msltrain.stream.pixels.batch import Batch
from tests.smallshards import write_keep_masks

KEYS = [f"k{number}" for number in range(400)]
HASHES = key_hash(KEYS)
SIZE = 8


def batch() -> Batch:
    num = len(KEYS)
    return Batch(
        image_BCHW=torch.zeros(num, 3, SIZE, SIZE),
        target_BK=torch.zeros(num, 2),
        ignore_BK=torch.zeros(num, 2, dtype=torch.bool),
        keys=KEYS,
        key_hash_B=HASHES,
        index_B=np.arange(num),
        crop_B4=np.zeros((num, 4), np.int64),
        flip_B=np.zeros(num, bool),
    )


def rows_hidden(*heights: int) -> list[np.ndarray]:
    """A mask for each height, whose first rows are holes."""
    masks = [np.ones((SIZE, SIZE), np.uint8) for _ in heights]
    for mask, height in zip(masks, heights):
        mask[:height] = 0
    return masks


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("masks")
    write_keep_masks(root / "few", rows_hidden(5, 1, 3, 4))
    write_keep_masks(root / "one", rows_hidden(7))
    return [root / "few", root / "one"]


def hidden_rows(schedule: MaskSchedule, seed: int = 3, epoch: int = 2) -> np.ndarray:
    keep_mask_B1HW = schedule.keep_masks(batch(), seed=seed, epoch=epoch)
    assert keep_mask_B1HW.shape == (len(KEYS), 1, SIZE, SIZE) and keep_mask_B1HW.dtype == torch.float32
    return (SIZE - keep_mask_B1HW[:, 0, :, 0].sum(dim=1)).int().numpy()


def test_keys_are_texts_in_a_list():
    assert hashes_of(iter(["a", "b"])).tolist() == key_hash(["a", "b"]).tolist()
    with pytest.raises(UserError, match="keys is the text 'ab'; give a list of keys"):
        hashes_of("ab")
    with pytest.raises(UserError, match=r"the key 7 is not text; give str\(…\) of it"):
        hashes_of(["a", 7])  # type: ignore[list-item]


def test_a_mask_is_chosen_by_the_first_number():
    drawn = uniform(HASHES, 3, 2, KEEP_MASK, 5)
    np.testing.assert_array_equal(numbers(HASHES, 5, seed=3, epoch=2), drawn)
    assert choose(HASHES, 7, seed=3, epoch=2).tolist() == [int(7 * lot) for lot in drawn[:, 0]]


@pytest.mark.parametrize("weights", [(0.5, 0.2), (0.1, 0.9), (1.0,), (0.3, 0.3, 0.4), (0.7, 0.1, 0.1, 0.1)])
def test_a_folder_is_chosen_by_its_share(weights: tuple[float, ...]):
    expected = []
    for lot in uniform(HASHES, 3, 2, SUBSET, 1)[:, 0]:
        end, number = 0.0, 0
        for weight in weights:
            end += weight
            if lot < end:
                break
            number += 1
        expected.append(number)
    found = choose_folder(HASHES, weights, seed=3, epoch=2)
    assert found.tolist() == expected
    assert (sum(weights) < 0.99) == (len(weights) in expected), "what no folder serves stays whole, and nothing else"


def test_the_ends_of_shares(monkeypatch: pytest.MonkeyPatch):
    """A share begins with its first number; shares of 1 but for rounding leave nothing whole, smaller ones do."""
    lots = np.array([[0.0], [0.25], [0.5 - 2**-53], [1 - 2**-53]])
    monkeypatch.setattr("msltrain.stream.keepmasks.choice.uniform", lambda *_: lots)
    assert choose_folder(HASHES[:4], (0.25, 0.25), seed=0, epoch=0).tolist() == [0, 1, 1, 2]
    assert choose_folder(HASHES[:4], (0.5, 0.5 - 5e-10), seed=0, epoch=0).tolist() == [0, 0, 0, 1]
    assert choose_folder(HASHES[:4], (0.5, 0.5 - 5e-9), seed=0, epoch=0).tolist() == [0, 0, 0, 2]
    lots[3] = 1 - 7e-10
    assert choose_folder(HASHES[:4], (0.5, 0.5 - 8e-10), seed=0, epoch=0).tolist() == [0, 0, 0, 1]
    lots[3] = 1 - 5e-10
    assert choose_folder(HASHES[:4], (1 - 1e-9,), seed=0, epoch=0).tolist() == [0, 0, 0, 1]
    lots[3] = 1 - 2e-9
    assert choose_folder(HASHES[:4], (0.5, 0.5 - 3e-9), seed=0, epoch=0).tolist() == [0, 0, 0, 2]


def test_each_folder_serves_its_share_and_the_rest_stays_whole(places: list[Path]):
    config = KeepMaskConfig(subset_weights=(0.5, 0.2))
    schedule = MaskSchedule.open(config, places, SIZE, "cpu")
    assert len(schedule) == 5
    folder_B = choose_folder(HASHES, (0.5, 0.2), seed=3, epoch=2)
    mask_B = choose(HASHES, 4, seed=3, epoch=2)
    expected = [(5, 1, 3, 4)[mask] if folder == 0 else (7, 0)[folder - 1] for folder, mask in zip(folder_B, mask_B)]
    assert hidden_rows(schedule).tolist() == expected and set(expected) == {0, 1, 3, 4, 5, 7}
    for other in ({"seed": 4}, {"epoch": 3}):
        assert (hidden_rows(schedule, **other) != expected).mean() > 0.3


def test_the_lightest_masks_come_first(places: list[Path]):
    schedule = MaskSchedule.open(KeepMaskConfig(ramp_epochs=4), places, SIZE, "cpu")
    assert len(schedule) == 5
    everything = KeepMasks.open(places, SIZE, "cpu")
    for epoch, heights in enumerate([{1}, {1, 3}, {1, 3, 4, 5}, {1, 3, 4, 5, 7}, {1, 3, 4, 5, 7}]):
        found = hidden_rows(schedule, epoch=epoch)
        assert set(found.tolist()) == heights
        expected = everything.of_hashes(HASHES, seed=3, epoch=epoch, lightest=min(1.0, (epoch + 1) / 4))
        assert torch.equal(schedule.keep_masks(batch(), seed=3, epoch=epoch), expected)
    weighted = MaskSchedule.open(KeepMaskConfig(ramp_epochs=4, subset_weights=(1.0, 0.0)), places, SIZE, "cpu")
    assert set(hidden_rows(weighted, epoch=1).tolist()) == {1, 3}


def test_the_ramp_begins_with_the_first_masked_epoch(places: list[Path]):
    """With ``keep_mask.start`` it would be over before anything is masked."""
    for weights, lightest in (((), [{1}, {1}, {1, 3}]), ((1.0, 0.0), [{1}, {1}, {1, 3}])):
        config = KeepMaskConfig(ramp_epochs=4, start=0.5, subset_weights=weights)
        schedule = MaskSchedule.open(config, places, SIZE, "cpu", first_epoch=5)
        assert [set(hidden_rows(schedule, epoch=epoch).tolist()) for epoch in (4, 5, 6)] == lightest
    assert set(hidden_rows(MaskSchedule.open(config, places, SIZE, "cpu", first_epoch=5), epoch=8).tolist()) == {
        1,
        3,
        4,
        5,
    }


def test_a_folder_that_serves_nobody_in_a_batch_costs_nothing(places: list[Path], monkeypatch: pytest.MonkeyPatch):
    schedule = MaskSchedule.open(KeepMaskConfig(subset_weights=(0.0, 1.0)), places, SIZE, "cpu")
    asked: list[int] = []
    of_hashes = KeepMasks.of_hashes
    monkeypatch.setattr(
        KeepMasks, "of_hashes", lambda bank, hashes, **more: asked.append(len(bank)) or of_hashes(bank, hashes, **more)
    )
    assert set(hidden_rows(schedule).tolist()) == {7} and asked == [1]


@pytest.mark.parametrize("weights", [(), (0.5, 0.5)])
def test_masks_are_augmented_where_that_is_asked_for(places: list[Path], weights: tuple[float, ...]):
    for augment, is_moved in (((), False), (("shift",), True)):
        config = KeepMaskConfig(subset_weights=weights, ramp_epochs=1, augment=augment)
        schedule = MaskSchedule.open(config, places, SIZE, "cpu")
        first_rows = schedule.keep_masks(batch(), seed=0, epoch=0)[:, 0, 0, 0]
        assert bool(first_rows.any()) == is_moved  # unmoved, the first row is always a hole


def test_there_is_a_weight_for_each_folder(places: list[Path]):
    with pytest.raises(UserError, match=r"has 1 numbers for 2 folders of data\.keep_masks; give one for each folder"):
        MaskSchedule.open(KeepMaskConfig(subset_weights=(0.5,)), places, SIZE, "cpu")
