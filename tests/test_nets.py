"""Whole nets: sizes, heads, names, fusion and what is refused. Identities: test_identities.py."""

from typing import Any

import pytest
import torch
from torch import nn

from fcn.errors import UserError
from fcn.nets import build
from fcn.nets.trunks import TRUNKS
from fcn.nets.upsample import Upsample
from fcn.options import FEATURES, NET_DEFAULTS, NET_NEEDS, NET_OPTIONS
from fcn.weights.named import load_named, named_tensors

SKIPS = {
    "alexnet": [[], ["pool2", "pool1"]],
    "alexnet-bvlc": [["pool1"]],
    "alexnet-owt": [[], ["pool2", "pool1"]],
    "vgg16": [
        [],
        ["pool4"],
        ["pool4", "pool3"],
        ["pool4", "pool3", "pool2", "pool1"],
        ["pool2"],
    ],
    "vgg19": [["pool4", "pool3"]],
    "googlenet": [[], ["inception_4e", "inception_3b"]],
    "googlenet-torchvision": [["inception_4a", "pool2/3x3_s2"]],
}
OPTIONS: list[tuple[str, dict[str, Any]]] = [  # of VGG's upper layers, and of several inputs
    ("vgg16", {"pool5_stride": 1, "fc6_kernel": 14}),
    ("vgg16", {"pool5_stride": 1, "fc6_dilation": 2}),
    ("vgg19", {"pool5_stride": 1, "fc6_kernel": 14, "skips": ["pool3"]}),
    ("alexnet", {"pool5_stride": 1, "fc6_dilation": 2, "skips": ["pool1"]}),
    ("vgg16", {"inputs": ["image", "depth"]}),
    ("vgg16", {"inputs": ["image", "hha"], "fusion": "late", "skips": ["pool4"]}),
    ("googlenet", {"average_pool": True}),
    ("vgg16", {"null_background": True, "skip_fusion": "max", "skips": ["pool4"]}),
]
CASES = [
    (architecture, {"padding": padding, **change})
    for padding in ("reference", "tight")
    for architecture, change in [
        *(
            (name, dict[str, Any](skips=skips))
            for name, several in SKIPS.items()
            for skips in several
        ),
        *OPTIONS,
    ]
]


def configuration(architecture, **change):
    slim = {"architecture": architecture, "width": 0.02, "hidden": 4, "score_init": "random"}
    return {**NET_DEFAULTS, **slim, **change}


def slim(architecture, seed=0, classes=2, **change):
    torch.manual_seed(seed)
    return build(configuration(architecture, **change), {"semantic": classes}).eval()


