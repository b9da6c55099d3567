"""The contract: manifests and sample indices survive a round trip, and damage is named instead of read."""

from __future__ import annotations

import hashlib
import io
import json
import math
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from msldata.contract import format as contract
from msldata.contract.manifest import IMAGES, KEEP_MASKS, FormatError, Manifest, ShardInfo, read_manifest
from msldata.contract.publish import reader_files, write_manifest
from msldata.storage import LocalStorage

SHARD = ShardInfo(name="voc2007-test-000000.tar", num_samples=2, num_bytes=10240, sha256="ab" * 32)
MANIFEST = Manifest(
    kind=IMAGES,
    dataset="voc2007",
    split="test",
    classes=("cat", "dog"),
    shards=(SHARD,),
    label_histogram={"cat": {"positive": 1, "ignored": 0}},
    counts={"transcoded": 0},
    options={"samples_per_shard": 1000},
    plan="cd" * 32,
)
ROW = {
    "key": "000001",
    "offset": 512,
    "length": 100,
    "crc32": 4_000_000_000,
    "width": 500,
    "height": 375,
    "positives": [1],
    "ignored": [],
    "objects": [
        {
            "class_index": 1,
            "box": [1.0, 2.0, 3.0, 4.0],
            "area": 12.0,
            "difficult": False,
            "truncated": None,
            "occluded": True,
            "crowd": False,
        }
    ],
}
EMPTY_OCCLUSION = {field.name: None for field in contract.OCCLUSION_TYPE}


def test_manifest_round_trip(tmp_path):
    storage = LocalStorage(tmp_path)
    write_manifest(storage, MANIFEST)
    assert read_manifest(storage) == MANIFEST
    assert MANIFEST.num_samples == 2


@pytest.mark.parametrize("num_shards", [0, 1, 2])
def test_a_manifest_is_indented_json_with_sorted_keys(num_shards: int):
    shards = tuple(replace(SHARD, name=f"voc2007-test-00000{number}.tar") for number in range(num_shards))
    text = replace(MANIFEST, shards=shards).to_json().decode()
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True) + "\n"


def test_fingerprint_follows_the_bytes():
    other = ShardInfo(name=SHARD.name, num_samples=2, num_bytes=10240, sha256="ac" * 32)
    changed = Manifest(kind="images", dataset="voc2007", split="test", shards=(other,))
    assert changed.fingerprint != MANIFEST.fingerprint


@pytest.mark.parametrize("num_shards", [0, 1, 2])
def test_the_fingerprint_is_that_of_what_training_reads(num_shards: int):
    shards = [replace(SHARD, name=f"{number}.tar", labels_sha256=f"{number}" * 64) for number in range(num_shards)]
    manifest = replace(MANIFEST, shards=tuple(shards), label_histogram={})
    content = ["test", ["cat", "dog"], ["ab" * 32] * num_shards, [shard.labels_sha256 for shard in shards]]
    assert manifest.fingerprint == hashlib.sha256(json.dumps(content).encode()).hexdigest()


def test_edited_manifest_is_refused():
    content = json.loads(MANIFEST.to_json())
    content["shards"][0]["sha256"] = "ff" * 32
    with pytest.raises(FormatError, match="fingerprint"):
        Manifest.from_json(json.dumps(content).encode(), "dataset.json")


def many_shards(number: int) -> Manifest:
    digests = [hashlib.sha256(str(n).encode()).hexdigest() for n in range(3 * number)]
    shards = [
        replace(SHARD, name=f"a-b-{n}.tar", num_bytes=n + 1, sha256=sha256, index_sha256=index, labels_sha256=labels)
        for n, (sha256, index, labels) in enumerate(zip(*(digests[k::3] for k in range(3))))
    ]
    return replace(MANIFEST, shards=shards, label_histogram={})


