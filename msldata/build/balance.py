"""Which photographs are for train, val and test: by their own numbers, and no further from those than balance asks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial

PARTS = ("train", "val", "test")
SHARE = 0.15
"""Of val and of test, each."""
NEAR = 0.025
"""Val and test are at most so much smaller or larger than that, as far as sets and rare classes let them be."""
MOST_BEYOND = 0.5
"""Val and test are at most so much larger than their share, each, however many classes would be missing there."""
_FEWEST_JUDGED, _LARGE_ENOUGH = 2, 12
"""Val and test are to show a class so often each where there are so many photographs of it."""
_LEAST, _MOST = 0.7, 1.4
"""Of its share, what val and test show of a larger class at least and at most: of 100 photographs 10 to 21."""
_ROUNDS = 3
_TRIED = 64
"""How many ways to move a set are weighed at a time."""
_LEAST_GAIN = 1e-9
_MISSING, _BEYOND, _UNTRAINED = 1e3, 1e6, 1e9
"""What a class that val or test lacks weighs against one photograph too many or too few; likewise a photograph beyond
``MOST_BEYOND``, and a class that training lacks."""
_SIZE, _TOO_FEW = 4.0, 8.0
"""What a photograph that val or test has too many or too few of weighs against one of a class, and what a class weighs
that is shown more seldom than ``_FEWEST_JUDGED``."""
_SIZE_AT_FIRST = 0.1
"""And while classes are spread: what is moved for its class makes room for others afterwards."""
_ELSEWHERE, _DISTANCE = 0.5, 3.0
"""What a set weighs that is not where its number says, and how far it is from there: what moves for little gain would
move again when photographs are added."""


def assign(positives_N: Sequence[Sequence[int]], number_N: Sequence[float], *, whole_sets: bool = False) -> list[str]:
    """The part of each photograph; equal numbers, which photographs of one set have, get the same one.

    Args:
        positives_N: the classes that each photograph shows.
        number_N: in [0, 1).
        whole_sets: there are so few sets, or such large ones, that chance would leave a part with nothing: they fill
            test and then val, in the order of their numbers, and the others are trained on.
    """
    return _Division(positives_N, number_N, whole_sets=whole_sets).sides()


def _drawn(number: float) -> str:
    """The part of a number by its size."""
    return "test" if number < SHARE else "val" if number < 2 * SHARE else "train"


def _filled(size_of: Mapping[float, int], total: int) -> dict[float, str]:
    """The part of each number: the first ones for test, until it has its share, then for val, none much beyond."""
    size, side = Counter[str](), {}
    for number in sorted(size_of):
        wanting = (part for part in ("test", "val") if size[part] < SHARE * total)
        most = (1 + MOST_BEYOND) * SHARE * total
        side[number] = next((part for part in wanting if size[part] + size_of[number] <= most), "train")
        size[side[number]] += size_of[number]
    return side


def _away(number: float, part: str) -> float:
    """How far a number is from those that are of a part by themselves."""
    low, high = {"test": (0.0, SHARE), "val": (SHARE, 2 * SHARE), "train": (2 * SHARE, 1.0)}[part]
    return max(low - number, number - high, 0.0)


class _Division:
    """The sets, each in a part, and how far this is from every part having its share of every class.

    A set is first in the part that its number says. Then those are moved that bring the division nearer to the bounds,
    and of several the one whose number is nearest to the part: so it is nearly always the same ones, whatever else
    there is, and none moves where the bounds hold as it is.
    """

    def __init__(self, positives_N: Sequence[Sequence[int]], number_N: Sequence[float], *, whole_sets: bool):
        self.number_N = number_N
        self.total = len(number_N)
        self.size_of = Counter(number_N)
        self.classes: dict[float, Counter[int]] = {number: Counter() for number in self.size_of}
        for positives, number in zip(positives_N, number_N, strict=True):
            self.classes[number].update(positives)
        self.side = (
            _filled(self.size_of, self.total) if whole_sets else {number: _drawn(number) for number in self.size_of}
        )
        self.whole_sets = whole_sets
        self.size_weight = _SIZE
        self.size = Counter(dict.fromkeys(PARTS, 0))
        self.shown: dict[str, Counter[int]] = {part: Counter() for part in PARTS}
        self.having: dict[int, list[float]] = {}
        for number in sorted(self.size_of):
            self.size[self.side[number]] += self.size_of[number]
            self.shown[self.side[number]].update(self.classes[number])
            for k in self.classes[number]:
                self.having.setdefault(k, []).append(number)
        count_of = {k: sum(self.classes[number][k] for number in numbers) for k, numbers in self.having.items()}
        self.bounds = {k: _bounds(count_of[k], len(numbers)) for k, numbers in self.having.items()}
        self.least = math.ceil((SHARE - NEAR) * self.total)
        self.most = max(math.floor((SHARE + NEAR) * self.total), self.least)
        self.beyond = (1 + MOST_BEYOND) * SHARE * self.total

    def sides(self) -> list[str]:
        """The part of each photograph, once no move makes it better."""
        rarest_first = sorted(self.having, key=lambda k: (len(self.having[k]), k))
        for _ in range(_ROUNDS):
            moved, self.size_weight = 0, _SIZE_AT_FIRST
            for k in rarest_first:
                moved += self._mend(self.having[k], partial(self._is_badly_spread, k))
            self.size_weight = _SIZE
            moved += self._mend(list(self.side), self._is_badly_sized)
            if not moved:
                break
        return [self.side[number] for number in self.number_N]

    def _is_badly_spread(self, k: int) -> bool:
        return any(self._of_class(part, k, 0) for part in PARTS)

    def _is_badly_sized(self) -> bool:
        return any(self._of_size(part, 0) for part in PARTS)

    def _mend(self, numbers: Sequence[float], is_wrong: Callable[[], bool]) -> int:
        """Move sets as long as something is wrong and a move makes it better: of the nearest ones the best, and those
        further away where none of them does. Returns the number of moves."""
        if not is_wrong():
            return 0
        ways = sorted((self._distance(number, part), number, part) for number in numbers for part in PARTS)
        moved = start = 0
        while start < len(ways) and is_wrong():
            possible = [way for way in ways[start : start + _TRIED] if way[2] != self.side[way[1]]]
            gain, way = min(
                ((self._change(number, part), (away, number, part)) for away, number, part in possible),
                default=(0.0, None),
            )
            if way is None or gain > -_LEAST_GAIN:
                start += _TRIED
                continue
            self._put(way[1], way[2])
            moved += 1
        return moved

    def _put(self, number: float, part: str) -> None:
        self.size[self.side[number]] -= self.size_of[number]
        self.size[part] += self.size_of[number]
        self.shown[self.side[number]].subtract(self.classes[number])
        self.shown[part].update(self.classes[number])
        self.side[number] = part

    def _distance(self, number: float, part: str) -> float:
        """How far a set would be from where its number alone would put it; groups are put in order, not by number."""
        return 0.0 if self.whole_sets else _away(number, part)

    def _change(self, number: float, part: str) -> float:
        """By how much a move makes the division worse; negative: better."""
        here, size = self._distance(number, self.side[number]), self.size_of[number]
        there = self._distance(number, part)
        change = _DISTANCE * (there - here) + _ELSEWHERE * ((there > 0) - (here > 0))
        for where, sign in ((self.side[number], -1), (part, 1)):
            change += self._of_size(where, sign * size) - self._of_size(where, 0)
            for k, count in self.classes[number].items():
                change += self._of_class(where, k, sign * count) - self._of_class(where, k, 0)
        return change

    def _of_size(self, part: str, more: int) -> float:
        """What is wrong with the size of a part when it has so many more."""
        size = self.size[part] + more
        if part == "train":
            return 0.0
        wrong = max(self.least - size, size - self.most, 0)
        return self.size_weight * wrong + _BEYOND * max(size - self.beyond, 0)

    def _of_class(self, part: str, k: int, more: int) -> float:
        """What is wrong with how often a part shows a class when it shows it so many times more."""
        shown = self.shown[part][k] + more
        if part == "train":
            return _UNTRAINED * (not shown)
        least, most = self.bounds[k]
        seldom = _MISSING * (least > 0 and not shown) + _TOO_FEW * (shown < min(least, _FEWEST_JUDGED))
        return seldom + max(least - shown, shown - most, 0)


def _bounds(count: int, num_sets: int) -> tuple[int, int]:
    """How many photographs of a class val and test are to have, at least and at most."""
    if num_sets < len(PARTS):
        return 0, count
    share = SHARE * count
    least = _FEWEST_JUDGED if count >= _LARGE_ENOUGH else 1
    return max(least, math.floor(_LEAST * share)), max(_FEWEST_JUDGED, math.ceil(share), math.floor(_MOST * share))
