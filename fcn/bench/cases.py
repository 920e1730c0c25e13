"""What is measured of the nets: inference, training, agreement on images, loading."""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fcn.bench.floors import forward_work, on_meta, pass_floors, training_work
from fcn.bench.paired import Samples, alternate, ratio
from fcn.bench.plain import Peer, PlainFCN, plain_step
from fcn.data.dataset import SegmentationSet, measure_loading
from fcn.data.labels import VOID
from fcn.device import autocast, tf32
from fcn.errors import UserError
from fcn.evaluate import evaluate
from fcn.graphs import AFTER, Graphs
from fcn.inputs import input_names, preprocess
from fcn.loss import batch_loss
from fcn.metrics import ConfusionMatrix
from fcn.nets import FCN, build
from fcn.nets.padded import for_inference
from fcn.optim import CaffeSGD
from fcn.options import RECIPE_OPTIONS
from fcn.rle import encode_prediction
from fcn.spec import Run, Suite
from fcn.train import Training, run_loop
from fcn.weights.named import load_named, read

CLASSES = 21
# The goals that we set ourselves: at least so many times as fast, on the CPU and on one H200.
# On a GPU the port is held to as PyTorch runs it unless told otherwise: convolutions in TF32.
GOALS: dict[tuple[str, str], dict[str, float]] = {
    ("inference", "peer"): {"cpu": 2.5},
    ("inference", "peer_tf32"): {"cuda": 3.0},
    ("training", "peer_tf32"): {"cuda": 2.0},
    ("training", "peer_loop_tf32"): {"cuda": 4.0},
    ("demo", "plain"): {"cpu": 2.0},
}
EVALUATION_GOAL = (736, 20.0)  # images, seconds
LOOP_GOAL = (100_000, 600.0)  # updates, seconds
AGREEMENT_GOAL = {"fp32": 0.9999, "tf32": 0.9999, "bf16": 0.998}
MEAN_IU_GOAL = 0.0005  # the largest difference from the reference's


def fresh(net: dict[str, Any], classes: int, device: torch.device, seed: int = 0) -> FCN:
    """A net with random weights that keep the scale of what passes through."""
    with device:
        built = build(net, {"semantic": classes})
    generator = torch.Generator(device).manual_seed(seed)
    for module in built.modules():
        if isinstance(module, nn.Conv2d):
            spread = (2 / module.weight[0].numel()) ** 0.5
            with torch.no_grad():
                module.weight.normal_(0, spread, generator=generator)
                if module.bias is not None:
                    module.bias.normal_(0, 0.1, generator=generator)
    return built.to(memory_format=torch.channels_last).eval()


def noise(batch: int, size: tuple[int, int], device: torch.device, seed: int = 0) -> Tensor:
    """(N, 3, H, W) float32 in channels last, of the range of images without their mean."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-120, 130, (batch, 3, *size), generator=generator).float()
    return x.to(device).contiguous(memory_format=torch.channels_last)


def precisions(device: torch.device) -> list[str]:
    return ["fp32", "tf32", "bf16"] if device.type == "cuda" else ["fp32", "bf16"]


def port_precisions(device: torch.device) -> dict[str, tuple[str, str]]:
    """How the port is run: what ends a variant's name -> its precision, and what is said of it."""
    if device.type == "cuda":
        return {"": ("fp32", "fp32"), "_tf32": ("tf32", "TF32, PyTorch's default")}
    return {"": ("fp32", "fp32")}


def warmup(device: torch.device) -> int:
    """Calls before the first that counts: on a GPU the last of them replays a graph."""
    return AFTER + 1 if device.type == "cuda" else 1


def _within(call: Callable[[], object], precision: str, device: torch.device) -> Callable[[], None]:
    def run() -> None:
        with autocast(precision, device):
            call()

    return run


