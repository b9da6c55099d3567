"""Where thresholds come from is said by every command that uses them, and goes with an export."""

from __future__ import annotations

import csv
import json
import shutil
import threading
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from onnxruntime import InferenceSession
from typer.testing import CliRunner, Result

import msltrain
from msltrain.__main__ import app
from msltrain.measures.predictions import Predictions, read_predictions, write_predictions
from msltrain.measures.thresholds import MIN_POSITIVES, threshold_origin, tune_thresholds
from msltrain.use.serve import StudioServer
from tests.smallshards import photo, write_images, write_keep_masks


def msl(*command: object) -> Result:
    result = CliRunner().invoke(app, [str(part) for part in command], env={"COLUMNS": "300"})
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("thresholds")
    write_images(root / "train", [50, 40])
    write_keep_masks(root / "high", [np.eye(32, dtype=np.uint8)] * 2)
    (root / "a.jpg").write_bytes(photo(1))
    settings = ("stream.image_size=32", "model.backbone=test_efficientnet", "run.device=cpu", "optim.num_epochs=1")
    for run, fraction in (("few", 0.1), ("enough", 0.5)):
        places = ("--data", root / "train", "--keep-masks", root / "high", "--run", root / run)
        changed = (part for one in (*settings, f"data.validation_fraction={fraction}") for part in ("--set", one))
        msl("train", "--recipe", "smoke", *places, *changed)
    return root


def predictions(num_positive: int) -> Predictions:
    target_NK = np.zeros((40, 2), np.uint8)
    target_NK[:num_positive, 0] = 1
    target_NK[:20, 1] = 1
    logit_NK = np.linspace(2, 1, 40, dtype=np.float32)[:, None].repeat(2, axis=1)
    ignore_NK = np.zeros((40, 2), bool)
    keys = tuple(f"s{n}" for n in range(40))
    return Predictions(keys=keys, logit_NK=logit_NK, target_NK=target_NK, ignore_NK=ignore_NK, classes=("a", "b"))


def test_a_class_with_few_positives_keeps_one_half():
    few, enough = predictions(MIN_POSITIVES - 1), predictions(MIN_POSITIVES)
    assert tune_thresholds(few)[0] == 0 and tune_thresholds(enough)[0] > 1 and tune_thresholds(few)[1] > 1
    assert "0.5 for a, shown fewer than 10 times there" in threshold_origin(few, "file")
    assert "0.5" not in threshold_origin(enough, "file")


def test_predict_says_where_they_come_from(place):
    picture = ("predict", place / "a.jpg", "--checkpoint")
    assert "thresholds: 0.5 for every class" in msl(*picture, place / "few").stderr
    msl("evaluate", "--checkpoint", place / "few", "--data", place / "train", "--held-out", "--device", "cpu")
    said = msl(*picture, place / "few").stderr
    assert "thresholds: 0.5 for every class, too few photographs to tune them on" in said
    assert "thresholds: 0.3, as asked" in msl(*picture, place / "few", "--threshold", 0.3).stderr
    served = CliRunner().invoke(app, ["serve", str(place / "few"), "--device", "cpu", "--threshold", "nothing=0.5"])
    assert served.exit_code == 2 and "the model knows no such class" in " ".join(served.output.split())


