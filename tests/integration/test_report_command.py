"""``msl report`` as a user meets it: run folders to page, Markdown and JSON, whose numbers a short script finds."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from msltrain.__main__ import app
from msltrain.config import to_json
from msltrain.measures.metrics import SUMMARY, compute_metrics
from msltrain.measures.predictions import read_predictions, write_predictions
from msltrain.report.numbers import compute_numbers
from msltrain.report.open_runs import open_run
from msltrain.runs.checkpoint import load_checkpoint, save_checkpoint
from msltrain.runs.run_places import default_file
from tests.integration.test_evaluate import write_checkpoint
from tests.integration.test_report import Page
from tests.smallshards import CLASSES, write_images, write_keep_masks

REPOSITORY = Path(__file__).resolve().parents[2]


def msl(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "200"})
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Test shards with objects, two folders of held-out keep masks, a trained and an imported model, a study."""
    folder = tmp_path_factory.mktemp("report")
    write_images(folder / "shards", (30, 1, 9), with_objects=True)
    rng = np.random.default_rng(0)
    for name, hidden in (("low", 0.2), ("high", 0.6)):
        masks = [(rng.random((32, 32)) > hidden).astype(np.uint8) for _ in range(3)]
        write_keep_masks(folder / "heldout" / name, masks)
    for seed, name in enumerate(("baseline", "msl")):
        run = write_checkpoint(folder / "runs" / name, CLASSES, seed=seed)
        (run / "config.json").write_text(to_json(load_checkpoint(run).config))
    (run / "metrics.jsonl").write_text('{"step": 1, "epoch": 0, "clean": 0.7, "validation_mAP": 0.2}\n')
    (folder / "runs" / "baseline" / "config.json").unlink()  # as import-checkpoint leaves it
    code, output = msl(
        *("robustness", "--device", "cpu", "--out", folder / "study", "--data", folder / "shards"),
        *("--checkpoint", folder / "runs/baseline", "--checkpoint", folder / "runs/msl"),
        *(word for name in ("low", "high") for word in ("--keep-masks", folder / "heldout" / name)),
        *("--name", "Plain", "--name", "MSL"),
    )
    assert code == 0, output
    return folder


def runs_of(place: Path) -> list[object]:
    return ["--run", place / "runs/baseline", "--run", place / "runs/msl", "--name", "Baseline", "--name", "MSL"]


@pytest.fixture(scope="module")
def page(place) -> Path:
    """The comparison with everything in it."""
    code, output = msl(
        *("report", *runs_of(place), "--data", place / "shards", "--robustness", place / "study", "--examples", 4),
        *("--keep-masks", place / "heldout/low", "--keep-masks", place / "heldout/high"),
        *("--out", place / "pages/comparison.html", "--device", "cpu"),
    )
    assert code == 0, output
    for suffix in ("html", "md", "json"):
        assert str(place / f"pages/comparison.{suffix}") in output
    return place / "pages/comparison.html"


def test_the_page_has_every_part(page):
    text = page.read_text("utf-8")
    headings = re.findall(r'<h2 id="([\w-]+)">', text)
    parts = ["accuracy", "strata", "robustness", "examples", "by-class", "companions", "training", "method"]
    assert headings == parts and re.findall(r'href="#([\w-]+)"', text)[1 : 1 + len(parts)] == parts
    assert "Runs “Baseline” and “MSL”, tested on the train split of dataset “small”" in text
    for number, kind in ((1, "Table"), (4, "Table"), (1, "Figure"), (5, "Figure")):
        assert text.count(f"<b>{kind} {number}.</b>") == 1
    Page(text)


def test_json_and_markdown_hold_the_numbers_of_the_predictions(page, place):
    content = json.loads(page.with_suffix(".json").read_text("utf-8"))
    runs = []
    for folder, name in (("baseline", "Baseline"), ("msl", "MSL")):
        run = place / "runs" / folder
        masks = {condition: [place / "heldout" / condition] for condition in ("low", "high")}
        masked = {condition: default_file(run, place / "shards", folders) for condition, folders in masks.items()}
        runs.append(open_run(run, name=name, clean=default_file(run, place / "shards"), masked=masked))
    numbers = compute_numbers(runs)
    markdown = page.with_suffix(".md").read_text("utf-8")
    for number, run in enumerate(content["runs"]):
        assert list(run["conditions"]) == ["whole", "low", "high"]
        for condition, found in run["conditions"].items():
            assert found["file"] == str(runs[number].files[condition])
            summary = numbers.measured[number][condition].metrics.summary()
            assert {name: found["metrics"][name] for name in SUMMARY} == summary
            row = " | ".join(f"{100 * value:.1f}" for value in summary.values())
            assert f"| {run['name']} | {row} |" in markdown
    both = np.array(content["labels_together"]["num_both"])
    target_NK = read_predictions(runs[0].files["whole"]).target_NK.astype(int)
    np.testing.assert_array_equal(both, target_NK.T @ target_NK)
    assert {one["group"] for one in content["examples"]} == {"win", "failure"} and len(content["examples"]) == 4


