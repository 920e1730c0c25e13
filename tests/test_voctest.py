import pytest
from PIL import Image

from fcn.data.dataset import SegmentationSet
from fcn.data.prepare import prepare
from fcn.errors import UserError
from tests.test_prepare import DATASETS, extracted


@pytest.fixture(params=["voc2011test", "voc2012test"])
def small(request, tmp_path):
    """The test archive of the server: more images than the segmentation list has."""
    definition = DATASETS[request.param]
    root = extracted(tmp_path, definition["archives"][0]) / definition["root"]
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "JPEGImages").mkdir()
    for i, key in enumerate("abc"):
        Image.new("RGB", (5 + i, 4), (i, 0, 0)).save(root / f"JPEGImages/{key}.jpg")
    (root / "ImageSets/Segmentation/test.txt").write_text("c\na\n")
    return request.param, definition, root


def test_images_without_labels_are_a_data_set(small, tmp_path):
    name, definition, _ = small
    info = prepare(name, definition, tmp_path)
    assert info["splits"] == {"test": 2} and info["inputs"] == ["image"]
    assert info["labels"] == [] and info["classes"] == {}
    prepared = tmp_path / "prepared" / name
    header, *rows = (prepared / "index.csv").read_text().splitlines()
    assert header == "id,height,width,image" and len(rows) == 2
    assert not list(prepared.glob("labels*"))
    dataset = SegmentationSet(prepared, "test", labels=())
    assert dataset.ids == ["c", "a"] and dataset.sizes == [(4, 7), (4, 5)]
    assert set(dataset[0]) == {"id", "image"}
    with pytest.raises(UserError, match="labels semantic not in this data set"):
        SegmentationSet(prepared, "test")


def test_a_listed_image_must_be_there(small, tmp_path):
    name, definition, root = small
    (root / "JPEGImages/a.jpg").unlink()
    with pytest.raises(UserError, match=r"test\.txt: 1 of 2 ids of split test have no file in JP"):
        prepare(name, definition, tmp_path)
