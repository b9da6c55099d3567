"""How label values are read: what a value holds, and what all values of a dataset are together."""

from __future__ import annotations

import re
from typing import Any

import pytest

from msldata.contract.records import LARGE_FROM, SHARES, SMALL_BELOW, VOC_CLASSES, LabelSpace, ObjectRecord
from msldata.errors import UserError
from msldata.sources.labels.reading import LabelReading, Labels, decide_reading
from msldata.sources.labels.separators import decide_separators, name_of, split_cell
from msldata.sources.labels.survey import LabelSurvey, text_of, two_ways
from msldata.sources.labels.values import WHOLE_CELL, parse_value, shown


def survey_of(*values: Any, separator: str | None = None) -> LabelSurvey:
    survey = LabelSurvey(separator)
    for number, value in enumerate(values):
        survey.add(f"line {number + 1}", value)
    return survey


def reading_of(*values: Any, separator: str | None = None, **options: Any) -> LabelReading:
    return decide_reading(survey_of(*values, separator=separator), "t.csv", **options)


def read(*values: Any, **options: Any) -> list[tuple[tuple, tuple]]:
    reading = reading_of(*values, **options)
    found = [reading.read(value) for value in values]
    return [(labels.positives, labels.ignored) for labels in found]


FIELDS = (
    "choices labels rectanglelabels polygonlabels brushlabels keypointlabels ellipselabels label category categories "
    "class name"
)
"""Where annotation tools keep what was chosen."""


# --- records ----------------------------------------------------------------------------------------------------------


def test_sizes_and_defaults_of_objects():
    assert (SMALL_BELOW, LARGE_FROM, SHARES) == (1024, 9216, (1, 1))
    assert ObjectRecord(2, (0, 0, 8, 4), 32.0) == (2, (0, 0, 8, 4), 32.0, False, None, None, False)


def test_a_label_space_counts_from_zero_and_names_what_it_refuses():
    space = LabelSpace(("boat", "aeroplane"))
    assert [space.index("boat"), space.index("aeroplane"), len(space)] == [0, 1, 2]
    assert "boat" in space and "car" not in space and space.names((1, 0, 1)) == ["aeroplane", "boat", "aeroplane"]
    assert len({space, LabelSpace(("boat", "aeroplane"))}) == 1
    assert repr(space) == "LabelSpace(classes=('boat', 'aeroplane'))"
    for empty in ((), ("a", "")):
        with pytest.raises(UserError, match="at least one class and no empty names"):
            LabelSpace(empty)
    with pytest.raises(UserError, match=r"named twice: a, b, c, d, e, f$"):
        LabelSpace(tuple("gfedcba" + "fedcba"))


@pytest.mark.parametrize(("number", "rest"), [(1, ""), (30, ""), (31, " …")])
def test_an_unknown_class_is_refused_with_thirty_that_are_known(number: int, rest: str):
    names = [f"c{index:02d}" for index in range(number)]
    with pytest.raises(UserError) as refused:
        LabelSpace(tuple(names)).index("x")
    assert str(refused.value) == f"unknown class 'x'; known are: {', '.join(names[:30])}{rest}"


def test_the_classes_of_voc_are_alphabetical():
    assert len(VOC_CLASSES) == 20 and list(VOC_CLASSES) == sorted(VOC_CLASSES)
    assert VOC_CLASSES[0] == "aeroplane" and VOC_CLASSES[14] == "person" and VOC_CLASSES[19] == "tvmonitor"


