"""The training sequence: order, changes, groups, loading."""

import os
import signal
from math import sqrt
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fcn.data.dataset import SegmentationSet
from fcn.data.stream import (
    GROUP_PIXELS,
    AugmentedSet,
    cell_of_pixels,
    groups_of_update,
    image_order,
    loader,
    moved,
    resized,
)
from fcn.errors import UserError
from fcn.nets import build
from fcn.options import NET_DEFAULTS

VOID = 255


# ------------------------------------------------------------------------------------------- order


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 30), st.integers(1, 100), st.integers(0, 5))
def test_epochs_are_permutations(count, total, seed):
    order = image_order(count, total, "epochs", seed)
    assert order.shape == (total,) and order.dtype == np.int64
    for start in range(0, total, count):
        part = order[start : start + count]
        assert len(set(part)) == len(part)
        if len(part) == count:
            assert sorted(part) == list(range(count))


def test_replacement_draws_each_image_alike_and_some_twice():
    order = image_order(10, 20_000, "replacement", 0)
    share = np.bincount(order, minlength=10) / len(order)
    assert np.abs(share - 0.1).max() < 5 * sqrt(0.09 / len(order))
    assert any(len(set(order[i : i + 10])) < 10 for i in range(0, 100, 10))


@pytest.mark.parametrize("sampling", ["epochs", "replacement"])
def test_order_is_the_seeds(sampling):
    """The same for a seed, a prefix where the training is shorter (so not of the batch)."""
    order = image_order(50, 300, sampling, 4)
    assert np.array_equal(order, image_order(50, 300, sampling, 4))
    assert np.array_equal(order[:123], image_order(50, 123, sampling, 4))
    assert not np.array_equal(order, image_order(50, 300, sampling, 5))


