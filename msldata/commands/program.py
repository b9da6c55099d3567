"""A program of several commands, and the one place where errors become messages."""

from __future__ import annotations

import atexit
import importlib.metadata
import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Any, ClassVar

import typer

from msldata.console import err, out, show, standard_output, visible
from msldata.errors import SKIP_BAD, OptionsNeeded, UserError, replaced
from msldata.python_words import AS_OPTIONS
from msldata.workers.no_pandas import hide_pandas

DISTRIBUTION = "msltrain"
STOPPED = 130
"""Exit code after Ctrl-C."""
_PIPE_CLOSED = 141
"""Exit code of any program whose reader, such as ``head``, has closed the pipe."""
_TYPED = "msldata.typed"
"""Under which a context keeps the words of the command."""
_MISTAKES = (UserError, FileNotFoundError, PermissionError)


class Commands(typer.core.TyperGroup):
    """Exit codes: 2 = a mistake the user can fix, 130 = stopped with Ctrl-C, 75 = stopped, with everything saved."""

    after_stop: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("build-shards", "build-masks", "download"), "the same command goes on where it was"
    )
    """What is true after Ctrl-C, by command."""
    takes_one: ClassVar[Mapping[str, str]] = {
        "build-shards": "one SOURCE is built: put the lines of several tables into one, which may name photographs in "
        "several folders",
        "train": "one dataset is trained on: to train on several together, build them from one table",
    }
    """What to do instead where a second argument was given, by command."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        ctx.meta[_TYPED] = list(args)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort):
            raise
        except KeyboardInterrupt:
            words = self.after_stop.get(ctx.invoked_subcommand, "")
            show(err, "\nstopped" + (words and f"; {words}"), wrap=True)
            raise typer.Exit(STOPPED) from None
        except Exception as error:
            if hasattr(error, "format_message") and hasattr(error, "message"):  # of click, which typer has inside
                error.message = visible(error.message)  # what was typed may hold a password
                if "unexpected extra argument" in error.message and ctx.invoked_subcommand in self.takes_one:
                    error.message += f"; {self.takes_one[ctx.invoked_subcommand]}"
                raise
            if isinstance(error, BrokenPipeError):  # printed by something else than our console
                standard_output.failure = error
                raise typer.Exit(_PIPE_CLOSED) from None
            if not self.may_speak(error):
                raise typer.Exit(getattr(error, "exit_code", 2 if isinstance(error, _MISTAKES) else 1)) from None
            if not isinstance(error, _MISTAKES) or ctx.params.get("debug"):
                raise
            error.args = (getattr(error, AS_OPTIONS), *error.args[1:]) if hasattr(error, AS_OPTIONS) else error.args
            code = getattr(error, "exit_code", UserError.exit_code)
            if isinstance(error, OptionsNeeded):
                typed, instead_of = typed_words(ctx), error.instead_of
                error = UserError(
                    error.said(lambda options: f"run: {shlex.join(replaced(typed, instead_of, options))}")
                )
            elif SKIP_BAD in str(error) and _takes(self.commands.get(ctx.invoked_subcommand), "--on-error"):
                again = shlex.join(replaced(typed_words(ctx), ("--on-error", "fail"), ("--on-error", "skip")))
                error = UserError(str(error).replace(SKIP_BAD, f"run: {again}"))
            elsewhere = of_other_commands(str(error), self.commands, ctx.invoked_subcommand)
            mark = (("error:", "red"), " ") if code <= UserError.exit_code else ()
            show(err, *mark, error, elsewhere, wrap=True)
            raise typer.Exit(code) from None

    def may_speak(self, error: Exception) -> bool:
        """Whether this process shows the error; when several processes do the same, one is enough."""
        return True


def typed_words(context: Any) -> list[str]:
    """The running command as it was typed."""
    return [*(context.find_root().info_name or "msl").split(), *context.meta.get(_TYPED, ())]


def _takes(command: Any, option: str) -> bool:
    return command is not None and any(option in one.opts for one in command.params)


_COMMAND = re.compile(r"`[^`]*`|\bmsl [a-z-]+(?:'[^']*'|[^;,()'])*")
_OPTION = re.compile(r"(?<![\w/=-])--[a-z][a-z-]*[a-z](?![\w-])")


def of_other_commands(message: str, commands: Mapping[str, Any], running: str | None) -> str:
    """The end of a message that advises options which the running command lacks: whose they are.

    Messages come from far below the commands, and the same one from several of them. Options inside of a whole command
    that is advised speak for themselves.
    """
    options = {
        name: {option for one in command.params for option in (*one.opts, *one.secondary_opts)}
        for name, command in commands.items()
    }
    said = []
    for option in dict.fromkeys(_OPTION.findall(_COMMAND.sub("", message))):
        owners = [f"msl {name}" for name, own in options.items() if option in own]
        if owners and running in options and option not in options[running]:
            said.append(f"{option} is an option of {', '.join(owners)}")
    return f" ({'; '.join(said)})" if said else ""


def run_program(app: typer.Typer, name: str) -> None:
    """Run the command line, and end this process with its exit code."""
    hide_pandas()
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal that knows ASCII alone
    try:
        app(prog_name=name)
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    _end(_unless_unheard(code))


def _unless_unheard(code: int) -> int:
    """The exit code, replaced by another when the results did not reach their reader."""
    standard_output.flush()
    failure = standard_output.failure
    if failure is None:
        return code
    with suppress(OSError):  # or the interpreter would report the same error again
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if isinstance(failure, BrokenPipeError):
        return code or _PIPE_CLOSED
    reason = (failure.strerror or str(failure)).lower()
    show(err, ("error:", "red"), f" standard output cannot be written: {reason}; the command itself has ended")
    return code or UserError.exit_code


def _end(code: int) -> None:
    """End the process with ``code``.

    A thread inside obstore or pyarrow must not meet the interpreter's end: coming back it would abort the process
    ("PyGILState_Release"), exit code and all. Most come back within the second; one that waits for a silent server is
    left to the operating system.
    """
    from msldata.storage.remoteerrors import end_calls

    if end_calls(_PATIENCE):
        sys.exit(code)
    atexit.unregister(end_calls)
    atexit._run_exitfuncs()
    with suppress(OSError, ValueError):
        sys.stderr.flush()
    os._exit(code)


_PATIENCE = 1.0
"""Seconds that calls into the storage library may take to come back at the program's end."""


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


def make_program(
    summary: str, panels: Mapping[str, Sequence[Callable[..., None]]], commands: type[Commands] = Commands
) -> typer.Typer:
    """The program whose ``--help`` says ``summary`` and lists the commands of each panel under its name."""
    app = typer.Typer(
        cls=commands,
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
