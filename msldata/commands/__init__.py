"""The commands of `msldata`: each parses, calls one function and shows the result. ``cli.py`` puts them together."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

Workers = Annotated[int | None, typer.Option(help="Processes; default: one a core.", min=1, show_default=False)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Start over where another build was.")]


def data_root() -> Path:
    """Where raw datasets are looked for when no --source is given."""
    return Path(os.environ.get("MSL_DATA", "datasets"))
