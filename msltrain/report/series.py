"""Runs that differ in their seed alone, as one: mean and standard deviation of their measures, and what a series is
ahead of another.

Shapes: R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from msltrain.measures.bootstrap import Interval, interval_around
from msltrain.measures.summary import Measured, mean_and_deviation
from msltrain.pages.text import percent, plus_minus


@dataclass(frozen=True, kw_only=True)
class Series:
    """One training with several seeds, or a single run beside such ones."""

    name: str
    members: tuple[int, ...]
    """Places of its runs in the report."""
    summary: Mapping[str, Mapping[str, tuple[float, float]]]
    """Mean and sample standard deviation over its runs (0 of one), by condition and published measure."""
    mAP: Mapping[str, Interval]
    """Mean of its runs' mAP by condition, with an interval over the test images."""
    mAP_minus_first: Mapping[str, Interval]
    """That less the mean of the first series, every resample with the same images; empty for the first."""

    def text(self, condition: str, measure: str = "mAP") -> str:
        """Mean ± standard deviation in percent; of one run its value, for one seed has no deviation."""
        mean, deviation = self.summary[condition][measure]
        return plus_minus(mean, deviation) if len(self.members) > 1 else percent(mean)


def join_series(
    names: Sequence[str], measured: Sequence[Mapping[str, Measured]], mean_ap_R: Sequence[Mapping[str, np.ndarray]]
) -> tuple[Series, ...]:
    """Runs by series, in the order of the report; nothing where every run stands for itself.

    Args:
        names: of the series of each run.
        measured: what was measured of each, by condition.
        mean_ap_R: its mAP in every resample of the same images.
    """
    members: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        members.setdefault(name, []).append(number)
    if len(members) == len(names):
        return ()
    joined: list[Series] = []
    means_R: list[Mapping[str, np.ndarray]] = []
    for name, numbers in members.items():
        summary, own_R = {}, {}
        for condition in measured[0]:
            of_each = [measured[number][condition].metrics.summary() for number in numbers]
            summary[condition] = {key: mean_and_deviation([one[key] for one in of_each]) for key in of_each[0]}
            own_R[condition] = np.mean([mean_ap_R[number][condition] for number in numbers], axis=0)
        means_R.append(own_R)
        mean = {condition: values["mAP"][0] for condition, values in summary.items()}
        joined.append(
            Series(
                name=name,
                members=tuple(numbers),
                summary=summary,
                mAP={condition: interval_around(mean[condition], own_R[condition]) for condition in mean},
                mAP_minus_first={
                    condition: interval_around(
                        mean[condition] - joined[0].mAP[condition].value, own_R[condition] - means_R[0][condition]
                    )
                    for condition in (mean if joined else ())
                },
            )
        )
    return tuple(joined)
