"""The gallery: wins and failures, whole and behind their keep mask, each model's first answers and where it looked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from msldata.contract.keepmask import resize_nearest
from msldata.errors import UserError, counted
from msldata.pages.html import picture
from msltrain.pages.svg import style_name
from msltrain.pages.text import join, quoted, score_percent
from msltrain.report.examples import (
    Choice,
    Example,
    answer,
    cross_entropy,
    draw_boxes,
    hide,
    named,
    net_named,
    wholly_right,
)
from msltrain.report.open_runs import RunReport, describe_condition
from msltrain.runs.find_checkpoint import open_checkpoint, read_meta
from msltrain.runs.run_places import WHOLE
from msltrain.use.overlay import paint
from msltrain.use.predict import Predictor

LONG_SIDE = 400
"""The longer side of an embedded image, in pixels."""
MOST_IN_COLUMN = 3
"""More pictures in a row take the whole width of the window; the style sheet gives each at least 14 rem."""
_SIGNS: Mapping[str, tuple[str, str]] = {
    "right": ("right", "✓"),
    "wrong": ("wrong", "✗"),
    "missed": ("missed", "○"),
    "below": ("below", "·"),
    "not counted": ("below", "·"),
}
"""Verdict → class of the style sheet, sign."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One class that a model names."""

    name: str
    score: str
    verdict: str
    style: str
    sign: str


@dataclass(frozen=True, kw_only=True)
class Answers:
    """A model's first answers."""

    model: str
    style: str
    first: list[Answer]


@dataclass(frozen=True, kw_only=True)
class View:
    """The photograph under one condition, and what the models say."""

    title: str
    where: str
    """The condition, in words."""
    picture: str
    """Its address; empty if the picture is not available."""
    alt: str
    answers: list[Answers]


@dataclass(frozen=True, kw_only=True)
class Map:
    """Where a model sees a class behind the hole."""

    style: str
    title: str
    """The model, the class and its score, in words."""
    picture: str


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One example, ready for the template."""

    key: str
    file: str
    """The name of the file that it was made of, as people know it."""
    shows: str
    remarks: str
    hidden: float
    """Percent."""
    num_classes: int
    width: int
    height: int
    views: list[View]
    maps: list[Map]


@dataclass(frozen=True, kw_only=True)
class Group:
    """Examples under one heading."""

    title: str
    kind: str
    """``win`` or ``failure``."""
    examples: list[Shown]
    condition: str
    """The condition under which they were chosen."""
    note: str = ""
    """What must be said of them; empty if nothing."""


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """The chosen images of one condition, and of whole images."""

    condition: str
    groups: list[Group]
    seen: list[Group] = field(default_factory=list)
    """Objects that one model names and another does not, although nothing is hidden."""
    missing: str = ""
    """What cannot be shown, and why; empty if nothing is missing."""

    @property
    def first(self) -> Shown | None:
        """The example for the top of the page: the first win that the rule chose; None where nothing was won."""
        return next((group.examples[0] for group in self.groups if group.kind == "win"), None)

    @property
    def is_wide(self) -> bool:
        """Whether a row has more pictures than the page's column holds."""
        rows = (len(shown.views) + len(shown.maps) for group in self.groups for shown in group.examples)
        return max(rows, default=0) > MOST_IN_COLUMN

    @property
    def has_maps(self) -> bool:
        """Whether any model could be asked where it looks."""
        return any(shown.maps for group in self.groups for shown in group.examples)


