"""Runs as a whole: going on with a changed config, series, kept checkpoints, object storage, trackers, signals."""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from msldata.errors import StorageError, UserError
from msldata.storage import LocalStorage, RemoteStorage, open_storage
from msltrain.__main__ import app
from msltrain.config import (
    DataConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
    differences,
    from_json,
    override,
)
from msltrain.hosts.interrupt import Interrupted
from msltrain.recipes import configure
from msltrain.runs.checkpoint import load_checkpoint
from msltrain.runs.folder import RunFolder
from msltrain.stream.config import StreamConfig
from msltrain.training.events import StepEvent
from msltrain.training.resume import Resume
from msltrain.training.seeds import parse_seeds, train_series
from msltrain.training.trainer import train
from tests.smallshards import write_images, write_keep_masks

pytestmark = pytest.mark.usefixtures("ready_python")

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_images(root / "train", [15, 15, 10])
    rng = np.random.default_rng(0)
    write_keep_masks(root / "high", [(rng.random((32, 32)) > 0.5).astype(np.uint8) for _ in range(5)])
    return root


@pytest.fixture
def config(data: Path) -> TrainConfig:
    """Three epochs of four steps, with augmentation, keep masks, moving average and schedule."""
    return TrainConfig(
        data=DataConfig(train=str(data / "train"), keep_masks=(str(data / "high"),), validation_fraction=0.1),
        stream=StreamConfig(image_size=32, batch_size=8, num_threads=1),
        model=ModelConfig(backbone="test_efficientnet", num_heads=2),
        optim=OptimConfig(lr=0.01, num_epochs=3, warmup_epochs=0.5, step_epochs=2, ema_decay=0.9),
        run=RunConfig(log_every=1, device="cpu"),
    )


def stop_after(step: int):
    def on_event(event):
        if isinstance(event, StepEvent) and event.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return on_event


def stopped(config: TrainConfig, place, step: int, resume: Resume = False) -> None:
    with pytest.raises(Interrupted):
        train(config, run_dir=place, resume=resume, on_event=stop_after(step))


def starts(run: Path) -> list[dict]:
    return json.loads((run / "environment.json").read_text())


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def assert_same_weights(one, other) -> None:
    one, other = load_checkpoint(one), load_checkpoint(other)
    assert one.step == other.step
    for weights, expected in (
        (one.weights, other.weights),
        (one.train_state["weights"], other.train_state["weights"]),
    ):
        assert set(weights) == set(expected)
        assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())


def test_a_run_is_reproduced_from_its_folder(config, data, tmp_path, monkeypatch):
    """By the command line, as by Python: the same weights, bit for bit, and another folder where none is named."""
    monkeypatch.chdir(tmp_path)
    config = override(config, ["optim.num_epochs=1"])
    train(config, run_dir=Path("runs/a"))
    done = CliRunner().invoke(app, ["train", "--recipe", "a", "--run", "b"])
    assert done.exit_code == 0, done.output
    assert_same_weights("runs/a", "b")
    assert from_json(Path("b/config.json").read_text()) == config
    refused = CliRunner().invoke(app, ["train", "--recipe", "runs/a"])
    assert refused.exit_code == 2 and "runs/a: holds a run already" in refused.output
    shown = CliRunner().invoke(app, ["recipes", "runs/a"])
    assert shown.exit_code == 0 and "model.backbone = test_efficientnet" in shown.output


def test_auto_starts_and_goes_on(config: TrainConfig, tmp_path: Path):
    straight = train(config, run_dir=tmp_path / "straight")
    stopped(config, tmp_path / "run", 5, resume="auto")
    result = train(config, run_dir=tmp_path / "run", resume="auto")
    assert [entry["from_step"] for entry in starts(tmp_path / "run")] == [0, 5]
    assert_same_weights(result.last, straight.last)
    with pytest.raises(UserError, match=r"optim\.lr was 0\.01, is 0\.02"):
        train(override(config, ["optim.lr=0.02"]), run_dir=tmp_path / "run", resume="auto")


