"""Backbones of several timm families, and weights from files."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from msldata.errors import UserError
from msltrain.config import ModelConfig
from msltrain.models.backbone import Backbone
from msltrain.models.build import build_model
from msltrain.models.pretrained import load_weights_file


@pytest.mark.parametrize(
    ("backbone", "image_size", "num_features", "side"),
    [
        ("resnet18", 64, 512, 2),
        ("convnext_atto", 64, 320, 2),
        ("mobilenetv2_100", 64, 1280, 2),
        ("mobilenetv4_conv_small", 64, 960, 2),  # has a convolution behind its pooling
        ("efficientnet_b0", 96, 1280, 3),
        ("vit_tiny_patch16_224", 224, 192, 14),
        ("vit_tiny_patch16_224", 96, 192, 6),
        ("swin_tiny_patch4_window7_224", 224, 768, 7),
        ("eva02_tiny_patch14_224", 112, 192, 8),
    ],
)
def test_a_family_gives_a_map_and_trains(backbone: str, image_size: int, num_features: int, side: int):
    recogniser = build_model(ModelConfig(backbone=backbone, num_heads=2), 3, image_size=image_size)
    images = torch.randn(2, 3, image_size, image_size)
    feature = recogniser.backbone(images)
    assert feature.shape == (2, num_features, side, side)
    assert recogniser.backbone.num_features == num_features
    logit = recogniser(images)
    assert logit.shape == (2, 3)
    logit.square().sum().backward()
    # DDP waits for ever for the gradient of a trainable parameter that takes no part.
    assert [n for n, p in recogniser.named_parameters() if p.requires_grad and p.grad is None] == []


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


def test_a_norm_behind_the_pooling_is_applied_to_the_map():
    network = timm.create_model("convnext_atto", num_classes=0).eval()
    with torch.no_grad():
        network.head.norm.bias.fill_(3.0)
    feature = Backbone(network, name="convnext", image_size=64)(torch.randn(1, 3, 64, 64))
    torch.testing.assert_close(feature.mean(dim=1), torch.full((1, 2, 2), 3.0), atol=1e-4, rtol=0)


def test_mistakes_in_the_model_are_explained():
    with pytest.raises(UserError, match="timm has no model 'resnet999'; near it are"):
        build_model(ModelConfig(backbone="resnet999"), 3, image_size=64)
    with pytest.raises(UserError, match=r"no weights 'nothing' for 'resnet18'; it has: .*tv_in1k"):
        build_model(ModelConfig(backbone="resnet18", weights="nothing"), 3, image_size=64)
    with pytest.raises(UserError, match="only takes images of 224 pixels, not 128"):
        build_model(ModelConfig(backbone="mixer_s32_224"), 3, image_size=128)
    with pytest.raises(FileNotFoundError, match=r"missing\.pth: no such weights file"):
        build_model(ModelConfig(backbone="resnet18", weights="missing.pth"), 3, image_size=64)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_torchvision_resnet_file_loads_by_names(tmp_path: Path, suffix: str):
    import torchvision

    theirs = torchvision.models.resnet18(weights=None).eval()
    path = tmp_path / f"resnet18{suffix}"
    state = {f"module.{name}": tensor for name, tensor in theirs.state_dict().items()}
    if suffix == ".pth":
        torch.save({"state_dict": state, "epoch": 3}, path)
    else:
        save_file(state, path)
    recogniser = build_model(ModelConfig(backbone="resnet18", weights=str(path)), 3, image_size=64).eval()
    assert recogniser.weights is not None
    assert recogniser.weights.matched_by == "names"
    assert sorted(recogniser.weights.ignored) == ["fc.bias", "fc.weight"]
    assert recogniser.weights.missing == ()
    assert "100 backbone tensors loaded" in recogniser.weights.summary()
    images = torch.randn(1, 3, 64, 64)
    expected = torch.nn.Sequential(*list(theirs.children())[:-2])(images)
    torch.testing.assert_close(recogniser.backbone(images), expected)


def test_other_names_are_matched_by_order(tmp_path: Path):
    import torchvision

    theirs = torchvision.models.mobilenet_v2(weights=None).eval()
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    network = timm.create_model("mobilenetv2_100", num_classes=0).eval()
    report = load_weights_file(network, tmp_path / "weights.pth")
    assert report.matched_by == "order"
    assert report.ignored == ("classifier.1.weight", "classifier.1.bias")
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(network.forward_features(images), theirs.features(images))


def test_unfitting_files_are_refused(tmp_path: Path):
    import torchvision

    path = tmp_path / "weights.pth"
    torch.save(torchvision.models.resnet34(weights=None).state_dict(), path)
    resnet18 = timm.create_model("resnet18", num_classes=0)
    before = resnet18.conv1.weight.clone()
    with pytest.raises(UserError, match=r"tensors have another shape than the backbone's: layer1\.0\.conv1\.weight is"):
        build_model(ModelConfig(backbone="resnet50", weights=str(path)), 3, image_size=64)
    with pytest.raises(UserError, match=r"tensor 0 does not fit: conv1\.weight"):
        load_weights_file(timm.create_model("mobilenetv2_100", num_classes=0), path)
    torch.save({"stem.weight": torch.zeros(64, 3, 7, 7)}, path)
    with pytest.raises(UserError, match="holds 1 tensors and the backbone needs"):
        load_weights_file(resnet18, path)
    assert torch.equal(resnet18.conv1.weight, before)
    state = torchvision.models.resnet18(weights=None).state_dict()
    del state["layer4.1.bn2.weight"]
    torch.save(state, path)
    with pytest.raises(
        UserError, match=r"lacks 1 tensors that backbone 'resnet18' needs, such as layer4\.1\.bn2\.weight"
    ):
        build_model(ModelConfig(backbone="resnet18", weights=str(path)), 3, image_size=64)


class Exploit:
    def __reduce__(self):
        return (Path.touch, (Path("exploited"),))


def test_a_weights_file_cannot_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"conv1.weight": torch.zeros(1), "x": Exploit()}, "weights.pth")
    with pytest.raises(UserError, match="could run code"):
        load_weights_file(timm.create_model("resnet18", num_classes=0), "weights.pth")
    assert not Path("exploited").exists()


def test_a_damaged_file_is_named(tmp_path: Path):
    for name in ("weights.pth", "weights.safetensors"):
        (tmp_path / name).write_bytes(b"not weights at all")
        with pytest.raises(UserError, match=f"{name}: "):
            load_weights_file(timm.create_model("resnet18", num_classes=0), tmp_path / name)


@pytest.mark.real
def test_real_mobilenet_weights_give_torchvision_features(sample: Path):
    import torchvision

    path = sample / "weights" / "mobilenet_v2-imagenet-from-tflite-int8.pth"
    theirs = torchvision.models.mobilenet_v2(weights=None).eval()
    theirs.load_state_dict(torch.load(path, weights_only=True))
    recogniser = build_model(ModelConfig(backbone="mobilenetv2_100", weights=str(path)), 20, image_size=224).eval()
    images = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        torch.testing.assert_close(recogniser.backbone(images), theirs.features(images), atol=1e-4, rtol=1e-4)
