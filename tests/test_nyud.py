import hashlib
import json
import shutil
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import yaml
from PIL import Image
from scipy.io import loadmat, savemat

from fcn.data.dataset import SegmentationSet
from fcn.data.hha import Camera, hha
from fcn.data.prepare import REPOSITORY, prepare
from fcn.errors import UserError

REAL = REPOSITORY.parent / "shared" / "data"
real = pytest.mark.skipif(not REAL.is_dir(), reason="the real data (shared/data) is not here")
DATASETS = yaml.safe_load((REPOSITORY / "config/datasets.yaml").read_text("utf-8"))
LABELLED = "nyu_depth_v2_labeled.mat"
KEYS = ("image", "depth", "hha")
SIZE = (40, 52)


def items(prepared: Path, split: str):
    dataset = SegmentationSet(prepared, split, KEYS)
    arrays = [*KEYS, "semantic"]
    read = [dataset[i] for i in range(len(dataset))]
    return [{"id": item["id"], **{key: item[key].numpy() for key in arrays}} for item in read]


def labelled(path: Path, count: int, **change) -> dict[str, np.ndarray]:
    """The labelled file of ``count`` noise images, as MATLAB 7.3 writes it; its arrays."""
    random = np.random.default_rng(count)
    shape = (count, *SIZE)
    arrays = {
        "images": random.integers(0, 256, (*shape, 3), np.uint8),
        "depths": (2 + random.random(shape)).astype(np.float32),
        "labels": random.integers(0, 895, shape, np.uint16),
    }
    holes = random.random(shape) < 0.2
    arrays["rawDepths"] = np.where(holes, 0, arrays["depths"]).astype(np.float32)
    arrays |= change
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, values in arrays.items():
            if values is not None:
                reversed_axes = values.transpose(0, *range(values.ndim - 1, 0, -1))
                file.create_dataset(
                    name, data=reversed_axes, chunks=(1, *reversed_axes.shape[1:]), compression=3
                )
    with path.open("r+b") as handle:
        handle.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(116))
    return arrays


def companions(folder: Path, mapping: np.ndarray | None = None) -> np.ndarray:
    """splits.mat (images 2, 3 to train on, 1, 4 to test) and classMapping40.mat; the mapping."""
    train, test = (np.array([values], np.uint16).T for values in ([2, 3], [1, 4]))
    savemat(folder / "splits.mat", {"trainNdxs": train, "testNdxs": test})
    if mapping is None:
        mapping = np.random.default_rng(5).integers(1, 41, (1, 894), np.uint8)
    savemat(folder / "classMapping40.mat", {"mapClass": mapping, "className": ["wall"]})
    return mapping


@pytest.fixture
def own(tmp_path):
    """nyudv2's definition for a small labelled file, its arrays and its mapping."""
    arrays = labelled(tmp_path / "archives" / LABELLED, 4)
    mapping = companions(tmp_path / "archives")
    for name in DATASETS["nyudv2"]["archives"]:
        sidecar = {"name": name, "sha256": "0" * 64, "subset": False}
        (tmp_path / "archives" / f"{name}.json").write_text(json.dumps(sidecar))
    splits = {"trainval": "trainval.txt", "test": "test.txt"}
    crop = {"rows": [5, 37], "columns": [4, 50]}
    return {**DATASETS["nyudv2"], "crop": crop, "splits": splits}, arrays, mapping


@pytest.mark.parametrize("kind", ["filled", "raw"])
def test_the_labelled_file(own, tmp_path, kind):
    definition, arrays, mapping = own
    info = prepare("n", {**definition, "depth": kind}, tmp_path)
    assert info["splits"] == {"trainval": 2, "test": 2} and info["inputs"] == list(KEYS)
    assert info["notes"] == definition["notes"] and len(info["archives"]) == 3
    prepared = tmp_path / "prepared/n"
    assert (prepared / "splits/trainval.txt").read_text() == "5002\n5003\n"
    assert (prepared / "splits/test.txt").read_text() == "5001\n5004\n"
    lookup = [255, *(mapping[0] - 1)]
    for item in items(prepared, "trainval") + items(prepared, "test"):
        source = {key: values[int(item["id"]) - 5001][5:37, 4:50] for key, values in arrays.items()}
        depths = {"filled": source["depths"], "raw": source["rawDepths"]}
        np.testing.assert_array_equal(item["image"].transpose(1, 2, 0), source["images"])
        np.testing.assert_allclose(item["depth"][0], depths[kind] * 1000, atol=0.502)
        expected = hha(depths["filled"], depths["raw"], Camera(**definition["camera"]))
        np.testing.assert_array_equal(item["hha"].transpose(1, 2, 0), expected)
        np.testing.assert_array_equal(
            item["semantic"], [[lookup[value] for value in row] for row in source["labels"]]
        )
    assert Image.open(prepared / "depth/5001.png").mode == "I;16"


