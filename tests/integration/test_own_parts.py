"""A network, head, loss and augmentation of somebody's own, named by the environment, through every command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import REPOSITORY
from tests.smallshards import CLASSES, photo, write_images, write_keep_masks

pytestmark = pytest.mark.usefixtures("ready_python")

MINE = '''
import dataclasses

import timm
import torch

import msltrain


class Patches(torch.nn.Module):
    """A network without default_cfg: images to 8 channels on a grid of 4 x 4."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 8, 8, 8)

    def forward_features(self, image_BCHW):
        return torch.relu(self.layer(image_BCHW))


@timm.models.register_model
def my_patches(pretrained=False, **settings):
    return Patches()


@msltrain.register_head("my-head")
class Head(torch.nn.Module):
    def __init__(self, num_features, num_classes):
        super().__init__()
        self.mix = torch.nn.Linear(num_features, 5)
        self.out = torch.nn.Linear(5, num_classes)

    def forward(self, feature_BDHW):
        return self.out(self.mix(feature_BDHW.flatten(2).transpose(1, 2)).relu()).amax(1)


@msltrain.register_loss("my-loss")
def my_loss(logit_BK, target_BK):
    return (logit_BK.sigmoid() - target_BK).square()


@msltrain.register_augmentation("my-noise")
def my_noise(batch, *, seed, epoch):
    generator = torch.Generator().manual_seed(int(batch.key_hash_B[0] % 1000) + seed + epoch)
    noise = 0.1 * torch.randn(batch.image_BCHW.shape, generator=generator)
    return dataclasses.replace(batch, image_BCHW=batch.image_BCHW + noise)
'''
MINE_SET = {
    "model.backbone": "my_patches",
    "model.weights": "",
    "model.head": "my-head",
    "loss.recognition": "my-loss",
    "loss.masked_target": "whole_image",
    "augment.batch": "my-noise",
    "stream.image_size": "32",
    "stream.batch_size": "8",
    "run.device": "cpu",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Data, the module, and a run of two epochs that two processes began and one went on with."""
    root = tmp_path_factory.mktemp("own")
    write_images(root / "shards/mine/train", [16, 16])
    write_images(root / "shards/mine/test", [8])
    write_keep_masks(root / "masks", [np.ones((32, 32), np.uint8)] * 3)
    (root / "my_parts.py").write_text(MINE)
    (root / "photo.jpg").write_bytes(photo(1))
    settings = [word for field, value in MINE_SET.items() for word in ("--set", f"{field}={value}")]
    train = ["train", "--recipe", "smoke", "--data", "shards/mine/train", "--keep-masks", "masks", "--run", "run"]
    for more in (["--epochs", "1", "--processes", "2"], ["--epochs", "2", "--resume", "auto", "--allow-changes"]):
        done = msl(root, *train, *settings, *more)
        assert done.returncode == 0, done.stdout + done.stderr
    return root


def msl(
    place: Path, *words: str, own: str | None = "my_parts.py", script: tuple[str, ...] = ("-P", "-m", "msltrain")
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "300", "OMP_NUM_THREADS": "1"}
    environment |= {} if own is None else {"MSL_IMPORT": own}
    return subprocess.run(
        [sys.executable, *script, *words], cwd=place, env=environment, capture_output=True, text=True, timeout=600
    )


def test_what_was_trained_is_resumed_measured_and_used(place: Path):
    rows = [json.loads(line) for line in (place / "run/metrics.jsonl").read_text().splitlines()]
    assert max(row["epoch"] for row in rows) == 1, "the run went on"
    config = json.loads((place / "run/config.json").read_text())
    assert config["model"]["backbone"] == "my_patches" and config["loss"]["recognition"] == "my-loss"
    for words in (
        ["evaluate", "run", "--data", "shards/mine/test"],
        ["predict", "run", "photo.jpg"],
        ["export", "run", "--out", "exported", "--format", "safetensors"],
        ["predict", "exported", "photo.jpg"],
        ["train", "--recipe", "run", "--run", "again", "--epochs", "1"],
    ):
        done = msl(place, *words)
        assert done.returncode == 0, done.stdout + done.stderr
    alone = msl(place, "photo.jpg", script=("exported/model.py",), own=str(place / "my_parts.py"))
    assert alone.returncode == 0 and set(CLASSES) <= set(alone.stdout.split()), alone.stdout + alone.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["train", "--recipe", "run", "--run", "other"],
            "run/config.json: augment.batch: 'my-noise' is registered nowhere; ",
        ),
        (
            ["evaluate", "run", "--data", "shards/mine/test"],
            "meta.json: augment.batch: 'my-noise' is registered nowhere; ",
        ),
        (["train", "--recipe", "smoke", "--set", "model.head=mena"], "did you mean mean?"),
        (["train", "--recipe", "smoke", "--set", "loss.recognition=ceb"], "is not one of bce, asl, hill, splc"),
    ],
)
def test_what_nothing_registers_is_said_in_one_line(place: Path, words: list[str], said: str):
    done = msl(place, *words, own=None)
    assert done.returncode == 2 and said in done.stderr, done.stderr
    assert "one of your own is found where MSL_IMPORT names the module that registers it" in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


def test_a_network_that_nothing_registers_is_said(place: Path):
    done = msl(place, "train", "mine", "--backbone", "my_patches", "--weights", "", "--run", "none", own=None)
    assert done.returncode == 2 and "timm has no model 'my_patches'; " in done.stderr and "MSL_IMPORT" in done.stderr


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ("no_such_module", "(ModuleNotFoundError: No module named 'no_such_module'); install it, put its folder on "),
        ("none.py", "MSL_IMPORT=none.py: no file none.py in "),
        ("wrong.py", "MSL_IMPORT=wrong.py: wrong.py cannot be imported (ZeroDivisionError: division by zero)"),
    ],
)
def test_a_module_that_cannot_be_imported_is_said(place: Path, own: str, said: str):
    (place / "wrong.py").write_text("1 / 0")
    done = msl(place, "evaluate", "run", "--data", "shards/mine/test", own=own)
    assert done.returncode == 2 and said in done.stderr, done.stderr
