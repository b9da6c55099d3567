"""The Siamese step: baseline, sequential and fused branches."""

from __future__ import annotations

import copy
import dataclasses
from types import SimpleNamespace

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from msltrain.config import LossConfig, ModelConfig
from msltrain.models.build import build_model
from msltrain.training.losses import asymmetric_loss
from msltrain.training.siamese import SiameseStep

BASELINE = LossConfig(clean_weight=1, masked_weight=0, consistency_weight=0)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def batch(size: int = 64, num_classes: int = 5):
    images = torch.randn(4, 3, size, size)
    keep_masks = (torch.rand(4, 1, size, size) > 0.5).float()
    targets = (torch.rand(4, num_classes) > 0.5).float()
    return images, keep_masks, targets


def recogniser(backbone: str = "test_resnet") -> nn.Module:
    return build_model(ModelConfig(backbone=backbone, num_heads=2), 5, image_size=64).train()


def test_baseline_equals_the_plain_step_bit_for_bit():
    ours = recogniser()
    plain = copy.deepcopy(ours)
    images, keep_masks, targets = batch()
    losses = SiameseStep(ours, BASELINE)(images, keep_masks, targets)
    losses["total"].backward()
    loss = F.binary_cross_entropy_with_logits(plain(images), targets)
    loss.backward()
    assert set(losses) == {"total", "clean"}
    assert torch.equal(losses["total"], loss)
    for (name, one), other in zip(ours.named_parameters(), plain.parameters()):
        assert torch.equal(one.grad, other.grad), name
    for (name, one), other in zip(ours.named_buffers(), plain.buffers()):
        assert torch.equal(one, other), name


def test_baseline_needs_no_keep_masks():
    images, _, targets = batch()
    step = SiameseStep(recogniser(), BASELINE)
    losses = step(images, None, targets)
    losses["total"].backward()
    assert set(losses) == {"total", "clean"}
    assert all(parameter.grad is not None for parameter in step.parameters())


@pytest.mark.parametrize("bn_mode", ["clean_only", "split", "running"])
def test_the_baseline_has_no_branch_to_tell_apart(bn_mode: str):
    """So whatever is said of BatchNorm in the masked branch says nothing, even where BatchNorm is frozen."""
    frozen = build_model(ModelConfig(backbone="test_resnet", freeze_batchnorm=True), 5, image_size=64)
    step = SiameseStep(frozen, dataclasses.replace(BASELINE, bn_mode=bn_mode))
    assert not step.notes and not len(step.masked_norms)


def test_sequential_equals_two_published_forwards():
    ours = recogniser()
    plain = copy.deepcopy(ours)
    images, keep_masks, targets = batch()
    losses = SiameseStep(ours, LossConfig())(images, keep_masks, targets)
    clean, masked = plain(images), plain(images * keep_masks)
    assert torch.equal(losses["clean"], F.binary_cross_entropy_with_logits(clean, targets))
    assert torch.equal(losses["masked"], F.binary_cross_entropy_with_logits(masked, targets))
    assert torch.equal(losses["consistency"], F.mse_loss(clean.sigmoid(), masked.sigmoid()))
    total = 0.3 * losses["clean"] + 0.2 * losses["masked"] + 0.5 * losses["consistency"]
    torch.testing.assert_close(losses["total"], total)
    for (name, one), other in zip(ours.named_buffers(), plain.buffers()):
        assert torch.equal(one, other), name


def test_fused_in_float32_keeps_outputs_and_statistics():
    sequential = recogniser()
    fused = copy.deepcopy(sequential)
    images, keep_masks, targets = batch()
    expected = SiameseStep(sequential, LossConfig())(images, keep_masks, targets)
    found = SiameseStep(fused, LossConfig(branches="fused"))(images, keep_masks, targets)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=1e-5)
    for (name, one), other in zip(fused.named_buffers(), sequential.buffers()):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5, msg=name)


def test_a_fused_network_treats_other_batches_as_one():
    """Outside the step (a validation pass, a recalibration of BatchNorm) the batch is not cut in half."""
    plain = recogniser()
    fused = copy.deepcopy(plain)
    SiameseStep(fused, LossConfig(branches="fused"))
    images, _, _ = batch()
    assert torch.equal(fused(images), plain(images))
    assert torch.equal(fused.eval()(images), plain.eval()(images))


