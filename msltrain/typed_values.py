"""Values of the fields of a dataclass, by their types: from JSON, and from what a person typed."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from typing import Any, Literal, Union

from msldata.errors import UserError


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
        hints = typing.get_type_hints(hint)
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
    """What JSON and a command line see to, for a frozen config made in Python: a list becomes the tuple of its values,
    for ``[1, 1]`` is not ``(1, 1)``, and a text the tuple of one. A word that a field does not know is refused: where
    it is looked for, it would be taken for another one.

    Args:
        config: of a dataclass, in its ``__post_init__``.
        section: its name in messages.

    Raises:
        UserError: such a word, with those that there are.
    """
    for name, (words, are_several) in _words_of(type(config)).items():  # type: ignore[arg-type]
        value = getattr(config, name)
        if are_several and isinstance(value, list | str):
            value = (value,) if isinstance(value, str) else tuple(value)
            object.__setattr__(config, name, value)
        given = value if are_several and isinstance(value, tuple) else (value,)
        if words and (strange := [word for word in given if word not in words]):
            raise UserError(f"{section}.{name}: {strange[0]!r} is not one of {', '.join(map(str, words))}")


@functools.cache
def _words_of(kind: type) -> dict[str, tuple[tuple[Any, ...], bool]]:
    """The fields that hold words or several values: the words (none: any value), and whether they are several."""
    found = {}
    for name, hint in typing.get_type_hints(kind).items():
        are_several = typing.get_origin(hint) is tuple
        one = typing.get_args(hint)[0] if are_several else hint
        words = typing.get_args(one) if typing.get_origin(one) is Literal else ()
        if words or are_several:
            found[name] = words, are_several
    return found


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (Union, types.UnionType)
