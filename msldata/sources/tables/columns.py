"""Which columns of a table hold what: said by the user, or guessed from names and contents, and printed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from msldata.contract.listing import Row, columns_of_images, guess_image_column, plain
from msldata.contract.records import quoted
from msldata.errors import OptionsNeeded, UserError, closest
from msldata.sources.labels.separators import PROVEN, SUSPECT_EVERYWHERE
from msldata.sources.source import SourceOptions
from msldata.sources.spelling import composed
from msldata.sources.tables.mark_columns import (
    ColumnOfMarks,
    marks_in,
    marks_said,
    naming,
    refuse_almost_marks,
    refuse_doubtful_marks,
    refuse_mixed_marks,
    value_of_mark,
)

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
_NEARLY_ALL = 0.9


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
    marks: str = ""
    """How the cells of ``one_hot`` are read where they are marks: ``x = 1``; empty: they are 0 and 1."""
    left_alone: tuple[str, ...] = ()

    @property
    def one_label_a_row(self) -> bool:
        """Whether an image may have several rows, each with one of its labels."""
        return plain(self.labels) in _ONE_LABEL_A_ROW

    def said(self, reading: str) -> str:
        """The columns in words, with how the labels are read."""
        of_classes = f"columns of marks ({self.marks})" if self.marks else "columns of 0 and 1"
        labels = f"'{self.labels}'" if self.labels else f"{len(self.one_hot):,} {of_classes}"
        said = f"images in column '{self.image}', labels in {labels}"
        said += f", {reading}"
        said += f"; splits in '{self.split}'" if self.split and self.split != "split" else ""
        if self.left_alone:
            more = len(self.left_alone) - _NAMED_CELLS_SHOWN
            names = ", ".join(self.left_alone[:_NAMED_CELLS_SHOWN]) + (f" and {more:,} more" if more > 0 else "")
            said += f"; columns left alone: {names}"
        return said


def with_known_columns(where: str, columns: Sequence[str], options: SourceOptions) -> SourceOptions:
    """The options, with the columns that they name spelt as the table spells them.

    Raises:
        UserError: it has no such column. OptionsNeeded: but one of nearly that name.
    """
    spelt = {composed(name): name for name in reversed(columns)}
    asked = [("--image-column", name) for name in (options.image_column,) if name is not None]
    asked += [("--labels-column", name) for name in options.labels_columns]
    asked += [("--group", name) for name in (options.group,) if name is not None]
    unknown = [(option, name) for option, name in asked if name not in columns and composed(name) not in spelt]
    if unknown:
        near = [closest(name, columns) for _, name in unknown]
        said = " and ".join(f"no column '{name}', as {option} says" for option, name in unknown)
        reason = f"{where}: {said}; there are {_some(columns)}"
        if not all(near):
            raise UserError(f"{reason}; name one of these")
        # The order of those that name classes counts, so all are said anew.
        meant = {(option, name): other for (option, name), other in zip(unknown, near, strict=True)}
        options_of = {option for option, _ in unknown}
        renamed = [(option, name, meant.get((option, name), name)) for option, name in asked if option in options_of]
        raise OptionsNeeded(
            reason,
            [word for option, _, other in renamed for word in (option, other)],
            f"if {quoted(near)} {'is' if len(near) == 1 else 'are'} meant",
            [word for option, name, _ in renamed for word in (option, name)],
        )

    def known(name: str) -> str:
        return name if name in columns else spelt[composed(name)]

    image, group = options.image_column, options.group
    return replace(
        options,
        group=None if group is None else known(group),
        image_column=None if image is None else known(image),
        labels_columns=tuple(map(known, options.labels_columns)),
    )


def choose_columns(
    columns: Sequence[str],
    rows: Sequence[Row],
    image: str | None = None,
    labels: Sequence[str] = (),
    *,
    read_marks: bool = True,
) -> Columns:
    """Find the columns of a table.

    Args:
        columns: the names of all.
        rows: all rows.
        image, labels: the columns that the user named, if any; several names in ``labels`` are one-hot columns.
        read_marks: whether ``x`` or ``ja`` may stand for 1; else a cell that holds it names a class.

    Raises:
        OptionsNeeded: columns cannot be guessed; it holds the options that name them. ValueError: a column is missing,
            or holds something else among 0 and 1, or among marks.
    """
    by_name = {plain(name): name for name in reversed(columns)}
    image = image or guess_image_column(columns, rows)
    if image is None:
        raise _unclear(columns, rows, None, labels)
    split = _split_column(by_name, rows)
    ignored = next((by_name[name] for name in _IGNORED if name in by_name), "")
    free = [name for name in columns if name not in (image, split, ignored)]
    binary = [name for name in free if not _NO_CLASS.fullmatch(plain(name)) and _is_binary(name, rows)]
    marked = _marked(free, binary, rows) if read_marks else {}
    # One column of 0 and 1 that is called after a class holds that class; one called "label" holds class indices.
    is_class = len(labels) == 1 and labels[0] in (*binary, *marked) and plain(labels[0]) not in _LABELS
    alone = len(labels) == 1 and not is_class
    named, one_hot = (labels[0], ()) if alone else ("", tuple(labels))
    if labels and marked:
        _refuse_doubts([name for name in labels if name in marked], marked, [labels[0]] if alone else [], rows)
    if not labels:
        named = next((by_name[name] for name in _LABELS if by_name.get(name) in free), "")
        if named in marked and len(binary) + len(marked) > 1:
            named = ""  # a class like the others: in German a Tag is a day
        if named in binary and len(binary) > 1:
            raise ValueError(
                f"'{named}' may hold class indices or be one of {len(binary)} columns of 0 and 1 ({_some(binary)}); "
                f"say which with --labels-column '{named}', or with a --labels-column for each"
            )
        one_hot = () if named else tuple(binary)
        if not named and any(column.yes for column in marked.values()):
            one_hot = _columns_of_marks(free, binary, marked, rows)
        if parted := [name for name in one_hot if plain(name) in _SPLITS]:
            raise ValueError(
                f"'{parted[0]}' holds 0 and 1: a class, or the parts that the rows are divided into? Name the columns "
                "of classes, each with --labels-column"
            )
        for name in [name for name in free if one_hot and name not in one_hot]:
            _refuse_almost_binary(name, rows)
    if not named and not one_hot:
        words = _with_words(free, rows)
        named = words[0] if len(words) == 1 and words[0] not in marked else ""
    if not named and not one_hot:
        raise _unclear(columns, rows, image, labels, marked)
    confidence = by_name.get("confidence", "") if plain(named) == "labelname" else ""
    used = {image, split, ignored, named, confidence, *one_hot}
    left_alone = tuple(name for name in columns if name not in used)
    marks = ""
    if any(name in marked for name in one_hot):
        marks = marks_said([found for name in one_hot if (found := marks_in(name, rows)) is not None])
    return Columns(image, named, one_hot, ignored, split, confidence, marks, left_alone)


def _marked(free: Sequence[str], binary: Sequence[str], rows: Sequence[Row]) -> dict[str, ColumnOfMarks]:
    """The columns of marks, but for those of 0 and 1 alone."""
    names = [name for name in free if name not in binary and not _NO_CLASS.fullmatch(plain(name))]
    return {name: found for name in names if (found := marks_in(name, rows)) is not None}


def _columns_of_marks(
    free: Sequence[str], binary: Sequence[str], marked: dict[str, ColumnOfMarks], rows: Sequence[Row]
) -> tuple[str, ...]:
    """The columns of classes in a table with columns of marks; none where there is but one column of them.

    Raises:
        OptionsNeeded: they may say something else. ValueError: marks that can be read in two ways.
    """
    names = [name for name in free if name in marked or name in binary]
    columns = [marked.get(name) or marks_in(name, rows) or ColumnOfMarks(name, {}, {}) for name in names]
    _refuse_doubts(names, marked, [name for name in free if name not in names], rows)
    if len(names) < 2:
        return ()
    refuse_mixed_marks(columns)
    if words := [name for name in free if name not in names and _may_name_classes(name, rows)]:
        place, cell = next((place, row[words[0]]) for place, row in rows if row.get(words[0]))
        mark, there = next(iter(next(column.yes for column in columns if column.yes).values()))
        raise OptionsNeeded(
            f"column '{words[0]}' ('{cell}' in {place}) or the columns of marks ('{mark}' in {there}) may say what the "
            f"photographs show; --labels-column {shlex.quote(words[0])} takes the former",
            naming(names),
            "if each column of marks stands for a class",
        )
    return tuple(names)


def _refuse_doubts(
    names: Sequence[str], marked: dict[str, ColumnOfMarks], beside: Sequence[str], rows: Sequence[Row]
) -> None:
    """Refuse marks that can be read in two ways in the columns ``names``, and columns ``beside`` them that are
    almost of marks."""
    refuse_doubtful_marks([marked[name] for name in names if name in marked])
    others = [column for column in marked.values() if column.yes]
    for name in beside:
        if name not in marked and others:
            refuse_almost_marks(name, rows, others)


def _may_name_classes(column: str, rows: Sequence[Row]) -> bool:
    """Whether nearly all cells of a column hold words that recur: names of classes do, but not remarks and dates."""
    cells = [str(cell) for _, row in rows if (cell := row.get(column)) not in (None, "")]
    if len(cells) < _NEARLY_ALL * len(rows):
        return False
    return 2 * len(set(cells)) <= len(cells) and all(any(map(str.isalpha, cell)) for cell in cells)


def _unclear(
    columns: Sequence[str],
    rows: Sequence[Row],
    image: str | None,
    labels: Sequence[str],
    marked: Mapping[str, ColumnOfMarks] | None = None,
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
    marked = _marked(free, (), rows) if marked is None else marked
    if not label and len(marked) < 2 and not any(_is_binary(name, rows) for name in free):
        found = [name for name in _with_words(free, rows) if name not in columns_of_images(free, rows)]
        words = [name for name in found if name not in marked] or found
        is_open = len(found) != 1 or found[0] in marked
        if is_open:
            reasons.append(f"no column 'labels' and no columns of 0 and 1 among {_some(columns)}")
        if not words:
            return ValueError(f"{'; '.join(reasons)}; add a column 'labels' with what each photograph shows")
        label = words[0]
        if label in marked:
            provided.append(f"a mark in '{label}' says that a photograph shows that")
            options += ["--labels-column", label]
        elif is_open:
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


def one_hot_value(cell: Any, *, marks: bool = False) -> int:
    """The 1, 0 or -1 of a cell in a one-hot column; 0 for an empty cell. Raises ValueError for anything else.

    Args:
        marks: whether it may hold a mark.
    """
    text = "" if cell is None else str(cell).strip().lower()
    if not _BINARY.fullmatch(text):
        if marks:
            return value_of_mark(cell)
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
