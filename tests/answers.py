"""What the program predicts, as a list."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from msltrain.runs.other_checkpoints import Foreign
from msltrain.use.predict import Asked, ImagePrediction
from msltrain.use.predict_many import predict_many
from msltrain.use.read_images import find_images


def predict_images(
    checkpoint: str | Path,
    inputs: Sequence[str | Path],
    *,
    top_k: int | None = 5,
    threshold: float | None = None,
    keep_mask: str | Path | None = None,
    polarity: str = "",
    overlays: str | Path | None = None,
    foreign: Foreign = Foreign(),  # noqa: B008 (frozen)
    classes: tuple[str, ...] = (),
    on_error: Literal["fail", "skip"] = "fail",
    batch_size: int = 32,
    device: str = "cpu",
) -> list[ImagePrediction]:
    """The answers of ``predict_many`` about what ``inputs`` name."""
    found: list[ImagePrediction] = []
    asked = Asked(top_k=top_k, keep_mask=keep_mask, polarity=polarity, on_error=on_error, batch_size=batch_size)
    predict_many(
        checkpoint,
        find_images(inputs),
        asked,
        foreign=foreign,
        classes=classes,
        threshold=threshold,
        overlays=overlays,
        device=device,
        show=found.append,
    )
    return found
