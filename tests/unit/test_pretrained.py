"""Weights from files and from the hub, and mistakes in what was asked for."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from msldata.errors import UserError
from msltrain.config import ModelConfig
from msltrain.models.build import build_model
from msltrain.models.pretrained import WeightsReport, create_pretrained, fill_network, read_source


def load_weights_file(network: torch.nn.Module, path: str | Path) -> WeightsReport:
    return fill_network(network, read_source(str(path)), str(path))


def test_mistakes_in_the_model_are_explained(tmp_path: Path):
    with pytest.raises(UserError, match="timm has no model 'resnet999'; similar names: "):
        build_model(ModelConfig(backbone="resnet999"), 3, image_size=64)
    with pytest.raises(UserError, match=r"no weights 'nothing' for 'resnet18'; it has: .*tv_in1k"):
        build_model(ModelConfig(backbone="resnet18", weights="nothing"), 3, image_size=64)
    with pytest.raises(UserError, match="only takes images of 224 pixels, not 128"):
        build_model(ModelConfig(backbone="mixer_s32_224"), 3, image_size=128)
    with pytest.raises(FileNotFoundError, match=r"missing\.pth: no such weights file"):
        build_model(ModelConfig(backbone="resnet18", weights="missing.pth"), 3, image_size=64)
    with pytest.raises(FileNotFoundError, match="a folder, not a weights file"):
        build_model(ModelConfig(backbone="resnet18", weights=str(tmp_path)), 3, image_size=64)


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
    assert "(100 tensors" in recogniser.weights.summary()
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
    assert "have other names than the network's; they were taken in the order" in report.warning()
    assert dataclasses.replace(report, matched_by="names").warning() == ""
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
    for name, reason in (("weights.pth", "not a weights file"), ("weights.safetensors", "cannot be read")):
        (tmp_path / name).write_bytes(b"not weights at all")
        with pytest.raises(UserError, match=f"{name}: {reason}"):
            load_weights_file(timm.create_model("resnet18", num_classes=0), tmp_path / name)


def test_weights_from_the_hub(monkeypatch: pytest.MonkeyPatch):
    asked = []

    def fetched(name: str, weights_only: bool) -> dict[str, torch.Tensor]:
        asked.append((name, weights_only))
        if name != "someone/resnet18":
            raise OSError("404 Client Error\nmore")
        return theirs.state_dict()

    theirs = timm.create_model("resnet18", num_classes=7).eval()
    monkeypatch.setattr(timm.models, "load_state_dict_from_hf", fetched)
    config = ModelConfig(backbone="resnet18", weights="hf-hub:someone/resnet18")
    recogniser = build_model(config, 3, image_size=64).eval()
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(recogniser.backbone(images), theirs.forward_features(images))
    assert asked == [("someone/resnet18", True)]
    assert recogniser.weights is not None and recogniser.weights.ignored == ("fc.weight", "fc.bias")
    with pytest.raises(
        UserError, match=r"hf-hub:someone/else: cannot be fetched as a weights file \(404 Client Error\)"
    ):
        build_model(ModelConfig(backbone="resnet18", weights="hf-hub:someone/else"), 3, image_size=64)


def test_a_connection_that_breaks_is_one_message(monkeypatch: pytest.MonkeyPatch):
    """The hub's client has errors of its own for it, which are neither OSError nor RuntimeError."""

    class RemoteProtocolError(Exception):
        pass

    def broken(name: str, **_: object) -> None:
        raise RemoteProtocolError("Server disconnected\nmore")

    monkeypatch.setattr(timm, "create_model", broken)
    with pytest.raises(UserError, match=r"resnet18\.a1_in1k: the weights could not be fetched \(Server disconnected\)"):
        create_pretrained("resnet18", "a1_in1k")


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
