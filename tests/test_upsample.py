"""Upsampling: the fast way against the authors' layer and other bilinear interpolation."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.transform import resize
from torch.utils._python_dispatch import TorchDispatchMode

from fcn.device import tf32
from fcn.nets import upsample
from fcn.nets.upsample import Upsample, _Transposed, bilinear_taps, upsampling_matrix


@st.composite
def cases(draw):
    """Kernel, stride, cells, and a window of the upsampled map, for rows and for columns."""
    factor = draw(st.integers(2, 9))
    kernel = 2 * factor - draw(st.integers(0, 1))
    sides = []
    for _ in range(2):
        cells = draw(st.integers(1, 6))
        whole = (cells - 1) * factor + kernel
        first = draw(st.integers(0, whole - 1))
        sides.append((cells, first, draw(st.integers(1, whole - first))))
    return kernel, factor, sides


@settings(max_examples=60, deadline=None)
@given(cases(), st.integers(1, 3), st.integers(1, 2), st.integers(0, 9))
def test_fast_is_exact_in_value_and_gradient(case, channels, images, seed):
    kernel, factor, sides = case
    layer = Upsample(channels, kernel, factor, learned=False)
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(images, channels, sides[0][0], sides[1][0], generator=generator)
    window = ((sides[0][1], sides[1][1]), (sides[0][2], sides[1][2]))
    weights = torch.randn(images, channels, *window[1], generator=generator)
    results = []
    for exact in (False, True):
        layer.exact = exact
        x = maps.clone().requires_grad_()
        out = layer(x, *window)
        (gradient,) = torch.autograd.grad((out * weights).sum(), x)
        results.append((out.detach(), gradient))
    (fast, fast_gradient), (exact_, exact_gradient) = results
    assert fast.shape == (images, channels, *window[1])
    for one, other in ((fast, exact_), (fast_gradient, exact_gradient)):
        scale = max(1.0, float(other.abs().max()))
        assert float((one - other).abs().max()) <= 1e-6 * scale


@pytest.mark.parametrize("kept", [2, 5])
def test_what_a_call_used_is_there_for_the_next(kept, monkeypatch):
    """A recording comes right after a call of its shape, and can make no matrix."""
    monkeypatch.setattr(upsample, "KEPT", kept)
    made = []
    make = upsample.upsampling_matrix

    def counted(*args):
        made.append(args)
        return make(*args)

    monkeypatch.setattr(upsample, "upsampling_matrix", counted)
    layer = Upsample(1, 4, 2, learned=False)
    generator = np.random.default_rng(0)
    for height, width in generator.integers(2, 12, (60, 2)).tolist():
        image = torch.rand(1, 1, height, width)
        first = layer(image, (1, 1), (2 * height, 2 * width))
        before = len(made)
        assert torch.equal(layer(image, (1, 1), (2 * height, 2 * width)), first)
        assert len(made) == before and len(layer._matrices) <= kept
    assert len(made) > 20


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([2, 4, 6, 8]), st.integers(3, 7), st.integers(3, 7), st.integers(0, 99))
def test_even_kernel_is_image_resizing(factor, height, width, seed):
    """Kernel 2f, cropped by f / 2 (whole for even f): bilinear resizing by f, inside the border."""
    image = torch.rand(1, 1, height, width, generator=torch.Generator().manual_seed(seed))
    layer = Upsample(1, 2 * factor, factor, learned=False)
    found = layer(image, (factor // 2,) * 2, (height * factor, width * factor))
    inside = (..., slice(factor, -factor), slice(factor, -factor))
    expected = F.interpolate(image, scale_factor=factor, mode="bilinear", align_corners=False)
    torch.testing.assert_close(found[inside], expected[inside], rtol=0, atol=1e-6)
    other = resize(
        image[0, 0].double().numpy(), (height * factor, width * factor), order=1, mode="edge",
        anti_aliasing=False,
    )  # fmt: skip
    np.testing.assert_allclose(found[inside][0, 0], other[inside], rtol=0, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 8), st.integers(2, 7), st.integers(2, 7), st.integers(0, 99))
def test_odd_kernel_keeps_the_cells(factor, height, width, seed):
    """Kernel 2f - 1, cropped by f - 1: the cells' own values, lines between them."""
    image = torch.rand(1, 2, height, width, generator=torch.Generator().manual_seed(seed))
    size = ((height - 1) * factor + 1, (width - 1) * factor + 1)
    layer = Upsample(2, 2 * factor - 1, factor, learned=False)
    found = layer(image, (factor - 1,) * 2, size)
    torch.testing.assert_close(found[..., ::factor, ::factor], image, rtol=0, atol=1e-6)
    expected = F.interpolate(image, size=size, mode="bilinear", align_corners=True)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kernel", [4, 16, 32, 63, 64])
