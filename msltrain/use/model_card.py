"""The model card of an export: what the model is, what it wants, how well it did, what to be careful about."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from msldata.errors import UserError
from msltrain.measures.metrics import SUMMARY, compute_metrics
from msltrain.measures.predictions import Predictions, read_predictions
from msltrain.models.build import Recogniser
from msltrain.runs.checkpoint import LoadedRecogniser

_WAYS = {
    "model.safetensors": "weights by name; `config.json` beside it says which network they belong to",
    "model.pt2": "`torch.export.load(file).module()(image)`; needs torch alone",
    "model.onnx": '`onnxruntime.InferenceSession(file).run(["logit"], {"image": image})`',
}


def model_card(
    loaded: LoadedRecogniser, files: Mapping[str, float], *, from_pixels: bool, threshold_origin: str = ""
) -> str:
    """Markdown.

    Args:
        loaded: the model; the predictions files of its run folder, where they are of these weights, give the results.
        files: exported file → its largest difference to the original's logits.
        from_pixels: whether the graphs take pixels.
        threshold_origin: where the thresholds in ``config.json`` come from.
    """
    model, stream = loaded.config.model, loaded.config.stream
    side = stream.image_size
    lines = [
        f"# {model.backbone} for {len(loaded.classes)} labels",
        "",
        f"Says which of {len(loaded.classes)} classes a photograph shows; several may be right. {_made_how(loaded)}",
        "",
        "## Files",
        "",
        "| file | how to use it | largest difference of a logit to the original |",
        "| --- | --- | ---: |",
        *(f"| `{name}` | {_WAYS[name]} | {difference:.1e} |" for name, difference in files.items()),
        "",
        "## Input and output",
        "",
        f"Input `image`: RGB, (batch, 3, {side}, {side}), any batch size. The whole photograph is squashed to "
        f"{side} × {side} (bilinear, antialiased), not cropped. Turn it upright by its EXIF orientation first, "
        "drop transparency, and bring deeper pixels down to 8 bits by their full scale: "
        '`PIL.ImageOps.exif_transpose(PIL.Image.open(file)).convert("RGB")` does so for photographs of 8 bits.',
        "",
        "The graphs (`.pt2`, `.onnx`) take uint8 pixels and normalise them."
        if from_pixels
        else "The graphs (`.pt2`, `.onnx`) take floats: "
        f"`(pixel / 255 - mean) / std` with mean {_numbers(stream.mean)} and std {_numbers(stream.std)}.",
        "",
        "Output `logit`: (batch, classes). `1 / (1 + exp(-logit))` is the score; 0.5 is the published threshold.",
        *(["", f"Thresholds: {threshold_origin}. `config.json` holds one per class."] if threshold_origin else []),
        "",
        "## Classes",
        "",
        ", ".join(loaded.classes),
        "",
        *_results(loaded),
        "## Care",
        "",
        "Scores are not calibrated probabilities. The model knows its classes alone and has learnt which go together: "
        "it may name what usually accompanies the scene. Licences of the training photographs apply besides that of "
        "the code.",
        "",
        f"Weights: sha256 `{loaded.sha256}`.",
        "",
    ]
    return "\n".join(lines)


def _made_how(loaded: LoadedRecogniser) -> str:
    model = loaded.config.model
    if not isinstance(loaded.recogniser, Recogniser):
        return f"The timm network `{model.backbone}` with its own classifier; how it was trained is not known here."
    loss = loaded.config.loss
    method = "Masked Supervised Learning" if loss.has_masked_branch else "plain supervised learning"
    if loss.branches == "single":
        method += " on images that are partly masked"
    head = f"CSRA, {model.num_heads} head{'s' * (model.num_heads > 1)}, λ = {model.attention_weight:g}"
    head = head if model.head == "csra" else f"linear after {model.head} pooling"
    return f"Trained with {method}; backbone `{model.backbone}`, head {head}."


def _results(loaded: LoadedRecogniser) -> list[str]:
    found = [predictions for file in loaded.prediction_files() if (predictions := _of(file, loaded.sha256))]
    if not found:
        return []
    rows = []
    for predictions in found:
        origin, summary = predictions.origin, compute_metrics(predictions).summary()
        part = f", {origin.part}" if origin.part else ""
        hidden = f", {100 * origin.hole_fraction:.0f} % hidden" if origin.keep_masks else ""
        cells = " | ".join(f"{100 * value:.1f}" for value in summary.values())
        rows.append(f"| {origin.dataset}/{origin.split}{part}{hidden} ({len(predictions.keys):,} images) | {cells} |")
    return [
        "## Results",
        "",
        "In percent; computed from the predictions files of the run.",
        "",
        f"| data | {' | '.join(SUMMARY)} |",
        "| --- |" + " ---: |" * len(SUMMARY),
        *rows,
        "",
    ]


def _of(file: Path, sha256: str) -> Predictions | None:
    try:
        predictions = read_predictions(file)
    except UserError:  # of another version, say: no reason to refuse an export
        return None
    return predictions if predictions.origin.checkpoint_sha256 == sha256 else None


def _numbers(values: tuple[float, ...]) -> str:
    return f"({', '.join(f'{value:g}' for value in values)})"
