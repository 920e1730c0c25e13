"""The .caffemodel reader against hand-made bytes, against OpenCV's reader and on real files."""

import contextlib
import struct
import tracemalloc
from collections import OrderedDict
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fcn.errors import UserError
from fcn.weights.caffemodel import Layer, LoadReport, load_into, read, to_shape
from tests.caffemodel_writer import write

MIRROR = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "mirror"


# An encoder of its own, so that the reader is not tested with its own writer alone.
def varint(value):
    digits = [value & 127]
    while value := value >> 7:
        digits.append(value & 127)
    return bytes([d | 128 for d in digits[:-1]] + digits[-1:])


def item(number, payload):
    if isinstance(payload, int):
        return varint(number * 8) + varint(payload)
    return varint(number * 8 + 2) + varint(len(payload)) + payload


def floats(values, kind="f"):
    return struct.pack(f"<{len(values)}{kind}", *values)


def legacy(n, c, h, w):
    return b"".join(item(i + 1, v) for i, v in enumerate((n, c, h, w)))


def shape(*dims):
    return item(7, item(1, b"".join(varint(d) for d in dims)))


def v2(name, *blobs, kind=b"Convolution"):
    head = item(1, name) + item(2, kind) + item(3, b"data") + item(4, b"top")
    return item(100, head + b"".join(item(7, blob) for blob in blobs))


def save(tmp_path, content, name="net.caffemodel"):
    path = tmp_path / name
    path.write_bytes(content)
    return path


@st.composite
def nets(draw):
    names = draw(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=4, unique=True))
    layers = []
    for name in names:
        kind = draw(st.sampled_from(["Convolution", "InnerProduct", "Deconvolution"]))
        shapes = draw(
            st.lists(st.lists(st.integers(1, 4), max_size=4).map(tuple), min_size=1, max_size=2)
        )
        rng = np.random.default_rng(draw(st.integers(0, 999)))
        layers.append(Layer(name, kind, [rng.normal(size=s).astype(np.float32) for s in shapes]))
    return layers


def assert_same(expected, found):
    assert [(layer.name, layer.type) for layer in expected] == [
        (layer.name, layer.type) for layer in found.values()
    ]
    for layer in expected:
        for ours, theirs in zip(layer.blobs, found[layer.name].blobs, strict=True):
            np.testing.assert_array_equal(ours, theirs)
            assert theirs.dtype == np.float32


@settings(max_examples=50, deadline=None)
@given(net=nets(), version=st.sampled_from(["V1", "V2", "V1-legacy"]))
def test_round_trip(tmp_path_factory, net, version):
    path = tmp_path_factory.mktemp("net") / "net.caffemodel"
    write(path, net, version)
    if version == "V1-legacy":
        net = [
            Layer(x.name, x.type, [b.reshape((1,) * (4 - b.ndim) + b.shape) for b in x.blobs])
            for x in net
        ]
    assert_same(net, read(path))


@settings(max_examples=12, deadline=None)
@given(net=nets(), version=st.sampled_from(["V1", "V2", "V1-legacy"]))
def test_a_cut_file_is_refused_or_holds_whole_layers(tmp_path_factory, net, version):
    path = tmp_path_factory.mktemp("net") / "net.caffemodel"
    write(path, net, version)
    whole, content = list(read(path).values()), path.read_bytes()
    accepted = 0
    for cut in range(len(content)):
        path.write_bytes(content[:cut])
        try:
            found = read(path)
        except UserError as error:
            assert str(path) in str(error)
        else:
            accepted += 1
            assert_same(whole[: len(found)], found)
    assert accepted == len(net) - 1  # the cuts between layers, which the format cannot tell


@settings(deadline=None)
@given(content=st.binary(max_size=200))
def test_any_bytes_are_refused_in_words(tmp_path_factory, content):
    path = save(tmp_path_factory.mktemp("net"), content)
    with pytest.raises(UserError, match=r"net\.caffemodel"):
        read(path)


