"""The command line, ``python cli.py`` or ``msl``: parse, call one function, show the result. No logic lives here."""

from __future__ import annotations

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


class OnError(StrEnum):
    fail = "fail"
    skip = "skip"


class Polarity(StrEnum):
    auto = "auto"
    hole_white = "hole-white"
    hole_black = "hole-black"


class MaskOrder(StrEnum):
    seeded = "seeded"
    official = "official"


Workers = Annotated[int | None, typer.Option(help="Processes; default: one a core.", min=1, show_default=False)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Start over where another build was.")]


def _data_root() -> Path:
    """Where raw datasets are looked for when no --source is given."""
    import os

    return Path(os.environ.get("MSL_DATA", "datasets"))


@app.command(rich_help_panel="Data")
def build_shards(
    dataset: Annotated[
        str | None,
        typer.Option(
            help="voc2007, voc2012, coco2014, coco, wider or table; default: all found in datasets/ or $MSL_DATA."
        ),
    ] = None,
    source: Annotated[
        Path | None, typer.Option(help="Folder of the raw dataset; of a table the .csv, .jsonl or .parquet file.")
    ] = None,
    classes: Annotated[
        Path | None, typer.Option(help="Of a table: class names, one a line; default: its labels, sorted.")
    ] = None,
    out_: Annotated[str, typer.Option("--out", help="Folder or URL; shards go to OUT/NAME/SPLIT.")] = "shards",
    name: Annotated[str | None, typer.Option(help="What to call it; default: the dataset's name.")] = None,
    split: Annotated[
        list[str] | None, typer.Option(help="Repeat for several; default: all.", show_default=False)
    ] = None,
    samples_per_shard: Annotated[int, typer.Option(min=1)] = 1000,
    resize: Annotated[
        str | None, typer.Option(help="shorter=N or fit=N pixels; default: the images' own bytes.")
    ] = None,
    quality: Annotated[int | None, typer.Option(help="Of resized JPEGs; default: 90.", show_default=False)] = None,
    workers: Workers = None,
    on_error: Annotated[
        OnError, typer.Option(help="At a bad image: stop, or leave it out and count it.")
    ] = OnError.fail,
    overwrite: Overwrite = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and write nothing.")] = False,
) -> None:
    """Turn labelled photographs into verified WebDataset shards."""
    from msldata.build_shards import build_shards, plan_build
    from msldata.display import progress_bar, show_manifest
    from msldata.resize import parse_resize
    from msldata.sources import open_source, select_sources
    from msldata.storage import open_storage

    smaller = parse_resize(resize, quality)
    for found in select_sources(_data_root(), dataset, source, split):
        for chosen in found.splits:
            label = f"{name or found.dataset} {chosen}"
            with err.status(f"{label}: reading annotations"):
                opened = open_source(found.dataset, found.root, chosen, name, classes)
                plan = plan_build(opened, samples_per_shard=samples_per_shard, resize=smaller)
            target = open_storage(out_).child(plan.dataset).child(plan.split)
            if dry_run:
                size = plan.image_bytes()
                about = f", {'at most' if smaller else 'about'} {size / 1e6:,.0f} MB" if size else ""
                shards = f"{plan.num_samples:,} samples in {len(plan.shards):,} shards{about}"
                out.print(f"{label}: {shards} -> {target.url}")
                continue
            with progress_bar(err, label) as progress:
                manifest = build_shards(
                    plan, target, num_workers=workers, on_error=on_error.value, overwrite=overwrite, progress=progress
                )
            show_manifest(out, manifest, target.url)


@app.command(rich_help_panel="Data")
def build_masks(
    source: Annotated[
        str | None, typer.Option(help="Folder, zip, tar or list (.txt) of masks; default: looked for in datasets/.")
    ] = None,
    generate: Annotated[
        int | None, typer.Option(help="Make N irregular masks instead.", min=1, show_default=False)
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(help="Side of the keep masks in pixels; default: the files' own, generated 512.", min=16),
    ] = None,
    threshold: Annotated[float, typer.Option(help="high = hole fraction above it.")] = 0.5,
    polarity: Annotated[Polarity, typer.Option(help="What the holes look like in the files.")] = Polarity.auto,
    order: Annotated[
        MaskOrder, typer.Option(help="seeded = by hole fraction; official = the released code's slices of file names.")
    ] = MaskOrder.seeded,
    buckets: Annotated[bool, typer.Option("--buckets", help="Also one subset per ten percent, up to 60 %.")] = False,
    per_subset: Annotated[int, typer.Option(help="Masks drawn for each subset; 0 = all.", min=0)] = 1000,
    seed: Annotated[int, typer.Option(help="Of the draw and of the generator.")] = 0,
    out_: Annotated[
        str, typer.Option("--out", help="Folder or URL; shards go to OUT/high, OUT/low …")
    ] = "shards/masks",
    workers: Workers = None,
    on_error: Annotated[
        OnError, typer.Option(help="At a bad file: stop, or leave it out and count it.")
    ] = OnError.fail,
    plots: Annotated[
        Path | None, typer.Option(help="Draw a histogram and a contact sheet into this folder.", show_default=False)
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Split irregular masks by their hole fraction into keep-mask shards, high and low."""
    from msldata.build_masks import build_masks
    from msldata.display import progress_bar, show_histogram, show_manifest
    from msldata.masksources import select_mask_source
    from msldata.storage import open_storage

    masks = select_mask_source(_data_root(), source, generate=generate, size=size or 512, seed=seed)
    with progress_bar(err, "masks") as progress:
        build = build_masks(
            masks,
            open_storage(out_),
            order=order.value,
            threshold=threshold,
            polarity=polarity.value,
            per_subset=per_subset,
            seed=seed,
            buckets=buckets,
            size=size if generate is None else None,  # generated masks are drawn at their size
            num_workers=workers,
            on_error=on_error.value,
            overwrite=overwrite,
            progress=progress,
        )
    out.print(f"polarity: {build.polarity.explanation}", soft_wrap=True)
    show_histogram(out, "hole fraction of all masks read", build.histogram)
    for name, manifest in build.manifests.items():
        show_manifest(out, manifest, f"{out_}/{name}")
        if per_subset > manifest.num_samples:
            out.print(f"  asked for {per_subset:,}, the source has only {manifest.num_samples:,} of this kind")
    for note in build.notes:
        out.print(note, soft_wrap=True)
    if plots is not None:
        from msldata.maskplots import write_mask_plots

        for picture in write_mask_plots(plots, build, open_storage(out_)):
            out.print(f"[green]{picture}[/green]", soft_wrap=True)


@app.command(rich_help_panel="Data")
def verify(
    shards: Annotated[str, typer.Argument(help="A dataset folder or URL: images or keep masks.")],
    against: Annotated[
        str | None, typer.Option(help="A split that must share no image with it, as test with train.")
    ] = None,
    workers: Workers = None,
) -> None:
    """Check every byte of a dataset: checksums, index, images, labels, duplicates, leftover files."""
    from msldata.display import progress_bar, show_verification
    from msldata.storage import open_storage
    from msldata.verify import verify

    other = open_storage(against) if against else None
    with progress_bar(err, "verifying") as progress:
        result = verify(open_storage(shards), against=other, num_workers=workers, progress=progress)
    show_verification(out, result, shards)
    if result.findings:
        raise typer.Exit(2)


@app.command(rich_help_panel="Data")
def info(
    shards: Annotated[str, typer.Argument(help="A dataset folder or URL: images or keep masks.")],
    json_: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Say what is in a dataset: counts, labels and their pairs, sizes, objects, hole fractions."""
    from msldata.describe import describe
    from msldata.display import show_description
    from msldata.storage import open_storage

    about = describe(open_storage(shards))
    if json_:
        import json
        from dataclasses import asdict

        print(json.dumps(asdict(about), indent=2))
    else:
        show_description(out, about, shards)


@app.command(rich_help_panel="Data")
def preview(
    shards: Annotated[str, typer.Argument(help="A dataset folder or URL: images or keep masks.")],
    out_: Annotated[Path, typer.Option("--out", help="A .png contact sheet, or one .html page.")],
    num: Annotated[int, typer.Option(help="Samples shown, spread over the dataset.", min=1)] = 24,
    keep_masks: Annotated[
        str | None, typer.Option(help="Show also a keep mask of this dataset and the masked image.")
    ] = None,
) -> None:
    """Draw samples with labels and boxes, or keep masks, as a contact sheet or a page."""
    from msldata.preview import write_preview
    from msldata.storage import open_storage

    masks = open_storage(keep_masks) if keep_masks else None
    shown = write_preview(open_storage(shards), out_, num=num, keep_masks=masks)
    out.print(f"[green]{out_}[/green]: {shown:,} samples", soft_wrap=True)


@app.command(rich_help_panel="Data")
def doctor(
    shards: Annotated[str, typer.Option(help="Folder or URL of all shards.")] = "shards",
) -> None:
    """Say which datasets and shards are there, whether they are whole, and the next command for each."""
    from msldata.display import show_checks
    from msldata.doctor import examine_raw, examine_shards
    from msldata.storage import open_storage

    target = open_storage(shards)
    with err.status("counting what is there"):
        raw = examine_raw(_data_root(), target)
        built = examine_shards(target, raw)
    show_checks(out, f"raw datasets in {_data_root()} (MSL_DATA names another folder)", raw)
    show_checks(out, f"shards in {shards}", built)


@app.command(rich_help_panel="Data")
def synthesize(
    out_: Annotated[Path, typer.Option("--out", help="Folder that gets VOCdevkit/VOC2007.")],
    num_train: Annotated[int, typer.Option(help="Images of trainval.")] = 2000,
    num_test: Annotated[int, typer.Option(help="Images of test.")] = 500,
    size: Annotated[int, typer.Option(help="Side of the images in pixels.")] = 96,
    seed: Annotated[int, typer.Option(help="Of everything drawn.")] = 0,
    workers: Workers = None,
) -> None:
    """Draw a small dataset in VOC's own layout: overlapping, occluded and small objects."""
    from msldata.display import progress_bar
    from msldata.sources.synthetic import write_synthetic_voc

    with progress_bar(err, "drawing") as progress:
        write_synthetic_voc(
            out_,
            num_train=num_train,
            num_test=num_test,
            image_size=size,
            seed=seed,
            num_workers=workers,
            progress=progress,
        )
    out.print(f"[green]{out_}/VOCdevkit/VOC2007[/green]: {num_train:,} + {num_test:,} images", soft_wrap=True)


@app.command(rich_help_panel="Training")
def train(
    recipe: Annotated[str, typer.Option(help="What to train; `msl recipes` lists them.")],
    data: Annotated[str | None, typer.Option(help="Training shards: folder or URL; default: the recipe's.")] = None,
    keep_masks: Annotated[list[str] | None, typer.Option(help="Keep-mask shards; default: the recipe's.")] = None,
    run: Annotated[Path | None, typer.Option(help="Run folder; default: runs/RECIPE.", show_default=False)] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Change a field: section.field=value.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in the run folder.")] = False,
    gpus: Annotated[str, typer.Option(help="auto = all of this host, or a number.")] = "auto",
) -> None:
    """Train with the Siamese step, on one or many GPUs, and resume bit for bit."""
    import sys

    from msltrain import launch
    from msltrain.recipes import configure

    config = configure(recipe, train=data, keep_masks=keep_masks, settings=set_ or [])
    if (processes := launch.num_processes(gpus)) > 1:
        raise typer.Exit(launch.launch([__file__, *sys.argv[1:]], processes))
    from msltrain.display import TrainingDisplay
    from msltrain.trainer import train

    with TrainingDisplay(out, err) as display:
        result = train(config, run_dir=run or Path("runs", recipe), resume=resume, on_event=display.show)
    if result.best_epoch is not None:
        out.print(f"best validation mAP {100 * (result.validation_mAP or 0):.1f}, epoch {result.best_epoch + 1}")
    out.print(f"[green]{result.run_dir}[/green]: {result.num_steps:,} steps, {result.seconds:,.0f} s", soft_wrap=True)


@app.command(rich_help_panel="Training")
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


@app.command(rich_help_panel="Proof")
def evaluate(
    checkpoint: Annotated[Path | None, typer.Option(help="Checkpoint, or a run folder for its best one.")] = None,
    data: Annotated[str | None, typer.Option(help="Shards to evaluate on: folder or URL.")] = None,
    keep_masks: Annotated[list[str] | None, typer.Option(help="Hide parts of the images with these.")] = None,
    predictions: Annotated[
        Path | None, typer.Option(help="Measure this predictions file again; no model needed.")
    ] = None,
    out_: Annotated[Path | None, typer.Option("--out", help="Predictions file to write (parquet).")] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
    seed: Annotated[int, typer.Option(help="Chooses among the keep masks.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Predict every sample exactly once and measure as published: mAP, CP, CR, CF1, OP, OR, OF1."""
    from msldata.display import progress_bar
    from msldata.errors import UserError
    from msltrain.evaluate import evaluate, evaluate_predictions
    from msltrain.predictions import default_file

    if predictions is not None:
        _, metrics = evaluate_predictions(predictions)
        out_ = predictions
    elif checkpoint is None or data is None:
        raise UserError("say what to evaluate: --checkpoint RUN --data SHARDS, or --predictions FILE")
    else:
        out_ = out_ or default_file(checkpoint, data, keep_masks or [])
        with progress_bar(err, "evaluating") as progress:
            _, metrics = evaluate(
                checkpoint,
                data,
                keep_masks=keep_masks or [],
                out=out_,
                batch_size=batch_size,
                device=device,
                seed=seed,
                progress=progress,
            )
    table = Table(box=None, header_style="bold")
    summary = metrics.summary()
    for name in summary:
        table.add_column(name, justify="right")
    table.add_row(*(f"{100 * value:.2f}" for value in summary.values()))
    out.print(table)
    if metrics.absent_classes:
        out.print(f"left out of mAP, without positives: {', '.join(metrics.absent_classes)}")
    out.print(f"[green]{out_}[/green]: {metrics.num_samples:,} samples", soft_wrap=True)


class OutputFormat(StrEnum):
    table = "table"
    json = "json"
    csv = "csv"


@app.command(rich_help_panel="Proof")
def predict(
    inputs: Annotated[list[str], typer.Argument(help="Images, folders, patterns.")],
    checkpoint: Annotated[Path, typer.Option(help="Checkpoint, or a run folder for its best one.")],
    top_k: Annotated[int, typer.Option(help="Classes shown per image.", min=1)] = 5,
    threshold: Annotated[float | None, typer.Option(help="Only scores from this on, 0 to 1.")] = None,
    format_: Annotated[OutputFormat, typer.Option("--format", help="How to print.")] = OutputFormat.table,
    on_error: Annotated[OnError, typer.Option(help="At an unreadable image: stop, or leave it out.")] = OnError.fail,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Say what photographs show."""
    from msltrain.predict import predict_images

    found = predict_images(checkpoint, inputs, top_k=top_k, threshold=threshold, device=device, on_error=on_error.value)
    if format_ is OutputFormat.json:
        import json

        for image in found:
            print(json.dumps({"file": image.file, "scores": dict(image.scores), "error": image.error}))
    elif format_ is OutputFormat.csv:
        import csv
        import sys

        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(("file", "class", "score"))
        writer.writerows((image.file, name, f"{score:.6f}") for image in found for name, score in image.scores)
    else:
        for image in found:
            scores = "  ".join(f"{name} {100 * score:.0f} %" for name, score in image.scores)
            out.print(f"{image.file}  {scores or image.error or 'nothing above the threshold'}", soft_wrap=True)
    if failed := [image for image in found if image.error]:
        err.print(f"{len(failed)} of {len(found)} images could not be read: {failed[0].file}: {failed[0].error}")


@app.command()
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


def main() -> None:
    """Entry point of ``msl`` and of ``python cli.py``."""
    app()


if __name__ == "__main__":
    main()
