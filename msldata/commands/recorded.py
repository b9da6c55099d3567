"""The command that builds a dataset, as its manifest keeps it, and the question before one dataset replaces another."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import typer

from msldata.console import err, show
from msldata.contract.manifest import IMAGES, MANIFEST_NAME, FormatError, Manifest, read_manifest
from msldata.contract.records import quoted
from msldata.errors import OptionsNeeded, UserError, counted
from msldata.progress import no_bars
from msldata.storage import Storage

_PLACES = frozenset({"place", "source", "classes", "tars", "images"})
"""Options that name a file or folder: the command must find it from anywhere."""
_SAID_OTHERWISE = frozenset({"--dataset", "--source", "--split", "--name", "--generate"})
"""Recorded whether they were typed or not, or compared by what they mean."""
_NOT_RECORDED = frozenset(
    "out_ overwrite yes workers dry_run task finish engine ray_address plots help install_completion".split()
)
"""Options that say where, how fast or how much of it to build, not what."""


def recorded_command(context: typer.Context, changes: Mapping[str, Any]) -> list[str]:
    """The command line that builds this dataset again, without its destination: the running command, made explicit.

    Args:
        context: the command's context.
        changes: parameters of the command by name, with their final values; None leaves one out.
    """
    options: list[str] = []
    arguments: list[str] = []
    for parameter in context.command.params:
        name = parameter.name or ""
        value = changes.get(name, context.params.get(name))
        origin = context.get_parameter_source(name)
        said = origin is not None and origin.name not in ("DEFAULT", "DEFAULT_MAP")
        if name in _NOT_RECORDED or value is None or not (name in changes or said):
            continue
        values = value if isinstance(value, list | tuple) else [value]
        words = [_word(name, item) for item in values if item is not None]
        if parameter.param_type_name == "argument":
            arguments += words
        elif isinstance(value, bool):
            options += [parameter.opts[0]] if value else parameter.secondary_opts[:1]
        else:
            options += [part for word in words for part in (parameter.opts[0], word)]
    return [context.info_name or "", *arguments, *options]


def confirm_replacement(replaced: Iterable[tuple[Storage, Manifest]], yes: bool) -> None:
    """Ask, once for all, before finished datasets of other classes or from another source are replaced.

    Args:
        replaced: their folders, each with what will be there, as far as that is known: its classes and its provenance.
        yes: the user has already agreed.

    Raises:
        OptionsNeeded: there is nobody to ask.
        UserError: the answer was no.
    """
    asked = [] if yes else [(said, new) for target, new in replaced if (said := _replacement_said(target, new))]
    if not asked:
        return
    if not sys.stdin.isatty():
        said, new = asked[0]
        raise OptionsNeeded(said, ["--yes"], f"choose another {_elsewhere(new)}, or to replace it")
    with no_bars():
        for said, _ in asked:
            show(err, f"{said}.", wrap=True)
        agreed = typer.confirm("Replace it?" if len(asked) == 1 else "Replace all of them?")
    if not agreed:
        raise UserError("nothing was changed")


def _replacement_said(target: Storage, new: Manifest) -> str:
    """What is in a folder, and how it differs from what will be; empty where it does not, or nothing is there."""
    if not target.exists(MANIFEST_NAME):
        return ""
    try:
        old = read_manifest(target)
    except FormatError:
        return ""  # nothing usable for training is lost
    difference = _difference(old, new)
    their = "its" if old.num_samples == 1 else "their"
    return difference and (
        f"{target.url} holds {counted(old.num_samples, 'sample')} of {old.dataset}, {old.split}, and --overwrite would "
        f"put another dataset in {their} place: {difference}{_lacking(old, new)}"
    )


def offer_replacement(target: Storage, new: Manifest) -> None:
    """Look whether a finished dataset of something else is in the way of a build that does not replace it.

    Args:
        target: the dataset's folder.
        new: what would be built, with its plan.

    Raises:
        OptionsNeeded: there is one; the options replace it without a question.
    """
    if not target.exists(MANIFEST_NAME):
        return
    try:
        old = read_manifest(target)
    except FormatError:
        return  # the build says what it is
    if old.plan == new.plan:
        return
    difference = _difference(old, new)
    raise OptionsNeeded(
        f"{target.url}: a dataset is there already ({counted(old.num_samples, 'sample')} of {old.dataset}, "
        f"{old.split}), and since it was built the photographs, labels or options have changed"
        f"{f': {difference}' if difference else ''}{_lacking(old, new)}",
        ["--overwrite", *(["--yes"] if difference else [])],
        "to build it anew",
    )


def _lacking(old: Manifest, new: Manifest) -> str:
    """What was said when a dataset was built and is not said now: a table is not read alike without it."""
    before, now = (manifest.provenance.get("command", ()) for manifest in (old, new))
    gone = [word for option in _said(before) if option not in _said(now) for word in option]
    return f"; it was built with {shlex.join(gone)}, which this command lacks" if gone and now else ""


def _said(command: Sequence[str]) -> list[tuple[str, ...]]:
    """The options of a recorded command, each with its value."""
    found: list[tuple[str, ...]] = []
    for word in command:
        if word.startswith("--"):
            found.append((word,))
        elif found and len(found[-1]) == 1:
            found[-1] = (*found[-1], word)
    return [option for option in found if option[0] not in _SAID_OTHERWISE]


def _elsewhere(new: Manifest) -> str:
    """The options that put a dataset somewhere else; those of keep masks are not named."""
    return "--name or --out" if new.kind == IMAGES else "--out"


def _difference(old: Manifest, new: Manifest) -> str:
    if old.kind != new.kind:
        return f"{new.kind} in the place of {old.kind}"
    if old.classes != new.classes:
        gone = [name for name in old.classes if name not in {*new.classes}]
        come = [name for name in new.classes if name not in {*old.classes}]
        pairs = (("only in the new one", come), ("only in the old one", gone))
        said = [f"{what}: {quoted(names)}" for what, names in pairs if names]
        return f"classes {', '.join(said)}" if said else "the new one has its classes in another order"
    before, after = (_source(manifest) for manifest in (old, new))
    return f"it was made from {before}, the new one from {after}" if before != after else ""


def _source(manifest: Manifest) -> str:
    """Where a dataset came from: the first argument of its command or, if that is unknown, the kind of source."""
    command: Sequence[str] = manifest.provenance.get("command", ())
    place = command[1] if len(command) > 1 and not command[1].startswith("-") else ""
    for option in ("--source", "--generate"):
        if option in command:
            place = f"{command[command.index(option) + 1]}"
    return place or str(manifest.provenance.get("source"))


def _word(name: str, value: Any) -> str:
    if isinstance(value, Enum):
        return str(value.value)
    text = str(value)
    if name in _PLACES and "://" not in text:
        return str(Path(text).expanduser().absolute())
    return text