def test_a_file_larger_than_the_memory(tmp_path):
    """1449 images of the official size, in a sparse file: 1.3 GB if its images were read whole."""
    path = tmp_path / LABELLED
    with h5py.File(path, "w", userblock_size=512) as file:
        shape = (1449, 640, 480)
        file.create_dataset("images", (1449, 3, 640, 480), np.uint8, chunks=(1, 3, 640, 480))
        for name, kind in (("depths", "f4"), ("rawDepths", "f4"), ("labels", "u2")):
            file.create_dataset(name, shape, kind, chunks=(1, 640, 480))
        file["labels"][6] = 3
        file["images"][6] = 9
        file["depths"][6] = 2.5
    companions(tmp_path)
    savemat(tmp_path / "splits.mat", {"trainNdxs": [[7]], "testNdxs": [[7]]})
    splits = {"trainval": "trainval.txt", "test": "test.txt"}
    definition = {**DATASETS["nyudv2"], "path": str(tmp_path), "splits": splits, "archives": []}
    tracemalloc.start()
    try:
        prepare("n", definition, tmp_path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2e8
    (item,) = items(tmp_path / "prepared/n", "test")
    assert item["id"] == "5007" and item["image"].shape == (3, 425, 560)
    assert (item["depth"] == 2500).all() and (item["image"] == 9).all()


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def garble(path):
    """Overwrite a compressed image; the rest of the file stays readable."""
    with h5py.File(path, "r") as file:
        place = file["labels"].id.get_chunk_info(0)
    with path.open("r+b") as handle:
        handle.seek(place.byte_offset)
        handle.write(b"\0" * place.size)


SHAPE = (4, *SIZE)
FAULTS: dict[str, Any] = {
    "no array rawDepths": {"rawDepths": None},
    "depths has 4 axes instead of 3": {"depths": np.zeros((*SHAPE, 1), np.float32)},
    r"rawDepths is \(3, 52, 40\) where labels": {"rawDepths": np.zeros((3, *SIZE), np.float32)},
    r"images is \(4, 1, 52, 40\)": {"images": np.zeros((*SHAPE, 1), np.uint8)},
    "images must be unsigned": {"images": np.zeros((*SHAPE, 3), np.float32)},
    "labels must be unsigned": {"labels": np.zeros(SHAPE, np.float32)},
    "label 895 in image 1": {"labels": np.full(SHAPE, 895, np.uint16)},
    "depths of image 1 are not metres": {"depths": np.full(SHAPE, np.nan, np.float32)},
    "rawDepths of image 1 are not metres": {"rawDepths": np.full(SHAPE, -1, np.float32)},
    "not a whole MATLAB 7.3 file": cut,
    "labels of image 1 is damaged": garble,
    "labeled.mat: no such file": Path.unlink,
}


@pytest.mark.parametrize("message", FAULTS)
def test_faults_of_the_labelled_file(own, tmp_path, message):
    definition, _, _ = own
    path, fault = tmp_path / "archives" / LABELLED, FAULTS[message]
    if isinstance(fault, dict):
        labelled(path, 4, **fault)
    else:
        fault(path)
    with pytest.raises(UserError, match=message) as caught:
        prepare("n", definition, tmp_path)
    assert LABELLED in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "prepared/n").exists()


def test_faults_beside_the_labelled_file(own, tmp_path):
    definition, _, _ = own
    archives = tmp_path / "archives"
    for change, message in (
        ({"crop": {"rows": [0, 41], "columns": [0, 5]}}, "crop: .*within 40 rows and 52"),
        ({"crop": {"rows": [0, 4]}}, "crop: "),
        ({"camera": {"fx": 1}}, "camera: .*give"),
        ({"camera": None}, "camera: None; give"),
        ({"depth": "sparse"}, "depth: 'sparse' is neither filled nor raw"),
    ):
        with pytest.raises(UserError, match=message):
            prepare("n", {**definition, **change}, tmp_path)
    companions(archives, np.full((1, 894), 41, np.uint8))
    with pytest.raises(UserError, match=r"classMapping40\.mat: mapClass has 41 to 41"):
        prepare("n", definition, tmp_path)
    companions(archives)
    savemat(archives / "splits.mat", {"trainNdxs": [[5]], "testNdxs": [[1]]})
    with pytest.raises(UserError, match=r"trainval\.txt: 1 of 1 ids of split trainval.*5005"):
        prepare("n", definition, tmp_path)
    savemat(archives / "splits.mat", {"trainNdxs": [[5]]})
    with pytest.raises(UserError, match=r"splits\.mat: not a MAT file with trainNdxs and testNdxs"):
        prepare("n", definition, tmp_path)
    (archives / "splits.mat").unlink()
    with pytest.raises(UserError, match=r"splits\.mat: no such file"):
        prepare("n", definition, tmp_path)


