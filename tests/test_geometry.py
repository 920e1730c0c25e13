"""Where cells lie: the algebra against impulses, the authors' offsets, the paper's Table 1."""

import csv
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from fcn.architecture import architecture, describe, gflop
from fcn.data.sprites import semantic_classes
from fcn.nets import build
from fcn.nets.geometry import Geometry, bilinear_kernel_size, cells_after, through
from fcn.nets.trunks import build_trunk
from fcn.options import NET_DEFAULTS
from fcn.schema import CONFIG
from fcn.suites import load_suite

VOC = {"semantic": 21}


def on_meta(net, classes=VOC):
    with torch.device("meta"):
        return build(net, classes)


# ---------------------------------------------------------------------------------- random stacks


@st.composite
def layers(draw):
    """(kernel, stride, padding, dilation) of a layer; pooling where the dilation is 0."""
    kernel = draw(st.integers(1, 5))
    pooling = draw(st.booleans())
    padding = draw(st.integers(0, kernel // 2 if pooling else 4))
    return kernel, draw(st.integers(1, 3)), padding, 0 if pooling else draw(st.integers(1, 2))


def stack(specification):
    modules: list[nn.Module] = []
    for kernel, stride, padding, dilation in specification:
        if dilation:
            conv = nn.Conv2d(1, 1, kernel, stride, padding, dilation)
            nn.init.ones_(conv.weight)
            modules.append(conv)
        else:
            modules.append(nn.AvgPool2d(kernel, stride, padding))
    return nn.Sequential(*modules).double()


@settings(max_examples=60, deadline=None)
@given(st.lists(layers(), min_size=1, max_size=4))
def test_composition_is_what_an_impulse_shows(specification):
    """The input pixels that a cell depends on: as many as the receptive field, centred as said."""
    net, geometry = stack(specification), through(Geometry(), stack(specification))
    assume(geometry.receptive_field <= 90 and geometry.stride <= 27)
    image = torch.zeros(1, 1, 120, 120, dtype=torch.float64, requires_grad=True)
    out = net(image)
    assert cells_after(120, net) == out.shape[2]
    cell = out.shape[2] // 2
    (gradient,) = torch.autograd.grad(out[0, 0, cell, cell], image)
    touched = gradient[0, 0].abs().sum(1).nonzero().flatten()
    first, last = int(touched[0]), int(touched[-1])
    assume(first > 0 and last < 119)
    assert last - first + 1 == geometry.receptive_field
    assert Fraction(first + last, 2) == geometry.start + geometry.stride * cell


@settings(max_examples=100, deadline=None)
@given(st.lists(layers(), min_size=1, max_size=4), st.integers(1, 40))
def test_number_of_cells(specification, size):
    """Of poolings that round up too; where PyTorch refuses to compute, there are none."""
    net = nn.Sequential(
        *(
            nn.Conv2d(1, 1, k, s, p, d) if d else nn.MaxPool2d(k, s, p, ceil_mode=True)
            for k, s, p, d in specification
        )
    )
    try:
        cells = net.to("meta")(torch.zeros(1, 1, size, size, device="meta")).shape[2]
    except RuntimeError:
        cells = 0
    assert max(0, cells_after(size, net)) == cells


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 5), st.booleans(), st.integers(1, 9), st.integers(-20, 20))
def test_upsampling_puts_the_kernel_over_its_cell(factor, odd, stride, start):
    geometry = Geometry(1, Fraction(stride * factor), Fraction(start, 2))
    kernel = 2 * factor - odd
    up = geometry.upsampled(kernel, factor)
    impulse = torch.zeros(1, 1, 1, 4)
    impulse[0, 0, 0, 2] = 1
    painted = F.conv_transpose2d(impulse, torch.ones(1, 1, 1, kernel), stride=(1, factor))
    cells = painted.flatten().nonzero().flatten().tolist()
    centre = Fraction(cells[0] + cells[-1], 2)
    assert up.start + up.stride * centre == geometry.start + geometry.stride * 2
    assert up.stride == stride


