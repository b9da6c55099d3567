"""What one label value holds: text, a number, a list in any notation, or an annotation tool's export."""

from __future__ import annotations

import ast
import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

Label = int | str
"""A class, by index or by name."""

WHOLE_CELL = "none"
"""The separator that means: a cell is one name, whatever is in it."""

# What pandas, R and Python write for a missing value.
MISSING = frozenset({"", "nan", "NaN", "-nan", "-NaN", "NA", "<NA>", "N/A", "n/a", "#N/A", "null", "NULL", "None"})
NOTHING = frozenset(
    "none nothing empty background negative negatives blank nichts leer keine keins hintergrund negativ rien vide "
    "aucun aucune fond nada vacío vacio ninguno ninguna fondo niente vuoto nessuno sfondo niets leeg geen "
    "achtergrond".split()
)
"""What people call a folder or class of photographs that show none of the others; it may be a class all the same."""
_MARK = re.compile(r"[?\-–—_.*/]+")
"""What people write where they have nothing to say: no class is called by such marks alone."""
CHOICES = frozenset(
    "choices labels taxonomy rectanglelabels polygonlabels brushlabels keypointlabels ellipselabels".split()
)
"""The fields in which Label Studio keeps the chosen labels."""
_NAMES = CHOICES | {"label", "category", "categories", "class", "name"}
"""Those, and the fields in which the lists of objects of other programs have their classes."""
_NUMBERS = re.compile(r"\s*[+-]?\d{1,9}(\.0*)?(\s*[,;|\s]\s*[+-]?\d{1,9}(\.0*)?)+\s*")
_MAX_LIST_TEXT = 1 << 20
_WORD = re.compile(r"\s([^\W\d_]+)\s")


def parse_value(value: Any, separator: str | None = None) -> tuple[Label, ...] | None:
    """The parts of a label value; None where there is nothing.

    A list may be written as a list, or as text in the notation of JSON, Python or numpy. A text of numbers is split; a
    text of names is split only by ``separator``.

    Args:
        value: text, a number, a list, what Label Studio chose, or a mapping of class names to 0 and 1.
        separator: what to split a text at, see ``separators_in``; ``none``: a text is one part.

    Raises:
        ValueError: anything else, such as a score or a mapping of other values.
    """
    if value is None:
        return None
    if isinstance(value, str):
        return _parse_text(value.strip(), separator)
    if isinstance(value, bool):
        raise ValueError(f"labels are {value}, expected class names, class indices or a vector of 0 and 1")
    if isinstance(value, int | float):
        return None if value != value else (_whole(value),)
    if isinstance(value, Mapping):
        return _parse_mapping(value)
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(value, key=str) if isinstance(value, set | frozenset) else value
        parts: list[Label] = []
        for item in items:
            if isinstance(item, Mapping):
                parts += _parse_mapping(item)
            elif isinstance(item, str) and item.strip():
                parts.append(item.strip())
            elif isinstance(item, int | float):
                parts.append(_whole(item))
            else:
                raise ValueError(f"labels are {shown(value)}, expected a list of class names or numbers")
        return tuple(parts)
    raise ValueError(f"labels are {shown(value)}, expected class names, class indices or a vector of 0 and 1")


@lru_cache(maxsize=64)
def separators_in(separator: str) -> tuple[str, ...]:
    """What stands between names, one by one: every character, and every word with spaces around it: `` und ``."""
    return (*_WORD.sub("", separator), *(f" {word} " for word in _WORD.findall(separator)))


def split_at(text: str, separator: str) -> list[str]:
    """The parts of a text between separators; empty ones are left out."""
    return [part for part in map(str.strip, re.split(_pattern(separator), text)) if part] if separator else [text]


@lru_cache(maxsize=64)
def _pattern(separator: str) -> re.Pattern[str]:
    found = separators_in(separator)
    words = [rf"\s+{re.escape(one.strip())}\s+" for one in found if len(one) > 1]
    characters = "".join(one for one in found if len(one) == 1)
    return re.compile("|".join([*words, *([f"[{re.escape(characters)}]"] if characters else [])]))


def is_missing(text: str) -> bool:
    """Whether a text stands for no label: empty, as programs write a missing value, or nothing but marks (``?``)."""
    return text in MISSING or is_mark(text)


def is_mark(text: str) -> bool:
    """Whether a text is nothing but marks such as ``?`` and ``-``."""
    return _MARK.fullmatch(text) is not None


def _parse_text(text: str, separator: str | None) -> tuple[Label, ...] | None:
    if is_missing(text):
        return None
    if text[0] in "[{(" and len(text) <= _MAX_LIST_TEXT:
        found = _parse_written_list(text)
        if found is not None:
            return parse_value(found, separator)
        if text[0] in "[{":
            raise ValueError(f"labels are {shown(text)}, which begins like a list but is not one")
    if separator == WHOLE_CELL:
        return (text,)
    if separator is None:
        if _NUMBERS.fullmatch(text):
            return tuple(int(float(part)) for part in re.split(r"[,;|\s]+", text.strip()))
        return (text,)
    return tuple(split_at(text, separator))


def _parse_written_list(text: str) -> Any:
    """A value that JSON, Python or numpy wrote as text; None when it is not one."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    inside = text[1:-1]
    if "..." in inside and "," not in inside:
        return None  # numpy leaves the middle of long arrays out
    if re.fullmatch(r"[\s\d.+-]+", inside) and text[0] == "[" and text[-1] == "]":
        return [float(part) for part in inside.split()]
    if re.search(r"""(['"])\s+\1""", inside) and text[0] == "[":
        return [name for _, name in re.findall(r"""(['"])(.*?)\1""", inside)]  # Python would join them
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _parse_mapping(value: Mapping[Any, Any]) -> tuple[Label, ...]:
    truths = all(isinstance(item, int | float) and item in (0, 1) for item in value.values())
    chosen = [name for name in value if name in _NAMES]
    if len(chosen) == 1 and not (truths and len(value) > 1):
        found = value[chosen[0]]
        if chosen[0] == "taxonomy" and isinstance(found, list):
            found = ["/".join(map(str, path)) if isinstance(path, list) else path for path in found]
        return parse_value(found, WHOLE_CELL) or ()
    if value and truths:
        return tuple(str(name) for name, item in value.items() if item)
    if not value:
        return ()
    raise ValueError(f"labels are {shown(value)}, expected choices, or class names with 0 or 1 for each")


def _whole(number: float) -> int:
    if not math.isfinite(number) or number != int(number):
        raise ValueError(
            f"labels hold {number}; a score is not a label: write 1 for a class that is there and 0 for others"
        )
    return int(number)


def shown(value: Any) -> str:
    """A value for a message, cut when it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def maybe_negative(classes: Sequence[str]) -> list[str]:
    """A note for each class whose name says that nothing is there."""
    return [
        f"a class is called {name!r}: if that says that a photograph shows none of the others, add --negative "
        f"{shlex.quote(name)}, and it is a negative of every class instead"
        for name in classes
        if name.strip(" _-").casefold() in NOTHING and len(classes) > 1
    ]
