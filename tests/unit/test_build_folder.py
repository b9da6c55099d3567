"""What a build goes on with in a folder, and what it does not: another plan, another size, a file that is not there."""

from __future__ import annotations

import gc
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from msldata.build import plan as planning
from msldata.build import shards as building
from msldata.build.folder import QUARANTINE_NAME, BuildFolder
from msldata.build.image import Resize
from msldata.build.plan import BuildPlan, collector_paused, digest_sizes, join_sizes, plan_build
from msldata.build.shards import Part, build_part, build_shards, check_images, kept_shards
from msldata.build.writer import ShardWriter
from msldata.contract.manifest import IMAGES, MANIFEST_NAME, Manifest, ShardInfo, index_name
from msldata.contract.records import LabelSpace, Record
from msldata.errors import BadInputError, UserError
from msldata.storage import LocalStorage, Storage
from tests.remotefolder import RemoteFolder
from tests.tinydata import jpeg

NAME = "made-up-000000.tar"
NOTE = f".{NAME}.unusable"


class Given:
    """Photographs ``0.jpg``, ``1.jpg`` … of a folder, each of one class."""

    licence = "none"

    def __init__(self, images: Storage, num_records: int = 2, **facts: Any):
        self.images, self.counts = images, {"dropped": 1}
        self.dataset, self.split, self.labels = "made", "up", LabelSpace(("ant", "bee"))
        self.provenance: dict[str, Any] = {"source": "a test"}
        self.all = [Record(f"{n}", f"{n}.jpg", (n % 2,)) for n in range(num_records)]
        self.__dict__.update(facts)

    def records(self):
        yield from self.all


@pytest.fixture
def photos(tmp_path) -> Storage:
    """Four photographs."""
    (tmp_path / "photos").mkdir()
    for n in range(4):
        (tmp_path / "photos" / f"{n}.jpg").write_bytes(jpeg(n))
    return LocalStorage(tmp_path / "photos")


def test_a_plan_keeps_its_digest_from_version_to_version(photos):
    """Or shards that are there would be of another plan after an update of this program."""
    plan = plan_build(Given(photos, 3), samples_per_shard=2)
    assert plan.digest == "71f15b1cf0d2a1a53f47d3bf5fe958c0a380cc9f619d4a22be19ab2944be616c"


def test_whatever_shapes_the_bytes_is_in_the_digest(photos, monkeypatch):
    def digest(facts: dict[str, Any] | None = None, **options: Any) -> str:
        return plan_build(Given(photos, **(facts or {})), **options).digest

    found = [digest(), digest(samples_per_shard=1), digest(resize=Resize("fit", 8)), digest(resize=Resize("fit", 8, 9))]
    found += [digest({name: "other"}) for name in ("dataset", "split")]
    found += [digest({"labels": LabelSpace(classes)}) for classes in (("bee", "ant"), ("ant", "bee", "cow"))]
    found += [digest({"all": Given(photos, number).all}) for number in (1, 3)]
    others = [Record("x", "1.jpg", (1,)), Record("1", "2.jpg", (1,)), Record("1", "1.jpg", (0,))]
    others += [Record("1", "1.jpg", (1,), (0,)), Record("1", "1.jpg", (1,), image_id="x")]
    others += [Record("1", "1.jpg", (1,), size=(4, 4)), Record("1", "1.jpg", (1,), crop=(0, 0, 4, 4))]
    found += [digest({"all": [Record("0", "0.jpg", (0,)), other]}) for other in others]
    monkeypatch.setattr(planning, "INDEX_VERSION", planning.INDEX_VERSION + 1)
    found.append(digest())
    assert len(set(found)) == len(found)
    monkeypatch.undo()
    assert digest({"licence": "other", "counts": {}, "provenance": {}}) == found[0]
    assert digest({"all": [Record("0", "0.jpg", (0, 0)), Record("1", "1.jpg", (1,))]}) == found[0], "twice is once"


def test_a_plan_is_not_changed_by_its_source(photos):
    source = Given(photos)
    plan = plan_build(source)
    source.counts["dropped"] = 9
    source.provenance["source"] = "another"
    assert plan.counts == {"dropped": 1} and plan.provenance == {"source": "a test"}


