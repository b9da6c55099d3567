"""This program as a command for another process, whatever folder it is started from."""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path

_HOME = Path(__file__).resolve().parents[2]


def program_command(*arguments: str) -> list[str]:
    """The program with ``arguments``, to be started with `program_environment`.

    ``-P``: the current folder is the user's, and a file there must not be taken for one of ours.
    """
    return [sys.executable, "-P", "-m", "msltrain", *arguments]


def program_environment() -> dict[str, str]:
    """This process's environment, in which a new Python finds the very packages that run here."""
    environment = dict(os.environ)
    if str(_HOME) not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(_HOME), os.environ.get("PYTHONPATH"))))
    return environment
