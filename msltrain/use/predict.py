"""Predict the classes of images, with the very transform that evaluation uses, whole and behind a keep mask.

B batch, C channels, S side of the square in pixels, K classes, H, W positions of the feature map.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from msldata.contract.keepmask import HOLE_BLACK, HOLE_WHITE, decode_gray, resize_nearest, to_keep_mask
from msldata.errors import BadInputError, UserError, counted, few_of
from msldata.python_words import says_it_in_python
from msldata.storage import read_local
from msldata.storage.hub import is_repository_name
from msltrain.hosts.distributed import choose_device
from msltrain.measures.asked_thresholds import Threshold, asked_thresholds
from msltrain.measures.predictions import Origin, read_predictions
from msltrain.measures.thresholds import HELD_OUT_FILES, threshold_origin, tune_thresholds
from msltrain.pages.text import percent_beside
from msltrain.runs.checkpoint import LoadedRecogniser
from msltrain.runs.find_checkpoint import Foreign
from msltrain.runs.other_checkpoints import load_any
from msltrain.stream.pixels.batch import HostBatch
from msltrain.stream.pixels.device import ToDevice
from msltrain.use.class_activation import logits_and_place_logits
from msltrain.use.output_formats import line_of
from msltrain.use.overlay import PANEL_SIDE, OverlayFolder, Panel, Row, draw_sheet, thumbnail
from msltrain.use.read_images import (
    Given,
    Photo,
    Picture,
    find_images,
    given_pictures,
    plain_name,
    read_photo,
    read_square,
)
from msltrain.use.timm_folder import network_of

__all__ = ["Asked", "ImagePrediction", "Predictor", "find_images", "predict_each", "read_keep_mask", "read_square"]

_NUM_PRINTED = 5
"""Classes of an image that is printed."""


@dataclass(frozen=True, kw_only=True, repr=False)
class ImagePrediction:
    """What one image shows, according to the model; printed, the names and scores of the highest classes."""

    file: str
    scores: tuple[tuple[str, float], ...] = ()
    """(class, score in 0 … 1), highest first."""
    predicted: tuple[str, ...] = ()
    """Classes whose score reaches their threshold, highest score first."""
    masked_scores: tuple[tuple[str, float], ...] = ()
    """The same classes in the same order, behind the keep mask; empty without one."""
    masked_predicted: tuple[str, ...] = ()
    deviations: tuple[float, ...] = ()
    """Standard deviation of each of ``scores`` over the runs of a series; empty for one run."""
    thresholds: tuple[float, ...] = ()
    """Scores from which on the classes of ``scores`` count as predicted, in the same order."""
    threshold_origin: str = ""
    """Where they come from, in words."""
    overlay: str = ""
    """The picture that was drawn, where that was asked for."""
    error: str = ""
    """Why the image could not be read; then there are no scores."""

    def __str__(self) -> str:
        highest = {
            name: getattr(self, name)[:_NUM_PRINTED] for name in ("scores", "masked_scores", "deviations", "thresholds")
        }
        return f"{self.file}: {line_of(replace(self, **highest))}"

    def __repr__(self) -> str:
        return f"<{self}>"


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What the network says about one image."""

    score_K: np.ndarray
    """float32, 0 to 1"""
    place_score_KHW: np.ndarray | None
    """float32, 0 to 1: the score if all of the image looked like this place (`place_logits`); None: not asked for."""


