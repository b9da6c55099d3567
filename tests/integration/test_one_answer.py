"""One photograph, one answer: a file, a shard, `serve`, ONNX and the card's lines, on real and odd photographs."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from msldata.build.image import Resize, prepare_image
from msldata.build.shards import build_shards, plan_build
from msldata.contract.records import VOC_CLASSES
from msldata.errors import BadInputError
from msldata.sources.kinds import open_source
from msldata.storage import open_storage
from msltrain.config import ModelConfig, TrainConfig
from msltrain.stream.config import StreamConfig
from msltrain.use.export import export_model
from msltrain.use.photo_session import Studio
from msltrain.use.predict import Predictor, read_square
from msltrain.use.read_images import find_images, read_pixels
from msltrain.use.serve import StudioServer
from tests.answers import predict_images
from tests.integration.test_evaluate import write_checkpoint
from tests.oddimages import odd_images, refused_images

pytestmark = pytest.mark.real
NUM_PHOTOS, SIDE = 60, 128
WITHIN = 2e-3
REENCODED = 0.06
"""A build stores what is no plain JPEG as one of quality 95; its blocks are other pixels, by a level or two."""
SMALLER = 0.25
CMYK = 0.01
"""Two libraries' colours, a level apart."""


@pytest.fixture(scope="module")
def place(sample: Path, tmp_path_factory) -> Path:
    """The photographs as files, as shards (their own bytes, and resized), and a network with ImageNet's weights."""
    folder = tmp_path_factory.mktemp("answers")
    (folder / "files").mkdir()
    for file in sorted((sample / "VOCdevkit/VOC2007/JPEGImages").glob("*.jpg"))[:NUM_PHOTOS]:
        (folder / "files" / file.name).write_bytes(file.read_bytes())
    for name, (data, _) in odd_images().items():
        (folder / "files" / f"{name.replace('.', '-')}{Path(name).suffix}").write_bytes(data)
    (folder / "refused").mkdir()
    for name, (data, _) in refused_images().items():
        (folder / "refused" / name).write_bytes(data)
    rows = "".join(f"files/{file.name},cat\n" for file in sorted((folder / "files").iterdir()))
    (folder / "t.csv").write_text(f"image,labels\n{rows}")
    for out, resize in (("shards", None), ("resized", Resize("shorter", 300))):
        plan = plan_build(open_source("table", folder / "t.csv", "all"), resize=resize)
        build_shards(plan, open_storage(folder / out), num_workers=1)
    weights = sample / "weights/mobilenet_v2-imagenet-from-tflite-int8.pth"
    # The head is random; with its factor, scores cover all of 0 to 1, so that other pixels would give others.
    model = ModelConfig(backbone="mobilenetv2_100", weights=str(weights), attention_weight=1.0)
    config = TrainConfig(stream=StreamConfig(image_size=SIDE, batch_size=4), model=model)
    write_checkpoint(folder / "run", VOC_CLASSES, config=config)
    export_model(folder / "run", folder / "export", formats=["safetensors", "onnx"])
    export_model(folder / "run", folder / "pixels", formats=["onnx"], from_pixels=True)
    return folder


def answers(place: Path, *inputs: Path) -> dict[str, np.ndarray]:
    """Name without folder and suffix → score_K."""
    found = predict_images(place / "run", inputs, top_k=None)
    assert not [image.error for image in found if image.error]
    return {name_of(image.file): np.array([dict(image.scores)[name] for name in VOC_CLASSES]) for image in found}


def name_of(file: str) -> str:
    return re.split(r"[/#]", file)[-1].split(".")[0].removeprefix("files_")


@pytest.fixture(scope="module")
def expected(place: Path) -> dict[str, np.ndarray]:
    """What `predict` says of the files."""
    found = answers(place, place / "files")
    assert len(found) == NUM_PHOTOS + len(odd_images())
    assert np.array(list(found.values())).std(axis=0).min() > 0.05  # the network is not blind
    return found


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], within: float = WITHIN) -> None:
    assert found.keys() == expected.keys()
    apart = {name: np.abs(found[name] - expected[name]).max() for name in expected}
    assert not {name: round(float(value), 4) for name, value in apart.items() if value > within}


def is_plain(name: str) -> bool:
    """Whether a build stores the file's own bytes: what it does not, it turns upright and encodes once more."""
    return name.isdecimal() or name in ("plain-jpg", "progressive-jpg", "fine-jpg", "tail-jpg", "grey-jpg", "exif1-jpg")


def test_shards_of_the_files_own_bytes(place: Path, expected: dict[str, np.ndarray]):
    found = answers(place, place / "shards")
    assert_same(
        {name: found[name] for name in found if is_plain(name)}, {n: expected[n] for n in expected if is_plain(n)}
    )
    assert_same(found, expected, REENCODED)