# ------------------------------------------------------------------------------------------ groups


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([(500, 375), (375, 500), (1400, 1000), (40, 56)]), max_size=24),
    st.integers(0, 1000),
)
def test_groups_are_a_partition_by_size(sizes, start):
    positions = range(start, start + len(sizes))
    groups = groups_of_update(positions, sizes)
    assert sorted(p for group in groups for p in group) == list(positions)
    for group in groups:
        assert group == sorted(group)
        (size,) = {sizes[p - start] for p in group}
        assert len(group) == 1 or len(group) * size[0] * size[1] <= GROUP_PIXELS
    by_size: dict[tuple[int, int], int] = {}
    for group in groups:  # no more groups than the pixels ask for
        by_size[sizes[group[0] - start]] = by_size.get(sizes[group[0] - start], 0) + 1
    for size, count in by_size.items():
        room = max(1, GROUP_PIXELS // (size[0] * size[1]))
        assert count == -(-sizes.count(size) // room)


def test_a_group_may_have_as_many_pixels_as_are_allowed():
    assert groups_of_update(range(5), [(1024, GROUP_PIXELS // 2048)] * 5) == [[0, 1], [2, 3], [4]]


# ------------------------------------------------------------------------------- mirror and jitter


class Marked:
    """Images whose pixels say where they were: red the row, green the column; labels their sum."""

    inputs: tuple[str, ...] = ("image",)
    labels = ("semantic",)

    def __init__(self, height=12, width=17):
        self.height, self.width = height, width
        self.sizes = [(height, width)]

    def __getitem__(self, i):
        rows = torch.arange(self.height)[:, None].expand(-1, self.width)
        columns = torch.arange(self.width).expand(self.height, -1)
        image = torch.stack([rows, columns, torch.full_like(rows, i)]).to(torch.uint8)
        return {"id": str(i), "image": image, "semantic": (rows + columns).to(torch.uint8)}


def changed(images, count=300, seed=7, **change):
    return AugmentedSet(images, np.zeros(count, np.int64), seed, **change)


def test_mirror_takes_image_and_label_alike():
    stream, mirrored = changed(Marked(), mirror=True), 0
    for position in range(300):
        item = stream[position]
        row, column = item["image"][0].int(), item["image"][1].int()
        assert torch.equal(row + column, item["semantic"].int())
        flipped = column[0, 0] == 16
        mirrored += int(flipped)
        assert torch.equal(column[0], torch.arange(17).flip(0) if flipped else torch.arange(17))
    assert abs(mirrored - 150) < 5 * sqrt(300) / 2


def test_jitter_takes_image_and_label_alike():
    stream, seen = changed(Marked(), jitter=3), set()
    for position in range(300):
        item = stream[position]
        row, column = item["image"][0].int(), item["image"][1].int()
        inside = item["semantic"] != VOID
        assert torch.equal((row + column)[inside], item["semantic"].int()[inside])
        # What came in repeats the border in the image and is void in the label.
        down, right = int(6 - row[6, 8]), int(8 - column[6, 8])
        seen.add((down, right))
        assert int(inside.sum()) == (12 - abs(down)) * (17 - abs(right))
        assert torch.equal(row[:, 0], (torch.arange(12) - down).clamp(0, 11).int())
        assert torch.equal(column[0], (torch.arange(17) - right).clamp(0, 16).int())
    assert seen == {(i, j) for i in range(-3, 4) for j in range(-3, 4)}


def test_changes_are_of_seed_and_position_alone():
    images = Marked()
    one = changed(images, mirror=True, jitter=4, keep=0.5, cells=(4, 1.5))
    again = changed(images, mirror=True, jitter=4, keep=0.5, cells=(4, 1.5))
    for position in (17, 3, 17, 250):
        for key in ("image", "semantic"):
            assert torch.equal(one[position][key], again[position][key])
    other = changed(images, seed=8, mirror=True, jitter=4)
    assert any(not torch.equal(one[p]["image"], other[p]["image"]) for p in range(20))
    assert len({one[p]["semantic"].numpy().tobytes() for p in range(20)}) > 15


@pytest.mark.parametrize(
    "change",
    [{"mirror": True}, {"jitter": 4}, {"keep": 0.5, "cells": (4, 1.5)}, {"scale": (0.5, 2)}],
)
def test_every_change_is_the_seeds(change):
    one, other = (changed(Marked(), 20, seed, **change) for seed in (7, 8))
    items = [[stream[p]["semantic"].numpy() for p in range(20)] for stream in (one, other)]
    assert any(not np.array_equal(*pair) for pair in zip(*items, strict=True))


def test_without_changes_it_is_the_image():
    item = changed(Marked())[3]
    for key in ("image", "semantic"):
        assert torch.equal(item[key], Marked()[0][key])


@settings(max_examples=40, deadline=None)
@given(st.integers(-9, 9), st.integers(-9, 9))
def test_moved_is_a_translation(down, right):
    label = torch.arange(30, dtype=torch.uint8).view(5, 6)
    found = moved(label, down, right, VOID)
    for i in range(5):
        for j in range(6):
            inside = 0 <= i - down < 5 and 0 <= j - right < 6
            assert found[i, j] == (label[i - down, j - right] if inside else VOID)


# ---------------------------------------------------------------------------------- patch sampling


@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, 200),
    st.sampled_from([4, 8, 16, 32]),
    st.integers(-40, 60).map(lambda v: v / 2),
)
def test_a_pixel_belongs_to_the_nearest_cell(size, stride, start):
    cells = cell_of_pixels(size, stride, start)
    assert cells[0] == 0 and set(np.diff(cells)) <= {0, 1}
    first = int(np.floor((0 - start) / stride + 0.5))
    centres = start + stride * (cells + first)
    assert (np.abs(np.arange(size) - centres) <= stride / 2).all()


@pytest.mark.parametrize("architecture", ["vgg16", "googlenet"])
def test_patches_are_whole_cells_of_the_final_layer(architecture):
    net = {**NET_DEFAULTS, "architecture": architecture, "width": 0.02, "hidden": 4}
    cells = build(net, {"semantic": 2}).head("semantic").cells
    stride, start = int(cells.stride), float(cells.start)
    stream = changed(Marked(130, 117), keep=0.5, cells=(stride, start))
    centres = [c for c in start + stride * np.arange(-20, 20) if -stride / 2 < c < 130]
    for position in range(3):
        kept = stream[position]["semantic"] != VOID
        # All pixels nearest to one centre share one fate, whatever happens beside them.
        fates = set()
        for y in centres:
            for x in centres:
                rows = [r for r in range(130) if abs(r - y) < stride / 2]
                columns = [c for c in range(117) if abs(c - x) < stride / 2]
                if rows and columns:
                    patch = kept[rows][:, columns]
                    assert patch.all() or not patch.any()
                    fates.add(bool(patch.all()))
        assert fates == {True, False}


@pytest.mark.parametrize("keep", [0.5, 0.25, 0.9])
def test_about_p_of_the_cells_stay(keep):
    """A binomial count, within five standard deviations; cells are drawn one by one."""
    stream = changed(Marked(40, 60), keep=keep, cells=(4, 1.5))
    kept = np.stack([(stream[p]["semantic"] != VOID)[1::4, 1::4].numpy() for p in range(100)])
    n = kept.size
    assert abs(kept.sum() - keep * n) < 5 * sqrt(n * keep * (1 - keep))
    same = (kept[:, :, 1:] == kept[:, :, :-1]).mean()  # neighbours agree as independent ones do
    expected = keep**2 + (1 - keep) ** 2
    assert abs(same - expected) < 5 * sqrt(expected * (1 - expected) / n)


def test_void_stays_void_and_nothing_else_changes(data_dir):
    images = SegmentationSet(data_dir / "prepared" / "tiny", "train")
    stream = AugmentedSet(images, np.arange(8), 0, keep=0.5, cells=(8, 3.5))
    for i in range(8):
        before, after = images[i], stream[i]
        assert torch.equal(before["image"], after["image"])
        differs = before["semantic"] != after["semantic"]
        assert (after["semantic"][differs] == VOID).all()
        assert after["semantic"].dtype == torch.uint8


# ----------------------------------------------------------------------------------------- loading


def test_workers_change_nothing(data_dir):
    images = SegmentationSet(data_dir / "prepared" / "tiny", "train")
    order = image_order(8, 16, "epochs", 3)
    stream = AugmentedSet(images, order, 3, mirror=True, jitter=5, keep=0.5, cells=(8, 3.5))
    groups = [
        group
        for start in range(0, 16, 4)
        for group in groups_of_update(
            range(start, start + 4), [images.sizes[i] for i in order[start : start + 4]]
        )
    ]
    state = torch.get_rng_state()
    alone, helped = (list(loader(stream, groups, workers, False)) for workers in (0, 2))
    assert torch.equal(state, torch.get_rng_state())  # dropout goes on as if nothing was loaded
    assert len(alone) == len(helped) == len(groups)
    for group, one, other in zip(groups, alone, helped, strict=True):
        assert one["id"] == other["id"] == [images.ids[order[p]] for p in group]
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["semantic"], other["semantic"])
        assert one["image"].shape[0] == len(group)


@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_wrong_with_an_image_is_one_sentence(workers):
    """A worker's exception would come back with its traceback as the text."""

    class Broken(Marked):
        def __getitem__(self, index):
            if index == 2:
                raise UserError("b.jpg: not readable; fetch it again.")
            return super().__getitem__(index)

    images: Any = Broken(4, 6)
    stream = AugmentedSet(images, np.arange(4), 0)
    batches = loader(stream, [[0], [1, 2], [3]], workers, False)
    assert len(next(batches)["id"]) == 1
    with pytest.raises(UserError) as caught:
        next(batches)
    assert str(caught.value) == "b.jpg: not readable; fetch it again."


def test_a_killed_process_is_told_in_the_words_that_are_known():
    """``fcn.__main__`` makes a sentence of them."""

    class Killed(Marked):
        def __getitem__(self, index):
            if index == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__getitem__(index)

    images: Any = Killed(4, 6)
    batches = loader(AugmentedSet(images, np.arange(4), 0), [[0], [1], [2], [3]], 1, False)
    with pytest.raises(RuntimeError, match=r"^DataLoader worker .*(killed|exited)"):
        list(batches)


# ------------------------------------------------------------------------------------------- scale


def test_scale_resizes_image_and_label_alike_to_the_size_that_was_told(data_dir):
    images = SegmentationSet(data_dir / "prepared" / "tiny", "train")
    order = image_order(len(images), 12, "replacement", 0)
    plain = AugmentedSet(images, order, 5)
    stream = AugmentedSet(images, order, 5, scale=(0.5, 2.0))
    seen = set()
    for position in range(12):
        item, native = stream[position], plain[position]
        size = stream.size(position)
        assert tuple(item["image"].shape[1:]) == tuple(item["semantic"].shape) == size
        assert item["image"].dtype == item["semantic"].dtype == torch.uint8
        factor = size[0] / native["image"].shape[1]
        assert 0.48 < factor < 2.05
        assert set(item["semantic"].unique().tolist()) <= set(native["semantic"].unique().tolist())
        assert abs(item["image"].float().mean() - native["image"].float().mean()) < 4
        seen.add(size)
        assert torch.equal(item["image"], stream[position]["image"])
    marked = changed(Marked(40, 56), 40, scale=(0.5, 2.0))
    biases = []
    for position in range(40):
        item = marked[position]
        sums = item["image"][:2].float().sum(0)  # row and column, of which the label is the sum
        inner = (slice(2, -2), slice(2, -2))  # at the border the filter of the image is one-sided
        assert (sums - item["semantic"].float())[inner].abs().max() <= 3
        biases.append(float((sums - item["semantic"].float())[inner].mean()))
    assert abs(np.mean(biases)) < 0.15 and max(map(abs, biases)) < 1
    assert len(seen) > 6
    assert plain.size(0) == tuple(plain[0]["semantic"].shape)


def test_scale_invents_no_depth_at_holes():
    class Deep(Marked):
        inputs = ("image", "depth")

        def __getitem__(self, i):
            depth = torch.full((1, self.height, self.width), 3000.0)
            depth[:, :, ::3] = 0
            return {**super().__getitem__(i), "depth": depth}

    for position in range(12):
        item = changed(Deep(), 12, scale=(0.5, 2.0))[position]
        assert set(item["depth"].unique().tolist()) <= {0.0, 3000.0}


# ------------------------------------------------------------------------------------------- canvas


def test_canvas_adds_void_below_and_right_and_nothing_else(data_dir):
    images = SegmentationSet(data_dir / "prepared" / "tiny", "train")
    order = image_order(len(images), 12, "replacement", 0)
    options: dict[str, Any] = {"mirror": True, "jitter": 4, "keep": 0.5}
    plain = AugmentedSet(images, order, 5, **options)
    stream = AugmentedSet(images, order, 5, **options, canvas=32)
    for position in range(12):
        item, native = stream[position], plain[position]
        height, width = native["semantic"].shape
        assert stream.size(position) == tuple(item["semantic"].shape) == (64, 64)
        assert item["extent"].tolist() == [height, width]
        for key in ("image", "semantic"):
            assert torch.equal(item[key][..., :height, :width], native[key])
        assert (item["semantic"][height:] == VOID).all()
        assert (item["semantic"][:, width:] == VOID).all()
    both = AugmentedSet(images, order, 5, scale=(0.5, 2.0), canvas=16)
    for position in range(12):
        size = both.size(position)
        assert size[0] % 16 == size[1] % 16 == 0
        assert tuple(both[position]["image"].shape[1:]) == size


def test_a_smaller_image_is_the_mean_of_what_it_stands_for():
    lines = torch.zeros(3, 16, 16, dtype=torch.uint8)
    lines[..., ::4] = 255  # bilinear at the new pixels' centres would miss them all
    small = resized(lines, (4, 4), nearest=False)
    assert small.dtype == torch.uint8 and (small[..., 1:-1].float() - 64).abs().max() <= 1


def test_what_jitter_brings_in_is_void_in_every_label_set(data_dir):
    images = SegmentationSet(data_dir / "prepared/tiny", "val", labels=("semantic", "geometric"))
    item = AugmentedSet(images, np.zeros(300, np.int64), 7, jitter=3)[0]
    assert item["semantic"].shape == item["geometric"].shape
    for edge in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
        void = [bool((item[key][edge] == VOID).all()) for key in ("semantic", "geometric")]
        assert void[0] == void[1]
    assert (item["geometric"] == VOID).sum() > (images[0]["geometric"] == VOID).sum()
