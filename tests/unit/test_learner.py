"""The network in training, one step at a time."""

from __future__ import annotations

import copy
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from msldata.errors import UserError
from msltrain.config import ModelConfig, OptimConfig, TrainConfig, override
from msltrain.hosts.distributed import Ranks
from msltrain.models.build import build_model
from msltrain.recipes.paper import BASELINE_LOSS
from msltrain.runs.checkpoint import Checkpoint
from msltrain.stream.config import StreamConfig
from msltrain.stream.keepmasks.masked_views import MaskedView
from msltrain.stream.pixels.batch import Batch
from msltrain.training.data import TrainData
from msltrain.training.learner import Learner
from msltrain.training.siamese import SiameseStep

ALONE = Ranks(rank=0, world_size=1, device=torch.device("cpu"))
CONFIG = TrainConfig(
    stream=StreamConfig(image_size=32, batch_size=4),
    model=ModelConfig(backbone="test_efficientnet", num_heads=2),
    loss=BASELINE_LOSS,
    optim=OptimConfig(lr=1.0, classifier_lr_factor=1.0, momentum=0.0, weight_decay=0.0),
)


def learner(*assignments: str, rank: int = 0) -> Learner:
    return Learner(override(CONFIG, assignments), 3, Ranks(rank=rank, world_size=1, device=ALONE.device), None)


def after_one_step(one: Learner) -> Checkpoint:
    """What a run alone saves after its first step, as files would hold it."""
    return Checkpoint(
        config=one.config,
        classes=tuple("abc"),
        step=1,
        epoch=0,
        validation_mAP=None,
        weights=one.shipped_weights(),
        train_state=copy.deepcopy({**one.state_dict(), "random": [one.random_state()]}),
    )


def batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    return Batch(
        image_BCHW=torch.randn(4, 3, 32, 32, generator=generator),
        target_BK=(torch.rand(4, 3, generator=generator) > 0.5).float(),
        ignore_BK=torch.zeros(4, 3, dtype=torch.bool),
        keys=list("abcd"),
        key_hash_B=np.arange(4, dtype=np.uint64),
        index_B=np.arange(4),
        crop_B4=np.zeros((4, 4), np.int64),
        flip_B=np.zeros(4, bool),
    )


def movement(learner: Learner, rate: float) -> float:
    """L2 norm of what one step changes."""
    before = [parameter.detach().clone() for parameter in learner.recogniser.parameters()]
    learner.take_step(batch(), None, rate)
    changes = [parameter.detach() - start for parameter, start in zip(learner.recogniser.parameters(), before)]
    return torch.cat([change.flatten() for change in changes]).norm().item()


def test_clipping_bounds_the_step():
    free = movement(learner(), 1.0)
    assert free > 1e-2
    assert movement(learner("optim.clip_norm=0.001"), 1.0) == pytest.approx(1e-3, rel=1e-3)
    assert movement(learner("optim.clip_norm=1000"), 1.0) == pytest.approx(free, rel=1e-4)


def test_clipping_holds_for_norms_of_masked_images_too():
    one = learner(*MASKED, "loss.bn_mode=split", "optim.clip_norm=0.001")
    before = [parameter.detach().clone() for parameter in one.step_module.parameters()]
    one.take_step(batch(), MaskedView(HALF), 1.0)
    moved = [(now.detach() - then).flatten() for now, then in zip(one.step_module.parameters(), before)]
    assert torch.cat(moved).norm().item() == pytest.approx(1e-3, rel=1e-3)
    assert any(norm.bias.abs().sum() > 0 for norm in one.step_module.masked_norms)


@pytest.mark.parametrize(("loss", "corrects"), [("splc", [False, False, True, True]), ("bce", 4 * [None])])
def test_labels_are_corrected_from_the_epoch_that_the_config_says(monkeypatch, loss: str, corrects: list[bool | None]):
    one = learner(f"loss.recognition={loss}", "loss.splc_epoch=2")
    told: list[bool | None] = []
    step = one.step_module.forward
    monkeypatch.setattr(
        one.step_module, "forward", lambda *of, **how: told.append(how["corrects_labels"]) or step(*of, **how)
    )
    for epoch in range(4):
        one.take_step(batch(), None, 0.0, epoch)
    assert told == corrects


