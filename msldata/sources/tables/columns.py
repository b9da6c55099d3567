"""Which columns of a table hold what: said by the user, or guessed from names and contents, and printed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from msldata.contract.listing import Row, columns_of_images, guess_image_column, plain
from msldata.errors import OptionsNeeded
from msldata.sources.labels.separators import PROVEN, SUSPECT_EVERYWHERE

# Compared in lower case without spaces, dashes and underscores; earlier ones win.
_LABELS = (
    "labels label tags tag classes class categories category labelname classname findinglabels choices choice target "
    "targets annotations objects"
).split()
_ONE_LABEL_A_ROW = frozenset({"label", "tag", "class", "category", "labelname", "classname", "choice"})
"""Names of a column that holds one label, so that an image with several has several rows."""
_IGNORED = ("ignored", "ignore", "ignoredlabels")
_SPLITS = ("split", "subset", "set", "partition", "phase", "fold")
_SPLIT_WORDS = frozenset("train training val valid validation dev test testing trainval".split())
_NO_CLASS = re.compile(r"|index|unnamed\d*|unnamed:\d+|(sample|row|image)?id|is(valid|train|test|crowd)", re.IGNORECASE)
_BINARY = re.compile(r"(0|-?1)([.,]0*)?|true|false|nan|none|")
_NUMERIC = re.compile(r"[+-]?\d*\.?\d+")
_NAMED_CELLS_SHOWN = 12


@dataclass(frozen=True, slots=True)
class Columns:
    """What the columns of a table hold."""

    image: str
    labels: str = ""
    """The one column with all labels; empty: ``one_hot`` has a column per class."""
    one_hot: tuple[str, ...] = ()
    ignored: str = ""
    split: str = ""
    confidence: str = ""
    """Open Images: 1 where people confirmed the class, 0 where they ruled it out."""
    left_alone: tuple[str, ...] = ()

    @property
    def one_label_a_row(self) -> bool:
        """Whether an image may have several rows, each with one of its labels."""
        return plain(self.labels) in _ONE_LABEL_A_ROW

    def said(self, reading: str) -> str:
        """The columns in words, with how the labels are read."""
        labels = f"'{self.labels}'" if self.labels else f"{len(self.one_hot):,} columns of 0 and 1"
        said = f"images in column '{self.image}', labels in {labels}"
        said += f", {reading}"
        said += f"; splits in '{self.split}'" if self.split and self.split != "split" else ""
        if self.left_alone:
            more = len(self.left_alone) - _NAMED_CELLS_SHOWN
            names = ", ".join(self.left_alone[:_NAMED_CELLS_SHOWN]) + (f" and {more:,} more" if more > 0 else "")
            said += f"; columns left alone: {names}"
        return said


def choose_columns(
    columns: Sequence[str], rows: Sequence[Row], image: str | None = None, labels: Sequence[str] = ()
) -> Columns:
    """Find the columns of a table.

    Args:
        columns: the names of all.
        rows: all rows.
        image, labels: the columns that the user named, if any; several names in ``labels`` are one-hot columns.

    Raises:
        OptionsNeeded: columns cannot be guessed; it holds the options that name them. ValueError: a column is missing.
    """
    for name in (image, *labels):
        if name is not None and name not in columns:
            raise ValueError(f"no column '{name}'; there are {_some(columns)}")
    by_name = {plain(name): name for name in reversed(columns)}
    image = image or guess_image_column(columns, rows)
    if image is None:
        raise _unclear(columns, rows, None, labels)
    split = _split_column(by_name, rows)
    ignored = next((by_name[name] for name in _IGNORED if name in by_name), "")
    free = [name for name in columns if name not in (image, split, ignored)]
    binary = [name for name in free if not _NO_CLASS.fullmatch(plain(name)) and _is_binary(name, rows)]
    # One column of 0 and 1 that is called after a class holds that class; one called "label" holds class indices.
    alone = len(labels) == 1 and not (labels[0] in binary and plain(labels[0]) not in _LABELS)
    named, one_hot = (labels[0], ()) if alone else ("", tuple(labels))
    if not labels:
        named = next((by_name[name] for name in _LABELS if by_name.get(name) in free), "")
        if named in binary and len(binary) > 1:
            raise ValueError(
                f"'{named}' may hold class indices or be one of {len(binary)} columns of 0 and 1 ({_some(binary)}); "
                f"say which with --labels-column '{named}', or with a --labels-column for each"
            )
        one_hot = () if named else tuple(binary)
        if parted := [name for name in one_hot if plain(name) in _SPLITS]:
            raise ValueError(
                f"'{parted[0]}' holds 0 and 1: a class, or the parts that the rows are divided into? Name the columns "
                "of classes, each with --labels-column"
            )
        for name in [name for name in free if one_hot and name not in binary]:
            _refuse_almost_binary(name, rows)
    if not named and not one_hot:
        words = _with_words(free, rows)
        named = words[0] if len(words) == 1 else ""
    if not named and not one_hot:
        raise _unclear(columns, rows, image, labels)
    confidence = by_name.get("confidence", "") if plain(named) == "labelname" else ""
    used = {image, split, ignored, named, confidence, *one_hot}
    left_alone = tuple(name for name in columns if name not in used)
    return Columns(image, named, one_hot, ignored, split, confidence, left_alone)


def _unclear(
    columns: Sequence[str], rows: Sequence[Row], image: str | None, labels: Sequence[str]
) -> OptionsNeeded | ValueError:
    """The error for columns that cannot be guessed: with every option that is needed, as far as it can be seen."""
    reasons, provided, options = [], [], []
    if image is None:
        alike = columns_of_images(columns, rows)
        reasons.append(
            f"the names of image files stand in several columns ({_some(alike)})"
            if alike
            else f"no column 'image' among {_some(columns)}, and none full of names of image files"
        )
        image = (alike or _with_words(columns, rows) or list(columns))[0]
        provided.append(f"'{image}' names the photographs")
        options += ["--image-column", image]
    free = [name for name in columns if name != image and plain(name) not in (*_IGNORED, *_SPLITS)]
    by_name = {plain(name): name for name in reversed(free)}
    label = labels[0] if labels else next((by_name[name] for name in _LABELS if name in by_name), "")
    if not label and not any(_is_binary(name, rows) for name in free):
        words = [name for name in _with_words(free, rows) if name not in columns_of_images(free, rows)]
        if len(words) != 1:
            reasons.append(f"no column 'labels' and no columns of 0 and 1 among {_some(columns)}")
        if not words:
            return ValueError(f"{'; '.join(reasons)}; add a column 'labels' with what each photograph shows")
        label = words[0]
        if len(words) != 1:
            provided.append(f"'{label}' {'' if provided else 'says '}what they show")
            options += ["--labels-column", label]
    if separator := _likely_separator(label, rows):
        options += ["--separator", separator]
    return OptionsNeeded("; ".join(reasons), options, f"if {' and '.join(provided)}")


def _with_words(columns: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """The columns that hold more than numbers."""
    return [name for name in columns if not _NO_CLASS.fullmatch(plain(name)) and _holds_words(name, rows)]


def _holds_words(column: str, rows: Sequence[Row]) -> bool:
    cells = [cell for _, row in rows if (cell := row.get(column)) not in (None, "")]
    return any(not isinstance(cell, int | float) and not _NUMERIC.fullmatch(str(cell)) for cell in cells)


def _likely_separator(column: str, rows: Sequence[Row]) -> str:
    """What stands between names in the column's cells where no separator is proven; empty where nothing does."""
    cells = [str(row.get(column)) for _, row in rows if column]
    cells = [cell for cell in cells if not cell.startswith(("[", "{", "("))]
    if any(character in cell for cell in cells for character in PROVEN):
        return ""
    return next((character for character in SUSPECT_EVERYWHERE if any(character in cell for cell in cells)), "")


