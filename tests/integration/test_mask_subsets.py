"""Which masks a build chooses: official slices, buckets of ten percent, and that the default never changes."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from msldata.contract.format import decode_index
from msldata.contract.keepmask import decode_png, hole_fraction, resize_nearest
from msldata.contract.manifest import KEEP_MASKS, read_manifest
from msldata.errors import UserError
from msldata.masks.sources import GeneratedMasks, open_mask_source
from msldata.storage import open_storage
from msltrain.__main__ import app
from tests.tinydata import build_masks


def white_rows(rows: float, size: int = 50) -> bytes:
    """A mask file whose upper ``rows`` of 50 rows are white."""
    gray = np.zeros((size, size), dtype=np.uint8)
    gray[: round(rows * size / 50)] = 255
    buffer = io.BytesIO()
    Image.fromarray(gray).save(buffer, "PNG")
    return buffer.getvalue()


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def build(location, out: Path, **options):
    options = {"num_workers": 1, "polarity": "hole-white", **options}
    return build_masks(open_mask_source(location), open_storage(out), **options)


def rows(out: Path, subset: str) -> list[dict]:
    storage = open_storage(out / subset)
    return [
        row
        for shard in read_manifest(storage).shards
        for row in decode_index(KEEP_MASKS, storage.read(shard.index_name), shard.index_name).to_pylist()
    ]


def sources(out: Path, subset: str) -> list[str]:
    return [row["source"] for row in rows(out, subset)]


def test_default_plans_and_bytes_never_change(tmp_path):
    # Written down once: whoever has built masks must find the same command to do nothing, and the same fingerprints.
    made = build_masks(
        GeneratedMasks(40, size=64), open_storage(tmp_path), per_subset=5, seed=3, num_workers=1
    ).manifests
    assert {name: (manifest.plan[:16], manifest.fingerprint[:16]) for name, manifest in made.items()} == {
        "high": ("fd064b201a808c4b", "dccb1217356cba0d"),
        "low": ("8c34161e43f6b172", "ca5d2f1723bc3162"),
    }


# --- official order ---------------------------------------------------------------------------------------------------

EDGES = ("00000", "00001", "00999", "01000", "09999", "10000", "10999", "11000", "11998", "11999")
"""Numbers at the ends of the slices. All hide the same share: names decide, not hole fractions."""


@pytest.fixture
def nvidia_like(tmp_path) -> Path:
    return write(tmp_path / "source", {f"mask/{number}.png": white_rows(20 + 1) for number in EDGES})


def test_official_takes_the_slices_by_file_name(nvidia_like, tmp_path):
    made = build(nvidia_like, tmp_path / "out", order="official")
    found = {
        name: [source.removesuffix(".png") for source in sources(tmp_path / "out", name)] for name in made.manifests
    }
    assert found == {
        "high": ["11000", "11998", "11999"],
        "low": ["00000", "00001", "00999"],
        "heldout": ["10000", "10999"],
    }
    heldout = made.manifests["heldout"]
    assert (heldout.counts["available"], heldout.counts["files_in_slice"]) == (2, 1000)
    assert heldout.options == {"order": "official", "polarity": "hole-white", "per_subset": 1000}
    assert "high: 3 of the 1,000 files 11000–11999 are in the source" in made.plan.notes


def test_official_cuts_from_the_front_of_each_slice(nvidia_like, tmp_path):
    made = build(nvidia_like, tmp_path / "out", order="official", per_subset=2)
    assert sources(tmp_path / "out", "high") == ["11000.png", "11998.png"]
    assert sources(tmp_path / "out", "low") == ["00000.png", "00001.png"]
    assert made.manifests["low"].counts["available"] == 3


@pytest.mark.parametrize("missing", ["00", "10", "11"])
def test_an_empty_slice_is_refused(nvidia_like, tmp_path, missing):
    for path in nvidia_like.rglob(f"{missing}*.png"):
        path.unlink()
    with pytest.raises(UserError, match=r"none of the files .*is in the source.*--order seeded"):
        build(nvidia_like, tmp_path / "out", order="official")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["mask/1234.png", "mask/000001.png", "mask/a.png", "mask/12000.png", "mask/٠٠٠٠١.png"])
def test_official_needs_the_names_of_the_test_set(nvidia_like, tmp_path, name):
    write(nvidia_like, {name: white_rows(5)})
    with pytest.raises(UserError, match=r"named 00000 to 11999; '.*' is not one of them"):
        build(nvidia_like, tmp_path / "out", order="official")


def test_one_number_twice_is_refused(nvidia_like, tmp_path):
    write(nvidia_like, {"copy/10000.png": white_rows(5)})
    with pytest.raises(UserError, match=r"copy/10000\.png and mask/10000\.png have one number"):
        build(nvidia_like, tmp_path / "out", order="official")


def test_generated_masks_have_no_official_order(tmp_path):
    with pytest.raises(UserError, match="'generated-000000'"):
        build_masks(GeneratedMasks(8, size=32), open_storage(tmp_path / "out"), order="official", num_workers=1)


@pytest.mark.parametrize("option", [{"threshold": 0.4}, {"seed": 1}, {"buckets": True}])
def test_options_that_official_order_would_ignore_are_refused(nvidia_like, tmp_path, option):
    with pytest.raises(UserError, match=r"--order official takes masks by their file names"):
        build(nvidia_like, tmp_path / "out", order="official", **option)


def test_an_unknown_order_is_refused(nvidia_like, tmp_path):
    with pytest.raises(UserError, match="unknown order 'random'; use seeded or official"):
        build(nvidia_like, tmp_path / "out", order="random")


@pytest.mark.real
def test_official_slices_of_the_real_masks(sample, tmp_path):
    numbers = [int(path.stem) for path in (sample / "irregular_mask").rglob("*.png")]
    made = build(sample / "irregular_mask", tmp_path / "out", order="official", polarity="auto", num_workers=2)
    for name, start in {"high": 11000, "low": 0, "heldout": 10000}.items():
        expected = sorted(number for number in numbers if start <= number < start + 1000)
        assert [int(row["key"]) for row in rows(tmp_path / "out", name)] == expected
        assert made.manifests[name].counts["available"] == len(expected) > 0
        for row in rows(tmp_path / "out", name):
            assert (0.5 < row["hole_fraction"] <= 0.6) if start else (0 < row["hole_fraction"] <= 0.1)


# --- buckets ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def graded(tmp_path) -> Path:
    """Masks of 0, 2, 4 … 100 percent."""
    return write(tmp_path / "source", {f"p{2 * number:03d}.png": white_rows(number) for number in range(51)})


def test_buckets_exclude_their_lower_edge_and_include_their_upper(graded, tmp_path):
    made = build(graded, tmp_path / "out", buckets=True, per_subset=0)
    assert list(made.manifests) == [
        *("high", "low", "holes-00-10", "holes-10-20", "holes-20-30", "holes-30-40", "holes-40-50", "holes-50-60"),
    ]
    for tenth in range(6):
        name = f"holes-{tenth}0-{tenth + 1}0"
        assert sources(tmp_path / "out", name) == [f"p{10 * tenth + 2 * step:03d}.png" for step in range(1, 6)]
        options = made.manifests[name].options
        assert (options["hole_fraction_above"], options["hole_fraction_up_to"]) == (tenth / 10, (tenth + 1) / 10)
    assert made.plan.notes == ("21 masks are in none of the buckets: they hide nothing, or more than 60 % of an image",)


def test_buckets_first_take_masks_that_high_and_low_did_not(graded, tmp_path):
    made = build(graded, tmp_path / "out", buckets=True, per_subset=3)
    taken = {*sources(tmp_path / "out", "high"), *sources(tmp_path / "out", "low")}
    for name in list(made.manifests)[2:]:
        drawn = set(sources(tmp_path / "out", name))
        assert len(drawn) == 3
        assert made.manifests[name].counts["also_in_high_or_low"] == len(drawn & taken)
        free = {f"p{int(name[6:8]) + 2 * step:03d}.png" for step in range(1, 6)} - taken
        assert len(drawn & free) == min(3, len(free)), "a free mask was passed over"


def test_buckets_leave_high_and_low_as_they_are(graded, tmp_path):
    first = build(graded, tmp_path / "out", per_subset=5).manifests
    again = build(graded, tmp_path / "out", per_subset=5, buckets=True).manifests
    assert {name: again[name] for name in first} == first


def test_an_empty_bucket_is_left_out_and_said(graded, tmp_path):
    for percent in range(32, 42, 2):
        (graded / f"p{percent:03d}.png").unlink()
    made = build(graded, tmp_path / "out", buckets=True)
    assert "holes-30-40" not in made.manifests
    assert len(made.manifests) == 7
    assert not (tmp_path / "out" / "holes-30-40").exists()
    assert "holes-30-40: left out, no mask of this hole fraction in the source" in made.plan.notes


def test_an_old_bucket_does_not_pass_for_one_that_is_left_out(graded, tmp_path):
    build(graded, tmp_path / "out", buckets=True, threshold=0.4)
    for name in ("high", "low"):
        for path in (tmp_path / "out" / name).iterdir():
            path.unlink()
    for percent in range(32, 42, 2):
        (graded / f"p{percent:03d}.png").unlink()
    with pytest.raises(UserError, match=r"holes-30-40: this folder holds a dataset that was built from other files"):
        build(graded, tmp_path / "out", buckets=True)
    build(graded, tmp_path / "out", buckets=True, overwrite=True)
    assert not list((tmp_path / "out").glob("holes-30-40/*"))


# --- size -------------------------------------------------------------------------------------------------------------


def stored(out: Path, subset: str) -> dict[str, tuple[np.ndarray, dict]]:
    """(keep mask, JSON) of each sample, by the name of its source."""
    found = {}
    with tarfile.open(out / subset / f"masks-{subset}-000000.tar") as archive:
        for row in rows(out, subset):
            meta = json.loads(archive.extractfile(f"{row['key']}.json").read())
            found[meta["source"]] = decode_png(archive.extractfile(f"{row['key']}.png").read(), ""), meta
    return found


def test_resized_masks_are_measured_as_they_are_stored(tmp_path):
    # 26 of 50 rows are 0.52, but 8 of 16; a mask must lie in the subset that its stored form belongs to.
    files = {"a.png": white_rows(26), "b.png": white_rows(27), "c.png": white_rows(10)}
    out = tmp_path / "out"
    made = build(write(tmp_path / "source", files), out, size=16)
    assert sources(out, "high") == ["b.png"]
    assert made.manifests["high"].options["size"] == 16
    for name, rows_of_16, source_fraction in (("a.png", 8, 0.52), ("c.png", 3, 0.2)):
        keep_mask, meta = stored(out, "low")[name]
        assert keep_mask.shape == (16, 16)
        assert (keep_mask == (np.arange(16) >= rows_of_16)[:, None]).all()
        assert meta["hole_fraction"] == rows_of_16 / 16 == hole_fraction(keep_mask)
        assert (meta["source_hole_fraction"], meta["source_width"], meta["source_height"]) == (source_fraction, 50, 50)
    for row in rows(out, "low"):
        assert (row["width"], row["height"], row["hole_fraction"]) == (
            16,
            16,
            {"a.png": 0.5}.get(row["source"], 3 / 16),
        )


@pytest.mark.parametrize("size", [0, 15, -4, 8193])
def test_a_size_out_of_range_is_refused(graded, tmp_path, size):
    with pytest.raises(UserError, match=f"size is {size}; .* between 16 and 8,192"):
        build(graded, tmp_path / "out", size=size)


def test_another_size_is_another_plan(graded, tmp_path):
    build(graded, tmp_path / "out", size=32)
    for other in (64, None):
        with pytest.raises(UserError, match="--overwrite"):
            build(graded, tmp_path / "out", size=other)


@pytest.mark.real
def test_real_masks_resized_to_448(sample, tmp_path):
    with open(sample / "oracles" / "masks" / "zero_pixels.csv") as file:
        truth = {row["file"]: 1 - int(row["zero_pixels"]) / int(row["total_pixels"]) for row in csv.DictReader(file)}
    folder = next((sample / "irregular_mask").rglob("*.png")).parent
    build(folder, tmp_path / "out", size=448, order="official", per_subset=12)
    for subset in ("high", "low", "heldout"):
        for name, (keep_mask, meta) in stored(tmp_path / "out", subset).items():
            original = (np.asarray(Image.open(folder / name)) == 0).astype(np.uint8)
            assert (keep_mask == resize_nearest(original, 448, 448)).all()
            assert meta["source_hole_fraction"] == pytest.approx(truth[name], abs=1e-12)
            assert 0 < abs(meta["hole_fraction"] - truth[name]) < 0.01


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_says_what_was_there(nvidia_like, tmp_path):
    from typer.testing import CliRunner

    common = ["build-masks", "--source", str(nvidia_like), "--polarity", "hole-white", "--workers", "1"]
    official = [*common, "--out", str(tmp_path / "out"), "--order", "official", "--size", "32"]
    result = CliRunner().invoke(app, [*official, "--plots", str(tmp_path / "plots")])
    assert result.exit_code == 0, result.output
    assert "low: 3 of the 1,000 files 00000–00999 are in the source" in result.output
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == ["contact-sheet.png", "hole-fractions.png"]
    assert {row["width"] for row in rows(tmp_path / "out", "heldout")} == {32}
    result = CliRunner().invoke(app, [*common, "--out", str(tmp_path / "buckets"), "--buckets"])
    assert "holes-00-10: left out" in result.output
    assert len(rows(tmp_path / "buckets", "holes-40-50")) == len(EDGES)
    refused = CliRunner().invoke(app, [*official, "--seed", "1"])
    assert refused.exit_code == 2
