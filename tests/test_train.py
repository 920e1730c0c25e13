"""Training: resumed to the bit, stopped where it diverges, started from what it should."""

import csv
import fcntl
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fcn.train as training
from fcn.__main__ import main
from fcn.data.dataset import SegmentationSet
from fcn.data.labels import VOID
from fcn.data.stream import AugmentedSet, image_order
from fcn.errors import UserError
from fcn.evaluate import evaluate_run, inference_net, load_set, score_maps
from fcn.files import digest, read_json, write_json
from fcn.inputs import preprocess
from fcn.loss import batch_loss, pixel_losses
from fcn.nets import build
from fcn.suites import load_suite
from fcn.train import (
    CHECKPOINT_SECONDS,
    DIVERGED,
    LOG_EVERY,
    Diverged,
    Training,
    chance_loss,
    train,
)
from fcn.weights.backbone import initialise
from fcn.weights.caffemodel import Layer
from fcn.weights.named import named_tensors, read, save
from tests.caffemodel_writer import write
from tests.conftest import tiny_suite

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("one_thread")

# All that could make a resumed training another one.
ROUGH = {
    "mirror": True,
    "jitter": 5,
    "patch_keep": 0.5,
    "schedule": "poly",
    "momentum": 0.9,
    "images": 24,
    "validate": 8,
    "sampling": "replacement",
}
NO_START = {"score_init": "random"}


def rows(path):
    """Of a CSV file, without the seconds, which differ from run to run."""
    with path.open(newline="") as handle:
        return [{k: v for k, v in r.items() if k != "seconds"} for r in csv.DictReader(handle)]


def start(run, data_dir, results, seed=0, **options):
    return train(run, seed, device=CPU, data_dir=data_dir, results=results, **options)


def folder(run, results, seed=0):
    return run.directory(results, seed)


def same_outcome(run, one, other):
    a, b = folder(run, one), folder(run, other)
    assert digest(a / "model.safetensors") == digest(b / "model.safetensors")
    for name in ("loss.csv", "validation.csv"):
        assert rows(a / name) == rows(b / name)
        assert rows(a / name) or name != "loss.csv"


# ------------------------------------------------------------------------------------------ output


def test_what_it_writes(make_run, data_dir, tmp_path):
    run = make_run(recipe={"base": "short", "images": 45, "batch": 2, "validate": 20})
    result = start(run, data_dir, tmp_path)
    place = folder(run, tmp_path)
    assert sorted(p.name for p in place.iterdir()) == [
        "loss.csv",
        "model.safetensors",
        "train.json",
        "validation.csv",
    ]
    assert read_json(place / "train.json") == result
    assert (result["updates"], result["images"]) == (22, 44)
    assert result["weights_sha256"] == digest(place / "model.safetensors")
    assert result["config"] == run.config and result["config_hash"] == run.hash
    assert result["train_images"] == 8 and result["subset"] is False
    log = rows(place / "loss.csv")
    assert [(r["update"], r["images"]) for r in log] == [("20", "40"), ("22", "44")]
    assert [float(r["learning_rate"]) for r in log] == [1e-4, 1e-4]
    assert float(log[-1]["loss"]) == result["loss"]
    seen = rows(place / "validation.csv")
    assert [r["images"] for r in seen] == ["20", "40", "44"]
    assert result["best_mean_iu"] == max(float(r["mean_iu"]) for r in seen)
    tensors, about = read(place / "model.safetensors")
    assert about["config_hash"] == run.hash and about["net"] == run.config["net"]
    assert about["classes"]["semantic"][0] == "background"
    net = build(run.config["net"], {"semantic": len(about["classes"]["semantic"])})
    assert set(tensors) == set(named_tensors(net))


def test_test_images_among_the_training_images_are_told(write_suite, data_dir, tmp_path, capsys):
    """Of another data set too, and by a net that goes on from one trained on them."""
    data = tmp_path / "data"
    shutil.copytree(data_dir, data)
    shutil.copytree(data / "prepared/tiny", data / "prepared/other")
    other = tiny_suite()["datasets"]["tiny"]
    entry = tiny_suite()["runs"]["tiny/run"]
    path = write_suite(
        {
            "datasets": {"other": other},
            "runs": {
                "tiny/run": {"train": ["other/train", "other/val"]},
                "tiny/on": {**entry, "weights": {"run": "tiny/run"}},
                "tiny/clean": entry,
            },
        }
    )
    suite = load_suite(str(path))
    for name in ("tiny/run", "tiny/on", "tiny/clean"):
        run = suite.run(name)
        record = start(run, data, tmp_path)
        scored = evaluate_run(run, 0, device=CPU, data_dir=data, results=tmp_path)
        seen = [note for note in scored["notes"] if "among the training images" in note]
        wanted = "4 of the 4 test images are among the training images (other/val)."
        assert seen == [wanted] * (name != "tiny/clean")
        assert capsys.readouterr().err.count(f"warning: {name}: {wanted}") == 2 * len(seen)
    assert record["trained_on"] == [{"dataset": "tiny", "split": "train"}]


def test_archives_of_weights_and_images_are_passed_on(make_run, data_dir, tmp_path, monkeypatch):
    """With a subset among them the result is of a subset."""
    run = make_run(recipe={"base": "short", "images": 2})
    shutil.copytree(data_dir, tmp_path / "own")
    info = tmp_path / "own/prepared/tiny/dataset.json"
    for subsets in ((False, False), (False, True), (True, False)):
        one, other = ({"name": n, "subset": s} for n, s in zip("ab", subsets, strict=True))
        write_json(info, {**read_json(info), "archives": [other]})
        monkeypatch.setattr(training, "start", lambda *_, one=one: ([], [one]))
        result = start(run, tmp_path / "own", tmp_path)
        assert [a["name"] for a in result["provenance"]["archives"]] == ["a", "b"]
        assert result["subset"] is any(subsets)


