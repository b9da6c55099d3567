"""What every kind of source does with names and labels that cannot be: refused with the place, or by a stated rule."""

from __future__ import annotations

import gc
import json
import re
import weakref
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import obstore.store
import pytest

from msldata.build.plan import plan_build
from msldata.contract.records import Record
from msldata.errors import BadInputError, UserError
from msldata.sources.kinds import open_source
from msldata.sources.source import read_many
from msldata.storage import RemoteStorage
from tests.tinydata import voc_object, voc_xml

LONG = "x" * 90


def plan_voc(root: Path, names: list[str], label: str = "cat"):
    """Names of images are ids here: VOC's own lists have no extension."""
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    ids = [name.removesuffix(".jpg") for name in names]
    (root / "ImageSets" / "Main" / "test.txt").write_text("".join(f"{image_id}\n" for image_id in ids))
    for image_id in ids:
        if not set(image_id) & set("/\\\0"):
            (root / "Annotations" / f"{image_id}.xml").write_text(voc_xml(voc_object(label)))
    return plan_build(open_source("voc2007", root, "test"))


def write_coco(path: Path, names: list[str], category: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"id": number, "file_name": name} for number, name in enumerate(names, start=1)]
    boxes = [
        {"id": image["id"], "image_id": image["id"], "category_id": category, "bbox": [1, 1, 2, 2]} for image in images
    ]
    categories = [{"id": 7, "name": "cat"}]
    path.write_text(json.dumps({"images": images, "annotations": boxes, "categories": categories}))


def plan_coco(root: Path, names: list[str], label: str = "cat"):
    write_coco(root / "annotations" / "instances_mine.json", names, 7 if label == "cat" else 8)
    (root / "mine").mkdir(exist_ok=True)
    return plan_build(open_source("coco", root, "mine"))


def plan_coco_file(root: Path, names: list[str], label: str = "cat"):
    write_coco(root / "mine.json", names, 7 if label == "cat" else 8)
    for name in names:
        if not set(name) & set("/\\\0"):
            (root / name).touch()
    return plan_build(open_source("coco", root / "mine.json", "all"))


def plan_wider(root: Path, names: list[str], label: str = "cat"):
    (root / "Image").mkdir(parents=True)
    attribute = [1] * 14 if label == "cat" else [5] * 14
    entries = [{"file_name": name, "targets": [{"attribute": attribute, "bbox": [0, 0, 5, 5]}]} for name in names]
    (root / "wider_attribute_test.json").write_text(json.dumps({"images": entries}))
    return plan_build(open_source("wider", root, "test"))


def plan_table(root: Path, names: list[str], label: str = "cat"):
    root.mkdir(exist_ok=True)
    (root / "classes.txt").write_text("cat\n")
    rows = "".join(json.dumps({"image": name, "labels": [label]}) + "\n" for name in names)
    (root / "labels.jsonl").write_text(rows)
    return plan_build(open_source("table", root / "labels.jsonl", "all", classes=root / "classes.txt"))


PLANS: dict[str, Callable] = {
    "voc": plan_voc,
    "coco": plan_coco,
    "coco file": plan_coco_file,
    "wider": plan_wider,
    "table": plan_table,
}
everywhere = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)


@everywhere
@pytest.mark.parametrize("name", ["../a.jpg", "a/../../b.jpg", "/etc/a.jpg", "..\\a.jpg", "a\0.jpg"])
def test_a_name_that_leads_out_is_refused(plan, tmp_path, name):
    if plan is plan_table and name.startswith("/"):
        pytest.skip("tables are written by their users, who may name files by their whole paths")
    with pytest.raises(BadInputError) as caught:
        plan(tmp_path / "raw", ["good.jpg", name])
    assert caught.value.file.startswith(str(tmp_path / "raw"))


@everywhere
def test_an_image_listed_twice_is_refused(plan, tmp_path):
    with pytest.raises(UserError, match=r"only once|listed twice") as caught:
        plan(tmp_path / "raw", ["a.jpg", "b.jpg", "a.jpg"])
    assert "a.jpg" in str(caught.value)


