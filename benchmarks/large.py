"""What photographs of 12 and 24 megapixels cost: in the stream, and in a build with --resize.

Usage: python benchmarks/large.py [--photos 4] [--rounds 5]

Photographs are drawn: a spectrum that falls with the frequency as in nature, and noise, at about a quarter of a byte a
pixel. All contenders run in one thread and take turns; processor time is compared, so that a busy machine hurts little.

whole           the decoder at full size, crop and antialiased resize to 448: the stream up to now
ours            what the stream does: decoded at a part of the size, then the same crop and resize
scaled decode   decoding at that part of the size alone
Pillow          `Image.draft` for the same part, crop and resize with `Image.BILINEAR`
build           `build-shards --resize shorter=448` for one photograph, and what it consists of: decoding and encoding
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import simplejpeg
import torch
from PIL import Image

from msldata.build.image import Resize, prepare_image
from msldata.contract.pixels import decode_jpeg, reduction_to
from msltrain.stream.pixels.decode import Decoder, resize_crop

SIDE = 448
RESIZE = Resize("shorter", 448)
SIZES = {"12 MP": (4032, 3024), "24 MP": (6000, 4000)}


def drawn(seed: int, width: int, height: int) -> bytes:
    """A photograph as a JPEG of 4:2:0."""
    rng = np.random.default_rng(seed)
    frequency_HW = np.hypot(np.fft.fftfreq(height)[:, None] * height, np.fft.rfftfreq(width) * width).clip(1)
    bright_HW = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(height, width))) / frequency_HW**1.2, (height, width))
    image_HWC = (bright_HW / bright_HW.std() * 50)[:, :, None] + rng.normal(128, 3, (height, width, 1)) + [12, 0, -12]
    pixels = np.ascontiguousarray(image_HWC.clip(0, 255).astype(np.uint8))
    return simplejpeg.encode_jpeg(pixels, quality=88, colorsubsampling="420")


def through_the_stream(
    decoder: Decoder, slot_1CSS: torch.Tensor, data: bytes, size: tuple[int, int], part: int
) -> None:
    width, height = size
    image_HWC = decoder.decode(data, width, height, 0, reduction=part)
    resize_crop(image_HWC, (0, 0, height, width), slot_1CSS, width)


def through_pillow(data: bytes, size: tuple[int, int], part: int) -> None:
    image = Image.open(io.BytesIO(data))
    image.draft("RGB", (size[0] // part, size[1] // part))
    np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def encoded(image_HWC: np.ndarray, size: tuple[int, int]) -> None:
    """Encoding alone, of as many pixels as a build encodes."""
    width, height = (side * RESIZE.size // min(size) for side in size)
    pixels = Image.fromarray(np.ascontiguousarray(image_HWC[:height, :width]))
    pixels.save(io.BytesIO(), "JPEG", quality=RESIZE.quality)


def contenders(size: tuple[int, int]) -> dict[str, Callable[[bytes], object]]:
    decoder, part, stored = Decoder(), reduction_to(*size, SIDE), reduction_to(*size, RESIZE.size, 5 / 3)
    slot_1CSS = torch.empty((1, SIDE, SIDE, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    some = decode_jpeg(drawn(0, 1600, 1200))
    return {
        "whole": lambda data: through_the_stream(decoder, slot_1CSS, data, size, 1),
        "ours": lambda data: through_the_stream(decoder, slot_1CSS, data, size, part),
        "scaled decode": lambda data: decoder.decode(data, *size, 0, reduction=part),
        "Pillow": partial(through_pillow, size=size, part=part),
        "build": lambda data: prepare_image(data, RESIZE, decode=True),
        "build: decode": lambda data: decode_jpeg(data, reduction=stored),
        "build: encode": lambda data: encoded(some, size),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name, size in SIZES.items():
        photos = [drawn(seed, *size) for seed in range(arguments.photos)]
        seconds: dict[str, list[float]] = {}
        made = contenders(size)
        for turn in range(arguments.rounds + 1):
            for contender, work in made.items():
                began = time.thread_time()
                for data in photos:
                    work(data)
                if turn:  # the first warms up
                    seconds.setdefault(contender, []).append((time.thread_time() - began) / len(photos))
        print(f"{name}, {sum(map(len, photos)) / len(photos) / 1e6:.1f} MB, processor time of one thread:")
        median = {contender: statistics.median(values) for contender, values in seconds.items()}
        for contender, value in median.items():
            print(f"  {contender:14} {1000 * value:7.1f} ms  {1 / value:6.1f} images/s")
        parts = median["build: decode"] + median["build: encode"]
        print(f"  ours is {median['scaled decode'] / median['ours']:.2f} of the scaled decode's rate, "
              f"{median['whole'] / median['ours']:.2f} times the whole's; build {median['build'] / parts:.2f} times "
              "decode + encode")  # fmt: skip


if __name__ == "__main__":
    main()
