"""Exports: each format gives the original's logits, for any batch size, and says what it wants."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, save

from msldata.errors import UserError
from msltrain.config import ModelConfig, TrainConfig
from msltrain.evaluation.evaluate import evaluate
from msltrain.measures.bootstrap import summary_intervals
from msltrain.measures.metrics import compute_metrics
from msltrain.runs.checkpoint import load_recogniser
from msltrain.stream.config import StreamConfig
from msltrain.use import export_formats
from msltrain.use.export import export_model
from msltrain.use.export_formats import FILES, FORMATS
from msltrain.use.predict import read_square
from msltrain.use.read_images import find_images, read_pixels
from tests.answers import predict_images
from tests.integration.test_evaluate import write_checkpoint
from tests.smallshards import CLASSES, photo, write_images


def make_run(folder: Path, backbone: str, num_heads: int = 2) -> Path:
    stream = StreamConfig(image_size=64, batch_size=4, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    model = ModelConfig(backbone=backbone, num_heads=num_heads, attention_weight=0.4)
    return write_checkpoint(folder / "run", CLASSES, config=TrainConfig(stream=stream, model=model))


@pytest.fixture
def photos(tmp_path) -> list[Path]:
    files = [tmp_path / f"{n}.jpg" for n in range(3)]
    for n, file in enumerate(files):
        file.write_bytes(photo(n))
    return files


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit", "mobilenetv2_035"])
def test_every_format_is_within_a_ten_thousandth_of_eager(tmp_path, photos, backbone):
    run = make_run(tmp_path, backbone)
    done = export_model(run, tmp_path / "out", images=photos)
    assert [one.file for one in done] == [FILES[name] for name in FORMATS]
    assert all(one.max_difference <= 1e-4 and one.num_images == 3 for one in done)

    card = (tmp_path / "out" / "README.md").read_text()
    for one in done:
        data = (tmp_path / "out" / one.file).read_bytes()
        [row] = [line for line in card.splitlines() if line.startswith(f"| `{one.file}` |")]
        assert row.endswith(f"| `{hashlib.sha256(data).hexdigest()}` |")

    # Once more from the files, with a batch size that was never exported.
    recogniser = load_recogniser(run).recogniser
    torch.manual_seed(0)
    image = torch.randn(5, 3, 64, 64)
    with torch.inference_mode():
        expected = recogniser(image).numpy()
    assert np.ptp(expected, axis=0).min() > 1e-3, "the images must differ for this to mean anything"
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(["logit"], {"image": image.numpy()})[0], expected, atol=1e-4)
    with torch.no_grad():
        program = torch.export.load(tmp_path / "out" / "model.pt2").module()
        np.testing.assert_allclose(program(image).numpy(), expected, atol=1e-4)
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert json.loads(file.metadata()["classes"]) == list(CLASSES)
        assert set(file.keys()) == set(recogniser.state_dict())


def test_safetensors_are_the_same_bytes_every_time():
    tensors = {"b": torch.arange(3.0), "a": torch.ones(2, 2)}

    def written() -> bytes:
        return save(tensors, metadata={f"{number}": "ä" * number for number in range(6)})

    assert len({written() for _ in range(20)}) > 1, "the library sorts now; the sorting here can go"
    [data] = {export_formats._with_sorted_metadata(written()) for _ in range(20)}
    assert all(torch.equal(load(data)[name], tensor) for name, tensor in tensors.items())


@pytest.mark.slow
@pytest.mark.parametrize(
    "backbone", ["resnet50", "vit_small_patch16_224", "mobilenetv2_100", "swin_tiny_patch4_window7_224"]
)
def test_networks_of_a_useful_size(tmp_path, backbone):
    """``pytest -m slow tests/integration/test_export.py``: minutes on two cores."""
    stream, model = StreamConfig(image_size=224, batch_size=4), ModelConfig(backbone=backbone, num_heads=6)
    run = write_checkpoint(tmp_path / "run", CLASSES, config=TrainConfig(stream=stream, model=model))
    assert all(one.max_difference <= 1e-4 for one in export_model(run, tmp_path / "out"))


@pytest.mark.slow
@pytest.mark.parametrize("from_pixels", [False, True])
def test_what_a_graph_cannot_hold_is_one_line(tmp_path, from_pixels):
    """MaxViT: every format gives the original's logits, or is named with its reason."""
    run, failed = make_run(tmp_path, "test_maxvit"), []
    done = export_model(run, tmp_path / "out", from_pixels=from_pixels, on_failed=failed.append)
    assert len(done) + len(failed) == len(FORMATS) and all(one.max_difference <= 1e-4 for one in done)
    assert all("\n" not in reason and len(reason) < 400 and "Next steps" not in reason for reason in failed)


