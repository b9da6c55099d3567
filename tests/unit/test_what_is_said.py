"""What is said of several photographs, whole and behind a mask, by one model or a series; a stand-in answers."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from msltrain.runs.run_places import find_series
from msltrain.stream.pixels.device import ToDevice
from msltrain.use.output_formats import COLUMNS, Summary, write_answers
from msltrain.use.predict import Answer, Asked, ImagePrediction, Predictor, predict_each
from msltrain.use.read_images import Photo, find_images
from msltrain.use.series import combine

SIDE = 6
COLOURS = [(0, 0, 0), (250, 0, 0), (0, 240, 0), (0, 0, 230), (90, 130, 60), (200, 10, 220), (20, 200, 200)]


class StandIn:
    """The scores of its three classes are the red, green and blue that it sees, and behind a mask what is missing."""

    image_size, hole_colour, threshold_origin = SIDE, (0, 0, 0), "by hand"
    classes, threshold_K = ("red", "green", "blue"), np.array([0.3, 0.5, 0.85])

    def __init__(self) -> None:
        self.batches: list[int] = []

    def seen(self, photo: Photo) -> Photo:
        return photo

    def answer(self, squares: Sequence[Tensor], keep_mask_SS: np.ndarray | None = None, *, with_places: bool = False):
        if keep_mask_SS is None:
            self.batches.append(len(squares))
        if keep_mask_SS is None:
            return [Answer(square.float().mean((0, 2, 3)).numpy() / 255, None) for square in squares]
        keep_SS = torch.from_numpy(keep_mask_SS)
        return [Answer(1 - (square * keep_SS).float().mean((0, 2, 3)).numpy() / 255, None) for square in squares]

    def predicted(self, answer: Answer) -> tuple[str, ...]:
        return Predictor.predicted(self, answer)  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven photographs of one colour each, wider than high; the third and the sixth cannot be read. A mask whose upper
    third is hidden."""
    (tmp_path / "photos").mkdir()
    for number, colour in enumerate(COLOURS):
        Image.new("RGB", (30, 20), colour).save(tmp_path / "photos" / f"{number}.png")
    for number in (2, 5):
        (tmp_path / "photos" / f"{number}.png").write_bytes(b"no photograph")
    mask = Image.new("L", (90, 30), 255)
    mask.paste(0, (0, 0, 90, 10))
    mask.save(tmp_path / "mask.png")
    return tmp_path


@pytest.mark.parametrize("masked", [False, True])
def test_each_photograph_gets_its_own_answer(folder: Path, masked: bool):
    model, pictures = StandIn(), find_images([folder / "photos"])
    mask = {"keep_mask": folder / "mask.png", "polarity": "hole-black"} if masked else {}
    batches = list(predict_each(model, pictures, Asked(top_k=2, batch_size=3, **mask)))  # type: ignore[arg-type]
    assert [len(batch) for batch in batches] == [3, 3, 1] and model.batches == [2, 2, 1]
    found = [one for batch in batches for one in batch]
    assert [Path(one.file).stem for one in found] == list("0123456")
    assert [number for number, one in enumerate(found) if one.error] == [2, 5]
    for number in (0, 1, 3, 4, 6):
        one, score_K = found[number], np.array(COLOURS[number]) / 255
        behind_K = 1 - score_K * 2 / 3
        highest_K = np.maximum(score_K, behind_K) if masked else score_K
        chosen = sorted(sorted(range(3), key=lambda k: -highest_K[k])[:2], key=lambda k: -score_K[k])
        names = [model.classes[k] for k in chosen]
        assert [name for name, _ in one.scores] == names
        assert [score for _, score in one.scores] == pytest.approx(score_K[chosen], abs=1e-6)
        assert one.thresholds == tuple(model.threshold_K[chosen]) and one.threshold_origin == "by hand"
        for found_K, said in ((score_K, one.predicted), (behind_K, one.masked_predicted)):
            order = [k for k in sorted(range(3), key=lambda k: -found_K[k]) if found_K[k] >= model.threshold_K[k]]
            assert said == (tuple(model.classes[k] for k in order) if masked or found_K is score_K else ())
        assert [name for name, _ in one.masked_scores] == (names if masked else [])
        assert [score for _, score in one.masked_scores] == pytest.approx(behind_K[chosen] if masked else [], abs=1e-6)
    assert (found[3].predicted, found[3].masked_predicted) == (("blue",), ("red", "green") if masked else ())


class Sums(nn.Module):
    """Logits that are sums over rows and over columns of what it sees."""

    def forward(self, image_BCHW: Tensor) -> Tensor:
        return torch.cat([image_BCHW[:, 0].sum(1), image_BCHW[:, 2].sum(2)], dim=1) / 9


