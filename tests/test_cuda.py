"""What only a GPU shows: every stage in each precision, and the CPU's numbers from it."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from fcn.__main__ import main
from fcn.device import chosen, tf32
from fcn.evaluate import evaluate_run
from fcn.nets.upsample import _Transposed
from fcn.schema import ROOT
from fcn.timing import time_run
from fcn.train import train
from fcn.weights.named import read

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="PyTorch finds no CUDA GPU on this machine"
)
GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
NET = {"base": "slim", "score_init": "random", "interpolation": "learned"}
TOLERANCE = {"fp32": 1e-3, "tf32": 1e-2, "bf16": 5e-2}  # of a loss, after some updates


def recipe(precision, **change):
    return {"base": "short", "precision": precision, "images": 24, **change}


@pytest.mark.parametrize(
    ("precision", "change"),
    [
        ("fp32", {"validate": 8}),
        ("fp32", {"momentum": 0.0, "canvas": 32}),
        ("tf32", {"loss": "sigmoid", "canvas": 32}),
        ("bf16", {"class_balance": True, "validate": 8}),
    ],
)
def test_every_stage_of_a_run(make_run, data_dir, tmp_path, precision, change):
    """Stopped and resumed it ends as the whole one does, but for the order of sums."""
    run = make_run(net=NET, recipe=recipe(precision, **change))
    places = {"device": GPU, "data_dir": data_dir, "results": tmp_path / "parts"}
    assert train(run, 0, **places, stop_after=5) == {}
    found = train(run, 0, **places)
    whole = train(run, 0, **{**places, "results": tmp_path / "whole"}, workers=1)
    assert found["loss"] == pytest.approx(whole["loss"], rel=TOLERANCE[precision])
    tensors, _ = read(run.directory(tmp_path / "parts", 0) / "model.safetensors")
    assert all(t.dtype == torch.float32 and t.isfinite().all() for t in tensors.values())
    assert found["provenance"]["device"]["type"] == "cuda"
    assert found["peak_memory_bytes"] > 0
    scored = evaluate_run(run, 0, **places)
    assert scored["images"] == 4 and scored["provenance"]["precision"] == precision
    timed = time_run(run, 0, **places, size=(64, 64), trials=2)["protocols"]
    assert {"paper", "synchronised_tf32", "with_transfer_bf16"} <= timed.keys()
    assert all(protocol["min_ms"] > 0 for protocol in timed.values())


@pytest.mark.parametrize("precision", TOLERANCE)
def test_losses_are_the_cpus(make_run, data_dir, tmp_path, precision):
    net = {**NET, "dropout": 0.0, "width": 0.06, "hidden": 32}
    losses = []
    for device, kind in ((CPU, "fp32"), (GPU, precision)):
        run = make_run(net=net, recipe=recipe(kind, images=80, learning_rate=1e-3))
        results = tmp_path / device.type
        train(run, 0, device=device, data_dir=data_dir, results=results)
        table = run.directory(results, 0) / "loss.csv"
        losses.append(np.loadtxt(table, delimiter=",", skiprows=1)[:, 3])
    assert len(losses[0]) == 2
    np.testing.assert_allclose(losses[1], losses[0], rtol=TOLERANCE[precision])


def test_upsampling_is_float32_beside_tf32():
    """Forward and backward, against float64; TF32 would be off by some 1e-4."""
    x, weight = torch.randn(2, 21, 20, 20).double(), torch.randn(21, 21, 4, 4).double()

    def outcome(call, *given):
        tensors = [tensor.detach().requires_grad_() for tensor in given]
        out = call(*tensors)
        return [out, *torch.autograd.grad(out.square().sum(), tensors)]

    true = outcome(lambda x, w: F.conv_transpose2d(x, w, stride=2), x, weight)
    with tf32(True):
        ours = outcome(
            lambda x, w: _Transposed.apply(x, w, 2, 1), *(v.float().to(GPU) for v in (x, weight))
        )
    for found, expected in zip(ours, true, strict=True):
        assert (found.cpu() - expected).abs().max() < 5e-5 * expected.abs().max()


def test_a_clock_starts_before_cuda_has():
    code = (
        "import torch; from fcn.provenance import Clock\n"
        "device = torch.device('cuda', 0); clock = Clock(device)\n"
        "held = torch.zeros(1 << 20, device=device)\n"
        "facts = clock.provenance(precision='fp32', seed=0)\n"
        "print(facts['peak_memory_bytes'] >= 4 << 20, facts['device']['type'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "True cuda\n", done.stderr


def test_labels_of_a_file_are_the_cpus(make_run, data_dir, tmp_path):
    with chosen("auto") as device:
        assert device.type == "cuda"
    run = make_run(net=NET, recipe=recipe("fp32"))
    train(run, 0, device=GPU, data_dir=data_dir, results=tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3)).astype(np.uint8)
    Image.fromarray(pixels).resize((120, 90)).save(tmp_path / "photo.png")
    labels = []
    for device_name, precision in (("cpu", "fp32"), ("cuda", "fp32"), ("cuda:0", "bf16")):
        out = tmp_path / f"{device_name}-{precision}"
        weights = run.directory(tmp_path, 0) / "model.safetensors"
        command = ["predict", "--net", "auto", "--weights", weights, "--out", out]
        options = ["--device", device_name, "--precision", precision, tmp_path / "photo.png"]
        assert main([str(word) for word in [*command, *options]]) == 0
        labels.append(np.array(Image.open(out / "photo.png")))
    assert (labels[0] == labels[1]).mean() > 0.995
    assert (labels[0] == labels[2]).mean() > 0.9
