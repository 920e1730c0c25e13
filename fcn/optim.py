"""Caffe's stochastic gradient descent.

    v <- momentum * v + rate * (gradient + decay * w),    w <- w - v

(sgd_solver.cpp; the recipes of both papers). The operation that torch.optim.SGD calls is used
without its class, whose construction imports the compiler (seconds in every process). It keeps
``b = v / rate`` instead of ``v``, which is the same while the rate is fixed; where a schedule
changes the rate, ``b`` is rescaled so that ``v``, not ``b``, is carried over, as in Caffe.
"""

from typing import Any

import torch
from torch import Tensor, nn

from fcn.nets.fcn import FCN


def parameter_groups(net: FCN, recipe: dict[str, Any]) -> list[dict[str, Any]]:
    """Weights and biases, of trunk and score layers, each with its rate and decay factor.

    ``score_bias_rate`` and ``score_bias_decay``, where set, are ``bias_rate`` and ``bias_decay`` of
    the score layers. ``train_layers: score`` leaves the trunk without gradients. Raises nothing.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for part, score in ((net.trunk, False), (net.heads, True)):
        for name, parameter in part.named_parameters():
            if recipe["train_layers"] == "score" and not score:
                parameter.requires_grad_(False)
                continue
            bias = name.endswith("bias")
            rate = _of_biases(recipe, "bias_rate", score) if bias else 1.0
            rate *= recipe["score_rate"] if score else 1.0
            decay = _of_biases(recipe, "bias_decay", score) if bias else 1.0
            groups.setdefault((rate, decay), []).append(parameter)
    return [
        {"params": parameters, "rate": rate, "weight_decay": recipe["weight_decay"] * decay}
        for (rate, decay), parameters in groups.items()
    ]


def _of_biases(recipe: dict[str, Any], key: str, score: bool) -> float:
    own = recipe.get(f"score_{key}") if score else None
    return float(recipe[key] if own is None else own)


class CaffeSGD:
    """Caffe's update over the parameters of a net.

    ``set_rate`` is for the host; ``step`` and ``accumulate`` never wait for a GPU and can be
    recorded as part of a graph (``fcn.graphs``), which reads the rate from the device.
    """

    def __init__(self, net: FCN, recipe: dict[str, Any]) -> None:
        self.groups = parameter_groups(net, recipe)
        for group in self.groups:
            group["buffers"] = [torch.zeros_like(p) for p in group["params"]]
            device = group["params"][0].device
            group["lr"] = torch.zeros((), device=device) if device.type == "cuda" else 0.0
        self.momentum = float(recipe["momentum"])
        self.rate: float | None = None
        self._sums: dict[nn.Parameter, Tensor] = {}  # of an update's gradients

    def set_rate(self, rate: float) -> None:
        """The learning rate of the steps that follow."""
        if rate == self.rate:
            return
        for group in self.groups:
            if self.rate is not None:
                torch._foreach_mul_(group["buffers"], self.rate / rate)
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate * group["rate"])
            else:
                group["lr"] = rate * group["rate"]
        self.rate = rate

    @torch.no_grad()
    def step(self) -> None:
        """Update by the gradients that the parameters hold, and clear them."""
        for group in self.groups:
            taken = [i for i, p in enumerate(group["params"]) if p.grad is not None]
            parameters = [group["params"][i] for i in taken]
            if not parameters:
                continue
            torch._fused_sgd_(
                parameters,
                [_laid_out_as(p, p.grad) for p in parameters],
                [group["buffers"][i] for i in taken] if self.momentum else [],
                weight_decay=group["weight_decay"],
                momentum=self.momentum,
                lr=group["lr"],
                dampening=0.0,
                nesterov=False,
                maximize=False,
                is_first_step=False,
            )
            for parameter in parameters:
                parameter.grad = None

    def clear(self) -> None:
        """Drop the gradients that the parameters hold."""
        for group in self.groups:
            for parameter in group["params"]:
                parameter.grad = None

    @torch.no_grad()
    def accumulate(self) -> None:
        """Add the gradients that the parameters hold to those of the update, and clear them."""
        taken = [p for group in self.groups for p in group["params"] if p.grad is not None]
        if not self._sums:
            self._sums = {p: torch.zeros_like(p) for p in taken}
        torch._foreach_add_([self._sums[p] for p in taken], [p.grad for p in taken])
        for parameter in taken:
            parameter.grad = None

    @torch.no_grad()
    def step_accumulated(self) -> None:
        """``step`` by the sums of what was accumulated since the last update."""
        for parameter, total in self._sums.items():
            parameter.grad = total
        self.step()
        torch._foreach_zero_(list(self._sums.values()))

    def state_dict(self) -> dict[str, Any]:
        return {"buffers": [group["buffers"] for group in self.groups], "rate": self.rate}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for group, buffers in zip(self.groups, state["buffers"], strict=True):
            for own, stored in zip(group["buffers"], buffers, strict=True):
                own.copy_(stored)
        if state["rate"] is not None:
            self.rate = None  # the buffers are of this rate already
            self.set_rate(state["rate"])


def _laid_out_as(parameter: Tensor, gradient: Tensor) -> Tensor:
    """The fused operation walks through memory: a gradient must lie there as its parameter."""
    if gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)


def learning_rate(recipe: dict[str, Any], update: int, updates: int) -> float:
    """Of update ``update`` (from 0) of ``updates``."""
    if recipe["schedule"] == "poly":
        return float(recipe["learning_rate"] * (1 - update / updates) ** 0.9)
    return float(recipe["learning_rate"])
