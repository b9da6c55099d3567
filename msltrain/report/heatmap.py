"""Co-occurrence on the page: heat maps of labels and false alarms, and a table of the pairs that stand out.

K classes. Row i is the class that is present, column j the other one.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import pairwise

import numpy as np

from msltrain.report.cooccurrence import leaning_pairs
from msltrain.report.finding import percent
from msltrain.report.metric_tables import heads, switch
from msltrain.report.numbers import Numbers

LEVELS = (0.01, 0.03, 0.1, 0.3, 0.6)
"""A cell is darker from each of these on; below the first it is empty."""
CELL = 12
FONT = 9
"""In the units of the drawing."""
SMALL_UP_TO, MEDIUM_UP_TO = 14, 24
"""With so many classes three maps, or two, stand side by side; with more a map takes the whole width of the page."""
NUM_PAIRS = 12


def cooccurrence_figure(numbers: Numbers) -> str:
    """Where labels stand together, and what each model sees without reason where a companion stands."""
    together = _map(
        numbers.companions.share_KK, numbers.classes, "Of the images with the row's class, the column's too"
    )
    parts = [f"<div><h3>Labels of the test images</h3>{together}</div>"]
    for run, alarms in zip(numbers.runs, numbers.false_alarms, strict=True):
        drawn = (
            _map(alarms[condition].rate_KK, numbers.classes, f"False alarms of {run.name}")
            for condition in numbers.ends
        )
        maps = "".join(f'<div class="in{end}">{one}</div>' for end, one in enumerate(drawn))
        parts.append(f"<div><h3>False alarms of {escape(run.name)}</h3>{maps}</div>")
    size = " wide" if len(numbers.classes) > MEDIUM_UP_TO else "" if len(numbers.classes) > SMALL_UP_TO else " small"
    return switch("companions", numbers, f'{_scale()}<div class="maps{size}">{"".join(parts)}</div>')


def pairs_table(numbers: Numbers, condition: str) -> str:
    """The pairs with the most false alarms beyond the usual, for every model; nothing where there are none."""
    alarms = [one[condition] for one in numbers.false_alarms]
    rows = []
    for i, j in leaning_pairs(alarms, NUM_PAIRS):
        cells = f"<td>{escape(numbers.classes[j])}</td><td>{alarms[0].num_images_KK[i, j]:,}</td>"
        cells += f"<td>{known(numbers.companions.share_KK[i, j])}</td>"
        for one in alarms:
            cells += f"<td>{known(one.rate_KK[i, j])}</td><td>{known(one.rate_elsewhere_KK[i, j])}</td>"
        rows.append(f'<tr><th scope="row">{escape(numbers.classes[i])}</th>{cells}</tr>')
    if not rows:
        return ""
    if len(alarms) == 1:
        names = ["Present", "Absent, yet seen", "Images", "Labelled together", "Seen", "Seen elsewhere"]
    else:
        names = ["Present", "Absent, yet seen", "Images", "Labelled together"]
        names += [f"{run.name}{where}" for run in numbers.runs for where in ("", ", elsewhere")]
    return f"<thead><tr>{heads(names)}</tr></thead><tbody>{''.join(rows)}</tbody>"


def _map(share_KK: np.ndarray, classes: Sequence[str], what: str) -> str:
    """An SVG; cells of one level are one path, so that 80 classes stay small."""
    left = top = 4 + 0.55 * FONT * max(map(len, classes))
    size = CELL * len(classes)
    # Column names lean to the right, beyond the last column.
    width, height = left + size + 0.7 * top, 0.75 * top + size + 1
    top *= 0.75
    parts = [f'<rect class="field" x="{left:.0f}" y="{top:.0f}" width="{size}" height="{size}"/>']
    with np.errstate(invalid="ignore"):
        level_KK = np.where(np.isnan(share_KK), 0, np.searchsorted(LEVELS, np.nan_to_num(share_KK), side="right"))
    for level in range(1, len(LEVELS) + 1):
        if cells := "".join(_runs(level_KK == level)):
            parts.append(
                f'<path class="level{level}" transform="translate({left:.0f} {top:.0f}) scale({CELL})" d="{cells}"/>'
            )
    for k, name in enumerate(classes):
        y, x = top + CELL * (k + 0.5) + 0.35 * FONT, left + CELL * (k + 0.5) + 0.2 * FONT
        parts.append(f'<text x="{left - 3:.0f}" y="{y:.1f}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<text transform="translate({x:.1f} {top - 3:.0f}) rotate(-45)">{escape(name)}</text>')
    alt = f"{what}, in percent. {_strongest(share_KK, classes)}"
    return (
        f'<div class="scroll"><svg class="plot heat" viewBox="0 0 {width:.0f} {height:.0f}" role="img" '
        f'aria-label="{escape(alt)}">{"".join(parts)}</svg></div>'
    )


def _runs(chosen_KK: np.ndarray) -> list[str]:
    """Neighbours in a row as one rectangle, in cells."""
    found = []
    for i, chosen_K in enumerate(chosen_KK):
        edges = np.flatnonzero(np.diff(np.concatenate(([0], chosen_K.astype(np.int8), [0]))))
        found += [f"M{start} {i}h{end - start}v1h-{end - start}z" for start, end in zip(edges[::2], edges[1::2])]
    return found


def _strongest(share_KK: np.ndarray, classes: Sequence[str], num_pairs: int = 5) -> str:
    """The highest cells in words, for those who cannot see the map."""
    order = np.argsort(-np.nan_to_num(share_KK, nan=-1.0), axis=None, kind="stable")[:num_pairs]
    pairs = [(i, j) for i, j in zip(*np.unravel_index(order, share_KK.shape), strict=True) if share_KK[i, j] > 0]
    if not pairs:
        return "No pair with a share above zero."
    return f"Highest: {', '.join(f'{classes[j]} with {classes[i]} {percent(share_KK[i, j])}' for i, j in pairs)}."


def _scale() -> str:
    """Which tone stands for which share."""
    bounds = [f"{100 * low:.0f}" for low in LEVELS]
    names = [f"{low}–{high} %" for low, high in pairwise(bounds)] + [f"from {bounds[-1]} %"]
    items = "".join(f'<li><i class="tone level{level}"></i>{name}</li>' for level, name in enumerate(names, 1))
    return f'<ul class="legend">{items}</ul>'


def known(share: float) -> str:
    """In percent, or a dash for NaN."""
    return percent(None if np.isnan(share) else float(share))