def test_the_mask_multiplies_the_normalised_image():
    seen = []

    class Spy(nn.Module):
        def forward(self, image):
            seen.append(image)
            return image.flatten(1)[:, :5]

    images, keep_masks, targets = batch()
    SiameseStep(Spy(), LossConfig())(images, keep_masks, targets)
    assert torch.equal(seen[0], images)
    assert torch.equal(seen[1], images * keep_masks)


def test_ignored_pairs_are_negative_as_published_or_dropped():
    images, keep_masks, targets = batch()
    targets[0, 0] = 0
    ignore = torch.zeros(4, 5, dtype=torch.bool)
    ignore[0, 0] = True
    network = recogniser().eval()
    published = SiameseStep(network, LossConfig())(images, keep_masks, targets, ignore)
    assert torch.equal(published["clean"], SiameseStep(network, LossConfig())(images, keep_masks, targets)["clean"])
    dropped = SiameseStep(network, LossConfig(train_ignored="drop"))(images, keep_masks, targets, ignore)
    pair = F.softplus(network(images)[0, 0]) / 20
    torch.testing.assert_close(published["clean"] - dropped["clean"], pair)


class Given(nn.Module):
    """A network that answers the first batch with ``clean`` and the second with ``masked``, whatever they show."""

    def __init__(self, clean_BK: torch.Tensor, masked_BK: torch.Tensor):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.answers = [clean_BK, masked_BK]

    def forward(self, image_BCHW: torch.Tensor) -> torch.Tensor:
        return self.weight * self.answers.pop(0)


def test_an_ignored_pair_counts_in_no_term_and_the_divisor_stays():
    """Two images, two classes; the pair of image 0 and class 1 is ignored, or counts as a negative as published."""
    clean = torch.tensor([[1.0, 2.0], [-1.0, 0.5]])
    masked = torch.tensor([[0.5, -2.0], [1.0, -0.5]])
    target = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    ignore = torch.tensor([[False, True], [False, False]])
    kept = ~ignore

    def step(**settings) -> dict[str, torch.Tensor]:
        images, masks = torch.zeros(2, 3, 4, 4), torch.ones(2, 1, 4, 4)
        return SiameseStep(Given(clean, masked), LossConfig(**settings))(images, masks, target, ignore)

    def bce(logit: torch.Tensor) -> torch.Tensor:
        return F.binary_cross_entropy_with_logits(logit, target, reduction="none")

    square = (clean.sigmoid() - masked.sigmoid()).square()
    dropped = step(train_ignored="drop", clean_weight=1, masked_weight=10, consistency_weight=100)
    torch.testing.assert_close(dropped["clean"], (bce(clean) * kept).sum() / 4)
    torch.testing.assert_close(dropped["masked"], (bce(masked) * kept).sum() / 4)
    torch.testing.assert_close(dropped["consistency"], (square * kept).sum() / 4)
    total = dropped["clean"] + 10 * dropped["masked"] + 100 * dropped["consistency"]
    torch.testing.assert_close(dropped["total"], total)
    published = step(clean_weight=1, masked_weight=10, consistency_weight=100)
    torch.testing.assert_close(published["clean"], bce(clean).mean())
    torch.testing.assert_close(published["masked"], bce(masked).mean())
    torch.testing.assert_close(published["consistency"], square.mean())


def test_logits_and_losses_are_float32_under_autocast():
    images, keep_masks, targets = batch()
    network = recogniser()
    with torch.autocast("cpu", torch.bfloat16):
        assert network.backbone(images).dtype == torch.bfloat16
        assert network(images).dtype == torch.float32
        losses = SiameseStep(network, LossConfig(branches="fused"))(images, keep_masks, targets)
    assert {loss.dtype for loss in losses.values()} == {torch.float32}


def test_timm_norm_layers_are_recognised():
    """A timm release whose BatchNorm is no _BatchNorm would silently mix the branches' statistics."""
    network = timm.create_model("mobilenetv2_100", num_classes=0)
    kinds = {type(module) for module in network.modules() if "Norm" in type(module).__name__}
    assert kinds and all(issubclass(kind, nn.modules.batchnorm._BatchNorm) for kind in kinds)


