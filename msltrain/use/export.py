"""A trained model for elsewhere: safetensors with a model card, torch.export, ONNX; each run against the original.

B batch, S image size, K classes.
"""

from __future__ import annotations

import hashlib
import io
import json
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from msldata.errors import BadInputError, UserError
from msldata.storage import LocalStorage
from msltrain.config import to_json
from msltrain.models.build import Recogniser
from msltrain.runs.checkpoint import LoadedRecogniser
from msltrain.runs.other_checkpoints import EXPORT_CONFIG, EXPORT_WEIGHTS, Foreign, load_any, rebuild_any
from msltrain.use.model_card import model_card
from msltrain.use.predict import find_images, read_square, thresholds_of

Format = Literal["safetensors", "torch-export", "onnx"]
FORMATS: tuple[Format, ...] = get_args(Format)
FILES: dict[Format, str] = {"safetensors": EXPORT_WEIGHTS, "torch-export": "model.pt2", "onnx": "model.onnx"}
CONFIG_NAME, CARD_NAME = EXPORT_CONFIG, "README.md"
TOLERANCE = 1e-4
"""Largest difference between a logit and the original's, over the larger of 1 and the largest logit."""
_MAX_IMAGES = 8


@dataclass(frozen=True, kw_only=True)
class Exported:
    """One file, checked against the original."""

    format: Format
    file: Path
    max_difference: float
    """Largest absolute difference of a logit."""
    num_images: int
    """Compared, alone and as a batch."""


class ServedModel(nn.Module):
    """The recogniser with its preprocessing, as far as it is included.

    Args:
        loaded: the trained model.
        from_pixels: take uint8 RGB pixels instead of normalised floats.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, loaded: LoadedRecogniser, *, from_pixels: bool):
        super().__init__()
        self.recogniser = loaded.recogniser
        self.from_pixels = from_pixels
        self._program: torch.export.ExportedProgram | None = None
        for name in ("mean", "std"):
            value = torch.tensor(getattr(loaded.config.stream, name)).view(1, 3, 1, 1)
            self.register_buffer(name, value, persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, K) of uint8 pixels or normalised floats, (B, 3, S, S)."""
        return self.recogniser(self.normalised(image) if self.from_pixels else image)

    def normalised(self, pixel_BCHW: Tensor) -> Tensor:
        """What the network wants of uint8 pixels."""
        return (pixel_BCHW.float() / 255 - self.mean) / self.std

    def program(self, input_BCHW: Tensor) -> torch.export.ExportedProgram:
        """The graph for any batch size, traced once. Raises UserError if the network cannot be traced."""
        if self._program is None:
            batch = torch.export.Dim("batch", min=1)
            # Two images, for a batch of one would be taken for a constant.
            example_BCHW = input_BCHW[:1].repeat(2, 1, 1, 1)
            try:
                with torch.no_grad():
                    self._program = torch.export.export(self, (example_BCHW,), dynamic_shapes={"image": {0: batch}})
            except Exception as error:  # torch.export raises many types of its own
                reason = str(error).strip().splitlines()[0]
                raise UserError(
                    f"torch.export cannot follow this network ({reason}); export it with --format safetensors alone"
                ) from error
        return self._program


def export_model(
    checkpoint: str | Path,
    out: str | Path,
    *,
    foreign: Foreign = Foreign(),  # noqa: B008 (frozen)
    classes: tuple[str, ...] = (),
    formats: Sequence[Format] = FORMATS,
    from_pixels: bool = False,
    images: Sequence[str | Path] = (),
    on_done: Callable[[Exported], None] = lambda exported: None,
) -> list[Exported]:
    """Write ``out`` with a file per format, ``config.json`` and a model card.

    A file is put in its place only after it gave the original's logits, for each image alone and for all as one batch.

    Args:
        checkpoint, foreign, classes: as for ``load_any``; classes are needed with a weights file alone.
        out: folder; files of the same names are replaced.
        formats: see ``FILES``.
        from_pixels: the graphs of torch.export and ONNX take uint8 pixels and normalise them themselves.
        images: image files or folders to compare on, the first eight; none: drawn patterns.
        on_done: told of each file.

    Raises:
        FileNotFoundError: no such checkpoint or image.
        BadInputError: one of the images cannot be read.
        UserError: a library is missing, the model cannot be exported, or the result differs.
    """
    loaded = load_any(checkpoint, foreign, classes, torch.device("cpu"))
    pixel_BCHW = _sample_pixels(images, loaded.config.stream.image_size)
    served = ServedModel(loaded, from_pixels=from_pixels).eval()
    folder = LocalStorage(out)
    done = []
    sha256 = ""
    for format_ in formats:
        input_BCHW = pixel_BCHW
        if not (from_pixels and format_ != "safetensors"):
            input_BCHW = served.normalised(pixel_BCHW).contiguous()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, about its exporters' insides
            data, run = _WRITERS[format_](loaded, served, input_BCHW)
        exported = Exported(
            format=format_,
            file=Path(out) / FILES[format_],
            max_difference=_compare(format_, served, run, input_BCHW, from_pixels),
            num_images=len(pixel_BCHW),
        )
        folder.put(FILES[format_], data)
        if format_ == "safetensors":
            sha256 = hashlib.sha256(data).hexdigest()
        done.append(exported)
        on_done(exported)
    content = _network(loaded) | {"model_sha256": sha256}
    folder.put(CONFIG_NAME, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
    files = {FILES[one.format]: one.max_difference for one in done}
    card = model_card(loaded, files, from_pixels=from_pixels, threshold_origin=content["threshold_origin"])
    folder.put(CARD_NAME, card.encode())
    return done


ExportedRun = Callable[[Tensor], Tensor]


def _safetensors(loaded: LoadedRecogniser, served: ServedModel, input_BCHW: Tensor) -> tuple[bytes, ExportedRun]:
    from safetensors.torch import load, save

    weights = {name: tensor.contiguous() for name, tensor in loaded.recogniser.state_dict().items()}
    metadata = {"classes": json.dumps(loaded.classes, ensure_ascii=False), "format": "pt"}
    data = _with_sorted_metadata(save(weights, metadata=metadata))
    again = rebuild_any(loaded)
    again.load_state_dict(load(data))
    return data, again.eval()


def _with_sorted_metadata(data: bytes) -> bytes:
    """A safetensors file that is the same every time: the library writes its metadata in an order of chance."""
    num_bytes = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + num_bytes])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the tensors stay aligned
    return len(text).to_bytes(8, "little") + text + data[8 + num_bytes :]


