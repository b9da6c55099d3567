"""The numbers of a robustness study, from its predictions alone.

K classes, N samples.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from msldata.errors import counted
from msltrain.measures.bootstrap import interval_around, resampled_mean_ap, resampled_rates
from msltrain.measures.metrics import Metrics, compute_metrics
from msltrain.measures.predictions import Predictions
from msltrain.pages.text import quoted
from msltrain.runs.run_places import WHOLE
from msltrain.typed_values import decode

MEASURES = ("mAP", "CR", "CF1")
"""The measures of the paper's Fig. 3."""
_NUM_RESAMPLES = 200
"""A study has dozens of cells, and its whiskers are looked at, not read off."""
VISIBLE_BINS = ((-1.0, 0.0), (0.0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0))
"""Visible share of the object, (low, high]: the first is "wholly hidden": no pixel of any box of the class is
visible."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One model under one condition; fractions in [0, 1]."""

    model: str
    kind: str
    """Empty where nothing is hidden."""
    condition: str
    hole_fraction: float
    mAP: float
    CR: float
    CF1: float
    visible_share: tuple[tuple[float, float], ...]
    """The bins of ``VISIBLE_BINS``; empty where nothing is hidden or the objects are unknown."""
    num_pairs: tuple[int, ...]
    """Positive (image, class) pairs per bin of visible share."""
    num_predicted: tuple[int, ...]
    """Pairs among them with a score ≥ 0.5: recall, except in the first bin, where nothing of the class can be seen and
    a prediction relies on what else is in the picture."""
    num_negative: int
    """Pairs whose class has no object in the image."""
    num_false: int
    """Pairs among them with a score ≥ 0.5."""
    intervals: tuple[tuple[float, float], ...] = ()
    """95 % bootstrap interval over the images of each of ``MEASURES``; empty where they were not asked for."""
    gains: tuple[tuple[float, float], ...] = ()
    """The same of what the model is ahead of the first one, each resample with the same images for both; empty for the
    first."""


@dataclass(frozen=True, kw_only=True)
class Area:
    """Mean height of a model's curves from no hole to the last ten-percent bin of all models (trapezoids)."""

    model: str
    kind: str
    up_to: float
    """Hole fraction of that bin."""
    mAP: float
    CR: float
    CF1: float


