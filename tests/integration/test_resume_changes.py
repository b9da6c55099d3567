"""What may change when a run goes on, what may not, and what is said of it, by the command itself."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from msldata.contract.manifest import read_manifest
from msldata.contract.publish import write_manifest
from msldata.errors import UserError
from msldata.storage import LocalStorage
from msltrain.__main__ import app
from msltrain.recipes import recipe
from msltrain.runs.checkpoint import load_checkpoint, rebuild_recogniser
from msltrain.runs.folder import DatasetIdentity, RunFolder, training_data
from tests.smallshards import write_images, write_keep_masks


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_images(root / "train", [20, 20])
    rng = np.random.default_rng(0)
    write_keep_masks(root / "high", [(rng.random((32, 32)) > 0.5).astype(np.uint8) for _ in range(5)])
    return root


def train(data: Path, run: Path, *more: str, train: str = "train") -> Result:
    command = ["train", "--recipe", "smoke", "--run", str(run)]
    command += ["--data", str(data / train), "--keep-masks", str(data / "high")]
    for one in ("stream.image_size=32", "model.backbone=test_efficientnet", "run.device=cpu", *more):
        command += ["--set", one] if "=" in one else [one]
    return CliRunner().invoke(app, command, env={"COLUMNS": "300"})


def ok(result: Result) -> str:
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def refused(result: Result) -> str:
    assert result.exit_code == 2 and "Traceback" not in result.output, result.output
    return " ".join(result.output.split())


def history(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


AGAIN = ("--resume", "auto", "--allow-changes")


def test_another_batch_size_keeps_the_history(data, tmp_path):
    assert "since it went on" not in ok(train(data, tmp_path, "stream.batch_size=4", "optim.num_epochs=2"))
    before = history(tmp_path)
    said = ok(train(data, tmp_path, "stream.batch_size=8", "optim.num_epochs=3", *AGAIN))
    after = history(tmp_path)
    assert after[: len(before)] == before
    assert [row["epoch"] for row in after] == sorted(row["epoch"] for row in after) and after[-1]["epoch"] == 2
    steps = [row["step"] for row in after if "clean" in row]
    assert steps == list(range(1, len(steps) + 1))
    assert "continued with a change: stream.batch_size was 4, is 8" in said
    assert f": {steps[-1]} steps, " in said and f" s since it went on after step {before[-1]['step']}" in said
    assert "the learning rate goes on at" in said and "the cosine is another one now" in said
    assert load_checkpoint(tmp_path / "checkpoints" / "last").epoch == 3


def test_inside_an_epoch_another_batch_size_goes_on_after_as_many_samples(data, tmp_path, monkeypatch):
    """Killed after 3 batches of 8 samples: 6 of 4 are done."""
    from msltrain.training.learner import Learner

    taken, take_step = [], Learner.take_step

    def killed(self, *arguments):
        taken.append(len(taken))
        if len(taken) == 4:
            raise KeyboardInterrupt
        return take_step(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(Learner, "take_step", killed)
        train(data, tmp_path, "optim.num_epochs=1", "run.save_every=3")
    assert load_checkpoint(tmp_path / "checkpoints" / "last").step == 3
    ok(train(data, tmp_path, "optim.num_epochs=1", "stream.batch_size=4", *AGAIN))
    checkpoint = load_checkpoint(tmp_path / "checkpoints" / "last")
    assert checkpoint.step == 3 + checkpoint.train_state["loader"]["num_samples"] // 4 - 6 and checkpoint.epoch == 1


def test_the_best_epoch_is_chosen_anew_on_other_validation_samples(data, tmp_path, monkeypatch):
    """On the first samples the first epoch had 90 %; that says nothing of the second one, on other samples."""
    found = iter((0.9, 0.2, 0.1, 0.2))
    monkeypatch.setattr("msltrain.training.trainer.can_choose", lambda shards: True)
    monkeypatch.setattr("msltrain.training.trainer.validation_mean_ap", lambda *_, **__: next(found))

    def best() -> dict:
        return load_checkpoint(tmp_path / "checkpoints" / "last").train_state["best"]

    common = ("stream.batch_size=4", "optim.warmup_epochs=0")
    ok(train(data, tmp_path, *common, "data.validation_fraction=0.3", "optim.num_epochs=1"))
    assert best() == {"epoch": 0, "mAP": 0.9}
    said = ok(train(data, tmp_path, *common, "data.validation_fraction=0.4", "optim.num_epochs=2", *AGAIN))
    assert best() == {"epoch": 1, "mAP": 0.2} and "the best epoch is chosen anew" in said
    assert load_checkpoint(tmp_path / "checkpoints" / "best").epoch == 2
    said = ok(train(data, tmp_path, *common, "data.validation_fraction=0.4", "optim.num_epochs=3", *AGAIN))
    assert best() == {"epoch": 1, "mAP": 0.2} and "chosen anew" not in said
    ok(train(data, tmp_path, *common, "data.validation_fraction=0.3", "optim.num_epochs=3", *AGAIN))
    assert best() == {"epoch": 1, "mAP": 0.2}, "a run that is over keeps what it chose"


def test_validation_shards_that_are_named_no_more_are_a_change(data, tmp_path):
    common = ("stream.batch_size=4", "data.validation_fraction=0")
    ok(train(data, tmp_path, *common, f"data.validation={data / 'train'}", "optim.num_epochs=1"))
    said = refused(train(data, tmp_path, *common, "optim.num_epochs=1", "--resume", "auto"))
    assert "other data for validation: then" in said and "now none" in said


def test_a_run_never_goes_on_with_other_classes(data, tmp_path):
    """The outputs would mean other things, so not even with leave to change."""
    ok(train(data, tmp_path / "run", "optim.num_epochs=1"))
    folder = tmp_path / "data" / "permuted"
    shutil.copytree(data / "train", folder)
    shutil.copytree(data / "high", tmp_path / "data" / "high")
    manifest = read_manifest(LocalStorage(folder))
    write_manifest(LocalStorage(folder), replace(manifest, classes=manifest.classes[::-1]))
    again = (tmp_path / "data", tmp_path / "run", "optim.num_epochs=2")
    said = refused(train(*again, "--resume", "auto", train="permuted"))
    assert "other data for train" in said and "labels or classes" in said
    said = refused(train(*again, *AGAIN, train="permuted"))
    assert "the same classes in another order" in said and "--weights" in said


def test_other_labels_are_other_data(data, tmp_path):
    ok(train(data, tmp_path / "run", "optim.num_epochs=1"))
    shutil.copytree(data, tmp_path / "data")
    storage = LocalStorage(tmp_path / "data" / "train")
    manifest = read_manifest(storage)
    first, *others = manifest.shards
    write_manifest(storage, replace(manifest, shards=(replace(first, labels_sha256="0" * 64), *others)))
    again = (tmp_path / "data", tmp_path / "run", "optim.num_epochs=2")
    assert "other data for train" in refused(train(*again, "--resume", "auto"))
    assert "continued with a change: other data for train: then" in ok(train(*again, *AGAIN))


def test_the_average_switched_off_leaves_the_trained_weights(data, tmp_path):
    ok(train(data, tmp_path, "optim.ema_decay=0.9999", "optim.num_epochs=1"))
    trained = load_checkpoint(tmp_path / "checkpoints" / "last").train_state["weights"]
    ok(train(data, tmp_path, "optim.num_epochs=2", "optim.lr=1e-12", "optim.weight_decay=0", *AGAIN))
    now = load_checkpoint(tmp_path / "checkpoints" / "last")
    assert "weights" not in now.train_state
    name = "classifier.score.weight"
    assert torch.allclose(now.weights[name], trained[name], atol=1e-5)


def test_the_average_switched_on_starts_at_the_trained_weights(data, tmp_path):
    ok(train(data, tmp_path, "optim.num_epochs=1"))
    trained = load_checkpoint(tmp_path / "checkpoints" / "last").weights
    still = ("optim.num_epochs=2", "optim.lr=1e-12", "optim.weight_decay=0")
    said = ok(train(data, tmp_path, *still, "optim.ema_decay=0.9999", *AGAIN))
    now = load_checkpoint(tmp_path / "checkpoints" / "last")
    name = "classifier.score.weight"
    assert torch.allclose(now.weights[name], trained[name], atol=1e-5)
    assert "optim.ema_decay=0.9999 looks back over 10,000 steps and the run has" in said


def test_an_average_of_few_steps_is_not_the_first_weights(data, tmp_path):
    """Without a warm-up of its decay it would hold 99.9 % of them after ten steps."""
    ok(train(data, tmp_path, "optim.ema_decay=0.9999", "optim.num_epochs=2"))
    checkpoint = load_checkpoint(tmp_path / "checkpoints" / "last")
    name = "classifier.score.weight"
    torch.manual_seed(0)
    first = rebuild_recogniser(checkpoint.config, len(checkpoint.classes)).state_dict()[name]
    trained = checkpoint.train_state["weights"][name]
    left = (checkpoint.weights[name] - trained).norm() / (first - trained).norm()
    assert left < 0.5


@pytest.mark.parametrize("file", ["datasets.json", "environment.json", "config.json", "metrics.jsonl"])
@pytest.mark.parametrize("content", [b"[]", b"null", b"\xff\xfe", b'{"train": [3]}', b"[" * 5000])
def test_a_damaged_run_folder_is_one_message(data, tmp_path, file, content):
    ok(train(data, tmp_path, "optim.num_epochs=1"))
    (tmp_path / file).write_bytes(content)
    result = train(data, tmp_path, "optim.num_epochs=1", "--resume", "auto")
    assert result.exit_code in (0, 2) and (result.exception is None or isinstance(result.exception, SystemExit))


@pytest.mark.parametrize(("field", "odd"), [("fingerprint", 5), ("location", ["a"]), ("num_samples", "many")])
def test_an_odd_note_of_the_data_is_one_message(tmp_path, field, odd):
    config, folder = recipe("smoke"), RunFolder(tmp_path)
    noted = DatasetIdentity(location="data", dataset="d", split="train", num_samples=3, fingerprint="f" * 64)
    folder.start(config, {"train": [noted]})
    assert training_data(tmp_path) == [noted] and not folder.changes(config, {"train": [noted]})
    (tmp_path / "datasets.json").write_text(json.dumps({"train": [asdict(noted) | {field: odd}]}))
    with pytest.raises(UserError, match=rf"does not say which data the run had \(train\.{field}: expected "):
        folder.changes(config, {"train": [noted]})
    assert training_data(tmp_path) == []