def test_what_a_source_rejects_is_left_out_by_the_plan(photos):
    class Rejecting(Given):
        def records(self):
            self.reject(BadInputError(self.images.where("9.jpg"), "odd", "mend it"))
            yield from self.all

    with pytest.raises(BadInputError, match=r"9\.jpg: odd"):
        plan_build(Rejecting(photos))
    assert plan_build(Rejecting(photos), on_error="skip").quarantined == ({"file": "9.jpg", "reason": "odd"},)


def test_sizes_are_told_apart():
    assert len({digest_sizes(sizes) for sizes in ((1, 23), (12, 3), (123,), (23, 1))}) == 4
    assert join_sizes(["a", "b"]) != join_sizes(["b", "a"]) and join_sizes(["a", ""]) == ""


def test_a_collector_that_was_off_stays_off():
    gc.disable()
    try:
        with collector_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_the_newest_photograph_of_a_shard(photos):
    for n, when in enumerate((5, 9, 2, 7)):
        os.utime(photos.path(f"{n}.jpg"), ns=(0, when))
    assert plan_build(Given(photos, 4), samples_per_shard=4).newest_image == (9, "1.jpg")


def shard(out: Storage, plan: str = "plan", name: str = NAME) -> ShardInfo:
    """A shard of one sample."""
    with ShardWriter(out, name, kind=IMAGES, plan=plan) as writer:
        writer.add("a", [(".jpg", b"-")], {"width": 4, "height": 4, "positives": [0], "ignored": [], "objects": []})
        return writer.publish({"quarantined": []})


def manifest(info: ShardInfo) -> Manifest:
    return Manifest(kind=IMAGES, dataset="made", split="up", classes=("ant",), shards=(info,), plan="plan")


def test_what_is_not_whole_is_not_finished(tmp_path):
    out = LocalStorage(tmp_path)
    folder = BuildFolder(out, [NAME], "plan")
    folder.publish(manifest(shard(out)))
    assert folder.finished_manifest() is not None and list(folder.finished_shards()) == [NAME]
    index = out.read(index_name(NAME))
    out.delete(index_name(NAME))
    assert folder.finished_manifest() is None and not folder.finished_shards()
    out.put(index_name(NAME), index)
    with open(tmp_path / NAME, "ab") as file:
        file.write(b"x")
    assert folder.finished_manifest() is None and not folder.finished_shards()
    out.put(index_name(NAME), index[:-9])
    assert not folder.finished_shards(), "what is damaged is written again"
    shard(out, "another plan")
    with pytest.raises(UserError, match=rf"shards of a build from other files, labels or options \({index_name(NAME)}"):
        folder.finished_shards()


def test_notes_of_shards_without_a_good_image(tmp_path):
    """Those of this plan count, until there is a manifest."""
    out = LocalStorage(tmp_path)
    folder, other = BuildFolder(out, [NAME], "plan"), BuildFolder(out, [NAME], "another plan")
    folder.note_unusable(NAME, {"quarantined": ["a"]})
    assert folder.unusable_shards()[NAME].report == {"quarantined": ["a"]} and not other.unusable_shards()
    assert out.exists(NOTE)
    folder.publish(manifest(shard(out)))
    assert not out.exists(NOTE)


class Diary(LocalStorage):
    """A folder that writes down what is deleted."""

    def __init__(self, root: Path):
        super().__init__(root)
        self.deleted: list[str] = []

    def delete(self, name: str) -> None:
        self.deleted.append(name)
        super().delete(name)


def test_what_vouches_for_others_is_deleted_before_them(tmp_path):
    """The manifest, then the indexes: a build that is killed meanwhile leaves nothing that passes for whole."""
    out = Diary(tmp_path)
    folder = BuildFolder(out, [NAME], "plan")
    folder.publish(manifest(shard(out)), [{"file": "b.jpg", "reason": "empty"}])
    out.deleted.clear()
    folder.clear()
    others = ["_info.json", "croissant.json", NAME, QUARANTINE_NAME, "sizes.json"]
    assert out.deleted == [MANIFEST_NAME, index_name(NAME), *others] and not os.listdir(tmp_path)


def test_an_index_of_another_build_goes_before_the_tar_and_a_true_one_stays(tmp_path):
    """Another build of the plan may be publishing its manifest at this moment; but the tar comes anew each time."""
    out = Diary(tmp_path)
    first = shard(out, "another plan")
    out.deleted.clear()
    assert shard(out).sha256 == first.sha256 and out.deleted == [index_name(NAME)]
    out.deleted.clear()
    whole = out.read(NAME)
    (tmp_path / NAME).write_bytes(b"damaged since")
    shard(out)
    assert not out.deleted and out.read(NAME) == whole


