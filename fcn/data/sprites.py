"""The objects of generated scenes: how each is drawn, how large it is and where it stands.

What makes the classes differ is chosen on purpose. Horse, cow and zebra share shape and colours and
differ in texture; car and bus, tree and conifer share colours and differ in shape; a lamp and a
sign share their shaft and differ in what is at its end; fences, shafts and bicycles are thin; and
hedges, crates, rocks and bare posts are background that looks like objects.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fcn.data import textures
from fcn.data.textures import Colour, Floats, Mask, Rng, between


class Sprite:
    """One object: ``rgb`` (h, w, 3) float32, ``mask`` (h, w); points are fractions of w and h."""

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width
        self.rgb = np.zeros((height, width, 3), np.float32)
        self.mask = np.zeros((height, width), np.bool_)
        self.y = (np.arange(height, dtype=np.float32) + np.float32(0.5))[:, None]
        self.x = (np.arange(width, dtype=np.float32) + np.float32(0.5))[None, :]

    def fill(self, region: Mask, colour: Colour) -> None:
        self.rgb[region] = colour if colour.ndim == 1 else colour[region]
        self.mask |= region

    def box(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        """A rectangle, at least one pixel wide and high."""
        x, y = round(left * self.width), round(top * self.height)
        x, y = min(x, self.width - 1), min(y, self.height - 1)
        columns = slice(x, max(x + 1, round(right * self.width)))
        rows = slice(y, max(y + 1, round(bottom * self.height)))
        self.rgb[rows, columns] = colour if colour.ndim == 1 else colour[rows, columns]
        self.mask[rows, columns] = True

    def disc(self, x: float, y: float, rx: float, ry: float) -> Mask:
        dx = (self.x - x * self.width) / max(rx * self.width, 0.5)
        dy = (self.y - y * self.height) / max(ry * self.height, 0.5)
        return dx * dx + dy * dy <= 1

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        self.fill(self.disc(x, y, rx, ry), colour)

    def polygon(self, points: list[tuple[float, float]], colour: Colour) -> None:
        """A convex polygon, its corners clockwise as seen (y down)."""
        inside = np.ones((self.height, self.width), np.bool_)
        for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1], strict=True):
            dx, dy = (x1 - x0) * self.width, (y1 - y0) * self.height
            inside &= dx * (self.y - y0 * self.height) - dy * (self.x - x0 * self.width) >= 0
        self.fill(inside, colour)

    def line(
        self, x0: float, y0: float, x1: float, y1: float, thickness: float, colour: Colour
    ) -> None:
        """A segment, ``thickness`` pixels wide (at least so wide that it has no gaps)."""
        ax, ay = x0 * self.width, y0 * self.height
        dx, dy = x1 * self.width - ax, y1 * self.height - ay
        px, py = self.x - ax, self.y - ay
        along = np.clip((px * dx + py * dy) / max(dx * dx + dy * dy, 1e-6), 0, 1)
        ex, ey = px - along * dx, py - along * dy
        self.fill(ex * ex + ey * ey <= max(thickness, 1.3) ** 2 / 4, colour)


def _building(s: Sprite, rng: Rng) -> None:
    colour, glass = (
        textures.paint(rng) * np.float32(0.5) + 75,
        textures.colour(rng, (30, 35, 45), (110, 130, 160)),
    )
    texture = textures.bricks if rng.random() < 0.6 else _plaster
    roof = between(rng, 0.12, 0.3) if rng.random() < 0.7 else 0.0
    s.box(0.04, roof, 0.96, 1, texture(rng, s.height, s.width, colour))
    if roof:
        tiles = textures.planks(
            rng, s.height, s.width, textures.colour(rng, (70, 40, 35), (150, 90, 80))
        )
        s.polygon([(0.25, 0), (0.75, 0), (1, roof), (0, roof)], tiles)
    floors, columns = int(rng.integers(2, 4)), int(rng.integers(2, 5))
    for floor in range(floors):
        top = roof + (0.12 + floor * 0.82) / floors * (1 - roof)
        bottom = top + 0.45 / floors * (1 - roof)
        for column in range(columns):
            left = 0.04 + 0.92 * (column + 0.28) / columns
            s.box(left, top, left + 0.42 / columns, bottom, glass)
    door = between(rng, 0.15, 0.75)
    s.box(door, 1 - 0.45 / floors, door + 0.12, 1, textures.paint(rng) * np.float32(0.6))


def _plaster(rng: Rng, height: int, width: int, colour: Colour) -> Floats:
    return colour + textures.grain(rng, height, width, 10)


def foliage(rng: Rng) -> Colour:
    return textures.tone(rng, (40, 75, 25), (125, 150, 70))


def _trunk(s: Sprite, rng: Rng, top: float) -> None:
    half = between(rng, 0.04, 0.08)
    s.box(0.5 - half, top, 0.5 + half, 1, textures.colour(rng, (60, 45, 30), (110, 85, 65)))


def _tree(s: Sprite, rng: Rng) -> None:
    _trunk(s, rng, 0.5)
    crown = s.disc(0.5, 0.36, 0.36, 0.33)
    for _ in range(5):
        crown |= s.disc(between(rng, 0.22, 0.78), between(rng, 0.18, 0.52), 0.22, 0.17)
    s.fill(crown, textures.leaves(rng, s.height, s.width, foliage(rng)))


def _conifer(s: Sprite, rng: Rng) -> None:
    _trunk(s, rng, 0.8)
    leaves = textures.leaves(rng, s.height, s.width, foliage(rng))
    for top, bottom, half in ((0.0, 0.4, 0.28), (0.2, 0.65, 0.39), (0.42, 0.9, 0.5)):
        s.polygon([(0.5, top), (0.5 + half, bottom), (0.5 - half, bottom)], leaves)


def _wheel(s: Sprite, x: float, radius: float) -> None:
    """A tyre with a hub, standing on the ground; ``radius`` is a fraction of the height."""
    rx = radius * s.height / s.width
    s.ellipse(x, 1 - radius, rx, radius, np.full(3, 28, np.float32))
    s.ellipse(x, 1 - radius, rx * 0.45, radius * 0.45, np.full(3, 150, np.float32))


def _car(s: Sprite, rng: Rng) -> None:
    paint, glass = textures.paint(rng), textures.colour(rng, (30, 35, 45), (110, 130, 160))
    left, right = between(rng, 0.1, 0.25), between(rng, 0.75, 0.92)
    s.polygon([(left + 0.1, 0), (right - 0.1, 0), (right, 0.5), (left, 0.5)], paint)
    s.polygon([(left + 0.12, 0.1), (0.47, 0.1), (0.47, 0.42), (left + 0.07, 0.42)], glass)
    s.polygon([(0.53, 0.1), (right - 0.12, 0.1), (right - 0.07, 0.42), (0.53, 0.42)], glass)
    s.box(0, 0.42, 1, 0.84, paint)
    s.box(0, 0.66, 1, 0.72, paint * np.float32(0.7))
    s.box(0, 0.5, 0.05, 0.6, np.array([240, 235, 190], np.float32))
    _wheel(s, 0.21, 0.21)
    _wheel(s, 0.79, 0.21)


def _bus(s: Sprite, rng: Rng) -> None:
    paint, glass = textures.paint(rng), textures.colour(rng, (30, 35, 45), (110, 130, 160))
    s.box(0, 0.02, 1, 0.88, paint)
    s.box(0, 0.6, 1, 0.66, paint * np.float32(0.7))
    windows = int(rng.integers(4, 7))
    for window in range(windows):
        left = 0.03 + 0.95 * window / windows
        s.box(left, 0.16, left + 0.72 / windows, 0.48, glass)
    s.box(0, 0.7, 0.03, 0.78, np.array([240, 235, 190], np.float32))
    _wheel(s, 0.18, 0.15)
    _wheel(s, 0.8, 0.15)


def _person(s: Sprite, rng: Rng) -> None:
    skin = textures.colour(rng, (90, 60, 45), (235, 195, 170))
    shirt, trousers, stride = (
        textures.paint(rng),
        textures.paint(rng),
        between(rng, 0.0, 0.16),
    )
    thick = 0.24 * s.width
    s.line(0.44, 0.5, 0.38 - stride, 1, thick, trousers)
    s.line(0.56, 0.5, 0.62 + stride, 1, thick, trousers)
    s.line(0.34, 0.24, 0.14, 0.54, thick * 0.6, skin)
    s.line(0.66, 0.24, 0.86, 0.54, thick * 0.6, skin)
    s.box(0.27, 0.19, 0.73, 0.56, shirt)
    s.ellipse(0.5, 0.095, 0.19, 0.095, skin)
    s.fill(s.disc(0.5, 0.095, 0.19, 0.095) & (s.y < 0.07 * s.height), textures.paint(rng) * 0.5)


def _bicycle(s: Sprite, rng: Rng) -> None:
    paint, tyre, radius = textures.paint(rng), np.full(3, 28, np.float32), 0.31
    rx, pixel = radius * s.height / s.width, max(1.3, 0.05 * s.height)
    for x in (rx, 1 - rx):
        inner = s.disc(x, 1 - radius, rx - pixel / s.width, radius - pixel / s.height)
        s.fill(s.disc(x, 1 - radius, rx, radius) & ~inner, tyre)
    hub, head, saddle, pedals = 1 - radius, (1 - rx - 0.06, 0.3), (0.38, 0.28), (0.48, 0.74)
    frame = [(rx, hub, *saddle), (rx, hub, *pedals), (*saddle, *pedals), (*saddle, *head)]
    frame += [(*pedals, *head), (*head, 1 - rx, hub), (*head, head[0] - 0.01, 0.08)]
    for x0, y0, x1, y1 in frame:
        s.line(x0, y0, x1, y1, pixel, paint)
    s.box(0.31, 0.2, 0.44, 0.27, tyre)
    s.box(head[0] - 0.07, 0.03, head[0] + 0.08, 0.1, tyre)


def _quadruped(
    s: Sprite, rng: Rng, hide: Callable[[Rng, int, int, Colour, Colour], Floats]
) -> None:
    dark, light = (
        textures.tone(rng, (25, 20, 15), (95, 75, 60)),
        textures.tone(rng, (165, 140, 115), (240, 240, 240)),
    )
    coat = hide(rng, s.height, s.width, dark, light)
    sway, leg = between(rng, -0.05, 0.05), 0.085 * s.width
    for x in (0.2, 0.31, 0.62, 0.73):
        s.line(x, 0.6, x + sway * (1 if x in (0.2, 0.73) else -1), 1, leg, coat)
    s.box(0.14, 0.34, 0.78, 0.68, coat)
    s.ellipse(0.16, 0.5, 0.07, 0.17, coat)
    s.line(0.11, 0.4, 0.03, 0.66, 0.05 * s.width, coat)
    lift = between(rng, 0.0, 0.2)
    s.line(0.74, 0.45, 0.86, 0.14 + lift, 0.13 * s.width, coat)
    s.line(0.85, 0.13 + lift, 0.95, 0.24 + lift, 0.12 * s.width, coat)


def _plain(rng: Rng, height: int, width: int, first: Colour, second: Colour) -> Floats:
    share = np.float32(between(rng, 0.2, 0.8))
    return first + (second - first) * share + textures.grain(rng, height, width, 6)


def _horse(s: Sprite, rng: Rng) -> None:
    _quadruped(s, rng, _plain)


def _cow(s: Sprite, rng: Rng) -> None:
    _quadruped(s, rng, textures.blotches)


def _zebra(s: Sprite, rng: Rng) -> None:
    _quadruped(s, rng, textures.stripes)


def _shaft(s: Sprite, rng: Rng, top: float) -> Colour:
    """A post in the middle, two pixels wide at least once it is 20 high; gives its colour."""
    grey = np.full(3, between(rng, 35, 190), np.float32)
    thickness = max(1, round(0.045 * s.height + 0.6))
    left = (s.width - thickness) // 2
    s.box(left / s.width, top, (left + thickness) / s.width, 1, grey)
    return grey


def _lamp(s: Sprite, rng: Rng) -> None:
    grey = _shaft(s, rng, 0.05)
    glow = textures.colour(rng, (190, 180, 120), (255, 250, 220))
    if rng.random() < 0.5:  # an arm to one side
        s.box(0.5, 0.03, 1, 0.06, grey)
        s.box(0.62, 0.06, 1, 0.12, glow)
    else:  # a lantern on top
        s.polygon([(0.2, 0.02), (0.8, 0.02), (0.7, 0.15), (0.3, 0.15)], glow)
        s.box(0.15, 0, 0.85, 0.03, grey)


def _sign(s: Sprite, rng: Rng) -> None:
    _shaft(s, rng, 0.2)
    paint, rim = textures.paint(rng), np.full(3, between(rng, 210, 250), np.float32)
    high = 0.5 * s.width / s.height  # a plate as high as wide
    form = rng.random()
    for scale, colour in ((1.0, rim), (0.68, paint)):
        half, tall = 0.5 * scale, high * scale
        if form < 0.4:
            s.ellipse(0.5, high, half, tall, colour)
        elif form < 0.7:
            s.box(0.5 - half, high - tall, 0.5 + half, high + tall, colour)
        else:
            base = high + 0.8 * tall
            s.polygon([(0.5, high - tall), (0.5 + half, base), (0.5 - half, base)], colour)


def _fence(s: Sprite, rng: Rng) -> None:
    wood = textures.colour(rng, (90, 70, 50), (235, 225, 210))
    pixel = max(1, round(s.height / 12))
    gap = max(3, round(s.height / between(rng, 2.5, 4)))
    pickets = np.arange(s.width) % (pixel + gap) < pixel
    s.fill(np.broadcast_to(pickets, s.mask.shape), wood)
    for top in (0.18, 0.62):
        s.box(0, top, 1, top + pixel / s.height, wood * np.float32(0.85))


def _bird(s: Sprite, rng: Rng) -> None:
    tone = np.full(3, between(rng, 20, 110) if rng.random() < 0.7 else 245, np.float32)
    thick, dip = 0.2 * s.height, between(rng, 0.0, 0.3)
    s.line(0.03, dip, 0.42, 0.55, thick, tone)
    s.line(0.97, dip, 0.58, 0.55, thick, tone)
    s.ellipse(0.5, 0.66, 0.16, 0.26, tone)


def _hedge(s: Sprite, rng: Rng) -> None:
    s.box(0, 0, 1, 1, textures.leaves(rng, s.height, s.width, foliage(rng)))


def _rock(s: Sprite, rng: Rng) -> None:
    dark, light = (
        np.full(3, 85, np.float32),
        np.full(3, between(rng, 120, 180), np.float32),
    )
    coat = (_plain, textures.blotches)[int(rng.integers(2))](rng, s.height, s.width, dark, light)
    s.ellipse(0.5, 1, 0.5, 1, coat)


def _crate(s: Sprite, rng: Rng) -> None:
    s.box(0, 0, 1, 1, textures.planks(rng, s.height, s.width, textures.paint(rng)))


def _post(s: Sprite, rng: Rng) -> None:
    _shaft(s, rng, 0.0)


@dataclass(frozen=True)
class Kind:
    """A sort of object: metres high, width over height, metres away, how often it is in a scene."""

    name: str
    draw: Callable[[Sprite, Rng], None]
    height: tuple[float, float]
    aspect: tuple[float, float]
    distance: tuple[float, float]
    frequency: tuple[float, float, float]  # relative, in a street, a park, on a farm


KINDS = (
    Kind("building", _building, (5.5, 9), (0.7, 1.4), (14, 32), (1.5, 0.25, 0.4)),
    Kind("tree", _tree, (4, 6.5), (0.65, 0.9), (8, 28), (0.6, 1.8, 0.9)),
    Kind("conifer", _conifer, (4, 7), (0.45, 0.65), (8, 28), (0.15, 1.3, 0.6)),
    Kind("car", _car, (1.5, 1.9), (2.3, 2.9), (5, 18), (2.2, 0.2, 0.25)),
    Kind("bus", _bus, (2.8, 3.3), (2.2, 2.9), (8, 22), (0.8, 0.05, 0.1)),
    Kind("person", _person, (1.5, 1.9), (0.36, 0.46), (3.5, 14), (1.7, 1.3, 0.5)),
    Kind("bicycle", _bicycle, (1.1, 1.4), (1.5, 1.75), (3.5, 10), (0.7, 0.6, 0.1)),
    Kind("horse", _horse, (1.7, 2.2), (1.25, 1.5), (4.5, 15), (0.05, 0.4, 1.3)),
    Kind("cow", _cow, (1.6, 2.1), (1.25, 1.5), (4.5, 15), (0.0, 0.1, 1.6)),
    Kind("zebra", _zebra, (1.6, 2.1), (1.25, 1.5), (4.5, 15), (0.0, 0.2, 1.1)),
    Kind("lamp", _lamp, (3.0, 4.2), (0.22, 0.32), (6.5, 16), (1.0, 0.5, 0.05)),
    Kind("sign", _sign, (2.2, 3.2), (0.28, 0.36), (5, 14), (1.0, 0.2, 0.15)),
    Kind("fence", _fence, (1.0, 1.4), (3.5, 7), (5, 15), (0.25, 0.7, 1.2)),
    Kind("bird", _bird, (0.5, 0.8), (1.8, 2.4), (4.5, 11), (0.3, 0.9, 0.7)),
)
CLUTTER = (  # background that looks like objects
    Kind("hedge", _hedge, (0.9, 1.6), (1.5, 4), (7, 30), (0.5, 1.0, 0.6)),
    Kind("rock", _rock, (0.5, 1.3), (1.2, 2.2), (6, 25), (0.2, 0.9, 0.9)),
    Kind("crate", _crate, (0.8, 1.6), (0.8, 1.6), (6, 25), (0.8, 0.2, 0.6)),
    Kind("post", _post, (1.5, 3.5), (0.15, 0.2), (6, 22), (0.5, 0.3, 0.5)),
)
WATER = len(KINDS) + 1
WATER_SHARE = (0.08, 0.5, 0.25)  # scenes with a pond: street, park, farm


def semantic_classes() -> list[str]:
    """Names of the semantic labels, 0 (background) first."""
    return ["background", *(kind.name for kind in KINDS), "water"]


def geometric_classes() -> list[str]:
    """Names of the geometric labels 0, 1, 2: what SIFT Flow's geometry tells apart."""
    return ["sky", "horizontal", "vertical"]


def classification_classes() -> list[str]:
    """Names of the labels of ``classification``: the semantic classes but the background."""
    return semantic_classes()[1:]
