"""What the numbers say, in words, and nothing beyond it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from msltrain.measures.bootstrap import Interval
from msltrain.report.numbers import Numbers
from msltrain.report.open_runs import WHOLE, RunReport, describe_condition


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


def find(numbers: Numbers) -> Finding:
    """State the result: differences to the first run, hardest condition first, with intervals and the sample size."""
    reference, others = numbers.runs[0], numbers.runs[1:]
    num_images = len(reference.clean.keys)
    scope = f"Measured on {num_images:,} test {'image' if num_images == 1 else 'images'}, one training run per model."
    if not others:
        return Finding(
            headline=_single_headline(numbers),
            sentences=(
                *(_interval_sentence(numbers, condition) for condition in numbers.conditions),
                f"{scope} Without a second model this says how well it does, not what made it so.",
            ),
        )
    hardest_first = list(reversed(numbers.conditions))
    headline = " ".join(
        _headline(run.name, reference, {name: differences[name] for name in hardest_first})
        for run, differences in zip(others, numbers.differences[1:], strict=True)
    )
    sentences = [_sentence(numbers, number, name) for number in range(1, len(numbers.runs)) for name in hardest_first]
    sentences.append(
        f"{scope} The intervals cover the choice of test images; they do not cover training again with another seed."
    )
    return Finding(headline=headline, sentences=tuple(sentences))


def _single_headline(numbers: Numbers) -> str:
    [run] = numbers.runs
    parts = [
        f"{percent(measured.metrics.mAP)} on {describe_condition(name, run.conditions[name])}"
        for name, measured in numbers.measured[0].items()
    ]
    return f"{run.name} reaches a mean average precision of {', '.join(parts)}."


def _interval_sentence(numbers: Numbers, condition: str) -> str:
    where = describe_condition(condition, numbers.runs[0].conditions[condition])
    interval = numbers.measured[0][condition].intervals["mAP"]
    return (
        f"{where[0].upper()}{where[1:]}: {percent(interval.value)} mAP (95\u00a0% interval {percent(interval.low)} to "
        f"{percent(interval.high)})."
    )


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


def _sentence(numbers: Numbers, number: int, condition: str) -> str:
    run, reference = numbers.runs[number], numbers.runs[0]
    where = describe_condition(condition, reference.conditions[condition])
    value, before = (numbers.measured[n][condition].metrics.mAP for n in (number, 0))
    difference = numbers.differences[number][condition]
    verdict = "" if difference.excludes_zero else ", which includes zero"
    interval = f"{points(difference.low)} to {points(difference.high)}"
    return (
        f"{where[0].upper()}{where[1:]}: {run.name} {percent(value)} mAP against {reference.name} {percent(before)}, "
        f"{points(difference.value)} points (95\u00a0% interval {interval}{verdict})."
    )


def _join(parts: Sequence[str], last: str) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} {last} {parts[-1]}"
