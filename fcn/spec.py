"""What a suite and its runs are, resolved.

No PyTorch and no Snakemake here: both the DAG and the stages read runs through this module and
``fcn.suites``, and these need only what a bare Snakemake installation has (yaml, jsonschema).
"""

import hashlib
import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fcn.errors import UserError
from fcn.files import at_home, files_below
from fcn.options import NET_DEFAULTS
from fcn.schema import ROOT, unknown

UNPACKED = (".tar", ".tar.gz", ".tgz", ".zip")  # archives; any other file is used as it is


@dataclass(frozen=True)
class Row:
    """A row of a table that a run fills.

    ``against``: labels of the texts that it is set against where a row has several; empty for all.
    ``decides``: whether claims about the row are tested on this run.
    """

    table: str
    row: str
    against: tuple[str, ...] = ()
    decides: bool = True


@dataclass(frozen=True)
class Run:
    """One configuration, trained and scored once per seed.

    ``config`` is the whole of what decides its numbers, resolved; ``hash`` is its fingerprint.
    """

    id: str
    title: str
    note: str | None
    config: dict[str, Any]
    rows: tuple[Row, ...]
    seeds: tuple[int, ...]
    time: bool
    gflop: float | None = None  # forward cost of an image, for the planner
    named_net: str | None = None  # the net of config/nets.yaml, or of the suite, that it changes
    precision: str = "fp32"  # of its scores; without a training, of the one that made the weights

    @property
    def dataset(self) -> str:
        return self.id.split("/")[0]

    @property
    def name(self) -> str:
        return self.id.split("/")[1]

    @property
    def split(self) -> str:
        return str(self.config["test"]["split"])

    @property
    def training_sets(self) -> list[dict[str, Any]]:
        """What the run trains on: dataset and split of each part."""
        first = self.config["train"]
        return [first, *self.config.get("also_train", [])] if first else []

    @property
    def datasets(self) -> list[str]:
        """The data sets that a run is trained and scored on, each once."""
        parts = [*self.training_sets, self.config["test"]]
        return list(dict.fromkeys(part["dataset"] for part in parts))

    @property
    def labels(self) -> tuple[str, ...]:
        """The label sets that are learned and scored, the first of them the main one."""
        return tuple(self.config.get("labels", ("semantic",)))

    @property
    def parents(self) -> dict[str, str]:
        """The runs whose weights training starts from: ``run`` or, in late fusion, by input."""
        weights = self.config["weights"]
        if not isinstance(weights, dict):
            return {}
        return dict(weights["runs"]) if "runs" in weights else only(run=weights.get("run"))

    @property
    def backbone(self) -> str | None:
        weights = self.config["weights"]
        return weights.get("backbone") if isinstance(weights, dict) else None

    @property
    def released(self) -> str | None:
        weights = self.config["weights"]
        return weights.get("released") if isinstance(weights, dict) else None

    @property
    def hash(self) -> str:
        return fingerprint(self.config)

    @property
    def timed(self) -> str:
        """Fingerprint of what the time of a forward pass depends on."""
        parts = ("net", "inference", "labels", "mask", "inputs")
        return fingerprint({key: self.config[key] for key in parts if key in self.config})

    def directory(self, results: Path, seed: int) -> Path:
        return results / self.dataset / self.name / f"seed{seed}"

    def target(self, seed: int) -> str:
        return f"results/{self.id}/seed{seed}/metrics.json"


