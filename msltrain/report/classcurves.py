"""Precision over recall, a small plot per class.

P positives of one class.
"""

from __future__ import annotations

from html import escape

import numpy as np

from msltrain.measures.predictions import Predictions
from msltrain.pages.svg import dash, style_name
from msltrain.report.finding import percent
from msltrain.report.metric_tables import switch
from msltrain.report.numbers import Numbers
from msltrain.report.open_runs import WHOLE, describe_condition

NUM_OPEN = 12
"""Panels that are shown; the others unfold."""
MAX_POINTS = 40
WIDTH, HEIGHT = 160, 122
LEFT, RIGHT, TOP, BOTTOM = 22, 155, 6, 104


def curve(predictions: Predictions, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision at the rank of each positive, in [0, 1]; the mean height is the AP.

    More than ``MAX_POINTS`` positives are averaged in groups of equal size (±1), which keeps that mean to the last
    percent.
    """
    kept_N = ~predictions.ignore_NK[:, k]
    order_N = np.argsort(-predictions.logit_NK[kept_N, k], kind="stable")
    rank_P = np.flatnonzero(predictions.target_NK[kept_N, k][order_N]) + 1
    hit_P = np.arange(1, len(rank_P) + 1)
    groups = min(len(rank_P), MAX_POINTS)
    recall, precision = hit_P / max(len(rank_P), 1), hit_P / rank_P
    return (
        np.array([part.mean() for part in np.array_split(recall, groups)]) if groups else recall,
        np.array([part.mean() for part in np.array_split(precision, groups)]) if groups else precision,
    )


def class_curves(numbers: Numbers) -> str:
    """The panels, in the order of the class table; the first of them open."""
    panels = [
        _panel(numbers, k) for k in numbers.class_order() if numbers.measured[0][WHOLE].metrics.classes[k].num_positive
    ]
    content = f'<ol class="panels">{"".join(panels[:NUM_OPEN])}</ol>'
    if rest := panels[NUM_OPEN:]:
        several = f"the other {len(rest)} classes" if len(rest) > 1 else "the last class"
        content += f'<details><summary>Curves of {several}</summary><ol class="panels">{"".join(rest)}</ol></details>'
    return switch("curves", numbers, content)


def _panel(numbers: Numbers, k: int) -> str:
    name = numbers.classes[k]
    drawn, values, words = [], [], []
    for end, condition in enumerate(numbers.ends):
        lines, shown, said = [], [], []
        for number, run in enumerate(numbers.runs):
            one = numbers.measured[number][condition].metrics.classes[k]
            at_half = (one.recall or 0.0, one.precision) if one.num_predicted else None
            lines.append(_line(run.conditions[condition], k, number, at_half))
            shown.append(f'<span><i class="key {style_name(number)}"></i>{percent(one.average_precision)}</span>')
            said.append(
                f"{run.name} AP {percent(one.average_precision)}, at score ≥ 0.5 precision {percent(one.precision)} "
                f"and recall {percent(one.recall)}"
            )
        drawn.append(f'<g class="in{end}">{"".join(lines)}</g>')
        values.append(f'<p class="in{end}">{"".join(shown)}</p>')
        words.append(f"{describe_condition(condition, numbers.runs[0].conditions[condition])}: {'; '.join(said)}")
    alt = f"Precision over recall of {name}. {'. '.join(words)}."
    svg = (
        f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(alt)}">{_AXES}'
        f"{''.join(drawn)}</svg>"
    )
    num_images = numbers.measured[0][WHOLE].metrics.classes[k].num_positive
    return (
        f'<li class="panel" id="curve-{k}"><h3><a href="#curve-{k}">{escape(name)}</a> <small>{num_images:,}</small>'
        f'<a class="close" href="#by-class">smaller</a></h3>{"".join(values)}{svg}</li>'
    )


def _line(predictions: Predictions, k: int, number: int, at_half: tuple[float, float] | None) -> str:
    """The curve, and a dot at the (recall, precision) of a score of 0.5."""
    x_P, y_P = curve(predictions, k)
    if not len(x_P):
        return ""
    points = " ".join(f"{_across(x):.1f},{_down(y):.1f}" for x, y in zip((0.0, *x_P), (y_P[0], *y_P), strict=True))
    style = style_name(number)
    line = f'<polyline class="curve {style}"{dash(number)} points="{points}"/>'
    if at_half is not None:
        line += f'<circle class="marker {style}" cx="{_across(at_half[0]):.1f}" cy="{_down(at_half[1]):.1f}" r="2.5"/>'
    return line


def _across(recall: float) -> float:
    return LEFT + recall * (RIGHT - LEFT)


def _down(precision: float) -> float:
    return BOTTOM - precision * (BOTTOM - TOP)


def _axes() -> str:
    middle = _down(0.5)
    lines = f"M{LEFT} {TOP}H{RIGHT}M{LEFT} {middle}H{RIGHT}M{LEFT} {TOP}V{BOTTOM}M{_across(0.5)} {TOP}V{BOTTOM}"
    parts = [
        f'<path class="grid" d="{lines}M{RIGHT} {TOP}V{BOTTOM}"/><path class="axis" d="M{LEFT} {BOTTOM}H{RIGHT}"/>'
    ]
    for share in (0.0, 0.5, 1.0):
        text = f"{100 * share:.0f}"
        parts.append(f'<text x="{LEFT - 4}" y="{_down(share) + 3:.0f}" text-anchor="end">{text}</text>')
        parts.append(f'<text x="{_across(share):.0f}" y="{BOTTOM + 12}" text-anchor="middle">{text}</text>')
    return "".join(parts)


_AXES = _axes()
