"""Released MSL and CSRA files and plain timm classifiers, straight into ``predict``, ``serve`` and ``export``."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from msldata.errors import UserError
from msltrain.__main__ import app
from msltrain.evaluation.evaluate import evaluate
from msltrain.measures.thresholds import tune_thresholds
from msltrain.models.build import build_model
from msltrain.recipes import RECIPES
from msltrain.runs.other_checkpoints import Foreign
from msltrain.use import predict
from msltrain.use.photo_session import Studio
from msltrain.use.predict import Predictor
from msltrain.use.read_images import find_images, read_square
from tests.answers import predict_images
from tests.smallshards import CLASSES, photo, write_images

pytestmark = pytest.mark.usefixtures("ready_python")

KINDS = {"released": Foreign(recipe="smoke"), "plain": Foreign(model="test_vit")}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Weights files of both kinds, shards, photographs, and class names as text."""
    folder = tmp_path_factory.mktemp("any")
    torch.manual_seed(1)
    config = RECIPES["smoke"]()
    model = build_model(config.model, len(CLASSES), image_size=config.stream.image_size)
    # As released: torchvision-like names, one tensor per head.
    weights = {name.removeprefix("network."): value for name, value in model.backbone.state_dict().items()}
    heads = model.classifier.score.weight.detach().split(len(CLASSES))
    weights |= {f"classifier.multi_head.{n}.head.weight": head.clone() for n, head in enumerate(heads)}
    torch.save(weights, folder / "released.pth")
    torch.save(timm.create_model("test_vit", num_classes=len(CLASSES)).state_dict(), folder / "plain.pth")
    write_images(folder / "shards", [4, 3])
    (folder / "photos").mkdir()
    for number in range(2):
        (folder / "photos" / f"p{number}.jpg").write_bytes(photo(number))
    (folder / "classes.txt").write_text("\n".join(CLASSES) + "\n", encoding="utf-8-sig")
    return folder


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


def msl(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "200"})
    return result.exit_code, result.stdout, result.stderr


def options(place: Path, kind: str, classes: object) -> list[object]:
    foreign = KINDS[kind]
    how = ["--recipe", foreign.recipe] if foreign.recipe else ["--model", foreign.model]
    return ["--checkpoint", place / f"{kind}.pth", *how, "--classes", classes]


def assert_the_same(output: str, num_files: int) -> None:
    """What ``export`` prints of the comparison of each file with the network."""
    differences = re.findall(r"differ by at most (\S+)", output)
    assert len(differences) == num_files and all(float(one) <= 1e-4 for one in differences)


def test_predict_says_what_evaluate_says(place, kind, tmp_path):
    expected = evaluate(
        place / f"{kind}.pth", place / "shards", foreign=KINDS[kind], device="cpu", out=tmp_path / "held-out.parquet"
    )
    command = ["predict", place / "shards", *options(place, kind, place / "classes.txt"), "--top-k", 3]
    code, output, errors = msl(*command, "--device", "cpu", "--format", "json", "--cam", tmp_path / "cam")
    assert code == 0, errors
    lines = [json.loads(line) for line in output.splitlines()]
    for line, score_K in zip(lines, expected.score_NK, strict=True):
        assert [line["scores"][name] for name in CLASSES] == pytest.approx(score_K, abs=1e-5)
    with Image.open(lines[0]["overlay"]) as sheet:
        assert sheet.width > 4 * 130  # the photograph and three classes


def test_a_classifier_sees_what_timms_own_evaluation_shows_it(place, tmp_path, monkeypatch):
    """In `predict`, on a page and in an export; the photograph is no square, and the config crops and is bicubic."""
    file = tmp_path / "wide.jpg"
    file.write_bytes(photo(5, 500, 300))
    network = timm.create_model("test_vit", num_classes=len(CLASSES)).eval()
    network.load_state_dict(torch.load(place / "plain.pth"))
    config = timm.data.resolve_data_config({}, model=network)
    assert (config["interpolation"], config["crop_mode"]) == ("bicubic", "center") and config["crop_pct"] < 1
    with Image.open(file) as image, torch.inference_mode():
        pixels = timm.data.create_transform(**config)(image.convert("RGB"))
        expected = dict(zip(CLASSES, network(pixels[None]).sigmoid()[0].tolist()))
    predictor = Predictor(place / "plain.pth", CPU, foreign=KINDS["plain"], classes=CLASSES)
    [found] = predictor.predict(file)
    assert dict(found.scores) == pytest.approx(expected, abs=2e-5)
    squashed = predictor.answer([read_square(file, predictor.image_size)])[0].score_K
    assert max(abs(squashed - [expected[name] for name in CLASSES])) > 1e-3, "both would look right"

    studio = Studio([predictor])
    served = studio.add(find_images([file])[0])
    assert dict(zip(CLASSES, served["answers"][0]["scores"])) == pytest.approx(expected, abs=2e-5)
    assert served["width"] == served["height"] == predictor.image_size  # a hole is painted on what is seen
    other = Predictor(place / "released.pth", CPU, foreign=KINDS["released"], classes=CLASSES)
    with pytest.raises(UserError, match="serve them one at a time"):
        Studio([predictor, other])

    export = ["export", *options(place, "plain", place / "classes.txt"), "--out", tmp_path / "out"]
    code, _, errors = msl(*export, "--from-pixels")
    assert code == 2 and "--from-pixels squashes the whole photograph" in errors
    code, output, errors = msl(*export, "--format", "safetensors", "--format", "onnx")
    assert code == 0, errors
    assert_the_same(output, 2)
    [again] = Predictor(tmp_path / "out", CPU).predict(file)
    assert dict(again.scores) == pytest.approx(expected, abs=2e-5)
    card = (tmp_path / "out" / "README.md").read_text()
    for script in re.findall(r"```python\n(.*?)```", card, re.DOTALL):
        command = [
            sys.executable,
            "-c",
            "import sys; sys.path.insert(0, '.'); exec(sys.argv.pop(1))",
            script,
            str(file),
        ]
        process = subprocess.run(command, cwd=tmp_path / "out", capture_output=True, text=True)
        assert process.returncode == 0, process.stderr
        for name, score in expected.items():
            printed = re.search(rf"{name}'?:? (\d\.\d+)", process.stdout)
            assert printed and float(printed[1]) == pytest.approx(score, abs=1e-3), process.stdout
    network = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    again = timm.data.resolve_data_config({}, model=network)
    assert json.dumps(again) == json.dumps(config)


