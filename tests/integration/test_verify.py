"""`msl verify`: a built dataset is right; damaged in any one way, the damage is found and named."""

from __future__ import annotations

import io
import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from msldata.build.shards import build_shards, plan_build
from msldata.build.writer import ShardWriter
from msldata.contract.format import decode_index, decode_shard_metadata, encode_index, encode_json, encode_target
from msldata.contract.manifest import IMAGES, FormatError, read_manifest
from msldata.contract.publish import write_manifest
from msldata.contract.tar import walk_tar
from msldata.errors import UserError
from msldata.inspect.verify import Finding, verify
from msldata.masks.sources import select_mask_source
from msldata.sources.kinds import open_source
from msldata.storage import LocalStorage, open_storage
from msltrain.__main__ import app
from tests.tinydata import build_masks, jpeg, make_voc

FIRST = "voc2007-test-000000.tar"
LAST = "voc2007-test-000002.tar"


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """12 images in 3 shards, and 6 keep masks."""
    root = tmp_path_factory.mktemp("verify")
    source = open_source("voc2007", make_voc(root, 12), "test")
    build_shards(plan_build(source, samples_per_shard=5), LocalStorage(root / "test"), num_workers=1)
    masks = select_mask_source(root, None, generate=12, size=64, seed=0)
    build_masks(masks, LocalStorage(root / "masks"), per_subset=6, num_workers=1)
    return root


@pytest.fixture
def images(built, tmp_path) -> Path:
    return shutil.copytree(built / "test", tmp_path / "shards" / "voc2007" / "test")


@pytest.fixture
def keep_masks(built, tmp_path) -> Path:
    return shutil.copytree(built / "masks", tmp_path / "shards" / "masks") / "high"


def findings(folder: Path, **options) -> tuple[Finding, ...]:
    return verify(LocalStorage(folder), num_workers=1, **options).findings


def only(folder: Path, **options) -> Finding:
    found = findings(folder, **options)
    assert len(found) == 1, found
    return found[0]


def member(folder: Path, key: str, suffix: str, shard: str = FIRST):
    return next(item for item in walk_tar((folder / shard).read_bytes()) if item.name == key + suffix)


