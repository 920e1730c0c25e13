"""Inference that leaves out what no image changes gives what the whole net gives."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fcn.bench.floors import gflop_of
from fcn.nets import FCN, build
from fcn.nets.padded import PaddedTrunk, for_inference
from fcn.suites import load_suite

SLIM = {"width": 0.0625, "hidden": 16, "interpolation": "bilinear", "score_init": "gaussian"}
TOLERANCE = 1e-5  # of the largest score


def slim_net(name: str, seed: int = 0, **options: object) -> FCN:
    """A slim net of the paper with biases: with none, zeros would stay zeros in every layer."""
    net = build({**load_suite("paper").resolved_net(name), **SLIM, **options}, {"semantic": 5})
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            spread = (2 / module.weight[0].numel()) ** 0.5
            module.weight.data.normal_(0, spread, generator=generator)
            assert module.bias is not None
            module.bias.data.normal_(0, 0.3, generator=generator)
    return net.eval().to(memory_format=torch.channels_last)


def difference(net: FCN, fast: FCN, x: torch.Tensor) -> float:
    with torch.inference_mode():
        whole, quick = net(x)["semantic"], fast(x)["semantic"]
    assert whole.shape == quick.shape and whole.dtype == quick.dtype
    return float((whole - quick).abs().max() / whole.abs().max())


@settings(max_examples=12, deadline=None)
@given(
    name=st.sampled_from(["voc-fcn8s", "voc-fcn32s", "voc-fcn-alexnet", "voc-fcn-pool4"]),
    height=st.integers(1, 100),
    width=st.integers(1, 100),
    batch=st.integers(1, 2),
    seed=st.integers(0, 99),
)
def test_any_image_size(name, height, width, batch, seed):
    net = slim_net(name, seed)
    x = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))
    fast = for_inference(net)
    assert difference(net, fast, x) < TOLERANCE
    assert difference(net, fast, x.flip(2)) < TOLERANCE  # from what the first call kept


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("nyud-fcn32s-color-hha", {}),
        ("nyud-fcn32s-color-d", {}),
        ("voc-fcn2s", {}),
        ("voc-fcn32s-pool5dense", {"hidden": 8}),
        ("voc-fcn-googlenet", {"padding": "reference"}),
        ("voc-fcn-googlenet", {}),
        ("voc-fcn32s", {"padding": "tight"}),
        ("voc-fcn32s", {"architecture": "alexnet-bvlc"}),
    ],
)
def test_every_kind_of_net(name, options):
    net = slim_net(name, **options)
    x = torch.randn(1, net.channels, 123, 210, generator=torch.Generator().manual_seed(1))
    assert difference(net, for_inference(net), x) < TOLERANCE


def test_a_third_of_the_work_is_saved():
    size = (500, 500)
    with torch.device("meta"):
        net = build(load_suite("paper").resolved_net("voc-fcn32s"), {"semantic": 21}).eval()
        fast = for_inference(net)
        x = torch.zeros(1, 3, *size)
        trunk = fast.streams[0]
        assert isinstance(trunk, PaddedTrunk)
        trunk.quiet(size, x)
    assert gflop_of(net, size) / gflop_of(fast, size) > 1.3
    reduced = trunk.quiet(size, x)[0].shape[2:]
    assert max(reduced) < 130  # a fifth of what the whole canvas has in pool1


def test_tight_padding_has_nothing_to_save():
    trunk = PaddedTrunk(slim_net("voc-fcn32s", padding="tight").streams[0])
    assert trunk.plan((300, 300)) == []


def test_a_wrong_response_to_zeros_is_seen():
    net = slim_net("voc-fcn8s")
    fast = for_inference(net)
    trunk = fast.streams[0]
    assert isinstance(trunk, PaddedTrunk)
    x = torch.randn(1, 3, 90, 120, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        for quiet in trunk.quiet((90, 120), x):
            quiet += 0.1
    assert difference(net, fast, x) > 100 * TOLERANCE


def test_weights_are_shared_in_fp32_and_copied_in_bf16():
    net = slim_net("voc-fcn32s")
    before = copy.deepcopy(net.state_dict())
    same, half = for_inference(net), for_inference(net, "bf16")
    layers = [
        dict(n.streams[0].layers.named_children())["conv1_1"].weight for n in (net, same, half)
    ]
    assert layers[0] is layers[1]
    assert layers[2].dtype == torch.bfloat16
    assert type(net.trunk).__name__ == "Trunk"
    x = torch.randn(1, 3, 90, 120, generator=torch.Generator().manual_seed(1))
    assert difference(net, half, x) < 0.05
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_training_mode_computes_the_whole_net():
    net = slim_net("voc-fcn32s", dropout=0.0).train()
    fast = for_inference(net)
    trunk = fast.streams[0]
    assert isinstance(trunk, PaddedTrunk) and trunk.training
    x = torch.randn(1, 3, 50, 60)
    assert difference(net, fast, x) == 0
    assert trunk._quiet == {}
