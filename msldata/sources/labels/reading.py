"""How the labels of a dataset are read: decided once, from all of its values together, and reported."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from msldata.errors import UserError, counted, did_you_mean
from msldata.sources.labels.marks import TRUTHS, plain_mark
from msldata.sources.labels.separators import decide_separators, name_of, split_cell
from msldata.sources.labels.survey import LabelSurvey, text_of, two_ways
from msldata.sources.labels.values import WHOLE_CELL, Label, is_mark, is_missing, parse_value, separators_in, shown

Kind = Literal["multi-hot", "signed", "indices", "names"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""What labels can be: vectors of 1, 0 and -1 (positive, negative, ignored); vectors of 1, 0 and -1 (positive, ignored,
negative); class indices; class names."""
MAX_CLASSES = 2**15
"""As many classes as the 16-bit index columns can name."""

_NUMBER = re.compile(r"[+-]?\d{1,9}(\.0*)?")


@dataclass(frozen=True, slots=True)
class Labels:
    """One sample's classes."""

    positives: tuple[Label, ...]
    ignored: tuple[Label, ...] = ()

    def __post_init__(self) -> None:
        odd = [label for label in (*self.positives, *self.ignored) if isinstance(label, int)]
        odd = [number for number in odd if not 0 <= number < MAX_CLASSES]
        if odd:
            raise ValueError(f"class index {odd[0]} is not from 0 to {MAX_CLASSES - 1}")


@dataclass(frozen=True, slots=True)
class LabelReading:
    """What the label values of one dataset mean."""

    kind: Kind
    separators: str = ""
    """What stands between the names in a cell, see ``separators_in``; empty: a cell is one name."""
    length: int = 0
    """Length of the vectors."""
    minus_one: bool = False
    """Whether -1 occurs in them."""
    kept: tuple[str, ...] = ()
    """Classes whose names would else stand for a missing value, such as NA and None."""

    def read(self, value: Any) -> Labels:
        """The classes of one value. Raises ValueError for a value that does not fit this reading."""
        atoms = self._atoms(value)
        if atoms is None or (not atoms and self.kind not in ("multi-hot", "signed")):
            return Labels(())
        if self.kind == "names":
            names = dict.fromkeys(map(str, atoms))
            return Labels(tuple(name for name in names if not is_mark(name) or name in self.kept))
        try:
            numbers = [int(float(atom)) for atom in atoms]
        except ValueError:
            raise ValueError(f"labels are {shown(value)}, expected {self}") from None
        if self.kind == "indices":
            return Labels(tuple(dict.fromkeys(numbers)))
        if len(numbers) != self.length or not {-1, 0, 1}.issuperset(numbers):
            raise ValueError(f"labels are {shown(value)}, expected {self}")
        unsure = -1 if self.kind == "multi-hot" else 0
        positives, ignored = (
            tuple(index for index, number in enumerate(numbers) if number == wanted) for wanted in (1, unsure)
        )
        return Labels(positives, ignored)

    def _atoms(self, value: Any) -> tuple[Label, ...] | None:
        if isinstance(value, str) and value.strip() in self.kept:
            return (value.strip(),)
        return parse_value(value, self.separators or WHOLE_CELL if self.kind == "names" else None)

    def classes(self, survey: LabelSurvey) -> tuple[str, ...]:
        """The classes that the labels themselves name. Raises ValueError when there is none."""
        if self.kind in ("multi-hot", "signed"):
            found: tuple[str, ...] = tuple(map(str, range(self.length)))
        elif self.kind == "indices":
            numbers = [number for number, count in survey.values.items() if count]
            for place, parts in survey.loose():
                numbers += (own := [int(float(part)) for part in parts])
                try:
                    Labels(tuple(own))  # an impossible index is reported before it makes a billion classes
                except ValueError as error:
                    raise ValueError(f"{place}: {error}") from None
            found = tuple(map(str, range(max(numbers, default=-1) + 1)))
        else:
            names = {name for cell in survey.cells for name in split_cell(cell, self.separators)}
            names |= {str(part) for parts in survey.lists for part in parts}
            names |= {str(number) for number, count in survey.values.items() if count}
            found = tuple(sorted(name for name in names if not is_mark(name)))
        if not found:
            raise ValueError("no sample has a class")
        return found

    def options(self) -> dict[str, Any]:
        """The reading as a manifest keeps it; ``LabelReading(**options)`` reads it back."""
        options = asdict(self)
        if not self.kept:
            del options["kept"]
        return options

    def __str__(self) -> str:
        if self.kind == "indices":
            return "class indices, counted from 0"
        if self.kind == "names":
            split = " or ".join(map(name_of, separators_in(self.separators)))
            return f"class names, separated by {split}" if split else "class names"
        values = "1 positive, 0 negative" if self.kind == "multi-hot" else "1 positive, -1 negative"
        if self.kind == "multi-hot" and self.minus_one:
            values += ", -1 ignored"
        if self.kind == "signed":
            values += ", 0 ignored"
        return f"multi-hot vectors of {self.length} ({values})"


