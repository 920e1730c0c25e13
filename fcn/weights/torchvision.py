"""torchvision's classifier weights under the Caffe layer names of our trunks."""

import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from fcn.errors import UserError

BATCH_NORM_EPS = 1e-3  # of torchvision's GoogLeNet (BasicConv2d)
_STATISTICS = ("weight", "bias", "running_mean", "running_var")


def _vgg(convolutions: tuple[int, ...]) -> Iterator[tuple[str, str]]:
    index = 0
    for block, count in enumerate(convolutions, start=1):
        for i in range(1, count + 1):
            yield f"features.{index}", f"conv{block}_{i}"
            index += 2  # the convolution and its ReLU
        index += 1  # the pooling
    yield from {"classifier.0": "fc6", "classifier.3": "fc7", "classifier.6": "fc8"}.items()


def _alexnet() -> Iterator[tuple[str, str]]:
    for number, index in enumerate((0, 3, 6, 8, 10), start=1):
        yield f"features.{index}", f"conv{number}"
    yield from {"classifier.1": "fc6", "classifier.4": "fc7", "classifier.6": "fc8"}.items()


def _googlenet() -> Iterator[tuple[str, str]]:
    yield from {"conv1": "conv1/7x7_s2", "conv2": "conv2/3x3_reduce", "conv3": "conv2/3x3"}.items()
    branches = {
        "branch1": "1x1",
        "branch2.0": "3x3_reduce",
        "branch2.1": "3x3",
        "branch3.0": "5x5_reduce",
        "branch3.1": "5x5",  # 3x3 in torchvision
        "branch4.1": "pool_proj",
    }
    for module in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b"):
        for theirs, ours in branches.items():
            yield f"inception{module}.{theirs}", f"inception_{module}/{ours}"
    yield "fc", "loss3/classifier"


def _auxiliary() -> Iterator[tuple[str, str]]:
    for head in ("1", "2"):
        for theirs, ours in {"conv": "conv", "fc1": "fc", "fc2": "classifier"}.items():
            yield f"aux{head}.{theirs}", f"loss{head}/{ours}"


# Layers by name (theirs, ours), and the side of the feature map that fc6 sees as a vector.
_ARCHITECTURES = {
    "vgg16": (dict(_vgg((2, 2, 3, 3, 3))), 7),
    "vgg19": (dict(_vgg((2, 2, 4, 4, 4))), 7),
    "alexnet": (dict(_alexnet()), 6),
    "googlenet": (dict(_googlenet()), 1),
}
_ALIASES = {"alexnet-owt": "alexnet", "googlenet-torchvision": "googlenet"}  # names of our trunks


def _state_dict(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}).") from None
    except (
        pickle.UnpicklingError,
        zipfile.BadZipFile,
        RuntimeError,
        EOFError,
        ValueError,
    ) as error:
        reason = str(error).split("\n")[0]
        raise UserError(
            f"{path}: not a whole PyTorch file of weights ({reason}); download it again."
        ) from None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"{path}: not a state dict (a dict of tensors by name).")
    return state


def _folded(weight: Tensor, norm: list[Tensor]) -> tuple[Tensor, Tensor]:
    """A convolution without bias and its batch normalisation as one convolution with a bias."""
    gamma, beta, mean, variance = (tensor.double() for tensor in norm)
    scale = gamma / (variance + BATCH_NORM_EPS).sqrt()
    folded = weight.double() * scale.view(-1, 1, 1, 1)
    return folded.float(), (beta - mean * scale).float()


def _as_convolution(weight: Tensor, side: int, source: str) -> Tensor:
    """(out, C side side) -> (out, C, side, side): torchvision flattens channels first, as Caffe."""
    if weight.shape[1] % side**2:
        raise UserError(f"{source}: {tuple(weight.shape)} weights do not fit {side}x{side} maps.")
    return weight.reshape(len(weight), -1, side, side)


def load_torchvision(path: Path, architecture: str) -> dict[str, Tensor]:
    """Weights of a torchvision classifier: ``LAYER.weight`` and ``LAYER.bias``, float32.

    Args:
        path: a state dict saved by ``torch.save`` (read without running pickled code).
        architecture: ``vgg16``, ``vgg19``, ``alexnet`` (``alexnet-owt``) or ``googlenet``
            (``googlenet-torchvision``).

    Returns:
        Caffe's layer names: ``conv1_1``, ``fc6``, ``inception_3a/5x5``, .. . Fully connected layers
        are convolutions (out, in, k, k), fc6 of the size of its input; the batch normalisation of
        GoogLeNet is folded into weight and bias. The classifier (``fc8``, ``loss3/classifier``) and
        GoogLeNet's auxiliary heads (``loss1/..``, ``loss2/..``) are included if they are there.
        The first convolution takes RGB.

    Raises:
        UserError: not a state dict, of another architecture, or with values that are not finite
            (the classifier of torchvision's ``IMAGENET1K_FEATURES`` weights is NaN).
    """
    try:
        layers, side = _ARCHITECTURES[_ALIASES.get(architecture, architecture)]
    except KeyError:
        known = ", ".join(_ARCHITECTURES)
        raise UserError(
            f"architecture {architecture!r}: torchvision weights are read for {known}."
        ) from None
    state = _state_dict(path)
    names = dict(layers)
    if "googlenet" in architecture and any(key.startswith("aux") for key in state):
        names |= dict(_auxiliary())
    left = {key for key in state if not key.endswith("num_batches_tracked")}

    def take(key: str) -> Tensor:
        if key not in state:
            raise UserError(f"{path}: lacks {key}: not weights of torchvision's {architecture}.")
        if not torch.isfinite(state[key]).all():
            raise UserError(
                f"{path}: {key} is not finite; take weights with a trained classifier "
                "(IMAGENET1K_V1)."
            )
        left.discard(key)
        return state[key].float()

    tensors: dict[str, Tensor] = {}
    for theirs, ours in names.items():
        if f"{theirs}.conv.weight" in state:
            norm = [take(f"{theirs}.bn.{part}") for part in _STATISTICS]
            weight, bias = _folded(take(f"{theirs}.conv.weight"), norm)
        else:
            weight, bias = take(f"{theirs}.weight"), take(f"{theirs}.bias")
            if weight.ndim == 2:
                kernel = 4 if ours in ("loss1/fc", "loss2/fc") else side if ours == "fc6" else 1
                weight = _as_convolution(weight, kernel, f"{path}: {theirs}")
        tensors[f"{ours}.weight"], tensors[f"{ours}.bias"] = weight, bias
    if left:
        shown = ", ".join(sorted(left)[:3])
        raise UserError(f"{path}: holds {shown} too: not weights of torchvision's {architecture}.")
    return tensors