def predictor() -> Predictor:
    one = Predictor.__new__(Predictor)
    one._recogniser, one._device, one.image_size = Sums(), torch.device("cpu"), SIDE
    one._to_device = ToDevice(one._device, SIDE, (0.2, 0.3, 0.4), (0.5, 0.6, 0.7))
    return one


def test_every_photograph_of_a_batch_is_seen_behind_its_own_mask():
    rng = np.random.default_rng(0)
    squares = [torch.from_numpy(rng.integers(0, 256, (1, 3, SIDE, SIDE), dtype=np.uint8)) for _ in range(4)]
    masks: list[np.ndarray | None] = [rng.integers(0, 2, (SIDE, SIDE), dtype=np.uint8) for _ in range(4)]
    masks[1] = None
    mean, std = (torch.tensor(values)[:, None, None] for values in ((0.2, 0.3, 0.4), (0.5, 0.6, 0.7)))

    def expected(mask_of: Sequence[np.ndarray | None]) -> list[list[float]]:
        seen = [
            (square / 255 - mean) / std * (1 if mask is None else torch.from_numpy(mask))
            for square, mask in zip(squares, mask_of, strict=True)
        ]
        return Sums()(torch.cat(seen)).sigmoid().tolist()

    before = [square.clone() for square in squares]
    for given, mask_of in ((None, [None] * 4), (masks[0], [masks[0]] * 4), (masks, masks), ([None] * 4, [None] * 4)):
        answers = predictor().answer(squares, given)
        assert len(answers) == 4 and all(answer.place_score_KHW is None for answer in answers)
        for answer, score_K in zip(answers, expected(mask_of), strict=True):
            assert answer.score_K.tolist() == pytest.approx(score_K, abs=1e-6)
    assert all(torch.equal(one, other) for one, other in zip(squares, before)), "a caller's photographs were changed"
    assert predictor().answer([]) == []


def version(scores: dict[str, float], masked: dict[str, float], limits: dict[str, float]) -> ImagePrediction:
    """What a run says, its classes by their score."""
    names = sorted(scores, key=lambda name: -scores[name])
    return ImagePrediction(
        file="a.jpg",
        scores=tuple((name, scores[name]) for name in names),
        masked_scores=tuple((name, masked[name]) for name in names if masked),
        thresholds=tuple(limits[name] for name in names),
        threshold_origin="tuned",
    )


def of(cat: float, dog: float, owl: float) -> dict[str, float]:
    return {"cat": cat, "dog": dog, "owl": owl}


def test_a_series_says_the_mean_of_its_runs_class_by_class():
    limits = of(0.2, 0.5, 0.9), of(0.4, 0.5, 0.7), of(0.3, 0.2, 0.8)
    runs = [
        [ImagePrediction(file="bad.jpg", error="no"), version(scores, masked, limit)]
        for scores, masked, limit in zip(
            (of(0.9, 0.1, 0.6), of(0.1, 0.5, 0.6), of(0.2, 0.3, 0.9)),
            (of(0.3, 0.9, 0.1), of(0.3, 0.8, 0.4), of(0.6, 0.7, 0.1)),
            limits,
        )
    ]
    bad, one = combine(runs, 2)
    assert bad.error == "no" and not bad.scores
    assert [name for name, _ in one.scores] == ["owl", "dog"], "owl whole, and dog behind the mask, are the highest"
    assert [score for _, score in one.scores] == pytest.approx([0.7, 0.3])
    assert one.deviations == pytest.approx([0.03**0.5, 0.2])
    assert [name for name, _ in one.masked_scores] == ["owl", "dog"]
    assert [score for _, score in one.masked_scores] == pytest.approx([0.2, 0.8])
    assert one.thresholds == pytest.approx([0.8, 0.4])
    assert one.predicted == ("cat",) and one.masked_predicted == ("dog", "cat"), "also beyond the highest two"
    [_, plain] = combine([[bad, version(of(0.5, 0.2, 0.3), {}, limits[0])] for _ in range(2)], None)
    assert [name for name, _ in plain.scores] == ["cat", "owl", "dog"] and plain.deviations == (0, 0, 0)
    assert plain.masked_scores == plain.masked_predicted == () and plain.predicted == ("cat",)


def test_the_runs_of_a_series_are_in_the_order_of_their_seeds(tmp_path: Path):
    for name in ("seed10", "seed2", "seed0", "seedling", "seed3.old"):
        (tmp_path / name).mkdir()
    (tmp_path / "seed1").write_text("no folder")
    assert [run.name for run in find_series(tmp_path)] == ["seed0", "seed2", "seed10"]
    (tmp_path / "checkpoints").mkdir()
    assert find_series(tmp_path) == []


