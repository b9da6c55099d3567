"""Every kind of keep mask: what it hides, that (seed, epoch, key) decides it, that an object's box follows its crop."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from msldata.build.writer import ShardWriter
from msldata.contract.format import encode_target
from msldata.contract.keepmask import encode_level_png, pack_bits, resize_area
from msldata.contract.manifest import IMAGES, KEEP_MASKS, Manifest, shard_name
from msldata.contract.publish import write_manifest
from msldata.errors import UserError
from msldata.storage import LocalStorage
from msltrain.config import override
from msltrain.recipes import recipe
from msltrain.stream.config import KeepMaskConfig, StreamConfig
from msltrain.stream.keepmasks.bank import KeepMasks
from msltrain.stream.keepmasks.open_keep_masks import open_keep_masks
from msltrain.stream.keepmasks.shapes import BoxMasks, PatchMasks
from msltrain.stream.loader import Loader
from msltrain.stream.order.random import key_hash
from msltrain.stream.samples.shardset import open_shard_set
from tests.smallshards import write_images, write_keep_masks

SIZE = 32
STREAM = StreamConfig(image_size=SIZE, batch_size=8, num_threads=1)


def batch_of(count: int, first: int = 0) -> SimpleNamespace:
    """What a keep mask may look at of a batch."""
    keys = [f"s{number:06d}" for number in range(first, first + count)]
    return SimpleNamespace(
        keys=keys,
        key_hash_B=key_hash(keys),
        index_B=np.arange(first, first + count),
        crop_B4=np.tile([0, 0, 64, 96], (count, 1)),
        flip_B=np.zeros(count, bool),
    )


def take(batch: SimpleNamespace, places: Sequence[int]) -> SimpleNamespace:
    return SimpleNamespace(
        keys=[batch.keys[place] for place in places],
        key_hash_B=batch.key_hash_B[places],
        index_B=batch.index_B[places],
        crop_B4=batch.crop_B4[places],
        flip_B=batch.flip_B[places],
    )


# --- all kinds --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> tuple[Path, Path]:
    """A dataset of 40 images with objects, and one of seven keep masks."""
    root = tmp_path_factory.mktemp("data")
    write_objects(root / "images", [[(8 * ((n + m) % 5), 8, 16 + n % 3, 8) for m in range(4)] for n in range(40)])
    rng = np.random.default_rng(0)
    write_keep_masks(root / "masks", [(rng.random((SIZE, SIZE)) < 0.5).astype(np.uint8) for _ in range(7)])
    return root / "images", root / "masks"


def opened(places: tuple[Path, Path], **settings):
    images, masks = places
    return open_keep_masks(
        KeepMaskConfig(**settings), [masks], shards=open_shard_set(images), stream=STREAM, device="cpu"
    )


KINDS = [
    {"kind": "stored"},
    {"kind": "stored", "augment": ("flip", "rotate", "shift")},
    {"kind": "patch", "patch_size": 8},
    {"kind": "box"},
    {"kind": "object"},
    {"kind": "none"},
]


@pytest.mark.parametrize("settings", KINDS, ids=lambda settings: "-".join(map(str, settings.values())))
def test_seed_epoch_and_key_decide_and_nothing_else(places, settings):
    masks, batch = opened(places, **settings), batch_of(40)
    whole = masks.keep_masks(batch, seed=3, epoch=5)
    assert whole.shape == (40, 1, SIZE, SIZE) and whole.dtype == torch.float32
    assert set(whole.unique().tolist()) <= {0.0, 1.0}
    # The same samples in other batches, in another order, by another object: as on other ranks, or after a resumption.
    for part in ([5], [39, 0, 7], list(range(20, 40)), []):
        assert torch.equal(opened(places, **settings).keep_masks(take(batch, part), seed=3, epoch=5), whole[part])
    if settings["kind"] != "none":
        for seed, epoch in ((3, 6), (4, 5)):
            changed = (masks.keep_masks(batch, seed=seed, epoch=epoch) != whole).flatten(1).any(1)
            assert changed.float().mean() > 0.5


def test_nothing_is_hidden(places):
    assert opened(places, kind="none").keep_masks(batch_of(3), seed=0, epoch=0).min() == 1


# --- patches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("patch_size", "hole_fraction"), [(16, 0.75), (16, 0.5), (32, 0.3), (64, 0.5)])
def test_patches_hide_exactly_their_share(patch_size, hole_fraction):
    masks = PatchMasks(448, "cpu", patch_size=patch_size, hole_fraction=hole_fraction)
    keep_mask_BHW = masks.keep_masks(batch_of(20), seed=0, epoch=0)[:, 0]
    side = 448 // patch_size
    tile_BhpwP = keep_mask_BHW.reshape(20, side, patch_size, side, patch_size)
    assert torch.equal(tile_BhpwP.amin((2, 4)), tile_BhpwP.amax((2, 4))), "a patch is hidden as a whole"
    hidden_B = (tile_BhpwP.amin((2, 4)) == 0).sum((1, 2))
    assert set(hidden_B.tolist()) == {round(hole_fraction * side**2)}


def test_every_patch_is_hidden_as_often():
    masks = PatchMasks(SIZE, "cpu", patch_size=8, hole_fraction=0.75)
    often_hw = 1 - masks.keep_masks(batch_of(4000), seed=0, epoch=0)[:, 0, ::8, ::8].mean(0)
    assert (often_hw - 0.75).abs().max() < 4 * math.sqrt(0.75 * 0.25 / 4000)


def test_patches_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match=r"patch_size is 15, which does not divide stream\.image_size 32"):
        PatchMasks(SIZE, "cpu", patch_size=15, hole_fraction=0.5)


# --- one box ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hole_fraction", [0.01, 0.2, 0.5, 0.9, 0.999])
def test_a_box_is_whole_and_of_its_share(hole_fraction):
    keep_mask_BHW = BoxMasks(224, "cpu", hole_fraction=hole_fraction).keep_masks(batch_of(500), seed=0, epoch=0)[:, 0]
    hole_BHW = keep_mask_BHW == 0
    height_B, width_B = hole_BHW.any(2).sum(1), hole_BHW.any(1).sum(1)
    assert torch.equal(hole_BHW.sum((1, 2)), height_B * width_B), "a full rectangle"
    # Height times the nearest width: at most half a column too much or too little.
    assert (hole_BHW.sum((1, 2)) - hole_fraction * 224**2).abs().max() <= 224 / 2
    ratio_B = height_B / width_B
    longest = min(2, 1 / hole_fraction)
    assert ratio_B.max() <= longest * 1.1 and ratio_B.min() >= 1 / longest / 1.1
    if hole_fraction < 0.9:
        assert ratio_B.max() > 1.7 and ratio_B.min() < 1 / 1.7
        often_HW = hole_BHW.any(0)[3:-3, 3:-3]
        assert often_HW.any(0).all() and often_HW.any(1).all(), "it can lie at every side"


# --- the box of an object ---------------------------------------------------------------------------------------------


def picture(width: int, height: int, boxes: Sequence[tuple[float, ...]]) -> bytes:
    """A black JPEG with white boxes; where they begin and end with whole blocks, black stays black and white white."""
    pixel_HWC = np.zeros((height, width, 3), dtype=np.uint8)
    for left, top, box_width, box_height in boxes:
        pixel_HWC[int(top) : math.ceil(top + box_height), int(left) : math.ceil(left + box_width)] = 255
    data = io.BytesIO()
    Image.fromarray(pixel_HWC).save(data, "JPEG", quality=100, subsampling=0)
    return data.getvalue()


def write_objects(folder: Path, boxes: Sequence[Sequence[tuple[float, ...]]], *, crowd=(), size=(96, 64)) -> None:
    """One image per entry, white boxes on black; shards of three. Boxes numbered in ``crowd`` are crowds everywhere."""
    storage, infos = LocalStorage(folder), []
    width, height = size
    for start in range(0, len(boxes), 3):
        with ShardWriter(storage, shard_name("boxes", "train", start // 3), kind=IMAGES, plan="test") as writer:
            for number, own in enumerate(boxes[start : start + 3], start):
                objects = [
                    {
                        "class_index": 0,
                        "box": list(box),
                        "area": box[2] * box[3],
                        "difficult": False,
                        "truncated": None,
                        "occluded": None,
                        "crowd": place in crowd,
                    }
                    for place, box in enumerate(own)
                ]
                row = {"width": width, "height": height, "positives": [0], "ignored": [], "objects": objects}
                target = (".target.npy", encode_target([0], 1))
                writer.add(f"s{number:06d}", [(".jpg", picture(*size, own)), (".json", b"{}"), target], row)
            infos.append(writer.publish())
    write_manifest(
        storage, Manifest(kind=IMAGES, dataset="boxes", split="train", classes=("box",), shards=tuple(infos))
    )


@pytest.mark.parametrize("image_size", [24, 64, 200], ids=["smaller", "as large", "larger"])
@pytest.mark.parametrize("training", [True, False])
def test_an_objects_box_covers_every_trace_of_it_and_little_more(tmp_path, image_size, training):
    boxes = [[(8.0 * (n % 9), 8.0 * (n % 5), 16.0, 24.0)] for n in range(24)]
    write_objects(tmp_path / "shards", boxes)
    shards = open_shard_set(tmp_path / "shards")
    stream = StreamConfig(image_size=image_size, batch_size=8, num_threads=2, drop_last=False)
    masks = open_keep_masks(KeepMaskConfig(kind="object"), (), shards=shards, stream=stream, device="cpu")
    met = 0
    with Loader(shards, stream, device="cpu", training=training, seed=4) as loader:
        for epoch in range(3):
            loader.set_epoch(epoch)
            for batch in loader:
                hole_BHW = masks.keep_masks(batch, seed=4, epoch=epoch)[:, 0] == 0
                seen_BHW = batch.image_BCHW.amax(1) > 1.5 / 255  # the JPEG's own rounding
                assert not (seen_BHW & ~hole_BHW).any(), "a trace of the object is left"
                for seen_HW, hole_HW in zip(seen_BHW, hole_BHW, strict=True):
                    if seen_HW.any():
                        met += 1
                        for side in (0, 1):  # the box is at most a pixel's weight too faint to see wider on each side
                            assert int(hole_HW.any(side).sum()) - int(seen_HW.any(side).sum()) <= 2
            loader.load_state_dict({**loader.state_dict(), "epoch": epoch + 1, "step": 0})
    assert met > 60


def test_one_of_the_objects_is_hidden_but_never_a_crowd(tmp_path):
    own = [(0.0, 0.0, 8.0, 8.0), (40.0, 0.0, 8.0, 8.0), (80.0, 40.0, 8.0, 8.0)]
    write_objects(tmp_path / "shards", [own] * 600, crowd={1})
    shards = open_shard_set(tmp_path / "shards")
    masks = open_keep_masks(KeepMaskConfig(kind="object"), (), shards=shards, stream=STREAM, device="cpu")
    hole_BHW = masks.keep_masks(batch_of(600), seed=0, epoch=0)[:, 0] == 0
    upper, lower = hole_BHW[:, 0, 0], hole_BHW[:, 21, 28]
    assert (upper != lower).all(), "exactly one"
    assert not hole_BHW[:, 0, 14].any(), "the crowd stays"
    assert 240 < upper.sum() < 360, "evenly"


def test_where_the_crop_shows_no_object_nothing_is_hidden(tmp_path):
    write_objects(tmp_path / "shards", [[(0.0, 0.0, 1.0, 1.0)], []] * 100)
    shards = open_shard_set(tmp_path / "shards")
    masks = open_keep_masks(KeepMaskConfig(kind="object"), (), shards=shards, stream=STREAM, device="cpu")
    batch = batch_of(200)
    batch.crop_B4[100:] = [2, 2, 60, 90]
    hidden_B = (masks.keep_masks(batch, seed=0, epoch=0) == 0).flatten(1).any(1)
    assert hidden_B[:100:2].all() and not hidden_B[1::2].any()
    assert not hidden_B[100:].any(), "the corner is not in the crop"


def test_a_dataset_without_objects_is_refused(tmp_path):
    write_images(tmp_path / "shards", [3])
    with pytest.raises(UserError, match=r"hold no objects, so keep_mask\.kind=object has nothing to hide"):
        opened((tmp_path / "shards", tmp_path), kind="object")


# --- stored ones, moved and grey --------------------------------------------------------------------------------------


def bank_of(mask_HW: np.ndarray, *augment: str) -> KeepMasks:
    return KeepMasks(pack_bits(mask_HW)[None], mask_HW.shape[0], "cpu", augment=augment)


def corner() -> np.ndarray:
    """Different under every turn and flip."""
    mask_HW = np.zeros((9, 9), dtype=np.uint8)
    mask_HW[0, :3] = mask_HW[1, 0] = 1
    return mask_HW


def counted(bank: KeepMasks, count: int) -> dict[bytes, int]:
    found: dict[bytes, int] = {}
    for keep_mask_HW in bank.keep_masks(batch_of(count), seed=0, epoch=0)[:, 0].numpy().astype(np.uint8):
        found[keep_mask_HW.tobytes()] = found.get(keep_mask_HW.tobytes(), 0) + 1
    return found


@pytest.mark.parametrize(
    ("augment", "expected"),
    [
        (("flip",), [corner(), corner()[:, ::-1]]),
        (("rotate",), [np.rot90(corner(), turns) for turns in range(4)]),
        (("flip", "rotate"), [np.rot90(side, turns) for side in (corner(), corner()[:, ::-1]) for turns in range(4)]),
        (("shift",), [np.roll(corner(), (down, across), (0, 1)) for down in range(9) for across in range(9)]),
    ],
)
def test_moved_masks_are_all_the_moves_there_are_and_equally_often(augment, expected):
    count = 200 * len(expected)
    found = counted(bank_of(corner(), *augment), count)
    assert found.keys() == {np.ascontiguousarray(mask).tobytes() for mask in expected}
    assert all(abs(times - 200) < 5 * math.sqrt(200) for times in found.values())


def test_moves_leave_the_choice_and_the_hole_fraction_as_they_are(places):
    plain = opened(places, kind="stored").keep_masks(batch_of(60), seed=0, epoch=0)
    moved = opened(places, kind="stored", augment=("flip", "rotate", "shift")).keep_masks(batch_of(60), seed=0, epoch=0)
    assert not torch.equal(plain, moved)
    assert torch.equal(plain.sum((1, 2, 3)), moved.sum((1, 2, 3)))


def test_moves_do_not_go_with_the_choice():
    """Numbers that were used twice would give each mask moves of its own."""
    bank = KeepMasks(np.stack([pack_bits(corner()), pack_bits(1 - corner())]), 9, "cpu", augment=("flip",))
    batch = batch_of(4000)
    second_B = bank.chosen(batch.key_hash_B, seed=0, epoch=0) == 1
    flipped_B = (bank.keep_masks(batch, seed=0, epoch=0)[:, 0, 0, 0] == 0).numpy() != second_B
    for cell in (second_B & flipped_B, second_B & ~flipped_B, ~second_B & flipped_B, ~second_B & ~flipped_B):
        assert abs(cell.mean() - 0.25) < 5 * math.sqrt(0.25 * 0.75 / 4000)


def write_grey(folder: Path, levels: Sequence[np.ndarray]) -> None:
    storage = LocalStorage(folder)
    with ShardWriter(storage, shard_name("masks", "soft", 0), kind=KEEP_MASKS, plan="test") as writer:
        for number, level_HW in enumerate(levels):
            row = {"width": 40, "height": 40, "hole_fraction": float((level_HW <= 127).mean()), "source": "x"}
            writer.add(f"m{number}", [(".png", encode_level_png(level_HW)), (".json", b"{}")], row)
        info = writer.publish()
    options = {"binarize": False}
    write_manifest(storage, Manifest(kind=KEEP_MASKS, dataset="masks", split="soft", shards=(info,), options=options))


def test_grey_masks_are_handed_out_between_0_and_1(tmp_path, places):
    rng = np.random.default_rng(1)
    levels = [rng.integers(0, 256, (40, 40), dtype=np.uint8) for _ in range(3)]
    write_grey(tmp_path / "soft", levels)
    bank = KeepMasks.open([tmp_path / "soft", places[1]], SIZE, "cpu")
    assert len(bank) == 10
    batch = batch_of(50)
    chosen_B = bank.chosen(batch.key_hash_B, seed=0, epoch=0)
    keep_mask_BHW = bank.keep_masks(batch, seed=0, epoch=0)[:, 0].numpy()
    for keep_mask_HW, number in zip(keep_mask_BHW, chosen_B, strict=True):
        if number < 3:
            level_HW = resize_area(levels[number], SIZE, SIZE)
            np.testing.assert_array_equal(keep_mask_HW, (level_HW / np.float32(255)).astype(np.float32))
            assert bank.hole_fraction_N[number] == (level_HW <= 127).mean()
        else:
            assert set(np.unique(keep_mask_HW)) == {0, 1}, "binary ones beside them stay binary"


# --- settings ---------------------------------------------------------------------------------------------------------


def test_recipes_keep_the_published_masks():
    assert recipe("msl-c-voc2007").keep_mask == KeepMaskConfig()
    assert (KeepMaskConfig().kind, KeepMaskConfig().augment, KeepMaskConfig().visible_level) == ("stored", (), 1.0)


def test_settings_are_taken_from_the_command_line():
    changes = ["keep_mask.augment=flip,shift", "keep_mask.visible_level=0.882"]
    assert override(recipe("smoke"), changes).keep_mask.augment == ("flip", "shift")
    assert override(recipe("smoke"), ["keep_mask.kind=patch", "keep_mask.hole_fraction=0.75"]).keep_mask.kind == "patch"


@pytest.mark.parametrize(
    ("assignments", "words"),
    [
        (["keep_mask.kind=cow"], "'cow' is not one of stored, generated, patch, box, object, none"),
        (["keep_mask.augment=blur"], "'blur' is not one of flip, rotate, shift"),
        (["keep_mask.kind=box", "keep_mask.augment=flip"], "augment=flip is for stored and generated keep masks"),
        (["keep_mask.hole_fraction=1"], "must lie between 0 and 1"),
        (["keep_mask.patch_size=0"], "must be at least 1"),
        (["keep_mask.visible_level=1.1"], "above 0 and at most 1"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(assignments, words):
    with pytest.raises(UserError, match=words):
        override(recipe("smoke"), assignments)
