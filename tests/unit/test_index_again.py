"""Indexing tars a second time: what is kept of the first, and what is read again."""

from __future__ import annotations

import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from msldata.build import index_tars as module
from msldata.build.index_tars import (
    IndexTask,
    _contents_name,
    _index_tar,
    _kept_contents,
    _kept_shards,
    _survey,
    index_shards,
)
from msldata.build.other_tars import LabelRule
from msldata.contract.manifest import MANIFEST_NAME, Manifest, index_name
from msldata.errors import UserError
from msldata.sources.labels.reading import LabelReading
from msldata.storage import LocalStorage
from tests.unit.test_label_doubts import tar

NAME = "x-train-000000.tar"


@pytest.fixture
def folder(tmp_path) -> Path:
    """A tar of three samples, of cats and cows."""
    return tar(tmp_path / "tars", "cls", b"cat", b"cat;cow", b"cow")


@pytest.fixture
def read(monkeypatch) -> list[str]:
    """The tars that are read, in order."""
    names: list[str] = []
    real = module.contents_of
    monkeypatch.setattr(module, "contents_of", lambda task: names.append(task.name) or real(task))
    return names


def indexed(folder: Path, **options: Any) -> tuple[Manifest, list[tuple[int, int]]]:
    steps: list[tuple[int, int]] = []
    return index_shards(folder, num_workers=1, progress=lambda *step: steps.append(step), **options), steps


def test_what_a_tar_holds_is_kept_for_what_it_was_read_for_alone(folder, read):
    storage = LocalStorage(folder)
    (info,) = (info for info in storage.list_files() if info.name == NAME)
    task = IndexTask(storage, storage, NAME, info.size, info.version, LabelRule(".cls"), None, (), "plan", "fail")
    for _ in range(2):
        _survey((task, None))
    assert read == [NAME] and storage.exists(_contents_name(NAME))
    contents = _kept_contents(task)
    assert contents is not None and [sample["value"] for sample in contents.samples] == ["cat", "cat;cow", "cow"]
    for change in (
        {"num_bytes": info.size + 1},
        {"version": "later"},
        {"rule": LabelRule(".json", "labels")},
        {"on_error": "skip"},
    ):
        assert _kept_contents(replace(task, **change)) is None
    unknown = replace(task, version="")
    _survey((unknown, None))
    assert _kept_contents(unknown) is None, "where nothing tells one version from another"


def test_what_was_kept_goes_once_the_index_is_there(folder):
    """Not before: a call that is killed between them would read the tar anew."""
    deeds: list[tuple[str, str]] = []

    class Diary(LocalStorage):
        def put(self, name: str, data: bytes | Path) -> None:
            deeds.append(("put", name))
            super().put(name, data)

        def delete(self, name: str) -> None:
            deeds.append(("delete", name))
            super().delete(name)

    storage, reading = Diary(folder), LabelReading("names", ";")
    size = (folder / NAME).stat().st_size
    classes = ("cat", "cow")
    task = IndexTask(storage, storage, NAME, size, "1", LabelRule(".cls"), reading, classes, "plan", "fail")
    _index_tar(task)
    assert deeds == [("put", index_name(NAME)), ("delete", _contents_name(NAME))]
    (info,) = (info for info in storage.list_files() if info.name == NAME)
    assert list(_kept_shards(storage, [info], "plan")) == [NAME]
    assert not _kept_shards(storage, [replace(info, size=size + 1)], "plan")
    assert not _kept_shards(storage, [info], "another plan")


def test_an_index_is_made_once_unless_it_is_asked_for_anew(folder, read):
    first, steps = indexed(folder)
    assert steps == [(1, 1)] and read == [NAME]
    assert indexed(folder) == (first, []) and read == [NAME]
    assert indexed(folder, overwrite=True) == (first, [(1, 1)]) and read == 2 * [NAME]
    with pytest.raises(UserError, match=r"holds a finished dataset already \(x, train\); to index its tars anew"):
        indexed(folder, separator="none")
    with pytest.raises(UserError, match="holds a finished dataset already"):
        indexed(folder, on_error="skip")


def test_a_second_tar_is_counted_beside_the_first(folder, read):
    """Of two tars one has lost its index: it alone is read, and said to be the second of two."""
    with tarfile.open(folder / NAME) as one, tarfile.open(folder / NAME.replace("0.", "1."), "w") as other:
        for member in one:
            content = one.extractfile(member)
            member.name = f"more-{member.name}"
            other.addfile(member, content)
    first, steps = indexed(folder, labels_are="names", separator=";")
    assert steps == [(1, 2), (2, 2)]
    (folder / MANIFEST_NAME).unlink()
    (folder / index_name(NAME)).unlink()
    read.clear()
    assert indexed(folder, labels_are="names", separator=";") == (first, [(2, 2)]) and read == [NAME]


def test_a_folder_is_no_dataset_while_its_tars_are_indexed(folder, monkeypatch):
    indexed(folder)
    seen: list[bool] = []
    real = module._index_tar
    monkeypatch.setattr(module, "_index_tar", lambda task: seen.append((folder / MANIFEST_NAME).exists()) or real(task))
    indexed(folder, overwrite=True)
    assert seen == [False] and (folder / MANIFEST_NAME).exists()


def test_links_lead_to_these_tars(folder, tmp_path):
    """Whatever way the folder is called; a link to another tar is in the way."""
    (tmp_path / "called").symlink_to(folder)
    out = tmp_path / "out"
    first, _ = indexed(tmp_path / "called", out=out)
    assert (out / NAME).readlink() == folder / NAME
    assert indexed(folder, out=out, overwrite=True)[0].shards == first.shards
    (out / NAME).unlink()
    (out / NAME).symlink_to(tmp_path / "another.tar")
    with pytest.raises(UserError, match="this file is in the way of a link"):
        indexed(folder, out=out, overwrite=True)


def test_other_classes_and_other_tars_are_another_dataset(folder):
    """Classes in another order, or a tar that has become longer, and not one in a folder below."""
    indexed(folder, classes=("cat", "cow"))
    below = folder / "below"
    below.mkdir()
    (below / "y-train-000000.tar").write_bytes((folder / NAME).read_bytes())
    assert [shard.name for shard in indexed(folder, classes=("cat", "cow"))[0].shards] == [NAME]
    with pytest.raises(UserError, match="holds a finished dataset already"):
        indexed(folder, classes=("cow", "cat"))
    with open(folder / NAME, "ab") as file:
        file.write(bytes(10240))
    with pytest.raises(UserError, match="holds a finished dataset already"):
        indexed(folder, classes=("cat", "cow"))