def flip_byte(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def edit_rows(folder: Path, change: Callable[[list[dict]], None], shard: str = FIRST) -> None:
    """Rewrite a sample index alone; nothing but its agreement with the tar can show it."""
    path = folder / shard.replace(".tar", ".parquet")
    kind = read_manifest(LocalStorage(folder)).kind
    rows = decode_index(kind, path.read_bytes(), "").to_pylist()
    info, plan = decode_shard_metadata(path.read_bytes(), "")
    change(rows)
    path.write_bytes(encode_index(kind, rows, info, plan))


def rewrite(folder: Path, change: Callable[[str, dict[str, bytes], dict], str | None]) -> None:
    """Write all shards again, with every checksum right, after ``change(key, members, row)`` of each sample.

    ``change`` may return another key.
    """
    storage = LocalStorage(folder)
    manifest = read_manifest(storage)
    shards = []
    for info in manifest.shards:
        data = storage.read(info.name)
        files = {item.name: data[item.offset : item.offset + item.length] for item in walk_tar(data)}
        with ShardWriter(storage, info.name, kind=manifest.kind, plan=manifest.plan) as writer:
            for row in decode_index(manifest.kind, storage.read(info.index_name), "").to_pylist():
                key = row["key"]
                members = {name.removeprefix(key): content for name, content in files.items() if name.startswith(key)}
                key = change(key, members, row) or key
                kept = {name: value for name, value in row.items() if name not in ("key", "offset", "length", "crc32")}
                writer.add(key, list(members.items()), kept)
            shards.append(writer.publish())
    write_manifest(storage, replace(manifest, shards=tuple(shards)))


def change_member(folder: Path, key: str, suffix: str, content: Callable[[bytes], bytes]) -> None:
    def change(name: str, members: dict[str, bytes], row: dict) -> None:
        if name == key:
            members[suffix] = content(members[suffix])

    rewrite(folder, change)


def edit_manifest(folder: Path, change: Callable[[dict], None]) -> None:
    content = json.loads((folder / "dataset.json").read_bytes())
    change(content)
    (folder / "dataset.json").write_text(json.dumps(content))


def test_a_built_dataset_is_right(images, keep_masks):
    assert findings(images) == () and findings(keep_masks) == () and findings(keep_masks.with_name("low")) == ()
    rewrite(images, lambda key, members, row: None)  # so the tests below fail for their own change only
    assert findings(images) == ()


def test_workers_find_the_same_in_the_same_order(images):
    flip_byte(images / FIRST, member(images, "000002", ".jpg").offset + 100)
    flip_byte(images / LAST, member(images, "000011", ".jpg", LAST).offset + 100)
    assert verify(LocalStorage(images), num_workers=2).findings == findings(images)


def test_progress_ends_at_all_samples(images):
    calls = []
    verify(LocalStorage(images), num_workers=1, progress=lambda *call: calls.append(call))
    assert calls == [(5, 12), (10, 12), (12, 12)]


def test_no_manifest(images):
    (images / "dataset.json").unlink()
    with pytest.raises(FormatError, match="no finished dataset"):
        findings(images)


def test_without_decoding_the_bytes_are_checked_all_the_same(images, keep_masks):
    change_member(images, "000002", ".jpg", lambda data: data[:-40] + b"\xff\xd9")
    assert only(images).what == "decoding the image" and findings(images, decode=False) == ()
    flip_byte(images / LAST, member(images, "000011", ".jpg", LAST).offset + 200)
    assert {item.what for item in findings(images, decode=False)} == {"sha256", "crc32 of the image"}
    assert findings(keep_masks, decode=False) == ()


def test_flipped_byte_in_an_image(images):
    flip_byte(images / FIRST, member(images, "000003", ".jpg").offset + 200)
    assert [(item.file, item.key, item.what) for item in findings(images)][:2] == [
        (FIRST, "", "sha256"),
        (FIRST, "000003", "crc32 of the image"),
    ]


def test_flipped_byte_in_a_json(images):
    flip_byte(images / FIRST, member(images, "000003", ".json").offset)
    found = findings(images)
    assert [(item.key, item.what) for item in found] == [("", "sha256"), ("000003", "000003.json")]


@pytest.mark.parametrize("kept", [0, 700, 5000, -1, -1025], ids=str)
def test_truncated_tar(images, kept):
    data = (images / FIRST).read_bytes()
    (images / FIRST).write_bytes(data[:kept])
    what = [item.what for item in findings(images)]
    assert what[:2] == ["size", "sha256"]
    assert what[2].startswith(("tar member", "end of the tar", "tar header"))


def test_bytes_after_the_end(images):
    with open(images / FIRST, "ab") as file:
        file.write(b"x" * 512)
    assert [item.what.split(",")[0] for item in findings(images)] == ["size", "sha256", "end of the tar"]


def test_damaged_tar_header(images):
    flip_byte(images / FIRST, member(images, "000002", ".jpg").offset - 512)
    found = findings(images)
    assert any(item.what.startswith("tar header at byte") for item in found)
    assert [item.key for item in found if item.what == "members of the sample"] == [
        "000002",
        "000003",
        "000004",
        "000005",
    ]


def test_missing_shard_and_missing_index(images):
    (images / FIRST).unlink()
    assert (findings(images)[0].what, findings(images)[0].found) == ("the shard", "no such file")
    (images / LAST.replace(".tar", ".parquet")).unlink()
    assert any(item.what == "the sample index" and item.found == "no such file" for item in findings(images))


def test_index_that_is_none_or_belongs_to_other_bytes(images):
    index = FIRST.replace(".tar", ".parquet")
    shutil.copy(images / LAST.replace(".tar", ".parquet"), images / index)
    what = {item.what for item in findings(images) if item.file == index}
    assert {"name in its metadata", "sha256 in its metadata", "rows"} <= what
    (images / index).write_bytes(b"PAR1")
    assert any(item.file == index and item.what == "the sample index" for item in findings(images))


@pytest.mark.parametrize(
    ("column", "value", "what"),
    [
        ("offset", 513, "offset in the index"),
        ("length", 7, "length in the index"),
        ("crc32", 1, "crc32 of the image"),
        ("width", 25, "width in 000002.json"),
        ("positives", [19], "000002.target.npy"),
        ("ignored", [0], "ignored in 000002.json"),
        ("ignored", [1], "classes both positive and ignored"),
        ("positives", [20], "positives in the index"),
        ("objects", [], "number of objects in 000002.json"),
    ],
)
def test_wrong_index_row(images, column, value, what):
    edit_rows(images, lambda rows: rows[1].update({column: value}))
    assert ("000002", what) in {(item.key, item.what) for item in findings(images)}


def test_index_with_a_column_of_another_type(images):
    path = images / FIRST.replace(".tar", ".parquet")
    table = pq.read_table(path)
    number = table.schema.get_field_index("crc32")
    pq.write_table(table.set_column(number, "crc32", table["crc32"].cast(pa.int64())), path)
    assert (only(images).what, only(images).found) == ("type of column crc32", "int64")


def test_index_of_another_plan(images):
    path = images / FIRST.replace(".tar", ".parquet")
    info, plan = decode_shard_metadata(path.read_bytes(), "")
    rows = decode_index(IMAGES, path.read_bytes(), "").to_pylist()
    path.write_bytes(encode_index(IMAGES, rows, info, "another"))
    assert (only(images).what, only(images).expected) == ("plan in its metadata", plan)


def test_key_that_breaks_other_readers(images):
    rewrite(images, lambda key, members, row: "has space" if key == "000004" else None)
    assert [item.what for item in findings(images) if item.key == "has space"] == ["key"]


def test_sample_torn_apart_in_the_tar(images):
    """The members of 000001 come in two places, so that readers would see two samples."""
    data = (images / FIRST).read_bytes()
    first, last = member(images, "000002", ".jpg"), member(images, "000001", ".target.npy")
    torn = data[last.offset - 512 : last.offset + 512]
    body = data[: last.offset - 512] + data[first.offset - 512 : -1024] + torn + bytes(1024)
    (images / FIRST).write_bytes(body)
    found = {(item.key, item.what): item for item in findings(images)}
    assert found["", "samples in the tar"].found == "6"
    assert found["000001", "members"].found == ".jpg, .json"


def test_index_rows_in_another_order(images):
    edit_rows(images, lambda rows: rows.reverse())
    found = only(images)
    assert (found.what, found.expected) == ("order of the samples, row 0", "000001 as in the tar")


def test_index_row_of_another_key(images):
    edit_rows(images, lambda rows: rows[4].update(key="nobody"))
    assert [(item.key, item.what) for item in findings(images)] == [
        ("nobody", "members of the sample"),
        ("000005", "row of the index"),
    ]


def test_image_that_does_not_decode_under_right_checksums(images):
    change_member(images, "000004", ".jpg", lambda data: data[: len(data) // 2])
    found = only(images)
    assert (found.key, found.what) == ("000004", "decoding the image")


def test_image_of_another_size(images):
    change_member(images, "000004", ".jpg", lambda data: jpeg(4, 30, 20))
    found = only(images)
    assert (found.what, found.expected, found.found) == ("size of the image", "24×16", "30×20")


def test_pickled_target_is_refused_unread(images, tmp_path):
    class Bomb:
        def __reduce__(self):
            return Path.touch, (tmp_path / "exploded",)

    buffer = io.BytesIO()
    np.save(buffer, np.array([Bomb()], dtype=object), allow_pickle=True)
    for data in (buffer.getvalue(), pickle.dumps(Bomb())):
        change_member(images, "000004", ".target.npy", lambda _, data=data: data)
        found = only(images)
        assert (found.key, found.expected) == ("000004", "an array without pickled objects")
    assert not (tmp_path / "exploded").exists()


def as_npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        encode_target([0], 20),
        encode_target([], 21),
        as_npy(np.zeros(20, np.float32)),
        as_npy(np.full(20, 2, np.uint8)),
        b"",
    ],
    ids=["other labels", "too long", "float", "values of 2", "empty"],
)
def test_wrong_target(images, data):
    change_member(images, "000004", ".target.npy", lambda _: data)
    found = only(images)
    assert (found.file, found.key, found.what) == (FIRST, "000004", "000004.target.npy")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"labels": ["cat"]}, "labels in 000004.json"),
        ({"ignored": ["cat"]}, "ignored in 000004.json"),
        ({"height": 17}, "height in 000004.json"),
        ({"objects": None}, "objects in 000004.json"),
        ({"objects": [3]}, "objects in 000004.json"),
        ({"objects": []}, "number of objects in 000004.json"),
    ],
)
def test_wrong_json(images, change, what):
    change_member(images, "000004", ".json", lambda data: encode_json(json.loads(data) | change))
    assert only(images).what == what