@pytest.mark.parametrize("indent", [2, 4, None])
def test_shards_are_the_same_read_in_parts_and_as_a_whole(monkeypatch, indent):
    monkeypatch.setattr("msldata.contract.manifest._PART_BYTES", 1000)
    monkeypatch.setattr("msldata.contract.manifest._TOGETHER", 7)
    made = many_shards(50)
    read = Manifest.from_json(json.dumps(json.loads(made.to_json()), indent=indent).encode(), "dataset.json")
    assert read == made and read.to_json() == made.to_json()
    assert read.shards[-1] == replace(SHARD, name="a-b-49.tar", num_bytes=50, sha256=made.shards[49].sha256)
    assert [shard.index_sha256 for shard in read.shards[:30:7]] == [
        made.shards[n].index_sha256 for n in range(0, 30, 7)
    ]
    columns = [[getattr(shard, name) for shard in made.shards] for name in ("sha256", "labels_sha256")]
    assert read.fingerprint == hashlib.sha256(json.dumps(["test", ["cat", "dog"], *columns]).encode()).hexdigest()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "../a.tar"}, "not the plain name"),
        ({"name": "a.tgz"}, "not the plain name"),
        ({"name": "ä" * 126 + ".tar"}, "not the plain name"),
        ({"num_samples": 0}, "num_samples is 0"),
        ({"num_samples": True}, "num_samples is True"),
        ({"num_bytes": 2**53 + 1}, "num_bytes is"),
        ({"sha256": ""}, "sha256 is ''"),
        ({"sha256": "AB" * 32}, "not 64 hex digits"),
        ({"labels_sha256": " " * 64}, "not 64 hex digits"),
        ({"index_sha256": "é" * 64}, "not 64 hex digits"),
        ({"more": 1}, "not a manifest"),
    ],
)
def test_one_bad_shard_of_many_is_named(monkeypatch, change, message):
    monkeypatch.setattr("msldata.contract.manifest._PART_BYTES", 1000)
    content = json.loads(many_shards(50).to_json())
    content["shards"][30] |= change
    for indent in (2, None):
        with pytest.raises(FormatError, match=message):
            Manifest.from_json(json.dumps(content, indent=indent).encode(), "dataset.json")


def test_a_shard_of_a_manifest_takes_little_memory():
    """As objects they take 900 bytes each, in every process that opens a dataset of millions."""
    data = many_shards(5000).to_json()
    tracemalloc.start()
    try:
        manifest = Manifest.from_json(data, "dataset.json")
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(manifest.shards) == 5000
    assert held < 300 * 5000 and peak < 2500 * 5000, (held, peak)


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"fingerprint": 1, "num_samples": 2}', b"\xff\xfe"])
def test_not_a_manifest(data):
    with pytest.raises(FormatError, match="not a manifest"):
        Manifest.from_json(data, "x/dataset.json")


def test_another_schema_version_says_what_to_do():
    content = json.loads(MANIFEST.to_json()) | {"schema_version": 99}
    advice = "build the shards again from their source, or read them with a newer program"
    with pytest.raises(FormatError, match=f"schema version 99, .*; {advice}"):
        Manifest.from_json(json.dumps(content).encode(), "dataset.json")


def test_missing_manifest_points_at_datasets_below(tmp_path):
    write_manifest(LocalStorage(tmp_path / "voc2007" / "test"), MANIFEST)
    with pytest.raises(FormatError, match=r"did you mean .*voc2007/test"):
        read_manifest(LocalStorage(tmp_path))


def test_where_no_dataset_is_near_it_is_said_how_one_is_made(tmp_path):
    with pytest.raises(FormatError) as refused:
        read_manifest(LocalStorage(tmp_path))
    assert str(refused.value) == (
        f"{tmp_path}: no finished dataset here (no dataset.json); build it with `msl build-shards` or `msl "
        "build-masks`, or wait until the build has finished"
    )


def test_index_round_trip():
    data = contract.encode_index(IMAGES, [ROW], SHARD, plan="cd" * 32)
    table = contract.decode_index(IMAGES, data, "x.parquet")
    assert table.to_pylist() == [ROW]
    assert table.schema.remove_metadata().equals(contract.IMAGE_INDEX_SCHEMA.remove_metadata())
    assert contract.decode_shard_metadata(data, "x.parquet") == (SHARD, "cd" * 32)


def test_index_bytes_are_deterministic():
    encode = [contract.encode_index(IMAGES, [ROW], SHARD, plan="p") for _ in range(2)]
    assert encode[0] == encode[1]


