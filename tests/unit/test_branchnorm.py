"""BatchNorm by branch, and activations computed a second time, against plain code that does the same in the open."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from msldata.errors import UserError
from msltrain.config import LossConfig, ModelConfig
from msltrain.models.build import build_model
from msltrain.training.siamese import SiameseStep


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def batch():
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    keep_masks = (torch.rand(4, 1, 32, 32) > 0.6).double()
    targets = (torch.rand(4, 5) > 0.5).double()
    return images, keep_masks, targets


def recogniser(backbone: str = "test_resnet") -> nn.Module:
    return build_model(ModelConfig(backbone=backbone, num_heads=2), 5, image_size=32).double().train()


def statistics(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in network.named_buffers()}


def assert_equal_networks(found: nn.Module, expected: nn.Module, tolerance: float) -> None:
    theirs = expected.state_dict()
    assert list(found.state_dict()) == list(theirs)
    for name, tensor in found.state_dict().items():
        torch.testing.assert_close(tensor, theirs[name], atol=tolerance, rtol=tolerance, msg=name)


def take_steps(network: nn.Module, loss: LossConfig, num_steps: int = 2, **settings: bool) -> list[float]:
    """Weights and statistics after so many SGD steps are what counts; the losses on the way are returned."""
    step = SiameseStep(network, loss, **settings).train()
    optimizer = torch.optim.SGD(step.parameters(), lr=0.01, momentum=0.9)
    totals = []
    for number in range(num_steps):
        torch.manual_seed(number)
        total = step(*batch())["total"]
        total.backward()
        optimizer.step()
        optimizer.zero_grad()
        totals.append(total.item())
    return totals


@pytest.mark.parametrize(
    "backbone", ["test_resnet", "test_efficientnet"]
)  # plain BatchNorm2d and timm's BatchNormAct2d
def test_fused_equals_the_published_steps(backbone: str):
    """Weights and running statistics after two steps, against two forwards written out."""
    published = recogniser(backbone)
    fused = copy.deepcopy(published)
    take_steps(fused, LossConfig(branches="fused"))
    optimizer = torch.optim.SGD(published.parameters(), lr=0.01, momentum=0.9)
    for number in range(2):
        torch.manual_seed(number)
        images, keep_masks, targets = batch()
        clean, masked = published(images), published(images * keep_masks)
        loss = 0.3 * F.binary_cross_entropy_with_logits(clean, targets)
        loss = loss + 0.2 * F.binary_cross_entropy_with_logits(masked, targets)
        loss = loss + 0.5 * F.mse_loss(clean.sigmoid(), masked.sigmoid())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert_equal_networks(fused, published, 1e-6)


def test_concatenated_branches_share_one_normalisation():
    ours = recogniser()
    plain = copy.deepcopy(ours)
    images, keep_masks, targets = batch()
    found = SiameseStep(ours, LossConfig(branches="concatenated"))(images, keep_masks, targets)
    clean, masked = plain(torch.cat((images, images * keep_masks))).chunk(2)
    assert torch.equal(found["clean"], F.binary_cross_entropy_with_logits(clean, targets))
    assert torch.equal(found["masked"], F.binary_cross_entropy_with_logits(masked, targets))
    published = SiameseStep(recogniser(), LossConfig(branches="sequential"))(images, keep_masks, targets)
    assert (found["clean"] - published["clean"]).abs() > 1e-4


@pytest.mark.parametrize("branches", ["sequential", "fused"])
def test_clean_only_keeps_the_masked_branch_out_of_the_running_statistics(branches):
    ours = recogniser()
    plain = copy.deepcopy(ours)
    images, keep_masks, targets = batch()
    found = SiameseStep(ours, LossConfig(branches=branches, bn_mode="clean_only"))(images, keep_masks, targets)
    plain(images)
    after_clean = statistics(plain)
    masked = F.binary_cross_entropy_with_logits(plain(images * keep_masks), targets)
    torch.testing.assert_close(found["masked"], masked, atol=1e-9, rtol=1e-9)  # normalised by its own batch
    for name, buffer in statistics(ours).items():
        torch.testing.assert_close(buffer, after_clean[name], atol=1e-9, rtol=1e-9, msg=name)


@pytest.mark.parametrize("branches", ["sequential", "fused"])
def test_running_normalises_the_masked_branch_as_at_test_time(branches):
    ours = recogniser()
    plain = copy.deepcopy(ours)
    images, keep_masks, targets = batch()
    step = SiameseStep(ours, LossConfig(branches=branches, bn_mode="running")).train()
    copied = copy.deepcopy(step)
    for number in range(2):
        found = step(images, keep_masks, targets)
        assert torch.equal(found["total"], copied(images, keep_masks, targets)["total"])  # a copy reads its own
        plain.train()(images)
        masked = F.binary_cross_entropy_with_logits(plain.eval()(images * keep_masks), targets)
        torch.testing.assert_close(found["masked"], masked, atol=1e-9, rtol=1e-9, msg=str(number))
        for name, buffer in statistics(ours).items():
            torch.testing.assert_close(buffer, statistics(plain)[name], atol=1e-9, rtol=1e-9, msg=name)
    found["total"].backward()
    assert all(parameter.grad is not None for parameter in ours.parameters())


@pytest.mark.parametrize("branches", ["sequential", "fused"])
def test_split_gives_the_masked_branch_norms_of_its_own(branches):
    ours = recogniser()
    clean_network, masked_network = copy.deepcopy(ours), copy.deepcopy(ours)
    step = SiameseStep(ours, LossConfig(branches=branches, bn_mode="split")).train()
    own = [module for module in masked_network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(step.masked_norms) == len(own) > 10
    with torch.no_grad():
        for norm, counterpart in zip(step.masked_norms, own):
            norm.bias.add_(0.3)
            counterpart.bias.add_(0.3)
    images, keep_masks, targets = batch()
    found = step(images, keep_masks, targets)
    clean, masked = clean_network(images), masked_network(images * keep_masks)
    torch.testing.assert_close(found["clean"], F.binary_cross_entropy_with_logits(clean, targets))
    torch.testing.assert_close(found["masked"], F.binary_cross_entropy_with_logits(masked, targets))
    assert_equal_networks(ours, clean_network, 1e-9)  # what is shipped knows nothing of the other branch
    for norm, counterpart in zip(step.masked_norms, own):
        torch.testing.assert_close(norm.running_mean, counterpart.running_mean)
    found["total"].backward()
    assert all(parameter.grad is not None for parameter in step.parameters() if parameter.requires_grad)


def test_a_mode_that_cannot_be_is_refused_or_noted():
    frozen = build_model(ModelConfig(backbone="test_resnet", freeze_batchnorm=True), 5, image_size=64)
    with pytest.raises(
        UserError, match=r"bn_mode=split needs a BatchNorm that learns; .* model\.freeze_batchnorm=false"
    ):
        SiameseStep(frozen, LossConfig(bn_mode="split"))
    step = SiameseStep(
        build_model(ModelConfig(backbone="test_vit"), 5, image_size=160), LossConfig(bn_mode="clean_only")
    )
    assert step.notes == ["loss.bn_mode=clean_only has no effect: the network has no BatchNorm"]
    with pytest.raises(UserError, match=r"loss\.bn_mode: split is not shared, as concatenated branches need"):
        LossConfig(branches="concatenated", bn_mode="split")


CHECKPOINTED = [
    ("test_resnet", LossConfig(branches="sequential")),
    ("resnet18", LossConfig(branches="fused")),
    ("test_resnet", LossConfig(branches="fused", bn_mode="split")),
    ("test_resnet", LossConfig(branches="sequential", bn_mode="split")),
    ("test_resnet", LossConfig(clean_weight=1, masked_weight=0, consistency_weight=0)),
    ("test_efficientnet", LossConfig(branches="fused", bn_mode="clean_only")),
    ("test_resnet", LossConfig(branches="sequential", bn_mode="running")),
    ("resnet18", LossConfig(branches="fused", bn_mode="running")),
    ("test_convnext", LossConfig()),
]


@pytest.mark.parametrize(("backbone", "loss"), CHECKPOINTED)
def test_activation_checkpointing_changes_no_number(backbone: str, loss: LossConfig):
    """Above all: running statistics are not updated a second time."""
    plain = recogniser(backbone)
    thrifty = copy.deepcopy(plain)
    expected = take_steps(plain, loss)
    assert take_steps(thrifty, loss, activation_checkpointing=True) == pytest.approx(expected, rel=1e-9)
    assert_equal_networks(thrifty, plain, 1e-9)


@pytest.mark.parametrize(
    ("backbone", "num_blocks"),
    [
        ("resnet18", 8),
        ("resnet50", 16),
        ("convnext_atto", 12),
        ("vit_tiny_patch16_224", 12),
        ("eva02_tiny_patch14_224", 12),
    ],
)
def test_residual_blocks_keep_only_their_inputs(backbone: str, num_blocks: int):
    from msltrain.models.branchnorm import Passage, compute_blocks_twice

    network = build_model(ModelConfig(backbone=backbone), 5, image_size=224)
    assert compute_blocks_twice(network, Passage()) == num_blocks


def saved_bytes(activation_checkpointing: bool) -> int:
    """What the graph of one forward holds for the backward pass."""
    step = SiameseStep(recogniser("resnet18"), LossConfig(), activation_checkpointing=activation_checkpointing).train()
    held = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        total = step(*batch())["total"]
    parameters = {parameter.untyped_storage().data_ptr() for parameter in step.parameters()}
    assert total.requires_grad
    return sum(size for place, size in held.items() if place not in parameters)


def test_activation_checkpointing_saves_memory():
    assert saved_bytes(True) < 0.6 * saved_bytes(False)
