"""One job: train, predict the whole and the masked test images, and the row of what came out."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.methods.jobs import SETTINGS, STAGES, Job, Places
from msltrain.evaluation.evaluate import evaluate
from msltrain.measures.metrics import compute_metrics
from msltrain.measures.predictions import Predictions
from msltrain.measures.strata import compute_strata
from msltrain.runs.folder import METRICS_NAME
from msltrain.training.average import average_checkpoints
from msltrain.training.trainer import train

MEASURES = ("mAP", "CP", "CR", "CF1", "OF1")
FLAGGED = ("truncated", "not truncated")
"""Strata of ``Stage.flagged``."""


def measure_job(job: Job, places: Places) -> dict[str, Any]:
    """The row, without the commit."""
    torch.set_num_threads(1)
    stage = STAGES[job.stage]
    seconds, place = _make(job, places)
    trained = time.perf_counter()
    found = {}
    for view in stage.views:
        masks = [] if view == "whole" else [places.work / stage.test_masks / view]
        found[view] = evaluate(
            place,
            places.work / stage.test,
            keep_masks=masks,
            out=places.work / "predictions" / job.folder / f"{view}.parquet",
            num_threads=1,
        )
    flagged = {}
    if stage.flagged:
        strata = _measures(evaluate(place, places.work / stage.flagged, num_threads=1))["strata"]
        flagged = {"flagged": {name: strata[name] for name in FLAGGED}}
    return {
        "job": job.name,
        "digest": job.digest,
        "stage": job.stage,
        "setting": job.setting,
        "seed": job.seed,
        "settings": list(SETTINGS[job.setting].settings),
        "masks": list(SETTINGS[job.setting].masks),
        "epochs": job.epochs,
        "passes": round(SETTINGS[job.setting].passes * job.epochs, 2),
        **{view: _measures(predictions) for view, predictions in found.items()},
        **flagged,
        "train_seconds": round(seconds, 1),
        "test_seconds": round(time.perf_counter() - trained, 1),
    }


def _make(job: Job, places: Places) -> tuple[float, str | Path]:
    """Train a job, or average others; the seconds of training, and the checkpoint."""
    run = places.work / "runs" / job.folder
    if not job.parts:
        config = job.config(places)
        result = train(config, run_dir=run, resume="auto")
        return _train_seconds(run / METRICS_NAME, config.stream.batch_size), result.last
    made = [_make(part, places) for part, _ in job.parts]
    if not run.exists():
        average_checkpoints([place for _, place in made], run, [share for _, share in job.parts])
    return sum(took for took, _ in made), run


def _train_seconds(metrics: Path, batch_size: int) -> float:
    """Of all starts of a run together."""
    seconds, before = 0.0, 0
    for line in metrics.read_text().splitlines():
        row = json.loads(line)
        if "images_per_second" in row:
            seconds += (row["step"] - before) * batch_size / row["images_per_second"]
            before = row["step"]
    return seconds


def _measures(predictions: Predictions) -> dict[str, Any]:
    metrics = compute_metrics(predictions)
    row: dict[str, Any] = {name: round(getattr(metrics, name), 5) for name in MEASURES}
    row["strata"] = {
        stratum.name: [round(stratum.mAP, 5), round(stratum.CR, 5)]
        for stratum in compute_strata(predictions)
        if stratum.mAP is not None
        and stratum.CR is not None
        and not stratum.name.endswith(("small", "medium", "large"))
    }
    return row
