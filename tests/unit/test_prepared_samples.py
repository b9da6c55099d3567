"""Photographs and tars of odd sizes and names on their way into a dataset, and what is counted of them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from msldata.build import image as module
from msldata.build.image import Resize, prepare_image
from msldata.build.other_tars import LabelRule, Rows, make_rows, read_tar
from msldata.build.plan import plan_build
from msldata.build.sample import SampleMaker
from msldata.build.shards import build_shards
from msldata.build.spool import spooled
from msldata.contract.pixels import decode
from msldata.contract.records import LabelSpace, ObjectRecord, Record
from msldata.errors import BadInputError, UserError
from msldata.sources.labels.reading import LabelReading
from msldata.sources.source import fail
from msldata.storage import LocalStorage
from tests.oddimages import turned
from tests.tinydata import encode, jpeg


def striped(width: int, height: int, right: int, bottom: int) -> bytes:
    """A black JPEG whose last columns are white, and whose last rows are too."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, width - right :] = 255
    pixels[height - bottom :] = 255
    return simplejpeg.encode_jpeg(pixels, quality=95)


@pytest.mark.parametrize(("right", "bottom"), [(7, 0), (0, 7)])
def test_the_last_pixels_of_a_large_photograph_are_on_the_small_one(right, bottom):
    """Of 151 × 126 blocks of eight the last ones are cut at seven, which are about 40 % of a pixel."""
    image = prepare_image(striped(1207, 1007, right, bottom), Resize("shorter", 63))
    assert (image.width, image.height) == (76, 63)
    grey_HW = decode(image.data)[:, :, 0].astype(float)
    edge, inside = (grey_HW[:, -1], grey_HW[:, :-4]) if right else (grey_HW[-1], grey_HW[:-4])
    assert edge.mean() > 60 and inside.mean() < 3


def test_a_wide_photograph_is_reduced_as_far_as_its_shorter_side_lets_it(monkeypatch):
    reductions = []
    real = module.decode_jpeg
    monkeypatch.setattr(
        module, "decode_jpeg", lambda data, **how: reductions.append(how["reduction"]) or real(data, **how)
    )
    image = prepare_image(striped(3000, 600, 0, 0), Resize("shorter", 60))
    assert (image.width, image.height, reductions) == (300, 60, [4])


def test_a_part_of_a_large_photograph_is_made_smaller_from_that_part_alone():
    image = prepare_image(striped(1600, 1200, 400, 0), Resize("shorter", 50), (1100, 100, 200, 400))
    assert (image.width, image.height) == (50, 100)
    grey_HW = decode(image.data)[:, :, 0].astype(float)
    assert grey_HW[:, :23].mean() < 5 and grey_HW[:, 27:].mean() > 250  # the white begins in its middle


# ---- Samples and plans


@pytest.fixture
def maker(tmp_path) -> SampleMaker:
    (tmp_path / "a.png").write_bytes(encode(Image.new("RGB", (30, 20)), "PNG"))
    (tmp_path / "t.jpg").write_bytes(turned(6))
    return SampleMaker(LocalStorage(tmp_path), ("cat", "dog"), None)


@pytest.mark.parametrize(("size", "differs"), [(None, False), ((30, 20), False), ((60, 40), True)])
def test_a_size_differs_where_one_is_stated(maker, size, differs):
    sample = maker.make(Record("a", "a.png", (0,), objects=(ObjectRecord(0, (1, 2, 3, 4), 12),), size=size))
    assert (sample.size_differs, sample.turned, sample.transcoded) == (differs, False, True)


def test_a_photograph_is_turned_where_its_file_says_so(maker):
    assert maker.make(Record("t", "t.jpg", (0,))).turned


class Given:
    """A source of these records."""

    dataset, split, licence, provenance, labels, reject = "d", "s", "", {}, LabelSpace(("cat", "dog")), fail

    def __init__(self, folder: Path, *records: Record):
        self.images, self.counts, self._records = LocalStorage(folder), {}, records

    def records(self):
        return iter(self._records)


@pytest.mark.parametrize(
    "record",
    [
        Record("a", "a.jpg", (), objects=(ObjectRecord(0, (1, 2, 3, 4), float("inf")),)),
        Record("a", "a.jpg", (), objects=(ObjectRecord(0, (1, float("nan"), 3, 4), 12),)),
        Record("a", "a.jpg", (), crop=(0, 0, float("inf"), 1)),
    ],
)
def test_what_is_no_finite_number_is_refused(tmp_path, record):
    with pytest.raises(BadInputError, match="a box, an area or a crop is not a finite number"):
        plan_build(Given(tmp_path, record))


def test_sizes_are_known_where_all_images_are_there(tmp_path):
    for name in "abc":
        (tmp_path / name).write_bytes(jpeg(1))
    records = [Record(name, name, (0,)) for name in "abcd"]
    assert plan_build(Given(tmp_path, *records[:3]), samples_per_shard=2).image_sizes
    plan = plan_build(Given(tmp_path, *records), samples_per_shard=2)
    assert [bool(shard.image_sizes) for shard in plan.shards] == [True, False] and not plan.image_sizes
    assert [shard.missing for shard in plan.shards] == [(), ("d",)]


