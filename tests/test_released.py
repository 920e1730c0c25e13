"""The authors' released weights as runs: the suite, the files' layer names, the path to a score."""

import shutil
from dataclasses import replace
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from torch import nn

from fcn.data.dataset import SegmentationSet
from fcn.errors import UserError
from fcn.evaluate import evaluate_run
from fcn.files import read_json, write_json
from fcn.metrics import ConfusionMatrix
from fcn.nets import CHANNELS, build
from fcn.schema import CONFIG, read_yaml
from fcn.suites import load_suite
from fcn.train import train
from fcn.weights import caffemodel
from fcn.weights.backbone import start
from fcn.weights.named import named_tensors
from tests.caffemodel_writer import write

CPU = torch.device("cpu")
SUITE = load_suite("released")
RUNS = list(SUITE.runs)

# Layers with weights in the authors' prototxts (shelhamer/fcn.berkeleyvision.org), by their folder.
VGG = [f"conv{b}_{i}" for b, n in enumerate((2, 2, 3, 3, 3), 1) for i in range(1, n + 1)]
VGG += ["fc6", "fc7"]
ALEXNET = ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7"]
SKIPS = {
    "32s": ["score_fr", "upscore"],
    "16s": ["score_fr", "upscore2", "score_pool4", "upscore16"],
    "8s": ["score_fr", "upscore2", "score_pool4", "upscore_pool4", "score_pool3", "upscore8"],
}


def authors_layers(name):
    if name == "voc-fcn-alexnet":
        return ALEXNET + SKIPS["32s"]
    if name == "nyud-fcn32s-color-hha":
        streams = [f"{layer}{s}" for s in ("color", "hha") for layer in [*VGG, "score_fr"]]
        return [*streams, "upscore"]
    if name == "voc-fcn8s-atonce":
        return VGG + SKIPS["8s"] + ["scale_pool4", "scale_pool3"]
    heads = SKIPS[name.split("-")[1].removeprefix("fcn")]
    if name.startswith("siftflow"):
        return VGG + [f"{layer}{s}" for s in ("_sem", "_geo") for layer in heads]
    return VGG + heads


def slim_net(run):
    """The run's net with few channels, but every layer, and its own classes."""
    config = run.config["net"] | {"width": 0.07, "hidden": 8}
    known = SUITE.datasets[run.dataset]["classes"]
    known = known if isinstance(known, dict) else {"semantic": known}
    return build(config, {task: len(known[task]) for task in run.labels}).eval()


def weights_of(name, tensors, classes, rng):
    """Random blobs of one layer as Caffe writes them."""
    if name.startswith("upscore"):  # a fixed bilinear kernel for each class, and nothing between
        kernel = next(t.shape[-1] for key, t in tensors.items() if key.startswith(f"{name}."))
        factor = (kernel + 1) // 2
        centre = factor - 1 if kernel % 2 else factor - 0.5
        line = 1 - abs(np.arange(kernel) - centre) / factor
        blob = np.zeros((classes, classes, kernel, kernel), np.float32)
        blob[range(classes), range(classes)] = np.outer(line, line)
        return caffemodel.Layer(name, "Deconvolution", [blob])
    if name.startswith("scale"):
        channels = tensors[f"score_{name.removeprefix('scale_')}.weight"].shape[1]
        return caffemodel.Layer(name, "Scale", [np.full(channels, 0.03, np.float32)])
    shape = tuple(tensors[f"{name}.weight"].shape)
    weight = rng.normal(scale=0.1, size=shape).astype(np.float32)
    bias = rng.normal(scale=0.1, size=shape[:1]).astype(np.float32)
    return caffemodel.Layer(name, "Convolution", [weight, bias])


def write_archive(data_dir, archive, layers):
    place = data_dir / "archives" / archive
    place.parent.mkdir(parents=True, exist_ok=True)
    write(place, layers)
    about = {"name": archive, "sha256": "0" * 64, "size": place.stat().st_size, "subset": False}
    write_json(place.with_name(f"{archive}.json"), about)
    return about


# -------------------------------------------------------------------------------------- the suite


def test_every_released_file_is_a_run():
    archives = {
        name: entry
        for name, entry in SUITE.archives.items()
        if "caffemodel-url" in entry["source"] or name == "fcn8s-heavy-pascal.caffemodel"
    }
    assert len(archives) == 14
    assert {run.config["weights"]["archive"] for run in SUITE.runs.values()} == set(archives)
    for name, entry in archives.items():
        assert [urlsplit(url).path for url in entry["urls"]] == [f"/{name}"]