def compared(
    kind: str,
    title: str,
    labels: dict[str, str],
    samples: dict[str, Samples],
    floors: dict[str, float],
    slow: list[str],
    aimed: str,
    device: torch.device,
    notes: list[str],
) -> dict[str, Any]:
    """One table: variants with their floors; ratios to ours, ``aimed`` being held to the goal."""
    variants = []
    for name, found in samples.items():
        precision = next((p for p in floors if p in name), "fp32")
        floor = floors[precision]
        entry = {"name": name, "label": labels[name], **found.summary(), "floor_ms": floor}
        entry["multiple"] = entry["median_ms"] / floor
        variants.append(entry)
    ratios = []
    for one in slow:
        for other in reversed(precisions(device)):
            if one in samples and other in samples:
                goals = GOALS.get((kind, one), {}) if other == aimed else {}
                goal = goals.get(device.type)
                found_ratio = ratio(samples[one].wall, samples[other].wall)
                ratios.append(
                    {
                        "slow": labels[one],
                        "fast": labels[other],
                        **found_ratio,
                        "cpu_time": ratio(samples[one].cpu, samples[other].cpu)["median"]
                        if device.type == "cpu"
                        else None,
                        "goal": goal,
                        "met": None if goal is None else found_ratio["median"] >= goal,
                    }
                )
    return {"kind": kind, "title": title, "variants": variants, "ratios": ratios, "notes": notes}


def inference(
    suite: Suite,
    name: str,
    size: tuple[int, int],
    device: torch.device,
    rounds: int,
    ceilings: dict[str, float],
    peer: Peer | None,
    batch: int = 1,
) -> dict[str, Any]:
    """Scores of images: in the authors' order of layers, as we compute them, by the port."""
    net = fresh(suite.resolved_net(name), CLASSES, device)
    x = noise(batch, size, device)
    least = forward_work(for_inference(on_meta(suite.resolved_net(name), CLASSES)), size, batch)
    floors = {p: least.floor_ms(p, ceilings) for p in precisions(device)}
    calls: dict[str, Callable[[], object]] = {}
    labels: dict[str, str] = {}
    outputs: dict[str, Tensor] = {}
    theirs = None
    if peer is not None and name in peer.nets:
        theirs = peer.net(name, net).to(device).eval()
        nchw = x.contiguous()
        for mark, (precision, said) in port_precisions(device).items():
            calls[f"peer{mark}"] = _within(lambda: theirs(nchw), precision, device)  # type: ignore[misc]
            labels[f"peer{mark}"] = f"pytorch-fcn, {said}"
    exact = fresh(suite.resolved_net(name), CLASSES, device).exact()
    exact.load_state_dict(net.state_dict())
    for parameter, shared in zip(exact.parameters(), net.parameters(), strict=True):
        parameter.data = shared.data
    calls["reference"] = _within(lambda: exact(x), "fp32", device)
    labels["reference"] = "reference: the authors' order of layers, fp32"
    for precision in precisions(device):
        fast = for_inference(net, precision)
        replayed = Graphs(fast, device)
        calls[precision] = _within(partial(replayed, x), precision, device)
        labels[precision] = f"ours, {precision}"
        if device.type == "cuda" and precision == "bf16":
            calls["bf16_calls"] = _within(partial(fast, x), precision, device)
            labels["bf16_calls"] = "ours, bf16, call by call"
        with torch.inference_mode(), autocast(precision, device):
            outputs[precision] = fast(x)["semantic"]
    with torch.inference_mode():
        whole = exact(x)["semantic"]
        samples = alternate(calls, device, rounds, warmup=warmup(device))
        notes = [
            f"Largest difference of ours in {precision} from the reference, on noise and random "
            f"weights: {float((out - whole).abs().max() / whole.abs().max()):.1e} of the largest "
            "score."
            for precision, out in outputs.items()
        ]
        if theirs is not None:
            found = theirs(nchw)
            gap = float((found - whole).abs().max() / whole.abs().max())
            notes.append(
                f"The port computes the same function: with the same weights its scores differ "
                f"from the reference's by at most {gap:.1e} of the largest."
            )
    what = "one image" if batch == 1 else f"{batch} images"
    title = f"{name}, {what} of {size[1]}×{size[0]}"
    slow = [name for name in calls if name.startswith("peer")] or ["reference"]
    return compared("inference", title, labels, samples, floors, slow, "bf16", device, notes)


