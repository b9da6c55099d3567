"""From a folder of photographs to a model: the commands of docs/own-photographs.md, on photographs drawn here."""

from __future__ import annotations

import json
import random
import re
import shlex
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from typer.testing import CliRunner

import msltrain
from msldata.errors import UserError
from msltrain.__main__ import app
from msltrain.config import from_json
from msltrain.recipes import own_fit
from msltrain.recipes.paper import BASELINE_LOSS
from msltrain.recipes.variants import DISTIL_LOSS_FROM_NOTHING
from msltrain.runs.run_places import find_dataset, find_run
from msltrain.stream.keepmasks import bank

TUTORIAL = Path(__file__).resolve().parents[2] / "docs/own-photographs.md"
COLOURS = {"red": 0, "green": 1, "blue": 2}


def photographs(folder: Path, number: int = 40, side: int = 40) -> Path:
    """Noise with a bright square of each class's colour."""
    folder.mkdir()
    chance, noise, rows = random.Random(0), np.random.default_rng(0), ["image,labels"]
    for index in range(number):
        pixels = noise.integers(0, 90, (side, side + 8, 3), dtype=np.uint8)
        names = [name for name in COLOURS if chance.random() < 0.5]
        for name in names:
            y, x = chance.randrange(side - 16), chance.randrange(side - 16)
            pixels[y : y + 14, x : x + 14, COLOURS[name]] = 250
        Image.fromarray(pixels).save(folder / f"{index}.jpg", quality=95)
        rows.append(f"{index}.jpg,{';'.join(names)}")
    (folder / "labels.csv").write_text("\n".join(rows))
    return folder


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with photographs, on a machine that reaches no weights and has little patience."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(own_fit, "is_cached", lambda name: False)
    monkeypatch.setattr(own_fit, "is_reachable", lambda name: False)
    monkeypatch.setattr(own_fit, "FEWEST_STEPS", 2)
    monkeypatch.setattr(own_fit, "STEPS_PER_ROOT", 0)
    monkeypatch.setattr(bank, "NUM_GENERATED", 8)
    photographs(tmp_path / "photos")
    return tmp_path


