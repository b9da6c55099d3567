"""RandAugment, erasing and mixing: held to their formulas, decided by seed, epoch and key alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms import v2

from msldata.errors import UserError
from msltrain.config import override
from msltrain.recipes import recipe
from msltrain.stream.augment import erase, mix, operations
from msltrain.stream.augment.augment import Augment
from msltrain.stream.augment.mix import _betas
from msltrain.stream.config import AugmentConfig, StreamConfig
from msltrain.stream.loader import Loader
from msltrain.stream.order import random
from msltrain.stream.order.random import RANDAUGMENT, hash64, key_hash
from msltrain.stream.pixels.batch import Batch
from tests.smallshards import write_images

SIZE = 31  # neither 2 nor 3 divides it
STREAM = StreamConfig(image_size=SIZE, batch_size=8, num_threads=1, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
MIXES = ("mixup", "cutmix", "splicemix")
ALL = [{"randaugment": 2}, {"erase": "cutout"}, {"erase": "random"}, *({"mix": mix} for mix in MIXES)]


def batch_of(count: int, num_classes: int = 0) -> Batch:
    """Image n shows class n alone, where there are as many classes as images."""
    keys = [f"s{number:06d}" for number in range(count)]
    pixel = torch.randint(0, 256, (count, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(0)).float()
    scale = torch.tensor([STREAM.mean, STREAM.std])[:, None, :, None, None] * 255
    num_classes = num_classes or count
    return Batch(
        image_BCHW=((pixel - scale[0]) / scale[1]).contiguous(memory_format=torch.channels_last),
        target_BK=torch.eye(num_classes)[torch.arange(count) % num_classes],
        ignore_BK=torch.zeros(count, num_classes, dtype=torch.bool),
        keys=keys,
        key_hash_B=key_hash(keys),
        index_B=np.arange(count),
        crop_B4=np.tile([0, 0, 36, 40], (count, 1)),
        flip_B=np.zeros(count, bool),
    )


def take(batch: Batch, rows: list[int]) -> Batch:
    return Batch(
        *(tensor[rows] for tensor in (batch.image_BCHW, batch.target_BK, batch.ignore_BK)),
        [batch.keys[row] for row in rows],
        *(array[rows] for array in (batch.key_hash_B, batch.index_B, batch.crop_B4, batch.flip_B)),
    )


def augmented(batch: Batch, seed: int = 0, epoch: int = 0, **settings) -> Batch:
    return Augment(AugmentConfig(**settings), STREAM, "cpu")(batch, seed=seed, epoch=epoch)


def pixels(image_BCHW: torch.Tensor) -> torch.Tensor:
    scale = torch.tensor([STREAM.mean, STREAM.std])[:, :, None, None] * 255
    return image_BCHW * scale[1] + scale[0]


@pytest.mark.parametrize(
    ("settings", "purposes"),
    [
        ({"randaugment": 2}, {random.RANDAUGMENT}),
        ({"erase": "cutout"}, {random.ERASE}),
        ({"erase": "random"}, {random.ERASE, random.ERASED_BOX}),
        ({"mix": "mixup"}, {random.MIX_SHARE, random.MIX_ORDER}),
        ({"mix": "cutmix"}, {random.MIX_SHARE, random.MIX_ORDER, random.MIX_BOX}),
        ({"mix": "splicemix"}, {random.MIX_ORDER, random.GRID}),
    ],
)
def test_whatever_is_drawn_is_drawn_by_seed_and_epoch_and_for_its_own_purpose(monkeypatch, settings, purposes):
    """One draw that forgets the seed, or shares another's numbers, is not seen in an image that has several."""
    drawn: list[tuple[int, int, int]] = []

    def watch(module: ModuleType, name: str, given: Callable[..., tuple[int, int, int]]) -> None:
        draw = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *of, **how: drawn.append(given(*of, **how)) or draw(*of, **how))

    for module in (erase, mix):
        watch(module, "uniform", lambda key_hash_B, seed, epoch, purpose, count: (seed, epoch, purpose))
    for module in (mix, operations):
        watch(module, "hash64", lambda seed, epoch, purpose, *more: (seed, epoch, purpose))
    watch(erase, "random_crops", lambda *_, seed, epoch, stream=0, **more: (seed, epoch, stream))
    augmented(batch_of(6), seed=3, epoch=5, **settings)
    assert set(drawn) == {(3, 5, purpose) for purpose in purposes}


