"""Backbones: pretrained on generated objects, or converted, and put into nets."""

import numpy as np
import pytest
import torch
from torch import nn

import fcn.pretrain as pretraining
from fcn.__main__ import main
from fcn.data.scenes import classification_classes
from fcn.errors import UserError
from fcn.files import digest, read_json, write_json
from fcn.nets import build
from fcn.nets.trunks import build_trunk
from fcn.options import NET_DEFAULTS
from fcn.pretrain import pretrain
from fcn.spec import fingerprint
from fcn.suites import load_suite
from fcn.train import train
from fcn.weights.backbone import convert, initialise, start
from fcn.weights.caffemodel import Layer
from fcn.weights.named import load_named, named_tensors, read, save
from tests.caffemodel_writer import write
from tests.conftest import RGB

SLIM = {"padding": "tight", "width": 0.1, "hidden": 32, "fc6_kernel": 1, "dropout": 0.1}
TASK = {
    "seed": 7,
    "images": 64,
    "size": 40,
    "epochs": 2,
    "batch": 16,
    "learning_rate": 5e-3,
}
DEFINITION = {"architecture": "alexnet", "input": RGB, "net": SLIM, "pretrain": TASK}
CLASSES = {"semantic": 5}


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(pretraining, "HELD_OUT", 100)


def slim_net(seed=0, **change):
    torch.manual_seed(seed)
    return build({**NET_DEFAULTS, **SLIM, "architecture": "alexnet", **change}, CLASSES)


# -------------------------------------------------------------------------------------- pretraining


def test_pretrained_backbone(quick, one_thread, tmp_path):
    about = pretrain("slim", DEFINITION, tmp_path)
    place = tmp_path / "backbones" / "slim"
    assert sorted(p.name for p in place.iterdir()) == ["backbone.json", "weights.safetensors"]
    assert read_json(place / "backbone.json") == about
    assert about["input"] == RGB and about["architecture"] == "alexnet"
    assert about["definition"] == fingerprint(DEFINITION) and about["archive"] is None
    tensors, header = read(place / "weights.safetensors")
    assert header["name"] == "slim"
    assert set(tensors) == set(named_tensors(slim_net().trunk))

    again = pretrain("slim", DEFINITION, tmp_path / "again")
    weights = "backbones/slim/weights.safetensors"
    assert digest(tmp_path / weights) == digest(tmp_path / "again" / weights)
    assert again["accuracy"] == about["accuracy"]


def test_pretraining_learns(monkeypatch, one_thread, tmp_path):
    monkeypatch.setattr(pretraining, "HELD_OUT", 300)
    task = {**TASK, "images": 600, "epochs": 6}
    about = pretrain("slim", {**DEFINITION, "pretrain": task}, tmp_path)
    assert about["accuracy"] > 1.6 / len(classification_classes())  # over guessing, on new images


@pytest.mark.parametrize(
    "change, message",
    [
        ({"epochs": 0}, "backbone slim: pretrain makes no update"),
        ({"epochs": None}, "backbone slim: pretrain lacks the key 'epochs'"),
    ],
)
def test_pretraining_that_cannot_be(tmp_path, change, message):
    task = {k: v for k, v in {**TASK, **change}.items() if v is not None}
    with pytest.raises(UserError, match=message):
        pretrain("slim", {**DEFINITION, "pretrain": task}, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_pretraining_that_diverges_leaves_nothing(quick, tmp_path):
    task = {**TASK, "learning_rate": 1e30}
    with pytest.raises(UserError, match="backbone slim: its training diverged; lower `learning"):
        pretrain("slim", {**DEFINITION, "pretrain": task}, tmp_path)
    assert not list(tmp_path.rglob("*.json"))


def test_a_backbone_of_another_definition_is_not_trained_from(
    quick, write_suite, data_dir, tmp_path, capsys
):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "prepared").symlink_to(data_dir / "prepared")
    entry = {"net": {"architecture": "alexnet", **SLIM}, "weights": {"backbone": "slim"}}
    change = {"backbones": {"slim": DEFINITION}, "runs": {"tiny/run": entry}}
    folders = ["--data-dir", str(tmp_path / "data"), "--results", str(tmp_path / "results")]
    path = str(write_suite(change))
    pretrain("slim", load_suite(path).backbones["slim"], tmp_path / "data")
    assert main(["train", "tiny/run", "--suite", path, *folders]) == 0
    change["backbones"] = {"slim": {**DEFINITION, "pretrain": {**TASK, "seed": 9}}}
    other = str(write_suite(change, "other.yaml"))
    assert main(["train", "tiny/run", "--suite", other, *folders]) == 2
    assert "backbone.json: of another definition; make it again: python" in capsys.readouterr().err