def test_a_fused_pass_is_the_default_on_a_gpu():
    assert SiameseStep(recogniser("test_resnet"), LossConfig()).branches == "sequential"

    class OnGPU(nn.Module):
        def parameters(self, recurse: bool = True):
            return iter([SimpleNamespace(is_cuda=True)])

    assert SiameseStep(OnGPU(), LossConfig()).branches == "fused"
    assert SiameseStep(OnGPU(), LossConfig(branches="sequential")).branches == "sequential"


class Logits(nn.Module):
    """A network whose first pass gives ``clean`` and second ``masked``."""

    def __init__(self) -> None:
        super().__init__()
        self.clean = nn.Parameter(torch.randn(4, 5))
        self.masked = nn.Parameter(torch.randn(4, 5))
        self.num_passes = 0

    def forward(self, _: torch.Tensor) -> torch.Tensor:
        self.num_passes += 1
        return self.clean if self.num_passes == 1 else self.masked


@pytest.mark.parametrize(("stop_gradient", "moved"), [("none", "both"), ("clean", "masked"), ("masked", "clean")])
def test_a_stopped_branch_is_not_moved_by_consistency(stop_gradient, moved: str):
    network = Logits()
    images, keep_masks, targets = batch()
    losses = SiameseStep(network, LossConfig(stop_gradient=stop_gradient))(images, keep_masks, targets)
    expected = F.mse_loss(network.clean.sigmoid(), network.masked.sigmoid())
    torch.testing.assert_close(losses["consistency"], expected)
    of_clean, of_masked = torch.autograd.grad(losses["consistency"], [network.clean, network.masked], allow_unused=True)
    slopes = torch.autograd.grad(expected, [network.clean, network.masked])
    for gradient, slope, name in ((of_clean, slopes[0], "clean"), (of_masked, slopes[1], "masked")):
        if moved in ("both", name):
            torch.testing.assert_close(gradient, slope)
        else:
            assert gradient is None


def test_terms_are_those_that_were_asked_for():
    network = Logits()
    images, keep_masks, targets = batch()
    config = LossConfig(
        recognition="asl", asl_gamma_positive=1, asl_gamma_negative=2, asl_margin=0.1, consistency="sum"
    )
    losses = SiameseStep(network, config)(images, keep_masks, targets)
    for name, logits in (("clean", network.clean), ("masked", network.masked)):
        expected = asymmetric_loss(logits, targets, gamma_positive=1, gamma_negative=2, margin=0.1)
        assert torch.equal(losses[name], expected)
    consistency = (network.clean.sigmoid() - network.masked.sigmoid()).square().sum() / 4
    torch.testing.assert_close(losses["consistency"], consistency)
    total = 0.3 * losses["clean"] + 0.2 * losses["masked"] + 0.5 * losses["consistency"]
    torch.testing.assert_close(losses["total"], total)


def test_the_rate_matched_baseline_weighs_recognition_as_the_method_does():
    """Where both branches agree, the method's gradient is the rate-matched baseline's."""
    images, _, targets = batch()
    method = LossConfig()
    baseline = method.rate_matched_baseline()
    assert (baseline.clean_weight, baseline.has_masked_branch) == (0.5, False)
    one, other = recogniser("vit_tiny_patch16_224"), recogniser("vit_tiny_patch16_224")
    other.load_state_dict(one.state_dict())
    SiameseStep(one, method)(images, torch.ones(4, 1, 64, 64), targets)["total"].backward()
    SiameseStep(other, baseline)(images, None, targets)["total"].backward()
    for ours, theirs in zip(one.parameters(), other.parameters()):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-4)


def test_a_mixture_is_one_batch_to_batchnorm_also_where_blocks_are_computed_twice():
    plain = recogniser()
    twice = copy.deepcopy(plain)
    images, keep_masks, targets = batch()
    loss = LossConfig(branches="concatenated")
    expected = SiameseStep(plain, loss)(images, keep_masks, targets)
    found = SiameseStep(twice, loss, activation_checkpointing=True)(images, keep_masks, targets)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-6, rtol=1e-5)
    for (name, one), other in zip(twice.named_buffers(), plain.buffers()):
        torch.testing.assert_close(one, other, msg=name)
