"""``msl evaluate`` as a user meets it: tables, JSON, thresholds, and its messages."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from msltrain.__main__ import app
from msltrain.measures.metrics import compute_metrics
from msltrain.measures.predictions import LargestObjects, Origin, Predictions, read_predictions, write_predictions
from msltrain.measures.thresholds import tune_thresholds
from msltrain.report.gather import _Stored
from msltrain.runs.run_places import default_file
from tests.integration.test_evaluate import write_checkpoint
from tests.smallshards import CLASSES, write_images, write_keep_masks


def make(keys: Sequence[str], seed: int, **changes) -> Predictions:
    rng = np.random.default_rng(seed)
    shape = (len(keys), 3)
    target_NK = (rng.random(shape) < 0.5).astype(np.uint8)
    target_NK[:, 2] = 0
    unknown_NK = np.full(shape, -1, np.int8)
    return replace(
        Predictions(
            keys=tuple(keys),
            logit_NK=(rng.standard_normal(shape) + target_NK - 2).astype(np.float32),
            target_NK=target_NK,
            ignore_NK=np.zeros(shape, bool),
            classes=("cat", "dog", "unicorn"),
            objects=LargestObjects.of_arrays(
                area_NK=np.where(target_NK > 0, 500, 0).astype(np.float32),
                relative_area_NK=np.where(target_NK > 0, 0.1, 0).astype(np.float32),
                truncated_NK=unknown_NK,
                occluded_NK=unknown_NK,
                crowd_NK=unknown_NK,
            ),
            origin=Origin(checkpoint_sha256="abc", resize="shorter=64"),
        ),
        **changes,
    )


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["evaluate", *arguments], env={"COLUMNS": "200"})
    return result.exit_code, result.output


@pytest.fixture
def file(tmp_path) -> Path:
    write_predictions(make("abcdefghijklmnop", 0), tmp_path / "test.parquet")
    return tmp_path / "test.parquet"


def test_every_number_from_a_predictions_file(file, tmp_path):
    write_predictions(make([f"val{number}" for number in range(48)], 1), tmp_path / "val.parquet")
    asked = (
        "--predictions",
        str(file),
        "--thresholds-from",
        str(tmp_path / "val.parquet"),
        "--per-class",
        "--intervals",
    )
    code, output = run(*asked)
    assert code == 0, output
    metrics = compute_metrics(make("abcdefghijklmnop", 0))
    for text in (
        "tuned thresholds",
        "95 % from",
        "left out of mAP, without positives: unicorn",
        "small share",
        "P is the share of predictions that are right",
    ):
        assert text in output
    assert "top 3" not in output  # of three classes it is the first row again
    assert "which the build made smaller (shorter=64)" in output
    assert f"{100 * metrics.mAP:.2f}" in output and "voc11" in output
    content = json.loads(CliRunner().invoke(app, ["evaluate", *asked, "--json"]).stdout)
    assert content["metrics"]["mAP"] == metrics.mAP
    assert content["metrics"]["tuned"]["CF1"] != content["metrics"]["CF1"]
    assert content["metrics"]["classes"][2]["average_precision"] is None
    assert content["intervals"]["mAP"]["low"] < metrics.mAP < content["intervals"]["mAP"]["high"]
    assert {row["name"]: row["num_positive"] for row in content["strata"]}["small"] == int(
        make("abcdefghijklmnop", 0).target_NK.sum()
    )


def test_a_decimal_comma_is_for_a_table(file):
    for more in ((), ("--out", "x.parquet")):
        code, output = run("--predictions", str(file), "--decimal-comma", *more)
        assert code == 2 and "--decimal-comma is for a table: add --out FILE.csv" in output


def test_what_the_order_of_the_samples_decides_is_said(file, tmp_path):
    assert "logit with a negative" not in run("--predictions", str(file))[1]
    same = make("abcdefghijklmnop", 0)
    same.logit_NK[:] = 0
    write_predictions(same, tmp_path / "same.parquet")
    output = " ".join(run("--predictions", str(tmp_path / "same.parquet"))[1].split())
    metrics = compute_metrics(same)
    assert metrics.decided_by_order() and metrics.decided_by_order() in output


def test_the_shipped_classifier_is_measured_too_where_thresholds_were_tuned(tmp_path):
    """By those of `msl predict`: of the same weights, of whole images, of other samples than these."""
    folder = tmp_path / "run" / "predictions"
    origin = Origin(checkpoint=str(tmp_path / "run"), checkpoint_sha256="abc", image_size=64)
    test = replace(make("abcdefghijklmnop", 0), origin=origin)
    write_predictions(test, tmp_path / "test.parquet")  # elsewhere than the run's own
    plain = run("--predictions", str(tmp_path / "test.parquet"))[1]
    held_out = make([f"val{number}" for number in range(48)], 1)
    folder.mkdir(parents=True)

    def measured(**changes) -> str:
        other = replace(held_out, origin=replace(origin, part="held out", **changes))
        write_predictions(other, folder / "all-held-out.parquet")
        return run("--predictions", str(tmp_path / "test.parquet"))[1]

    for changes in ({"checkpoint_sha256": "other"}, {"keep_masks": ("m",)}, {"test_time": "flip"}, {"image_size": 32}):
        assert measured(**changes) == plain
    output = measured()
    tuned = compute_metrics(test, tune_thresholds(held_out)).tuned
    [row] = [line for line in output.splitlines() if line.strip().startswith("tuned thresholds ")]
    assert [float(value) for value in row.split()[2:]] == [round(100 * value, 2) for value in asdict(tuned).values()]
    assert "tuned on 48 photographs that training set aside" in output and "papers compare at 0.5" in output
    first = [next(line for line in text.splitlines() if "score ≥ 0.5" in line).split() for text in (plain, output)]
    assert first[0] == first[1]
    write_predictions(replace(test, origin=replace(origin, part="held out")), folder / "all-held-out.parquet")
    assert run("--predictions", str(tmp_path / "test.parquet"))[1] == plain  # they would flatter


def test_top_3_is_shown_where_it_differs(tmp_path):
    """With one class more that every image is said to show, some have four predictions."""
    few = make("abcdefghijklmnop", 0)
    one_N1 = np.ones((16, 1), np.uint8)
    more = replace(
        few,
        classes=(*few.classes, "sky"),
        logit_NK=np.hstack([np.ones_like(few.logit_NK), 2 * one_N1]).astype(np.float32),
        target_NK=np.hstack([few.target_NK, one_N1]),
        ignore_NK=np.zeros((16, 4), bool),
        objects=None,
    )
    write_predictions(more, tmp_path / "more.parquet")
    code, output = run("--predictions", str(tmp_path / "more.parquet"))
    assert code == 0 and "top 3" in output, output


def test_thresholds_tuned_on_the_test_itself_are_refused(file):
    code, output = run("--predictions", str(file), "--thresholds-from", str(file))
    assert code == 2 and "16 samples are in both predictions files" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say what to evaluate"),
        (["--predictions", "nowhere.parquet"], "nowhere.parquet"),
        (["--checkpoint", "nowhere", "--data", "nowhere"], "nowhere"),
    ],
)
def test_messages(arguments, message):
    code, output = run(*arguments)
    assert code == 2 and "error:" in output and message in output and "Traceback" not in output


def test_predictions_for_a_spreadsheet(tmp_path):
    write_images(tmp_path / "shards", [7])
    place = write_checkpoint(tmp_path / "run", CLASSES)
    words = ("--checkpoint", str(place), "--data", str(tmp_path / "shards"), "--device", "cpu")
    code, output = run(*words, "--out", str(tmp_path / "a.parquet"))
    assert code == 0, output
    code, from_csv = run(*words, "--out", str(tmp_path / "a.csv"))
    assert code == 0 and from_csv.replace("a.csv", "a.parquet") == output
    stored = read_predictions(tmp_path / "a.parquet")
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert [row["key"] for row in rows] == list(stored.keys)
    for kind in ("logit", "target", "ignore"):
        found_NK = [[float(row[f"{kind} {name}"]) for name in CLASSES] for row in rows]
        np.testing.assert_allclose(found_NK, getattr(stored, f"{kind}_NK"), rtol=1e-6)
    code, output = run(*words, "--out", str(tmp_path / "a.xlsx"))
    assert code == 2 and ".parquet, or .csv" in output
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.csv", "a.parquet", "run", "shards"]


def test_each_way_of_measuring_keeps_its_own_file(tmp_path):
    """Views averaged and masks of another seed replaced what was measured plainly; the report then showed them."""
    write_images(tmp_path / "shards", (12,))
    write_keep_masks(tmp_path / "high", [np.eye(32, dtype=np.uint8), 1 - np.eye(32, dtype=np.uint8)])
    place = write_checkpoint(tmp_path / "run", CLASSES)
    words = ("--checkpoint", str(place), "--data", str(tmp_path / "shards"), "--device", "cpu")
    masks = ("--keep-masks", str(tmp_path / "high"))
    asked = [(), ("--flip",), ("--flip", "--scales", "2"), masks, (*masks, "--seed", "1"), ("--seed", "0")]
    for more in asked:
        code, output = run(*words, *more)
        assert code == 0, output
    found = {file.name: read_predictions(file).origin for file in (tmp_path / "run" / "predictions").iterdir()}
    found = {re.sub(r"-[0-9a-f]{6}(?=[-.])", "", name): one for name, one in found.items()}  # of what they lie in
    front = f"{tmp_path.name}-shards"
    assert {name: (one.test_time, one.seed, len(one.keep_masks)) for name, one in found.items()} == {
        f"{front}.parquet": ("", 0, 0),
        f"{front}-flip.parquet": ("flip", 0, 0),
        f"{front}-scale-2-flip.parquet": ("scale 2, flip", 0, 0),
        f"{front}-{tmp_path.name}-high.parquet": ("", 0, 1),
        f"{front}-{tmp_path.name}-high-seed-1.parquet": ("", 1, 1),
    }
    stored = _Stored.of(place)
    assert [one.origin.seed for one in stored.predictions.values() if not one.origin.test_time][-1] == 1
    masked = next(one for one in found.values() if one.keep_masks)
    chosen = stored.find(masked.dataset_fingerprint, masked.keep_mask_fingerprints)
    assert chosen is not None and chosen == default_file(place, tmp_path / "shards", [tmp_path / "high"])