@everywhere
def test_a_name_too_long_for_a_tar_ends_in_a_hash(plan, tmp_path):
    (shard,) = plan(tmp_path / "raw", [f"{LONG}.jpg", f"{LONG}y.jpg"]).shards
    keys = [record.key for record in shard.records()]
    assert len(set(keys)) == 2 and all(re.fullmatch(r"x{72}-[0-9a-f]{16}", key) for key in keys)


@everywhere
def test_an_unknown_label_is_refused(plan, tmp_path):
    # In VOC's own folders names that are none of VOC's mean another dataset; one beside VOC's is a slip of the pen.
    label = voc_object("dog").removeprefix("<object><name>").removesuffix("</object>") if plan is plan_voc else ""
    with pytest.raises(BadInputError) as caught:
        plan(tmp_path / "raw", ["a.jpg"], f"{label}</object><object><name>unheard-of" if label else "unheard-of")
    assert caught.value.file.startswith(str(tmp_path / "raw"))


@everywhere
def test_dots_and_spaces_become_part_of_a_plain_key(plan, tmp_path):
    (shard,) = plan(tmp_path / "raw", ["a.b c.jpg"]).shards
    (record,) = shard.records()
    assert record.key in ("a_b_c", "a_b_c_0") and record.image.endswith("a.b c.jpg")


@everywhere
def test_no_images_is_an_error(plan, tmp_path):
    with pytest.raises(UserError, match=r"no images|no rows|list is empty"):
        plan(tmp_path / "raw", [])


def test_the_sizes_of_local_images_beside_addresses_are_known(tmp_path: Path):
    """Else an image that was replaced under the same table would rebuild nothing."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.jpg").write_bytes(b"any bytes")
    (tmp_path / "t.csv").write_text("image,labels\na.jpg,cat\nb.jpg,dog\nhttp://127.0.0.1:9/c.jpg,cat\n")
    plan = plan_build(open_source("table", tmp_path / "t.csv", "all"), samples_per_shard=1)
    assert [bool(shard.image_sizes) for shard in plan.shards] == [True, True, False]


def test_the_collector_rests_while_records_are_there_and_only_then(tmp_path: Path):
    """Searching a shard's records for cycles costs a twentieth of a plan; a program that plans keeps its collector."""
    (tmp_path / "t.csv").write_text("image,labels\na.jpg,cat\nb.jpg,dog\nc.jpg,cat\n")
    source = open_source("table", tmp_path / "t.csv", "all")
    records, alive, seen = list(source.records()), [], []

    def watched():
        for record in records:
            seen.append((gc.isenabled(), sum(last() is not None for last in alive)))
            made = Watched(*(getattr(record, item.name) for item in fields(Record)))
            alive.append(weakref.ref(made))
            yield made
            del made
        if len(records) == 4:
            raise BadInputError("t.csv", "cut off")

    source.records = watched
    plan_build(source, samples_per_shard=2)
    assert gc.isenabled() and seen == [(False, 0), (False, 1), (False, 1)]  # of a finished shard only the last is left
    assert not any(last() for last in alive)
    records.append(replace(records[0], key="d"))
    with pytest.raises(BadInputError, match="cut off"):
        plan_build(source, samples_per_shard=2)
    assert gc.isenabled()


class Watched(Record):
    """A record that can be watched."""

    __slots__ = ("__weakref__",)


def test_small_files_of_a_remote_place_come_in_their_order_however_many():
    remote = RemoteStorage("memory://bucket", obstore.store.MemoryStore())
    names = [f"{number:04d}.xml" for number in range(1100)]
    for name in names[:600]:
        remote.put(name, name.encode())
    found = list(read_many(remote, [*names, names[5]]))
    assert found == [*(name.encode() for name in names[:600]), *[None] * 500, b"0005.xml"]
