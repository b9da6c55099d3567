"""What the plan of a mask build holds, which masks a seed draws, and how a hole grows."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import tarfile
import zipfile
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import msldata.masks.plan as planning
from msldata.contract.keepmask import HOLE_WHITE
from msldata.contract.manifest import KEEP_MASKS, Manifest
from msldata.errors import UserError
from msldata.masks import build as building
from msldata.masks import sources
from msldata.masks.build import MaskBuild, write_masks
from msldata.masks.hole_fraction import MeasuredMask, reach_fraction
from msldata.masks.plan import _plan_subset, plan_masks
from msldata.masks.sources import GeneratedMasks, open_mask_source, select_mask_source
from msldata.masks.subsets import MaskSample, choose_seeded
from msldata.storage import LocalStorage

DRAFT = Manifest(
    kind=KEEP_MASKS, dataset="masks", split="high", counts={"available": 2}, options={"polarity": HOLE_WHITE}
)


def sample(name: str, white: slice = slice(0, 3)) -> MaskSample:
    gray_HW = np.zeros((10, 10), np.uint8)
    gray_HW[white] = 255
    return MaskSample(name, f"{name}.png", MeasuredMask.of_gray(name, gray_HW))


def digest(draft: Manifest = DRAFT, *samples: MaskSample) -> str:
    return _plan_subset(LocalStorage(Path("out")), draft, samples or (sample("a"), sample("b"))).draft.plan


def test_the_plan_of_a_subset_keeps_its_digest_from_version_to_version():
    assert digest() == "61b7db319a346e650125c0ac1f0dc58581da1a1928835a1353abde419ebce6d5"


def test_whatever_shapes_a_subset_is_in_its_digest(monkeypatch):
    found = [digest(), digest(replace(DRAFT, split="low")), digest(replace(DRAFT, counts={"available": 3}))]
    found += [digest(replace(DRAFT, options={"polarity": HOLE_WHITE, **more})) for more in ({"seed": 1}, {"size": 64})]
    one, other = sample("a"), sample("b")
    others = [sample("b", slice(1, 4)), replace(other, key="c"), replace(other, source="c.png")]
    found += [digest(DRAFT, one, second) for second in others] + [digest(DRAFT, one), digest(DRAFT, other, one)]
    for name in ("INDEX_VERSION", "MASKS_PER_SHARD"):
        monkeypatch.setattr(planning, name, getattr(planning, name) + 1)
        found.append(digest())
    assert len(set(found)) == len(found)
    monkeypatch.undo()
    assert digest(replace(DRAFT, provenance={"source": "x"}, licence="y")) == found[0]


@pytest.fixture
def files(tmp_path) -> Path:
    """Eight masks whose upper three rows of ten are white, and eight with seven."""
    (tmp_path / "masks").mkdir()
    for n in range(16):
        gray_HW = np.zeros((10, 10), np.uint8)
        gray_HW[: 3 if n < 8 else 7] = 255
        Image.fromarray(gray_HW).save(tmp_path / "masks" / f"{n:02d}.png")
    return tmp_path / "masks"


def test_masks_are_drawn_by_the_seed(files, tmp_path):
    def drawn(**options: Any) -> list[list[str]]:
        plan = plan_masks(
            open_mask_source(files), tmp_path, polarity=HOLE_WHITE, per_subset=3, num_workers=1, **options
        )
        assert [subset.draft.options["seed"] for subset in plan.subsets] == 2 * [options.get("seed", 0)]
        return [[one.key for task in subset.tasks for one in task.samples] for subset in plan.subsets]

    assert drawn() == drawn(seed=0) != drawn(seed=1)
    assert all(one != other for one, other in zip(drawn(seed=1), drawn(seed=2)))


def test_a_bucket_prefers_what_neither_side_has_drawn():
    """High has drawn one of the two masks of 50 to 60 %, and low one of the two of 10 to 20 %."""
    samples = [sample(name, slice(0, 6)) for name in "ab"] + [sample(name, slice(0, 2)) for name in "cd"]
    for seed in range(4):
        choice = choose_seeded(samples, HOLE_WHITE, threshold=0.5, per_subset=1, seed=seed, buckets=True)
        found = {subset.name: [one.key for one in subset.samples] for subset in choice.subsets}
        assert sorted(found["high"] + found["holes-50-60"]) == ["a", "b"]
        assert sorted(found["low"] + found["holes-10-20"]) == ["c", "d"]


def test_generated_masks_are_those_of_the_seed():
    one, other = (select_mask_source(".", generate=2, size=64, seed=seed) for seed in (3, 4))
    assert one == GeneratedMasks(2, seed=3, size=64)
    assert one.provenance == {"source": "generated", "generator_seed": 3, "generator_size": 64}
    first, second = (source.read_gray("generated-000001") for source in (one, other))
    assert first.shape == (64, 64) and (first != second).any() and (first == one.read_gray("generated-000001")).all()


def test_a_point_grows_into_an_octagon_and_stays_what_it_was():
    """To its four neighbours, then to eight; the mask that is given is not changed."""
    point_HW = np.zeros((13, 13), bool)
    point_HW[6, 6] = True
    for area, rows in ((5, [1, 3, 1]), (21, [3, 5, 5, 5, 3]), (69, [5, 7, 9, 9, 9, 9, 9, 7, 5]), (3, None)):
        grown_HW = reach_fraction(point_HW, area / 169)
        assert np.count_nonzero(grown_HW) == area and np.count_nonzero(point_HW) == 1
        if rows:
            assert [row for row in grown_HW.sum(axis=1).tolist() if row] == rows


def archive(path: Path, *names: str) -> Path:
    """A zip, or a tar that may be gzipped, of masks each with a white row more than the one before."""
    masks = {}
    for number, name in enumerate(names):
        buffer = io.BytesIO()
        gray_HW = np.zeros((10, 10), np.uint8)
        gray_HW[: number + 1] = 255
        Image.fromarray(gray_HW).save(buffer, "PNG")
        masks[name] = buffer.getvalue()
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as package:
            for name, data in masks.items():
                package.writestr(name, data)
        return path
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for name, data in masks.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz"])
def test_an_archive_that_was_replaced_is_read_anew(tmp_path, suffix, monkeypatch):
    """It stays open while nobody touches it, in each process for itself: a fork shares the place in the file."""
    path = archive(tmp_path / f"masks{suffix}", "a.png", "b.png")
    opened = sources._zip_of_process if suffix == ".zip" else sources._tar_of_process
    source = open_mask_source(path)
    assert source.names() == ["a.png", "b.png"] and opened(path) is opened(path)
    # Out of order, and one twice.
    assert [int(source.read_gray(name)[:, 0].sum()) // 255 for name in ("b.png", "a.png", "b.png")] == [2, 1, 2]
    here = opened(path)
    monkeypatch.setattr(os, "getpid", lambda: 1)
    assert opened(path) is not here
    monkeypatch.undo()
    os.utime(archive(path, "c.png"), ns=(5, 5))
    assert source.names() == ["c.png"]


def test_a_tar_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    """However little of it comes at a time."""
    monkeypatch.setattr(sources, "MAX_UNPACKED_BYTES", 3 << 20)
    for size, fits in ((2 << 20, True), (4 << 20, False)):
        with gzip.open(path := tmp_path / f"{size}.tar.gz", "wb") as file:
            file.write(bytes(size))
        with nullcontext() if fits else pytest.raises(UserError, match="unpacks to more than 3,145,728 bytes"):
            sources._unpack_gzip(path)


def test_one_file_is_listed_once_however_it_is_called(tmp_path):
    (tmp_path / "list.txt").write_text("# masks\na.png\n\nb.png\n./a.png\n")
    with pytest.raises(UserError, match=r"line 5: './a\.png' is in line 2 already"):
        open_mask_source(tmp_path / "list.txt").names()


def test_masks_of_another_plan_are_replaced_where_that_is_asked_for(files, tmp_path, monkeypatch):
    """Those of subsets that are no longer made as well; no folder is a dataset while its shards are written."""

    def made(*rows: int, **options: Any) -> MaskBuild:
        shutil.rmtree(files)
        files.mkdir()
        for n in rows:
            gray_HW = np.zeros((10, 10), np.uint8)
            gray_HW[:n] = 255
            Image.fromarray(gray_HW).save(files / f"{n}.png")
        plan = plan_masks(open_mask_source(files), tmp_path / "out", polarity=HOLE_WHITE, buckets=True, num_workers=1)
        return write_masks(plan, num_workers=1, **options)

    made(1, 2, 6)
    low, seen = tmp_path / "out" / "low" / "dataset.json", []
    with pytest.raises(UserError, match="this folder holds a dataset that was built from other files"):
        made(2, 6)
    write = building._write_shard
    monkeypatch.setattr(building, "_write_shard", lambda task: seen.append(low.exists()) or write(task))
    again = made(2, 6, overwrite=True)
    assert list(again.manifests) == ["high", "low", "holes-10-20", "holes-50-60"] and not any(seen)
    assert not (tmp_path / "out" / "holes-00-10" / "dataset.json").exists()
    (low.parent / "masks-low-000000.tar").unlink()
    seen.clear()
    made(2, 6)
    assert seen == [False] and low.exists()
