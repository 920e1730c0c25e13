"""Archives for the PASCAL VOC evaluation server, which alone has the truth of the test images."""

import gzip
import io
import re
import sys
import tarfile
import warnings
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from fcn.data.dataset import SegmentationSet
from fcn.data.labels import label_png, voc_palette
from fcn.data.stream import loader
from fcn.device import autocast
from fcn.errors import UserError
from fcn.evaluate import BatchLabeller, check_sizes
from fcn.files import atomic_file, digest, write_json
from fcn.graphs import on_stream
from fcn.inputs import input_names
from fcn.progress import bar
from fcn.provenance import Clock
from fcn.schema import CONFIG, read_yaml
from fcn.spec import Run
from fcn.weights.trained import load_trained

SPLIT = "test"  # of the prepared data sets voc2011test and voc2012test, which have no labels
SHOWN = 5  # faults that a message names


def year_of(test_set: str) -> int:
    """The year of the challenge whose test images ``voc2011test`` or ``voc2012test`` holds."""
    match = re.fullmatch(r"voc(2011|2012)test", test_set)
    if not match:
        raise UserError(
            f"data set {test_set}: the server scores voc2011test and voc2012test; choose one."
        )
    return int(match[1])


def folder_of(year: int, competition: int) -> str:
    """Where the server looks for the segmentations of a competition."""
    return f"results/VOC{year}/Segmentation/comp{competition}_test_cls"


def competition(run: Run, runs: Mapping[str, Run], year: int) -> int:
    """5 for methods that learn from the challenge's own training data alone, 6 for all others.

    Any backbone, SBD's labels, or images that came after ``year`` make it 6 (VOC development kit,
    competitions of the segmentation task).
    """
    own = [f"voc{earlier}" for earlier in (2011, 2012) if earlier <= year]
    sets = [part["dataset"] for part in run.training_sets]
    if not sets or not set(sets) <= set(own):
        return 6
    if run.config["weights"] == "none":
        return 5
    parents = run.parents.values()
    if not parents:
        return 6
    return max(competition(runs[parent], runs, year) for parent in parents)


# ----------------------------------------------------------------------------------------- writing


def submit(
    run: Run,
    seed: int,
    test_set: str,
    out: Path,
    *,
    runs: Mapping[str, Run],
    device: torch.device,
    data_dir: Path,
    results: Path,
    workers: int = 0,
) -> dict[str, Any]:
    """Label the server's test images with a trained run; writes ``out`` and a JSON beside it.

    The archive is checked as ``check_archive`` does before it takes its place. The same run gives
    the same bytes each time.

    Args:
        test_set: voc2011test or voc2012test, prepared.
        out: a .tgz or .tar.gz.
        runs: the runs of the suite, of which ``run`` may have started from some.

    Raises:
        UserError: the run is not trained with this configuration or does not know VOC's classes.
    """
    clock = Clock(device)
    year = year_of(test_set)
    if not out.name.endswith((".tgz", ".tar.gz")):
        raise UserError(f"--out {out}: the server takes .tgz or .tar.gz; name it so.")
    if "mask" in run.config:
        raise UserError(f"{run.id}: its input is masked with the truth, which test images lack.")
    net, known, trained = load_trained(run, seed, results, device)
    classes: list[str] = read_yaml(CONFIG / "datasets.yaml")["voc2012"]["classes"]
    if known.get("semantic") != classes:
        raise UserError(f"{run.id}: its classes are not PASCAL VOC's, which the server scores.")
    dataset = SegmentationSet(data_dir / "prepared" / test_set, SPLIT, input_names(run), labels=())
    net.eval()
    check_sizes(net, dataset)
    labeller = BatchLabeller(net, run, device, run.precision)

    def labelled() -> Iterator[tuple[str, np.ndarray]]:
        batches = loader(dataset, [[i] for i in range(len(dataset))], workers, False)
        with torch.inference_mode(), on_stream(device), autocast(run.precision, device):
            for batch in bar(batches, run.id, len(dataset), unit="img"):
                yield batch["id"][0], labeller(batch)["semantic"][0].cpu().numpy()

    number = competition(run, runs, year)
    with atomic_file(out) as temporary:
        write_archive(temporary, labelled(), folder_of(year, number))
        check_archive(temporary, dataset, year)
    if dataset.info["subset"]:
        print(
            f"{out}: {test_set} is a declared subset of {len(dataset)} images; the server wants "
            "the whole list.",
            file=sys.stderr,
        )
    result = {
        "run": run.name,
        "dataset": run.dataset,
        "seed": seed,
        "test": test_set,
        "split": SPLIT,
        "competition": number,
        "images": len(dataset),
        "subset": bool(dataset.info["subset"] or trained["subset"]),
        "sha256": digest(out),
        "weights_sha256": trained["weights_sha256"],
        "config": run.config,
        "config_hash": run.hash,
        "provenance": clock.provenance(
            precision=run.precision,
            seed=seed,
            archives=trained["provenance"]["archives"] + dataset.info["archives"],
        ),
    }
    write_json(sidecar(out), result)
    return result


