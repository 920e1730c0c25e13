"""Exact identities of the papers' section 3, on slim nets in double precision.

Letters are those of the list of claims: (a) to (g), and the shifts of section 3.4.
"""

from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from fcn.errors import UserError
from fcn.nets.dense import (
    SpacedMaxPool,
    dense_scores,
    rarefaction,
    rarefied,
    shift_and_stitch,
)
from fcn.nets.geometry import Geometry, through
from fcn.nets.trunks import Layers, Trunk
from fcn.nets.upsample import Upsample, bilinear_taps
from tests.test_nets import randomise, slim


def noise(*shape, seed=5, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def unpadded(net):
    """Padding taken away, so that a cell sees nothing but pixels, and poolings that round down."""
    for module in net.trunk.modules():
        if isinstance(module, nn.Conv2d):
            module.padding = (0, 0)
        elif isinstance(module, nn.MaxPool2d):
            module.padding, module.ceil_mode = 0, False
    geometry = Geometry()
    for name, layer in net.streams[0].features():
        geometry = net.geometries[name] = through(geometry, layer)
    for head in net.heads.values():
        head.cells = net.geometries[head.top]
    return net.double().eval()


@st.composite
def stacks(draw, channels=2):
    """A trunk of convolutions and poolings, without padding; weights that keep activations."""
    layers = Layers(channels)
    for i in range(draw(st.integers(1, 4))):
        kernel, stride = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 2, 4]))
        if draw(st.booleans()):
            layers.add(f"conv{i}", nn.Conv2d(layers.channels, 3, kernel, stride))
            layers.channels = 3
            layers.add(f"relu{i}", nn.ReLU())
        else:
            layers.add(f"pool{i}", nn.MaxPool2d(kernel, stride))
    name = next(reversed([name for name, _ in layers.sequential.named_children()]))
    trunk = Trunk(layers, {name: layers.channels}).double().eval()
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    for parameter in trunk.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return trunk


def field_and_stride(trunk):
    geometry = through(Geometry(), trunk.layers)
    return geometry.receptive_field, int(geometry.stride)


# ------------------------------------------------- (a), (b): a map is the classifier on its patches


@pytest.mark.parametrize(
    "architecture, change",
    [
        ("vgg16", {"fc6_kernel": 2}),
        ("alexnet", {"fc6_kernel": 6}),
        ("vgg16", {"fc6_kernel": 2, "fc6_dilation": 2, "pool5_stride": 1}),
    ],
)
def test_a_cell_is_the_classifier_on_its_receptive_field(architecture, change):
    """(a) Section 3.1, "convolutionalised": exact where no padding is in the way."""
    net = unpadded(randomise(slim(architecture, **change)))
    layers = net.trunk.layers
    field, stride = field_and_stride(net.trunk)
    assert through(Geometry(), layers).start == (field - 1) / 2
    image = noise(1, 3, field + 2 * stride, field + 3 * stride, scale=50)
    with torch.inference_mode():
        maps = layers(image)
        assert maps.shape[2:] == (3, 4)
        assert maps.std() > 0
        for i in range(3):
            for j in range(4):
                top, left = i * stride, j * stride
                cell = layers(image[:, :, top : top + field, left : left + field])
                assert cell.shape[2:] == (1, 1)
                torch.testing.assert_close(cell[..., 0, 0], maps[..., i, j], rtol=1e-10, atol=0)


def inside(geometry, cells, first, last):
    """Which of ``cells`` cells have their receptive field within pixels ``first`` to ``last``."""
    half = Fraction(geometry.receptive_field - 1, 2)
    centres = [geometry.start + geometry.stride * i for i in range(cells)]
    return torch.tensor([first <= c - half and c + half <= last for c in centres])


