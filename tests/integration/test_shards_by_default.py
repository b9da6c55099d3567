"""Which shards and keep masks ``evaluate``, ``robustness`` and ``report`` take when they are named shortly, or not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from msltrain.__main__ import app
from msltrain.config import DataConfig, ModelConfig, TrainConfig
from msltrain.measures.predictions import read_predictions
from msltrain.robustness.kinds import HELD_OUT
from msltrain.runs.run_places import default_file, find_evaluation_shards
from msltrain.stream.config import StreamConfig
from msltrain.stream.keepmasks import bank
from tests.integration.test_evaluate import write_checkpoint
from tests.smallshards import CLASSES, write_images, write_keep_masks

REPOSITORY = Path(__file__).resolve().parents[2]
PATCHES = ("--kind", "patch")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run ``mine``, trained on a dataset of that name with a test split of 5, and another dataset with one of 4."""
    monkeypatch.chdir(tmp_path)
    for split, count in (("train", 6), ("val", 3), ("test", 5)):
        write_images(tmp_path / "shards/mine" / split, [count])
    write_images(tmp_path / "shards/other/test", [4])
    config = TrainConfig(
        data=DataConfig(train="shards/mine/train"),
        stream=StreamConfig(image_size=32, batch_size=4),
        model=ModelConfig(backbone="resnet10t"),
    )
    write_checkpoint(tmp_path / "runs/mine", CLASSES, config=config)
    return tmp_path


