"""How large val and test are, how often they show each class, and who stays where when photographs are added."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import pytest

from msldata.build.balance import PARTS, _bounds, assign

JUDGED = ("val", "test")


def drawn(num: int, seed: int, kind: str = "even") -> tuple[list[list[int]], list[float]]:
    """Classes and numbers of photographs in the order in which they are taken: one of five classes, or up to three of
    ten uneven ones."""
    chance = random.Random(f"{kind} {num} {seed}")
    classes = [
        [chance.randrange(5)]
        if kind == "even"
        else sorted({int(10 * chance.random() ** 2) for _ in range(chance.choice([0, 1, 1, 2, 3]))})
        for _ in range(num)
    ]
    return classes, [chance.random() for _ in range(num)]


def shown(classes: Sequence[Sequence[int]], sides: Sequence[str], part: str) -> Counter[int]:
    return Counter(k for one, side in zip(classes, sides, strict=True) if side == part for k in one)


@pytest.mark.parametrize("kind", ["even", "uneven"])
@pytest.mark.parametrize("num", [50, 107, 141, 300, 1000])
def test_val_and_test_have_their_share(num: int, kind: str):
    for seed in range(8):
        sides = assign(*drawn(num, seed, kind))
        assert all(0.12 * num <= sides.count(part) <= 0.18 * num for part in JUDGED), (seed, Counter(sides))


@pytest.mark.parametrize(("num", "least", "most"), [(33, 5, 5), (60, 8, 10), (61, 8, 10), (63, 8, 11), (100, 13, 17)])
def test_the_share_is_kept_to_the_photograph(num: int, least: int, most: int):
    """12.5 and 17.5 % of all, rounded inwards; of 33 that is 5 alone."""
    sizes = [Counter(assign([[]] * num, drawn(num, seed)[1])) for seed in range(12)]
    found = [size[part] for size in sizes for part in JUDGED]
    assert (min(found), max(found)) == (least, most)


@pytest.mark.parametrize(
    ("count", "num_sets", "bounds"),
    [
        (6, 2, (0, 6)),
        (2, 2, (0, 2)),
        (3, 3, (1, 2)),
        (11, 11, (1, 2)),
        (12, 3, (2, 2)),
        (20, 20, (2, 4)),
        (100, 90, (10, 21)),
    ],
)
def test_how_often_a_class_is_to_be_judged(count: int, num_sets: int, bounds: tuple[int, int]):
    """Of a class in two sets each part cannot have one, however many photographs there are."""
    assert _bounds(count, num_sets) == bounds


@pytest.mark.parametrize("seed", range(20))
def test_fourteen_of_a_class_are_not_judged_by_one(seed: int):
    classes = [[0]] * 14 + [[1]] * 15 + [[2, 3]] * 30 + [[3]] * 48
    sides = assign(classes, drawn(len(classes), seed)[1])
    for part in JUDGED:
        found = shown(classes, sides, part)
        assert min(found[0], found[1]) >= 2 and found[2] >= 2 and found[3] >= 8, found
        assert 0.12 * 107 <= sides.count(part) <= 0.18 * 107


@pytest.mark.parametrize("seed", range(5))
def test_numbers_alone_decide_where_there_are_enough(seed: int):
    """Whatever is added then, nothing moves."""
    classes, numbers = drawn(4000, seed)
    assert assign(classes, numbers) == ["test" if n < 0.15 else "val" if n < 0.3 else "train" for n in numbers]


@pytest.mark.parametrize(("grown", "most", "most_to_train"), [(1.1, 0.04, 0.02), (1.5, 0.06, 0.03)])
def test_few_photographs_move_when_others_are_added(grown: float, most: float, most_to_train: float):
    moved = to_train = 0
    for seed in range(30):
        classes, numbers = drawn(round(107 * grown), seed)
        before, after = assign(classes[:107], numbers[:107]), assign(classes, numbers)[:107]
        moved += sum(one != other for one, other in zip(before, after, strict=True))
        to_train += sum(one != "train" == other for one, other in zip(before, after, strict=True))
    assert moved <= most * 107 * 30 and to_train <= most_to_train * 107 * 30, (moved, to_train)


def test_the_order_of_the_photographs_says_nothing():
    classes, numbers = drawn(107, 3, "uneven")
    sides = dict(zip(numbers, assign(classes, numbers), strict=True))
    order = list(range(107))
    random.Random(0).shuffle(order)
    again = assign([classes[n] for n in order], [numbers[n] for n in order])
    assert again == [sides[numbers[n]] for n in order]


@pytest.mark.parametrize("seed", range(10))
def test_sets_stay_whole_and_are_balanced_as_far_as_they_let_it(seed: int):
    chance = random.Random(seed)
    sizes = [chance.choice([1, 1, 1, 2, 2, 3, 4, 6]) for _ in range(120)]
    numbers = [number for size in sizes for number in [chance.random()] * size]
    sides = assign([[n % 4] for n in range(len(numbers))], numbers)
    assert all(one == other for (a, one), (b, other) in pairwise(zip(numbers, sides, strict=True)) if a == b)
    assert all(0.12 * len(sides) <= sides.count(part) <= 0.18 * len(sides) for part in JUDGED)


@pytest.mark.parametrize("whole_sets", [False, True])
def test_groups_too_large_for_a_share_leave_every_class_to_training(whole_sets: bool):
    classes = [[n // 10] for n in range(100)]
    sides = assign(classes, [n // 5 / 20 for n in range(100)], whole_sets=whole_sets)
    assert set(sides) == set(PARTS) and set(shown(classes, sides, "train")) == set(range(10))