class Predictor:
    """A trained recogniser that answers about images.

    Args:
        checkpoint, foreign, classes: as for ``load_any``; classes are needed with a weights file alone.
        device: where it computes; ``auto``: a GPU when there is one.
        threshold: from which score on a class counts as predicted: one number for every class, or a mapping with
            those of some classes. Others, and None: the thresholds tuned on what training held out, where
            ``msl evaluate --held-out`` left predictions of these weights in the run folder, else 0.5.

    Attributes:
        classes: class names in the order of scores, as `plain_name` gives them.
        sha256: of its weights, in hex.
        network: what else decides its answers, as ``config.json`` of an export says it: input, head, sizes.
        image_size: S.
        view: what it sees of a photograph; None: all of it, squashed.
        trained_on: the training shards, where they were then.
        unfinished: in words, that its training was stopped; empty if it was not.
        threshold_K: float64, 0 to 1.
        threshold_origin: where the thresholds come from, in words.
        hole_colour: RGB of what the network sees in a hole.

    Raises:
        FileNotFoundError: no checkpoint there.
        UserError: it is damaged, it is not clear how to read it, or a threshold makes no sense.

    Example:
        predictor = msltrain.Predictor("runs/msl", "cpu", threshold={"person": 0.4})
        [prediction] = predictor.predict(Image.open("photos/street.jpg"), top_k=3)
        print(prediction.predicted, prediction.scores)
    """

    @says_it_in_python()
    def __init__(
        self,
        checkpoint: str | Path,
        device: torch.device | str = "auto",
        *,
        threshold: Threshold = None,
        foreign: Foreign = Foreign(),  # noqa: B008 (frozen)
        classes: tuple[str, ...] = (),
    ):
        asked = asked_thresholds(threshold)
        device = choose_device(device) if isinstance(device, str) else device
        loaded = load_any(checkpoint, foreign, classes, device)
        self._recogniser = loaded.recogniser
        self._device = device
        self.path = loaded.path
        self.sha256 = loaded.sha256
        self.network = network_of(loaded)
        self.classes = tuple(map(plain_name, loaded.classes))
        self.trained_on = loaded.config.data.train
        self.unfinished = loaded.unfinished()
        stream = loaded.config.stream
        self.image_size = stream.image_size
        self.view = loaded.view
        self._to_device = ToDevice(device, stream.image_size, stream.mean, stream.std)
        red, green, blue = (round(255 * value) for value in stream.mean)
        self.hole_colour = (red, green, blue)
        self.threshold_K, self.threshold_origin = thresholds_of(loaded)
        self.use(asked)

    def use(self, threshold: Threshold) -> None:
        """Take thresholds, as the argument of that name, in place of those of the classes that they are for."""
        asked = asked_thresholds(threshold)
        self.threshold_K, self.threshold_origin = asked.over(self.threshold_K, self.threshold_origin, self.classes)

    def seen(self, photo: Photo) -> Photo:
        """What the network sees of a photograph, before it is squashed to the square: what is to be shown, and hidden.

        Raises BadInputError: it is not an image.
        """
        if self.view is None:
            return photo
        square_1CSS = self.view.square(photo.pixels())
        return Photo(np.ascontiguousarray(square_1CSS[0].permute(1, 2, 0).numpy()))

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        revision: str = "main",
        device: torch.device | str = "auto",
        threshold: Threshold = None,
    ) -> Predictor:
        """A model that ``msl push`` published on the Hugging Face hub, or a folder on this machine.

        It is downloaded once, into the hub's own cache; with ``HF_HUB_OFFLINE=1`` only that is asked.

        Args:
            name: ``OWNER/NAME``; a folder of that name here comes first.
            revision: branch, tag or commit on the hub.
            device, threshold: as above.

        Raises:
            FileNotFoundError: there is no such repository or revision, or it holds no model.
            UserError: it cannot be fetched, or `msl export` did not write it.

        Example:
            predictor = msltrain.Predictor.from_pretrained("exported/msl", device="cpu")
            print(predictor.classes, predictor.threshold_origin)
        """
        place = str(name)
        if is_repository_name(place) and not Path(place).expanduser().exists():
            place = f"hf://{place}@{revision}" if revision != "main" else f"hf://{place}"
        return cls(place, device, threshold=threshold)

    def __repr__(self) -> str:
        """What it is, for whoever prints it."""
        size = f"{self.image_size} × {self.image_size} pixels"
        return f"<Predictor {self.path}: {counted(len(self.classes), 'class')} ({few_of(self.classes)}), {size}>"

    def answer(
        self,
        squares: Sequence[Tensor],
        keep_mask_SS: np.ndarray | Sequence[np.ndarray | None] | None = None,
        *,
        with_places: bool = False,
    ) -> list[Answer]:
        """One forward pass.

        Args:
            squares: uint8 (1, C, S, S) each, as `Photo.square` gives them.
            keep_mask_SS: uint8, 1 visible, 0 hole; multiplies the normalised images as in training. One for all
                images, or one (or None) for each. None: whole images.
            with_places: also the scores of the places.
        """
        if not squares:
            return []
        with torch.inference_mode():
            image_BCSS = self._to_device(_host_batch(squares)).image_BCHW
            if keep_mask_SS is not None:
                image_BCSS = image_BCSS * self._keep_masks(keep_mask_SS, len(squares))
            if not with_places:
                score_BK = self._recogniser(image_BCSS).sigmoid().cpu().numpy()
                return [Answer(score_K, None) for score_K in score_BK]
            logits = logits_and_place_logits(self._recogniser, image_BCSS)
            score_BK, place_BKHW = (logit.sigmoid().cpu().numpy() for logit in logits)
        return [Answer(score_K, place_KHW) for score_K, place_KHW in zip(score_BK, place_BKHW, strict=True)]

    @says_it_in_python()
    def predict(
        self,
        images: Given | Sequence[Given],
        *,
        top_k: int | None = None,
        batch_size: int = 32,
        on_error: Literal["fail", "skip"] = "skip",
    ) -> list[ImagePrediction]:
        """What each image shows; an image is squashed to the square that the model was trained with, and of a timm
        classifier of its own goes through timm's transform for evaluation.

        Args:
            images: one or several: paths or addresses (as for `find_images`: a folder stands for all images in it), PIL
                images, or arrays, uint8 (H, W, 3) in RGB.
            top_k: so many classes per image get a score; None: all.
            batch_size: images per forward pass.
            on_error: skip: a file that cannot be read gets an ``error`` and no scores, and a warning names it; fail:
                nothing is predicted.

        Raises:
            FileNotFoundError: no such file or folder.
            UserError: an array of another shape or type, nothing was given, or ``on_error`` is neither.
            BadInputError: a file is no image, and ``on_error`` is fail.
        """
        asked = Asked(top_k=top_k, on_error=on_error, batch_size=batch_size)
        found = [one for batch in predict_each(self, given_pictures(images), asked) for one in batch]
        if failed := [one for one in found if one.error]:
            names = few_of([f"{one.file} ({one.error})" for one in failed])
            warnings.warn(
                f"{len(failed):,} of {counted(len(found), 'image')} could not be read, so there are no scores: {names}",
                stacklevel=3,  # past what translates errors
            )
        return found

    def _keep_masks(self, keep_mask_SS: np.ndarray | Sequence[np.ndarray | None], num_images: int) -> Tensor:
        """float32 (B, 1, S, S) on the device, or (1, 1, S, S) where all images have the same."""
        if isinstance(keep_mask_SS, np.ndarray):
            keep_mask_B1SS = keep_mask_SS[None, None]
        else:
            keep_mask_B1SS = np.ones((num_images, 1, self.image_size, self.image_size), np.uint8)
            for number, one_SS in enumerate(keep_mask_SS):
                if one_SS is not None:
                    keep_mask_B1SS[number, 0] = one_SS
        return torch.from_numpy(keep_mask_B1SS).to(self._device, torch.float32)

    def predicted(self, answer: Answer) -> tuple[str, ...]:
        """Classes whose score reaches their threshold, highest score first."""
        order_K = np.argsort(-answer.score_K, kind="stable")
        return tuple(self.classes[k] for k in order_K if answer.score_K[k] >= self.threshold_K[k])


