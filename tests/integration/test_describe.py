"""`msl info`: what it counts equals what was built, and on real data the published labels."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from msldata.build.shards import build_shards, plan_build
from msldata.build.writer import ShardWriter
from msldata.contract.format import encode_target
from msldata.contract.manifest import IMAGES, FormatError, Manifest
from msldata.contract.publish import write_manifest
from msldata.inspect.describe import Extent, FlagCount, LabelCount, LabelPair, describe
from msldata.masks.sources import select_mask_source
from msldata.sources.kinds import open_source
from msldata.storage import LocalStorage
from msltrain.__main__ import app
from tests.tinydata import build_masks

THING = {"box": [0, 0, 1, 1], "difficult": False, "truncated": None, "occluded": None, "crowd": False}


def write_dataset(folder: Path, shards: list[list[dict]]) -> None:
    """Rows without images; ``describe`` must not look at any."""
    storage = LocalStorage(folder)
    infos = []
    for number, rows in enumerate(shards):
        with ShardWriter(storage, f"d-train-{number:06d}.tar", kind=IMAGES, plan="") as writer:
            for position, row in enumerate(rows):
                row = {"width": 10, "height": 10, "ignored": [], "objects": []} | row
                writer.add(f"{number}-{position}", [(".jpg", b""), (".target.npy", encode_target([], 3))], row)
            infos.append(writer.publish())
    manifest = Manifest(kind=IMAGES, dataset="d", split="train", classes=("ant", "bee", "cow"), shards=tuple(infos))
    write_manifest(storage, manifest)
    for info in infos:
        (folder / info.name).unlink()


def test_counts_over_shards(tmp_path):
    objects = [
        THING | {"class_index": 0, "area": 1023.0, "truncated": True},
        THING | {"class_index": 0, "area": 1024.0, "truncated": False},
        THING | {"class_index": 1, "area": 9215.0, "crowd": True},
        THING | {"class_index": 1, "area": 9216.0, "occluded": True},
    ]
    first = [{"positives": [0, 1], "objects": objects[:3], "width": 40}, {"positives": [0], "ignored": [2]}]
    second = [{"positives": [0, 1, 2], "height": 4}, {"positives": [], "objects": objects[3:], "width": 30}]
    write_dataset(tmp_path, [first, second])
    about = describe(LocalStorage(tmp_path))
    assert about.labels == (
        LabelCount("ant", 3, 0, 0.75),
        LabelCount("bee", 2, 0, 0.5),
        LabelCount("cow", 1, 1, 0.25),
    )
    assert about.pairs == (
        LabelPair("ant", "bee", 2, 2 / 3),
        LabelPair("bee", "cow", 1, 1 / 2),
        LabelPair("ant", "cow", 1, 1 / 3),
    )
    assert about.labels_per_image == 6 / 4
    assert (about.width, about.height) == (Extent(10, 20, 40), Extent(4, 10, 10))
    assert about.object_sizes == {"small": 1, "medium": 2, "large": 1}
    assert about.object_flags == {
        "difficult": FlagCount(0, 4),
        "truncated": FlagCount(1, 2),
        "occluded": FlagCount(1, 1),
        "crowd": FlagCount(1, 4),
    }


def test_pairs_are_cut(tmp_path):
    write_dataset(tmp_path, [[{"positives": [0, 1, 2]}]])
    assert len(describe(LocalStorage(tmp_path), max_pairs=2).pairs) == 2


def test_images_without_labels_or_objects(tmp_path):
    write_dataset(tmp_path, [[{"positives": []}]])
    about = describe(LocalStorage(tmp_path))
    assert (about.pairs, about.labels_per_image, sum(about.object_sizes.values())) == ((), 0.0, 0)
    assert CliRunner().invoke(app, ["info", str(tmp_path)]).exit_code == 0


def test_class_that_the_manifest_does_not_know(tmp_path):
    write_dataset(tmp_path, [[{"positives": [3]}]])
    refusal = r"000000\.parquet: a class number of positives is not one of the 3 classes; copy or build .* again"
    with pytest.raises(FormatError, match=refusal):
        describe(LocalStorage(tmp_path))


def test_no_dataset_is_a_clear_mistake(tmp_path):
    run = CliRunner().invoke(app, ["info", str(tmp_path)])
    assert run.exit_code == 2 and "no finished dataset" in run.output


def test_keep_masks(tmp_path):
    masks = select_mask_source(tmp_path, None, generate=12, size=64, seed=0)
    build = build_masks(masks, LocalStorage(tmp_path), per_subset=6, num_workers=1)
    about = describe(LocalStorage(tmp_path / "high"))
    assert about.hole_fraction_histogram == build.manifests["high"].hole_fraction_histogram
    assert about.hole_fraction is not None and 0.5 < about.hole_fraction.minimum <= about.hole_fraction.median
    run = CliRunner().invoke(app, ["info", str(tmp_path / "high")])
    assert run.exit_code == 0 and "keep masks by hole fraction" in run.output


@pytest.mark.real
@pytest.mark.parametrize("split", ["trainval", "test"])
def test_printed_voc_histogram_equals_the_published_labels(sample, tmp_path, split):
    source = open_source("voc2007", sample / "VOCdevkit" / "VOC2007", split)
    build_shards(plan_build(source), LocalStorage(tmp_path), num_workers=1)
    published = json.loads((sample / "oracles" / "voc07" / f"{split}_voc07.json").read_text())
    positive = [sum(entry["target"][index] == 1 for entry in published) for index in range(20)]
    content = json.loads(CliRunner().invoke(app, ["info", str(tmp_path), "--json"]).stdout)
    assert [label["positive"] for label in content["labels"]] == positive
    if split == "test":  # the published training file makes no difference between difficult and absent
        ignored = [sum(entry["target"][index] == 0 for entry in published) for index in range(20)]
        assert [label["ignored"] for label in content["labels"]] == ignored
    table = CliRunner().invoke(app, ["info", str(tmp_path)], env={"COLUMNS": "140"}).stdout
    for name, count in zip(source.labels.classes, positive, strict=True):
        assert any(line.split()[:2] == [name, str(count)] for line in table.splitlines()), name


@pytest.mark.real
@pytest.mark.parametrize("split", ["train", "val"])
def test_printed_coco_histogram_equals_the_published_labels(sample, tmp_path, split):
    source = open_source("coco2014", sample / "coco2014", split)
    build_shards(plan_build(source), LocalStorage(tmp_path), num_workers=1)
    published = json.loads((sample / "oracles" / "coco2014" / f"sample_{split}2014_anno.json").read_text())
    positive = Counter(index for entry in published for index in entry["labels"])
    content = json.loads(CliRunner().invoke(app, ["info", str(tmp_path), "--json"]).stdout)
    assert [label["positive"] for label in content["labels"]] == [positive[index] for index in range(80)]
