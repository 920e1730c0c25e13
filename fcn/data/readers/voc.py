"""Folders in PASCAL VOC's layout: VOC itself, a user's own, and generated scenes."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fcn.data.labels import read_coloured_label, read_label
from fcn.data.readers.items import IMAGES, Contents, Item, class_names, files_by_id
from fcn.errors import UserError


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
    classes = {key: class_names(root, definition.get("classes"), key) for key in label_folders}
    inputs = {key: files_by_id(root / place, IMAGES) for key, place in input_folders.items()}
    labels = {key: files_by_id(root / place, (".png",)) for key, place in label_folders.items()}
    void, colours = definition.get("void"), definition.get("colours")

    if colours is None and isinstance(void, list):
        raise UserError(
            f"{root}: void: {void} is a colour, but the labels are indices; give its index, or "
            "`colours`."
        )

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

    kinds = {**inputs, **labels}
    places = " and ".join(
        f"{place} ({len(kinds[key])} files)"
        for key, place in [*input_folders.items(), *label_folders.items()]
    )
    return Contents(root, classes, definition["splits"], items(), f"{places} of {root}")


def scenes(definition: dict[str, Any], root: Path, scratch: Path) -> Contents:
    """Generated scenes: rendered into ``scratch`` in VOC's layout, then read as a folder."""
    from fcn.data.scenes import generate

    generate(scratch, definition)
    lists = sorted((scratch / "ImageSets/Segmentation").glob("*.txt"))
    layout = {
        "inputs": {"depth": "depth"},
        "labels": {"semantic": "SegmentationClass", "geometric": "GeometricClass"},
        "classes": {"semantic": "classes.txt", "geometric": "classes-geometric.txt"},
        "splits": {path.stem: path.relative_to(scratch).as_posix() for path in lists},
        "void": 255,
    }
    return folder(layout, scratch, scratch)
