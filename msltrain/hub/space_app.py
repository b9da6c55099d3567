"""A page on which to try the model in this folder: choose a photograph, paint over a part, see what changes.

``python app.py`` shows it on this machine; on the Hugging Face hub the folder is a Space. It needs what
``requirements.txt`` names, and gradio.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import torch
from model import load, prepared, seen
from PIL import Image, ImageOps

MODEL = load(Path(__file__).parent)
CONTENT: dict[str, Any] = MODEL.content  # type: ignore[assignment]
EXAMPLES = sorted(map(str, Path(__file__).parent.glob("example-*.jpg")))


def painted(layers: list[Image.Image], size: tuple[int, int]) -> Image.Image:
    """White where any layer holds paint, black elsewhere; ``size`` is (width, height)."""
    hole = Image.new("L", size)
    for layer in layers:
        alpha = layer.convert("RGBA").getchannel("A").point(lambda value: 255 * (value > 0))
        hole.paste(255, mask=alpha.resize(size, Image.Resampling.NEAREST))
    return hole


def answer(drawing: dict[str, Any] | None) -> tuple[Any, Any, str]:
    """Scores of the whole photograph and behind the paint, by class, and which classes each names."""
    if not drawing or drawing.get("background") is None:
        return None, None, "Choose a photograph."
    photo = ImageOps.exif_transpose(drawing["background"])
    network = CONTENT["network"]
    hole = painted(drawing.get("layers") or [], photo.size)
    hole = seen(hole, network).convert("L")  # a classifier of timm's own sees a part of the photograph, and of its hole
    square = hole.resize((network["image_size"],) * 2, Image.Resampling.NEAREST)
    keep_mask_SS = torch.from_numpy(1 - (np.array(square) > 127).astype(np.float32))
    image_1CSS = prepared(photo, network)
    with torch.inference_mode():  # a hole is 0 after the normalisation, as in training
        score_2K = MODEL(torch.cat([image_1CSS, image_1CSS * keep_mask_SS])).sigmoid()
    whole, behind = (dict(zip(CONTENT["classes"], score_K)) for score_K in score_2K.tolist())
    share = 1 - float(keep_mask_SS.mean())
    said = f"Whole: {named(whole)}."
    return (whole, behind, f"{said} With {share:.0%} hidden: {named(behind)}.") if share else (whole, None, said)


def named(score_of: dict[str, float]) -> str:
    """The classes whose score reaches their threshold."""
    thresholds = CONTENT.get("thresholds", {})
    found = [name for name, score in score_of.items() if score >= thresholds.get(name, 0.5)]
    return ", ".join(sorted(found, key=lambda name: -score_of[name])) or "nothing"


with gr.Blocks(title="What does it see?") as page:
    gr.Markdown("# What does it see?\nChoose a photograph, then paint over a part of it.")
    with gr.Row():
        drawing = gr.ImageEditor(type="pil", label="Photograph", brush=gr.Brush(colors=["#000000"], default_size=40))
        with gr.Column():
            said = gr.Markdown()
            whole = gr.Label(num_top_classes=8, label="Whole")
            behind = gr.Label(num_top_classes=8, label="Part hidden")
    if EXAMPLES:
        gr.Examples(EXAMPLES, drawing)
    drawing.change(answer, drawing, [whole, behind, said], api_name="answer")

if __name__ == "__main__":
    page.launch()
