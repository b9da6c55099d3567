"""Every timm family that the paper or its rivals use: the map it gives, and one step of training."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from msldata.errors import UserError
from msltrain.config import LossConfig, ModelConfig, OptimConfig
from msltrain.models.backbone import Backbone
from msltrain.models.build import build_model
from msltrain.recipes import RECIPES, backbones, recipe
from msltrain.training.optim import build_optimizer, set_learning_rate
from msltrain.training.siamese import SiameseStep

FAMILIES = [
    ("resnet18", 64, 512, 2),
    ("convnext_atto", 64, 320, 2),
    ("convnextv2_atto", 64, 320, 2),
    ("mobilenetv2_100", 64, 1280, 2),
    ("mobilenetv4_conv_small", 64, 960, 2),  # has a convolution behind its pooling
    ("mobilenetv4_hybrid_medium", 64, 960, 2),
    ("efficientnet_b0", 96, 1280, 3),
    ("tf_efficientnetv2_b0", 64, 1280, 2),
    ("regnety_002", 64, 368, 2),
    ("tresnet_m", 64, 2048, 2),
    ("caformer_s18", 64, 512, 2),
    ("vit_tiny_patch16_224", 224, 192, 14),
    ("vit_tiny_patch16_224", 96, 192, 6),
    ("deit3_small_patch16_224", 64, 384, 4),
    ("vit_small_patch14_reg4_dinov2", 56, 384, 4),  # register tokens
    ("eva02_tiny_patch14_224", 112, 192, 8),
    ("swin_tiny_patch4_window7_224", 64, 768, 2),
    ("swinv2_tiny_window8_256", 64, 768, 2),
]


@pytest.mark.parametrize(("backbone", "image_size", "num_features", "side"), FAMILIES)
def test_a_family_gives_a_map_and_trains_a_step(backbone: str, image_size: int, num_features: int, side: int):
    torch.manual_seed(0)
    recogniser = build_model(ModelConfig(backbone=backbone, num_heads=2), 3, image_size=image_size)
    images = torch.randn(2, 3, image_size, image_size)
    with torch.no_grad():
        feature = recogniser.eval().backbone(images)
    assert feature.shape == (2, num_features, side, side)
    assert recogniser.backbone.num_features == num_features
    optimizer = build_optimizer(OptimConfig(optimizer="adamw", weight_decay=0.0), recogniser)
    set_learning_rate(optimizer, 1e-3)
    step = SiameseStep(recogniser, LossConfig()).train()
    keep_masks = (torch.rand(2, 1, image_size, image_size) > 0.5).float()
    losses = step(images, keep_masks, torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]]))
    losses["total"].backward()
    # DDP waits for ever for the gradient of a trainable parameter that takes no part.
    assert [n for n, p in recogniser.named_parameters() if p.requires_grad and p.grad is None] == []
    head = recogniser.classifier.score.weight.detach().clone()
    optimizer.step()
    assert torch.isfinite(losses["total"])
    assert not torch.equal(recogniser.classifier.score.weight, head)
    assert all(torch.isfinite(parameter).all() for parameter in recogniser.parameters())


class Stub(nn.Module):
    """Gives what it is told as features."""

    def __init__(self, *shape: int):
        super().__init__()
        self.default_cfg = {"input_size": (3, 32, 32)}
        self.shape = shape
        self.scale = nn.Parameter(torch.ones(()))

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        return images.new_zeros(len(images), *self.shape) * self.scale


@pytest.mark.parametrize("shape", [(8,), (7, 8), (8, 4, 2), (2, 2, 2, 2)])
def test_an_unknown_kind_of_network_says_what_is_needed(shape: tuple[int, ...]):
    with pytest.raises(UserError, match=r"'stub' cannot be used: .* B,D,H,W maps, .* or a square grid of B,N,D tokens"):
        Backbone(Stub(*shape), name="stub", image_size=32)
    assert Backbone(Stub(8, 4, 4), name="stub", image_size=32).num_features == 8
    assert Backbone(Stub(16, 8), name="stub", image_size=32).num_features == 8


def test_networks_of_the_paper_are_in_timm():
    presets = [
        backbones.resnet101(),
        backbones.resnet_cut(),
        backbones.vit_l16(),
        backbones.vit_b16(),
        backbones.mae_vit_l16(),
    ]
    for model in [*presets, *(recipe(name).model for name in RECIPES)]:
        assert timm.is_model(model.backbone)
        if model.weights:
            assert f"{model.backbone}.{model.weights}" in timm.list_pretrained(f"{model.backbone}.*")


@pytest.mark.parametrize("head", ["mean", "max"])
def test_plain_heads_pool_then_classify(head):
    recogniser = build_model(ModelConfig(backbone="resnet18", head=head), 3, image_size=64).eval()
    images = torch.randn(2, 3, 64, 64)
    feature = recogniser.backbone(images)
    pooled = feature.mean(dim=(2, 3)) if head == "mean" else feature.amax(dim=(2, 3))
    linear = recogniser.classifier.linear
    torch.testing.assert_close(recogniser(images), pooled @ linear.weight.T + linear.bias)


def test_vit_applies_the_final_norm_and_drops_the_class_token():
    network = timm.create_model("vit_tiny_patch16_224", num_classes=0).eval()
    images = torch.randn(1, 3, 224, 224)
    tokens = network.forward_features(images)
    feature = Backbone(network, name="vit", image_size=224)(images)
    torch.testing.assert_close(feature[0, :, 3, 5], tokens[0, 1 + 3 * 14 + 5])
    torch.testing.assert_close(feature.mean(dim=1), torch.zeros(1, 14, 14), atol=1e-5, rtol=0)  # LayerNorm's mark


def test_channels_behind_positions_come_to_the_front():
    network = timm.create_model("swin_tiny_patch4_window7_224", num_classes=0)
    images = torch.randn(1, 3, 64, 64)
    feature = Backbone(network, name="swin", image_size=64).eval()(images)
    torch.testing.assert_close(feature[0, :, 0, 1], network.forward_features(images)[0, 0, 1])


def test_a_norm_behind_the_pooling_is_applied_to_the_map():
    network = timm.create_model("convnext_atto", num_classes=0).eval()
    with torch.no_grad():
        network.head.norm.bias.fill_(3.0)
    feature = Backbone(network, name="convnext", image_size=64)(torch.randn(1, 3, 64, 64))
    torch.testing.assert_close(feature.mean(dim=1), torch.full((1, 2, 2), 3.0), atol=1e-4, rtol=0)
