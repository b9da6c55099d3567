"""Whole builds: what a WebDataset reader finds, equal bytes, resume, refusals, bad input."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from msldata.build.shards import build_shards, plan_build
from msldata.contract import format as contract
from msldata.contract.manifest import IMAGES, MANIFEST_NAME, FormatError, read_manifest
from msldata.contract.records import VOC, LabelSpace, ObjectRecord, Record
from msldata.errors import BadInputError, StorageError, UserError
from msldata.sources.kinds import open_source
from msldata.storage import open_storage
from msldata.storage.lock import LOCK_NAME
from tests.golden.test_shardwriter import MemoryStorage
from tests.tinydata import contents, encode, jpeg, make_voc

REPOSITORY = Path(__file__).resolve().parents[2]


class ListSource:
    """A source whose records are given."""

    dataset, split, licence = "made", "up", "none"

    def __init__(self, root, records, classes=("a", "b", "c")):
        self.images = open_storage(root)
        self.labels = LabelSpace(tuple(classes))
        self.provenance = {"source": "a test"}
        self.counts = {"dropped": 2}
        self._records = list(records)

    def records(self):
        return iter(self._records)


@pytest.fixture
def voc(tmp_path):
    return make_voc(tmp_path / "datasets", 10)


def plan_of(folder, samples_per_shard=4):
    return plan_build(open_source("voc2007", folder, "test"), samples_per_shard=samples_per_shard)


def read_samples(folder, manifest):
    paths = [str(folder / shard.name) for shard in manifest.shards]
    return list(webdataset.WebDataset(paths, shardshuffle=False))


@pytest.mark.real
@pytest.mark.parametrize(
    ("dataset", "split", "num_samples", "ignored"),
    [("voc2007", "trainval", 430, None), ("voc2007", "test", 390, 71), ("coco2014", "train", 136, 0)],
)
def test_real_data_through_a_plain_reader(sample, tmp_path, dataset, split, num_samples, ignored):
    source = open_source(dataset, sample, split)
    manifest = build_shards(plan_build(source, samples_per_shard=100), open_storage(tmp_path), num_workers=1)
    records = {record.key: record for record in source.records()}
    samples = read_samples(tmp_path, manifest)
    assert len(samples) == len(records) == num_samples == manifest.num_samples
    for found in samples:
        record = records[found["__key__"]]
        assert {name for name in found if not name.startswith("__")} == {"jpg", "json", "target.npy"}
        assert found["jpg"] == source.images.read(record.image)
        target = np.load(io.BytesIO(found["target.npy"]))
        assert (target.dtype, target.shape) == (np.uint8, (len(source.labels),))
        assert np.flatnonzero(target).tolist() == list(record.positives)
        meta = json.loads(found["json"])
        assert meta["labels"] == source.labels.names(record.positives)
        assert meta["ignored"] == source.labels.names(record.ignored)
        assert [item["class"] for item in meta["objects"]] == [
            source.labels.classes[item.class_index] for item in record.objects
        ]
    counted = np.sum([np.load(io.BytesIO(found["target.npy"])) for found in samples], axis=0)
    assert [manifest.label_histogram[name]["positive"] for name in manifest.classes] == counted.tolist()
    if ignored is not None:
        assert manifest.counts["ignored_labels"] == ignored
    assert manifest.counts.get("dropped_without_annotations", 0) == (split == "train")
    assert (manifest.counts["transcoded"], manifest.counts["quarantined"]) == (0, 0)


def test_the_index_finds_every_image(voc, tmp_path):
    manifest = build_shards(plan_of(voc), open_storage(tmp_path / "out"), num_workers=1)
    rows = []
    for shard in manifest.shards:
        tar = (tmp_path / "out" / shard.name).read_bytes()
        index = contract.decode_index(IMAGES, (tmp_path / "out" / shard.index_name).read_bytes(), "index")
        for row in index.to_pylist():
            image = voc / "JPEGImages" / f"{row['key']}.jpg"
            assert tar[row["offset"] : row["offset"] + row["length"]] == image.read_bytes()
            rows.append(row)
    assert [row["key"] for row in rows] == [f"{number:06d}" for number in range(1, 11)]
    assert (rows[0]["width"], rows[0]["height"]) == (24, 16)
    # Image 1 of make_voc: a clear aeroplane that is not truncated, and a difficult boat.
    assert (rows[0]["positives"], rows[0]["ignored"]) == ([VOC.index("aeroplane")], [VOC.index("boat")])
    assert rows[0]["objects"][0] == {
        "class_index": 0,
        "box": [0, 0, 10, 8],
        "area": 80,
        "difficult": False,
        "truncated": False,
        "occluded": None,
        "crowd": False,
    }
    assert [shard.num_samples for shard in manifest.shards] == [4, 4, 2]


def test_equal_bytes_with_any_number_of_workers_and_on_any_machine(voc, tmp_path):
    """Another folder stands for another machine: no path of this one may get into the files."""
    moved = tmp_path / "elsewhere" / "VOC2007"
    shutil.copytree(voc, moved)
    for name, folder, num_workers in (("one", voc, 1), ("two", moved, 2), ("three", voc, 3)):
        build_shards(plan_of(folder), open_storage(tmp_path / name), num_workers=num_workers)
    one = contents(tmp_path / "one")
    assert len(one) == 3 * 2 + 4
    assert one == contents(tmp_path / "two") == contents(tmp_path / "three")
    assert str(tmp_path).encode() not in b"".join(one.values())


@pytest.mark.parametrize("num_workers", [1, 2])
def test_progress_counts_samples(voc, tmp_path, num_workers):
    seen = []
    out = open_storage(tmp_path / "out")
    build_shards(plan_of(voc), out, num_workers=num_workers, progress=lambda *step: seen.append(step))
    assert (seen[0], seen[-1]) == ((0, 10), (10, 10))
    assert seen == sorted(seen)


def test_a_finished_plan_is_left_alone(voc, tmp_path):
    out = open_storage(tmp_path / "out")
    first = build_shards(plan_of(voc), out, num_workers=1)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    shutil.rmtree(voc / "JPEGImages")
    (voc / "JPEGImages").mkdir()
    assert build_shards(plan_of(voc), out, num_workers=1) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == times


@pytest.mark.parametrize("lost", ["made no manifest", "lost a tar", "cut a tar", "lost an index", "damaged an index"])
def test_only_what_is_missing_is_written_again(voc, tmp_path, lost):
    folder = tmp_path / "out"
    build_shards(plan_of(voc), open_storage(folder), num_workers=1)
    whole = contents(folder)
    second = folder / "voc2007-test-000001.tar"
    index = second.with_suffix(".parquet")
    if lost == "made no manifest":
        (folder / MANIFEST_NAME).unlink()
    elif lost == "lost a tar":
        second.unlink()
    elif lost == "cut a tar":
        second.write_bytes(second.read_bytes()[:-1024])
    elif lost == "lost an index":
        index.unlink()
    else:
        (folder / MANIFEST_NAME).unlink()
        index.write_bytes(b"PAR1 nonsense")
    kept = (folder / "voc2007-test-000000.tar").stat().st_ino
    progress = []
    build_shards(plan_of(voc), open_storage(folder), num_workers=1, progress=lambda *step: progress.append(step))
    assert contents(folder) == whole
    assert (folder / "voc2007-test-000000.tar").stat().st_ino == kept
    assert progress[0] == ((10, 10) if lost == "made no manifest" else (6, 10))


def test_another_plan_is_refused_and_overwrite_starts_over(voc, tmp_path):
    out = open_storage(tmp_path / "out")
    build_shards(plan_of(voc, 2), out, num_workers=1)
    before = contents(tmp_path / "out")
    with pytest.raises(UserError, match=r"other files, labels or options \(voc2007, test\).*--overwrite"):
        build_shards(plan_of(voc, 4), out, num_workers=1)
    (tmp_path / "out" / MANIFEST_NAME).unlink()
    for samples_per_shard in (4, 1):  # fewer shards than there are, and more
        with pytest.raises(
            UserError, match=r"shards of a build from other files, labels or options \(voc2007-test-.*--overwrite"
        ):
            build_shards(plan_of(voc, samples_per_shard), out, num_workers=1)
    del before[MANIFEST_NAME]
    assert contents(tmp_path / "out") == before
    build_shards(plan_of(voc, 4), out, num_workers=1, overwrite=True)
    build_shards(plan_of(voc, 4), open_storage(tmp_path / "fresh"), num_workers=1)
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_overwrite_deletes_the_manifest_first(voc, tmp_path, monkeypatch):
    out = open_storage(tmp_path / "out")
    build_shards(plan_of(voc, 2), out, num_workers=1)
    deleted = []
    delete = type(out).delete
    monkeypatch.setattr(type(out), "delete", lambda self, name: (deleted.append(name), delete(self, name)))
    build_shards(plan_of(voc, 4), out, num_workers=1, overwrite=True)
    assert deleted[0] == MANIFEST_NAME


@pytest.mark.parametrize("overwrite", [False, True])
def test_files_that_no_build_makes_are_never_touched(voc, tmp_path, overwrite):
    folder = tmp_path / "out"
    build_shards(plan_of(voc, 2), open_storage(folder), num_workers=1)
    (folder / MANIFEST_NAME).unlink()
    (folder / "thesis.tex").write_text("years of work")
    before = contents(folder)
    with pytest.raises(UserError, match=r"files that no build makes \(thesis\.tex\)"):
        build_shards(plan_of(voc, 2), open_storage(folder), num_workers=1, overwrite=overwrite)
    assert contents(folder) == before


def test_hidden_files_are_no_obstacle_and_dead_parts_are_cleared(voc, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / ".gitignore").write_text("*")
    (folder / ".voc2007-test-000000.tar.99999.part").write_bytes(b"left by a dead build")
    build_shards(plan_of(voc), open_storage(folder), num_workers=1)
    assert not list(folder.glob(".*.part"))
    assert (folder / ".gitignore").exists()


def test_two_builds_at_once_are_refused(voc, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    part = folder / ".voc2007-test-000000.tar.4711.part"
    part.write_bytes(b"the other build is writing this")
    descriptor = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another build is writing into this folder"):
            build_shards(plan_of(voc), open_storage(folder), num_workers=1)
        assert part.exists()
    finally:
        os.close(descriptor)
    build_shards(plan_of(voc), open_storage(folder), num_workers=1)


def spoil(voc):
    """Three bad images among ten; the second shard of four has two of them."""
    images = voc / "JPEGImages"
    (images / "000002.jpg").write_bytes(jpeg(1, 200, 100)[:3000])
    (images / "000005.jpg").unlink()
    (images / "000006.jpg").write_bytes(b"<html>")


def test_a_bad_image_stops_the_build_and_is_named(voc, tmp_path):
    spoil(voc)
    (voc / "JPEGImages" / "000002.jpg").write_bytes(jpeg(1))
    folder = tmp_path / "out"
    with pytest.raises(BadInputError, match=r"000005\.jpg: the image is missing; put it there, .* --on-error skip"):
        build_shards(plan_of(voc), open_storage(folder), num_workers=1)
    assert not contents(folder)  # it was looked for before anything was written
    (voc / "JPEGImages" / "000005.jpg").write_bytes(b"<html>")
    with pytest.raises(BadInputError, match=r"000005\.jpg: not an image"):
        build_shards(plan_of(voc), open_storage(folder), num_workers=1)
    assert sorted(contents(folder)) == ["voc2007-test-000000.parquet", "voc2007-test-000000.tar"]
    for number in (5, 6):
        (voc / "JPEGImages" / f"{number:06d}.jpg").write_bytes(jpeg(number - 1))
    build_shards(plan_of(voc), open_storage(folder), num_workers=1)
    build_shards(plan_of(voc), open_storage(tmp_path / "fresh"), num_workers=1)
    assert contents(folder) == contents(tmp_path / "fresh")


@pytest.mark.parametrize("num_workers", [1, 2])
def test_skipped_images_are_listed_and_counted(voc, tmp_path, num_workers):
    spoil(voc)
    folder = tmp_path / "out"
    manifest = build_shards(plan_of(voc), open_storage(folder), num_workers=num_workers, on_error="skip")
    assert manifest.counts["quarantined"] == 3
    assert [shard.num_samples for shard in manifest.shards] == [3, 2, 2]
    entries = [json.loads(line) for line in (folder / "quarantine.jsonl").read_text().splitlines()]
    assert [entry["file"] for entry in entries] == [f"JPEGImages/{number:06d}.jpg" for number in (2, 5, 6)]
    assert [entry["reason"].split(":")[0] for entry in entries] == [
        "truncated JPEG",
        "the image is missing",
        "not an image",
    ]
    samples = read_samples(folder, manifest)
    assert [found["__key__"] for found in samples] == [f"{number:06d}" for number in (1, 3, 4, 7, 8, 9, 10)]
    counted = np.sum([np.load(io.BytesIO(found["target.npy"])) for found in samples], axis=0)
    assert [manifest.label_histogram[name]["positive"] for name in manifest.classes] == counted.tolist()
    # A build that was interrupted at its end tries the bad shards again, and ends with the same bytes.
    whole = contents(folder)
    (folder / MANIFEST_NAME).unlink()
    build_shards(plan_of(voc), open_storage(folder), num_workers=1, on_error="skip")
    assert contents(folder) == whole
    # Without --on-error skip it stops, and the ledger of the other build is gone.
    (folder / MANIFEST_NAME).unlink()
    (voc / "JPEGImages" / "000005.jpg").write_bytes(b"<html>")
    with pytest.raises(BadInputError):
        build_shards(plan_of(voc), open_storage(folder), num_workers=1)
    assert not (folder / "quarantine.jsonl").exists()


def test_a_shard_without_one_good_image_is_left_out(voc, tmp_path):
    """An empty tar would break readers."""
    for number in range(5, 9):
        (voc / "JPEGImages" / f"{number:06d}.jpg").write_bytes(b"")
    manifest = build_shards(plan_of(voc), open_storage(tmp_path / "out"), num_workers=1, on_error="skip")
    assert [shard.name for shard in manifest.shards] == ["voc2007-test-000000.tar", "voc2007-test-000002.tar"]
    assert not (tmp_path / "out" / "voc2007-test-000001.tar").exists()
    for path in (voc / "JPEGImages").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"none of the 10 images is usable; .*quarantine\.jsonl lists the reasons"):
        build_shards(plan_of(voc), open_storage(tmp_path / "none"), num_workers=1, on_error="skip")
    assert not (tmp_path / "none" / MANIFEST_NAME).exists()


def test_transcoded_images_are_counted_also_after_a_resume(voc, tmp_path):
    from PIL import Image

    (voc / "JPEGImages" / "000003.jpg").write_bytes(encode(Image.new("RGB", (9, 7), "red"), "PNG"))
    folder = tmp_path / "out"
    manifest = build_shards(plan_of(voc), open_storage(folder), num_workers=1)
    assert manifest.counts["transcoded"] == 1
    assert json.loads(read_samples(folder, manifest)[2]["json"])["width"] == 9
    (folder / MANIFEST_NAME).unlink()
    assert build_shards(plan_of(voc), open_storage(folder), num_workers=1) == manifest


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_full_disk_ends_without_a_manifest(voc, tmp_path, num_workers):
    code = f"""
