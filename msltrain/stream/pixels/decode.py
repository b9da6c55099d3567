"""Decoder: one encoded photograph to the square crop in its slot of a batch. One per thread.

The three steps release the GIL and copy nothing unnecessarily: libjpeg-turbo decodes into a scratch buffer
that the thread keeps, the crop is a view of it, and torch's antialiased uint8 kernel (the one behind torchvision's
``resize(antialias=True)``) writes into the batch.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import numpy as np
import torch

from msldata.contract.pixels import decode, decode_jpeg, upright_size

_resize: Callable[..., torch.Tensor] = torch._C._nn._upsample_bilinear2d_aa
"""As torch's own functions call it; by ``torch.ops`` each call holds the interpreter 2 µs longer."""


class Decoder:
    """Decodes into scratch memory that grows to the largest image so far."""

    def __init__(self) -> None:
        self._scratch = np.empty(1 << 20, dtype=np.uint8)

    def decode(
        self,
        data: bytes | memoryview,
        width: int,
        height: int,
        crc32: int,
        into: np.ndarray | None = None,
        reduction: int = 1,
    ) -> np.ndarray:
        """Decode an image to RGB, upright; the rule is that of ``msldata.contract.pixels``.

        Args:
            data: a JPEG, colour or greyscale; any other image works too, but slowly.
            width, height: the size that the sample index states, in pixels.
            crc32: of ``data`` as the index states it; checked only when the decoder complains.
            into: uint8, room for the image; default: scratch memory. Not used for anything but an upright JPEG.
            reduction: of a large JPEG, as `msldata.contract.pixels.reductions` has it.

        Returns:
            image_HWC: uint8, reduced by up to ``reduction``; in scratch memory it is valid until the next call.

        Raises:
            ValueError: not an image, damaged, or of another size.
        """
        if into is None:
            num_bytes = 3 * -(-width // reduction) * -(-height // reduction)
            if self._scratch.size < num_bytes:
                self._scratch = np.empty(num_bytes, dtype=np.uint8)
            into = self._scratch
        try:
            image_HWC = decode_jpeg(data, into, reduction)
        except ValueError as error:
            # Only bytes that are unchanged since they were stored get another chance: damage must not reach training.
            if zlib.crc32(data) != crc32:
                raise ValueError(f"the bytes do not match their CRC-32 ({error})") from None
            image_HWC = decode(data)
        # What is not reduced tells its size itself, and a reduced image is a JPEG.
        size = (upright_size(data) if reduction > 1 else None) or image_HWC.shape[1::-1]
        if size != (width, height):
            raise ValueError(f"the image is {size[0]}×{size[1]} pixels, its index says {width}×{height}")
        return image_HWC


def resize_crop(image_HWC: np.ndarray, crop: Sequence[int], slot_1CSS: torch.Tensor, width: int | None = None) -> None:
    """Resize a box of an image to a square, bilinear and antialiased, straight into its place.

    Args:
        image_HWC: uint8.
        crop: (top, left, height, width) in pixels of the photograph.
        slot_1CSS: uint8 view of the batch in channels-last strides; overwritten.
        width: of the photograph, where the image may have been reduced in decoding; top and left are then multiples of
            the reduction.
    """
    top, left, height, crop_width = crop
    reduction = 1 if width is None else round(width / image_HWC.shape[1])
    across = down = None
    if reduction > 1:
        # A box whose sides cannot be divided covers a part of its last row and column only: the factors know.
        size = slot_1CSS.shape[2]
        down, across = size * reduction / height, size * reduction / crop_width
        top, left, bottom, right = top // reduction, left // reduction, top + height, left + crop_width
        height, crop_width = -(-bottom // reduction) - top, -(-right // reduction) - left
    box_1HWC = image_HWC[np.newaxis, top : top + height, left : left + crop_width]
    _resize(torch.from_numpy(box_1HWC.transpose(0, 3, 1, 2)), slot_1CSS.shape[2:], False, down, across, out=slot_1CSS)