def test_the_rate_scales_the_step():
    assert movement(learner(), 0.0) == 0
    assert movement(learner(), 0.5) == pytest.approx(0.5 * movement(learner(), 1.0), rel=1e-3)


def test_layers_learn_the_slower_the_nearer_they_are_to_the_image():
    settings = ("model.backbone=test_vit", "optim.optimizer=adamw", "optim.layer_decay=0.5", "optim.lr=0.1")
    one = learner(*settings, "optim.classifier_lr_factor=3", "stream.image_size=160")
    factor_of = {
        id(parameter): group["lr_factor"] for group in one.optimizer.param_groups for parameter in group["params"]
    }
    found = {
        name.removeprefix("backbone.network."): factor_of[id(parameter)]
        for name, parameter in one.recogniser.named_parameters()
    }
    assert found["cls_token"] == found["patch_embed.proj.weight"] == 0.5**6
    blocks = {name.split(".")[1] for name in found if name.startswith("blocks.")}
    assert blocks == set("012345")
    for number in map(int, blocks):
        assert {found[name] for name in found if name.startswith(f"blocks.{number}.")} == {0.5 ** (5 - number)}
    assert found["norm.weight"] == 1 and found["classifier.score.weight"] == 3
    same = learner(*settings[:2])
    assert {group["lr_factor"] for group in same.optimizer.param_groups} == {1.0}
    with pytest.raises(UserError, match="timm does not say the layers of 'caformer_s18'; set it to 1"):
        learner("model.backbone=caformer_s18", "optim.layer_decay=0.9")


@pytest.mark.parametrize("mode", ["shared", "running", "split"])
def test_norms_of_masked_images_learn_as_fast_as_those_they_stand_for(mode):
    one = learner("loss.masked_weight=0.5", "optim.layer_decay=0.5", f"loss.bn_mode={mode}")
    factors = sorted(group["lr_factor"] for group in one.optimizer.param_groups for _ in group["params"])
    plain = learner("optim.layer_decay=0.5")
    expected = [group["lr_factor"] for group in plain.optimizer.param_groups for _ in group["params"]]
    if mode == "split":
        norms = {
            id(own)
            for norm in plain.recogniser.modules()
            if isinstance(norm, torch.nn.BatchNorm2d)
            for own in norm.parameters()
        }
        expected += [
            group["lr_factor"] for group in plain.optimizer.param_groups for own in group["params"] if id(own) in norms
        ]
        assert len(norms) > 10 and len(set(expected)) > 3
    assert factors == sorted(expected)


def test_a_frozen_backbone_stays_as_it_is():
    one = learner("model.freeze_backbone=true", "optim.ema_decay=0.9", "optim.weight_decay=0.1")
    one.step_module.train()
    assert not any(module.training for module in one.recogniser.backbone.modules()) and one.recogniser.training
    before = {name: tensor.clone() for name, tensor in one.recogniser.state_dict().items()}
    for _ in range(2):
        one.take_step(batch(), None, 1.0)
    after = one.recogniser.state_dict()
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert changed == {"classifier.score.weight"}
    held = sum(len(group["params"]) for group in one.optimizer.param_groups)
    assert held == 1
    with pytest.raises(UserError, match="bn_mode=split needs a BatchNorm that learns"):
        learner("model.freeze_backbone=true", "loss.masked_weight=1", "loss.bn_mode=split")


def test_a_frozen_backbone_looks_once_at_images_that_stay_the_same():
    settings = ("model.freeze_backbone=true", "stream.crop_scale=1,1", "optim.accumulation_steps=2")
    plain, once = learner(*settings), learner(*settings, "stream.ram_cache_gb=1")
    seen: list[int] = []
    once.recogniser.backbone.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    mirrored = replace(batch(), image_BCHW=batch().image_BCHW.flip(3), flip_B=np.array([True, False, True, False]))
    mirrored.image_BCHW[1::2] = batch().image_BCHW[1::2]
    for shown in (batch(), mirrored, batch()):
        for one in (plain, once):
            one.take_step(shown, None, 0.1)
    assert seen == [1] * 6, "four images, and two of them mirrored"
    for name, tensor in once.recogniser.state_dict().items():
        torch.testing.assert_close(tensor, plain.recogniser.state_dict()[name])
    little = learner(*settings, "stream.ram_cache_gb=1e-8")
    little.recogniser.backbone.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    for _ in range(2):
        little.take_step(batch(), None, 0.1)
    assert len(seen) == 6 + 8, "what does not fit is computed again"


