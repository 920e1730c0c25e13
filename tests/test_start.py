"""Where training starts: backbones in nets of several inputs, late fusion from runs, mistakes."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fcn.errors import UserError
from fcn.files import write_json
from fcn.nets import CHANNELS, build
from fcn.nets.upsample import Upsample
from fcn.weights.backbone import first_filters, initialise, start
from fcn.weights.caffemodel import Layer
from fcn.weights.named import named_tensors, save
from tests.caffemodel_writer import write
from tests.test_nets import configuration, slim

LATE = {"inputs": ["image", "hha"], "fusion": "late"}
SUFFIX = {"image": "color", "hha": "hha", "depth": "depth"}
ARCHIVE = {"name": "archive", "sha256": "0", "size": 1, "subset": False}


def values(net):
    return {key: value.clone() for key, value in named_tensors(net).items()}


def filled(seed=0, architecture="vgg16", **change):
    """A net with random weights and biases, none of them zero."""
    net = slim(architecture, seed=seed, **change)
    initialise(net, seed)
    generator = torch.Generator().manual_seed(seed + 100)
    for parameter in net.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return net


@pytest.fixture
def backbone(tmp_path):
    """Write the trunk of a net as a backbone; gives the weights of a run's configuration."""

    def put(net):
        place = tmp_path / "backbones" / "b"
        save(place / "weights.safetensors", named_tensors(net.trunk), {})
        write_json(place / "backbone.json", {"archive": ARCHIVE})
        return {"backbone": "b"}

    return put


@pytest.fixture
def parent(tmp_path):
    """Write a trained run's file under a name; gives its path."""

    def put(net, name, fingerprint):
        path = tmp_path / f"{name}.safetensors"
        save(path, named_tensors(net), {"config_hash": fingerprint, "archives": [ARCHIVE]})
        return path

    return put


# --------------------------------------------------------------------------------------- backbones


@settings(max_examples=40, deadline=None)
@given(st.permutations(["image", "depth", "hha"]), st.integers(1, 3), st.integers(0, 99))
def test_first_filters(order, count, seed):
    """The first input of three channels gets the filters, the others the mean of their colours."""
    inputs = order[:count]
    weight = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    found = first_filters(weight, inputs)
    assert found.shape == (4, sum(CHANNELS[name] for name in inputs), 5, 5)
    parts = dict(zip(inputs, found.split([CHANNELS[name] for name in inputs], 1), strict=True))
    colour = next((name for name in inputs if CHANNELS[name] == 3), None)
    for name, part in parts.items():
        if name == colour:
            assert torch.equal(part, weight)
        else:
            for channel in part.unbind(1):
                torch.testing.assert_close(
                    channel, (weight[:, 0] + weight[:, 1] + weight[:, 2]) / 3
                )
    # A grey picture in every channel excites each filter as much as it did, times the inputs.
    grey = torch.ones(1, 1, 5, 5)
    one = (weight * grey).sum((1, 2, 3)) / 3
    torch.testing.assert_close(
        (found * grey).sum((1, 2, 3)), one * found.shape[1], rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    "architecture, first",
    [
        ("vgg16", "conv1_1"),
        ("vgg19", "conv1_1"),
        ("alexnet", "conv1"),
        ("googlenet", "conv1/7x7_s2"),
    ],
)
@pytest.mark.parametrize("inputs, mark", [(["image", "depth"], "_bgrd"), (["hha"], "")])
def test_one_trunk_takes_a_backbone(backbone, tmp_path, architecture, first, inputs, mark):
    """Early fusion (nyud-fcn32s-color-d): all of it, the bias of the first layer too."""
    source = filled(architecture=architecture)
    net = filled(1, architecture, inputs=inputs)
    scores = values(net.heads)
    left, archives = start(net, backbone(source), tmp_path, {})
    assert left == [] and archives == [ARCHIVE]
    own, theirs = values(net.trunk), values(source.trunk)
    weight = own.pop(f"{first}{mark}.weight")
    expected = theirs.pop(f"{first}.weight")
    assert torch.equal(weight[:, :3], expected)
    if "depth" in inputs:
        torch.testing.assert_close(weight[:, 3], expected.mean(1))
    else:
        assert weight.shape == expected.shape
    assert torch.equal(own.pop(f"{first}{mark}.bias"), theirs.pop(f"{first}.bias"))
    assert own.keys() == theirs.keys()
    assert all(torch.equal(own[key], theirs[key]) for key in own)
    assert all(torch.equal(value, scores[key]) for key, value in values(net.heads).items())