def randomise(net, seed=0):
    """Weights of a size that keeps activations, biases too, so that nothing cancels by chance."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in net.named_parameters():
        fan = parameter[0].numel() if parameter.ndim > 1 else 4
        values = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        if "upscore" not in name:
            parameter.data = values * (2 / fan) ** 0.5
    return net


def test_every_architecture_is_covered():
    assert set(SKIPS) == set(TRUNKS)


# ------------------------------------------------------------------------------------------- sizes


def scores_of(net, height, width):
    with torch.inference_mode():
        return net(torch.zeros(1, net.channels, height, width, device="meta"))["semantic"]


@pytest.mark.parametrize("architecture, change", CASES)
def test_scores_have_the_size_of_the_image(architecture, change):
    """On the meta device: at every size to beyond the stride, and some more."""
    with torch.device("meta"):
        net = build(configuration(architecture, **change), {"semantic": 3}).eval()
    least = net.least
    net.least = 1
    sizes = sorted({*range(1, 42), least - 1, least, 63, 64, 65, 66, 70, 97, 499} - {0})
    works = []
    for n in sizes:
        try:
            scores = scores_of(net, n, 71)
        except RuntimeError:
            continue
        assert scores.shape == (1, 3, n, 71)
        works.append(n)
        if n % 13 == 0:  # rows and columns are treated alike
            assert scores_of(net, 71, n).shape == (1, 3, 71, n)
    assert least == works[0]
    assert works == [n for n in sizes if n >= least]
    smaller = change.get("pool5_stride") == 1 and change["padding"] == "tight"
    if (change["padding"] == "reference" or architecture.startswith("vgg")) and not smaller:
        assert least == 1


@pytest.mark.parametrize("architecture", TRUNKS)
def test_too_small_an_image_is_refused_in_words(architecture):
    net = slim(architecture, padding="tight")
    assert net(torch.zeros(1, 3, net.least, net.least + 3))["semantic"].shape[2] == net.least
    if net.least > 1:
        with pytest.raises(UserError, match=f"90x{net.least - 1} pixels is too small.*{net.least}"):
            net(torch.zeros(1, 3, net.least - 1, 90))


@pytest.mark.parametrize("skips", [["pool4"], ["pool4", "pool3", "pool2"]])
@pytest.mark.parametrize("padding", ["reference", "tight"])
def test_images_of_a_batch_do_not_see_each_other(padding, skips):
    net = randomise(slim("vgg16", padding=padding, skips=skips))
    images = torch.randn(2, 3, 33, 47, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        together = net(images)["semantic"]
        alone = torch.cat([net(image[None])["semantic"] for image in images])
    assert together.std() > 0
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6 * float(alone.abs().max()))


def test_tight_padding_sees_a_shift_as_a_shift():
    """Moved by the stride, the inside of a large image gives the same scores, moved."""
    net = randomise(slim("googlenet", padding="tight", skips=["inception_4e"]))
    image = torch.randn(1, 3, 900, 64, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        whole, moved = net(image)["semantic"], net(image[:, :, 32:])["semantic"]
    inside = slice(400, 450)
    assert whole[:, :, inside].std() > 1e-6
    torch.testing.assert_close(
        moved[:, :, 368:418], whole[:, :, inside], rtol=1e-4, atol=1e-5 * float(whole.abs().max())
    )


# ------------------------------------------------------------------------------------------- heads


@pytest.mark.parametrize(
    "architecture, change",
    [
        ("vgg16", {"skips": ["pool4", "pool3"]}),
        ("vgg16", {"skips": ["pool4", "pool3"], "scales": {"pool4": 0.01, "pool3": 1e-4}}),
        ("vgg16", {"skips": ["pool4", "pool3"], "padding": "tight"}),
        ("alexnet", {}),
        ("googlenet", {"padding": "tight"}),
        ("vgg16", {"top": "pool4", "skips": ["pool2"]}),
    ],
)
def test_fast_upsampling_is_the_authors_in_whole_nets(architecture, change):
    net = randomise(slim(architecture, **change))
    image = torch.randn(1, 3, 41, 50, generator=torch.Generator().manual_seed(3))
    results = []
    for exact in (False, True):
        net.exact(exact).zero_grad()
        scores = net(image)["semantic"]
        scores.pow(2).mean().backward()
        results.append((scores.detach(), [p.grad.clone() for p in net.parameters()]))
    (fast, fast_gradients), (exact_, exact_gradients) = results
    assert fast.std() > 0
    scale = float(exact_.abs().max())
    torch.testing.assert_close(fast / scale, exact_ / scale, rtol=0, atol=1e-6)
    for one, other in zip(fast_gradients, exact_gradients, strict=True):
        size = float(other.abs().max()) + 1e-12
        torch.testing.assert_close(one / size, other / size, rtol=0, atol=1e-5)


@pytest.mark.parametrize("interpolation", ["fixed", "learned"])
def test_zero_score_layers_give_zero_scores(interpolation):
    net = build(
        configuration("vgg16", skips=["pool4"], score_init="zero", interpolation=interpolation),
        {"semantic": 3},
    )
    assert not net(torch.randn(1, 3, 20, 30))["semantic"].any()
    assert slim("vgg16", skips=["pool4"])(torch.randn(1, 3, 20, 30))["semantic"].any()


def test_a_zero_skip_changes_nothing():
    """Section 3.3: FCN-16s starts from FCN-32s with zero weights on pool4, and so as FCN-32s."""
    image = torch.randn(1, 3, 60, 45, generator=torch.Generator().manual_seed(1))
    coarse = randomise(slim("vgg16", padding="tight"))
    fine = slim("vgg16", padding="tight", skips=["pool4"], score_init="zero")
    missing = fine.load_state_dict(
        {k: v for k, v in coarse.state_dict().items() if "upscore" not in k}, strict=False
    )
    assert {key.split(".")[-2] for key in missing.missing_keys} == {
        "score_pool4",
        "upscore2",
        "upscore16",
    }
    with torch.inference_mode():
        one, other = coarse(image)["semantic"], fine(image)["semantic"]
    # Interpolating twice by 2 and 16 is not once by 32 (section 4.2), but nearly.
    assert (one - other).abs().max() < 0.25 * (one.max() - one.min())
    assert (one - other).abs().mean() < 0.03 * (one.max() - one.min())


def test_layer_names_are_the_authors():
    def names(net):
        return {key.split(".")[-2] for key in net.heads.state_dict()}

    assert names(slim("vgg16")) == {"score_fr", "upscore"}
    assert names(slim("vgg16", skips=["pool4", "pool3"])) == {
        "score_fr",
        "upscore2",
        "score_pool4",
        "upscore_pool4",
        "score_pool3",
        "upscore8",
    }
    assert names(slim("vgg16", top="pool4")) == {"score_pool4", "upscore"}


def test_two_label_sets_share_the_trunk():
    torch.manual_seed(0)
    net = build(configuration("vgg16", skips=["pool4"]), {"semantic": 5, "geometric": 3}).eval()
    scores = net(torch.randn(1, 3, 21, 30))
    assert {task: tuple(s.shape) for task, s in scores.items()} == {
        "semantic": (1, 5, 21, 30),
        "geometric": (1, 3, 21, 30),
    }
    names = {key.split(".")[-2] for key in net.heads.state_dict()}
    assert {"score_fr_sem", "score_fr_geo", "score_pool4_sem", "upscore16_geo"} <= names


def test_late_fusion_has_the_names_of_the_authors():
    """nyud-fcn32s-color-hha: every layer of a stream carries its suffix, upsampling is shared."""
    net = slim("vgg16", inputs=["image", "hha"], fusion="late", skips=["pool4"])
    layers = {key.rsplit(".", 1)[0] for key in named_tensors(net)}
    plain = {key.rsplit(".", 1)[0] for key in named_tensors(slim("vgg16", skips=["pool4"]))}
    shared = {"upscore2", "upscore16"}
    assert layers == shared | {
        name + suffix for name in plain - shared for suffix in ("color", "hha")
    }


@pytest.mark.parametrize(
    "architecture, inputs, first, channels",
    [
        ("vgg16", ["image", "depth"], "conv1_1_bgrd", 4),  # nyud-fcn32s-color-d
        ("vgg16", ["hha"], "conv1_1", 3),  # nyud-fcn32s-hha
        ("vgg16", ["depth"], "conv1_1", 1),
        ("alexnet", ["image", "hha"], "conv1_bgrhha", 6),
        ("googlenet", ["depth", "image", "hha"], "conv1/7x7_s2_dbgrhha", 7),
    ],
)
def test_joined_inputs_rename_and_widen_the_first_layer_only(architecture, inputs, first, channels):
    net = slim(architecture, inputs=inputs)
    plain = slim(architecture)
    ours = {key: tuple(value.shape) for key, value in named_tensors(net).items()}
    theirs = {key: tuple(value.shape) for key, value in named_tensors(plain).items()}
    trunk = net.streams[0]
    assert net.channels == channels and trunk.first == first
    assert ours.pop(f"{first}.weight")[1] == channels
    assert ours.pop(f"{first}.bias")
    for kind in ("weight", "bias"):
        del theirs[f"{plain.streams[0].first}.{kind}"]
    assert ours == theirs
    assert net(torch.zeros(1, channels, 200, 230))["semantic"].shape == (1, 2, 200, 230)


@pytest.mark.parametrize("weights", [None, [1, 1], [0.25, -2.0]])
@pytest.mark.parametrize("change", [{}, {"skips": ["pool4", "pool3"]}, {"padding": "tight"}])
def test_late_fusion_is_the_weighted_sum_of_two_nets(weights, change):
    """Upsampling is linear: the scores of two nets alone, weighted, are those of the fusion."""
    fused = slim("vgg16", inputs=["image", "hha"], fusion="late", fusion_weights=weights, **change)
    randomise(fused)
    x = torch.randn(2, 6, 40, 33, generator=torch.Generator().manual_seed(4))
    expected = torch.zeros(())
    with torch.inference_mode():
        for factor, suffix, part in zip(
            weights or [0.5, 0.5], ("color", "hha"), x.split(3, dim=1), strict=True
        ):
            one = slim("vgg16", **change)
            own = named_tensors(fused)
            found = {}
            for key in named_tensors(one):
                layer, kind = key.rsplit(".", 1)
                found[key] = own[key if "upscore" in key else f"{layer}{suffix}.{kind}"]
            assert load_named(one, found, "the fused net") == []
            expected = expected + factor * one(part)["semantic"]
        scores = fused(x)["semantic"]
    scale = float(expected.abs().max())
    assert expected.std() > 0.01 * scale > 0
    torch.testing.assert_close(scores / scale, expected / scale, rtol=0, atol=3e-6)


def test_a_null_background_is_the_constant_0_before_the_scored_classes():
    """PAMI section 6.1: as if the background's filters were zero; its scores cannot be learned."""
    null = randomise(slim("vgg16", classes=4, skips=["pool4"], null_background=True))
    full = slim("vgg16", classes=4, skips=["pool4"])
    found = {}
    for key, value in named_tensors(null).items():
        fixed = key.startswith("upscore")
        found[key] = value if not key.startswith("score") else torch.cat([0 * value[:1], value])
        if fixed:
            found[key] = named_tensors(full)[key]
    load_named(full, found, "null")
    image = torch.randn(2, 3, 30, 41, generator=torch.Generator().manual_seed(4))
    scores = null(image)["semantic"]
    assert scores.shape == (2, 4, 30, 41)
    assert not scores[:, 0].any() and scores[:, 1:].std() > 0
    torch.testing.assert_close(scores, full(image)["semantic"])
    assert [p.shape[0] for n, p in null.named_parameters() if ".score_" in n] == [3] * 4


