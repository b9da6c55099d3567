"""A program of several commands, and the one place where errors become messages."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import typer

from msldata.console import err, out, show
from msldata.errors import UserError

DISTRIBUTION = "msltrain"


class _Commands(typer.core.TyperGroup):
    """Exit codes: 2 = a mistake the user can mend, 130 = stopped with Ctrl-C."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (UserError, FileNotFoundError, PermissionError) as error:
            if ctx.params.get("debug"):
                raise
            show(err, ("error:", "red"), f" {error}")
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            err.print("\nstopped; the same command goes on where it was")
            raise typer.Exit(130) from None


def _show_version(asked: bool) -> None:
    if asked:
        out.print(f"{DISTRIBUTION} {version()}", highlight=False)
        raise typer.Exit


def version() -> str:
    """The installed version, or ``unknown`` where the packages are used without an installation."""
    try:
        return importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def make_program(summary: str, panels: Mapping[str, Sequence[Callable[..., None]]]) -> typer.Typer:
    """The program whose ``--help`` says ``summary`` and lists the commands of each panel under its name."""
    app = typer.Typer(
        cls=_Commands,
        help=summary,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def _root(
        debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
        version: Annotated[
            bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
        ] = False,
    ) -> None:
        pass

    for panel, functions in panels.items():
        for function in functions:
            app.command(rich_help_panel=panel)(function)
    return app