def decide_reading(
    survey: LabelSurvey,
    where: str,
    *,
    classes: Sequence[str] | None = None,
    labels_are: str | None = None,
    vectors: bool = False,
) -> LabelReading:
    """How all values of a dataset are read.

    Vectors of 0 and 1 that all have one length are multi-hot; other numbers are class indices; the rest are names.
    Where two readings are possible, none is guessed.

    Args:
        survey: of all values.
        where: the dataset, for messages.
        classes: class names in target order, where they are known.
        labels_are: what they are, if the user said so: a name in ``KINDS``.
        vectors: the place of the labels says that they are vectors.

    Raises:
        UserError: the values can be read in two ways, or do not fit what was said; the message shows two of them and
            the option that settles it.
    """
    if labels_are is not None and labels_are not in KINDS:
        raise UserError(f"--labels-are {labels_are}: expected {', '.join(KINDS)}{did_you_mean(labels_are, KINDS)}")
    kind = labels_are or _decide_kind(survey, where, classes, vectors)
    if kind == "names":
        kept = tuple(name for name in classes or () if is_missing(name))
        return LabelReading("names", decide_separators(survey, where, classes), kept=kept)
    if kind == "indices":
        if not labels_are and classes is None:
            _refuse_sparse_indices(survey, where)
        return LabelReading("indices")
    lengths = {length: examples[0] for length, examples in survey.vectors.items()}
    lengths |= {len(parts): (place, parts) for parts, place in survey.lists.items()}
    lengths |= dict([(1, (place, (cell,))) for cell, place in survey.cells.items()][:1])
    if classes is not None:
        odd = next((example for length, example in lengths.items() if length != len(classes)), None)
        if odd is not None:
            raise UserError(
                f"{where}: {odd[0]} is labelled {text_of(odd[1])}, which would be a vector of "
                f"{counted(len(odd[1]), 'class')}, and there are {len(classes)} in the list of classes; mend the list, "
                "or say what the labels are with --labels-are indices"
            )
    elif len(lengths) > 1:
        raise two_ways(where, "vectors of different lengths", list(lengths.values()), "mend them")
    signed = kind == "signed"
    if not labels_are and survey.values[-1]:
        if not survey.values[0]:
            signed = True
        elif survey.values[-1] > survey.values[0]:
            raise two_ways(
                where,
                "vectors with more of -1 than of 0",
                [example for examples in survey.vectors.values() for example in examples],
                "--labels-are multi-hot reads -1 as ignored, --labels-are signed as negative (and 0 as ignored)",
            )
    length = len(classes) if classes is not None else next(iter(lengths), 0)
    return LabelReading("signed" if signed else "multi-hot", "", length, survey.values[-1] > 0)


