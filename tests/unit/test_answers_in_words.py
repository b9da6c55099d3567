"""What is counted, said and written of answers, of each model and of each class its own threshold."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from msltrain.use import predict_many
from msltrain.use.output_formats import Summary, describe, line_of, write_answers
from msltrain.use.predict import Asked, ImagePrediction
from msltrain.use.predict_many import _identity
from msltrain.use.series import combine


def answer(file: str = "a.jpg", **more: Any) -> ImagePrediction:
    known = {"scores": (("cat", 0.9), ("dog", 0.4996)), "predicted": ("cat",), "thresholds": (0.5, 0.5)}
    return ImagePrediction(file=file, **{**known, **more})


EMPTY = {"predicted": ()}


@pytest.mark.parametrize(
    ("answers", "num_empty"),
    [
        ([answer()], 0),
        ([answer(**EMPTY)], 1),
        ([answer(**EMPTY, masked_predicted=("dog",))], 0),
        ([answer(masked_predicted=())], 0),
        ([ImagePrediction(file="b", error="no")], 0),
        ([answer(**EMPTY), ImagePrediction(file="b", error="no"), answer(**EMPTY)], 2),
    ],
)
def test_a_photograph_is_empty_where_it_was_read_and_nothing_was_predicted(answers: list, num_empty: int):
    summary = Summary()
    assert list(summary.count(answers)) == answers and summary.num_empty == num_empty


def test_the_lowest_threshold_of_all_counts_wherever_it_comes():
    summary = Summary()
    list(summary.count([answer(thresholds=(0.5, 0.4)), answer(thresholds=(0.1, 0.6)), answer(thresholds=(0.9, 0.8))]))
    assert (summary.lowest_threshold, summary.lower_threshold, summary.num_scores) == (0.1, 0.05, 2)
    assert (
        Summary(lowest_threshold=0.31).lower_threshold == 0.3 and Summary(lowest_threshold=0.3).lower_threshold == 0.15
    )


@pytest.mark.parametrize("num", [20, 21, 30])
def test_twenty_that_could_not_be_read_are_named(num: int):
    summary = Summary()
    list(summary.count([ImagePrediction(file=f"{number}.jpg", error="no") for number in range(num)]))
    lines = describe(summary).splitlines()
    assert lines[0] == f"{num} of {num} images could not be read and were left out:"
    assert lines[1] == "  0.jpg: no" and lines[20] == "  19.jpg: no"
    assert lines[21:] == ([f"  … and {num - 20} more; --format json names them all"] if num > 20 else [])


def test_a_score_behind_a_mask_has_the_digits_that_its_own_threshold_takes():
    """49.96 and 29.96 would both look as if they reached their thresholds."""
    one = answer(
        scores=(("cat", 0.9), ("dog", 0.4996)),
        thresholds=(0.3, 0.5),
        masked_scores=(("cat", 0.2996), ("dog", 0.5004)),
        masked_predicted=("dog",),
    )
    assert line_of(one) == "cat 90 → 29.96 %, dog 49.96 → 50 %"


def test_what_is_beyond_the_named_ones_is_counted_whole_and_masked():
    one = answer(
        predicted=("cat", "elk"), masked_predicted=("cat", "owl", "elk"), masked_scores=(("cat", 0.6), ("dog", 0.1))
    )
    assert line_of(one) == "cat 90 → 60 %, and 2 more; below the threshold: dog 49.96 → 10 %"


def test_fiftyone_gets_six_digits_and_every_class_of_every_photograph(tmp_path: Path):
    out = io.BytesIO()
    scores, masked = (("cat", 0.123456789), ("dog", 0.00004)), (("cat", 0.98765449), ("dog", 0.5))
    answers = [
        answer(str(tmp_path / "a.jpg"), scores=scores, masked_scores=masked, predicted=()),
        ImagePrediction(file="b", error="no"),
        answer("c.jpg", scores=scores, predicted=("cat",), thresholds=(0.1, 0.2)),
    ]
    write_answers(answers, "fiftyone", out)
    found = json.loads(out.getvalue())["labels"]
    assert list(found) == [str(tmp_path / "a.jpg"), str(Path("c.jpg").absolute())]
    [first, _], [cat, dog] = found.values()
    assert first["confidence"] == 0.123457 and first["attributes"]["masked_confidence"] == 0.987654
    assert cat["attributes"] == {"predicted": True, "threshold": 0.1}
    assert dog == {"label": "dog", "confidence": 0.00004, "attributes": {"predicted": False, "threshold": 0.2}}


def test_every_model_of_a_series_and_every_option_makes_another_question(tmp_path: Path):
    for name in ("one.png", "other.png"):
        (tmp_path / name).write_bytes(name.encode())

    def model(sha256: str = "a", threshold: float = 0.5, **network: Any) -> Any:
        limits = np.array([threshold, 0.5])
        return SimpleNamespace(
            sha256=sha256, network={"head": "csra", **network}, classes=("x", "y"), threshold_K=limits
        )

    asked = Asked(top_k=3, keep_mask=tmp_path / "one.png", polarity="hole-black")
    questions = [
        _identity([model(), model("b")], asked, None),
        _identity([model(), model("c")], asked, None),
        _identity([model(), model("b", 0.4)], asked, None),
        _identity([model(), model("b", head="mean")], asked, None),
        _identity([model()], asked, None),
        _identity([model(), model("b")], Asked(top_k=4, keep_mask=tmp_path / "one.png", polarity="hole-black"), None),
        _identity([model(), model("b")], Asked(top_k=3, keep_mask=tmp_path / "other.png", polarity="hole-black"), None),
        _identity([model(), model("b")], Asked(top_k=3, keep_mask=tmp_path / "one.png", polarity="hole-white"), None),
        _identity([model(), model("b")], Asked(top_k=3), None),
        _identity([model(), model("b")], asked, "drawn"),
    ]
    texts = [json.dumps(one, sort_keys=True) for one in questions]
    assert len(set(texts)) == len(texts)
    again = _identity(
        [model(), model("b")], Asked(top_k=3, keep_mask=str(tmp_path / "one.png"), polarity="hole-black"), None
    )
    assert json.dumps(again, sort_keys=True) == texts[0]


def test_of_a_series_all_classes_are_asked_for_and_as_many_said_as_of_one(monkeypatch: pytest.MonkeyPatch):
    """The two highest of the mean need not be among the two highest of any run."""
    scores = {"first": (0.9, 0.8, 0.7, 0.1), "second": (0.0, 0.1, 0.75, 0.95)}
    asked_for: list[Asked] = []

    def each(predictor: Any, pictures: Any, asked: Asked, folder: Any = None) -> Any:
        asked_for.append(asked)
        named = sorted(zip("abcd", scores[predictor], strict=True), key=lambda pair: -pair[1])[: asked.top_k]
        yield [ImagePrediction(file="x", scores=tuple(named), thresholds=(0.5,) * len(named))]

    monkeypatch.setattr(predict_many, "predict_each", each)
    [[found]] = predict_many._batches(["first", "second"], [], Asked(top_k=2), None)  # type: ignore[list-item]
    assert [name for name, _ in found.scores] == ["c", "d"] and [one.top_k for one in asked_for] == [None, None]
    [[alone]] = predict_many._batches(["second"], [], Asked(top_k=2), None)  # type: ignore[list-item]
    assert [name for name, _ in alone.scores] == ["d", "c"]


def test_the_mean_of_a_series_is_held_against_the_mean_of_its_thresholds():
    """0.4 reaches that of the first run, 0.2, and not the mean of both, 0.5."""
    runs = [
        [ImagePrediction(file="x", scores=(("cat", score),), predicted=("cat",), thresholds=(limit,))]
        for score, limit in ((0.5, 0.2), (0.3, 0.8))
    ]
    [found] = combine(runs, None)
    assert found.thresholds == (0.5,) and found.scores == (("cat", 0.4),) and found.predicted == ()
