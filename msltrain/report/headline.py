"""What the numbers say, in words, and nothing more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from msldata.errors import counted
from msltrain.measures.bootstrap import Interval
from msltrain.pages.text import capital, join, percent, points, quoted
from msltrain.report.numbers import Found, Numbers
from msltrain.report.open_runs import RunReport, describe_condition
from msltrain.report.series import Series
from msltrain.runs.run_places import WHOLE

_TERMS = "A label is a class in an image; a false alarm, a class that is named and not there."


@dataclass(frozen=True, kw_only=True)
class Headline:
    """The first lines of the page."""

    headline: str
    """In plain words: how many labels the last run finds beside the reference, at as many false alarms; of series, how
    far the last is ahead of the first in mAP."""
    warnings: tuple[str, ...]
    """What must be known before any of it is believed: training that was stopped, photographs of training, too few."""
    price: str
    """What each model finds at a score of 0.5, and its false alarms."""
    ranking: str
    """The same comparison in mAP."""
    sentences: tuple[str, ...]
    """mAP of each condition with its interval."""


def find(numbers: Numbers) -> Headline:
    """State the result: differences from the first run, hardest condition first, with intervals and the sample size.

    Of series their means are compared, and not the runs that happen to come first and last.
    """
    if numbers.series:
        return _find_series(numbers)
    reference, others = numbers.runs[0], numbers.runs[1:]
    num_images = len(reference.clean.keys)
    scope = f"Measured on {num_images:,} test {'image' if num_images == 1 else 'images'}, one training run per model."
    if not others:
        return Headline(
            headline=_one_finds(numbers),
            warnings=_warnings(numbers),
            price=_price(numbers),
            ranking=_single_headline(numbers),
            sentences=(
                *(_interval_sentence(numbers, condition) for condition in numbers.conditions),
                f"{scope} Without a second model this says how well it does, not what made it so.",
            ),
        )
    hardest_first = list(reversed(numbers.conditions))
    ranking = _headline(
        quoted(others[-1].name),
        quoted(reference.name),
        reference,
        {name: numbers.differences[-1][name] for name in hardest_first},
    )
    sentences = [_sentence(numbers, number, name) for number in range(1, len(numbers.runs)) for name in hardest_first]
    sentences.append(
        f"{scope} The intervals cover the choice of test images; they do not cover training again with another seed."
    )
    return Headline(
        headline=_finds(numbers, len(numbers.runs) - 1),
        warnings=_warnings(numbers),
        price=_price(numbers),
        ranking=ranking,
        sentences=tuple(sentences),
    )


def _find_series(numbers: Numbers) -> Headline:
    """The same of series: every number is a mean over seeds."""
    first, last, reference = numbers.series[0], numbers.series[-1], numbers.runs[0]
    hardest_first = list(reversed(numbers.conditions))
    mean = {name: last.text(name) for name in numbers.conditions}
    if first is last:
        reached = [f"{mean[name]} {_in_condition(reference, name)}" for name in numbers.conditions]
        headline = f"{_of_series(last)} reaches a mean average precision of {join(reached)}."
        sentences = [
            f"{capital(describe_condition(name, reference.conditions[name]))}: {mean[name]} mAP "
            f"(95\u00a0% interval {percent(last.mAP[name].low)} to {percent(last.mAP[name].high)})."
            for name in numbers.conditions
        ]
    else:
        by_condition = {name: last.mAP_minus_first[name] for name in hardest_first}
        headline = _headline(_of_series(last), _of_series(first), reference, by_condition)
        sentences = [
            _difference_sentence(
                reference,
                name,
                (one.name, one.text(name)),
                (first.name, first.text(name)),
                one.mAP_minus_first[name],
            )
            for one in numbers.series[1:]
            for name in hardest_first
        ]
    sentences.append(
        f"Measured on {counted(len(reference.clean.keys), 'test image')}. ± is the sample standard deviation over "
        "seeds; the intervals cover the choice of test images, and do not cover training with further seeds."
    )
    return Headline(
        headline=headline,
        warnings=_warnings(numbers),
        price=f"{_series_at_half(numbers)} {_TERMS}",
        ranking="",
        sentences=tuple(sentences),
    )


def _of_series(one: Series) -> str:
    """Its name, and how many runs it is the mean of."""
    return quoted(one.name) + (f" (mean of {len(one.members)} runs)" if len(one.members) > 1 else "")


def _series_at_half(numbers: Numbers) -> str:
    """What the runs of every series find at a score of 0.5 on average, and their false alarms, in a sentence."""
    parts = []
    for end in reversed(numbers.ends):
        shares = []
        for one in numbers.series:
            found = [numbers.found[number][end] for number in one.members]
            share = 100 * sum(each.num_found / max(each.num_objects, 1) for each in found) / len(found)
            alarms = 100 * sum(each.num_false / each.num_images for each in found) / len(found)
            shares.append(
                f"{quoted(one.name)} finds {share:.{0 if share >= 9.5 else 1}f} of every 100 labels with "
                f"{alarms:.0f} false alarms per 100 images"
            )
        parts.append(f"{_where(numbers, end)} {join(shares)}")
    return f"At a score of 0.5, on average over the seeds, {'; '.join(parts)}."


def _warnings(numbers: Numbers) -> tuple[str, ...]:
    few = numbers.measured[0][WHOLE].metrics.too_few()
    stopped = [run for run in numbers.runs if run.unfinished]
    texts = [f"{quoted(run.name)} is not trained to its end: {run.unfinished}" for run in stopped]
    texts += [f"{quoted(run.name)}: {text}" for run in numbers.runs for text in run.met]
    texts += [
        f"{quoted(run.name)} {_where(numbers, condition)}: {text}"
        for run, measured in zip(numbers.runs, numbers.measured, strict=True)
        for condition, one in measured.items()
        if (text := one.metrics.decided_by_order())
    ]
    return tuple(f"{capital(text)}." for text in [*texts, *filter(None, [few])])


def _is_few(numbers: Numbers) -> bool:
    """Whether there are so few photographs that chance decides much; a warning says so then."""
    return bool(numbers.measured[0][WHOLE].metrics.too_few())


def _is_shown(numbers: Numbers, number: int, end: str) -> bool:
    """Whether a run differs from the reference beyond chance; of few photographs both measures must say so."""
    is_more = numbers.found[number][end].gain.excludes_zero
    return is_more and (not _is_few(numbers) or numbers.differences[number][end].excludes_zero)


def _shows_nothing(numbers: Numbers, number: int) -> bool:
    """Whether photographs are too few to tell a run from the reference, so that the first line says that alone."""
    return _is_few(numbers) and not any(_is_shown(numbers, number, end) for end in numbers.ends)


def _one_finds(numbers: Numbers) -> str:
    [run] = numbers.runs
    if few := _few_labels(numbers):
        places = [f"{numbers.found[0][end].num_found:,} {_where(numbers, end)}" for end in numbers.ends]
        return f"Of {counted(few, 'label')} {quoted(run.name)} finds {join(places)}."
    places = [
        f"{_of_hundred(numbers.found[0][end].num_found, numbers.found[0][end])} {_where(numbers, end)}"
        for end in numbers.ends
    ]
    return f"Of every 100 labels {quoted(run.name)} finds {join(places)}."


def _few_labels(numbers: Numbers) -> int:
    """How many labels there are where they are fewer than a hundred, so that shares of a hundred say too much; or 0.

    Only where every condition has the same.
    """
    [num_labels, *others] = {found.num_objects for by_end in numbers.found for found in by_end.values()}
    return 0 if others or num_labels >= 100 else num_labels


def _finds(numbers: Numbers, number: int) -> str:
    """Where a run finds more labels than the reference with as many false alarms, fewer, or about as many; the hardest
    condition first.

    "About as many" is said where the 95 % interval of the difference holds zero; of few photographs, that no difference
    can be shown, with what each finds at 0.5.
    """
    run, reference = numbers.runs[number], numbers.runs[0]
    if _shows_nothing(numbers, number):
        both = f"{quoted(run.name)} and {quoted(reference.name)}"
        images = counted(len(reference.clean.keys), "photograph")
        return f"{images} cannot show a difference between {both}. {_at_half(numbers)}"
    few = _few_labels(numbers)
    clauses: list[str] = []
    for end in reversed(numbers.ends):
        mine, first = numbers.found[number][end], numbers.found[0][end]
        both_found = (mine.num_found_alike, first.num_found_alike)
        shares = [f"{found:,}" if few else _of_hundred(found, mine) for found in both_found]
        of = f"of {few}" if few else "of every 100"
        if _is_shown(numbers, number, end):
            amount, than = _ratio(*both_found)
            counts = f"({shares[0]} instead of {shares[1]} {of})"
        else:
            amount, than = "about as many", "as"
            counts = f"({shares[0]} and {shares[1]} {of})"
        where = _where(numbers, end)
        if clauses:
            clauses.append(f"{where} it finds {amount} {counts}")
        else:
            clauses.append(f"{quoted(run.name)} finds {amount} labels {than} {quoted(reference.name)} {where} {counts}")
    return f"With as many false alarms {'; '.join(clauses)}."


def _ratio(number: int, other: int) -> tuple[str, str]:
    """``60 % more``, and the word that continues the comparison."""
    if not other:
        return "more", "than"
    ratio = number / other
    if ratio >= 2:
        return f"{ratio:.1f} times as many", "as"
    change = 100 * abs(ratio - 1)
    return f"{change:.{0 if change >= 9.5 else 1}f}\u00a0% {'more' if ratio > 1 else 'fewer'}", "than"


def _of_hundred(count: int, found: Found) -> str:
    share = 100 * count / max(found.num_objects, 1)
    return f"{share:.{0 if share >= 9.5 else 1}f}"


def _where(numbers: Numbers, end: str) -> str:
    if end == WHOLE:
        return "on whole images"
    return f"with {100 * numbers.runs[0].conditions[end].origin.hole_fraction:.0f}\u00a0% of the image hidden"


def _price(numbers: Numbers) -> str:
    """What every model finds and what it costs at a score of 0.5, as sentences."""
    if len(numbers.runs) == 1:
        alarms = [f"{_alarms(numbers, 0, end)} {_where(numbers, end)}" for end in numbers.ends]
        return f"{quoted(numbers.runs[0].name)} finds them at a score of 0.5, with {join(alarms)}. {_TERMS}"
    if _shows_nothing(numbers, len(numbers.runs) - 1):
        return _TERMS
    return f"{_at_half(numbers)} {_TERMS}{_why_other(numbers)}"


def _at_half(numbers: Numbers) -> str:
    """What every model finds at a score of 0.5, and its false alarms, in a sentence."""
    few = _few_labels(numbers)
    parts = []
    for end in reversed(numbers.ends):
        shares = []
        for number, (run, by_end) in enumerate(zip(numbers.runs, numbers.found, strict=True)):
            found = by_end[end]
            share = f"{found.num_found:,}" if few else _of_hundred(found.num_found, found)
            of = "" if number else f" of the {counted(few, 'label')}" if few else " of every 100 labels"
            shares.append(f"{quoted(run.name)} finds {share}{of} with {_alarms(numbers, number, end)}")
        parts.append(f"{_where(numbers, end)} {join(shares)}")
    return f"At a score of 0.5, {'; '.join(parts)}."


def _alarms(numbers: Numbers, number: int, end: str) -> str:
    """The false alarms of a run in an end condition: counted, or of every 100 images where the labels are as well."""
    found = numbers.found[number][end]
    if _few_labels(numbers):
        return counted(found.num_false, "false alarm")
    return f"{100 * found.num_false / found.num_images:.0f} false alarms per 100 images"


def _why_other(numbers: Numbers) -> str:
    """Why the headline's counts are others, where they are."""
    pairs = [(found.num_found, found.num_found_alike) for by_end in numbers.found for found in by_end.values()]
    if len(numbers.runs) == 1 or all(at_half == alike for at_half, alike in pairs):
        return ""
    return (
        f" The first line counts other labels: those down to the lowest score at which a model makes no more false "
        f"alarms than {quoted(numbers.runs[0].name)} makes at 0.5."
    )


