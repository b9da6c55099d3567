"""What a training run shows: at 80 columns, at 140, and where nobody watches."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from msldata.console import SafeConsole, show_below
from msltrain.training.display import START_NAME, TrainingDisplay, clock, rate
from msltrain.training.events import EpochEvent, PhaseEvent, StartEvent, StepEvent

START = StartEvent(
    run_dir="runs/x",
    device="cpu",
    world_size=1,
    num_train=40,
    num_validation=11,
    num_keep_masks=200,
    num_parameters=2_200_000,
    steps_per_epoch=5,
    num_steps=160,
    step=0,
)


def step(number: int) -> StepEvent:
    losses = {"total": 1.1528, "clean": 0.5, "masked": 0.6528, "consistency": 0.1}
    return StepEvent(
        step=number,
        num_steps=160,
        epoch=0,
        num_epochs=32,
        losses=losses,
        learning_rate=0.01,
        images_per_second=0.42,
        data_wait=0.1,
    )


def events():
    yield PhaseEvent(what="waiting for the first batch")
    yield START
    yield PhaseEvent(what="the first step took 3.1 s", step=1)
    yield from (step(number) for number in range(5, 20, 5))
    yield EpochEvent(epoch=0, num_epochs=32, step=5, validation_mAP=0.515, is_best=True, seconds=13)


@pytest.mark.parametrize("width", [80, 140])
def test_the_bar_fits_and_lines_stay_whole(width: int):
    screen = io.StringIO()
    out, err = (Console(file=screen, width=width, force_terminal=True, highlight=False) for _ in range(2))
    with TrainingDisplay(out, err) as display:
        for event in events():
            display.show(event)
            display._bar.refresh()
    lines = [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", line) for line in re.split(r"[\r\n]+", screen.getvalue())]
    bars = [line for line in lines if "━" in line]
    assert bars and max(map(len, bars)) <= width
    assert any("left" in line and "epoch 1/32" in line and "0.42 images/s" in line for line in bars)
    assert any("waiting for the first batch" in line for line in bars)
    (epoch,) = [line for line in lines if "validation mAP 51.5 (best so far)" in line]
    assert epoch.startswith("epoch 1/32  loss 1.1528") and "━" not in epoch
    assert ("masked 0.6528" in epoch) == (width == 140)


def test_a_log_gets_a_line_at_once_and_no_bar():
    out, err = (Console(file=io.StringIO(), width=80, highlight=False) for _ in range(2))
    with TrainingDisplay(out, err) as display:
        for event in events():
            display.show(event)
    assert err.file.getvalue().strip().splitlines() == ["waiting for the first batch", "the first step took 3.1 s"]
    lines = out.file.getvalue().splitlines()
    assert "step 5/160" in lines[1] and "left" in lines[1] and "0.42 images/s" in lines[1]
    assert len(lines) == 3  # the start, the first steps, the epoch: no line for every step
    assert "━" not in out.file.getvalue() + err.file.getvalue()


def test_what_belongs_to_a_line_stays_indented_where_it_is_broken():
    """Between words; a log gets one line."""
    for terminal, lines in (
        (True, ["  the first", "  line\\x1b", "  of many"]),
        (False, ["  the first line\\x1b of many"]),
    ):
        console = SafeConsole(file=io.StringIO(), width=12, force_terminal=terminal, color_system=None)
        show_below(console, "the first line\x1b of many")
        assert [line.rstrip() for line in console.file.getvalue().splitlines()] == lines


def test_numbers_suit_slow_and_fast_machines():
    assert [rate(value) for value in (0.034, 0.42, 4.25, 42.4, 4200)] == ["0.03", "0.42", "4.2", "42", "4,200"]
    assert [clock(value) for value in (42, 725, 11525)] == ["0:42", "12:05", "3:12:05"]


def test_of_many_short_epochs_some_get_a_line():
    out = Console(file=io.StringIO(), width=80, highlight=False)
    with TrainingDisplay(out, out) as display:
        display.show(replace(START, num_steps=152 * 4, steps_per_epoch=4))
        for epoch in range(152):
            display.show(EpochEvent(epoch=epoch, num_epochs=152, step=4, validation_mAP=0.5, is_best=False, seconds=1))
    lines = [line for line in out.file.getvalue().splitlines() if line.startswith("epoch ")]
    assert len(lines) == 31 and lines[0].startswith("epoch 5/152") and lines[-1].startswith("epoch 152/152")


def test_details_go_into_the_run_folder(tmp_path):
    out = Console(file=io.StringIO(), width=80, highlight=False)
    start = replace(START, run_dir=tmp_path, notes=("a note",))
    for step in (0, 80):
        with TrainingDisplay(out, out, ["why so"]) as display:
            display.show(PhaseEvent(what="building the network"))
            display.show(replace(start, step=step))
    assert out.file.getvalue().splitlines() == ["goes on after step 80 of 160"]
    text = (tmp_path / START_NAME).read_text()
    assert text.count("why so\n2.2 M parameters on 1 × cpu") == 2 and text.count("160 steps\na note\n") == 2
    with TrainingDisplay(out, out, ["why so"]) as display:
        display.show(replace(START, run_dir="s3://bucket/run", step=160))  # nowhere to leave them
    assert "why so" in out.file.getvalue() and "all 160 steps were taken before" in out.file.getvalue()


def test_the_best_epoch_is_named_though_its_own_line_was_left_out():
    """Of 300 epochs of one step every tenth has a line; epoch 14 is better than those around it."""
    console = Console(file=io.StringIO(), width=140, highlight=False)
    values = {3: 0.2, 9: 0.31, 13: 0.5, 29: 0.52}
    with TrainingDisplay(console, console) as display:
        display.show(replace(START, steps_per_epoch=1, num_steps=300))
        for epoch in range(50):
            value, is_best = values.get(epoch, 0.1), epoch in values
            event = EpochEvent(
                epoch=epoch, num_epochs=300, step=epoch + 1, validation_mAP=value, is_best=is_best, seconds=1
            )
            display.show(event)
    said = re.findall(r"epoch (\d+)/300 .*validation mAP ([\d.]+)( \(best[^)]*\))?", console.file.getvalue())
    assert said == [
        ("10", "31.0", " (best so far)"),
        ("20", "10.0", " (best so far: 50.0, epoch 14)"),
        ("30", "52.0", " (best so far)"),
        ("40", "10.0", ""),
        ("50", "10.0", ""),
    ]


@pytest.mark.parametrize("details", [None, ["what was chosen"]])
def test_what_a_run_goes_on_with_that_was_otherwise_is_on_the_terminal(tmp_path, details):
    console = Console(file=io.StringIO(), width=140, highlight=False)
    with TrainingDisplay(console, console, details) as display:
        display.show(replace(START, run_dir=tmp_path, changes=("continued with a change: a was 1, is 2",)))
    assert console.file.getvalue().count("continued with a change: a was 1, is 2") == 1
    if details:
        assert "a was 1, is 2" in (tmp_path / START_NAME).read_text()