@settings(deadline=None)
@given(content=st.binary(max_size=60), at=st.integers(0, 300))
def test_damage_never_escapes_as_another_error(tmp_path_factory, content, at):
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("net") / "net.caffemodel"
    weights = [rng.normal(size=(3, 2, 2, 2)).astype(np.float32), np.ones(3, np.float32)]
    write(path, [Layer("conv", "Convolution", weights), Layer("fc", "Convolution", weights)])
    good = path.read_bytes()
    path.write_bytes(good[:at] + content + good[at + len(content) :])
    with contextlib.suppress(UserError):
        read(path)


def test_v2_by_hand(tmp_path):
    blob = shape(2, 1, 1, 3) + item(5, floats([1, 2, 3, 4, 5, 6])) + item(6, floats([0] * 6))
    bias = shape(2) + item(5, floats([7, 8]))
    scalar = item(7, b"") + item(5, floats([9]))
    content = item(1, b"net") + item(100, item(1, b"data") + item(2, b"Input"))
    content += v2(b"conv", blob, bias) + v2(b"half", scalar, kind=b"Scale") + item(7, 1)
    layers = read(save(tmp_path, content))
    assert list(layers) == ["conv", "half"]  # the data layer has no weights
    assert layers["conv"].type == "Convolution"
    np.testing.assert_array_equal(layers["conv"].blobs[0], [[[[1, 2, 3]]], [[[4, 5, 6]]]])
    np.testing.assert_array_equal(layers["conv"].blobs[1], [7, 8])
    assert layers["half"].blobs[0].shape == ()


@pytest.mark.parametrize(
    "code, kind", [(4, "Convolution"), (14, "InnerProduct"), (99, "V1 type 99")]
)
def test_v1_by_hand(tmp_path, code, kind):
    blob = legacy(1, 1, 2, 3) + item(5, floats([1, 2, 3, 4, 5, 6]))
    layer = item(2, b"bottom") + item(4, b"fc") + item(5, code) + item(6, blob) + item(35, b"")
    found = read(save(tmp_path, item(1, b"net") + item(2, layer)))["fc"]
    assert found.type == kind
    np.testing.assert_array_equal(found.blobs[0], [[[[1, 2, 3], [4, 5, 6]]]])


def test_v0_inside_v1_by_hand(tmp_path):
    blob = legacy(1, 1, 1, 2) + item(5, floats([1, 2]))
    layer = item(1, b"conv1") + item(2, b"conv") + item(3, 96) + item(50, blob) + item(51, b"")
    found = read(save(tmp_path, item(2, item(1, layer) + item(2, b"data"))))["conv1"]
    assert (found.name, found.type) == ("conv1", "Convolution")
    np.testing.assert_array_equal(found.blobs[0].ravel(), [1, 2])


@pytest.mark.parametrize(
    "data",
    [
        item(5, floats([1, 2])) + item(5, floats([3])),
        b"".join(varint(5 * 8 + 5) + floats([x]) for x in (1, 2, 3)),
        item(5, floats([1, 2])) + varint(5 * 8 + 5) + floats([3]),
        item(8, floats([1, 2, 3], "d")),
        b"".join(varint(8 * 8 + 1) + floats([x], "d") for x in (1, 2, 3)),
    ],
    ids=["split", "unpacked", "mixed", "double", "double unpacked"],
)
@pytest.mark.parametrize("dims", [shape(3), item(7, item(1, 3)), legacy(1, 1, 1, 3)])
def test_every_encoding_of_the_weights(tmp_path, data, dims):
    for content in (dims + data, data + dims):
        blob = read(save(tmp_path, v2(b"a", content)))["a"].blobs[0]
        np.testing.assert_array_equal(blob.ravel(), [1, 2, 3])
        assert blob.dtype == np.float32


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "web page"),
        (b'\n  <?xml version="1.0"?><Error/>', "web page"),
        (b'name: "VGG"\nlayer {\n  name: "conv1_1"\n}\n', "prototxt"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "LFS"),
        (b"hello there", "text file"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5"),
        (b"PK\x03\x04" + bytes(100), "zip"),
        (item(1, b"net") + item(100, item(1, b"a") + item(2, b"ReLU")), "no layer with weights"),
        (v2(b"a", shape(3) + item(5, floats([1, 2]))), r"layer 'a': a blob of shape \(3,\)"),
        (v2(b"a", shape(3)), "holds 0 values"),
        (v2(b"a", item(3, 1) + item(4, 2) + item(5, floats([1, 2]))), r"shape \(0, 0, 1, 2\)"),
        (v2(b"a", shape(1) + item(5, floats([1]))) * 2, "two layers with weights are called 'a'"),
        (v2(b"a", shape(1) + item(5, b"12345")), "weights were expected"),
        (v2(b"a", shape(1) + item(5, floats([1])))[:-1], "truncated"),
    ],
)
def test_what_it_is_instead(tmp_path, content, words):
    path = save(tmp_path, content)
    with pytest.raises(UserError, match=words) as error:
        read(path)
    assert str(path) in str(error.value)


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "none.caffemodel", tmp_path):
        with pytest.raises(UserError, match="cannot be read"):
            read(path)