def msl(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def commands() -> list[list[str]]:
    """But for the variations of the training, all in one block."""
    blocks = re.findall(r"```bash\n(.*?)```", TUTORIAL.read_text(encoding="utf-8"), re.DOTALL)
    apart = ("--run", "own-baseline")
    lines = [line for block in blocks if not any(word in block for word in apart) for line in block.splitlines()]
    return [shlex.split(line.removeprefix("msl ")) for line in lines]


def test_the_tutorial_as_it_stands(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(own_fit, "ON_CPU", ("test_resnet.r160_in1k",))  # for speed alone
    build, train, *use = commands()
    assert "next: msl train mine" in msl(*build)
    said = msl(*train)
    shown, start = said.partition("epoch 1/")[0], " ".join((place / "runs/mine/start.txt").read_text().split())
    assert shown.startswith("FROM NOTHING") and "at 64 × 64 pixels" in shown and "9 steps of 8" in shown
    assert "all of it goes to runs/mine; start.txt there says more" in shown and len(shown) < 500
    assert "image size: 64 pixels" in start and "M parameters on 1 ×" in start and "learning rate" in start
    assert "thresholds: " in said and "next: msl evaluate mine" in said
    config = from_json((place / "runs/mine/config.json").read_text())
    assert config.data.validation == "shards/mine/val" and config.keep_mask.kind == "generated"
    assert config.loss == DISTIL_LOSS_FROM_NOTHING and config.keep_mask.share == 0.35
    first = config.first_masked_epoch
    assert first > 0 and f"shown whole, and 35 % of them with parts hidden as well, from epoch {first + 1} on" in start
    assert list((place / "runs/mine/predictions").glob("mine-val-held-out.parquet"))
    evaluated, reported, predicted, exported = (msl(*command) for command in use)
    assert "mine-test.parquet" in evaluated and "next: msl report mine next: msl robustness mine # what" in evaluated
    assert "next: msl robustness runs/mine # what is still" in reported
    assert "runs/mine/report.html" in reported and "next: msl serve runs/mine" in reported
    assert "photos/39.jpg" in predicted
    thresholds = json.loads((place / "runs/mine/export/config.json").read_text())["thresholds"]
    assert set(thresholds) == set(COLOURS) and "next: msl serve" in exported
    assert exported.count(" on 3 drawn patterns, alone and as a batch") == 3


def test_a_plain_model_beside_is_one_line_and_both_are_on_one_page(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(own_fit, "ON_CPU", ("test_resnet.r160_in1k",))
    msl("build-shards", "photos", "--name", "mine")
    assert "next: msl train mine --recipe own-baseline # plain training" in msl("train", "mine")
    [block] = [
        one for one in re.findall(r"```bash\n(.*?)```", TUTORIAL.read_text("utf-8"), re.DOTALL) if "own-b" in one
    ]
    train, report = (shlex.split(line)[1:] for line in block.splitlines())
    said = msl(*train)
    assert said.endswith(f"next: msl {shlex.join(report)} # both on one page") and "runs/mine-baseline" in said
    ours, plain = (from_json((place / "runs" / name / "config.json").read_text()) for name in ("mine", "mine-baseline"))
    assert plain.loss == BASELINE_LOSS != ours.loss and not plain.loss.needs_keep_masks
    assert (plain.stream.image_size, plain.model, plain.optim.num_epochs) == (
        ours.stream.image_size,
        ours.model,
        ours.optim.num_epochs,
    )
    assert "shown whole, and nothing is hidden" in (place / "runs/mine-baseline/start.txt").read_text()
    msl(*report)
    found = json.loads((place / "report.json").read_text())
    assert [one["name"] for one in found["runs"]] == ["mine-baseline", "mine"]
    assert msltrain.recipe("own-baseline", data="mine", settings=["model.weights="]).loss == BASELINE_LOSS


def test_a_plain_model_with_weights_learns_as_long_and_alike(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(own_fit, "is_reachable", lambda name: True)
    monkeypatch.setattr(own_fit, "PRECISE_BN_FROM", 1)
    msl("build-shards", "photos", "--name", "mine")
    ours, plain = (own_fit.fit_own("shards/mine/train", on_gpu=False, name=name)[0] for name in ("own", "own-baseline"))
    assert ours.optim.twin_share > 0 == plain.optim.twin_share and plain.optim.precise_bn_images > 0
    assert replace(ours.optim, twin_share=0.0) == plain.optim and ours.model == plain.model


def test_what_is_said_is_not_chosen(place: Path):
    msl("build-shards", "photos", "--name", "mine", "--split", "all")
    options = ("--epochs", "1", "--batch-size", "4", "--lr", "0.02", "--image-size", "32", "--backbone", "resnet10t")
    msl("train", "shards/mine", *options, "--set", "loss.masked_weight=0.5", "--run", "here")
    config = from_json((place / "here/config.json").read_text())
    found = (config.optim.num_epochs, config.stream.batch_size, config.optim.lr, config.stream.image_size)
    assert found == (1, 4, 0.02, 32) and config.model.backbone == "resnet10t" and config.loss.masked_weight == 0.5
    assert config.data.validation == "" and config.data.validation_fraction == 0.15
    assert msl("evaluate", "here", "--held-out").endswith("next: msl predict here PHOTOS"), "there is no test split"
    said = msl("train", "mine", "--run", "here", "--resume", "auto")
    assert said.startswith("settings: those that this run") is False and "here: was finished before" in said
    for other in ("--weights=x.pth", "--keep-masks=x", "--epochs=9", "--paper-protocol"):
        msl("train", "mine", "--run", "here", "--resume", "auto", other, code=2)
    photographs(place / "others", number=60)
    msl("build-shards", "others", "--name", "others", "--split", "all")
    said = msl("train", "others", "--run", "here", "--resume", "auto", code=2)
    assert "the run to continue is another one" in said and "other data for train" in said

    # Weights of one's own bring their network and size along.
    said = msl("train", "mine", "--weights", "here", "--epochs", "1", "--run", "on")
    config = from_json((place / "on/config.json").read_text())
    assert (
        config.model.backbone == "resnet10t"
        and config.stream.image_size == 32
        and "continued from here" in (place / "on/start.txt").read_text()
    )


def test_names(place: Path):
    msl("build-shards", "photos", "--name", "mine")
    assert find_dataset("mine") == find_dataset("shards/mine") == find_dataset("shards/mine/train")
    assert find_dataset("mine").test == "shards/mine/test" and find_dataset("shards/mine/test").name == "mine-test"
    with pytest.raises(UserError, match=r"did you mean mine\?"):
        find_dataset("mime")
    splits = ["shards/mine/test", "shards/mine/train", "shards/mine/val"]
    for name in ("mine", "shards/mine"):  # all of its splits
        assert re.findall(r"(\S+): \d+ samples in 1 shard are right", msl("verify", name)) == splits
    assert list(json.loads(msl("info", "mine", "--json"))) == splits and "num_samples" in msl(
        "info", splits[0], "--json"
    )
    (place / splits[1] / "mine-train-000000.tar").unlink()
    assert re.findall(r"(\S+): \d+ samples in 1 shard are right", msl("verify", "mine", code=2)) == splits[::2]
    with pytest.raises(UserError, match="msl build-shards photos"):
        find_dataset("photos")
    assert "mine: no run of this name, here or in runs/; `msl train mine` makes one" in msl("export", "mine", code=2)
    (place / "runs/mine").mkdir(parents=True)
    (place / "mine").mkdir()  # photographs, say: no run
    assert find_run("mine") == "runs/mine" and find_run("./mine") == "./mine" and find_run("other") == "other"
    assert "mime: no run of this name, here or in runs/; did you mean mine?" in msl("export", "mime", code=2)
    assert "did you mean own?" in msl("train", "mine", "--recipe", "onw", code=2)
    for wrong, meant in (
        ("photo", "photos"),
        ("photo/labels.csv", "photos"),
        ("photos/labls.csv", "photos/labels.csv"),
    ):
        said = msl("build-shards", wrong, "--name", "x", code=2)
        assert f"{wrong}: no such file or folder; did you mean {meant}?" in said


def test_python_fits_as_the_command_does(place: Path, monkeypatch: pytest.MonkeyPatch):
    msl("build-shards", "photos", "--name", "mine")
    monkeypatch.setattr(own_fit, "is_cached", lambda name: False)
    monkeypatch.setattr(own_fit, "is_reachable", lambda name: False)
    with pytest.warns(UserWarning, match=r'FROM NOTHING.*settings=\["model\.weights=FILE"\]'):
        alone = msltrain.recipe("own", data="mine")
    found = find_dataset("mine")
    expected, _ = own_fit.fit_own(found.train, validation=found.validation, on_gpu=torch.cuda.is_available())
    assert alone == expected and alone.data.validation == "shards/mine/val"
    monkeypatch.setattr(own_fit, "is_reachable", lambda name: True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pretrained = msltrain.recipe("own", data=Path("shards/mine/train"), settings=["optim.num_epochs=2"])
    assert pretrained.model.weights == "ra_in1k" and pretrained.optim.num_epochs == 2
    with pytest.raises(UserError, match=r"did you mean mine\?"):
        msltrain.recipe("own", data="mime")


def test_a_table_with_another_class_replaces_all_splits(place: Path):
    msl("build-shards", "photos", "--name", "mine")
    table = place / "photos/labels.csv"
    table.write_text(table.read_text().replace("green", "lime"))
    said = msl("build-shards", "photos", "--name", "mine", code=2)
    assert "only in the new one: 'lime', only in the old one: 'green'; to build it anew, run: " in said
    assert said.endswith("build-shards photos --name mine --overwrite --yes")
    msl("build-shards", "photos", "--name", "mine", "--overwrite", "--yes")
    classes = [
        json.loads(file.read_text())["classes"] for file in sorted((place / "shards/mine").glob("*/dataset.json"))
    ]
    assert classes == [["blue", "lime", "red"]] * 3


def test_a_single_setting_is_one_setting(place: Path):
    """Taken for a list of letters, it was set at the end, and the length was chosen for another batch size."""
    msl("build-shards", "photos", "--name", "mine")
    one, as_list = (
        own_fit.fit_own("shards/mine/train", weights="", settings=settings, on_gpu=False)
        for settings in ("stream.batch_size=4", ["stream.batch_size=4"])
    )
    assert one == as_list and one[0].stream.batch_size == 4


def test_weights_in_a_file_are_given_what_their_network_is_used_to(place: Path):
    """By its tag such a network had its own mean and deviation, and from a file those of ImageNet's usual ones."""
    msl("build-shards", "photos", "--name", "mine")
    torch.save(timm.create_model("test_vit").state_dict(), place / "vit.pth")
    known = timm.get_pretrained_cfg("test_vit")
    assert known is not None and known.mean == known.std == (0.5, 0.5, 0.5)
    for weights in ("vit.pth", str(known.tag)):
        settings = ["model.backbone=test_vit", "stream.image_size=160"]
        config, _ = own_fit.fit_own("shards/mine/train", weights=weights, settings=settings, on_gpu=False)
        assert (config.model.weights, config.stream.mean, config.stream.std) == (weights, known.mean, known.std)
    settings = ["model.backbone=test_vit", "stream.image_size=160", "stream.mean=0,0,0"]
    config, _ = own_fit.fit_own("shards/mine/train", weights="vit.pth", settings=settings, on_gpu=False)
    assert config.stream.mean == (0, 0, 0)


def test_the_network_is_the_best_that_can_be_had(place: Path, monkeypatch: pytest.MonkeyPatch):
    msl("build-shards", "photos", "--name", "mine")
    found = find_dataset("mine")

    def chosen(on_gpu: bool = False) -> tuple[str, str, str]:
        config, reasons = own_fit.fit_own(found.train, validation=found.validation, on_gpu=on_gpu)
        # Statistics of whole images, unless the network learns too fast for them: then one batch of both views.
        assert config.loss.bn_mode == ("running" if config.model.weights else "shared")
        assert config.optim.twin_share == (0.25 if config.model.weights else 0)
        assert ("a twin that sees whole ones alone makes up 25 %" in " ".join(reasons)) is bool(config.model.weights)
        return config.model.backbone, config.model.weights, " ".join(reasons)

    monkeypatch.setattr(own_fit, "is_cached", lambda name: name.startswith("resnet50."))
    assert chosen()[:2] == ("resnet50", "tv_in1k") and "on this machine" in chosen()[2]
    settings = ("optim.twin_share=0", "optim.num_epochs=20")
    alone, reasons = own_fit.fit_own(found.train, settings=settings, on_gpu=False)
    assert (alone.keep_mask.start, alone.keep_mask.share, alone.optim.twin_share) == (0.25, 1, 0)
    assert "and with parts hidden, from epoch 6 on" in " ".join(reasons)
    monkeypatch.setattr(own_fit, "is_cached", lambda name: False)
    monkeypatch.setattr(own_fit, "is_reachable", lambda name: True)
    assert chosen()[:2] == ("mobilenetv2_100", "ra_in1k") and "to be fetched" in chosen()[2]
    assert chosen(on_gpu=True)[:2] == ("resnet101", "tv_in1k")
    monkeypatch.setattr(own_fit, "is_reachable", lambda name: False)
    assert chosen()[:2] == ("mobilenetv2_100", "") and "FROM NOTHING" in chosen()[2]
