"""``evaluate``, ``predict``: what a trained model knows, in numbers and on photographs."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from msldata.console import OnError, err, gigabytes, out, progress_bar


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
    cache: Annotated[Path | None, typer.Option(help="Keep remote shards in this local folder.")] = None,
    cache_limit: Annotated[str, typer.Option(help="What the cache may take.")] = "50GB",
    on_sample_error: Annotated[
        OnError, typer.Option(help="At a damaged sample: stop, or leave it out and list it.")
    ] = OnError.fail,
) -> None:
    """Predict every sample exactly once and measure as published: mAP, CP, CR, CF1, OP, OR, OF1."""
    from msldata.errors import UserError
    from msltrain.evaluate import evaluate, evaluate_predictions
    from msltrain.predictions import default_file

    if predictions is not None:
        found, metrics = evaluate_predictions(predictions)
        out_ = predictions
    elif checkpoint is None or data is None:
        raise UserError("say what to evaluate: --checkpoint RUN --data SHARDS, or --predictions FILE")
    else:
        out_ = out_ or default_file(checkpoint, data, keep_masks or [])
        with progress_bar("evaluating") as progress:
            found, metrics = evaluate(
                checkpoint,
                data,
                keep_masks=keep_masks or [],
                out=out_,
                batch_size=batch_size,
                device=device,
                seed=seed,
                progress=progress,
                cache="" if cache is None else str(cache),
                cache_limit_gb=gigabytes(cache_limit),
                on_sample_error=on_sample_error.value,
            )
    table = Table(box=None, header_style="bold")
    summary = metrics.summary()
    for name in summary:
        table.add_column(name, justify="right")
    table.add_row(*(f"{100 * value:.2f}" for value in summary.values()))
    out.print(table)
    if metrics.absent_classes:
        out.print(f"left out of mAP, without positives: {', '.join(metrics.absent_classes)}")
    if skipped := found.origin.skipped:
        err.print(f"{len(skipped)} bad samples were left out:")
        for sample in skipped:
            err.print(f"  {sample}", markup=False, soft_wrap=True)
    out.print(f"[green]{out_}[/green]: {metrics.num_samples:,} samples", soft_wrap=True)


class OutputFormat(StrEnum):
    table = "table"
    json = "json"
    csv = "csv"


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
