"""The data that a grid needs: which of it is there, with which contents, and the commands that make what is missing."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from msldata.contract.manifest import Manifest, read_manifest
from msldata.errors import UserError
from msltrain.evaluation.trained_on import shared_masks_notes
from msltrain.grids.plan import DataPlaces, Plan, Run

TRAIN, KEEP_MASKS, TEST, TEST_MASKS = "training images", "training keep masks", "test images", "held-out keep masks"


@dataclass(frozen=True, kw_only=True)
class Need:
    """One dataset folder."""

    place: str
    role: str
    """What it is for, such as ``training images``."""
    manifest: Manifest | None
    """None: it is not there."""
    problem: str = ""
    """Why it is not there."""


def find_needs(plan: Plan) -> list[Need]:
    """Every dataset that the runs of ``plan`` read, each once, with its manifest where it is there.

    Raises:
        StorageError: a place cannot be read.
    """
    found: dict[str, Need] = {}
    for run in plan.runs:
        for role, place in places_of(run):
            if place not in found:
                found[place] = _look(place, role)
    order = (TRAIN, TEST, KEEP_MASKS, TEST_MASKS)
    return sorted(found.values(), key=lambda need: order.index(need.role))


def places_of(run: Run) -> Iterator[tuple[str, str]]:
    """(role, place) of the datasets that a run reads."""
    yield TRAIN, run.config.data.train
    if run.config.loss.needs_keep_masks and run.config.keep_mask.kind == "stored":
        for place in run.config.data.keep_masks:
            yield KEEP_MASKS, place
    yield TEST, run.test.shards
    for _, place in run.test.keep_masks:
        yield TEST_MASKS, place


def masks_met(plan: Plan) -> list[str]:
    """In sentences, which held-out keep masks a training of the plan meets as well; missing ones are passed over."""
    places = dict.fromkeys(pair for run in plan.runs for pair in places_of(run))

    def fingerprints(wanted: str) -> dict[str, str]:
        needs = [_look(place, role) for role, place in places if role == wanted]
        return {need.place: need.manifest.fingerprint for need in needs if need.manifest is not None}

    return shared_masks_notes(fingerprints(TEST_MASKS), fingerprints(KEEP_MASKS))


def next_commands(missing: Sequence[Need], places: DataPlaces) -> list[str]:
    """The commands that make what is missing, in order and each once."""
    commands: dict[str, None] = {}
    for need in missing:
        root = need.place.rstrip("/").rpartition("/")[0]
        out = "" if root == "shards/masks" else f" --out {shlex.quote(root)}"
        if need.role == KEEP_MASKS and root.endswith("/official"):
            commands[f"msl build-masks --order official{out}  # without NVIDIA's: --generate 3000, no --order"] = None
        elif need.role == KEEP_MASKS:
            commands[f"msl build-masks --threshold 0.5{out}  # or with --generate 3000, without NVIDIA's masks"] = None
        elif need.role == TEST_MASKS:
            commands[f"msl build-masks --generate 3000 --seed 1{out}  # masks that no training meets"] = None
        else:
            dataset = root.rpartition("/")[2]
            if places.train is not None:
                commands[f"msl build-shards --help  # {need.place} are your own shards"] = None
            else:
                shards = "" if places.root == "shards" else f" --out {shlex.quote(places.root)}"
                commands[f"msl download {dataset}  # or put it where `msl doctor` looks"] = None
                commands[f"msl build-shards --dataset {dataset}{shards}"] = None
    return list(commands)


def require_all(needs: Sequence[Need], places: DataPlaces) -> None:
    """Raise UserError that lists what is missing and how to make it, unless everything is there."""
    missing = [need for need in needs if need.manifest is None]
    if missing:
        lines = [f"  {need.role}: {need.problem}" for need in missing]
        commands = [f"  {command}" for command in next_commands(missing, places)]
        raise UserError(
            "the grid needs data that is missing or cannot be read:\n" + "\n".join([*lines, "make it with:", *commands])
        )


def _look(place: str, role: str) -> Need:
    try:
        return Need(place=place, role=role, manifest=read_manifest(place))
    except (UserError, FileNotFoundError) as error:
        return Need(place=place, role=role, manifest=None, problem=str(error))
