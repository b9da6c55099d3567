"""What a report's gallery says beside each picture, by hand: of which model, behind which mask, and where it looked."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from msltrain.config import TrainConfig
from msltrain.measures.predictions import Origin, Predictions
from msltrain.report import gallery
from msltrain.report.examples import Choice, Example
from msltrain.report.gallery import Gallery, Group, Shown, show_examples
from msltrain.report.open_runs import RunReport
from msltrain.stream.config import StreamConfig
from msltrain.use.predict import Answer
from msltrain.use.read_images import Photo

CLASSES = ("cat", "dog", "owl")
TARGET = [[1, 0, 0], [0, 1, 0], [0, 0, 0]]
IGNORE = [[0, 0, 1], [0, 0, 0], [0, 0, 0]]
SIDE = 8


def predictions(logit: list[list[float]], hole_fraction: float = 0.0, sha256: str = "") -> Predictions:
    return Predictions(
        keys=("a", "b", "c"),
        logit_NK=np.float32(logit),
        target_NK=np.uint8(TARGET),
        ignore_NK=np.array(IGNORE, bool),
        classes=CLASSES,
        origin=Origin(hole_fraction=hole_fraction, checkpoint_sha256=sha256),
    )


def run(name: str, clean: list[list[float]], high: list[list[float]], **fields: Any) -> RunReport:
    return RunReport(
        name=name,
        clean=predictions(clean),
        masked={"high": predictions(high, 0.55)},
        config=TrainConfig(stream=StreamConfig(image_size=SIDE, mean=(1.0, 0.0, 0.0))),
        history=(),
        **fields,
    )


OLD = run("Old", [[4, -2, 3], [-1, -4, -5], [-9, -9, -9]], [[-1, 2, 3], [-3, -2, -4], [-9, -9, -9]])
NEW = run("New", [[5, -3, 4], [-4, 4, -4], [-9, 1, -9]], [[2, -2, 3], [-3, 2, -4], [-8, -9, 2]])


def example(row: int, *, mask: bool = True, file: str = "") -> Example:
    """A grey picture that is wider than high; three eighths of it, on the left, are hidden."""
    keep_mask_HW = np.ones((SIDE, SIDE), np.float32)
    keep_mask_HW[:, :3] = 0
    return Example(
        row=row,
        photo=Photo(np.full((20, 40, 3), 128, np.uint8)),
        image=Image.new("RGB", (40, 20), (128, 128, 128)),
        keep_mask_HW=keep_mask_HW if mask else None,
        file=file,
        boxes=((0, (4.0, 4.0, 8.0, 8.0)), (1, (24.0, 4.0, 8.0, 8.0))),
    )


@pytest.fixture
def pictures(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The pixels of the pictures whose addresses are ``0``, ``1`` and so on."""
    shown: list[np.ndarray] = []

    def address(image: Image.Image, *, longest_side: int) -> str:
        assert longest_side == gallery.LONG_SIDE
        shown.append(np.asarray(image))
        return str(len(shown) - 1)

    monkeypatch.setattr(gallery, "picture", address)
    return shown


def one(runs: list[RunReport], row: int, condition: str = "high", **fields: Any) -> Shown:
    return gallery._show(example(row, **fields), runs, condition, ())


def test_a_picture_whole_and_behind_its_mask(pictures):
    shown = one([OLD, NEW], 0, file="Sofa.jpg")
    assert (shown.key, shown.file, shown.shows, shown.num_classes) == ("a", "Sofa.jpg", "cat", 1)
    assert (shown.width, shown.height, shown.hidden, shown.maps) == (40, 20, 37.5, [])
    whole, high = shown.views
    assert (whole.title, whole.where, whole.alt) == ("Whole", "whole images", "Photograph Sofa.jpg: cat")
    assert (high.title, high.where) == ("38 % hidden", "high holes (55\u00a0% hidden)")
    assert high.alt == "Photograph Sofa.jpg with 38 % hidden"
    assert (pictures[int(whole.picture)] == 128).all()
    behind = pictures[int(high.picture)]
    assert (behind[:, :15] == (255, 0, 0)).all() and (behind[:, 15:] == 128).all(), "a hole is the mean, which is red"


