"""Options that several commands take."""

from __future__ import annotations

from typing import Annotated

import typer

Recipe = Annotated[str, typer.Option(help="For a released MSL or CSRA file: the recipe it belongs to.")]
Model = Annotated[str, typer.Option(help="For a plain classifier's file: its timm name.")]
Classes = Annotated[
    str, typer.Option(help="For such a file: its classes in order; shards, or a text file with one per line.")
]


def run_place(text: str) -> str:
    """The place that an option or argument for a checkpoint names; ``mine`` is ``runs/mine`` too."""
    from msltrain.runs.places import find_run

    return find_run(text)


AnyCheckpoint = Annotated[
    str,
    typer.Option(
        help="Run (its best checkpoint, in runs/ by its name) or checkpoint, folder or URL; or a weights file.",
        parser=run_place,
        metavar="TEXT",
    ),
]
Processes = Annotated[
    str, typer.Option(help="auto = one per GPU of this host, or a number; on CPUs any.", show_default=True)
]
