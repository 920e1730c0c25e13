"""Which device a stage computes on, and with what arithmetic."""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch

from fcn.errors import UserError


@contextmanager
def chosen(name: str = "auto") -> Iterator[torch.device]:
    """The device of a job: ``cpu``, ``cuda``, ``cuda:N`` or ``auto`` (a GPU where there is one).

    On a machine with several GPUs ``auto`` and ``cuda`` take one that no other job of this user
    holds (Snakemake assigns none): each holder locks a file until it ends.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        yield torch.device("cpu")
        return
    if name not in ("auto", "cuda") and not name.startswith("cuda:"):
        raise UserError(f"device={name}: choose auto, cpu, cuda or cuda:N.")
    if not torch.cuda.is_available():
        raise UserError(f"device={name}: PyTorch finds no CUDA GPU here; use device=cpu.")
    count = torch.cuda.device_count()
    if ":" in name:
        index = name.split(":")[1]
        if not index.isdigit() or int(index) >= count:
            raise UserError(f"device={name}: this machine has cuda:0 to cuda:{count - 1}.")
        yield torch.device(name)
        return
    with _free_gpu(count) as found:
        yield torch.device("cuda", found)


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


def arithmetic(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """The context in which layers compute: ``fp32``, ``tf32`` or ``bf16`` (weights stay fp32)."""
    tf32 = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()