def test_by_default_nothing_is_done():
    batch = batch_of(4)
    assert augmented(batch) is batch
    assert not recipe("msl-c-voc2007").augment.is_active


@pytest.mark.parametrize("settings", ALL, ids=lambda settings: "-".join(map(str, settings.values())))
def test_seed_epoch_and_key_decide_and_nothing_else(settings: dict):
    """The same in any order of the batch and whatever torch has drawn; what does not mix, in any company too."""
    batch, reverse = batch_of(12), list(range(12))[::-1]
    state = torch.get_rng_state()
    first = augmented(batch, **settings)
    assert torch.equal(torch.get_rng_state(), state), "a run's other random numbers would change with it"
    torch.rand(7)
    again = augmented(take(batch, reverse), **settings)
    rows = [again.keys.index(key) for key in first.keys]
    for name in ("image_BCHW", "target_BK", "ignore_BK"):
        assert torch.equal(getattr(again, name)[rows], getattr(first, name)), name
    np.testing.assert_array_equal(again.key_hash_B[rows], first.key_hash_B)
    if "mix" not in settings:
        assert torch.equal(augmented(take(batch, [5, 2]), **settings).image_BCHW, first.image_BCHW[[5, 2]])
    for other in (augmented(batch, seed=1, **settings), augmented(batch, epoch=1, **settings)):
        assert not torch.equal(other.image_BCHW, first.image_BCHW)
    assert len({len(getattr(first, name)) for name in Batch.__slots__}) == 1


def test_pixels_that_stay_keep_their_bits(tmp_path: Path):
    """RandAugment goes to 8-bit pixels and back: of magnitude 0, most of its operations change nothing."""
    write_images(tmp_path / "images", [8])
    with Loader(tmp_path / "images", STREAM, device="cpu", rank=0, world_size=1, training=True) as loader:
        (batch,) = loader
    augment = Augment(AugmentConfig(randaugment=1, randaugment_magnitude=0), STREAM, "cpu")
    assert torch.equal(augment._normalised(augment._pixels(batch.image_BCHW)), batch.image_BCHW)
    same = [
        torch.equal(augment(batch, seed=0, epoch=epoch).image_BCHW[row], batch.image_BCHW[row])
        for epoch in range(6)
        for row in range(8)
    ]
    assert 0.4 < np.mean(same) < 1
    assert augment(batch, seed=0, epoch=0).image_BCHW.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("erase", ["", "cutout", "random"])
@pytest.mark.parametrize("mix", ["", *MIXES])
def test_each_step_goes_on_from_what_the_one_before_it_made(erase: str, mix: str):
    """In the order of the fields: what is asked for together is what is asked for one after the other."""
    batch, steps = batch_of(8), {"randaugment": 2, "erase": erase, "mix": mix}
    together = augmented(batch, seed=2, epoch=3, **steps)
    one_by_one = batch
    for name, value in steps.items():
        one_by_one = augmented(one_by_one, seed=2, epoch=3, **{name: value})
    for name in ("image_BCHW", "target_BK", "ignore_BK"):
        assert torch.equal(getattr(together, name), getattr(one_by_one, name)), name
    assert together.keys == one_by_one.keys
    for name in (name for name, value in steps.items() if value):
        fewer = augmented(batch, seed=2, epoch=3, **{**steps, name: type(steps[name])()})
        assert fewer.image_BCHW.shape != together.image_BCHW.shape or (fewer.image_BCHW != together.image_BCHW).any()


def test_randaugment_is_torchvisions():
    batch = batch_of(6)
    found = augmented(batch, seed=3, epoch=2, randaugment=2, randaugment_magnitude=15)
    transform = v2.RandAugment(num_ops=2, magnitude=15)
    for row in range(6):
        torch.manual_seed(int(hash64(3, 2, RANDAUGMENT, batch.key_hash_B[row : row + 1])[0] >> np.uint64(1)))
        expected = transform(pixels(batch.image_BCHW)[row].round().to(torch.uint8))
        torch.testing.assert_close(pixels(found.image_BCHW)[row], expected.float(), atol=1e-3, rtol=0)
    assert torch.equal(found.target_BK, batch.target_BK)


