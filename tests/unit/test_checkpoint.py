"""Checkpoints: round trip, swap as a whole, damage, full disks, untrusted files."""

from __future__ import annotations

import errno
import json
import os
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import msltrain.runs.checkpoint
from msldata.errors import StorageError, UserError
from msltrain.config import ModelConfig, TrainConfig
from msltrain.models.build import build_model
from msltrain.runs.checkpoint import (
    Checkpoint,
    copy_checkpoint,
    find_checkpoint,
    load_checkpoint,
    load_recogniser,
    save_checkpoint,
)
from msltrain.stream.config import StreamConfig

CONFIG = TrainConfig(
    stream=StreamConfig(image_size=32), model=ModelConfig(backbone="test_efficientnet", weights="gone.pth")
)
CLASSES = ("cat", "dog", "größe")


def checkpoint(step: int = 7) -> Checkpoint:
    torch.manual_seed(step)
    recogniser = build_model(replace(CONFIG.model, weights=""), 3, image_size=32)
    optimizer = torch.optim.AdamW(recogniser.parameters(), fused=True)
    recogniser(torch.randn(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    return Checkpoint(
        config=CONFIG,
        classes=CLASSES,
        step=step,
        epoch=2,
        validation_mAP=0.5,
        weights=recogniser.state_dict(),
        train_state={"optimizer": optimizer.state_dict(), "random": [{"python": (3, (1, 2), None)}], "best": None},
    )


def test_round_trip(tmp_path: Path):
    saved = checkpoint()
    save_checkpoint(saved, tmp_path / "last")
    loaded = load_checkpoint(tmp_path / "last")
    assert (loaded.config, loaded.classes) == (saved.config, saved.classes)
    assert (loaded.step, loaded.epoch, loaded.validation_mAP) == (7, 2, 0.5)
    assert list(loaded.weights) == list(saved.weights) or set(loaded.weights) == set(saved.weights)
    assert all(torch.equal(loaded.weights[name], tensor) for name, tensor in saved.weights.items())
    state, expected = loaded.train_state["optimizer"], saved.train_state["optimizer"]
    assert state["param_groups"] == expected["param_groups"]
    for number, moments in expected["state"].items():
        assert all(torch.equal(state["state"][number][name], value) for name, value in moments.items())
    assert loaded.train_state["random"] == saved.train_state["random"]
    assert json.loads((tmp_path / "last" / "meta.json").read_text())["classes"] == list(CLASSES)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last"]


def test_recogniser_comes_back_without_its_pretrained_file(tmp_path: Path):
    saved = checkpoint()
    save_checkpoint(saved, tmp_path / "run" / "checkpoints" / "last")
    loaded = load_recogniser(tmp_path / "run")
    assert loaded.path == tmp_path / "run" / "checkpoints" / "last"
    assert not loaded.recogniser.training
    network = build_model(replace(CONFIG.model, weights=""), 3, image_size=32).eval()
    network.load_state_dict(saved.weights)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded.recogniser(images), network(images))


def test_a_run_folder_means_its_best_checkpoint(tmp_path: Path):
    checkpoints = tmp_path / "checkpoints"
    save_checkpoint(checkpoint(), checkpoints / "last")
    assert find_checkpoint(tmp_path) == checkpoints / "last"
    copy_checkpoint(checkpoints / "last", checkpoints / "best")
    assert find_checkpoint(tmp_path) == find_checkpoint(checkpoints) == checkpoints / "best"
    assert find_checkpoint(checkpoints / "last") == checkpoints / "last"
    with pytest.raises(FileNotFoundError, match="no checkpoint here"):
        find_checkpoint(tmp_path / "nothing")


def test_a_copy_survives_the_next_save(tmp_path: Path):
    save_checkpoint(checkpoint(1), tmp_path / "last")
    copy_checkpoint(tmp_path / "last", tmp_path / "best")
    save_checkpoint(checkpoint(2), tmp_path / "last")
    assert (load_checkpoint(tmp_path / "best").step, load_checkpoint(tmp_path / "last").step) == (1, 2)
    assert torch.equal(
        load_checkpoint(tmp_path / "best").weights["classifier.score.weight"],
        checkpoint(1).weights["classifier.score.weight"],
    )


@pytest.mark.parametrize("file", ["weights.safetensors", "train_state.pt", "meta.json"])
def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str):
    save_checkpoint(checkpoint(1), tmp_path / "last")
    really_open = Path.open

    def full(self: Path, *args, **kwargs):
        if self.name == file:
            with really_open(self, "wb") as part:
                part.write(b"half of it")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return really_open(self, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", full)
        with pytest.raises(StorageError, match=r"the disk is full; .*last is still the previous one"):
            save_checkpoint(checkpoint(2), tmp_path / "last")
    assert load_checkpoint(tmp_path / "last").step == 1
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def test_a_crash_between_the_renames_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save_checkpoint(checkpoint(1), tmp_path / "last")
    really_rename = Path.rename

    class Killed(BaseException):
        pass

    def killed(self: Path, target: Path):
        if self.name.endswith(".part"):
            raise Killed
        return really_rename(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", killed)
        with pytest.raises(Killed):
            save_checkpoint(checkpoint(2), tmp_path / "last")
    assert not (tmp_path / "last").exists()
    assert load_checkpoint(tmp_path / "last").step == 1
    save_checkpoint(checkpoint(3), tmp_path / "last")
    assert load_checkpoint(tmp_path / "last").step == 3
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def test_damage_is_named(tmp_path: Path):
    folder = tmp_path / "last"
    save_checkpoint(checkpoint(), folder)
    weights = bytearray((folder / "weights.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "weights.safetensors").write_bytes(weights)
    with pytest.raises(UserError, match=r"weights\.safetensors: damaged \(sha256"):
        load_recogniser(folder)
    save_checkpoint(checkpoint(), folder)
    (folder / "train_state.pt").write_bytes(b"PK\x03\x04 no")
    with pytest.raises(UserError, match=r"train_state\.pt: damaged"):
        load_checkpoint(folder)
    (folder / "meta.json").write_text('{"schema_version": 1}')
    with pytest.raises(UserError, match=r"meta\.json: not the description of a checkpoint"):
        load_recogniser(folder)
    (folder / "meta.json").write_text('{"schema_version": 99}')
    with pytest.raises(UserError, match="schema version 99, this program reads 1 to 2"):
        load_recogniser(folder)


def edit_meta(folder: Path, change) -> None:
    content = json.loads((folder / "meta.json").read_text())
    change(content)
    (folder / "meta.json").write_text(json.dumps(content))


def as_before(content: dict) -> None:
    """What checkpoints of schema version 1 said."""
    del content["train_state_sha256"], content["meta_sha256"]
    content["schema_version"] = 1


class Exploit:
    def __reduce__(self):
        return (Path.touch, (Path("exploited"),))


def test_a_checkpoint_cannot_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    save_checkpoint(checkpoint(), tmp_path / "last")
    edit_meta(tmp_path / "last", as_before)
    torch.save({"optimizer": Exploit()}, tmp_path / "last" / "train_state.pt")
    with pytest.raises(UserError, match=r"train_state\.pt: damaged, or not plain data"):
        load_checkpoint(tmp_path / "last")
    assert not (tmp_path / "exploited").exists()


def test_other_classes_are_refused(tmp_path: Path):
    save_checkpoint(checkpoint(), tmp_path / "last")
    loaded = load_recogniser(tmp_path / "last")
    loaded.require_classes(CLASSES, "shards/x")
    with pytest.raises(UserError, match="the data lacks größe; the checkpoint does not know bird"):
        loaded.require_classes(("cat", "dog", "bird"), "shards/x")
    with pytest.raises(UserError, match="in another order"):
        loaded.require_classes(CLASSES[::-1], "shards/x")


def test_channels_last_weights_are_stored_plainly(tmp_path: Path):
    saved = checkpoint()
    weights = {
        name: tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
        for name, tensor in saved.weights.items()
    }
    save_checkpoint(replace(saved, weights=weights), tmp_path / "last")
    loaded = load_checkpoint(tmp_path / "last").weights
    assert all(torch.equal(loaded[name], tensor) for name, tensor in saved.weights.items())


def test_names_are_public():
    assert msltrain.runs.checkpoint.WEIGHTS_NAME == "weights.safetensors"


@pytest.mark.parametrize("file", ["weights.safetensors", "train_state.pt", "meta.json"])
def test_any_flipped_bit_is_found(tmp_path: Path, file: str):
    """Most flips in the state of training load without an error, and go on to other weights."""
    save_checkpoint(checkpoint(), tmp_path / "last")
    whole = (tmp_path / "last" / file).read_bytes()
    flips = random.Random(0)
    for _ in range(40):
        damaged = bytearray(whole)
        damaged[flips.randrange(len(whole))] ^= 1 << flips.randrange(8)
        if file == "meta.json" and json_equal(whole, damaged):
            continue  # white space
        (tmp_path / "last" / file).write_bytes(damaged)
        with pytest.raises(UserError):
            load_checkpoint(tmp_path / "last")


def json_equal(one: bytes, other: bytes) -> bool:
    try:
        return json.loads(one) == json.loads(other)
    except ValueError:
        return False


def test_a_checkpoint_of_schema_version_1_still_loads(tmp_path: Path):
    save_checkpoint(checkpoint(), tmp_path / "last")

    edit_meta(tmp_path / "last", as_before)
    assert load_checkpoint(tmp_path / "last").step == 7
    assert load_recogniser(tmp_path / "last").classes == CLASSES


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": ["cat", "cat", "dog"]}, "classes are not distinct names"),
        ({"classes": "cat"}, "classes are not distinct names"),
        ({"step": -1}, "not a count"),
        ({"epoch": True}, "not a count"),
        ({"validation_mAP": float("nan")}, "from 0 to 1"),
        ({"weights_sha256": "../x"}, "64 hex digits"),
        ({"config": []}, "expected named fields"),
        ({"config": None}, "expected named fields"),
    ],
)
def test_what_no_training_writes_is_refused(tmp_path: Path, change: dict, message: str):
    save_checkpoint(checkpoint(), tmp_path / "last")
    edit_meta(tmp_path / "last", lambda content: content.update(change, schema_version=1))
    with pytest.raises(UserError, match=message):
        load_checkpoint(tmp_path / "last")
