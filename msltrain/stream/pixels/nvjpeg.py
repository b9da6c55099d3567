"""Decoding on a GPU: encoded photographs in, cropped and resized pixels on the device out.

JPEGs go through nvJPEG (torchvision's ``decode_jpeg`` on a list), crop and antialiased resize through torchvision on
the device. On the device "cpu", the same path runs with torchvision's own decoder: that is how it is tested.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import simplejpeg
import torch

from msldata.contract.pixels import is_plain
from msldata.errors import UserError, first_line
from msltrain.stream.pixels.decode import Decoder
from msltrain.stream.samples.shardset import SampleRows


@dataclass(frozen=True, slots=True, eq=False)
class EncodedImages:
    """The photographs of a batch as they are stored, on the host."""

    data_B: list[torch.Tensor]
    """uint8 (bytes of the file,)"""
    rows: SampleRows
    crop_B4: list[list[int]]
    """(top, left, height, width) in pixels."""
    error: Callable[[int, str], Exception]
    """Makes the error that names the sample at a position, for a reason."""


class DeviceDecoder:
    """Decodes batches on a device.

    Args:
        device: where.
        image_size: side S of the result.
    """

    def __init__(self, device: torch.device, image_size: int):
        self.device = device
        self._image_size = image_size
        self._host_decoder = Decoder()

    def __call__(self, encoded: EncodedImages) -> torch.Tensor:
        """pixel_BHWC: uint8 on the device, cropped and resized with antialiasing, not flipped.

        Raises:
            SampleError: an image cannot be decoded, not even on the host, or has another size than its index says.
        """
        from torchvision.transforms.v2.functional import InterpolationMode, resize

        size = self._image_size
        pixel_BHWC = torch.empty((len(encoded.data_B), size, size, 3), dtype=torch.uint8, device=self.device)
        for position, image_CHW in enumerate(self._decode(encoded)):
            top, left, height, width = encoded.crop_B4[position]
            box_CHW = image_CHW[:, top : top + height, left : left + width]
            small_CHW = resize(box_CHW, [size, size], InterpolationMode.BILINEAR, antialias=True)
            pixel_BHWC[position] = small_CHW.permute(1, 2, 0)
        return pixel_BHWC

    def _decode(self, encoded: EncodedImages) -> list[torch.Tensor]:
        """image_CHW of every sample."""
        if not encoded.data_B:
            return []
        try:
            if not all(is_plain(data.numpy().data) for data in encoded.data_B):
                raise RuntimeError("an image that nvJPEG would not turn upright, or no JPEG")
            images = decode_jpegs(encoded.data_B, self.device)
        except RuntimeError:
            # The batch fails as a whole and names no image. Rare (CMYK, not a JPEG, damage), so decode one by one.
            images = [self._decode_one(encoded, position) for position in range(len(encoded.data_B))]
        for position, image_CHW in enumerate(images):
            width, height = int(encoded.rows.width_N[position]), int(encoded.rows.height_N[position])
            if image_CHW.shape != (3, height, width):
                found = f"{image_CHW.shape[2]}×{image_CHW.shape[1]}"
                raise encoded.error(position, f"the image is {found} pixels, its index says {width}×{height}")
        return images

    def _decode_one(self, encoded: EncodedImages, position: int) -> torch.Tensor:
        data, rows = encoded.data_B[position], encoded.rows
        if is_plain(data.numpy().data):
            with suppress(RuntimeError):
                return decode_jpegs([data], self.device)[0]
        try:
            image_HWC = self._host_decoder.decode(
                data.numpy().data,
                int(rows.width_N[position]),
                int(rows.height_N[position]),
                int(rows.crc32_N[position]),
            )
        except ValueError as error:
            raise encoded.error(position, str(error)) from None
        # A copy: the next image is decoded into the same memory.
        return torch.from_numpy(image_HWC.copy()).to(self.device).permute(2, 0, 1)


def decode_jpegs(data: list[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """Decode a list of JPEGs to uint8 image_CHW on the device. Raises RuntimeError when one of them cannot be."""
    from torchvision.io import ImageReadMode, decode_jpeg

    if device.type != "cuda":
        return decode_jpeg(data, mode=ImageReadMode.RGB, device=device)
    with torch.cuda.device(device):
        # torchvision allocates the results on the current stream but writes them on one of its own without waiting
        # (pytorch/vision #9606): memory that queued work still reads could be overwritten.
        torch.cuda.current_stream().synchronize()
        return decode_jpeg(data, mode=ImageReadMode.RGB, device=device)


def check_device_decoding(device: torch.device) -> None:
    """Find out before training whether ``stream.decode=device`` can work.

    Raises:
        UserError: no CUDA device, or a torchvision without nvJPEG.
    """
    if device.type != "cuda":
        raise UserError(
            f"stream.decode=device decodes with nvJPEG and needs a CUDA GPU; this process runs on {device}; "
            "set stream.decode=host"
        )
    jpeg = torch.frombuffer(bytearray(simplejpeg.encode_jpeg(np.zeros((16, 16, 3), np.uint8))), dtype=torch.uint8)
    try:
        decode_jpegs([jpeg], device)
    except (ImportError, RuntimeError) as error:  # the decoders are deprecated since torchvision 0.29, and will go
        raise UserError(
            f"stream.decode=device: this torchvision cannot decode on {device} ({first_line(error)}); set "
            "stream.decode=host"
        ) from None