def test_damaged_index_is_named():
    data = contract.encode_index(IMAGES, [ROW], SHARD, plan="p")
    with pytest.raises(FormatError, match=r"x\.parquet"):
        contract.decode_index(IMAGES, data[: len(data) // 2], "x.parquet")
    with pytest.raises(FormatError, match="lacks the columns hole_fraction, source"):
        contract.decode_index(KEEP_MASKS, data, "x.parquet")


def checked(**changes) -> None:
    """Check an index of one row like ``ROW``, with ``changes``, as whoever opens a dataset does."""
    row = {**ROW, **changes}
    table = contract.decode_index(IMAGES, contract.encode_index(IMAGES, [row], SHARD, "plan"), "here")
    contract.check_rows(table, IMAGES, 2, SHARD, "here")


def test_limits_of_an_index_are_possible_and_what_lies_beyond_is_refused():
    an_object = ROW["objects"][0]
    most = SHARD.num_bytes
    for changes in (
        {"positives": [0, 1]},
        {"ignored": [0]},
        {"objects": [{**an_object, "class_index": 0}]},
        {"objects": []},
        {"objects": [{**an_object, "box": [3, 4, 0, 0], "area": 0}]},  # as builds take it
        {"offset": 0, "length": most},
        {"offset": most, "length": 0},
        {"width": 1, "height": 1},
    ):
        checked(**changes)
    for changes, words in (
        ({"positives": [-1]}, "a class number of positives is not one of the 2 classes"),
        ({"positives": [-1, 1]}, "a class number of positives is not one of the 2 classes"),
        ({"positives": [2]}, "a class number of positives is not one of the 2 classes"),
        ({"ignored": [-1]}, "a class number of ignored is not one of the 2 classes"),
        ({"ignored": [2]}, "a class number of ignored is not one of the 2 classes"),
        ({"objects": [{**an_object, "class_index": -1}]}, "a class number of class_index is not one of the 2 classes"),
        ({"objects": [{**an_object, "class_index": 2}]}, "a class number of class_index is not one of the 2 classes"),
        ({"offset": -1}, "offset from -1 to -1, where 0 to 10,240 is possible"),
        ({"offset": most + 1, "length": 0}, "offset from 10241 to 10241"),
        ({"offset": 1, "length": most}, "a sample ends beyond the 10,240 bytes of its tar"),
        ({"length": -1}, "length from -1"),
        ({"width": 0}, "width from 0 to 0"),
        ({"height": 0}, "height from 0 to 0"),
        ({"positives": [1, 1]}, "a sample has a class twice"),
        ({"positives": [0, 1], "ignored": [1]}, "a sample has a class twice, or as positive and ignored"),
        *(
            ({"objects": [{**an_object, "box": box}]}, "the box of an object is not four numbers")
            for box in ([math.nan, 0, 1, 1], [0, 0, math.inf, 1], [0, 0, -1, 1])
        ),
        *(
            ({"objects": [{**an_object, "area": area}]}, "the area of an object is not a number of 0 or more")
            for area in (math.nan, math.inf, -1)
        ),
    ):
        with pytest.raises(FormatError, match=words):
            checked(**changes)


def test_every_row_is_looked_at_not_the_least_alone():
    def refused(kind: str, rows: list[dict], words: str, columns: tuple[str, ...] | None = None) -> None:
        data = contract.encode_index(kind, rows, SHARD, "plan")
        with pytest.raises(FormatError, match=words):
            contract.check_rows(contract.decode_index(kind, data, "here", columns), kind, 2, SHARD, "here")

    other = {**ROW, "key": "000002"}
    refused(IMAGES, [ROW, {**other, "width": 65_536}], "width from 500 to 65536, where 1 to 65,535 is possible")
    refused(IMAGES, [ROW, {**other, "width": 65_535, "height": 65_535}], "an image of 4,294,836,225 pixels")
    refused(IMAGES, [{**ROW, "width": 65_535, "height": 65_535}], "an image of", ("key", "width", "height"))
    refused(IMAGES, [ROW, {**other, "offset": 10_241}], "offset from 512 to 10241")
    refused(IMAGES, [ROW, ROW], "a key is there twice")
    refused(IMAGES, [ROW, ROW], "a key is there twice", ("key", "width"))
    mask = {name: ROW[name] for name in ("key", "offset", "length", "crc32", "width", "height")}
    for fraction in (-0.1, 1.1):
        words = rf"hole_fraction from {min(fraction, 0.5):g} to {max(fraction, 0.5):g}, where 0 to 1 is possible"
        rows = [{**mask, "hole_fraction": 0.5, "source": "m"}, {**mask, "key": "m2", "source": "m"}]
        refused(KEEP_MASKS, [rows[0], {**rows[1], "hole_fraction": fraction}], words)


def test_shares_of_what_is_covered_are_from_0_to_1():
    two = [*ROW["objects"], *ROW["objects"]]
    for shares in ((0.0, 1.0), (0.3, 0.3), (None, None), (0.0, None)):
        checked(objects=two, occlusion=[{**EMPTY_OCCLUSION, "covered": share} for share in shares])
    for shares in ((-0.1, 0.5), (0.5, 1.1)):
        with pytest.raises(FormatError, match=rf"covered shares from {shares[0]:g} to {shares[1]:g}, where 0 to 1"):
            checked(objects=two, occlusion=[{**EMPTY_OCCLUSION, "covered": share} for share in shares])
    with pytest.raises(FormatError, match="occlusion speaks of other objects than there are"):
        checked(occlusion=[{**EMPTY_OCCLUSION, "covered": 0.5}] * 2)


def test_the_digest_of_labels_covers_key_positive_and_ignored_classes():
    row = {**ROW, "positives": [0, 2], "ignored": [1]}
    assert contract.labels_digest([row]) == hashlib.sha256(b'["000001",[0,2],[1]]').hexdigest()


def test_the_metadata_of_an_index():
    report = {"transcoded": 3}
    data = contract.encode_index(IMAGES, [ROW], SHARD, "plan", report)
    shard, plan = contract.decode_shard_metadata(data, "here")
    assert contract.decode_shard_report(data, "here") == report and plan == "plan"
    assert shard.index_sha256 == hashlib.sha256(data).hexdigest()
    assert shard.labels_sha256 == contract.labels_digest([ROW])
    mask = {name: ROW[name] for name in ("key", "offset", "length", "crc32", "width", "height")}
    data = contract.encode_index(KEEP_MASKS, [{**mask, "hole_fraction": 0.5, "source": "m"}], SHARD, "plan")
    shard, _ = contract.decode_shard_metadata(data, "here")
    assert (shard.index_sha256, shard.labels_sha256) == (hashlib.sha256(data).hexdigest(), "")
    odd = contract.encode_index(IMAGES, [ROW], SHARD, "plan", [1])  # type: ignore[arg-type]
    with pytest.raises(FormatError, match=r"here: not a sample index of this program \(its metadata is not a table"):
        contract.decode_shard_report(odd, "here")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"name": "x.zip"}, "shard name 'x.zip' is not the plain name of a .tar file"),
        ({"name": "../x.tar"}, "shard name '../x.tar' is not the plain name"),
        ({"num_samples": 0}, "num_samples is 0, not a number above 0"),
        ({"num_bytes": 0}, "num_bytes is 0, not a number above 0"),
        ({"sha256": ""}, "sha256 is '', not 64 hex digits"),
        ({"sha256": "g" * 99}, f"sha256 is '{'g' * 80}', not 64 hex digits"),
        ({"index_sha256": "0"}, "index_sha256 is '0', not 64 hex digits"),
        ({"labels_sha256": "x"}, "labels_sha256 is 'x', not 64 hex digits"),
        ({"index_sha256": "ab" * 32, "labels_sha256": "1"}, "labels_sha256 is '1', not 64 hex digits"),
    ],
)
def test_a_shard_that_cannot_be_is_named(changes: dict, says: str):
    with pytest.raises(FormatError) as refused:
        replace(SHARD, **changes)
    assert says in str(refused.value)


