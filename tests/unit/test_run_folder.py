"""The run folder: which lines of its log are kept, and in which order a copy in object storage is made."""

from __future__ import annotations

import json
from pathlib import Path

from msldata.storage import LocalStorage
from msltrain.runs.folder import METRICS_NAME, RunFolder
from msltrain.runs.mirror import RunMirror
from tests.unit.test_find_checkpoint import save


def test_the_log_is_kept_up_to_the_step_where_a_run_goes_on(tmp_path: Path):
    folder = RunFolder(tmp_path)
    for step in (1, 2, 3):
        folder.add_metrics({"step": step, "total": 0.5})
    folder.keep_metrics_until(2)
    assert [json.loads(line)["step"] for line in (tmp_path / METRICS_NAME).read_text().splitlines()] == [1, 2]


class Recorded(LocalStorage):
    """Notes what is put into it, in order."""

    def __init__(self, path: Path):
        super().__init__(path)
        self.names: list[str] = []

    def put(self, name: str, data: bytes | Path) -> None:
        self.names.append(name)
        super().put(name, data)


def test_a_stored_checkpoint_is_described_once_all_of_it_is_there(tmp_path: Path):
    """Whoever is killed in between leaves no description of files that are missing."""
    save(tmp_path / "run/checkpoints/last")
    stored = Recorded(tmp_path / "stored")
    RunMirror(stored, tmp_path / "run").push()
    names = [name.removeprefix("checkpoints/last.000000001/") for name in stored.names]
    assert sorted(names) == ["meta.json", "train_state.pt", "weights.safetensors"] and names[-1] == "meta.json"
