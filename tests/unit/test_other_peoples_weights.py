"""Weights files as other programs wrap them: one function unwraps them for training, evaluation and prediction."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from msldata.errors import UserError
from msltrain.models.pretrained import read_tensors


def plain() -> dict[str, torch.Tensor]:
    return {"conv.weight": torch.arange(6.0).view(2, 3), "fc.bias": torch.ones(2)}


def fronted(front: str) -> dict[str, torch.Tensor]:
    return {front + name: tensor for name, tensor in plain().items()}


WRAPPED = {
    "plain": plain(),
    "DataParallel": {"state_dict": fronted("module.")},
    "torch.compile": fronted("_orig_mod."),
    "both": {"model": fronted("module._orig_mod.")},
    "Lightning": {"state_dict": fronted("model."), "epoch": 3, "pytorch-lightning_version": "2.5"},
    "model_state_dict": {"model_state_dict": plain(), "optimizer_state_dict": {"state": {}}},
    "net": {"net": plain(), "acc": 91.5},
    "AveragedModel": {"n_averaged": torch.tensor(4), **fronted("module.")},
    "a lone average": {"state_dict_ema": plain()},
    "settings of an average": {"model": plain(), "ema": {"decay": 0.99}},
    "an average with its settings": {"ema": {"decay": 0.99, "module": plain()}},
    "timm": {
        "state_dict": {name: tensor + 1 for name, tensor in plain().items()},
        "state_dict_ema": plain(),
        "args": argparse.Namespace(lr=0.1, model="resnet50"),
        "metric": np.float64(81.2),
        "history": np.arange(3, dtype=np.uint8),
        "scales": [np.float16(0.5), np.uint64(3), np.int8(-1)],
    },
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_unwrapped(tmp_path, caplog, kind):
    torch.save(WRAPPED[kind], tmp_path / "file.pth")
    with caplog.at_level(logging.WARNING):
        found = read_tensors(tmp_path / "file.pth")
    torch.testing.assert_close(found, plain())
    assert ("moving average" in caplog.text) == (kind in ("timm", "a lone average", "an average with its settings"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_of_a_training_that_broke_off_are_refused(tmp_path, value):
    torch.save(plain() | {"fc.bias": torch.tensor([1.0, value])}, tmp_path / "file.pth")
    with pytest.raises(UserError, match=r"1 of its tensors hold NaN or infinity \(fc.bias\)"):
        read_tensors(tmp_path / "file.pth")


class Odd:
    """What a checkpoint may hold that could run code."""


@pytest.mark.parametrize(
    ("odd", "says"),
    [
        (torch.ones(1).expand(10**6, 10**6), "not stored number by number"),
        (torch.ones(4).to_sparse(), "not stored number by number"),
        (torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8), "not stored number by number"),
        (torch.ones(4, device="meta"), "not stored number by number"),
        (torch.ones(4, dtype=torch.int8), "hold no fractions"),
        (torch.ones(4, dtype=torch.complex64), "hold no fractions"),
    ],
)
def test_what_are_no_weights_is_refused_before_it_takes_memory(tmp_path, odd, says):
    torch.save({"a.weight": torch.ones(4), "b.weight": odd}, tmp_path / "odd.pth")
    with pytest.raises(UserError, match=rf"odd\.pth: .*{says} \(b\.weight\)"):
        read_tensors(tmp_path / "odd.pth")


def test_a_state_dict_inside_of_itself_ends(tmp_path):
    inside: dict = {"w": torch.ones(2)}
    inside["model"] = inside
    torch.save(inside, tmp_path / "inside.pth")
    assert list(read_tensors(tmp_path / "inside.pth")) == ["w"]
    empty: dict = {}
    empty["model"] = empty
    torch.save(empty, tmp_path / "empty.pth")
    with pytest.raises(UserError, match="no tensors found"):
        read_tensors(tmp_path / "empty.pth")


def test_a_refusal_names_the_object_and_no_code_runs(tmp_path):
    torch.save(plain() | {"trainer": Odd()}, tmp_path / "file.pth")
    with pytest.raises(UserError, match=rf"besides tensors \({Odd.__module__}.Odd\) and was not opened") as caught:
        read_tensors(Path(tmp_path / "file.pth"))
    assert "\x1b" not in str(caught.value)
