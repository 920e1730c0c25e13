"""Upper bounds: label maps whose bound is known by hand, and the files that labels come in."""

import shutil
import tarfile

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import fcn.bounds
from fcn.__main__ import main
from fcn.bounds import (
    FACTORS,
    METHODS,
    VOIDS,
    Truth,
    bounds,
    bounds_of_folder,
    mean_iu,
    reduced_size,
    upper_bounds,
)
from fcn.data.labels import write_label
from fcn.errors import UserError
from fcn.files import read_json, write_json

VOID = 255
ALL = [(method, void) for method in METHODS for void in VOIDS]

labels = st.tuples(st.integers(1, 40), st.integers(1, 40)).flatmap(
    lambda size: arrays(np.uint8, size, elements=st.sampled_from([0, 0, 1, 2, VOID]))
)


@settings(max_examples=30, deadline=None)
@given(labels)
def test_at_factor_one_nothing_is_lost(label):
    if (label == VOID).all():
        return
    _, found = upper_bounds([label], 3, (1,))
    assert found == {f"{m}, {v}": {"1": 1.0} for m, v in ALL}


def plain(label, classes, factor, method, void):
    """One map for every class and one for void; the shares and the winner (of equals the first)."""
    down, up = method.split(", ")
    background = void == "void as background"
    index = np.where(label == VOID, 0 if background else classes, label)
    maps = torch.from_numpy(np.eye(classes + 1, dtype=np.float32)[index]).permute(2, 0, 1)[None]
    size = tuple(max(1, round(n / factor)) for n in label.shape)
    if down in ("area", "majority"):
        maps = F.adaptive_avg_pool2d(maps, size)
    elif down == "nearest":
        maps = F.interpolate(maps, size, mode="nearest-exact")
    else:
        maps = F.interpolate(maps, size, mode="bilinear", antialias=True)
    if void == "void left out":
        maps = maps[:, :classes]
    if down == "majority":
        maps = torch.eye(maps.shape[1])[maps.argmax(1)].permute(0, 3, 1, 2)
    mode = "nearest-exact" if up == "nearest" else "bilinear"
    return F.interpolate(maps, label.shape, mode=mode)[0].argmax(0)


def resampled(label: np.ndarray, classes: int, factor: int, method: str, void: str) -> torch.Tensor:
    """The truth reduced by ``factor`` and enlarged again, as `upper_bounds` does."""
    down, up = method.split(", ")
    truth = Truth(label, classes, void)
    return truth.enlarged(truth.reduced(factor, down), up)


@settings(max_examples=60, deadline=None)
@given(labels, st.sampled_from((*FACTORS, 2, 3)), st.sampled_from(ALL))
def test_every_method_is_the_plain_computation(label, factor, how):
    label[0, 0] = 0  # where nothing has a vote, the first label that there is wins: here class 0
    found = resampled(label, 3, factor, *how)
    assert found.shape == label.shape
    np.testing.assert_array_equal(found, plain(label, 3, factor, *how))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.sampled_from([0, 2]), st.sampled_from(FACTORS))
def test_one_class_alone_survives_everything(height, width, k, factor):
    label = np.full((height, width), k, np.uint8)
    _, found = upper_bounds([label], 3, (factor,))
    assert {value for by_factor in found.values() for value in by_factor.values()} == {1.0}


def test_blocks_of_the_factor_are_kept_by_the_nearest_and_majority_methods():
    label = np.kron([[0, 1, 1], [2, 0, VOID]], np.ones((4, 4))).astype(np.uint8)
    _, found = upper_bounds([label], 3, (4,))
    for method in ("nearest, nearest", "majority, nearest"):
        assert found[f"{method}, void kept"]["4"] == 1.0
        assert found[f"{method}, void left out"]["4"] == 1.0  # what is there is void in the truth


def test_by_hand_majority():
    """2x2 cells of a 4x4 map: the second has a lone pixel, which is lost."""
    label = np.array([[0, 0, 1, 1], [0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]], np.uint8)
    found = resampled(label, 2, 2, "majority, nearest", "void kept")
    expected = np.array([[0, 0, 1, 1]] * 2 + [[0] * 4] * 2)
    np.testing.assert_array_equal(found, expected)
    _, by_method = upper_bounds([label], 2, (2,))
    # class 0: 12 of 13 kept, union 13; class 1: 3 right, union 4
    assert by_method["majority, nearest, void kept"]["2"] == pytest.approx(
        (12 / 13 + 3 / 4) / 2, rel=1e-12
    )


def test_by_hand_nearest():
    """Cells of 3 take the pixel in their middle."""
    label = np.array([[0, 1, 0, 0, 0, 2]] * 3, np.uint8)
    found = resampled(label, 3, 3, "nearest, nearest", "void kept")
    np.testing.assert_array_equal(found, [[1, 1, 1, 0, 0, 0]] * 3)


