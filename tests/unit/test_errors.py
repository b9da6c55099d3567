"""What is said of other libraries' errors."""

from __future__ import annotations

from typing import Literal

import pytest

from msldata.errors import BadInputError, did_you_mean, first_line, neighbour
from msldata.python_words import in_python, says_it_in_python


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


def test_what_was_typed_is_never_what_was_meant(tmp_path, monkeypatch):
    assert did_you_mean("mine", ["mine", "mime"]) == "; did you mean mime?" and did_you_mean("mine", ["mine"]) == ""
    (tmp_path / "here").mkdir()
    (tmp_path / "new").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert neighbour("../nwe") == "; did you mean ../new?"
    assert neighbour("../nwe/a.jpg") == "; did you mean ../new?" and neighbour("../here/x") == ""


def called(
    run: str,
    *,
    resume: bool | Literal["auto"] = False,
    allow_changes: bool = False,
    out: str = "",
    options: object = None,
) -> None:
    """A function of the public face, as far as its parameters go."""


@pytest.mark.parametrize(
    ("command", "python"),
    [
        (
            "continue it with --resume auto, or choose another folder with --run",
            'continue it with resume="auto", or choose another folder with run=',
        ),
        ("--allow-changes continues it all the same", "allow_changes=True continues it all the same"),
        ("run the same command with --run /a --resume auto to", 'call it again with run="/a" resume="auto" to'),
        ("give another place with --out FILE.parquet", "give another place with out=FILE.parquet"),
        (
            "name it with --backbone",
            'name it with settings=["model.backbone=…"]',
        ),
        ("start at random with --set model.weights=", 'start at random with settings=["model.weights="]'),
        ("`msl a --held-out` or msl b --data X; stop", "`msl a --held-out` or msl b --data X; stop"),
        (
            "--held-out measures the part; name --data",
            "--held-out measures the part; name --data (--held-out, --data are options of the command `msl`)",
        ),
        (
            "run the same command again with --image-column p",
            "call it again with --image-column p (--image-column is an option of the command `msl`, here in `options`)",
        ),
    ],
)
def test_options_are_parameters_in_python(command, python):
    assert in_python(command, called, has_settings=True) == python


def test_errors_of_the_public_face_name_no_option(tmp_path):
    @says_it_in_python()
    def fails(place: str, *, overwrite: bool = False) -> None:
        raise BadInputError(place, "is full", "empty it, or give --overwrite")

    with pytest.raises(BadInputError, match=r"^x: is full; empty it, or give overwrite=True$"):
        fails("x")
