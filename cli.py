"""The command line, ``python cli.py`` or ``msl``: parse, call one function, show the result. No logic lives here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


class _Commands(typer.core.TyperGroup):
    """The one place where errors become messages: 2 = a mistake the user can mend, 130 = stopped with Ctrl-C."""

    def invoke(self, ctx: Any) -> Any:
        from msldata.errors import UserError

        try:
            return super().invoke(ctx)
        except (UserError, FileNotFoundError, PermissionError) as error:
            if ctx.params.get("debug"):
                raise
            err.print("[red]error:[/red] ", end="")
            err.print(str(error), markup=False, soft_wrap=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            err.print("\nstopped; the same command goes on where it was")
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=_Commands,
    help="Multi-label recognition of small and occluded objects: shards in, a trained and explained model out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _root(debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False) -> None:
    pass


class Dataset(StrEnum):
    voc2007 = "voc2007"
    coco2014 = "coco2014"


class OnError(StrEnum):
    fail = "fail"
    skip = "skip"


class Polarity(StrEnum):
    auto = "auto"
    hole_white = "hole-white"
    hole_black = "hole-black"


Workers = Annotated[int | None, typer.Option(help="Processes; default: one a core.", min=1, show_default=False)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Start over where another build was.")]


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A Rich progress bar fed with (done, total)."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _data_root() -> Path:
    """Where raw datasets are looked for when no --source is given."""
    import os

    return Path(os.environ.get("MSL_DATA", "datasets"))


@app.command(rich_help_panel="Data")
def build_shards(
    dataset: Annotated[
        Dataset | None, typer.Option(help="Default: every dataset found under datasets/ or $MSL_DATA.")
    ] = None,
    source: Annotated[Path | None, typer.Option(help="Folder of the raw dataset.")] = None,
    out_: Annotated[str, typer.Option("--out", help="Folder or URL; shards go to OUT/DATASET/SPLIT.")] = "shards",
    split: Annotated[
        list[str] | None, typer.Option(help="Repeat for several; default: all.", show_default=False)
    ] = None,
    samples_per_shard: Annotated[int, typer.Option(min=1)] = 1000,
    workers: Workers = None,
    on_error: Annotated[
        OnError, typer.Option(help="At a bad image: stop, or leave it out and count it.")
    ] = OnError.fail,
    overwrite: Overwrite = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and write nothing.")] = False,
) -> None:
    """Turn labelled photographs into verified WebDataset shards."""
    from msldata.build_shards import build_shards, plan_build
    from msldata.sources import open_source, select_sources
    from msldata.storage import open_storage

    for found in select_sources(_data_root(), dataset and dataset.value, source, split):
        for name in found.splits:
            label = f"{found.dataset} {name}"
            with err.status(f"{label}: reading annotations"):
                plan = plan_build(open_source(found.dataset, found.root, name), samples_per_shard=samples_per_shard)
            target = open_storage(out_).child(found.dataset).child(name)
            if dry_run:
                size = plan.image_bytes()
                out.print(
                    f"{label}: {plan.num_samples:,} samples in {len(plan.shards):,} shards"
                    f"{f', about {size / 1e6:,.0f} MB' if size else ''} -> {target.url}"
                )
                continue
            with _progress(label) as progress:
                manifest = build_shards(
                    plan, target, num_workers=workers, on_error=on_error.value, overwrite=overwrite, progress=progress
                )
            _show_manifest(manifest, target.url)


@app.command(rich_help_panel="Data")
def build_masks(
    source: Annotated[
        str | None, typer.Option(help="Folder, zip or tar of masks; default: looked for under datasets/.")
    ] = None,
    generate: Annotated[
        int | None, typer.Option(help="Make N irregular masks instead.", min=1, show_default=False)
    ] = None,
    size: Annotated[int, typer.Option(help="Side of generated masks in pixels.")] = 512,
    threshold: Annotated[float, typer.Option(help="high = hole fraction above it.")] = 0.5,
    polarity: Annotated[Polarity, typer.Option(help="What the holes look like in the files.")] = Polarity.auto,
    per_subset: Annotated[int, typer.Option(help="Masks drawn for high and for low; 0 = all.", min=0)] = 1000,
    seed: Annotated[int, typer.Option(help="Of the draw and of the generator.")] = 0,
    out_: Annotated[
        str, typer.Option("--out", help="Folder or URL; shards go to OUT/high and OUT/low.")
    ] = "shards/masks",
    workers: Workers = None,
    on_error: Annotated[
        OnError, typer.Option(help="At a bad file: stop, or leave it out and count it.")
    ] = OnError.fail,
    overwrite: Overwrite = False,
) -> None:
    """Split irregular masks by their hole fraction into keep-mask shards, high and low."""
    from msldata.build_masks import build_masks
    from msldata.masksources import select_mask_source
    from msldata.storage import open_storage

    masks = select_mask_source(_data_root(), source, generate=generate, size=size, seed=seed)
    with _progress("masks") as progress:
        build = build_masks(
            masks,
            open_storage(out_),
            threshold=threshold,
            polarity=polarity.value,
            per_subset=per_subset,
            seed=seed,
            num_workers=workers,
            on_error=on_error.value,
            overwrite=overwrite,
            progress=progress,
        )
    out.print(f"polarity: {build.polarity.explanation}", soft_wrap=True)
    _show_histogram("hole fraction of all masks read", build.histogram)
    for name, manifest in build.manifests.items():
        _show_manifest(manifest, f"{out_}/{name}")
        if per_subset > manifest.num_samples:
            out.print(f"  asked for {per_subset:,}, the source has only {manifest.num_samples:,} of this kind")


def _show_manifest(manifest: Any, where: str) -> None:
    size = sum(shard.num_bytes for shard in manifest.shards)
    notes = "".join(f", {count:,} {name.replace('_', ' ')}" for name, count in manifest.counts.items() if count)
    shards = f"{len(manifest.shards):,} shard{'s' * (len(manifest.shards) != 1)}"
    out.print(
        f"[green]{where}[/green]: {manifest.num_samples:,} samples, {shards}, {size / 1e6:,.1f} MB{notes}",
        soft_wrap=True,
    )


def _show_histogram(title: str, histogram: Any) -> None:
    table = Table(title=title, title_justify="left", box=None, show_header=False)
    largest = max(histogram.values(), default=0) or 1
    for name, count in histogram.items():
        table.add_row(name, f"{count:,}", "█" * round(40 * count / largest))
    out.print(table)


def main() -> None:
    """Entry point of ``msl`` and of ``python cli.py``."""
    app()


if __name__ == "__main__":
    main()
