"""Training curves from the runs' ``metrics.jsonl``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from msltrain.pages.svg import Line, line_plot
from msltrain.report.open_runs import RunReport

PANELS = (
    ("clean", "Loss on whole images", "binary cross-entropy"),
    ("masked", "Loss on masked images", "binary cross-entropy"),
    ("consistency", "Consistency of the two", "mean squared difference"),
)
"""Key of a training row, title, y axis. A loss that a run does not compute is absent from its rows."""


def training_plots(runs: Sequence[RunReport]) -> str:
    """One small plot per loss and one of the validation mAP, by epoch; nothing without history."""
    plots = [_panel(runs, key, title, label, from_zero=True) for key, title, label in PANELS]
    plots.append(_panel(runs, "validation_mAP", "Validation mAP", "mAP, %", factor=100))
    return "".join(plots)


def _panel(
    runs: Sequence[RunReport], key: str, title: str, label: str, *, factor: float = 1, from_zero: bool = False
) -> str:
    lines, words = [], []
    for number, run in enumerate(runs):
        epochs, values = by_epoch(run.history, key)
        if epochs:
            lines.append(Line(name=run.name, x=epochs, y=[factor * value for value in values], style=number))
            words.append(f"{run.name} from {factor * values[0]:.3g} to {factor * values[-1]:.3g}")
    if not lines:
        return ""
    alt = f"{title} by epoch. {'; '.join(words)}."
    svg = line_plot(lines, x_label="epoch", y_label=label, alt=alt, from_zero=from_zero)
    return f"<div><h3>{title}</h3>{svg}</div>"


def by_epoch(history: Sequence[Mapping[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Mean of ``key`` over the rows of each epoch that have a finite one: (epochs counted from 1, means)."""
    found: dict[int, list[float]] = {}
    for row in history:
        if row.get(key) is not None and math.isfinite(row[key]):
            found.setdefault(int(row["epoch"]) + 1, []).append(float(row[key]))
    return list(found), [sum(values) / len(values) for values in found.values()]
