"""A word about what takes its time: none where it is fast, a line within seconds in a log, none left on a terminal."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console
from typer.testing import CliRunner

from msldata import progress as module
from msldata.progress import progress_bar, working
from msltrain.__main__ import app


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Standard error of a program that nobody watches, with little patience."""
    said = io.StringIO()
    monkeypatch.setattr(module, "err", Console(file=said, width=200, highlight=False))
    monkeypatch.setattr(module, "FAST_SECONDS", 0.05)
    return said


def wait_for(said: io.StringIO, words: str) -> None:
    until = time.monotonic() + 60
    while words not in said.getvalue() and time.monotonic() < until:
        time.sleep(0.01)
    assert words in said.getvalue()


def test_a_log_hears_what_lasts(log):
    with working("loading the model"):
        wait_for(log, "loading the model, 0 s so far")
    with progress_bar("evaluating") as progress:
        progress(3, 2000)
        wait_for(log, "evaluating: 3 of 2,000, ")


def test_what_is_fast_says_nothing(log, monkeypatch):
    monkeypatch.setattr(module, "FAST_SECONDS", 600.0)
    with working("loading the model"), progress_bar("evaluating") as progress:
        progress(3, 2000)
    assert log.getvalue() == ""


def test_the_word_ends_with_its_block_also_where_that_fails(log, monkeypatch):
    monkeypatch.setattr(module, "QUIET_SECONDS", 0.05)
    with pytest.raises(KeyError), working("loading"):
        raise KeyError
    said = log.getvalue()
    time.sleep(0.3)
    assert log.getvalue() == said


@pytest.mark.parametrize(
    ("command", "module_name", "said"),
    [
        ("export", "use", "stopped; nothing is written: all files come together at the end"),
        ("report", "report", "stopped; the page is not written; predictions that were finished are kept"),
        ("robustness", "evaluate", "stopped; the same command goes on where it was"),
    ],
)
def test_a_stopped_command_says_in_a_line_what_is_left(monkeypatch, command, module_name, said):
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"msltrain.commands.{module_name}.named_models", stop)
    result = CliRunner().invoke(app, [command, "mine"], env={"COLUMNS": "200"})
    assert result.exit_code == 130 and result.output.strip() == said
