"""Train, val and test of a dataset that has no splits: every photograph's own bytes decide."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from msldata.contract.judging import FEWEST, too_few_to_judge
from msldata.contract.records import LabelSpace, Record
from msldata.errors import BadInputError
from msldata.sources.kinds import KINDS
from msldata.sources.source import WHOLE_SPLIT, FoundSource, Source, SourceOptions, fail
from msldata.storage import Storage

PARTS = ("train", "val", "test")
SHARE = 0.15
"""Of val and of test, each."""
MOST_BEYOND = 0.5
"""Val and test are at most so much larger than that, each, however many classes would be missing there."""
_PARALLEL_READS = 16


class DividedSource:
    """One part of a source that has no splits; what `Source` says.

    Args:
        whole: the source.
        split: ``train``, ``val`` or ``test``.
        records: those of the part.
        errors: records that cannot be used, to be rejected here.
        counts: what was left out of the whole source, counted here.
    """

    def __init__(
        self,
        whole: Source,
        split: str,
        records: Sequence[Record],
        errors: Sequence[BadInputError] = (),
        counts: dict[str, int] | None = None,
    ):
        self.dataset, self.split = whole.dataset, split
        self.labels: LabelSpace = whole.labels
        self.images: Storage = whole.images
        self.licence = whole.licence
        self.provenance: dict[str, Any] = {
            **whole.provenance,
            "divided": f"by SHA-256 of the images, {SHARE} each for val and test",
        }
        self.notes: tuple[str, ...] = getattr(whole, "notes", ())
        self.counts = dict(counts or {})
        if "without_any_class" in whole.counts:
            self.counts["without_any_class"] = sum(not record.positives for record in records)
        self.reject: Callable[[BadInputError], None] = fail
        self._records, self._errors = records, errors

    @property
    def num_records(self) -> int:
        return len(self._records)

    @property
    def shown(self) -> Counter[int]:
        """How many of the part's records show each class."""
        return Counter(k for record in self._records for k in record.positives)

    def records(self) -> Iterator[Record]:
        """The part's records, in the source's order."""
        for error in self._errors:
            self.reject(error)
        yield from self._records


def parts_to_build(
    found: FoundSource, asked: Sequence[str] | None, options: SourceOptions, *, divide_unasked: bool
) -> tuple[str, ...] | None:
    """The parts to divide a source into; None where it has splits, or shall be built whole (``all``).

    Args:
        found: the source.
        asked: the splits asked for, if any.
        options: those of the source.
        divide_unasked: divide a source without splits where none is asked for.
    """
    if not asked:
        return PARTS if divide_unasked and found.splits == (WHOLE_SPLIT,) else None
    if not set(asked) <= set(PARTS) or KINDS[found.dataset].splits(found.root, options) != (WHOLE_SPLIT,):
        return None
    return tuple(asked)


def divide(whole: Source, parts: Sequence[str] = PARTS) -> dict[str, Source]:
    """The parts of a source, by name; of fewer than ``FEWEST`` records the source itself, as ``all``.

    A number in [0, 1) made of the SHA-256 of a photograph's bytes decides: below 0.15 it is for test, below 0.3 for
    val. So copies of one photograph under several names are always in the same part, and adding photographs moves
    none of the others, but for one thing: into a part that lacks a class goes the photograph of it with the smallest
    number that another part can spare. With many rare classes that would take far more than was said: val and test get
    at most half as much again, for the classes with most photographs; what is beyond that by chance, which happens
    among few, is trained on. Every photograph is read once.

    Args:
        whole: a source whose one split is ``all``.
        parts: which of them are wanted.
    """
    errors: list[BadInputError] = []
    whole.reject = errors.append
    records = list(whole.records())
    whole.reject = fail
    if len(records) < FEWEST:
        return {WHOLE_SPLIT: whole}
    number_N = _numbers(whole.images, [record.image for record in records])
    side_N = assign([record.positives for record in records], number_N)
    others = {name: count for name, count in whole.counts.items() if name != "without_any_class"}
    return {
        part: DividedSource(
            whole,
            part,
            [record for record, side in zip(records, side_N, strict=True) if side == part],
            errors if part == parts[0] else (),
            others if part == parts[0] else None,
        )
        for part in parts
    }


