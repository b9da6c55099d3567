"""A folder such as a user of the Python interface has: raw data, shards, keep masks, a run, photographs; all tiny."""

from __future__ import annotations

import shutil
from pathlib import Path

from PIL import Image

from msldata.api import build_masks, build_shards, open_source
from msldata.masks.sources import GeneratedMasks
from tests.tinydata import jpeg, make_voc

NUM_TRAINVAL, NUM_TEST = 40, 20


def make_workspace(root: Path) -> Path:
    """Fill ``root`` with all that the examples of the documentation name, but for ``runs/msl``."""
    voc = make_voc(root / "datasets", NUM_TRAINVAL + NUM_TEST, "trainval")
    lists = voc / "ImageSets" / "Main"
    ids = (lists / "trainval.txt").read_text().split()
    (lists / "trainval.txt").write_text("\n".join(ids[:NUM_TRAINVAL]) + "\n")
    (lists / "test.txt").write_text("\n".join(ids[NUM_TRAINVAL:]) + "\n")
    masks = GeneratedMasks(40, seed=0, size=64)
    (root / "datasets" / "irregular_masks").mkdir()
    for name in masks.names():
        Image.fromarray(masks.read_gray(name)).save(root / "datasets" / "irregular_masks" / f"{name}.png")
    for split in ("trainval", "test"):
        build_shards(open_source("voc2007", voc, split), root / "shards" / "voc2007" / split, workers=1)
    build_masks(root / "datasets" / "irregular_masks", root / "shards" / "masks")
    (root / "datasets" / "other_tars").mkdir()
    for tar in (root / "shards" / "voc2007" / "test").glob("*.tar"):
        shutil.copy(tar, root / "datasets" / "other_tars" / "elsewhere-000000.tar")
    (root / "photos").mkdir()
    for number, name in enumerate(("street", "harbour")):
        (root / "photos" / f"{name}.jpg").write_bytes(jpeg(900 + number, 60, 40))
    return root
