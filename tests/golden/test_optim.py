"""The learning-rate trace of the published schedule, and which parameter learns at which rate."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from msltrain.config import OptimConfig
from msltrain.recipes import recipe
from msltrain.training.optim import (
    build_optimizer,
    check_moments,
    for_batch_size,
    is_optimizer_state,
    learning_rate,
    restore_optimizer,
    set_learning_rate,
)


def test_published_trace_of_voc():
    """lr 0.01; 2 epochs of warm-up per iteration from 0; x0.1 after every 4th epoch. 10 iterations an epoch."""
    config = OptimConfig(lr=0.01, warmup_epochs=2, schedule="step", step_epochs=4, step_factor=0.1, num_epochs=60)
    trace = [learning_rate(config, step, steps_per_epoch=10) for step in range(170)]
    assert trace[:4] == pytest.approx([0, 0.0005, 0.001, 0.0015])
    assert trace[19] == pytest.approx(0.0095)
    assert trace[20:40] == pytest.approx([0.01] * 20)  # epochs 3 and 4
    assert trace[40:80] == pytest.approx([1e-3] * 40)  # epochs 5 to 8
    assert trace[80:120] == pytest.approx([1e-4] * 40)
    assert trace[120:160] == pytest.approx([1e-5] * 40)
    assert trace[160:] == pytest.approx([1e-6] * 10)  # practically zero after 16 epochs


def test_trace_equals_a_published_style_scheduler_pair():
    """PyTorch's StepLR advanced once an epoch, with a per-iteration linear warm-up that sets the rate outright."""
    config = OptimConfig(lr=0.01, warmup_epochs=2, step_epochs=5, num_epochs=12)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=config.lr)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=5, gamma=0.1)
    expected = []
    for epoch in range(12):
        for iteration in range(7):
            if epoch < 2:
                optimizer.param_groups[0]["lr"] = config.lr * (epoch * 7 + iteration) / 14
            elif epoch == 2 and iteration == 0:
                optimizer.param_groups[0]["lr"] = config.lr
            expected.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
        scheduler.step()
    assert [learning_rate(config, step, 7) for step in range(84)] == pytest.approx(expected, rel=1e-12)


def test_cosine_ends_at_zero():
    config = OptimConfig(lr=0.2, warmup_epochs=1, schedule="cosine", num_epochs=5)
    trace = [learning_rate(config, step, 4) for step in range(20)]
    assert trace[:5] == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])
    assert trace[12] == pytest.approx(0.2 * 0.5)  # half of the 16 steps after warm-up
    assert trace[19] == pytest.approx(0.2 * 0.5 * (1 + math.cos(math.pi * 15 / 16)))
    assert learning_rate(config, 20, 4) == pytest.approx(0)


def test_one_cycle_is_pytorchs():
    config = OptimConfig(lr=0.2, warmup_epochs=3, schedule="one_cycle", num_epochs=10)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.2, total_steps=70, pct_start=0.3, cycle_momentum=False
    )
    expected = []
    for _ in range(70):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(expected) < 70:
            scheduler.step()
    assert [learning_rate(config, step, 7) for step in range(70)] == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_published_recipes_follow_the_trace_of_their_dataset():
    for name, step_epochs in (
        ("msl-c-voc2007-paper", 4),
        ("msl-c-coco2014-paper", 5),
        ("msl-v-coco2014-paper", 5),
    ):
        optim = recipe(name).optim
        trace = [learning_rate(optim, 100 * epoch, 100) for epoch in range(2 * step_epochs + 1)]
        rates = [0, 0.005] + [0.01] * (step_epochs - 2) + [1e-3] * step_epochs + [1e-4]
        assert trace == pytest.approx(rates), name


def test_the_rate_follows_the_batch_size_where_asked():
    plain = OptimConfig(lr=0.01)
    assert for_batch_size(plain, 96) == (plain, "")
    assert for_batch_size(OptimConfig(lr=0.01, lr_batch_size=6), 6)[1] == ""
    scaled, note = for_batch_size(OptimConfig(lr=0.01, lr_batch_size=6), 96)
    assert scaled.lr == pytest.approx(0.16)
    assert note.startswith("learning rate 0.16 = 0.01 × 96 / 6: optim.lr is meant for batches of 6")
    assert learning_rate(scaled, 30, 10) == pytest.approx(0.16)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(2, 2)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.classifier = nn.Linear(2, 1)


