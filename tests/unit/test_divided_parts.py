"""Which part gets what of a divided source: errors, counts, photographs that cannot be read, sets of several kinds."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from msldata.build.divide import PARTS, _number, _read, _sides, divide
from msldata.contract.records import LabelSpace, Record
from msldata.errors import BadInputError
from msldata.sources.source import fail
from msldata.storage import LocalStorage


class Whole:
    """Forty photographs, every fourth of which shows nothing, and two annotations that cannot be used."""

    dataset, split, licence, labels = "d", "all", "", LabelSpace(("cat", "dog"))

    def __init__(self, folder: Path, number: int = 40):
        self.number = number
        self.images, self.reject = LocalStorage(folder), fail
        self.provenance: dict[str, Any] = {"source": "mine"}
        self.counts: dict[str, int] = {}
        for one in range(number):
            (folder / f"{one}.jpg").write_bytes(b"%d" % one)

    def records(self) -> Iterator[Record]:
        for number in range(self.number):
            yield Record(f"k{number}", f"{number}.jpg", (number % 2,) if number % 4 else ())
            if number in (3, 30):
                self.reject(BadInputError(f"{number}.xml", "damaged"))
        self.counts |= {"without_any_class": 10, "dropped_without_annotations": 7}


@pytest.mark.parametrize(("number", "parts"), [(19, ("all",)), (20, PARTS)])
def test_twenty_photographs_are_enough_to_be_divided(tmp_path, number, parts):
    whole = Whole(tmp_path, number)
    whole.reject = lambda error: None
    assert tuple(divide(whole)) == parts


@pytest.mark.parametrize("parts", [PARTS, ("val",), ("test", "train")])
def test_what_is_wrong_with_the_whole_is_told_once_by_the_first_part_that_is_built(tmp_path, parts):
    whole = Whole(tmp_path)
    divided = divide(whole, parts)
    assert tuple(divided) == parts and whole.reject is fail
    for number, source in enumerate(divided.values()):
        found: list[str] = []
        source.reject = lambda error, found=found: found.append(error.file)
        records = list(source.records())
        assert found == ([] if number else ["3.xml", "30.xml"])
        bare = sum(not record.positives for record in records)
        dropped = {} if number else {"dropped_without_annotations": 7}
        assert source.counts == {**dropped, "without_any_class": bare}


def test_a_photograph_that_cannot_be_read_has_the_number_of_its_name(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"a")
    names = ["b.jpg", "a.jpg", "c.jpg", "a.jpg"]
    numbers, looks = _read(LocalStorage(tmp_path), names)
    assert numbers == [_number(b"b.jpg"), _number(b"a"), _number(b"c.jpg"), _number(b"a")] and looks == [None] * 4


def test_all_of_a_photograph_is_in_its_number():
    same = bytes(1 << 17)
    assert len({_number(same), _number(same + b"a"), _number(same + b"b")}) == 3


@pytest.mark.parametrize("seed", range(4))
def test_photographs_that_look_alike_go_with_the_group_of_one_of_them(seed):
    """Six in a group; one of no group looks like the first of them, and one like the last."""
    chance = random.Random(seed)
    looks: list[int | None] = [chance.getrandbits(64) for _ in range(80)]
    looks[20], looks[40] = looks[0], looks[5]
    side, said = _sides([[0]] * 80, [chance.random() for _ in looks], looks, ["hill"] * 6 + [""] * 74)
    assert len({side[n] for n in (*range(6), 20, 40)}) == 1
    assert {side[n] for n in range(6, 80) if n not in (20, 40)} == set(PARTS)  # the others each by itself
    assert said == "those of one group (74 are of none)"


def test_how_many_look_alike_counts_all_of_them():
    chance = random.Random(1)
    looks: list[int | None] = [chance.getrandbits(64) for _ in range(90)]
    looks[1] = looks[2] = looks[0]
    looks[4] = looks[3]
    _, said = _sides([[0]] * 90, [chance.random() for _ in looks], looks, [""] * 90)
    assert said == "5 that look nearly like another one"