def test_target_is_a_plain_npy():
    target = np.load(io.BytesIO(contract.encode_target([0, 3], 5)), allow_pickle=False)
    assert target.dtype == np.uint8 and target.tolist() == [1, 0, 0, 1, 0]


@pytest.mark.parametrize("key", ["", "a.b", "a/b", "a b", "x" * 90, "line\nbreak"])
def test_bad_keys_are_refused(key):
    with pytest.raises(FormatError):
        contract.check_key(key)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("IMG0001", "IMG0001"),
        ("street/a.b c", "street_a_b_c"),
        ("größe", "größe"),
        ("a\tb", "a_b"),
        ("x" * 89, "x" * 89),
        ("x" * 90, "x" * 72 + "-" + hashlib.sha256(b"x" * 90).hexdigest()[:16]),
        ("ö" * 45, "ö" * 36 + "-" + hashlib.sha256("ö".encode() * 45).hexdigest()[:16]),
        ("caf\udce9", "caf_"),
    ],
)
def test_keys_of_names(name: str, key: str):
    assert contract.make_key(name) == key
    contract.check_key(key)


@pytest.mark.parametrize("name", ["", "a\0b"])
def test_names_that_no_file_has(name: str):
    with pytest.raises(FormatError, match="is not a file name"):
        contract.make_key(name)


@pytest.mark.parametrize("shape", [(5,), (2, 3), (0,), (2, 0, 3), ()])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_arrays_are_those_of_numpy(shape: tuple[int, ...], order: str, version: tuple[int, int]):
    values = np.asarray(np.arange(math.prod(shape), dtype=np.int16).reshape(shape), order=order)  # type: ignore[call-overload]
    file = io.BytesIO()
    np.lib.format.write_array(file, values, version)
    found = contract.decode_array(file.getvalue())
    assert found.dtype == np.int16 and found.tolist() == values.tolist()


def test_what_an_index_may_leave_out():
    """Readers that find a column rely on it."""
    assert not any(field.nullable for schema in contract.INDEX_SCHEMAS.values() for field in schema)
    assert not contract.OCCLUSION.nullable
    assert [field.name for field in contract.OBJECT_TYPE if field.nullable] == ["truncated", "occluded"]
    assert [field.name for field in contract.OCCLUSION_TYPE if field.nullable] == ["covered", "separated"]


def test_longest_key_fits():
    contract.check_key("x" * contract.MAX_KEY_BYTES)


def test_reader_files_count_samples():
    files = reader_files(MANIFEST)
    assert json.loads(files["sizes.json"]) == {SHARD.name: 2}
    assert json.loads(files["_info.json"])["splits"]["test"]["shard_lengths"] == [2]
