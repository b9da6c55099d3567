"""The report on a grid as one HTML page and as Markdown: the same tables in both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from msldata.pages.html import render
from msltrain.grids.plan import BEST
from msltrain.grids.results import CURVE_MEASURES, CurvePoint, OverSeeds
from msltrain.measures.metrics import SUMMARY
from msltrain.pages.svg import Line, Plot, model_styles, style_name
from msltrain.pages.tables import Cell, Group, Row, Table, as_markdown
from msltrain.pages.text import markdown, markdown_list, percent, points
from msltrain.recipes.ablations import what_it_varies
from msltrain.reproduce.content import Content, GridContent, RowContent, TableContent, beside_mean, hidden
from msltrain.reproduce.published_numbers import (
    AUTHORS,
    ERRATA,
    FIGURE3_HOLE_FRACTION,
    PAPER,
    SOURCES,
    Published,
)
from msltrain.robustness.figure import holes_plot
from msltrain.runs.run_places import WHOLE

_MODELS = ("Baseline", "MSL")
"""The models of every grid with curves: they keep the colours that they have on the other pages."""
_PICTURES = "Photographs with what both say to them, as in the paper's Figures 2, 4 and 5, are beside this page in"


@dataclass(frozen=True, kw_only=True)
class GridShown:
    """One grid, ready for the template and for Markdown."""

    title: str
    models: list[str]
    styles: list[str]
    plots: list[Plot]
    end_points: str
    """Published end points of the curves, in words."""
    mean_ap: Table
    rates: Table | None
    curves: list[Table]
    """The points of the plots."""
    settings: list[tuple[str, str]]
    """Row → what it changes against MSL."""
    pictures: str
    """Name of the page with pictures; empty where there is none."""


@dataclass(frozen=True, kw_only=True)
class TableShown:
    """One table or figure of the paper."""

    anchor: str
    label: str
    title: str
    reading: str
    marks: list[int]
    """Numbers of the remarks on all of it."""
    remarks: list[int]
    """Numbers of the remarks on any part of it."""
    grids: list[GridShown]


def to_html(content: Content) -> str:
    """The page as text."""
    return render(
        "msltrain.reproduce/comparison.html",
        title=content.title,
        content=content,
        tables=[_show(table, content.errata) for table in content.tables],
        remarks=[ERRATA[name] for name in content.errata],
        sources=_sources(": ", "; "),
        pictures=_PICTURES,
        figure3=f"{100 * FIGURE3_HOLE_FRACTION:.1f}",
        best=BEST,
    )


def to_markdown(content: Content) -> str:
    """The whole report as Markdown; numbers in percent."""
    blocks = [f"# {markdown(content.title)}", markdown(content.subject) + ".", f"**{markdown(content.headline)}**"]
    blocks.append(markdown_list(content.caveats))
    if content.unfinished:
        blocks.append(f"{len(content.unfinished)} of {len(content.states)} jobs are not finished. Go on with:")
        blocks.append(f"    {' '.join(content.command.split())}")
        blocks.append(
            markdown_list([f"{job.name}: {job.state}{job.log and f' (log: {job.log})'}" for job in content.failed])
        )
    for table in content.tables:
        shown = _show(table, content.errata)
        blocks += [f"## {markdown(shown.label)}: {markdown(shown.title)}", markdown(shown.reading)]
        blocks.append(f"See remarks {', '.join(map(str, shown.remarks))}." if shown.remarks else "")
        for grid in shown.grids:
            blocks += [f"### {markdown(grid.title)}", as_markdown(grid.mean_ap)]
            blocks.append(as_markdown(grid.rates, group="row") if grid.rates else "")
            blocks += [as_markdown(curve) for curve in grid.curves]
            blocks.append(f"Published end points: {grid.end_points}." if grid.end_points else "")
            blocks.append(f"{_PICTURES} {markdown(grid.pictures)}." if grid.pictures else "")
    if content.errata:
        remarks = [f"{number}. {markdown(ERRATA[name])}" for number, name in enumerate(content.errata, 1)]
        blocks += ["## Remarks", "\n".join(remarks)]
    blocks.append(f"Published numbers: {_sources(', ', '; ')}.")
    return "\n\n".join(filter(None, blocks)) + "\n"


def _sources(between: str, after: str) -> str:
    return after.join(f"{name}{between}{what}" for name, what in SOURCES.items())


def _show(content: TableContent, errata: Sequence[str]) -> TableShown:
    table = content.table
    return TableShown(
        anchor=table.name,
        label=table.label,
        title=table.title,
        reading=table.reading,
        marks=[number for number, name in enumerate(errata, 1) if name in table.errata],
        remarks=[number for number, name in enumerate(errata, 1) if name in content.errata],
        grids=[_show_grid(grid, errata) for grid in content.grids],
    )


def _show_grid(grid: GridContent, errata: Sequence[str]) -> GridShown:
    styles = model_styles(grid.curves, known=_MODELS)
    shared = [
        (row.name, f"the same run as {row.run}") for row in grid.rows if row.run not in ("", f"{grid.name}/{row.name}")
    ]
    ends = (f"{measure} {low} for the baseline, {high} for MSL" for measure, (low, high) in grid.end_points.items())
    return GridShown(
        title=what_it_varies(grid.name).partition(":")[0],
        models=list(grid.curves),
        styles=[style_name(styles[model]) for model in grid.curves],
        plots=[_plot(grid, measure) for measure in CURVE_MEASURES] if grid.curves else [],
        end_points="; ".join(ends),
        mean_ap=_mean_ap(grid, errata),
        rates=_rates(grid, errata) if grid.has_rates else None,
        curves=[_curve(grid, measure) for measure in CURVE_MEASURES] if grid.curves else [],
        settings=[(row.name, _changes(row)) for row in grid.rows if row.changes] + shared,
        pictures=grid.pictures,
    )


def _mean_ap(grid: GridContent, errata: Sequence[str]) -> Table:
    groups = []
    for condition, hole_fraction in grid.conditions.items():
        rows = []
        for row in grid.rows:
            if not row.run and condition != WHOLE:
                continue
            published = {one.source: one for one in row.published} if condition == WHOLE else {}
            cells: list[Cell] = [_ours(row, checkpoint, condition, grid.num_seeds) for checkpoint in grid.checkpoints]
            for source in grid.sources:
                cell = _published(published.get(source), "mAP", errata)
                difference = _difference(row, grid.checkpoints[0], published.get(source), "mAP")
                cells.append(replace(cell, note=difference) if source in (PAPER, AUTHORS) else cell)
            rows.append(Row(name=row.name, cells=cells))
        groups.append(Group(title=hidden(condition, hole_fraction), rows=rows))
    return Table(name="Row", columns=[*grid.checkpoints, *grid.sources], groups=groups, style="rows")


def _rates(grid: GridContent, errata: Sequence[str]) -> Table:
    """The seven measures on whole images, shown if a source has them."""
    groups, others = [], []
    for row in grid.rows:
        if not row.run:
            [one] = row.published
            if len(one.values) > 1:
                others.append(Row(name=row.name, cells=[_published(one, measure, errata) for measure in SUMMARY]))
            continue
        rows = []
        for checkpoint in grid.checkpoints:
            means = [percent(row.spread(checkpoint, WHOLE, measure).mean) for measure in SUMMARY]
            rows.append(Row(name=checkpoint, cells=means))
        for one in row.published:
            rows.append(Row(name=one.source, cells=[_published(one, measure, errata) for measure in SUMMARY]))
            if one.source == PAPER:
                cells = [_difference(row, grid.checkpoints[0], one, measure) for measure in SUMMARY]
                rows.append(Row(name=_minus_paper(grid), cells=cells))
        groups.append(Group(title=row.name, rows=rows))
    if others:
        groups.append(Group(title="Other methods, as the paper prints them", rows=others))
    return Table(name="Of", columns=SUMMARY, groups=groups, style="rows measures")


def _curve(grid: GridContent, measure: str) -> Table:
    first = next(iter(grid.curves.values()))
    names = [f"{point.condition.removeprefix('irregular-')} ({percent(point.hole_fraction)})" for point in first]
    rows = [
        Row(name=model, cells=[_spread(point.spreads[measure], grid.num_seeds) for point in curve])
        for model, curve in grid.curves.items()
    ]
    return Table(name=f"{measure} by holes (mean % hidden)", columns=names, groups=[Group(rows=rows)])


def _changes(row: RowContent) -> str:
    return "; ".join(f"{field} {change}" for field, change in row.changes.items())


def _plot(grid: GridContent, measure: str) -> Plot:
    styles = model_styles(grid.curves, known=_MODELS)
    lines = []
    for model, curve in grid.curves.items():
        shown = [point for point in curve if point.on_curve]
        means = [100 * (point.spreads[measure].mean or 0.0) for point in shown]
        lines.append(
            Line(
                name=model,
                x=[100 * point.hole_fraction for point in shown],
                y=means,
                style=styles[model],
                whisker=_whiskers(shown, means, measure),
            )
        )
    for model, value in zip(_MODELS, grid.end_points.get(measure, ())):
        x = [100 * FIGURE3_HOLE_FRACTION]
        lines.append(Line(name=f"{model}, published", x=x, y=[value], style=styles[model], marker=True))
    return holes_plot(measure, measure, lines)


def _whiskers(points: Sequence[CurvePoint], means: Sequence[float], measure: str) -> list[tuple[float, float]]:
    deviations = [point.spreads[measure].std for point in points]
    if any(deviation is None for deviation in deviations):
        return []
    return [
        (max(0.0, mean - 100 * deviation), min(100.0, mean + 100 * deviation))
        for mean, deviation in zip(means, deviations)
        if deviation is not None
    ]


def _minus_paper(grid: GridContent) -> str:
    return f"{grid.checkpoints[0]} − {PAPER}"


def _difference(row: RowContent, checkpoint: str, paper: Published | None, measure: str) -> str:
    """Ours minus the published one, in points; empty without one of them."""
    mean = row.spread(checkpoint, WHOLE, measure).mean
    if mean is None or paper is None or measure not in paper.values:
        return ""
    return points(mean - paper.values[measure] / 100)


def _ours(row: RowContent, checkpoint: str, condition: str, num_seeds: int) -> Cell:
    return _spread(row.spread(checkpoint, condition), num_seeds) if row.run else Cell(text="")


def _spread(spread: OverSeeds, num_seeds: int) -> Cell:
    return Cell(text=percent(spread.mean), note=beside_mean(spread, num_seeds))


def _published(one: Published | None, measure: str, errata: Sequence[str]) -> Cell:
    if one is None or measure not in one.values:
        return Cell(text="", style="published")
    mark = errata.index(one.errata[measure]) + 1 if measure in one.errata else 0
    return Cell(text=str(one.values[measure]), style="published", mark=mark)
