"""Some thirty photographs of one picture, stored in as many ways as programs store them."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 64, 48
ORIENTATION = 0x0112
_UNDO = {2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def picture(colour: bool = True) -> np.ndarray:
    """image_HWC as everybody should see it: no side like another, smooth, so that a JPEG keeps it."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    red = 20 + 200 * x / WIDTH
    if not colour:
        return np.repeat(np.uint8(np.rint((red + 2 * y) / 1.5))[..., None], 3, axis=2)
    return np.uint8(np.rint(np.dstack([red, 30 + 180 * y / HEIGHT, 220 - 90 * x / WIDTH - 90 * y / HEIGHT])))


def saved(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(orientation: int, kind: str = "JPEG", **options) -> bytes:
    """The picture as a camera held otherwise stores it: sideways, with an orientation that makes it upright."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image = Image.fromarray(picture())
    if orientation != 1:
        image = image.transpose(_TURNS[_UNDO[orientation]])
    return saved(image, kind, exif=exif.tobytes(), **options)


def deep_png(value_HWC: np.ndarray) -> bytes:
    """A PNG of 16 bits a channel, which Pillow does not write for colours."""
    height, width, channels = value_HWC.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in value_HWC)
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def deep_tiff(value_HWC: np.ndarray) -> bytes:
    """A TIFF of 16 bits a channel in RGB, which Pillow does not write either."""
    height, width, _ = value_HWC.shape
    pixels = value_HWC.astype("<u2").tobytes()
    long_, short = 4, 3
    entries = [
        *((256, long_, 1, width), (257, long_, 1, height), (258, short, 3, 8), (259, short, 1, 1), (262, short, 1, 2)),
        *((273, long_, 1, 14), (277, short, 1, 3), (278, long_, 1, height), (279, long_, 1, len(pixels))),
    ]
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    start = 14 + len(pixels)
    return struct.pack("<2sHI3H", b"II", 42, start, 16, 16, 16) + pixels + directory + bytes(4)


def twelve_bit_jpeg() -> bytes:
    data = bytearray(saved(Image.fromarray(picture()), "JPEG"))
    data[data.find(b"\xff\xc0") + 4] = 12
    return bytes(data)


def refused_images() -> dict[str, tuple[bytes, str]]:
    """File name → (bytes, words of the reason why nothing reads them)."""
    whole = saved(Image.fromarray(picture()), "JPEG", quality=95)
    floats, wide = np.ones((9, 9), np.float32), np.full((9, 9), 70_000, np.int32)
    return {
        "floats.tiff": (saved(Image.fromarray(floats), "TIFF"), "floating-point pixels"),
        "wide.tiff": (saved(Image.fromarray(wide), "TIFF"), "are not 16 bits"),
        "dark.png": (deep_png(np.full((9, 9, 2), 900, np.uint16)), "dark LA;16B pixels"),
        "twelve.jpg": (twelve_bit_jpeg(), "12 bits a sample"),
        "cut.jpg": (whole[:-100], "runcated"),
        "empty.jpg": (b"", "not an image"),
        "text.jpg": (b"no photograph at all", "not an image"),
    }


def odd_images() -> dict[str, tuple[bytes, bool]]:
    """File name → (bytes, whether they show the picture in colour)."""
    colour, grey = Image.fromarray(picture()), Image.fromarray(picture(False)[..., 0])
    grey16 = picture(False)[..., 0].astype(np.uint16) * 257
    grey12 = np.uint16(np.rint(picture(False)[..., 0] * (4095 / 255)))
    deep = picture().astype(np.uint16) * 257
    opaque = np.full((HEIGHT, WIDTH, 1), 65535, np.uint16)
    alpha = Image.fromarray(np.dstack([picture(), np.uint8(np.mgrid[0:HEIGHT, 0:WIDTH][1] * 4)]))
    pale = Image.merge("LA", (grey, alpha.getchannel("A")))
    flat = {"quality": 95}
    files = {f"exif{number}.jpg": (turned(number, **flat), True) for number in range(1, 9)}
    files |= {
        "plain.jpg": (saved(colour, "JPEG", **flat), True),
        "progressive.jpg": (saved(colour, "JPEG", progressive=True, **flat), True),
        "fine.jpg": (saved(colour, "JPEG", subsampling=0, **flat), True),
        "xmp.jpg": (saved(colour, "JPEG", xmp=b'<x tiff:Orientation="6"/>', **flat), True),
        "tail.jpg": (saved(colour, "JPEG", **flat) + b"from a camera" * 40, True),
        "grey.jpg": (saved(grey, "JPEG", **flat), False),
        "cmyk.jpg": (saved(colour.convert("CMYK"), "JPEG", **flat), True),
        "plain.png": (saved(colour, "PNG"), True),
        "exif6.png": (turned(6, "PNG"), True),
        "grey.png": (saved(grey, "PNG"), False),
        "grey16.png": (saved(Image.fromarray(grey16), "PNG"), False),
        "grey12.png": (saved(Image.fromarray(grey12), "PNG"), False),
        "colour16.png": (deep_png(deep), True),
        "colour12.png": (deep_png(np.uint16(np.rint(picture() * (4095 / 255)))), True),
        "alpha12.png": (deep_png(np.dstack([np.uint16(np.rint(picture() * (4095 / 255))), opaque // 16])), True),
        "alpha16.png": (deep_png(np.dstack([deep, opaque])), True),
        "alpha.png": (saved(alpha, "PNG"), True),
        "pale.png": (saved(pale, "PNG"), False),
        "plain.webp": (saved(colour, "WEBP", lossless=True), True),
        "alpha.webp": (saved(alpha, "WEBP", lossless=True, exact=True), True),
        "exif8.webp": (turned(8, "WEBP", lossless=True), True),
        "plain.bmp": (saved(colour, "BMP"), True),
        "grey.gif": (saved(grey, "GIF"), False),
        "plain.tiff": (saved(colour, "TIFF"), True),
        "cmyk.tiff": (saved(colour.convert("CMYK"), "TIFF"), True),
        "grey16.tiff": (saved(Image.fromarray(grey16.astype(">u2")), "TIFF"), False),
        "exif6.tiff": (saved(colour.transpose(_TURNS[8]), "TIFF", tiffinfo={ORIENTATION: 6}), True),
        "colour16.tiff": (deep_tiff(deep), True),
        "colour12.tiff": (deep_tiff(np.uint16(np.rint(picture() * (4095 / 255)))), True),
        "grey32.tiff": (saved(Image.fromarray(grey16.astype(np.int32)), "TIFF"), False),
        "plain.jp2": (saved(colour, "JPEG2000"), True),
        "plain.ppm": (saved(colour, "PPM"), True),
        "plain.avif": (saved(colour, "AVIF", quality=95), True),
    }
    return files
