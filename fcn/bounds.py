"""Upper bounds on mean IU: the truth reduced and enlarged again (PAMI section 6.3).

The paper does not say how it resampled, so the plausible ways are all computed. Reducing by a
factor f gives round(n / f) cells a side, at least one.
"""

import io
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fcn.data.dataset import SegmentationSet
from fcn.data.labels import CONVERT, VOID, read_label
from fcn.data.splits import read_ids
from fcn.errors import UserError
from fcn.files import write_json
from fcn.progress import bar
from fcn.provenance import Clock
from fcn.schema import CONFIG, protocol

FACTORS: tuple[int, ...] = tuple(protocol("bounds")["factors"])
METHODS = {
    "nearest, nearest": "the pixel at each cell's centre; each pixel takes its cell's label",
    "nearest, bilinear": "the pixel at each cell's centre; one-hot maps enlarged bilinearly",
    "majority, nearest": "the commonest label of each cell; each pixel takes its cell's label",
    "majority, bilinear": "the commonest label of each cell; one-hot maps enlarged bilinearly",
    "area, bilinear": "the share of each class in a cell; shares enlarged bilinearly",
    "antialiased, bilinear": "one-hot maps reduced by a bilinear filter as wide as the factor, "
    "enlarged bilinearly",
}
VOIDS = {
    "void kept": "void is a label like the others: a valid pixel that comes out void is wrong",
    "void left out": "void has no vote: the largest class wins",
    "void as background": "void is relabelled background before reducing",
}


def reduced_size(length: int, factor: int) -> int:
    return max(1, round(length / factor))


def _reduce(maps: Tensor, size: tuple[int, int], how: str) -> Tensor:
    if how == "nearest":
        return F.interpolate(maps, size=size, mode="nearest-exact")
    if how == "antialiased":
        return F.interpolate(maps, size=size, mode="bilinear", antialias=True)
    return F.interpolate(maps, size=size, mode="area")


def _enlarge(maps: Tensor, size: tuple[int, int], how: str) -> Tensor:
    if how == "nearest":
        return F.interpolate(maps, size=size, mode="nearest-exact")
    return F.interpolate(maps, size=size, mode="bilinear")


class Truth:
    """A label map as one map for each label that it has, in one reading of void.

    One for each label, not for each class: the same result, much sooner.
    """

    def __init__(self, label: np.ndarray, classes: int, void: str) -> None:
        truth = torch.from_numpy(np.ascontiguousarray(label)).to(torch.int32)
        self.size = (truth.shape[0], truth.shape[1])
        instead = 0 if void == "void as background" else classes
        truth = torch.where(truth == VOID, instead, truth)
        self.labels = truth.unique()
        self.maps = (truth == self.labels[:, None, None]).float()[None]
        # Void, the last label, has no vote; where it is alone there is nothing to score.
        self.voters = len(self.labels)
        if void == "void left out" and self.voters > 1 and int(self.labels[-1]) == classes:
            self.voters -= 1

    def reduced(self, factor: int, down: str) -> Tensor:
        """(1, voters, h, w) shares of the labels in each cell."""
        size = (reduced_size(self.size[0], factor), reduced_size(self.size[1], factor))
        maps = _reduce(self.maps, size, down)[:, : self.voters]
        if down == "majority":
            maps = F.one_hot(maps.argmax(1), self.voters).permute(0, 3, 1, 2).float()
        return maps

    def enlarged(self, maps: Tensor, up: str) -> Tensor:
        """(H, W) int32: the label with the largest share."""
        shares = _enlarge(maps, self.size, up)[0]
        best, winner = shares[0], self.labels[0].expand(self.size)
        for label, share in zip(self.labels[1 : self.voters], shares[1:], strict=True):
            winner = torch.where(share > best, label, winner)  # of equal ones the first, as argmax
            best = torch.maximum(best, share)
        return winner


def mean_iu(counts: Tensor) -> float:
    """Of counts (classes, classes + 1) whose last column is void."""
    hit = counts.diagonal().double()
    union = counts.sum(1) + counts[:, :-1].sum(0) - hit
    if not (union > 0).any():
        raise UserError("upper bounds: every pixel of the label maps is void.")
    return float((hit / union)[union > 0].mean())


