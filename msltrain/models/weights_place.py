"""What ``model.weights`` names: without torch, so that a mistake shows before it is imported."""

from __future__ import annotations

from pathlib import Path

from msldata.errors import neighbour
from msldata.storage.hub import is_hub_place

HUB_PREFIX = "hf-hub:"
FILE_SUFFIXES = (".pth", ".pt", ".bin", ".pkl", ".safetensors")


def is_timm_tag(weights: str) -> bool:
    """Whether ``weights`` is a timm tag rather than a file, a folder or a model on the hub."""
    return not Path(weights).is_dir() and not (
        weights.startswith(HUB_PREFIX) or weights.endswith(FILE_SUFFIXES) or "/" in weights
    )


def check_weights(weights: str) -> None:
    """Raise FileNotFoundError where a path of first weights leads nowhere; what else they are, whoever reads them says.

    The message names a neighbour that may have been meant.
    """
    is_elsewhere = is_hub_place(weights) or weights.startswith(HUB_PREFIX)
    if weights and not is_elsewhere and not is_timm_tag(weights) and not Path(weights).expanduser().exists():
        raise FileNotFoundError(f"{weights}: no such weights file{neighbour(weights)}")
