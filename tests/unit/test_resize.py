"""Making images smaller: sizes by hand, boxes that stay on what they mark in all eight EXIF orientations, inputs."""

from __future__ import annotations

import io
import json
from contextlib import nullcontext

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from msldata.build.image import Placement, Resize, parse_resize, prepare_image
from msldata.build.sample import check_boxes, frame_of_boxes
from msldata.build.shards import build_shards, plan_build
from msldata.contract import format as contract
from msldata.contract.manifest import IMAGES
from msldata.contract.records import SHARES, ObjectRecord, Record
from msldata.errors import UserError
from msldata.sources.kinds import open_source
from msldata.storage import open_storage
from tests.integration.test_build_shards import ListSource, read_samples
from tests.tinydata import encode, jpeg, make_voc

ORIENTATION = 0x0112
BOX = (24.0, 8.0, 16.0, 24.0)  # of the red object in the marked image


def marked(kind: str = "JPEG", orientation: int = 1) -> bytes:
    """A black image, 80 × 48, with a red object at ``BOX``, turned by its EXIF."""
    image = Image.new("RGB", (80, 48))
    left, top, width, height = map(int, BOX)
    image.paste((255, 0, 0), (left, top, left + width, top + height))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    buffer = io.BytesIO()
    image.save(buffer, kind, exif=exif, **({"quality": 100, "subsampling": 0} if kind == "JPEG" else {}))
    return buffer.getvalue()


def red_box(data: bytes) -> tuple[int, int, int, int]:
    red = simplejpeg.decode_jpeg(data)[..., 0] > 128
    rows, columns = np.flatnonzero(red.any(axis=1)), np.flatnonzero(red.any(axis=0))
    return int(columns[0]), int(rows[0]), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1


@pytest.mark.parametrize(
    ("text", "size", "expected"),
    [
        ("shorter=100", (500, 375), (133, 100)),
        ("shorter=100", (375, 500), (100, 133)),
        ("fit=100", (500, 375), (100, 75)),
        ("fit=100", (100, 30), (100, 30)),
        ("shorter=400", (500, 375), (500, 375)),  # never enlarged
        ("fit=10", (5000, 3), (10, 1)),
    ],
)
def test_sizes_by_hand(text, size, expected):
    placement = parse_resize(text).placement(*size, 1)
    assert (placement.scaled_width, placement.scaled_height) == expected


@pytest.mark.parametrize("text", ["448", "longer=448", "shorter=", "shorter=0", "fit=-3", "fit=1e3", "fit=448 ", ""])
def test_bad_sizes_are_refused(text):
    with pytest.raises(UserError, match="expected shorter=N or fit=N"):
        parse_resize(text)


def test_quality():
    assert parse_resize(None) is None
    assert parse_resize("fit=9") == Resize("fit", 9, 90)
    assert parse_resize("fit=9", 100).quality == 100
    for quality in (0, 101):
        with pytest.raises(UserError, match=f"--quality {quality}: expected 1 to 100"):
            parse_resize("fit=9", quality)
    with pytest.raises(UserError, match="--quality belongs to --resize"):
        parse_resize(None, 80)
    noisy = jpeg(1, 200, 100)
    sizes = [len(prepare_image(noisy, Resize("fit", 100, quality)).data) for quality in (30, 95)]
    assert sizes[0] < sizes[1] / 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("size", [24, 48])
def test_boxes_stay_on_what_they_mark(orientation, kind, size):
    """The object is looked for in the pixels that were written, which knows nothing of the arithmetic of boxes."""
    prepared = prepare_image(marked(kind, orientation), Resize("shorter", size))
    item = ObjectRecord(0, BOX, area=100.0)
    moved = prepared.placement.move(item) if prepared.placement else item
    assert np.abs(np.subtract(moved.box, red_box(prepared.data))).max() <= 1
    assert moved.area == pytest.approx(100 * (size / 48) ** 2)
    assert (prepared.width < prepared.height) == (orientation >= 5)
    assert max(prepared.width, prepared.height) * 3 == size * 5
    assert Image.open(io.BytesIO(prepared.data)).getexif().get(ORIENTATION, 1) == 1  # a viewer would turn it once more


def test_boxes_by_hand():
    """A photograph of 400 × 200 held on its side (orientation 6: turn it clockwise), halved."""
    placement = Placement(400, 200, 200, 100, 6)
    moved = placement.move(ObjectRecord(3, (10, 20, 40, 60), area=2000, crowd=True, truncated=True))
    assert moved == ObjectRecord(3, (60, 5, 30, 20), area=500, crowd=True, truncated=True)


