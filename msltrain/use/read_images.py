"""Pictures to predict: files, folders, patterns, URLs and shards, and how each becomes the square a recogniser sees.

C channels, H, W height and width of a photograph, S side of the square.
"""

from __future__ import annotations

import functools
import glob
import re
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from msldata.contract.manifest import MANIFEST_NAME
from msldata.contract.pixels import decode, pixels_of
from msldata.errors import BadInputError, UserError
from msldata.storage import Storage, open_storage
from msltrain.stream.order.plan import EpochPlan
from msltrain.stream.pixels.decode import resize_crop
from msltrain.stream.samples.shardset import open_shard_set

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".avif", ".heic", ".heif")
"""Files of a folder that are taken for images; a file named by itself may have any suffix."""
MAX_DOWNLOAD = 100 * 2**20
"""Bytes taken at most from a web server for one image."""
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_TIMEOUT_S = 30


@dataclass(frozen=True, slots=True)
class Picture:
    """One image to predict, wherever it lies."""

    name: str
    """As a person would type it: a path, a URL, or ``SHARDS#KEY``."""
    read: Callable[[], bytes | np.ndarray]
    """Its encoded bytes, or its pixels, uint8 (H, W, 3). Raises OSError or ValueError."""


Given = str | Path | Image.Image | np.ndarray
"""An image as a caller may have it: a path or address, a PIL image, or an array, uint8 (H, W, 3) RGB or (H, W) grey."""


def given_pictures(images: Given | Sequence[Given]) -> list[Picture]:
    """The pictures that were given, one or several, in their order; of paths as `find_images`.

    Raises:
        FileNotFoundError: a file or folder is not there.
        UserError: an array of another shape or type, or nothing was given.
    """
    is_one = isinstance(images, Given) and not (isinstance(images, np.ndarray) and images.ndim == 4)
    listed: Sequence[Given] = [images] if is_one else images  # type: ignore[list-item, assignment]
    pictures: list[Picture] = []
    for number, image in enumerate(listed):
        if isinstance(image, str | Path):
            pictures += find_images([image])
        else:
            pixel_HWC = _given_pixels(image, f"image {number}")
            pictures.append(Picture(f"image {number}", functools.partial(np.asarray, pixel_HWC)))
    if not pictures:
        raise UserError("no images were given")
    return pictures


def _given_pixels(image: Image.Image | np.ndarray, name: str) -> np.ndarray:
    if isinstance(image, Image.Image):
        try:
            return pixels_of(image)
        except ValueError as error:
            raise UserError(f"{name}: {error}") from None
    pixels = np.asarray(image)
    is_grey = pixels.ndim == 2
    if pixels.dtype != np.uint8 or not (is_grey or (pixels.ndim == 3 and pixels.shape[2] == 3)) or not pixels.size:
        raise UserError(
            f"{name}: an array of {pixels.dtype} {pixels.shape}; give uint8 (H, W, 3) in RGB, or (H, W) in grey"
        )
    return np.array(np.repeat(pixels[:, :, None], 3, axis=2) if is_grey else pixels)


def find_images(inputs: Sequence[str | Path]) -> list[Picture]:
    """The pictures that ``inputs`` name, in their order; one named twice is taken once.

    Args:
        inputs: image files, folders (searched through and through, files by name), patterns such as ``photos/*.jpg``,
            URLs of images, folders in object storage, and dataset folders made by ``msl build-shards``, local or not.

    Raises:
        FileNotFoundError: a file or folder is not there.
        UserError: an input yields no image, or nothing was named.
    """
    found: dict[str, Picture] = {}
    for item in inputs:
        pictures = list(_expand(item))
        if not pictures:
            raise UserError(f"{item}: no images here; looked for {', '.join(SUFFIXES)}")
        found.update((picture.name, picture) for picture in pictures if picture.name not in found)
    if not found:
        raise UserError("no images were named; give image files, folders or patterns such as 'photos/*.jpg'")
    return list(found.values())


