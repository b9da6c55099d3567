"""What the masked branch learns from, and which images and pairs count in it: each setting against a closed form."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from msldata.errors import UserError
from msltrain.config import LossConfig, ModelConfig, OptimConfig, TrainConfig, override
from msltrain.hosts.distributed import Ranks
from msltrain.models.build import build_model
from msltrain.stream.config import StreamConfig
from msltrain.stream.keepmasks.masked_views import MaskedView
from msltrain.stream.pixels.batch import Batch
from msltrain.training.learner import Learner
from msltrain.training.siamese import SiameseStep


class Linear(nn.Module):
    """Logits are the mean colours times one weight; it counts how often it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.5))
        self.seen: list[Tensor] = []

    def forward(self, image_BCHW: Tensor) -> Tensor:
        self.seen.append(image_BCHW)
        return self.weight * image_BCHW.mean((2, 3))


def batch() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, 8, 8, generator=generator) + 1
    keep_masks = (torch.rand(4, 1, 8, 8, generator=generator) > 0.5).float()
    return images, keep_masks, (torch.rand(4, 3, generator=generator) > 0.5).float()


def step(*, masked_B=None, **settings) -> tuple[dict[str, Tensor], Linear]:
    network = Linear()
    images, keep_masks, targets = batch()
    extra = {} if masked_B is None else {"masked_B": torch.tensor(masked_B)}
    losses = SiameseStep(network, LossConfig(**settings))(images, keep_masks, targets, **extra)
    losses["total"].backward()
    return losses, network


def logits() -> tuple[Tensor, Tensor]:
    """Of the whole and the masked images, with the weight at 1."""
    images, keep_masks, _ = batch()
    return images.mean((2, 3)), (images * keep_masks).mean((2, 3))


def test_the_whole_images_prediction_is_a_target_that_the_masked_branch_does_not_move():
    losses, network = step(clean_weight=0.5, masked_weight=0.5, consistency_weight=0, masked_target="whole_image")
    whole, masked = logits()
    weight = torch.tensor(1.5, requires_grad=True)
    soft = torch.sigmoid(1.5 * whole)
    expected = F.binary_cross_entropy_with_logits(weight * masked, soft)
    torch.testing.assert_close(losses["masked"], expected)
    total = 0.5 * F.binary_cross_entropy_with_logits(weight * whole, batch()[2]) + 0.5 * expected
    total.backward()
    torch.testing.assert_close(network.weight.grad, weight.grad)


def test_a_soft_target_is_not_smoothed():
    plain, _ = step(masked_target="whole_image")
    smoothed, _ = step(masked_target="whole_image", label_smoothing=0.1)
    assert torch.equal(smoothed["masked"], plain["masked"])
    assert not torch.equal(smoothed["clean"], plain["clean"])


def test_weights_may_be_normalised_to_the_baselines_rate():
    for alpha in ((0.3, 0.2, 0.5), (1.0, 1.0, 0.0), (0.0, 0.0, 2.0), (0.4, 0.0, 0.0)):
        names = ("clean_weight", "masked_weight", "consistency_weight")
        settings = dict(zip(names, alpha))
        plain, one = step(**settings)
        normalised, other = step(**settings, normalise_weights=True)
        factor = 1 / (alpha[0] + alpha[1] or alpha[2])
        torch.testing.assert_close(normalised["total"], plain["total"] * factor)
        torch.testing.assert_close(other.weight.grad, one.weight.grad * factor)
        assert torch.equal(normalised["clean"], plain["clean"])


def test_images_without_a_masked_view_add_nothing_and_cost_nothing():
    losses, network = step(masked_B=[False, True, False, True])
    assert [len(image) for image in network.seen] == [4, 2]
    whole, masked = (1.5 * logit for logit in logits())
    rows = [1, 3]
    expected = F.binary_cross_entropy_with_logits(masked[rows], batch()[2][rows]) / 2
    torch.testing.assert_close(losses["masked"], expected)
    torch.testing.assert_close(losses["consistency"], F.mse_loss(whole[rows].sigmoid(), masked[rows].sigmoid()) / 2)
    none, network = step(masked_B=[False] * 4)
    assert none["masked"] == none["consistency"] == 0
    # The network is run all the same, for other processes wait for its gradients; on two, as BatchNorm needs.
    assert [len(image) for image in network.seen] == [4, 2]
    one, network = step(masked_B=[False, True, False, False])
    assert [len(image) for image in network.seen] == [4, 2]
    torch.testing.assert_close(one["masked"], F.binary_cross_entropy_with_logits(masked[1], batch()[2][1]) / 4)
    every, _ = step(masked_B=[True] * 4)
    published, _ = step()
    assert all(torch.equal(every[name], published[name]) for name in published)