@pytest.mark.parametrize(
    "change",
    [{"box": [0, 0, 1, 1]}, {"area": 3.5}, {"class": "cat"}, {"difficult": True}, {"occluded": True}],
    ids=lambda c: next(iter(c)),
)
def test_wrong_object(images, change):
    def edit(data: bytes) -> bytes:
        meta = json.loads(data)
        meta["objects"][0] |= change
        return encode_json(meta)

    change_member(images, "000004", ".json", edit)
    assert only(images).what == "objects in 000004.json, number 0"


def test_missing_member(images):
    rewrite(images, lambda key, members, row: members.pop(".target.npy") and None if key == "000004" else None)
    found = only(images)
    assert (found.what, found.found) == ("members", ".jpg, .json")


@pytest.mark.parametrize("column", ["positive", "ignored"])
def test_edited_histogram_and_counts(images, column):
    edit_manifest(images, lambda content: content["label_histogram"]["bicycle"].update({column: 7}))
    found = only(images)
    assert (found.file, found.what) == ("dataset.json", f"label histogram, {column} images of bicycle")
    assert found.found == "7"
    edit_manifest(images, lambda content: content["counts"].update(objects=7))
    assert "count of objects" in {item.what for item in findings(images)}


def test_duplicate_image(images):
    copy = jpeg(1)  # key 000002
    change_member(images, "000011", ".jpg", lambda _: copy)
    found = only(images)
    assert (found.file, found.key, found.what) == (LAST, "000011", "image")
    assert found.found.startswith(f"the same bytes as 000002 in {FIRST}; 000002 is labelled ")
    assert "take one image of each pair" in verify(LocalStorage(images), num_workers=1).next_step


