"""``croissant.json``: valid by MLCommons' own reader, which also reads images and labels by it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest

from msldata.build.shards import build_shards, plan_build
from msldata.contract.manifest import IMAGES, KEEP_MASKS, Manifest, ShardInfo, read_manifest
from msldata.contract.publish import croissant, reader_files
from msldata.inspect.verify import verify
from msldata.masks.sources import select_mask_source
from msldata.sources.kinds import open_source
from msldata.storage import LocalStorage
from tests.smallshards import write_images
from tests.tinydata import build_masks, make_voc

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # those of the reader itself


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """MLCommons' reader, with its cache of unpacked tars (by name!) in a folder of this test."""
    mlcroissant = pytest.importorskip("mlcroissant", reason="mlcroissant is not installed: install the test extra")
    from etils import epath
    from mlcroissant._src.operation_graph.operations import extract

    monkeypatch.setattr(extract, "EXTRACT_PATH", epath.Path(tmp_path / "cache"))
    return mlcroissant


@pytest.mark.parametrize("samples_per_shard", [2, 10])
def test_images_and_labels_are_read_by_it(reader, tmp_path, samples_per_shard):
    source = open_source("voc2007", make_voc(tmp_path / "raw", 5), "test")
    records = list(source.records())
    manifest = build_shards(
        plan_build(source, samples_per_shard=samples_per_shard), LocalStorage(tmp_path / "out"), num_workers=1
    )
    dataset = reader.Dataset(str(tmp_path / "out" / "croissant.json"))
    assert not dataset.metadata.issues.errors and not dataset.metadata.issues.warnings
    assert dataset.metadata.ctx.conforms_to.value == "http://mlcommons.org/croissant/1.1"
    assert "Everingham" in dataset.metadata.cite_as and "flickr" in dataset.metadata.license[0]
    found = {row["samples/key"].decode(): row for row in dataset.records("samples")}
    assert sorted(found) == [record.key for record in records]
    for record in records:
        row = found[record.key]
        assert tuple(row["samples/positives"]) == record.positives
        assert tuple(row["samples/ignored"]) == record.ignored
        assert row["samples/image"].size == (row["samples/width"], row["samples/height"]) == (24, 16)
        with source.images.path(record.image).open("rb") as file:
            from PIL import Image

            assert np.array_equal(np.asarray(row["samples/image"]), np.asarray(Image.open(file)))
    classes = [(row["classes/index"], row["classes/name"]) for row in dataset.records("classes")]
    assert [(index, name.decode() if isinstance(name, bytes) else name) for index, name in classes] == list(
        enumerate(manifest.classes)
    )


def test_keep_masks_are_read_by_it(reader, tmp_path):
    masks = select_mask_source(tmp_path, None, generate=8, size=32, seed=0)
    build_masks(masks, LocalStorage(tmp_path / "masks"), per_subset=2, num_workers=1)
    dataset = reader.Dataset(str(tmp_path / "masks" / "high" / "croissant.json"))
    assert not dataset.metadata.issues.errors
    rows = list(dataset.records("samples"))
    assert rows
    for row in rows:
        holes = np.asarray(row["samples/keep_mask"]) == 0
        assert holes.mean() == pytest.approx(row["samples/hole_fraction"], abs=1e-6)


def test_every_shard_is_named_with_its_digest(tmp_path):
    manifest = write_images(tmp_path, [3, 2])
    content = json.loads((tmp_path / "croissant.json").read_bytes())
    files = [entry for entry in content["distribution"] if entry["@type"] == "cr:FileObject"]
    assert [(file["contentUrl"], file["sha256"]) for file in files] == [(i.name, i.sha256) for i in manifest.shards]
    assert manifest.fingerprint in content["description"]


SHARD = ShardInfo(name="a-b-000000.tar", num_samples=2, num_bytes=10240, sha256="ab" * 32, labels_sha256="cd" * 32)
PHOTOGRAPHS = Manifest(kind=IMAGES, dataset="a", split="b", classes=("bird", "Kühe"), shards=(SHARD,), licence="free")
MASKS = Manifest(kind=KEEP_MASKS, dataset="a", split="b", shards=(SHARD,))


@pytest.mark.parametrize(
    ("manifest", "source", "digest"),
    [
        (PHOTOGRAPHS, "", "7217f5e69564534f"),
        (PHOTOGRAPHS, "VOC2007", "62380def4eb31245"),
        (PHOTOGRAPHS, "VOC2012", "53944328f8239bc5"),
        (PHOTOGRAPHS, "COCO-2014", "6111048a23479242"),
        (PHOTOGRAPHS, "WIDER-Attribute", "628efaf4afce4fb7"),
        (MASKS, "", "0ae9283c5bc3f1af"),
    ],
)
def test_every_word_stays(manifest, source, digest):
    """`verify` compares the file with what is written today, so other words would fault every dataset there is."""
    content = croissant(replace(manifest, provenance={"source": source}))
    assert hashlib.sha256(content).hexdigest()[:16] == digest


def test_the_other_readers_files_stay_as_well():
    files = reader_files(PHOTOGRAPHS)
    assert list(files) == ["_info.json", "sizes.json", "croissant.json"]
    assert files["sizes.json"] == b'{\n  "a-b-000000.tar": 2\n}\n'
    split = {"name": "b", "num_samples": 2, "filenames": ["a-b-000000.tar"], "shard_lengths": [2]}
    assert files["_info.json"].decode() == json.dumps({"splits": {"b": split}}, indent=2) + "\n"


def test_equal_datasets_have_equal_files_and_verify_knows_them(tmp_path):
    folder = LocalStorage(tmp_path / "out")
    build_shards(plan_build(open_source("voc2007", make_voc(tmp_path, 3), "test")), folder, num_workers=1)
    manifest = read_manifest(folder)
    assert croissant(manifest) == folder.read("croissant.json")
    assert croissant(replace(manifest, licence="other")) != folder.read("croissant.json")
    assert not verify(folder, num_workers=1).findings
    folder.put("croissant.json", b"{}")
    assert [finding.file for finding in verify(folder, num_workers=1).findings] == ["croissant.json"]
    folder.delete("croissant.json")  # as earlier versions left it
    assert not verify(folder, num_workers=1).findings
