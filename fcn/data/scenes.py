"""Generated street, park and farm scenes with exact labels: a data set that needs no network.

A scene is painted from far to near along a ground plane seen by a pinhole camera, so that labels,
depth and geometry agree by construction. Objects are flat, upright and face the camera.

Only IEEE-exact arithmetic and uniform random numbers are used (no sine, no normal deviates), so
that a seed gives the same pixels everywhere.
"""

import hashlib
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fcn.data import textures
from fcn.data.sprites import (
    CLUTTER,
    KINDS,
    WATER,
    WATER_SHARE,
    Kind,
    Sprite,
    classification_classes,
    foliage,
    geometric_classes,
    semantic_classes,
)
from fcn.data.textures import Floats, Mask, Rng, between
from fcn.errors import UserError
from fcn.files import atomic_dir, write_text

VOID = 255
SKY, HORIZONTAL, VERTICAL = 0, 1, 2
SKY_METRES, FAR_METRES = 65.0, 55.0  # sky; the farthest ground and the hills. 16 bit mm hold 65.5 m
BACKGROUND = 0
OBJECTS = (4, 8)  # the fewest and the most of a scene, where its definition does not say


class Scene:
    """A picture being painted from far to near.

    ``rgb`` (h, w, 3) float32 before light and noise; ``label`` (h, w) uint8 without void;
    ``geometric`` (h, w) uint8; ``depth`` (h, w) float32 in metres; ``order`` (h, w) int16, 0 for
    the backdrop and k for the k-th region painted on it, so that a higher one hides a lower one.
    """

    def __init__(self, rng: Rng, height: int, width: int) -> None:
        self.rng, self.height, self.width = rng, height, width
        self.place = int(rng.integers(3))  # street, park, farm
        self.focal = 1.1 * max(height, width)
        self.eye = between(rng, 1.7, 3.0)
        self.horizon = round(between(rng, 0.3, 0.5) * height)
        self.label = np.zeros((height, width), np.uint8)
        self.order = np.zeros((height, width), np.int16)
        self.count = 0
        self._backdrop()

    def _backdrop(self) -> None:
        """Sky with clouds, hills or a far wood, and ground with perhaps a road."""
        rng, height, width, horizon = self.rng, self.height, self.width, self.horizon
        rows = np.arange(height, dtype=np.float32)
        self.rgb = np.empty((height, width, 3), np.float32)
        zenith = textures.tone(rng, (75, 115, 165), (165, 185, 230))
        haze = textures.tone(rng, (170, 170, 165), (240, 240, 240))
        fall = (rows[:horizon, None, None] + 0.5) / np.float32(horizon)
        clouds = textures.smooth(rng, horizon, width, max(3.0, height / 12), max(4.0, width / 5))
        cover = np.clip(clouds * 3 - np.float32(between(rng, 1.2, 2.8)), 0, 1)[..., None]
        sky = zenith + (haze - zenith) * fall
        self.rgb[:horizon] = sky + (np.float32(235) - sky) * cover

        below = rows[horizon:] + np.float32(0.5) - horizon
        ground_depth = np.minimum(np.float32(self.focal * self.eye) / below, np.float32(FAR_METRES))
        lawn = textures.colour(rng, (75, 95, 40), (150, 155, 85))
        paved = textures.tone(rng, (95, 90, 85), (175, 170, 165))
        base = paved if self.place == 0 and rng.random() < 0.6 else lawn
        low = height - horizon
        patches = textures.smooth(rng, low, width, max(2.0, height / 24), max(3.0, width / 8))[
            ..., None
        ]
        self.rgb[horizon:] = base * (np.float32(0.75) + np.float32(0.5) * patches)
        self.rgb[horizon:] += textures.grain(rng, low, width, 14)
        self.depth = np.empty((height, width), np.float32)
        self.depth[:horizon], self.depth[horizon:] = SKY_METRES, ground_depth[:, None]
        self.geometric = np.full((height, width), HORIZONTAL, np.uint8)
        self.geometric[:horizon] = SKY
        if rng.random() < (0.9, 0.4, 0.3)[self.place]:
            self._road(below)

        tall = int(height * between(rng, 0.02, 0.14))
        crest = textures.smooth(rng, 1, width, 1.0, max(4.0, width / between(rng, 3, 14)))
        far = slice(horizon - tall, horizon)
        hill = rows[far, None] >= horizon - crest * np.float32(tall)
        tone = (
            foliage(rng)
            if rng.random() < 0.6
            else textures.tone(rng, (80, 85, 90), (150, 150, 160))
        )
        self.rgb[far][hill] = textures.leaves(rng, tall, width, tone)[hill]
        self.depth[far][hill], self.geometric[far][hill] = FAR_METRES, VERTICAL

    def _road(self, below: Floats) -> None:
        rng = self.rng
        vanish = between(rng, 0.1, 0.9) * self.width
        lean, half = between(rng, -1.2, 1.2), between(rng, 0.4, 1.1)
        across = np.arange(self.width, dtype=np.float32)[None, :] + 0.5 - vanish
        offset = across / below[:, None] - np.float32(lean)
        ground = self.rgb[self.horizon :]
        asphalt = np.full(3, between(rng, 70, 150), np.float32)
        road = np.abs(offset) < half
        grain = textures.grain(rng, len(below), self.width, 9)
        ground[road] = (asphalt + grain)[road]
        dash = (np.float32(40) / below % 2 < 1)[:, None] & (np.abs(offset) < np.float32(0.05))
        ground[dash] = 225

    def pond(self, low: float = 0.15, high: float = 0.45) -> None:
        """A pond on the ground: an ellipse whose half width is low to high of the picture's."""
        rng = self.rng
        ground = self.height - self.horizon
        rx, ry = (
            between(rng, low, high) * self.width,
            between(rng, low, high) * 0.55 * ground,
        )
        x = between(rng, 0, 1) * self.width
        y = self.horizon + 1 + ry + between(rng, 0, 1) * max(0.0, ground - 1.5 * ry)
        dy = (np.arange(self.height, dtype=np.float32)[:, None] + 0.5 - y) / max(ry, 1.5)
        dx = (np.arange(self.width, dtype=np.float32)[None, :] + 0.5 - x) / max(rx, 2.0)
        edge = textures.smooth(rng, 1, self.width, 1.0, max(4.0, rx / 3)) * np.float32(0.5)
        region = (dx * dx + dy * dy <= 1 - edge) & (self.geometric == HORIZONTAL)
        colour = textures.colour(rng, (60, 85, 95), (130, 150, 180))
        self.count += 1
        self.rgb[region] = textures.ripples(rng, self.height, self.width, colour)[region]
        self.label[region], self.order[region] = WATER, self.count

    def sprite(self, kind: Kind, height: int) -> Sprite:
        """Draw one object ``height`` pixels high, with its own light, perhaps turned round."""
        rng = self.rng
        sprite = Sprite(height, max(3, round(height * between(rng, *kind.aspect))))
        kind.draw(sprite, rng)
        if rng.random() < 0.5:
            sprite.rgb, sprite.mask = sprite.rgb[:, ::-1], sprite.mask[:, ::-1]
        gain, side = between(rng, 0.75, 1.2), between(rng, -0.25, 0.25)
        light = np.float32(gain) + np.float32(side) * (sprite.x / sprite.width - np.float32(0.5))
        sprite.rgb = (sprite.rgb * light[..., None]).astype(np.float32)
        return sprite

    def paste(self, sprite: Sprite, left: int, top: int, label: int, metres: float) -> None:
        """Paint a sprite over what is there; parts outside the picture are cut off."""
        y0, y1 = max(top, 0), min(top + sprite.height, self.height)
        x0, x1 = max(left, 0), min(left + sprite.width, self.width)
        if y0 >= y1 or x0 >= x1:
            return
        here = (slice(y0, y1), slice(x0, x1))
        there = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
        mask = sprite.mask[there]
        self.count += 1
        self.rgb[here][mask] = sprite.rgb[there][mask]
        self.label[here][mask], self.geometric[here][mask] = label, VERTICAL
        self.depth[here][mask], self.order[here][mask] = metres, self.count

    def stand(self, kind: Kind, label: int, foot: int, x: float, scale: float = 1.0) -> None:
        """Put an object on the ground, its lowest row above row ``foot``, or a bird in the air.

        ``scale`` enlarges it where it stands, as long as the picture has the height above its foot
        and the width for it.
        """
        metres = min(self.focal * self.eye / (foot - self.horizon), FAR_METRES)
        exact = self.focal * between(self.rng, *kind.height) / metres
        room = min(foot, self.width / kind.aspect[1]) / exact
        high = max(4, round(exact * max(1.0, min(scale, room))))
        sprite = self.sprite(kind, high)
        left, top = round(x - sprite.width / 2), foot - high
        if kind.name == "bird":
            top = int(self.rng.random() * max(1, self.horizon - high))
        elif 0 < foot < self.height:
            self._shadow(left, foot, sprite.width, high)
        self.paste(sprite, left, top, label, metres)

    def _shadow(self, left: int, foot: int, width: int, high: int) -> None:
        reach = max(1, high // 12)
        start, stop = max(left, 0), min(left + width, self.width)
        if start >= stop:
            return
        here = (slice(max(foot - reach, 0), foot + reach), slice(start, stop))
        down = (np.arange(self.height, dtype=np.float32)[here[0], None] + 0.5 - foot) / reach
        across = (np.arange(start, stop, dtype=np.float32)[None, :] + 0.5 - left) / (width / 2) - 1
        shade = (down * down + across * across <= 1) & (self.geometric[here] == HORIZONTAL)
        self.rgb[here][shade] *= np.float32(0.62)

    def populate(self, objects: tuple[int, int] = OBJECTS, scale: float = 1.0) -> None:
        """Ponds, then objects and clutter from far to near.

        ``objects``: the fewest and the most; clutter is a quarter of the one to half of the other.
        ``scale``: see ``stand``.
        """
        rng = self.rng
        fewest, most = objects
        if rng.random() < WATER_SHARE[self.place]:
            self.pond()
        placed: list[tuple[int, int, Kind, int, float]] = []
        for kinds, first, count in (
            (KINDS, 1, int(rng.integers(fewest, most + 1))),
            (CLUTTER, 0, int(rng.integers(fewest // 4, most // 2 + 1))),
        ):
            edges = np.cumsum([kind.frequency[self.place] for kind in kinds])
            for _ in range(count):
                choice = int(np.searchsorted(edges, rng.random() * edges[-1], side="right"))
                kind = kinds[choice]
                near, far = kind.distance
                metres = 1 / between(rng, 1 / far, 1 / near)
                foot = self.horizon + max(1, round(self.focal * self.eye / metres))
                x = between(rng, -0.05, 1.05) * self.width
                label = choice + 1 if first else BACKGROUND
                if not self._in_water(foot, x):
                    placed.append((foot, len(placed), kind, label, x))
        for foot, _, kind, label, x in sorted(placed, key=lambda item: item[:2]):
            self.stand(kind, label, foot, x, scale)

    def _in_water(self, foot: int, x: float) -> bool:
        row, column = min(foot, self.height - 1), min(max(int(x), 0), self.width - 1)
        return bool(self.label[row, column] == WATER)

    def image(self) -> NDArray[np.uint8]:
        """Haze, light, a little blur and noise: (h, w, 3) uint8."""
        rng = self.rng
        haze = textures.tone(rng, (170, 170, 170), (225, 225, 225))
        away = self.depth * np.float32(between(rng, 0.0, 0.5) / SKY_METRES)
        rgb = self.rgb + (haze - self.rgb) * away[..., None]
        rgb *= (
            np.float32(between(rng, 0.7, 1.15)) * textures.colour(rng, (9, 9, 9), (11, 11, 11)) / 10
        )
        if rng.random() < 0.5:
            rgb[1:-1] = (rgb[:-2] + rgb[1:-1] * 2 + rgb[2:]) * np.float32(0.25)
            rgb[:, 1:-1] = (rgb[:, :-2] + rgb[:, 1:-1] * 2 + rgb[:, 2:]) * np.float32(0.25)
        amount = np.float32(between(rng, 2, 9))
        rgb += (rng.random(rgb.shape, np.float32) - np.float32(0.5)) * (2 * amount)
        return np.clip(rgb, 0, 255).astype(np.uint8)

    def void(self) -> Mask:
        """The pixels beside a region that hides them, where one of the two is an object.

        One pixel wide and on the hidden side, so that what is thin keeps its full width.
        """
        void = np.zeros(self.order.shape, np.bool_)
        for axis in (0, 1):
            ahead = (slice(1, None), slice(None)) if axis == 0 else (slice(None), slice(1, None))
            back = (slice(-1), slice(None)) if axis == 0 else (slice(None), slice(-1))
            for one, other in ((ahead, back), (back, ahead)):
                hidden = self.order[one] < self.order[other]
                void[one] |= hidden & ((self.label[one] > 0) | (self.label[other] > 0))
        return void


def _generator(seed: int, series: str, index: int) -> Rng:
    """Each picture's own stream: of the seed, the split's name and its number, nothing else."""
    name = int.from_bytes(hashlib.sha256(series.encode()).digest()[:8], "big")
    return np.random.Generator(np.random.PCG64([seed, name, index]))


def scene(
    seed: int,
    split: str,
    index: int,
    size: tuple[tuple[int, int], tuple[int, int]],
    objects: tuple[int, int] = OBJECTS,
    scale: float = 1.0,
) -> Scene:
    """Paint one scene; ``size`` is the range (both ends included) of height and of width.

    Every second scene, at random, has height and width exchanged. ``objects`` and ``scale``: as in
    ``Scene.populate``.
    """
    rng = _generator(seed, split, index)
    height, width = (int(rng.integers(low, high + 1)) for low, high in size)
    if rng.random() < 0.5:
        height, width = width, height
    result = Scene(rng, height, width)
    result.populate(objects, scale)
    return result


def _voc_palette() -> list[int]:
    """VOC's colours: the bits of the index, dealt to red, green, blue from the highest bit down."""
    palette = []
    for index in range(256):
        for channel in range(3):
            palette.append(sum((index >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(3)))
    return palette


def _save(pixels: NDArray[Any], path: Path, palette: list[int] | None = None) -> None:
    image = Image.fromarray(pixels)
    if palette:
        image.putpalette(palette)
    image.save(path, compress_type=zlib.Z_RLE)  # noise: faster and smaller than the default


def _range(name: str, ends: int | Sequence[int]) -> tuple[int, int]:
    """[smallest, largest], or one number for both."""
    least, most = (ends, ends) if isinstance(ends, int) else ends
    if least > most:
        raise UserError(f"scenes: {name}: [{least}, {most}] is not [smallest, largest].")
    return least, most


def generate(root: Path, definition: Mapping[str, Any]) -> None:
    """Write a data set in the layout of PASCAL VOC under ``root``.

    ``definition``: that of a data set of scenes in config/schemas/suite.yaml, which has its bounds.
    About half of the images have height and width exchanged. An image depends on the seed, its
    split's name, its number, the size and the objects alone.

    JPEGImages/ID.png (RGB; lossless, in the folder where VOC's readers look),
    SegmentationClass/ID.png (palette, 0..n-1 and 255 void), GeometricClass/ID.png (palette, 0..2
    and 255 void), depth/ID.png (16 bit, mm), ImageSets/Segmentation/SPLIT.txt, classes.txt and
    classes-geometric.txt; ID is SPLIT_00000 and so on.
    Raises UserError for a range that ends before it begins and for a ``root`` that already holds
    something.
    """
    seed, splits = definition["seed"], definition["splits"]
    height, width = (_range("size", side) for side in definition["size"])
    objects = _range("objects", definition.get("objects", OBJECTS))
    scale = definition.get("object_scale", 1.0)
    root = Path(root)
    if root.is_file() or (root.is_dir() and any(root.iterdir())):
        raise UserError(f"{root}: already holds something; delete it or give another folder.")

    palette = _voc_palette()
    with atomic_dir(root) as folder:
        for sub in ("JPEGImages", "SegmentationClass", "GeometricClass", "depth"):
            (folder / sub).mkdir()
        for split, count in splits.items():
            names = [f"{split}_{index:05d}" for index in range(count)]
            for index, name in enumerate(names):
                picture = scene(seed, split, index, (height, width), objects, scale)
                file = f"{name}.png"
                void, hidden = picture.void(), np.uint8(VOID)
                _save(picture.image(), folder / "JPEGImages" / file)
                for sub, label in (
                    ("SegmentationClass", picture.label),
                    ("GeometricClass", picture.geometric),
                ):
                    _save(np.where(void, hidden, label), folder / sub / file, palette)
                millimetres = (picture.depth * 1000 + np.float32(0.5)).astype(np.uint16)
                _save(millimetres, folder / "depth" / file)
            lines = "\n".join(names) + "\n"
            write_text(folder / "ImageSets" / "Segmentation" / f"{split}.txt", lines)
        write_text(folder / "classes.txt", "\n".join(semantic_classes()) + "\n")
        write_text(folder / "classes-geometric.txt", "\n".join(geometric_classes()) + "\n")


def classification(seed: int, count: int, size: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pictures of one dominant object each, to pretrain a backbone: ImageNet's part in the paper.

    Returns images (count, 3, size, size) uint8 RGB and labels (count,) int64 into
    ``classification_classes()``; the numbers of images of two classes differ by one at most.
    Raises UserError for a size below 32 or a count below 1.
    """
    if size < 32 or count < 1:
        raise UserError(
            f"classification: {count} images of size {size}; give at least one, of at least 32."
        )
    classes = len(classification_classes())
    labels = _generator(seed, "classification/labels", count).permutation(
        np.arange(count) % classes
    )
    images = np.empty((count, 3, size, size), np.uint8)
    for index, label in enumerate(labels):
        portrait = _portrait(_generator(seed, "classification/images", index), int(label) + 1, size)
        images[index] = portrait.image().transpose(2, 0, 1)
    return images, labels.astype(np.int64)


def _portrait(rng: Rng, label: int, size: int) -> Scene:
    """One object of class ``label`` that fills 30 to 95 % of the picture's side."""
    picture = Scene(rng, size, size)
    if label == WATER:
        picture.pond(0.4, 0.9)
    for _ in range(int(rng.integers(3))):
        clutter = CLUTTER[int(rng.integers(len(CLUTTER)))]
        foot = picture.horizon + 1 + int(rng.random() * 0.6 * size)
        picture.stand(clutter, BACKGROUND, foot, between(rng, 0, 1) * size)
    if label != WATER:
        kind = KINDS[label - 1]
        slim = min(max(kind.aspect[1] * 0.6, 1.0), 1.6)
        sprite = picture.sprite(kind, max(5, round(between(rng, 0.3, 0.95) * size / slim)))
        left = round(between(rng, -0.1, 1.1) * (size - sprite.width))
        lowest = sprite.height if kind.name == "bird" else max(sprite.height, picture.horizon)
        foot = round(between(rng, lowest, 1.1 * size))
        picture.paste(sprite, left, foot - sprite.height, label, 10.0)
    return picture
