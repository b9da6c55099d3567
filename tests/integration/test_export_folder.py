"""An exported folder in other people's hands: whole, of one model, read without this program, by timm, and by ours."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from typer.testing import CliRunner

from msldata.errors import UserError
from msltrain.__main__ import app
from msltrain.config import ModelConfig, TrainConfig
from msltrain.runs.checkpoint import load_checkpoint, load_recogniser, save_checkpoint
from msltrain.stream.config import StreamConfig
from msltrain.use import export_formats
from msltrain.use.export import export_model
from msltrain.use.standalone import load
from tests.answers import predict_images
from tests.integration.test_evaluate import write_checkpoint
from tests.smallshards import CLASSES, photo

ALONE = "import sys; sys.modules['msltrain'] = sys.modules['msldata'] = None; sys.path.insert(0, '.'); "


def make_run(folder: Path, backbone: str = "test_resnet", head: str = "csra", size: int = 64) -> Path:
    model = ModelConfig(backbone=backbone, head=head, num_heads=2, attention_weight=0.4)
    stream = StreamConfig(image_size=size, batch_size=4, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    return write_checkpoint(folder, CLASSES, config=TrainConfig(stream=stream, model=model))


def msl(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "300"})
    return result.exit_code, result.stdout, result.stderr


def test_the_cards_own_lines_run_where_this_program_is_not(tmp_path):
    run, out, file = make_run(tmp_path / "run"), tmp_path / "out", tmp_path / "photo.jpg"
    file.write_bytes(photo(3, 90, 70))
    export_model(run, out, formats=["safetensors", "onnx"])
    card = (out / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: msltrain\n") and "onnxruntime 1.15 or later" in card
    scripts = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(scripts) == 2 and all(len(script.splitlines()) <= 15 for script in scripts)
    [expected] = predict_images(run, [file], top_k=None)
    for script in scripts:
        command = [sys.executable, "-c", ALONE + "exec(sys.argv.pop(1))", script, str(file)]
        process = subprocess.run(command, cwd=out, capture_output=True, text=True, timeout=200)
        assert process.returncode == 0, process.stderr
        for name, score in expected.scores:
            found = re.search(rf"{name}'?:? (\d\.\d+)", process.stdout)
            assert found and float(found[1]) == pytest.approx(score, abs=3e-3), process.stdout
    (tmp_path / "album").mkdir()
    (tmp_path / "album" / "one.jpg").write_bytes(file.read_bytes())
    (tmp_path / "album" / "labels.csv").write_text("image,labels")
    alone = ALONE.replace("sys.path", f"sys.path.insert(0, {str(out)!r}); sys.path") + "exec(sys.argv.pop(1))"
    for arguments, code, said in (([], 1, "name photographs"), (["album"], 0, ""), (["album", "x.jpg"], 1, "x.jpg: ")):
        command = [sys.executable, "-c", alone, scripts[1], *arguments]  # from another folder
        process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)
        assert process.returncode == code and said in process.stderr and "Traceback" not in process.stderr
        assert process.stdout.count("album/one.jpg") == ("album" in arguments)
    for script in scripts:  # as with `| head`: the reader is gone
        reader, writer = os.pipe()
        os.close(reader)
        command = [sys.executable, "-c", alone, script, "album"]
        process = subprocess.run(command, cwd=tmp_path, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=200)
        os.close(writer)
        assert process.returncode == 141 and process.stderr == ""
    for name, entry in json.loads((out / "config.json").read_text())["files"].items():
        assert entry["sha256"] in card and f"`{name}`" in card


@pytest.mark.parametrize("head", ["mean", "max"])
def test_a_pooled_head_is_a_folder_of_timms_and_ours_again(tmp_path, head):
    run, out = make_run(tmp_path / "run", head=head), tmp_path / "out"
    export_model(run, out, formats=["safetensors"])
    image = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    network = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    assert network.pretrained_cfg["label_names"] == list(CLASSES)
    original = load_recogniser(run).recogniser
    with torch.inference_mode():
        expected = original(image)
        for model in (network, load(out)):
            torch.testing.assert_close(model(image), expected, atol=1e-4, rtol=0)
    file = tmp_path / "photo.jpg"
    file.write_bytes(photo(3))
    [first], [again] = (predict_images(place, [file], top_k=None) for place in (run, out))
    assert dict(again.scores) == pytest.approx(dict(first.scores), abs=1e-6)


@pytest.mark.parametrize(
    ("backbone", "size"), [("test_vit", 96), ("test_maxvit", 64), ("swin_tiny_patch4_window7_224", 224)]
)
def test_code_that_travels_gives_the_same_logits(tmp_path, backbone, size):
    run, out = make_run(tmp_path / "run", backbone, size=size), tmp_path / "out"
    export_model(run, out, formats=["safetensors"])
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    original, again = load_recogniser(run).recogniser, load(out)
    with torch.inference_mode():
        torch.testing.assert_close(again(image), original(image), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("head", "settings"), [("mldecoder", {"num_queries": 2}), ("q2l", {"decoder_width": 20})])
def test_heads_with_queries_travel_too(tmp_path, head, settings):
    model = ModelConfig(backbone="test_resnet", head=head, decoder_hidden=24, **{"decoder_width": 16} | settings)
    config = TrainConfig(stream=StreamConfig(image_size=64), model=model)
    run, out = write_checkpoint(tmp_path / "run", CLASSES, config=config), tmp_path / "out"
    exported = export_model(run, out)
    assert {one.file for one in exported} == {"model.safetensors", "model.pt2", "model.onnx"}
    image = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    np.save(tmp_path / "image.npy", image.numpy())
    script = (
        "import numpy as np, torch; from model import load; image = torch.from_numpy(np.load(sys.argv[1])); "
        "torch.set_grad_enabled(False); np.save(sys.argv[2], load('.')(image).numpy())"
    )
    command = [sys.executable, "-c", ALONE + script, str(tmp_path / "image.npy"), str(tmp_path / "logit.npy")]
    subprocess.run(command, cwd=out, check=True, timeout=400)
    original = load_recogniser(run).recogniser
    with torch.inference_mode():
        expected = original(image).numpy()
    np.testing.assert_allclose(np.load(tmp_path / "logit.npy"), expected, atol=1e-5)


def test_a_folder_holds_one_model(tmp_path):
    run, other, out = make_run(tmp_path / "run"), make_run(tmp_path / "other", "test_vit"), tmp_path / "out"
    export_model(run, out, formats=["torch-export"])
    (out / "notes.txt").write_text("mine")
    (out / "predictions").mkdir()  # where `msl evaluate` puts them
    (out / "predictions/mine.parquet").write_bytes(b"mine")
    export_model(run, out, formats=["safetensors"])
    assert (out / "predictions/mine.parquet").read_bytes() == b"mine"
    shutil.rmtree(out / "predictions")
    names = ["README.md", "config.json", "model.pt2", "model.py", "model.safetensors", "notes.txt", "photograph.py"]
    assert sorted(file.name for file in out.iterdir()) == names
    assert "model.pt2" in (out / "README.md").read_text()
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    code, _, errors = msl("export", "--checkpoint", other, "--out", out, "--format", "safetensors")
    assert code == 2 and "holds the export of another model" in errors and "--overwrite" in errors
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    (tmp_path / "run" / "one.jpg").write_bytes(photo(3))
    again = ("export", "--checkpoint", other, "--out", out, "--format", "safetensors", "--overwrite")
    code, said, errors = msl(*again, "--images", tmp_path / "run" / "one.jpg")
    assert " on 1 photograph, alone and as a batch" in " ".join(said.split())
    assert code == 0 and not (out / "model.pt2").exists() and "test_vit" in (out / "README.md").read_text(), errors
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "classes": config["classes"][::-1]}))
    with pytest.raises(UserError, match="these weights with other classes"):
        export_model(other, out, formats=["onnx"])
    with pytest.raises(UserError, match="holds something else than an export"):
        export_model(run, tmp_path, formats=["safetensors"], overwrite=True)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["other", "out", "run"]


def test_a_folder_holds_one_reading_of_the_weights(tmp_path):
    """Two imports of one file with other settings: a graph of the first would lie beside a card of the second."""
    run, other, out = make_run(tmp_path / "run"), tmp_path / "other", tmp_path / "out"
    export_model(run, out, formats=["torch-export"])
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    made = load_checkpoint(run)
    changed = [{"model": replace(made.config.model, attention_weight=0.1)}]
    changed += [{"stream": replace(made.config.stream, **one)} for one in ({"image_size": 96}, {"mean": (0.0, 0, 0)})]
    for change in changed:
        save_checkpoint(replace(made, config=replace(made.config, **change)), other)
        assert load_recogniser(other).sha256 == load_recogniser(run).sha256
        with pytest.raises(UserError, match=r"these weights with other input or head; .* give --overwrite"):
            export_model(other, out, formats=["safetensors"])
        assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    export_model(other, out, formats=["safetensors"], overwrite=True)
    assert not (out / "model.pt2").exists()


def test_an_exporter_that_fails_leaves_the_others_whole(tmp_path, monkeypatch):
    run, out = make_run(tmp_path / "run"), tmp_path / "out"

    def broken(*_):
        cause = ValueError("Failed to lower:\n\n\tno decomposition for aten::odd\nand ninety lines more")
        raise RuntimeError("This is step 2/3. Next steps:\n- Create an issue") from cause

    monkeypatch.setitem(export_formats.WRITERS, "onnx", broken)
    code, _, errors = msl("export", "--checkpoint", run, "--out", out, "--format", "safetensors", "--format", "onnx")
    assert (
        code == 1
        and "left out: model.onnx: Failed to lower: no decomposition for aten::odd\n" in errors
        and "ninety" not in errors
    )
    assert not (out / "model.onnx").exists() and "onnx" not in (out / "README.md").read_text()
    assert load(out)


def test_the_graph_names_its_batch_and_is_of_the_opset_asked(tmp_path):
    run = make_run(tmp_path / "run")
    for opset, ir_version in ((18, 8), (20, 9)):
        out = tmp_path / str(opset)
        export_model(run, out, formats=["onnx"], opset=opset)
        model = onnx.load(out / "model.onnx")
        onnx.checker.check_model(model)
        assert (model.opset_import[0].version, model.ir_version) == (opset, ir_version)
        session = onnxruntime.InferenceSession(out / "model.onnx")
        assert session.get_inputs()[0].shape == ["batch", 3, 64, 64]
        assert session.get_outputs()[0].shape == ["batch", len(CLASSES)]
        assert session.run(None, {"image": np.zeros((5, 3, 64, 64), np.float32)})[0].shape == (5, len(CLASSES))
    with pytest.raises(UserError, match="the least that torch writes is 18"):
        export_model(run, tmp_path / "old", formats=["onnx"], opset=11)
