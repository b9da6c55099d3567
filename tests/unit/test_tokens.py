"""Leaving hidden patches out of the masked branch of a vision transformer."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from msldata.errors import UserError
from msltrain.config import LossConfig, ModelConfig
from msltrain.models.build import build_model
from msltrain.models.tokens import visible_patches
from msltrain.training.siamese import SiameseStep

DROPPING = LossConfig(drop_hidden_tokens=0.25)
TRANSFORMERS = [("vit_tiny_patch16_224", 128), ("deit3_small_patch16_224", 128), ("eva02_tiny_patch14_224", 112)]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def recogniser(backbone: str, image_size: int, head: str = "csra") -> nn.Module:
    return build_model(ModelConfig(backbone=backbone, num_heads=2, head=head), 5, image_size=image_size).eval()


def test_each_image_keeps_as_many_patches_as_the_one_that_needs_most():
    keep_mask = torch.zeros(2, 1, 64, 64)
    keep_mask[0, 0, :32, :40] = 1  # 4 rows of patches of 8 pixels, 5 columns
    keep_mask[1, 0, 60:, 60:] = 1  # a quarter of the last patch
    patches = visible_patches(keep_mask, (8, 8), 0.5)
    assert patches is not None and patches.shape == (2, 24)  # 20, rounded up to a multiple of 8
    needed = {8 * row + column for row in range(4) for column in range(5)}
    assert needed <= set(patches[0].tolist())
    assert 63 in patches[1].tolist()
    assert (patches.diff(dim=1) > 0).all()


def test_the_threshold_is_a_share_of_a_patch():
    keep_mask = torch.zeros(1, 1, 64, 64)
    keep_mask[0, 0, :8, :2] = 1  # a quarter of patch 0
    for row in range(8):  # half of the 8 patches on the diagonal but the first
        keep_mask[0, 0, 8 * row : 8 * row + 8, 8 * row : 8 * row + 4] = 1
    keep_mask[0, 0, :8, 2:8] = 0
    assert visible_patches(keep_mask, (8, 8), 0.5).shape == (1, 8)
    keep_mask[0, 0, :, 32:] = 1
    assert visible_patches(keep_mask, (8, 8), 0.5).shape == (1, 40)  # 3 + 32, rounded up
    assert visible_patches(torch.ones(1, 1, 64, 64), (8, 8), 0.5) is None
    assert visible_patches(torch.zeros(1, 1, 64, 64), (8, 8), 0.5).shape == (1, 8)  # a network needs something to see


@pytest.mark.parametrize(("backbone", "image_size"), TRANSFORMERS)
def test_with_nothing_hidden_it_is_the_ordinary_branch(backbone: str, image_size: int):
    dropping = recogniser(backbone, image_size)
    ordinary = copy.deepcopy(dropping)
    images, targets = torch.randn(2, 3, image_size, image_size), (torch.rand(2, 5) > 0.5).float()
    keep_masks = torch.ones(2, 1, image_size, image_size)
    found = SiameseStep(dropping, DROPPING)(images, keep_masks, targets)
    expected = SiameseStep(ordinary, LossConfig())(images, keep_masks, targets)
    assert {name: loss.item() for name, loss in found.items()} == {name: loss.item() for name, loss in expected.items()}
    assert list(dropping.state_dict()) == list(ordinary.state_dict())


@pytest.mark.parametrize(("backbone", "image_size"), TRANSFORMERS)
@pytest.mark.parametrize("head", ["csra", "max"])
def test_only_kept_patches_are_computed_and_pooled(backbone: str, image_size: int, head: str):
    """Against the blocks run by hand on those tokens, EVA's with the rotations of their places."""
    network = recogniser(backbone, image_size, head)
    ordinary = copy.deepcopy(network)
    images, targets = torch.randn(2, 3, image_size, image_size), (torch.rand(2, 5) > 0.5).float()
    keep_masks = torch.zeros(2, 1, image_size, image_size)
    keep_masks[0, :, : image_size // 2] = 1
    keep_masks[1, :, :, : image_size // 4] = 1
    lengths = []
    network.backbone.network.blocks[-1].register_forward_hook(lambda _, args, __: lengths.append(args[0].shape[1]))
    found = SiameseStep(network, DROPPING)(images, keep_masks, targets)
    assert lengths == [1 + 64, 1 + 32]

    vit = ordinary.backbone.network
    patches = visible_patches(keep_masks, (8, 8), 0.25)
    tokens = vit._pos_embed(vit.patch_embed(images * keep_masks))
    rotation = None
    if isinstance(tokens, tuple):
        tokens, rotation = tokens
    logits = []
    for number, kept in enumerate(patches):
        sequence = torch.cat((tokens[number, :1], tokens[number, 1:][kept]))[None]
        for block in vit.blocks:
            sequence = block(sequence) if rotation is None else block(sequence, rope=rotation[kept])
        feature = vit.norm(sequence) if isinstance(vit.norm, nn.LayerNorm) else vit.fc_norm(sequence)
        logits.append(ordinary.classifier(feature[0, 1:].T.reshape(1, -1, 4, 8)))
    expected = F.binary_cross_entropy_with_logits(torch.cat(logits), targets)
    torch.testing.assert_close(found["masked"], expected, atol=1e-6, rtol=1e-5)


def test_the_whole_branch_and_inference_see_every_patch():
    network = recogniser("vit_tiny_patch16_224", 128)
    images = torch.randn(2, 3, 128, 128)
    before = network(images)
    step = SiameseStep(network, DROPPING)
    keep_masks = torch.zeros(2, 1, 128, 128)
    keep_masks[:, :, :32] = 1
    losses = step(images, keep_masks, torch.zeros(2, 5))
    torch.testing.assert_close(losses["clean"], F.softplus(before).mean(), atol=0, rtol=1e-6)
    assert torch.equal(network(images), before)


def test_it_is_for_transformers_and_two_passes():
    with pytest.raises(UserError, match=r"drop_hidden_tokens needs a ViT or EVA, .* backbone 'resnet18' is a ResNet"):
        SiameseStep(recogniser("resnet18", 64), DROPPING)
    with pytest.raises(UserError, match=r"loss\.drop_hidden_tokens: 0\.25 is not 0, as fused branches need"):
        LossConfig(branches="fused", drop_hidden_tokens=0.25)
    baseline = LossConfig(clean_weight=1, masked_weight=0, consistency_weight=0, drop_hidden_tokens=0.25)
    SiameseStep(recogniser("resnet18", 64), baseline)(torch.randn(2, 3, 64, 64), None, torch.zeros(2, 5))