def test_loss_curve_is_the_loss_per_pixel(make_run, data_dir, tmp_path):
    """Of the first update, recomputed by hand; whatever the recipe optimises."""
    for normalize in (True, False):
        recipe = {"base": "short", "images": 2, "batch": 2, "normalize": normalize}
        run = make_run(net={"base": "slim", "dropout": 0.0, **NO_START}, recipe=recipe)
        result = start(run, data_dir, tmp_path)
        dataset = load_set(data_dir, run, "train")
        torch.manual_seed(0)
        net = build(run.config["net"], {"semantic": len(dataset.classes["semantic"])})
        initialise(net, 0)
        summed = pixels = 0.0
        for i in image_order(8, 2, "epochs", 0):
            item = dataset[int(i)]
            with torch.no_grad():
                scores = net(preprocess(item["image"][None], run.config["input"], CPU))["semantic"]
                _, loss, valid = batch_loss(scores, item["semantic"][None], "softmax", True)
            summed, pixels = summed + float(loss), pixels + int(valid)
        assert result["loss"] == pytest.approx(summed / pixels, rel=1e-5)


def test_a_toy_is_learned(make_run, data_dir, tmp_path):
    recipe = {"base": "short", "images": 320, "batch": 2, "learning_rate": 1e-3}
    run = make_run(net={"base": "slim", "width": 0.06, "hidden": 32, "dropout": 0.0}, recipe=recipe)
    start(run, data_dir, tmp_path)
    losses = [float(r["loss"]) for r in rows(folder(run, tmp_path) / "loss.csv")]
    assert losses[-1] < 0.75 * losses[0]


def test_seconds_are_those_of_work_that_is_done(make_run, data_dir, tmp_path, monkeypatch):
    """The copy to the host waits for the device, and so does the clock before validation."""
    copied, now = torch.Tensor.cpu, training._now

    def slow_copy(self, *arguments):
        time.sleep(0.3 if self.shape == (LOG_EVERY, 2) else 0)
        return copied(self, *arguments)

    def busy(device):
        time.sleep(0.4)
        return now(device)

    monkeypatch.setattr(torch.Tensor, "cpu", slow_copy)
    monkeypatch.setattr(training, "_now", busy)
    run = make_run(recipe={"base": "short", "images": 2, "validate": 2})
    result = start(run, data_dir, tmp_path)
    (loss,), (validation,) = (
        list(csv.DictReader((folder(run, tmp_path) / f"{name}.csv").read_text().splitlines()))
        for name in ("loss", "validation")
    )
    seconds = [float(loss["seconds"]), float(validation["seconds"]), result["seconds"]]
    assert seconds[0] >= 0.3
    assert all(b - a > 0.39 for a, b in pairwise(seconds))  # the end of training waits too


def test_validation_loads_with_the_workers_of_training(make_run, data_dir, tmp_path, monkeypatch):
    asked = []

    def evaluate(*arguments):
        asked.append(arguments[5])
        return evaluated(*arguments)

    evaluated = training.evaluate
    monkeypatch.setattr(training, "evaluate", evaluate)
    run = make_run(recipe={"base": "short", "images": 4, "validate": 4})
    start(run, data_dir, tmp_path, workers=1)
    assert asked == [1]


def test_seeds_differ(make_run, data_dir, tmp_path):
    run = make_run()
    digests = {start(run, data_dir, tmp_path, seed)["weights_sha256"] for seed in (0, 1)}
    assert len(digests) == 2
    again = start(run, data_dir, tmp_path / "again", 1)["weights_sha256"]
    assert again in digests


def test_all_that_is_random_is_the_seeds(make_run, data_dir, tmp_path):
    """The start of trunk and score layers, the order of the images, and what is done to them."""
    recipe = {"base": "short", "images": 8, "learning_rate": 1e-12, "mirror": True, "jitter": 5}
    run = make_run(net={"base": "slim", **NO_START}, recipe=recipe)
    dataset = load_set(data_dir, run, "train")
    net = build(run.config["net"], {"semantic": len(dataset.classes["semantic"])})
    weights, streams = [], []
    for seed in (0, 1):
        start(run, data_dir, tmp_path, seed)
        weights.append(read(folder(run, tmp_path, seed) / "model.safetensors")[0])
        streams.append(Training(run, seed, net, dataset, CPU, tmp_path / "none.pt").stream)
    random = [name for name in weights[0] if re.match(r"(conv|fc|score_).*weight$", name)]
    assert len(random) > 15
    for name in random:
        assert (weights[0][name] - weights[1][name]).abs().max() > 1e-3, name
    assert (streams[0].order != streams[1].order).any()
    streams[1].order = streams[0].order
    assert any(not torch.equal(*(s[i]["semantic"] for s in streams)) for i in range(8))


# ---------------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize(
    "recipe, stops",
    [
        (ROUGH, (5,)),
        (ROUGH, (1, 1, 7)),
        ({"images": 46, "batch": 2, "momentum": 0.99, "normalize": False,
          "learning_rate": 1e-8, "loss": "sigmoid"}, (20, 2)),
    ],
)  # fmt: skip
def test_stopped_and_continued_ends_to_the_bit(make_run, data_dir, tmp_path, recipe, stops):
    run = make_run(net={"base": "slim", **NO_START}, recipe={"base": "short", **recipe})
    start(run, data_dir, tmp_path / "whole")
    for stop in stops:
        assert start(run, data_dir, tmp_path / "parts", stop_after=stop) == {}
        assert [p.suffix for p in folder(run, tmp_path / "parts").iterdir()] == [".pt"]
    torch.manual_seed(99)  # what another process had drawn
    start(run, data_dir, tmp_path / "parts")
    same_outcome(run, tmp_path / "whole", tmp_path / "parts")
    assert not list(folder(run, tmp_path / "parts").glob("*.pt"))


