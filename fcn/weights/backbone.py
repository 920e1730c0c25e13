"""Backbones: released classifier weights brought into our layer names, and put into nets."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fcn.errors import UserError
from fcn.files import atomic_dir, read_json, write_json
from fcn.nets.fcn import FCN, Head
from fcn.nets.trunks import CHANNELS, Trunk, build_trunk
from fcn.options import NET_DEFAULTS
from fcn.spec import fingerprint
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
        "definition": fingerprint(definition),
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
    net: FCN, weights: Any, data_dir: Path, parents: dict[str, Path]
) -> tuple[list[str], list[dict[str, Any]]]:
    """Put the weights that training starts from into ``net``.

    Args:
        weights: of the run's configuration: ``none``, backbone, run, runs or released.
        parents: ``model.safetensors`` of the runs that this one starts from: under ``run`` the
            one, or under the name of an input the one that its stream starts from.

    Returns:
        the trunk layers that kept their random start, and the archives that the weights come from.
    """
    if weights == "none":
        return [], []
    if "run" in weights:
        tensors, about = _parent(parents["run"], weights["hash"])
        _continue(net, tensors, str(parents["run"]), {name: name for name in named_tensors(net)})
        return [], about.get("archives", [])
    if "runs" in weights:
        return [], _start_streams(net, weights, parents)
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
    joined = len(net.streams) == 1
    left = [
        layer
        for inputs, trunk in zip(
            [net.inputs] if joined else [[name] for name in net.inputs], net.streams, strict=True
        )
        for layer in _into_trunk(trunk, inputs, tensors, str(folder))
    ]
    return left, _archives(about)


def _into_trunk(
    trunk: Trunk, inputs: list[str], tensors: dict[str, Tensor], source: str
) -> list[str]:
    """Load a classifier into the trunk that reads ``inputs``; the layers that it leaves random.

    fc6 stays random where the net's has another size than the classifier's (CVPR section 4.2).
    """
    own = named_tensors(trunk)
    found = {}
    for key in own:
        layer, kind = key.rsplit(".", 1)
        given = tensors.get(f"{trunk.name_in_backbone(layer)}.{kind}")
        if given is None:
            continue
        if layer == trunk.first and kind == "weight":
            given = first_filters(given, inputs)
        found[key] = given
    fc6 = f"fc6{trunk.suffix}"
    weight = found.get(f"{fc6}.weight")
    if weight is not None and weight.shape[2:] != own[f"{fc6}.weight"].shape[2:]:
        found = {key: value for key, value in found.items() if not key.startswith(f"{fc6}.")}
    missing = load_named(trunk, found, source, partial=True)
    return sorted({name.rsplit(".", 1)[0] for name in missing})


def first_filters(weight: Tensor, inputs: list[str]) -> Tensor:
    """The classifier's first filters (out, 3, k, k) for the joined channels of ``inputs``.

    The first input of three channels gets them as they are, every other channel their mean over
    the colours (the authors' nyud-fcn32s-color-d, solve.py).
    """
    mean = weight.mean(1, keepdim=True)
    parts = []
    given = False
    for name in inputs:
        if CHANNELS[name] == weight.shape[1] and not given:
            parts.append(weight)
            given = True
        else:
            parts.append(mean.expand(-1, CHANNELS[name], -1, -1))
    return torch.cat(parts, dim=1)


def _parent(path: Path, fingerprint: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A parent's weights, if they are of the configuration that the suite has now."""
    tensors, about = read(path)
    if about.get("config_hash") != fingerprint:
        raise UserError(
            f"{path}: trained with configuration {about.get('config_hash')}, the suite now "
            f"has {fingerprint}; train it again."
        )
    return tensors, about


def _continue(net: FCN, tensors: dict[str, Tensor], source: str, names: dict[str, str]) -> None:
    """Copy a parent's weights; ``names``: of ours that it is to fill -> what the parent calls it.

    What it lacks in score layers, and upsampling that it lacks or has for another factor, keeps its
    start; a trunk layer that it lacks is a UserError.
    """
    found = {own: tensors[theirs] for own, theirs in names.items() if theirs in tensors}
    heads = named_tensors(net.heads)
    lost = [own for own in names if own not in found and own not in heads]
    if lost:
        raise UserError(f"{source}: lacks {', '.join(lost[:4])}, which the net needs.")
    other = [
        own
        for own, value in found.items()
        if own.startswith("upscore") and value.shape[2:] != heads[own].shape[2:]
    ]
    load_named(net, {own: v for own, v in found.items() if own not in other}, source, partial=True)


def _start_streams(
    net: FCN, weights: dict[str, Any], parents: dict[str, Path]
) -> list[dict[str, Any]]:
    """Each stream of a late fusion from its run: trunk and score layers; the archives of all."""
    runs = weights["runs"]
    if len(net.streams) == 1 or set(runs) != set(net.inputs):
        raise UserError(
            f"weights.runs: a run for each stream of a late fusion is needed; there are runs for "
            f"{', '.join(runs)}, the net reads {', '.join(net.inputs)}"
            f"{' in one stream' * (len(net.streams) == 1)}."
        )
    archives: list[dict[str, Any]] = []
    for name, trunk in zip(net.inputs, net.streams, strict=True):
        tensors, about = _parent(parents[name], weights["hashes"][name])
        plain = {layer: trunk.name_in_backbone(layer) for layer in _layers(trunk)}
        for head in net.heads.values():
            assert isinstance(head, Head)
            for score in head.scores:
                plain[score + trunk.suffix + head.suffix] = score + head.suffix
        names = {
            f"{ours}.{kind}": f"{theirs}.{kind}"
            for ours, theirs in plain.items()
            for kind in ("weight", "bias")
        }
        _continue(net, tensors, str(parents[name]), names)
        archives += [a for a in about.get("archives", []) if a not in archives]
    return archives


def _archives(about: dict[str, Any]) -> list[dict[str, Any]]:
    return [about["archive"]] if about.get("archive") else []
