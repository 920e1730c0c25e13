"""Caffe's update against plain numpy, in float64."""

import subprocess
import sys
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fcn.optim import CaffeSGD, learning_rate, parameter_groups

RECIPE = {
    "learning_rate": 0.1,
    "momentum": 0.9,
    "weight_decay": 0.05,
    "bias_rate": 2.0,
    "bias_decay": 0.0,
    "score_rate": 1.0,
    "train_layers": "all",
    "schedule": "fixed",
}


def stub(seed=0):
    """What the optimiser needs of a net: a trunk and heads, float64."""
    torch.manual_seed(seed)
    trunk = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1))
    return SimpleNamespace(
        trunk=trunk.double(), heads=nn.ModuleDict({"s": nn.Conv2d(4, 2, 1)}).double()
    )


def parameters(net):
    """(name, parameter, is a score layer's)."""
    for part, score in ((net.trunk, False), (net.heads, True)):
        for name, parameter in part.named_parameters():
            yield name, parameter, score


class Caffe:
    """sgd_solver.cpp in numpy: ComputeUpdateValue with lr_mult and decay_mult."""

    def __init__(self, net, recipe):
        self.recipe = recipe
        self.weights = [p.detach().numpy().copy() for _, p, _ in parameters(net)]
        self.history = [np.zeros_like(w) for w in self.weights]
        self.factors = []
        for name, _, score in parameters(net):
            bias = name.endswith("bias")
            lr_mult = (recipe["bias_rate"] if bias else 1) * (recipe["score_rate"] if score else 1)
            if recipe["train_layers"] == "score" and not score:
                lr_mult = 0
            self.factors.append((lr_mult, recipe["bias_decay"] if bias else 1))

    def step(self, gradients, rate):
        for i, ((lr_mult, decay_mult), gradient) in enumerate(
            zip(self.factors, gradients, strict=True)
        ):
            decay = self.recipe["weight_decay"] * decay_mult
            self.history[i] = self.recipe["momentum"] * self.history[i] + rate * lr_mult * (
                gradient + decay * self.weights[i]
            )
            self.weights[i] = self.weights[i] - self.history[i]


def random_gradients(net, rng):
    return [rng.normal(size=tuple(p.shape)) for _, p, _ in parameters(net)]


def give(net, gradients):
    for (_, parameter, _), gradient in zip(parameters(net), gradients, strict=True):
        if parameter.requires_grad:
            parameter.grad = torch.from_numpy(gradient.copy())


@settings(max_examples=40, deadline=None)
@given(
    rates=st.lists(st.sampled_from([1e-10, 1e-3, 0.05, 0.1, 0.1, 0.2]), min_size=1, max_size=6),
    momentum=st.sampled_from([0.0, 0.9, 0.99]),
    weight_decay=st.sampled_from([0.0, 5e-4, 0.3]),
    factors=st.tuples(*(st.sampled_from([0.0, 1.0, 2.0, 10.0]) for _ in range(3))),
    train_layers=st.sampled_from(["all", "score"]),
    seed=st.integers(0, 99),
)
def test_update_is_caffes(rates, momentum, weight_decay, factors, train_layers, seed):
    """Including what a changing rate carries over: the last step (v), not the sum (b)."""
    bias_rate, bias_decay, score_rate = factors
    recipe = {
        **RECIPE,
        "momentum": momentum,
        "weight_decay": weight_decay,
        "bias_rate": bias_rate,
        "bias_decay": bias_decay,
        "score_rate": score_rate,
        "train_layers": train_layers,
    }
    net, rng = stub(seed), np.random.default_rng(seed)
    caffe, ours = Caffe(net, recipe), CaffeSGD(net, recipe)
    for rate in rates:
        gradients = random_gradients(net, rng)
        give(net, gradients)
        caffe.step(gradients, rate)
        ours.set_rate(rate)
        ours.step()
    for (name, parameter, _), expected in zip(parameters(net), caffe.weights, strict=True):
        np.testing.assert_allclose(
            parameter.detach(), expected, rtol=1e-12, atol=1e-12, err_msg=name
        )
        assert parameter.grad is None


def test_a_changed_rate_carries_the_step_not_the_sum():
    """By hand: v = 0.1 g, then v = 0.9 (0.1 g) + 0.01 g. PyTorch's own would give 0.01 (1.9 g)."""
    net = stub()
    recipe = {**RECIPE, "weight_decay": 0.0, "bias_rate": 1.0}
    optimizer = CaffeSGD(net, recipe)
    before = net.trunk[0].weight.detach().clone()
    for rate in (0.1, 0.01):
        give(net, [np.ones(tuple(p.shape)) for _, p, _ in parameters(net)])
        optimizer.set_rate(rate)
        optimizer.step()
    moved = before - net.trunk[0].weight.detach()
    torch.testing.assert_close(moved, torch.full_like(moved, 0.1 + 0.09 + 0.01), rtol=1e-12, atol=0)


@pytest.mark.parametrize("at", [1, 3])
def test_saved_and_restored_in_the_middle_it_goes_on_alike(at):
    rates = [0.1, 0.1, 0.07, 0.03, 0.01]
    gradients = [random_gradients(stub(), np.random.default_rng(i)) for i in range(len(rates))]

    def run(break_at):
        net = stub()
        optimizer = CaffeSGD(net, RECIPE)
        for i, rate in enumerate(rates):
            if i == break_at:
                state = optimizer.state_dict()
                optimizer = CaffeSGD(net, RECIPE)
                optimizer.load_state_dict(state)
            give(net, gradients[i])
            optimizer.set_rate(rate)
            optimizer.step()
        return [p.detach() for _, p, _ in parameters(net)]

    for one, other in zip(run(None), run(at), strict=True):
        assert torch.equal(one, other)


