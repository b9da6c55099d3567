"""The mask bank: the right bits, on the device, chosen by seed, epoch and key."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from msldata.contract.keepmask import resize_nearest
from msldata.contract.manifest import FormatError, read_manifest
from msldata.errors import UserError
from msldata.storage import LocalStorage
from msltrain.stream.keepmasks.bank import KeepMasks
from msltrain.stream.order.random import key_hash
from tests.smallshards import write_images, write_keep_masks


def masks(count: int, size: int = 32, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [(rng.random((size, size)) < 0.2 + 0.6 * number / count).astype(np.uint8) for number in range(count)]


@pytest.mark.parametrize("image_size", [32, 45, 16, 7])
def test_hands_out_the_stored_masks_at_image_size(tmp_path, image_size):
    stored = masks(7)
    write_keep_masks(tmp_path / "high", stored)
    bank = KeepMasks.open([tmp_path / "high"], image_size, "cpu")
    hashes = key_hash(str(number) for number in range(40))
    keep_mask_B1HW = bank.of_hashes(hashes, seed=0, epoch=0)
    assert keep_mask_B1HW.shape == (40, 1, image_size, image_size) and keep_mask_B1HW.dtype == torch.float32
    chosen = bank.chosen(hashes, seed=0, epoch=0)
    assert set(chosen) == set(range(7))
    for keep_mask, number in zip(keep_mask_B1HW[:, 0].numpy(), chosen):
        np.testing.assert_array_equal(keep_mask, resize_nearest(stored[number], image_size, image_size))
        assert bank.hole_fraction_N[number] == pytest.approx(1 - keep_mask.mean(), abs=1e-7)


def test_locations_follow_each_other_and_can_be_limited(tmp_path):
    high, low = masks(5), masks(4, seed=1)
    write_keep_masks(tmp_path / "high", high)
    write_keep_masks(tmp_path / "low", low)
    both = KeepMasks.open([tmp_path / "high", tmp_path / "low"], 32, "cpu")
    limited = KeepMasks.open([tmp_path / "high", tmp_path / "low"], 32, "cpu", limit=4)
    fractions = [1 - mask.mean() for mask in high + low]
    np.testing.assert_allclose(both.hole_fraction_N, fractions)
    np.testing.assert_allclose(limited.hole_fraction_N, fractions[:4] + fractions[5:9])


def test_choice_depends_on_seed_epoch_and_key_alone():
    bank = KeepMasks(np.zeros((1000, 8, 1), dtype=np.uint8), 8, "cpu")
    hashes = key_hash(str(number) for number in range(5000))
    chosen = bank.chosen(hashes, seed=0, epoch=0)
    np.testing.assert_array_equal(chosen[::-1], bank.chosen(hashes[::-1], seed=0, epoch=0))
    assert (chosen != bank.chosen(hashes, seed=0, epoch=1)).mean() > 0.99
    assert (chosen != bank.chosen(hashes, seed=1, epoch=0)).mean() > 0.99
    assert chosen.min() == 0 and chosen.max() == 999
    assert len(np.unique(chosen)) > 980, "every mask is used"


def test_wrong_places_are_named(tmp_path):
    write_images(tmp_path / "images", [3])
    with pytest.raises(FormatError, match="images, not keep masks"):
        KeepMasks.open([tmp_path / "images"], 32, "cpu")
    with pytest.raises(FormatError, match="no finished dataset"):
        KeepMasks.open([tmp_path / "nothing"], 32, "cpu")
    write_keep_masks(tmp_path / "empty", [])
    write_keep_masks(tmp_path / "full", masks(4))
    for locations in ([tmp_path / "empty"], [tmp_path / "full", tmp_path / "empty"]):
        with pytest.raises(UserError, match=r"empty: this subset was built without any mask.*msl build-masks"):
            KeepMasks.open(locations, 32, "cpu")
    with pytest.raises(UserError, match="no keep masks were named"):
        KeepMasks.open([], 32, "cpu")


def test_damage_is_named(tmp_path):
    write_keep_masks(tmp_path / "high", masks(4))
    name = read_manifest(LocalStorage(tmp_path / "high")).shards[1].name
    data = bytearray((tmp_path / "high" / name).read_bytes())
    data[512 + 60] ^= 1
    (tmp_path / "high" / name).write_bytes(data)
    with pytest.raises(FormatError, match=rf"{name}, keep mask 'm00003' at byte 512: the bytes do not match"):
        KeepMasks.open([tmp_path / "high"], 32, "cpu")
