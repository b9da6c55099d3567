"""Which columns of a table hold what: said by the user, or guessed from names and contents, and printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from msldata.contract.listing import Row, bare, guess_image_column
from msldata.contract.records import quoted
from msldata.errors import OptionsNeeded, UserError, closest, counted
from msldata.sources.source import SourceOptions
from msldata.sources.spelling import composed
from msldata.sources.tables.column_contents import BINARY, Contents, contents_of, holds_words
from msldata.sources.tables.column_doubts import (
    ask_for_all,
    in_quotes,
    refuse_almost_of_classes,
    refuse_names_beside,
    refuse_unclear_marks,
    some,
    unclear,
)
from msldata.sources.tables.column_words import is_site, may_have_several_rows, numbered_alike
from msldata.sources.tables.count_columns import count_in, holds_counts, refuse_doubtful_counts
from msldata.sources.tables.mark_columns import (
    ColumnOfMarks,
    marks_in,
    marks_said,
    refuse_mixed_marks,
    value_of_mark,
)

_IGNORED = ("ignored", "ignore", "ignoredlabels")
_SPLITS = ("split", "subset", "set", "partition", "phase", "fold")
_SPLIT_WORDS = frozenset("train training val valid validation dev test testing trainval".split())


@dataclass(frozen=True, slots=True)
class Columns:
    """What the columns of a table hold."""

    image: str
    labels: str = ""
    """The column with all labels, or with the first ones; empty: ``one_hot`` has a column per class."""
    one_hot: tuple[str, ...] = ()
    ignored: str = ""
    split: str = ""
    confirmed: str = ""
    """Of a table with a row per label: 1 where it counts. In Open Images people confirmed the class or ruled it out; in
    what ``msl predict`` writes a score reaches its threshold, or does not."""
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
        labels = in_quotes(self.of_names)
        if self.counts:
            labels = f"counts of {counted(number, 'class')}: above 0 is present{', ' * bool(self.marks)}{self.marks}"
        elif not labels:
            labels = f"{counted(number, 'column')} of {f'marks ({self.marks})' if self.marks else '0 and 1'}"
        labels += f" where '{self.confirmed}' is 1" if self.confirmed else ""
        said = f"images in column '{self.image}', labels in {labels}"
        said += f", {reading}"
        said += f"; splits in '{self.split}'" if self.split and self.split != "split" else ""
        if self.left_alone:
            said += f"; columns left alone: {some(self.left_alone)}"
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
        reason = f"{where}: {said}; there are {some(columns)}"
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
    by_word = {bare(name): name for name in reversed(columns)}
    image = image or guess_image_column(columns, rows)
    split = _split_column(by_word, rows)
    ignored = next((by_word[word] for word in _IGNORED if word in by_word), "")
    contents = contents_of(
        [name for name in columns if name not in (image, split, ignored)], rows, read_marks=read_marks
    )
    if image is None:
        raise unclear(columns, None, labels, contents)
    named, one_hot = _as_said(labels, contents) if labels else _guessed(by_word, contents)
    if not named and not one_hot:
        raise unclear(columns, image, labels, contents)
    confirmed = _confirmed(named, by_word)
    more_labels = tuple(labels[1:]) if named else ()
    used = {image, split, ignored, named, confirmed, *more_labels, *one_hot}
    found = [marks for name in one_hot if (marks := marks_in(name, rows)) is not None]
    return Columns(
        image,
        named,
        one_hot,
        ignored,
        split,
        confirmed,
        marks=marks_said(found) if not contents.marked.keys().isdisjoint(one_hot) else "",
        left_alone=tuple(name for name in columns if name not in used),
        more_labels=more_labels,
        counts=any(holds_counts(name, rows) for name in one_hot),
    )


def _as_said(labels: Sequence[str], contents: Contents) -> tuple[str, tuple[str, ...]]:
    """The (first) column of labels, or the columns of classes, where the user named them."""
    of_classes = (*contents.of_classes, *contents.marked)
    if len(labels) == 1:  # one column of 0 and 1 that is called after a class holds that class
        in_names = not contents.may_be_a_class(labels[0])
    else:
        in_names = _hold_names(labels, of_classes, contents.rows)
    named, one_hot = (labels[0], ()) if in_names else ("", tuple(labels))
    if contents.marked:
        marked = [name for name in labels if name in contents.marked]
        refuse_unclear_marks(contents, marked, [labels[0]] if in_names else [])
    return named, one_hot


def _hold_names(labels: Sequence[str], of_classes: Sequence[str], rows: Sequence[Row]) -> bool:
    """Whether several columns that the user named hold names of classes: words, some of them, or nothing."""
    if not {*labels}.isdisjoint(of_classes):
        return False
    filled = [name for name in labels if any(row.get(name) not in (None, "") for _, row in rows)]
    return bool(filled) and all(holds_words(name, rows) for name in filled)


def _guessed(by_word: Mapping[str, str], contents: Contents) -> tuple[str, tuple[str, ...]]:
    """The column of labels, or the columns of classes; neither where nothing tells.

    Raises:
        OptionsNeeded, ValueError: as `choose_columns`.
    """
    if by_word.keys() >= _PREDICTED:
        return by_word["predicted"], ()
    if named := _named(contents):
        binary = contents.binary
        if named in binary and len(binary) > 1:
            raise ValueError(
                f"'{named}' may hold class indices or be one of {len(binary)} columns of 0 and 1 ({some(binary)}); "
                f"say which with --labels-column '{named}', or with a --labels-column for each"
            )
        return named, ()
    if one_hot := _columns_of_classes(contents):
        return "", one_hot
    words = contents.with_words()
    alone = len(words) == 1 and words[0] not in contents.marked and not is_site(words[0])
    return words[0] if alone else "", ()


_PREDICTED = {"scores", "predicted", "thresholds"}
"""What a line of JSON of ``msl predict`` has: the names of the predicted classes in one of them."""


def _named(contents: Contents) -> str:
    """The column whose header is a word for labels; empty where there is none.

    Raises:
        OptionsNeeded: it is one of several of that word.
    """
    for name in contents.named_after_labels():
        # Among several it is a class like the others: in German a Tag is a day, and in English art may be shown.
        if contents.may_be_a_class(name) and len(contents.of_classes) + len(contents.marked) > 1:
            continue
        alike = [one for one in numbered_alike(name, contents.free) if one == name or one in contents.with_words()]
        if len(alike) > 1:
            raise ask_for_all(alike, name)
        return name
    return ""


def _columns_of_classes(contents: Contents) -> tuple[str, ...]:
    """The columns that each stand for a class, of 0 and 1, of counts or of marks; empty where there are none.

    Raises:
        OptionsNeeded, ValueError: they may say something else.
    """
    rows = contents.rows
    if any(column.yes for column in contents.marked.values()):
        one_hot = _columns_of_marks(contents)
    else:
        one_hot = contents.of_classes
        if one_hot:
            are_binary = set(one_hot) <= set(contents.binary)
            if not are_binary:
                refuse_doubtful_counts(one_hot, [name for name in contents.numbered if name not in one_hot], rows)
            what = "0 and 1" if are_binary else "numbers"
            first = next((row[one_hot[0]], place) for place, row in rows if row.get(one_hot[0]) not in (None, ""))
            refuse_names_beside(contents, one_hot, f"of {what} ('{first[0]}' in {first[1]})")
    if parted := [name for name in one_hot if bare(name) in _SPLITS]:
        raise ValueError(
            f"'{parted[0]}' holds 0 and 1: a class, or the parts that the rows are divided into? Name the columns "
            "of classes, each with --labels-column"
        )
    counts = any(holds_counts(name, rows) for name in one_hot)
    refuse_almost_of_classes([name for name in contents.free if name not in one_hot], rows, counts=counts)
    return one_hot


def _columns_of_marks(contents: Contents) -> tuple[str, ...]:
    """The columns of classes in a table with columns of marks; none where there is but one column of them.

    Raises:
        OptionsNeeded: they may say something else. ValueError: marks that can be read in two ways.
    """
    names = [name for name in contents.free if name in contents.marked or name in contents.binary]
    found = [contents.marked.get(name) or marks_in(name, contents.rows) for name in names]
    columns = [marks or ColumnOfMarks(name, {}, {}) for name, marks in zip(names, found, strict=True)]
    refuse_unclear_marks(contents, names, [name for name in contents.free if name not in names])
    if len(names) < 2:
        return ()
    refuse_mixed_marks(columns)
    mark, there = next(iter(next(column.yes for column in columns if column.yes).values()))
    refuse_names_beside(contents, names, f"of marks ('{mark}' in {there})")
    return tuple(names)


def _confirmed(named: str, by_word: Mapping[str, str]) -> str:
    """The column that says whether a row's label counts, in the tables that have one; else empty."""
    match bare(named):
        case "labelname":  # of Open Images
            return by_word.get("confidence", "")
        case "class" if {"score", "predicted", "threshold"} <= by_word.keys():  # of `msl predict`
            return by_word["predicted"]
    return ""


def one_hot_value(cell: Any, *, marks: bool = False, counts: bool = False) -> int:
    """The 1, 0 or -1 of a cell in a one-hot column; 0 for an empty cell. Raises ValueError for anything else.

    Args:
        marks: whether it may hold a mark.
        counts: whether it may hold a count, which is read as 1 where it is above 0.
    """
    text = "" if cell is None else str(cell).strip().lower()
    if not BINARY.fullmatch(text):
        if counts and (count_in(cell) or 0) > 0:
            return 1
        if marks:
            return value_of_mark(cell)
        raise ValueError(f"{cell!r} is not 0, 1 or -1")
    return {"1": 1, "t": 1, "-": -1}.get(text[:1], 0)


def _split_column(by_word: dict[str, str], rows: Sequence[Row]) -> str:
    if "split" in by_word:
        return by_word["split"]
    for name in _SPLITS[1:]:
        # A word that means other things too: only with the usual names in it.
        if name in by_word and {str(cells.get(by_word[name])).lower() for _, cells in rows} <= _SPLIT_WORDS:
            return by_word[name]
    return ""