def test_groups():
    net = stub()
    groups = parameter_groups(net, {**RECIPE, "score_rate": 10.0})
    found = {
        (group["rate"], group["weight_decay"]): sorted(p.ndim for p in group["params"])
        for group in groups
    }
    assert found == {
        (1.0, 0.05): [4, 4],
        (2.0, 0.0): [1, 1],
        (10.0, 0.05): [4],
        (20.0, 0.0): [1],
    }


@pytest.mark.parametrize(
    ("options", "biases"),
    [
        ({}, [(1.0, 0.05), (10.0, 0.05)]),
        ({"score_bias_rate": None, "score_bias_decay": None}, [(1.0, 0.05), (10.0, 0.05)]),
        ({"score_bias_rate": 2.0, "score_bias_decay": 0.0}, [(1.0, 0.05), (20.0, 0.0)]),
        ({"score_bias_rate": 0.0}, [(1.0, 0.05), (0.0, 0.05)]),
    ],
)
def test_biases_of_the_score_layers_may_have_their_own(options, biases):
    """The authors' AlexNet doubles the rate of score_fr's bias alone, and does not decay it."""
    recipe = {**RECIPE, "bias_rate": 1.0, "bias_decay": 1.0, "score_rate": 10.0, **options}
    net = stub()
    of = {id(p): g for g in parameter_groups(net, recipe) for p in g["params"]}
    for name, parameter, score in parameters(net):
        expected = biases[score] if name.endswith("bias") else (10.0 if score else 1.0, 0.05)
        group = of[id(parameter)]
        assert (group["rate"], group["weight_decay"]) == expected, name


def test_only_the_score_layers_learn():
    net = stub()
    CaffeSGD(net, {**RECIPE, "train_layers": "score"})
    assert not any(p.requires_grad for p in net.trunk.parameters())
    assert all(p.requires_grad for p in net.heads.parameters())


def test_schedules():
    fixed, poly = RECIPE, {**RECIPE, "schedule": "poly"}
    assert [learning_rate(fixed, u, 10) for u in (0, 5, 9)] == [0.1] * 3
    assert learning_rate(poly, 0, 10) == 0.1
    assert learning_rate(poly, 5, 10) == pytest.approx(0.1 * 0.5**0.9, rel=1e-12)
    rates = [learning_rate(poly, u, 10) for u in range(10)]
    assert all(a > b > 0 for a, b in pairwise(rates))


def test_memory_layout_changes_nothing():
    """Weights lie channels last in training; a gradient may lie otherwise."""
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        rng = np.random.default_rng(2)
        net: Any = SimpleNamespace(
            trunk=nn.Sequential(nn.Conv2d(3, 4, 3)).double(),
            heads=nn.ModuleDict({"s": nn.Conv2d(4, 2, 2)}).double(),
        )
        for part in (net.trunk, net.heads):
            for _, parameter in part.named_parameters():
                values = torch.from_numpy(rng.normal(size=tuple(parameter.shape)))
                parameter.data = values.to(memory_format=layout) if values.ndim == 4 else values
        optimizer = CaffeSGD(net, RECIPE)
        for rate in (0.1, 0.02):
            give(net, random_gradients(net, rng))
            optimizer.set_rate(rate)
            optimizer.step()
        found.append([p.detach().contiguous() for _, p, _ in parameters(net)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_an_optimiser_does_not_import_the_compiler():
    code = (
        "import sys; from tests.test_optim import *; CaffeSGD(stub(), RECIPE);"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@settings(max_examples=20)
@given(groups=st.integers(1, 4), seed=st.integers(0, 99))
def test_gathered_gradients_are_their_sum(groups, seed):
    """Over two updates: the second begins from zero."""
    whole, parts = stub(seed), stub(seed)
    one, several = CaffeSGD(whole, RECIPE), CaffeSGD(parts, RECIPE)
    rng = np.random.default_rng(seed)
    for optimizer in (one, several):
        optimizer.set_rate(0.1)
    for _ in range(2):
        each = [random_gradients(whole, rng) for _ in range(groups)]
        for gradients in each:
            give(parts, gradients)
            several.accumulate()
        several.step_accumulated()
        give(whole, [sum(g) for g in zip(*each, strict=True)])
        one.step()
    for (_, p, _), (_, q, _) in zip(parameters(whole), parameters(parts), strict=True):
        np.testing.assert_allclose(p.detach(), q.detach(), rtol=1e-12)


def test_a_restored_state_replaces_the_one_that_was_there():
    found = []
    for used in (False, True):
        source, net = stub(), stub()
        stored, optimizer = CaffeSGD(source, RECIPE), CaffeSGD(net, RECIPE)
        steps = [(source, stored, 0.1)] + [(net, optimizer, 0.02)] * used
        for part, own, rate in steps:
            give(part, random_gradients(part, np.random.default_rng(1)))
            own.set_rate(rate)
            own.step()
        optimizer.load_state_dict(stored.state_dict())
        found.append([buffer.clone() for group in optimizer.groups for buffer in group["buffers"]])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other) and one.any()
