"""What evaluate, robustness, predict, serve and export say of data that do not fit, and of one bad image in 1,000."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from msldata.contract.manifest import MANIFEST_NAME, read_manifest
from msldata.storage import LocalStorage
from msltrain.__main__ import app
from msltrain.config import ModelConfig, TrainConfig
from msltrain.stream.config import StreamConfig
from tests.integration.test_evaluate import write_checkpoint
from tests.smallshards import CLASSES, photo, write_images, write_keep_masks

NUM_IMAGES = 1000
BAD = 567
BROKEN = b"this is no photograph"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Runs, shards, photographs and keep masks, and what is wrong with each."""
    folder = tmp_path_factory.mktemp("mistakes")
    small = TrainConfig(stream=StreamConfig(image_size=32, batch_size=4), model=ModelConfig(backbone="test_resnet"))
    write_checkpoint(folder / "run", CLASSES, config=small)
    write_checkpoint(folder / "other", ("bird", "boat", "zebra"), config=small)
    write_images(folder / "shards", [3])
    write_images(folder / "unnamed", [3])
    manifest = read_manifest(LocalStorage(folder / "unnamed"))
    write_images(folder / "renamed", [3])
    for name, classes in (("unnamed", ()), ("renamed", ("x", "y", "z"))):
        other = replace(manifest, classes=classes, label_histogram={})
        (folder / name / MANIFEST_NAME).write_bytes(other.to_json())
    write_keep_masks(folder / "masks", [np.tri(32, dtype=np.uint8)])
    write_keep_masks(folder / "other-masks", [np.tri(32, dtype=np.uint8)])
    without = replace(small, model=ModelConfig(backbone="test_vit"))
    write_checkpoint(folder / "vit", CLASSES, config=without)
    (folder / "empty").mkdir()
    (folder / "broken").mkdir()
    (folder / "broken" / "broken.jpg").write_bytes(BROKEN)
    return folder


@pytest.fixture(scope="module")
def thousand(place) -> Path:
    """A thousand photographs, as shards and as files; one of them is none."""
    write_images(place / "thousand", [400, 600], {f"s{BAD:06d}": BROKEN}, size=(40, 30))
    (place / "photos").mkdir()
    data = [photo(number, 40, 30) for number in range(20)]
    for number in range(NUM_IMAGES):
        (place / "photos" / f"p{number:06d}.jpg").write_bytes(BROKEN if number == BAD else data[number % 20])
    return place


def msl(command: str) -> tuple[int, str, str]:
    device = [] if command.startswith("export") else ["--device", "cpu"]
    result = CliRunner().invoke(app, [*command.split(), *device], env={"COLUMNS": "200"})
    return result.exit_code, result.stdout, " ".join(result.stderr.split())


