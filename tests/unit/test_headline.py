"""What a report says in its first lines, by hand: who finds more, where, at what price; what must be known first."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from msltrain.config import TrainConfig
from msltrain.measures.bootstrap import Interval
from msltrain.measures.predictions import Origin, Predictions
from msltrain.report.headline import find
from msltrain.report.numbers import Found, Numbers, compute_numbers
from msltrain.report.open_runs import RunReport
from msltrain.stream.config import StreamConfig

CONFIG = TrainConfig(stream=StreamConfig(image_size=32))
NAMES = ("Old", "New", "Newest")
TERMS = "A label is a class in an image; a false alarm, a class that is named and not there."
HIDDEN = "with 55\u00a0% of the image hidden"
LEVEL, UP, DOWN = (-0.02, 0.02), (0.01, 0.05), (-0.3, -0.1)


def predictions(num_images: int, hole_fraction: float, seed: int) -> Predictions:
    """Half of the images show each of two classes; no two logits are equal."""
    logit_NK = (
        np.random.default_rng([seed, round(100 * hole_fraction)]).permutation(2 * num_images).reshape(num_images, 2)
        - num_images
        + 0.5
    )
    return Predictions(
        keys=tuple(map(str, range(num_images))),
        logit_NK=logit_NK.astype(np.float32),
        target_NK=np.stack([np.arange(num_images) % 2, np.arange(num_images) // 2 % 2], axis=1).astype(np.uint8),
        ignore_NK=np.zeros((num_images, 2), bool),
        classes=("cat", "dog"),
        origin=Origin(hole_fraction=hole_fraction),
    )


@cache
def measured(num_runs: int, num_images: int = 40) -> Numbers:
    """Runs on whole images, and behind light and heavy masks, which are not named in that order."""
    masks = {"high": 0.55, "low": 0.2}
    runs = [
        RunReport(
            name=NAMES[number],
            clean=predictions(num_images, 0.0, number),
            masked={name: predictions(num_images, share, number) for name, share in masks.items()},
            config=CONFIG,
            history=(),
        )
        for number in range(num_runs)
    ]
    return compute_numbers(runs)


def found(alike: int, gain: tuple[float, float] = LEVEL, num_objects: int = 200, **at_half: int) -> Found:
    return Found(
        num_images=at_half.get("num_images", 400),
        num_objects=num_objects,
        num_found=at_half.get("num_found", alike),
        num_false=at_half.get("num_false", 6),
        num_found_alike=alike,
        gain=Interval(value=sum(gain) / 2, low=gain[0], high=gain[1]),
    )


def told(*by_run: dict[str, Found], num_images: int = 40, **differences: Interval) -> Numbers:
    """The numbers of as many runs, with these counts, and these differences of the last run in mAP."""
    numbers = measured(len(by_run), num_images)
    rows = [dict(row) for row in numbers.differences]
    rows[-1] |= differences
    return replace(numbers, found=by_run, differences=tuple(rows))


def interval(low: float, high: float) -> Interval:
    return Interval(value=(low + high) / 2, low=low, high=high)


def test_the_hardest_condition_comes_first_and_each_says_its_own_side():
    first = {"whole": found(100, num_found=1), "high": found(100, num_found=2)}
    finding = find(told(first, {"whole": found(150, UP, num_found=3), "high": found(40, DOWN, num_found=4)}))
    assert finding.headline == (
        f"With as many false alarms “New” finds 60\u00a0% fewer labels than “Old” {HIDDEN} (20 instead of 50 of every "
        "100); on whole images it finds 50\u00a0% more (75 instead of 50 of every 100)."
    )


def test_where_the_interval_holds_zero_it_is_about_as_many_whatever_was_counted():
    first = {"whole": found(100), "high": found(17)}
    finding = find(told(first, {"whole": found(150, UP), "high": found(15, LEVEL)}))
    assert finding.headline == (
        f"With as many false alarms “New” finds about as many labels as “Old” {HIDDEN} (7.5 and 8.5 of every 100); on "
        "whole images it finds 50\u00a0% more (75 instead of 50 of every 100)."
    )


@pytest.mark.parametrize(
    ("alike", "before", "said"),
    [
        (80, 40, "2.0 times as many labels as"),
        (79, 40, "98\u00a0% more labels than"),
        (104, 100, "4.0\u00a0% more labels than"),
        (96, 100, "4.0\u00a0% fewer labels than"),
        (90, 100, "10\u00a0% fewer labels than"),
        (3, 0, "more labels than"),
        (0, 3, "100\u00a0% fewer labels than"),
    ],
)
def test_how_many_more(alike: int, before: int, said: str):
    one = {"whole": found(before), "high": found(before)}
    headline = find(told(one, {"whole": found(alike), "high": found(alike, UP)})).headline
    assert headline.startswith(f"With as many false alarms “New” finds {said} “Old” {HIDDEN} ("), headline


def test_the_last_of_three_is_compared_with_the_first():
    by_run = [{"whole": found(n), "high": found(n, UP)} for n in (100, 110, 150)]
    finding = find(told(*by_run, high=interval(0.07, 0.09), low=interval(*LEVEL), whole=interval(*LEVEL)))
    assert finding.headline.startswith("With as many false alarms “Newest” finds 50\u00a0% more labels than “Old” ")
    assert finding.ranking.startswith("“Newest” is ahead of “Old” by 8.0 points of mAP with high holes ")


def test_fewer_than_a_hundred_labels_are_counted():
    first = {end: found(20, num_objects=99, num_false=1) for end in ("whole", "high")}
    last = {end: found(30, UP, num_objects=99, num_false=2) for end in ("whole", "high")}
    finding = find(told(first, last))
    assert f"labels than “Old” {HIDDEN} (30 instead of 20 of 99);" in finding.headline
    assert finding.price == (
        f"At a score of 0.5, {HIDDEN} “Old” finds 20 of the 99 labels with 1 false alarm and “New” finds 30 with 2 "
        "false alarms; on whole images “Old” finds 20 of the 99 labels with 1 false alarm and “New” finds 30 with 2 "
        f"false alarms. {TERMS}"
    )
    uneven = {"whole": first["whole"], "high": found(20, num_objects=98)}
    assert "of every 100" in find(told(uneven, last)).headline, "there is no one number of labels to speak of"


def test_what_each_finds_at_half_and_its_price():
    first = {
        "whole": found(100, num_found=100, num_false=6),
        "high": found(50, num_found=18, num_false=30),
    }
    last = {
        "whole": found(120, UP, num_found=130, num_false=44),
        "high": found(60, UP, num_found=70, num_false=100),
    }
    assert find(told(first, last)).price == (
        f"At a score of 0.5, {HIDDEN} “Old” finds 9.0 of every 100 labels with 8 false alarms per 100 images and “New” "
        "finds 35 with 25 false alarms per 100 images; on whole images “Old” finds 50 of every 100 labels with 2 false "
        f"alarms per 100 images and “New” finds 65 with 11 false alarms per 100 images. {TERMS} The first line counts "
        "other labels: those down to the lowest score at which a model makes no more false alarms than “Old” makes at "
        "0.5."
    )


def test_few_photographs_show_a_difference_only_where_both_measures_do():
    """Of 12 photographs, 6 show each class: chance decides much."""
    first = {end: found(20, num_objects=99) for end in ("whole", "high")}
    last = {"whole": found(22, num_objects=99), "high": found(40, UP, num_objects=99)}
    unsure = told(first, last, num_images=12, high=interval(*LEVEL), whole=interval(*UP))
    finding = find(unsure)
    assert finding.headline == (
        f"12 photographs cannot show a difference between “New” and “Old”. At a score of 0.5, {HIDDEN} “Old” finds 20 "
        "of the 99 labels with 6 false alarms and “New” finds 40 with 6 false alarms; on whole images “Old” finds 20 "
        "of the 99 labels with 6 false alarms and “New” finds 22 with 6 false alarms."
    )
    assert finding.price == TERMS, "what the first line has said already"
    assert finding.warnings[-1].startswith("Only 12 photographs, and every class in 6 or fewer: chance alone ")
    sure = find(told(first, last, num_images=12, high=interval(*UP), whole=interval(*LEVEL)))
    assert sure.headline == (
        f"With as many false alarms “New” finds 2.0 times as many labels as “Old” {HIDDEN} (40 instead of 20 of 99); "
        "on whole images it finds about as many (22 and 20 of 99)."
    )
    assert sure.price.startswith(f"At a score of 0.5, {HIDDEN} ")


@pytest.mark.parametrize(
    ("high", "low", "whole", "said"),
    [
        (
            UP,
            LEVEL,
            DOWN,
            "“New” is ahead of “Old” by 3.0 points of mAP with high holes (55\u00a0% hidden) and behind it by 20.0 "
            "points of mAP on whole images; with low holes (20\u00a0% hidden) no difference can be shown.",
        ),
        (
            DOWN,
            DOWN,
            LEVEL,
            "“New” is behind “Old” by 20.0 points of mAP with high holes (55\u00a0% hidden) and by 20.0 points of mAP "
            "with low holes (20\u00a0% hidden); on whole images no difference can be shown.",
        ),
        (
            LEVEL,
            LEVEL,
            LEVEL,
            "No difference in mAP between “New” and “Old” can be shown with high holes (55\u00a0% hidden), with low "
            "holes (20\u00a0% hidden) or on whole images.",
        ),
    ],
)
def test_who_ranks_better_and_where(high, low, whole, said):
    counts = {"whole": found(100), "high": found(100)}
    numbers = told(counts, counts, high=interval(*high), low=interval(*low), whole=interval(*whole))
    assert find(numbers).ranking == said


def test_each_run_has_a_sentence_for_each_condition_the_hardest_first():
    counts = {"whole": found(100), "high": found(100)}
    numbers = told(counts, counts, counts, high=interval(-0.004, -0.002), low=interval(*LEVEL))
    *sentences, scope = find(numbers).sentences
    starts = [f"{text.split(':')[0]}: {text.split('”')[0].partition('“')[2]}" for text in sentences]
    places = ["High holes (55\u00a0% hidden)", "Low holes (20\u00a0% hidden)", "Whole images"]
    assert starts == [f"{place}: {name}" for name in ("New", "Newest") for place in places]
    before, value = (100 * numbers.measured[n]["high"].metrics.mAP for n in (0, 2))
    assert before != value
    assert sentences[3] == (
        f"High holes (55\u00a0% hidden): “Newest” {value:.1f} mAP against “Old” {before:.1f}, −0.3 points (95\u00a0% "
        "interval −0.4 to −0.2)."
    )
    assert sentences[4].endswith(" 0.0 points (95\u00a0% interval −2.0 to +2.0, which includes zero).")
    assert scope.startswith("Measured on 40 test images, one training run per model. The intervals cover the choice ")


def test_one_run_says_what_it_finds_and_nothing_of_others():
    numbers = told({"whole": found(120, num_found=130), "high": found(50, num_found=18, num_false=100)})
    finding = find(numbers)
    assert finding.headline == f"Of every 100 labels “Old” finds 65 on whole images and 9.0 {HIDDEN}."
    assert finding.price == (
        "“Old” finds them at a score of 0.5, with 2 false alarms per 100 images on whole images and 25 false alarms "
        f"per 100 images {HIDDEN}. {TERMS}"
    )
    mAP = {name: f"{100 * one.metrics.mAP:.1f}" for name, one in numbers.measured[0].items()}
    assert finding.ranking == (
        f"“Old” reaches a mean average precision of {mAP['whole']} on whole images, {mAP['low']} on low holes "
        f"(20\u00a0% hidden), {mAP['high']} on high holes (55\u00a0% hidden)."
    )
    places = {"whole": "Whole images", "low": "Low holes (20\u00a0% hidden)", "high": "High holes (55\u00a0% hidden)"}
    for sentence, (name, place) in zip(finding.sentences, places.items(), strict=False):
        one = numbers.measured[0][name].intervals["mAP"]
        span = f"{100 * one.low:.1f} to {100 * one.high:.1f}"
        assert sentence == f"{place}: {100 * one.value:.1f} mAP (95\u00a0% interval {span})."
    assert len(finding.sentences) == 4 and finding.sentences[3].endswith(
        "Without a second model this says how well it does, not what made it so."
    )
    few = told({end: found(3, num_objects=5, num_found=n) for end, n in (("whole", 4), ("high", 2))})
    assert find(few).headline == f"Of 5 labels “Old” finds 4 on whole images and 2 {HIDDEN}."


def test_one_photograph_is_one():
    numbers = measured(1)
    clean = numbers.runs[0].clean
    arrays = {name: getattr(clean, name)[1:2] for name in ("logit_NK", "target_NK", "ignore_NK")}
    one = replace(clean, keys=("a",), **arrays)
    numbers = compute_numbers([replace(numbers.runs[0], clean=one, masked={})])
    assert find(numbers).sentences[-1].startswith("Measured on 1 test image, one training run per model.")


def test_what_must_be_known_first_names_the_run_that_it_is_of():
    counts = {"whole": found(100), "high": found(100)}
    numbers = told(counts, counts)
    assert find(numbers).warnings == ()
    first, last = numbers.runs
    first = replace(first, met=("it has seen 3 of them", "and their labels"))
    last = replace(last, unfinished="1 of 9 epochs is done")
    assert find(replace(numbers, runs=(first, last))).warnings == (
        "“New” is not trained to its end: 1 of 9 epochs is done.",
        "“Old”: it has seen 3 of them.",
        "“Old”: and their labels.",
    )


def test_a_number_that_the_order_of_the_samples_decides_is_named_with_its_condition():
    runs = measured(2).runs
    same = replace(runs[1].masked["low"], logit_NK=np.zeros((40, 2), np.float32))
    numbers = compute_numbers([runs[0], replace(runs[1], masked={**runs[1].masked, "low": same})])
    [warning] = find(numbers).warnings
    assert warning.startswith(
        "“New” with 20\u00a0% of the image hidden: 40 positives share their logit with a negative"
    )
