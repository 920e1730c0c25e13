"""What a net has to compute and to move, and how fast this machine could do it at best.

A floor is the larger of FLOP / matrix rate and bytes / copy rate. The FLOP are those of the
convolutions and matrix products that our nets execute, a multiply-add counting 2. The least bytes
are those of layer-by-layer execution with the pointwise layers fused: each layer with a window or
an upsampling reads its input and writes its output once, and each weight is read once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fcn.device import autocast
from fcn.loss import batch_loss
from fcn.nets import FCN, build
from fcn.nets.norm import LocalResponseNorm
from fcn.nets.padded import for_inference
from fcn.nets.upsample import Upsample
from fcn.schema import protocol
from fcn.spec import Run, Suite
from fcn.timing import measure

MOVING = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d, LocalResponseNorm, Upsample)
# Input sizes (height, width) of each data set of the paper, and its test images.
INPUTS: dict[str, tuple[list[tuple[int, int]], int]] = {
    name: ([(height, width) for height, width in of["sizes"]], of["images"])
    for name, of in protocol("test_sets").items()
    if name != "source"
}
ITEM = {"fp32": 4, "tf32": 4, "bf16": 2}  # bytes
# A training step reads the weights forward and backward and writes them, reads and writes the
# momentum, and keeps the gradient on the chip; activations go by forward, again with their
# gradients backward.
WEIGHT_PASSES, ACTIVATION_PASSES = 5, 3


@dataclass(frozen=True)
class Work:
    """Of one pass: FLOP; weights, and elements that the layers read and write, by count."""

    flop: float
    weights: int
    moved: int

    def bytes(self, precision: str, training: bool = False) -> float:
        """The least traffic; the weights of a training stay fp32."""
        if training:
            activations = ACTIVATION_PASSES * ITEM[precision] * self.moved
            return WEIGHT_PASSES * ITEM["fp32"] * self.weights + activations
        return ITEM[precision] * (self.weights + self.moved)

    def floor_ms(self, precision: str, ceilings: dict[str, float], training: bool = False) -> float:
        """Milliseconds at the measured ceilings (``ceilings``)."""
        compute = self.flop / ceilings[precision]
        return 1e3 * max(compute, self.bytes(precision, training) / ceilings["copy"])


def _run(net: FCN, x: Tensor) -> None:
    with torch.no_grad():
        net(x)


def gflop_of(net: FCN, size: tuple[int, int], batch: int = 1) -> float:
    """Convolutions and products of a forward pass of a net on the ``meta`` device, in GFLOP.

    What a net made for inference computes once is not counted.
    """
    x = torch.zeros(batch, net.channels, *size, device="meta")
    _run(net, x)
    with FlopCounterMode(display=False) as counter:
        _run(net, x)
    return float(counter.get_total_flops()) / 1e9


def forward_work(net: FCN, size: tuple[int, int], batch: int = 1) -> Work:
    """Of ``batch`` images; ``net`` is on the ``meta`` device."""
    moved = 0

    def count(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        nonlocal moved
        moved += inputs[0].numel() + output.numel()

    flop = gflop_of(net, size, batch) * 1e9
    layers = [module for module in net.modules() if isinstance(module, MOVING)]
    hooks = [module.register_forward_hook(count) for module in layers]
    _run(net, torch.zeros(batch, net.channels, *size, device="meta"))
    for hook in hooks:
        hook.remove()
    return Work(flop, sum(p.numel() for p in net.parameters()), moved)


def training_work(net: FCN, size: tuple[int, int], batch: int) -> Work:
    """Of one step, forward and backward, without the gradient of the image."""
    forward = forward_work(net, size, batch)
    x = torch.zeros(batch, net.channels, *size, device="meta")
    truth = torch.zeros(batch, *size, dtype=torch.uint8, device="meta")
    net.train()
    with FlopCounterMode(display=False) as counter:
        scores = net(x)
        sum(batch_loss(s, truth, "softmax", False)[0] for s in scores.values()).backward()  # type: ignore[union-attr]
    net.eval()
    return Work(float(counter.get_total_flops()), forward.weights, forward.moved)


def pass_floors(
    net: FCN, sizes: list[tuple[int, int]], ceilings: dict[str, float]
) -> dict[str, float]:
    """Milliseconds at the least, by precision, to score images of these sizes one by one.

    ``net`` is on the ``meta`` device.
    """
    lean = for_inference(net)
    work = {size: forward_work(lean, size) for size in set(sizes)}
    precisions = [p for p in ITEM if p in ceilings]
    return {p: sum(work[size].floor_ms(p, ceilings) for size in sizes) for p in precisions}


def on_meta(net: dict[str, Any], classes: int | dict[str, int]) -> FCN:
    """The net of a resolved configuration, without memory; ``classes``: of each label set."""
    heads = {"semantic": classes} if isinstance(classes, int) else classes
    with torch.device("meta"):
        return build(net, heads).eval()


def per_layer(net: FCN, size: tuple[int, int]) -> list[dict[str, Any]]:
    """FLOP and elements moved by each layer of a forward pass, in order."""
    found: dict[str, dict[str, Any]] = {}
    counter = FlopCounterMode(display=False)

    def count(name: str, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        row = found.setdefault(name, {"layer": name, "moved": 0, "weights": 0, "flop": 0})
        row["moved"] += inputs[0].numel() + output.numel()
        row["weights"] = sum(p.numel() for p in module.parameters())
        row["flop"] += counter.get_total_flops() - sum(r["flop"] for r in found.values())

    layers = [(n, module) for n, module in net.named_modules() if isinstance(module, MOVING)]
    x = torch.zeros(1, net.channels, *size, device="meta")
    _run(net, x)  # what is computed once
    hooks = [
        module.register_forward_hook(partial(count, name.rpartition(".")[2]))
        for name, module in layers
    ]
    with counter:
        _run(net, x)
    for hook in hooks:
        hook.remove()
    return list(found.values())


def floors_of(
    name: str,
    net: dict[str, Any],
    classes: int | dict[str, int],
    sizes: list[tuple[int, int]],
    ceilings: dict[str, float],
    batch: int = 1,
) -> list[dict[str, Any]]:
    """One row a size: the work of a net as ours and in the authors' order, and the floors.

    ``least_gflop`` is what our inference computes an image: the padding's constant part left out.
    """
    built = on_meta(net, classes)
    precisions = [p for p in ITEM if p in ceilings]
    rows = []
    for size in sizes:
        lean = for_inference(built)
        least, whole = forward_work(lean, size), forward_work(built, size)
        step = training_work(built, size, batch)
        authors = gflop_of(on_meta(net, classes).exact(), size)
        rows.append(
            {
                "net": name,
                "size": list(size),
                "authors_gflop": authors,
                "whole_gflop": whole.flop / 1e9,
                "least_gflop": least.flop / 1e9,
                "forward_bytes": {p: least.bytes(p) for p in precisions},
                "forward_floor_ms": {p: least.floor_ms(p, ceilings) for p in precisions},
                "batch": batch,
                "training_gflop": step.flop / 1e9,
                "training_bytes": {p: step.bytes(p, True) for p in precisions},
                "training_floor_ms": {p: step.floor_ms(p, ceilings, True) for p in precisions},
            }
        )
    return rows


def floors_of_suite(suite: Suite, ceilings: dict[str, float]) -> list[dict[str, Any]]:
    """Rows as of ``floors_of`` for every named net of a suite, once, with the classes of the first
    run that uses it.

    ``evaluation``: of a pass over that run's test images, all of the row's size, one by one.
    """
    first: dict[str, Run] = {}
    for run in suite.runs.values():
        if run.named_net is not None:
            first.setdefault(run.named_net, run)
    rows = []
    for name, run in first.items():
        known = suite.datasets[run.dataset]["classes"]
        classes = {
            task: len(known[task] if isinstance(known, dict) else known) for task in run.labels
        }
        sizes, images = INPUTS[run.dataset]
        for row in floors_of(name, suite.resolved_net(name), classes, sizes, ceilings):
            whole: dict[str, Any] = {"images": images, "gflop": images * row["least_gflop"]}
            for key in ("bytes", "floor_ms"):
                whole[key] = {p: images * value for p, value in row[f"forward_{key}"].items()}
            rows.append({**row, "dataset": run.dataset, "classes": classes, "evaluation": whole})
    return rows


def ceilings(device: torch.device, trials: int = 7) -> dict[str, float]:
    """The best rates seen: FLOP/s of each precision, and bytes/s of a copy (read and written).

    The matrix rate is the better of a square product and of a 3x3 convolution of 512 channels.
    """
    cuda = device.type == "cuda"
    side, cells, floats = (8192, 512, 1 << 29) if cuda else (1536, 80, 1 << 25)
    found = {}
    for precision in ("fp32", "tf32", "bf16") if cuda else ("fp32", "bf16"):
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in "ab")
        image = torch.randn(1, 512, cells, cells, device=device, dtype=dtype)
        kernel = torch.randn(512, 512, 3, 3, device=device, dtype=dtype)
        layout = torch.channels_last
        image, kernel = (t.contiguous(memory_format=layout) for t in (image, kernel))
        calls: list[tuple[float, Callable[[], object]]] = [
            (2.0 * side**3, lambda a=a, b=b: a @ b),  # type: ignore[misc]
            (
                2.0 * kernel.numel() * cells**2,
                lambda i=image, k=kernel: F.conv2d(i, k, padding=1),  # type: ignore[misc]
            ),
        ]
        with torch.inference_mode(), autocast("tf32" if precision == "tf32" else "fp32", device):
            torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"  # undone with the context
            found[precision] = max(
                flop / measure(call, device, 1, trials)["min_ms"] * 1e3 for flop, call in calls
            )
    source = torch.ones(floats, device=device)
    target = torch.empty_like(source)
    best = measure(lambda: target.copy_(source), device, 1, trials)["min_ms"]
    found["copy"] = 2 * source.numel() * source.element_size() / best * 1e3
    return found
