"""Many images, by one model or a series, in one process or as many as torchrun started; nothing is kept in memory."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from msldata.errors import UserError, counted
from msldata.storage import read_local
from msltrain.hosts.distributed import Ranks, process_group
from msltrain.measures.asked_thresholds import Threshold
from msltrain.runs.find_checkpoint import Foreign
from msltrain.runs.run_places import find_series
from msltrain.use.answers import AnswerFile
from msltrain.use.output_formats import Summary
from msltrain.use.overlay import OverlayFolder
from msltrain.use.predict import Asked, ImagePrediction, Predictor, predict_each, read_keep_mask
from msltrain.use.read_images import Picture
from msltrain.use.series import combine

_BATCHES_PER_ROUND = 16
"""After so many each the processes wait for one another, so that none is ever far behind the others."""

Progress = Callable[[int, int], None]


def predict_many(
    checkpoint: str | Path,
    pictures: Sequence[Picture],
    asked: Asked = Asked(),  # noqa: B008 (frozen)
    *,
    foreign: Foreign = Foreign(),  # noqa: B008 (frozen)
    classes: tuple[str, ...] = (),
    threshold: Threshold = None,
    overlays: str | Path | None = None,
    device: str = "auto",
    out: Path | None = None,
    kind: str = "json",
    decimal_comma: bool = False,
    show: Callable[[ImagePrediction], None] = lambda answer: None,
    progress: Progress = lambda done, total: None,
    note: Callable[[str], None] = lambda text: None,
) -> Summary:
    """Predict every image, in their order.

    Args:
        checkpoint: a run, an export, a weights file, or a series of runs, whose scores are averaged.
        pictures: as `find_images` finds them.
        asked: about each image.
        foreign, classes, threshold, device: as for `Predictor`.
        overlays: folder for a picture of each image: where the model sees its classes, see `place_logits`.
        out: file for the answers, see `AnswerFile`: what a run before answered is not asked again.
        kind: its format, one of ``output_formats.FORMATS``; for ``wide`` every class needs a score.
        decimal_comma: write CSV with ``0,93`` and semicolons.
        show: without ``out``, told each answer as it comes.
        progress: called with (images done, images in all).
        note: told which training was stopped, and what is taken over from a run before.

    Raises:
        FileNotFoundError: no such checkpoint.
        UserError: an option makes no sense, or the file belongs to another prediction.
        BadInputError: an image cannot be read and ``on_error`` is "fail"; the mask file cannot be used.
    """
    runs = find_series(checkpoint)
    if runs and overlays is not None:
        raise UserError(f"{checkpoint}: a series of {len(runs)} runs; --cam shows one network, name RUN/{runs[0].name}")
    if kind == "fiftyone":
        _require_files(pictures)
    with process_group(device) as ranks:
        if out is None and ranks.world_size > 1:
            raise UserError(f"{ranks.world_size} processes cannot print in order; give the file to write with --out")
        predictors = [
            Predictor(run, ranks.device, threshold=threshold, foreign=foreign, classes=classes)
            for run in runs or (checkpoint,)
        ]
        for text in filter(None, (predictor.unfinished for predictor in predictors)):
            note(text)
        folder = None
        if overlays is not None:
            folder = OverlayFolder(Path(overlays), [picture.name for picture in pictures])
        if asked.keep_mask is not None:
            read_keep_mask(asked.keep_mask, asked.polarity, predictors[0].image_size)  # a mistake shows now, not later
        summary = Summary(num_classes=len(predictors[0].classes))
        if out is None:
            progress(0, len(pictures))
            for batch in _batches(predictors, pictures, asked, folder):
                for answer in summary.count(batch):
                    show(answer)
                progress(summary.num_images, len(pictures))
            return summary
        file = AnswerFile(out, kind, _identity(predictors, asked, overlays), ranks.rank, decimal_comma=decimal_comma)
        try:
            _fill(file, predictors, pictures, asked, folder, ranks, progress, note)
            names = [picture.name for picture in pictures]
            ranks.first_does(lambda: file.finish(summary.count(file.in_order(names))))
        finally:
            file.close()
        return summary


def _require_files(pictures: Sequence[Picture]) -> None:
    """Raise UserError where a picture is no file of its own, which FiftyOne could not show."""
    if other := next((picture.name for picture in pictures if not Path(picture.name).is_file()), ""):
        if "\\x" in other:
            raise UserError(
                f"{other}: a name that is not UTF-8, which FiftyOne's database cannot hold; rename the file"
            )
        raise UserError(f"{other}: not a file on this machine; --format fiftyone needs photographs in files")


def _fill(
    file: AnswerFile,
    predictors: Sequence[Predictor],
    pictures: Sequence[Picture],
    asked: Asked,
    folder: OverlayFolder | None,
    ranks: Ranks,
    progress: Progress,
    note: Callable[[str], None],
) -> None:
    """Answer what is not answered yet, this process its share of it."""
    open_ = [picture for picture in pictures if picture.name not in file.answered]
    num_done = len(pictures) - len(open_)
    if num_done:
        were, are = ("was", "is") if num_done == 1 else ("were", "are")
        note(f"{num_done:,} of {counted(len(pictures), 'image')} {were} answered before and {are} not asked again")
    ranks.gather(None)  # all have read the parts: from here on they grow
    file.begin()
    progress(num_done, len(pictures))
    mine = _batches(predictors, open_[ranks.rank :: ranks.world_size], asked, folder)
    while any(left := ranks.gather(_round(file, mine))):
        num_done += sum(left)
        progress(num_done, len(pictures))


def _round(file: AnswerFile, batches: Iterator[list[ImagePrediction]]) -> int:
    """Answer a few batches; how many images those were."""
    num_images = 0
    for batch in itertools.islice(batches, _BATCHES_PER_ROUND):
        file.add(batch)
        num_images += len(batch)
    return num_images


def _batches(
    predictors: Sequence[Predictor], pictures: Sequence[Picture], asked: Asked, folder: OverlayFolder | None
) -> Iterator[list[ImagePrediction]]:
    if len(predictors) == 1:
        yield from predict_each(predictors[0], pictures, asked, folder)
        return
    all_classes = replace(asked, top_k=None)
    versions = [predict_each(predictor, pictures, all_classes) for predictor in predictors]
    for batches in zip(*versions, strict=True):
        yield combine(batches, asked.top_k)


def _identity(predictors: Sequence[Predictor], asked: Asked, overlays: str | Path | None) -> dict[str, Any]:
    """What decides the answers, as plain data."""
    mask = None if asked.keep_mask is None else hashlib.sha256(read_local(asked.keep_mask))
    return {
        "models": [predictor.sha256 for predictor in predictors],
        "networks": [predictor.network for predictor in predictors],
        "classes": list(predictors[0].classes),
        "thresholds": [predictor.threshold_K.tolist() for predictor in predictors],
        "top_k": asked.top_k,
        "keep_mask": mask and mask.hexdigest(),
        "polarity": asked.polarity,
        "overlays": overlays and str(overlays),
    }
