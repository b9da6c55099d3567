"""Where a changed run goes on, and when one ends before its last epoch."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from msldata.errors import UserError
from msltrain.config import override
from msltrain.recipes import recipe
from msltrain.stream.config import StreamConfig
from msltrain.stream.loader import Loader
from msltrain.training.optim import learning_rate
from msltrain.training.resume import take_position
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