@pytest.mark.parametrize("branches", ["sequential", "concatenated", "single"])
def test_before_masks_start_the_step_is_the_baselines(branches: str):
    images, _, targets = batch()
    weights = (1, 0, 0) if branches == "single" else (0.3, 0.2, 0.5)
    names = ("clean_weight", "masked_weight", "consistency_weight")
    loss = LossConfig(**dict(zip(names, weights)), branches=branches, masked_target="whole_image")
    network = Linear()
    losses = SiameseStep(network, loss)(images, None, targets, whole_weight=0.7)
    baseline = LossConfig(clean_weight=0.7, masked_weight=0, consistency_weight=0)
    expected = SiameseStep(Linear(), baseline)(images, None, targets)
    assert losses == expected and set(losses) == {"total", "clean"}
    assert [len(image) for image in network.seen] == [4] and torch.equal(network.seen[0], images)


@pytest.mark.parametrize("branches", ["fused", "concatenated"])
def test_other_branches_take_a_share_too(branches: str):
    torch.manual_seed(0)
    network = build_model(ModelConfig(backbone="test_resnet"), 3, image_size=32).train()
    images = torch.randn(4, 3, 32, 32)
    args = (images, (torch.rand(4, 1, 32, 32) > 0.5).float(), batch()[2])
    masked_B = torch.tensor([True, False, False, True])
    frozen = copy.deepcopy(network).eval()
    expected = SiameseStep(frozen, LossConfig(branches="sequential"))(*args, masked_B=masked_B)
    found = SiameseStep(copy.deepcopy(frozen), LossConfig(branches=branches))(*args, masked_B=masked_B)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=1e-5)
    SiameseStep(network, LossConfig(branches=branches))(*args, masked_B=masked_B)["total"].backward()


def test_pairs_that_the_masked_branch_cannot_know_count_in_the_whole_image_alone():
    images, keep_masks, targets = batch()
    ignore = torch.zeros(4, 3, dtype=torch.bool)
    ignore[2, 1] = True
    step_module = SiameseStep(Linear(), LossConfig())
    plain = step_module(images, keep_masks, targets)
    found = step_module(images, keep_masks, targets, masked_ignore_BK=ignore)
    whole, masked = (1.5 * logit for logit in logits())
    pair = F.binary_cross_entropy_with_logits(masked[2, 1], targets[2, 1]) / 12
    assert torch.equal(found["clean"], plain["clean"])
    torch.testing.assert_close(plain["masked"] - found["masked"], pair)
    gone = (whole[2, 1].sigmoid() - masked[2, 1].sigmoid()) ** 2 / 12
    torch.testing.assert_close(plain["consistency"] - found["consistency"], gone)


def test_a_pair_that_the_labels_or_the_mask_leave_out_counts_in_no_masked_term():
    images, keep_masks, targets = batch()
    unsure, hidden = torch.zeros(2, 4, 3, dtype=torch.bool)
    unsure[0, 1] = hidden[2, 0] = True
    step_module = SiameseStep(Linear(), LossConfig(train_ignored="drop"))
    found = step_module(images, keep_masks, targets, unsure, masked_ignore_BK=hidden)
    both = step_module(images, keep_masks, targets, unsure | hidden)
    assert torch.equal(found["masked"], both["masked"]) and torch.equal(found["consistency"], both["consistency"])
    assert torch.equal(found["clean"], step_module(images, keep_masks, targets, unsure)["clean"])


def test_holes_are_filled():
    images, keep_masks, targets = batch()
    network, filling = Linear(), torch.full((4, 3, 1, 1), 2.0)
    SiameseStep(network, LossConfig())(images, keep_masks, targets, filling_BCHW=filling)
    torch.testing.assert_close(network.seen[1], images * keep_masks + 2 * (1 - keep_masks))
    assert torch.equal(network.seen[0], images)


def test_masks_as_plain_augmentation_cost_one_pass():
    images, keep_masks, targets = batch()
    loss = LossConfig(clean_weight=1, masked_weight=0, consistency_weight=0, branches="single")
    network, masked_B = Linear(), torch.tensor([True, False, False, True])
    ignore = torch.ones(4, 3, dtype=torch.bool)
    losses = SiameseStep(network, loss)(images, keep_masks, targets, masked_B=masked_B, masked_ignore_BK=ignore)
    assert set(losses) == {"total", "clean"} and len(network.seen) == 1
    mixed = torch.where(masked_B[:, None, None, None], images * keep_masks, images)
    assert torch.equal(network.seen[0], mixed)
    kept = ~masked_B
    expected = F.binary_cross_entropy_with_logits(1.5 * images[kept].mean((2, 3)), targets[kept]) / 2
    torch.testing.assert_close(losses["total"], expected)