@pytest.mark.parametrize(
    ("placement", "box", "area"),
    [
        (Placement(400, 200, 400, 200), (100, 100, 200, 50), 10_000),
        (Placement(400, 200, 200, 100, 6), (25, 100, 50, 50), 2500),  # held on its side, and halved
    ],
)
def test_boxes_in_shares_by_hand(placement, box, area):
    moved = frame_of_boxes(SHARES, placement).move(ObjectRecord(0, (0.25, 0.5, 0.5, 0.25), area=0.125))
    assert moved == ObjectRecord(0, box, area=area)


@pytest.mark.parametrize(
    ("box", "fits"),
    [
        ((-20, -5, 440, 110), True),  # a twentieth of each side, beyond every edge
        ((380, 90, 40, 15), True),
        ((380, 90, 41, 10), False),
        ((380, 90, 10, 16), False),
        ((-21, 0, 40, 10), False),
        ((0, -6, 40, 10), False),
    ],
)
def test_how_far_a_box_may_leave_the_picture_depends_on_that_side(box, fits):
    for width, height, turned in ((400, 100, box), (100, 400, (box[1], box[0], box[3], box[2]))):
        with nullcontext() if fits else pytest.raises(ValueError, match=f"leaves the picture of {width} × {height}"):
            check_boxes([ObjectRecord(0, turned, 1.0)], width, height)


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_an_orientation_without_meaning_is_none(orientation):
    assert prepare_image(marked("JPEG", orientation), Resize("fit", 80)).data == marked("JPEG", orientation)


def test_a_tiff_is_not_turned_twice():
    prepared = prepare_image(marked("TIFF", 6), Resize("fit", 80))
    assert (prepared.width, prepared.height) == (48, 80)
    assert np.abs(np.subtract(red_box(prepared.data), (16, 24, 24, 16))).max() <= 1


def test_a_small_upright_jpeg_keeps_its_bytes():
    for data in (marked(), jpeg(1, 80, 48), jpeg(1, 80, 48, mode="L")):
        prepared = prepare_image(data, Resize("fit", 80))
        assert (prepared.data, prepared.transcoded, prepared.placement) == (data, False, None)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("JPEG", mode) for mode in ("RGB", "L", "CMYK")]
    + [("PNG", mode) for mode in ("RGB", "L", "P", "RGBA", "1", "LA")],
)
def test_all_inputs_become_rgb(kind, mode):
    data = encode(Image.linear_gradient("L").resize((64, 48)).convert("RGB").convert(mode), kind)
    prepared = prepare_image(data, Resize("fit", 32))
    height, width, colour_space, _ = simplejpeg.decode_jpeg_header(prepared.data)
    assert (width, height, colour_space, prepared.transcoded) == (32, 24, "YCbCr", True)
    pixels = simplejpeg.decode_jpeg(prepared.data).astype(int)
    tolerance = 130 if mode == "1" else 24
    assert np.abs(pixels.mean(axis=(1, 2)) - np.linspace(5, 250, 24)).max() < tolerance
    assert prepare_image(data, Resize("fit", 32)) == prepared  # the same bytes every time


def test_a_progressive_jpeg_is_resized_like_another():
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((64, 48)).convert("RGB").save(buffer, "JPEG", progressive=True, quality=95)
    assert prepare_image(buffer.getvalue()).data == buffer.getvalue()
    pixels = simplejpeg.decode_jpeg(prepare_image(buffer.getvalue(), Resize("fit", 32)).data).astype(int)
    assert np.abs(pixels.mean(axis=(1, 2)) - np.linspace(5, 250, 24)).max() < 24


@pytest.mark.parametrize("resize", [None, Resize("fit", 16, 95)])
def test_a_palette_keeps_its_colours_and_loses_its_transparency(resize):
    """A red image whose palette has a see-through entry, once as one index and once as a table of alphas."""
    image = Image.new("P", (32, 24), 1)
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
    for transparency in (1, bytes([255, 0, 128])):
        buffer = io.BytesIO()
        image.save(buffer, "PNG", transparency=transparency)
        prepared = prepare_image(buffer.getvalue(), resize)
        assert prepared.transcoded
        assert np.abs(simplejpeg.decode_jpeg(prepared.data).astype(int) - [255, 0, 0]).max() < 8


