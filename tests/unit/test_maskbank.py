"""The mask bank: the right bits, on the device, chosen by seed, epoch and key."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from msldata.contract.keepmask import pack_bits, resize_nearest
from msldata.contract.manifest import FormatError, read_manifest
from msldata.contract.maskgenerator import generate_hole_mask
from msldata.errors import UserError
from msldata.storage import LocalStorage
from msltrain.stream.keepmasks.bank import KeepMasks
from msltrain.stream.keepmasks.choice import choose
from msltrain.stream.keepmasks.transform import IrregularHoles
from msltrain.stream.order.random import KEEP_MASK, key_hash, uniform
from tests.smallshards import write_images, write_keep_masks


def masks(count: int, size: int = 32, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [(rng.random((size, size)) < 0.2 + 0.6 * number / count).astype(np.uint8) for number in range(count)]


@pytest.mark.parametrize("image_size", [32, 45, 30, 16, 7])
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


@pytest.mark.parametrize("limit", [None, 9, 3])
@pytest.mark.parametrize("grey", [False, True])
def test_many_masks_are_read_a_few_at_a_time(tmp_path, monkeypatch, grey, limit):
    """Each is at its number, though shards end within what is read together, and other masks are still under way."""
    monkeypatch.setattr("msltrain.stream.keepmasks.bank._MASKS_PER_TASK", 2)
    monkeypatch.setattr("msltrain.stream.keepmasks.bank._TASKS_AHEAD", 1)
    if grey:
        monkeypatch.setattr("msltrain.stream.keepmasks.bank._Place.grey", True)
    high, low = masks(12), masks(7, seed=1)
    write_keep_masks(tmp_path / "high", high, per_shard=5)
    write_keep_masks(tmp_path / "low", low, per_shard=7)
    bank = KeepMasks.open([tmp_path / "high", tmp_path / "low"], 32, "cpu", limit=limit)
    expected = [*high[:limit], *low[:limit]]
    assert len(bank) == len(expected)
    monkeypatch.setattr(bank, "chosen", lambda hashes, **_: np.arange(len(expected)))
    found_N1SS = bank.of_hashes(np.zeros(len(expected), np.uint64), seed=0, epoch=0)
    np.testing.assert_array_equal(found_N1SS[:, 0].numpy(), np.stack(expected))


def test_choice_depends_on_seed_epoch_and_key_alone():
    bank = KeepMasks(np.zeros((1000, 8, 1), dtype=np.uint8), 8, "cpu")
    hashes = key_hash(str(number) for number in range(5000))
    chosen = bank.chosen(hashes, seed=0, epoch=0)
    np.testing.assert_array_equal(chosen[::-1], bank.chosen(hashes[::-1], seed=0, epoch=0))
    assert (chosen != bank.chosen(hashes, seed=0, epoch=1)).mean() > 0.99
    assert (chosen != bank.chosen(hashes, seed=1, epoch=0)).mean() > 0.99
    assert chosen.min() == 0 and chosen.max() == 999
    assert len(np.unique(chosen)) > 980, "every mask is used"


@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (0, 3), (2, 0)])
def test_seed_and_epoch_reach_whatever_is_drawn(monkeypatch: pytest.MonkeyPatch, seed: int, epoch: int):
    """The choice by keys of one's own, that among the lightest masks, the moves of a mask, and masks that are drawn."""
    keys = [str(number) for number in range(100)]
    hashes, drawn = key_hash(keys), {"seed": seed, "epoch": epoch}
    bank = KeepMasks(pack_bits(np.stack(masks(20))), 32, "cpu")
    assert torch.equal(bank.of_keys(keys, **drawn), bank.of_hashes(hashes, **drawn))
    lightest = np.argsort(bank.hole_fraction_N)[:5]
    np.testing.assert_array_equal(bank.chosen(hashes, lightest=0.25, **drawn), lightest[choose(hashes, 5, **drawn)])
    moving = KeepMasks(pack_bits(np.stack(masks(1))), 32, "cpu", augment=("shift",))
    lot_B4 = uniform(hashes, seed, epoch, KEEP_MASK, 5)[:, 1:]
    moved = [np.roll(masks(1)[0], (int(32 * down), int(32 * across)), (0, 1)) for _, _, down, across in lot_B4]
    np.testing.assert_array_equal(moving.of_hashes(hashes, **drawn)[:, 0], np.stack(moved))
    monkeypatch.setattr("msltrain.stream.keepmasks.bank.NUM_GENERATED", 2)
    made = KeepMasks.generate(64, seed=seed)
    holes = [generate_hole_mask(seed, number, 64).mean() for number in range(2)]
    np.testing.assert_allclose(made.hole_fraction_N, holes)


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