def assign(positives_N: Sequence[Sequence[int]], number_N: Sequence[float]) -> list[str]:
    """The part of each photograph; equal numbers, which equal photographs have, get the same one.

    Args:
        positives_N: the classes that each photograph shows.
        number_N: in [0, 1).
    """
    sides = _assign(positives_N, number_N)
    most = (1 + MOST_BEYOND) * SHARE * len(number_N)
    if max(sides.count("val"), sides.count("test")) > most:
        return _assign(positives_N, number_N, most)
    return sides


def _assign(positives_N: Sequence[Sequence[int]], number_N: Sequence[float], most: float | None = None) -> list[str]:
    """As above; with ``most``, the largest number of photographs of val and of test, common classes come first."""
    classes: dict[float, set[int]] = {}
    for positives, number in zip(positives_N, number_N, strict=True):
        classes.setdefault(number, set()).update(positives)
    side = {number: "test" if number < SHARE else "val" if number < 2 * SHARE else "train" for number in classes}
    shown: dict[str, dict[int, int]] = {part: {} for part in PARTS}
    having: dict[int, list[float]] = {}
    for number in sorted(classes):
        for k in classes[number]:
            having.setdefault(k, []).append(number)
            shown[side[number]][k] = shown[side[number]].get(k, 0) + 1

    copies = Counter(number_N)
    size = Counter(side[number] for number in number_N)

    def move(number: float, part: str) -> None:
        size[side[number]] -= copies[number]
        size[part] += copies[number]
        for k in classes[number]:
            shown[side[number]][k] -= 1
            shown[part][k] = shown[part].get(k, 0) + 1
        side[number] = part

    rarest_first = sorted(having, key=lambda k: (len(having[k]), k))
    for k in rarest_first:  # what training never sees, it cannot learn
        if not shown["train"].get(k):
            move(having[k][-1], "train")
    if most is not None:
        for number in sorted(classes, reverse=True):  # chance weighs much among few
            if side[number] != "train" and size[side[number]] > most:
                move(number, "train")
    for part in ("val", "test"):
        for k in rarest_first if most is None else sorted(having, key=lambda k: (-len(having[k]), k)):
            if shown[part].get(k):
                continue
            spare = [
                n
                for n in having[k]
                if all(shown[side[n]][other] > 1 for other in classes[n])
                and (most is None or size[part] + copies[n] <= most)
            ]
            if spare:
                move(min(spare, key=lambda n: (side[n] != "train", n)), part)
    return [side[number] for number in number_N]


def division_said(parts: Mapping[str, Source]) -> str:
    """How a source was divided, for whoever builds it."""
    sizes = [f"{part.num_records:,} for {name}" for name, part in parts.items() if isinstance(part, DividedSource)]
    if not sizes:
        return f"no splits, and fewer than {FEWEST} photographs: all stay together"
    return (
        f"no splits, so the hash of each photograph divides them: {', '.join(sizes)}; --split {WHOLE_SPLIT} builds one"
    )


def hardly_shown(parts: Mapping[str, Source]) -> str:
    """What val and test of a divided source show too seldom, in a sentence; empty where there is nothing."""
    divided = {name: part for name, part in parts.items() if isinstance(part, DividedSource)}
    present = sorted({k for part in divided.values() for k in part.shown})
    return too_few_to_judge(
        {
            name: {part.labels.classes[k]: part.shown[k] for k in present}
            for name, part in divided.items()
            if name != PARTS[0]
        }
    )


def _numbers(images: Storage, names: Sequence[str]) -> list[float]:
    """A number in [0, 1) for each photograph, made of its bytes; of one that cannot be read, of its name."""

    def number(name: str) -> float:
        try:
            content = images.read(name)
        except (OSError, ValueError):  # the build says what is wrong with it
            content = name.encode()
        return int.from_bytes(hashlib.sha256(content).digest()[:6]) / 2**48

    unique = list(dict.fromkeys(names))
    with ThreadPoolExecutor(_PARALLEL_READS) as readers:
        found = dict(zip(unique, readers.map(number, unique), strict=True))
    return [found[name] for name in names]