def test_head_learns_ten_times_faster_and_everything_decays():
    optimizer = build_optimizer(OptimConfig(lr=0.01, weight_decay=1e-4), Network())
    set_learning_rate(optimizer, 0.004)
    assert sorted((group["lr"], len(group["params"])) for group in optimizer.param_groups) == [
        (pytest.approx(0.004), 2),
        (pytest.approx(0.04), 2),
    ]
    assert all(group["weight_decay"] == 1e-4 and group["momentum"] == 0.9 for group in optimizer.param_groups)


def test_sgd_step_by_hand():
    network = Network()
    weight = network.body.weight.detach().clone()
    optimizer = build_optimizer(OptimConfig(lr=0.1, weight_decay=0.01, momentum=0.9), network)
    set_learning_rate(optimizer, 0.1)
    for _ in range(2):
        for parameter in network.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    velocity = 1 + 0.01 * weight
    after_one = weight - 0.1 * velocity
    velocity = 0.9 * velocity + 1 + 0.01 * after_one
    torch.testing.assert_close(network.body.weight.detach(), after_one - 0.1 * velocity)


def test_adamw_leaves_biases_undecayed():
    optimizer = build_optimizer(OptimConfig(optimizer="adamw", weight_decay=0.05), Network())
    decays = {
        parameter.ndim: group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]
    }
    assert decays == {2: 0.05, 1: 0.0}


def test_a_short_run_is_no_warm_up_alone():
    """Two epochs of warm-up in a run of three would leave one."""
    config = OptimConfig(lr=0.1, warmup_epochs=2, schedule="cosine", num_epochs=3)
    assert learning_rate(config, 5, 5) == pytest.approx(0.1) and learning_rate(config, 4, 5) == pytest.approx(0.08)
    assert learning_rate(OptimConfig(lr=0.1, warmup_epochs=2, num_epochs=6), 5, 5) == pytest.approx(0.05)


def test_each_optimizer_is_the_one_asked_for():
    model = torch.nn.Linear(2, 2)
    sgd = build_optimizer(OptimConfig(optimizer="sgd", lr=0.3, momentum=0.8), model)
    adamw = build_optimizer(OptimConfig(optimizer="adamw", lr=0.3), model)
    assert (type(sgd), type(adamw)) == (torch.optim.SGD, torch.optim.AdamW)
    assert (sgd.defaults["lr"], sgd.defaults["momentum"], adamw.defaults["lr"]) == (0.3, 0.8, 0.3)
    for optimizer in (sgd, adamw):
        assert optimizer.defaults["fused"] and not optimizer.defaults["foreach"]


