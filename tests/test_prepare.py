import hashlib
import json
import os
import shutil
import signal
import tarfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat

from fcn.__main__ import main
from fcn.data.dataset import SegmentationSet
from fcn.data.labels import ORIENTATION, voc_palette, write_label
from fcn.data.prepare import REPOSITORY, _each, check_seg11valid, prepare
from fcn.data.readers import READERS, Contents, Item
from fcn.data.splits import resolve
from fcn.errors import UserError
from fcn.spec import contents_hash, source_hash

REAL = REPOSITORY.parent / "shared" / "data"
real = pytest.mark.skipif(not REAL.is_dir(), reason="the real data (shared/data) is not here")
DATASETS = yaml.safe_load((REPOSITORY / "config/datasets.yaml").read_text("utf-8"))
SEG11VALID = (REPOSITORY / "config/splits/seg11valid.txt").read_text().split()


def items(prepared: Path, split: str, labels=("semantic",)):
    dataset = SegmentationSet(prepared, split, labels=labels)
    return [dataset[i] for i in range(len(dataset))]


def tree(root: Path, ids, void=255, suffix="jpg", size=(6, 8)) -> dict[str, np.ndarray]:
    """A folder in VOC's layout with noise images and labels 0..2 and ``void``; the labels."""
    random = np.random.default_rng(len(ids))
    truth = {}
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for key in ids:
        image = random.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(image).save(root / f"JPEGImages/{key}.{suffix}")
        truth[key] = random.choice([0, 1, 2, void], size).astype(np.uint8)
        write_label(root / f"SegmentationClass/{key}.png", truth[key])
    return truth


def lists(root: Path, **splits) -> None:
    for name, ids in splits.items():
        (root / f"ImageSets/Segmentation/{name}.txt").write_text("\n".join(ids))


def extracted(data_dir: Path, archive: str, subset: bool = False) -> Path:
    folder = data_dir / "extracted" / archive
    folder.mkdir(parents=True)
    sidecar = {"archive": {"name": archive, "sha256": "0" * 64, "subset": subset}, "members": 1}
    folder.with_name(f"{archive}.json").write_text(json.dumps(sidecar))
    return folder


@pytest.fixture
def own(tmp_path):
    """A user's own folder of four images, one a PNG, and its definition."""
    root = tmp_path / "own"
    truth = tree(root, ["a", "b", "c"], void=11) | tree(root, ["d"], void=11, suffix="png")
    lists(root, train=["b", "a"], val=["c", "d"])
    definition = {
        "reader": "folder",
        "path": str(root),
        "classes": ["x", "y", "z"],
        "void": 11,
        "splits": {key: f"ImageSets/Segmentation/{key}.txt" for key in ("train", "val")},
    }
    return root, definition, truth


def test_ones_own_files_saved_in_place_are_not_in_what_was_made_from_them(own, tmp_path):
    root, definition, _ = own
    prepare("mine", definition, tmp_path / "data")
    place = tmp_path / "data/prepared/mine/images/a.jpg"
    before = place.read_bytes()
    Image.new("RGB", (8, 8)).save(root / "JPEGImages/a.jpg")
    assert place.read_bytes() == before


def test_linked_folders_are_read_and_watched(own, tmp_path):
    """Large folders often lie on another disk."""
    root, definition, _ = own
    (root / "JPEGImages").rename(tmp_path / "far")
    (root / "JPEGImages").symlink_to(tmp_path / "far")
    (tmp_path / "far/again").symlink_to(tmp_path / "far")  # holds itself
    assert prepare("mine", definition, tmp_path / "data")["splits"] == {"train": 2, "val": 2}
    before = source_hash(definition)
    assert source_hash(definition) == before
    Image.new("RGB", (8, 8)).save(tmp_path / "far/a.jpg")
    assert source_hash(definition) != before


