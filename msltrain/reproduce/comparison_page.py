"""The report on a grid as one self-contained HTML page, in the look of the other reports."""

from __future__ import annotations

import importlib.resources
from collections.abc import Sequence
from html import escape

from msltrain.grids.plan import BEST, WHOLE
from msltrain.grids.results import CURVE_MEASURES, CurvePoint, OverSeeds
from msltrain.measures.metrics import SUMMARY
from msltrain.pages.svg import Line, line_plot
from msltrain.recipes.ablations import what_it_varies
from msltrain.reproduce.content import Content, GridContent, RowContent, TableContent, beside_mean, hidden, percent
from msltrain.reproduce.published_numbers import ERRATA, FIGURE3_HOLE_FRACTION, MMPRETRAIN, SOURCES, Published

_STYLE = """
.state { border-left: 4px solid var(--missed); padding-left: 1rem; margin: 1.6rem 0; }
.rows small { color: var(--muted); white-space: nowrap; }
.rows td.published { color: var(--muted); }
sup { line-height: 0; } h2 sup { font-size: 0.62em; }
sup a { text-decoration: none; } sup + sup::before { content: ", "; }
nav ul { display: flex; flex-wrap: wrap; gap: 0.2rem 1.2rem; padding: 0; list-style: none; font-size: 0.9rem; }
ol.errata li { max-width: 40rem; margin-bottom: 0.5rem; } ol.errata li:target { background: var(--panel); }
"""
_SHORT = {MMPRETRAIN: "mm&shy;pretrain"}
_CURVES = ("Baseline", "Baseline recalibrated", "Matched baseline", "MSL")


def to_html(content: Content) -> str:
    """The page as text."""
    style = importlib.resources.files("msltrain.report").joinpath("page.css").read_text("utf-8")
    caveats = "".join(f"<li>{escape(caveat)}</li>\n" for caveat in content.caveats)
    links = "".join(
        f'<li><a href="#{table.table.name}">{escape(table.table.label)}</a></li>' for table in content.tables
    )
    sections = (
        f'<header>\n<p class="kicker">Masked Supervised Learning · grid</p>\n<h1>{escape(content.title)}</h1>\n'
        f'<p class="subject">{escape(content.subject)}</p>\n</header>',
        f'<p class="headline">{escape(content.headline)}</p>\n<ul>\n{caveats}</ul>',
        _unfinished(content),
        f'<nav aria-label="Tables"><ul>{links}</ul></nav>' if len(content.tables) > 1 else "",
        *(_table(table, content.errata) for table in content.tables),
        _errata(content.errata),
        _ending(content),
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(content.title)}</title>\n<style>\n{style}{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(section for section in sections if section)
        + "\n</main>\n</body>\n</html>\n"
    )


def _unfinished(content: Content) -> str:
    if not content.unfinished:
        return ""
    failed = [state for state in content.unfinished if state.state.startswith("failed")]
    items = "".join(f"<li><b>{escape(state.name)}</b> {escape(state.state)}{_log(state.log)}</li>" for state in failed)
    return (
        f'<div class="state"><p>{len(content.unfinished)} of {len(content.states)} jobs are not finished; a dash is a '
        f"number that is missing. This goes on with them, and trains nothing twice:</p>"
        f"<pre>{escape(content.command)}</pre>{f'<ul>{items}</ul>' if items else ''}</div>"
    )


def _log(log: str) -> str:
    return f"; its log is <code>{escape(log)}</code>" if log else ""


def _table(content: TableContent, errata: Sequence[str]) -> str:
    table = content.table
    marks = "".join(_mark(name, errata) for name in errata if name in table.errata)
    parts = [f'<h2 id="{table.name}">{escape(table.label)}: {escape(table.title)}{marks}</h2>']
    if table.reading:
        parts.append(f"<p>{escape(table.reading)}</p>")
    for grid in content.grids:
        if len(content.grids) > 1:
            parts.append(f"<h3>{escape(what_it_varies(grid.name).partition(':')[0])}</h3>")
        if grid.curves:
            parts.append(_curves(grid))
        parts.append(_mean_ap(grid, errata))
        if grid.has_rates:
            parts.append(_rates(grid, errata))
        parts.append(_settings(grid))
    return "\n".join(parts)


