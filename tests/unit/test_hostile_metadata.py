"""Manifests and sample indexes that nobody's build wrote: read with equal data, or refused in one message."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from msldata.contract.format import IMAGE_INDEX_SCHEMA, encode_index, read_index
from msldata.contract.manifest import FormatError, Manifest, read_manifest
from msldata.contract.parquet import UnreadableParquet, read_parquet
from msldata.contract.publish import write_manifest
from msldata.errors import StorageError, UserError
from msldata.storage import LocalStorage
from msltrain.stream.reading.cache import ShardCache
from msltrain.stream.samples.shardset import open_shard_set
from tests.smallshards import write_images

ODD = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=80), st.just("../x"), st.just("/etc/x.tar"),
    st.just([]), st.just({}), st.just("f" * 64), st.just("F" * 64), st.lists(st.integers(), max_size=3),
    st.sampled_from([-1, 0, 2**31, 2**63, 10**400, "\x1b[31m", "[/x]"]),
)  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hostile") / "images"
    write_images(folder, counts=(3, 2))
    return folder


def content_of(folder: Path) -> list:
    """All that training learns of a dataset, by name."""
    shards = open_shard_set(folder)
    numbers = np.repeat(np.arange(len(shards.counts)), shards.counts)
    rows = np.concatenate([np.arange(count) for count in shards.counts])
    _, found = shards.rows(numbers, rows)
    columns = [name for name in type(found).__slots__ if name != "num_classes"]
    return [getattr(found, name).tolist() for name in columns] + [shards.classes]


def places(content, at=()):
    """Every position in a nest of tables and lists."""
    yield at
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for name, value in items:
        yield from places(value, (*at, name))


def put(content, at, value):
    for name in at[:-1]:
        content = content[name]
    content[at[-1]] = value


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_changed_manifest_gives_equal_data_or_one_message(dataset, tmp_path_factory, data):
    content = json.loads((dataset / "dataset.json").read_bytes())
    wanted = content_of(dataset)
    for _ in range(data.draw(st.integers(1, 2))):
        at = data.draw(st.sampled_from(sorted(filter(None, places(content)), key=str)))
        put(content, at, data.draw(ODD))
        if not isinstance(content.get("shards"), list):
            break
    folder = tmp_path_factory.mktemp("changed")
    for file in dataset.iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "dataset.json").unlink()
    indent = data.draw(st.sampled_from([2, None]))  # as a build writes it, its shards are read in parts
    (folder / "dataset.json").write_text(json.dumps(content, indent=indent))
    try:
        found = content_of(folder)
    except (UserError, FileNotFoundError):
        return
    assert found == wanted


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_changed_index_is_refused_though_its_digest_is_right(dataset, tmp_path_factory, data):
    """As a forger writes it: every digest fits, so the values themselves must."""
    storage = LocalStorage(dataset)
    manifest = read_manifest(storage)
    shard = manifest.shards[0]
    rows = read_index(storage, manifest, shard).to_pylist()
    column = data.draw(st.sampled_from(["offset", "length", "width", "height", "positives", "ignored", "key"]))
    number = st.sampled_from([-(2**31), -1, 0, 1, 60, 40, 2**14, 2**15 - 1])
    value = data.draw(
        st.lists(number.map(lambda value: max(-(2**15), value)), max_size=2)
        if column in ("positives", "ignored")
        else st.text(max_size=5) if column == "key" else number
    )  # fmt: skip
    rows[0][column] = value
    folder = tmp_path_factory.mktemp("index")
    shutil.copytree(dataset, folder, dirs_exist_ok=True)
    table = pa.Table.from_pylist(rows, schema=IMAGE_INDEX_SCHEMA)
    before = pq.read_metadata(dataset / shard.index_name).metadata
    pq.write_table(table.replace_schema_metadata(before), folder / shard.index_name)
    digest = hashlib.sha256((folder / shard.index_name).read_bytes()).hexdigest()
    shards = (replace(shard, index_sha256=digest), *manifest.shards[1:])
    write_manifest(LocalStorage(folder), replace(manifest, shards=shards))
    try:
        content = content_of(folder)
    except UserError:
        return
    num_classes = len(manifest.classes)
    assert all(0 <= number < num_classes for name in ("positives", "ignored") for number in rows[0][name])
    assert 0 <= rows[0]["offset"] <= rows[0]["offset"] + rows[0]["length"] <= shard.num_bytes
    assert min(rows[0]["width"], rows[0]["height"]) >= 1 and content


def test_any_flipped_bit_of_an_index_is_found(dataset, tmp_path):
    """One in a compressed page can give other labels and no error at all."""
    storage = LocalStorage(dataset)
    manifest = read_manifest(storage)
    shard = manifest.shards[0]
    data = (dataset / shard.index_name).read_bytes()
    generator = np.random.default_rng(0)
    for position in generator.integers(0, len(data), 60):
        damaged = bytearray(data)
        damaged[position] ^= 1 << int(generator.integers(8))
        (tmp_path / shard.index_name).write_bytes(damaged)
        with pytest.raises(FormatError, match="damaged or of another build"):
            read_index(LocalStorage(tmp_path), manifest, shard)


@pytest.mark.parametrize("digest", ["../x", "/x", "F" * 64, "f" * 63, "f" * 64 + "\n", 5, None, ""])
def test_a_digest_never_leads_out_of_the_cache(dataset, tmp_path, digest):
    content = json.loads((dataset / "dataset.json").read_bytes())
    content["shards"][0]["sha256"] = digest
    victim = tmp_path / "x.tar"
    victim.write_bytes(b"keep me")
    with pytest.raises(FormatError, match="sha256"):
        Manifest.from_json(json.dumps(content).encode(), "dataset.json")
    ShardCache(tmp_path / "cache", 1 << 20)
    assert victim.read_bytes() == b"keep me"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content["shards"][0].update(num_samples=-1), "num_samples is -1"),
        (lambda content: content.update(num_samples=99), "says 99 samples, its shards hold 5"),
        (lambda content: content["shards"].append(content["shards"][0]), "is named twice"),
        (lambda content: content["shards"][0].update(name="../train.tar"), "not the plain name"),
        (lambda content: content["shards"][0].update(num_bytes=True), "num_bytes is True"),
        (lambda content: content["classes"].append(content["classes"][0]), "class is named twice"),
        (lambda content: content.update(split="../../x"), "not a plain name"),
        (lambda content: content["counts"].update(objects=-3), "count 'objects' is -3"),
        (lambda content: content["label_histogram"].update(cat={"positive": 6}), "6 labels of 5 samples"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(dataset, change, message):
    content = json.loads((dataset / "dataset.json").read_bytes())
    change(content)
    with pytest.raises(FormatError, match=rf"^x/dataset\.json: .*{message}"):
        Manifest.from_json(json.dumps(content).encode(), "x/dataset.json")


def test_a_dataset_of_schema_version_1_is_read(dataset, tmp_path):
    """As datasets were published before: no digests of indexes, a fingerprint over the shards alone."""
    shutil.copytree(dataset, tmp_path / "old")
    content = json.loads((dataset / "dataset.json").read_bytes())
    for shard in content["shards"]:
        del shard["index_sha256"], shard["labels_sha256"]
    digests = "\n".join(shard["sha256"] for shard in content["shards"])
    content |= {"schema_version": 1, "fingerprint": hashlib.sha256(digests.encode()).hexdigest()}
    (tmp_path / "old" / "dataset.json").write_text(json.dumps(content))
    assert content_of(tmp_path / "old") == content_of(dataset)


def test_the_fingerprint_covers_what_the_samples_show(dataset):
    manifest = read_manifest(LocalStorage(dataset))
    first, *others = manifest.shards
    relabelled = (replace(first, labels_sha256="0" * 64), *others)
    changed = [
        replace(manifest, classes=manifest.classes[::-1]),
        replace(manifest, split="other"),
        replace(manifest, shards=relabelled),
    ]
    assert len({manifest.fingerprint, *(other.fingerprint for other in changed)}) == 4


def test_a_parquet_bomb_is_refused_before_it_unpacks():
    """One long text, ten thousand times: some kilobytes that would take ten gigabytes."""
    text = pa.DictionaryArray.from_arrays(pa.array(np.zeros(10_000, np.int32)), pa.array(["x" * 1_000_000]))
    sink = io.BytesIO()
    pq.write_table(pa.table({"key": text}), sink, compression="zstd", store_schema=False)
    assert len(sink.getvalue()) < 100_000
    before = pa.total_allocated_bytes()
    with pytest.raises(UnreadableParquet, match="unpacks to more than"):
        read_parquet(sink.getvalue())
    assert pa.total_allocated_bytes() - before < 1 << 20
    assert read_parquet(sink.getvalue(), ()).num_rows == 10_000


def test_a_table_is_weighed_as_a_whole_and_not_by_its_last_part(monkeypatch):
    """What 512 rows take is read together, and stays below the limit here; all together they take eight times that."""
    text = pa.array(["x" * 100] * 4096)
    sink = io.BytesIO()
    pq.write_table(pa.table({"key": text}), sink)  # stored once
    monkeypatch.setattr("msldata.contract.parquet._ALLOWED_RATIO", 0)
    for limit, is_allowed in ((512 * 104 + 100, False), (4 * 512 * 104, False), (9 * 512 * 104, True)):
        monkeypatch.setattr("msldata.contract.parquet._ALLOWED_BYTES", limit)
        if is_allowed:
            assert read_parquet(sink.getvalue()).num_rows == 4096
        else:
            with pytest.raises(UnreadableParquet, match="unpacks to more than"):
                read_parquet(sink.getvalue())


def test_a_long_list_in_one_row_is_refused_before_it_unpacks(monkeypatch):
    monkeypatch.setattr("msldata.contract.parquet._ALLOWED_BYTES", 1 << 20)
    lists = pa.ListArray.from_arrays(pa.array([0, 4_000_000], pa.int32()), pa.array(np.zeros(4_000_000, np.int8)))
    sink = io.BytesIO()
    pq.write_table(pa.table({"positives": lists}), sink, compression="zstd")
    with pytest.raises(UnreadableParquet, match="unpacks to more than"):
        read_parquet(sink.getvalue())


def test_a_device_is_no_file(tmp_path):
    (tmp_path / "dataset.json").symlink_to("/dev/zero")
    with pytest.raises(StorageError, match="a pipe, a socket or a device, not a file"):
        LocalStorage(tmp_path).read("dataset.json")


def test_index_of_other_types_is_refused(dataset, tmp_path):
    storage = LocalStorage(dataset)
    manifest = read_manifest(storage)
    shard = replace(manifest.shards[0], index_sha256="")
    rows = read_index(storage, manifest, shard).to_pylist()
    data = encode_index("images", rows, shard, manifest.plan)
    table = pq.read_table(io.BytesIO(data))
    table = table.set_column(0, "key", pa.array(range(len(rows))))
    pq.write_table(table, tmp_path / shard.index_name)
    with pytest.raises(FormatError, match="column key is int64, not string"):
        read_index(LocalStorage(tmp_path), manifest, shard)


@pytest.mark.parametrize(
    ("table", "odd"),
    [
        ("provenance", {"command": 5}),
        ("provenance", {"command": "msl build-shards"}),
        ("provenance", {"command": ["index", 3]}),
        ("options", {"labels_from": ["cls"]}),
        ("options", {"reading": "as it is"}),
        ("options", {"threshold": "half"}),
        ("options", {"hole_fraction_above": 2}),
    ],
)
def test_what_readers_take_from_a_free_table_is_of_its_kind(dataset, table, odd):
    manifest = read_manifest(dataset)
    with pytest.raises(FormatError, match=rf"{table}\.{next(iter(odd))} is .*, not a|not text"):
        replace(manifest, **{table: odd})
