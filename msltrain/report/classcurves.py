"""Precision over recall, in a small plot per class.

P positives of one class.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from msltrain.measures.predictions import Predictions
from msltrain.pages.svg import dash, style_name
from msltrain.pages.text import percent
from msltrain.report.numbers import Numbers
from msltrain.report.open_runs import describe_condition
from msltrain.runs.run_places import WHOLE

NUM_OPEN = 12
"""How many panels are shown at once; the others can be unfolded."""
MAX_POINTS = 40
WIDTH, HEIGHT = 160, 122
LEFT, RIGHT, TOP, BOTTOM = 22, 155, 6, 104


@dataclass(frozen=True, kw_only=True)
class ModelCurve:
    """One model's curve of a class, in the units of the drawing."""

    style: str
    dash: str
    ap: str
    path: str
    """Points as SVG wants them; empty without positives."""
    dot: tuple[float, float] | None
    """The point at the (recall, precision) of a score of 0.5."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One class."""

    index: int
    name: str
    num_images: int
    alt: str
    ends: list[list[ModelCurve]]
    """On whole images, and in the hardest condition."""


def curve(predictions: Predictions, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision at the rank of each positive, in [0, 1]; the mean height is the AP.

    More than ``MAX_POINTS`` positives are averaged in groups of equal size (±1, larger and smaller ones in turn), which
    keeps that mean to within a percent.
    """
    kept_N = ~predictions.ignore_NK[:, k]
    order_N = np.argsort(-predictions.logit_NK[kept_N, k], kind="stable")
    rank_P = np.flatnonzero(predictions.target_NK[kept_N, k][order_N]) + 1
    hit_P = np.arange(1, len(rank_P) + 1)
    groups = min(len(rank_P), MAX_POINTS)
    recall, precision = hit_P / max(len(rank_P), 1), hit_P / rank_P
    if not groups:
        return recall, precision
    first = (np.arange(groups) * len(rank_P) + groups // 2) // groups
    size = np.diff(first, append=len(rank_P))
    return np.add.reduceat(recall, first) / size, np.add.reduceat(precision, first) / size


def class_curves(numbers: Numbers) -> list[Panel]:
    """A panel for each class that has positives, in the order of the class table."""
    known = numbers.measured[0][WHOLE].metrics.classes
    return [_panel(numbers, k) for k in numbers.shown_classes() if known[k].num_positive]


def _panel(numbers: Numbers, k: int) -> Panel:
    ends, words = [], []
    for condition in numbers.ends:
        lines, said = [], []
        for number, run in enumerate(numbers.runs):
            one = numbers.measured[number][condition].metrics.classes[k]
            x_P, y_P = curve(run.conditions[condition], k)
            points = zip((0.0, *x_P), (y_P[0], *y_P), strict=True) if len(x_P) else ()
            lines.append(
                ModelCurve(
                    style=style_name(number),
                    dash=dash(number),
                    ap=percent(one.average_precision),
                    path=" ".join(f"{_across(x):.1f},{_down(y):.1f}" for x, y in points),
                    dot=(round(_across(one.recall or 0.0), 1), round(_down(one.precision or 0.0), 1))
                    if one.num_predicted and len(x_P)
                    else None,
                )
            )
            said.append(
                f"{run.name} AP {percent(one.average_precision)}, at score ≥ 0.5 precision {percent(one.precision)} "
                f"and recall {percent(one.recall)}"
            )
        ends.append(lines)
        words.append(f"{describe_condition(condition, numbers.runs[0].conditions[condition])}: {'; '.join(said)}")
    name = numbers.classes[k]
    return Panel(
        index=k,
        name=name,
        num_images=numbers.measured[0][WHOLE].metrics.classes[k].num_positive,
        alt=f"Precision over recall of {name}. {'. '.join(words)}.",
        ends=ends,
    )


def _across(recall: float) -> float:
    return LEFT + recall * (RIGHT - LEFT)


def _down(precision: float) -> float:
    return BOTTOM - precision * (BOTTOM - TOP)
