"""A net's weights under the names of its layers (``conv1_1.weight``), in safetensors files."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fcn.errors import UserError
from fcn.files import atomic_file
from fcn.nets.upsample import Upsample


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by layer name: the last part of the module's path and the tensor's."""
    return {".".join(key.split(".")[-2:]): value for key, value in module.state_dict().items()}


def load_named(
    module: nn.Module, tensors: dict[str, Tensor], source: str, partial: bool = False
) -> list[str]:
    """Copy ``tensors`` into ``module``; the names that got nothing are returned.

    With ``partial`` a tensor without a partner on either side is left alone; without it, it is a
    UserError. A shape that differs or a value that is not finite is always one.
    """
    own = named_tensors(module)
    missing = [name for name in own if name not in tensors]
    extra = [name for name in tensors if name not in own]
    if not partial and (missing or extra):
        problem = (
            f"lacks {', '.join(missing[:4])}" if missing else f"has also {', '.join(extra[:4])}"
        )
        raise UserError(f"{source}: these are weights of another net: the file {problem}.")
    with torch.no_grad():
        for name, target in own.items():
            if name not in tensors:
                continue
            if tensors[name].shape != target.shape:
                raise UserError(
                    f"{source}: {name} has shape {tuple(tensors[name].shape)}, "
                    f"the net needs {tuple(target.shape)}."
                )
            if not tensors[name].isfinite().all():
                raise UserError(
                    f"{source}: the weights {name} are not all finite; train again, or give others."
                )
            target.copy_(tensors[name])
    settle(module)
    return missing


def settle(module: nn.Module) -> None:
    """Let fixed upsampling that is not bilinear (loaded weights) be computed from its weights."""
    for layer in module.modules():
        if isinstance(layer, Upsample):
            layer.settle()


def save(path: Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Write tensors with a JSON description in the header, whole or not at all."""
    whole = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    with atomic_file(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # as the umask has it: safetensors lets nobody else read
        try:
            save_file(whole, temporary, {"fcn": json.dumps(about, sort_keys=True)})
        except SafetensorError as error:
            raise UserError(f"{path}: cannot be written ({error}).") from None
        temporary.chmod(mode)


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and description of a safetensors file; a UserError names a broken file."""
    if not path.exists():
        raise UserError(f"{path}: no such file.")
    try:
        with safe_open(path, framework="pt") as handle:
            tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118
            about = json.loads((handle.metadata() or {}).get("fcn", "{}"))
        if not isinstance(about, dict):
            raise ValueError("its description is no mapping")
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({error}).") from None
    return tensors, about
