"""An exported model as other programs build it: a folder that timm itself opens, or the classes of ``standalone.py``.

B batch, S image size, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from msltrain.models.build import Recogniser
from msltrain.models.own_weights import in_timm_names
from msltrain.models.timm_view import TimmView
from msltrain.runs.checkpoint import LoadedRecogniser
from msltrain.use import standalone

_POOLS = {"mean": "avg", "max": "max"}
_SAME = 1e-5
_STATED = ("pool_size", "first_conv", "classifier", "fixed_input_size")


@dataclass(frozen=True, kw_only=True)
class TimmFolder:
    """What ``timm.create_model("local-dir:FOLDER", pretrained=True)`` needs."""

    name: str
    num_classes: int
    arguments: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any]
    """Its part of ``config.json``."""

    def build(self) -> nn.Module:
        """The same network with random weights."""
        import timm

        return timm.create_model(self.name, num_classes=self.num_classes, **self.arguments)


def timm_folder(loaded: LoadedRecogniser) -> TimmFolder | None:
    """The model as timm's own classifier, where that gives the same logits: without attention in its head."""
    import timm

    name, num_classes, side = loaded.config.model.backbone.split(".")[0], len(loaded.classes), _side(loaded)
    recogniser: Any = loaded.recogniser
    arguments: dict[str, Any] = {}
    classifier = ""
    if isinstance(recogniser, Recogniser):
        if (pool := _POOLS.get(loaded.config.model.head)) is None:
            return None
        arguments = {"global_pool": pool} | ({"img_size": side} if _takes_size(loaded) else {})
        try:
            network: Any = timm.create_model(name, num_classes=num_classes, **arguments).eval()
            classifier = str(network.default_cfg["classifier"])
            tensors = in_timm_names(recogniser.state_dict(), classifier)
            network.load_state_dict(tensors)
            with torch.inference_mode():
                image_BCSS = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
                difference = (network(image_BCSS) - recogniser(image_BCSS)).abs().max()
        except Exception:  # timm raises whatever its networks do; then it is no folder of timm's
            return None
        if not difference <= _SAME:
            return None
    else:
        name, network, tensors = loaded.config.model.backbone, recogniser, recogniser.state_dict()
    stream, stated = loaded.config.stream, dict(network.default_cfg)
    pretrained = {key: stated[key] for key in _STATED if stated.get(key) is not None}
    pretrained |= {"input_size": [3, side, side], "mean": list(stream.mean), "std": list(stream.std)}
    view = loaded.view or TimmView(side=side, interpolation="bilinear", crop_pct=1.0, crop_mode="squash")
    pretrained |= {name: getattr(view, name) for name in ("interpolation", "crop_pct", "crop_mode")}
    pretrained["num_classes"] = num_classes
    config = {
        "architecture": name.split(".")[0],
        "num_classes": num_classes,
        "label_names": list(loaded.classes),
        "model_args": arguments,
        "pretrained_cfg": pretrained,
        "timm_classifier": classifier,
    }
    return TimmFolder(name=name, num_classes=num_classes, arguments=arguments, tensors=tensors, config=config)


def network_of(loaded: LoadedRecogniser) -> dict[str, Any]:
    """What ``standalone.py`` reads of ``config.json``."""
    model, stream = loaded.config.model, loaded.config.stream
    content: dict[str, Any] = {"image_size": stream.image_size, "mean": list(stream.mean), "std": list(stream.std)}
    if loaded.view is not None:
        content["timm_view"] = asdict(loaded.view)
    if not isinstance(loaded.recogniser, Recogniser):
        return content
    backbone = loaded.recogniser.backbone
    sizes = {"width": model.decoder_width, "hidden": model.decoder_hidden}
    if model.head == "mldecoder":
        sizes["num_queries"] = model.num_queries
    return content | {
        "timm_model": model.backbone.split(".")[0],
        "set_image_size": _takes_size(loaded),
        "late_norm": backbone.late_norm,
        "num_prefix_tokens": backbone.num_prefix_tokens,
        "channels_last": backbone.channels_last_axis,
        "num_features": backbone.num_features,
        "head": model.head,
        "decoder": sizes,
        "num_heads": model.num_heads,
        "attention_weight": model.attention_weight,
    }


def standalone_of(loaded: LoadedRecogniser) -> nn.Module:
    """The network of ``standalone.py`` with random weights."""
    assert isinstance(loaded.recogniser, Recogniser)
    return standalone.Model(network_of(loaded), len(loaded.classes))


def _side(loaded: LoadedRecogniser) -> int:
    return loaded.config.stream.image_size


def _takes_size(loaded: LoadedRecogniser) -> bool:
    """Whether the network was told its image size, as transformers are whose own is another one."""
    assert isinstance(loaded.recogniser, Recogniser)
    network = loaded.recogniser.backbone.network
    stated = getattr(network, "default_cfg", None) or {}
    return _side(loaded) != stated.get("input_size", (0,))[-1] and hasattr(network, "set_input_size")
