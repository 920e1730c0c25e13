"""The images of a training run: in which order, how changed, in which groups."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fcn.data.dataset import SegmentationSet
from fcn.data.labels import VOID
from fcn.errors import UserError

GROUP_PIXELS = 1 << 20  # images of one size go through the net together up to so many pixels


def image_order(count: int, total: int, sampling: str, seed: int) -> np.ndarray:
    """(total,) int64 indices of images.

    ``replacement``: each drawn uniformly from all, as the authors' data layers do. ``epochs``:
    shuffled passes. The order of a seed does not depend on the batch.
    """
    generator = np.random.Generator(np.random.PCG64([seed, 1]))
    if sampling == "replacement":
        return generator.integers(0, count, total)
    passes = -(-total // count)
    return np.concatenate([generator.permutation(count) for _ in range(passes)])[:total]


def groups_of_update(positions: Sequence[int], sizes: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Positions of one update, split into groups of one image size of bounded pixels."""
    by_size: dict[tuple[int, int], list[list[int]]] = {}
    for position, (height, width) in zip(positions, sizes, strict=True):
        lists = by_size.setdefault((height, width), [[]])
        if lists[-1] and (len(lists[-1]) + 1) * height * width > GROUP_PIXELS:
            lists.append([])
        lists[-1].append(position)
    return [group for lists in by_size.values() for group in lists]


class AugmentedSet(Dataset[dict[str, Any]]):
    """The training sequence: item ``position`` is an image of the set, mirrored, moved, masked.

    With ``canvas`` > 1 each lies in the upper left of a canvas whose sides are its multiples, void
    outside; ``"extent"`` (2,) int64 is then the image's own height and width. Fewer shapes, so
    that images share groups, and kernels are prepared once.
    What happens to it depends on (seed, position) alone: not on workers, not on a resumed run.
    """

    def __init__(
        self,
        images: SegmentationSet,
        order: np.ndarray,
        seed: int,
        mirror: bool = False,
        jitter: int = 0,
        keep: float = 1.0,
        cells: tuple[int, float] = (32, 0.0),
        scale: tuple[float, float] | None = None,
        canvas: int = 1,
    ) -> None:
        self.images = images
        self.order = order
        self.seed = seed
        self.mirror = mirror
        self.jitter = jitter
        self.keep = keep
        self.cells = cells
        self.scale = scale
        self.canvas = canvas

    @cached_property
    def _sizes(self) -> list[tuple[int, int]]:
        return self.images.sizes

    def size(self, position: int) -> tuple[int, int]:
        """(height, width) of an item, its canvas included, without reading it."""
        height, width = (-(-side // self.canvas) * self.canvas for side in self._extent(position))
        return height, width

    def _extent(self, position: int) -> tuple[int, int]:
        height, width = self._sizes[int(self.order[position])]
        if self.scale is None:
            return height, width
        generator = np.random.Generator(np.random.PCG64([self.seed, 3, position]))
        factor = generator.uniform(*self.scale)
        return max(1, round(height * factor)), max(1, round(width * factor))

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, position: int) -> dict[str, Any]:
        item = self._changed(position)
        if self.canvas > 1:
            (height, width), (down, right) = self._extent(position), self.size(position)
            item["extent"] = torch.tensor([height, width])
            for key in (*self.images.inputs, *self.images.labels):
                fill = VOID if key in self.images.labels else 0
                item[key] = F.pad(item[key], (0, right - width, 0, down - height), value=fill)
        return item

    def _changed(self, position: int) -> dict[str, Any]:
        item = self.images[int(self.order[position])]
        if self.scale is not None:
            size = self._extent(position)
            for key in (*self.images.inputs, *self.images.labels):
                nearest = key in self.images.labels or key == "depth"  # 0 is a hole there
                item[key] = resized(item[key], size, nearest)
        if not (self.mirror or self.jitter or self.keep < 1):
            return item
        generator = np.random.Generator(np.random.PCG64([self.seed, 2, position]))
        keys = (*self.images.inputs, *self.images.labels)
        if self.mirror and generator.random() < 0.5:
            for key in keys:
                item[key] = item[key].flip(-1)
        if self.jitter:
            down, right = (int(v) for v in generator.integers(-self.jitter, self.jitter + 1, 2))
            for key in keys:
                fill = VOID if key in self.images.labels else None
                item[key] = moved(item[key], down, right, fill)
        if self.keep < 1:
            for key in self.images.labels:
                item[key] = self._sampled(item[key], generator)
        return item

    def _sampled(self, label: Tensor, generator: np.random.Generator) -> Tensor:
        """Void out final-layer cells with probability 1 - keep (section 4.3, "patch sampling")."""
        stride, start = self.cells
        rows, columns = (cell_of_pixels(size, stride, start) for size in label.shape)
        kept = generator.random((rows[-1] + 1, columns[-1] + 1)) < self.keep
        mask = torch.from_numpy(kept[rows][:, columns])
        return torch.where(mask, label, VOID)


def cell_of_pixels(size: int, stride: int, start: float) -> np.ndarray:
    """(size,) int64: the final-layer cell whose centre is nearest to each pixel, from 0."""
    cells = np.floor((np.arange(size) - start) / stride + 0.5).astype(np.int64)
    return cells - cells[0]


def resized(values: Tensor, size: tuple[int, int], nearest: bool) -> Tensor:
    """The last two axes at another size: nearest pixel, or bilinear where pixels have a mean."""
    if tuple(values.shape[-2:]) == size:
        return values
    whole = values.reshape(1, -1, *values.shape[-2:]).float()
    mode = {"mode": "nearest-exact"} if nearest else {"mode": "bilinear", "antialias": True}
    result = F.interpolate(whole, size=size, **mode)  # type: ignore[arg-type]
    if values.dtype == torch.uint8:
        result = result.round().clamp(0, 255)
    return result.reshape(*values.shape[:-2], *size).to(values.dtype)


def moved(values: Tensor, down: int, right: int, fill: int | None) -> Tensor:
    """Translate the last two axes; what comes in is ``fill``, or the border's values if None."""
    height, width = values.shape[-2:]
    rows = torch.arange(height) - down
    columns = torch.arange(width) - right
    result = values[..., rows.clamp(0, height - 1), :][..., columns.clamp(0, width - 1)]
    if fill is None:
        return result
    inside = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))
    return torch.where(inside, result, fill)