def test_each_view_has_the_answers_of_its_condition_and_model(pictures):
    whole, high = one([OLD, NEW], 0).views
    said = [
        [(each.model, [(first.name, first.verdict, first.style, first.sign) for first in each.first])]
        for view in (whole, high)
        for each in view.answers
    ]
    right, missed, wrong = (
        ("cat", "right", "right", "✓"),
        ("cat", "missed", "missed", "○"),
        ("dog", "wrong", "wrong", "✗"),
    )
    not_counted, below = ("owl", "not counted", "below", "·"), ("dog", "below", "below", "·")
    assert said == [
        [("Old", [right, not_counted, below])],
        [("New", [right, not_counted, below])],
        [("Old", [not_counted, wrong, missed])],
        [("New", [not_counted, right, below])],
    ]
    assert [each.first[0].score for each in high.answers] == ["95\u00a0%"] * 2
    styles = [each.style for each in high.answers]
    assert styles == [each.style for each in whole.answers] and len(set(styles)) == 2


def test_remarks_are_of_the_condition_and_name_the_model_where_there_are_several(pictures):
    remarks = one([OLD, NEW], 0).remarks.split("; ")
    assert remarks == [
        "not counted: owl",
        "“Old”: 0 rightly and 1 wrongly named, cross-entropy 1.72",
        "“New”: 1 rightly and 0 wrongly named, cross-entropy 0.13",
        "38 % hidden",
    ]
    assert one([NEW], 1, "whole", mask=False).remarks == "1 rightly and 0 wrongly named, cross-entropy 0.02"


def test_a_picture_of_none_of_the_classes_whose_mask_is_gone(pictures):
    shown = one([NEW], 2, mask=False)
    assert (shown.file, shown.shows, shown.num_classes, shown.hidden) == ("c", "none of the classes", 0, 0.0)
    whole, high = shown.views
    assert whole.picture == "0" and (high.picture, high.title) == ("", "Partly hidden"), "it is not shown as if whole"
    assert len(one([NEW], 2, "whole", mask=False).views) == 1


def asked(name: str, size: int) -> SimpleNamespace:
    """A model that notes what it is asked, and sees each class at a place of its own."""
    places = np.zeros((3, 2, 2), np.float32)
    places[0, 0, 0] = places[1, 0, 1] = places[2, 1, 0] = 1
    predictor = SimpleNamespace(image_size=size, classes=tuple(f"{name} {one}" for one in CLASSES), asked=[])

    def answer(squares, keep_mask_SS, *, with_places):
        assert with_places
        predictor.asked.append((squares, keep_mask_SS))
        return [Answer(np.float32([0.2, 0.4, 0.6]), places)]

    predictor.answer = answer
    return predictor


def test_where_each_model_looks_behind_the_mask(pictures, monkeypatch: pytest.MonkeyPatch):
    painted: list[np.ndarray] = []

    def paint(photo_HWC: np.ndarray, place_score_HW: np.ndarray) -> np.ndarray:
        painted.append(place_score_HW)
        return photo_HWC

    monkeypatch.setattr(gallery, "paint", paint)
    models = [asked("old", 8), asked("new", 4)]
    shown = gallery._show(example(1), [OLD, NEW], "high", models)
    assert [each.title for each in shown.maps] == [
        "Where “Old” sees old dog, score 40\u00a0%",
        "Where “New” sees new dog, score 40\u00a0%",
    ]
    assert [each.style for each in shown.maps] == [each.style for each in shown.views[0].answers]
    assert all(place[0, 1] == 1 and place.sum() == 1 for place in painted), "the places of that class"
    for model in models:
        [([square_1CSS], keep_mask_SS)] = model.asked
        assert square_1CSS.shape == (1, 3, model.image_size, model.image_size)
        hidden = {8: 3, 4: 1}[model.image_size]
        assert keep_mask_SS.shape == (model.image_size, model.image_size)
        assert not keep_mask_SS[:, :hidden].any() and keep_mask_SS[:, hidden:].all()
    for each in shown.maps:
        assert (pictures[int(each.picture)][:, :15] == (255, 0, 0)).all(), "drawn over what the model saw"


