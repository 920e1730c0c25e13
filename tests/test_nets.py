"""Whole nets: sizes, starts, and the identities of the paper's section 3."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fcn.errors import UserError
from fcn.nets import build
from fcn.nets.geometry import Geometry, through
from fcn.nets.trunks import TRUNKS
from fcn.nets.upsample import Upsample, bilinear_taps
from fcn.spec import NET_DEFAULTS

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
CASES = [
    (architecture, padding, skips)
    for architecture, several in SKIPS.items()
    for padding in ("reference", "tight")
    for skips in several
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
        return net(torch.zeros(1, 3, height, width, device="meta"))["semantic"]


@pytest.mark.parametrize("architecture, padding, skips", CASES)
def test_scores_have_the_size_of_the_image(architecture, padding, skips):
    """On the meta device: at every size to beyond the stride, and some more."""
    with torch.device("meta"):
        net = build(
            configuration(architecture, padding=padding, skips=skips), {"semantic": 3}
        ).eval()
    least = net.least
    net.least = 1
    sizes = [*range(1, 42), 63, 64, 65, 66, 70, 97, 499]
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
    if padding == "reference" or architecture.startswith("vgg"):
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
    ],
)
def test_impossible_nets_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        slim("vgg16", **change)


def test_unknown_architecture_is_refused():
    with pytest.raises(UserError, match="'resnet' is not known; architectures: alexnet"):
        slim("resnet")


def test_dropout_is_where_the_classifier_has_it():
    for architecture, count in {"vgg16": 2, "alexnet": 2, "googlenet": 1}.items():
        modules = slim(architecture, dropout=0.25).modules()
        rates = [module.p for module in modules if isinstance(module, nn.Dropout)]
        assert rates == [0.25] * count


# ------------------------------------------------------------ identities of the paper's section 3


def unpadded(net):
    """The trunk's layers with padding taken away, so that a cell sees nothing but pixels."""
    for module in net.trunk.layers.modules():
        if isinstance(module, nn.Conv2d | nn.MaxPool2d):
            module.padding = (0, 0) if isinstance(module, nn.Conv2d) else 0
    return net.trunk.layers.double().eval()


@pytest.mark.parametrize(
    "architecture, change", [("vgg16", {"fc6_kernel": 2}), ("alexnet", {"fc6_kernel": 6})]
)
def test_a_cell_is_the_classifier_on_its_receptive_field(architecture, change):
    """Section 3.1, "convolutionalised": exact where no padding is in the way."""
    layers = unpadded(randomise(slim(architecture, **change)))
    geometry = through(Geometry(), layers)
    field, stride = geometry.receptive_field, int(geometry.stride)
    assert geometry.start == (field - 1) / 2
    size = (field + 2 * stride, field + 3 * stride)
    image = 50 * torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(5)).double()
    with torch.inference_mode():
        maps = layers(image)
        assert maps.shape[2:] == (3, 4)
        assert maps.std() > 0
        for i in range(3):
            for j in range(4):
                top, left = i * stride, j * stride
                crop = image[:, :, top : top + field, left : left + field]
                cell = layers(crop)
                assert cell.shape[2:] == (1, 1)
                torch.testing.assert_close(cell[..., 0, 0], maps[..., i, j], rtol=1e-10, atol=0)


def test_gradient_of_a_spatial_sum_is_the_sum_over_patches():
    """Section 3: training on whole images is training on all their patches at once."""
    layers = unpadded(randomise(slim("vgg16", fc6_kernel=1, top="pool4")))
    geometry = through(Geometry(), layers)
    field, stride = geometry.receptive_field, int(geometry.stride)
    image = 50 * torch.randn(1, 3, field + stride, field + 2 * stride).double()
    truth = torch.randint(0, 4, (1, 2, 3))

    def gradients(maps, labels):
        loss = F.cross_entropy(maps, labels, reduction="sum")
        return torch.autograd.grad(loss, list(layers.parameters()))

    whole = gradients(layers(image), truth)
    summed = [torch.zeros_like(g) for g in whole]
    for i in range(2):
        for j in range(3):
            top, left = i * stride, j * stride
            crop = image[:, :, top : top + field, left : left + field]
            for total, part in zip(
                summed, gradients(layers(crop), truth[:, i : i + 1, j : j + 1]), strict=True
            ):
                total += part
    assert max(float(g.abs().max()) for g in whole) > 1e-3
    for one, other in zip(whole, summed, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9 * float(other.abs().max()))


def deconvolution(maps, kernel, stride):
    taps = bilinear_taps(kernel)
    weight = torch.outer(taps, taps).to(maps).expand(maps.shape[1], 1, -1, -1)
    return F.conv_transpose2d(maps, weight, stride=stride, groups=maps.shape[1])


def test_fusing_is_concatenating_and_one_convolution():
    """Section 4.2: summed scores of two layers are a 1x1 convolution over both their features."""
    net = randomise(slim("vgg16", classes=3, skips=["pool4"]))
    head = net.head("semantic")
    layers = dict(head.named_children())
    layers["score_fr"].bias.data.zero_()  # a constant does not survive the border of the upsampling
    image = torch.randn(1, 3, 70, 45, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        features = net.trunk(image, net.wanted)
        up = deconvolution(features["drop7"], 4, 2)
        height, width = up.shape[2:]
        both = torch.cat([up, features["pool4"][:, :, 5 : 5 + height, 5 : 5 + width]], 1)
        weight = torch.cat([layers["score_fr"].weight, layers["score_pool4"].weight], 1)
        fused = F.conv2d(both, weight, layers["score_pool4"].bias)
        expected = deconvolution(fused, 32, 16)[:, :, 27 : 27 + 70, 27 : 27 + 45]
        found = net(image)["semantic"]
    assert found.std() > 0
    scale = float(expected.abs().max())
    torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=2e-6)


def test_every_fixed_upsampling_of_the_paper_is_fast(named_nets):
    """None falls back to the transposed convolution by chance."""
    for name, (config, _) in named_nets.items():
        net = build({**config, "width": 0.02, "hidden": 4}, {"semantic": 2})
        layers = [m for m in net.modules() if isinstance(m, Upsample)]
        for layer in layers:
            layer.settle()
        assert layers and not any(layer.exact for layer in layers), name
