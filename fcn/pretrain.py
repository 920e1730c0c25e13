"""Slim backbones for the demo: a classifier trained on single objects of the scenes generator.

The paper starts from classifiers trained on ILSVRC; a demo without downloads needs a start of its
own, so that fine-tuning means something. The trunk ends as in its FCN; a linear classifier reads
the mean of its last map and is thrown away.
"""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from fcn.data.scenes import classification, classification_classes
from fcn.errors import UserError
from fcn.files import atomic_dir, write_json
from fcn.inputs import preprocess
from fcn.nets.fcn import FCN
from fcn.options import NET_DEFAULTS, RECIPE_DEFAULTS
from fcn.progress import bar
from fcn.provenance import Clock
from fcn.spec import fingerprint
from fcn.weights.backbone import initialise
from fcn.weights.named import named_tensors, save

TASK = ("seed", "images", "size", "epochs", "batch", "learning_rate")  # of a definition
HELD_OUT = 1000  # images of another seed that the accuracy is measured on


class Classifier(nn.Module):
    """(N, 3, H, W) -> (N, classes): the trunk, the mean over its last map, a linear layer."""

    def __init__(self, net: FCN, classes: int) -> None:
        super().__init__()
        self.trunk = net.streams[0]
        self.top = self.trunk.top
        self.classify = nn.Linear(self.trunk.taps[self.top], classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.trunk(x, frozenset([self.top]))[self.top]
        logits: torch.Tensor = self.classify(features.mean((2, 3)))
        return logits


def pretrain(name: str, definition: dict[str, Any], data_dir: Path) -> dict[str, Any]:
    """Train the backbone ``name`` (config: ``pretrain``) and write ``backbones/NAME``.

    Deterministic on the CPU, which is where it runs: it takes a minute.
    """
    task = definition["pretrain"]
    for key in TASK:
        if key not in task:
            raise UserError(f"backbone {name}: pretrain lacks the key {key!r}.")
    updates = task["epochs"] * task["images"] // task["batch"]
    if updates < 1:
        raise UserError(f"backbone {name}: pretrain makes no update; raise images or epochs.")
    device = torch.device("cpu")
    clock = Clock(device)
    torch.manual_seed(task["seed"])
    net = {**NET_DEFAULTS, **definition.get("net", {}), "architecture": definition["architecture"]}
    fcn = FCN(net, {"semantic": 2})
    initialise(fcn, task["seed"])
    model = Classifier(fcn, len(classification_classes())).to(memory_format=torch.channels_last)
    images, labels = (
        torch.from_numpy(a) for a in classification(task["seed"], task["images"], task["size"])
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=task["learning_rate"], weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, task["learning_rate"], total_steps=updates
    )
    order = torch.Generator().manual_seed(task["seed"])
    model.train()
    done = 0
    progress = bar(total=updates, unit="update", desc=f"pretrain {name}")
    while done < updates:
        for index in torch.randperm(len(images), generator=order).split(task["batch"]):
            if done == updates:
                break
            x = preprocess(images[index], definition["input"], device)
            loss = F.cross_entropy(model(x), labels[index])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            done += 1
            progress.update()
    progress.close()
    accuracy = _accuracy(model, definition, task)
    print(f"pretrain {name}: accuracy {accuracy:.3f} on {HELD_OUT} images", file=sys.stderr)
    about = {
        "name": name,
        "architecture": definition["architecture"],
        "input": definition["input"],
        "archive": None,
        "missing_layers": [],
        "unused_layers": ["classify"],
        "pretrain": task,
        "definition": fingerprint(definition),
        "accuracy": accuracy,
        "provenance": clock.provenance(precision=RECIPE_DEFAULTS["precision"], seed=task["seed"]),
    }
    if not all(tensor.isfinite().all() for tensor in fcn.streams[0].layers.parameters()):
        raise UserError(f"backbone {name}: its training diverged; lower `learning_rate`.")
    with atomic_dir(data_dir / "backbones" / name) as folder:
        lasting = {key: value for key, value in about.items() if key != "provenance"}
        save(folder / "weights.safetensors", named_tensors(fcn.streams[0].layers), lasting)
        write_json(folder / "backbone.json", about)
    return about


def _accuracy(model: Classifier, definition: dict[str, Any], task: dict[str, Any]) -> float:
    model.eval()
    images, labels = classification(task["seed"] + 1, HELD_OUT, task["size"])
    right = 0
    with torch.inference_mode():
        for start in range(0, HELD_OUT, 100):
            x = preprocess(
                torch.from_numpy(images[start : start + 100]),
                definition["input"],
                torch.device("cpu"),
            )
            right += int(
                (model(x).argmax(1) == torch.from_numpy(labels[start : start + 100])).sum()
            )
    return right / HELD_OUT
