"""``msl``, ``python -m msltrain`` and ``python cli.py``: all commands, those of msldata included.

What a command takes and shows is in ``msldata/commands`` and ``msltrain/commands``.
"""

from __future__ import annotations

import logging
from typing import ClassVar

from msldata.__main__ import DATA_COMMANDS
from msldata.commands.program import Commands, make_program, run_program
from msldata.console import err, show
from msltrain.commands import bench_stream, evaluate, grids, recipes, report, train, use
from msltrain.hosts.rank_output import may_speak, quiet_others


class _OfSeveral(Commands):
    """Run the same in every process of a launcher, only one of which prints."""

    after_stop: ClassVar = {
        **Commands.after_stop,
        **dict.fromkeys(("demo", "robustness", "ablate", "reproduce"), "the same command goes on where it was"),
        "export": "nothing is written: all files come together at the end",
        "report": "the page is not written; predictions that were finished are kept",
        "train": "with --resume auto the same command goes on from the last checkpoint, if there is one",
    }

    def may_speak(self, error: Exception) -> bool:
        return may_speak(error)


app = make_program(
    "Multi-label recognition of small and occluded objects: shards in, a trained and explained model out.",
    {
        "Data": DATA_COMMANDS,
        "Training": (
            train.train,
            recipes.recipes,
            train.average,
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
            use.push,
        ),
    },
    _OfSeveral,
)


class _Notes(logging.Handler):
    """What the library logs, through the console, which shows no control character and no password."""

    def emit(self, record: logging.LogRecord) -> None:
        show(err, record.getMessage(), wrap=True)


def _show_notes() -> None:
    log = logging.getLogger("msltrain")
    log.addHandler(_Notes(logging.WARNING))
    log.propagate = False


def main() -> None:
    """Run the command line."""
    _show_notes()
    quiet_others()
    run_program(app, "msl")


if __name__ == "__main__":
    main()