WHOLE = ImagePrediction(
    file="a b.jpg",
    scores=(("owl", 0.75), ("=cat", 0.5), ("dog", 0.125)),
    predicted=("owl",),
    thresholds=(0.7, 0.6, 0.1),
    threshold_origin="tuned",
    deviations=(0.01, 0.02, 0.03),
)
MASKED = ImagePrediction(
    file="c.jpg",
    scores=(("dog", 0.9), ("owl", 0.3)),
    predicted=("dog",),
    masked_scores=(("dog", 0.2), ("owl", 0.8)),
    masked_predicted=("owl",),
    thresholds=(0.5, 0.4),
    threshold_origin="as asked",
    overlay="cam/c.png",
)
BROKEN = ImagePrediction(file="d.jpg", error="not an image")
ROWS = [
    ("a b.jpg", "owl", 0.75, True, None, None, None, 0.7, "tuned", 0.01),
    ("a b.jpg", "=cat", 0.5, False, None, None, None, 0.6, "tuned", 0.02),
    ("a b.jpg", "dog", 0.125, False, None, None, None, 0.1, "tuned", 0.03),
    ("c.jpg", "dog", 0.9, True, 0.2, False, None, 0.5, "as asked", None),
    ("c.jpg", "owl", 0.3, False, 0.8, True, None, 0.4, "as asked", None),
    ("d.jpg", None, None, None, None, None, "not an image", None, None, None),
]


def written(kind: str) -> bytes:
    file = io.BytesIO()
    write_answers(iter([WHOLE, MASKED, BROKEN]), kind, file)
    return file.getvalue()


@pytest.mark.parametrize("together", [100_000, 6, 4, 1])
def test_every_format_says_the_same(monkeypatch: pytest.MonkeyPatch, together: int):
    monkeypatch.setattr("msltrain.use.output_formats._ROWS_PER_GROUP", together)
    header, *lines = csv.reader(io.StringIO(written("csv").decode()))
    assert tuple(header) == COLUMNS
    spelled = {None: "", True: "1", False: "0", "=cat": "'=cat"}
    assert lines == [
        [f"{cell:.6f}" if isinstance(cell, float) else spelled.get(cell, cell) for cell in r] for r in ROWS
    ]
    table = pq.read_table(io.BytesIO(written("parquet")))
    assert tuple(table.column_names) == COLUMNS
    for found, row in zip(table.to_pylist(), ROWS, strict=True):
        assert [*found.values()] == [pytest.approx(cell) if isinstance(cell, float) else cell for cell in row]
    whole, masked, broken = map(json.loads, written("json").decode().splitlines())
    assert broken == {"file": "d.jpg", "error": "not an image"}
    assert whole["scores"] == {"owl": 0.75, "=cat": 0.5, "dog": 0.125} and "masked_scores" not in whole
    assert whole["thresholds"] == {"owl": 0.7, "=cat": 0.6, "dog": 0.1} and whole["predicted"] == ["owl"]
    assert whole["score_sd"] == {"owl": 0.01, "=cat": 0.02, "dog": 0.03} and "overlay" not in whole
    assert masked["masked_scores"] == {"dog": 0.2, "owl": 0.8} and masked["masked_predicted"] == ["owl"]
    assert masked["overlay"] == "cam/c.png" and masked["threshold_origin"] == "as asked"
    labels = json.loads(written("fiftyone"))["labels"]
    assert [Path(name).name for name in labels] == ["a b.jpg", "c.jpg"] and all(
        map(Path.is_absolute, map(Path, labels))
    )
    first, second = labels.values()
    assert [(one["label"], one["confidence"], one["attributes"]) for one in second] == [
        ("dog", 0.9, {"predicted": True, "threshold": 0.5, "masked_confidence": 0.2}),
        ("owl", 0.3, {"predicted": False, "threshold": 0.4, "masked_confidence": 0.8}),
    ]
    assert [one["attributes"] for one in first] == [
        {"predicted": name == "owl", "threshold": limit} for name, limit in (("owl", 0.7), ("=cat", 0.6), ("dog", 0.1))
    ]
    assert written("table").decode().splitlines() == [
        "a b.jpg  owl 75 ± 1 %; below the threshold: =cat 50 ± 2 %, dog 12 ± 3 %",
        "c.jpg  dog 90 → 20 %, owl 30 → 80 %",
        "d.jpg  not read: not an image",
    ]


def test_what_was_said_is_counted():
    summary = Summary(num_classes=3)
    empty = ImagePrediction(file="e.jpg", scores=(("owl", 0.1),), thresholds=(0.5,), threshold_origin="other")
    answers = [BROKEN, WHOLE, MASKED, empty, BROKEN]
    assert list(summary.count(answers)) == answers
    assert (summary.num_images, summary.num_failed, summary.num_drawn, summary.num_empty) == (5, 2, 1, 1)
    assert (summary.num_scores, summary.threshold_origin, len(summary.failed)) == (3, "tuned", 2)
    assert summary.lower_threshold == 0.05 and Summary(lowest_threshold=0.5).lower_threshold == 0.3
