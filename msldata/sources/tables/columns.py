"""Which columns of a table hold what: said by the user, or guessed from names and contents, and printed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from msldata.contract.listing import Row, columns_of_images, guess_image_column, plain
from msldata.contract.records import quoted
from msldata.errors import OptionsNeeded, UserError, closest, counted
from msldata.sources.labels.separators import PROVEN, SUSPECT_EVERYWHERE
from msldata.sources.source import SourceOptions
from msldata.sources.spelling import composed
from msldata.sources.tables.column_words import (
    LABELS,
    WORDS_FOR_INDICES,
    bare,
    is_measure,
    is_remark,
    is_site,
    is_time,
    may_have_several_rows,
    names_of_labels,
    numbered_alike,
)
from msldata.sources.tables.count_columns import (
    columns_of_counts,
    count_in,
    holds_counts,
    refuse_doubtful_counts,
)
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
    """The column with all labels, or with the first ones; empty: ``one_hot`` has a column per class."""
    one_hot: tuple[str, ...] = ()
    ignored: str = ""
    split: str = ""
    confidence: str = ""
    """Open Images: 1 where people confirmed the class, 0 where they ruled it out."""
    marks: str = ""
    """How the cells of ``one_hot`` are read where they are marks: ``x = 1``; empty: they are 0 and 1."""
    left_alone: tuple[str, ...] = ()
    more_labels: tuple[str, ...] = ()
    """Columns with further labels of each photograph: ``Art 2`` beside ``Art 1``."""
    counts: bool = False
    """Whether the cells of ``one_hot`` may hold counts, of which those above 0 say that the class is there."""

    @property
    def of_names(self) -> tuple[str, ...]:
        """All columns that hold labels themselves."""
        return (self.labels, *self.more_labels) if self.labels else ()

    @property
    def one_label_a_row(self) -> bool:
        """Whether an image may have several rows, each with one of its labels."""
        return may_have_several_rows(self.labels)

    def said(self, reading: str) -> str:
        """The columns in words, with how the labels are read."""
        number = len(self.one_hot)
        labels = " and ".join(map(_in_quotes, self.of_names))
        if self.counts:
            labels = f"counts of {counted(number, 'class')}: above 0 is present{', ' * bool(self.marks)}{self.marks}"
        elif not labels:
            labels = f"{counted(number, 'column')} of {f'marks ({self.marks})' if self.marks else '0 and 1'}"
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
    numbered = [name for name in free if name not in binary and not _NO_CLASS.fullmatch(plain(name))]
    counts = columns_of_counts(numbered, rows)
    # Of one column of counts and none of 0 and 1, nobody can tell it from class indices.
    of_classes = [name for name in free if name in binary or (name in counts and len(counts) + len(binary) > 1)]
    # One column of 0 and 1 that is called after a class holds that class; one called "label" holds class indices.
    is_class = len(labels) == 1 and labels[0] in (*of_classes, *marked) and plain(labels[0]) not in WORDS_FOR_INDICES
    alone = (len(labels) == 1 and not is_class) or _hold_names(labels, (*of_classes, *marked), rows)
    named, one_hot = (labels[0], ()) if alone else ("", tuple(labels))
    if labels and marked:
        _refuse_doubts([name for name in labels if name in marked], marked, [labels[0]] if alone else [], rows)
    if not labels:
        named = _named(free, rows, of_classes, marked)
        if named in binary and len(binary) > 1:
            raise ValueError(
                f"'{named}' may hold class indices or be one of {len(binary)} columns of 0 and 1 ({_some(binary)}); "
                f"say which with --labels-column '{named}', or with a --labels-column for each"
            )
        one_hot = () if named else tuple(of_classes)
        if not named and any(column.yes for column in marked.values()):
            one_hot = _columns_of_marks(free, binary, marked, rows)
        elif one_hot:
            if not set(one_hot) <= set(binary):
                refuse_doubtful_counts(one_hot, [name for name in numbered if name not in one_hot], rows)
            what = "numbers" if not set(one_hot) <= set(binary) else "0 and 1"
            first = next((row[one_hot[0]], place) for place, row in rows if row.get(one_hot[0]) not in (None, ""))
            _refuse_names_beside(free, one_hot, rows, f"of {what} ('{first[0]}' in {first[1]})")
        if parted := [name for name in one_hot if plain(name) in _SPLITS]:
            raise ValueError(
                f"'{parted[0]}' holds 0 and 1: a class, or the parts that the rows are divided into? Name the columns "
                "of classes, each with --labels-column"
            )
        for name in [name for name in free if one_hot and name not in one_hot]:
            if not is_measure(name):
                _refuse_almost_binary(name, rows)
    if not named and not one_hot:
        words = _with_words(free, rows)
        named = words[0] if len(words) == 1 and words[0] not in marked and not is_site(words[0]) else ""
    if not named and not one_hot:
        raise _unclear(columns, rows, image, labels, marked)
    confidence = by_name.get("confidence", "") if plain(named) == "labelname" else ""
    more_labels = tuple(labels[1:]) if named else ()
    used = {image, split, ignored, named, confidence, *one_hot, *more_labels}
    left_alone = tuple(name for name in columns if name not in used)
    marks = ""
    if any(name in marked for name in one_hot):
        marks = marks_said([found for name in one_hot if (found := marks_in(name, rows)) is not None])
    are_counts = len(one_hot) > 0 and any(holds_counts(name, rows) for name in one_hot)
    return Columns(image, named, one_hot, ignored, split, confidence, marks, left_alone, more_labels, are_counts)


def _named(
    free: Sequence[str], rows: Sequence[Row], of_classes: Sequence[str], marked: Mapping[str, ColumnOfMarks]
) -> str:
    """The column whose header is a word for labels; empty where there is none.

    Raises:
        OptionsNeeded: it is one of several of that word.
    """
    for name in _by_header(free, rows):
        # Among several it is a class like the others: in German a Tag is a day, and in English art may be shown.
        is_class = name in marked or (name in of_classes and plain(name) not in WORDS_FOR_INDICES)
        if is_class and len(of_classes) + len(marked) > 1:
            continue
        alike = [other for other in numbered_alike(name, free) if other == name or other in _with_words(free, rows)]
        if len(alike) > 1:
            raise _ask_for_all(alike, name)
        return name
    return ""


def _by_header(columns: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """The columns that may hold labels by their headers; numbers in ``class 1`` and ``class 2`` are no names."""
    found = [name for name in names_of_labels(columns) if not is_time(name, rows)]
    return [name for name in found if bare(name) in LABELS or _holds_words(name, rows)]


def _ask_for_all(alike: Sequence[str], alone: str) -> OptionsNeeded:
    """The question whether several columns of names are meant, or one."""
    reason = f"columns {' and '.join(map(_in_quotes, alike))} may together say what the photographs show"
    return OptionsNeeded(reason, naming(alike), "if they do", other=(f"if only '{alone}' does", naming([alone])))


def _hold_names(labels: Sequence[str], of_classes: Sequence[str], rows: Sequence[Row]) -> bool:
    """Whether several columns that the user named hold names of classes: words, some of them, or nothing."""
    if len(labels) < 2 or not {*labels}.isdisjoint(of_classes):
        return False
    filled = [name for name in labels if any(row.get(name) not in (None, "") for _, row in rows)]
    return bool(filled) and all(_holds_words(name, rows) for name in filled)


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
    mark, there = next(iter(next(column.yes for column in columns if column.yes).values()))
    _refuse_names_beside(free, names, rows, f"of marks ('{mark}' in {there})")
    return tuple(names)


def _refuse_names_beside(free: Sequence[str], names: Sequence[str], rows: Sequence[Row], what: str) -> None:
    """Raise OptionsNeeded where a column of words beside columns of classes may say what photographs show instead.

    Args:
        free: the columns that may hold labels.
        names: those that may stand for classes; beside one alone, any words may.
        what: what these hold.
    """
    words = [name for name in free if name not in names and _may_name_classes(name, rows, any_words=len(names) == 1)]
    if words:
        place, cell = next((place, row[words[0]]) for place, row in rows if row.get(words[0]))
        alike = _alike(words[0], [name for name in _with_words(free, rows) if name not in names], rows)
        verb = "holds" if len(alike) == 1 else "hold"
        columns = counted(len(names), "column") if len(names) > 1 else f"column '{names[0]}'"
        raise OptionsNeeded(
            f"column '{words[0]}' ('{cell}' in {place}) or the {columns} {what} may say what the photographs show",
            naming(names),
            "if each column of these stands for a class" if len(names) > 1 else f"if '{names[0]}' is a class",
            other=(f"if {' and '.join(map(_in_quotes, alike))} {verb} the names of what they show", naming(alike)),
        )


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


def _may_name_classes(column: str, rows: Sequence[Row], *, any_words: bool = False) -> bool:
    """Whether nearly all cells of a column hold words that recur: names of classes do, but not remarks and dates.

    Args:
        any_words: whether words that do not recur may be names too.
    """
    cells = [str(cell) for _, row in rows if (cell := row.get(column)) not in (None, "")]
    if is_site(column) or is_remark(column) or is_time(column, rows) or columns_of_images([column], rows):
        return False
    if len(set(cells)) < 2 or len(cells) < (0 if any_words else _NEARLY_ALL) * len(rows):
        return False
    recur = any_words or 2 * len(set(cells)) <= len(cells)
    return recur and all(any(map(str.isalpha, cell)) for cell in cells)


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
    label = labels[0] if labels else next(iter(_by_header(free, rows)), "")
    other: tuple[str, list[str]] | None = None
    marked = _marked(free, (), rows) if marked is None else marked
    if not label and len(marked) < 2 and not any(_is_binary(name, rows) for name in free):
        found = [name for name in _with_words(free, rows) if name not in columns_of_images(free, rows)]
        found.sort(key=lambda name: (is_remark(name), is_site(name)))  # which seldom say what is shown
        words = [name for name in found if not (name in marked or is_site(name) or is_remark(name))] or found
        is_open = len(found) != 1 or found[0] in marked or is_site(found[0])
        if is_open:
            reasons.append(f"no column 'labels' and no columns of 0 and 1 among {_some(columns)}")
        if not words:
            return ValueError(f"{'; '.join(reasons)}; add a column 'labels' with what each photograph shows")
        label = words[0]
        if label in marked:
            provided.append(f"a mark in '{label}' says that a photograph shows that")
            options += ["--labels-column", label]
        elif is_open:
            alike = _alike(label, [name for name in words if name not in marked], rows)
            says = "" if provided else "says " if len(alike) == 1 else "say "
            provided.append(f"{' and '.join(map(_in_quotes, alike))} {says}what they show")
            if len(alike) > 1:
                other = (f"if only '{label}' does", [*options, *naming([label])])
            options += naming(alike)
    if separator := _likely_separator(label, rows):
        options += ["--separator", separator]
    return OptionsNeeded("; ".join(reasons), options, f"if {' and '.join(provided)}", other=other)


def _alike(column: str, others: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """The columns that seem to hold labels together: of one word with numbers, else those that share values."""
    if len(numbered := numbered_alike(column, others)) > 1:
        return numbered
    values = {name: {str(row[name]) for _, row in rows if row.get(name)} for name in others}
    shared = [name for name in others if name == column or not (is_site(name) or is_remark(name))]
    return [name for name in shared if values[name] & values[column]]


def _in_quotes(name: str) -> str:
    return f"'{name}'"


def _with_words(columns: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """The columns that hold more than numbers and times."""
    words = [name for name in columns if not _NO_CLASS.fullmatch(plain(name)) and _holds_words(name, rows)]
    return [name for name in words if not is_time(name, rows)]


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


def one_hot_value(cell: Any, *, marks: bool = False, counts: bool = False) -> int:
    """The 1, 0 or -1 of a cell in a one-hot column; 0 for an empty cell. Raises ValueError for anything else.

    Args:
        marks: whether it may hold a mark.
        counts: whether it may hold a count, which is read as 1 where it is above 0.
    """
    text = "" if cell is None else str(cell).strip().lower()
    if not _BINARY.fullmatch(text):
        if counts and (count_in(cell) or 0) > 0:
            return 1
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
