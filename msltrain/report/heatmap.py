"""Co-occurrence as heat maps of labels and false alarms.

K classes. Row i is the class that is present, column j the other one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from msltrain.pages.text import percent, quoted, written_width
from msltrain.report.numbers import Numbers

LEVELS = (0.01, 0.03, 0.1, 0.3, 0.6)
"""A cell gets darker at each of these shares; below the first it is empty."""
CELL = 12
FONT = 9
"""In the units of the drawing."""
LEAST_SIDE = 120
"""Cells of few classes are larger, so that a map is at least so wide."""
SMALL_UP_TO, MEDIUM_UP_TO = 14, 24
"""Up to this many classes three maps, or two, fit side by side; with more, a map takes the whole width of the page."""


@dataclass(frozen=True, kw_only=True)
class HeatMap:
    """A matrix of classes, in the units of the drawing."""

    alt: str
    width: int
    height: int
    left: int
    top: int
    side: int
    cell: int
    widest: float
    """The width at which names are as large as the page's small text, in its font sizes; more is not useful."""
    paths: list[tuple[int, str]]
    """(level, the cells of that level as one path), so that 80 classes stay small."""
    rows: list[tuple[str, float, float]]
    """(class, x, y) of the names on the left, which end at that point."""
    columns: list[tuple[str, float, float]]
    """(class, x, y) of the names at the top, which lean to the right."""


@dataclass(frozen=True, kw_only=True)
class HeatMaps:
    """The maps under one title: one for each end, or one for both."""

    title: str
    maps: list[HeatMap | None]
    """None where no cell is filled; not all are."""


def cooccurrence_maps(numbers: Numbers) -> tuple[list[HeatMaps], list[str]]:
    """Where labels occur together, and what each model wrongly sees where a companion is present.

    Returns:
        The maps to show, and the titles of those that are left out, as no cell of theirs is filled.
    """
    classes = [numbers.classes[k] for k in numbers.together]
    together = _map(numbers.companions.share_KK, classes, "Of the images with the row's class, the column's too")
    parts = [HeatMaps(title="Labels of the test images", maps=[together])]
    for run, alarms in zip(numbers.runs, numbers.false_alarms, strict=True):
        title = f"False alarms of {quoted(run.name)}"
        parts.append(HeatMaps(title=title, maps=[_map(alarms[end].rate_KK, classes, title) for end in numbers.ends]))
    return [one for one in parts if any(one.maps)], [one.title for one in parts if not any(one.maps)]


def size_of(num_classes: int) -> str:
    """The size of maps: a class of the style sheet."""
    return "wide" if num_classes > MEDIUM_UP_TO else "" if num_classes > SMALL_UP_TO else "small"


def scale() -> list[str]:
    """Which shade stands for which share, the lightest first."""
    bounds = [f"{100 * low:.0f}" for low in LEVELS]
    return [f"{low}–{high} %" for low, high in pairwise(bounds)] + [f"from {bounds[-1]} %"]


def _map(share_KK: np.ndarray, classes: Sequence[str], what: str) -> HeatMap | None:
    longest = FONT * max(map(written_width, classes))
    cell = max(CELL, LEAST_SIDE // len(classes))
    side = cell * len(classes)
    # Column names lean to the right, up and beyond the last column; a letter is as high as it is long there.
    left, top = 4 + longest, 4 + 0.71 * (longest + FONT)
    width, height = left + side + top, top + side + 1
    with np.errstate(invalid="ignore"):
        level_KK = np.where(np.isnan(share_KK), 0, np.searchsorted(LEVELS, np.nan_to_num(share_KK), side="right"))
    paths = [(level, "".join(_runs(level_KK == level))) for level in range(1, len(LEVELS) + 1)]
    paths = [(level, path) for level, path in paths if path]
    if not paths:
        return None
    middle = [cell * (k + 0.5) for k in range(len(classes))]
    return HeatMap(
        alt=f"{what}, in percent. {_strongest(share_KK, classes)}",
        width=round(width),
        height=round(height),
        left=round(left),
        top=round(top),
        side=side,
        cell=cell,
        widest=round(width / FONT, 2),
        paths=paths,
        rows=[
            (name, round(left - 3), round(top + at + 0.35 * FONT, 1)) for name, at in zip(classes, middle, strict=True)
        ],
        columns=[
            (name, round(left + at + 0.2 * FONT, 1), round(top - 3)) for name, at in zip(classes, middle, strict=True)
        ],
    )


def _runs(chosen_KK: np.ndarray) -> list[str]:
    """Neighbours in a row as one rectangle, in cells."""
    found = []
    for i, chosen_K in enumerate(chosen_KK):
        edges = np.flatnonzero(np.diff(np.concatenate(([0], chosen_K.astype(np.int8), [0]))))
        found += [f"M{start} {i}h{end - start}v1h-{end - start}z" for start, end in zip(edges[::2], edges[1::2])]
    return found


def _strongest(share_KK: np.ndarray, classes: Sequence[str], num_pairs: int = 5) -> str:
    """The highest cells in words, for readers who cannot see the map."""
    order = np.argsort(-np.nan_to_num(share_KK, nan=-1.0), axis=None, kind="stable")[:num_pairs]
    pairs = [(i, j) for i, j in zip(*np.unravel_index(order, share_KK.shape), strict=True) if share_KK[i, j] > 0]
    if not pairs:
        return "No pair with a share above zero."
    return f"Highest: {', '.join(f'{classes[j]} with {classes[i]} {percent(share_KK[i, j])}' for i, j in pairs)}."
