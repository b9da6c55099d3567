"""``ablate`` as real processes: stopped and going on, a failed run beside good ones, shares, mistakes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from msldata.errors import UserError
from msltrain.grid.run import parse_task
from msltrain.metrics import compute_metrics
from msltrain.predictions import read_predictions
from tests.smallshards import write_images, write_keep_masks
from tests.tinydata import contents

SMALL = (
    *("model.backbone=test_resnet", "model.weights=", "stream.image_size=32", "stream.batch_size=8"),
    *("run.amp=false", "run.log_every=1", "optim.num_epochs=2", "optim.warmup_epochs=0.5"),
    "data.validation_fraction=0.2",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_images(root / "train", [20, 20], size=(40, 36))
    write_images(root / "test", [16], size=(40, 36))
    rng = np.random.default_rng(0)
    for number, name in enumerate(("masks/high", "masks/low", "heldout/high")):
        masks = [(rng.random((32, 32)) > 0.6 - 0.3 * (number == 1)).astype(np.uint8) for _ in range(6)]
        write_keep_masks(root / name, masks)
    return root


def arguments(data: Path, out: Path, grid: str, *more: str, settings: tuple[str, ...] = SMALL) -> list[str]:
    words = ["ablate", grid, "--data", data / "train", "--test", data / "test", "--keep-masks", data / "masks"]
    words += ["--test-masks", data / "heldout/high", "--out", out, "--seeds", "0"]
    return [*map(str, words), *(word for setting in settings for word in ("--set", setting)), *more]


def msl(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cli", *words], capture_output=True, text=True, timeout=120, env={**os.environ}
    )


def starts(run: Path) -> list[dict]:
    return json.loads((run / "environment.json").read_text())


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed grid."""
    out = tmp_path_factory.mktemp("ablate") / "undisturbed"
    done = msl(*arguments(data, out, "binarisation"))
    assert done.returncode == 0, done.stderr + done.stdout
    return out


def test_each_row_is_measured_with_both_checkpoints_whole_and_behind_masks(finished: Path, data: Path):
    content = json.loads((finished / "binarisation.json").read_text())
    (table,) = content["tables"]
    assert table["table"] == "table-5"  # the grid has a number in our sources
    rows = {row["row"]: row for row in table["grids"][0]["rows"]}
    assert set(rows) == {"msl", "not-binarised"}
    for row, run in (("msl", "loss-terms/msl"), ("not-binarised", "binarisation/not-binarised")):
        assert rows[row]["run"] == run
        for checkpoint in ("last", "best"):
            for condition in ("whole", "high"):
                file = finished / "runs" / run / "seed0" / "predictions" / f"{checkpoint}-{condition}.parquet"
                predictions = read_predictions(file)
                assert predictions.origin.checkpoint.endswith(f"checkpoints/{checkpoint}")
                assert bool(predictions.origin.keep_masks) == (condition == "high")
                found = rows[row]["measured"][checkpoint][condition]
                assert found["mAP"] == {
                    "mean": pytest.approx(compute_metrics(predictions).mAP),
                    "std": None,
                    "by_seed": {"0": found["mAP"]["mean"]},
                }
    assert "keep_mask.visible_level" in rows["not-binarised"]["changes"]
    assert any("16 images" in caveat for caveat in content["caveats"])
    assert any("optim.num_epochs=2" in caveat for caveat in content["caveats"])


