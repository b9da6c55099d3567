"""The runs of a report: what was trained, how it went, what it predicted; and whether they can be compared."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msldata.errors import UserError
from msldata.storage import LocalStorage
from msltrain.config import TrainConfig, from_json
from msltrain.metrics import Metrics, compute_metrics
from msltrain.predictions import Predictions, read_predictions
from msltrain.rundir import CONFIG_NAME, METRICS_NAME

WHOLE = "whole"
"""Name of the condition in which nothing is hidden."""


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """One trained model as the report shows it. Every number is computed from its predictions."""

    name: str
    """As the page calls it: "Baseline", "MSL"."""
    clean: Predictions
    """On whole test images."""
    masked: Mapping[str, Predictions]
    """On the same images behind keep masks, by hole subset: ``{"low": …, "high": …}``; may be empty."""
    config: TrainConfig
    history: Sequence[Mapping[str, Any]]
    """The run's ``metrics.jsonl``, one mapping per line."""

    @property
    def conditions(self) -> dict[str, Predictions]:
        """Predictions by condition, whole images first, then by how much is hidden."""
        masked = sorted(self.masked.items(), key=lambda item: item[1].origin.hole_fraction)
        return {WHOLE: self.clean, **dict(masked)}

    def metrics(self) -> dict[str, Metrics]:
        """The published measures by condition."""
        return {name: compute_metrics(predictions) for name, predictions in self.conditions.items()}


def open_run(
    run_dir: str | Path, *, name: str, clean: str | Path, masked: Mapping[str, str | Path] | None = None
) -> RunReport:
    """Gather a run for the report from its folder and its predictions files.

    Args:
        run_dir: the run folder, with ``config.json`` and ``metrics.jsonl``.
        name: what the page calls it.
        clean: predictions on whole images.
        masked: predictions behind keep masks, by hole subset.

    Raises:
        FileNotFoundError: a file is missing. UserError: one is not what it should be.
    """
    files = LocalStorage(Path(run_dir))
    config = from_json(files.read(CONFIG_NAME).decode(), files.where(CONFIG_NAME))
    try:
        history = [json.loads(line) for line in files.read(METRICS_NAME).decode().splitlines()]
    except json.JSONDecodeError as error:
        raise UserError(
            f"{files.where(METRICS_NAME)}: a line is not JSON ({error}); is the run still going on?"
        ) from None
    return RunReport(
        name=name,
        clean=read_predictions(clean),
        masked={subset: read_predictions(file) for subset, file in (masked or {}).items()},
        config=config,
        history=history,
    )


def check_comparable(runs: Sequence[RunReport]) -> None:
    """Raise UserError unless each run is one model and all were measured on the same samples and keep masks."""
    if not runs:
        raise UserError("a report needs at least one run")
    names = [run.name for run in runs]
    if len(set(names)) != len(names):
        raise UserError(f"two runs have the same name ({', '.join(names)}); give each its own")
    first = runs[0]
    for run in runs:
        if list(run.conditions) != list(first.conditions):
            raise UserError(
                f"{run.name} was measured under {', '.join(run.conditions)}, {first.name} under "
                f"{', '.join(first.conditions)}; evaluate both with the same keep masks"
            )
        for condition, predictions in run.conditions.items():
            if predictions.origin.checkpoint_sha256 != run.clean.origin.checkpoint_sha256:
                raise UserError(
                    f"{run.name}: its predictions under '{condition}' are of other weights than those on whole images; "
                    "evaluate one checkpoint under all conditions"
                )
            if predictions.classes != first.clean.classes or predictions.keys != first.clean.keys:
                raise UserError(
                    f"{run.name} ({condition}) was measured on other samples or classes than {first.name}; "
                    "evaluate both on the same shards"
                )
            here, there = predictions.origin, first.conditions[condition].origin
            if (here.keep_mask_fingerprints, here.seed) != (there.keep_mask_fingerprints, there.seed):
                raise UserError(
                    f"{run.name} and {first.name} met other keep masks under '{condition}'; "
                    "evaluate both with the same masks and seed"
                )


def describe_condition(name: str, predictions: Predictions) -> str:
    """``whole images`` or ``high holes (55 % hidden)``."""
    if name == WHOLE:
        return "whole images"
    return f"{name} holes ({100 * predictions.origin.hole_fraction:.0f}\u00a0% hidden)"
