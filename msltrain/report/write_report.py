"""Assemble the report: one HTML file that needs no network, and the same numbers as Markdown and JSON beside it.

Without its script, the page lacks only sorting.
"""

from __future__ import annotations

import json
import os
import platform
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from msldata.errors import counted
from msldata.pages.html import render
from msldata.storage import LocalStorage
from msltrain.measures.metrics import EXPLAINED
from msltrain.pages.svg import model_styles, style_name
from msltrain.pages.tables import as_markdown
from msltrain.pages.text import capital, join, markdown, markdown_list, quoted
from msltrain.report import gallery as galleries
from msltrain.report import tables
from msltrain.report.classcurves import NUM_OPEN, class_curves
from msltrain.report.cooccurrence import FEW_IMAGES
from msltrain.report.examples import NUM_SEEN_GROUPS, choose, choose_seen, find_keep_masks, read_examples
from msltrain.report.gallery import Gallery
from msltrain.report.headline import Headline, find
from msltrain.report.heatmap import cooccurrence_maps, scale, size_of
from msltrain.report.numbers import Numbers, compute_numbers, to_json
from msltrain.report.open_runs import RunReport, check_comparable, read_study
from msltrain.report.plots import hiding_plot, training_plots
from msltrain.robustness.figure import FEW, areas_table, robustness_markdown, study_plots
from msltrain.robustness.study import RECALIBRATED
from msltrain.runs.folder import package_version
from msltrain.runs.run_places import WHOLE

_WITHOUT_PHOTOGRAPHS = "The test shards were not at hand, so no photographs are shown; --data SHARDS adds them."
_WITHOUT_COMPANIONS = (
    f"Classes that stand together are not shown: no share over at least {FEW_IMAGES} images reaches 1 %."
)
CLASSES_SUFFIX = ".classes.csv"
"""Of the file with all classes, where there are more than the page shows."""
NUM_NAMED = 20
"""So many classes without a value are named."""
TALL_FROM = 24
"""With more classes, their table scrolls in its own box."""


