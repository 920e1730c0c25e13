"""NYU Depth v2 (Silberman et al. 2012): 40 classes, depth, HHA; prepared or from its own files."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from fcn.data.hha import Camera, hha
from fcn.data.labels import check_label, stored
from fcn.data.readers.items import Contents, Input, Item, class_names, files_by_id
from fcn.errors import UserError
from fcn.files import write_text

FIRST_ID = 5001  # of the first image, in the lists of the authors
LABELLED, SPLITS, MAPPING = "nyu_depth_v2_labeled.mat", "splits.mat", "classMapping40.mat"
AXES = {"images": 4, "depths": 3, "rawDepths": 3, "labels": 3}  # of the labelled file's arrays
DEPTHS = {"filled": "depths", "raw": "rawDepths"}


def nyud(definition: dict[str, Any], root: Path, scratch: Path) -> Contents:
    """NYUDv2 as the FCN authors prepared it (nyud.tar.gz; nyud_layers.py), 425x560.

    data/images/img_ID.png, data/depth/img_ID.png (millimetres, holes filled), perhaps
    data/rawdepth and data/hha, and segmentation/img_ID.mat (1 to 40, 0 is void). HHA is computed,
    with the data set's ``camera``, where its image is not there. ``depth: raw`` takes the depth
    with its holes, which are 0.
    """
    classes = class_names(root, definition.get("classes"), "semantic")
    camera, kept = _camera(definition), _kept_depth(definition)
    base = next((place for place in _places(root) if (place / "data/images").is_dir()), root)
    labels = base / "segmentation"
    images = files_by_id(base / "data/images", (".png",))
    truths = files_by_id(labels if labels.is_dir() else base / "data/segmentation", (".mat",))
    filled = files_by_id(base / "data/depth", (".png",))
    raws, encoded = (
        files_by_id(base / "data" / part, (".png",)) if (base / "data" / part).is_dir() else {}
        for part in ("rawdepth", "hha")
    )
    depths = raws if kept == "rawDepths" else filled

    def items() -> Iterator[Item]:
        for key in sorted(images.keys() & truths.keys() & filled.keys() & depths.keys()):
            computed = partial(_hha_of_files, filled[key], raws.get(key), camera)
            inputs: dict[str, Input] = {"image": images[key], "depth": depths[key]}
            inputs["hha"] = encoded.get(key, computed)
            read = partial(read_segmentation, truths[key], len(classes))
            yield Item(key.removeprefix("img_"), inputs, {"semantic": read})

    places = f"data and segmentation of {base}"
    return Contents(base, {"semantic": classes}, definition["splits"], items(), places)


def nyudv2(definition: dict[str, Any], root: Path, scratch: Path) -> Contents:
    """NYUDv2 from its own labelled file, its split and the mapping of 894 to 40 classes.

    Images are cut to ``crop`` ({rows: [first, end], columns: [first, end]}), as Gupta, Arbelaez and
    Malik (CVPR 2013) did; depth is millimetres, ``depth: raw`` with its holes, which are 0. Ids are
    the authors'. The splits trainval.txt and test.txt are those of splits.mat. Nothing is read
    whole: each image is read when its turn has come.
    """
    classes = class_names(root, definition.get("classes"), "semantic")
    frames = _frames(root / LABELLED)
    crop = definition.get("crop", {"rows": [0, frames[1]], "columns": [0, frames[2]]})
    try:
        (top, bottom), (left, right) = crop["rows"], crop["columns"]
        inside = 0 <= top < bottom <= frames[1] and 0 <= left < right <= frames[2]
    except (KeyError, TypeError, ValueError):
        inside = False
    if not inside:
        raise UserError(
            f"crop: {crop!r} is not {{rows: [first, end], columns: [first, end]}} within "
            f"{frames[1]} rows and {frames[2]} columns."
        )
    source = Labelled(
        root / LABELLED,
        (slice(top, bottom), slice(left, right)),
        _camera(definition),
        _kept_depth(definition),
        _mapping(root / MAPPING, len(classes)),
    )
    indices = _matlab5(root / SPLITS, "trainNdxs", "testNdxs")
    for name, values in zip(("trainval", "test"), indices, strict=True):
        ids = "".join(f"{int(index) + FIRST_ID - 1}\n" for index in values.ravel())
        write_text(scratch / f"{name}.txt", ids)
    items = (source.item(index) for index in range(frames[0]))
    return Contents(scratch, {"semantic": classes}, definition["splits"], items, str(root))


def read_segmentation(path: Path, classes: int) -> np.ndarray:
    """The label map of one prepared file, uint8 (H, W) of 0..classes-1, void 255."""
    (values,) = _matlab5(path, "segmentation")
    return check_label(values, path, classes + 1, None) - np.uint8(1)  # void, 0, becomes 255


@dataclass(frozen=True, eq=False)
class Labelled:
    """The labelled file, nyu_depth_v2_labeled.mat: HDF5 whose axes MATLAB wrote in reverse.

    ``crop`` is the rows and columns that are kept, ``camera`` sees the cropped image, ``depth`` is
    the array that the depth input is taken from, ``mapping`` uint8 (895,) gives the file's labels
    their classes from 1 on, and 0 to void.
    """

    path: Path
    crop: tuple[slice, slice]
    camera: Camera
    depth: str
    mapping: np.ndarray

    def item(self, index: int) -> Item:
        """The image at ``index`` (from 0) of the file."""
        inputs: dict[str, Input] = {
            "image": partial(self.image, index),
            "depth": partial(self.millimetres, index),
            "hha": partial(self.hha, index),
        }
        return Item(str(index + FIRST_ID), inputs, {"semantic": partial(self.label, index)})

    def array(self, name: str, index: int) -> np.ndarray:
        """One image of one of the file's arrays: (H, W) or (H, W, 3)."""
        with _matlab73(self.path) as file:
            values: np.ndarray = _read(self.path, file, name, index).T
        return values[self.crop]

    def image(self, index: int) -> np.ndarray:
        """The colour image, uint8 (H, W, 3)."""
        return self.array("images", index)

    def metres(self, name: str, index: int) -> np.ndarray:
        """A depth image, float (H, W) in metres; values that no sensor gives are a UserError."""
        values = self.array(name, index)
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() < 65):
            raise UserError(
                f"{self.path}: {name} of image {index + 1} are not metres between 0 and 65; "
                "delete the file and fetch it again."
            )
        return values

    def millimetres(self, index: int) -> np.ndarray:
        """The depth input, uint16 (H, W) in millimetres; 0 where it is not known."""
        return np.rint(self.metres(self.depth, index) * 1000.0).astype(np.uint16)

    def hha(self, index: int) -> np.ndarray:
        """HHA of the cropped depth, uint8 (H, W, 3)."""
        return hha(self.metres("depths", index), self.metres("rawDepths", index), self.camera)

    def label(self, index: int) -> np.ndarray:
        """The label map, uint8 (H, W) of 0..classes-1, void 255."""
        values = self.array("labels", index)
        if values.max() >= len(self.mapping):
            raise UserError(
                f"{self.path}: label {values.max()} in image {index + 1}, but {MAPPING} has only 1 "
                f"to {len(self.mapping) - 1}."
            )
        return self.mapping[values] - np.uint8(1)


