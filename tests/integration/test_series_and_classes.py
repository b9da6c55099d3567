"""A series as one model, training data as such, the held-out part without naming data, classes matched by name."""

from __future__ import annotations

import json
import re
import shutil
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from msldata.contract.manifest import read_manifest
from msldata.contract.publish import write_manifest
from msldata.errors import UserError
from msldata.storage import LocalStorage
from msltrain.__main__ import app
from msltrain.measures.predictions import read_predictions
from msltrain.runs.run_places import default_file
from tests.smallshards import photo, write_images, write_keep_masks


def msl(*command: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(part) for part in command], env={"COLUMNS": "300"})
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def numbers(*command: object) -> dict[str, Any]:
    """What the command prints with ``--json``."""
    return json.loads(CliRunner().invoke(app, [*map(str, command), "--json"]).stdout)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("series")
    write_images(root / "train", [30], with_objects=True)
    write_images(root / "test", [12], with_objects=True)
    manifest = read_manifest(LocalStorage(root / "test"))
    write_manifest(LocalStorage(root / "test"), replace(manifest, split="test"))
    write_keep_masks(root / "high", [np.eye(32, dtype=np.uint8)] * 2)
    (root / "a.jpg").write_bytes(photo(1))
    settings = ("stream.image_size=32", "model.backbone=test_efficientnet", "run.device=cpu", "optim.num_epochs=1")
    places = ("--data", root / "train", "--keep-masks", root / "high", "--run", root / "runs")
    changed = (part for one in settings for part in ("--set", one))
    said = msl("train", "--recipe", "smoke", *places, "--seeds", "0,1", *changed)
    assert f"msl report {root / 'runs'}" in said  # all seeds on one page
    return root


def test_evaluate_measures_a_series(place, tmp_path):
    where = ("--data", place / "test", "--device", "cpu")
    said = msl("evaluate", "--checkpoint", place / "runs", *where)
    content = numbers("evaluate", "--checkpoint", place / "runs", *where)
    single = [
        numbers("evaluate", "--checkpoint", place / "runs" / f"seed{seed}", *where)["metrics"]["mAP_by_kind"]["msl"]
        for seed in (0, 1)
    ]
    summary = content["summary"]["mAP"]
    assert (summary["mean"], summary["standard_deviation"]) == pytest.approx(
        (statistics.fmean(single), statistics.stdev(single))
    )
    numbers_shown = [float(number) for number in re.findall(r"\d+\.\d+", said)]
    for value in summary["mean"], summary["standard_deviation"]:
        assert min(abs(number - 100 * value) for number in numbers_shown) < 0.006, said
    assert "seed0" in said and "±" in said
    assert "leave --out away" in msl(
        "evaluate", "--checkpoint", place / "runs", *where, "--out", tmp_path / "x.csv", code=2
    )


def test_evaluate_of_a_series_heeds_what_is_asked_of_it(place):
    where = ("evaluate", "--checkpoint", place / "runs", "--data", place / "test", "--device", "cpu")
    said = msl(*where, "--intervals", "--per-class")
    told = numbers(*where, "--intervals")
    interval = told["intervals"]["mAP"]
    assert interval["value"] == pytest.approx(told["summary"]["mAP"]["mean"])
    assert f"{100 * interval['low']:.2f}" in said and f"{100 * interval['high']:.2f}" in said
    both = [[one["average_precision"] for one in run["metrics"]["classes"]] for run in told["runs"]]
    for values in zip(*both):
        mean, deviation = 100 * statistics.fmean(values), 100 * statistics.stdev(values)
        assert f" {mean:.2f} ± {deviation:.2f} " in said
    assert " large " in said  # the strata, as of one run
    assert numbers(*where)["intervals"] == {}


def test_what_takes_single_runs_says_so_of_a_series(place, tmp_path):
    for command in (("robustness", "--data", place / "test"), ("export", "--out", tmp_path / "e")):
        said = msl(command[0], place / "runs", *command[1:], code=2)
        assert f"a series of 2 runs, and this takes single ones, such as {place / 'runs' / 'seed0'}" in said, said
    with pytest.raises(UserError, match=r"a folder, not a predictions file; those of a run are RUN/predictions/"):
        read_predictions(place / "runs")


def test_predict_takes_a_series(place, tmp_path):
    for name, run in (("all", "runs"), ("one", "runs/seed0"), ("two", "runs/seed1")):
        arguments = ("--checkpoint", place / run, "--out", tmp_path / f"{name}.json", "--top-k", 3)
        said = msl("predict", place / "a.jpg", *arguments)
        assert "mean of 2 runs" in said or name != "all"
    together, one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("all", "one", "two"))
    for name in ("bird", "boat", "cat"):
        values = [one["scores"][name], two["scores"][name]]
        assert together["scores"][name] == pytest.approx(statistics.fmean(values))
        assert together["score_sd"][name] == pytest.approx(statistics.stdev(values))
    assert " ± " in msl("predict", place / "a.jpg", "--checkpoint", place / "runs")


