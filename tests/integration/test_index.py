"""`msl index`: tars that other programs wrote get a sample index and a manifest, and are trained on as they are."""

from __future__ import annotations

import gzip
import io
import json
import shlex
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from typer.testing import CliRunner

from msldata.build import index_tars as module
from msldata.build.index_tars import index_shards
from msldata.build.shards import build_shards, plan_build
from msldata.contract.manifest import MANIFEST_NAME, read_manifest
from msldata.errors import BadInputError, UserError
from msldata.inspect.describe import describe
from msldata.inspect.preview import write_preview
from msldata.inspect.verify import verify
from msldata.sources.kinds import open_source
from msldata.storage import LocalStorage, open_storage
from msltrain.__main__ import app
from msltrain.stream.config import StreamConfig
from msltrain.stream.loader import Loader
from msltrain.stream.samples.shardset import open_shard_set
from tests.smallshards import photo
from tests.tinydata import contents, make_voc

CLASSES = ("bird", "boat", "cat")
NUM = 7


def targets() -> np.ndarray:
    """uint8 (NUM, 3), every sample with another pattern."""
    return np.array([[number >> bit & 1 for bit in range(3)] for number in range(1, NUM + 1)], np.uint8)


def write_shards(folder: Path, fields, per_shard: int = 3) -> Path:
    """Tars of ``webdataset.ShardWriter``; ``fields`` gives the members of a sample beside its image."""
    folder.mkdir(parents=True)
    with webdataset.ShardWriter(str(folder / "part-%05d.tar"), maxcount=per_shard, verbose=0) as writer:
        for number in range(NUM):
            writer.write({"__key__": f"k{number}", "jpg": photo(number), **fields(number)})
    return folder


def names_of(number: int) -> list[str]:
    return [CLASSES[index] for index in np.flatnonzero(targets()[number])]


KINDS = {
    "target.npy": (lambda number: {"target.npy": targets()[number]}, "target.npy"),
    "signed npy": (lambda number: {"vec.npy": targets()[number].astype(np.int64)}, "vec.npy"),
    "json names": (lambda number: {"json": {"labels": names_of(number)}}, "json:labels"),
    "json numbers": (
        lambda number: {"json": {"ids": np.flatnonzero(targets()[number]).tolist(), "url": "http://x"}},
        "json:ids",
    ),
}


