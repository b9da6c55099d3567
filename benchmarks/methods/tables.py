"""The tables and the plots of the study, from its rows and intervals.

An interval of a difference needs the predictions of both, which are not committed. So the first machine that has them
writes it down, in ``intervals.jsonl``.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.methods.jobs import SETTINGS, STAGES, Job, Places
from msltrain.measures.bootstrap import mean_ap_difference
from msltrain.measures.predictions import read_predictions

Found = Mapping[str, Sequence[dict[str, Any]]]
"""Rows of one stage by setting, a row a seed."""

TITLES = {
    "small160": "400 photographs of VOC2007, 160 pixels, MobileNetV2",
    "small224": "400 photographs of VOC2007, 224 pixels, MobileNetV2",
    "full160": "All 2,334 photographs of VOC2007 train, 160 pixels, MobileNetV2",
    "full224": "All 2,334 photographs of VOC2007 train, 224 pixels, MobileNetV2",
    "rivals224": "Rivals: 400 photographs of VOC2007, 224 pixels, MobileNetV2",
    "lite224": "All 2,334 photographs of VOC2007 train, 224 pixels, EfficientNet-Lite0",
    "reef": "The demo's drawn reef, 3,600 pictures at 64 pixels, a small ResNet from scratch",
    "reef9": "The same in the demo's own nine epochs",
}
"""What a stage is called; stages without a title were trials and are not shown."""
COLUMNS = (
    ("whole", "mAP"),
    ("low", "mAP"),
    ("high", "mAP"),
    ("whole", "CF1"),
    ("whole", "CR"),
    ("high", "CF1"),
)
VIEWS = {"whole": "whole", "low": "low holes", "high": "high holes"}
STRATA = (
    *("small share", "medium share", "large share"),
    *("covered to 25 %", "covered 25–50 %", "covered over 50 %"),
    *("truncated", "not truncated"),
)
INTERVALS = Path(__file__).parent / "intervals.jsonl"
BEGIN, END = "<!-- study:begin -->", "<!-- study:end -->"


def write_tables(rows: Sequence[dict[str, Any]], places: Places, page: Path) -> None:
    """Put the tables of every stage that has rows between the marks of ``page``, and its plots beside it."""
    parts = []
    for stage, title in TITLES.items():
        found = {
            setting: own
            for setting in SETTINGS
            if (own := [row for row in rows if row["stage"] == stage and row["setting"] == setting])
        }
        if found:
            plot = page.parent / f"methods-{stage}.svg"
            draw(found, plot)
            parts.append(
                f"### {title}\n\n{STAGES[stage].epochs} epochs. ![Whole images against hidden ones]({plot.name})\n\n"
                + "\n".join(_main_table(stage, found, places))
                + "\n\nOn whole images, by object (mAP / CR):\n\n"
                + "\n".join(_strata_table(found))
            )
    text = page.read_text(encoding="utf-8")
    pattern = re.compile(f"{BEGIN}.*{END}", re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"{page}: the marks {BEGIN} and {END} are missing")
    whole = f"{BEGIN}\n" + "\n\n".join(parts) + f"\n{END}"
    page.write_text(pattern.sub(lambda match: whole, text), encoding="utf-8")


def _main_table(stage: str, found: Found, places: Places) -> Iterator[str]:
    """Settings, best on whole images first, measured against the better budget of the plain baseline."""
    columns = [pair for pair in COLUMNS if all(pair[0] in row for rows in found.values() for row in rows)]
    heads = ["seeds", "passes", *(f"{measure}, {VIEWS[view]}" for view, measure in columns)]
    heads.append("mAP on whole images against the best baseline (95 %, by seed)")
    yield f"| setting | {' | '.join(heads)} |\n| --- |{' ---: |' * len(heads)}"
    baseline = best_baseline(found)
    for setting in _ranked(found):
        own = found[setting]
        cells = [str(len(own)), f"{own[0]['passes']:g}"]
        cells += [spread([row[view][measure] for row in own]) for view, measure in columns]
        cells.append("" if baseline in (None, setting) else _differences(stage, str(baseline), setting, own, places))
        yield f"| `{setting}` | {' | '.join(cells)} |"


def _strata_table(found: Found) -> Iterator[str]:
    names = [name for name in STRATA if any(name in _strata(row) for rows in found.values() for row in rows)]
    yield f"| setting | {' | '.join(names)} |\n| --- |{' ---: |' * len(names)}"
    for setting in _ranked(found):
        known = [[pair for row in found[setting] if (pair := _strata(row).get(name))] for name in names]
        cells = [" / ".join(spread([pair[index] for pair in own]) for index in (0, 1)) if own else "–" for own in known]
        yield f"| `{setting}` | {' | '.join(cells)} |"


def _strata(row: Mapping[str, Any]) -> dict[str, Sequence[float]]:
    return row["whole"]["strata"] | row.get("flagged", {})


def _ranked(found: Found) -> list[str]:
    return sorted(found, key=lambda name: -_mean(found[name], "whole", "mAP"))


def best_baseline(found: Found) -> str | None:
    """The plain baseline to be measured against: of those with most seeds, the one with the best whole images."""
    plain = [setting for setting in found if setting.startswith("baseline")]
    return max(plain, key=lambda name: (len(found[name]), _mean(found[name], "whole", "mAP")), default=None)


def _differences(stage: str, baseline: str, setting: str, own: Sequence[dict[str, Any]], places: Places) -> str:
    """mAP on whole images by seed, the test images resampled for both models."""
    texts = []
    for row in own:
        interval = _interval(Job(stage, baseline, row["seed"]), Job(stage, setting, row["seed"]), places)
        if interval:
            value, low, high = (100 * interval[name] for name in ("value", "low", "high"))
            texts.append(f"{value:+.1f} ({low:+.1f} to {high:+.1f})")
    return "; ".join(texts).replace("-", "−")


def _interval(baseline: Job, job: Job, places: Places) -> dict[str, Any] | None:
    """As written down, or computed now and written down; None where neither is possible."""
    pair = {"jobs": [baseline.name, job.name], "digests": [baseline.digest, job.digest]}
    lines = INTERVALS.read_text(encoding="utf-8").splitlines() if INTERVALS.exists() else []
    for known in map(json.loads, lines):
        if known["digests"] == pair["digests"]:
            return known
    files = [places.work / "predictions" / one.folder / "whole.parquet" for one in (baseline, job)]
    if not all(file.exists() for file in files):
        return None
    found = mean_ap_difference(*map(read_predictions, files))
    row = pair | {name: round(getattr(found, name), 5) for name in ("value", "low", "high")}
    with open(INTERVALS, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    return row


def spread(values: Sequence[float]) -> str:
    """Mean ± sample standard deviation, in percent."""
    mean = f"{100 * statistics.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {100 * statistics.stdev(values):.1f}"


def _mean(rows: Sequence[dict[str, Any]], view: str, measure: str) -> float:
    return statistics.mean(row[view][measure] for row in rows)


def draw(found: Found, file: Path) -> None:
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
    front = sorted(
        place
        for place in point.values()
        if not any(a >= place[0] and b >= place[1] and (a, b) != place for a, b in point.values())
    )
    axes.plot(*zip(*front, strict=True), "-", color="tab:orange", linewidth=1, zorder=0)
    axes.set_xlabel("mAP behind heavy holes (%)")
    axes.set_ylabel("mAP on whole images (%)")
    axes.grid(alpha=0.3)
    figure.draw_without_rendering()
    taken: list[Any] = []
    for name, place in sorted(point.items(), key=lambda item: -item[1][1]):
        taken.append(_label(axes, name, place, taken))
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)


def _label(axes: Any, name: str, place: tuple[float, float], taken: Sequence[Any]) -> Any:
    """Write a point's name on the side of it where it crosses fewest that are there already; the box that it takes."""
    labels = [
        axes.annotate(name, place, xytext=offset, textcoords="offset points", fontsize=7, ha=ha, va=va, in_layout=False)
        for offset, ha, va in (
            ((3, 3), "left", "bottom"),
            ((3, -3), "left", "top"),
            ((-3, 3), "right", "bottom"),
            ((-3, -3), "right", "top"),
        )
    ]
    boxes = [label.get_window_extent() for label in labels]
    faults = [sum(map(box.overlaps, taken)) + _leaves(box, axes.bbox) for box in boxes]
    best = faults.index(min(faults))
    for label in labels[:best] + labels[best + 1 :]:
        label.remove()
    return boxes[best]


def _leaves(box: Any, frame: Any) -> bool:
    return not (frame.x0 < box.x0 and box.x1 < frame.x1 and frame.y0 < box.y0 and box.y1 < frame.y1)
