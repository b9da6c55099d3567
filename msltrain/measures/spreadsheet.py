"""Tables that spreadsheets open."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

_END = "\r\n"
BOM = "\ufeff"
"""By this first character a spreadsheet knows that a file is UTF-8; without it letters with accents are lost."""


def csv_text(rows: Iterable[Sequence[object]], *, decimal_comma: bool = False) -> str:
    """Rows as CSV, a line each; with a semicolon between cells where the comma is the decimal mark."""
    lines = []
    for row in rows:
        text = io.StringIO()
        # The line end is such that a lone \r in a name is quoted as well.
        csv.writer(text, delimiter=";" if decimal_comma else ",", lineterminator=_END).writerow(row)
        lines.append(f"{text.getvalue().removesuffix(_END)}\n")
    return "".join(lines)


def digits(value: float | None, *, decimal_comma: bool = False) -> str:
    """A number with six decimals; nothing for None."""
    text = "" if value is None else f"{value:.6f}"
    return text.replace(".", ",") if decimal_comma else text


def cell(text: str | None) -> str:
    """Text as a spreadsheet shows it: one that would run it as a formula gets an apostrophe in front."""
    return f"'{text}" if text and text.startswith(("=", "+", "-", "@", "\t", "\r")) else text or ""