# --- one value --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        *[(missing, None) for missing in "nan NaN -nan -NaN NA <NA> N/A n/a #N/A null NULL None".split()],
        *[(missing, None) for missing in (None, "", " ", float("nan"))],
        ("none", ("none",)),  # only as programs write it
        (" a cat ", ("a cat",)),
        ("cat;dog", ("cat;dog",)),
        ("true", ("true",)),
        ("7", ("7",)),
        (7, (7,)),
        (2.0, (2,)),
        ("1 0 1", (1, 0, 1)),
        ("1,0;2|3", (1, 0, 2, 3)),
        (" +1, -1.0 ", (1, -1)),
        ("1.5 2", ("1.5 2",)),
        ("1234567890 1", ("1234567890 1",)),
        ("[1, 0, 1]", (1, 0, 1)),
        ("['cat', 'dog']", ("cat", "dog")),
        ("('cat', 'dog')", ("cat", "dog")),
        ('["cat", "dog"]', ("cat", "dog")),
        ("['cat' 'dog']", ("cat", "dog")),
        ("[0. 1. 1.]", (0, 1, 1)),
        ("[0 1 1]", (0, 1, 1)),
        ("(0 1 1)", ("(0 1 1)",)),
        ("(cat)", ("(cat)",)),
        ([], ()),
        (["a ", 3, 1.0], ("a", 3, 1)),
        ({"b", "a", "c"}, ("a", "b", "c")),
        ([True, False], (1, 0)),
        ({}, ()),
        ({"cat": 1, "dog": 0, "cow": 1.0}, ("cat", "cow")),
        ({"label": 1}, (1,)),
        ({"label": 1, "cat": 0}, ("label",)),
        ({"label": "cat", "score": 0.5}, ("cat",)),
        *[({field: ["cat", "dog"], "id": 7}, ("cat", "dog")) for field in FIELDS.split()],
        ({"choices": "cat;dog"}, ("cat;dog",)),
        ({"taxonomy": [["animal", "cat"], "plant"]}, ("animal/cat", "plant")),
        ({"name": None}, ()),
        ([{"category": "cat"}, {"category": "dog"}], ("cat", "dog")),
        ('{"cat": 1, "dog": 0}', ("cat",)),
    ],
)
def test_the_parts_of_a_value(value: Any, parts: tuple | None):
    found = parse_value(value)
    assert found == parts and (parts is None or list(map(type, found)) == list(map(type, parts)))


@pytest.mark.parametrize(
    ("value", "separator", "parts"),
    [
        ("cat; dog ;;", ";", ("cat", "dog")),
        ("1 0", ";", ("1 0",)),
        ("1 0", WHOLE_CELL, ("1 0",)),
        ("cat;dog|cow", ";|", ("cat", "dog", "cow")),
        ("cat;dog", WHOLE_CELL, ("cat;dog",)),
        ("a-b]c^d", "-]^", ("a", "b", "c", "d")),
    ],
)
def test_a_text_is_split_at_what_is_given(value: str, separator: str, parts: tuple):
    assert parse_value(value, separator) == parts


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (True, "labels are True, expected class names"),
        (0.5, "labels hold 0.5; a score is not a label"),
        (float("inf"), "labels hold inf; a score"),
        ([float("nan")], "labels hold nan; a score"),
        ([None], r"labels are \[None\], expected a list of class names or numbers"),
        ([""], r"expected a list of class names or numbers"),
        ({"cat": 2}, "expected choices, or class names with 0 or 1 for each"),
        ({"label": "a", "name": "b"}, "expected choices, or class names with 0 or 1 for each"),
        (b"cat", "labels are b'cat', expected class names, class indices or a vector"),
        ("[0 0 ... 0 1]", "which begins like a list but is not one"),
        ("[1, 2", "which begins like a list but is not one"),
        ("[0 1 1", "which begins like a list but is not one"),
        ("{cat", "which begins like a list but is not one"),
    ],
)
def test_what_is_no_label(value: Any, says: str):
    with pytest.raises(ValueError, match=says):
        parse_value(value)


def test_a_list_in_a_text_has_at_most_a_million_characters():
    text = f"[{'1,' * (2**19 - 2)}10]"
    assert len(text) == 2**20 and len(parse_value(text)) == 2**19 - 1
    assert parse_value(f" {text[:-1]}0] ") == (f"{text[:-1]}0]",)


def test_a_long_value_is_cut():
    assert shown("x" * 78) == repr("x" * 78) and shown("x" * 79) == "'" + "x" * 79 + "…"


def test_class_indices_fit_sixteen_bits():
    assert Labels((0, 32_767)).positives == (0, 32_767)
    for number in (-1, 32_768):
        with pytest.raises(ValueError, match=f"class index {number} is not from 0 to 32767"):
            Labels((), (number,))


# --- all values together ----------------------------------------------------------------------------------------------


def test_ones_and_zeros_of_one_length_are_vectors():
    assert read([1, 0, 1], "0 0 1") == [((0, 2), ()), ((2,), ())]
    reading = reading_of([1, 0, 1], [0, 0, 1])
    assert (reading.kind, reading.length, reading.minus_one) == ("multi-hot", 3, False)
    assert str(reading) == "multi-hot vectors of 3 (1 positive, 0 negative)"
    assert reading.classes(survey_of()) == ("0", "1", "2")
    for odd in ([1, 0], [1, 0, 2], "cat"):
        with pytest.raises(ValueError, match=re.escape("expected multi-hot vectors of 3 (1 positive, 0 negative)")):
            reading.read(odd)


