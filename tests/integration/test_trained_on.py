"""A model that met in training what it is measured on is said to have."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from msldata.contract.manifest import read_manifest
from msldata.contract.publish import write_manifest
from msldata.storage import LocalStorage, open_storage
from msltrain.__main__ import app
from msltrain.config import DataConfig, ModelConfig, TrainConfig
from msltrain.evaluation.evaluate import evaluate
from msltrain.runs.folder import DatasetIdentity, RunFolder
from msltrain.stream.config import StreamConfig
from msltrain.stream.samples.holdout import hold_out
from tests.integration.test_evaluate import write_checkpoint
from tests.smallshards import CLASSES, photo, write_images, write_keep_masks


def write(folder: Path, split: str, photos: list[int], dataset: str = "small") -> None:
    """A split with the photographs of these numbers, with keys of its own."""
    by_key = {f"s{number:06d}": photo(one) for number, one in enumerate(photos)}
    manifest = write_images(folder, [len(photos)], by_key, size=(60, 40))
    write_manifest(LocalStorage(folder), replace(manifest, dataset=dataset, split=split))


@pytest.fixture
def place(tmp_path) -> Path:
    """A run that was trained on eleven photographs, of which it set some aside, and a test split with seven others."""
    write(tmp_path / "train", "train", [*range(11)])
    write(tmp_path / "test", "test", [*range(100, 107)])
    data = DataConfig(train=str(tmp_path / "train"), validation_fraction=0.3)
    config = TrainConfig(
        data=data, stream=StreamConfig(image_size=32, batch_size=4), model=ModelConfig(backbone="resnet10t")
    )
    write_checkpoint(tmp_path / "run", CLASSES, config=config)
    identity = DatasetIdentity.of(data.train, read_manifest(open_storage(data.train)))
    RunFolder(tmp_path / "run").start(config, {"train": [identity]})
    return tmp_path


def notes_on(place: Path, shards: str = "test", **options: object) -> str:
    notes: list[str] = []
    evaluate(place / "run", place / shards, device="cpu", note=notes.append, **options)
    return "\n".join(notes)


def test_masks_of_training_are_said_wherever_they_are_measured_behind(place):
    """By `evaluate`, `robustness` and `report`; masks that training did not meet need no note."""
    rng = np.random.default_rng(0)
    for name in ("met", "new"):
        write_keep_masks(place / name, [(rng.random((32, 32)) > 0.6).astype(np.uint8) for _ in range(3)])
    noted = json.loads((place / "run" / "datasets.json").read_text())
    identity = DatasetIdentity.of(str(place / "met"), read_manifest(place / "met"))
    (place / "run" / "datasets.json").write_text(json.dumps({**noted, "keep_masks": [asdict(identity)]}))
    words = "were trained behind"
    assert words in notes_on(place, keep_masks=place / "met") and notes_on(place, keep_masks=place / "new") == ""
    for name in ("met", "new"):
        given = ("--data", place / "test", "--keep-masks", place / name, "--device", "cpu")
        for command, out, page in (("robustness", "study", "study/robustness.md"), ("report", "p.html", "p.md")):
            asked = [command, place / "run", *given, "--out", place / out]
            result = CliRunner().invoke(app, [str(word) for word in asked])
            assert result.exit_code == 0, result.output
            text = (place / page).read_text()
            assert (words in " ".join(result.output.split())) == (words in text) == (name == "met"), (command, text)
        shutil.rmtree(place / "study")


def test_other_photographs_need_no_note(place):
    assert notes_on(place) == ""


def test_photographs_of_training_are_counted(place):
    """A photograph is known by its file, whatever the dataset is called; what was set aside was not trained on."""
    write(place / "copy", "test", [*range(11), 100, 101], dataset="others")
    training, aside = hold_out(str(place / "train"), 0.3)
    assert aside.num_samples > 0
    said = notes_on(place, "copy")
    assert f"copy: {training.num_samples} of the 13 photographs were trained on" in said and "flatter" in said


def test_the_training_shards_themselves_have_one_note(place):
    said = notes_on(place, "train")
    assert "is what this model was trained on" in said and " of the 11 photographs" not in said
    assert notes_on(place, "train", held_out=True) == ""


def test_a_dataset_built_anew_is_said_to_be(place):
    """What lay at the place of the training shards is not known any more, nor which photographs it had."""
    write(place / "train", "train", [*range(9)])
    said = notes_on(place)
    assert "built anew since" in said and "photographs of" in said and "train again" in said
    shutil.rmtree(place / "train")
    assert "moved or deleted since" in notes_on(place)


def test_shards_that_were_moved_together_are_found(place):
    moved = place / "moved"
    moved.mkdir()
    for name in ("train", "test", "run"):
        (place / name).rename(moved / name)
    assert notes_on(moved) == ""
    write(moved / "test", "test", [*range(11), 100, 101])
    assert "of the 13 photographs were trained on" in notes_on(moved)


def test_shards_of_another_dataset_need_no_note_where_training_ones_are_gone(place):
    shutil.rmtree(place / "train")
    write(place / "test", "test", [*range(7)], dataset="others")
    assert notes_on(place) == ""


def test_a_report_says_so_first_on_terminal_and_page(place):
    write(place / "copy", "test", [*range(11), 100, 101], dataset="others")
    result = CliRunner().invoke(
        app, ["report", str(place / "run"), "--data", str(place / "copy"), "--device", "cpu"], env={"COLUMNS": "400"}
    )
    assert result.exit_code == 0, result.output
    assert re.search(r"note: .*copy: \d+ of the 13 photographs were trained on", result.output)
    assert re.search(r"“run”: .*copy: \d+ of the 13 photographs were trained on", (place / "run/report.md").read_text())


def test_robustness_says_it_too_and_keeps_its_page_with_the_run(place, tmp_path, monkeypatch):
    """On terminal, page and Markdown: photographs of training, training that was stopped, few photographs."""
    write(place / "copy", "test", [*range(11), 100, 101], dataset="others")
    shutil.copytree(place / "run/checkpoints/best", place / "run/checkpoints/last")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(
        app,
        ["robustness", "run", "--data", "copy", "--kind", "box", "--device", "cpu"],
        env={"COLUMNS": "400"},
    )
    assert result.exit_code == 0, result.output
    page, table = ((place / "run/robustness" / name).read_text() for name in ("robustness.html", "robustness.md"))
    assert not (place / "robustness").exists()
    for text in (result.output, page, table.replace("\\", "")):
        assert re.search(r"copy: \d+ of the 13 photographs were trained on", text)
        assert re.search(r"0 of \d+ epochs of its training are done", text)
        assert "nly 13 photographs, and " in text
        assert "how well each class" in text
    assert "others, test split: 13 images, 1 model, holes: box" in page
    assert "while more and more of each photograph is hidden" in page


def test_what_the_first_weights_have_seen_is_said_of_every_run_after_them(place):
    """Fine-tuned twice on other photographs, of which none is in the exam; those of the first run are."""
    write(place / "train", "train", [*range(9), 100, 101])  # the first run's, two of the exam among them
    first = DatasetIdentity.of(str(place / "train"), read_manifest(place / "train"))
    config = TrainConfig(
        data=DataConfig(train=str(place / "train")),
        stream=StreamConfig(image_size=32, batch_size=4),
        model=ModelConfig(backbone="resnet10t"),
    )
    RunFolder(place / "first").start(config, {"train": [first]})
    write(place / "other", "train", [*range(200, 208)])
    other = DatasetIdentity.of(str(place / "other"), read_manifest(place / "other"))
    before = "first"
    for name in ("second", "third"):
        weights = str(place / before / "checkpoints" / "best")
        tuned = replace(
            config, data=DataConfig(train=str(place / "other")), model=replace(config.model, weights=weights)
        )
        RunFolder(place / name).start(tuned, {"train": [other]})
        before = name
    assert RunFolder(place / "third").changes(tuned, {"train": [other]}) == []  # it may go on where the first is gone
    shutil.copytree(place / "third", place / "run", dirs_exist_ok=True)
    assert "2 of the 7 photographs were trained on" in notes_on(place)
