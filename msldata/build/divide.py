"""Train, val and test of a dataset that has no splits: every photograph's own bytes decide."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import Any, TypeVar

from msldata.build.alike import alike, joined, look_of
from msldata.contract.judging import FEWEST, too_few_to_judge
from msldata.contract.records import LabelSpace, Record
from msldata.errors import BadInputError, UserError, counted
from msldata.sources.kinds import KINDS
from msldata.sources.source import WHOLE_SPLIT, FoundSource, Source, SourceOptions, fail
from msldata.storage import Storage

Name = TypeVar("Name", int, str)

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
        together: what was kept in one part besides copies, in words.
    """

    def __init__(
        self,
        whole: Source,
        split: str,
        records: Sequence[Record],
        errors: Sequence[BadInputError] = (),
        counts: dict[str, int] | None = None,
        together: str = "",
    ):
        self.dataset, self.split = whole.dataset, split
        self.labels: LabelSpace = whole.labels
        self.images: Storage = whole.images
        self.licence = whole.licence
        self.together = together
        kept = f"; {together}" if together else ""
        self.provenance: dict[str, Any] = {
            **whole.provenance,
            "divided": f"by SHA-256 of the images, {SHARE} each for val and test{kept}",
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


def refuse_needless_group(found: FoundSource, parts: Sequence[str] | None) -> None:
    """Raise UserError where ``--group`` would say nothing: nothing is divided, or the groups would be the classes."""
    if parts is None:
        said = f"{found.root}: is not divided, so --group says nothing; "
        if found.splits == (WHOLE_SPLIT,):
            raise UserError(f"{said}name it without --source and without --split {WHOLE_SPLIT}, or leave --group out")
        raise UserError(f"{said}it has the splits {', '.join(found.splits)}")
    if found.dataset == "folders":
        raise UserError(f"{found.root}: its folders are the classes, so photographs cannot be kept together by them")


def divide(whole: Source, parts: Sequence[str] = PARTS, *, by_folder: bool = False) -> dict[str, Source]:
    """The parts of a source, by name; of fewer than ``FEWEST`` records the source itself, as ``all``.

    A number in [0, 1) made of the SHA-256 of a photograph's bytes decides: below 0.15 it is for test, below 0.3 for
    val. So copies of one photograph under several names are always in the same part, and adding photographs moves
    none of the others, but for one thing: into a part that lacks a class goes the photograph of it with the smallest
    number that another part can spare. With many rare classes that would take far more than was said: val and test get
    at most half as much again, for the classes with most photographs; what is beyond that by chance, which happens
    among few, is trained on. Every photograph is read once.

    Photographs that look nearly the same, as frames of one scene do, stay in one part too: trained on and judged by,
    they would flatter every model. Which others belong together only their owner knows: those of one group, where the
    source names groups, are never parted, and whole groups fill test and val.

    Args:
        whole: a source whose one split is ``all``; ``groups``, if it has that, is the group of each record by its key.
        parts: which of them are wanted.
        by_folder: the photographs of a folder are a group.

    Raises:
        UserError: there are too few groups, or one is too large, for val and test to get any.
    """
    errors: list[BadInputError] = []
    whole.reject = errors.append
    records = list(whole.records())
    whole.reject = fail
    if len(records) < FEWEST:
        return {WHOLE_SPLIT: whole}
    named = getattr(whole, "groups", {})
    group_N = [
        PurePosixPath(record.image).parent.as_posix() if by_folder else named.get(record.key, "") for record in records
    ]
    number_N, look_N = _read(whole.images, [record.image for record in records])
    side_N, together = _sides([record.positives for record in records], number_N, look_N, group_N)
    others = {name: count for name, count in whole.counts.items() if name != "without_any_class"}
    return {
        part: DividedSource(
            whole,
            part,
            [record for record, side in zip(records, side_N, strict=True) if side == part],
            errors if part == parts[0] else (),
            others if part == parts[0] else None,
            together,
        )
        for part in parts
    }


def _sides(
    positives_N: Sequence[Sequence[int]],
    number_N: Sequence[float],
    look_N: Sequence[int | None],
    group_N: Sequence[str],
) -> tuple[list[str], str]:
    """The part of each photograph, and what was kept in one part, in words."""
    near_N = joined(len(number_N), alike(look_N))
    if any(group_N):
        groups = _members(group_N)
        groups.pop("", None)
        set_N = joined(
            len(number_N), [(first, rest) for first, *rest in (*_members(near_N).values(), *groups.values())]
        )
        of_group_N = [_number(group.encode()) if group else number for group, number in zip(group_N, number_N)]
        side_N = assign(positives_N, _least(set_N, of_group_N), whole_sets=True)
        if missing := [part for part in PARTS if part not in side_N]:
            raise UserError(
                f"{counted(len(groups), 'group')} of photographs cannot be divided so that {' and '.join(missing)} get "
                f"some: the largest has {max(map(len, groups.values())):,} of {len(group_N):,}; group by something "
                "finer, or name the split of each photograph in a column"
            )
        one = f"one of {len(groups):,} groups" if len(groups) > 1 else "one group"
        alone = sum(not group for group in group_N)
        return side_N, f"those of {one} together" + (f" ({alone:,} are of none)" if alone else "")
    if num_near := sum(count for count in Counter(near_N).values() if count > 1):
        side_N = assign(positives_N, _least(near_N, number_N))
        if min(side_N.count("val"), side_N.count("test")) >= SHARE / 2 * len(side_N):
            return side_N, f"{num_near:,} that look nearly like another one with it"
    return assign(positives_N, number_N), ""


def _members(name_N: Sequence[Name]) -> dict[Name, list[int]]:
    """The positions of each name."""
    found: dict[Name, list[int]] = {}
    for n, name in enumerate(name_N):
        found.setdefault(name, []).append(n)
    return found


def _least(set_N: Sequence[int], number_N: Sequence[float]) -> list[float]:
    """The smallest number of each photograph's set."""
    least = {one: min(number_N[n] for n in members) for one, members in _members(set_N).items()}
    return [least[one] for one in set_N]


def assign(positives_N: Sequence[Sequence[int]], number_N: Sequence[float], *, whole_sets: bool = False) -> list[str]:
    """The part of each photograph; equal numbers, which photographs of one set have, get the same one.

    Args:
        positives_N: the classes that each photograph shows.
        number_N: in [0, 1).
        whole_sets: there are so few sets, or such large ones, that chance would leave a part with nothing: they fill
            test and then val, in the order of their numbers, and the others are trained on.
    """
    most = (1 + MOST_BEYOND) * SHARE * len(number_N)
    begin = _filled(number_N, most) if whole_sets else _drawn(number_N)
    sides = _assign(positives_N, number_N, begin)
    if max(sides.count("val"), sides.count("test")) > most:
        return _assign(positives_N, number_N, begin, most)
    return sides


def _drawn(number_N: Sequence[float]) -> dict[float, str]:
    """The part of each number by its size."""
    return {number: "test" if number < SHARE else "val" if number < 2 * SHARE else "train" for number in number_N}


def _filled(number_N: Sequence[float], most: float) -> dict[float, str]:
    """The part of each number: the first ones for test, until it has its share, then for val, none beyond ``most``."""
    copies, size, side = Counter(number_N), Counter[str](), {}
    for number in sorted(copies):
        wanting = (part for part in ("test", "val") if size[part] < SHARE * len(number_N))
        side[number] = next((part for part in wanting if size[part] + copies[number] <= most), "train")
        size[side[number]] += copies[number]
    return side


def _assign(
    positives_N: Sequence[Sequence[int]],
    number_N: Sequence[float],
    begin: Mapping[float, str],
    most: float | None = None,
) -> list[str]:
    """As above; with ``most``, the largest number of photographs of val and of test, common classes come first."""
    classes: dict[float, set[int]] = {}
    for positives, number in zip(positives_N, number_N, strict=True):
        classes.setdefault(number, set()).update(positives)
    side = dict(begin)
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
    divided = {name: part for name, part in parts.items() if isinstance(part, DividedSource)}
    if not divided:
        return f"no splits, and fewer than {FEWEST} photographs: all stay together"
    sizes = ", ".join(f"{part.num_records:,} for {name}" for name, part in divided.items())
    kept = next(iter(divided.values())).together
    return (
        f"no splits, so the hash of each photograph divides them{kept and f', {kept}'}: {sizes}; --split {WHOLE_SPLIT} "
        "builds one"
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


def _read(images: Storage, names: Sequence[str]) -> tuple[list[float], list[int | None]]:
    """A number in [0, 1) for each photograph, made of its bytes, and how it looks; of one that cannot be read, a number
    made of its name."""

    def read(name: str) -> tuple[float, int | None]:
        try:
            content = images.read(name)
        except (OSError, ValueError):  # the build says what is wrong with it
            return _number(name.encode()), None
        return _number(content), look_of(content)

    unique = list(dict.fromkeys(names))
    with ThreadPoolExecutor(_PARALLEL_READS) as readers:
        found = dict(zip(unique, readers.map(read, unique), strict=True))
    return [found[name][0] for name in names], [found[name][1] for name in names]


def _number(content: bytes) -> float:
    return int.from_bytes(hashlib.sha256(content).digest()[:6]) / 2**48
