import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fcn.data.hha import Camera, gravity, hha, normals

REAL = Path(__file__).resolve().parents[1].parent / "shared" / "data"
real = pytest.mark.skipif(not REAL.is_dir(), reason="the real data (shared/data) is not here")
KINECT = Camera(518.85790, 519.46961, 325.58245, 253.73617)
SMALL = Camera(40.0, 41.0, 17.3, 12.2)


def unit(*vector: float) -> np.ndarray:
    return np.array(vector) / np.linalg.norm(vector)


def plane(normal: np.ndarray, distance: float, camera: Camera, size=(24, 32)) -> np.ndarray:
    """Depth of the plane normal . point = distance."""
    return distance / (camera.rays(*size) @ normal)


def fit(depth, measured, radius, camera, row, column):
    """The normal at one pixel by numpy's least squares over the points of its window."""
    rays = camera.rays(*depth.shape)
    down, right = (slice(max(0, at - radius), at + radius + 1) for at in (row, column))
    near = (down, right)
    keep = measured[near]
    normal, _, rank, _ = np.linalg.lstsq(rays[near][keep], 1 / depth[near][keep], rcond=1e-9)
    if rank < 3:
        return None
    return normal / np.linalg.norm(normal) * (1 if normal @ rays[row, column] > 0 else -1)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32), radius=st.integers(1, 4), share=st.sampled_from([0.05, 0.4, 1]))
def test_normals_are_least_squares_planes(seed, radius, share):
    random = np.random.default_rng(seed)
    depth = random.uniform(80, 500, (9, 11))
    measured = random.random(depth.shape) < share
    found = normals(depth, measured, radius, SMALL)
    for row, column in random.integers(0, depth.shape, (12, 2)):
        expected = fit(depth, measured, radius, SMALL, row, column)
        if expected is None:
            assert np.isnan(found[row, column]).all()
        else:
            np.testing.assert_allclose(found[row, column], expected, atol=1e-6)


def test_what_is_not_measured_does_not_count():
    depth = plane(unit(0.1, 0.9, 0.3), 150, SMALL, (12, 16)) + 0.0
    measured = np.random.default_rng(1).random(depth.shape) < 0.6
    other = np.where(measured, depth, 0)
    expected = normals(depth, measured, 3, SMALL)
    np.testing.assert_allclose(normals(other, measured, 3, SMALL), expected, atol=1e-9)


def test_a_single_line_of_points_is_no_plane():
    measured = np.zeros((15, 15), bool)
    measured[[2, 4, 6], [2, 4, 6]] = True  # in a line, the others alone
    found = normals(np.full((15, 15), 200.0), measured, 3, SMALL)
    assert np.isnan(found).all()
    measured[4, 5] = True
    found = normals(np.full((15, 15), 200.0), measured, 3, SMALL)
    np.testing.assert_allclose(found[4, 4], [0, 0, 1], atol=1e-9)


@settings(deadline=None, max_examples=20)
@given(pitch=st.floats(-25, 25), roll=st.floats(-25, 25), seed=st.integers(0, 999))
def test_gravity_of_a_room_seen_by_a_tilted_camera(pitch, roll, seed):
    pitch, roll = np.deg2rad([pitch, roll])
    down = unit(np.sin(roll), np.cos(roll) * np.cos(pitch), np.sin(pitch))
    side = unit(*np.cross(down, [0.2, 0.1, 1]))
    walls = [side, np.cross(down, side)]
    normal = np.array([down] * 40 + [-down] * 15 + [walls[0]] * 30 + [-walls[1]] * 30)
    normal += np.random.default_rng(seed).normal(0, 0.03, normal.shape)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    normal[::9] = np.nan
    assert gravity(normal) @ down > np.cos(np.deg2rad(2))


def test_the_channels_of_a_floor_and_a_wall():
    height, width = 60, 80
    camera = Camera(70.0, 70.0, 40.5, 20.5)
    floor = plane(np.array([0, 1.0, 0]), 1.5, camera, (height, width))
    depth = np.where((floor > 0) & (floor < 4), floor, 4.0)  # a wall 4 m away, a floor 1.5 m below
    image = hha(depth, None, camera)
    assert image.shape == (height, width, 3) and image.dtype == np.uint8
    np.testing.assert_array_equal(
        image[..., 0], np.minimum(255, np.rint(31000 / np.maximum(100, depth * 100)))
    )
    on_floor, on_wall = np.s_[-6:-4, 10:70], np.s_[5:20, 10:70]
    assert (image[on_floor][..., 1] <= 1).all()
    metres = 1.5 - depth * camera.rays(height, width)[..., 1]
    assert np.abs(image[on_wall][..., 1] - np.minimum(255, metres[on_wall] * 100)).max() <= 3
    assert np.abs(image[on_floor][..., 2] - 38.0).max() <= 1  # along gravity
    assert np.abs(image[on_wall][..., 2] - (90.0 + 38)).max() <= 1  # across it