def test_max_fusion_takes_the_larger_score_and_sends_it_the_gradient():
    """CVPR footnote 6. Where the skip wins, the layers above get no gradient, and the reverse."""
    net = randomise(slim("vgg16", skips=["pool4"], skip_fusion="max"))
    image = torch.randn(1, 3, 60, 60, generator=torch.Generator().manual_seed(4))
    layers = dict(net.head("semantic").named_children())
    with torch.inference_mode():
        features = net.trunk(image, net.wanted)
        up = layers["upscore2"](layers["score_fr"](features["drop7"]), (0, 0), (8, 8))
        skip = layers["score_pool4"](features["pool4"])[:, :, 5:13, 5:13]
        assert 0 < float((up > skip).float().mean()) < 1
        expected = layers["upscore16"](torch.maximum(up, skip), (27, 27), (60, 60))
        torch.testing.assert_close(net(image)["semantic"], expected)
    for bias, loser in ((1e6, "score_fr"), (-1e6, "score_pool4")):
        layers["score_pool4"].bias.data.fill_(bias)
        net.zero_grad()
        net(image)["semantic"].sum().backward()
        winner = "score_pool4" if loser == "score_fr" else "score_fr"
        assert layers[winner].weight.grad.abs().max() > 0
        assert layers[loser].weight.grad is None or not layers[loser].weight.grad.any()


