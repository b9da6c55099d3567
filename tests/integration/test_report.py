"""The report: one page that stands alone, is well formed, and says what the predictions say."""

from __future__ import annotations

import base64
import html
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from msldata.errors import UserError
from msltrain.config import LossConfig, TrainConfig, to_json
from msltrain.measures.bootstrap import Interval, interval_around, mean_ap_difference, resampled_mean_ap
from msltrain.measures.metrics import SUMMARY, compute_metrics
from msltrain.measures.predictions import (
    LargestObjects,
    Origin,
    Predictions,
    keep_mask_fingerprints,
    write_predictions,
)
from msltrain.measures.thresholds import tune_thresholds
from msltrain.pages.svg import ticks
from msltrain.pages.text import points
from msltrain.report.examples import (
    Example,
    answer,
    choose,
    choose_seen,
    draw_boxes,
    hide,
    net_named,
    read_examples,
    wholly_right,
)
from msltrain.report.gallery import _how_well, _view
from msltrain.report.headline import find
from msltrain.report.numbers import compute_numbers
from msltrain.report.open_runs import RunReport, open_run, read_history
from msltrain.report.plots import by_epoch
from msltrain.report.write_report import write_report
from msltrain.stream.config import StreamConfig
from msltrain.stream.keepmasks.bank import KeepMasks
from msltrain.stream.samples.shardset import open_shard_set
from msltrain.use.output_formats import line_of
from msltrain.use.predict import ImagePrediction
from msltrain.use.read_images import Photo
from tests.smallshards import CLASSES, write_images, write_keep_masks

NUM_SAMPLES = 120
CONFIG = TrainConfig(stream=StreamConfig(image_size=32))
VOID = {"meta", "img", "br", "hr", "link", "input"}


def predictions(skill: float, seed: int, hole_fraction: float = 0.0, weights: str = "a") -> Predictions:
    """Random truth, the same for every call; logits that follow it by ``skill``."""
    truth = np.random.default_rng(7)
    target_NK = truth.random((NUM_SAMPLES, 3)) < 0.3
    ignore_NK = (truth.random((NUM_SAMPLES, 3)) < 0.05) & ~target_NK
    area_NK = (truth.random((NUM_SAMPLES, 3)) * 2e4).astype(np.float32) * target_NK
    flag_NK = np.where(target_NK, truth.random((NUM_SAMPLES, 3)) < 0.5, -1).astype(np.int8)
    noise_NK = np.random.default_rng(seed).standard_normal((NUM_SAMPLES, 3))
    return Predictions(
        keys=tuple(f"s{number:06d}" for number in range(NUM_SAMPLES)),
        logit_NK=(noise_NK + skill * (target_NK - 0.5)).astype(np.float32),
        target_NK=target_NK.astype(np.uint8),
        ignore_NK=ignore_NK,
        classes=CLASSES,
        objects=LargestObjects.of_arrays(
            area_NK=area_NK, truncated_NK=flag_NK, occluded_NK=flag_NK * 0 - 1, crowd_NK=flag_NK
        ),
        origin=Origin(
            checkpoint="runs/x",
            checkpoint_sha256=weights * 64,
            dataset="small",
            split="test",
            image_size=32,
            keep_masks=("masks",) if hole_fraction else (),
            hole_fraction=hole_fraction,
        ),
    )


def run(name: str, clean: float, high: float, weights: str = "a", seed: int = 1) -> RunReport:
    history = [{"step": 1, "epoch": 0, "clean": 0.7}, {"step": 2, "epoch": 0, "clean": 0.5}]
    history += [{"step": 2, "epoch": 0, "validation_mAP": 0.4}, {"step": 4, "epoch": 1, "clean": 0.3}]
    return RunReport(
        name=name,
        clean=predictions(clean, seed, weights=weights),
        masked={"high": predictions(high, seed + 1, 0.55, weights), "low": predictions(clean, seed + 2, 0.05, weights)},
        config=CONFIG,
        history=history,
    )


