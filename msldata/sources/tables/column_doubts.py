"""What the columns of a table may say in two ways: the question, and the options that settle it."""

from __future__ import annotations

from collections.abc import Sequence

from msldata.contract.listing import Row, columns_of_images
from msldata.errors import OptionsNeeded, counted
from msldata.sources.labels.separators import PROVEN, SUSPECT_EVERYWHERE
from msldata.sources.tables.column_contents import BINARY, NUMERIC, Contents, may_name_classes, tells_apart, text_of
from msldata.sources.tables.column_words import is_measure, is_remark, is_site, numbered_alike
from msldata.sources.tables.count_columns import count_in, is_empty
from msldata.sources.tables.mark_columns import naming, refuse_almost_marks, refuse_doubtful_marks

_SHOWN = 12
_CELLS_SHOWN = 4


def some(names: Sequence[str]) -> str:
    """The first columns, and how many more there are."""
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def in_quotes(names: Sequence[str]) -> str:
    return " and ".join(f"'{name}'" for name in names)


def ask_for_all(alike: Sequence[str], alone: str) -> OptionsNeeded:
    """The question whether several columns of names are meant, or one."""
    reason = f"columns {in_quotes(alike)} may together say what the photographs show"
    return OptionsNeeded(reason, naming(alike), "if they do", other=(f"if only '{alone}' does", naming([alone])))


def refuse_names_beside(contents: Contents, names: Sequence[str], what: str) -> None:
    """Raise OptionsNeeded where a column of words beside columns of classes may say what photographs show instead.

    Args:
        contents: of the table.
        names: the columns that may stand for classes; beside one alone, any words may.
        what: what these hold.
    """
    rows, others = contents.rows, [name for name in contents.free if name not in names]
    words = [name for name in others if may_name_classes(name, rows, any_words=len(names) == 1)]
    if words:
        place, cell = next((place, row[words[0]]) for place, row in rows if row.get(words[0]))
        alike = _alike(words[0], [name for name in contents.with_words() if name not in names], rows)
        verb = "holds" if len(alike) == 1 else "hold"
        columns = counted(len(names), "column") if len(names) > 1 else f"column '{names[0]}'"
        raise OptionsNeeded(
            f"column '{words[0]}' ('{cell}' in {place}) or the {columns} {what} may say what the photographs show",
            naming(names),
            "if each column of these stands for a class" if len(names) > 1 else f"if '{names[0]}' is a class",
            other=(f"if {in_quotes(alike)} {verb} the names of what they show", naming(alike)),
        )


def refuse_unclear_marks(contents: Contents, names: Sequence[str], beside: Sequence[str]) -> None:
    """Refuse marks that can be read in two ways in the columns ``names``, and columns ``beside`` them that are
    almost of marks."""
    marked = contents.marked
    refuse_doubtful_marks([marked[name] for name in names if name in marked])
    others = [column for column in marked.values() if column.yes]
    for name in beside:
        if name not in marked and others:
            refuse_almost_marks(name, contents.rows, others)


def refuse_almost_of_classes(names: Sequence[str], rows: Sequence[Row], *, counts: bool) -> None:
    """Raise ValueError for columns of 0 and 1 with a few other cells: passing such a column over would lose a class.

    Args:
        names: the columns that are not taken for columns of classes.
        rows: all rows of the table.
        counts: whether the others hold counts; then this is about columns of counts with a few words, too.
    """
    found = []
    of_counts = False
    for column in names:
        if is_measure(column) or is_remark(column) or is_site(column):
            continue
        filled = [(place, cell) for place, cells in rows if not is_empty(cell := text_of(cells, column))]
        odd = [(place, cell) for place, cell in filled if not BINARY.fullmatch(cell.lower())]
        holds_words = not all(NUMERIC.fullmatch(cell) for _, cell in odd)
        if counts and holds_words:
            odd = [(place, cell) for place, cell in odd if count_in(cell) is None]
        if odd and len(odd) * 2 < len(filled):
            found += [f"{place}: column '{column}' holds {cell!r}" for place, cell in odd]
            of_counts |= counts and holds_words
    if found:
        among = "counts" if of_counts else "0 and 1"
        more = f" ({len(found) - _CELLS_SHOWN:,} more like these)" if len(found) > _CELLS_SHOWN else ""
        raise ValueError(
            f"{'; '.join(found[:_CELLS_SHOWN])}{more} among {among}; mend {'it' if len(found) == 1 else 'them'}, or "
            "name the columns of classes, each with --labels-column"
        )


def unclear(
    columns: Sequence[str], image: str | None, labels: Sequence[str], contents: Contents
) -> OptionsNeeded | ValueError:
    """The error for columns that cannot be guessed: with every option that is needed, as far as it can be seen.

    Args:
        columns: all.
        image: the one with the images, if it is known.
        labels: those that the user named.
        contents: of the columns that may hold labels.
    """
    rows = contents.rows
    reasons, provided, options = [], [], []
    if image is None:
        alike = columns_of_images(columns, rows)
        reasons.append(
            f"the names of image files stand in several columns ({some(alike)})"
            if alike
            else f"no column 'image' among {some(columns)}, and none full of names of image files"
        )
        image = (alike or contents.with_words() or list(columns))[0]
        provided.append(f"'{image}' names the photographs")
        options += ["--image-column", image]
    label = labels[0] if labels else next((name for name in contents.named_after_labels() if name != image), "")
    other: tuple[str, list[str]] | None = None
    marked = contents.marked
    if not label and len(marked) < 2 and not contents.binary:
        found = [name for name in contents.with_words() if name not in (image, *columns_of_images(columns, rows))]
        # Which seldom say what is shown; a number or title of each photograph never does.
        found.sort(key=lambda name: (is_remark(name), is_site(name), is_measure(name) or tells_apart(name, rows)))
        words = [name for name in found if not (name in marked or is_site(name) or is_remark(name))] or found
        is_open = len(found) != 1 or found[0] in marked or is_site(found[0])
        if is_open:
            reasons.append(f"no column 'labels' and no columns of 0 and 1 among {some(columns)}")
        if not words:
            return ValueError(f"{'; '.join(reasons)}; add a column 'labels' with what each photograph shows")
        label = words[0]
        if label in marked:
            provided.append(f"a mark in '{label}' says that a photograph shows that")
            options += ["--labels-column", label]
        elif is_open:
            alike = _alike(label, [name for name in words if name not in marked], rows)
            says = "" if provided else "says " if len(alike) == 1 else "say "
            provided.append(f"{in_quotes(alike)} {says}what they show")
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


def _likely_separator(column: str, rows: Sequence[Row]) -> str:
    """What stands between names in the column's cells where no separator is proven; empty where nothing does."""
    cells = [str(row.get(column)) for _, row in rows if column]
    cells = [cell for cell in cells if not cell.startswith(("[", "{", "("))]
    if any(character in cell for cell in cells for character in PROVEN):
        return ""
    return next((character for character in SUSPECT_EVERYWHERE if any(character in cell for cell in cells)), "")