def test_cutout_paints_half_a_side_in_one_colour():
    batch = batch_of(200, num_classes=4)
    found = augmented(batch, erase="cutout")
    assert torch.equal(found.target_BK, batch.target_BK)
    painted_BHW = (found.image_BCHW != batch.image_BCHW).any(dim=1)
    heights, colours = [], []
    for row in range(200):
        lines, columns = (
            painted_BHW[row].any(dim=1).nonzero().flatten(),
            painted_BHW[row].any(dim=0).nonzero().flatten(),
        )
        box = (slice(lines[0], lines[-1] + 1), slice(columns[0], columns[-1] + 1))
        assert painted_BHW[row].sum() == painted_BHW[row][box].sum()
        colour = pixels(found.image_BCHW)[row, :, *box].flatten(1)
        assert (colour - colour[:, :1]).abs().max() == 0
        colours.append(colour[:, 0])
        heights.append(len(lines))
        # Cut off at an edge, or whole.
        assert len(lines) == 16 or lines[0] == 0 or lines[-1] == SIZE - 1
    assert max(heights) == 16 and min(heights) < 12, "its centre is any pixel"
    values = torch.stack(colours)
    assert torch.equal(values.round(), values.round().clamp(0, 255)) and values.std() > 60


def test_random_erasing_turns_a_box_of_half_of_the_images_into_noise():
    batch = batch_of(400, num_classes=4)
    found = augmented(batch, erase="random")
    changed_BHW = (found.image_BCHW != batch.image_BCHW).any(dim=1)
    erased_B = changed_BHW.flatten(1).any(dim=1)
    assert abs(erased_B.float().mean() - 0.5) < 0.1
    shares = []
    for row in erased_B.nonzero().flatten().tolist():
        lines, columns = changed_BHW[row].any(dim=1).nonzero(), changed_BHW[row].any(dim=0).nonzero()
        height, width = int(lines[-1] - lines[0]) + 1, int(columns[-1] - columns[0]) + 1
        shares.append(height * width / SIZE**2)
        assert changed_BHW[row].sum() > 0.9 * height * width  # noise may meet the pixel that was there
    assert 0.01 < min(shares) < 0.06 and 0.27 < max(shares) < 0.36
    value = pixels(found.image_BCHW)[erased_B.nonzero()[0]]
    assert value.min() > -0.5 and value.max() < 255.5


def test_mixup_is_its_formula():
    batch = batch_of(16)
    found = augmented(batch, mix="mixup", mix_alpha=0.8)
    partners = []
    for row in range(16):
        own = found.target_BK[row, row]
        [partner] = (set(found.target_BK[row].nonzero().flatten().tolist()) - {row}) or [row]
        partners.append(partner)
        assert found.target_BK[row].sum() == pytest.approx(1, abs=1e-6)
        expected = own * batch.image_BCHW[row] + (1 - own) * batch.image_BCHW[partner]
        torch.testing.assert_close(found.image_BCHW[row], expected, atol=1e-5, rtol=1e-5)
    assert sorted(partners) == list(range(16)) and all(partner != row for row, partner in enumerate(partners))
    assert found.keys == batch.keys


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_the_share_of_an_image_is_beta_distributed(alpha: float):
    own_N = _betas(key_hash(str(number) for number in range(4000)), alpha, seed=0, epoch=0)
    theirs_N = np.random.default_rng(0).beta(alpha, alpha, 4000)
    grid = np.sort(np.concatenate([own_N, theirs_N]))
    gap = np.subtract(*(np.searchsorted(np.sort(values), grid, side="right") / 4000 for values in (own_N, theirs_N)))
    assert np.abs(gap).max() < 1.95 * np.sqrt(2 / 4000)  # the 0.1 % point of Kolmogorov and Smirnov


def test_cutmix_shows_a_box_of_the_other_and_mixes_by_area():
    batch = batch_of(64)
    found = augmented(batch, mix="cutmix")
    whole = 0
    for row in range(64):
        own = found.target_BK[row, row].item()
        others = [other for other in found.target_BK[row].nonzero().flatten().tolist() if other != row]
        is_own_HW = (found.image_BCHW[row] == batch.image_BCHW[row]).all(dim=0)
        assert is_own_HW.float().mean().item() == pytest.approx(own, abs=1e-6)
        if not others:
            whole += 1
            continue
        box_HW = ~is_own_HW
        assert torch.equal(found.image_BCHW[row][:, box_HW], batch.image_BCHW[others[0]][:, box_HW])
        lines, columns = box_HW.any(dim=1), box_HW.any(dim=0)
        assert box_HW.sum() == lines.sum() * columns.sum()
    shares = found.target_BK.diagonal()
    assert whole < 8 and 0.5 < shares.mean() < 0.75  # 1 − E[λ] = 0.5, less what the edges cut off


