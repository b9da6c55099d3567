"""Keep masks: binarising, packing, PNG, decoding of every kind of file, and the decision on polarity."""

from __future__ import annotations

import csv
import io
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from msldata.contract.deflate import compress
from msldata.contract.keepmask import (
    HOLE_BLACK,
    HOLE_WHITE,
    decode_gray,
    decode_levels,
    decode_packed,
    decode_png,
    encode_level_png,
    encode_png,
    hole_fraction,
    invert_bits,
    pack_bits,
    resize_area,
    resize_nearest,
    resize_packed,
    to_keep_mask,
    to_levels,
    unpack_bits,
)
from msldata.errors import BadInputError, UserError
from msldata.masks.polarity import AUTO, PolarityClue, decide_polarity, polarity_clue

KEEP_MASKS = arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40)), elements=st.integers(0, 1))

# White on the left, black on the right: what each file kind below must decode to.
GRAY = np.zeros((4, 6), dtype=np.uint8)
GRAY[:, :2] = 255


def file_bytes(image: Image.Image, kind: str = "PNG", **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


# --- values -----------------------------------------------------------------------------------------------------------


def test_binarises_above_127_and_makes_visible_one():
    gray = np.array([[0, 127, 128, 255]], dtype=np.uint8)
    assert to_keep_mask(gray, HOLE_WHITE).tolist() == [[1, 1, 0, 0]]
    assert to_keep_mask(gray, HOLE_BLACK).tolist() == [[0, 0, 1, 1]]
    assert to_keep_mask(gray, HOLE_WHITE).dtype == np.uint8


def test_unknown_polarity_names_the_known_ones():
    assert AUTO == "auto"  # the command line's word, and the manifest's
    with pytest.raises(UserError, match="hole-white or hole-black"):
        to_keep_mask(GRAY, "white")


def test_hole_fraction_is_the_share_of_zeros():
    assert hole_fraction(np.array([[0, 1, 1, 1]], dtype=np.uint8)) == 0.25
    assert hole_fraction(np.array([[0, 1], [1, 0]], dtype=np.uint8)) == 0.5


def test_resize_takes_the_pixel_under_each_centre():
    # Centres of 3 pixels over 5: 0.83, 2.5, 4.17; of 4 over 2: 0.25, 0.75, 1.25, 1.75.
    assert resize_nearest(np.array([[1, 0, 1, 0, 0]], dtype=np.uint8), 1, 3).tolist() == [[1, 1, 0]]
    assert resize_nearest(np.array([[1], [0]], dtype=np.uint8), 4, 1).tolist() == [[1], [1], [0], [0]]


@pytest.mark.parametrize("size", [448, 224, 128, 64, 640])
def test_resize_equals_pillows_nearest(size):
    keep_mask = np.random.default_rng(0).integers(0, 2, (512, 512), dtype=np.uint8)
    expected = Image.fromarray(keep_mask).resize((size, size), Image.Resampling.NEAREST)
    # A centre that falls between two pixels goes either way in Pillow, whose coordinates are rounded floats.
    clear = (2 * np.arange(size) + 1) * 512 % (2 * size) != 0
    differs = (resize_nearest(keep_mask, size, size) != np.asarray(expected)) & clear[:, None] & clear
    assert not differs.any()


@given(KEEP_MASKS, st.integers(1, 40), st.integers(-7, 7))
def test_packed_masks_are_resized_as_others_are(keep_mask, height, wider):
    width = max(1, keep_mask.shape[1] + wider)  # often of as many bytes as before
    packed = resize_packed(pack_bits(keep_mask), keep_mask.shape[1], height, width)
    np.testing.assert_array_equal(packed, pack_bits(resize_nearest(keep_mask, height, width)))


def test_resize_keeps_batch_dimensions():
    masks = np.arange(8, dtype=np.uint8).reshape(2, 2, 2) % 2
    assert resize_nearest(masks, 4, 6).shape == (2, 4, 6)
    assert (resize_nearest(masks, 4, 6)[1] == resize_nearest(masks[1], 4, 6)).all()


@given(
    arrays(np.uint8, st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 40)), elements=st.integers(0, 1))
)
def test_packing_is_undone_by_unpacking(masks):
    packed = pack_bits(masks)
    assert packed.shape == (*masks.shape[:2], -(-masks.shape[2] // 8))
    assert (unpack_bits(packed, masks.shape[2]) == masks).all()


# --- PNG --------------------------------------------------------------------------------------------------------------


@given(KEEP_MASKS)
def test_png_is_read_back_by_pillow_and_by_us(keep_mask):
    data = encode_png(keep_mask)
    image = Image.open(io.BytesIO(data))
    assert image.mode == "1"
    image.verify()  # chunk checksums
    assert (np.asarray(Image.open(io.BytesIO(data))) == keep_mask.astype(bool)).all()
    assert (decode_png(data, "mask.png") == keep_mask).all()


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 255), st.integers(1, 1100)), min_size=1, max_size=12))
def test_deflate_of_runs_is_inflated_by_zlib(runs):
    data = np.concatenate([np.full(length, value, dtype=np.uint8) for value, length in runs])
    assert zlib.decompress(compress(data)) == data.tobytes()


