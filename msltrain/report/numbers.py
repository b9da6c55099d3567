"""Every number of a report, measured once from the predictions, and its JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from msltrain.measures.bootstrap import (
    Interval,
    interval_around,
    resampled_mean_ap,
    resampled_share,
)
from msltrain.measures.predictions import Predictions
from msltrain.measures.summary import Measured, measure
from msltrain.measures.thresholds import held_out_beside
from msltrain.report.cooccurrence import Companions, FalseAlarms, count_companions, count_false_alarms
from msltrain.report.open_runs import RunReport
from msltrain.report.series import Series, join_series
from msltrain.robustness.curves import Curves
from msltrain.runs.run_places import WHOLE

MOST_CLASSES = 100
"""With more, the page shows so many, and a table beside it all."""
MOST_TOGETHER = 40
"""With more than ``MOST_CLASSES``, so many are looked at in pairs."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a reader who does not know the measures wants to know; a class counts once per image.

    Two models are compared where they make equally many false alarms: a score of 0.5 means another caution in each.
    """

    num_images: int
    num_objects: int
    """Positive (image, class) pairs."""
    num_found: int
    """Those of them that score 0.5 or more."""
    num_false: int
    """Pairs of that score that are not there; ignored ones do not count."""
    num_found_alike: int
    """The positives found at the lowest score with no more false alarms than the reference makes at 0.5."""
    gain: Interval
    """Share of the positives found so, minus that of the reference; each resample keeps the scores."""


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """What the page, Markdown and JSON show; lists are in the order of the runs."""

    runs: tuple[RunReport, ...]
    """The reference first."""
    measured: tuple[Mapping[str, Measured], ...]
    """By condition, each with the interval of its mAP."""
    differences: tuple[Mapping[str, Interval], ...]
    """mAP minus the reference's, by condition; empty for the reference."""
    found: tuple[Mapping[str, Found], ...]
    """On whole images and in the hardest condition."""
    companions: Companions
    false_alarms: tuple[Mapping[str, FalseAlarms], ...]
    """On whole images and in the hardest condition."""
    together: tuple[int, ...]
    """The classes of ``companions`` and ``false_alarms``: all, or of very many those in most images."""
    curves: Curves | None
    """Curves of the robustness study, if there is one."""
    series: tuple[Series, ...] = ()
    """The runs by series, the reference first; empty where every run stands for itself."""

    @property
    def conditions(self) -> list[str]:
        """Whole images first, then by how much is hidden."""
        return list(self.measured[0])

    @property
    def ends(self) -> list[str]:
        """Whole images and the hardest condition; one of them where nothing is hidden."""
        return list(dict.fromkeys((WHOLE, self.conditions[-1])))

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in logit order."""
        return self.runs[0].clean.classes

    def class_order(self) -> list[int]:
        """Classes by what the last run gains over the first in the hardest condition; with one run, by its AP. Classes
        without a value come last.
        """
        first, last = (self.measured[end][self.conditions[-1]].metrics.classes for end in (0, -1))

        def gain(k: int) -> float:
            before, after = first[k].average_precision, last[k].average_precision
            if before is None or after is None:
                return -np.inf
            return after - before if len(self.runs) > 1 else after

        return sorted(range(len(first)), key=gain, reverse=True)

    @property
    def has_more_classes(self) -> bool:
        """Whether there are more classes than a page can show."""
        return len(self.classes) > MOST_CLASSES

    def shown_classes(self) -> list[int]:
        """The classes on the page, in their order: all, or of very many the first and the last ones with a value."""
        order = self.class_order()
        if not self.has_more_classes:
            return order
        known = [measured[self.conditions[-1]].metrics.classes for measured in (self.measured[0], self.measured[-1])]
        order = [k for k in order if all(classes[k].average_precision is not None for classes in known)]
        half = MOST_CLASSES // 2
        return order if len(order) <= MOST_CLASSES else [*order[:half], *order[-half:]]


def compute_numbers(runs: Sequence[RunReport], curves: Curves | None = None) -> Numbers:
    """Measure comparable runs.

    Args:
        runs: the reference first.
        curves: the curves of a robustness study to show beside them.
    """
    measured: list[Mapping[str, Measured]] = []
    differences: list[Mapping[str, Interval]] = []
    resampled: list[Mapping[str, np.ndarray]] = []
    ends = dict.fromkeys((WHOLE, list(runs[0].conditions)[-1]))
    for number, run in enumerate(runs):
        mine: dict[str, Measured] = {}
        against: dict[str, Interval] = {}
        mine_R: dict[str, np.ndarray] = {}
        for condition, predictions in run.conditions.items():
            folders = [Path(file).parent for file in run.files.values()]
            found = measure(predictions, validation=held_out_beside(predictions, folders))
            value, value_R = found.metrics.mAP, resampled_mean_ap(predictions)
            mine[condition] = Measured(
                origin=found.origin,
                metrics=found.metrics,
                strata=found.strata,
                strata_note=found.strata_note,
                intervals={"mAP": interval_around(value, value_R)},
                threshold_origin=found.threshold_origin,
            )
            mine_R[condition] = value_R
            if number:
                # Every resample used the same images for both.
                gain = value - measured[0][condition].metrics.mAP
                against[condition] = interval_around(gain, value_R - resampled[0][condition])
        measured.append(mine)
        resampled.append(mine_R)
        differences.append(against)
    together = _together(runs[0].clean)
    return Numbers(
        runs=tuple(runs),
        measured=tuple(measured),
        differences=tuple(differences),
        found=tuple({end: _found(run.conditions[end], runs[0].conditions[end]) for end in ends} for run in runs),
        companions=count_companions(runs[0].clean, together),
        false_alarms=tuple({end: count_false_alarms(run.conditions[end], together) for end in ends} for run in runs),
        together=tuple(together),
        curves=curves,
        series=join_series([run.series or run.name for run in runs], measured, resampled),
    )


def _together(predictions: Predictions) -> list[int]:
    """The classes to look at in pairs."""
    num_classes = len(predictions.classes)
    if num_classes <= MOST_CLASSES:
        return list(range(num_classes))
    count_K = (predictions.target_NK > 0).sum(axis=0)
    return sorted(np.argsort(-count_K, kind="stable")[:MOST_TOGETHER].tolist())


def _found(predictions: Predictions, reference: Predictions) -> Found:
    """Count the objects found at 0.5, and where both make as many false alarms as ``reference`` makes there."""
    target_NK = (predictions.target_NK > 0) & ~predictions.ignore_NK
    num_positive_N = target_NK.sum(axis=1)
    num_allowed = int(_false_NK(reference).sum())
    alike_N, before_N = (
        ((one.logit_NK > _logit_allowing(one, num_allowed)) & ~one.ignore_NK & target_NK).sum(axis=1)
        for one in (predictions, reference)
    )
    gain_N = alike_N - before_N
    return Found(
        num_images=len(predictions.keys),
        num_objects=int(num_positive_N.sum()),
        num_found=int(((predictions.logit_NK >= 0) & target_NK).sum()),
        num_false=int(_false_NK(predictions).sum()),
        num_found_alike=int(alike_N.sum()),
        gain=interval_around(
            float(gain_N.sum() / max(num_positive_N.sum(), 1)), resampled_share(gain_N, num_positive_N)
        ),
    )


def _negative_NK(predictions: Predictions) -> np.ndarray:
    return ~predictions.ignore_NK & (predictions.target_NK <= 0)


def _false_NK(predictions: Predictions) -> np.ndarray:
    return (predictions.logit_NK >= 0) & _negative_NK(predictions)


def _logit_allowing(predictions: Predictions, num_false: int) -> float:
    """The lowest logit such that at most ``num_false`` negatives lie above it."""
    negatives = predictions.logit_NK[_negative_NK(predictions)]
    place = len(negatives) - 1 - num_false
    return float(np.partition(negatives, place)[place]) if place >= 0 else -np.inf


def to_json(numbers: Numbers, title: str, examples: Sequence[Mapping[str, Any]] = ()) -> str:
    """All of it as indented JSON text; fractions in [0, 1], null where there is no value, rows of numbers on one line.

    Args:
        numbers: of the report.
        title: of the report.
        examples: what the gallery shows.
    """
    content = {
        "title": title,
        "classes": list(numbers.classes),
        "runs": [
            {
                "name": run.name,
                "unfinished": run.unfinished,
                "conditions": {
                    condition: {"file": run.files.get(condition, ""), **asdict(measured[condition])}
                    for condition in numbers.conditions
                },
                "mAP_minus_first": {name: asdict(interval) for name, interval in differences.items()},
                "found": {name: asdict(found) for name, found in founds.items()},
                "false_alarms": {name: _counts(alarms) for name, alarms in false_alarms.items()},
            }
            for run, measured, differences, founds, false_alarms in zip(
                *(numbers.runs, numbers.measured, numbers.differences, numbers.found, numbers.false_alarms), strict=True
            )
        ],
        "series": [asdict(one) for one in numbers.series],
        **({"classes_together": [numbers.classes[k] for k in numbers.together]} if numbers.has_more_classes else {}),
        "labels_together": _counts(numbers.companions),
        "robustness": None if numbers.curves is None else asdict(numbers.curves),
        "examples": list(examples),
    }
    text = json.dumps(content, indent=1, ensure_ascii=False)
    return re.sub(r"\[[-\s\d.,e]+\]", lambda match: re.sub(r"\s+", " ", match[0]), text) + "\n"


def _counts(counts: Companions | FalseAlarms) -> dict[str, Any]:
    """Matrices as lists of rows, under their names without the shape suffix."""
    return {name.removesuffix("_KK").removesuffix("_K"): array.tolist() for name, array in asdict(counts).items()}
