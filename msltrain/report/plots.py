"""The report's line plots: mAP over what is hidden, and training curves from the runs' ``metrics.jsonl``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from msltrain.pages.svg import Line, Plot, line_plot
from msltrain.report.numbers import Numbers
from msltrain.report.open_runs import RunReport
from msltrain.robustness.figure import holes_plot

PANELS = (
    ("clean", "Loss on whole images", "binary cross-entropy"),
    ("masked", "Loss on masked images", "binary cross-entropy"),
    ("consistency", "Consistency of the two", "mean squared difference"),
)
"""Key in a training row, title, y axis. A loss that a run does not compute is absent from its rows."""


def hiding_plot(numbers: Numbers) -> Plot | None:
    """mAP over the hidden share, with bootstrap whiskers; None if nothing was hidden."""
    if len(numbers.conditions) == 1:
        return None
    lines = []
    for number, (run, measured) in enumerate(zip(numbers.runs, numbers.measured, strict=True)):
        intervals = [one.intervals["mAP"] for one in measured.values()]
        lines.append(
            Line(
                name=run.name,
                x=[100 * one.origin.hole_fraction for one in measured.values()],
                y=[100 * interval.value for interval in intervals],
                style=number,
                whisker=[(100 * interval.low, 100 * interval.high) for interval in intervals],
                marker=True,
            )
        )
    return holes_plot("mAP by hidden share", "mAP", lines)


def training_plots(runs: Sequence[RunReport]) -> list[Plot]:
    """One small plot per loss and one for the validation mAP, by epoch; none without a history."""
    plots = [_panel(runs, key, title, label, from_zero=True) for key, title, label in PANELS]
    plots.append(_panel(runs, "validation_mAP", "Validation mAP", "mAP, %", factor=100))
    return [plot for plot in plots if plot is not None]


def _panel(
    runs: Sequence[RunReport], key: str, title: str, label: str, *, factor: float = 1, from_zero: bool = False
) -> Plot | None:
    lines = []
    for number, run in enumerate(runs):
        epochs, values = by_epoch(run.history, key)
        if epochs:
            lines.append(Line(name=run.name, x=epochs, y=[factor * value for value in values], style=number))
    return line_plot(lines, title=title, x_label="epoch", y_label=label, from_zero=from_zero) if lines else None


def by_epoch(history: Sequence[Mapping[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Mean of ``key`` over the rows of each epoch that have a finite one: (epochs counted from 1, means)."""
    found: dict[int, list[float]] = {}
    for row in history:
        if row.get(key) is not None and math.isfinite(row[key]):
            found.setdefault(int(row["epoch"]) + 1, []).append(float(row[key]))
    return list(found), [sum(values) / len(values) for values in found.values()]