def test_unaligned_maps_are_refused():
    with pytest.raises(ValueError, match="strides differ"):
        Geometry(stride=Fraction(2)).offset_of(Geometry())
    with pytest.raises(ValueError, match="not aligned"):
        Geometry(start=Fraction(1, 2)).offset_of(Geometry())
    with pytest.raises(ValueError, match="no bilinear kernel"):
        bilinear_kernel_size(Geometry(start=Fraction(1, 3), stride=Fraction(2)), 2, Geometry())


# ------------------------------------------------------------ the authors' numbers, layer by layer

# Crop layers of the authors' net.py files, and of clockwork-fcn for the truncated nets. Where there
# is no such file, what PyTorch shows of an impulse holds them (test_identities.py).
CROPS = {
    "voc-fcn-alexnet": ([18], [63]),
    "voc-fcn32s": ([19], [64]),
    "voc-fcn16s": ([5, 27], [4, 32]),
    "voc-fcn8s": ([5, 9, 31], [4, 4, 16]),
    "voc-fcn8s-atonce": ([5, 9, 31], [4, 4, 16]),
    "voc-fcn-pool3": ([103], [16]),
    "voc-fcn-pool4": ([107], [32]),
    "voc-fcn-pool5": ([115], [64]),
    "voc-fcn32s-vgg19": ([19], [64]),
    "nyud-fcn32s-color": ([19], [64]),
    "nyud-fcn32s-hha": ([19], [64]),
    "nyud-fcn32s-color-d": ([19], [64]),
    "nyud-fcn32s-color-hha": ([19], [64]),
    "nyud-fcn16s-color-hha": ([5, 27], [4, 32]),
    "siftflow-fcn32s": ([19], [64]),
    "siftflow-fcn16s": ([5, 27], [4, 32]),
    "siftflow-fcn8s": ([5, 9, 31], [4, 4, 16]),
    "pascalcontext-fcn32s": ([19], [64]),
    "pascalcontext-fcn16s": ([5, 27], [4, 32]),
    "pascalcontext-fcn8s": ([5, 9, 31], [4, 4, 16]),
}


@pytest.mark.parametrize("name", CROPS)
def test_crop_offsets_and_kernels_are_the_authors(named_nets, name):
    built = on_meta(named_nets[name][0])
    kernels = [m.kernel for m in built.modules() if hasattr(m, "kernel")]
    assert (describe(named_nets[name][0], VOC)["crop_offsets"], kernels) == CROPS[name]


def test_both_heads_have_the_offsets_of_the_authors(named_nets):
    for name, (offsets, _) in CROPS.items():
        if name.startswith("siftflow"):
            net = on_meta(named_nets[name][0], {"semantic": 33, "geometric": 3})
            for task in ("semantic", "geometric"):
                head = net.head(task)
                assert [*(offset for *_, offset in head.steps), head.offset] == offsets


def test_receptive_fields_along_vgg_and_alexnet(named_nets):
    vgg = on_meta(named_nets["voc-fcn32s"][0]).geometries
    fields = [
        vgg[name].receptive_field for name in ("pool3", "pool4", "pool5", "fc6", "fc7", "drop7")
    ]
    assert fields == [44, 100, 212, 404, 404, 404]
    alexnet = on_meta(named_nets["voc-fcn-alexnet"][0]).geometries
    names = ("conv1", "pool1", "conv2", "pool2", "conv3", "conv4", "conv5", "pool5", "fc6")
    fields = [alexnet[name].receptive_field for name in names]
    assert fields == [11, 19, 51, 67, 99, 131, 163, 195, 355]


