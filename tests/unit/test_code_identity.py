"""Which code a run was computed by: told apart by its lines, whatever its version says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from msltrain.hosts.distributed import Ranks
from msltrain.runs import code
from msltrain.runs.folder import RunFolder

ALONE = Ranks(rank=0, world_size=1, device=torch.device("cpu"))


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for package in ("msldata", "msltrain"):
        (tmp_path / package / "inner").mkdir(parents=True)
        (tmp_path / package / "inner" / "one.py").write_text("a = 1\n")
    monkeypatch.setattr(code, "_ROOT", tmp_path)
    return tmp_path


def identity() -> dict[str, str]:
    code.code_identity.cache_clear()
    return code.code_identity()


def test_a_line_and_a_name_change_the_digest_and_nothing_else_does(tree: Path):
    first = identity()
    assert list(first) == ["sha256"] and len(first["sha256"]) == 64  # no checkout
    (tree / "msltrain" / "notes.txt").write_text("no code")
    (tree / "msltrain" / "inner" / "one.py").write_bytes(b"a = 1\r\n")
    assert identity() == first
    (tree / "msltrain" / "inner" / "one.py").write_text("a = 2\n")
    changed = identity()
    assert changed != first
    (tree / "msltrain" / "inner" / "one.py").rename(tree / "msltrain" / "inner" / "two.py")
    assert identity() not in (first, changed)


def test_a_run_says_when_it_goes_on_with_other_code(tree: Path, tmp_path: Path):
    with RunFolder(tmp_path / "run") as folder:
        assert folder.other_code() == ""  # it was never begun
        identity()
        folder.note_start(ALONE, 0)
        assert folder.other_code() == ""
        [start] = json.loads((tmp_path / "run" / "environment.json").read_text())
        assert start["code"] == code.code_identity()
        (tree / "msldata" / "inner" / "one.py").write_text("a = 3\n")
        now = identity()["sha256"]
        said = folder.other_code()
        assert said.startswith("goes on with other code than it was last trained with")
        assert said.endswith(f"({start['code']['sha256'][:12]} before, {now[:12]} now)")
        folder.note_start(ALONE, 5)
        assert folder.other_code() == ""
        del start["code"]  # of an older version
        (tmp_path / "run" / "environment.json").write_text(json.dumps([start]))
        assert folder.other_code() == ""
    code.code_identity.cache_clear()
