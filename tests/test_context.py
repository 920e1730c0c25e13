import hashlib
import shutil
import tarfile

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat

from fcn.data.archives import extract, fetch
from fcn.data.prepare import REPOSITORY, prepare
from fcn.data.readers.context import LABELS, read_context
from fcn.data.readers.names import class_table, read_names
from fcn.errors import UserError
from tests.test_prepare import DATASETS, REAL, extracted, items

FIFTY_NINE, THIRTY_THREE = DATASETS["pascal-context"], DATASETS["pascal-context-33"]
ALIASES = FIFTY_NINE["aliases"]
LABEL_ARCHIVE, IMAGE_ARCHIVE = FIFTY_NINE["archives"]
ARCHIVES = yaml.safe_load((REPOSITORY / "config/archives.yaml").read_text("utf-8"))
NAMES = read_names(LABELS)
# the 459 labels of the authors' classes, from other codes that agree (MMSegmentation, Detail API)
IDS = """0 2 23 25 31 34 45 59 65 72 98 397 113 207 258 284 308 347 368 416 427 9 18 22 33 44 46 68
    80 85 104 115 144 158 159 162 187 189 220 232 259 260 105 296 355 295 324 326 349 354
    360 366 19 415 420 424 440 445 454 458"""


def test_the_classes_are_the_official_ones():
    """The files of the data set's page, made again from our lists, have its files' digests."""
    names = [f"{i}: {ALIASES.get(name, name)}" for i, name in enumerate(FIFTY_NINE["classes"])]
    text = "\n".join(names[1:]) + "\n\n"
    assert hashlib.md5(text.encode()).hexdigest() == ARCHIVES["59_labels.txt"]["md5"]
    names = [f"{i}: {name}" for i, name in enumerate(THIRTY_THREE["classes"])]
    text = "\n".join(names[1:]) + " \n\n"
    assert hashlib.md5(text.encode()).hexdigest() == ARCHIVES["33_labels.txt"]["md5"]


def test_the_labels_of_the_classes_are_known():
    table = class_table(FIFTY_NINE["classes"], ALIASES, NAMES, LABELS)
    assert table.shape == (460,) and table.dtype == np.uint8
    ids = [int(value) for value in IDS.split()]
    np.testing.assert_array_equal(table[ids], np.arange(60))
    assert np.count_nonzero(table) == 59
    fewer = class_table(THIRTY_THREE["classes"], ALIASES, NAMES, LABELS)
    for index, name in enumerate(THIRTY_THREE["classes"]):
        other = FIFTY_NINE["classes"].index(name)
        assert fewer[ids[other]] == index


def test_both_revisions_of_the_names_are_one():
    wanted = class_table(FIFTY_NINE["classes"], ALIASES, NAMES, LABELS)
    renamed = [ALIASES.get(name, name) for name in FIFTY_NINE["classes"]]
    np.testing.assert_array_equal(class_table(renamed, {}, NAMES, LABELS), wanted)
    back = {label: name for name, label in ALIASES.items()}
    other = {back.get(name, name): label for name, label in NAMES.items()}
    np.testing.assert_array_equal(class_table(FIFTY_NINE["classes"], {}, other, LABELS), wanted)


@given(names=st.permutations("pqrstuv"), count=st.integers(0, 7))
def test_a_class_is_the_label_of_its_name(names, count):
    ids = {name: 2 * i + 1 for i, name in enumerate(names)}
    classes = ["background", *sorted(names)[:count]]
    table = class_table(classes, {}, ids, "a file")
    for name, label in ids.items():
        assert table[label] == (classes.index(name) if name in classes else 0)
    assert np.count_nonzero(table) == count