def test_a_run_starts_from_a_pretrained_backbone(quick, write_suite, data_dir, tmp_path):
    """Through the suite: the trunk is the backbone's, the score layers start at zero."""
    suite = load_suite(
        str(
            write_suite(
                {
                    "backbones": {"slim": DEFINITION},
                    "runs": {
                        "tiny/run": {
                            "net": {"architecture": "alexnet", **SLIM},
                            "weights": {"backbone": "slim"},
                            "recipe": {"base": "short", "images": 2, "learning_rate": 1e-30,
                                       "weight_decay": 0.0},
                        }
                    },
                }
            )
        )
    )  # fmt: skip
    run = suite.run("run")
    assert run.config["input"] == RGB
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "prepared").symlink_to(data_dir / "prepared")
    pretrain("slim", suite.backbones["slim"], tmp_path / "data")
    train(run, 0, device=torch.device("cpu"), data_dir=tmp_path / "data", results=tmp_path)
    tensors, _ = read(run.directory(tmp_path, 0) / "model.safetensors")
    backbone, _ = read(tmp_path / "data/backbones/slim/weights.safetensors")
    for name, values in backbone.items():
        assert torch.equal(tensors[name], values), name
    assert tensors["score_fr.weight"].abs().max() < 1e-20


# --------------------------------------------------------------------------------------- converting


def googlenet_layers(skip=()):
    """Random Caffe layers of the trunk, with the classifier that the trunk does not have."""
    torch.manual_seed(3)
    trunk = build_trunk({**NET_DEFAULTS, "architecture": "googlenet"}, 3)
    blobs: dict[str, list[np.ndarray]] = {}
    for name, values in named_tensors(trunk.layers).items():
        blobs.setdefault(name.rsplit(".", 1)[0], []).append(values.numpy())
    blobs["loss3/classifier"] = [np.zeros((3, 1024), np.float32), np.zeros(3, np.float32)]
    return {name: values for name, values in blobs.items() if name not in skip}


def archive(data_dir, layers):
    place = data_dir / "archives" / "google.caffemodel"
    place.parent.mkdir(parents=True, exist_ok=True)
    write(place, [Layer(name, "Convolution", values) for name, values in layers.items()])
    write_json(f"{place}.json", {"name": place.name, "sha256": "0", "subset": False})


GOOGLENET = {
    "architecture": "googlenet",
    "archive": "google.caffemodel",
    "format": "caffe",
    "input": {"order": "bgr", "mean": [104, 117, 123], "std": [1, 1, 1]},
}


def test_converted_backbone_goes_into_a_net(tmp_path):
    layers = googlenet_layers(skip=("inception_5b/1x1",))
    archive(tmp_path, layers)
    about = convert("google", GOOGLENET, tmp_path)
    assert about == read_json(tmp_path / "backbones/google/backbone.json")
    assert about["missing_layers"] == ["inception_5b/1x1"]
    assert about["unused_layers"] == ["loss3/classifier"]
    assert about["archive"]["name"] == "google.caffemodel"
    torch.manual_seed(0)
    net = build({**NET_DEFAULTS, "architecture": "googlenet", "padding": "tight"}, CLASSES)
    before = {k: v.clone() for k, v in named_tensors(net).items()}
    left, archives = start(net, {"backbone": "google"}, tmp_path, {})
    assert left == ["inception_5b/1x1"] and archives == [about["archive"]]
    after = named_tensors(net)
    for name, (weight, bias) in layers.items():
        if name != "loss3/classifier":
            assert torch.equal(after[f"{name}.weight"], torch.from_numpy(weight))
            assert torch.equal(after[f"{name}.bias"], torch.from_numpy(bias))
    for name in ("inception_5b/1x1.weight", "score_fr.weight", "upscore.weight"):
        assert torch.equal(after[name], before[name])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"format": "onnx"}, "backbone google: format 'onnx' is not caffe or torchvision"),
        ({"archive": "other.caffemodel"}, r"other\.caffemodel\.json: no such file"),
    ],
)
def test_backbones_that_cannot_be_converted(tmp_path, change, message):
    archive(tmp_path, {"conv": [np.zeros((1, 1, 1, 1), np.float32)]})
    with pytest.raises(UserError, match=message):
        convert("google", {**GOOGLENET, **change}, tmp_path)
    assert not (tmp_path / "backbones").exists()