@pytest.mark.parametrize("grey", [False, True])
def test_a_range_of_hole_fractions_is_a_bank_of_its_own(grey: bool):
    """Each range holds its upper end; its masks are as grey, and move as much, as all."""
    counts = [50, 0, 20, 51, 10, 100]
    kept_NSS = np.ones((6, 10, 10), np.uint8)
    for mask_SS, count in zip(kept_NSS, counts):
        mask_SS.reshape(-1)[:count] = 0
    stored = np.where(kept_NSS == 1, 200, 60).astype(np.uint8) if grey else pack_bits(kept_NSS)
    bank = KeepMasks(stored, 10, "cpu", grey=grey)
    ranges = {(0.0, 0.1): [10], (0.1, 0.2): [20], (0.2, 0.5): [50], (0.5, 1.0): [51, 100], (0.1, 0.51): [50, 20, 51]}
    hashes = key_hash(map(str, range(60)))
    for (low, high), expected in ranges.items():
        part = bank.within(low, high)
        assert part is not None and len(part) == len(expected)
        np.testing.assert_allclose(100 * part.hole_fraction_N, expected)
        found = part.of_hashes(hashes, seed=0, epoch=0)
        levels = {200 / 255, 60 / 255} if grey else {0.0, 1.0}
        assert set(found.unique().tolist()) <= set(map(float, np.float32(list(levels))))
        assert {int((mask < 0.5).sum()) for mask in found} == set(expected)
    assert bank.within(0.51, 0.99) is None
    moving = KeepMasks(stored, 10, "cpu", grey=grey, augment=("shift",)).within(0.0, 0.1)
    assert (
        moving is not None and len({mask.numpy().tobytes() for mask in moving.of_hashes(hashes, seed=0, epoch=0)}) > 9
    )


def test_as_a_transform_every_image_of_a_batch_gets_a_mask_of_its_own():
    kept_NSS = np.ones((50, 6, 6), np.uint8)
    for number, mask_SS in enumerate(kept_NSS):
        mask_SS.reshape(-1)[number % 36] = mask_SS.reshape(-1)[(7 * number + 3) % 36] = 0
    holes = IrregularHoles(KeepMasks(pack_bits(kept_NSS), 6, "cpu"))
    known = {mask_SS.tobytes() for mask_SS in kept_NSS}
    image_BCSS = torch.arange(9 * 3 * 36, dtype=torch.float32).reshape(9, 3, 6, 6) - 400
    torch.manual_seed(0)
    masked_BCSS, keep_mask_B1SS, label = holes(image_BCSS, "label")
    assert torch.equal(masked_BCSS, image_BCSS * keep_mask_B1SS) and keep_mask_B1SS.shape == (9, 1, 6, 6)
    found = [mask.numpy().astype(np.uint8).tobytes() for mask in keep_mask_B1SS]
    assert set(found) <= known and len(set(found)) > 5 and label == "label"
    bytes_CSS = torch.full((3, 6, 6), 200, dtype=torch.uint8)
    masked_CSS, keep_mask_1SS = holes(bytes_CSS)
    assert masked_CSS.dtype == torch.uint8 and torch.equal(masked_CSS, bytes_CSS * keep_mask_1SS.to(torch.uint8))
    assert keep_mask_1SS.shape == (1, 6, 6) and keep_mask_1SS.dtype == torch.float32


def test_a_way_to_move_masks_that_is_none_is_refused():
    """Such masks stayed where they were."""
    with pytest.raises(UserError, match="augment is mirror; it may be any of flip, rotate, shift"):
        KeepMasks.generate(32, augment=("flip", "mirror"))
    assert KeepMasks.generate(32, augment="flip")._augment == {"flip"}


@pytest.mark.parametrize("options", [{"augment": ("flip",)}, {"image_size": 64}])
def test_open_masks_take_no_options_that_would_do_nothing(options):
    bank = KeepMasks.generate(32)
    with pytest.raises(UserError, match=r"give both to KeepMasks\.open"):
        IrregularHoles(bank, **options)
    assert IrregularHoles(bank, 32).keep_masks is bank
