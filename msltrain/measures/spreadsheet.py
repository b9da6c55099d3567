"""Text in tables that spreadsheets open."""

from __future__ import annotations


def cell(text: str | None) -> str:
    """Text as a spreadsheet shows it: one that would run it as a formula gets an apostrophe in front."""
    return f"'{text}" if text and text.startswith(("=", "+", "-", "@", "\t", "\r")) else text or ""
