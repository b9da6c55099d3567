"""Where a changed run goes on, and when one ends before its last epoch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from msldata.errors import UserError
from msltrain.config import DataConfig, TrainConfig, override
from msltrain.recipes import recipe
from msltrain.runs.checkpoint import Checkpoint, save_checkpoint
from msltrain.runs.folder import OTHER_DATA
from msltrain.stream.config import StreamConfig
from msltrain.stream.loader import Loader
from msltrain.training.optim import learning_rate
from msltrain.training.resume import Resume, Start, _has_other_validation, open_run, rate_note, take_position
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


def test_it_is_said_that_the_best_epoch_is_chosen_anew():
    """Where there was one, and the samples that it was the best on are not those of now."""
    before: Any = SimpleNamespace(train_state={"best": {"epoch": 1, "mAP": 0.5}})
    none: Any = SimpleNamespace(train_state={"best": None})
    anew = "validation is on other samples now: the best epoch is chosen anew from here on"
    assert Start(checkpoint=before, changes=("a",), validates_anew=True).notes(None) == [
        "continued with a change: a",
        anew,
    ]
    for start, best in (
        (Start(checkpoint=before, validates_anew=True), {"epoch": 1}),
        (Start(checkpoint=before), None),
        (Start(checkpoint=none, validates_anew=True), None),
        (Start(validates_anew=True), None),
    ):
        assert start.notes(best) == []


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


POSITION = {"epoch": 1, "step": 5, "batch_size": 8, "num_samples": 40}
STATE = {
    "loader": POSITION,
    "best": {"epoch": 1, "mAP": 0.5},
    "optimizer": {"state": {}, "param_groups": [{"params": []}]},
    "random": [{"python": 0}],
}
CONFIG = override(recipe("smoke"), ["optim.num_epochs=2"])


def opened(
    root: Path,
    *,
    resume: Resume = "auto",
    state: dict[str, Any] = STATE,
    classes: tuple[str, ...] = ("cat", "dog"),
    is_used: bool = True,
    changes: Sequence[str] = (),
    allow_changes: bool = False,
    was_changed: bool = False,
    config: TrainConfig = CONFIG,
    **facts: Any,
) -> tuple[Start, list[str]]:
    """Where a run begins whose last checkpoint is after two epochs of five steps, and what was asked of its folder."""
    plain = {"step": 10, "epoch": 2, "validation_mAP": 0.5, "classes": ("cat", "dog"), **facts}
    save_checkpoint(Checkpoint(config=CONFIG, weights={"w": torch.ones(1)}, train_state=state, **plain), root / "last")
    asked: list[str] = []
    folder: Any = SimpleNamespace(
        claim=lambda: asked.append("claim"),
        check_unused=lambda: asked.append("unused"),
        check_same=lambda *_: asked.append("same"),
        changes=lambda *_: list(changes),
        place=lambda *parts: "/".join(("run", *parts)),
        is_used=is_used,
        was_changed=was_changed,
        location="run",
        last=root / "last",
        best=root / "best",
    )
    data: Any = SimpleNamespace(identities=None, classes=classes, training=range(5))
    return open_run(folder, config, data, resume, allow_changes), asked


def test_where_a_run_begins(tmp_path: Path):
    """It begins anew where that is asked for, or where nothing is there; else after its last checkpoint."""
    for resume, is_used, asks, step in (
        (False, False, ["claim", "unused"], None),
        ("auto", False, ["claim"], None),
        ("auto", True, ["claim"], 10),
        (True, True, ["claim"], 10),
        (True, False, ["claim"], 10),
    ):
        start, asked = opened(tmp_path, resume=resume, is_used=is_used)
        assert (asked, start.checkpoint and start.checkpoint.step) == (asks, step) and start.changes == ()


def test_a_run_that_reached_no_checkpoint_begins_with_what_was_changed(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("msltrain.training.resume.load_checkpoint", Mock(side_effect=FileNotFoundError))
    start, asked = opened(tmp_path, changes=["optim.lr was 1, is 2"], allow_changes=True)
    assert start == Start(changes=("optim.lr was 1, is 2",)) and asked == ["claim"]


def test_changes_are_refused_unless_they_are_allowed(tmp_path: Path):
    for allow_changes, asks in ((False, ["claim", "same"]), (True, ["claim"])):
        start, asked = opened(tmp_path, changes=["optim.lr was 1, is 2"], allow_changes=allow_changes)
        assert asked == asks and start.changes == ("optim.lr was 1, is 2",)


@pytest.mark.parametrize(
    ("classes", "says"),
    [
        (("dog", "cat"), "the same classes in another order than the run in run has (cat, dog; here dog, cat), so"),
        (("a", "b", "c", "d"), "other classes than the run in run has (cat, dog; here a, b, c …), so its outputs"),
        (("a", "b", "c"), "(cat, dog; here a, b, c), so"),
    ],
)
def test_other_classes_are_another_run(tmp_path: Path, classes: tuple[str, ...], says: str):
    with pytest.raises(UserError, match=re.escape(says)) as refused:
        opened(tmp_path, classes=classes, config=override(CONFIG, ["data.train=shards/here"]), was_changed=True)
    assert re.match("shards/here: (the same|other) classes ", str(refused.value))


@pytest.mark.parametrize(("best_epoch", "mAP", "is_best"), [(1, 0.5, True), (0, 0.5, False), (1, None, False)])
def test_a_run_killed_before_it_kept_its_best_epoch_keeps_it_now(
    tmp_path: Path, best_epoch: int, mAP: float | None, is_best: bool
):
    """Epoch number 1 is the second that was finished. Without a measure, the state is from inside an epoch."""
    opened(tmp_path, state={**STATE, "best": {"epoch": best_epoch, "mAP": 0.5}}, validation_mAP=mAP)
    assert (tmp_path / "best").exists() == is_best


def test_a_run_without_a_best_epoch_goes_on(tmp_path: Path):
    assert opened(tmp_path, state={**STATE, "best": None})[0].checkpoint is not None
    assert not (tmp_path / "best").exists()


OPTIMIZER = STATE["optimizer"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"loader": None}, "its loader has no position"),
        *[({"loader": {**POSITION, name: None}}, "its loader has no position") for name in POSITION],
        ({"loader": {**POSITION, "step": True}}, "its loader has no position"),
        ({"loader": {**POSITION, "step": -1}}, "its loader has no position"),
        ({"loader": {**POSITION, "epoch": 3}}, "it is in epoch 4 of 2"),
        ({"loader": {**POSITION, "epoch": 0}}, "meta.json says 2 epochs, and it 0"),
        ({"loader": {**POSITION, "step": 6}}, "it is at step 6 of an epoch of 5 at most"),
        ({"loader": {**POSITION, "num_samples": 32}}, "it is at step 5 of an epoch of 4 at most"),
        ({"best": 1}, "its best epoch is none"),
        ({"best": {"epoch": -1, "mAP": 0.5}}, "its best epoch is none"),
        ({"best": {"epoch": 2, "mAP": 0.5}}, "its best epoch is none"),
        ({"best": {"epoch": 1, "mAP": "0.5"}}, "its best epoch is none"),
        ({"best": {"epoch": 1, "mAP": 1.5}}, "its best epoch is none"),
        ({"best": {"epoch": 1, "mAP": -0.5}}, "its best epoch is none"),
        ({"best": {"epoch": 1}}, "its best epoch is none"),
        ({"optimizer": None}, "its optimiser is none"),
        ({"optimizer": {**OPTIMIZER, "param_groups": [{}]}}, "its optimiser is none"),
        ({"random": []}, "it lacks the states of the random numbers"),
        ({"random": {"python": 0}}, "it lacks the states of the random numbers"),
        ({"random": [{"python": 0}, 1]}, "it lacks the states of the random numbers"),
        ({"num_averaged": -1}, "num_averaged is not a count"),
        ({"num_averaged": 1.0}, "num_averaged is not a count"),
        *[({name: []}, "its weights have no names") for name in ("weights", "twin", "masked_norms")],
        ({"twin": {"weights": [], "optimizer": OPTIMIZER}}, "its twin is none"),
        ({"twin": {"weights": {}, "optimizer": None}}, "its twin is none"),
    ],
)
def test_a_state_that_no_training_was_in(tmp_path: Path, change: dict[str, Any], says: str):
    with pytest.raises(UserError) as refused:
        opened(tmp_path, state={**STATE, **change})
    assert str(refused.value) == (
        f"run/checkpoints/last/train_state.pt: not the state of a training ({says}); copy the checkpoint again"
    )


def test_a_state_without_a_best_epoch_is_none_of_a_training(tmp_path: Path):
    with pytest.raises(UserError, match="its best epoch is none"):
        opened(tmp_path, state={name: value for name, value in STATE.items() if name != "best"})


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ({}, {}),
        ({"loader": {**POSITION, "num_samples": 33}}, {}),
        ({"loader": {**POSITION, "num_samples": 5, "batch_size": 1}}, {}),
        ({"loader": {**POSITION, "epoch": 2, "step": 0}}, {}),  # stopped between two epochs
        ({"loader": {**POSITION, "epoch": 1, "step": 0}}, {"epoch": 1, "step": 5}),
        ({"loader": {**POSITION, "epoch": 0, "step": 0}, "best": None}, {"epoch": 0, "step": 0}),
        ({"best": {"epoch": 0, "mAP": 0}}, {}),
        ({"best": {"epoch": 0, "mAP": 1}}, {}),
        ({"num_averaged": 0, "weights": {}, "masked_norms": {}}, {}),
        ({"twin": {"weights": {}, "optimizer": OPTIMIZER}}, {}),
    ],
)
def test_states_in_which_a_training_can_be(tmp_path: Path, change: dict[str, Any], facts: dict[str, int]):
    if facts.get("epoch") == 1:
        change = {**change, "best": {"epoch": 0, "mAP": 0.5}}
    assert opened(tmp_path, state={**STATE, **change}, **facts)[0].checkpoint is not None


def test_a_checkpoint_of_another_run_is_noticed(tmp_path: Path):
    """Unless the run was ever changed, now or before: then its steps and its config are others."""
    for number, (config, step, says) in enumerate((
        (override(CONFIG, ["optim.lr=0.5", "run.keep=7"]), 10, "run/checkpoints/last/meta.json: of another run than"),
        (CONFIG, 9, r"says 9 steps, and the position in train_state\.pt is after 10; copy the checkpoint again"),
    )):  # fmt: skip
        with pytest.raises(UserError, match=says):
            opened(tmp_path / f"{number}", config=config, step=step)
        for changed in ({"was_changed": True}, {"changes": ["a change"], "allow_changes": True}):
            assert opened(tmp_path / f"{number}", config=config, step=step, **changed)[0].checkpoint is not None
    with pytest.raises(UserError, match=r"judging by optim\.lr; copy it again"):
        opened(tmp_path / "2", config=override(CONFIG, ["optim.lr=0.5", "run.keep=7"]))
    assert opened(tmp_path / "3", config=override(CONFIG, ["run.keep=7"]))[0].checkpoint is not None


NAMED, PART, LESS = (
    DataConfig(train="a", validation=place, validation_fraction=fraction)
    for place, fraction in (("v", 0.2), ("", 0.2), ("", 0.1))
)


@pytest.mark.parametrize(
    ("before", "now", "changed", "is_other"),
    [
        (PART, PART, "", False),
        (PART, PART, "keep_masks", False),
        (PART, PART, "train", True),  # other samples are set aside of other shards
        (PART, LESS, "", True),
        (NAMED, NAMED, "train", False),
        (NAMED, NAMED, "validation", True),
        (NAMED, replace(NAMED, validation_fraction=0.1), "", False),  # nothing is set aside
        (NAMED, PART, "validation", True),
        (PART, NAMED, "", True),
    ],
)
def test_what_a_changed_run_validates_on(before: DataConfig, now: DataConfig, changed: str, is_other: bool):
    changes = [f"{OTHER_DATA} for {changed}: then a (3 samples), now b (4 samples)"] if changed else []
    assert _has_other_validation(before, now, ["optim.lr was 1, is 2", *changes]) == is_other


def test_every_process_validates_with_the_statistics_of_the_first(monkeypatch: pytest.MonkeyPatch):
    """Where validation chooses the best checkpoint, all processes must have measured the network that is shipped."""
    asked: list[Any] = []
    network = object()
    for name in ("has_finite_weights", "validation_mean_ap"):
        answer = lambda shipped, *_, name=name, **__: asked.append((name, shipped)) or 0.75  # noqa: E731
        monkeypatch.setattr(f"msltrain.training.trainer.{name}", answer)
    trainer: Any = Trainer.__new__(Trainer)
    trainer.config = override(recipe("smoke"), ["optim.warmup_epochs=0"])
    trainer._optim, trainer.chooses, trainer.best = trainer.config.optim, True, {"epoch": 1, "mAP": 0.8}
    trainer.learner = SimpleNamespace(shipped=network, amp=False)
    trainer.data = SimpleNamespace(validation=range(2), training=range(5))
    trainer.ranks = SimpleNamespace(share_buffers=lambda shipped: asked.append(("share_buffers", shipped)))
    monkeypatch.setattr(Trainer, "_scheduled", 10)
    assert trainer._validate(2) == (0.75, False)
    assert asked == [(name, network) for name in ("has_finite_weights", "share_buffers", "validation_mean_ap")]
    trainer.best = {"epoch": 1, "mAP": 0.75}
    assert trainer._validate(2) == (0.75, True) and trainer.best == {"epoch": 2, "mAP": 0.75}


def test_a_position_among_other_samples_means_nothing(tmp_path: Path):
    for name, count in (("before", 40), ("now", 24)):
        write_images(tmp_path / name, [count])
    before, now, eight = (
        Loader(tmp_path / name, StreamConfig(image_size=16, batch_size=size, num_threads=1), training=True)
        for name, size in (("before", 4), ("now", 4), ("before", 8))
    )
    position = {**before.state_dict(), "epoch": 2, "step": 9}
    take_position(now, position, changed=True)
    assert (now.epoch, now.step) == (2, 0)
    take_position(eight, {**position, "step": 11}, changed=True)  # 44 samples, of 40
    assert (eight.epoch, eight.step) == (2, 5)


def test_a_changed_rate_is_said():
    config = replace(CONFIG.optim, num_epochs=10, schedule="cosine", warmup_epochs=0, lr=1.0)
    assert rate_note(config, config, 4, 10) == ""
    assert rate_note(config, replace(config, lr=0.5), 5, 10) == (
        "the learning rate goes on at 0.25, where it was 0.5: the cosine is another one now"
    )
    assert rate_note(config, replace(config, lr=0.99005), 5, 10) == ""  # a hundredth is no other rate
    assert rate_note(config, replace(config, lr=0.985), 5, 10) and rate_note(replace(config, lr=0.985), config, 5, 10)
    assert rate_note(config, replace(config, num_epochs=5), 5, 10) == ""  # it is over
    stepped = replace(config, schedule="step", step_epochs=2, step_factor=0.1)
    assert rate_note(replace(stepped, lr=100.0), replace(stepped, lr=99.0), 0, 10) == ""  # nor exactly one
    assert rate_note(config, stepped, 5, 10).endswith(
        "goes on at 0.01, where it was 0.5: the schedule is another one now"
    )
    assert rate_note(config, replace(config, schedule="one_cycle"), 5, 10).endswith(": the cycle is another one now")
