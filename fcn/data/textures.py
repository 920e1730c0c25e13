"""Colours and textures of generated scenes, from IEEE-exact arithmetic and uniform numbers."""

import numpy as np
from numpy.typing import NDArray

Rng = np.random.Generator
Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]
Colour = Floats  # (3,) one colour, or (h, w, 3) a texture of the sprite's size


def between(rng: Rng, low: float, high: float) -> float:
    return low + (high - low) * float(rng.random())


def colour(rng: Rng, low: tuple[int, int, int], high: tuple[int, int, int]) -> Colour:
    bottom, top = np.array(low, np.float32), np.array(high, np.float32)
    return bottom + (top - bottom) * rng.random(3, np.float32)


def tone(rng: Rng, low: tuple[int, int, int], high: tuple[int, int, int]) -> Colour:
    """A colour near the line from low to high: light or dark, but of one hue."""
    bottom, top = np.array(low, np.float32), np.array(high, np.float32)
    share = rng.random(1, np.float32) * np.float32(0.8) + rng.random(3, np.float32) * np.float32(
        0.2
    )
    return bottom + (top - bottom) * share


def paint(rng: Rng) -> Colour:
    """Any colour: cars, buses, bicycles, clothes, signs, walls and crates draw from this alone."""
    return colour(rng, (25, 25, 25), (235, 235, 235))


def smooth(rng: Rng, height: int, width: int, cell_y: float, cell_x: float) -> Floats:
    """Bilinear noise in [0, 1): (height, width) float32, knots every cell_y, cell_x pixels."""
    grid = rng.random((int(height / cell_y) + 2, int(width / cell_x) + 2), np.float32)
    y, x = np.arange(height, dtype=np.float32) / cell_y, np.arange(width, dtype=np.float32) / cell_x
    row, column = y.astype(np.intp), x.astype(np.intp)
    fy, fx = (y - row).astype(np.float32)[:, None], (x - column).astype(np.float32)[None, :]
    lines = grid[row] + (grid[row + 1] - grid[row]) * fy
    return lines[:, column] + (lines[:, column + 1] - lines[:, column]) * fx


def grain(rng: Rng, height: int, width: int, amount: float) -> Floats:
    """Noise of each pixel, the same for the three channels: (height, width, 1)."""
    return (rng.random((height, width, 1), np.float32) - np.float32(0.5)) * np.float32(2 * amount)


def mix(where: Mask, first: Colour, second: Colour) -> Floats:
    return np.where(where[..., None], first, second)


def blotches(rng: Rng, height: int, width: int, first: Colour, second: Colour) -> Floats:
    cell = max(2.0, height / 5)
    return mix(smooth(rng, height, width, cell, cell) > 0.5, first, second)


def stripes(rng: Rng, height: int, width: int, first: Colour, second: Colour) -> Floats:
    period = max(3.0, width / between(rng, 7, 10))
    bend = smooth(rng, height, width, max(2.0, height / 3), max(2.0, width / 3))
    phase = np.arange(width, dtype=np.float32) / np.float32(period) + bend
    return mix(phase % 1 < 0.5, first, second)


def leaves(rng: Rng, height: int, width: int, colour: Colour) -> Floats:
    clumps = smooth(rng, height, width, 2.0, 2.0)[..., None] - np.float32(0.5)
    return colour * (1 + clumps) + grain(rng, height, width, 18)


def bricks(rng: Rng, height: int, width: int, colour: Colour) -> Floats:
    course = max(3, round(height / 14))
    y, x = np.arange(height)[:, None], np.arange(width)[None, :]
    joint = (y % course == 0) | ((x + (y // course % 2) * course) % (2 * course) == 0)
    return mix(joint, colour * np.float32(0.72), colour) + grain(rng, height, width, 8)


def planks(rng: Rng, height: int, width: int, colour: Colour) -> Floats:
    board = max(3, round(height / 5))
    tone = 0.8 + 0.4 * rng.random(height // board + 1, np.float32)
    rows = tone[np.arange(height) // board]
    rows[::board] *= np.float32(0.6)
    return colour * rows[:, None, None] + np.zeros((1, width, 1), np.float32)


def ripples(rng: Rng, height: int, width: int, colour: Colour) -> Floats:
    waves = smooth(rng, height, width, 1.3, max(4.0, width / 9))[..., None] - np.float32(0.5)
    return colour + np.float32(95) * waves