@pytest.mark.parametrize(
    ("classes", "aliases", "message"),
    [
        (["background", "cat", "unicorn"], {}, "unicorn is no label of a file; correct it"),
        (["background", "table"], {"table": "desk"}, "no label of a file, nor is its alias desk"),
        (["background", "cat", "puss"], {"puss": "cat"}, "cat and puss are both label cat"),
    ],
)
def test_unknown_names(classes, aliases, message):
    with pytest.raises(UserError, match=message):
        class_table(classes, aliases, {"cat": 1, "dog": 2}, "a file")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1: cat\n2 dog", "'2 dog' is not ID: name"),
        ("0: cat", "is not ID: name, with ids from 1"),
        ("1: pool table\n2: pooltable", "repeats an id or a name"),
        ("1: cat\n1: dog", "repeats an id or a name"),
        ("1: \xff", "not a readable list of names"),
    ],
)
def test_wrong_lists_of_names(tmp_path, text, message):
    (tmp_path / "labels.txt").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=message):
        read_names(tmp_path / "labels.txt")


@pytest.fixture
def small(tmp_path):
    """Three label files, one of them in val, with the images and lists of more."""
    labels = extracted(tmp_path, LABEL_ARCHIVE)
    voc = extracted(tmp_path, IMAGE_ARCHIVE) / "VOCdevkit/VOC2010"
    (labels / "trainval").mkdir()
    for place in ("JPEGImages", "ImageSets/Main"):
        (voc / place).mkdir(parents=True)
    for i, key in enumerate("abcd"):
        Image.new("RGB", (23, 20)).save(voc / f"JPEGImages/{key}.jpg")
        values = np.random.default_rng(i).permutation(460).reshape(20, 23).astype(np.uint16)
        if key != "d":
            savemat(labels / f"trainval/{key}.mat", {"LabelMap": values})
    (voc / "ImageSets/Main/train.txt").write_text("b\na\n")
    (voc / "ImageSets/Main/val.txt").write_text("c\n")
    return labels, voc


def their_label(values, classes):
    """The authors' way: one class after the other, by name."""
    label = np.zeros(values.shape, np.uint8)
    names = [line.split(": ")[1].replace(" ", "") for line in LABELS.read_text().splitlines()]
    for index, name in enumerate(classes[1:], start=1):
        label[values == names.index(ALIASES.get(name, name)) + 1] = index
    return label


@pytest.mark.parametrize("name", ["pascal-context", "pascal-context-33"])
def test_both_tasks_become_pngs(small, tmp_path, name):
    definition = DATASETS[name]
    info = prepare(name, definition, tmp_path)
    assert info["splits"] == {"train": 2, "val": 1} and info["notes"] == []
    assert len(info["archives"]) == 2
    found = items(tmp_path / f"prepared/{name}", "train")
    assert [item["id"] for item in found] == ["b", "a"]
    for item in found:
        i = "abc".index(item["id"])
        values = np.random.default_rng(i).permutation(460).reshape(20, 23)
        wanted = their_label(values, definition["classes"])
        np.testing.assert_array_equal(item["semantic"].numpy(), wanted)
        assert len(np.unique(wanted)) == len(definition["classes"])


