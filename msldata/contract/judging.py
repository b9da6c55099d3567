"""Which classes a part of a dataset shows too seldom to tell how well they are recognised."""

from __future__ import annotations

from collections.abc import Mapping

from msldata.contract.manifest import Manifest
from msldata.errors import counted, few_of

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
            named = few_of([f"'{name}'" for name in few], _MOST_NAMED)
            said.append(f"{part} has one or none of {named} ({len(few):,} of {counted(len(count_of), 'class')})")
    return f"too few photographs to judge some classes by: {'; '.join(said)}" if said else ""


def too_few_to_train(number: int) -> str:
    """A sentence about a dataset that is too small."""
    return (
        f"{counted(number, 'photograph')}: too few to learn from; at least {FEWEST} are needed, better 50 of each class"
    )


def photographs_of(manifest: Manifest) -> dict[str, int]:
    """How many photographs show each class."""
    return {name: manifest.label_histogram.get(name, {}).get("positive", 0) for name in manifest.classes}
