"""Reading a prepared data set (docs/architecture.md) image by image."""

import csv
import filecmp
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch.utils.data import Dataset

from fcn.data.labels import stored
from fcn.errors import UserError
from fcn.files import read_object


class SegmentationSet(Dataset[dict[str, Any]]):
    """One split of a prepared data set.

    An item is a dict of ``"id"`` (str), each of ``inputs`` and each of ``labels``:
    an input in colour (``"image"``, ``"hha"``) as uint8 (3, H, W) RGB; ``"depth"`` as float32
    (1, H, W) in the units of its file; a label (``"semantic"``, ``"geometric"``) as uint8 (H, W)
    of class indices, void 255. Sizes differ from image to image.

    ``cache_bytes`` bounds the memory that keeps decoded arrays, per process: with loader workers
    each has its own.
    """

    def __init__(
        self,
        prepared: Path,
        split: str,
        inputs: Sequence[str] = ("image",),
        labels: Sequence[str] = ("semantic",),
        cache_bytes: int = 0,
    ) -> None:
        self.folder = Path(prepared)
        self.info = read_object(self.folder / "dataset.json", "splits", "inputs", "labels")
        self.split = split
        self.inputs, self.labels = tuple(inputs), tuple(labels)
        if split not in self.info["splits"]:
            raise UserError(
                f"{self.folder}: no split {split!r}; there are {', '.join(self.info['splits'])}."
            )
        for kind, wanted in (("inputs", self.inputs), ("labels", self.labels)):
            missing = [key for key in wanted if key not in self.info[kind]]
            if missing:
                raise UserError(
                    f"{self.folder}: {kind} {', '.join(missing)} not in this data set; "
                    f"it has {', '.join(self.info[kind])}."
                )
        self.ids: list[str] = (
            (self.folder / "splits" / f"{split}.txt").read_text("utf-8").splitlines()
        )
        with (self.folder / "index.csv").open(encoding="utf-8", newline="") as handle:
            rows = {row["id"]: row for row in csv.DictReader(handle)}
        try:
            self._rows = [rows[key] for key in self.ids]
        except KeyError as error:
            raise UserError(
                f"{self.folder}: split {split} names {error}, which index.csv lacks; "
                "delete the folder and prepare the data set again."
            ) from None
        self._room = cache_bytes
        self._cache: dict[int, dict[str, np.ndarray]] = {}

    @property
    def classes(self) -> dict[str, list[str]]:
        """The names of the classes of each label, in the order of their indices."""
        return {key: list(self.info["classes"][key]) for key in self.labels}

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of each image, in order, without opening it."""
        return [(int(row["height"]), int(row["width"])) for row in self._rows]

    def file(self, i: int) -> Path:
        """The file of the first input of an image."""
        return self.folder / self._rows[i][self.inputs[0]]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> dict[str, Any]:
        i = range(len(self))[i]  # negative indices, and IndexError past the end
        arrays = self._cache.get(i)
        if arrays is None:
            arrays = {key: self._read(i, key) for key in self.inputs + self.labels}
            size = sum(array.nbytes for array in arrays.values())
            if size <= self._room:
                self._room -= size
                self._cache[i] = arrays
        tensors = {key: torch.from_numpy(array.copy()) for key, array in arrays.items()}
        return {"id": self.ids[i], **tensors}

    def _read(self, i: int, key: str) -> np.ndarray:
        path = self.folder / self._rows[i][key]
        try:
            with Image.open(path) as opened:
                image = stored(opened)
                if key in self.labels:
                    return np.array(image)
                if key == "depth":
                    return np.array(image, dtype=np.float32)[None]
                return np.array(image.convert("RGB")).transpose(2, 0, 1)
        except (UnidentifiedImageError, OSError, SyntaxError) as error:
            raise UserError(
                f"{path}: not readable ({error}); prepare the data set again."
            ) from None


class JoinedSet(SegmentationSet):
    """Several sets one after another, as one; images of the later ones are ``NAME/ID``."""

    def __init__(self, sets: Sequence[SegmentationSet]) -> None:
        first = sets[0]
        self.sets = list(sets)
        self.folder, self.split = first.folder, first.split
        self.inputs, self.labels = first.inputs, first.labels
        known: dict[str, dict[str, Any]] = {}
        for part in sets:
            known.update({archive["name"]: archive for archive in part.info["archives"]})
        self.info = {
            **first.info,
            "archives": list(known.values()),
            "subset": any(part.info["subset"] for part in sets),
            "contents": " ".join(part.info.get("contents", "") for part in sets),
            "notes": [note for part in sets for note in part.info["notes"]],
        }
        for part in sets[1:]:
            if part.classes != first.classes:
                raise UserError(f"{part.folder}: other classes than those of {first.folder}.")
        self.ids = list(first.ids)
        for part in sets[1:]:
            self.ids += [f"{part.info['name']}/{name}" for name in part.ids]
        self._places = [(part, i) for part in sets for i in range(len(part))]

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of each image, in order, without opening it."""
        return [size for part in self.sets for size in part.sizes]

    def __getitem__(self, i: int) -> dict[str, Any]:
        part, place = self._places[i]
        return {**part[place], "id": self.ids[i]}


def shared_images(trained: SegmentationSet, scored: SegmentationSet) -> int:
    """How many images of ``scored`` are among those of ``trained``: of the same id and file.

    Ids alone tell nothing between two folders: each may count its images from 1.
    """
    if trained.folder == scored.folder:
        return len(set(trained.ids) & set(scored.ids))
    places = {name: i for i, name in enumerate(trained.ids)}
    return sum(
        filecmp.cmp(trained.file(places[name]), scored.file(i), shallow=False)
        for i, name in enumerate(scored.ids)
        if name in places
    )


def measure_loading(dataset: Dataset[dict[str, Any]], seconds: float) -> float:
    """Images per second that one process decodes, over at least one image and ``seconds``."""
    count, start = 0, time.perf_counter()
    while True:
        dataset[count % len(dataset)]  # type: ignore[arg-type]
        count += 1
        elapsed = time.perf_counter() - start
        if elapsed >= seconds:
            return count / elapsed
