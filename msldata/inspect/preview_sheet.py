"""A preview as one picture: a contact sheet with captions, drawn with Pillow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from msldata.inspect.tiles import Box, Label, Preview, Tile

_PAPER, _INK, _MUTED, _FAINT = "#ffffff", "#1c2430", "#5b6675", "#d4d9e0"
_MAT = "#f1f3f6"
_MARGIN, _GAP, _PANEL_GAP = 56, 32, 6
_PANEL = (340, 255)
_MASKED_PANEL = (224, 224)
_MASK_PANEL = (224, 224)
_TITLE_SIZE, _SUBTITLE_SIZE, _LABEL_SIZE, _KEY_SIZE = 40, 22, 18, 16
_CHIP_HEIGHT, _CHIP_PADDING, _CHIP_GAP = 27, 9, 6
_HEADER_HEIGHT = 92
_MAX_CHIP_LINES = 4


@dataclass(frozen=True, slots=True)
class _Layout:
    """Sizes in pixels that depend on what is shown."""

    columns: int
    panels: int
    """Pictures of one sample side by side: image, keep mask, masked image."""
    panel_width: int
    panel_height: int

    @property
    def tile_width(self) -> int:
        return self.panels * self.panel_width + (self.panels - 1) * _PANEL_GAP

    @classmethod
    def of(cls, tiles: Sequence[Tile]) -> _Layout:
        has_image, has_mask = tiles[0].image is not None, tiles[0].mask is not None
        if has_image and has_mask:
            return cls(min(3, len(tiles)), 3, *_MASKED_PANEL)
        if has_mask:
            return cls(min(8, len(tiles)), 1, *_MASK_PANEL)
        return cls(min(6, len(tiles)), 1, *_PANEL)


def draw_sheet(preview: Preview) -> Image.Image:
    """Draw all tiles in rows under a title. Returns an RGB image about 2,200 pixels wide."""
    layout = _Layout.of(preview.tiles)
    rows = [preview.tiles[start : start + layout.columns] for start in range(0, len(preview.tiles), layout.columns)]
    heights = [max(_tile_height(tile, layout) for tile in row) for row in rows]
    title, subtitle = _font(_TITLE_SIZE), _font(_SUBTITLE_SIZE)
    grid_width = layout.columns * layout.tile_width + (layout.columns - 1) * _GAP
    text_width = max(title.getlength(preview.title), subtitle.getlength(preview.subtitle))
    width = 2 * _MARGIN + max(grid_width, round(text_width))
    height = 2 * _MARGIN + _HEADER_HEIGHT + sum(heights) + _GAP * (len(rows) - 1)
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, _MARGIN - 8), preview.title, fill=_INK, font=title)
    draw.text((_MARGIN, _MARGIN + 44), preview.subtitle, fill=_MUTED, font=subtitle)
    top = _MARGIN + _HEADER_HEIGHT
    for row, row_height in zip(rows, heights, strict=True):
        for column, tile in enumerate(row):
            _draw_tile(sheet, tile, layout, _MARGIN + column * (layout.tile_width + _GAP), top)
        top += row_height + _GAP
    return sheet


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """The font of the plots: Pillow's own has only ASCII letters, and class names have others."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size)


def _tile_height(tile: Tile, layout: _Layout) -> int:
    lines = len(_chip_lines(tile.labels, layout.tile_width))
    return layout.panel_height + 10 + _KEY_SIZE + 8 + lines * (_CHIP_HEIGHT + _CHIP_GAP)


def _draw_tile(sheet: Image.Image, tile: Tile, layout: _Layout, left: int, top: int) -> None:
    pictures = [
        _with_boxes(tile, layout),
        Image.fromarray(tile.mask.level_HW).convert("RGB") if tile.mask else None,
        tile.masked_image(),
    ]
    draw = ImageDraw.Draw(sheet)
    x = left
    for picture in pictures:
        if picture is not None:
            _paste(sheet, picture, (x, top, x + layout.panel_width, top + layout.panel_height))
            x += layout.panel_width + _PANEL_GAP
    y = top + layout.panel_height + 10
    font = _font(_KEY_SIZE)
    hole = f"hole {tile.mask.hole_fraction:.1%}" if tile.mask is not None else ""
    draw.text((left + layout.tile_width, y), hole, fill=_MUTED, font=font, anchor="ra")
    # A key that is too long keeps its end, where the number is.
    room = layout.tile_width - round(font.getlength(f"{hole}   ")) if hole else layout.tile_width
    draw.text((left, y), _shorten(tile.key[::-1], font, room)[::-1], fill=_MUTED, font=font)
    y += _KEY_SIZE + 8
    for line in _chip_lines(tile.labels, layout.tile_width):
        x = left
        for label, text in line:
            x += _draw_chip(draw, label, text, x, y) + _CHIP_GAP
        y += _CHIP_HEIGHT + _CHIP_GAP


