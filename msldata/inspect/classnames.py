"""Class names that may be slips of the pen for others."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from itertools import combinations

_RARE, _TIMES = 3, 10
"""A slip is made at most so often, and what was meant stands at least so many times as often."""
_LONG = 8
"""From so many letters on, two names that differ in one are hardly meant both (`thresher`, `thrasher` are)."""
_SHORTEST = 3
"""Shorter names are all within one letter of each other."""
_WRITTEN_OUT = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "å": "aa", "æ": "ae", "ø": "oe", "œ": "oe"})


def alike(classes: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of names that differ only in case, spaces, accents (`Vögel`, `Voegel`), or characters that nobody sees."""
    seen: dict[str, str] = {}
    pairs = []
    for name in classes:
        spellings = _spellings(name)
        if known := [seen[spelling] for spelling in spellings if spelling in seen]:
            pairs.append((known[0], name))
        for spelling in spellings:
            seen.setdefault(spelling, name)
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
    known = {name for pair in alike(tuple(counts)) for name in pair}
    for name, count in counts.items():
        if name in known:
            continue
        if not 0 < count <= _RARE or len(name) < _SHORTEST:
            continue
        near = {other for part in _without_one_letter(_plain(name)) for other in frequent.get(part, ())}
        near = {other for other in near if counts[other] >= _TIMES * count and _is_slip(_plain(name), _plain(other))}
        if near:
            found.append((name, max(sorted(near), key=lambda other: counts[other])))
    return found


def nearly_alike(counts: Mapping[str, int]) -> list[tuple[str, str]]:
    """Pairs of names, however frequent, that are hardly meant both: two neighbouring letters changed places, one is the
    plural of the other, or one letter differs in long names. Those that `alike` or `slips` finds are left out.

    Of the 998 names of ImageNet-1k that is one pair, sunglass and sunglasses; of VOC's and COCO's names none. Of 100
    names that are drawn from ImageNet-12k's there is a pair once in a hundred draws.

    Args:
        counts: how often each class occurs.
    """
    known = {frozenset(pair) for pair in (*slips(counts), *alike(tuple(counts)))}
    names = [name for name in counts if len(_plain(name)) >= _SHORTEST]
    sharing: dict[str, list[str]] = {}
    for name in names:
        for part in _without_one_letter(_plain(name)) | _singulars(_plain(name)):
            sharing.setdefault(part, []).append(name)
    found: dict[tuple[str, str], None] = {}
    for name in names:
        parts = _without_one_letter(_plain(name))
        near = {other for part in parts for other in sharing.get(part, ()) if other != name}
        for other in sorted(near):
            first, second = sorted((name, other), key=lambda one: (counts[one], one))
            pair = first, second
            if frozenset(pair) not in known and _hardly_meant(_plain(name), _plain(other)):
                found[pair] = None
    return list(found)


def _hardly_meant(name: str, other: str) -> bool:
    if name in _singulars(other) or other in _singulars(name):
        return True
    if not _is_slip(name, other):
        return False
    if len(name) == len(other) and sorted(name) == sorted(other):
        return True
    words, others = name.split(), other.split()
    differing = [pair for pair in zip(words, others) if pair[0] != pair[1]] if len(words) == len(others) else []
    # "type A" and "type B" are meant.
    return min(len(name), len(other)) >= _LONG and all(min(map(len, pair)) > 1 for pair in differing)


def _singulars(name: str) -> set[str]:
    """What a name may be the plural of."""
    found = {name[: -len(end)] for end in ("s", "es") if name.endswith(end)}
    return found | ({f"{name[:-3]}y"} if name.endswith("ies") else set())


def _plain(name: str) -> str:
    visible = "".join(letter for letter in name if unicodedata.category(letter) != "Cf")
    return re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFKC", visible).casefold()).strip()


def _spellings(name: str) -> list[str]:
    """How a name may be written where a keyboard or a program lacks its accents."""
    plain = _plain(name)
    bare = "".join(letter for letter in unicodedata.normalize("NFKD", plain) if not unicodedata.combining(letter))
    return list(dict.fromkeys((plain, plain.translate(_WRITTEN_OUT), bare)))


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
