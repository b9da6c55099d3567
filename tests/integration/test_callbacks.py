"""Functions of the caller's during training: what they are given, how they end a run, and what becomes of a mistake."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import msltrain
from msltrain.config import DataConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig, override
from msltrain.runs.checkpoint import load_checkpoint
from msltrain.runs.find_checkpoint import progress_of, unfinished
from msltrain.stream.config import StreamConfig
from msltrain.training.events import EpochEvent
from msltrain.training.trainer import train
from tests import torchrun
from tests.smallshards import write_images, write_keep_masks

pytestmark = pytest.mark.usefixtures("ready_python")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """Three epochs of four steps, with dropout's random numbers in each."""
    root = tmp_path_factory.mktemp("data")
    write_images(root / "train", [15, 15, 10])
    rng = np.random.default_rng(0)
    write_keep_masks(root / "high", [(rng.random((32, 32)) > 0.5).astype(np.uint8) for _ in range(5)])
    return TrainConfig(
        data=DataConfig(train=str(root / "train"), keep_masks=(str(root / "high"),), validation_fraction=0.1),
        stream=StreamConfig(image_size=32, batch_size=8, num_threads=1),
        model=ModelConfig(backbone="test_efficientnet", head="mldecoder", decoder_width=16, decoder_hidden=16),
        optim=OptimConfig(lr=0.01, num_epochs=3, warmup_epochs=0.5, step_epochs=2, ema_decay=0.9),
        run=RunConfig(log_every=1, device="cpu"),
    )


@pytest.fixture(scope="module")
def plain(config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody watched."""
    run = tmp_path_factory.mktemp("plain") / "run"
    train(config, run_dir=run)
    return run


def assert_same_weights(one: Path, other: Path) -> None:
    ours, theirs = load_checkpoint(one / "checkpoints/last"), load_checkpoint(other / "checkpoints/last")
    assert ours.step == theirs.step
    assert all(torch.equal(ours.weights[name], tensor) for name, tensor in theirs.weights.items())


def test_they_get_numbers_and_the_network_and_change_nothing(config: TrainConfig, plain: Path, tmp_path: Path):
    steps, epochs, modes = [], [], set()

    def on_step(step):
        steps.append(step)
        torch.rand(3)  # what it draws, training must not notice

    def on_epoch(epoch, model):
        epochs.append(epoch)
        modes.add(model.training)
        torch.rand(1)
        assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 3)

    result = msltrain.train(config, tmp_path / "run", on_step=on_step, on_epoch=on_epoch)
    assert [step.step for step in steps] == list(range(1, 13)) and steps[0].losses["total"] > 0
    assert [(epoch.epoch, epoch.step) for epoch in epochs] == [(0, 4), (1, 8), (2, 12)] and modes == {False}
    assert epochs[-1].validation_mAP is not None and result.num_steps == 12
    assert_same_weights(tmp_path / "run", plain)


@pytest.mark.parametrize("steps", [4, 6])
def test_a_run_that_one_ends_is_validated_saved_and_over(config: TrainConfig, tmp_path: Path, steps: int):
    """At the end of an epoch, and in the middle of one."""
    run, events = tmp_path / "run", []
    ends = {
        4: {"on_epoch": lambda epoch, model: epoch.step >= 4},
        6: {"on_step": lambda step: step.step >= 6},
    }[steps]
    result = train(config, run_dir=run, on_event=events.append, **ends)
    last = [event for event in events if isinstance(event, EpochEvent)][-1]
    assert result.num_steps == last.step == steps and last.ends_early and last.validation_mAP is not None
    assert result.best is not None and load_checkpoint(run / "checkpoints/last").step == steps
    assert progress_of(run).is_over and unfinished(run) == ""  # type: ignore[union-attr]
    again = train(config, run_dir=run, resume="auto")
    assert again.num_steps == again.first_step == steps, "there is nothing left to do"
    longer = override(config, ["optim.num_epochs=4"])
    assert not progress_of(run, longer).is_over  # type: ignore[union-attr]
    assert train(longer, run_dir=run, resume=True, allow_changes=True).num_steps == 16


def test_what_one_raises_is_raised_when_all_is_saved(config: TrainConfig, plain: Path, tmp_path: Path):
    run, mistake = tmp_path / "run", ZeroDivisionError("mine")

    def on_step(step):
        if step.step == 6:
            raise mistake

    def on_epoch(epoch, model):
        if epoch.epoch == 1:
            raise mistake

    with pytest.raises(ZeroDivisionError) as caught:
        msltrain.train(config, run, on_step=on_step)
    assert caught.value is mistake and load_checkpoint(run / "checkpoints/last").step == 6
    assert "on_step ended the run after step 6, saved in " in caught.value.__notes__[0]
    assert not progress_of(run).is_over  # type: ignore[union-attr]
    with pytest.raises(ZeroDivisionError):
        msltrain.train(config, run, resume="auto", on_epoch=on_epoch)
    saved = load_checkpoint(run / "checkpoints/last")
    assert saved.step == 8 and saved.validation_mAP is not None
    msltrain.train(config, run, resume="auto")
    assert_same_weights(run, plain)


WORKER = """
import sys
from pathlib import Path
from msltrain.config import from_json
from msltrain.training.trainer import train

class Odd(Exception):
    def __reduce__(self):
        raise TypeError("not to be sent")

def fail(step):
    raise Odd("mine")

calls = []
ended, failed = map(Path, sys.argv[2:])
config = from_json(ended.with_suffix(".json").read_text())
result = train(config, run_dir=ended, on_epoch=lambda epoch, model: calls.append(epoch) or True)
print("ENDED", result.num_steps, len(calls), flush=True)
try:
    train(config, run_dir=failed, on_step=fail)
except Exception as error:
    print("RAISED", type(error).__name__, error, flush=True)
"""


def test_of_two_processes_the_first_calls_and_both_end(config: TrainConfig, tmp_path: Path):
    output = torchrun.finish(torchrun.start({"ended": config, "failed": config}, tmp_path, 2, worker=WORKER))
    lines = output.splitlines()
    assert sorted(line for line in lines if line.startswith("ENDED")) == ["ENDED 4 0", "ENDED 4 1"]
    raised = sorted(line for line in lines if line.startswith("RAISED"))
    assert raised == ["RAISED Odd mine", "RAISED UserError on_step failed in the first process: Odd: mine"]
    assert load_checkpoint(tmp_path / "failed/checkpoints/last").step == 1
