"""BatchNorm that knows which of the two branches a batch belongs to, and activations that are computed twice.

Both extend the class of the modules they change instead of wrapping the modules, so parameter names stay as they are.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

Branch = Literal["", "clean", "masked", "joined"]
"""joined: the clean batch, followed by the masked one. Empty outside the step, where a batch is simply a batch."""


class Passage:
    """What is passing through the network now; one object shared by all modules that need it.

    Attributes:
        branch: the branch that the batch belongs to.
        again: the backward pass computes activations a second time; running statistics have seen this batch already.
    """

    def __init__(self) -> None:
        self.branch: Branch = ""
        self.again = False

    @contextmanager
    def of(self, branch: Branch, *, again: bool = False) -> Iterator[None]:
        """While the block runs, the network computes this branch."""
        before = self.branch, self.again
        self.branch, self.again = branch, again
        try:
            yield
        finally:
            self.branch, self.again = before

    def contexts(self) -> tuple[AbstractContextManager, AbstractContextManager]:
        """Contexts for a block's first and second computation, as ``torch.utils.checkpoint`` expects them."""
        return nullcontext(), self.of(self.branch, again=True)


def tell_branches_apart(
    network: nn.Module, passage: Passage, mode: Literal["shared", "clean_only", "running", "split"]
) -> nn.ModuleList:
    """Let every BatchNorm of ``network`` (timm's fused norm-activation ones too) respect branches, in place.

    In training the clean branch is normalised by the statistics of its own batch, in a joined batch too, where the
    clean half is counted first. The masked branch depends on the mode:

    - ``shared``: normalised by its own batch, it updates the running statistics, with the same weight and bias;
    - ``clean_only``: the same, but it leaves the running statistics alone;
    - ``running``: normalised by the running statistics, to which its clean batch has been added, as a masked image is
      at test time; it leaves them alone, and no gradient flows into them;
    - ``split``: has its own running statistics, weight and bias (an auxiliary BatchNorm, as in AdvProp).

    Returns:
        The norms of the masked branch in ``split`` mode, whose parameters are to be trained with the others; else none.
    """
    own_norms = nn.ModuleList()
    for module in list(network.modules()):
        if not isinstance(module, _BatchNorm):
            continue
        silent = _silent(module)
        masked, masked_silent = None, silent
        if mode == "clean_only":
            masked = silent
        elif mode == "running":
            masked = masked_silent = _evaluating(module)
        elif mode == "split":
            masked = copy.deepcopy(module)
            masked_silent = _silent(masked)
            own_norms.append(masked)
        extend_class(module, _BranchNorm)
        # A tuple, because a module that is an attribute would become part of the network.
        module.norms = (silent, masked, masked_silent)  # type: ignore[assignment]
        module.passage = passage  # type: ignore[assignment]
    return own_norms


def masked_norms(network: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Each BatchNorm of ``network`` with what normalises masked images in its place, where something else does."""
    for module in network.modules():
        if isinstance(module, _BranchNorm) and (masked := module.norms[1]) is not None:
            yield module, masked


def _silent(norm: nn.Module) -> nn.Module:
    """The same norm with the same parameters, in training mode, with scratch running statistics that nobody reads.
    Without any, the kernel would keep other tensors for the backward pass, and a second computation must keep the same
    ones.
    """
    twin = copy.copy(norm)  # shares the dict that holds the parameters
    twin._buffers = {name: None if buffer is None else buffer.clone() for name, buffer in norm._buffers.items()}
    twin.training = True
    return twin


def _evaluating(norm: nn.Module) -> nn.Module:
    """The same norm with the same parameters and running statistics, always in evaluation mode."""
    twin = copy.copy(norm)  # shares the dicts that hold parameters and buffers
    twin.training = False
    return twin


class _BranchNorm:
    """Mixin in front of a BatchNorm class."""

    training: bool
    passage: Passage
    norms: tuple[nn.Module, nn.Module | None, nn.Module]

    def forward(self, batch: Tensor) -> Tensor:
        own: Any = super().forward  # type: ignore[misc]
        branch = self.passage.branch
        if not self.training or not branch:
            return own(batch)
        silent, masked, masked_silent = self.norms
        clean_norm: Any = silent if self.passage.again else own
        masked_norm: Any = masked_silent if self.passage.again else masked or own
        if branch == "clean":
            return clean_norm(batch)
        if branch == "masked":
            return masked_norm(batch)
        clean, hidden = batch.chunk(2)
        return torch.cat((clean_norm(clean), masked_norm(hidden)))


def compute_blocks_twice(network: nn.Module, passage: Passage) -> int:
    """Let the repeated blocks of ``network`` keep only their inputs for the backward pass (activation checkpointing).

    Returns:
        The number of blocks found; 0: the network has none, and nothing changed.
    """
    blocks = repeated_blocks(network)
    for block in blocks:
        extend_class(block, _ComputedTwice)
        block.passage = passage  # type: ignore[assignment]
    return len(blocks)


def repeated_blocks(module: nn.Module) -> list[nn.Module]:
    """The innermost modules with two or more layers that repeat in a row: usually residual blocks."""
    is_row = isinstance(module, nn.Sequential | nn.ModuleList)
    found: list[nn.Module] = []
    for child in module.children():
        inner = repeated_blocks(child)
        if inner or not is_row:
            found += inner
        elif sum(bool(part._parameters) for part in child.modules()) > 1:
            found.append(child)
    # A single one, such as the shortcut of a residual block, is part of what surrounds it.
    return found if is_row or len(found) > 1 else []


class _ComputedTwice:
    """Mixin in front of a block's class."""

    training: bool
    passage: Passage

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        own: Any = super().forward  # type: ignore[misc]
        if not (self.training and torch.is_grad_enabled()):
            return own(*args, **kwargs)
        return checkpoint(own, *args, use_reentrant=False, context_fn=self.passage.contexts, **kwargs)


def extend_class(module: nn.Module, mixin: type) -> None:
    """Put ``mixin`` in front of the class of this one module."""
    kind = type(module)
    module.__class__ = type(f"{mixin.__name__.lstrip('_')}{kind.__name__}", (mixin, kind), {})