def _mean_ap(grid: GridContent, errata: Sequence[str]) -> str:
    sources = grid.sources
    heads = "".join(f'<th scope="col">{_SHORT.get(name, name)}</th>' for name in (*grid.checkpoints, *sources))
    groups = []
    for condition, hole_fraction in grid.conditions.items():
        rows = []
        for row in grid.rows:
            cells = "".join(
                f"<td>{_spread(row.spread(checkpoint, condition), grid.num_seeds)}</td>"
                for checkpoint in grid.checkpoints
            )
            published = {one.source: one for one in row.published} if condition == WHOLE else {}
            cells += "".join(_published(published.get(source), "mAP", errata) for source in sources)
            rows.append(f'<tr><th scope="row">{escape(row.name)}</th>{cells}</tr>')
        title = escape(hidden(condition, hole_fraction))
        width = 1 + len(grid.checkpoints) + len(sources)
        groups.append(
            f'<tbody><tr class="group"><th colspan="{width}" scope="rowgroup">{title}</th></tr>{"".join(rows)}</tbody>'
        )
    caption = (
        "<caption>mAP in percent, mean ± deviation over the seeds: after the last step, and of the epoch that was best "
        "on the validation split; then what was published for whole images, where our sources have a number.</caption>"
    )
    return (
        f'<div class="scroll"><table class="rows">{caption}<thead><tr><th></th>{heads}</tr></thead>'
        f"{''.join(groups)}</table></div>"
    )


