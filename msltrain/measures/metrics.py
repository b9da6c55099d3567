"""mAP, CP, CR, CF1, OP, OR and OF1 as published, from logits and targets, in pure numpy.

Shapes: N samples, K classes. All rates are fractions in [0, 1]; code that prints them converts them to percent.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from msldata.errors import UserError, counted, few_of
from msltrain.measures.average_precision import AP_KINDS, ApKind, RankedPositives, ranked_by_class

if TYPE_CHECKING:
    from msltrain.measures.predictions import Predictions

RATES = ("CP", "CR", "CF1", "OP", "OR", "OF1")
SUMMARY = ("mAP", *RATES)
"""The seven numbers of the paper's tables, in its order; each is a field of ``Metrics``."""
EXPLAINED = (
    "mAP: how well each class's images rank above all others, averaged over the classes. At a score of 0.5, P is the "
    "share of predictions that are right, R the share of labels that are found, F1 their harmonic mean; C… averages "
    "over the classes, O… counts all predictions together."
)
"""What they are, for whoever meets them first."""
TOP = 3
"""The top-3 rates of the literature predict at most so many classes per image."""
_NUM_NAMED = 5
ROUNDING, _CLASS_ROUNDING = 0.0005, 0.005
"""A mean that moves by less than 0.05 points, and a class's AP by less than half a point, is the same number to a
reader."""


class NotANumberError(UserError):
    """Logits that cannot be ranked, from a model that has diverged."""


