"""Messages for those who call a function: an option of a command is called there what the function calls it."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from msldata.errors import UserError

AS_OPTIONS = "as_options"
"""Attribute of an error that was said in Python's words: its text before, for a command that called the function."""

_Given = ParamSpec("_Given")
_Got = TypeVar("_Got")

_VALUE = r"auto|skip|fail|cpu|cuda|[A-Z][A-Z.]*\b|\d[\w.]*|[/~][^\s,;)]+"
_OPTION = re.compile(rf"--(?P<name>[a-z][a-z-]*[a-z])(?: (?P<value>{_VALUE}))?")
_SET = re.compile(r"--set ([a-z_]+\.[a-z_]+=[^\s,;)]*)")
_FIELDS = {
    "weights": "model.weights",
    "backbone": "model.backbone",
    "epochs": "optim.num_epochs",
    "lr": "optim.lr",
    "batch-size": "stream.batch_size",
    "image-size": "stream.image_size",
    "cache": "stream.cache",
    "ram-cache": "stream.ram_cache_gb",
    "on-sample-error": "stream.on_sample_error",
}
"""Options of `msl train` that are fields of its config."""
_INSIDE = {
    "options": ("image-column", "labels-column", "labels-are", "separator", "group", "format", "images"),
    "foreign": ("recipe", "model"),
}
"""Options of commands that are fields of one parameter: `SourceOptions`, `Foreign`."""
_COMMAND = re.compile(r"`[^`]*`|\bmsl [a-z][^;`]*")
_PHRASES = {
    "run the same command with": "call it again with",
    "run the same command again with": "call it again with",
    "--resume auto of `msl train`": 'msltrain.train(config, run, resume="auto")',
    "start it without --resume": "start it without resume=True",
}


def in_python(text: str, function: Callable[..., object], *, has_settings: bool = False) -> str:
    """A message of a command's as the caller of a function would type what it advises.

    Args:
        text: the message.
        function: what was called. Options that are none of its parameters stay as they are, and the end says what they
            are, unless they stand in a command.
        has_settings: whether it takes a config, or the settings of one.
    """
    parameters = inspect.signature(function).parameters
    left: dict[str, list[str]] = {}

    def said(match: re.Match[str]) -> str:
        name, value = match["name"], match["value"] or ""
        if (parameter := parameters.get(name.replace("-", "_"))) is None:
            if field := _FIELDS.get(name) if has_settings else None:
                return f'settings=["{field}={value or "…"}"]'
            if not any(command.start() <= match.start() < command.end() for command in _COMMAND.finditer(text)):
                inside = next((one for one, names in _INSIDE.items() if one in parameters and name in names), "")
                left.setdefault(inside, []).append(f"--{name}")
            return match[0]
        if str(parameter.annotation) == "bool":
            return f"{parameter.name}=True{' ' + value if value else ''}"
        is_text = (value.islower() and value.isalpha()) or value.startswith(("/", "~"))
        return f'{parameter.name}="{value}"' if is_text else f"{parameter.name}={value}"

    for here, there in _PHRASES.items():
        text = text.replace(here, there)
    if has_settings:
        text = _SET.sub(r'settings=["\1"]', text)
    text_now = _OPTION.sub(said, text)
    for parameter_name, options in left.items():
        names = ", ".join(dict.fromkeys(options))
        are = "is an option" if len(set(options)) == 1 else "are options"
        here = f", here in `{parameter_name}`" if parameter_name else ""
        text_now += f" ({names} {are} of the command `msl`{here})"
    return text_now


def says_it_in_python(*, has_settings: bool = False) -> Callable[[Callable[_Given, _Got]], Callable[_Given, _Got]]:
    """Decorate a function of the public face: its errors speak of its parameters, not of a command's options."""

    def decorate(function: Callable[_Given, _Got]) -> Callable[_Given, _Got]:
        @functools.wraps(function)
        def called(*given: _Given.args, **named: _Given.kwargs) -> _Got:
            try:
                return function(*given, **named)
            except (UserError, FileNotFoundError) as error:
                if len(error.args) == 1 and isinstance(error.args[0], str):
                    vars(error).setdefault(AS_OPTIONS, error.args[0])
                    error.args = (in_python(error.args[0], function, has_settings=has_settings),)
                raise

        return called

    return decorate
