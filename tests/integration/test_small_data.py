"""Sixty photographs of one's own: what is said, and which checkpoint is the best."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from msltrain.__main__ import app
from msltrain.config import override
from msltrain.recipes import recipe
from msltrain.stream.samples.shardset import open_shard_set
from msltrain.training.validation import can_choose, doubt_of_choice, few_positives, small_data_notes
from tests.smallshards import write_images, write_keep_masks


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("small")
    write_images(root / "train", [30, 30])
    write_images(root / "more", [120])
    rng = np.random.default_rng(0)
    write_keep_masks(root / "high", [(rng.random((32, 32)) > 0.5).astype(np.uint8) for _ in range(5)])
    return root


ENOUGH = ("stream.batch_size=36", "data.validation_fraction=0.4")
"""Every class is in validation often enough to choose by."""


MORE = "a smaller stream.batch_size or more optim.num_epochs gives more"


def train(data: Path, run: Path, *settings: str, shards: str = "train") -> str:
    command = ["train", "--recipe", "smoke", "--data", str(data / shards), "--keep-masks", str(data / "high")]
    command += ["--run", str(run)]
    for one in ("stream.image_size=32", "model.backbone=test_efficientnet", "run.device=cpu", *settings):
        command += [one] if one.startswith("--") else ["--set", one]
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
    assert "the run has 1 step: few to learn from" in said
    assert "every epoch leaves" in said and "samples out" in said
    assert "validation shows 3 of 3 classes fewer than 5 times (bird, boat, cat)" in said


def test_nothing_is_said_where_there_is_enough(data, tmp_path):
    said = train(
        data, tmp_path, "stream.batch_size=2", "optim.num_epochs=5", "data.validation_fraction=0.4", shards="more"
    )
    assert "few to learn from" not in said and "every epoch leaves" not in said and "validation shows" not in said


def test_no_best_checkpoint_before_the_warm_up_ends_and_the_later_on_ties(data, tmp_path):
    """A rate of almost nothing: every epoch measures the same, and the first ones are the warm-up's."""
    train(data, tmp_path, *ENOUGH, "optim.num_epochs=6", "optim.warmup_epochs=4", "optim.lr=1e-9")
    found = validations(tmp_path)
    assert len(found) == 6
    top = max(row["validation_mAP"] for row in found[1:])
    assert best_epoch(tmp_path) == max(row["epoch"] for row in found[1:] if row["validation_mAP"] == top) + 1


@pytest.mark.parametrize(
    ("length", "num_epochs", "few"), [(149, 1, True), (1, 149, True), (150, 1, False), (3, 50, False)]
)
def test_few_steps_are_few_however_long_the_epochs_are(length, num_epochs, few):
    class Training:
        shards = SimpleNamespace(num_samples=8 * length)

        def __len__(self):
            return length

    config = override(recipe("smoke"), ["stream.batch_size=8", f"optim.num_epochs={num_epochs}"])
    notes = small_data_notes(config, Training(), None)
    assert notes == (["the run has 149 steps: few to learn from; " + MORE] if few else [])


def test_best_is_the_last_where_validation_cannot_tell(data, tmp_path):
    """A rate far too high: by three photographs the first epoch would have been the best."""
    settings = ("optim.num_epochs=4", "optim.warmup_epochs=0", "optim.lr=3", "optim.patience=1", "stream.batch_size=40")
    said = train(data, tmp_path, *settings)
    found = validations(tmp_path)
    assert len(found) == 4 and best_epoch(tmp_path) == 4
    assert "too few to choose a checkpoint by: best is the last one, and optim.patience ends nothing" in said
    assert said.count("too few to choose") == 1 and "best so far" not in said and "best validation" not in said
    kept = "is what is kept; validation shows too little to choose another"
    assert f"last validation mAP {100 * found[-1]['validation_mAP']:.1f}, epoch 4, {kept}" in said


def test_a_third_of_the_classes_may_be_rare(tmp_path):
    write_images(tmp_path / "two", [14])  # each class five times at the most
    shards = open_shard_set(tmp_path / "two")
    assert list(few_positives(shards)) == ["cat"] and can_choose(shards)
    write_images(tmp_path / "one", [13])
    shards = open_shard_set(tmp_path / "one")
    assert list(few_positives(shards)) == ["boat", "cat"] and not can_choose(shards)


def test_half_of_the_classes_being_rare_is_too_many():
    """Two of four classes hang on single images, and so half of what their mean says."""
    shards = SimpleNamespace(
        classes=("a", "b", "c", "d"), labels=lambda: SimpleNamespace(count_K=np.array([9, 9, 4, 4])), num_samples=13
    )
    assert not can_choose(shards)
    assert (
        doubt_of_choice(shards) == "with 13 validation photographs, fewer than 5 of c, d, that hangs on single images"
    )
    shards.labels = lambda: SimpleNamespace(count_K=np.array([9, 9, 9, 4]))
    assert can_choose(shards)


def test_the_last_line_repeats_what_the_choice_hangs_on(data, tmp_path):
    said = train(data, tmp_path, "optim.num_epochs=1", "data.validation_fraction=0.3")
    kept = re.search(r"(best|last) validation mAP [\d.]+, epoch 1, is what is kept; (.*?) images", said)
    assert kept is not None and kept[1] == "best" and "fewer than 5 of" in kept[2] and "hangs on single" in kept[2], (
        said
    )


def test_patience_ends_a_run_that_no_longer_gains(data, tmp_path):
    """A rate far too high, at which the first epochs are the best ones."""
    settings = ("optim.num_epochs=9", "optim.warmup_epochs=0", "optim.patience=2", "optim.lr=3", *ENOUGH)
    said = train(data, tmp_path, *settings)
    found = validations(tmp_path)
    best = best_epoch(tmp_path) - 1
    assert len(found) == min(9, best + 3)
    assert ("no better epoch for optim.patience: the run ends" in said) == (len(found) < 9)
    again = train(data, tmp_path, *settings, "--resume=auto")
    assert len(validations(tmp_path)) == len(found) and again


def test_rare_positives_can_weigh_more(data, tmp_path):
    settings = ("optim.num_epochs=1", "loss.balance=1", "loss.label_smoothing=0.1", "loss.class_weights=1,2,0.5")
    train(data, tmp_path / "weighed", *settings)
    train(data, tmp_path / "plain", "optim.num_epochs=1")
    rows = [json.loads((tmp_path / run / "metrics.jsonl").read_text().splitlines()[0]) for run in ("weighed", "plain")]
    assert rows[0]["clean"] > 1.2 * rows[1]["clean"]
    command = ["train", "--recipe", "smoke", "--data", str(data / "train"), "--keep-masks", str(data / "high")]
    command += ["--run", str(tmp_path / "no"), "--set", "loss.class_weights=1,2", "--set", "run.device=cpu"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2 and "2 weights for 3 classes" in " ".join(result.output.split())
