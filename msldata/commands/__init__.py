"""The commands of `msldata`: parse, call one function, show the result. ``msldata/__main__.py`` lists them."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

Workers = Annotated[int | None, typer.Option(help="Processes; default: one per core.", min=1, show_default=False)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Start over where another build was.")]

Yes = Annotated[
    bool, typer.Option("--yes", help="With --overwrite: replace even a dataset of other classes or another source.")
]


def local_path(text: str | Path) -> Path:
    """The path that an option names, for what is written to a local disk alone.

    Raises:
        BadParameter: an address, which as a path would be a folder called ``s3:``.
    """
    if "://" in str(text):  # a default comes as a path
        raise typer.BadParameter(f"{text}: this is written to a local disk only; name a local path, and copy it there")
    return Path(text)


def data_root() -> Path:
    """Where to look for raw datasets when no --source is given."""
    return Path(os.environ.get("MSL_DATA", "datasets"))


def command_without(option: str, arguments: Sequence[str]) -> str:
    """The command line that is running, to be typed again without one of its options."""
    program, *others = arguments
    start = ["python", program] if program.endswith(".py") else [Path(program).name]
    return shlex.join([*start, *(argument for argument in others if argument != option)])
