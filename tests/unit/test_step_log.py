"""What a line of training says: of its speed, of the losses since the last line, and of one that is no number."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from msldata.errors import UserError
from msltrain.config import override
from msltrain.hosts.distributed import Ranks
from msltrain.recipes import recipe
from msltrain.training import step_log
from msltrain.training.events import Event
from msltrain.training.step_log import StepLog
from msltrain.training.trainer import Trainer


def test_a_slow_first_step_is_left_out_of_the_speed(monkeypatch: pytest.MonkeyPatch):
    now = 100.0
    monkeypatch.setattr(step_log.time, "perf_counter", lambda: now)
    log = StepLog()
    now, log.waited = 110.0, 4.0
    log.add(0.1, {}, ["a", "b"])
    log.leave_out()
    assert log.speed() == (0.2, 0.4), "there is nothing else yet"
    now, log.waited = 112.0, 5.0
    log.add(0.1, {}, ["c", "d"])
    log.add(0.1, {}, ["e", "f"])
    assert log.speed() == (2.0, 0.5)


def test_slow_steps_are_told_one_by_one_and_others_once_a_second(monkeypatch: pytest.MonkeyPatch):
    now = 100.0
    monkeypatch.setattr(step_log.time, "perf_counter", lambda: now)
    log, told = StepLog(), []
    for seconds in (0.5, 0.4, 0.2, 0.5, 0.6, 3.0, 0.5):
        now += seconds
        told.append(log.is_slow())
    assert told == [False, False, True, False, True, True, False]


class Two(Ranks):
    """A second process that reports twice the losses, and was asked to stop if so told."""

    other_was_asked = False

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        theirs = 2 * values
        theirs[-1] = float(self.other_was_asked)
        return (values + theirs) / 2

    def gather(self, value: Any) -> list[Any]:
        return [value, ["other", "process"]]


TWO = Two(rank=0, world_size=2, device=torch.device("cpu"))


def logged() -> StepLog:
    log = StepLog()
    for number, rate in enumerate((0.1, 0.2, 0.3)):
        losses = {"total": torch.tensor(1.0 + number), "clean": torch.tensor(10.0 * number)}
        log.add(rate, losses, [f"{number}a", f"{number}b"])
    return log


@pytest.mark.parametrize(("asked", "other", "stop"), [(False, False, False), (True, False, True), (False, True, True)])
def test_losses_of_every_step_are_means_over_the_processes(
    monkeypatch: pytest.MonkeyPatch, asked: bool, other: bool, stop: bool
):
    monkeypatch.setattr(Two, "other_was_asked", other)
    names, rows, found = logged().read(TWO, asked)
    assert (names, found) == (["total", "clean"], stop)
    assert rows == [[1.5, 0.0], [3.0, 15.0], [4.5, 30.0]]


def reporting(log: StepLog, on_event: Callable[[Event], None]) -> Trainer:
    """A run at its 17th step, of which the last three were not reported yet."""
    one = Trainer.__new__(Trainer)
    one.step, one.ranks, one.on_event, one._step_log = 17, TWO, on_event, log
    one.config, one._steps_before = override(recipe("smoke"), ["optim.num_epochs=4"]), 0
    one.data = SimpleNamespace(training=range(6))  # type: ignore[assignment]
    one.stop = SimpleNamespace(received=None)  # type: ignore[assignment]
    one.folder = SimpleNamespace(add_metrics=lambda row: None, failed=Path("failed"))  # type: ignore[assignment]
    return one


def test_a_report_is_the_mean_of_its_steps(monkeypatch: pytest.MonkeyPatch):
    events: list[Any] = []
    one = reporting(logged(), events.append)
    one._step_log.began = 0.0
    one._step_log.waited = 1.0
    monkeypatch.setattr(step_log.time, "perf_counter", lambda: 4.0)
    assert not one._report(2) and not one._report(2), "there is nothing else to report"
    [event] = events
    assert (event.step, event.num_steps, event.epoch, event.learning_rate) == (17, 24, 2, 0.3)
    assert event.losses == {"total": 3.0, "clean": 15.0}
    assert (event.images_per_second, event.data_wait) == (6 / 4 * 2, 0.25)


def test_each_wait_for_a_batch_counts_once(monkeypatch: pytest.MonkeyPatch):
    """The loader's own count goes on from epoch to epoch; the log adds what each step has added to it."""

    class Waiting:
        next_epoch, stats = 2, SimpleNamespace(seconds_waited=100.0)

        def __iter__(self):
            for seconds in (1.0, 2.0, 3.0):
                self.stats.seconds_waited += seconds
                yield SimpleNamespace(keys=["a"])

        def __len__(self) -> int:
            return 3

    one = reporting(StepLog(), lambda event: None)
    one._optim, one.step, one._steps_here = one.config.optim, 6, 6
    one.data = SimpleNamespace(  # type: ignore[assignment]
        training=Waiting(), augmented=lambda batch, epoch: batch, masked_view=lambda batch, epoch: None
    )
    one.learner = SimpleNamespace(take_step=lambda *_: {"total": torch.tensor(1.0)})  # type: ignore[assignment]
    waited: list[tuple[int, float]] = []
    monkeypatch.setattr(one, "_report", lambda epoch: waited.append((epoch, one._step_log.waited)))
    one._train_epoch(2)
    assert waited[-1] == (2, 6.0) and one.step == 9


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_the_first_step_whose_loss_is_no_number_is_named_with_its_samples(monkeypatch: pytest.MonkeyPatch, bad: int):
    log = logged()
    for losses in log.losses[bad:]:
        losses["clean"] = torch.tensor(float("nan"))
    one = reporting(log, lambda event: None)
    monkeypatch.setattr(one, "_save", lambda *_: None)
    monkeypatch.setattr(one, "_published", lambda name: (f"place of {name}", None))
    with pytest.raises(UserError) as caught:
        one._report(2)
    said = str(caught.value)
    assert f"step {15 + bad} of 24: the loss is not finite (total {1.5 * (bad + 1):g}, clean nan)" in said
    assert f"the batch was {bad}a, {bad}b, other, process; the state after step 17 is in place of failed" in said