@pytest.mark.parametrize("interpolation", ["fixed", "learned"])
def test_every_upsampling_of_fcn2s_is_a_layer_of_its_own(interpolation):
    """It begins and ends with a factor of 2; the last one is fixed always."""
    skips = ["pool4", "pool3", "pool2", "pool1"]
    net = slim("vgg16", skips=skips, interpolation=interpolation)
    ups = {n: m for n, m in net.head("semantic").named_children() if isinstance(m, Upsample)}
    assert {name: layer.stride for name, layer in ups.items()} == {
        "upscore2": 2, "upscore_pool4": 2, "upscore_pool3": 2, "upscore_pool2": 2,
        "upscore_pool1": 2,
    }  # fmt: skip
    learned = [name for name, layer in ups.items() if layer.learned]
    assert len(learned) == (4 if interpolation == "learned" else 0)
    assert "upscore_pool1" not in learned


def test_dilated_fc6_after_pool5_of_stride_1_has_every_cell_of_the_net():
    """The same weights: every other cell, after that of its padding, is FCN-32s's."""
    dense = randomise(slim("vgg16", pool5_stride=1, fc6_dilation=2))
    coarse = slim("vgg16")
    coarse.trunk.load_state_dict(dense.trunk.state_dict())
    image = torch.randn(1, 3, 300, 300, generator=torch.Generator().manual_seed(4)) * 50
    with torch.inference_mode():
        many = dense.trunk(image, dense.wanted)["drop7"]
        few = coarse.trunk(image, coarse.wanted)["drop7"]
    assert few.std() > 0 and many.shape[2] >= 2 * few.shape[2] - 1
    torch.testing.assert_close(many[:, :, 1::2, 1::2][:, :, :9, :9], few[:, :, :9, :9])


