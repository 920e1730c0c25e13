"""What every reader gives: the items of a data set, and helpers to find them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fcn.data.labels import VOID
from fcn.errors import UserError
from fcn.files import files_below

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


Input = Path | Callable[[], np.ndarray]


@dataclass(frozen=True)
class Item:
    """One image: its inputs as files or functions, its labels as functions that read them.

    ``inputs`` has ``"image"`` (RGB) first and perhaps ``"depth"`` or ``"hha"``: a file that is kept
    as it is, or a function that gives uint8 (H, W, 3) or, for depth, uint16 (H, W), written as PNG.
    ``labels`` has ``"semantic"`` and perhaps ``"geometric"``, each giving uint8 (H, W) with void
    255; it is empty where nobody gives labels. All items of a data set have the same keys. The
    functions must be picklable: they are called in other processes.
    """

    id: str
    inputs: dict[str, Input]
    labels: dict[str, Callable[[], np.ndarray]]


@dataclass(frozen=True)
class Contents:
    """What a reader found: ``root`` is the folder that the split lists are relative to."""

    root: Path
    classes: dict[str, list[str]]
    splits: dict[str, Any]
    items: Iterator[Item]
    places: str  # where images and labels are looked for, for messages


def files_by_id(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Files by id: the path below ``folder`` without its extension."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder.")
    found: dict[str, Path] = {}
    for path in sorted(files_below(folder)):
        if path.suffix.lower() not in suffixes:
            continue
        key = path.relative_to(folder).with_suffix("").as_posix()
        if key in found:
            raise UserError(f"{path}: the id {key} is taken by {found[key].name}; keep one file.")
        found[key] = path
    if not found:
        raise UserError(f"{folder}: no {', '.join(suffixes)} files in it.")
    return found


def class_names(root: Path, classes: Any, label: str) -> list[str]:
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
    if len(names) > VOID:
        raise UserError(f"classes: {len(names)} of {label} do not fit 8-bit labels (1 to {VOID}).")
    if len(set(names)) != len(names):
        raise UserError(f"classes: a name of {label} stands twice in {', '.join(names)}.")
    return names
