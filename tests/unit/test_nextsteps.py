"""The command that builds a dataset again repeats what shaped its bytes and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from msldata.contract.manifest import IMAGES, KEEP_MASKS, Manifest
from msldata.inspect.nextsteps import build_command
from msldata.storage import LocalStorage, open_storage


def images(dataset: str = "voc2007", **options) -> Manifest:
    return Manifest(kind=IMAGES, dataset=dataset, split="test", shards=(), options=options)


def masks(provenance: dict, **options) -> Manifest:
    counts = {"masks_read": 30}
    return Manifest(
        kind=KEEP_MASKS, dataset="masks", split="low", shards=(), counts=counts, options=options, provenance=provenance
    )


@pytest.mark.parametrize(
    ("folder", "manifest", "command"),
    [
        ("shards/voc2007/test", images(samples_per_shard=1000), "msl build-shards --dataset voc2007 --split test"),
        (
            "s3://bucket/a b/mine/test",
            images("mine", samples_per_shard=7, resize="shorter=448", resize_quality=80),
            "msl build-shards --name mine --split test --samples-per-shard 7 --resize shorter=448 --quality 80 "
            "--out 's3://bucket/a b'",
        ),
        ("shards/masks/low", masks({"source": "x"}, threshold=0.5, per_subset=1000, seed=0), "msl build-masks"),
        (
            "elsewhere/low",
            masks({"source": "generated", "generator_size": 64}, threshold=0.4, per_subset=6, seed=3),
            "msl build-masks --generate 30 --size 64 --threshold 0.4 --per-subset 6 --seed 3 --out elsewhere",
        ),
        (
            "shards/masks/low",
            masks({"source": "x", "polarity_origin": "user"}, order="official", polarity="hole-white", size=256),
            "msl build-masks --size 256 --polarity hole-white --order official",
        ),
    ],
)
def test_command(folder, manifest, command):
    storage = open_storage(folder) if "://" in folder else LocalStorage(Path(folder))
    assert build_command(storage, manifest) == command
