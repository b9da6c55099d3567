"""Labelled photographs and irregular masks in, verified WebDataset shards out.

What is named here is the public face; ``docs/python.md`` shows it at work. Names are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from msldata.api import build_masks, build_shards, describe, index_tars, open_source, verify, write_shards
    from msldata.contract.records import ObjectRecord, Record
    from msldata.errors import UserError

__version__ = "0.1.0"

__all__ = [
    "ObjectRecord",
    "Record",
    "UserError",
    "build_masks",
    "build_shards",
    "describe",
    "index_tars",
    "open_source",
    "verify",
    "write_shards",
]

_HOMES = {
    "ObjectRecord": "msldata.contract.records",
    "Record": "msldata.contract.records",
    "UserError": "msldata.errors",
}
"""The module of each public name that is not a function of ``msldata.api``."""

if not TYPE_CHECKING:  # a type checker would believe that every name exists

    def __getattr__(name: str):
        if name not in __all__:
            raise AttributeError(f"module 'msldata' has no attribute '{name}'; it has {', '.join(__all__)}")
        value = getattr(importlib.import_module(_HOMES.get(name, "msldata.api")), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
