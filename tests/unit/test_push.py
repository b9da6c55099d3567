"""What is published for a run: its export, if that is of the weights that the run has now; and of a dataset."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from msldata.contract.manifest import Manifest
from msldata.contract.publish import write_manifest
from msldata.errors import UserError
from msldata.storage import LocalStorage
from msltrain.hub import push as module
from tests.smallshards import write_images

NOW, OLD = "a" * 64, "b" * 64


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, str]]]:
    """Kind and files of what was published."""
    found: list[tuple[str, dict[str, str]]] = []

    def publish(folder: Path, repo: str, kind: str, **_: object) -> str:
        found.append((kind, {file.name: file.read_text() for file in folder.iterdir()}))
        return f"https://hub/{repo}"

    def export_model(place: str, out: Path, *, formats: list[str]) -> None:
        export(out, NOW, "made now")

    monkeypatch.setattr(module, "require_hub_token", lambda what: None)
    monkeypatch.setattr(module, "publish", publish)
    monkeypatch.setattr(module, "export_model", export_model)
    monkeypatch.setattr(module, "open_checkpoint", lambda place: place)
    monkeypatch.setattr(module, "read_meta", lambda checkpoint: ({"weights_sha256": NOW}, b""))
    return found


def export(folder: Path, sha256: str | None, content: str) -> None:
    folder.mkdir(parents=True)
    about = {} if sha256 is None else {"weights_sha256": sha256}
    (folder / "config.json").write_text(json.dumps(about))
    (folder / "model.safetensors").write_text(content)


@pytest.mark.parametrize(
    ("sha256", "content"), [(NOW, "made before"), (OLD, "made now"), (None, "made now")], ids=["now", "old", "unknown"]
)
@pytest.mark.parametrize("below", ["", "checkpoints/best"])
def test_an_export_of_weights_that_the_run_had_before_is_not_published(tmp_path, published, sha256, content, below):
    (tmp_path / "run" / "checkpoints" / "best").mkdir(parents=True)
    export(tmp_path / "run" / "export", sha256, "made before")
    said: list[str] = []
    assert module.push(str(tmp_path / "run" / below), "me/model", note=said.append) == "https://hub/me/model"
    [(kind, files)] = published
    assert kind == "model" and files["model.safetensors"] == content
    assert ("from its export" in said[0]) == (content == "made before")


def test_an_export_that_is_named_is_published_whatever_it_is_of(tmp_path, published):
    export(tmp_path / "run" / "export", OLD, "made before")
    module.push(str(tmp_path / "run" / "export"), "me/model")
    assert [files["model.safetensors"] for _, files in published] == ["made before"]


@pytest.fixture
def uploaded(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What datasets were published with: the files below the folder, and which come last and which are replaced."""
    found: list[dict[str, Any]] = []

    def publish(folder: Path, repo: str, kind: str, *, private: bool, **patterns: Any) -> str:
        files = {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*.*")}
        found.append({"repo": repo, "kind": kind, "private": private, "files": files, **patterns})
        return "page"

    monkeypatch.setattr(module, "require_hub_token", lambda what: None)
    monkeypatch.setattr(module, "publish", publish)
    monkeypatch.setattr(module, "_published", lambda repo: {})
    return found


def split(folder: Path, name: str, **changes: Any) -> Manifest:
    """A split of a dataset, with a file beside it that is none of the dataset's."""
    manifest = replace(write_images(folder, [2, 3]), split=name, **changes)
    write_manifest(LocalStorage(folder), manifest)
    (folder / "notes.txt").write_text("mine")
    return manifest


def test_a_dataset_is_published_with_what_belongs_to_it_and_what_completes_it_last(tmp_path, uploaded):
    for name in ("train", "val"):
        split(tmp_path / "mine" / name, name)
    module.push(str(tmp_path / "mine"), "me/mine", private=True)
    [found] = uploaded
    assert (found["repo"], found["kind"], found["private"]) == ("me/mine", "dataset", True)
    files = ["_info.json", "croissant.json", "dataset.json", "sizes.json"]
    files += [f"small-train-00000{number}.{suffix}" for number in (0, 1) for suffix in ("parquet", "tar")]
    below = [f"{name}/{file}" for name in ("train", "val") for file in files]
    assert sorted(found["files"]) == sorted([*below, "README.md"])
    for file in below:
        assert found["files"][file] == (tmp_path / "mine" / file).read_bytes()
    assert sorted(found["last"]) == ["README.md", "train/dataset.json", "val/dataset.json"]
    assert sorted(found["replaces"]) == ["train/*", "val/*"]


def test_a_split_goes_beside_those_that_are_there_and_takes_its_own_place(tmp_path, uploaded, monkeypatch):
    """The card speaks of all; of a split that is published again, of what it is now."""
    there = {name: split(tmp_path / "old" / name, name) for name in ("train", "test")}
    monkeypatch.setattr(module, "_published", lambda repo: there)
    new = replace(write_images(tmp_path / "new", [7]), split="train")
    write_manifest(LocalStorage(tmp_path / "new"), new)
    said: list[str] = []
    module.push(str(tmp_path / "new"), "me/mine", note=said.append)
    [found] = uploaded
    assert said[0].startswith("a dataset, train, beside test; ")
    card = found["files"]["README.md"].decode()
    assert "| train | 7 | 1 |" in card and "| test | 5 | 2 |" in card and "| train | 5 |" not in card
    assert found["replaces"] == ["train/*"] and not any(name.startswith("test/") for name in found["files"])


@pytest.mark.parametrize("where", ["beside", "in the repository"])
def test_splits_of_other_classes_are_not_one_dataset(tmp_path, uploaded, monkeypatch, where):
    split(tmp_path / "mine" / "train", "train")
    other = split(
        tmp_path / ("mine" if where == "beside" else "elsewhere") / "val", "val", classes=("cat", "boat", "bird")
    )
    if where != "beside":
        monkeypatch.setattr(module, "_published", lambda repo: {"val": other})
    with pytest.raises(UserError, match="have other classes"):
        module.push(str(tmp_path / "mine"), "me/mine")
    assert uploaded == []


@pytest.mark.parametrize(
    ("name", "what", "message"),
    [
        ("small-train-000001.tar", "cut", r"4,608 bytes, dataset.json says [\d,]+; run `msl verify"),
        ("small-train-000001.tar", "gone", "missing; `msl verify .*` says what else is"),
        ("small-train-000000.parquet", "gone", "missing; `msl verify"),
        ("sizes.json", "gone", "missing; `msl verify"),
    ],
)
def test_what_is_not_whole_is_not_published(tmp_path, uploaded, name, what, message):
    split(tmp_path, "train")
    file = tmp_path / name
    file.unlink() if what == "gone" else file.write_bytes(file.read_bytes()[:4608])
    with pytest.raises((UserError, FileNotFoundError), match=message):
        module.push(str(tmp_path), "me/mine")
    assert uploaded == []