def test_hidden_files_and_those_of_hidden_folders_are_not_watched(own):
    """`git status` writes .git/index."""
    root, definition, _ = own
    before = source_hash(definition)
    for name in (".a.swp", ".git/index", "JPEGImages/.cache/deep/a.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x")
        assert source_hash(definition) == before, name
    (root / "JPEGImages/a.b").write_text("x")  # a dot within a name hides nothing
    assert source_hash(definition) != before


def die(_):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed_is_told_in_a_sentence():
    with pytest.raises(UserError, match=r"prepare x: a process was ended .* fewer --threads"):
        list(_each(die, range(80), 2, "prepare x"))


def test_a_folder_of_ones_own(own, tmp_path):
    root, definition, truth = own
    definition["splits"]["all"] = {"union": ["val", "train"]}
    info = prepare("mine", definition, tmp_path / "data")
    folder = tmp_path / "data/prepared/mine"
    assert info == json.loads((folder / "dataset.json").read_text())
    assert info["splits"] == {"train": 2, "val": 2, "all": 4}
    assert info["classes"] == {"semantic": ["x", "y", "z"]} and info["void"] == 255
    assert info["subset"] is False and info["notes"] == [] and info["inputs"] == ["image"]
    assert (folder / "splits/all.txt").read_text() == "c\nd\nb\na\n"
    assert (folder / "index.csv").read_text().splitlines()[0] == "id,height,width,image,semantic"
    for split in info["splits"]:
        for item in items(folder, split):
            expected = np.where(truth[item["id"]] == 11, 255, truth[item["id"]])
            np.testing.assert_array_equal(item["semantic"].numpy(), expected)
    for path in (root / "JPEGImages").iterdir():
        assert (folder / "images" / path.name).read_bytes() == path.read_bytes()
    assert [path.name for path in folder.parent.iterdir()] == ["mine"]
    assert prepare("mine", definition, tmp_path / "data") == info  # again, over itself


def test_a_split_without_a_labelled_pixel_is_refused(own, tmp_path):
    root, definition, _ = own
    for key in ("a", "b"):
        write_label(root / f"SegmentationClass/{key}.png", np.full((6, 8), 11, np.uint8))
    with pytest.raises(UserError, match=r"mine: every pixel of the semantic labels of split train"):
        prepare("mine", definition, tmp_path / "data")
    assert not (tmp_path / "data/prepared/mine").exists()


def test_many_images_in_several_processes(tmp_path):
    ids = [f"{i:03}" for i in range(70)]
    tree(tmp_path / "own", ids, size=(2, 3))
    lists(tmp_path / "own", train=ids)
    definition = {"reader": "voc", "path": "own", "classes": ["x", "y", "z"], "void": 255}
    definition["splits"] = {"train": "ImageSets/Segmentation/train.txt"}
    one = prepare("one", definition, tmp_path, base=tmp_path)
    two = prepare("two", definition, tmp_path, base=tmp_path, workers=2)
    assert {**two, "name": "one", "title": "one"} == one
    index = [(tmp_path / f"prepared/{name}/index.csv").read_text() for name in ("one", "two")]
    assert index[0] == index[1] and len(index[0].splitlines()) == 71
    write_label(tmp_path / "own/SegmentationClass/033.png", np.full((2, 3), 7, np.uint8))
    with pytest.raises(UserError, match=r"033\.png: label value 7"):
        prepare("two", definition, tmp_path, base=tmp_path, workers=2)


