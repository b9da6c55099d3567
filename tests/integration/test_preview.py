"""`msl preview`: the right samples, their labels, boxes and masks, on a sheet or a page."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from msldata.build.shards import build_shards, plan_build
from msldata.contract.keepmask import hole_fraction
from msldata.contract.manifest import FormatError
from msldata.errors import UserError
from msldata.inspect import preview_sheet as previewsheet
from msldata.inspect.preview import load_preview, spread, write_preview
from msldata.inspect.preview_page import draw_page
from msldata.inspect.preview_sheet import draw_sheet
from msldata.inspect.tiles import Box, Label, Preview, Tile
from msldata.masks.sources import GeneratedMasks, select_mask_source
from msldata.sources.kinds import open_source
from msldata.storage import LocalStorage, open_storage
from msltrain.__main__ import app
from tests.tinydata import build_masks, make_voc


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """12 images of 24×16 in 3 shards, and 6 + 6 keep masks of 64×64."""
    root = tmp_path_factory.mktemp("preview")
    source = open_source("voc2007", make_voc(root, 12), "test")
    build_shards(plan_build(source, samples_per_shard=5), LocalStorage(root / "test"), num_workers=1)
    masks = select_mask_source(root, None, generate=12, size=64, seed=0)
    build_masks(masks, LocalStorage(root / "masks"), per_subset=6, num_workers=1)
    return root


def load(folder: Path, num: int, keep_masks: Path | None = None) -> Preview:
    held = LocalStorage(keep_masks) if keep_masks else None
    return load_preview(LocalStorage(folder), num=num, keep_masks=held)


def test_a_split_of_a_named_dataset_is_taken_wherever_it_is_looked_at(built, monkeypatch, tmp_path):
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "mine").symlink_to(built)
    monkeypatch.chdir(tmp_path)

    def msl(*words: str, code: int = 0) -> str:
        result = CliRunner().invoke(app, [*words], env={"COLUMNS": "200"})
        assert result.exit_code == code, result.output
        return " ".join(result.output.split())

    assert "12 in 3 shards" in msl("info", "mine/test")
    assert json.loads(msl("info", "mine/test", "--json"))["num_samples"] == 12
    assert "shards/mine/test: 12 samples in 3 shards are right" in msl("verify", "mine/test")
    assert "--against names the dataset itself" in msl("verify", "mine/test", "--against", "mine/test", code=2)
    assert "3 samples" in msl("preview", "mine/test", "--num", "3", "--keep-masks", "mine/masks/high", "--out", "a.png")
    assert "note: this shows shards/mine/" in msl("preview", "mine", "--num", "3", "--out", "b.png")
    for word in ("info", "verify"):
        assert "mine/tset: no finished dataset here" in msl(word, "mine/tset", code=2)


def test_samples_are_spread_evenly():
    assert spread(12, 3) == [2, 6, 10]
    assert spread(5, 5) == [0, 1, 2, 3, 4]
    assert spread(1000, 1) == [500]
    gaps = np.diff(spread(5011, 24))
    assert gaps.max() - gaps.min() <= 1


def test_tiles_are_the_chosen_samples_with_their_labels_and_boxes(built):
    tiles = load(built / "test", 3).tiles
    assert [tile.key for tile in tiles] == ["000003", "000007", "000011"]  # from three shards
    tile = tiles[1]
    assert [(label.name, label.ignored) for label in tile.labels] == [("car", False), ("bus", True)]
    assert [(box.name, box.left, box.top, box.width, box.height, box.faint) for box in tile.boxes] == [
        ("car", 0, 0, 10, 8, False),
        ("bus", 0, 0, 10, 8, True),
    ]
    assert tile.image is not None and tile.image.size == (24, 16)


def test_more_than_there_are_shows_all_once(built):
    assert [tile.key for tile in load(built / "test", 100).tiles] == [f"{number:06d}" for number in range(1, 13)]


def test_classes_of_one_image_have_different_colours(built):
    for tile in load(built / "test", 12).tiles:
        colour_of = {label.name: label.colour for label in tile.labels} | {box.name: box.colour for box in tile.boxes}
        assert len(set(colour_of.values())) == len(colour_of)


def test_masked_image_is_black_where_the_mask_hides(built):
    for tile in load(built / "test", 4, built / "masks" / "high").tiles:
        assert tile.mask is not None and tile.image is not None
        assert tile.mask.hole_fraction == hole_fraction(tile.mask.level_HW) > 0.5
        masked = np.asarray(tile.masked_image())
        rows, columns = np.arange(16) * 4 + 2, (2 * np.arange(24) + 1) * 64 // 48
        visible_HW = tile.mask.level_HW[rows][:, columns].astype(bool)
        assert (masked[~visible_HW] == 0).all()
        assert np.array_equal(masked[visible_HW], np.asarray(tile.image)[visible_HW])


def test_fewer_masks_than_images_go_round(built):
    keys = [tile.mask.key for tile in load(built / "test", 12, built / "masks" / "low").tiles if tile.mask]
    assert keys[:6] == keys[6:] and len(set(keys)) == 6


@pytest.mark.parametrize("suffix", ["png", "html"])
def test_same_dataset_same_bytes(built, tmp_path, suffix):
    for name in ("a", "b"):
        held = LocalStorage(built / "masks" / "high")
        shown = write_preview(LocalStorage(built / "test"), tmp_path / f"{name}.{suffix}", num=5, keep_masks=held)
        assert shown == 5
    assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()


def test_sheet_shows_images_outlines_masks_and_chips():
    photo = Image.new("RGB", (340, 255), "#808080")
    box = Box("cat", "#c2410c", 100, 50, 60, 40, faint=False)
    tile = Tile("key", photo, (Label("cat", "#c2410c", False),), (box,))
    sheet = draw_sheet(Preview("title", "subtitle", (tile, Tile("other", photo))))
    left, top = 56, 56 + 92
    assert sheet.getpixel((left + 20, top + 20)) == (128, 128, 128)
    assert sheet.getpixel((left + 100, top + 70)) == sheet.getpixel((left + 159, top + 70)) == (0xC2, 0x41, 0x0C)
    assert sheet.getpixel((left + 20 + 340 + 32, top + 20)) == (128, 128, 128)
    below = np.asarray(sheet)[top + 255 :, left : left + 340]
    assert (below == (0xC2, 0x41, 0x0C)).all(-1).sum() > 500  # the chip
    assert (below == (0x5B, 0x66, 0x75)).all(-1).any()  # the key


@pytest.mark.parametrize("faint", [False, True])
@pytest.mark.parametrize("place", [(0, 0, 0, 0), (3, 3, 1, 200), (-5, -5, 9000, 9000), (23, 15, 1, 1)])
def test_odd_boxes_are_drawn(place, faint):
    tile = Tile("key", Image.new("RGB", (24, 16)), (), (Box("cat", "#c2410c", *place, faint=faint),))
    preview = Preview("t", "s", (tile,))
    assert draw_sheet(preview).width > 340 and "<rect" in draw_page(preview)


def test_many_long_and_strange_labels_stay_on_the_sheet():
    labels = tuple(Label(f"class number {number} with a long name", "#1d4ed8", number % 3 == 0) for number in range(60))
    tile = Tile("k" * 89, Image.new("RGB", (9, 2000)), (*labels, Label("x" * 500, "#1d4ed8", False)))
    alone = draw_sheet(Preview("t", "s", (tile,)))
    assert alone.height < 700 and (np.asarray(alone)[:, -50:] == 255).all()


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def test_page_is_self_contained_and_whole(built, tmp_path):
    held = LocalStorage(built / "masks" / "high")
    write_preview(LocalStorage(built / "test"), tmp_path / "page.html", num=4, keep_masks=held)
    text = (tmp_path / "page.html").read_text()
    page = _Page()
    page.feed(text)
    images = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 3 * 4 and all(source.startswith("data:image/") for source in images)
    assert not re.search(r"https?://|<script|@import|url\(", text)
    sizes = [Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).size for source in images]
    assert sizes == [(24, 16), (64, 64), (24, 16)] * 4
    tiles = load(built / "test", 4).tiles
    assert [tag for tag, _ in page.tags].count("rect") == sum(len(tile.boxes) for tile in tiles)


def test_page_escapes_what_the_dataset_says():
    label = Label("<script>alert(1)</script>", "#1d4ed8", False)
    box = Box('"><script>', "#1d4ed8", 0, 0, 1, 1, faint=False)
    tile = Tile("<b>&", Image.new("RGB", (4, 4)), (label,), (box,))
    assert "<script" not in draw_page(Preview("<script>", "<script>", (tile,)))
    assert "<b>" not in draw_page(Preview("t", "s", (tile,)))


def test_keep_masks_alone(built, tmp_path):
    assert write_preview(LocalStorage(built / "masks" / "low"), tmp_path / "masks.png") == 6
    text = draw_page(load(built / "masks" / "low", 2))
    assert text.count("<img") == 2 and "white = visible" in text


def test_remote_dataset(built, s3, tmp_path):
    folder = open_storage("s3://bucket/preview/test")
    for path in (built / "test").iterdir():
        folder.put(path.name, path.read_bytes())
    write_preview(folder, tmp_path / "remote.png", num=3)
    write_preview(LocalStorage(built / "test"), tmp_path / "local.png", num=3)
    assert (tmp_path / "remote.png").read_bytes() == (tmp_path / "local.png").read_bytes()


def test_mistakes_are_named(built, tmp_path):
    images, masks = LocalStorage(built / "test"), LocalStorage(built / "masks" / "low")
    with pytest.raises(UserError, match=r"\.png or \.html"):
        write_preview(images, tmp_path / "sheet.jpg")
    with pytest.raises(UserError, match="leave --keep-masks out"):
        write_preview(masks, tmp_path / "sheet.png", keep_masks=masks)
    with pytest.raises(UserError, match="not keep masks"):
        write_preview(images, tmp_path / "sheet.png", keep_masks=images)
    with pytest.raises(UserError, match="num is 0"):
        write_preview(images, tmp_path / "sheet.png", num=0)
    with pytest.raises(FormatError, match="no finished dataset"):
        write_preview(LocalStorage(tmp_path), tmp_path / "sheet.png")
    assert list(tmp_path.iterdir()) == []


def test_letters_beyond_ascii_are_drawn():
    font = previewsheet._font(18)
    missing = font.getmask("\U0010ffff")
    for letter in "üßéŁяΩ":
        assert bytes(font.getmask(letter)) != bytes(missing)


def test_a_subset_without_masks_is_named(built, tmp_path):
    build_masks(GeneratedMasks(1, size=32), LocalStorage(tmp_path / "masks"), threshold=0.999, num_workers=1)
    empty = tmp_path / "masks" / "high"
    for arguments in ([empty], [built / "test", "--keep-masks", empty]):
        run = CliRunner().invoke(app, ["preview", *map(str, arguments), "--out", str(tmp_path / "sheet.png")])
        assert run.exit_code == 2 and "has no samples" in run.output
    run = CliRunner().invoke(app, ["info", str(empty)])
    assert run.exit_code == 0 and "0 in 0 shards" in run.output


def test_damaged_image_is_named(built, tmp_path):
    folder = LocalStorage(tmp_path / "copy")
    for path in (built / "test").iterdir():
        folder.put(path.name, path.read_bytes().replace(b"\xff\xd8\xff", b"nothing"[:3]))
    with pytest.raises(FormatError, match=r"sample 000001: the image cannot be decoded .*msl verify"):
        load(tmp_path / "copy", 12)


def test_command(built, tmp_path):
    out = tmp_path / "new" / "sheet.png"
    run = CliRunner().invoke(app, ["preview", str(built / "test"), "--out", str(out), "--num", "4"])
    assert run.exit_code == 0 and "4 samples" in run.output
    assert Image.open(out).format == "PNG"


@pytest.mark.real
def test_real_photographs(sample, tmp_path):
    source = open_source("voc2007", sample / "VOCdevkit" / "VOC2007", "test")
    build_shards(plan_build(source), LocalStorage(tmp_path / "test"), num_workers=1)
    write_preview(LocalStorage(tmp_path / "test"), tmp_path / "sheet.png")
    assert Image.open(tmp_path / "sheet.png").width > 2000
