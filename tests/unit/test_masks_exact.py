"""Keep masks that are not square, with black holes, in several shards: every row, file and manifest by hand."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import msldata.masks.hole_fraction
import msldata.masks.plan
from msldata.contract.format import decode_index
from msldata.contract.keepmask import HOLE_BLACK, HOLE_WHITE
from msldata.contract.manifest import KEEP_MASKS, Manifest
from msldata.contract.tar import walk_tar
from msldata.errors import UserError
from msldata.inspect.describe import Extent, describe
from msldata.inspect.verify import _limits, verify
from msldata.masks.build import MaskBuild, finished_subsets, write_masks
from msldata.masks.plan import MaskPlan, plan_masks
from msldata.masks.plots import _Stored
from msldata.masks.sources import open_mask_source
from msldata.storage import open_storage

WIDTH, HEIGHT = 40, 25
HOLES = {"b/07": 3, "b/02": 10, "c.1": 11, "b/a b": 12, "d": 13, "e": 14, "f": 25, "b/x": 0, "g": 12}
"""How many of the 25 rows of each mask are hole, from above."""


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(msldata.masks.plan, "MASKS_PER_SHARD", 2)
    monkeypatch.setattr(msldata.masks.hole_fraction, "_NAMES_PER_TASK", 2)


def gray(rows: int, low: int = 0, high: int = 255) -> np.ndarray:
    gray_HW = np.full((HEIGHT, WIDTH), high, np.uint8)
    gray_HW[:rows] = low
    return gray_HW


def png(gray_HW: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(gray_HW).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path) -> Path:
    for name, rows in HOLES.items():
        path = tmp_path / "source" / "deep" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(gray(rows)))
    (tmp_path / "source" / "deep" / "b" / "bad.png").write_bytes(b"no image")
    return tmp_path / "source"


def build(source: Path, out: Path, **options: Any) -> tuple[MaskBuild, list[tuple[int, int]], list[tuple[int, int]]]:
    read, written = [], []
    plan = plan_masks(
        open_mask_source(source),
        out,
        num_workers=1,
        on_error="skip",
        progress=lambda *step: read.append(step),
        **options,
    )
    made = write_masks(plan, num_workers=1, progress=lambda *step: written.append(step))
    return made, read, written


def stored(out: Path, manifest: Manifest) -> list[tuple[dict, dict, np.ndarray]]:
    """(row, JSON, levels) of every sample, in order."""
    found = []
    for shard in manifest.shards:
        data = (out / manifest.split / shard.name).read_bytes()
        content = {one.name: data[one.offset : one.offset + one.length] for one in walk_tar(data)}
        index = (out / manifest.split / shard.index_name).read_bytes()
        for row in decode_index(KEEP_MASKS, index, shard.name).to_pylist():
            key = row["key"]
            image = content[f"{key}.png"]
            assert data[row["offset"] : row["offset"] + row["length"]] == image
            levels_HW = np.asarray(Image.open(io.BytesIO(image)).convert("L"))
            found.append((row, json.loads(content[f"{key}.json"]), levels_HW))
    return found


def rows_of(found: list[tuple[dict, dict, np.ndarray]]) -> list[dict]:
    names = ("key", "source", "width", "height", "hole_fraction")
    return [{name: row[name] for name in names} for row, _, _ in found]


def expected(key: str, source: str, rows: int) -> dict:
    return {
        "key": key, "source": source, "width": WIDTH, "height": HEIGHT, "hole_fraction": rows / HEIGHT,
    }  # fmt: skip


def histogram(**counts: int) -> dict[str, int]:
    """``_4=2``: two from 0.4 to 0.5."""
    return {f"0.{n}-{f'0.{n + 1}' if n < 9 else '1.0'}": counts.get(f"_{n}", 0) for n in range(10)}


HIGH = [expected("d", "d.png", 13), expected("e", "e.png", 14), expected("f", "f.png", 25)]
LOW = [
    expected("b_02", "b/02.png", 10),
    expected("b_07", "b/07.png", 3),
    expected("b_a_b", "b/a b.png", 12),
    expected("b_x", "b/x.png", 0),
    expected("c_1", "c.1.png", 11),
    expected("g", "g.png", 12),
]


def test_all_masks_of_both_sides(folder, tmp_path):
    out = tmp_path / "out"
    made, read, written = build(folder, out, per_subset=0, polarity=HOLE_BLACK, command=["msl", "build-masks"])
    assert read == [(2, 10), (4, 10), (6, 10), (8, 10), (10, 10)]
    assert written == [(2, 9), (3, 9), (5, 9), (7, 9), (9, 9)]
    high, low = made.manifests["high"], made.manifests["low"]
    for manifest, rows in ((high, HIGH), (low, LOW)):
        found = stored(out, manifest)
        assert rows_of(found) == rows
        for (row, meta, levels_HW), wanted in zip(found, rows, strict=True):
            visible_HW = gray(round(wanted["hole_fraction"] * HEIGHT))
            assert np.array_equal(levels_HW, visible_HW)
            facts = ("width", "height", "hole_fraction", "source")
            assert meta == {name: row[name] for name in facts} | {"polarity": HOLE_BLACK}
    assert [(shard.name, shard.num_samples) for shard in high.shards] == [
        ("masks-high-000000.tar", 2), ("masks-high-000001.tar", 1),
    ]  # fmt: skip
    assert [shard.num_samples for shard in low.shards] == [2, 2, 2]
    assert high.hole_fraction_histogram == histogram(_5=2, _9=1)
    assert low.hole_fraction_histogram == histogram(_0=1, _1=1, _3=1, _4=3)
    counts = {"masks_read": 9, "quarantined": 1}
    assert high.counts == {**counts, "available": 3, "without_hole": 0, "all_hole": 1}
    assert low.counts == {**counts, "available": 6, "without_hole": 1, "all_hole": 0}
    assert high.options == low.options == {"threshold": 0.5, "polarity": HOLE_BLACK, "per_subset": 0, "seed": 0}
    assert high.provenance == {
        "command": ["msl", "build-masks"],
        "source": "source",
        "polarity_origin": "user",
        "polarity_explanation": "hole-black: given by the user",
    }
    for split in ("high", "low"):
        (line,) = (out / split / "quarantine.jsonl").read_text().splitlines()
        assert json.loads(line)["file"] == "deep/b/bad.png"
        assert verify(out / split, num_workers=1).findings == ()
    plan = made.plan
    assert plan.hole_fractions == tuple(HOLES[name] / HEIGHT for name in sorted(HOLES, key=lambda name: f"{name}.png"))
    assert plan.histogram == histogram(_0=1, _1=1, _3=1, _4=3, _5=2, _9=1)
    assert [subset.num_samples for subset in plan.subsets] == [3, 6]
    assert [subset.num_bytes() for subset in plan.subsets] == [
        sum((out / split / shard.name).stat().st_size for shard in made.manifests[split].shards)
        for split in ("high", "low")
    ]
    about = describe(out / "low")
    assert (about.num_samples, about.num_shards, about.labels, about.object_sizes) == (6, 3, (), {})
    assert (about.width, about.height) == (Extent(40, 40, 40), Extent(25, 25, 25))
    assert about.hole_fraction == Extent(0, (10 / 25 + 11 / 25) / 2, 12 / 25)
    chosen = _Stored.read(open_storage(out / "low"), low).spread(3)  # of 0, 3, 10, 11, 12 and 12 rows, in three shards
    assert [fraction * HEIGHT for _, fraction in chosen] == [0, 10, 12]
    assert all(np.array_equal(levels_HW, gray(rows)) for (levels_HW, _), rows in zip(chosen, (0, 10, 12), strict=True))
    again, _, written = build(folder, out, per_subset=0, polarity=HOLE_BLACK, command=["msl", "build-masks"])
    assert (again.manifests, written) == (made.manifests, []) and finished_subsets(again.plan) == {"high", "low"}


@pytest.mark.parametrize(
    ("split", "options", "fits"),
    [
        ("high", {"threshold": 0.4}, [False, False, True, True]),
        ("low", {"threshold": 0.4}, [True, True, False, False]),
        ("heldout", {"order": "official"}, [True, True, True, True]),
        (
            "holes-30-40",
            {"threshold": 0.5, "hole_fraction_above": 0.3, "hole_fraction_up_to": 0.4},
            [False, True, False, False],
        ),
    ],
)
def test_the_hole_fractions_that_a_subset_may_have(split, options, fits):
    """Of 0.3, 0.4, a little more, and 1; limits belong to the side that the definition says."""
    above, up_to = _limits(Manifest(kind=KEEP_MASKS, dataset="masks", split=split, options=options))
    assert [above <= value <= up_to for value in (0.3, 0.4, 0.4 + 1e-15, 1)] == fits


def variants(folder: Path, tmp_path: Path, **options: Any) -> Mapping[str, list[tuple[dict, dict, np.ndarray]]]:
    made, _, _ = build(folder, tmp_path / "out", **{"per_subset": 0, "polarity": HOLE_BLACK, **options})
    return {name: stored(tmp_path / "out", manifest) for name, manifest in made.manifests.items()}


def test_the_other_colour(folder, tmp_path):
    found = variants(folder, tmp_path, polarity=HOLE_WHITE)
    assert [row["source"] for row, _, _ in found["high"]] == [
        "b/02.png", "b/07.png", "b/a b.png", "b/x.png", "c.1.png", "g.png",
    ]  # fmt: skip
    assert [row["hole_fraction"] for row, _, _ in found["low"]] == [12 / 25, 11 / 25, 0]
    (_, meta, levels_HW), *_ = found["low"]
    assert np.array_equal(levels_HW, 255 - gray(13)) and meta["polarity"] == HOLE_WHITE


def test_resized_masks(folder, tmp_path):
    """25 rows become 16: row r shows the source's row of its middle, (r + ½) · 25 / 16."""
    found = variants(folder, tmp_path, size=16)
    for rows in found.values():
        for row, meta, levels_HW in rows:
            num_rows = HOLES[row["source"].removesuffix(".png")]
            kept = sum((r + 0.5) * 25 / 16 < num_rows for r in range(16))
            assert (row["width"], row["height"], row["hole_fraction"]) == (16, 16, kept / 16)
            assert (levels_HW == 0).sum() == 16 * kept and not levels_HW[:kept].any()
            assert (meta["source_width"], meta["source_height"]) == (WIDTH, HEIGHT)
            assert meta["source_hole_fraction"] == num_rows / HEIGHT


