"""Checkpoints: round trip, swap as a whole, damage, full disks, untrusted files."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import msltrain.runs.checkpoint
import msltrain.runs.find_checkpoint
from msldata.errors import StorageError, UserError
from msldata.storage import LocalStorage
from msltrain.config import ModelConfig, TrainConfig, override
from msltrain.measures.predictions import Origin, Predictions, write_predictions
from msltrain.models.build import build_model
from msltrain.runs.checkpoint import (
    Checkpoint,
    LoadedRecogniser,
    copy_checkpoint,
    load_checkpoint,
    load_recogniser,
    save_checkpoint,
)
from msltrain.runs.find_checkpoint import find_checkpoint, open_checkpoint, progress_of
from msltrain.runs.other_checkpoints import Foreign, load_any
from msltrain.stream.config import StreamConfig
from msltrain.use.predict import thresholds_of

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


def small(step: int = 7, **changes) -> Checkpoint:
    """One without a network."""
    plain = Checkpoint(
        config=CONFIG, classes=CLASSES, step=step, epoch=2, validation_mAP=0.5,
        weights={"w": torch.arange(3.0)}, train_state={"best": None},
    )  # fmt: skip
    return replace(plain, **changes)


class Far(LocalStorage):
    """A folder that is called by a URL, as object storage is."""

    def __init__(self, root: str | Path, *, can_list: bool = True):
        super().__init__(root)
        self.url, self.can_list = f"far:/{root}", can_list

    def child(self, name: str) -> Far:
        return Far(self.root / name, can_list=self.can_list)

    def path(self, name: str = "") -> None:
        return None

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def exists(self, name: str) -> bool:
        return (self.root / name).is_file()


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


@pytest.mark.parametrize("ended", [False, True])
def test_a_checkpoint_says_whether_its_run_was_ended_on_purpose(tmp_path: Path, ended: bool):
    save_checkpoint(small(ended=ended), tmp_path / "last")
    meta = json.loads((tmp_path / "last" / "meta.json").read_text())
    assert meta.get("ended") is (True if ended else None)
    assert load_checkpoint(tmp_path / "last").ended is ended
    edit_meta(tmp_path / "last", lambda content: (as_before(content), content.update(ended="no")))
    with pytest.raises(UserError, match="ended is neither true nor false"):
        load_checkpoint(tmp_path / "last")


@pytest.mark.parametrize(
    ("epoch", "best", "patience", "ended", "is_over"),
    [
        (2, 2, 0, False, False),
        (3, 3, 0, False, True),
        (2, 1, 1, False, True),
        (2, 2, 1, False, False),
        (2, 1, 2, False, False),
        (1, 1, 0, True, True),
    ],
)
def test_a_run_is_over_with_its_epochs_its_patience_or_on_purpose(tmp_path, epoch, best, patience, ended, is_over):
    config = override(CONFIG, ["optim.num_epochs=3", f"optim.patience={patience}"])
    save_checkpoint(small(9, config=config, epoch=epoch, ended=ended), tmp_path / "checkpoints" / "last")
    assert progress_of(tmp_path).is_over is (epoch == 3 or ended)
    save_checkpoint(small(5, config=config, epoch=best), tmp_path / "checkpoints" / "best")
    found = progress_of(tmp_path)
    assert (found.epoch, found.num_epochs, found.step, found.is_over) == (epoch, 3, 9, is_over)


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


def _fail(file: Path) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


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
    with monkeypatch.context() as patched:  # nor does the next one, where it does not come to its end
        patched.setattr(msltrain.runs.checkpoint, "flush_to_disk", _fail)
        with pytest.raises(StorageError, match="could not be written: the disk is full"):
            save_checkpoint(checkpoint(2), tmp_path / "last")
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
    assert loaded.ordered_as(CLASSES[::-1], "shards/x").classes == CLASSES[::-1]
    for match_up in (loaded.ordered_as, loaded.columns_of):
        with pytest.raises(UserError, match="the data lacks größe; the checkpoint does not know bird"):
            match_up(("cat", "dog", "bird"), "shards/x")


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
    names = msltrain.runs.find_checkpoint
    assert (names.WEIGHTS_NAME, names.STATE_NAME, names.META_NAME) == (
        "weights.safetensors", "train_state.pt", "meta.json"
    )  # fmt: skip
    assert (names.CHECKPOINTS, names.BEST, names.LAST, names.FAILED) == ("checkpoints", "best", "last", "failed")


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


def test_the_checkpoint_that_a_url_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The best, else the last; of two uploads the one with more steps, which is not the last by name."""
    monkeypatch.setattr(
        msltrain.runs.find_checkpoint, "open_storage", lambda place: Far(str(place).removeprefix("far:/"))
    )
    run = f"far:/{tmp_path}"
    checkpoints = tmp_path / "checkpoints"
    for name, step in (("last.9", 9), ("last.10", 10), ("last.x", 98), ("best.7.old", 99), ("xbest.70", 97)):
        save_checkpoint(small(step), checkpoints / name)
    assert load_checkpoint(run).step == load_checkpoint(f"{run}/checkpoints").step == 10
    assert load_checkpoint(f"{run}/checkpoints/last").step == 10
    assert load_checkpoint(f"{run}/checkpoints/last.9").step == 9
    save_checkpoint(small(5), tmp_path / "copied/mine")
    assert load_checkpoint(f"{run}/copied/mine").step == 5
    save_checkpoint(small(2), checkpoints / "best.2")
    assert load_checkpoint(run).step == 2
    save_checkpoint(small(3), checkpoints / "best")  # a copied run: the numbered one is newer all the same
    assert load_checkpoint(run).step == 2
    for missing in ("checkpoints/epoch-0001", "elsewhere"):
        with pytest.raises(FileNotFoundError, match=rf"^{run}/{missing}: no checkpoint here \(no meta\.json\); give"):
            open_checkpoint(f"{run}/{missing}")


