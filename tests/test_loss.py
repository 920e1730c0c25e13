"""The losses against plain numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fcn.loss import batch_loss, pixel_losses

VOID = 255


@st.composite
def batches(draw):
    """Scores (N, C, H, W) and truth (N, H, W); an image is all void now and then."""
    images, classes = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    size = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    scale = draw(st.sampled_from([1e-3, 1.0, 30.0]))
    scores = (rng.normal(0, scale, (images, classes, *size))).astype(np.float32)
    truth = rng.integers(0, classes, (images, *size)).astype(np.uint8)
    truth[rng.random(truth.shape) < draw(st.sampled_from([0, 0.4, 1]))] = VOID
    if draw(st.booleans()):
        truth[0] = VOID
    return scores, truth


def by_hand(scores, truth, kind):
    """(N, H, W) float64, one pixel at a time."""
    losses = np.zeros(truth.shape)
    for n, i, j in np.argwhere(truth != VOID):
        x = scores[n, :, i, j].astype(np.float64)
        k = truth[n, i, j]
        if kind == "softmax":
            losses[n, i, j] = np.log(np.exp(x - x.max()).sum()) + x.max() - x[k]
        else:
            sign = np.where(np.arange(len(x)) == k, 1, -1)
            losses[n, i, j] = np.logaddexp(0, -sign * x).sum()
    return losses


@settings(max_examples=60, deadline=None)
@given(batches(), st.sampled_from(["softmax", "sigmoid"]))
def test_pixel_losses(batch, kind):
    scores, truth = batch
    found = pixel_losses(torch.from_numpy(scores), torch.from_numpy(truth), kind)
    assert found.dtype == torch.float32
    assert not found[torch.from_numpy(truth) == VOID].any()
    np.testing.assert_allclose(found, by_hand(scores, truth, kind), rtol=2e-5, atol=2e-5)


@settings(max_examples=60, deadline=None)
@given(batches(), st.sampled_from(["softmax", "sigmoid"]), st.booleans())
def test_batch_loss(batch, kind, normalize):
    scores, truth = batch
    leaf = torch.from_numpy(scores).requires_grad_()
    objective, summed, valid = batch_loss(leaf, torch.from_numpy(truth), kind, normalize)
    losses = by_hand(scores, truth, kind).sum((1, 2))
    count = (truth != VOID).sum((1, 2))
    expected = (losses / np.maximum(count, 1)).sum() if normalize else losses.sum()
    assert objective.item() == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert float(summed) == pytest.approx(losses.sum(), rel=1e-4, abs=1e-4)
    assert int(valid) == count.sum()
    (gradient,) = torch.autograd.grad(objective, leaf)
    void = torch.from_numpy(truth == VOID)[:, None].expand_as(gradient)
    assert gradient.isfinite().all()
    assert not gradient[void].any()


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("normalize", [True, False])
def test_nothing_but_void_is_nothing(kind, normalize):
    scores = torch.randn(2, 3, 4, 5, requires_grad=True)
    truth = torch.full((2, 4, 5), VOID, dtype=torch.uint8)
    objective, summed, valid = batch_loss(scores, truth, kind, normalize)
    objective.backward()
    assert (objective.item(), summed.item(), valid.item()) == (0, 0, 0)
    assert scores.grad is not None and not scores.grad.any()


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_gradient_of_softmax_and_sigmoid_by_hand(kind):
    scores = torch.randn(1, 4, 2, 2, dtype=torch.float32, requires_grad=True)
    truth = torch.tensor([[[0, 3], [VOID, 1]]], dtype=torch.uint8)
    batch_loss(scores, truth, kind, False)[0].backward()
    assert scores.grad is not None
    x = scores.detach()
    probability = x.softmax(1) if kind == "softmax" else x.sigmoid()
    expected = probability.clone()
    for i, j, k in ((0, 0, 0), (0, 1, 3), (1, 1, 1)):
        expected[0, k, i, j] -= 1
    expected[:, :, 1, 0] = 0
    torch.testing.assert_close(scores.grad, expected, rtol=1e-5, atol=1e-6)


def test_uniform_guessing_costs_the_logarithm_of_the_classes():
    scores, truth = torch.zeros(1, 21, 3, 3), torch.ones(1, 3, 3, dtype=torch.uint8)
    assert batch_loss(scores, truth, "softmax", True)[0].item() == pytest.approx(np.log(21))
    assert batch_loss(scores, truth, "sigmoid", True)[0].item() == pytest.approx(21 * np.log(2))


def test_half_precision_scores_are_summed_in_float32():
    """12,000 pixels of loss 3 in bfloat16 would stop growing at a few hundred."""
    scores = torch.zeros(1, 21, 100, 120, dtype=torch.bfloat16)
    truth = torch.zeros(1, 100, 120, dtype=torch.uint8)
    assert batch_loss(scores, truth, "softmax", False)[0].item() == pytest.approx(
        12000 * np.log(21), rel=1e-4
    )


def test_a_loss_that_there_is_not_is_refused():
    scores, truth = torch.zeros(1, 2, 1, 1), torch.zeros(1, 1, 1, dtype=torch.uint8)
    with pytest.raises(ValueError, match="no loss 'hinge'"):
        pixel_losses(scores, truth, "hinge")