def show_examples(
    runs: Sequence[RunReport],
    condition: str,
    wins: Sequence[Example],
    failures: Sequence[Example],
    seen: Sequence[tuple[Choice, Sequence[Example]]] = (),
    missing: str = "",
) -> Gallery:
    """Everything the page says about its examples.

    Args:
        runs: the report's runs.
        condition: under which the examples were chosen.
        wins, failures: the examples.
        seen: those on whole images.
        missing: what is already known to be missing.
    """
    first, last = quoted(runs[0].name), quoted(runs[-1].name)
    several = len(runs) > 1
    titles = (
        ("win", f"Where {last} improves most on {first}" if several else f"Where {last} does best"),
        ("failure", f"Where {last} falls furthest behind {first}" if several else f"Where {last} does worst"),
    )
    predictors = [_open_predictor(run) for run in runs]
    if (wins or failures) and not all(predictors):
        lost = join([quoted(run.name) for run, one in zip(runs, predictors, strict=True) if one is None])
        looked = f"Where it looked is not drawn for {lost}: the weights are not here."
        missing = " ".join(filter(None, (missing, looked)))
    groups = [
        Group(
            title=title,
            kind=kind,
            examples=[_show(example, runs, condition, predictors) for example in examples],
            condition=condition,
            note=_how_many_right(runs, condition, examples) if kind == "win" and not several else "",
        )
        for (kind, title), examples in zip(titles, (wins, failures), strict=True)
        if examples
    ]
    groups_seen = [
        Group(
            title=choice.title,
            kind=choice.kind,
            examples=[
                replace(shown, remarks=f"in boxes: {_names(runs[0], choice.shows_NK[example.row])}; {shown.remarks}")
                for example in examples
                for boxed in (draw_boxes(example, choice.shows_NK[example.row]),)
                for shown in (_show(replace(example, image=boxed), runs, WHOLE, ()),)
            ],
            condition=WHOLE,
        )
        for choice, examples in seen
    ]
    return Gallery(condition=condition, groups=groups, seen=groups_seen, missing=missing)


def _how_many_right(runs: Sequence[RunReport], condition: str, wins: Sequence[Example]) -> str:
    """Where a run has no more photographs without a mistake than are shown of what it does best: how many."""
    [run] = runs
    is_right_N = wholly_right(run.conditions[condition])
    number = int(is_right_N.sum())
    if number > len(wins):
        return ""
    where = "" if condition == WHOLE else f" ({describe_condition(condition, run.conditions[condition])})"
    end = ": shown here" if number == len(wins) else ", shown first" if number else "; these come nearest"
    of = f"Of {counted(len(is_right_N), 'photograph')}{where}"
    return f"{of} {quoted(run.name)} gets {number or 'none'} wholly right{end}."


def _names(run: RunReport, shows_K: np.ndarray) -> str:
    return ", ".join(name for name, shown in zip(run.clean.classes, shows_K, strict=True) if shown)


def to_json(gallery: Gallery, runs: Sequence[RunReport]) -> list[dict[str, Any]]:
    """What each image shows and what each model says about it."""
    rows = {key: row for row, key in enumerate(runs[0].clean.keys)}
    return [
        {
            "key": shown.key,
            "file": shown.file,
            "group": group.kind,
            "condition": group.condition,
            "title": group.title,
            "models": [
                {
                    "name": run.name,
                    "cross_entropy": float(cross_entropy(run.conditions[group.condition], [rows[shown.key]])[0]),
                    "right_minus_wrong": int(net_named(run.conditions[group.condition], [rows[shown.key]])[0]),
                    "answers": {
                        condition: answer(run.conditions[condition], rows[shown.key])
                        for condition in dict.fromkeys((WHOLE, group.condition))
                    },
                }
                for run in runs
            ],
        }
        for group in (*gallery.groups, *gallery.seen)
        for shown in group.examples
    ]


def _show(example: Example, runs: Sequence[RunReport], condition: str, predictors: Sequence[Predictor | None]) -> Shown:
    clean, row = runs[0].clean, example.row
    truth = [name for name, positive in zip(clean.classes, clean.target_NK[row], strict=True) if positive]
    ignored = [name for name, flag in zip(clean.classes, clean.ignore_NK[row], strict=True) if flag]
    shows = ", ".join(truth) or "none of the classes"
    remarks = [f"not counted: {', '.join(ignored)}"] if ignored else []
    remarks += [_how_well(run, condition, row, several=len(runs) > 1) for run in runs]
    hidden, masked = 0.0, example.image
    if example.keep_mask_HW is not None:
        hidden = 100 * (1 - float(example.keep_mask_HW.mean()))
        masked = hide(example.image, example.keep_mask_HW, runs[0].config.stream.mean)
        remarks.append(f"{hidden:.0f} % hidden")
    file = example.file or clean.keys[row]
    views = [_view(example.image, f"Photograph {file}: {shows}", runs, WHOLE, row, "Whole")]
    if condition != WHOLE:
        alt = f"Photograph {file} with {hidden:.0f} % hidden"
        is_hidden = example.keep_mask_HW is not None
        title = f"{hidden:.0f} % hidden" if is_hidden else "Partly hidden"
        views.append(_view(masked if is_hidden else None, alt, runs, condition, row, title))
    return Shown(
        key=clean.keys[row],
        file=file,
        shows=shows,
        remarks="; ".join(remarks),
        hidden=round(hidden, 1),
        num_classes=len(truth),
        width=example.image.width,
        height=example.image.height,
        views=views,
        maps=_maps(example, masked, runs, condition, predictors),
    )


