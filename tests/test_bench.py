"""Floors against hand counts, pairs against known ratios, the plain net against ours, the page."""

import copy
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fcn.bench.canvas as canvas_module
import fcn.bench.run as run_module
from fcn.arguments import parser
from fcn.bench import cases, memory, scale
from fcn.bench.canvas import canvas
from fcn.bench.floors import (
    Work,
    ceilings,
    floors_of,
    floors_of_suite,
    forward_work,
    gflop_of,
    on_meta,
    per_layer,
    training_work,
)
from fcn.bench.page import write_page
from fcn.bench.paired import alternate, ratio
from fcn.bench.plain import Peer, PlainFCN, plain_step
from fcn.bench.record import NEEDS, joined
from fcn.data.dataset import SegmentationSet
from fcn.errors import UserError
from fcn.metrics import ConfusionMatrix
from fcn.nets import build
from fcn.nets.padded import for_inference
from fcn.options import RECIPE_OPTIONS
from fcn.schema import ROOT
from fcn.suites import load_suite
from fcn.weights.named import named_tensors, save

CPU = torch.device("cpu")
CLASSES = 3
RECIPE = {
    **RECIPE_OPTIONS,
    "batch": 1,
    "loss": "softmax",
    "normalize": True,
    "learning_rate": 1e-3,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "bias_rate": 2.0,
    "bias_decay": 0.0,
    "score_rate": 1.0,
    "train_layers": "all",
}


def slim(name: str, **options):
    suite = load_suite("paper")
    small = {"width": 0.0625, "hidden": 8, "dropout": 0.0, "score_init": "random"}
    return {**suite.resolved_net(name), **small, **options}


# ------------------------------------------------------------------------------------------ floors


def test_flop_of_the_paper_nets_are_the_derived_ones(named_nets):
    for name in ("voc-fcn32s", "voc-fcn8s", "voc-fcn-alexnet"):
        net, entry = named_nets[name]
        found = gflop_of(on_meta(net, 21).exact(), (375, 500))
        assert entry["gflop"] <= found < 1.02 * entry["gflop"]  # more: upsampling, normalisation


def test_work_of_one_convolution_by_hand():
    net = on_meta(slim("voc-fcn32s", padding="tight"), CLASSES)
    rows = per_layer(net, (64, 96))
    first = next(row for row in rows if row["layer"] == "conv1_1")
    cells, out = 64 * 96, 4
    assert first["flop"] == 2 * cells * out * 27
    assert first["moved"] == cells * (3 + out)
    assert first["weights"] == 28 * out
    assert sum(row["flop"] for row in rows) == pytest.approx(1e9 * gflop_of(net, (64, 96)))
    lean = for_inference(on_meta(slim("voc-fcn32s"), CLASSES))
    total = sum(row["flop"] for row in per_layer(lean, (64, 96)))
    assert total == pytest.approx(1e9 * gflop_of(lean, (64, 96)))
    assert forward_work(net, (64, 96)).moved == sum(row["moved"] for row in rows)


@settings(max_examples=5, deadline=None)
@given(batch=st.integers(1, 4))
def test_work_grows_with_the_batch_and_training_is_thrice_without_the_images_gradient(batch):
    net = on_meta(slim("voc-fcn32s", padding="tight"), CLASSES)
    size = (64, 64)
    one, many = forward_work(net, size), forward_work(net, size, batch)
    assert many.flop == pytest.approx(batch * one.flop)
    assert (many.moved, many.weights) == (batch * one.moved, one.weights)
    first = batch * 2 * 64 * 64 * 4 * 27
    step = training_work(net, size, batch)
    fixed = batch * 1e9 * (gflop_of(net, size) - _convolutions(net, size))  # upsampling: no weights
    assert step.flop == pytest.approx(3 * many.flop - first - fixed)


def _convolutions(net, size):
    layers = {n.rpartition(".")[2] for n, m in net.named_modules() if isinstance(m, nn.Conv2d)}
    return sum(row["flop"] for row in per_layer(net, size) if row["layer"] in layers) / 1e9


def test_the_floor_is_the_longer_of_arithmetic_and_traffic():
    rates = {"fp32": 1e9, "bf16": 4e9, "copy": 1e9}
    work = Work(flop=8e9, weights=10**8, moved=10**8)
    assert work.floor_ms("fp32", rates) == 8000
    assert work.floor_ms("bf16", rates) == 2000
    assert Work(1.0, 10**8, 10**8).floor_ms("fp32", rates) == 800
    # weights read twice and written, momentum read and written, all fp32; activations thrice
    assert work.bytes("bf16", training=True) == 4e8 * 5 + 2e8 * 3


def test_inference_has_less_to_do_than_the_authors_order():
    (row,) = floors_of(
        "x", slim("voc-fcn32s"), CLASSES, [(200, 300)], {"fp32": 1e9, "bf16": 2e9, "copy": 1e12}
    )
    assert row["least_gflop"] < 0.8 * row["authors_gflop"]
    assert row["forward_floor_ms"]["fp32"] == pytest.approx(1e3 * row["least_gflop"])
    assert row["forward_floor_ms"]["bf16"] == pytest.approx(5e2 * row["least_gflop"])


