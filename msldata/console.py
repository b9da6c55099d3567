"""The two consoles that commands write to, and what the commands of both packages share."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from enum import StrEnum
from typing import Any, ClassVar, cast

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, which a terminal obeys; those that change the direction of writing; bytes that are not text."""


_SECRETS = re.compile(
    r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)|(?<=[?&])(X-Amz-[A-Za-z-]+|sig|token|access_token|password)=[^&\s]+",
    re.IGNORECASE,
)
"""Name and password in an address, and the parameters that sign one."""


def without_secrets(text: str) -> str:
    """``text`` with the passwords and signatures of addresses in it left out."""
    return _SECRETS.sub("***", text)


def visible(text: object) -> str:
    """``text`` with control characters written out, as ``\\x1b``, and passwords in addresses left out.

    Names come from other people's files, and terminals are logged.
    """
    text = without_secrets(str(text))
    return _UNSEEN.sub(lambda match: match[0].encode("unicode_escape", "backslashreplace").decode(), text)


def on_one_line(name: str) -> str:
    """A name for a line of its own: a file may have a line break in it."""
    return visible(name).translate({10: "\\n", 9: "\\t", 13: "\\r"})


class SafeConsole(Console):
    """A console that reads no text as markup, and passes no control character on to the terminal.

    While progress bars live on another console of the same terminal, what this one prints goes through that one, which
    puts it above them: by itself it would be written into the middle of a bar.
    """

    bars_on: ClassVar[Console | None] = None
    """The console on which progress bars live; see `msldata.progress.Bars`."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **{**options, "markup": False, "emoji": False})

    def print(self, *objects: Any, **options: Any) -> None:
        other = SafeConsole.bars_on
        if other is None or other is self or not is_watched(self):
            super().print(*objects, **options)
        else:
            other.print(*objects, **options)


def is_watched(console: Console) -> bool:
    """Whether a terminal shows what the console prints; FORCE_COLOR makes none of a file or pipe."""
    return console.is_terminal and (not isinstance(console.file, Stream) or console.file.isatty())


def show(console: Console, *parts: object | tuple[object, str], end: str = "\n", wrap: bool = False) -> None:
    """Print one line of parts, however long; a coloured part is a pair of text and style.

    Args:
        wrap: break sentences between words where a terminal is too narrow, which by itself breaks inside of them; not
            for places and commands that are copied.
    """
    pairs = [part if isinstance(part, tuple) else (part, "") for part in parts]
    text = Text.assemble(*((visible(text), style) for text, style in pairs))
    console.print(text, soft_wrap=not (wrap and console.is_terminal), end=end)


def show_below(console: Console, text: str, style: str = "") -> None:
    """Print what belongs to the line above: indented, all of it where a terminal is too narrow for one line."""
    if console.is_terminal:
        console.print(Padding(Text(visible(text), style), (0, 0, 0, 2), expand=False))
    else:
        show(console, "  ", (text, style))


class Stream:
    """The current ``sys.stdout`` or ``sys.stderr``; a failure to write never stops the work that writes to it.

    A closed pipe, a full disk or a terminal that is gone is noted in ``failure``; the program's end reports it.

    Args:
        name: ``stdout`` or ``stderr``.
    """

    def __init__(self, name: str):
        self._name = name
        self.failure: OSError | None = None

    def write(self, text: str) -> int:
        self._try(lambda stream: stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(lambda stream: stream.flush())

    def _try(self, action: Callable[[Any], object]) -> None:
        if self.failure is None:
            try:
                action(self._stream())
            except OSError as error:
                self.failure = error

    def _stream(self) -> Any:
        stream = getattr(sys, self._name)
        return getattr(stream, "rich_proxied_file", stream)  # while a progress bar is shown

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream(), name)


standard_output, standard_error = Stream("stdout"), Stream("stderr")

out = SafeConsole(file=cast(Any, standard_output), highlight=False, markup=False, emoji=False)
"""Results."""
err = SafeConsole(file=cast(Any, standard_error), highlight=False, markup=False, emoji=False)
"""Progress, and what went wrong."""


def next_step(command: str, why: str = "") -> None:
    """The last line of a command: what to type next, and in a few words what that does where it is one of several."""
    show(err, ("next: ", "dim"), (command, "cyan"), *([("  # " + why, "dim")] if why else []))


class OnError(StrEnum):
    """What to do about a file that cannot be used."""

    fail = "fail"
    skip = "skip"


def gigabytes(text: str) -> float:
    """What ``50GB``, ``800MB``, ``1.5TB`` or plain ``50`` means, in GB of 10⁹ bytes. Raises UserError."""
    from msldata.errors import UserError

    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([KMGT]?)i?B?\s*", text, re.IGNORECASE)
    if match is None:
        raise UserError(f"'{text}' is not an amount of memory or disk; write for instance 50GB")
    return float(match[1]) * {"K": 1e-6, "M": 1e-3, "": 1.0, "G": 1.0, "T": 1e3}[match[2].upper()]
