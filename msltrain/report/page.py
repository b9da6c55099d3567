"""Put the report together: one HTML file that needs no network; without its script only sorting is missing."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path

from msldata.storage import LocalStorage
from msltrain.bootstrap import mean_ap_interval
from msltrain.metrics import Metrics
from msltrain.report.examples import Example, choose, example_figure, read_examples
from msltrain.report.finding import find, percent
from msltrain.report.history import training_plots
from msltrain.report.plots import Line, line_plot
from msltrain.report.runs import WHOLE, RunReport, check_comparable, describe_condition
from msltrain.report.tables import class_table, legend, measures_table, settings_table, strata_table


def write_report(
    out_html: str | Path,
    *,
    title: str,
    runs: Sequence[RunReport],
    shards: str | Path | None = None,
    num_examples: int = 6,
    commands: Sequence[str] = (),
    next_commands: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Path:
    """Write the comparison of ``runs`` as one self-contained HTML page, atomically.

    Args:
        out_html: the file to write.
        title: heading of the page.
        runs: the reference (baseline) first; all measured on the same samples and keep masks.
        shards: the test shards the runs were measured on; without them the page has no example images.
        num_examples: how many images to show.
        commands: what was run to get here, as typed.
        next_commands: what to run next with real data.
        environment: name → value shown at the end; by default what ``describe_environment`` finds.

    Raises:
        UserError: the runs are not comparable, or the shards are not those of the predictions.
        StorageError: the page cannot be written.
    """
    check_comparable(runs)
    out_html = Path(out_html)
    metrics = [run.metrics() for run in runs]
    hardest = list(runs[0].conditions)[-1]
    examples: list[Example] = []
    if shards is not None and num_examples:
        examples = read_examples(choose(runs, hardest, num_examples), runs[0].conditions[hardest], shards)
    sections = (
        _opening(title, runs),
        _measures(runs, metrics),
        _strata(runs),
        _training(runs),
        _classes(runs, metrics),
        _examples(examples, runs, hardest),
        _method(runs, metrics),
        _commands(commands, next_commands),
        _environment(runs, describe_environment() if environment is None else environment),
    )
    folder = importlib.resources.files("msltrain.report")
    style, script = (folder.joinpath(name).read_text("utf-8") for name in ("page.css", "sort.js"))
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(section for section in sections if section)
        + f"\n</main>\n<script>\n{script}</script>\n</body>\n</html>\n"
    )
    LocalStorage(out_html.parent).put(out_html.name, page.encode())
    return out_html


def describe_environment() -> dict[str, str]:
    """Program, library and machine versions; nothing that names the user or the host."""
    versions = {name: importlib.metadata.version(name) for name in ("msl-shards", "torch", "timm", "numpy", "pillow")}
    return {
        "msl": versions.pop("msl-shards"),
        "Python": platform.python_version(),
        **versions,
        "System": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }


def _opening(title: str, runs: Sequence[RunReport]) -> str:
    finding = find(runs)
    origin = runs[0].clean.origin
    dataset = f"{origin.dataset}, {origin.split} split: " if origin.dataset else ""
    subject = (
        f"{dataset}{len(runs[0].clean.keys):,} images, {len(runs[0].clean.classes)} classes, "
        f"{origin.image_size} × {origin.image_size} pixels"
    )
    details = "".join(f"<li>{escape(sentence)}</li>\n" for sentence in finding.sentences)
    return (
        f'<header>\n<p class="kicker">Masked Supervised Learning · {"comparison" if len(runs) > 1 else "run"}</p>\n'
        f'<h1>{escape(title)}</h1>\n<p class="subject">{escape(subject)}</p>\n</header>\n'
        f'<p class="headline">{escape(finding.headline)}</p>\n'
        f'<div class="lead">\n<ul>\n{details}</ul>\n{_hiding_plot(runs) if runs[0].masked else ""}</div>'
    )


def _measures(runs: Sequence[RunReport], metrics: Sequence[Mapping[str, Metrics]]) -> str:
    caption = (
        "<caption><b>Table 1.</b> Published measures in percent; in bold the best of each column and condition. "
        "Differences are in points, taken before rounding.</caption>"
    )
    return (
        f'<h2>Accuracy</h2>\n<div class="scroll"><table class="measures">{caption}'
        f"{measures_table(runs, metrics)}</table></div>"
    )


def _hiding_plot(runs: Sequence[RunReport]) -> str:
    """mAP over the share hidden, with bootstrap whiskers."""
    lines, words = [], []
    for number, run in enumerate(runs):
        hidden = [100 * predictions.origin.hole_fraction for predictions in run.conditions.values()]
        intervals = [mean_ap_interval(predictions) for predictions in run.conditions.values()]
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
    return (
        f"<figure>{legend(runs)}{svg}<figcaption><b>Figure 1.</b> mAP over the mean share "
        "of the image that the keep masks hide. Every model meets the same hole on the same image. Whiskers: 95 % "
        "bootstrap interval over the test images.</figcaption></figure>\n"
    )


def _strata(runs: Sequence[RunReport]) -> str:
    rows = strata_table(runs)
    if not rows:
        return ""
    caption = (
        "<caption><b>Table 2.</b> By the largest object of each positive (image, class) pair: small is below 32², "
        "large from 96² square pixels of the source image; a small share of the image is below 0.33 %, a large one "
        "from 3 %. Each row ranks its pairs against all negatives; mAP and CR are means over the classes present in "
        "it, in percent.</caption>"
    )
    table = f'<div class="scroll"><table class="strata">{caption}{rows}</table></div>'
    return f"<h2>Small, truncated and occluded objects</h2>\n{table}"


def _training(runs: Sequence[RunReport]) -> str:
    plots = training_plots(runs)
    if not plots:
        return ""
    return (
        f'<h2>Training</h2>\n<figure>{legend(runs)}<div class="plots">{plots}</div><figcaption><b>Figure 2.</b> '
        "Losses as means over each epoch, unweighted, and mAP on the validation samples, which are set aside from "
        "the training split.</figcaption></figure>"
    )


def _classes(runs: Sequence[RunReport], metrics: Sequence[Mapping[str, Metrics]]) -> str:
    hardest = list(runs[0].conditions)[-1]
    conditions = [WHOLE] if hardest == WHOLE else [WHOLE, hardest]
    order = (
        f"what {escape(runs[-1].name)} gains over {escape(runs[0].name)} on "
        f"{escape(describe_condition(hardest, runs[0].conditions[hardest]))}"
        if len(runs) > 1
        else "AP"
    )
    caption = f"<caption><b>Table 3.</b> Average precision by class, in percent, sorted by {order}."
    absent = metrics[0][WHOLE].absent_classes
    if absent:
        caption += f" Without a positive among these images, so without a value: {escape(', '.join(absent))}."
    return (
        f'<h2>By class</h2>\n<div class="solid">{legend(runs)}</div><table class="bars sortable">{caption}</caption>'
        f"{class_table(runs, metrics, conditions)}</table>"
    )


def _examples(examples: Sequence[Example], runs: Sequence[RunReport], condition: str) -> str:
    if not examples:
        return ""
    where = escape(describe_condition(condition, runs[0].conditions[condition]))
    rule = (
        f"{escape(runs[-1].name)} improves most on {escape(runs[0].name)}, and then those where it falls behind most"
        if len(runs) > 1
        else f"{escape(runs[0].name)} does best, and then those where it does worst"
    )
    figures = "\n".join(example_figure(example, runs, condition) for example in examples)
    return (
        f"<h2>Examples</h2>\n<p>Chosen by rule, not by eye: the images where, by cross-entropy on {where}, {rule}. "
        f"Each list holds a model’s three highest scores. 50 % and above is a prediction, right or wrong; missed is a "
        f"class that is there but scores less; grey classes were not predicted.</p>\n{figures}"
    )


def _method(runs: Sequence[RunReport], metrics: Sequence[Mapping[str, Metrics]]) -> str:
    table = settings_table(runs)
    settings = (
        '<table class="words"><caption><b>Table 4.</b> The settings in which the runs differ.</caption>'
        f"{table}</table>\n"
        if table
        else ""
    )
    full = "".join(
        f"<details><summary>All settings of {escape(run.name)}</summary>"
        f"<pre>{escape(json.dumps(asdict(run.config), indent=2))}</pre></details>\n"
        for run in runs
    )
    num_ignored = sum(row.num_ignored for row in metrics[0][WHOLE].classes)
    ignored = (
        f" {num_ignored:,} (image, class) pairs marked as ignored are left out of every measure." if num_ignored else ""
    )
    num_tied = max(row.num_tied for entry in metrics for measured in entry.values() for row in measured.classes)
    ties = (
        " No positive ties with a negative, so no number depends on the order of the samples."
        if num_tied == 0
        else f" Up to {num_tied:,} positives of a class tie with a negative; ties keep the order of the samples."
    )
    return (
        "<h2>How it was measured</h2>\n<p>AP is the mean over a class’s positives of the precision at their rank, by "
        "float32 logits; mAP is its mean over classes. P, R and F1 are taken at score ≥ 0.5; a class that is never "
        "predicted counts as one prediction; CF1 and OF1 are harmonic means of (CP, CR) and (OP, OR)."
        f"{ignored}{ties}</p>\n{settings}{full}"
    )


def _commands(commands: Sequence[str], next_commands: Sequence[str]) -> str:
    parts = []
    for heading, lines in (("Commands that made this page", commands), ("Going on with real data", next_commands)):
        if lines:
            parts.append(f"<h2>{heading}</h2>\n<pre>{escape(chr(10).join(lines))}</pre>")
    return "\n".join(parts)


def _environment(runs: Sequence[RunReport], environment: Mapping[str, str]) -> str:
    entries = dict(environment)
    origin = runs[0].clean.origin
    if origin.dataset_fingerprint:
        entries["Test shards"] = f"fingerprint {origin.dataset_fingerprint[:16]}"
    for run in runs:
        if run.clean.origin.checkpoint:
            entries[f"Weights of {run.name}"] = (
                f"{run.clean.origin.checkpoint}, sha256 {run.clean.origin.checkpoint_sha256[:16]}"
            )
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in entries.items())
    return (
        f"<h2>Environment</h2>\n<dl>{rows}</dl>\n<footer>Every test number on this page is computed from the "
        "predictions files; the method is Zunair &amp; Ben Hamza, <cite>Learning to Recognize Occluded and Small "
        "Objects with Partial Inputs</cite>, WACV 2024.</footer>"
    )