def test_floors_of_every_net_that_the_paper_trains(named_nets):
    suite, rates = load_suite("paper"), {"fp32": 1e12, "copy": 1e30}
    rows = floors_of_suite(suite, rates)
    found = {(row["net"], tuple(row["size"])) for row in rows}
    assert len(found) == len(rows)
    used = {run.named_net for run in suite.runs.values()}
    assert {name for name, _ in found} == used <= set(named_nets)
    assert used >= {"voc-fcn2s", "nyud-fcn16s-color-hha", "siftflow-fcn8s", "pascalcontext-fcn8s"}
    sizes = {kind: {size for name, size in found if name.startswith(kind)} for kind in "vnsp"}
    voc = {(375, 500), (500, 500)}
    assert sizes == {"v": voc, "n": {(425, 560)}, "s": {(256, 256)}, "p": voc}
    by_name = {(row["net"], row["size"][0]): row for row in rows}
    heads = by_name["siftflow-fcn32s", 256]
    assert heads["classes"] == {"semantic": 33, "geometric": 3}
    net = suite.resolved_net("siftflow-fcn32s")
    both = training_work(on_meta(net, heads["classes"]), (256, 256), 1)
    assert heads["training_gflop"] == pytest.approx(both.flop / 1e9)
    assert heads["training_gflop"] > training_work(on_meta(net, 33), (256, 256), 1).flop / 1e9
    late = by_name["nyud-fcn32s-color-hha", 425]
    assert late["whole_gflop"] > 1.9 * by_name["nyud-fcn32s-color", 425]["whole_gflop"]
    counts = {"voc-fcn8s": 736, "nyud-fcn32s-hha": 654, "siftflow-fcn8s": 200}
    for row in rows:
        passed = row["evaluation"]
        assert passed["images"] == counts.get(row["net"], passed["images"])
        assert passed["gflop"] == pytest.approx(passed["images"] * row["least_gflop"])
        assert passed["floor_ms"]["fp32"] == pytest.approx(passed["gflop"])  # at 1 TFLOP/s
        assert passed["bytes"]["fp32"] == passed["images"] * row["forward_bytes"]["fp32"]


def test_ceilings_are_positive_rates():
    found = ceilings(CPU, trials=1)
    assert set(found) == {"fp32", "bf16", "copy"}
    assert min(found.values()) > 1e6


# ------------------------------------------------------------------------------------------- pairs


@given(
    st.lists(st.floats(0.1, 1e4), min_size=1, max_size=20),
    st.floats(0.1, 10),
    st.lists(st.floats(0.5, 20), min_size=20, max_size=20),
)
def test_what_disturbs_both_cancels(fast, factor, disturbance):
    disturbed = [t * d for t, d in zip(fast, disturbance, strict=False)]
    found = ratio([factor * t for t in disturbed], disturbed)
    assert found["median"] == pytest.approx(factor)
    assert found["low"] == pytest.approx(factor) and found["high"] == pytest.approx(factor)


@given(st.lists(st.floats(0.1, 1e3), min_size=3, max_size=15), st.integers(0, 5))
def test_the_interval_holds_the_median_and_is_the_seeds(slow, seed):
    fast = [1.0] * len(slow)
    found = ratio(slow, fast, seed)
    assert min(slow) <= found["low"] <= found["median"] <= found["high"] <= max(slow)
    assert found == ratio(slow, fast, seed)


def test_variants_take_turns():
    calls: list[str] = []
    variants = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    found = alternate(variants, CPU, rounds=3, repeat=2, warmup=1)
    assert "".join(calls) == "abc" + "aabbcc" + "bbccaa" + "ccaabb"
    assert all(len(samples.wall) == len(samples.cpu) == 3 for samples in found.values())


# ------------------------------------------------------------------------------ what is compared to


PLAIN = [
    ("voc-fcn32s", {}),
    ("voc-fcn8s", {}),
    ("voc-fcn8s-atonce", {"interpolation": "fixed"}),
    ("voc-fcn8s", {"padding": "tight"}),
    ("voc-fcn-alexnet", {}),
    ("voc-fcn-googlenet", {}),
]


@pytest.mark.parametrize(("name", "options"), PLAIN)
def test_the_plain_net_is_the_same_function(name, options):
    net = cases.fresh(slim(name, **options), CLASSES, CPU)
    x = cases.noise(2, (70, 90), CPU)
    with torch.no_grad():
        ours, plain = net(x)["semantic"], PlainFCN(net).eval()(x.contiguous())
    assert torch.allclose(ours, plain, atol=1e-5 * float(ours.abs().max()))


@pytest.mark.parametrize("normalize", [True, False])
def test_a_plain_step_is_our_step(normalize):
    recipe = {**RECIPE, "normalize": normalize, "learning_rate": 1e-3 if normalize else 1e-7}
    net = cases.fresh(slim("voc-fcn8s", padding="tight"), CLASSES, CPU)
    plain = PlainFCN(net)
    before = copy.deepcopy(net.state_dict())
    x, truth = cases.noise(1, (40, 50), CPU), cases.label_blocks(1, (40, 50), CLASSES, CPU)
    ours = cases.our_step(net, recipe, x, truth, "fp32")
    theirs = plain_step(plain, recipe, x.contiguous(), truth)
    for _ in range(2):
        ours()
        theirs()
    layer = "conv2_1.weight"
    moved = dict(net.streams[0].layers.named_parameters())[layer] - before[f"trunk.layers.{layer}"]
    names = [name for name, _ in net.streams[0].features()]
    plain_weight = plain.trunk[names.index("conv2_1")].weight
    gap = plain_weight - before[f"trunk.layers.{layer}"]
    assert float(moved.detach().abs().max()) > 0
    assert torch.allclose(moved, gap, atol=1e-3 * float(moved.detach().abs().max()))