def test_padding_breaks_it_at_the_border_of_the_crop_only():
    """(a) With the nets' own padding: cells that see no padded zero agree, most others do not."""
    net = randomise(slim("vgg16", top="pool3", padding="tight")).double().eval()
    image = noise(1, 3, 160, 160, scale=50)
    with torch.inference_mode():
        whole = net.trunk.layers(image)[..., 4:16, 4:16]
        crop = net.trunk.layers(image[..., 32:128, 32:128])
    agree = ((whole - crop).abs() <= 1e-10 * crop.std()).all(1)[0]
    clear = inside(net.geometries["pool3"], 12, 0, 95)
    assert 0 < clear.sum() < 12
    both = clear[:, None] & clear[None, :]
    assert agree[both].all()
    assert agree[~both].float().mean() < 0.5


def test_gradient_of_a_spatial_sum_is_the_sum_over_patches():
    """(b) Section 3: training on whole images is training on all their patches at once."""
    net = unpadded(randomise(slim("vgg16", top="pool4")))
    layers = net.trunk.layers
    field, stride = field_and_stride(net.trunk)
    image = noise(1, 3, field + stride, field + 2 * stride, scale=50)
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


@settings(max_examples=25, deadline=None)
@given(stacks(), st.integers(0, 99))
def test_gradient_of_a_sum_is_the_sum_of_gradients_in_any_net(trunk, seed):
    """(b) with respect to the image: what each patch contributes, added where patches overlap."""
    field, stride = field_and_stride(trunk)
    assume(field <= 40 and stride <= 8)
    image = noise(1, 2, field + stride, field + 2 * stride, seed=seed).requires_grad_()
    (whole,) = torch.autograd.grad(trunk.layers(image).square().sum(), image)
    summed = torch.zeros_like(whole)
    for i in range(2):
        for j in range(3):
            box = (
                ...,
                slice(i * stride, i * stride + field),
                slice(j * stride, j * stride + field),
            )
            crop = image[box].detach().requires_grad_()
            summed[box] += torch.autograd.grad(trunk.layers(crop).square().sum(), crop)[0]
    torch.testing.assert_close(whole, summed, rtol=1e-10, atol=1e-10)


# ------------------------------------------------ (c): rarefaction is shift-and-stitch; all patches