@pytest.mark.parametrize("place", ["labels.txt", "trainval/labels.txt"])
def test_the_archives_own_names_are_taken(small, tmp_path, place):
    labels, _ = small
    turned = {1: "accordion", 2: "aeroplane", 458: "wood"} | {
        label: name for name, label in NAMES.items() if name not in {"aeroplane", "wood"}
    }
    turned[2], turned[458] = "wood", "aeroplane"
    (labels / place).write_text("".join(f"{i}: {turned[i]}\n" for i in sorted(turned)))
    prepare("pascal-context", FIFTY_NINE, tmp_path)
    for item in items(tmp_path / "prepared/pascal-context", "val"):
        values = np.random.default_rng(2).permutation(460).reshape(20, 23)
        assert item["semantic"].numpy()[values == 2] == 59
        assert item["semantic"].numpy()[values == 458] == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"S": np.zeros((20, 23))}, r"a\.mat: no variable LabelMap in it, only S"),
        ({"LabelMap": np.full((20, 23), 460)}, r"a\.mat: label 460, but the labels go from 0 to 4"),
        ({"LabelMap": np.full((20, 23), -1)}, r"a\.mat: label -1"),
        ({"LabelMap": np.zeros((23, 20))}, r"a\.jpg: the image is 23x20 but its semantic label 20"),
        ({"LabelMap": np.array(["x"], object)}, "LabelMap is not a matrix of whole numbers"),
        (None, r"train\.txt: 1 of 2 ids of split train have no file in .*JPEGImages and trainval"),
    ],
)
def test_damaged_labels_are_named(small, tmp_path, content, message):
    labels, _ = small
    path = labels / "trainval/a.mat"
    if content is None:
        path.unlink()
    else:
        savemat(path, content)
    with pytest.raises(UserError, match=message):
        prepare("pascal-context", FIFTY_NINE, tmp_path)


def test_a_subset_has_the_images_with_labels(small, tmp_path):
    labels, _ = small
    (labels / "trainval/a.mat").unlink()
    sidecar = labels.with_name(f"{LABEL_ARCHIVE}.json")
    sidecar.write_text(sidecar.read_text().replace("false", "true"))
    info = prepare("pascal-context", FIFTY_NINE, tmp_path)
    assert info["splits"] == {"train": 1, "val": 1} and info["subset"] is True
    assert info["notes"] == ["train: 1 of 2 ids are in this subset"]


@pytest.mark.skipif(
    not (REAL / "mirror" / LABEL_ARCHIVE).exists() or not (REAL / "context-images.tar").exists(),
    reason=f"shared/data/mirror/{LABEL_ARCHIVE} and context-images.tar are not here",
)
def test_the_real_labels(tmp_path):
    """The .mat files give the 59-class PNGs that they were made of."""
    fetch(LABEL_ARCHIVE, ARCHIVES[LABEL_ARCHIVE], tmp_path, str(REAL / "mirror"), True)
    extract(LABEL_ARCHIVE, tmp_path)
    voc = extracted(tmp_path, IMAGE_ARCHIVE, subset=True) / "VOCdevkit/VOC2010"
    with tarfile.open(REAL / "context-images.tar") as tar:
        tar.extractall(tmp_path, filter="data")
    shutil.move(tmp_path / "context/JPEGImages", voc / "JPEGImages")
    (voc / "ImageSets/Main").mkdir(parents=True)
    shutil.copy(tmp_path / "context/val.txt", voc / "ImageSets/Main/val.txt")
    definition = FIFTY_NINE | {"splits": {"val": FIFTY_NINE["splits"]["val"]}}
    info = prepare("pascal-context", definition, tmp_path)
    assert info["splits"] == {"val": 4} and info["subset"] is True
    for item in items(tmp_path / "prepared/pascal-context", "val"):
        wanted = np.array(Image.open(tmp_path / f"context/labels59/{item['id']}.png"))
        np.testing.assert_array_equal(item["semantic"].numpy(), wanted)
    table = class_table(THIRTY_THREE["classes"], ALIASES, NAMES, LABELS)
    for path in sorted((tmp_path / f"extracted/{LABEL_ARCHIVE}/trainval").glob("*.mat")):
        wanted = np.array(Image.open(tmp_path / f"context/labels59/{path.stem}.png"))
        names = np.array(FIFTY_NINE["classes"])[wanted]
        fewer = np.array(THIRTY_THREE["classes"])[read_context(path, table)]
        assert (
            fewer == np.where(np.isin(names, THIRTY_THREE["classes"]), names, "background")
        ).all()


def test_a_name_that_is_a_label_needs_no_alias():
    table = class_table(["background", "table"], {"table": "desk"}, {"table": 1, "desk": 2}, "x")
    assert table.tolist() == [0, 1, 0]
