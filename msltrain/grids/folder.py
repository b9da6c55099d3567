"""``grid.json``, which says what a folder's runs are, so that another grid is not mixed into them."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from msldata.errors import UserError
from msldata.storage import LocalStorage, read_local
from msltrain.config import RunConfig, differences, from_json, to_json
from msltrain.grids.needed_data import TEST_MASKS, TRAIN, Need, places_of
from msltrain.grids.plan import Plan, Run
from msltrain.runs.folder import MAY_DIFFER, training_data
from msltrain.runs.recorded import CONFIG_NAME

_log = logging.getLogger(__name__)

NAME = "grid.json"
_VERSION = 1


def claim_folder(out: Path, plan: Plan, needs: Sequence[Need], command: str) -> None:
    """Record in ``out`` what its runs are; more runs, seeds and conditions may be added to the existing ones.

    Args:
        out: the grid's folder.
        plan: what to run.
        needs: its data, which must all be there.
        command: as typed.

    Raises:
        UserError: ``out`` holds a run of the same name with another config or on other data.
    """
    fingerprints = {need.place: need.manifest.fingerprint for need in needs if need.manifest is not None}
    before = _read(out)
    known: dict[str, Any] = before.get("runs", {})
    runs = {run.name: _describe(run, fingerprints) for run in plan.runs}
    changes = [change for name in runs if name in known for change in _changes(name, known[name], runs[name])]
    if changes:
        shown = "; ".join(changes[:3]) + (f"; and {len(changes) - 3} more" if len(changes) > 3 else "")
        raise UserError(
            f"{out}: holds runs of another grid ({shown}); give the settings and data it was begun with "
            f"(`{before.get('command', command)}`), or another folder with --out"
        )
    for name in set(known) & set(runs):
        runs[name]["conditions"] = known[name]["conditions"] | runs[name]["conditions"]
    content = {"version": _VERSION, "command": before.get("command", command), "runs": known | runs}
    LocalStorage(out).put(NAME, (json.dumps(content, indent=2) + "\n").encode())


def _describe(run: Run, fingerprints: Mapping[str, str]) -> dict[str, Any]:
    data: dict[str, list[str]] = {}
    for role, place in places_of(run):
        if role != TEST_MASKS:
            data.setdefault(role, []).append(fingerprints[place])
    conditions = {condition: fingerprints[place] for condition, place in run.test.keep_masks}
    return {"config": json.loads(to_json(run.config)), "data": data, "conditions": conditions}


def _changes(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    then, new = (from_json(json.dumps(entry["config"]), NAME) for entry in (before, now))
    found = [
        f"{name}: {field} was {old!r}, is {value!r}"
        for field, (old, value) in differences(then, new).items()
        if field not in MAY_DIFFER
    ]
    found += [
        f"{name}: other {role}" for role, prints in now["data"].items() if before["data"].get(role, prints) != prints
    ]
    return found + [
        f"{name}: other {TEST_MASKS}, {condition}"
        for condition, fingerprint in now["conditions"].items()
        if before["conditions"].get(condition, fingerprint) != fingerprint
    ]


def _runs_there(out: Path) -> dict[str, Any]:
    """What the folders of runs say of themselves: config and training data, of every run its first seed."""
    runs: dict[str, Any] = {}
    for file in sorted(out.glob(f"runs/*/*/seed*/{CONFIG_NAME}")):
        name = f"{file.parts[-4]}/{file.parts[-3]}"
        try:
            config = from_json(read_local(file).decode(), str(file))
        except (OSError, ValueError):  # it says so itself when it is trained or measured
            continue
        config = replace(config, run=replace(config.run, seed=RunConfig().seed))
        train = [identity.fingerprint for identity in training_data(file.parent)]
        data = {TRAIN: train} if train else {}
        runs.setdefault(name, {"config": json.loads(to_json(config)), "data": data, "conditions": {}})
    return runs


def _check(content: Mapping[str, Any]) -> None:
    """Raise ValueError, or what reading something else raises, for a content that `claim_folder` never wrote."""
    entries = content["runs"].values()
    texts = [content["command"], *(text for entry in entries for text in entry["conditions"].values())]
    for entry in entries:
        from_json(json.dumps(entry["config"]), NAME)
        for prints in entry["data"].values():
            if not isinstance(prints, list):
                raise TypeError("fingerprints are not a list")
            texts += prints
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("a fingerprint or the command is not text")


def _read(out: Path) -> dict[str, Any]:
    file = out / NAME
    try:
        content = json.loads(read_local(file))
        if (version := content["version"]) == _VERSION:
            _check(content)
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        _log.warning("%s: damaged; made again from the folders of its runs", file)
        return {"runs": _runs_there(out)}
    if version != _VERSION:
        raise UserError(f"{file}: a grid of version {version}, this program reads {_VERSION}; use another --out")
    return content
