"""What stands between names: each character and word that may, and what does not."""

from __future__ import annotations

import pytest

from msldata.errors import OptionsNeeded, UserError
from msldata.sources.labels.separators import decide_separators, left_together
from tests.unit.test_labels import survey_of

POSSIBLE = [*",#，；、/+&: -_.\\", " und ", " and ", " et ", " y ", " e ", " en "]


@pytest.mark.parametrize("between", POSSIBLE)
def test_whatever_may_stand_between_names_is_asked_about(between):
    with pytest.raises(OptionsNeeded) as caught:
        decide_separators(survey_of(f"cat{between}dog", "cat", "dog"), "t.csv", None)
    assert caught.value.options == ("--separator", between)


@pytest.mark.parametrize("between", POSSIBLE)
def test_known_classes_tell_what_stands_between_them(between):
    known = ("cat", "dog")
    if between in "-_.\\":
        return  # common in names, and so never guessed
    assert decide_separators(survey_of(f"cat{between}dog", "cat"), "t.csv", known) == between


def test_one_word_before_every_name_is_a_part_of_it():
    assert decide_separators(survey_of("site north", "site south"), "t.csv", None) == ""
    with pytest.raises(OptionsNeeded, match="a space"):
        decide_separators(survey_of("site north", "site south", "wood"), "t.csv", None)


def test_a_named_separator_that_nothing_holds_is_refused_though_no_name_comes_twice():
    with pytest.raises(UserError, match="names that may be separated by ',', and no label holds ';'"):
        decide_separators(survey_of("cat,dog", "emu", separator=";"), "t.csv", None)
    assert decide_separators(survey_of("cat and dog", "emu", separator=";"), "t.csv", None) == ";"
    with pytest.raises(UserError, match="' and '"):
        decide_separators(survey_of("cat and dog", "cat", "dog", separator=";"), "t.csv", None)


@pytest.mark.parametrize("word", [" und ", " and ", " et ", " y ", " e ", " en "])
def test_a_word_between_names_is_noticed_where_one_of_them_comes_again(word):
    assert f"'cat{word}dog' stays one class" in left_together(survey_of(f"cat{word}dog;emu", "dog", separator=";"))
    assert left_together(survey_of(f"cat{word}dog;emu", "ape", separator=";")) == ""
