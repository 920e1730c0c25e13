"""The Semantic Boundaries Dataset (Hariharan et al. 2011)."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fcn.data.labels import VOID, check_label
from fcn.data.readers.items import IMAGES, Contents, Item, class_names, files_by_id
from fcn.errors import UserError


def read_gtcls(path: Path, classes: int) -> np.ndarray:
    """The class map of one SBD file (MAT v5, struct GTcls), uint8 (H, W), void 255 as in VOC."""
    from scipy.io import loadmat  # slow to import, and only SBD needs it

    try:
        values = loadmat(path, variable_names=["GTcls"])["GTcls"]["Segmentation"][0, 0]
    except Exception as error:  # scipy raises whatever its parser stumbles over
        raise UserError(f"{path}: not a MAT file with GTcls.Segmentation ({error!r}).") from None
    return check_label(values, path, classes, VOID)


def sbd(definition: dict[str, Any], root: Path, scratch: Path) -> Contents:
    """SBD (Hariharan et al. 2011): img/ID.jpg and cls/ID.mat."""
    classes = class_names(root, definition.get("classes"), "semantic")
    images, labels = files_by_id(root / "img", IMAGES), files_by_id(root / "cls", (".mat",))
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
