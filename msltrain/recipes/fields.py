"""Every field of a config with what its docstring says: the description that `msl recipes NAME` and completion show."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import types
import typing
from dataclasses import dataclass
from typing import Any, Literal, Union

from msltrain.config import TrainConfig
from msltrain.typed_values import hints_of


@dataclass(frozen=True, kw_only=True)
class Field:
    """One field of a config."""

    name: str
    """As ``--set`` takes it: ``section.field``."""
    value: Any
    default: Any
    doc: str
    """What the field means, in one paragraph."""
    choices: tuple[str, ...]
    """What it takes, where that is a list of words."""

    @property
    def is_changed(self) -> bool:
        return bool(self.value != self.default)


def fields_of(config: TrainConfig) -> list[Field]:
    """All fields, section by section in the order of the config."""
    found = []
    for section in dataclasses.fields(config):
        part = getattr(config, section.name)
        docs, hints = _docs(type(part)), hints_of(type(part))
        for entry in dataclasses.fields(part):
            default = entry.default_factory() if callable(entry.default_factory) else entry.default
            found.append(
                Field(
                    name=f"{section.name}.{entry.name}",
                    value=getattr(part, entry.name),
                    default=default,
                    doc=docs.get(entry.name, ""),
                    choices=_choices(hints[entry.name]),
                )
            )
    return found


def plainly(value: Any) -> str:
    """A value as ``--set`` takes it."""
    if isinstance(value, tuple):
        return ",".join(map(plainly, value))
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _choices(hint: Any) -> tuple[str, ...]:
    if hint is bool:
        return ("true", "false")
    if typing.get_origin(hint) is Literal:
        return tuple(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) in (Union, types.UnionType):
        return tuple(choice for option in typing.get_args(hint) for choice in _choices(option))
    return ()


def _docs(section: type) -> dict[str, str]:
    """The string below each field, which Python itself does not keep."""
    [body] = ast.parse(inspect.cleandoc(inspect.getsource(section))).body
    assert isinstance(body, ast.ClassDef)
    found = {}
    for entry, after in zip(body.body, body.body[1:]):
        if isinstance(entry, ast.AnnAssign) and isinstance(entry.target, ast.Name) and isinstance(after, ast.Expr):
            found[entry.target.id] = " ".join(str(ast.literal_eval(after.value)).split())
    return found
