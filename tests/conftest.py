"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def sample() -> Path:
    """Root of the real sample data; the test is skipped where it is absent."""
    root = Path(os.environ.get("MSL_SAMPLE", REPOSITORY.parent / "shared" / "sample"))
    if not (root / "VOCdevkit").is_dir():
        pytest.skip(f"real sample data not found at {root}; set MSL_SAMPLE to its folder")
    return root
