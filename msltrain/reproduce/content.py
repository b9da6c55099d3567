"""What a report on grids says, before it is HTML, Markdown or JSON: tables, curves, caveats, what is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from msldata.errors import counted
from msltrain.grids.results import CurvePoint, Measures, OverSeeds, curves_of, measures_of
from msltrain.grids.run import GridRun
from msltrain.measures.metrics import SUMMARY
from msltrain.pages.text import percent
from msltrain.recipes.ablations import reference_row
from msltrain.reproduce.paper_tables import PaperTable
from msltrain.reproduce.published_numbers import ERRATA, FIGURE3, PUBLISHED, Published, other_rows
from msltrain.runs.run_places import WHOLE


@dataclass(frozen=True, kw_only=True)
class RowContent:
    """One row of a table."""

    name: str
    run: str
    """The run behind it, which other rows may share; empty where only others have published a number."""
    measures: Mapping[str, Mapping[str, Measures]]
    """By checkpoint and condition; what is missing is absent."""
    published: tuple[Published, ...]
    """On whole images."""
    changes: Mapping[str, str]
    """Settings in which it differs from the row ``msl``, or from the row nearest to it."""

    def spread(self, checkpoint: str, condition: str, measure: str = "mAP") -> OverSeeds:
        """Measures over the seeds that are there, perhaps none."""
        measures = self.measures.get(checkpoint, {}).get(condition)
        return OverSeeds({}) if measures is None else measures.spreads[measure]


@dataclass(frozen=True, kw_only=True)
class GridContent:
    """The rows of one grid."""

    name: str
    conditions: Mapping[str, float | None]
    """Condition → mean hidden share, for conditions under which something was measured."""
    num_seeds: int
    """When it is finished."""
    checkpoints: tuple[str, ...]
    """The checkpoints that its runs leave."""
    rows: tuple[RowContent, ...]
    curves: Mapping[str, Sequence[CurvePoint]]
    """Curves by model; empty if none are drawn or finished."""
    end_points: Mapping[str, tuple[float, float]]
    """Published end points of the curves (baseline, MSL), in percent, by measure."""
    pictures: str
    """Name of the page with what the baseline and MSL say about single photographs; empty if there is none."""

    @property
    def sources(self) -> list[str]:
        """Sources that have a number for any row."""
        return list(dict.fromkeys(one.source for row in self.rows for one in row.published))

    @property
    def has_rates(self) -> bool:
        """Whether a source has more than mAP."""
        return any(len(one.values) > 1 for row in self.rows for one in row.published)


@dataclass(frozen=True, kw_only=True)
class TableContent:
    """One table or figure of the paper."""

    table: PaperTable
    grids: tuple[GridContent, ...]

    @property
    def errata(self) -> list[str]:
        """Names of the errata that concern it, in the order of `ERRATA`."""
        named = set(self.table.errata)
        for grid in self.grids:
            named |= {name for row in grid.rows for one in row.published for name in one.errata.values()}
        return [name for name in ERRATA if name in named]


@dataclass(frozen=True, kw_only=True)
class RunState:
    """One job of the grid."""

    name: str
    state: str
    """``finished``, ``missing``, ``begun``, or ``failed: …``."""
    log: str
    """Empty if it never started."""


@dataclass(frozen=True, kw_only=True)
class Content:
    """A whole report."""

    title: str
    subject: str
    headline: str
    caveats: tuple[str, ...]
    """What cannot be compared, and why."""
    tables: tuple[TableContent, ...]
    states: tuple[RunState, ...]
    command: str
    """The command that continues, and makes this report again."""

    @property
    def unfinished(self) -> list[RunState]:
        return [state for state in self.states if state.state != "finished"]

    @property
    def failed(self) -> list[RunState]:
        return [state for state in self.states if state.state.startswith("failed")]

    @property
    def errata(self) -> list[str]:
        """Names of all errata that concern any table; an erratum's number in the report is its position here."""
        named = {name for table in self.tables for name in table.errata}
        return [name for name in ERRATA if name in named]


def gather_tables(grid: GridRun, tables: Sequence[PaperTable], pictures: Mapping[str, str]) -> tuple[TableContent, ...]:
    """The numbers measured so far.

    Args:
        grid: the grid, with all its runs.
        tables: the tables to fill.
        pictures: names of the pages with pictures, by grid.

    Raises:
        UserError: a file is damaged or of another kind.
    """
    measured = {run.name: measures_of(run, grid.out, grid.plan.seeds) for run in grid.plan.runs}
    return tuple(
        TableContent(
            table=table, grids=tuple(_grid(grid, table, name, measured, pictures.get(name, "")) for name in table.grids)
        )
        for table in tables
    )