import resource, sys
from msldata.build.shards import build_shards, plan_build
from msldata.errors import StorageError
from msldata.sources.kinds import open_source
from msldata.storage import open_storage
if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, 8_000))
    plan = plan_build(open_source("voc2007", {str(voc)!r}, "test"), samples_per_shard=4)
    try:
        build_shards(plan, open_storage({str(tmp_path / "out")!r}), num_workers={num_workers})
    except StorageError as error:
        sys.exit(0 if ".tar" in str(error) and "file too large" in str(error) else str(error))
    sys.exit("no error")
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY, timeout=60)
    assert not [name for name in contents(tmp_path / "out") if name.endswith((".tar", ".json", ".part"))]


def test_a_full_disk_at_the_very_end_leaves_a_resumable_folder(voc, tmp_path, monkeypatch):
    out = open_storage(tmp_path / "out")
    put = type(out).put

    def full(self, name, data):
        if name == MANIFEST_NAME:
            raise StorageError(f"{self.where(name)}: the disk is full") from OSError(errno.ENOSPC, "")
        put(self, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(type(out), "put", full)
        with pytest.raises(StorageError, match="the disk is full"):
            build_shards(plan_of(voc), out, num_workers=1)
    with pytest.raises(FormatError, match="no finished dataset"):
        read_manifest(out)
    assert build_shards(plan_of(voc), out, num_workers=1) == read_manifest(out)


def test_a_remote_destination_gets_the_same_bytes(voc, tmp_path):
    local, remote = open_storage(tmp_path / "out"), MemoryStorage()
    build_shards(plan_of(voc), local, num_workers=1)
    manifest = build_shards(plan_of(voc), remote, num_workers=1)
    assert {info.name: remote.read(info.name) for info in remote.list_files()} == contents(tmp_path / "out")
    remote.delete(MANIFEST_NAME)
    remote.delete(manifest.shards[0].name)
    assert build_shards(plan_of(voc), remote, num_workers=1) == manifest
    build_shards(plan_of(voc, 5), remote, num_workers=1, overwrite=True)
    assert len([info for info in remote.list_files() if info.name.endswith(".tar")]) == 2


def test_into_a_bucket_with_two_workers(voc, tmp_path, s3):
    build_shards(plan_of(voc), open_storage(tmp_path / "out"), num_workers=1)
    out = open_storage("s3://bucket/shards/voc2007/test")
    build_shards(plan_of(voc), out, num_workers=2)
    assert {info.name: out.read(info.name) for info in out.list_files()} == contents(tmp_path / "out")


def test_plans_differ_when_anything_differs(voc, tmp_path):
    digests = {plan_of(voc).digest, plan_of(voc).digest}
    assert len(digests) == 1
    records = [Record("k", "k.jpg", (0,), (1,), (ObjectRecord(0, (1.0, 2.0, 3.0, 4.0), 12.0),), "k")]
    changed = [
        records,
        [Record("l", "k.jpg", (0,), (1,), records[0].objects, "k")],
        [Record("k", "l.jpg", (0,), (1,), records[0].objects, "k")],
        [Record("k", "k.jpg", (0, 2), (1,), records[0].objects, "k")],
        [Record("k", "k.jpg", (0,), (), records[0].objects, "k")],
        [Record("k", "k.jpg", (0,), (1,), (), "k")],
        [Record("k", "k.jpg", (0,), (1,), (ObjectRecord(0, (1.0, 2.0, 3.0, 4.0), 12.0, crowd=True),), "k")],
        [*records, Record("m", "m.jpg", ())],
    ]
    digests |= {plan_build(ListSource(tmp_path, entries)).digest for entries in changed}
    digests |= {plan_build(ListSource(tmp_path, records), samples_per_shard=7).digest}
    digests |= {plan_build(ListSource(tmp_path, records, classes=("a", "b", "d"))).digest}
    assert len(digests) == 1 + len(changed) + 2


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "has no images to build from"),
        ([Record("k", "k.jpg", ()), Record("k", "k.png", ())], r"k\.png: a second image with the key 'k'"),
        ([Record("a.b", "a.b.jpg", ())], "sample key 'a.b'"),
    ],
)
def test_bad_plans_are_refused(tmp_path, records, message):
    with pytest.raises(UserError, match=message):
        plan_build(ListSource(tmp_path, records))