@pytest.mark.parametrize(("polarity", "target"), [(HOLE_BLACK, 0.3), (HOLE_WHITE, 0.6)])
def test_holes_that_are_moved(folder, tmp_path, polarity, target):
    """Rows of the edge grow or shrink, to the pixel; what is all hole or none is left out."""
    made, _, _ = build(folder, tmp_path / "out", per_subset=0, polarity=polarity, to_fraction=target)
    split, empty = ("low", "high") if target < 0.5 else ("high", "low")
    assert made.manifests[empty].num_samples == 0
    manifest = made.manifests[split]
    found = stored(tmp_path / "out", manifest)
    assert [row["source"] for row, _, _ in found] == [
        "b/02.png", "b/07.png", "b/a b.png", "c.1.png", "d.png", "e.png", "g.png",
    ]  # fmt: skip
    for row, meta, levels_HW in found:
        num_rows = HOLES[row["source"].removesuffix(".png")]
        assert row["hole_fraction"] == target == np.count_nonzero(levels_HW == 0) / levels_HW.size
        assert meta["source_hole_fraction"] == (num_rows if polarity == HOLE_BLACK else HEIGHT - num_rows) / HEIGHT
        hole_HW = levels_HW == 0 if polarity == HOLE_BLACK else levels_HW[::-1] == 0  # from its own side
        assert hole_HW[: int(target * HEIGHT)].all() and not hole_HW[int(target * HEIGHT) + 1 :].any()
    assert manifest.counts == {
        "masks_read": 7, "quarantined": 3, "available": 7, "without_hole": 0, "all_hole": 0,
    }  # fmt: skip
    reached = manifest.provenance["hole_fraction_reached"]
    assert reached == {"lowest": target, "mean": pytest.approx(target), "highest": target}
    assert manifest.options["to_fraction"] == target


