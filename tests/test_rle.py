"""Predictions survive the round trip through COCO's run-length encoding."""

import gzip
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools.coco import COCO

from fcn.errors import UserError
from fcn.rle import decode_prediction, encode_prediction, read_predictions, write_predictions

labels = st.tuples(st.integers(1, 12), st.integers(1, 12)).flatmap(
    lambda size: arrays(np.uint8, size, elements=st.sampled_from([0, 1, 2, 20, 254, 255]))
)


def by_hand(code, size):
    """Decode COCO's compressed counts as its format says: base-48 digits, runs down columns."""
    counts: list[int] = []
    position, text = 0, code["counts"]
    while position < len(text):
        value, shift, more = 0, 0, True
        while more:
            digit = ord(text[position]) - 48
            value |= (digit & 31) << shift
            more, shift, position = bool(digit & 32), shift + 5, position + 1
            if not more and digit & 16:
                value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
    flat = np.concatenate([np.full(n, k % 2, np.uint8) for k, n in enumerate(counts)])
    return flat.reshape(size[::-1]).T


@settings(deadline=None)
@given(label=labels)
def test_round_trip(label):
    entries = encode_prediction("2007_000032", label)
    assert [entry["category_id"] for entry in entries] == sorted(set(label.ravel().tolist()))
    np.testing.assert_array_equal(decode_prediction(entries, label.shape), label)
    for entry in entries:
        expected = (label == entry["category_id"]).astype(np.uint8)
        np.testing.assert_array_equal(by_hand(entry["segmentation"], label.shape), expected)
    assert decode_prediction(json.loads(json.dumps(entries)), label.shape).dtype == np.uint8


@settings(max_examples=20, deadline=None)
@given(many=st.lists(labels, max_size=4))
def test_files_round_trip(tmp_path_factory, many):
    path = tmp_path_factory.mktemp("predictions") / "predictions.json.gz"
    images = [
        {"id": k, "height": label.shape[0], "width": label.shape[1]} for k, label in enumerate(many)
    ]
    categories = [{"id": 0, "name": "background"}]
    entries = [entry for k, label in enumerate(many) for entry in encode_prediction(k, label)]
    write_predictions(path, iter(entries), images, categories)
    found = read_predictions(path)
    assert found == {"images": images, "categories": categories, "annotations": entries}
    for image, label in zip(found["images"], many, strict=True):
        own = [entry for entry in found["annotations"] if entry["image_id"] == image["id"]]
        size = (image["height"], image["width"])
        np.testing.assert_array_equal(decode_prediction(own, size), label)


def test_equal_input_gives_equal_bytes(tmp_path):
    entries = encode_prediction("a", np.arange(12, dtype=np.uint8).reshape(3, 4))
    for name in ("one", "two"):
        write_predictions(tmp_path / name / "p.json.gz", entries, [], [])
    one = (tmp_path / "one/p.json.gz").read_bytes()
    assert one == (tmp_path / "two/p.json.gz").read_bytes()
    assert one[3:8] == bytes(5)  # gzip's flags and time: no file name, no clock


def test_the_coco_api_reads_it(tmp_path, capsys):
    label = np.array([[0, 1], [1, 1]], np.uint8)
    images = [{"id": "a", "height": 2, "width": 2}]
    entries = encode_prediction("a", label)
    write_predictions(
        tmp_path / "p.json.gz", entries, images, [{"id": k, "name": str(k)} for k in range(2)]
    )
    found = read_predictions(tmp_path / "p.json.gz")
    truth = COCO()
    truth.dataset = {
        "images": found["images"],
        "categories": found["categories"],
        "annotations": [],
    }
    truth.createIndex()
    results = truth.loadRes(found["annotations"])
    masks = {a["category_id"]: results.annToMask(a) for a in results.loadAnns(results.getAnnIds())}
    np.testing.assert_array_equal(masks[1], label)
    np.testing.assert_array_equal(masks[0], 1 - label)


def test_a_failed_write_leaves_nothing(tmp_path):
    def entries():
        yield from encode_prediction("a", np.zeros((2, 2), np.uint8))
        raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError):
        write_predictions(tmp_path / "p.json.gz", entries(), [], [])
    assert list(tmp_path.iterdir()) == []


def test_masks_must_tile_the_image():
    label = np.array([[0, 1], [1, 2]], np.uint8)
    entries = encode_prediction("a", label)
    with pytest.raises(UserError, match="image a: 1 pixels"):
        decode_prediction(entries[:2], (2, 2))
    with pytest.raises(UserError, match="image a: 2 pixels"):
        decode_prediction(entries + [entries[1] | {"category_id": 7}], (2, 2))
    with pytest.raises(UserError, match=r"\[2, 2\] pixels, not \[2, 3\]"):
        decode_prediction(entries, (2, 3))
    with pytest.raises(UserError):
        decode_prediction([], (2, 2))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"plain",
        gzip.compress(b"{", mtime=0)[:-3],
        gzip.compress(b"[]", mtime=0),
        gzip.compress(b'{"images": []}', mtime=0),
    ],
)
def test_what_is_no_file_of_predictions(tmp_path, content):
    path = tmp_path / "p.json.gz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"p\.json\.gz"):
        read_predictions(path)
    with pytest.raises(UserError, match="no such file"):
        read_predictions(tmp_path / "none.json.gz")


@pytest.mark.parametrize("array", [np.zeros((2, 2), np.int64), np.zeros(4, np.uint8)])
def test_only_label_maps_are_encoded(array):
    with pytest.raises(ValueError):
        encode_prediction("a", array)