def test_colours_a_class_file_and_more_labels(own, tmp_path):
    root, definition, truth = own
    (root / "SegmentationColour").mkdir()
    for key, label in truth.items():
        picture = voc_palette()[np.where(label == 11, 255, label)]
        Image.fromarray(picture).save(root / f"SegmentationColour/{key}.png")
    (root / "names.txt").write_text("x\ny\n\nz\n")
    definition |= {"classes": "names.txt", "labels": "SegmentationColour"}
    with pytest.raises(UserError, match="set `colours: voc`"):
        prepare("mine", definition, tmp_path)
    for wrong in ({"colours": [[0, 0, 0]] * 3}, {"colours": "voc", "void": [0, 0, 0]},
                  {"labels": "SegmentationClass", "void": [0, 0, 0]}):  # fmt: skip
        with pytest.raises(UserError, match=r"void: (11 is an index|\[0, 0, 0\] is a colour)"):
            prepare("mine", definition | wrong, tmp_path)
    info = prepare("mine", definition | {"colours": "voc", "void": 1}, tmp_path)
    for item in items(tmp_path / "prepared/mine", "train", ("semantic",)):
        label = truth[item["id"]]
        expected = np.where((label == 11) | (label == 1), 255, label)
        np.testing.assert_array_equal(item["semantic"].numpy(), expected)
    first = info["contents"]
    del definition["void"]
    assert prepare("mine", definition | {"colours": "voc"}, tmp_path)["contents"] != first
    both = {"semantic": "SegmentationColour", "geometric": "SegmentationColour"}
    classes = {"semantic": ["x", "y", "z"], "geometric": "names.txt"}
    more = {"colours": "voc", "labels": both, "classes": classes, "inputs": {"depth": "depth"}}
    (root / "depth").mkdir()
    for key, label in truth.items():
        Image.fromarray(np.full(label.shape, 2000, np.uint16)).save(root / f"depth/{key}.png")
    with pytest.raises(UserError, match=r"mode RGB; convert it to 16-bit grey, in mm"):
        prepare("more", definition | more | {"inputs": {"depth": "JPEGImages"}}, tmp_path)
    info = prepare("more", definition | more, tmp_path)
    assert info["labels"] == ["semantic", "geometric"] and info["inputs"] == ["image", "depth"]
    header = (tmp_path / "prepared/more/index.csv").read_text().splitlines()[0]
    assert header == "id,height,width,image,depth,semantic,geometric"
    for name, key in (("mine", "semantic"), ("more", "geometric")):
        for item in items(tmp_path / "prepared" / name, "train", (key,)):
            expected = np.where(truth[item["id"]] == 11, 255, truth[item["id"]])
            np.testing.assert_array_equal(item[key].numpy(), expected)


def test_more_classes_than_8_bits_hold_are_refused(own, tmp_path):
    _, definition, _ = own
    names = [f"c{i}" for i in range(256)]
    with pytest.raises(UserError, match=r"classes: 256 of semantic do not fit 8-bit labels"):
        prepare("mine", definition | {"classes": names}, tmp_path)


def noise(seed: int, kind: str) -> np.ndarray:
    random = np.random.default_rng(seed)
    shape = (4, 5, 3) if kind in ("image", "hha") else (4, 5)
    top = 65536 if kind == "depth" else 256
    return random.integers(0, top, shape, np.uint16 if kind == "depth" else np.uint8)


def computed(definition, root, scratch) -> Contents:
    """A reader whose inputs are functions, and that has no labels."""
    count = definition["count"]
    (scratch / "all.txt").write_text("\n".join(map(str, range(count))))
    items = (
        Item(str(i), {kind: partial(noise, i, kind) for kind in definition["kinds"]}, {})
        for i in range(count)
    )
    return Contents(scratch, {}, {"all": "all.txt"}, items, "nowhere")


def test_computed_inputs_without_labels(tmp_path, monkeypatch):
    monkeypatch.setitem(READERS, "computed", computed)
    definition = {"reader": "computed", "count": 66, "kinds": ["image", "depth", "hha"]}
    definition["notes"] = ["made up"]
    info = prepare("one", definition, tmp_path)
    assert info["inputs"] == ["image", "depth", "hha"] and info["labels"] == []
    assert info["classes"] == {} and info["notes"] == ["made up"]
    place = tmp_path / "prepared/one"
    assert (place / "index.csv").read_text().startswith("id,height,width,image,depth,hha\n0,4,5,")
    dataset = SegmentationSet(place, "all", ("image", "depth", "hha"), ())
    for i in (0, 65):
        item = dataset[i]
        np.testing.assert_array_equal(item["image"].permute(1, 2, 0), noise(i, "image"))
        np.testing.assert_array_equal(item["depth"][0], noise(i, "depth"))
    assert prepare("two", definition, tmp_path, workers=2)["contents"] == info["contents"]
    for path in sorted(place.rglob("*.png")):
        other = tmp_path / "prepared/two" / path.relative_to(place)
        assert other.read_bytes() == path.read_bytes()
    with pytest.raises(ValueError, match=r"not uint8 \(4, 5\)"):
        prepare("two", {**definition, "kinds": ["image", "grey"]}, tmp_path)