def test_report_takes_a_series(place, tmp_path):
    said = msl(
        "report", "--run", place / "runs", "--data", place / "test", "--out", tmp_path / "p.html", "--device", "cpu"
    )
    assert "mean ± standard deviation of 2 runs: mAP" in said
    assert "runs seed0" in (tmp_path / "p.html").read_text()
    # One seed is no rival of the other.
    page = (tmp_path / "p.md").read_text()
    assert page.startswith("# Run “runs” (2 seeds)") and "“runs” (mean of 2 runs) reaches a mean average" in page
    assert "runs seed1 − runs seed0" not in page and "one training run per model" not in page


def test_the_training_data_is_called_so(place):
    run = ("--checkpoint", place / "runs" / "seed0", "--device", "cpu")
    assert "is what this model was trained on" in msl("evaluate", *run, "--data", place / "train")
    assert "was trained on" not in msl("evaluate", *run, "--data", place / "test")
    assert "was trained on" not in msl("evaluate", *run, "--data", place / "train", "--held-out")


def test_held_out_needs_no_data(place):
    said = msl("evaluate", "--checkpoint", place / "runs" / "seed0", "--held-out", "--device", "cpu")
    assert default_file("seed0", place / "train", held_out=True).name in said
    # Without either it is the test split that lies beside the training split.
    said = msl("evaluate", "--checkpoint", place / "runs" / "seed0", "--device", "cpu")
    assert f"{default_file('seed0', place / 'test').name}: 12 samples" in said


def test_held_out_is_of_the_shards_that_the_run_was_trained_on(place, tmp_path):
    """Of others, or of the same built anew, other samples would be set aside, some of which were trained on."""
    run = ("--checkpoint", place / "runs" / "seed0", "--device", "cpu", "--held-out")
    write_images(tmp_path / "train", [31], with_objects=True)
    for other in (place / "test", tmp_path / "train"):
        said = msl("evaluate", *run, "--data", other, code=2)
        assert f"{other}: not what" in said and f"set samples of aside, {place / 'train'}" in said
    shutil.copytree(place / "train", tmp_path / "elsewhere")
    assert "samples" in msl("evaluate", *run, "--data", tmp_path / "elsewhere")


def relabelled(place: Path, folder: Path, classes: tuple[str, ...]) -> Path:
    """The test shards under other names: index and names are changed together, so what a sample shows stays."""
    from msldata.build.writer import ShardWriter
    from msldata.contract.format import encode_target, read_index
    from msldata.contract.tar import walk_tar

    storage = LocalStorage(place / "test")
    manifest = read_manifest(storage)
    (shard,) = manifest.shards
    number = {
        manifest.classes.index(name): position for position, name in enumerate(classes) if name in manifest.classes
    }
    data = storage.read(shard.name)
    files = {item.name: data[item.offset : item.offset + item.length] for item in walk_tar(data)}
    with ShardWriter(LocalStorage(folder), shard.name, kind=manifest.kind, plan="test") as writer:
        for row in read_index(storage, manifest, shard).to_pylist():
            key = row.pop("key")
            for name in ("positives", "ignored"):
                row[name] = sorted(number[one] for one in row[name])
            for thing in row["objects"]:
                thing["class_index"] = number[thing["class_index"]]
            kept = {name: value for name, value in row.items() if name not in ("offset", "length", "crc32")}
            target = encode_target(row["positives"], len(classes))
            writer.add(key, [(".jpg", files[f"{key}.jpg"]), (".json", b"{}"), (".target.npy", target)], kept)
        shards = (writer.publish(),)
    write_manifest(LocalStorage(folder), replace(manifest, classes=classes, shards=shards, label_histogram={}))
    return folder


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        (("cat", "bird", "boat"), "another order than the model's; they are matched by name"),
        (("ant", "bird", "boat", "cat"), "1 of 4 classes left out, which the model does not know: ant"),
        (("cat", "zebra", "boat", "bird"), "another order"),
    ],
)
def test_classes_are_matched_by_name(place, tmp_path, classes, said):
    run = ("--checkpoint", place / "runs" / "seed0", "--device", "cpu", "--data")
    other = relabelled(place, tmp_path / "other", classes)
    assert said in msl("evaluate", *run, other, "--out", tmp_path / "other.parquet")
    msl("evaluate", *run, place / "test", "--out", tmp_path / "same.parquet")
    found, wanted = (read_predictions(tmp_path / f"{name}.parquet") for name in ("other", "same"))
    assert found.classes == wanted.classes and np.array_equal(found.logit_NK, wanted.logit_NK)
    assert np.array_equal(found.target_NK, wanted.target_NK) and np.array_equal(found.ignore_NK, wanted.ignore_NK)
    assert np.array_equal(found.objects.dense("area"), wanted.objects.dense("area"))


def test_a_class_that_is_missing_is_refused(place, tmp_path):
    shutil.copytree(place / "test", tmp_path / "other")
    manifest = read_manifest(LocalStorage(place / "test"))
    write_manifest(LocalStorage(tmp_path / "other"), replace(manifest, classes=("bird", "boat", "dog")))
    run = ("--checkpoint", place / "runs" / "seed0", "--device", "cpu", "--data", tmp_path / "other")
    assert "the data lacks cat" in msl("evaluate", *run, code=2)