def write_tar(path: Path, members: dict[str, bytes], form: int = tarfile.USTAR_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def index(folder: Path, **options):
    return index_shards(LocalStorage(folder), num_workers=1, **options)


def loaded(folder: str | Path) -> dict[str, np.ndarray]:
    """Target by key, as training gets them."""
    found: dict[str, np.ndarray] = {}
    config = StreamConfig(image_size=32, batch_size=2, num_threads=1, drop_last=False)
    with Loader(open_shard_set(folder), config, device="cpu", training=False) as loader:
        for batch in loader:
            found |= dict(zip(batch.keys, batch.target_BK.numpy()))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_tars_of_shardwriter_are_trained_on(tmp_path, kind):
    fields, rule = KINDS[kind]
    folder = write_shards(tmp_path / "tars", fields)
    before = contents(folder)
    manifest = index(folder, classes=CLASSES, labels_from="auto" if rule in ("target.npy", "json:labels") else rule)
    assert manifest.options["labels_from"] == rule
    assert (manifest.num_samples, len(manifest.shards), manifest.classes) == (NUM, 3, CLASSES)
    after = contents(folder)
    assert {name: after[name] for name in before} == before  # the tars are as they were
    found = loaded(folder)
    assert sorted(found) == [f"k{number}" for number in range(NUM)]
    assert all((found[f"k{number}"] == targets()[number]).all() for number in range(NUM))
    assert not verify(LocalStorage(folder), num_workers=1).findings
    about = describe(LocalStorage(folder))
    assert [label.positive for label in about.labels] == targets().sum(0).tolist()
    assert write_preview(LocalStorage(folder), tmp_path / "sheet.png") == NUM


@pytest.mark.parametrize("value", [lambda n: n % 3, lambda n: CLASSES[n % 3]], ids=["number", "name"])
def test_one_class_per_sample(tmp_path, value):
    folder = write_shards(tmp_path / "tars", lambda number: {"cls": str(value(number)).encode()})
    manifest = index(folder)
    assert manifest.classes == (CLASSES if value(0) == "bird" else ("0", "1", "2"))
    assert {key: row.tolist().index(1) for key, row in loaded(folder).items()} == {f"k{n}": n % 3 for n in range(NUM)}


def test_minus_one_is_ignored_and_numbers_name_the_classes(tmp_path):
    target = np.array([1, 0, -1, 0], np.int8)
    buffer = io.BytesIO()
    np.save(buffer, target)
    write_tar(tmp_path / "a.tar", {"x.jpg": photo(1), "x.target.npy": buffer.getvalue()})
    manifest = index(tmp_path, name="mine", split="test")
    assert (manifest.dataset, manifest.split, manifest.classes) == ("mine", "test", ("0", "1", "2", "3"))
    row = pq.read_table(tmp_path / "a.parquet").to_pylist()[0]
    assert (row["positives"], row["ignored"]) == ([0], [2])


def test_what_another_program_calls_ignored_is_no_label(tmp_path):
    """Our own tars have ``ignored`` beside ``labels``; beside another field it may be anything."""
    content = json.dumps({"tags": ["cat"], "ignored": ["boat"]}).encode()
    write_tar(tmp_path / "a.tar", {"x.jpg": photo(1), "x.json": content})
    index(tmp_path, classes=CLASSES, labels_from="json:tags")
    assert found_labels(tmp_path) == [([2], [])]


def test_our_own_tars_get_their_lost_index_back(tmp_path):
    out = LocalStorage(tmp_path / "voc")
    plan = plan_build(open_source("voc2007", make_voc(tmp_path / "raw", 5), "test"), samples_per_shard=2)
    built = build_shards(plan, out, num_workers=1)
    tables = {info.index_name: pq.read_table(tmp_path / "voc" / info.index_name) for info in built.shards}
    for name in (*tables, MANIFEST_NAME):
        out.delete(name)
    # By the JSON, which alone knows the ignored classes.
    manifest = index(tmp_path / "voc", classes=built.classes, labels_from="json:labels")
    assert (manifest.dataset, manifest.split, manifest.shards) == ("voc2007", "test", built.shards)
    assert manifest.label_histogram == built.label_histogram and manifest.fingerprint == built.fingerprint
    for name, table in tables.items():
        assert pq.read_table(tmp_path / "voc" / name).equals(table)
    assert not verify(out, num_workers=1).findings


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_any_kind_of_tar_folders_and_long_names(tmp_path, form):
    key = "deep/" * 25 + "näme" * 5 if form != tarfile.USTAR_FORMAT else "deep/er/name"
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=form) as tar:
        folder = tarfile.TarInfo("deep")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, content in {f"{key}.JPG": photo(3), f"{key}.cls": b"0", "deep/README": b"no sample"}.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    index(tmp_path, classes=("bird",))
    row = pq.read_table(tmp_path / "a.parquet").to_pylist()[0]
    assert row["key"] == key
    assert path.read_bytes()[row["offset"] :][: row["length"]] == photo(3)
    assert not verify(LocalStorage(tmp_path), num_workers=1).findings


def test_beside_img2datasets_own_files(tmp_path):
    folder = write_shards(tmp_path / "tars", KINDS["json names"][0], per_shard=10)
    (folder / "part-00000.tar").rename(folder / "00000.tar")
    pq.write_table(pq.read_table(io.BytesIO(_parquet())), folder / "00000.parquet")
    (folder / "00000_stats.json").write_text("{}")
    before = contents(folder)
    with pytest.raises(UserError, match=r"another program's file is where the sample index of 00000\.tar goes.*--out"):
        index(folder)
    assert contents(folder) == before
    out = tmp_path / "indexed"
    manifest = index(folder, out=LocalStorage(out))
    assert contents(folder) == before
    assert (out / "00000.tar").is_symlink()
    assert len(loaded(out)) == NUM and not verify(LocalStorage(out), num_workers=1).findings
    assert index(folder, out=LocalStorage(out)) == manifest