def test_every_epoch_splices_other_images_into_another_grid():
    batch = batch_of(4)
    grids: dict[int, set[tuple[int, int]]] = {}
    for epoch in range(32):
        members, shape, _ = splice_by_hand(batch, augmented(batch, epoch=epoch, mix="splicemix"), 4)
        grids.setdefault(members[0], set()).add(shape)
    assert sorted(grids) == [0, 1, 2, 3], "each is once the first"
    assert all(len(shapes) > 1 for shapes in grids.values())


@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
def test_every_epoch_mixes_in_another_share_and_with_another_image(mix: str):
    batch = batch_of(8)
    epochs = [augmented(batch, epoch=epoch, mix=mix) for epoch in range(8)]
    for row in range(8):
        assert len({round(found.target_BK[row, row].item(), 4) for found in epochs}) >= 7
        others = {tuple(found.target_BK[row].nonzero().flatten().tolist()) for found in epochs}
        assert len(others) >= 3


def test_every_epoch_has_its_box_elsewhere():
    """Else the middle of an image's box would show another image in every epoch, and its own never."""
    batch = batch_of(8)
    mixed = [(augmented(batch, epoch=epoch, mix="cutmix").image_BCHW != batch.image_BCHW).any(1) for epoch in range(24)]
    assert not torch.stack(mixed).all(0).any()
    boxes: list[set[tuple[int, ...]]] = [set() for _ in range(8)]
    erased = np.zeros(8, int)
    for epoch in range(16):
        changed_BHW = (augmented(batch, epoch=epoch, erase="random").image_BCHW != batch.image_BCHW).any(dim=1)
        for row in changed_BHW.flatten(1).any(dim=1).nonzero().flatten().tolist():
            place = changed_BHW[row].nonzero()
            boxes[row].add((*place.amin(0).tolist(), *place.amax(0).tolist()))
            erased[row] += 1
    assert erased.min() > 0 and erased.max() < 16, "one epoch erases an image, another leaves it whole"
    assert all(len(found) > number / 2 for found, number in zip(boxes, erased, strict=True))


def splice_by_hand(batch: Batch, found: Batch, place: int) -> tuple[list[int], tuple[int, int], list[bool]]:
    """The images of a grid, its shape, and which of its cells are shown, from its key and its pixels."""
    members = [batch.keys.index(key) for key in found.keys[place].split("+")]
    image_CHW = found.image_BCHW[place]
    for rows, columns in {2: [(1, 2), (2, 1)], 4: [(2, 2)], 6: [(2, 3), (3, 2)]}[len(members)]:
        down = [round(SIZE * row / rows) for row in range(rows + 1)]
        across = [round(SIZE * column / columns) for column in range(columns + 1)]
        shown = []
        for cell, member in enumerate(members):
            row, column = divmod(cell, columns)
            part = image_CHW[:, down[row] : down[row + 1], across[column] : across[column + 1]]
            small = F.interpolate(
                batch.image_BCHW[member : member + 1], part.shape[1:], mode="bilinear", align_corners=True
            )[0]
            if torch.equal(part, torch.zeros_like(part)):
                shown.append(False)
            elif torch.equal(part, small):
                shown.append(True)
        if len(shown) == len(members):
            return members, (rows, columns), shown
    raise AssertionError(f"{found.keys[place]} is no grid of its images")


