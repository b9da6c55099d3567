"""``ablate`` as real processes: a failed run beside a good one, stopped by Ctrl-C, going on; shares; mistakes."""

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
from typer.testing import CliRunner

from msldata.errors import UserError
from msltrain.__main__ import app
from msltrain.grids import run as grid_run
from msltrain.grids.plan import DataPlaces, make_plan
from msltrain.grids.run import open_grid, parse_task, run_grid
from msltrain.measures.metrics import compute_metrics
from msltrain.measures.predictions import read_predictions
from msltrain.recipes import RECIPES
from tests import readyprogram
from tests.smallshards import write_images, write_keep_masks
from tests.tinydata import contents

pytestmark = pytest.mark.usefixtures("ready_python")

SETTINGS = (
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
    for name, hidden in (("masks/high", 0.6), ("masks/low", 0.3), ("heldout/high", 0.6)):
        write_keep_masks(root / name, [(rng.random((32, 32)) > hidden).astype(np.uint8) for _ in range(6)])
    return root


def words(data: Path, out: Path, *more: object) -> list[str]:
    places = ["--data", data / "train", "--test", data / "test", "--keep-masks", data / "masks"]
    places += ["--test-masks", data / "heldout/high", "--out", out, "--seeds", "0"]
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    return [str(word) for word in ("ablate", "mask-subsets", *places, *settings, *more)]


def start(arguments: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-u", "-m", "msltrain", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def in_this_process(arguments: list[str]) -> tuple[int, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["msl", *arguments])  # what messages advise
        result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    return result.exit_code, result.output


def children(process: int) -> list[int]:
    file = Path(f"/proc/{process}/task/{process}/children")
    return [int(word) for word in file.read_text().split()] if file.exists() else []


@pytest.fixture(scope="module")
def story(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grid whose masks were damaged, then repaired, that was stopped and then went on to its end."""
    out = tmp_path_factory.mktemp("ablate") / "grid"
    page, runs = out / "mask-subsets.html", out / "runs"
    low = runs / "mask-subsets/low/seed0"
    tar = next((data / "masks/low").glob("*.tar"))
    whole = tar.read_bytes()
    tar.write_bytes(whole[:600] + b"\xff" * 400 + whole[1000:])

    code, output = in_this_process(words(data, out))
    assert code == 1, output
    assert "2 of 3 jobs failed" in output and "the same command tries them again" in output
    assert f"mask-subsets/low seed 0: {tar.parent}" in output and f"log: {low / 'run.log'}" in output
    assert f"error: {tar.parent}" in (low / "run.log").read_text()
    text = page.read_text(encoding="utf-8")
    assert "2 of 3 jobs are not finished" in text and f"<code>{low / 'run.log'}</code>" in text
    finished = contents(runs / "loss-terms/msl")

    tar.write_bytes(whole)
    grid = start(words(data, out))
    metrics = low / "metrics.jsonl"
    while grid.poll() is None and not (metrics.exists() and '"step": 2' in metrics.read_text()):
        time.sleep(0.01)  # it takes eight steps
    for process in (
        *children(readyprogram.pid_of(grid.pid)),
        grid.pid,
    ):  # as a batch system does; Ctrl-C reaches the last one alone
        os.kill(process, signal.SIGTERM)
    output, _ = grid.communicate(timeout=60)
    assert grid.returncode == 130, output
    assert "1 of 3 jobs were finished before" in output and "the same command goes on" in output
    assert "stopped by SIGTERM" in (low / "run.log").read_text()
    text = page.read_text(encoding="utf-8")
    assert "2 of 3 jobs are not finished" in text and "<td>–</td>" in text and "</b> failed:" not in text
    assert f"msl ablate mask-subsets --data {data / 'train'}" in text

    code, output = in_this_process(words(data, out))
    assert code == 0, output
    assert "not finished" not in page.read_text(encoding="utf-8")
    assert contents(runs / "loss-terms/msl") == finished  # neither failure nor stop cost the run that was done
    return out


def test_a_stopped_run_goes_on_from_its_last_checkpoint(story: Path):
    run = story / "runs/mask-subsets/low/seed0"
    steps = [begun["from_step"] for begun in json.loads((run / "environment.json").read_text())]
    assert len(steps) == 2 and steps[0] == 0 and steps[1] > 0
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "total" in row] == list(range(1, 9))


def test_each_row_is_measured_with_both_checkpoints_whole_and_behind_masks(story: Path):
    content = json.loads((story / "mask-subsets.json").read_text())
    (table,) = content["tables"]
    rows = {row["row"]: row for row in table["grids"][0]["rows"]}
    assert {name: row["run"] for name, row in rows.items()} == {
        "msl": "loss-terms/msl", "low": "mask-subsets/low", "both": "mask-subsets/both"
    }  # fmt: skip
    for row in rows.values():
        for checkpoint in ("last", "best"):
            for condition in ("whole", "high"):
                file = story / "runs" / row["run"] / "seed0" / "predictions" / f"{checkpoint}-{condition}.parquet"
                predictions = read_predictions(file)
                assert predictions.origin.checkpoint.endswith(f"checkpoints/{checkpoint}")
                assert bool(predictions.origin.keep_masks) == (condition == "high")
                found = row["measured"][checkpoint][condition]["mAP"]
                assert found["mean"] == found["by_seed"]["0"] == pytest.approx(compute_metrics(predictions).mAP)
                assert found["std"] is None
    assert list(rows["low"]["changes"]) == ["data.keep_masks"]
    assert any("test, 16 images" in caveat or "16 images" in caveat for caveat in content["caveats"])
    assert any("optim.num_epochs=2" in caveat for caveat in content["caveats"])


def test_a_finished_grid_does_nothing_and_others_share_its_runs(story: Path, data: Path):
    before = contents(story / "runs")
    code, output = in_this_process(words(data, story))
    assert code == 0 and "3 of 3 jobs were finished before" in output
    arguments = words(data, story, "--dry-run")
    arguments[1] = "binarisation"
    code, output = in_this_process(arguments)
    assert code == 0 and "2 trainings, about unknown GPU-hours" in output
    assert "0 of 1" in next(line for line in output.splitlines() if line.startswith("loss-terms/msl"))
    assert contents(story / "runs") == before


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("settings", "mask-subsets/low: optim.num_epochs was 2, is 3"),
        ("train", "other training images"),
        ("heldout", "other held-out keep masks, high"),
    ],
)
def test_another_grid_is_refused(story: Path, data: Path, tmp_path: Path, change: str, expected: str):
    before = contents(story)
    for place in data.iterdir():
        (tmp_path / place.name).symlink_to(place)
    more = ["--set", "optim.num_epochs=3"] if change == "settings" else []
    if change != "settings":
        (tmp_path / change).unlink()
    if change == "train":
        write_images(tmp_path / "train", [19, 20], size=(40, 36))
    if change == "heldout":
        write_keep_masks(tmp_path / "heldout/high", [np.eye(32, dtype=np.uint8)] * 3)
    code, output = in_this_process(words(tmp_path, story, *more))
    assert code == 2, output
    assert expected in output and "another folder with --out" in output and "`msl ablate mask-subsets" in output
    assert contents(story) == before


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["ablate", "nothing"], "no grid 'nothing'; there are: loss-terms, "),
        (["reproduce", "table-0"], "no table 'table-0'; there are: table-1, table-2, "),
        (["ablate", "loss-terms", "--data", "x"], "say with --test what to measure on"),
        (["ablate", "loss-terms", "--out", "s3://bucket/grid"], "a grid needs a local folder"),
        (["ablate", "loss-terms", "--task", "0/2"], "expected I/N"),
        (["ablate", "loss-terms", "--set", "optim.speed=3"], "no field 'speed' in optim"),
        (["ablate", "loss-terms", "--test-masks", "a/m", "--test-masks", "b/m"], "would have the same name"),
    ],
)
def test_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], expected: str):
    monkeypatch.chdir(tmp_path)
    code, output = in_this_process(arguments)
    assert code == 2 and expected in output, output
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_in_the_gpus_leaves_nothing_behind(data: Path, tmp_path: Path):
    code, output = in_this_process(words(data, tmp_path / "grid", "--gpus", "many"))
    assert code == 2 and "--gpus is 'many'" in output
    assert not (tmp_path / "grid").exists()


def test_what_is_missing_is_listed_with_the_commands_that_make_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    code, output = in_this_process(["reproduce", "table-6", "figure-3", "--shards", "my/shards"])
    assert code == 2
    for place in ("voc2007/trainval", "voc2007/test", "coco2014/val", "masks/official/low", "heldout/high"):
        assert f"my/shards/{place}: no finished dataset here" in output
    commands = [line.strip().partition("  #")[0] for line in output.partition("make it with:")[2].splitlines()]
    assert [command for command in commands if command] == [
        "msl download voc2007",
        "msl build-shards --dataset voc2007 --out my/shards",
        "msl download coco2014",
        "msl build-shards --dataset coco2014 --out my/shards",
        "msl build-masks --order official --out my/shards/masks/official",
        "msl build-masks --generate 3000 --seed 1 --out my/shards/heldout",
    ]
    assert list(tmp_path.iterdir()) == []
    code, output = in_this_process(["reproduce", "table-6", "--dry-run"])
    hours = 3 * sum(RECIPES[f"msl-c-{data}"].gpu_hours for data in ("voc2007", "coco2014") for _ in range(3))
    assert code == 0 and f"18 trainings, about {hours:.2f} GPU-hours" in output
    assert "shards/voc2007/trainval  missing" in output and "First make what is missing" in output


def test_shares_are_disjoint_and_curves_wait_for_their_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    name = "robustness-voc2007"
    plan = make_plan([name], seeds=(0, 1), places=DataPlaces(test_masks=()))
    grid = open_grid(plan, tmp_path, curves=[name])
    seen: list[list[str]] = []
    monkeypatch.setattr(grid_run, "run_jobs", lambda jobs, *_: seen.append([job.name for job in jobs]) or {})
    for task in ((1, 2), (2, 2), (1, 1), None):
        run_grid(grid, [""], task=task)
    first, second, whole, everything = seen
    assert sorted(first + second) == sorted(job.name for job in grid.training)
    assert whole == everything == [job.name for job in grid.jobs] and len(everything) == 6 + 2


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2"])
def test_shares_are_counted_from_one(text: str):
    with pytest.raises(UserError, match="expected I/N"):
        parse_task(text)
