"""Photographs that stay in one part of a divided dataset."""

from __future__ import annotations

import io
import random
from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from msldata.build.alike import MOST_BITS, alike, joined, look_of


def picture(seed: int, *, shift: int = 0, quality: int = 90) -> bytes:
    """Thirty blurred spots; ``shift`` moves what is in front by so many pixels, as a later frame would show it."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:240, :320]
    grey = np.zeros((240, 320))
    for n in range(30):
        top, left, size, light = rng.uniform(0, 240), rng.uniform(0, 320), rng.uniform(20, 40), rng.uniform(-90, 90)
        grey += light * np.exp(-((y - top) ** 2 + (x - left - shift * (n == 0)) ** 2) / size**2)
    file = io.BytesIO()
    Image.fromarray(np.clip(grey + 128, 0, 255).astype(np.uint8)).convert("RGB").save(file, "JPEG", quality=quality)
    return file.getvalue()


def test_frames_of_one_scene_look_alike_and_others_do_not():
    looks = [look_of(picture(scene, shift=3 * frame, quality=80 + frame)) for scene in range(40) for frame in range(3)]
    pairs = {tuple(sorted((one, other))) for one, others in alike(looks) for other in others.tolist()}
    expected = {(3 * n + a, 3 * n + b) for n in range(40) for a, b in combinations(range(3), 2)}
    assert pairs == expected


def test_pairs_are_those_of_a_plain_loop():
    chance = random.Random(0)
    looks: list[int | None] = [chance.getrandbits(64) for _ in range(60)]
    for n in range(300):
        base = looks[n % 60]
        assert base is not None
        for bit in chance.sample(range(64), n % 8):
            base ^= 1 << bit
        looks.append(base)
    looks[7] = looks[123] = None
    expected = {
        (m, n)
        for (m, one), (n, other) in combinations(enumerate(looks), 2)
        if one is not None and other is not None and (one ^ other).bit_count() <= MOST_BITS
    }
    found = {tuple(sorted((one, other))) for one, others in alike(looks) for other in others.tolist()}
    assert found == expected and len(expected) > 200
    assert list(alike([])) == list(alike([None])) == list(alike([5])) == []


def test_bits_say_whether_a_square_is_brighter_than_the_one_before_it():
    row = np.array([0, 100, 50, 60, 60, 200, 10, 20, 5], dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(np.tile(row.repeat(8), (64, 1))).save(file, "PNG")
    assert look_of(file.getvalue()) == int("10101010" * 8, 2)


@pytest.mark.parametrize("content", [b"", b"no image", picture(1)[:300]])
def test_what_cannot_be_read_looks_like_nothing(content: bytes):
    assert look_of(content) is None


def test_night_and_sky_look_like_nothing():
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(20, 30, (64, 64), dtype=np.uint8)
    Image.fromarray(noise).save(file, "PNG")
    assert look_of(file.getvalue()) is None


def test_sets_are_joined_through_their_members():
    assert joined(7, [(5, [6]), (1, [3]), (3, [5])]) == [0, 1, 2, 1, 4, 1, 1]
    assert joined(3, []) == [0, 1, 2]