def test_unfinished_files_are_cleared_away_by_who_is_alone(tmp_path):
    rest, folder = tmp_path / f".{NAME}.1.part", BuildFolder(LocalStorage(tmp_path), [NAME], "plan")
    for shared in (True, False):
        rest.touch()
        with folder.claim(shared=shared):
            assert rest.exists() == shared, "it may be another's that writes now"
            (tmp_path / ".left.part").touch()
        assert rest.exists() == (tmp_path / ".left.part").exists() == shared


def test_two_machines_may_write_one_shard_with_one_process_id(tmp_path):
    out, row = LocalStorage(tmp_path), {"width": 4, "height": 4, "positives": [0], "ignored": [], "objects": []}
    with ShardWriter(out, NAME, kind=IMAGES, plan="plan") as one:
        one.add("a", [(".jpg", b"-")], row)
        info = shard(out)
        assert one.publish({"quarantined": []}) == info
    assert sorted(os.listdir(tmp_path)) == [index_name(NAME), NAME]


def build(plan: BuildPlan, out: Storage, **options: Any) -> Manifest:
    return build_shards(plan, out, num_workers=1, **options)


def test_a_shard_of_other_sizes_is_written_again(photos, tmp_path):
    """As long as there is no manifest; where sizes are unknown, as those of remote photographs are, it is kept."""
    out = LocalStorage(tmp_path / "out")
    plan = plan_build(Given(photos, 4), samples_per_shard=2)
    build(plan, out)
    (tmp_path / "photos" / "3.jpg").write_bytes(jpeg(9, 30, 20))
    folder = BuildFolder(out, [task.name for task in plan.shards], plan.digest)
    assert list(kept_shards(plan_build(Given(photos, 4), samples_per_shard=2).shards, folder)) == [NAME]
    assert len(kept_shards([replace(task, image_sizes="") for task in plan.shards], folder)) == 2


def test_sizes_of_remote_photographs_are_known_once_they_are_built(photos, tmp_path):
    here, there = (
        plan_build(Given(images, 4), samples_per_shard=2) for images in (photos, RemoteFolder(photos.path()))
    )
    assert there.image_sizes == "" != here.image_sizes
    assert build(there, LocalStorage(tmp_path / "out")).provenance["image_sizes_sha256"] == here.image_sizes


def test_a_shard_that_has_lost_all_its_photographs_leaves_no_file(photos, tmp_path):
    """Nor does it keep what an earlier build made of them."""
    out = LocalStorage(tmp_path / "out")
    build(plan_build(Given(photos, 4), samples_per_shard=2), out)
    for n in (2, 3):
        (tmp_path / "photos" / f"{n}.jpg").write_bytes(b"no image")
    out.delete(MANIFEST_NAME)
    again = build(plan_build(Given(photos, 4), samples_per_shard=2, on_error="skip"), out, on_error="skip")
    assert again.shards.name == [NAME] and again.counts["quarantined"] == 2
    second = NAME.replace("0.", "1.")
    assert not out.exists(second) and not out.exists(index_name(second))


def test_a_folder_is_no_dataset_while_its_shards_are_written(photos, tmp_path, monkeypatch):
    out, seen = LocalStorage(tmp_path / "out"), []
    plan = plan_build(Given(photos, 4), samples_per_shard=2)
    build(plan, out)
    out.delete(NAME)
    write = building._write_shard
    monkeypatch.setattr(building, "_write_shard", lambda job: seen.append(out.exists(MANIFEST_NAME)) or write(job))
    build(plan, out)
    assert seen == [False] and out.exists(MANIFEST_NAME)


def test_parts_may_leave_more_out_than_a_build(photos, tmp_path):
    """How many that are is known when all parts are there."""
    (tmp_path / "photos" / "0.jpg").unlink()
    records = [Record(f"{n}", "0.jpg" if n == 0 else f"none{n}.jpg", (0,)) for n in range(24)]
    plan = plan_build(Given(photos, all=records), samples_per_shard=12, on_error="skip")
    out = LocalStorage(tmp_path / "out")
    with pytest.raises(UserError, match="24 of 24 images cannot be used"):
        check_images([(plan, out)], on_error="skip")
    check_images([(plan, out)], on_error="skip", part=Part(1, 2))
    build_part(plan, out, Part(1, 2), num_workers=1, on_error="skip")
    assert out.exists(NOTE)
