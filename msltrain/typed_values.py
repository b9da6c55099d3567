"""Values of the fields of a dataclass, by their types: from JSON, and from what a person typed."""

from __future__ import annotations

import dataclasses
import functools
import os
import types
import typing
from collections.abc import Callable
from typing import Any, Literal, Union

from msldata.errors import UserError

hints_of: Callable[[Any], dict[str, Any]] = functools.cache(typing.get_type_hints)
"""The types of a dataclass's fields, by name; looked up once, for their texts are compiled."""


def from_text(text: str, hint: Any) -> Any:
    """Turn what a person typed into the JSON value that it stands for, as ``hint`` requires."""
    options = typing.get_args(hint) if _is_union(hint) else (hint,)
    if type(None) in options and text.lower() in ("none", "null"):
        return None
    for option in options:
        if option is bool and text.lower() in ("true", "false"):
            return text.lower() == "true"
        if option in (int, float):
            for number in (int, float):
                try:
                    return number(text)
                except ValueError:
                    continue
        if typing.get_origin(option) is tuple:
            elements = typing.get_args(option)
            parts = [from_text(part.strip(), elements[0]) for part in text.split(",") if part.strip()]
            # One value stands for all where their number is fixed: stream.crop_scale=1.
            return parts * len(elements) if len(parts) == 1 and elements[-1] is not Ellipsis else parts
    return text


def decode(value: Any, hint: Any, where: str) -> Any:
    """A JSON value as the type ``hint`` asks for. Raises UserError."""
    if dataclasses.is_dataclass(hint):
        hints = hints_of(hint)
        if not isinstance(value, dict):
            raise UserError(f"{where or 'config'}: expected named fields, found {value!r}")
        unknown = sorted(set(value) - set(hints))
        if unknown:
            raise UserError(f"{where or 'config'}: no field '{unknown[0]}'; there are {', '.join(hints)}")
        fields = {name: decode(part, hints[name], f"{where}.{name}".lstrip(".")) for name, part in value.items()}
        try:
            return typing.cast(Any, hint)(**fields)
        except TypeError as error:
            raise UserError(f"{where or 'config'}: {error}") from None
    if _is_union(hint):
        if value is None and type(None) in typing.get_args(hint):
            return None
        # Of several the last is the widest: a word that is known, or any text.
        return decode(value, [option for option in typing.get_args(hint) if option is not type(None)][-1], where)
    if typing.get_origin(hint) is Literal:
        if value in typing.get_args(hint):
            return value
        raise UserError(f"{where}: {value!r} is not one of {', '.join(map(str, typing.get_args(hint)))}")
    if typing.get_origin(hint) is tuple:
        elements = typing.get_args(hint)
        if not isinstance(value, list):
            raise UserError(f"{where}: expected several values, found {value!r}")
        if elements[-1] is Ellipsis:
            return tuple(decode(part, elements[0], where) for part in value)
        if len(value) != len(elements):
            raise UserError(f"{where}: expected {len(elements)} values, found {len(value)}")
        return tuple(decode(part, element, where) for part, element in zip(value, elements))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    kinds = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    raise UserError(f"{where}: expected {kinds.get(hint, hint)}, found {value!r}")


def settle(config: Any, section: str) -> None:
    """What JSON and a command line see to, for a frozen config made in Python: every field has the type that it says.

    A list or an array becomes the tuple of its values, for ``[1, 1]`` is not ``(1, 1)``, a text the tuple of one, one
    number the tuple of a fixed length, numpy's and torch's numbers become Python's, a `Path` becomes text. What cannot
    be read so is refused: as it is, it would be taken for something else, or fail where nobody looks for it.

    Args:
        config: of a dataclass, in its ``__post_init__``.
        section: its name in messages.

    Raises:
        UserError: a value of another type, or a word that the field does not know, with those that there are.
    """
    for name, hint in hints_of(type(config)).items():
        value = getattr(config, name)
        settled = decode(_as_json(value, hint), hint, f"{section}.{name}")
        if not _is_plain(value) or settled != value:  # 1 stays 1 where a number is asked for, in files too
            object.__setattr__(config, name, settled)


def _as_json(value: Any, hint: Any) -> Any:
    """What JSON would have in the place of a value that was given in Python."""
    if _is_union(hint):
        hint = next(option for option in typing.get_args(hint) if option is not type(None))
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if hasattr(value, "tolist"):  # an array, a tensor, or a number of theirs
        value = value.tolist()
    if typing.get_origin(hint) is not tuple or value is None:
        return value
    elements = typing.get_args(hint)
    if isinstance(value, str):
        return [value]
    if isinstance(value, int | float) and elements[-1] is not Ellipsis:
        return [value] * len(elements)
    return [_as_json(part, elements[0]) for part in value] if isinstance(value, list | tuple) else value


def _is_plain(value: Any) -> bool:
    """Whether a value is of Python's own types, as in a config that was read."""
    return type(value) in _PLAIN or (type(value) is tuple and all(map(_is_plain, value)))


_PLAIN = (int, float, bool, str, type(None))


@functools.cache
def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (Union, types.UnionType)
