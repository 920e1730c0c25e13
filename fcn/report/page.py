"""The page: sections gathered from the results and given to the template."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
import pandas as pd
import yaml
from markupsafe import Markup

from fcn.errors import UserError
from fcn.files import lookup
from fcn.report.bootstrap import DRAWS, LEVEL
from fcn.report.charts import COLOURS, Series, line_chart, thin
from fcn.report.examples import Family, build_family
from fcn.report.paper import Paper, Table
from fcn.report.results import (
    Results,
    RunResult,
    SeedResult,
    finite,
    mean_and_std,
    read_curve,
    shown,
)
from fcn.report.tables import DASH, Book, Line, feeding, number
from fcn.report.verdicts import ClaimView, any_decided, counts, on_one_seed

if TYPE_CHECKING:
    from fcn.spec import Suite

POINTS = 200  # of a training curve as drawn
FIGURE_POINTS = 400  # of a curve of Figure 5
LOSS = ("update", "images", "seconds", "loss")
VALIDATION = ("update", "images", "mean_iu")
_Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def _number(value: Any, digits: int = 0, scale: float = 1.0) -> str:
    """A number as in the tables; a dash for anything else."""
    known = finite(value)
    return DASH if known is None else number(known * scale, digits)


def _duration(seconds: Any) -> str:
    known = finite(seconds)
    if known is None:
        return DASH
    if known < 60:
        return f"{known:.0f}\u00a0s"
    return f"{_number(known / 60, 1 if known < 600 else 0)}\u00a0min"


@dataclass
class Chart:
    """Panels that share a legend of (colour, name)."""

    title: str
    panels: list[Markup]
    legend: list[tuple[int, str]]
    note: str = ""


@dataclass
class Curves:
    """Training curves read once; a file that cannot be read is noted and skipped."""

    folder: Path
    problems: list[str] = field(default_factory=list)

    def read(self, seed: SeedResult, name: str, columns: tuple[str, ...]) -> pd.DataFrame | None:
        path = seed.directory / name
        try:
            return read_curve(path, columns)
        except UserError as error:
            self.problems.append(str(error).replace(str(path), shown(path, self.folder)))
            return None


def training_charts(title: str, runs: list[RunResult], curves: Curves) -> list[Chart]:
    """Loss and validation mean IU of the runs of a table, at most ``COLOURS`` runs a figure."""
    drawn: list[tuple[str, list[Series], list[Series]]] = []
    for result in runs:
        losses: list[Series] = []
        scores: list[Series] = []
        for position, seed in enumerate(result.seeds):
            style = "ours" if position == 0 else "faint"
            name = f"{result.run.title}, seed {seed.seed}"
            for frame, key, scale, into in (
                (curves.read(seed, "loss.csv", LOSS), "loss", 1.0, losses),
                (curves.read(seed, "validation.csv", VALIDATION), "mean_iu", 100.0, scores),
            ):
                if frame is not None and len(frame):
                    x, y = frame["images"].to_numpy(float), frame[key].to_numpy(float) * scale
                    into.append(Series(name, *thin(x, y, POINTS), len(drawn) % COLOURS, style))
        if losses or scores:
            drawn.append((f"{result.run.title} ({result.run.id})", losses, scores))
    charts = []
    for first in range(0, len(drawn), COLOURS):
        part = drawn[first : first + COLOURS]
        panels = [
            line_chart(
                [s for _, losses, _ in part for s in losses], "images", "loss per pixel", of=title
            )
        ]
        scores = [s for _, _, scores in part for s in scores]
        if scores:
            panels.append(line_chart(scores, "images", "mean IU on the test images, %", of=title))
        last = first + len(part)
        of = f", runs {first + 1} to {last} of {len(drawn)}" if len(drawn) > COLOURS else ""
        charts.append(Chart(title + of, panels, [(i, part[i][0]) for i in range(len(part))]))
    return charts


def figure5(
    table: Table, paper: Paper, results: Results, curves: Curves, foreign: bool
) -> list[Chart]:
    """Loss against updates, images and measured seconds; the paper's curves in the first two.

    ``foreign``: our runs are not on the paper's data, so its curves have a chart of their own.
    """
    rows = feeding(results, table.id)
    names = [row.name for row in table.rows] + [
        name for name in rows if name not in {row.name for row in table.rows}
    ]
    legend = []
    own: dict[str, list[Series]] = {"update": [], "images": [], "seconds": []}
    for colour, name in enumerate(names):
        legend.append((colour % COLOURS, name))
        for result in rows.get(name, []):
            for position, seed in enumerate(result.seeds):
                frame = curves.read(seed, "loss.csv", LOSS)
                if frame is None:
                    continue
                style = "ours" if position == 0 else "faint"
                for key, series in own.items():
                    x, y = thin(
                        frame[key].to_numpy(float), frame["loss"].to_numpy(float), FIGURE_POINTS
                    )
                    label = f"ours: {result.run.id}, seed {seed.seed}"
                    series.append(Series(label, x, y, colour % COLOURS, style))
    printed: dict[str, list[Series]] = {"update": [], "images": [], "seconds": []}
    for key, panel in (("update", "left"), ("images", "right")):
        of_panel = paper.figure5[paper.figure5.panel == panel]
        for colour, name in enumerate(names):
            part = of_panel[of_panel.series == name]
            x, y = part.x.to_numpy(float), part.loss.to_numpy(float)
            if len(part):
                printed[key].append(Series(f"paper: {name}", x, y, colour % COLOURS, "paper"))
    if foreign:
        return [
            Chart(
                table.title,
                _panels({key: lines for key, lines in printed.items() if lines}),
                legend,
                "The paper's curves, digitised from its plot.",
            ),
            Chart(
                table.title,
                _panels(own),
                legend,
                "Ours, on other data than the paper's: compare the order, not the height.",
            ),
        ]
    both = {key: printed[key] + own[key] for key in own}
    note = "Solid: ours. Dashed: the paper's curves, digitised from its plot."
    return [Chart(table.title, _panels(both), legend, note)]


def _panels(lines: Mapping[str, list[Series]]) -> list[Markup]:
    """A panel for each axis, with one scale of the loss that leaves out its first, highest part."""
    labels = {"update": "updates", "images": "images processed", "seconds": "seconds, measured"}
    heights = [s.y for series in lines.values() for s in series if len(s.y)]
    low = min((float(y.min()) for y in heights), default=0.0)
    high = max((float(np.percentile(y, 95)) for y in heights), default=1.0)
    y_range = (low - 0.05 * (high - low), high + 0.05 * (high - low))
    return [
        line_chart(series, labels[key], "training loss per pixel", y_range)
        for key, series in lines.items()
    ]


@dataclass
class ClassTable:
    """Per-class IU of the runs on one test set; cells (text, share of 100 for the shade)."""

    title: str
    heads: list[tuple[str, str, str]]
    rows: list[tuple[str, list[tuple[str, int | None]]]]


def set_name(dataset: str, split: str, task: str) -> str:
    """A test set and the label set that is scored, which is named where it is not the usual one."""
    return f"{dataset}, {split}" + (f", {task}" if task != "semantic" else "")


def class_tables(results: Results) -> list[ClassTable]:
    """Classes by runs, mean over seeds, one table for each test set and label set."""
    groups: dict[tuple[str, str, str], list[tuple[RunResult, dict[str, list[float]]]]] = {}
    for result in results.runs.values():
        values: dict[str, dict[str, list[float]]] = {}
        for seed in result.counted:
            for task, scores in seed.metrics["tasks"].items():
                per_class = lookup(scores, ("per_class_iu",))
                for name, value in (per_class if isinstance(per_class, dict) else {}).items():
                    known = finite(value)
                    values.setdefault(task, {}).setdefault(name, []).extend(
                        [] if known is None else [100 * known]
                    )
        test = result.run.config["test"]
        for task, by_class in values.items():
            groups.setdefault((test["dataset"], test["split"], task), []).append((result, by_class))
    tables = []
    for (dataset, split, task), members in groups.items():
        names = list(dict.fromkeys(name for _, of_run in members for name in of_run))
        rows = []
        for name in names:
            cells: list[tuple[str, int | None]] = []
            for _, of_run in members:
                mean, _ = mean_and_std(of_run.get(name, []))
                text = DASH if mean is None else number(mean, 1)
                cells.append((text, None if mean is None else round(mean)))
            rows.append((name, cells))
        title = set_name(dataset, split, task)
        heads = [(r.slug, r.run.name, f"n = {len(r.counted)}") for r, _ in members]
        tables.append(ClassTable(title, heads, rows))
    return tables


def timings(results: Results) -> list[dict[str, Any]]:
    """One dict for each timed run, seed and protocol, its numbers as text."""
    rows = []
    for result in results.runs.values():
        for seed in result.seeds:
            for name, protocol in seed.timing.get("protocols", {}).items():
                if not isinstance(protocol, Mapping):
                    continue
                size = seed.timing.get("input")
                transfer = protocol.get("includes_transfer")
                rows.append(
                    {
                        "result": result,
                        "seed": seed.seed,
                        "protocol": name,
                        "input": "×".join(map(str, size)) if isinstance(size, list) else DASH,
                        **{
                            key: _number(protocol.get(f"{key}_ms"), 2)
                            for key in ("median", "mean", "std", "min", "max")
                        },
                        "trials": _number(protocol.get("trials")),
                        "warmup": _number(protocol.get("warmup")),
                        "precision": protocol.get("precision") or DASH,
                        "device": seed.device(("timing", "protocols", name)) or DASH,
                        "transfer": DASH if transfer is None else "yes" if transfer else "no",
                    }
                )
    return rows


@dataclass
class Provenance:
    """One result's block: its run, its configuration and its seeds' facts."""

    result: RunResult
    config: str
    seeds: list[tuple[SeedResult, list[tuple[str, str]]]]


def _facts(stage: str, value: Mapping[str, Any], lists: dict[str, str]) -> list[tuple[str, str]]:
    """What a file of a result says of its making; ``lists`` gathers the package lists."""
    origin = value.get("provenance")
    if not isinstance(origin, dict):
        return []
    code = origin.get("code") or {}
    device = origin.get("device") or {}
    packages = origin.get("packages")
    listed = ""
    if isinstance(packages, dict):
        key = json.dumps({**packages, "python": origin.get("python")}, sort_keys=True)
        listed = lists.setdefault(key, f"list {len(lists) + 1}")
    archives = origin.get("archives") or []
    memory = finite(origin.get("peak_memory_bytes"))
    pairs = {
        "config hash": value.get("config_hash"),
        "weights": value.get("weights_sha256"),
        "code": " ".join(
            str(part)
            for part in (
                code.get("version"),
                code.get("commit"),
                "with uncommitted changes" if code.get("dirty") else None,
            )
            if part
        ),
        "device": ", ".join(
            f"{device[key]}" if key == "name" else f"{key} {device[key]}"
            for key in ("name", "type", "count", "driver", "cuda", "cudnn")
            if device.get(key) is not None
        ),
        "precision": origin.get("precision"),
        "deterministic": origin.get("deterministic"),
        "seed": origin.get("seed"),
        "threads": origin.get("threads"),
        "started": origin.get("started"),
        "wall time": _duration(origin.get("wall_seconds")),
        "peak memory": None if memory is None else f"{memory / 2**20:,.0f} MiB",
        "platform": origin.get("platform"),
        "packages": listed,
        "archives": "; ".join(
            f"{a.get('name')} sha256 {a.get('sha256')}{' (subset)' if a.get('subset') else ''}"
            for a in archives
        ),
        "data": " ".join(map(str, value.get("notes") or [])),
        "layers that started at random": ", ".join(map(str, value.get("random_layers") or [])),
        "command": origin.get("command"),
    }
    return [(f"{stage}: {k}", str(v)) for k, v in pairs.items() if v not in (None, "")]


def _facts_of_seed(seed: SeedResult, lists: dict[str, str]) -> list[tuple[str, str]]:
    files = (
        ("train", seed.train),
        ("train", seed.diverged),
        ("evaluate", seed.metrics),
        ("time", seed.timing),
    )
    return [fact for stage, value in files for fact in _facts(stage, value, lists)]


def provenance(
    results: Results,
) -> tuple[
    list[Provenance], list[tuple[str, list[tuple[str, str]]]], list[tuple[str, dict[str, str]]]
]:
    """A block for every run; the facts of what belongs to no run; the package lists by name."""
    lists: dict[str, str] = {}
    blocks = []
    for result in results.runs.values():
        seeds = [
            (seed, _facts_of_seed(seed, lists))
            for seed in result.seeds
            if seed.any or seed.diverged
        ]
        config = result.run.config
        if result.stale and isinstance(result.counted[0].any.get("config"), dict):
            config = result.counted[0].any["config"]
        text = yaml.dump(config, Dumper=_Dumper, sort_keys=False, default_flow_style=None)
        blocks.append(Provenance(result, text, seeds))
    files = [(f"Bounds of {e['dataset']} {e['split']}", "bounds", of) for e, of in results.bounds]
    files.append(("Section 3.1", "classifier", results.classifier))
    facts = [(name, _facts(stage, value, lists)) for name, stage, value in files]
    others = [(name, found) for name, found in facts if found]
    return blocks, others, [(name, json.loads(key)) for key, name in lists.items()]


def newest(results: Results) -> str | None:
    """When the newest result was started, as written in its provenance."""
    times = []
    files = [f for seed in results.scored for f in (seed.metrics, seed.train, seed.timing)]
    for value in [*files, *(of for _, of in results.bounds), results.classifier]:
        started = lookup(value, ("provenance", "started"))
        try:
            times.append((datetime.fromisoformat(started).timestamp(), started))
        except (TypeError, ValueError):
            continue
    return max(times)[1] if times else None


def versions(results: Results) -> list[str]:
    """Distinct code versions of the results: version, short commit, dirty or not."""
    found: dict[str, None] = {}
    codes = [code for run in results.runs.values() for seed in run.seeds for code in seed.codes]
    codes += [code for _, of in results.bounds if (code := lookup(of, ("provenance", "code")))]
    for code in codes:
        commit = str(code.get("commit") or "")[:10]
        text = " ".join(part for part in (str(code.get("version") or ""), commit) if part)
        found.setdefault(text + (" + uncommitted changes" if code.get("dirty") else ""))
    return [text for text in found if text]


def banners(suite: "Suite", results: Results) -> list[str]:
    """What a reader must know before any number."""
    texts = [suite.notice] if suite.notice else []
    subset = [r for r in results.runs.values() if r.subset]
    if subset:
        archives = sorted(
            {
                str(archive.get("name"))
                for result in subset
                for seed in result.counted
                for archive in seed.provenance.get("archives") or []
                if archive.get("subset")
            }
        )
        named = f" ({', '.join(archives)})" if archives else ""
        scored = sum(bool(result.counted) for result in results.runs.values())
        some = "The run" if scored == 1 else f"{len(subset)} of {scored} runs with results"
        some = f"All {scored} runs with results" if 1 < len(subset) == scored else some
        texts.append(
            f"{some} used an incomplete archive, image set or weights file{named}: marked “subset”."
        )
    dirty = sum(
        any(code.get("dirty") for seed in result.seeds for code in seed.codes)
        for result in results.runs.values()
    )
    if dirty:
        runs = "1 run was" if dirty == 1 else f"{dirty} runs were"
        texts.append(f"{runs} made by code with uncommitted changes; the provenance says which.")
    return texts


def examples(book: Book, results: Results, data_dir: Path) -> list[Family]:
    """One family of example segmentations for each table that asks, test set and main label set.

    Where no such table has a run, of the runs that no table names.
    """
    families = []
    asking = [view for view in book.tables if view.table.images and view.runs]
    for view in asking or [view for view in book.tables if view.table.kind == "other"]:
        sets: dict[tuple[str, str, str], list[RunResult]] = {}
        for result in view.runs:
            test = result.run.config["test"]
            key = test["dataset"], test["split"], result.run.labels[0]
            sets.setdefault(key, []).append(result)
        for (dataset, split, task), runs in sets.items():
            title = f"{view.table.short}: {set_name(dataset, split, task)}"
            family = build_family(title, runs, data_dir, results.folder)
            if family:
                families.append(family)
    return families


def _source(result: RunResult) -> str:
    """Whose weights a run has that is not trained."""
    run = result.run
    return ", ".join(run.parents.values()) or run.released or "nobody: as they start"


def _made_by(line: Line) -> list[str]:
    """Test set and images; training sets, images seen; time by device (means over the seeds)."""
    result = line.result
    assert result is not None
    test, sets = result.run.config["test"], result.run.training_sets
    images = result.first("metrics", "images")
    scored = f"scored on {test['dataset']} {test['split']}"
    parts = [scored if images is None else f"{scored}, {_number(images)}\u00a0images"]
    if not sets:
        return [*parts, f"weights of {_source(result)}"]
    seeds = [seed for seed in result.counted or result.seeds if seed.train]
    seen, _ = mean_and_std([v for s in seeds if (v := finite(s.train.get("images"))) is not None])
    trained = "trained on " + " and ".join(f"{of['dataset']} {of['split']}" for of in sets)
    parts.append(trained if seen is None else f"{trained}, {_number(seen)}\u00a0images seen")
    took: dict[str, list[float]] = {}
    for seed in seeds:
        if (seconds := finite(seed.train.get("seconds"))) is not None:
            took.setdefault(seed.device(("train", "seconds")), []).append(seconds)
    for device, times in sorted(took.items()):
        mean, _ = mean_and_std(times)
        parts += [_duration(mean), device] if len(took) == 1 else [f"{_duration(mean)} on {device}"]
    return parts


def environment() -> jinja2.Environment:
    loaded = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    loaded.filters.update(made_by=_made_by)
    return loaded


def build_page(
    suite: "Suite",
    paper: Paper,
    results: Results,
    book: Book,
    claims: list[ClaimView],
    data_dir: Path,
    images: bool,
    departures: str,
) -> tuple[str, list[str]]:
    """The HTML of the whole report, and the problems met on the way.

    ``departures``: the link to docs/deviations.md, empty for none.
    """
    curves = Curves(results.folder)
    banner = banners(suite, results)
    foreign = suite.notice is not None or any(r.subset for r in results.runs.values())
    figures = {
        view.table.id: figure5(view.table, paper, results, curves, foreign)
        for view in book.tables
        if view.table.kind == "figure5"
    }
    training, charted = [], list[set[str]]()
    for view in book.tables:
        drawn = {result.run.id for result in view.runs}
        if view.table.id in figures or any(drawn <= earlier for earlier in charted):
            continue
        charted.append(drawn)
        training += training_charts(view.table.title, view.runs, curves)
    families = examples(book, results, data_dir) if images else []
    blocks, others, packages = provenance(results)
    problems = [*results.problems, *dict.fromkeys(curves.problems)]
    problems += [family.problem for family in families if family.problem]
    tests = [test for view in claims for test in view.tests]
    idle = [view for view in claims if view.verdict == "not run" or not any_decided(claims)]
    page = (
        environment()
        .get_template("report.html.j2")
        .render(
            suite=suite,
            date=newest(results),
            versions=versions(results),
            banners=banner,
            problems=problems,
            claims=claims,
            counts=counts(claims),
            alone=on_one_seed(claims),
            others=others,
            tolerances=list(dict.fromkeys((t.expected, t.test.expect.why) for t in tests)),
            runnable=[view for view in claims if view not in idle],
            idle=idle,
            subset=any(result.subset for result in results.runs.values()),
            anchors={v.table.id: v.table.short for v in book.tables if v.fed},
            draws=DRAWS,
            level=LEVEL,
            fed=[view for view in book.tables if view.fed],
            unfed=[view for view in book.tables if not view.fed and not view.table.ablation],
            unasked=[view for view in book.tables if not view.fed and view.table.ablation],
            figures=figures,
            training=training,
            classes=class_tables(results),
            images=images,
            departures=departures,
            families=families,
            timings=timings(results),
            provenance=blocks,
            packages=packages,
            scored=sum(bool(result.counted) for result in results.runs.values()),
            DASH=DASH,
        )
    )
    return page, problems