def test_deflate_of_every_run_length_is_inflated_by_zlib():
    for length in range(1, 800):
        data = np.full(length, 200, dtype=np.uint8)
        assert zlib.decompress(compress(data)) == data.tobytes()


def test_png_bytes_are_fixed():
    # Written down once: another compressor or filter would change the digest of every keep-mask shard.
    keep_mask = np.ones((6, 20), dtype=np.uint8)
    keep_mask[2:4, 3:15] = 0
    assert encode_png(keep_mask).hex() == (
        "89504e470d0a1a0a0000000d4948445200000014000000060100000000ebec83300000002049444154780163"
        "faffff0313030303d34326062606060626f97f0c4c0c0c0c00555b04fbaca5481c0000000049454e44ae426082"
    )


@given(KEEP_MASKS)
def test_packed_masks_are_inverted_and_read_without_unpacking(keep_mask):
    packed, width = decode_packed(encode_png(keep_mask), "mask.png")
    assert width == keep_mask.shape[1]
    assert (packed == pack_bits(keep_mask)).all()
    assert (invert_bits(packed, width) == pack_bits(1 - keep_mask)).all()
    assert (decode_levels(encode_png(keep_mask), "mask.png") == keep_mask * 255).all()
    assert (decode_png(encode_level_png(keep_mask * np.uint8(255)), "mask.png") == keep_mask).all()


@given(arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40))))
def test_grey_png_is_read_back_by_pillow_and_by_us(level):
    data = encode_level_png(level)
    assert (np.asarray(Image.open(io.BytesIO(data))) == level).all()
    assert (decode_levels(data, "mask.png") == level).all()


def test_masks_that_others_have_written_are_read_just_as_well():
    keep_mask = np.random.default_rng(0).integers(0, 2, (5, 11), dtype=np.uint8)
    for data in (file_bytes(Image.fromarray(keep_mask == 1)), file_bytes(Image.fromarray(keep_mask * np.uint8(255)))):
        packed, width = decode_packed(data, "m")
        assert width == 11 and (packed == pack_bits(keep_mask)).all()
        assert (decode_png(data, "m") == keep_mask).all()
        assert (decode_levels(data, "m") == keep_mask * 255).all()


