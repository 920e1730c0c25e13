"""PASCAL-Context (Mottaghi et al. 2014): 459 labels of VOC 2010 images, mapped to a task's."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fcn.data.readers.items import IMAGES, Contents, Item, class_names, files_by_id
from fcn.data.readers.mat import read_mat
from fcn.data.readers.names import class_table, read_names
from fcn.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[3]
LABELS = REPOSITORY / "config/labels/pascal-context-459.txt"


def read_context(path: Path, table: np.ndarray) -> np.ndarray:
    """Variable ``LabelMap`` of a label file as uint8 (H, W) of class indices; there is no void.

    A label that is not of the task is class 0, background, which is learned and scored like any
    other (authors' pascalcontext_layers.py).
    """
    ids = read_mat(path, "LabelMap")
    wrong = (ids < 0) | (ids >= len(table))
    if wrong.any():
        shown = ", ".join(str(value) for value in np.unique(ids[wrong])[:5])
        raise UserError(f"{path}: label {shown}, but the labels go from 0 to {len(table) - 1}.")
    return table[ids]


def context(definition: dict[str, Any], root: Path, scratch: Path) -> Contents:
    """PASCAL-Context: ``labels`` has ID.mat, ``images`` VOC 2010's; both are relative to ``root``.

    ``classes`` are background and the task's names; ``aliases`` says how the 459 labels spell those
    that they lack. The names of the labels are those of labels.txt, beside or in the folder of the
    label files, and of config/labels/pascal-context-459.txt where there is none.
    """
    classes = class_names(root, definition.get("classes"), "semantic")
    folder = root / definition.get("labels", "trainval")
    own = [place / "labels.txt" for place in (folder, root) if (place / "labels.txt").exists()]
    source = (own or [LABELS])[0]
    table = class_table(classes, definition.get("aliases", {}), read_names(source), source)
    images = files_by_id(root / definition["images"], IMAGES)
    labels = files_by_id(folder, (".mat",))
    items = (
        Item(key, {"image": images[key]}, {"semantic": partial(read_context, labels[key], table)})
        for key in images
        if key in labels
    )
    places = f"{definition['images']} and {folder.name} of {root}"
    return Contents(root, {"semantic": classes}, definition["splits"], items, places)
