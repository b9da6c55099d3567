"""A robustness study as one figure and one table: ``robustness.png``, ``robustness.md``, ``robustness.json``."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from msldata.storage import LocalStorage
from msltrain.robustness.curves import (
    MEASURES,
    VISIBLE_BINS,
    Cell,
    Curves,
    is_bin,
    pooled_false_rate,
    pooled_visibility,
)

FIGURE_NAME, TABLE_NAME, DATA_NAME = "robustness.png", "robustness.md", "robustness.json"
_COLOURS = ("#4477aa", "#66ccee", "#ee6677", "#228833", "#aa3377", "#ccbb44", "#777777")
"""Paul Tol's bright scheme: distinct for colour-blind readers too; markers differ as well."""
_MARKERS = "osD^vP*"
FEW = 20
"""A share of fewer pairs than this is in the table but not drawn."""


def write_robustness(curves: Curves, out: Path) -> list[Path]:
    """Write the three files into ``out``, each replaced as a whole; give their paths."""
    folder = LocalStorage(out)
    folder.put(DATA_NAME, curves.to_json().encode())
    folder.put(TABLE_NAME, robustness_table(curves).encode())
    folder.put(FIGURE_NAME, draw_figure(curves))
    return [out / name for name in (FIGURE_NAME, TABLE_NAME, DATA_NAME)]


def robustness_table(curves: Curves) -> str:
    """Markdown: the three measures by hole fraction, the area under each curve, recall by visible share."""
    lines = ["# Robustness to holes", "", f"{curves.num_samples:,} images. All numbers in percent.", ""]
    if curves.skipped:
        lines += [f"Besides these, {len(curves.skipped)} damaged samples were left out, for every model:", ""]
        lines += [*(f"- {sample}" for sample in curves.skipped), ""]
    for kind in curves.kinds:
        rows = {model: curves.of(model, kind) for model in curves.models}
        first = rows[curves.models[0]]
        for measure in MEASURES:
            points = [f"{_condition(cell)} ({_percent(cell.hole_fraction)})" for cell in first]
            head = [f"{measure}, {kind} holes", *points, "area"]
            lines += _head(head)
            for model, cells in rows.items():
                area = next(area for area in curves.areas if (area.model, area.kind) == (model, kind))
                values = [*(getattr(cell, measure) for cell in cells), getattr(area, measure)]
                lines.append(_row([model, *map(_percent, values)]))
            lines.append("")
        if any(cell.visible_share for cell in first):
            lines += _visibility(kind, rows)
    lines += [
        "In brackets: mean hole fraction. Area: mean height of the curve between no hole and the last ten-percent bin.",
        "",
    ]
    if any(cell.visible_share for cell in curves.cells):
        lines += [
            "Predicted: share of (image, class) pairs with a score ≥ 0.5, by how much is left of the box of the least",
            "hidden object of the class (in brackets: pairs), over all ten-percent bins. In the first column nothing",
            "of the class can be seen: a prediction there leans on the rest of the picture. The last column is the",
            "rate of plain false alarms.",
            "",
        ]
    return "\n".join(lines)


def _visibility(kind: str, rows: dict[str, list[Cell]]) -> list[str]:
    pairs = [num_pairs for _, num_pairs in pooled_visibility(next(iter(rows.values())))]
    names = [f"{_visible(low, high)} ({count:,})" for (low, high), count in zip(VISIBLE_BINS, pairs, strict=True)]
    lines = _head([f"predicted, {kind} holes", *names, "absent classes"])
    for model, cells in rows.items():
        shares = [done / count if count else None for done, count in pooled_visibility(cells)]
        lines.append(_row([model, *map(_percent, shares), _percent(pooled_false_rate(cells))]))
    return [*lines, ""]


def draw_figure(curves: Curves) -> bytes:
    """PNG: a row per kind of keep mask; mAP, CR, CF1 over the hole fraction, predictions over the visible share."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shows_objects = any(cell.visible_share for cell in curves.cells)
    num_columns = len(MEASURES) + shows_objects
    figure, axes = pyplot.subplots(
        len(curves.kinds), num_columns, figsize=(3.7 * num_columns, 0.6 + 3.3 * len(curves.kinds)), squeeze=False
    )
    for row, kind in zip(axes, curves.kinds, strict=True):
        for number, model in enumerate(curves.models):
            cells = curves.of(model, kind)
            style = {"color": _COLOURS[number % len(_COLOURS)], "marker": _MARKERS[number % len(_MARKERS)], "ms": 5}
            for axis, measure in zip(row, MEASURES):
                _draw_curve(axis, cells, measure, model, style)
            if shows_objects:
                _draw_visibility(row[-1], cells, style)
        for axis, measure in zip(row, MEASURES):
            axis.set(title=f"{measure}, {kind} holes", xlabel="hidden share of the image, %")
        if shows_objects:
            row[-1].set(title="Positives predicted", xlabel="visible share of the object, %")
            row[-1].set_xticks(range(len(VISIBLE_BINS)), [_visible(*one, short=True) for one in VISIBLE_BINS])
        for axis in row:
            axis.set_ylim(0, 1.08 * max(axis.dataLim.ymax, 1))  # markers at the top are whole
            axis.grid(alpha=0.3)
            axis.spines[["top", "right"]].set_visible(False)
        row[0].set_ylabel("%")
    handles, labels = axes[0][0].get_legend_handles_labels()
    inch = 1 / figure.get_size_inches()[1]
    figure.tight_layout(rect=(0, 0.6 * inch, 1, 1))
    where = (0.5, 0.18 * inch)
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), frameon=False, bbox_to_anchor=where)
    note = "hollow: all masks that hide more than half"
    note += "; dotted: false alarms for absent classes" if shows_objects else ""
    figure.text(0.5, 0.06 * inch, note, ha="center", fontsize=8, color="#555555")
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=130, metadata={"Software": None})
    pyplot.close(figure)
    return data.getvalue()


def _draw_curve(axis, cells: Sequence[Cell], measure: str, model: str, style: dict) -> None:  # type: ignore[no-untyped-def]
    points = [cell for cell in cells if is_bin(cell)]
    axis.plot(
        [100 * cell.hole_fraction for cell in points],
        [100 * getattr(cell, measure) for cell in points],
        label=model,
        **style,
    )
    for cell in cells:
        if not is_bin(cell):
            axis.plot([100 * cell.hole_fraction], [100 * getattr(cell, measure)], mfc="white", ls="", **style)


def _draw_visibility(axis, cells: Sequence[Cell], style: dict) -> None:  # type: ignore[no-untyped-def]
    pooled = [(n, 100 * done / count) for n, (done, count) in enumerate(pooled_visibility(cells)) if count >= FEW]
    axis.plot([n for n, _ in pooled], [share for _, share in pooled], **style)
    axis.axhline(100 * pooled_false_rate(cells), color=style["color"], ls=":", lw=1)


def _condition(cell: Cell) -> str:
    return cell.condition.removeprefix(f"{cell.kind}-")


def _visible(low: float, high: float, *, short: bool = False) -> str:
    if high == 0:
        return "0" if short else "wholly hidden"
    return f"{100 * low:.0f}–{100 * high:.0f}" + ("" if short else " % visible")


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _head(names: Sequence[str]) -> list[str]:
    return [_row(names), "| --- |" + " ---: |" * (len(names) - 1)]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
