"""How often a download tries again: as long as anything comes, and a few times where nothing does."""

from __future__ import annotations

import http.client
from pathlib import Path

import pytest

from msldata.sources import download
from msldata.sources.download import _ATTEMPTS_WITHOUT_PROGRESS, _fetch_part, _MirrorError

WHOLE = 20
"""Bytes of the archive."""


def fetched(part: Path, monkeypatch: pytest.MonkeyPatch, comes: list[int]) -> int:
    """How many requests it took, where each brings so many bytes before the connection breaks."""
    left, asked = list(comes), []

    def request(name: str, url: str, part: Path, progress: object) -> None:
        asked.append(url)
        with open(part, "ab") as file:
            file.write(bytes(left.pop(0) if left else 0))
        if part.stat().st_size < WHOLE:
            raise http.client.IncompleteRead(b"")

    monkeypatch.setattr(download, "_request", request)
    monkeypatch.setattr(download, "_PAUSE_SECONDS", 0)
    _fetch_part("a.tar", "https://here/a.tar", part, lambda *_: None)
    return len(asked)


@pytest.mark.parametrize(
    "comes",
    [
        [1] * WHOLE,
        [0, 0, 5] * 4,
        [5, 0, 0, 5, 0, 0, 5, 0, 0, 5],
        [WHOLE],
    ],
)
def test_a_line_that_breaks_again_and_again_brings_it_in_the_end(tmp_path: Path, monkeypatch, comes: list[int]):
    assert fetched(tmp_path / "part", monkeypatch, comes) == len(comes)


@pytest.mark.parametrize("before", [[], [5], [5, 0, 5, 0, 0, 1]])
def test_a_mirror_that_sends_nothing_is_given_up(tmp_path: Path, monkeypatch, before: list[int]):
    """Three times in a row; what has come is kept for the next one."""
    with pytest.raises(_MirrorError, match="IncompleteRead"):
        fetched(tmp_path / "part", monkeypatch, [*before, *[0] * _ATTEMPTS_WITHOUT_PROGRESS, 99])
    assert (tmp_path / "part").stat().st_size == sum(before)