@pytest.mark.parametrize(("kind", "order"), [("PNG", "<u2"), ("TIFF", "<u2"), ("TIFF", ">u2")])
def test_sixteen_bits_become_eight(kind, order):
    values = np.array([[0, 257, 32896], [65535, 128, 129]], dtype=order).repeat(16, axis=0).repeat(16, axis=1)
    prepared = prepare_image(encode(Image.fromarray(values), kind), Resize("fit", 48, 100))
    pixels = simplejpeg.decode_jpeg(prepared.data)[8::16, 8::16, 1]
    assert np.abs(pixels.astype(int) - [[0, 1, 128], [255, 0, 1]]).max() <= 1


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (jpeg(1, 200, 100)[:5000], "truncated"),
        (encode(Image.fromarray(np.full((9, 9), 70_000, np.int32)), "TIFF"), "values from 70000 to 70000 are not 16"),
        (encode(Image.fromarray(np.zeros((9, 9), np.float32)), "TIFF"), "floating-point pixels have no known range"),
        (b"nothing", "not an image"),
    ],
)
def test_what_is_refused(data, reason):
    with pytest.raises(ValueError, match=reason):
        prepare_image(data, Resize("fit", 8))


def test_a_build_moves_the_boxes_in_index_and_json(tmp_path):
    for orientation in range(1, 9):
        (tmp_path / f"{orientation}.jpg").write_bytes(marked("JPEG", orientation))
    item = ObjectRecord(1, BOX, area=384.0, occluded=True)
    records = [Record(str(turn), f"{turn}.jpg", (1,), (), (item,)) for turn in range(1, 9)]
    plan = plan_build(ListSource(tmp_path, records), resize=parse_resize("shorter=24", 95))
    manifest = build_shards(plan, open_storage(tmp_path / "out"), num_workers=2)
    assert (manifest.options["resize"], manifest.options["resize_quality"]) == ("shorter=24", 95)
    assert manifest.counts["transcoded"] == 8
    (shard,) = manifest.shards
    rows = contract.decode_index(IMAGES, (tmp_path / "out" / shard.index_name).read_bytes(), "x").to_pylist()
    for found, row in zip(read_samples(tmp_path / "out", manifest), rows, strict=True):
        meta = json.loads(found["json"])
        (entry,) = meta["objects"]
        assert np.abs(np.subtract(entry["box"], red_box(found["jpg"]))).max() <= 1
        assert row["objects"][0]["box"] == entry["box"]
        assert (entry["area"], row["objects"][0]["area"], entry["occluded"]) == (96, 96, True)
        height, width = simplejpeg.decode_jpeg(found["jpg"]).shape[:2]
        assert (meta["width"], meta["height"]) == (row["width"], row["height"]) == (width, height)
        assert min(width, height) == 24


def test_the_plan_changes_only_when_a_size_is_asked_for(tmp_path):
    source = open_source("voc2007", make_voc(tmp_path, 3), "test")
    plain = plan_build(source)
    # Builds of earlier versions go on under this digest; a change here makes every one of them start over.
    assert plain.digest == "f6b9c537c133f67f3b762f87b3417084f6c277b36f56215ccf97d65efbc9c21a"
    plans = [
        plain,
        *(plan_build(source, resize=parse_resize(*way)) for way in (("fit=9",), ("shorter=9",), ("fit=8",))),
    ]
    plans.append(plan_build(source, resize=parse_resize("fit=9", 80)))
    assert len({plan.digest for plan in plans}) == 5
    assert plain.options == {"samples_per_shard": 1000, "transcode_quality": 95}


@pytest.mark.real
def test_real_photographs(sample, tmp_path):
    source = open_source("coco2014", sample, "val")
    before = [next(records) for records in [source.records()] for _ in range(20)]
    plan = plan_build(ListSource(source.images.path(), before, source.labels.classes), resize=parse_resize("fit=256"))
    manifest = build_shards(plan, open_storage(tmp_path), num_workers=2)
    for record, found in zip(before, read_samples(tmp_path, manifest), strict=True):
        with Image.open(source.images.path(record.image)) as original:
            small, whole = simplejpeg.decode_jpeg(found["jpg"]).astype(float), original.convert("RGB")
        height, width = small.shape[:2]
        assert max(width, height) == 256
        assert np.abs(small - np.asarray(whole.resize((width, height), Image.Resampling.BOX))).mean() < 8
        for item, entry in zip(record.objects, json.loads(found["json"])["objects"], strict=True):
            assert np.divide(entry["box"], (width, height) * 2) == pytest.approx(
                np.divide(item.box, whole.size * 2), abs=1e-9
            )