@pytest.mark.parametrize("encode", [encode_png, encode_level_png])
def test_damage_to_our_own_files_is_found(encode):
    data = encode(np.kron(np.eye(4, dtype=np.uint8), np.ones((5, 5), np.uint8)))
    for at in range(41, len(data) - 16):  # the compressed rows
        damaged = bytearray(data)
        damaged[at] ^= 0x10
        with pytest.raises(BadInputError):
            decode_levels(bytes(damaged), "m")
    with pytest.raises(BadInputError):
        decode_levels(data[: len(data) // 2], "m")


@given(
    st.integers(1, 30), st.integers(1, 30), st.integers(1, 40), st.integers(1, 40), st.randoms(use_true_random=False)
)
def test_area_resize_is_the_rounded_mean_of_what_a_pixel_covers(height, width, to_height, to_width, chance):
    level = np.array([[chance.randrange(256) for _ in range(width)] for _ in range(height)], dtype=np.uint8)
    # Every source pixel as to_height × to_width equal parts; each result pixel is then a block of height × width.
    fine = np.kron(level.astype(np.int64), np.ones((to_height, to_width), np.int64))
    total = fine.reshape(to_height, height, to_width, width).sum(axis=(1, 3))
    expected = (2 * total + height * width) // (2 * height * width)
    assert (resize_area(level, to_height, to_width) == expected).all()


def test_area_resize_of_a_mask_whose_sum_exceeds_32_bits():
    assert resize_area(np.full((2100, 2100), 255, np.uint8), 1, 1).tolist() == [[255]]


# --- files ------------------------------------------------------------------------------------------------------------


def palette_image() -> Image.Image:
    # Index 0 is white and index 1 black: the indices read as numbers would be wrong, and so would a fixed palette.
    image = Image.frombytes("P", (6, 4), (GRAY == 0).astype(np.uint8).tobytes())
    image.putpalette([255, 255, 255, 0, 0, 0])
    return image


def rgba_image(drawn: tuple[int, int, int]) -> Image.Image:
    """Opaque ``drawn`` where the colour is drawn, fully transparent elsewhere."""
    where = (GRAY == 255) if drawn[0] > 127 else (GRAY == 0)
    rgba = np.zeros((4, 6, 4), dtype=np.uint8)
    rgba[where] = (*drawn, 255)
    return Image.fromarray(rgba)


def palette_with_transparency() -> bytes:
    buffer = io.BytesIO()
    palette_image().save(buffer, "PNG", transparency=bytes([255, 255]))
    return buffer.getvalue()


FILES = {
    "grey": file_bytes(Image.fromarray(GRAY)),
    "one bit": file_bytes(Image.fromarray(GRAY == 255)),
    "palette": file_bytes(palette_image()),
    "palette, opaque transparency table": palette_with_transparency(),
    "gif": file_bytes(Image.fromarray(GRAY), "GIF"),
    "colour": file_bytes(Image.fromarray(np.repeat(GRAY[..., None], 3, axis=2))),
    "cmyk": file_bytes(Image.fromarray(np.repeat(GRAY[..., None], 3, axis=2)).convert("CMYK"), "TIFF"),
    "16 bit": file_bytes(Image.fromarray(GRAY.astype(np.uint16) * 257)),
    "16 bit holding 0 and 255": file_bytes(Image.fromarray(GRAY.astype(np.uint16))),
    "32 bit": file_bytes(Image.fromarray(GRAY.astype(np.int32) * 257), "TIFF"),
    "float": file_bytes(Image.fromarray(GRAY.astype(np.float32) / 255), "TIFF"),
    "zero and one": file_bytes(Image.fromarray(GRAY // 255)),
    "grey with opacity": file_bytes(Image.fromarray(GRAY).convert("LA")),
    "bmp": file_bytes(Image.fromarray(GRAY), "BMP"),
    "opaque rgba": file_bytes(Image.fromarray(GRAY).convert("RGBA")),
    "white strokes on transparent": file_bytes(rgba_image((255, 255, 255))),
    "black strokes on transparent": file_bytes(rgba_image((0, 0, 0))),
}


@pytest.mark.parametrize("kind", FILES)
def test_decodes_every_kind_of_file_to_what_a_person_sees(kind):
    gray = decode_gray(FILES[kind], "mask")
    assert gray.dtype == np.uint8
    assert (gray == GRAY).all()


@pytest.mark.parametrize(
    "values",
    [
        np.array([[0, 20000, 40000, 65535]], dtype=np.uint16),
        np.array([[0, 20000, 40000, 65535]], dtype=np.int32),
        np.array([[0, 0.305, 0.61, 1]], dtype=np.float32),
    ],
)
def test_deep_files_are_scaled_not_clipped(values):
    image = Image.fromarray(values.repeat([9, 1, 1, 9], axis=1))  # mostly black and white, or it would be no mask
    assert decode_gray(file_bytes(image, "TIFF"), "m")[0, 8:12].tolist() == [0, 78, 156, 255]


def test_jpeg_noise_does_not_matter():
    big = np.kron(GRAY, np.ones((40, 40), dtype=np.uint8))
    assert (to_keep_mask(decode_gray(file_bytes(Image.fromarray(big), "JPEG"), "m"), HOLE_BLACK) == big // 255).all()


def test_soft_masks_keep_their_grey():
    ramp = np.tile(np.arange(256, dtype=np.uint8), (9, 1))
    data = file_bytes(Image.fromarray(ramp))
    assert (decode_gray(data, "m", soft=True) == ramp).all()
    assert (to_levels(ramp, HOLE_BLACK) == ramp).all()
    assert (to_levels(ramp, HOLE_WHITE) == 255 - ramp).all()
    # Binarised, both readings of the grey agree about every pixel.
    for polarity in (HOLE_BLACK, HOLE_WHITE):
        assert ((to_levels(ramp, polarity) > 127) == to_keep_mask(ramp, polarity)).all()


def test_files_that_start_other_programs_are_no_masks():
    data = io.BytesIO()
    Image.fromarray(GRAY).save(data, "EPS")  # which Pillow reads with Ghostscript
    with pytest.raises(BadInputError, match="not an image"):
        decode_gray(data.getvalue(), "m")


def test_transparency_of_a_palette_counts_too():
    image = Image.fromarray((GRAY > 127).astype(np.uint8), "P")
    image.putpalette([255] * 6)  # white on white: only the transparent entry makes a picture
    assert (decode_gray(file_bytes(image, transparency=0), "m") == GRAY).all()


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_one_colour_may_waver_where_files_are_lossy(kind: str):
    level = np.zeros((32, 32), np.uint8)
    level[8:24, 8:24] = 8
    assert 1 <= np.ptp(decode_gray(file_bytes(Image.fromarray(level), kind), "m")) < 16
    with pytest.raises(BadInputError, match="brightness runs from 0 to 8 of 255"):
        decode_gray(file_bytes(Image.fromarray(level)), "m")


@pytest.mark.parametrize(
    ("levels", "is_mask"),
    [
        ((0, 63), False), ((0, 64), False), ((0, 191), False), ((0, 192), True), ((63, 255), True), ((64, 255), False),
        ((0, 127), False), ((128, 255), False), ((0, 255), True), ((0, 0), True), ((9, 9), True),
    ],
)  # fmt: skip
def test_half_of_one_level_and_half_of_another(levels: tuple[int, int], is_mask: bool):
    assert_is_mask(np.repeat(np.array([levels], np.uint8), 50, axis=1), is_mask)


@pytest.mark.parametrize(
    ("level", "odd", "is_mask"), [(255, 127, True), (255, 128, False), (0, 128, True), (0, 127, False)]
)
def test_a_single_pixel_across_the_middle_makes_two_colours(level: int, odd: int, is_mask: bool):
    gray = np.full((20, 20), level, np.uint8)
    gray[3, 4] = odd
    assert_is_mask(gray, is_mask)


def assert_is_mask(gray: np.ndarray, is_mask: bool) -> None:
    data = file_bytes(Image.fromarray(gray))
    if is_mask:
        assert (decode_gray(data, "m") == gray).all()
    else:
        with pytest.raises(BadInputError):
            decode_gray(data, "m")


def half_transparent() -> bytes:
    rgba = np.zeros((4, 6, 4), dtype=np.uint8)
    rgba[:, :2] = (255, 255, 255, 255)
    rgba[:, 2:4] = (0, 0, 0, 255)
    return file_bytes(Image.fromarray(rgba))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"not an image", "not an image"),
        (b"", "not an image"),
        (FILES["grey"][:50], "cannot be decoded"),
        (file_bytes(Image.new("RGBA", (4, 4), (255, 0, 0, 0))), "entirely transparent"),
        (half_transparent(), "both colour and transparency"),
        (file_bytes(Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (9, 1)))), "a picture, not a mask"),
        (file_bytes(Image.fromarray(GRAY // 10)), "brightness runs from 0 to 25 of 255"),
        (file_bytes(Image.new("1", (8200, 8200))), "too large for a mask"),
    ],
)
def test_a_file_that_is_no_mask_is_named_with_the_reason(data, reason):
    with pytest.raises(BadInputError, match=reason) as caught:
        decode_gray(data, "masks/odd.png")
    assert str(caught.value).startswith("masks/odd.png: ")
    assert "--on-error skip" in str(caught.value)


# --- polarity ---------------------------------------------------------------------------------------------------------


def clues(black: int = 0, white: int = 0, mixed: int = 0, white_fraction: float = 0.4) -> list[PolarityClue]:
    borders = ["black"] * black + ["white"] * white + ["mixed"] * mixed
    return [PolarityClue(white_fraction, border) for border in borders]


def test_clue_measures_the_whole_ring():
    gray = np.zeros((8, 8), dtype=np.uint8)
    gray[3, 3] = 255
    assert polarity_clue(gray > 127) == PolarityClue(1 / 64, "black")
    assert polarity_clue(gray <= 127) == PolarityClue(63 / 64, "white")
    for corner in ((0, 4), (7, 4), (4, 0), (4, 7)):
        touched = gray.copy()
        touched[corner] = 255
        assert polarity_clue(touched > 127).border == "mixed"


def test_the_colour_that_fills_borders_is_visible():
    decision = decide_polarity(clues(black=50, mixed=50))
    assert (decision.polarity, decision.origin) == (HOLE_WHITE, "auto")
    assert "50 of 100 masks have an all-black border" in decision.explanation
    assert decide_polarity(clues(white=50, mixed=50, white_fraction=0.6)).polarity == HOLE_BLACK
    assert decide_polarity(clues(black=10, mixed=90)).polarity == HOLE_WHITE


def test_a_colour_that_is_rare_on_average_is_the_hole():
    assert decide_polarity(clues(mixed=50, white_fraction=0.08)).polarity == HOLE_WHITE
    assert decide_polarity(clues(mixed=50, white_fraction=0.92)).polarity == HOLE_BLACK
    assert "8.0%" in decide_polarity(clues(mixed=50, white_fraction=0.08)).explanation


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            clues(black=95, white=5, mixed=0),  # one in twenty may dissent
            "hole-white: 95 of 100 masks have an all-black border and 5 an all-white one; white covers 40.0% of a mask "
            "on average; black fills whole borders, so black is the visible colour",
        ),
        (
            [*clues(black=1, white=24, white_fraction=0.6), PolarityClue(1.0, "white"), PolarityClue(0.0, "black")],
            "hole-black: 1 of 25 masks have an all-black border and 24 an all-white one; white covers 60.0% of a mask "
            "on average; white fills whole borders, so white is the visible colour",
        ),
        (
            clues(mixed=5, white_fraction=0.08),
            "hole-white: 0 of 5 masks have an all-black border and 0 an all-white one; white covers 8.0% of a mask on "
            "average; so little white can only be the holes",
        ),
        (
            clues(mixed=5, white_fraction=0.92),
            "hole-black: 0 of 5 masks have an all-black border and 0 an all-white one; white covers 92.0% of a mask on "
            "average; so little black can only be the holes",
        ),
    ],
)
def test_a_decision_says_what_it_saw(given, says):
    decision = decide_polarity(given)
    assert decision.explanation == says and says.startswith(f"{decision.polarity}: ")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (clues(black=94, white=6), "94 of 100 masks .*; the clues contradict each other. Look at one mask"),
        (
            clues(mixed=1),
            r"0 of 1 mask .* covers 40\.0% of a mask on average; no clue is clear enough\. Look",
        ),
    ],
)
def test_a_refusal_says_what_it_saw(given, says):
    with pytest.raises(UserError, match=says):
        decide_polarity(given)


