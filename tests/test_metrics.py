"""Metrics against a slow count of pixels in plain Python, and the corner cases by hand."""

import math
from dataclasses import asdict
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fcn.metrics import ConfusionMatrix, confusion, scores, scores_of_counts


@st.composite
def labelled(draw, most=40):
    """(classes, truth with void, prediction) as lists of pixels."""
    classes = draw(st.integers(1, 5))
    void = draw(st.sampled_from([255, 254, classes]))
    pixel = st.tuples(
        st.integers(0, classes - 1) | st.just(void),
        st.integers(0, classes - 1),
    )
    pixels = draw(st.lists(pixel, max_size=most))
    return classes, [t for t, _ in pixels], [p for _, p in pixels]


def tensors(truth, prediction, dtype=torch.uint8) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(truth, dtype=dtype), torch.tensor(prediction, dtype=dtype)


def slow_scores(classes, truth, prediction):
    """The definitions, pixel by pixel and in exact fractions."""
    pairs = [(t, p) for t, p in zip(truth, prediction, strict=True) if t < classes]
    accuracies, ius, per_class, weighted = [], [], [], Fraction(0)
    for k in range(classes):
        both = sum(t == k and p == k for t, p in pairs)
        either = sum(t == k or p == k for t, p in pairs)
        own = sum(t == k for t, p in pairs)
        per_class.append(Fraction(both, either) if either else None)
        if own:
            accuracies.append(Fraction(both, own))
            weighted += Fraction(own, len(pairs)) * Fraction(both, either)
        if either:
            ius.append(Fraction(both, either))
    return {
        "pixel_accuracy": Fraction(sum(t == p for t, p in pairs), len(pairs)) if pairs else None,
        "mean_accuracy": sum(accuracies) / len(accuracies) if accuracies else None,
        "mean_iu": sum(ius) / len(ius) if ius else None,
        "frequency_weighted_iu": weighted if pairs else None,
        "per_class_iu": per_class,
    }


def assert_close(expected, found):
    if expected is None or found is None:
        assert expected is None and found is None
    else:
        assert math.isclose(float(expected), found, rel_tol=1e-12, abs_tol=1e-15)


@given(case=labelled())
def test_scores_equal_the_definitions(case):
    classes, truth, prediction = case
    found = asdict(scores(confusion(*tensors(truth, prediction), classes)))
    expected = slow_scores(classes, truth, prediction)
    for expected_iu, found_iu in zip(
        expected.pop("per_class_iu"), found.pop("per_class_iu"), strict=True
    ):
        assert_close(expected_iu, found_iu)
    assert expected.keys() == found.keys()
    for name in expected:
        assert_close(expected[name], found[name])


@given(case=labelled(), dtype=st.sampled_from([torch.uint8, torch.int64, torch.int32]))
def test_confusion_counts_every_pixel_that_is_not_void(case, dtype):
    classes, truth, prediction = case
    matrix = confusion(*tensors(truth, prediction, dtype), classes)
    assert matrix.dtype == torch.int64 and matrix.shape == (classes, classes)
    for i in range(classes):
        for j in range(classes):
            pairs = zip(truth, prediction, strict=True)
            assert matrix[i, j] == sum((t, p) == (i, j) for t, p in pairs)


@given(case=labelled(), seed=st.integers(0, 99))
def test_the_order_of_pixels_does_not_matter(case, seed):
    classes, truth, prediction = case
    order = np.random.default_rng(seed).permutation(len(truth))
    t, p = tensors(truth, prediction)
    assert torch.equal(confusion(t, p, classes), confusion(t[order], p[order], classes))


@given(case=labelled(), cut=st.integers(0, 40))
def test_parts_add_up(case, cut):
    classes, truth, prediction = case
    t, p = tensors(truth, prediction)
    total = ConfusionMatrix(classes)
    total.update(t[:cut].reshape(1, -1), p[:cut].reshape(1, -1))
    total.update(t[cut:].reshape(1, -1), p[cut:].reshape(1, -1))
    assert torch.equal(total.matrix, confusion(t, p, classes))
    counts = {name: rows.sum(0) for name, rows in total.per_image().items()}
    del counts["predicted_on_objects"]
    assert scores_of_counts(**counts) == total.scores() == scores(confusion(t, p, classes))


@given(case=labelled())
def test_counts_over_objects_are_those_without_the_other_pixels(case):
    """An oracle: the pixels of the first class become void."""
    classes, truth, prediction = case
    t, p = tensors(truth, prediction)
    total, objects = ConfusionMatrix(classes), ConfusionMatrix(classes)
    total.update(t.reshape(1, -1), p.reshape(1, -1))
    objects.update(t.masked_fill(t == 0, 255).reshape(1, -1), p.reshape(1, -1))
    found, expected = total.per_image(), objects.per_image()
    assert (found["predicted_on_objects"] == expected["predicted"]).all()
    for name in ("true_positive", "truth"):
        assert (found[name][:, 1:] == expected[name][:, 1:]).all()


