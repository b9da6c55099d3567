"""What the numbers say, in words, and nothing beyond it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from msltrain.bootstrap import Interval, mean_ap_difference
from msltrain.metrics import compute_metrics
from msltrain.report.runs import WHOLE, RunReport, describe_condition


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The first lines of the page."""

    headline: str
    sentences: tuple[str, ...]


def points(fraction: float) -> str:
    """A signed difference in percentage points: ``+6.2``, ``−0.4``, ``0.0``."""
    text = f"{100 * fraction:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def percent(fraction: float | None) -> str:
    """``61.2``, or a dash where there is no value."""
    return "–" if fraction is None else f"{100 * fraction:.1f}"


def find(runs: Sequence[RunReport]) -> Finding:
    """State the result: differences to the first run, hardest condition first, with intervals and the sample size.

    Args:
        runs: the reference first; comparable (``check_comparable``).
    """
    reference, others = runs[0], runs[1:]
    conditions = list(reversed(reference.conditions))
    num_images = len(reference.clean.keys)
    scope = f"Measured on {num_images:,} test {'image' if num_images == 1 else 'images'}, one training run per model."
    if not others:
        return Finding(
            headline=_single_headline(reference),
            sentences=(scope + " Without a second model this says how well it does, not what made it so.",),
        )
    differences = {
        (run.name, name): mean_ap_difference(reference.conditions[name], run.conditions[name])
        for run in others
        for name in conditions
    }
    headline = " ".join(
        _headline(run.name, reference, {name: differences[run.name, name] for name in conditions}) for run in others
    )
    sentences = [_sentence(run, reference, name, differences[run.name, name]) for run in others for name in conditions]
    sentences.append(
        f"{scope} The intervals cover the choice of test images; they do not cover training again with another seed."
    )
    return Finding(headline=headline, sentences=tuple(sentences))


def _single_headline(run: RunReport) -> str:
    metrics = run.metrics()
    parts = [
        f"{percent(metrics[name].mAP)} on {describe_condition(name, predictions)}"
        for name, predictions in run.conditions.items()
    ]
    return f"{run.name} reaches a mean average precision of {', '.join(parts)}."


def _headline(name: str, reference: RunReport, by_condition: Mapping[str, Interval]) -> str:
    """One sentence: where ``name`` is ahead, where behind, and where nothing can be shown."""
    ahead: list[str] = []
    behind: list[str] = []
    level: list[str] = []
    for condition, difference in by_condition.items():
        where = (
            f"{'on' if condition == WHOLE else 'with'} {describe_condition(condition, reference.conditions[condition])}"
        )
        if not difference.excludes_zero:
            level.append(where)
        else:
            side = ahead if difference.value > 0 else behind
            side.append(f"by {abs(100 * difference.value):.1f} points of mAP {where}")
    if not ahead and not behind:
        return f"No difference in mAP between {name} and {reference.name} can be shown {_join(level, 'or')}."
    clauses = [
        f"{side} {other} {_join(places, 'and')}"
        for side, other, places in (
            ("ahead of", reference.name, ahead),
            ("behind", "it" if ahead else reference.name, behind),
        )
        if places
    ]
    unclear = f"; {_join(level, 'and')} no difference can be shown" if level else ""
    return f"{name} is {' and '.join(clauses)}{unclear}."


def _sentence(run: RunReport, reference: RunReport, condition: str, difference: Interval) -> str:
    where = describe_condition(condition, reference.conditions[condition])
    value = compute_metrics(run.conditions[condition]).mAP
    before = compute_metrics(reference.conditions[condition]).mAP
    verdict = "" if difference.excludes_zero else ", which includes zero"
    interval = f"{points(difference.low)} to {points(difference.high)}"
    return (
        f"{where[0].upper()}{where[1:]}: {run.name} {percent(value)} mAP against {reference.name} {percent(before)}, "
        f"{points(difference.value)} points (95\u00a0% interval {interval}{verdict})."
    )


def _join(parts: Sequence[str], last: str) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} {last} {parts[-1]}"