@dataclass(frozen=True)
class Suite:
    """A set of runs, the tables that they fill, and everything the runs refer to."""

    name: str
    path: Path
    title: str
    notice: str | None
    gpu: bool
    threads: int
    runs: dict[str, Run]
    bounds: list[dict[str, str]]
    datasets: dict[str, dict[str, Any]]
    backbones: dict[str, dict[str, Any]]
    nets: dict[str, dict[str, Any]]
    archives: dict[str, dict[str, Any]]
    tables: dict[str, dict[str, Any]] = field(default_factory=dict)
    compare: bool = True  # whether a difference from the paper's number says anything
    classifier: dict[str, Any] | None = None  # of section 3.1: net, crop, image
    precision: str | None = None  # where it replaces that of every recipe

    @property
    def command(self) -> str:
        """The command that a row's target is appended to, with conda where this runs in it."""
        words = ["snakemake", "--cores", "all"]
        words += ["--use-conda"] if "CONDA_PREFIX" in os.environ else []
        choices = [] if self.name == "paper" else [f"suite={self.name}"]
        choices += [f"precision={self.precision}"] if self.precision else []
        return shlex.join([*words, "--config", *choices] if choices else words)

    def run(self, name: str) -> Run:
        """A run by DATASET/RUN, or by RUN where that is enough."""
        if name in self.runs:
            return self.runs[name]
        matches = [run for run in self.runs.values() if run.name == name]
        if len(matches) == 1:
            return matches[0]
        if matches:
            several = ", ".join(run.id for run in matches)
            raise UserError(f"{self.path}: which run {name!r}: {several}?")
        raise UserError(f"{self.path}: {unknown('run', name, self.runs)}")

    def resolved_net(self, name: str, where: str | None = None) -> dict[str, Any]:
        """A named net with its bases and the defaults folded in."""
        net = NET_DEFAULTS | with_bases("net", name, self.nets, where or str(self.path))
        net.pop("gflop", None)
        return net

    @staticmethod
    def sidecar(archive: str) -> str:
        """What says that an archive is ready to be read, below the data folder."""
        return f"{'extracted' if archive.endswith(UNPACKED) else 'archives'}/{archive}.json"

    def archives_of(self, dataset: str) -> list[str]:
        return list(self.datasets[dataset].get("archives", []))

    def lists_of(self, dataset: str) -> list[str]:
        """The lists of ids and of classes, outside of archives, that a data set is read with.

        Those that exist: of a missing one the stage itself speaks.
        """
        definition = self.datasets[dataset]
        places = [ROOT]
        if "path" in definition:
            places.append(ROOT / at_home(definition["path"]))
        names = [
            name
            for part in (definition.get("splits"), definition.get("classes"))
            for name in (part.values() if isinstance(part, dict) else [part])
            if isinstance(name, str)
        ]
        found = [place / name for name in dict.fromkeys(names) for place in places]
        return [
            str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)
            for path in found
            if path.is_file()
        ]


def only(**values: str | None) -> dict[str, str]:
    return {key: value for key, value in values.items() if value is not None}


def fingerprint(value: Any) -> str:
    """12 hexadecimal digits of the canonical JSON of ``value``."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def contents_hash(definition: Mapping[str, Any]) -> str:
    """Fingerprint of what a data set holds: its title and terms are words about it."""
    return fingerprint({k: v for k, v in definition.items() if k not in ("title", "terms")})


def source_hash(definition: Mapping[str, Any]) -> str:
    """``contents_hash``, of a folder of one's own with the name, size and time of its files.

    Hidden files, and those in hidden folders such as .git, are not looked at: tools that write
    there change nothing of the data.
    """
    found = contents_hash(definition)
    if "path" not in definition:
        return found
    root = ROOT / at_home(definition["path"])
    files = [
        (below.as_posix(), status.st_size, status.st_mtime_ns)
        for place in files_below(root)
        for below in [place.relative_to(root)]
        if not any(part.startswith(".") for part in below.parts)
        for status in [place.stat(follow_symlinks=place.exists())]
    ]
    return fingerprint([found, sorted(files)])


def with_bases(
    kind: str, entry: Any, library: Mapping[str, Any], where: str, seen: tuple[str, ...] = ()
) -> dict[str, Any]:
    """A named or inline net or recipe with the chain of its bases folded in."""
    if isinstance(entry, str):
        if entry not in library:
            raise UserError(f"{where}.{kind}: {unknown(kind, entry, library)}")
        if entry in seen:
            raise UserError(
                f"{where}.{kind}: the bases {' -> '.join((*seen, entry))} form a circle."
            )
        return with_bases(kind, library[entry], library, where, (*seen, entry))
    entry = dict(entry)
    base = entry.pop("base", None)
    return {**with_bases(kind, base, library, where, seen), **entry} if base else entry
