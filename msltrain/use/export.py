"""A trained model for elsewhere: one folder with safetensors, torch.export, ONNX, a model card and code to run it.

B batch, S image size, K classes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from msldata.contract import photograph
from msldata.errors import BadInputError, UserError
from msldata.storage import read_local
from msltrain.config import to_json
from msltrain.models import query_heads
from msltrain.models.build import Recogniser
from msltrain.runs.checkpoint import LoadedRecogniser, replace_folder
from msltrain.runs.find_checkpoint import EXPORT_CONFIG, Foreign
from msltrain.runs.other_checkpoints import load_any
from msltrain.use import standalone
from msltrain.use.export_formats import (
    FILES,
    FORMATS,
    MIN_OPSET,
    OPSET,
    SQUASHED_TOLERANCE,
    WRITERS,
    Format,
    ServedModel,
    compare,
    preprocessing,
    thresholds_in_words,
    why,
)
from msltrain.use.model_card import model_card
from msltrain.use.predict import find_images, read_square
from msltrain.use.timm_folder import network_of, timm_folder

CONFIG_NAME, CARD_NAME = EXPORT_CONFIG, "README.md"
_CODE = {"model.py": Path(standalone.__file__), "photograph.py": Path(photograph.__file__)}
_HEADS_CODE = Path(query_heads.__file__)
_OURS = {*FILES.values(), CONFIG_NAME, CARD_NAME, *_CODE, _HEADS_CODE.name}
_MAX_IMAGES = 8


@dataclass(frozen=True, kw_only=True)
class Exported:
    """One file, checked against the original."""

    file: str
    max_difference: float
    """Largest absolute difference of a logit."""
    num_images: int
    """Compared, alone and as a batch."""
    sha256: str
    from_pixels: bool = False
    """Whether it takes uint8 pixels of any size instead of normalised floats."""
    opset: int = 0
    """Of ONNX."""


def export_model(
    checkpoint: str | Path,
    out: str | Path,
    *,
    foreign: Foreign = Foreign(),  # noqa: B008 (frozen)
    classes: tuple[str, ...] = (),
    formats: Sequence[Format] = FORMATS,
    from_pixels: bool = False,
    opset: int = OPSET,
    images: Sequence[str | Path] = (),
    overwrite: bool = False,
    on_done: Callable[[Exported], None] = lambda exported: None,
    on_failed: Callable[[str], None] = lambda reason: None,
) -> list[Exported]:
    """Write ``out`` with a file per format, ``config.json``, a model card and code, as a whole or not at all.

    A file becomes part of it only after it gave the original's logits, for each image alone and for all as one batch.

    Args:
        checkpoint, foreign, classes: as for ``load_any``; classes are needed with a weights file alone.
        out: folder. An export of the same weights gets these formats besides those it has.
        formats: see ``FILES``.
        from_pixels: the graphs of torch.export and ONNX take uint8 pixels of any size, and squash and normalise them
            themselves.
        opset: of ONNX.
        images: image files or folders to compare on, the first eight; none: drawn patterns.
        overwrite: replace another model's export.
        on_done: told of each file.
        on_failed: told why a format is left out; the others are written.

    Raises:
        FileNotFoundError: no such checkpoint or image.
        BadInputError: one of the images cannot be read.
        UserError: ``out`` holds something else, or no format at all can be exported.
        StorageError: it cannot be written.
    """
    if opset < MIN_OPSET:
        raise UserError(f"--opset {opset}: the least that torch writes is {MIN_OPSET}")
    loaded = load_any(checkpoint, foreign, classes, torch.device("cpu"))
    if from_pixels and loaded.view is not None:
        raise UserError(
            f"{checkpoint}: --from-pixels squashes the whole photograph, and this timm classifier sees what timm's own "
            "transform leaves of it; leave the option out"
        )
    out = Path(out).expanduser().resolve()
    before = _found(out, loaded, overwrite)
    pixel_BCHW = _sample_pixels(images, loaded.config.stream.image_size)
    folder = timm_folder(loaded)
    served = ServedModel(loaded, folder, from_pixels=from_pixels, opset=opset).eval()
    written: dict[str, bytes] = {}
    done: list[Exported] = []
    for format_ in formats:
        try:
            exported, data = _export(format_, loaded, served, pixel_BCHW)
        except Exception as error:  # torch's exporters raise dozens of types of their own
            reason = str(error) if isinstance(error, UserError) else f"{FILES[format_]}: {why(error)}"
            if len(formats) == 1:
                raise UserError(reason) from error
            on_failed(reason)
            continue
        written[exported.file] = data
        done.append(exported)
        on_done(exported)
    if not done:
        raise UserError(f"{out}: not one of {', '.join(formats)} can be exported")
    kept = {file: entry for file, entry in before.items() if file not in written}
    _require_same_thresholds(out, kept, loaded)
    files = kept | {one.file: asdict(one) for one in done}
    content: dict[str, Any] = {
        **_network(loaded),
        "network": network_of(loaded),
        "model_sha256": files.get(FILES["safetensors"], {}).get("sha256", ""),
        "files": files,
        **(folder.config if folder else {}),
    }

    def write(part: Path) -> None:
        if out.is_dir():
            _copy(out, part, keep=set(kept))
        for name, data in written.items():
            (part / name).write_bytes(data)
        (part / CONFIG_NAME).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        (part / CARD_NAME).write_text(model_card(loaded, content), encoding="utf-8")
        for name, code in _CODE.items():
            shutil.copyfile(code, part / name)
        if loaded.config.model.head in ("mldecoder", "q2l"):
            shutil.copyfile(_HEADS_CODE, part / _HEADS_CODE.name)

    replace_folder(out, write)
    return done


def _found(out: Path, loaded: LoadedRecogniser, overwrite: bool) -> dict[str, dict[str, Any]]:
    """The files of these weights that are there. Raises UserError where something else is."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return {}
    try:
        content = json.loads(read_local(out / CONFIG_NAME))
        weights, classes, files = content["weights_sha256"], content["classes"], content.get("files", {})
        network = content.get("network")
        found = {name: entry for name, entry in files.items() if (out / name).is_file()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise UserError(f"{out}: holds something else than an export; choose another --out") from None
    # The weights say neither their input nor all of the head: a recipe, or the settings of an import, do.
    as_before = {"classes": list(loaded.classes) == classes, "input or head": _plain(network_of(loaded)) == network}
    if weights == loaded.sha256 and all(as_before.values()):
        return found
    if overwrite:
        return {}
    if weights == loaded.sha256:
        other = next(what for what, is_same in as_before.items() if not is_same)
        raise UserError(
            f"{out}: holds the export of these weights with other {other}; choose another --out, or give --overwrite"
        )
    raise UserError(
        f"{out}: holds the export of another model (weights {weights[:12]}…, these are {loaded.sha256[:12]}…); choose "
        "another --out, or give --overwrite"
    )


def _plain(content: dict[str, Any]) -> Any:
    """As it comes back from JSON."""
    return json.loads(json.dumps(content))


def _require_same_thresholds(out: Path, kept: Mapping[str, Any], loaded: LoadedRecogniser) -> None:
    """Raise UserError where a file that stays holds other thresholds than the folder is about to."""
    now = thresholds_in_words(loaded)
    then = json.loads(read_local(out / CONFIG_NAME)) if kept else now
    if FILES["onnx"] in kept and any(then.get(name) != value for name, value in now.items()):
        raise UserError(
            f"{out / FILES['onnx']}: holds thresholds of before ({then.get('threshold_origin')}; now: "
            f"{now['threshold_origin']}); write it anew as well: add --format onnx"
        )


def _copy(before: Path, part: Path, *, keep: set[str]) -> None:
    """What stays of a folder: these files of ours, and whatever else somebody put there."""
    for file in before.iterdir():
        if file.name in keep or file.name not in _OURS:
            copy = shutil.copytree if file.is_dir() else shutil.copy2
            copy(file, part / file.name)


def _export(
    format_: Format, loaded: LoadedRecogniser, served: ServedModel, pixel_BCHW: Tensor
) -> tuple[Exported, bytes]:
    takes_pixels = served.from_pixels and format_ != "safetensors"
    input_BCHW = pixel_BCHW if takes_pixels else served.normalised(pixel_BCHW).contiguous()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about its exporters' insides
        data, run = WRITERS[format_](loaded, served, input_BCHW)
    difference = compare(format_, served, run, input_BCHW)
    if takes_pixels:
        side = served.side
        larger_BCHW = torch.nn.functional.interpolate(pixel_BCHW, (side + 37, 2 * side - 5))
        compare(format_, served, run, larger_BCHW, SQUASHED_TOLERANCE)
    exported = Exported(
        file=FILES[format_],
        max_difference=difference,
        num_images=len(pixel_BCHW),
        sha256=hashlib.sha256(data).hexdigest(),
        from_pixels=takes_pixels,
        opset=served.opset if format_ == "onnx" else 0,
    )
    return exported, data


def _network(loaded: LoadedRecogniser) -> dict[str, Any]:
    """What ``config.json`` says: enough to build the network that the weights belong to."""
    content: dict[str, Any] = {
        "classes": loaded.classes,
        "weights_sha256": loaded.sha256,
        **thresholds_in_words(loaded),
        "preprocessing": preprocessing(loaded, from_pixels=False),
    }
    if isinstance(loaded.recogniser, Recogniser):
        return content | {"config": json.loads(to_json(loaded.config))}
    return content | {"timm_model": loaded.config.model.backbone}


def _sample_pixels(images: Sequence[str | Path], image_size: int) -> Tensor:
    """uint8 (B, 3, S, S): of image files, else of drawn patterns."""
    if images:
        try:
            return torch.cat([read_square(one, image_size) for one in find_images(images)[:_MAX_IMAGES]]).contiguous()
        except BadInputError as error:
            raise BadInputError(error.file, error.reason, "give other photographs with --images") from None
    place_S = np.linspace(0, 1, image_size)
    waves = [
        127.5 + 127.5 * np.sin(2 * np.pi * ((n + 1) * place_S[:, None] + (channel + 1) * place_S[None, :]))
        for n in range(3)
        for channel in range(3)
    ]
    return torch.from_numpy(np.stack(waves).reshape(3, 3, image_size, image_size).astype(np.uint8))
