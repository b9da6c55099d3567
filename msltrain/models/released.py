"""Released multi-label checkpoints, taken apart: which layout a file has, and its tensors under our names.

Their authors publish them as state_dicts with names of their own: CSRA and MSL (torchvision's or timm's names with
``classifier.multi_head.0.head.weight``), ML-Decoder (``head.decoder.…`` behind a TResNet, ``fc.decoder.…`` behind a
ResNet), Query2Label (``backbone.0.body.…``, ``transformer.…``), ASL (a TResNet with ``head.fc.…``).

K classes, H attention heads, D feature channels, C channels of a decoder, G queries.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from msldata.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Released:
    """The two parts of a released checkpoint."""

    kind: str
    """Who released such files, in words."""
    backbone: Mapping[str, Tensor]
    """By the names of the file without their common beginning."""
    head: Mapping[str, Tensor]
    """By the names of our head's state."""
    head_names: tuple[str, ...]
    """What the file calls them."""
    num_classes: int
    settings: Mapping[str, Any]
    """Fields of `ModelConfig` that the shapes of the head fix."""

    def fills(self, head: nn.Module, num_classes: int) -> bool:
        """Fill ``head`` in place where it has the same tensors for as many classes; whether it did.

        Otherwise the head keeps its initial values: a checkpoint from another dataset initialises only the backbone.
        """
        ours = head.state_dict()
        same = ours.keys() == self.head.keys() and all(ours[name].shape == self.head[name].shape for name in ours)
        if not same or num_classes != self.num_classes:
            return False
        head.load_state_dict(dict(self.head))
        return True


def take_apart(found: Mapping[str, Tensor], source: str) -> Released | None:
    """A released checkpoint of a layout that is known, by the names of its tensors; None for any other file.

    Args:
        found: what the file holds.
        source: its name, for messages.

    Raises:
        UserError: the layout is known, and a tensor of it is missing or its decoder is one that nobody released.
    """
    for read in (_csra, _ml_decoder, _query2label, _tresnet):
        try:
            released = read(found)
        except KeyError as error:
            raise UserError(f"{source}: not a whole checkpoint, {error.args[0]} is missing") from None
        if released is None:
            continue
        # The heads of CSRA are several tensors there, and one here.
        if released.kind != "CSRA" and len(released.head_names) != len(released.head):
            raise UserError(
                f"{source}: {released.kind}'s head has {len(released.head_names)} tensors there, and "
                f"{len(released.head)} as released; with other layers it cannot be read"
            )
        return released
    return None


KINDS = (
    "CSRA's or MSL's (classifier.multi_head.0.head.weight), ML-Decoder's (head.decoder.duplicate_pooling), "
    "Query2Label's (query_embed.weight) or ASL's on a TResNet (head.fc.weight)"
)
"""How the layouts are told apart, for messages."""

_CSRA_HEAD = re.compile(r"classifier\.multi_head\.(\d+)\.head\.weight")


def _csra(found: Mapping[str, Tensor]) -> Released | None:
    names = {int(match[1]): name for name in found if (match := _CSRA_HEAD.fullmatch(name))}
    if not names:
        return None
    heads = [found[names[number]] for number in sorted(names)]
    return Released(
        kind="CSRA",
        backbone={name: tensor for name, tensor in found.items() if name not in names.values()},
        head={"score.weight": torch.cat(heads)},
        head_names=tuple(names.values()),
        num_classes=len(heads[0]),
        settings={"head": "csra", "num_heads": len(heads)},
    )