def authors_tree(root: Path, ids, with_hha=()) -> dict[str, dict[str, np.ndarray]]:
    """The authors' layout: noise images, depth of millimetres, raw depth of the first, labels."""
    random = np.random.default_rng(7)
    for folder in ("data/images", "data/depth", "data/hha", "data/rawdepth", "segmentation"):
        (root / folder).mkdir(parents=True)
    truth = {}
    for key in ids:
        image = random.integers(0, 256, (*SIZE, 3), np.uint8)
        depth = random.integers(1500, 4000, SIZE, np.uint16)
        label = random.integers(0, 41, SIZE, np.uint8)
        truth[key] = {"image": image, "depth": depth, "label": label}
        Image.fromarray(image).save(root / f"data/images/img_{key}.png")
        Image.fromarray(depth).save(root / f"data/depth/img_{key}.png")
        savemat(root / f"segmentation/img_{key}.mat", {"segmentation": label})
        if key in with_hha:
            Image.fromarray(image[::-1].copy()).save(root / f"data/hha/img_{key}.png")
    raw = truth[ids[0]]["raw"] = np.where(truth[ids[0]]["depth"] < 1800, 0, truth[ids[0]]["depth"])
    Image.fromarray(raw.astype(np.uint16)).save(root / f"data/rawdepth/img_{ids[0]}.png")
    return truth


@pytest.fixture
def theirs(tmp_path):
    root = tmp_path / "own"
    truth = authors_tree(root / "nyud", ["5001", "5002", "5003"], with_hha=["5003"])
    (root / "list.txt").write_text("5003\n5001\n5002")
    definition = {**DATASETS["nyud"], "path": str(root), "archives": []}
    return {**definition, "splits": {"test": "../list.txt"}}, truth, root / "nyud"


def test_the_authors_layout(theirs, tmp_path):
    definition, truth, root = theirs
    info = prepare("n", definition, tmp_path)
    assert info["splits"] == {"test": 3} and info["inputs"] == list(KEYS)
    camera = Camera(**definition["camera"])
    for item in items(tmp_path / "prepared/n", "test"):
        source = truth[item["id"]]
        np.testing.assert_array_equal(item["image"].transpose(1, 2, 0), source["image"])
        np.testing.assert_array_equal(item["depth"][0], source["depth"])
        label = np.where(source["label"] == 0, 255, source["label"].astype(int) - 1)
        np.testing.assert_array_equal(item["semantic"], label)
        if item["id"] == "5003":  # the image that is there
            expected = source["image"][::-1]
        else:
            raw = source["raw"] / 1000 if "raw" in source else None
            expected = hha(source["depth"] / 1000, raw, camera)
        np.testing.assert_array_equal(item["hha"].transpose(1, 2, 0), expected)
    with pytest.raises(UserError, match="2 of 3 ids of split test"):
        prepare("n", {**definition, "depth": "raw"}, tmp_path)  # only one has it
    (root.parent / "list.txt").write_text("5001")
    prepare("n", {**definition, "depth": "raw"}, tmp_path)
    (item,) = items(tmp_path / "prepared/n", "test")
    np.testing.assert_array_equal(item["depth"][0], truth["5001"]["raw"])
    filled, raw = (truth["5001"][kind] / 1000 for kind in ("depth", "raw"))
    np.testing.assert_array_equal(item["hha"].transpose(1, 2, 0), hha(filled, raw, camera))
    (root / "segmentation").rename(root / "data/segmentation")
    assert prepare("n", definition, tmp_path)["splits"] == {"test": 1}