def test_the_average_follows_a_head_whose_backbone_is_not_asked_again():
    settings = ("model.freeze_backbone=true", "stream.crop_scale=1,1", "optim.ema_decay=0.9")
    plain, once = learner(*settings), learner(*settings, "stream.ram_cache_gb=1")
    for _ in range(3):
        for one in (plain, once):
            one.take_step(batch(), None, 0.1)
    for name, tensor in once.shipped.state_dict().items():
        torch.testing.assert_close(tensor, plain.shipped.state_dict()[name])


@pytest.mark.parametrize("changed", ["stream.crop_scale=0.5,1", "augment.erase=random", "loss.masked_weight=1"])
def test_features_are_not_kept_where_images_change(changed: str):
    settings = ("model.freeze_backbone=true", "stream.crop_scale=1,1", "stream.ram_cache_gb=1")
    assert override(CONFIG, settings).features_stay and not override(CONFIG, (*settings, changed)).features_stay


HALF_MASKED = ("loss.masked_weight=1", "optim.lr=0.1", "optim.momentum=0.9")
HALF = torch.ones(4, 1, 32, 32)
HALF[..., :16] = 0


def with_weights(place: Path, *assignments: str, checkpoint: Checkpoint | None = None) -> Learner:
    torch.manual_seed(5)
    torch.save(build_model(CONFIG.model, 3, image_size=32).backbone.network.state_dict(), place / "first.pth")
    settings = (f"model.weights={place / 'first.pth'}", *HALF_MASKED, *assignments)
    return Learner(override(CONFIG, settings), 3, ALONE, checkpoint)


def test_the_moving_average_looks_back_further_the_longer_the_run_until_its_decay():
    """After n steps (1 + n) / (10 + n) of it stays, so the first weights are soon forgotten; never more than asked."""
    one = learner("optim.ema_decay=0.4", "run.channels_last=false")
    name = "classifier.score.weight"
    expected = one.recogniser.state_dict()[name].clone()
    for decay in (1 / 10, 2 / 11, 3 / 12, 4 / 13, 5 / 14, 0.4, 0.4):
        one.take_step(batch(), None, 0.01)
        expected = decay * expected + (1 - decay) * one.recogniser.state_dict()[name]
        torch.testing.assert_close(one.shipped.state_dict()[name], expected)
    assert one.state_dict()["num_averaged"] == 7


class Sharing(Ranks):
    """A process among two that writes down whose buffers are shared."""

    shared: ClassVar[list[object]] = []

    def share_buffers(self, module: torch.nn.Module) -> None:
        self.shared.append(module)


@pytest.mark.parametrize("taught", [False, True])
def test_the_teacher_is_the_same_in_all_processes(monkeypatch, taught: bool):
    teacher = ("loss.masked_target=teacher", "loss.masked_weight=1") if taught else ()
    one = learner("optim.ema_decay=0.5", *teacher)
    monkeypatch.setattr(Sharing, "shared", [])
    one.ranks = Sharing(rank=1, world_size=1, device=ALONE.device)
    one.take_step(batch(), MaskedView(HALF) if taught else None, 0.1)
    assert Sharing.shared == [one.shipped] * taught


def test_norms_are_measured_by_the_first_process_and_shared(monkeypatch):
    one = learner("optim.ema_decay=0.5")
    one.train()
    monkeypatch.setattr(Sharing, "shared", [])
    measured: list[object] = []
    precise_bn = SimpleNamespace(measure=lambda network, *_, **__: measured.append(network))
    for rank in (1, 0):
        one.ranks = Sharing(rank=rank, world_size=2, device=ALONE.device)
        one.measure_norms(precise_bn)  # type: ignore[arg-type]
        assert measured == [one.shipped] * (1 - rank)
    assert Sharing.shared == 2 * [one.shipped]