def test_an_archive_of_a_single_file_is_used_as_it_is(tmp_path):
    """Its sidecar is the one of its fetching, and the root is where it lies."""
    root = tmp_path / "archives"
    tree(root, ["a"])
    lists(root, train=["a"])
    (root / "names.txt").write_text("x\ny\nz")
    definition: dict[str, Any] = {"reader": "folder", "archives": ["names.txt"]}
    definition |= {
        "classes": "names.txt",
        "void": 255,
        "splits": {"train": "ImageSets/Segmentation/train.txt"},
    }
    with pytest.raises(UserError, match=r"archives/names\.txt\.json: no such file"):
        prepare("mine", definition, tmp_path)
    sidecar = {"name": "names.txt", "sha256": "0" * 64, "subset": True}
    (root / "names.txt.json").write_text(json.dumps(sidecar))
    info = prepare("mine", definition, tmp_path)
    assert info["archives"] == [sidecar] and info["subset"] is True
    assert info["classes"] == {"semantic": ["x", "y", "z"]}


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


def shrink(root):
    Image.new("RGB", (5, 6)).save(root / "JPEGImages/a.jpg")


def shrink_turned(root):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (6, 8)).save(root / "JPEGImages/a.jpg", exif=exif)


@pytest.mark.parametrize("orientation", range(1, 5))
def test_an_orientation_that_keeps_the_size_is_told(own, tmp_path, orientation):
    root, definition, _ = own
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (8, 6)).save(root / "JPEGImages/a.jpg", exif=exif)
    notes = prepare("mine", definition, tmp_path / "data")["notes"]
    told = [
        note for note in notes if note.startswith("the EXIF orientation of 1 images is not applied")
    ]
    assert len(told) == (orientation > 1)


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_turned_tiff_is_trained_on_as_it_is_stored(own, tmp_path, orientation):
    root, definition, truth = own
    (root / "JPEGImages/a.jpg").unlink()
    image = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(image).save(
        root / "JPEGImages/a.tif", compression="tiff_lzw", tiffinfo={ORIENTATION: orientation}
    )
    notes = prepare("mine", definition, tmp_path / "data")["notes"]
    assert any("EXIF orientation of 1 images is not applied" in note for note in notes)
    item = items(tmp_path / "data/prepared/mine", "train")[1]
    assert item["id"] == "a"
    np.testing.assert_array_equal(item["image"].permute(1, 2, 0), image)
    label = np.where(truth["a"] == 11, 255, truth["a"])
    np.testing.assert_array_equal(item["semantic"], label)


def colour_the_label(root):
    Image.new("RGB", (8, 6), (1, 2, 3)).save(root / "SegmentationClass/a.png")