def test_splicemix_adds_grids_whose_labels_are_those_of_their_images():
    batch = batch_of(48)
    shapes, num_blank = [], []
    for epoch in range(8):
        found = augmented(batch, epoch=epoch, mix="splicemix")
        assert len(found) == 60 and torch.equal(found.image_BCHW[:48], batch.image_BCHW)
        assert torch.equal(found.target_BK[:48], batch.target_BK) and found.keys[:48] == batch.keys
        for place in range(48, 60):
            members, shape, shown = splice_by_hand(batch, found, place)
            expected = torch.zeros(48)
            expected[[member for member, is_shown in zip(members, shown) if is_shown]] = 1
            assert torch.equal(found.target_BK[place], expected)
            shapes.append(shape)
            num_blank.append(len(shown) - sum(shown))
            assert sum(shown) > 0
        assert len(set(found.key_hash_B.tolist())) == 60, "each grid meets a keep mask of its own"
    share = {shape: shapes.count(shape) / len(shapes) for shape in set(shapes)}
    assert set(share) == {(1, 2), (2, 1), (2, 2), (2, 3), (3, 2)} and share[2, 2] == pytest.approx(0.4, abs=0.15)
    assert np.mean(np.array(num_blank) > 0) == pytest.approx(0.3, abs=0.15)


@pytest.mark.parametrize("mix", MIXES)
def test_a_pair_that_is_ignored_in_an_image_is_ignored_in_the_mixture(mix: str):
    """Image n shows class n and leaves class n + 1 open; of some mixtures all of one image is hidden."""
    batch = batch_of(48)
    batch = replace(batch, ignore_BK=batch.target_BK.roll(1, dims=1).bool())
    found = augmented(batch, mix=mix, mix_alpha=0.2 if mix == "cutmix" else None)
    assert mix != "cutmix" or {1, 2} == set((found.target_BK > 0).sum(dim=1).tolist())
    for place in range(48 if mix == "splicemix" else 0, len(found)):
        if mix == "splicemix":
            members, _, shown = splice_by_hand(batch, found, place)
            parts = [member for member, is_shown in zip(members, shown) if is_shown]
        else:
            parts = found.target_BK[place].nonzero().flatten().tolist()
        expected = batch.ignore_BK[parts].any(dim=0)
        if mix == "splicemix":
            expected &= found.target_BK[place] == 0  # one of the cells shows it for certain
        assert torch.equal(found.ignore_BK[place], expected)


def test_a_spliced_image_is_listed_as_its_first_one():
    batch = batch_of(8)
    batch = replace(
        batch, index_B=np.arange(70, 78)[::-1], crop_B4=np.arange(32).reshape(8, 4), flip_B=np.arange(8) % 3 == 0
    )
    for epoch in range(3):
        found = augmented(batch, epoch=epoch, mix="splicemix")
        for name in ("index_B", "crop_B4", "flip_B"):
            of_key = dict(zip(batch.keys, getattr(batch, name).tolist()))
            assert getattr(found, name).tolist() == [of_key[key.partition("+")[0]] for key in found.keys], name


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("mix", MIXES)
def test_the_last_batch_may_be_small(mix: str, count: int):
    batch = batch_of(count)
    found = augmented(batch, mix=mix)
    assert len(found) == count + (mix == "splicemix")
    assert torch.isfinite(found.image_BCHW).all()
    if count == 1 and mix != "splicemix":
        torch.testing.assert_close(found.image_BCHW, batch.image_BCHW)
        assert torch.equal(found.target_BK, batch.target_BK)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["augment.mix=mosaic"], "'mosaic' is not one of"),
        (["augment.mix_alpha=1"], "mix_alpha is for augment.mix=mixup and cutmix"),
        (["augment.mix=splicemix", "augment.mix_alpha=1"], "mix_alpha is for augment.mix=mixup and cutmix"),
        (["augment.mix=mixup", "augment.mix_alpha=0"], "mix_alpha is 0.0; it must be above 0"),
        (["augment.randaugment=-1"], "must be 0 or more"),
        (["augment.randaugment=2", "augment.randaugment_magnitude=31"], r"must lie in \[0, 30\]"),
        (["augment.mix=mixup", "keep_mask.kind=object"], "keep_mask.kind: object is not possible here"),
        (["augment.randaugment=1", "keep_mask.ignore_below=0.2"], "keep_mask.ignore_below: 0.2 is not 0"),
    ],
)
def test_what_cannot_work_is_refused(settings: list[str], words: str):
    with pytest.raises(UserError, match=words):
        override(recipe("msl-c-voc2007"), settings)


def test_without_masks_boxes_do_not_matter():
    override(recipe("demo-baseline"), ["augment.mix=mixup", "keep_mask.kind=object"])