def msl(*words: str, code: int = 0) -> str:
    """What the command says."""
    device = [] if "--help" in words else ["--device", "cpu"]
    result = CliRunner().invoke(app, [*words, *device], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def num_samples(file: str) -> int:
    return len(read_predictions(file).keys)


def test_a_study_is_made_on_the_run_s_own_test_shards(place):
    assert "test shards: shards/mine/test" in msl("robustness", "mine", *PATCHES)
    assert num_samples("runs/mine/robustness/predictions/mine/whole.parquet") == 5


def test_an_option_leads_on_as_an_argument_does(place):
    following = "next: msl report mine next: msl robustness mine"
    assert following in msl("evaluate", "mine") and following in msl("evaluate", "--checkpoint", "mine")
    said = msl("evaluate", "--checkpoint", "runs/mine/checkpoints/best")
    assert "next: msl report runs/mine/checkpoints/best" in said
    words = ["export", "mine", "--out", "exported", "--format", "safetensors"]
    assert CliRunner().invoke(app, words).exit_code == 0
    assert msl("evaluate", "--checkpoint", "exported", "--data", "mine").endswith("next: msl predict exported PHOTOS")


@pytest.mark.parametrize(
    ("data", "advised"), [("shards/mine/train", "msl evaluate one"), ("alone", "msl evaluate one --data SHARDS")]
)
def test_a_training_leads_on_to_test_shards_that_are_found(place, data, advised):
    write_images(place / "alone", [6])
    write_keep_masks(place / "masks", [np.eye(32, dtype=np.uint8)] * 2)
    settings = ["model.backbone=resnet10t", "stream.image_size=32", "optim.num_epochs=1", "data.validation_fraction=0"]
    words = ["train", "--recipe", "smoke", "--data", data, "--keep-masks", "masks", "--run", "runs/one"]
    for one in (*settings, "run.device=cpu", "stream.batch_size=4"):
        words += ["--set", one]
    result = CliRunner().invoke(app, words, env={"COLUMNS": "200"})
    assert result.exit_code == 0 and " ".join(result.output.split()).endswith(f"next: {advised}"), result.output


def test_datasets_of_one_name_elsewhere_have_predictions_of_their_own(place):
    names = {
        str(default_file("runs/mine", shards).name)
        for shards in ("shards/mine/test", "a/mine/test", "b/mine/test", "s3://a/mine/test", "s3://b/mine/test")
    }
    assert len(names) == 5 and "mine-test.parquet" in names
    assert all(name.startswith("mine-test") for name in names)
    for same in (place / "shards/mine/test", "./shards/mine/test/"):
        assert default_file("runs/mine", same).name == "mine-test.parquet"
    assert default_file("runs/mine", place / "a/mine/test") == default_file("runs/mine", "a/mine/test")
    masks = {default_file("runs/mine", "shards/mine/test", [f"{one}/masks/high"]).name for one in ("shards", "a", "b")}
    assert len(masks) == 3 and "mine-test-masks-high.parquet" in masks


def test_a_study_of_a_run_without_test_shards_says_what_to_name(place):
    (place / "shards/mine/test/dataset.json").unlink()
    said = msl("robustness", "mine", *PATCHES, code=2)
    assert "shards/mine: the build of test did not end" in said and "or say what to measure on with --data" in said


def test_a_dataset_s_name_is_its_test_split(place):
    assert "4 samples" in msl("evaluate", "mine", "--data", "other")
    msl("robustness", "mine", "--data", "other", *PATCHES)
    assert num_samples("runs/mine/robustness/predictions/mine/whole.parquet") == 4
    assert "without photographs" not in msl("report", "mine", "--data", "other")
    said = msl("evaluate", "mine", "--data", "othre", code=2)
    assert "othre: no finished dataset here" in said


@pytest.mark.parametrize(
    ("name", "tested", "held_out"),
    [
        ("mine", "shards/mine/test", "shards/mine/val"),
        ("shards/mine/", "shards/mine/test", "shards/mine/val"),
        ("shards/mine/train", "shards/mine/train", "shards/mine/train"),
        ("mine/train", "shards/mine/train", "shards/mine/train"),
        ("other", "shards/other/test", "other"),  # refused as it is written, with what lies below
        ("nowhere", "nowhere", "nowhere"),
    ],
)
def test_what_a_name_means(place, name, tested, held_out):
    assert find_evaluation_shards(name) == tested
    assert find_evaluation_shards(name, held_out=True) == held_out


def test_all_of_another_site_are_an_exam(place):
    """What was kept together and has no other split; of a dataset with training shards `all` is not meant."""
    write_images(place / "shards/site two/all", [7])
    assert "7 samples" in msl("evaluate", "mine", "--data", "site two")
    assert "without photographs" not in msl("report", "mine", "--data", "site two")
    msl("robustness", "mine", "--data", "site two", *PATCHES)
    assert num_samples("runs/mine/robustness/predictions/mine/whole.parquet") == 7
    assert find_evaluation_shards("shards/site two/") == "shards/site two/all"
    write_images(place / "shards/site two/train", [2])
    assert find_evaluation_shards("site two") == "site two"


@pytest.mark.parametrize("command", ["evaluate", "robustness", "report"])
def test_photographs_that_are_not_built_are_answered_with_the_command(place, command):
    (place / "Zweiter Standort/Gleis 1").mkdir(parents=True)
    (place / "Zweiter Standort/Gleis 1/a.jpg").touch()
    said = msl(command, "mine", "--data", "Zweiter Standort", code=2)
    build = "msl build-shards 'Zweiter Standort' --split all --name Zweiter_Standort, then give --data Zweiter_Standort"
    assert f"build them in one piece: {build}" in said


def test_without_keep_masks_some_are_drawn_and_said(place, monkeypatch):
    """What evaluate advises works as it stands; the masks are others than those of training."""
    monkeypatch.setattr(bank, "NUM_GENERATED", 12)
    said = msl("robustness", "mine")
    assert "keep masks: 12 drawn here, others than training draws; --keep-masks takes yours" in said
    files = (place / "runs/mine/robustness/predictions/mine").glob("irregular-*.parquet")
    origins = [read_predictions(file).origin for file in files]
    assert len(origins) > 2 and all(one.keep_masks == () and 0 < one.hole_fraction < 1 for one in origins)
    first, second = (bank.KeepMasks.generate(64, seed=seed) for seed in (0, 1))
    assert not np.array_equal(first.hole_fraction_N, second.hole_fraction_N)
    assert "'spots'; there are: irregular" in msl("robustness", "mine", "--kind", "spots", code=2)


def test_held_out_masks_are_taken_where_they_lie(place):
    rng = np.random.default_rng(0)
    masks = [(rng.random((32, 32)) > 0.3).astype(np.uint8) for _ in range(3)]
    write_keep_masks(place / HELD_OUT[0], masks)
    assert "keep masks:" in msl("robustness", "mine", "--out", "half") and HELD_OUT[0] not in msl(
        "robustness", "mine", "--out", "half"
    )  # the half of them is another study
    write_keep_masks(place / HELD_OUT[1], masks)
    assert f"keep masks: {HELD_OUT[0]} and {HELD_OUT[1]}" in msl("robustness", "mine")
    assert (
        read_predictions("runs/mine/robustness/predictions/mine/irregular-20-30.parquet").origin.keep_masks == HELD_OUT
    )
    assert "keep masks:" not in msl("robustness", "mine", "--out", "patches", *PATCHES)


def test_the_command_that_makes_them_makes_what_is_looked_for(place):
    result = CliRunner().invoke(
        app, "build-masks --generate 8 --size 32 --per-subset 0 --seed 1 --out shards/heldout".split()
    )
    assert result.exit_code == 0, result.output
    assert "keep masks: " in msl("robustness", "mine")


def photographs(page: str = "runs/mine/report.json") -> list[object]:
    return json.loads(Path(page).read_text("utf-8"))["examples"]


def test_a_report_shows_the_run_s_own_test_photographs(place):
    said = msl("report", "mine")  # never evaluated before
    assert "test shards: shards/mine/test" in said and "without photographs" not in said
    assert "--examples shards/mine/test" in said and photographs()
    assert num_samples("runs/mine/predictions/mine-test.parquet") == 5
    assert msl("report", "mine") == said  # from the predictions that are there now


def test_a_report_on_other_data_is_made_without_them(place):
    msl("evaluate", "mine", "--data", "other")
    said = msl("report", "mine")
    assert "without photographs; --data SHARDS adds them" in said and not photographs()
    msl("evaluate", "mine")
    said = msl("report", "mine", code=2)
    assert "of several datasets" in said and "5 photographs" in said and "say which with --data SHARDS" in said


def test_a_report_after_the_test_shards_were_built_anew_is_made_without_them(place):
    msl("evaluate", "mine")
    for file in (place / "shards/mine/test").iterdir():
        file.unlink()
    write_images(place / "shards/mine/test", [7])
    assert "without photographs" in msl("report", "mine")
    (place / "shards/mine/test/dataset.json").write_text("{")
    assert "without photographs" in msl("report", "mine")


def test_a_report_without_all_of_the_test_shards_is_made_without_them(place):
    msl("evaluate", "mine")
    next((place / "shards/mine/test").glob("*.tar")).unlink()
    assert "without photographs" in msl("report", "mine")
