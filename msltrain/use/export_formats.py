"""The formats of an export: how each is written, and run again to be held against the original.

B batch, S image size, K classes.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import asdict
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from msldata.errors import UserError, first_line
from msltrain.runs.checkpoint import LoadedRecogniser
from msltrain.runs.find_checkpoint import EXPORT_WEIGHTS
from msltrain.use.predict import thresholds_of
from msltrain.use.timm_folder import TimmFolder, standalone_of

Format = Literal["safetensors", "torch-export", "onnx"]
FORMATS: tuple[Format, ...] = get_args(Format)
FILES: dict[Format, str] = {"safetensors": EXPORT_WEIGHTS, "torch-export": "model.pt2", "onnx": "model.onnx"}
TOLERANCE = 1e-4
"""Largest difference between a logit and the original's, over the larger of 1 and the largest logit."""
SQUASHED_TOLERANCE = 1e-2
"""The same where the graph squashes: runtimes add in other orders, so a pixel near a half may fall to another level."""
OPSET, MIN_OPSET = 18, 18
"""Of ONNX: the default, and the least that torch writes."""
IR_OF_OPSET = (8, 9, 9, 10)
"""The version of the file format that came with each opset from `MIN_OPSET` on."""
FREE: dict[bool, dict[int, str]] = {False: {0: "batch"}, True: {0: "batch", 2: "height", 3: "width"}}
"""Dimensions of the input that may have any size, by whether it is pixels."""
RUNTIME_OF_OPSET = {18: "1.15", 19: "1.17", 20: "1.17", 21: "1.18", 22: "1.20", 23: "1.22"}
"""The oldest onnxruntime that a graph of the opset was seen to run in, up to 21 (1.15 is the oldest for Python 3.11; it
lacks operators of 19); from there on, what its authors state."""


class ServedModel(nn.Module):
    """The recogniser with its preprocessing, as far as it is included.

    Args:
        loaded: the trained model.
        from_pixels: take uint8 RGB pixels instead of normalised floats.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, loaded: LoadedRecogniser, folder: TimmFolder | None, *, from_pixels: bool, opset: int):
        super().__init__()
        self.recogniser = loaded.recogniser
        self.folder = folder
        self.from_pixels = from_pixels
        self.side = loaded.config.stream.image_size
        self.opset = opset
        self._program: torch.export.ExportedProgram | None = None
        for name in ("mean", "std"):
            value = torch.tensor(getattr(loaded.config.stream, name)).view(1, 3, 1, 1)
            self.register_buffer(name, value, persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, K) of uint8 pixels, (B, 3, H, W), or normalised floats, (B, 3, S, S)."""
        return self.recogniser(self.normalised(self.squashed(image)) if self.from_pixels else image)

    def squashed(self, pixel_BCHW: Tensor) -> Tensor:
        """Whole levels, as the stream's resize of uint8 gives them, which rounds after its rows and after its columns;
        those of a square of side S as they are."""
        rows_BCHS = _bilinear(pixel_BCHW.float(), (pixel_BCHW.shape[2], self.side))
        return _bilinear(rows_BCHS, (self.side, self.side))

    def normalised(self, pixel_BCHW: Tensor) -> Tensor:
        """What the network wants of uint8 pixels."""
        return (pixel_BCHW.float() / 255 - self.mean) / self.std

    def program(self, input_BCHW: Tensor) -> torch.export.ExportedProgram:
        """The graph for any batch size, traced once. Raises UserError if the network cannot be traced."""
        if self._program is None:
            free = {axis: torch.export.Dim(name, min=1) for axis, name in FREE[self.from_pixels].items()}
            # Two images, for a batch of one would be taken for a constant; as would sides that are the network's.
            example_BCHW = input_BCHW[:1].repeat(2, 1, 1, 1)
            if self.from_pixels:
                example_BCHW = nn.functional.pad(example_BCHW, (0, 32, 0, 16))
            try:
                with torch.no_grad():
                    self._program = torch.export.export(self, (example_BCHW,), dynamic_shapes={"image": free})
            except Exception as error:  # torch.export raises many types of its own
                raise UserError(
                    f"torch.export cannot follow this network ({why(error)}); export it with --format safetensors alone"
                ) from error
        return self._program


def why(error: BaseException) -> str:
    """The reason in an exporter's error, on a line: what it began with, for above that stands advice to others."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)


def _bilinear(value_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Resized, in whole levels."""
    # Halves go up, as in integers; round() would take them to the even neighbour.
    return (nn.functional.interpolate(value_BCHW, size, mode="bilinear", antialias=True) + 0.5).floor()