def test_faults_of_the_authors_layout(theirs, tmp_path):
    definition, truth, root = theirs

    def fails(message: str) -> None:
        with pytest.raises(UserError, match=message):
            prepare("n", definition, tmp_path)
        assert not (tmp_path / "prepared/n").exists()

    path = root / "data/rawdepth/img_5001.png"
    path.write_bytes(path.read_bytes()[:-200])
    fails("rawdepth/img_5001.png: not a readable image")
    Image.fromarray(np.zeros((3, 4), np.uint16)).save(path)
    fails("rawdepth/img_5001.png: not of the size of")
    Image.new("RGB", SIZE[::-1]).save(path)
    fails("rawdepth/img_5001.png: in colour")
    shutil.rmtree(path.parent)
    path = root / "segmentation/img_5001.mat"
    savemat(path, {"segmentation": np.full(SIZE, 41, np.uint8)})
    fails(r"img_5001\.mat: label value 41")
    savemat(path, {"labels": truth["5001"]["label"]})
    fails(r"img_5001\.mat: not a MAT file with segmentation")
    savemat(path, {"segmentation": np.zeros((3, 4), np.uint8)})
    fails(r"img_5001\.png: the image is 52x40 but its semantic label 4x3")
    savemat(path, {"segmentation": truth["5001"]["label"]})
    Image.fromarray(np.ones((3, 4), np.uint16)).save(root / "data/depth/img_5001.png")
    fails(r"depth/img_5001\.png: 4x3, not of its image's size, 52x40")
    (root / "data/images").rename(root / "data/pictures")
    fails("data/images: no such folder")


def test_our_lists_are_the_authors():
    known = {
        "train": "8db94b4a9b33494c20319c6e79073aa7b842a683e6d263c3873d6ee95cebf759",
        "val": "cd278b1232fe5c2347994a9a3c13cd916aa2e72def51b9698993a2e8936797f5",
        "test": "f717536bdff71424f6f7cd0674cf6ac4381b2cffaaf942230b962a9f40671e7a",
    }
    ids: list[str] = []
    for name, digest in known.items():
        data = (REPOSITORY / f"config/splits/nyud-{name}.txt").read_bytes()
        assert hashlib.sha256(data).hexdigest() == digest
        ids += data.decode().split()
    assert sorted(map(int, ids)) == list(range(5001, 5001 + 1449))
    assert len(set(DATASETS["nyud"]["classes"])) == 40


@real
def test_the_real_subset(tmp_path):
    folder = tmp_path / "extracted/nyud.tar.gz"
    with tarfile.open(REAL / "mirror/nyud.tar.gz") as tar:
        tar.extractall(folder, filter="data")
    for part in ("images", "depth"):  # the lists name all; the time goes into HHA: three of each
        for path in sorted((folder / "nyud/data" / part).iterdir())[3:-1]:
            path.unlink()
    sidecar = {"archive": {"name": "nyud.tar.gz", "sha256": "0" * 64, "subset": True}}
    folder.with_name("nyud.tar.gz.json").write_text(json.dumps(sidecar))
    lines = (folder / "nyud/classes.txt").read_text().splitlines()
    assert lines[:40] == DATASETS["nyud"]["classes"]
    info = prepare(
        "nyud", {**DATASETS["nyud"], "splits": {"test": "config/splits/nyud-test.txt"}}, tmp_path
    )
    assert info["subset"] and "ids are in this subset" in info["notes"][-1]
    there = items(tmp_path / "prepared/nyud", "test")
    assert len(there) >= 1 and info["splits"]["test"] == len(there)
    for item in there:
        assert item["image"].shape == item["hha"].shape == (3, 425, 560)
        assert item["depth"].min() > 0 and set(np.unique(item["semantic"])) <= {*range(40), 255}
        stored = loadmat(folder / f"nyud/segmentation/img_{item['id']}.mat")["segmentation"]
        np.testing.assert_array_equal(item["semantic"], stored.astype(np.uint8) - np.uint8(1))
    (first,) = [item for item in there if item["id"] == "5001"]
    original = np.asarray(Image.open(folder / "nyud/data/hha/img_5001.png"))
    np.testing.assert_array_equal(first["hha"].transpose(1, 2, 0), original)


def test_metres_that_16_bits_of_millimetres_do_not_hold_are_refused(own, tmp_path):
    definition, arrays, _ = own
    arrays["depths"][0, 20, 20] = 65.6  # as uint16 it would be 6 cm
    labelled(tmp_path / "archives" / LABELLED, 4, depths=arrays["depths"])
    with pytest.raises(UserError, match="depths of image 1 are not metres between 0 and 65"):
        prepare("n", definition, tmp_path)
