"""What all label values of a dataset look like, before anything is decided."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from msldata.errors import UserError
from msldata.sources.labels.values import WHOLE_CELL, Label, parse_value, separators_in

Example = tuple[str, tuple[Label, ...]]
"""The parts of a value, and the place where it occurs."""

_VECTOR_TEXTS = frozenset({"0", "1", "-1", "0.0", "1.0", "-1.0"})
_DECIMAL_COMMA = re.compile(r"\s*[+-]?\d+,0+\s*")


@dataclass(slots=True)
class LabelSurvey:
    """What all label values of a dataset look like; the surveys of its parts can be merged.

    A value is kept once, with the place where it was first seen; vectors of -1, 0 and 1 are only counted.
    """

    separator: str | None = None
    cells: dict[str, str] = field(default_factory=dict)
    """Text values and single numbers, with their places."""
    lists: dict[tuple[Label, ...], str] = field(default_factory=dict)
    """Lists of anything but -1, 0 and 1."""
    vectors: dict[int, tuple[Example, ...]] = field(default_factory=dict)
    """By length, two vectors with their places; first, if there is one, a vector that cannot be a list of indices."""
    repeats: bool = False
    """Whether a vector holds a number twice or truth values, which a list of class indices never does."""
    values: Counter[int] = field(default_factory=Counter)
    """How often -1, 0 and 1 occur in the vectors."""
    num_missing: int = 0
    num_values: int = 0
    num_lists: int = 0
    """Values with several parts."""
    num_separated: int = 0
    """Texts that hold the separator that was named."""
    num_decimal_commas: int = 0
    """Of the values with several parts, the texts such as ``1,0`` that may be one number with a decimal comma."""

    def add(self, place: str, value: Any) -> None:
        """Take a value into account. Raises ValueError when it cannot be a label."""
        parts = parse_value(value, self.separator)
        if parts and len(parts) > 1 and all(str(part) in _VECTOR_TEXTS for part in parts):
            parts = tuple(int(float(part)) for part in parts)
        self.num_values += 1
        if isinstance(value, str) and self.separator not in (None, WHOLE_CELL):
            self.num_separated += any(one in value for one in separators_in(self.separator))
        if not parts:
            self.num_missing += 1
            return
        if len(parts) > 1:
            self.num_lists += 1
            if isinstance(value, str) and self.separator is None and _DECIMAL_COMMA.fullmatch(value):
                self.num_decimal_commas += 1
        if len(parts) > 1 and {-1, 0, 1}.issuperset(parts):
            proof = len(set(parts)) < len(parts) or (isinstance(value, list) and isinstance(value[0], bool))
            self._keep(len(parts), ((place, parts),), proof)
            self.values.update(int(part) for part in parts)
        elif len(parts) == 1 and isinstance(value, str | int | float) and not str(value).strip().startswith(("[", "{")):
            self.cells.setdefault(str(parts[0]), place)
        else:
            self.lists.setdefault(parts, place)

    def merge(self, other: LabelSurvey) -> None:
        """Take the values of another part into account."""
        self.cells = other.cells | self.cells
        self.lists = other.lists | self.lists
        for length, examples in other.vectors.items():
            self._keep(length, examples, other.repeats)
        self.values.update(other.values)
        self.num_decimal_commas += other.num_decimal_commas
        self.num_lists += other.num_lists
        self.num_separated += other.num_separated
        self.num_missing += other.num_missing
        self.num_values += other.num_values

    def _keep(self, length: int, examples: tuple[Example, ...], proof: bool) -> None:
        kept = self.vectors.get(length, ())
        if proof and not self.repeats:
            self.vectors[length] = (*examples, *kept)[:2]
        elif len(kept) < 2:
            self.vectors[length] = (*kept, *examples)[:2]
        self.repeats |= proof

    def loose(self) -> list[tuple[str, tuple[Label, ...]]]:
        """Every distinct value that is not a vector, as (place, parts)."""
        return [(place, (cell,)) for cell, place in self.cells.items()] + [
            (place, parts) for parts, place in self.lists.items()
        ]

    def atoms(self) -> set[Label]:
        """Everything that occurs alone in a cell or in a list, except vectors."""
        return {part for _, parts in self.loose() for part in parts}


def two_ways(where: str, what: str, samples: Sequence[tuple[str, Any]], settles: str) -> UserError:
    shown = list(dict.fromkeys(f"{place} is labelled {text_of(value)}" for place, value in samples))[:2]
    return UserError(f"{where}: the labels are {what}: {', '.join(shown)}; {settles}")


def text_of(value: Any) -> str:
    text = f"[{', '.join(map(str, value))}]" if isinstance(value, tuple) else f"'{value}'"
    return text if len(text) <= 80 else f"{text[:80]}…"