def test_sigterm_at_a_random_moment_of_a_process(config: TrainConfig, tmp_path: Path):
    """A real process, stopped from outside wherever it happens to be; what it has taken stays, bit for bit."""
    straight = train(config, run_dir=tmp_path / "straight")
    arguments = ["train", "--recipe", "smoke", "--data", config.data.train, "--keep-masks", config.data.keep_masks[0]]
    recipe = configure("smoke", train=config.data.train, keep_masks=config.data.keep_masks)
    for name, (_, value) in differences(recipe, config).items():
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        arguments += ["--set", f"{name}={text}"]
    command = [sys.executable, "cli.py", *arguments, "--run", str(tmp_path / "run"), "--resume", "auto"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    after = random.randrange(1, 12)
    process = subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text().count('"total"') >= after):
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    if process.returncode:  # it may just have ended
        assert process.returncode == 75 and "--resume auto" in output, output
        assert after <= load_checkpoint(tmp_path / "run" / "checkpoints" / "last").step <= 12, (after, output)
    result = train(config, run_dir=tmp_path / "run", resume="auto")
    assert_same_weights(result.last, straight.last)


def test_a_changed_config_goes_on_when_told(config: TrainConfig, tmp_path: Path):
    stopped(config, tmp_path, 5)
    changed = override(config, ["optim.lr=0.02", "optim.num_epochs=4"])
    with pytest.raises(UserError, match="--allow-changes continues it all the same"):
        train(changed, run_dir=tmp_path, resume=True)
    result = train(changed, run_dir=tmp_path, resume=True, allow_changes=True)
    assert result.num_steps == 16
    assert from_json((tmp_path / "config.json").read_text()) == changed
    last = starts(tmp_path)[-1]
    assert last["from_step"] == 5
    assert last["changes"] == ["optim.lr was 0.01, is 0.02", "optim.num_epochs was 3, is 4"]


def test_other_data_goes_on_at_the_beginning_of_the_epoch(config: TrainConfig, tmp_path: Path):
    stopped(config, tmp_path / "run", 5)
    write_images(tmp_path / "more", [15, 15, 15, 15])
    changed = override(config, [f"data.train={tmp_path / 'more'}"])
    result = train(changed, run_dir=tmp_path / "run", resume="auto", allow_changes=True)
    per_epoch = (result.num_steps - 5) // 2
    assert per_epoch > 5 and starts(tmp_path / "run")[-1]["from_step"] == 5
    assert "other data for train" in starts(tmp_path / "run")[-1]["changes"][0]


def test_a_network_that_does_not_fit_is_refused_in_words(config: TrainConfig, tmp_path: Path):
    stopped(config, tmp_path, 2)
    with pytest.raises(UserError, match=r"its state does not fit what was changed \(model.num_heads was 2, is 4\)"):
        train(override(config, ["model.num_heads=4"]), run_dir=tmp_path, resume=True, allow_changes=True)


def test_the_latest_epochs_are_kept(config: TrainConfig, tmp_path: Path):
    result = train(override(config, ["run.keep=2"]), run_dir=tmp_path)
    assert names(tmp_path / "checkpoints") == ["best", "epoch-0002", "epoch-0003", "last"]
    assert [load_checkpoint(tmp_path / "checkpoints" / name).step for name in ("epoch-0002", "last")] == [8, 12]
    assert load_checkpoint(result.best).epoch == result.best_epoch


def test_a_best_checkpoint_that_was_not_copied_yet_is_made_up_for(config: TrainConfig, tmp_path: Path, monkeypatch):
    import msltrain.training.trainer

    class Killed(BaseException):
        pass

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(msltrain.training.trainer, "copy_checkpoint", killed)
        train(config, run_dir=tmp_path)
    assert names(tmp_path / "checkpoints") == ["last"]
    stopped(config, tmp_path, 5, resume=True)
    assert load_checkpoint(tmp_path / "checkpoints" / "best").step == 4


