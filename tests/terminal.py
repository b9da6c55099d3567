"""A program on a terminal of its own, and what its user sees in the end.

screen = Terminal(80)
assert screen.run(["msl", "predict", "mine", "new"], folder) == 0
assert screen.lines[0].startswith("new/a.jpg")
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Sequence
from pathlib import Path

_PIECES = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])|\x1b\][^\x07]*\x07|([\r\n\t\b])|([^\x00-\x1f])")


class Terminal:
    """What VT100 makes of a program's output, as far as Rich and tqdm use it.

    Args:
        width: in columns; it is as high as it needs to be.
    """

    def __init__(self, width: int):
        self.width = width
        self._rows: list[list[str]] = [[]]
        self._row = self._column = 0
        self.said = ""
        """The bytes as they came, as text."""

    @property
    def lines(self) -> list[str]:
        """The rows, without spaces at their ends and without empty ones at the end."""
        text = "\n".join("".join(row).rstrip() for row in self._rows).rstrip("\n")
        return text.split("\n") if text else []

    def run(self, command: Sequence[str], folder: Path, *, typed: str = "") -> int:
        """The exit code of a program that has this terminal as its input, output and error output.

        Args:
            command: its words.
            folder: where it runs.
            typed: what its user types, ahead of the questions.
        """
        mine, its = pty.openpty()
        fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 40, self.width, 0, 0))
        without = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE")
        variables = {name: value for name, value in os.environ.items() if name not in without}
        with subprocess.Popen(
            command, cwd=folder, env={**variables, "TERM": "xterm-256color"}, stdin=its, stdout=its, stderr=its
        ) as process:
            os.close(its)
            os.write(mine, typed.encode())
            parts = []
            try:
                while part := os.read(mine, 65536):
                    parts.append(part)
            except OSError:  # how Linux says that the other end is closed
                pass
            finally:
                os.close(mine)
        self.feed(b"".join(parts).decode(errors="replace"))
        return process.returncode

    def feed(self, text: str) -> None:
        """Obey this output. Raises ValueError at what it does not know, rather than show something else."""
        self.said += text
        at = 0
        while at < len(text):
            piece = _PIECES.match(text, at)
            if piece is None:
                raise ValueError(f"unknown to this terminal: {text[at : at + 20]!r}")
            at = piece.end()
            numbers, letter, control, shown = piece.groups()
            if letter:
                self._obey(numbers, letter)
            elif control == "\n":
                self._row += 1
            elif control == "\r":
                self._column = 0
            elif control == "\b":
                self._column = max(0, self._column - 1)
            elif control == "\t":
                self._column += 8 - self._column % 8
            elif shown:
                if self._column == self.width:
                    self._row, self._column = self._row + 1, 0
                row = self._current()
                row[self._column] = shown
                self._column += 1

    def _current(self) -> list[str]:
        while self._row >= len(self._rows):
            self._rows.append([])
        row = self._rows[self._row]
        row += [" "] * (self._column + 1 - len(row))
        return row

    def _obey(self, numbers: str, letter: str) -> None:
        many = int(numbers) if numbers.isdecimal() else 1
        if letter == "A":
            self._row = max(0, self._row - many)
        elif letter == "K":
            row = self._current()
            if numbers == "2":
                row.clear()
            elif numbers in ("", "0"):
                del row[self._column :]
            else:
                raise ValueError(f"unknown to this terminal: erase {numbers}")
        elif letter not in "mhl":  # colours, and whether the cursor is seen
            raise ValueError(f"unknown to this terminal: {numbers}{letter}")