class Page(HTMLParser):
    """Checks that tags are balanced, and collects tables, addresses and texts."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        if self.open and ("td" in self.open or "th" in self.open):
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def pair() -> list[RunReport]:
    return [run("Base & line", 2.0, 0.6), run("MSL", 2.0, 2.5, weights="b", seed=21)]


@pytest.fixture(scope="module")
def page(pair, tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("report") / "report.html"
    write_report(file, title="A <title>", runs=pair, commands=["msl a > b"], next_commands=["msl c"])
    assert sorted(path.name for path in file.parent.iterdir()) == ["report.html", "report.json", "report.md"]
    return file.read_text("utf-8")


def test_page_is_well_formed_and_needs_nothing_else(page):
    parsed = Page(page)
    for tag, attributes in parsed.elements:
        assert tag not in ("link", "iframe", "object", "embed"), tag
        if tag == "th":
            assert attributes["scope"]
        for name in ("src", "href", "srcset", "poster", "data", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, value)
        if tag == "img":
            assert attributes["alt"]
        if tag == "svg":
            assert attributes["role"] == "img" and attributes["aria-label"]
    assert not re.search(r"url\(|@import|https?://", page)
    assert "prefers-color-scheme: dark" in page
    assert "A &lt;title&gt;" in page and "Base &amp; line" in page and "msl a &gt; b" in page


def test_numbers_on_the_page_equal_those_of_the_predictions(page, pair):
    rows = Page(page).rows
    for each in pair:
        shown = [cells[1:] for cells in rows if len(cells) == 1 + len(SUMMARY) and cells[0] == each.name]
        metrics = [compute_metrics(each.conditions[name]) for name in ("whole", "low", "high")]
        assert shown == [[f"{100 * value:.1f}" for value in entry.summary().values()] for entry in metrics]
    first, second = (compute_metrics(each.masked["high"]).mAP for each in pair)
    difference = [cells[1] for cells in rows if cells[:1] == ["difference"]]
    assert difference[-1] == points(second - first)


def test_best_numbers_are_marked(page, pair):
    best = max(pair, key=lambda each: compute_metrics(each.masked["high"]).mAP)
    value = f"{100 * compute_metrics(best.masked['high']).mAP:.1f}"
    assert f'<td class="best">{value}</td>' in page


def test_finding_says_who_is_ahead(pair):
    finding = find(compute_numbers(pair))
    high = mean_ap_difference(pair[0].masked["high"], pair[1].masked["high"])
    assert high.excludes_zero
    assert finding.ranking.startswith(
        f"“MSL” is ahead of “Base & line” by {100 * high.value:.1f} points of mAP with high holes (55\u00a0% hidden)"
    )
    assert "no difference can be shown" in finding.ranking
    assert f"Measured on {NUM_SAMPLES} test images" in finding.sentences[-1]
    assert "another seed" in finding.sentences[-1]


def test_finding_says_when_the_method_loses(pair):
    finding = find(compute_numbers(pair[::-1]))
    assert finding.ranking.startswith("“Base & line” is behind “MSL” by ")
    found, best = (found_alike(each.masked["high"], pair[1].masked["high"]) for each in pair)
    loss = f"{100 * (1 - found / best):.0f}\u00a0% fewer labels than “MSL”"
    assert finding.headline.startswith(
        f"With as many false alarms “Base & line” finds {loss} with 55\u00a0% of the image hid"
    )


def found_alike(entry: Predictions, reference: Predictions) -> int:
    """A plain search for the highest number found with no more false alarms than ``reference`` makes at 0.5."""
    num_allowed = num_false(reference, 0.0)
    return max(
        int((scored(entry, logit) & (entry.target_NK == 1)).sum())
        for logit in [*np.unique(entry.logit_NK), np.inf]
        if num_false(entry, logit) <= num_allowed
    )


def num_false(entry: Predictions, logit: float) -> int:
    return int((scored(entry, logit) & (entry.target_NK == 0)).sum())


def scored(entry: Predictions, logit: float) -> np.ndarray:
    return (entry.logit_NK >= logit) & ~entry.ignore_NK


def test_the_first_words_count_objects_and_their_price(pair):
    finding = find(compute_numbers(pair))
    whole, high = ([each.conditions[name] for each in pair] for name in ("whole", "high"))
    alike = [found_alike(entry, both[0]) for both in (high, whole) for entry in both]
    shares = [round(100 * found / int(high[0].target_NK.sum())) for found in alike]
    gain = 100 * (alike[1] / alike[0] - 1)
    assert finding.headline == (
        f"With as many false alarms “MSL” finds {gain:.0f}\u00a0% more labels than “Base & line” "
        f"with 55\u00a0% of the image hidden ({shares[1]} instead of {shares[0]} of every 100); "
        f"on whole images it finds about as many ({shares[3]} and {shares[2]} of every 100)."
    )
    found = [100 * int((scored(one, 0) & (one.target_NK == 1)).sum()) / int(one.target_NK.sum()) for one in high]
    false = [100 * num_false(one, 0) / NUM_SAMPLES for one in high]
    assert (
        f"At a score of 0.5, with 55\u00a0% of the image hidden “Base & line” finds {found[0]:.0f} of every 100 labels "
        f"with {false[0]:.0f} false alarms per 100 images and “MSL” finds {found[1]:.0f} with {false[1]:.0f} false "
        "alarms per 100 images; on whole images “Base & line” finds "
    ) in finding.price


def test_the_first_line_says_why_its_counts_are_not_those_below(pair):
    numbers = compute_numbers(pair)
    assert any(one.num_found != one.num_found_alike for found in numbers.found for one in found.values())
    assert "a model makes no more false alarms than “Base & line” makes at 0.5" in find(numbers).price
    assert "The first line" not in find(compute_numbers(pair[:1])).price


def test_few_objects_are_counted_not_turned_into_shares_of_a_hundred(pair):
    assert find(compute_numbers(pair[:1])).headline.startswith("Of every 100 labels “Base & line” finds ")
    clean = replace(pair[0].clean, target_NK=np.eye(NUM_SAMPLES, 3, dtype=np.uint8), objects=None)
    finding = find(compute_numbers([replace(pair[0], masked={}, clean=clean)]))
    found = int(((clean.logit_NK >= 0) & (clean.target_NK > 0)).sum())
    assert finding.headline.startswith(f"Of 3 labels “Base & line” finds {found} on whole images.")
    wrong = int(((clean.logit_NK >= 0) & (clean.target_NK == 0) & ~clean.ignore_NK).sum())
    alarms = f"{wrong} false alarm{'s' * (wrong != 1)}"
    assert finding.price == (
        f"“Base & line” finds them at a score of 0.5, with {alarms} on whole images. A label is a class in an image; a "
        "false alarm, a class that is named and not there."
    )
    other = replace(pair[0], name="Other", masked={}, clean=clean)
    finding = find(compute_numbers([replace(pair[0], masked={}, clean=clean), other]))
    assert finding.headline == (
        f"{NUM_SAMPLES} photographs cannot show a difference between “Other” and “Base & line”. At a score of 0.5, on "
        f"whole images “Base & line” finds {found} of the 3 labels with {alarms} and “Other” finds {found} with "
        f"{alarms}."
    )
    assert finding.price.startswith("A label is a class in an image")


def test_unfinished_training_and_few_photographs_are_said_first(pair, tmp_path):
    stopped = replace(pair[0], unfinished="runs/b: 3 of 9 epochs of its training are done")
    few = [
        replace(each, masked={}, clean=replace(each.clean, target_NK=np.eye(NUM_SAMPLES, 3, dtype=np.uint8)))
        for each in (stopped, pair[1])
    ]
    page = write_report(tmp_path / "few.html", title="Few", runs=few).read_text("utf-8")
    page, text = " ".join(page.split()), (tmp_path / "few.md").read_text("utf-8")
    for shown in (page, text):
        head, price, _ = shown.partition("A label is a class in an image")
        assert price and f"{NUM_SAMPLES} photographs cannot show a difference between “MSL” and “Base" in head
        assert "With as many false alarms" not in shown and shown.count("At a score of 0.5, on whole images") == 1
        assert "is not trained to its end: runs/b: 3 of 9 epochs" in head
        assert head.count("chance") == 1 and "every class in 1 or fewer" in head
    assert json.loads((tmp_path / "few.json").read_text("utf-8"))["runs"][0]["unfinished"] == stopped.unfinished
    enough = write_report(tmp_path / "all.html", title="All", runs=pair)
    assert "cannot show a difference" not in enough.read_text("utf-8") and "to its end" not in enough.read_text("utf-8")


def test_numbers_that_the_order_of_the_samples_decides_are_said_first(pair, tmp_path):
    clean = pair[1].clean
    same = replace(pair[1], masked={}, clean=replace(clean, logit_NK=np.zeros_like(clean.logit_NK)))
    runs = [replace(pair[0], masked={}), same]
    page = write_report(tmp_path / "same.html", title="Same", runs=runs).read_text("utf-8")
    page, text = " ".join(page.split()), (tmp_path / "same.md").read_text("utf-8")
    for shown in (page, text):
        assert f"“{same.name}” on whole images: " in shown
        assert shown.count("where equal logits count as equal, as in scikit-learn, mAP is ") == 1


def test_tuned_thresholds_have_their_own_row(pair, tmp_path):
    """Where msl predict has some; differences stay those at 0.5."""
    run = replace(pair[1], masked={}, files={"whole": str(tmp_path / "predictions" / "test.parquet")})
    held_out = replace(run.clean, keys=tuple(f"other-{key}" for key in run.clean.keys))
    (tmp_path / "predictions").mkdir()
    write_predictions(held_out, tmp_path / "predictions" / "all-held-out.parquet")
    tuned = compute_metrics(run.clean, tune_thresholds(held_out)).tuned
    text = write_report(tmp_path / "r.html", title="R", runs=[run]).with_suffix(".md").read_text("utf-8")
    [row] = [line for line in text.splitlines() if f"| {run.name}, tuned thresholds |" in line]
    assert f"{100 * tuned.CF1:.1f}" in row and f"{100 * tuned.OR:.1f}" in row
    few = replace(held_out, target_NK=np.zeros_like(held_out.target_NK))
    write_predictions(few, tmp_path / "predictions" / "all-held-out.parquet")
    text = write_report(tmp_path / "r.html", title="R", runs=[run]).with_suffix(".md").read_text("utf-8")
    assert "tuned thresholds" not in text, "each is 0.5, and the row would be that above it"
    assert "too few photographs to tune them on" in (tmp_path / "r.html").read_text("utf-8")


def test_objects_are_compared_at_as_many_false_alarms(pair):
    """Two images, three classes, by hand: the reference makes one false alarm at 0.5, whatever the other's scores."""
    two = replace(
        pair[0].clean,
        keys=("a", "b"),
        logit_NK=np.array([[2, 1, -1], [-3, 3, -2]], np.float32),
        target_NK=np.array([[1, 0, 1], [0, 1, 1]], np.uint8),
        ignore_NK=np.zeros((2, 3), bool),
        objects=None,
    )
    shifted = replace(two, logit_NK=two.logit_NK - 10)
    unsure = replace(two, logit_NK=np.array([[-5, -6, -7], [-6.5, -8, -6.2]], np.float32))
    ignoring = replace(two, ignore_NK=np.array([[False, True, False], [False, False, False]]))

    def found(*entries: Predictions) -> list[tuple[int, int, int]]:
        runs = [replace(pair[0], name=str(n), clean=entry, masked={}) for n, entry in enumerate(entries)]
        whole = [by_end["whole"] for by_end in compute_numbers(runs).found]
        return [(one.num_found, one.num_false, one.num_found_alike) for one in whole]

    assert found(two, shifted, unsure) == [(2, 1, 4), (0, 0, 4), (0, 0, 2)]
    assert found(ignoring, shifted, unsure) == [(2, 0, 4), (0, 0, 2), (0, 0, 1)], "no false alarm is allowed"
    everything = replace(two, logit_NK=np.ones((2, 3), np.float32))
    assert found(everything, unsure) == [(4, 2, 4), (0, 0, 4)]


