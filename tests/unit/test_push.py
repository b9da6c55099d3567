"""What is published for a run: its export, if that is of the weights that the run has now."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from msltrain.hub import push as module

NOW, OLD = "a" * 64, "b" * 64


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, str]]]:
    """Kind and files of what was published."""
    found: list[tuple[str, dict[str, str]]] = []

    def publish(folder: Path, repo: str, kind: str, **_: object) -> str:
        found.append((kind, {file.name: file.read_text() for file in folder.iterdir()}))
        return f"https://hub/{repo}"

    def export_model(place: str, out: Path, *, formats: list[str]) -> None:
        export(out, NOW, "made now")

    monkeypatch.setattr(module, "require_hub_token", lambda what: None)
    monkeypatch.setattr(module, "publish", publish)
    monkeypatch.setattr(module, "export_model", export_model)
    monkeypatch.setattr(module, "open_checkpoint", lambda place: place)
    monkeypatch.setattr(module, "read_meta", lambda checkpoint: ({"weights_sha256": NOW}, b""))
    return found


def export(folder: Path, sha256: str | None, content: str) -> None:
    folder.mkdir(parents=True)
    about = {} if sha256 is None else {"weights_sha256": sha256}
    (folder / "config.json").write_text(json.dumps(about))
    (folder / "model.safetensors").write_text(content)


@pytest.mark.parametrize(
    ("sha256", "content"), [(NOW, "made before"), (OLD, "made now"), (None, "made now")], ids=["now", "old", "unknown"]
)
@pytest.mark.parametrize("below", ["", "checkpoints/best"])
def test_an_export_of_weights_that_the_run_had_before_is_not_published(tmp_path, published, sha256, content, below):
    (tmp_path / "run" / "checkpoints" / "best").mkdir(parents=True)
    export(tmp_path / "run" / "export", sha256, "made before")
    said: list[str] = []
    assert module.push(str(tmp_path / "run" / below), "me/model", note=said.append) == "https://hub/me/model"
    [(kind, files)] = published
    assert kind == "model" and files["model.safetensors"] == content
    assert ("from its export" in said[0]) == (content == "made before")


def test_an_export_that_is_named_is_published_whatever_it_is_of(tmp_path, published):
    export(tmp_path / "run" / "export", OLD, "made before")
    module.push(str(tmp_path / "run" / "export"), "me/model")
    assert [files["model.safetensors"] for _, files in published] == ["made before"]
