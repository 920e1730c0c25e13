"""From a data set's own files to the one layout that everything after reads."""

import csv
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from fcn.data.labels import ORIENTATION, VOID, label_png, open_image
from fcn.data.readers import READERS, Input, Item
from fcn.data.splits import OURS, read_ids, resolve
from fcn.errors import UserError
from fcn.files import at_home, atomic_dir, folder_near, read_object, write_json, write_text
from fcn.progress import bar
from fcn.spec import UNPACKED, contents_hash, source_hash

REPOSITORY = Path(__file__).resolve().parents[2]
MODES = {  # of a file that is an input: those that its reader understands
    "image": ({"RGB", "RGBA", "L", "P", "CMYK"}, "8-bit RGB"),
    "depth": ({"I;16", "I;16B", "I", "L"}, "16-bit grey, in mm"),
    "hha": ({"RGB"}, "8-bit RGB"),
}
SEG11VALID = ("voc2011", "sbd")  # the data sets that `check_seg11valid` compares
HELD_OUT = ("val", "test", "seg11valid")

T = TypeVar("T")
R = TypeVar("R")


def prepare(
    name: str,
    definition: dict[str, Any],
    data_dir: str | Path,
    base: Path = REPOSITORY,
    workers: int = 1,
) -> dict[str, Any]:
    """Write ``data_dir/prepared/NAME`` (docs/architecture.md) and return its dataset.json.

    ``definition`` is an entry of config/datasets.yaml. Its files are in the extracted archives that
    it names, in ``data_dir/archives`` where these are single files, or in its own ``path``;
    relative paths and config/splits lists are under ``base``.
    Every image of a split is decoded and every label read and checked; the first fault is a
    UserError, and nothing is left then. ``workers`` processes share the work.
    """
    data_dir = Path(data_dir)
    reader = definition.get("reader")
    if reader not in READERS:
        raise UserError(f"data set {name}: reader {reader!r} is none of {', '.join(READERS)}.")
    archives = [_archive(archive, data_dir) for archive in definition.get("archives", [])]
    subset = any(archive["subset"] for archive in archives)
    place = data_dir / "prepared" / name
    with folder_near(place) as scratch:
        root = _root(name, definition, data_dir, base)
        contents = READERS[reader](definition, root, scratch)
        items = {item.id: item for item in contents.items}
        splits, notes = resolve(
            contents.splits, contents.root, base, items, subset, contents.places
        )
        notes = [*definition.get("notes", []), *notes, *_leaks(splits)]
        used = sorted({key for ids in splits.values() for key in ids})
        if not used:
            raise UserError(f"data set {name}: no image is in any of its splits.")
        with atomic_dir(place) as folder:
            write = partial(_write_item, folder=folder, own="path" in definition)
            done = list(_each(write, [items[key] for key in used], workers, f"prepare {name}"))
            rows, digests, labelled, turned = zip(*done, strict=True)
            if any(turned):
                notes.append(
                    f"the EXIF orientation of {sum(turned)} images is not applied: their labels "
                    "must lie on the pixels as they are stored"
                )
            _check_labelled(name, splits, dict(zip(used, labelled, strict=True)), items[used[0]])
            _write_index(folder / "index.csv", rows)
            for split, ids in splits.items():
                write_text(folder / "splits" / f"{split}.txt", "".join(f"{key}\n" for key in ids))
            first = items[used[0]]
            info: dict[str, Any] = {
                "name": name,
                "title": definition.get("title", name),
                "reader": reader,
                "definition": contents_hash(definition),
                "classes": contents.classes,
                "void": VOID,
                "splits": {split: len(ids) for split, ids in splits.items()},
                "inputs": list(first.inputs),
                "labels": list(first.labels),
                "archives": archives,
                "subset": subset,
                "notes": notes,
                "terms": definition.get("terms"),
            }
            if "path" in definition:
                info["source"] = source_hash(definition)
            lists = [f"{split} {' '.join(ids)}" for split, ids in splits.items()]
            info["contents"] = hashlib.sha256("\n".join([*digests, *lists]).encode()).hexdigest()
            write_json(folder / "dataset.json", info)
    return info


def check_seg11valid(data_dir: str | Path, base: Path = REPOSITORY) -> str:
    """Assert that VOC 2011 val without SBD train is the authors' list (data/pascal/seg11valid.txt).

    Needs the prepared ``voc2011`` and ``sbd``; returns one sentence on what was found. A whole data
    set that disagrees is a UserError; without both, or with subsets, there is nothing to assert.
    """
    prepared = Path(data_dir) / "prepared"
    folders = {name: prepared / name for name in SEG11VALID}
    for name, folder in folders.items():
        if not (folder / "dataset.json").exists():
            return f"seg11valid not checked: {name} is not prepared."
        if read_object(folder / "dataset.json", "subset")["subset"]:
            return f"seg11valid not checked: {name} is a subset."
    derived = set(read_ids(folders["voc2011"] / "splits/val.txt"))
    derived -= set(read_ids(folders["sbd"] / "splits/train.txt"))
    listed = set(read_ids(base / OURS / "seg11valid.txt"))
    if derived != listed:
        raise UserError(
            f"seg11valid: VOC 2011 val without SBD train has {len(derived)} images, the authors' "
            f"list {len(listed)}; {len(derived - listed)} are only in the first and "
            f"{len(listed - derived)} only in the second: check both archives."
        )
    return f"seg11valid is VOC 2011 val without SBD train: {len(listed)} images."


def _packed(archive: str) -> bool:
    return archive.endswith(UNPACKED)