def test_a_model_that_names_nothing_finds_nothing(pair):
    blind = replace(pair[1].clean, logit_NK=np.full((NUM_SAMPLES, 3), -1, np.float32))
    nothing = find(compute_numbers([replace(pair[0], masked={}), replace(pair[1], clean=blind, masked={})])).headline
    assert "“MSL” finds 100\u00a0% fewer labels" in nothing


def test_finding_says_when_nothing_can_be_shown(pair):
    same = replace(pair[0], name="Copy")
    finding = find(compute_numbers([pair[0], same]))
    assert "about as many labels as “Base & line”" in finding.headline
    assert finding.ranking.startswith("No difference in mAP between “Copy” and “Base & line” can be shown")
    assert "which includes zero" in finding.sentences[0]


def test_finding_of_one_run(pair, tmp_path):
    mean_ap = compute_metrics(pair[0].clean).mAP
    assert f"{100 * mean_ap:.1f} on whole images" in find(compute_numbers(pair[:1])).ranking
    text = write_report(tmp_path / "one.html", title="One", runs=pair[:1]).read_text("utf-8")
    Page(text)
    spoken = re.sub(r"<style>.*?</style>|<script>.*?</script>|<pre>.*?</pre>", "", text, flags=re.DOTALL)
    several = ("against", 'class="difference"', "Differences", "in bold", "gains over", "Every model")
    for word in (*several, '<li><span class="key'):
        assert word not in spoken, word