def _torch_export(loaded: LoadedRecogniser, served: ServedModel, input_BCHW: Tensor) -> tuple[bytes, ExportedRun]:
    program = served.program(input_BCHW)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return file.getvalue(), torch.export.load(file).module()


def _onnx(loaded: LoadedRecogniser, served: ServedModel, input_BCHW: Tensor) -> tuple[bytes, ExportedRun]:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  (torch.onnx needs it)
    except ImportError as error:
        raise UserError(f"ONNX needs {error.name}; install the extra: pip install 'msltrain[onnx]'") from None
    with redirect_stdout(io.StringIO()):
        program = torch.onnx.export(
            served.program(input_BCHW), dynamo=True, input_names=["image"], output_names=["logit"], verbose=False
        )
    assert program is not None
    model = program.model_proto
    for name, value in (
        ("classes", json.dumps(loaded.classes, ensure_ascii=False)),
        ("preprocessing", json.dumps(preprocessing(loaded, from_pixels=served.from_pixels))),
        *((name, json.dumps(value, ensure_ascii=False)) for name, value in _thresholds(loaded).items()),
    ):
        entry = model.metadata_props.add()
        entry.key, entry.value = name, value
    data = model.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return data, lambda image: torch.from_numpy(session.run(["logit"], {"image": image.numpy()})[0])


_WRITERS: dict[Format, Callable[[LoadedRecogniser, ServedModel, Tensor], tuple[bytes, ExportedRun]]] = {
    "safetensors": _safetensors,
    "torch-export": _torch_export,
    "onnx": _onnx,
}


def _network(loaded: LoadedRecogniser) -> dict[str, Any]:
    """What ``config.json`` says: enough to build the network that the weights belong to."""
    content: dict[str, Any] = {"classes": loaded.classes, "weights_sha256": loaded.sha256, **_thresholds(loaded)}
    if isinstance(loaded.recogniser, Recogniser):
        return content | {"config": json.loads(to_json(loaded.config))}
    return content | {
        "timm_model": loaded.config.model.backbone,
        "preprocessing": preprocessing(loaded, from_pixels=False),
    }


def _thresholds(loaded: LoadedRecogniser) -> dict[str, Any]:
    threshold_K, origin = thresholds_of(loaded)
    return {"thresholds": dict(zip(loaded.classes, map(float, threshold_K))), "threshold_origin": origin}


def preprocessing(loaded: LoadedRecogniser, *, from_pixels: bool) -> dict[str, Any]:
    """What a caller must do to an RGB photograph before the graph sees it, step by step."""
    stream = loaded.config.stream
    steps: dict[str, Any] = {
        "resize": [stream.image_size, stream.image_size],
        "interpolation": "bilinear, antialiased; the whole image squashed, no crop",
        "layout": "N, 3 (RGB), height, width",
        "dtype": "uint8" if from_pixels else "float32",
    }
    if not from_pixels:
        steps |= {"scale": "pixel / 255", "mean": list(stream.mean), "std": list(stream.std)}
    return steps


def _compare(format_: Format, served: ServedModel, run: ExportedRun, input_BCHW: Tensor, from_pixels: bool) -> float:
    with torch.inference_mode():
        ready = from_pixels and format_ == "safetensors"
        expected_BK = served.recogniser(input_BCHW) if ready else served(input_BCHW)
    with torch.no_grad():
        together_BK = run(input_BCHW)
        alone_BK = torch.cat([run(input_BCHW[n : n + 1]) for n in range(len(input_BCHW))])
    difference = max(float((found - expected_BK).abs().max()) for found in (together_BK, alone_BK))
    allowed = TOLERANCE * max(1.0, float(expected_BK.abs().max()))
    if not difference <= allowed:  # a NaN must not pass
        raise UserError(
            f"{FILES[format_]}: its logits differ from the model's by up to {difference:.2g}, more than {allowed:.2g}; "
            "nothing was written for it"
        )
    return difference


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