def test_max_fusion_has_no_plain_version():
    with pytest.raises(ValueError, match="sums"):
        PlainFCN(build(slim("voc-fcn16s-max"), {"semantic": CLASSES}))


PORT = """
from torch import nn
class {name}(nn.Module):
    def __init__(self, n_class=21):
        super().__init__()
        self.conv1_1 = nn.Conv2d(3, 4, 3, padding=1)
        self.score_fr = nn.Conv2d(4, n_class, 1)
    def forward(self, x):
        return self.score_fr(self.conv1_1(x))
"""
TRAINER = """
import a_package_that_is_not_installed
def cross_entropy2d(input, target, weight=None, size_average=True):
    if LooseVersion(torch.__version__) < LooseVersion("0.3"):
        raise ValueError("old")
    return F.cross_entropy(input, target, ignore_index=-1, reduction="sum")
"""


@pytest.fixture
def port(tmp_path):
    """A stand-in for a checkout of the port: its file and function names, our contents."""
    package = tmp_path / "torchfcn"
    (package / "models").mkdir(parents=True)
    for name in ("FCN32s", "FCN8s"):
        (package / "models" / f"{name.lower()}.py").write_text(PORT.format(name=name))
    (package / "utils.py").write_text("def label_accuracy_score(t, p, n_class): return t, p\n")
    (package / "trainer.py").write_text(TRAINER)
    return tmp_path


def test_a_port_takes_our_weights_and_makes_steps(port):
    ours = cases.fresh(slim("voc-fcn32s"), CLASSES, CPU)
    peer = Peer(port)
    net = peer.net("voc-fcn32s", ours)
    assert torch.equal(net.conv1_1.weight, ours.streams[0].layers.conv1_1.weight)  # type: ignore[arg-type, union-attr]
    x, truth = cases.noise(1, (20, 20), CPU), cases.label_blocks(1, (20, 20), CLASSES, CPU)
    expected = F.cross_entropy(
        net(x), torch.where(truth == 255, -100, truth.long()), reduction="sum"
    )
    step = peer.step(net, RECIPE, x, truth, with_scores=True)
    assert step() == pytest.approx(expected.item())
    assert step() != pytest.approx(expected.item())


def test_what_is_no_port_is_refused(tmp_path, port):
    with pytest.raises(UserError, match="checkout of"):
        Peer(tmp_path / "elsewhere")
    (port / "torchfcn" / "trainer.py").write_text("x = 1\n")
    with pytest.raises(UserError, match="cross_entropy2d"):
        Peer(port)


# ------------------------------------------------------------------------------------------- cases

RATES = {"fp32": 1e11, "bf16": 2e11, "copy": 2e10}


def test_inference_and_training_of_slim_nets(one_thread):
    demo = load_suite("demo")
    case = cases.inference(demo, "slim-fcn-alexnet", (64, 64), CPU, 2, RATES, None)
    assert [v["name"] for v in case["variants"]] == ["reference", "fp32", "bf16"]
    assert all(v["median_ms"] > 0 and v["multiple"] > 0 for v in case["variants"])
    assert {r["fast"] for r in case["ratios"]} == {"ours, bf16", "ours, fp32"}
    assert "e-0" in next(note for note in case["notes"] if "fp32" in note)
    run = demo.run("demo/fcn32s")
    case = cases.training(
        "demo", "fp32", "t", run.config["net"], run.config["recipe"], 4, (64, 64), CPU, 2, RATES
    )
    goals = {r["fast"]: r["goal"] for r in case["ratios"]}
    assert goals == {"ours, fp32": 2.0, "ours, bf16": None}
    json.dumps(case, allow_nan=False)


def test_kept_memory_is_measured_in_processes_of_their_own():
    case = memory.kept(1, RATES, steps=1, size=(32, 32))
    assert [v["name"] for v in case["variants"]] == ["bf16_given_back", "bf16"]
    (found,) = case["ratios"]
    assert found["slow"].startswith("freed memory given back") and found["median"] > 0
    assert found["fast"] == "ours, bf16" and found["goal"] is None


@pytest.fixture
def weights_on_images(data_dir, tmp_path):
    """Weights as a run leaves them, of random numbers, and prepared images of their classes."""
    prepared = data_dir / "prepared" / "tiny"
    info = json.loads((prepared / "dataset.json").read_text())
    convention = {"order": "bgr", "mean": [104.0, 117.0, 123.0], "std": [1.0, 1.0, 1.0]}

    def save_net(name="voc-fcn32s", **options):
        net = slim(name, **options)
        about = {"net": net, "classes": info["classes"], "input": convention}
        built = cases.fresh(net, len(info["classes"]["semantic"]), CPU)
        path = tmp_path / f"{name}.safetensors"
        save(path, named_tensors(built), about | {"run": f"tiny/{name}", "seed": 3})
        return path, prepared

    return save_net