def test_a_twin_learns_as_the_baseline_does_and_what_is_shipped_lies_between(tmp_path: Path):
    both = with_weights(tmp_path, "optim.twin_share=0.25")
    masked, plain = with_weights(tmp_path), with_weights(tmp_path, "loss.masked_weight=0")
    for one in (both, masked, plain):
        one.train()
        for _ in range(2):
            one.take_step(batch(), None if one is plain else MaskedView(HALF), 0.1)
    apart = 0.0
    for name, tensor in both.shipped_weights().items():
        mine, other = masked.recogniser.state_dict()[name], plain.recogniser.state_dict()[name]
        expected = 0.75 * mine + 0.25 * other if tensor.is_floating_point() else mine
        torch.testing.assert_close(tensor, expected)
        apart = max(apart, float((mine - other).abs().max()))
    assert apart > 1e-3, "the masks made no difference"
    assert both.shipped is both.shipped and both.shipped is not both.recogniser


def test_a_twin_corrects_labels_from_the_same_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    both = with_weights(tmp_path, "optim.twin_share=0.25", "loss.recognition=splc", "loss.splc_epoch=1")
    told: list[bool] = []
    assert both._twin is not None
    step = both._twin.step_module.forward
    monkeypatch.setattr(
        both._twin.step_module, "forward", lambda *of, **how: told.append(how["corrects_labels"]) or step(*of, **how)
    )
    for epoch in range(3):
        both.take_step(batch(), MaskedView(HALF), 0.1, epoch)
    assert told == [False, True, True]


@pytest.mark.parametrize("beside", ["optim.twin_share=0.25", "optim.ema_decay=0.9"])
def test_a_run_with_a_second_network_goes_on_bit_for_bit(tmp_path: Path, beside: str):
    whole = with_weights(tmp_path, beside)
    whole.take_step(batch(), MaskedView(HALF), 0.1)
    continued = with_weights(tmp_path, beside, checkpoint=after_one_step(whole))
    for one in (whole, continued):
        one.take_step(batch(), MaskedView(HALF), 0.1)
    found = continued.shipped_weights()
    assert all(torch.equal(tensor, found[name]) for name, tensor in whole.shipped_weights().items())


def test_an_average_from_before_the_warm_up_existed_is_over_it():
    """Its checkpoint does not say how many steps it has followed: as many as the run took."""
    first = learner("optim.ema_decay=0.9")
    first.take_step(batch(), None, 0.1)
    saved = after_one_step(first)
    assert Learner(saved.config, 3, ALONE, replace(saved, step=40)).state_dict()["num_averaged"] == 1
    del saved.train_state["num_averaged"]
    again = Learner(saved.config, 3, ALONE, replace(saved, step=40))
    assert again.state_dict()["num_averaged"] == 40
    del saved.train_state["weights"]  # the run had no average, which begins now
    assert Learner(saved.config, 3, ALONE, replace(saved, step=40)).state_dict()["num_averaged"] == 0


def test_a_run_cannot_go_on_with_a_twin_that_it_began_without(tmp_path: Path):
    alone = after_one_step(with_weights(tmp_path))
    with pytest.raises(UserError, match="began without a twin"):
        with_weights(tmp_path, "optim.twin_share=0.25", checkpoint=alone)


def test_a_twin_needs_masks_and_pretrained_weights():
    with pytest.raises(UserError, match="networks that start at random cannot be averaged"):
        learner(*HALF_MASKED, "optim.twin_share=0.25")
    with pytest.raises(UserError, match=r"optim\.twin_share: 0\.25 is not 0, as the loss has no masks"):
        override(CONFIG, ("optim.twin_share=0.25",))
    with pytest.raises(UserError, match=r"none beside optim\.twin_share"):
        override(CONFIG, (*HALF_MASKED, "optim.ema_decay=0.9", "optim.twin_share=0.25"))