def _parquet() -> bytes:
    import pyarrow as pa

    buffer = io.BytesIO()
    pq.write_table(pa.table({"url": ["http://x"]}), buffer)
    return buffer.getvalue()


def tars_read(monkeypatch) -> list[str]:
    """The tars that are read from now on, in order."""
    read: list[str] = []
    read_tar = module.read_tar
    monkeypatch.setattr(
        module, "read_tar", lambda path, *rest, **more: read.append(path.name) or read_tar(path, *rest, **more)
    )
    return read


def test_each_tar_is_read_once(tmp_path, monkeypatch):
    folder = write_shards(tmp_path / "tars", KINDS["json names"][0])
    read = tars_read(monkeypatch)
    calls = []
    index(folder, progress=lambda *call: calls.append(call))
    assert read == [f"part-{number:05d}.tar" for number in range(3)]
    assert calls == [(1, 3), (2, 3), (3, 3)]
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_after_a_doubt_only_a_mended_tar_is_read_again(tmp_path, monkeypatch):
    folder = write_shards(tmp_path / "tars", lambda number: {"json": {"labels": [number % 2, 1 - number % 2]}})
    read = tars_read(monkeypatch)
    with pytest.raises(UserError, match="--labels-are"):
        index(folder)
    assert len(read) == 3
    path = folder / "part-00001.tar"
    mended = path.read_bytes().replace(b"[1, 0]", b"[1, 1]")
    assert mended != path.read_bytes()
    path.write_bytes(mended)  # of the same size
    manifest = index(folder, labels_are="multi-hot")
    assert read[3:] == ["part-00001.tar"]
    assert manifest.label_histogram["1"]["positive"] == 6
    assert not verify(LocalStorage(folder), num_workers=1).findings


def test_a_stopped_call_goes_on_and_a_finished_one_does_nothing(tmp_path, monkeypatch):
    folder = write_shards(tmp_path / "tars", KINDS["json names"][0])
    whole = index(folder)
    wanted = contents(folder)
    (folder / MANIFEST_NAME).unlink()
    (folder / "part-00001.parquet").unlink()
    read = tars_read(monkeypatch)
    assert index(folder) == whole
    assert read == ["part-00001.tar"] and contents(folder) == wanted
    assert index(folder) == whole and len(read) == 1
    with pytest.raises(UserError, match=r"holds a finished dataset already .*--overwrite"):
        index(folder, classes=CLASSES[::-1])
    assert index(folder, classes=CLASSES[::-1], overwrite=True).classes == CLASSES[::-1]


def test_workers_make_no_difference(tmp_path):
    one, two = (write_shards(tmp_path / name / "set", KINDS["json names"][0]) for name in "ab")
    for path in one.iterdir():  # ShardWriter writes the time of day
        (two / path.name).write_bytes(path.read_bytes())
    index_shards(LocalStorage(one), num_workers=1)
    index_shards(LocalStorage(two), num_workers=2)
    assert contents(one) == contents(two)


def test_in_a_bucket(s3, tmp_path):
    folder = write_shards(tmp_path / "tars", KINDS["json names"][0])
    place = open_storage("s3://bucket/foreign/train")
    for name, data in contents(folder).items():
        place.put(name, data)
    manifest = index_shards(place, num_workers=1)
    local = index(folder, name="train")
    assert manifest.shards == local.shards
    assert {key: row.tolist() for key, row in loaded(place.url).items()} == {
        f"k{number}": targets()[number].tolist() for number in range(NUM)
    }
    assert not verify(place, num_workers=1).findings


def bad_tar(folder: Path, change) -> None:
    members = {}
    for number in range(3):
        members |= {f"k{number}.jpg": photo(number), f"k{number}.cls": b"0"}
    write_tar(folder / "a.tar", dict(sorted((change(members) or members).items())))


def without(name: str):
    return lambda members: {key: value for key, value in members.items() if key != name}