def test_by_hand_bilinear():
    """Two cells of two pixels: shares 1, 3/4, 1/4, 0; the larger wins, so the border stays."""
    label = np.array([[0, 0, 1, 1]], np.uint8)
    for method in ("nearest, bilinear", "majority, bilinear", "area, bilinear"):
        found = resampled(label, 2, 2, method, "void kept")
        np.testing.assert_array_equal(found, label)


@pytest.mark.parametrize(
    "void, wins", [("void kept", 3), ("void left out", 2), ("void as background", 0)]
)
def test_a_cell_of_more_void_than_class(void, wins):
    label = np.array([[VOID, VOID, 1, 1], [VOID, 2, 1, 1]], np.uint8)
    found = resampled(label, 3, 2, "majority, nearest", void)
    np.testing.assert_array_equal(found, [[wins, wins, 1, 1]] * 2)
    _, bound = upper_bounds([label], 3, (2,))
    # class 1 is whole; class 2 is, or is missed; class 0 is nowhere in the truth, but perhaps found
    expected = {3: (1 + 0) / 2, 2: 1.0, 0: (1 + 0 + 0) / 3}[wins]
    assert bound[f"majority, nearest, {void}"]["2"] == pytest.approx(expected, rel=1e-12)


def test_a_pixel_that_comes_out_void_counts_in_its_class_alone():
    counts = torch.tensor([[3, 1, 2], [0, 4, 0]])  # last column: came out void
    assert mean_iu(counts) == pytest.approx((3 / 6 + 4 / 5) / 2, rel=1e-12)
    assert mean_iu(torch.tensor([[3, 0, 0], [0, 0, 0]])) == 1.0  # a class that is nowhere


def test_images_are_counted_together():
    """One confusion matrix of all images, not a mean of means."""
    first, second = np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8)
    second[0, 0] = 1
    images, found = upper_bounds([first, second], 2, (4,))
    assert images == 2
    assert found["majority, nearest, void kept"]["4"] == pytest.approx((31 / 32 + 0) / 2)


def test_reduced_size():
    assert [reduced_size(500, f) for f in FACTORS] == [4, 8, 16, 31, 62, 125]
    assert reduced_size(3, 128) == 1


def test_finer_is_better_on_real_shapes(data_dir, tmp_path):
    found = bounds("tiny", "val", data_dir, tmp_path)
    assert found == read_json(tmp_path / "tiny" / "bounds.json")
    assert (found["dataset"], found["split"], found["images"], found["subset"]) == (
        "tiny", "val", 4, False,
    )  # fmt: skip
    assert set(found["methods"]) == {f"{m}, {v}" for m, v in ALL}
    for by_factor in found["methods"].values():
        assert list(by_factor) == [str(f) for f in FACTORS]
        assert 0 < by_factor["128"] < by_factor["8"] < by_factor["4"] < 1


# ------------------------------------------------------------------------------------------- files


def write_labels(folder, count=3):
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i in range(count):
        label = rng.choice([0, 1, VOID], (9 + i, 11)).astype(np.uint8)
        write_label(folder / f"{i}.png", label)


def test_folder_and_tar_agree(tmp_path):
    write_labels(tmp_path / "labels")
    with tarfile.open(tmp_path / "labels.tgz", "w:gz") as archive:
        archive.add(tmp_path / "labels", "some/place")
        archive.add(__file__, "README.txt")
    results = [
        bounds_of_folder(tmp_path / name, 2, VOID, "own", "all", tmp_path / "r" / name)
        for name in ("labels", "labels.tgz")
    ]
    assert results[0]["images"] == 3
    assert results[0]["methods"] == results[1]["methods"]


@pytest.mark.parametrize("split", ["all", "part"])
def test_two_labels_of_an_image_are_told(tmp_path, monkeypatch, split):
    """As in VOC's own archive, which has those of classes and of objects."""
    write_labels(tmp_path / "labels")
    monkeypatch.setattr(fcn.bounds, "CONFIG", tmp_path)
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits/part.txt").write_text("1\n")
    with tarfile.open(tmp_path / "labels.tar", "w") as archive:
        for folder in ("SegmentationClass", "SegmentationObject"):
            archive.add(tmp_path / "labels/1.png", f"VOC/{folder}/1.png")
    told = r"labels\.tar: VOC/SegmentationClass/1\.png and VOC/SegmentationObject/1\.png are both"
    with pytest.raises(UserError, match=f"{told} labels of image 1; give a folder or tar"):
        bounds_of_folder(tmp_path / "labels.tar", 2, VOID, "own", split, tmp_path / "r")
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
@pytest.mark.parametrize("target", ["0.png", "nowhere.png", "link.png"])
def test_a_link_in_a_tar_is_told(tmp_path, kind, target):
    write_labels(tmp_path / "labels")
    link = tarfile.TarInfo("some/link.png")
    link.type, link.linkname = kind, target
    folder = tarfile.TarInfo("some/folder.png")
    folder.type = tarfile.DIRTYPE
    with tarfile.open(tmp_path / "labels.tar", "w") as archive:
        archive.add(tmp_path / "labels", "some")
        archive.addfile(folder)
        archive.addfile(link)
    with pytest.raises(UserError, match=r"labels\.tar: some/link\.png is a link or no file; pack"):
        bounds_of_folder(tmp_path / "labels.tar", 2, VOID, "own", "all", tmp_path / "r")


