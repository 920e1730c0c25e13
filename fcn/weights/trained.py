"""The net of a trained run, from the run's folder."""

from pathlib import Path
from typing import Any

import torch

from fcn.errors import UserError
from fcn.files import read_object
from fcn.nets import FCN, build
from fcn.spec import Run
from fcn.weights.named import load_named, read


def load_trained(
    run: Run, seed: int, results: Path, device: torch.device
) -> tuple[FCN, dict[str, list[str]], dict[str, Any]]:
    """A run's net with the weights of ``seed``, channels last on ``device``.

    Returns:
        the net, the names of its classes per label set, and train.json.

    Raises:
        UserError: not trained, or with another configuration than the suite has now.
    """
    folder = run.directory(results, seed)
    record = read_object(folder / "train.json", "config_hash", "weights_sha256", "subset")
    if record["config_hash"] != run.hash:
        raise UserError(
            f"{folder}: trained with configuration {record['config_hash']}, the suite now has "
            f"{run.hash}; train it again."
        )
    path = folder / "model.safetensors"
    tensors, about = read(path)
    net = build(run.config["net"], {task: len(about["classes"][task]) for task in run.labels})
    load_named(net, tensors, str(path))
    net.to(device).to(memory_format=torch.channels_last)
    return net, about["classes"], record