def agreement_rows(weights, prepared):
    found = cases.agreement(weights, prepared, "val", 3, CPU, RATES)
    assert (found["net"], found["seed"], found["images"]) == ("tiny/voc-fcn32s", 3, 3)
    return {row["name"]: row for row in found["rows"]}


def test_images_without_a_labelled_pixel_are_refused(data_dir):
    dataset = SegmentationSet(data_dir / "prepared" / "tiny", "val")
    with pytest.raises(UserError, match="no labelled pixel in the images of val"):
        cases.mean_iu(ConfusionMatrix(3, CPU), dataset)


def test_agreement_of_right_variants(weights_on_images):
    weights, prepared = weights_on_images()
    found = agreement_rows(weights, prepared)
    assert found["reference"]["agreement"] == 1
    assert found["fp32"]["agreement"] > 0.999 and found["bf16"]["agreement"] > 0.9
    assert found["fp32"]["mean_iu"] == pytest.approx(found["reference"]["mean_iu"], abs=1e-3)
    classes = len(json.loads((prepared / "dataset.json").read_text())["classes"]["semantic"])
    lean = for_inference(on_meta(slim("voc-fcn32s"), classes))
    dataset = SegmentationSet(prepared, "val")
    sizes = [dataset.sizes[i] for i in cases.evenly(len(dataset), 3)]
    for name, precision in (("reference", "fp32"), ("fp32", "fp32"), ("bf16", "bf16")):
        row = found[name]
        least = sum(forward_work(lean, size).floor_ms(precision, RATES) for size in sizes)
        assert row["floor_images_per_second"] == pytest.approx(3e3 / least)
        assert row["multiple"] == pytest.approx(3e3 / least / row["images_per_second"])


@pytest.mark.parametrize("wrong", ["nothing", "argmax", "mean IU"])
def test_agreement_sees_a_wrong_variant(weights_on_images, monkeypatch, wrong):
    """Each of both alone: other labels at void pixels, which no mean IU sees; and a few pixels, too
    few for the argmax, of a class that was never right."""
    weights, prepared = weights_on_images()
    true_net = cases.for_inference
    dataset = SegmentationSet(prepared, "val")
    truths = (dataset[i]["semantic"] for i in cases.evenly(len(dataset), 3))

    def broken(net, precision="fp32"):
        exact = true_net(net).exact()
        exact.trunk = net.trunk
        if precision != "bf16":
            return exact

        def variant(x):
            with torch.autocast("cpu", enabled=False):
                scores = exact(x)["semantic"].clone()
            labels, truth = scores[0].argmax(0), next(truths)
            if wrong == "argmax":
                chosen = truth == 255
                wanted = (labels + 1) % len(scores[0])
            elif wrong == "mean IU":
                missed = [(truth == k) & (labels != k) for k in range(len(scores[0]))]
                rare = min((m for m in missed if m.any()), key=lambda m: int(m.sum()))
                chosen = rare & (rare.flatten().cumsum(0).view_as(rare) <= 2)
                wanted = truth.long()
            else:
                return {"semantic": scores}
            rows, columns = chosen.nonzero(as_tuple=True)
            scores[0, wanted[rows, columns], rows, columns] = scores.max() + 1
            return {"semantic": scores}

        return variant

    monkeypatch.setattr(cases, "for_inference", broken)
    found = agreement_rows(weights, prepared)
    row, off = found["bf16"], abs(found["bf16"]["mean_iu"] - found["reference"]["mean_iu"])
    assert (row["agreement"] < 0.998) == (wrong == "argmax")
    assert (off > 0.0005) == (wrong == "mean IU")
    assert row["met"] == (wrong == "nothing")


@pytest.mark.parametrize("padding", ["tight", "reference"])
def test_a_canvas_changes_something_and_no_canvas_nothing(weights_on_images, padding, one_thread):
    weights, prepared = weights_on_images(padding=padding)
    found = canvas(weights, prepared, "val", None, CPU, gradients=3, side=64)
    assert (found["images"], found["gradients"], found["padding"]) == (4, 3, padding)
    assert 0.5 < found["agreement"] < 1 and found["mean_iu"][0] != found["mean_iu"][1]
    assert 0 < found["loss"]["median"] <= found["loss"]["largest"] < 1
    assert 0 < found["gradient"]["median"] <= found["gradient"]["largest"]
    same = canvas(weights, prepared, "val", 2, CPU, gradients=2, side=1)
    assert (same["images"], same["agreement"]) == (2, 1)
    assert same["mean_iu"][0] == same["mean_iu"][1]
    assert same["loss"]["largest"] == same["gradient"]["largest"] == 0