class _Handed(Dataset[dict[str, Any] | UserError]):
    """Items, or what is wrong with one: raised in a worker it would come with a traceback as its
    text."""

    def __init__(self, dataset: Dataset[dict[str, Any]]) -> None:
        self.dataset = dataset

    def __getitem__(self, position: int) -> dict[str, Any] | UserError:
        try:
            return self.dataset[position]
        except UserError as error:
            return error


def collate(items: list[Any]) -> dict[str, Any] | UserError:
    """Stack a group of one size: tensors (N, ...), ids as a list. An error stands for its group."""
    for item in items:
        if isinstance(item, UserError):
            return item
    return {
        key: torch.stack([item[key] for item in items]) if key != "id" else [i["id"] for i in items]
        for key in items[0]
    }


def loader(
    dataset: Dataset[dict[str, Any]], groups: Sequence[list[int]], workers: int, pin: bool
) -> Iterator[dict[str, Any]]:
    """Groups in order, decoded ahead by ``workers`` processes (0: in this one).

    Raises:
        UserError: of an item of the group, when its turn comes.
    """
    return map(
        _unwrapped,
        DataLoader(
            _Handed(dataset),
            batch_sampler=groups,
            num_workers=workers,
            collate_fn=collate,
            pin_memory=pin,
            prefetch_factor=4 if workers else None,
            generator=torch.Generator(),  # its own: dropout's must not depend on a new loader
        ),
    )


def _unwrapped(group: dict[str, Any] | UserError) -> dict[str, Any]:
    if isinstance(group, UserError):
        raise group
    return group
