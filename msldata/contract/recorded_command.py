"""The command that builds a dataset again as it was built: the one that its manifest has recorded."""

from __future__ import annotations

import shlex
from dataclasses import replace

from msldata.contract.manifest import IMAGES, Manifest
from msldata.storage import LocalStorage, Storage, open_storage, same_place


def build_command(folder: Storage, manifest: Manifest) -> str | None:
    """The recorded command, writing to ``folder`` again; None where none was recorded: no command is guessed."""
    words = list(manifest.provenance.get("command", ()))
    if not words:
        return None
    if words[0] == "index":
        beside = same_place(folder, open_storage(words[1]))
        return shlex.join(["msl", *words]) + ("" if beside else f" --out {shlex.quote(folder.url)}")
    below = f"/{manifest.dataset}/{manifest.split}" if manifest.kind == IMAGES else f"/{manifest.split}"
    return shlex.join(["msl", *words]) + out_option(folder, below)


def build_other_split(folder: Storage, manifest: Manifest, split: str) -> str | None:
    """The command for ``split`` of the dataset of ``manifest``, whose own split was built by naming it; writes to
    ``folder``. None where none was recorded."""
    words = list(manifest.provenance.get("command", ()))
    if manifest.kind != IMAGES or words[:1] != ["build-shards"] or "--split" not in words:
        return None
    words[words.index("--split") + 1] = split
    return build_command(folder, replace(manifest, split=split, provenance={"command": words}))


def out_option(folder: Storage, below: str = "") -> str:
    """`` --out PLACE`` for a build that shall end in ``folder``; ``below`` is what the build itself adds to PLACE."""
    default = "shards/masks" if below.count("/") == 1 else "shards"
    place = folder.url.removesuffix(below)
    return "" if isinstance(folder, LocalStorage) and place == default else f" --out {shlex.quote(place)}"