def test_weights_of_another_classifier_are_no_backbone(tmp_path):
    archive(tmp_path, {"conv1_1": [np.zeros((64, 3, 3, 3), np.float32)]})
    with pytest.raises(UserError, match="none of its layers belongs to googlenet"):
        convert("google", GOOGLENET, tmp_path)


# --------------------------------------------------------------------------------------- in the net


def test_random_start_is_of_the_seed_and_of_the_right_size():
    nets = [slim_net(i) for i in range(3)]
    for net, seed in zip(nets, (5, 5, 6), strict=True):
        initialise(net, seed)
    one, same, other = (named_tensors(net.trunk) for net in nets)
    for name, values in one.items():
        assert torch.equal(values, same[name])
        if name.endswith("bias"):
            assert not values.any()
        else:
            assert not torch.equal(values, other[name])
            fan_in = values[0].numel()
            expected = (2 / fan_in) ** 0.5  # He et al. 2015
            assert values.std() == pytest.approx(expected, rel=6 / values.numel() ** 0.5)


def test_start_of_none_changes_nothing(tmp_path):
    net = slim_net()
    before = {k: v.clone() for k, v in named_tensors(net).items()}
    assert start(net, "none", tmp_path, {}) == ([], [])
    for name, values in named_tensors(net).items():
        assert torch.equal(values, before[name])


def test_truncated_net_takes_its_part_of_a_backbone(tmp_path):
    net, whole = slim_net(1, top="pool2"), slim_net(2)
    about = {"archive": None}
    place = tmp_path / "backbones" / "b"
    save(place / "weights.safetensors", named_tensors(whole.trunk), about)
    write_json(place / "backbone.json", about)
    assert start(net, {"backbone": "b"}, tmp_path, {}) == ([], [])
    for name, values in named_tensors(net.trunk).items():
        assert torch.equal(values, named_tensors(whole.trunk)[name])


def test_backbone_of_another_width_is_refused(tmp_path):
    place = tmp_path / "backbones" / "b"
    save(place / "weights.safetensors", named_tensors(slim_net(width=0.25).trunk), {})
    write_json(place / "backbone.json", {})
    with pytest.raises(UserError, match=r"backbones/b: conv1\.weight has shape .* the net needs"):
        start(slim_net(), {"backbone": "b"}, tmp_path, {})


# ----------------------------------------------------------------------------------- named tensors


def test_named_tensors_survive_a_file(tmp_path):
    net, other = slim_net(1, skips=["pool2"]), slim_net(2, skips=["pool2"])
    save(tmp_path / "w.safetensors", named_tensors(net), {"a": 1})
    tensors, about = read(tmp_path / "w.safetensors")
    assert about == {"a": 1}
    assert load_named(other, tensors, "w") == []
    for name, values in named_tensors(other).items():
        assert torch.equal(values, named_tensors(net)[name])
    assert not list(tmp_path.glob(".*"))


def test_names_are_unique():
    for architecture in ("vgg16", "googlenet", "alexnet"):
        own = {"fc6_kernel": None} if architecture == "googlenet" else {}
        net = slim_net(architecture=architecture, **own)
        assert len(named_tensors(net)) == len(net.state_dict())


def test_loading_a_kernel_that_is_not_bilinear_settles_the_layer(tmp_path):
    net = slim_net(1)
    tensors = {k: v.clone() for k, v in named_tensors(net).items()}
    tensors["upscore.weight"] *= 1.5
    load_named(net, tensors, "w")
    assert dict(net.head("semantic").named_children())["upscore"].exact


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda t: t.pop("score_fr.bias"),
            "w: these are weights of another net.* lacks score_fr",
        ),
        (lambda t: t.update(x=torch.zeros(1)), "weights of another net: the file has also x"),
        (
            lambda t: t.update({"fc7.bias": torch.zeros(3)}),
            r"w: fc7\.bias has shape \(3,\)",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused(change, message):
    net = slim_net(1)
    tensors = dict(named_tensors(net))
    change(tensors)
    with pytest.raises(UserError, match=message):
        load_named(net, tensors, "w")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"w\.safetensors: no such file"):
        read(tmp_path / "w.safetensors")


def test_classifier_reads_the_mean_of_the_last_map():
    net = slim_net()
    model = pretraining.Classifier(net, 3).eval()
    x = torch.randn(2, 3, 50, 41)
    features = net.trunk(x, frozenset([net.trunk.top]))[net.trunk.top]
    expected = nn.functional.linear(
        features.flatten(2).mean(2), model.classify.weight, model.classify.bias
    )
    torch.testing.assert_close(model(x), expected)