def test_duplicate_key_across_shards_and_within_one(images):
    rewrite(images, lambda key, members, row: {"000011": "000002", "000005": "000003"}.get(key))
    found = [(item.file, item.key, item.found) for item in findings(images) if item.what == "key"]
    assert found == [(FIRST, "000003", f"also in {FIRST}"), (LAST, "000002", f"also in {FIRST}")]


def test_image_shared_with_another_split(images, tmp_path):
    other = shutil.copytree(images, tmp_path / "other")
    rewrite(other, lambda key, members, row: members.update({".jpg": jpeg(1000 + int(key))}))
    assert findings(images, against=LocalStorage(other)) == ()
    change_member(other, "000011", ".jpg", lambda _: jpeg(2))  # key 000003
    found = only(images, against=LocalStorage(other))
    assert (found.key, found.found) == ("000003", "the same bytes as 000011 there")


def test_against_itself_or_another_kind_is_a_mistake(images, keep_masks):
    with pytest.raises(UserError, match="names the dataset itself"):
        findings(images, against=LocalStorage(images))
    with pytest.raises(UserError, match="holds keep-masks"):
        findings(images, against=LocalStorage(keep_masks))


@pytest.mark.parametrize("name", ["notes.txt", "voc2007-test-000003.tar", f".{FIRST}.77.part"])
def test_leftover_file(images, name):
    (images / name).write_bytes(b"x")
    (images / ".gitignore").write_bytes(b"*")  # another tool's
    found = only(images)
    assert (found.file, found.what) == (name, "files of the dataset")


