"""What is compared with: the nets written as a tutorial would, and a public port if one is given.

The port is the project that readers are most likely to know, ``wkentaro/pytorch-fcn``. It is never
fetched from here: ``load_peer`` reads a checkout, as it is, without installing it.
"""

import ast
import copy
import importlib
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from packaging.version import Version
from torch import Tensor, nn

from fcn.data.labels import VOID
from fcn.errors import UserError
from fcn.nets import FCN
from fcn.nets.upsample import Upsample, bilinear_taps


class PlainFCN(nn.Module):
    """The same function as an ``FCN`` of one stream and one label set, without any care for speed.

    Dense transposed convolutions of full size, cropped afterwards; layers one after another.
    """

    def __init__(self, net: FCN) -> None:
        super().__init__()
        (trunk,) = net.streams
        (self.task,) = net.heads
        head = net.head(self.task)
        if head.maximum or head.null_background:
            raise ValueError("only sums of scores, with a scored background")
        own = dict(head.named_children())
        self.names = [name for name, _ in trunk.features()]
        self.trunk = nn.ModuleList(_copied(layer) for _, layer in trunk.features())
        self.top, self.steps, self.offset = head.top, list(head.steps), head.offset
        self.extend = head.extend
        self.scores = nn.ModuleDict({name: _copied(own[name]) for name in head.scores})
        self.first = head.first
        self.last = head.last
        self.up = nn.ModuleDict()
        self.scales = {
            skip: float(own[f"scale_{skip}"].scale)  # type: ignore[arg-type]
            for skip, _, _ in self.steps
            if f"scale_{skip}" in own
        }
        for name, layer in own.items():
            if isinstance(layer, Upsample):
                self.up[name] = _transposed(layer, own[head.first].out_channels)  # type: ignore[arg-type]

    def _upsampled(self, name: str, x: Tensor) -> Tensor:
        if self.extend:
            x = F.pad(x, (self.extend,) * 4, mode="replicate")
        up: Tensor = self.up[name](x)
        return up

    def forward(self, image: Tensor) -> Tensor:
        """(N, classes, H, W) scores."""
        x, features = image, {}
        for name, layer in zip(self.names, self.trunk, strict=True):
            x = layer(x)
            features[name] = x
        x = self.scores[self.first](features[self.top])
        for skip, name, offset in self.steps:
            x = self._upsampled(name, x)
            fine = self.scores[f"score_{skip}"](features[skip] * self.scales.get(skip, 1.0))
            if offset > 0:
                fine = fine[:, :, offset : offset + x.shape[2], offset : offset + x.shape[3]]
            else:
                height, width = fine.shape[2:]
                x = x[:, :, -offset : -offset + height, -offset : -offset + width]
            x = x + fine
        x, offset = self._upsampled(self.last, x), self.offset
        height, width = image.shape[2:]
        return x[:, :, offset : offset + height, offset : offset + width].contiguous()


def _copied(layer: nn.Module) -> nn.Module:
    """The same layer with weights of its own, in PyTorch's default layout."""
    return copy.deepcopy(layer).to(memory_format=torch.contiguous_format)


def _transposed(layer: Upsample, classes: int) -> nn.ConvTranspose2d:
    taps = bilinear_taps(layer.kernel)
    up = nn.ConvTranspose2d(classes, classes, layer.kernel, layer.stride, bias=False)
    with torch.no_grad():
        up.weight.zero_()
        up.weight[range(classes), range(classes)] = torch.outer(taps, taps).float()
    up.weight.requires_grad_(layer.learned)
    return up


def sgd(module: nn.Module, recipe: dict[str, Any]) -> torch.optim.Optimizer:
    """torch.optim.SGD with the rates of ``recipe`` for weights and biases."""
    weights: list[nn.Parameter] = []
    biases: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            (biases if name.endswith("bias") else weights).append(parameter)
    return torch.optim.SGD(
        [
            {"params": weights},
            {
                "params": biases,
                "lr": recipe["learning_rate"] * recipe["bias_rate"],
                "weight_decay": recipe["weight_decay"] * recipe["bias_decay"],
            },
        ],
        lr=recipe["learning_rate"],
        momentum=recipe["momentum"],
        weight_decay=recipe["weight_decay"],
    )


