"""Example images of the report, whole and behind their keep mask, with each model's first answers."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from msldata.errors import UserError
from msltrain.predictions import Predictions, keep_mask_fingerprints
from msltrain.report.runs import WHOLE, RunReport, describe_condition
from msltrain.stream.maskbank import MaskBank
from msltrain.stream.shardset import open_shard_set

TOP = 3
LONG_SIDE = 480
"""Pixels of the longer side of an embedded image."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One sample to show: its row in the predictions, its picture and the keep mask it was tested behind."""

    row: int
    image: Image.Image
    keep_mask_HW: np.ndarray | None
    """1 visible, 0 hole, at the model's image size; None when nothing was hidden."""


def choose(runs: Sequence[RunReport], condition: str, num_examples: int) -> list[int]:
    """Rows to show, by a rule that does not favour a model.

    Half are the samples where the last run's cross-entropy under ``condition`` falls furthest below the first run's,
    half where it rises furthest above. With one run: half its lowest, half its highest cross-entropy.
    """
    loss_N = cross_entropy(runs[-1].conditions[condition])
    if len(runs) > 1:
        loss_N = loss_N - cross_entropy(runs[0].conditions[condition])
    order = np.argsort(loss_N, kind="stable")
    num_examples = min(num_examples, len(order))
    best = (num_examples + 1) // 2
    return [int(row) for row in (*order[:best], *order[::-1][: num_examples - best])]


def read_examples(rows: Sequence[int], predictions: Predictions, shards: str | Path) -> list[Example]:
    """Read the pictures of some samples from their shards, and the keep masks that ``predictions`` were made with.

    Args:
        rows: positions in ``predictions``, which is in the stored order of the dataset.
        predictions: of the condition to show.
        shards: the dataset folder they were made from.

    Raises:
        UserError: the shards are not those the predictions were made from, or the keep masks are gone or changed.
    """
    shard_set = open_shard_set(shards)
    origin = predictions.origin
    if shard_set.manifest.fingerprint != origin.dataset_fingerprint:
        raise UserError(
            f"{shards}: not the shards of the predictions (fingerprint {shard_set.manifest.fingerprint[:12]}…, "
            f"expected {origin.dataset_fingerprint[:12]}…); give the folder that was evaluated"
        )
    bank = None
    if origin.keep_masks:
        if keep_mask_fingerprints(origin.keep_masks) != origin.keep_mask_fingerprints:
            raise UserError(
                f"{', '.join(origin.keep_masks)}: the keep masks have changed since the evaluation; evaluate again"
            )
        bank = MaskBank.open(origin.keep_masks, origin.image_size, "cpu")
    last_S = np.cumsum(shard_set.counts)
    shard_N = np.searchsorted(last_S, np.asarray(rows, np.int64), side="right")
    row_N = np.asarray(rows, np.int64) - (last_S - shard_set.counts)[shard_N]
    _, sample = shard_set.rows(shard_N, row_N)
    examples = []
    for position, row in enumerate(rows):
        name = shard_set.manifest.shards[shard_N[position]].name
        [data] = shard_set.storage.read_ranges(name, [int(sample.offset_N[position])], [int(sample.length_N[position])])
        keep_mask_HW = None
        if bank is not None:
            keep_mask_B1HW = bank.of_keys(sample.key_hash_N[[position]], seed=origin.seed, epoch=0)
            keep_mask_HW = keep_mask_B1HW[0, 0].numpy()
        with Image.open(io.BytesIO(data)) as image:
            examples.append(Example(row=row, image=image.convert("RGB"), keep_mask_HW=keep_mask_HW))
    return examples


def cross_entropy(predictions: Predictions) -> np.ndarray:
    """Binary cross-entropy of each sample, float64 (N,): mean over the classes that are not ignored."""
    logit_NK = predictions.logit_NK.astype(np.float64)
    loss_NK = np.logaddexp(0, logit_NK) - logit_NK * predictions.target_NK
    kept_NK = ~predictions.ignore_NK
    return (loss_NK * kept_NK).sum(axis=1) / np.maximum(kept_NK.sum(axis=1), 1)


