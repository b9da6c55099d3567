"""Holes that grow and shrink, against plain loops; archives of masks that lead elsewhere."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from msldata.contract.keepmask import HOLE_WHITE, decode_gray, hole_fraction_histogram
from msldata.errors import UserError
from msldata.masks.hole_fraction import MeasuredMask, reach_fraction
from msldata.masks.lists import ListedMasks
from msldata.masks.sources import TarMasks

FOUR = ((0, 1), (0, -1), (1, 0), (-1, 0))
EIGHT = (*FOUR, (1, 1), (1, -1), (-1, 1), (-1, -1))


def by_loops(hole_HW: np.ndarray, target: float) -> np.ndarray:
    """Ring after ring, of four and of eight neighbours in turn; of the last one those first that have most set pixels
    round them, from the top, until as many are set as comes nearest to the target."""
    height, width = hole_HW.shape
    grows = hole_HW.sum() < target * hole_HW.size
    inner = {(y, x) for y in range(height) for x in range(width) if hole_HW[y, x] == grows}
    wanted = (target if grows else 1 - target) * hole_HW.size
    turn = 0
    while len(inner) < wanted:
        near = (FOUR, EIGHT)[turn % 2]
        places = {(y + down, x + across) for y, x in inner for down, across in near}
        ring = {(y, x) for y, x in places - inner if 0 <= y < height and 0 <= x < width}
        if len(inner) + len(ring) > wanted:
            round_it = {(y, x): sum((y + down, x + across) in inner for down, across in EIGHT) for y, x in ring}
            first = sorted(ring, key=lambda place: (-round_it[place], place))
            inner |= set(first[: round(wanted - len(inner))])
            break
        inner |= ring
        turn += 1
    moved_HW = np.array([[(y, x) in inner for x in range(width)] for y in range(height)])
    return moved_HW if grows else ~moved_HW


@pytest.mark.parametrize("seed", range(12))
def test_holes_are_moved_as_by_plain_loops(seed):
    chance = np.random.default_rng(seed)
    height, width = chance.integers(3, 17, 2)
    hole_HW = chance.random((height, width)) < chance.choice([0.03, 0.3, 0.9])
    hole_HW[chance.integers(height), chance.integers(width)] ^= hole_HW.all() or not hole_HW.any()
    for target in (0.07, 0.29, 0.5, 0.83, 0.96):
        moved_HW = reach_fraction(hole_HW.copy(), target)
        assert np.array_equal(moved_HW, by_loops(hole_HW, target))
        assert abs(moved_HW.sum() - target * hole_HW.size) <= 0.5


def packed(path: Path, *names: str) -> TarMasks:
    with tarfile.open(path, "w") as tar:
        for name in names:
            info = tarfile.TarInfo("x")
            info.name, info.size = name, 3
            tar.addfile(info, io.BytesIO(b"abc"))
    return TarMasks(path)


@pytest.mark.parametrize("name", ["/etc/mask.png", "../mask.png", "./../mask.png", "a/../../mask.png", "c:/mask.png"])
def test_a_tar_that_leads_elsewhere_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="leads outside of the archive"):
        packed(tmp_path / "x.tar", "a.png", name).names()


def test_names_in_a_tar_of_a_folder_are_those_in_the_folder(tmp_path):
    assert packed(
        tmp_path / "x.tar", "./b/1.png", "./a.png", "./.hidden", ".git/x.png", "__MACOSX/y.png", "Thumbs.db"
    ).names() == [
        "a.png",
        "b/1.png",
    ]


def test_masks_of_a_list_come_in_the_order_of_their_names(tmp_path):
    (tmp_path / "x.txt").write_text("b.png\n# a note\n\na.png\nsub/c.png\n")
    assert ListedMasks(tmp_path / "x.txt").names() == ["a.png", "b.png", "sub/c.png"]


def test_a_grey_mask_is_measured_as_it_is_stored():
    """Of three rows two are white: means of four by four areas are 255, 170 and 0, the nearest 255 and 0."""
    grey_HW = np.zeros((6, 6), np.uint8)
    grey_HW[:4] = 255
    soft = MeasuredMask.of_gray("x", grey_HW, size=4, soft=True)
    hard = MeasuredMask.of_gray("x", grey_HW, size=4)
    assert (soft.hole_fraction(HOLE_WHITE), soft.source_hole_fraction(HOLE_WHITE)) == (0.75, 24 / 36)
    assert hard.hole_fraction(HOLE_WHITE) == 0.75
    grey_HW[:] = [0, 200, 0, 200, 0, 200]
    assert MeasuredMask.of_gray("x", grey_HW, size=3, soft=True).hole_fraction(HOLE_WHITE) == 0.0
    assert MeasuredMask.of_gray("x", grey_HW, size=3).hole_fraction(HOLE_WHITE) == 1.0


def test_what_is_more_transparent_than_not_is_not_drawn():
    pixels = np.zeros((1, 4, 4), np.uint8)
    pixels[0, :, 3] = 0, 100, 127, 128
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    assert decode_gray(data.getvalue(), "x").tolist() == [[255, 255, 255, 0]]


def test_a_share_of_ten_percent_is_in_the_bin_that_ends_there():
    counts = hole_fraction_histogram([0.0, 0.1, 0.3, 0.30001, 0.7, 1.0])
    assert {name: count for name, count in counts.items() if count} == {
        "0.0-0.1": 2, "0.2-0.3": 1, "0.3-0.4": 1, "0.6-0.7": 1, "0.9-1.0": 1
    }  # fmt: skip
