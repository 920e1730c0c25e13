import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from fcn.data.dataset import JoinedSet, SegmentationSet, measure_loading, shared_images
from fcn.data.labels import write_label
from fcn.errors import UserError

SIZES = {"a": (5, 7), "b": (6, 4), "c": (3, 3)}


@pytest.fixture
def prepared(tmp_path):
    """A prepared data set written by hand after docs/architecture.md, without `prepare`."""
    random = np.random.default_rng(0)
    for folder in ("images", "labels", "labels-geometric", "depth", "splits"):
        (tmp_path / folder).mkdir()
    rows, truth = ["id,height,width,image,semantic,depth,geometric"], {}
    for key, (h, w) in SIZES.items():
        image = random.integers(0, 256, (h, w, 3), dtype=np.uint8)
        label = random.choice([0, 1, 2, 255], (h, w)).astype(np.uint8)
        depth = random.integers(0, 9000, (h, w)).astype(np.uint16)
        truth[key] = (image, label, depth)
        Image.fromarray(image).save(tmp_path / f"images/{key}.png")
        Image.fromarray(depth).save(tmp_path / f"depth/{key}.png")
        write_label(tmp_path / f"labels/{key}.png", label)
        write_label(tmp_path / f"labels-geometric/{key}.png", 255 - label)
        rows.append(
            f"{key},{h},{w},images/{key}.png,labels/{key}.png,depth/{key}.png,labels-geometric/{key}.png"
        )
    (tmp_path / "index.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "splits/train.txt").write_text("c\na\n")
    (tmp_path / "splits/val.txt").write_text("b\n")
    (tmp_path / "splits/broken.txt").write_text("z\n")
    info = {
        "classes": {"semantic": ["x", "y", "z"], "geometric": ["u"]},
        "splits": {"train": 2, "val": 1, "broken": 1},
        "inputs": ["image", "depth"],
        "labels": ["semantic", "geometric"],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(info))
    return tmp_path, truth


@pytest.mark.parametrize("cache_bytes", [0, 60, 10**6])
def test_items_are_the_files_whatever_the_cache(prepared, cache_bytes):
    folder, truth = prepared
    train = SegmentationSet(folder, "train", cache_bytes=cache_bytes)
    assert (
        len(train) == 2
        and train.ids == ["c", "a"]
        and train.classes == {"semantic": ["x", "y", "z"]}
    )
    assert train.sizes == [SIZES["c"], SIZES["a"]]
    for _ in range(2):
        for i, key in enumerate(train.ids):
            item = train[i]
            image, label, _ = truth[key]
            assert item["id"] == key
            assert item["image"].dtype == item["semantic"].dtype == torch.uint8
            np.testing.assert_array_equal(item["image"].permute(1, 2, 0).numpy(), image)
            np.testing.assert_array_equal(item["semantic"].numpy(), label)
            item["image"].zero_()  # a caller's changes must not reach the cache
            item["semantic"].zero_()


def test_the_cache_is_used_and_bounded(prepared):
    folder, _ = prepared
    for cache_bytes, kept in (
        (10**6, {"c", "a"}),
        (5 * 7 * 4, {"c"}),
        (3 * 3 * 4, {"c"}),
        (0, set()),
    ):
        train = SegmentationSet(folder, "train", cache_bytes=cache_bytes)
        for i in range(2):
            train[i]
        (folder / "images").rename(folder / "hidden")
        readable = set()
        for i, key in enumerate(train.ids):
            try:
                train[i]
                readable.add(key)
            except UserError as error:
                assert f"images/{key}.png" in str(error)
        (folder / "hidden").rename(folder / "images")
        assert readable == kept


def test_depth_and_a_second_label_set(prepared):
    folder, truth = prepared
    both = SegmentationSet(folder, "val", ("image", "depth"), ("semantic", "geometric"))
    item = both[0]
    assert item["depth"].dtype == torch.float32
    np.testing.assert_array_equal(item["depth"].numpy(), truth["b"][2][None])
    np.testing.assert_array_equal(item["geometric"].numpy(), 255 - truth["b"][1])


def test_it_goes_through_a_loader(prepared):
    loader = DataLoader(SegmentationSet(prepared[0], "train"), batch_size=None, num_workers=1)
    assert [item["id"] for item in loader] == ["c", "a"]


def test_unknown_names_are_told(prepared):
    folder, _ = prepared
    with pytest.raises(UserError, match=r"no split 'test'; there are train, val"):
        SegmentationSet(folder, "test")
    with pytest.raises(UserError, match=r"inputs hha not.*image, depth"):
        SegmentationSet(folder, "val", inputs=("hha",))
    with pytest.raises(UserError, match=r"labels parts not.*semantic, geometric"):
        SegmentationSet(folder, "val", labels=("parts",))
    with pytest.raises(UserError, match=r"names 'z', which index\.csv lacks"):
        SegmentationSet(folder, "broken")
    with pytest.raises(UserError, match=r"dataset\.json: no such file"):
        SegmentationSet(folder / "images", "val")
    with pytest.raises(IndexError):
        SegmentationSet(folder, "val")[1]


@pytest.mark.parametrize("text", ["[]", "{}", "null"])
def test_json_of_another_form_is_told(prepared, text):
    (prepared[0] / "dataset.json").write_text(text)
    with pytest.raises(UserError, match=r"dataset\.json: not written by this program; delete it"):
        SegmentationSet(prepared[0], "train")


def test_loading_is_measured(prepared):
    rate = measure_loading(SegmentationSet(prepared[0], "train"), 0.05)
    assert 10 < rate < 10**6


def test_joined_sets_are_their_images_in_order(data_dir):
    parts = [
        SegmentationSet(data_dir / "prepared" / name, split)
        for name, split in (("tiny", "val"), ("square", "train"))
    ]
    joined = JoinedSet(parts)
    assert len(joined) == 12 and joined.sizes == parts[0].sizes + parts[1].sizes
    for i in range(len(joined)):
        item = joined[i]
        alone = parts[0][i] if i < 4 else parts[1][i - 4]
        assert torch.equal(item["image"], alone["image"])
        assert torch.equal(item["semantic"], alone["semantic"])
        name = alone["id"] if i < 4 else f"square/{alone['id']}"
        assert item["id"] == joined.ids[i] == name
    assert len(set(joined.ids)) == 12 and joined.classes == parts[0].classes


def test_joined_sets_are_of_the_same_classes_and_a_subset_where_a_part_is(data_dir):
    first, second = (
        SegmentationSet(data_dir / "prepared" / name, "val") for name in ("tiny", "square")
    )
    assert JoinedSet([first, second]).info["subset"] is False
    second.info["subset"] = True
    assert JoinedSet([first, second]).info["subset"] is True
    second.info["classes"]["semantic"][1:3] = reversed(second.info["classes"]["semantic"][1:3])
    with pytest.raises(UserError, match=r"square: other classes than those of .*tiny"):
        JoinedSet([first, second])


def test_shared_images_are_those_of_one_id_and_one_file(prepared, tmp_path_factory):
    folder, _ = prepared
    (folder / "splits/all.txt").write_text("b\nc\na\n")
    info = json.loads((folder / "dataset.json").read_text())
    info["splits"]["all"] = 3
    (folder / "dataset.json").write_text(json.dumps(info))
    train, val, every = (SegmentationSet(folder, split) for split in ("train", "val", "all"))
    assert [shared_images(train, of) for of in (train, val, every)] == [2, 0, 2]
    copy = tmp_path_factory.mktemp("copy") / "set"
    shutil.copytree(folder, copy)
    Image.new("RGB", (7, 5)).save(copy / "images/a.png")  # another image of that name
    assert shared_images(SegmentationSet(copy, "train"), every) == 1
    assert shared_images(train, SegmentationSet(copy, "all")) == 1
