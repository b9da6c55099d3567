"""Bars and lines on a real terminal, of 80 columns and of 140: neither tears the other, and files get neither bars nor
broken lines."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.test_evaluate import write_checkpoint
from tests.smallshards import CLASSES, photo, write_images
from tests.terminal import Terminal

NUM_PHOTOS = 36
"""More than a batch."""
WIDTHS = (80, 140)


@pytest.fixture(scope="module", autouse=True)
def fast(ready_python):
    """Programs need not import torch first."""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Photographs, one of them broken, and the run of a random model."""
    folder = tmp_path_factory.mktemp("terminal")
    (folder / "photos").mkdir()
    for number in range(NUM_PHOTOS):
        (folder / "photos" / f"p{number:02d}.jpg").write_bytes(photo(number, 40, 40))
    (folder / "photos" / "p30.jpg").write_bytes(b"broken")
    write_checkpoint(folder / "runs" / "mine", CLASSES)
    write_images(folder / "shards" / "mine" / "test", (5, 6))
    return folder


def msl(*words: str) -> list[str]:
    return [sys.executable, "-m", "msltrain", *words]


def program(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def in_a_pipe(place: Path, *words: str) -> str:
    return subprocess.run(msl(*words), cwd=place, capture_output=True, text=True).stdout


@pytest.mark.parametrize("width", WIDTHS)
def test_answers_stay_above_the_bar(place, width):
    words = ("predict", "mine", "photos", "--device", "cpu")
    screen = Terminal(width)
    assert screen.run(msl(*words), place) == 1
    assert "predicting" in screen.said, "there was no bar that could tear a line"
    assert "━" not in "".join(screen.lines) and "predicting" not in "".join(screen.lines)
    lines = [line for line in screen.lines if line.startswith("photos/p")]
    assert [line[: len("photos/p00.jpg")] for line in lines] == [f"photos/p{n:02d}.jpg" for n in range(NUM_PHOTOS)]
    answers = " ".join(screen.lines).partition("thresholds:")[0]
    assert answers.split() == in_a_pipe(place, *words).split(), "the words of the same answers, none broken"


@pytest.mark.parametrize("kind", ["json", "csv"])
def test_what_programs_read_is_whole_on_a_terminal_too(place, kind):
    words = ("predict", "mine", "photos", "--device", "cpu", "--format", kind)
    screen = Terminal(1000)  # of which no line is broken
    assert screen.run(msl(*words), place) == 1
    expected = in_a_pipe(place, *words).splitlines()
    assert screen.lines[: len(expected)] == expected and "predicting" in screen.said
    if kind == "json":
        assert len([json.loads(line) for line in expected]) == NUM_PHOTOS


def test_a_file_gets_the_results_and_the_terminal_the_bar(place):
    """Whatever FORCE_COLOR says."""
    for colours in ("", "FORCE_COLOR=1 "):
        screen = Terminal(80)
        words = f"{colours}{sys.executable} -m msltrain predict mine photos --device cpu > found.txt"
        assert screen.run(["bash", "-c", words], place) == 1
        found = (place / "found.txt").read_text()
        assert found == in_a_pipe(place, "predict", "mine", "photos", "--device", "cpu")
        assert "predicting" in screen.said and "photos/p00.jpg" not in screen.said


@pytest.mark.parametrize("command", ["evaluate", "robustness"])
def test_errors_are_broken_between_words(place, command):
    piped = subprocess.run(msl(command), cwd=place, capture_output=True, text=True).stderr
    assert piped.startswith("error: ") and piped.count("\n") == 1 and len(piped) > 80
    screen = Terminal(77)  # which ends inside of a word
    assert screen.run(msl(command), place) == 2
    assert piped[76:78].isalpha()
    assert " ".join(screen.lines).split() == piped.split() and len(screen.lines) > 1


def test_messages_go_where_they_are_sent_while_the_bar_is_on_the_terminal(place):
    screen = Terminal(80)
    words = f"{sys.executable} -m msltrain predict mine photos --device cpu 2> messages.txt"
    assert screen.run(["bash", "-c", words], place) == 1
    messages = (place / "messages.txt").read_text()
    assert "thresholds:" in messages and "━" not in messages and "thresholds:" not in screen.said
    assert screen.lines[0].startswith("photos/p00.jpg") and "━" not in "".join(screen.lines)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("verify", "shards/mine/test"), "findings in 2 shards"),
        (("evaluate", "mine", "--data", "mine", "--device", "cpu"), "next: msl report mine --data mine"),
        (("report", "mine", "--data", "mine", "--device", "cpu"), "report.html"),
        (("robustness", "mine", "--data", "mine", "--device", "cpu", "--kind", "box"), "area under the curve"),
        (("synthesize", "--out", "drawn", "--num-train", "3", "--num-test", "2", "--size", "32"), "3 + 2 images"),
        (("build-masks", "--generate", "4", "--size", "32", "--out", "masks", "--overwrite"), "available"),
    ],
    ids=lambda words: words[0] if isinstance(words, tuple) else "",
)
def test_no_command_leaves_a_bar(place, words, said, width):
    for made in ("runs/mine/predictions", "runs/mine/robustness"):  # what is there is not made again, and needs no bar
        shutil.rmtree(place / made, ignore_errors=True)
    screen = Terminal(width)
    screen.run(msl(*words), place)
    shown = "\n".join(screen.lines)
    assert "━" in screen.said and "━" not in shown and said in shown
    assert "Traceback" not in shown


BOTH = """
import sys, logging
from msldata.console import err, out, show
from msldata.progress import progress_bar
with progress_bar("working") as progress:
    for number in range(3):
        progress(number, 3)
        show(out, f"result {number}")
        show(err, f"message {number}")
        print(f"warning {number}", file=sys.stderr)
"""


@pytest.mark.parametrize("width", WIDTHS)
def test_every_line_of_either_console_stays_above_the_bar(place, width):
    screen = Terminal(width)
    assert screen.run(program(BOTH), place) == 0
    assert "working" in screen.said
    assert screen.lines == [f"{what} {n}" for n in range(3) for what in ("result", "message", "warning")]


GRID = """
from types import SimpleNamespace
from msltrain.commands.grid_display import GridDisplay
from msltrain.grids.workers import JobEnded, JobProgress, JobStarted
jobs = [SimpleNamespace(name=f"run{number}") for number in range(3)]
with GridDisplay(SimpleNamespace(jobs=jobs, unfinished=jobs)) as display:
    for job in jobs:
        display.show(JobStarted(job=job, slot=""))
    for job in jobs:
        display.show(JobProgress(job=job, doing="training", done=1, total=2))
        display.show(JobEnded(job=job, seconds=1.0, problem=""))
"""


@pytest.mark.parametrize("width", WIDTHS)
def test_the_jobs_of_a_grid_stay_above_their_bars(place, width):
    screen = Terminal(width)
    assert screen.run(program(GRID), place) == 0
    assert "━" in screen.said
    assert screen.lines == [f"{n + 1}/3 run{n}  1.0 s" for n in range(3)]


QUESTION = """
import typer
from msldata.console import out, show
from msldata.progress import no_bars, progress_bar
with progress_bar("working"):
    with no_bars():
        answer = typer.confirm("really?")
    show(out, f"answered {answer}")
"""


def test_a_question_stands_alone(place):
    screen = Terminal(80)
    assert screen.run(program(QUESTION), place, typed="y\n") == 0
    assert screen.lines[-1] == "answered True" and "━" not in "".join(screen.lines)
    asked = screen.said.index("really?")
    assert "━" not in screen.said[asked : screen.said.index("[y/N]")] and "━" in screen.said[:asked]
