"""Suites, runs and what they are made of: ``config/`` read, checked and resolved.

No PyTorch and no Snakemake here: both the DAG and the stages read runs through this module, and it
needs only what a bare Snakemake installation has (yaml, jsonschema).
"""

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from fcn.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "config"

NET_DEFAULTS: dict[str, Any] = {
    "skips": [],
    "top": None,
    "scales": {},
    "padding": "reference",
    "interpolation": "fixed",
    "score_init": "zero",
    "dropout": 0.5,
    "average_pool": False,
    "width": 1.0,
    "hidden": 4096,
    "fc6_kernel": None,
}
RECIPE_DEFAULTS: dict[str, Any] = {
    "loss": "softmax",
    "schedule": "fixed",
    "bias_rate": 2.0,
    "bias_decay": 0.0,
    "score_rate": 1.0,
    "train_layers": "all",
    "patch_keep": 1.0,
    "mirror": False,
    "jitter": 0,
    "precision": "fp32",
    "validate": 0,
}


@dataclass(frozen=True)
class Row:
    """A row of a table that a run fills."""

    table: str
    row: str


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
    gflop: float | None = None  # forward cost at 500x375, for the planner

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
    def parent(self) -> str | None:
        """The run whose weights training starts from."""
        weights = self.config["weights"]
        return weights.get("run") if isinstance(weights, dict) else None

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

    @property
    def command(self) -> str:
        """The command that a row's target is appended to."""
        choice = "" if self.name == "paper" else f" --config suite={self.name}"
        return f"snakemake --cores all --use-conda{choice}"

    def run(self, name: str) -> Run:
        """A run by DATASET/RUN, or by RUN where that is enough."""
        if name in self.runs:
            return self.runs[name]
        matches = [run for run in self.runs.values() if run.name == name]
        if len(matches) == 1:
            return matches[0]
        raise UserError(f"{self.path}: {unknown('run', name, self.runs)}")

    def resolved_net(self, name: str) -> dict[str, Any]:
        """A named net with its bases and the defaults folded in."""
        net = _merge(NET_DEFAULTS, _resolve("net", name, self.nets, str(self.path)))
        net.pop("gflop", None)
        return net

    def archives_of(self, dataset: str) -> list[str]:
        return list(self.datasets[dataset].get("archives", []))


def fingerprint(value: Any) -> str:
    """12 hexadecimal digits of the canonical JSON of ``value``."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """A sentence about a name that is not there, with the nearest ones that are."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(sorted(names))}."
    return f"no {kind} {name!r}; {hint}"