@pytest.mark.parametrize("architecture", ["vgg16", "googlenet"])
@pytest.mark.parametrize("inputs", [["image", "hha"], ["depth", "image"]])
def test_every_stream_takes_the_backbone(backbone, tmp_path, architecture, inputs):
    source = filled(architecture=architecture)
    net = filled(1, architecture, inputs=inputs, fusion="late")
    assert start(net, backbone(source), tmp_path, {})[0] == []
    theirs = values(source.trunk)
    for name, trunk in zip(inputs, net.streams, strict=True):
        assert trunk.suffix == SUFFIX[name]
        own = values(trunk)
        assert len(own) == len(theirs)
        for key, value in own.items():
            layer, kind = key.rsplit(".", 1)
            expected = theirs[f"{layer.removesuffix(trunk.suffix)}.{kind}"]
            if name == "depth" and layer == trunk.first and kind == "weight":
                expected = expected.mean(1, keepdim=True)
            torch.testing.assert_close(value, expected, rtol=0, atol=0)


@pytest.mark.parametrize("change", [{}, LATE])
def test_fc6_of_another_size_stays_random_and_is_named(backbone, tmp_path, change):
    """CVPR section 4.2: there are no 14x14 filters to start from."""
    source = filled()
    net = filled(1, pool5_stride=1, fc6_kernel=14, **change)
    before = values(net)
    left, _ = start(net, backbone(source), tmp_path, {})
    suffixes = [trunk.suffix for trunk in net.streams]
    assert left == [f"fc6{suffix}" for suffix in suffixes]
    after = values(net)
    for suffix in suffixes:
        for kind in ("weight", "bias"):
            assert torch.equal(after[f"fc6{suffix}.{kind}"], before[f"fc6{suffix}.{kind}"])
            assert torch.equal(after[f"fc7{suffix}.{kind}"], values(source)[f"fc7.{kind}"])


def test_dilated_fc6_takes_the_backbone(backbone, tmp_path):
    source, net = filled(), filled(1, pool5_stride=1, fc6_dilation=2)
    assert start(net, backbone(source), tmp_path, {})[0] == []
    assert torch.equal(values(net)["fc6.weight"], values(source)["fc6.weight"])


def test_a_layer_that_the_backbone_lacks_is_named_for_each_stream(tmp_path):
    source, net = filled(), filled(1, **LATE)
    before = values(net)
    tensors = {k: v for k, v in named_tensors(source.trunk).items() if "conv3_2" not in k}
    place = tmp_path / "backbones" / "b"
    save(place / "weights.safetensors", tensors, {})
    write_json(place / "backbone.json", {})
    left, archives = start(net, {"backbone": "b"}, tmp_path, {})
    assert left == ["conv3_2color", "conv3_2hha"] and archives == []
    for layer in left:
        assert torch.equal(values(net)[f"{layer}.weight"], before[f"{layer}.weight"])


def test_initialise_reaches_every_stream_and_makes_them_differ():
    net = slim("vgg16", **LATE)
    for parameter in net.trunk.parameters():
        parameter.data.fill_(7)
    initialise(net, 3)
    found = values(net.trunk)
    for key, value in found.items():
        assert not (value == 7).any(), key
        if key.endswith("color.weight"):
            assert not torch.equal(value, found[key.replace("color.", "hha.")])


# -------------------------------------------------------------------------------------------- runs


def runs(**hashes):
    return {"runs": {name: f"nyud/{name}" for name in hashes}, "hashes": hashes}


