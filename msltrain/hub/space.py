"""``msl export --space``: a folder that is a Space of the Hugging Face hub, where anybody can try a model."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from msldata.errors import UserError
from msltrain.runs.checkpoint import replace_folder
from msltrain.runs.find_checkpoint import Foreign
from msltrain.use.export import export_model
from msltrain.use.read_images import find_images, read_pixels

APP_NAME, CARD_NAME, NEEDS_NAME = "app.py", "README.md", "requirements.txt"
_APP = Path(__file__).with_name("space_app.py")
_GRADIO = "6.31.0"
_NEEDS = ("torch>=2.6", "timm>=1.0.23", "safetensors>=0.4.5", "pillow>=11.3", "numpy>=2.0")
_MAX_EXAMPLES, _EXAMPLE_SIDE = 8, 1024


def make_space(
    checkpoint: str | Path,
    out: str | Path,
    *,
    foreign: Foreign = Foreign(),  # noqa: B008 (frozen)
    classes: tuple[str, ...] = (),
    images: Sequence[str | Path] = (),
) -> Path:
    """Write ``out``: ``app.py`` (Gradio), ``requirements.txt``, a card, and an export that needs timm and torch alone.

    Args:
        checkpoint, foreign, classes: as for ``export_model``.
        out: folder; a Space of before is replaced as a whole.
        images: photographs to offer, the first eight, made small and without what the camera wrote into them. Whoever
            sees the Space sees them.

    Raises:
        FileNotFoundError: no such checkpoint or image. BadInputError: an image cannot be read.
        UserError: ``out`` holds something else. StorageError: it cannot be written.
    """
    out = Path(out).expanduser().resolve()
    if out.exists() and not is_space(out) and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out}: holds something else than a Space; choose another --out")
    pictures = find_images(images)[:_MAX_EXAMPLES] if images else []
    with tempfile.TemporaryDirectory() as made:
        export = Path(made, "export")
        export_model(checkpoint, export, foreign=foreign, classes=classes, formats=["safetensors"])

        def write(part: Path) -> None:
            about = (export / CARD_NAME).read_text(encoding="utf-8").partition("\n---\n")[2]
            for file in export.iterdir():
                shutil.copyfile(file, part / file.name)
            (part / CARD_NAME).write_text(_front() + about, encoding="utf-8")
            (part / NEEDS_NAME).write_text("".join(f"{one}\n" for one in _NEEDS), encoding="utf-8")
            shutil.copyfile(_APP, part / APP_NAME)
            for number, picture in enumerate(pictures, 1):
                image = Image.fromarray(read_pixels(picture))
                image.thumbnail((_EXAMPLE_SIDE, _EXAMPLE_SIDE))
                image.save(part / f"example-{number}.jpg", quality=90)

        replace_folder(out, write)
    return out


def is_space(folder: Path) -> bool:
    """Whether `make_space` wrote it, or somebody like it."""
    card = folder / CARD_NAME
    return (folder / APP_NAME).is_file() and card.is_file() and "\nsdk: gradio\n" in card.read_text("utf-8", "replace")


def _front() -> str:
    front: dict[str, Any] = {
        "title": "What does it see?",
        "emoji": "🔍",
        "colorFrom": "blue",
        "colorTo": "gray",
        "sdk": "gradio",
        "sdk_version": _GRADIO,
        "app_file": APP_NAME,
        "pinned": False,
        "tags": ["multi-label-classification", "msltrain"],
    }
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n"