@pytest.mark.parametrize(
    "unclear",
    [
        [],
        clues(mixed=200, white_fraction=0.55),  # only heavy masks that touch the border, white = hole
        clues(mixed=200, white_fraction=0.45),  # the same, white = visible
        clues(mixed=200, white_fraction=0.3),
        clues(black=30, white=30, mixed=10),
        clues(black=90, white=10),
        clues(black=50, white_fraction=0.9),  # the border says white is the hole, its share says it is not
        clues(white=20, mixed=180, white_fraction=0.05),
        clues(black=4),
        clues(black=9, mixed=91),  # less than a tenth
        [PolarityClue(0.0, "black")] * 50,  # masks of one colour prove nothing
    ],
)
def test_refuses_to_guess(unclear):
    with pytest.raises(UserError, match=r"--polarity hole-white .* or --polarity hole-black"):
        decide_polarity(unclear)


@pytest.fixture(scope="module")
def real_masks(sample) -> dict[str, np.ndarray]:
    files = sorted((sample / "irregular_mask").rglob("*.png"))
    return {file.name: decode_gray(file.read_bytes(), str(file)) for file in files}


@pytest.mark.real
def test_real_masks_are_white_holes_and_inverted_copies_black_ones(real_masks):
    decision = decide_polarity(polarity_clue(gray > 127) for gray in real_masks.values())
    assert decision.polarity == HOLE_WHITE
    assert "190 of 400 masks have an all-black border and 0 an all-white one" in decision.explanation
    assert decide_polarity(polarity_clue(gray <= 127) for gray in real_masks.values()).polarity == HOLE_BLACK


