"""Our nets compute what the authors' definitions compute on OpenCV, from the same weights file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fcn.nets import build
from fcn.nets.trunks import build_trunk
from fcn.spec import CONFIG, NET_DEFAULTS, read_yaml
from fcn.weights.caffemodel import load_into, read, write
from tests import caffe_oracle

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"
TOLERANCE = 1e-5  # of the largest score, float32
# The skip nets are compared with narrow fc6 and fc7 (all else at full width), which saves reading
# half a gigabyte three times; voc-fcn32s and voc-fcn-alexnet have their 4096.
SKIP_NETS = ("voc-fcn16s", "voc-fcn8s", "voc-fcn8s-atonce")
HIDDEN = 96


def configuration(name, **change):
    nets = read_yaml(CONFIG / "nets.yaml")
    entry = nets[name]
    base = nets[entry["base"]] if "base" in entry else {}
    net = {**NET_DEFAULTS, **base, **entry, **change}
    net.pop("base", None)
    return net


@pytest.fixture
def quick_start(monkeypatch):
    """No random initial weights, which are overwritten; what is not loaded would be NaN."""
    for name in ("kaiming_uniform_", "uniform_", "normal_", "zeros_"):
        monkeypatch.setattr(nn.init, name, lambda tensor, *_, **__: tensor.data.fill_(torch.nan))


def image(size, seed=1):
    pixels = np.random.default_rng(seed).normal(0, 60, (1, 3, *size))
    return pixels.astype(np.float32)


def difference(found, expected):
    """The largest difference relative to the largest value; the values must not be trivial."""
    assert found.shape == expected.shape
    assert expected.std() > 0.01 * np.abs(expected).max() > 0
    return np.abs(found - expected).max() / np.abs(expected).max()


def loaded(config, path):
    net = build(config, {"semantic": caffe_oracle.CLASSES}).eval()
    report = load_into(net, read(path))
    assert not report.missing_in_file
    return net, report


@torch.inference_mode()
def scores(net, pixels):
    return net(torch.from_numpy(pixels))["semantic"].numpy()


@pytest.fixture(scope="module")
def narrow_vgg(tmp_path_factory):
    path = tmp_path_factory.mktemp("vgg") / "vgg.caffemodel"
    nets = [caffe_oracle.vgg(name, (9, 9), HIDDEN) for name in SKIP_NETS]
    write(path, caffe_oracle.random_weights(nets, seed=0))
    return path


@pytest.mark.parametrize(
    "name, size",
    [
        ("voc-fcn16s", (37, 50)),
        ("voc-fcn8s", (64, 41)),
        ("voc-fcn8s", (1, 7)),
        ("voc-fcn8s-atonce", (13, 34)),
    ],
)
def test_skip_nets(quick_start, narrow_vgg, name, size):
    net, report = loaded(configuration(name, hidden=HIDDEN), narrow_vgg)
    assert ("scale_pool4" in report.loaded) == (name == "voc-fcn8s-atonce")
    text = caffe_oracle.vgg(name, size, HIDDEN).text
    pixels = image(size)
    expected = caffe_oracle.forward(text, narrow_vgg, pixels, ["score"])["score"]
    assert difference(scores(net, pixels), expected) < TOLERANCE
    if size == (1, 7):  # the authors' own order: upsample all of it, then crop
        assert difference(scores(net.exact(), pixels), expected) < TOLERANCE


@pytest.mark.slow
def test_fcn32s_at_full_width(quick_start, tmp_path):
    size = (37, 50)
    oracle = caffe_oracle.vgg("voc-fcn32s", size)
    write(tmp_path / "vgg.caffemodel", caffe_oracle.random_weights([oracle], seed=0))
    net, report = loaded(configuration("voc-fcn32s"), tmp_path / "vgg.caffemodel")
    assert not report.unused_in_file
    pixels = image(size)
    expected = caffe_oracle.forward(oracle.text, tmp_path / "vgg.caffemodel", pixels, ["score"])
    (tmp_path / "vgg.caffemodel").unlink()
    assert difference(scores(net, pixels), expected["score"]) < TOLERANCE


def test_fcn_alexnet(quick_start, tmp_path):
    path = tmp_path / "alexnet.caffemodel"
    write(path, caffe_oracle.random_weights([caffe_oracle.alexnet((9, 9))], seed=0))
    net, report = loaded(configuration("voc-fcn-alexnet"), path)
    assert not report.unused_in_file
    for size in ((37, 50), (64, 41), (1, 1)):
        pixels = image(size)
        text = caffe_oracle.alexnet(size).text
        expected = caffe_oracle.forward(text, path, pixels, ["score"])["score"]
        assert difference(scores(net, pixels), expected) < TOLERANCE
    assert difference(scores(net.exact(), pixels), expected) < TOLERANCE


def test_a_wrong_net_would_be_noticed(quick_start, narrow_vgg):
    """The comparison can fail: an upsampling or a skip that is off by one cell, or no skip."""
    net, _ = loaded(configuration("voc-fcn8s", hidden=HIDDEN), narrow_vgg)
    head = net.heads["semantic"]
    with torch.inference_mode():
        features = net.trunk(torch.from_numpy(image((13, 34))), net.wanted)
        right = head(features, (13, 34)).numpy()
        head.offset += 1
        assert difference(head(features, (13, 34)).numpy(), right) > 100 * TOLERANCE
        head.offset -= 1
        steps = list(head.steps)
        for k, (skip, name, offset) in enumerate(steps):
            head.steps[k] = (skip, name, offset + 1)
            assert difference(head(features, (13, 34)).numpy(), right) > 100 * TOLERANCE
            head.steps[k] = steps[k]
        assert difference(head(features, (13, 34)).numpy(), right) == 0


def test_at_once_scales_are_the_authors():
    slim = configuration("voc-fcn8s-atonce", width=0.01, hidden=4)
    buffers = dict(build(slim, {"semantic": 2}).named_buffers())
    found = {
        name.split(".")[-2]: value.item() for name, value in buffers.items() if "scale" in name
    }
    assert found == {"scale_pool4": np.float32(0.01), "scale_pool3": np.float32(0.0001)}


# -------------------------------------------------------------------------------------- GoogLeNet


def googlenet_trunk(path):
    trunk = build_trunk({**NET_DEFAULTS, "architecture": "googlenet", "padding": "tight"}, 3)
    report = load_into(trunk.layers, read(path))
    assert not report.missing_in_file
    return trunk.eval(), report


@torch.inference_mode()
def features(trunk, pixels, names):
    found = trunk(torch.from_numpy(pixels), frozenset(names))
    return {name: value.numpy() for name, value in found.items()}


# OpenCV, unlike Caffe, pools no map that is smaller than the window.
@pytest.mark.parametrize("size", [(71, 96), (90, 101), (224, 224)])
def test_googlenet_trunk(quick_start, tmp_path, size):
    oracle = caffe_oracle.googlenet(size)
    write(tmp_path / "net.caffemodel", caffe_oracle.random_weights([oracle], seed=0))
    trunk, report = googlenet_trunk(tmp_path / "net.caffemodel")
    assert len(report.loaded) == 57 and not report.unused_in_file
    names = ["pool2/3x3_s2", "inception_3b", "pool3/3x3_s2", "inception_4e", "inception_5b"]
    pixels = image(size)
    expected = caffe_oracle.forward(oracle.text, tmp_path / "net.caffemodel", pixels, names)
    found = features(trunk, pixels, names)
    for name in names:
        assert difference(found[name], expected[name]) < TOLERANCE, name


def test_googlenet_trunk_with_the_real_weights():
    """Caffe's own activations, published with the real BVLC weights, layer by layer."""
    weights = SHARED / "mirror" / "bvlc_googlenet.caffemodel"
    stored = SHARED / "googlenet" / "bvlc_googlenet_reference_activations.npz"
    if not (weights.exists() and stored.exists()):
        pytest.skip("no shared/data/mirror and shared/data/googlenet beside the repository")
    trunk, report = googlenet_trunk(weights)
    assert report.unused_in_file == ["loss3/classifier"]
    activations = np.load(stored)
    pixels = activations["data"][None]
    # Caffe's normalisation keeps a running sum over channels, which rounds to 1.2e-5; exact float64
    # arithmetic agrees with ours to 3e-7.
    names = {
        "pool1/norm1": ("norm1", 2e-5),
        "pool2/3x3_s2": ("pool2", 2e-5),
        "inception_3b": ("inception_3b", 5e-6),
        "inception_4e": ("inception_4e", 5e-6),
        "inception_5b": ("inception_5b", 5e-6),
    }
    found = features(trunk, pixels, names)
    for name, (key, tolerance) in names.items():
        assert difference(found[name][0], activations[key]) < tolerance, name
    weight, bias = (blob.squeeze() for blob in read(weights)["loss3/classifier"].blobs)
    classifier = weight @ found["inception_5b"][0].mean((1, 2)) + bias
    np.testing.assert_allclose(classifier, activations["loss3_classifier"], rtol=0, atol=1e-4)
