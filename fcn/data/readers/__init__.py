"""Readers: what a data set's own files are. Each ends in the same items, which `prepare` writes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fcn.data.readers.items import Contents, Input, Item
from fcn.data.readers.sbd import sbd
from fcn.data.readers.voc import folder, scenes

__all__ = ["READERS", "Contents", "Input", "Item"]

READERS: dict[str, Callable[[dict[str, Any], Path, Path], Contents]] = {
    "voc": folder,  # VOC's own layout is what `folder` reads
    "folder": folder,
    "sbd": sbd,
    "scenes": scenes,
}