def test_tuned_ones_go_with_everything_that_is_written(place, tmp_path, monkeypatch):
    run = place / "enough"
    msl("evaluate", "--checkpoint", run, "--data", place / "train", "--held-out", "--device", "cpu")
    (file,) = (run / "predictions").glob("*-held-out.parquet")
    num = len(read_predictions(file).keys)
    wanted = dict(zip(("bird", "boat", "cat"), 1 / (1 + np.exp(-tune_thresholds(read_predictions(file))))))
    assert set(wanted.values()) != {0.5}
    picture = ("predict", place / "a.jpg", "--top-k", 3, "--checkpoint")
    said = msl(*picture, run).stderr
    assert f"thresholds: one per class, tuned on {num} photographs of " in said
    for name in ("p.csv", "p.json", "p.parquet"):
        msl(*picture, run, "--out", tmp_path / name)
    rows = list(csv.DictReader((tmp_path / "p.csv").open()))
    assert {row["class"]: float(row["threshold"]) for row in rows} == pytest.approx(wanted, abs=1e-5)
    assert all("tuned on" in row["threshold_origin"] for row in rows)
    content = json.loads((tmp_path / "p.json").read_text())
    assert content["thresholds"] == pytest.approx(wanted) and "tuned on" in content["threshold_origin"]
    table = pq.read_table(tmp_path / "p.parquet").to_pylist()
    assert {row["class"]: row["threshold"] for row in table} == pytest.approx(wanted)

    msl("export", "--checkpoint", run, "--out", tmp_path / "export")
    config = json.loads((tmp_path / "export" / "config.json").read_text())
    assert config["thresholds"] == pytest.approx(wanted) and f"tuned on {num} " in config["threshold_origin"]
    assert (
        f"Thresholds: one per class, tuned on {num} photographs of " in (tmp_path / "export" / "README.md").read_text()
    )
    onnx = pytest.importorskip("onnx")
    properties = {one.key: one.value for one in onnx.load(tmp_path / "export" / "model.onnx").metadata_props}
    assert json.loads(properties["thresholds"]) == pytest.approx(wanted)
    assert f"tuned on {num} " in json.loads(properties["threshold_origin"])
    assert msl(*picture, tmp_path / "export").output == msl(*picture, run).output
    predictor = msltrain.load(tmp_path / "export", device="cpu")
    assert dict(zip(predictor.classes, predictor.threshold_K)) == pytest.approx(wanted)
    [loaded], [original] = (
        msltrain.load(one, device="cpu").predict(place / "a.jpg") for one in (run, tmp_path / "export")
    )
    assert loaded == original and f"tuned on {num} " in loaded.threshold_origin

    # `serve` says the same before the first question, and in its answer about the models.
    said, forever = {}, StudioServer.serve_forever

    def asked_once(server: StudioServer) -> None:
        threading.Thread(target=forever, args=[server], daemon=True).start()
        with urllib.request.urlopen(f"{server.url}api/models", timeout=60) as answer:
            [said["model"]] = json.load(answer)["models"]
        server.shutdown()

    monkeypatch.setattr(StudioServer, "serve_forever", asked_once)
    printed = msl("serve", "--checkpoint", tmp_path / "export", "--port", 0, "--device", "cpu").stdout
    assert f"thresholds: one per class, tuned on {num} photographs of " in printed
    assert f"tuned on {num} " in said["model"]["threshold_origin"]
    assert dict(zip(said["model"]["classes"], said["model"]["thresholds"])) == pytest.approx(wanted, abs=1e-4)


def test_thresholds_tuned_between_two_exports_are_in_every_file_of_the_folder(place, tmp_path):
    run, out = tmp_path / "run", tmp_path / "out"
    shutil.copytree(place / "enough", run, ignore=shutil.ignore_patterns("predictions"))
    msl("export", "--checkpoint", run, "--out", out, "--format", "onnx")
    msl("evaluate", "--checkpoint", run, "--data", place / "train", "--held-out", "--device", "cpu")
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    command = ["export", "--checkpoint", str(run), "--out", str(out), "--format", "safetensors"]
    refused = CliRunner().invoke(app, command, env={"COLUMNS": "300"})
    assert refused.exit_code == 2 and "model.onnx: holds thresholds of before (0.5 for every" in refused.output
    assert "add --format onnx" in refused.output and {file.name: file.read_bytes() for file in out.iterdir()} == before
    msl(*command, "--format", "onnx")
    content = json.loads((out / "config.json").read_text())
    properties = InferenceSession(out / "model.onnx").get_modelmeta().custom_metadata_map
    assert json.loads(properties["thresholds"]) == content["thresholds"] != dict.fromkeys(content["classes"], 0.5)
    msl(*command)


def test_evaluate_says_where_they_come_from(place, tmp_path):
    run = place / "enough"
    msl("evaluate", "--checkpoint", run, "--data", place / "train", "--held-out", "--device", "cpu")
    (file,) = (run / "predictions").glob("*-held-out.parquet")
    held_out = read_predictions(file)
    other = replace(held_out, keys=tuple(f"other-{key}" for key in held_out.keys))
    write_predictions(other, tmp_path / "other.parquet")
    result = msl("evaluate", "--predictions", tmp_path / "other.parquet", "--thresholds-from", file)
    assert f"thresholds: one per class, tuned on {file}" in " ".join(result.output.split())