FAULTS = [
    (
        lambda root: (root / "JPEGImages/a.jpg").unlink(),
        r"train\.txt: 1 of 2 ids.*JPEGImages.*\(a\)",
    ),
    (lambda root: (root / "SegmentationClass/a.png").unlink(), r"train\.txt: 1 of 2 ids.*\(a\)"),
    (lambda root: lists(root, train=["a", "b.jpg"]), r"\(b\.jpg\); list ids without extension"),
    (lambda root: lists(root, train=["a", "./b"]), r"\(\./b\); list ids without \./"),
    (lambda root: lists(root, train=[".", "..", "/"]), r"3 of 3 ids .* \(\., \.\., /\)\."),
    (lambda root: lists(root, train=["a 1"]), r"one id a line and nothing else"),
    (lambda root: lists(root, train=["a", "b", "a"]), r"train\.txt: the id a stands twice"),
    (lambda root: lists(root, train=["", " "]), r"train\.txt: the split list is empty"),
    (lambda root: (root / "ImageSets/Segmentation/val.txt").unlink(), r"val\.txt: no such split"),
    (lambda root: (root / "JPEGImages/a.jpg").write_bytes(b"x"), r"a\.jpg: not a readable image"),
    (lambda root: cut(root / "JPEGImages/a.jpg"), r"own/JPEGImages/a\.jpg: not a readable image"),
    (lambda root: cut(root / "JPEGImages/d.png"), r"own/JPEGImages/d\.png: not a readable image"),
    (lambda root: shutil.copy(root / "JPEGImages/d.png", root / "JPEGImages/a.png"), "taken by"),
    (lambda root: shutil.rmtree(root / "JPEGImages"), r"JPEGImages: no such folder"),
    (lambda root: shutil.rmtree(root), r"own: no such folder"),
    (shrink, r"a\.jpg: the image is 5x6 but its semantic label 8x6\."),
    (shrink_turned, r"6x8 but its semantic label 8x6 \(its EXIF"),
    (colour_the_label, r"a\.png: the label is colour-coded.*one \[red, green, blue\] per class"),
    (lambda root: Image.new("I;16", (8, 6)).save(root / "JPEGImages/d.png"), r"d\.png.*mode I;16"),
]


@pytest.mark.parametrize(("fault", "told"), FAULTS)
def test_faults_are_told_and_leave_nothing(own, tmp_path, fault, told):
    root, definition, _ = own
    fault(root)
    with pytest.raises(UserError, match=told):
        prepare("mine", definition, tmp_path / "data")
    assert list((tmp_path / "data/prepared").iterdir()) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"splits": None}, "Give `splits`, one list of ids"),
        ({"classes": ["x", "y"]}, r"label value 2 .*0 to 1 and 11 for void"),
        ({"void": None}, r"label value 11 .*only 0 to 2 are allowed"),
        ({"classes": ["x", "y", "x"]}, "x of semantic|stands twice"),
        ({"classes": "none.txt"}, r"none\.txt: not a readable list of class names"),
        ({"classes": None}, "give the names of semantic"),
        ({"path": None}, "data set mine: the key 'path', the folder of its files, is missing"),
        ({"reader": "foto"}, "reader 'foto' is none of voc, folder, sbd, scenes"),
        ({"splits": {"train": {"minus": ["train"]}}}, "train is made from itself"),
        ({"splits": {"train": {"minus": ["all"]}}}, "train names all, which is not there"),
        ({"splits": {"train": ["a", "b"]}}, "must be the path of a list"),
    ],
)
def test_wrong_definitions_are_told(own, tmp_path, change, told):
    _, definition, _ = own
    definition |= change
    definition = {key: value for key, value in definition.items() if value is not None}
    with pytest.raises(UserError, match=told):
        prepare("mine", definition, tmp_path / "data")
    assert list(tmp_path.glob("data/prepared/*")) == []


