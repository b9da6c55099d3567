"""Marks that say yes and no, as people put them into tables: ``x``, ``✓``, ``ja``, ``1``, and their opposites."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Any

from msldata.sources.labels.values import MISSING

_YES = {
    "x": ("x", "×"),
    "✓": ("✓", "✔", "✔️", "☑", "✅"),
    "+": ("+",),
    "1": ("1",),
    "ja": ("ja", "j"),
    "yes": ("yes", "y"),
    "true": ("true",),
    "wahr": ("wahr",),
    "oui": ("oui",),
    "vrai": ("vrai",),
    "si": ("si", "sí", "sì"),
    "sim": ("sim",),
}
"""How a mark of each kind may be written, in lower case."""
_KINDS = {text: kind for kind, texts in _YES.items() for text in texts}
_CROSSES = frozenset("✗✘❌☒")
"""They say no beside ✓; beside x nobody can tell."""
_DASHES = frozenset("-–—")
_NO = _CROSSES | _DASHES | {"☐", "0", "no", "n", "nein", "non", "não", "nee", "false", "falsch", "faux", "falso"}
_BLANK = frozenset(text.lower() for text in MISSING)
_LONGEST = 40
"""Letters of a cell that may be a mark with spaces around it."""
_NO_MARK = "…"
_ROUND = re.compile(r"([01])[.,]0*")
TRUTHS = (
    frozenset(text for text in {*_KINDS, *_NO} if text.isalpha() and text not in _YES["x"]) | _CROSSES | {*_YES["✓"]}
)
"""Words and signs that are yes or no in somebody's language, and so name no class; x may."""


def plain_mark(cell: Any) -> str:
    """A cell as marks are compared: in lower case, without spaces around it, ``1.0`` as ``1``."""
    if not (cell is None or isinstance(cell, str | int | float)) or (isinstance(cell, str) and len(cell) > _LONGEST):
        return _NO_MARK
    text = "" if cell is None else unicodedata.normalize("NFC", str(cell)).strip().lower()
    match = _ROUND.fullmatch(text)
    return match[1] if match else text


def kind_of_yes(cell: Any) -> str:
    """The kind of mark with which a cell says yes; empty where it does not."""
    return _KINDS.get(plain_mark(cell), "")


def says_no(cell: Any) -> bool:
    """Whether a cell says no with a mark of its own; an empty one does not."""
    return plain_mark(cell) in _NO


def is_blank(cell: Any) -> bool:
    """Whether a cell holds nothing, in any of the ways in which programs write that."""
    return plain_mark(cell) in _BLANK


def is_dash(cell: Any) -> bool:
    """Whether it is a no that may as well stand for nothing."""
    return plain_mark(cell) in _DASHES


def are_doubtful_together(cells: Iterable[Any]) -> bool:
    """Whether marks of one column leave open which of them says yes: x and ✓, x and ✗."""
    plain = {plain_mark(cell) for cell in cells}
    kinds = {_KINDS[text] for text in plain if text in _KINDS}
    return "x" in kinds and (len(kinds) > 1 or not plain.isdisjoint(_CROSSES))