def test_the_newest_image_is_that_of_any_shard(tmp_path):
    import os

    for name, when in (("a", 5), ("b", 9), ("c", 7)):
        (tmp_path / name).write_bytes(jpeg(1))
        os.utime(tmp_path / name, ns=(1, when))
    records = [Record(name, name, (0,)) for name in "abc"]
    assert plan_build(Given(tmp_path, *records), samples_per_shard=1).newest_image == (9, "b")


def test_all_photographs_of_another_size_than_stated_are_counted(tmp_path):
    boxes = (ObjectRecord(0, (1, 2, 3, 4), 12),)
    for name in "abcd":
        (tmp_path / f"{name}.jpg").write_bytes(jpeg(ord(name), 30, 20))
    sizes = [(60, 40), None, (90, 60), (30, 20)]
    given = Given(tmp_path, *[Record(k, f"{k}.jpg", (0,), (), boxes, size=size) for k, size in zip("abcd", sizes)])
    manifest = build_shards(plan_build(given), tmp_path / "out", num_workers=1)
    assert (manifest.counts["stated_size_differs"], manifest.counts["objects"]) == (2, 4)


@pytest.mark.parametrize("given", [["dog", "cat", "dog"], [1, 1]])
def test_labels_of_a_program_are_ascending(given):
    with spooled([("a", jpeg(1), given)], ("cat", "dog"), "d", "s", None) as source:
        (record,) = source.records()
        assert (record.positives, record.ignored) == ((0, 1), ())


def test_samples_of_two_programs_under_one_key_are_two_files(tmp_path):
    with spooled([("a/b", jpeg(1), []), ("a_b", jpeg(2), [])], ("cat",), "d", "s", tmp_path) as source:
        images = [source.images.read(record.image) for record in source.records()]
    assert images == [jpeg(1), jpeg(2)]


# ---- Tars of other programs


def rows_of(folder: Path, members: dict[str, bytes], rule: LabelRule, reading: LabelReading, **how: Any) -> Rows:
    path = folder / "x.tar"
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    contents = read_tar(path, "x.tar", rule, skip=False)
    return make_rows(contents, "x.tar", reading, how.get("classes", ("cat", "dog")), skip=how.get("skip", False))


NAMES = LabelReading("names", ";")
CLS = LabelRule(".cls")


def test_a_sample_begins_at_the_first_dot_of_its_name(tmp_path):
    """Names in capitals, a picture beside its mask, folders with dots; and a byte order mark before the labels."""
    members = {"v1.2/a.Input.JPG": jpeg(1, 30, 20), "v1.2/a.seg.png": encode(Image.new("L", (9, 9)), "PNG")}
    members |= {"v1.2/a.CLS": b"\xef\xbb\xbfcat;dog\n", "b.jpeg": jpeg(2, 18, 25), "b.cls": b"dog"}
    found = rows_of(tmp_path, members, CLS, NAMES)
    place = [(row["key"], row["width"], row["height"], row["positives"]) for row in found.rows]
    assert place == [("v1.2/a", 30, 20, [0, 1]), ("b", 18, 25, [1])]
    data = (tmp_path / "x.tar").read_bytes()
    for row, image in zip(found.rows, (jpeg(1, 30, 20), jpeg(2, 18, 25)), strict=True):
        assert data[row["offset"] : row["offset"] + row["length"]] == image


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_sides_in_a_tar_are_those_of_the_upright_photograph(tmp_path, orientation):
    data = turned(orientation)
    (row,) = rows_of(tmp_path, {"a.jpg": data, "a.cls": b"cat"}, CLS, NAMES).rows
    assert (row["height"], row["width"]) == decode(data).shape[:2] and row["height"] != row["width"]


@pytest.mark.parametrize(("label", "reading"), [(b"cow", NAMES), (b"2", LabelReading("indices"))])
def test_a_class_that_is_not_listed_is_refused(tmp_path, label, reading):
    members = {"a.jpg": jpeg(1), "a.cls": label}
    with pytest.raises(BadInputError, match=r"sample a: unknown class ('cow'|2); there are 2"):
        rows_of(tmp_path, members, CLS, reading)
    found = rows_of(tmp_path, members, CLS, reading, skip=True)
    assert (found.rows, [entry["file"] for entry in found.quarantined]) == ([], ["x.tar, sample a"])


def test_what_vectors_and_names_leave_out_is_both_ignored(tmp_path):
    """Vectors with -1 that lie in a JSON beside what it calls ignored."""
    reading = LabelReading("multi-hot", length=3, minus_one=True)
    meta = json.dumps({"labels": [1, -1, 0], "ignored": [0, 0, 1]}).encode()
    rule = LabelRule(".json", "labels")
    (row,) = rows_of(tmp_path, {"a.jpg": jpeg(1), "a.json": meta}, rule, reading, classes=("a", "b", "c")).rows
    assert (row["positives"], row["ignored"]) == ([0], [1, 2])


def test_of_no_samples_nothing_is_made(tmp_path):
    with pytest.raises(UserError, match="no samples were given"), spooled([], ("cat",), "d", "s", tmp_path):
        pass