def example_figure(example: Example, runs: Sequence[RunReport], condition: str) -> str:
    """The whole and the masked picture side by side, each with the answers of all runs below it."""
    clean = runs[0].clean
    truth = [name for name, positive in zip(clean.classes, clean.target_NK[example.row], strict=True) if positive]
    ignored = [name for name, flag in zip(clean.classes, clean.ignore_NK[example.row], strict=True) if flag]
    shown = ", ".join(truth) or "none of the classes"
    caption = f"<b>{escape(clean.keys[example.row])}</b> shows {escape(shown)}"
    if ignored:
        caption += f"; not counted: {escape(', '.join(ignored))}"
    parts = [_view(example.image, f"Photograph {clean.keys[example.row]}: {shown}", runs, WHOLE, example.row)]
    if example.keep_mask_HW is not None:
        alt = f"The same photograph with {100 * (1 - example.keep_mask_HW.mean()):.0f} % hidden"
        masked = hide(example.image, example.keep_mask_HW, runs[0].config.stream.mean)
        parts.append(_view(masked, alt, runs, condition, example.row))
    return f'<figure class="example"><figcaption>{caption}.</figcaption>{"".join(parts)}</figure>'


def hide(image: Image.Image, keep_mask_HW: np.ndarray, mean: tuple[float, float, float]) -> Image.Image:
    """The image as a model meets it, in its own shape: the mask multiplies normalised values, so a hole is the mean."""
    mask = Image.fromarray(np.uint8(keep_mask_HW > 0) * 255).resize(image.size, Image.Resampling.NEAREST)
    colour = (round(255 * mean[0]), round(255 * mean[1]), round(255 * mean[2]))
    return Image.composite(image, Image.new("RGB", image.size, colour), mask)


def answer(predictions: Predictions, row: int) -> list[tuple[str, float, str]]:
    """The ``TOP`` highest classes as (class, score, verdict).

    The verdict is ``right`` or ``wrong`` at a score ≥ 0.5, ``missed`` for a class that is there but scores less,
    ``below`` for one that is rightly not predicted, ``not counted`` for an ignored pair.
    """
    score_K = predictions.score_NK[row]
    found = []
    for k in np.argsort(-predictions.logit_NK[row], kind="stable")[:TOP]:
        predicted, present = predictions.logit_NK[row, k] >= 0, predictions.target_NK[row, k] > 0
        if predictions.ignore_NK[row, k]:
            verdict = "not counted"
        elif predicted:
            verdict = "right" if present else "wrong"
        else:
            verdict = "missed" if present else "below"
        found.append((predictions.classes[k], float(score_K[k]), verdict))
    return found


_VERDICTS: Mapping[str, tuple[str, str, str]] = {
    "right": ("right", "✓", "right"),
    "wrong": ("wrong", "✗", "wrong"),
    "missed": ("missed", "○", "missed"),
    "below": ("below", "·", ""),
    "not counted": ("below", "·", "not counted"),
}


def _view(image: Image.Image, alt: str, runs: Sequence[RunReport], condition: str, row: int) -> str:
    answers = []
    for run in runs:
        items = []
        for name, score, verdict in answer(run.conditions[condition], row):
            style, sign, words = _VERDICTS[verdict]
            items.append(
                f'<li class="{style}"><span>{sign} {escape(name)}{words and f" <small>{words}</small>"}</span>'
                # Rounded down, so that 49.7 % never reads as a prediction.
                f"<span>{int(100 * score)} %</span></li>"
            )
        answers.append(f'<div class="answer"><b>{escape(run.name)}</b><ol>{"".join(items)}</ol></div>')
    where = describe_condition(condition, runs[0].conditions[condition])
    size = f'width="{image.width}" height="{image.height}"'
    return (
        f'<div><img src="{data_uri(image)}" {size} alt="{escape(alt)}" loading="lazy">'
        f'<div class="answers" role="group" aria-label="Answers on {escape(where)}">{"".join(answers)}</div></div>'
    )


def data_uri(image: Image.Image) -> str:
    """The image as a JPEG inside a ``data:`` address, at most ``LONG_SIDE`` pixels long."""
    small = image.convert("RGB")
    small.thumbnail((LONG_SIDE, LONG_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