def test_where_nothing_can_be_listed_the_plain_names_are_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = Far(tmp_path, can_list=False)
    monkeypatch.setattr(msltrain.runs.find_checkpoint, "open_storage", lambda place: folder)
    save_checkpoint(small(9), tmp_path / "checkpoints" / "best.9")
    save_checkpoint(small(4), tmp_path / "checkpoints" / "last")
    assert load_checkpoint("far:/run").step == 4


def test_a_swap_that_was_cut_short_is_found_in_a_run_too(tmp_path: Path):
    for name, step in (("best", 3), ("last", 4)):
        save_checkpoint(small(step), tmp_path / "checkpoints" / name)
        (tmp_path / "checkpoints" / name).rename(tmp_path / "checkpoints" / f".{name}.old")
    assert find_checkpoint(tmp_path) == tmp_path / "checkpoints/.best.old"
    assert find_checkpoint(tmp_path / "checkpoints/last") == tmp_path / "checkpoints/.last.old"
    save_checkpoint(small(5), tmp_path / "checkpoints/last")
    assert [path.name for path in (tmp_path / "checkpoints").iterdir() if "last" in path.name] == ["last"]


def test_a_copy_is_of_the_same_files_where_they_can_be_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save_checkpoint(small(), tmp_path / "last")
    copy_checkpoint(tmp_path / "last", tmp_path / "linked")
    for file in (tmp_path / "last").iterdir():
        assert file.samefile(tmp_path / "linked" / file.name)

    def refused(*_):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refused)
    copy_checkpoint(tmp_path / "last", tmp_path / "copied")
    for file in (tmp_path / "last").iterdir():
        copied = tmp_path / "copied" / file.name
        assert copied.read_bytes() == file.read_bytes() and not copied.samefile(file)


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "the disk is full"),
        (errno.EACCES, "permission denied"),
        (None, "odd"),
    ],
)
def test_what_cannot_be_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int | None, says: str):
    def refused(self: Path, data: bytes):
        raise OSError("Odd") if number is None else OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "write_bytes", refused)
    with pytest.raises(StorageError) as failed:
        save_checkpoint(small(), tmp_path / "last")
    assert str(failed.value) == f"{tmp_path}/last: could not be written: {says}"
    assert not list(tmp_path.iterdir())


def test_the_order_of_a_swap_is_write_flush_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save_checkpoint(small(1), tmp_path / "last")
    done: list[str] = []
    rename = Path.rename
    monkeypatch.setattr(msltrain.runs.checkpoint, "flush_to_disk", lambda file: done.append(f"flush {file.name}"))

    def renamed(self: Path, target: Path) -> Path:
        done.append(f"{self.name} to {target.name}")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", renamed)
    save_checkpoint(small(2), tmp_path / "last")
    flushed = [f"flush {name}" for name in ("meta.json", "train_state.pt", "weights.safetensors")]
    assert sorted(done[:3]) == flushed and done[3:] == ["last to .last.old", ".last.part to last"]


