"""The report's tables: the same rows for the page and for Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from msldata.errors import counted
from msltrain.measures.metrics import SUMMARY, ClassMetrics
from msltrain.measures.spreadsheet import cell, csv_text
from msltrain.pages.svg import style_name
from msltrain.pages.tables import Cell, Group, Row, Table
from msltrain.pages.text import capital, percent, points
from msltrain.report.cooccurrence import leaning_pairs
from msltrain.report.numbers import Numbers
from msltrain.report.open_runs import RunReport, describe_condition
from msltrain.report.series import Series
from msltrain.runs.run_places import WHOLE

NUM_PAIRS = 12


@dataclass(frozen=True, kw_only=True)
class Bar:
    """The AP of one model for one class."""

    model: str
    style: str
    share: str
    """Its length in percent."""
    text: str
    found: str
    """At a score of 0.5: how many of the class's images are named so, and how many others; empty without an image."""


@dataclass(frozen=True, kw_only=True)
class ClassRow:
    """One class: a bar per model, on whole images and in the hardest condition."""

    index: int
    name: str
    num_images: int
    ends: list[list[Bar]]


def where(numbers: Numbers, condition: str) -> str:
    """The name of a condition, with the share that it hides."""
    return describe_condition(condition, numbers.runs[0].conditions[condition])


def measures_table(numbers: Numbers) -> Table:
    """mAP, CP, CR, CF1, OP, OR, OF1 in percent, by condition and run, with the differences from the first run; of
    series also means ± standard deviations, and the differences of the means instead."""
    runs, groups = numbers.runs, []
    for condition in numbers.conditions:
        values = [list(entry[condition].metrics.summary().values()) for entry in numbers.measured]
        columns = [_best(column) for column in zip(*values)]
        rows = []
        for run, entry, shown in zip(runs, numbers.measured, zip(*columns), strict=True):
            rows.append(Row(name=run.name, cells=[each.text for each in shown] if numbers.series else shown))
            if (tuned := entry[condition].metrics.tuned) is not None:  # mAP knows no thresholds
                at_those = [percent(getattr(tuned, name)) if name != "mAP" else "" for name in SUMMARY]
                rows.append(Row(name=f"{run.name}, tuned thresholds", cells=at_those))
        if numbers.series:
            rows += _series_rows(numbers.series, condition)
            groups.append(Group(title=capital(where(numbers, condition)), rows=rows))
            continue
        for run, mine in zip(runs[1:], values[1:], strict=True):
            label = "difference" if len(runs) == 2 else f"{run.name} − {runs[0].name}"
            cells = [points(value - first) for value, first in zip(mine, values[0], strict=True)]
            rows.append(Row(name=label, cells=cells, style="difference"))
        groups.append(Group(title=capital(where(numbers, condition)), rows=rows))
    return Table(name="Model", columns=SUMMARY, groups=groups, style="measures")


def _series_rows(series: Sequence[Series], condition: str) -> list[Row]:
    """Mean ± standard deviation of every series, the best mean marked, and how far they lie from that of the first."""
    best = {name: max(one.summary[condition][name][0] for one in series) for name in SUMMARY}
    rows = []
    for one in series:
        values = one.summary[condition]
        cells = [
            Cell(
                text=one.text(condition, name),
                style="best" if len(series) > 1 and values[name][0] == best[name] else "",
            )
            for name in SUMMARY
        ]
        rows.append(Row(name=f"{one.name}, {counted(len(one.members), 'run')}", cells=cells))
    first = series[0].summary[condition]
    for one in series[1:]:
        points_ = [points(one.summary[condition][name][0] - first[name][0]) for name in SUMMARY]
        rows.append(Row(name=f"{one.name} − {series[0].name}", cells=points_, style="difference"))
    return rows


def strata_table(numbers: Numbers) -> Table | None:
    """mAP and CR by size and occlusion of the largest object, or nothing without object annotations."""
    groups = []
    for condition in numbers.conditions:
        rows = []
        for same in zip(*(entry[condition].strata for entry in numbers.measured), strict=True):
            if not same[0].num_positive:
                continue
            cells = (*_best([one.mAP for one in same]), *_best([one.CR for one in same]))
            rows.append(Row(name=same[0].name, cells=[f"{same[0].num_positive:,}", *cells]))
        if not rows:
            return None
        groups.append(Group(title=capital(where(numbers, condition)), rows=rows))
    names = [run.name for run in numbers.runs]
    several = len(names) > 1
    columns = ["Pairs", *names, *names] if several else ["Pairs", "mAP", "CR"]
    over = [("mAP", len(names)), ("CR", len(names))] if several else []
    return Table(name="Largest object", columns=columns, over=over, groups=groups, style="strata")


