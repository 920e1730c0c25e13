"""Training: one loop for every recipe, resumed to the bit, without waiting for the device."""

import csv
import hashlib
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fcn.data.dataset import SegmentationSet
from fcn.data.stream import AugmentedSet, groups_of_update, image_order, loader
from fcn.device import autocast, tf32
from fcn.errors import UserError
from fcn.evaluate import check_sizes, evaluate, load_set, seen_in_training
from fcn.files import alone_in, atomic_file, digest, read_json, read_object, write_json
from fcn.graphs import Graphs, on_stream
from fcn.inputs import class_weights, count_pixels, net_input
from fcn.loss import batch_loss
from fcn.nets import FCN, build
from fcn.optim import CaffeSGD, learning_rate
from fcn.options import RECIPE_OPTIONS
from fcn.progress import bar, say
from fcn.provenance import Clock, device_facts
from fcn.spec import Run
from fcn.weights.backbone import initialise, start
from fcn.weights.named import named_tensors, save

LOG_EVERY = 20  # updates; the authors' solvers have display and average_loss 20
CHECKPOINT_SECONDS = 120.0
CACHE_BYTES = 1 << 30  # for decoded images in each process; four times that in all together
DIVERGED = 20.0  # times the loss of chance: a net that does worse than no net at all
LOSS_FIELDS = ("update", "images", "seconds", "loss", "learning_rate")
UNTRAINED: dict[str, Any] = {  # of weights that are taken as they are
    "updates": 0,
    "images": 0,
    "seconds": 0.0,
    "images_per_second": None,
    "loss": None,
    "train_images": 0,
}
VALIDATION_FIELDS = (
    "update",
    "images",
    "seconds",
    "pixel_accuracy",
    "mean_accuracy",
    "mean_iu",
    "frequency_weighted_iu",
)


class Diverged(UserError):
    """The loss is not finite, or stays far above chance; ``loss`` per pixel at ``update``."""

    def __init__(self, message: str, update: int, loss: float) -> None:
        super().__init__(message)
        self.update, self.loss = update, loss


def _diverged_at(losses: list[float], limit: float) -> int | None:
    """Where a training has diverged, of the losses per pixel of updates in a row.

    At the first that is not finite or, if most are above ``limit``, at the first that is: a single
    hard image in a batch of one is no divergence.
    """
    endless = [i for i, loss in enumerate(losses) if not math.isfinite(loss)]
    above = [i for i, loss in enumerate(losses) if loss > limit]
    found = endless + (above if 2 * len(above) > len(losses) else [])
    return min(found, default=None)


def chance_loss(loss: str, classes: int) -> float:
    """The loss per pixel of a net that scores all classes 0."""
    return classes * math.log(2) if loss == "sigmoid" else math.log(max(2, classes))


