"""The report in a real browser: offline, sortable, readable on a phone, in light and dark."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from msltrain.measures.metrics import compute_metrics
from msltrain.measures.predictions import Origin, Predictions, keep_mask_fingerprints
from msltrain.report.open_runs import RunReport
from msltrain.report.write_report import write_report
from msltrain.stream.samples.shardset import open_shard_set
from tests.integration.test_report import CONFIG, NUM_SAMPLES, run
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
        file, title="Does it help?", runs=runs[0], shards=runs[1], num_examples=4, commands=["msl " + "x" * 90]
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
    assert len(texts) == 2 + 8 and all(texts)  # the first example opens the page as well
    plots = page.run("return [...document.querySelectorAll('svg')].map((plot) => plot.getAttribute('aria-label'))")
    assert plots and all(plots)


def test_classes_can_be_sorted(page, runs):
    last = runs[0][-1]
    order = (
        "return [...document.querySelectorAll('table.bars tbody th')].map((head) => head.firstChild.textContent.trim())"
    )
    before = page.run(order)
    by_hand = sorted(compute_metrics(last.clean).classes, key=lambda row: -row.average_precision)
    second = "table.bars thead th:nth-child(2)"
    page.click(f"{second} button")
    assert page.run(order) == [row.name for row in by_hand]
    assert page.run(f"return document.querySelector('{second}').getAttribute('aria-sort')") == "descending"
    page.click(f"{second} button")
    assert page.run(order) == [row.name for row in reversed(by_hand)]
    page.click(f"{second} button")
    assert page.run(order) == before
    page.click("table.bars thead th:first-child button")
    assert page.run(order) == sorted(before)


def test_tables_are_sorted_from_the_keyboard(page):
    head = "document.querySelector('table.bars thead th:nth-child(2)')"
    page.run(f"{head}.querySelector('button').focus()")
    page.press("\ue007")
    assert page.run(f"return {head}.getAttribute('aria-sort')") == "descending"
    page.press("\ue007")
    page.press("\ue007")
    assert page.run(f"return {head}.getAttribute('aria-sort')") is None


def test_condition_of_the_curves_can_be_chosen_without_a_script(page):
    shown = "return getComputedStyle(document.querySelector('.panel p.in{}')).display"
    assert page.run(shown.format(0)) != "none" and page.run(shown.format(1)) == "none"
    page.run("document.getElementById('curves-0').focus()")
    page.press("\ue014")  # to the right
    assert page.run("return document.getElementById('curves-1').checked")
    assert page.run(shown.format(0)) == "none" and page.run(shown.format(1)) != "none"
    assert page.run("return getComputedStyle(document.querySelector('.maps .in1')).display") == "none"
    page.click("#curves-0 + label")
    assert page.run(shown.format(0)) != "none"


def test_a_class_leads_to_its_curves_and_enlarges_them(page, runs):
    name = runs[0][0].clean.classes[0]
    width = "return document.getElementById('curve-0').getBoundingClientRect().width"
    before = page.run(width)
    page.click("table.bars a[href='#curve-0']")
    assert page.run(width) > 1.8 * before
    assert name in page.run("return document.querySelector('.panel:target h3').textContent")
    page.click(".panel:target .close")
    assert page.run(width) == before


def test_examples_can_be_sorted(page):
    keys = "return [...document.querySelectorAll('.gallery .example')].map((figure) => figure.dataset.{})"
    before = page.run(keys.format("key"))
    assert len(before) == 4
    choose = "const box = document.querySelector('.sorter select'); box.value = arguments[0];"
    choose += "box.dispatchEvent(new Event('change'))"
    page.run(choose, "least hidden first")
    hidden = [float(share) for share in page.run(keys.format("hidden"))]
    assert hidden[:2] == sorted(hidden[:2]) and hidden[2:] == sorted(hidden[2:])
    page.run(choose, "name")
    after = page.run(keys.format("key"))
    assert after == [*sorted(before[:2]), *sorted(before[2:])]  # wins stay wins
    page.run(choose, "as chosen")
    assert page.run(keys.format("key")) == before


_LOW_CONTRAST = """
const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
const light = (colour) => {
  const [r, g, b] = channels(colour).map((v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = (element) => {
  for (; element; element = element.parentElement) {
    const colour = getComputedStyle(element).backgroundColor, alpha = channels(colour)[3];
    if (alpha === undefined || alpha > 0) return colour;
  }
  return "rgb(255, 255, 255)";
};
const found = [];
for (const element of document.querySelectorAll("body *")) {
  const text = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  if (!text || !element.checkVisibility() || element.matches("script, title")) continue;
  const style = getComputedStyle(element), colour = element instanceof SVGElement ? style.fill : style.color;
  const [a, b] = [light(colour), light(behind(element))].sort((x, y) => y - x);
  if ((a + 0.05) / (b + 0.05) < 4.5) found.push(`${element.tagName} ${element.textContent.slice(0, 20)}`);
}
return found;
"""


_SPILLING = """
return [...document.querySelectorAll("td, th")].filter((cell) => cell.textContent).filter((cell) => {
  const content = document.createRange();
  content.selectNodeContents(cell);
  const [inner, outer] = [content, cell].map((each) => each.getBoundingClientRect());
  return inner.left < outer.left - 1 || inner.right > outer.right + 1;
}).map((cell) => cell.textContent.trim());
"""
"""Cells of tables whose text runs into a neighbour's."""


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_readable_on_a_phone_and_in_the_dark(page, width, dark):
    page.look(width, dark=dark)
    assert page.overflow() == []
    light = page.run(
        "return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).reduce((a, b) => +a + +b, 0)"
    )
    assert (light < 150) if dark else (light > 600)
    assert page.run(_LOW_CONTRAST) == []
    assert page.run(_SPILLING) == []
    assert page.run("return parseFloat(getComputedStyle(document.body).fontSize)") >= 16
    if folder := os.environ.get("MSL_SCREENSHOTS"):
        page.screenshot(Path(folder) / f"report-{width}-{'dark' if dark else 'light'}.png")


def test_rows_of_examples_begin_where_their_headings_do(page):
    page.look(1280)
    lefts = """return [...document.querySelectorAll('.gallery')].map((rows) => {
        const heading = rows.previousElementSibling;
        if (arguments[0]) for (const each of [rows, heading]) each.classList.add('wide');
        const found = [rows, heading].map((each) => each.getBoundingClientRect().left);
        for (const each of [rows, heading]) each.classList.remove('wide');
        return found;
    })"""
    column = page.run("return document.querySelector('h2').getBoundingClientRect().left")
    narrow, wide = page.run(lefts, False), page.run(lefts, True)
    assert len(narrow) == 2 and all(pair == [column, column] for pair in narrow)
    assert all(rows == heading < column for rows, heading in wide)


@pytest.mark.parametrize("width", [390, 1280])
def test_eighty_classes_stay_small_and_readable(chromium, tmp_path, width):
    rng = np.random.default_rng(0)
    target_NK = (rng.random((400, 80)) < 0.1).astype(np.uint8)
    classes = tuple(f"kind of thing {number}" for number in range(80))

    def one(seed: int, hidden: float = 0.0) -> Predictions:
        noise_NK = np.random.default_rng(seed).standard_normal((400, 80)) + 2 * target_NK - 1.5
        return Predictions(
            keys=tuple(map(str, range(400))),
            logit_NK=noise_NK.astype(np.float32),
            target_NK=target_NK,
            ignore_NK=np.zeros((400, 80), bool),
            classes=classes,
            origin=Origin(hole_fraction=hidden),
        )

    pair = [
        RunReport(name=name, clean=one(seed), masked={"high": one(seed + 1, 0.6)}, config=CONFIG, history=[])
        for seed, name in ((1, "Baseline"), (3, "MSL"))
    ]
    file = write_report(tmp_path / "report.html", title="Many classes", runs=pair)
    assert file.stat().st_size < 1_000_000
    chromium.look(width)
    chromium.open(file.as_uri())
    assert chromium.overflow() == []
    assert chromium.run("return document.querySelectorAll('.panel').length") == 80
    folded = "return document.getElementById('curve-{}').checkVisibility()"
    last = chromium.run("return [...document.querySelectorAll('.panel')].at(-1).id").removeprefix("curve-")
    assert not chromium.run(folded.format(last))
    chromium.run(f"location.hash = 'curve-{last}'")
    chromium.wait_for(folded.format(last).removeprefix("return "))  # a class that is asked for unfolds
    if folder := os.environ.get("MSL_SCREENSHOTS"):
        chromium.screenshot(Path(folder) / f"report-80-{width}.png")


@pytest.mark.parametrize("width", [390, 1280])
def test_names_beside_the_maps_of_few_classes_are_whole_and_no_larger_than_other_text(chromium, tmp_path, width):
    rng = np.random.default_rng(0)
    target_NK = (rng.random((60, 4)) < 0.5).astype(np.uint8)
    few = Predictions(
        keys=tuple(map(str, range(60))),
        logit_NK=rng.standard_normal((60, 4)).astype(np.float32),
        target_NK=target_NK,
        ignore_NK=np.zeros((60, 4), bool),
        classes=("car", "cat", "person", "犬と猫"),
        origin=Origin(),
    )
    alone = RunReport(name="mine", clean=few, masked={}, config=CONFIG, history=[])
    chromium.look(width)
    chromium.open(write_report(tmp_path / "report.html", title="Few classes", runs=[alone]).as_uri())
    assert chromium.overflow() == []
    found = chromium.run("""return [...document.querySelectorAll('.heat text')].map((name) => {
        const map = name.ownerSVGElement, box = map.getBoundingClientRect(), at = name.getBoundingClientRect();
        const scale = box.width / map.viewBox.baseVal.width;
        return [name.textContent, scale * parseFloat(getComputedStyle(name).fontSize),
                Math.min(at.left - box.left, at.top - box.top, box.right - at.right, box.bottom - at.bottom)];
    })""")
    other = chromium.run("return parseFloat(getComputedStyle(document.querySelector('figcaption')).fontSize)")
    assert len(found) == 2 * 2 * 4
    for name, size, room in found:
        assert 0.75 * other < size <= 1.01 * other, name
        assert room >= -0.5, f"{name} is cut off"
