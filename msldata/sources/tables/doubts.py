"""What a table may mean in two ways, beside its labels: which of several tables counts, and what a mark is about."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from msldata.errors import BadInputError, UserError
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
