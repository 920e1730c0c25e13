"""Suites read from YAML: checked, bases folded in, each run resolved after those it starts from."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from fcn.errors import UserError
from fcn.files import at_home
from fcn.options import (
    NET_DEFAULTS,
    NET_OPTIONS,
    RECIPE_DEFAULTS,
    RECIPE_REQUIRED,
    RUN_OPTIONS,
    check_inference,
    check_net,
    fully_connected,
)
from fcn.schema import CONFIG, check, protocol, read_yaml, suite_schema, unknown
from fcn.spec import Row, Run, Suite, contents_hash, fingerprint, only, with_bases

TABLES_WITHOUT_RUNS = ("bounds", "list", "other")  # kinds in config/tables.yaml
SEEDS_MAX, SEED_MAX = 1000, 2**32 - 1  # how many seeds, and the largest that NumPy takes
VOC_PIXELS = 375 * 500  # of the image that `gflop` in config/nets.yaml is the cost of

# What a net without pretrained weights is given: BGR minus the mean.
CAFFE_INPUT: dict[str, Any] = {
    key: value for key, value in protocol("input").items() if key != "source"
}


def _library(name: str, extra: Mapping[str, Any], schema: str) -> dict[str, Any]:
    path = CONFIG / f"{name}.yaml"
    own = read_yaml(path) or {}
    for key, value in own.items():
        check(value, {"$ref": f"#/$defs/{schema}"}, Path(f"{path}: {key}"))
    return {**own, **extra}


def _checked(name: str) -> dict[str, Any]:
    """``config/NAME.yaml``, checked by the schema of its name."""
    path = CONFIG / f"{name}.yaml"
    content = read_yaml(path) or {}
    check(content, read_yaml(CONFIG / "schemas" / path.name), path)
    return dict(content)


def load_suite(
    name: str = "paper", seeds: str | int | None = None, precision: str | None = None
) -> Suite:
    """Read, check and resolve a suite.

    Args:
        name: of a file in ``config/suites``, or the path of a YAML file of one's own.
        seeds: replaces the seeds of every run: a number of seeds (3 is 0, 1, 2) or "0,5,7".
        precision: replaces that of every recipe (``PRECISIONS``), and so every run's hash.

    Raises:
        UserError: naming file, key and what is allowed.
    """
    path = (
        at_home(name)
        if str(name).endswith((".yaml", ".yml"))
        else CONFIG / "suites" / f"{name}.yaml"
    )
    if not path.exists():
        known = sorted(p.stem for p in (CONFIG / "suites").glob("*.yaml"))
        raise UserError(f"suite {name!r}: {path} does not exist; there are: {', '.join(known)}.")
    allowed = suite_schema()["$defs"]["recipe"]["properties"]["precision"]["enum"]
    if precision and precision not in allowed:
        raise UserError(f"precision={precision} is not one of {', '.join(allowed)}.")
    raw = read_yaml(path)
    check(raw, suite_schema(), path)
    suite = Suite(
        name=str(name),
        path=path,
        title=raw["title"],
        notice=raw.get("notice"),
        compare=raw.get("compare", True),
        gpu=raw.get("gpu", False),
        threads=raw.get("threads", 4),
        runs={},
        bounds=raw.get("bounds", []),
        classifier=raw.get("classifier"),
        precision=precision or None,
        datasets=_library("datasets", raw.get("datasets", {}), "dataset"),
        backbones=_library("backbones", raw.get("backbones", {}), "backbone"),
        nets=_library("nets", raw.get("nets", {}), "net"),
        archives=_checked("archives"),
        tables=_checked("tables"),
    )
    resolver = _Resolver(
        suite,
        written=raw["runs"],
        entries={key: _entry(key, raw["runs"], path) for key in raw["runs"]},
        recipes=_library("recipes", raw.get("recipes", {}), "recipe"),
        usual_seeds=tuple(raw.get("seeds", [0])),
        forced_seeds=_seeds(seeds),
    )
    for key in resolver.entries:
        resolver.run(key)

    def place(kind: str, name: str) -> str:
        own = name in raw.get(kind, {})
        return f"{path}: {kind}.{name}" if own else f"{CONFIG / kind}.yaml: {name}"

    for name, entry in suite.nets.items():
        where = place("nets", name)
        check_net(entry, suite.resolved_net(name, where), where)
    for name, definition in suite.backbones.items():
        own = definition.get("net", {})
        net = {**own, "architecture": definition.get("architecture", "")}
        check_net(own, net, f"{place('backbones', name)}.net")
    if suite.classifier and (name := suite.classifier["net"]) not in suite.nets:
        raise UserError(f"{path}: classifier.net: {unknown('net', name, suite.nets)}")
    for bound in suite.bounds:
        resolver.dataset(bound["dataset"], f"{path}: bounds")
        resolver.split(bound["dataset"], bound["split"], f"{path}: bounds")
    twice = [one for one, count in Counter(b["dataset"] for b in suite.bounds).items() if count > 1]
    if twice:
        raise UserError(f"{path}: bounds: {twice[0]} stands there twice; its bounds are one file.")
    return suite


def _seeds(seeds: str | int | None) -> tuple[int, ...]:
    if seeds is None or seeds == "":
        return ()
    try:
        if isinstance(seeds, int) or str(seeds).isdigit():
            chosen = tuple(range(min(int(seeds), SEEDS_MAX + 1)))
        else:
            chosen = tuple(int(part) for part in str(seeds).split(","))
    except ValueError:
        chosen = ()
    if not chosen or min(chosen) < 0 or len(set(chosen)) < len(chosen):
        raise UserError(
            f"seeds={seeds}: give a number of seeds (3) or a list of them, each once (0,5,7)."
        )
    if len(chosen) > SEEDS_MAX or max(chosen) > SEED_MAX:
        raise UserError(f"seeds={seeds}: at most {SEEDS_MAX} seeds, none above {SEED_MAX}.")
    return chosen


def _entry(
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
    inherited = _entry(base, runs, path, (*seen, key))
    for own in ("rows", "title", "note"):
        inherited.pop(own, None)
    for part in ("net", "recipe"):  # a mapping without a base of its own changes the inherited one
        change = entry.get(part)
        if isinstance(change, dict) and "base" not in change and part in inherited:
            old = inherited[part]
            entry[part] = {"base": old, **change} if isinstance(old, str) else {**old, **change}
    return {**inherited, **entry}


def _parents_of(key: str, entry: Mapping[str, Any]) -> dict[str, str]:
    """DATASET/RUN of each run that a run starts from; of its own data set where none is named."""
    weights = entry.get("weights")
    if not isinstance(weights, dict):
        return {}
    named = weights.get("runs") or only(run=weights.get("run"))
    own = key.split("/")[0]
    return {part: name if "/" in name else f"{own}/{name}" for part, name in named.items()}


def _conventions(
    net: dict[str, Any], backbone: dict[str, Any], definition: Mapping[str, Any], where: str
) -> dict[str, dict[str, Any]]:
    """What each input of a net is turned into: order, mean and std of ``fcn.inputs``.

    A data set's own ``means`` stand for the mean of a Caffe backbone, as in the authors' layers.
    """
    means = definition.get("means", {})
    image = dict(backbone)
    if "image" in means and set(backbone["std"]) == {1}:
        image["mean"] = means["image"]
    found: dict[str, dict[str, Any]] = {"image": image}
    for name in {**NET_OPTIONS, **net}["inputs"]:
        if name != "image":
            if name not in means:
                raise UserError(f"{where}.net.inputs: the data set has no `means.{name}`.")
            mean = means[name]
            found[name] = {"order": "file", "mean": mean, "std": [1.0] * len(mean)}
            if name == "depth":
                found[name]["log"] = True
    return found


@dataclass
class _Resolver:
    """The entries of a suite, turned into its runs one by one, each after those it starts from."""

    suite: Suite
    written: Mapping[str, Mapping[str, Any]]  # the entries themselves, without their bases
    entries: dict[str, dict[str, Any]]
    recipes: dict[str, Any]
    usual_seeds: tuple[int, ...]
    forced_seeds: tuple[int, ...]

    def run(self, key: str) -> Run:
        """The run of an entry; in ``suite.runs`` from then on."""
        suite = self.suite
        if key in suite.runs:
            return suite.runs[key]
        entry = self.entries[key]
        where = f"{suite.path}: runs.{key}"
        for required in ("net", "weights", "recipe", "split"):
            if required not in entry:
                raise UserError(f"{where}: the key {required!r} is missing.")
        dataset = key.split("/")[0]
        definition = self.dataset(dataset, where)
        self.split(dataset, entry["split"], f"{where}.split")
        net = NET_DEFAULTS | with_bases("net", entry["net"], suite.nets, where)
        gflop = net.pop("gflop", None)
        if gflop and "size" in definition:  # of a generated data set
            for side in definition["size"]:
                gflop *= fmean(side) if isinstance(side, list) else side
            gflop /= VOC_PIXELS
        if "architecture" not in net:
            raise UserError(f"{where}.net: the key 'architecture' is missing.")
        own_net = self.written[key].get("net")
        if isinstance(own_net, dict):
            check_net(own_net, net, f"{where}.net")
        if entry.get("inference"):
            check_inference(entry["inference"], net, f"{where}.inference")
        recipe = self.recipe(entry, where)
        if not recipe:
            self.untrained(key, where)
        if recipe and "train" not in entry:
            raise UserError(f"{where}: the key 'train' is missing (DATASET/SPLIT to train on).")
        weights, inputs = self.weights(key, net, where)
        for row in entry.get("rows", []):
            self.row(row, f"{where}.rows")
        known = definition.get("classes")
        kinds = list(known) if isinstance(known, dict) else ["semantic"] if known else None
        for label in entry.get("labels", []):
            if kinds is not None and label not in kinds:
                raise UserError(f"{where}.labels: {unknown(f'labels of {dataset}', label, kinds)}")
        scale = (recipe or {}).get("scale")
        if scale and scale[0] > scale[1]:
            raise UserError(f"{where}.recipe.scale: {scale}: the first is the least factor.")
        hidden = entry.get("mask", RUN_OPTIONS["mask"])["train"]
        if recipe and hidden != "none":
            for option, usual in (("patch_keep", 1.0), ("jitter", 0)):
                if recipe[option] != usual:
                    raise UserError(
                        f"{where}.mask: with recipe.{option} the labels that say what to hide have "
                        f"void pixels of its own; leave out one of them."
                    )
        train = self.training_sets(entry["train"], dataset, where) if recipe else []
        config = {
            "run": key,
            "train": train[0] if train else None,
            "test": {
                "dataset": dataset,
                "split": entry["split"],
                "definition": contents_hash(definition),
            },
            "net": net,
            "weights": weights,
            "input": inputs["image"],
            "recipe": recipe,
            "version": entry.get("version", 1),
        }
        if len(train) > 1:
            config["also_train"] = train[1:]
        if list(inputs) != ["image"]:
            config["inputs"] = inputs
        for option, usual in RUN_OPTIONS.items():
            if entry.get(option, usual) != usual:
                config[option] = entry[option]
        own = tuple(int(seed) for seed in entry.get("seeds", self.usual_seeds))
        own = self.forced_seeds or own
        if len(set(own)) < len(own):
            raise UserError(f"{where}.seeds: {list(own)} names a seed twice.")
        if recipe:
            precision = str(recipe["precision"])
        else:
            parents = [suite.runs[name] for name in _parents_of(key, entry).values()]
            precision = next((parent.precision for parent in parents), "fp32")
        run = Run(
            id=key,
            precision=precision,
            title=entry.get("title", key.split("/")[1]),
            note=entry.get("note"),
            config=config,
            rows=tuple(
                Row(r["table"], r["row"], tuple(r.get("against", ())), r.get("decides", True))
                for r in entry.get("rows", [])
            ),
            seeds=own if recipe or _parents_of(key, entry) else (0,),  # released weights have none
            time=entry.get("time", False),
            gflop=gflop,
            named_net=entry["net"] if isinstance(entry["net"], str) else entry["net"].get("base"),
        )
        suite.runs[key] = run
        return run

    def row(self, row: Mapping[str, Any], where: str) -> None:
        """UserError where a run cannot fill a row; one that its table lacks is declared new."""
        table, name, new = row["table"], row["row"], row.get("new", False)
        tables = self.suite.tables
        if table not in tables:
            raise UserError(f"{where}: {unknown('table', table, tables)}")
        if tables[table].get("kind") in TABLES_WITHOUT_RUNS:
            raise UserError(f"{where}: no run fills the table {table}; name another or none.")
        known = [own["name"] for own in tables[table].get("rows", [])]
        if new and name in known:
            raise UserError(f"{where}: {table} has the row {name!r}; leave out new: true.")
        if not new and name not in known:
            near = unknown(f"row of {table}", name, known)
            raise UserError(f"{where}: {near} A row of your own says new: true.")
        labels = [read["label"] for read in tables[table].get("reads", [])]
        for label in row.get("against", ()):
            if label not in labels:
                raise UserError(f"{where}: {unknown(f'text of {table}', label, labels)}")

    def recipe(self, entry: Mapping[str, Any], where: str) -> dict[str, Any] | None:
        """How a run is trained, None where it is not."""
        if entry["recipe"] == "none":
            return None
        recipe = RECIPE_DEFAULTS | with_bases("recipe", entry["recipe"], self.recipes, where)
        recipe.pop("source", None)
        for required in RECIPE_REQUIRED:
            if required not in recipe:
                raise UserError(f"{where}.recipe: the key {required!r} is missing.")
        forced = self.suite.precision
        return {**recipe, "precision": forced} if forced else recipe

    def untrained(self, key: str, where: str) -> None:
        """UserError where an entry sets what a training reads, and its run has none."""
        own = self.written[key]
        for option, idle, remedy in (
            ("train", "train" in own, "leave it out"),
            ("mask.train", own.get("mask", {}).get("train", "none") != "none", "say none"),
            # of a run's weights there are some for each seed; of a file's, and of none, one alone
            ("seeds", "seeds" in own and not _parents_of(key, self.entries[key]), "leave it out"),
        ):
            if idle:
                raise UserError(
                    f"{where}.{option}: it has no effect with recipe: none, which trains nothing; "
                    f"{remedy}."
                )

    def training_sets(self, given: str | list[str], own: str, where: str) -> list[dict[str, str]]:
        """Data set, split and fingerprint of each part that a run is trained on."""
        found = []
        for reference in [given] if isinstance(given, str) else given:
            name, split = reference.split("/")
            source = self.dataset(name, f"{where}.train")
            if source.get("classes") != self.suite.datasets[own].get("classes"):
                raise UserError(f"{where}.train: {name} and {own} have different classes.")
            self.split(name, split, f"{where}.train")
            found.append({"dataset": name, "split": split, "definition": contents_hash(source)})
        return found

    def dataset(self, name: str, where: str) -> dict[str, Any]:
        """The definition of a data set whose archives are known."""
        suite = self.suite
        if name not in suite.datasets:
            raise UserError(f"{where}: {unknown('data set', name, suite.datasets)}")
        for archive in suite.archives_of(name):
            if archive not in suite.archives:
                missing = unknown("archive", archive, suite.archives)
                raise UserError(f"{where}: data set {name}: {missing}")
        return suite.datasets[name]

    def split(self, dataset: str, split: str, where: str) -> None:
        """UserError where a data set has no such split."""
        splits = self.suite.datasets[dataset].get("splits")
        if isinstance(splits, dict) and split not in splits:
            raise UserError(f"{where}: {unknown(f'split of {dataset}', split, splits)}")

    def weights(
        self, key: str, net: dict[str, Any], where: str
    ) -> tuple[Any, dict[str, dict[str, Any]]]:
        """Where training starts, and what becomes of each input: order, mean, std."""
        given = self.entries[key]["weights"]
        dataset = self.suite.datasets[key.split("/")[0]]
        if given == "none":
            return "none", _conventions(net, CAFFE_INPUT, dataset, where)
        if _parents_of(key, self.entries[key]):
            return self.start_of_runs(key, net, where)
        library = self.suite.backbones
        name = given.get("backbone") or given.get("released")
        if name not in library:
            raise UserError(f"{where}.weights: {unknown('backbone', name, library)}")
        definition = library[name]
        file = "archive" if "released" in given or "pretrain" not in definition else "pretrain"
        for required in ("architecture", "input", file):
            if required not in definition:
                raise UserError(f"{where}.weights: backbone {name} lacks the key {required!r}.")
        if file == "archive" and definition["archive"] not in self.suite.archives:
            missing = unknown("archive", definition["archive"], self.suite.archives)
            raise UserError(f"{where}.weights: backbone {name}: {missing}")
        if definition["architecture"] != net["architecture"]:
            raise UserError(
                f"{where}.weights: backbone {name} is of architecture "
                f"{definition['architecture']}, the net of {net['architecture']}."
            )
        weights = {**given, "definition": fingerprint(definition)}
        if "released" in given:
            weights["archive"] = definition["archive"]
        return weights, _conventions(net, definition["input"], dataset, where)

    def start_of_runs(
        self, key: str, net: dict[str, Any], where: str
    ) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """As ``weights``, for a run that starts from other runs."""
        parents = _parents_of(key, self.entries[key])
        fused = "runs" in self.entries[key]["weights"]
        if fused:
            self.a_run_for_each_input(net, parents, where)
        hashes: dict[str, str] = {}
        conventions: dict[str, dict[str, Any]] = {}
        for part, name in parents.items():
            self.no_circle(key, name, where)
            if name not in self.entries:
                raise UserError(f"{where}.weights.run: {unknown('run', name, self.entries)}")
            parent = self.run(name)
            self.same_layers(net, parent.config["net"], name, where)
            hashes[part] = parent.hash
            reads = {**NET_OPTIONS, **parent.config["net"]}["inputs"]
            if fused and part not in reads:
                raise UserError(
                    f"{where}.weights.runs.{part}: {name} does not read {part} but "
                    f"{' and '.join(reads)}; name a run that reads {part}."
                )
            known = {"image": parent.config["input"], **parent.config.get("inputs", {})}
            conventions.update({part: known[part]} if fused else known)
        dataset = self.suite.datasets[key.split("/")[0]]
        wanted = _conventions(net, next(iter(conventions.values())), dataset, where)
        inputs = {part: conventions.get(part, usual) for part, usual in wanted.items()}
        if fused:
            return {"runs": parents, "hashes": hashes}, inputs
        return {"run": parents["run"], "hash": hashes["run"]}, inputs

    @staticmethod
    def a_run_for_each_input(
        net: Mapping[str, Any], parents: Mapping[str, str], where: str
    ) -> None:
        """UserError where the runs named by input are not those of the streams of a late fusion."""
        options = {**NET_OPTIONS, **net}
        reads = options["inputs"]
        one_stream = len(reads) == 1 or options["fusion"] != "late"
        if one_stream or set(parents) != set(reads):
            raise UserError(
                f"{where}.weights.runs: names runs for {' and '.join(parents)}, but the net reads "
                f"{' and '.join(reads)}{' in one stream' * one_stream}; a late fusion "
                "starts from one run for each of its inputs, any other net from `run`."
            )

    @staticmethod
    def same_layers(
        net: Mapping[str, Any], before: Mapping[str, Any], parent: str, where: str
    ) -> None:
        """UserError where the weights of a run cannot be those of a net that starts from it."""
        options = ("architecture", "width", "hidden", "fc6_kernel")
        for option in options if fully_connected(net) and fully_connected(before) else options[:2]:
            one, other = net[option], before[option]
            if one != other and None not in (one, other):  # unsaid, it is the classifier's own
                raise UserError(
                    f"{where}.net.{option}: {one}, but the weights of {parent} are for {other}."
                )

    def no_circle(self, key: str, parent: str, where: str) -> None:
        """UserError where ``parent`` starts, by whatever way, from ``key``."""

        def follow(name: str, chain: tuple[str, ...]) -> None:
            if name in chain:
                raise UserError(
                    f"{where}.weights.run: {' <- '.join((*chain, name))}: a run cannot start from "
                    "itself."
                )
            for above in _parents_of(name, self.entries.get(name, {})).values():
                follow(above, (*chain, name))

        follow(parent, (key,))