def test_runs_are_scored_and_not_trained():
    for run in SUITE.runs.values():
        assert run.released and run.config["recipe"] is None and run.config["train"] is None
        assert run.name in SUITE.nets and run.seeds == (0,)
        assert run.config["net"] == SUITE.resolved_net(run.name)


def test_means_are_those_of_the_authors_layers():
    """Both ways to them agree: of the weights (backbones.yaml) and of the data (datasets.yaml)."""
    for run in SUITE.runs.values():
        assert run.released
        entry = SUITE.backbones[run.released]["input"]
        assert entry["order"] == "bgr" and set(entry["std"]) == {1}
        means = SUITE.datasets[run.dataset].get("means", {"image": entry["mean"]})
        assert run.config["input"]["mean"] == means["image"] == entry["mean"]
        inputs = run.config["net"].get("inputs", ["image"])
        for name in set(inputs) - {"image"}:
            convention = run.config["inputs"][name]
            assert convention["mean"] == means[name] and convention["order"] == "file"
            assert len(convention["mean"]) == CHANNELS[name]


def test_rows_have_a_number_in_the_paper():
    """But for the two SIFT Flow nets that the printed one starts from."""
    tables = read_yaml(CONFIG / "tables.yaml")
    filled = [row for run in SUITE.runs.values() for row in run.rows]
    known = {
        table: {r["name"]: r for r in facts.get("rows", [])} for table, facts in tables.items()
    }
    new = [row for row in filled if row.row not in known[row.table]]
    assert [(row.table, row.row) for row in new] == [
        ("pami_table6", "FCN-32s (two-head)"),
        ("pami_table6", "FCN-16s (two-head)"),
    ]
    for row in filled:
        assert row in new or not known[row.table][row.row].get("reference")
    assert len(set(filled)) == len(filled)
    assert {"pami_table3", "pami_table5", "pami_table6", "context"} <= {r.table for r in filled}


# -------------------------------------------------------------------------------------- the files


@pytest.mark.parametrize("key", RUNS)
def test_a_file_with_the_authors_layers_fills_the_net(key, tmp_path):
    run = SUITE.runs[key]
    net = slim_net(run)
    tensors = named_tensors(net)
    names = authors_layers(run.name)
    assert sorted({name.rsplit(".", 1)[0] for name in tensors}) == sorted(names)
    rng = np.random.default_rng(len(key))
    tasks = {"_sem": "semantic", "_geo": "geometric"}
    known = SUITE.datasets[run.dataset]["classes"]
    layers = {}
    for name in names:
        part = tasks.get(name[-4:], "semantic")
        classes = len(known[part] if isinstance(known, dict) else known)
        layers[name] = weights_of(name, tensors, classes, rng)
    about = write_archive(tmp_path, run.config["weights"]["archive"], layers.values())
    assert start(net, run.config["weights"], tmp_path, {}) == ([], [about])
    for name, layer in layers.items():
        if layer.type == "Scale":
            assert named_tensors(net)[f"{name}.scale"].item() == pytest.approx(0.03)
        elif layer.type == "Convolution":
            for blob, part in zip(layer.blobs, ("weight", "bias"), strict=True):
                np.testing.assert_array_equal(named_tensors(net)[f"{name}.{part}"], blob)
    channels = sum(CHANNELS[i] for i in run.config["net"].get("inputs", ["image"]))
    with torch.inference_mode():
        scores = net(torch.randn(1, channels, 20, 33))
    for task, values in scores.items():
        assert values.shape[2:] == (20, 33) and values.std() > 0, task


# --------------------------------------------------------------------------------------- the path

ARCHIVE = "fcn8s-heavy-pascal.caffemodel"


@pytest.fixture
def own_data(data_dir, tmp_path):
    """The tiny data sets, in a folder that may be added to."""
    return shutil.copytree(data_dir, tmp_path / "data")


