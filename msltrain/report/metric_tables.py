"""The report's tables as HTML: published measures, strata, AP by class, settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from typing import Any

from msltrain.measures.metrics import SUMMARY
from msltrain.pages.svg import style_name
from msltrain.report.finding import percent, points
from msltrain.report.numbers import Numbers
from msltrain.report.open_runs import WHOLE, RunReport, describe_condition


def legend(names: Sequence[str], styles: Sequence[int] | None = None) -> str:
    """Which line or bar belongs to which model; nothing where there is only one.

    Args:
        names: of the models.
        styles: their style numbers; default: in order.
    """
    if len(names) == 1:
        return ""
    items = "".join(
        f'<li><span class="key {style_name(style)}"></span>{escape(name)}</li>'
        for name, style in zip(names, styles or range(len(names)), strict=True)
    )
    return f'<ul class="legend">{items}</ul>'


def switch(name: str, numbers: Numbers, content: str) -> str:
    """Buttons that show the parts of ``content`` with class ``in0`` (whole images) or ``in1`` (the hardest condition).

    They are radio buttons and a rule of the style sheet, so they work without a script and from the keyboard.
    """
    if len(numbers.ends) == 1:
        return content
    buttons = []
    for number, condition in enumerate(numbers.ends):
        checked = "" if number else " checked"
        label = capital(describe_condition(condition, numbers.runs[0].conditions[condition]))
        buttons.append(f'<input type="radio" name="{name}" id="{name}-{number}"{checked}>')
        buttons.append(f'<label for="{name}-{number}">{label}</label>')
    return f'<fieldset class="switch"><legend>Show</legend>{"".join(buttons)}{content}</fieldset>'


def measures_table(numbers: Numbers) -> str:
    """mAP, CP, CR, CF1, OP, OR, OF1 in percent, by condition and run, with the differences to the first run."""
    runs, groups = numbers.runs, []
    for condition in numbers.conditions:
        values = [list(entry[condition].metrics.summary().values()) for entry in numbers.measured]
        columns = [_numbers(column) for column in zip(*values)]
        rows = [row(run.name, "".join(cells)) for run, cells in zip(runs, zip(*columns))]
        for run, mine in zip(runs[1:], values[1:]):
            label = "difference" if len(runs) == 2 else f"{run.name} − {runs[0].name}"
            cells = "".join(f"<td>{points(value - first)}</td>" for value, first in zip(mine, values[0], strict=True))
            rows.append(row(label, cells, "difference"))
        groups.append(_group(runs, condition, rows, 1 + len(SUMMARY)))
    return f'<thead><tr><th scope="col">Model</th>{heads(SUMMARY)}</tr></thead>{"".join(groups)}'


def strata_table(numbers: Numbers) -> str:
    """mAP and CR by size and occlusion of the largest object, or nothing without object annotations."""
    runs, groups = numbers.runs, []
    for condition in numbers.conditions:
        rows = []
        for same in zip(*(entry[condition].strata for entry in numbers.measured), strict=True):
            cells = (*_numbers([one.mAP for one in same]), *_numbers([one.CR for one in same]))
            rows.append(row(same[0].name, f"<td>{same[0].num_positive:,}</td>{''.join(cells)}"))
        if not rows:
            return ""
        groups.append(_group(runs, condition, rows, 2 + 2 * len(runs)))
    if len(runs) == 1:
        head = f'<tr><th scope="col">Largest object</th>{heads(["Pairs", "mAP", "CR"])}</tr>'
        return f"<thead>{head}</thead>{''.join(groups)}"
    over = "".join(
        f'<th class="over" colspan="{len(runs)}" scope="colgroup">{measure}</th>' for measure in ("mAP", "CR")
    )
    names = heads([run.name for run in runs])
    head = (
        '<tr><th rowspan="2" scope="col">Largest object</th><th rowspan="2" scope="col">Pairs</th>'
        f"{over}</tr><tr>{names}{names}</tr>"
    )
    return f"<thead>{head}</thead>{''.join(groups)}"


def class_table(numbers: Numbers) -> str:
    """A bar of AP per run, by class, on whole images and in the hardest condition; see ``Numbers.class_order``."""
    rows = []
    for k in numbers.class_order():
        cells = []
        for condition in numbers.ends:
            bars = [
                _bar(number, run.name, measured[condition].metrics.classes[k].average_precision)
                for number, (run, measured) in enumerate(zip(numbers.runs, numbers.measured, strict=True))
            ]
            cells.append(f'<td class="wide">{"".join(bars)}</td>')
        one = numbers.measured[0][WHOLE].metrics.classes[k]
        label = f'<a href="#curve-{k}">{escape(one.name)}</a>' if one.num_positive else escape(one.name)
        label += f" <small>{one.num_positive:,}</small>"
        rows.append(f'<tr><th scope="row">{label}</th>{"".join(cells)}</tr>')
    titles = "".join(
        f'<th scope="col" class="wide">{capital(describe_condition(name, numbers.runs[0].conditions[name]))}</th>'
        for name in numbers.ends
    )
    head = f'<thead><tr><th scope="col">Class <small>images</small></th>{titles}</tr></thead>'
    return f"{head}<tbody>{''.join(rows)}</tbody>"


def settings_table(runs: Sequence[RunReport]) -> str:
    """The settings in which the runs differ, or nothing where they do not."""
    settings = [_flatten(asdict(run.config)) for run in runs]
    rows = [
        row(name, "".join(f"<td>{escape(_plain(entry[name]))}</td>" for entry in settings))
        for name in settings[0]
        if any(entry[name] != settings[0][name] for entry in settings)
    ]
    if not rows:
        return ""
    head = f'<thead><tr><th scope="col">Setting</th>{heads([run.name for run in runs])}</tr></thead>'
    return f"{head}<tbody>{''.join(rows)}</tbody>"


def _numbers(values: Sequence[float | None]) -> list[str]:
    """Cells in percent, of the runs in order; the best one is marked when there are several."""
    known = [percent(value) for value in values if value is not None]
    best = max(known, key=float) if len(values) > 1 and known else None
    return [f"<td{' class=best' if percent(value) == best else ''}>{percent(value)}</td>" for value in values]


def row(label: str, cells: str, style: str = "") -> str:
    """A row under its name; ``cells`` is HTML."""
    return f'<tr{style and f" class={style}"}><th scope="row">{escape(label)}</th>{cells}</tr>'


def _group(runs: Sequence[RunReport], condition: str, rows: Sequence[str], width: int) -> str:
    """Rows under the name of their condition."""
    title = capital(describe_condition(condition, runs[0].conditions[condition]))
    return f'<tbody><tr class="group"><th colspan="{width}" scope="rowgroup">{title}</th></tr>{"".join(rows)}</tbody>'


def heads(names: Sequence[str]) -> str:
    """Column heads."""
    return "".join(f'<th scope="col">{escape(name)}</th>' for name in names)


def _bar(number: int, name: str, value: float | None) -> str:
    share = 0 if value is None else 100 * value
    bar = f'<i style="--share:{share:.1f}%"></i>'
    return f'<span class="bar {style_name(number)}" title="{escape(name)}">{bar}{percent(value)}</span>'


def _flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{section}.{name}": value for section, fields in config.items() for name, value in fields.items()}


def _plain(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(str(part) for part in value) or "none"
    return "none" if value is None or value == "" else str(value)


def capital(text: str) -> str:
    """Escaped, with a capital first letter."""
    return escape(text[0].upper() + text[1:])
