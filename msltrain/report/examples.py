"""Example images of the report: which ones, their pictures and keep masks, and each model's first answers.

N samples, K classes, S side of the square that a network sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from msldata.contract.pixels import decode
from msldata.contract.records import SMALL_BELOW
from msldata.errors import UserError
from msltrain.evaluation.sweep import AllSamples
from msltrain.measures.predictions import LargestObjects, Predictions, keep_mask_fingerprints
from msltrain.measures.strata import REFERENCE_AREA
from msltrain.pages.text import quoted
from msltrain.report.open_runs import RunReport
from msltrain.runs.run_places import WHOLE
from msltrain.stream.keepmasks.bank import KeepMasks
from msltrain.stream.samples.file_names import file_name
from msltrain.stream.samples.shardset import ShardSet, open_shard_set
from msltrain.use.read_images import Photo

NUM_SEEN_GROUPS = 6
"""The most groups that ``choose_seen`` makes."""
_COVERED_FROM = 0.25
_BOX = "#ffb000"
_TOGETHER = 1 << 20
"""About how many logits are looked at together."""
TOP = 3
"""How many answers of a model are shown at least, as in the paper's figures."""
_MOST_WRONG = 10
"""Wrongly named classes are shown down to this place."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One sample to show: its row in the predictions, its picture, and the keep mask behind which it was tested."""

    row: int
    photo: Photo
    """As a network gets it."""
    image: Image.Image
    keep_mask_HW: np.ndarray | None
    """1 visible, 0 hole, at the model's image size; None when nothing was hidden."""
    file: str = ""
    """The name of the file that it was made of; empty: its key is all that is known."""
    boxes: tuple[tuple[int, tuple[float, float, float, float]], ...] = ()
    """Its objects: class index in the predictions; left, top, width and height in pixels."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Samples that were chosen on whole images, and what they should show."""

    title: str
    kind: str
    """``win`` or ``failure``."""
    rows: list[int]
    shows_NK: np.ndarray
    """bool; the pairs for which the sample was chosen."""


