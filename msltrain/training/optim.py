"""Optimiser and learning-rate schedule, as published and for training from scratch.

The learning rate is a pure function of the step, so a resumed run needs no scheduler state.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from msltrain.config import OptimConfig
from msltrain.models.backbone import Backbone
from msltrain.models.branchnorm import masked_norms

CLASSIFIER = "classifier"
"""Parameters with this word in their name learn at ``lr * classifier_lr_factor``, as published."""


ONE_CYCLE_START = 25
"""The one-cycle schedule starts at ``lr`` over this, as PyTorch's does,"""
ONE_CYCLE_END = 1e4
"""and ends at its start over this."""


def for_batch_size(config: OptimConfig, batch_size: int) -> tuple[OptimConfig, str]:
    """Scale the learning rate linearly to the batch size (``lr_batch_size``).

    Args:
        config: as given by the user.
        batch_size: samples per update, over all processes and accumulation steps.

    Returns:
        The config whose ``lr`` is to be used, and a sentence on what was done, or "" if nothing was.
    """
    if config.lr_batch_size is None or config.lr_batch_size == batch_size:
        return config, ""
    lr = config.lr * batch_size / config.lr_batch_size
    note = (
        f"learning rate {lr:.4g} = {config.lr:g} × {batch_size} / {config.lr_batch_size}: optim.lr is meant for "
        f"batches of {config.lr_batch_size} and stream.batch_size is {batch_size}"
    )
    return replace(config, lr=lr), note


def build_optimizer(config: OptimConfig, model: nn.Module) -> torch.optim.Optimizer:
    """SGD or AdamW over the trainable parameters of ``model``, in groups that carry their ``lr_factor``.

    The published SGD decays every parameter; AdamW leaves out biases and norms (one-dimensional parameters), as usual.

    Raises:
        UserError: ``layer_decay`` is not 1, and timm does not say the backbone's layers.
    """
    factors = _layer_factors(config, model)
    groups: dict[tuple[bool, float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decayed = config.optimizer == "sgd" or parameter.ndim > 1
            factor = config.classifier_lr_factor if CLASSIFIER in name else factors.get(parameter, 1.0)
            groups.setdefault((CLASSIFIER in name, factor, decayed), []).append(parameter)
    described: list[dict[str, Any]] = [
        {"params": parameters, "lr_factor": factor, "weight_decay": config.weight_decay if decayed else 0.0}
        for (_, factor, decayed), parameters in groups.items()
    ]
    # The fused kernels update all parameters in a few calls, on CPU and GPU. Not all of them take sharded parameters.
    sharded = any(isinstance(parameter, DTensor) for parameter in model.parameters())
    kernel: dict[str, Any] = {"foreach": True} if sharded else {"fused": True}
    if config.optimizer == "sgd":
        return torch.optim.SGD(described, lr=config.lr, momentum=config.momentum, **kernel)
    return torch.optim.AdamW(described, lr=config.lr, **kernel)


def _layer_factors(config: OptimConfig, model: nn.Module) -> dict[nn.Parameter, float]:
    """The factor of each backbone parameter: ``layer_decay`` to the number of layers behind its own. Norms of masked
    images have that of the norms they stand for."""
    backbone = next((module for module in model.modules() if isinstance(module, Backbone)), None)
    if config.layer_decay == 1 or backbone is None:
        return {}
    layers = backbone.layers()
    learning = {name: one for name, one in backbone.network.named_parameters() if one.requires_grad}
    last = max((layers[name] for name in learning), default=0)
    factors = {one: config.layer_decay ** (last - layers[name]) for name, one in learning.items()}
    for norm, masked in masked_norms(backbone.network):
        pairs = zip(norm.parameters(), masked.parameters(), strict=True)
        factors |= {of_masked: factors[one] for one, of_masked in pairs if one in factors}
    return factors


def is_optimizer_state(state: Any) -> bool:
    """Whether it has the form of an optimiser's ``state_dict``; `check_moments` says whether it fits one."""
    if not isinstance(state, dict) or not isinstance(state.get("state"), dict):
        return False
    groups = state.get("param_groups")
    return (
        isinstance(groups, list)
        and all(isinstance(group, dict) and isinstance(group.get("params"), list) for group in groups)
        and all(isinstance(entries, dict) for entries in state["state"].values())
    )


def check_moments(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Raise ValueError unless ``state``, of the form of a ``state_dict``, belongs to these parameters.

    torch itself compares neither shapes nor names: the first step would fail on them, or go on with nonsense.
    """
    ours = optimizer.state_dict()["param_groups"]
    if [group["params"] for group in state["param_groups"]] != [group["params"] for group in ours]:
        raise ValueError("the optimiser has its parameters in other groups")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    names = {"momentum_buffer"} if isinstance(optimizer, torch.optim.SGD) else {"step", "exp_avg", "exp_avg_sq"}
    for number, entries in state["state"].items():
        if type(number) is not int or not 0 <= number < len(parameters):
            raise ValueError(f"the optimiser has no parameter {number!r}")
        if set(entries) - names or (names - set(entries) and entries):
            raise ValueError(f"the optimiser keeps {', '.join(sorted(names))}, not {', '.join(map(str, entries))}")
        for name, value in entries.items():
            shape = () if name == "step" else tuple(parameters[number].shape)
            if value is None and name == "momentum_buffer":  # no step was taken yet
                continue
            if not isinstance(value, torch.Tensor) or not value.is_floating_point() or tuple(value.shape) != shape:
                raise ValueError(f"{name} of parameter {number} is no tensor of {list(shape)} numbers")
            if not value.isfinite().all():
                raise ValueError(f"{name} of parameter {number} holds NaN or infinity")


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Take over the moments in another optimiser's ``state_dict``. Rates, decays and kernels remain this one's."""
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state["state"], "param_groups": groups})


def learning_rate(config: OptimConfig, step: int, steps_per_epoch: int) -> float:
    """The backbone's learning rate at ``step``, counted from 0 over the whole run.

    Warm-up: ``lr * step / warm-up steps``, so step 0 moves nothing. Then the step schedule (``step_factor`` for every
    ``step_epochs`` epochs since the start of the run) or a half cosine that ends at 0 with the run.

    One-cycle is PyTorch's ``OneCycleLR`` with the warm-up as its rising part and without its cycle of momentum.
    """
    warmup_steps = num_warmup_steps(config, steps_per_epoch)
    if config.schedule == "one_cycle":
        return _one_cycle(config.lr, step, warmup_steps, config.num_epochs * steps_per_epoch)
    if step < warmup_steps:
        return config.lr * step / warmup_steps
    if config.schedule == "step":
        return config.lr * config.step_factor ** (step // steps_per_epoch // config.step_epochs)
    total_steps = config.num_epochs * steps_per_epoch
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return config.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def num_warmup_steps(config: OptimConfig, steps_per_epoch: int) -> int:
    """Steps of the warm-up: what is asked for, but a third of the run at most."""
    return round(min(config.warmup_epochs, config.num_epochs / 3) * steps_per_epoch)


def _one_cycle(peak: float, step: int, warmup_steps: int, total_steps: int) -> float:
    start = peak / ONE_CYCLE_START
    turn = warmup_steps - 1  # the step of the peak
    if step <= turn:
        return peak + (start - peak) * 0.5 * (1 + math.cos(math.pi * step / max(1, turn)))
    progress = (step - turn) / max(1, total_steps - 1 - turn)
    end = start / ONE_CYCLE_END
    return end + (peak - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give each group ``rate`` times its own factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_factor"]