def _ml_decoder(found: Mapping[str, Tensor]) -> Released | None:
    pooling = next((name for name in found if name.endswith("decoder.duplicate_pooling")), "")
    if not pooling:
        return None
    front = pooling.removesuffix("duplicate_pooling")
    layer = f"{front}layers.0."
    weight_GCF = found[pooling]
    head = {
        "embed.weight": found[f"{front}embed_standart.weight"],
        "embed.bias": found[f"{front}embed_standart.bias"],
        "query": found[f"{front}query_embed.weight"],
        **_pair(found, f"{layer}norm1", "norm_query"),
        **_layer(found, layer, "decoder", attention="multihead_attn", attended="norm2", out="norm3"),
        "weight": weight_GCF,
        "bias": found[f"{front}duplicate_pooling_bias"],
    }
    return Released(
        kind="ML-Decoder",
        backbone=_without(found, front),
        head=head,
        head_names=tuple(name for name in found if name.startswith(front)),
        num_classes=len(head["bias"]),
        settings={
            "head": "mldecoder",
            "num_queries": weight_GCF.shape[0],
            "decoder_width": weight_GCF.shape[1],
            "decoder_hidden": len(head["decoder.linear_in.weight"]),
        },
    )


_BEHIND = ("transformer.", "query_embed.", "fc.", "input_proj.", "backbone.1.")
"""What stands behind the backbone; the last are the codes of the positions, which nobody learnt."""


def _query2label(found: Mapping[str, Tensor]) -> Released | None:
    if "query_embed.weight" not in found or "fc.W" not in found:
        return None
    width = found["query_embed.weight"].shape[1]
    head = {
        "query": found["query_embed.weight"],
        "weight": found["fc.W"][0],
        "bias": found["fc.b"][0],
        **_layer(
            found, "transformer.encoder.layers.0.", "encoder", attention="self_attn", attended="norm1", out="norm2"
        ),
        **_pair(found, "transformer.decoder.norm", "norm"),
    }
    for number in range(2):
        front = f"transformer.decoder.layers.{number}."
        head |= _layer(found, front, f"decoders.{number}", attention="multihead_attn", attended="norm2", out="norm3")
    if "input_proj.weight" in found:
        head |= _pair(found, "input_proj", "project")
    backbone = {name: tensor for name, tensor in found.items() if not name.startswith(_BEHIND)}
    for front in ("backbone.0.", "body."):
        # A TResNet's own names begin with body. too: only the wrapper's, before all of them, is taken off.
        inner = {name.removeprefix(front): tensor for name, tensor in backbone.items()}
        if all(name.startswith(front) for name in backbone):
            backbone = inner
    return Released(
        kind="Query2Label",
        backbone=backbone,
        head=head,
        head_names=tuple(name for name in found if name.startswith(_BEHIND[:-1])),
        num_classes=len(head["query"]),
        settings={
            "head": "q2l",
            "decoder_width": width,
            "decoder_hidden": len(head["encoder.linear_in.weight"]),
        },
    )


def _tresnet(found: Mapping[str, Tensor]) -> Released | None:
    if "body.conv1.0.weight" not in found or "head.fc.weight" not in found:
        return None
    return Released(
        kind="TResNet",
        backbone=_without(found, "head."),
        head=_pair(found, "head.fc", "linear"),
        head_names=("head.fc.weight", "head.fc.bias"),
        num_classes=len(found["head.fc.weight"]),
        settings={"head": "mean"},
    )


def _layer(
    found: Mapping[str, Tensor], front: str, ours: str, *, attention: str, attended: str, out: str
) -> dict[str, Tensor]:
    """A decoder layer of PyTorch's and DETR's names."""
    return {
        f"{ours}.attention.in_proj.weight": found[f"{front}{attention}.in_proj_weight"],
        f"{ours}.attention.in_proj.bias": found[f"{front}{attention}.in_proj_bias"],
        **_pair(found, f"{front}{attention}.out_proj", f"{ours}.attention.out_proj"),
        **_pair(found, f"{front}{attended}", f"{ours}.norm_attended"),
        **_pair(found, f"{front}linear1", f"{ours}.linear_in"),
        **_pair(found, f"{front}linear2", f"{ours}.linear_out"),
        **_pair(found, f"{front}{out}", f"{ours}.norm_out"),
    }


def _pair(found: Mapping[str, Tensor], theirs: str, ours: str) -> dict[str, Tensor]:
    return {f"{ours}.{kind}": found[f"{theirs}.{kind}"] for kind in ("weight", "bias")}


def _without(found: Mapping[str, Tensor], front: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in found.items() if not name.startswith(front)}
