"""``predict``, ``serve``, ``export``: what a trained model says of photographs, and how to take it elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from msldata.commands import local_path
from msldata.console import OnError, err, out, progress_bar, show, standard_output, visible
from msltrain.commands.options import AnyCheckpoint, Classes, Model, Recipe

Progress = Callable[[int, int], None]


class OutputFormat(StrEnum):
    table = "table"
    json = "json"
    csv = "csv"
    parquet = "parquet"


def predict(
    inputs: Annotated[list[str], typer.Argument(help="Images, folders, patterns, URLs, shards.")],
    checkpoint: AnyCheckpoint,
    recipe: Recipe = "",
    model: Model = "",
    classes: Classes = "",
    top_k: Annotated[str, typer.Option(help="Classes shown per image: a number, or all.")] = "5",
    threshold: Annotated[
        float | None,
        typer.Option(help="Predicted from this score on; default: tuned ones (evaluate --held-out), else 0.5."),
    ] = None,
    keep_mask: Annotated[Path | None, typer.Option(help="Mask file: predict also with this part hidden.")] = None,
    polarity: Annotated[str, typer.Option(help="Of the mask file: hole-white or hole-black.")] = "",
    cam: Annotated[
        Path | None, typer.Option(help="Folder for pictures of where the classes are seen.", parser=local_path)
    ] = None,
    format_: Annotated[
        OutputFormat | None, typer.Option("--format", help="Default: by the suffix of --out, else a table.")
    ] = None,
    out_: Annotated[
        Path | None, typer.Option("--out", help="File to write instead of printing.", parser=local_path)
    ] = None,
    on_error: Annotated[OnError, typer.Option(help="At an unreadable image: stop, or leave it out.")] = OnError.fail,
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Say what photographs show, where it is seen, and what hiding a part changes."""
    from msldata.errors import UserError
    from msltrain.runs.other_checkpoints import Foreign
    from msltrain.runs.places import find_series
    from msltrain.use.output_formats import describe, encode, format_of
    from msltrain.use.predict import ImagePrediction, predict_images
    from msltrain.use.series import combine

    kind = format_of(format_.value if format_ else None, out_)
    runs = find_series(checkpoint)
    if runs and cam is not None:
        raise UserError(f"{checkpoint}: a series of {len(runs)} runs; --cam shows one network, name RUN/{runs[0].name}")

    def one_run(run: str | Path, progress: Progress) -> list[ImagePrediction]:
        return predict_images(
            run,
            inputs,
            foreign=Foreign(recipe=recipe, model=model),
            classes=_named(classes),
            top_k=None if runs else _top_k(top_k),
            threshold=threshold,
            keep_mask=keep_mask,
            polarity=polarity,
            overlays=cam,
            device=device,
            on_error=on_error.value,
            batch_size=batch_size,
            progress=progress,
        )

    versions = []
    for run in runs or (checkpoint,):
        with progress_bar(f"predicting {Path(run).name}" if runs else "predicting") as progress:
            versions.append(one_run(run, progress))
    found = combine(versions, _top_k(top_k)) if runs else versions[0]
    data = encode(found, kind)
    if out_ is not None:
        from msldata.storage import LocalStorage

        LocalStorage(out_.parent).put(out_.name, data)
        show(out, (out_, "green"), f": {len(found):,} images")
    else:
        text = data.decode()
        standard_output.write(visible(text) if standard_output.isatty() else text)
    if cam is not None:
        num_drawn = sum(bool(image.overlay) for image in found)
        show(err, (cam, "green"), f": {num_drawn:,} pictures")
    if origin := next((image.threshold_origin for image in found if image.threshold_origin), ""):
        show(err, f"thresholds: {origin}")
    if words := describe(found):
        err.print(words, markup=False, soft_wrap=True)


def _top_k(text: str) -> int | None:
    """What ``--top-k`` asks for; None: all classes."""
    from msldata.errors import UserError

    if text == "all":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"--top-k is '{text}'; give a number from 1 on, or all")
    return int(text)


def serve(
    checkpoint: AnyCheckpoint,
    recipe: Recipe = "",
    model: Model = "",
    classes: Classes = "",
    port: Annotated[int, typer.Option(help="0: any free one.", min=0, max=65535)] = 8765,
    host: Annotated[str, typer.Option(help="Address to listen on; by default only this machine can.")] = "127.0.0.1",
    examples: Annotated[
        list[str] | None, typer.Option(help="Photographs to offer: folder, pattern, URL, shards.")
    ] = None,
    threshold: Annotated[float | None, typer.Option(help="As in predict.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Open a local page: drop a photograph, paint over a part, and watch the predictions change."""
    from msltrain.hosts.distributed import process_group
    from msltrain.runs.other_checkpoints import Foreign
    from msltrain.use.predict import Predictor
    from msltrain.use.read_images import find_images
    from msltrain.use.serve import StudioServer
    from msltrain.use.studio import Studio

    pictures = find_images(examples) if examples else []
    with process_group(device) as ranks:
        predictor = Predictor(
            checkpoint,
            ranks.device,
            threshold=threshold,
            foreign=Foreign(recipe=recipe, model=model),
            classes=_named(classes),
        )
        studio = Studio(predictor, pictures)
        with StudioServer(studio, host, port) as server:
            if not server.is_local:
                show(err, (f"{host}: everyone who reaches this address can use the page", "yellow"))
            with server.stopping_on_signals():
                show(out, (server.url, "green"), "  stop with Ctrl-C")
                show(out, f"thresholds: {predictor.threshold_origin}")
                server.serve_forever()
            out.print("stopped")


class ExportFormat(StrEnum):
    safetensors = "safetensors"
    torch_export = "torch-export"
    onnx = "onnx"


def export(
    checkpoint: AnyCheckpoint,
    out_: Annotated[Path, typer.Option("--out", help="Folder for the files.", parser=local_path)],
    recipe: Recipe = "",
    model: Model = "",
    classes: Classes = "",
    format_: Annotated[
        list[ExportFormat] | None, typer.Option("--format", help="Repeat it; default: all three.")
    ] = None,
    from_pixels: Annotated[
        bool, typer.Option("--from-pixels", help="Let the graphs take uint8 pixels and normalise them.")
    ] = False,
    images: Annotated[list[str] | None, typer.Option(help="Photographs to compare on; default: patterns.")] = None,
) -> None:
    """Write a model for use elsewhere, and check each file against the original."""
    from msltrain.runs.other_checkpoints import Foreign
    from msltrain.use.export import FORMATS, Exported, export_model

    def show_file(done: Exported) -> None:
        compared = f"logits differ by at most {done.max_difference:.1e} on {done.num_images} images"
        show(out, (done.file, "green"), f": {compared}, alone and as a batch")

    wanted = [one for one in FORMATS if format_ is None or one in {chosen.value for chosen in format_}]
    export_model(
        checkpoint,
        out_,
        foreign=Foreign(recipe=recipe, model=model),
        classes=_named(classes),
        formats=wanted,
        from_pixels=from_pixels,
        images=images or (),
        on_done=show_file,
    )
    show(out, (out_ / "README.md", "green"), ": the model card")


def _named(classes: str) -> tuple[str, ...]:
    """What ``--classes`` names; nothing where it was not given."""
    from msltrain.runs.other_checkpoints import read_classes

    return read_classes(classes) if classes else ()
