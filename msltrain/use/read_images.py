"""Pictures to predict: files, folders, patterns, URLs and shards, and how each becomes the square a recogniser sees.

C channels, H, W height and width of a photograph, S side of the square.
"""

from __future__ import annotations

import csv
import functools
import glob
import io
import re
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from msldata.contract.listing import (
    IMAGE_SUFFIXES,
    SAYS_DELIMITER,
    columns_of_images,
    delimiter_of,
    guess_image_column,
    refuse_no_header,
)
from msldata.contract.manifest import MANIFEST_NAME
from msldata.contract.parquet import UnreadableParquet, read_parquet
from msldata.contract.pixels import decode, pixels_of, reduction_to, upright_size
from msldata.errors import BadInputError, StorageError, UserError, counted, few_of, nothing_at
from msldata.storage import NO_FILE, FileInfo, Storage, open_storage, read_local, regular
from msltrain.runs.run_places import SHARDS
from msltrain.stream.order.plan import EpochPlan
from msltrain.stream.samples.file_names import file_name
from msltrain.stream.samples.shardset import open_shard_set

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = IMAGE_SUFFIXES
"""Files of a folder that are taken for images; of other names it is looked at how they begin."""
_STARTS = (
    *(b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM", b"II*\x00", b"MM\x00*", b"P5\n", b"P6\n"),
    *(b"\x00\x00\x00\x0cjP  ", b"\xff\x4f\xff\x51"),
)
_NUM_START = 16
_LISTS = (".txt", ".csv", ".tsv", ".parquet")
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
    file: Callable[[], str] | None = None
    """Of a sample: the name of the file that it was made of."""

    def called(self) -> str:
        """What people call it: the last part of its name, or of the file that a sample was made of."""
        name = self.name if self.file is None else plain_name(self.file())
        return re.split(r"[/\\#]", name)[-1]


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


def find_images(inputs: Sequence[str | Path], note: Callable[[str], None] = lambda text: None) -> list[Picture]:
    """The pictures that ``inputs`` name, in their order; one named twice is taken once.

    Args:
        inputs: image files, folders (searched through and through, files by name), patterns such as ``photos/*.jpg``,
            URLs of images, folders in object storage, dataset folders made by ``msl build-shards``, local or not, a
            dataset with all its splits by its folder or by its name in ``shards/``, and lists: a text file with a path
            or URL a line, or a table with a column of them, guessed as builds do. In folders, a name without a suffix,
            or one that is not known, is taken if the file begins as an image does.
        note: told how many files were passed over.

    Raises:
        FileNotFoundError: a file or folder is not there.
        UserError: an input yields no image, or nothing was named.
    """
    found: dict[str, Picture] = {}
    for item in inputs:
        passed_over: list[str] = []
        num_before, num_named = len(found), 0
        for picture in _expand(item, passed_over):
            num_named += 1
            found.setdefault(picture.name, picture)
        if not num_named:
            raise UserError(f"{item}: no images here; looked for {', '.join(SUFFIXES)}, and how other files begin")
        if passed_over:
            names = ", ".join(plain_name(name) for name in passed_over[:3])
            more = f" and {len(passed_over) - 3:,} more" if len(passed_over) > 3 else ""
            images, left = counted(len(found) - num_before, "image"), counted(len(passed_over), "other file")
            note(f"{item}: {images}; {left} left out: {names}{more}")
    if not found:
        raise UserError("no images were named; give image files, folders or patterns such as 'photos/*.jpg'")
    return list(found.values())


def plain_name(name: str) -> str:
    r"""A name as every format can hold it: a byte that is not UTF-8 becomes ``\xe9``.

    In such a name, and in one with ``\x`` in it, a backslash is doubled, so that two files never have one name.
    """
    try:
        data = name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half a character of UTF-16, as JSON may hold
        data = name.encode("utf-8", "surrogatepass")
    try:
        if b"\\x" not in data:
            return data.decode()
    except UnicodeDecodeError:
        pass
    return data.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")


def _expand(item: str | Path, passed_over: list[str]) -> Iterator[Picture]:
    if not isinstance(item, Path) and _URL.match(item):
        yield from _expand_url(item, passed_over)
        return
    path = Path(item).expanduser()
    if path.is_file():
        yield from _listed(path, passed_over) if path.suffix.lower() in _LISTS else [_local(path)]
    elif (path / MANIFEST_NAME).is_file():
        yield from _samples(path)
    elif path.is_dir():
        yield from list(_images_among(path.rglob("*"), passed_over)) or _of_splits(path, passed_over)
    elif path.exists():
        raise UserError(f"{item}: {NO_FILE}; give a file, a folder or a pattern")
    elif glob.has_magic(str(item)):
        yield from _images_among(map(Path, glob.glob(str(path), recursive=True)), passed_over)
    elif pictures := _of_splits(Path(SHARDS) / path, passed_over):
        yield from pictures
    else:
        raise nothing_at(item)


def _of_splits(folder: Path, passed_over: list[str]) -> list[Picture]:
    """The samples of every split in a dataset's folder; none where it is no such folder."""
    pictures = [one for file in sorted(folder.glob(f"*/{MANIFEST_NAME}")) for one in _samples(file.parent)]
    if pictures:
        passed_over.clear()  # of a dataset nothing is left out
    return pictures


def _expand_url(url: str, passed_over: list[str]) -> Iterator[Picture]:
    is_web = url.startswith(("http://", "https://"))
    is_plain = "?" not in url and "#" not in url
    if not _is_image(url.split("?")[0]) and is_plain and open_storage(url).exists(MANIFEST_NAME):
        yield from _samples(url)
    elif is_web:  # a web server cannot be listed, so what is no dataset is one image
        yield Picture(url, functools.partial(_download, url))
    elif _is_image(url):
        folder, _, name = url.rpartition("/")
        yield Picture(url, functools.partial(open_storage(folder).read, name))
    else:
        storage = open_storage(url)
        for info in storage.list_files():
            # Looking into every other file would cost a request each.
            if _is_image(info.name) or ("." not in info.name.rpartition("/")[2] and _begins_as_image(storage, info)):
                yield Picture(storage.where(info.name), functools.partial(storage.read, info.name))
            else:
                passed_over.append(info.name)


def _images_among(files: Iterable[Path], passed_over: list[str]) -> Iterator[Picture]:
    for file in sorted(files):
        if not file.is_file():
            continue
        if _is_image(file.name) or _looks_like_image(file):
            yield _local(file)
        else:
            passed_over.append(file.name)


def _looks_like_image(file: Path) -> bool:
    try:
        with open(file, "rb", opener=regular) as opened:
            return is_image_start(opened.read(_NUM_START))
    except OSError:  # what is not named as an image and cannot be read is nothing to stop for
        return False


def _begins_as_image(storage: Storage, info: FileInfo) -> bool:
    return info.size >= _NUM_START and is_image_start(storage.read_ranges(info.name, [0], [_NUM_START])[0])


_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
"""Of AVIF and HEIF, still or a sequence."""


def is_image_start(data: bytes) -> bool:
    """Whether a file that begins so is an image, by the signatures of the formats that are read."""
    is_riff = data.startswith(b"RIFF") and data[8:12] == b"WEBP"
    is_boxed = data[4:8] == b"ftyp" and data[8:12] in _BRANDS
    return data.startswith(_STARTS) or is_riff or is_boxed


def _listed(file: Path, passed_over: list[str]) -> Iterator[Picture]:
    """The pictures that a list names, each relative to the list's folder."""
    below: dict[str, list[Path]] | None = None
    for name in _names_in(file):
        place: str | Path = name if _URL.match(name) else file.parent / Path(name).expanduser()
        if isinstance(place, Path) and file.suffix.lower() != ".txt" and not place.exists():
            below = _by_name(file.parent) if below is None else below  # as builds look for what a table names
            end = f"/{Path(name).as_posix()}"
            fitting = [path for path in below.get(place.name, ()) if path.as_posix().endswith(end)]
            place = fitting[0] if len(fitting) == 1 else place
        if isinstance(place, Path) and not place.is_dir():
            yield _local(place)  # also where it is not there: one line's mistake is this one's error
        else:
            yield from _expand(place, passed_over)


def _by_name(folder: Path) -> dict[str, list[Path]]:
    """The images below a folder, by their file names."""
    found: dict[str, list[Path]] = {}
    for path in folder.rglob("*"):
        if _is_image(path.name):
            found.setdefault(path.name, []).append(path)
    return found


def _names_in(file: Path) -> list[str]:
    suffix = file.suffix.lower()
    if suffix == ".parquet":
        try:
            table = read_parquet(read_local(file))
        except UnreadableParquet as error:
            raise UserError(f"{file}: not a parquet table ({error})") from None
        columns, cells = table.column_names, table.to_pylist()
    else:
        try:
            text = read_local(file).decode("utf-8-sig", errors="surrogateescape")
        except (OSError, StorageError) as error:
            raise UserError(f"{file}: cannot be read ({error})") from None
        if suffix == ".txt":
            return [line.strip() for line in text.splitlines() if line.strip()]
        lines, delimiter = io.StringIO(text, newline=None), delimiter_of(text)
        if SAYS_DELIMITER.fullmatch(text.partition("\n")[0].strip('"\r ')):
            lines.readline()
        reader = csv.DictReader(lines, delimiter=delimiter, skipinitialspace=True)
        columns = [name.strip() for name in reader.fieldnames or ()]
        try:
            refuse_no_header(columns, delimiter)
        except ValueError as error:
            raise UserError(f"{file}: {error}") from None
        reader.fieldnames, cells = columns, list(reader)
    column = guess_image_column(columns, [("", row) for row in cells])
    if column is None:
        alike = columns_of_images(columns, [("", row) for row in cells])
        which = f"several columns name photographs ({few_of(alike)})" if alike else "no column names the photographs"
        raise UserError(f"{file}: {which}; call the one that counts 'image'")
    return [str(row[column]).strip() for row in cells if row[column]]


def _local(path: Path) -> Picture:
    return Picture(plain_name(str(path)), functools.partial(read_local, path))


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _samples(location: str | Path) -> Iterator[Picture]:
    """The samples of a dataset folder, in stored order."""
    shard_set = open_shard_set(location)
    shard_N, row_N = EpochPlan(shard_set.counts, seed=0, epoch=0, shuffle=False).items(0, shard_set.num_samples)
    _, rows = shard_set.rows(shard_N, row_N)
    places = zip(rows.key_N, shard_N.tolist(), rows.offset_N.tolist(), rows.length_N.tolist(), rows.crc32_N.tolist())
    for key, shard, offset, length, crc32 in places:
        info = shard_set.manifest.shards[shard]
        read = functools.partial(_read_sample, shard_set.storage, info.name, offset, length, crc32)
        file = functools.partial(file_name, shard_set.storage, info, key, offset, length)
        yield Picture(plain_name(f"{shard_set.storage.url}#{key}"), read, file)


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
    return read_photo(_local(picture) if isinstance(picture, Path) else picture).square(image_size)


def read_pixels(picture: Picture) -> np.ndarray:
    """image_HWC, uint8 RGB, upright, at its full size. Raises BadInputError: it cannot be read or is not an image."""
    return read_photo(picture).pixels()


def read_photo(picture: Picture) -> Photo:
    """A picture, read; it is decoded when its pixels are asked for.

    Raises:
        BadInputError: it cannot be read.
    """
    with _named(picture.name):
        return Photo(picture.read(), picture.name)


class Photo:
    """An image as builds and training see it, decoded as large as it is needed and no more often than that.

    Args:
        data: an image file, or pixels, uint8 (H, W, 3) RGB.
        name: for messages.
    """

    def __init__(self, data: bytes | np.ndarray, name: str = "image"):
        self._data, self._name = data, name
        self._size: tuple[int, int] | None = None
        """Width and height, upright, in pixels, as soon as they are known."""
        self._decoded: dict[int, np.ndarray] = {}
        """image_HWC by its reduction."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, upright, in pixels. Raises BadInputError: it is not an image."""
        if self._size is None:
            with _named(self._name):
                known = None if isinstance(self._data, np.ndarray) else upright_size(self._data)
            self._size = known or self.pixels().shape[1::-1]
        return self._size

    def pixels(self, shown_at: int | None = None) -> np.ndarray:
        """image_HWC, uint8 RGB, upright: whole, or only large enough to be shown with its shorter side at ``shown_at``.

        Raises:
            BadInputError: it is not an image.
        """
        if isinstance(self._data, np.ndarray):
            return self._data
        reduction = 1 if shown_at is None else reduction_to(*self.size, shown_at)
        if reduction not in self._decoded:
            with _named(self._name):
                self._decoded[reduction] = decode(self._data, reduction)
        return self._decoded[reduction]

    def square(self, image_size: int) -> Tensor:
        """The whole image squashed as the evaluation stream does it, uint8 (1, 3, S, S). Raises BadInputError."""
        import torch  # late: which photographs are meant, and that they are there, shows without it

        from msltrain.stream.pixels.decode import resize_crop

        width, height = self.size
        square_1CSS = torch.empty((1, 3, image_size, image_size), dtype=torch.uint8, memory_format=torch.channels_last)
        resize_crop(self.pixels(image_size), (0, 0, height, width), square_1CSS, width)
        return square_1CSS


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Whatever makes an image unusable names it."""
    try:
        yield
    except (OSError, ValueError) as error:
        if isinstance(error, BadInputError):
            raise
        reason = str(error).strip().rstrip(".")
        raise BadInputError(name, reason.removeprefix(f"{name}: ")) from None
