"""Run a grid: whatever is missing, on the available GPUs, or one share of it in an array job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from msldata.errors import UserError
from msltrain.grids.jobs import Job, StudyJob, TrainJob
from msltrain.grids.plan import Plan
from msltrain.grids.workers import OnJob, run_jobs

CURVE_ROWS = {"baseline": "Baseline", "matched-baseline": "Matched baseline", "msl": "MSL"}
"""Rows of a grid whose curves over the hidden share are drawn, the reference first → what the curves are called."""


@dataclass(frozen=True, kw_only=True)
class GridRun:
    """A grid in a folder."""

    plan: Plan
    out: Path
    training: tuple[TrainJob, ...]
    """Every seed of every run; the first seed of all before the second of any."""
    studies: tuple[StudyJob, ...]

    @property
    def jobs(self) -> tuple[Job, ...]:
        return (*self.training, *self.studies)

    @property
    def unfinished(self) -> list[Job]:
        return [job for job in self.jobs if not job.is_finished]


def open_grid(plan: Plan, out: Path, *, curves: Sequence[str] = ()) -> GridRun:
    """The jobs of ``plan``.

    Args:
        plan: the runs.
        out: folder for everything.
        curves: grids with the rows of `CURVE_ROWS` whose models' curves are drawn.
    """
    training = tuple(
        TrainJob(run=run, seed=seed, folder=run.folder(out, seed)) for seed in plan.seeds for run in plan.runs
    )
    by_run = {(job.run.name, job.seed): job for job in training}
    studies = []
    for grid in curves:
        rows = plan.grids[grid]
        msl = rows["msl"]
        for seed in plan.seeds:
            jobs = [by_run[rows[row].name, seed] for row in CURVE_ROWS]
            studies.append(
                StudyJob(
                    grid=grid,
                    seed=seed,
                    models=tuple((name, job.folder) for name, job in zip(CURVE_ROWS.values(), jobs)),
                    shards=msl.test.shards,
                    keep_masks=tuple(place for _, place in msl.test.keep_masks),
                    recalibration=(msl.config.data.train, msl.config.data.keep_masks),
                    folder=out / "curves" / grid / f"seed{seed}",
                    needs=tuple(job.name for job in jobs),
                )
            )
    return GridRun(plan=plan, out=out, training=training, studies=tuple(studies))


def run_grid(
    grid: GridRun,
    slots: Sequence[str],
    *,
    task: tuple[int, int] | None = None,
    on_event: OnJob = lambda event: None,
) -> dict[str, str]:
    """Do every job that is not done yet, in a folder that was claimed for the grid.

    Args:
        grid: what to run, and in which folder.
        slots: the GPUs to use, as `gpu_slots` gives them.
        task: (I, N) with I from 1: do the I-th of N shares of the trainings only.
        on_event: called when a job starts, makes progress, and ends.

    Returns:
        What went wrong, by job name.

    Raises:
        KeyboardInterrupt: a stop was requested.
    """
    mine: list[Job] = list(grid.training if task is None else grid.training[task[0] - 1 :: task[1]])
    within_reach = {job.name for job in grid.training if job.is_finished} | {job.name for job in mine}
    mine += [study for study in grid.studies if set(study.needs) <= within_reach]
    jobs = [job for job in mine if not job.is_finished]
    return run_jobs(jobs, slots, on_event) if jobs else {}


def parse_task(text: str) -> tuple[int, int]:
    """``3/8``, the third of eight shares → (3, 8). Raises UserError for anything else."""
    index, slash, total = text.partition("/")
    if not (slash and index.isdecimal() and total.isdecimal() and 1 <= int(index) <= int(total)):
        raise UserError(f"--task {text}: expected I/N, for example 3/8 for the third of eight")
    return int(index), int(total)
