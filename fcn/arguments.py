"""The command line: what each stage can be told."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fcn.errors import UserError
from fcn.files import at_home
from fcn.options import PRECISIONS, PREDICT_NETS
from fcn.suites import SEED_MAX

MOST_PROCESSES = 4096  # threads or loaders; a typo would fill the memory


def _natural(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 on")
    return int(text)


def _at_most(most: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if _natural(text) > most:
            raise argparse.ArgumentTypeError(f"{text} is more than {most}")
        return int(text)

    return number


def _path(text: str) -> Path:
    try:
        return at_home(text)  # a shell leaves the ~ of --data-dir=~/x alone
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _positive(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m fcn", description="Fully convolutional networks: stages and tools."
    )
    commands = top.add_subparsers(dest="stage", required=True, metavar="STAGE")

    def stage(name: str, text: str, *options: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        for option in options:
            _OPTIONS[option](sub)
        return sub

    fetch = stage(
        "fetch", "Download an archive, verified and resumable.", "suite", "data", "mirror"
    )
    fetch.add_argument("name", metavar="ARCHIVE")
    extract = stage("extract", "Unpack a fetched archive, once.", "data")
    extract.add_argument("name", metavar="ARCHIVE")
    prepare = stage("prepare", "Bring a data set into the one layout.", "suite", "data", "threads")
    prepare.add_argument("name", metavar="DATASET")
    backbone = stage("backbone", "Convert or pretrain a backbone.", "suite", "data", "threads")
    backbone.add_argument("name", metavar="BACKBONE")
    for name, text in (
        ("train", "Train one run with one seed; continues where it was stopped."),
        ("evaluate", "Score a trained run."),
        ("time", "Time the inference of a run's net."),
    ):
        options = ("suite", "precision", "data", "results", "device", "threads", "seed")
        sub = stage(name, text, *options, *(() if name == "time" else ("workers",)))
        sub.add_argument("run", metavar="RUN", help="DATASET/RUN of the suite, or RUN")
        if name == "time":
            sub.add_argument(
                "--trials", type=_positive, default=50, help="trials of the synchronised protocol"
            )
    bounds = stage(
        "bounds", "Upper bounds on mean IU from the truth alone.", "suite", "data", "results"
    )
    bounds.add_argument("dataset", metavar="DATASET")
    bounds.add_argument("split", metavar="SPLIT")
    bounds.add_argument(
        "--labels",
        type=_path,
        metavar="PATH",
        help="a folder or tar of label PNGs, instead of a prepared data set",
    )
    bounds.add_argument("--classes", type=_positive, metavar="N")
    bounds.add_argument("--void", type=int, metavar="V", help="default: 255")
    classifier = stage(
        "classifier",
        "Time a classifier on crops against the net on the whole image (section 3.1).",
        "suite",
        "results",
        "device",
        "threads",
    )
    classifier.add_argument(
        "--trials", type=_positive, default=None, help="default: 50 on a GPU, 5 on a CPU"
    )
    submission = stage(
        "submission",
        "Label the VOC server's test images as the archive that it takes, or check one.",
        "suite",
        "data",
        "results",
        "device",
        "threads",
        "seed",
        "precision",
        "workers",
    )
    submission.add_argument(
        "run", nargs="?", metavar="RUN", help="DATASET/RUN of the suite, or RUN"
    )
    submission.add_argument(
        "--dataset", default="voc2012test", metavar="NAME", help="voc2011test or %(default)s"
    )
    submission.add_argument(
        "--out", type=_path, metavar="FILE", help="default: the data set's name .tgz beside the run"
    )
    submission.add_argument(
        "--check", type=_path, metavar="FILE", help="check an archive and make none"
    )
    runs = ("suite", "seeds", "precision", "data", "results")
    architecture = "Describe the nets of a suite."
    stage("architecture", architecture, "suite", "seeds", "precision", "results")
    report = stage("report", "Render whatever results exist.", *runs)
    report.add_argument("--out", type=_path, default=Path("reports"), metavar="DIR")
    report.add_argument(
        "--no-images", action="store_true", help="leave out images and label maps of the data sets"
    )
    publish = stage(
        "publish",
        "Copy numbers, curves, provenance and the report, without images, as a record.",
        *runs,
    )
    publish.add_argument("--out", type=_path, required=True, metavar="DIR")
    stage("plan", "List the runs of a suite with their cost.", *runs)
    start = stage(
        "preflight",
        "Say what is missing to start a suite.",
        *runs,
        "device",
        "mirror",
    )
    start.add_argument(
        "targets",
        nargs="*",
        metavar="TARGET",
        help="tables or files under results/ (default: the whole suite)",
    )
    predict = stage("predict", "Label images of one's own.", "device", "threads")
    predict.add_argument(
        "--net",
        required=True,
        metavar="NET",
        help=f"{', '.join(PREDICT_NETS)}, or auto: what a file of ours says",
    )
    predict.add_argument(
        "--weights",
        required=True,
        type=_path,
        metavar="FILE",
        help="our .safetensors or a .caffemodel",
    )
    predict.add_argument("--out", required=True, type=_path, metavar="DIR")
    predict.add_argument("--overlay", action="store_true", help="also DIR/STEM_overlay.png")
    predict.add_argument("--precision", choices=PRECISIONS, default="fp32")
    predict.add_argument("images", nargs="+", type=_path, metavar="IMAGE")
    bench = stage("bench", "Measure speed against floors and peers.", "device", "threads")
    bench.add_argument("--out", type=_path, default=Path("reports"), metavar="DIR")
    bench.add_argument("--quick", action="store_true", help="fewer rounds")
    for option, text in (
        ("peer", "a checkout of wkentaro/pytorch-fcn to compare with"),
        ("data", "a prepared data set (data/prepared/NAME)"),
        ("demo", "a working tree in which the demo has run: the DAG's own share"),
    ):
        bench.add_argument(f"--{option}", type=_path, metavar="PATH", help=text)
    bench.add_argument(
        "--weights",
        type=_path,
        action="append",
        default=[],
        metavar="FILE",
        help="a run's model.safetensors: agreement of bf16 with fp32 (needs --data); several: "
        "once for each",
    )
    bench.add_argument(
        "--logs",
        type=_path,
        action="append",
        default=[],
        metavar="DIR",
        help="the folder logs of another tree: the peak memory of its stages; several: once for "
        "each",
    )
    bench.add_argument("--split", default="val", help="of --data (default: %(default)s)")
    bench.add_argument("--images", type=_positive, default=50, metavar="N", help="of the agreement")
    bench.add_argument(
        "--canvas-images",
        type=_positive,
        metavar="N",
        help="labelled on a larger canvas too (default: all of the split)",
    )
    score = stage("score", "Score label PNGs against truth PNGs.")
    score.add_argument("--truth", type=_path, required=True, metavar="DIR", help="true label PNGs")
    score.add_argument(
        "--pred", type=_path, required=True, metavar="DIR", help="predicted label PNGs"
    )
    score.add_argument("--classes", type=int, required=True, metavar="N", help="classes, 0 to N-1")
    score.add_argument(
        "--void",
        type=int,
        default=255,
        metavar="V",
        help="value of void in the truth (default: %(default)s)",
    )
    score.add_argument("--json", action="store_true", help="print one JSON object")
    return top


_OPTIONS: dict[str, Any] = {
    "suite": lambda p: p.add_argument(
        "--suite",
        default="paper",
        metavar="NAME|FILE",
        help="a suite of config/suites, or a YAML file (default: %(default)s)",
    ),
    "seeds": lambda p: p.add_argument(
        "--seeds", default=None, metavar="N|LIST", help="seeds, instead of the suite's"
    ),
    "precision": lambda p: p.add_argument(
        "--precision",
        choices=PRECISIONS,
        default=None,
        help="of every training, instead of the recipe's",
    ),
    "data": lambda p: p.add_argument("--data-dir", type=_path, default=Path("data"), metavar="DIR"),
    "results": lambda p: p.add_argument(
        "--results", type=_path, default=Path("results"), metavar="DIR"
    ),
    "device": lambda p: p.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N"),
    "seed": lambda p: p.add_argument("--seed", type=_at_most(SEED_MAX), default=0),
    "workers": lambda p: p.add_argument(
        "--workers",
        type=_at_most(MOST_PROCESSES),
        default=None,
        help="processes that load images",
    ),
    "threads": lambda p: p.add_argument(
        "--threads", type=_at_most(MOST_PROCESSES), default=0, help="CPU threads (default: all)"
    ),
    "mirror": lambda p: (
        p.add_argument(
            "--mirror",
            default=None,
            metavar="FOLDER|URL",
            help="serves the archives under their names; then it alone is asked",
        ),
        p.add_argument(
            "--mirror-is-subset",
            action="store_true",
            help="declare that the mirror's archives are subsets of the official ones",
        ),
    ),
}
