"""Readers: what a data set's own files are. Each ends in the same items, which `prepare` writes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fcn.data.readers.coco import coco
from fcn.data.readers.context import context
from fcn.data.readers.items import Contents, Input, Item
from fcn.data.readers.nyud import nyud, nyudv2
from fcn.data.readers.sbd import sbd
from fcn.data.readers.siftflow import siftflow
from fcn.data.readers.voc import folder, scenes

__all__ = ["READERS", "Contents", "Input", "Item"]

READERS: dict[str, Callable[[dict[str, Any], Path, Path], Contents]] = {
    "voc": folder,  # VOC's own layout is what `folder` reads
    "folder": folder,
    "sbd": sbd,
    "scenes": scenes,
    "nyud": nyud,
    "nyudv2": nyudv2,
    "siftflow": siftflow,
    "context": context,
    "coco": coco,
}
