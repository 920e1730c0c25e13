"""Variants measured in turn, so that whatever disturbs the machine disturbs all of them."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

DRAWS, LEVEL = 2000, 0.95  # of the bootstrap


@dataclass
class Samples:
    """Milliseconds of each round: on the clock, and of processor time in all threads."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        low, high = np.percentile(self.wall, [25, 75])
        return {
            "median_ms": statistics.median(self.wall),
            "min_ms": min(self.wall),
            "quartiles_ms": [float(low), float(high)],
            "cpu_ms": statistics.median(self.cpu),
            "rounds": len(self.wall),
        }


def alternate(
    calls: Mapping[str, Callable[[], object]],
    device: torch.device,
    rounds: int,
    repeat: int = 1,
    warmup: int = 1,
) -> dict[str, Samples]:
    """Call every variant once a round, the first of a round changing; ms a call.

    ``repeat`` calls make one sample. The device is idle at both ends of a sample.
    """

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    names = list(calls)
    for name in names:
        for _ in range(warmup):
            calls[name]()
    found = {name: Samples() for name in names}
    for turn in range(rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            wait()
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(repeat):
                calls[name]()
            wait()
            found[name].wall.append((time.perf_counter() - wall) * 1e3 / repeat)
            found[name].cpu.append((time.process_time() - cpu) * 1e3 / repeat)
    return found


def ratio(slow: Sequence[float], fast: Sequence[float], seed: int = 0) -> dict[str, float]:
    """How many times as fast ``fast`` is: the median over rounds of slow / fast.

    ``low`` and ``high`` hold 95 % of the medians of rounds drawn with replacement.
    """
    each = np.asarray(slow, dtype=float) / np.asarray(fast, dtype=float)
    generator = np.random.default_rng(seed)
    drawn = np.median(each[generator.integers(0, len(each), (DRAWS, len(each)))], axis=1)
    low, high = np.percentile(drawn, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return {"median": float(np.median(each)), "low": float(low), "high": float(high)}
