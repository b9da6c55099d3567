"""The sections of the page, each under a heading of its own and with captions that say how to read it.

``#`` in "Table #" and "Figure #" becomes a number when the page is put together.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape

from msltrain.measures.bootstrap import Interval
from msltrain.pages.svg import Line, line_plot
from msltrain.report.classcurves import class_curves
from msltrain.report.cooccurrence import FEW_IMAGES
from msltrain.report.finding import find, percent
from msltrain.report.gallery import Gallery
from msltrain.report.heatmap import cooccurrence_figure, pairs_table
from msltrain.report.history import training_plots
from msltrain.report.holecurves import areas_table, study_figure
from msltrain.report.metric_tables import class_table, legend, measures_table, settings_table, strata_table
from msltrain.report.numbers import Numbers
from msltrain.report.open_runs import WHOLE, describe_condition
from msltrain.robustness.figure import FEW

TALL_FROM = 24
"""With more classes their table scrolls in a box of its own."""


def heading(anchor: str, text: str) -> str:
    """A heading that the contents of the page list."""
    return f'<h2 id="{anchor}">{text}</h2>\n'


def subject(numbers: Numbers) -> str:
    """What was tested, in one line."""
    run = numbers.runs[0]
    origin = run.clean.origin
    sizes = dict.fromkeys(one.clean.origin.image_size for one in numbers.runs)
    dataset = f"{origin.dataset}, {origin.split} split: " if origin.dataset else ""
    return (
        f"{dataset}{len(run.clean.keys):,} images, {len(numbers.classes)} classes, "
        f"{' and '.join(f'{size} × {size}' for size in sizes)} pixels"
    )


def opening(title: str, numbers: Numbers) -> str:
    """Title, result in a sentence, its parts, and mAP over what is hidden."""
    finding = find(numbers)
    details = "".join(f"<li>{escape(sentence)}</li>\n" for sentence in finding.sentences)
    kind = "comparison" if len(numbers.runs) > 1 else "run"
    return (
        f'<header>\n<p class="kicker">Masked Supervised Learning · {kind}</p>\n'
        f'<h1>{escape(title)}</h1>\n<p class="subject">{escape(subject(numbers))}</p>\n</header>\n'
        f'<p class="headline">{escape(finding.headline)}</p>\n'
        f'<div class="lead">\n<ul>\n{details}</ul>\n{_hiding_plot(numbers)}</div>'
    )


def _hiding_plot(numbers: Numbers) -> str:
    """mAP over the share hidden, with bootstrap whiskers; nothing where nothing was hidden."""
    if len(numbers.conditions) == 1:
        return ""
    lines, words = [], []
    for number, (run, measured) in enumerate(zip(numbers.runs, numbers.measured, strict=True)):
        hidden = [100 * one.origin.hole_fraction for one in measured.values()]
        intervals: list[Interval] = [one.intervals["mAP"] for one in measured.values()]
        lines.append(
            Line(
                name=run.name,
                x=hidden,
                y=[100 * interval.value for interval in intervals],
                style=number,
                whisker=[(100 * interval.low, 100 * interval.high) for interval in intervals],
                marker=True,
            )
        )
        values = (f"{percent(interval.value)} at {x:.0f} % hidden" for x, interval in zip(hidden, intervals))
        words.append(f"{run.name}: {', '.join(values)}")
    svg = line_plot(
        lines, x_label="share of the image hidden, %", y_label="mAP, %", alt="mAP by hidden share. " + "; ".join(words)
    )
    same = " Every model meets the same hole on the same image." if len(numbers.runs) > 1 else ""
    return (
        f"<figure>{legend([run.name for run in numbers.runs])}{svg}<figcaption><b>Figure #.</b> mAP over the mean "
        f"share of the image that the keep masks hide.{same} Whiskers: 95 % bootstrap interval over the test images."
        "</figcaption></figure>\n"
    )


def accuracy(numbers: Numbers) -> str:
    """The published measures."""
    several = (
        "; in bold the best of each column and condition. Differences are in points, taken before rounding"
        if len(numbers.runs) > 1
        else ""
    )
    caption = f"<caption><b>Table #.</b> Published measures in percent{several}.</caption>"
    return (
        f'{heading("accuracy", "Accuracy")}<div class="scroll"><table class="measures">{caption}'
        f"{measures_table(numbers)}</table></div>"
    )


def strata(numbers: Numbers) -> str:
    """By size and occlusion; nothing without object annotations."""
    rows = strata_table(numbers)
    if not rows:
        return ""
    note = numbers.measured[0][WHOLE].size_note
    caption = (
        "<caption><b>Table #.</b> By the largest object of each positive (image, class) pair: small is below 32², "
        "large from 96² square pixels of the source image; a small share of the image is below 0.33 %, a large one "
        "from 3 %. Each row ranks its pairs among all negatives; mAP and CR are means over the classes present in "
        f"it, in percent.{note and f' Note: {escape(note)}.'}</caption>"
    )
    table = f'<div class="scroll"><table class="strata">{caption}{rows}</table></div>'
    return f"{heading('strata', 'Small, truncated and occluded objects')}{table}"


def robustness(numbers: Numbers) -> str:
    """The robustness study; nothing without one."""
    if numbers.curves is None:
        return ""
    recalibrated = any(model.endswith("recalibrated") for model in numbers.curves.models)
    control = (
        " “Recalibrated” is the same network with its BatchNorm statistics measured on masked images: what robustness "
        "such adaptation alone brings."
        if recalibrated
        else ""
    )
    return (
        f"{heading('robustness', 'Robustness to holes')}<figure>{study_figure(numbers)}<figcaption><b>Figure #.</b> "
        "Measures over the mean hidden share, in bins of ten percent, on held-out keep masks; every model meets the "
        "same holes. A large ring beside a curve: all masks that hide more than half. Recall: positive (image, class) "
        "pairs that are predicted, by how much the keep mask leaves of the box of the class’s least hidden object; at "
        f"0 nothing of the class can be seen.{control}</figcaption></figure>\n"
        '<div class="scroll"><table class="areas"><caption><b>Table #.</b> Mean height of each curve from no hole to '
        "the last bin, in percent; how often a class is predicted of which nothing can be seen (Hidden; a dash: fewer "
        f"than {FEW} pairs), and one that is not in the picture (Absent).</caption>"
        f"{areas_table(numbers.curves)}</table></div>"
    )


def classes(numbers: Numbers) -> str:
    """AP and precision over recall by class."""
    hardest = numbers.ends[-1]
    where = escape(describe_condition(hardest, numbers.runs[0].conditions[hardest]))
    order = (
        f"what {escape(numbers.runs[-1].name)} gains over {escape(numbers.runs[0].name)} on {where}"
        if len(numbers.runs) > 1
        else f"AP on {where}"
    )
    caption = f"<b>Table #.</b> Average precision by class, in percent, sorted by {order}."
    absent = numbers.measured[0][WHOLE].metrics.absent_classes
    if absent:
        caption += f" Without a positive among these images, so without a value: {escape(', '.join(absent))}."
    key = legend([run.name for run in numbers.runs])
    table = f'<table class="bars sortable"><caption>{caption}</caption>{class_table(numbers)}</table>'
    if len(numbers.classes) > TALL_FROM:
        table = f'<div class="tall" tabindex="0" role="region" aria-label="Average precision by class">{table}</div>'
    return (
        f'{heading("by-class", "By class")}<div class="solid">{key}</div>{table}\n'
        f'<figure id="class-curves">{key}{class_curves(numbers)}<figcaption><b>Figure #.</b> Precision over recall, '
        "both in percent, in the order of the table; beside each class its images and, above the curves, AP. A curve "
        "runs through the precision at each positive’s rank, so its mean height is the AP; classes with many positives "
        "are drawn through group means. Rings: score 0.5. A click on a class enlarges its plot.</figcaption></figure>"
    )


def companions(numbers: Numbers) -> str:
    """What stands together, and what is seen for that reason alone."""
    hardest = numbers.ends[-1]
    where = escape(describe_condition(hardest, numbers.runs[0].conditions[hardest]))
    figure = (
        f"<figure>{cooccurrence_figure(numbers)}<figcaption><b>Figure #.</b> Rows: a class that is in the image. "
        "Columns: another class. Labels: the share of those images that have the other class as well. False alarms: "
        "the share of the images with the row’s class and without the column’s in which the column’s is predicted. "
        f"Empty: below 1 %, or fewer than {FEW_IMAGES} images.</figcaption></figure>"
    )
    rows = pairs_table(numbers, hardest)
    table = (
        '<div class="scroll"><table class="pairs sortable"><caption><b>Table #.</b> Leaning on company, on '
        f"{where}: the pairs with most false alarms beyond the usual, in percent of the images with the first and "
        "without the second class; “elsewhere” is the same class’s rate in images with neither. “Labelled together”: "
        f"the share of images with the first class that do have the second.</caption>{rows}</table></div>"
        if rows
        else ""
    )
    return f"{heading('companions', 'Classes that stand together')}{figure}\n{table}"


def training(numbers: Numbers) -> str:
    """Training curves; nothing without a history."""
    plots = training_plots(numbers.runs)
    if not plots:
        return ""
    key = legend([run.name for run in numbers.runs])
    held_out = any("validation_mAP" in row for run in numbers.runs for row in run.history)
    validation = ", and mAP on the validation samples, which are set aside from the training split" if held_out else ""
    return (
        f'{heading("training", "Training")}<figure>{key}<div class="plots">{plots}</div><figcaption><b>Figure #.</b> '
        f"Losses as means over each epoch, unweighted{validation}.</figcaption></figure>"
    )


def examples(gallery: Gallery | None, numbers: Numbers) -> str:
    """The gallery; nothing without pictures."""
    if gallery is None or not (figures := gallery.figures(numbers.runs)):
        return ""
    where = escape(describe_condition(gallery.condition, numbers.runs[0].conditions[gallery.condition]))
    return (
        f"{heading('examples', 'Examples')}<p>Chosen by rule, not by eye: by cross-entropy on {where}. "
        "Each list holds a model’s three highest scores. 50 % and above is a prediction, right or wrong; missed is a "
        f"class that is there but scores less; grey classes were not predicted.</p>\n{figures}"
    )


def method(numbers: Numbers) -> str:
    """How it was measured, and with which settings."""
    table = settings_table(numbers.runs)
    settings = (
        '<table class="words"><caption><b>Table #.</b> The settings in which the runs differ.</caption>'
        f"{table}</table>\n"
        if table
        else ""
    )
    full = "".join(
        f"<details><summary>All settings of {escape(run.name)}</summary>"
        f"<pre>{escape(json.dumps(asdict(run.config), indent=2))}</pre></details>\n"
        for run in numbers.runs
    )
    num_ignored = sum(one.num_ignored for one in numbers.measured[0][WHOLE].metrics.classes)
    num_tied = max(
        one.num_tied for entry in numbers.measured for measured in entry.values() for one in measured.metrics.classes
    )
    views = numbers.runs[0].clean.origin.test_time
    sentences = [
        "AP is the mean over a class’s positives of the precision at their rank, by float32 logits; mAP is its mean "
        "over classes. P, R and F1 are taken at score ≥ 0.5; a class that is never predicted counts as one prediction; "
        "CF1 and OF1 are harmonic means of (CP, CR) and (OP, OR).",
        f"{num_ignored:,} (image, class) pairs marked as ignored are left out of every measure." if num_ignored else "",
        "No positive ties with a negative, so no number depends on the order of the samples."
        if num_tied == 0
        else f"Up to {num_tied:,} positives of a class tie with a negative; ties keep the order of the samples.",
        f"Logits are means over several views of each image ({escape(views)})." if views else "",
    ]
    text = " ".join(filter(None, sentences))
    return f"{heading('method', 'How it was measured')}<p>{text}</p>\n{settings}{full}"


def commands(made: Sequence[str], following: Sequence[str]) -> str:
    """What was typed to get here, and what to type next."""
    parts = []
    for title, lines in (("Commands that made this page", made), ("Going on with real data", following)):
        if lines:
            parts.append(f"<h2>{title}</h2>\n<pre>{escape(chr(10).join(lines))}</pre>")
    return "\n".join(parts)


def environment(numbers: Numbers, found: Mapping[str, str], beside: Sequence[str]) -> str:
    """Versions, identities and files."""
    entries = dict(found)
    origin = numbers.runs[0].clean.origin
    if origin.dataset_fingerprint:
        entries["Test shards"] = f"fingerprint {origin.dataset_fingerprint[:16]}"
    for run in numbers.runs:
        if run.clean.origin.checkpoint:
            entries[f"Weights of {run.name}"] = (
                f"{run.clean.origin.checkpoint}, sha256 {run.clean.origin.checkpoint_sha256[:16]}"
            )
        if run.files:
            entries[f"Predictions of {run.name}"] = ", ".join(run.files.values())
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in entries.items())
    return (
        f"<h2>Environment</h2>\n<dl>{rows}</dl>\n<footer>Every test number on this page is computed from the "
        f"predictions files; {escape(' and '.join(beside))} beside it hold the same. The method is Zunair &amp; Ben "
        "Hamza, <cite>Learning to Recognize Occluded and Small Objects with Partial Inputs</cite>, WACV 2024.</footer>"
    )