def test_a_listed_split_is_taken_alone_and_whole(tmp_path, monkeypatch):
    write_labels(tmp_path / "labels", 4)
    with tarfile.open(tmp_path / "labels.tar", "w") as archive:
        archive.add(tmp_path / "labels", "some/place")
    monkeypatch.setattr(fcn.bounds, "CONFIG", tmp_path)
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits/part.txt").write_text("0\n2\n")
    for name in ("labels", "labels.tar"):
        options = (2, VOID, "own", "part", tmp_path / "r")
        assert bounds_of_folder(tmp_path / name, *options)["images"] == 2
        (tmp_path / "splits/part.txt").write_text("0\n2\n7\n")
        with pytest.raises(UserError, match=r"lacks the labels of 1 of the 3 .* such as 7\.png"):
            bounds_of_folder(tmp_path / name, *options)
        (tmp_path / "splits/part.txt").write_text("0\n2\n")


def test_labels_of_void_alone_have_no_bound(tmp_path):
    (tmp_path / "labels").mkdir()
    write_label(tmp_path / "labels/a.png", np.full((8, 8), VOID, np.uint8))
    with pytest.raises(UserError, match="every pixel of the label maps is void"):
        bounds_of_folder(tmp_path / "labels", 2, VOID, "own", "all", tmp_path / "r")


def run(tmp_path, place, *options):
    return main(
        ["bounds", "own", "all", "--labels", str(place), "--results", str(tmp_path / "results")]
        + list(options)
    )


@pytest.mark.parametrize(
    "damage, options, message",
    [
        ("", [], "give the number of classes with --classes"),
        ("missing", ["--classes", "2"], "missing: neither a folder nor a readable tar"),
        ("empty", ["--classes", "2"], "there is no label map"),
        ("text", ["--classes", "2"], "text: neither a folder nor a readable tar"),
        ("cut", ["--classes", "2"], "cut: neither a folder nor a readable tar"),
        ("whole", ["--classes", "1"], "whole: place/0.png: label value 1"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, capsys, damage, options, message):
    write_labels(tmp_path / "labels")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("labels")
    with tarfile.open(tmp_path / "whole", "w:gz") as archive:
        archive.add(tmp_path / "labels", "place")
    content = (tmp_path / "whole").read_bytes()
    (tmp_path / "cut").write_bytes(content[: len(content) // 2])
    assert run(tmp_path, tmp_path / (damage or "labels"), *options) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("how", ALL, ids=", ".join)
def test_every_method_where_cells_hold_several_labels(how):
    """Drawn arrays are of one label almost everywhere, and of many sizes one cell is left."""
    label = np.random.default_rng(0).choice([0, 1, 2, VOID], (23, 31), p=[0.4, 0.3, 0.2, 0.1])
    label = label.astype(np.uint8)
    label[0, 0] = 0
    for factor in (2, 3, 4, 8):
        found = resampled(label, 3, factor, *how)
        np.testing.assert_array_equal(found, plain(label, 3, factor, *how))


def test_the_value_of_void_is_that_of_the_files(tmp_path):
    (tmp_path / "labels").mkdir()
    write_label(tmp_path / "labels/a.png", np.repeat(np.arange(3, dtype=np.uint8), 4)[None])
    with tarfile.open(tmp_path / "labels.tar", "w") as archive:
        archive.add(tmp_path / "labels", "place")
    for name in ("labels", "labels.tar"):
        found = bounds_of_folder(tmp_path / name, 2, 2, "own", "all", tmp_path / "r")
        assert found["methods"]["nearest, nearest, void left out"]["4"] == 1.0


def test_a_subset_is_passed_on(data_dir, tmp_path):
    shutil.copytree(data_dir, tmp_path / "own")
    info = tmp_path / "own/prepared/tiny/dataset.json"
    write_json(info, {**read_json(info), "subset": True})
    assert bounds("tiny", "val", tmp_path / "own", tmp_path)["subset"] is True