def test_a_series_trains_each_seed_once(config: TrainConfig, tmp_path: Path):
    config = override(config, ["optim.num_epochs=1"])
    train_series(config, (0,), run_dir=tmp_path / "series")
    stopped(override(config, ["run.seed=1"]), tmp_path / "series" / "seed1", 2)
    results = train_series(config, (0, 1, 2), run_dir=tmp_path / "series", resume="auto")
    assert names(tmp_path / "series") == ["seed0", "seed1", "seed2"]
    from_steps = [[entry["from_step"] for entry in starts(result.run_dir)] for result in results]
    assert from_steps == [[0, 4], [0, 2], [0]]
    alone = train(override(config, ["run.seed=1"]), run_dir=tmp_path / "alone")
    assert_same_weights(results[1].last, alone.last)


@pytest.mark.parametrize("text", ["", "0,", "1,1", "a", "-1"])
def test_seeds_are_different_whole_numbers(text: str):
    with pytest.raises(UserError, match="give different whole numbers, such as 0,1,2"):
        parse_seeds(text)
    assert parse_seeds("2, 0") == (2, 0)


def test_the_command_takes_protocol_seeds_and_resume(config: TrainConfig, tmp_path: Path):
    arguments = ["train", "--recipe", "smoke", "--data", config.data.train, "--keep-masks", config.data.keep_masks[0]]
    arguments += ["--run", str(tmp_path), "--seeds", "3,4", "--paper-protocol", "--processes", "1"]
    for name in ("stream.image_size=32", "optim.num_epochs=1", "stream.num_threads=1", "run.device=cpu"):
        arguments += ["--set", name]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    stored = from_json((tmp_path / "seed4" / "config.json").read_text())
    assert (stored.run.seed, stored.data.validation_fraction) == (4, 0)
    assert names(tmp_path / "seed4" / "checkpoints") == ["last"]
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 2 and "holds a run already" in " ".join(again.output.split())
    assert CliRunner().invoke(app, [*arguments, "--resume", "auto"]).exit_code == 0
    elsewhere = CliRunner().invoke(app, [*arguments, "--run", str(tmp_path / "new"), "--resume", "must"])
    assert elsewhere.exit_code == 2 and "no run to continue" in " ".join(elsewhere.output.split())


def test_a_run_in_object_storage_goes_on_elsewhere(config: TrainConfig, tmp_path: Path, s3):
    place = "s3://bucket/runs/one"
    config = override(config, ["run.keep=1"])
    straight = train(config, run_dir=tmp_path / "straight")
    stopped(config, place, 6)
    stored = {info.name for info in open_storage(place).list_files()}
    assert {"config.json", "metrics.jsonl", "checkpoints/last.000000006/meta.json"} <= stored
    with pytest.raises(UserError, match="s3://bucket/runs/one: holds a run already"):
        train(config, run_dir=place)
    result = train(config, run_dir=place, resume="auto")
    assert (result.run_dir, result.last) == (place, f"{place}/checkpoints/last")
    stored = {info.name for info in open_storage(place).list_files()}
    folders = sorted({name.split("/")[1] for name in stored if name.startswith("checkpoints/")})
    best = 4 * straight.best_epoch
    assert folders == [f"best.{best:09d}", "epoch-0003.000000012", "last.000000012"]
    storage = open_storage(place)
    assert storage.read("metrics.jsonl").count(b'"total"') == 12
    there, here = storage.child("checkpoints/last.000000012"), LocalStorage(straight.last)
    assert there.read("weights.safetensors") == here.read("weights.safetensors")
    said = [json.loads(folder.read("meta.json")) for folder in (there, here)]
    for one in said:  # torch writes equal states in other bytes
        del one["train_state_sha256"], one["meta_sha256"]
    assert said[0] == said[1]


