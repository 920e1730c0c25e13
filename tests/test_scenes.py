"""The generated scenes: exact labels, the same bytes from a seed, classes that differ as stated."""

import hashlib
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fcn.data import scenes
from fcn.errors import UserError
from fcn.schema import check

DEMO = ((96, 96), (128, 128))
SMALL = ((40, 48), (48, 64))
seeds = st.integers(0, 2**32)
few = settings(max_examples=15, deadline=None)


def tree(root: Path) -> dict[str, str]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def make(root: Path, seed: int = 4, **splits: int) -> dict[str, str]:
    scenes.generate(root, {"seed": seed, "splits": splits, "size": [[40, 48], [48, 64]]})
    return tree(root)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


# ---- files ---------------------------------------------------------------------------------------


def test_same_seed_same_bytes_and_another_seed_differs(tmp_path: Path) -> None:
    first, again = make(tmp_path / "a", train=3, val=2), make(tmp_path / "b", train=3, val=2)
    assert first == again
    other = make(tmp_path / "c", seed=5, train=3, val=2)
    same = {name for name in first if first[name] == other[name]}
    assert {name for name in same if "JPEGImages" in name or "depth" in name} == set()


def test_an_image_does_not_depend_on_the_other_images_or_splits(tmp_path: Path) -> None:
    few_, many = make(tmp_path / "a", val=2), make(tmp_path / "b", train=2, val=4, more=1)
    images = [name for name in few_ if name.endswith(".png")]
    assert len(images) == 4 * 2
    assert all(few_[name] == many[name] for name in images)
    assert many["JPEGImages/val_00000.png"] != many["JPEGImages/train_00000.png"]


def test_layout_names_and_formats(tmp_path: Path) -> None:
    make(tmp_path, train=3, val=1)
    lists = tmp_path / "ImageSets" / "Segmentation"
    assert (lists / "train.txt").read_text().split() == [
        "train_00000",
        "train_00001",
        "train_00002",
    ]
    assert (lists / "val.txt").read_text() == "val_00000\n"
    assert (tmp_path / "classes.txt").read_text().splitlines() == scenes.semantic_classes()
    assert (tmp_path / "classes-geometric.txt").read_text().splitlines() == [
        "sky",
        "horizontal",
        "vertical",
    ]
    folders = ("JPEGImages", "SegmentationClass", "GeometricClass", "depth")
    for name in ("train_00000", "train_00001", "train_00002", "val_00000"):
        opened = [Image.open(tmp_path / folder / f"{name}.png") for folder in folders]
        assert [image.mode for image in opened] == ["RGB", "P", "P", "I;16"]
        assert len({image.size for image in opened}) == 1
        width, height = opened[0].size
        assert (40 <= height <= 48 and 48 <= width <= 64) or (
            40 <= width <= 48 and 48 <= height <= 64
        )
        palette = opened[1].getpalette()
        assert palette is not None  # VOC's colours of aeroplane, person and void
        assert [palette[3 * k : 3 * k + 3] for k in (1, 15, 255)] == [
            [128, 0, 0],
            [192, 128, 128],
            [224, 224, 192],
        ]


def test_pixels_are_the_same_everywhere() -> None:
    """A digest of pixels, not of files: zlib may differ from place to place.

    It was the same with and without NumPy's vector instructions. Whoever changes the generator
    changes every figure made from it, and this line with it.
    """
    painted = scenes.scene(1, "train", 0, DEMO)
    digest = hashlib.sha256()
    for values in (
        painted.image(),
        painted.label,
        painted.geometric,
        painted.depth,
        painted.void(),
    ):
        digest.update(values.tobytes())
    images, labels = scenes.classification(1, 30, 48)
    digest.update(images.tobytes() + labels.tobytes())
    assert digest.hexdigest() == "69693d2475c2a7c8a74944889269cf337720f068e604815d77509485043f7ad4"


