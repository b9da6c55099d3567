"""``predict``, ``serve``, ``export``: what a trained model says of photographs, and how to take it elsewhere."""

from __future__ import annotations

import shlex
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from msldata.commands import local_path
from msldata.console import OnError, err, next_step, out, show
from msldata.errors import counted, few_of
from msldata.progress import progress_bar, working
from msltrain.commands.options import (
    BatchSize,
    Classes,
    DecimalComma,
    Device,
    Model,
    OnDevice,
    Recipe,
    RunArgument,
    RunArguments,
    SomeCheckpoint,
    SomeCheckpoints,
    Thresholds,
    check_models,
    named_models,
    run_place,
)


class OutputFormat(StrEnum):
    table = "table"
    json = "json"
    csv = "csv"
    wide = "wide"
    parquet = "parquet"
    fiftyone = "fiftyone"


def predict(
    context: typer.Context,
    inputs: Annotated[
        list[str],
        typer.Argument(
            help="Run, in runs/ by its name, where --checkpoint names none; then images, folders, patterns, URLs, "
            "shards, lists of them.",
            metavar="[RUN] PHOTOS...",
        ),
    ],
    checkpoint: SomeCheckpoint = None,
    recipe: Recipe = "",
    model: Model = "",
    classes: Classes = "",
    top_k: Annotated[
        str | None,
        typer.Option(help="Classes shown per image: a number, or all.", show_default="5; all for --format wide"),
    ] = None,
    threshold: Thresholds = None,
    keep_mask: Annotated[Path | None, typer.Option(help="Mask file: predict also with this part hidden.")] = None,
    polarity: Annotated[str, typer.Option(help="Of the mask file: hole-white or hole-black.")] = "",
    cam: Annotated[
        Path | None, typer.Option(help="Folder for pictures of where the classes are seen.", parser=local_path)
    ] = None,
    format_: Annotated[
        OutputFormat | None,
        typer.Option(
            "--format",
            help="Default: by the suffix of --out, else a table. csv has a row per photograph and class, wide is CSV "
            "with a row per photograph.",
        ),
    ] = None,
    decimal_comma: DecimalComma = False,
    out_: Annotated[
        Path | None, typer.Option("--out", help="File to write; a stopped run goes on with it.", parser=local_path)
    ] = None,
    on_error: Annotated[
        OnError, typer.Option(help="At an unreadable image: stop, or leave it out (exit code 1).")
    ] = OnError.skip,
    batch_size: BatchSize = 32,
    device: Device = OnDevice.auto,
    processes: Annotated[str, typer.Option(help="That share the work: a number, or auto for one per GPU.")] = "1",
) -> None:
    """Say what photographs show, where it is seen, and what hiding a part changes: msl predict RUN PHOTOS."""
    import sys

    from msldata.errors import UserError, neighbour
    from msltrain.hosts import launch
    from msltrain.hosts.rank_output import is_first_process
    from msltrain.measures.asked_thresholds import read_thresholds
    from msltrain.runs.find_checkpoint import Foreign
    from msltrain.use.output_formats import Printer, Table, describe, format_of
    from msltrain.use.read_images import find_images

    if checkpoint is None:
        run, *inputs = inputs
        if not inputs:
            raise UserError(
                f"{run}: a run, or photographs? Name both: msl predict RUN PHOTOS, or --checkpoint PLACE PHOTOS"
            )
        _check_order(context, run, inputs[0])
        checkpoint = run
    checkpoint = run_place(checkpoint)
    check_models([checkpoint])
    thresholds = read_thresholds(threshold or ())
    if keep_mask is not None and not keep_mask.expanduser().is_file():
        raise FileNotFoundError(f"{keep_mask}: no such mask file{neighbour(keep_mask)}")
    kind = format_of(format_.value if format_ else None, out_)
    num_shown = _top_k(top_k, kind)
    table = Table(decimal_comma)
    table.check(kind)
    printer = Printer(kind, out, table)
    say = (lambda text: show(err, f"note: {text}", wrap=True)) if is_first_process() else lambda text: None
    if (number := launch.num_processes(processes, device)) > 1:
        raise typer.Exit(launch.launch(sys.argv[1:], number))
    pictures = find_images(inputs, say)
    with working("starting"):  # it takes seconds to import torch
        from msltrain.use.predict import Asked
        from msltrain.use.predict_many import predict_many

    asked = Asked(
        top_k=num_shown, keep_mask=keep_mask, polarity=polarity, on_error=on_error.value, batch_size=batch_size
    )
    try:
        with progress_bar("predicting") as progress:
            found = predict_many(
                checkpoint,
                pictures,
                asked,
                foreign=Foreign(recipe=recipe, model=model),
                classes=_named(classes),
                threshold=thresholds,
                overlays=cam,
                device=device,
                out=out_,
                kind=kind,
                decimal_comma=decimal_comma,
                show=printer.show,
                progress=progress,
                note=say,
            )
    except KeyboardInterrupt:
        kept = "the answers so far are kept, and the same command goes on"
        show(err, f"\nstopped; {kept if out_ else f'with --out FILE {kept}'}", wrap=True)
        raise typer.Exit(130) from None
    if not is_first_process():
        return
    if out_ is not None:
        highest = ""
        if num_shown is not None and found.num_scores < found.num_classes:
            highest = f", the {found.num_scores} highest of {found.num_classes} classes each; --top-k all writes all"
        show(out, (out_, "green"), f": {counted(found.num_images, 'image')}{highest}")
    if cam is not None:
        show(err, (cam, "green"), f": {counted(found.num_drawn, 'picture')}")
    if found.threshold_origin:
        show(err, f"thresholds: {found.threshold_origin}")
    if found.num_empty:
        of = f"{found.num_empty:,} of {counted(found.num_images - found.num_failed, 'photograph')}"
        lower = f"--threshold {found.lower_threshold:.2g}"
        show(
            err,
            f"note: in {of} no class reaches its threshold, which is right where none of the classes is there; "
            f"{lower}, for one, names more, and more that is not there",
            wrap=True,
        )
    if words := describe(found):
        err.print(words, markup=False, soft_wrap=True)
        raise typer.Exit(1)


