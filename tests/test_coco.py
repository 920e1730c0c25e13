import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pycocotools import mask as rle

from fcn.data.prepare import prepare
from fcn.data.readers.coco import read_coco
from fcn.data.readers.names import class_table
from fcn.errors import UserError
from tests.test_prepare import DATASETS, extracted, items

VAL = {"annotations": "annotations/instances_val2017.json", "images": "../val2017.zip/val2017"}
DEFINITION = DATASETS["coco-voc"] | {  # with a second split, as COCO's archives have it
    "archives": [*DATASETS["coco-voc"]["archives"], "val2017.zip"],
    "splits": DATASETS["coco-voc"]["splits"] | {"val": VAL},
}
KINDS = {  # COCO's categories that VOC has, and two that it has not; ids as COCO's
    1: "person", 2: "bicycle", 3: "car", 4: "motorcycle", 5: "airplane", 6: "bus", 7: "train",
    9: "boat", 10: "traffic light", 16: "bird", 17: "cat", 18: "dog", 19: "horse", 20: "sheep",
    21: "cow", 44: "bottle", 62: "chair", 63: "couch", 64: "potted plant", 67: "dining table",
    72: "tv", 90: "toothbrush",
}  # fmt: skip
CATEGORIES = [{"id": i, "name": name, "supercategory": "x"} for i, name in KINDS.items()]
TORCHVISION = [0, 5, 2, 16, 9, 44, 6, 3, 17, 62, 21, 67, 18, 19, 4, 1, 64, 20, 63, 7, 72]


def test_the_categories_are_vocs_classes():
    names = {name.replace(" ", ""): i for i, name in KINDS.items()}
    table = class_table(DEFINITION["classes"], DEFINITION["aliases"], names, "COCO")
    np.testing.assert_array_equal(table[TORCHVISION], np.arange(21))
    assert np.count_nonzero(table) == 20


def runs(mask: np.ndarray) -> dict:
    """A mask as COCO's uncompressed run-length encoding: down the columns, zeros first."""
    values = mask.T.ravel()
    edges = np.flatnonzero(np.diff(values.astype(np.int8), prepend=0, append=2))
    counts = np.diff(np.concatenate([[0], edges])) if len(edges) else np.array([values.size])
    return {"size": list(mask.shape), "counts": counts.tolist()}


def compressed(mask: np.ndarray) -> dict:
    code = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": code["size"], "counts": code["counts"].decode()}


@given(data=st.data(), form=st.sampled_from([runs, compressed]))
def test_overlaps_are_void(data, form):
    shape = data.draw(st.tuples(st.integers(1, 6), st.integers(1, 6)))
    masks = data.draw(st.lists(arrays(bool, shape), max_size=4))
    classes = data.draw(st.lists(st.integers(1, 20), min_size=len(masks), max_size=len(masks)))
    segments = [(k, form(mask)) for k, mask in zip(classes, masks, strict=True)]
    label = read_coco("x", segments, shape)
    assert label.dtype == np.uint8 and label.shape == shape
    for place in np.ndindex(shape):
        over = [k for k, mask in zip(classes, masks, strict=True) if mask[place]]
        assert label[place] == (0 if not over else over[0] if len(over) == 1 else 255)


def box(left, top, right, bottom):
    return [left, top, right, top, right, bottom, left, bottom]


def test_polygons_of_one_instance_do_not_overlap():
    parts = [box(0, 0, 4, 4), box(2, 2, 6, 6)]
    label = read_coco("x", [(3, parts), (5, [box(6, 0, 8, 2)])], (7, 9))
    wanted = np.zeros((7, 9), np.uint8)
    wanted[0:4, 0:4] = wanted[2:6, 2:6] = 3
    wanted[0:2, 6:8] = 5
    np.testing.assert_array_equal(label, wanted)


@pytest.mark.parametrize("segmentation", [{"size": [2, 2]}, "polygon", [["a", 1, 2, 3, 4, 5]], 7])
def test_broken_segmentations_are_named(segmentation):
    with pytest.raises(UserError, match="image 7: a broken segmentation"):
        read_coco("image 7", [(1, segmentation)], (4, 4))


@pytest.mark.parametrize("form", [runs, compressed])
def test_a_mask_of_another_size_is_not_scrambled_into_the_image(form):
    mask = form(np.eye(3, 6, dtype=bool))
    with pytest.raises(UserError, match=r"of size \[3, 6\] in an image of \[6, 3\]"):
        read_coco("image 7", [(1, mask)], (6, 3))