def test_what_is_left_of_a_killed_save_is_not_taken_over(tmp_path: Path):
    (tmp_path / ".last.part").mkdir()
    (tmp_path / ".last.part/stray.bin").write_bytes(b"half")
    save_checkpoint(small(2), tmp_path / "last")
    save_checkpoint(small(1), tmp_path / ".last.old")  # killed before it was removed
    save_checkpoint(small(), tmp_path / "last")
    assert sorted(path.name for path in (tmp_path / "last").iterdir()) == [
        "meta.json", "train_state.pt", "weights.safetensors"
    ]  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def test_what_meta_json_says(tmp_path: Path):
    save_checkpoint(small(), tmp_path / "last")
    text = (tmp_path / "last/meta.json").read_text(encoding="utf-8")
    meta = json.loads(text)
    assert list(meta) == [
        "schema_version", "step", "epoch", "validation_mAP", "classes", "weights_sha256", "train_state_sha256",
        "torch", "config", "meta_sha256",
    ]  # fmt: skip
    assert (meta["schema_version"], meta["step"], meta["epoch"], meta["validation_mAP"]) == (2, 7, 2, 0.5)
    assert meta["torch"] == torch.__version__ and meta["config"]["stream"]["image_size"] == 32
    for name, file in (("weights_sha256", "weights.safetensors"), ("train_state_sha256", "train_state.pt")):
        assert meta[name] == hashlib.sha256((tmp_path / "last" / file).read_bytes()).hexdigest()
    assert '\n  "step": 7,\n' in text and "größe" in text and text.endswith("}\n")
    own = meta.pop("meta_sha256")
    assert own == hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def rewrite_meta(folder: Path, **changes) -> None:
    """Change what meta.json says, with the digest that fits."""
    meta = {**json.loads((folder / "meta.json").read_text()), **changes}
    del meta["meta_sha256"]
    meta["meta_sha256"] = hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()
    (folder / "meta.json").write_text(json.dumps(meta))


@pytest.mark.parametrize("mean_ap", [None, 0, 1, 0.25])
def test_a_measure_is_from_0_to_1_or_absent(tmp_path: Path, mean_ap: float | None):
    save_checkpoint(small(0, epoch=0, validation_mAP=mean_ap), tmp_path / "last")
    loaded = load_checkpoint(tmp_path / "last")
    assert (loaded.step, loaded.epoch, loaded.validation_mAP) == (0, 0, mean_ap)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"validation_mAP": -0.01}, "validation_mAP is not a number from 0 to 1"),
        ({"validation_mAP": 1.01}, "validation_mAP is not a number from 0 to 1"),
        ({"validation_mAP": True}, "validation_mAP is not a number from 0 to 1"),
        ({"validation_mAP": "0.5"}, "validation_mAP is not a number from 0 to 1"),
        ({"step": 7.0}, "step or epoch is not a count"),
        ({"epoch": -1}, "step or epoch is not a count"),
        ({"classes": []}, "classes are not distinct names"),
        ({"classes": ["cat", ""]}, "classes are not distinct names"),
        ({"classes": ["cat", 7]}, "classes are not distinct names"),
        ({"weights_sha256": "0" * 63}, "weights_sha256 is not 64 hex digits"),
        ({"train_state_sha256": None}, "train_state_sha256 is no digest"),
        ({"train_state_sha256": "g" * 64}, "train_state_sha256 is no digest"),
        ({"schema_version": 3}, "schema version 3, this program reads 1 to 2"),
        ({"schema_version": 0}, "schema version 0, this program reads 1 to 2"),
        ({"schema_version": True}, "schema version True, this program reads 1 to 2"),
    ],
)
def test_a_description_with_a_right_digest_is_read_with_care(tmp_path: Path, changes: dict, says: str):
    save_checkpoint(small(), tmp_path / "last")
    rewrite_meta(tmp_path / "last", **changes)
    with pytest.raises(UserError, match=rf"meta\.json: {says}"):
        load_checkpoint(tmp_path / "last")


def test_what_a_description_lacks_is_named(tmp_path: Path):
    save_checkpoint(small(), tmp_path / "last")

    def without(content: dict) -> None:
        as_before(content)
        for name in ("step", "epoch", "validation_mAP", "classes", "weights_sha256"):
            del content[name]

    edit_meta(tmp_path / "last", without)
    with pytest.raises(UserError, match=r"meta\.json: lacks classes, epoch, step, validation_mAP, weights_sha256$"):
        load_checkpoint(tmp_path / "last")
    for text in ("{", "[]", "7", '"x"', "[" * 100_000, '{"schema_version": 2}'):
        (tmp_path / "last/meta.json").write_text(text)
        with pytest.raises(UserError, match=r"meta\.json: not the description of a checkpoint"):
            load_checkpoint(tmp_path / "last")
    (tmp_path / "last/meta.json").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"meta\.json: not the description of a checkpoint"):
        load_checkpoint(tmp_path / "last")