def test_minus_one_is_ignored_beside_zeros_and_negative_without():
    assert read([1, 0, -1], [0, 0, 1]) == [((0,), (2,)), ((2,), ())]
    assert str(reading_of([1, 0, -1], [0, 0, 1])) == "multi-hot vectors of 3 (1 positive, 0 negative, -1 ignored)"
    assert read([1, -1, -1], [-1, -1, 1]) == [((0,), ()), ((2,), ())]
    assert str(reading_of([1, 1, -1])) == "multi-hot vectors of 3 (1 positive, -1 negative, 0 ignored)"
    assert read([1, 0, -1, 1, 1]) == [((0, 3, 4), (2,))]  # as many of each; many ones say nothing
    with pytest.raises(UserError, match="vectors with more of -1 than of 0: line 1 is labelled"):
        reading_of([1, 0, -1, -1])
    assert read([1, 0, -1, -1], labels_are="signed") == [((0,), (1,))]
    assert read([1, 0, -1, -1], labels_are="multi-hot") == [((0,), (2, 3))]


def test_vectors_are_as_long_as_the_list_of_classes():
    assert reading_of([1, 0, 1], classes=("a", "b", "c")).length == 3
    with pytest.raises(UserError, match="a vector of 3 classes, and there are 2 in the list of classes"):
        reading_of([1, 0, 1], classes=("a", "b"))
    with pytest.raises(UserError, match=r"vectors of different lengths: line 1 .*, line 2 .*; mend them"):
        reading_of([1, 0, 1], [1, 1], labels_are="multi-hot")
    with pytest.raises(UserError, match="vectors of different lengths"):
        reading_of([1, 0, 1], "1", labels_are="multi-hot")
    assert read([1, 1, 0], vectors=True) == [((0, 1), ())]
    with pytest.raises(UserError, match="vectors and single numbers"):
        reading_of([1, 1, 0], 1, vectors=True)


def test_other_numbers_are_indices():
    reading = reading_of("3", "5 1", 0)
    assert reading == LabelReading("indices") and str(reading) == "class indices, counted from 0"
    assert read("3", "5 1", "7 7", "2") == [((3,), ()), ((5, 1), ()), ((7,), ()), ((2,), ())]
    assert reading.classes(survey_of("3", "5 1")) == tuple("012345")
    with pytest.raises(ValueError, match="line 1: class index 99999 is not from 0"):
        reading.classes(survey_of(99_999))
    with pytest.raises(ValueError, match="labels are 'cat', expected class indices, counted from 0"):
        reading.read("cat")
    with pytest.raises(ValueError, match="no sample has a class"):
        reading.classes(survey_of("", None))


def test_numbers_up_to_a_high_one_of_which_few_occur_are_asked_about():
    assert reading_of("255", "0").kind == "indices"
    assert reading_of(*map(str, [*range(64), 259])).kind == "indices"  # a quarter of 260 occurs
    for values in (("256", "0"), tuple(map(str, [*range(63), 259]))):
        with pytest.raises(UserError, match=rf"numbers up to {values[-1] if len(values) > 2 else 256} of which only"):
            reading_of(*values)
        assert reading_of(*values, labels_are="indices").kind == "indices"
        assert reading_of(*values, classes=tuple(f"c{number}" for number in range(300))).kind == "indices"
    with pytest.raises(UserError, match=r"line 3 is labelled '900', line 2 is labelled '800'; --labels-are names"):
        reading_of("1", "800", "900")
    with pytest.raises(UserError, match=r"line 1 is labelled \[800, 3\]"):
        reading_of("800 3", "5 2 9")


def test_names_are_names():
    assert str(reading_of("cat", "dog")) == "class names"
    assert str(reading_of("cat;dog", "a|b")) == "class names, separated by ';' or '|'"
    assert read("cat;dog", " dog ;dog") == [(("cat", "dog"), ()), (("dog",), ())]
    assert reading_of("cat;dog").classes(survey_of("cat;dog", ["cow", "cat"])) == ("cat", "cow", "dog")
    assert reading_of("cat", "7", classes=("cat", "7")).kind == "names"
    with pytest.raises(UserError, match=r"names and numbers: line 1 is labelled 'cat', line 2 is labelled '7'"):
        reading_of("cat", "7", classes=("cat", "dog"))
    assert read("cat", "7", labels_are="names") == [(("cat",), ()), (("7",), ())]
    with pytest.raises(UserError, match="truth values, which name no class"):
        reading_of("yes", "No")
    assert reading_of("yes", "maybe").kind == "names"
    with pytest.raises(UserError, match="numbers with leading zeros"):
        reading_of("07", "12")
    assert read("NA", "cat", classes=("NA", "cat")) == [(("NA",), ()), (("cat",), ())]
    with pytest.raises(UserError, match="--labels-are words: expected multi-hot, signed, indices, names"):
        reading_of("cat", labels_are="words")


