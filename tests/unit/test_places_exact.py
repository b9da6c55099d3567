"""Where files are: what a folder lists, the images that a table means, the rows of odd tables, the parts of a whole."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from msldata.build.divide import PARTS, assign, divide
from msldata.build.estimate import estimate_build
from msldata.build.image import Resize
from msldata.build.plan import plan_build
from msldata.build.shards import build_shards
from msldata.contract.records import LabelSpace, Record
from msldata.contract.tar import END_BYTES
from msldata.errors import BadInputError
from msldata.sources.tables.columns import Columns, choose_columns
from msldata.sources.tables.image_paths import find_images
from msldata.sources.tables.label_studio import plain_path, task_row
from msldata.sources.tables.rows import listed_rows
from msldata.storage import LocalStorage, open_storage
from tests.tinydata import jpeg


def touch(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x" * (number + 1))
    return root


def test_what_a_folder_lists(tmp_path):
    """A folder that is only read is followed through its links, but not up; one that is written is not."""
    place = touch(tmp_path / "place", "b/two.jpg", "a.jpg", ".part", "z.tar.part")
    touch(tmp_path / "elsewhere", "c.jpg", "d/e.jpg")
    (place / "link").symlink_to(tmp_path / "elsewhere")
    (place / "b" / "up").symlink_to(place)
    (place / "gone.jpg").symlink_to(tmp_path / "nothing")
    (place / "one.jpg").symlink_to(tmp_path / "elsewhere" / "d" / "e.jpg")
    storage = LocalStorage(place)
    assert [(info.name, info.size) for info in storage.list_files()] == [("a.jpg", 2), ("b/two.jpg", 1), ("one.jpg", 2)]
    sources = [(info.name, info.size) for info in storage.list_sources() if not info.name.endswith(".part")]
    assert sources == [
        ("a.jpg", 2), ("b/two.jpg", 1), ("gone.jpg", 0), ("link/c.jpg", 1), ("link/d/e.jpg", 2), ("one.jpg", 2),
    ]  # fmt: skip
    assert [storage.exists(name) for name in ("a.jpg", "b", "gone.jpg", "link/c.jpg")] == [True, False, False, True]
    assert (storage.list_files()[1].version, storage.child("b").list_files()[0].name) == (
        str((place / "b/two.jpg").stat().st_mtime_ns),
        "two.jpg",
    )
    assert not storage.create("a.jpg", b"new") and storage.create("new.jpg", b"new")
    assert (storage.read("a.jpg"), storage.read("new.jpg")) == (b"xx", b"new")


IMAGES = ("a/x.jpg", "b/x.jpg", "b/y.PNG", "c/d/w.v2.jpeg", "c/notes.txt", ".cache/y.png")


@pytest.mark.parametrize(
    ("named", "paths", "names", "num_moved"),
    [
        (["b/x.jpg", "a/x.jpg"], ["b/x.jpg", "a/x.jpg"], ["b/x.jpg", "a/x.jpg"], 0),
        (["y", "w.v2"], ["b/y.PNG", "c/d/w.v2.jpeg"], ["y", "w.v2"], 2),
        (["d/w.v2.jpeg", "a/x.jpg"], ["c/d/w.v2.jpeg", "a/x.jpg"], ["d/w.v2.jpeg", "a/x.jpg"], 1),
        (["set/a/x.jpg", "set/b/y.PNG"], ["a/x.jpg", "b/y.PNG"], ["a/x.jpg", "b/y.PNG"], 2),
        (["deadbeef-y.PNG"], ["b/y.PNG"], ["deadbeef-y.PNG"], 1),
        # Of another machine: what all begin with is cut off, and what is not there stays as it is.
        (["/mnt/set2/b/y.PNG", "/mnt/set2/a/x.jpg"], ["b/y.PNG", "a/x.jpg"], ["b/y.PNG", "a/x.jpg"], None),
        # One that is nowhere would be where most of the others are.
        (["z.jpg", "w.v2.jpeg", "y.PNG", "v.jpg"], ["b/z.jpg", "c/d/w.v2.jpeg", "b/y.PNG", "b/v.jpg"], None, 2),
        (["s3://b/c.jpg", "b/x.jpg"], ["s3://b/c.jpg", "b/x.jpg"], ["s3://b/c.jpg", "b/x.jpg"], 0),
    ],
)
def test_the_images_that_a_table_means(tmp_path, named, paths, names, num_moved):
    place = touch(tmp_path / "set", *IMAGES)
    if "v.jpg" in named:
        touch(place, "b/u.jpg")
        named, paths = [*named, "u.jpg"], [*paths, "b/u.jpg"]
        num_moved += 1
    found = find_images(LocalStorage(place), named)
    assert found.paths == paths
    assert names is None or found.names == names
    assert num_moved is None or len(found.searched) == num_moved


def test_images_of_this_machine_in_several_folders(tmp_path):
    """Names and keys begin at the folder that all have in common, wherever that is."""
    place, other = touch(tmp_path / "set", *IMAGES), touch(tmp_path / "more", "q/r.jpg")
    found = find_images(LocalStorage(place), [f"{place}/a/x.jpg", f"{other}/q/r.jpg", "b/x.jpg"])
    assert found.images.path() == tmp_path
    assert found.paths == found.names == ["set/a/x.jpg", "more/q/r.jpg", "set/b/x.jpg"]
    with pytest.raises(ValueError, match=r"image 'x\.jpg' may be .*/a/x\.jpg or .*/b/x\.jpg; name it with its folder"):
        find_images(LocalStorage(place), ["x.jpg"])


@pytest.mark.parametrize(
    ("columns", "cells", "expected"),
    [
        (
            "id,file,label,split,ignored,size",
            [("7", "b.jpg", "cow", "val", "", "9"), ("8", "a.jpg", "ant", "train", "cow", "9")],
            Columns("file", "label", (), "ignored", "split", "", left_alone=("id", "size")),
        ),
        (
            "image,set,cow,ant,age,is_valid",
            [("b.jpg", "train", "1", "0", "1", "1"), ("a.jpg", "dev", "", "-1", "44", "0")],
            Columns("image", "", ("cow", "ant"), "", "set", "", left_alone=("age", "is_valid")),
        ),
        (
            "ImageID,Source,LabelName,Confidence",
            [("b", "x", "/m/cow", "1"), ("a", "x", "/m/ant", "0")],
            Columns("ImageID", "LabelName", (), "", "", "Confidence", left_alone=("Source",)),
        ),
        (
            "image,what,ignored",
            [("b.jpg", "cow", "ant"), ("a.jpg", "ant", "")],
            Columns("image", "what", (), "ignored", "", "", left_alone=()),
        ),
        (  # a fold that holds other words is no split; two columns of words, of which one is called after labels
            "photo,fold,Tags,comment",
            [("b.jpg", "blue", "cow", "x"), ("a.jpg", "train", "ant", "y")],
            Columns("photo", "Tags", (), "", "", "", left_alone=("fold", "comment")),
        ),
    ],
)
def test_what_columns_hold(columns, cells, expected):
    names = columns.split(",")
    rows = [(f"line {n}", dict(zip(names, row, strict=True))) for n, row in enumerate(cells, start=2)]
    assert choose_columns(names, rows) == expected


def test_rows_of_what_other_programs_write_as_one_object():
    rows = [{"image": "b.jpg", "n": 4}, {"image": "a.jpg", "n": 7}, {"image": "c.jpg", "n": 1}]
    images, numbers = [row["image"] for row in rows], [row["n"] for row in rows]
    ways = [
        {"image": images, "n": numbers},
        {"image": dict(zip("zxy", images)), "n": dict(zip("yzx", [numbers[2], *numbers[:2]]))},
        {"columns": ["image", "n"], "index": [9, 8, 7], "data": list(map(list, zip(images, numbers)))},
        dict(zip("zxy", rows)),
        {"schema": {}, "data": rows},
    ]
    for way in ways:
        assert list(listed_rows(json.loads(json.dumps(way)))) == rows
    labels = {"b.jpg": [2, 0], "a.jpg": None, "c.jpg": [{"label": 1, "x": 3}]}
    assert listed_rows({"classes": ["ant", "bee", "cow"], "labels": labels}) == [
        {"image": "b.jpg", "labels": ["cow", "ant"]},
        {"image": "a.jpg", "labels": None},
        {"image": "c.jpg", "labels": ["bee"]},
    ]
    with pytest.raises(ValueError, match="class index 3 of 3"):
        listed_rows({"classes": ["ant", "bee", "cow"], "labels": {"a.jpg": [2, 3]}})
    assert listed_rows({"info": 1, "image": 3}) is None


def test_a_task_of_label_studio():
    def said(*names: str, **more: bool) -> dict:
        return {"result": [{"value": {"choices": [name]}} for name in names] + [{"value": {"text": ["x"]}}], **more}

    data = {"note": "no picture", "other": "z.jpg", "img": "/data/upload/3/0a1b2c3d-b.jpg"}
    task = {"data": data, "annotations": [said("pig", was_cancelled=True), said("cow", "ant"), said("ant", "cow")]}
    assert task_row("row 2", task) == {"image": "/data/upload/3/0a1b2c3d-b.jpg", "labels": ["cow", "ant"]}
    assert task_row("row 2", {"data": data, "annotations": [said("pig", was_cancelled=True)]}) is None
    with pytest.raises(ValueError, match=r"row 2: annotators disagree \(\['cow'\] and \['ant'\]\)"):
        task_row("row 2", {"data": data, "annotations": [said("cow"), said("cow"), said("ant")]})
    assert [
        plain_path(path)
        for path in (
            "/data/upload/3/0a-b.jpg",
            "http://h:8/data/upload/b.jpg",
            "/data/local-files/?d=a/b%20c.jpg",
            "q/b.jpg",
        )
    ] == ["0a-b.jpg", "b.jpg", "a/b c.jpg", "q/b.jpg"]


class Whole:
    """A source without splits: 40 photographs of three classes, some of none, and two that cannot be used."""

    dataset, split, licence, provenance = "made", "all", "none", {"source": "a test"}
    notes = ("look here",)

    def __init__(self, root: Path, number: int = 40):
        self.images, self.labels = open_storage(root), LabelSpace(("ant", "bee", "cow"))
        self.counts = {"dropped": 5, "without_any_class": 99}
        self.given = [Record(f"k{n}", f"{n}.jpg", ((n % 3,), (), (n % 3, 2))[n % 4 % 3]) for n in range(number)]

    def records(self):
        yield from self.given[:7]
        for name in ("bad1", "bad2"):
            self.reject(BadInputError(name, "no good"))
        yield from self.given[7:]


def test_each_part_of_a_whole_has_its_own_and_the_first_what_was_left_out(tmp_path):
    for number in range(40):
        (tmp_path / f"{number}.jpg").write_bytes(b"%d" % number)
    whole = Whole(tmp_path)
    parts = divide(whole)
    found, errors = {}, {}
    for name, part in parts.items():
        errors[name] = []
        part.reject = errors[name].append
        found[name] = list(part.records())
        assert found[name] == [record for record in whole.given if record in found[name]]  # in the source's order
        assert (part.dataset, part.split, part.licence, part.notes) == ("made", name, "none", ("look here",))
        assert part.provenance["source"] == "a test" and part.provenance["divided"].endswith(
            "0.15 each for val and test"
        )
        bare = sum(not record.positives for record in found[name])
        assert part.counts == {"without_any_class": bare} | ({"dropped": 5} if name == "train" else {})
    assert list(parts) == list(PARTS) and [len(errors[name]) for name in PARTS] == [2, 0, 0]
    assert sorted(record.key for records in found.values() for record in records) == sorted(
        record.key for record in whole.given
    )
    assert divide(Whole(tmp_path), ["val"])["val"]._records == found["val"]
    assert list(divide(Whole(tmp_path, 20))) == list(PARTS)
    few = Whole(tmp_path, 19)
    assert divide(few) == {"all": few}


def test_parts_by_hand():
    """Below 0.15 test, below 0.3 val; a class that training lacks goes there, one that a part lacks comes from it."""
    shown = [(0,)] * 40
    number_N = [(n + 0.5) / 40 for n in range(40)]
    assert assign(shown, number_N) == ["test"] * 6 + ["val"] * 6 + ["train"] * 28
    shown[3], shown[9] = (1,), (2,)  # each alone: only training needs them
    assert assign(shown, number_N) == (
        ["test"] * 3 + ["train"] + ["test"] * 2 + ["val"] * 3 + ["train"] + ["val"] * 2 + ["train"] * 28
    )
    shown[9] = (1,)  # of two of a class that training lacks it gets the last
    assert assign(shown, number_N) == ["test"] * 6 + ["val"] * 3 + ["train"] + ["val"] * 2 + ["train"] * 28
    shown = [(0,)] * 40
    shown[13] = shown[20] = shown[30] = (0, 1)  # three of training: the smallest numbers come to val, then to test
    expected = ["test"] * 6 + ["val"] * 6 + ["train"] * 28
    expected[13], expected[20] = "val", "test"
    assert assign(shown, number_N) == expected


def test_how_long_a_build_would_take(tmp_path):
    for number in range(7):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(number, 40, 24) if number != 1 else b"no image")
    source = Whole(tmp_path, 7)
    source.reject = lambda error: None
    plan = plan_build(source, samples_per_shard=3, on_error="skip")
    out = tmp_path / "out"
    about = estimate_build(plan, out, num_workers=1)
    assert (about.num_finished, about.num_timed) == (0, 2) and about.seconds > 0
    build_shards(plan, out, num_workers=1, on_error="skip")
    sizes = [(out / f"made-all-{n:06d}.tar").stat().st_size for n in range(3)]
    assert about.num_bytes == (sizes[0] - END_BYTES) * 7 // 2  # two of its images stand for all seven
    assert estimate_build(plan, out, num_workers=1) == type(about)(0.0, 0, 3, 0)
    again = estimate_build(plan, out, num_workers=1, overwrite=True)
    assert (again.num_bytes, again.num_finished, again.num_timed) == (about.num_bytes, 0, 2)
    (out / "dataset.json").unlink()
    (out / "made-all-000001.tar").unlink()
    again = estimate_build(plan, out, num_workers=1)
    # The first left an image out and so is written again as well.
    assert (again.num_finished, again.num_bytes) == (1, (sizes[0] - END_BYTES) * 6 // 2)


@pytest.mark.parametrize(
    ("decode", "resize", "shared_by"),
    [(False, None, 3), (True, None, 8), (False, Resize("fit", 20), 8), (True, Resize("fit", 20), 8)],
)
def test_what_only_copies_is_shared_out_by_shards_and_what_decodes_by_images(
    tmp_path, monkeypatch, decode: bool, resize: Resize | None, shared_by: int
):
    """Two samples of a second each stand for seven in three shards; eight workers."""
    plan = plan_build(Whole(tmp_path, 7), samples_per_shard=3, on_error="skip")
    plan = replace(plan, decode=decode, resize=resize)
    monkeypatch.setattr("msldata.build.estimate._time", lambda plan, records: (2.0, [1000, 1200]))
    about = estimate_build(plan, tmp_path / "out", num_workers=8)
    assert about.seconds == pytest.approx(7 / shared_by) and about.num_bytes == 7 * 1100
    assert estimate_build(plan, tmp_path / "out", num_workers=2).seconds == pytest.approx(7 / 2)
