"""HHA: a depth image as horizontal disparity, height above ground and angle with gravity.

Gupta, Girshick, Arbelaez, Malik, "Learning Rich Features from RGB-D Images for Object Detection
and Segmentation", ECCV 2014; the constants are those of their saveHHA.m. The paper's NYUDv2 nets
read it (PAMI 5, Table 5).
"""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import correlate1d

ANGLE_RADIUS, GRAVITY_RADIUS = 3, 10  # pixels: half sides of the windows that planes are fit in
DOWN = np.array([0.0, 1.0, 0.0])  # of the camera: the first guess of gravity
GRAVITY_ROUNDS = ((45.0, 5), (15.0, 5))  # degrees off gravity that still count, and how often
SMALLEST_TURN = np.cos(np.deg2rad(0.1))  # a camera as upright as this is taken for upright
DISPARITY, NEAREST_CM = 31000.0, 100.0  # the first channel is DISPARITY / depth in cm
LEAST_DROP_CM, USUAL_HEIGHT_CM = 90.0, 130.0  # of the camera above the ground
ANGLE_OFFSET, UNKNOWN_ANGLE = 38.0, 180.0  # degrees


@dataclass(frozen=True)
class Camera:
    """A pinhole camera in pixels; the first pixel's centre is at (1, 1), as in MATLAB."""

    fx: float
    fy: float
    cx: float
    cy: float

    def rays(self, height: int, width: int) -> np.ndarray:
        """(H, W, 3) float64: where the ray of each pixel meets depth 1 (right, down, away)."""
        rays = np.ones((height, width, 3))
        rays[..., 0] = (np.arange(1, width + 1) - self.cx) / self.fx
        rays[..., 1] = ((np.arange(1, height + 1) - self.cy) / self.fy)[:, None]
        return rays


def hha(depth_m: np.ndarray, raw_m: np.ndarray | None, camera: Camera) -> np.ndarray:
    """The HHA image of a depth image, uint8 (H, W, 3): disparity, height, angle in this order.

    ``depth_m`` (H, W) are metres with holes filled; ``raw_m`` (H, W), if there is one, is 0 where
    a hole was: planes are not fit to those pixels. Without it, the holes are the zeros of
    ``depth_m``. Rounded and saturated: 31000 / max(depth, 100) with depth in cm, height above the
    lowest point in cm, angle between normal and gravity in degrees + 38 (218 where no plane can be
    fit).
    """
    depth = np.asarray(depth_m, np.float64) * 100
    measured = (depth_m if raw_m is None else raw_m) > 0
    measured &= depth > 0  # a hole that nobody filled
    rays = camera.rays(*depth.shape)
    up = gravity(normals(depth, measured, GRAVITY_RADIUS, camera))
    facing = normals(depth, measured, ANGLE_RADIUS, camera) @ up
    angle = np.rad2deg(np.arccos(np.clip(facing, -1, 1)))
    level = DOWN if abs(up @ DOWN) >= SMALLEST_TURN else up
    height = -depth * (rays @ level)
    ground = height.min()
    height -= ground if ground <= -LEAST_DROP_CM else -USUAL_HEIGHT_CM
    image = np.empty((*depth.shape, 3))
    image[..., 0] = DISPARITY / np.maximum(depth, NEAREST_CM)
    image[..., 1] = height
    image[..., 2] = np.where(np.isnan(angle), UNKNOWN_ANGLE, angle) + ANGLE_OFFSET
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def normals(depth: np.ndarray, measured: np.ndarray, radius: int, camera: Camera) -> np.ndarray:
    """Unit normals of the surface, pointing away from the camera: (H, W, 3) float64.

    In the window of 2 ``radius`` + 1 around each pixel, without pixels that are not ``measured``
    (bool, (H, W)), a plane is fit to ``depth`` (H, W) by least squares in inverse depth, which on a
    plane is linear in the pixel's row and column. NaN where fewer pixels than a plane needs, or
    only pixels of one line, are measured.
    """
    inverse = np.divide(1, depth, out=np.zeros(depth.shape), where=measured)
    k = np.arange(-radius, radius + 1.0)
    powers = (np.ones_like(k), k, k * k)

    def sums(values: np.ndarray, axis: int, power: int) -> np.ndarray:
        return correlate1d(values, powers[power], axis, mode="constant")

    # moments of each window about its own pixel; those of the mask are whole numbers, and exact
    rows = [sums(measured.astype(float), 0, power) for power in range(3)]
    n, x, xx = (sums(rows[0], 1, power) for power in range(3))
    y, xy = (sums(rows[1], 1, power) for power in range(2))
    yy = sums(rows[2], 1, 0)
    row = sums(inverse, 0, 0)
    d, dx = sums(row, 1, 0), sums(row, 1, 1)
    dy = sums(sums(inverse, 0, 1), 1, 0)

    # Cramer's rule for inverse depth = right * column + down * row + centre
    a, b, c = yy * n - y * y, xy * n - x * y, xy * y - yy * x
    determinant = xx * a - xy * b + x * c
    right = a * dx - b * dy + c * d
    down = -b * dx + (xx * n - x * x) * dy - (xx * y - xy * x) * d
    centre = c * dx - (xx * y - xy * x) * dy + (xx * yy - xy * xy) * d

    # the plane's normal n has n . point = 1, that is n . ray = inverse depth
    rays = camera.rays(*depth.shape)
    found = np.empty_like(rays)
    found[..., 0] = right * camera.fx
    found[..., 1] = down * camera.fy
    found[..., 2] = centre - found[..., 0] * rays[..., 0] - found[..., 1] * rays[..., 1]
    length = np.sqrt(np.einsum("hwc,hwc->hw", found, found))
    length[centre < 0] *= -1  # the plane faces the pixel's ray
    length[determinant == 0] = np.nan
    length[length == 0] = np.nan
    return found / length[..., None]


def gravity(field: np.ndarray) -> np.ndarray:
    """The direction of gravity, a unit vector (3,) in the camera's axes, from normals (.., 3).

    It starts at the camera's own down. In every round, normals near it or near its opposite are
    floors, those across it are walls, and it becomes the direction most along the first and across
    the second: the eigenvector of the smallest eigenvalue of the difference of their scatters.
    """
    known = field.reshape(-1, 3)
    known = known[~np.isnan(known[:, 0])]
    direction = DOWN
    for degrees, rounds in GRAVITY_ROUNDS:
        floor, wall = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
        for _ in range(rounds):
            along = np.abs(known @ direction)
            sign = (along < wall).astype(float) - (along > floor)
            if not sign.any():
                continue  # nothing to go by
            _, vectors = np.linalg.eigh((known * sign[:, None]).T @ known)
            direction = vectors[:, 0] * (1 if vectors[:, 0] @ direction >= 0 else -1)
    return direction
