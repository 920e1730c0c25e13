"""What only a GPU shows: every stage in each precision, and the CPU's numbers from it."""

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from fcn.__main__ import main
from fcn.device import autocast, chosen, tf32
from fcn.evaluate import evaluate_run
from fcn.graphs import Graphs, on_stream
from fcn.nets import build
from fcn.nets.conv import ConvReLU
from fcn.nets.padded import _sources, for_inference
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


@pytest.fixture(autouse=True)
def graphs_early(monkeypatch):
    """Few updates are enough for graphs to take part."""
    monkeypatch.setattr("fcn.graphs.AFTER", 2)


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


@pytest.mark.parametrize("change", [{"canvas": 64, "batch": 1}, {"batch": 4}])
def test_graphs_train_as_calls_do(make_run, data_dir, tmp_path, monkeypatch, change):
    """One group an update, recorded with the optimiser, and (JoinedSet of two sizes) several."""
    net = {**NET, "dropout": 0.0}
    run = make_run(
        net=net,
        train=["tiny/train", "square/train"],
        recipe=recipe("fp32", images=96, learning_rate=1e-3, **change),
    )
    replays, weights = [], []
    replay = torch.cuda.CUDAGraph.replay

    def counted(graph):
        replays.append(graph)
        replay(graph)

    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", counted)
    for after in (2, 10**9):
        monkeypatch.setattr("fcn.graphs.AFTER", after)
        results = tmp_path / str(after)
        replays.clear()
        train(run, 0, device=GPU, data_dir=data_dir, results=results)
        weights.append(read(run.directory(results, 0) / "model.safetensors")[0])
        assert len(replays) > 20 if after == 2 else not replays
    for name, found in weights[0].items():
        moved = (weights[1][name] - found).abs().max()
        assert moved <= 1e-4 * weights[1][name].abs().max() + 1e-7, name


def test_dropout_is_drawn_anew_in_a_graph():
    layer = torch.nn.Dropout(0.5)
    drawn = Graphs(lambda x: layer(x), GPU)
    with on_stream(GPU):
        seen = {drawn(torch.ones(64, device=GPU)).cpu().numpy().tobytes() for _ in range(8)}
    assert len(seen) == 8


def test_after_a_recording_that_fails_the_device_is_as_before():
    """``item`` waits for the device, which a recording cannot."""
    layer = torch.nn.Dropout(0.5)
    waiting = Graphs(lambda x: layer(x) * x.sum().item(), GPU)
    drawn = Graphs(lambda x: layer(x), GPU)
    with on_stream(GPU):
        for _ in range(12):
            waiting(torch.ones(64, device=GPU))
        seen = {drawn(torch.ones(64, device=GPU)).cpu().numpy().tobytes() for _ in range(12)}
        held = torch.empty(1 << 26, device=GPU)
        del held
        before = torch.cuda.memory_reserved(GPU)
        torch.cuda.empty_cache()
    assert waiting._room == 0 and not waiting._graphs
    assert len(seen) == 12 and drawn._graphs
    assert torch.cuda.memory_reserved(GPU) < before


def test_a_graph_keeps_what_caches_drop(make_run, data_dir):
    run = make_run(train=None, net=NET, weights="none", recipe="none")
    net = build(run.config["net"], {"semantic": 4}).to(GPU).eval()
    fast = for_inference(net)
    x = torch.randn(2, 3, 64, 96, device=GPU)
    replayed = Graphs(lambda x: fast(x)["semantic"], GPU)
    with torch.inference_mode(), on_stream(GPU):
        first = replayed(x).clone()
        replayed(x)
        for module in fast.modules():
            for cache in ("_matrices", "_quiet"):
                getattr(module, cache, {}).clear()
        _sources.cache_clear()
        filler = [torch.full((64, 64), torch.nan, device=GPU) for _ in range(4096)]
        assert torch.equal(replayed(x), first) and filler


@pytest.mark.parametrize(("channels", "stride", "dilation"), [(8, 1, 1), (16, 2, 1), (24, 1, 2)])
def test_a_fused_rectifier_is_the_plain_one(channels, stride, dilation):
    """Values and gradients in bfloat16, against float64 from the same rounded numbers."""
    torch.manual_seed(0)
    layer = ConvReLU(channels, 32, 3, stride, 2, dilation)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(parameter.bfloat16())
    x = torch.randn(2, channels, 21, 30).bfloat16().float().requires_grad_()
    plain = copy.deepcopy(layer).double()
    true_x = x.detach().double().requires_grad_()
    ours = layer.to(GPU)
    our_x = x.detach().to(GPU).requires_grad_()
    with autocast("bf16", GPU):
        assert ours._fuses(our_x)
        found = ours(our_x)
    expected = plain(true_x)
    weights = torch.randn_like(expected)
    (expected * weights).sum().backward()
    (found.float() * weights.float().to(GPU)).sum().backward()
    pairs = [(found, expected), (our_x.grad, true_x.grad)]
    pairs += [(p.grad, q.grad) for p, q in zip(ours.parameters(), plain.parameters(), strict=True)]
    for ours_, true in pairs:
        gap = (ours_.detach().cpu().double() - true).norm() / true.norm()
        assert gap < 1e-2


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
