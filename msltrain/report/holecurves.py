"""A robustness study on the page: its curves and what lies under them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from msldata.errors import UserError
from msldata.storage import LocalStorage
from msltrain.measures.metrics import compute_metrics
from msltrain.measures.predictions import read_predictions
from msltrain.pages.svg import Line, line_plot
from msltrain.report.finding import percent
from msltrain.report.metric_tables import heads, legend, row
from msltrain.report.numbers import Numbers
from msltrain.report.open_runs import RunReport
from msltrain.robustness.curves import (
    MEASURES,
    VISIBLE_BINS,
    Area,
    Cell,
    Curves,
    is_bin,
    pooled_false_rate,
    pooled_visibility,
)
from msltrain.robustness.figure import DATA_NAME, FEW
from msltrain.robustness.hole_kinds import WHOLE

PREDICTIONS = "predictions"
"""Folder of a study, with one of each model in it."""


def read_study(folder: str | Path, runs: Sequence[RunReport]) -> Curves:
    """The curves of a study that `msl robustness` wrote.

    Args:
        folder: its ``--out``.
        runs: what it is to be shown beside: measured on the same shards, and where names are equal, the same weights.

    Raises:
        FileNotFoundError: no finished study there.
        UserError: it is of other data or other weights, or its numbers are not those of its predictions.
    """
    files = LocalStorage(Path(folder))
    try:
        content = json.loads(files.read(DATA_NAME))
        curves = Curves(
            cells=tuple(Cell(**_tuples(cell)) for cell in content["cells"]),
            areas=tuple(Area(**area) for area in content["areas"]),
            num_samples=content["num_samples"],
            skipped=tuple(content["skipped"]),
        )
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(
            f"{files.where(DATA_NAME)}: not a robustness study ({error!r}); run `msl robustness` again"
        ) from None
    by_name = {run.name: run for run in runs}
    for model in curves.models:
        file = Path(folder) / PREDICTIONS / model / f"{WHOLE}.parquet"
        predictions = read_predictions(file)
        if predictions.origin.dataset_fingerprint != runs[0].clean.origin.dataset_fingerprint:
            raise UserError(
                f"{folder}: a study on other shards than {runs[0].name} was evaluated on; run one on the same"
            )
        if model in by_name and predictions.origin.checkpoint_sha256 != by_name[model].clean.origin.checkpoint_sha256:
            raise UserError(f"{folder}: its model '{model}' has other weights than the run of that name; run it again")
        cell = next(cell for cell in curves.cells if (cell.model, cell.condition) == (model, WHOLE))
        if abs(compute_metrics(predictions).mAP - cell.mAP) > 1e-9:
            raise UserError(
                f"{files.where(DATA_NAME)}: older than the predictions beside it; run `msl robustness` again"
            )
    return curves


def study_figure(numbers: Numbers) -> str:
    """mAP, CR and CF1 over the hidden share, predictions over the visible share of the object, a row per kind."""
    curves = numbers.curves
    assert curves is not None
    styles = _styles(numbers)
    plots = []
    for kind in curves.kinds:
        rows = {model: curves.of(model, kind) for model in curves.models}
        for measure in MEASURES:
            plots.append(_panel(f"{measure}, {kind} holes", "hidden share of the image, %", rows, measure, styles))
        plots.append(_visibility(kind, rows, styles))
    key = legend(curves.models, [styles[model] for model in curves.models])
    return f'{key}<div class="plots">{"".join(plots)}</div>'


def areas_table(curves: Curves) -> str:
    """Mean height of each curve; what is predicted of a class that cannot be seen, and of one that is not there."""
    several = len(curves.kinds) > 1
    kind = '<th scope="col" class="kind">Holes</th>' if several else ""
    rows = []
    for area in curves.areas:
        cells = curves.of(area.model, area.kind)
        pooled = pooled_visibility(cells)
        hidden = pooled[0][0] / pooled[0][1] if pooled and pooled[0][1] >= FEW else None
        values = [area.mAP, area.CR, area.CF1, hidden, pooled_false_rate(cells)]
        text = "".join(f"<td>{percent(value)}</td>" for value in values)
        rows.append(row(area.model, (f'<td class="kind">{escape(area.kind)}</td>' if several else "") + text))
    head = f"{heads(['Model'])}{kind}{heads([*MEASURES, 'Hidden', 'Absent'])}"
    return f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"


def _styles(numbers: Numbers) -> dict[str, int]:
    """A model of the study that is a run of the page keeps its colour; the others get the next ones."""
    assert numbers.curves is not None
    styles = {run.name: number for number, run in enumerate(numbers.runs)}
    for model in numbers.curves.models:
        styles.setdefault(model, len(styles))
    return styles


def _panel(
    title: str, x_label: str, rows: Mapping[str, Sequence[Cell]], measure: str, styles: Mapping[str, int]
) -> str:
    lines, words = [], []
    for model, cells in rows.items():
        bins = [cell for cell in cells if is_bin(cell)]
        for group in (bins, *([cell] for cell in cells if not is_bin(cell))):
            x = [100 * cell.hole_fraction for cell in group]
            y = [100 * getattr(cell, measure) for cell in group]
            lines.append(Line(name=model, x=x, y=y, style=styles[model], marker=True))
        said = (f"{percent(getattr(cell, measure))} at {100 * cell.hole_fraction:.0f} %" for cell in bins)
        words.append(f"{model} {', '.join(said)}")
    svg = line_plot(lines, x_label=x_label, y_label=f"{measure}, %", alt=f"{title}. {'; '.join(words)}.")
    return f"<div><h3>{escape(title)}</h3>{svg}</div>"


def _visibility(kind: str, rows: Mapping[str, Sequence[Cell]], styles: Mapping[str, int]) -> str:
    lines, words = [], []
    for model, cells in rows.items():
        pooled = zip(VISIBLE_BINS, pooled_visibility(cells))
        known = [
            (50 * (max(low, 0) + high), 100 * done / count) for (low, high), (done, count) in pooled if count >= FEW
        ]
        if known:
            x, y = zip(*known)
            lines.append(Line(name=model, x=x, y=y, style=styles[model], marker=True))
            words.append(f"{model} {', '.join(f'{share:.1f} at {middle:.0f} % visible' for middle, share in known)}")
    if not lines:
        return ""
    title = f"Recall, {kind} holes"
    alt = f"Positives that are predicted, by visible share of the object, {kind} holes. {'; '.join(words)}."
    svg = line_plot(lines, x_label="visible share of the object, %", y_label="positives predicted, %", alt=alt)
    return f"<div><h3>{escape(title)}</h3>{svg}</div>"


def _tuples(content: Mapping[str, Any]) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        return tuple(plain(part) for part in value) if isinstance(value, list) else value

    return {name: plain(value) for name, value in content.items()}