def thresholds_of(loaded: LoadedRecogniser) -> tuple[np.ndarray, str]:
    """Scores from which on a class counts as predicted, float64 (K,), and where they come from, in words.

    Those that an export carries; else those tuned on what training held out, where ``msl evaluate --held-out`` left
    predictions of these weights in the run folder; else 0.5.
    """
    if loaded.thresholds:
        return np.array(loaded.thresholds), loaded.threshold_origin or "of the export"
    # A weights file may be read by several recipes.
    here = Origin(checkpoint_sha256=loaded.sha256, image_size=loaded.config.stream.image_size, reading=loaded.reading)
    for file in loaded.prediction_files(HELD_OUT_FILES):
        held_out = read_predictions(file)
        origin = held_out.origin
        if origin.is_of_same_model(here) and held_out.classes == loaded.classes and origin.is_of_plain_views:
            logit_K = tune_thresholds(held_out)
            return 1 / (1 + np.exp(-logit_K)), threshold_origin(held_out)
    return np.full(len(loaded.classes), 0.5), "0.5 for every class"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked about every image."""

    top_k: int | None = 5
    """So many classes per image get a score, with a keep mask those that score highest in either; None: all."""
    keep_mask: str | Path | None = None
    """A mask file; every image is predicted with and without the part that it hides."""
    polarity: str = ""
    """Of that file, see `read_keep_mask`."""
    on_error: Literal["fail", "skip"] = "skip"
    """An image that cannot be read stops everything, or gets an ``error`` and no scores."""
    batch_size: int = 32
    """Images per forward pass."""

    def __post_init__(self) -> None:
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top-k is {self.top_k}; it must be at least 1")
        if self.on_error not in ("fail", "skip"):
            raise UserError(f"on_error is {self.on_error!r}; it must be 'fail' or 'skip'")


def predict_each(
    predictor: Predictor, pictures: Sequence[Picture], asked: Asked, folder: OverlayFolder | None = None
) -> Iterator[list[ImagePrediction]]:
    """Predict pictures in their order, a batch at a time; a caller who keeps none needs no memory for them.

    An image is squashed to the square that the model was trained with, as in evaluation; a keep mask is too. For a timm
    classifier it goes through timm's own transform, and the mask lies over what that leaves. It is turned upright by
    its EXIF orientation, as builds and training do.

    Args:
        predictor: the model.
        pictures: from `find_images`.
        asked: about each of them.
        folder: gets a picture of each image: where the model sees its classes, see `place_logits`.

    Raises:
        UserError: the mask file's polarity is not known.
        BadInputError: an image cannot be read and ``on_error`` is "fail"; the mask file cannot be used.
    """
    keep_mask_SS = None
    if asked.keep_mask is not None:
        keep_mask_SS = read_keep_mask(asked.keep_mask, asked.polarity, predictor.image_size)
    draws = folder is not None
    for batch in _read_ahead(predictor, pictures, asked.on_error, asked.batch_size, with_thumbnails=draws):
        squares = [read.square_1CSS for read in batch if read.square_1CSS is not None]
        whole = iter(predictor.answer(squares, with_places=draws))
        masked: Iterator[Answer] = iter(())
        if keep_mask_SS is not None:
            masked = iter(predictor.answer(squares, keep_mask_SS, with_places=draws))
        predictions: list[ImagePrediction] = []
        for read in batch:
            if read.square_1CSS is None:
                predictions.append(ImagePrediction(file=read.name, error=read.error))
                continue
            versions: list[tuple[Answer, np.ndarray | None]] = [(next(whole), None)]
            if keep_mask_SS is not None:
                versions.append((next(masked), keep_mask_SS))
            prediction, chosen = _in_words(predictor, read.name, [answer for answer, _ in versions], asked.top_k)
            if folder is not None:
                assert read.thumbnail_HWC is not None
                rows = [_row(predictor, answer, chosen, mask_SS) for answer, mask_SS in versions]
                sheet = draw_sheet(read.name, read.thumbnail_HWC, rows, predictor.hole_colour)
                prediction = replace(prediction, overlay=str(folder.write(read.name, sheet)))
            predictions.append(prediction)
        yield predictions


def read_keep_mask(file: str | Path, polarity: str, image_size: int) -> np.ndarray:
    """keep_mask_SS, uint8, 1 visible, 0 hole, of a black-and-white image file.

    Args:
        file: any image of a mask; it is squashed to the square as the photographs are.
        polarity: ``hole-white``, or ``hole-black`` as in this program's own keep masks. One file does not tell.
        image_size: S.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: the polarity is neither.
        BadInputError: it is no mask.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{file}: no such mask file")
    try:
        gray_HW = decode_gray(read_local(path), str(path))
    except BadInputError as error:
        raise BadInputError(error.file, error.reason, "give another file with --keep-mask") from None
    if not polarity:
        raise UserError(
            f"{file}: which colour is the hole? White covers {(gray_HW > 127).mean():.0%} of it, which does not tell; "
            f"give --polarity {HOLE_WHITE} (white hides the image), or {HOLE_BLACK} as in this program's keep masks"
        )
    return resize_nearest(to_keep_mask(gray_HW, polarity), image_size, image_size)


