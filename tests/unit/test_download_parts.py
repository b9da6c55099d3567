"""How often a download tries again: as long as anything comes, and a few times where nothing does."""

from __future__ import annotations

import http.client
from pathlib import Path

import pytest

from msldata.progress import Bars, byte_progress_bar
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


def test_the_speed_of_a_download_is_that_of_what_comes_now(monkeypatch: pytest.MonkeyPatch):
    """The bar begins anew with each file, and with nothing between."""
    begun: list[tuple[str, int]] = []
    monkeypatch.setattr(
        Bars, "reset", lambda self, task, *, description, total: begun.append((description, total)), raising=True
    )
    with byte_progress_bar() as update:
        for what, done in (("a.tar", 1), ("a.tar", 2), ("b.tar", 1), ("b.tar", 2), ("a.tar", 3)):
            update(what, done, 9)
    assert begun == [("a.tar", 9), ("b.tar", 9), ("a.tar", 9)]