def test_on_a_canvas_are_the_images_pixels_zeros_and_void(weights_on_images, monkeypatch):
    """And the whole net learns from them, without dropout."""
    weights, prepared = weights_on_images(dropout=0.5)
    true_gradient = canvas_module._gradient
    asked, gradients = [], []

    def watched(net, x, truth):
        assert not net.training
        asked.append((x, truth))
        gradients.append(true_gradient(net, x, truth))
        return gradients[-1]

    monkeypatch.setattr(canvas_module, "_gradient", watched)
    found = canvas(weights, prepared, "val", 1, CPU, gradients=1, side=64)
    (x, truth), (larger, around) = asked
    height, width = truth.shape[1:]
    assert larger.shape[2:] == around.shape[1:] == (64, 64) != truth.shape[1:]
    assert torch.equal(larger[:, :, :height, :width], x) and torch.equal(
        around[:, :height, :width], truth
    )
    assert larger.count_nonzero() == x.count_nonzero()
    assert (around != 255).sum() == (truth != 255).sum() > 0
    net, _ = cases.trained(weights)
    (_, own), (_, moved) = gradients
    assert sum(part.numel() for part in own) == sum(p.numel() for p in net.parameters())
    one, other = (torch.cat([part.flatten() for part in parts]) for parts in (own, moved))
    assert found["gradient"]["median"] == pytest.approx(float((one - other).norm() / one.norm()))


LOG = """
  Date: 2026-01-01 10:00:00
Provided cores: 2
[Thu Jan  1 10:00:10 2026]
localrule prepare:
[Thu Jan  1 10:00:40 2026]
Finished jobid: 1 (Rule: prepare)
[Thu Jan  1 10:00:45 2026]
localrule train:
[Thu Jan  1 10:00:45 2026]
localrule train:
[Thu Jan  1 10:01:05 2026]
Finished jobid: 2 (Rule: train)
[Thu Jan  1 10:01:35 2026]
Finished jobid: 3 (Rule: train)
[Thu Jan  1 10:01:40 2026]
5 of 5 steps (100%) done
"""


def test_the_dags_own_share_by_hand(tmp_path):
    (tmp_path / ".snakemake" / "log").mkdir(parents=True)
    (tmp_path / ".snakemake" / "log" / "1.snakemake.log").write_text(LOG)
    for name, seconds in (("prepare", 30), ("a", 20), ("b", 50)):
        place = tmp_path / "logs" / ("prepare" if name == "prepare" else f"train/{name}")
        place.parent.mkdir(parents=True, exist_ok=True)
        resident = "NA" if name == "b" else seconds
        place.with_suffix(".tsv").write_text(f"s\th:m:s\tmax_rss\n{seconds}\t-\t{resident}\n")
    found = scale.dag(tmp_path)
    assert found["wall_seconds"] == 100 and found["jobs"] == 3 and found["cores"] == 2
    assert found["snakemake_share"] == pytest.approx(0.2)  # 10 s before, 5 between, 5 after
    assert found["busy"] == pytest.approx(0.5)
    assert found["stages"] == [
        {"stage": "train", "jobs": 2, "seconds": 70.0, "peak_bytes": 20 * 2**20},
        {"stage": "prepare", "jobs": 1, "seconds": 30.0, "peak_bytes": 30 * 2**20},
    ]


def test_memory_is_that_of_all_processes_and_a_failure_meets_no_goal():
    program = (
        "import subprocess, sys; block = b'1' * 60_000_000; "
        "subprocess.run([sys.executable, '-c', "
        "'import time; block = b\"1\" * 60_000_000; time.sleep(1)']); sys.exit(3)"
    )
    found = scale.measured([sys.executable, "-c", program])
    assert 120e6 < found["peak_bytes"] < 200e6 and found["status"] == 3
    assert not scale._row("x", found, 100.0, 1e9)["met"]
    assert scale._row("x", {**found, "status": 0}, 100.0, 1e9)["met"]
    assert not scale._row("x", {**found, "status": 0}, 100.0, 1e8)["met"]


def test_the_imitated_paper_is_finished_and_its_report_holds_every_result():
    rows = scale.harness({"train": 70, "val": 3}, seeds=1)
    assert [(row["status"], row["said"]) for row in rows] == [(0, "")] * 4
    assert all(row["peak_bytes"] > 20e6 for row in rows[:3])
    assert "HHA" in rows[3]["what"] and rows[3]["seconds"] > 0


def test_stages_of_another_tree_are_read_from_its_logs(tmp_path):
    """By the tree's name: where it lies is nobody's concern."""
    logs = tmp_path / "other" / "logs"
    for name, seconds, resident in (("fetch/a", 3, 50), ("fetch/b", 4, 70), ("extract/a", 9, "NA")):
        place = (logs / name).with_suffix(".tsv")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(f"s\th:m:s\tmax_rss\n{seconds}\t-\t{resident}\n")
    found = scale.logged(logs)
    assert found == {
        "tree": "other",
        "stages": [
            {"stage": "extract", "jobs": 1, "seconds": 9.0, "peak_bytes": 0},
            {"stage": "fetch", "jobs": 2, "seconds": 7.0, "peak_bytes": 70 * 2**20},
        ],
    }
    with pytest.raises(UserError, match="folder logs"):
        scale.logged(tmp_path / "other" / "nowhere")


def test_stages_that_the_demo_lacks_run_on_generated_input():
    suite = load_suite("demo")
    rows = scale.processes(suite, suite.run("demo/fcn32s"), images=9, labelled=2)
    assert [(row["stage"], row["status"], row["said"]) for row in rows] == [
        ("extract", 0, ""), ("submission", 0, ""), ("predict", 0, "")
    ]  # fmt: skip
    assert "9 images" in rows[0]["what"] and rows[1]["what"].startswith("2 images")
    assert min(row["peak_bytes"] for row in rows[1:]) > 100e6 and rows[0]["peak_bytes"] > 5e6