@settings(max_examples=40, deadline=None)
@given(stacks(), st.sampled_from([1, 2, 4]), st.integers(0, 9), st.integers(0, 99))
def test_rarefied_filters_see_what_the_net_sees_shifted(trunk, target, extra, seed):
    """(c) and the footnote on patches: cell (m, n) of the rarefied net is the first cell of the net
    on the image without its first m and n strides; so are those of the shifts, interlaced."""
    field, stride = field_and_stride(trunk)
    target = min(target, stride)
    assume(field <= 40 and stride <= 16)
    size = field + stride + extra
    image = noise(1, 2, size, size + 1, seed=seed)
    with torch.inference_mode():
        dense = rarefied(trunk, target).trunks[0].layers(image)
        rows, columns = ((n - field) // target + 1 for n in image.shape[2:])
        assert dense.shape[2:] == (rows, columns)
        for i in range(0, stride, target):
            for j in range(0, stride, target):
                shifted = trunk.layers(image[:, :, i:, j:])
                stitched = dense[
                    :, :, i // target :: stride // target, j // target :: stride // target
                ]
                torch.testing.assert_close(stitched, shifted, rtol=1e-10, atol=1e-10)


def test_shifts_by_less_than_the_stride_recover_every_patch():
    """Section 3.4: each patch of the size of the receptive field is a cell of some shift."""
    net = unpadded(randomise(slim("alexnet", top="pool1")))
    field, stride = field_and_stride(net.trunk)
    image = noise(1, 3, field + stride, field + stride - 1, scale=50)
    seen = {}
    with torch.inference_mode():
        for dy in range(stride):
            for dx in range(stride):
                maps = net.trunk.layers(image[:, :, dy:, dx:])
                for i in range(maps.shape[2]):
                    for j in range(maps.shape[3]):
                        seen[dy + stride * i, dx + stride * j] = maps[..., i, j]
        assert set(seen) == {(i, j) for i in range(stride + 1) for j in range(stride)}
        for (i, j), cell in seen.items():
            patch = net.trunk.layers(image[:, :, i : i + field, j : j + field])
            torch.testing.assert_close(cell, patch[..., 0, 0], rtol=1e-10, atol=0)


LATE = {"inputs": ["image", "hha"], "fusion": "late", "fusion_weights": [0.25, 2]}


@pytest.mark.parametrize(
    "architecture, change, stride",
    [
        ("alexnet", {"fc6_kernel": 2}, 16),
        ("alexnet", {"top": "pool2"}, 2),
        ("vgg16", {"fc6_kernel": 1}, 8),
        ("vgg16", {"top": "pool3"}, 1),
        ("vgg16", {"fc6_kernel": 2, "pool5_stride": 1, "fc6_dilation": 2}, 4),
        ("vgg16", {"top": "pool4", **LATE}, 4),
    ],
)
def test_both_ways_to_dense_scores_agree(architecture, change, stride):
    """(c) In every cell of nets without inner padding whose poolings fit."""
    net = unpadded(randomise(slim(architecture, classes=3, **change)))
    field, _ = field_and_stride(net.streams[0])
    image = noise(1, net.channels, field + 11, field + 38, scale=50)
    with torch.inference_mode():
        spaced = rarefaction(net, image, stride)["semantic"]
        stitched = shift_and_stitch(net, image, stride)["semantic"]
    assert stitched.std() > 0
    torch.testing.assert_close(spaced, stitched, rtol=1e-9, atol=1e-9 * float(stitched.std()))


@pytest.mark.parametrize(
    "architecture, change, stride",
    [
        ("vgg16", {"fc6_kernel": 1}, 16),
        ("vgg16", {"top": "pool4", "null_background": True}, 4),
        ("alexnet", {"fc6_kernel": 1}, 16),
        ("googlenet", {"top": "inception_4a"}, 8),
    ],
)
def test_with_inner_padding_they_agree_where_it_is_not_seen(architecture, change, stride):
    """(c) In the reference nets: where the receptive field lies in the image and the 100 pixels
    around it that the first layer pads with; in many cells outside they do not."""
    net = randomise(slim(architecture, classes=3, **change)).double().eval()
    head = net.head("semantic")
    size = (150, 97)
    image = noise(1, 3, *size, scale=50)
    with torch.inference_mode():
        spaced = rarefaction(net, image, stride)["semantic"]
        stitched = shift_and_stitch(net, image, stride)["semantic"]
    agree = ((spaced - stitched).abs() <= 1e-9 * stitched.std()).all(1)[0]
    grid = Geometry(
        head.cells.receptive_field,
        Fraction(stride),
        head.cells.start - (int(head.cells.stride) - stride),
    )
    rows, columns = (
        inside(grid, cells, -100, n + 99) for cells, n in zip(agree.shape, size, strict=True)
    )
    clear = rows[:, None] & columns[None, :]
    assert 0 < clear.sum() < clear.numel()
    assert agree[clear].all()
    assert not agree[~clear].all()


@pytest.mark.parametrize("method", ["rarefaction", "shift-and-stitch"])
@pytest.mark.parametrize(
    "architecture, change, stride",
    [
        ("alexnet", {"top": "pool2"}, 8),
        ("alexnet", {"top": "pool2", "padding": "tight"}, 4),
        ("vgg16", {"top": "pool3", "padding": "tight", **LATE}, 4),
        ("vgg16", {"top": "pool3", "null_background": True}, 1),
    ],
)
def test_dense_scores_lie_where_the_cells_are(method, architecture, change, stride):
    """A pixel's score is the bilinear value of the cells around it, of which each is the cell of
    the net itself that a shift of the image puts there."""
    net = randomise(slim(architecture, classes=3, **change)).eval()
    image = noise(1, net.channels, 61, 70, scale=50).float()
    head = net.head("semantic")
    with torch.inference_mode():
        found = dense_scores(net, image, method, stride)["semantic"]
        assert found.shape == (1, 3, 61, 70)
        assert bool(found[:, 0].any()) != bool(change.get("null_background"))
        # The oracle: each cell from the middle of a canvas that is shifted to put it there.
        middle = (30, 35)
        canvas = F.pad(image, (300, 300, 300, 300))

        def cell(y, x):
            """The score of the cell whose centre is at pixel (y, x)."""
            index = 200 // int(head.cells.stride)
            centre = head.cells.start + index * head.cells.stride
            top, left = int(300 + y - centre), int(300 + x - centre)
            part = canvas[:, :, top : top + 400, left : left + 400]
            scores = head.score_top(net.trunk(part, net.wanted))
            return head.with_background(scores)[..., index, index]

        def around(at):
            """Centres of the two cells on either side of a pixel and their bilinear factors."""
            lead = head.cells.start % stride
            below = lead + (at - lead) // stride * stride
            return [(below, 1 - (at - below) / stride), (below + stride, (at - below) / stride)]

        expected = torch.zeros(1, 3)
        for y, fy in around(middle[0]):
            for x, fx in around(middle[1]):
                if fy * fx:
                    expected = expected + float(fy * fx) * cell(y, x)
    torch.testing.assert_close(
        found[..., middle[0], middle[1]], expected, rtol=1e-4, atol=1e-5 * float(expected.std())
    )


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(["rarefaction", "shift-and-stitch"]),
    st.sampled_from(["reference", "tight"]),
    st.sampled_from([("pool3", 4), ("pool3", 1), ("pool2", 2)]),
    st.integers(1, 40),
    st.integers(1, 40),
)
def test_dense_scores_cover_images_of_every_size(method, padding, top, height, width):
    net = slim("vgg16", top=top[0], padding=padding)
    with torch.inference_mode():
        scores = dense_scores(net, torch.ones(2, 3, height, width), method, top[1])
    assert scores["semantic"].shape == (2, 2, height, width)
    assert scores["semantic"].isfinite().all()


