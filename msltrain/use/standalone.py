"""The model in this folder, with timm and torch alone: ``python model.py photograph.jpg`` names what it shows.

    from model import load, scores
    model = load("this/folder")
    print(scores(model, PIL.Image.open("photograph.jpg"))[:5])

It and the files beside it that it imports are made to be copied.

B batch, C channels, H, W positions, K classes, S side of the square image.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

if __package__ == "msltrain.use":
    from msldata.contract.photograph import photographs, upright_rgb
else:
    from photograph import photographs, upright_rgb  # type: ignore[import-not-found, no-redef]

TEMPERATURES = {1: (1,), 2: (1, 99), 4: (1, 2, 4, 99), 6: (1, 2, 3, 4, 5, 99), 8: (1, 2, 3, 4, 5, 6, 7, 99)}
"""Softmax temperatures by number of attention heads; 99 stands for the highest position alone."""


class Backbone(nn.Module):
    """A timm network as a feature map (B, C, H, W)."""

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        import_own()
        network: Any = timm.create_model(config["timm_model"], num_classes=0)
        self.network, self.config = network, config
        if config["set_image_size"]:
            network.set_input_size(img_size=(config["image_size"], config["image_size"]))

    def forward(self, image_BCSS: torch.Tensor) -> torch.Tensor:
        network: Any = self.network
        feature = network.forward_features(image_BCSS)
        if self.config["late_norm"]:
            feature = network.get_submodule(self.config["late_norm"])(feature)
        if feature.ndim == 3:
            feature_BCN = feature[:, self.config["num_prefix_tokens"] :].transpose(1, 2)
            return feature_BCN.unflatten(2, (round(feature_BCN.shape[2] ** 0.5), -1))
        return feature.permute(0, 3, 1, 2) if self.config["channels_last"] else feature


class PooledHead(nn.Module):
    """Mean or maximum over the positions, then a linear layer."""

    def __init__(self, num_features: int, num_classes: int, pooling: str):
        super().__init__()
        self.linear = nn.Linear(num_features, num_classes)
        self.pooling = pooling

    def forward(self, feature_BCHW: torch.Tensor) -> torch.Tensor:
        pooled = feature_BCHW.mean((2, 3)) if self.pooling == "mean" else feature_BCHW.amax((2, 3))
        return self.linear(pooled)


class AttentionHead(nn.Module):
    """Residual attention (CSRA): of every class its mean score, and that of the places where it is highest."""

    def __init__(self, num_features: int, num_classes: int, num_heads: int, weight: float):
        super().__init__()
        self.score = nn.Conv2d(num_features, num_heads * num_classes, 1, bias=False)
        self.num_classes, self.temperatures, self.weight = num_classes, TEMPERATURES[num_heads], weight

    def forward(self, feature_BCHW: torch.Tensor) -> torch.Tensor:
        norm = torch.linalg.vector_norm(self.score.weight, dim=1).view(1, -1, 1)
        score_BKN = self.score(feature_BCHW).flatten(2) / norm
        logit_BK: Any = 0.0
        for head, temperature in zip(score_BKN.split(self.num_classes, dim=1), self.temperatures):
            attended = head.amax(2) if temperature == 99 else (torch.softmax(head * temperature, 2) * head).sum(2)
            logit_BK = logit_BK + head.mean(2) + self.weight * attended
        return logit_BK


def query_head(kind: str, num_features: int, num_classes: int, sizes: dict[str, int]) -> nn.Module:
    """ML-Decoder or Query2Label, from the file that lies beside this one in an exported folder."""
    try:
        import query_heads  # type: ignore[import-not-found]
    except ModuleNotFoundError:
        from msltrain.models import query_heads
    make = {"mldecoder": query_heads.MLDecoderHead, "q2l": query_heads.Query2LabelHead}[kind]
    return make(num_features, num_classes, **sizes)


def import_own() -> None:
    """Networks that are not timm's own: what registers them, where msltrain is there to find it (``MSL_IMPORT``)."""
    with contextlib.suppress(ModuleNotFoundError):
        from msltrain.registered import load_own

        load_own()


class Model(nn.Module):
    """Normalised images (B, 3, S, S) → logits (B, K)."""

    def __init__(self, config: dict[str, Any], num_classes: int):
        super().__init__()
        self.backbone = Backbone(config)
        num_features = config["num_features"]
        if config["head"] == "csra":
            self.classifier: nn.Module = AttentionHead(
                num_features, num_classes, config["num_heads"], config["attention_weight"]
            )
        elif config["head"] in ("mean", "max"):
            self.classifier = PooledHead(num_features, num_classes, config["head"])
        elif config["head"] not in ("mldecoder", "q2l"):  # somebody's own, registered with msltrain
            from msltrain.models.heads import build_own_head

            self.classifier = build_own_head(config["head"], num_features, num_classes)
        else:
            self.classifier = query_head(config["head"], num_features, num_classes, config["decoder"])

    def forward(self, image_BCSS: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.backbone(image_BCSS))


def load(folder: str | Path = Path(__file__).parent) -> nn.Module:
    """The model of a folder, in evaluation mode; ``model.content`` is what its config.json says."""
    folder = Path(folder)
    content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config, num_classes = content["network"], len(content["classes"])
    if "architecture" in content:
        model = timm.create_model(f"local-dir:{folder.resolve()}", pretrained=True)
    else:
        tensors = load_file(folder / "model.safetensors")
        model = Model(config, num_classes)
        model.load_state_dict(tensors)
    model.content = content
    return model.eval()


def seen(image: Image.Image, config: dict[str, Any]) -> Image.Image:
    """What the network sees of a photograph, upright and in RGB of 8 bits, before it is squashed to the square.

    Raises:
        ValueError: its pixels have no clear range, as floating-point ones.
    """
    photograph = upright_rgb(image)
    if view := config.get("timm_view"):  # a classifier of timm's own sees what timm's evaluation leaves of it
        how = {name: view[name] for name in ("interpolation", "crop_pct", "crop_mode")}
        transform = timm.data.create_transform(view["side"], use_prefetcher=True, **how)
        photograph = Image.fromarray(np.asarray(transform(photograph)).transpose(1, 2, 0))
    return photograph


def prepared(image: Image.Image, config: dict[str, Any]) -> torch.Tensor:
    """A photograph as the network wants it: upright, RGB of 8 bits, squashed to the square or cropped, normalised.

    Raises:
        ValueError: as `seen`.
    """
    pixel_CHW = torch.from_numpy(np.array(seen(image, config))).permute(2, 0, 1)
    square = (config["image_size"], config["image_size"])
    pixel_1CSS = nn.functional.interpolate(pixel_CHW[None], square, mode="bilinear", antialias=True)
    mean, std = (torch.tensor(config[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    return (pixel_1CSS.float() / 255 - mean) / std


def scores(model: nn.Module, image: Image.Image) -> list[tuple[str, float]]:
    """(class, score from 0 to 1), highest first; several may be right."""
    content: dict[str, Any] = model.content  # type: ignore[assignment]
    with torch.inference_mode():
        [score_K] = model(prepared(image, content["network"])).sigmoid()
    return sorted(zip(content["classes"], score_K.tolist()), key=lambda pair: -pair[1])


if __name__ == "__main__":
    given = photographs(sys.argv[1:])
    loaded = load()
    for file, photograph in given:
        print(file, *(f"{name} {score:.3f}" for name, score in scores(loaded, photograph)[:5]))
    sys.exit(bool(given.left_out))