def plain_step(
    net: PlainFCN, recipe: dict[str, Any], image: Tensor, truth: Tensor
) -> Callable[[], float]:
    """One update as it is often written; ``truth`` is uint8 (N, H, W), its loss is returned."""
    optimizer = sgd(net, recipe)
    target = truth.long()
    net.train()

    def step() -> float:
        optimizer.zero_grad()
        scores = net(image)
        reduction = "mean" if recipe["normalize"] else "sum"
        loss = F.cross_entropy(scores, target, ignore_index=VOID, reduction=reduction)
        loss = loss if recipe["normalize"] else loss / len(image)
        value = float(loss.item())
        loss.backward()
        optimizer.step()
        return value

    return step


class Peer:
    """A checkout of the port: its nets, its loss and its scores of a step."""

    def __init__(self, folder: Path) -> None:
        package = folder / "torchfcn"
        if not (package / "models" / "fcn32s.py").is_file():
            raise UserError(
                f"--peer {folder}: no torchfcn/models/fcn32s.py in it; give a checkout of "
                "github.com/wkentaro/pytorch-fcn."
            )
        for name in ("torchfcn", "torchfcn.models"):  # without running torchfcn/__init__.py
            module = types.ModuleType(name)
            module.__path__ = [str(folder / name.replace(".", "/"))]
            sys.modules[name] = module
        self.nets = {
            "voc-fcn32s": importlib.import_module("torchfcn.models.fcn32s").FCN32s,
            "voc-fcn8s": importlib.import_module("torchfcn.models.fcn8s").FCN8s,
        }
        self.scores = importlib.import_module("torchfcn.utils").label_accuracy_score
        self.loss = _function(package / "trainer.py", "cross_entropy2d")
        self.commit = _commit(folder)

    def net(self, name: str, ours: FCN) -> nn.Module:
        """Its net of ``name`` with the weights of ours, by layer name."""
        head = ours.head("semantic")
        classes = dict(head.named_children())[head.first].out_channels
        net: nn.Module = self.nets[name](n_class=classes)
        state = dict(net.state_dict())
        for key, value in ours.state_dict().items():
            layer = ".".join(key.split(".")[-2:])
            if layer in state and state[layer].shape == value.shape:
                state[layer] = value.contiguous()
        net.load_state_dict(state)
        return net

    def step(
        self,
        net: nn.Module,
        recipe: dict[str, Any],
        image: Tensor,
        truth: Tensor,
        with_scores: bool,
    ) -> Callable[[], float]:
        """An iteration of its trainer; ``with_scores`` as it is, else up to the update."""
        optimizer = sgd(net, recipe)
        target = torch.where(truth == VOID, -1, truth.long())
        net.train()

        def step() -> float:
            optimizer.zero_grad()
            score = net(image)
            loss = self.loss(score, target, size_average=False) / len(image)
            value = float(loss.data.item())
            loss.backward()
            optimizer.step()
            if with_scores:
                predicted = score.data.max(1)[1].cpu().numpy()
                with np.errstate(all="ignore"):
                    self.scores(target.cpu().numpy(), predicted, n_class=score.shape[1])
            return value

        return step


def _function(path: Path, name: str) -> Callable[..., Tensor]:
    """One function of a module whose other imports are not installed here."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: list[ast.stmt] = [
        node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name
    ]
    if not found:
        raise UserError(f"{path}: no function {name}; this is not the port that we know.")
    space: dict[str, Any] = {"torch": torch, "F": F, "LooseVersion": Version}
    exec(compile(ast.Module(found, []), str(path), "exec"), space)
    return space[name]  # type: ignore[no-any-return]


def _commit(folder: Path) -> str | None:
    done = subprocess.run(
        ["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True
    )
    return done.stdout.strip() or None
