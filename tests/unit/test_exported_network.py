"""What an export holds: networks that others build from it give the same logits, and none is said to that does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor, nn

from msldata.contract.photograph import upright_rgb
from msldata.errors import UserError
from msltrain.config import ModelConfig, TrainConfig
from msltrain.models.build import build_model
from msltrain.models.timm_view import TimmView
from msltrain.runs.checkpoint import LoadedRecogniser
from msltrain.stream.config import StreamConfig
from msltrain.use import export, standalone
from msltrain.use.export import export_model
from msltrain.use.export_formats import ServedModel, _with_sorted_metadata, compare, preprocessing
from msltrain.use.read_images import given_pictures, read_photo
from msltrain.use.timm_folder import network_of, standalone_of, timm_folder

SIDE, CLASSES = 64, ("cat", "dog", "owl")
STREAM = StreamConfig(image_size=SIDE, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.5))
BACKBONES = ("test_resnet", "test_vit", "test_convnext", "test_efficientnet")


def loaded(backbone: str = "test_resnet", **model: Any) -> LoadedRecogniser:
    torch.manual_seed(0)
    config = TrainConfig(stream=STREAM, model=ModelConfig(backbone=backbone, **model))
    recogniser = build_model(config.model, len(CLASSES), image_size=SIDE).eval()
    with torch.no_grad():
        for name, parameter in recogniser.named_parameters():
            if "norm" in name or "classifier" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return LoadedRecogniser(recogniser=recogniser, classes=CLASSES, config=config, path=Path("run"), sha256="a" * 64)


MEAN = loaded(head="mean")
"""What no test changes."""


def images(num: int = 2) -> Tensor:
    return torch.randn(num, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def same(one: nn.Module, other: nn.Module) -> None:
    with torch.inference_mode():
        torch.testing.assert_close(one.eval()(images()), other(images()), rtol=1e-4, atol=1e-5)


HEADS: tuple[dict[str, Any], ...] = (
    {"head": "csra", "num_heads": 4, "attention_weight": 0.3},
    {"head": "mean"},
    {"head": "max"},
    {"head": "mldecoder", "decoder_width": 32, "decoder_hidden": 16, "num_queries": 2},
    {"head": "q2l", "decoder_width": 16, "decoder_hidden": 24},
)


@pytest.mark.parametrize("model", HEADS, ids=lambda model: model["head"])
@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_the_copied_code_builds_the_same_network(backbone: str, model: dict[str, Any]):
    one = loaded(backbone, **model)
    built = standalone_of(one)
    built.load_state_dict(one.recogniser.state_dict())
    same(built, one.recogniser)


@pytest.mark.parametrize("backbone", BACKBONES[2:])
def test_the_copied_code_knows_norms_behind_the_pooling_and_the_order_of_axes(backbone: str):
    one = loaded(backbone, head="mean")
    built = standalone_of(one)
    built.load_state_dict(one.recogniser.state_dict())
    same(built, one.recogniser)


@pytest.mark.parametrize("head", ["mean", "max", "csra"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_timm_builds_what_its_own_classifier_can_be(backbone: str, head: str):
    """A folder is timm's own only where its network gives the same logits: with a class token its head may not."""
    one = loaded(backbone, head=head)
    folder = timm_folder(one)
    if folder is None:
        assert head == "csra" or backbone != "test_resnet"
        return
    assert head != "csra"
    built = folder.build()
    built.load_state_dict(folder.tensors)
    same(built, one.recogniser)
    told = folder.config
    assert (told["architecture"], told["num_classes"], told["label_names"]) == (backbone, 3, list(CLASSES))
    assert told["model_args"]["global_pool"] == {"mean": "avg", "max": "max"}[head]
    pretrained = told["pretrained_cfg"]
    assert pretrained["input_size"] == [3, SIDE, SIDE] and pretrained["num_classes"] == 3
    assert (pretrained["mean"], pretrained["std"]) == (list(STREAM.mean), list(STREAM.std))
    assert (pretrained["crop_pct"], pretrained["crop_mode"]) == (1.0, "squash")
    assert pretrained["interpolation"] == "bilinear"
    assert any(name.startswith(f"{told['timm_classifier']}.") for name in folder.tensors)


def test_a_network_that_timm_computes_otherwise_is_no_folder_of_timms(monkeypatch: pytest.MonkeyPatch):
    one = loaded(head="mean")
    assert timm_folder(one) is not None
    one.recogniser.backbone.register_forward_hook(lambda module, given, answer: answer + 0.01)
    assert timm_folder(one) is None
    one.recogniser.backbone.register_forward_hook(lambda module, given, answer: answer * float("nan"))
    assert timm_folder(one) is None


VIEW = TimmView(side=SIDE, interpolation="bicubic", crop_pct=0.5, crop_mode="border")