def class_rows(numbers: Numbers) -> list[ClassRow]:
    """AP by class, on whole images and in the hardest condition; see ``Numbers.shown_classes``."""
    rows = []
    for k in numbers.shown_classes():
        ends = []
        for condition in numbers.ends:
            classes = [measured[condition].metrics.classes[k] for measured in numbers.measured]
            ends.append(
                [
                    Bar(
                        model=run.name,
                        style=style_name(number),
                        share=f"{100 * (one.average_precision or 0):.1f}%",
                        text=percent(one.average_precision),
                        found=_found(one),
                    )
                    for number, (run, one) in enumerate(zip(numbers.runs, classes, strict=True))
                ]
            )
        one = numbers.measured[0][WHOLE].metrics.classes[k]
        rows.append(ClassRow(index=k, name=one.name, num_images=one.num_positive, ends=ends))
    return rows


def _found(one: ClassMetrics) -> str:
    others = one.num_predicted - one.num_correct
    found = f"{one.num_correct:,} of {one.num_positive:,}{f' +{others:,}' if others else ''}"
    return found if one.num_positive else ""


def class_table(numbers: Numbers) -> Table:
    """The class table as plain numbers."""
    rows = [
        Row(name=row.name, cells=[f"{row.num_images:,}", *(bar.text for bars in row.ends for bar in bars)])
        for row in class_rows(numbers)
    ]
    names = [f"{run.name}, {where(numbers, end)}" for end in numbers.ends for run in numbers.runs]
    return Table(name="Class", columns=["Images", *names], groups=[Group(rows=rows)])


def all_classes(numbers: Numbers) -> str:
    """Every class as CSV, in the order of the page: positives, and AP by run and condition, in [0, 1]."""
    columns = [(run.name, entry, end) for end in numbers.ends for run, entry in zip(numbers.runs, numbers.measured)]
    rows: list[list[object]] = [
        ["class", "images", *(cell(f"AP {name}, {where(numbers, end)}") for name, _, end in columns)]
    ]
    for k in numbers.class_order():
        values = [entry[end].metrics.classes[k].average_precision for _, entry, end in columns]
        one = numbers.measured[0][WHOLE].metrics.classes[k]
        shown = ("" if value is None else f"{value:.6g}" for value in values)
        rows.append([cell(one.name), one.num_positive, *shown])
    return csv_text(rows)


def pairs_table(numbers: Numbers) -> Table | None:
    """The pairs with the most false alarms beyond the usual in the hardest condition; nothing where there are none."""
    alarms = [one[numbers.ends[-1]] for one in numbers.false_alarms]
    rows = []
    for i, j in leaning_pairs(alarms, NUM_PAIRS):
        rates = [percent(rate) for one in alarms for rate in (one.rate_KK[i, j], one.rate_elsewhere_KK[i, j])]
        counts = [f"{alarms[0].num_images_KK[i, j]:,}", percent(numbers.companions.share_KK[i, j])]
        present, absent = (numbers.classes[numbers.together[number]] for number in (i, j))
        rows.append(Row(name=present, cells=[Cell(text=absent, style="kind"), *counts, *rates]))
    if not rows:
        return None
    names = [f"{run.name}{also}" for run in numbers.runs for also in ("", ", elsewhere")]
    columns = ["Absent, yet seen", "Images", "Labelled together", *(names if len(alarms) > 1 else _SEEN)]
    return Table(name="Present", columns=columns, groups=[Group(rows=rows)], style="pairs sortable")


_SEEN = ("Seen", "Seen elsewhere")


def settings_table(runs: Sequence[RunReport]) -> Table | None:
    """The settings in which the runs differ, or nothing if they do not."""
    settings = [_flatten(asdict(run.config)) for run in runs]
    rows = [
        Row(name=name, cells=[_plain(entry[name]) for entry in settings])
        for name in settings[0]
        if any(entry[name] != settings[0][name] for entry in settings)
    ]
    if not rows:
        return None
    return Table(name="Setting", columns=[run.name for run in runs], groups=[Group(rows=rows)], style="words")


def _best(values: Sequence[float | None]) -> list[Cell]:
    """Cells in percent, in the order of the runs; the best one is marked where they differ."""
    known = [percent(value) for value in values if value is not None]
    best = max(known, key=float) if len(set(known)) > 1 else None
    return [Cell(text=percent(value), style="best" if percent(value) == best else "") for value in values]


def _flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{section}.{name}": value for section, fields in config.items() for name, value in fields.items()}


def _plain(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(str(part) for part in value) or "none"
    return "none" if value is None or value == "" else str(value)