def test_the_script_of_the_docs_finds_the_numbers_of_the_report(page, place, tmp_path):
    page_text = (REPOSITORY / "docs" / "evaluation.md").read_text("utf-8")
    scripts = [block for block in re.findall(r"```python\n(.*?)```", page_text, re.DOTALL) if "pq.read_table" in block]
    assert len(scripts) == 1, "docs/evaluation.md shows one script that recomputes the numbers"
    script = scripts[0]
    assert len(script.strip().splitlines()) <= 12 and "msl" not in script
    (tmp_path / "recompute.py").write_text(script)
    content = json.loads(page.with_suffix(".json").read_text("utf-8"))
    expected: dict[tuple[str, str], list[float]] = {}
    for run in content["runs"]:
        for found in run["conditions"].values():
            expected[found["file"], "all"] = [found["metrics"][name] for name in SUMMARY]
            for row in found["strata"]:
                if row["name"] in ("small", "medium", "large") and row["num_positive"]:
                    expected[found["file"], row["name"]] = [row["mAP"], row["CR"]]
    for cell in content["robustness"]["cells"]:
        file = str(place / "study/predictions" / cell["model"] / f"{cell['condition']}.parquet")
        expected[file, "all"] = [cell["mAP"], cell["CR"], cell["CF1"]]
    result = subprocess.run(
        [sys.executable, tmp_path / "recompute.py", *dict.fromkeys(file for file, _ in expected)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    printed = {}
    for line in result.stdout.splitlines():
        file, part, *values = line.split()
        printed[file, part] = dict(zip(SUMMARY, map(float, values), strict=True))
    assert len(expected) > 20
    measures = {7: SUMMARY, 3: ("mAP", "CR", "CF1"), 2: ("mAP", "CR")}
    for key, values in expected.items():
        for name, value in zip(measures[len(values)], values, strict=True):
            assert printed[key][name] == pytest.approx(100 * value, abs=0.0051), (key, name)


def test_predictions_are_taken_when_they_are_there_and_made_when_not(page, place, tmp_path):
    files = sorted((place / "runs").glob("*/predictions/*.parquet"))
    assert len(files) == 6
    before = {file: file.stat().st_mtime_ns for file in files}
    first = page.with_suffix(".json").read_bytes()
    # Without keep masks the conditions are those of the files; without shards there are no photographs.
    code, output = msl("report", *runs_of(place), "--robustness", place / "study", "--out", tmp_path / "again.html")
    assert code == 0 and "--data SHARDS adds them" in output, output
    assert {file: file.stat().st_mtime_ns for file in files} == before
    again = json.loads((tmp_path / "again.json").read_text("utf-8"))
    assert again["runs"] == json.loads(first)["runs"] and again["examples"] == []
    assert "<img" not in (tmp_path / "again.html").read_text("utf-8")

    shutil.copytree(place / "runs/msl", tmp_path / "msl")
    missing = next((tmp_path / "msl/predictions").glob("*high*"))
    before_NK = read_predictions(missing).logit_NK
    missing.unlink()
    one = ("report", "--run", tmp_path / "msl", "--device", "cpu")
    masks = ("--keep-masks", place / "heldout/low", "--keep-masks", place / "heldout/high")
    code, output = msl(*one, "--data", place / "shards", *masks)
    assert code == 0, output
    np.testing.assert_array_equal(read_predictions(missing).logit_NK, before_NK)
    assert (tmp_path / "msl/report.html").exists()


def hidden_pictures(page: Path) -> int:
    return len(re.findall(r'alt="Photograph s\d+ with \d+ % hidden"', page.read_text("utf-8")))


def test_a_report_can_be_made_from_elsewhere_and_after_a_move(place, tmp_path, monkeypatch):
    """The folders of keep masks were named relative to where the evaluation ran."""
    here = tmp_path / "here"
    shutil.copytree(place, here, ignore=shutil.ignore_patterns("predictions", "study", "pages"))
    monkeypatch.chdir(here)
    for masks in ((), ("--keep-masks", "heldout/low"), ("--keep-masks", "heldout/high")):
        code, output = msl("evaluate", "--checkpoint", "runs/msl", "--data", "shards", *masks, "--device", "cpu")
        assert code == 0, output
    there = tmp_path / "other" / "there"
    there.parent.mkdir()
    here.rename(there)
    monkeypatch.chdir(tmp_path)
    command = ("report", "--run", there / "runs/msl", "--data", there / "shards", "--examples", 2, "--device", "cpu")
    code, output = msl(*command, "--out", tmp_path / "moved.html")
    assert code == 0 and "cannot" not in output, output
    assert hidden_pictures(tmp_path / "moved.html") == 3

    (there / "heldout").rename(tmp_path / "masks")  # from here on it is not to be found from the run
    code, output = msl(*command, "--out", tmp_path / "without.html")
    assert code == 0 and "no picture behind them can be shown" in " ".join(output.split()), output
    assert hidden_pictures(tmp_path / "without.html") == 0
    without = (tmp_path / "without.html").read_text("utf-8")
    assert without.count("<img") == 3 and "no picture behind them can be shown" in without

    given = [word for name in ("low", "high") for word in ("--keep-masks", tmp_path / "masks" / name)]
    code, output = msl(*command, *given, "--out", tmp_path / "given.html")
    assert code == 0 and "cannot" not in output, output
    assert hidden_pictures(tmp_path / "given.html") == 3
    assert not list((there / "runs/msl/predictions").glob("*masks*")), "nothing was evaluated again"


def test_the_first_folder_that_is_given_wins_over_the_recorded_one(page, place, tmp_path):
    shutil.copytree(place / "heldout", tmp_path / "heldout")
    before = place / "heldout/high"
    hidden = before.with_name("away")
    before.rename(hidden)
    try:
        given = [word for name in ("low", "high") for word in ("--keep-masks", tmp_path / "heldout" / name)]
        code, output = msl(
            *("report", "--run", place / "runs/msl", "--data", place / "shards", "--examples", 2, "--device", "cpu"),
            *(*given, "--out", tmp_path / "r.html"),
        )
    finally:
        hidden.rename(before)
    assert code == 0, output
    assert hidden_pictures(tmp_path / "r.html") == 3


def test_the_page_shows_where_each_model_looked(page, place, tmp_path):
    text = page.read_text("utf-8")
    maps = re.findall(r'alt="Where “(Baseline|MSL)” sees (\w+), score (\d+)\s%"', text)
    assert [name for name, _, _ in maps] == ["Baseline", "MSL"] * 4
    shutil.copytree(place / "runs/msl", tmp_path / "msl")
    shutil.rmtree(tmp_path / "msl/checkpoints")
    code, output = msl(
        *("report", "--run", tmp_path / "msl", "--data", place / "shards", "--examples", 2, "--device", "cpu"),
    )
    assert code == 0 and "Where it looked is not drawn for “msl”: the weights are not here." in output, output
    assert "sees" not in (tmp_path / "msl/report.html").read_text("utf-8")


def test_predictions_of_earlier_weights_are_not_shown(page, place, tmp_path):
    shutil.copytree(place / "runs/msl", tmp_path / "msl")
    other = load_checkpoint(write_checkpoint(tmp_path / "other", CLASSES, seed=9))
    save_checkpoint(other, tmp_path / "msl/checkpoints/best")
    code, output = msl("report", "--run", tmp_path / "msl")
    assert code == 2 and "trained further since" in output and "--data SHARDS" in output
    code, output = msl("report", "--run", tmp_path / "msl", "--data", place / "shards", "--device", "cpu")
    assert code == 0, output
    content = json.loads((tmp_path / "msl/report.json").read_text("utf-8"))
    old = json.loads(page.with_suffix(".json").read_text("utf-8"))["runs"][1]["conditions"]
    new = content["runs"][0]["conditions"]
    assert list(new) == ["whole", "low", "high"]
    for condition, found in new.items():
        assert found["metrics"]["mAP"] != old[condition]["metrics"]["mAP"]


def test_predictions_of_held_out_samples_are_no_test(page, place, tmp_path):
    shutil.copytree(place / "runs/msl", tmp_path / "msl")
    whole = read_predictions(default_file(tmp_path / "msl", place / "shards"))
    part = replace(whole, logit_NK=-whole.logit_NK, origin=replace(whole.origin, part="held out"))
    write_predictions(part, tmp_path / "msl/predictions/a.parquet")  # the first by name
    code, output = msl("report", "--run", tmp_path / "msl")
    assert code == 0, output
    found = json.loads((tmp_path / "msl/report.json").read_text("utf-8"))["runs"][0]["conditions"]["whole"]
    assert found["metrics"]["mAP"] == compute_metrics(whole).mAP


def test_masks_in_a_folder_called_whole_do_not_stand_for_whole_images(page, place, tmp_path):
    shutil.copytree(place / "runs/msl", tmp_path / "msl")
    shutil.copytree(place / "heldout/high", tmp_path / "whole")
    where = ("--data", place / "shards", "--keep-masks", tmp_path / "whole", "--device", "cpu")
    code, output = msl("report", "--run", tmp_path / "msl", *where)
    assert code == 0, output
    found = json.loads((tmp_path / "msl/report.json").read_text("utf-8"))["runs"][0]["conditions"]
    whole = compute_metrics(read_predictions(default_file(tmp_path / "msl", place / "shards")))
    assert len(found) == 2 and found["whole"]["metrics"]["mAP"] == whole.mAP
    assert found["whole"]["origin"]["keep_masks"] == []


def test_one_run_names_no_other(page, place, tmp_path):
    code, output = msl("report", "--run", place / "runs/msl/checkpoints/best", "--out", tmp_path / "one.html")
    assert code == 0, output
    text = (tmp_path / "one.html").read_text("utf-8")
    assert "Run “msl best”, tested on the train split of dataset “small”" in text and "Validation mAP" in text
    assert "against" not in re.sub(r"<pre>.*?</pre>", "", text, flags=re.DOTALL)


def test_messages(page, place, tmp_path):
    for arguments, message in (
        (["--run", tmp_path], "no checkpoint here"),
        (["--run", place / "runs/msl", "--keep-masks", place / "heldout/low"], "needs --data SHARDS"),
        (["--run", place / "runs/msl", "--name", "A", "--name", "B"], "1 run and 2 names"),
        (["--run", place / "runs/msl", "--run", place / "runs/msl"], "same name"),
        (["--run", place / "runs/msl", "--robustness", tmp_path], "robustness.json"),
        (["--run", place / "runs/baseline", "--name", "MSL", "--robustness", place / "study"], "other weights"),
    ):
        code, output = msl("report", *arguments)
        assert code == 2 and message in output and "Traceback" not in output, output


def test_a_run_that_was_never_evaluated_says_what_to_do(tmp_path):
    write_checkpoint(tmp_path / "run", CLASSES)
    code, output = msl("report", "--run", tmp_path / "run")
    assert code == 2 and f"msl evaluate --checkpoint {tmp_path / 'run'} --data SHARDS" in output


def test_predictions_of_several_datasets_need_a_choice(page, place, tmp_path):
    shutil.copytree(place / "runs/msl", tmp_path / "msl")
    write_images(tmp_path / "more", (12,))
    code, output = msl("evaluate", "--checkpoint", tmp_path / "msl", "--data", tmp_path / "more", "--device", "cpu")
    assert code == 0, output
    code, output = msl("report", "--run", tmp_path / "msl")
    assert code == 2 and "say which with --data" in output
    code, output = msl("report", "--run", tmp_path / "msl", "--data", tmp_path / "more", "--device", "cpu")
    assert code == 0, output
    assert list(json.loads((tmp_path / "msl/report.json").read_text())["runs"][0]["conditions"]) == ["whole"]


def test_a_study_older_than_its_predictions_is_refused(page, place, tmp_path):
    shutil.copytree(place / "study", tmp_path / "study")
    content = json.loads((tmp_path / "study/robustness.json").read_text())
    content["cells"][0]["mAP"] += 0.01
    (tmp_path / "study/robustness.json").write_text(json.dumps(content))
    code, output = msl("report", "--run", place / "runs/msl", "--robustness", tmp_path / "study")
    assert code == 2 and "older than the predictions" in output
    write_images(tmp_path / "more", (12,))
    code, output = msl(
        *("report", "--run", place / "runs/msl", "--data", tmp_path / "more", "--device", "cpu"),
        *("--robustness", place / "study"),
    )
    assert code == 2 and "a study on other shards" in output
