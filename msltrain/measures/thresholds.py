"""Per-class thresholds, chosen where F1 is highest on validation samples.

Shapes: N samples, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from msldata.errors import UserError, counted, few_of
from msltrain.measures.predictions import Predictions, read_predictions

MIN_POSITIVES = 10
"""In a class with fewer, some threshold between two of them looks best by chance; the class keeps 0.5."""
HELD_OUT_FILES = "*-held-out.parquet"
"""In a run's folder of predictions: what ``msl evaluate --held-out`` writes, and thresholds are tuned on."""


def tune_thresholds(validation: Predictions, min_positives: int = MIN_POSITIVES) -> np.ndarray:
    """For each class, the lowest predicted logit that gives the highest F1, float64 (K,).

    A threshold lies midway between two neighbouring logits. Among thresholds with equal F1, the highest is taken. A
    class with fewer than ``min_positives``, and one without any, keeps score 0.5, logit 0. Ignored pairs are left out.

    Thresholds chosen on the very samples they are then measured on flatter the model: use other samples.
    """
    threshold_K = np.zeros(len(validation.classes))
    num_positive_K = ((validation.target_NK > 0) & ~validation.ignore_NK).sum(axis=0)
    for k in np.flatnonzero(num_positive_K >= max(1, min_positives)):
        kept_N = ~validation.ignore_NK[:, k]
        threshold_K[k] = _best_threshold(validation.logit_NK[kept_N, k], validation.target_NK[kept_N, k] > 0)
    return threshold_K


def other_thresholds(validation: Predictions | None) -> np.ndarray | None:
    """What `tune_thresholds` finds, float64 (K,); None without ``validation``, and where every class keeps 0.5, at
    which all is measured anyway."""
    threshold_K = None if validation is None else tune_thresholds(validation)
    return threshold_K if threshold_K is not None and threshold_K.any() else None


def require_other_samples(validation: Predictions, test: Predictions) -> None:
    """Raise UserError where thresholds of ``validation`` say nothing, or nothing honest, about ``test``."""
    if validation.classes != test.classes:
        raise UserError(
            f"the thresholds' predictions have {counted(len(validation.classes), 'class')}, these "
            f"{len(test.classes)}, or others by name; tune on predictions of the same model"
        )
    if not validation.origin.is_of_same_model(test.origin):
        raise UserError(
            "the thresholds' predictions are of other weights than these, or of another head, image size, mean or "
            "standard deviation; evaluate one checkpoint on both, by one recipe"
        )
    shared = len(set(validation.keys) & set(test.keys))
    if shared:
        raise UserError(
            f"{shared:,} samples are in both predictions files; thresholds tuned on the samples they are measured on "
            "flatter the model; tune on a validation split"
        )


def held_out_beside(test: Predictions, folders: Iterable[Path]) -> Predictions | None:
    """What the same model predicts for the samples that training held out: the thresholds of ``msl predict`` are tuned
    on them. None where there is no such file, or where it says nothing about ``test``: it is of the same samples, or
    logits are means over views.

    Args:
        folders: where runs keep their predictions.
    """
    origin = test.origin
    if not origin.checkpoint_sha256 or origin.part or origin.test_time or origin.recalibrated:
        return None
    for file in [file for folder in dict.fromkeys(folders) for file in sorted(folder.glob(HELD_OUT_FILES))]:
        try:
            found = read_predictions(file)
            require_other_samples(found, test)
        except (UserError, OSError):
            continue
        if found.origin.is_of_plain_views:
            return found
    return None


def threshold_origin(validation: Predictions, file: str = "") -> str:
    """Where tuned thresholds come from, and which classes keep 0.5, in words.

    Args:
        validation: what they are tuned on.
        file: its name, where a user named it; else it is said which photographs these are.
    """
    split, num = validation.origin.split, counted(len(validation.keys), "photograph")
    what = file or (f"{num} of {split}" if split else f"{num} that training set aside")
    count_K = ((validation.target_NK > 0) & ~validation.ignore_NK).sum(axis=0)
    few = [name for name, count in zip(validation.classes, count_K) if count < MIN_POSITIVES]
    if len(few) == len(count_K):
        return f"0.5 for every class, too few photographs to tune them on ({what})"
    origin = f"one per class, tuned on {what}{f' ({num})' * bool(file)}"
    if few:
        origin += f"; 0.5 for {few_of(few)}, shown fewer than {MIN_POSITIVES} times there"
    return origin


def _best_threshold(logit_N: np.ndarray, target_N: np.ndarray) -> float:
    num_positive = int(target_N.sum())
    order_N = np.argsort(-logit_N, kind="stable")
    sorted_N = logit_N[order_N].astype(np.float64)
    f1_N = 2 * np.cumsum(target_N[order_N]) / (np.arange(1, len(sorted_N) + 1) + num_positive)
    # Equal logits are predicted together, so a threshold can only come after the last of them.
    f1_N[:-1][sorted_N[:-1] == sorted_N[1:]] = -1
    best = int(np.argmax(f1_N))
    return float(sorted_N[best] if best + 1 == len(sorted_N) else (sorted_N[best] + sorted_N[best + 1]) / 2)
