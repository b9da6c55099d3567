"""A run's config as a recipe: how runs are told from recipes, and what goes with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import msltrain
from msldata.errors import UserError
from msltrain.config import TrainConfig, to_json
from msltrain.recipes import recipe
from msltrain.runs.recorded import find_recipe, recipe_name
from msltrain.settings import given, override
from tests.smallshards import write_images

CONFIG = override(recipe("smoke"), {"optim.lr": 0.037, "data.train": "shards/here/train"})


@pytest.fixture
def at_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the run ``runs/a``, in which the user is."""
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs" / "a", CONFIG)
    return tmp_path


def write_run(folder: Path, config: TrainConfig) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(to_json(config))


@pytest.mark.parametrize(
    "name", ["a", "runs/a", "runs/a/", "runs/a/config.json", "{here}/runs/a", "file://{here}/runs/a"]
)
def test_a_run_is_found_by_name_folder_address_or_file(name: str, at_work: Path):
    assert find_recipe(name.format(here=at_work)) == CONFIG
    assert recipe_name(name.format(here=at_work)) == "a"


def test_a_recipe_goes_before_a_run_of_its_name_which_its_folder_means(at_work: Path):
    write_run(at_work / "runs" / "demo", CONFIG)
    assert find_recipe("demo") == recipe("demo") != CONFIG
    assert find_recipe("runs/demo") == CONFIG
    assert recipe_name("demo") == recipe_name("runs/demo") == "demo"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("b", r"no recipe 'b', and no run of this name; `msl recipes` lists the recipes$"),
        ("smok", r"did you mean smoke\?$"),
        ("runs/b", r"^runs/b: no run here \(no config\.json\); give the folder of a run, or the name of a recipe$"),
        ("other.json", r"^other\.json: config: no field 'lr'; there are data, "),
        ("list.json", r"^list\.json: config: expected named fields"),
    ],
)
def test_what_is_neither_is_said(name: str, said: str, at_work: Path):
    (at_work / "other.json").write_text('{"lr": 1}')
    (at_work / "list.json").write_text("[1]")
    with pytest.raises(UserError, match=said):
        find_recipe(name)


def test_a_run_that_is_nearly_called_so_is_meant(at_work: Path):
    write_run(at_work / "runs" / "harbour", CONFIG)
    with pytest.raises(UserError, match=r"did you mean harbour\?$"):
        find_recipe("harbor")


def test_with_other_data_go_the_validation_shards_beside_them(at_work: Path):
    validated = override(CONFIG, {"data.validation": "shards/here/val"})
    write_run(at_work / "runs" / "validated", validated)
    assert find_recipe("validated") == validated
    for split in ("train", "val"):
        write_images(at_work / "shards" / "there" / split, [4, 4])
    write_images(at_work / "shards" / "single" / "train", [4, 4])
    assert msltrain.recipe("validated", data="shards/there/train").data.validation == "shards/there/val"
    assert msltrain.recipe("validated", data="shards/single/train").data.validation == ""
    assert msltrain.recipe("a", data="shards/there/train").data.validation == "", "it set a part aside"


def test_settings_are_taken_as_values_and_as_text():
    values = {
        "optim.lr": 1,
        "optim.clip_norm": None,
        "run.amp": True,
        "stream.mean": (0.5, 0.25, 0.125),
        "data.keep_masks": [Path("a"), "b,c"],
        "model.weights": Path("first.pth"),
    }
    config = override(recipe("smoke"), values)
    assert (config.optim.lr, config.optim.clip_norm, config.run.amp) == (1.0, None, True)
    assert isinstance(config.optim.lr, float)
    assert (config.stream.mean, config.data.keep_masks) == ((0.5, 0.25, 0.125), ("a", "b,c"))
    assert config.model.weights == "first.pth"
    assert given(["optim.lr = 0.1", "optim.lr=0.2"]) == {"optim.lr": "0.2"}
    assert json.loads(to_json(config))["optim"]["lr"] == 1.0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"optim.lr": "0.1"}, r"^optim\.lr: expected a number, found '0\.1'$"),
        ({"optim.num_epochs": True}, r"^optim\.num_epochs: expected a whole number, found True$"),
        ({"lr": 0.1}, r"^settings: 'lr' names no field; expected section\.field, such as 'optim\.lr'$"),
        ({"optim.rate": 1}, r"^settings: 'optim\.rate': no field 'rate' in optim; there are optimizer, "),
        ({"optin.lr": 1}, r"^settings: 'optin\.lr': no section 'optin'; there are data, .*; did you mean optim\?$"),
    ],
)
def test_a_wrong_value_is_said(settings: dict, said: str):
    with pytest.raises(UserError, match=said):
        override(recipe("smoke"), settings)
    with pytest.raises(UserError, match=said):
        msltrain.recipe("smoke", settings=settings)