def _archive(archive: str, data_dir: Path) -> dict[str, Any]:
    """The sidecar of an archive: of an unpacked one, or of a single file that is used as it is."""
    if _packed(archive):
        sidecar = data_dir / "extracted" / f"{archive}.json"
        return dict(read_object(sidecar, "archive")["archive"])
    return read_object(data_dir / "archives" / f"{archive}.json", "subset")


def _root(name: str, definition: dict[str, Any], data_dir: Path, base: Path) -> Path:
    archives = definition.get("archives", [])
    if "path" in definition:
        root = base / at_home(definition["path"])
    elif archives and not _packed(archives[0]):
        root = data_dir / "archives"
    elif archives:
        folder, inside = data_dir / "extracted" / archives[0], Path(definition.get("root", ""))
        root, bare = folder / inside, folder.joinpath(*inside.parts[1:])
        if bare.is_dir() and not root.is_dir():  # packed without the folder on top
            root = bare
    elif definition["reader"] in ("voc", "folder"):
        raise UserError(f"data set {name}: the key 'path', the folder of its files, is missing.")
    else:
        return base  # a generator reads nothing
    if not root.is_dir():
        raise UserError(f"data set {name}: {root}: no such folder; correct `path` or `root`.")
    return root


def _check_labelled(
    name: str, splits: dict[str, list[str]], labelled: dict[str, set[str]], first: Item
) -> None:
    """UserError where a split has labels and not one labelled pixel: nothing is learned of it."""
    for split, ids in splits.items():
        for key in first.labels:
            if ids and not any(key in labelled[id] for id in ids):
                raise UserError(
                    f"data set {name}: every pixel of the {key} labels of split {split} is void; "
                    "correct `void`, `classes` or the labels."
                )


def _leaks(splits: dict[str, list[str]]) -> list[str]:
    train = set(splits.get("train", []))
    shared = {held: len(train.intersection(splits.get(held, []))) for held in HELD_OUT}
    return [f"train and {held} share {count} images" for held, count in shared.items() if count]


def _each(function: Callable[[T], R], values: Sequence[T], workers: int, title: str) -> Iterator[R]:
    def shown(results: Iterable[R]) -> Iterator[R]:
        yield from bar(results, title, len(values))

    if workers < 2 or len(values) < 64:
        yield from shown(map(function, values))
        return
    with ProcessPoolExecutor(workers) as pool:
        try:
            yield from shown(pool.map(function, values, chunksize=16))
        except BrokenProcessPool:
            raise UserError(
                f"{title}: a process was ended from outside, perhaps because memory ran out; "
                "run it again with fewer --threads."
            ) from None
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _write_item(item: Item, folder: Path, own: bool) -> tuple[dict[str, Any], str, set[str], bool]:
    """Place one item's files below ``folder``; the user's ``own`` as copies.

    Returns its row of the index, the digest of its files, its label sets that are not all void, and
    whether an image of the user's is shown turned or mirrored.
    """
    labelled = set()
    turned = False
    row: dict[str, Any] = {"id": item.id, "height": 0, "width": 0}
    for key, source in item.inputs.items():
        suffix = source.suffix if isinstance(source, Path) else ".png"
        row[key] = f"{'images' if key == 'image' else key}/{item.id}{suffix}"
        image = _write_input(key, source, folder / row[key], own)
        width, height = image.size
        turned |= own and image.getexif().get(ORIENTATION, 1) > 1
        if key == "image":
            row |= {"height": height, "width": width}
        elif (height, width) != (row["height"], row["width"]):
            raise UserError(
                f"{_named(item, key)}: {width}x{height}, not of its image's size, "
                f"{row['width']}x{row['height']}."
            )
    for key, read in item.labels.items():
        label = read()
        if label.shape != (row["height"], row["width"]):
            raise UserError(
                f"{_named(item, 'image')}: the image is {row['width']}x{row['height']} but its "
                f"{key} label {label.shape[1]}x{label.shape[0]}{_turned(item.inputs['image'])}."
            )
        row[key] = f"{'labels' if key == 'semantic' else f'labels-{key}'}/{item.id}.png"
        if (label != VOID).any():
            labelled.add(key)
        target = folder / row[key]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(label_png(label))
    digest = hashlib.sha256()
    for key in (*item.inputs, *item.labels):
        digest.update((folder / row[key]).read_bytes())
    return row, digest.hexdigest(), labelled, turned


def _named(item: Item, key: str) -> str:
    source = item.inputs[key]
    return str(source) if isinstance(source, Path) else f"{key} of {item.id}"


def _write_input(key: str, source: Input, target: Path, own: bool) -> Image.Image:
    """Place a file, or write what a function gives as PNG; returns the image."""
    if isinstance(source, Path):
        image = open_image(source)  # to its end: its header says nothing of a truncated file
        modes, wanted = MODES.get(key, MODES["image"])
        if image.mode not in modes:
            raise UserError(f"{source}: an image of mode {image.mode}; convert it to {wanted}.")
        _place(source, target, own)
        return image
    array = source()
    kind = (array.dtype, array.shape[2:])
    if kind not in ((np.uint8, (3,)), (np.uint16, ())):
        raise ValueError(
            f"an input is uint8 (H, W, 3) or uint16 (H, W), not {array.dtype} {array.shape}"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.ascontiguousarray(array))
    image.save(target)
    return image


def _turned(source: Input) -> str:
    if not isinstance(source, Path):
        return ""
    with Image.open(source) as image:
        turned = image.getexif().get(ORIENTATION, 1) > 4
    return " (its EXIF orientation turns it when shown; store it turned)" if turned else ""


def _place(source: Path, target: Path, own: bool) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if own:  # saved in place by its owner, a link would change under what was made from it
        shutil.copyfile(source, target)
        return
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)


def _write_index(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