@pytest.fixture
def released_run(write_suite, own_data):
    """A slim FCN-8s whose 'released' weights are a file of random ones; gives run, net, data."""

    def make(change=lambda layers: layers):
        slim = {"architecture": "vgg16", "width": 0.02, "hidden": 8}
        convention = {"order": "bgr", "mean": [104.0, 117.0, 123.0], "std": [1, 1, 1]}
        definition = {"architecture": "vgg16", "archive": ARCHIVE, "format": "caffe"}
        suite = load_suite(
            str(
                write_suite(
                    {
                        "nets": {"authors": {**slim, "skips": ["pool4", "pool3"]}},
                        "backbones": {"theirs": {**definition, "input": convention}},
                        "runs": {
                            "tiny/theirs": {
                                "split": "val",
                                "net": "authors",
                                "weights": {"released": "theirs"},
                                "recipe": "none",
                            }
                        },
                    }
                )
            )
        )
        run = suite.run("tiny/theirs")
        names = read_json(own_data / "prepared/tiny/dataset.json")["classes"]["semantic"]
        net = build(run.config["net"], {"semantic": len(names)})
        torch.manual_seed(5)
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
                nn.init.normal_(module.bias)  # type: ignore[arg-type]
        tensors = named_tensors(net)
        rng = np.random.default_rng(0)
        layers = []
        for name in authors_layers("voc-fcn8s"):
            layer = weights_of(name, tensors, len(names), rng)
            if layer.type == "Convolution":
                blobs = [tensors[f"{name}.{part}"].numpy().copy() for part in ("weight", "bias")]
                layer = caffemodel.Layer(name, layer.type, blobs)
            layers.append(layer)
        write_archive(own_data, ARCHIVE, change(layers))
        return run, net.eval(), convention

    return make


def test_released_weights_are_scored_as_they_are(released_run, own_data, tmp_path):
    run, net, convention = released_run()
    options = {"device": CPU, "data_dir": own_data, "results": tmp_path}
    trained = train(run, 0, **options)
    assert (trained["updates"], trained["images"], trained["loss"]) == (0, 0, None)
    assert trained["provenance"]["archives"][0]["name"] == ARCHIVE
    found = evaluate_run(run, 0, **options)
    dataset = SegmentationSet(own_data / "prepared/tiny", "val")
    matrix = ConfusionMatrix(len(dataset.classes["semantic"]), CPU)
    mean = torch.tensor(convention["mean"]).view(3, 1, 1)
    with torch.inference_mode():
        for i in range(len(dataset)):
            item = dataset[i]
            x = (item["image"].flip(0).float() - mean)[None]
            x = x.contiguous(memory_format=torch.channels_last)
            predicted = net(x)["semantic"].argmax(1).to(torch.uint8)
            matrix.update(item["semantic"][None], predicted)
    assert found["tasks"]["semantic"]["confusion"] == matrix.matrix.tolist()
    assert np.count_nonzero(np.array(matrix.matrix).sum(0)) > 2  # not one class everywhere
    folder = run.directory(tmp_path, 0)
    assert len((folder / "loss.csv").read_text().splitlines()) == 1
    assert read_json(folder / "metrics.json")["config"]["weights"]["archive"] == ARCHIVE


def one_of(name, change):
    return lambda layers: [change(layer) if layer.name == name else layer for layer in layers]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ls: [x for x in ls if x.name != "conv3_2"], "lacks the layers conv3_2"),
        (lambda ls: [x for x in ls if x.name != "score_pool4"], "lacks the layers score_pool4"),
        (
            one_of("fc7", lambda x: replace(x, blobs=[x.blobs[0][1:], x.blobs[1]])),
            "layer 'fc7': the file's weights have shape",
        ),
        (
            one_of("fc6", lambda x: replace(x, blobs=[x.blobs[0] * np.nan, x.blobs[1]])),
            "layer 'fc6': the file's weights are not all finite",
        ),
    ],
)
def test_weights_of_another_net_are_refused(released_run, own_data, tmp_path, change, message):
    run, _, _ = released_run(change)
    with pytest.raises(UserError, match=message):
        train(run, 0, device=CPU, data_dir=own_data, results=tmp_path)
    assert not (run.directory(tmp_path, 0) / "train.json").exists()


def test_upsampling_may_be_absent_from_the_file(released_run, own_data, tmp_path):
    def scored(change, place):
        run, _, _ = released_run(change)
        train(run, 0, device=CPU, data_dir=own_data, results=place)
        return evaluate_run(run, 0, device=CPU, data_dir=own_data, results=place)["tasks"]

    without = scored(lambda ls: [x for x in ls if not x.name.startswith("up")], tmp_path / "a")
    assert without == scored(lambda ls: ls, tmp_path / "b")
