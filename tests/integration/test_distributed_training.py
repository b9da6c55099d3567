"""Training under torchrun: several processes give the run of one, and fail together."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from msldata.errors import UserError
from msltrain.config import DataConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig, override
from msltrain.hosts.distributed import Ranks
from msltrain.runs.checkpoint import load_checkpoint, load_recogniser
from msltrain.runs.find_checkpoint import META_NAME
from msltrain.stream.config import StreamConfig
from msltrain.training.data import TrainData
from msltrain.training.precise_bn import norm_names
from msltrain.training.trainer import train
from msltrain.training.validation import validation_mean_ap
from tests.smallshards import write_images, write_keep_masks
from tests.torchrun import finish, losses, start, validation

pytestmark = pytest.mark.usefixtures("ready_python")


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
        optim=OptimConfig(lr=0.02, num_epochs=4, warmup_epochs=0.5, step_epochs=1, clip_norm=1.0, ema_decay=0.9),
        run=RunConfig(log_every=1, device="cpu"),
    )


@pytest.fixture(scope="module")
def alone(config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run in one process: its folder."""
    run = tmp_path_factory.mktemp("alone") / "run"
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    train(config, run_dir=run)
    torch.set_num_threads(num_threads)
    return run


@pytest.fixture(scope="module")
def two(config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run in two processes, with sequential and with fused branches: a folder of both."""
    folder = tmp_path_factory.mktemp("two")
    finish(start(both_branches(config), folder, 2))
    return folder


OURS = (
    *("loss.clean_weight=1", "loss.masked_weight=1", "loss.consistency_weight=0", "loss.masked_target=teacher"),
    *("keep_mask.share=0.5", "keep_mask.subset_weights=0.7", "keep_mask.ramp_epochs=2", "keep_mask.fill=image"),
    *("keep_mask.ignore_below=0.3", "keep_mask.start=0.5", "optim.num_epochs=2", "augment.erase=random"),
)


@pytest.mark.parametrize("num_processes", [2, 4])
def test_other_targets_fills_and_shares_do_not_depend_on_the_number_of_processes(
    config: TrainConfig, tmp_path: Path, num_processes: int
):
    """With shares of a batch of 8, some processes have no masked image in some steps."""
    write_images(tmp_path / "objects", [24, 24], with_objects=True)
    config = override(config, [f"data.train={tmp_path / 'objects'}", *OURS])
    train(config, run_dir=tmp_path / "alone")
    finish(start({"run": config}, tmp_path, num_processes))
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "alone"), abs=1e-5)
    assert validation(tmp_path / "run") == pytest.approx(validation(tmp_path / "alone"), abs=1e-6)


def test_heads_with_queries_do_not_depend_on_the_number_of_processes(config: TrainConfig, tmp_path: Path):
    """Without dropout, which draws other numbers in every process."""
    small = ("model.decoder_width=16", "model.decoder_hidden=32", "model.head_dropout=0", "optim.num_epochs=1")
    configs = {head: override(config, [f"model.head={head}", *small]) for head in ("mldecoder", "q2l")}
    finish(start(configs, tmp_path / "two", 2))
    for head, one in configs.items():
        train(one, run_dir=tmp_path / head)
        assert losses(tmp_path / "two" / head) == pytest.approx(losses(tmp_path / head), abs=1e-5)
        assert validation(tmp_path / "two" / head) == pytest.approx(validation(tmp_path / head), abs=1e-6)


def both_branches(config: TrainConfig) -> dict[str, TrainConfig]:
    return {branches: override(config, [f"loss.branches={branches}"]) for branches in ("sequential", "fused")}


def assert_same_run(run: Path, other: Path) -> None:
    assert len(losses(run)) == 4 * 20
    assert losses(run) == pytest.approx(losses(other), abs=1e-5)
    assert validation(run) == pytest.approx(validation(other), abs=1e-6)


@pytest.mark.parametrize("branches", ["sequential", "fused"])
def test_two_processes_take_the_steps_of_one(alone: Path, two: Path, branches: str):
    assert_same_run(two / branches, alone)
    assert json.loads((two / branches / "environment.json").read_text())[0]["world_size"] == 2


def test_every_process_validates_with_the_statistics_that_are_shipped(config: TrainConfig, tmp_path: Path):
    """BatchNorm learns in each process from its own part of the batch; what is measured is what the first one has."""
    learning = override(config, ["model.freeze_batchnorm=false", "optim.num_epochs=1", "optim.ema_decay=none"])
    precise = override(learning, ["optim.precise_bn_images=30"])
    finish(start({"run": learning, "precise": precise}, tmp_path, 2))
    alone = Ranks(rank=0, world_size=1, device=torch.device("cpu"))
    for name in ("run", "precise"):
        recogniser = load_recogniser(tmp_path / name).recogniser
        with TrainData(precise, alone) as data:
            assert data.validation is not None and data.precise_bn is not None
            measured = validation_mean_ap(recogniser, data.validation, alone, amp=False)
            assert validation(tmp_path / name) == [pytest.approx(measured, abs=1e-9)]
            before = {key: tensor.clone() for key, tensor in recogniser.state_dict().items()}
            data.precise_bn.measure(recogniser, norm_names(recogniser.train()), alone.device, amp=False)
        near = [
            torch.allclose(tensor, before[key], rtol=1e-4, atol=1e-6)
            for key, tensor in recogniser.state_dict().items()
            if "running_" in key
        ]
        assert all(near) == (name != "run")


def test_four_processes_take_the_steps_of_one(config: TrainConfig, alone: Path, tmp_path: Path):
    finish(start(both_branches(config), tmp_path, 4))
    for branches in ("sequential", "fused"):
        assert_same_run(tmp_path / branches, alone)


def test_a_killed_worker_leaves_no_trace_after_a_restart(config: TrainConfig, two: Path, tmp_path: Path):
    """torchrun starts both again, and they go on from the last checkpoint: equal to the last bit."""
    runs = {"run": override(config, ["loss.branches=sequential", "run.save_every=3"])}
    output = finish(start(runs, tmp_path, 2, resume="auto", restarts=1, die_at=13))
    assert "SIGKILL" in output or "exitcode: -9" in output, output
    starts = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert [entry["from_step"] for entry in starts] == [0, 12]
    ours, undisturbed = (
        load_checkpoint(run / "checkpoints" / "last") for run in (tmp_path / "run", two / "sequential")
    )
    assert ours.step == undisturbed.step == 20
    for name, tensor in undisturbed.weights.items():
        assert torch.equal(ours.weights[name], tensor), name
    for name, tensor in undisturbed.train_state["weights"].items():
        assert torch.equal(ours.train_state["weights"][name], tensor), name
    assert losses(tmp_path / "run") == losses(two / "sequential")


@pytest.mark.slow
def test_an_interrupted_run_of_two_continues_in_one(config: TrainConfig, alone: Path, tmp_path: Path):
    process = start({"run": config}, tmp_path, 2)
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not metrics.exists() or not metrics.read_text():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "saved in" in output and "--resume" in output
    step = json.loads((tmp_path / "run" / "checkpoints" / "last" / "meta.json").read_text())["step"]
    assert 1 <= step < 20
    train(config, run_dir=tmp_path / "run", resume=True)
    assert losses(tmp_path / "run") == pytest.approx(losses(alone), abs=1e-5)


def test_a_mistake_ends_all_processes(config: TrainConfig, tmp_path: Path):
    meta = tmp_path / "run" / "checkpoints" / "last" / META_NAME
    meta.parent.mkdir(parents=True)
    meta.write_text("{}")  # a run without a checkpoint does not hold its place
    output = finish(start({"run": config}, tmp_path, 2), expected=1)
    assert output.count("holds a run already") == 2


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("stream.batch_size=9", "stream.batch_size is 9, which 2 processes cannot share equally; set a multiple of 2"),
        ("stream.drop_last=false", "an incomplete batch cannot be shared equally"),
        ("run.sync_batchnorm=true", "run.sync_batchnorm needs GPUs"),
        ("augment.mix=mixup stream.batch_size=2", "stream.batch_size=2 gives it one; set 4 or more"),
    ],
)
def test_batches_that_cannot_be_shared_are_refused(config: TrainConfig, assignment: str, words: str):
    with pytest.raises(UserError, match=words):
        TrainData(override(config, assignment.split()), Ranks(rank=1, world_size=2, device=torch.device("cpu")))
