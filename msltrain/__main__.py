"""``msl``, ``python -m msltrain`` and ``python cli.py``: all commands, those of msldata included.

What a command takes and shows is in ``msldata/commands`` and ``msltrain/commands``.
"""

from __future__ import annotations

from msldata.__main__ import DATA_COMMANDS
from msldata.commands.program import make_program
from msltrain.commands import bench_stream, evaluate, grids, report, train, use

app = make_program(
    "Multi-label recognition of small and occluded objects: shards in, a trained and explained model out.",
    {
        "Data": DATA_COMMANDS,
        "Training": (
            train.train,
            train.recipes,
            train.demo,
            train.import_checkpoint,
            bench_stream.bench_stream,
        ),
        "Proof": (
            evaluate.evaluate,
            evaluate.robustness,
            report.report,
            grids.ablate,
            grids.reproduce,
            use.predict,
            use.serve,
            use.export,
        ),
    },
)


def main() -> None:
    """Run the command line."""
    app(prog_name="msl")


if __name__ == "__main__":
    main()
