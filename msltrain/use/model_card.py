"""The model card of an export: what the model is, what it wants, how well it did, what to be careful about."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from msldata.errors import UserError, counted
from msltrain.measures.bootstrap import interval_around, resampled_mean_ap
from msltrain.measures.metrics import SUMMARY, compute_metrics
from msltrain.measures.predictions import Predictions, read_predictions
from msltrain.measures.thresholds import held_out_beside, other_thresholds
from msltrain.models.build import Recogniser
from msltrain.pages.text import markdown
from msltrain.runs.checkpoint import LoadedRecogniser
from msltrain.use.export_formats import RUNTIME_OF_OPSET

_NUM_NAMED = 10
_MANY = 5_000
"""Up to so many images the card says an interval."""
_SCRIPT = """\
import sys
from photograph import photographs

photos = photographs(sys.argv[1:])  # files, and folders of them
from model import load, scores

model = load()
for file, photo in photos:
    for name, score in scores(model, photo)[:5]:
        print(file, name, f"{score:.3f}")
sys.exit(bool(photos.left_out))
"""
_ONNX_SCRIPT = """\
import json, sys
from pathlib import Path
import numpy as np, onnxruntime, photograph
IMPORTS
photos = photograph.photographs(sys.argv[1:])  # files, and folders of them
folder = Path(photograph.__file__).parent
session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
MADE_READY
for file, photo in photos:
    image = IMAGE
    logit = session.run(["logit"], {"image": image.transpose(2, 0, 1)[None]})[0][0]
    print(file, dict(zip(config["classes"], (1 / (1 + np.exp(-np.float64(logit)))).round(3).tolist())))