def replaced(**entries: bytes):
    return lambda members: members | {name.replace("__", "."): value for name, value in entries.items()}


def pickled() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"evil": 1}], dtype=object), allow_pickle=True)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("change", "rule", "reason"),
    [
        (without("k1.cls"), "auto", "no member .cls with its labels"),
        (without("k1.jpg"), "auto", "no members are images"),
        (replaced(k1__jpg=b"\x89PNG\r\n\x1a\n"), "auto", "not an image"),
        (replaced(k1__jpg=photo(1)[:-40]), "auto", "truncated JPEG"),
        (replaced(k1__jpg=photo(1, mode="CMYK")[:-200] + b"\xff\xd9"), "auto", "truncated JPEG"),
        (replaced(k1__cls=b"9"), "auto", "unknown class 9; there are 1"),
        (replaced(k1__cls=b"-1"), "auto", "class index -1 is not from 0 to 32767"),
        (replaced(k0__npy=pickled(), k1__npy=pickled(), k2__npy=pickled()), "npy", "without pickled objects"),
    ],
)
def test_bad_samples_stop_it_or_are_left_out(tmp_path, change, rule, reason):
    bad_tar(tmp_path, change)
    with pytest.raises(BadInputError, match=r"a\.tar, sample k[01]: ") as caught:
        index(tmp_path, classes=("bird",), labels_from=rule)
    assert reason in caught.value.reason and "--on-error skip" in str(caught.value)
    assert not (tmp_path / MANIFEST_NAME).exists()
    if rule != "npy":
        manifest = index(tmp_path, classes=("bird",), on_error="skip")
        assert (manifest.num_samples, manifest.counts["quarantined"]) == (2, 1)
        assert reason in json.loads((tmp_path / "quarantine.jsonl").read_text())["reason"]
        assert sorted(loaded(tmp_path)) == ["k0", "k2"] and not verify(LocalStorage(tmp_path), num_workers=1).findings


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: data[:2000], "cut off|unexpected end"),
        (lambda data: data.rstrip(b"\0"), "end of the tar.*0 bytes"),
        (lambda data: data.replace(b"k1.jpg", b"k1.jpX", 1), "end of the tar.*other bytes"),
        (lambda data: b"", "the tar is empty"),
        (lambda data: b"<html>" * 400, "plain tar"),
    ],
)
def test_a_damaged_tar_is_refused(tmp_path, damage, reason):
    bad_tar(tmp_path, lambda members: None)
    path = tmp_path / "a.tar"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BadInputError, match=reason):
        index(tmp_path, classes=("bird",))
    assert not (tmp_path / MANIFEST_NAME).exists()


def test_an_unusable_label_of_the_first_tar_is_named_before_what_the_others_leave_open(tmp_path):
    for name, value in (("a", True), ("b", [])):
        content = json.dumps({"labels": value}).encode()
        write_tar(tmp_path / f"{name}.tar", {f"{name}.jpg": photo(1), f"{name}.json": content})
    with pytest.raises(BadInputError, match=r"a\.tar, sample a: labels are True"):
        index(tmp_path)


def test_a_sample_that_lies_in_two_places(tmp_path):
    write_tar(tmp_path / "a.tar", {"a.jpg": photo(1), "b.jpg": photo(2), "a.cls": b"0", "b.cls": b"0"})
    with pytest.raises(BadInputError, match=r"the members of sample a do not lie side by side; .* tar --sort=name"):
        index(tmp_path, classes=("bird",), labels_from="cls", on_error="skip")


def test_one_key_in_two_tars(tmp_path):
    for name in ("a.tar", "b.tar"):
        write_tar(tmp_path / name, {"k.jpg": photo(1), "k.cls": b"0"})
    with pytest.raises(UserError, match=r"sample k is in a\.tar and in b\.tar; keys must be unique"):
        index(tmp_path)
    assert not (tmp_path / MANIFEST_NAME).exists()


