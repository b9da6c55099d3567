"""What is said of other libraries' errors."""

from __future__ import annotations

import pytest

from msldata.errors import first_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RuntimeError("no decomposition for aten::odd\nand ninety lines more"), "no decomposition for aten::odd"),
        (RuntimeError("\n\x1b[31mError(s):\x1b[0m\n\n\tMissing key: a\n\tmore"), "Error(s): Missing key: a"),
        (RuntimeError("ends so:"), "ends so:"),
        (AssertionError(), "AssertionError"),
        (KeyError("aten.odd"), "KeyError: 'aten.odd'"),
    ],
)
def test_the_line_that_says_why(error, line):
    assert first_line(error) == line