def test_series_are_compared_by_their_means(pair, tmp_path):
    """And not the run that happens to be the last with the one that happens to be the first."""
    skills = {"plain": (2.0, 1.0), "ours": (1.0, 3.5)}  # last less first: +1.5; mean less mean: +0.75
    runs = [
        replace(run(f"{name} seed{seed}", skill, skill - 0.5, seed=10 * seed + len(name)), series=name)
        for name, both in skills.items()
        for seed, skill in enumerate(both)
    ]
    numbers = compute_numbers(runs)
    plain, ours = numbers.series
    for one, members in ((plain, runs[:2]), (ours, runs[2:])):
        for condition in ("whole", "high"):
            values = [compute_metrics(each.conditions[condition]).CF1 for each in members]
            assert one.summary[condition]["CF1"] == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    # The interval is over the same images for all four runs.
    drawn = [resampled_mean_ap(each.clean) for each in runs]
    value = sum((-1) ** (number < 2) * compute_metrics(each.clean).mAP / 2 for number, each in enumerate(runs))
    expected = interval_around(value, (drawn[2] + drawn[3] - drawn[0] - drawn[1]) / 2)
    got = ours.mAP_minus_first["whole"]
    assert (got.value, got.low, got.high) == pytest.approx((expected.value, expected.low, expected.high))
    finding = find(numbers)
    assert "“ours” (mean of 2 runs)" in finding.headline and "one training run" not in " ".join(finding.sentences)
    mean, deviation = plain.summary["whole"]["mAP"]
    assert f"against “plain” {100 * mean:.1f}\u00a0±\u00a0{100 * deviation:.1f}, " in finding.sentences[2]
    write_report(tmp_path / "page.html", title="T", runs=runs)
    page = (tmp_path / "page.md").read_text()
    assert f"| ours, 2 runs | {100 * ours.mAP['whole'].value:.1f} ±" in page
    assert f"| ours − plain | {points(got.value)} |" in page and "ours seed1 − plain seed0" not in page
    [_, told] = json.loads((tmp_path / "page.json").read_text())["series"]
    assert told["members"] == [2, 3] and told["mAP_minus_first"]["whole"]["value"] == pytest.approx(got.value)
    assert compute_numbers([replace(one, series="") for one in runs]).series == ()
    # A single run beside them has no deviation, not one of nothing.
    beside = compute_numbers([*runs[:2], replace(runs[2], series="")])
    alone = compute_metrics(runs[2].clean).mAP
    assert f"“ours seed0” {100 * alone:.1f} mAP against “plain” {100 * mean:.1f}\u00a0±" in find(beside).sentences[2]


def test_run_without_masks_history_or_objects(pair, tmp_path):
    bare = replace(pair[0], masked={}, history=[], clean=replace(pair[0].clean, objects=None))
    text = write_report(tmp_path / "bare.html", title="Bare", runs=[bare]).read_text("utf-8")
    Page(text)
    assert "Training" not in text and "truncated" not in text and "share of the image hidden" not in text
    assert "Figure 1." in text and "#." not in text  # the figures that are left are numbered from 1


def test_settings_that_differ_are_shown(pair, tmp_path):
    other = replace(pair[1], config=replace(CONFIG, loss=LossConfig(masked_weight=0.25)))
    rows = Page(write_report(tmp_path / "r.html", title="T", runs=[pair[0], other]).read_text("utf-8")).rows
    assert ["loss.masked_weight", "0.2", "0.25"] in rows
    assert not any(cells[0] == "loss.clean_weight" for cells in rows)


