"""Which checkpoint and which shards a place means, and what is said where there is none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from msldata.contract.manifest import IMAGES, Manifest
from msldata.contract.publish import write_manifest
from msldata.errors import UserError
from msldata.storage import LocalStorage
from msltrain.recipes import recipe
from msltrain.runs.checkpoint import Checkpoint, save_checkpoint
from msltrain.runs.find_checkpoint import (
    EXPORT_CONFIG,
    EXPORT_WEIGHTS,
    Foreign,
    check_model,
    check_unused,
    find_checkpoint,
    folder_of_weights,
    holds_run,
    is_export,
    refuse_part,
    training_shards,
)
from msltrain.runs.find_checkpoint import test_shards as shards_to_test
from msltrain.runs.run_places import find_dataset


def save(folder: Path, train: str = "", validation: str = "") -> Path:
    """A checkpoint of a run on these shards."""
    config = recipe("smoke")
    config = replace(config, data=replace(config.data, train=train, validation=validation))
    checkpoint = Checkpoint(
        config=config, classes=("cat",), step=1, epoch=1, validation_mAP=None,
        weights={"w": torch.ones(1)}, train_state={},
    )  # fmt: skip
    save_checkpoint(checkpoint, folder)
    return folder


def write_export(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True)
    for name in names or ("config.json", "model.safetensors"):
        (folder / name).write_bytes(b"any")
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_is_looked_at_before_a_model_is_loaded(tmp_path: Path):
    check_model(save(tmp_path / "run/checkpoints/last"))
    check_model(tmp_path / "run")
    check_model(tmp_path / "run/checkpoints/last/weights.safetensors")
    check_model(write_export(tmp_path / "export"))  # what is in it is left to whoever loads it
    check_model(tmp_path / "export/model.safetensors")
    (tmp_path / "alone.safetensors").write_bytes(b"any")
    check_model(tmp_path / "alone.safetensors")
    for elsewhere in ("hf://somebody/something", "s3://bucket/run"):
        check_model(elsewhere)
    with pytest.raises(FileNotFoundError, match="no checkpoint here"):
        check_model(tmp_path)
    (tmp_path / "run/checkpoints/last/meta.json").write_text("{}")
    with pytest.raises(UserError, match="not the description of a checkpoint"):
        check_model(tmp_path / "run")


def test_nothing_is_foreign_unless_it_is_said():
    assert Foreign() == Foreign(recipe="", model="")


def test_a_weights_file_stands_for_its_folder_where_that_says_more(tmp_path: Path):
    for folder, name, beside in (
        ("run", "weights.safetensors", "meta.json"),
        ("ex", "model.safetensors", "config.json"),
    ):
        file = write_export(tmp_path / folder, name) / name
        assert folder_of_weights(file) == file
        (file.parent / beside).write_text("{}")
        assert folder_of_weights(file) == file.parent
        assert folder_of_weights(file.parent) == file.parent
        other = file.rename(file.with_name("other.safetensors"))
        assert folder_of_weights(other) == other
    (tmp_path / "odd/weights.safetensors").mkdir(parents=True)  # a folder that is called so
    (tmp_path / "odd/meta.json").write_text("{}")
    assert folder_of_weights(tmp_path / "odd/weights.safetensors") == tmp_path / "odd/weights.safetensors"


def test_an_export_has_both_of_its_files(tmp_path: Path):
    assert is_export(write_export(tmp_path / "both"))
    assert not is_export(write_export(tmp_path / "one", "config.json"))
    assert not is_export(write_export(tmp_path / "other", "model.safetensors"))


def test_a_folder_with_a_checkpoint_is_used(tmp_path: Path):
    (tmp_path / "checkpoints/last").mkdir(parents=True)
    assert not holds_run(tmp_path)
    check_unused(tmp_path, "mine")
    check_unused(tmp_path / "absent", "mine")
    save(tmp_path / "checkpoints/epoch-0001")
    assert holds_run(tmp_path)
    with pytest.raises(UserError) as refused:
        check_unused(tmp_path, "mine")
    assert str(refused.value) == (
        "mine: holds a run already; continue it with --resume auto, or choose another folder with --run"
    )


@pytest.mark.parametrize("held", ["shards/mine/dataset.json", "dataset.json", "other/checkpoints/last/meta.json"])
def test_a_folder_of_other_things_is_no_place_for_a_run(tmp_path: Path, held: str):
    for file in ("run.log", "config.json", "checkpoints/.tmp", "logs/out.txt"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    check_unused(tmp_path, "mine")
    (tmp_path / held).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / held).touch()
    with pytest.raises(
        UserError, match=r"^mine: holds other things, such as \S+; give the run a folder of its own with"
    ):
        check_unused(tmp_path, "mine")


def test_no_run_is_begun_among_photographs(tmp_path: Path):
    (tmp_path / "IMG_1.JPG").touch()
    with pytest.raises(UserError, match=r"such as \S+/IMG_1\.JPG; give the run a folder of its own with --run$"):
        check_unused(tmp_path, "mine")


def test_the_folder_is_named_where_runs_are_not_below_it(here: Path):
    with pytest.raises(FileNotFoundError) as refused:
        find_checkpoint("mine")
    assert str(refused.value) == (
        f"mine: no run of this name, here or in runs/; {here} has no runs/, perhaps another folder has it"
    )
    with pytest.raises(UserError, match=rf"--name NAME`; {here} has no shards/, perhaps another folder has it$"):
        find_dataset("mine")


def test_a_name_that_is_no_run_gets_the_command_or_the_run_that_was_meant(here: Path):
    (here / "runs/harbour").mkdir(parents=True)
    (here / "shards/streets").mkdir(parents=True)
    (here / "empty").mkdir()
    for name, end in (
        ("harbur", r"no run of this name, here or in runs/.*did you mean .*harbour.*"),
        ("streets", r"no run of this name, here or in runs/; `msl train streets` makes one"),
        (
            "empty",
            r"no checkpoint here \(no meta\.json\); give a run folder or a folder such as RUN/checkpoints/best, .*",
        ),
        ("runs/harbur", r"no checkpoint here .*"),
    ):
        with pytest.raises(FileNotFoundError, match=rf"^{name}: {end}$"):
            find_checkpoint(name)


def test_the_shards_that_a_run_was_validated_on(tmp_path: Path):
    assert training_shards(save(tmp_path / "one", "shards/a/train")) == "shards/a/train"
    assert training_shards(save(tmp_path / "two", "shards/a/train", "shards/a/val")) == "shards/a/val"
    for validation in ("", "shards/a/val"):
        nameless = save(tmp_path / "three", "", validation)
        with pytest.raises(UserError, match=r"three: does not say what it was trained on; name the shards with --data"):
            training_shards(nameless)


def test_the_test_shards_beside_those_of_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for place in ("d/train", "d/test", "e/test"):
        manifest = Manifest(kind=IMAGES, dataset="d", split="any", classes=("cat",))
        write_manifest(LocalStorage(tmp_path / place), manifest)
    run = save(tmp_path / "run", str(tmp_path / "d/train"))
    assert shards_to_test(run) == str(tmp_path / "d/test")
    (tmp_path / "d/test/dataset.json").unlink()
    assert shards_to_test(run) is None
    monkeypatch.chdir(tmp_path / "e")  # beside nothing is not beside whoever asks
    assert shards_to_test(save(tmp_path / "other")) is None
    assert shards_to_test(tmp_path / "nothing") is None
    (run / "meta.json").write_text("{}")
    assert shards_to_test(run) is None


def test_one_file_of_a_model_is_refused_where_its_model_is(tmp_path: Path):
    for name in ("meta.json", "README.md"):
        (tmp_path / name).touch()
    for name in ("meta.json", "README.md"):
        with pytest.raises(UserError, match=rf"{name}: one file of a model; give its folder, {tmp_path}$"):
            refuse_part(tmp_path / name)
    (tmp_path / "meta.json").unlink()
    refuse_part(tmp_path / "README.md")  # anybody's
    refuse_part(tmp_path)
    refuse_part(tmp_path / "absent.onnx")
    (tmp_path / "graph.onnx").touch()
    with pytest.raises(UserError, match="a graph for other programs"):
        refuse_part(tmp_path / "graph.onnx")
    for name in (EXPORT_CONFIG, EXPORT_WEIGHTS):
        (tmp_path / name).touch()
    for name in ("graph.onnx", "README.md"):
        with pytest.raises(UserError, match="one file of a model; give its folder"):
            refuse_part(tmp_path / name)
