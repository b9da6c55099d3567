"""Line plots: where every line, tick and marker stands. The template draws them, in the page's colours."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 360, 236
"""The viewBox. Plots are laid out one per column at about this size, so that text keeps its size on a phone."""
RIGHT, TOP, BOTTOM = 14, 30, 40
DIGIT = 6.4
"""Width of a digit of an 11 px tick label."""
DASHES = ("", "6 3", "2 3", "8 3 2 3", "12 3", "3 6")
"""Lines differ by dash as well as by colour; the style sheet has as many colours."""
_MAX_SPOKEN = 8


@dataclass(frozen=True, kw_only=True)
class Line:
    """One series; ``style`` is the model's number, for colour and dash; ``whisker`` is (low, high) per point."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: int
    whisker: Sequence[tuple[float, float]] = ()
    marker: bool = False


@dataclass(frozen=True, kw_only=True)
class DrawnLine:
    """A series in the units of the drawing."""

    name: str
    style: str
    """Class of the style sheet."""
    dash: str
    points: Sequence[tuple[float, float]]
    whiskers: Sequence[tuple[float, float, float]]
    """(x, y of one end, y of the other)."""
    radius: float
    """Radius of a marker on every point; 0: no markers."""

    @property
    def path(self) -> str:
        """The points as SVG wants them."""
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in self.points)


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A figure with labelled axes."""

    title: str
    x_label: str
    y_label: str
    alt: str
    """The plot in words, for readers who cannot see it."""
    left: float
    x_ticks: Sequence[tuple[float, str]]
    """(place, label)."""
    y_ticks: Sequence[tuple[float, str]]
    lines: Sequence[DrawnLine]
    width: int = WIDTH
    height: int = HEIGHT
    right: float = WIDTH - RIGHT
    bottom: float = HEIGHT - BOTTOM


def model_styles(names: Iterable[str], known: Iterable[str] = ()) -> dict[str, int]:
    """A style number for each model; those in ``known`` come first, whether shown or not."""
    return {name: number for number, name in enumerate(dict.fromkeys([*known, *names]))}


def style_name(number: int) -> str:
    """Class of the style sheet for model ``number``; colours repeat after the last."""
    return f"run{number % len(DASHES)}"


def dash(number: int) -> str:
    """The dash pattern of model ``number``'s line; empty: solid."""
    return DASHES[number % len(DASHES)]


def line_plot(lines: Sequence[Line], *, title: str, x_label: str, y_label: str, from_zero: bool = False) -> Plot:
    """A figure of ``lines``.

    Args:
        lines: at least one, with points that are finite numbers.
        title: what it shows.
        x_label, y_label: axis titles with their units.
        from_zero: begin the y axis at 0.
    """
    x_all = [x for line in lines for x in line.x]
    y_all = [y for line in lines for y in line.y] + [y for line in lines for pair in line.whisker for y in pair]
    x_ticks = ticks(min(x_all), max(x_all), whole=all(float(x).is_integer() for x in x_all))
    y_ticks = ticks(0.0 if from_zero else min(y_all), max(y_all))
    x_low, x_high = min(x_all), max(x_all)
    if x_low == x_high:
        x_low, x_high = x_low - 1, x_high + 1
    y_low, y_high = y_ticks[0], y_ticks[-1]
    left = 8 + DIGIT * max(len(_number(y)) for y in y_ticks)

    def across(x: float) -> float:
        return left + (x - x_low) / (x_high - x_low) * (WIDTH - left - RIGHT)

    def down(y: float) -> float:
        return HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    spoken = "; ".join(f"{line.name}: {_in_words(line)}" for line in lines)
    return Plot(
        title=title,
        x_label=x_label,
        y_label=y_label,
        alt=f"{title}. {y_label} over {x_label}. {spoken}.",
        left=round(left, 1),
        x_ticks=[(round(across(x), 1), _number(x)) for x in x_ticks if x_low <= x <= x_high],
        y_ticks=[(round(down(y), 1), _number(y)) for y in y_ticks],
        lines=[_drawn(line, across, down) for line in lines],
    )


def _drawn(line: Line, across: Callable[[float], float], down: Callable[[float], float]) -> DrawnLine:
    alone = len(line.x) == 1
    return DrawnLine(
        name=line.name,
        style=style_name(line.style),
        dash=dash(line.style),
        points=[(round(across(x), 1), round(down(y), 1)) for x, y in zip(line.x, line.y, strict=True)],
        # Runs stand beside each other at the same x; a shift of a few pixels keeps their whiskers apart.
        whiskers=[
            (round(across(x) + 3 * line.style, 1), round(down(low), 1), round(down(high), 1))
            for x, (low, high) in zip(line.x, line.whisker)
        ],
        radius=4.5 if alone else 3 if line.marker else 0,
    )


def _in_words(line: Line) -> str:
    spoken = [f"{y:.3g} at {x:.3g}" for x, y in zip(line.x, line.y)]
    return ", ".join(spoken) if len(spoken) <= _MAX_SPOKEN else f"from {spoken[0]} to {spoken[-1]}"


def ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """About six round numbers that cover [low, high]; with ``whole`` only whole ones."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    rough = max((high - low) / 5, 1.0 if whole else 0.0)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _number(value: float) -> str:
    return f"{value:g}".replace("-", "−")