def test_grey_masks(tmp_path):
    """Black hides, and 40 hides most; stored as they are under one polarity, inverted under the other."""
    for number, rows in enumerate((5, 9, 20)):
        (tmp_path / "source").mkdir(exist_ok=True)
        (tmp_path / "source" / f"{number}.png").write_bytes(png(gray(rows, low=40, high=200)))
    for polarity in (HOLE_BLACK, HOLE_WHITE):
        made, _, _ = build(tmp_path / "source", tmp_path / polarity, per_subset=0, polarity=polarity, binarize=False)
        found = {name: stored(tmp_path / polarity, manifest) for name, manifest in made.manifests.items()}
        black = polarity == HOLE_BLACK
        assert [row["source"] for row, _, _ in found["high"]] == (["2.png"] if black else ["0.png", "1.png"])
        for rows in found.values():
            for row, _, levels_HW in rows:
                num_rows = (5, 9, 20)[int(row["key"])]
                wanted_HW = gray(num_rows, low=40, high=200)
                assert np.array_equal(levels_HW, wanted_HW if black else 255 - wanted_HW)
                assert row["hole_fraction"] == (num_rows if black else HEIGHT - num_rows) / HEIGHT
        assert made.manifests["low"].options["binarize"] is False
        assert verify(tmp_path / polarity / "low", num_workers=1).findings == ()


