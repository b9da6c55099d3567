"""Answers kept in parts until all are there: what a killed run leaves, and for which question they are taken."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from msldata.errors import UserError
from msltrain.use import predict_many as module
from msltrain.use.answers import AnswerFile
from msltrain.use.predict import Asked, ImagePrediction
from msltrain.use.read_images import Picture

ASKED = {"models": ["a"], "top_k": 2}


def answer(name: str) -> ImagePrediction:
    return ImagePrediction(file=name, scores=(("cat", 0.5), ("dog", len(name) / 8)), predicted=("dog",))


def opened(out: Path, rank: int = 0, asked: dict[str, Any] = ASKED) -> AnswerFile:
    return AnswerFile(out, "json", asked, rank)


def kept(out: Path, rank: int, *names: str) -> None:
    """What a process leaves that has answered these."""
    file = opened(out, rank)
    file.begin()
    file.add(map(answer, names))
    file.close()


def test_half_a_line_of_a_killed_run_is_no_answer_and_spoils_none(tmp_path: Path):
    out, part = tmp_path / "all.json", tmp_path / "all.json.part0"
    kept(out, 0, "a", "b")
    for torn in (b'{"file": "c', json.dumps({"file": "c"}).encode()):  # a whole one but for its end of line
        with open(part, "ab") as file:
            file.write(torn)
        again = opened(out)
        assert again.answered == {"a", "b"}
        again.close()
    file = opened(out)
    file.begin()
    file.add([answer("c")])
    file.add([answer("ddd")])
    assert list(file.in_order(["ddd", "a", "c", "b"])) == [answer(name) for name in ("ddd", "a", "c", "b")]
    file.close()
    assert opened(out).answered == {"a", "b", "c", "ddd"}


def test_the_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    kept(tmp_path / "all.json", 0, "a")
    file, done, give_name = opened(tmp_path / "all.json"), [], os.replace
    file.begin()
    monkeypatch.setattr(os, "fsync", lambda file: done.append("flushed"))
    monkeypatch.setattr(os, "replace", lambda *of: done.append("named") or give_name(*of))
    file.finish(file.in_order(["a"]))
    file.close()
    assert done == ["flushed", "named"] and (tmp_path / "all.json").is_file()


@pytest.mark.parametrize("torn", [b"", b'{"asked": {"mod'])
def test_a_run_that_was_killed_at_its_first_line_is_begun_again(tmp_path: Path, torn: bytes):
    out = tmp_path / "all.json"
    (tmp_path / "all.json.part0").write_bytes(torn)
    kept(out, 0, "a")
    assert opened(out).answered == {"a"}


def test_the_file_holds_the_answers_of_all_processes_in_the_order_asked_for(tmp_path: Path):
    out = tmp_path / "sub" / "all.json"
    kept(out, 10, "d", "a")
    kept(out, 2, "c")
    out.with_name("all.json.part2.old").write_text("something else")
    out.with_name("tall.json.part0").write_text("of another file")
    file = opened(out)
    assert file.answered == {"a", "c", "d"}
    file.begin()
    file.add([answer("b")])
    file.finish(file.in_order(["a", "b", "c", "d"]))
    file.close()
    assert [json.loads(line)["file"] for line in out.read_text().splitlines()] == ["a", "b", "c", "d"]
    assert sorted(path.name for path in out.parent.iterdir()) == ["all.json", "all.json.part2.old", "tall.json.part0"]


def test_parts_stay_until_the_file_is_there(tmp_path: Path):
    out = tmp_path / "all.json"

    def broken() -> Iterator[ImagePrediction]:
        yield answer("a")
        raise KeyboardInterrupt

    file = opened(out)
    file.begin()
    file.add([answer("a")])
    with pytest.raises(KeyboardInterrupt):
        file.finish(broken())
    file.close()
    assert not out.exists() and opened(out).answered == {"a"}


def test_a_part_answers_one_question_for_one_process(tmp_path: Path):
    out = tmp_path / "all.json"
    kept(out, 0, "a")
    with pytest.raises(UserError, match="another model or other options began"):
        opened(out, asked={**ASKED, "top_k": 3})
    first = opened(out)
    with pytest.raises(UserError, match="another process writes this file"):
        opened(out)
    first.close()
    opened(out).close()
    empty = opened(tmp_path / "none.json")
    empty.begin()
    empty.close()
    assert [path.name for path in tmp_path.iterdir()] == ["all.json.part0"], "of a run without an answer nothing stays"


MODEL = SimpleNamespace(sha256="a", network={"image_size": 8}, classes=("cat",), threshold_K=np.array([0.5]))


@pytest.mark.parametrize(
    ("change", "is_another"),
    [
        ({"top_k": 3}, True),
        ({"top_k": None}, True),
        ({"keep_mask": "other.png"}, True),
        ({"keep_mask": "copy.png"}, False),  # what it hides counts, not what it is called
        ({"keep_mask": None}, True),
        ({"polarity": "hole-white"}, True),
        ({"on_error": "fail"}, False),
        ({"batch_size": 7}, False),
        ({"sha256": "b"}, True),
        ({"network": {"image_size": 9}}, True),
        ({"classes": ("dog",)}, True),
        ({"threshold_K": np.array([0.6])}, True),
        ({"overlays": "cam"}, True),
        ({"models": 2}, True),
    ],
)
def test_answers_are_gone_on_with_where_nothing_that_decides_them_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], is_another: bool
):
    monkeypatch.chdir(tmp_path)
    for name, level in (("mask", 0), ("copy", 0), ("other", 255)):
        Image.new("L", (4, 4), level).save(f"{name}.png")
    asked = Asked(top_k=2, keep_mask="mask.png", polarity="hole-black")
    mine = {name: value for name, value in change.items() if hasattr(asked, name)}
    theirs = {name: value for name, value in change.items() if hasattr(MODEL, name)}
    models = [SimpleNamespace(**{**vars(MODEL), **theirs})] * change.get("models", 1)
    before = module._identity([MODEL], asked, None)  # type: ignore[list-item]
    now = module._identity(models, replace(asked, **mine), change.get("overlays"))  # type: ignore[arg-type]
    assert (json.dumps(now) != json.dumps(before)) == is_another


def test_every_model_of_a_series_decides_its_answers():
    other: Any = SimpleNamespace(**{**vars(MODEL), "sha256": "b"})
    series, changed = (module._identity([MODEL, last], Asked(), None) for last in (MODEL, other))  # type: ignore[list-item]
    assert series != changed


def test_many_batches_take_several_rounds_and_none_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of two processes; the other one has nothing left before this one has."""
    monkeypatch.setattr(module, "_BATCHES_PER_ROUND", 2)
    pictures = [Picture(f"{number:02d}", lambda: b"") for number in range(23)]
    monkeypatch.setattr(
        module,
        "predict_each",
        lambda model, some, asked, folder: ([answer(one.name)] for one in some),
    )
    others, done, rounds = iter([None, 2, 1, 0, 0, 0, 0]), [], []
    ranks = SimpleNamespace(rank=1, world_size=2, gather=lambda mine: rounds.append(mine) or [next(others), mine])
    kept(tmp_path / "all.json", 0, "03", "04", "20")
    file = opened(tmp_path / "all.json", rank=1)
    progress, note = (lambda *numbers: done.append(numbers)), (lambda text: None)
    module._fill(file, [MODEL], pictures, Asked(), None, ranks, progress, note)  # type: ignore[arg-type, list-item]
    file.close()
    open_ = [one.name for one in pictures if one.name not in ("03", "04", "20")]
    assert opened(tmp_path / "all.json", rank=2).answered == {"03", "04", "20", *open_[1::2]}
    assert rounds == [None, 2, 2, 2, 2, 2, 0] and done == [(number, 23) for number in (3, 7, 10, 12, 14, 16)]
