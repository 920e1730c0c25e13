"""Generated street, park and farm scenes with exact labels: a data set that needs no network.

A scene is painted from far to near along a ground plane seen by a pinhole camera, so that labels,
depth and geometry agree by construction. Objects are flat, upright and face the camera.

What makes the classes differ is chosen on purpose. Horse, cow and zebra share shape and colours and
differ in texture; car and bus, tree and conifer share colours and differ in shape; a lamp and a
sign share their shaft and differ in what is at its end; fences, shafts and bicycles are thin; and
hedges, crates, rocks and bare posts are background that looks like objects.

Only IEEE-exact arithmetic and uniform random numbers are used (no sine, no normal deviates), so
that a seed gives the same pixels everywhere.
"""

import hashlib
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fcn.errors import UserError
from fcn.files import atomic_dir, write_text

Rng = np.random.Generator
Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]
Colour = Floats  # (3,) one colour, or (h, w, 3) a texture of the sprite's size

VOID = 255
SKY, HORIZONTAL, VERTICAL = 0, 1, 2
SKY_METRES, FAR_METRES = 65.0, 55.0  # sky; the farthest ground and the hills. 16 bit mm hold 65.5 m
BACKGROUND = 0


# ---- colours and textures ------------------------------------------------------------------------


def _between(rng: Rng, low: float, high: float) -> float:
    return low + (high - low) * float(rng.random())


def _colour(rng: Rng, low: tuple[int, int, int], high: tuple[int, int, int]) -> Colour:
    bottom, top = np.array(low, np.float32), np.array(high, np.float32)
    return bottom + (top - bottom) * rng.random(3, np.float32)


def _tone(rng: Rng, low: tuple[int, int, int], high: tuple[int, int, int]) -> Colour:
    """A colour near the line from low to high: light or dark, but of one hue."""
    bottom, top = np.array(low, np.float32), np.array(high, np.float32)
    share = rng.random(1, np.float32) * np.float32(0.8) + rng.random(3, np.float32) * np.float32(
        0.2
    )
    return bottom + (top - bottom) * share


def _paint(rng: Rng) -> Colour:
    """Any colour: cars, buses, bicycles, clothes, signs, walls and crates draw from this alone."""
    return _colour(rng, (25, 25, 25), (235, 235, 235))


def _smooth(rng: Rng, height: int, width: int, cell_y: float, cell_x: float) -> Floats:
    """Bilinear noise in [0, 1): (height, width) float32, knots every cell_y, cell_x pixels."""
    grid = rng.random((int(height / cell_y) + 2, int(width / cell_x) + 2), np.float32)
    y, x = np.arange(height, dtype=np.float32) / cell_y, np.arange(width, dtype=np.float32) / cell_x
    row, column = y.astype(np.intp), x.astype(np.intp)
    fy, fx = (y - row).astype(np.float32)[:, None], (x - column).astype(np.float32)[None, :]
    lines = grid[row] + (grid[row + 1] - grid[row]) * fy
    return lines[:, column] + (lines[:, column + 1] - lines[:, column]) * fx


def _grain(rng: Rng, height: int, width: int, amount: float) -> Floats:
    """Noise of each pixel, the same for the three channels: (height, width, 1)."""
    return (rng.random((height, width, 1), np.float32) - np.float32(0.5)) * np.float32(2 * amount)


def _mix(where: Mask, first: Colour, second: Colour) -> Floats:
    return np.where(where[..., None], first, second)


def _blotches(rng: Rng, height: int, width: int, first: Colour, second: Colour) -> Floats:
    cell = max(2.0, height / 5)
    return _mix(_smooth(rng, height, width, cell, cell) > 0.5, first, second)


def _stripes(rng: Rng, height: int, width: int, first: Colour, second: Colour) -> Floats:
    period = max(3.0, width / _between(rng, 7, 10))
    bend = _smooth(rng, height, width, max(2.0, height / 3), max(2.0, width / 3))
    phase = np.arange(width, dtype=np.float32) / np.float32(period) + bend
    return _mix(phase % 1 < 0.5, first, second)


def _leaves(rng: Rng, height: int, width: int, colour: Colour) -> Floats:
    clumps = _smooth(rng, height, width, 2.0, 2.0)[..., None] - np.float32(0.5)
    return colour * (1 + clumps) + _grain(rng, height, width, 18)