def our_step(
    net: FCN,
    recipe: dict[str, Any],
    image: Tensor,
    truth: Tensor,
    precision: str,
    replayed: bool = True,
) -> Callable[[], None]:
    """One update as ``fcn.train`` makes it: nothing waits for the device.

    ``replayed``: on a GPU as a graph.
    """
    optimizer = CaffeSGD(net, recipe)
    optimizer.set_rate(recipe["learning_rate"])
    total = torch.zeros((), dtype=torch.float64, device=image.device)
    net.train()

    def update(image: Tensor, truth: Tensor) -> Tensor:
        with autocast(precision, image.device):
            scores = net(image)
        objective, summed, _ = batch_loss(
            scores["semantic"], truth, recipe["loss"], recipe["normalize"]
        )
        (objective / len(image)).backward()
        optimizer.step()
        return summed

    called = Graphs(update, image.device) if replayed else update

    def step() -> None:
        with tf32(precision == "tf32"):  # which the backward pass needs
            total.add_(called(image, truth))

    return step


def label_blocks(batch: int, size: tuple[int, int], classes: int, device: torch.device) -> Tensor:
    """(N, H, W) uint8: blocks of classes, and a twentieth void."""
    generator = torch.Generator().manual_seed(1)
    cells = [-(-side // 32) for side in size]
    blocks = torch.randint(0, classes, (batch, *cells), dtype=torch.uint8, generator=generator)
    truth = blocks.repeat_interleave(32, 1).repeat_interleave(32, 2)[:, : size[0], : size[1]]
    hidden = torch.rand(truth.shape, generator=generator) < 0.05
    return torch.where(hidden, VOID, truth).to(device)


def training(
    kind: str,
    aimed: str,
    title: str,
    net: dict[str, Any],
    recipe: dict[str, Any],
    classes: int,
    size: tuple[int, int],
    device: torch.device,
    rounds: int,
    ceilings: dict[str, float],
    peer: Peer | None = None,
    peer_name: str = "",
    repeat: int = 1,
) -> dict[str, Any]:
    """A step of ours, of the same net as plainly written, and of the port.

    ``kind`` (of ``GOALS``) and ``aimed`` (a precision) choose the goal. ``repeat`` steps make one
    sample.
    """
    recipe = {**RECIPE_OPTIONS, **recipe}
    batch = recipe["batch"]
    x, truth = noise(batch, size, device), label_blocks(batch, size, classes, device)
    calls: dict[str, Callable[[], object]] = {}
    labels: dict[str, str] = {}
    start = fresh(net, classes, device)
    plain = plain_step(PlainFCN(start).to(device), recipe, x.contiguous(), truth)
    calls["plain"], labels["plain"] = _within(plain, "fp32", device), "plain PyTorch, fp32"
    if peer is not None:
        theirs = peer.net(peer_name, start).to(device)
        for mark, (precision, said) in port_precisions(device).items():
            for name, scored, what in (
                ("peer", False, "step"),
                ("peer_loop", True, "iteration with its scores"),
            ):
                step = peer.step(theirs, recipe, x.contiguous(), truth, scored)
                calls[name + mark] = _within(step, precision, device)
                labels[name + mark] = f"pytorch-fcn's {what}, {said}"
    for precision in precisions(device):
        ours = fresh(net, classes, device)
        calls[precision] = our_step(ours, recipe, x, truth, precision)
        labels[precision] = f"ours, {precision}"
        if device.type == "cuda" and precision == "bf16":
            ours = fresh(net, classes, device)
            calls["bf16_calls"] = our_step(ours, recipe, x, truth, precision, replayed=False)
            labels["bf16_calls"] = "ours, bf16, call by call"
    samples = alternate(calls, device, rounds, repeat, warmup(device))
    work = training_work(on_meta(net, classes), size, batch)
    floors = {p: work.floor_ms(p, ceilings, training=True) for p in precisions(device)}
    slow = [name for name in calls if name.startswith(("plain", "peer"))]
    images = "one image" if batch == 1 else f"{batch} images"
    what = f"training step of {title}, {images} of {size[1]}×{size[0]}"
    notes = [f"{work.flop / 1e9:,.1f} GFLOP a step."]
    return compared(kind, what, labels, samples, floors, slow, aimed, device, notes)


def trained(weights: Path) -> tuple[FCN, dict[str, Any]]:
    """The net of a run's model.safetensors, and what its header says of it."""
    tensors, about = read(weights)
    if not {"net", "classes", "input"} <= about.keys():
        raise UserError(f"{weights}: its header describes no trained net; give one of a run.")
    net = build(about["net"], {"semantic": len(about["classes"]["semantic"])})
    load_named(net, tensors, str(weights))
    return net, about


def evenly(count: int, wanted: int | None) -> list[int]:
    """``wanted`` of ``count`` indices at even distances, from the first to the last; None: all."""
    wanted = count if wanted is None else wanted
    return [int(i) for i in np.unique(np.linspace(0, count - 1, wanted).astype(int))]


def mean_iu(matrix: ConfusionMatrix, dataset: SegmentationSet) -> float:
    found = matrix.scores().mean_iu
    if found is None:
        raise UserError(f"{dataset.folder}: no labelled pixel in the images of {dataset.split}.")
    return found


def agreement(
    weights: Path,
    prepared: Path,
    split: str,
    images: int,
    device: torch.device,
    ceilings: dict[str, float],
) -> dict[str, Any]:
    """Trained weights on real images: argmax and mean IU of each precision against the reference.

    The goal is met where both hold. Also how many images a second an evaluation pass labels and
    counts, loading included, and how many it would at the floor of its precision.
    """
    net, about = trained(weights)
    classes = len(about["classes"]["semantic"])
    net = net.to(device).to(memory_format=torch.channels_last).eval()
    dataset = SegmentationSet(prepared, split)
    chosen = evenly(len(dataset), images)
    reference = for_inference(net).exact()
    reference.trunk = net.trunk
    variants = {"reference": reference, **{p: for_inference(net, p) for p in precisions(device)}}
    counts = {name: ConfusionMatrix(classes, device) for name in variants}
    seconds = dict.fromkeys(variants, 0.0)
    same = dict.fromkeys(variants, 0)
    pixels = 0
    with torch.inference_mode():
        for i in chosen:
            found: dict[str, Tensor] = {}
            for name, variant in variants.items():
                started = time.perf_counter()
                item = dataset[i]
                truth = item["semantic"][None].to(device)
                x = preprocess(item["image"][None], about["input"], device)
                with autocast("fp32" if name == "reference" else name, device):
                    found[name] = variant(x)["semantic"].max(1).indices.to(torch.uint8)
                counts[name].update(truth, found[name])
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                seconds[name] += time.perf_counter() - started
                same[name] += int((found[name] == found["reference"]).sum())
            pixels += found["reference"].numel()
    scores = {name: mean_iu(matrix, dataset) for name, matrix in counts.items()}
    sizes = [dataset.sizes[i] for i in chosen]
    floors = pass_floors(on_meta(about["net"], classes), sizes, ceilings)
    rows = []
    for name in variants:
        share, off = same[name] / pixels, abs(scores[name] - scores["reference"])
        floor = floors["fp32" if name == "reference" else name]
        rows.append(
            {
                "name": name,
                "agreement": share,
                "goal": AGREEMENT_GOAL.get(name),
                "mean_iu": scores[name],
                "mean_iu_goal": MEAN_IU_GOAL,
                "met": name == "reference"
                or (share >= AGREEMENT_GOAL[name] and off <= MEAN_IU_GOAL),
                "images_per_second": len(chosen) / seconds[name],
                "floor_images_per_second": 1e3 * len(chosen) / floor,
                "multiple": 1e3 * seconds[name] / floor,
            }
        )
    return {
        "net": about.get("run", about["net"]["architecture"]),
        "seed": about.get("seed"),
        "dataset": dataset.info["title"],
        "split": split,
        "images": len(chosen),
        "pixels": pixels,
        "rows": rows,
    }


def evaluation(
    run: Run, prepared: Path, split: str, images: int, device: torch.device, workers: int
) -> dict[str, Any]:
    """A pass of ``evaluate`` over real images as a run makes it, predictions encoded: seconds.

    ``images`` as the goal has, the split's again and again; random weights.
    """
    dataset = SegmentationSet(prepared, split, input_names(run), run.labels)
    count = len(dataset.ids)
    dataset.ids = [dataset.ids[i % count] for i in range(images)]
    dataset._rows = [dataset._rows[i % count] for i in range(images)]
    net = fresh(run.config["net"], len(dataset.classes["semantic"]), device)
    encoded = 0

    def keep(name: str, labels: dict[str, np.ndarray]) -> None:
        nonlocal encoded
        encoded += len(encode_prediction(name, labels["semantic"]))

    precision = "bf16"
    done = evaluate(net, dataset, run, device, precision, workers, keep)
    goal = EVALUATION_GOAL if device.type == "cuda" and images == EVALUATION_GOAL[0] else None
    return {
        "net": run.title,
        "dataset": dataset.info["title"],
        "distinct": count,
        "images": images,
        "precision": precision,
        "workers": workers,
        "seconds": done.seconds,
        "goal": goal[1] if goal else None,
        "met": done.seconds < goal[1] if goal else None,
    }


def loop(
    run: Run, prepared: Path, split: str, updates: int, device: torch.device, workers: int
) -> dict[str, Any]:
    """The training loop of ``fcn.train`` over real images, loading included.

    Random weights, zero scores and next to no rate: no loss runs away, and every step is as long.
    ``first``: seconds of the first two thirds, in which shapes are met and graphs recorded. The
    last third gives the rate.
    """
    recipe = {**run.config["recipe"], "images": updates * run.config["recipe"]["batch"]}
    recipe |= {"precision": "bf16", "learning_rate": 1e-30}
    run = replace(run, config={**run.config, "recipe": recipe})
    dataset = SegmentationSet(prepared, split, input_names(run), run.labels, cache_bytes=1 << 30)
    net = fresh(run.config["net"], len(dataset.classes["semantic"]), device)
    with torch.no_grad():
        for parameter in net.heads.parameters():
            parameter.zero_()
    with TemporaryDirectory() as folder:
        training = Training(run, 0, net, dataset, device, Path(folder) / "checkpoint.pt")
        run_loop(training, prepared.parent.parent, workers, None)
    met = next(row for row in reversed(training.rows) if row["update"] <= 2 * updates // 3)
    seconds = training.rows[-1]["seconds"] - met["seconds"]
    step_ms = 1e3 * seconds / (updates - met["update"])
    goal = LOOP_GOAL if device.type == "cuda" else None
    return {
        "net": run.title,
        "dataset": dataset.info["title"],
        "images": len(dataset),
        "shapes": len(set(dataset.sizes)),
        "updates": updates,
        "workers": workers,
        "first": met["seconds"],
        "step_ms": step_ms,
        "waited": training.waited / training.seconds,
        "whole": {"updates": LOOP_GOAL[0], "seconds": step_ms * LOOP_GOAL[0] / 1e3},
        "goal": goal[1] if goal else None,
        "met": step_ms * goal[0] / 1e3 < goal[1] if goal else None,
    }


def loading(prepared: Path, split: str, seconds: float) -> dict[str, Any]:
    """Images a second that one process decodes, image and label."""
    dataset = SegmentationSet(prepared, split)
    sizes = dataset.sizes
    return {
        "dataset": dataset.info["title"],
        "split": split,
        "pixels_per_image": statistics.fmean(h * w for h, w in sizes),
        "images_per_second": measure_loading(dataset, seconds),
    }