def test_class_without_positives_is_named(pair, tmp_path):
    target_NK = pair[0].clean.target_NK.copy()
    target_NK[:, 1] = 0
    single = replace(pair[0], masked={}, clean=replace(pair[0].clean, target_NK=target_NK, objects=None))
    text = write_report(tmp_path / "r.html", title="T", runs=[single]).read_text("utf-8")
    assert "without a value: boat" in text
    Page(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda other: replace(other, name="Base & line"), "same name"),
        (lambda other: replace(other, masked={"high": other.masked["high"]}), "measured under whole, high"),
        (lambda other: replace(other, clean=predictions(1.0, 1, weights="c")), "of other weights"),
        (
            lambda other: replace(
                other,
                masked={
                    name: replace(entry, origin=replace(entry.origin, seed=9)) for name, entry in other.masked.items()
                },
            ),
            "other keep masks",
        ),
        (lambda other: replace(other, clean=replace(other.clean, keys=other.clean.keys[::-1])), "other samples"),
        (
            lambda other: replace(
                other,
                clean=replace(other.clean, origin=replace(other.clean.origin, test_time="flip")),
                files={"whole": "runs/x/flipped.parquet"},
            ),
            r"views averaged \(flip\) \(in runs/x/flipped.parquet\), Base & line with one view",
        ),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(pair, tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        write_report(tmp_path / "r.html", title="T", runs=[pair[0], change(pair[1])])
    assert not (tmp_path / "r.html").exists()


@pytest.mark.parametrize(
    ("ignored", "said"),
    [
        ("left out", "are left out of every measure."),
        ("negative", "count as negatives in P, R and F1, and are left out"),
    ],
)
def test_the_page_says_how_ignored_pairs_count(pair, tmp_path, ignored, said):
    pair = [
        replace(one, clean=replace(one.clean, origin=replace(one.clean.origin, ignored_in_rates=ignored)), masked={})
        for one in pair
    ]
    num_ignored = int(pair[0].clean.ignore_NK.sum())
    page = write_report(tmp_path / "page.html", title="Ignored", runs=pair).read_text("utf-8")
    assert f"{num_ignored} (image, class) pairs marked as ignored {said}" in page


def test_difference_of_a_model_from_itself_is_nothing(pair):
    difference = mean_ap_difference(pair[0].clean, pair[0].clean)
    assert (difference.value, difference.low, difference.high) == (0.0, 0.0, 0.0)


def interval(entry: Predictions) -> Interval:
    return interval_around(compute_metrics(entry).mAP, resampled_mean_ap(entry))


def test_interval_holds_the_value_and_narrows_with_more_images(pair):
    clean = pair[0].clean
    some = interval(clean)
    assert some.low < some.value == compute_metrics(clean).mAP < some.high
    many = interval(
        replace(
            clean,
            keys=clean.keys * 9,
            objects=None,
            **{name: np.tile(getattr(clean, name), (9, 1)) for name in ("logit_NK", "target_NK", "ignore_NK")},
        )
    )
    assert many.high - many.low < 0.5 * (some.high - some.low)


def test_interval_lies_around_the_value_although_repeated_images_raise_the_ap():
    weak = predictions(0.3, 5)
    found = interval(weak)
    assert resampled_mean_ap(weak).mean() - found.value > 0.01, "nothing to correct"
    assert (found.low + found.high) / 2 == pytest.approx(found.value, abs=0.01)


def test_answers_by_hand():
    single = replace(
        predictions(0, 0),
        logit_NK=np.float32([[2.0, 0.0, -1.0]] * NUM_SAMPLES),
        target_NK=np.uint8([[0, 1, 1]] * NUM_SAMPLES),
        ignore_NK=np.array([[False, False, False]] * NUM_SAMPLES),
        objects=None,
    )
    assert [(name, verdict) for name, _, verdict in answer(single, 0)] == [
        ("bird", "wrong"),
        ("boat", "right"),
        ("cat", "missed"),
    ]
    assert len(answer(single, 0, top=1)) == 3, "a class that is named or missed is shown below the highest scores"
    nothing_there = replace(single, target_NK=np.zeros_like(single.target_NK))
    assert [name for name, _, _ in answer(nothing_there, 0, top=1)] == ["bird", "boat"]
    many = replace(
        single,
        classes=tuple(f"c{k}" for k in range(500)),
        logit_NK=np.tile(np.arange(500, 0, -1, dtype=np.float32), (NUM_SAMPLES, 1)),
        target_NK=np.tile(np.arange(500) == 499, (NUM_SAMPLES, 1)).astype(np.uint8),
        ignore_NK=np.zeros((NUM_SAMPLES, 500), dtype=bool),
    )
    listed = [(name, verdict) for name, _, verdict in answer(many, 0)]
    assert listed == [*((f"c{k}", "wrong") for k in range(10)), ("c499", "right")], "no page of wrong names"
    ignored = replace(single, target_NK=np.zeros_like(single.target_NK), ignore_NK=~single.ignore_NK)
    assert {verdict for _, _, verdict in answer(ignored, 0)} == {"not counted"} and len(answer(ignored, 0, top=1)) == 1


def test_a_picture_with_more_wrong_than_right_names_is_no_win():
    """Against a model that names six classes wrongly, one right and five wrong was once the foremost win."""
    target_NK = np.zeros((3, 7), np.uint8)
    target_NK[:, 0] = 1
    first = np.full((3, 7), -1, np.float32)
    first[0] = [-9, 9, 9, 9, 9, 9, 9]
    last = np.full((3, 7), -1, np.float32)
    last[0] = [9, 9, 9, 9, 9, 9, -9]
    last[1:, 0] = [1, 2]
    base = run("First", 1.0, 1.0)
    runs = [
        replace(
            base,
            name=name,
            clean=replace(
                base.clean,
                keys=("a", "b", "c"),
                classes=tuple("tuvwxyz"),
                logit_NK=logit_NK,
                target_NK=target_NK,
                ignore_NK=np.zeros((3, 7), bool),
                objects=None,
            ),
            masked={},
        )
        for name, logit_NK in (("First", first), ("Last", last))
    ]
    assert net_named(runs[1].clean).tolist() == [-4, 1, 1]
    assert choose(runs, "whole", 6) == ([2, 1], [])  # the surer one first
    assert choose(runs[::-1], "whole", 6) == ([], [2])
    assert choose(runs[1:], "whole", 6) == ([2, 1], [0])


def one_run_of(logit_NK: list[list[float]], target_NK: list[list[int]]) -> RunReport:
    """A run without masks, with these predictions."""
    base = run("One", 1.0, 1.0)
    clean = replace(
        base.clean,
        keys=tuple(f"s{number:06d}" for number in range(len(logit_NK))),
        logit_NK=np.array(logit_NK, np.float32),
        target_NK=np.array(target_NK, np.uint8),
        ignore_NK=np.zeros((len(logit_NK), 3), bool),
        objects=None,
    )
    return replace(base, clean=clean, masked={})


def test_what_one_run_does_best_begins_with_what_it_gets_wholly_right():
    """Two right, one missed; surely right; nothing named; nothing there; barely right; wrong; two right, one wrong."""
    logit_NK = [[9, 9, -1], [3, -3, -3], [-1, -9, -9], [-9, -9, -9], [1, -1, -1], [-9, 9, -9], [9, 9, 1]]
    target_NK = [[1, 1, 1], [1, 0, 0], [1, 0, 0], [0, 0, 0], [1, 0, 0], [1, 0, 0], [1, 1, 0]]
    one = one_run_of(logit_NK, target_NK)
    assert wholly_right(one.clean).tolist() == [False, True, False, False, True, False, False]
    assert choose([one], "whole", 14) == ([1, 4, 0, 6], [5, 2]), "no class named is no win, and no mistake no failure"
    assert choose([one], "whole", 4) == ([1, 4], [5, 2])


@pytest.mark.parametrize(
    ("num_right", "num_empty", "said"),
    [
        (0, 0, "Of 4 photographs “One” gets none wholly right; these come nearest."),
        (0, 1, "Of 4 photographs “One” gets 1 wholly right, which show none of the classes; these come nearest."),
        (1, 0, "Of 4 photographs “One” gets 1 wholly right, shown first."),
        (1, 1, "Of 4 photographs “One” gets 2 wholly right: 1 shows none of the classes, and the rest is shown first."),
        (2, 0, "Of 4 photographs “One” gets 2 wholly right: shown here."),
        (2, 2, "Of 4 photographs “One” gets 4 wholly right: 2 show none of the classes, and the rest is shown here."),
        (4, 0, ""),
    ],
)
def test_a_small_set_says_how_many_one_run_gets_wholly_right(tmp_path, num_right, num_empty, said):
    """A scene that shows none of the classes, and of which none is named, is right too."""
    manifest = write_images(tmp_path / "shards", [4])
    logit_NK = [[5.0 - row, 1.0, -1.0 if row < num_right else 0.1] for row in range(4 - num_empty)]
    target_NK = [[1, 1, 0]] * (4 - num_empty) + [[0, 0, 0]] * num_empty
    one = one_run_of(logit_NK + [[-5.0, -5.0, -5.0]] * num_empty, target_NK)
    one = replace(
        one, clean=replace(one.clean, origin=replace(one.clean.origin, dataset_fingerprint=manifest.fingerprint))
    )
    page = write_report(tmp_path / "r.html", title="T", runs=[one], shards=tmp_path / "shards", num_examples=4)
    text = " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page.read_text("utf-8"))).split())
    assert ("wholly right" in text) == bool(said) and said in text
    assert "where it does worst" in text or num_right + num_empty == 4


def test_objects_that_only_one_model_names_are_shown_where_nothing_is_hidden():
    """Rows: a small one that the last names; a covered one that the first names; one in plain sight; both name it."""
    shape = (4, 1)
    unknown = np.full(shape, -1, np.int8)
    objects = LargestObjects.of_arrays(
        area_NK=np.full(shape, 9, np.float32),
        relative_area_NK=np.float32([[0.001], [0.2], [0.2], [0.001]]),
        truncated_NK=np.int8([[0], [0], [0], [1]]),
        occluded_NK=unknown,
        crowd_NK=unknown,
        covered_NK=np.float32([[0], [0.3], [0.25], [0]]),
    )
    base = run("First", 1.0, 1.0)
    runs = [
        replace(
            base,
            name=name,
            clean=replace(
                base.clean,
                keys=tuple("abcd"),
                classes=("thing",),
                logit_NK=np.float32(logit)[:, None],
                target_NK=np.ones(shape, np.uint8),
                ignore_NK=np.zeros(shape, bool),
                objects=objects,
            ),
            masked={},
        )
        for name, logit in (("First", [-1, 1, -1, 1]), ("Last", [1, -1, 1, 1]))
    ]
    found = [(choice.title, choice.kind, choice.rows) for choice in choose_seen(runs, 2)]
    assert found == [
        ("Small objects that only “Last” names", "win", [0]),
        ("Covered or cut-off objects that only “First” names", "failure", [1]),
        ("Objects in plain sight that only “Last” names", "win", [2]),
    ]
    alone = [(choice.title, choice.rows) for choice in choose_seen(runs[1:], 2)]
    assert alone == [
        ("Small objects that “Last” names", [0, 3]),
        ("Covered or cut-off objects that “Last” misses", [1]),
        ("Objects in plain sight that “Last” names", [2]),
    ]
    without = [replace(each, clean=replace(each.clean, objects=None)) for each in runs]
    assert choose_seen(runs, 0) == choose_seen(without, 2) == []


def test_boxes_are_drawn_of_the_classes_in_question():
    example = Example(
        row=0,
        photo=Photo(np.zeros((80, 160, 3), np.uint8)),
        image=Image.new("RGB", (160, 80), "white"),
        keep_mask_HW=None,
        boxes=((0, (10.0, 20.0, 40.0, 30.0)), (1, (100.0, 20.0, 40.0, 30.0))),
    )
    drawn = np.asarray(draw_boxes(example, np.array([True, False])))
    assert (drawn[19, 10:50] == [255, 176, 0]).all() and (drawn[50, 10:50] == [255, 176, 0]).all()
    assert (drawn[18, 10:50] == 0).all() and (drawn[51, 10:50] == 0).all()
    assert (drawn[20:50, 10:50] == 255).all() and (drawn[:, 90:] == 255).all()
    assert (np.asarray(example.image) == 255).all()


def test_examples_show_both_sides(pair):
    better, worse = choose(pair, "high", 5)
    assert len({*better, *worse}) == 5

    def loss(each: RunReport, row: int) -> float:
        logit_K = each.masked["high"].logit_NK[row].astype(float)
        target_K, kept_K = each.clean.target_NK[row], ~each.clean.ignore_NK[row]
        return float(np.mean((np.log1p(np.exp(logit_K)) - logit_K * target_K)[kept_K]))

    def net(each: RunReport, row: int) -> int:
        named_K = (each.masked["high"].logit_NK[row] >= 0) & ~each.clean.ignore_NK[row]
        return sum(1 if each.clean.target_NK[row, k] else -1 for k in np.flatnonzero(named_K))

    # Classes rightly minus wrongly named first, then cross-entropy; one that names more wrongly is no winner.
    order = [
        (net(pair[1], row) - net(pair[0], row), loss(pair[0], row) - loss(pair[1], row), row)
        for row in range(NUM_SAMPLES)
    ]
    assert better == [row for gain in sorted(order, reverse=True) if net(pair[1], row := gain[2]) >= 0][:3]
    assert worse == [row for gain in sorted(order) if net(pair[0], row := gain[2]) >= 0][:2]
    wins, failures = choose([pair[0], replace(pair[0], name="Copy")], "high", 5)
    assert wins == failures == []  # equal models: no picture is a win or a failure


def test_holes_are_filled_with_the_mean():
    image = Image.new("RGB", (8, 4), "white")
    keep_mask_HW = np.ones((4, 4), np.float32)
    keep_mask_HW[:, 2:] = 0
    hidden = np.asarray(hide(image, keep_mask_HW, (0.5, 0.0, 1.0)))
    assert (hidden[:, :4] == 255).all()
    assert (hidden[:, 4:] == [128, 0, 255]).all()


def test_pictures_come_from_the_shards_and_masks_of_the_predictions(tmp_path):
    write_images(tmp_path / "shards", [50, 70])
    rng = np.random.default_rng(0)
    write_keep_masks(tmp_path / "high", [(rng.random((32, 32)) > p).astype(np.uint8) for p in (0.2, 0.4, 0.6, 0.8)])
    shard_set = open_shard_set(tmp_path / "shards")
    bank = KeepMasks.open([tmp_path / "high"], 32, "cpu")
    masks = (str(tmp_path / "high"),)

    def placed(entry: Predictions) -> Predictions:
        origin = replace(entry.origin, dataset_fingerprint=shard_set.manifest.fingerprint)
        if entry.origin.keep_masks:
            origin = replace(origin, keep_masks=masks, keep_mask_fingerprints=keep_mask_fingerprints(masks))
        return replace(entry, origin=origin)

    single = run("One", 1.0, 1.0)
    single = replace(single, clean=placed(single.clean), masked={"high": placed(single.masked["high"])})
    text = write_report(
        tmp_path / "r.html", title="T", runs=[single], shards=tmp_path / "shards", num_examples=2
    ).read_text("utf-8")
    images = [attributes for tag, attributes in Page(text).elements if tag == "img"]
    assert [one["src"] for one in images[:2]] == [one["src"] for one in images[2:4]]  # the first opens the page, too
    images = images[2:]
    assert len(images) == 4
    assert "differ most" not in text  # plain words where there is one model
    assert "Where “One” does best" in text and "rightly and" in text
    rows = [row for group in choose([single], "high", 2) for row in group]
    for row, whole, masked in zip(rows, images[::2], images[1::2], strict=True):
        keep_mask_HW = bank.of_keys([single.clean.keys[row]], epoch=0)[0, 0].numpy()
        assert single.clean.keys[row] in whole["alt"]
        assert f"{100 * (1 - keep_mask_HW.mean()):.0f} % hidden" in masked["alt"]
        # Keys are numbered in stored order, and the size of a sample follows from its number.
        assert (int(whole["width"]), int(whole["height"])) == (40 + row % 37, 36 + row % 23)
        before, after = (decode(attributes["src"]) for attributes in (whole, masked))
        hole = np.asarray(Image.fromarray(np.uint8(keep_mask_HW * 255)).resize(before.size, 0)) == 0
        assert np.asarray(after)[hole].mean() < 60 < np.asarray(before)[hole].mean()

    with pytest.raises(UserError, match="not the shards of the predictions"):
        other = replace(single, clean=single.clean, masked={"high": predictions(1.0, 2, 0.5)})
        write_report(tmp_path / "s.html", title="T", runs=[other], shards=tmp_path / "shards")
    write_keep_masks(tmp_path / "high", [np.ones((32, 32), np.uint8)])
    notes: list[str] = []
    text = write_report(
        tmp_path / "s.html", title="T", runs=[single], shards=tmp_path / "shards", num_examples=2, note=notes.append
    ).read_text("utf-8")
    assert len(notes) == 1 and "have changed since the evaluation" in notes[0] and notes[0] in html.unescape(text)
    images = [attributes for tag, attributes in Page(text).elements if tag == "img"]
    assert len(images) == 3 and not any("hidden" in attributes["alt"] for attributes in images)
    assert text.count('<p class="absent">') == 3  # the answers behind the masks are there all the same


def test_scores_are_rounded_as_predict_rounds_them(pair):
    logit_K = np.float32([np.log(0.9276 / 0.0724), 0.0, np.log(0.006 / 0.994)])
    one = replace(pair[0], clean=replace(pair[0].clean, logit_NK=np.tile(logit_K, (NUM_SAMPLES, 1))))
    [answers] = _view(None, "", [one], "whole", 0, "Whole").answers
    scores = [each.score.split()[0] for each in answers.first]
    assert scores == ["93", "50", "1"]
    exact = tuple(zip(CLASSES, 1 / (1 + np.exp(-logit_K.astype(float)))))
    printed = line_of(ImagePrediction(file="a.jpg", scores=exact, predicted=CLASSES))
    assert scores == re.findall(r"(\d+) %", printed)


def test_each_model_says_how_many_it_named_rightly_and_wrongly(pair):
    clean = replace(
        pair[0].clean,
        logit_NK=np.float32([[2, 1, -1]] * NUM_SAMPLES),
        target_NK=np.uint8([[1, 0, 1]] * NUM_SAMPLES),
        ignore_NK=np.zeros((NUM_SAMPLES, 3), bool),
    )
    mine = replace(pair[0], name="mine", clean=clean)
    words = "1 rightly and 1 wrongly named, cross-entropy 0.92"
    assert _how_well(mine, "whole", 0, several=False) == words
    assert _how_well(mine, "whole", 0, several=True) == f"“mine”: {words}"
    assert net_named(clean)[0] == 0


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        (("", ""), "and mAP on samples set aside from the training split."),
        (("val", "val"), "and mAP on a separate validation split."),
        (
            ("", "val"),
            "and mAP on samples set aside from the training split (“Base & line”) and "
            "on a separate validation split (“MSL”).",
        ),
    ],
)
def test_the_page_says_what_validation_was_measured_on(pair, tmp_path, folders, words):
    runs = [
        replace(each, config=replace(CONFIG, data=replace(CONFIG.data, validation=folder)))
        for each, folder in zip(pair, folders, strict=True)
    ]
    text = write_report(tmp_path / "r.html", title="T", runs=runs).read_text("utf-8")
    assert words in html.unescape(text)