def _how_well(run: RunReport, condition: str, row: int, *, several: bool) -> str:
    """How many classes a run names, and its cross-entropy; with its name where there are several runs."""
    predictions = run.conditions[condition]
    [right], [wrong] = named(predictions, [row])
    whose = f"{quoted(run.name)}: " if several else ""
    return f"{whose}{right} rightly and {wrong} wrongly named, cross-entropy {cross_entropy(predictions, [row])[0]:.2f}"


def _view(image: Image.Image | None, alt: str, runs: Sequence[RunReport], condition: str, row: int, title: str) -> View:
    answers = []
    for number, run in enumerate(runs):
        first = [
            Answer(name=name, score=score_percent(score), verdict=verdict, style=style, sign=sign)
            for name, score, verdict in answer(run.conditions[condition], row)
            for style, sign in (_SIGNS[verdict],)
        ]
        answers.append(Answers(model=run.name, style=style_name(number), first=first))
    return View(
        title=title,
        where=describe_condition(condition, runs[0].conditions[condition]),
        picture="" if image is None else picture(image, longest_side=LONG_SIDE),
        alt=alt,
        answers=answers,
    )


def _maps(
    example: Example,
    masked: Image.Image,
    runs: Sequence[RunReport],
    condition: str,
    predictors: Sequence[Predictor | None],
) -> list[Map]:
    """Where each model that can be asked sees the class on which the first and the last run differ most."""
    if not predictors or (condition != WHOLE and example.keep_mask_HW is None):
        return []
    k = _telling_class(runs, condition, example.row)
    photo = masked.copy()
    photo.thumbnail((LONG_SIDE, LONG_SIDE), Image.Resampling.LANCZOS)
    maps = []
    for number, (run, predictor) in enumerate(zip(runs, predictors, strict=True)):
        if predictor is None:
            continue
        size, keep_mask_SS = predictor.image_size, None
        square_1CSS = example.photo.square(size)
        if example.keep_mask_HW is not None:
            keep_mask_SS = resize_nearest((example.keep_mask_HW > 0).astype(np.uint8), size, size)
        [found] = predictor.answer([square_1CSS], keep_mask_SS, with_places=True)
        assert found.place_score_KHW is not None
        painted = Image.fromarray(paint(np.asarray(photo), found.place_score_KHW[k]))
        title = f"Where {quoted(run.name)} sees {predictor.classes[k]}, score {score_percent(found.score_K[k])}"
        maps.append(
            Map(
                style=style_name(number),
                title=title,
                picture=picture(painted, longest_side=LONG_SIDE),
            )
        )
    return maps


def _telling_class(runs: Sequence[RunReport], condition: str, row: int) -> int:
    """The class in the image (or any, if it has none) whose logits differ most between the first and last run."""
    first, last = runs[0].conditions[condition], runs[-1].conditions[condition]
    told_K = np.abs(last.logit_NK[row] - (first.logit_NK[row] if len(runs) > 1 else 0))
    present_K = (first.target_NK[row] > 0) & ~first.ignore_NK[row]
    return int(np.argmax(np.where(present_K, told_K, -1.0) if present_K.any() else told_K))


def _open_predictor(run: RunReport) -> Predictor | None:
    """The model behind the predictions; None if its weights are gone or have changed."""
    try:
        if not run.place or read_meta(open_checkpoint(run.place))[0]["weights_sha256"] != (
            run.clean.origin.checkpoint_sha256
        ):
            return None
        return Predictor(run.place, torch.device("cpu"), threshold=0.5)
    except (UserError, FileNotFoundError):
        return None
