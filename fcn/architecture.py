"""What the nets are, without training: Table 1's parameters, layers, receptive field and stride."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fcn.data.sprites import geometric_classes, semantic_classes
from fcn.files import write_json
from fcn.nets import FCN, build
from fcn.nets.trunks import Branches, Streams
from fcn.provenance import Clock
from fcn.spec import Suite

SIZE = (375, 500)  # a typical VOC image
VOC = {"semantic": 21}


def conv_layers(module: nn.Module) -> int:
    """Convolutions on the longest path: the depth that the paper counts."""
    if isinstance(module, nn.Conv2d):
        return 1
    if isinstance(module, Branches):
        return max(conv_layers(branch) for branch in module.branches)
    if isinstance(module, Streams):
        return max(conv_layers(trunk) for trunk in module.trunks)
    return sum(conv_layers(child) for child in module.children())


def gflop(net: FCN, size: tuple[int, int] = SIZE) -> float:
    """Cost of the convolutions for one (C, H, W) input in GFLOP; a multiply-add counts 2."""
    total = 0

    def count(layer: nn.Module, _: Any, out: Tensor) -> None:
        nonlocal total
        assert isinstance(layer, nn.Conv2d)
        total += 2 * out.numel() * layer.weight[0].numel()

    hooks = [m.register_forward_hook(count) for m in net.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        net.eval()(torch.zeros(1, net.channels, *size, device="meta"))
    for hook in hooks:
        hook.remove()
    return total / 1e9


def describe(net: dict[str, Any], classes: dict[str, int]) -> dict[str, Any]:
    """Facts of a resolved net with a head for each label set, all derived from its layers."""
    with torch.device("meta"):
        built = build(net, classes)
    head = built.head(next(iter(classes)))
    pool = built.streams[0].classifier_pool
    field = head.cells.receptive_field
    facts = {
        "architecture": net["architecture"],
        "parameters": sum(p.numel() for p in built.parameters()),
        "conv_layers": conv_layers(built.trunk) + 1,
        "receptive_field": field,
        "max_stride": int(head.cells.stride),
        "stride": int(built.geometries[net["skips"][-1]].stride)
        if net["skips"]
        else int(head.cells.stride),
        "crop_offsets": [*(step[2] for step in head.steps), head.offset],
        "gflop": round(gflop(built), 2),
    }
    if pool and not net["average_pool"]:
        geometry = head.cells.window(pool, 1, 0)
        facts["receptive_field_with_average_pool"] = geometry.receptive_field
        facts["receptive_field_note"] = (
            f"{field} px without the classifier's {pool}x{pool} average pool, "
            f"{geometry.receptive_field} px with it"
        )
    return facts


def _classes(definition: dict[str, Any]) -> dict[str, Any]:
    """The names of the classes of each label set, as far as they are known without its files."""
    if definition["reader"] == "scenes":
        return {"semantic": semantic_classes(), "geometric": geometric_classes()}
    classes = definition.get("classes")
    return classes if isinstance(classes, dict) else {"semantic": classes}


def architecture(suite: Suite, results: Path) -> dict[str, Any]:
    """Describe every named net, with VOC's 21 classes, and every run's; results/architecture.json.

    A run is left out where only a file of its data set names the classes.
    """
    clock = Clock(torch.device("cpu"))
    nets = {name: describe(suite.resolved_net(name), VOC) for name in suite.nets}
    runs = {}
    for run in suite.runs.values():
        classes = _classes(suite.datasets[run.dataset])
        if all(isinstance(classes.get(task), list) for task in run.labels):
            heads = {task: len(classes[task]) for task in run.labels}
            runs[run.id] = describe(run.config["net"], heads)
    result = {
        "nets": nets,
        "runs": runs,
        "input": list(SIZE),
        "provenance": clock.provenance(precision="none", seed=None),
    }
    write_json(results / "architecture.json", result)
    return result