@pytest.mark.parametrize(
    ("values", "what"),
    [
        (("1,0", "3,0"), "numbers with a decimal comma, or lists of two"),
        (([1, 0], [0, 1]), "lists of 0 and 1 that could be vectors or class indices"),
        (([1, 1, 0], [2, 3, 4]), "vectors of 0 and 1 beside other lists or lengths"),
        (([2, 2, 0], [3, 3, 1]), "lists of one length whose numbers repeat, as counts do"),
        (([0], [1]), "lists of one number, 0 or 1"),
    ],
)
def test_numbers_that_mean_two_things_are_asked_about(values: tuple, what: str):
    with pytest.raises(UserError, match=f"t.csv: the labels are {what}: line 1 is labelled "):
        reading_of(*values)


def test_a_reading_is_kept_in_the_manifest():
    assert LabelReading("names", ";").options() == {
        "kind": "names", "separators": ";", "length": 0, "minus_one": False
    }  # fmt: skip
    kept = LabelReading("names", kept=("NA",))
    assert LabelReading(**kept.options()) == kept and kept.read(" NA ") == Labels(("NA",))
    assert LabelReading("names").read("NA") == Labels(())


def test_what_a_survey_counts_and_keeps():
    survey = survey_of("cat", "cat", ["dog", "cow"], [1, 0], [0, 1], [1, 1], [1, 0, 0], [-1, 0], "", None, [7], "[3]")
    assert survey.cells == {"cat": "line 1"}
    assert survey.lists == {("dog", "cow"): "line 3", (7,): "line 11", (3,): "line 12"}
    assert survey.vectors == {
        2: (("line 6", (1, 1)), ("line 4", (1, 0))), 3: (("line 7", (1, 0, 0)),)
    }  # fmt: skip
    assert survey.repeats and survey.values == {0: 5, 1: 5, -1: 1}
    assert (survey.num_values, survey.num_missing, survey.num_lists, survey.num_decimal_commas) == (12, 2, 6, 0)
    assert survey.atoms() == {"cat", "dog", "cow", 7, 3}
    assert survey.loose()[0] == ("line 1", ("cat",)) and survey.loose()[1] == ("line 3", ("dog", "cow"))


def test_a_single_one_is_a_cell_and_truth_values_are_a_vector():
    survey = survey_of(1, 0, '{"cat": 1}', {"cat": 1})
    assert survey.cells == {"1": "line 1", "0": "line 2"} and not survey.vectors and not survey.values
    assert survey.lists == {("cat",): "line 3"}
    assert not survey_of([1, 0]).repeats and survey_of([True, False]).repeats and survey_of([1, 1]).repeats
    assert survey_of("1.0", "-1").cells == {"1.0": "line 1", "-1": "line 2"}
    assert survey_of("1.0 0.0").vectors == {2: (("line 1", (1, 0)),)}
    assert survey_of("1,0", "2,1", "1 0").num_decimal_commas == 1
    assert survey_of("1,0", separator=WHOLE_CELL).num_decimal_commas == 0
    assert survey_of([1, 0], [0, 1], [1, -1]).vectors == {2: (("line 1", (1, 0)), ("line 2", (0, 1)))}


@pytest.mark.parametrize("separator", [None, ";", WHOLE_CELL])
def test_surveys_of_parts_are_one(separator: str | None):
    values = ["cat", ["dog", "cow"], [1, 0], "", [1, 1], "cat;dog", "1,0", ["dog", "cow"], [0, 1, 1]]
    whole, parts = survey_of(*values, separator=separator), LabelSurvey(separator)
    for start in (0, 3, 6):
        part = LabelSurvey(separator)
        for number in range(start, start + 3):
            part.add(f"line {number + 1}", values[number])
        parts.merge(part)
    assert parts == whole
    counts = whole.num_lists, whole.num_decimal_commas, whole.num_separated
    assert counts == {None: (6, 1, 0), ";": (6, 0, 1), WHOLE_CELL: (5, 0, 0)}[separator]


