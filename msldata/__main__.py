"""``python -m msldata``: the data commands alone, for machines without torch."""

from __future__ import annotations

from msldata.commands import build, inspect, obtain
from msldata.commands.program import make_program, run_program

DATA_COMMANDS = (
    obtain.download,
    build.build_shards,
    build.build_masks,
    build.index,
    inspect.verify,
    inspect.info,
    inspect.preview,
    inspect.doctor,
    obtain.synthesize,
)

app = make_program("Labelled photographs and irregular masks in, WebDataset shards out.", {"Data": DATA_COMMANDS})


def main() -> None:
    """Run the command line."""
    run_program(app, "python -m msldata")


if __name__ == "__main__":
    main()
