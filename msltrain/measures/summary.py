"""Everything that is measured on one set of predictions, and its JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from msltrain.measures.bootstrap import Interval, summary_intervals
from msltrain.measures.metrics import Metrics, compute_metrics
from msltrain.measures.predictions import Origin, Predictions
from msltrain.measures.strata import StratumMetrics, compute_strata, strata_note
from msltrain.measures.thresholds import other_thresholds, require_other_samples, threshold_origin


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Measures by their names; fractions in [0, 1]."""

    origin: Origin
    metrics: Metrics
    strata: tuple[StratumMetrics, ...]
    """By size and occlusion; empty without object annotations."""
    strata_note: str
    """What to know about sizes and covered objects."""
    intervals: Mapping[str, Interval]
    """95 % bootstrap intervals of the published measures, if they were requested."""

    threshold_origin: str = ""
    """Where the model's thresholds come from, or why each is 0.5; empty where none were to be tuned."""

    def to_json(self) -> str:
        """Indented JSON text; null where a rate has no value."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation, 0 for one value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def spread_said(values: Sequence[float]) -> str:
    """Mean and sample standard deviation in percent: ``71.42 ± 0.31``."""
    mean, deviation = mean_and_deviation(values)
    return f"{100 * mean:.2f} ± {100 * deviation:.2f}"


def series_json(measured: Sequence[Measured], intervals: Mapping[str, Interval]) -> str:
    """Indented JSON text of a series: every run, and mean and standard deviation of the published measures, with the
    ``intervals`` of the means, if they were requested."""
    summaries = [one.metrics.summary() for one in measured]
    spread = {name: mean_and_deviation([summary[name] for summary in summaries]) for name in summaries[0]}
    content = {
        "summary": {name: {"mean": mean, "standard_deviation": sd} for name, (mean, sd) in spread.items()},
        "intervals": {name: asdict(interval) for name, interval in intervals.items()},
        "runs": [asdict(one) for one in measured],
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def measure(
    predictions: Predictions,
    *,
    validation: Predictions | None = None,
    with_intervals: bool = False,
    validation_file: str = "",
) -> Measured:
    """Measure one set of predictions.

    Args:
        predictions: predictions for the samples to measure.
        validation: the same model's predictions for other samples, on which to tune a threshold per class.
        with_intervals: also resample the images.
        validation_file: the name of its file, where a user named it.

    Raises:
        UserError: as in ``compute_metrics`` and ``require_other_samples``.
    """
    if validation is not None:
        require_other_samples(validation, predictions)
    return Measured(
        origin=predictions.origin,
        metrics=compute_metrics(predictions, other_thresholds(validation)),
        strata=compute_strata(predictions),
        strata_note=strata_note(predictions),
        intervals=summary_intervals(predictions) if with_intervals else {},
        threshold_origin="" if validation is None else threshold_origin(validation, validation_file),
    )