@pytest.mark.parametrize("limit", [30, 20], ids=["warning", "error"])
def test_a_huge_image_is_told(own, tmp_path, limit, monkeypatch):
    """PIL warns from its limit on and raises from twice of it; both are one sentence."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(UserError, match=rf"\.jpg: an image of more than {limit} pixels"):
        prepare("mine", own[1], tmp_path / "data")
    assert list(tmp_path.glob("data/prepared/*")) == []


def test_the_definition_is_recorded(own, tmp_path):
    _, definition, _ = own
    info = prepare("mine", definition, tmp_path)
    assert info["definition"] == contents_hash(definition)
    assert info["definition"] != contents_hash({**definition, "void": 12})


def test_a_failure_keeps_the_earlier_result(own, tmp_path):
    root, definition, _ = own
    info = prepare("mine", definition, tmp_path)
    shrink(root)
    with pytest.raises(UserError):
        prepare("mine", definition, tmp_path)
    assert json.loads((tmp_path / "prepared/mine/dataset.json").read_text()) == info
    assert len(SegmentationSet(tmp_path / "prepared/mine", "train")) == 2


def test_shared_images_of_train_and_val_are_noted(own, tmp_path):
    root, definition, _ = own
    lists(root, train=["a", "b", "c"])
    assert prepare("mine", definition, tmp_path)["notes"] == ["train and val share 1 images"]


@given(sets=st.lists(st.lists(st.sampled_from("abcdef"), unique=True, min_size=1), min_size=3))
def test_splits_are_set_algebra_in_order(tmp_path_factory, sets):
    root = tmp_path_factory.mktemp("lists")
    for i, ids in enumerate(sets):
        (root / f"{i}.txt").write_text("\r\n".join(ids))
    names = [str(i) for i in range(len(sets))]
    expressions: dict[str, object] = {"u": {"union": names}, "m": {"minus": names}}
    expressions["um"] = {"minus": ["u", "m"]}
    expressions |= {name: f"{name}.txt" for name in names}
    found, notes = resolve(expressions, root, root, "abcdef", False, "here")
    assert notes == [] and [found[name] for name in names] == sets
    assert set(found["u"]) == set().union(*sets) and len(found["u"]) == len(set(found["u"]))
    assert found["m"] == [key for key in sets[0] if not any(key in other for other in sets[1:])]
    assert set(found["um"]) == set(found["u"]) - set(found["m"])


@pytest.mark.parametrize("subset", [False, True])
def test_the_voc2012_entry_on_a_small_tree(tmp_path, subset):
    definition = DATASETS["voc2012"]
    root = extracted(tmp_path, definition["archives"][0], subset) / definition["root"]
    there = SEG11VALID[:3] if subset else SEG11VALID
    tree(root, ["t1", "t2", *there], size=(2, 2))
    lists(root, train=["t1", "t2"], val=there, trainval=["t1", "t2", *there])
    info = prepare("voc2012", definition, tmp_path)
    assert info["splits"]["seg11valid"] == len(there) and info["splits"]["rest"] == 2
    assert info["subset"] is subset and info["archives"][0]["subset"] is subset
    assert info["notes"] == ["seg11valid: 3 of 736 ids are in this subset"] * subset
    prepared = tmp_path / "prepared/voc2012"
    assert (prepared / "splits/seg11valid.txt").read_text().split() == there
    assert (prepared / "splits/rest.txt").read_text().split() == ["t1", "t2"]
    if not subset:
        (root / f"JPEGImages/{there[0]}.jpg").unlink()
        lists(root, val=there[1:], trainval=["t1", "t2", *there[1:]])
        with pytest.raises(UserError, match=r"config/splits/seg11valid\.txt: 1 of 736 ids"):
            prepare("voc2012", definition, tmp_path)


@pytest.mark.parametrize("folder", ["Test/VOCdevkit/VOC2011", "Test"])
def test_an_archive_without_its_top_folder_is_read(tmp_path, folder):
    """As some are packed: the server's own VOC 2011 test and, as published, SIFT Flow."""
    inside = extracted(tmp_path, "a.zip") / Path(folder).relative_to("Test")
    tree(inside, ["a", "b"], size=(2, 2))
    lists(inside, train=["a"], val=["b"])
    definition = {**DATASETS["voc2012"], "archives": ["a.zip"], "root": folder}
    definition["splits"] = {"train": "ImageSets/Segmentation/train.txt"}
    assert prepare("some", definition, tmp_path)["splits"] == {"train": 1}
    shutil.rmtree(inside / "JPEGImages")
    with pytest.raises(UserError, match="JPEGImages"):
        prepare("some", definition, tmp_path)
    with pytest.raises(UserError, match=r"a\.zip/Test/VOC: no such folder; correct `path`"):
        prepare("some", {**definition, "root": "Test/VOC"}, tmp_path)