@pytest.mark.parametrize("shards", ["shards", "resized"])
def test_a_stored_photograph_and_the_same_bytes_as_a_file(place: Path, shards: str, tmp_path: Path):
    for file in (place / shards).glob("*.tar"):
        with tarfile.open(file) as tar:
            tar.extractall(tmp_path, [member for member in tar if not member.name.endswith((".json", ".npy"))])
    assert_same(answers(place, place / shards), answers(place, tmp_path))


def test_resized_shards_show_the_same_photographs(place: Path, expected: dict[str, np.ndarray]):
    assert_same(answers(place, place / "resized"), expected, SMALLER)


def test_serve(place: Path, expected: dict[str, np.ndarray]):
    studio = Studio([Predictor(place / "run", torch.device("cpu"))])
    found = {}
    with StudioServer(studio, "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=60)
        for file in (place / "files").iterdir():
            connection.request("POST", "/api/photos", file.read_bytes())
            found[name_of(file.name)] = np.array(json.loads(connection.getresponse().read())["answers"][0]["scores"])
        for name, (data, reason) in refused_images().items():
            connection.request("POST", "/api/photos", data)
            response = connection.getresponse()
            assert response.status == 400 and reason in json.loads(response.read())["error"], name
        connection.close()
        server.shutdown()
    assert_same(found, expected)


@pytest.mark.parametrize("squashed", ["here", "in the graph"])
def test_onnx_from_pixels(place: Path, expected: dict[str, np.ndarray], squashed: str):
    session = onnxruntime.InferenceSession(place / "pixels/model.onnx")
    found = {}
    for picture in find_images([place / "files"]):
        whole_CHW = np.ascontiguousarray(read_pixels(picture).transpose(2, 0, 1))
        pixel_CHW = read_square(picture, SIDE)[0].numpy() if squashed == "here" else whole_CHW
        [logit_K] = session.run(["logit"], {"image": pixel_CHW[None]})[0]
        found[name_of(picture.name)] = 1 / (1 + np.exp(-logit_K))
    assert_same(found, expected)


@pytest.mark.parametrize(("folder", "number"), [("export", 0), ("export", 1), ("pixels", 0)])
def test_the_cards_own_lines(place: Path, expected: dict[str, np.ndarray], folder: str, number: int):
    """As they stand, but that they print every class to six digits."""
    script = re.findall(r"```python\n(.*?)```", (place / folder / "README.md").read_text(), re.DOTALL)[number]
    script = script.replace("[:5]", "").replace(":.3f", ":.6f").replace("round(3)", "round(6)")
    files = sorted((place / "refused").iterdir()) + sorted((place / "files").iterdir())
    alone = "import sys; sys.modules['msltrain'] = sys.modules['msldata'] = None; sys.path.insert(0, '.'); "
    command = [sys.executable, "-c", alone + "exec(sys.argv.pop(1))", script, *map(str, files)]
    environment = {**os.environ, "PYTHONPATH": ""}
    process = subprocess.run(command, cwd=place / folder, capture_output=True, text=True, env=environment)
    assert process.returncode == 1, process.stderr
    assert_refused(process.stderr, place / "refused")
    found, expected = {}, dict(expected)
    for name in expected:
        lines = "\n".join(line for line in process.stdout.splitlines() if name_of(line.split()[0]) == name)
        scores = [re.search(rf"\b{label}'?:? (\d\.\d+)", lines) for label in VOC_CLASSES]
        assert all(scores), lines
        found[name] = np.array([float(score[1]) for score in scores if score])
    assert_same({"cmyk-jpg": found.pop("cmyk-jpg")}, {"cmyk-jpg": expected.pop("cmyk-jpg")}, CMYK)
    assert_same(found, expected)


def assert_refused(errors: str, folder: Path) -> None:
    """A line for each, and nothing else."""
    assert [line.split(": ")[0] for line in errors.splitlines()] == list(map(str, sorted(folder.iterdir()))), errors
    assert "floating-point pixels" in errors and "are not 16 bits" in errors


def test_what_one_refuses_all_refuse(place: Path):
    files, reason_of = sorted((place / "refused").iterdir()), {n: why for n, (_, why) in refused_images().items()}
    for image in predict_images(place / "run", [place / "refused"], on_error="skip"):
        assert reason_of[Path(image.file).name] in image.error and not image.scores
    for file in files:
        with pytest.raises(BadInputError, match=reason_of[file.name]):
            read_pixels(find_images([file])[0])
        with pytest.raises(ValueError, match=reason_of[file.name]):
            prepare_image(file.read_bytes() or b"?", decode=True)
    process = subprocess.run(
        [sys.executable, "model.py", *map(str, files), str(place / "files/plain-jpg.jpg")],
        cwd=place / "export",
        capture_output=True,
        text=True,
    )
    assert process.returncode == 1 and process.stdout.count("plain-jpg.jpg") == 1 and "Traceback" not in process.stderr
    assert_refused(process.stderr, place / "refused")
