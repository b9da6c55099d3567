"""``ablate`` and ``reproduce``: whole grids of runs, and a page that sets their numbers beside the published ones."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from msldata.console import err, out, show
from msltrain.commands.grid_display import GridDisplay, list_grids, show_plan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from msltrain.grids.plan import DataPlaces, Plan
    from msltrain.reproduce.paper_tables import PaperTable


class Scale(StrEnum):
    """Values of ``reproduce --scale``."""

    full = "full"
    smoke = "smoke"


_SET = typer.Option("--set", help="Change a field of every run: section.field=value.")
_GPUS = typer.Option(help="One run on each at a time: auto = all of this host, or a number.")
_TASK = typer.Option(help="I/N: train only the I-th of N shares, as in an array job.", show_default=False)
_DRY_RUN = typer.Option("--dry-run", help="Show runs, GPU-hours and what data is missing; do nothing.")
_PAPER = typer.Option("--paper", help="The published values instead of our defaults; no validation, so no best.")


def ablate(
    grid: Annotated[str | None, typer.Argument(help="Without one: list the grids.", show_default=False)] = None,
    data: Annotated[
        str | None, typer.Option(help="Training shards; default: the recipes' own.", show_default=False)
    ] = None,
    test: Annotated[str | None, typer.Option(help="Test shards; with --data.", show_default=False)] = None,
    keep_masks: Annotated[
        str, typer.Option(help="Training keep masks: folder or URL with high and low.")
    ] = "shards/masks",
    test_masks: Annotated[
        list[str] | None,
        typer.Option(help="Held-out keep masks to test behind: one set, or a folder with high and low."),
    ] = None,
    seeds: Annotated[str, typer.Option(help="Each run is trained with each.")] = "0,1,2",
    out_: Annotated[
        str, typer.Option("--out", help="Folder; grids in the same one share their runs.")
    ] = "runs/ablations",
    set_: Annotated[list[str] | None, _SET] = None,
    paper: Annotated[bool, _PAPER] = False,
    gpus: Annotated[str, _GPUS] = "auto",
    task: Annotated[str | None, _TASK] = None,
    dry_run: Annotated[bool, _DRY_RUN] = False,
) -> None:
    """Train and test every row of an ablation with several seeds; what was stopped goes on, what is done stays."""
    if grid is None:
        list_grids()
        return
    from msltrain.grids.plan import DataPlaces, make_plan
    from msltrain.recipes.ablations import what_it_varies
    from msltrain.recipes.variants import as_published, tuned
    from msltrain.reproduce.paper_tables import grid_as_table
    from msltrain.training.seeds import parse_seeds

    table = grid_as_table(grid)
    places = DataPlaces(train=data, test=test, keep_masks=keep_masks, test_masks=tuple(test_masks or ()))
    plan = make_plan(
        [grid],
        seeds=parse_seeds(seeds),
        places=places,
        form=as_published if paper else tuned,
        settings=set_ or (),
    )
    _run(
        plan,
        [table],
        places,
        folder=_local(out_),
        name=grid,
        title=what_it_varies(grid),
        scale=Scale.full,
        paper=paper,
        gpus=gpus,
        task=task,
        dry_run=dry_run,
    )


def reproduce(
    tables: Annotated[
        list[str] | None,
        typer.Argument(help="table-1 … table-9, figure-3, rivals; default: all.", show_default=False),
    ] = None,
    scale: Annotated[
        Scale, typer.Option(help="smoke = tiny networks on drawn images, minutes on a laptop.")
    ] = Scale.full,
    shards: Annotated[
        str, typer.Option(help="Where voc2007, coco2014, masks and heldout are; for --scale full.")
    ] = "shards",
    test_masks: Annotated[
        list[str] | None,
        typer.Option(help="Other held-out keep masks than SHARDS/heldout, as in ablate.", show_default=False),
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Default: 0,1,2; smoke: 0,1.", show_default=False)] = None,
    out_: Annotated[
        str | None, typer.Option("--out", help="Default: runs/reproduce-SCALE.", show_default=False)
    ] = None,
    resnet_cut: Annotated[
        Path | None,
        typer.Option(help="The authors' CutMix weights (.pth), for the rows that began with them.", show_default=False),
    ] = None,
    set_: Annotated[list[str] | None, _SET] = None,
    paper: Annotated[bool, _PAPER] = False,
    gpus: Annotated[str, _GPUS] = "auto",
    task: Annotated[str | None, _TASK] = None,
    dry_run: Annotated[bool, _DRY_RUN] = False,
) -> None:
    """Run the paper's Tables 1 to 9 and Fig. 3 again, and set the results beside the published numbers on a page."""
    from functools import partial

    from msltrain.demo.subprocesses import show_step
    from msltrain.grids.plan import DataPlaces, make_plan
    from msltrain.recipes.variants import as_published, tuned
    from msltrain.reproduce import smoke
    from msltrain.reproduce.paper_tables import choose_tables, with_resnet_cut
    from msltrain.training.seeds import parse_seeds

    chosen = choose_tables(tables or ())
    folder = _local(out_ or f"runs/reproduce-{scale.value}")
    is_smoke = scale is Scale.smoke
    if is_smoke and not dry_run:
        smoke.make_data(folder, partial(show_step, out))
    places = (
        smoke.smoke_places(folder)
        if is_smoke
        else DataPlaces(
            root=shards, keep_masks=f"{shards}/masks/official", test_masks=tuple(test_masks) if test_masks else None
        )
    )
    plan = make_plan(
        [grid for table in chosen for grid in table.grids],
        seeds=parse_seeds(seeds or ("0,1" if is_smoke else "0,1,2")),
        places=places,
        form=as_published if paper else tuned,
        adapt=smoke.tiny if is_smoke else partial(with_resnet_cut, file=resnet_cut),
        settings=set_ or (),
    )
    _run(
        plan,
        chosen,
        places,
        folder=folder,
        name="report",
        title="The paper's tables, run again",
        scale=scale,
        paper=paper,
        gpus=gpus,
        task=task,
        dry_run=dry_run,
    )