@pytest.mark.parametrize("name", ["../0", "/0", "a/../../0"])
def test_a_key_that_leads_outside_is_refused(tmp_path, name):
    write_tar(tmp_path / "t" / "a.tar", {f"{name}.jpg": photo(0), f"{name}.cls": b"0"})
    with pytest.raises(BadInputError, match="leads outside"):
        index(tmp_path / "t")


@pytest.mark.parametrize("label", ["-1", "32768", "99999999"])
def test_a_class_index_that_cannot_be_is_named(tmp_path, label):
    write_tar(tmp_path / "t" / "a.tar", {"0.jpg": photo(0), "0.cls": label.encode()})
    with pytest.raises(UserError, match=rf"a.tar, sample 0: class index {label} is not from 0 to 32767"):
        index(tmp_path / "t", labels_are="indices")
    if label != "-1":
        with pytest.raises(UserError, match=r"numbers up to .* of which only 1 occur.*--labels-are names"):
            index(tmp_path / "t")


def labelled(folder: Path, suffix: str, *values: object, **more: bytes) -> Path:
    """A tar of one sample a value; text as it is, arrays as ``.npy``, the rest as JSON with the field labels."""
    members: dict[str, bytes] = {}
    for number, value in enumerate(values):
        members[f"k{number}.jpg"] = photo(number)
        buffer = io.BytesIO()
        if isinstance(value, np.ndarray):
            np.save(buffer, value)
        else:
            text = value if suffix == "cls" else json.dumps({"labels": value})
            buffer.write(str(text).encode())
        members[f"k{number}.{suffix}"] = buffer.getvalue()
        members |= {f"k{number}.{name}": content for name, content in more.items()}
    return write_tar(folder / "a.tar", members).parent


def found_labels(folder: Path) -> list[tuple[list[int], list[int]]]:
    return [(row["positives"], row["ignored"]) for row in pq.read_table(folder / "a.parquet").to_pylist()]


@pytest.mark.parametrize(
    ("suffix", "values", "positives", "reading"),
    [
        ("json", [[0, 1, 0, 0, 1], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]], [[1, 4], [0], []], "multi-hot vectors of 5"),
        ("json", [["0", "1", "0"], ["1", "1", "0"]], [[1], [0, 1]], "multi-hot vectors of 3"),
        ("json", [[True, False], [False, True]], [[0], [1]], "multi-hot vectors of 2"),
        ("json", [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]], [[0, 2], []], "multi-hot vectors of 3"),
        ("json", [[0, 3], [1], []], [[0, 3], [1], []], "class indices"),
        ("json", [2, 0], [[2], [0]], "class indices"),
        ("cls", ["[0, 3]", "[1]"], [[0, 3], [1]], "class indices"),
        ("cls", ["0,1,0", "1,1,1"], [[1], [0, 1, 2]], "multi-hot vectors of 3"),
        ("cls", ["0 3", "2"], [[0, 3], [2]], "class indices"),
        ("cls", ["1.0", "0.0"], [[1], [0]], "class indices"),
        ("cls", ['["cat", "dog"]', "['cat']"], [[0, 1], [0]], "class names"),
        ("cls", ["cat;dog", "bird"], [[1, 2], [0]], "class names, separated by ';'"),
        ("npy", [np.array([0, 2]), np.array([1])], [[0, 2], [1]], "class indices"),
        ("npy", [np.array(1), np.array(0)], [[1], [0]], "class indices"),
        ("json", [[1, -1, -1], [-1, 1, 1]], [[0], [1, 2]], "-1 negative"),
        ("json", [[1, -1, 0, 0], [0, 1, 1, 0]], [[0], [1, 2]], "-1 ignored"),
    ],
)
def test_all_labels_together_say_how_they_are_read(tmp_path, suffix, values, positives, reading):
    folder = labelled(tmp_path / "t", suffix, *values)
    manifest = index(folder, labels_from="npy" if suffix == "npy" else "auto")
    assert [found for found, _ in found_labels(folder)] == positives
    assert reading in manifest.provenance["labels"]
    assert not verify(LocalStorage(folder), num_workers=1).findings


