"""A Space's folder: it stands alone, its page answers as the model does, and it is pushed as what it is."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

from msldata.contract.keepmask import resize_nearest
from msldata.errors import UserError
from msltrain.__main__ import app
from msltrain.hub.space import make_space
from msltrain.runs.find_checkpoint import Foreign
from msltrain.use.predict import Predictor, read_square
from msltrain.use.read_images import Photo
from tests.integration.test_export_folder import make_run
from tests.smallshards import CLASSES, photo

STUB = "from unittest.mock import MagicMock; sys.modules['gradio'] = MagicMock(); "
ALONE = "import sys; sys.modules['msltrain'] = sys.modules['msldata'] = None; sys.path.insert(0, '.'); "
ASK = """
import json, PIL.Image, app
photo = PIL.Image.open(sys.argv[1])
layer = PIL.Image.new("RGBA", photo.size)
layer.paste((0, 0, 0, 255), (0, 0, photo.width // 2, photo.height))
empty = PIL.Image.new("RGBA", photo.size)
shown = [app.answer({"background": photo, "layers": layers}) for layers in ([layer, empty], [empty], [])]
assert app.answer(None)[0] is None and app.answer({"background": None})[1] is None
assert shown[1][1] is None and shown[1] == shown[2]
print(json.dumps(shown[0]))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("space")
    make_run(folder / "run")
    (folder / "photo.jpg").write_bytes(photo(3, 90, 70))
    return folder


def test_the_page_answers_where_this_program_is_not(place):
    command = ["export", str(place / "run"), "--space", "--images", str(place / "photo.jpg")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0 and f"msl push {place}/run/space OWNER/NAME" in result.output.replace("\n", "")
    out = place / "run" / "space"
    names = {file.name for file in out.iterdir()}
    model = {"README.md", "config.json", "model.py", "photograph.py", "model.safetensors"}
    assert names == model | {"app.py", "requirements.txt", "example-1.jpg"}
    front = yaml.safe_load((out / "README.md").read_text().split("---\n")[1])
    assert front["sdk"] == "gradio" and front["app_file"] == "app.py" and "msltrain" in front["tags"]
    process = subprocess.run(
        [sys.executable, "-c", ALONE + STUB + ASK, str(place / "photo.jpg")], cwd=out, text=True, capture_output=True
    )
    assert process.returncode == 0, process.stderr
    whole, behind, said = json.loads(process.stdout)
    predictor = Predictor(place / "run", torch.device("cpu"))
    square = read_square(place / "photo.jpg", 64)
    keep_mask_HW = np.ones((70, 90), np.uint8)
    keep_mask_HW[:, :45] = 0
    for found, mask in ((whole, None), (behind, resize_nearest(keep_mask_HW, 64, 64))):
        [expected] = predictor.answer([square], mask)
        assert [found[name] for name in CLASSES] == pytest.approx(expected.score_K.tolist(), abs=1e-4)
    assert "With 50% hidden: " in said and all(name in said for name in predictor.predicted(expected))


def test_a_hole_lies_where_it_was_painted_on_what_a_classifier_sees(place, tmp_path):
    """Timm's evaluation cuts the sides of a wide photograph off: paint there hides nothing."""
    network = timm.create_model("test_vit", num_classes=len(CLASSES)).eval()
    torch.save(network.state_dict(), tmp_path / "plain.pth")
    foreign = Foreign(model="test_vit")
    out = make_space(tmp_path / "plain.pth", tmp_path / "space", foreign=foreign, classes=CLASSES)
    (tmp_path / "wide.jpg").write_bytes(photo(5, 640, 320))
    paint = "layer.paste((0, 0, 0, 255), (0, 0, "
    answers = []
    for width in (160, 320):  # of 640, of which the middle 320 at most are seen: nothing, and its left half
        ask = ASK.replace(f"{paint}photo.width // 2", f"{paint}{width}")
        assert ask != ASK
        command = [sys.executable, "-c", ALONE + STUB + ask, str(tmp_path / "wide.jpg")]
        process = subprocess.run(command, cwd=out, text=True, capture_output=True)
        assert process.returncode == 0, process.stderr
        answers.append(json.loads(process.stdout))
    predictor = Predictor(tmp_path / "plain.pth", torch.device("cpu"), foreign=foreign, classes=CLASSES)
    side = predictor.image_size
    square = predictor.seen(Photo((tmp_path / "wide.jpg").read_bytes())).square(side)
    half_SS = np.ones((side, side), np.uint8)
    half_SS[:, : side // 2] = 0
    (whole, nothing, said), (_, behind, said_of_half) = answers
    assert nothing is None and "hidden" not in said and "With 50% hidden: " in said_of_half
    for found, mask in ((whole, None), (behind, half_SS)):
        [expected] = predictor.answer([square], mask)
        assert [found[name] for name in CLASSES] == pytest.approx(expected.score_K.tolist(), abs=1e-4)


def test_examples_carry_nothing_but_pixels(place, tmp_path):
    image, exif = Image.open(place / "photo.jpg"), Image.Exif()
    exif[0x010F] = "a camera"
    image.resize((3000, 2000)).save(tmp_path / "large.jpg", exif=exif)
    out = make_space(place / "run", tmp_path / "space", images=[tmp_path / "large.jpg"])
    shown = Image.open(out / "example-1.jpg")
    assert max(shown.size) == 1024 and not shown.getexif()


def test_other_folders_are_left_alone(place, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something else than a Space"):
        make_space(place / "run", tmp_path)
    result = CliRunner().invoke(app, ["export", str(place / "run"), "--space", "--format", "onnx"])
    assert result.exit_code == 2 and "--space has its own files" in result.output
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_gradio_itself_serves_the_page(place, tmp_path):
    if importlib.util.find_spec("gradio") is None:
        pytest.skip("needs gradio")
    out = make_space(place / "run", tmp_path / "space", images=[place / "photo.jpg"])
    code = ALONE + (
        "import app, gradio_client, PIL.Image; "
        "app.page.launch(prevent_thread_lock=True, server_name='127.0.0.1', quiet=True); "
        "client = gradio_client.Client(app.page.local_url, verbose=False); "
        "photo = gradio_client.handle_file(sys.argv[1]); "
        "print(client.predict({'background': photo, 'layers': [], 'composite': photo}, api_name='/answer')); "
        "app.page.close()"
    )
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "GRADIO_ANALYTICS_ENABLED": "False"}
    process = subprocess.run(
        [sys.executable, "-c", code, str(place / "photo.jpg")],
        cwd=out, text=True, capture_output=True, timeout=300, env=environment,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert "Whole: " in process.stdout and "'confidence'" in process.stdout
