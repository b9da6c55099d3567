"""What a grid has measured so far: every number from the predictions files, as mean and deviation over seeds."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msltrain.grids.jobs import StudyJob, is_whole, measured_file, origin_of_file, predictions_file
from msltrain.grids.plan import Plan, Run
from msltrain.measures.metrics import SUMMARY
from msltrain.measures.predictions import Origin, read_predictions
from msltrain.measures.summary import measure
from msltrain.robustness.curves import Cell, read_curves
from msltrain.typed_values import decode

CURVE_MEASURES = ("mAP", "CR", "CF1")
"""The measures of the paper's Fig. 3."""


@dataclass(frozen=True)
class OverSeeds:
    """One measure over the seeds that have it, as fractions."""

    by_seed: Mapping[int, float]

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.by_seed.values()) if self.by_seed else None

    @property
    def std(self) -> float | None:
        """Sample standard deviation; None with fewer than two seeds."""
        return statistics.stdev(self.by_seed.values()) if len(self.by_seed) > 1 else None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "mean": self.mean,
            "std": self.std,
            "by_seed": {str(seed): value for seed, value in self.by_seed.items()},
        }


@dataclass(frozen=True, kw_only=True)
class Measures:
    """One checkpoint of a run under one condition."""

    spreads: Mapping[str, OverSeeds]
    """By measure, those of `SUMMARY`."""
    hole_fraction: float
    """Mean share that the keep masks hide."""
    num_samples: int
    moved_by_ties: float = 0.0
    """By how much mAP lies apart from that with equal logits as equals, at most, over the seeds."""


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """One model behind holes of roughly one size."""

    condition: str
    hole_fraction: float
    spreads: Mapping[str, OverSeeds]
    """By measure, those of `CURVE_MEASURES`."""

    @property
    def on_curve(self) -> bool:
        """False for "high", which overlaps the ten-percent bins."""
        return not self.condition.endswith("-high")


def measures_of(run: Run, out: Path, seeds: Sequence[int]) -> dict[str, dict[str, Measures]]:
    """What ``run`` has measured in the grid's folder ``out``, by checkpoint and condition, as far as it goes.

    A predictions file that cannot be read is as one that is missing: its job is not finished.
    """
    found: dict[str, dict[str, Measures]] = {}
    for checkpoint in run.checkpoints:
        for condition, _ in run.test.conditions:
            by_seed = {}
            for seed in seeds:
                content = _measured(predictions_file(run.folder(out, seed), checkpoint, condition))
                if content is not None:
                    by_seed[seed] = content
            if by_seed:
                one = next(iter(by_seed.values()))
                found.setdefault(checkpoint, {})[condition] = Measures(
                    spreads={
                        name: OverSeeds({seed: content["metrics"][name] for seed, content in by_seed.items()})
                        for name in SUMMARY
                    },
                    hole_fraction=one["origin"]["hole_fraction"],
                    num_samples=one["metrics"]["num_samples"],
                    moved_by_ties=max(map(_moved_by_ties, by_seed.values())),
                )
    return found


def curves_of(studies: Sequence[StudyJob]) -> dict[str, list[CurvePoint]]:
    """The curves of one grid's studies, a study per seed, by model; points by hole fraction."""
    cells: dict[tuple[str, str], dict[int, Cell]] = {}
    for study in studies:
        if study.is_finished:
            for cell in read_curves(study.result.read_bytes()).cells:
                cells.setdefault((cell.model, cell.condition), {})[study.seed] = cell
    curves: dict[str, list[CurvePoint]] = {}
    for (model, condition), by_seed in cells.items():
        point = CurvePoint(
            condition=condition,
            hole_fraction=statistics.fmean(cell.hole_fraction for cell in by_seed.values()),
            spreads={
                name: OverSeeds({seed: getattr(cell, name) for seed, cell in by_seed.items()})
                for name in CURVE_MEASURES
            },
        )
        curves.setdefault(model, []).append(point)
    return {model: sorted(points, key=lambda point: point.hole_fraction) for model, points in curves.items()}


def devices_of(plan: Plan, out: Path) -> list[str]:
    """The devices that the runs were trained on, according to their folders."""
    found: dict[str, None] = {}
    for run in plan.runs:
        for seed in plan.seeds:
            file = run.folder(out, seed) / "environment.json"
            with suppress(OSError, ValueError, KeyError, TypeError):  # a run says so itself when it goes on
                found |= {start["device"]: None for start in json.loads(file.read_text(encoding="utf-8"))}
    return list(found)


def _measured(predictions: Path) -> dict[str, Any] | None:
    """The measures beside a predictions file, taken again where they are not its own or missing; None without the
    file."""
    if not is_whole(predictions):
        return None
    beside = measured_file(predictions)
    if beside.exists() and beside.stat().st_mtime_ns >= predictions.stat().st_mtime_ns:
        with suppress(ValueError, KeyError, TypeError, RecursionError):  # damaged: it is measured again
            content = json.loads(beside.read_text(encoding="utf-8"))
            origin = decode(content["origin"], Origin, "origin")
            measures = content["metrics"]
            is_count = type(measures["num_samples"]) is int
            if (
                origin == origin_of_file(predictions)
                and is_count
                and all(_is_share(value) for value in (*map(measures.get, SUMMARY), measures["mAP_by_kind"]["sklearn"]))
                and type(measures["num_tied"]) is int
            ):
                return content
    return json.loads(measure(read_predictions(predictions)).to_json())


def _moved_by_ties(content: Mapping[str, Any]) -> float:
    """0 where equal logits move nothing; else the distance of mAP from that of scikit-learn, which counts them so."""
    metrics = content["metrics"]
    return abs(metrics["mAP_by_kind"]["sklearn"] - metrics["mAP"]) if metrics["num_tied"] else 0.0


def _is_share(value: object) -> bool:
    return isinstance(value, float) and not (value < 0 or value > 1)  # NaN where a rate has no value