def origin(net: FCN, dataset: SegmentationSet) -> str:
    """Digest of what a training starts from: the weights of ``net``, and the images."""
    found = hashlib.sha256(str(dataset.info.get("contents")).encode())
    for name, tensor in sorted(net.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


class Training:
    """The state of one training: net, optimiser, position, log. Saved and restored whole."""

    def __init__(
        self,
        run: Run,
        seed: int,
        net: FCN,
        dataset: SegmentationSet,
        device: torch.device,
        checkpoint: Path,
    ) -> None:
        recipe = {**RECIPE_OPTIONS, **run.config["recipe"]}
        self.run, self.seed, self.net, self.dataset, self.device = run, seed, net, dataset, device
        self.recipe = recipe
        self.checkpoint = checkpoint
        self.origin = origin(net, dataset)
        self.batch = max(1, round(recipe["batch"] / recipe["patch_keep"]))
        # As many updates as the images allow at p = 1: Figure 5 compares per update.
        self.updates = max(1, recipe["images"] // recipe["batch"])
        self.optimizer = CaffeSGD(net, recipe)
        undo = self.optimizer.clear
        self.whole = Graphs(self._whole, device, undo)  # an update of one group of images
        self.part = Graphs(self._part, device, undo)  # one of several groups
        self.update = 0
        self.seconds = 0.0
        self.waited = 0.0  # seconds of them in which the loop waited for images
        self.devices = [device_facts(device)["name"]]  # on which they passed
        self.rows: list[dict[str, Any]] = []
        self.validation: list[dict[str, Any]] = []
        order = image_order(len(dataset), self.updates * self.batch, recipe["sampling"], seed)
        cells = net.head(run.labels[0]).cells
        self.stream = AugmentedSet(
            dataset,
            order,
            seed,
            recipe["mirror"],
            recipe["jitter"],
            recipe["patch_keep"],
            (int(cells.stride), float(cells.start)),
            recipe["scale"],
            recipe["canvas"],
        )
        sizes = [self.stream.size(position) for position in range(len(order))]
        for position, size in enumerate(sizes):  # as scaled; check_sizes knows the images alone
            if min(size) < net.least:
                raise UserError(
                    f"{dataset.folder}: image {dataset.ids[order[position]]} scaled to "
                    f"{size[1]}x{size[0]} pixels, the net needs {net.least} a side; raise "
                    "recipe.scale, or use padding: reference."
                )
        self.groups = [
            groups_of_update(positions, sizes[positions.start : positions.stop])
            for positions in (
                range(u * self.batch, (u + 1) * self.batch) for u in range(self.updates)
            )
        ]
        self.class_weights: dict[str, Tensor] = {}
        if recipe["class_balance"]:
            for task in run.labels:
                maps = (dataset[i][task] for i in range(len(dataset)))
                counts = count_pixels(maps, len(dataset.classes[task]))
                self.class_weights[task] = class_weights(counts).to(device)
        classes = max(len(names) for names in dataset.classes.values())
        heaviest = [float(weights.max()) for weights in self.class_weights.values()]
        self.limit = DIVERGED * chance_loss(recipe["loss"], classes) * max([1.0, *heaviest])
        # Of the updates since the last row of the log: loss and valid pixels, kept on the device.
        self.losses = torch.zeros(LOG_EVERY, 2, dtype=torch.float64, device=device)

    def state(self) -> dict[str, Any]:
        cuda = self.device.type == "cuda"
        return {
            "origin": self.origin,
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "update": self.update,
            "seconds": self.seconds,
            "waited": self.waited,
            "devices": self.devices,
            "rows": self.rows,
            "validation": self.validation,
            "losses": self.losses,
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self.device) if cuda else None,
        }

    def save_checkpoint(self) -> None:
        try:
            with atomic_file(self.checkpoint) as temporary:
                torch.save(self.state(), temporary)
        except RuntimeError as error:  # how PyTorch says that the disk is full
            others = ("CUDA", "DataLoader worker")  # of a step before, or of a process beside
            if isinstance(error, torch.OutOfMemoryError) or any(w in str(error) for w in others):
                raise
            reason = str(error).split("\n")[0]
            raise UserError(
                f"{self.checkpoint}: cannot be written ({reason}); is the disk full?"
            ) from None

    def restore(self) -> bool:
        """Continue from the checkpoint of the same configuration, if there is one.

        One that began with other weights or on other images is passed over: a run is of one kind.
        """
        if not self.checkpoint.exists():
            return False
        try:
            state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        except Exception as error:
            raise UserError(
                f"{self.checkpoint}: not a readable checkpoint "
                f"({str(error) or type(error).__name__}); if the file is damaged, "
                "delete it to start anew."
            ) from None
        if state.get("origin", self.origin) != self.origin:  # older ones do not say
            print(
                f"{self.run.id}: {self.checkpoint} began with other weights or on other images; "
                "starting anew",
                file=sys.stderr,
            )
            return False
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.update, self.seconds = state["update"], state["seconds"]
        self.waited = state.get("waited", 0.0)
        before = state.get("devices", [])
        self.devices = before if before[-1:] == self.devices else before + self.devices
        self.rows, self.validation = state["rows"], state["validation"]
        self.losses.copy_(state["losses"])
        torch.set_rng_state(state["rng"].cpu())
        if state["cuda_rng"] is not None:
            torch.cuda.set_rng_state(state["cuda_rng"].cpu(), self.device)
        return True

    def _passes(self, image: Tensor, *truths: Tensor) -> Tensor:
        """Forward and backward of a group of images.

        Returns:
            (2,) float64: its summed loss and its valid pixels.
        """
        with autocast(self.recipe["precision"], self.device):
            scores = self.net(image)
        objective: Tensor | float = 0.0
        seen = torch.zeros(2, dtype=torch.float64, device=self.device)
        for task, truth in zip(self.run.labels, truths, strict=True):
            part, summed, valid = batch_loss(
                scores[task],
                truth,
                self.recipe["loss"],
                self.recipe["normalize"],
                self.class_weights.get(task),
            )
            objective = objective + part
            seen += torch.stack([summed.double(), valid.double()])
        assert isinstance(objective, Tensor)
        (objective / self.batch).backward()
        return seen

    def _whole(self, image: Tensor, *truths: Tensor) -> Tensor:
        seen = self._passes(image, *truths)
        self.optimizer.step()
        return seen

    def _part(self, image: Tensor, *truths: Tensor) -> Tensor:
        seen = self._passes(image, *truths)
        self.optimizer.accumulate()
        return seen

    def step(self, batches: Any) -> None:
        """One update from the groups of images that belong to it."""
        groups = self.groups[self.update]
        self.optimizer.set_rate(learning_rate(self.recipe, self.update, self.updates))
        slot = self.losses[self.update % LOG_EVERY]
        for _ in groups:
            asked = time.perf_counter()
            batch = next(batches)
            self.waited += time.perf_counter() - asked
            image = net_input(batch, self.run, self.device, "train")
            truths = [batch[task].to(self.device, non_blocking=True) for task in self.run.labels]
            slot += (self.whole if len(groups) == 1 else self.part)(image, *truths)
        if len(groups) > 1:
            self.optimizer.step_accumulated()
        self.update += 1

    def log(self, started: float) -> float:
        """Close a row of the loss curve; stops the run where it has diverged.

        Args:
            started: on the clock of ``time.perf_counter``, of a training without pauses.
        """
        window = self.losses.cpu().clone()
        seconds = time.perf_counter() - started  # now the device has done what it was given
        self.losses.zero_()
        done = (self.update - 1) % LOG_EVERY + 1
        per_update = window[:done, 0] / window[:done, 1].clamp(min=1)
        losses = per_update.tolist()
        if (i := _diverged_at(losses, self.limit)) is not None:
            what = f"the loss per pixel was {losses[i]:.4g}"
            raise self._diverged(what, self.update - done + i + 1, losses[i])
        loss = float(window[:done, 0].sum() / window[:done, 1].sum().clamp(min=1))
        self.rows.append(
            {
                "update": self.update,
                "images": self.update * self.batch,
                "seconds": round(seconds, 3),
                "loss": loss,
                "learning_rate": learning_rate(self.recipe, self.update - 1, self.updates),
            }
        )
        return loss

    def check_weights(self) -> None:
        """At the end: the last update is in no loss."""
        if not all(bool(p.isfinite().all()) for p in self.net.parameters()):
            raise self._diverged("weights were not finite", self.update, math.nan)

    def _diverged(self, what: str, update: int, loss: float) -> Diverged:
        last = (
            f"the last good checkpoint is {self.checkpoint}"
            if self.checkpoint.exists()
            else "there is no checkpoint before it"
        )
        return Diverged(
            f"{self.run.id} seed {self.seed}: {what} at update {update} of {self.updates}; "
            f"training diverged. Lower recipe.learning_rate; {last}.",
            update,
            loss,
        )


def write_rows(path: Path, fields: tuple[str, ...], rows: list[dict[str, Any]]) -> None:
    with atomic_file(path) as temporary, temporary.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, fields, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def train(
    run: Run,
    seed: int,
    *,
    device: torch.device,
    data_dir: Path,
    results: Path,
    workers: int = 0,
    stop_after: int | None = None,
) -> dict[str, Any]:
    """Train ``run`` with ``seed`` and write its folder (docs/architecture.md, Results).

    A run without a recipe (released weights) is loaded and written in the same form.

    Args:
        workers: processes that decode images ahead; 0 decodes in this process.
        stop_after: leave a checkpoint and stop after so many updates (tests of resuming).

    Raises:
        Diverged: naming the update; the last good checkpoint is kept, and diverged.json written.
        UserError: another process trains this run with this seed.
    """
    folder = run.directory(results, seed)
    busy = f"{folder}: another process trains {run.id} with seed {seed}; wait for it or stop it."
    with alone_in(folder, busy):
        clock = Clock(device)
        config = run.config
        trained_on = trained_by(run, seed, results)
        for note in seen_in_training(trained_on, run, data_dir):
            print(f"warning: {run.id}: {note}", file=sys.stderr)
        net, info, random_layers, archives = _begin(run, seed, device, data_dir, results)
        rows: list[dict[str, Any]] = []
        validation: list[dict[str, Any]] = []
        numbers: dict[str, Any] = UNTRAINED
        devices: list[str] = []
        if config["recipe"] is not None:
            cache = min(CACHE_BYTES, 4 * CACHE_BYTES // max(1, workers))
            dataset = load_set(data_dir, run, "train", cache)
            check_sizes(net, dataset)
            check_sizes(net, load_set(data_dir, run, "test"))  # not only when it is to be scored
            archives = archives + dataset.info["archives"]
            checkpoint = folder / f"checkpoint-{run.hash}.pt"
            training = Training(run, seed, net, dataset, device, checkpoint)
            (folder / "diverged.json").unlink(missing_ok=True)
            try:
                finished = run_loop(training, data_dir, workers, stop_after)
            except Diverged as error:
                about = clock.provenance(precision=run.precision, seed=seed, archives=archives)
                write_json(folder / "diverged.json", _divergence(training, error, about))
                raise
            if not finished:
                return {}
            rows, validation, numbers = training.rows, training.validation, _numbers(training)
            devices = training.devices
        write_rows(folder / "loss.csv", LOSS_FIELDS, rows)
        write_rows(folder / "validation.csv", VALIDATION_FIELDS, validation)
        provenance = clock.provenance(precision=run.precision, seed=seed, archives=archives)
        if len(devices) > 1:  # its seconds are not of the last one's alone
            provenance["device"]["name"] = ", then ".join(devices)
        about = {
            "net": config["net"],
            "classes": info["classes"],
            "input": config["input"],
            **({"inputs": config["inputs"]} if "inputs" in config else {}),
            "labels": list(run.labels),
            "run": run.id,
            "seed": seed,
            "config_hash": run.hash,
            "archives": provenance["archives"],
        }
        weights = folder / "model.safetensors"
        save(weights, named_tensors(net), about)
        result = {
            "run": run.name,
            "dataset": run.dataset,
            "seed": seed,
            "weights_sha256": digest(weights),
            **numbers,
            "random_layers": random_layers,
            "subset": any(a.get("subset") for a in archives),
            "trained_on": trained_on,
            "peak_memory_bytes": provenance["peak_memory_bytes"],
            "config": config,
            "config_hash": run.hash,
            "provenance": provenance,
        }
        write_json(folder / "train.json", result)
        for pattern in ("checkpoint-*.pt", ".checkpoint-*.tmp"):  # the second of killed processes
            for old in folder.glob(pattern):
                old.unlink()
        return result


def trained_by(run: Run, seed: int, results: Path) -> list[dict[str, str]]:
    """Data set and split of all that a run and those which it goes on from are trained on."""
    found = [{key: of[key] for key in ("dataset", "split")} for of in run.training_sets]
    for parent in run.parents.values():
        record = results / parent / f"seed{seed}" / "train.json"
        found += read_object(record).get("trained_on", []) if record.exists() else []
    return [part for i, part in enumerate(found) if part not in found[:i]]


def _begin(
    run: Run, seed: int, device: torch.device, data_dir: Path, results: Path
) -> tuple[FCN, dict[str, Any], list[str], list[dict[str, Any]]]:
    """A net as its training finds it.

    Returns:
        the net on ``device``; dataset.json of the test images; the layers that the weights which
        training starts from do not have; the archives behind these weights.
    """
    torch.manual_seed(seed)
    info = read_json(data_dir / "prepared" / run.config["test"]["dataset"] / "dataset.json")
    net = build(run.config["net"], {task: len(info["classes"][task]) for task in run.labels})
    initialise(net, seed)
    parents = {
        part: results / parent / f"seed{seed}" / "model.safetensors"
        for part, parent in run.parents.items()
    }
    random_layers, archives = start(net, run.config["weights"], data_dir, parents)
    if random_layers:
        print(
            f"{run.id}: not in the backbone, left at a random start: {', '.join(random_layers)}",
            file=sys.stderr,
        )
    if run.precision == "reference":
        net.exact()
    net.to(device).to(memory_format=torch.channels_last)
    return net, info, random_layers, archives


def _numbers(training: Training) -> dict[str, Any]:
    """What a training that has ended took and came to."""
    images = training.updates * training.batch
    seen = [row["mean_iu"] for row in training.validation if row["mean_iu"] is not None]
    return {
        "updates": training.updates,
        "images": images,
        "seconds": round(training.seconds, 3),
        "waited_seconds": round(training.waited, 3),
        "images_per_second": round(images / max(training.seconds, 1e-9), 3),
        "loss": training.rows[-1]["loss"],
        "train_images": len(training.dataset),
        **({"best_mean_iu": max(seen)} if seen else {}),  # a fraction; nothing is chosen by it
    }


def _divergence(training: Training, error: Diverged, provenance: dict[str, Any]) -> dict[str, Any]:
    """What diverged.json says of a training that was given up."""
    run = training.run
    return {
        "run": run.name,
        "dataset": run.dataset,
        "seed": training.seed,
        "update": error.update,
        "updates": training.updates,
        "loss": error.loss if math.isfinite(error.loss) else None,
        "config": run.config,
        "config_hash": run.hash,
        "provenance": provenance,
    }


def _now(device: torch.device) -> float:
    """``time.perf_counter`` when the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def run_loop(training: Training, data_dir: Path, workers: int, stop_after: int | None) -> bool:
    """Run to the end, or to ``stop_after`` updates; True at the end."""
    recipe, run, device = training.recipe, training.run, training.device
    if training.restore():
        print(f"{run.id}: resumed at update {training.update}", file=sys.stderr)
    remaining = [g for groups in training.groups[training.update :] for g in groups]
    batches = loader(training.stream, remaining, workers, device.type == "cuda")
    every = recipe["validate"]
    validation_set = load_set(data_dir, run, "test") if every else None
    training.net.train()
    saved = time.perf_counter()
    started = saved - training.seconds
    progress = bar(
        total=training.updates * training.batch,
        initial=training.update * training.batch,
        unit="img",
        desc=f"{run.id} seed {training.seed}",
    )
    first = training.update
    # Backward passes need to know of TF32 too.
    with progress, on_stream(device), tf32(recipe["precision"] == "tf32"):
        while training.update < training.updates:
            training.step(batches)
            progress.update(training.batch)
            last = training.update == training.updates
            stopping = stop_after is not None and training.update - first >= stop_after
            seen = training.update * training.batch
            validating = bool(every) and (last or seen // every > (seen - training.batch) // every)
            if training.update % LOG_EVERY == 0 or last:
                loss = training.log(started)
                progress.set_postfix(loss=f"{loss:.4f}", refresh=False)
            if validating and validation_set is not None:
                paused = _now(device)
                training.seconds = paused - started
                _validate(training, validation_set, workers)
                started += time.perf_counter() - paused
            due = time.perf_counter() - saved > CHECKPOINT_SECONDS
            if not last and (stopping or due):
                if training.update % LOG_EVERY == 0 or stopping:
                    paused = _now(device)
                    training.seconds = paused - started
                    training.save_checkpoint()
                    saved = time.perf_counter()
                    started += saved - paused
                if stopping:
                    return False
    training.seconds = _now(device) - started
    training.check_weights()
    return True


def _validate(training: Training, dataset: SegmentationSet, workers: int) -> None:
    done = evaluate(
        training.net,
        dataset,
        training.run,
        training.device,
        training.recipe["precision"],
        workers,
    )
    found = done.matrices[training.run.labels[0]].scores()
    say(
        f"{training.run.id} seed {training.seed}: mean IU {found.mean_iu or 0:.4f} after "
        f"{training.update * training.batch} images, {training.seconds:.0f} s"
    )
    training.validation.append(
        {
            "update": training.update,
            "images": training.update * training.batch,
            "seconds": round(training.seconds, 3),
            "pixel_accuracy": found.pixel_accuracy,
            "mean_accuracy": found.mean_accuracy,
            "mean_iu": found.mean_iu,
            "frequency_weighted_iu": found.frequency_weighted_iu,
        }
    )