def test_the_page_has_the_peaks_of_all_stages(tmp_path):
    alone = {**measured()["harness"][0], "stage": "extract", "what": "an archive", "status": 0}
    fetched = [{"stage": "fetch", "jobs": 1, "seconds": 1.0, "peak_bytes": 77 * 2**20}]
    logs = [{"tree": "other", "stages": fetched}]
    write_page({"cpu": whole_record(processes=[alone], logs=logs)}, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    Page(text)
    assert "stage of the demo" in text and "stage of the tree other" in text
    assert "77.00\u00a0MiB" in text.replace(" MiB", "\u00a0MiB")
    assert re.search(r"<td>extract</td><td[^>]*>an archive</td>.*128\.0.MiB", text)


def test_options_that_may_be_given_several_times():
    asked = ["bench", "--weights", "a", "--weights", "b", "--data", "d", "--logs", "l"]
    found = parser().parse_args(asked)
    assert [str(path.name) for path in found.weights] == ["a", "b"] and len(found.logs) == 1
    assert parser().parse_args(["bench"]).weights == []


def test_a_tree_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="run the demo there"):
        scale.dag(tmp_path)


# -------------------------------------------------------------------------------------------- page


def measured(**changes):
    """What a measurement leaves, with made-up figures."""
    variant = {
        "name": "fp32",
        "label": "ours, fp32",
        "median_ms": 12.5,
        "min_ms": 10.0,
        "quartiles_ms": [11.0, 13.0],
        "cpu_ms": 20.0,
        "rounds": 3,
        "floor_ms": 5.0,
        "multiple": 2.5,
    }
    comparison = {
        "slow": "plain <b>",
        "fast": "ours, fp32",
        "median": 1.5,
        "low": 1.2,
        "high": 1.9,
        "cpu_time": 1.6,
        "goal": 2.0,
        "met": False,
    }
    case = {
        "kind": "demo",
        "title": "a case",
        "variants": [variant],
        "ratios": [comparison],
        "notes": ["a note"],
    }
    rows = floors_of("x", slim("voc-fcn32s"), CLASSES, [(64, 64)], RATES)
    origin = {
        "code": {"version": "0", "commit": "abc", "dirty": True},
        "packages": {"torch": "2"},
        "python": "3",
        "platform": "p",
        "device": {"type": "cpu", "name": "a processor", "count": 2},
        "threads": 2,
        "started": "2026-01-01",
        "wall_seconds": 1.0,
        "peak_memory_bytes": 2**30,
        "command": "python -m fcn bench",
    }
    row = {
        "what": "snakemake -n",
        "seconds": 4.0,
        "cpu_seconds": 3.0,
        "peak_bytes": 2**27,
        "status": 1,
        "said": "why <i>",
        "goal_seconds": 5.0,
        "goal_bytes": None,
        "met": False,
    }
    return {
        "quick": False,
        "peer": None,
        "ceilings": RATES,
        "floors": rows,
        "layers": {"net": "x", "size": [64, 64], "rows": [{**LAYER}]},
        "cases": [case],
        "agreement": None,
        "loading": None,
        "start_seconds": 2.0,
        "harness": [row],
        "dag": None,
        "missing": ["Loading needs --data."],
        "load": [5.0, 4.0],
        "provenance": origin,
        **changes,
    }


LAYER = {"layer": "conv1_1", "flop": 1e9, "moved": 10**6, "weights": 28}