def write_report(
    out_html: str | Path,
    *,
    title: str,
    runs: Sequence[RunReport],
    shards: str | Path | None = None,
    robustness: str | Path | None = None,
    num_examples: int = 12,
    commands: Sequence[str] = (),
    next_commands: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> Path:
    """Write the report on one run, or the comparison of several, as one self-contained HTML page, atomically.

    The same numbers go beside it under the same name with ``.md`` and ``.json``.

    Args:
        out_html: the file to write.
        title: heading of the page.
        runs: the reference (baseline) first; all measured on the same samples and keep masks.
        shards: the test shards the runs were measured on; without them the page has no example images.
        robustness: folder of a robustness study on the same shards.
        num_examples: how many images to show.
        commands: what was run to get here, as typed.
        next_commands: what to run next with real data.
        environment: name → value shown at the end; by default what ``describe_environment`` finds.
        note: called with what the page cannot show.

    Raises:
        UserError: the runs are not comparable, or shards or study do not belong to the predictions.
        FileNotFoundError: there is no study.
        StorageError: a file cannot be written.
    """
    check_comparable(runs)
    out_html = Path(out_html)
    curves = None if robustness is None else read_study(robustness, runs)
    gallery = None if shards is None else _gallery(runs, shards, num_examples)
    if gallery is not None and gallery.missing:
        note(gallery.missing)
    numbers = compute_numbers(runs, curves)
    examples = galleries.to_json(gallery, runs) if gallery else []
    texts = {
        out_html.with_suffix(".json").name: to_json(numbers, title, examples),
        out_html.with_suffix(".md").name: _to_markdown(numbers, title, out_html.with_suffix(CLASSES_SUFFIX).name),
    }
    if numbers.has_more_classes:
        texts[out_html.with_suffix(CLASSES_SUFFIX).name] = tables.all_classes(numbers)
    found = describe_environment() if environment is None else environment
    page = _to_html(numbers, title, gallery, found, beside=list(texts), commands=commands, next_commands=next_commands)
    # The page last: whoever finds it also finds the files that it mentions.
    for name, text in {**texts, out_html.name: page}.items():
        LocalStorage(out_html.parent).put(name, text.encode())
    return out_html


def describe_environment() -> dict[str, str]:
    """Program, library and machine versions; nothing that names the user or the host."""
    names = ("msltrain", "torch", "timm", "numpy", "pillow")
    versions = {name: package_version(name) or "unknown" for name in names}
    return {
        "msl": versions.pop("msltrain"),
        "Python": platform.python_version(),
        **versions,
        "System": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }


def _gallery(runs: Sequence[RunReport], shards: str | Path, num_examples: int) -> Gallery:
    hardest = list(runs[0].conditions)[-1]
    wins, failures = choose(runs, hardest, num_examples)
    choices = choose_seen(runs, num_examples // NUM_SEEN_GROUPS)
    if not wins and not failures and not choices:
        return Gallery(condition=hardest, groups=[])
    keep_masks = find_keep_masks(runs[0], hardest)
    missing = ""
    if keep_masks is None:
        recorded = ", ".join(runs[0].conditions[hardest].origin.keep_masks)
        missing = (
            f"The keep masks of “{hardest}” are gone from {recorded}, or have changed since the evaluation, so that no "
            "picture behind them can be shown; --keep-masks DIR says where they are."
        )
    shown = read_examples([*wins, *failures], runs[0].conditions[hardest], shards, keep_masks)
    whole = iter(read_examples([row for choice in choices for row in choice.rows], runs[0].clean, shards))
    seen = [(choice, [next(whole) for _ in choice.rows]) for choice in choices]
    return galleries.show_examples(runs, hardest, shown[: len(wins)], shown[len(wins) :], seen, missing)


def _subject(numbers: Numbers) -> str:
    """What was tested, in one line."""
    run = numbers.runs[0]
    origin = run.clean.origin
    sizes = dict.fromkeys(one.clean.origin.image_size for one in numbers.runs)
    dataset = f"{origin.dataset}, {origin.split} split: " if origin.dataset else ""
    return (
        f"{dataset}{counted(len(run.clean.keys), 'image')}, {counted(len(numbers.classes), 'class')}, "
        f"{' and '.join(f'{size} × {size}' for size in sizes)} pixels"
    )


def _to_html(
    numbers: Numbers,
    title: str,
    gallery: Gallery | None,
    environment: Mapping[str, str],
    *,
    beside: Sequence[str],
    commands: Sequence[str],
    next_commands: Sequence[str],
) -> str:
    counted: Counter[str] = Counter()

    def number(kind: str) -> str:
        counted[kind] += 1
        return f"{kind} {counted[kind]}"

    runs, curves = numbers.runs, numbers.curves
    names = [run.name for run in runs]
    # A model of the study that is also a run on the page keeps its colour.
    styles = model_styles(curves.models if curves else (), known=names)
    hardest = tables.where(numbers, numbers.ends[-1])
    (maps, blank), pairs = cooccurrence_maps(numbers), tables.pairs_table(numbers)
    return render(
        "msltrain.report/report.html",
        number=number,
        title=title,
        names=names,
        styles=[style_name(styles[name]) for name in names],
        subject=_subject(numbers),
        series=numbers.series,
        finding=find(numbers),
        ends=[capital(tables.where(numbers, end)) for end in numbers.ends],
        hardest=hardest,
        first=gallery.first if gallery else None,
        hiding=hiding_plot(numbers),
        measures=tables.measures_table(numbers),
        explained=_explained(numbers),
        strata=tables.strata_table(numbers),
        strata_note=numbers.measured[0][WHOLE].strata_note,
        curves=curves,
        curve_styles=[style_name(styles[model]) for model in curves.models] if curves else [],
        curve_plots=study_plots(curves, styles) if curves else [],
        areas=areas_table(curves) if curves else None,
        recalibrated=curves is not None and any(model.endswith(RECALIBRATED) for model in curves.models),
        few_pairs=FEW,
        gallery=gallery,
        gallery_where=f"{'on' if len(numbers.ends) == 1 else 'with'} {hardest}",
        classes=(classes := tables.class_rows(numbers)),
        found_width=max(len(bar.found) for row in classes for bars in row.ends for bar in bars),
        absent=_listed(numbers.measured[0][WHOLE].metrics.absent_classes),
        more_classes=next((name for name in beside if name.endswith(CLASSES_SUFFIX)), ""),
        num_classes=len(numbers.classes),
        num_together=len(numbers.together),
        tall_from=TALL_FROM,
        panels=class_curves(numbers),
        num_open=NUM_OPEN,
        maps=maps,
        blank=blank,
        map_size=size_of(len(numbers.together)),
        scale=scale(),
        few_images=FEW_IMAGES,
        pairs=pairs,
        training=training_plots(runs),
        validation=_validation(runs),
        method=[
            *_method(numbers),
            *([] if maps or pairs else [_WITHOUT_COMPANIONS]),
            *([] if gallery else [_WITHOUT_PHOTOGRAPHS]),
        ],
        settings=tables.settings_table(runs),
        configs=[(run.name, json.dumps(asdict(run.config), indent=2)) for run in runs],
        commands=commands,
        next_commands=next_commands,
        environment=_environment(numbers, environment),
        beside=beside,
    )


def _validation(runs: Sequence[RunReport]) -> str:
    """What the validation mAP was measured on, in words; empty where there was no validation."""
    by_words: dict[str, list[str]] = {}
    for run in runs:
        if any("validation_mAP" in row for row in run.history):
            is_own = run.config.data.validation
            words = "on a separate validation split" if is_own else "on samples set aside from the training split"
            by_words.setdefault(words, []).append(quoted(run.name))
    if len(by_words) < 2:
        return "".join(by_words)
    return join([f"{words} ({join(names)})" for words, names in by_words.items()])


def _explained(numbers: Numbers) -> str:
    """What the measures are, and which classes of which run are never predicted."""
    never = [
        f"{quoted(run.name)}, {text}."
        for run, measured in zip(numbers.runs, numbers.measured, strict=True)
        if (text := measured[WHOLE].metrics.never_predicted())
    ]
    return " ".join([EXPLAINED, *([f"On whole images: {' '.join(never)}"] if never else [])])


def _listed(names: Sequence[str]) -> list[str]:
    """The first of many names, and how many more there are."""
    more = len(names) - NUM_NAMED
    return [*names[:NUM_NAMED], *([f"{more:,} more"] if more > 0 else [])]


def _method(numbers: Numbers) -> list[str]:
    """How everything was measured, in sentences."""
    num_ignored = sum(one.num_ignored for one in numbers.measured[0][WHOLE].metrics.classes)
    num_tied = max(
        one.num_tied for entry in numbers.measured for measured in entry.values() for one in measured.metrics.classes
    )
    origin = numbers.runs[0].clean.origin
    in_rates = "count as negatives in P, R and F1, and are left out of AP"
    ignored = in_rates if origin.ignored_in_rates == "negative" else "are left out of every measure"
    views = origin.test_time
    sentences = [
        "AP is the mean over a class’s positives of the precision at their rank, by float32 logits; mAP is its mean "
        "over classes. P, R and F1 are taken at score ≥ 0.5; a class that is never predicted counts as one prediction; "
        "CF1 and OF1 are harmonic means of (CP, CR) and (OP, OR).",
        *(
            f"Thresholds of {quoted(run.name)}, used in predictions: {text}."
            + " Differences and comparisons with papers are at 0.5." * (measured[WHOLE].metrics.tuned is not None)
            for run, measured in zip(numbers.runs, numbers.measured, strict=True)
            if (text := measured[WHOLE].threshold_origin)
        ),
        f"{num_ignored:,} (image, class) pairs marked as ignored {ignored}." if num_ignored else "",
        "No positive ties with a negative, so no number depends on the order of the samples."
        if num_tied == 0
        else f"Up to {num_tied:,} positives of a class tie with a negative. As published, ties keep the order of the "
        "samples; where that moves a number by more than a rounding, a warning above says so.",
        f"Logits are means over several views of each image ({views})." if views else "",
    ]
    return [sentence for sentence in sentences if sentence]


def _environment(numbers: Numbers, found: Mapping[str, str]) -> list[tuple[str, str]]:
    """Versions, fingerprints and files."""
    entries = list(found.items())
    if fingerprint := numbers.runs[0].clean.origin.dataset_fingerprint:
        entries.append(("Test shards", f"fingerprint {fingerprint[:16]}"))
    for run in numbers.runs:
        origin = run.clean.origin
        if origin.checkpoint:
            entries.append((f"Weights of {run.name}", f"{origin.checkpoint}, sha256 {origin.checkpoint_sha256[:16]}"))
        if run.files:
            entries.append((f"Predictions of {run.name}", ", ".join(run.files.values())))
    return entries


def _to_markdown(numbers: Numbers, title: str, classes_file: str) -> str:
    """The page's tables, for a pull request or a notebook; its drawings are left out."""
    finding: Headline = find(numbers)
    hardest = tables.where(numbers, numbers.ends[-1])
    files = [
        f"{run.name}, {tables.where(numbers, name)}: {file}" for run in numbers.runs for name, file in run.files.items()
    ]
    strata, pairs = tables.strata_table(numbers), tables.pairs_table(numbers)
    blocks = [
        f"# {markdown(title)}",
        markdown(_subject(numbers)),
        f"**{markdown(finding.headline)}**",
        *(f"**{markdown(warning)}**" for warning in finding.warnings),
        markdown(finding.price),
        markdown_list([*filter(None, [finding.ranking]), *finding.sentences]),
        "## Accuracy",
        markdown(_explained(numbers)),
        as_markdown(tables.measures_table(numbers)),
        *(["## By size and occlusion of the largest object", as_markdown(strata)] if strata else []),
        re.sub("(?m)^#", "##", robustness_markdown(numbers.curves, alone=False).strip()) if numbers.curves else "",
        "## Average precision by class",
        as_markdown(tables.class_table(numbers)),
        f"The first and the last of {len(numbers.classes):,} classes; {classes_file} has them all."
        if numbers.has_more_classes
        else "",
        *([f"## Leaning on company, on {markdown(hardest)}", as_markdown(pairs)] if pairs else []),
        *(["## Predictions", markdown_list(files)] if files else []),
    ]
    return "\n\n".join(filter(None, blocks)) + "\n"