def test_ctrl_c_saves_and_the_same_command_goes_on(finished: Path, data: Path, tmp_path: Path):
    out = tmp_path / "grid"
    words = arguments(data, out, "binarisation")
    grid = subprocess.Popen(
        [sys.executable, "-u", "-m", "cli", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    metrics = out / "runs/binarisation/not-binarised/seed0/metrics.jsonl"
    while grid.poll() is None and not (metrics.exists() and '"step": 2' in metrics.read_text()):
        time.sleep(0.01)  # the second run takes eight steps
    grid.send_signal(signal.SIGINT)
    output, _ = grid.communicate(timeout=60)
    assert grid.returncode == 130, output
    assert "the same command goes on" in output
    page = (out / "binarisation.html").read_text(encoding="utf-8")
    assert "1 of 2 jobs are not finished" in page and "<td>–</td>" in page
    assert f"msl ablate binarisation --data {data / 'train'}" in page
    first = contents(out / "runs/loss-terms")
    assert "stopped by SIGTERM" in (metrics.parent / "run.log").read_text()

    again = msl(*words)
    assert again.returncode == 0, again.stderr + again.stdout
    assert "1 of 2 jobs were finished before" in again.stdout
    assert contents(out / "runs/loss-terms") == first
    steps = [start["from_step"] for start in starts(metrics.parent)]
    assert len(steps) == 2 and steps[0] == 0 and steps[1] > 0
    assert "jobs are not finished" not in (out / "binarisation.html").read_text(encoding="utf-8")
    for name in ("last-whole", "best-high"):  # bit for bit what an undisturbed grid gives
        files = (folder / "runs/binarisation/not-binarised/seed0/predictions" for folder in (finished, out))
        one, other = (read_predictions(folder / f"{name}.parquet").logit_NK for folder in files)
        assert np.array_equal(one, other)


def test_a_finished_grid_does_nothing_and_grids_share_their_runs(finished: Path, data: Path):
    before = contents(finished / "runs")
    again = msl(*arguments(data, finished, "mask-subsets", "--dry-run"))
    assert again.returncode == 0, again.stderr
    assert "2 trainings" in again.stdout and "unknown GPU-hours" in again.stdout
    assert "0 of 1" in next(line for line in again.stdout.splitlines() if line.startswith("loss-terms/msl"))
    again = msl(*arguments(data, finished, "binarisation"))
    assert again.returncode == 0 and "2 of 2 jobs were finished before" in again.stdout
    assert contents(finished / "runs") == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("optim.num_epochs=3", ["binarisation/not-binarised: optim.num_epochs was 2, is 3"]),
        ("train", ["other training images"]),
        ("heldout", ["other held-out keep masks"]),
    ],
)
def test_another_grid_is_refused(finished: Path, data: Path, tmp_path: Path, change: str, words: list[str]):
    before = contents(finished)
    other, settings = data, SMALL
    if "=" in change:
        settings = (*SMALL, change)
    else:
        other = tmp_path / "data"
        other.mkdir()
        for place in data.iterdir():
            (other / place.name).symlink_to(place)
        (other / change).unlink()
        if change == "train":
            write_images(other / "train", [19, 20], size=(40, 36))
        else:
            write_keep_masks(other / "heldout/high", [np.eye(32, dtype=np.uint8)] * 3)
    done = msl(*arguments(other, finished, "binarisation", settings=settings))
    assert done.returncode == 2, done.stdout
    assert all(word in done.stderr for word in words), done.stderr
    assert "--out" in done.stderr and "msl ablate binarisation" in done.stderr
    assert contents(finished) == before


def test_a_failed_run_is_named_and_tried_again(data: Path, tmp_path: Path):
    broken = tmp_path / "data"
    for name in ("train", "test", "heldout", "masks/high"):
        (broken / name).parent.mkdir(parents=True, exist_ok=True)
        (broken / name).symlink_to(data / name)
    low = broken / "masks/low"
    write_keep_masks(low, [np.eye(32, dtype=np.uint8)] * 3)
    (tar,) = low.glob("*.tar")
    whole = tar.read_bytes()
    tar.write_bytes(whole[:600] + b"\xff" * 400 + whole[1000:])
    out = tmp_path / "grid"
    words = arguments(broken, out, "mask-subsets", settings=(*SMALL, "optim.num_epochs=1"))
    done = msl(*words)
    assert done.returncode == 1, done.stderr + done.stdout
    assert "2 of 3 jobs failed" in done.stderr and "the same command tries them again" in done.stderr
    log = out / "runs/mask-subsets/low/seed0/run.log"
    assert str(log) in done.stderr and "error" in log.read_text().lower()
    page = (out / "mask-subsets.html").read_text(encoding="utf-8")
    assert "mask-subsets/low seed 0</b> failed: " in page and str(log) in page

    kept = contents(out / "runs/loss-terms")
    tar.write_bytes(whole)
    done = msl(*words)
    assert done.returncode == 0, done.stderr + done.stdout
    assert contents(out / "runs/loss-terms") == kept
    assert "</b> failed:" not in (out / "mask-subsets.html").read_text(encoding="utf-8")


def test_an_array_job_shares_the_grid(data: Path, tmp_path: Path):
    words = arguments(data, tmp_path / "grid", "binarisation", settings=(*SMALL, "optim.num_epochs=1"))
    for share, left in (("1/2", 1), ("2/2", 0)):
        done = msl(*words, "--task", share)
        assert done.returncode == 0, done.stderr + done.stdout
        page = (tmp_path / "grid" / "binarisation.html").read_text(encoding="utf-8")
        assert ("1 of 2 jobs are not finished" in page) == bool(left)
        assert "--task" not in page  # what goes on takes all shares
    assert len(list((tmp_path / "grid/runs").glob("*/*/seed0"))) == 2


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2"])
def test_shares_are_counted_from_one(text: str):
    with pytest.raises(UserError, match="expected I/N"):
        parse_task(text)