@pytest.mark.parametrize(
    "classes", [{"semantic": 2}, {"semantic": 4, "geometric": 3}], ids=["one head", "two heads"]
)
def test_late_fusion_from_two_runs_is_their_average(parent, tmp_path, classes):
    """nyud-fcn32s-color-hha: trunk and score layers; before training, the mean of both nets."""

    def net_of(seed, **change):
        torch.manual_seed(seed)
        net = build(configuration("vgg16", **change), classes).eval()
        initialise(net, seed)
        for parameter in net.parameters():
            parameter.data += 0.01
        return net

    parts = {"image": net_of(1), "hha": net_of(2, inputs=["hha"])}
    net = net_of(3, **LATE)
    paths = {name: parent(part, name, f"{name}hash") for name, part in parts.items()}
    left, archives = start(net, runs(image="imagehash", hha="hhahash"), tmp_path, paths)
    assert left == [] and archives == [ARCHIVE]
    x = torch.randn(1, 6, 40, 35, generator=torch.Generator().manual_seed(0)) * 50
    with torch.inference_mode():
        found = net(x)
        one, other = parts["image"](x[:, :3]), parts["hha"](x[:, 3:])
    for task in classes:
        expected = (one[task] + other[task]) / 2
        assert expected.std() > 0 and not torch.allclose(one[task], other[task], rtol=1e-2)
        torch.testing.assert_close(
            found[task], expected, rtol=1e-4, atol=1e-5 * float(expected.std())
        )


def test_a_finer_late_fusion_starts_from_a_coarser_one(parent, tmp_path):
    """FCN-16s of CVPR Table 4: every layer of FCN-32s, the new score layers at their own start."""
    coarse = filled(1, **LATE)
    fine = filled(2, skips=["pool4"], **LATE)
    before = values(fine)
    path = parent(coarse, "coarse", "h")
    assert start(fine, {"run": "nyud/coarse", "hash": "h"}, tmp_path, {"run": path})[0] == []
    after, theirs = values(fine), values(coarse)
    for key, value in after.items():
        new = key.startswith(("score_pool4", "upscore"))
        assert torch.equal(value, before[key] if new else theirs[key]), key
    assert {"score_frcolor.weight", "score_pool4hha.bias"} <= after.keys()


def test_a_late_fusion_with_skips_starts_from_runs_without(parent, tmp_path):
    fine = filled(3, skips=["pool4"], **LATE)
    hha = filled(2, inputs=["hha"], skips=["pool4"])
    before = values(fine)
    paths = {"image": parent(filled(1), "image", "a"), "hha": parent(hha, "hha", "b")}
    start(fine, runs(image="a", hha="b"), tmp_path, paths)
    after = values(fine)
    assert torch.equal(after["score_pool4color.weight"], before["score_pool4color.weight"])
    assert torch.equal(after["score_pool4hha.weight"], values(hha)["score_pool4.weight"])


@pytest.mark.parametrize(
    "change, given, message",
    [
        ({}, {"image": "a", "hha": "b"}, "the net reads image in one stream"),
        ({"inputs": ["image", "hha"]}, {"image": "a", "hha": "b"}, "image, hha in one stream"),
        (LATE, {"image": "a", "depth": "b"}, "runs for image, depth, the net reads image, hha"),
        (LATE, {"image": "a", "hha": "old"}, "hha.safetensors: trained with configuration b"),
    ],
)
def test_runs_that_do_not_fit_are_refused(parent, tmp_path, change, given, message):
    net = filled(3, **change)
    before = values(net)
    paths = {
        "image": parent(filled(1), "image", "a"),
        "hha": parent(filled(2), "hha", "b"),
        "depth": parent(filled(2, inputs=["depth"]), "depth", "b"),
    }
    with pytest.raises(UserError, match=message):
        start(net, runs(**given), tmp_path, paths)
    if message.startswith("the net reads"):
        assert all(torch.equal(value, before[key]) for key, value in values(net).items())


