"""The last leg of a batch: to the device, mirrored and normalised there, on a CUDA stream of its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import torch

from msltrain.stream.pixels.batch import Batch, HostBatch, HostPixels
from msltrain.stream.pixels.nvjpeg import DeviceDecoder, EncodedImages
from msltrain.stream.pixels.resize import WholeImages, resize_on_device


class ToDevice:
    """Puts batches on the device: copy, mirror, normalise as (pixel / 255 - mean) / std."""

    def __init__(
        self,
        device: torch.device,
        image_size: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
    ):
        self.device = device
        self._image_size = image_size
        self._mean = _per_row(mean, image_size, device)
        self._std = _per_row(std, image_size, device)
        self._centred = any(mean)
        self._decode = DeviceDecoder(device, image_size)

    def __call__(self, host: HostBatch) -> Batch:
        pixel_BHWC = self._pixels(host.pixels)
        if self.device.type == "cpu":
            # The buffer is ours until it is released: flipping some images in place beats a pass over all.
            for position in host.flip_B.nonzero().flatten().tolist():
                pixel_BHWC[position] = pixel_BHWC[position].flip(1)
        else:
            flip_B111 = self._copy(host.flip_B)[:, None, None, None]
            pixel_BHWC = torch.where(flip_B111, pixel_BHWC.flip(2), pixel_BHWC)
        row_BHR = pixel_BHWC.flatten(2).float()
        if self._centred:
            row_BHR -= self._mean
        row_BHR /= self._std
        return Batch(
            image_BCHW=row_BHR.view(pixel_BHWC.shape).permute(0, 3, 1, 2),
            target_BK=self._copy(host.target_BK).float(),
            ignore_BK=self._copy(host.ignore_BK),
            keys=host.keys,
            key_hash_B=host.key_hash_B,
            index_B=host.index_B,
            crop_B4=host.crop_B4,
            flip_B=host.flip_B.numpy(),
        )

    def _pixels(self, pixels: HostPixels) -> torch.Tensor:
        match pixels:
            case torch.Tensor():
                return self._copy(pixels)
            case WholeImages():
                return resize_on_device(pixels, self._image_size, self.device)
            case EncodedImages():
                return self._decode(pixels)

    def _copy(self, tensor: torch.Tensor) -> torch.Tensor:
        # Only CUDA has the events that tell when a buffer may be used again.
        return tensor.to(self.device, non_blocking=self.device.type == "cuda")


def _per_row(values: tuple[float, float, float], width: int, device: torch.device) -> torch.Tensor:
    """Factor and offset for a row of interleaved RGB values of 0 … 255; broadcasting over three channels is far
    slower."""
    scaled_C = torch.tensor(values, dtype=torch.float32, device=device) * 255
    return scaled_C[0] if len(set(values)) == 1 else scaled_C.repeat(width)


class Uploads:
    """Copies batches to a CUDA device while the consumer computes, and releases each buffer once its copy is done."""

    def __init__(self, to_device: ToDevice, release: Callable[[HostBatch], None]):
        self._to_device = to_device
        self._release = release
        self._stream = torch.cuda.Stream(to_device.device)
        self._staged: Batch | None = None
        self._copying: deque[tuple[torch.cuda.Event, HostBatch]] = deque()

    def __enter__(self) -> Uploads:
        return self

    def __exit__(self, *_: object) -> None:
        # The next iteration decodes into the same buffers.
        self._stream.synchronize()

    @property
    def is_staged(self) -> bool:
        """Whether a batch has been staged and not yet collected."""
        return self._staged is not None

    def stage(self, host: HostBatch) -> None:
        """Start moving a batch to the device."""
        with torch.cuda.stream(self._stream):
            self._staged = self._to_device(host)
            copied = torch.cuda.Event()
            copied.record(self._stream)
        self._copying.append((copied, host))

    def collect(self) -> Batch:
        """The staged batch, for use on the current stream."""
        batch = self._staged
        assert batch is not None
        self._staged = None
        current = torch.cuda.current_stream(self._stream.device)
        current.wait_stream(self._stream)
        for tensor in (batch.image_BCHW, batch.target_BK, batch.ignore_BK):
            # The allocator must not hand this memory to the side stream again before the consumer's work is done.
            tensor.record_stream(current)
        # One copy may still be under way, since the ring has at least two buffers; waiting for it would stall the CPU.
        while len(self._copying) > 1 or (self._copying and self._copying[0][0].query()):
            copied, host = self._copying.popleft()
            copied.synchronize()
            self._release(host)
        return batch