@pytest.mark.parametrize("architecture", ["vgg16", "alexnet", "googlenet"])
@pytest.mark.parametrize("padding", ["reference", "tight"])
@pytest.mark.parametrize("stride", [4, 16])
def test_equal_cells_make_equal_pixels(architecture, padding, stride):
    """There are cells on every side of a pixel, also at the upper and left border."""
    net = slim(architecture, padding=padding).eval()
    layer = net.head("semantic").score_fr
    with torch.inference_mode():
        layer.weight.zero_()
        layer.bias.fill_(1)
        found = dense_scores(net, torch.zeros(1, 3, 37, 50), "shift-and-stitch", stride)
    inner = found["semantic"][..., :-stride, :-stride]
    torch.testing.assert_close(inner, torch.ones_like(inner))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 2))
def test_spaced_pooling_pads_with_nothing(kernel, stride, padding):
    assume(2 * padding <= kernel)
    options = (kernel, stride, padding)
    x = noise(1, 2, 9, 11) - 10
    torch.testing.assert_close(SpacedMaxPool(*options)(x), nn.MaxPool2d(*options)(x))


def test_rarefied_shares_the_weights_and_leaves_the_net_alone():
    net = randomise(slim("googlenet", top="inception_3b"))
    image = torch.randn(1, 3, 60, 70, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        before = net(image)["semantic"]
        trunk = rarefied(net.trunk, 1)
        theirs = {id(parameter) for parameter in net.trunk.parameters()}
        assert {id(parameter) for parameter in trunk.parameters()} == theirs
        assert through(Geometry(), trunk.trunks[0].layers).stride == 1
        assert torch.equal(net(image)["semantic"], before)


@pytest.mark.parametrize(
    "change, method, stride, message",
    [
        ({"skips": ["pool4"]}, "rarefaction", 8, "without skips"),
        ({}, "rarefaction", 32, "stride is 32; 32 is no smaller divisor"),
        ({}, "shift-and-stitch", 12, "stride is 32; 12 is no smaller divisor"),
        ({}, "rarefaction", 0, "no smaller divisor"),
        ({}, "dilation", 8, "'dilation' is not one of rarefaction, shift-and-stitch"),
        (
            {"architecture": "googlenet", "average_pool": True},
            "rarefaction",
            8,
            "average pool cannot be rarefied; take shift-and-stitch",
        ),
    ],
)
def test_dense_scores_that_cannot_be_had(change, method, stride, message):
    net = slim(**{"architecture": "vgg16", **change})
    with pytest.raises(UserError, match=message):
        dense_scores(net, torch.zeros(1, 3, 30, 30), method, stride)


# ----------------------------------------------- (d): interpolation is a convolution, backwards


@settings(max_examples=40, deadline=None)
@given(
    st.integers(2, 9), st.integers(0, 1), st.integers(2, 6), st.integers(2, 6), st.integers(0, 9)
)
def test_bilinear_interpolation_is_a_fractionally_strided_convolution(factor, odd, h, w, seed):
    """(d) Section 3.3: each pixel by its distance to the four cells around it; away from the edge,
    where the transposed convolution has zeros beyond the last cell."""
    kernel = 2 * factor - odd
    maps = noise(1, 2, h, w, seed=seed)
    taps = bilinear_taps(kernel)
    weight = torch.outer(taps, taps).expand(2, 1, -1, -1)
    up = F.conv_transpose2d(maps, weight, stride=factor, groups=2)
    fast = Upsample(2, kernel, factor, learned=False)(maps, (0, 0), tuple(up.shape[2:]))
    torch.testing.assert_close(fast.double(), up, rtol=0, atol=1e-5)
    geometry = Geometry(stride=Fraction(factor)).upsampled(kernel, factor)
    places = [
        [(i, geometry.start + i) for i in range(n) if 0 <= geometry.start + i <= factor * (m - 1)]
        for n, m in zip(up.shape[2:], (h, w), strict=True)
    ]
    for i, y in places[0]:
        for j, x in places[1]:
            top, left = min(int(y // factor), h - 2), min(int(x // factor), w - 2)
            fy, fx = float(y / factor - top), float(x / factor - left)
            corners = maps[..., top : top + 2, left : left + 2]
            value = torch.einsum(
                "ncij,i,j->nc",
                corners,
                torch.tensor([1 - fy, fy], dtype=torch.float64),
                torch.tensor([1 - fx, fx], dtype=torch.float64),
            )
            torch.testing.assert_close(up[..., i, j], value, rtol=1e-9, atol=1e-12)


# -------------------------------------------------------------- (e): fusing is one convolution


def deconvolution(maps, kernel, stride):
    taps = bilinear_taps(kernel)
    weight = torch.outer(taps, taps).to(maps).expand(maps.shape[1], 1, -1, -1)
    return F.conv_transpose2d(maps, weight, stride=stride, groups=maps.shape[1])


def test_fusing_is_concatenating_and_one_convolution():
    """(e) Section 4.2: summed scores of two layers are a 1x1 convolution over both features."""
    net = randomise(slim("vgg16", classes=3, skips=["pool4"]))
    head = net.head("semantic")
    layers = dict(head.named_children())
    layers["score_fr"].bias.data.zero_()  # a constant does not survive the border of the upsampling
    image = noise(1, 3, 70, 45).float()
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


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=2, max_size=4), st.integers(1, 4), st.integers(0, 99))
def test_a_sum_of_scores_is_a_convolution_of_the_concatenation(channels, classes, seed):
    """(e) For any number of layers."""
    maps = [noise(2, n, 3, 4, seed=seed + i) for i, n in enumerate(channels)]
    scores = [nn.Conv2d(n, classes, 1).double() for n in channels]
    weight = torch.cat([score.weight for score in scores], 1)
    bias = torch.stack([b for score in scores if (b := score.bias) is not None]).sum(0)
    with torch.no_grad():
        summed = torch.stack([score(x) for score, x in zip(scores, maps, strict=True)]).sum(0)
        torch.testing.assert_close(F.conv2d(torch.cat(maps, 1), weight, bias), summed)


# ------------------------------------------------------ (f), (g): composition, and what it places


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 5), st.integers(1, 4)),
    st.tuples(st.integers(1, 5), st.integers(1, 4)),
    st.integers(0, 99),
)
def test_two_linear_layers_are_one_of_the_composed_kernel_and_stride(lower, upper, seed):
    """(f) Section 3: f_ks after g_k's' is (f o g) with k' + (k - 1) s' and s s': the composed
    layer is made from what the two do to an impulse, and is applied as one."""
    (below, step), (kernel, stride) = lower, upper
    composed = below + (kernel - 1) * step
    geometry = Geometry().window(below, step, 0).window(kernel, stride, 0)
    assert (geometry.receptive_field, geometry.stride) == (composed, step * stride)
    first, second = noise(1, 1, below, below, seed=seed), noise(1, 1, kernel, kernel, seed=seed + 1)
    one = F.conv_transpose2d(second, first, stride=step)
    assert one.shape[2:] == (composed, composed)
    image = noise(1, 1, composed + 2 * step * stride, composed + step * stride, seed=seed + 2)
    two = F.conv2d(F.conv2d(image, first, stride=step), second, stride=stride)
    torch.testing.assert_close(F.conv2d(image, one, stride=step * stride), two)