def choose(runs: Sequence[RunReport], condition: str, num_examples: int) -> tuple[list[int], list[int]]:
    """Rows to show as wins and as failures, by a rule that does not favour a model.

    Wins are the samples where the last run gains most over the first in correctly named minus wrongly named classes
    (score ≥ 0.5) under ``condition``, failures those where it loses most; ties are broken by how far its cross-entropy
    falls below, or rises above, the first run's. A run that names more classes wrongly than correctly wins nothing.
    Half of ``num_examples`` each, or as many as there are. With one run: where it does best, those without a mistake
    first, and then only what it names more rightly than wrongly; and where it does worst, of what has a mistake.
    """
    wins, failures = _ranked(runs, condition)
    if len(runs) == 1:
        [run] = runs
        net_N, mistakes_N = net_named(run.conditions[condition]), mistakes(run.conditions[condition])
        wins = [row for row in wins if net_N[row] > 0]
        failures = [row for row in failures if mistakes_N[row]]
    num_examples = min(num_examples, len(runs[0].clean.keys))
    wins = wins[: (num_examples + 1) // 2]
    return wins, [row for row in failures if row not in wins][: num_examples // 2]


def choose_seen(runs: Sequence[RunReport], num_each: int) -> list[Choice]:
    """Samples with objects that one run names and the other does not, although nothing is hidden.

    First small objects, then those that are cut off, occluded, or more than a quarter covered, then any; for each kind,
    those that only the last run names and those that only the first names, ranked as in ``choose``. With one run: those
    that it names, and those that it misses. No sample appears twice. Nothing without object annotations.
    """
    first, last = runs[0].clean, runs[-1].clean
    if first.objects is None or num_each < 1:
        return []
    present_NK = (first.target_NK > 0) & ~first.ignore_NK
    named_NK = last.logit_NK >= 0
    others_NK = first.logit_NK >= 0 if len(runs) > 1 else ~named_NK
    kinds = [("Small objects", _small(first.objects)), ("Covered or cut-off objects", _hidden(first.objects))]
    kinds.append(("Objects in plain sight", np.ones_like(present_NK)))
    taken: set[int] = set()
    choices = []
    for what, member_NK in kinds:
        for kind, order, pair_NK in zip(
            ("win", "failure"), _ranked(runs, WHOLE), (named_NK & ~others_NK, others_NK & ~named_NK), strict=True
        ):
            shows_NK = present_NK & member_NK & pair_NK
            rows = [row for row in order if shows_NK[row].any() and row not in taken][:num_each]
            taken |= set(rows)
            if len(runs) > 1:
                title = f"{what} that only {quoted(runs[-1 if kind == 'win' else 0].name)} names"
            else:
                title = f"{what} that {quoted(runs[0].name)} {'names' if kind == 'win' else 'misses'}"
            if rows:
                choices.append(Choice(title=title, kind=kind, rows=rows, shows_NK=shows_NK))
    return choices


def _small(objects: LargestObjects) -> np.ndarray:
    if objects.relative_area_M is None:
        return _pairs(objects, (objects.area_M > 0) & (objects.area_M < SMALL_BELOW))
    relative_M = objects.relative_area_M
    return _pairs(objects, (relative_M > 0) & (relative_M < SMALL_BELOW / REFERENCE_AREA))


def _hidden(objects: LargestObjects) -> np.ndarray:
    hidden_M = (objects.truncated_M == 1) | (objects.occluded_M == 1)
    return _pairs(objects, hidden_M if objects.covered_M is None else hidden_M | (objects.covered_M > _COVERED_FROM))


def _pairs(objects: LargestObjects, member_M: np.ndarray) -> np.ndarray:
    """The pairs that are members, bool (N, K)."""
    member_NK = np.zeros(objects.shape, bool)
    member_NK[objects.row_M[member_M], objects.class_M[member_M]] = True
    return member_NK


def _ranked(runs: Sequence[RunReport], condition: str) -> tuple[list[int], list[int]]:
    """All rows that are wins, and all that are failures, the clearest ones first."""
    last = runs[-1].conditions[condition]
    gain_N, loss_N = net_named(last), cross_entropy(last)
    if len(runs) == 1:
        is_right_N = wholly_right(last)
        return np.lexsort((loss_N, -gain_N, ~is_right_N)).tolist(), np.lexsort((-loss_N, gain_N, is_right_N)).tolist()
    first = runs[0].conditions[condition]
    net_N, first_net_N = gain_N, net_named(first)
    gain_N, loss_N = net_N - first_net_N, loss_N - cross_entropy(first)
    better_N = ((gain_N > 0) | ((gain_N == 0) & (loss_N < 0))) & (net_N >= 0)
    worse_N = ((gain_N < 0) | ((gain_N == 0) & (loss_N > 0))) & (first_net_N >= 0)
    wins_N, failures_N = np.lexsort((loss_N, -gain_N)), np.lexsort((-loss_N, gain_N))
    return wins_N[better_N[wins_N]].tolist(), failures_N[worse_N[failures_N]].tolist()


def net_named(predictions: Predictions, rows: slice | Sequence[int] = slice(None)) -> np.ndarray:
    """Correctly named minus wrongly named classes of each sample, or of some, at a score ≥ 0.5: int64 (N,)."""
    right_N, wrong_N = named(predictions, rows)
    return right_N - wrong_N


def wholly_right(predictions: Predictions) -> np.ndarray:
    """Whether a sample shows something, and all of it is named and nothing else, at a score ≥ 0.5: bool (N,)."""
    return (mistakes(predictions) == 0) & (named(predictions)[0] > 0)


def mistakes(predictions: Predictions) -> np.ndarray:
    """Wrongly named and missed classes of each sample at a score ≥ 0.5, ignored ones left out: int64 (N,)."""
    there_NK = (predictions.target_NK > 0) & ~predictions.ignore_NK
    return (there_NK != ((predictions.logit_NK >= 0) & ~predictions.ignore_NK)).sum(axis=1)


def named(predictions: Predictions, rows: slice | Sequence[int] = slice(None)) -> tuple[np.ndarray, np.ndarray]:
    """Correctly and wrongly named classes of each sample, or of some, at a score ≥ 0.5: int64 (N,) each."""
    named_NK = (predictions.logit_NK[rows] >= 0) & ~predictions.ignore_NK[rows]
    present_NK = predictions.target_NK[rows] > 0
    return (named_NK & present_NK).sum(axis=1), (named_NK & ~present_NK).sum(axis=1)


def read_examples(
    rows: Sequence[int], predictions: Predictions, shards: str | Path, keep_masks: Sequence[str] | None = None
) -> list[Example]:
    """Read the pictures of some samples from their shards, and the keep masks that ``predictions`` were made with.

    Args:
        rows: positions in ``predictions``.
        predictions: predictions under the condition to show.
        shards: the dataset folder that they were made from.
        keep_masks: folders of those masks, as `find_keep_masks` gives them; None: the pictures are whole.

    Raises:
        UserError: the predictions were made from other shards.
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
    for key, row in zip(sample.key_N, rows, strict=True):
        if key != predictions.keys[row]:
            raise UserError(
                f"{shards}: sample {row} is {key!r} there, {predictions.keys[row]!r} in the predictions, which were "
                "changed since they were made; evaluate the model again"
            )
    objects = AllSamples(shard_set).objects() if predictions.objects is not None else None
    # The classes of the predictions may be only some of the shards' classes, in another order.
    number = {name: index for index, name in enumerate(predictions.classes)}
    examples = []
    for position, row in enumerate(rows):
        shard = shard_set.manifest.shards[shard_N[position]]
        offset, length = int(sample.offset_N[position]), int(sample.length_N[position])
        [data] = shard_set.storage.read_ranges(shard.name, [offset], [length])
        keep_mask_HW = None
        if bank is not None:
            keep_mask_B1HW = bank.of_hashes(sample.key_hash_N[[position]], seed=origin.seed, epoch=0)
            keep_mask_HW = keep_mask_B1HW[0, 0].numpy()
        boxes = objects[int(place_N[position])].as_py() if objects is not None else ()
        named = [(number.get(shard_set.classes[one["class_index"]]), one) for one in boxes if not one["difficult"]]
        examples.append(
            Example(
                row=row,
                photo=Photo(data, sample.key_N[position]),
                image=Image.fromarray(decode(data)),
                keep_mask_HW=keep_mask_HW,
                file=file_name(shard_set.storage, shard, sample.key_N[position], offset, length),
                boxes=tuple((index, tuple(one["box"])) for index, one in named if index is not None),
            )
        )
    return examples


def find_keep_masks(run: RunReport, condition: str) -> tuple[str, ...] | None:
    """Where the keep masks of a condition are now: its folders, found by their fingerprints even if they were moved.
    They are looked for where the run says they are, then where the predictions say they were, then under that path, or
    the end of it, from every folder above the run.

    Returns:
        A folder for each one that the predictions name; None if one is gone or has changed.
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
    """Positions in the stored order of the dataset, int64. Skipped samples have no row in the predictions."""
    if len(predictions.keys) == shard_set.num_samples:
        return np.asarray(rows, np.int64)
    place = {key: number for number, key in enumerate(AllSamples(shard_set).rows.key_N)}
    return np.array([place.get(predictions.keys[row], 0) for row in rows], np.int64)


def cross_entropy(predictions: Predictions, rows: Sequence[int] | None = None) -> np.ndarray:
    """Binary cross-entropy of each sample, or of some, float64 (N,): mean over the classes that are not ignored."""
    row_N = np.arange(len(predictions.keys)) if rows is None else np.asarray(rows, np.int64)
    parts = [np.empty(0)]
    for row_B in np.array_split(row_N, max(1, len(row_N) * len(predictions.classes) // _TOGETHER)):
        logit_BK = predictions.logit_NK[row_B].astype(np.float64)
        loss_BK = np.logaddexp(0, logit_BK) - logit_BK * predictions.target_NK[row_B]
        kept_BK = ~predictions.ignore_NK[row_B]
        parts.append((loss_BK * kept_BK).sum(axis=1) / np.maximum(kept_BK.sum(axis=1), 1))
    return np.concatenate(parts)


def hide(image: Image.Image, keep_mask_HW: np.ndarray, mean: tuple[float, float, float]) -> Image.Image:
    """The image as a model sees it, in its own shape: the mask multiplies normalised values, so a hole is the mean."""
    mask = Image.fromarray(np.uint8(keep_mask_HW > 0) * 255).resize(image.size, Image.Resampling.NEAREST)
    colour = (round(255 * mean[0]), round(255 * mean[1]), round(255 * mean[2]))
    return Image.composite(image, Image.new("RGB", image.size, colour), mask)


def draw_boxes(example: Example, shows_K: np.ndarray) -> Image.Image:
    """The picture with the boxes of some classes' objects."""
    image = example.image.copy()
    draw, width = ImageDraw.Draw(image), max(1, round(max(image.size) / 160))
    for class_index, (left, top, across, down) in example.boxes:
        if shows_K[class_index]:
            right, bottom = left + max(across, 1) - 1, top + max(down, 1) - 1
            for colour, wider in (("black", 2 * width), (_BOX, width)):  # around the object, hiding none of it
                box = (left - wider, top - wider, right + wider, bottom + wider)
                draw.rectangle(box, outline=colour, width=width)
    return image


def answer(predictions: Predictions, row: int, top: int = TOP) -> list[tuple[str, float, str]]:
    """The ``top`` highest classes as (class, score, verdict), and below them every other that is there or predicted.

    Of wrongly predicted ones only the highest are listed: a network that has learnt little predicts half of them.

    The verdict is ``right`` or ``wrong`` at a score ≥ 0.5, ``missed`` for a class that is there but scores less,
    ``below`` for one that is correctly not predicted, ``not counted`` for an ignored pair.
    """
    score_K = 1 / (1 + np.exp(-predictions.logit_NK[row].astype(np.float64)))
    found = []
    for place, k in enumerate(np.argsort(-predictions.logit_NK[row], kind="stable")):
        predicted, present = predictions.logit_NK[row, k] >= 0, predictions.target_NK[row, k] > 0
        is_listed = present or (predicted and place < _MOST_WRONG)
        if place >= top and (not is_listed or predictions.ignore_NK[row, k]):
            continue
        if predictions.ignore_NK[row, k]:
            verdict = "not counted"
        elif predicted:
            verdict = "right" if present else "wrong"
        else:
            verdict = "missed" if present else "below"
        found.append((predictions.classes[k], float(score_K[k]), verdict))
    return found