def test_upsampling_of_another_factor_keeps_its_start(parent, tmp_path):
    """A dilated net continues a net of stride 32; both call their last layer upscore."""
    coarse, net = filled(1), filled(2, pool5_stride=1, fc6_dilation=2)
    before = values(net)
    path = parent(coarse, "coarse", "h")
    start(net, {"run": "voc/coarse", "hash": "h"}, tmp_path, {"run": path})
    theirs = values(coarse)
    for key, value in values(net).items():
        assert torch.equal(value, before[key] if key.startswith("upscore") else theirs[key]), key


def test_a_run_that_lacks_a_trunk_layer_is_refused(parent, tmp_path):
    short = filled(1, top="pool4")
    net = filled(3, **LATE)
    paths = {"image": parent(short, "image", "a"), "hha": parent(filled(2), "hha", "b")}
    with pytest.raises(UserError, match=r"image\.safetensors: lacks conv5_1color"):
        start(net, runs(image="a", hha="b"), tmp_path, paths)
    with pytest.raises(UserError, match=r"image\.safetensors: lacks conv1_1color"):
        start(net, {"run": "nyud/image", "hash": "a"}, tmp_path, {"run": paths["image"]})
    with pytest.raises(UserError, match="trained with configuration a, the suite now has z"):
        start(net, {"run": "nyud/image", "hash": "z"}, tmp_path, {"run": paths["image"]})


# ---------------------------------------------------------------------------------------- released


@pytest.mark.parametrize("missing", [None, "score_frhha", "conv1_1color"])
def test_released_late_fusion_loads_by_name(tmp_path, missing):
    """A .caffemodel with the names of nyud-fcn32s-color-hha, in an order of its own."""
    source, net = filled(1, **LATE), filled(2, **LATE)
    layers: dict[str, list[np.ndarray]] = {}
    for key, value in sorted(named_tensors(source).items(), reverse=True):
        layers.setdefault(key.rsplit(".", 1)[0], []).insert(0, value.detach().numpy())
    archive = tmp_path / "archives" / "late.caffemodel"
    archive.parent.mkdir()
    write(archive, [
        Layer(name, "Convolution", blobs[::-1] if blobs[0].ndim == 1 else blobs)
        for name, blobs in layers.items()
        if name != missing and not name.startswith("upscore")
    ])  # fmt: skip
    write_json(archive.with_name("late.caffemodel.json"), ARCHIVE)
    weights = {"released": "late", "archive": "late.caffemodel"}
    if missing:
        with pytest.raises(UserError, match=re.escape(f"lacks the layers {missing} of this net")):
            start(net, weights, tmp_path, {})
        return
    assert start(net, weights, tmp_path, {}) == ([], [ARCHIVE])
    theirs = values(source)
    assert all(torch.equal(value, theirs[key]) for key, value in values(net).items())


def test_learned_upsampling_of_the_same_factor_is_continued(parent, tmp_path):
    coarse = filled(1, skips=["pool4"], interpolation="learned")
    net = filled(2, skips=["pool4", "pool3"], interpolation="learned")
    path = parent(coarse, "coarse", "h")
    start(net, {"run": "voc/coarse", "hash": "h"}, tmp_path, {"run": path})
    assert torch.equal(values(net)["upscore2.weight"], values(coarse)["upscore2.weight"])


def test_released_upsampling_that_is_not_bilinear_is_applied(tmp_path):
    source, net = filled(1), filled(2)
    upscore = named_tensors(source)["upscore.weight"]
    upscore *= 0.5
    layers: dict[str, list[np.ndarray]] = {}
    for key, value in sorted(named_tensors(source).items(), reverse=True):
        layers.setdefault(key.rsplit(".", 1)[0], []).append(value.detach().numpy())
    archive = tmp_path / "archives" / "x.caffemodel"
    archive.parent.mkdir()
    write(archive, [
        Layer(name, "Deconvolution" if name == "upscore" else "Convolution", blobs)
        for name, blobs in layers.items()
    ])  # fmt: skip
    write_json(archive.with_name("x.caffemodel.json"), ARCHIVE)
    start(net, {"released": "x", "archive": "x.caffemodel"}, tmp_path, {})
    assert torch.equal(named_tensors(net)["upscore.weight"], upscore)
    assert [m.exact for m in net.modules() if isinstance(m, Upsample)] == [True]