def test_stopped_before_it_sees_what_validation_saw(make_run, data_dir, tmp_path):
    """Images of a size that validation met first go through training after it."""
    run = make_run(recipe={"base": "short", "images": 8, "batch": 1, "validate": 1})
    sizes = set(load_set(data_dir, run, "test").sizes)
    assert sizes == {(40, 56), (56, 40)}
    assert start(run, data_dir, tmp_path)["updates"] == 8


DRIVER = """
import os, signal, sys
import fcn.train as training
from fcn.__main__ import main
training.CHECKPOINT_SECONDS, training.LOG_EVERY = 0.0, 3
step = training.Training.step
def killed(self, batches):
    if self.update == int(os.environ["KILL_AT"]):
        os.kill(os.getpid(), signal.SIGKILL)
    step(self, batches)
training.Training.step = killed
sys.exit(main(sys.argv[1:]))
"""


def test_killed_and_started_again_ends_to_the_bit(
    make_run, data_dir, tmp_path, write_suite, monkeypatch
):
    change = {"net": {"base": "slim", **NO_START}, "recipe": {"base": "short", **ROUGH}}
    run = make_run(**change)
    suite = str(write_suite({"runs": {"tiny/run": change}}))
    arguments = ["train", "tiny/run", "--suite", suite, "--data-dir", str(data_dir)]
    arguments += ["--threads", "1", "--device", "cpu", "--results"]
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "KILL_AT": "8"}
    killed = subprocess.run(
        [sys.executable, str(driver), *arguments, str(tmp_path / "parts")],
        env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    place = folder(run, tmp_path / "parts")
    assert [p.name for p in place.iterdir()] == [f"checkpoint-{run.hash}.pt"]
    monkeypatch.setattr(training, "LOG_EVERY", 3)
    assert main([*arguments, str(tmp_path / "parts")]) == 0
    assert main([*arguments, str(tmp_path / "whole")]) == 0
    same_outcome(run, tmp_path / "whole", tmp_path / "parts")


def test_killed_while_it_writes_a_checkpoint(make_run, data_dir, tmp_path, monkeypatch):
    """The checkpoint before stays; the half of a file that a killed process leaves goes."""
    run = make_run(recipe={"base": "short", "images": 16})
    start(run, data_dir, tmp_path / "whole")
    start(run, data_dir, tmp_path / "parts", stop_after=2)
    place = folder(run, tmp_path / "parts")
    before = digest(place / f"checkpoint-{run.hash}.pt")

    def broken(state, path):
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", broken)
        with pytest.raises(KeyboardInterrupt):
            start(run, data_dir, tmp_path / "parts", stop_after=2)
    assert digest(place / f"checkpoint-{run.hash}.pt") == before
    (place / f".checkpoint-{run.hash}.pt.0123abcd.tmp").write_bytes(b"half")  # of a SIGKILL
    start(run, data_dir, tmp_path / "parts")
    same_outcome(run, tmp_path / "whole", tmp_path / "parts")
    assert not [p.name for p in place.iterdir() if "checkpoint" in p.name]


def test_another_recipe_does_not_resume(make_run, data_dir, tmp_path, capsys):
    old = make_run(recipe={"base": "short", "images": 16})
    start(old, data_dir, tmp_path / "parts", stop_after=2)
    new = make_run(recipe={"base": "short", "images": 16, "learning_rate": 2e-4})
    start(new, data_dir, tmp_path / "whole")
    capsys.readouterr()
    start(new, data_dir, tmp_path / "parts")
    assert "resumed" not in capsys.readouterr().err
    same_outcome(new, tmp_path / "whole", tmp_path / "parts")


def test_other_images_or_weights_start_anew(make_run, data_dir, tmp_path, capsys):
    """A checkpoint of the same configuration, of a data set that was prepared anew."""
    run = make_run(recipe={"base": "short", "images": 16})
    other = tmp_path / "data"
    shutil.copytree(data_dir, other)
    for name in ("tiny",):
        path = other / "prepared" / name / "dataset.json"
        info = json.loads(path.read_text())
        assert len(info["contents"]) == 64
        path.write_text(json.dumps({**info, "contents": "0" * 64}))
    start(run, other, tmp_path / "whole")
    start(run, data_dir, tmp_path / "parts", stop_after=2)
    capsys.readouterr()
    start(run, other, tmp_path / "parts")
    said = capsys.readouterr().err
    assert "resumed" not in said and "on other images; starting anew" in said
    same_outcome(run, tmp_path / "whole", tmp_path / "parts")
    dataset = load_set(data_dir, run, "train")
    one, two = (build(run.config["net"], {"semantic": 16}) for _ in range(2))
    two.load_state_dict(one.state_dict())
    assert training.origin(one, dataset) == training.origin(two, dataset)
    with torch.no_grad():
        next(two.parameters()).flatten()[0] += 1e-3
    assert training.origin(one, dataset) != training.origin(two, dataset)


def test_broken_checkpoint_is_named(make_run, data_dir, tmp_path):
    run = make_run()
    place = folder(run, tmp_path)
    place.mkdir(parents=True)
    (place / f"checkpoint-{run.hash}.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match=rf"checkpoint-{run.hash}\.pt: not a readable checkpoint"):
        start(run, data_dir, tmp_path)


def test_finished_training_starts_anew_with_the_same_end(make_run, data_dir, tmp_path):
    run = make_run()
    digests = [start(run, data_dir, tmp_path)["weights_sha256"] for _ in range(2)]
    assert digests[0] == digests[1]


def test_stopped_at_the_end_it_has_ended(make_run, data_dir, tmp_path):
    run = make_run()
    assert start(run, data_dir, tmp_path, stop_after=6)["updates"] == 6
    assert not list(folder(run, tmp_path).glob("*.pt"))


# --------------------------------------------------------------------------------------- diverging


@pytest.mark.parametrize("checkpoint", [False, True])
def test_divergence_stops_with_a_sentence(
    make_run, write_suite, data_dir, tmp_path, capsys, checkpoint
):
    change = {"recipe": {"base": "short", "images": 100, "learning_rate": 1e4}}
    run = make_run(**change)
    if checkpoint:
        start(run, data_dir, tmp_path, stop_after=1)
    suite = str(write_suite({"runs": {"tiny/run": change}}))
    code = main(
        ["train", "run", "--suite", suite, "--data-dir", str(data_dir), "--results",
         str(tmp_path), "--device", "cpu", "--threads", "1"]
    )  # fmt: skip
    assert code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: tiny/run seed 0: the loss per pixel was ")
    assert "diverged" in error and "recipe.learning_rate" in error and " of 50" in error
    place = folder(run, tmp_path)
    if checkpoint:
        assert f"the last good checkpoint is {place}" in error
        assert len(list(place.glob(f"checkpoint-{run.hash}.pt"))) == 1
    else:
        assert "no checkpoint" in error
    assert len(list(place.iterdir())) == 1 + checkpoint  # and the evidence


def test_the_weights_of_classes_are_no_divergence(make_run, data_dir, tmp_path, monkeypatch):
    """A balanced loss may be the largest weight that of chance, and more."""
    run = make_run(recipe={"base": "short", "images": 40, "class_balance": True})
    seen = []
    init = Training.__init__

    def watched(self, *args, **options):
        init(self, *args, **options)
        weights = next(iter(self.class_weights.values()))
        seen.append((self.limit, float(weights.max()), len(weights)))

    monkeypatch.setattr(Training, "__init__", watched)
    start(run, data_dir, tmp_path)
    ((limit, heaviest, classes),) = seen
    assert heaviest > 1 and limit == pytest.approx(20 * math.log(classes) * heaviest)


@pytest.mark.parametrize("updates", [1, LOG_EVERY, LOG_EVERY + 3])
def test_a_last_update_that_destroys_the_weights_is_a_divergence(
    make_run, data_dir, tmp_path, monkeypatch, updates
):
    """No loss after it tells."""
    run = make_run(recipe={"base": "short", "images": 2 * updates})
    step = Training.step

    def last(self, batches):
        step(self, batches)
        if self.update == self.updates:
            self.net.head("semantic").score_fr.bias.data[0] = torch.inf

    with monkeypatch.context() as patch:
        patch.setattr(Training, "step", last)
        with pytest.raises(Diverged, match=f"not finite at update {updates} of {updates}"):
            start(run, data_dir, tmp_path)
    place = folder(run, tmp_path)
    found = read_json(place / "diverged.json")
    assert (found["update"], found["loss"]) == (updates, None)
    assert not (place / "train.json").exists() and not (place / "model.safetensors").exists()


def test_seconds_of_several_devices_say_so(make_run, data_dir, tmp_path, monkeypatch):
    """A mean of times is of one device: report/results.py goes by its name."""
    run = make_run(recipe={"base": "short", "images": 80})
    for name, stop in (("one", 10), ("one", 10), ("other", 10), ("one", None)):
        monkeypatch.setattr(training, "device_facts", lambda _, name=name: {"name": name})
        written = start(run, data_dir, tmp_path, stop_after=stop)
    assert written["provenance"]["device"]["name"] == "one, then other, then one"
    assert read_json(folder(run, tmp_path) / "train.json") == written


@pytest.mark.parametrize(("workers", "sets"), [(0, 1), (2, 1), (8, 1), (8, 2), (0, 2)])
def test_memory_for_images_is_shared(make_run, data_dir, tmp_path, monkeypatch, workers, sets):
    monkeypatch.setattr(training, "CACHE_BYTES", 1000)
    run = make_run(train=["tiny/train", "square/train"][:sets])
    asked = []
    init = SegmentationSet.__init__

    def watched(self, *args, **options):
        init(self, *args, **options)
        asked.append(self._room)

    monkeypatch.setattr(SegmentationSet, "__init__", watched)
    monkeypatch.setattr(training, "run_loop", lambda *_: False)
    start(run, data_dir, tmp_path, workers=workers)
    of_training = [room for room in asked if room]
    assert len(of_training) == sets
    assert sum(of_training) <= 1000 and max(1, workers) * sum(of_training) <= 4000
    assert sum(of_training) == (500 if workers == 8 else 1000)


def test_of_errors_in_writing_a_checkpoint_those_of_others_stay(
    make_run, data_dir, tmp_path, monkeypatch
):
    run = make_run(recipe={"base": "short", "images": 80})
    for error, raised in (
        (RuntimeError("PytorchStreamWriter failed writing file data/3"), UserError),
        (torch.OutOfMemoryError("out of memory"), torch.OutOfMemoryError),
        (RuntimeError("CUDA error: an illegal memory access"), RuntimeError),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), RuntimeError),
    ):

        def fail(*_, error=error):
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(torch, "save", fail)
            with pytest.raises(raised) as caught:
                start(run, data_dir, tmp_path, stop_after=5)
        assert type(caught.value) is raised


