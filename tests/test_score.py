"""Scoring folders of label PNGs: the numbers, the formats, and every way to get it wrong."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from fcn.__main__ import main
from fcn.data.labels import voc_palette
from fcn.errors import UserError
from fcn.metrics import scores
from fcn.score import score_folders

METRICS = ("pixel_accuracy", "mean_accuracy", "mean_iu", "frequency_weighted_iu", "per_class_iu")


def save(path, array, mode="L"):
    path.parent.mkdir(exist_ok=True)
    image = Image.fromarray(np.asarray(array, np.uint8))
    if mode == "P":
        image.putpalette(list(range(256)) * 3)
    image.save(path)


@pytest.fixture
def folders(tmp_path):
    save(tmp_path / "truth/a.png", [[0, 1], [255, 1]])
    save(tmp_path / "truth/b.png", [[2, 2, 0]], "P")
    save(tmp_path / "pred/a.png", [[0, 1], [0, 0]], "P")
    save(tmp_path / "pred/b.png", [[2, 0, 0]])
    return tmp_path / "truth", tmp_path / "pred"


def test_colours_beyond_the_classes_are_somebodys_own(folders):
    """As CamVid's: four of VOC's colours, of which one is that of VOC's class 7."""
    before = score(folders)
    image = Image.fromarray(np.array([[0, 1], [0, 0]], np.uint8))
    image.putpalette(voc_palette()[[7, 1]].tobytes())
    image.save(folders[1] / "a.png")
    assert score(folders) == before
    image.putpalette(voc_palette()[[3, 1]].tobytes())
    image.save(folders[1] / "a.png")
    with pytest.raises(UserError, match=r"pred/a\.png: its palette was re-ordered"):
        score(folders)


def score(folders, classes=4, void=255):
    return score_folders(folders[0], folders[1], classes, void)


def test_by_hand(folders):
    found = score(folders)
    assert found["images"] == 2 and found["void"] == 255 and found["classes"] == 4
    assert found["per_class_iu"] == [0.5, 0.5, 0.5, None]
    assert found["mean_iu"] == found["frequency_weighted_iu"] == 0.5
    assert found["pixel_accuracy"] == 4 / 6
    assert found["mean_accuracy"] == pytest.approx((1 + 0.5 + 0.5) / 3, rel=1e-15)


@settings(max_examples=25, deadline=None)
@given(
    pairs=st.lists(
        st.tuples(st.integers(1, 6), st.integers(1, 6)).flatmap(
            lambda size: st.tuples(
                arrays(np.uint8, size, elements=st.sampled_from([0, 1, 2, 11])),
                arrays(np.uint8, size, elements=st.integers(0, 2)),
            )
        ),
        min_size=1,
        max_size=3,
    )
)
def test_equals_the_counts_of_pixels(tmp_path_factory, pairs):
    folder = tmp_path_factory.mktemp("score")
    matrix = np.zeros((3, 3), np.int64)
    for k, (truth, pred) in enumerate(pairs):
        save(folder / f"truth/{k}.png", truth, "P")
        save(folder / f"pred/{k}.png", pred)
        for t, p in zip(truth.ravel(), pred.ravel(), strict=True):
            if t != 11:
                matrix[t, p] += 1
    found = score_folders(folder / "truth", folder / "pred", classes=3, void=11)
    expected = scores(matrix)
    assert {name: found[name] for name in METRICS} == {m: getattr(expected, m) for m in METRICS}


def test_the_truth_scores_one_even_with_void_in_it(folders):
    found = score_folders(folders[0], folders[0], classes=3)
    assert found["per_class_iu"] == [1.0, 1.0, 1.0] and found["mean_accuracy"] == 1.0


def test_void_only_is_none(tmp_path):
    save(tmp_path / "truth/a.png", [[255]])
    save(tmp_path / "pred/a.png", [[0]])
    found = score_folders(tmp_path / "truth", tmp_path / "pred", classes=2)
    assert found["mean_iu"] is None and found["per_class_iu"] == [None, None]


