"""Whole training runs on small shards: resume, interruption, refusals, run folder."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import msltrain.training.trainer
import msltrain.training.validation
from msldata.errors import UserError
from msltrain.config import (
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
    from_json,
    override,
)
from msltrain.hosts.distributed import Ranks
from msltrain.hosts.interrupt import Interrupted
from msltrain.models.build import Recogniser
from msltrain.recipes import recipe
from msltrain.recipes.paper import BASELINE_LOSS
from msltrain.runs.checkpoint import load_checkpoint, load_recogniser
from msltrain.stream.config import StreamConfig
from msltrain.stream.keepmasks.bank import KeepMasks
from msltrain.stream.loader import Loader
from msltrain.stream.samples.holdout import hold_out
from msltrain.stream.samples.shardset import open_shard_set
from msltrain.training.data import TrainData
from msltrain.training.events import EpochEvent, PhaseEvent, StartEvent, StepEvent
from msltrain.training.learner import Learner
from msltrain.training.precise_bn import norm_names
from msltrain.training.trainer import train
from msltrain.training.validation import validation_mean_ap
from tests.smallshards import CLASSES, write_images, write_keep_masks


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 images in four shards, and eight keep masks."""
    root = tmp_path_factory.mktemp("data")
    write_images(root / "train", [15, 15, 15, 5])
    rng = np.random.default_rng(0)
    masks = [(rng.random((8, 8)) > 0.5).astype(np.uint8).repeat(5, axis=0).repeat(5, axis=1) for _ in range(8)]
    write_keep_masks(root / "high", masks)
    return root


@pytest.fixture
def config(data: Path) -> TrainConfig:
    """Three epochs of five steps, with everything on that carries state."""
    return TrainConfig(
        data=DataConfig(train=str(data / "train"), keep_masks=(str(data / "high"),), validation_fraction=0.15),
        stream=StreamConfig(image_size=32, batch_size=8, num_threads=1),
        model=ModelConfig(backbone="test_efficientnet", num_heads=2),
        optim=OptimConfig(lr=0.01, num_epochs=3, warmup_epochs=0.5, step_epochs=2, ema_decay=0.9, clip_norm=5.0),
        run=RunConfig(log_every=1),
    )


PLAIN = ("loss.clean_weight=1", "loss.masked_weight=0", "loss.consistency_weight=0")


def stop_after(step: int, number: signal.Signals = signal.SIGTERM):
    def on_event(event):
        if isinstance(event, StepEvent) and event.step == step:
            os.kill(os.getpid(), number)

    return on_event


def rows(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def losses(run_dir: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["total"]) for row in rows(run_dir) if "total" in row]


