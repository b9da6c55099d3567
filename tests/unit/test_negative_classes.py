"""A class that says that nothing is there: offered to be none, and none where that is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from msldata.contract.format import read_index
from msldata.contract.manifest import read_manifest
from msldata.sources.kinds import open_source
from msldata.sources.labels.values import maybe_negative
from msldata.storage import LocalStorage
from msltrain.__main__ import app
from tests.tinydata import jpeg


def photographs(root: Path, kind: str) -> Path:
    """Eight photographs of each of three classes, one of which is called nichts."""
    rows = ["image,labels"]
    for n in range(24):
        name = ("Lok", "nichts", "Wagen")[n % 3]
        path = root / (f"{name}/{n}.jpg" if kind == "folders" else f"{n}.jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(n))
        rows.append(f"{n}.jpg,{name}")
    if kind == "table":
        (root / "labels.csv").write_text("\n".join(rows))
    return root


def build(root: Path, *arguments: str, code: int = 0) -> str:
    command = ["build-shards", str(root), "--name", "mine", "--out", str(root.parent / "out"), "--workers", "1"]
    result = CliRunner().invoke(app, [*command, *arguments], env={"COLUMNS": "500"})
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


@pytest.mark.parametrize("kind", ["folders", "table"])
def test_a_class_called_nothing_is_offered_to_be_none(tmp_path: Path, kind: str):
    root = photographs(tmp_path / "photos", kind)
    said = build(root, "--split", "all")
    assert said.count("a class is called 'nichts': if that says") == 1 and "add --negative nichts, " in said
    assert "3 classes: " in said
    said = build(root, "--split", "all", "--negative", "nichts", "--overwrite", "--yes")
    assert "8 without any class" in said and "2 classes: Lok 8, Wagen 8" in said and "is called" not in said
    storage = LocalStorage(tmp_path / "out/mine/all")
    manifest = read_manifest(storage)
    assert "--negative" in manifest.provenance["command"]
    (shard,) = manifest.shards
    rows = read_index(storage, manifest, shard, ("key", "positives")).to_pylist()
    classes = ("Lok", "", "Wagen")
    for row in rows:
        expected = classes[int(row["key"].rpartition("_")[2].rpartition("/")[2]) % 3]
        assert [manifest.classes[k] for k in row["positives"]] == ([expected] if expected else [])


def test_it_is_divided_and_built_again_as_recorded(tmp_path: Path):
    said = build(photographs(tmp_path / "photos", "folders"), "--negative", "nichts")
    parts = [read_manifest(LocalStorage(tmp_path / "out/mine" / part)) for part in ("train", "val", "test")]
    assert {part.classes for part in parts} == {("Lok", "Wagen")} and "for train" in said
    assert sum(part.counts["without_any_class"] for part in parts) == 8


def test_names_that_are_not_there_are_refused(tmp_path: Path):
    root = photographs(tmp_path / "photos", "folders")
    assert "--negative nicht: no class is called that; did you mean nichts?" in build(
        root, "--negative", "nicht", code=2
    )
    with pytest.raises(ValueError, match="no other class"):
        open_source("folders", root, "all", negative=["Lok", "nichts", "Wagen"])


def test_boxes_of_it_are_none_either(tmp_path: Path):
    box = {"bbox": [1, 1, 5, 5], "image_id": 1}
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 24, "height": 16}],
        "annotations": [box | {"id": n, "category_id": n} for n in (1, 2, 3)],
        "categories": [{"id": 1, "name": "background"}, {"id": 2, "name": "car"}, {"id": 3, "name": "dog"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    source = open_source("coco", tmp_path / "a.json", "all", negative=["background"])
    (record,) = source.records()
    assert source.labels.classes == ("car", "dog") and record.positives == (0, 1)
    assert [item.class_index for item in record.objects] == [0, 1] and source.counts["without_any_class"] == 0


def test_only_words_for_nothing_are_remarked_on():
    assert len(maybe_negative(["cat", "None", "_empty_", "Background", "leer"])) == 4
    assert maybe_negative(["cat", "no entry sign", "emptying"]) == maybe_negative(["background"]) == []
