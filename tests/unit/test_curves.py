"""A robustness study as JSON: read back as it was, or refused, whatever became of the file."""

from __future__ import annotations

import json
import random

import pytest

from msltrain.robustness.curves import VISIBLE_BINS, Cell, Curves, read_curves
from msltrain.robustness.figure import areas_table, robustness_markdown, study_plots

ODD = (
    None,
    True,
    -1,
    0,
    2**70,
    0.5,
    1.5,
    float("nan"),
    float("inf"),
    "",
    "box",
    "whole",
    "[/x]",
    [],
    {},
    [[1]],
    {"a": 1},
)


def cell(model: str, kind: str, condition: str, hole_fraction: float, mAP: float) -> Cell:
    known = VISIBLE_BINS if kind else ()
    return Cell(
        **{"model": model, "kind": kind, "condition": condition, "hole_fraction": hole_fraction, "mAP": mAP},
        **{"CR": 0.5, "CF1": 0.4, "visible_share": known, "num_pairs": (3,) * len(known), "num_negative": 9},
        **{"num_predicted": (1,) * len(known), "num_false": 2},
    )


@pytest.fixture
def content() -> dict:
    curves = [
        *(cell(model, "", "whole", 0.0, 0.8) for model in ("a", "b")),
        *(cell(model, "box", f"box-{n}", n / 10, 0.8 - n / 10) for model in ("a", "b") for n in (1, 2, 3)),
    ]
    return json.loads(Curves(cells=tuple(curves), areas=(), num_samples=9).to_json())


def read(content: object) -> Curves:
    return read_curves(json.dumps(content).encode())


def test_areas_are_those_of_the_cells(content):
    curves = read(content)
    assert [(area.model, area.kind, area.mAP) for area in curves.areas] == [
        (model, "box", pytest.approx(0.65)) for model in ("a", "b")
    ]
    assert read_curves(curves.to_json().encode()) == curves


def test_whatever_became_of_the_file_it_can_be_shown_or_is_refused(content):
    """Leaving out the areas of a model once was a traceback of the page that shows them."""
    chance, num_refused = random.Random(0), 0
    for _ in range(400):
        changed = json.loads(json.dumps(content))
        holder, name = chance.choice(list(places(changed)))
        if chance.random() < 0.3:
            del holder[name]
        else:
            holder[name] = chance.choice(ODD)
        try:
            curves = read(changed)
        except ValueError as error:
            num_refused += 1
            assert "\n" not in str(error)
            continue
        assert (
            robustness_markdown(curves) is not None
            and areas_table(curves)
            and study_plots(curves, dict.fromkeys(curves.models, 0)) is not None
        )
    assert num_refused > 100


def places(content: object):
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for name, value in list(items):
        yield content, name
        yield from places(value)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"null", b"[]"])
def test_what_is_no_study(data):
    with pytest.raises(ValueError):
        read_curves(data)
