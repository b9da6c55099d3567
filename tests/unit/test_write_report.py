"""In which order the files of a report are there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from msltrain.config import TrainConfig
from msltrain.measures.predictions import Predictions
from msltrain.report import numbers, write_report
from msltrain.report.open_runs import RunReport
from msltrain.stream.config import StreamConfig


@pytest.mark.parametrize("most", [1, 100])
def test_the_page_is_there_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int):
    """It names the other files: whoever finds it finds them, also where the disk is full after the first."""
    monkeypatch.setattr(numbers, "MOST_CLASSES", most)  # with more there is a table of all of them
    there: list[str] = []

    class Recorded(write_report.LocalStorage):
        def put(self, name: str, data: bytes | Path) -> None:
            there.append(name)
            super().put(name, data)

    monkeypatch.setattr(write_report, "LocalStorage", Recorded)
    rng = np.random.default_rng(0)
    predictions = Predictions(
        keys=tuple(map(str, range(20))),
        logit_NK=rng.normal(size=(20, 2)).astype(np.float32),
        target_NK=np.uint8(rng.random((20, 2)) < 0.5),
        ignore_NK=np.zeros((20, 2), bool),
        classes=("cat", "dog"),
    )
    config = TrainConfig(stream=StreamConfig(image_size=32))
    run = RunReport(name="one", clean=predictions, masked={}, config=config, history=())
    page = write_report.write_report(tmp_path / "r.html", title="T", runs=[run])
    beside = ["r.json", "r.md", *(["r.classes.csv"] if most == 1 else [])]
    assert there == [*beside, "r.html"] and page == tmp_path / "r.html"
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(there)
    text = page.read_text(encoding="utf-8")
    assert all(name in text for name in beside)
