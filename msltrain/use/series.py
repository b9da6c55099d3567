"""What the runs of a series say together: the mean of their scores, and how far they lie apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from msldata.errors import UserError
from msltrain.measures.summary import mean_and_deviation
from msltrain.use.predict import ImagePrediction


def combine(found: Sequence[Sequence[ImagePrediction]], top_k: int | None) -> list[ImagePrediction]:
    """One prediction per image of those of several runs.

    Args:
        found: of each run, with the scores of all classes, for the same images.
        top_k: classes kept of each image.

    Raises:
        UserError: the runs know other classes.
    """
    return [_combined(versions, top_k) for versions in zip(*found, strict=True)]


def _combined(versions: Sequence[ImagePrediction], top_k: int | None) -> ImagePrediction:
    if versions[0].error:
        return versions[0]
    tables = [dict(version.scores) for version in versions]
    if any(set(table) != set(tables[0]) for table in tables):
        raise UserError("the runs of this series have other classes than each other; predict with one of them")
    spread = {name: mean_and_deviation([table[name] for table in tables]) for name in tables[0]}
    limits = [dict(zip(dict(version.scores), version.thresholds, strict=True)) for version in versions]
    threshold = {name: mean_and_deviation([limit[name] for limit in limits])[0] for name in spread}
    masked_tables = [dict(version.masked_scores) for version in versions]
    masked = {name: mean_and_deviation([table[name] for table in masked_tables])[0] for name in masked_tables[0]}

    def chosen(scores: dict[str, float]) -> tuple[str, ...]:
        return tuple(sorted((n for n in scores if scores[n] >= threshold[n]), key=lambda name: -scores[name]))

    means = {name: mean for name, (mean, _) in spread.items()}
    names = sorted(means, key=lambda name: -max(means[name], masked.get(name, 0.0)))[:top_k]
    names.sort(key=lambda name: -means[name])
    return replace(
        versions[0],
        scores=tuple((name, means[name]) for name in names),
        deviations=tuple(spread[name][1] for name in names),
        predicted=chosen(means),
        masked_scores=tuple((name, masked[name]) for name in names if masked),
        masked_predicted=chosen(masked),
        thresholds=tuple(threshold[name] for name in names),
        threshold_origin=f"mean of {len(versions)} runs ({versions[0].threshold_origin}, and so on)",
    )
