"""Numbers and names as text: one rule each, for pages, Markdown and the terminal."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from html import escape
from unicodedata import east_asian_width

DASH = "–"
"""Shown where there is no value."""


def percent(fraction: float | None, digits: int = 1) -> str:
    """``61.2``, or a dash for None and NaN."""
    return DASH if fraction is None or math.isnan(fraction) else f"{100 * fraction:.{digits}f}"


def score_percent(score: float) -> str:
    """A score in [0, 1] in whole percent, rounded: ``93 %``, on one line."""
    return f"{percent(score, 0)}\u00a0%"


def percent_beside(score: float, threshold: float) -> str:
    """A score in percent with as many digits as it takes to see on which side of its threshold it is: ``93``; ``49.8``
    where the threshold is 0.5."""
    for digits in range(3):
        shown = float(f"{100 * score:.{digits}f}")
        if (shown >= 100 * threshold) == (score >= threshold):
            return percent(score, digits)
    return percent(score, 4)


def quoted(name: str) -> str:
    """A name that a user gave, in a sentence: a run may be called ``mine`` or ``it``."""
    return f"“{name}”"


def points(fraction: float) -> str:
    """A signed difference in percentage points: ``+6.2``, ``−0.4``, ``0.0``."""
    text = f"{100 * fraction:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def plus_minus(mean: float, deviation: float) -> str:
    """A mean and its standard deviation in percent: ``61.2 ± 0.4``."""
    return f"{percent(mean)}\u00a0±\u00a0{percent(deviation)}"


def join(parts: Sequence[str], last: str = "and") -> str:
    """``a, b and c``."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} {last} {parts[-1]}"


def capital(text: str) -> str:
    """With a capital first letter."""
    return text[:1].upper() + text[1:]


def written_width(text: str) -> float:
    """About how wide text is, in ems: enough for most letters of most fonts, and for those of East Asia."""
    return sum(1.0 if east_asian_width(letter) in "WF" else 0.65 for letter in text)


def markdown(text: str) -> str:
    """Any text as Markdown that shows it literally: on one line, without HTML, emphasis or new table cells."""
    line = escape(" ".join(text.split()), quote=False)
    line = re.sub(r"([\\`*\[\]|~])", r"\\\1", line)
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", line)


def markdown_list(lines: Sequence[str]) -> str:
    """A bullet per line of text."""
    return "\n".join(f"- {markdown(line)}" for line in lines)
