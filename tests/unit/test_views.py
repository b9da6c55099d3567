"""Masked views: which images get one, from which subset, what fills it, and which pairs a mask hides."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from msldata.build.writer import ShardWriter
from msldata.contract.format import encode_target
from msldata.contract.manifest import IMAGES, Manifest, shard_name
from msldata.contract.publish import write_manifest
from msldata.errors import UserError
from msldata.storage import LocalStorage
from msltrain.config import DataConfig, OptimConfig, TrainConfig
from msltrain.hosts.distributed import Ranks
from msltrain.stream.config import KeepMaskConfig, StreamConfig
from msltrain.stream.keepmasks.bank import KeepMasks
from msltrain.stream.keepmasks.donors import Donors
from msltrain.stream.keepmasks.masked_views import MaskedView, MaskedViews
from msltrain.stream.keepmasks.objects import Objects
from msltrain.stream.loader import Loader
from msltrain.stream.order.random import DONOR, key_hash, uniform
from msltrain.stream.pixels.batch import Batch
from msltrain.stream.samples.holdout import hold_out
from msltrain.stream.samples.shardset import open_shard_set
from msltrain.training.data import TrainData
from tests.smallshards import write_images, write_keep_masks
from tests.unit.test_keepmasks import write_objects

SIZE = 32
STREAM = StreamConfig(image_size=SIZE, batch_size=8, num_threads=1, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 images with an object each; four masks with heavy holes and four with light ones."""
    folder = tmp_path_factory.mktemp("data")
    write_images(folder / "images", [20, 20], with_objects=True)
    for name, hidden in (("high", (20, 22, 24, 26)), ("low", (2, 4, 6, 8))):
        masks = []
        for rows in hidden:
            mask = np.ones((SIZE, SIZE), np.uint8)
            mask[:rows] = 0
            masks.append(mask)
        write_keep_masks(folder / name, masks)
    return folder


def views(root: Path, subsets: Sequence[str] = ("high",), **settings) -> MaskedViews:
    places = [root / name for name in subsets]
    shards = open_shard_set(root / "images")
    return MaskedViews(KeepMaskConfig(**settings), places, shards=shards, stream=STREAM, device="cpu")


def batch_of(count: int, num_classes: int = 3) -> Batch:
    keys = [f"s{number:06d}" for number in range(count)]
    return Batch(
        image_BCHW=torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)),
        target_BK=torch.eye(num_classes)[torch.arange(count) % num_classes],
        ignore_BK=torch.zeros(count, num_classes, dtype=torch.bool),
        keys=keys,
        key_hash_B=key_hash(keys),
        index_B=np.arange(count) % 40,
        crop_B4=np.tile([0, 0, 36, 40], (count, 1)),
        flip_B=np.zeros(count, bool),
    )


def take(batch: Batch, rows: Sequence[int]) -> Batch:
    places = list(rows)
    return Batch(
        *(tensor[places] for tensor in (batch.image_BCHW, batch.target_BK, batch.ignore_BK)),
        [batch.keys[place] for place in places],
        *(array[places] for array in (batch.key_hash_B, batch.index_B, batch.crop_B4, batch.flip_B)),
    )


def parts(view: MaskedView) -> dict[str, torch.Tensor]:
    return {name: value for name in MaskedView.__slots__ if (value := getattr(view, name)) is not None}