def classifier() -> LoadedRecogniser:
    """A classifier of timm's own, which sees a part of the photograph."""
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=3).eval()
    config = TrainConfig(stream=STREAM, model=ModelConfig(backbone="test_resnet"))
    return LoadedRecogniser(
        recogniser=network, classes=CLASSES, config=config, path=Path("a.pth"), sha256="b" * 64, view=VIEW
    )


def test_a_classifier_of_timms_keeps_its_view():
    one = classifier()
    folder = timm_folder(one)
    assert folder is not None
    pretrained = folder.config["pretrained_cfg"]
    assert {name: pretrained[name] for name in ("interpolation", "crop_pct", "crop_mode")} == {
        "interpolation": "bicubic",
        "crop_pct": 0.5,
        "crop_mode": "border",
    }
    assert network_of(one)["timm_view"] == asdict(VIEW)
    assert preprocessing(one, from_pixels=False)["crop_mode"] == "border"


def test_the_side_of_a_view_is_that_of_the_input():
    config = {"input_size": (3, 96, 96), "interpolation": "bicubic", "crop_pct": 0.9, "crop_mode": "center"}
    assert TimmView.of(config) == TimmView(side=96, interpolation="bicubic", crop_pct=0.9, crop_mode="center")


def noisy(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("one", [MEAN, classifier()], ids=["squashed", "timm"])
@pytest.mark.parametrize("size", [(90, 50), (40, 130)])
def test_the_copied_code_sees_what_the_program_sees(one: LoadedRecogniser, size: tuple[int, int]):
    """Of a photograph that lies on its side too, by its EXIF orientation."""
    image = noisy(*size)
    image.getexif()[0x0112] = 6
    seen = read_photo(given_pictures(image)[0])
    square_1CSS = seen.square(SIDE) if one.view is None else one.view.square(seen.pixels())
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (STREAM.mean, STREAM.std))
    found = standalone.prepared(image, network_of(one))
    torch.testing.assert_close(found, (square_1CSS.float() / 255 - mean) / std)
    assert upright_rgb(image).size == size[::-1]


def test_the_copied_code_names_the_highest_score_first():
    class Fixed(nn.Module):
        def forward(self, image_BCSS: Tensor) -> Tensor:
            return torch.tensor([[0.0, 2.0, -1.0]])

    network = Fixed()
    network.content = {"classes": ["a", "b", "c"], "network": network_of(MEAN)}  # type: ignore[assignment]
    found = standalone.scores(network, noisy(20, 10))
    assert [name for name, _ in found] == ["b", "a", "c"] and found[1][1] == 0.5


def test_pixels_are_squashed_and_normalised_as_by_the_stream():
    served = ServedModel(MEAN, None, from_pixels=True, opset=18)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (STREAM.mean, STREAM.std))
    for size in ((150, 90), (64, 64), (40, 200), (128, 96)):
        image = noisy(*size)
        pixel_1CHW = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
        square_1CSS = read_photo(given_pictures(image)[0]).square(SIDE)
        found = served.squashed(pixel_1CHW)
        assert (found - square_1CSS).abs().max() <= 1  # rounding in other places moves a level at most
        assert ((found - square_1CSS) != 0).float().mean() < 0.01
        expected = (square_1CSS.float() / 255 - mean) / std
        torch.testing.assert_close(served.normalised(square_1CSS), expected)
    with torch.inference_mode():
        torch.testing.assert_close(served(square_1CSS), MEAN.recogniser(expected), rtol=1e-4, atol=1e-4)