def gather_states(grid: GridRun, problems: Mapping[str, str]) -> tuple[RunState, ...]:
    """The state of every job.

    Args:
        grid: the grid with all jobs.
        problems: what went wrong, by job name.
    """
    states = []
    for job in grid.jobs:
        problem = problems.get(job.name, "")
        begun = "begun" if job.log.exists() else "missing"
        state = "finished" if job.is_finished else f"failed: {problem}" if problem else begun
        states.append(RunState(name=job.name, state=state, log=str(job.log) if job.log.exists() else ""))
    return tuple(states)


def _grid(grid: GridRun, table: PaperTable, name: str, measured: Mapping[str, Any], pictures: str) -> GridContent:
    rows = grid.plan.grids[name]
    contents = []
    for row, run in rows.items():
        nearest = rows[reference_row(rows, row)]
        contents.append(
            RowContent(
                name=row,
                run=run.name,
                measures=measured[run.name],
                published=PUBLISHED.get(f"{name}/{row}", ()),
                changes=_changes(nearest.config, run.config),
            )
        )
    if table.with_others:
        contents += [
            RowContent(name=printed, run="", measures={}, published=(one,), changes={})
            for printed, one in other_rows(name).items()
        ]
    conditions: dict[str, float | None] = {}
    for condition, _ in next(iter(rows.values())).test.conditions:
        found = [by[condition] for run in rows.values() for by in measured[run.name].values() if condition in by]
        conditions[condition] = found[0].hole_fraction if found else None
    return GridContent(
        name=name,
        conditions=conditions,
        num_seeds=len(grid.plan.seeds),
        checkpoints=tuple(dict.fromkeys(name for run in rows.values() for name in run.checkpoints)),
        rows=tuple(contents),
        curves=curves_of([study for study in grid.studies if study.grid == name]) if table.curves else {},
        end_points=FIGURE3.get(name, {}) if table.curves else {},
        pictures=pictures,
    )


def _changes(reference: Any, config: Any) -> dict[str, str]:
    from msltrain.config import differences

    return {
        field: f"{_plain(after)} instead of {_plain(before)}"
        for field, (before, after) in differences(reference, config).items()
    }


def _plain(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return "none" if value in (None, "") else str(value)


def to_json(content: Content) -> dict[str, Any]:
    """The report as plain data; measured numbers are fractions, published ones percent as printed."""

    def row(one: RowContent) -> dict[str, Any]:
        return {
            "row": one.name,
            "run": one.run,
            "changes": dict(one.changes),
            "measured": {
                checkpoint: {
                    condition: {
                        "num_samples": measures.num_samples,
                        **{name: measures.spreads[name].to_json() for name in SUMMARY},
                    }
                    for condition, measures in by_condition.items()
                }
                for checkpoint, by_condition in one.measures.items()
            },
            "published": {
                source.source: {
                    "values": dict(source.values),
                    "errata": {measure: ERRATA[name] for measure, name in source.errata.items()},
                }
                for source in one.published
            },
        }

    def grid(one: GridContent) -> dict[str, Any]:
        return {
            "grid": one.name,
            "hole_fraction": dict(one.conditions),
            "rows": [row(each) for each in one.rows],
            "curves": {
                model: [
                    {
                        "condition": point.condition,
                        "hole_fraction": point.hole_fraction,
                        **{name: spread.to_json() for name, spread in point.spreads.items()},
                    }
                    for point in points
                ]
                for model, points in one.curves.items()
            },
            "published_end_points": {name: list(pair) for name, pair in one.end_points.items()},
        }

    return {
        "title": content.title,
        "headline": content.headline,
        "caveats": list(content.caveats),
        "tables": [
            {
                "table": one.table.name,
                "title": one.table.title,
                "reading": one.table.reading,
                "errata": [ERRATA[name] for name in one.errata],
                "grids": [grid(each) for each in one.grids],
            }
            for one in content.tables
        ],
        "jobs": [{"name": one.name, "state": one.state, "log": one.log} for one in content.states],
        "command": content.command,
    }


def hidden(condition: str, hole_fraction: float | None) -> str:
    """``Whole images`` or ``high holes, 55 % hidden``."""
    if condition == WHOLE:
        return "Whole images"
    share = "" if hole_fraction is None else f", {100 * hole_fraction:.0f}\u00a0% hidden"
    return f"Behind held-out masks, {condition}{share}"


def beside_mean(spread: OverSeeds, num_seeds: int) -> str:
    """``± 0.4``; ``(1 seed)`` where seeds are missing, so that no mean is mistaken for that of all; or nothing."""
    found = len(spread.by_seed)
    if 0 < found < num_seeds:
        return f"({counted(found, 'seed')})"
    return "" if spread.std is None else f"± {percent(spread.std)}"