ROBUSTNESS = "robustness --out study --keep-masks masks --checkpoint"
FOREIGN = "--checkpoint broken/broken.jpg --recipe smoke --classes unnamed"
NO_CLASSES = "unnamed: its dataset.json names no classes"
OTHER_CLASSES = "the data lacks zebra; the checkpoint does not know cat"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        # No class list.
        ("evaluate --checkpoint run --data unnamed", NO_CLASSES),
        (f"{ROBUSTNESS} run --data unnamed", NO_CLASSES),
        (f"{ROBUSTNESS} run --data shards --recalibrate unnamed --recalibrate-masks other-masks", NO_CLASSES),
        (f"predict shards {FOREIGN}", "unnamed: names no classes"),
        (f"export {FOREIGN} --out out", "unnamed: names no classes"),
        # Other classes; in a study also those of the second model, before the first one runs.
        ("evaluate --checkpoint other --data shards", OTHER_CLASSES),
        (f"{ROBUSTNESS} other --data shards", OTHER_CLASSES),
        (f"{ROBUSTNESS} run --checkpoint other --data shards", OTHER_CLASSES),
        (f"{ROBUSTNESS} run --checkpoint gone --data shards", "gone: no run of this name, here or in runs/"),
        (
            f"{ROBUSTNESS} run --data shards --recalibrate renamed --recalibrate-masks other-masks",
            "renamed: its classes are not those of",
        ),
        (
            f"{ROBUSTNESS} vit --data shards --recalibrate shards --recalibrate-masks other-masks",
            "no BatchNorm, so there is nothing to recalibrate",
        ),
        # An empty folder, wherever a folder is asked for.
        ("evaluate --checkpoint run --data empty", "empty: no finished dataset here"),
        ("evaluate --checkpoint run --data shard", "no finished dataset here (no dataset.json); did you mean shards?"),
        ("evaluate --checkpoint empty --data shards", "empty: no checkpoint here"),
        ("evaluate --checkpoint run --data shards --keep-masks empty", "empty: no finished dataset here"),
        (f"{ROBUSTNESS} run --data empty", "empty: no finished dataset here"),
        (f"{ROBUSTNESS} empty --data shards", "empty: no checkpoint here"),
        ("robustness --out study --checkpoint run --data shards --keep-masks empty", "empty: no finished dataset here"),
        ("predict empty --checkpoint run", "empty: no images here"),
        ("predict shards --checkpoint empty", "empty: no checkpoint here"),
        ("serve --checkpoint empty", "empty: no checkpoint here"),
        ("serve --checkpoint run --examples empty", "empty: no images here"),
        ("export --checkpoint empty --out out", "empty: no checkpoint here"),
        ("export --checkpoint run --images empty --out out", "empty: no images here"),
        # A picture that is none.
        ("predict broken --checkpoint run --on-error fail", "--on-error skip"),
        ("export --checkpoint run --images broken --out out", "give other photographs with --images"),
        (
            "predict shards --checkpoint run --keep-mask broken/broken.jpg --polarity hole-white",
            "broken.jpg: not an image; give another file with --keep-mask",
        ),
    ],
)
def test_one_clear_message_and_nothing_written(place, monkeypatch, command, words):
    monkeypatch.chdir(place)
    code, _, errors = msl(command)
    assert code == 2 and "error:" in errors and words in errors and "Traceback" not in errors, errors
    assert not (place / "out").exists() and not list((place / "study").rglob("*.parquet"))


def test_evaluate_names_the_one_in_a_thousand_or_goes_on_without_it(thousand, monkeypatch, tmp_path):
    monkeypatch.chdir(thousand)
    command = f"evaluate --checkpoint run --data thousand --batch-size 200 --out {tmp_path}/p.parquet"
    code, _, errors = msl(command)
    assert code == 2 and re.search(rf"sample 's{BAD:06d}' at byte \d+ of \S+000001\.tar", errors)
    code, output, errors = msl(f"{command} --on-sample-error skip")
    assert code == 0 and "999 samples" in output
    assert "1 bad sample was left out" in errors and f"s{BAD:06d} at byte" in errors


def test_robustness_too(thousand, monkeypatch, tmp_path):
    monkeypatch.chdir(thousand)
    command = f"robustness --out {tmp_path}/study --keep-masks masks --checkpoint run --data thousand --batch-size 200"
    code, _, errors = msl(command)
    assert code == 2 and f"sample 's{BAD:06d}' at byte" in errors
    code, _, errors = msl(f"{command} --on-sample-error skip")
    assert code == 0 and "1 bad sample was left out" in errors and f"s{BAD:06d} at byte" in errors
    table = (tmp_path / "study" / "robustness.md").read_text()
    assert " 999 images, " in table and f"- s{BAD:06d} at byte" in table


@pytest.mark.parametrize(
    ("source", "name"), [("photos", f"photos/p{BAD:06d}.jpg"), ("thousand", f"thousand#s{BAD:06d}")]
)
def test_predict_too(thousand, monkeypatch, source, name):
    monkeypatch.chdir(thousand)
    code, output, errors = msl(f"predict {source} --checkpoint run --batch-size 200 --on-error fail")
    assert code == 2 and f"{name}: not an image" in errors and "--on-error skip" in errors
    code, output, errors = msl(f"predict {source} --checkpoint run --batch-size 200 --format json")
    lines = [json.loads(line) for line in output.splitlines()]
    assert code == 1 and len(lines) == NUM_IMAGES
    assert [line["file"] for line in lines if "error" in line] == [name]
    assert f"1 of {NUM_IMAGES:,} images could not be read and was left out: {name}: not an image" in errors