def _single_headline(numbers: Numbers) -> str:
    [run] = numbers.runs
    parts = [
        f"{percent(measured.metrics.mAP)} on {describe_condition(name, run.conditions[name])}"
        for name, measured in numbers.measured[0].items()
    ]
    return f"{quoted(run.name)} reaches a mean average precision of {', '.join(parts)}."


def _interval_sentence(numbers: Numbers, condition: str) -> str:
    where = describe_condition(condition, numbers.runs[0].conditions[condition])
    interval = numbers.measured[0][condition].intervals["mAP"]
    return (
        f"{capital(where)}: {percent(interval.value)} mAP (95\u00a0% interval {percent(interval.low)} to "
        f"{percent(interval.high)})."
    )


def _in_condition(reference: RunReport, condition: str) -> str:
    where = describe_condition(condition, reference.conditions[condition])
    return f"{'on' if condition == WHOLE else 'with'} {where}"


def _headline(name: str, first: str, reference: RunReport, by_condition: Mapping[str, Interval]) -> str:
    """One sentence: where ``name`` is ahead of ``first``, where it is behind, and where no difference can be shown."""
    ahead: list[str] = []
    behind: list[str] = []
    level: list[str] = []
    for condition, difference in by_condition.items():
        where = _in_condition(reference, condition)
        if not difference.excludes_zero:
            level.append(where)
        else:
            side = ahead if difference.value > 0 else behind
            side.append(f"by {abs(100 * difference.value):.1f} points of mAP {where}")
    if not ahead and not behind:
        return f"No difference in mAP between {name} and {first} can be shown {join(level, 'or')}."
    clauses = [
        f"{side} {other} {join(places)}"
        for side, other, places in (
            ("ahead of", first, ahead),
            ("behind", "it" if ahead else first, behind),
        )
        if places
    ]
    unclear = f"; {join(level)} no difference can be shown" if level else ""
    return f"{name} is {' and '.join(clauses)}{unclear}."


def _sentence(numbers: Numbers, number: int, condition: str) -> str:
    run, reference = numbers.runs[number], numbers.runs[0]
    value, before = (percent(numbers.measured[n][condition].metrics.mAP) for n in (number, 0))
    difference = numbers.differences[number][condition]
    return _difference_sentence(reference, condition, (run.name, value), (reference.name, before), difference)


def _difference_sentence(
    reference: RunReport, condition: str, one: tuple[str, str], other: tuple[str, str], difference: Interval
) -> str:
    """Two named values of mAP in a condition, as text, and how far they lie apart."""
    verdict = "" if difference.excludes_zero else ", which includes zero"
    interval = f"{points(difference.low)} to {points(difference.high)}"
    return (
        f"{capital(describe_condition(condition, reference.conditions[condition]))}: {quoted(one[0])} {one[1]} mAP "
        f"against {quoted(other[0])} {other[1]}, "
        f"{points(difference.value)} points (95\u00a0% interval {interval}{verdict})."
    )