@dataclass(frozen=True, kw_only=True)
class ClassMetrics:
    """One class. A rate without a value is None: average precision and recall of a class without positives."""

    name: str
    num_positive: int
    num_ignored: int
    """Samples left out of the ranking for this class (VOC: all its objects are difficult)."""
    num_predicted: int
    """Samples with a score ≥ 0.5."""
    num_correct: int
    """The positives among them."""
    num_tied: int
    """Positives whose logit some negative shares: their rank, and so the AP, depends on the order of the samples."""
    average_precision: float | None
    """As published; the other definitions are in ``average_precisions``."""
    average_precisions: Mapping[str, float | None]
    """By definition, see ``average_precision.AP_KINDS``."""
    precision: float
    """``num_correct / max(num_predicted, 1)``: 0 for a class that is never predicted."""
    recall: float | None


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Precision, recall and their harmonic mean: over classes (C) and over all pairs (O)."""

    CP: float
    CR: float
    CF1: float
    OP: float
    OR: float
    OF1: float


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """The published measures of one set of predictions, as fractions in [0, 1]; the commands print them in percent.

    mAP, CP and CR are means over the classes that have a positive; the others are named in ``absent_classes``. OP, OR
    and OF1 count every class. Two habits of the published code can surprise: equal logits are ranked in the order of
    the samples (``decided_by_order``), and a class that is never predicted counts as one wrong prediction
    (``never_predicted``).

    Example:
        metrics: msltrain.Metrics = msltrain.compute_metrics([[2.0, -1.0], [-0.5, 3.0]], [[1, 0], [0, 1]])
        print(metrics.summary(), metrics.top3.CF1, metrics.mAP_by_kind)
    """

    num_samples: int
    mAP: float
    """As published: equal logits keep the order of the samples. ``mAP_by_kind["sklearn"]`` does not hang on it."""
    CP: float
    CR: float
    CF1: float
    OP: float
    OR: float
    OF1: float
    mAP_by_kind: Mapping[str, float]
    """mAP in each definition of average precision, see ``average_precision.AP_KINDS``; ``msl`` is ``mAP``."""
    top3: Rates
    """A class is predicted when it is among the three highest of the image and its score is ≥ 0.5."""
    tuned: Rates | None = None
    """The rates at per-class thresholds, if any were given."""
    thresholds: tuple[float, ...] = ()
    """Those thresholds, as scores in [0, 1], in class order."""
    classes: tuple[ClassMetrics, ...]
    absent_classes: tuple[str, ...]
    """Classes without a positive among these samples."""
    num_tied: int
    """Positives tied with a negative, over all classes."""

    def to_json(self) -> str:
        """All fields as indented JSON text; fractions, and null where a rate has no value."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    def summary(self) -> dict[str, float]:
        """The seven published numbers by name, as fractions."""
        return {name: getattr(self, name) for name in SUMMARY}

    def too_few(self) -> str:
        """In words, that chance decides much of these figures; empty where half of the classes have ten positives."""
        positives = [one.num_positive for one in self.classes if one.num_positive]
        if not positives or (typical := int(statistics.median(positives))) >= 10:
            return ""
        num_classes, num_rare = len(self.classes), sum(one.num_positive <= typical for one in self.classes)
        rare = "every class" if num_rare == num_classes else f"{num_rare:,} of the {num_classes:,} classes"
        return (
            f"only {counted(self.num_samples, 'photograph')}, and {rare} in {typical} or fewer: chance alone can move "
            "these figures by tens of points"
        )

    def decided_by_order(self) -> str:
        """In words, that equal logits leave mAP, or the AP of a class, to the stored order of the samples, and what it
        is where they count as equal; empty where that moves neither by more than a rounding."""
        if not self.num_tied:
            return ""
        equal = self.mAP_by_kind["sklearn"]
        moved = [(one.name, *pair) for one in self.classes if (pair := _moved(one))]
        if abs(equal - self.mAP) <= ROUNDING and not moved:
            return ""
        moved.sort(key=lambda row: -abs(row[2] - row[1]))
        names = [f"{name} {100 * after:.1f} and not {100 * before:.1f}" for name, before, after in moved]
        return (
            f"{counted(self.num_tied, 'positive shares its', 'positives share their')} logit with a negative, and the "
            "published code ranks such samples in the order in which they are stored, which says nothing of the model: "
            "where equal logits count as equal, as in scikit-learn, mAP is "
            f"{100 * equal:.2f} % and not {100 * self.mAP:.2f} %" + (f" (AP: {few_of(names, 3)})" if names else "")
        )

    def never_predicted(self) -> str:
        """In words, what classes without a prediction do to OP and CP, and what these are without such classes; empty
        where every class is predicted at least once."""
        never = [one.name for one in self.classes if not one.num_predicted]
        if not never:
            return ""
        said = (
            "as published, a class that is never predicted counts in OP as one wrong prediction, in CP as none right: "
            f"here {few_of(never, _NUM_NAMED)}; "
        )
        made, right = (sum(getattr(one, name) for one in self.classes) for name in ("num_predicted", "num_correct"))
        if not made:
            return said + "nothing at all is predicted"
        said += f"{right:,} of the {counted(made, 'prediction')} made {'is' if right == 1 else 'are'} right"
        tried = [one.precision for one in self.classes if one.num_predicted and one.num_positive]
        without = {"OP": right / made, "CP": float(np.mean(tried)) if tried else 0.0}
        changed = [
            f"{name} is {100 * value:.2f} % and not {100 * getattr(self, name):.2f} %"
            for name, value in without.items()
            if abs(value - getattr(self, name)) > ROUNDING
        ]
        return said + (f": without such classes {', '.join(changed)}" if changed else "")


def _moved(one: ClassMetrics) -> tuple[float, float] | None:
    """The AP of a class as published and with equal logits as equals, where these differ; None where they do not."""
    before, after = one.average_precision, one.average_precisions["sklearn"]
    if before is None or after is None or abs(after - before) <= _CLASS_ROUNDING:
        return None
    return before, after


def mean_average_precision(
    logit_NK: np.ndarray, target_NK: np.ndarray, ignore_NK: np.ndarray | None = None, *, kind: ApKind = "msl"
) -> float:
    """Mean of the average precision over the classes that have a positive, in [0, 1].

    Args:
        logit_NK: scores before the sigmoid, float32. Sigmoids in a low-precision format create ties and cost 0.04 to
        0.08 points.
        target_NK: 1 positive, 0 negative.
        ignore_NK: True where the pair is left out of the ranking.
        kind: how average precision is defined, see ``average_precision.AP_KINDS``; all but ``sklearn`` leave equal
            logits in the order of the samples.

    Raises:
        UserError: a logit is NaN, or no class has a positive.
    """
    checked = checked_arrays(logit_NK, target_NK, ignore_NK)
    return _mean([ranked.average_precisions((kind,))[kind] for ranked in ranked_by_class(*checked)])


