"""Fields of a config that somebody sets: as text, ``section.field=value``, or as values by the fields' names."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from msldata.errors import UserError, did_you_mean
from msltrain.typed_values import decode, from_text, hints_of

_Config = TypeVar("_Config")

Settings = Sequence[str] | Mapping[str, Any]
"""``["optim.lr=0.02"]``, or a single such text; or ``{"optim.lr": 0.02}``."""


def given(settings: Settings) -> dict[str, Any]:
    """What is said of each field, by ``section.field``: text as it was typed, or a value.

    Raises:
        UserError: a text without an equals sign, or a field that is named without its section.
    """
    if isinstance(settings, Mapping):
        found = {str(name): value for name, value in settings.items()}
        for name in found:
            if "." not in name:
                raise UserError(f"settings: '{name}' names no field; expected section.field, such as 'optim.lr'")
        return found
    found = {}
    for assignment in (settings,) if isinstance(settings, str) else settings:
        path, equals, text = assignment.partition("=")
        if not equals or "." not in path:
            raise UserError(f"'{assignment}': expected section.field=value, for instance optim.lr=0.02")
        found[path.strip()] = text.strip()
    return found


def values_of(config: Any, settings: Settings) -> dict[str, Any]:
    """What the fields get that somebody sets, by ``section.field``, as values that these fields hold.

    Raises:
        UserError: as `override`, but for what fields do not accept beside one another.
    """
    is_text = not isinstance(settings, Mapping)
    known = [entry.name for entry in dataclasses.fields(config)]
    values = {}
    for path, value in given(settings).items():
        section, _, name = path.partition(".")
        said = f"'{path}={value}'" if is_text else f"settings: '{path}'"
        if section not in known:
            raise UserError(
                f"{said}: no section '{section}'; there are {', '.join(known)}{did_you_mean(section, known)}"
            )
        hints = hints_of(type(getattr(config, section)))
        if name not in hints:
            raise UserError(
                f"{said}: no field '{name}' in {section}; there are {', '.join(hints)}{_near(config, section, name)}"
            )
        plain = from_text(value, hints[name]) if is_text else _as_json(value)
        values[path] = decode(plain, hints[name], path)
    return values


def override(config: _Config, settings: Settings) -> _Config:
    """Change fields of the sections of a config, which are dataclasses as itself.

    Text is written plainly: ``0.02``, ``true``, ``none``, and ``a,b`` for a field that takes several. Values are
    Python's: ``0.02``, ``True``, ``None``, ``("a", "b")``.

    Raises:
        UserError: another form, no such section or field (the message lists the existing ones), or a value that the
            field does not accept.
    """
    whole: Any = config
    changes: dict[str, dict[str, Any]] = {}
    for path, value in values_of(config, settings).items():
        section, _, name = path.partition(".")
        changes.setdefault(section, {})[name] = value
    sections = {name: dataclasses.replace(getattr(whole, name), **fields) for name, fields in changes.items()}
    return dataclasses.replace(whole, **sections)


def _as_json(value: Any) -> Any:
    """A value of Python's as `decode` takes it."""
    if isinstance(value, list | tuple):
        return [_as_json(part) for part in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _near(config: Any, section: str, name: str) -> str:
    """The field that was meant, in this section or in another."""
    if here := did_you_mean(name, hints_of(type(getattr(config, section)))):
        return here
    others = (entry.name for entry in dataclasses.fields(config))
    fields = [f"{one}.{entry.name}" for one in others for entry in dataclasses.fields(getattr(config, one))]
    near = [field for field in fields if field.partition(".")[2] == name]
    return f"; did you mean {near[0]}?" if near else did_you_mean(f"{section}.{name}", fields)
