"""Sharded weights: each process keeps its share of every tensor and holds a whole block only while it computes (FSDP2).

For backbones whose weights, gradients, optimiser state and moving average do not fit on one GPU together. Checkpoints
stay whole, so nothing outside the run can tell.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from msldata.errors import UserError
from msltrain.hosts.distributed import Ranks
from msltrain.models.branchnorm import repeated_blocks
from msltrain.models.build import Recogniser


def shard_weights(recogniser: Recogniser, ranks: Ranks) -> None:
    """Divide the weights among the processes, in place; this process's parts are on its device.

    From then on every process must call the recogniser equally often, for calling it gathers the weights: in float32,
    so that a sharded run computes the same as any other. Autocast makes its bf16 copies of what was gathered.

    Args:
        recogniser: on the CPU and equal in all processes, so that no GPU ever holds it whole.
        ranks: this process among the others.

    Raises:
        UserError: a parameter cannot be divided.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    for name, parameter in recogniser.named_parameters():
        if parameter.ndim == 0:
            raise UserError(
                f"run.shard_weights: {name} of backbone '{recogniser.backbone.name}' is a single number, which cannot "
                "be divided; set it to false, or choose another backbone"
            )
    mesh = init_device_mesh(ranks.device.type, (ranks.world_size,))
    for block in _blocks(recogniser.backbone.network):
        fully_shard(block, mesh=mesh)
    fully_shard(recogniser, mesh=mesh)


def _blocks(network: nn.Module) -> list[nn.Module]:
    """The units that are gathered together: the repeated blocks, or the parts of a network without any."""
    return repeated_blocks(network) or [
        child
        for child in network.children()
        if any(True for _ in child.parameters()) and not isinstance(child, nn.ModuleList | nn.ModuleDict)
    ]


def whole(tensor: Tensor) -> Tensor:
    """A possibly sharded tensor as a whole; all processes must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_parts(module: nn.Module) -> list[Tensor]:
    """This process's part of each tensor in the state of ``module``: the tensor itself, not a copy."""
    # Asking for the state also puts back into parts what an evaluation has left gathered.
    tensors = module.state_dict().values()
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


@torch.no_grad()
def average_parts(average: nn.Module, network: nn.Module, decay: float) -> None:
    """What timm's ``ModelEmaV3.update`` does, on this process's parts."""
    pairs = list(zip(own_parts(average), own_parts(network), strict=True))
    floating = [pair for pair in pairs if pair[0].is_floating_point()]
    torch._foreach_lerp_([ours for ours, _ in floating], [theirs for _, theirs in floating], weight=1 - decay)
    for ours, theirs in pairs:
        if not ours.is_floating_point():
            ours.copy_(theirs)


def divide_state(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimiser's state with whole tensors, divided wherever the parameters of ``optimizer`` are."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def divide(number: int, value: Any) -> Any:
        parameter = parameters[number]
        if isinstance(parameter, DTensor) and isinstance(value, Tensor) and value.shape == parameter.shape:
            return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
        return value

    return {
        **state,
        "state": {
            number: {name: divide(number, value) for name, value in entries.items()}
            for number, entries in state["state"].items()
        },
    }
