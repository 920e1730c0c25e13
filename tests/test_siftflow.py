import hashlib

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from scipy.io import loadmat, savemat

from fcn.data.archives import extract, fetch
from fcn.data.prepare import REPOSITORY, prepare
from fcn.data.readers.siftflow import SCENES, read_siftflow
from fcn.data.splits import read_ids
from fcn.errors import UserError
from tests.test_prepare import DATASETS, REAL, extracted, items

DEFINITION = DATASETS["siftflow"]
ARCHIVE = "SiftFlowDataset.zip"
TRAINVAL, TEST = (
    read_ids(REPOSITORY / f"config/splits/siftflow-{split}.txt") for split in ("trainval", "test")
)


def theirs(values: np.ndarray, task: str) -> np.ndarray:
    """Uint8 arithmetic with wrap-around, as the authors' layer does it."""
    values = values.copy()
    if task == "geometric":
        values[values == -1] = 0
    values = values.astype(np.uint8)
    values -= 1
    return values


@given(
    task=st.sampled_from(["semantic", "geometric"]),
    dtype=st.sampled_from([np.int16, np.int32, np.float64]),
    data=st.data(),
)
def test_labels_are_the_authors(tmp_path_factory, task, dtype, data):
    low, high = (0, 33) if task == "semantic" else (-1, 3)
    shape = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    values = data.draw(arrays(np.int16, shape, elements=st.integers(low, high))).astype(dtype)
    path = tmp_path_factory.mktemp("mat") / "x.mat"
    savemat(path, {"S": values, "names": np.array(["x"], object)})
    label = read_siftflow(path, high, task)
    assert label.dtype == np.uint8
    np.testing.assert_array_equal(label, theirs(values, task))
    assert set(np.unique(label)) <= {*range(high), 255}


def tree(data_dir, ids, size=(3, 4)):
    root = extracted(data_dir, ARCHIVE, subset=True) / "SiftFlowDataset"
    random = np.random.default_rng(0)
    truth = {}
    for place in ("Images", "SemanticLabels", "GeoLabels"):
        (root / place / SCENES).mkdir(parents=True)
    for key in ids:
        Image.new("RGB", size[::-1]).save(root / f"Images/{SCENES}/{key}.jpg")
        truth[key] = [
            random.integers(0, 34, size, np.uint8),
            random.integers(-1, 4, size, np.int16),
        ]
        for place, values in zip(("SemanticLabels", "GeoLabels"), truth[key], strict=True):
            savemat(root / place / SCENES / f"{key}.mat", {"S": values})
    return root, truth


@pytest.fixture
def small(tmp_path):
    return tree(tmp_path, [*TRAINVAL[:3], TEST[0], "highway_bost181"])


def test_both_label_sets_become_pngs(small, tmp_path):
    _, truth = small
    info = prepare("siftflow", DEFINITION, tmp_path)
    assert info["splits"] == {"trainval": 3, "test": 1} and info["subset"] is True
    assert info["notes"] == [
        "trainval: 3 of 2486 ids are in this subset",
        "test: 1 of 200 ids are in this subset",
    ]
    assert info["labels"] == ["semantic", "geometric"]
    assert [len(info["classes"][task]) for task in info["labels"]] == [33, 3]
    found = items(tmp_path / "prepared/siftflow", "trainval", ("semantic", "geometric"))
    assert [item["id"] for item in found] == TRAINVAL[:3]
    for item in found:
        for task, values in zip(info["labels"], truth[item["id"]], strict=True):
            np.testing.assert_array_equal(item[task].numpy(), theirs(values, task))


