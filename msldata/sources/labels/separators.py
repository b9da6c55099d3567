"""Which characters stand between the names in a cell: proven ones are taken, possible ones are asked about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from msldata.errors import OptionsNeeded, UserError
from msldata.sources.labels.survey import LabelSurvey, two_ways
from msldata.sources.labels.values import WHOLE_CELL, separators_in, split_at

PROVEN = ";|"
SUSPECT_EVERYWHERE = ",#\t\n，；、"
_WORDS = (" und ", " and ", " et ", " y ", " e ", " en ")
_SUSPECT_WHERE_PARTS_RECUR = (*"/+&:", *_WORDS, " ")
_SUSPECT_BETWEEN_NAMES = "-_.\\"
"""Common inside names: separators only where everything between them is a name by itself."""


def decide_separators(survey: LabelSurvey, where: str, classes: Sequence[str] | None) -> str:
    """The characters between the names in a cell. Raises UserError where some may be, with no proof."""
    if survey.separator is not None:
        if survey.separator == WHOLE_CELL:
            return ""
        if not survey.num_separated:
            _refuse_another_separator(survey, where, classes)
        return survey.separator
    proven = "".join(character for character in PROVEN if any(character in cell for cell in survey.cells))
    if classes is not None:
        known = set(classes)
        for choice in ("", proven, *SUSPECT_EVERYWHERE, *_SUSPECT_WHERE_PARTS_RECUR):
            if known.issuperset(name for cell in survey.cells for name in split_cell(cell, choice)):
                return choice
    whole = {name: place for cell, place in survey.cells.items() for name in split_cell(cell, proven)}
    listed = {str(part): place for parts, place in survey.lists.items() for part in parts}
    for character in (*SUSPECT_EVERYWHERE, *_SUSPECT_WHERE_PARTS_RECUR, *_SUSPECT_BETWEEN_NAMES):
        found = None
        if character in SUSPECT_EVERYWHERE:
            found = _joined(whole, character, whole, "parts recur" if proven else "always")
            found = found or _joined(listed, character, whole | listed, "parts recur")
        elif not proven:
            need = "parts are names" if character in (*_SUSPECT_BETWEEN_NAMES,) else "parts recur"
            found = _joined(whole, character, whole, need)
        if found is not None:
            others = [(place, name) for name, place in (whole | listed).items() if name != found[1]]
            raise _separated_by(character, where, [found, *others], None)
    return proven


def _refuse_another_separator(survey: LabelSurvey, where: str, classes: Sequence[str] | None) -> None:
    """Raise UserError where no label holds the separator that was named, and some look separated by another one."""
    whole = survey.cells
    if classes is not None and set(classes).issuperset(whole):
        return
    for character in (*PROVEN, *SUSPECT_EVERYWHERE, *_SUSPECT_WHERE_PARTS_RECUR):
        need = "parts are names" if character in _SUSPECT_WHERE_PARTS_RECUR else "always"
        if found := _joined(whole, character, whole, need):
            others = [(place, name) for name, place in whole.items() if name != found[1]]
            raise _separated_by(character, where, [found, *others], survey.separator)


def _separated_by(character: str, where: str, samples: Sequence[tuple[str, str]], instead_of: str | None) -> UserError:
    """The error for names that may be separated by a character, where none was named, or one that no label holds."""
    none = f", and no label holds {_typed(instead_of)}" if instead_of is not None else ""
    what = f"names that may be separated by {name_of(character)}{none}"
    one = "--separator none takes each for one name"
    if character in "\t\n":  # as a shell takes them
        return two_ways(where, what, samples, f"--separator {_typed(character)} splits them, {one}")
    instead = ["--separator", instead_of] if instead_of is not None else []
    return OptionsNeeded(str(two_ways(where, what, samples, one)), ["--separator", character], "to split them", instead)


def split_cell(cell: str, separators: str) -> list[str]:
    return split_at(cell.strip(), separators) if cell.strip() else []


def _joined(names: Mapping[str, str], character: str, known: Mapping[str, str], need: str) -> tuple[str, str] | None:
    """The first name that looks like several, with its place: if all its parts are names themselves, if one of them
    occurs elsewhere too, or always."""
    if character == " " and len({name.split()[0] for name in names}) == 1:
        return None  # a word before every name, as in "Standort Süd" and "Standort Nord", is a part of it
    candidates = {name: set(split_cell(name, character)) for name in names if character in name}
    if need == "always":
        return next(((names[name], name) for name, parts in candidates.items() if parts), None)
    uses = Counter(part for parts in candidates.values() for part in parts)
    for name, parts in candidates.items():
        if len(parts) < 2:
            continue
        if need == "parts are names":
            alike = parts.issubset(known)
        else:
            alike = any(part in known or uses[part] > 1 for part in parts)
        if alike:
            return names[name], name
    return None


def refuse_joined(survey: LabelSurvey) -> None:
    """Raise OptionsNeeded where a cell of a table with a row per label seems to hold several after all.

    Args:
        survey: of all values, none of which was split.
    """
    for character in PROVEN + SUSPECT_EVERYWHERE:
        need = "parts recur" if character in PROVEN else "parts are names"
        if found := _joined(survey.cells, character, survey.cells, need):
            place, name = found
            reason = f"{place}: '{name}' in a table with a row per label: one name, or several"
            raise OptionsNeeded(
                f"{reason}; --separator none takes it for one", ["--separator", character], "if it is several"
            )


def left_together(survey: LabelSurvey, classes: Sequence[str] | None = None) -> str:
    """What a separator that the user named leaves as one name though it looks like several; empty where it is clear.

    Args:
        survey: of all values, split by that separator.
        classes: class names, where they are known.
    """
    given = survey.separator
    if given in (None, WHOLE_CELL):
        return ""
    names = {name: place for cell, place in survey.cells.items() for name in split_cell(cell, given)}
    names |= {str(part): place for parts, place in survey.lists.items() for part in parts if str(part) not in names}
    splits = any(len(parts) > 1 for parts in survey.lists)
    for character in (*PROVEN, *SUSPECT_EVERYWHERE, *_WORDS):
        if character in separators_in(given) or (classes is not None and set(classes).issuperset(names)):
            continue
        need = "parts recur" if splits or character in _WORDS else "always"
        if found := _joined(names, character, names, need):
            both = _typed(f"{given}{character}" if splits else character)
            place, name = found
            return (
                f"{place}: '{name}' stays one class with --separator {_typed(given)}; if it is several, give "
                f"--separator {both}"
            )
    return ""


def _typed(characters: str) -> str:
    """Characters as a shell takes them."""
    return {"\t": "$'\\t'", "\n": "$'\\n'"}.get(characters, f"'{characters}'")


def name_of(character: str) -> str:
    return {" ": "a space", "\t": "a tab", "\n": "a line break"}.get(character, f"'{character}'")