ExportedRun = Callable[[Tensor], Tensor]


def _safetensors(loaded: LoadedRecogniser, served: ServedModel, input_BCHW: Tensor) -> tuple[bytes, ExportedRun]:
    from safetensors.torch import load, save

    weights = served.folder.tensors if served.folder else loaded.recogniser.state_dict()
    metadata = {"classes": json.dumps(loaded.classes, ensure_ascii=False), "format": "pt"}
    plain = {name: tensor.contiguous() for name, tensor in weights.items()}
    data = _with_sorted_metadata(save(plain, metadata=metadata))
    again = served.folder.build() if served.folder else standalone_of(loaded)
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
            served.program(input_BCHW),
            dynamo=True,
            input_names=["image"],
            output_names=["logit"],
            opset_version=served.opset,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    made = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if made != served.opset:
        raise UserError(f"this network's graph needs opset {made}, not {served.opset}; give --opset {made}")
    if len(IR_OF_OPSET) > made - MIN_OPSET:
        model.ir_version = IR_OF_OPSET[made - MIN_OPSET]
    _name_free(model.graph, FREE[served.from_pixels])
    for name, value in (
        ("classes", json.dumps(loaded.classes, ensure_ascii=False)),
        ("preprocessing", json.dumps(preprocessing(loaded, from_pixels=served.from_pixels))),
        *((name, json.dumps(value, ensure_ascii=False)) for name, value in thresholds_in_words(loaded).items()),
    ):
        entry = model.metadata_props.add()
        entry.key, entry.value = name, value
    data = model.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return data, lambda image: torch.from_numpy(session.run(["logit"], {"image": image.numpy()})[0])


def _name_free(graph: Any, names: Mapping[int, str]) -> None:
    """Call the free dimensions by our names, whatever the tracer called them."""
    shape = graph.input[0].type.tensor_type.shape.dim
    ours = {shape[axis].dim_param: name for axis, name in names.items()}
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param in ours:
                dimension.dim_param = ours[dimension.dim_param]


WRITERS: dict[Format, Callable[[LoadedRecogniser, ServedModel, Tensor], tuple[bytes, ExportedRun]]] = {
    "safetensors": _safetensors,
    "torch-export": _torch_export,
    "onnx": _onnx,
}


def thresholds_in_words(loaded: LoadedRecogniser) -> dict[str, Any]:
    """By class, and where they come from."""
    threshold_K, origin = thresholds_of(loaded)
    return {"thresholds": dict(zip(loaded.classes, map(float, threshold_K))), "threshold_origin": origin}


def preprocessing(loaded: LoadedRecogniser, *, from_pixels: bool) -> dict[str, Any]:
    """What a caller must do to an RGB photograph before the graph sees it, step by step."""
    stream = loaded.config.stream
    if from_pixels:
        return {"resize": "none; the graph squashes any size", "layout": "N, 3 (RGB), height, width", "dtype": "uint8"}
    if loaded.view is not None:
        how = {"resize": "by timm.data.create_transform with what follows", **asdict(loaded.view)}
    else:
        how = {
            "resize": [stream.image_size, stream.image_size],
            "interpolation": "bilinear, antialiased; the whole image squashed, no crop",
        }
    return {
        **how,
        "layout": "N, 3 (RGB), height, width",
        "dtype": "float32",
        "scale": "pixel / 255",
        "mean": list(stream.mean),
        "std": list(stream.std),
    }


def compare(
    format_: Format, served: ServedModel, run: ExportedRun, input_BCHW: Tensor, tolerance: float = TOLERANCE
) -> float:
    """The largest difference of a logit, alone and as a batch. Raises UserError where that is too much."""
    with torch.inference_mode():
        ready = served.from_pixels and format_ == "safetensors"
        expected_BK = served.recogniser(input_BCHW) if ready else served(input_BCHW)
    with torch.no_grad():
        together_BK = run(input_BCHW)
        alone_BK = torch.cat([run(input_BCHW[n : n + 1]) for n in range(len(input_BCHW))])
    difference = float((torch.stack((together_BK, alone_BK)) - expected_BK).abs().max())  # NaN if any is
    allowed = tolerance * max(1.0, float(expected_BK.abs().max()))
    if not difference <= allowed:  # a NaN must not pass
        raise UserError(
            f"{FILES[format_]}: its logits differ from the model's by up to {difference:.2g}, more than {allowed:.2g}; "
            "it is left out"
        )
    return difference
