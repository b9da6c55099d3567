"""Where a changed run goes on, and when one ends before its last epoch."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from msldata.errors import UserError
from msltrain.config import override
from msltrain.recipes import recipe
from msltrain.runs.checkpoint import Checkpoint, save_checkpoint
from msltrain.stream.config import StreamConfig
from msltrain.stream.loader import Loader
from msltrain.training.optim import learning_rate
from msltrain.training.resume import open_run, take_position
from msltrain.training.trainer import Trainer
from tests.smallshards import write_images


def test_with_another_batch_size_a_run_goes_on_after_as_many_samples(tmp_path: Path):
    write_images(tmp_path, [40])
    eight, three, large = (
        Loader(tmp_path, StreamConfig(image_size=16, batch_size=size, num_threads=1), training=True)
        for size in (8, 3, 17)
    )
    eight.load_state_dict({**eight.state_dict(), "epoch": 1, "step": 2})
    with pytest.raises(UserError, match="had batch_size = 8, this one has 3"):
        take_position(three, eight.state_dict(), changed=False)
    for loader, step in ((three, 5), (large, 0)):  # the most whole batches in 16 samples
        take_position(loader, eight.state_dict(), changed=True)
        assert (loader.epoch, loader.step) == (1, step)


def test_patience_is_the_number_of_epochs_after_the_best():
    trainer = Trainer.__new__(Trainer)  # without the network, which has no part in it
    trainer.config, trainer.chooses = override(recipe("smoke"), ["optim.patience=2"]), True
    trainer.best = {"epoch": 3, "mAP": 0.5}
    assert [trainer._is_over(epoch) for epoch in range(4, 8)] == [False, False, True, True]
    trainer.chooses = False
    assert not trainer._is_over(7)


def test_the_schedule_is_at_the_place_of_the_samples_not_of_the_smaller_batches(tmp_path: Path):
    """Six batches of 4 were taken where three of 8 are; the rate goes on at the fourth step."""
    write_images(tmp_path, [40])
    small, loader = (
        Loader(tmp_path, StreamConfig(image_size=16, batch_size=size, num_threads=1), training=True) for size in (4, 8)
    )
    small.load_state_dict({**small.state_dict(), "step": 6})
    take_position(loader, small.state_dict(), changed=True)
    rates: list[float] = []
    trainer: Any = Trainer.__new__(Trainer)  # without the network, which has no part in it
    trainer.config = override(recipe("smoke"), ["run.save_every=0"])
    trainer._optim, trainer.step, trainer._steps_here = trainer.config.optim, 6, 1
    trainer.data = SimpleNamespace(
        training=loader, augmented=lambda batch, epoch: batch, masked_view=lambda batch, epoch: None
    )
    trainer.learner = SimpleNamespace(take_step=lambda batch, view, rate, epoch: rates.append(rate) or {})
    trainer.ranks, trainer.stop = SimpleNamespace(world_size=1), SimpleNamespace(received=None)
    trainer._steps_before = trainer.step - trainer._scheduled
    trainer._report = lambda epoch: False
    with loader:
        trainer._train_epoch(0)
    assert rates == [learning_rate(trainer._optim, step, 5) for step in (3, 4)] and rates[0] != rates[1]
    assert trainer.step == 8


@pytest.mark.parametrize(("best_epoch", "mAP", "is_best"), [(1, 0.5, True), (0, 0.5, False), (1, None, False)])
def test_a_run_killed_before_it_kept_its_best_epoch_keeps_it_now(
    tmp_path: Path, best_epoch: int, mAP: float | None, is_best: bool
):
    """Epoch number 1 is the second that was finished. Without a measure, the state is from inside an epoch."""
    position = {"epoch": 1, "step": 5, "batch_size": 8, "num_samples": 40}
    state = {
        "loader": position,
        "best": {"epoch": best_epoch, "mAP": 0.5},
        "optimizer": {"state": {}, "param_groups": [{"params": []}]},
        "random": [{"python": 0}],
    }
    checkpoint = Checkpoint(
        config=recipe("smoke"), classes=("cat",), step=10, epoch=2, validation_mAP=mAP,
        weights={"w": torch.ones(1)}, train_state=state,
    )  # fmt: skip
    save_checkpoint(checkpoint, tmp_path / "last")
    folder: Any = SimpleNamespace(
        claim=lambda: None, is_used=True, changes=lambda *_: [], was_changed=True, place=lambda *parts: "/".join(parts),
        last=tmp_path / "last", best=tmp_path / "best",
    )  # fmt: skip
    data: Any = SimpleNamespace(identities=None, classes=("cat",))
    start = open_run(folder, checkpoint.config, data, "auto", False)
    assert start.checkpoint is not None and start.checkpoint.step == 10
    assert (tmp_path / "best").exists() == is_best
