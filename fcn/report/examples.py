"""Example segmentations: image, truth and the predictions of runs that belong together."""

import base64
import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fcn.data.labels import VOID, read_label, stored, voc_palette
from fcn.errors import UserError
from fcn.files import read_json
from fcn.report.results import RunResult, SeedResult, shown
from fcn.rle import decode_prediction, read_predictions

PERCENTILES = (10, 50, 90)
VOID_COLOUR = (224, 224, 224)
SIDE = 260  # longest side of a picture on the page, pixels
MOST_RUNS = 8  # side by side in one family


@dataclass(frozen=True)
class Picture:
    """One panel: a data URI, its caption and its size in pixels."""

    uri: str
    caption: str
    width: int
    height: int


@dataclass(frozen=True)
class Example:
    """One image and its panels; ``classes`` are those that stand in any of them."""

    id: str
    percentile: int
    pictures: list[Picture]
    classes: list[tuple[str, str]]


@dataclass(frozen=True)
class Family:
    """The runs of one table on one test set and one main label set, and the chosen images."""

    title: str
    ranked_by: str
    examples: list[Example]
    problem: str | None = None


def per_image_mean_iu(path: Path, task: str) -> tuple[list[str], np.ndarray]:
    """Ids and the mean IU of each image over the classes in its truth or its prediction.

    Args:
        path: a ``per_image.npz``: int64 (images, classes) counts of true positive, truth and
            predicted pixels of each label set, void left out.
        task: the label set.

    Returns:
        ids, float64 (images,); NaN where an image has no labelled pixel.
    """
    try:
        with np.load(path) as file:
            ids = [str(id) for id in file["ids"]]
            hit = file[f"{task}_true_positive"].astype(np.float64)
            union = file[f"{task}_truth"] + file[f"{task}_predicted"] - hit
    except Exception as error:  # NumPy and zipfile raise whatever they stumble over
        raise UserError(f"{path}: cannot be read ({error}).") from None
    present = union > 0
    iu = np.divide(hit, union, out=np.zeros_like(hit), where=present)
    count = present.sum(axis=1)
    mean = np.full(len(ids), np.nan)
    np.divide(iu.sum(axis=1), count, out=mean, where=count > 0)
    return ids, mean


def choose(ids: list[str], scores: np.ndarray) -> list[tuple[int, str]]:
    """The image nearest to each of ``PERCENTILES``; ties go to the smaller id, none comes twice."""
    chosen: list[tuple[int, str]] = []
    known = [(id, float(s)) for id, s in zip(ids, scores, strict=True) if np.isfinite(s)]
    for percentile in PERCENTILES if known else ():
        goal = float(np.percentile([score for _, score in known], percentile))
        taken = {id for _, id in chosen}
        left = [(abs(score - goal), id) for id, score in known if id not in taken]
        if left:
            chosen.append((percentile, min(left)[1]))
    return chosen


def predicted_maps(path: Path, ids: list[str]) -> dict[str, np.ndarray]:
    """The predictions of some images as uint8 (H, W) class indices."""
    value = read_predictions(path)
    sizes = {str(image["id"]): (image["height"], image["width"]) for image in value["images"]}
    entries: dict[str, list[dict[str, Any]]] = {id: [] for id in ids}
    for entry in value["annotations"]:
        if (id := str(entry["image_id"])) in entries:
            entries[id].append(entry)
    return {id: decode_prediction(found, sizes[id]) for id, found in entries.items() if found}