def test_weights_start_equal_in_all_processes_and_random_numbers_do_not():
    first, second = learner(), learner(rank=1)
    for one, other in zip(first.recogniser.parameters(), second.recogniser.parameters()):
        assert torch.equal(one, other)
    drawn = {
        (seed, rank): learner(f"run.seed={seed}", rank=rank) and torch.rand(3) for seed in (0, 1) for rank in (0, 1)
    }
    assert len({tuple(numbers.tolist()) for numbers in drawn.values()}) == 4
    name = "classifier.score.weight"
    other = learner("run.seed=1").recogniser.state_dict()[name]
    assert not torch.equal(first.recogniser.state_dict()[name], other)


def test_each_process_goes_on_with_random_numbers_of_its_own():
    """Else dropout and drop path would hide the same in all processes from a resumption on."""
    saved = learner()
    states = []
    for seed in (11, 22):
        torch.manual_seed(seed)
        random.seed(seed)
        states.append(saved.random_state())
    state = {"optimizer": saved.optimizer.state_dict(), "random": states}
    for rank, seed in enumerate((11, 22)):
        continued = learner(rank=rank)
        continued.ranks = Ranks(rank=rank, world_size=2, device=ALONE.device)
        continued._restore_training(state)
        drawn = torch.rand(3), random.random()
        torch.manual_seed(seed)
        random.seed(seed)
        assert torch.equal(drawn[0], torch.rand(3)) and drawn[1] == random.random()
    # With another number of processes there is no state for each, and they keep the seeds that they start with.
    fresh = learner()
    expected = torch.rand(3)
    torch.manual_seed(99)
    fresh = learner()
    fresh._restore_training(state)
    assert torch.equal(torch.rand(3), expected)


def test_compiling_is_left_to_the_first_step():
    assert learner("run.compile=true").step_module._compiled_call_impl is not None
    assert learner().step_module._compiled_call_impl is None


def test_channels_last_filters():
    weight = learner("run.channels_last=true").recogniser.backbone.network.conv_stem.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()


def batch_of(num_samples: int, image_size: int) -> Batch:
    generator = torch.Generator().manual_seed(2)
    return Batch(
        image_BCHW=torch.randn(num_samples, 3, image_size, image_size, generator=generator),
        target_BK=(torch.rand(num_samples, 3, generator=generator) > 0.5).float(),
        ignore_BK=torch.rand(num_samples, 3, generator=generator) > 0.7,
        keys=[str(number) for number in range(num_samples)],
        key_hash_B=np.arange(num_samples, dtype=np.uint64),
        index_B=np.arange(num_samples),
        crop_B4=np.zeros((num_samples, 4), np.int64),
        flip_B=np.zeros(num_samples, bool),
    )


@pytest.mark.parametrize("num_samples", [6, 5])  # the last part is shorter
def test_accumulated_parts_are_the_whole_batch(num_samples: int):
    """Without BatchNorm: the same losses and weights after two steps, with clipping and incomplete batches, images
    without a masked view, filled holes and pairs that only the mask leaves out."""
    vit = ("model.backbone=vit_tiny_patch16_224", "stream.image_size=32", "optim.clip_norm=0.5", *MASKED)
    whole, parted = learner(*vit), learner(*vit, "optim.accumulation_steps=3")
    generator = torch.Generator().manual_seed(3)
    view = MaskedView(
        (torch.rand(num_samples, 1, 32, 32, generator=generator) > 0.5).float(),
        torch.randn(num_samples, 3, 1, 1, generator=generator),
        torch.rand(num_samples, 3, generator=generator) > 0.7,
        torch.tensor([False, False, True, False, True, True])[:num_samples],
    )
    for _ in range(2):
        expected = whole.take_step(batch_of(num_samples, 32), view, 0.1)
        found = parted.take_step(batch_of(num_samples, 32), view, 0.1)
        assert set(found) == {"total", "clean", "masked", "consistency"}
        for name, loss in expected.items():
            torch.testing.assert_close(found[name], loss, atol=1e-6, rtol=1e-6)
    for one, other in zip(parted.recogniser.parameters(), whole.recogniser.parameters()):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


MASKED = ("loss.clean_weight=0.3", "loss.masked_weight=0.2", "loss.consistency_weight=0.5", "loss.train_ignored=drop")


