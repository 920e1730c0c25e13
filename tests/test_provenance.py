"""Provenance: what it says is so, in a form that can be written down."""

import json
import re
import subprocess
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import fcn
import fcn.provenance as provenance
from fcn.provenance import Clock, code_version, command, device_facts, packages

CPU = torch.device("cpu")


def git(folder, *arguments):
    return subprocess.run(
        ["git", "-c", "user.name=n", "-c", "user.email=e@example.org", *arguments],
        cwd=folder, check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip


def test_code_version_in_a_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    git(tmp_path, "init", "-q")
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-q", "-m", "one")
    head = git(tmp_path, "rev-parse", "HEAD")
    expected = {"version": fcn.__version__, "commit": head, "dirty": False}
    assert code_version() == expected
    (tmp_path / "results").write_text("not tracked")
    assert code_version() == expected
    (tmp_path / "a").write_text("2")
    assert code_version() == {**expected, "dirty": True}


def test_code_version_outside_a_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert code_version() == {"version": fcn.__version__, "commit": None, "dirty": None}


def test_code_version_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert code_version() == {"version": fcn.__version__, "commit": None, "dirty": None}


def test_packages_are_those_installed():
    found = packages()
    assert found["torch"] == version("torch") and found["numpy"] == version("numpy")


def test_device_of_this_machine():
    facts = device_facts(CPU)
    assert facts["type"] == "cpu" and facts["count"] >= 1 and facts["name"]


@pytest.mark.parametrize(
    ("line", "driver"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19", "535.104.05"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65  Release", "580.65"),
        ("something else", None),
        (None, None),
    ],
)
def test_driver_of_a_gpu(line, driver, tmp_path, monkeypatch):
    if line is not None:
        (tmp_path / "version").write_text(f"{line}\nGCC version: gcc version 12.3.0\n")
    monkeypatch.setattr(provenance, "DRIVER", tmp_path / "version")
    gpu = SimpleNamespace(name="a GPU", total_memory=1 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    facts = device_facts(torch.device("cuda:0"))
    assert (facts["name"], facts["driver"]) == ("a GPU", driver)


def test_statistics_are_reset_after_cuda_has_started(monkeypatch):
    """PyTorch refuses to reset those of a device that it has not counted yet."""
    calls = []
    monkeypatch.setattr(torch.cuda, "init", lambda: calls.append("init"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", calls.append)
    Clock(torch.device("cuda:1"))
    assert calls == ["init", torch.device("cuda:1")]


def test_account_of_a_stage():
    clock = Clock(CPU)
    time.sleep(0.05)
    archive = {"name": "a.tar", "sha256": "12", "size": 3, "subset": True, "url": "left out"}
    found = clock.provenance(precision="bf16", seed=3, archives=[archive])
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert set(found) == {
        "code",
        "packages",
        "python",
        "platform",
        "device",
        "threads",
        "precision",
        "deterministic",
        "seed",
        "started",
        "wall_seconds",
        "peak_memory_bytes",
        "archives",
        "command",
    }
    assert (found["precision"], found["seed"]) == ("bf16", 3)
    assert 0.05 <= found["wall_seconds"] < 30
    assert found["archives"] == [{"name": "a.tar", "sha256": "12", "size": 3, "subset": True}]
    started = datetime.fromisoformat(found["started"])
    assert abs((datetime.now(UTC) - started).total_seconds()) < 60
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", found["python"])
    assert found["threads"] == torch.get_num_threads()


def test_peak_memory_is_that_of_this_process_in_bytes():
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        (kilobytes,) = [int(line.split()[1]) for line in lines if line.startswith("VmHWM")]
    except (OSError, ValueError):
        pytest.skip("no /proc/self/status with VmHWM on this system")
    assert Clock(CPU).peak_memory() == pytest.approx(1024 * kilobytes, rel=0.05)


@pytest.mark.parametrize("on", [True, False])
def test_determinism_is_reported(on, monkeypatch):
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: on)
    assert Clock(CPU).provenance(precision="fp32", seed=None)["deterministic"] is on


def test_a_command_is_shown_without_the_folders_of_this_machine(tmp_path):
    given = ["train", "voc2011/fcn32s", "--data-dir", str(tmp_path / "data"), "--seed", "0"]
    assert command(given) == "python -m fcn train voc2011/fcn32s --data-dir …/data --seed 0"
    assert command([f"--data-dir={tmp_path}/data"]) == "python -m fcn --data-dir=…/data"
