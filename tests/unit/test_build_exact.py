"""A build of three shards by hand: every member, every row of the indexes and the whole manifest, and what reads them.

The photographs lie on their sides, are cut out, in shares, of another size than stated, of another kind, and one is
damaged; no two counts are equal by chance.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import time
from contextlib import nullcontext
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image

from msldata.build import shards
from msldata.build.index_tars import index_shards
from msldata.build.plan import digest_sizes, join_sizes
from msldata.build.sample import Sample, SampleMaker
from msldata.build.shards import BuildPlan, Part, _threads, build_shards, plan_build
from msldata.contract import format as contract
from msldata.contract.manifest import IMAGES, Manifest, read_manifest
from msldata.contract.records import SHARES, LabelSpace, ObjectRecord, Occlusion, Record
from msldata.errors import BadInputError, UserError
from msldata.inspect.describe import Extent, FlagCount, LabelCount, LabelPair, describe
from msldata.inspect.verify import verify
from msldata.sources.kinds import PUBLISHED
from msldata.storage import open_storage
from tests.integration.test_verify import edit_rows, rewrite
from tests.tinydata import encode, jpeg

CLASSES = ("ant", "bee", "cow", "dog", "elk")
NAMES = ("a.jpg", "b.jpg", "c.jpg", "d.png", "e.jpg", "f.jpg", "g.jpg", "h.jpg", "i.jpg")
NONE = {"difficult": False, "truncated": None, "occluded": None, "crowd": False}


class Given:
    """A source whose records are given; one of them has a box that is no box."""

    dataset, split, licence = "made", "up", "none"

    def __init__(self, root: Path):
        self.images = open_storage(root)
        self.labels = LabelSpace(CLASSES)
        self.provenance = {"source": "a test"}
        self.counts = {"dropped": 6}

    def records(self):
        box = (2.0, 4.0, 9.0, 3.0)
        items = (ObjectRecord(4, box, 27, truncated=True), ObjectRecord(1, box, 20), ObjectRecord(1, (0, 0, 1, 1), 1))
        yield Record("a", "a.jpg", (1, 4), (0, 2), items)
        # The file's own pixels, 80 × 48, and those that it is seen by, 48 × 80; it is turned clockwise.
        beside = ObjectRecord(2, (24, 8, 16, 24), 300, difficult=True, occluded=False)
        yield Record("b", "b.jpg", (), (2,), (beside,), "7", size=(80, 48))
        yield Record("odd", "a.jpg", (0,), (), (ObjectRecord(0, (1, 2, float("nan"), 3), 1),))
        yield Record(
            "c", "c.jpg", (1, 2), (), (ObjectRecord(2, (16, 24, 24, 16), 384, crowd=True),), "8", size=(48, 80)
        )
        yield Record("d", "d.png", (3,), (4,), (), "9", None, (30, 20))
        share = ObjectRecord(1, (0.25, 0.5, 0.5, 0.125), 0.0625, occluded=True)
        yield Record("e", "e.jpg", (1, 4), (), (share, ObjectRecord(4, (0, 0, 1, 0.75), 0.75)), "10", None, SHARES)
        part = ObjectRecord(1, (1.0, 2.0, 3.0, 4.0), 12, truncated=False)
        yield Record("f", "f.jpg", (1,), (), (part,), crop=(10, 4, 9, 7))
        yield Record("h", "h.jpg", (0,), (), image_id="12")  # damaged
        told = (Occlusion(0.25, True), Occlusion(None, None))
        items = (ObjectRecord(3, (0, 0, 24, 16), 9216), ObjectRecord(3, (1, 2, 3, 5), 1024))
        yield Record("g", "g.jpg", (3,), (1, 4), items, "11", None, (48, 32), told)
        yield Record("i", "i.jpg", (), (), ())


def turned(orientation: int, beside: str = "black") -> bytes:
    """80 × 48, black but for a red part at (24, 8) of 16 × 24."""
    image = Image.new("RGB", (80, 48))
    image.paste((255, 0, 0), (24, 8, 40, 32))
    image.paste(beside, (64, 40, 72, 48))
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif, quality=95, subsampling=0)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("raw")
    contents = [jpeg(1), turned(6), turned(6, "blue"), encode(Image.new("RGB", (30, 20), "red"), "PNG"), turned(8)]
    contents += [jpeg(5, 40, 30), jpeg(6), jpeg(7)[:-30], jpeg(8, 17, 31, "L")]
    for number, (name, data) in enumerate(zip(NAMES, contents, strict=True)):
        (root / name).write_bytes(data)
        os.utime(root / name, ns=(7, 10**9 * (number * 5 % 9)))
    os.utime(root / "b.jpg", ns=(7, 10**10))
    return root


def planned(raw: Path) -> BuildPlan:
    return plan_build(Given(raw), samples_per_shard=3, on_error="skip")


@pytest.fixture(scope="module")
def built(raw, tmp_path_factory) -> tuple[Path, Manifest, list[tuple[int, int]]]:
    out, steps = tmp_path_factory.mktemp("built"), []
    manifest = build_shards(
        planned(raw), out, num_workers=1, on_error="skip", progress=lambda done, total: steps.append((done, total))
    )
    return out, manifest, steps


def row(key: str, size: tuple[int, int], positives: list[int], ignored: list[int], *objects: dict, **more: Any) -> dict:
    return {
        "key": key, "width": size[0], "height": size[1], "positives": positives, "ignored": ignored,
        "objects": list(objects), **more,
    }  # fmt: skip


def item(index: int, box: list[float], area: float, **flags: Any) -> dict:
    return {"class_index": index, "area": area, "box": box, **NONE, **flags}


NO_WORD = {"covered": None, "separated": None}
ROWS = [
    [
        row(
            "a", (24, 16), [1, 4], [0, 2],
            item(4, [2, 4, 9, 3], 27, truncated=True), item(1, [2, 4, 9, 3], 20), item(1, [0, 0, 1, 1], 1),
        ),
        row("b", (48, 80), [], [2], item(2, [16, 24, 24, 16], 300, difficult=True, occluded=False)),
        row("c", (48, 80), [1, 2], [], item(2, [16, 24, 24, 16], 384, crowd=True)),
    ],
    [
        row("d", (30, 20), [3], [4]),
        row("e", (48, 80), [1, 4], [], item(1, [12, 40, 24, 10], 240, occluded=True), item(4, [0, 0, 48, 60], 2880)),
        row("f", (9, 7), [1], [], item(1, [1, 2, 3, 4], 12, truncated=False)),
    ],
    [
        row(
            "g", (24, 16), [3], [1, 4], item(3, [0, 0, 24, 16], 9216), item(3, [1, 2, 3, 5], 1024),
            occlusion=[{"covered": 0.25, "separated": True}, NO_WORD],
        ),
        row("i", (17, 31), [], [], occlusion=[]),
    ],
]  # fmt: skip
IDS = {"a": "a", "b": "7", "c": "8", "d": "9", "e": "10", "f": "f", "g": "11", "i": "i"}
SHARDS = [f"made-up-{number:06d}" for number in range(3)]


def index(folder: Path, shard: str) -> list[dict]:
    return contract.decode_index(IMAGES, (folder / f"{shard}.parquet").read_bytes(), shard).to_pylist()


def test_rows_of_the_indexes(built):
    out, _, _ = built
    for shard, rows in zip(SHARDS, ROWS, strict=True):
        places = ("offset", "length", "crc32")
        found = [{name: value for name, value in row.items() if name not in places} for row in index(out, shard)]
        assert found == rows


def test_members_of_the_shards(built, raw):
    out, _, _ = built
    samples = list(webdataset.WebDataset([str(out / f"{shard}.tar") for shard in SHARDS], shardshuffle=False))
    rows = [row for rows in ROWS for row in rows]
    for found, row in zip(samples, rows, strict=True):
        key = row["key"]
        assert (found["__key__"], set(found) - {"__key__", "__url__", "__local_path__"}) == (
            key, {"jpg", "json", "target.npy"},
        )  # fmt: skip
        objects = [
            {"class": CLASSES[one["class_index"]], **{name: one[name] for name in one if name != "class_index"}}
            for one in row["objects"]
        ]
        crop = {"crop": [10, 4, 9, 7]} if key == "f" else {}
        name = next(name for name in NAMES if name[0] == key)
        assert json.loads(found["json"]) == {
            "file": name,
            "image_id": IDS[key],
            "width": row["width"],
            "height": row["height"],
            "labels": [CLASSES[k] for k in row["positives"]],
            "ignored": [CLASSES[k] for k in row["ignored"]],
            "objects": objects,
            **crop,
        }
        assert np.load(io.BytesIO(found["target.npy"])).tolist() == [int(k in row["positives"]) for k in range(5)]
        image = Image.open(io.BytesIO(found["jpg"]))
        assert image.size == (row["width"], row["height"])
        assert (found["jpg"] == (raw / name).read_bytes()) == (key in "agi")
        if key in "bce":  # the red part, where the box of b and c says; e is turned the other way
            red_HW = np.asarray(image)[..., 0] > 128
            left, top = (16, 24) if key != "e" else (8, 40)
            wanted_HW = np.zeros((80, 48), bool)
            wanted_HW[top : top + 16, left : left + 24] = True
            assert np.array_equal(red_HW, wanted_HW)
    whole = Image.open(raw / "f.jpg").crop((10, 4, 19, 11))
    assert np.abs(np.asarray(Image.open(io.BytesIO(samples[5]["jpg"])), int) - np.asarray(whole)).mean() < 20


def test_the_manifest(built, raw):
    out, manifest, steps = built
    assert manifest == read_manifest(open_storage(out)) and (manifest.dataset, manifest.split) == ("made", "up")
    assert [(shard.name, shard.num_samples) for shard in manifest.shards] == [
        ("made-up-000000.tar", 3),
        ("made-up-000001.tar", 3),
        ("made-up-000002.tar", 2),
    ]
    assert [shard.num_bytes for shard in manifest.shards] == [(out / f"{shard}.tar").stat().st_size for shard in SHARDS]
    assert manifest.label_histogram == {
        "ant": {"positive": 0, "ignored": 1},
        "bee": {"positive": 4, "ignored": 1},
        "cow": {"positive": 1, "ignored": 2},
        "dog": {"positive": 2, "ignored": 0},
        "elk": {"positive": 2, "ignored": 2},
    }
    assert manifest.counts == {
        "dropped": 6,
        "objects": 10,
        "ignored_labels": 6,
        "transcoded": 5,
        "quarantined": 2,
        "turned_upright": 3,
        "stated_size_differs": 1,
    }
    sizes = {name: (raw / name).stat().st_size for name in NAMES}
    per_shard = [
        digest_sizes(sizes[f"{key}.jpg"] if key != "d" else sizes["d.png"] for key in keys)
        for keys in ("abc", "def", "hgi")
    ]
    assert manifest.provenance == {"source": "a test", "image_sizes_sha256": join_sizes(per_shard)}
    assert manifest.options == {"samples_per_shard": 3, "transcode_quality": 95}
    assert steps == [(0, 9), (3, 9), (6, 9), (9, 9)]
    odd, damaged = map(json.loads, (out / "quarantine.jsonl").read_text().splitlines())
    assert odd == {"file": "a.jpg", "reason": "a box, an area or a crop is not a finite number"}
    assert damaged["file"] == "h.jpg" and "truncated" in damaged["reason"]


def test_what_the_plan_says(raw):
    plan = planned(raw)
    assert [[record.key for record in shard.records()] for shard in plan.shards] == [
        list("abc"),
        list("def"),
        list("hgi"),
    ]
    given = [record for record in Given(raw).records() if record.key != "odd"]
    assert [record for shard in plan.shards for record in shard.records()] == given
    assert (plan.num_samples, plan.decode, plan.licence, dict(plan.counts)) == (9, True, "none", {"dropped": 6})
    assert [entry["file"] for entry in plan.quarantined] == ["a.jpg"]
    assert plan.newest_image == (10**10, "b.jpg")
    assert plan.image_sizes == join_sizes(shard.image_sizes for shard in plan.shards) != ""
    assert [task.name for task in Part.parse("2/2").of(plan.shards)] == ["made-up-000001.tar"]
    assert [task.name for task in Part(1, 2).of(plan.shards)] == ["made-up-000000.tar", "made-up-000002.tar"]
    with pytest.raises(BadInputError, match=r"a\.jpg: a box, an area or a crop is not a finite number"):
        plan_build(Given(raw))
    for number, num_parts in ((0, 3), (4, 3)):
        with pytest.raises(UserError, match="tasks are numbered from 1/N to N/N"):
            Part(number, num_parts)
    # Two processes and three shards: the one left over has a thread for each processor.
    assert [_threads(plan, *way) for way in ((3, 2), (3, 8), (4, 2), (3, 1), (5, 3))] == [
        [1, 1, 2], [3, 3, 3], [1, 1, 1, 1], [1, 1, 1], [1, 1, 1, 2, 2],
    ]  # fmt: skip


@pytest.mark.parametrize(("num_published", "decode"), [(8, False), (9, False), (10, True)])
def test_a_part_of_a_published_split_is_decoded(raw, monkeypatch, num_published, decode):
    """Archives of the whole are checked when they are fetched; who brings a part may bring damage."""
    monkeypatch.setitem(PUBLISHED, ("voc2007", "up"), num_published)
    source = Given(raw)
    assert plan_build(source, on_error="skip").decode
    source.provenance = {"source": "VOC2007"}
    assert plan_build(source, on_error="skip").decode == decode


@pytest.mark.parametrize(("num_good", "fits"), [(11, False), (12, True)])
def test_how_many_may_be_left_out(tmp_path, num_good, fits):
    """Six records and six files of 23 or 24: half may be, of all that the source names."""
    source = Given(tmp_path)
    records = [Record(f"odd{n}", "x.jpg", (), (), (), "", (0, 0, float("inf"), 1)) for n in range(6)]
    records += [Record(f"{n}", f"{n}.jpg", (n % 5,)) for n in range(num_good + 6)]
    source.records = lambda: iter(records)
    for n in range(num_good + 6):
        (tmp_path / f"{n}.jpg").write_bytes(jpeg(n) if n >= 6 else b"no image")
    plan = plan_build(source, samples_per_shard=7, on_error="skip", skip_limit=0.5)
    with nullcontext() if fits else pytest.raises(UserError, match=r"12 of 23 images cannot be used, more than"):
        manifest = build_shards(plan, tmp_path / "out", num_workers=1, on_error="skip")
        assert (manifest.num_samples, manifest.counts["quarantined"]) == (12, 12)
    records[:] = [
        Record(f"{n}", f"{n}.jpg", (), (), (), "", (0, 0, float("inf"), 1) if n < 11 else None) for n in range(110)
    ]
    assert plan_build(source, on_error="skip").num_samples == 99  # a tenth to the record
    records.pop()
    with pytest.raises(UserError, match="11 of 109 images cannot be used"):
        plan_build(source, on_error="skip")
    records.pop(0)
    assert plan_build(source, on_error="skip").num_samples == 98  # ten may be in any case


def test_threads_and_another_call_give_the_same(built, raw, tmp_path):
    out, manifest, _ = built
    again = build_shards(planned(raw), out, num_workers=1, on_error="skip")
    assert again == manifest  # finished: nothing is done

    def slow(maker: SampleMaker, record: Record) -> Sample:
        try:
            return make(maker, record)
        finally:
            time.sleep(0.01)  # the others have read their files by now

    make = SampleMaker.make
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "_threads", lambda plan, num_jobs, num_workers: [3] * num_jobs)
        patch.setattr(shards, "_AHEAD", 0.5)
        patch.setattr(SampleMaker, "make", slow)
        threaded = build_shards(planned(raw), tmp_path, num_workers=1, on_error="skip")
    assert threaded == manifest
    assert all((tmp_path / path.name).read_bytes() == path.read_bytes() for path in out.glob("made-*"))


def test_what_describe_counts(built):
    out, manifest, _ = built
    about = describe(out, max_pairs=3)
    assert (about.kind, about.dataset, about.split, about.licence) == (IMAGES, "made", "up", "none")
    assert (about.num_samples, about.num_shards) == (8, 3)
    assert about.num_bytes == sum((out / f"{shard}.tar").stat().st_size for shard in SHARDS)
    assert (about.fingerprint, about.options, about.counts) == (manifest.fingerprint, manifest.options, manifest.counts)
    assert (about.width, about.height) == (Extent(9, 27, 48), Extent(7, 25.5, 80))
    assert about.labels == tuple(
        LabelCount(name, *counts, counts[0] / 8)
        for name, counts in zip(CLASSES, [(0, 1), (4, 1), (1, 2), (2, 0), (2, 2)], strict=True)
    )
    assert about.labels_per_image == 9 / 8
    assert about.pairs == (LabelPair("bee", "elk", 2, 2 / 4), LabelPair("bee", "cow", 1, 1 / 4))
    assert about.object_sizes == {"small": 7, "medium": 2, "large": 1}
    assert about.object_flags == {
        "difficult": FlagCount(1, 10),
        "truncated": FlagCount(1, 2),
        "occluded": FlagCount(1, 2),
        "crowd": FlagCount(1, 10),
    }
    assert (about.hole_fraction_histogram, about.hole_fraction) == ({}, None)


@pytest.mark.parametrize("rule", ["target.npy", "json:labels"])
def test_the_tars_alone_tell_the_same(built, tmp_path, rule):
    """Of our own tars the index can be made again: by their vectors, or by their JSON alone."""
    out, manifest, _ = built
    for shard in SHARDS:
        shutil.copy(out / f"{shard}.tar", tmp_path)
    steps = []
    found = index_shards(
        tmp_path, labels_from=rule, classes=CLASSES, num_workers=1, command=["msl", "index"],
        progress=lambda *step: steps.append(step),
    )  # fmt: skip
    for shard in SHARDS:
        ours = [{name: value for name, value in row.items() if name != "occlusion"} for row in index(out, shard)]
        assert index(tmp_path, shard) == ours
    assert (found.dataset, found.split, found.classes) == ("made", "up", CLASSES)
    assert [(one.name, one.num_samples, one.num_bytes, one.sha256) for one in found.shards] == [
        (one.name, one.num_samples, one.num_bytes, one.sha256) for one in manifest.shards
    ]
    assert {name: counts["positive"] for name, counts in found.label_histogram.items()} == {
        name: counts["positive"] for name, counts in manifest.label_histogram.items()
    }
    assert sum(counts["ignored"] for counts in found.label_histogram.values()) == 6
    assert found.counts == {
        "objects": 10, "without_any_class": 2, "ignored_labels": 6, "quarantined": 0,
    }  # fmt: skip
    assert (found.options["labels_from"], found.provenance["command"]) == (rule, ["msl", "index"])
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_the_tars_and_another_order_of_the_classes(built, tmp_path):
    """Our JSON has names: a list by which the vectors mean others is refused, and of other names it is said."""
    for shard in SHARDS:
        shutil.copy(built[0] / f"{shard}.tar", tmp_path)
    with pytest.raises(BadInputError, match=r"its JSON names .* and by the list of classes its vector shows"):
        index_shards(tmp_path, labels_from="target.npy", classes=CLASSES[::-1], num_workers=1)
    said: list[str] = []
    found = index_shards(tmp_path, labels_from="target.npy", num_workers=1, note=said.append)
    rows = [row for shard in SHARDS for row in index(built[0], shard)]
    left_out = sum(bool(row["objects"] or row["ignored"]) for row in rows)
    assert (found.counts["objects"], found.counts["ignored_labels"], left_out > 1) == (0, 0, True)
    (note,) = said
    assert note.startswith(f"boxes and ignored labels of {left_out} samples are left out")


def findings(folder: Path, **options: Any) -> list[tuple[str, str, str, str, str]]:
    return [tuple(one) for one in map(astuple, verify(folder, num_workers=1, **options).findings)]


@pytest.fixture
def copied(built, tmp_path) -> Path:
    return shutil.copytree(built[0], tmp_path / "copy")


@pytest.mark.parametrize(
    ("part", "change", "what", "said"),
    [
        ("counts", {"ignored_labels": 7}, "count of ignored_labels", "6"),
        ("counts", {"objects": 9}, "count of objects", "10"),
        ("label_histogram", {"elk": {"positive": 2, "ignored": 1}}, "label histogram, ignored images of elk", "2"),
        ("label_histogram", {"dog": {"positive": 3, "ignored": 0}}, "label histogram, positive images of dog", "2"),
        ("label_histogram", {"emu": {"positive": 0, "ignored": 0}}, "classes only in the label histogram", "[]"),
    ],
)
def test_verify_finds_a_number_of_the_manifest(copied, part, change, what, said):
    assert findings(copied) == []
    content = json.loads((copied / "dataset.json").read_text())
    content[part] |= change
    (copied / "dataset.json").write_text(json.dumps(content))
    found = str(next(iter(change.values()))) if part == "counts" else None
    ((file, key, told, expected, seen),) = findings(copied)
    assert (file, key, told, expected) == ("dataset.json", "", what, f"{said} (by the indexes)")
    assert found in (None, seen)


CHANGES = {
    "width": (47, {"width in e.json", "size of the image"}),
    "height": (81, {"height in e.json", "size of the image"}),
    "positives": (
        [1, 3], {"e.target.npy", "labels in e.json"},
    ),
    "ignored": ([2], {"ignored in e.json"}),
    "objects": (ROWS[1][1]["objects"][:1], {"number of objects in e.json"}),
    "crc32": (5, {"crc32 of the image"}),
    "offset": (5, {"offset in the index"}),
    "length": (5, {"length in the index"}),
}  # fmt: skip


@pytest.mark.parametrize("column", CHANGES)
def test_verify_finds_a_column_of_a_row_in_the_middle(copied, column):
    """And that an index and a tar of another program say different things, as far as the tar says them."""
    value, what = CHANGES[column]
    edit_rows(copied, lambda rows: rows[1].update({column: value}), f"{SHARDS[1]}.tar")
    found = [finding for finding in findings(copied) if finding[0] != "dataset.json"]
    assert {(finding[1], finding[2]) for finding in found} == {("e", one) for one in what}
    for path in copied.iterdir():
        if path.suffix != ".tar":
            path.unlink()
    index_shards(copied, labels_from="json:labels", classes=CLASSES, num_workers=1)
    assert findings(copied) == []
    edit_rows(copied, lambda rows: rows[1].update({column: value}), f"{SHARDS[1]}.tar")
    found = [finding for finding in findings(copied) if finding[0] != "dataset.json"]
    assert [finding[:3] for finding in found] == [(f"{SHARDS[1]}.parquet", "e", f"{column} in the index")]


def test_photographs_that_two_splits_share(built, copied):
    """Of those of the second shard one is in the other split too, under another key."""

    def change(key: str, members: dict[str, bytes], row: dict) -> str:
        if key != "f":
            members[".jpg"] = jpeg(100 + ord(key), row["width"], row["height"])
        return f"{key}2"

    rewrite(copied, change)
    steps = []
    (_, *_, seen), *others = findings(built[0], against=copied, progress=lambda *step: steps.append(step))
    assert steps == [(3, 16), (6, 16), (8, 16), (11, 16), (14, 16), (16, 16)]
    assert (seen, others) == ("the same bytes as f2 there", [])
    assert [finding[1] for finding in findings(copied, against=built[0])][-1:] == ["f2"]


def test_splits_of_other_classes(built, raw, tmp_path):
    """Another order is another list; a split that is built anew as well, or is of another dataset, does not count."""
    out, _, _ = built
    shutil.copytree(out, tmp_path / "up")
    source = Given(raw)
    source.labels = LabelSpace(("ant", "bee", "dog", "cow", "elk"))
    other = plan_build(source, on_error="skip")
    places = [(other, open_storage(tmp_path / "down"))]
    with pytest.raises(
        UserError, match=r"down: its classes are not those of .*up, .*: number 2 is 'cow' there and 'dog' here"
    ):
        shards.refuse_other_classes(*places[0])
    shards.refuse_other_classes(*places[0], replaced=["up"])
    shards.refuse_other_classes(other, open_storage(tmp_path / "up"))  # itself
    shards.refuse_other_classes(replace(other, dataset="another"), places[0][1])
    plans = [(planned(raw), open_storage(tmp_path / "up")), (planned(raw), open_storage(tmp_path / "side"))]
    shards.refuse_unlike_classes(plans)
    with pytest.raises(UserError, match=r"down: its classes are not those of .*/up"):
        shards.refuse_unlike_classes([*plans, *places])
    source.labels = LabelSpace(("ant", "bee", "cow", "dog", "elk", "fox"))
    longer = plan_build(source, on_error="skip")
    with pytest.raises(UserError, match=r"/down, .*: 'fox' only there; give both"):
        shards.refuse_unlike_classes([(longer, places[0][1]), *plans])


def test_photographs_that_have_changed(built, raw, tmp_path):
    """The size of a file of the last shard, or a file that is newer than the manifest."""
    shutil.copytree(raw, tmp_path / "raw")
    shutil.copytree(built[0], tmp_path / "out")
    out = open_storage(tmp_path / "out")
    assert shards.changed_since_built(planned(tmp_path / "raw"), out) == ""
    after = (tmp_path / "out" / "dataset.json").stat().st_mtime_ns + 1
    os.utime(tmp_path / "raw" / "d.png", ns=(after, after))
    assert shards.changed_since_built(planned(tmp_path / "raw"), out) == "d.png"
    assert shards.changed_since_built(planned(tmp_path / "raw"), open_storage(tmp_path / "none")) == ""
    assert build_shards(planned(tmp_path / "raw"), out, num_workers=1, on_error="skip") == built[1]
    with (tmp_path / "raw" / "i.jpg").open("ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match="image files have other sizes than when this dataset was built from them"):
        build_shards(planned(tmp_path / "raw"), out, num_workers=1, on_error="skip")
    (tmp_path / "out" / "dataset.json").unlink()
    steps = []
    again = build_shards(
        planned(tmp_path / "raw"), out, num_workers=1, on_error="skip", progress=lambda *step: steps.append(step)
    )
    assert steps == [(6, 9), (9, 9)] and again.shards[:2] == built[1].shards[:2] and again.num_samples == 8