def test_divergence_leaves_evidence_until_the_next_start(make_run, data_dir, tmp_path, monkeypatch):
    run = make_run(recipe={"base": "short", "images": 80})
    evidence = folder(run, tmp_path) / "diverged.json"
    step = Training.step
    for poison in (torch.nan, 1e3):

        def poisoned(self, batches, poison=poison):
            assert not evidence.exists()  # of the training before
            step(self, batches)
            if self.update == 27:
                self.net.head("semantic").score_fr.bias.data[0] = poison

        with monkeypatch.context() as patch:
            patch.setattr(Training, "step", poisoned)
            with pytest.raises(Diverged):
                start(run, data_dir, tmp_path)
        found = read_json(evidence)
        provenance = found.pop("provenance")
        loss = found.pop("loss")
        assert found == {
            "run": "run", "dataset": "tiny", "seed": 0, "update": 28, "updates": 40,
            "config": run.config, "config_hash": run.hash,
        }  # fmt: skip
        assert (loss is None) if poison is torch.nan else (loss > 100)
        assert provenance["seed"] == 0 and provenance["code"]["version"]
    assert start(run, data_dir, tmp_path)["updates"] == 40
    assert not evidence.exists()


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("classes", [2, 21, 150])
def test_guessing_is_the_loss_of_scores_that_say_nothing(kind, classes):
    truth = torch.randint(0, classes, (1, 8, 8), dtype=torch.uint8)
    losses = pixel_losses(torch.zeros(1, classes, 8, 8), truth, kind)
    assert chance_loss(kind, classes) == pytest.approx(float(losses.mean()), rel=1e-5)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_far_above_guessing_is_by_the_recipes_own_loss(make_run, data_dir, tmp_path, kind):
    """With 150 classes 20 ln(150) is less than what a sigmoid net starts from, 150 ln(2)."""
    run = make_run(recipe={"base": "short", "loss": kind})
    dataset = load_set(data_dir, run, "train")
    dataset.info["classes"]["semantic"] = [f"class {i}" for i in range(150)]
    net = build(run.config["net"], {"semantic": 150})
    state = Training(run, 0, net, dataset, CPU, tmp_path / "checkpoint.pt")
    chance = {"softmax": np.log(150), "sigmoid": 150 * np.log(2)}[kind]
    state.update = 1
    state.losses[0] = torch.tensor([0.99 * DIVERGED * chance, 1])
    assert state.log(0.0) == pytest.approx(0.99 * DIVERGED * chance)
    state.losses[0] = torch.tensor([1.01 * DIVERGED * chance, 1])
    with pytest.raises(Diverged):
        state.log(0.0)