def test_a_large_file_is_not_copied(tmp_path):
    path = tmp_path / "large.caffemodel"
    weights = np.zeros((4096, 25088), np.float32)  # fc6 of VGG16
    weights[-1, -1] = 5
    write(path, [Layer("fc6", "InnerProduct", [weights])], "V1-legacy")
    tracemalloc.start()
    try:
        blob = read(path)["fc6"].blobs[0]
        assert tracemalloc.get_traced_memory()[1] < weights.nbytes / 100
    finally:
        tracemalloc.stop()
    assert not blob.flags.owndata and not blob.flags.writeable
    assert blob[0, 0, -1, -1] == 5


@pytest.mark.parametrize("version", ["V1", "V2", "V1-legacy"])
def test_opencv_reads_what_we_write(tmp_path, version):
    rng = np.random.default_rng(1)
    weight = rng.normal(size=(4, 3, 2, 2)).astype(np.float32)
    bias = rng.normal(size=4).astype(np.float32)
    write(tmp_path / "a.caffemodel", [Layer("conv", "Convolution", [weight, bias])], version)
    (tmp_path / "a.prototxt").write_text(
        'layer { name: "data" type: "Input" top: "data" '
        "input_param { shape { dim: 1 dim: 3 dim: 2 dim: 2 } } }\n"
        'layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" '
        "convolution_param { num_output: 4 kernel_size: 2 } }\n"
    )
    net = cv2.dnn.readNetFromCaffe(str(tmp_path / "a.prototxt"), str(tmp_path / "a.caffemodel"))
    image = rng.normal(size=(1, 3, 2, 2)).astype(np.float32)
    net.setInput(image)
    expected = (weight * image).sum(axis=(1, 2, 3)) + bias
    np.testing.assert_allclose(net.forward().ravel(), expected, rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------------------------------- loading


@pytest.mark.parametrize("found", [(1, 1, 6, 20), (6, 20), (6, 5, 2, 2)])
def test_to_shape_keeps_the_order(found):
    blob = np.arange(120, dtype=np.float32).reshape(found)
    shaped = to_shape(blob, (6, 5, 2, 2), "fc6")
    np.testing.assert_array_equal(shaped.ravel(), np.arange(120))
    assert shaped.shape == (6, 5, 2, 2)


@pytest.mark.parametrize(
    "found, wanted",
    [
        ((20, 6), (6, 5, 2, 2)),
        ((120,), (6, 5, 2, 2)),
        ((5, 6, 2, 2), (6, 5, 2, 2)),
        ((6, 5, 4, 1), (6, 5, 2, 2)),
        ((1, 6, 2, 2), (6, 1, 2, 2)),
        ((21,), (20,)),
    ],
)
def test_to_shape_refuses_other_weights(found, wanted):
    with pytest.raises(UserError, match="layer 'fc6'") as error:
        to_shape(np.zeros(found, np.float32), wanted, "fc6")
    assert str(found) in str(error.value) and str(wanted) in str(error.value)


class Scale(nn.Module):
    scale: torch.Tensor

    def __init__(self, *dims):
        super().__init__()
        self.register_buffer("scale", torch.zeros(dims))


def net():
    trunk = nn.Module()
    trunk.add_module("inception_3a/1x1", nn.Conv2d(3, 4, 1))
    trunk.add_module("fc6", nn.Conv2d(4, 6, 2))
    module = nn.Module()
    module.add_module("trunk", trunk)
    module.add_module("pool", nn.MaxPool2d(2))
    module.add_module("upscore", nn.ConvTranspose2d(5, 5, 4, 2, groups=5, bias=False))
    module.add_module("scale_pool4", Scale())
    module.add_module("scale_pool3", Scale(1, 2, 1, 1))
    module.add_module("score", nn.Conv2d(6, 5, 1))
    return module


def weights():
    rng = np.random.default_rng(2)

    def random(*dims):
        return rng.normal(size=dims).astype(np.float32)

    bilinear = np.zeros((5, 5, 4, 4), np.float32)
    bilinear[range(5), range(5)] = random(5, 4, 4)
    layers = [
        Layer("inception_3a/1x1", "Convolution", [random(4, 3, 1, 1), random(1, 1, 1, 4)]),
        Layer("fc6", "InnerProduct", [random(1, 1, 6, 16), random(1, 1, 1, 6)]),
        Layer("loss3/classifier", "InnerProduct", [random(2, 6)]),
        Layer("upscore", "Deconvolution", [bilinear]),
        Layer("scale_pool4", "Scale", [np.full(5, 0.01, np.float32)]),
        Layer("scale_pool3", "Scale", [random(2)]),
    ]
    return {layer.name: layer for layer in layers}


def test_load_into_by_name():
    module, layers = net(), weights()
    before = module.score.weight.clone()
    report = load_into(module, layers)
    assert report == LoadReport(
        ["inception_3a/1x1", "fc6", "upscore", "scale_pool4", "scale_pool3"],
        ["score"],
        ["loss3/classifier"],
    )
    state = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    for name, path in {"inception_3a/1x1": "trunk.inception_3a/1x1", "fc6": "trunk.fc6"}.items():
        for blob, part in zip(layers[name].blobs, ("weight", "bias"), strict=True):
            np.testing.assert_array_equal(state[f"{path}.{part}"].ravel(), blob.ravel())
    full = layers["upscore"].blobs[0]
    np.testing.assert_array_equal(state["upscore.weight"][:, 0], full[range(5), range(5)])
    assert state["scale_pool4.scale"] == np.float32(0.01)
    np.testing.assert_array_equal(
        state["scale_pool3.scale"].ravel(), layers["scale_pool3"].blobs[0]
    )
    assert torch.equal(module.score.weight, before)
    assert module.score.weight.requires_grad


def test_grouped_and_full_deconvolution_compute_the_same():
    full = nn.ConvTranspose2d(5, 5, 4, 2, bias=False)
    layers = {"upscore": weights()["upscore"]}
    load_into(nn.ModuleDict({"upscore": full}), layers)
    grouped = nn.ConvTranspose2d(5, 5, 4, 2, groups=5, bias=False)
    load_into(nn.ModuleDict({"upscore": grouped}), layers)
    image = torch.randn(1, 5, 3, 4)
    torch.testing.assert_close(full(image), grouped(image))


def spoiled(name, change):
    layers = weights()
    layer = layers[name]
    layers[name] = Layer(name, layer.type, change([np.array(blob) for blob in layer.blobs]))
    return layers


def mix(blobs):
    blobs[0][0, 1, 2, 3] = 1e-3
    return blobs


def nan(blobs):
    blobs[0].flat[3] = np.nan
    return blobs


@pytest.mark.parametrize(
    "name, change, words",
    [
        ("upscore", mix, "mixes channels"),
        ("upscore", lambda blobs: [blobs[0], np.ones(5, np.float32)], "the file has a bias"),
        ("fc6", nan, "not all finite"),
        ("fc6", lambda blobs: blobs[:1], "the file has none"),
        ("fc6", lambda blobs: blobs + blobs[1:], "3 blobs"),
        ("fc6", lambda blobs: [blobs[0].reshape(16, 6), blobs[1]], r"\(16, 6\)"),
        ("scale_pool4", lambda blobs: [np.array([1, 2], np.float32)], r"shape \(2,\)"),
    ],
)
def test_load_into_refuses(name, change, words):
    with pytest.raises(UserError, match=words) as error:
        load_into(net(), spoiled(name, change))
    assert name in str(error.value)


def test_nan_beside_the_diagonal_is_no_zero():
    with pytest.raises(UserError):
        load_into(net(), spoiled("upscore", lambda blobs: [blobs[0] + np.float32(np.nan)]))


def test_load_into_needs_unique_names():
    module = nn.Module()
    module.add_module("color", nn.ModuleDict({"conv1": nn.Conv2d(1, 1, 1)}))
    module.add_module("hha", nn.ModuleDict({"conv1": nn.Conv2d(1, 1, 1)}))
    with pytest.raises(ValueError, match="conv1"):
        load_into(module, {})


# ------------------------------------------------------------------------------------- real files


def real(name):
    path = MIRROR / name
    if not path.exists():
        pytest.skip(f"no shared/data/mirror/{name} beside the repository")
    return path


def test_real_googlenet():
    layers = read(real("bvlc_googlenet.caffemodel"))
    # 57 convolutions without the auxiliary heads, and the classifier (paper: 22 layers deep)
    assert len(layers) == 58
    convolutions = [layer for layer in layers.values() if layer.type == "Convolution"]
    assert len(convolutions) == 57
    assert sum(blob.size for layer in convolutions for blob in layer.blobs) == 5_973_552
    assert layers["conv1/7x7_s2"].blobs[0].shape == (64, 3, 7, 7)
    assert layers["loss3/classifier"].blobs[0].shape == (1, 1, 1000, 1024)
    assert layers["inception_5b/pool_proj"].blobs[1].shape == (1, 1, 1, 128)
    assert all(np.isfinite(blob).all() for layer in layers.values() for blob in layer.blobs)


def test_real_alexnet_says_what_it_lacks():
    module = nn.Module()
    module.add_module("conv1", nn.Conv2d(3, 96, 11, 4))
    module.add_module("conv2", nn.Conv2d(96, 256, 5, groups=2))
    module.add_module("fc6", nn.Conv2d(256, 8, 6))
    report = load_into(module, read(real("bvlc_alexnet.caffemodel")))
    assert report == LoadReport(["conv1", "conv2"], ["fc6"], ["conv3", "conv4", "conv5"])
    assert module.state_dict()["conv2.weight"].abs().max() > 0.1


@torch.no_grad()
def test_a_bias_of_zeros_is_no_bias():
    layer = nn.Sequential(OrderedDict(up=nn.Conv2d(1, 1, 1, bias=False)))
    blobs = [np.full((1, 1, 1, 1), 3, np.float32), np.zeros(1, np.float32)]
    load_into(layer, {"up": Layer("up", "Convolution", blobs)})
    assert layer.state_dict()["up.weight"].item() == 3
    blobs[1][0] = 1
    with pytest.raises(UserError, match="the file has a bias, the net has none"):
        load_into(layer, {"up": Layer("up", "Convolution", blobs)})


def test_another_number_of_filters_is_of_another_net():
    with pytest.raises(UserError, match=r"'fc6': .* \(1, 1, 5, 16\), the net needs \(6, 4, 2, 2\)"):
        to_shape(np.zeros((1, 1, 5, 16), np.float32), (6, 4, 2, 2), "fc6")


def test_negative_numbers_of_fields_that_hold_no_weights_are_passed_over(tmp_path):
    """Ten bytes each: protobuf extends the sign to 64 bits."""
    blob = shape(2) + item(5, floats([1.0, 2.0]))
    inner = item(1, b"a") + item(2, b"InnerProduct") + item(10, 2**64 - 1) + item(7, blob)
    found = read(save(tmp_path, item(5, 2**64 - 1) + item(100, inner)))
    assert found["a"].blobs[0].tolist() == [1.0, 2.0]
