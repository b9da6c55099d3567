"""Colours of classes: one for each, the same on every page and sheet."""

from __future__ import annotations

import colorsys
from functools import cache

_FIRST = ("#c2410c", "#1d4ed8", "#15803d", "#a21caf", "#b45309", "#0e7490", "#be123c", "#4d7c0f", "#6d28d9", "#0f766e")
_TURN = 0.618034
"""Share of the colour circle between one class and the next: the golden section keeps any number of them apart."""
_DARKEST, _LIGHTEST = 0.09, 0.18
"""Relative luminance: white text on anything below 0.183 has a contrast of at least 4.5."""


@cache
def class_colour(index: int) -> str:
    """``#rrggbb`` of a class, by its index: dark enough for white text, and for lines on a photograph with a rim."""
    if index < len(_FIRST):
        return _FIRST[index]
    hue, saturation = index * _TURN % 1, (0.85, 0.6, 0.45)[index % 3]
    wanted = (_DARKEST, _LIGHTEST)[index % 2]
    steps = (colorsys.hls_to_rgb(hue, lightness / 255, saturation) for lightness in range(255, -1, -1))
    red, green, blue = (round(255 * value) for value in next(rgb for rgb in steps if luminance(rgb) <= wanted))
    return f"#{red:02x}{green:02x}{blue:02x}"


def luminance(rgb: tuple[float, float, float]) -> float:
    """Relative luminance of sRGB values from 0 to 1, as WCAG defines it."""
    red, green, blue = (value / 12.92 if value <= 0.03928 else ((value + 0.055) / 1.055) ** 2.4 for value in rgb)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
