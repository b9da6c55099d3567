"""The tables and the plot of the study, from its rows; intervals from the predictions, where they are at hand."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.methods.jobs import SETTINGS, STAGES, Job, Places
from msltrain.measures.bootstrap import mean_ap_difference
from msltrain.measures.predictions import read_predictions

PLOT = "methods-{stage}.svg"
COLUMNS = (
    ("whole", "mAP"),
    ("low", "mAP"),
    ("high", "mAP"),
    ("whole", "CF1"),
    ("whole", "CR"),
    ("high", "CF1"),
)


def write_tables(rows: Sequence[dict[str, Any]], places: Places, plots: Path) -> None:
    """Print a table for each stage that has rows, and draw its plot into the folder ``plots``."""
    for stage in STAGES:
        found = {
            setting: own
            for setting in SETTINGS
            if (own := [row for row in rows if row["stage"] == stage and row["setting"] == setting])
        }
        if found:
            print(f"\n### {stage}\n")
            _write_stage(stage, found, places)
            _draw(stage, found, plots / PLOT.format(stage=stage))


def _write_stage(stage: str, found: dict[str, list[dict[str, Any]]], places: Places) -> None:
    columns = [pair for pair in COLUMNS if all(pair[0] in row for rows in found.values() for row in rows)]
    heads = ["seeds", "passes", *(f"{measure}, {view}" for view, measure in columns), "whole − best baseline (95 %)"]
    print(f"| setting | {' | '.join(heads)} |\n| --- |{' ---: |' * len(heads)}")
    baseline = best_baseline(found)
    for setting in sorted(found, key=lambda name: -_mean(found[name], "whole", "mAP")):
        own = found[setting]
        cells = [str(len(own)), f"{own[0]['passes']:g}"]
        cells += [spread([row[view][measure] for row in own]) for view, measure in columns]
        cells.append("" if baseline in (None, setting) else _differences(stage, baseline, setting, own, places))
        print(f"| {setting} | {' | '.join(cells)} |")


def best_baseline(found: dict[str, list[dict[str, Any]]]) -> str | None:
    """The plain baseline with the best whole images: of its budgets, the one to be measured against."""
    plain = [setting for setting in found if setting.startswith("baseline")]
    return max(plain, key=lambda name: _mean(found[name], "whole", "mAP"), default=None)


def _differences(stage: str, baseline: str, setting: str, own: Sequence[dict[str, Any]], places: Places) -> str:
    """mAP on whole images by seed, the test images resampled for both models."""
    texts = []
    for row in own:
        files = [
            places.work / "predictions" / Job(stage, name, row["seed"]).folder / "whole.parquet"
            for name in (baseline, setting)
        ]
        if all(file.exists() for file in files):
            interval = mean_ap_difference(*map(read_predictions, files))
            value, low, high = (100 * number for number in (interval.value, interval.low, interval.high))
            texts.append(f"{value:+.1f} ({low:+.1f} to {high:+.1f})")
    return "; ".join(texts).replace("-", "−")


def spread(values: Sequence[float]) -> str:
    """Mean ± sample standard deviation, in percent."""
    mean = f"{100 * statistics.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {100 * statistics.stdev(values):.1f}"


def _mean(rows: Sequence[dict[str, Any]], view: str, measure: str) -> float:
    return statistics.mean(row[view][measure] for row in rows)


def _draw(stage: str, found: dict[str, list[dict[str, Any]]], file: Path) -> None:
    """Whole against hidden, and the front of those that no other beats in both."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "methods", "font.size": 8})
    from matplotlib import pyplot

    point = {
        name: (100 * _mean(rows, "high", "mAP"), 100 * _mean(rows, "whole", "mAP")) for name, rows in found.items()
    }
    figure, axes = pyplot.subplots(figsize=(7, 5), layout="constrained")
    for name, (hidden, whole) in point.items():
        axes.plot(hidden, whole, "o", color="tab:grey" if name.startswith("baseline") else "tab:blue", markersize=4)
        axes.annotate(name, (hidden, whole), xytext=(3, 3), textcoords="offset points", fontsize=7)
    front = sorted(
        place
        for place in point.values()
        if not any(a >= place[0] and b >= place[1] and (a, b) != place for a, b in point.values())
    )
    axes.plot(*zip(*front, strict=True), "-", color="tab:orange", linewidth=1, zorder=0)
    axes.set_xlabel("mAP behind heavy holes (%)")
    axes.set_ylabel("mAP on whole images (%)")
    axes.grid(alpha=0.3)
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)
    print(f"\n![whole against hidden]({file.name})\n")
