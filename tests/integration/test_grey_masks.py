"""Grey keep masks (--no-binarize) from the file to the tool that shows them; and what --dry-run says of a build."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from msldata.contract.keepmask import decode_levels, resize_area
from msldata.inspect.describe import describe
from msldata.inspect.preview import load_preview, write_preview
from msldata.inspect.verify import verify
from msldata.masks.plan import plan_masks
from msldata.masks.plots import write_mask_plots
from msldata.masks.sources import open_mask_source
from msldata.storage import LocalStorage
from msltrain.__main__ import app
from tests.integration.test_build_masks import MASKS, all_files, png, rows
from tests.tinydata import build_masks

SIDE = 32


def soft_mask(index: int) -> np.ndarray:
    """Black on the left, white from a column on that moves with the index, and a ramp of grey between them."""
    edge = 4 + index
    row = np.clip((np.arange(SIDE) - edge) * 32, 0, 255)
    return np.tile(row.astype(np.uint8), (SIDE, 1))


@pytest.fixture
def source(tmp_path) -> Path:
    path = tmp_path / "source"
    path.mkdir()
    for index in range(20):
        (path / f"{index:05d}.png").write_bytes(png(soft_mask(index)))
    return path


def build(source: Path, out: Path, **options):
    options = {"polarity": "hole-white", "num_workers": 1, "binarize": False, **options}
    return build_masks(open_mask_source(source), LocalStorage(out), **options)


def stored(out: Path) -> dict[str, tuple[np.ndarray, dict]]:
    found = {}
    for shard in sorted(out.glob("*.tar")):
        with tarfile.open(shard) as archive:
            content = {member.name: archive.extractfile(member).read() for member in archive}
        for name, data in content.items():
            if name.endswith(".png"):
                assert Image.open(io.BytesIO(data)).mode == "L"
                meta = json.loads(content[name.replace(".png", ".json")])
                found[meta["source"]] = decode_levels(data, name), meta
    return found


@pytest.mark.parametrize("polarity", ["hole-white", "hole-black"])
def test_levels_are_stored_with_visible_as_255(source, tmp_path, polarity):
    made = build(source, tmp_path / "out", polarity=polarity)
    masks = {**stored(tmp_path / "out" / "high"), **stored(tmp_path / "out" / "low")}
    assert len(masks) == 20
    for index in range(20):
        level_HW, meta = masks[f"{index:05d}.png"]
        gray_HW = soft_mask(index)
        assert (level_HW == (255 - gray_HW if polarity == "hole-white" else gray_HW)).all()
        # The hole fraction is the binarised mask's.
        assert meta["hole_fraction"] == np.count_nonzero(level_HW <= 127) / SIDE**2
    assert made.manifests["high"].options["binarize"] is False
    assert all(row["hole_fraction"] > 0.5 for row in rows(tmp_path / "out", "high"))


def test_resizing_takes_the_mean_of_an_area(source, tmp_path):
    build(source, tmp_path / "out", size=20)
    for name, (level_HW, meta) in stored(tmp_path / "out" / "low").items():
        gray_HW = resize_area(soft_mask(int(name[:5])), 20, 20)
        assert (level_HW == 255 - gray_HW).all()
        assert meta["hole_fraction"] == np.count_nonzero(level_HW <= 127) / 400
        assert meta["source_hole_fraction"] == np.count_nonzero(soft_mask(int(name[:5])) > 127) / SIDE**2


def test_a_binary_set_of_the_same_files_differs_in_nothing_but_the_grey(source, tmp_path):
    build(source, tmp_path / "grey")
    build(source, tmp_path / "binary", binarize=True)
    for subset in ("high", "low"):
        columns = [
            [(row["key"], row["hole_fraction"]) for row in rows(tmp_path / kind, subset)] for kind in ("grey", "binary")
        ]
        assert columns[0] == columns[1]


def test_bytes_do_not_depend_on_workers(source, tmp_path):
    for workers in (1, 2):
        build(source, tmp_path / str(workers), num_workers=workers)
    assert all_files(tmp_path / "1") == all_files(tmp_path / "2")


def test_every_tool_understands_grey(source, tmp_path):
    made = build(source, tmp_path / "out")
    folder = LocalStorage(tmp_path / "out" / "low")
    assert verify(folder, num_workers=1).findings == ()
    assert describe(folder).options["binarize"] is False
    tile = load_preview(folder, num=1).tiles[0]
    assert set(np.unique(tile.mask.level_HW)) - {0, 255}
    write_preview(folder, tmp_path / "page.html", num=3)
    for picture in write_mask_plots(tmp_path / "plots", made, LocalStorage(tmp_path / "out")):
        assert picture.stat().st_size > 10_000


def test_grey_in_a_set_that_says_it_was_binarised_is_found(source, tmp_path):
    build(source, tmp_path / "out")
    manifest = tmp_path / "out" / "low" / "dataset.json"
    manifest.write_text(manifest.read_text().replace('"binarize": false', '"binarize": true'))
    findings = verify(LocalStorage(tmp_path / "out" / "low"), num_workers=1).findings
    assert findings and {(item.what, item.expected) for item in findings} == {("pixels of the keep mask", "0 and 255")}


# --- dry run ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("binarize", [True, False])
def test_a_plan_knows_the_bytes_and_writes_none(source, tmp_path, binarize):
    options = {"polarity": "hole-black", "num_workers": 1, "binarize": binarize, "size": 24}
    plan = plan_masks(open_mask_source(source), LocalStorage(tmp_path / "out"), **options)
    assert not (tmp_path / "out").exists()
    made = build(source, tmp_path / "out", **options)
    for subset in plan.subsets:
        manifest = made.manifests[subset.draft.split]
        assert (subset.num_samples, len(subset.tasks)) == (manifest.num_samples, len(manifest.shards))
        assert subset.num_bytes() == sum(shard.num_bytes for shard in manifest.shards) > 0
        assert subset.draft.plan == manifest.plan


def test_the_dry_run_of_the_command(tmp_path):
    (tmp_path / "source").mkdir()
    for name, data in MASKS.items():
        (tmp_path / "source" / name).write_bytes(data)
    arguments = ["build-masks", "--source", str(tmp_path / "source"), "--out", str(tmp_path / "out"), "--workers", "1"]
    result = CliRunner().invoke(app, [*arguments, "--dry-run", "--buckets"])
    assert result.exit_code == 0, result.output
    assert not (tmp_path / "out").exists()
    assert "low: " in result.output and "holes-10-20: " in result.output and "nothing was written" in result.output
    assert CliRunner().invoke(app, [*arguments, "--no-binarize"]).exit_code == 0
    assert '"binarize": false' in (tmp_path / "out" / "low" / "dataset.json").read_text()
    again = CliRunner().invoke(app, [*arguments, "--no-binarize", "--dry-run"])
    assert again.exit_code == 0 and "low: " in again.output and ", finished already -> " in again.output
    refused = CliRunner().invoke(app, [*arguments, "--dry-run"])
    assert refused.exit_code == 2 and "built from other files, labels or options" in refused.output
    assert CliRunner().invoke(app, [*arguments, "--dry-run", "--overwrite"]).exit_code == 0