@pytest.mark.parametrize(
    ("suffix", "values", "doubt", "options", "positives"),
    [
        ("cls", ["cat,dog", "cat"], "--separator ,", {"separator": ","}, [[0, 1], [0]]),
        ("cls", ["cat,dog", "cat"], "--separator none", {"separator": "none"}, [[1], [0]]),
        ("json", [[0, 1], [1, 0]], "--labels-are indices", {"labels_are": "multi-hot"}, [[1], [0]]),
        ("json", [[0, 1], [1, 0]], "--labels-are multi-hot", {"labels_are": "indices"}, [[0, 1], [0, 1]]),
        ("json", [[0, 1, 1], [2, 1]], "--labels-are indices", {"labels_are": "indices"}, [[0, 1], [1, 2]]),
        ("json", [["cat"], [3]], "--labels-are names", {"labels_are": "names"}, [[1], [0]]),
        ("json", [[1, -1, -1, 0], [-1, -1, 1, 0]], "--labels-are signed", {"labels_are": "signed"}, [[0], [2]]),
        ("json", [[5, 5, 0], [0, 7, 7]], "as counts do", {"labels_are": "indices"}, [[0, 5], [0, 7]]),
    ],
)
def test_a_doubt_shows_two_samples_and_the_option(tmp_path, suffix, values, doubt, options, positives):
    folder = labelled(tmp_path / "t", suffix, *values)
    with pytest.raises(UserError) as caught:
        index(folder)
    message = str(caught.value)
    assert (
        doubt in message and "a.tar, sample k0 is labelled " in message and "a.tar, sample k1 is labelled " in message
    )
    assert not (folder / MANIFEST_NAME).exists()
    index(folder, **options)
    assert [found for found, _ in found_labels(folder)] == positives


def test_two_places_of_labels_are_a_doubt(tmp_path):
    folder = labelled(tmp_path / "t", "json", ["cat", "dog"], ["dog"], cls=b"cat")
    with pytest.raises(UserError, match=r"labels in cls and in json:labels.*--labels-from cls or --labels-from json:"):
        index(folder)
    assert index(folder, labels_from="json:labels").classes == ("cat", "dog")


def test_vectors_must_be_as_long_as_the_list_of_classes(tmp_path):
    folder = labelled(tmp_path / "t", "json", [0, 1, 0, 1], [1, 0, 0, 0])
    with pytest.raises(UserError, match=r"\[0, 1, 0, 1\], which would be a vector of 4 classes, and there are 3"):
        index(folder, classes=CLASSES)


def test_a_score_is_no_label(tmp_path):
    folder = labelled(tmp_path / "t", "json", [0.2, 0.8], [1.0, 0.0])
    with pytest.raises(BadInputError, match=r"sample k0: labels hold 0\.2; a score is not a label"):
        index(folder, classes=CLASSES[:2])


def test_the_command_says_the_reading_and_the_classes(tmp_path):
    folder = labelled(tmp_path / "t", "json", [0, 1, 1], [0, 1, 0], [0, 0, 0])
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    run = CliRunner().invoke(app, ["index", str(folder), "--classes", str(tmp_path / "classes.txt"), "--workers", "1"])
    output = " ".join(run.output.split())
    assert run.exit_code == 0 and "labels of json:labels, read as multi-hot vectors of 3" in output, output
    assert "3 classes: boat 2, cat 1; in no image: bird" in output and "1 without any class" in output


def test_a_compressed_tar_is_called_so(tmp_path):
    write_tar(tmp_path / "t" / "a.tar", {"0.jpg": photo(0), "0.cls": b"0"})
    path = tmp_path / "t" / "a.tar"
    path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(BadInputError, match="compressed one, which must be unpacked"):
        index(tmp_path / "t")


