"""``report``: one run, or several side by side, as a page that stands alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from msldata.commands import local_path
from msldata.console import err, next_step, out, show
from msldata.errors import counted
from msldata.progress import progress_bar, working
from msltrain.commands.options import Device, OnDevice, RunArguments, SomeCheckpoints, named_models


def report(
    runs_: RunArguments = None,
    checkpoint: SomeCheckpoints = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Test shards, or a dataset in shards/ by its name: makes missing predictions, and shows photographs.",
            show_default="those beside the first run's training ones, if they are here and those of its predictions",
        ),
    ] = None,
    keep_masks: Annotated[
        list[str] | None,
        typer.Option(help="Test keep masks, a condition each; repeat it.", show_default="those evaluated so far"),
    ] = None,
    robustness: Annotated[Path | None, typer.Option(help="Show this study of `msl robustness` as well.")] = None,
    name: Annotated[list[str] | None, typer.Option(help="Names of the runs or series, in the same order.")] = None,
    examples: Annotated[int, typer.Option(help="Photographs to show, half of them failures.", min=0)] = 12,
    out_: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Page to write.",
            show_default="RUN/report.html; of several runs: report.html",
            parser=local_path,
        ),
    ] = None,
    device: Device = OnDevice.auto,
) -> None:
    """Show what one run learnt, or compare runs: an HTML page that stands alone, Markdown and JSON beside it."""
    import shlex
    from dataclasses import replace

    from msldata.errors import UserError
    from msltrain.measures.metrics import compute_metrics
    from msltrain.measures.summary import spread_said
    from msltrain.report.gather import gather_runs, name_of
    from msltrain.runs.run_places import find_evaluation_shards, find_series, run_folder, study_folder

    models = named_models(runs_, checkpoint, "report")
    series = [(path, find_series(path)) for path in map(Path, models)]
    run = [one for path, members in series for one in members or [path]]
    given = name or [path.name if members else name_of(path) for path, members in series]
    if len(given) != len(models):
        both = f"{counted(len(models), 'run')} and {counted(len(given), 'name')}"
        raise UserError(f"{both}; give --name once per run, or series of runs")
    if len(set(given)) != len(given):
        raise UserError(f"two runs have the same name ({', '.join(given)}); give each its own with --name")
    named = [(title, path, members) for title, (path, members) in zip(given, series)]
    names = [f"{title} {one.name}" if members else title for title, path, members in named for one in members or [path]]
    gathered = gather_runs(
        run,
        names,
        shards=data and find_evaluation_shards(data),
        keep_masks=keep_masks or (),
        device=device,
        progress=lambda what: progress_bar(f"evaluating {what}"),
    )
    series_of = [title if members else "" for title, path, members in named for _ in members or [path]]
    runs = [replace(one, series=title) for one, title in zip(gathered.runs, series_of)]
    shards = gathered.shards
    for text in (text for one in runs for text in (one.unfinished, *one.met) if text):
        show(err, f"note: {text}", wrap=True)
    if data is None and shards is not None:
        show(err, f"test shards: {shards}")
    with working("starting"):  # it takes seconds to import torch
        from msltrain.report.write_report import write_report

    page = out_ or (run_folder(run[0]) / "report.html" if len(run) == 1 else Path("report.html"))
    origin = runs[0].clean.origin
    with working("measuring, and drawing the page"):
        write_report(
            page,
            title=_title([(title, len(members)) for title, _, members in named], origin.dataset, origin.split),
            runs=runs,
            shards=shards,
            robustness=robustness,
            num_examples=examples,
            note=lambda text: show(err, text),
        )
    for file in (page, page.with_suffix(".md"), page.with_suffix(".json")):
        show(out, (file, "green"))
    start = 0
    for title, _, members in named:
        found = [compute_metrics(one.clean).summary() for one in runs[start : start + len(members)]]
        start += len(members) or 1
        if len(found) > 1:
            words = ", ".join(f"{measure} {spread_said([one[measure] for one in found])}" for measure in found[0])
            show(out, f"{title}, mean ± standard deviation of {counted(len(found), 'run')}: {words}")
    if shards is None:
        out.print("without photographs; --data SHARDS adds them")
    if len(run) == 1 and robustness is None and not runs[0].masked and not study_folder(run).exists():
        here = f" --data {shlex.quote(data)}" if data else ""
        next_step(f"msl robustness {shlex.quote(models[0])}" + here, "what is still recognised when parts are hidden")
    next_step(f"msl serve {shlex.join(map(str, run))}" + (f" --examples {shlex.quote(shards)}" if shards else ""))


def _title(models: Sequence[tuple[str, int]], dataset: str, split: str) -> str:
    """Which runs, or series of how many seeds, and what they were tested on."""
    from msltrain.pages.text import join, quoted

    names = [quoted(name) + (f" ({counted(seeds, 'seed')})" if seeds else "") for name, seeds in models]
    what = f"{'Run' if len(names) == 1 else 'Runs'} {join(names)}"
    return f"{what}, tested on the {split} split of dataset {quoted(dataset)}" if dataset else what