def test_files_hold_what_was_painted(tmp_path: Path) -> None:
    make(tmp_path, train=2)
    for index in range(2):
        name, painted = f"train_{index:05d}.png", scenes.scene(4, "train", index, SMALL)
        void = painted.void()
        label, geometric = (
            pixels(tmp_path / folder / name) for folder in ("SegmentationClass", "GeometricClass")
        )
        assert np.array_equal(label == 255, void) and np.array_equal(geometric == 255, void)
        assert np.array_equal(label[~void], painted.label[~void])
        assert np.array_equal(geometric[~void], painted.geometric[~void])
        assert np.abs(pixels(tmp_path / "depth" / name) / 1000 - painted.depth).max() < 0.00051
        assert np.array_equal(pixels(tmp_path / "JPEGImages" / name), painted.image())


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save, calls = Image.Image.save, Counter[str]()

    def failing(self: Image.Image, *args: Any, **options: Any) -> None:
        calls["save"] += 1
        if calls["save"] == 6:
            raise OSError("disk full")
        save(self, *args, **options)

    monkeypatch.setattr(Image.Image, "save", failing)
    with pytest.raises(OSError, match="disk full"):
        make(tmp_path / "data", train=3)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_filled_and_a_full_one_is_refused(tmp_path: Path) -> None:
    make(tmp_path, train=1)
    before = tree(tmp_path)
    with pytest.raises(UserError, match="already holds something"):
        make(tmp_path, train=2)
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seed": -1}, "seed: -1 is less than the minimum of 0 (Another one"),
        ({"seed": 2**63}, "seed: 9223372036854775808 is greater than the maximum"),
        ({"seed": True}, "seed: True is not a whole number"),
        ({"seed": 1.5}, "seed: 1.5 is not a whole number"),
        ({"splits": {}}, "splits: {} should be non-empty"),
        ({"splits": ["train"]}, "splits: ['train'] is not a mapping"),
        ({"splits": {"train": 0}}, "splits.train: 0 is less than the minimum of 1 (a number of"),
        ({"splits": {"train": 100000}}, "splits.train: 100000 is greater than the maximum of 9"),
        ({"splits": {"train": "train.txt"}}, "splits.train: 'train.txt' is not a whole number"),
        ({"splits": {"../up": 1}}, "splits: '../up' is not the name of a split; take letters, d"),
        ({"size": [96]}, "size: [96] is too short ([height, width], each a number or [smallest"),
        ({"size": [16, 96]}, "size.0: 16 is less than the minimum of 32"),
        ({"size": [96, [32, 4096]]}, "size.1.1: 4096 is greater than the maximum of 2048"),
        ({"size": [96, [32]]}, "size.1: [32] is too short"),
        ({"size": "96x128"}, "size: '96x128' is not a list"),
        ({"objects": 3}, "objects: 3 is not a list ([fewest, most] objects of a scene"),
        ({"objects": [1, 2.5]}, "objects.1: 2.5 is not a whole number"),
        ({"objects": [1, 101]}, "objects.1: 101 is greater than the maximum of 100"),
        ({"object_scale": 0}, "object_scale: 0 is less than the minimum of 1"),
        ({"object_scale": "4"}, "object_scale: '4' is not a number"),
        ({"object_scale": True}, "object_scale: True is not a number"),
    ],
)
def test_a_bad_definition_is_refused(change: dict[str, Any], says: str) -> None:
    definition = {"reader": "scenes", "seed": 1, "splits": {"train": 1}, "size": [40, 48]}
    with pytest.raises(UserError, match=f"own.yaml: {re.escape(says)}"):
        check(definition | change, {"$ref": "#/$defs/dataset"}, Path("own.yaml"))


@pytest.mark.parametrize("key", ["seed", "splits", "size"])
def test_a_missing_key_is_named(key: str) -> None:
    definition = {"reader": "scenes", "seed": 1, "splits": {"train": 1}, "size": [40, 48]}
    del definition[key]
    with pytest.raises(UserError, match=f"own.yaml: the key '{key}' is missing"):
        check(definition, {"$ref": "#/$defs/dataset"}, Path("own.yaml"))