def _scaled(size: tuple[int, int]) -> tuple[int, int]:
    scale = min(1.0, SIDE / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _uri(image: Image.Image, format: str, **options: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return f"data:image/{format.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _palette() -> np.ndarray:
    palette = voc_palette().copy()
    palette[VOID] = VOID_COLOUR
    return palette


def photograph(path: Path, caption: str) -> Picture:
    with Image.open(path) as opened:
        image = stored(opened).convert("RGB")
    size = _scaled(image.size)
    uri = _uri(image.resize(size, Image.Resampling.LANCZOS), "JPEG", quality=80, optimize=True)
    return Picture(uri, caption, *size)


def label_map(label: np.ndarray, caption: str) -> Picture:
    """A uint8 (H, W) class map in VOC's colours, void light grey."""
    image = Image.fromarray(label)
    size = _scaled(image.size)
    image = image.resize(size, Image.Resampling.NEAREST)
    image.putpalette(_palette().tobytes())
    return Picture(_uri(image, "PNG", optimize=True), caption, *size)


def _legend(maps: list[np.ndarray], classes: list[str]) -> list[tuple[str, str]]:
    palette = _palette()
    present = np.unique(np.concatenate([np.unique(label) for label in maps]))
    names = {**dict(enumerate(classes)), VOID: "void"}
    return [
        ("#{:02x}{:02x}{:02x}".format(*palette[value]), names.get(int(value), str(value)))
        for value in present
    ]


def _scored(result: RunResult) -> SeedResult | None:
    for seed in result.counted:
        files = ("per_image.npz", "predictions.json.gz")
        if all((seed.directory / name).exists() for name in files):
            return seed
    return None


def build_family(title: str, runs: list[RunResult], data_dir: Path, results: Path) -> Family | None:
    """Panels for the runs of a table that share a test set and a main label set, in table order.

    Of the main label set, a run's first: it is the one that ``predictions.json.gz`` holds.
    The images are those nearest to the 10th, 50th and 90th percentile of the per-image mean IU of
    the last run. Returns None when no run has predictions; a file that cannot be read becomes the
    family's ``problem``.
    """
    pairs = [(run, seed) for run in runs if (seed := _scored(run))]
    if not pairs:
        return None
    if len(pairs) > MOST_RUNS:
        title = f"{title}, the last {MOST_RUNS} of {len(pairs)} runs"
        pairs = pairs[-MOST_RUNS:]
    last = pairs[-1][0].run
    task = last.labels[0]
    try:
        folder = data_dir / "prepared" / last.config["test"]["dataset"]
        info = read_json(folder / "dataset.json")
        classes = info["classes"][task]
        with (folder / "index.csv").open(encoding="utf-8", newline="") as handle:
            index = {row["id"]: row for row in csv.DictReader(handle)}
        scores = [
            dict(zip(*per_image_mean_iu(seed.directory / "per_image.npz", task), strict=True))
            for _, seed in pairs
        ]
        chosen = choose(list(scores[-1]), np.array(list(scores[-1].values())))
        ids = [id for _, id in chosen]
        maps = [predicted_maps(seed.directory / "predictions.json.gz", ids) for _, seed in pairs]
        examples = []
        for percentile, id in chosen:
            truth = read_label(folder / index[id][task], len(classes), VOID)
            pictures = [photograph(folder / index[id]["image"], id), label_map(truth, "truth")]
            drawn = [truth]
            for (result, seed), predicted, score in zip(pairs, maps, scores, strict=True):
                if id not in predicted:
                    raise UserError(f"{seed.directory / 'predictions.json.gz'}: no image {id}.")
                name = f"{result.run.title}, seed {seed.seed}: {100 * score.get(id, np.nan):.1f}"
                pictures.append(label_map(predicted[id], name))
                drawn.append(predicted[id])
            examples.append(Example(id, percentile, pictures, _legend(drawn, classes)))
    except UserError as error:
        return Family(title, last.title, [], _relative(str(error), results, data_dir))
    except (OSError, KeyError, ValueError) as error:
        text = f"the images of {last.config['test']['dataset']} cannot be shown ({error!r})."
        return Family(title, last.title, [], _relative(text, results, data_dir))
    return Family(title, last.title, examples)


def _relative(text: str, results: Path, data_dir: Path) -> str:
    for folder in (results, data_dir):
        text = text.replace(str(folder), shown(folder, folder))
    return text