def test_bad_options_are_refused(voc, tmp_path):
    with pytest.raises(UserError, match="samples_per_shard is 0"):
        plan_of(voc, 0)
    with pytest.raises(UserError, match="on_error is 'ignore'"):
        build_shards(plan_of(voc), open_storage(tmp_path / "out"), on_error="ignore")  # type: ignore[arg-type]
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        build_shards(plan_of(voc), open_storage(tmp_path / "file"), num_workers=1)


def test_a_plan_knows_its_size(voc):
    plan = plan_of(voc)
    assert (plan.num_samples, len(plan.shards)) == (10, 3)
    assert [record.key for record in plan.shards[2].records()] == ["000009", "000010"]


INDICES = st.sets(st.integers(0, 2), max_size=3)
BOXES = st.tuples(st.integers(0, 12), st.integers(0, 8), st.floats(1, 12, width=32), st.floats(1, 8, width=32))
OBJECTS = st.builds(
    ObjectRecord,
    class_index=st.integers(0, 2),
    box=BOXES,
    area=st.floats(0, 1e6, width=32),
    difficult=st.booleans(),
    truncated=st.sampled_from([None, False, True]),
    occluded=st.sampled_from([None, False, True]),
    crowd=st.booleans(),
)
KEYS = st.text(st.sampled_from("abcXYZ019_-é"), min_size=1, max_size=12)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    keys=st.lists(KEYS, min_size=1, max_size=12, unique=True),
    data=st.data(),
    samples_per_shard=st.integers(1, 13),
)
def test_any_records_survive_the_round_trip(tmp_path_factory, keys, data, samples_per_shard):
    """Whatever the records and the shard size: every sample once, in order, with its own labels and objects."""
    root = tmp_path_factory.mktemp("any")
    records = []
    for number, key in enumerate(keys):
        (root / f"{number}.jpg").write_bytes(jpeg(number))
        positives, ignored = data.draw(INDICES), data.draw(INDICES)
        objects = tuple(data.draw(st.lists(OBJECTS, max_size=3)))
        records.append(
            Record(key, f"{number}.jpg", tuple(sorted(positives)), tuple(sorted(ignored - positives)), objects)
        )
    plan = plan_build(ListSource(root, records), samples_per_shard=samples_per_shard)
    assert [record for shard in plan.shards for record in shard.records()] == records
    manifest = build_shards(plan, open_storage(root / "out"), num_workers=1)
    assert manifest.num_samples == len(records)
    samples = read_samples(root / "out", manifest)
    rows = [
        row
        for shard in manifest.shards
        for row in contract.decode_index(IMAGES, (root / "out" / shard.index_name).read_bytes(), "index").to_pylist()
    ]
    for number, (record, found, row) in enumerate(zip(records, samples, rows, strict=True)):
        assert found["__key__"] == row["key"] == record.key
        assert found["jpg"] == jpeg(number)
        assert np.flatnonzero(np.load(io.BytesIO(found["target.npy"]))).tolist() == list(record.positives)
        assert (tuple(row["positives"]), tuple(row["ignored"])) == (record.positives, record.ignored)
        assert [tuple(item["box"]) for item in row["objects"]] == [item.box for item in record.objects]
        assert [tuple(item["box"]) for item in json.loads(found["json"])["objects"]] == [
            item.box for item in record.objects
        ]
    again = build_shards(plan, open_storage(root / "again"), num_workers=1)
    assert again.fingerprint == manifest.fingerprint
    assert contents(root / "again") == contents(root / "out")