def _rates(grid: GridContent, errata: Sequence[str]) -> str:
    """The seven measures on whole images, because a source has them."""
    heads = "".join(f'<th scope="col">{name}</th>' for name in SUMMARY)
    rows = []
    for row in grid.rows:
        rows.append(f'<tr class="group"><th colspan="{1 + len(SUMMARY)}" scope="rowgroup">{escape(row.name)}</th></tr>')
        for checkpoint in grid.checkpoints:
            cells = "".join(f"<td>{percent(row.spread(checkpoint, WHOLE, measure).mean)}</td>" for measure in SUMMARY)
            rows.append(f'<tr><th scope="row">{checkpoint}</th>{cells}</tr>')
        for one in row.published:
            cells = "".join(_published(one, measure, errata) for measure in SUMMARY)
            rows.append(f'<tr><th scope="row">{one.source}</th>{cells}</tr>')
    return (
        '<div class="scroll"><table class="rows measures"><caption>All measures on whole images, in percent.</caption>'
        f"<thead><tr><th></th>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _settings(grid: GridContent) -> str:
    items = "".join(f"<dt>{escape(row.name)}</dt><dd>{escape(_changes(row))}</dd>" for row in grid.rows if row.changes)
    shared = "".join(
        f"<dt>{escape(row.name)}</dt><dd>the same run as {escape(row.run)}</dd>"
        for row in grid.rows
        if row.run != f"{grid.name}/{row.name}"
    )
    if not items and not shared:
        return ""
    return f"<details><summary>What the rows change against MSL</summary><dl>{items}{shared}</dl></details>"


def _changes(row: RowContent) -> str:
    return "; ".join(f"{field} {change}" for field, change in row.changes.items())


def _curves(grid: GridContent) -> str:
    plots = "".join(_plot(grid, measure) for measure in CURVE_MEASURES)
    keys = "".join(f'<li><span class="key run{_style(model)}"></span>{escape(model)}</li>' for model in grid.curves)
    ends = "; ".join(
        f"{measure} {low} for the baseline, {high} for MSL" for measure, (low, high) in grid.end_points.items()
    )
    note = (
        f" Lone circles at {100 * FIGURE3_HOLE_FRACTION:.1f}\u00a0% hidden: the published end points, {ends}."
        if ends
        else ""
    )
    return (
        f'<figure><ul class="legend">{keys}</ul><div class="plots">{plots}</div><figcaption>Mean over the seeds; '
        f"whiskers: ± deviation. Every model meets the same held-out hole on the same image. Of each run the epoch "
        f"best on validation, where there is one.{note}</figcaption></figure>"
    )


def _plot(grid: GridContent, measure: str) -> str:
    lines, words = [], []
    for model, points in grid.curves.items():
        shown = [point for point in points if point.on_curve]
        means = [100 * (point.spreads[measure].mean or 0.0) for point in shown]
        lines.append(
            Line(
                name=model,
                x=[100 * point.hole_fraction for point in shown],
                y=means,
                style=_style(model),
                whisker=_whiskers(shown, means, measure),
                marker=False,
            )
        )
        words.append(f"{model} from {means[0]:.1f} to {means[-1]:.1f}")
    if measure in grid.end_points:
        for model, value in zip(("Baseline", "MSL"), grid.end_points[measure]):
            name = f"{model}, published"
            x = [100 * FIGURE3_HOLE_FRACTION]
            lines.append(Line(name=name, x=x, y=[value], style=_style(model), marker=True))
            words.append(f"{name} {value}")
    alt = f"{measure} on {grid.name} over the hidden share. {'; '.join(words)}."
    svg = line_plot(lines, x_label="share of the image hidden, %", y_label=f"{measure}, %", alt=alt)
    return f"<div><h3>{measure}</h3>{svg}</div>"


def _whiskers(points: Sequence[CurvePoint], means: Sequence[float], measure: str) -> list[tuple[float, float]]:
    deviations = [point.spreads[measure].std for point in points]
    if any(deviation is None for deviation in deviations):
        return []
    return [
        (max(0.0, mean - 100 * deviation), min(100.0, mean + 100 * deviation))
        for mean, deviation in zip(means, deviations)
        if deviation is not None
    ]


def _style(model: str) -> int:
    return _CURVES.index(model) if model in _CURVES else len(_CURVES) - 1


def _errata(names: Sequence[str]) -> str:
    if not names:
        return ""
    items = "".join(f'<li id="erratum-{number}">{escape(ERRATA[name])}</li>' for number, name in enumerate(names, 1))
    return f'<h2>Errata and what to know</h2>\n<ol class="errata">{items}</ol>'


def _ending(content: Content) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(state.name)}</th><td>{escape(state.state)}</td></tr>' for state in content.states
    )
    sources = "; ".join(f"{name}: {what}" for name, what in SOURCES.items())
    return (
        f"<h2>Jobs</h2>\n<details><summary>All {len(content.states)}</summary>"
        f'<table class="words"><thead><tr><th scope="col">Job</th><th scope="col">State</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></details>\n<h2>Command that made this page</h2>\n"
        f"<pre>{escape(content.command)}</pre>\n<footer>Every measured number is computed from the predictions files "
        f"of the runs. AP is as published; rates are taken at a score ≥ 0.5. Published numbers: {escape(sources)}. "
        f"“{BEST}” was chosen on validation samples of the training split.</footer>"
    )


def _spread(spread: OverSeeds, num_seeds: int) -> str:
    note = beside_mean(spread, num_seeds)
    return f"{percent(spread.mean)}{note and f' <small>{note}</small>'}"


def _published(one: Published | None, measure: str, errata: Sequence[str]) -> str:
    if one is None or measure not in one.values:
        return '<td class="published"></td>'
    mark = _mark(one.errata[measure], errata) if measure in one.errata else ""
    return f'<td class="published">{one.values[measure]}{mark}</td>'


def _mark(name: str, errata: Sequence[str]) -> str:
    number = errata.index(name) + 1
    return f'<sup><a href="#erratum-{number}" aria-label="Erratum {number}">{number}</a></sup>'