def read_yaml(path: Path) -> Any:
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file.") from None
    except yaml.YAMLError as error:
        where = str(getattr(error, "problem_mark", "")).strip().replace("\n", " ")
        problem = getattr(error, "problem", None) or str(error)
        raise UserError(f"{path}: not valid YAML: {problem} {where}.") from None


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-4 is a number and a key given twice is an error."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", node.start_mark
                )
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(  # YAML 1.1 wants a dot and a signed exponent
    "tag:yaml.org,2002:float",
    __import__("re").compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


@cache
def _schema() -> dict[str, Any]:
    return read_yaml(CONFIG / "schemas" / "suite.yaml")


def check(value: Any, schema: Mapping[str, Any], path: Path) -> None:
    """Validate ``value``; the first problem is a UserError naming file, key and what is allowed."""
    validator = jsonschema.Draft202012Validator({**schema, "$defs": _schema()["$defs"]})
    errors = sorted(validator.iter_errors(value), key=lambda e: [str(p) for p in e.absolute_path])
    if errors:
        raise UserError(f"{path}: {_explain(errors[0])}")


def _explain(error: jsonschema.ValidationError) -> str:
    while error.context:  # of several alternatives, the one that fits the value's type
        kinds = {"object": dict, "string": str, "array": list}
        context = [e for e in error.context if e.validator not in ("type", "const", "required")]
        typed = [
            e
            for e in context
            if e.parent is not None
            and isinstance(
                error.instance, kinds.get(str(error.schema.get("type", "object")), object)
            )
        ]
        if not typed:
            break
        error = max(typed, key=lambda e: len(e.absolute_path))
    where = ".".join(str(part) for part in error.absolute_path) or "the file"
    if error.validator == "additionalProperties" and isinstance(error.instance, dict):
        allowed = sorted(error.schema.get("properties", {}))
        for key in error.instance:
            if key not in allowed:
                return (
                    f"{where}: {unknown('key', str(key), allowed)} Allowed: {', '.join(allowed)}."
                )
    if error.validator == "enum":
        return f"{where}: {error.instance!r} is not one of {', '.join(map(str, error.validator_value))}."
    if error.validator in ("oneOf", "anyOf"):
        text = error.schema.get("description", "one of the forms of the schema")
        return f"{where}: {error.instance!r} is not allowed here. {text}"
    return f"{where}: {error.message}."


def _merge(base: dict[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    return {**base, **change}


def _library(name: str, extra: Mapping[str, Any], schema: str | None = None) -> dict[str, Any]:
    path = CONFIG / f"{name}.yaml"
    own = read_yaml(path) or {}
    if schema:
        for key, value in own.items():
            check(value, {"$ref": f"#/$defs/{schema}"}, Path(f"{path}: {key}"))
    return {**own, **extra}


def _resolve(
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
        return _resolve(kind, library[entry], library, where, (*seen, entry))
    entry = dict(entry)
    base = entry.pop("base", None)
    return _merge(_resolve(kind, base, library, where, seen), entry) if base else entry


def load_suite(name: str = "paper", seeds: str | int | None = None) -> Suite:
    """Read, check and resolve a suite.

    Args:
        name: of a file in ``config/suites``, or the path of a YAML file of one's own.
        seeds: replaces the seeds of every run: a number of seeds (3 is 0, 1, 2) or "0,5,7".

    Raises:
        UserError: naming file, key and what is allowed.
    """
    path = (
        Path(name) if str(name).endswith((".yaml", ".yml")) else CONFIG / "suites" / f"{name}.yaml"
    )
    if not path.exists():
        known = sorted(p.stem for p in (CONFIG / "suites").glob("*.yaml"))
        raise UserError(f"suite {name!r}: {path} does not exist; there are: {', '.join(known)}.")
    raw = read_yaml(path)
    check(raw, _schema(), path)
    datasets = _library("datasets", raw.get("datasets", {}))
    backbones = _library("backbones", raw.get("backbones", {}))
    nets = _library("nets", raw.get("nets", {}), "net")
    recipes = _library("recipes", raw.get("recipes", {}), "recipe")
    archives = _library("archives", {})
    tables = read_yaml(CONFIG / "tables.yaml") or {}
    chosen = _seeds(seeds)
    suite = Suite(
        name=str(name),
        path=path,
        title=raw["title"],
        notice=raw.get("notice"),
        gpu=raw.get("gpu", False),
        threads=raw.get("threads", 4),
        runs={},
        bounds=raw.get("bounds", []),
        datasets=datasets,
        backbones=backbones,
        nets=nets,
        archives=archives,
        tables=tables,
    )
    entries = {key: _with_bases(key, raw["runs"], path) for key in raw["runs"]}
    for key, entry in entries.items():
        _build_run(
            key,
            entry,
            suite,
            recipes,
            chosen or tuple(raw.get("seeds", [0])),
            bool(chosen),
            entries,
        )
    for bound in suite.bounds:
        if bound["dataset"] not in datasets:
            raise UserError(f"{path}: bounds: {unknown('data set', bound['dataset'], datasets)}")
    return suite


def _seeds(seeds: str | int | None) -> tuple[int, ...]:
    if seeds is None or seeds == "":
        return ()
    try:
        if isinstance(seeds, int) or str(seeds).isdigit():
            chosen = tuple(range(int(seeds)))
        else:
            chosen = tuple(int(part) for part in str(seeds).split(","))
    except ValueError:
        chosen = ()
    if not chosen or min(chosen) < 0:
        raise UserError(f"seeds={seeds}: give a number of seeds (3) or a list of them (0,5,7).")
    return chosen


def _with_bases(
    key: str, runs: Mapping[str, Any], path: Path, seen: tuple[str, ...] = ()
) -> dict[str, Any]:
    """A run's entry over the entry of its base; the base's rows and title are not inherited."""
    if key not in runs:
        raise UserError(f"{path}: runs.{seen[-1]}.base: {unknown('run', key, runs)}")
    if key in seen:
        raise UserError(f"{path}: runs: the bases {' -> '.join((*seen, key))} form a circle.")
    entry = dict(runs[key] or {})
    base = entry.pop("base", None)
    if base is None:
        return entry
    inherited = _with_bases(base, runs, path, (*seen, key))
    for own in ("rows", "title", "note"):
        inherited.pop(own, None)
    for part in ("net", "recipe"):  # a mapping without a base of its own changes the inherited one
        change = entry.get(part)
        if isinstance(change, dict) and "base" not in change and part in inherited:
            old = inherited[part]
            entry[part] = {"base": old, **change} if isinstance(old, str) else {**old, **change}
    return {**inherited, **entry}


def _build_run(
    key: str,
    entry: dict[str, Any],
    suite: Suite,
    recipes: Mapping[str, Any],
    seeds: tuple[int, ...],
    forced: bool,
    entries: Mapping[str, dict[str, Any]],
) -> Run:
    if key in suite.runs:
        return suite.runs[key]
    where = f"{suite.path}: runs.{key}"
    for required in ("net", "weights", "recipe", "split"):
        if required not in entry:
            raise UserError(f"{where}: the key {required!r} is missing.")
    dataset = key.split("/")[0]
    definition = _dataset(dataset, suite, where)
    net = _merge(NET_DEFAULTS, _resolve("net", entry["net"], suite.nets, where))
    gflop = net.pop("gflop", None)
    if "architecture" not in net:
        raise UserError(f"{where}.net: the key 'architecture' is missing.")
    trained = entry["recipe"] != "none"
    recipe = None
    if trained:
        recipe = _merge(RECIPE_DEFAULTS, _resolve("recipe", entry["recipe"], recipes, where))
        recipe.pop("source", None)
        missing = [
            k
            for k in (
                "images",
                "batch",
                "learning_rate",
                "momentum",
                "weight_decay",
                "normalize",
                "sampling",
            )
            if k not in recipe
        ]
        if missing:
            raise UserError(f"{where}.recipe: the key {missing[0]!r} is missing.")
        if "train" not in entry:
            raise UserError(f"{where}: the key 'train' is missing (DATASET/SPLIT to train on).")
    weights, convention = _weights(key, entry, suite, recipes, seeds, forced, entries, net, where)
    for row in entry.get("rows", []):
        if row["table"] not in suite.tables:
            raise UserError(f"{where}.rows: {unknown('table', row['table'], suite.tables)}")
    train = None
    if trained:
        train_name, train_split = entry["train"].split("/")
        source = _dataset(train_name, suite, where)
        if source.get("classes") != definition.get("classes"):
            raise UserError(f"{where}.train: {train_name} and {dataset} have different classes.")
        train = {"dataset": train_name, "split": train_split, "definition": fingerprint(source)}
    config = {
        "run": key,
        "train": train,
        "test": {
            "dataset": dataset,
            "split": entry["split"],
            "definition": fingerprint(definition),
        },
        "net": net,
        "weights": weights,
        "input": convention,
        "recipe": recipe,
        "version": entry.get("version", 1),
    }
    run = Run(
        id=key,
        title=entry.get("title", key.split("/")[1]),
        note=entry.get("note"),
        config=config,
        rows=tuple(Row(r["table"], r["row"]) for r in entry.get("rows", [])),
        seeds=(seeds if forced else tuple(entry.get("seeds", seeds))) if trained else (0,),
        time=entry.get("time", False),
        gflop=gflop,
    )
    suite.runs[key] = run
    return run


def _dataset(name: str, suite: Suite, where: str) -> dict[str, Any]:
    if name not in suite.datasets:
        raise UserError(f"{where}: {unknown('data set', name, suite.datasets)}")
    return suite.datasets[name]


def _weights(
    key: str,
    entry: dict[str, Any],
    suite: Suite,
    recipes: Mapping[str, Any],
    seeds: tuple[int, ...],
    forced: bool,
    entries: Mapping[str, dict[str, Any]],
    net: dict[str, Any],
    where: str,
) -> tuple[Any, dict[str, Any]]:
    """Where training starts, and the input convention (channel order, mean, std) that goes with it."""
    given = entry["weights"]
    if given == "none":
        mean = suite.datasets[key.split("/")[0]].get("mean_bgr", [104.00699, 116.66877, 122.67892])
        return "none", {"order": "bgr", "mean": list(mean), "std": [1.0, 1.0, 1.0]}
    if "run" in given:
        parent_key = given["run"] if "/" in given["run"] else f"{key.split('/')[0]}/{given['run']}"
        if parent_key not in entries:
            raise UserError(f"{where}.weights.run: {unknown('run', given['run'], entries)}")
        if parent_key == key:
            raise UserError(f"{where}.weights.run: a run cannot start from itself.")
        parent = suite.runs.get(parent_key)
        if parent is None:
            chain = entries[parent_key].get("weights")
            if isinstance(chain, dict) and chain.get("run") in (key, key.split("/")[1]):
                raise UserError(
                    f"{where}.weights.run: {key} and {parent_key} start from each other."
                )
            parent = _build_run(
                parent_key, entries[parent_key], suite, recipes, seeds, forced, entries
            )
        return {"run": parent_key, "hash": parent.hash}, parent.config["input"]
    library = suite.backbones
    name = given.get("backbone") or given.get("released")
    if name not in library:
        raise UserError(f"{where}.weights: {unknown('backbone', name, library)}")
    definition = library[name]
    if definition["architecture"] != net["architecture"]:
        raise UserError(
            f"{where}.weights: {name} is a {definition['architecture']}, the net a "
            f"{net['architecture']}."
        )
    return {**given, "definition": fingerprint(definition)}, definition["input"]
