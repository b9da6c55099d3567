"""The card of a dataset on a hub: front matter that catalogues and loaders read, then what the manifests say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from msldata.contract.manifest import IMAGES, Manifest
from msldata.errors import counted

_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
_MANY = 40
"""Classes of which the card has a table; of more it has the names."""


def dataset_card(repo: str, manifests: Sequence[Manifest]) -> str:
    """Markdown of a repository with a folder per split.

    Args:
        repo: ``OWNER/NAME``.
        manifests: of the splits, at least one; they have the same classes, or are keep masks.
    """
    first = manifests[0]
    num_samples = sum(manifest.num_samples for manifest in manifests)
    of_images = first.kind == IMAGES
    licences = sorted({manifest.licence for manifest in manifests if manifest.licence})
    front: dict[str, Any] = {
        "pretty_name": first.dataset,
        **({"task_categories": ["image-classification"]} if of_images else {}),
        **({"task_ids": ["multi-label-image-classification"]} if of_images else {}),
        "size_categories": [next((name for most, name in _SIZES if num_samples < most), "n>10M")],
        "tags": ["webdataset", "multi-label" if of_images else "masks", "croissant", "msltrain"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [
                    {"split": _split_name(manifest.split), "path": f"{manifest.split}/*.tar"} for manifest in manifests
                ],
            }
        ],
    }
    classes = counted(len(first.classes), "class")
    what = f"photographs with {classes}, several of which may apply" if of_images else "keep masks"
    lines = [
        *("---", yaml.safe_dump(front, sort_keys=False, allow_unicode=True).rstrip("\n"), "---", ""),
        f"# {_text(first.dataset)}",
        "",
        f"{num_samples:,} {what}, as WebDataset shards with a sample index and a manifest per split.",
        "",
        "| split | samples | shards | MB | fingerprint |",
        "| --- | ---: | ---: | ---: | --- |",
        *(
            f"| {_text(one.split)} | {one.num_samples:,} | {len(one.shards)} "
            f"| {sum(one.shards.num_bytes) / 1e6:,.1f} | `{one.fingerprint[:16]}` |"
            for one in manifests
        ),
        "",
        "## Use",
        "",
        "With msltrain, the program that made them, straight from the hub or from a copy:",
        "",
        "```bash",
        *(
            (f"msl verify hf://datasets/{repo}/{first.split}", f"msl train hf://datasets/{repo}")
            if of_images
            else (f"msl verify hf://datasets/{repo}/{first.split}",)
        ),
        "```",
        "",
        "With any WebDataset reader, or `datasets`:",
        "",
        "```python",
        "import datasets",
        "",
        f'samples = datasets.load_dataset("{repo}", split="{_split_name(first.split)}", streaming=True)',
        "```",
        "",
        *_members(of_images),
        *(_classes(manifests) if of_images else []),
        "## Licence",
        "",
        "; ".join(map(_text, licences)) or "Not stated.",
        "",
    ]
    return "\n".join(lines)


def _members(of_images: bool) -> list[str]:
    if not of_images:
        return [
            "A sample is `KEY.png`, 1 bit (white = visible, black = hole), and `KEY.json` (hole fraction, source).",
            "",
        ]
    return [
        "A sample is `KEY.jpg`, upright; `KEY.json` with label names, ignored names and objects; `KEY.target.npy`, a "
        "uint8 multi-hot vector in the order of the classes, ignored ones 0. `dataset.json` names the classes and the "
        "sha256 of each tar, the `.parquet` beside a tar has a row per sample.",
        "",
    ]


def _classes(manifests: Sequence[Manifest]) -> list[str]:
    classes = manifests[0].classes
    if len(classes) > _MANY:
        return ["## Classes", "", ", ".join(map(_text, classes)), ""]
    rows = [
        f"| {_text(name)} | "
        + " | ".join(f"{one.label_histogram.get(name, {}).get('positive', 0):,}" for one in manifests)
        + " |"
        for name in classes
    ]
    splits = " | ".join(f"{_text(one.split)}" for one in manifests)
    return ["## Classes", "", f"| class | {splits} |", "| --- |" + " ---: |" * len(manifests), *rows, ""]


def _split_name(split: str) -> str:
    """A split as loaders may call it: letters, digits and underscores."""
    return "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in split)


def _text(name: str) -> str:
    """A name as Markdown shows it, whatever is in it."""
    return "".join(f"\\{letter}" if letter in "\\`*_[]<>|#" else letter for letter in name)
