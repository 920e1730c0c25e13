"""Backbones: released classifier weights brought into our layer names, and put into nets."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fcn.errors import UserError
from fcn.files import atomic_dir, read_json, write_json
from fcn.nets.fcn import FCN
from fcn.nets.trunks import build_trunk
from fcn.spec import NET_DEFAULTS
from fcn.weights import caffemodel
from fcn.weights.named import load_named, named_tensors, read, save, settle


def convert(name: str, definition: dict[str, Any], data_dir: Path) -> dict[str, Any]:
    """Write ``backbones/NAME``: ``weights.safetensors`` and ``backbone.json``.

    fc6 and fc7 keep their numbers and take the shape of convolutions (section 3.1). Layers of the
    trunk that the file lacks, and layers of the file that the trunk does not have (the classifier,
    auxiliary heads), are named in ``backbone.json``.
    """
    archive = data_dir / "archives" / definition["archive"]
    sidecar = read_json(archive.with_name(archive.name + ".json"))
    net = {**NET_DEFAULTS, "architecture": definition["architecture"]}
    trunk = build_trunk(net, channels=3)
    if definition["format"] == "caffe":
        report = caffemodel.load_into(trunk.layers, caffemodel.read(archive))
        missing, unused = report.missing_in_file, report.unused_in_file
    elif definition["format"] == "torchvision":
        from fcn.weights.torchvision import load_torchvision

        tensors = load_torchvision(archive, definition["architecture"].removesuffix("-torchvision"))
        absent = load_named(trunk.layers, tensors, str(archive), partial=True)
        missing = sorted({key.rsplit(".", 1)[0] for key in absent})
        unused = sorted({k.rsplit(".", 1)[0] for k in tensors} - set(_layers(trunk.layers)))
    else:
        raise UserError(
            f"backbone {name}: format {definition['format']!r} is not caffe or torchvision."
        )
    loaded = {
        k: v for k, v in named_tensors(trunk.layers).items() if k.rsplit(".", 1)[0] not in missing
    }
    if not loaded:
        raise UserError(f"{archive}: none of its layers belongs to {definition['architecture']}.")
    about = {
        "name": name,
        "architecture": definition["architecture"],
        "input": definition["input"],
        "archive": sidecar,
        "missing_layers": missing,
        "unused_layers": unused,
    }
    _write(data_dir / "backbones" / name, loaded, about)
    return about


def _layers(module: nn.Module) -> list[str]:
    return [key.rsplit(".", 1)[0] for key in named_tensors(module)]


def _write(folder: Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    with atomic_dir(folder) as temporary:
        save(temporary / "weights.safetensors", tensors, about)
        write_json(temporary / "backbone.json", about)


def initialise(net: FCN, seed: int) -> None:
    """Random trunk weights (He et al. 2015) and zero biases; score layers keep their own start."""
    generator = torch.Generator().manual_seed(seed)
    for module in net.trunk.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]


def start(
    net: FCN, weights: Any, data_dir: Path, parent: Path | None
) -> tuple[list[str], list[dict[str, Any]]]:
    """Put the weights that training starts from into ``net``.

    Args:
        weights: of the run's configuration: ``none``, backbone, run or released.
        parent: ``model.safetensors`` of the run that this one starts from.

    Returns:
        the trunk layers that kept their random start, and the archives that the weights come from.
    """
    if weights == "none":
        return [], []
    if "run" in weights:
        assert parent is not None
        tensors, about = read(parent)
        if about.get("config_hash") != weights["hash"]:
            raise UserError(
                f"{parent}: trained with configuration {about.get('config_hash')}, the suite now "
                f"has {weights['hash']}; train it again."
            )
        scores = {n for n in named_tensors(net.heads) if n not in tensors}
        missing = load_named(
            net,
            {k: v for k, v in tensors.items() if k in named_tensors(net)},
            str(parent),
            partial=True,
        )
        lost = [name for name in missing if name not in scores]
        if lost:
            raise UserError(f"{parent}: lacks {', '.join(lost[:4])}, which the net needs.")
        return [], about.get("archives", [])
    if "released" in weights:
        archive = data_dir / "archives" / weights["archive"]
        report = caffemodel.load_into(net, caffemodel.read(archive))
        settle(net)
        absent = [name for name in report.missing_in_file if not name.startswith("upscore")]
        if absent:
            raise UserError(f"{archive}: lacks the layers {', '.join(absent)} of this net.")
        return [], [read_json(archive.with_name(archive.name + ".json"))]
    folder = data_dir / "backbones" / weights["backbone"]
    about = read_json(folder / "backbone.json")
    tensors, _ = read(folder / "weights.safetensors")
    own = named_tensors(net.trunk)
    missing = load_named(
        net.trunk, {k: v for k, v in tensors.items() if k in own}, str(folder), partial=True
    )
    return sorted({name.rsplit(".", 1)[0] for name in missing}), _archives(about)


def _archives(about: dict[str, Any]) -> list[dict[str, Any]]:
    return [about["archive"]] if about.get("archive") else []
