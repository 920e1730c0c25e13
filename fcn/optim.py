"""Caffe's stochastic gradient descent.

    v <- momentum * v + rate * (gradient + decay * w),    w <- w - v

(sgd_solver.cpp; the recipes of both papers). PyTorch keeps ``b = v / rate`` instead, which is the
same while the rate is fixed; where a schedule changes the rate, ``b`` is rescaled so that ``v``,
not ``b``, is carried over, as in Caffe.
"""

from typing import Any

import torch
from torch import nn

from fcn.nets.fcn import FCN


def parameter_groups(net: FCN, recipe: dict[str, Any]) -> list[dict[str, Any]]:
    """Weights and biases, of trunk and score layers, each with its rate and decay factor.

    ``train_layers: score`` leaves the trunk without gradients. Raises nothing.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for part, score in ((net.trunk, False), (net.heads, True)):
        for name, parameter in part.named_parameters():
            if recipe["train_layers"] == "score" and not score:
                parameter.requires_grad_(False)
                continue
            bias = name.endswith("bias")
            rate = (recipe["bias_rate"] if bias else 1.0) * (recipe["score_rate"] if score else 1.0)
            decay = recipe["bias_decay"] if bias else 1.0
            groups.setdefault((rate, decay), []).append(parameter)
    return [
        {"params": parameters, "rate": rate, "weight_decay": recipe["weight_decay"] * decay}
        for (rate, decay), parameters in groups.items()
    ]


class CaffeSGD:
    """Caffe's update over the parameters of a net."""

    def __init__(self, net: FCN, recipe: dict[str, Any], device: torch.device) -> None:
        self.sgd = torch.optim.SGD(
            parameter_groups(net, recipe),
            lr=recipe["learning_rate"],
            momentum=recipe["momentum"],
            fused=device.type == "cuda",
            foreach=False if device.type == "cuda" else None,
        )
        self.rate: float | None = None

    def step(self, rate: float) -> None:
        """Update with the learning rate ``rate`` and clear the gradients."""
        if rate != self.rate:
            for group in self.sgd.param_groups:
                group["lr"] = rate * group["rate"]
                if self.rate is not None:
                    for parameter in group["params"]:
                        buffer = self.sgd.state[parameter].get("momentum_buffer")
                        if buffer is not None:
                            buffer.mul_(self.rate / rate)
            self.rate = rate
        self.sgd.step()
        self.sgd.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        return {"sgd": self.sgd.state_dict(), "rate": self.rate}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sgd.load_state_dict(state["sgd"])
        self.rate = state["rate"]


def learning_rate(recipe: dict[str, Any], update: int, updates: int) -> float:
    """Of update ``update`` (from 0) of ``updates``."""
    if recipe["schedule"] == "poly":
        return float(recipe["learning_rate"] * (1 - update / updates) ** 0.9)
    return float(recipe["learning_rate"])
