"""Training with sharded weights under torchrun: the run of one process, in less memory, with the same checkpoints."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from msldata.errors import UserError
from msltrain.config import DataConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig, override
from msltrain.hosts.distributed import Ranks
from msltrain.hosts.interrupt import Interrupted
from msltrain.models.build import build_model
from msltrain.runs.checkpoint import load_checkpoint
from msltrain.stream.config import StreamConfig
from msltrain.training.events import StepEvent
from msltrain.training.learner import Learner
from msltrain.training.sharding import shard_weights
from msltrain.training.trainer import train
from tests.smallshards import write_images, write_keep_masks
from tests.torchrun import finish, losses, start, validation

pytestmark = pytest.mark.usefixtures("ready_python")

WORKER = """
import json, os, shutil, signal, sys
from pathlib import Path
import torch
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
import msltrain.training.trainer
from msltrain.config import from_json
from msltrain.hosts.interrupt import Interrupted
from msltrain.training.learner import Learner
from msltrain.training.sharding import own_parts

class Observed(Learner):
    def __init__(self, *args):
        super().__init__(*args)
        self.seen = {"steps": 0, "reductions": 0}
        if isinstance(self._parallel, torch.nn.parallel.DistributedDataParallel):
            self._parallel.register_comm_hook(None, self.reduce)

    def reduce(self, state, bucket):
        self.seen["reductions"] += bucket.is_last()
        return allreduce_hook(None, bucket)

    def take_step(self, *args):
        losses = super().take_step(*args)
        momenta = [value for entry in self.optimizer.state.values() for value in entry.values() if value.ndim]
        self.seen["steps"] += 1
        self.seen["parameters"] = count(parameter for parameter in self.recogniser.parameters())
        self.seen["average"] = count(parameter for parameter in self.shipped.parameters())
        self.seen["optimizer"] = count(momenta)
        seen[self.ranks.rank] = self.seen
        return losses

def count(tensors):
    return sum((tensor.to_local() if hasattr(tensor, "to_local") else tensor).numel() for tensor in tensors)

msltrain.training.trainer.Learner = Observed
for run in map(Path, sys.argv[2:]):
    seen = {}
    def interrupt(event):
        if run.name == "interrupted" and getattr(event, "step", 0) == 7:
            os.kill(os.getpid(), signal.SIGTERM)
    config = from_json(run.with_suffix(".json").read_text())
    try:
        msltrain.training.trainer.train(config, run_dir=run, resume="auto", on_event=interrupt)
    except Interrupted as stopped:
        assert stopped.step == 8  # several processes agree on it at their next report
        if os.environ["RANK"] == "0":
            shutil.copytree(run, run.with_name("left"))
        msltrain.training.trainer.train(config, run_dir=run, resume=True)
    for rank, numbers in seen.items():
        run.with_suffix(f".{rank}").write_text(json.dumps(numbers))
"""


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TrainConfig]:
    """Five steps an epoch; of the 9 samples of validation one process has none in the last batch."""
    root = tmp_path_factory.mktemp("data")
    write_images(root / "train", [18, 18, 18])
    rng = np.random.default_rng(0)
    write_keep_masks(root / "high", [(rng.random((32, 32)) > 0.5).astype(np.uint8) for _ in range(5)])
    vit = TrainConfig(
        data=DataConfig(train=str(root / "train"), keep_masks=(str(root / "high"),), validation_fraction=0.25),
        stream=StreamConfig(image_size=32, batch_size=8, num_threads=1),
        model=ModelConfig(backbone="test_vit", num_heads=2),
        optim=OptimConfig(lr=0.02, num_epochs=2, warmup_epochs=0.5, step_epochs=1, clip_norm=1.0, ema_decay=0.9),
        run=RunConfig(log_every=1, device="cpu"),
    )
    resnet = [
        "model.backbone=test_resnet",
        # Statistics of half a batch differ from those of the whole one; frozen, BatchNorm has none.
        "model.freeze_batchnorm=true",
        "loss.branches=fused",
        "optim.optimizer=adamw",
        "optim.lr=0.001",
        "optim.accumulation_steps=2",
        "optim.ema_decay=none",
        "run.activation_checkpointing=true",
        "run.channels_last=true",
    ]
    return {"vit": vit, "resnet": override(vit, resnet)}


def sharded(config: TrainConfig) -> TrainConfig:
    return override(config, ["run.shard_weights=true"])


@pytest.fixture(scope="module")
def alone(configs: dict[str, TrainConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs in one process, and one that was interrupted after step 7: a folder of them."""
    folder = tmp_path_factory.mktemp("alone")
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for name, config in configs.items():
        train(config, run_dir=folder / name)

    def interrupt(event):
        if isinstance(event, StepEvent) and event.step == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        train(configs["vit"], run_dir=folder / "interrupted", on_event=interrupt)
    torch.set_num_threads(num_threads)
    return folder