def compute_metrics(predictions: Predictions, thresholds_K: np.ndarray | None = None) -> Metrics:
    """Every published measure, and the table by class, of one set of predictions.

    Precision, recall and F1 are taken at score ≥ 0.5, that is logit ≥ 0. A class that is never predicted counts as one
    prediction, in CP and in OP. CF1 and OF1 are the harmonic means of (CP, CR) and of (OP, OR). Ignored pairs are left
    out of every ranking; in the rates they are not counted, or count as negatives where ``origin.ignored_in_rates``
    says so.

    Args:
        predictions: predictions for a whole dataset.
        thresholds_K: logits from which on a class is predicted, for ``Metrics.tuned``; tune them on other samples.

    Raises:
        UserError: a logit is NaN, or no class has a positive.
    """
    logit_NK, target_NK, ignore_NK = checked_arrays(predictions.logit_NK, predictions.target_NK, predictions.ignore_NK)
    counts, top3, tuned = _count(
        logit_NK,
        target_NK,
        ignore_NK,
        thresholds_K,
        negative_where_ignored=predictions.origin.ignored_in_rates == "negative",
    )
    num_ignored_K = ignore_NK.sum(axis=0)
    by_class = ranked_by_class(logit_NK, target_NK, ignore_NK)
    classes = tuple(
        _class_metrics(name, ranked, int(num_ignored_K[k]), counts, k)
        for k, (name, ranked) in enumerate(zip(predictions.classes, by_class, strict=True))
    )
    present = [row for row in classes if row.num_positive]
    by_kind: dict[str, float] = {kind: _mean([row.average_precisions[kind] for row in present]) for kind in AP_KINDS}
    thresholds = () if thresholds_K is None else tuple(float(1 / (1 + np.exp(-value))) for value in thresholds_K)
    return Metrics(
        num_samples=len(logit_NK),
        mAP=by_kind["msl"],
        **asdict(counts.rates()),
        mAP_by_kind=by_kind,
        top3=top3.rates(),
        tuned=None if thresholds_K is None else tuned.rates(),
        thresholds=thresholds,
        classes=classes,
        absent_classes=tuple(row.name for row in classes if not row.num_positive),
        num_tied=sum(row.num_tied for row in classes),
    )


@dataclass(frozen=True, slots=True)
class _Counts:
    """Per class, int64 (K,)."""

    positive_K: np.ndarray
    predicted_K: np.ndarray
    correct_K: np.ndarray

    @classmethod
    def none(cls, num_classes: int) -> _Counts:
        return cls(*(np.zeros(num_classes, np.int64) for _ in range(3)))

    def add(self, predicted_NK: np.ndarray, target_NK: np.ndarray) -> None:
        self.positive_K[:] += target_NK.sum(axis=0)
        self.predicted_K[:] += predicted_NK.sum(axis=0)
        self.correct_K[:] += (predicted_NK & target_NK).sum(axis=0)

    def rates(self) -> Rates:
        present_K = self.positive_K > 0
        counted_K = np.maximum(self.predicted_K, 1)
        class_precision = float((self.correct_K / counted_K)[present_K].mean())
        class_recall = float((self.correct_K[present_K] / self.positive_K[present_K]).mean())
        overall_precision = float(self.correct_K.sum() / counted_K.sum())
        overall_recall = float(self.correct_K.sum() / self.positive_K.sum())
        return Rates(
            CP=class_precision,
            CR=class_recall,
            CF1=harmonic_mean(class_precision, class_recall),
            OP=overall_precision,
            OR=overall_recall,
            OF1=harmonic_mean(overall_precision, overall_recall),
        )