@pytest.mark.parametrize("padding", ["reference", "tight"])
@pytest.mark.parametrize(
    "architecture, change",
    [
        ("vgg16", {}),
        ("vgg16", {"skips": ["pool4"]}),
        ("vgg16", {"skips": ["pool4", "pool3"]}),
        ("vgg16", {"skips": ["pool4", "pool3", "pool2", "pool1"]}),
        ("vgg16", {"pool5_stride": 1, "fc6_kernel": 14}),
        ("vgg16", {"pool5_stride": 1, "fc6_dilation": 2, "skips": ["pool3"]}),
        ("vgg16", {"top": "pool4"}),
        ("vgg19", {}),
        ("alexnet", {}),
        ("googlenet", {"average_pool": True}),
    ],
)
def test_crops_put_each_score_over_its_cell(architecture, change, padding):
    """(g) The scores of one cell of one feature, all others zero, are painted around the centre of
    what this cell sees: its centre of mass is where the composition of layers says."""
    net = slim(architecture, padding=padding, **change)
    head = net.head("semantic")
    layers = dict(head.named_children())
    size = (400, 431)
    with torch.inference_mode():
        shapes = {
            name: feature.shape
            for name, feature in net.trunk(torch.zeros(1, 3, *size), net.wanted).items()
        }
        for painted, score in zip(
            [head.top, *(skip for skip, *_ in head.steps)], head.scores, strict=True
        ):
            features = {name: torch.zeros(shape) for name, shape in shapes.items()}
            for name in head.scores:
                layers[name].weight.zero_()
                layers[name].bias.zero_()
            layers[score].weight[0] = 1 / shapes[painted][1]
            cell = [n // 2 for n in shapes[painted][2:]]
            features[painted][0, :, cell[0], cell[1]] = 1
            scores = head(features, size)[0, 0].double()
            assert scores.sum() > 0
            geometry = net.geometries[painted]
            for axis in (0, 1):
                weights = scores.sum(1 - axis)
                mass = float((weights * torch.arange(size[axis])).sum() / weights.sum())
                assert mass == pytest.approx(
                    float(geometry.start + geometry.stride * cell[axis]), abs=1e-3
                )
