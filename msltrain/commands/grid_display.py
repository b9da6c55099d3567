"""What ``ablate`` and ``reproduce`` show on a terminal: the grids, what one would do, and how far it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from msldata.console import out, show
from msldata.errors import counted

if TYPE_CHECKING:
    from msltrain.grids.needed_data import Need
    from msltrain.grids.plan import DataPlaces
    from msltrain.grids.run import GridRun
    from msltrain.grids.workers import JobEvent


class GridDisplay:
    """A line for each job that ends; on a terminal also a bar for each that runs."""

    def __init__(self, grid: GridRun):
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn

        from msldata.progress import Bars

        columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=20), TimeElapsedColumn())
        self._bar = Bars(*columns)
        self._bars: dict[str, object] = {}
        self._total = len(grid.jobs)
        self._done = self._total - len(grid.unfinished)
        if self._done:
            out.print(f"{self._done} of {self._total} jobs were finished before")

    def __enter__(self) -> GridDisplay:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, event: JobEvent) -> None:
        """Called for every event of the grid."""
        from msltrain.grids.workers import JobEnded, JobProgress, JobStarted

        match event:
            case JobStarted():
                where = f" on GPU {event.slot}" if event.slot else ""
                self._bars[event.job.name] = self._bar.add_task(f"{event.job.name}{where}", total=None)
            case JobProgress():
                self._bar.update(
                    self._bars[event.job.name],  # type: ignore[arg-type]
                    description=f"{event.job.name}: {event.doing}",
                    completed=event.done,
                    total=event.total,
                )
            case JobEnded():
                if event.job.name in self._bars:
                    self._bar.remove_task(self._bars.pop(event.job.name))  # type: ignore[arg-type]
                self._done += 1
                result = ("failed", "red") if event.problem else f"{event.seconds:,.1f} s"
                show(out, f"{self._done}/{self._total} {event.job.name}  ", result)


def list_grids() -> None:
    """Every grid with its runs and estimated GPU-hours."""
    from msltrain.grids.plan import DataPlaces, make_plan
    from msltrain.recipes.ablations import GRIDS, what_it_varies

    table = _table("grid", "runs", "GPU-hours")
    table.add_column("what it varies")
    for name in GRIDS:
        runs = make_plan([name], seeds=(0,), places=DataPlaces(test_masks=())).runs
        hours = [run.gpu_hours() for run in runs]
        table.add_row(name, str(len(runs)), _hours(hours), what_it_varies(name))
    out.print(table)
    out.print(
        "Runs and estimated hours on one H100 or H200 for one seed; `msl ablate GRID --dry-run` shows one of them, "
        "`msl reproduce` runs those of the paper."
    )


def show_plan(grid: GridRun, needs: Sequence[Need], places: DataPlaces, *, makes_data: bool) -> None:
    """What a grid would do."""
    from msltrain.grids.needed_data import next_commands

    samples = {need.place: need.manifest.num_samples for need in needs if need.manifest is not None}
    table = _table("run", "seeds to do", "GPU-hours a seed")
    table.add_column("also stands for", overflow="fold")
    left: list[float | None] = []
    for run in grid.plan.runs:
        jobs = [job for job in grid.training if job.run == run]
        todo = sum(not job.is_finished for job in jobs)
        hours = run.gpu_hours(samples.get(run.config.data.train))
        left += [hours] * todo
        table.add_row(
            run.name,
            f"{todo} of {len(jobs)}",
            _hours([hours]),
            ", ".join(row for row in grid.plan.rows_of(run) if row != run.name),
        )
    out.print(table)
    num_studies = sum(not study.is_finished for study in grid.studies)
    out.print(
        f"{len(left)} trainings, about {_hours(left)} GPU-hours on an H100 or H200 by arithmetic (evaluation on top)"
        + (f", and {num_studies} sets of curves over the hidden share" if num_studies else "")
    )
    models = [run.config.model for run in grid.plan.runs]
    if tags := {f"{model.weights} for {model.backbone}" for model in models if model.weights}:
        out.print(f"first weights: {', '.join(sorted(tags))}; tags are fetched by timm", markup=False, soft_wrap=True)
    for need in needs:
        state = "missing" if need.manifest is None else counted(need.manifest.num_samples, "sample")
        if need.manifest is None and makes_data:
            state = "will be made"
        out.print(f"{need.role}: {need.place}  {state}", markup=False, soft_wrap=True)
    missing = [] if makes_data else [need for need in needs if need.manifest is None]
    if missing:
        out.print("First make what is missing:")
        for command in next_commands(missing, places):
            out.print(f"  {command}", markup=False, soft_wrap=True)


def _hours(hours: Sequence[float | None]) -> str:
    known = [one for one in hours if one is not None]
    if len(known) < len(hours):
        return "unknown" if not known else f"{sum(known):.2f} + unknown"
    return f"{sum(known):.2f}"


def _table(first: str, *numbers: str) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column(first, no_wrap=True)
    for name in numbers:
        table.add_column(name, justify="right")
    return table
