"""Which classes a part of a dataset shows too seldom to tell how well they are recognised."""

from __future__ import annotations

from collections.abc import Mapping

from msldata.contract.manifest import Manifest
from msldata.contract.records import listed_name
from msldata.errors import counted

FEWEST = 20
"""A dataset of fewer photographs is left in one piece, and hardly to be learnt from."""
_MOST_NAMED = 6


def too_few_to_judge(shown: Mapping[str, Mapping[str, int]]) -> str:
    """A sentence about the classes that one photograph shows or none; empty where there are none.

    Args:
        shown: how many photographs show each class, by part.
    """
    said = []
    for part, count_of in shown.items():
        if few := [name for name, count in count_of.items() if count < 2]:
            named = ", ".join(map(listed_name, few[:_MOST_NAMED])) + (" …" if len(few) > _MOST_NAMED else "")
            said.append(f"{len(few):,} of {counted(len(count_of), 'class')} in {part} ({named})")
    if not said:
        return ""
    return f"one photograph or none shows {' and '.join(said)}: too few to judge how well these are recognised"


def too_few_to_train(number: int) -> str:
    """A sentence about a dataset that is too small."""
    return (
        f"{counted(number, 'photograph')}: too few to learn from; at least {FEWEST} are needed, better 50 of each class"
    )


def photographs_of(manifest: Manifest) -> dict[str, int]:
    """How many photographs show each class."""
    return {name: manifest.label_histogram.get(name, {}).get("positive", 0) for name in manifest.classes}
