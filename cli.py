"""The command line, ``python cli.py`` or ``msl``: where errors become messages, and the list of commands.

What a command takes and shows is in ``msldata/commands`` and ``msltrain/commands``.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from msldata.commands import build
from msldata.commands import inspect as look
from msldata.console import err
from msltrain.commands import (
    bench_stream as streaming,
)
from msltrain.commands import (
    evaluate as proof,
)
from msltrain.commands import (
    grids as tables,
)
from msltrain.commands import (
    report,
)
from msltrain.commands import (
    train as training,
)
from msltrain.commands import (
    use as predicting,
)


class _Commands(typer.core.TyperGroup):
    """The one place where errors become messages: 2 = a mistake the user can mend, 130 = stopped with Ctrl-C."""

    def invoke(self, ctx: Any) -> Any:
        from msldata.errors import UserError

        try:
            return super().invoke(ctx)
        except (UserError, FileNotFoundError, PermissionError) as error:
            if ctx.params.get("debug"):
                raise
            err.print("[red]error:[/red] ", end="")
            err.print(str(error), markup=False, soft_wrap=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            err.print("\nstopped; the same command goes on where it was")
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=_Commands,
    help="Multi-label recognition of small and occluded objects: shards in, a trained and explained model out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _root(debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False) -> None:
    pass


_COMMANDS = {
    "Data": (
        build.download,
        build.build_shards,
        build.build_masks,
        build.index,
        look.verify,
        look.info,
        look.preview,
        look.doctor,
        build.synthesize,
    ),
    "Training": (
        training.train,
        training.recipes,
        training.demo,
        training.import_checkpoint,
        streaming.bench_stream,
    ),
    "Proof": (
        proof.evaluate,
        proof.robustness,
        report.report,
        tables.ablate,
        tables.reproduce,
        predicting.predict,
        predicting.serve,
        predicting.export,
    ),
}
for _panel, _functions in _COMMANDS.items():
    for _function in _functions:
        app.command(rich_help_panel=_panel)(_function)


def main() -> None:
    """Entry point of ``msl`` and of ``python cli.py``."""
    app()


if __name__ == "__main__":
    main()
