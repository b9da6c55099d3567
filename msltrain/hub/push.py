"""``msl push``: a model, a dataset or a Space to the Hugging Face hub, with a card that says what it is."""

from __future__ import annotations

import json
import re
import shlex
import tempfile
from collections.abc import Callable
from pathlib import Path

from msldata.contract.dataset_card import dataset_card
from msldata.contract.manifest import MANIFEST_NAME, Manifest, read_manifest
from msldata.contract.publish import reader_files
from msldata.errors import UserError
from msldata.storage import open_storage, read_local
from msldata.storage.hub import is_repository_name, publish, require_hub_token
from msltrain.hub.space import CARD_NAME, is_space
from msltrain.runs.find_checkpoint import EXPORT_CONFIG, EXPORT_WEIGHTS, open_checkpoint, read_meta
from msltrain.runs.run_places import run_folder
from msltrain.use.export import export_model

_MODEL_FILES = ("model.safetensors", "model.onnx", "model.pt2")


def push(place: str, repo: str, *, private: bool = False, note: Callable[[str], None] = lambda text: None) -> str:
    """Publish what is at ``place``; the same again publishes what has changed.

    Args:
        place: a run or checkpoint (its export of these weights is taken, else one is made), an export, a Space's folder
            as `make_space` writes it, or shards: a split, or the folder of a dataset's splits.
        repo: ``OWNER/NAME``; made if there is none.
        private: a new repository is shown to its owner alone.
        note: told what is published.

    Returns:
        Address of its page.

    Raises:
        FileNotFoundError: there is nothing at ``place``.
        UserError: no token, a token that may not write there, or something that cannot be published.
    """
    if not is_repository_name(repo):
        raise UserError(f"{repo}: not a repository's name; write OWNER/NAME, as in me/birds")
    require_hub_token("msl push")
    folder = Path(place).expanduser() if open_storage(place).path() is not None else None
    if folder is not None and (splits := _splits(folder)):
        return _push_dataset(splits, repo, private, note)
    if folder is not None and is_space(folder):
        note(f"a Space, from {folder}")
        return publish(folder, repo, "space", private=private, last=(), replaces=())
    if folder is not None and _is_export(folder):
        note(f"a model, from {folder}")
        return _push_model(folder, repo, private)
    if folder is not None and not folder.exists():
        raise FileNotFoundError(f"{place}: no such run, export or shards")
    sha256 = read_meta(open_checkpoint(place))[0]["weights_sha256"]
    if folder is not None and _is_export(ready := run_folder(folder) / "export") and _weights_of(ready) == sha256:
        note(f"a model, from its export {ready}")
        return _push_model(ready, repo, private)
    with tempfile.TemporaryDirectory() as made:
        note("a model; `msl export` first would add ONNX and torch.export")
        out = Path(made, "export")
        export_model(place, out, formats=["safetensors"])
        return _push_model(out, repo, private)


def _push_model(folder: Path, repo: str, private: bool) -> str:
    return publish(folder, repo, "model", private=private, last=(), replaces=_MODEL_FILES)


def _is_export(folder: Path) -> bool:
    return (folder / EXPORT_CONFIG).is_file() and (folder / EXPORT_WEIGHTS).is_file()


def _weights_of(export: Path) -> str:
    try:
        return str(json.loads(read_local(export / EXPORT_CONFIG)).get("weights_sha256"))
    except (OSError, ValueError, AttributeError, RecursionError):
        return ""


def _splits(folder: Path) -> list[Path]:
    """The dataset folders that are meant: the folder itself, or those in it."""
    if (folder / MANIFEST_NAME).is_file():
        return [folder]
    return sorted(file.parent for file in folder.glob(f"*/{MANIFEST_NAME}")) if folder.is_dir() else []


def _push_dataset(splits: list[Path], repo: str, private: bool, note: Callable[[str], None]) -> str:
    found: dict[str, Path] = {}
    manifests: dict[str, Manifest] = {}
    for split in splits:
        manifest = read_manifest(split)
        if (other := found.get(manifest.split)) is not None:
            raise UserError(f"{other} and {split}: are both the split {manifest.split}; move one of them elsewhere")
        found[manifest.split], manifests[manifest.split] = split, manifest
    kept = {name: one for name, one in _published(repo).items() if name not in manifests}
    together = [*manifests.values(), *kept.values()]
    for one in together:
        if one.classes != together[0].classes or one.kind != together[0].kind:
            raise UserError(
                f"{repo}: its splits {together[0].split} and {one.split} have other classes, or one holds keep masks; "
                "publish each in a repository of its own"
            )
    with tempfile.TemporaryDirectory() as made:
        staged = Path(made)
        for name, manifest in manifests.items():
            _stage(found[name], manifest, staged / name)
        card = dataset_card(repo, sorted(together, key=lambda one: one.split))
        (staged / CARD_NAME).write_text(card, encoding="utf-8")
        beside = f", beside {', '.join(kept)}" if kept else ""
        note(f"a dataset, {', '.join(manifests)}{beside}; each {MANIFEST_NAME} says by which command it was built")
        return publish(
            staged,
            repo,
            "dataset",
            private=private,
            last=[*(f"{name}/{MANIFEST_NAME}" for name in manifests), CARD_NAME],
            replaces=[f"{name}/*" for name in manifests],
        )


def _stage(split: Path, manifest: Manifest, staged: Path) -> None:
    """Links to the files of the contract, and to no others that may lie beside them."""
    staged.mkdir()
    shards = [name for shard in manifest.shards for name in (shard.name, shard.index_name)]
    for name in (*shards, *reader_files(manifest), MANIFEST_NAME):
        file = split / name
        if not file.is_file():
            raise FileNotFoundError(f"{file}: missing; `msl verify {shlex.quote(str(split))}` says what else is")
        (staged / name).symlink_to(file.resolve())
    for shard in manifest.shards:
        if (size := (split / shard.name).stat().st_size) != shard.num_bytes:
            wanted = f"{MANIFEST_NAME} says {shard.num_bytes:,}"
            raise UserError(
                f"{split / shard.name}: {size:,} bytes, {wanted}; run `msl verify {shlex.quote(str(split))}`"
            )


def _published(repo: str) -> dict[str, Manifest]:
    """The splits that are in the repository already."""
    place = f"hf://datasets/{repo}"
    try:
        names = [info.name for info in open_storage(place).list_files()]
    except FileNotFoundError:
        return {}
    splits = [match[1] for name in names if (match := re.fullmatch(rf"([^/]+)/{re.escape(MANIFEST_NAME)}", name))]
    return {split: read_manifest(f"{place}/{split}") for split in splits}