def sidecar(archive: Path) -> Path:
    """The JSON that says what an archive was made from."""
    return archive.with_name(archive.name.removesuffix(".gz").rsplit(".", 1)[0] + ".json")


def write_archive(path: Path, labels: Iterator[tuple[str, np.ndarray]], folder: str) -> None:
    """Write (id, uint8 (H, W)) label maps as ``folder``/ID.png in VOC's palette, tarred, gzipped.

    Neither times nor users are written: the same labels are the same bytes.
    """
    with (
        path.open("wb") as handle,
        gzip.GzipFile("", "wb", fileobj=handle, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for name, values in labels:
            content = label_png(values)
            member = tarfile.TarInfo(f"{folder}/{name}.png")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


# ---------------------------------------------------------------------------------------- checking


def check_archive(path: Path, dataset: SegmentationSet, year: int) -> dict[str, int]:
    """Check that an archive is what the server of ``year`` accepts; its competition and images.

    One folder ``results/VOCyyyy/Segmentation/comp5_test_cls`` or ``comp6_test_cls`` that holds a
    palette PNG of each image of ``dataset`` once, of the image's size, in VOC's colours, with class
    indices alone (no void), and nothing else.

    Raises:
        UserError: naming the first faults and how many there are.
    """
    sizes = dict(zip(dataset.ids, dataset.sizes, strict=True))
    folders = {folder_of(year, number): number for number in (5, 6)}
    classes = len(read_yaml(CONFIG / "datasets.yaml")["voc2012"]["classes"])
    above = {str(parent) for folder in folders for parent in PurePosixPath(folder).parents}
    found: dict[str, int] = {}  # id -> competition
    faults: list[str] = []
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                place = PurePosixPath(member.name)
                if member.isdir() and str(place) in above | set(folders):
                    continue
                number = folders.get(str(place.parent))
                # Of a link that leads nowhere there is nothing to extract.
                stream = archive.extractfile(member) if member.isreg() else None
                if number is None or place.suffix != ".png" or not stream:
                    faults.append(f"{member.name} does not belong there")
                elif place.stem not in sizes:
                    faults.append(f"{place.stem} is not an image of the list")
                elif place.stem in found:
                    faults.append(f"{place.stem} is there twice")
                else:
                    found[place.stem] = number
                    fault = _fault(stream.read(), sizes[place.stem], classes)
                    if fault:
                        faults.append(f"{place.stem}.png {fault}")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file.") from None
    except (tarfile.TarError, zlib.error, OSError, EOFError) as error:
        raise UserError(
            f"{path}: not a whole .tgz archive ({error}); make it with `submission`, or with "
            "`tar czf` from the folder that holds results/."
        ) from None
    faults += [f"{name} is missing" for name in sizes if name not in found]
    if len(set(found.values())) > 1:
        faults.append("there are both comp5_test_cls and comp6_test_cls, choose one")
    if faults:
        more = f" and {len(faults) - SHOWN} more faults" if len(faults) > SHOWN else ""
        raise UserError(
            f"{path}: the server for VOC {year} would refuse it: {'; '.join(faults[:SHOWN])}{more}."
        )
    return {"competition": next(iter(found.values())), "images": len(found)}


def _fault(content: bytes, size: tuple[int, int], classes: int) -> str | None:
    """What is wrong with a PNG of the archive, if something is."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # its size is checked
            with Image.open(io.BytesIO(content)) as image:
                if image.size != (size[1], size[0]):
                    return f"has {image.width}x{image.height} pixels, the image {size[1]}x{size[0]}"
                image.load()
                values, mode, form = np.asarray(image), image.mode, image.format
                palette = image.getpalette() or []
    except Image.DecompressionBombError:
        return f"has far more pixels than the image, {size[1]}x{size[0]}"
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        return f"is not a readable image ({error})"
    if form != "PNG" or mode != "P":
        return f"is {form} of mode {mode}, not a palette PNG"
    if values.max() >= classes:
        return f"has the value {values.max()}, classes are 0 to {classes - 1}"
    used = 3 * (int(values.max()) + 1)  # a palette may end after the last colour in use
    if palette[:used] != voc_palette().ravel().tolist()[:used]:
        return "is not in VOC's palette"
    return None
