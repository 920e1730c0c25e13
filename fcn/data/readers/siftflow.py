"""SIFT Flow (Liu et al. 2009; labels as in Tighe and Lazebnik 2010): 33 and 3 classes."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fcn.data.labels import check_label
from fcn.data.readers.items import IMAGES, Contents, Item, class_names, files_by_id
from fcn.data.readers.mat import read_mat

SCENES = "spatial_envelope_256x256_static_8outdoorcategories"
FOLDERS = {"semantic": "SemanticLabels", "geometric": "GeoLabels"}


def read_siftflow(path: Path, classes: int, task: str) -> np.ndarray:
    """Variable ``S`` of a label file as uint8 (H, W): 0..classes-1, void 255.

    Classes are counted from 1 in the file; void is 0 in semantic and -1 in geometric files
    (authors' siftflow_layers.py, which takes 0 for void in the latter too).
    """
    values = read_mat(path, "S")
    if task == "geometric":
        values[values == -1] = 0
    return check_label(values, path, classes + 1, None) - np.uint8(1)  # 0 becomes 255


def siftflow(definition: dict[str, Any], root: Path, scratch: Path) -> Contents:
    """Images/, SemanticLabels/ and GeoLabels/, each with the one folder of the scenes."""
    classes = {task: class_names(root, definition.get("classes"), task) for task in FOLDERS}
    images = files_by_id(root / "Images" / SCENES, IMAGES)
    labels = {
        task: files_by_id(root / place / SCENES, (".mat",)) for task, place in FOLDERS.items()
    }
    items = (
        Item(
            key,
            {"image": images[key]},
            {
                task: partial(read_siftflow, labels[task][key], len(classes[task]), task)
                for task in FOLDERS
            },
        )
        for key in images
        if all(key in files for files in labels.values())
    )
    places = f"Images, {' and '.join(FOLDERS.values())} of {root}"
    return Contents(root, classes, definition["splits"], items, places)