def test_a_link_in_a_tar_is_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        info = tarfile.TarInfo("k.jpg")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(BadInputError, match=r"expected a regular file, found k.jpg"):
        index(tmp_path, labels_from="cls")


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"k.jpg": photo(1)}, r"sample k: no labels: neither \.target\.npy nor \.cls nor a JSON with 'labels'"),
        ({"k.jpg": photo(1), "k.json": b'{"url": 1, "caption": "x"}'}, "has the fields url, caption: name one with"),
        ({"k.jpg": photo(1), "k.txt": b"a bird"}, "list the labels in a table and use `msl build-shards"),
    ],
)
def test_images_without_labels_are_refused(tmp_path, members, reason):
    write_tar(tmp_path / "a.tar", members)
    with pytest.raises(UserError, match=reason):
        index(tmp_path)


def test_mistakes_of_the_user(tmp_path):
    with pytest.raises(UserError, match=r"no .tar files here"):
        index(tmp_path)
    (tmp_path / "a.tar.gz").write_bytes(b"x")
    with pytest.raises(UserError, match=r"a\.tar\.gz is compressed"):
        index(tmp_path)
    with pytest.raises(UserError, match="a web address can neither be listed nor written"):
        index_shards(open_storage("http://127.0.0.1:1/x"))
    bad_tar(tmp_path, lambda members: None)
    for text in ("json", "json:", "pickle", "cls:x", "../npy"):
        with pytest.raises(UserError, match=r"expected auto, target.npy, cls or json:FIELD"):
            index(tmp_path, labels_from=text)
    with pytest.raises(UserError, match="becomes part of file names"):
        index(tmp_path, name="a/b")


def verify_again(folder: Path) -> list:
    """What is left to find after the command that `msl verify` names: the tar is taken as it is now."""
    command = verify(LocalStorage(folder), num_workers=1).next_step.partition("msl ")[2]
    assert command.endswith(" --overwrite")
    run = CliRunner().invoke(app, [*shlex.split(command), "--workers", "1"])
    assert run.exit_code == 0, run.output
    return [
        finding for finding in verify(LocalStorage(folder), num_workers=1).findings if "decoding" not in finding.what
    ]


def test_damage_after_indexing_is_found(tmp_path):
    folder = write_shards(tmp_path / "tars", KINDS["json names"][0], per_shard=10)
    assert CliRunner().invoke(app, ["index", str(folder), "--workers", "1"]).exit_code == 0
    path = folder / "part-00000.tar"
    data = bytearray(path.read_bytes())
    row = pq.read_table(folder / "part-00000.parquet").to_pylist()[2]
    data[row["offset"] + row["length"] // 2] ^= 0xFF
    path.write_bytes(data)
    found = {finding.what for finding in verify(LocalStorage(folder), num_workers=1).findings}
    assert {"sha256", "crc32 in the index"} <= found
    assert not verify_again(folder)
    path.unlink()
    result = verify(LocalStorage(folder), num_workers=1)
    assert "no such file" in {finding.found for finding in result.findings}
    assert f"msl index {folder} --overwrite" in result.next_step


def test_an_image_that_was_damaged_before_is_only_seen_by_decoding(tmp_path, monkeypatch):
    cut = photo(1)[:-40] + b"\xff\xd9"
    bad_tar(tmp_path, replaced(k1__jpg=cut))
    with pytest.raises(BadInputError, match="sample k1: "):
        index(tmp_path, classes=("bird",))
    bad_tar(tmp_path, without(""))
    index(tmp_path, classes=("bird",))
    bad_tar(tmp_path, replaced(k1__jpg=cut.ljust(len(photo(1)), b"\0")))
    for decode in (True, False):
        found = verify(LocalStorage(tmp_path), num_workers=1, decode=decode).findings
        assert {"sha256"} < {finding.what for finding in found}
        assert any(finding.key == "k1" and finding.what == "the sample" for finding in found) == decode


def test_the_command(tmp_path):
    folder = write_shards(tmp_path / "tars", KINDS["target.npy"][0])
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    run = CliRunner().invoke(app, ["index", str(folder), "--classes", str(tmp_path / "classes.txt"), "--workers", "1"])
    assert run.exit_code == 0 and "7 samples, 3 shards" in run.output.replace("\n", " "), run.output
    assert read_manifest(LocalStorage(folder)).classes == CLASSES
    assert CliRunner().invoke(app, ["info", str(folder)]).exit_code == 0
