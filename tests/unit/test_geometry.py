"""Where things are in pictures that are not square, turned, cut out, reduced, in shares; built, and in a preview."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from msldata.build import image as module
from msldata.build.image import Placement, Resize, prepare_image
from msldata.build.sample import check_boxes, frame_of_boxes
from msldata.contract import pixels
from msldata.contract.records import SHARES, ObjectRecord
from msldata.inspect.preview_page import draw_page
from msldata.inspect.preview_sheet import draw_sheet
from msldata.inspect.tiles import Box, HeldMask, Preview, Tile

AS_DRAWN = (70, 20, 50, 130)
"""The red object of a photograph of 480 × 288, in the file's own pixels."""
TURNED = {
    1: (70, 20, 50, 130), 2: (360, 20, 50, 130), 3: (360, 138, 50, 130), 4: (70, 138, 50, 130),
    5: (20, 70, 130, 50), 6: (138, 70, 130, 50), 7: (138, 360, 130, 50), 8: (20, 360, 130, 50),
}  # fmt: skip
"""Where it is seen, by EXIF's orientation: 480 − 70 − 50 = 360 and 288 − 20 − 130 = 138."""


def photograph(orientation: int, width: int = 480, height: int = 288, kind: str = "JPEG") -> bytes:
    image = Image.new("RGB", (width, height))
    left, top, wide, high = AS_DRAWN
    image.paste((255, 0, 0), (left, top, left + wide, top + high))
    exif = Image.Exif()
    exif[pixels.ORIENTATION_TAG] = orientation
    buffer = io.BytesIO()
    image.save(buffer, kind, exif=exif, **({"quality": 95, "subsampling": 0} if kind == "JPEG" else {}))
    return buffer.getvalue()


def red_box(data: bytes) -> tuple[int, int, int, int]:
    red_HW = simplejpeg.decode_jpeg(data)[..., 0] > 128
    rows, columns = np.flatnonzero(red_HW.any(axis=1)), np.flatnonzero(red_HW.any(axis=0))
    return int(columns[0]), int(rows[0]), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("reduced", [False, True])
def test_boxes_of_either_frame_and_in_shares_are_on_what_they_mark(monkeypatch, orientation, reduced):
    """Whether the decoder reduces the photograph or not, and whichever of the three frames its boxes are in."""
    monkeypatch.setattr(pixels, "LARGE", 0 if reduced else 1 << 20)
    data = photograph(orientation)
    assert (module._reduced(data, Resize("shorter", 36)) is not None) == reduced
    prepared = prepare_image(data, Resize("shorter", 36))
    sideways = orientation > 4
    size = (36, 60) if sideways else (60, 36)
    assert (prepared.width, prepared.height) == size == simplejpeg.decode_jpeg_header(prepared.data)[1::-1]
    upright = TURNED[orientation]
    sides = (288, 480) if sideways else (480, 288)
    shares = tuple(value / side for value, side in zip(upright, sides * 2, strict=True))
    ways = [((480, 288), AS_DRAWN)] if sideways or orientation == 1 else []  # else both are of one size
    ways += [(None, AS_DRAWN), (sides, upright), (SHARES, shares)]
    for stated, box in ways:
        item = ObjectRecord(3, box, box[2] * box[3] / 2, truncated=True)
        moved = frame_of_boxes(stated, prepared.placement).move(item)
        assert moved.box == pytest.approx([value / 8 for value in upright])
        assert moved.area == pytest.approx(50 * 130 / 2 / 64)
        assert moved._replace(box=box, area=item.area) == item
        assert np.abs(np.subtract(moved.box, red_box(prepared.data))).max() <= 1


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("resize", [None, Resize("fit", 60)])
def test_a_part_of_a_turned_photograph(resize, kind):
    """The part is in the file's own pixels, (50, 10) to (170, 160), and boxes count from its corner."""
    data = photograph(8, kind=kind)
    prepared = prepare_image(data, resize, (50, 10, 120, 150))
    times = 1.0 if resize is None else 60 / 150
    assert (prepared.width, prepared.height) == (150 * times, 120 * times)
    assert prepared.placement == Placement(120, 150, round(120 * times), round(150 * times), 8)
    moved = prepared.placement.move(ObjectRecord(0, (20, 10, 50, 130), 6500))
    assert moved.box == pytest.approx([value * times for value in (10, 120 - 20 - 50, 130, 50)])
    assert moved.area == pytest.approx(6500 * times**2)
    assert np.abs(np.subtract(moved.box, red_box(prepared.data))).max() <= 1