@pytest.mark.real
def test_heavy_real_masks_that_touch_the_border_are_refused(real_masks):
    heavy = [gray for name, gray in real_masks.items() if name >= "11000"]
    assert len(heavy) > 100
    for version in (heavy, [255 - gray for gray in heavy]):
        with pytest.raises(UserError, match="which colour of the masks is the hole"):
            decide_polarity(polarity_clue(gray > 127) for gray in version)


@pytest.mark.real
def test_real_hole_counts_equal_the_published_ones(real_masks, sample):
    with open(sample / "oracles" / "masks" / "zero_pixels.csv") as file:
        rows = {row["file"]: row for row in csv.DictReader(file)}
    assert rows.keys() == real_masks.keys()
    for name, gray in real_masks.items():
        keep_mask = to_keep_mask(gray, HOLE_WHITE)
        holes = int(rows[name]["total_pixels"]) - int(rows[name]["zero_pixels"])
        assert np.count_nonzero(keep_mask == 0) == holes, name
        assert hole_fraction(keep_mask) == holes / int(rows[name]["total_pixels"])
        assert (decode_png(encode_png(keep_mask), name) == keep_mask).all()


@pytest.mark.parametrize("values", [(0, 2), (1, 3), (0, 1, 2), (250, 255)])
def test_labels_on_one_side_of_the_middle_are_no_mask(values):
    pixels = np.zeros((16, 16), np.uint8) + values[0]
    for number, value in enumerate(values):
        pixels[4 * number : 4 * number + 4] = value
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    with pytest.raises(BadInputError, match="all on one side of the middle"):
        decode_gray(buffer.getvalue(), "labels.png")
