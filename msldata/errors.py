"""Exceptions that mean "the user can fix this": raised by both packages, printed by the CLI without a traceback."""

from __future__ import annotations

import difflib
import os
import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

SKIP_BAD = "run again with --on-error skip"
"""How messages from below a command advise to leave out what cannot be used; the program shows the command whole."""


class UserError(ValueError):
    """A mistake or a bad file outside the program: the message says what, where, and which command to run next.

    Example:
        try:
            msldata.verify("shards/nothing/here")
        except msldata.UserError as error:
            print(error)
    """

    exit_code = 2
    """Exit code of a command that ends with this error."""


class StorageError(UserError):
    """A place that cannot be listed, read or written: missing, denied, full or unreachable."""


class BadInputError(UserError):
    """One source file that cannot become a sample: a broken image, XML or mask.

    Args:
        file: path of the file, as the user would type it.
        reason: what is wrong with it, without a full stop.
        hint: what to do next; defaults to the workaround that every build has.
    """

    def __init__(self, file: str, reason: str, hint: str = f"repair or remove the file, or {SKIP_BAD}"):
        super().__init__(f"{file}: {reason}; {hint}")
        self.file = file
        self.reason = reason
        self.hint = hint

    def __reduce__(self):
        # Exceptions travel back from worker processes; the default would call __init__ with the finished message.
        return type(self), (self.file, self.reason, self.hint)


class OptionsNeeded(UserError):
    """The same command goes on with more options: the program shows it whole, as it is to be typed.

    Args:
        reason: what is wrong, without a full stop.
        options: what to add, as words of a command line.
        provided: under which condition ("if 'what' is …"); empty: no other.
        instead_of: options with their values, in turn, that these take the place of.
        other: where the same may mean something else, under which condition, and the options for that.
    """

    def __init__(
        self,
        reason: str,
        options: Sequence[str],
        provided: str = "",
        instead_of: Sequence[str] = (),
        other: tuple[str, Sequence[str]] | None = None,
    ):
        self.reason, self.options, self.provided = reason, tuple(options), provided
        self.instead_of, self.other = tuple(instead_of), other
        super().__init__(self.said(lambda options: f"run the same command again with {shlex.join(options)}"))

    def said(self, advice_with: Callable[[Sequence[str]], str]) -> str:
        """The message with other advice, made of the options."""
        message = f"{self.reason}; {f'{self.provided}, ' if self.provided else ''}{advice_with(self.options)}"
        return message if self.other is None else f"{message}\n{self.other[0]}, {advice_with(self.other[1])}"

    def __reduce__(self):
        return type(self), (self.reason, self.options, self.provided, self.instead_of, self.other)


def replaced(words: Sequence[str], instead_of: Sequence[str], options: Sequence[str]) -> list[str]:
    """The words of a command with other options.

    Args:
        words: as they were typed.
        instead_of: options with their values, in turn, that are left out, written ``--name value`` or ``--name=value``.
        options: what is added at the end.
    """
    kept, gone = list(words), list(zip(instead_of[::2], instead_of[1::2], strict=True))
    for option, value in gone:
        if f"{option}={value}" in kept:
            kept.remove(f"{option}={value}")
        for place in [n for n in range(len(kept) - 1) if kept[n : n + 2] == [option, value]][:1]:
            del kept[place : place + 2]
    return [*kept, *options]


def counted(number: int, what: str, plural: str = "") -> str:
    """``1 photograph``, ``2 photographs``, ``3 classes``."""
    many = plural or f"{what}{'es' * what.endswith('s')}{'s' * (not what.endswith('s'))}"
    return f"{number:,} {what if number == 1 else many}"


def few_of(names: Sequence[str], most: int = 3) -> str:
    """``a, b, c and 4 more``."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def nothing_at(place: str | Path) -> FileNotFoundError:
    """The error for a local path at which there is nothing; it names a neighbour that may have been meant."""
    return FileNotFoundError(f"{place}: no such file or folder{neighbour(place)}")


def neighbour(place: str | Path) -> str:
    """The end of a message about a local path at which there is nothing; empty where nothing near has such a name."""
    typed = Path(place)
    while not typed.expanduser().parent.exists():  # the slip may be in a folder's name
        typed = typed.parent
    folder = typed.expanduser().parent
    beside = os.listdir(folder) if os.access(folder, os.R_OK) and folder.is_dir() else ()
    near = closest(typed.name, beside)
    return f"; did you mean {typed.with_name(near)}?" if near else ""


def first_line(error: BaseException) -> str:
    """The reason in another library's error: its first line, without colours, and those that it only announces
    ("Error(s) in loading state_dict:"); where it says nothing, its name."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if isinstance(error, KeyError):  # whose text is the key alone
        return f"KeyError: {lines[0]}"
    last = next((number for number, line in enumerate(lines) if not line.endswith(":")), len(lines) - 1)
    return " ".join(lines[: last + 1])


def did_you_mean(typed: str, known: Iterable[str]) -> str:
    """The end of a message: what may have been meant; empty where nothing known is near."""
    near = closest(typed, known)
    return f"; did you mean {near}?" if near else ""


def closest(typed: str, known: Iterable[str]) -> str:
    """The known name nearest to what was typed, which is never meant itself; empty where none is near."""
    others = [name for name in known if name != typed]
    by_letters = {name.casefold(): name for name in reversed(others)}
    near = difflib.get_close_matches(typed, others, 1)
    near = near or [by_letters[name] for name in difflib.get_close_matches(typed.casefold(), by_letters, 1)]
    return next(iter(near), "")
