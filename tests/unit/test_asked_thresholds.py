"""Thresholds that people ask for: for every class, for some by name, and slips in either."""

from __future__ import annotations

import numpy as np
import pytest

from msldata.errors import UserError
from msltrain.measures.asked_thresholds import AskedThresholds, asked_thresholds, read_thresholds

CLASSES = ("Wolf", "Luchs", "a=b")
TUNED_K = np.array([0.41, 0.62, 0.5])


@pytest.mark.parametrize(
    ("words", "expected_K", "origin"),
    [
        ((), (0.41, 0.62, 0.5), "tuned"),
        (("0.3",), (0.3, 0.3, 0.3), "0.3, as asked"),
        (("Wolf=0.25",), (0.25, 0.62, 0.5), "tuned; Wolf 0.25, as asked"),
        (("a=b=0.125", "0.75", "Wolf=1"), (1, 0.75, 0.125), "0.75, as asked; a=b 0.125, Wolf 1, as asked"),
    ],
)
def test_thresholds_of_some_classes_stand_beside_those_of_all(words, expected_K, origin):
    threshold_K, said = read_thresholds(words).over(TUNED_K, "tuned", CLASSES)
    assert tuple(threshold_K) == expected_K and said == origin
    assert tuple(TUNED_K) == (0.41, 0.62, 0.5)  # they are the model's own


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["0,3"], "--threshold 0,3: '0,3' is no number; write 0.3$"),
        (["Wolf=0,3"], "'0,3' is no number; write Wolf=0.3$"),
        (["Wolf"], "'Wolf' is no number; as in 0.4, or Wolf=0.3 for one class"),
        (["Wolf="], "'' is no number; as in 0.4"),
        (["Wolf=30"], "the threshold of Wolf is 30; scores lie between 0 and 1; did you mean 0.3?"),
        (["0.2", "0.3"], "--threshold 0.3: every class has another one, 0.2; leave one out"),
        (["Wolf=0.2", "Wolf=0.3"], "--threshold Wolf=0.3: Wolf has another one, 0.2; leave one out"),
        (["Wulf=0.2"], "--threshold Wulf=0.2: the model knows no such class; did you mean Wolf?"),
        (["Zebra=0.2"], "the model knows no such class; it knows Wolf, Luchs, a=b$"),
    ],
)
def test_slips(words, message):
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        read_thresholds(words).require(CLASSES)


def test_python_takes_a_number_or_a_mapping():
    assert asked_thresholds(0.3) == AskedThresholds(0.3) and asked_thresholds(None) == AskedThresholds()
    assert asked_thresholds({"Wolf": 0.3}) == AskedThresholds(None, {"Wolf": 0.3})
    assert AskedThresholds(0.4, {"Wolf": 0.3}).among(["Luchs"]) == AskedThresholds(0.4)
