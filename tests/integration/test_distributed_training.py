"""Training under torchrun: several processes give the run of one, and fail together."""

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
import torch

from msldata.errors import UserError
from msltrain.config import DataConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig, override, to_json
from msltrain.distributed import Ranks
from msltrain.stream.config import StreamConfig
from msltrain.traindata import TrainData
from msltrain.trainer import train
from tests.smallshards import write_images, write_keep_masks

WORKER = """
import sys
from msldata.errors import UserError
from msltrain.config import from_json
from msltrain.trainer import train

try:
    train(from_json(open(sys.argv[1]).read()), run_dir=sys.argv[2], resume="--resume" in sys.argv)
except UserError as error:
    print(f"UserError: {error}")
    sys.exit(2)
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    root = tmp_path_factory.mktemp("data")
    write_images(root / "train", [16, 16, 16])
    rng = np.random.default_rng(0)
    write_keep_masks(root / "high", [(rng.random((32, 32)) > 0.5).astype(np.uint8) for _ in range(5)])
    return TrainConfig(
        data=DataConfig(train=str(root / "train"), keep_masks=(str(root / "high"),), validation_fraction=0.15),
        stream=StreamConfig(image_size=32, batch_size=8, num_threads=1),
        # Statistics of half a batch differ from those of the whole one; frozen, BatchNorm has none.
        model=ModelConfig(backbone="test_efficientnet", num_heads=2, freeze_batchnorm=True),
        optim=OptimConfig(lr=0.02, num_epochs=2, warmup_epochs=0.5, step_epochs=1, clip_norm=1.0, ema_decay=0.9),
        run=RunConfig(log_every=1, device="cpu"),
    )


def start(config: TrainConfig, folder: Path, num_processes: int, *flags: str) -> subprocess.Popen:
    """torchrun picks its own free port."""
    folder.mkdir(exist_ok=True)
    (folder / "worker.py").write_text(WORKER)
    (folder / "given.json").write_text(to_json(config))
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}"]
    command = [sys.executable, *launcher, str(folder / "worker.py"), str(folder / "given.json"), str(folder / "run")]
    return subprocess.Popen(
        [*command, *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(process: subprocess.Popen, expected: int = 0) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == expected, output
    return output


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


def losses(folder: Path) -> list[float]:
    return [row[name] for row in rows(folder) for name in ("total", "clean", "masked", "consistency") if name in row]


def validation(folder: Path) -> list[float]:
    return [row["validation_mAP"] for row in rows(folder) if "validation_mAP" in row]


@pytest.fixture(scope="module")
def alone(config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run in one process."""
    folder = tmp_path_factory.mktemp("alone")
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    train(config, run_dir=folder / "run")
    torch.set_num_threads(num_threads)
    return folder


@pytest.mark.parametrize("branches", ["sequential", pytest.param("fused", marks=pytest.mark.slow)])
def test_two_processes_take_the_steps_of_one(config: TrainConfig, alone: Path, tmp_path: Path, branches: str):
    finish(start(override(config, [f"loss.branches={branches}"]), tmp_path, 2))
    assert len(losses(tmp_path)) == 4 * 2 * 5
    assert losses(tmp_path) == pytest.approx(losses(alone), abs=1e-5)
    assert validation(tmp_path) == pytest.approx(validation(alone), abs=1e-6)
    assert json.loads((tmp_path / "run" / "environment.json").read_text())[0]["world_size"] == 2


@pytest.mark.slow
def test_an_interrupted_run_of_two_continues_in_one(config: TrainConfig, alone: Path, tmp_path: Path):
    process = start(override(config, ["optim.num_epochs=2"]), tmp_path, 2)
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not metrics.exists() or not metrics.read_text():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "saved in" in output and "--resume" in output
    step = json.loads((tmp_path / "run" / "checkpoints" / "last" / "meta.json").read_text())["step"]
    assert 1 <= step < 10
    train(config, run_dir=tmp_path / "run", resume=True)
    assert losses(tmp_path) == pytest.approx(losses(alone), abs=1e-5)


def test_a_mistake_ends_all_processes(config: TrainConfig, tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(to_json(config))
    output = finish(start(config, tmp_path, 2), expected=1)
    assert output.count("holds a run already") == 2


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("stream.batch_size=9", "stream.batch_size is 9, which 2 processes cannot share equally; set a multiple of 2"),
        ("stream.drop_last=false", "an incomplete batch cannot be shared equally"),
        ("run.sync_batchnorm=true", "run.sync_batchnorm needs GPUs"),
    ],
)
def test_batches_that_cannot_be_shared_are_refused(config: TrainConfig, assignment: str, words: str):
    with pytest.raises(UserError, match=words):
        TrainData(override(config, [assignment]), Ranks(rank=1, world_size=2, device=torch.device("cpu")))
