"""Keep-mask builds on real files: the split, the draw, the shards, resume, and what is refused."""

from __future__ import annotations

import csv
import io
import json
import random
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import msldata.masks.build
import msldata.masks.plan
from msldata.contract.format import decode_index
from msldata.contract.keepmask import decode_png, hole_fraction_histogram
from msldata.contract.manifest import KEEP_MASKS, MANIFEST_NAME, read_manifest
from msldata.contract.maskgenerator import generate_hole_mask
from msldata.errors import BadInputError, UserError
from msldata.masks.sources import GeneratedMasks, open_mask_source
from msldata.storage import open_storage
from tests.tinydata import build_masks

NUM_MASKS = 40


def png(gray: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(gray).save(buffer, "PNG")
    return buffer.getvalue()


MASKS = {f"{index:05d}.png": png(generate_hole_mask(0, index, 64) * np.uint8(255)) for index in range(NUM_MASKS)}


@pytest.fixture
def folder(tmp_path) -> Path:
    path = tmp_path / "source"
    path.mkdir()
    for name, data in MASKS.items():
        (path / name).write_bytes(data)
    return path


def build(location, out: Path, **options):
    return build_masks(open_mask_source(location), open_storage(out), **{"num_workers": 1, **options})


def all_files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def shards(root: Path) -> dict[str, bytes]:
    return {name: data for name, data in all_files(root).items() if name.endswith((".tar", ".parquet"))}


def rows(out: Path, subset: str) -> list[dict]:
    storage = open_storage(out / subset)
    return [
        row
        for shard in read_manifest(storage).shards
        for row in decode_index(KEEP_MASKS, storage.read(shard.index_name), shard.index_name).to_pylist()
    ]


# --- the split --------------------------------------------------------------------------------------------------------


def half_hole_masks(path: Path) -> Path:
    """White squares of 31, 32 and 33 rows in 64: just under, exactly and just over half; and five light ones."""
    path.mkdir()
    for height in (31, 32, 33, 1, 2, 3, 4, 5):
        gray = np.zeros((64, 64), dtype=np.uint8)
        gray[:height] = 255
        (path / f"rows{height}.png").write_bytes(png(gray))
    return path


def test_exactly_the_threshold_is_low(tmp_path):
    source = half_hole_masks(tmp_path / "source")
    made = build(source, tmp_path / "out", polarity="hole-white")
    assert [row["source"] for row in rows(tmp_path / "out", "high")] == ["rows33.png"]
    low = {row["source"]: row["hole_fraction"] for row in rows(tmp_path / "out", "low")}
    assert low["rows32.png"] == 0.5
    assert low["rows31.png"] == 31 / 64
    assert len(low) == 7
    assert (made.plan.polarity.origin, made.plan.polarity.polarity) == ("user", "hole-white")


def test_the_threshold_is_the_users(tmp_path):
    build(half_hole_masks(tmp_path / "source"), tmp_path / "out", polarity="hole-white", threshold=31 / 64)
    assert [row["source"] for row in rows(tmp_path / "out", "high")] == ["rows32.png", "rows33.png"]


def test_the_other_polarity_swaps_holes_and_subsets(tmp_path):
    source = half_hole_masks(tmp_path / "source")
    build(source, tmp_path / "out", polarity="hole-black")
    assert {row["source"] for row in rows(tmp_path / "out", "low")} == {"rows32.png", "rows33.png"}
    assert {row["source"]: row["hole_fraction"] for row in rows(tmp_path / "out", "high")}["rows1.png"] == 63 / 64


@pytest.mark.parametrize("threshold", [0, 1, -0.1, 50])
def test_a_threshold_out_of_range_is_refused(folder, tmp_path, threshold):
    with pytest.raises(UserError, match=f"threshold is {threshold}; .* between 0 and 1"):
        build(folder, tmp_path / "out", threshold=threshold)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"per_subset": -1}, "per_subset is -1"),
        ({"polarity": "white"}, "unknown polarity 'white'"),
        ({"on_error": "ignore"}, "unknown on_error 'ignore'"),
    ],
)
def test_unknown_options_are_refused(folder, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        build(folder, tmp_path / "out", **options)


def test_histogram_bins_exclude_their_lower_edge():
    histogram = hole_fraction_histogram([0.0, 0.1, 0.1000001, 0.3, 0.7, 0.70001, 0.95, 1.0])
    assert list(histogram) == [f"0.{i}-0.{i + 1}" for i in range(9)] + ["0.9-1.0"]
    assert list(histogram.values()) == [2, 1, 1, 0, 0, 0, 1, 1, 0, 2]


# --- the shards -------------------------------------------------------------------------------------------------------


def test_shards_hold_what_the_sources_hold(folder, tmp_path):
    out = tmp_path / "out"
    made = build(folder, out, per_subset=0)
    assert sum(manifest.num_samples for manifest in made.manifests.values()) == NUM_MASKS
    assert made.plan.polarity.origin == "auto"
    for subset, manifest in made.manifests.items():
        assert read_manifest(open_storage(out / subset)) == manifest
        assert [shard.name for shard in manifest.shards] == [f"masks-{subset}-000000.tar"]
        assert (manifest.kind, manifest.dataset, manifest.split) == (KEEP_MASKS, "masks", subset)
        assert manifest.options["polarity"] == "hole-white"
        assert manifest.provenance["polarity_origin"] == "auto"
        assert "all-black border" in manifest.provenance["polarity_explanation"]
        assert manifest.provenance["source"] == folder.name
        assert manifest.counts["available"] == manifest.num_samples
        assert sum(manifest.hole_fraction_histogram.values()) == manifest.num_samples
        with tarfile.open(out / subset / f"masks-{subset}-000000.tar") as archive:
            names = archive.getnames()
            for row in rows(out, subset):
                index = int(row["key"])
                data = archive.extractfile(f"{row['key']}.png").read()
                assert Image.open(io.BytesIO(data)).mode == "1"
                assert (decode_png(data, "") == 1 - generate_hole_mask(0, index, 64)).all()
                meta = json.loads(archive.extractfile(f"{row['key']}.json").read())
                assert meta["hole_fraction"] == row["hole_fraction"] == generate_hole_mask(0, index, 64).mean()
                assert (meta["source"], meta["polarity"]) == (f"{index:05d}.png", "hole-white")
                assert (row["width"], row["height"], row["source"]) == (64, 64, meta["source"])
        assert names == [f"{row['key']}{suffix}" for row in rows(out, subset) for suffix in (".png", ".json")]


def test_webdataset_reads_the_shards(folder, tmp_path):
    import webdataset

    build(folder, tmp_path / "out", per_subset=0)
    url = str(tmp_path / "out" / "low" / "masks-low-000000.tar")
    samples = list(webdataset.WebDataset(url, shardshuffle=False, empty_check=False).decode("pil"))
    assert len(samples) == len(rows(tmp_path / "out", "low"))
    for sample in samples:
        assert {"png", "json"} <= sample.keys()
        holes = (np.asarray(sample["png"].convert("L")) == 0).mean()
        assert holes == sample["json"]["hole_fraction"]


def test_bytes_do_not_depend_on_workers_listing_or_packing(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(msldata.masks.plan, "MASKS_PER_SHARD", 7)
    build(folder, tmp_path / "one", per_subset=10)
    expected = shards(tmp_path / "one")
    assert len(expected) == 8
    build(folder, tmp_path / "two", per_subset=10, num_workers=2)
    assert all_files(tmp_path / "two") == all_files(tmp_path / "one")

    # A zip that holds the same files further down and in another order.
    names = list(MASKS)
    random.Random(0).shuffle(names)
    with zipfile.ZipFile(tmp_path / "masks.zip", "w") as archive:
        for name in names:
            archive.writestr(f"a/b/{name}", MASKS[name])
    build(tmp_path / "masks.zip", tmp_path / "zip", per_subset=10)
    assert shards(tmp_path / "zip") == expected


# --- the draw ---------------------------------------------------------------------------------------------------------


def drawn(out: Path) -> set[str]:
    return {row["key"] for subset in ("high", "low") for row in rows(out, subset)}


def test_draw_is_a_function_of_seed_and_name(folder, tmp_path):
    build(folder, tmp_path / "a", per_subset=5)
    # Written down once: the same seed must draw the same masks in every version.
    assert sorted(drawn(tmp_path / "a")) == EXPECTED_DRAW
    build(folder, tmp_path / "b", per_subset=5, seed=1)
    assert drawn(tmp_path / "a") != drawn(tmp_path / "b")
    # A mask more or less changes the lot of no other one.
    for name in set(MASKS) - {f"{key}.png" for key in EXPECTED_DRAW}:
        (folder / name).unlink()
    build(folder, tmp_path / "c", per_subset=5, polarity="hole-white")
    assert drawn(tmp_path / "c") == drawn(tmp_path / "a")


EXPECTED_DRAW = "00000 00001 00003 00010 00013 00017 00018 00024 00026 00033".split()


def test_fewer_than_asked_gives_all_and_says_so(folder, tmp_path):
    made = build(folder, tmp_path / "out", per_subset=20)
    high, low = made.manifests["high"], made.manifests["low"]
    assert high.num_samples == high.counts["available"] < 20
    assert low.num_samples == 20 < low.counts["available"]
    assert high.counts["masks_read"] == NUM_MASKS
    assert high.options["per_subset"] == 20
    assert sum(made.plan.histogram.values()) == NUM_MASKS
    assert sum(low.hole_fraction_histogram.values()) == 20


def test_a_subset_without_masks_is_published_empty(tmp_path):
    source = half_hole_masks(tmp_path / "source")
    made = build(source, tmp_path / "out", polarity="hole-white", threshold=0.9)
    assert made.manifests["high"].num_samples == 0
    assert made.manifests["high"].counts["available"] == 0
    assert read_manifest(open_storage(tmp_path / "out" / "high")).shards == ()


# --- keys -------------------------------------------------------------------------------------------------------------


def test_keys_are_clean_unique_and_short(tmp_path):
    source = tmp_path / "source"
    names = [
        "x/a.b.c.png",
        "x/with space.png",
        "x/täst.png",
        "y/plain.png",
        "y/plain.bmp",
        "y/" + "long" * 40 + ".png",
        "z.png",
    ]
    for index, name in enumerate(names):
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(MASKS[f"{index:05d}.png"])
    build(source, tmp_path / "out", polarity="hole-white", per_subset=0)
    keys = {row["source"]: row["key"] for subset in ("high", "low") for row in rows(tmp_path / "out", subset)}
    assert keys["x/a.b.c.png"] == "x_a_b_c"
    assert keys["x/with space.png"] == "x_with_space"
    assert keys["x/täst.png"] == "x_t_st"
    assert keys["z.png"] == "z"
    assert keys["y/plain.png"].startswith("y_plain-")
    assert keys["y/plain.bmp"].startswith("y_plain-")
    assert len(set(keys.values())) == len(names)


# --- bad files, polarity ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_file_that_is_no_mask_stops_the_build_and_is_named(folder, tmp_path, num_workers):
    (folder / "notes.txt").write_text("hello")
    with pytest.raises(BadInputError, match=r"source/notes\.txt: not an image; .*--on-error skip"):
        build(folder, tmp_path / "out", num_workers=num_workers)
    assert not (tmp_path / "out").exists()


def test_skipped_files_are_counted_and_listed(folder, tmp_path):
    (folder / "notes.txt").write_text("hello")
    (folder / "00007.png").write_bytes(MASKS["00007.png"][:100])
    made = build(folder, tmp_path / "out", on_error="skip", per_subset=0)
    assert [Path(error.file).name for error in made.plan.quarantined] == ["00007.png", "notes.txt"]
    for manifest in made.manifests.values():
        assert manifest.counts["quarantined"] == 2
        assert manifest.counts["masks_read"] == NUM_MASKS - 1
    ledger = (tmp_path / "out" / "high" / "quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line)["reason"] for line in ledger][1] == "not an image"


def test_a_folder_without_any_mask_is_refused_even_with_skip(tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match=r"none of 1 files is a mask; the first: .*notes\.txt"):
        build(tmp_path / "source", tmp_path / "out", on_error="skip")


def test_unclear_polarity_stops_the_build(tmp_path):
    with pytest.raises(UserError, match="which colour of the masks is the hole"):
        build(half_hole_masks(tmp_path / "source"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_generated_masks_need_no_polarity(tmp_path):
    made = build_masks(GeneratedMasks(30, size=64), open_storage(tmp_path / "out"), num_workers=1)
    assert (made.plan.polarity.origin, made.plan.polarity.polarity) == ("generator", "hole-white")
    assert made.manifests["high"].num_samples + made.manifests["low"].num_samples == 30
    assert 8 <= made.manifests["high"].num_samples <= 12
    assert made.manifests["low"].provenance["source"] == "generated"
    with pytest.raises(UserError, match="generated masks are hole-white"):
        build_masks(GeneratedMasks(30, size=64), open_storage(tmp_path / "no"), polarity="hole-black")


def test_masks_that_hide_all_or_nothing_are_counted(folder, tmp_path):
    (folder / "nothing.png").write_bytes(png(np.zeros((64, 64), dtype=np.uint8)))
    (folder / "all.png").write_bytes(png(np.full((64, 64), 255, dtype=np.uint8)))
    made = build(folder, tmp_path / "out")
    assert made.manifests["low"].counts["without_hole"] == 1
    assert made.manifests["high"].counts["all_hole"] == 1


# --- again ------------------------------------------------------------------------------------------------------------


def test_the_same_command_again_writes_nothing(folder, tmp_path):
    first = build(folder, tmp_path / "out")
    before = times_of_files(tmp_path / "out")
    again = build(folder, tmp_path / "out")
    assert again.manifests == first.manifests
    assert times_of_files(tmp_path / "out") == before


def times_of_files(folder) -> dict[Path, int]:
    """Not of folders, which a build owns by a file that comes and goes."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_killed_build_goes_on_from_its_finished_shards(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(msldata.masks.plan, "MASKS_PER_SHARD", 7)
    build(folder, tmp_path / "whole")
    expected = all_files(tmp_path / "whole")
    out = tmp_path / "out"
    shutil.copytree(tmp_path / "whole", out)
    for subset in ("high", "low"):
        (out / subset / MANIFEST_NAME).unlink()
    (out / "low" / "masks-low-000001.parquet").unlink()
    (out / "low" / ".masks-low-000002.tar.999.part").write_bytes(b"half")
    written = []
    original = msldata.masks.build._write_shard
    monkeypatch.setattr(msldata.masks.build, "_write_shard", lambda task: written.append(task.name) or original(task))
    build(folder, out)
    assert written == ["masks-low-000001.tar"]
    assert all_files(out) == expected


@pytest.mark.parametrize("change", [{"seed": 1}, {"threshold": 0.4}, {"per_subset": 3}, {"polarity": "hole-black"}])
def test_another_plan_is_refused_until_overwritten(folder, tmp_path, change):
    out = tmp_path / "out"
    build(folder, out, per_subset=5)
    before = all_files(out)
    options = {"per_subset": 5, **change}
    with pytest.raises(UserError, match="--overwrite"):
        build(folder, out, **options)
    assert all_files(out) == before
    build(folder, out, overwrite=True, **options)
    build(folder, tmp_path / "fresh", **options)
    assert all_files(out) == all_files(tmp_path / "fresh")


def test_another_seed_is_another_plan_even_when_all_are_drawn(folder, tmp_path):
    build(folder, tmp_path / "out", per_subset=0)
    with pytest.raises(UserError, match="--overwrite"):
        build(folder, tmp_path / "out", per_subset=0, seed=1)


def test_a_changed_mask_changes_the_plan(folder, tmp_path):
    build(folder, tmp_path / "out")
    mirrored = generate_hole_mask(0, 3, 64)[:, ::-1]  # the same hole fraction and border, other pixels
    (folder / "00003.png").write_bytes(png(mirrored * np.uint8(255)))
    with pytest.raises(UserError, match="--overwrite"):
        build(folder, tmp_path / "out")


def test_progress_counts_masks_read_then_masks_written(folder, tmp_path):
    seen = []
    build(folder, tmp_path / "out", per_subset=0, progress=lambda done, total: seen.append((done, total)))
    assert seen[0] == (NUM_MASKS, NUM_MASKS)
    assert seen[-1] == (NUM_MASKS, NUM_MASKS)
    assert len(seen) == 3


# --- the real masks ---------------------------------------------------------------------------------------------------


@pytest.mark.real
def test_the_real_masks_split_as_published(sample, tmp_path):
    made = build(sample / "irregular_mask", tmp_path / "out", num_workers=2)
    assert made.plan.polarity.polarity == "hole-white"
    assert {name: manifest.num_samples for name, manifest in made.manifests.items()} == {"high": 200, "low": 200}
    with open(sample / "oracles" / "masks" / "zero_pixels.csv") as file:
        truth = {row["file"]: int(row["total_pixels"]) - int(row["zero_pixels"]) for row in csv.DictReader(file)}
    for subset in ("high", "low"):
        with tarfile.open(tmp_path / "out" / subset / f"masks-{subset}-000000.tar") as archive:
            for row in rows(tmp_path / "out", subset):
                keep_mask = decode_png(archive.extractfile(f"{row['key']}.png").read(), row["key"])
                holes = truth.pop(row["source"])
                assert np.count_nonzero(keep_mask == 0) == holes == row["hole_fraction"] * 512 * 512
                assert (holes > 512 * 512 / 2) == (subset == "high")
                assert row["source"] == f"{row['key']}.png"
    assert not truth


@pytest.mark.real
def test_inverted_real_masks_give_the_same_keep_masks(sample, tmp_path):
    source = tmp_path / "inverted"
    source.mkdir()
    for file in sorted((sample / "irregular_mask").rglob("*.png")):
        Image.fromarray(255 - np.asarray(Image.open(file))).save(source / file.name, compress_level=1)
    made = build(source, tmp_path / "inverted-out")
    assert made.plan.polarity.polarity == "hole-black"
    build(sample / "irregular_mask", tmp_path / "out")
    for subset in ("high", "low"):
        expected, found = rows(tmp_path / "out", subset), rows(tmp_path / "inverted-out", subset)
        compared = ("key", "crc32", "length", "hole_fraction")
        assert [[row[name] for name in compared] for row in found] == [
            [row[name] for name in compared] for row in expected
        ]