def test_sizes_of_the_maps_of_a_500_pixel_image(named_nets):
    for name, expected in (
        ("voc-fcn-alexnet", [("pool1", 86), ("pool2", 43), ("pool5", 21), ("fc6", 16)]),
        ("voc-fcn32s", [("pool1", 349), ("pool2", 175), ("pool3", 88), ("pool4", 44), ("fc6", 16)]),
    ):
        found, cells = {}, 500
        for layer, module in on_meta(named_nets[name][0]).trunk.layers.named_children():
            cells = found[layer] = cells_after(cells, module)
        assert [(layer, found[layer]) for layer, _ in expected] == expected


# ------------------------------------------------------------------------------ the paper's Table 1


def paper_table1():
    with (CONFIG / "paper_numbers.csv").open(encoding="utf-8", newline="") as handle:
        for row in csv.DictReader(handle):
            if row["table"] == "Table 1" and row["dataset"] == "-" and row["split"] == "-":
                yield row["method"], row["metric"], float(row["value"])


TABLE1 = sorted(set(paper_table1()))
NETS = {
    "FCN-AlexNet": "voc-fcn-alexnet",
    "FCN-VGG16": "voc-fcn32s",
    "FCN-GoogLeNet": "voc-fcn-googlenet",
}


@pytest.mark.parametrize("method, metric, value", TABLE1)
def test_table1(named_nets, method, metric, value):
    facts = describe(named_nets[NETS[method]][0], VOC)
    if metric == "parameters":
        assert round(facts["parameters"] / 1e6) == value
    elif metric == "receptive field" and method == "FCN-GoogLeNet":
        # The net of the text has no average pool; the number of the table counts it.
        assert facts["receptive_field"] == 715
        assert facts["receptive_field_with_average_pool"] == value
        pooled = describe({**named_nets[NETS[method]][0], "average_pool": True}, VOC)
        assert pooled["receptive_field"] == value
        assert "receptive_field_with_average_pool" not in pooled
    else:
        keys = {
            "conv. (parameter) layers": "conv_layers",
            "receptive field": "receptive_field",
            "max stride": "max_stride",
        }
        assert facts[keys[metric]] == value


def test_table1_is_all_there():
    assert len(TABLE1) == 12


def test_parameters_to_the_last(named_nets):
    count = {name: describe(net, VOC)["parameters"] for name, (net, _) in named_nets.items()}
    assert count["voc-fcn-alexnet"] == 2_334_080 + 37_752_832 + 16_781_312 + 86_037
    assert count["voc-fcn32s"] == 14_714_688 + 102_764_544 + 16_781_312 + 86_037
    assert count["voc-fcn16s"] == count["voc-fcn32s"] + 10_773
    assert count["voc-fcn8s"] == count["voc-fcn16s"] + 5_397 == count["voc-fcn8s-atonce"]
    assert count["voc-fcn-googlenet"] == 5_973_552 + 21_525
    assert count["voc-fcn-googlenet-avgpool"] == count["voc-fcn-googlenet"]
    # a 3x3 convolution more in each of the last three blocks
    assert count["voc-fcn32s-vgg19"] == count["voc-fcn32s"] + 590_080 + 2 * 2_359_808
    assert count["voc-fcn32s-null"] == count["voc-fcn32s"] - 4097
    assert count["voc-fcn32s-pool5dense"] == count["voc-fcn32s"] + 3 * 102_760_448
    assert count["voc-fcn32s-pool5dense-dilated"] == count["voc-fcn32s"]
    assert count["nyud-fcn32s-color-d"] == count["nyud-fcn32s-color"] + 64 * 9
    assert count["nyud-fcn32s-color-hha"] == 2 * count["nyud-fcn32s-color"]


def test_decreased_subsampling_sees_what_the_net_saw(named_nets):
    """Section 4.2 (CVPR): 14x14 cells of stride 16 for 7x7 of stride 32, but for half a cell."""
    found = {name: describe(net, VOC) for name, (net, _) in named_nets.items()}
    dilated, dense = (found[f"voc-fcn32s-pool5dense{part}"] for part in ("-dilated", ""))
    assert dilated["receptive_field"] == found["voc-fcn32s"]["receptive_field"]
    assert dense["receptive_field"] == dilated["receptive_field"] + 16
    assert dense["stride"] == dilated["stride"] == dense["max_stride"] == 16
    assert found["voc-fcn32s-vgg19"]["conv_layers"] == 19
    assert found["nyud-fcn32s-color-hha"]["conv_layers"] == 16


