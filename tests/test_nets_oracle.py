"""Our nets compute what the authors' definitions compute on OpenCV, from the same weights file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fcn.nets import build
from fcn.nets.trunks import build_trunk
from fcn.options import NET_DEFAULTS
from fcn.suites import load_suite
from fcn.weights.caffemodel import load_into, read
from tests import caffe_oracle
from tests.caffemodel_writer import write

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"
TOLERANCE = 1e-5  # of the largest score, float32
# The skip nets are compared with narrow fc6 and fc7 (all else at full width), which saves reading
# half a gigabyte three times; voc-fcn32s and voc-fcn-alexnet have their 4096.
SKIP_NETS = ("voc-fcn16s", "voc-fcn8s", "voc-fcn8s-atonce")
HIDDEN = 96


def configuration(name, **change):
    return {**load_suite("voc-subset").resolved_net(name), **change}


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


# ------------------------------------------------- several inputs and heads, in the authors' names

SLIM = {"width": 0.0625, "hidden": 12}
SLIM_BLOCKS = ((2, 4), (2, 8), (3, 16), (3, 32), (3, 32))


def slim_definition(size, channels):
    """An empty definition whose input has ``channels``."""
    net = caffe_oracle.Definition(size)
    net.lines[0] = net.lines[0].replace("dim: 3 ", f"dim: {channels} ")
    net.channels["data"] = channels
    return net


def slim_trunk(net, bottom, suffix="", first="conv1_1"):
    """VGG16 with few channels up to fc7, every name with ``suffix``."""
    for block, (count, out) in enumerate(SLIM_BLOCKS, start=1):
        for i in range(1, count + 1):
            start = (block, i) == (1, 1)
            name = first if start else f"conv{block}_{i}"
            bottom = net.conv(name + suffix, bottom, out, 3, pad=100 if start else 1)
        bottom = net.pool(f"pool{block}{suffix}", bottom, 2, 2)
    net.conv(f"fc6{suffix}", bottom, SLIM["hidden"], 7)
    return net.conv(f"fc7{suffix}", f"fc6{suffix}", SLIM["hidden"], 1)


def early_fusion(size):
    """nyud-fcn32s-color-d."""
    net = slim_definition(size, 4)
    slim_trunk(net, "data", first="conv1_1_bgrd")
    net.conv("score_fr", "fc7", caffe_oracle.CLASSES, 1, relu=False)
    net.crop("score", net.upsample("upscore", "score_fr", 64, 32), "data", 19)
    return net


def average(net, name, first, second):
    return net.layer(
        name, "Eltwise", [first, second], "eltwise_param { operation: SUM coeff: 0.5 coeff: 0.5 }"
    )


def late_fusion(size, skip):
    """nyud-fcn32s-color-hha; with ``skip`` the FCN-16s of CVPR Table 4, named in the same way."""
    net = slim_definition(size, 6)
    net.lines.append(
        'layer { name: "slice" type: "Slice" bottom: "data" top: "color" top: "hha" '
        "slice_param { axis: 1 slice_point: 3 } }"
    )
    net.channels |= {"color": 3, "hha": 3}
    for stream in ("color", "hha"):
        slim_trunk(net, stream, stream)
        net.conv(f"score_fr{stream}", f"fc7{stream}", caffe_oracle.CLASSES, 1, relu=False)
    fused = average(net, "score_fused", "score_frcolor", "score_frhha")
    if not skip:
        net.crop("score", net.upsample("upscore", fused, 64, 32), "data", 19)
        return net
    up = net.upsample("upscore2", fused, 4, 2)
    for stream in ("color", "hha"):
        net.conv(f"score_pool4{stream}", f"pool4{stream}", caffe_oracle.CLASSES, 1, relu=False)
    pool4 = average(net, "score_pool4", "score_pool4color", "score_pool4hha")
    fused = net.add("fuse_pool4", up, net.crop("score_pool4c", pool4, up, 5))
    net.crop("score", net.upsample("upscore16", fused, 32, 16), "data", 27)
    return net


def two_heads(size):
    """siftflow-fcn8s."""
    net = slim_definition(size, 3)
    slim_trunk(net, "data")
    for head in ("_sem", "_geo"):
        score = net.conv(f"score_fr{head}", "fc7", caffe_oracle.CLASSES, 1, relu=False)
        up = net.upsample(f"upscore2{head}", score, 4, 2)
        for pool, following, kernel, stride, offset in (
            ("pool4", f"upscore_pool4{head}", 4, 2, 5),
            ("pool3", f"upscore8{head}", 16, 8, 9),
        ):
            name = f"score_{pool}{head}"
            net.conv(name, pool, caffe_oracle.CLASSES, 1, relu=False)
            fused = net.add(f"fuse_{pool}{head}", up, net.crop(f"{name}c", name, up, offset))
            up = net.upsample(following, fused, kernel, stride)
        net.crop(f"score{head}", up, "data", 31)
    return net


@pytest.mark.parametrize(
    "name, definition, outputs",
    [
        ("nyud-fcn32s-color-d", early_fusion, ["score"]),
        ("nyud-fcn32s-color-hha", lambda size: late_fusion(size, skip=False), ["score"]),
        ("nyud-fcn16s-color-hha", lambda size: late_fusion(size, skip=True), ["score"]),
        ("siftflow-fcn8s", two_heads, ["score_sem", "score_geo"]),
    ],
)
def test_nets_of_the_other_data_sets(tmp_path, name, definition, outputs):
    """Weights load by the authors' names, all of them, and give the authors' scores."""
    path = tmp_path / "net.caffemodel"
    size = (41, 58)
    oracle = definition(size)
    write(path, caffe_oracle.random_weights([oracle], seed=0))
    classes = dict.fromkeys(["semantic", "geometric"][: len(outputs)], caffe_oracle.CLASSES)
    net = build(configuration(name, **SLIM), classes).eval()
    report = load_into(net, read(path))
    assert not report.missing_in_file and not report.unused_in_file
    pixels = np.random.default_rng(1).normal(0, 60, (1, net.channels, *size)).astype(np.float32)
    expected = caffe_oracle.forward(oracle.text, path, pixels, outputs)
    with torch.inference_mode():
        found = net(torch.from_numpy(pixels))
    for task, output in zip(classes, outputs, strict=True):
        assert difference(found[task].numpy(), expected[output]) < TOLERANCE


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
