"""Class names that may be slips of the pen for others."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations

_RARE, _TIMES = 3, 10
"""A slip is made at most so often, and what was meant stands at least so many times as often."""
_SHORTEST = 3
"""Shorter names are all within one letter of each other."""


def alike(classes: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of names that differ only in case, spaces, or characters that nobody sees."""
    seen: dict[str, str] = {}
    pairs = []
    for name in classes:
        plain = _plain(name)
        if plain in seen:
            pairs.append((seen[plain], name))
        seen.setdefault(plain, name)
    return pairs


def slips(counts: Mapping[str, int]) -> list[tuple[str, str]]:
    """Rare names and the frequent one that each may be meant as: one letter more, less, other or in the wrong place.

    Args:
        counts: how often each class occurs.
    """
    frequent: dict[str, list[str]] = {}
    for name, count in counts.items():
        if count >= _TIMES and len(name) >= _SHORTEST:
            for part in _without_one_letter(_plain(name)):
                frequent.setdefault(part, []).append(name)
    found = []
    spelt = Counter(map(_plain, counts))
    for name, count in counts.items():
        if spelt[_plain(name)] > 1:  # `alike` has it
            continue
        if not 0 < count <= _RARE or len(name) < _SHORTEST:
            continue
        near = {other for part in _without_one_letter(_plain(name)) for other in frequent.get(part, ())}
        near = {other for other in near if counts[other] >= _TIMES * count and _is_slip(_plain(name), _plain(other))}
        if near:
            found.append((name, max(sorted(near), key=lambda other: counts[other])))
    return found


def _plain(name: str) -> str:
    visible = "".join(letter for letter in name if unicodedata.category(letter) != "Cf")
    return re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFKC", visible).casefold()).strip()


def _without_one_letter(name: str) -> set[str]:
    """The name, and each name that is left without one of its letters: names one edit apart have one in common."""
    return {name, *(name[:k] + name[k + 1 :] for k in range(len(name)))}


def _is_slip(name: str, other: str) -> bool:
    """Whether two names, neither of which differs in a number, are one edit apart, or two neighbours changed places."""
    if name == other or re.findall(r"\d+", name) != re.findall(r"\d+", other):
        return False
    if len(name) != len(other):
        short, long = sorted((name, other), key=len)
        return short in _without_one_letter(long)
    differing = [k for k, (one, two) in enumerate(zip(name, other, strict=True)) if one != two]
    if len(differing) == 1:
        return True
    return any(
        differing == [k, m] and m == k + 1 and (name[k], name[m]) == (other[m], other[k])
        for k, m in combinations(differing, 2)
    )
