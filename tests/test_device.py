"""Devices: names, GPUs shared between jobs, arithmetic."""

import ctypes
import platform
import subprocess
import sys
import tempfile

import pytest
import torch

from fcn.device import autocast, chosen, keep_memory, tf32
from fcn.errors import UserError

FREE = {0: 10, 1: 30, 2: 20}


@pytest.fixture
def gpus(monkeypatch, tmp_path):
    """A machine with three GPUs, and its lock files in a folder of this test."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda i: (FREE[i], 100))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("fcn.plan.gpu_count", lambda: 0)


def test_holders_take_different_gpus_and_give_them_back(gpus):
    with chosen("auto") as first, chosen("cuda") as second, chosen() as third:
        assert [first, second, third] == [torch.device("cuda", i) for i in range(3)]
        with chosen() as fourth:  # all are held: the one with most free memory
            assert fourth == torch.device("cuda:1")
    with chosen() as again:
        assert again == torch.device("cuda:0")
        with chosen() as next_one:
            assert next_one == torch.device("cuda:1")
    with chosen() as freed:
        assert freed == torch.device("cuda:0")


def test_a_gpu_is_given_back_where_the_job_fails(gpus):
    with pytest.raises(RuntimeError), chosen():
        raise RuntimeError("out of memory")
    with chosen() as again:
        assert again == torch.device("cuda:0")


needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="there is no glibc")

PAGES = """
import ctypes, resource, sys
from fcn.device import keep_memory
if sys.argv[1] == "kept":
    assert keep_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = (ctypes.c_void_p,)
SIZE = 24 << 20
rounds = []
for _ in range(8):  # in the first ones the heap grows
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [libc.malloc(SIZE) for _ in range(4)]
    for block in blocks:
        ctypes.memset(block, 1, SIZE)
    for block in reversed(blocks):
        libc.free(block)
    rounds.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(rounds))
"""

LARGE = """
import resource
import torch
from fcn.device import LARGEST_KEPT, keep_memory
assert keep_memory()
small = []  # what stays between them, as a step's loss between its tensors
def three():
    first = torch.zeros(LARGEST_KEPT // 4 + 1024)
    small.append(torch.zeros(1))
    second = torch.zeros_like(first)
    small.append(torch.zeros(1))
    third = first + second
    small.append(bytearray(300 + len(small)))
    del first
    small.append(bytearray(700 + len(small)))
    del second
    small.append(torch.zeros(3))
for _ in range(3):
    three()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for _ in range(20):
    three()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 // LARGEST_KEPT)
"""


def printed(code: str, *words: str) -> int:
    """What a process of its own prints: a setting of the C library holds until the process ends."""
    command = [sys.executable, "-c", code, *words]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@needs_glibc
def test_kept_memory_is_not_fetched_again():
    """Four blocks of 24 MiB at the end of the heap, again and again: 24,576 pages, or none."""
    assert printed(PAGES, "kept") < 1000 < printed(PAGES, "given back")


@needs_glibc
def test_large_tensors_between_small_ones_do_not_pile_up():
    """glibc's bug 14581: on the heap each of 20 rounds would add a block that nothing fits."""
    assert printed(LARGE) < 2


def test_without_glibc_memory_is_as_it_was(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    assert not keep_memory()


def test_another_process_holds_a_gpu_until_it_ends(gpus):
    code = (
        "import torch\n"
        "torch.cuda.is_available = lambda: True\n"
        "torch.cuda.device_count = lambda: 3\n"
        "from fcn.device import chosen\n"
        "with chosen() as device:\n"
        "    print(device, flush=True)\n"
        "    input()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={"TMPDIR": str(gpus), "PATH": ""}, cwd=".",
    )  # fmt: skip
    assert process.stdout is not None
    try:
        assert process.stdout.readline().strip() == "cuda:0"
        with chosen() as ours:
            assert ours == torch.device("cuda:1")
    finally:
        process.kill()
        process.communicate()
    with chosen() as ours:
        assert ours == torch.device("cuda:0")


def test_locks_are_of_the_physical_gpus(gpus, monkeypatch):
    """Jobs that see different GPUs as cuda:0 do not exclude each other; the same one they do."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,0,1")
    with chosen() as first:
        assert first == torch.device("cuda:0")  # physical 2
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
        with chosen() as second, chosen() as third, chosen() as fourth:
            assert [second.index, third.index, fourth.index] == [0, 1, 1]


def test_named_devices(gpus):
    for _ in range(2):  # a named GPU is not locked: who names it, gets it
        with chosen("cuda:2") as device, chosen("cuda:2"):
            assert device == torch.device("cuda:2")
    with chosen("cpu") as device:
        assert device == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda0", "mps", "", "CPU"])
def test_unknown_names(gpus, name):
    with (
        pytest.raises(UserError, match=f"device={name}: choose auto, cpu, cuda or cuda:N"),
        chosen(name),
    ):
        pass


@pytest.mark.parametrize("name", ["cuda:3", "cuda:x", "cuda:", "cuda:-1"])
def test_gpus_that_are_not_there(gpus, name):
    with (
        pytest.raises(UserError, match=f"device={name}: this machine has cuda:0 to cuda:2"),
        chosen(name),
    ):
        pass


def test_without_a_gpu(no_gpu):
    with chosen("auto") as device:
        assert device == torch.device("cpu")
    for name in ("cuda", "cuda:0"):
        with pytest.raises(UserError, match="finds no CUDA GPU here; use device=cpu"), chosen(name):
            pass


@pytest.mark.parametrize("name", ["auto", "cuda", "cuda:1"])
@pytest.mark.parametrize("cuda, built", [("13.2", "for CUDA 13.2"), (None, "without CUDA")])
def test_a_gpu_that_pytorch_cannot_use_is_told(no_gpu, monkeypatch, name, cuda, built):
    """Days on the CPU would be no kindness to who has a GPU and an old driver."""
    monkeypatch.setattr("fcn.plan.gpu_count", lambda: 1)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    with pytest.raises(UserError, match=rf"device={name}: .*\(built {built}\)"), chosen(name):
        pass
    with chosen("cpu") as device:
        assert device == torch.device("cpu")


@pytest.mark.parametrize("precision, bits", [("fp32", 23), ("tf32", 23), ("bf16", 7)])
def test_arithmetic_on_the_cpu(precision, bits):
    x = torch.full((1, 1), 1 + 2.0**-10)
    with autocast(precision, torch.device("cpu")):
        y = torch.nn.functional.linear(x, torch.ones(1, 1))
    assert (y.item() == x.item()) is (bits > 10)


def flags():
    return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("before", [(True, False), (False, False), (True, True)])
def test_flags_hold_inside_and_are_given_back(before):
    """TF32 is of convolutions alone: upsampling is made of products of matrices."""
    first = flags()
    try:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
        for precision in ("fp32", "tf32", "bf16"):
            with autocast(precision, torch.device("cpu")):
                assert flags() == (precision == "tf32", False)
                assert torch.is_autocast_enabled("cpu") is (precision == "bf16")
                with tf32(False):
                    assert flags() == (False, False)
                assert flags() == (precision == "tf32", False)
            assert flags() == before
        with pytest.raises(RuntimeError), autocast("tf32", torch.device("cpu")):
            raise RuntimeError("out of memory")
        assert flags() == before
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = first
