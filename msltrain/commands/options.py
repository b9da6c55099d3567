"""Options that several commands take: declared once, so that they mean one thing everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Recipe = Annotated[
    str, typer.Option(help="For a released file (MSL, CSRA, ML-Decoder, Query2Label, ASL): the recipe it belongs to.")
]
Model = Annotated[str, typer.Option(help="For a plain classifier's file: its timm name.")]
Classes = Annotated[
    str, typer.Option(help="For such a file: its classes in order; shards, or a text file with one per line.")
]


def run_place(text: str) -> str:
    """The place that an option or argument for a checkpoint names; ``mine`` is ``runs/mine`` too."""
    from msltrain.runs.run_places import find_run

    return find_run(text)


_CHECKPOINT = ("--checkpoint", "--run")
"""What was trained: a run stands for its best checkpoint, so these are two names of one option."""

AnyCheckpoint = Annotated[
    str,
    typer.Option(
        *_CHECKPOINT,
        help="Run (its best checkpoint, in runs/ by its name) or checkpoint, folder or URL; or a weights file.",
        parser=run_place,
        metavar="TEXT",
    ),
]
SomeCheckpoint = Annotated[
    str | None, typer.Option(*_CHECKPOINT, help="Run or checkpoint, folder or URL; or a weights file.")
]
RunArgument = Annotated[
    str | None,
    typer.Argument(help="Run, in runs/ by its name; the same as --checkpoint.", show_default=False),
]
AnyCheckpoints = Annotated[
    list[str],
    typer.Option(
        *_CHECKPOINT,
        help="As for evaluate; repeat it to compare: the reference (baseline) first.",
        parser=run_place,
        metavar="TEXT",
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
BatchSize = Annotated[int, typer.Option(help="Images at a time.", min=1)]
Seed = Annotated[int, typer.Option(help="Chooses among the keep masks.")]
Cache = Annotated[Path | None, typer.Option(help="Keep remote shards in this local folder.")]
CacheLimit = Annotated[str, typer.Option(help="What the cache may take.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, and nothing else.")]
Processes = Annotated[
    str, typer.Option(help="auto = one per GPU of this host, or a number; on CPUs any.", show_default=True)
]