@given(case=labelled(), guess=st.integers(0, 255), voids=st.integers(1, 20))
def test_void_changes_nothing_whatever_is_predicted_there(case, guess, voids):
    classes, truth, prediction = case
    before = confusion(*tensors(truth, prediction), classes)
    after = confusion(*tensors(truth + [255] * voids, prediction + [guess] * voids), classes)
    assert torch.equal(before, after)


@given(case=labelled(), seed=st.integers(0, 99))
def test_renaming_classes_renames_the_scores(case, seed):
    classes, truth, prediction = case
    names = np.random.default_rng(seed).permutation(classes)
    table = torch.full((256,), 255, dtype=torch.uint8)
    table[:classes] = torch.from_numpy(names)
    t, p = tensors(truth, prediction)
    old = scores(confusion(t, p, classes))
    new = scores(confusion(table[t.long()], table[p.long()], classes))
    assert [new.per_class_iu[k] for k in names] == old.per_class_iu
    assert_close(old.mean_iu, new.mean_iu)
    assert_close(old.frequency_weighted_iu, new.frequency_weighted_iu)


def test_negative_truth_is_void_too():
    truth, prediction = torch.tensor([-1, 0, 1]), torch.tensor([1, 0, 0])
    assert confusion(truth, prediction, 2).tolist() == [[1, 0], [1, 0]]


def test_a_class_that_is_nowhere_is_skipped():
    found = scores(np.diag([3, 1, 0]))
    assert found.mean_iu == found.mean_accuracy == found.pixel_accuracy == 1.0
    assert found.per_class_iu == [1.0, 1.0, None]


def test_a_class_that_is_only_predicted_counts_as_zero_in_mean_iu_alone():
    matrix = np.array([[2, 0, 1], [0, 1, 0], [0, 0, 0]])
    strict = scores(matrix)
    assert strict.per_class_iu == [2 / 3, 1.0, 0.0]
    assert_close(Fraction(5, 9), strict.mean_iu)
    assert_close(Fraction(5, 6), strict.mean_accuracy)
    assert_close(Fraction(3, 4) * Fraction(2, 3) + Fraction(1, 4), strict.frequency_weighted_iu)


def test_a_missed_class_counts_as_zero_in_both_means():
    found = scores(np.array([[3, 0], [1, 0]]))
    assert found.mean_accuracy == 0.5 and found.mean_iu == 0.375
    assert found.per_class_iu == [0.75, 0.0]


def test_nothing_counted_is_none():
    found = scores(np.zeros((2, 2), np.int64))
    assert asdict(found) == dict.fromkeys(asdict(found), None) | {"per_class_iu": [None, None]}


def test_large_counts_are_exact():
    # More pixels than float32 could count: one wrong pixel in 2^30.
    matrix = np.array([[2**30 - 1, 1], [0, 2**30]])
    assert scores(matrix).pixel_accuracy == 1 - 2.0**-31


def test_batches_are_counted_image_by_image():
    rng = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 4, (3, 5, 6), generator=rng).to(torch.uint8)
    prediction = torch.randint(0, 3, (3, 5, 6), generator=rng).to(torch.uint8)
    truth[truth == 3] = 255
    total = ConfusionMatrix(3)
    total.update(truth, prediction)
    counts = total.per_image()
    for k in range(3):
        one = confusion(truth[k], prediction[k], 3).numpy()
        assert (counts["true_positive"][k] == np.diag(one)).all()
        assert (counts["truth"][k] == one.sum(1)).all()
        assert (counts["predicted"][k] == one.sum(0)).all()
    assert counts["truth"].dtype == np.int64 and counts["truth"].shape == (3, 3)
    assert ConfusionMatrix(3).per_image()["truth"].shape == (0, 3)


@pytest.mark.parametrize(
    "truth, prediction",
    [
        (torch.zeros(2, 3, dtype=torch.uint8), torch.zeros(3, 2, dtype=torch.uint8)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.uint8)),
        (torch.tensor([0, 0]), torch.tensor([0, 2])),
        (torch.tensor([0, 1]), torch.tensor([0, -1])),
    ],
    ids=["shapes", "float", "too high", "negative"],
)
def test_confusion_refuses(truth, prediction):
    with pytest.raises(ValueError):
        confusion(truth, prediction, 2)
