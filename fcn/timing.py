"""Inference time: Table 1's protocol, and one whose numbers can be compared today."""

import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fcn.device import autocast
from fcn.evaluate import BatchLabeller, inference_net, score_maps
from fcn.files import read_json, write_json
from fcn.graphs import AFTER, Graphs, on_stream
from fcn.inputs import input_names, net_input
from fcn.nets import CHANNELS, build
from fcn.provenance import Clock
from fcn.schema import protocol
from fcn.spec import Run

SIZE: tuple[int, int] = tuple(protocol("inference")["size"])
PAPER_TRIALS: int = protocol("inference")["trials"]
WARMUP, TRIALS = 10, 50


def measure(
    call: Callable[[], object], device: torch.device, warmup: int, trials: int
) -> dict[str, Any]:
    """Milliseconds of ``call``, each trial between two points where the device is idle."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    for _ in range(warmup):
        call()
    samples = []
    for _ in range(trials):
        wait()
        started = time.perf_counter()
        call()
        wait()
        samples.append((time.perf_counter() - started) * 1e3)
    return {
        "mean_ms": statistics.fmean(samples),
        "median_ms": statistics.median(samples),
        "std_ms": statistics.stdev(samples) if trials > 1 else 0.0,
        "min_ms": min(samples),
        "max_ms": max(samples),
        "trials": trials,
        "warmup": warmup,
    }


def time_run(
    run: Run,
    seed: int,
    *,
    device: torch.device,
    data_dir: Path,
    results: Path,
    size: tuple[int, int] = SIZE,
    trials: int = TRIALS,
) -> dict[str, Any]:
    """Time the forward pass of a run's net, upsampling included, on one image; timing.json.

    Computed as evaluation does (on a GPU replayed from a graph), by shift-and-stitch or rarefaction
    where the run infers so.

    ``paper``: mean of 20 trials, fp32, after the calls that prepare; the image is on the device.
    ``synchronised``: warm, median and spread. ``with_transfer`` adds preprocessing of a uint8
    image in host memory, the argmax and its way back. Weights do not matter to the time.
    """
    clock = Clock(device)
    info = read_json(data_dir / "prepared" / run.dataset / "dataset.json")
    classes = {task: len(info["classes"][task]) for task in run.labels}
    net = build(run.config["net"], classes).to(device).to(memory_format=torch.channels_last).eval()
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randint(1, 256, (1, *shape), dtype=torch.uint8, generator=generator)

    host = {name: noise(CHANNELS[name], *size) for name in input_names(run)}
    host["semantic"] = noise(*size)  # where the input is masked
    x = net_input(host, run, device, "test")

    def forward(precision: str) -> Callable[[], object]:
        scores = partial(score_maps, inference_net(net, run, precision), run)
        return partial(Graphs(scores, device), x)

    def labels(precision: str) -> Callable[[], object]:
        labeller = BatchLabeller(net, run, device, precision)
        return lambda: [values.cpu() for values in labeller(host).values()]

    few = max(3, trials // 5)
    protocols: dict[str, Any] = {}
    with torch.inference_mode(), on_stream(device):
        plan: list[tuple[str, Callable[[str], Callable[[], object]], str, int, int, bool]]
        prepared = AFTER + 1 if device.type == "cuda" else 1  # the first replay loads a graph
        plan = [("paper", forward, "fp32", prepared, PAPER_TRIALS, False)]
        precisions = ["fp32"] + (["tf32", "bf16"] if device.type == "cuda" else ["bf16"])
        for precision in precisions:
            mark = "" if precision == "fp32" else f"_{precision}"
            warm = max(prepared, min(WARMUP, few))
            plan.append((f"synchronised{mark}", forward, precision, warm, trials, False))
            plan.append((f"with_transfer{mark}", labels, precision, warm, trials, True))
        for name, made, precision, warmup, count, transfer in plan:
            with autocast(precision, device):
                protocols[name] = measure(made(precision), device, warmup, count) | {
                    "precision": precision,
                    "device": str(device),
                    "includes_transfer": transfer,
                }
    result = {
        "run": run.name,
        "dataset": run.dataset,
        "seed": seed,
        "net": run.config["net"],
        "inference": run.config.get("inference"),
        "input": list(size),
        "protocols": protocols,
        "config_hash": run.hash,
        "timed": run.timed,
        "provenance": clock.provenance(precision="see protocols", seed=seed),
    }
    write_json(run.directory(results, seed) / "timing.json", result)
    return result