def test_a_model_whose_weights_are_gone_leaves_the_others_their_style(pictures):
    only = gallery._show(example(1), [OLD, NEW], "high", [None, asked("new", 4)])
    assert [each.style for each in only.maps] == [only.views[0].answers[1].style]
    assert [each.title[:11] for each in only.maps] == ["Where “New”"]
    assert not gallery._show(example(1, mask=False), [OLD, NEW], "high", [None, asked("new", 4)]).maps, "behind what?"
    model = asked("new", 4)
    [seen] = gallery._show(example(1, mask=False), [NEW], "whole", [model]).maps
    assert seen.title.startswith("Where “New” sees new dog") and model.asked[0][1] is None


def test_a_large_photograph_keeps_its_size_where_a_small_one_is_painted_on(pictures):
    large = replace(example(1, mask=False), image=Image.new("RGB", (3 * gallery.LONG_SIDE, 60)))
    assert len(gallery._show(large, [NEW], "whole", [asked("new", 4)]).maps) == 1
    assert large.image.size == (3 * gallery.LONG_SIDE, 60)
    assert [len(pixels[0]) for pixels in pictures] == [3 * gallery.LONG_SIDE, gallery.LONG_SIDE]


@pytest.mark.parametrize(
    ("runs", "row", "name"),
    [
        ([OLD, NEW], 0, "cat"),  # of an owl, which is not counted, they say less alike
        ([OLD, NEW], 2, "owl"),  # nothing is there: any class
        ([NEW], 1, "dog"),
        ([NEW], 2, "dog"),
    ],
)
def test_the_class_on_which_first_and_last_differ_most(runs: list[RunReport], row: int, name: str):
    assert CLASSES[gallery._telling_class(runs, "high", row)] == name


def test_of_two_classes_that_are_there_the_one_that_tells_more_is_looked_for():
    def both(logit: list[float]) -> RunReport:
        one = run("r", [logit, [0] * 3, [0] * 3], [[0] * 3] * 3)
        one.clean.target_NK[0] = 1
        one.clean.ignore_NK[0] = (False, False, True)
        return one

    runs = [both([3, -1, -5]), both([4, -3, 5])]
    assert gallery._telling_class(runs, "whole", 0) == 1


def test_examples_stand_under_what_they_are_examples_of(pictures):
    found = show_examples([OLD, NEW], "high", [example(1)], [example(2), example(0)])
    assert [(group.title, group.kind, [shown.key for shown in group.examples]) for group in found.groups] == [
        ("Where “New” improves most on “Old”", "win", ["b"]),
        ("Where “New” falls furthest behind “Old”", "failure", ["c", "a"]),
    ]
    assert found.missing == "Where it looked is not drawn for “Old” and “New”: the weights are not here."
    assert found.first is found.groups[0].examples[0] and not found.is_wide and not found.has_maps
    assert all([len(shown.views) for shown in group.examples] == [2] * len(group.examples) for group in found.groups)
    assert {group.condition for group in found.groups} == {"high"} and {group.note for group in found.groups} == {""}
    lost = show_examples([OLD, NEW], "high", [], [example(0)], missing="The masks are gone.")
    assert [group.kind for group in lost.groups] == ["failure"] and lost.first is None, "what was lost is no first win"
    assert lost.missing.startswith("The masks are gone. Where it looked ")
    assert show_examples([OLD, NEW], "high", [], []).missing == ""
    alone = show_examples([NEW], "high", [example(1), example(0)], [example(2)])
    assert [group.title for group in alone.groups] == ["Where “New” does best", "Where “New” does worst"]
    assert [group.note for group in alone.groups] == [
        "Of 3 photographs (high holes (55\u00a0% hidden)) “New” gets 2 wholly right: shown here.",
        "",
    ]


