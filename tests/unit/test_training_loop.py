"""The training loop around a network that only takes notes: what it is asked for and when, what is saved and said.

A run has four steps of four images an epoch; its validation says what a test wants it to say.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

import msltrain.training.trainer
from msldata.errors import UserError
from msltrain import registered
from msltrain.config import DataConfig, LossConfig, OptimConfig, RunConfig, TrainConfig, override
from msltrain.hosts.distributed import Ranks
from msltrain.runs.checkpoint import load_checkpoint
from msltrain.runs.folder import RunFolder
from msltrain.stream.config import KeepMaskConfig, StreamConfig
from msltrain.stream.errors import SampleError, TooManySkipped
from msltrain.stream.keepmasks.shapes import PatchMasks
from msltrain.stream.loader import Loader
from msltrain.training.events import EpochEvent, StepEvent, TrainResult
from msltrain.training.optim import learning_rate
from msltrain.training.trainer import train
from tests.smallshards import write_images

SEED = 3
OPTIMIZER = {"state": {}, "param_groups": [{"params": []}]}


class Notes:
    """In the place of the learner, which it would be: it writes down in ``asked`` what it is asked for."""

    asked: ClassVar[list[Any]] = []
    fails_in_step = 0
    """A step in which the power is cut; 0: none."""
    loss = 1.0
    notes = warnings = ()
    amp = False

    def __init__(self, config: TrainConfig, num_classes: int, ranks: Any, checkpoint: Any, *_: Any):
        self.step = 0 if checkpoint is None else checkpoint.step
        self.recogniser = self.step_module = nn.Linear(2, 1)
        self.shipped = nn.Linear(1, 1)

    def train(self) -> None:
        self.asked.append("train")
        self.shipped.train()

    def take_step(self, batch: Any, view: Any, rate: float, epoch: int) -> dict[str, torch.Tensor]:
        self.step += 1
        if self.step == self.fails_in_step:
            raise KeyboardInterrupt
        self.asked.append(SimpleNamespace(step=self.step, batch=batch, view=view, rate=rate, epoch=epoch))
        return {"total": torch.tensor(self.loss)}

    def measure_norms(self, precise_bn: Any) -> None:
        self.asked.append("norms")

    def shipped_weights(self) -> dict[str, torch.Tensor]:
        self.asked.append("save")
        return {"step": torch.tensor(self.step)}

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": OPTIMIZER}

    def random_state(self) -> dict[str, Any]:
        return {"python": self.step}

    @classmethod
    def steps(cls) -> list[Any]:
        return [one for one in cls.asked if not isinstance(one, str)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_images(root / "train", [11, 6], size=(24, 20))
    write_images(root / "validation", [15], size=(24, 20))  # five of each class: enough to choose by
    return root


@pytest.fixture
def config(data: Path) -> TrainConfig:
    return TrainConfig(
        data=DataConfig(train=str(data / "train"), validation=str(data / "validation")),
        stream=StreamConfig(image_size=16, batch_size=4, num_threads=1),
        loss=LossConfig(),
        keep_mask=KeepMaskConfig(kind="patch", patch_size=4, hole_fraction=0.5),
        optim=OptimConfig(lr=0.1, num_epochs=3, warmup_epochs=0.5, schedule="cosine"),
        run=RunConfig(seed=SEED, log_every=3, device="cpu"),
    )


@pytest.fixture(autouse=True)
def run(config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., TrainResult]]:
    """Starts the run in ``tmp_path/run``, or goes on with it; validation says ``mean_aps``, one an epoch."""
    monkeypatch.setattr(msltrain.training.trainer, "Learner", Notes)

    def start(
        *settings: str, mean_aps: Sequence[float] = (0.1, 0.2, 0.3), fails_in: int = 0, **options: Any
    ) -> TrainResult:
        left = iter(mean_aps)

        def validate(*_: Any, **__: Any) -> float:
            Notes.asked.append("validate")
            return next(left)

        monkeypatch.setattr(Notes, "asked", [])
        monkeypatch.setattr(Notes, "fails_in_step", fails_in)
        monkeypatch.setattr(msltrain.training.trainer, "validation_mean_ap", validate)
        return train(override(config, settings), run_dir=tmp_path / "run", resume="auto", **options)

    before = dict(registered.AUGMENTATIONS)
    yield start
    registered.AUGMENTATIONS.clear()
    registered.AUGMENTATIONS.update(before)


def logged(folder: Path, name: str) -> list[tuple[int, Any]]:
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row[name]) for row in rows if name in row]


def saved(folder: Path, name: str) -> tuple[int, int, float | None]:
    """Steps, epochs and mAP of a checkpoint; its weights are of the same step."""
    checkpoint = load_checkpoint(folder / "run" / "checkpoints" / name)
    assert checkpoint.weights["step"] == checkpoint.step == checkpoint.train_state["random"][0]["python"]
    return checkpoint.step, checkpoint.epoch, checkpoint.validation_mAP


def test_what_an_epoch_consists_of(run, tmp_path):
    events: list[Any] = []
    run(on_event=events.append)
    epoch = ["train", *4 * ["step"], "norms", "validate", "save"]
    assert [one if isinstance(one, str) else "step" for one in Notes.asked] == 3 * epoch
    assert [(one.step, one.epoch) for one in Notes.steps()] == [(n + 1, n // 4) for n in range(12)]
    assert [step for step, _ in logged(tmp_path, "total")] == [3, 4, 6, 8, 9, 12]  # every third, and at an epoch's end
    assert logged(tmp_path, "validation_mAP") == [(4, 0.1), (8, 0.2), (12, 0.3)]
    assert [one.step for one in events if isinstance(one, StepEvent)] == [3, 4, 6, 8, 9, 12]
    ended = [(one.epoch, one.step, one.validation_mAP, one.is_best) for one in events if isinstance(one, EpochEvent)]
    assert ended == [(0, 4, 0.1, True), (1, 8, 0.2, True), (2, 12, 0.3, True)]
    assert not any(one.ends_early for one in events if isinstance(one, EpochEvent))


def test_every_epoch_has_its_own_order_masks_and_augmentation(run, config):
    def noted(batch: Any, *, seed: int, epoch: int) -> Any:
        said.append((seed, epoch))
        return replace(batch, keys=[f"{key} of {epoch}" for key in batch.keys])

    said: list[tuple[int, int]] = []
    registered.AUGMENTATIONS["noted"] = noted
    run("augment.batch=noted")
    assert said == [(SEED, n // 4) for n in range(12)]
    masks = PatchMasks(16, "cpu", patch_size=4, hole_fraction=0.5)
    with Loader(config.data.train, config.stream, training=True, seed=SEED) as loader:
        expected = [batch for _ in range(3) for batch in loader]
    for number, (one, batch) in enumerate(zip(Notes.steps(), expected, strict=True)):
        assert one.batch.keys == [f"{key} of {number // 4}" for key in batch.keys]
        assert torch.equal(one.batch.image_BCHW, batch.image_BCHW)
        assert torch.equal(one.view.keep_mask_B1HW, masks.keep_masks(batch, seed=SEED, epoch=number // 4))
        assert one.rate == learning_rate(config.optim, number, 4)


def test_the_rate_follows_what_the_batch_size_makes_of_it(run, config):
    run("optim.lr_batch_size=16", "optim.num_epochs=1")
    four = replace(config.optim, lr=0.025, num_epochs=1)
    assert [one.rate for one in Notes.steps()] == [learning_rate(four, step, 4) for step in range(4)]


def test_the_best_epoch_is_kept_beside_the_last(run, tmp_path):
    events: list[Any] = []
    result = run(
        "optim.num_epochs=9", "optim.patience=2", "run.keep=2", mean_aps=(0.5, 0.7, 0.6, 0.65), on_event=events.append
    )
    assert (result.num_steps, result.best_epoch, result.validation_mAP, result.is_chosen) == (16, 2, 0.7, True)
    assert saved(tmp_path, "best") == (8, 2, 0.7) and saved(tmp_path, "last") == (16, 4, 0.65)
    kept = sorted(folder.name for folder in (tmp_path / "run" / "checkpoints").glob("epoch-*"))
    assert kept == ["epoch-0003", "epoch-0004"]
    assert [saved(tmp_path, name) for name in kept] == [(12, 3, 0.6), (16, 4, 0.65)]
    ended = [(one.is_best, one.ends_early) for one in events if isinstance(one, EpochEvent)]
    assert ended == [(True, False), (True, False), (False, False), (False, True)]


@pytest.mark.parametrize(("warmup", "best"), [(1.25, 2), (1.0, 1)])
def test_an_epoch_of_the_warm_up_is_not_the_best(run, warmup, best):
    result = run(f"optim.warmup_epochs={warmup}", "optim.num_epochs=4", mean_aps=(0.9, 0.5, 0.4, 0.3))
    assert (result.best_epoch, result.validation_mAP) == (best, (0.9, 0.5)[best - 1])


def test_a_run_that_patience_would_end_with_its_last_epoch_is_whole(run):
    events: list[Any] = []
    run("optim.patience=2", mean_aps=(0.3, 0.2, 0.1), on_event=events.append)
    assert not any(one.ends_early for one in events if isinstance(one, EpochEvent))


def test_where_validation_shows_too_little_the_best_is_the_last(run, tmp_path, monkeypatch):
    monkeypatch.setattr(msltrain.training.trainer, "can_choose", lambda shards: False)
    events: list[Any] = []
    result = run("optim.patience=1", mean_aps=(0.3, 0.2, 0.1), on_event=events.append)
    assert (result.best_epoch, result.validation_mAP, result.is_chosen) == (3, 0.1, False)
    assert saved(tmp_path, "best") == (12, 3, 0.1)
    assert not any(one.is_best for one in events if isinstance(one, EpochEvent))


def test_without_validation_there_is_no_best(run, tmp_path):
    result = run("data.validation=", "data.validation_fraction=0", mean_aps=())
    assert (result.best, result.best_epoch, result.validation_mAP) == (None, None, None)
    assert "validation_mAP" not in (tmp_path / "run" / "metrics.jsonl").read_text()
    assert saved(tmp_path, "last") == (12, 3, None) and not (tmp_path / "run" / "checkpoints" / "best").exists()


def test_a_killed_run_goes_on_from_its_last_save(run, tmp_path):
    settings = ("run.save_every=3", "run.log_every=1")
    with pytest.raises(KeyboardInterrupt):
        run(*settings, fails_in=8, mean_aps=(0.9,))
    assert saved(tmp_path, "last") == (6, 1, None) and saved(tmp_path, "best") == (4, 1, 0.9)
    before = Notes.steps()
    assert [step for step, _ in logged(tmp_path, "total")] == [1, 2, 3, 4, 5, 6, 7]
    result = run(*settings, mean_aps=(0.2, 0.3))
    assert (result.first_step, result.num_steps, result.best_epoch, result.validation_mAP) == (6, 12, 1, 0.9)
    assert [(one.step, one.epoch) for one in Notes.steps()] == [(n + 1, n // 4) for n in range(6, 12)]
    again = Notes.steps()[0]
    assert again.batch.keys == before[6].batch.keys and again.rate == before[6].rate
    assert [step for step, _ in logged(tmp_path, "total")] == list(range(1, 13))  # none twice
    assert saved(tmp_path, "best") == (4, 1, 0.9)
    assert run(*settings).num_steps == 12 and not Notes.steps(), "it was over"


def test_with_larger_batches_a_run_goes_on_at_the_place_of_its_samples(run, config, tmp_path):
    """Six batches of 4 were taken; three of 8, one and a half epochs, would have shown as many."""
    with pytest.raises(KeyboardInterrupt):
        run("run.save_every=3", fails_in=8)
    result = run("stream.batch_size=8", allow_changes=True, mean_aps=(0.2, 0.3))
    assert [(one.step, one.epoch) for one in Notes.steps()] == [(7, 1), (8, 2), (9, 2)] and result.num_steps == 9
    assert [one.rate for one in Notes.steps()] == [learning_rate(config.optim, step, 2) for step in (3, 4, 5)]
    assert saved(tmp_path, "last") == (9, 3, 0.3) and load_checkpoint(result.last).config.stream.batch_size == 8
    assert run("stream.batch_size=8").first_step == 9, "the folder says what it was changed to"


def test_other_validation_samples_choose_anew_unless_the_run_is_over(run):
    others = ("data.validation=", "data.validation_fraction=0.3")
    with pytest.raises(KeyboardInterrupt):
        run(fails_in=6, mean_aps=(0.9,))
    result = run(*others, allow_changes=True, mean_aps=(0.2, 0.3))
    assert (result.best_epoch, result.validation_mAP) == (3, 0.3)
    assert run(allow_changes=True).validation_mAP == 0.3 and not Notes.steps()


def test_all_processes_tell_what_they_skipped_and_drew(run, tmp_path, monkeypatch):
    class Two(Ranks):
        def gather(self, value: Any) -> list[Any]:
            return [value, {"python": -1} if isinstance(value, dict) else [damaged("theirs")]]

    def damaged(key: str) -> SampleError:
        return SampleError("small/train", "a.tar", key, 512, "damaged")

    two = Two(rank=0, world_size=1, device=torch.device("cpu"))
    monkeypatch.setattr(msltrain.training.trainer, "process_group", lambda device: nullcontext(two))
    monkeypatch.setattr(msltrain.training.trainer.TrainData, "skipped", lambda self: [damaged("ours")])
    events: list[Any] = []
    result = run("optim.num_epochs=1", on_event=events.append)
    assert load_checkpoint(result.last).train_state["random"] == [{"python": 4}, {"python": -1}]
    lines = (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()
    assert [json.loads(line)["key"] for line in lines] == ["ours", "theirs"]
    assert [one.num_skipped for one in events if isinstance(one, EpochEvent)] == [2]


def test_the_run_is_stored_whenever_it_is_saved_and_all_of_it_at_the_end(run, monkeypatch):
    for name in ("publish", "publish_all"):
        monkeypatch.setattr(RunFolder, name, lambda self, name=name: Notes.asked.append(name))
    run("run.save_every=3", "optim.num_epochs=1")
    said = [one if isinstance(one, str) else "step" for one in Notes.asked]
    assert said == [
        *("publish", "train", "step", "step", "step", "save", "publish", "step"),
        *("norms", "validate", "save", "publish", "publish_all"),
    ]


def test_lines_are_written_at_the_same_steps_when_a_run_goes_on(run, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run("run.save_every=5", fails_in=5)
    run("run.save_every=5", mean_aps=(0.2, 0.3))
    assert [step for step, _ in logged(tmp_path, "total")] == [3, 4, 5, 6, 8, 9, 10, 12]  # 5 and 10: as it is saved
    assert logged(tmp_path, "validation_mAP") == [(4, 0.1), (8, 0.2), (12, 0.3)]


def test_a_run_that_its_caller_ends_is_validated_saved_and_over(run, tmp_path):
    stopped = run(on_step=lambda event: event.step == 6, mean_aps=(0.1, 0.2))
    assert (stopped.num_steps, stopped.best_epoch) == (6, 2) and saved(tmp_path, "last") == (6, 1, 0.2)
    assert load_checkpoint(stopped.last).ended
    run()
    assert not Notes.steps()
    run("optim.lr=0.05", allow_changes=True, mean_aps=(0.3, 0.4))
    assert [one.step for one in Notes.steps()] == list(range(7, 13)) and not load_checkpoint(stopped.last).ended


def test_an_epoch_that_its_caller_ends_is_marked_so_and_given_what_is_shipped(run, tmp_path):
    def on_epoch(event: EpochEvent, model: nn.Module) -> bool:
        given.append((event.step, model.in_features, model.training, last.is_dir()))
        return event.epoch == 1

    given: list[Any] = []
    last = tmp_path / "run" / "checkpoints" / "last"
    stopped = run(on_epoch=on_epoch)
    assert given == [(4, 1, False, True), (8, 1, False, True)] and saved(tmp_path, "last") == (8, 2, 0.2)
    assert load_checkpoint(stopped.last).ended and load_checkpoint(stopped.best).ended
    assert Notes.asked[8] == "train", "the next epoch trains again"


def test_what_a_callback_raises_is_raised_after_a_save(run, tmp_path):
    def on_step(event: StepEvent) -> None:
        if event.step == 6:
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine") as caught:
        run(on_step=on_step)
    assert saved(tmp_path, "last") == (6, 1, None)
    assert caught.value.__notes__ == [
        f'on_step ended the run after step 6, saved in {tmp_path}/run/checkpoints/last; resume="auto" goes on'
    ]


def test_a_loss_that_is_no_number_is_saved_apart_and_named_by_the_samples_of_its_step(run, tmp_path, monkeypatch):
    registered.AUGMENTATIONS["other"] = lambda batch, **_: replace(batch, keys=len(batch) * ["made up"])
    monkeypatch.setattr(Notes, "loss", float("nan"))
    with pytest.raises(UserError, match="step 1 of 12: the loss is not finite") as caught:
        run("augment.batch=other")
    assert "made up" not in str(caught.value) and "the batch was s0000" in str(caught.value)
    assert saved(tmp_path, "failed") == (3, 0, None) and not (tmp_path / "run" / "checkpoints" / "last").exists()


def test_weights_that_are_no_numbers_are_not_saved_as_the_last(run, tmp_path, monkeypatch):
    shipped = nn.Linear(1, 1)
    nn.init.constant_(shipped.bias, float("inf"))
    monkeypatch.setattr(Notes, "train", lambda self: setattr(self, "shipped", shipped))
    with pytest.raises(UserError, match=r"step 4 of 12: after it the weights are no numbers any more") as caught:
        run()
    assert all(key in str(caught.value) for key in Notes.steps()[-1].batch.keys), "the samples of the last step"
    assert saved(tmp_path, "failed") == (4, 1, None)


def test_of_too_many_damaged_samples_there_is_a_list(run, tmp_path, monkeypatch):
    def give_up(self: Notes, precise_bn: Any) -> None:
        raise TooManySkipped("of 17 samples 2 are damaged")

    bad = [SampleError("small/train", "a.tar", key, 512, "damaged") for key in ("one", "two")]
    monkeypatch.setattr(msltrain.training.trainer.TrainData, "skipped", lambda self: bad)
    monkeypatch.setattr(Notes, "measure_norms", give_up)
    with pytest.raises(TooManySkipped):
        run()
    assert len((tmp_path / "run" / "skipped.jsonl").read_text().splitlines()) == 2
