"""A robustness study as a page, tables and data: ``robustness.html``, ``robustness.md``, ``robustness.json``.

The report uses the same curves and tables, and the plots of reproduced grids are drawn in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from msldata.errors import counted
from msldata.pages.html import render
from msldata.storage import LocalStorage
from msltrain.measures.metrics import EXPLAINED
from msltrain.pages.svg import Line, Plot, line_plot, model_styles, style_name
from msltrain.pages.tables import Cell as TableCell
from msltrain.pages.tables import Group, Row, Table, as_markdown
from msltrain.pages.text import DASH, capital, markdown, markdown_list, percent, points
from msltrain.robustness.curves import (
    MEASURES,
    VISIBLE_BINS,
    Cell,
    Curves,
    is_bin,
    pooled_false_rate,
    pooled_visibility,
)
from msltrain.robustness.study import RECALIBRATED

PAGE_NAME, TABLE_NAME, DATA_NAME = "robustness.html", "robustness.md", "robustness.json"
FEW = 20
"""A share over fewer pairs than this is in the table but not drawn."""
_SHOWS = (
    "How well objects are still recognised while more and more of each photograph is hidden: the further a curve falls "
    "to the right, the more the holes cost."
)
_AREA = "In brackets: mean hole fraction. Area: mean height of the curve between no hole and the last ten-percent bin."
_DIFFERENCES = (
    "Differences are in points, with 95 % bootstrap intervals over the test images: every resample takes the same "
    "images for all models and conditions. Another training seed is not covered."
)
_PREDICTED = (
    "Predicted: share of (image, class) pairs with a score ≥ 0.5, by how much is left of the box of the least hidden "
    "object of the class (in brackets: pairs), over all ten-percent bins. Where an object is wholly hidden, a "
    "prediction relies on the rest of the picture. Absent classes: the rate of plain false alarms."
)


def write_robustness(curves: Curves, out: str | Path) -> list[Path]:
    """Write the three files into ``out``, each replaced as a whole; return their paths."""
    folder = LocalStorage(out)
    folder.put(DATA_NAME, curves.to_json().encode())
    folder.put(TABLE_NAME, robustness_markdown(curves).encode())
    folder.put(PAGE_NAME, robustness_page(curves).encode())
    return [Path(out, name) for name in (PAGE_NAME, TABLE_NAME, DATA_NAME)]


def robustness_page(curves: Curves) -> str:
    """One HTML document: the curves, and the numbers behind them."""
    # A control comes last, so that the models have the same colours as on pages without it.
    styles = model_styles(curves.models, known=[name for name in curves.models if not name.endswith(RECALIBRATED)])
    return render(
        "msltrain.robustness/robustness.html",
        title="Robustness to holes",
        subject=_subject(curves),
        shows=_SHOWS,
        warnings=[f"{capital(text)}." for text in curves.notes],
        explained=EXPLAINED,
        curves=curves,
        styles=[style_name(styles[model]) for model in curves.models],
        plots=study_plots(curves, styles),
        areas=areas_table(curves),
        few=FEW,
        tables=_tables(curves),
        notes=_notes(curves),
    )


def robustness_markdown(curves: Curves, *, alone: bool = True) -> str:
    """The three measures by hole fraction, the area under each curve, recall by visible share.

    Args:
        alone: False: as a part of a report, which has said what the measures are, and what to know first.
    """
    blocks = [
        "# Robustness to holes",
        markdown(f"{_subject(curves)}. All numbers in percent."),
        _SHOWS,
        *([*(f"**{markdown(capital(text))}.**" for text in curves.notes), EXPLAINED] if alone else []),
    ]
    if curves.skipped:
        blocks.append(f"Besides these, {len(curves.skipped)} damaged samples were left out, for every model:")
        blocks.append(markdown_list(curves.skipped))
    for table in _tables(curves):
        blocks += [f"## {markdown(table.title)}", as_markdown(table)]
    blocks += _notes(curves)
    return "\n\n".join(blocks) + "\n"


def _subject(curves: Curves) -> str:
    """What was measured, in one line."""
    dataset = f"{curves.dataset}, {curves.split} split: " if curves.dataset else ""
    return (
        f"{dataset}{counted(curves.num_samples, 'image')}, {counted(len(curves.models), 'model')}, holes: "
        f"{', '.join(curves.kinds)}"
    )


def _tables(curves: Curves) -> list[Table]:
    """Per kind of holes: a table per measure, and one of how many hidden objects are predicted."""
    tables = []
    for kind in curves.kinds:
        rows = {model: curves.of(model, kind) for model in curves.models}
        # Models of other image sizes may have other ranges, or the same ones in another order of what they hide.
        first = list({cell.condition: cell for cells in reversed(rows.values()) for cell in cells}.values())
        first.sort(key=lambda cell: cell.hole_fraction)
        conditions = [cell.condition for cell in first]
        for measure in MEASURES:
            found = [
                Row(name=model, cells=[percent(value) for value in _values(curves, model, kind, measure, conditions)])
                for model in rows
            ]
            found += _gains(rows, measure, conditions)
            columns = [f"{_condition(cell)} ({percent(cell.hole_fraction)})" for cell in first]
            title = f"{measure}, {kind} holes"
            tables.append(Table(title=title, name="Model", columns=[*columns, "area"], groups=[Group(rows=found)]))
        if any(cell.visible_share for cell in next(iter(rows.values()))):
            tables.append(_visibility_table(kind, rows))
    return tables


def _values(curves: Curves, model: str, kind: str, measure: str, conditions: Sequence[str]) -> list[float | None]:
    """A measure under each of the conditions, None where the model was not measured, and the area."""
    area = next(area for area in curves.areas if (area.model, area.kind) == (model, kind))
    known = {cell.condition: getattr(cell, measure) for cell in curves.of(model, kind)}
    return [*map(known.get, conditions), getattr(area, measure)]


def _gains(rows: Mapping[str, Sequence[Cell]], measure: str, conditions: Sequence[str]) -> list[Row]:
    """What every other model is ahead of the first, in points with the interval, where the images were resampled."""
    first, place, found = next(iter(rows)), MEASURES.index(measure), []
    before = {cell.condition: getattr(cell, measure) for cell in rows[first]}
    for model, cells in list(rows.items())[1:]:
        ahead = {
            cell.condition: TableCell(
                text=points(getattr(cell, measure) - before[cell.condition]),
                note=f"({points(cell.gains[place][0])} to {points(cell.gains[place][1])})",
            )
            for cell in cells
            if cell.gains and not math.isnan(getattr(cell, measure) - before.get(cell.condition, math.nan))
        }
        if ahead:
            shown = [ahead.get(condition, TableCell(text=DASH)) for condition in conditions]
            found.append(Row(name=f"{model} − {first}", cells=[*shown, ""], style="difference"))
    return found


def _visibility_table(kind: str, rows: Mapping[str, Sequence[Cell]]) -> Table:
    pairs = [num_pairs for _, num_pairs in pooled_visibility(next(iter(rows.values())))]
    names = [f"{_visible(low, high)} ({count:,})" for (low, high), count in zip(VISIBLE_BINS, pairs, strict=True)]
    found = []
    for model, cells in rows.items():
        shares = [done / count if count else None for done, count in pooled_visibility(cells)]
        found.append(Row(name=model, cells=[percent(share) for share in (*shares, pooled_false_rate(cells))]))
    columns = [*names, "absent classes"]
    return Table(title=f"Predicted, {kind} holes", name="Model", columns=columns, groups=[Group(rows=found)])


def _notes(curves: Curves) -> list[str]:
    notes = [_AREA]
    if curves.has_intervals and len(curves.models) > 1:
        notes.append(_DIFFERENCES)
    return [*notes, _PREDICTED] if any(cell.visible_share for cell in curves.cells) else notes


def areas_table(curves: Curves) -> Table:
    """Mean height of each curve, and how often a class is predicted that cannot be seen, or that is absent."""
    several = len(curves.kinds) > 1
    rows = []
    for area in curves.areas:
        cells = curves.of(area.model, area.kind)
        pooled = pooled_visibility(cells)
        hidden = pooled[0][0] / pooled[0][1] if pooled and pooled[0][1] >= FEW else None
        values = [percent(value) for value in (area.mAP, area.CR, area.CF1, hidden, pooled_false_rate(cells))]
        kind = [TableCell(text=area.kind, style="kind")] if several else []
        rows.append(Row(name=area.model, cells=[*kind, *values]))
    columns = [*(["Holes"] if several else []), *MEASURES, "Hidden", "Absent"]
    return Table(name="Model", columns=columns, groups=[Group(rows=rows)], style="areas sortable")


def study_plots(curves: Curves, styles: Mapping[str, int]) -> list[Plot]:
    """mAP, CR and CF1 over the hidden share, predictions over the visible share of the object, a row per kind.

    Args:
        curves: of the study.
        styles: each model's style number.
    """
    plots = []
    for kind in curves.kinds:
        rows = {model: curves.of(model, kind) for model in curves.models}
        for measure in MEASURES:
            lines = []
            for model, cells in rows.items():
                on_curve = [cell for cell in cells if is_bin(cell)]
                lines.append(_line(model, on_curve, measure, styles[model]))
                lines += [_line(model, [cell], measure, styles[model]) for cell in cells if not is_bin(cell)]
            plots.append(holes_plot(f"{measure}, {kind} holes", measure, lines))
        plots += _visibility_plot(kind, rows, styles)
    return plots


def holes_plot(title: str, measure: str, lines: Sequence[Line]) -> Plot:
    """One measure over the hidden share of the images, both in percent: what every page on robustness draws."""
    return line_plot(lines, title=title, x_label="hidden share of the image, %", y_label=f"{measure}, %")


def _line(model: str, cells: Sequence[Cell], measure: str, style: int) -> Line:
    place = MEASURES.index(measure)
    return Line(
        name=model,
        x=[100 * cell.hole_fraction for cell in cells],
        y=[100 * getattr(cell, measure) for cell in cells],
        style=style,
        marker=True,
        whisker=[(100 * low, 100 * high) for low, high in (cell.intervals[place] for cell in cells if cell.intervals)]
        if all(cell.intervals for cell in cells)
        else (),
    )


def _visibility_plot(kind: str, rows: Mapping[str, Sequence[Cell]], styles: Mapping[str, int]) -> list[Plot]:
    """Recall over the visible share of the object; nothing if the objects are unknown or few."""
    lines = []
    for model, cells in rows.items():
        pooled = zip(VISIBLE_BINS, pooled_visibility(cells))
        known = [
            (50 * (max(low, 0) + high), 100 * done / count) for (low, high), (done, count) in pooled if count >= FEW
        ]
        if known:
            x, y = zip(*known)
            lines.append(Line(name=model, x=x, y=y, style=styles[model], marker=True))
    if not lines:
        return []
    x_label, y_label = "visible share of the object, %", "positives predicted, %"
    return [line_plot(lines, title=f"Recall, {kind} holes", x_label=x_label, y_label=y_label)]


def _condition(cell: Cell) -> str:
    return cell.condition.removeprefix(f"{cell.kind}-")


def _visible(low: float, high: float) -> str:
    return "wholly hidden" if high == 0 else f"{100 * low:.0f}–{100 * high:.0f} % visible"
