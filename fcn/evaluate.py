"""Score a net on a split: one confusion matrix, per-image counts, predictions as COCO RLE."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fcn.data.dataset import JoinedSet, SegmentationSet, shared_images
from fcn.data.stream import loader
from fcn.device import autocast
from fcn.errors import UserError
from fcn.files import atomic_file, digest, write_json
from fcn.graphs import Graphs, on_stream
from fcn.inputs import input_names, net_input
from fcn.metrics import ConfusionMatrix
from fcn.nets import FCN
from fcn.nets.dense import dense_scores
from fcn.nets.padded import for_inference
from fcn.progress import bar
from fcn.provenance import Clock
from fcn.rle import encode_prediction, write_predictions
from fcn.spec import Run
from fcn.weights.trained import load_trained


@dataclass
class Evaluation:
    """The counts of every label set, and the seconds that inference and loading took."""

    matrices: dict[str, ConfusionMatrix]
    ids: list[str]
    seconds: float


def score_maps(net: FCN, run: Run, x: Tensor) -> dict[str, Tensor]:
    """(N, classes, H, W) scores of a batch by label set, as the run infers: ``inference``."""
    dense = run.config.get("inference")
    return net(x) if dense is None else dense_scores(net, x, **dense)


def _labels(net: FCN, run: Run, x: Tensor) -> dict[str, Tensor]:
    """(N, H, W) uint8 labels of a batch by label set: the argmax of the scores, at image size."""
    scores = score_maps(net, run, x)
    # On the CPU argmax over the channels of contiguous scores takes three times as long.
    return {task: scores[task].max(1).indices.to(torch.uint8) for task in run.labels}


def inference_net(net: FCN, run: Run, precision: str) -> FCN:
    """``net``, whose weights stay as they are, as a run labels images with it."""
    dense = "inference" in run.config and precision != "reference"
    return net if dense else for_inference(net, precision)


class BatchLabeller:
    """Labels batches of a data set as a run infers, with weights that stay as they are.

    To be called under ``autocast`` and, on a GPU, ``on_stream``; the labels (N, H, W) uint8 by
    label set are good until the next call.
    """

    def __init__(self, net: FCN, run: Run, device: torch.device, precision: str) -> None:
        self.run, self.device = run, device
        self._labels = Graphs(partial(_labels, inference_net(net, run, precision), run), device)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        return self._labels(net_input(batch, self.run, self.device, "test"))


def evaluate(
    net: FCN,
    dataset: SegmentationSet,
    run: Run,
    device: torch.device,
    precision: str,
    workers: int = 0,
    keep: Callable[[str, dict[str, np.ndarray]], None] | None = None,
    progress: Callable[[Iterator[Any]], Iterable[Any]] = lambda batches: batches,
) -> Evaluation:
    """Label every image of ``dataset`` at its own size and count.

    Args:
        keep: called with an image's id and its (H, W) uint8 labels by label set, in order, in
            another thread: beside the next image.
    """
    matrices = {task: ConfusionMatrix(len(dataset.classes[task]), device) for task in run.labels}
    training = net.training
    net.eval()
    started = time.perf_counter()
    groups = [[i] for i in range(len(dataset))]
    labeller = BatchLabeller(net, run, device, precision)
    kept: Future[None] | None = None
    with (
        torch.inference_mode(),
        on_stream(device),
        autocast(precision, device),
        ThreadPoolExecutor(1) as pool,
    ):
        for batch in progress(loader(dataset, groups, workers, device.type == "cuda")):
            labels = labeller(batch)
            for task, matrix in matrices.items():
                matrix.update(batch[task].to(device, non_blocking=True), labels[task])
            if keep:
                found = {task: p[0].cpu().numpy() for task, p in labels.items()}
                if kept:
                    kept.result()
                kept = pool.submit(keep, batch["id"][0], found)
        if kept:
            kept.result()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    net.train(training)
    return Evaluation(matrices, dataset.ids, time.perf_counter() - started)


def load_set(data_dir: Path, run: Run, part: str, cache_bytes: int = 0) -> SegmentationSet:
    """What a run trains on (``part`` train) or is scored on (test): its inputs and label sets.

    ``cache_bytes`` bounds the memory for decoded images, of all its sets together. A split without
    images is a UserError.
    """
    labels = list(run.labels)
    if "mask" in run.config and "semantic" not in labels:
        labels.append("semantic")
    sets = []
    references = run.training_sets if part == "train" else [run.config["test"]]
    share = cache_bytes // len(references)
    for reference in references:
        folder = data_dir / "prepared" / reference["dataset"]
        found = SegmentationSet(folder, reference["split"], input_names(run), labels, share)
        if not len(found):
            raise UserError(f"{folder}: the split {found.split} has no image; choose another.")
        sets.append(found)
    return sets[0] if len(sets) == 1 else JoinedSet(sets)


def seen_in_training(trained_on: list[dict[str, str]], run: Run, data_dir: Path) -> list[str]:
    """Sentences on test images of a run that are among its training images, where these are here.

    ``trained_on``: data set and split of each part of them (train.json).
    """
    scored = load_set(data_dir, run, "test")
    notes = []
    for part in trained_on:
        folder = data_dir / "prepared" / part["dataset"]
        if (folder / "dataset.json").exists():
            trained = SegmentationSet(folder, part["split"], scored.inputs[:1], labels=())
            if count := shared_images(trained, scored):
                notes.append(
                    f"{count} of the {len(scored)} test images are among the training images "
                    f"({part['dataset']}/{part['split']})."
                )
    return notes


def check_sizes(net: FCN, dataset: SegmentationSet) -> None:
    """UserError naming the first image that is too small for ``net``."""
    for name, size in zip(dataset.ids, dataset.sizes, strict=True):
        if min(size) < net.least:
            raise UserError(
                f"{dataset.folder}: image {name} has {size[1]}x{size[0]} pixels, the net needs "
                f"{net.least} a side; leave it out of the split or use padding: reference."
            )


def evaluate_run(
    run: Run,
    seed: int,
    *,
    device: torch.device,
    data_dir: Path,
    results: Path,
    workers: int = 0,
) -> dict[str, Any]:
    """Score a trained run on its test split; writes metrics.json, per_image.npz and predictions.

    Raises:
        UserError: the weights were trained with another configuration, or are not those of
            train.json.
    """
    clock = Clock(device)
    folder = run.directory(results, seed)
    net, _, trained = load_trained(run, seed, results, device)
    weights = folder / "model.safetensors"
    if digest(weights) != trained["weights_sha256"]:
        raise UserError(
            f"{weights}: not the weights that train.json beside it tells of; delete train.json and "
            "train again, or bring back both."
        )
    dataset = load_set(data_dir, run, "test")
    check_sizes(net, dataset)
    seen = seen_in_training(trained.get("trained_on", []), run, data_dir)
    for note in seen:
        print(f"warning: {run.id}: {note}", file=sys.stderr)
    entries: dict[str, list[dict[str, Any]]] = {task: [] for task in run.labels}

    def keep(name: str, labels: dict[str, np.ndarray]) -> None:
        for task, predicted in labels.items():
            entries[task].extend(encode_prediction(name, predicted))

    done = evaluate(
        net,
        dataset,
        run,
        device,
        run.precision,
        workers,
        keep,
        progress=lambda batches: bar(
            batches, total=len(dataset), unit="img", desc=f"score {run.id} seed {seed}"
        ),
    )
    counts = {
        f"{task}_{name}": values
        for task, matrix in done.matrices.items()
        for name, values in matrix.per_image().items()
    }
    with atomic_file(folder / "per_image.npz") as temporary, temporary.open("wb") as handle:
        np.savez_compressed(handle, ids=np.array(dataset.ids), **counts)  # type: ignore[arg-type]
    images = [
        {"id": name, "height": height, "width": width}
        for name, (height, width) in zip(dataset.ids, dataset.sizes, strict=True)
    ]
    for task, found in entries.items():
        mark = "" if task == run.labels[0] else f"-{task}"
        categories = [{"id": i, "name": name} for i, name in enumerate(dataset.classes[task])]
        write_predictions(folder / f"predictions{mark}.json.gz", found, images, categories)
    archives = trained["provenance"]["archives"]
    archives = archives + [
        a
        for a in dataset.info["archives"]
        if a["name"] not in {known["name"] for known in archives}
    ]
    provenance = clock.provenance(precision=run.precision, seed=seed, archives=archives)
    result = {
        "run": run.name,
        "dataset": run.dataset,
        "split": run.split,
        "seed": seed,
        "images": len(dataset),
        "subset": bool(dataset.info["subset"] or trained["subset"]),
        "notes": [*dataset.info["notes"], *seen],
        "tasks": {
            task: _metrics(matrix, dataset.classes[task]) for task, matrix in done.matrices.items()
        },
        "seconds": round(done.seconds, 3),
        "weights_sha256": trained["weights_sha256"],
        "config": run.config,
        "config_hash": run.hash,
        "provenance": provenance,
    }
    write_json(folder / "metrics.json", result)
    return result


def _metrics(matrix: ConfusionMatrix, names: list[str]) -> dict[str, Any]:
    found = matrix.scores()
    return {
        "pixel_accuracy": found.pixel_accuracy,
        "mean_accuracy": found.mean_accuracy,
        "mean_iu": found.mean_iu,
        "frequency_weighted_iu": found.frequency_weighted_iu,
        "per_class_iu": dict(zip(names, found.per_class_iu, strict=True)),
        "confusion": matrix.matrix.cpu().tolist(),
    }