@dataclass(frozen=True, kw_only=True)
class Curves:
    """All cells and areas of a study, models and conditions in its order."""

    cells: tuple[Cell, ...]
    areas: tuple[Area, ...]
    num_samples: int = 0
    """Number of images behind every cell."""
    skipped: tuple[str, ...] = ()
    """Damaged samples that were left out of all cells: key, place, reason."""
    dataset: str = ""
    split: str = ""
    """What was measured on; empty where nothing tells."""
    notes: tuple[str, ...] = ()
    """What must be known before any of it is believed: training that was stopped, photographs of training, too few."""

    @property
    def models(self) -> list[str]:
        """Names, the reference first."""
        return list(dict.fromkeys(cell.model for cell in self.cells))

    @property
    def kinds(self) -> list[str]:
        """Kinds of keep masks."""
        return list(dict.fromkeys(cell.kind for cell in self.cells if cell.kind))

    @property
    def has_intervals(self) -> bool:
        """Whether the images were resampled."""
        return any(cell.intervals for cell in self.cells)

    def of(self, model: str, kind: str) -> list[Cell]:
        """A model's cells of one kind: nothing hidden first, then by hole fraction."""
        cells = [cell for cell in self.cells if cell.model == model and cell.kind in ("", kind)]
        return sorted(cells, key=lambda cell: cell.hole_fraction)

    def to_json(self) -> str:
        """Indented JSON text."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"


def compute_curves(
    found: Mapping[str, Mapping[str, Predictions]], notes: Sequence[str] = (), *, with_intervals: bool = False
) -> Curves:
    """Measure every cell of a study.

    Args:
        found: predictions by model and condition, as ``run_study`` gives them, all for the same samples.
        notes: what to know of the models; that the photographs are few, or equal logits many, is added.
        with_intervals: also resample the images, the same for every cell: some seconds each.
    """
    measured = {model: {name: compute_metrics(one) for name, one in row.items()} for model, row in found.items()}
    cells = tuple(
        _cell(model, name, one, measured[model][name]) for model, row in found.items() for name, one in row.items()
    )
    if with_intervals:
        cells = _with_intervals(cells, found)
    first = next(one for row in found.values() for one in row.values())
    few = next(one for row in measured.values() for one in row.values()).too_few()
    curves = Curves(
        cells=cells,
        areas=(),
        num_samples=len(first.keys),
        skipped=first.origin.skipped,
        dataset=first.origin.dataset,
        split=first.origin.split,
        notes=(*notes, *([few] if few else []), *_decided_by_order(measured)),
    )
    return replace(curves, areas=_areas(curves))


def _with_intervals(cells: Sequence[Cell], found: Mapping[str, Mapping[str, Predictions]]) -> tuple[Cell, ...]:
    first_R: dict[str, dict[str, np.ndarray]] = {}
    first = {cell.condition: cell for cell in cells if cell.model == cells[0].model}
    resampled = []
    for cell in cells:
        predictions = found[cell.model][cell.condition]
        own_R = {
            "mAP": resampled_mean_ap(predictions, num_resamples=_NUM_RESAMPLES),
            **resampled_rates(predictions, num_resamples=_NUM_RESAMPLES),
        }
        intervals = tuple(_ends(getattr(cell, name), own_R[name], 0.0) for name in MEASURES)
        gains: tuple[tuple[float, float], ...] = ()
        if cell.model == cells[0].model:
            first_R[cell.condition] = own_R
        elif before_R := first_R.get(cell.condition):
            before = first[cell.condition]
            gains = tuple(
                _ends(getattr(cell, name) - getattr(before, name), own_R[name] - before_R[name], -1.0)
                for name in MEASURES
            )
        resampled.append(replace(cell, intervals=intervals, gains=gains))
    return tuple(resampled)


def _ends(value: float, value_R: np.ndarray, lowest: float) -> tuple[float, float]:
    """The interval, inside what the measure can be: no value has one that nobody can draw."""
    interval = interval_around(0.0 if np.isnan(value) else value, value_R)
    return max(interval.low, lowest), min(interval.high, 1.0)


def read_curves(data: bytes) -> Curves:
    """What `Curves.to_json` wrote.

    Raises:
        ValueError: why it is something else. Areas are computed again from the cells.
    """
    try:
        curves: Curves = decode(json.loads(data), Curves, "")
    except RecursionError:
        raise ValueError("nested too deeply") from None
    for cell in curves.cells:
        counts = *cell.num_pairs, *cell.num_predicted, cell.num_negative, cell.num_false
        measures = [value for value in (cell.mAP, cell.CR, cell.CF1) if not np.isnan(value)]
        bins = {len(cell.visible_share), len(cell.num_pairs), len(cell.num_predicted)}
        possible = (
            all(0 <= share <= 1 for share in (cell.hole_fraction, *measures))
            and 0 <= min(counts) <= max(counts) < 2**53
        )
        fits = all(map(operator.le, cell.num_predicted, cell.num_pairs)) and cell.num_false <= cell.num_negative
        if (
            not possible
            or not fits
            or (cell.condition == WHOLE) != (not cell.kind)
            or bins not in ({0}, {len(VISIBLE_BINS)})
            or any(len(ends) not in (0, len(MEASURES)) for ends in (cell.intervals, cell.gains))
            or not all(-1 <= low <= high <= 1 for low, high in (*cell.intervals, *cell.gains))
        ):
            raise ValueError(f"{cell.model}, {cell.condition}: numbers that cannot be")
    for model in curves.models:
        if [cell.condition for cell in curves.cells if cell.model == model].count(WHOLE) != 1:
            raise ValueError(f"{model}: not measured on whole images, or twice")
    return replace(curves, areas=_areas(curves))


def _decided_by_order(measured: Mapping[str, Mapping[str, Metrics]]) -> list[str]:
    """A sentence for each model with figures that hang on the order in which samples are stored."""
    notes = []
    for model, row in measured.items():
        texts = [f"{name}: {text}" for name, metrics in row.items() if (text := metrics.decided_by_order())]
        if texts:
            more = f"; the same in {counted(len(texts) - 1, 'more condition')}" if len(texts) > 1 else ""
            notes.append(f"{quoted(model)}, {texts[0]}{more}")
    return notes


def _cell(model: str, condition: str, predictions: Predictions, metrics: Metrics) -> Cell:
    predicted_NK = (predictions.logit_NK >= 0) & ~predictions.ignore_NK
    target_NK = (predictions.target_NK > 0) & ~predictions.ignore_NK
    negative_NK = (predictions.target_NK == 0) & ~predictions.ignore_NK
    bins: Sequence[tuple[float, float]] = () if predictions.visible_NK is None else VISIBLE_BINS
    members = [
        target_NK & (predictions.visible_NK > low) & (predictions.visible_NK <= high)
        for low, high in bins
        if predictions.visible_NK is not None
    ]
    return Cell(
        model=model,
        kind=predictions.origin.kind,
        condition=condition,
        hole_fraction=predictions.origin.hole_fraction,
        mAP=metrics.mAP,
        CR=metrics.CR,
        CF1=metrics.CF1,
        visible_share=tuple(bins),
        num_pairs=tuple(int(member_NK.sum()) for member_NK in members),
        num_predicted=tuple(int((member_NK & predicted_NK).sum()) for member_NK in members),
        num_negative=int(negative_NK.sum()),
        num_false=int((negative_NK & predicted_NK).sum()),
    )


def is_bin(cell: Cell) -> bool:
    """Whether a cell is a point of the curve: nothing hidden, or a ten-percent bin; "high" overlaps them."""
    return cell.condition == WHOLE or not cell.condition.endswith("-high")


def _areas(curves: Curves) -> tuple[Area, ...]:
    """Of every kind and model, over the bins that all models were measured at: others would change the mean."""
    areas = []
    for kind in curves.kinds:
        rows = {model: [cell for cell in curves.of(model, kind) if is_bin(cell)] for model in curves.models}
        shared = set.intersection(*({cell.condition for cell in cells} for cells in rows.values()))
        areas += [
            _area(model, kind, [cell for cell in cells if cell.condition in shared]) for model, cells in rows.items()
        ]
    return tuple(areas)


def _area(model: str, kind: str, points: Sequence[Cell]) -> Area:
    x = np.array([cell.hole_fraction for cell in points])
    width = float(x[-1] - x[0])

    def mean_height(measure: str) -> float:
        values = [float(getattr(cell, measure)) for cell in points]
        return float(np.trapezoid(values, x)) / width if width else values[0]  # without a bin: the whole images

    return Area(model=model, kind=kind, up_to=float(x[-1]), **{name: mean_height(name) for name in MEASURES})


def pooled_visibility(cells: Sequence[Cell]) -> list[tuple[int, int]]:
    """(predicted, pairs) per bin of visible share over all ten-percent bins of one model and kind."""
    known = [cell for cell in cells if cell.kind and is_bin(cell) and cell.visible_share]
    return [
        (sum(cell.num_predicted[n] for cell in known), sum(cell.num_pairs[n] for cell in known))
        for n in range(len(VISIBLE_BINS) if known else 0)
    ]


def pooled_false_rate(cells: Sequence[Cell]) -> float:
    """Share of absent classes that are predicted behind holes, over all ten-percent bins."""
    known = [cell for cell in cells if cell.kind and is_bin(cell)]
    return sum(cell.num_false for cell in known) / max(sum(cell.num_negative for cell in known), 1)
