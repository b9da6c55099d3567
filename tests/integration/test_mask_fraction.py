"""``build-masks --to-fraction``: holes grown or shrunk to a share of the image, which the manifest states."""

from __future__ import annotations

import numpy as np
import pytest
from typer.testing import CliRunner

from msldata.contract.manifest import read_manifest
from msldata.masks.hole_fraction import reach_fraction
from msldata.storage import open_storage
from msltrain.__main__ import app


def disc(radius: int, side: int = 128) -> np.ndarray:
    y, x = np.mgrid[0:side, 0:side] - side // 2
    return x * x + y * y < radius * radius


@pytest.mark.parametrize("target", [0.1, 0.25, 0.5, 0.8])
@pytest.mark.parametrize("radius", [5, 30, 60])
def test_the_share_is_reached_to_the_pixel_and_holes_stay_where_they_were(target, radius):
    before, after = disc(radius), reach_fraction(disc(radius), target)
    assert after.mean() == pytest.approx(target, abs=1 / after.size)
    assert (after & before).sum() == min(after.sum(), before.sum())  # one holds the other


@pytest.mark.parametrize("polarity", ["auto", "hole-white"])
def test_the_command_states_what_was_reached(tmp_path, polarity):
    out = tmp_path / "masks"
    arguments = ["build-masks", "--generate", "12", "--size", "128", "--to-fraction", "0.25", "--out", str(out)]
    result = CliRunner().invoke(app, [*arguments, "--polarity", polarity, "--workers", "1"])
    assert result.exit_code == 0, result.output
    manifest = read_manifest(open_storage(out / "low"))
    reached = manifest.provenance["hole_fraction_reached"]
    assert manifest.options["to_fraction"] == 0.25 and manifest.num_samples == 12
    assert reached == pytest.approx(dict.fromkeys(("lowest", "mean", "highest"), 0.25), abs=1e-4)
    assert CliRunner().invoke(app, ["verify", str(out / "low"), "--workers", "1"]).exit_code == 0


@pytest.mark.parametrize("options", [["--to-fraction", "1.5"], ["--to-fraction", "0.2", "--no-binarize"]])
def test_what_cannot_be_is_refused(tmp_path, options):
    result = CliRunner().invoke(app, ["build-masks", "--generate", "3", *options, "--out", str(tmp_path / "masks")])
    assert result.exit_code != 0 and not (tmp_path / "masks").exists()
