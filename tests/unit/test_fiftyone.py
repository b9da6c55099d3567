"""FiftyOne's label file of answers, in the layout that its importer reads."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from msldata.errors import UserError
from msltrain.use.output_formats import format_of, write_answers
from msltrain.use.predict import ImagePrediction
from msltrain.use.predict_many import _require_files
from msltrain.use.read_images import Picture

ANSWER = ImagePrediction(
    file='photos/ä "1".jpg',
    scores=(("cat", 0.75), ("dog", 0.25)),
    predicted=("cat",),
    masked_scores=(("cat", 0.5), ("dog", 0.125)),
    masked_predicted=("cat",),
    thresholds=(0.5, 0.4),
)  # fmt: skip


def written(*answers: ImagePrediction) -> dict:
    file = io.BytesIO()
    write_answers(answers, "fiftyone", file)
    return json.loads(file.getvalue())


def test_every_photograph_has_its_labels():
    content = written(
        ANSWER, ImagePrediction(file="broken.jpg", error="not an image"), ImagePrediction(file="none.jpg")
    )
    # Absolute paths need no data folder; with classes null, a label is a name and not a position among them.
    assert list(content["labels"]) == [str(Path(ANSWER.file).absolute()), str(Path("none.jpg").absolute())]
    assert content["classes"] is None
    cat, dog = content["labels"][str(Path(ANSWER.file).absolute())]
    assert (cat["label"], cat["confidence"], dog["confidence"]) == ("cat", 0.75, 0.25)
    assert cat["attributes"] == {"predicted": True, "threshold": 0.5, "masked_confidence": 0.5}
    assert not dog["attributes"]["predicted"]
    assert written()["labels"] == {}


def test_what_fiftyone_could_not_show_is_refused_at_once():
    with pytest.raises(UserError, match="fiftyone cannot be printed"):
        format_of("fiftyone", None)
    with pytest.raises(UserError, match=r"shards/x#s0: not a file on this machine"):
        _require_files([Picture("shards/x#s0", lambda: b"")])
    with pytest.raises(UserError, match=r"caf.xe9\.jpg: a name that is not UTF-8, .* rename the file"):
        _require_files([Picture(r"caf\xe9.jpg", lambda: b"")])