@pytest.mark.parametrize("name", ["demo", "laptop"])
def test_gflop_of_the_slim_nets_is_derived(name):
    suite = load_suite(name)
    own = {key: net for key, net in suite.nets.items() if key.startswith("slim")}
    assert len(own) == 5
    for key, net in own.items():
        found = gflop(on_meta(suite.resolved_net(key)))
        assert net["gflop"] == pytest.approx(round(found, 2), abs=1e-9), key


def test_gflop_of_the_configuration_is_derived(named_nets):
    suite = load_suite("voc-subset")
    for name, (net, _) in named_nets.items():
        entry = suite.nets[name]
        while "gflop" not in entry:
            entry = suite.nets[entry["base"]]
        assert entry["gflop"] == pytest.approx(round(gflop(on_meta(net)), 2), abs=1e-9), name


def test_gflop_of_one_convolution_by_hand():
    net = {**NET_DEFAULTS, "architecture": "vgg16", "padding": "tight", "top": "pool1"}
    # conv1_1 and conv1_2 on 8x6 pixels, score_pool1 on 4x3 cells
    expected = 2 * (48 * 64 * 27 + 48 * 64 * 64 * 9 + 12 * 21 * 64) / 1e9
    assert gflop(on_meta(net), (8, 6)) == pytest.approx(expected, rel=1e-12)


def test_architecture_file(write_suite, tmp_path):
    run = {"split": "val", "net": "voc-fcn8s", "weights": "none", "recipe": "none"}
    suite = load_suite(str(write_suite({"runs": {"voc2011/eights": run}})))
    found = architecture(suite, tmp_path / "results")
    assert set(found["nets"]) == set(suite.nets)
    assert set(found["runs"]) == set(suite.runs)
    assert found["runs"]["voc2011/eights"] == found["nets"]["voc-fcn8s"]
    slim = describe(suite.run("run").config["net"], {"semantic": len(semantic_classes())})
    assert found["runs"]["tiny/run"] == slim
    assert found["nets"]["voc-fcn8s"]["stride"] == 8
    assert found["nets"]["voc-fcn2s"]["stride"] == 2
    assert (tmp_path / "results" / "architecture.json").exists()


@pytest.mark.parametrize("padding", ["reference", "tight"])
def test_average_pool_keeps_cells_where_they_are(padding):
    net = {**NET_DEFAULTS, "architecture": "googlenet", "padding": padding, "average_pool": True}
    with torch.device("meta"):
        trunk = build_trunk(net, 3)
    geometry, starts = Geometry(), {}
    for name, layer in trunk.layers.named_children():
        geometry = through(geometry, layer)
        starts[name] = geometry.start
    assert starts["pool5/7x7_s1"] == starts["inception_5b"]


def test_fields_of_what_reads_an_upsampled_map_are_whole_pixels():
    """Two cells half a pixel apart are of two pixels."""
    fine = Geometry().upsampled(4, 2)
    assert [fine.window(kernel, 1, 0).receptive_field for kernel in (1, 2, 3, 4)] == [1, 2, 2, 3]


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(1, 1, (3, 5)),
        nn.Conv2d(1, 1, 3, (1, 2)),
        nn.Conv2d(1, 1, 3, padding=(0, 1)),
        nn.Conv2d(1, 1, 3, dilation=(1, 2)),
        nn.MaxPool2d((2, 3)),
    ],
)
def test_layers_that_are_not_square_are_refused(layer):
    with pytest.raises(ValueError, match="only square layers"):
        through(Geometry(), layer)
    with pytest.raises(ValueError, match="only square layers"):
        cells_after(9, layer)
