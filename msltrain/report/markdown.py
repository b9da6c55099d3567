"""The report's numbers as Markdown, for a pull request or a notebook."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from msltrain.measures.metrics import SUMMARY
from msltrain.report.cooccurrence import leaning_pairs
from msltrain.report.finding import find, percent, points
from msltrain.report.heatmap import NUM_PAIRS, known
from msltrain.report.numbers import Numbers
from msltrain.report.open_runs import describe_condition
from msltrain.report.sections import subject
from msltrain.robustness.figure import robustness_table


def to_markdown(numbers: Numbers, title: str) -> str:
    """The tables of the page; what is drawn on it is left out."""
    finding = find(numbers)
    blocks = [f"# {title}", subject(numbers), f"**{finding.headline}**", _list(finding.sentences)]
    blocks += ["## Accuracy", _table(["on", "model", *SUMMARY], _accuracy(numbers))]
    if rows := list(_strata(numbers)):
        names = [f"{measure}, {run.name}" for measure in ("mAP", "CR") for run in numbers.runs]
        blocks += ["## By size and occlusion of the largest object", _table(["on", "objects", "pairs", *names], rows)]
    if numbers.curves is not None:
        blocks.append("#" + robustness_table(numbers.curves).strip())
    names = [f"{run.name}, {_where(numbers, end)}" for end in numbers.ends for run in numbers.runs]
    blocks += ["## Average precision by class", _table(["class", "images", *names], _classes(numbers))]
    if rows := list(_pairs(numbers)):
        names = [f"{run.name}{where}" for run in numbers.runs for where in ("", ", elsewhere")]
        head = ["present", "absent, yet seen", "images", "labelled together", *names]
        blocks += [f"## Leaning on company, on {_where(numbers, numbers.ends[-1])}", _table(head, rows)]
    files = [
        f"{run.name}, {_where(numbers, name)}: `{file}`" for run in numbers.runs for name, file in run.files.items()
    ]
    if files:
        blocks += ["## Predictions", _list(files)]
    return "\n\n".join(blocks) + "\n"


def _accuracy(numbers: Numbers) -> Iterator[list[str]]:
    for condition in numbers.conditions:
        where = _where(numbers, condition)
        values = [list(measured[condition].metrics.summary().values()) for measured in numbers.measured]
        for number, (run, mine) in enumerate(zip(numbers.runs, values, strict=True)):
            yield [where, run.name, *map(percent, mine)]
            if number:
                difference = [points(value - first) for value, first in zip(mine, values[0], strict=True)]
                yield [where, f"{run.name} − {numbers.runs[0].name}", *difference]


def _strata(numbers: Numbers) -> Iterator[list[str]]:
    for condition in numbers.conditions:
        for same in zip(*(measured[condition].strata for measured in numbers.measured), strict=True):
            values = [*(percent(one.mAP) for one in same), *(percent(one.CR) for one in same)]
            yield [_where(numbers, condition), same[0].name, f"{same[0].num_positive:,}", *values]


def _classes(numbers: Numbers) -> Iterator[list[str]]:
    for k in numbers.class_order():
        found = [measured[end].metrics.classes[k] for end in numbers.ends for measured in numbers.measured]
        values = [percent(one.average_precision) for one in found]
        yield [numbers.classes[k], f"{found[0].num_positive:,}", *values]


def _pairs(numbers: Numbers) -> Iterator[list[str]]:
    alarms = [one[numbers.ends[-1]] for one in numbers.false_alarms]
    for i, j in leaning_pairs(alarms, NUM_PAIRS):
        rates = [known(rate) for one in alarms for rate in (one.rate_KK[i, j], one.rate_elsewhere_KK[i, j])]
        together = known(numbers.companions.share_KK[i, j])
        yield [numbers.classes[i], numbers.classes[j], f"{alarms[0].num_images_KK[i, j]:,}", together, *rates]


def _where(numbers: Numbers, condition: str) -> str:
    return describe_condition(condition, numbers.runs[0].conditions[condition]).replace("\u00a0", " ")


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines).replace("\u00a0", " ")


def _table(head: Sequence[str], rows: Iterator[list[str]] | list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