def test_a_row_of_the_curve_is_the_mean_over_pixels(make_run, data_dir, tmp_path):
    """Updates with more valid pixels weigh more."""
    run = make_run()
    dataset = load_set(data_dir, run, "train")
    net = build(run.config["net"], {"semantic": len(dataset.classes["semantic"])})
    state = Training(run, 0, net, dataset, CPU, tmp_path / "checkpoint.pt")
    state.update = 3
    state.losses[:3] = torch.tensor([[6.0, 2.0], [1.0, 8.0], [0.0, 0.0]])
    assert state.log(0.0) == state.rows[-1]["loss"] == pytest.approx(7 / 10)
    assert not state.losses.any()


def test_chance_is_that_of_the_label_set_of_most_classes(make_run, data_dir, tmp_path):
    for labels in (["semantic", "geometric"], ["geometric", "semantic"]):
        run = make_run(labels=labels)
        dataset = load_set(data_dir, run, "train")
        classes = {task: len(names) for task, names in dataset.classes.items()}
        net = build(run.config["net"], classes)
        state = Training(run, 0, net, dataset, CPU, tmp_path / "checkpoint.pt")
        assert classes["semantic"] > classes["geometric"]
        assert state.limit == pytest.approx(DIVERGED * math.log(classes["semantic"]))


def test_a_single_hard_image_is_no_divergence():
    calm, high = [1.0] * 20, [1.0] * 9 + [99.0] * 11
    assert training._diverged_at([99.0, *calm[1:]], 60.0) is None
    assert training._diverged_at([*high[:-1], 1.0], 60.0) is None
    assert training._diverged_at(high, 60.0) == 9
    assert training._diverged_at([99.0, *high[1:]], 60.0) == 0
    for endless in (math.nan, math.inf):
        assert training._diverged_at([99.0, *calm[2:], endless], 60.0) == 19
    assert training._diverged_at([99.0], 60.0) == 0


def test_the_update_that_diverged_is_named(make_run, data_dir, tmp_path, monkeypatch):
    """Not the row of the log that shows it."""
    run = make_run(recipe={"base": "short", "images": 80})
    step = Training.step

    def poisoned(self, batches):
        step(self, batches)
        if self.update == 27:
            next(self.net.parameters()).data.fill_(torch.nan)

    monkeypatch.setattr(Training, "step", poisoned)
    with pytest.raises(Diverged, match=r"was nan at update 28 of 40"):
        start(run, data_dir, tmp_path)


# ------------------------------------------------------------------------------------------ starts


def test_from_a_parent_run(write_suite, data_dir, tmp_path):
    """The parent's weights of the same seed; new score layers keep their own start."""
    child = {
        "base": "tiny/run",
        "net": {"skips": ["pool4", "pool3", "pool2"]},
        "weights": {"run": "run"},
        "recipe": {"learning_rate": 1e-30, "weight_decay": 0.0},
    }
    change = {"runs": {"tiny/run": {"net": {"base": "slim", **NO_START}}, "tiny/child": child}}
    suite = load_suite(str(write_suite(change)))
    parent, run = suite.run("run"), suite.run("child")
    with pytest.raises(UserError, match=r"tiny/run/seed1/model\.safetensors: no such file"):
        start(run, data_dir, tmp_path, 1)
    for seed in (0, 1):
        start(parent, data_dir, tmp_path, seed)
    start(run, data_dir, tmp_path, 1)
    old, _ = read(folder(parent, tmp_path, 1) / "model.safetensors")
    new, _ = read(folder(run, tmp_path, 1) / "model.safetensors")
    for name, values in old.items():
        if name in new and not name.startswith("upscore"):
            assert torch.equal(values, new[name]), name
    assert set(new) - set(old) == {
        "score_pool2.weight",
        "score_pool2.bias",
        "upscore_pool3.weight",
        "upscore4.weight",
    }


def test_from_a_parent_of_another_configuration(write_suite, data_dir, tmp_path):
    child = {"base": "tiny/run", "weights": {"run": "tiny/run"}}

    def suite(momentum):
        recipe = {"base": "short", "momentum": momentum}
        change = {"runs": {"tiny/run": {"recipe": recipe}, "tiny/child": child}}
        return load_suite(str(write_suite(change)))

    old, new = suite(0.9), suite(0.8)
    start(old.run("run"), data_dir, tmp_path)
    hashes = f"configuration {old.run('run').hash}, the suite now has {new.run('run').hash}"
    with pytest.raises(UserError, match=rf"run/seed0/model\.safetensors: trained with {hashes}"):
        start(new.run("child"), data_dir, tmp_path)