def off_by(difference: float, *, alone: bool = False, scale: float = 1.0) -> tuple[ServedModel, Callable]:
    """A network with logits up to ``scale``, and a run that is off by so much, perhaps only on single images."""

    class Known(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return scale * torch.stack([torch.tanh(image.mean((1, 2, 3))), torch.ones(len(image))], dim=1)

    served = ServedModel(replace(MEAN, recogniser=Known()), None, from_pixels=False, opset=18).eval()

    def run(image: Tensor) -> Tensor:
        is_off = len(image) == 1 if alone else len(image) > 1
        return served(image) + (difference if is_off else 0)

    return served, run


@pytest.mark.parametrize("alone", [False, True])
def test_logits_may_differ_by_a_ten_thousandth_of_the_largest_or_of_one(alone: bool):
    for scale, allowed in ((0.01, 1e-4), (1.0, 1e-4), (50.0, 5e-3)):
        served, run = off_by(0.8 * allowed, alone=alone, scale=scale)
        assert compare("onnx", served, run, images(3)) == pytest.approx(0.8 * allowed, rel=0.02)
        for much in (1.3 * allowed, float("nan")):
            served, run = off_by(much, alone=alone, scale=scale)
            with pytest.raises(UserError, match="its logits differ"):
                compare("onnx", served, run, images(3))


def test_metadata_is_in_order_and_the_tensors_stay_where_they_are_read(tmp_path: Path):
    from safetensors.torch import save

    for extra in range(9):
        metadata = {"z": "x" * extra, "format": "pt", "a": "ü"}
        data = _with_sorted_metadata(save({"w": torch.arange(5.0), "v": torch.ones(3)}, metadata=metadata))
        size = int.from_bytes(data[:8], "little")
        assert size % 8 == 0 and list(json.loads(data[8 : 8 + size])["__metadata__"]) == ["a", "format", "z"]
        assert size == -(-len(data[8 : 8 + size].rstrip()) // 8) * 8  # no more than is needed
        (tmp_path / "one.safetensors").write_bytes(data)
        with safe_open(tmp_path / "one.safetensors", "pt") as file:
            assert file.get_tensor("w").tolist() == [0, 1, 2, 3, 4] and file.metadata() == metadata


@pytest.fixture
def exporting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Export a model, and what its folder then says."""

    def exporting(one: LoadedRecogniser, formats: tuple[str, ...] = ("safetensors",), **options: Any) -> dict[str, Any]:
        monkeypatch.setattr(export, "load_any", lambda *asked: one)
        export_model("run", tmp_path / "out", formats=formats, **options)  # type: ignore[arg-type]
        return json.loads((tmp_path / "out" / "config.json").read_text())

    return exporting


def test_an_export_says_what_it_is_and_is_written_again_for_the_same_model_alone(exporting, tmp_path: Path):
    one = replace(MEAN, thresholds=(0.25, 0.5, 0.75), threshold_origin="by hand")
    out = tmp_path / "out"
    told = exporting(one)
    assert told["classes"] == list(CLASSES) and told["weights_sha256"] == "a" * 64
    assert told["thresholds"] == {"cat": 0.25, "dog": 0.5, "owl": 0.75} and told["threshold_origin"] == "by hand"
    assert told["preprocessing"]["resize"] == [SIDE, SIDE] and told["preprocessing"]["std"] == list(STREAM.std)
    assert list(told["files"]) == ["model.safetensors"] and told["files"]["model.safetensors"]["num_images"] == 3
    assert told["model_sha256"] == told["files"]["model.safetensors"]["sha256"]
    (out / "notes.txt").write_text("mine")
    (out / "pictures").mkdir()
    (out / "README.md").write_text("of before")
    again = exporting(replace(one, thresholds=(0.1, 0.2, 0.3)))
    assert again["thresholds"]["owl"] == 0.3 and (out / "notes.txt").read_text() == "mine"
    assert (out / "pictures").is_dir() and (out / "README.md").read_text() != "of before"
    for other, said in (
        (replace(one, classes=("cat", "dog", "elk")), "other classes"),
        (replace(one, config=replace(one.config, stream=replace(STREAM, std=(0.1, 0.1, 0.1)))), "other input or head"),
        (replace(one, sha256="c" * 64), "of another model"),
    ):
        with pytest.raises(UserError, match=said):
            exporting(other)
    assert exporting(replace(one, sha256="c" * 64), overwrite=True)["weights_sha256"] == "c" * 64
    assert (out / "notes.txt").read_text() == "mine"


def test_a_graph_with_thresholds_of_before_is_not_left_beside_new_ones(exporting, tmp_path: Path):
    one = replace(MEAN, thresholds=(0.25, 0.5, 0.75), threshold_origin="by hand")
    told = exporting(one)
    config = tmp_path / "out" / "config.json"
    for name, is_refused in (("model.pt2", False), ("model.onnx", True)):
        entry = {**told["files"]["model.safetensors"], "file": name}
        config.write_text(json.dumps({**told, "files": {name: entry, **told["files"]}}))
        (tmp_path / "out" / name).write_bytes(b"a graph")
        assert exporting(one)["files"][name] == entry and (tmp_path / "out" / name).read_bytes() == b"a graph"
        newer = replace(one, thresholds=(0.25, 0.5, 0.8))
        if is_refused:
            with pytest.raises(UserError, match="holds thresholds of before"):
                exporting(newer)
        else:
            assert exporting(newer)["thresholds"]["owl"] == 0.8


def test_weights_take_the_place_of_those_that_were_there(exporting, tmp_path: Path):
    one = replace(MEAN, threshold_origin="by hand", thresholds=(0.5, 0.5, 0.5))
    told = exporting(one)
    content = {**told, "files": {"model.safetensors": {**told["files"]["model.safetensors"], "sha256": "d" * 64}}}
    (tmp_path / "out" / "config.json").write_text(json.dumps(content))
    assert exporting(one)["files"] == told["files"]