def _expand(item: str | Path) -> Iterator[Picture]:
    if not isinstance(item, Path) and _URL.match(item):
        yield from _expand_url(item)
        return
    path = Path(item).expanduser()
    if path.is_file():
        yield _local(path)
    elif (path / MANIFEST_NAME).is_file():
        yield from _samples(path)
    elif path.is_dir():
        yield from map(_local, sorted(file for file in path.rglob("*") if _is_image(file.name) and file.is_file()))
    elif glob.has_magic(str(item)):
        matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
        yield from (_local(file) for file in matches if _is_image(file.name) and file.is_file())
    else:
        raise FileNotFoundError(f"{item}: no such file or folder")


def _expand_url(url: str) -> Iterator[Picture]:
    is_web = url.startswith(("http://", "https://"))
    if not _is_image(url.split("?")[0]) and "?" not in url and open_storage(url).exists(MANIFEST_NAME):
        yield from _samples(url)
    elif is_web:  # a web server cannot be listed, so what is no dataset is one image
        yield Picture(url, functools.partial(_download, url))
    elif _is_image(url):
        folder, _, name = url.rpartition("/")
        yield Picture(url, functools.partial(open_storage(folder).read, name))
    else:
        storage = open_storage(url)
        for info in storage.list_files():
            if _is_image(info.name):
                yield Picture(storage.where(info.name), functools.partial(storage.read, info.name))


def _local(path: Path) -> Picture:
    return Picture(str(path), path.read_bytes)


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _samples(location: str | Path) -> Iterator[Picture]:
    """The samples of a dataset folder, in stored order."""
    shard_set = open_shard_set(location)
    shard_N, row_N = EpochPlan(shard_set.counts, seed=0, epoch=0, shuffle=False).items(0, shard_set.num_samples)
    _, rows = shard_set.rows(shard_N, row_N)
    places = zip(rows.key_N, shard_N.tolist(), rows.offset_N.tolist(), rows.length_N.tolist(), rows.crc32_N.tolist())
    for key, shard, offset, length, crc32 in places:
        name = shard_set.manifest.shards[shard].name
        read = functools.partial(_read_sample, shard_set.storage, name, offset, length, crc32)
        yield Picture(f"{shard_set.storage.url}#{key}", read)


def _read_sample(storage: Storage, shard: str, offset: int, length: int, crc32: int) -> bytes:
    [data] = storage.read_ranges(shard, [offset], [length])
    if zlib.crc32(data) != crc32:
        raise ValueError(f"the bytes in {shard} do not match their CRC-32")
    return data


def _download(url: str) -> bytes:
    request = urllib.request.Request(url, headers={"User-Agent": "msl-predict", "Accept": "image/*"})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
            data = response.read(MAX_DOWNLOAD + 1)
    except urllib.error.HTTPError as error:
        raise ValueError(f"the server says {error.code} {error.reason}") from None
    except urllib.error.URLError as error:
        raise ValueError(f"the server cannot be reached ({error.reason})") from None
    if len(data) > MAX_DOWNLOAD:
        raise ValueError(f"larger than {MAX_DOWNLOAD // 2**20} MiB")
    return data


def read_square(picture: Picture | Path, image_size: int) -> Tensor:
    """An image as the evaluation stream delivers it: uint8 (1, 3, S, S), the whole image squashed.

    Raises:
        BadInputError: it cannot be read or is not an image.
    """
    return squash(read_pixels(_local(picture) if isinstance(picture, Path) else picture), image_size)


def read_pixels(picture: Picture) -> np.ndarray:
    """image_HWC, uint8 RGB, upright, as builds and training see it.

    Raises:
        BadInputError: it cannot be read or is not an image.
    """
    try:
        data = picture.read()
        return data if isinstance(data, np.ndarray) else decode(data)
    except (OSError, ValueError) as error:
        reason = str(error).strip().rstrip(".")
        raise BadInputError(picture.name, reason.removeprefix(f"{picture.name}: ")) from None


def squash(image_HWC: np.ndarray, image_size: int) -> Tensor:
    """The whole image as a square, uint8 (1, 3, S, S), resized as evaluation does it."""
    square_1CSS = torch.empty((1, 3, image_size, image_size), dtype=torch.uint8, memory_format=torch.channels_last)
    resize_crop(image_HWC, (0, 0, *image_HWC.shape[:2]), square_1CSS)
    return square_1CSS