def test_from_a_parent_whose_file_lacks_a_layer(write_suite, data_dir, tmp_path):
    child = {"base": "tiny/run", "weights": {"run": "tiny/run"}}
    suite = load_suite(str(write_suite({"runs": {"tiny/child": child}})))
    start(suite.run("run"), data_dir, tmp_path)
    path = suite.run("run").directory(tmp_path, 0) / "model.safetensors"
    tensors, about = read(path)
    del tensors["conv1_1.weight"]
    save(path, tensors, about)
    with pytest.raises(UserError, match=r"seed0/model\.safetensors: lacks conv1_1\.weight"):
        start(suite.run("child"), data_dir, tmp_path)


def test_released_weights_are_scored_without_training(write_suite, data_dir, tmp_path):
    """A .caffemodel under the authors' layer names, through `recipe: none`."""
    archive = "fcn32s-heavy-pascal.caffemodel"
    data = tmp_path / "data"
    shutil.copytree(data_dir, data)
    change = {
        "backbones": {
            "theirs": {
                "architecture": "vgg16",
                "archive": archive,
                "format": "caffe",
                "input": {"order": "bgr", "mean": [104.0, 117.0, 123.0], "std": [1, 1, 1]},
            }
        },
        "runs": {
            "tiny/run": {
                "train": None,
                "net": {"base": "slim", "skips": ["pool4"]},
                "weights": {"released": "theirs"},
                "recipe": "none",
            }
        },
    }
    run = load_suite(str(write_suite(change))).run("run")
    classes = len(load_set(data, run, "test").classes["semantic"])
    torch.manual_seed(5)
    source = build({**run.config["net"], **NO_START}, {"semantic": classes})
    initialise(source, 5)
    layers: dict[str, list[np.ndarray]] = {}
    for name, values in named_tensors(source).items():
        if not name.startswith("upscore"):
            layers.setdefault(name.rsplit(".", 1)[0], []).append(values.numpy())
    path = data / "archives" / archive
    path.parent.mkdir()
    write(path, [Layer(name, "Convolution", blobs) for name, blobs in layers.items()])
    path.with_name(f"{archive}.json").write_text(
        '{"name": "fcn32s-heavy-pascal.caffemodel", "sha256": "0", "size": 1, "subset": false}'
    )
    result = start(run, data, tmp_path / "results")
    assert result["updates"] == 0 and result["loss"] is None
    assert [a["name"] for a in result["provenance"]["archives"]] == [archive]
    found, _ = read(folder(run, tmp_path / "results") / "model.safetensors")
    for name, values in named_tensors(source).items():
        assert torch.equal(found[name], values), name
    assert rows(folder(run, tmp_path / "results") / "loss.csv") == []
    write(path, [Layer(n, "Convolution", b) for n, b in layers.items() if n != "conv3_2"])
    with pytest.raises(UserError, match="lacks the layers conv3_2"):
        start(run, data, tmp_path / "results")


def test_only_the_score_layers_learn(make_run, data_dir, tmp_path):
    run = make_run(recipe={"base": "short", "train_layers": "score"})
    start(run, data_dir, tmp_path)
    found, about = read(folder(run, tmp_path) / "model.safetensors")
    torch.manual_seed(0)
    net = build(run.config["net"], {"semantic": len(about["classes"]["semantic"])})
    initialise(net, 0)
    for name, values in named_tensors(net).items():
        assert torch.equal(found[name], values) != (name.startswith("score")), name


# ------------------------------------------------------------------------------------------- batch


@pytest.mark.parametrize("normalize", [True, False])
def test_a_batch_is_its_images_one_by_one(make_run, data_dir, tmp_path, monkeypatch, normalize):
    """Equal sizes go through the net together; accumulated one by one only rounding differs."""
    change = {
        "train": "square/train",
        "net": {"base": "slim", "dropout": 0.0, **NO_START},
        "recipe": {"base": "short", "images": 16, "batch": 4, "normalize": normalize,
                   "learning_rate": 1e-4 if normalize else 1e-8},
    }  # fmt: skip
    run = make_run(**change)
    found = []
    for pixels in (1 << 20, 1):
        monkeypatch.setattr("fcn.data.stream.GROUP_PIXELS", pixels)
        results = tmp_path / str(pixels)
        start(run, data_dir, results)
        found.append(read(folder(run, results) / "model.safetensors")[0])
    torch.manual_seed(0)
    net = build(run.config["net"], {"semantic": len(found[0]["score_fr.bias"])})
    initialise(net, 0)
    begun = named_tensors(net)
    for name, together in found[0].items():
        moved = (together - begun[name]).abs().max()
        assert (together - found[1][name]).abs().max() <= 1e-4 * moved + 1e-9, name
    assert any(not torch.equal(found[0][name], found[1][name]) for name in found[0])


# What one update of two images depends on: (recipe, entry of the run).
FIRST_UPDATE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "averaged": ({}, {}),  # iter_size: moves by the mean of the gradients of its images
    "summed": ({"normalize": False}, {}),
    "sigmoid": ({"loss": "sigmoid"}, {}),
    "balanced": ({"class_balance": True}, {}),
    "mirrored": ({"mirror": True}, {}),
    "moved": ({"jitter": 9}, {}),
    "patches": ({"patch_keep": 0.5}, {}),
    "scaled": ({"scale": [0.6, 1.6]}, {}),
    "canvas": ({"canvas": 48}, {}),
    "objects hidden": ({}, {"mask": {"train": "foreground", "test": "none"}}),
    "background hidden": ({}, {"mask": {"train": "background", "test": "none"}}),
    "two heads": ({}, {"labels": ["semantic", "geometric"]}),
}