def _bricks(rng: Rng, height: int, width: int, colour: Colour) -> Floats:
    course = max(3, round(height / 14))
    y, x = np.arange(height)[:, None], np.arange(width)[None, :]
    joint = (y % course == 0) | ((x + (y // course % 2) * course) % (2 * course) == 0)
    return _mix(joint, colour * np.float32(0.72), colour) + _grain(rng, height, width, 8)


def _planks(rng: Rng, height: int, width: int, colour: Colour) -> Floats:
    board = max(3, round(height / 5))
    tone = 0.8 + 0.4 * rng.random(height // board + 1, np.float32)
    rows = tone[np.arange(height) // board]
    rows[::board] *= np.float32(0.6)
    return colour * rows[:, None, None] + np.zeros((1, width, 1), np.float32)


def _ripples(rng: Rng, height: int, width: int, colour: Colour) -> Floats:
    waves = _smooth(rng, height, width, 1.3, max(4.0, width / 9))[..., None] - np.float32(0.5)
    return colour + np.float32(95) * waves


# ---- sprites -------------------------------------------------------------------------------------


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
    colour, glass = _paint(rng) * np.float32(0.5) + 75, _colour(rng, (30, 35, 45), (110, 130, 160))
    texture = _bricks if rng.random() < 0.6 else _plaster
    roof = _between(rng, 0.12, 0.3) if rng.random() < 0.7 else 0.0
    s.box(0.04, roof, 0.96, 1, texture(rng, s.height, s.width, colour))
    if roof:
        tiles = _planks(rng, s.height, s.width, _colour(rng, (70, 40, 35), (150, 90, 80)))
        s.polygon([(0.25, 0), (0.75, 0), (1, roof), (0, roof)], tiles)
    floors, columns = int(rng.integers(2, 4)), int(rng.integers(2, 5))
    for floor in range(floors):
        top = roof + (0.12 + floor * 0.82) / floors * (1 - roof)
        bottom = top + 0.45 / floors * (1 - roof)
        for column in range(columns):
            left = 0.04 + 0.92 * (column + 0.28) / columns
            s.box(left, top, left + 0.42 / columns, bottom, glass)
    door = _between(rng, 0.15, 0.75)
    s.box(door, 1 - 0.45 / floors, door + 0.12, 1, _paint(rng) * np.float32(0.6))


def _plaster(rng: Rng, height: int, width: int, colour: Colour) -> Floats:
    return colour + _grain(rng, height, width, 10)


def _foliage(rng: Rng) -> Colour:
    return _tone(rng, (40, 75, 25), (125, 150, 70))


def _trunk(s: Sprite, rng: Rng, top: float) -> None:
    half = _between(rng, 0.04, 0.08)
    s.box(0.5 - half, top, 0.5 + half, 1, _colour(rng, (60, 45, 30), (110, 85, 65)))


def _tree(s: Sprite, rng: Rng) -> None:
    _trunk(s, rng, 0.5)
    crown = s.disc(0.5, 0.36, 0.36, 0.33)
    for _ in range(5):
        crown |= s.disc(_between(rng, 0.22, 0.78), _between(rng, 0.18, 0.52), 0.22, 0.17)
    s.fill(crown, _leaves(rng, s.height, s.width, _foliage(rng)))


def _conifer(s: Sprite, rng: Rng) -> None:
    _trunk(s, rng, 0.8)
    leaves = _leaves(rng, s.height, s.width, _foliage(rng))
    for top, bottom, half in ((0.0, 0.4, 0.28), (0.2, 0.65, 0.39), (0.42, 0.9, 0.5)):
        s.polygon([(0.5, top), (0.5 + half, bottom), (0.5 - half, bottom)], leaves)


def _wheel(s: Sprite, x: float, radius: float) -> None:
    """A tyre with a hub, standing on the ground; ``radius`` is a fraction of the height."""
    rx = radius * s.height / s.width
    s.ellipse(x, 1 - radius, rx, radius, np.full(3, 28, np.float32))
    s.ellipse(x, 1 - radius, rx * 0.45, radius * 0.45, np.full(3, 150, np.float32))


def _car(s: Sprite, rng: Rng) -> None:
    paint, glass = _paint(rng), _colour(rng, (30, 35, 45), (110, 130, 160))
    left, right = _between(rng, 0.1, 0.25), _between(rng, 0.75, 0.92)
    s.polygon([(left + 0.1, 0), (right - 0.1, 0), (right, 0.5), (left, 0.5)], paint)
    s.polygon([(left + 0.12, 0.1), (0.47, 0.1), (0.47, 0.42), (left + 0.07, 0.42)], glass)
    s.polygon([(0.53, 0.1), (right - 0.12, 0.1), (right - 0.07, 0.42), (0.53, 0.42)], glass)
    s.box(0, 0.42, 1, 0.84, paint)
    s.box(0, 0.66, 1, 0.72, paint * np.float32(0.7))
    s.box(0, 0.5, 0.05, 0.6, np.array([240, 235, 190], np.float32))
    _wheel(s, 0.21, 0.21)
    _wheel(s, 0.79, 0.21)


def _bus(s: Sprite, rng: Rng) -> None:
    paint, glass = _paint(rng), _colour(rng, (30, 35, 45), (110, 130, 160))
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
    skin = _colour(rng, (90, 60, 45), (235, 195, 170))
    shirt, trousers, stride = _paint(rng), _paint(rng), _between(rng, 0.0, 0.16)
    thick = 0.24 * s.width
    s.line(0.44, 0.5, 0.38 - stride, 1, thick, trousers)
    s.line(0.56, 0.5, 0.62 + stride, 1, thick, trousers)
    s.line(0.34, 0.24, 0.14, 0.54, thick * 0.6, skin)
    s.line(0.66, 0.24, 0.86, 0.54, thick * 0.6, skin)
    s.box(0.27, 0.19, 0.73, 0.56, shirt)
    s.ellipse(0.5, 0.095, 0.19, 0.095, skin)
    s.fill(s.disc(0.5, 0.095, 0.19, 0.095) & (s.y < 0.07 * s.height), _paint(rng) * 0.5)


def _bicycle(s: Sprite, rng: Rng) -> None:
    paint, tyre, radius = _paint(rng), np.full(3, 28, np.float32), 0.31
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
        _tone(rng, (25, 20, 15), (95, 75, 60)),
        _tone(rng, (165, 140, 115), (240, 240, 240)),
    )
    coat = hide(rng, s.height, s.width, dark, light)
    sway, leg = _between(rng, -0.05, 0.05), 0.085 * s.width
    for x in (0.2, 0.31, 0.62, 0.73):
        s.line(x, 0.6, x + sway * (1 if x in (0.2, 0.73) else -1), 1, leg, coat)
    s.box(0.14, 0.34, 0.78, 0.68, coat)
    s.ellipse(0.16, 0.5, 0.07, 0.17, coat)
    s.line(0.11, 0.4, 0.03, 0.66, 0.05 * s.width, coat)
    lift = _between(rng, 0.0, 0.2)
    s.line(0.74, 0.45, 0.86, 0.14 + lift, 0.13 * s.width, coat)
    s.line(0.85, 0.13 + lift, 0.95, 0.24 + lift, 0.12 * s.width, coat)


def _plain(rng: Rng, height: int, width: int, first: Colour, second: Colour) -> Floats:
    share = np.float32(_between(rng, 0.2, 0.8))
    return first + (second - first) * share + _grain(rng, height, width, 6)


def _horse(s: Sprite, rng: Rng) -> None:
    _quadruped(s, rng, _plain)


def _cow(s: Sprite, rng: Rng) -> None:
    _quadruped(s, rng, _blotches)


def _zebra(s: Sprite, rng: Rng) -> None:
    _quadruped(s, rng, _stripes)


def _shaft(s: Sprite, rng: Rng, top: float) -> Colour:
    """A post in the middle, two pixels wide at least once it is 20 high; gives its colour."""
    grey = np.full(3, _between(rng, 35, 190), np.float32)
    thickness = max(1, round(0.045 * s.height + 0.6))
    left = (s.width - thickness) // 2
    s.box(left / s.width, top, (left + thickness) / s.width, 1, grey)
    return grey


def _lamp(s: Sprite, rng: Rng) -> None:
    grey = _shaft(s, rng, 0.05)
    glow = _colour(rng, (190, 180, 120), (255, 250, 220))
    if rng.random() < 0.5:  # an arm to one side
        s.box(0.5, 0.03, 1, 0.06, grey)
        s.box(0.62, 0.06, 1, 0.12, glow)
    else:  # a lantern on top
        s.polygon([(0.2, 0.02), (0.8, 0.02), (0.7, 0.15), (0.3, 0.15)], glow)
        s.box(0.15, 0, 0.85, 0.03, grey)


def _sign(s: Sprite, rng: Rng) -> None:
    _shaft(s, rng, 0.2)
    paint, rim = _paint(rng), np.full(3, _between(rng, 210, 250), np.float32)
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
    wood = _colour(rng, (90, 70, 50), (235, 225, 210))
    pixel = max(1, round(s.height / 12))
    gap = max(3, round(s.height / _between(rng, 2.5, 4)))
    pickets = np.arange(s.width) % (pixel + gap) < pixel
    s.fill(np.broadcast_to(pickets, s.mask.shape), wood)
    for top in (0.18, 0.62):
        s.box(0, top, 1, top + pixel / s.height, wood * np.float32(0.85))


def _bird(s: Sprite, rng: Rng) -> None:
    tone = np.full(3, _between(rng, 20, 110) if rng.random() < 0.7 else 245, np.float32)
    thick, dip = 0.2 * s.height, _between(rng, 0.0, 0.3)
    s.line(0.03, dip, 0.42, 0.55, thick, tone)
    s.line(0.97, dip, 0.58, 0.55, thick, tone)
    s.ellipse(0.5, 0.66, 0.16, 0.26, tone)


def _hedge(s: Sprite, rng: Rng) -> None:
    s.box(0, 0, 1, 1, _leaves(rng, s.height, s.width, _foliage(rng)))


def _rock(s: Sprite, rng: Rng) -> None:
    dark, light = np.full(3, 85, np.float32), np.full(3, _between(rng, 120, 180), np.float32)
    coat = (_plain, _blotches)[int(rng.integers(2))](rng, s.height, s.width, dark, light)
    s.ellipse(0.5, 1, 0.5, 1, coat)


def _crate(s: Sprite, rng: Rng) -> None:
    s.box(0, 0, 1, 1, _planks(rng, s.height, s.width, _paint(rng)))


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


# ---- scenes --------------------------------------------------------------------------------------


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
        self.eye = _between(rng, 1.7, 3.0)
        self.horizon = round(_between(rng, 0.3, 0.5) * height)
        self.label = np.zeros((height, width), np.uint8)
        self.order = np.zeros((height, width), np.int16)
        self.count = 0
        self._backdrop()

    def _backdrop(self) -> None:
        """Sky with clouds, hills or a far wood, and ground with perhaps a road."""
        rng, height, width, horizon = self.rng, self.height, self.width, self.horizon
        rows = np.arange(height, dtype=np.float32)
        self.rgb = np.empty((height, width, 3), np.float32)
        zenith = _tone(rng, (75, 115, 165), (165, 185, 230))
        haze = _tone(rng, (170, 170, 165), (240, 240, 240))
        fall = (rows[:horizon, None, None] + 0.5) / np.float32(horizon)
        clouds = _smooth(rng, horizon, width, max(3.0, height / 12), max(4.0, width / 5))
        cover = np.clip(clouds * 3 - np.float32(_between(rng, 1.2, 2.8)), 0, 1)[..., None]
        sky = zenith + (haze - zenith) * fall
        self.rgb[:horizon] = sky + (np.float32(235) - sky) * cover

        below = rows[horizon:] + np.float32(0.5) - horizon
        ground_depth = np.minimum(np.float32(self.focal * self.eye) / below, np.float32(FAR_METRES))
        lawn = _colour(rng, (75, 95, 40), (150, 155, 85))
        paved = _tone(rng, (95, 90, 85), (175, 170, 165))
        base = paved if self.place == 0 and rng.random() < 0.6 else lawn
        low = height - horizon
        patches = _smooth(rng, low, width, max(2.0, height / 24), max(3.0, width / 8))[..., None]
        self.rgb[horizon:] = base * (np.float32(0.75) + np.float32(0.5) * patches)
        self.rgb[horizon:] += _grain(rng, low, width, 14)
        self.depth = np.empty((height, width), np.float32)
        self.depth[:horizon], self.depth[horizon:] = SKY_METRES, ground_depth[:, None]
        self.geometric = np.full((height, width), HORIZONTAL, np.uint8)
        self.geometric[:horizon] = SKY
        if rng.random() < (0.9, 0.4, 0.3)[self.place]:
            self._road(below)

        tall = int(height * _between(rng, 0.02, 0.14))
        crest = _smooth(rng, 1, width, 1.0, max(4.0, width / _between(rng, 3, 14)))
        far = slice(horizon - tall, horizon)
        hill = rows[far, None] >= horizon - crest * np.float32(tall)
        tone = _foliage(rng) if rng.random() < 0.6 else _tone(rng, (80, 85, 90), (150, 150, 160))
        self.rgb[far][hill] = _leaves(rng, tall, width, tone)[hill]
        self.depth[far][hill], self.geometric[far][hill] = FAR_METRES, VERTICAL

    def _road(self, below: Floats) -> None:
        rng = self.rng
        vanish = _between(rng, 0.1, 0.9) * self.width
        lean, half = _between(rng, -1.2, 1.2), _between(rng, 0.4, 1.1)
        across = np.arange(self.width, dtype=np.float32)[None, :] + 0.5 - vanish
        offset = across / below[:, None] - np.float32(lean)
        ground = self.rgb[self.horizon :]
        asphalt = np.full(3, _between(rng, 70, 150), np.float32)
        road = np.abs(offset) < half
        grain = _grain(rng, len(below), self.width, 9)
        ground[road] = (asphalt + grain)[road]
        dash = (np.float32(40) / below % 2 < 1)[:, None] & (np.abs(offset) < np.float32(0.05))
        ground[dash] = 225

    def pond(self, low: float = 0.15, high: float = 0.45) -> None:
        """A pond on the ground: an ellipse whose half width is low to high of the picture's."""
        rng = self.rng
        ground = self.height - self.horizon
        rx, ry = _between(rng, low, high) * self.width, _between(rng, low, high) * 0.55 * ground
        x = _between(rng, 0, 1) * self.width
        y = self.horizon + 1 + ry + _between(rng, 0, 1) * max(0.0, ground - 1.5 * ry)
        dy = (np.arange(self.height, dtype=np.float32)[:, None] + 0.5 - y) / max(ry, 1.5)
        dx = (np.arange(self.width, dtype=np.float32)[None, :] + 0.5 - x) / max(rx, 2.0)
        edge = _smooth(rng, 1, self.width, 1.0, max(4.0, rx / 3)) * np.float32(0.5)
        region = (dx * dx + dy * dy <= 1 - edge) & (self.geometric == HORIZONTAL)
        colour = _colour(rng, (60, 85, 95), (130, 150, 180))
        self.count += 1
        self.rgb[region] = _ripples(rng, self.height, self.width, colour)[region]
        self.label[region], self.order[region] = WATER, self.count

    def sprite(self, kind: Kind, height: int) -> Sprite:
        """Draw one object ``height`` pixels high, with its own light, perhaps turned round."""
        rng = self.rng
        sprite = Sprite(height, max(3, round(height * _between(rng, *kind.aspect))))
        kind.draw(sprite, rng)
        if rng.random() < 0.5:
            sprite.rgb, sprite.mask = sprite.rgb[:, ::-1], sprite.mask[:, ::-1]
        gain, side = _between(rng, 0.75, 1.2), _between(rng, -0.25, 0.25)
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

    def stand(self, kind: Kind, label: int, foot: int, x: float) -> None:
        """Put an object on the ground, its lowest row above row ``foot``, or a bird in the air."""
        metres = min(self.focal * self.eye / (foot - self.horizon), FAR_METRES)
        high = max(4, round(self.focal * _between(self.rng, *kind.height) / metres))
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

    def populate(self) -> None:
        """Ponds, then objects and clutter from far to near."""
        rng = self.rng
        if rng.random() < WATER_SHARE[self.place]:
            self.pond()
        placed: list[tuple[int, int, Kind, int, float]] = []
        for kinds, first, count in (
            (KINDS, 1, int(rng.integers(4, 9))),
            (CLUTTER, 0, int(rng.integers(1, 5))),
        ):
            edges = np.cumsum([kind.frequency[self.place] for kind in kinds])
            for _ in range(count):
                choice = int(np.searchsorted(edges, rng.random() * edges[-1], side="right"))
                kind = kinds[choice]
                near, far = kind.distance
                metres = 1 / _between(rng, 1 / far, 1 / near)
                foot = self.horizon + max(1, round(self.focal * self.eye / metres))
                x = _between(rng, -0.05, 1.05) * self.width
                label = choice + 1 if first else BACKGROUND
                if not self._in_water(foot, x):
                    placed.append((foot, len(placed), kind, label, x))
        for foot, _, kind, label, x in sorted(placed, key=lambda item: item[:2]):
            self.stand(kind, label, foot, x)

    def _in_water(self, foot: int, x: float) -> bool:
        row, column = min(foot, self.height - 1), min(max(int(x), 0), self.width - 1)
        return bool(self.label[row, column] == WATER)

    def image(self) -> NDArray[np.uint8]:
        """Haze, light, a little blur and noise: (h, w, 3) uint8."""
        rng = self.rng
        haze = _tone(rng, (170, 170, 170), (225, 225, 225))
        away = self.depth * np.float32(_between(rng, 0.0, 0.5) / SKY_METRES)
        rgb = self.rgb + (haze - self.rgb) * away[..., None]
        rgb *= np.float32(_between(rng, 0.7, 1.15)) * _colour(rng, (9, 9, 9), (11, 11, 11)) / 10
        if rng.random() < 0.5:
            rgb[1:-1] = (rgb[:-2] + rgb[1:-1] * 2 + rgb[2:]) * np.float32(0.25)
            rgb[:, 1:-1] = (rgb[:, :-2] + rgb[:, 1:-1] * 2 + rgb[:, 2:]) * np.float32(0.25)
        amount = np.float32(_between(rng, 2, 9))
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
    seed: int, split: str, index: int, size: tuple[tuple[int, int], tuple[int, int]]
) -> Scene:
    """Paint one scene; ``size`` is the range (both ends included) of height and of width.

    Every second scene, at random, has height and width exchanged.
    """
    rng = _generator(seed, split, index)
    height, width = (int(rng.integers(low, high + 1)) for low, high in size)
    if rng.random() < 0.5:
        height, width = width, height
    result = Scene(rng, height, width)
    result.populate()
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


def _whole(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _ranges(size: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    sides = list(size) if isinstance(size, list | tuple) else []
    pairs = [(side, side) if isinstance(side, int) else side for side in sides]
    for pair in pairs:
        if not (
            isinstance(pair, list | tuple)
            and len(pair) == 2
            and all(_whole(end, 32, 2048) for end in pair)
            and pair[0] <= pair[1]
        ):
            pairs = []
            break
    if len(pairs) != 2:
        raise UserError(
            f"scenes: size is {size!r}; give [height, width], each a whole number from 32 to 2048 "
            "or [smallest, largest]."
        )
    (top, bottom), (left, right) = pairs
    return (top, bottom), (left, right)


def generate(root: Path, definition: Mapping[str, Any]) -> None:
    """Write a data set in the layout of PASCAL VOC under ``root``.

    ``definition``: ``seed`` (a whole number from 0), ``splits`` {name: number of images} and
    ``size`` [height, width], each a number or [smallest, largest]; about half of the images have
    height and width exchanged. An image depends on the seed, its split's name, its number and the
    size alone.

    JPEGImages/ID.png (RGB; lossless, in the folder where VOC's readers look),
    SegmentationClass/ID.png (palette, 0..n-1 and 255 void), GeometricClass/ID.png (palette, 0..2
    and 255 void), depth/ID.png (16 bit, mm), ImageSets/Segmentation/SPLIT.txt, classes.txt and
    classes-geometric.txt; ID is SPLIT_00000 and so on.
    Raises UserError for a bad definition and for a ``root`` that already holds something.
    """
    for key in ("seed", "splits", "size"):
        if key not in definition:
            raise UserError(
                f"scenes: the definition lacks {key!r}; it needs seed, splits and size."
            )
    for key in definition:
        if key not in ("seed", "splits", "size"):
            raise UserError(f"scenes: unknown key {key!r}; known are seed, splits and size.")
    seed, splits, size = definition["seed"], definition["splits"], _ranges(definition["size"])
    if not _whole(seed, 0, 2**63):
        raise UserError(f"scenes: seed is {seed!r}; give a whole number from 0 up.")
    if not isinstance(splits, Mapping) or not splits:
        raise UserError(f"scenes: splits is {splits!r}; give {{name: number of images}}.")
    for name, count in splits.items():
        if not (isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name)):
            raise UserError(
                f"scenes: {name!r} cannot be the name of a split (letters, digits, _, -)."
            )
        if not _whole(count, 1, 99999):
            raise UserError(f"scenes: split {name} has {count!r} images; give a number from 1 up.")
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
                picture, file = scene(seed, split, index, size), f"{name}.png"
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
        picture.stand(clutter, BACKGROUND, foot, _between(rng, 0, 1) * size)
    if label != WATER:
        kind = KINDS[label - 1]
        slim = min(max(kind.aspect[1] * 0.6, 1.0), 1.6)
        sprite = picture.sprite(kind, max(5, round(_between(rng, 0.3, 0.95) * size / slim)))
        left = round(_between(rng, -0.1, 1.1) * (size - sprite.width))
        lowest = sprite.height if kind.name == "bird" else max(sprite.height, picture.horizon)
        foot = round(_between(rng, lowest, 1.1 * size))
        picture.paste(sprite, left, foot - sprite.height, label, 10.0)
    return picture
