"""Fixtures shared by all tests."""

from __future__ import annotations

import functools
import gc
import os
import signal
import sys
from multiprocessing import spawn
from pathlib import Path

# Tests run beside each other, one process a core: a second torch thread in each would only fight for it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# As in the Makefile: or every program that a test starts would compile anew whatever it imports, torch above all.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# A shell that starts the tests in the background lets them ignore Ctrl-C, and so would every command they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

import hypothesis  # noqa: E402
import pytest  # noqa: E402
import typer.testing  # noqa: E402

from tests import readyprogram  # noqa: E402

# How long an example takes says more of what else the machine does.
hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.load_profile("tests")

REPOSITORY = Path(__file__).resolve().parent.parent

# What needs no power cut to be tested: each flush waits for the disk. Who tests the flushes watches the calls.
os.fsync = lambda file: None
# The command line is the same in every test, and building its 24 commands anew takes a tenth of a second.
typer.testing._get_command = functools.cache(typer.testing._get_command)


def pytest_collection_finish():
    """Torch and 7,000 tests are a million objects; looking for cycles among them again and again took a sixth of it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def nothing_registered_stays():
    """Heads, losses and augmentations that a test registers are gone after it; messages would name them elsewhere."""
    yield
    if (registered := sys.modules.get("msltrain.registered")) is not None:
        for known in (registered.HEADS, registered.LOSSES, registered.AUGMENTATIONS):
            known.clear()
        registered._is_loaded = False


@pytest.fixture(scope="session")
def sample() -> Path:
    """Root of the real sample data; the test is skipped where it is absent."""
    root = Path(os.environ.get("MSL_SAMPLE", REPOSITORY.parent / "shared" / "sample"))
    if not (root / "VOCdevkit").is_dir():
        pytest.skip(f"real sample data not found at {root}; set MSL_SAMPLE to its folder")
    return root


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory):
    """A real S3 server on loopback (rclone, signature checks) behind a fault proxy, with an empty bucket ``bucket``."""
    from tests import s3server

    root = tmp_path_factory.mktemp("s3")
    (root / "bucket").mkdir()
    with s3server.running(root) as server:
        yield server


@pytest.fixture
def s3(s3_server, monkeypatch):
    """The S3 server with its address and keys in the environment; ``s3.proxy.choose`` injects faults."""
    from msldata.storage import RemoteStorage

    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    # A user's program waits half a minute for a store that fails for good; a test must not.
    monkeypatch.setattr(RemoteStorage, "PATIENT_RETRY", RemoteStorage.RETRY)
    yield s3_server
    s3_server.proxy.choose = lambda method, path: None


@pytest.fixture(scope="session")
def ready_programs(tmp_path_factory):
    """The folder of `tests.readyprogram`, started once."""
    with readyprogram.running(tmp_path_factory.mktemp("ready"), os.environ) as programs:
        yield programs


@pytest.fixture(scope="module")
def ready_python(ready_programs):
    """`sys.executable` is a Python that need not import torch first, for all that this file's tests start.

    For tests of what programs do; those of how they start and how the interpreter ends take the plain one.
    """
    before = spawn.get_executable()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", str(ready_programs / "ready-python"))
        spawn.set_executable(sys.executable)
        yield
        spawn.set_executable(before)


@pytest.fixture(scope="session")
def chromium(tmp_path_factory):
    """A real headless browser, see `tests.browser`; the test is skipped where none is installed."""
    from tests import browser

    with browser.running(tmp_path_factory.mktemp("browser")) as chromium:
        yield chromium
