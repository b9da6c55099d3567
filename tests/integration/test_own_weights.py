"""What this program wrote serves as first weights, and an export is read back, by the commands themselves."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from msldata.contract.manifest import read_manifest
from msldata.contract.publish import write_manifest
from msldata.storage import LocalStorage
from msltrain.__main__ import app
from msltrain.measures.predictions import read_predictions
from msltrain.models.build import build_model
from msltrain.recipes import configure
from msltrain.runs.checkpoint import load_checkpoint
from tests.smallshards import photo, write_images, write_keep_masks


def msl(*command: object) -> str:
    result = CliRunner().invoke(app, [str(part) for part in command], env={"COLUMNS": "300"})
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def train(place: Path, run: str, *more: str, data: str = "train") -> str:
    settings = ("stream.image_size=32", "model.backbone=test_efficientnet", "run.device=cpu", "optim.num_epochs=1")
    command = [
        "train",
        "--recipe",
        "smoke",
        "--data",
        place / data,
        "--keep-masks",
        place / "high",
        "--run",
        place / run,
    ]
    return msl(*command, *(part for one in settings for part in ("--set", one)), *more)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("own")
    write_images(root / "train", [20, 20])
    rng = np.random.default_rng(0)
    write_keep_masks(root / "high", [(rng.random((32, 32)) > 0.5).astype(np.uint8) for _ in range(5)])
    shutil.copytree(root / "train", root / "other")
    manifest = read_manifest(LocalStorage(root / "other"))
    write_manifest(LocalStorage(root / "other"), replace(manifest, classes=("cat", "fish", "bird")))
    train(root, "base")
    msl("export", "--checkpoint", root / "base", "--out", root / "export", "--format", "safetensors")
    return root


FORMS = (
    "base",
    "base/checkpoints/best",
    "base/checkpoints/best/weights.safetensors",
    "export",
    "export/model.safetensors",
)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_ours_is_taken(place, tmp_path, form):
    still = ("--set", "optim.lr=1e-12", "--set", "optim.weight_decay=0")
    said = train(place, f"ft-{form.replace('/', '-')}", "--weights", str(place / form), *still)
    assert "first weights: " in said and "the head with all its classes" in said and "careful" not in said
    before = load_checkpoint(place / "base").weights
    after = load_checkpoint(place / f"ft-{form.replace('/', '-')}" / "checkpoints" / "last").weights
    names = [name for name in before if name.endswith("weight")]
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in names)


def test_other_classes_are_matched_by_name(place):
    config = configure("smoke", settings=["model.backbone=test_efficientnet"]).model
    built = build_model(replace(config, weights=str(place / "base")), 3, image_size=32, classes=("cat", "fish", "bird"))
    assert built.weights is not None and "the head's 2 classes that both know; new: fish" in built.weights.summary()
    theirs = load_checkpoint(place / "base").weights["classifier.score.weight"].unflatten(0, (2, 3))
    ours = built.classifier.score.weight.unflatten(0, (2, 3))
    assert torch.equal(ours[:, [2, 0]], theirs[:, [0, 2]]) and not torch.equal(ours[:, 1], theirs[:, 1])
    said = train(place, "ft-classes", "--weights", str(place / "base"), data="other")
    assert "new: fish" in said and "careful: " in said and "knows boat too, and the data has no such class" in said


@pytest.mark.parametrize(
    ("setting", "said"),
    [("model.num_heads=4", "it has another number of attention heads"), ("model.head=mean", "it is of another kind")],
)
def test_another_head_is_left_and_said(place, setting, said):
    config = configure("smoke", settings=["model.backbone=test_efficientnet", setting]).model
    built = build_model(
        replace(config, weights=str(place / "export")), 3, image_size=32, classes=("bird", "boat", "cat")
    )
    assert built.weights is not None and f"head not taken: {said}" in built.weights.summary()


def test_another_backbone_is_refused_in_words(place):
    settings = ("--set", "model.backbone=test_resnet", "--set", "stream.image_size=32", "--set", "run.device=cpu")
    command = ("train", "--recipe", "smoke", "--data", place / "train", "--keep-masks", place / "high", "--run")
    arguments = [str(part) for part in (*command, place / "no", "--weights", place / "base", *settings)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2 and "set model.backbone to the one it was trained with" in " ".join(
        result.output.split()
    )


@pytest.mark.parametrize("form", ["export", "export/model.safetensors", "base/checkpoints/best/weights.safetensors"])
def test_an_export_is_evaluated_as_its_run(place, tmp_path, form):
    for checkpoint, name in ((place / "base", "one.parquet"), (place / form, "two.parquet")):
        msl(
            "evaluate",
            "--checkpoint",
            checkpoint,
            "--data",
            place / "train",
            "--out",
            tmp_path / name,
            "--device",
            "cpu",
        )
    one, two = read_predictions(tmp_path / "one.parquet"), read_predictions(tmp_path / "two.parquet")
    assert np.array_equal(one.logit_NK, two.logit_NK) and one.classes == two.classes
    (tmp_path / "a.jpg").write_bytes(photo(1))
    said = [
        msl("predict", tmp_path / "a.jpg", "--checkpoint", place / which, "--threshold", 0.5)
        for which in ("base", form)
    ]
    assert said[0] == said[1]


def test_a_damaged_export_is_named(place, tmp_path):
    shutil.copytree(place / "export", tmp_path / "export")
    data = bytearray((tmp_path / "export" / "model.safetensors").read_bytes())
    data[-3] ^= 4
    (tmp_path / "export" / "model.safetensors").write_bytes(data)
    result = CliRunner().invoke(app, ["predict", "a.jpg", "--checkpoint", str(tmp_path / "export")])
    assert result.exit_code == 2
    (tmp_path / "a.jpg").write_bytes(photo(1))
    result = CliRunner().invoke(app, ["predict", str(tmp_path / "a.jpg"), "--checkpoint", str(tmp_path / "export")])
    assert result.exit_code == 2 and "damaged" in result.output
    (tmp_path / "export" / "config.json").write_text(json.dumps({"classes": 3}))
    result = CliRunner().invoke(app, ["predict", str(tmp_path / "a.jpg"), "--checkpoint", str(tmp_path / "export")])
    assert result.exit_code == 2 and "not what `msl export` writes" in " ".join(result.output.split())


def test_another_backbone_has_its_own_weights():
    """The recipe's tag belongs to the recipe's backbone."""
    settings = ["model.backbone=convnext_base"]
    assert configure("msl-c-voc2007", settings=settings).model.weights == "fb_in22k_ft_in1k"
    assert configure("msl-c-voc2007", settings=["model.backbone=convnext_base.fb_in1k"]).model.weights == "fb_in1k"
    assert configure("msl-c-voc2007", settings=[*settings, "model.weights=fb_in1k"]).model.weights == "fb_in1k"
    assert configure("msl-c-voc2007", weights="x.pth", settings=settings).model.weights == "x.pth"
    assert configure("msl-c-voc2007").model.weights == "tv2_in1k"
