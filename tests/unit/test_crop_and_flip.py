"""Crops and flips: torchvision's algorithm, decided by seed, epoch and key alone."""

from __future__ import annotations

import math

import numpy as np
import pytest

from msltrain.stream.order import crop_and_flip
from msltrain.stream.order.crop_and_flip import random_crops, random_flips, whole_images
from msltrain.stream.order.random import CROP, key_hash, uniform

SCALE, RATIO = (0.7, 1.0), (3 / 4, 4 / 3)
SIZES = [(500, 375), (333, 500), (1, 1), (1, 900), (900, 1), (640, 40), (37, 600), (64, 64), (400, 300), (30, 40)]


def crops(keys, sizes, *, seed=0, epoch=0, scale=SCALE, ratio=RATIO):
    width_N, height_N = np.array(sizes, dtype=np.int64).T
    return random_crops(key_hash(keys), width_N, height_N, seed=seed, epoch=epoch, scale=scale, ratio=ratio)


def one_crop(drawn, width, height):
    """RandomResizedCrop.get_params for one image, with numbers drawn beforehand: ten each of area, ratio, top, left."""
    for attempt in range(10):
        area = width * height * (SCALE[0] + (SCALE[1] - SCALE[0]) * drawn[attempt])
        low, high = math.log(RATIO[0]), math.log(RATIO[1])
        ratio = math.exp(low + (high - low) * drawn[10 + attempt])
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return [int(drawn[20 + attempt] * (height - h + 1)), int(drawn[30 + attempt] * (width - w + 1)), h, w]
    w, h = width, height
    if width / height < RATIO[0]:
        h = round(w / RATIO[0])
    elif width / height > RATIO[1]:
        w = round(h * RATIO[1])
    return [(height - h) // 2, (width - w) // 2, h, w]


def test_equals_the_algorithm_written_for_one_image():
    sizes = SIZES * 40
    keys = [f"k{number}" for number in range(len(sizes))]
    drawn = uniform(key_hash(keys), 5, 2, CROP, 40)
    expected = [one_crop(row, *size) for row, size in zip(drawn, sizes)]
    found = crops(keys, sizes, seed=5, epoch=2)
    assert found.tolist() == expected and found.dtype == np.int64


def test_a_scale_of_one_is_no_crop_whatever_the_shape():
    found = crops([f"k{number}" for number in range(len(SIZES))], SIZES, scale=(1.0, 1.0))
    assert found.tolist() == [[0, 0, height, width] for width, height in SIZES]


def test_a_crop_is_at_least_one_pixel_wide_and_high():
    keys = [f"k{number}" for number in range(50)]
    # A quarter of 2 × 2 is one pixel; a hundredth of one pixel rounds to none, which does not fit.
    tiny = crops(keys, [(2, 2)] * 50, scale=(0.2, 0.3), ratio=(1.0, 1.0))
    assert {tuple(row[2:]) for row in tiny.tolist()} == {(1, 1)} and len({tuple(row[:2]) for row in tiny.tolist()}) == 4
    assert crops(keys, [(1, 1)] * 50, scale=(0.01, 0.2)).tolist() == [[0, 0, 1, 1]] * 50


def test_distribution_is_torchvisions():
    torch = pytest.importorskip("torch")
    from torchvision.transforms import RandomResizedCrop

    num = 3000
    image = torch.empty(1, 375, 500)
    torch.manual_seed(0)
    theirs = np.array([RandomResizedCrop.get_params(image, list(SCALE), list(RATIO)) for _ in range(num)])
    ours = crops([str(number) for number in range(num)], [(500, 375)] * num)

    def features(box_N4):
        top, left, height, width = box_N4.T.astype(float)
        return [top, left, height * width, np.log(width / height)]

    for mine, other in zip(features(ours), features(theirs)):
        # Two-sample Kolmogorov-Smirnov distance; 1.95 * sqrt(2 / n) is its 0.1 % point.
        grid = np.unique(np.concatenate([mine, other]))
        gap = [np.searchsorted(np.sort(values), grid, side="right") / num for values in (mine, other)]
        assert np.abs(gap[0] - gap[1]).max() < 1.95 * math.sqrt(2 / num)


def test_inside_the_image_whatever_its_shape():
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 700, (2000, 2)).tolist()
    top, left, height, width = crops([str(number) for number in range(2000)], sizes).T
    width_N, height_N = np.array(sizes).T
    assert (top >= 0).all() and (left >= 0).all() and (height > 0).all() and (width > 0).all()
    assert (top + height <= height_N).all() and (left + width <= width_N).all()


def test_a_sample_is_cropped_the_same_in_any_company():
    keys, sizes = ["a", "b", "c", "d"], SIZES[:4]
    together = crops(keys, sizes, seed=1, epoch=4)
    np.testing.assert_array_equal(together[::-1], crops(keys[::-1], sizes[::-1], seed=1, epoch=4))
    np.testing.assert_array_equal(together[:1], crops(keys[:1], sizes[:1], seed=1, epoch=4))


def test_seed_epoch_and_key_all_matter():
    sizes = [(500, 375)] * 50
    keys = [f"k{number}" for number in range(50)]
    base = crops(keys, sizes)
    for other in (crops(keys, sizes, seed=1), crops(keys, sizes, epoch=1), crops([key + "x" for key in keys], sizes)):
        assert (base != other).any(axis=1).mean() > 0.9


def test_flips(monkeypatch):
    hashes = key_hash(str(number) for number in range(4000))
    flip_N = random_flips(hashes, seed=0, epoch=0, probability=0.5)
    assert flip_N.dtype == bool and abs(flip_N.mean() - 0.5) < 0.03
    assert abs((flip_N == random_flips(hashes, seed=0, epoch=1, probability=0.5)).mean() - 0.5) < 0.03
    assert not random_flips(hashes, seed=0, epoch=0, probability=0.0).any()
    assert random_flips(hashes, seed=0, epoch=0, probability=1.0).all()
    monkeypatch.setattr(crop_and_flip, "uniform", lambda *_: np.zeros((3, 1)))
    assert not random_flips(hashes[:3], seed=0, epoch=0, probability=0.0).any()


def test_whole_images_and_no_images():
    assert whole_images(np.array([5, 7]), np.array([3, 4])).tolist() == [[0, 0, 3, 5], [0, 0, 4, 7]]
    assert crops([], np.empty((0, 2))).shape == (0, 4)
