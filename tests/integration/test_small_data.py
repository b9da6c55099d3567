"""Sixty photographs of one's own: what is said, and which checkpoint is the best."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from msltrain.__main__ import app
from tests.smallshards import write_images, write_keep_masks


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("small")
    write_images(root / "train", [30, 30])
    write_images(root / "more", [120])
    rng = np.random.default_rng(0)
    write_keep_masks(root / "high", [(rng.random((32, 32)) > 0.5).astype(np.uint8) for _ in range(5)])
    return root


def train(data: Path, run: Path, *settings: str, shards: str = "train") -> str:
    command = ["train", "--recipe", "smoke", "--data", str(data / shards), "--keep-masks", str(data / "high")]
    command += ["--run", str(run)]
    for one in ("stream.image_size=32", "model.backbone=test_efficientnet", "run.device=cpu", *settings):
        command += ["--set", one]
    result = CliRunner().invoke(app, command, env={"COLUMNS": "300"})
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def validations(run: Path) -> list[dict]:
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [row for row in rows if "validation_mAP" in row]


def best_epoch(run: Path) -> int:
    return json.loads((run / "checkpoints" / "best" / "meta.json").read_text())["epoch"]


def test_what_is_small_is_said(data, tmp_path):
    said = train(data, tmp_path, "stream.batch_size=40", "optim.num_epochs=1")
    assert "an epoch has 1 steps and the run 1" in said
    assert "every epoch leaves" in said and "samples out" in said
    assert "validation shows 3 of 3 classes fewer than 5 times (bird, boat, cat)" in said


def test_nothing_is_said_where_there_is_enough(data, tmp_path):
    said = train(
        data, tmp_path, "stream.batch_size=2", "optim.num_epochs=1", "data.validation_fraction=0.4", shards="more"
    )
    assert "an epoch has" not in said and "every epoch leaves" not in said and "validation shows" not in said


def test_no_best_checkpoint_before_the_warm_up_ends_and_the_later_on_ties(data, tmp_path):
    """A rate of almost nothing: every epoch measures the same, and the first ones are the warm-up's."""
    train(data, tmp_path, "stream.batch_size=40", "optim.num_epochs=6", "optim.warmup_epochs=4", "optim.lr=1e-9")
    found = validations(tmp_path)
    assert len(found) == 6
    top = max(row["validation_mAP"] for row in found[1:])
    assert best_epoch(tmp_path) == max(row["epoch"] for row in found[1:] if row["validation_mAP"] == top) + 1