def _check_order(context: typer.Context, first: str, second: str) -> None:
    """Raise UserError where a run comes second and something else first, with the command that was meant."""
    from msldata.commands.program import typed_words
    from msldata.errors import UserError
    from msltrain.runs.find_checkpoint import is_model
    from msltrain.runs.run_places import find_run

    if is_model(find_run(first)) or not is_model(find_run(second)):
        return
    words = typed_words(context)
    if first in words and second in words:
        one, other = words.index(first), words.index(second)
        words[one], words[other] = second, first
    raise UserError(f"{first} is no run, and {second} is one: the run comes first: {shlex.join(words)}")


def _top_k(text: str | None, kind: str) -> int | None:
    """What ``--top-k`` asks for; None: all classes, for which a table has a column each."""
    from msldata.errors import UserError

    if text is None:
        return None if kind == "wide" else 5
    if text == "all":
        return None
    if kind == "wide":
        raise UserError("--format wide has a column for each class; leave --top-k out")
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"--top-k is '{text}'; give a number from 1 on, or all")
    return int(text)


def serve(
    runs: RunArguments = None,
    checkpoint: SomeCheckpoints = None,
    recipe: Recipe = "",
    model: Model = "",
    classes: Classes = "",
    name: Annotated[list[str] | None, typer.Option(help="Names of the models, in the same order.")] = None,
    port: Annotated[int, typer.Option(help="0: any free one.", min=0, max=65535)] = 8765,
    host: Annotated[str, typer.Option(help="Address to listen on; by default only this machine can.")] = "127.0.0.1",
    examples: Annotated[
        list[str] | None,
        typer.Option(
            help="Photographs to offer: folder, pattern, URL, shards.", show_default="test shards, if they are here"
        ),
    ] = None,
    threshold: Thresholds = None,
    device: Device = OnDevice.auto,
) -> None:
    """Open a local page: drop a photograph, paint over a part, and watch what one model or several make of it."""
    from msldata.errors import UserError
    from msltrain.measures.asked_thresholds import read_thresholds
    from msltrain.runs.find_checkpoint import Foreign
    from msltrain.runs.run_places import local_test_shards
    from msltrain.use.read_images import find_images

    models = named_models(runs, checkpoint, "serve")
    if name and len(name) != len(models):
        both = f"{counted(len(models), 'model')} and {counted(len(name), 'name')}"
        raise UserError(f"{both}; give --name once per --checkpoint")
    check_models(models)
    thresholds = read_thresholds(threshold or ())
    pictures = find_images(examples) if examples else []
    with working("starting"):  # it takes seconds to import torch
        from msltrain.hosts.distributed import process_group
        from msltrain.use.photo_session import Studio, readable_examples
        from msltrain.use.predict import Predictor
        from msltrain.use.serve import StudioServer

    with process_group(device) as ranks:
        with working(f"loading {counted(len(models), 'model')}"):
            predictors = [
                Predictor(
                    one,
                    ranks.device,
                    foreign=Foreign(recipe=recipe, model=model),
                    classes=_named(classes),
                )
                for one in models
            ]
        # Models may have other classes than each other: one that any of them knows is no slip.
        thresholds.require(list(dict.fromkeys(name for predictor in predictors for name in predictor.classes)))
        for predictor in predictors:
            predictor.use(thresholds.among(predictor.classes))
        if not examples and (test := local_test_shards(predictors[0].trained_on)):
            pictures = find_images([test])
            show(err, f"examples: {test}")
        with working("looking at the examples"):
            pictures, broken = readable_examples(pictures)
        if broken:
            reasons = few_of([f"{error.file} ({error.reason})" for error in broken])
            show(err, f"note: left out of the examples, as it cannot be read: {reasons}", wrap=True)
        studio = Studio(predictors, pictures, name or ())
        with StudioServer(studio, host, port) as server:
            if not server.is_local:
                show(err, (f"{host}: everyone who reaches this address can use the page", "yellow"))
            with server.stopping_on_signals():
                show(out, (server.url, "green"), "  stop with Ctrl-C")
                for called, predictor in zip(studio.names, predictors, strict=True):
                    who = f"{called}: " if len(predictors) > 1 else ""
                    if predictor.unfinished:
                        show(err, f"note: {predictor.unfinished}", wrap=True)
                    show(out, f"{who}thresholds: {predictor.threshold_origin}")
                server.serve_forever()
            out.print("stopped")


