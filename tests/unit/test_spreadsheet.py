"""Text in tables that spreadsheets open."""

from __future__ import annotations

from msltrain.measures.spreadsheet import cell


def test_no_cell_is_run():
    assert [cell(f"{sign}1") for sign in "=+-@\t\r"] == [f"'{sign}1" for sign in "=+-@\t\r"]
    assert [cell(text) for text in ("a=1", "", None)] == ["a=1", "", ""]
