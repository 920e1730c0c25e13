"""Which device a stage computes on, and with what arithmetic."""

import ctypes
import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from fcn.errors import UserError

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
LARGEST_KEPT = 32 << 20  # bytes: the largest threshold that glibc takes


def keep_memory() -> bool:
    """Have the C library keep what tensors free for the tensors that follow; whether it does.

    glibc gives the end of its heap back to the system when some megabytes of it are free, and the
    next tensors get their pages one by one, zeroed: an eighth of a training step on the CPU, and
    more (docs/speed.md). From here on it keeps them. Blocks above ``LARGEST_KEPT`` are given back
    as before: on the heap a freed aligned block, as PyTorch asks for, may never fit its like again
    (glibc's bug 14581), and a process with all tensors there grew until it was killed. Without
    glibc nothing changes.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    return bool(mallopt(_MMAP_THRESHOLD, LARGEST_KEPT) and mallopt(_TRIM_THRESHOLD, -1))


@contextmanager
def chosen(name: str = "auto") -> Iterator[torch.device]:
    """The device of a job: ``cpu``, ``cuda``, ``cuda:N`` or ``auto`` (a GPU where there is one).

    On a machine with several GPUs ``auto`` and ``cuda`` take one that no other job of this user
    holds (Snakemake assigns none): each holder locks a file until it ends.

    Raises:
        UserError: an unknown name, a GPU that is not there, or one that PyTorch cannot use.
    """
    if name not in ("auto", "cpu", "cuda") and not name.startswith("cuda:"):
        raise UserError(f"device={name}: choose auto, cpu, cuda or cuda:N.")
    if name == "cpu" or not _usable(name):
        yield torch.device("cpu")
        return
    count = torch.cuda.device_count()
    if ":" in name:
        index = name.split(":")[1]
        if not index.isdigit() or int(index) >= count:
            raise UserError(f"device={name}: this machine has cuda:0 to cuda:{count - 1}.")
        yield torch.device(name)
        return
    with _free_gpu(count) as found:
        yield torch.device("cuda", found)


def _usable(name: str) -> bool:
    """Whether PyTorch has a GPU; UserError where there should be one."""
    if torch.cuda.is_available():
        return True
    from fcn.plan import gpu_count  # with `requests`, which the stages do without

    if gpu_count():
        built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        raise UserError(
            f"device={name}: this machine has a GPU, but PyTorch {torch.__version__} (built "
            f"{built}) cannot use it, perhaps because the NVIDIA driver is too old; update the "
            "driver or use device=cpu."
        )
    if name != "auto":
        raise UserError(f"device={name}: PyTorch finds no CUDA GPU here; use device=cpu.")
    return False


@contextmanager
def _free_gpu(count: int) -> Iterator[int]:
    """The first GPU whose lock is free; where all are held, the one with most free memory."""
    folder = Path(tempfile.gettempdir()) / f"fcn-gpu-locks-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    for index in range(count):
        physical = visible[index] if index < len(visible) and visible[index] else str(index)
        handle = (folder / physical.replace("/", "_")).open("w")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.close()
            continue
        try:
            yield index
        finally:
            handle.close()
        return
    yield max(range(count), key=lambda i: torch.cuda.mem_get_info(i)[0])


@contextmanager
def tf32(on: bool) -> Iterator[None]:
    """Whether float32 convolutions may round to TF32; what held before holds again after.

    PyTorch keeps it for the whole process and looks when a pass runs: a backward pass needs it too.
    Products of matrices, which upsampling is made of, are never rounded.
    """
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = convolutions.allow_tf32, products.allow_tf32
    convolutions.allow_tf32, products.allow_tf32 = on, False
    try:
        yield
    finally:
        convolutions.allow_tf32, products.allow_tf32 = before


@contextmanager
def deterministic(on: bool) -> Iterator[None]:
    """Whether sums keep to one order; what held before holds again after.

    Where PyTorch has no such operation for a GPU it takes another one and warns.
    """
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    if on:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS's condition for it
        torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)


@contextmanager
def autocast(precision: str, device: torch.device) -> Iterator[None]:
    """A forward pass in ``fp32``, ``tf32`` or ``bf16`` (weights stay fp32); ``reference`` is fp32.

    The backward pass belongs outside of it, but inside ``tf32``.
    """
    reduced = torch.autocast(
        device.type,
        torch.bfloat16,
        enabled=precision == "bf16",
        cache_enabled=device.type != "cuda",  # a graph would read weights that the cache dropped
    )
    with tf32(precision == "tf32"), reduced:
        yield