def test_an_edited_description_is_damaged(tmp_path: Path):
    save_checkpoint(small(), tmp_path / "last")
    edit_meta(tmp_path / "last", lambda content: content.update(step=8))
    with pytest.raises(UserError, match=r"meta\.json: damaged or edited \(it does not match its own digest\)"):
        load_checkpoint(tmp_path / "last")


def test_files_that_are_missing_or_others_are_named(tmp_path: Path):
    folder = tmp_path / "last"
    save_checkpoint(small(train_state=[1, 2]), folder)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"train_state\.pt: not a training state$"):
        load_checkpoint(folder)
    save_checkpoint(small(), folder)
    digest = hashlib.sha256((folder / "train_state.pt").read_bytes()).hexdigest()
    (folder / "train_state.pt").write_bytes(b"other")
    found = hashlib.sha256(b"other").hexdigest()
    with pytest.raises(UserError) as refused:
        load_checkpoint(folder)
    said = f"train_state.pt: damaged (sha256 {found[:12]}…, meta.json says {digest[:12]}…); copy it again"
    assert str(refused.value) == f"{folder}/{said}"
    (folder / "train_state.pt").unlink()
    with pytest.raises(UserError, match=r"train_state\.pt: missing, so this checkpoint can be evaluated but not conti"):
        load_checkpoint(folder)
    (folder / "weights.safetensors").write_bytes(b"no weights")
    rewrite_meta(folder, weights_sha256=hashlib.sha256(b"no weights").hexdigest())
    with pytest.raises(UserError, match=r"weights\.safetensors: not a weights file \(.+\); copy it again"):
        load_checkpoint(folder)
    (folder / "weights.safetensors").unlink()
    with pytest.raises(UserError, match=r"weights\.safetensors: missing; copy the whole checkpoint folder"):
        load_checkpoint(folder)


def test_weights_of_another_network_are_named(tmp_path: Path):
    save_checkpoint(small(), tmp_path / "last")
    with pytest.raises(UserError, match=r"weights\.safetensors: does not fit the network .* \(it lacks .*; it has w\)"):
        load_recogniser(tmp_path / "last")


@pytest.mark.parametrize(
    "changes", [{"classes": "abc"}, {"classes": ["a", "a"]}, {"classes": ["a", ""]}, {"threshold_origin": 7}]
)
def test_an_export_whose_classes_are_none_is_refused(tmp_path: Path, changes: dict):
    """A text would be taken for classes of one letter."""
    content = {"classes": ["a", "b"], "weights_sha256": "0" * 64, **changes}
    (tmp_path / "config.json").write_text(json.dumps(content))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"config\.json: not what `msl export` writes \(its"):
        load_any(tmp_path, Foreign(), (), torch.device("cpu"))


def loaded_from(path: str | Path) -> LoadedRecogniser:
    return LoadedRecogniser(recogniser=torch.nn.Identity(), classes=CLASSES, config=CONFIG, path=path, sha256="")


def test_outputs_and_thresholds_are_put_in_another_order():
    loaded = replace(loaded_from("run"), thresholds=(0.1, 0.2, 0.3))
    there = (CLASSES[1], CLASSES[2], CLASSES[0])  # going round, which is not the same as going back
    assert loaded.ordered_as(CLASSES, "x") is loaded
    found = loaded.ordered_as(there, "x")
    assert found.classes == there and found.thresholds == (0.2, 0.3, 0.1)
    assert found.recogniser(torch.tensor([[1.0, 2.0, 3.0]])).tolist() == [[2, 3, 1]]


def test_classes_are_found_by_name():
    loaded = loaded_from("run")
    assert loaded.columns_of(("größe", "bird", "cat", "dog"), "x").tolist() == [2, 3, 0]
    assert loaded.columns_of(CLASSES, "x").dtype == np.int64
    with pytest.raises(UserError) as refused:
        loaded.columns_of(("dog", *"abcdef"), "shards/x")
    assert str(refused.value) == (
        "shards/x: its classes are not those of run (3 classes in the checkpoint, 7 in the data; the data lacks cat, "
        "größe; the checkpoint does not know a, b, c, d, e); use shards of the dataset it was trained on"
    )


def test_what_is_called_by_an_address_is_not_looked_for_in_a_folder_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    save_checkpoint(small(epoch=0), Path("s3://bucket/run/checkpoints/last"))
    Path("s3://bucket/run/predictions").mkdir()
    Path("s3://bucket/run/predictions/a.parquet").touch()
    here, there = loaded_from(Path("s3://bucket/run/checkpoints/last")), loaded_from("s3://bucket/run/checkpoints/last")
    assert len(here.prediction_files()) == 1 and here.unfinished()
    assert there.prediction_files() == [] and there.unfinished() == ""