def test_objects_in_boxes_are_shown_whole(pictures):
    choice = Choice(title="Small", kind="failure", rows=[1], shows_NK=np.array([[1, 0, 0], [0, 1, 1], [0, 0, 0]], bool))
    dog = example(1, mask=False)
    found = show_examples([OLD, NEW], "high", [], [], [(choice, [dog])])
    [group] = found.seen
    assert (group.title, group.kind, group.condition, found.groups) == ("Small", "failure", "whole", [])
    [shown] = group.examples
    assert [view.title for view in shown.views] == ["Whole"] and not shown.maps
    assert shown.remarks.startswith("in boxes: dog, owl; “Old”: 0 rightly and 0 wrongly named, ")
    pixels = pictures[int(shown.views[0].picture)]
    assert (pixels[:, :20] == 128).all() and not (pixels[:, 20:] == 128).all(), "round the dog, not round the cat"
    assert (np.asarray(dog.image) == 128).all(), "drawn on a copy"


def test_what_a_program_reads_of_it_is_of_the_groups_condition(pictures):
    choice = Choice(title="Small", kind="win", rows=[0], shows_NK=np.array(TARGET, bool))
    runs = [OLD, NEW]
    found = show_examples(runs, "high", [example(1, file="1.jpg")], [], [(choice, [example(0, mask=False)])])
    rows = json.loads(json.dumps(gallery.to_json(found, runs)))
    assert [(row["key"], row["file"], row["condition"], row["group"]) for row in rows] == [
        ("b", "1.jpg", "high", "win"),
        ("a", "a", "whole", "win"),
    ]
    models = [
        [(model["name"], model["right_minus_wrong"], list(model["answers"])) for model in row["models"]] for row in rows
    ]
    assert models == [
        [("Old", 0, ["whole", "high"]), ("New", 1, ["whole", "high"])],
        [("Old", 1, ["whole"]), ("New", 1, ["whole"])],
    ]
    losses = [[round(model["cross_entropy"], 2) for model in row["models"]] for row in rows]
    assert losses == [[0.73, 0.06], [0.07, 0.03]]
    said = rows[0]["models"][1]["answers"]
    assert [said[where][0] for where in ("whole", "high")] == [
        ["dog", pytest.approx(1 / (1 + np.exp(-4))), "right"],
        ["dog", pytest.approx(1 / (1 + np.exp(-2))), "right"],
    ]


def test_a_row_of_more_pictures_than_the_column_holds_is_wide():
    def of(num_views: int, num_maps: int) -> Gallery:
        fields: dict[str, Any] = dict.fromkeys(("key", "file", "shows", "remarks"), "")
        fields |= dict.fromkeys(("hidden", "num_classes", "width", "height"), 1)
        shown = [Shown(**fields, views=[None] * n, maps=[None] * m) for n, m in ((1, 0), (num_views, num_maps))]  # type: ignore[list-item]
        return Gallery(condition="high", groups=[Group(title="", kind="win", examples=shown, condition="high")])

    assert [of(2, n).is_wide for n in (0, 1, 2)] == [False, False, True]
    assert [of(2, n).has_maps for n in (0, 1)] == [False, True]


def test_a_model_whose_weights_have_changed_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    opened: list[tuple[Any, ...]] = []
    monkeypatch.setattr(gallery, "open_checkpoint", lambda place: place)
    monkeypatch.setattr(gallery, "read_meta", lambda place: ({"weights_sha256": f"of {place}"}, None))
    monkeypatch.setattr(gallery, "Predictor", lambda *asked, **more: opened.append((*asked, more)) or "model")

    def of(place: str, sha256: str) -> object:
        one = run("r", [[0] * 3] * 3, [[0] * 3] * 3, place=place)
        return gallery._open_predictor(replace(one, clean=predictions([[0] * 3] * 3, sha256=sha256)))

    assert of("here", "of there") is None and of("", "of ") is None and not opened
    assert of("here", "of here") == "model"
    [(place, device, more)] = opened
    assert (place, str(device), more) == ("here", "cpu", {"threshold": 0.5})
    monkeypatch.undo()
    assert of(str(tmp_path / "gone"), "of it") is None