@dataclass(frozen=True, slots=True, eq=False)
class _Read:
    """A picture, read or not."""

    name: str
    square_1CSS: Tensor | None = None
    thumbnail_HWC: np.ndarray | None = None
    error: str = ""


def _read_ahead(
    predictor: Predictor,
    pictures: Sequence[Picture],
    on_error: Literal["fail", "skip"],
    batch_size: int,
    *,
    with_thumbnails: bool,
) -> Iterator[list[_Read]]:
    """Batches in order, decoded on threads; the next one while the network works on this one."""

    def read(picture: Picture) -> _Read:
        try:
            photo = predictor.seen(read_photo(picture))
            square_1CSS = photo.square(predictor.image_size)
            shown_HWC = thumbnail(photo.pixels(PANEL_SIDE)) if with_thumbnails else None
        except BadInputError as error:
            if on_error == "fail":
                raise
            return _Read(picture.name, error=error.reason)
        return _Read(picture.name, square_1CSS, shown_HWC)

    with ThreadPoolExecutor() as threads:
        ahead = threads.map(read, pictures[:batch_size])
        for start in range(batch_size, len(pictures) + batch_size, batch_size):
            batch = list(ahead)
            ahead = threads.map(read, pictures[start : start + batch_size])
            yield batch


def _in_words(
    predictor: Predictor, name: str, answers: Sequence[Answer], top_k: int | None
) -> tuple[ImagePrediction, np.ndarray]:
    """What is said of one image, whole and perhaps masked, and the numbers of the classes it names."""
    highest_K = np.maximum.reduce([answer.score_K for answer in answers])
    chosen = np.argsort(-highest_K, kind="stable")[:top_k]
    chosen = chosen[np.argsort(-answers[0].score_K[chosen], kind="stable")]
    scores = [tuple((predictor.classes[k], float(answer.score_K[k])) for k in chosen) for answer in answers]
    predicted = [predictor.predicted(answer) for answer in answers]
    prediction = ImagePrediction(
        file=name,
        scores=scores[0],
        predicted=predicted[0],
        thresholds=tuple(float(predictor.threshold_K[k]) for k in chosen),
        threshold_origin=predictor.threshold_origin,
    )
    if len(answers) == 2:
        prediction = replace(prediction, masked_scores=scores[1], masked_predicted=predicted[1])
    return prediction, chosen