def test_graphs_that_take_pixels(tmp_path, photos):
    run = make_run(tmp_path, "test_resnet")
    export_model(run, tmp_path / "out", formats=["onnx"], from_pixels=True, images=photos)
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    pixels = torch.cat([read_square(file, 64) for file in photos]).contiguous().numpy()
    logit = session.run(["logit"], {"image": pixels})[0]
    for row, predicted in zip(1 / (1 + np.exp(-logit)), predict_images(run, photos, device="cpu"), strict=True):
        assert dict(predicted.scores) == pytest.approx(dict(zip(CLASSES, row)), abs=1e-4)
    for file, row in zip(photos, logit):  # as they are, and squashed in the graph
        whole_1CHW = read_pixels(find_images([file])[0]).transpose(2, 0, 1)[None]
        [found] = session.run(["logit"], {"image": np.ascontiguousarray(whole_1CHW)})[0]
        np.testing.assert_allclose(found, row, atol=1e-3)
    assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    stated = json.loads(session.get_modelmeta().custom_metadata_map["preprocessing"])
    assert stated["dtype"] == "uint8" and "squashes" in stated["resize"] and "mean" not in stated
    assert "model.onnx take uint8 pixels of any height and width" in (tmp_path / "out" / "README.md").read_text()


def test_the_model_card_says_what_it_is_and_how_well_it_did(tmp_path):
    run = make_run(tmp_path, "test_resnet")
    write_images(tmp_path / "shards", (11,))
    found = evaluate(run, tmp_path / "shards", out=run / "predictions" / "small.parquet", device="cpu")
    metrics = compute_metrics(found)
    (run / "predictions" / "broken.parquet").write_bytes(b"not one")
    other = make_run(tmp_path / "other", "test_resnet", num_heads=1)
    evaluate(other, tmp_path / "shards", out=run / "predictions" / "other.parquet", device="cpu")
    export_model(run, tmp_path / "out", formats=["safetensors"])
    card = (tmp_path / "out" / "README.md").read_text()
    interval = summary_intervals(found)["mAP"]
    brackets = f"({100 * interval.low:.1f} to {100 * interval.high:.1f})"
    assert f"| small/train (11 images) | {100 * metrics.mAP:.1f} {brackets} |" in card
    assert "In brackets, the 95 % interval over the images." in card
    assert card.count("| small/train") == 1, "results of other weights are not this model's"
    assert "small/train: only 11 photographs, and " in card
    assert "bird, boat, cat" in card and "mean (0.4, 0.5, 0.6)" in card and "2 heads, λ = 0.4" in card
    assert load_recogniser(run).sha256 in card
    assert json.loads((tmp_path / "out" / "config.json").read_text())["classes"] == list(CLASSES)


@pytest.mark.parametrize("wrong_for", [1, 3])
@pytest.mark.parametrize("wrong", [0.01, float("nan")])
def test_a_file_is_compared_for_each_image_alone_and_for_all_together(wrong_for: int, wrong: float):
    """A graph can be right for the batch that it was traced with and wrong for a single image, or the reverse."""
    recogniser = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    served = SimpleNamespace(recogniser=recogniser, from_pixels=True)
    image_BCHW = torch.rand(3, 3, 8, 8)

    def run(part_BCHW: torch.Tensor) -> torch.Tensor:
        return recogniser(part_BCHW) + (wrong if len(part_BCHW) == wrong_for else 0)

    assert export_formats.compare("safetensors", served, recogniser, image_BCHW) < 1e-6
    with pytest.raises(UserError, match="its logits differ from the model's"):
        export_formats.compare("safetensors", served, run, image_BCHW)


def test_a_file_that_differs_is_not_written(tmp_path, monkeypatch):
    run = make_run(tmp_path, "test_resnet")
    honest = export_formats.WRITERS["safetensors"]

    for spoil in (lambda logit: logit + 1e-2, lambda logit: logit * np.nan):

        def wrong(*arguments, spoil=spoil):
            data, model = honest(*arguments)
            return data, lambda image: spoil(model(image))

        monkeypatch.setitem(export_formats.WRITERS, "safetensors", wrong)
        with pytest.raises(UserError, match=r"model\.safetensors: its logits differ"):
            export_model(run, tmp_path / "out", formats=["safetensors"])
    assert not (tmp_path / "out" / "model.safetensors").exists()
