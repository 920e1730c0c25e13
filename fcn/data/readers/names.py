"""Classes by the names that a data set gives its own labels."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fcn.errors import UserError


def read_names(path: Path) -> dict[str, int]:
    """The ids of a list of ``ID: name`` lines, by name without spaces."""
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable list of names ({error}).") from None
    names: dict[str, int] = {}
    for line in filter(str.strip, lines):
        match = re.fullmatch(r"\s*(\d+)\s*:\s*(\S.*)", line)
        if not match or int(match[1]) == 0:
            raise UserError(f"{path}: {line!r} is not ID: name, with ids from 1.")
        name = match[2].replace(" ", "")
        if name in names or int(match[1]) in names.values():
            raise UserError(f"{path}: {line!r} repeats an id or a name.")
        names[name] = int(match[1])
    return names


def class_table(
    classes: Sequence[str], aliases: Mapping[str, str], names: Mapping[str, int], source: object
) -> np.ndarray:
    """Class index by label id, uint8 (largest id + 1,).

    ``names`` are the ids (from 1) of the labels of ``source``. ``classes[0]`` is every label that
    no other class names, and id 0; each other class is the label of its name, or else of its
    alias. A class without a label, and two of the same one, are a UserError.
    """
    table = np.zeros(max(names.values(), default=0) + 1, np.uint8)
    for index, name in enumerate(classes[1:], start=1):
        label = name if name in names else aliases.get(name, name)
        if label not in names:
            other = "" if label == name else f", nor is its alias {label}"
            raise UserError(
                f"classes: {name} is no label of {source}{other}; correct it or its alias."
            )
        if table[names[label]]:
            raise UserError(
                f"classes: {classes[table[names[label]]]} and {name} are both label {label}."
            )
        table[names[label]] = index
    return table