def test_a_restored_optimizer_goes_on_with_its_own_kernels():
    """A checkpoint of sharded weights has others: its momentum counts, not how it was computed."""
    torch.manual_seed(0)
    config = OptimConfig(optimizer="sgd", lr=0.1, momentum=0.9, weight_decay=0.0)
    first, second = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    second.load_state_dict(first.state_dict())
    steps = [build_optimizer(config, network) for network in (first, second)]

    def step(network: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        network(torch.ones(1, 3)).sum().backward()
        optimizer.step()

    step(first, steps[0])
    second.load_state_dict(first.state_dict())
    state = copy.deepcopy(steps[0].state_dict())
    for group in state["param_groups"]:
        group["fused"], group["foreach"] = None, True
    restore_optimizer(steps[1], state)
    assert [(group["fused"], group["foreach"]) for group in steps[1].param_groups] == [(True, None)] * len(
        steps[1].param_groups
    )
    step(first, steps[0])
    step(second, steps[1])
    for one, other in zip(first.parameters(), second.parameters()):
        torch.testing.assert_close(one, other)
    with pytest.raises(ValueError, match="in other groups"):
        check_moments(steps[1], {**state, "param_groups": state["param_groups"] * 2})


def test_a_restored_optimizer_keeps_what_the_config_says_now():
    """Else a weight decay that was changed for the rest of a run would have no effect."""
    networks = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    before = build_optimizer(OptimConfig(optimizer="sgd", momentum=0.9, weight_decay=0.5), networks[0])
    now = build_optimizer(OptimConfig(optimizer="sgd", momentum=0.8, weight_decay=0.25), networks[1])
    restore_optimizer(now, copy.deepcopy(before.state_dict()))
    assert [(group["momentum"], group["weight_decay"]) for group in now.param_groups] == [(0.8, 0.25)]


@pytest.mark.parametrize(
    ("moment", "says"),
    [
        (torch.ones(2), "is no tensor of"),
        (torch.ones(2, 3, dtype=torch.int64), "is no tensor of"),
        (torch.full((2, 3), torch.nan), "holds NaN"),
        (7, "is no tensor of"),
    ],
)
def test_moments_of_other_parameters_are_refused(moment: object, says: str):
    network = torch.nn.Linear(3, 2)
    optimizer = build_optimizer(OptimConfig(optimizer="sgd", momentum=0.9), network)
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = optimizer.state_dict()
    check_moments(optimizer, state)
    state["state"][0]["momentum_buffer"] = moment
    with pytest.raises(ValueError, match=f"momentum_buffer of parameter 0 {says}"):
        check_moments(optimizer, state)
    state["state"][0] = {"exp_avg": torch.ones(2, 3)}
    with pytest.raises(ValueError, match="keeps momentum_buffer, not exp_avg"):
        check_moments(optimizer, state)
    state["state"] = {9: {}}
    with pytest.raises(ValueError, match="no parameter 9"):
        check_moments(optimizer, state)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("num_steps", [0, 1])
def test_moments_of_these_parameters_fit(optimizer: str, num_steps: int):
    layer = nn.Linear(3, 2)
    one = build_optimizer(OptimConfig(optimizer=optimizer), layer)
    for _ in range(num_steps):
        layer(torch.ones(1, 3)).sum().backward()
        one.step()
    state = one.state_dict()
    assert is_optimizer_state(state)
    check_moments(one, state)
    if optimizer == "sgd":
        check_moments(one, {**state, "state": {0: {"momentum_buffer": None}}})  # before its first step
    else:
        zeros = {name: torch.zeros(2, 3) for name in ("exp_avg", "exp_avg_sq")}
        for name in ("step", *zeros):
            entries = {"step": torch.tensor(1.0), **zeros, name: None}
            with pytest.raises(ValueError, match=f"{name} of parameter 0 is no tensor of"):
                check_moments(one, {**state, "state": {0: entries}})
        with pytest.raises(ValueError, match=r"step of parameter 0 is no tensor of \[\] numbers"):
            check_moments(one, {**state, "state": {0: {"step": torch.zeros(2, 3), **zeros}}})


@pytest.mark.parametrize(
    "state",
    [
        None,
        [],
        {"param_groups": []},
        {"state": [], "param_groups": []},
        {"state": {}},
        {"state": {}, "param_groups": {}},
        {"state": {}, "param_groups": [{"params": []}, []]},
        {"state": {}, "param_groups": [{"params": []}, {}]},
        {"state": {}, "param_groups": [{"params": []}, {"params": None}]},
        {"state": {0: {}, 1: []}, "param_groups": []},
    ],
)
def test_what_is_no_state_of_an_optimizer(state: object):
    assert not is_optimizer_state(state)
    assert is_optimizer_state({"state": {0: {}}, "param_groups": [{"params": [0]}]})


def test_rates_at_the_ends_of_schedules():
    cosine = OptimConfig(lr=1.0, schedule="cosine", num_epochs=1, warmup_epochs=0)
    assert learning_rate(cosine, 1, 1) == 0 == learning_rate(cosine, 2, 1), "the end, and beyond it"
    assert learning_rate(cosine, 15, 10) == 0
    # The first step behind a warm-up that is longer than a step of the schedule is not at full rate.
    stepped = OptimConfig(lr=1.0, schedule="step", num_epochs=9, warmup_epochs=2, step_epochs=1, step_factor=0.5)
    assert [learning_rate(stepped, step, 2) for step in (0, 3, 4, 6)] == [0, 0.75, 0.25, 0.125]
    cycle = OptimConfig(lr=1.0, schedule="one_cycle", num_epochs=1, warmup_epochs=1)
    assert [learning_rate(cycle, step, 6) for step in (0, 1)] == pytest.approx([1 / 25, 1])
    assert [learning_rate(cycle, step, 2) for step in (0, 1, 2, 3)] == pytest.approx([1 / 25, *[1 / 25e4] * 3])


def test_parts_of_weights_take_the_kernels_that_know_them(monkeypatch: pytest.MonkeyPatch):
    network = torch.nn.Linear(2, 3)
    for optimizer in ("sgd", "adamw"):
        config = OptimConfig(optimizer=optimizer)
        whole = build_optimizer(config, network)
        with monkeypatch.context() as patched:
            patched.setattr("msltrain.training.optim.DTensor", torch.nn.Parameter)
            parts = build_optimizer(config, network)
        assert (whole.defaults["fused"], whole.defaults["foreach"]) == (True, None)
        assert (not parts.defaults["fused"], parts.defaults["foreach"]) == (True, True)
