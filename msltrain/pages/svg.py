"""Line plots as inline SVG: no script, no font file, colours from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 360, 236
"""The viewBox. Plots are laid out one per column at about this size, so that text keeps its size on a phone."""
RIGHT, TOP, BOTTOM = 14, 30, 40
DIGIT = 6.4
"""Width of a digit of an 11 px tick label."""
DASHES = ("", "6 3", "2 3", "8 3 2 3", "12 3", "3 6")
"""Lines differ by dash as well as by colour; the style sheet has as many colours."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One series; ``style`` is the model's number, for colour and dash; ``whisker`` is (low, high) per point."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: int
    whisker: Sequence[tuple[float, float]] = ()
    marker: bool = False


def style_name(number: int) -> str:
    """Class of the style sheet for model ``number``; colours come again after the last."""
    return f"run{number % len(DASHES)}"


def dash(number: int) -> str:
    """The attribute that dashes a line of model ``number``."""
    pattern = DASHES[number % len(DASHES)]
    return f' stroke-dasharray="{pattern}"' if pattern else ""


def line_plot(lines: Sequence[Line], *, x_label: str, y_label: str, alt: str, from_zero: bool = False) -> str:
    """An SVG figure of ``lines`` with labelled axes.

    Args:
        lines: at least one, with points that are finite numbers.
        x_label, y_label: axis titles with their units.
        alt: what a reader who cannot see the plot should know.
        from_zero: begin the y axis at 0.
    """
    x_all = [x for line in lines for x in line.x]
    y_all = [y for line in lines for y in line.y] + [y for line in lines for pair in line.whisker for y in pair]
    x_ticks = ticks(min(x_all), max(x_all), whole=all(float(x).is_integer() for x in x_all))
    y_ticks = ticks(0.0 if from_zero else min(y_all), max(y_all))
    x_low, x_high = min(x_all), max(x_all)
    if x_low == x_high:
        x_low, x_high = x_low - 1, x_high + 1
    x_ticks = [x for x in x_ticks if x_low <= x <= x_high]
    y_low, y_high = y_ticks[0], y_ticks[-1]
    left = 8 + DIGIT * max(len(_number(y)) for y in y_ticks)

    def across(x: float) -> float:
        return left + (x - x_low) / (x_high - x_low) * (WIDTH - left - RIGHT)

    def down(y: float) -> float:
        return HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(alt)}">']
    for y in y_ticks:
        parts.append(f'<line class="grid" x1="{left}" x2="{WIDTH - RIGHT}" y1="{down(y):.1f}" y2="{down(y):.1f}"/>')
        parts.append(f'<text class="tick" x="{left - 6}" y="{down(y) + 4:.1f}" text-anchor="end">{_number(y)}</text>')
    for x in x_ticks:
        parts.append(
            f'<text class="tick" x="{across(x):.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">'
            f"{_number(x)}</text>"
        )
    parts.append(f'<line class="axis" x1="{left}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}"/>')
    centre = (left + WIDTH - RIGHT) / 2
    parts.append(f'<text class="label" x="{centre}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
    parts.append(f'<text class="label" x="0" y="12">{escape(y_label)}</text>')
    for line in lines:
        parts.extend(_draw(line, across, down))
    parts.append("</svg>")
    return "".join(parts)


def _draw(line: Line, across: Callable[[float], float], down: Callable[[float], float]) -> list[str]:
    seen = [(across(x), down(y)) for x, y in zip(line.x, line.y, strict=True)]
    style = style_name(line.style)
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in seen)
    title = f"<title>{escape(line.name)}</title>"
    parts = [f'<polyline class="curve {style}"{dash(line.style)} points="{joined}">{title}</polyline>']
    for x, (low, high) in zip(line.x, line.whisker):
        # Runs stand beside each other at the same x; a shift of a few pixels keeps their whiskers apart.
        at = across(x) + 3 * line.style
        parts.append(
            f'<line class="whisker {style}" x1="{at:.1f}" x2="{at:.1f}" y1="{down(low):.1f}" y2="{down(high):.1f}"/>'
        )
    if line.marker or len(seen) == 1:
        radius = 3 if len(seen) > 1 else 4.5
        parts.extend(f'<circle class="marker {style}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"/>' for x, y in seen)
    return parts


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