sys.exit(bool(photos.left_out))
"""


def model_card(loaded: LoadedRecogniser, content: Mapping[str, Any]) -> str:
    """Markdown, with the front matter that model hubs read.

    Args:
        loaded: the model; the predictions files of its run folder, where they are of these weights, give the results.
        content: of ``config.json``.
    """
    model, stream, files = loaded.config.model, loaded.config.stream, content["files"]
    side, results = stream.image_size, _results(loaded)
    tags = ["multi-label-classification", "timm", "pytorch", *(["onnx"] if "model.onnx" in files else [])]
    front: dict[str, Any] = {
        "library_name": "timm" if "architecture" in content else "msltrain",
        "pipeline_tag": "image-classification",
        "tags": tags,
        **({"model-index": [{"name": model.backbone, "results": _index(results)}]} if results else {}),
    }
    return "\n".join(
        [
            *("---", yaml.safe_dump(front, sort_keys=False, allow_unicode=True).rstrip("\n"), "---", ""),
            f"# {model.backbone} for {counted(len(loaded.classes), 'label')}",
            "",
            f"Says which of {len(loaded.classes)} classes a photograph shows; several may be right. "
            + _made_how(loaded),
            "",
            *_use(content, side),
            "## Files",
            "",
            "| file | how to use it | largest difference of a logit to the original | sha256 |",
            "| --- | --- | ---: | --- |",
            *(_row(name, entry, content) for name, entry in files.items()),
            "",
            "## Input and output",
            "",
            f"Input `image`: RGB, (batch, 3, {side}, {side}), any batch size. "
            f"{_squashed(content['network'].get('timm_view'), side)} Turn it upright by its EXIF orientation first, "
            "drop transparency, and bring deeper pixels down to 8 bits by their full scale, as `photograph.py` does; "
            "it refuses what has no clear range, such as floating-point pixels.",
            "",
            f"Floats are `(pixel / 255 - mean) / std` with mean {_numbers(stream.mean)} and std {_numbers(stream.std)}"
            + _takes(files),
            "",
            "Output `logit`: (batch, classes). `1 / (1 + exp(-logit))` is the score; 0.5 is the published threshold.",
            "",
            f"Thresholds: {content['threshold_origin']}. `config.json` holds one per class.",
            "",
            "## Classes",
            "",
            ", ".join(loaded.classes),
            "",
            *_table(results),
            "## Care",
            "",
            "Scores are not calibrated probabilities. The model knows its classes alone and has learnt which go "
            "together: it may name what usually accompanies the scene. Licences of the training photographs apply "
            "besides that of the code.",
            "",
            f"Made from the checkpoint whose weights have sha256 `{loaded.sha256}`.",
            "",
        ]
    )


def _use(content: Mapping[str, Any], side: int) -> list[str]:
    """Code that runs in the folder as it stands."""
    files, lines = content["files"], ["## Use", ""]
    if "model.safetensors" in files:
        lines += [
            "With timm alone (`pip install timm 'pillow>=11.3'`), in this folder; `model.py` and `photograph.py` are "
            "made to be copied:",
            "",
        ]
        lines += ["```python", *_SCRIPT.splitlines(), "```", ""]
    lines += [
        'With msltrain: `msltrain.Predictor.from_pretrained("FOLDER")`; on the hub `OWNER/NAME` stands for the folder, '
        "and `msl predict hf://OWNER/NAME photos/` is the same as a command.",
        "",
    ]
    if "architecture" in content:
        lines += [
            'It is a folder of timm\'s: `timm.create_model("local-dir:FOLDER", pretrained=True)`, on the hub '
            "`hf-hub:OWNER/NAME`.",
            "",
        ]
    if "model.onnx" in files:
        needs = "onnxruntime 'pillow>=11.3'" + (" timm" if "timm_view" in content["network"] else "")
        lines += [f"With onnxruntime (`pip install {needs}`), in this folder:", ""]
        lines += ["```python", *_onnx_script(content, side).splitlines(), "```", ""]
    return lines


def _onnx_script(content: Mapping[str, Any], side: int) -> str:
    """Photographs to scores, with as much made ready by the caller as the graph leaves to it."""
    imports, made_ready, image = "", "", "np.asarray(photo)"
    if not content["files"]["model.onnx"]["from_pixels"]:
        made_ready = 'mean, std = (np.float32(config["network"][name]) for name in ("mean", "std"))\n'
        square = f"photo.resize(({side}, {side}), 2)"  # bilinear
        if view := content["network"].get("timm_view"):
            imports = "from timm.data import create_transform\n"
            made_ready += f"square = create_transform({side}, use_prefetcher=True, {_how(view)})\n"
            square = "np.asarray(square(photo)).transpose(1, 2, 0)"
        image = f"(np.float32({square}) / 255 - mean) / std"
    parts = {"IMPORTS\n": imports + "\n", "MADE_READY\n": made_ready, "IMAGE": image}
    script = _ONNX_SCRIPT
    for marker, code in parts.items():
        script = script.replace(marker, code)
    return script


def _how(view: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in view.items() if name != "side")


def _squashed(view: Mapping[str, Any] | None, side: int) -> str:
    if view is None:
        return f"The whole photograph is squashed to {side} × {side} (bilinear, antialiased), not cropped."
    return f"It is what `timm.data.create_transform({side}, {_how(view)})` leaves of the photograph."


def _row(name: str, entry: Mapping[str, Any], content: Mapping[str, Any]) -> str:
    least = RUNTIME_OF_OPSET.get(entry["opset"], "of the day")
    way = {
        "model.safetensors": "weights by name, for `load` in `model.py`",
        "model.pt2": "`torch.export.load(file).module()(image)`; needs torch alone",
        "model.onnx": f'`onnxruntime.InferenceSession(file).run(["logit"], {{"image": image}})`; opset '
        f"{entry['opset']}, onnxruntime {least} or later",
    }[name]
    return f"| `{name}` | {way} | {entry['max_difference']:.1e} | `{entry['sha256']}` |"


def _takes(files: Mapping[str, Mapping[str, Any]]) -> str:
    from_pixels = [name for name, entry in files.items() if entry["from_pixels"]]
    if not from_pixels:
        return (
            ". Libraries resize differently, and scores differ with them: `--from-pixels` of `msl export` puts "
            "squashing and normalising into the graph."
        )
    return f". {', '.join(from_pixels)} take uint8 pixels of any height and width; they squash and normalise them."


def _made_how(loaded: LoadedRecogniser) -> str:
    model = loaded.config.model
    if not isinstance(loaded.recogniser, Recogniser):
        return f"The timm network `{model.backbone}` with its own classifier; how it was trained is not known here."
    loss = loaded.config.loss
    method = "Masked Supervised Learning" if loss.has_masked_branch else "plain supervised learning"
    if loss.branches == "single":
        method += " on images that are partly masked"
    head = {
        "csra": f"CSRA, {model.num_heads} head{'s' * (model.num_heads > 1)}, λ = {model.attention_weight:g}",
        "mldecoder": "ML-Decoder",
        "q2l": "Query2Label",
        **{pool: f"linear after {pool} pooling" for pool in ("mean", "max")},
    }.get(model.head, f"`{model.head}`, which is none of msltrain's own")
    return f"Trained with {method}; backbone `{model.backbone}`, head {head}."


@dataclass(frozen=True, kw_only=True)
class _Result:
    """What one predictions file of these weights says."""

    dataset: str
    split: str
    condition: str
    """How it differs from all of the split, seen whole; empty if it does not."""
    num_images: int
    percent: dict[str, float]
    tuned: dict[str, float] | None
    """The rates at the thresholds that the export carries; None where none were tuned."""
    interval: str
    """Of mAP, in words; empty where there are so many images that it says little and takes long."""
    cautions: tuple[str, ...]
    """What these figures do not show."""


def _results(loaded: LoadedRecogniser) -> list[_Result]:
    found = []
    for file in loaded.prediction_files():
        if (predictions := _of(file, loaded.sha256)) is None:
            continue
        tuned_on = held_out_beside(predictions, [file.parent])
        origin, metrics = predictions.origin, compute_metrics(predictions, other_thresholds(tuned_on))
        untested = metrics.absent_classes
        more = f" and {len(untested) - _NUM_NAMED:,} more" if len(untested) > _NUM_NAMED else ""
        hidden = f", {100 * origin.hole_fraction:.0f} % hidden" if origin.keep_masks else ""
        found.append(
            _Result(
                dataset=origin.dataset,
                split=origin.split,
                condition=(f", {origin.part}" if origin.part else "") + hidden,
                num_images=len(predictions.keys),
                percent={name: 100 * value for name, value in metrics.summary().items()},
                tuned=None if metrics.tuned is None else {k: 100 * v for k, v in asdict(metrics.tuned).items()},
                interval=_interval(predictions, metrics.mAP),
                cautions=(
                    metrics.too_few(),
                    f"shows none of {', '.join(untested[:_NUM_NAMED])}{more}, which is not tested" if untested else "",
                    metrics.never_predicted(),
                    metrics.decided_by_order(),
                ),
            )
        )
    return found


def _interval(predictions: Predictions, mean_ap: float) -> str:
    if len(predictions.keys) > _MANY or not math.isfinite(mean_ap):
        return ""
    found = interval_around(mean_ap, resampled_mean_ap(predictions))
    return f" ({100 * found.low:.1f} to {100 * found.high:.1f})"


def _table(results: list[_Result]) -> list[str]:
    if not results:
        return []
    rows = []
    for one in results:
        values = [f"{value:.1f}{one.interval if name == 'mAP' else ''}" for name, value in one.percent.items()]
        place = f"{one.dataset}/{one.split}{one.condition}"
        rows.append(f"| {place} ({counted(one.num_images, 'image')}) | {' | '.join(values)} |")
        if one.tuned is not None:
            values = ["" if name == "mAP" else f"{one.tuned[name]:.1f}" for name in one.percent]
            rows.append(f"| {place}, at the tuned thresholds | {' | '.join(values)} |")
    return [
        "## Results",
        "",
        "In percent; computed from the predictions files of the run."
        + (" In brackets, the 95 % interval over the images." if any(one.interval for one in results) else ""),
        "",
        f"| data | {' | '.join(SUMMARY)} |",
        "| --- |" + " ---: |" * len(SUMMARY),
        *rows,
        "",
        *(line for one in results for line in _cautions(one)),
    ]


def _cautions(one: _Result) -> list[str]:
    if not (said := "; ".join(filter(None, one.cautions))):
        return []
    return [f"{one.dataset}/{one.split}{one.condition}: {markdown(said)}.", ""]


def _index(results: list[_Result]) -> list[dict[str, Any]]:
    """The results as the hub's leaderboards read them."""
    return [
        {
            "task": {"type": "image-classification", "name": "Multi-label image classification"},
            "dataset": {"type": one.dataset, "name": f"{one.dataset}{one.condition}", "split": one.split},
            "metrics": [
                {"type": name, "name": f"{name} (%)", "value": round(value, 2)}
                for name, value in one.percent.items()
                if math.isfinite(value)
            ],
        }
        for one in results
    ]


def _of(file: Path, sha256: str) -> Predictions | None:
    try:
        predictions = read_predictions(file)
    except UserError:  # of another version, say: no reason to refuse an export
        return None
    return predictions if predictions.origin.checkpoint_sha256 == sha256 else None


def _numbers(values: tuple[float, ...]) -> str:
    return f"({', '.join(f'{value:g}' for value in values)})"
