"""The report's tables as HTML: published measures, strata, AP by class, settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from typing import Any

import numpy as np

from msltrain.metrics import SUMMARY, Metrics
from msltrain.report.finding import percent, points
from msltrain.report.runs import RunReport, describe_condition
from msltrain.strata import compute_strata


def legend(runs: Sequence[RunReport]) -> str:
    """Which line or bar belongs to which run."""
    items = "".join(
        f'<li><span class="key run{number}"></span>{escape(run.name)}</li>' for number, run in enumerate(runs)
    )
    return f'<ul class="legend">{items}</ul>'


def measures_table(runs: Sequence[RunReport], metrics: Sequence[Mapping[str, Metrics]]) -> str:
    """mAP, CP, CR, CF1, OP, OR, OF1 in percent, by condition and run, with the differences to the first run.

    Args:
        runs: as in ``write_report``.
        metrics: for each run, its measures by condition.
    """
    groups = []
    for condition in runs[0].conditions:
        values = [list(entry[condition].summary().values()) for entry in metrics]
        columns = [_numbers(column) for column in zip(*values)]
        rows = [_row(run.name, "".join(cells)) for run, cells in zip(runs, zip(*columns))]
        for run, row in zip(runs[1:], values[1:]):
            label = "difference" if len(runs) == 2 else f"{run.name} − {runs[0].name}"
            cells = "".join(f"<td>{points(value - first)}</td>" for value, first in zip(row, values[0], strict=True))
            rows.append(_row(label, cells, "difference"))
        groups.append(_group(runs, condition, rows, 1 + len(SUMMARY)))
    return f"<thead><tr><th></th>{_heads(SUMMARY)}</tr></thead>{''.join(groups)}"


def strata_table(runs: Sequence[RunReport]) -> str:
    """mAP and CR by size and occlusion of the largest object, or nothing without object annotations."""
    if not compute_strata(runs[0].clean):
        return ""
    groups = []
    for condition in runs[0].conditions:
        by_run = [compute_strata(run.conditions[condition]) for run in runs]
        rows = []
        for same in zip(*by_run, strict=True):
            cells = (*_numbers([row.mAP for row in same]), *_numbers([row.CR for row in same]))
            rows.append(_row(same[0].name, f"<td>{same[0].num_positive:,}</td>{''.join(cells)}"))
        groups.append(_group(runs, condition, rows, 2 + 2 * len(runs)))
    over = "".join(
        f'<th class="over" colspan="{len(runs)}" scope="colgroup">{measure}</th>' for measure in ("mAP", "CR")
    )
    names = _heads([run.name for run in runs])
    head = (
        '<tr><th rowspan="2" scope="col">Largest object</th><th rowspan="2" scope="col">Pairs</th>'
        f"{over}</tr><tr>{names}{names}</tr>"
    )
    return f"<thead>{head}</thead>{''.join(groups)}"


def class_table(runs: Sequence[RunReport], metrics: Sequence[Mapping[str, Metrics]], conditions: Sequence[str]) -> str:
    """A bar of AP per run, by class and condition; sorted by what the last run gains under the last condition."""
    first, last = metrics[0][conditions[-1]].classes, metrics[-1][conditions[-1]].classes

    def gain(k: int) -> float:
        before, after = first[k].average_precision, last[k].average_precision
        if before is None or after is None:
            return -np.inf
        return after - before if len(runs) > 1 else after

    rows = []
    for k in sorted(range(len(first)), key=gain, reverse=True):
        cells = []
        for condition in conditions:
            bars = [
                _bar(number, run.name, entry[condition].classes[k].average_precision)
                for number, (run, entry) in enumerate(zip(runs, metrics, strict=True))
            ]
            cells.append(f'<td class="wide">{"".join(bars)}</td>')
        label = f"{escape(first[k].name)} <small>{first[k].num_positive:,}</small>"
        rows.append(f'<tr><th scope="row">{label}</th>{"".join(cells)}</tr>')
    titles = "".join(
        f'<th scope="col" class="wide">{_capital(describe_condition(name, runs[0].conditions[name]))}</th>'
        for name in conditions
    )
    head = f'<thead><tr><th scope="col">Class <small>images</small></th>{titles}</tr></thead>'
    return f"{head}<tbody>{''.join(rows)}</tbody>"


def settings_table(runs: Sequence[RunReport]) -> str:
    """The settings in which the runs differ, or nothing where they do not."""
    settings = [_flatten(asdict(run.config)) for run in runs]
    rows = [
        _row(name, "".join(f"<td>{escape(_plain(entry[name]))}</td>" for entry in settings))
        for name in settings[0]
        if any(entry[name] != settings[0][name] for entry in settings)
    ]
    if not rows:
        return ""
    head = f'<thead><tr><th scope="col">Setting</th>{_heads([run.name for run in runs])}</tr></thead>'
    return f"{head}<tbody>{''.join(rows)}</tbody>"


def _numbers(values: Sequence[float | None]) -> list[str]:
    """Cells in percent, of the runs in order; the best one is marked when there are several."""
    known = [percent(value) for value in values if value is not None]
    best = max(known, key=float) if len(values) > 1 and known else None
    return [f"<td{' class=best' if percent(value) == best else ''}>{percent(value)}</td>" for value in values]


def _row(label: str, cells: str, style: str = "") -> str:
    return f'<tr{style and f" class={style}"}><th scope="row">{escape(label)}</th>{cells}</tr>'


def _group(runs: Sequence[RunReport], condition: str, rows: Sequence[str], width: int) -> str:
    """Rows under the name of their condition."""
    title = _capital(describe_condition(condition, runs[0].conditions[condition]))
    return f'<tbody><tr class="group"><th colspan="{width}" scope="rowgroup">{title}</th></tr>{"".join(rows)}</tbody>'


def _heads(names: Sequence[str]) -> str:
    return "".join(f'<th scope="col">{escape(name)}</th>' for name in names)


def _bar(number: int, name: str, value: float | None) -> str:
    share = 0 if value is None else 100 * value
    bar = f'<i style="--share:{share:.1f}%"></i>'
    return f'<span class="bar run{number}" title="{escape(name)}">{bar}{percent(value)}</span>'


def _flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{section}.{name}": value for section, fields in config.items() for name, value in fields.items()}


def _plain(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(str(part) for part in value) or "none"
    return "none" if value is None or value == "" else str(value)


def _capital(text: str) -> str:
    return escape(text[0].upper() + text[1:])