class Page(HTMLParser):
    """Collects links and checks that tags are closed in order."""

    VOID = ("meta", "br", "link", "img")

    def __init__(self, text):
        super().__init__()
        self.open: list[str] = []
        self.loads, self.anchors, self.ids = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.loads += [values[key] for key in ("src", "data") if key in values]
        self.anchors += [values["href"]] if "href" in values else []
        self.ids += [values["id"]] if "id" in values else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_long_table_of_floors_is_folded_up(tmp_path):
    (row,) = floors_of("voc-x", slim("voc-fcn32s"), CLASSES, [(64, 64)], RATES)
    passed = {"images": 654, "gflop": 5e3, "bytes": {"fp32": 2e9}, "floor_ms": {"fp32": 3e5}}
    more = {"dataset": "nyud", "classes": {"semantic": 33, "geometric": 3}, "evaluation": passed}
    write_page({"cpu": measured(suite_floors=[row | more])}, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    Page(text)
    folded = "".join(re.findall(r"<details.*?</details>", text, re.DOTALL))
    assert folded.count("voc-x") == text.count("voc-x") == 3
    assert "33 + 3" in folded and "654" in folded and "300\u00a0s" in folded


def test_the_page_says_that_no_gpu_was_measured_and_loads_nothing(tmp_path):
    write_page({"cpu": measured()}, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    page = Page(text)
    assert page.loads == [] and "url(" not in text and "@import" not in text
    assert {a for a in page.anchors if not a.startswith("#")} == set()
    assert {a[1:] for a in page.anchors} <= set(page.ids)
    assert "Only the CPU side has a record" in text
    assert "plain &lt;b&gt;" in text and "missed" in text and "Loading needs --data." in text
    assert "Other programs took part" in text


def test_a_run_on_one_device_keeps_what_the_other_left(tmp_path, monkeypatch):
    gpu = {**RATES, "tf32": 5e11}
    other = measured(ceilings=gpu, load=[0.1, 0.1])
    (tmp_path / "benchmarks.json").write_text(json.dumps({"cuda": other}))
    monkeypatch.setattr(run_module, "_measure", lambda *_: iter([measured(load=[0.1, 0.1])]))
    run_module.bench("cpu", tmp_path)
    known = json.loads((tmp_path / "benchmarks.json").read_text())
    assert set(known) == {"cpu", "cuda"} and known["cuda"]["ceilings"] == gpu
    text = (tmp_path / "benchmarks.html").read_text()
    assert "Only the CPU side" not in text and re.search(r"<h2 id=\"cuda\">", text)
    assert "Other programs took part" not in text


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_every_part_is_measured(data_dir, monkeypatch, kind):
    """The plan with measurements that take no time: its runs, nets and data are there."""
    asked: list[str] = []

    def stand_in(name, result):
        def call(*arguments, **keywords):
            asked.append(name)
            return result

        return call

    case = measured()["cases"][0]
    for name, result in {
        "inference": case,
        "training": case,
        "evaluation": {},
        "loop": {},
        "agreement": None,
        "loading": None,
    }.items():
        monkeypatch.setattr(cases, name, stand_in(name, result))
    monkeypatch.setattr(run_module, "canvas", stand_in("canvas", {}))
    monkeypatch.setattr(run_module, "floors_of_suite", lambda *_: [])
    monkeypatch.setattr(run_module, "ceilings", lambda _: RATES | {"tf32": 5e11})
    monkeypatch.setattr(run_module.scale, "process_start", lambda _: 1.0)
    monkeypatch.setattr(run_module.scale, "harness", stand_in("harness", []))
    monkeypatch.setattr(run_module.scale, "processes", stand_in("processes", []))
    monkeypatch.setattr(run_module.memory, "kept", stand_in("memory", case))
    monkeypatch.setattr(run_module.Clock, "provenance", lambda *_, **__: {})
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)
    tiny = data_dir / "prepared" / "tiny"
    weights = tiny / "model.safetensors"
    device = torch.device(kind)
    found = list(
        run_module._measure(device, True, None, [weights] * 2, tiny, "val", 3, 2, None, [])
    )
    assert found[-1]["complete"] and len(found) >= len(asked)
    assert asked.count("agreement") == asked.count("canvas") == 2  # one for each file of weights
    assert asked.count("inference") == 3 + (kind == "cuda") and asked.count("training") == 2
    only = {"cpu": {"harness", "processes", "memory"}, "cuda": {"evaluation", "loop"}}[kind]
    assert set(asked) == {"inference", "training", "agreement", "canvas", "loading"} | only


def test_what_was_measured_before_a_stop_stays(tmp_path, monkeypatch):
    """Beside the last record, which stays too; both have the page's form."""
    monkeypatch.setattr(run_module, "_measure", lambda *_: iter([measured(complete=True)]))
    run_module.bench("cpu", tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert set(before) == {"benchmarks.json", "benchmarks.html"}

    def stopped(*_):
        yield measured(complete=False, passes={})
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "_measure", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_module.bench("cpu", tmp_path)
    after = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    left = json.loads(after.pop("benchmarks.partial.json"))
    assert after == before and left["cpu"]["cases"]
    write_page(left, tmp_path / "page.html")
    assert "stopped before its end" in (tmp_path / "page.html").read_text()


def test_passes_over_real_images(data_dir, make_run):
    """On the CPU, where they are too slow for the nets of the paper: the code of both."""
    prepared = data_dir / "prepared" / "tiny"
    run = make_run(recipe={"base": "short", "batch": 1, "images": 40})
    scored = cases.evaluation(run, prepared, "val", 10, CPU, 0)
    assert (scored["images"], scored["distinct"], scored["goal"]) == (10, 4, None)
    assert scored["seconds"] > 0
    found = cases.loop(run, prepared, "train", 40, CPU, 0)
    assert found["updates"] == 40 and found["step_ms"] > 0 and 0 <= found["waited"] <= 1
    assert found["whole"]["seconds"] == pytest.approx(100 * found["step_ms"])


def test_weights_without_images_are_refused_before_anything_is_measured(tmp_path):
    with pytest.raises(UserError, match="--data"):
        run_module.bench("cpu", tmp_path, weights=[tmp_path / "model.safetensors"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["peer", "data", "demo", "logs"])
def test_a_path_that_is_not_there_is_refused_before_anything_is_measured(
    tmp_path, monkeypatch, option
):
    monkeypatch.setattr(run_module, "_measure", lambda *_: pytest.fail("measured"))
    place = tmp_path / "nowhere"
    given: dict[str, Any] = {option: [place] if option == "logs" else place}
    with pytest.raises(UserError, match="nowhere"):
        run_module.bench("cpu", tmp_path, **given)


# ------------------------------------------------------------------------------ what a record keeps


def agreed(net="a", **more):
    row = {"name": "reference", "agreement": 1.0, "goal": None, "met": True, "mean_iu": 0.4}
    rows = [{**row, "images_per_second": 7.0}]
    about = {"net": net, "dataset": "VOC", "split": "val", "images": 3, "pixels": 9, "rows": rows}
    return about | more


def on_canvas(net="a", **more):
    shares = {"agreement": 0.99, "mean_iu": [0.4, 0.399], "loss": None}
    spread = {"gradients": 2, "gradient": {"median": 0.03, "largest": 0.07}}
    about = {"net": net, "seed": 1, "dataset": "VOC", "split": "val", "padding": "tight"}
    return {**about, "side": 512, "images": 3, "pixels": 9, **shares, **spread} | more


def whole_record(**changes):
    """A record whose measurement had every option."""
    case = measured()["cases"][0]
    ported = {**case, "title": "with the port"}
    ported["variants"] = [{**case["variants"][0], "name": "peer", "label": "the port"}]
    stages = [{"stage": "train", "jobs": 2, "seconds": 70.0, "peak_bytes": 2**20}]
    dag = {"wall_seconds": 100.0, "cores": 2, "jobs": 3, "snakemake_share": 0.2, "stages": stages}
    rate = {"dataset": "VOC", "split": "val", "pixels_per_image": 2e5, "images_per_second": 400.0}
    everything = {
        "peer": {"name": "a/port", "commit": "fedcba9876543210"},
        "cases": [case, ported],
        "agreement": agreed(),
        "canvas": [on_canvas()],
        "loading": rate,
        "dag": dag,
        "logs": [{"tree": "t", "stages": stages}],
        "missing": [],
    }
    return measured(**everything | changes)


def later(**changes):
    """A measurement without any option, on another day."""
    origin = {**measured()["provenance"], "started": "2027-05-05"}
    nothing = {"missing": list(NEEDS.values()), "start_seconds": 9.0, "provenance": origin}
    return measured(**nothing | changes)


def test_the_page_says_what_the_agreement_must_hold(tmp_path):
    goals = {"goal": 0.998, "mean_iu_goal": 5e-4, "images_per_second": 9.0}
    reference, *_ = agreed()["rows"]
    found = agreed(rows=[reference, {**reference, "name": "bf16", "mean_iu": 0.4003, **goals}])
    write_page({"cpu": whole_record(agreement=[found])}, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert all(text in page for text in ("≥&nbsp;99.80", "+0.030", "≤&nbsp;0.05<"))


def test_a_run_without_options_keeps_the_parts_that_it_did_not_measure(tmp_path, monkeypatch):
    (tmp_path / "benchmarks.json").write_text(json.dumps({"cpu": whole_record()}))
    monkeypatch.setattr(run_module, "_measure", lambda *_: iter([later()]))
    for _ in range(2):  # what is kept a second time is still of its own day
        run_module.bench("cpu", tmp_path)
        found = json.loads((tmp_path / "benchmarks.json").read_text())["cpu"]
        assert [case["title"] for case in found["cases"]] == ["a case", "with the port"]
        assert "origin" not in found["cases"][0] and found["peer"] is None
        (entry,), (laid,) = found["agreement"], found["canvas"]
        for part in (
            found["cases"][1],
            entry,
            laid,
            found["loading"],
            found["dag"],
            *found["logs"],
        ):
            assert part["origin"]["started"] == "2026-01-01"
            assert part["origin"]["peer"]["name"] == "a/port"
        assert found["dag"]["start_seconds"] == 2.0  # of that day, not of this one
        assert found["missing"] == [] and found["provenance"]["started"] == "2027-05-05"
    text = (tmp_path / "benchmarks.html").read_text()
    kept = "Kept from an earlier measurement: 2026-01-01, a processor, code 0 abc with uncommitted"
    assert text.count(kept) == 6 and text.count("a/port fedcba9876") == 6
    assert "−0.10" in text and "7.00\u00a0%" in text  # of the canvas, in points; largest gradient


def test_what_was_measured_anew_takes_the_old_parts_place():
    """An agreement is that of a net on a split: those of other nets stay."""
    old = whole_record(agreement=[agreed(seed=0), agreed(seed=1), agreed("b"), agreed("c")])
    own = [agreed(seed=0, images=50), agreed("b", seed=7)]
    found = joined(whole_record(agreement=own), old)
    names = [(e["net"], e.get("seed"), e["images"], "origin" in e) for e in found["agreement"]]
    anew = [("a", 0, 50, False), ("b", 7, 3, False)]
    assert names == [*anew, ("a", 1, 3, True), ("c", None, 3, True)]
    assert not any("origin" in part for part in (*found["cases"], found["loading"], found["dag"]))
    assert len(found["cases"]) == 2


def test_passes_that_were_not_made_are_kept():
    evaluation, loop = {"seconds": 1.0}, {"step_ms": 2.0}
    old = whole_record(passes={"evaluation": evaluation, "loop": loop})
    found = joined(whole_record(passes={"loop": {"step_ms": 3.0}}), old)["passes"]
    assert found["loop"] == {"step_ms": 3.0}
    assert found["evaluation"]["seconds"] == 1.0 and found["evaluation"]["origin"]


def test_make_hands_its_options_on():
    said = subprocess.run(  # of a make within `make test` too
        ["make", "-n", "--no-print-directory", "bench", "BENCH=--quick --images 3"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert said.rstrip().endswith("-m fcn bench --quick --images 3")
