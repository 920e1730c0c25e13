"""Predictions in one small file: COCO results with run-length encoded masks, gzipped JSON."""

import gzip
import json
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask

from fcn.errors import UserError
from fcn.files import atomic_file


def encode_prediction(image_id: str | int, labels: np.ndarray) -> list[dict[str, Any]]:
    """A COCO results entry for each class present in ``labels``, uint8 (H, W)."""
    if labels.dtype != np.uint8 or labels.ndim != 2:
        raise ValueError(f"a label map is uint8 (H, W), not {labels.dtype} {labels.shape}")
    present = np.unique(labels)
    masks = np.asfortranarray((labels[:, :, np.newaxis] == present).astype(np.uint8))
    return [
        {
            "image_id": image_id,
            "category_id": int(label),
            "segmentation": {
                "size": [int(side) for side in code["size"]],
                "counts": code["counts"].decode("ascii"),
            },
        }
        for label, code in zip(present, mask.encode(masks), strict=True)
    ]


def decode_prediction(entries: Sequence[dict[str, Any]], size: tuple[int, int]) -> np.ndarray:
    """The uint8 (H, W) label map of one image's entries.

    UserError if an entry is of another size, or if the masks leave or share a pixel.
    """
    name = entries[0]["image_id"] if entries else "?"
    labels = np.zeros(size, np.uint8)
    covered = np.zeros(size, np.int64)
    for entry in entries:
        code = entry["segmentation"]
        if tuple(code["size"]) != tuple(size):
            raise UserError(
                f"predictions of image {name}: {code['size']} pixels, not {list(size)}."
            )
        one = mask.decode({"size": code["size"], "counts": code["counts"].encode("ascii")})
        covered += one
        labels[one.astype(bool)] = entry["category_id"]
    if not (covered == 1).all():
        raise UserError(
            f"predictions of image {name}: {int((covered != 1).sum())} pixels do not have exactly "
            "one class."
        )
    return labels


def write_predictions(
    path: str | Path,
    entries: Iterable[dict[str, Any]],
    images: Sequence[dict[str, Any]],
    categories: Sequence[dict[str, Any]],
) -> None:
    """Write ``entries`` (``encode_prediction``) as gzipped JSON, one entry a line, as they come.

    The file is an object of COCO's ``images`` ({id, height, width}), ``categories`` ({id, name})
    and ``annotations`` (the entries: what COCO calls results). Equal input gives equal bytes.
    """
    with (
        atomic_file(path) as temporary,
        temporary.open("wb") as handle,
        gzip.GzipFile("", "wb", 9, handle, mtime=0) as archive,
    ):
        head = {"images": list(images), "categories": list(categories)}
        archive.write(json.dumps(head)[:-1].encode() + b', "annotations": [')
        for number, entry in enumerate(entries):
            archive.write((b",\n" if number else b"\n") + json.dumps(entry).encode())
        archive.write(b"]}\n")


def read_predictions(path: str | Path) -> dict[str, Any]:
    """The object that ``write_predictions`` wrote; anything else is a UserError."""
    try:
        with gzip.open(path, "rb") as archive:
            found = json.loads(archive.read())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file.") from None
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise UserError(f"{path}: not a whole file of predictions ({error}).") from None
    keys = {"images", "categories", "annotations"}
    if not isinstance(found, dict) or not keys <= found.keys():
        raise UserError(f"{path}: not a file of predictions: it needs {', '.join(sorted(keys))}.")
    return found
