"""Which code a run is computed by: a digest of both packages' sources, and the commit where they are a checkout."""

from __future__ import annotations

import functools
import hashlib
import subprocess
from contextlib import suppress
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = ("msldata", "msltrain")


@functools.cache
def code_identity() -> dict[str, str]:
    """``sha256`` of all modules, by name and content, whatever the folder that they lie in; ``commit`` in a checkout.

    Two runs with one digest were computed by the same lines; a version number stays as it is while lines change.
    """
    digest = hashlib.sha256()
    for package in _PACKAGES:
        for file in sorted((_ROOT / package).rglob("*.py")):
            content = file.read_bytes().replace(b"\r\n", b"\n")  # as git checks out on Windows
            digest.update(f"{file.relative_to(_ROOT).as_posix()}\0{len(content)}\0".encode() + content)
    identity = {"sha256": digest.hexdigest()}
    if (_ROOT / ".git").exists():
        with suppress(OSError, subprocess.SubprocessError):  # no git here: the digest says enough
            words = ["git", "-C", str(_ROOT), "rev-parse", "HEAD"]
            identity["commit"] = subprocess.run(words, capture_output=True, check=True, text=True).stdout.strip()
    return identity