def test_files_for_other_readers(images):
    (images / "sizes.json").unlink()
    (images / "_info.json").write_text("{}")
    assert {(item.file, item.found) for item in findings(images)} == {
        ("sizes.json", "no such file"),
        ("_info.json", "others"),
    }


def test_wrong_keep_masks(keep_masks):
    shard = next(keep_masks.glob("*.tar")).name
    key = decode_index("keep-masks", (keep_masks / shard.replace(".tar", ".parquet")).read_bytes(), "")["key"][
        0
    ].as_py()
    edit_rows(keep_masks, lambda rows: rows[0].update(hole_fraction=0.1), shard)
    assert {(item.key, item.what) for item in findings(keep_masks)} == {
        (key, f"hole_fraction in {key}.json"),
        (key, "hole fraction"),
        ("", "hole-fraction histogram"),
        ("", "masks with a hole fraction outside 0.5000000000000001 to 1"),
    }


def test_keep_mask_that_does_not_decode(keep_masks):
    key = decode_index("keep-masks", next(keep_masks.glob("*.parquet")).read_bytes(), "")["key"][0].as_py()
    change_member(keep_masks, key, ".png", lambda data: data[:60])
    assert (only(keep_masks).key, only(keep_masks).what) == (key, "decoding the keep mask")


def test_remote_dataset(images, s3):
    folder = open_storage("s3://bucket/verify/test")
    for path in images.iterdir():
        folder.put(path.name, path.read_bytes())
    assert verify(folder, num_workers=2).findings == ()
    folder.put(FIRST, (images / FIRST).read_bytes()[:-700])
    assert {item.what for item in verify(folder, num_workers=2).findings} >= {"size", "sha256"}


def test_command(images):
    run = CliRunner().invoke(app, ["verify", str(images), "--workers", "1"])
    assert run.exit_code == 0 and "12 samples in 3 shards are right\n" in run.output
    other = shutil.copytree(images, images.parent / "other")
    rewrite(other, lambda key, members, row: members.update({".jpg": jpeg(1000 + int(key))}))
    run = CliRunner().invoke(app, ["verify", str(images), "--workers", "1", "--against", str(other)])
    assert run.exit_code == 0 and f"are right, and none is in {other}" in run.output
    flip_byte(images / FIRST, member(images, "000003", ".jpg").offset + 200)
    run = CliRunner().invoke(app, ["verify", str(images), "--workers", "1"])
    assert run.exit_code == 2
    assert f"{FIRST}, sample 000003: crc32 of the image: expected" in run.output
    assert "how it was built is not recorded" in run.output and "--overwrite" not in run.output


@pytest.mark.real
def test_real_dataset_is_right(sample, tmp_path):
    for split in ("trainval", "test"):
        source = open_source("voc2007", sample / "VOCdevkit" / "VOC2007", split)
        build_shards(plan_build(source), LocalStorage(tmp_path / split), num_workers=1)
    assert findings(tmp_path / "trainval", against=LocalStorage(tmp_path / "test")) == ()
    assert read_manifest(LocalStorage(tmp_path / "trainval")).kind == IMAGES
