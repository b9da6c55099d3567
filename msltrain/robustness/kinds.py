"""The kinds of holes by name, and what a study needs for them; without torch, so that a mistake is said at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from msldata.contract.manifest import MANIFEST_NAME
from msldata.errors import UserError
from msldata.storage import open_storage

if TYPE_CHECKING:
    from msltrain.stream.config import Fill

IRREGULAR = "irregular"
PASTED = "pasted"
FILLED: Mapping[str, Fill] = {"mean": "mean", "noise": "noise", "blur": "blur", "image": "image"}
"""Kinds of stored holes with something in them → the filling."""
STORED = (IRREGULAR, *FILLED)
"""Kinds that take the stored keep masks, or where there are none such masks drawn here."""
KINDS = (IRREGULAR, "patch", "box", "object", *FILLED, PASTED)
"""``irregular``: the stored keep masks of the folders that were named, or masks drawn here. ``patch``: squares of a
grid. ``box``: one box. ``object``: the box of one object of the image; its hole fraction is what that object takes.
``mean``, ``noise``, ``blur``, ``image``: the holes of ``irregular``, filled with the image's mean colour, noise around
it, the blurred image itself, or another image of the dataset. ``pasted``: the boxes of ``box``, filled with cut-outs of
annotated objects of other images."""
HELD_OUT = ("shards/heldout/low", "shards/heldout/high")
"""Where `msl build-masks --generate 3000 --seed 1 --out shards/heldout` puts masks that no training met."""

DRAWN_SEED = 1
"""Of the masks that are drawn where none are stored: others than those that training draws."""


def need_stored(kinds: Sequence[str]) -> bool:
    """Whether any of the kinds takes stored keep masks."""
    return not set(STORED).isdisjoint(kinds)


def held_out_masks() -> tuple[str, ...]:
    """The folders of ``HELD_OUT`` if all of them have been built, else nothing."""
    return HELD_OUT if all(open_storage(place).exists(MANIFEST_NAME) for place in HELD_OUT) else ()


def check_kinds(kinds: Sequence[str]) -> None:
    """Raise UserError for an unknown kind."""
    for kind in kinds:
        if kind not in KINDS:
            raise UserError(f"no kind of hole is called '{kind}'; there are: {', '.join(KINDS)}")
