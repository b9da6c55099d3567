"""The runs of a report: what was trained, how it went, what it predicted; and whether they can be compared."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msldata.errors import StorageError, UserError
from msldata.storage import LocalStorage
from msltrain.config import TrainConfig
from msltrain.measures.metrics import compute_metrics
from msltrain.measures.predictions import Predictions, read_predictions
from msltrain.robustness.curves import Curves, read_curves
from msltrain.robustness.figure import DATA_NAME
from msltrain.robustness.study import PREDICTIONS
from msltrain.runs.find_checkpoint import open_checkpoint, read_meta, unfinished
from msltrain.runs.folder import METRICS_NAME
from msltrain.runs.recorded import recorded_config
from msltrain.runs.run_places import WHOLE, predictions_file, run_folder


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """One trained model as the report shows it. Every number is computed from its predictions."""

    name: str
    """The name on the page: "Baseline", "MSL"."""
    series: str = ""
    """Name of the series that it is a run of, with another seed; empty where it stands for itself."""
    clean: Predictions
    """Predictions on whole test images."""
    masked: Mapping[str, Predictions]
    """Predictions on the same images behind keep masks, by hole subset: ``{"low": …, "high": …}``; may be empty."""
    config: TrainConfig
    history: Sequence[Mapping[str, Any]]
    """The run's ``metrics.jsonl``, one mapping per line; empty if nothing was trained."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Where the predictions of each condition are."""
    place: str = ""
    """Its run or checkpoint folder; empty where only its predictions are known."""
    unfinished: str = ""
    """In words, that its training has not come to its end; empty if it has, or nothing tells."""
    met: tuple[str, ...] = ()
    """In sentences, that the model may have met in training what it is measured on or behind; see `trained_on_notes`
    and `trained_behind_notes`."""
    keep_masks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Folders of keep masks, by condition, if they are known to be somewhere other than its predictions say."""

    @property
    def conditions(self) -> dict[str, Predictions]:
        """Predictions by condition, whole images first, then by how much is hidden."""
        masked = sorted(self.masked.items(), key=lambda item: item[1].origin.hole_fraction)
        return {WHOLE: self.clean, **dict(masked)}


def open_run(
    run_dir: str | Path,
    *,
    name: str,
    clean: str | Path,
    masked: Mapping[str, str | Path] | None = None,
    keep_masks: Mapping[str, tuple[str, ...]] | None = None,
) -> RunReport:
    """Gather a run for the report from its folder and its predictions files.

    Args:
        run_dir: the run folder, with ``config.json`` and, if it was trained here, ``metrics.jsonl``.
        name: what the page calls it.
        clean: predictions on whole images.
        masked: predictions behind keep masks, by hole subset.
        keep_masks: where those masks are now, if that is known.

    Raises:
        FileNotFoundError: a file is missing. UserError: a file is damaged or of another kind.
    """
    files = {WHOLE: clean, **(masked or {})}
    predictions = {condition: read_predictions(file) for condition, file in files.items()}
    return RunReport(
        name=name,
        clean=predictions.pop(WHOLE),
        masked=predictions,
        config=read_config(run_dir),
        history=read_history(run_dir),
        files={condition: str(file) for condition, file in files.items()},
        place=str(run_dir),
        unfinished=unfinished(run_folder(run_dir)),
        keep_masks=keep_masks or {},
    )


def read_config(run_dir: str | Path) -> TrainConfig:
    """The settings of a run folder, or of a checkpoint that was imported into one.

    Raises:
        FileNotFoundError: it is neither. UserError: the settings are damaged.
    """
    return recorded_config(run_dir) or read_meta(open_checkpoint(run_dir))[1]


def read_history(run_dir: str | Path) -> list[Mapping[str, Any]]:
    """What the training of a run wrote down, a mapping per line; empty where nothing was trained.

    Raises:
        UserError: a line is not what training writes.
    """
    files = LocalStorage(run_folder(run_dir))
    if not files.exists(METRICS_NAME):
        return []
    try:
        rows = [json.loads(line) for line in files.read(METRICS_NAME).decode().splitlines()]
        if not all(isinstance(row, dict) and all(map(_is_number, row.values())) for row in rows):
            raise ValueError("not a table of names and numbers")
        if not all(isinstance(row.get(name), int) and row[name] >= 0 for row in rows for name in ("step", "epoch")):
            raise ValueError("a step or epoch that is no count")
        return rows
    except StorageError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{files.where(METRICS_NAME)}: a line is not what training writes ({error}); is the run still going on?"
        ) from None


def _is_number(value: object) -> bool:
    """Whether it may stand in ``metrics.jsonl``: a number, or null where there is none."""
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


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
            if not predictions.origin.is_of_same_model(run.clean.origin):
                raise UserError(
                    f"{run.name}: its predictions under '{condition}' are of other weights than those on whole images, "
                    "or of another head, size or normalisation; evaluate one checkpoint under all conditions"
                )
            if predictions.classes != first.clean.classes or predictions.keys != first.clean.keys:
                raise UserError(
                    f"{run.name} ({condition}) was measured on other samples or classes than {first.name}; "
                    "evaluate both on the same shards"
                )
            here, there = predictions.origin, first.conditions[condition].origin
            if here.test_time != first.clean.origin.test_time:
                file = f" (in {run.files[condition]})" if condition in run.files else ""
                raise UserError(
                    f"{run.name} ({condition}) was measured with {_views(here.test_time)}{file}, {first.name} with "
                    f"{_views(first.clean.origin.test_time)}; evaluate both alike, or move that file elsewhere"
                )
            if (here.keep_mask_fingerprints, here.seed) != (there.keep_mask_fingerprints, there.seed):
                raise UserError(
                    f"{run.name} and {first.name} saw other keep masks under '{condition}'; "
                    "evaluate both with the same masks and seed"
                )


def _views(test_time: str) -> str:
    return f"views averaged ({test_time})" if test_time else "one view"


def describe_condition(name: str, predictions: Predictions) -> str:
    """``whole images`` or ``high holes (55 % hidden)``."""
    if name == WHOLE:
        return "whole images"
    return f"{name} holes ({100 * predictions.origin.hole_fraction:.0f}\u00a0% hidden)"


def read_study(folder: str | Path, runs: Sequence[RunReport]) -> Curves:
    """The curves of a study that `msl robustness` wrote.

    Args:
        folder: its ``--out``.
        runs: the runs to show it beside: measured on the same shards and, where names are equal, with the same weights.

    Raises:
        FileNotFoundError: no finished study there.
        UserError: it is of other data or other weights, or its numbers are not those of its predictions.
    """
    files = LocalStorage(Path(folder))
    try:
        curves = read_curves(files.read(DATA_NAME))
    except StorageError:
        raise
    except ValueError as error:
        raise UserError(
            f"{files.where(DATA_NAME)}: not a robustness study ({error}); run `msl robustness` again"
        ) from None
    by_name = {run.name: run for run in runs}
    for model in curves.models:
        predictions = read_predictions(predictions_file(Path(folder) / PREDICTIONS / model, WHOLE))
        if predictions.origin.dataset_fingerprint != runs[0].clean.origin.dataset_fingerprint:
            raise UserError(
                f"{folder}: a study on other shards than {runs[0].name} was evaluated on; run one on the same"
            )
        if model in by_name and not predictions.origin.is_of_same_model(by_name[model].clean.origin):
            raise UserError(f"{folder}: its model '{model}' has other weights than the run of that name; run it again")
        cell = next(cell for cell in curves.cells if (cell.model, cell.condition) == (model, WHOLE))
        if abs(compute_metrics(predictions).mAP - cell.mAP) > 1e-9:
            raise UserError(
                f"{files.where(DATA_NAME)}: older than the predictions beside it; run `msl robustness` again"
            )
    return curves