def test_truncated_nets_lack_what_they_do_not_use():
    names = [name for name, _ in slim("vgg16", top="pool3").trunk.layers.named_children()]
    assert names[-1] == "pool3" and "conv4_1" not in names


@pytest.mark.parametrize(
    "change, message",
    [
        ({"skips": ["pool9"]}, "no feature 'pool9'; it has: pool1"),
        ({"top": "fc9"}, "no feature 'fc9'"),
        ({"skips": ["pool3", "pool4"]}, "coarse to fine"),
        ({"skips": ["pool5"]}, "coarse to fine"),
        ({"padding": "none"}, "'none' is not known; .*reference, tight"),
        ({"inputs": ["image", "infrared"]}, "inputs are of image, depth, hha, not .'infrared'"),
        (
            {"inputs": ["image", "hha"], "fusion": "late", "fusion_weights": [1, 1, 1]},
            "one for each input of a late fusion; this net has 2",
        ),
        ({"pool5_stride": 1, "skips": ["pool4"]}, "skip pool4 has stride 16, the map above it 16"),
    ],
)
def test_impossible_nets_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        slim(**{"architecture": "vgg16", **change})


CHANGED: dict[str, Any] = {
    "scales": {"pool3": 0.5},
    "interpolation": "learned",
    "skip_fusion": "max",
    "fusion": "late",
    "fusion_weights": [0.25, 2],
    "hidden": 8,
    "fc6_kernel": 2,
    "fc6_dilation": 2,
    "pool5_stride": 1,
    "dropout": 0.25,
    "average_pool": True,
}
PLACES: list[dict[str, Any]] = [
    {"architecture": "vgg16"},
    {"architecture": "alexnet", "top": "drop7"},
    {"architecture": "googlenet"},
    {"architecture": "googlenet", "top": "pool5/drop_7x7_s1"},
    {"architecture": "googlenet", "top": "inception_5b"},
    {"architecture": "vgg16", "top": "pool5"},
    {"architecture": "vgg16", "top": "pool4", "skips": ["pool3"]},
    {"architecture": "vgg16", "inputs": ["image", "depth"]},
    {"architecture": "vgg16", "inputs": ["image", "depth"], "fusion": "late"},
    {"architecture": "vgg16", "inputs": ["depth"], "top": "pool4"},
]