def test_maps_without_a_filled_cell_are_left_out(pair, tmp_path):
    """Few images give no share at all; a model without false alarms has an empty map."""
    quiet = replace(pair[1].clean, logit_NK=np.full((NUM_SAMPLES, 3), -1, np.float32))
    runs = [replace(pair[0], masked={}), replace(pair[1], clean=quiet, masked={})]
    text = write_report(tmp_path / "one.html", title="T", runs=runs).read_text("utf-8")
    assert text.count("plot heat") == 2 and "Left out, as no cell is filled: False alarms of “MSL”." in text
    few = [replace(each, clean=first(each.clean, 9), masked={}) for each in pair]
    text = write_report(tmp_path / "few.html", title="T", runs=few).read_text("utf-8")
    Page(text)
    assert "plot heat" not in text and 'id="companions"' not in text and "#companions" not in text
    assert "Classes that stand together are not shown: no share over at least 10 images" in text
    ends = [pair[0], replace(pair[1], masked={"high": replace(pair[1].masked["high"], logit_NK=quiet.logit_NK)})]
    ends[0] = replace(ends[0], masked={"high": ends[0].masked["high"]})
    text = write_report(tmp_path / "ends.html", title="T", runs=ends).read_text("utf-8")
    assert '<div class="in1"><p class="absent">No cell is filled.</p>' in text and text.count("plot heat") == 4


