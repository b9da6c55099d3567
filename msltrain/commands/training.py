"""``train``, ``recipes``, ``demo``, ``import-checkpoint``: from shards or released weights to a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from msldata.console import OnError, err, gigabytes, out


def train(
    recipe: Annotated[str, typer.Option(help="What to train; `msl recipes` lists them.")],
    data: Annotated[str | None, typer.Option(help="Training shards: folder or URL; default: the recipe's.")] = None,
    keep_masks: Annotated[list[str] | None, typer.Option(help="Keep-mask shards; default: the recipe's.")] = None,
    weights: Annotated[
        str | None, typer.Option(help="First weights: timm tag, hf-hub:OWNER/NAME, .pth or .safetensors file.")
    ] = None,
    run: Annotated[Path | None, typer.Option(help="Run folder; default: runs/RECIPE.", show_default=False)] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Change a field: section.field=value.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in the run folder.")] = False,
    gpus: Annotated[str, typer.Option(help="auto = all of this host, or a number.")] = "auto",
    cache: Annotated[Path | None, typer.Option(help="Keep remote shards in this local folder.")] = None,
    cache_limit: Annotated[str | None, typer.Option(help="What the cache may take.", show_default="50GB")] = None,
    ram_cache: Annotated[
        str | None, typer.Option(help="Keep decoded images in so much memory, such as 8GB.", show_default="none")
    ] = None,
    on_sample_error: Annotated[
        OnError | None, typer.Option(help="At a damaged sample: stop, or go on and list it.", show_default="fail")
    ] = None,
) -> None:
    """Train with the Siamese step, on one or many GPUs, and resume bit for bit."""
    import sys

    from msltrain import launch
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
    config = configure(recipe, train=data, keep_masks=keep_masks, weights=weights, settings=[*settings, *(set_ or [])])
    if (processes := launch.num_processes(gpus)) > 1:
        raise typer.Exit(launch.launch(sys.argv, processes))
    from msltrain.display import TrainingDisplay
    from msltrain.trainer import train

    with TrainingDisplay(out, err) as display:
        result = train(config, run_dir=run or Path("runs", recipe), resume=resume, on_event=display.show)
    if result.best_epoch is not None:
        out.print(f"best validation mAP {100 * (result.validation_mAP or 0):.1f}, epoch {result.best_epoch + 1}")
    out.print(f"[green]{result.run_dir}[/green]: {result.num_steps:,} steps, {result.seconds:,.0f} s", soft_wrap=True)


def import_checkpoint(
    file: Annotated[
        Path, typer.Argument(help="Released .pth of MSL or CSRA, such as msl_c_voc.pth.", show_default=False)
    ],
    recipe: Annotated[str, typer.Option(help="The recipe it was trained with: network and image size.")],
    data: Annotated[str, typer.Option(help="Shards of its dataset, which name the classes in order.")],
    out_: Annotated[Path, typer.Option("--out", help="Checkpoint folder to write.")],
    set_: Annotated[list[str] | None, typer.Option("--set", help="Change a field: section.field=value.")] = None,
) -> None:
    """Turn a released checkpoint into one that evaluate and predict take."""
    from msltrain.recipes import configure
    from msltrain.released import import_released

    report = import_released(file, configure(recipe, settings=set_ or []), data=data, folder=out_)
    out.print(report.summary(), soft_wrap=True)
    out.print(f"[green]{out_}[/green]: evaluate it with --checkpoint {out_}", soft_wrap=True)


def recipes() -> None:
    """List the recipes: what each one trains, its command, the published number."""
    from msltrain.recipes import RECIPES

    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("recipe", no_wrap=True)
    table.add_column("what it is")
    for name, make in RECIPES.items():
        summary, _, rest = (make.__doc__ or "").strip().partition("\n")
        published = rest.strip().rpartition("·")[2].strip()
        table.add_row(name, f"{summary.replace('`', '')}\n[dim]{published}[/dim]")
    out.print(table)


def demo(
    out_: Annotated[Path, typer.Option("--out", help="Folder for everything.")] = Path("demo"),
    quick: Annotated[bool, typer.Option("--quick", help="Tiny: checks the path, learns nothing.")] = False,
) -> None:
    """From raw files to a page: shards, keep masks, baseline and MSL with equal budgets, what each of them learnt."""
    from msltrain.demo import StepFinished, StepOutput, StepStarted, run_demo

    def show(event: StepStarted | StepOutput | StepFinished) -> None:
        match event:
            case StepStarted():
                out.print(f"\n[bold]{event.number}/{event.num_steps} {event.title}[/bold]")
                out.print(f"$ {event.command}", style="cyan", markup=False, soft_wrap=True)
            case StepOutput():
                out.print(f"  {event.line}", style="dim", markup=False, soft_wrap=True)
            case StepFinished():
                out.print("  done before" if event.skipped else f"  {event.seconds:.0f} s")

    page = run_demo(out_, quick=quick, on_event=show)
    out.print(f"\nWhat was measured: [green]{page}[/green]; open it in a browser.", soft_wrap=True)