class ExportFormat(StrEnum):
    safetensors = "safetensors"
    torch_export = "torch-export"
    onnx = "onnx"


def export(
    run: RunArgument = None,
    checkpoint: SomeCheckpoint = None,
    out_: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for the files; default: export in the run's.", parser=local_path),
    ] = None,
    recipe: Recipe = "",
    model: Model = "",
    classes: Classes = "",
    format_: Annotated[
        list[ExportFormat] | None, typer.Option("--format", help="Repeat it; default: all three.")
    ] = None,
    from_pixels: Annotated[
        bool,
        typer.Option("--from-pixels", help="Let the graphs take uint8 pixels of any size, squash and normalise them."),
    ] = False,
    opset: Annotated[int | None, typer.Option(help="Of ONNX; default: 18, which onnxruntime 1.15 loads.")] = None,
    images: Annotated[
        list[str] | None, typer.Option(help="Photographs to compare on (default: patterns); with --space: to offer.")
    ] = None,
    space: Annotated[
        bool, typer.Option("--space", help="Instead, a folder for a Hugging Face Space: a page to try the model on.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another model's export.")] = False,
) -> None:
    """Write a model for use elsewhere, and check each file against the original."""
    from msldata.errors import UserError
    from msltrain.runs.find_checkpoint import Foreign
    from msltrain.runs.run_places import run_folder

    [place] = named_models(run and [run], checkpoint and [checkpoint], "export")
    check_models([place])
    if out_ is None:
        if "://" in place:
            raise UserError(f"{place}: a remote run; say with --out where the files go")
        out_ = run_folder(place) / ("space" if space else "export")
    folder = out_
    with working("starting"):  # it takes seconds to import torch
        from msltrain.hub.space import make_space
        from msltrain.use.export import Exported, export_model
        from msltrain.use.export_formats import FORMATS, OPSET

    if space:
        if format_ or from_pixels or opset:
            raise UserError("--space has its own files; leave --format, --from-pixels and --opset out")
        with working("writing the page and the model"):
            made = make_space(
                place,
                folder,
                foreign=Foreign(recipe=recipe, model=model),
                classes=_named(classes),
                images=images or (),
            )
        show(out, (made / "app.py", "green"), ": the page; with gradio installed `python app.py` shows it here")
        next_step(f"msl push {shlex.quote(str(folder))} OWNER/NAME")
        return

    def show_file(done: Exported) -> None:
        what = counted(done.num_images, "photograph" if images else "drawn pattern")
        compared = f"logits differ by at most {done.max_difference:.1e} on {what}"
        show(out, (folder / done.file, "green"), f": {compared}, alone and as a batch")

    failed: list[str] = []
    wanted = [one for one in FORMATS if format_ is None or one in {chosen.value for chosen in format_}]
    with working(f"writing {', '.join(wanted)}, and comparing each with the model"):
        export_model(
            place,
            folder,
            foreign=Foreign(recipe=recipe, model=model),
            classes=_named(classes),
            formats=wanted,
            from_pixels=from_pixels,
            opset=opset or OPSET,
            images=images or (),
            overwrite=overwrite,
            on_done=show_file,
            on_failed=failed.append,
        )
    show(out, (folder / "README.md", "green"), ": the model card; model.py beside it runs it without this program")
    for reason in failed:
        show(err, ("left out:", "red"), f" {reason}")
    if failed:
        raise typer.Exit(1)
    next_step(f"msl serve {shlex.quote(str(run or checkpoint))}")


def push(
    context: typer.Context,
    place: Annotated[
        str,
        typer.Argument(help="Run (in runs/ by its name), export, Space folder, or shards.", metavar="RUN|FOLDER"),
    ],
    repo: Annotated[str, typer.Argument(help="Repository on the Hugging Face hub.", metavar="OWNER/NAME")],
    private: Annotated[bool, typer.Option("--private", help="Show a new repository to nobody else.")] = False,
) -> None:
    """Publish a model, a dataset or a Space on the Hugging Face hub, with its card."""
    if "/" not in repo:
        _check_order(context, place, repo)
    from msltrain.hub.push import push

    place = run_place(place)
    page = push(place, repo, private=private, note=lambda text: show(err, text))
    show(out, (page, "green"))
    if "/datasets/" in page:
        next_step(f"msl train hf://datasets/{repo}")
    elif "/spaces/" not in page:
        next_step(f"msl predict hf://{repo} PHOTOS")


def _named(classes: str) -> tuple[str, ...]:
    """What ``--classes`` names; nothing where it was not given."""
    from msltrain.runs.other_checkpoints import read_classes

    return read_classes(classes) if classes else ()
