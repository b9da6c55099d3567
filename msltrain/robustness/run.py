"""What holes cost: several models under the same holes, from nothing hidden to more than half of the image (Fig. 3).

A study is a folder. ``predictions/MODEL/whole.parquet`` and ``predictions/MODEL/KIND-RANGE.parquet`` are written first,
a model at a time, the images decoded once for all its conditions; every number and curve is computed from them.
Finished conditions are not run again, and what a killed study had computed for the others is kept
(``partial_results``). docs/evaluation.md shows a script that computes the numbers without this program.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from msldata.errors import UserError, counted
from msltrain.evaluation.sweep import AllSamples, Progress
from msltrain.evaluation.trained_on import model_notes, trained_behind_notes
from msltrain.hosts.distributed import process_group
from msltrain.measures.predictions import Predictions, keep_mask_fingerprints
from msltrain.pages.text import quoted
from msltrain.robustness.conditions import SAVE_SECONDS, StudyModel
from msltrain.robustness.recalibrate import find_batchnorms
from msltrain.robustness.study import PREDICTIONS, RECALIBRATED, Recalibration, Study
from msltrain.runs.other_checkpoints import load_any
from msltrain.runs.run_places import predictions_file
from msltrain.stream.samples.shardset import open_images

__all__ = ["RECALIBRATED", "Recalibration", "Study", "run_study", "study_notes"]

_MAX_NAMED = 3


def run_study(
    study: Study,
    out: str | Path,
    *,
    batch_size: int = 64,
    device: str = "auto",
    cache: str = "",
    cache_limit_gb: float = 50.0,
    on_sample_error: Literal["fail", "skip"] = "fail",
    save_seconds: float = SAVE_SECONDS,
    progress: Callable[[str], AbstractContextManager[Progress]] | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> dict[str, dict[str, Predictions]]:
    """Run what is missing in ``out``; return the predictions of all, by model and condition.

    Conditions are ``whole`` and ``KIND-RANGE``, such as ``irregular-00-10``; ranges in which there are no keep masks
    are left out. Under ``torchrun`` the ranks share the work.

    Args:
        study: what to run.
        out: the study's folder.
        batch_size: samples per rank and step.
        device: ``auto``, ``cpu`` or ``cuda``.
        cache, cache_limit_gb, on_sample_error: see ``StreamConfig``. Skipped samples are not in any predictions; each
            file's origin lists them.
        save_seconds: how often to save partial results.
        progress: opens the progress display of the model of that name.
        note: called with damaged images for recalibration that were replaced by others.

    Raises:
        SampleError: a sample is damaged, and ``on_sample_error`` is ``fail``.
        UserError: something does not fit, or ``out`` holds predictions of another study.
    """
    out = Path(out)
    with process_group(device) as ranks:
        samples = AllSamples(open_images(study.shards))
        _check(study, samples.shard_set.classes)
        found: dict[str, dict[str, Predictions]] = {}
        models = [(name, path, False) for name, path in study.models]
        if study.recalibration:
            models.insert(1, (study.models[0][0] + RECALIBRATED, study.models[0][1], True))
        for name, path, recalibrated in models:
            classes = samples.shard_set.classes
            loaded = load_any(path, study.foreign, classes, ranks.device).ordered_as(classes, study.shards)
            stream = replace(
                loaded.config.stream, cache=cache, cache_limit_gb=cache_limit_gb, on_sample_error=on_sample_error
            )
            model = StudyModel(
                study=study,
                loaded=loaded,
                samples=samples,
                ranks=ranks,
                stream=stream,
                batch_size=batch_size,
                folder=out / PREDICTIONS / name,
                recalibrated=recalibrated,
                save_seconds=save_seconds,
                note=note,
            )
            found[name] = model.run(nullcontext() if progress is None else progress(name))
            _require_same_samples(found, out / PREDICTIONS)
    return found


def study_notes(study: Study) -> tuple[str, ...]:
    """What to know of the models before their curves are believed, in sentences: see `model_notes` and
    `trained_behind_notes`."""
    shard_set = open_images(study.shards)
    behind = dict(zip(study.keep_masks, keep_mask_fingerprints(study.keep_masks), strict=True))
    return tuple(
        f"{quoted(name)}: {text}"
        for name, path in study.models
        for text in (*model_notes(path, shard_set, study.shards), *trained_behind_notes(path, behind))
    )


def _check(study: Study, classes: tuple[str, ...]) -> None:
    """Raise whatever is wrong with any model before the first one runs for hours."""
    for number, (_, path) in enumerate(study.models):
        loaded = load_any(path, study.foreign, classes, torch.device("cpu"))
        loaded.ordered_as(classes, study.shards)
        if loaded.view is not None and "object" in study.kinds:
            raise UserError(
                f"{path}: a timm classifier sees the middle of a photograph, and boxes are known on all of it; leave "
                "out --kind object"
            )
        if study.recalibration and number == 0:
            find_batchnorms(loaded.recogniser)
            loaded.ordered_as(open_images(study.recalibration.shards).classes, study.recalibration.shards)
            keep_mask_fingerprints(study.recalibration.keep_masks)


def _require_same_samples(found: Mapping[str, Mapping[str, Predictions]], folder: Path) -> None:
    """Raise UserError unless the same samples were left out everywhere: otherwise the curves cannot be compared."""
    every = [(model, name, one) for model, row in found.items() for name, one in row.items()]
    first_model, first_name, first = every[0]
    for model, name, one in every[1:]:
        if one.keys != first.keys:
            different = sorted(set(one.keys) ^ set(first.keys))
            raise UserError(
                f"{predictions_file(folder / model, name)}: measured on {counted(len(one.keys), 'sample')}, "
                f"{predictions_file(folder / first_model, first_name)} on {len(first.keys):,} (they differ in "
                f"{', '.join(different[:_MAX_NAMED])}{' …' if len(different) > _MAX_NAMED else ''}): the shards were "
                "damaged or mended in between; delete the one that is wrong, and run the same command again"
            )