def _paste(sheet: Image.Image, picture: Image.Image, place: tuple[int, int, int, int]) -> None:
    """Fit a picture into a place, centred on a mat, with a hairline around pictures that are white themselves."""
    left, top, right, bottom = place
    draw = ImageDraw.Draw(sheet)
    draw.rectangle((left, top, right - 1, bottom - 1), fill=_MAT)
    fitted = _fit(picture, right - left, bottom - top)
    x, y = left + (right - left - fitted.width) // 2, top + (bottom - top - fitted.height) // 2
    sheet.paste(fitted, (x, y))
    draw.rectangle((x, y, x + fitted.width - 1, y + fitted.height - 1), outline=_FAINT)


def _fit(picture: Image.Image, width: int, height: int) -> Image.Image:
    scale = min(width / picture.width, height / picture.height)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.LANCZOS)


def _with_boxes(tile: Tile, layout: _Layout) -> Image.Image | None:
    """The image at its final size with the outlines of its objects; large ones first, so that none is covered."""
    if tile.image is None:
        return None
    fitted = _fit(tile.image, layout.panel_width, layout.panel_height)
    scale = fitted.width / tile.image.width
    draw = ImageDraw.Draw(fitted)
    for box in sorted(tile.boxes, key=lambda box: -box.width * box.height):
        left, top = round(box.left * scale), round(box.top * scale)
        right = max(left + 1, round((box.left + box.width) * scale) - 1)
        bottom = max(top + 1, round((box.top + box.height) * scale) - 1)
        _draw_box(draw, box, left, top, right, bottom)
    return fitted


def _draw_box(draw: ImageDraw.ImageDraw, box: Box, left: int, top: int, right: int, bottom: int) -> None:
    if box.faint:
        for start, end in (
            ((left, top), (right, top)),
            ((right, top), (right, bottom)),
            ((right, bottom), (left, bottom)),
            ((left, bottom), (left, top)),
        ):
            _draw_dashes(draw, start, end, box.colour)
        return
    if right - left > 6 and bottom - top > 6:  # a light rim inside keeps dark lines visible on dark ground
        draw.rectangle((left + 2, top + 2, right - 2, bottom - 2), outline="#ffffff")
    draw.rectangle((left, top, right, bottom), outline=box.colour, width=2)


def _draw_dashes(draw: ImageDraw.ImageDraw, start: tuple[int, int], end: tuple[int, int], colour: str) -> None:
    dash = 5
    (x, y), (to_x, to_y) = start, end
    length = abs(to_x - x) + abs(to_y - y)
    for position in range(0, length, dash):
        share, until = position / length, min(1.0, (position + dash) / length)
        line = (
            x + (to_x - x) * share,
            y + (to_y - y) * share,
            x + (to_x - x) * until,
            y + (to_y - y) * until,
        )
        draw.line(line, fill="#ffffff" if position // dash % 2 else colour, width=2)


def _chip_lines(labels: Sequence[Label], width: int) -> list[list[tuple[Label, str]]]:
    """Labels broken into lines; the last line counts those that do not fit."""
    font = _font(_LABEL_SIZE)
    lines: list[list[tuple[Label, str]]] = []
    used = float(width)
    for position, label in enumerate(labels):
        text = _shorten(f"{label.name} ignored" if label.ignored else label.name, font, width - 2 * _CHIP_PADDING)
        wide = font.getlength(text) + 2 * _CHIP_PADDING
        if not lines or used + _CHIP_GAP + wide > width:
            if len(lines) == _MAX_CHIP_LINES:
                rest = len(labels) - position + 1
                lines[-1][-1] = (Label("", _MUTED, True), f"+ {rest} more")
                return lines
            lines.append([])
            used = -_CHIP_GAP
        lines[-1].append((label, text))
        used += _CHIP_GAP + wide
    return lines


def _draw_chip(draw: ImageDraw.ImageDraw, label: Label, text: str, left: int, top: int) -> int:
    """A rounded name in its class's colour, or only outlined when the class is ignored. Returns its width."""
    font = _font(_LABEL_SIZE)
    width = round(font.getlength(text)) + 2 * _CHIP_PADDING
    place = (left, top, left + width, top + _CHIP_HEIGHT)
    if label.ignored:
        draw.rounded_rectangle(place, radius=6, outline=_FAINT, fill=_PAPER)
    else:
        draw.rounded_rectangle(place, radius=6, fill=label.colour)
    colour = _MUTED if label.ignored else _PAPER
    draw.text((left + _CHIP_PADDING, top + _CHIP_HEIGHT // 2), text, fill=colour, font=font, anchor="lm")
    return width


def _shorten(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