def _count(
    logit_NK: np.ndarray,
    target_NK: np.ndarray,
    ignore_NK: np.ndarray,
    thresholds_K: np.ndarray | None,
    *,
    negative_where_ignored: bool,
) -> tuple[_Counts, _Counts, _Counts]:
    """At score ≥ 0.5; of these the highest of each image; at the thresholds. Some images at a time."""
    counts, top3, tuned = (_Counts.none(logit_NK.shape[1]) for _ in range(3))
    step = max(1, _BLOCK // max(1, logit_NK.shape[1]))
    for start in range(0, len(logit_NK), step):
        logit_BK, target_BK, ignore_BK = (array[start : start + step] for array in (logit_NK, target_NK, ignore_NK))
        counted_BK = np.ones_like(ignore_BK) if negative_where_ignored else ~ignore_BK
        predicted_BK = (logit_BK >= 0) & counted_BK
        counts.add(predicted_BK, target_BK)
        top3.add(predicted_BK & _highest(logit_BK, counted_BK), target_BK)
        if thresholds_K is not None:
            tuned.add((logit_BK >= thresholds_K) & counted_BK, target_BK)
    return counts, top3, tuned


def _class_metrics(name: str, ranked: RankedPositives, num_ignored: int, counts: _Counts, k: int) -> ClassMetrics:
    num_positive, num_predicted, num_correct = (
        int(array[k]) for array in (counts.positive_K, counts.predicted_K, counts.correct_K)
    )
    by_kind = ranked.average_precisions()
    return ClassMetrics(
        name=name,
        num_positive=num_positive,
        num_ignored=num_ignored,
        num_predicted=num_predicted,
        num_correct=num_correct,
        num_tied=ranked.num_tied,
        average_precision=by_kind["msl"],
        average_precisions={str(kind): value for kind, value in by_kind.items()},
        precision=num_correct / max(num_predicted, 1),
        recall=num_correct / num_positive if num_positive else None,
    )


def _highest(logit_NK: np.ndarray, counted_NK: np.ndarray) -> np.ndarray:
    """Which classes are among the ``TOP`` highest of their image; of equal logits the first. Ignored pairs take no
    place."""
    left_NK, row_N = np.where(counted_NK, logit_NK, -np.inf), np.arange(len(logit_NK))
    highest_NK = np.zeros(logit_NK.shape, bool)
    for _ in range(min(TOP, logit_NK.shape[1])):
        first_N = left_NK.argmax(axis=1)
        highest_NK[row_N, first_N] = True
        left_NK[row_N, first_N] = -np.inf
    return highest_NK


_BLOCK = 1 << 20
"""About how many logits are looked at together."""


def checked_arrays(
    logit_NK: np.ndarray, target_NK: np.ndarray, ignore_NK: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits as float, targets and ignore flags as bool, all with one shape and without NaN; copied where necessary.

    An ignored pair is no positive, whatever its target says: no measure counts it as one that was missed.

    Raises:
        NotANumberError: a logit is NaN. ValueError: the shapes differ.
    """
    logit_NK, target_NK = np.asarray(logit_NK), np.asarray(target_NK)
    if target_NK.dtype == np.uint8 and target_NK.flags.c_contiguous and target_NK.max(initial=0) <= 1:
        target_NK = target_NK.view(bool)
    else:
        target_NK = target_NK > 0
    ignore_NK = np.zeros_like(target_NK) if ignore_NK is None else np.asarray(ignore_NK, dtype=bool)
    if not logit_NK.shape == target_NK.shape == ignore_NK.shape or logit_NK.ndim != 2:
        raise ValueError(f"shapes differ: logit {logit_NK.shape}, target {target_NK.shape}, ignore {ignore_NK.shape}")
    if ignore_NK.any():
        target_NK = target_NK & ~ignore_NK
    if logit_NK.size and np.isnan(logit_NK.min()):
        num_nan = int(np.isnan(logit_NK).sum())
        raise NotANumberError(
            f"{num_nan} of {logit_NK.size} logits are NaN and cannot be ranked: the model has diverged; "
            "go back to an earlier checkpoint or train again with a lower learning rate"
        )
    return logit_NK, target_NK, ignore_NK


def _mean(values: list[float | None]) -> float:
    known = [value for value in values if value is not None]
    if not known:
        raise UserError(_NO_POSITIVE)
    return float(np.mean(known))


def harmonic_mean(first: float, second: float) -> float:
    """Harmonic mean of two rates; 0 when both are 0."""
    return 2 * first * second / (first + second) if first + second else 0.0


_NO_POSITIVE = (
    "none of the classes has a positive among these samples, so no precision or recall exists; "
    "evaluate on a split with labels"
)