def first(entry: Predictions, count: int) -> Predictions:
    """The first few images."""
    arrays = {name: getattr(entry, name)[:count] for name in ("keys", "logit_NK", "target_NK", "ignore_NK")}
    return replace(entry, **arrays, objects=None)


def test_pictures_are_the_right_ones_although_samples_were_skipped(tmp_path):
    write_images(tmp_path / "shards", [50, 70])
    whole = predictions(1.0, 1)
    fingerprint = open_shard_set(tmp_path / "shards").manifest.fingerprint
    kept = np.delete(np.arange(NUM_SAMPLES), [3, 60])
    damaged = replace(
        whole,
        keys=tuple(whole.keys[row] for row in kept),
        objects=None,
        origin=replace(whole.origin, dataset_fingerprint=fingerprint, skipped=("s000003", "s000060")),
        **{name: getattr(whole, name)[kept] for name in ("logit_NK", "target_NK", "ignore_NK")},
    )
    for example in read_examples([2, 3, 100], damaged, tmp_path / "shards"):
        number = int(damaged.keys[example.row][1:])
        assert example.image.size == (40 + number % 37, 36 + number % 23)


def decode(address: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(address.removeprefix("data:image/jpeg;base64,"))))


def test_a_run_is_gathered_from_its_folder(tmp_path, pair):
    (tmp_path / "config.json").write_text(to_json(CONFIG))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pair[0].history))
    write_predictions(pair[0].clean, tmp_path / "clean.parquet")
    write_predictions(pair[0].masked["high"], tmp_path / "high.parquet")
    gathered = open_run(
        tmp_path, name="Run", clean=tmp_path / "clean.parquet", masked={"high": tmp_path / "high.parquet"}
    )
    assert gathered.config == CONFIG and list(gathered.history) == list(pair[0].history)
    assert compute_metrics(gathered.masked["high"]) == compute_metrics(pair[0].masked["high"])
    assert gathered.files == {
        name: str(tmp_path / f"{name.replace('whole', 'clean')}.parquet") for name in ("whole", "high")
    }
    with pytest.raises(FileNotFoundError, match="none: no checkpoint here"):
        open_run(tmp_path / "none", name="Run", clean=tmp_path / "clean.parquet")