def test_a_run_that_cannot_be_stored_is_kept_whole(
    config: TrainConfig, tmp_path: Path, s3, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """The second and the last checkpoint's description cannot be stored: the first one is what the run goes on from."""
    place = "s3://bucket/runs/two"
    straight = train(config, run_dir=tmp_path / "straight")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    lost = re.compile("last.0000000(08|12)/meta")
    s3.proxy.choose = lambda method, path: "unavailable" if method == "PUT" and lost.search(path) else None
    monkeypatch.setattr(RemoteStorage, "PATIENT_RETRY", {**RemoteStorage.PATIENT_RETRY, "max_retries": 1})
    with pytest.raises(StorageError, match="last"):
        train(config, run_dir=place)
    s3.proxy.choose = lambda method, path: None
    stored = {info.name for info in open_storage(place).list_files()}
    assert "checkpoints/last.000000004/meta.json" in stored
    assert "checkpoints/last.000000008/weights.safetensors" in stored
    (kept,) = tmp_path.glob("msl-run-*")
    assert f"go on with --run {kept} --resume auto" in caplog.text
    assert_same_weights(kept / "checkpoints" / "last", straight.last)
    train(config, run_dir=place, resume="auto")
    there = open_storage(place).read("checkpoints/last.000000012/weights.safetensors")
    assert there == (straight.last / "weights.safetensors").read_bytes()


@pytest.mark.parametrize("comes_back", [False, True])
def test_a_stop_while_the_store_is_away_says_how_to_go_on(
    config: TrainConfig, tmp_path: Path, s3, monkeypatch: pytest.MonkeyPatch, caplog, comes_back: bool
):
    """Also where the store is back a moment later: what the message names is still there."""
    place = f"s3://bucket/away/{comes_back}"
    straight = train(config, run_dir=tmp_path / "straight")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(RemoteStorage, "PATIENT_RETRY", {**RemoteStorage.PATIENT_RETRY, "max_retries": 0})
    publish = RunFolder.publish_stopped

    def then_back(folder: RunFolder) -> Path | None:
        kept = publish(folder)
        if comes_back:
            s3.proxy.choose = lambda method, path: None
        return kept

    monkeypatch.setattr(RunFolder, "publish_stopped", then_back)
    away = "last.000000006"
    s3.proxy.choose = lambda method, path: "unavailable" if method == "PUT" and away in path else None
    with pytest.raises(Interrupted) as stop:
        train(config, run_dir=place, on_event=stop_after(6))
    s3.proxy.choose = lambda method, path: None
    (kept,) = tmp_path.glob("msl-run-*")
    said = str(stop.value)
    assert f"saved in {kept}/checkpoints/last; run the same command with --run {kept} --resume auto" in said
    assert "training goes on" not in caplog.text and f"The whole run is in {kept}" in caplog.text
    result = train(config, run_dir=shlex.split(said.partition("--run ")[2])[0], resume="auto")
    assert_same_weights(result.last, straight.last)


def test_tensorboard_shows_each_step_once(config: TrainConfig, tmp_path: Path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    class Killed(Exception):
        pass

    def kill(event):
        if isinstance(event, StepEvent) and event.step == 7:
            raise Killed

    config = override(config, ["run.tensorboard=true", "optim.num_epochs=2"])
    with pytest.raises(Killed):
        train(config, run_dir=tmp_path, on_event=kill)
    train(config, run_dir=tmp_path, resume="auto")
    assert [entry["from_step"] for entry in starts(tmp_path)] == [0, 4]
    shown = EventAccumulator(str(tmp_path / "tensorboard"))
    shown.Reload()
    assert {"total", "clean", "masked", "consistency", "learning_rate", "validation_mAP"} <= set(
        shown.Tags()["scalars"]
    )
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    expected = [(row["step"], pytest.approx(row["total"])) for row in rows if "total" in row]
    assert [(point.step, point.value) for point in shown.Scalars("total")] == expected
    assert len(expected) == 8


def test_wandb_takes_the_run_offline(config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    train(override(config, ["run.wandb=msl", "optim.num_epochs=1"]), run_dir=tmp_path)
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    until = time.monotonic() + 10  # a process of its own writes it
    while b"validation_mAP" not in file.read_bytes() and time.monotonic() < until:
        time.sleep(0.05)
    assert b"validation_mAP" in file.read_bytes()


def test_a_missing_tracker_is_named_before_anything_starts(config: TrainConfig, tmp_path: Path, monkeypatch):
    import msltrain.runs.trackers

    monkeypatch.setattr(msltrain.runs.trackers, "_installed", lambda package: False)
    with pytest.raises(UserError, match=r"run.tensorboard=true needs the package tensorboard: pip install"):
        train(override(config, ["run.tensorboard=true"]), run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()
