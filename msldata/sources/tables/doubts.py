"""What a table may mean in two ways, beside its labels: which of several tables counts, and what a mark is about; and
all such questions about a table in one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from msldata.errors import BadInputError, OptionsNeeded, UserError
from msldata.sources.source import SourceOptions
from msldata.storage import Storage


def refuse_several_tables(folder: Storage, files: Mapping[str, Sequence[str]], usual: Sequence[str]) -> None:
    """Raise UserError where a folder holds several tables of usual names, of which one would pass for all.

    Args:
        folder: where they are.
        files: what would be read of each split.
        usual: names that tables have in the folder of their images.
    """
    for name in (name for names in files.values() for name in names):
        below, _, base = name.rpartition("/")
        beside = [f"{below}/{other}" if below else other for other in usual if base in usual and other != base]
        if others := [other for other in beside if folder.exists(other)]:
            raise UserError(
                f"{folder.url}: {' and '.join([name, *others])} are tables; name the file that says what the "
                "photographs show, or move the others away"
            )


def refuse_marked_rows(where: str, column: str, values: Iterable[Any]) -> None:
    """Raise BadInputError where a column of ignored class indices may hold a mark for each row instead.

    Args:
        where: the table, for messages.
        column: its name; empty where there is none.
        values: its cells.
    """
    cells = {str(value).strip() for value in values if value not in (None, "")} if column else set()
    if cells and cells <= {"0", "1", "0.0", "1.0"}:
        reason = f"column '{column}' holds 0 and 1: the class that is ignored, or whether the row is?"
        raise BadInputError(where, reason, "write [0] for a class; rename the column if it marks rows")


Read = TypeVar("Read")
_MOST = 4
"""Doubts that are followed up, one after another."""


def all_at_once(read: Callable[[SourceOptions], Read], options: SourceOptions) -> Read:
    """Read a table; where that is in doubt, look what would be in doubt next, so that all of it is asked in one go.

    Args:
        read: reads it with options, and raises OptionsNeeded at the first doubt.
        options: those that were given.

    Raises:
        OptionsNeeded: with every doubt, and the options that settle all of them.
    """
    try:
        return read(options)
    except OptionsNeeded as error:
        reasons, asked = _followed_up(error, read, options, _MOST)
    if len(reasons) == 1:
        raise asked
    where = reasons[0].partition(": ")[0] + ": "
    said = "; ".join(f"({number}) {reason.removeprefix(where)}" for number, reason in enumerate(reasons, 1))
    said = f"{where}{len(reasons)} doubts: {said}"
    raise OptionsNeeded(said, asked.options, asked.provided, asked.instead_of, asked.other)


def _followed_up(
    first: OptionsNeeded, read: Callable[[SourceOptions], Any], options: SourceOptions, most: int
) -> tuple[list[str], OptionsNeeded]:
    """All reasons for doubt after the answers to the first one, and one error with the options for all of them."""
    reasons, needed, other = [first.reason], first, first.other
    if (after := _after(first.options, read, options, most)) is not None:
        more, further = after
        reasons += more
        provided = _together(first.provided, further.provided)
        words, instead_of = [*first.options, *further.options], [*first.instead_of, *further.instead_of]
        if other is None and further.other is not None:
            other = (_together(first.provided, further.other[0]), [*first.options, *further.other[1]])
        needed = OptionsNeeded(first.reason, words, provided, instead_of)
    if first.other is not None and (after := _after(first.other[1], read, options, most)) is not None:
        more, further = after
        reasons += [reason for reason in more if reason not in reasons]
        other = (_together(first.other[0], further.provided), [*first.other[1], *further.options])
    return reasons, OptionsNeeded(first.reason, needed.options, needed.provided, needed.instead_of, other)


def _after(
    words: Sequence[str], read: Callable[[SourceOptions], Any], options: SourceOptions, most: int
) -> tuple[list[str], OptionsNeeded] | None:
    """What is in doubt once options settle the doubt before; None where nothing is."""
    options = with_words(options, words)
    try:
        read(options)
    except OptionsNeeded as error:
        return _followed_up(error, read, options, most - 1) if most else None
    except (UserError, FileNotFoundError):  # which may come of an answer that is not meant
        return None
    return None


def with_words(options: SourceOptions, words: Sequence[str]) -> SourceOptions:
    """Options with others in their place, as words of a command line."""
    given: dict[str, list[str]] = {}
    for option, value in zip(words[::2], words[1::2], strict=True):
        given.setdefault(option.removeprefix("--").replace("-", "_"), []).append(value)
    columns = given.pop("labels_column", None)
    changed = replace(options, **{name: values[0] for name, values in given.items()})  # type: ignore[arg-type]
    return changed if columns is None else replace(changed, labels_columns=tuple(columns))


def _together(*conditions: str) -> str:
    return ", and ".join(filter(None, conditions))