def one_hot_value(cell: Any) -> int:
    """The 1, 0 or -1 of a cell in a one-hot column; 0 for an empty cell. Raises ValueError for anything else."""
    text = "" if cell is None else str(cell).strip().lower()
    if not _BINARY.fullmatch(text):
        raise ValueError(f"{cell!r} is not 0, 1 or -1")
    return {"1": 1, "t": 1, "-": -1}.get(text[:1], 0)


def _is_binary(column: str, rows: Sequence[Row]) -> bool:
    values = {str("" if (cell := cells.get(column)) is None else cell).strip().lower() for _, cells in rows}
    return all(map(_BINARY.fullmatch, values)) and not values <= {"", "nan", "none"}


def _refuse_almost_binary(column: str, rows: Sequence[Row]) -> None:
    """Raise ValueError for a column of 0 and 1 with a few other numbers: ignoring it would lose a class."""
    cells = [(place, str("" if cells.get(column) is None else cells[column]).strip()) for place, cells in rows]
    odd = [(place, cell) for place, cell in cells if not _BINARY.fullmatch(cell.lower())]
    numeric = all(_NUMERIC.fullmatch(cell) for _, cell in odd)
    if odd and numeric and len(odd) * 2 < sum(cell != "" for _, cell in cells):
        raise ValueError(
            f"{odd[0][0]}: column '{column}' holds {odd[0][1]!r} among 0 and 1; mend it, or name the columns of "
            "classes, each with --labels-column"
        )


def _split_column(by_name: dict[str, str], rows: Sequence[Row]) -> str:
    if "split" in by_name:
        return by_name["split"]
    for name in _SPLITS[1:]:
        # A word that means other things too: only with the usual names in it.
        if name in by_name and {str(cells.get(by_name[name])).lower() for _, cells in rows} <= _SPLIT_WORDS:
            return by_name[name]
    return ""


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED_CELLS_SHOWN:,} more" if len(names) > _NAMED_CELLS_SHOWN else ""
    return ", ".join(names[:_NAMED_CELLS_SHOWN]) + more
