"""``train``, ``recipes``, ``demo``, ``import-checkpoint``: from shards or released weights to a trained model."""

from __future__ import annotations

from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table
from rich.text import Text

from msldata.commands import local_path
from msldata.console import OnError, err, gigabytes, out, show
from msltrain.commands.options import Processes


class ResumeChoice(StrEnum):
    """Values of ``train --resume``."""

    auto = "auto"
    must = "must"


def train(
    recipe: Annotated[str, typer.Option(help="What to train; `msl recipes` lists them.")],
    data: Annotated[str | None, typer.Option(help="Training shards: folder or URL; default: the recipe's.")] = None,
    keep_masks: Annotated[list[str] | None, typer.Option(help="Keep-mask shards; default: the recipe's.")] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="First weights: timm tag, hf-hub:OWNER/NAME, file, own run or export."),
    ] = None,
    run: Annotated[
        str | None, typer.Option(help="Run folder or URL (s3://…); default: runs/RECIPE.", show_default=False)
    ] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Change a field: section.field=value.")] = None,
    resume: Annotated[
        ResumeChoice | None,
        typer.Option(help="auto = continue the run in the run folder, or start one; must = there has to be one."),
    ] = None,
    allow_changes: Annotated[
        bool, typer.Option("--allow-changes", help="Continue though config or data are others than before.")
    ] = False,
    paper_protocol: Annotated[
        bool, typer.Option("--paper-protocol", help="Train on everything, as published; the last weights count.")
    ] = False,
    seeds: Annotated[
        str | None, typer.Option(help="A series: 0,1,2 trains into RUN/seed0, RUN/seed1 …", show_default=False)
    ] = None,
    processes: Processes = "auto",
    cache: Annotated[Path | None, typer.Option(help="Keep remote shards in this local folder.")] = None,
    cache_limit: Annotated[str | None, typer.Option(help="What the cache may take.", show_default="50GB")] = None,
    ram_cache: Annotated[
        str | None, typer.Option(help="Keep decoded images in so much memory, such as 8GB.", show_default="none")
    ] = None,
    on_sample_error: Annotated[
        OnError | None, typer.Option(help="At a damaged sample: stop, or go on and list it.", show_default="fail")
    ] = None,
) -> None:
    """Train with the Siamese step, on one or many GPUs, and resume bit for bit.

    Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 save; the exit code is 75 then.
    """
    import sys

    from msltrain.hosts import launch
    from msltrain.recipes import configure

    settings = []
    if cache is not None:
        settings.append(f"stream.cache={cache}")
    if cache_limit is not None:
        settings.append(f"stream.cache_limit_gb={gigabytes(cache_limit)}")
    if ram_cache is not None:
        settings.append(f"stream.ram_cache_gb={gigabytes(ram_cache)}")
    if on_sample_error is not None:
        settings.append(f"stream.on_sample_error={on_sample_error.value}")
    if paper_protocol:
        settings.append("data.validation_fraction=0")
    config = configure(recipe, train=data, keep_masks=keep_masks, weights=weights, settings=[*settings, *(set_ or [])])
    if (number := launch.num_processes(processes, config.run.device)) > 1:
        restarts = launch.MAX_RESTARTS if resume is ResumeChoice.auto else 0
        raise typer.Exit(launch.launch(sys.argv[1:], number, max_restarts=restarts))
    from msltrain.training import seeds as series
    from msltrain.training.display import TrainingDisplay
    from msltrain.training.trainer import train

    place = run or Path("runs", recipe)
    going_on: bool | Literal["auto"] = "auto" if resume is ResumeChoice.auto else resume is not None
    with TrainingDisplay(out, err) as display:
        if seeds is None:
            results = [
                train(config, run_dir=place, resume=going_on, allow_changes=allow_changes, on_event=display.show)
            ]
        else:
            results = series.train_series(
                config,
                series.parse_seeds(seeds),
                run_dir=place,
                resume=going_on,
                allow_changes=allow_changes,
                on_event=display.show,
            )
    for result in results:
        if result.best_epoch is not None:
            out.print(f"best validation mAP {100 * (result.validation_mAP or 0):.1f}, epoch {result.best_epoch + 1}")
        show(out, (result.run_dir, "green"), f": {result.num_steps:,} steps, {result.seconds:,.0f} s")


def import_checkpoint(
    file: Annotated[
        Path, typer.Argument(help="Released .pth of MSL or CSRA, such as msl_c_voc.pth.", show_default=False)
    ],
    recipe: Annotated[str, typer.Option(help="The recipe it was trained with: network and image size.")],
    data: Annotated[str, typer.Option(help="Shards of its dataset, which name the classes in order.")],
    out_: Annotated[Path, typer.Option("--out", help="Checkpoint folder to write.", parser=local_path)],
    set_: Annotated[list[str] | None, typer.Option("--set", help="Change a field: section.field=value.")] = None,
) -> None:
    """Turn a released checkpoint into one that evaluate and predict take."""
    from msltrain.recipes import configure
    from msltrain.runs.import_released import import_released

    report = import_released(file, configure(recipe, settings=set_ or []), data=data, folder=out_)
    out.print(report.summary(), soft_wrap=True)
    show(out, (out_, "green"), f": evaluate it with --checkpoint {out_}")


def recipes() -> None:
    """List the recipes: what each one trains, the published number and its source, estimated hours on one GPU."""
    from msltrain.recipes import RECIPES
    from msltrain.recipes.cost import BF16_TERAFLOPS, FLOAT32_TERAFLOPS

    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("recipe", no_wrap=True)
    table.add_column("GPU-hours", justify="right")
    table.add_column("what it is")
    for recipe in RECIPES.values():
        hours = "" if recipe.gpu_hours is None else f"{recipe.gpu_hours:.2f}"
        table.add_row(recipe.name, hours, Text.assemble(recipe.what, (f"\n{recipe.source} · {recipe.number}", "dim")))
    out.print(table)
    out.print(
        f"GPU-hours: an estimate for one H100 or H200 that sustains {BF16_TERAFLOPS:g} TFLOP/s in bf16 and "
        f"{FLOAT32_TERAFLOPS:g} in float32 (-paper); numbers are those of the sources, not measured here. `msl ablate` "
        "lists the grids of ablations."
    )


def demo(
    out_: Annotated[Path, typer.Option("--out", help="Folder for everything.", parser=local_path)] = Path("demo"),
    quick: Annotated[bool, typer.Option("--quick", help="Tiny: checks the path, learns nothing.")] = False,
) -> None:
    """From raw files to a page: shards, keep masks, baseline and MSL with equal budgets, what each of them learnt."""
    from msltrain.demo.demo import run_demo
    from msltrain.demo.subprocesses import show_step

    page = run_demo(out_, quick=quick, on_event=partial(show_step, out))
    show(out, "\nWhat was measured: ", (page, "green"), "; open it in a browser.")