@pytest.mark.parametrize(
    ("assignments", "words"),
    [
        (["loss.branches=single"], r"loss\.branches: single is not possible with α2 or α3 above 0"),
        (["loss.masked_target=teacher"], r"optim\.ema_decay: none is not set, as loss\.masked_target=teacher needs"),
        (["loss.masked_target=whole_image", "loss.recognition=asl"], r"loss\.recognition: asl is not bce"),
        (["keep_mask.share=0"], r"keep_mask\.share is 0"),
        (["keep_mask.start=1"], r"keep_mask\.start is 1\.0; it must be 0 or more, and below 1"),
        (["keep_mask.start=0.5", "loss.bn_mode=split"], r"keep_mask\.start: 0\.5 is not 0, as loss\.bn_mode=split"),
        (
            ["keep_mask.start=0.5", "loss.clean_weight=0", "loss.masked_weight=0"],
            r"keep_mask\.start: 0\.5 is not 0, as the loss has no recognition terms",
        ),
        (["keep_mask.subset_weights=0.8,0.4"], "at most 1 together"),
        (["keep_mask.kind=box", "keep_mask.ramp_epochs=2"], r"keep_mask\.ramp_epochs is for stored keep masks"),
        (["keep_mask.fill=blur", "keep_mask.visible_level=0.882"], "mixes into visible pixels"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(assignments: list[str], words: str):
    with pytest.raises(UserError, match=words):
        override(TrainConfig(stream=StreamConfig()), assignments)


# --- with the optimiser -----------------------------------------------------------------------------------------------

CONFIG = TrainConfig(
    stream=StreamConfig(image_size=32, batch_size=4),
    model=ModelConfig(backbone="test_efficientnet", num_heads=2),
    optim=OptimConfig(lr=0.1, momentum=0.9, weight_decay=1e-4, classifier_lr_factor=1.0),
)


def learner(*assignments: str) -> Learner:
    config = override(CONFIG, assignments)
    return Learner(config, 3, Ranks(rank=0, world_size=1, device=torch.device("cpu")), None)


def stream_batch() -> tuple[Batch, MaskedView]:
    generator = torch.Generator().manual_seed(1)
    made = Batch(
        image_BCHW=torch.randn(4, 3, 32, 32, generator=generator),
        target_BK=(torch.rand(4, 3, generator=generator) > 0.5).float(),
        ignore_BK=torch.zeros(4, 3, dtype=torch.bool),
        keys=list("abcd"),
        key_hash_B=np.arange(4, dtype=np.uint64),
        index_B=np.arange(4),
        crop_B4=np.zeros((4, 4), np.int64),
        flip_B=np.zeros(4, bool),
    )
    return made, MaskedView((torch.rand(4, 1, 32, 32, generator=generator) > 0.5).float())


def test_the_published_step_is_the_published_loop_bit_for_bit():
    """α = (0.3, 0.2, 0.5): weights and statistics after three steps equal those of a loop without any of this code."""
    ours = learner()
    torch.manual_seed(0)
    plain = build_model(CONFIG.model, 3, image_size=32)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4, fused=True)
    made, view = stream_batch()
    for _ in range(3):
        ours.take_step(made, view, 0.1)
        clean, masked = plain(made.image_BCHW), plain(made.image_BCHW * view.keep_mask_B1HW)
        bce = F.binary_cross_entropy_with_logits
        consistency = (clean.sigmoid() - masked.sigmoid()).square().mean()
        loss = 0.3 * bce(clean, made.target_BK) + 0.2 * bce(masked, made.target_BK) + 0.5 * consistency
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for (name, one), other in zip(ours.recogniser.state_dict().items(), plain.state_dict().values()):
        assert torch.equal(one, other), name


def test_the_teacher_is_the_moving_average_and_sees_the_whole_image():
    ours = learner("optim.ema_decay=0.9", "loss.masked_target=teacher", "loss.consistency_weight=0")
    made, view = stream_batch()
    ours.take_step(made, view, 0.1)
    teacher, student = copy.deepcopy(ours.shipped), copy.deepcopy(ours.recogniser)
    losses = ours.take_step(made, view, 0.1)
    with torch.no_grad():
        soft = torch.sigmoid(teacher(made.image_BCHW))
        student(made.image_BCHW)
        masked = student(made.image_BCHW * view.keep_mask_B1HW)
    torch.testing.assert_close(losses["masked"], F.binary_cross_entropy_with_logits(masked, soft))
    assert not teacher.training
