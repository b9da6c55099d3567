"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

# Tests run beside each other, one process a core: a second torch thread in each would only fight for it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def sample() -> Path:
    """Root of the real sample data; the test is skipped where it is absent."""
    root = Path(os.environ.get("MSL_SAMPLE", REPOSITORY.parent / "shared" / "sample"))
    if not (root / "VOCdevkit").is_dir():
        pytest.skip(f"real sample data not found at {root}; set MSL_SAMPLE to its folder")
    return root
