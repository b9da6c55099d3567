"""The report on a grid as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from msltrain.grids.plan import WHOLE
from msltrain.grids.results import CURVE_MEASURES, OverSeeds
from msltrain.measures.metrics import SUMMARY
from msltrain.reproduce.content import Content, GridContent, TableContent, beside_mean, hidden, percent
from msltrain.reproduce.published_numbers import ERRATA, SOURCES


def to_markdown(content: Content) -> str:
    """The whole report; numbers in percent."""
    lines = [f"# {content.title}", "", content.subject + ".", "", f"**{content.headline}**", ""]
    lines += [f"- {caveat}" for caveat in content.caveats]
    lines.append("")
    if content.unfinished:
        lines += [f"{len(content.unfinished)} of {len(content.states)} jobs are not finished. Go on with:", ""]
        lines += [f"    {content.command}", ""]
        lines += [
            f"- {state.name}: {state.state}{f' (log: {state.log})' if state.log else ''}"
            for state in content.unfinished
            if state.state.startswith("failed")
        ]
        lines.append("")
    for table in content.tables:
        lines += _table(table, content.errata)
    if content.errata:
        lines += ["## Errata", ""]
        lines += [f"{number}. {ERRATA[name]}" for number, name in enumerate(content.errata, 1)]
        lines.append("")
    lines += ["Published numbers: " + "; ".join(f"{name}, {what}" for name, what in SOURCES.items()) + ".", ""]
    return "\n".join(lines)


def _spread(spread: OverSeeds, num_seeds: int) -> str:
    return f"{percent(spread.mean)} {beside_mean(spread, num_seeds)}".rstrip()


def _table(content: TableContent, errata: Sequence[str]) -> list[str]:
    lines = [f"## {content.table.label}: {content.table.title}", ""]
    if content.table.reading:
        lines += [content.table.reading, ""]
    if content.errata:
        lines += [f"See errata {', '.join(str(errata.index(name) + 1) for name in content.errata)}.", ""]
    for grid in content.grids:
        lines += _mean_ap(grid, errata)
        if grid.has_rates:
            lines += _rates(grid, errata)
        if grid.curves:
            lines += _curves(grid)
    return lines


def _mean_ap(grid: GridContent, errata: Sequence[str]) -> list[str]:
    lines: list[str] = []
    for condition, hole_fraction in grid.conditions.items():
        sources = grid.sources if condition == WHOLE else []
        head = [f"{grid.name}: {hidden(condition, hole_fraction).lower()}, mAP", *grid.checkpoints, *sources]
        lines += _head(head)
        for row in grid.rows:
            numbers = {one.source: _marked(one.values, one.errata, "mAP", errata) for one in row.published}
            cells = [_spread(row.spread(checkpoint, condition), grid.num_seeds) for checkpoint in grid.checkpoints]
            lines.append(_row([row.name, *cells, *(numbers.get(source, "") for source in sources)]))
        lines.append("")
    return lines


def _rates(grid: GridContent, errata: Sequence[str]) -> list[str]:
    lines = _head([f"{grid.name}: whole images", *SUMMARY])
    for row in grid.rows:
        for checkpoint in grid.checkpoints:
            cells = [_spread(row.spread(checkpoint, WHOLE, measure), grid.num_seeds) for measure in SUMMARY]
            lines.append(_row([f"{row.name}, {checkpoint}", *cells]))
        for one in row.published:
            cells = [_marked(one.values, one.errata, measure, errata) for measure in SUMMARY]
            lines.append(_row([f"{row.name}, {one.source}", *cells]))
    return [*lines, ""]


def _curves(grid: GridContent) -> list[str]:
    lines: list[str] = []
    first = next(iter(grid.curves.values()))
    for measure in CURVE_MEASURES:
        names = [f"{point.condition.removeprefix('irregular-')} ({percent(point.hole_fraction)})" for point in first]
        lines += _head([f"{grid.name}: {measure} by holes (mean % hidden)", *names])
        for model, points in grid.curves.items():
            lines.append(_row([model, *(_spread(point.spreads[measure], grid.num_seeds) for point in points)]))
        if measure in grid.end_points:
            low, high = grid.end_points[measure]
            lines += ["", f"Published end points: baseline {low}, MSL {high}."]
        lines.append("")
    return lines


def _marked(values: object, errata: object, measure: str, numbering: Sequence[str]) -> str:
    assert isinstance(values, dict) and isinstance(errata, dict)
    if measure not in values:
        return ""
    mark = f" [{numbering.index(errata[measure]) + 1}]" if measure in errata else ""
    return f"{values[measure]}{mark}"


def _head(names: Sequence[str]) -> list[str]:
    return [_row(names), "| --- |" + " ---: |" * (len(names) - 1)]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
