"""What it brings to keep freed memory (``fcn.device.keep_memory``): processes with and without."""

import json
import subprocess
import sys
import time
from typing import Any

import torch

from fcn.bench.cases import CLASSES, compared, fresh, label_blocks, noise, our_step
from fcn.bench.floors import on_meta, training_work
from fcn.bench.paired import Samples
from fcn.device import keep_memory
from fcn.options import RECIPE_OPTIONS
from fcn.suites import load_suite

RUN, BATCH = "voc2011/googlenet", 4  # of the suite paper
LABELS = {"bf16_given_back": "freed memory given back, bf16", "bf16": "ours, bf16"}


def _net_and_recipe() -> tuple[dict[str, Any], dict[str, Any]]:
    run = load_suite("paper").run(RUN)
    return run.config["net"], {**RECIPE_OPTIONS, **run.config["recipe"], "batch": BATCH}


def step_ms(keep: bool, threads: int, steps: int, height: int, width: int) -> tuple[float, float]:
    """Milliseconds of a training step in this process: on the clock, and of processor time."""
    if keep:
        keep_memory()
    torch.set_num_threads(threads)
    device = torch.device("cpu")
    net, recipe = _net_and_recipe()
    size = (height, width)
    image, labels = noise(BATCH, size, device), label_blocks(BATCH, size, CLASSES, device)
    step = our_step(fresh(net, CLASSES, device), recipe, image, labels, "bf16")
    for _ in range(2):
        step()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(steps):
        step()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return 1e3 * wall / steps, 1e3 * cpu / steps


def kept(
    rounds: int, ceilings: dict[str, float], steps: int = 5, size: tuple[int, int] = (512, 512)
) -> dict[str, Any]:
    """A table as of ``cases``: a process without and one with it in turn, ``rounds`` times."""
    samples = {name: Samples() for name in LABELS}
    code = "import json, sys; from fcn.bench.memory import step_ms; "
    code += "print(json.dumps(step_ms(*json.loads(sys.argv[1]))))"
    for turn in range(rounds):
        for name in list(LABELS)[:: 1 if turn % 2 else -1]:
            asked = json.dumps([name == "bf16", torch.get_num_threads(), steps, *size])
            done = subprocess.run(
                [sys.executable, "-c", code, asked], check=True, capture_output=True, text=True
            )
            milliseconds = json.loads(done.stdout)
            samples[name].wall.append(milliseconds[0])
            samples[name].cpu.append(milliseconds[1])
    net, _ = _net_and_recipe()
    work = training_work(on_meta(net, CLASSES), size, BATCH)
    floors = {"bf16": work.floor_ms("bf16", ceilings, training=True)}
    title = f"training step of FCN-GoogLeNet, {BATCH} images of {size[1]}×{size[0]}, memory kept"
    notes = ["Each sample is a process of its own."]
    cpu = torch.device("cpu")
    return compared(
        "memory", title, LABELS, samples, floors, ["bf16_given_back"], "bf16", cpu, notes
    )
