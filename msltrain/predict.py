"""Predict the classes of image files, with the very transform that evaluation uses.

B batch, C channels, H = W = S pixels, K classes.
"""

from __future__ import annotations

import glob
import io
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import simplejpeg
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from msldata.errors import BadInputError, UserError
from msltrain.checkpoint import LoadedRecogniser, load_recogniser
from msltrain.distributed import process_group
from msltrain.stream.batch import HostBatch
from msltrain.stream.decode import Decoder, resize_crop
from msltrain.stream.device import ToDevice

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
"""Files of a folder that are taken for images; a file named by itself may have any suffix."""
# Of Pillow's formats those that only decode pixels; its PostScript reader, for one, would start another program.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000")
_JPEG_START = b"\xff\xd8\xff"


@dataclass(frozen=True, kw_only=True)
class ImagePrediction:
    """What one image file shows, according to the model."""

    file: str
    scores: tuple[tuple[str, float], ...] = ()
    """(class, score in 0 … 1), highest first."""
    error: str = ""
    """Why the image could not be read; then there are no scores."""


def predict_images(
    checkpoint: str | Path,
    inputs: Sequence[str | Path],
    *,
    top_k: int | None = 5,
    threshold: float | None = None,
    device: str = "auto",
    on_error: Literal["fail", "skip"] = "fail",
    batch_size: int = 32,
) -> list[ImagePrediction]:
    """Predict every image that ``inputs`` name, in their order; the files of a folder or pattern by name.

    An image is squashed to the square that the model was trained with, as in evaluation. As in training, an orientation
    noted in the file's EXIF data is not applied.

    Args:
        checkpoint: checkpoint folder, or the folder of a run, whose best one is taken.
        inputs: image files, folders (searched through and through), patterns such as ``photos/*.jpg``.
        top_k: at most this many classes per image; None: all.
        threshold: only classes that score at least this, 0 to 1.
        device: ``auto`` (a GPU when there is one), ``cpu`` or ``cuda``.
        on_error: an image that cannot be read stops everything, or gets an ``error`` and no scores.
        batch_size: images per forward pass.

    Raises:
        FileNotFoundError: no such file, folder or checkpoint.
        UserError: an input names no image, or ``top_k`` or ``threshold`` makes no sense.
        BadInputError: an image cannot be read and ``on_error`` is "fail".
    """
    if top_k is not None and top_k < 1:
        raise UserError(f"top-k is {top_k}; it must be at least 1")
    if threshold is not None and not 0 <= threshold <= 1:
        raise UserError(f"the threshold is {threshold}; scores lie between 0 and 1")
    files = find_images(inputs)
    with process_group(device) as ranks:
        loaded = load_recogniser(checkpoint, ranks.device)
        predictions = []
        for start in range(0, len(files), batch_size):
            predictions += _predict(loaded, files[start : start + batch_size], ranks.device, on_error, top_k, threshold)
    return predictions


def find_images(inputs: Sequence[str | Path]) -> list[Path]:
    """The image files that files, folders and patterns name; a file named twice is taken once.

    Raises:
        FileNotFoundError: a file or folder is not there.
        UserError: a folder or pattern yields no image, or nothing was named.
    """
    found: dict[Path, None] = {}
    for item in inputs:
        files = list(_expand(item))
        if not files:
            raise UserError(f"{item}: no images here; looked for {', '.join(SUFFIXES)}")
        found.update(dict.fromkeys(files))
    if not found:
        raise UserError("no images were named; give image files, folders or patterns such as 'photos/*.jpg'")
    return list(found)


def _expand(item: str | Path) -> Iterator[Path]:
    path = Path(item).expanduser()
    if path.is_file():
        yield path
    elif path.is_dir():
        yield from sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    elif glob.has_magic(str(item)):
        matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
        yield from (file for file in matches if file.suffix.lower() in SUFFIXES and file.is_file())
    else:
        raise FileNotFoundError(f"{item}: no such file or folder")


def _predict(
    loaded: LoadedRecogniser,
    files: Sequence[Path],
    device: torch.device,
    on_error: Literal["fail", "skip"],
    top_k: int | None,
    threshold: float | None,
) -> list[ImagePrediction]:
    """One batch: decode on threads, one forward pass, the scores in words."""
    stream = loaded.config.stream

    def read(file: Path) -> Tensor | BadInputError:
        try:
            return read_square(file, stream.image_size)
        except BadInputError as error:
            if on_error == "fail":
                raise
            return error

    with ThreadPoolExecutor() as threads:
        squares = list(threads.map(read, files))
    pixels = [square for square in squares if isinstance(square, Tensor)]
    score_rows: Iterator[np.ndarray] = iter(())
    if pixels:
        image_BCHW = ToDevice(device, stream.image_size, stream.mean, stream.std)(_host_batch(pixels)).image_BCHW
        with torch.inference_mode():
            score_rows = iter(loaded.recogniser(image_BCHW).float().sigmoid().cpu().numpy())
    predictions = []
    for file, square in zip(files, squares, strict=True):
        if isinstance(square, BadInputError):
            predictions.append(ImagePrediction(file=str(file), error=square.reason))
            continue
        score_K = next(score_rows)
        order = np.argsort(-score_K, kind="stable")[:top_k]
        scores = tuple((loaded.classes[k], float(score_K[k])) for k in order if score_K[k] >= (threshold or 0.0))
        predictions.append(ImagePrediction(file=str(file), scores=scores))
    return predictions


def read_square(file: Path, image_size: int) -> Tensor:
    """An image file as the evaluation stream delivers it: uint8 (1, 3, S, S), the whole image squashed.

    Raises:
        BadInputError: it cannot be read or is not an image.
    """
    try:
        image_HWC = _decode(file.read_bytes())
    except (OSError, ValueError) as error:
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else str(error).strip().rstrip(".")
        raise BadInputError(str(file), reason) from None
    square_1CSS = torch.empty((1, 3, image_size, image_size), dtype=torch.uint8, memory_format=torch.channels_last)
    resize_crop(image_HWC, (0, 0, *image_HWC.shape[:2]), square_1CSS)
    return square_1CSS


def _decode(data: bytes) -> np.ndarray:
    if data.startswith(_JPEG_START):
        try:
            height, width, colour_space, _ = simplejpeg.decode_jpeg_header(data)
        except ValueError:
            colour_space = "unknown"  # sampled in a way that only Pillow reads, or damaged, which Pillow will say
        if colour_space not in ("CMYK", "unknown"):
            return Decoder().decode(data, width, height, zlib.crc32(data))
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            return np.array(image.convert("RGB"))
    except (SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from None


def _host_batch(squares: Sequence[Tensor]) -> HostBatch:
    """Pixels as the stream hands them to the device; there is no truth to go with them."""
    pixel_BHWC = torch.cat(list(squares)).permute(0, 2, 3, 1)
    size = len(squares)
    return HostBatch(
        pixel_BHWC=pixel_BHWC,
        flip_B=torch.zeros(size, dtype=torch.bool),
        target_BK=torch.zeros((size, 0), dtype=torch.uint8),
        ignore_BK=torch.zeros((size, 0), dtype=torch.bool),
        keys=[""] * size,
        key_hash_B=np.zeros(size, np.uint64),
        index_B=np.arange(size),
        num_bytes=0,
    )