def _row(predictor: Predictor, answer: Answer, chosen: np.ndarray, keep_mask_SS: np.ndarray | None) -> Row:
    """What is drawn of one answer."""
    assert answer.place_score_KHW is not None
    panels = [
        Panel(
            title=f"{predictor.classes[k]} {percent_beside(answer.score_K[k], predictor.threshold_K[k])}\u00a0%",
            is_predicted=bool(answer.score_K[k] >= predictor.threshold_K[k]),
            place_score_HW=answer.place_score_KHW[k],
        )
        for k in chosen
    ]
    return Row(keep_mask_SS, panels)


def _host_batch(squares: Sequence[Tensor]) -> HostBatch:
    """Pixels as the stream hands them to the device; there is no truth to go with them."""
    size = len(squares)
    return HostBatch(
        pixels=torch.cat(list(squares)).permute(0, 2, 3, 1),
        flip_B=torch.zeros(size, dtype=torch.bool),
        target_BK=torch.zeros((size, 0), dtype=torch.uint8),
        ignore_BK=torch.zeros((size, 0), dtype=torch.bool),
        keys=[""] * size,
        key_hash_B=np.zeros(size, np.uint64),
        index_B=np.arange(size),
        crop_B4=np.zeros((size, 4), np.int64),
        num_bytes=0,
    )