def test_thresholds_are_tuned_on_what_lies_beside_the_file(place, kind, monkeypatch):
    monkeypatch.setattr(predict, "tune_thresholds", lambda held_out: tune_thresholds(held_out, min_positives=1))
    predictions = place / "predictions" / f"{kind}-held-out.parquet"
    evaluate(place / f"{kind}.pth", place / "shards", foreign=KINDS[kind], device="cpu", out=predictions)
    predictor = Predictor(place / f"{kind}.pth", CPU, foreign=KINDS[kind], classes=CLASSES)
    assert "too few photographs to tune them on (7 photographs of " in predictor.threshold_origin


def test_serve_shows_scores_and_places(place, kind):
    predictor = Predictor(place / f"{kind}.pth", CPU, foreign=KINDS[kind], classes=CLASSES)
    [answer] = Studio([predictor]).add(find_images([place / "photos" / "p0.jpg"])[0])["answers"]
    expected = predict_images(
        place / f"{kind}.pth", [place / "photos" / "p0.jpg"], foreign=KINDS[kind], classes=CLASSES, device="cpu"
    )[0]
    assert dict(zip(CLASSES, answer["scores"])) == pytest.approx(dict(expected.scores), abs=1e-5)
    assert answer["places"]["rows"] == answer["places"]["columns"] > 1


def test_export_checks_each_file_and_says_what_is_known(place, kind, tmp_path):
    command = ["export", *options(place, kind, place / "shards"), "--out", tmp_path, "--images", place / "photos"]
    code, output, errors = msl(*command, "--format", "safetensors", "--format", "torch-export")
    assert code == 0, errors
    assert_the_same(output, 2)
    card = (tmp_path / "README.md").read_text()
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["classes"] == list(CLASSES)
    if kind == "plain":
        assert "how it was trained is not known" in card and "Masked" not in card and "CSRA" not in card
        network = timm.create_model(config["timm_model"], num_classes=3)
        network.load_state_dict(load_file(tmp_path / "model.safetensors"))
        torch.testing.assert_close(network.state_dict(), torch.load(place / "plain.pth", weights_only=True))
    else:
        assert "Masked Supervised Learning" in card and "CSRA, 2 heads" in card


def test_a_classifier_of_one_class_per_image_is_warned_of(place, tmp_path, caplog):
    """ImageNet's thousand: their order means something, a threshold on their scores does not."""
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "imagenet.pth")
    (tmp_path / "names.txt").write_text("".join(f"class {number}\n" for number in range(1000)))
    asked = ["predict", place / "photos" / "p0.jpg", "--model", "test_vit", "--device", "cpu", "--checkpoint"]
    for file, classes, times in (
        ("imagenet.pth", tmp_path / "names.txt", 1),
        (place / "plain.pth", place / "classes.txt", 0),
    ):
        caplog.clear()
        code, output, errors = msl(*asked, tmp_path / file, "--classes", classes)
        assert code == 0, errors
        assert caplog.text.count("chose one class per image (softmax)") == times
        assert len(re.findall(r"\d\.\d\d", output)) <= 5  # the highest, not half of ImageNet


def broken(place: Path, name: str, content: str | bytes) -> Path:
    file = place / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"classes": ""}, "a weights file does not name its classes; give --classes SHARDS"),
        ({"recipe": ""}, "give --recipe NAME"),
        ({"classes": "empty.txt"}, "empty.txt: names no classes"),
        ({"classes": "twice.txt"}, "these classes are named twice: a"),
        ({"classes": "binary.txt"}, "not UTF-8 text"),
        ({"classes": "two.txt"}, "its head has 3 classes, the data 2"),
        ({"classes": "nowhere"}, "nowhere"),
        ({"recipe": "no-such"}, "no recipe 'no-such'"),
        ({"checkpoint": "half.pth"}, "cannot be read as a weights file"),
        ({"checkpoint": "gone.pth"}, "gone.pth"),
    ],
)
@pytest.mark.parametrize("command", ["predict", "export", "serve"])
def test_mistakes(place, tmp_path, command, changes, words):
    for name, content in (("empty.txt", "\n \n"), ("twice.txt", "a\nb\na\n"), ("two.txt", "a\nb\n")):
        broken(tmp_path, name, content)
    broken(tmp_path, "binary.txt", b"\xff\xfe\x00\xd8")
    broken(tmp_path, "half.pth", (place / "released.pth").read_bytes()[:5000])
    chosen = {"checkpoint": str(place / "released.pth"), "recipe": "smoke", "classes": str(place / "classes.txt")}
    for name, value in changes.items():
        chosen[name] = str(tmp_path / value) if "." in value or value == "nowhere" else value
    rest = {"predict": [place / "photos"], "export": ["--out", tmp_path / "out"], "serve": ["--port", 0]}[command]
    code, _, errors = msl(command, *rest, *(word for name, value in chosen.items() for word in (f"--{name}", value)))
    assert code == 2 and words in " ".join(errors.split()) and "Traceback" not in errors
    assert not (tmp_path / "out").exists() and "error:" in errors
