"""Tables that spreadsheets open."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

_END = "\r\n"


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Rows as CSV, a line each."""
    lines = []
    for row in rows:
        text = io.StringIO()
        csv.writer(text, lineterminator=_END).writerow(row)  # so that a lone \r in a name is quoted as well
        lines.append(f"{text.getvalue().removesuffix(_END)}\n")
    return "".join(lines)


def cell(text: str | None) -> str:
    """Text as a spreadsheet shows it: one that would run it as a formula gets an apostrophe in front."""
    return f"'{text}" if text and text.startswith(("=", "+", "-", "@", "\t", "\r")) else text or ""
