"""Example images of the report: which ones, their pictures and keep masks, and each model's first answers.

N samples, K classes, S side of the square that a network sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from msldata.contract.pixels import decode
from msldata.errors import UserError
from msltrain.evaluation.sweep import AllSamples
from msltrain.measures.predictions import Predictions, keep_mask_fingerprints
from msltrain.report.open_runs import RunReport
from msltrain.stream.keepmasks.bank import KeepMasks
from msltrain.stream.samples.shardset import ShardSet, open_shard_set

TOP = 3
"""As many answers of a model as the paper's figures show."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One sample to show: its row in the predictions, its picture and the keep mask it was tested behind."""

    row: int
    image: Image.Image
    keep_mask_HW: np.ndarray | None
    """1 visible, 0 hole, at the model's image size; None when nothing was hidden."""


def choose(runs: Sequence[RunReport], condition: str, num_examples: int) -> tuple[list[int], list[int]]:
    """Rows to show as wins and as failures, by a rule that does not favour a model.

    Wins are the samples where the last run's cross-entropy under ``condition`` falls furthest below the first run's,
    failures those where it rises furthest above; half of ``num_examples`` each, or as many as there are. With one run:
    its lowest, and its highest cross-entropy.
    """
    loss_N = cross_entropy(runs[-1].conditions[condition])
    better_N = worse_N = np.ones(len(loss_N), bool)
    if len(runs) > 1:
        loss_N = loss_N - cross_entropy(runs[0].conditions[condition])
        better_N, worse_N = loss_N < 0, loss_N > 0
    order_N = np.argsort(loss_N, kind="stable")
    num_examples = min(num_examples, len(order_N))
    wins = order_N[better_N[order_N]][: (num_examples + 1) // 2]
    failures = order_N[::-1][worse_N[order_N[::-1]]][: num_examples // 2]
    return wins.tolist(), failures.tolist()


def read_examples(
    rows: Sequence[int], predictions: Predictions, shards: str | Path, keep_masks: Sequence[str] | None = None
) -> list[Example]:
    """Read the pictures of some samples from their shards, and the keep masks that ``predictions`` were made with.

    Args:
        rows: positions in ``predictions``.
        predictions: of the condition to show.
        shards: the dataset folder they were made from.
        keep_masks: folders of those masks, as `find_keep_masks` gives them; None: the pictures are whole.

    Raises:
        UserError: the shards are not those the predictions were made from.
    """
    shard_set = open_shard_set(shards)
    origin = predictions.origin
    if shard_set.manifest.fingerprint != origin.dataset_fingerprint:
        raise UserError(
            f"{shards}: not the shards of the predictions (fingerprint {shard_set.manifest.fingerprint[:12]}…, "
            f"expected {origin.dataset_fingerprint[:12]}…); give the folder that was evaluated"
        )
    bank = KeepMasks.open(keep_masks, origin.image_size, "cpu") if keep_masks else None
    last_S = np.cumsum(shard_set.counts)
    place_N = _places(rows, predictions, shard_set)
    shard_N = np.searchsorted(last_S, place_N, side="right")
    _, sample = shard_set.rows(shard_N, place_N - (last_S - shard_set.counts)[shard_N])
    examples = []
    for position, row in enumerate(rows):
        name = shard_set.manifest.shards[shard_N[position]].name
        [data] = shard_set.storage.read_ranges(name, [int(sample.offset_N[position])], [int(sample.length_N[position])])
        keep_mask_HW = None
        if bank is not None:
            keep_mask_B1HW = bank.of_hashes(sample.key_hash_N[[position]], seed=origin.seed, epoch=0)
            keep_mask_HW = keep_mask_B1HW[0, 0].numpy()
        examples.append(Example(row=row, image=Image.fromarray(decode(data)), keep_mask_HW=keep_mask_HW))
    return examples


def find_keep_masks(run: RunReport, condition: str) -> tuple[str, ...] | None:
    """Where the keep masks of a condition are now: its folders by their fingerprints, wherever they were moved to.

    Looked for where the run says they are, then where the predictions say they were, then under that path, or the end
    of it, from every folder above the run.

    Returns:
        A folder for each that the predictions name; None where one is gone or has changed.
    """
    origin = run.conditions[condition].origin
    if len(origin.keep_masks) != len(origin.keep_mask_fingerprints):
        return None
    known = run.keep_masks.get(condition, ())
    near = [file for file in (run.place, run.files.get(condition, "")) if file]
    above = dict.fromkeys(parent for place in near for parent in Path(place).resolve().parents)
    found = []
    for recorded, fingerprint in zip(origin.keep_masks, origin.keep_mask_fingerprints, strict=True):
        parts = [part for part in Path(recorded).parts if part not in ("/", "..")]
        ends = [Path(*parts[start:]) for start in range(len(parts))] if "://" not in recorded else []
        places = [*known, recorded, *(str(parent / end) for end in ends for parent in above)]
        place = next((place for place in places if _has_fingerprint(place, fingerprint)), None)
        if place is None:
            return None
        found.append(place)
    return tuple(found)


def _has_fingerprint(place: str, fingerprint: str) -> bool:
    try:
        return keep_mask_fingerprints([place]) == (fingerprint,)
    except UserError:  # nothing there, or no dataset
        return False


def _places(rows: Sequence[int], predictions: Predictions, shard_set: ShardSet) -> np.ndarray:
    """Positions in the stored order of the dataset, int64. Skipped samples are no rows of the predictions."""
    if len(predictions.keys) == shard_set.num_samples:
        return np.asarray(rows, np.int64)
    place = {key: number for number, key in enumerate(AllSamples(shard_set).rows.key_N)}
    return np.array([place[predictions.keys[row]] for row in rows], np.int64)


def cross_entropy(predictions: Predictions) -> np.ndarray:
    """Binary cross-entropy of each sample, float64 (N,): mean over the classes that are not ignored."""
    logit_NK = predictions.logit_NK.astype(np.float64)
    loss_NK = np.logaddexp(0, logit_NK) - logit_NK * predictions.target_NK
    kept_NK = ~predictions.ignore_NK
    return (loss_NK * kept_NK).sum(axis=1) / np.maximum(kept_NK.sum(axis=1), 1)


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
