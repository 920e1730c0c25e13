"""Local response normalisation is PyTorch's, in values and gradients."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fcn.nets.norm import LocalResponseNorm


def reference(x):
    return F.local_response_norm(x, 5, alpha=1e-4, beta=0.75, k=1.0)


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 12), st.integers(1, 5), st.integers(1, 5)),
    st.sampled_from([1e-3, 1.0, 1e2, 1e4]),
    st.integers(0, 99),
)
def test_values_and_gradients_are_pytorchs(shape, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64) * scale
    weights = torch.randn(shape, generator=generator, dtype=torch.float64)
    layer = LocalResponseNorm(shape[1])
    results = []
    for function in (layer, reference):
        leaf = x.clone().requires_grad_()
        out = function(leaf)
        (gradient,) = torch.autograd.grad((out * weights).sum(), leaf)
        results.append((out.detach(), gradient))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-8, atol=1e-10)
    single = layer(x.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single, reference(x.float()), rtol=2e-6, atol=0)


def test_gradcheck():
    x = 50 * torch.randn(2, 7, 2, 3, generator=torch.Generator().manual_seed(1)).double()
    assert torch.autograd.gradcheck(LocalResponseNorm(7), (x.requires_grad_(),))


def test_it_does_something():
    """At the size of AlexNet's activations the divisor matters, so that a no-op would fail."""
    x = torch.full((1, 5, 1, 1), 200.0)
    assert LocalResponseNorm(5)(x)[0, 2].item() == pytest.approx(200 / (1 + 4.0) ** 0.75, rel=1e-6)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_under_bfloat16_autocast(layout):
    conv, layer = torch.nn.Conv2d(3, 8, 3), LocalResponseNorm(8)
    x = 100 * torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    expected = layer(conv(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = layer(conv(x.to(memory_format=layout)))
    assert found.dtype == torch.bfloat16
    assert (found - expected).abs().max() < 0.02 * expected.abs().max()
    found.float().sum().backward()
    assert conv.weight.grad is not None and conv.weight.grad.isfinite().all()
    assert conv.weight.grad.abs().max() > 0


def test_it_has_no_weights_to_save():
    assert not LocalResponseNorm(4).state_dict()
