"""The paper's Figures 2, 4 and 5: what the baseline and MSL say about the same photographs, as a separate report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from msltrain.grids.jobs import predictions_file
from msltrain.grids.run import GridRun
from msltrain.report.open_runs import RunReport, open_run
from msltrain.report.write_report import write_report
from msltrain.reproduce.paper_tables import PaperTable
from msltrain.runs.run_places import WHOLE

_MODELS = {"baseline": "Baseline", "msl": "MSL"}
"""Rows of a grid with curves → their names on its page of pictures."""


def write_pictures(grid: GridRun, tables: Sequence[PaperTable], command: str) -> dict[str, Path]:
    """Write a page for each grid with curves whose two models are measured: grid → file.

    Raises:
        UserError: a test set has changed since it was measured.
    """
    found = {}
    for table in tables:
        for name in table.grids if table.curves else ():
            runs = [_open(grid, name, row) for row in _MODELS]
            if None not in runs:
                found[name] = write_report(
                    grid.out / f"pictures-{name}.html",
                    title=f"{' beside '.join(_MODELS.values())}: {name.partition('-')[2]}",
                    runs=[run for run in runs if run is not None],
                    shards=grid.plan.grids[name]["msl"].test.shards,
                    commands=[command],
                )
    return found


def _open(grid: GridRun, name: str, row: str) -> RunReport | None:
    """The first seed's run at its best, or else last, checkpoint; None until it is measured."""
    run = grid.plan.grids[name][row]
    folder = run.folder(grid.out, grid.plan.seeds[0])
    files = {
        condition: predictions_file(folder, run.checkpoints[-1], condition) for condition, _ in run.test.conditions
    }
    if not all(file.is_file() for file in files.values()):
        return None
    return open_run(folder, name=_MODELS[row], clean=files.pop(WHOLE), masked=files)
