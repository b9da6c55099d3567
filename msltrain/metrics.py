"""mAP, CP, CR, CF1, OP, OR and OF1 as published, from logits and targets, in numpy alone.

Shapes: N samples, K classes. All rates are fractions in [0, 1]; whoever prints them turns them into percent.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from msldata.errors import UserError

if TYPE_CHECKING:
    from msltrain.predictions import Predictions

SUMMARY = ("mAP", "CP", "CR", "CF1", "OP", "OR", "OF1")
"""The seven numbers of the paper's tables, in its order; each is a field of ``Metrics``."""


@dataclass(frozen=True, kw_only=True)
class ClassMetrics:
    """One class. A rate that has no value is None: average precision and recall of a class without positives."""

    name: str
    num_positive: int
    num_ignored: int
    """Samples left out for this class (VOC: all its objects are difficult)."""
    num_predicted: int
    """Samples with a score ≥ 0.5."""
    num_correct: int
    """Of those, the positives."""
    num_tied: int
    """Positives whose logit some negative shares: their rank, and so the AP, depends on the order of the samples."""
    average_precision: float | None
    precision: float
    """``num_correct / max(num_predicted, 1)``: 0 for a class that is never predicted."""
    recall: float | None


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """The published measures of one set of predictions.

    mAP, CP and CR are means over the classes that have a positive; the others are named in ``absent_classes``. OP, OR
    and OF1 count every class.
    """

    num_samples: int
    mAP: float
    CP: float
    CR: float
    CF1: float
    OP: float
    OR: float
    OF1: float
    classes: tuple[ClassMetrics, ...]
    absent_classes: tuple[str, ...]
    """Classes without a positive among these samples."""

    def to_json(self) -> str:
        """All fields as indented JSON text; fractions, and null where a rate has no value."""
        return json.dumps(asdict(self), indent=2) + "\n"

    def summary(self) -> dict[str, float]:
        """The seven published numbers by name, as fractions."""
        return {name: getattr(self, name) for name in SUMMARY}


def average_precision(logit_N: np.ndarray, target_N: np.ndarray) -> float | None:
    """Mean over the positives of the precision at their rank; None without a positive.

    Equal logits keep the order of the samples (stable sort). Where no positive ties with a negative this equals
    ``sklearn.metrics.average_precision_score``.
    """
    order_N = np.argsort(-logit_N, kind="stable")
    rank_P = np.flatnonzero(target_N[order_N]) + 1
    if len(rank_P) == 0:
        return None
    return float(np.mean(np.arange(1, len(rank_P) + 1) / rank_P))


def mean_average_precision(logit_NK: np.ndarray, target_NK: np.ndarray, ignore_NK: np.ndarray | None = None) -> float:
    """Mean of the average precision over the classes that have a positive, in [0, 1].

    Args:
        logit_NK: scores before the sigmoid, float32. Sigmoids in a short format tie and lose 0.04 to 0.08 points.
        target_NK: 1 positive, 0 negative.
        ignore_NK: True where the pair is left out of the ranking.

    Raises:
        UserError: a logit is NaN, or no class has a positive.
    """
    logit_NK, target_NK, ignore_NK = _checked(logit_NK, target_NK, ignore_NK)
    return _mean(
        [average_precision(logit_NK[kept_N, k], target_NK[kept_N, k]) for k, kept_N in enumerate(~ignore_NK.T)]
    )


def compute_metrics(predictions: Predictions) -> Metrics:
    """Every published measure, and the table by class, of one set of predictions.

    Precision, recall and F1 are taken at score ≥ 0.5, that is logit ≥ 0. A class that is never predicted counts as one
    prediction, in CP and in OP. CF1 and OF1 are the harmonic means of (CP, CR) and of (OP, OR). Ignored pairs count
    nowhere.

    Raises:
        UserError: a logit is NaN, or no class has a positive.
    """
    logit_NK, target_NK, ignore_NK = _checked(predictions.logit_NK, predictions.target_NK, predictions.ignore_NK)
    classes = tuple(
        _class_metrics(name, logit_NK[kept_N, k], target_NK[kept_N, k], int((~kept_N).sum()))
        for k, (name, kept_N) in enumerate(zip(predictions.classes, ~ignore_NK.T, strict=True))
    )
    present = [row for row in classes if row.num_positive]
    mean_ap = _mean([row.average_precision for row in present])
    class_precision = _mean([row.precision for row in present])
    class_recall = _mean([row.recall for row in present])
    num_correct = sum(row.num_correct for row in classes)
    overall_precision = num_correct / sum(max(row.num_predicted, 1) for row in classes)
    overall_recall = num_correct / sum(row.num_positive for row in classes)
    return Metrics(
        num_samples=len(logit_NK),
        mAP=mean_ap,
        CP=class_precision,
        CR=class_recall,
        CF1=_harmonic_mean(class_precision, class_recall),
        OP=overall_precision,
        OR=overall_recall,
        OF1=_harmonic_mean(overall_precision, overall_recall),
        classes=classes,
        absent_classes=tuple(row.name for row in classes if not row.num_positive),
    )


def _class_metrics(name: str, logit_N: np.ndarray, target_N: np.ndarray, num_ignored: int) -> ClassMetrics:
    predicted_N = logit_N >= 0
    num_positive = int(target_N.sum())
    num_predicted = int(predicted_N.sum())
    num_correct = int((predicted_N & target_N).sum())
    return ClassMetrics(
        name=name,
        num_positive=num_positive,
        num_ignored=num_ignored,
        num_predicted=num_predicted,
        num_correct=num_correct,
        num_tied=int(np.isin(logit_N[target_N], logit_N[~target_N]).sum()),
        average_precision=average_precision(logit_N, target_N),
        precision=num_correct / max(num_predicted, 1),
        recall=num_correct / num_positive if num_positive else None,
    )


def _checked(
    logit_NK: np.ndarray, target_NK: np.ndarray, ignore_NK: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits as float, targets and ignore flags as bool, of one shape and without NaN."""
    logit_NK, target_NK = np.asarray(logit_NK), np.asarray(target_NK) > 0
    ignore_NK = np.zeros_like(target_NK) if ignore_NK is None else np.asarray(ignore_NK, dtype=bool)
    if not logit_NK.shape == target_NK.shape == ignore_NK.shape or logit_NK.ndim != 2:
        raise ValueError(f"shapes differ: logit {logit_NK.shape}, target {target_NK.shape}, ignore {ignore_NK.shape}")
    num_nan = int(np.isnan(logit_NK).sum())
    if num_nan:
        raise UserError(
            f"{num_nan} of {logit_NK.size} logits are NaN and cannot be ranked: the model has diverged; "
            "go back to an earlier checkpoint or train again with a lower learning rate"
        )
    return logit_NK, target_NK, ignore_NK


def _mean(values: list[float | None]) -> float:
    known = [value for value in values if value is not None]
    if not known:
        raise UserError(
            "none of the classes has a positive among these samples, so no precision or recall exists; "
            "evaluate on a split with labels"
        )
    return float(np.mean(known))


def _harmonic_mean(first: float, second: float) -> float:
    return 2 * first * second / (first + second) if first + second else 0.0