def test_history_is_averaged_by_epoch_and_skips_what_is_not_finite():
    history = [{"epoch": 0, "clean": 1.0}, {"epoch": 0, "clean": 3.0}, {"epoch": 1, "clean": float("nan")}]
    history += [{"epoch": 1, "validation_mAP": 0.5}, {"epoch": 2, "clean": 4.0}]
    assert by_epoch(history, "clean") == ([1, 3], [2.0, 4.0])


@pytest.mark.parametrize(
    ("low", "high", "whole", "expected"),
    [
        (0, 1, False, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (12, 61, False, [10, 20, 30, 40, 50, 60, 70]),
        (1, 3, True, [1, 2, 3]),
        (0.5, 0.5, False, [0.5, 0.6, 0.7, 0.8, 0.9, 1.0]),
    ],
)
def test_ticks_are_round_and_cover_the_range(low, high, whole, expected):
    assert ticks(low, high, whole=whole) == pytest.approx(expected)


@pytest.mark.parametrize(
    "row",
    [
        {"total": "high"},
        {"validation_mAP": [1]},
        {"epoch": {"a": 1}},
        {"epoch": -1},
        {"step": 0.5},
        {"clean": True},
        [1, 2],
    ],
)
def test_metrics_that_no_training_writes_are_refused(tmp_path, row):
    good = {"step": 1, "epoch": 0, "total": 0.5, "validation_mAP": None}
    bad = good | row if isinstance(row, dict) else row
    (tmp_path / "metrics.jsonl").write_text(f"{json.dumps(good)}\n{json.dumps(bad)}\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl: a line is not what training writes"):
        read_history(tmp_path)
    (tmp_path / "metrics.jsonl").write_text(json.dumps(good) + "\n")
    assert read_history(tmp_path) == [good]