def test_predictions_without_a_truth_are_named(folders, capsys):
    save(folders[1] / "stray.png", [[9]])
    expected = score(folders)
    assert "stray" in capsys.readouterr().err
    (folders[1] / "stray.png").unlink()
    assert score(folders) == expected
    assert capsys.readouterr().err == ""


def colour(truth, pred):
    Image.fromarray(np.zeros((1, 3, 3), np.uint8)).save(pred / "b.png")


def cut(truth, pred):
    content = (pred / "b.png").read_bytes()
    (pred / "b.png").write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda t, p: (p / "b.png").unlink(), ["b.png", "missing"]),
        (lambda t, p: save(p / "b.png", [[0, 0]]), ["b.png", "2x1", "3x1"]),
        (lambda t, p: save(p / "b.png", [[0, 4, 9]]), ["b.png", "4, 9", "0 to 3"]),
        (lambda t, p: save(p / "b.png", [[255, 0, 0]]), ["b.png", "255"]),
        (lambda t, p: save(t / "b.png", [[7, 0, 0]]), ["truth", "b.png", "7"]),
        (lambda t, p: (p / "b.png").write_bytes(b"<html>"), ["b.png"]),
        (cut, ["b.png"]),
        (colour, ["b.png", "colour"]),
        (lambda t, p: [f.unlink() for f in t.iterdir()], ["--truth", "no PNG"]),
        (lambda t, p: [f.unlink() for f in p.iterdir()], ["--pred", "no PNG"]),
        (lambda t, p: t.rename(t.with_name("gone")), ["--truth", "no such folder"]),
    ],
)
def test_what_is_wrong_is_said(folders, spoil, words):
    spoil(*folders)
    with pytest.raises(UserError) as error:
        score(folders)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("limit", [3, 2], ids=["warning", "error"])
def test_huge_images_are_told(folders, limit, monkeypatch):
    save(folders[0] / "a.png", [[0] * 5])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(UserError, match=f"a.png: an image of more than {limit} pixels"):
        score(folders)


def test_colours_are_to_be_converted(folders):
    colour(*folders)
    with pytest.raises(UserError, match="convert the label images to class indices") as error:
        score(folders)
    assert "data set" not in str(error.value)


@pytest.mark.parametrize("options", [{"classes": 0}, {"classes": 256}, {"void": 256}])
def test_options_out_of_range(folders, options):
    with pytest.raises(UserError, match="--"):
        score(folders, **options)


def run(folders, *more):
    options = ["--truth", str(folders[0]), "--pred", str(folders[1]), "--classes", "4", *more]
    assert main(["score", *options]) == 0


def test_json(folders, capsys):
    run(folders, "--json")
    found = json.loads(capsys.readouterr().out)
    assert found == score(folders)
    assert set(METRICS) < set(found) and found["per_class_iu"][3] is None


def test_table(folders, capsys):
    run(folders)
    lines = [line.rsplit(None, 1) for line in capsys.readouterr().out.splitlines()]
    assert dict(lines) == {
        "images": "2",
        "pixel accuracy": "66.67%",
        "mean accuracy": "66.67%",
        "mean IU": "50.00%",
        "frequency-weighted IU": "50.00%",
        "IU of class 0": "50.00%",
        "IU of class 1": "50.00%",
        "IU of class 2": "50.00%",
        "IU of class 3": "-",
    }


def test_as_many_classes_as_void_leaves_room_for(folders):
    assert score(folders, classes=255)["classes"] == 255


@pytest.mark.parametrize("void", [0, 1, 2, 3])
def test_void_is_a_value_of_the_truth_alone(tmp_path, void):
    save(tmp_path / "truth/a.png", [[0, 1, 2]] * 3)
    save(tmp_path / "pred/a.png", [[0] * 3, [1] * 3, [2] * 3])
    matrix = np.ones((3, 3), np.int64)
    matrix[void : void + 1] = 0
    found = score_folders(tmp_path / "truth", tmp_path / "pred", classes=3, void=void)
    assert {m: found[m] for m in METRICS} == {m: getattr(scores(matrix), m) for m in METRICS}


def test_an_extension_in_capitals_is_one_too(folders):
    expected = score(folders)
    for folder in folders:
        (folder / "b.png").rename(folder / "b.PNG")
    assert score(folders) == expected
