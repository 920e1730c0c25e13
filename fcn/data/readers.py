"""Readers: what a data set's own files are. Each ends in the same items, which `prepare` writes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fcn.data.labels import check_label, read_coloured_label, read_label
from fcn.errors import UserError

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Item:
    """One image: its inputs as files, its labels as (picklable) functions that read them.

    ``inputs`` has ``"image"`` (RGB) and perhaps ``"depth"`` or ``"hha"``; ``labels`` has
    ``"semantic"`` and perhaps ``"geometric"``, each giving uint8 (H, W) with void 255.
    """

    id: str
    inputs: dict[str, Path]
    labels: dict[str, Callable[[], np.ndarray]]


@dataclass(frozen=True)
class Contents:
    """What a reader found: ``root`` is the folder that the split lists are relative to."""

    root: Path
    classes: dict[str, list[str]]
    splits: dict[str, Any]
    items: Iterator[Item]
    places: str  # where images and labels are looked for, for messages


def _files(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Files by id: the path below ``folder`` without its extension."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder.")
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in suffixes:
            continue
        key = path.relative_to(folder).with_suffix("").as_posix()
        if key in found:
            raise UserError(f"{path}: the id {key} is taken by {found[key].name}; keep one file.")
        found[key] = path
    if not found:
        raise UserError(f"{folder}: no {', '.join(suffixes)} files in it.")
    return found


def _class_names(root: Path, classes: Any, label: str) -> list[str]:
    """The names of one label's classes: a list, or a text file of one name a line."""
    if isinstance(classes, dict):
        classes = classes.get(label)
    if isinstance(classes, str):
        path = root / classes
        try:
            lines = path.read_text("utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: not a readable list of class names ({error}).") from None
        classes = [line.strip() for line in lines if line.strip()]
    if not isinstance(classes, list) or not classes:
        raise UserError(f"classes: give the names of {label}, as a list or a file with one a line.")
    names = [str(name) for name in classes]
    if len(set(names)) != len(names):
        raise UserError(f"classes: a name of {label} stands twice in {', '.join(names)}.")
    return names


def folder(definition: dict[str, Any], root: Path, scratch: Path) -> Contents:
    """A folder in PASCAL VOC's layout: ``images``, ``labels`` and lists of ids.

    Keys: ``images`` (JPEGImages), ``inputs`` (more inputs: {depth: FOLDER}), ``labels``
    (SegmentationClass, or {semantic: FOLDER, geometric: FOLDER}), ``classes`` (a list or a file,
    per label where there are several), ``void`` (its value in the files), ``colours`` (where the
    files are colour-coded: "voc" or one [r, g, b] per class), ``splits``.
    """
    if "splits" not in definition:
        raise UserError(
            f"{root}: which images are for training? Give `splits`, one list of ids (an image's "
            "name without extension) a line, e.g. {train: ImageSets/Segmentation/train.txt}."
        )
    label_folders = definition.get("labels", "SegmentationClass")
    if isinstance(label_folders, str):
        label_folders = {"semantic": label_folders}
    input_folders = {
        "image": definition.get("images", "JPEGImages"),
        **definition.get("inputs", {}),
    }
    classes = {key: _class_names(root, definition.get("classes"), key) for key in label_folders}
    inputs = {key: _files(root / place, IMAGES) for key, place in input_folders.items()}
    labels = {key: _files(root / place, (".png",)) for key, place in label_folders.items()}
    void, colours = definition.get("void"), definition.get("colours")

    def read(path: Path, count: int) -> Callable[[], np.ndarray]:
        if colours is None:
            return partial(read_label, path, count, void)
        return partial(read_coloured_label, path, colours, count, void)

    def items() -> Iterator[Item]:
        for key in inputs["image"]:
            if all(key in files for files in [*inputs.values(), *labels.values()]):
                yield Item(
                    key,
                    {name: files[key] for name, files in inputs.items()},
                    {name: read(files[key], len(classes[name])) for name, files in labels.items()},
                )

    places = " and ".join([*input_folders.values(), *label_folders.values()])
    return Contents(root, classes, definition["splits"], items(), f"{places} of {root}")


def read_gtcls(path: Path, classes: int) -> np.ndarray:
    """The class map of one SBD file (MAT v5, struct GTcls), uint8 (H, W); SBD has no void."""
    from scipy.io import loadmat  # slow to import, and only SBD needs it

    try:
        values = loadmat(path, variable_names=["GTcls"])["GTcls"]["Segmentation"][0, 0]
    except Exception as error:  # scipy raises whatever its parser stumbles over
        raise UserError(f"{path}: not a MAT file with GTcls.Segmentation ({error!r}).") from None
    return check_label(values, path, classes, None)


def sbd(definition: dict[str, Any], root: Path, scratch: Path) -> Contents:
    """SBD (Hariharan et al. 2011): img/ID.jpg and cls/ID.mat."""
    classes = _class_names(root, definition.get("classes"), "semantic")
    images, labels = _files(root / "img", IMAGES), _files(root / "cls", (".mat",))
    items = (
        Item(
            key,
            {"image": images[key]},
            {"semantic": partial(read_gtcls, labels[key], len(classes))},
        )
        for key in images
        if key in labels
    )
    places = f"img and cls of {root}"
    return Contents(root, {"semantic": classes}, definition["splits"], items, places)


def scenes(definition: dict[str, Any], root: Path, scratch: Path) -> Contents:
    """Generated scenes: rendered into ``scratch`` in VOC's layout, then read as a folder."""
    from fcn.data.scenes import generate

    ours = ("reader", "title", "terms", "notes")
    generate(scratch, {key: value for key, value in definition.items() if key not in ours})
    lists = sorted((scratch / "ImageSets/Segmentation").glob("*.txt"))
    layout = {
        "inputs": {"depth": "depth"},
        "labels": {"semantic": "SegmentationClass", "geometric": "GeometricClass"},
        "classes": {"semantic": "classes.txt", "geometric": "classes-geometric.txt"},
        "splits": {path.stem: path.relative_to(scratch).as_posix() for path in lists},
        "void": 255,
    }
    return folder(layout, scratch, scratch)


READERS: dict[str, Callable[[dict[str, Any], Path, Path], Contents]] = {
    "voc": folder,  # VOC's own layout is what `folder` reads
    "folder": folder,
    "sbd": sbd,
    "scenes": scenes,
}
