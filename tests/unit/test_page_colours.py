"""Text on every page can be read: contrast AA (4.5 to 1) on both grounds, in the light and in the dark."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import msldata.pages

STYLE = Path(msldata.pages.__file__).with_name("style.css").read_text(encoding="utf-8")
_ROOTS = re.findall(r":root \{(.*?)\n *\}", STYLE, re.DOTALL)
SCHEMES = [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", root)) for root in _ROOTS]
GROUNDS, LINES = ("paper", "panel"), ("rule",)


def luminance(colour: str) -> float:
    """Relative luminance of ``#rrggbb``, as WCAG 2 defines it."""
    channels = (int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5))
    red, green, blue = (value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("tokens", SCHEMES, ids=["light", "dark"])
def test_every_colour_of_text_stands_out(tokens):
    names = set(tokens) - {*GROUNDS, *LINES}
    assert {"ink", "muted", "run0", "wrong", "hole"} <= names and set(GROUNDS) <= set(tokens)
    for ground in GROUNDS:
        for name in names:
            light, dark = sorted((luminance(tokens[name]), luminance(tokens[ground])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, f"{name} on {ground}"


def test_no_text_is_made_fainter():
    """An opacity takes back what the colours promise; levels of a heat map and a hidden input hold no text."""
    faint = re.findall(r"([^{}\n]*)\{[^}]*\bopacity: 0[^}]*\}", STYLE)
    assert {re.sub(r"\d", "", selector).strip() for selector in faint} <= {".level", ".switch > input"}