def _decide_kind(survey: LabelSurvey, where: str, classes: Sequence[str] | None, vectors: bool) -> Kind:
    if survey.num_decimal_commas and survey.num_decimal_commas == survey.num_lists:
        commas = [example for examples in survey.vectors.values() for example in examples]
        commas += [(place, parts) for parts, place in survey.lists.items()]
        what = "numbers with a decimal comma, or lists of two"
        raise two_ways(where, what, commas, "write whole numbers; for lists add --labels-are indices or multi-hot")
    numbers: list[tuple[str, Any]] = [examples[0] for examples in survey.vectors.values()]
    names: list[tuple[str, Any]] = []
    for cell, place in survey.cells.items():
        (numbers if _NUMBER.fullmatch(cell) else names).append((place, cell))
    for parts, place in survey.lists.items():
        numeric = all(_NUMBER.fullmatch(str(part)) for part in parts)
        (numbers if numeric else names).append((place, parts))
    if names and numbers:
        if classes is not None and not survey.vectors and set(classes).issuperset(map(str, survey.atoms())):
            return "names"
        raise two_ways(where, "names and numbers", [names[0], numbers[0]], "--labels-are names takes all for names")
    numbers += [examples[1] for examples in survey.vectors.values() if len(examples) > 1]
    if names:
        truths = [(place, cell) for cell, place in survey.cells.items() if plain_mark(cell) in TRUTHS]
        if truths and len(truths) == len(survey.cells):
            raise two_ways(
                where, "truth values, which name no class", truths, "--labels-are names takes them for names"
            )
        return "names"
    padded = [(place, cell) for cell, place in survey.cells.items() if re.match(r"[+-]?0\d", cell)]
    if padded:
        settles = "--labels-are names takes them for names as they stand, --labels-are indices for numbers"
        raise two_ways(where, "numbers with leading zeros", [*padded, *numbers], settles)
    if classes is not None and not survey.vectors and not vectors:
        counted = [str(number) for number in range(len(classes))]
        if list(classes) != counted and survey.atoms() and set(classes).issuperset(map(str, survey.atoms())):
            if max(int(float(atom)) for atom in survey.atoms()) >= len(classes):
                return "names"  # there are no such lines to count to
            raise two_ways(
                where,
                "numbers that the list of classes has as names",
                numbers,
                "--labels-are names finds them in the list, --labels-are indices counts its lines from 0",
            )
    others = [*survey.lists.items(), *survey.cells.items()]
    settles = "--labels-are multi-hot or --labels-are indices settles it"
    if vectors and survey.cells and (survey.vectors or survey.lists):
        raise two_ways(where, "vectors and single numbers", numbers, settles)
    if vectors and not survey.cells:
        return "multi-hot"
    if survey.vectors and not others and len(survey.vectors) == 1:
        if not survey.repeats and (classes is None or len(classes) >= 2):
            raise two_ways(where, "lists of 0 and 1 that could be vectors or class indices", numbers, settles)
        return "multi-hot"
    if survey.vectors and survey.repeats:
        raise two_ways(where, "vectors of 0 and 1 beside other lists or lengths", numbers, settles)
    lengths = {len(parts) for parts in survey.lists}
    if len(lengths) == 1 and not survey.cells and not survey.vectors and len(survey.lists) > 1:
        repeated = sum(len(set(parts)) < len(parts) for parts in survey.lists)
        if repeated * 2 > len(survey.lists):
            raise two_ways(where, "lists of one length whose numbers repeat, as counts do", numbers, settles)
        if lengths == {1} and {0, 1}.issuperset(survey.atoms()):
            if classes is not None:
                return "multi-hot" if len(classes) == 1 else "indices"
            raise two_ways(where, "lists of one number, 0 or 1", numbers, settles)
    return "indices"


def _refuse_sparse_indices(survey: LabelSurvey, where: str) -> None:
    numbers = {int(float(atom)) for atom in survey.atoms()} | {
        number for number, count in survey.values.items() if count
    }
    largest = max(numbers, default=0)
    if largest >= 256 and largest + 1 > 4 * len(numbers):
        places = sorted(survey.cells.items(), key=lambda item: -float(item[0]))[:2]
        raise two_ways(
            where,
            f"numbers up to {largest:,} of which only {len(numbers):,} occur",
            [(place, cell) for cell, place in places] or [(place, parts) for parts, place in survey.lists.items()],
            "--labels-are names takes each number for a name, --labels-are indices makes a class of every number up to "
            "the largest, --classes FILE names them",
        )
