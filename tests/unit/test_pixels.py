"""One decoder for one photograph: thirty odd files of one picture, and what is refused."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from msldata.build.image import prepare_image
from msldata.contract.photograph import upright_rgb
from msldata.contract.pixels import (
    ORIENTATION_TAG,
    check_whole,
    decode,
    decode_jpeg,
    is_plain,
    jpeg_header,
    pixels_of,
    reductions,
)
from tests.oddimages import HEIGHT, WIDTH, odd_images, picture, refused_images, saved, turned

ODD = odd_images()


@pytest.mark.parametrize("name", ODD)
def test_every_file_shows_the_picture_and_so_does_its_jpeg_in_a_shard(name):
    data, colour = ODD[name]
    wanted_HWC = picture(colour).astype(int)
    assert np.abs(decode(data) - wanted_HWC).mean() < 3
    assert check_whole(data) == (WIDTH, HEIGHT)
    prepared = prepare_image(data, decode=True)
    assert (prepared.width, prepared.height) == (WIDTH, HEIGHT)
    assert np.abs(decode(prepared.data).astype(int) - decode(data)).mean() < 2
    assert is_plain(prepared.data)  # any reader that knows nothing of EXIF sees the same


def test_there_are_some_thirty():
    assert len(ODD) >= 30


def half(data: bytes) -> bytes:
    return data[: len(data) // 2 + 200] + b"\xff\xd9"


def gap(data: bytes) -> bytes:
    """Zeros where some of the pixels were, as in a file that was copied in parts; all markers are there."""
    place = data.rfind(b"\xff\xda") + 200
    return data[:place] + bytes(300) + data[place + 300 :]


def without_an_interval(data: bytes) -> bytes:
    """Without what stands between two restart markers, and one of these."""
    return data[: data.find(b"\xff\xd2")] + data[data.find(b"\xff\xd3") :]


def noisy(mode: str = "RGB", **options) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    return saved(Image.fromarray(pixels).convert(mode), "JPEG", **options)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (half(noisy()), "truncated JPEG"),
        (half(noisy("CMYK")), "truncated JPEG"),
        (half(noisy("L")), "truncated JPEG"),
        (half(turned(6, quality=100)), "truncated JPEG"),
        (gap(noisy(restart_marker_rows=1)), "damaged JPEG"),
        (gap(noisy("CMYK", restart_marker_rows=1)), "damaged JPEG"),
        (without_an_interval(noisy(restart_marker_rows=1)), "damaged JPEG"),
        (gap(noisy(progressive=True)[: -len(noisy()) // 3] + b"\xff\xd9"), "truncated JPEG"),
        *refused_images().values(),
    ],
)
def test_what_is_refused_by_builds_and_predictions_alike(data, reason):
    for reads in (decode, check_whole, lambda data: prepare_image(data or b"?", decode=True)):
        with pytest.raises(ValueError, match=reason):
            reads(data)


def test_a_warning_of_the_decoder_is_no_damage():
    """Bytes between the segments make libjpeg complain, and every viewer shows the photograph all the same."""
    data = saved(Image.fromarray(picture()), "JPEG", quality=95)
    place = data.find(b"\xff\xda")
    odd = data[:place] + b"\x55" * 8 + data[place:]
    assert np.abs(decode(odd).astype(int) - picture()).mean() < 3


@pytest.mark.parametrize("order", ["II", "MM"])
def test_the_orientation_is_found_behind_other_segments(order):
    exif = Image.Exif()
    exif.endian = "<" if order == "II" else ">"
    exif[0x010F], exif[0x0112] = "maker", 8
    data = saved(Image.fromarray(picture()), "JPEG", exif=exif.tobytes(), comment=b"x" * 300)
    assert jpeg_header(data)[:3] == (WIDTH, HEIGHT, 8)
    moved = data[:2] + b"\xff\xe2\0\x06ICC?" + data[2:]
    assert jpeg_header(moved).orientation == 8 and decode(moved).shape == (WIDTH, HEIGHT, 3)


@pytest.mark.parametrize("damage", [b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"])
def test_damaged_exif_says_nothing(damage):
    data = saved(Image.fromarray(picture()), "JPEG")
    segment = b"\xff\xe1" + (len(damage) + 2).to_bytes(2, "big") + damage
    assert jpeg_header(data[:2] + segment + data[2:]).orientation == 1


@pytest.mark.parametrize(
    ("width", "height", "orientation", "shape"),
    [
        (32, 24, 6, (8, 6, 3)),
        (32, 26, 6, (16, 13, 3)),
        (34, 24, 6, (17, 12, 3)),
        (33, 24, 6, (33, 24, 3)),
        (33, 26, 1, (7, 9, 3)),
    ],
)
def test_a_turned_jpeg_is_reduced_only_by_what_divides_both_sides(width, height, orientation, shape):
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "JPEG", exif=exif)
    assert decode_jpeg(file.getvalue(), reduction=4).shape == shape


@pytest.mark.parametrize(
    ("crop", "reduction"), [((9, 9, 1344, 4000), 2), ((9, 9, 1343, 4000), 1), ((9, 9, 4000, 1344), 2)]
)
def test_the_shorter_side_of_a_part_decides_how_far_it_is_reduced(crop, reduction):
    assert reductions(np.array([6000]), np.array([4500]), np.array([crop]), 448).tolist() == [reduction]


@pytest.mark.parametrize("orientation", [1, 6])
def test_heic(orientation, monkeypatch):
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    data = turned(orientation, "HEIF", quality=95)
    assert np.abs(decode(data).astype(int) - picture()).mean() < 3
    assert np.abs(decode(prepare_image(data).data).astype(int) - picture()).mean() < 3
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ValueError, match=r"pip install 'msltrain\[heif\]'"):
        decode(data)


@pytest.mark.parametrize("name", ODD)
def test_an_image_that_a_caller_opened_is_read_by_the_same_rule(name, tmp_path):
    data, _ = ODD[name]
    (tmp_path / name).write_bytes(data)
    image = Image.open(tmp_path / name)
    apart = 3 if name.startswith("cmyk") else 1  # two libraries' colours
    assert np.abs(pixels_of(image).astype(int) - decode(data)).max() <= apart


def test_a_photograph_is_turned_once():
    once = upright_rgb(Image.open(io.BytesIO(ODD["exif6.jpg"][0])))
    assert np.array_equal(np.asarray(upright_rgb(once)), np.asarray(once)) and once.size == (WIDTH, HEIGHT)


def test_an_image_that_lost_its_file_is_refused_and_not_darkened():
    with pytest.raises(ValueError, match="open it by its file's name"):
        pixels_of(Image.open(io.BytesIO(ODD["colour12.png"][0])))


BOUND = """
import io, sys
from PIL import Image
from msldata.contract.format import _MAX_PIXELS
from msldata.contract.pixels import decode
print(decode(sys.stdin.buffer.read()).shape, _MAX_PIXELS)
"""


@pytest.mark.parametrize(
    ("bound", "words"),
    [
        (str(WIDTH * HEIGHT - 1), "more than 0 million pixels (64 × 48)"),
        (str(WIDTH * HEIGHT), f"({HEIGHT}, {WIDTH}, 3) 178956970"),
        ("400000000", f"({HEIGHT}, {WIDTH}, 3) 400000000"),  # what may be built may be read from its index
        ("many", "MSL_MAX_PIXELS is 'many'; give a number of pixels, as 400000000"),
        ("", f"({HEIGHT}, {WIDTH}, 3) 178956970"),
    ],
)
def test_the_environment_bounds_the_pixels_of_a_photograph(bound, words):
    environment = {**os.environ, "MSL_MAX_PIXELS": bound}
    process = subprocess.run(
        [sys.executable, "-c", BOUND], input=ODD["plain.png"][0], capture_output=True, env=environment
    )
    assert words in (process.stdout + process.stderr).decode()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "PPM"])
def test_a_file_that_ends_in_its_header_is_said_to_be_truncated(kind: str):
    file = io.BytesIO()
    Image.fromarray(np.zeros((400, 600, 3), np.uint8)).save(file, kind)
    for num_bytes in (22, 100, 500):
        with pytest.raises(ValueError, match=r"truncated|damaged"):
            decode(file.getvalue()[:num_bytes])