# ---- pieces --------------------------------------------------------------------------------------


def _places(root: Path) -> list[Path]:
    """Where the prepared data may be: in the folder itself or in one of its folders."""
    return [root, *sorted(path for path in root.iterdir() if path.is_dir())]


def _camera(definition: Mapping[str, Any]) -> Camera:
    try:
        return Camera(**{key: float(value) for key, value in definition["camera"].items()})
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(
            f"camera: {definition.get('camera')!r}; give {{fx: .., fy: .., cx: .., cy: ..}} in "
            "pixels, HHA is computed with it."
        ) from None


def _kept_depth(definition: Mapping[str, Any]) -> str:
    kind = definition.get("depth", "filled")
    if kind not in DEPTHS:
        raise UserError(f"depth: {kind!r} is neither filled nor raw.")
    return DEPTHS[kind]


def _depth_file(path: Path) -> np.ndarray:
    """A depth PNG in millimetres as metres, float64 (H, W)."""
    try:
        with Image.open(path) as image:
            values = np.asarray(stored(image), np.float64)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path}: not a readable image ({error}).") from None
    if values.ndim != 2:
        raise UserError(f"{path}: in colour, where depth in millimetres is expected (16-bit grey).")
    return values / 1000


def _hha_of_files(filled: Path, raw: Path | None, camera: Camera) -> np.ndarray:
    depth, holes = _depth_file(filled), None if raw is None else _depth_file(raw)
    if holes is not None and holes.shape != depth.shape:
        raise UserError(f"{raw}: not of the size of {filled}.")
    return hha(depth, holes, camera)


