"""Slots: the ring's reused buffers, into which batches are decoded.

Two kinds decode here: ``SquareSlot`` holds images as a batch needs them, ``WholeSlot`` as they were decoded, for the
device to resize. ``EncodedSlot`` holds the files, for the device to decode.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
import torch

from msltrain.stream.pixels.batch import HostPixels
from msltrain.stream.pixels.decode import Decoder, resize_crop
from msltrain.stream.pixels.nvjpeg import EncodedImages
from msltrain.stream.pixels.resize import LARGEST, WholeImages
from msltrain.stream.reading.request import Buffer
from msltrain.stream.samples.lookup import Samples
from msltrain.stream.samples.shardset import SampleRows


class Slot(ABC):
    """Room for the pixels of one batch. Its samples are filled in by several threads, each position by one of them."""

    @abstractmethod
    def begin(self, samples: Samples) -> None:
        """Make room for a batch of these samples."""

    @abstractmethod
    def pixels(self, num_samples: int, error: Callable[[int, str], Exception]) -> HostPixels:
        """The first samples, as the device takes them; ``error`` makes the error for a position and a reason."""


class PixelSlot(Slot):
    """A slot of decoded images, which may be cached, left out, or replaced by others."""

    @abstractmethod
    def decode(self, decoder: Decoder, data: Buffer, position: int) -> np.ndarray:
        """Decode a file. Gives image_HWC for `put`.

        Raises:
            ValueError: not an image, damaged, or of another size.
        """

    @abstractmethod
    def put(self, position: int, image_HWC: np.ndarray) -> None:
        """Take in a decoded image."""

    @abstractmethod
    def single(self) -> PixelSlot:
        """A slot of one sample, for `adopt`."""

    @abstractmethod
    def adopt(self, position: int, other: PixelSlot) -> None:
        """Take over the sample of a `single` slot."""

    @abstractmethod
    def keep(self, position_M: np.ndarray) -> None:
        """Close the gaps between these samples."""


class EncodedSlot(Slot):
    """The files as they are stored. Samples that only the device decodes cannot be cached or replaced: StreamConfig
    refuses that."""

    def begin(self, samples: Samples) -> None:
        self._rows, self._crop_N4 = samples.rows, samples.crop_N4
        self._data_B = [torch.empty(0)] * len(samples)

    def hold(self, position: int, data: Buffer) -> None:
        """Take in a file."""
        self._data_B[position] = torch.frombuffer(bytearray(data), dtype=torch.uint8)

    def pixels(self, num_samples: int, error: Callable[[int, str], Exception]) -> EncodedImages:
        return EncodedImages(self._data_B, self._rows, self._crop_N4.tolist(), error)


Allocate = Callable[[int], torch.Tensor]
"""Gives so many bytes of memory, uint8; what it gave before is not used any more."""
ToSquare = Callable[[np.ndarray], torch.Tensor]
"""Makes uint8 (1, 3, S, S) of a whole image, uint8 (H, W, 3)."""


class SquareSlot(PixelSlot):
    """Cropped and resized images.

    Args:
        num_samples: the most that a batch of this rank has.
        image_size: side S, in pixels.
        allocate: where its memory comes from.
        to_square: another way to the square than crop and resize.
    """

    def __init__(self, num_samples: int, image_size: int, allocate: Allocate, to_square: ToSquare | None = None):
        self._size, self._to_square = image_size, to_square
        self.pixel_BHWC = allocate(num_samples * image_size**2 * 3).view(num_samples, image_size, image_size, 3)
        self._views = list(self.pixel_BHWC.permute(0, 3, 1, 2).split(1)) if num_samples else []

    def begin(self, samples: Samples) -> None:
        self._crops, self._stated = samples.crop_N4.tolist(), _stated(samples.rows)
        self._reductions = samples.reduction_N.tolist()

    def decode(self, decoder: Decoder, data: Buffer, position: int) -> np.ndarray:
        return decoder.decode(data, *self._stated[position], reduction=self._reductions[position])

    def put(self, position: int, image_HWC: np.ndarray) -> None:
        if self._to_square is not None:
            self._views[position].copy_(self._to_square(image_HWC))
            return
        width = self._stated[position][0] if self._reductions[position] > 1 else None
        resize_crop(image_HWC, self._crops[position], self._views[position], width)

    def single(self) -> SquareSlot:
        return SquareSlot(1, self._size, host_memory(), self._to_square)

    def adopt(self, position: int, other: PixelSlot) -> None:
        assert isinstance(other, SquareSlot)
        self.pixel_BHWC[position] = other.pixel_BHWC[0]

    def keep(self, position_M: np.ndarray) -> None:
        self.pixel_BHWC[: len(position_M)] = self.pixel_BHWC[position_M]

    def pixels(self, num_samples: int, error: Callable[[int, str], Exception]) -> torch.Tensor:
        return self.pixel_BHWC[:num_samples]


class WholeSlot(PixelSlot):
    """Decoded images of any size in sequence, in memory that grows to the largest batch so far. An image beyond
    ``LARGEST``, or reduced in decoding, is still cropped and resized here, and so is an adopted one: then a place holds
    a square. Arguments as for `SquareSlot`.
    """

    def __init__(self, num_samples: int, image_size: int, allocate: Allocate):
        self._size, self._allocate = image_size, allocate
        self._flat_N = allocate(num_samples * image_size**2 * 3)

    def begin(self, samples: Samples) -> None:
        rows, crop_N4 = samples.rows, samples.crop_N4
        self._crops, self._stated, self._reductions = crop_N4.tolist(), _stated(rows), samples.reduction_N.tolist()
        is_square_B = (rows.width_N * rows.height_N > LARGEST) | (samples.reduction_N > 1)
        room_B = np.where(is_square_B, 0, rows.width_N * rows.height_N).clip(min=self._size**2)
        ends_B = room_B.cumsum()
        self._place_B = ends_B - room_B
        self._num_bytes = 3 * int(room_B.sum())
        if len(self._flat_N) < self._num_bytes:
            self._flat_N = self._allocate(self._num_bytes * 9 // 8)
        self._flat = self._flat_N.numpy()
        self._starts = (3 * self._place_B).tolist()
        self._crop_B4, self._width_B = crop_N4.copy(), rows.width_N.copy()
        self._is_square = is_square_B.tolist()
        for position in np.flatnonzero(is_square_B).tolist():
            self._set_square(position)

    def decode(self, decoder: Decoder, data: Buffer, position: int) -> np.ndarray:
        if self._is_square[position]:
            return decoder.decode(data, *self._stated[position], reduction=self._reductions[position])
        return decoder.decode(data, *self._stated[position], into=self._flat[self._starts[position] :])

    def put(self, position: int, image_HWC: np.ndarray) -> None:
        start = self._starts[position]
        if self._is_square[position]:
            width = self._stated[position][0]
            resize_crop(image_HWC, self._crops[position], self._square(position).permute(2, 0, 1).unsqueeze(0), width)
        elif not np.may_share_memory(image_HWC, self._flat):
            self._flat[start : start + image_HWC.size] = image_HWC.reshape(-1)

    def single(self) -> SquareSlot:
        return SquareSlot(1, self._size, host_memory())

    def adopt(self, position: int, other: PixelSlot) -> None:
        assert isinstance(other, SquareSlot)
        self._square(position)[:] = other.pixel_BHWC[0]
        self._set_square(position)

    def keep(self, position_M: np.ndarray) -> None:
        self._place_B, self._width_B = self._place_B[position_M], self._width_B[position_M]
        self._crop_B4 = self._crop_B4[position_M]

    def pixels(self, num_samples: int, error: Callable[[int, str], Exception]) -> WholeImages:
        return WholeImages(self._flat_N[: self._num_bytes], self._place_B, self._width_B, self._crop_B4)

    def _set_square(self, position: int) -> None:
        self._width_B[position] = self._size
        self._crop_B4[position] = 0, 0, self._size, self._size

    def _square(self, position: int) -> torch.Tensor:
        """The square_SS3 that a place holds."""
        start = self._starts[position]
        return self._flat_N[start : start + 3 * self._size**2].view(self._size, self._size, 3)


def _stated(rows: SampleRows) -> list[tuple[int, int, int]]:
    """Width, height and CRC-32 of each sample from the index."""
    return list(zip(rows.width_N.tolist(), rows.height_N.tolist(), rows.crc32_N.tolist()))


def host_memory(device: torch.device = torch.device("cpu")) -> Allocate:  # noqa: B008 (a constant)
    """Memory of this process, pinned if batches are copied from it to a GPU."""

    @torch.inference_mode(False)  # else a loader that is iterated in inference mode could not fill it on its threads
    def allocate(num_bytes: int) -> torch.Tensor:
        if device.type != "cuda":
            return torch.empty(num_bytes, dtype=torch.uint8)
        with torch.cuda.device(device):  # a thread would open a context on the first GPU otherwise
            return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)

    return allocate
