"""The report in a real browser: offline, sortable, readable on a phone, in light and dark."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from msltrain.metrics import compute_metrics
from msltrain.predictions import Predictions, keep_mask_fingerprints
from msltrain.report.page import write_report
from msltrain.report.runs import RunReport
from msltrain.stream.shardset import open_shard_set
from tests.integration.test_report import NUM_SAMPLES, run
from tests.smallshards import write_images, write_keep_masks


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[list[RunReport], Path]:
    """Two runs on the same shards, and the shards."""
    folder = tmp_path_factory.mktemp("report-page")
    write_images(folder / "shards", [NUM_SAMPLES])
    rng = np.random.default_rng(0)
    masks = []
    for name in ("high", "low"):
        write_keep_masks(folder / name, [(rng.random((32, 32)) > p).astype(np.uint8) for p in (0.4, 0.6)])
        masks.append(str(folder / name))
    fingerprint = open_shard_set(folder / "shards").manifest.fingerprint

    def placed(entry: Predictions, keep_masks: tuple[str, ...]) -> Predictions:
        origin = replace(entry.origin, dataset_fingerprint=fingerprint, keep_masks=keep_masks)
        return replace(entry, origin=replace(origin, keep_mask_fingerprints=keep_mask_fingerprints(keep_masks)))

    pair = [run("Baseline", 2.0, 0.6), run("MSL with a rather long name", 2.0, 2.5, weights="b", seed=21)]
    return [
        replace(
            each,
            clean=placed(each.clean, ()),
            masked={name: placed(each.masked[name], (place,)) for name, place in zip(("high", "low"), masks)},
        )
        for each in pair
    ], folder / "shards"


@pytest.fixture(scope="module")
def page(runs, chromium, tmp_path_factory):
    """The report of two runs with everything in it, open."""
    file = tmp_path_factory.mktemp("page") / "report.html"
    write_report(
        file, title="Does it help?", runs=runs[0], shards=runs[1], num_examples=2, commands=["msl " + "x" * 90]
    )
    chromium.look(1280)
    chromium.open(file.as_uri())
    return chromium


def test_it_asks_for_nothing_and_complains_of_nothing(page):
    console, requests = page.take_logs()
    assert console == []
    assert all(address.startswith(("file:", "data:")) for address in requests)
    assert sum(address.startswith("file:") for address in requests) == 1


def test_pictures_and_plots_are_described(page):
    page.run(
        "for (const image of document.images) image.loading = 'eager'"
    )  # a report loads them as they come into view
    page.wait_for("[...document.images].every((image) => image.complete && image.naturalWidth)")
    texts = page.run("return [...document.images].map((image) => image.alt)")
    assert len(texts) == 4 and all(texts)
    plots = page.run("return [...document.querySelectorAll('svg')].map((plot) => plot.getAttribute('aria-label'))")
    assert plots and all(plots)


def test_classes_can_be_sorted(page, runs):
    last = runs[0][-1]
    order = (
        "return [...document.querySelectorAll('table.sortable tbody th')].map((head) => head.firstChild.data.trim())"
    )
    before = page.run(order)
    by_hand = sorted(compute_metrics(last.clean).classes, key=lambda row: -row.average_precision)
    second = "table.sortable thead th:nth-child(2)"
    page.click(f"{second} button")
    assert page.run(order) == [row.name for row in by_hand]
    assert page.run(f"return document.querySelector('{second}').getAttribute('aria-sort')") == "descending"
    page.click(f"{second} button")
    assert page.run(order) == [row.name for row in reversed(by_hand)]
    page.click(f"{second} button")
    assert page.run(order) == before
    page.click("table.sortable thead th:first-child button")
    assert page.run(order) == sorted(before)


@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_readable_on_a_phone_and_in_the_dark(page, width, dark):
    page.look(width, dark=dark)
    assert page.overflow() == []
    light = page.run(
        "return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).reduce((a, b) => +a + +b, 0)"
    )
    assert (light < 150) if dark else (light > 600)
    assert page.run("return parseFloat(getComputedStyle(document.body).fontSize)") >= 16
    if folder := os.environ.get("MSL_SCREENSHOTS"):
        page.screenshot(Path(folder) / f"report-{width}-{'dark' if dark else 'light'}.png")