def _matlab5(path: Path, *names: str) -> list[np.ndarray]:
    """Arrays of integers of a MATLAB 5 file."""
    from scipy.io import loadmat  # slow to import

    try:
        with path.open("rb") as handle:
            found = loadmat(handle, variable_names=names)
        arrays = [np.asarray(found[name]) for name in names]
        if not all(array.ndim == 2 and array.dtype.kind in "iu" for array in arrays):
            raise ValueError("they are not matrices of integers")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; put it there.") from None
    except Exception as error:  # scipy raises whatever its parser stumbles over
        raise UserError(f"{path}: not a MAT file with {' and '.join(names)} ({error!r}).") from None
    return arrays


def _mapping(path: Path, classes: int) -> np.ndarray:
    (values,) = _matlab5(path, "mapClass")
    if values.min() < 1 or values.max() > classes:
        raise UserError(
            f"{path}: mapClass has {values.min()} to {values.max()}, where classes 1 to {classes} "
            "are expected; correct the list of classes or fetch the file again."
        )
    return np.concatenate([[0], values.ravel()]).astype(np.uint8)


def _matlab73(path: Path) -> Any:
    import h5py  # slow to import, and only this needs it

    try:
        return h5py.File(path, "r")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; put it there.") from None
    except OSError as error:
        raise UserError(
            f"{path}: not a whole MATLAB 7.3 file ({error}); delete it and fetch it again."
        ) from None


def _read(path: Path, file: Any, name: str, index: int) -> np.ndarray:
    try:
        return np.asarray(file[name][index])
    except (OSError, KeyError, RuntimeError) as error:
        raise UserError(
            f"{path}: {name} of image {index + 1} is damaged ({error}); delete the file and fetch "
            "it again."
        ) from None


def _frames(path: Path) -> tuple[int, int, int]:
    """(images, height, width) of the labelled file, whose arrays must agree."""
    with _matlab73(path) as file:
        shapes = {}
        for name, axes in AXES.items():
            if name not in file:
                raise UserError(f"{path}: no array {name} in it; is it {LABELLED}?")
            shapes[name] = tuple(getattr(file[name], "shape", ()))
            if len(shapes[name]) != axes:
                raise UserError(f"{path}: {name} has {len(shapes[name])} axes instead of {axes}.")
        count, width, height = shapes["labels"]
        for name, shape in shapes.items():
            expected = (count, 3, width, height) if name == "images" else (count, width, height)
            if shape != expected:
                raise UserError(
                    f"{path}: {name} is {shape} where labels are {shapes['labels']}, so "
                    f"{expected} is expected."
                )
        wrong = [name for name in ("images", "labels") if file[name].dtype.kind != "u"]
        if wrong or file["images"].dtype != np.uint8:
            raise UserError(f"{path}: {' and '.join(wrong) or 'images'} must be unsigned integers.")
    return count, height, width