def test_names_in_archives_count_from_where_they_differ(tmp_path):
    """Two that would have one key have a hash each; clutter is passed over; nothing else depends on the folders."""
    names = {"set/one/a.png": 3, "set/one/b.png": 4, "set/two/a.png": 5, "set/two/b_.png": 6, "set/two/b .png": 7}
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        for name, rows in names.items():
            archive.writestr(name, png(gray(rows)))
        archive.writestr("__MACOSX/set/._a.png", b"x")
        archive.writestr("set/two/Thumbs.db", b"x")
    plan: MaskPlan = plan_masks(
        open_mask_source(tmp_path / "m.zip"), tmp_path / "out", num_workers=1, per_subset=0, polarity=HOLE_BLACK
    )
    (low,) = [subset for subset in plan.subsets if subset.num_samples]
    samples = [sample for task in low.tasks for sample in task.samples]
    assert [(sample.key, sample.source, sample.mask.hole_fraction(HOLE_BLACK)) for sample in samples] == [
        ("one_a", "one/a.png", 3 / 25),
        ("one_b", "one/b.png", 4 / 25),
        ("two_a", "two/a.png", 5 / 25),
        (f"two_b_-{hashlib.sha256(b'two/b .png').hexdigest()[:16]}", "two/b .png", 7 / 25),
        (f"two_b_-{hashlib.sha256(b'two/b_.png').hexdigest()[:16]}", "two/b_.png", 6 / 25),
    ]
    with pytest.raises(UserError, match="size is 15; the side of keep masks in pixels must lie between 16 and 8,192"):
        plan_masks(open_mask_source(tmp_path / "m.zip"), open_storage(tmp_path / "out"), size=15)
