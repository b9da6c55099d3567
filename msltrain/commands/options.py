"""Options that several commands take: declared once, so that they mean one thing everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
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
DecimalComma = Annotated[
    bool,
    typer.Option("--decimal-comma", help="CSV for spreadsheets in German, French …: 0,93, and ; between the cells."),
]


def run_place(text: str) -> str:
    """The place that an option or argument for a checkpoint names; ``mine`` is ``runs/mine`` too.

    Raises:
        UserError: a file of a model that is none by itself.
    """
    from msltrain.runs.find_checkpoint import refuse_part
    from msltrain.runs.run_places import find_run

    refuse_part(place := find_run(text))
    return place


def named_models(arguments: Sequence[str] | None, options: Sequence[str] | None, command: str) -> list[str]:
    """The places of the models that a command is about, as its arguments or --checkpoint name them.

    Raises:
        UserError: none is named, or some are in either way.
    """
    from msldata.errors import UserError

    if arguments and options:
        raise UserError(f"the model is named twice: {arguments[0]} and --checkpoint {options[0]}")
    if not (named := arguments or options):
        raise UserError(f"name a model: msl {command} RUN, a run of yours by its name, or --checkpoint PLACE")
    return [run_place(one) for one in named]


def check_models(places: Sequence[str]) -> None:
    """Look whether models are there, before torch is imported, which takes seconds. Raises what loading them would."""
    from msltrain.runs.find_checkpoint import check_model
    from msltrain.runs.run_places import find_series

    for place in places:
        models: list[str | Path] = [*find_series(place)] or [place]
        for one in models:
            check_model(one)


def check_datasets(shards: str | None, keep_masks: Sequence[str] | None) -> None:
    """Look whether the data that models are measured on are there, as `check_models` does."""
    from msltrain.measures.predictions import keep_mask_fingerprints
    from msltrain.stream.samples.shardset import open_images

    if shards is not None:
        open_images(shards)
    keep_mask_fingerprints(keep_masks or ())


def shards_to_measure(data: str | None, model: str, *, held_out: bool = False) -> str | None:
    """The shards that ``--data`` names, a dataset by its name as well; left out, the test shards of what the model was
    trained on. None where there are none, and with ``held_out``, whose photographs the run itself knows."""
    from msltrain.runs.run_places import find_evaluation_shards, find_series

    if data is not None:
        return find_evaluation_shards(data, held_out=held_out)
    if held_out:
        return None
    from msltrain.runs.find_checkpoint import test_shards

    return test_shards(next(iter(find_series(model)), model))


_CHECKPOINT = ("--checkpoint", "--run")
"""What was trained: a run stands for its best checkpoint, so these are two names of one option."""

RunArgument = Annotated[
    str | None,
    typer.Argument(help="Run, in runs/ by its name; the same as --checkpoint.", show_default=False),
]
SomeCheckpoint = Annotated[
    str | None, typer.Option(*_CHECKPOINT, help="Run or checkpoint, folder or URL; or a weights file.")
]
RunArguments = Annotated[
    list[str] | None,
    typer.Argument(
        help="Runs, in runs/ by their names, the reference (baseline) first; the same as --checkpoint.",
        show_default=False,
        metavar="[RUN]...",
    ),
]
SomeCheckpoints = Annotated[
    list[str] | None,
    typer.Option(*_CHECKPOINT, help="Run or checkpoint, folder or URL; or a weights file. Repeat it to compare."),
]
MeasuredShards = Annotated[
    str | None,
    typer.Option(
        help="Shards to evaluate on: dataset in shards/ by its name, folder or URL.",
        show_default="the test shards beside the (first) model's training ones",
    ),
]
"""See `shards_to_measure`."""
AnyCheckpoints = Annotated[
    list[str],
    typer.Option(
        *_CHECKPOINT,
        help="Run or checkpoint, folder or URL; repeat it. The settings are those of the last.",
        parser=run_place,
        metavar="TEXT",
    ),
]


class OnDevice(StrEnum):
    """Values of ``--device``."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


Device = Annotated[OnDevice, typer.Option(help="auto = a GPU, where there is one.")]
BatchSize = Annotated[int, typer.Option(help="Images at a time.", min=1)]
Seed = Annotated[int, typer.Option(help="Chooses among the keep masks.")]
Thresholds = Annotated[
    list[str] | None,
    typer.Option(
        "--threshold",
        help="Predicted from this score on, 0.4 for every class or Wolf=0.3 for one; repeat it.",
        show_default="tuned ones (evaluate --held-out), else 0.5",
        metavar="[CLASS=]SCORE",
    ),
]
Cache = Annotated[Path | None, typer.Option(help="Keep remote shards in this local folder.")]
CacheLimit = Annotated[str, typer.Option(help="What the cache may take.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, and nothing else.")]
Processes = Annotated[
    str, typer.Option(help="auto = one per GPU of this host, or a number; on CPUs any.", show_default=True)
]