@pytest.mark.parametrize(("change", "entry"), FIRST_UPDATE.values(), ids=list(FIRST_UPDATE))
def test_the_first_update_by_hand(make_run, data_dir, tmp_path, change, entry):
    """Everything that a recipe says of the loss and of the images reaches the weights."""
    recipe = {"base": "short", "images": 2, "batch": 2, "learning_rate": 1e-4, "bias_rate": 1.0,
              "weight_decay": 0.0, "momentum": 0.0, **change}  # fmt: skip
    run = make_run(net={"base": "slim", "dropout": 0.0, **NO_START}, recipe=recipe, **entry)
    start(run, data_dir, tmp_path)
    found, about = read(folder(run, tmp_path) / "model.safetensors")
    dataset = load_set(data_dir, run, "train")
    torch.manual_seed(0)
    classes = {task: len(about["classes"][task]) for task in run.labels}
    net = build(run.config["net"], classes)
    initialise(net, 0)
    keep = change.get("patch_keep", 1.0)
    count = round(2 / keep)
    stream = AugmentedSet(
        dataset,
        image_order(8, count, "epochs", 0),
        0,
        change.get("mirror", False),
        change.get("jitter", 0),
        keep,
        (32, float(net.head("semantic").cells.start)),
        change.get("scale"),
        change.get("canvas", 1),
    )
    weights: dict[str, torch.Tensor] = {}
    if "class_balance" in change:
        pixels = torch.cat([dataset[i]["semantic"].flatten() for i in range(8)]).long()
        counts = torch.bincount(pixels[pixels != VOID], minlength=classes["semantic"])
        inverse = counts.sum() / counts.clamp(min=1) / (counts > 0).sum()
        weights["semantic"] = torch.where(counts > 0, inverse, 0.0)
    hidden = entry.get("mask", {}).get("train")
    loss = torch.zeros(())
    for position in range(count):
        item = stream[position]
        x = preprocess(item["image"][None], run.config["input"], CPU)
        if hidden:
            objects = (item["semantic"] != 0).float()
            x = x * (objects if hidden == "background" else 1 - objects)
        if "extent" in item:
            height, width = item["extent"].tolist()
            x[:, :, height:] = 0
            x[:, :, :, width:] = 0
        scores = net(x)
        for task in run.labels:
            kind, normalize = change.get("loss", "softmax"), change.get("normalize", True)
            one = (scores[task], item[task][None], kind, normalize, weights.get(task))
            loss = loss + batch_loss(*one)[0] / count
    loss.backward()
    for name, parameter in net.named_parameters():
        key = ".".join(name.split(".")[-2:])
        assert parameter.grad is not None
        moved = (parameter.detach() - found[key]) / 1e-4
        error, size = (moved - parameter.grad).norm(), parameter.grad.norm()
        rounding = 1e-7 / 1e-4 * parameter.detach().norm()  # of float32 weights
        assert error <= 1e-3 * size + rounding + 1e-5, name


def test_the_rate_falls_as_the_recipe_says(make_run, data_dir, tmp_path, monkeypatch):
    rates = []
    set_rate = training.CaffeSGD.set_rate

    def watched(self, rate):
        rates.append(rate)
        set_rate(self, rate)

    monkeypatch.setattr(training.CaffeSGD, "set_rate", watched)
    run = make_run(recipe={"base": "short", "images": 8, "learning_rate": 1e-3, "schedule": "poly"})
    start(run, data_dir, tmp_path)
    assert rates == pytest.approx([1e-3 * (1 - update / 4) ** 0.9 for update in range(4)])


def test_validation_says_what_evaluation_finds(make_run, data_dir, tmp_path):
    run = make_run(recipe={"base": "short", "images": 40, "validate": 20})
    start(run, data_dir, tmp_path)
    last = rows(folder(run, tmp_path) / "validation.csv")[-1]
    found = evaluate_run(run, 0, device=CPU, data_dir=data_dir, results=tmp_path)
    for metric in ("pixel_accuracy", "mean_accuracy", "mean_iu", "frequency_weighted_iu"):
        value = found["tasks"]["semantic"][metric]
        assert float(last[metric]) == pytest.approx(value, abs=1e-6) and value is not None


def test_validation_follows_the_update_that_reaches_its_images(make_run, data_dir, tmp_path):
    run = make_run(recipe={"base": "short", "images": 16, "batch": 3, "validate": 4})
    start(run, data_dir, tmp_path)
    seen = [int(r["images"]) for r in rows(folder(run, tmp_path) / "validation.csv")]
    assert seen == [6, 9, 12, 15]


def test_an_image_that_scaling_makes_too_small_is_named(make_run, data_dir, tmp_path):
    net = {"base": "slim", "architecture": "alexnet", "skips": [], "fc6_kernel": 3}
    run = make_run(net=net, recipe={"base": "short", "scale": [0.01, 0.02]})
    with pytest.raises(UserError, match=r"image train_0000\d scaled to 1x1 pixels, the net needs"):
        start(run, data_dir, tmp_path)


def test_patch_sampling_makes_as_many_updates_of_larger_batches(make_run, data_dir, tmp_path):
    whole = make_run(recipe={"base": "short", "images": 12, "batch": 2})
    half = make_run(recipe={"base": "short", "images": 12, "batch": 2, "patch_keep": 0.5})
    most = make_run(recipe={"base": "short", "images": 12, "batch": 2, "patch_keep": 0.75})
    results = [start(run, data_dir, tmp_path) for run in (whole, half, most)]
    assert [(one["updates"], one["images"]) for one in results] == [(6, 12), (6, 24), (6, 18)]