def upper_bounds(
    labels: Iterable[np.ndarray], classes: int, factors: tuple[int, ...] = FACTORS
) -> tuple[int, dict[str, dict[str, float]]]:
    """Mean IU by method and factor.

    Args:
        labels: uint8 (H, W) truths, void 255.

    Returns:
        the number of images; ``{"METHOD, VOID": {"128": fraction, ...}}``.
    """
    counts = {
        (method, void, factor): torch.zeros(classes, classes + 1, dtype=torch.int64)
        for method in METHODS
        for void in VOIDS
        for factor in factors
    }
    images = 0
    for label in labels:
        images += 1
        truth = torch.from_numpy(label).to(torch.int32)
        valid = truth != VOID
        rows = truth[valid] * (classes + 1)
        for void in VOIDS:
            maps = Truth(label, classes, void)
            reduced: dict[tuple[int, str], Tensor] = {}
            for method in METHODS:
                down, up = method.split(", ")
                for factor in factors:
                    if (factor, down) not in reduced:
                        reduced[factor, down] = maps.reduced(factor, down)
                    predicted = maps.enlarged(reduced[factor, down], up)[valid]
                    matrix = counts[method, void, factor]
                    matrix += torch.bincount(rows + predicted, minlength=matrix.numel()).view_as(
                        matrix
                    )
    if not images:
        raise UserError("upper bounds: there is no label map (a PNG, or an image of the split).")
    result: dict[str, dict[str, float]] = {}
    for (method, void, factor), matrix in counts.items():
        result.setdefault(f"{method}, {void}", {})[str(factor)] = mean_iu(matrix)
    return images, result


def _write(
    dataset: str,
    split: str,
    labels: Iterable[np.ndarray],
    classes: int,
    results: Path,
    about: dict[str, Any],
) -> dict[str, Any]:
    clock = Clock(torch.device("cpu"))
    images, methods = upper_bounds(bar(labels, desc=f"bounds {dataset}"), classes)
    result = {
        "dataset": dataset,
        "split": split,
        "images": images,
        **about,
        "methods": methods,
        "explanations": METHODS | VOIDS,
        "provenance": clock.provenance(
            precision="fp32", seed=None, archives=about.get("archives", [])
        ),
    }
    write_json(results / dataset / "bounds.json", result)
    return result


def bounds(dataset: str, split: str, data_dir: Path, results: Path) -> dict[str, Any]:
    """Bounds of a prepared data set's split; writes results/DATASET/bounds.json."""
    found = SegmentationSet(data_dir / "prepared" / dataset, split, inputs=())
    labels = (found[i]["semantic"].numpy() for i in range(len(found)))
    about = {"subset": found.info["subset"], "archives": found.info["archives"]}
    return _write(dataset, split, labels, len(found.classes["semantic"]), results, about)


def bounds_of_folder(
    place: Path, classes: int, void: int, dataset: str, split: str, results: Path
) -> dict[str, Any]:
    """Bounds of a folder or tar of label PNGs, under the name ``dataset``.

    Where ``config/splits`` has the list of the split, of the labels of its images, all of which
    must be there; else of every PNG.
    """
    about = {"subset": False, "source": place.name}
    listed = CONFIG / "splits" / f"{split}.txt"
    ids = set(read_ids(listed)) if listed.is_file() else None
    labels = _labels(place, classes, void, ids)
    return _write(dataset, split, labels, classes, results, about)


class _Member(io.BytesIO):
    """A file inside a tar; messages name it by ``str``."""

    def __init__(self, content: bytes, name: str) -> None:
        super().__init__(content)
        self.name = name

    def __str__(self) -> str:
        return self.name


def _labels(
    place: Path, classes: int, void: int, ids: set[str] | None = None
) -> Iterator[np.ndarray]:
    """The label map of each image of a folder or tar; of ``ids`` alone, which must all be there."""
    found: dict[str, str] = {}  # image -> its file

    def wanted(name: str) -> bool:
        image = PurePosixPath(name)
        if image.suffix != ".png" or (ids is not None and image.stem not in ids):
            return False
        if image.stem in found:
            raise UserError(
                f"{place}: {found[image.stem]} and {name} are both labels of image {image.stem}; "
                "give a folder or tar that holds one label PNG of each image."
            )
        found[image.stem] = name
        return True

    if place.is_dir():
        for path in sorted(place.glob("*.png")):
            if wanted(path.name):
                yield read_label(path, classes, void, CONVERT)
    else:
        for label in _in_tar(place, wanted):
            yield read_label(label, classes, void, CONVERT)
    if ids is not None and (missing := sorted(ids - found.keys())):
        raise UserError(
            f"{place}: lacks the labels of {len(missing)} of the {len(ids)} images of the split, "
            f"such as {missing[0]}.png."
        )


def _in_tar(place: Path, wanted: Callable[[str], bool]) -> Iterator[_Member]:
    try:
        with tarfile.open(place) as archive:
            for member in archive:
                if member.isdir() or not wanted(member.name):
                    continue
                file = archive.extractfile(member) if member.isreg() else None
                if not file:  # a link may lead nowhere, or to itself
                    raise UserError(
                        f"{place}: {member.name} is a link or no file; pack the label PNGs "
                        "themselves (tar --dereference --hard-dereference)."
                    )
                yield _Member(file.read(), f"{place}: {member.name}")
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        reason = (str(error) or repr(error)).splitlines()[0].rstrip(":")
        raise UserError(
            f"{place}: neither a folder nor a readable tar of PNGs ({reason})."
        ) from None