def test_taps_sum_to_one_over_each_phase(kernel):
    """A constant map stays constant: the taps that meet at a pixel sum to one."""
    factor = (kernel + 1) // 2
    taps = bilinear_taps(kernel)
    for phase in range(factor):
        assert taps[phase::factor].sum() == pytest.approx(1, abs=1e-12)
    assert torch.equal(taps, taps.flip(0))


def test_learned_starts_as_fixed_and_mixes_no_classes():
    maps = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    fixed, learned = (Upsample(3, 4, 2, learned=flag) for flag in (False, True))
    window = ((1, 0), (7, 9))
    torch.testing.assert_close(learned(maps, *window), fixed(maps, *window), rtol=0, atol=1e-6)
    learned(maps, *window).sum().backward()
    assert (
        learned.weight.grad is not None and learned.weight.grad.abs().min() > 0
    )  # every pair of classes can be learned
    assert [name for name, _ in learned.named_parameters()] == ["weight"]
    assert not list(fixed.parameters())


def test_loaded_kernel_that_is_not_bilinear_is_applied():
    layer = Upsample(2, 4, 2, learned=False)
    maps = torch.randn(1, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    layer.settle()
    assert not layer.exact
    layer.weight[1] += 0.01
    layer.settle()
    assert layer.exact
    expected = F.conv_transpose2d(maps, layer.weight, stride=2, groups=2)
    torch.testing.assert_close(layer(maps, (0, 0), (8, 8)), expected)


def test_window_outside_the_map_is_refused():
    for layer in (Upsample(1, 4, 2, learned=False), Upsample(1, 4, 2, learned=True)):
        with pytest.raises(ValueError, match="upsampled map"):
            layer(torch.zeros(1, 1, 2, 2), (0, 0), (7, 6))
    with pytest.raises(ValueError):
        upsampling_matrix(2, 4, 2, -1, 3)


def test_computes_in_float32_under_autocast():
    layer = Upsample(1, 4, 2, learned=False)
    maps = torch.rand(1, 1, 3, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(maps, (1, 1), (6, 6))
    assert out.dtype == torch.float32
    assert torch.equal(out, layer(maps.float(), (1, 1), (6, 6)))


class Flags(TorchDispatchMode):
    """Names of convolutions and products, and the flag that each of them would have obeyed."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if "convolution" in name:
            self.seen.append((name, torch.backends.cudnn.allow_tf32))
        elif "mm" in name:
            self.seen.append((name, torch.backends.cuda.matmul.allow_tf32))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("learned, exact", [(True, False), (False, True), (False, False)])
def test_stays_float32_where_others_use_tf32(learned, exact):
    """In both passes; the layer below it, a convolution, uses TF32 in both."""
    below, layer = torch.nn.Conv2d(2, 2, 1), Upsample(2, 4, 2, learned)
    layer.exact = exact
    with tf32(True), Flags() as flags:
        layer(below(torch.rand(1, 2, 3, 3)), (0, 0), (8, 8)).sum().backward()
    (first, *ours, last), fused = flags.seen, ["convolution", "convolution_backward"]
    assert (first, last) == (("convolution", True), ("convolution_backward", True))
    assert ours and not any(flag for _, flag in ours)
    assert ([name for name, _ in ours] == fused) is (learned or exact)


@pytest.mark.parametrize("learned", [True, False])
def test_transposed_convolution_has_its_own_gradients(learned):
    layer = Upsample(3, 4, 2, learned).double()
    layer.exact = True
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(layer.weight.shape, dtype=torch.float64, generator=generator)
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, generator=generator).requires_grad_()
    found = torch.autograd.gradcheck(
        lambda x, w: _Transposed.apply(x, w, 2, 1 if learned else 3), (x, weight.requires_grad_())
    )
    assert found


def test_matrix_of_validation_serves_training():
    """Validation runs in inference mode; what it leaves behind must not stop training."""
    layer = Upsample(1, 4, 2, learned=False)
    with torch.inference_mode():
        layer(torch.zeros(1, 1, 3, 3), (0, 0), (5, 5))
    x = torch.zeros(1, 1, 3, 3, requires_grad=True)
    layer(x, (0, 0), (5, 5)).sum().backward()
    assert x.grad is not None


def test_what_is_asked_to_be_exact_stays_so():
    layer = Upsample(2, 4, 2, learned=False)
    for exact in (False, True):
        layer.exact = exact
        layer.settle()
        assert layer.exact is exact
