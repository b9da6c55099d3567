"""The benchmarks: each is run by ``make bench`` or left out by name, and calls are as programs allow."""

from __future__ import annotations

import re

import pytest

from benchmarks.attack import read_inputs
from tests.contract.test_advised_commands import problem
from tests.contract.test_layout import REPOSITORY

PROGRAMS = sorted(
    path for path in (REPOSITORY / "benchmarks").glob("*.py") if '__name__ == "__main__"' in path.read_text("utf-8")
)
CALL = re.compile(r"python benchmarks/(\w+)\.py((?:[^\n`]|\n(?=\s+\[?--))*)")
"""A program, and its words, which may go on in lines that begin with an option."""
PAGES = [
    path
    for folder in ("", "docs", "benchmarks")
    for path in sorted((REPOSITORY / folder).iterdir())
    if path.suffix in (".md", ".py") and CALL.search(path.read_text("utf-8"))
]
OPTION = re.compile(r"--[a-z][a-z-]*")


def test_make_bench_runs_every_benchmark_or_names_it():
    makefile = (REPOSITORY / "Makefile").read_text("utf-8")
    left_out, _, rest = makefile.partition("\nbench: ")
    listed = rest[: rest.index("done")].partition("for script in ")[2].partition(";")[0].replace("\\", " ").split()
    named = re.findall(r"(\w+), which", left_out.rpartition("# Left out: ")[2])
    assert sorted([*listed, *named]) == sorted([*(path.stem for path in PROGRAMS), "methods"])


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_a_benchmark_is_called_with_options_that_it_has(page):
    for name, words in CALL.findall(page.read_text("utf-8")):
        program = REPOSITORY / "benchmarks" / f"{name}.py"
        assert program in PROGRAMS, f"{page}: {name}"
        known = set(re.findall(rf'"({OPTION.pattern})"', program.read_text("utf-8")))
        assert not set(OPTION.findall(words)) - known, f"{page}: {name}"


def test_the_attack_gives_commands_that_can_be_typed():
    # One that is refused for its options would count as one that refused what was changed.
    commands = [words for one in read_inputs() for words in one.commands]
    assert commands and not {words: why for words in commands if (why := problem(f"msl {words}"))}
