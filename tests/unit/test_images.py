"""Images on their way into a shard: what keeps its bytes, what is transcoded, what is refused and why."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from msldata.build.image import prepare_image
from msldata.contract import pixels
from tests.tinydata import encode, jpeg

PIXELS = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)


def png_that_claims(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_keeps_its_bytes(mode, progressive):
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(buffer, "JPEG", progressive=progressive)
    prepared = prepare_image(buffer.getvalue())
    assert prepared.data == buffer.getvalue()
    assert (prepared.width, prepared.height, prepared.transcoded) == (24, 16, False)


def test_a_jpeg_is_not_decoded_when_its_end_is_there(monkeypatch):
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *_, **__: pytest.fail("decoded"))
    prepare_image(jpeg(1))
    prepare_image(jpeg(1) + bytes(20))  # padded


def test_a_long_tail_is_no_truncation():
    data = jpeg(1) + b"appended by a camera" * 50
    assert prepare_image(data).data == data


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "GIF", "TIFF"])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "1"])
def test_other_images_become_jpeg(kind, mode):
    data = encode(Image.fromarray(PIXELS).convert(mode), kind)
    prepared = prepare_image(data)
    assert (prepared.width, prepared.height, prepared.transcoded) == (24, 16, True)
    height, width, colour_space, _ = simplejpeg.decode_jpeg_header(prepared.data)
    assert (height, width, colour_space) == (16, 24, "YCbCr")
    assert prepare_image(data) == prepared  # the same bytes every time


def test_transcoding_keeps_the_picture():
    smooth = Image.linear_gradient("L").resize((64, 48)).convert("RGB")
    decoded = simplejpeg.decode_jpeg(prepare_image(encode(smooth, "PNG")).data)
    assert np.abs(decoded.astype(int) - np.asarray(smooth)).mean() < 1


def test_a_cmyk_jpeg_becomes_rgb():
    prepared = prepare_image(encode(Image.new("CMYK", (24, 16), (0, 255, 255, 0)), "JPEG"))
    assert prepared.transcoded
    assert simplejpeg.decode_jpeg(prepared.data)[8, 12] == pytest.approx([255, 0, 0], abs=8)


def test_grey_of_16_bits_becomes_8_bits():
    prepared = prepare_image(encode(Image.fromarray(np.full((16, 24), 128 * 257, np.uint16)), "PNG"))
    assert prepared.transcoded and (prepared.width, prepared.height) == (24, 16)
    assert (abs(simplejpeg.decode_jpeg(prepared.data).astype(int) - 128) <= 1).all()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"<!DOCTYPE html><html>404", r"not an image: the file starts with b'<!DOCTYPE html>"),
        (b"version https://git-lfs.github.com/spec/v1", "not an image: .*git-lfs|not an image: the file starts"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),  # Pillow would start Ghostscript
        (jpeg(1, 200, 100)[:-2], "truncated JPEG"),
        (jpeg(1, 200, 100)[:5000], "truncated JPEG"),
        (jpeg(1)[:20], "damaged JPEG|truncated"),
        (encode(Image.fromarray(PIXELS), "PNG")[:200], "truncated"),
        (encode(Image.fromarray(PIXELS).convert("CMYK"), "JPEG")[:-100], "truncated"),
        (png_that_claims(60_000, 60_000), "more than 178 million pixels"),
        (png_that_claims(17_801, 10_000), r"more than 178 million pixels \(17801 × 10000\)"),
        (encode(Image.fromarray(PIXELS[..., 0].astype(np.float32)), "TIFF"), "floating-point pixels"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_what_is_refused(data, reason):
    with pytest.raises(ValueError, match=reason):
        prepare_image(data)


def test_a_jpeg_that_claims_too_many_pixels_is_refused_undecoded(monkeypatch):
    monkeypatch.setattr(pixels, "MAX_PIXELS", 24 * 16 - 1)
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(ValueError, match="24 × 16"):
        prepare_image(jpeg(1)[:-2])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "BMP"])
@pytest.mark.filterwarnings("error")
def test_damage_anywhere_gives_a_reason_and_never_another_error(kind):
    whole = encode(Image.fromarray(PIXELS), kind)
    random = np.random.default_rng(1)
    for _ in range(150):
        data = bytearray(whole)
        for position in random.integers(0, len(data), 4):
            data[position] = random.integers(256)
        try:
            prepared = prepare_image(bytes(data[: random.integers(1, len(data) + 1)]))
        except ValueError as error:
            assert str(error)
        else:
            assert prepared.width > 0