@pytest.mark.parametrize(
    ("done", "best", "patience", "is_over"),
    [
        (3, None, 0, False),
        (4, None, 0, True),
        (5, None, 0, True),  # it was made shorter
        (3, 1, 0, False),
        (3, 1, 2, True),  # two epochs after the best
        (3, 2, 2, False),
        (3, None, 1, False),
    ],
)
def test_a_run_that_was_stopped_is_said_to_be(
    tmp_path: Path, done: int, best: int | None, patience: int, is_over: bool
):
    config = replace(CONFIG, optim=replace(CONFIG.optim, num_epochs=4, patience=patience))
    save_checkpoint(small(config=config, epoch=done), tmp_path / "checkpoints/last")
    if best is not None:
        save_checkpoint(small(config=config, epoch=best), tmp_path / "checkpoints/best")
    said = loaded_from(tmp_path / "checkpoints/last").unfinished()
    assert said == ("" if is_over else (
        f"{tmp_path}: 3 of 4 epochs of its training are done, so these are not the scores of a finished model; if it "
        "was stopped, --resume auto of `msl train` goes on"
    ))  # fmt: skip
    (tmp_path / "checkpoints/last/meta.json").write_text("{}")
    assert loaded_from(tmp_path / "checkpoints/last").unfinished() == ""
    assert loaded_from(tmp_path / "elsewhere").unfinished() == ""


def test_a_place_where_nothing_can_be_is_said(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"file/last: could not be written: not a directory$"):
        save_checkpoint(small(), tmp_path / "file/last")


def test_predictions_lie_in_the_run(tmp_path: Path):
    (tmp_path / "predictions").mkdir()
    for name in ("b.parquet", "a.parquet", "a.json"):
        (tmp_path / "predictions" / name).touch()
    found = loaded_from(tmp_path / "checkpoints/best").prediction_files()
    assert [file.name for file in found] == ["a.parquet", "b.parquet"]
    assert [file.name for file in loaded_from(tmp_path / "checkpoints/best").prediction_files("a.*")] == [
        "a.json", "a.parquet"
    ]  # fmt: skip
    assert loaded_from("s3://bucket/run").prediction_files() == []


def test_thresholds_are_those_tuned_for_these_weights_on_whole_images(tmp_path: Path):
    target_NK = np.eye(3, dtype=np.uint8)[np.arange(36) % 3]
    logit_NK = (4.0 * target_NK + 1).astype(np.float32)
    ignore_NK, keys = np.zeros((36, 3), bool), tuple(map(str, range(36)))
    loaded, found = replace(loaded_from(tmp_path / "checkpoints/best"), sha256="ab" * 32), []
    others: tuple[dict[str, Any], ...] = (
        {"checkpoint_sha256": "cd" * 32}, {"keep_masks": ("high",)}, {"test_time": "flip"}, {"image_size": 64},
        {"reading": "ef" * 8}, {"image_size": 32},
    )  # fmt: skip
    for number, changes in enumerate(others):
        origin = Origin(**{"checkpoint": "best", "checkpoint_sha256": loaded.sha256, **changes})
        told = Predictions(
            keys=keys, logit_NK=logit_NK, target_NK=target_NK, ignore_NK=ignore_NK, classes=CLASSES, origin=origin
        )
        write_predictions(told, tmp_path / f"predictions/{number}-held-out.parquet")
        found.append(thresholds_of(loaded)[0].round(3).tolist())
    assert found == [*[[0.5] * 3] * 5, [0.953] * 3]  # midway between logits 1 and 5


def test_weights_that_recipes_read_in_other_ways_are_other_models(tmp_path: Path):
    plain = loaded_from(tmp_path / "best")

    def reading(**parts: Any) -> str:
        return replace(plain, config=replace(CONFIG, **parts)).reading

    model, stream = CONFIG.model, CONFIG.stream
    assert reading(model=replace(model, weights="elsewhere.pth")) == plain.reading
    others = [
        reading(model=replace(model, attention_weight=0.2)),
        reading(model=replace(model, num_heads=2)),
        reading(model=replace(model, head="mean")),
        reading(stream=replace(stream, mean=(0.5, 0.5, 0.5))),
        reading(stream=replace(stream, std=(0.5, 0.5, 0.5))),
    ]
    assert len({plain.reading, *others}) == 6
