"""Thousands of classes: pages stay small, tables beside them hold everything, counts are the same as one at a time."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from msldata.inspect.describe import describe
from msltrain.config import TrainConfig
from msltrain.measures.average_precision import average_precision
from msltrain.measures.metrics import compute_metrics
from msltrain.measures.predictions import Origin, Predictions
from msltrain.report.numbers import MOST_CLASSES, MOST_TOGETHER
from msltrain.report.open_runs import RunReport
from msltrain.report.write_report import write_report
from msltrain.stream.config import StreamConfig
from tests.smallshards import write_images

NUM_CLASSES, NUM_SAMPLES = 2500, 60


def predictions(skill: float) -> Predictions:
    rng = np.random.default_rng(int(10 * skill))
    target_NK = np.zeros((NUM_SAMPLES, NUM_CLASSES), np.uint8)
    truth = np.random.default_rng(0)
    target_NK[np.repeat(np.arange(NUM_SAMPLES), 8), (NUM_CLASSES * truth.random(8 * NUM_SAMPLES) ** 2).astype(int)] = 1
    logit_NK = rng.standard_normal(target_NK.shape, dtype=np.float32) - 3 + np.float32(skill) * target_NK
    return Predictions(
        keys=tuple(f"s{number:06d}" for number in range(NUM_SAMPLES)),
        logit_NK=logit_NK,
        target_NK=target_NK,
        ignore_NK=np.zeros(target_NK.shape, bool),
        classes=tuple(f"class {k:05d}" for k in range(NUM_CLASSES)),
        origin=Origin(checkpoint_sha256=str(skill)),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A report on two runs."""
    runs = [
        RunReport(
            name=name,
            clean=predictions(skill),
            masked={},
            config=TrainConfig(stream=StreamConfig(image_size=32)),
            history=[],
        )
        for name, skill in (("Baseline", 2.0), ("MSL", 3.0))
    ]
    place = tmp_path_factory.mktemp("report")
    write_report(place / "report.html", title="Many", runs=runs, environment={})
    return place


def test_the_page_shows_the_classes_that_matter_and_links_all(folder: Path):
    page = (folder / "report.html").read_text()
    assert len(page) < 1_000_000
    assert page.count('<li class="panel"') == MOST_CLASSES and 'href="report.classes.csv"' in page
    assert f"the {MOST_TOGETHER} in most images" in page and "2,500 classes" in page
    assert "more." in page and page.count("class 0") < 2000  # absent classes are counted, and some named


def test_the_table_beside_it_holds_every_class(folder: Path):
    with open(folder / "report.classes.csv", newline="") as file:
        rows = {row["class"]: row for row in csv.DictReader(file)}
    clean = predictions(3.0)
    assert list(rows) != sorted(rows) and set(rows) == set(clean.classes)
    for k in (0, 7, 1900):
        value = average_precision(clean.logit_NK[:, k], clean.target_NK[:, k] > 0)
        found = rows[clean.classes[k]]["AP MSL, whole images"]
        assert found == ("" if value is None else f"{value:.6g}")
    content = json.loads((folder / "report.json").read_text())
    assert len(content["classes_together"]) == len(content["labels_together"]["num_present"]) == MOST_TOGETHER
    assert len((folder / "report.md").read_text()) < 100_000


def test_blocks_of_classes_and_images_change_no_number(monkeypatch):
    found = predictions(3.0)
    whole = compute_metrics(found)
    monkeypatch.setattr("msltrain.measures.metrics._BLOCK", 7000)
    monkeypatch.setattr("msltrain.measures.average_precision._BLOCK", 999)
    assert compute_metrics(found) == whole
    assert whole.mAP == pytest.approx(
        np.mean(
            [
                average_precision(found.logit_NK[:, k], found.target_NK[:, k] > 0)
                for k in np.flatnonzero(found.target_NK.any(axis=0))
            ]
        )
    )


def test_pairs_of_labels_are_counted_without_a_table_of_all_pairs(tmp_path: Path):
    write_images(tmp_path, [12])
    found = describe(tmp_path)
    assert [(one.name, one.positive) for one in found.labels] == [("bird", 4), ("boat", 4), ("cat", 4)]
    assert found.pairs == () and found.labels_per_image == 1