def test_the_frame_of_boxes():
    """By what is stated: nothing, the file's own size, that of the picture turned, another one, or shares."""
    own, seen = Placement(80, 48, 40, 24, 6), Placement(48, 80, 24, 40)
    for stated, frame in ((None, own), ((80, 48), own), ((48, 80), seen), ((96, 160), seen), ((640, 480), seen)):
        assert frame_of_boxes(stated, own) == frame
    assert frame_of_boxes(SHARES, own) == Placement(1, 1, 24, 40)
    down = Placement(80, 48, 80, 48, 3)  # upside down, or a square on its side: the picture as it is seen
    assert frame_of_boxes((80, 48), down) == Placement(80, 48, 80, 48) and frame_of_boxes(None, down) == down
    assert frame_of_boxes((50, 50), Placement(50, 50, 9, 9, 6)) == Placement(50, 50, 9, 9)
    plain = Placement(80, 48, 40, 24)
    for stated in (None, (80, 48), (160, 96), (80, 47)):
        assert frame_of_boxes(stated, plain) == plain
    with pytest.raises(ValueError, match="of a picture of 48 × 80, the image has 80 × 48: one of them was turned"):
        frame_of_boxes((48, 80), plain)
    assert frame_of_boxes(SHARES, plain) == Placement(1, 1, 40, 24)


@pytest.mark.parametrize(
    ("boxes", "size", "problem"),
    [
        ([(0, 0, 1, 1), (0, 0, 0, 1)], (80, 48), ""),  # whole numbers: small objects
        ([(0.5, 0, 0.5, 1), (0, 0, 1, 0.25)], (80, 48), "shares of the picture, where pixels are expected"),
        ([(0.5, 0, 0.5, 1), (0, 0, 1, 1.25)], (80, 48), ""),  # one of them cannot be in shares
        ([(0.5, 0.25, 0.5, 0.75)], SHARES, ""),
        ([(0.5, 0.25, 0.55, 0.8)], SHARES, ""),
        ([(0.5, 0.25, 0.56, 0.5)], SHARES, "leaves the picture of 1 × 1"),
        ([(0.5, 0.25, 0.5, 0.81)], SHARES, "leaves the picture of 1 × 1"),
        ([(-0.06, 0.25, 0.5, 0.5)], SHARES, "leaves the picture of 1 × 1"),
        ([(5, 5, 9, 9), (5, 6, -1, 7)], (80, 48), r"the box \[5, 6, -1, 7\] .* is of negative size"),
        ([(5, 6, 7, -1)], (80, 48), "is of negative size"),
        ([(-2, -2, 86, 52)], (80, 30), "leaves the picture of 80 × 30"),  # two pixels, or a twentieth: 4 across
        ([(-4, -2, 88, 34)], (80, 30), ""),
        ([], (80, 30), ""),
    ],
)
def test_boxes_that_cannot_be(boxes, size, problem):
    objects = [ObjectRecord(0, box, 1) for box in boxes]
    if not problem:
        check_boxes(objects, *size)
        return
    with pytest.raises(ValueError, match=problem):
        check_boxes(objects, *size)


# ---- In a preview


def corners(sheet: np.ndarray, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """The corners of what has a colour."""
    rows, columns = np.nonzero((sheet == colour).all(-1))
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def test_boxes_on_a_sheet_are_where_they_are_on_the_photograph():
    """Portraits of 170 × 510 are shown at half their size, 85 × 255, in the middle of 340 × 255, in rows of six."""
    red, blue = "#ff0000", "#0000ff"
    tiles = [Tile(str(n), Image.new("RGB", (170, 510), "#808080")) for n in range(7)]
    boxes = (Box("cat", red, 20, 60, 40, 180, faint=False), Box("dog", blue, 100, 300, 50, 30, faint=False))
    tiles[6] = Tile("6", tiles[6].image, (), boxes)
    sheet = np.asarray(draw_sheet(Preview("t", "s", tuple(tiles))))
    left = 56 + (340 - 85) // 2
    top = 56 + 92 + 255 + 10 + 16 + 8 + 32  # the first row's panel, key and the gap below it
    assert corners(sheet, (255, 0, 0)) == (left + 10, top + 30, left + 30, top + 120)
    assert corners(sheet, (0, 0, 255)) == (left + 50, top + 150, left + 75, top + 165)


def test_boxes_on_a_page_are_in_pixels_of_the_photograph():
    boxes = (Box("ant", "#111111", 3, 4, 5, 6, faint=True), Box("cow", "#222222", 1, 2, 30, 7, faint=False))
    text = draw_page(Preview("t", "s", (Tile("k", Image.new("RGB", (50, 20)), (), boxes),)))
    assert 'viewBox="0 0 50 20"' in text
    found = [dict(re.findall(r'([\w-]+)="([^"]*)"', tag)) for tag in re.findall(r"<rect[^>]*>", text)]
    places = [[float(tag[name]) for name in ("x", "y", "width", "height")] for tag in found]
    assert places == [[1, 2, 30, 7], [3, 4, 5, 6]]  # the large one first, so that the pointer reaches both


def test_a_masked_photograph_in_a_preview_is_dark_where_the_mask_is():
    """A mask of 2 × 4 on a photograph of 12 × 4: each of its pixels is 6 wide and 1 high."""
    level_HW = np.array([[255, 0], [0, 255], [51, 255], [255, 255]], np.uint8)
    tile = Tile("k", Image.new("RGB", (12, 4), (200, 100, 50)), mask=HeldMask("m", level_HW, 0.25))
    shown_HW3 = np.asarray(tile.masked_image())
    wanted_HW = level_HW.repeat(6, axis=1) / 255
    assert np.array_equal(shown_HW3, np.round(wanted_HW[..., None] * (200, 100, 50)))