def test_all_that_a_view_says_reaches_the_step():
    """Against the step alone; without any one part of the view, the losses are others."""
    generator = torch.Generator().manual_seed(3)
    said = {
        "filling_BCHW": torch.randn(4, 3, 1, 1, generator=generator),
        "ignore_BK": torch.rand(4, 3, generator=generator) > 0.6,
        "masked_B": torch.tensor([True, False, True, True]),
    }
    keep_mask_B1HW = (torch.rand(4, 1, 32, 32, generator=generator) > 0.5).float()
    made = replace(batch(), ignore_BK=torch.rand(4, 3, generator=generator) > 0.7)
    one = learner(*MASKED)
    step = SiameseStep(copy.deepcopy(one.recogniser), one.config.loss)
    for left_out in ("", *said):
        parts = {name: None if name == left_out else value for name, value in said.items()}
        expected = step(
            made.image_BCHW,
            keep_mask_B1HW,
            made.target_BK,
            made.ignore_BK,
            filling_BCHW=parts["filling_BCHW"],
            masked_ignore_BK=parts["ignore_BK"],
            masked_B=parts["masked_B"],
        )
        found = one.take_step(made, MaskedView(keep_mask_B1HW, **parts), 0.0)
        assert set(found) == set(expected) and not any(loss.requires_grad for loss in found.values())
        for name, loss in expected.items():
            torch.testing.assert_close(found[name], loss.detach(), atol=0, rtol=1e-6)
        if not left_out:
            whole = found
        else:
            assert found["clean"] == whole["clean"] and found["masked"] != whole["masked"], left_out


def test_before_masks_start_whole_images_weigh_what_both_views_will():
    one = learner(*MASKED, "keep_mask.share=0.5", "keep_mask.start=0.5")
    losses = one.take_step(batch(), None, 0.0)
    assert set(losses) == {"total", "clean"}
    assert (losses["total"] / losses["clean"]).item() == pytest.approx(0.3 + 0.5 * 0.2)


def test_masks_start_with_the_epoch_that_the_config_says():
    config = override(CONFIG, (*MASKED, "keep_mask.start=0.5", "optim.num_epochs=4"))
    data = TrainData.__new__(TrainData)  # without the shards, which have no part in it
    data._config = config
    data._views = SimpleNamespace(of=lambda batch, *, seed, epoch: epoch)
    assert [data.masked_view(batch(), epoch) for epoch in range(4)] == [None, None, 2, 3]


def test_the_baseline_is_plain_training_bit_for_bit():
    """α = (1, 0, 0): weights and statistics after three steps equal those of a loop without any of this code."""
    ours = learner("optim.momentum=0.9", "optim.weight_decay=0.0001")
    torch.manual_seed(0)
    plain = build_model(CONFIG.model, 3, image_size=32)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4, fused=True)
    for _ in range(3):
        ours.take_step(batch(), None, 0.1)
        F.binary_cross_entropy_with_logits(plain(batch().image_BCHW), batch().target_BK).backward()
        optimizer.step()
        optimizer.zero_grad()
    for (name, one), other in zip(ours.recogniser.state_dict().items(), plain.state_dict().values()):
        assert torch.equal(one, other), name


def test_norms_of_the_masked_branch_learn_and_are_restored():
    settings = ("loss.bn_mode=split", "optim.lr=0.1", *MASKED)
    keep_masks = (torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(3)) > 0.5).float()
    first = learner(*settings)
    before = first.step_module.masked_norms[0].bias.detach().clone()
    first.take_step(batch(), MaskedView(keep_masks), 0.1)
    assert not torch.equal(first.step_module.masked_norms[0].bias, before)
    second = Learner(first.config, 3, ALONE, after_one_step(first))
    for one in (first, second):
        one.take_step(batch(), MaskedView(keep_masks), 0.1)
    for ours, theirs in zip(second.step_module.state_dict().values(), first.step_module.state_dict().values()):
        assert torch.equal(ours, theirs)


def test_what_the_config_could_not_do_is_noted():
    notes = learner("model.backbone=vit_tiny_patch16_224", "loss.bn_mode=split", *MASKED).notes
    assert notes == ("loss.bn_mode=split has no effect: the network has no BatchNorm",)
