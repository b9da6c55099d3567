"""The command that builds a dataset again as it was built, from what its manifest says."""

from __future__ import annotations

import shlex

from msldata.contract.manifest import IMAGES, Manifest
from msldata.sources.kinds import KINDS
from msldata.storage import LocalStorage, Storage

# What a manifest calls an option that shapes the bytes, its name on the command line, and its default there.
_IMAGE_OPTIONS = (
    ("samples_per_shard", "--samples-per-shard", 1000),
    ("resize", "--resize", None),
    ("resize_quality", "--quality", 90),
)
_MASK_OPTIONS = (
    ("threshold", "--threshold", 0.5),
    ("per_subset", "--per-subset", 1000),
    ("seed", "--seed", 0),
    ("order", "--order", "seeded"),
)


def build_command(folder: Storage, manifest: Manifest) -> str:
    """``msl build-shards`` or ``msl build-masks`` with the options of ``manifest``, writing to ``folder`` again.

    Where the source lay is in no manifest: it must be where it is looked for, or be added with ``--source``.
    """
    images = manifest.kind == IMAGES
    if "labels_from" in manifest.options:  # tars of another program: they cannot be built, only indexed
        words = ["msl", "index", folder.url, "--name", manifest.dataset, "--split", manifest.split]
        return shlex.join([*words, "--labels-from", manifest.options["labels_from"]])
    if images:
        known = manifest.dataset in KINDS
        words = ["msl", "build-shards", "--dataset" if known else "--name", manifest.dataset, "--split", manifest.split]
    else:
        words = ["msl", "build-masks"]
        if manifest.provenance.get("source") == "generated":
            words += ["--generate", str(manifest.counts["masks_read"])]
            words += ["--size", str(manifest.provenance["generator_size"])]
        elif "size" in manifest.options:
            words += ["--size", str(manifest.options["size"])]
        if manifest.provenance.get("polarity_origin") == "user":
            words += ["--polarity", manifest.options["polarity"]]
        if "hole_fraction_above" in manifest.options:
            words.append("--buckets")
    for name, option, default in _IMAGE_OPTIONS if images else _MASK_OPTIONS:
        value = manifest.options.get(name, default)
        if value != default:
            words += [option, str(value)]
    below = f"/{manifest.dataset}/{manifest.split}" if images else f"/{manifest.split}"
    return shlex.join(words) + out_option(folder, below)


def out_option(folder: Storage, below: str = "") -> str:
    """`` --out PLACE`` for a build that shall end in ``folder``; ``below`` is what the build itself adds to PLACE."""
    default = "shards/masks" if below.count("/") == 1 else "shards"
    place = folder.url.removesuffix(below)
    return "" if isinstance(folder, LocalStorage) and place == default else f" --out {shlex.quote(place)}"