def _run(
    plan: Plan,
    tables: Sequence[PaperTable],
    places: DataPlaces,
    *,
    folder: Path,
    name: str,
    title: str,
    scale: Scale,
    paper: bool,
    gpus: str,
    task: str | None,
    dry_run: bool,
) -> None:
    """What both commands do with a plan: look for its data, run it, report. Exits with 1 where a run failed."""
    import shlex
    import sys

    from msltrain.grids.folder import claim_folder
    from msltrain.grids.needed_data import find_needs, masks_met, require_all
    from msltrain.grids.run import open_grid, parse_task, run_grid
    from msltrain.grids.workers import gpu_slots

    share = None if task is None else parse_task(task)
    grid = open_grid(plan, folder, curves=[grid for table in tables if table.curves for grid in table.grids])
    needs = find_needs(plan)
    for text in masks_met(plan):
        show(err, f"note: {text}; what is measured behind them flatters those runs", wrap=True)
    if dry_run:
        # The smoke scale makes its own data.
        show_plan(grid, needs, places, makes_data=scale is Scale.smoke)
        return
    require_all(needs, places)
    command = shlex.join(["msl", *_without_task(sys.argv[1:])])
    slots = gpu_slots(gpus) if grid.unfinished else []
    claim_folder(folder, plan, needs, command)
    problems: dict[str, str] = {}
    try:
        with GridDisplay(grid) as display:
            problems = run_grid(grid, slots, task=share, on_event=display.show)
    finally:
        from msltrain.reproduce.write_comparison import write_report

        files = write_report(
            grid,
            tables,
            needs,
            name=name,
            title=title,
            scale=scale.value,
            as_published=paper,
            command=command,
            problems=problems,
        )
        for file in files:
            show(out, (file, "green"))
    if problems:
        logs = {job.name: job.log for job in grid.jobs}
        failed = f"{len(problems)} of {len(grid.jobs)} jobs failed"
        show(err, (failed, "red"), "; the same command tries them again:")
        for job, problem in problems.items():
            err.print(f"  {job}: {problem}; log: {logs[job]}", markup=False, soft_wrap=True)
        raise typer.Exit(1)


def _local(place: str) -> Path:
    from msldata.errors import UserError

    if "://" in place:
        raise UserError(f"--out {place}: a grid needs a local folder; its shards may lie anywhere")
    return Path(place)


def _without_task(arguments: Sequence[str]) -> list[str]:
    """The command that goes on with all shares."""
    kept, skip = [], False
    for word in arguments:
        if skip:
            skip = False
        elif word == "--task":
            skip = True
        elif not word.startswith("--task="):
            kept.append(word)
    return kept
