"""A model is named alike in every command that reads one; and one whose training was stopped is said to be so."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import msltrain
from msltrain.__main__ import app
from msltrain.config import OptimConfig
from msltrain.runs.checkpoint import load_checkpoint, load_recogniser, save_checkpoint
from msltrain.use.predict import Predictor
from msltrain.use.serve import StudioServer
from tests.integration.test_evaluate import write_checkpoint
from tests.smallshards import CLASSES, photo, write_images


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("named")
    (place / "photos").mkdir()
    for number in range(2):
        (place / "photos" / f"p{number}.jpg").write_bytes(photo(number))
    write_images(place / "shards", [5])
    write_checkpoint(place / "runs" / "mine", CLASSES)
    return place


@pytest.fixture
def place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(StudioServer, "serve_forever", lambda self: None)
    return folder


def msl(*words: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(words), env={"COLUMNS": "300"})
    return result.exit_code, result.stdout, result.stderr


def test_a_run_by_its_name_is_the_checkpoint(place):
    by_name, by_option = msl("predict", "mine", "photos"), msl("predict", "--checkpoint", "runs/mine", "photos")
    assert by_name == by_option and by_name[0] == 0 and by_name[1].count("photos/") == 2
    code, shown, _ = msl("serve", "mine", "runs/mine", "--port", "0", "--device", "cpu")
    assert code == 0 and "mine (1): thresholds" in shown and "mine (2): thresholds" in shown
    assert msl("evaluate", "mine", "--data", "shards", "--device", "cpu")[0] == 0


@pytest.mark.parametrize("words", ["serve", "report", "export", "robustness --data shards --kind patch"])
def test_what_names_no_model_or_two_is_one_line(place, words):
    command, *rest = words.split()
    code, _, errors = msl(command, *rest)
    assert code == 2 and f"name a model: msl {command} RUN" in errors
    code, _, errors = msl(command, "mine", "--checkpoint", "mine", *rest)
    assert code == 2 and "named twice: mine and --checkpoint mine" in errors
    code, _, errors = msl(command, "mime", *rest)
    assert code == 2 and "mime: no run of this name, here or in runs/; did you mean mine?" in errors


def test_photographs_alone_are_asked_about(place):
    code, _, errors = msl("predict", "photos")
    assert code == 2 and "photos: a run, or photographs? Name both: msl predict RUN PHOTOS" in errors


STOPPED = "3 of 20 epochs of its training are done, so these are not the scores of a finished model"


def trained_for(folder: Path, last: int, best: int, patience: int = 0) -> Path:
    """A run of twenty epochs with its last checkpoint after so many, and the best after others."""
    optim = OptimConfig(num_epochs=20, patience=patience)
    write_checkpoint(folder, CLASSES, config=replace(load_recogniser("runs/mine").config, optim=optim))
    found = load_checkpoint(folder)
    for name, epoch in (("last", last), ("best", best)):
        save_checkpoint(replace(found, epoch=epoch), folder / "checkpoints" / name)
    return folder


def test_what_a_stopped_run_says_is_marked(place, tmp_path):
    run = str(trained_for(tmp_path / "run", last=3, best=2))
    for command in (
        ("predict", run, "photos"),
        ("evaluate", run, "--data", "shards", "--device", "cpu"),
        ("serve", run, "--port", "0", "--device", "cpu"),
    ):
        code, _, errors = msl(*command)
        assert code == 0 and errors.count(STOPPED) == 1, errors


@pytest.mark.parametrize(("last", "best", "patience"), [(20, 2, 0), (7, 3, 4)])
def test_what_ended_by_itself_is_not(place, tmp_path, last, best, patience):
    run = trained_for(tmp_path / "run", last, best, patience)
    assert Predictor(run, torch.device("cpu")).unfinished == ""
    assert Predictor(trained_for(tmp_path / "less", 7, 4, patience=4), torch.device("cpu")).unfinished


def test_python_names_models_alike_and_says_what_is_unfinished(place, tmp_path):
    by_name, by_place = (msltrain.load(one, device="cpu").predict("photos") for one in ("mine", Path("runs/mine")))
    assert by_name == by_place and len(by_name) == 2
    shown = repr(msltrain.load("mine", device="cpu"))
    assert re.fullmatch(r"<Predictor runs/mine\S*: \d+ classes \(.+\), \d+ × \d+ pixels>", shown), shown
    assert msltrain.evaluate("mine", "shards")[1] == msltrain.evaluate("runs/mine", "shards")[1]
    with pytest.raises(FileNotFoundError, match=r"mime: no run of this name, here or in runs/; did you mean mine\?"):
        msltrain.load("mime")
    run = trained_for(tmp_path / "run", last=3, best=2)
    goes_on = STOPPED + r'.*msltrain\.train\(config, run, resume="auto"\) goes on'
    with pytest.warns(UserWarning, match=goes_on) as found:
        msltrain.load(run, device="cpu")
    assert found[0].filename == __file__
    with pytest.warns(UserWarning, match=STOPPED) as found:
        msltrain.evaluate(run, "shards")
    assert found[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        msltrain.load(trained_for(tmp_path / "all", 20, 2), device="cpu")