@pytest.mark.parametrize("change", [{"size": [[64, 48], 96]}, {"objects": [3, 1]}], ids=str)
def test_a_range_that_ends_before_it_begins_is_refused(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    ((key, _),) = change.items()
    definition = {"seed": 1, "splits": {"train": 1}, "size": [40, 48]}
    with pytest.raises(UserError, match=rf"scenes: {key}: \[.*\] is not \[smallest, largest\]"):
        scenes.generate(tmp_path / "data", definition | change)
    assert not (tmp_path / "data").exists()


# ---- labels, depth and geometry ------------------------------------------------------------------


@few
@given(seeds, st.tuples(st.integers(32, 70), st.integers(32, 70)), st.integers(0, 9))
def test_size_is_as_asked_in_either_orientation(
    seed: int, size: tuple[int, int], more: int
) -> None:
    height, width = size
    painted = scenes.scene(seed, "train", 0, ((height, height + more), (width, width + more)))
    h, w = painted.label.shape
    assert (height <= h <= height + more and width <= w <= width + more) or (
        height <= w <= height + more and width <= h <= width + more
    )
    assert painted.image().shape == (h, w, 3) and painted.image().dtype == np.uint8
    assert painted.depth.shape == painted.geometric.shape == painted.order.shape == (h, w)


def test_fewer_and_larger_objects_as_asked(tmp_path: Path) -> None:
    """None, or one larger where it stands; what is not said is 4 to 8 of size 1."""
    size: dict[str, Any] = {"seed": 1, "splits": {"a": 12}, "size": [96, 128]}
    made = {}
    asked: dict[str, dict[str, Any]] = {
        "usual": {},
        "same": {"objects": [4, 8], "object_scale": 1},
        "none": {"objects": [0, 0]},
        "one": {"objects": [1, 1]},
        "large": {"objects": [1, 1], "object_scale": 4},
    }
    for name, more in asked.items():
        scenes.generate(tmp_path / name, size | more)
        labels = sorted((tmp_path / name / "SegmentationClass").iterdir())
        made[name] = [pixels(path) for path in labels]
    assert tree(tmp_path / "usual") == tree(tmp_path / "same")
    water = len(scenes.KINDS) + 1
    kinds = {
        name: [set(np.unique(label)) - {0, 255, water} for label in labels]
        for name, labels in made.items()
    }
    assert not any(kinds["none"]) and max(map(len, kinds["one"])) == 1
    assert max(map(len, kinds["usual"])) > 2
    covered = {
        name: float(np.mean([(label % 255 > 0).mean() for label in labels]))
        for name, labels in made.items()
    }
    assert covered["large"] > 1.4 * covered["one"] > 0


def test_an_object_is_enlarged_as_far_as_all_of_it_has_room() -> None:
    for kind in scenes.KINDS:
        for scale in (1.0, 2.0, 100.0):
            picture = scenes.Scene(scenes._generator(3, kind.name, 0), 96, 128)
            empty = picture.label.copy()
            picture.stand(kind, 7, 80, 64.0, scale)
            rows, columns = np.nonzero(picture.label != empty)
            high, wide = np.ptp(rows) + 1, np.ptp(columns) + 1
            if scale == 1.0:
                first = high
            elif first < 80 and wide < 128:  # what fits does so still, and is larger
                assert high <= 80 and (high > first or wide > 0.7 * 128)
            if scale == 100.0 and first < 80:
                assert high > 0.9 * 80 or wide > 0.6 * 128


@few
@given(seeds)
def test_void_is_one_pixel_on_the_hidden_side_of_objects(seed: int) -> None:
    painted = scenes.scene(seed, "train", 0, SMALL)
    order, label, void = painted.order, painted.label, painted.void()
    height, width = order.shape
    for y in range(height):
        for x in range(width):
            hidden = False
            for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if 0 <= v < height and 0 <= u < width and order[v, u] > order[y, x]:
                    hidden |= bool(label[v, u] or label[y, x])
            assert void[y, x] == hidden
    seen = np.where(void, -1, label.astype(int))
    for one, other in ((seen[1:], seen[:-1]), (seen[:, 1:], seen[:, :-1])):
        assert ((one == other) | (one < 0) | (other < 0)).all()  # classes never touch
    assert not void[order == order.max()].any()  # what nothing hides keeps its full width


@few
@given(seeds)
def test_geometry_agrees_with_semantics_and_depth(seed: int) -> None:
    painted = scenes.scene(seed, "train", 0, SMALL)
    names = np.array(scenes.semantic_classes())[painted.label]
    rows = np.broadcast_to(np.arange(len(names))[:, None], names.shape)
    sky, horizontal, vertical = (painted.geometric == k for k in range(3))
    assert painted.label.max() < len(scenes.semantic_classes()) and painted.geometric.max() <= 2
    assert horizontal[names == "water"].all()
    assert vertical[(names != "water") & (names != "background")].all()
    assert (names[sky] == "background").all()
    assert (rows[sky] < painted.horizon).all() and (rows[horizontal] >= painted.horizon).all()
    assert (painted.depth > 0).all() and painted.depth.max() < 65.535
    if sky.any():
        assert painted.depth[sky].min() > painted.depth[~sky].max()
    ground = np.where(horizontal, painted.depth, np.nan)
    row_depth = [set(row[~np.isnan(row)]) for row in ground]
    assert all(len(values) <= 1 for values in row_depth)  # flat ground: one depth a row ...
    falling = [values.pop() for values in row_depth if values]
    assert falling == sorted(falling, reverse=True)  # ... and nearer the lower the row


@few
@given(seeds, st.sampled_from([SMALL, DEMO]))
def test_what_is_painted_is_nearer_than_what_it_hides(seed: int, size: Any) -> None:
    painted, beneath = [], []

    class Watched(scenes.Scene):
        def paste(self, *args: Any) -> None:
            before = self.depth.copy()
            super().paste(*args)
            new = self.order == self.count
            painted.append(self.depth[new])
            beneath.append(before[new])

    rng = np.random.Generator(np.random.PCG64(seed))
    Watched(rng, size[0][0], size[1][0]).populate()
    assert (np.concatenate(painted) <= np.concatenate(beneath)).all()


def test_every_class_occurs_background_dominates_and_the_tail_is_long() -> None:
    names, count = scenes.semantic_classes(), 200
    assert names[0] == "background" and 12 <= len(names) == len(set(names)) <= 16
    area, present, void, landscape = np.zeros(len(names)), np.zeros(len(names)), 0, 0
    for index in range(count):
        painted = scenes.scene(1, "train", index, DEMO)
        edge = painted.void()
        of_class = np.bincount(painted.label[~edge], minlength=len(names))
        area, present, void = area + of_class, present + (of_class > 0), void + edge.sum()
        landscape += painted.width > painted.height
    share = area / area.sum()
    assert 0.60 < share[0] < 0.75
    assert present.min() >= 0.1 * count
    assert share[1:].max() / share[1:].min() > 10
    assert void / (96 * 128 * count) < 0.08
    assert 80 <= landscape <= 120


# ---- what tells the classes apart ----------------------------------------------------------------


def sprites(name: str, count: int = 60) -> list[scenes.Sprite]:
    kind = next(kind for kind in scenes.KINDS if kind.name == name)
    drawn = []
    for seed in range(count):
        sprite = scenes.Sprite(32, round(32 * kind.aspect[0]))
        kind.draw(sprite, np.random.Generator(np.random.PCG64(seed)))
        drawn.append(sprite)
    return drawn


def test_horse_cow_and_zebra_differ_in_texture_not_in_shape_or_mean_colour() -> None:
    mean, edges, shape = {}, {}, {}
    for name in ("horse", "cow", "zebra"):
        drawn = sprites(name)
        grey = [s.rgb.mean(2) for s in drawn]
        inside = [s.mask[:, 1:] & s.mask[:, :-1] for s in drawn]
        mean[name] = np.array([g[s.mask].mean() for g, s in zip(grey, drawn, strict=True)])
        edges[name] = np.mean(
            [np.abs(np.diff(g, axis=1))[i].mean() for g, i in zip(grey, inside, strict=True)]
        )
        shape[name] = np.mean([s.mask for s in drawn], axis=0)
    centres = [values.mean() for values in mean.values()]
    assert max(centres) - min(centres) < min(values.std() for values in mean.values())
    assert np.abs(shape["horse"] - shape["zebra"]).mean() < 0.05
    assert edges["zebra"] > 2 * edges["cow"] > 4 * edges["horse"]


@pytest.mark.parametrize("pair", [("car", "bus"), ("tree", "conifer")])
def test_car_and_bus_tree_and_conifer_share_colours_and_differ_in_shape(
    pair: tuple[str, str],
) -> None:
    colours, outlines = [], []
    for name in pair:
        drawn = sprites(name)
        colours.append(np.array([s.rgb[s.mask].mean(0) for s in drawn]))
        outlines.append(np.mean([s.mask.mean(1) for s in drawn], axis=0))
    apart = np.abs(colours[0].mean(0) - colours[1].mean(0))
    assert (apart < np.minimum(colours[0].std(0), colours[1].std(0))).all()
    assert np.abs(outlines[0] - outlines[1]).mean() > 0.1


# ---- classification ------------------------------------------------------------------------------


@few
@given(seeds, st.integers(1, 40), st.integers(32, 48))
def test_classification_is_balanced_and_repeatable(seed: int, count: int, size: int) -> None:
    images, labels = scenes.classification(seed, count, size)
    assert images.shape == (count, 3, size, size) and images.dtype == np.uint8
    assert labels.shape == (count,) and labels.dtype == np.int64
    per_class = np.bincount(labels, minlength=len(scenes.classification_classes()))
    assert len(per_class) == len(scenes.classification_classes())
    assert per_class.max() - per_class.min() <= 1
    again, same = scenes.classification(seed, count, size)
    assert np.array_equal(images, again) and np.array_equal(labels, same)
    assert not np.array_equal(images, scenes.classification(seed + 1, count, size)[0])


def test_a_classified_picture_shows_its_class_and_no_other() -> None:
    assert scenes.classification_classes() == scenes.semantic_classes()[1:]
    for label in range(1, len(scenes.semantic_classes())):
        shares = []
        for seed in range(20):
            rng = np.random.Generator(np.random.PCG64([seed, label]))
            shown = scenes._portrait(rng, label, 64).label
            assert set(np.unique(shown)) == {0, label}
            shares.append((shown == label).mean())
        assert np.mean(shares) > 0.02


@pytest.mark.parametrize(("count", "size"), [(0, 64), (4, 16)])
def test_classification_refuses_what_it_cannot_make(count: int, size: int) -> None:
    with pytest.raises(UserError, match="classification"):
        scenes.classification(1, count, size)
