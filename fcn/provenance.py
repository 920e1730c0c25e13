"""Where a number comes from: code, packages, machine, data, time and memory."""

import os
import platform
import re
import resource
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import fcn
from fcn.schema import ROOT

PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "pillow",
    "safetensors",
    "pycocotools",
    "scikit-image",
    "scipy",
    "pandas",
    "snakemake",
)
DRIVER = Path("/proc/driver/nvidia/version")


def code_version() -> dict[str, Any]:
    """Version and, in a git checkout, commit and whether tracked files differ from it."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    status = git("status", "--porcelain", "--untracked-files=no")
    return {
        "version": fcn.__version__,
        "commit": git("rev-parse", "HEAD"),
        "dirty": None if status is None else bool(status),
    }


def command(arguments: Sequence[str]) -> str:
    """As it was given, but for the folders of this machine that absolute paths lie in."""
    shown = []
    for word in arguments:
        option, equals, value = word.rpartition("=")
        path = Path(value)
        shown.append(f"{option}{equals}…/{path.name}" if path.is_absolute() else word)
    return " ".join(["python -m fcn", *shown])


def packages() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def device_facts(device: torch.device) -> dict[str, Any]:
    """Name and count of the device, and the driver of a GPU where the system tells it."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return {
            "type": "cuda",
            "name": properties.name,
            "count": torch.cuda.device_count(),
            "memory_bytes": properties.total_memory,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "driver": _driver(),
        }
    return {"type": "cpu", "name": _cpu_name(), "count": os.cpu_count()}


def _driver() -> str | None:
    """Version of NVIDIA's kernel module: the first number with a dot on its line."""
    try:
        found = re.search(r"NVRM.*?(\d+(\.\d+)+)", DRIVER.read_text())
    except OSError:
        return None
    return found[1] if found else None


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


class Clock:
    """Started with a stage; ``provenance`` closes the account."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.started = datetime.now(UTC)
        self._start = time.perf_counter()
        if device.type == "cuda":
            torch.cuda.init()  # before it there are no statistics to reset
            torch.cuda.reset_peak_memory_stats(device)

    def peak_memory(self) -> int:
        """Bytes: of the GPU's allocator, or the resident set of this process on the CPU."""
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.device))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024

    def provenance(
        self, *, precision: str, seed: int | None, archives: Iterable[dict[str, Any]] = ()
    ) -> dict[str, Any]:
        return {
            "code": code_version(),
            "packages": packages(),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "device": device_facts(self.device),
            "threads": torch.get_num_threads(),
            "precision": precision,
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "seed": seed,
            "started": self.started.isoformat(timespec="seconds"),
            "wall_seconds": round(time.perf_counter() - self._start, 3),
            "peak_memory_bytes": self.peak_memory(),
            "archives": [
                {key: a.get(key) for key in ("name", "sha256", "size", "subset")} for a in archives
            ],
            "command": command(sys.argv[1:]),
        }