def write(path, images, annotations, categories=CATEGORIES):
    entries = [{"id": i, "file_name": f"{i:012}.jpg", "height": 40, "width": 50} for i in images]
    boxes = [
        {
            "id": n,
            "image_id": image,
            "category_id": kind,
            "area": (b[4] - b[0]) * (b[5] - b[1]),
            "segmentation": [b],
            "iscrowd": 0,
        }
        for n, (image, kind, b) in enumerate(annotations)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": entries, "annotations": boxes, "categories": categories}))


BIG, HALF, SMALL = box(0, 0, 40, 30), box(20, 0, 50, 20), box(0, 0, 50, 20)


@pytest.fixture
def small(tmp_path):
    """Train: 1 large, 2 of 1000 pixels, 3 large only with a toothbrush, 4 nothing; val: 5, 6."""
    root = extracted(tmp_path, DEFINITION["archives"][0])
    splits = DEFINITION["splits"]
    train = [(1, 5, BIG), (1, 72, HALF), (2, 1, SMALL), (3, 90, BIG), (3, 1, box(0, 0, 9, 9))]
    write(root / splits["train"]["annotations"], [1, 2, 3, 4], train)
    write(root / splits["val"]["annotations"], [6, 5], [(5, 18, SMALL)])
    for archive, split, ids in zip(
        DEFINITION["archives"][1:], ("train", "val"), ([1, 2, 3, 4], [5, 6]), strict=True
    ):
        folder = extracted(tmp_path, archive) / f"{split}2017"
        folder.mkdir()
        for i in ids:
            Image.new("RGB", (50, 40)).save(folder / f"{i:012}.jpg")
    return root


def test_instances_become_pngs(small, tmp_path):
    definition = DEFINITION | {"splits": DEFINITION["splits"] | {"one": {"sample": ["val", 1]}}}
    info = prepare("coco-voc", definition, tmp_path)
    assert info["splits"] == {"train": 1, "val": 2, "one": 1} and info["notes"] == []
    (train,) = items(tmp_path / "prepared/coco-voc", "train")
    wanted = np.zeros((40, 50), np.uint8)
    wanted[0:30, 0:40], wanted[0:20, 20:50] = 1, 20
    wanted[0:20, 20:40] = 255
    assert train["id"] == f"{1:012}"
    np.testing.assert_array_equal(train["semantic"].numpy(), wanted)
    nothing, dog = items(tmp_path / "prepared/coco-voc", "val")
    assert [nothing["id"], dog["id"]] == [f"{6:012}", f"{5:012}"]
    assert not nothing["semantic"].any() and (dog["semantic"][:20] == 12).all()


def test_the_least_area_is_not_enough(small, tmp_path):
    splits = json.loads(json.dumps(DEFINITION["splits"]))
    splits["train"]["minimum_area"] = 999
    assert prepare("x", DEFINITION | {"splits": splits}, tmp_path)["splits"]["train"] == 2
    splits["train"]["minimum_area"] = 80
    assert prepare("x", DEFINITION | {"splits": splits}, tmp_path)["splits"]["train"] == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"aliases": {}}, r"aeroplane is no label of .*instances_train2017\.json; correct"),
        ({"aliases": {"aeroplane": "plane"}}, "nor is its alias plane"),
        ({"splits": {"train": {"annotations": "none.json", "images": "."}}}, "none.json: no such"),
        ({"splits": {"train": {"annotations": "x"}}}, "train must be the path of a list"),
    ],
)
def test_wrong_definitions(small, tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        prepare("coco-voc", DEFINITION | change, tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", r"instances_val2017\.json: not COCO's instances"),
        ("[]", "not COCO's instances"),
        ("{", "not valid JSON"),
        ('{"images": [{"id": 1}], "annotations": [], "categories": CATEGORIES}', "not COCO's inst"),
        ('{"images": [], "annotations": [{"id": 1}], "categories": CATEGORIES}', "not COCO's inst"),
        (
            '{"images": [], "annotations": [], "categories": '
            '[{"name": "dining table", "id": 1}, {"name": "diningtable", "id": 2}]}',
            r"val2017\.json: two categories of one name",
        ),
    ],
)
def test_damaged_annotations(small, tmp_path, content, message):
    text = content.replace("CATEGORIES", json.dumps(CATEGORIES))
    (small / DEFINITION["splits"]["val"]["annotations"]).write_text(text)
    with pytest.raises(UserError, match=message):
        prepare("coco-voc", DEFINITION, tmp_path)


def test_images_in_two_splits_and_missing_ones(small, tmp_path):
    val = small / DEFINITION["splits"]["val"]["annotations"]
    write(val, [5, 7], [])
    with pytest.raises(UserError, match=r"val\.txt: 1 of 2 ids of split val have no file"):
        prepare("coco-voc", DEFINITION, tmp_path)
    write(val, [1, 5], [])
    with pytest.raises(UserError, match=f"image {1:012} is in another split too"):
        prepare("coco-voc", DEFINITION, tmp_path)
    assert not (tmp_path / "prepared/coco-voc").exists()


def test_a_label_of_another_size_is_refused(small, tmp_path):
    folder = tmp_path / "extracted" / DEFINITION["archives"][1] / "train2017"
    Image.new("RGB", (40, 50)).save(folder / f"{1:012}.jpg")
    with pytest.raises(UserError, match="the image is 40x50 but its semantic label 50x40"):
        prepare("coco-voc", DEFINITION, tmp_path)


def test_items_travel_to_other_processes(small, tmp_path):
    from fcn.data.readers.coco import coco

    root = tmp_path / "extracted" / DEFINITION["archives"][0]
    for item in coco(DEFINITION, root, tmp_path).items:
        again = pickle.loads(pickle.dumps(item))
        np.testing.assert_array_equal(again.labels["semantic"](), item.labels["semantic"]())