def in_training(**change):
    """What a net computes in training, and what it learns."""
    net = randomise(slim(**change)).train()
    torch.manual_seed(1)
    scores = net(torch.rand(1, net.channels, 48, 56))["semantic"]
    learned = [(name, p.shape) for name, p in net.named_parameters() if p.requires_grad]
    return scores.detach().numpy().tobytes(), learned


@pytest.mark.parametrize("place", PLACES, ids=str)
@pytest.mark.parametrize("option", CHANGED)
def test_an_option_has_an_effect_where_its_need_is_met(option, place):
    net = {**NET_DEFAULTS, **NET_OPTIONS, **place}
    changed = {**place, option: CHANGED[option]}
    met = NET_NEEDS[option][1]({**net, **changed})
    if option == "fusion" and place.get("fusion") == "late":
        return
    assert (in_training(**changed) != in_training(**place)) == met


def test_every_need_is_tried():
    assert set(CHANGED) == set(NET_NEEDS)


def test_a_null_background_needs_another_class():
    with pytest.raises(UserError, match="needs a class besides the background"):
        slim("vgg16", classes=1, null_background=True)


def test_unknown_architecture_is_refused():
    with pytest.raises(UserError, match="'resnet' is not known; architectures: alexnet"):
        slim("resnet")


def test_dropout_is_where_the_classifier_has_it():
    for architecture, count in {"vgg16": 2, "alexnet": 2, "googlenet": 1}.items():
        modules = slim(architecture, dropout=0.25).modules()
        rates = [module.p for module in modules if isinstance(module, nn.Dropout)]
        assert rates == [0.25] * count


def test_every_fixed_upsampling_of_the_paper_is_fast(named_nets):
    """None falls back to the transposed convolution by chance."""
    for name, (config, _) in named_nets.items():
        net = build({**config, "width": 0.02, "hidden": 4}, {"semantic": 2})
        layers = [m for m in net.modules() if isinstance(m, Upsample)]
        for layer in layers:
            layer.settle()
        assert layers and not any(layer.exact for layer in layers), name


@pytest.mark.parametrize("architecture", FEATURES)
def test_the_features_that_a_suite_may_name_are_those_of_the_trunk(architecture):
    net = build({**NET_DEFAULTS, **NET_OPTIONS, "architecture": architecture}, {"semantic": 2})
    found = {name: int(net.geometries[name].stride) for name in net.streams[0].taps}
    assert found == FEATURES[architecture]


def test_random_score_layers_start_as_caffes_gaussian_filler():
    net = build(configuration("vgg16", fc6_kernel=1, hidden=4096), {"semantic": 21})
    score = dict(net.named_modules())["heads.semantic.score_fr"]
    assert float(score.weight.detach().std()) == pytest.approx(0.01, rel=0.02)
    assert not score.bias.any()


def test_loaded_upsampling_that_is_not_bilinear_is_applied():
    source, net = slim("vgg16"), slim("vgg16", seed=1)
    tensors = {**named_tensors(source)}
    tensors["upscore.weight"] = tensors["upscore.weight"] * 0.5
    load_named(net, tensors, "x")
    assert [m.exact for m in net.modules() if isinstance(m, Upsample)] == [True]


def test_a_kept_average_pool_counts_no_padding():
    net = slim("googlenet", average_pool=True)
    pool = dict(net.streams[0].features())["pool5/7x7_s1"]
    assert torch.equal(pool(torch.ones(1, 4, 3, 5)), torch.ones(1, 4, 3, 5))
