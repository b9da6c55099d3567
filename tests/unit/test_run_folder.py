"""The run folder: which lines of its log are kept, and in which order a copy in object storage is made."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from msldata.errors import StorageError
from msldata.storage import LocalStorage
from msltrain.hosts.distributed import Ranks
from msltrain.recipes import recipe
from msltrain.runs.checkpoint import load_checkpoint, save_checkpoint
from msltrain.runs.folder import ENVIRONMENT_NAME, METRICS_NAME, SKIPPED_NAME, DatasetIdentity, RunFolder, changed_data
from msltrain.runs.mirror import RunMirror
from msltrain.stream.errors import SampleError
from tests.unit.test_find_checkpoint import save

ALONE = Ranks(rank=0, world_size=1, device=torch.device("cpu"))


def test_the_log_is_kept_up_to_the_step_where_a_run_goes_on(tmp_path: Path):
    folder = RunFolder(tmp_path)
    for step in (1, 2, 3):
        folder.add_metrics({"step": step, "total": 0.5})
    folder.keep_metrics_until(2)
    assert [json.loads(line)["step"] for line in (tmp_path / METRICS_NAME).read_text().splitlines()] == [1, 2]


def test_every_start_is_noted_with_what_was_changed_and_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A change counts for ever, the code only where it was last trained."""
    folder, code = RunFolder(tmp_path), {"sha256": 12 * "a"}
    monkeypatch.setattr("msltrain.runs.folder.code_identity", lambda: dict(code))
    assert folder.was_changed and not folder.other_code(), "nothing tells"
    seen = []
    for letter, step, changes in (("a", 0, []), ("b", 8, ["optim.lr was 1, is 2"]), ("b", 12, [])):
        code["sha256"] = 12 * letter
        folder.note_start(ALONE, step, changes)
        seen.append((folder.was_changed, folder.other_code()))
    assert seen == [(False, ""), (True, ""), (True, "")]
    code["sha256"] = 12 * "a"
    assert folder.other_code().endswith(f"than it was last trained with ({12 * 'b'} before, {12 * 'a'} now)")
    starts = json.loads((tmp_path / ENVIRONMENT_NAME).read_text())
    assert [(start["from_step"], start["changes"], start["code"]["sha256"][0]) for start in starts] == [
        (0, [], "a"),
        (8, ["optim.lr was 1, is 2"], "b"),
        (12, [], "b"),
    ]


def test_rows_go_to_the_trackers_too_which_are_closed_with_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    told: list[object] = []
    tracker = SimpleNamespace(add=told.append, close=lambda: told.append("closed"))
    monkeypatch.setattr(
        "msltrain.runs.folder.open_trackers", lambda *_, place, step: told.append((place, step)) or [tracker]
    )
    with pytest.raises(ValueError, match="mine"), RunFolder(tmp_path) as folder:
        folder.track(recipe("smoke"), 7)
        folder.add_metrics({"step": 8, "total": 0.5})
        raise ValueError("mine")
    assert told == [(str(tmp_path), 7), {"step": 8, "total": 0.5}, "closed"]


class Elsewhere:
    """In the place of the mirror and the claim of a run in object storage, which fails so many times."""

    def __init__(self, folder: RunFolder, fails: int):
        self.done: list[str] = []
        self.is_stored, self._fails = False, fails
        folder._mirror = folder._claim = self  # type: ignore[assignment]

    def check(self) -> None:
        self.done.append("check")

    def push(self) -> None:
        self.done.append("push")
        self._fails -= 1
        if self._fails >= 0:
            raise StorageError("the store is away")
        self.is_stored = True


@pytest.mark.parametrize(("fails", "tries", "is_kept"), [(0, 1, False), (1, 2, False), (2, 2, True)])
def test_a_run_is_stored_by_whoever_holds_it_and_tried_once_more_at_the_end(tmp_path: Path, fails, tries, is_kept):
    with RunFolder(tmp_path / "copy") as folder:
        folder.path.mkdir()
        store = Elsewhere(folder, fails)
        folder.publish()
    assert store.done == tries * ["check", "push"] and folder.path.exists() == is_kept


def test_the_copy_that_a_stopped_run_has_named_stays(tmp_path: Path):
    with RunFolder(tmp_path / "copy") as folder:
        folder.path.mkdir()
        store = Elsewhere(folder, 1)
        assert folder.publish_stopped() == folder.path
    assert store.done == ["check", "push"] and folder.path.exists()
    with pytest.raises(KeyboardInterrupt), RunFolder(tmp_path / "copy") as folder:
        store = Elsewhere(folder, 0)
        raise KeyboardInterrupt
    assert not store.done and folder.path.exists(), "who asks twice waits for nothing"


def test_data_of_a_role_that_the_run_began_without_is_a_change(tmp_path: Path):
    data = DatasetIdentity(location="shards", dataset="d", split="train", num_samples=9, fingerprint=64 * "1")
    folder = RunFolder(tmp_path)
    folder.start(recipe("smoke"), {"train": [data]})
    assert folder.changes(recipe("smoke"), {"train": [data]}) == []
    [change] = folder.changes(recipe("smoke"), {"train": [data], "validation": [data]})
    assert change.startswith("other data for validation: then none, now shards")


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