def sbd_tree(data_dir, train, val) -> dict[str, np.ndarray]:
    definition = DATASETS["sbd"]
    root = extracted(data_dir, definition["archives"][0]) / definition["root"]
    (root / "img").mkdir(parents=True)
    (root / "cls").mkdir()
    truth = {}
    for i, key in enumerate([*train, *val]):
        Image.new("RGB", (4, 3), (i % 256, 0, 0)).save(root / f"img/{key}.jpg")
        truth[key] = np.full((3, 4), i % 21, np.uint8)
        kinds = {"Segmentation": truth[key], "CategoriesPresent": [i % 21], "Boundaries": [0]}
        savemat(root / f"cls/{key}.mat", {"GTcls": kinds})
    (root / "train.txt").write_text("\n".join(train))
    (root / "val.txt").write_text("\n".join(val))
    return truth


def test_sbd_becomes_pngs(tmp_path):
    truth = sbd_tree(tmp_path, [f"s{i}" for i in range(22)], ["v"])
    info = prepare("sbd", DATASETS["sbd"], tmp_path)
    assert info["splits"] == {"train": 22, "val": 1}
    for item in items(tmp_path / "prepared/sbd", "train"):
        np.testing.assert_array_equal(item["semantic"].numpy(), truth[item["id"]])
    broken = tmp_path / "extracted/benchmark.tgz/benchmark_RELEASE/dataset/cls/s3.mat"
    truth["s3"][1] = 255  # void, as the authors' reader takes it
    savemat(broken, {"GTcls": {"Segmentation": truth["s3"]}})
    prepare("sbd", DATASETS["sbd"], tmp_path)
    (found,) = [i for i in items(tmp_path / "prepared/sbd", "train") if i["id"] == "s3"]
    np.testing.assert_array_equal(found["semantic"].numpy(), truth["s3"])
    savemat(broken, {"GTcls": {"Segmentation": np.full((3, 4), 254, np.uint8)}})
    with pytest.raises(UserError, match=r"s3\.mat: label value 254"):
        prepare("sbd", DATASETS["sbd"], tmp_path)
    broken.write_bytes(b"MATLAB 5.0")
    with pytest.raises(UserError, match=r"s3\.mat: not a MAT file"):
        prepare("sbd", DATASETS["sbd"], tmp_path)


def test_seg11valid_is_checked_against_its_definition(tmp_path):
    assert "voc2011 is not prepared" in check_seg11valid(tmp_path)
    for name, split, ids in (
        ("voc2011", "val", [*SEG11VALID[::-1], "x", "y"]),
        ("sbd", "train", ["y", "z", "x"]),
    ):
        (tmp_path / f"prepared/{name}/splits").mkdir(parents=True)
        (tmp_path / f"prepared/{name}/splits/{split}.txt").write_text("\n".join(ids))
        (tmp_path / f"prepared/{name}/dataset.json").write_text('{"subset": false}')
    assert check_seg11valid(tmp_path) == "seg11valid is VOC 2011 val without SBD train: 736 images."
    (tmp_path / "prepared/sbd/splits/train.txt").write_text(f"x\n{SEG11VALID[0]}")
    with pytest.raises(UserError, match=r"736 images, the authors' list 736; 1 are only in.* 1 "):
        check_seg11valid(tmp_path)
    suite = {"title": "Others", "runs": {}}
    suite["datasets"] = {
        "other": {"reader": "scenes", "seed": 1, "splits": {"train": 1}, "size": [48, 64]}
    }
    (tmp_path / "others.yaml").write_text(yaml.safe_dump(suite))
    options = ["--suite", str(tmp_path / "others.yaml"), "--data-dir", str(tmp_path)]
    assert main(["prepare", "other", *options]) == 0  # not its affair
    (tmp_path / "prepared/sbd/dataset.json").write_text('{"subset": true}')
    assert "sbd is a subset" in check_seg11valid(tmp_path)