def test_no_ground_in_sight():
    """The lowest point is less than 90 cm below the camera, which is then taken to be at 130 cm."""
    camera = Camera(70.0, 70.0, 40.5, 30.5)
    image = hha(np.full((60, 80), 1.5), None, camera)
    heights = 130 - 150 * camera.rays(60, 80)[..., 1]
    np.testing.assert_array_equal(image[..., 1], np.clip(np.rint(heights), 0, 255))


def test_holes_and_nothing_but_holes():
    depth = np.full((30, 40), 2.0)
    raw = depth.copy()
    raw[5:25, 5:25] = 0
    image = hha(depth, raw, SMALL)
    assert (image[9:21, 9:21, 2] == 218).all() and (image[:, 30:, 2] == 128).all()
    assert (image[..., 0] == 155).all()  # the filled depth
    depth[5:25, 5:25] = 0  # nobody filled them
    np.testing.assert_array_equal(hha(depth, None, SMALL)[..., 2], image[..., 2])
    assert (hha(depth, None, SMALL)[9:21, 9:21, 0] == 255).all()
    nothing = hha(np.zeros((30, 40)), None, SMALL)
    assert (nothing == [255, 130, 218]).all()


def levels(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    return np.abs(found.astype(int) - expected)


@real
def test_the_published_codes_on_a_real_image():
    """Equal to the MATLAB result; with holes, equal to a level wherever points fix a plane."""
    picture = {p.stem: np.asarray(Image.open(p)) for p in (REAL / "hha").glob("*.png")}
    depth, raw = picture["0"] / 10000, picture["0_raw"] / 10000
    complete = hha(depth, None, KINECT)
    np.testing.assert_array_equal(complete, picture["matlab_hha"])
    np.testing.assert_array_equal(complete, picture["hha_complete"])
    difference = levels(hha(depth, raw, KINECT), picture["hha"])
    known = ~np.isnan(normals(depth * 100, raw > 0, 3, KINECT)[..., 0])
    assert difference[..., :2].max() <= 1 and difference[known].max() <= 1
    assert (known | (raw == 0)).mean() > 0.99999  # all but one of the pixels that were measured


@real
def test_the_authors_own_hha():
    """img_5001 of nyud.tar.gz: cut to 425x560, and the camera is that of the whole frame."""
    picture = {}
    with tarfile.open(REAL / "mirror/nyud.tar.gz") as tar:
        for member in tar:
            if member.name.endswith("img_5001.png"):
                data = io.BytesIO(tar.extractfile(member).read())  # type: ignore[union-attr]
                picture[member.name.split("/")[-2]] = np.asarray(Image.open(data))
    depth, raw = picture["depth"] / 1000, picture["rawdepth"] / 1000
    known = ~np.isnan(normals(depth * 100, raw > 0, 3, KINECT)[..., 0])
    difference = levels(hha(depth, raw, KINECT), picture["hha"])
    assert difference[..., :2].max() <= 1 and difference[known].max() <= 1
    moved = Camera(KINECT.fx, KINECT.fy, KINECT.cx - 40, KINECT.cy - 45)
    assert levels(hha(depth, raw, moved), picture["hha"])[known].max() > 5


def test_a_camera_as_good_as_upright_is_taken_for_upright():
    """Less than a tenth of a degree off, heights are along its own down and not along gravity."""
    camera = Camera(70.0, 70.0, 40.5, -8.5)
    tilt = np.deg2rad(0.08)
    depth = plane(unit(0, np.cos(tilt), np.sin(tilt)), 1.5, camera, (60, 80))
    down = 100 * depth * camera.rays(60, 80)[..., 1]
    expected = np.clip(np.rint(down.max() - down), 0, 255)
    np.testing.assert_array_equal(hha(depth, None, camera)[..., 1], expected)


def test_a_depth_of_0_is_a_hole_whatever_the_raw_depth_says():
    depth = np.full((30, 40), 2.0)
    depth[5:25, 5:25] = 0
    np.testing.assert_array_equal(
        hha(depth, np.full_like(depth, 2), SMALL), hha(depth, None, SMALL)
    )