@pytest.mark.parametrize("precision", ["bf16", "tf32"])
def test_other_precisions_train(make_run, data_dir, tmp_path, precision):
    net = {"base": "slim", "architecture": "alexnet", "skips": [], "fc6_kernel": 3}
    run = make_run(net=net, recipe={"base": "short", "precision": precision, "images": 4})
    result = start(run, data_dir, tmp_path)
    assert result["provenance"]["precision"] == precision
    tensors, _ = read(folder(run, tmp_path) / "model.safetensors")
    assert all(t.dtype == torch.float32 and t.isfinite().all() for t in tensors.values())


def test_reference_is_one_flag_away(write_suite, data_dir, tmp_path, monkeypatch):
    """fp32, deterministic, upsampled by transposed convolutions, no shortcut: trained and scored.

    And it is the same net: what the fast way learns differs from it by rounding."""
    suite = write_suite({"runs": {"tiny/run": {"net": {"base": "slim", "score_init": "random"}}}})
    options = ["--suite", str(suite), "--data-dir", str(data_dir), "--device", "cpu"]
    found = {}
    for name, flag in (("fast", []), ("reference", ["--precision", "reference"])):
        results = tmp_path / name
        with monkeypatch.context() as patched, Passes() as seen:
            if flag:
                patched.delattr("fcn.nets.padded.PaddedTrunk")
            for stage in ("train", "evaluate"):
                words = [*options, "--threads", "1", "--results", str(results), *flag]
                assert main([stage, "tiny/run", *words]) == 0
        place = results / "tiny" / "run" / "seed0"
        for file in ("train.json", "metrics.json"):
            made = read_json(place / file)["provenance"]
            assert made["deterministic"] == bool(flag), file
            assert made["precision"] == (name if flag else "fp32"), file
        assert {how for how in seen.forward if how[0]} == (
            {(True, False, False)} if flag else set()
        )
        assert not torch.are_deterministic_algorithms_enabled()
        found[name] = read(place / "model.safetensors")[0]
    for name, tensor in found["reference"].items():
        torch.testing.assert_close(tensor, found["fast"][name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["rarefaction", "shift-and-stitch"])
def test_reference_holds_for_dense_scores(make_run, method):
    net = {"base": "slim", "skips": [], "score_init": "random", "dropout": 0.0}
    run = make_run(net=net, inference={"method": method, "stride": 16})
    built = build(run.config["net"], {"semantic": 3}).eval()
    initialise(built, 0)
    x = torch.randn(1, 3, 40, 56)
    fast = score_maps(inference_net(built, run, "fp32"), run, x)["semantic"]
    with Passes() as seen:
        exact = score_maps(inference_net(built, run, "reference"), run, x)["semantic"]
    assert any(transposed for transposed, *_ in seen.forward)
    torch.testing.assert_close(exact, fast)


class Passes(TorchDispatchMode):
    """Of each convolution: is it upsampling's, may it use TF32; and forward whether it computes in
    bfloat16, backward whether autocast is on."""

    def __init__(self):
        super().__init__()
        self.forward, self.backward = set(), set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in ("convolution", "convolution_backward"):
            backward = name == "convolution_backward"
            how = args[6 + backward], torch.backends.cudnn.allow_tf32
            if backward:
                self.backward.add((*how, torch.is_autocast_enabled("cpu")))
            else:
                self.forward.add((*how, args[0].dtype == torch.bfloat16))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_arithmetic_of_both_passes(make_run, data_dir, tmp_path, precision):
    """PyTorch's own default is TF32. Upsampling is float32; autocast is for the forward pass."""
    net = {"base": "slim", "interpolation": "learned", **NO_START}
    run = make_run(net=net, recipe={"base": "short", "precision": precision, "images": 4})
    before = torch.backends.cudnn.allow_tf32
    with Passes() as seen:
        start(run, data_dir, tmp_path)
    tf32 = precision == "tf32"
    assert seen.forward == {(False, tf32, precision == "bf16"), (True, False, False)}
    assert seen.backward == {(False, tf32, False), (True, False, False)}
    assert torch.backends.cudnn.allow_tf32 is before


def test_workers_change_nothing(make_run, data_dir, tmp_path):
    run = make_run(recipe={"base": "short", **ROUGH, "validate": 0})
    start(run, data_dir, tmp_path / "none")
    start(run, data_dir, tmp_path / "two", workers=2)
    same_outcome(run, tmp_path / "none", tmp_path / "two")


def test_of_two_trainings_of_one_run_and_seed_the_second_is_refused(make_run, data_dir, tmp_path):
    run = make_run()
    folder(run, tmp_path).mkdir(parents=True)
    other = os.open(folder(run, tmp_path), os.O_RDONLY)  # a lock is of who opened the folder
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(UserError, match=r"another process trains .* with seed 0; wait for it"):
        start(run, data_dir, tmp_path)
    assert list(folder(run, tmp_path).iterdir()) == []
    start(run, data_dir, tmp_path, seed=1)
    os.close(other)
    start(run, data_dir, tmp_path)


def test_an_empty_test_split_is_told_before_training(make_run, data_dir, tmp_path, monkeypatch):
    run = make_run()
    copy = tmp_path / "data"
    shutil.copytree(data_dir, copy)
    place = copy / "prepared" / run.dataset
    (place / "splits" / f"{run.split}.txt").write_text("")
    monkeypatch.setattr(training, "run_loop", None)
    with pytest.raises(UserError, match=f"the split {run.split} has no image"):
        start(run, copy, tmp_path / "results")


def test_too_small_images_are_named_before_training(make_run, data_dir, tmp_path, monkeypatch):
    run = make_run(net={"base": "slim", "architecture": "alexnet-owt", "skips": []})
    monkeypatch.setattr("fcn.data.dataset.SegmentationSet.sizes", [(20, 50)] * 8)
    with pytest.raises(UserError, match=r"image train_0000\d has 50x20 pixels, the net needs 35"):
        start(run, data_dir, tmp_path)


def test_checkpoints_are_rare_enough():
    assert CHECKPOINT_SECONDS >= 60