def assert_same(one, other, where: str = "") -> None:
    """Equal to the last bit, at any depth."""
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert set(one) == set(other), where
        for name in one:
            assert_same(one[name], other[name], f"{where}.{name}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for number, (left, right) in enumerate(zip(one, other)):
            assert_same(left, right, f"{where}[{number}]")
    else:
        assert one == other, where


@pytest.fixture
def dropout(monkeypatch: pytest.MonkeyPatch):
    """A recogniser that draws random numbers in every training step."""
    plain = Recogniser.forward

    def forward(self, image_BCHW):
        return plain(self, F.dropout(image_BCHW, 0.1, self.training))

    monkeypatch.setattr(Recogniser, "forward", forward)


def begun(events: list) -> StartEvent:
    """The first event after the phases that come before a training's start."""
    first = next(event for event in events if not isinstance(event, PhaseEvent))
    assert isinstance(first, StartEvent)
    return first


def test_a_run_leaves_a_complete_folder(config: TrainConfig, tmp_path: Path):
    events = []
    result = train(config, run_dir=tmp_path / "run", on_event=events.append)
    run = tmp_path / "run"
    assert from_json((run / "config.json").read_text()) == config
    assert set(json.loads((run / "datasets.json").read_text())) == {"train", "keep_masks"}
    (start,) = json.loads((run / "environment.json").read_text())
    assert torch.__version__.startswith(start["packages"]["torch"]) and start["from_step"] == 0
    num_train, num_validation = begun(events).num_train, begun(events).num_validation
    assert num_train + num_validation == 50 and num_validation > 0
    assert begun(events).num_keep_masks == 8
    assert begun(events).steps_per_epoch == num_train // 8
    assert result.num_steps == begun(events).num_steps == 3 * (num_train // 8)
    steps = [event for event in events if isinstance(event, StepEvent)]
    assert [event.step for event in steps] == list(range(1, result.num_steps + 1))
    assert all(set(event.losses) == {"total", "clean", "masked", "consistency"} for event in steps)
    assert steps[0].learning_rate == 0 and all(0 <= event.data_wait <= 1 for event in steps)
    epochs = [event for event in events if isinstance(event, EpochEvent)]
    # Validation shows each class once or twice: too little to choose by.
    assert (result.validation_mAP, result.best_epoch, result.is_chosen) == (epochs[-1].validation_mAP, 3, False)
    assert load_checkpoint(result.best).validation_mAP == result.validation_mAP
    assert load_checkpoint(result.last).step == result.num_steps
    loaded = load_recogniser(run)
    assert loaded.path == result.best and loaded.classes == CLASSES
    assert [row["validation_mAP"] for row in rows(run) if "validation_mAP" in row] == [e.validation_mAP for e in epochs]


def test_validation_measures_the_shipped_weights(
    config: TrainConfig, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
):
    """What is ranked are the moving average's logits on the held-out samples, each once, with their ignored pairs."""
    ranked = []

    def mean_average_precision(logit_NK, target_NK, ignore_NK, *, kind):
        ranked.append((logit_NK, target_NK, ignore_NK))
        return 0.5

    monkeypatch.setattr(msltrain.training.validation, "mean_average_precision", mean_average_precision)
    result = train(config, run_dir=tmp_path / "run")
    loaded = load_recogniser(result.last)
    _, held_out = hold_out(open_shard_set(data / "train"), 0.15)
    with Loader(held_out, config.stream, device="cpu", training=False) as loader, torch.no_grad():
        parts = [(loaded.recogniser(batch.image_BCHW), batch.target_BK, batch.ignore_BK) for batch in loader]
    for found, expected in zip(ranked[-1], (torch.cat(column) for column in zip(*parts))):
        torch.testing.assert_close(torch.from_numpy(found), expected)
    assert result.best_epoch == 3  # the last of equals, counted as it is shown


def test_the_next_epoch_is_being_read_while_this_one_is_validated(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    order = []
    start, validate = Loader.start, msltrain.training.trainer.validation_mean_ap

    def started(loader):
        order.append(f"start {loader.epoch}")
        start(loader)

    def validated(*args, **kwargs):
        order.append("validate")
        return validate(*args, **kwargs)

    monkeypatch.setattr(Loader, "start", started)
    monkeypatch.setattr(msltrain.training.trainer, "validation_mean_ap", validated)
    train(config, run_dir=tmp_path / "run")
    assert order == ["start 0", "start 1", "validate", "start 2", "validate", "validate"]


def test_the_moving_average_follows_the_weights(config: TrainConfig, tmp_path: Path):
    name = "classifier.score.weight"
    for decay, follows in (("1e-6", True), ("0.9", False)):
        result = train(override(config, [f"optim.ema_decay={decay}"]), run_dir=tmp_path / decay)
        last = load_checkpoint(result.last)
        assert torch.allclose(last.weights[name], last.train_state["weights"][name], atol=1e-5) == follows


@pytest.mark.parametrize("beside", [(), ("optim.ema_decay=0.5",)], ids=["alone", "with an average"])
def test_precise_statistics_are_those_of_what_is_validated_and_shipped(
    config: TrainConfig, tmp_path: Path, beside: tuple[str, ...]
):
    settings = ["optim.precise_bn_images=1000", "optim.num_epochs=1", *beside]
    plain = load_checkpoint(train(override(config, settings[1:]), run_dir=tmp_path / "plain").last)
    result = train(override(config, settings), run_dir=tmp_path / "run")
    last = load_checkpoint(result.last)
    statistics = {name for name in last.weights if "running_" in name}
    assert statistics
    for name, tensor in last.weights.items():
        same = torch.equal(tensor, plain.weights[name])
        assert same == (name not in statistics), f"{name}: of one epoch, only statistics are others"
    loaded = load_recogniser(result.last)
    alone = Ranks(rank=0, world_size=1, device=torch.device("cpu"))
    with TrainData(override(config, settings), alone) as data:
        assert data.validation is not None and data.precise_bn is not None
        names = norm_names(loaded.recogniser.train())
        data.precise_bn.measure(loaded.recogniser, names, torch.device("cpu"), amp=False)
        for name, tensor in loaded.recogniser.state_dict().items():
            torch.testing.assert_close(tensor, last.weights[name], msg=name)
        found = validation_mean_ap(loaded.recogniser, data.validation, alone, amp=False)
    assert result.validation_mAP == pytest.approx(found, abs=1e-6)


OURS = (
    *("loss.clean_weight=1", "loss.masked_weight=1", "loss.consistency_weight=0", "loss.masked_target=teacher"),
    *("keep_mask.share=0.5", "keep_mask.subset_weights=0.7", "keep_mask.ramp_epochs=2", "keep_mask.fill=object"),
    *("keep_mask.ignore_below=0.3", "loss.bn_mode=split", "augment.erase=random"),
)
LATE = (
    *("keep_mask.start=0.5", "loss.masked_target=whole_image", "loss.bn_mode=running"),
    "optim.precise_bn_images=20",
)
"""Every setting of the masked branch that is not published, together."""
RIVALS = {
    "cutmix": (*PLAIN, "augment.randaugment=2", "augment.mix=cutmix", "loss.recognition=hill"),
    "splicemix": ("augment.mix=splicemix", "loss.recognition=splc", "optim.accumulation_steps=2"),
    "mldecoder": ("model.head=mldecoder", "model.num_queries=2", "model.decoder_width=16", "model.decoder_hidden=32"),
    "q2l": ("model.head=q2l", "model.decoder_width=16", "model.decoder_hidden=32"),
}


def test_masks_may_start_later_and_until_then_the_run_is_a_baseline(config: TrainConfig, tmp_path: Path):
    """Two of three epochs pass first: 0.8 of 3, rounded down."""
    late = override(config, ["keep_mask.start=0.8", "keep_mask.share=0.5", "optim.num_epochs=3"])
    assert late.first_masked_epoch == 2
    train(late, run_dir=tmp_path / "late")
    plain_loss = override(late, [*PLAIN, "loss.clean_weight=0.4"])  # 0.3 and half of 0.2
    train(plain_loss, run_dir=tmp_path / "plain")
    found, plain = ([row for row in rows(tmp_path / name) if "total" in row] for name in ("late", "plain"))
    assert ["masked" in row for row in found] == [row["epoch"] == 2 for row in found]
    early = [(row["total"], row["clean"]) for row in found if row["epoch"] < 2]
    assert early == [(row["total"], row["clean"]) for row in plain if row["epoch"] < 2] and early


@pytest.mark.usefixtures("dropout")
@pytest.mark.parametrize(
    "settings",
    [OURS, LATE, ("loss.branches=single", "keep_mask.fill=noise", *PLAIN), *RIVALS.values()],
    ids=["two", "late", "one", *RIVALS],
)
def test_a_run_with_other_targets_fills_losses_and_augmentations_continues_bit_for_bit(
    config: TrainConfig, tmp_path: Path, settings: tuple[str, ...]
):
    write_images(tmp_path / "objects", [25, 25], with_objects=True)
    config = override(config, [f"data.train={tmp_path / 'objects'}", *settings])
    straight = train(config, run_dir=tmp_path / "straight")
    with pytest.raises(Interrupted):
        train(config, run_dir=tmp_path / "run", on_event=stop_after(8))
    resumed = train(config, run_dir=tmp_path / "run", resume=True)
    assert losses(tmp_path / "run") == losses(tmp_path / "straight")
    one, other = load_checkpoint(straight.last), load_checkpoint(resumed.last)
    assert_same(one.weights, other.weights)
    assert_same(one.train_state, other.train_state)


@pytest.mark.usefixtures("dropout")
@pytest.mark.parametrize("step", [1, 6, 8])  # first step, last step of an epoch, inside an epoch
@pytest.mark.parametrize("branches", ["sequential", "fused"])
def test_an_interrupted_run_continues_bit_for_bit(config: TrainConfig, tmp_path: Path, step: int, branches: str):
    config = override(config, [f"loss.branches={branches}"])
    straight = train(config, run_dir=tmp_path / "straight")
    with pytest.raises(Interrupted) as caught:
        train(config, run_dir=tmp_path / "run", on_event=stop_after(step))
    assert caught.value.step == step
    assert "--resume" in str(caught.value) and "SIGTERM" in str(caught.value)
    assert load_checkpoint(caught.value.checkpoint).step == step
    resumed = train(config, run_dir=tmp_path / "run", resume=True)
    assert losses(tmp_path / "run") == losses(tmp_path / "straight")
    one, other = load_checkpoint(straight.last), load_checkpoint(resumed.last)
    assert_same(one.weights, other.weights)
    assert_same(one.train_state, other.train_state)
    assert (straight.validation_mAP, straight.best_epoch) == (resumed.validation_mAP, resumed.best_epoch)


def test_a_killed_run_goes_back_to_its_last_save(config: TrainConfig, tmp_path: Path):
    config = override(config, ["run.save_every=3"])

    class Killed(Exception):
        pass

    def kill(event):
        if isinstance(event, StepEvent) and event.step == 8:
            raise Killed

    straight = train(config, run_dir=tmp_path / "straight")
    with pytest.raises(Killed):
        train(config, run_dir=tmp_path / "run", on_event=kill)
    with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
        file.write('{"step": 9, "to')
    events = []
    resumed = train(config, run_dir=tmp_path / "run", resume=True, on_event=events.append)
    assert begun(events).step == 6
    assert losses(tmp_path / "run") == losses(tmp_path / "straight")
    assert_same(load_checkpoint(straight.last).weights, load_checkpoint(resumed.last).weights)
    assert [start["from_step"] for start in json.loads((tmp_path / "run" / "environment.json").read_text())] == [0, 6]


def test_a_run_stopped_before_its_first_save_starts_again(config: TrainConfig, tmp_path: Path):
    class Killed(Exception):
        pass

    def kill(event):
        if isinstance(event, StepEvent):
            raise Killed

    with pytest.raises(Killed):
        train(config, run_dir=tmp_path / "run", on_event=kill)
    events = []
    train(override(config, ["optim.num_epochs=3"]), run_dir=tmp_path / "run", resume=True, on_event=events.append)
    assert begun(events).step == 0
    assert [step for step, _ in losses(tmp_path / "run")] == list(range(1, begun(events).num_steps + 1))


def test_a_finished_run_resumes_to_nothing(config: TrainConfig, tmp_path: Path):
    config = override(config, ["optim.num_epochs=1"])
    first = train(config, run_dir=tmp_path / "run")
    again = train(config, run_dir=tmp_path / "run", resume=True)
    assert (again.num_steps, again.validation_mAP) == (first.num_steps, first.validation_mAP)


def test_sigint_also_stops_and_handlers_come_back(config: TrainConfig, tmp_path: Path):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match="stopped by SIGINT after step 2 "):
        train(config, run_dir=tmp_path / "run", on_event=stop_after(2, signal.SIGINT))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_used_and_foreign_folders_are_refused(config: TrainConfig, tmp_path: Path):
    short = override(config, ["optim.num_epochs=1"])
    with pytest.raises(UserError, match=r"there is no run to continue \(no config.json\); start it without --resume"):
        train(short, run_dir=tmp_path / "run", resume=True)
    train(short, run_dir=tmp_path / "run")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match="holds a run already; continue it with --resume"):
        train(short, run_dir=tmp_path / "run")
    with pytest.raises(UserError, match=r"another one \(optim\.lr was 0\.01, is 0\.02\)"):
        train(override(short, ["optim.lr=0.02"]), run_dir=tmp_path / "run", resume=True)
    write_images(tmp_path / "other", [20, 20])
    with pytest.raises(UserError, match=r"other data for train: then .*train .*, now .*other"):
        train(override(short, [f"data.train={tmp_path / 'other'}"]), run_dir=tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_moved_shards_and_other_threads_may_continue(config: TrainConfig, tmp_path: Path):
    config = override(config, ["optim.num_epochs=1"])
    with pytest.raises(Interrupted):
        train(config, run_dir=tmp_path / "run", on_event=stop_after(2))
    write_images(tmp_path / "moved", [15, 15, 15, 5])
    moved = override(config, [f"data.train={tmp_path / 'moved'}", "stream.num_threads=2", "run.log_every=2"])
    straight = train(config, run_dir=tmp_path / "straight")
    resumed = train(moved, run_dir=tmp_path / "run", resume=True)
    assert_same(load_checkpoint(straight.last).weights, load_checkpoint(resumed.last).weights)


def test_a_loss_that_is_not_finite_names_step_and_samples(config: TrainConfig, tmp_path: Path):
    config = override(config, ["optim.lr=1e30", "optim.warmup_epochs=0", "optim.clip_norm=none", "run.log_every=4"])
    with pytest.raises(UserError, match=r"step \d+ of \d+: the loss is not finite") as caught:
        train(config, run_dir=tmp_path / "run")
    step = int(str(caught.value).split()[1])
    assert 2 <= step <= 4  # the first step's loss is fine; it is noticed at the next report
    assert str(caught.value).count("s0000") == 8
    # What is there to be looked at is kept apart from what a run continues from.
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["failed"]
    failed = load_checkpoint(tmp_path / "run" / "checkpoints" / "failed")
    assert failed.step == 4 and f"state after step {failed.step} is in" in str(caught.value)
    assert failed.train_state["loader"]["step"] == 4 and failed.train_state["optimizer"]["state"]
    assert not all(tensor.isfinite().all() for tensor in failed.train_state["weights"].values())


def test_no_weights_of_a_broken_loss_are_saved(config: TrainConfig, tmp_path: Path):
    config = override(
        config,
        ["optim.lr=1e30", "optim.warmup_epochs=0", "optim.clip_norm=none", "run.log_every=100", "run.save_every=2"],
    )
    with pytest.raises(UserError, match="the loss is not finite"):
        train(config, run_dir=tmp_path / "run")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["failed"]


def test_the_baseline_needs_no_masks_and_says_when_they_are_unused(config: TrainConfig, tmp_path: Path):
    config = replace(override(config, ["optim.num_epochs=1"]), loss=BASELINE_LOSS)
    events = []
    train(config, run_dir=tmp_path / "noted", on_event=events.append)
    assert any("data.keep_masks is not used" in note for note in begun(events).notes)
    without = train(override(config, ["data.keep_masks="]), run_dir=tmp_path / "without")
    assert losses(tmp_path / "noted") == losses(tmp_path / "without")
    assert set(rows(without.run_dir)[0]) >= {"total", "clean"} and "masked" not in rows(without.run_dir)[0]


def test_validation_that_takes_more_than_asked_for_is_bounded_and_explained(config: TrainConfig, tmp_path: Path):
    events = []
    config = override(config, ["data.validation_fraction=0.04", "optim.num_epochs=1"])
    train(config, run_dir=tmp_path / "run", on_event=events.append)
    assert begun(events).num_validation == 3 <= 1.5 * 0.04 * 50
    said = "takes 6.0 % of the samples instead of 4 %, to show more classes"
    assert sum(said in note for note in begun(events).notes) == 1


def test_photographs_that_are_far_too_large_are_named_with_the_resize_that_fits(config: TrainConfig, tmp_path: Path):
    write_images(tmp_path / "large", [10], size=(200, 130))
    events = []
    config = override(config, [f"data.train={tmp_path / 'large'}", "optim.num_epochs=1", "data.validation_fraction=0"])
    train(config, run_dir=tmp_path / "run", on_event=events.append)
    assert any("200 × 130 pixels" in note and "`--resize shorter=64`" in note for note in begun(events).notes)


def test_without_validation_everything_is_trained_on(config: TrainConfig, tmp_path: Path):
    events = []
    config = override(config, ["data.validation_fraction=0", "optim.num_epochs=1"])
    result = train(config, run_dir=tmp_path / "run", on_event=events.append)
    assert (begun(events).num_train, begun(events).num_validation) == (50, 0)
    assert (result.best, result.validation_mAP) == (None, None)
    assert load_recogniser(tmp_path / "run").path == result.last


def test_mistakes_leave_no_folder_behind(config: TrainConfig, tmp_path: Path):
    for assignment, words in [
        ("data.keep_masks=", "data.keep_masks is not set"),
        ("data.train=", "data.train is not set"),
        ("model.weights=missing.pth", "no such weights file"),
        ("model.backbone=resnet999", "timm has no model"),
        ("stream.batch_size=64", "no complete batch"),
    ]:
        with pytest.raises((UserError, FileNotFoundError), match=words):
            train(override(config, [assignment]), run_dir=tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_bf16_is_for_processors_that_have_it(config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Elsewhere the run is the one in float32, and says so."""
    plain = override(config, ["optim.num_epochs=1"])
    asked = override(plain, ["run.amp=true"])
    train(plain, run_dir=tmp_path / "float32")
    notes: dict[bool, tuple[str, ...]] = {}
    for has in (False, True):
        monkeypatch.setattr("msltrain.training.learner.has_bfloat16", lambda device, has=has: has)
        train(asked, run_dir=tmp_path / str(has), on_event=lambda event, has=has: keep_notes(event, notes, has))
    same = [losses(tmp_path / str(has)) == losses(tmp_path / "float32") for has in (False, True)]
    assert same == [True, False]
    assert [any("run.amp has no effect" in note for note in notes[has]) for has in (False, True)] == [True, False]


def keep_notes(event: object, notes: dict[bool, tuple[str, ...]], key: bool) -> None:
    if isinstance(event, StartEvent):
        notes[key] = event.notes


@pytest.mark.parametrize(
    ("assignments", "nearness"),
    [
        (["run.amp=true"], 0.02),  # bf16 has 8 bits
        (["run.channels_last=true", "loss.branches=fused"], 1e-3),
        (["optim.optimizer=adamw", "optim.schedule=cosine", "optim.lr=0.001"], 1e-6),
        (["model.head=max", "loss.train_ignored=drop"], None),
        (["model.freeze_batchnorm=true"], None),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_options_train(
    config: TrainConfig, tmp_path: Path, monkeypatch, assignments: list[str], nearness: float | None
):
    """Each option gives a run of its own, finite to the end and resumable. Its first loss, before any step, is the
    plain one's, as near as its arithmetic allows, unless the network is another."""
    monkeypatch.setattr("msltrain.training.learner.has_bfloat16", lambda device: True)
    config = override(config, ["optim.num_epochs=2", "optim.lr=0.001"])
    changed = override(config, assignments)
    train(config, run_dir=tmp_path / "plain")
    with pytest.raises(Interrupted):
        train(changed, run_dir=tmp_path / "changed", on_event=stop_after(2))
    result = train(changed, run_dir=tmp_path / "changed", resume=True)
    plain, ours = losses(tmp_path / "plain"), losses(tmp_path / "changed")
    assert plain != ours
    if nearness is not None:
        assert ours[0][1] == pytest.approx(plain[0][1], rel=nearness)
    assert [step for step, _ in ours] == [step for step, _ in plain]
    assert result.validation_mAP is not None


def test_the_rate_is_scaled_to_the_batch_where_asked(config: TrainConfig, tmp_path: Path):
    """A rate meant for batches of 2 is four times as high in batches of 8: the same run as with that rate itself."""
    scaled = override(config, ["optim.lr=0.0025", "optim.lr_batch_size=2", "optim.num_epochs=1"])
    train(scaled, run_dir=tmp_path / "scaled")
    train(override(config, ["optim.num_epochs=1"]), run_dir=tmp_path / "plain")
    assert losses(tmp_path / "scaled") == losses(tmp_path / "plain")
    rates = [row["learning_rate"] for row in rows(tmp_path / "scaled") if "learning_rate" in row]
    assert rates == [row["learning_rate"] for row in rows(tmp_path / "plain") if "learning_rate" in row]
    assert max(rates) == 0.01


def test_frozen_batchnorm_keeps_its_statistics(config: TrainConfig, tmp_path: Path):
    config = override(config, ["optim.num_epochs=1", "model.freeze_batchnorm=true"])
    weights = load_checkpoint(train(config, run_dir=tmp_path / "run").last).weights
    statistics = [tensor for name, tensor in weights.items() if name.endswith("running_mean")]
    assert statistics and not any(tensor.any() for tensor in statistics)


def test_channels_last_changes_nothing_but_rounding(config: TrainConfig, tmp_path: Path):
    config = override(config, ["optim.num_epochs=1"])
    train(config, run_dir=tmp_path / "nchw")
    train(override(config, ["run.channels_last=true"]), run_dir=tmp_path / "nhwc")
    for (_, one), (_, other) in zip(losses(tmp_path / "nchw"), losses(tmp_path / "nhwc"), strict=True):
        assert one == pytest.approx(other, abs=1e-4)


@pytest.mark.slow
def test_a_compiled_step_gives_the_same_losses(config: TrainConfig, tmp_path: Path):
    config = override(config, ["optim.num_epochs=1", "loss.branches=fused"])
    train(config, run_dir=tmp_path / "eager")
    train(override(config, ["run.compile=true"]), run_dir=tmp_path / "compiled")
    for (_, one), (_, other) in zip(losses(tmp_path / "eager"), losses(tmp_path / "compiled"), strict=True):
        assert one == pytest.approx(other, abs=1e-4)


def test_seeds_differ_and_repeat(config: TrainConfig, tmp_path: Path):
    config = override(config, ["optim.num_epochs=1"])
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(override(config, [f"run.seed={seed}"]), run_dir=tmp_path / name)
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert losses(tmp_path / "a") != losses(tmp_path / "c")


def test_masks_and_augmentation_change_with_the_epoch(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    drawn = []
    plain = KeepMasks.keep_masks

    def keep_masks(self, batch, *, seed, epoch):
        drawn.append((seed, epoch))
        return plain(self, batch, seed=seed, epoch=epoch)

    monkeypatch.setattr(KeepMasks, "keep_masks", keep_masks)
    result = train(override(config, ["run.seed=7"]), run_dir=tmp_path / "run")
    per_epoch = result.num_steps // 3
    assert drawn == [(7, epoch) for epoch in range(3) for _ in range(per_epoch)]
    position = load_checkpoint(result.last).train_state["loader"]
    assert (position["seed"], position["epoch"], position["step"]) == (7, 3, 0)


@pytest.mark.parametrize("kind", ["patch", "box", "none"])
def test_drawn_keep_masks_need_no_stored_ones(config: TrainConfig, tmp_path: Path, kind: str):
    settings = ["data.keep_masks=", f"keep_mask.kind={kind}", "keep_mask.patch_size=8", "optim.num_epochs=1"]
    events: list = []
    train(override(config, settings), run_dir=tmp_path / kind, on_event=events.append)
    assert begun(events).num_keep_masks == 0
    assert f"keep masks are drawn, not read: keep_mask.kind={kind}" in begun(events).notes
    train(override(config, ["optim.num_epochs=1"]), run_dir=tmp_path / "stored")
    assert losses(tmp_path / kind) != losses(tmp_path / "stored")


def test_visible_pixels_can_be_fainter(config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Table 5, "without binarisation"."""
    levels = set()
    plain = Learner.take_step

    def take_step(self, batch, view, *more):
        levels.update(view.keep_mask_B1HW.unique().tolist())
        return plain(self, batch, view, *more)

    monkeypatch.setattr(Learner, "take_step", take_step)
    train(override(config, ["keep_mask.visible_level=0.875", "optim.num_epochs=1"]), run_dir=tmp_path / "run")
    assert levels == {0.0, 0.875}


@pytest.mark.real
@pytest.mark.slow
def test_real_photographs_masks_and_weights(sample: Path, tmp_path: Path):
    """Two epochs on the VOC2007 sample from ImageNet weights: far above chance (0.12) on held-out photographs."""
    from msldata.build.shards import build_shards, plan_build
    from msldata.masks.sources import open_mask_source
    from msldata.sources.kinds import open_source
    from msldata.storage import open_storage
    from tests.tinydata import build_masks

    source = open_source("voc2007", sample / "VOCdevkit" / "VOC2007", "trainval")
    build_shards(plan_build(source), open_storage(tmp_path / "trainval"), num_workers=1)
    build_masks(open_mask_source(sample / "irregular_mask"), open_storage(tmp_path / "masks"), num_workers=1)
    config = override(
        recipe("msl-c-voc2007"),
        [
            f"data.train={tmp_path / 'trainval'}",
            f"data.keep_masks={tmp_path / 'masks' / 'high'}",
            "data.validation_fraction=0.2",
            "model.backbone=mobilenetv2_100",
            f"model.weights={sample / 'weights' / 'mobilenet_v2-imagenet-from-tflite-int8.pth'}",
            "stream.image_size=128",
            "stream.batch_size=16",
            "stream.mean=0.485,0.456,0.406",
            "stream.std=0.229,0.224,0.225",
            "optim.optimizer=adamw",
            "optim.lr=0.0005",
            "optim.schedule=cosine",
            "optim.num_epochs=3",
            "optim.warmup_epochs=0.5",
        ],
    )
    events = []
    result = train(config, run_dir=tmp_path / "run", on_event=events.append)
    assert begun(events).num_train + begun(events).num_validation == 430
    assert begun(events).num_keep_masks == 200
    assert "(260 tensors" in begun(events).notes[0]
    assert result.validation_mAP > 0.25


def test_loss_weights_reach_the_step(config: TrainConfig, tmp_path: Path):
    loss = LossConfig(clean_weight=0.5, masked_weight=0.25, consistency_weight=2)
    train(replace(override(config, ["optim.num_epochs=1"]), loss=loss), run_dir=tmp_path / "run")
    row = rows(tmp_path / "run")[0]
    assert row["total"] == pytest.approx(0.5 * row["clean"] + 0.25 * row["masked"] + 2 * row["consistency"], abs=1e-6)