def test_a_long_value_is_cut_in_a_question():
    assert text_of("x" * 78) == f"'{'x' * 78}'" and text_of("x" * 79) == f"'{'x' * 79}…"
    assert text_of((1, "a")) == "[1, a]"
    asked = two_ways("t.csv", "odd", [("line 1", "a"), ("line 1", "a"), ("line 2", "b"), ("line 3", "c")], "mend them")
    assert str(asked) == "t.csv: the labels are odd: line 1 is labelled 'a', line 2 is labelled 'b'; mend them"


# --- separators -------------------------------------------------------------------------------------------------------


def separators_of(*values: Any, separator: str | None = None, classes: tuple[str, ...] | None = None) -> str:
    return decide_separators(survey_of(*values, separator=separator), "t.csv", classes)


def test_what_separates_names():
    assert separators_of("taxi", "bus") == separators_of("fox", "foxbat", "bat") == ""
    assert separators_of("foxbat", "fo", "bat") == ""
    assert separators_of("taxi;bus", "car") == ";"
    assert separators_of("taxi|bus", "car;boat") == ";|"
    assert separators_of("taxi;bus", separator=WHOLE_CELL) == ""
    assert separators_of("taxi+bus", separator="+") == "+"
    assert split_cell("a taxi; bus ;", ";") == ["a taxi", "bus"] and split_cell(" a;b ", "") == ["a;b"]


def test_a_list_of_classes_settles_it():
    assert separators_of("taxi,bus", "taxi", classes=("bus", "taxi")) == ","
    assert separators_of("taxi,bus", classes=("taxi,bus",)) == ""
    assert separators_of("taxi/bus", classes=("bus", "taxi")) == "/"
    assert separators_of("taxi;bus", classes=("bus", "taxi")) == ";"


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (
            ("cat,dog", "cow"),
            "by ',': line 1 is labelled 'cat,dog', line 2 is labelled 'cow'; --separator none takes each for one name; "
            "to split them, run the same command again with --separator ,",
        ),
        (("cow", "a\tb"), "by a tab: line 2 is labelled 'a\tb', line 1 is labelled 'cow'; --separator $'\\t' splits"),
        (
            ("a\nb",),
            "by a line break: line 1 is labelled 'a\nb'; --separator $'\\n' splits them, --separator none takes",
        ),
        (("cat dog", "dog"), "by a space: line 1 is labelled 'cat dog'"),
        (("cat/", "dog/cat", "cat"), "by '/': line 2 is labelled 'dog/cat'"),
        (("cat/dog", "cat/cow"), "by '/': line 1 is labelled 'cat/dog', line 2 is"),
        (("cat-dog", "cat", "dog"), "by '-': line 1 is labelled 'cat-dog'"),
        ((["cat,dog", "cow"], ["dog", "cow"]), "by ',': line 1 is labelled 'cat,dog'"),
        (("cat,dog;cow", "dog"), "by ',': line 1 is labelled 'cat,dog'"),
    ],
)
def test_what_may_separate_names_is_asked_about(values: tuple, says: str):
    with pytest.raises(UserError) as asked:
        separators_of(*values)
    assert f"names that may be separated {says}" in str(asked.value)


@pytest.mark.parametrize(
    "values",
    [("black-cat", "black-dog"), ("a cat", "one dog"), ("cat/dog", "cow"), (["cat, wild", "cow"],), ("cat, wild;cow",)],
)
def test_what_is_common_inside_names_stays(values: tuple):
    assert separators_of(*values) in ("", ";")


def test_names_of_separators():
    assert [name_of(character) for character in " \t\n;"] == ["a space", "a tab", "a line break", "';'"]


@pytest.mark.parametrize(
    ("written", "numbers"),
    [("1 0 -1 1", (1, 0, -1, 1)), ("1.0 0.0 -1.0 0.0", (1, 0, -1, 0)), ("-1 -1 1 -1", (-1, -1, 1, -1))],
)
def test_a_vector_that_is_written_as_text_is_one_of_numbers(written: str, numbers: tuple[int, ...]):
    found = survey_of(written, separator=" ")
    assert [parts for _, parts in found.vectors[4]] == [numbers] and not found.lists
    assert found.values == {number: numbers.count(number) for number in set(numbers)}