def bad(number: int) -> SampleError:
    return SampleError("data/train", "shard.tar", f"größe{number}", 10 * number, "no image")


def test_samples_that_were_skipped_are_listed_once_whenever_they_are_met(tmp_path: Path):
    folder = RunFolder(tmp_path)
    counts = [folder.add_skipped(samples) for samples in ([], [bad(1), bad(2)], [bad(2)], [bad(3), bad(1)], [])]
    assert counts == [0, 2, 2, 3, 3]
    rows = [json.loads(line) for line in (tmp_path / SKIPPED_NAME).read_text().splitlines()]
    assert [(row["key"], row["offset"]) for row in rows] == [("größe1", 10), ("größe2", 20), ("größe3", 30)]
    assert rows[0] == {
        "dataset": "data/train",
        "shard": "shard.tar",
        "key": "größe1",
        "offset": 10,
        "reason": "no image",
    }


def test_the_latest_epochs_are_kept_and_the_oldest_goes(tmp_path: Path):
    folder = RunFolder(tmp_path)
    for epoch in (7, 8, 9, 10):
        save(folder.last)
        folder.keep_last(epoch, 2 if epoch > 7 else 0)
        names = sorted(path.name for path in (tmp_path / "checkpoints").glob("epoch-*"))
        assert names == [f"epoch-{number + 1:04d}" for number in (8, 9, 10) if epoch - 2 < number <= epoch]


def test_folders_of_masks_in_another_order_are_other_data():
    """``keep_mask.subset_weights`` goes by their order, and so does which mask a sample meets."""
    high, low, moved = (
        DatasetIdentity(location=f"masks/{place}", dataset="masks", split=place, num_samples=9, fingerprint=digit * 64)
        for place, digit in (("high", "1"), ("low", "2"), ("elsewhere", "1"))
    )
    assert changed_data("keep_masks", [high, low], [moved, low]) == []
    for then, now in (([high, low], [low, high]), ([high, low], [high]), ([high], [high, high]), ([], [low])):
        (said,) = changed_data("keep_masks", then, now)
        names = [", ".join(map(str, those)) or "none" for those in (then, now)]
        assert said.startswith(f"other data for keep_masks: then {names[0]}, now {names[1]}, ")


def at_step(step: int, place: Path) -> None:
    save_checkpoint(replace(load_checkpoint(save(place)), step=step), place)


def test_a_stored_run_has_one_checkpoint_of_each_name_and_it_is_the_newest_that_goes_on(tmp_path: Path):
    run, stored = tmp_path / "run", LocalStorage(tmp_path / "stored")
    mirror = RunMirror(stored, run)
    for step in (9, 10, 100):
        for name in ("last", *(["best"] if step == 10 else [])):
            at_step(step, run / "checkpoints" / name)
        (run / METRICS_NAME).write_text("x" * step)
        assert not mirror.is_stored
        mirror.push()
        assert mirror.is_stored
    names = {path.name for path in (tmp_path / "stored/checkpoints").iterdir() if any(path.iterdir())}
    assert names == {"last.000000100", "best.000000010"}
    assert (tmp_path / "stored" / METRICS_NAME).read_text() == "x" * 100
    # As an upload that was cut off leaves it: an older one beside it, and a newer one without its description.
    shutil.copytree(tmp_path / "stored/checkpoints/last.000000100", tmp_path / "stored/checkpoints/last.000000101")
    (tmp_path / "stored/checkpoints/last.000000101/meta.json").unlink()
    at_step(99, tmp_path / "stored/checkpoints/last.000000099")
    other = RunMirror(stored, tmp_path / "other")
    other.fetch(sorted(stored.list_files(), key=lambda info: info.name, reverse=True))  # in whatever order
    found = {name: load_checkpoint(tmp_path / "other/checkpoints" / name).step for name in ("last", "best")}
    assert found == {"last": 100, "best": 10} and other.is_stored
    shutil.rmtree(tmp_path / "other/checkpoints/best")
    other.push()
    assert other.is_stored
    assert not any("/best." in info.name for info in stored.list_files())
    assert any("/last.000000100/" in info.name for info in stored.list_files())


def test_a_file_that_was_changed_in_its_place_is_stored_anew(tmp_path: Path):
    run, stored = tmp_path / "run", LocalStorage(tmp_path / "stored")
    run.mkdir()
    mirror, file = RunMirror(stored, run), run / "config.json"
    for number, text in enumerate(("old", "new")):
        file.write_text(text)
        os.utime(file, (number, number))
        assert not mirror.is_stored
        mirror.push()
        assert mirror.is_stored and stored.read("config.json") == text.encode()


def test_a_stored_checkpoint_is_no_checkpoint_from_its_first_deleted_file_on(tmp_path: Path, monkeypatch):
    stored, deleted = LocalStorage(tmp_path / "stored"), []
    mirror = RunMirror(stored, tmp_path / "run")
    for step in (1, 2):
        at_step(step, tmp_path / "run/checkpoints/last")
        monkeypatch.setattr(stored, "delete", deleted.append)
        mirror.push()
    assert deleted[0] == "checkpoints/last.000000001/meta.json" and len(deleted) == 3