def test_our_lists_and_classes_are_the_authors():
    data = (REPOSITORY / "config/splits/seg11valid.txt").read_bytes()
    known = "4ca991bd72c251fd2485eaa9e29536502ea3800d1b1c17c151fd6a04bcfbc2cc"
    assert hashlib.sha256(data).hexdigest() == known
    assert len(set(SEG11VALID)) == 736
    for name in ("voc2011", "voc2012", "sbd"):
        classes = DATASETS[name]["classes"]
        assert len(set(classes)) == 21 and classes[0] == "background"
        assert sorted(classes[1:]) == classes[1:]  # VOC's order is alphabetical


@real
def test_seg11valid_labels_are_the_listed_ids():
    with tarfile.open(REAL / "seg11valid-labels.tar") as tar:
        ids = {Path(name).stem for name in tar.getnames() if name.endswith(".png")}
    assert ids == set(SEG11VALID)


@real
def test_camvid_is_a_folder_of_ones_own(tmp_path):
    with tarfile.open(REAL / "camvid.tar") as tar:
        tar.extractall(tmp_path, filter="data")
    names = "Sky Building Pole Road Pavement Tree SignSymbol Fence Car Pedestrian Bicyclist"
    definition = {"reader": "folder", "path": str(tmp_path / "camvid"), "void": 11}
    definition |= {"classes": names.split(), "splits": {"val": "ImageSets/Segmentation/val.txt"}}
    info = prepare("camvid", definition, tmp_path)
    assert info["splits"] == {"val": 101}
    item = items(tmp_path / "prepared/camvid", "val")[0]
    assert item["image"].shape == (3, 360, 480)
    assert set(item["semantic"].unique().tolist()) <= {*range(11), 255}


def test_generated_scenes(tmp_path):
    left = tmp_path / f"prepared/.scenes.{os.uname().nodename}.0123abcd.tmp/new"
    left.mkdir(parents=True)  # of a killed process
    definition = {"reader": "scenes", "title": "Scenes", "seed": 1, "size": [48, 64]}
    definition["splits"] = {"train": 2, "val": 1}
    info = prepare("scenes", definition, tmp_path)
    assert info["splits"] == {"train": 2, "val": 1} and info["inputs"] == ["image", "depth"]
    assert info["labels"] == ["semantic", "geometric"]
    dataset = SegmentationSet(
        tmp_path / "prepared/scenes", "train", ("image", "depth"), ("semantic", "geometric")
    )
    item = dataset[1]
    shape = tuple(item["semantic"].shape)
    assert item["image"].shape == (3, *shape) and item["depth"].shape == (1, *shape)
    assert sorted(shape) == [48, 64] and shape == dataset.sizes[1]
    assert 0 < item["depth"].max() <= 65535
    assert len(item["geometric"].unique()) > 1
    assert [path.name for path in (tmp_path / "prepared").iterdir()] == ["scenes"]


def test_images_of_no_split_are_left_alone(own, tmp_path):
    root, definition, _ = own
    lists(root, val=["c"])
    (root / "JPEGImages/d.png").write_bytes(b"broken")
    prepare("mine", definition, tmp_path)
    assert not (tmp_path / "prepared/mine/images/d.png").exists()
    assert len((tmp_path / "prepared/mine/index.csv").read_text().splitlines()) == 1 + 3


def test_contents_are_files_and_lists(own, tmp_path):
    root, definition, truth = own
    found = {prepare("mine", definition, tmp_path)["contents"]}
    lists(root, train=["a", "b"])
    found.add(prepare("mine", definition, tmp_path)["contents"])
    lists(root, train=["b", "a"])
    assert prepare("mine", definition, tmp_path)["contents"] in found
    write_label(root / "SegmentationClass/a.png", (truth["a"] + 1) % 3)
    found.add(prepare("mine", definition, tmp_path)["contents"])
    assert len(found) == 3


def test_images_of_seg11valid_in_train_are_noted(own, tmp_path):
    _, definition, _ = own
    definition["splits"]["seg11valid"] = {"union": ["train", "val"]}
    notes = prepare("mine", definition, tmp_path)["notes"]
    assert notes == ["train and seg11valid share 2 images"]
