"""COCO instances (Lin et al. 2014) as label maps of classes."""

from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as rle

from fcn.data.readers.items import IMAGES, Contents, Item, class_names, files_by_id
from fcn.data.readers.names import class_table
from fcn.errors import UserError
from fcn.files import read_json, write_text

Segments = list[tuple[int, Any]]  # (class, segmentation as COCO writes it) of an image's instances


def read_coco(source: str, segments: Segments, size: tuple[int, int]) -> np.ndarray:
    """Instances as one label map, uint8 (H, W) = ``size``: their classes, 0 elsewhere.

    What two or more instances cover is void, 255 (torchvision, references/segmentation). A
    segmentation is a list of polygons or a run-length encoding; ``source`` names it in messages.
    """
    label, covered = np.zeros(size, np.uint8), np.zeros(size, np.int64)
    for index, segmentation in segments:
        try:
            told = segmentation.get("size") if isinstance(segmentation, dict) else None
            if told not in (None, list(size)):
                raise ValueError(f"of size {told} in an image of {list(size)} (height, width)")
            coded = isinstance(segmentation, dict) and isinstance(segmentation["counts"], str)
            codes = segmentation if coded else rle.frPyObjects(segmentation, *size)
            mask = rle.decode(codes).reshape(*size, -1).any(axis=2)
        except Exception as error:  # pycocotools raises whatever it stumbles over
            raise UserError(f"{source}: a broken segmentation ({error!r}).") from None
        label[mask] = index
        covered += mask
    label[covered > 1] = 255
    return label


def coco(definition: dict[str, Any], root: Path, scratch: Path) -> Contents:
    """COCO: splits are ``{annotations: FILE, images: FOLDER}``, with paths relative to ``root``.

    ``classes`` are background and names of categories (``aliases``: how COCO spells those that it
    lacks; spaces do not count). A split may have a ``minimum_area``: it keeps the images in which
    the instances of these classes have more, in pixels and together. An id is an image's file name
    without its extension. Further splits are made of those, as everywhere.
    """
    classes = class_names(root, definition.get("classes"), "semantic")
    items: dict[str, Item] = {}
    splits: dict[str, Any] = {}
    for name, split in definition["splits"].items():
        if not isinstance(split, dict) or not {"annotations", "images"} <= split.keys():
            splits[name] = split
            continue
        listed = _images(definition, classes, name, root)
        images = files_by_id(root / split["images"], IMAGES)
        for key, read in listed.items():
            if key in items:
                raise UserError(f"{split['annotations']}: image {key} is in another split too.")
            if key in images:
                items[key] = Item(key, {"image": images[key]}, {"semantic": read})
        splits[name] = f"{name}.txt"
        write_text(scratch / splits[name], "".join(f"{key}\n" for key in listed))
    return Contents(
        scratch, {"semantic": classes}, splits, iter(items.values()), f"images of {root}"
    )


def _images(
    definition: dict[str, Any], classes: list[str], name: str, root: Path
) -> dict[str, partial[np.ndarray]]:
    """How to read the label of each image of a split, by id, in the order of the annotations."""
    split = definition["splits"][name]
    path = root / split["annotations"]
    found = read_json(path)
    try:
        names = {kind["name"].replace(" ", ""): kind["id"] for kind in found["categories"]}
        if len(names) < len(found["categories"]):
            raise UserError(f"{path}: two categories of one name (spaces do not count).")
        table = class_table(classes, definition.get("aliases", {}), names, path)
        segments: dict[int, Segments] = defaultdict(list)
        areas: dict[int, float] = defaultdict(float)
        for instance in found["annotations"]:
            index = int(table[instance["category_id"]])
            if index:
                segments[instance["image_id"]].append((index, instance["segmentation"]))
                areas[instance["image_id"]] += instance["area"]
        least = split.get("minimum_area")
        return {
            Path(image["file_name"]).stem: partial(
                read_coco,
                f"{path.name}, image {image['id']}",
                segments[image["id"]],
                (image["height"], image["width"]),
            )
            for image in found["images"]
            if least is None or areas[image["id"]] > least
        }
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise UserError(
            f"{path}: not COCO's instances: images, annotations and categories ({error!r})."
        ) from None
