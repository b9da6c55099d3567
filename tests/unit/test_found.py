"""What a report says was found, by hand: two models where they make equally many false alarms, and gains of classes."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from msltrain.config import TrainConfig
from msltrain.measures.bootstrap import mean_ap_difference
from msltrain.measures.predictions import Predictions
from msltrain.report import numbers as numbers_module
from msltrain.report.classcurves import curve
from msltrain.report.numbers import Numbers, _found, _together, compute_numbers
from msltrain.report.open_runs import RunReport
from msltrain.stream.config import StreamConfig

TARGET = [[1, 0, 1], [0, 1, 0], [1, 1, 0], [0, 0, 0], [0, 0, 1]]
IGNORE = [[0, 1, 0], [0, 0, 0], [0, 0, 1], [1, 0, 0], [0, 0, 1]]


def predictions(logit: list[list[float]]) -> Predictions:
    return Predictions(
        keys=tuple("vwxyz"),
        logit_NK=np.float32(logit),
        target_NK=np.uint8(TARGET),
        ignore_NK=np.array(IGNORE, bool),
        classes=("cat", "dog", "owl"),
    )


REFERENCE = predictions([[2, 9, -0.5], [0, 1, 3], [-2, 0, 9], [9, -4, -5], [-3, -1, 9]])
"""Of five positives that count it finds three at 0.5, and makes two false alarms."""
OTHER = predictions([[3, 9, 2], [4, 5, 1.5], [1, -0.5, 9], [9, 2.5, 0], [-1, 6, 9]])


def test_what_is_found_and_what_is_falsely_named():
    found = _found(REFERENCE, REFERENCE)
    assert (found.num_images, found.num_objects, found.num_found, found.num_false) == (5, 5, 3, 2)
    assert (found.num_found_alike, found.gain.value) == (4, 0.0), "a little below 0.5 nothing more is falsely named"


def test_models_are_compared_where_they_make_equally_many_false_alarms():
    """The other one's false alarms score 6, 4, 2.5, 1.5 and 0; two are allowed, so what lies above 2.5 counts."""
    found = _found(OTHER, REFERENCE)
    assert (found.num_found, found.num_false) == (4, 5)
    assert found.num_found_alike == 2 and found.gain.value == pytest.approx((2 - 4) / 5)


def test_precision_over_recall_leaves_ignored_pairs_out():
    recall, precision = curve(OTHER, 0)
    assert recall.tolist() == [0.5, 1.0] and precision.tolist() == [1 / 2, 2 / 3]
    recall, precision = curve(OTHER, 2)
    assert recall.tolist() == precision.tolist() == [1.0]


def test_a_difference_is_taken_image_by_image():
    """Each resample shows both models the same images: of answers in the same order nothing can differ, however much
    the choice of images says for each by itself."""
    rng = np.random.default_rng(0)
    target_NK = (rng.random((40, 2)) < 0.4).astype(np.uint8)

    def run(name: str, logit_NK: np.ndarray, hidden_NK: np.ndarray) -> RunReport:
        clean, high = (
            Predictions(
                keys=tuple(map(str, range(40))),
                logit_NK=np.float32(one),
                target_NK=target_NK,
                ignore_NK=np.zeros((40, 2), bool),
                classes=("cat", "dog"),
            )
            for one in (logit_NK, hidden_NK)
        )
        config = TrainConfig(stream=StreamConfig(image_size=32))
        return RunReport(name=name, clean=clean, masked={"high": high}, config=config, history=())

    skilled_NK, noise_NK = rng.normal(size=(40, 2)) + 1.5 * target_NK, rng.normal(size=(40, 2))
    runs = [run("a", skilled_NK, noise_NK), run("b", 3 * skilled_NK - 1, skilled_NK)]
    numbers = compute_numbers(runs)
    assert numbers.conditions == ["whole", "high"] and numbers.differences[0] == {}
    spread = numbers.measured[0]["whole"].intervals["mAP"]
    assert spread.high - spread.low > 0.05
    same = numbers.differences[1]["whole"]
    assert (same.low, same.value, same.high) == (0, 0, 0)
    gained = numbers.differences[1]["high"]
    before, after = (measured["high"].metrics.mAP for measured in numbers.measured)
    assert gained.value == after - before > 0.1 and gained.low > 0
    assert numbers.differences[1]["high"] == mean_ap_difference(runs[0].masked["high"], runs[1].masked["high"])


def test_of_very_many_classes_those_in_most_images_are_looked_at_together(monkeypatch: pytest.MonkeyPatch):
    assert _together(REFERENCE) == [0, 1, 2]
    monkeypatch.setattr(numbers_module, "MOST_CLASSES", 2)
    monkeypatch.setattr(numbers_module, "MOST_TOGETHER", 2)
    target_NK = np.uint8([[0, 1, 1], [0, 0, 1], [0, 1, 1], [1, 0, 0], [0, 0, 0]])
    few = Predictions(
        keys=tuple("vwxyz"),
        logit_NK=REFERENCE.logit_NK,
        target_NK=target_NK,
        ignore_NK=np.zeros((5, 3), bool),
        classes=REFERENCE.classes,
    )
    assert _together(few) == [1, 2]


@pytest.mark.parametrize(("num_runs", "order"), [(2, [2, 0, 3, 1]), (1, [3, 2, 0, 1])])
def test_classes_are_ordered_by_what_is_gained_in_the_hardest_condition(num_runs: int, order: list[int]):
    def measured(**of_condition: list[float | None]) -> dict[str, SimpleNamespace]:
        return {
            name: SimpleNamespace(
                metrics=SimpleNamespace(classes=[SimpleNamespace(average_precision=value) for value in values])
            )
            for name, values in of_condition.items()
        }

    first = measured(whole=[0.1, 0.2, 0.3, 0.4], high=[0.3, None, 0.4, 0.5])
    last = measured(whole=[0.9, 0.8, 0.1, 0.9], high=[0.4, 0.9, 0.9, 0.5])
    numbers = Numbers.__new__(Numbers)
    for name, value in (("runs", (None,) * num_runs), ("measured", (first, last)[:num_runs])):
        object.__setattr__(numbers, name, value)
    assert numbers.conditions == ["whole", "high"] == numbers.ends
    assert numbers.class_order() == order


def test_of_very_many_classes_those_that_gain_and_those_that_lose_most_are_on_the_page(monkeypatch: pytest.MonkeyPatch):
    """Of six one has no value; of the other five the two best and the two worst."""
    gains = [0.1, -0.3, None, 0.4, 0.2, -0.1]

    def measured(values: list[float | None]) -> dict[str, SimpleNamespace]:
        classes = [SimpleNamespace(average_precision=value) for value in values]
        return {"whole": SimpleNamespace(metrics=SimpleNamespace(classes=classes))}

    first = measured([None if gain is None else 0.5 for gain in gains])
    last = measured([None if gain is None else 0.5 + gain for gain in gains])
    numbers = Numbers.__new__(Numbers)
    runs = (SimpleNamespace(clean=SimpleNamespace(classes=tuple("abcdef"))),) * 2
    for name, value in (("runs", runs), ("measured", (first, last))):
        object.__setattr__(numbers, name, value)
    for most, shown in ((6, [3, 4, 0, 5, 1, 2]), (5, [3, 4, 0, 5, 1]), (4, [3, 4, 5, 1]), (2, [3, 1])):
        monkeypatch.setattr(numbers_module, "MOST_CLASSES", most)
        assert numbers.has_more_classes is (most < 6) and numbers.shown_classes() == shown