@pytest.mark.parametrize(
    ("place", "content", "message"),
    [
        ("SemanticLabels", {"T": np.zeros((3, 4))}, r"\.mat: no variable S in it, only T"),
        ("GeoLabels", {"S": np.full((3, 4), 4)}, r"\.mat: label value 4 in 12 pixels"),
        ("GeoLabels", {"S": np.full((3, 4), -2)}, r"\.mat: label value -2 in 12 pixels"),
        ("SemanticLabels", {"S": np.full((3, 4), 34)}, r"label value 34 .* only 0 to 33"),
        ("SemanticLabels", {"S": np.full((3, 4), -1)}, r"label value -1 in 12"),
        ("SemanticLabels", {"S": np.full((3, 4), 1.5)}, "its S is not a matrix of whole numbers"),
        ("SemanticLabels", {"S": np.full((3, 4), np.nan)}, "not a matrix of whole numbers"),
        ("SemanticLabels", {"S": {"x": 1}}, "not a matrix of whole numbers"),
        ("SemanticLabels", {"S": np.zeros((3, 4, 2))}, "not a matrix of whole numbers"),
        ("SemanticLabels", {"S": np.zeros((4, 3))}, "the image is 4x3 but its semantic label 3x4"),
        ("GeoLabels", b"MATLAB 5.0", "not a readable MAT file"),
    ],
)
def test_damaged_labels_are_named(small, tmp_path, place, content, message):
    root, _ = small
    path = root / place / SCENES / f"{TRAINVAL[1]}.mat"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        savemat(path, content)
    with pytest.raises(UserError, match=message) as error:
        prepare("siftflow", DEFINITION, tmp_path)
    assert TRAINVAL[1] in str(error.value)
    assert not (tmp_path / "prepared/siftflow").exists()


def test_a_whole_data_set_must_have_every_id(small, tmp_path):
    sidecar = tmp_path / f"extracted/{ARCHIVE}.json"
    sidecar.write_text(sidecar.read_text().replace("true", "false"))
    with pytest.raises(UserError, match=r"siftflow-trainval\.txt: 2483 of 2486 ids"):
        prepare("siftflow", DEFINITION, tmp_path)


def test_lists_and_classes_are_the_authors():
    known = {
        "trainval": "4321de2b164556875661a66c64e6b5ebe1493a6e3dfa51d93700e3d17dbedfe7",
        "test": "d9d024d06b1ed2139b0e1bdbc78ede9897c3389cd588cd5c37268a931c1d36ae",
    }
    for split, digest in known.items():
        data = (REPOSITORY / f"config/splits/siftflow-{split}.txt").read_bytes()
        assert hashlib.sha256(data).hexdigest() == digest
    assert len(TRAINVAL) == 2486 and len(TEST) == 200 and not set(TRAINVAL) & set(TEST)
    assert not {"highway_bost181", "street_urb506"} & {*TRAINVAL, *TEST}
    classes = DEFINITION["classes"]
    assert classes["semantic"] == sorted(classes["semantic"]) and len(classes["semantic"]) == 33


@pytest.mark.skipif(
    not (REAL / "mirror" / ARCHIVE).exists(), reason=f"shared/data/mirror/{ARCHIVE} is not here"
)
def test_the_real_archive(tmp_path):
    archives = yaml.safe_load((REPOSITORY / "config/archives.yaml").read_text("utf-8"))
    fetch(ARCHIVE, archives[ARCHIVE], tmp_path, str(REAL / "mirror"), mirror_is_subset=True)
    extract(ARCHIVE, tmp_path)
    info = prepare("siftflow", DEFINITION, tmp_path)
    assert info["subset"] is True and info["splits"] == {"trainval": 172, "test": 12}
    found = items(tmp_path / "prepared/siftflow", "test", ("semantic", "geometric"))
    root = tmp_path / "extracted" / ARCHIVE / "SiftFlowDataset"
    names = info["classes"]["semantic"]
    for item in found:
        assert item["image"].shape == (3, 256, 256)
        file = loadmat(root / "SemanticLabels" / SCENES / f"{item['id']}.mat")
        assert [str(name[0]) for name in file["names"].ravel()] == names
        np.testing.assert_array_equal(item["semantic"].numpy(), theirs(file["S"], "semantic"))
        sky = item["semantic"].numpy() == names.index("sky")
        assert (item["geometric"].numpy()[sky] == 0).all()
        file = loadmat(root / "GeoLabels" / SCENES / f"{item['id']}.mat")
        np.testing.assert_array_equal(item["geometric"].numpy(), theirs(file["S"], "geometric"))