@pytest.fixture(scope="module")
def two(configs: dict[str, TrainConfig], alone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs in two processes: a folder of them."""
    folder = tmp_path_factory.mktemp("two")
    shutil.copytree(alone / "interrupted", folder / "taken_over")
    runs = {
        **{name: sharded(config) for name, config in configs.items()},
        "interrupted": sharded(configs["vit"]),
        "taken_over": sharded(configs["vit"]),
        "replicated": override(configs["vit"], ["optim.accumulation_steps=2"]),
    }
    finish(start(runs, folder, 2, worker=WORKER))
    return folder


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_two_processes_with_sharded_weights_take_the_steps_of_one(alone: Path, two: Path, name: str):
    assert len(losses(two / name)) == 4 * 10
    assert losses(two / name) == pytest.approx(losses(alone / name), abs=1e-5)
    assert validation(two / name) == pytest.approx(validation(alone / name), abs=1e-6)


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_each_process_keeps_half_of_everything(configs: dict[str, TrainConfig], two: Path, name: str):
    recogniser = build_model(configs[name].model, 3, image_size=32)
    num_parameters = sum(parameter.numel() for parameter in recogniser.parameters())
    num_trained = sum(parameter.numel() for parameter in recogniser.parameters() if parameter.requires_grad)
    parts = [json.loads((two / f"{name}.{rank}").read_text()) for rank in (0, 1)]
    states = 1 if name == "vit" else 2  # momentum, or AdamW's two moments
    for kind, number in (
        ("parameters", num_parameters),
        ("average", num_parameters),
        ("optimizer", states * num_trained),
    ):
        assert sum(part[kind] for part in parts) == number
        assert max(part[kind] for part in parts) < 0.51 * number, kind


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_a_checkpoint_does_not_tell_how_its_weights_lay(alone: Path, two: Path, name: str):
    expected, found = (load_checkpoint(folder / name / "checkpoints" / "last") for folder in (alone, two))
    assert found.step == 10 and set(found.weights) == set(expected.weights)
    for tensor_name, tensor in expected.weights.items():
        torch.testing.assert_close(found.weights[tensor_name], tensor, atol=2e-5, rtol=1e-4, msg=tensor_name)
    ours, theirs = (checkpoint.train_state["optimizer"]["state"] for checkpoint in (found, expected))
    assert list(ours) == list(theirs)
    for number, entries in theirs.items():
        for entry, tensor in entries.items():
            torch.testing.assert_close(ours[number][entry], tensor, atol=2e-4, rtol=1e-3)
    assert set(found.train_state) == set(expected.train_state)


def test_an_interrupted_sharded_run_continues_bit_for_bit(two: Path):
    assert losses(two / "interrupted") == losses(two / "vit")
    one, other = (load_checkpoint(two / name / "checkpoints" / "last") for name in ("interrupted", "vit"))
    for name, tensor in other.weights.items():
        assert torch.equal(one.weights[name], tensor), name
    for number, entries in other.train_state["optimizer"]["state"].items():
        for name, tensor in entries.items():
            assert torch.equal(one.train_state["optimizer"]["state"][number][name], tensor)


def test_a_whole_checkpoint_continues_with_sharded_weights(alone: Path, two: Path):
    assert losses(two / "taken_over") == pytest.approx(losses(alone / "vit"), abs=1e-5)
    assert validation(two / "taken_over") == pytest.approx(validation(alone / "vit"), abs=1e-6)


@pytest.mark.slow
def test_a_whole_checkpoint_continues_in_four_processes(configs: dict[str, TrainConfig], alone: Path, tmp_path: Path):
    """``pytest -m slow tests/integration/test_sharded_training.py``"""
    shutil.copytree(alone / "interrupted", tmp_path / "run")
    finish(start({"run": sharded(configs["vit"])}, tmp_path, 4, worker=WORKER))
    assert losses(tmp_path / "run") == pytest.approx(losses(alone / "vit"), abs=1e-5)
    assert validation(tmp_path / "run") == pytest.approx(validation(alone / "vit"), abs=1e-6)


def test_the_checkpoint_of_a_sharded_run_continues_in_one_process(
    configs: dict[str, TrainConfig], alone: Path, two: Path
):
    train(configs["vit"], run_dir=two / "left", resume=True)
    assert losses(two / "left") == pytest.approx(losses(alone / "vit"), abs=1e-5)


def test_gradients_are_shared_once_per_update(alone: Path, two: Path):
    """Replicated weights with accumulation: one round of all-reduce after the last part, and the steps of one batch."""
    for rank in (0, 1):
        assert json.loads((two / f"replicated.{rank}").read_text())["reductions"] == 10
    assert losses(two / "replicated") == pytest.approx(losses(alone / "vit"), abs=1e-5)


def test_what_cannot_be_sharded_is_refused(configs: dict[str, TrainConfig]):
    ranks = Ranks(rank=0, world_size=2, device=torch.device("cpu"))
    network = build_model(configs["vit"].model, 3, image_size=32)
    network.backbone.network.gain = torch.nn.Parameter(torch.tensor(1.0))  # as the larger NFNets have them
    with pytest.raises(UserError, match=r"backbone\.network\.gain of backbone 'test_vit' is a single number"):
        shard_weights(network, ranks)
    split = override(sharded(configs["resnet"]), ["loss.bn_mode=split", "model.freeze_batchnorm=false"])
    with pytest.raises(UserError, match=re.escape("the norms that loss.bn_mode=split adds cannot be divided")):
        Learner(split, 3, ranks, None)
    with pytest.raises(UserError, match=r"run\.shard_weights: True is not false, as run\.compile needs"):
        RunConfig(compile=True, shard_weights=True)