SETTINGS = [
    {"share": 0.5},
    {"subset_weights": (0.5, 0.3), "ramp_epochs": 9},
    {"fill": "noise", "ignore_below": 0.5},
    {"fill": "image", "share": 0.7},
    {"fill": "object"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: "-".join(settings))
def test_seed_epoch_and_key_decide_in_any_batch_and_after_a_resumption(root: Path, settings: dict):
    subsets = ("high", "low") if "subset_weights" in settings else ("high",)
    batch = batch_of(40)
    whole = parts(views(root, subsets, **settings).of(batch, seed=3, epoch=5))
    for rows in ([7], [39, 0, 11], range(20, 40)):
        part = parts(views(root, subsets, **settings).of(take(batch, rows), seed=3, epoch=5))
        assert set(part) == set(whole)
        for name, value in part.items():
            assert torch.equal(value, whole[name][list(rows)]), name
    for seed, epoch in ((4, 5), (3, 6)):
        other = parts(views(root, subsets, **settings).of(batch, seed=seed, epoch=epoch))
        changing = set(whole) - {"ignore_BK"}
        for name in changing:  # which images are masked, too: else the same ones would be, in every epoch
            assert not torch.equal(other[name], whole[name]), name


def test_as_published_there_is_nothing_but_the_keep_mask(root: Path):
    view = views(root).of(batch_of(40), seed=0, epoch=0)
    bank = KeepMasks.open([root / "high"], SIZE, "cpu")
    assert set(parts(view)) == {"keep_mask_B1HW"}
    assert torch.equal(view.keep_mask_B1HW, bank.keep_masks(batch_of(40), seed=0, epoch=0))


def test_a_share_of_the_images_gets_a_masked_view(root: Path):
    view = views(root, share=0.3).of(batch_of(4000), seed=0, epoch=0)
    assert view.masked_B is not None
    assert view.masked_B.float().mean().item() == pytest.approx(0.3, abs=0.03)
    rows = hidden_rows(view)[view.masked_B.numpy()]  # whether one is masked says nothing about the mask it gets
    assert [np.mean(rows == hidden) for hidden in (20, 22, 24, 26)] == pytest.approx([0.25] * 4, abs=0.05)


def hidden_rows(view: MaskedView) -> np.ndarray:
    return (SIZE - view.keep_mask_B1HW[:, 0, :, 0].sum(1)).int().numpy()


def test_subsets_serve_their_shares_and_the_rest_stays_whole(root: Path):
    mixed = views(root, ("high", "low"), subset_weights=(0.5, 0.3))
    rows = hidden_rows(mixed.of(batch_of(4000), seed=0, epoch=0))
    assert np.mean(rows >= 20) == pytest.approx(0.5, abs=0.03)
    assert np.mean((rows > 0) & (rows <= 8)) == pytest.approx(0.3, abs=0.03)
    assert set(rows) == {0, 2, 4, 6, 8, 20, 22, 24, 26}
    full = views(root, ("high", "low"), subset_weights=(0.6, 0.4))
    assert 0 not in hidden_rows(full.of(batch_of(4000), seed=0, epoch=0))
    with pytest.raises(UserError, match="has 1 numbers for 2 folders"):
        views(root, ("high", "low"), subset_weights=(0.6,))


def test_a_ramp_takes_the_lightest_holes_first(root: Path):
    ramp = views(root, ("high",), ramp_epochs=4)
    seen = [set(hidden_rows(ramp.of(batch_of(400), seed=0, epoch=epoch)).tolist()) for epoch in range(6)]
    assert seen == [{20}, {20, 22}, {20, 22, 24}, {20, 22, 24, 26}, {20, 22, 24, 26}, {20, 22, 24, 26}]
    plain = views(root, ("high",)).of(batch_of(400), seed=0, epoch=4)
    assert torch.equal(ramp.of(batch_of(400), seed=0, epoch=4).keep_mask_B1HW, plain.keep_mask_B1HW)


# --- pixels of others -------------------------------------------------------------------------------------------------


def test_other_images_fill_holes_and_what_they_show_does_not_count(root: Path):
    batch = batch_of(200)
    view = views(root, fill="image").of(batch, seed=0, epoch=0)
    shards = open_shard_set(root / "images")
    with Loader(shards, replace(STREAM, batch_size=40), device="cpu", training=False) as loader:
        [all_images] = list(loader)
    known = torch.cat((all_images.image_BCHW, all_images.image_BCHW.flip(3)))
    assert view.filling_BCHW is not None and view.ignore_BK is not None
    for row in range(0, 200, 20):
        distance, donor = (known - view.filling_BCHW[row]).abs().flatten(1).amax(1).min(0)
        assert distance < 1e-4
        shown = all_images.target_BK[donor % 40].bool() | all_images.ignore_BK[donor % 40]
        assert torch.equal(view.ignore_BK[row], shown & (batch.target_BK[row] == 0))
    assert not (view.ignore_BK & (batch.target_BK > 0)).any()


def test_where_nothing_is_hidden_nothing_foreign_shows(root: Path):
    view = views(root, ("high",), fill="image", subset_weights=(0.5,)).of(batch_of(100), seed=0, epoch=0)
    whole_B = view.keep_mask_B1HW.amin((1, 2, 3)) == 1
    assert view.ignore_BK is not None and whole_B.any()
    assert not view.ignore_BK[whole_B].any() and view.ignore_BK[~whole_B].any()


def test_objects_fill_holes_with_nothing_around_them(tmp_path: Path):
    """White boxes on black: a filling is white but for what the box's rim has smeared."""
    write_objects(tmp_path / "images", [[(8.0 * (n % 5), 8.0, 32.0, 32.0)] for n in range(12)])
    stream = StreamConfig(image_size=64, batch_size=4, num_threads=1)
    donors = Donors("object", open_shard_set(tmp_path / "images"), stream, "cpu")
    assert len(donors) == 12
    filling, shown_BK = donors.filling(key_hash(["a", "b", "c"]), seed=0, epoch=0)
    assert filling.shape == (3, 3, 64, 64) and shown_BK.all()
    assert (filling[:, :, 8:-8, 8:-8] > 0.99).all()


def test_each_object_is_cut_out_of_its_own_photograph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("msltrain.stream.keepmasks.donors._BATCH", 4)  # of three batches
    write_objects(tmp_path / "images", [[(8.0 * (n % 5), 8.0, 32.0, 32.0)] for n in range(12)])
    stream = StreamConfig(image_size=64, num_threads=1)
    donors = Donors("object", open_shard_set(tmp_path / "images"), stream, "cpu")
    filling, _ = donors.filling(key_hash(map(str, range(50))), seed=0, epoch=0)
    assert (filling[:, :, 8:-8, 8:-8] > 0.99).all()


Thing = tuple[int, tuple[float, float, float, float], bool]
"""Class, box (left, top, width, height) and whether it is a crowd."""
SCENES: list[list[Thing]] = [
    [(1, (8, 16, 40, 32), False), (0, (64, 8, 24, 48), False)],
    [(2, (0, 0, 48, 32), True), (2, (16, 32, 64, 24), False)],  # the crowd is no donor
    [],
    [(0, (8, 8, 72, 2), False), (1, (40, 16, 24, 40), False), (1, (0, 24, 32, 32), False)],  # the first one is too flat
    [(2, (24, 8, 56, 40), False)],
    [(0, (8, 8, 40, 24), False), (2, (48, 32, 40, 32), False)],
    [(1, (16, 0, 32, 56), False)],
]
"""Seven photographs of 96 x 64, of up to three objects of three classes, none of them where another one is."""


def colour_of(image: int, thing: int) -> tuple[int, int, int]:
    return 40 + 30 * image, 60 + 90 * thing, 200 - 25 * image


def write_scenes(folder: Path) -> None:
    """Each object has a colour of its own in its left half, and is black in its right; shards of three."""
    storage, infos, size = LocalStorage(folder), [], (96, 64)
    for start in range(0, len(SCENES), 3):
        with ShardWriter(storage, shard_name("scenes", "train", start // 3), kind=IMAGES, plan="test") as writer:
            for number, things in enumerate(SCENES[start : start + 3], start):
                photo, data, objects = Image.new("RGB", size, "white"), io.BytesIO(), []
                for place, (class_, (left, top, width, height), crowd) in enumerate(things):
                    photo.paste("black", (left, top, left + width, top + height))
                    photo.paste(colour_of(number, place), (left, top, left + width // 2, top + height))
                    known = {"class_index": class_, "box": [left, top, width, height], "area": float(width * height)}
                    unknown = {"difficult": False, "truncated": None, "occluded": None}
                    objects.append(known | unknown | {"crowd": crowd})
                photo.save(data, "JPEG", quality=100, subsampling=0)
                positives = sorted({class_ for class_, *_ in things})
                row = {"width": 96, "height": 64, "positives": positives, "ignored": [], "objects": objects}
                target = (".target.npy", encode_target(positives, 3))
                writer.add(f"s{number:06d}", [(".jpg", data.getvalue()), (".json", b"{}"), target], row)
            infos.append(writer.publish())
    write_manifest(
        storage, Manifest(kind=IMAGES, dataset="scenes", split="train", classes=("a", "b", "c"), shards=tuple(infos))
    )


@pytest.mark.parametrize("most", [256, 4], ids=["of all photographs", "of some"])
def test_which_object_fills_a_hole_and_as_what_it_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int):
    """Of the objects in stored order that are large and no crowds the one of the first number, or the next that is in
    another photograph; by the second number mirrored."""
    monkeypatch.setattr("msltrain.stream.keepmasks.donors._BATCH", 2)
    monkeypatch.setattr("msltrain.stream.keepmasks.donors.NUM_IMAGES", most)
    write_scenes(tmp_path)
    shards, stream = open_shard_set(tmp_path), replace(STREAM, image_size=48, num_buffers=2)
    part = shards if most > len(SCENES) else hold_out(shards, most / len(SCENES), seed=1)[1]
    with Loader(part, stream, training=False) as loader:
        images = [int(key[1:]) for batch in loader for key in batch.keys]
    assert 1 < len(images) <= most and (most > len(SCENES)) == (images == list(range(7)))
    donors = Donors("object", shards, stream, "cpu")
    eligible = [
        (image, thing, class_)
        for image in images
        for thing, (class_, (*_, height), crowd) in enumerate(SCENES[image])
        if not crowd and height > 2
    ]
    assert len(donors) == len(eligible) > 3
    keys = [*(f"s{number:06d}" for number in range(7)), *map(str, range(60))]
    own = 0
    for epoch in range(4):
        filling, shown_BK = donors.filling(key_hash(keys), seed=5, epoch=epoch)
        for row, (key, (first, second)) in enumerate(zip(keys, uniform(key_hash(keys), 5, epoch, DONOR, 2))):
            number = int(first * len(eligible))
            while key == f"s{eligible[number][0]:06d}":
                number, own = (number + 1) % len(eligible), own + 1
            image, thing, class_ = eligible[number]
            scale, offset = (255 * torch.tensor(values)[:, None] for values in (stream.std, stream.mean))
            left, right = (
                filling[row, :, 12:-12, columns].flatten(1) * scale + offset
                for columns in (slice(11, 15), slice(-15, -11))
            )
            coloured, black = (right, left) if second >= 0.5 else (left, right)
            assert black.abs().max() < 10
            assert (coloured - torch.tensor(colour_of(image, thing))[:, None]).abs().max() < 10
            assert shown_BK[row].nonzero().flatten().tolist() == [class_]
    assert own > 1, "no photograph had drawn itself"


def test_what_an_objects_box_shows_of_others_counts_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A person on a sofa, a crowd behind both, and a flat thing beside them that touches the sofa without any area."""
    sofa, person, crowd = (0, (8, 16, 72, 40), False), (1, (24, 8, 24, 32), False), (2, (64, 0, 32, 32), True)
    scenes: list[list[Thing]] = [[sofa, person, crowd, (2, (80, 32, 8, 32), False)], [(2, (16, 0, 32, 56), False)]]
    monkeypatch.setitem(globals(), "SCENES", scenes)
    write_scenes(tmp_path)
    donors = Donors("object", open_shard_set(tmp_path), replace(STREAM, image_size=48), "cpu")
    keys = list(map(str, range(60)))
    _, shown_BK = donors.filling(key_hash(keys), seed=5, epoch=0)
    number_B = (uniform(key_hash(keys), 5, 0, DONOR, 2)[:, 0] * 3).astype(int)
    shown_by = [[True, True, True], [True, True, False], [False, False, True]]
    assert len(donors) == 3 and set(number_B) == {0, 1, 2}
    assert shown_BK.tolist() == [shown_by[number] for number in number_B]


def left_of(things: Sequence[Thing], crop: Sequence[int], is_flipped: bool, keep_mask_SS: np.ndarray) -> list[float]:
    """The share of each object that crop and hole leave, pixel by pixel."""
    side, shares = len(keep_mask_SS), []
    crop_top, crop_left, crop_height, crop_width = crop
    for _, (left, top, width, height), _ in things:
        first_x, last_x = max(left, crop_left), min(left + width, crop_left + crop_width)
        first_y, last_y = max(top, crop_top), min(top + height, crop_top + crop_height)
        if last_x <= first_x or last_y <= first_y:
            shares.append(0.0)
            continue
        columns = range(
            math.floor((first_x - crop_left) * side / crop_width), math.ceil((last_x - crop_left) * side / crop_width)
        )
        rows = range(
            math.floor((first_y - crop_top) * side / crop_height), math.ceil((last_y - crop_top) * side / crop_height)
        )
        seen = [keep_mask_SS[y, side - 1 - x if is_flipped else x] for y in rows for x in columns]
        shares.append(float(np.mean(seen)) * (last_x - first_x) * (last_y - first_y) / (width * height))
    return shares


def scene_batch(numbers: Sequence[int], crops: Sequence[Sequence[int]], flips: Sequence[bool]) -> Batch:
    keys = [f"s{number:06d}" for number in numbers]
    target_BK = torch.zeros(len(numbers), 3)
    for row, number in enumerate(numbers):
        target_BK[row, [class_ for class_, *_ in SCENES[number]]] = 1
    return Batch(
        image_BCHW=torch.zeros(len(numbers), 3, SIZE, SIZE),
        target_BK=target_BK,
        ignore_BK=torch.zeros(len(numbers), 3, dtype=torch.bool),
        keys=keys,
        key_hash_B=key_hash(keys),
        index_B=np.array(numbers),
        crop_B4=np.array(crops),
        flip_B=np.array(flips),
    )


ORDER = [5, 0, 2, 3, 1, 6, 4, 3]
CROPS = [(0, 0, 64, 96), (8, 16, 48, 56), (0, 0, 64, 96), (16, 8, 40, 72), (4, 20, 60, 64), (0, 30, 44, 40)] * 2
FLIPS = [True, False, True, False, True, True, False, True]


def test_a_class_is_as_hidden_as_the_least_hidden_of_its_objects(tmp_path: Path):
    write_scenes(tmp_path)
    objects, batch = Objects(open_shard_set(tmp_path)), scene_batch(ORDER, CROPS[:8], FLIPS)
    keep_mask_B1SS = torch.zeros(8, 1, SIZE, SIZE)
    for row in range(8):  # visible: other rows and columns in each
        keep_mask_B1SS[row, 0, 2 + row : 26 - row // 2, 3 * row % 11 : 30 - row] = 1
    most_BK = np.full((8, 3), np.inf)
    for row, number in enumerate(ORDER):
        shares = left_of(SCENES[number], CROPS[row], FLIPS[row], keep_mask_B1SS[row, 0].numpy())
        for (class_, *_), share in sorted(zip(SCENES[number], shares), key=lambda pair: pair[1]):
            most_BK[row, class_] = share
    levels = np.unique(most_BK[most_BK < 1])
    assert len(levels) >= 8 and levels[0] == 0
    for least in (*(levels[1:] - 1e-4), *(levels + 1e-4)):
        hidden_BK = objects.hidden(batch, keep_mask_B1SS, least, 3)
        assert hidden_BK.tolist() == (most_BK < least).tolist(), least


def test_what_is_hidden_and_what_shows_in_its_place_are_both_left_out(tmp_path: Path, root: Path):
    write_scenes(tmp_path)
    shards, stream = open_shard_set(tmp_path), replace(STREAM, image_size=SIZE)
    config = KeepMaskConfig(fill="object", ignore_below=0.4, subset_weights=(0.7,))
    batch = scene_batch(ORDER, CROPS[:8], FLIPS)
    batch.target_BK[[1, 3], [0, 1]] = 0  # all its objects are difficult
    both = MaskedViews(config, [root / "high"], shards=shards, stream=stream, device="cpu")
    donors, objects, cases = Donors("object", shards, stream, "cpu"), Objects(shards), np.zeros(4, int)
    for epoch in range(4):
        view = both.of(batch, seed=2, epoch=epoch)
        _, shown_BK = donors.filling(batch.key_hash_B, seed=2, epoch=epoch)
        hidden_BK = objects.hidden(batch, view.keep_mask_B1HW, 0.4, 3)
        assert view.ignore_BK is not None
        for row in range(8):
            has_hole = view.keep_mask_B1HW[row].min() == 0
            for k in range(3):
                is_there, shown, hidden = batch.target_BK[row, k] == 1, shown_BK[row, k], hidden_BK[row, k]
                expected = bool(hidden) if is_there else bool(shown and has_hole)
                assert view.ignore_BK[row, k] == expected
                alone = not is_there and hidden and not shown
                cases += [is_there and hidden, alone, is_there and shown, shown and not has_hole]
    assert cases.min() > 0, "nothing to see"


def test_parts_of_a_view_hold_what_belongs_together():
    keep_mask_B1HW, filling_BCHW = torch.rand(5, 1, 4, 6), torch.rand(5, 3, 4, 6)
    ignore_BK, masked_B = torch.rand(5, 7) > 0.5, torch.tensor([True, False, False, True, True])
    whole = MaskedView(keep_mask_B1HW, filling_BCHW, ignore_BK, masked_B)
    some = MaskedView(keep_mask_B1HW, ignore_BK=ignore_BK)
    for view in (whole, some):
        cut = view.chunk(3)
        assert [len(part.keep_mask_B1HW) for part in cut] == [2, 2, 1] and [*parts(cut[1])] == [*parts(view)]
        for name, tensor in parts(view).items():
            assert torch.equal(torch.cat([getattr(part, name) for part in cut]), tensor), name


def test_small_objects_are_no_filling(tmp_path: Path):
    write_objects(tmp_path / "images", [[(8.0, 8.0, 8.0, 8.0)]] * 6)
    stream = StreamConfig(image_size=64, batch_size=4, num_threads=1)
    with pytest.raises(UserError, match="no annotated object is large enough to fill holes with"):
        Donors("object", open_shard_set(tmp_path / "images"), stream, "cpu")


# --- what a mask hides ------------------------------------------------------------------------------------------------


def test_the_visible_share_follows_crop_and_flip(tmp_path: Path):
    """An object of 32 x 32 at the left of a 96 x 64 image; the left half of the square is hidden."""
    write_objects(tmp_path / "images", [[(16.0, 16.0, 32.0, 32.0)]])
    objects = Objects(open_shard_set(tmp_path / "images"))
    keep_mask_1SS = torch.ones(1, 1, 64, 64)
    keep_mask_1SS[..., :32] = 0

    def share(crop: tuple[int, int, int, int], flip: bool) -> float:
        """By bisection: the smallest share that the class is hidden below."""
        one = replace(take(batch_of(1, 1), [0]), crop_B4=np.array([crop]), flip_B=np.array([flip]))
        low, high = 0.0, 1.01
        for _ in range(12):
            middle = (low + high) / 2
            hidden = objects.hidden(one, keep_mask_1SS, middle, 1).item()
            low, high = (low, middle) if hidden else (middle, high)
        return high

    assert share((0, 0, 64, 96), False) == pytest.approx(0, abs=0.01)  # columns 11 to 32 of 64 are hidden
    assert share((0, 0, 64, 96), True) == pytest.approx(1, abs=0.01)
    assert share((0, 0, 64, 64), False) == pytest.approx(0.5, abs=0.01)  # columns 16 to 48
    assert share((0, 32, 64, 64), True) == pytest.approx(0.5, abs=0.01)  # its right half alone, and that is visible
    assert share((0, 32, 64, 64), False) == pytest.approx(0, abs=0.01)
    assert share((0, 60, 64, 36), True) == pytest.approx(0, abs=0.01)  # outside


@pytest.mark.parametrize("box", [(16.0, 8.0, 8.0, 48.0), (16.0, 24.0, 64.0, 8.0)], ids=["tall", "wide"])
def test_what_a_crop_shows_of_an_object_is_a_share_of_its_own_sides(tmp_path: Path, box: tuple[float, ...]):
    write_objects(tmp_path / "images", [[box]])
    objects, visible = Objects(open_shard_set(tmp_path / "images")), torch.ones(1, 1, 64, 64)
    whole = replace(take(batch_of(1, 1), [0]), crop_B4=np.array([[0, 0, 64, 96]]))
    assert not objects.hidden(whole, visible, 0.99, 1).item()
    half = replace(whole, crop_B4=np.array([[0, 0, 64, int(box[0] + box[2] / 2)]]))
    assert [objects.hidden(half, visible, least, 1).item() for least in (0.45, 0.55)] == [False, True]


def test_positives_without_a_visible_object_are_ignored(root: Path):
    """The objects fill the upper left quarter; the masks hide from above."""
    batch = batch_of(40)
    shards = open_shard_set(root / "images")
    with Loader(shards, replace(STREAM, batch_size=40), device="cpu", training=False) as loader:
        [batch] = list(loader)
    heavy = views(root, ("high",), ignore_below=0.1).of(batch, seed=0, epoch=0)
    light = views(root, ("low",), ignore_below=0.1).of(batch, seed=0, epoch=0)
    assert heavy.ignore_BK is not None and light.ignore_BK is not None
    assert torch.equal(heavy.ignore_BK, batch.target_BK > 0)
    assert not light.ignore_BK.any()


def test_what_a_mask_hides_does_not_depend_on_how_much_light_it_lets_through(root: Path):
    """The light masks leave more than half of every object, which is less than half of their dimmed pixels."""
    with Loader(open_shard_set(root / "images"), replace(STREAM, batch_size=40), training=False) as loader:
        [batch] = list(loader)
    clear, dimmed = (
        views(root, ("low",), ignore_below=0.5, visible_level=level).of(batch, seed=0, epoch=0) for level in (1, 0.4)
    )
    torch.testing.assert_close(dimmed.keep_mask_B1HW, 0.4 * clear.keep_mask_B1HW)
    assert clear.ignore_BK is not None and dimmed.ignore_BK is not None
    assert torch.equal(dimmed.ignore_BK, clear.ignore_BK) and not clear.ignore_BK.any()


def test_without_objects_there_is_nothing_to_tell(tmp_path: Path, root: Path):
    write_images(tmp_path / "images", [4])
    with pytest.raises(UserError, match=r"set keep_mask\.ignore_below=0"):
        MaskedViews(
            KeepMaskConfig(kind="none", ignore_below=0.1),
            (),
            shards=open_shard_set(tmp_path / "images"),
            stream=STREAM,
            device="cpu",
        )


def test_a_run_begins_its_ramp_when_it_begins_to_mask(root: Path):
    config = TrainConfig(
        data=DataConfig(train=str(root / "images"), keep_masks=(str(root / "high"),), validation_fraction=0),
        stream=STREAM,
        keep_mask=KeepMaskConfig(start=0.5, ramp_epochs=4),
        optim=OptimConfig(num_epochs=8),
    )
    with TrainData(config, Ranks(rank=0, world_size=1, device=torch.device("cpu"))) as data:
        views = [data.masked_view(batch_of(200), epoch) for epoch in (3, 4, 5, 7)]
    assert [view and set(hidden_rows(view).tolist()) for view in views] == [None, {20}, {20, 22}, {20, 22, 24, 26}]


def test_holes_are_not_filled_from_what_the_run_validates_on(root: Path):
    config = TrainConfig(
        data=DataConfig(train=str(root / "images"), keep_masks=(str(root / "high"),), validation_fraction=0.25),
        stream=STREAM,
        keep_mask=KeepMaskConfig(fill="image"),
    )
    with TrainData(config, Ranks(rank=0, world_size=1, device=torch.device("cpu"))) as data:
        assert data.validation is not None and data._views is not None
        donors = data._views._donors
        held_out = [batch.key_hash_B for batch in data.validation]
        trained_on = [key for batch in data.training for key in batch.key_hash_B.tolist()]
    assert donors is not None and len(donors) == data.training.shards.num_samples < 40
    assert not set(donors._owner_D.tolist()) & set(np.concatenate(held_out).tolist())
    assert set(trained_on) <= set(donors._owner_D.tolist())
