"""The report against a results tree in the real formats: its numbers, holes and promises."""

import base64
import csv
import dataclasses
import gzip
import io
import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

import fcn.report
from fcn.data.labels import ORIENTATION
from fcn.errors import UserError
from fcn.report.averages import METRICS, of_confusion
from fcn.report.charts import Series, line_chart, thin, ticks
from fcn.report.examples import (
    build_family,
    choose,
    label_map,
    per_image_mean_iu,
    photograph,
)
from fcn.report.exports import latex, markdown
from fcn.report.paper import PaperNumber, parse_tables, read_paper
from fcn.report.publish import publish
from fcn.report.results import SeedResult, finite, load_results, mean_and_std
from fcn.report.tables import agrees, number, signed
from fcn.rle import encode_prediction, write_predictions
from fcn.schema import CONFIG, check, read_yaml
from fcn.spec import Row, Run, Suite
from fcn.suites import load_suite

CLASSES = ["background", "aeroplane", "bicycle", "bird"]
SIZES = [(40, 60), (50, 30), (33, 47), (64, 64), (30, 80)]
TABLES = read_yaml(CONFIG / "tables.yaml")
LATEX_COMMANDS = (
    "documentclass usepackage setlength tabcolsep begin end section subsection noindent par "
    "footnotesize textbf textsuperscript textasciicircum textless textgreater textquotedbl toprule "
    "midrule bottomrule endhead addlinespace raggedright arraybackslash pm times ge"
)
CVPR = "CVPR2015 (arXiv 1411.4038v2 = proceedings)"


# ---------------------------------------------------------------- a results tree


def make_run(
    id: str,
    rows: tuple[tuple[str, str], ...] = (),
    seeds: tuple[int, ...] = (0,),
    weights: Any = None,
    note: str | None = None,
    split: str = "seg11valid",
) -> Run:
    config = {
        "run": id,
        "train": {"dataset": "sbd", "split": "train", "definition": "abc"},
        "test": {"dataset": id.split("/")[0], "split": split, "definition": "def"},
        "net": {"architecture": "vgg16", "skips": []},
        "weights": weights or {"backbone": "vgg16-caffe"},
        "input": {"order": "bgr", "mean": [104.0, 117.0, 123.0], "std": [1.0, 1.0, 1.0]},
        "recipe": {"images": 2000, "batch": 20, "learning_rate": 1e-4, "momentum": 0.9},
        "version": 1,
    }
    title = id.split("/")[1]
    return Run(id, title, note, config, tuple(Row(*row) for row in rows), seeds, True)


def make_suite(*runs: Run, notice: str | None = None, bounds: bool = True) -> Suite:
    return Suite(
        name="test",
        path=Path("test.yaml"),
        title="A test & its <suite>",
        notice=notice,
        gpu=False,
        threads=1,
        runs={run.id: run for run in runs},
        bounds=[{"dataset": "voc2011", "split": "seg11valid"}] if bounds else [],
        datasets={},
        backbones={},
        nets={"slim": {"architecture": "alexnet", "hidden": 8}},
        archives={},
        tables=TABLES,
        classifier={"net": "slim", "crop": 131, "image": 419},
    )


def provenance(
    seed: int, day: int = 1, subset: bool = False, dirty: bool = False
) -> dict[str, Any]:
    return {
        "code": {"version": "0.1.0", "commit": "f" * 40, "dirty": dirty},
        "packages": {"torch": "2.15.0", "numpy": "2.4.6"},
        "python": "3.11.9",
        "platform": "Linux",
        "device": {"type": "cuda", "name": "Some GPU", "count": 1, "driver": "555.1"},
        "threads": 4,
        "precision": "fp32",
        "deterministic": False,
        "seed": seed,
        "started": f"2026-02-{day:02d}T10:00:00+00:00",
        "wall_seconds": 3725.5,
        "peak_memory_bytes": 3 * 2**30,
        "archives": [{"name": "VOC.tar", "sha256": "0" * 64, "subset": subset}],
        "command": "python -m fcn train",
    }


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_result(
    results: Path,
    run: Run,
    seed: int,
    scores: tuple[float, float, float, float],
    *,
    config_hash: str | None = None,
    subset: bool = False,
    day: int = 1,
    curve: int = 20,
    timing: bool = True,
    dirty: bool = False,
) -> Path:
    """metrics, train, timing and curves of one run and seed; returns its folder."""
    folder = run.directory(results, seed)
    origin = provenance(seed, day, subset, dirty)
    common = {
        "run": run.id,
        "dataset": run.dataset,
        "seed": seed,
        "config": run.config,
        "config_hash": config_hash or run.hash,
        "provenance": origin,
    }
    keys = ("pixel_accuracy", "mean_accuracy", "mean_iu", "frequency_weighted_iu")
    per_class = dict(zip(CLASSES, [0.9, 0.5 + 0.01 * seed, 0.25, None], strict=True))
    semantic = {
        **dict(zip(keys, scores, strict=True)),
        "per_class_iu": per_class,
    }
    write(
        folder / "metrics.json",
        {
            **common,
            "split": run.split,
            "images": 736,
            "subset": subset,
            "tasks": {"semantic": semantic},
            "seconds": 60.0,
        },
    )
    write(
        folder / "train.json",
        {
            **common,
            "weights_sha256": "1" * 64,
            "updates": curve,
            "images": 2000,
            "seconds": 1234.5,
            "images_per_second": 1.6,
            "loss": 0.4321,
            "peak_memory_bytes": 2**30,
        },
    )
    if timing:
        protocol = {
            "mean_ms": 12.5,
            "median_ms": 12.25,
            "std_ms": 0.5,
            "min_ms": 12.0,
            "max_ms": 14.0,
            "trials": 20,
            "warmup": 5,
            "precision": "fp32",
            "device": "Some GPU",
            "includes_transfer": False,
        }
        write(
            folder / "timing.json",
            {**common, "net": "vgg16", "input": [500, 500], "protocols": {"paper": protocol}},
        )
    updates = np.arange(1, curve + 1)
    lines = [f"{u},{20 * u},{3.5 * u},{1 / u + 0.3},0.0001" for u in updates]
    header = "update,images,seconds,loss,learning_rate"
    (folder / "loss.csv").write_text("\n".join([header, *lines]) + "\n")
    header = "update,images,seconds,pixel_accuracy,mean_accuracy,mean_iu,frequency_weighted_iu"
    lines = [f"{u},{20 * u},{3.5 * u},.8,.5,{0.5 - 0.3 / u},.7" for u in updates[::5]]
    (folder / "validation.csv").write_text("\n".join([header, *lines]) + "\n")
    return folder


def counted(matrix: np.ndarray) -> dict[str, Any]:
    """The four metrics of a confusion matrix, and the matrix."""
    four = {metric: of_confusion(metric, matrix, "all") for metric in METRICS}
    return {**four, "confusion": matrix.tolist()}


def write_dataset(data: Path, name: str = "voc2011") -> dict[str, np.ndarray]:
    """A prepared data set of a few images; returns its label maps."""
    folder = data / "prepared" / name
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    random = np.random.default_rng(0)
    truths, rows = {}, ["id,height,width,image,semantic"]
    for i, (height, width) in enumerate(SIZES):
        id = f"2007_{i:06d}"
        truth = np.zeros((height, width), np.uint8)
        truth[5:20, 5:25] = 1 + i % 3
        truth[22:25] = 255
        truths[id] = truth
        pixels = random.integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"images/{id}.jpg")
        Image.fromarray(truth).save(folder / f"labels/{id}.png")
        rows.append(f"{id},{height},{width},images/{id}.jpg,labels/{id}.png")
    (folder / "index.csv").write_text("\n".join(rows) + "\n")
    write(folder / "dataset.json", {"name": name, "classes": {"semantic": CLASSES}, "void": 255})
    return truths


def write_predictions_of(
    folder: Path, truths: dict[str, np.ndarray], shift: int, task: str = "semantic"
) -> None:
    """Predictions that are the truth rolled by ``shift`` times the image's number, and counts."""
    counts: dict[str, list[Any]] = {"true_positive": [], "truth": [], "predicted": []}
    entries, images = [], []
    matrix = np.zeros((len(CLASSES), len(CLASSES)), np.int64)
    for i, (id, truth) in enumerate(truths.items()):
        predicted = np.roll(np.where(truth == 255, 0, truth), shift * i, axis=1).astype(np.uint8)
        known = truth != 255
        np.add.at(matrix, (truth[known], predicted[known]), 1)
        for values in counts.values():
            values.append([])
        for c in range(len(CLASSES)):
            t, p = (truth == c) & known, (predicted == c) & known
            counts["true_positive"][-1].append((t & p).sum())
            counts["truth"][-1].append(t.sum())
            counts["predicted"][-1].append(p.sum())
        entries += encode_prediction(id, predicted)
        images.append({"id": id, "height": truth.shape[0], "width": truth.shape[1]})
    arrays: dict[str, Any] = {
        f"{task}_{key}": np.array(value, np.int64) for key, value in counts.items()
    }
    np.savez(folder / "per_image.npz", ids=np.array(list(truths)), **arrays)
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["tasks"].setdefault(task, {}).update(counted(matrix))
    write(folder / "metrics.json", metrics)
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES)]
    write_predictions(folder / "predictions.json.gz", entries, images, categories)


def write_bounds(results: Path, methods: dict[str, dict[str, float]]) -> None:
    write(
        results / "voc2011" / "bounds.json",
        {"dataset": "voc2011", "split": "seg11valid", "images": 736, "methods": methods},
    )


def write_config(folder: Path, claims: dict[str, Any] | None = None) -> Path:
    """A config folder with these claims (none) beside the paper's numbers."""
    folder.mkdir()
    for name in ("paper_numbers.csv", "figure5.csv"):
        shutil.copy(CONFIG / name, folder)
    (folder / "server_scores.yaml").write_text("[]")
    tolerances = {"more": {"above": 0, "why": "a direction"}}
    guess = {"points": 0.4, "freedom": 3, "why": "a guess"}
    spread = dict.fromkeys(("training", "family", "stage"), guess)
    write(
        folder / "claims.yaml",
        {"editions": {}, "spread": spread, "tolerances": tolerances, "claims": claims or {}},
    )
    return folder


class Page(HTMLParser):
    """Every tag with its attributes, the text, and the cells of the tables by data-table."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.rows: dict[str, list[list[str]]] = {}
        self.classes: dict[str, list[str]] = {}
        self._table: str | None = None
        self._skip = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append((tag, values))
        if tag == "table":
            self._table = values.get("data-table")
        if self._table and tag == "tr":
            self.rows.setdefault(self._table, []).append([])
            self.classes.setdefault(self._table, []).append(values.get("class") or "")
        if self._table and tag in ("td", "th"):
            self.rows[self._table][-1].append("")
        if tag in ("style", "sup"):
            self._skip += 1

    def handle_endtag(self, tag: str) -> None:
        if tag == "table":
            self._table = None
        if tag in ("style", "sup"):
            self._skip -= 1

    def handle_data(self, data: str) -> None:
        if self._skip:
            return
        self.text += data
        if self._table and self.rows.get(self._table) and self.rows[self._table][-1]:
            self.rows[self._table][-1][-1] += data

    def lines(self, table: str, kind: str) -> list[list[str]]:
        pairs = zip(self.rows.get(table, []), self.classes.get(table, []), strict=True)
        return [[cell.strip() for cell in cells] for cells, name in pairs if name == kind]

    def status(self, table: str, run: str) -> str:
        """The whole line of a run, as text; of a run in several rows, all its lines."""
        found = [
            cells
            for cells in self.lines(table, "ours")
            if any(re.search(rf"{re.escape(run)}(?![\w-])", c) for c in cells)
        ]
        assert found, f"{run} does not stand in {table}"
        return " | ".join(cell for cells in found for cell in cells)


def render(
    suite: Suite, root: Path, images: bool = True, config: Path = CONFIG
) -> tuple[Page, list[dict[str, str]], dict]:
    summary = fcn.report.render(
        suite, root / "results", root / "data", root / "out", images, config
    )
    page = Page((root / "out" / "tables.html").read_text())
    records = list(csv.DictReader(io.StringIO((root / "out" / "tables.csv").read_text())))
    return page, records, summary


# ---------------------------------------------------------------- the paper's side


def test_every_number_of_a_table_of_the_paper_is_read_by_exactly_one_cell():
    paper, seen = read_paper(CONFIG), dict[tuple, str]()
    tables = parse_tables(TABLES)
    for table in tables:
        for read in table.reads if table.kind != "list" else ():
            for row in table.rows:
                for column in table.columns:
                    if printed := paper.printed(read, row, column):
                        key = (read.version, read.table, row.method, column.paper, printed.dataset)
                        assert key not in seen, f"{key} is in {seen[key]} and {table.id}"
                        seen[key] = table.id
    numbers = pd.read_csv(CONFIG / "paper_numbers.csv", dtype=str)
    assert len(numbers) == 388 == sum(len(group) for group in paper.numbers.values())
    in_tables = numbers[
        numbers.table.str.match(r"Table \d( \(App\. B\))?$|Appendix A|Sec\. 6\.3")
        & ~numbers.paper_version.str.startswith("repro")
    ]
    assert len(in_tables) > 250
    for entry in in_tables.itertuples():
        cell = (entry.paper_version, entry.table, entry.method, entry.metric, entry.dataset)
        assert cell in seen, f"no cell of config/tables.yaml reads {cell}"


def test_figure5_series_are_rows_of_the_table():
    paper = read_paper(CONFIG)
    table = next(table for table in parse_tables(TABLES) if table.kind == "figure5")
    assert set(paper.figure5.series) == {row.name for row in table.rows}
    assert len(paper.figure5) == 370


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"colour": "red"}, ": there is no key 'colour' here (did you mean columns?); allowed: a"),
        ({"title": 3}, ".title: 3 is not text"),
        ({"kind": "pie"}, ".kind: 'pie' is not one of numbers, figure5, bounds, other, list"),
        ({"rows": [{"nmae": "a"}]}, ".rows.0: there is no key 'nmae' here (did you mean name?)"),
        ({"rows": [{"net": "a"}]}, ".rows.0: the key 'name' is missing"),
        ({"rows": ["a"]}, ".rows.0: 'a' is not a mapping"),
        ({"reads": [{"version": "v", "table": "t"}]}, ".reads.0: the key 'label' is missing"),
        ({"notes": [{"txt": "x"}]}, ".notes.0: there is no key 'txt' here (did you mean text?)"),
        ({"notes": [{"text": "x", "rows": "FCN-32s"}]}, ".notes.0.rows: 'FCN-32s' is not a list"),
        ({"columns": 3}, ".columns: 3 is not a mapping"),
        (
            {"columns": {"x": {"title": "X", "unit": "%", "papper": "y"}}},
            ".columns.x: there is no key 'papper' here (did you mean paper?); allowed: average",
        ),
        ({"extra": {"x": {"title": "X"}}}, ".extra.x: the key 'unit' is missing"),
        (
            {"columns": {"x": {"title": "X", "unit": "%", "from": "metrics.tasks.a.mean_ui"}}},
            ".columns.x.from: 'metrics.tasks.a.mean_ui' is not of an allowed form",
        ),
    ],
    ids=str,
)
def test_a_broken_table_is_a_sentence(change: dict, expected: str):
    schema = read_yaml(CONFIG / "schemas/tables.yaml")
    with pytest.raises(UserError, match=re.escape(f"tables.yaml: table2{expected}")) as error:
        check({"table2": {**TABLES["table2"], **change}}, schema, CONFIG / "tables.yaml")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"rows": [{"name": "a"}, {"name": "a"}]}, ".rows: two rows are named 'a'; rename one."),
        ({"extra": {"mean_iu": {}}}, ".extra: 'mean_iu' stands in columns too; rename one."),
        (
            {"notes": [{"text": "x", "rows": ["FCN-33s"]}]},
            ".notes.0.rows: no row 'FCN-33s'; did you mean FCN-32s",
        ),
        (
            {"notes": [{"text": "x"}, {"text": "y", "columns": ["mean_ui"]}]},
            ".notes.1.columns: no column 'mean_ui'; did you mean mean_iu",
        ),
    ],
    ids=str,
)
def test_names_of_a_table_that_do_not_fit_are_a_sentence(change: dict, expected: str):
    with pytest.raises(UserError, match=re.escape(f"config/tables.yaml: table2{expected}")):
        parse_tables({"table2": {**TABLES["table2"], "notes": [], **change}})


def test_an_ambiguous_cell_is_a_sentence(tmp_path: Path):
    table = {**TABLES["context"], "rows": [{"name": "FCN-8s"}], "notes": []}
    suite = make_suite()
    with pytest.raises(UserError, match="name the dataset"):
        fcn.report.render(
            replace(suite, tables={"context": table}),
            tmp_path,
            tmp_path,
            tmp_path / "out",
            config=write_config(tmp_path / "config"),
        )


# ---------------------------------------------------------------- small parts


@given(st.lists(st.floats(-1e6, 1e6), min_size=0, max_size=8))
def test_mean_and_sample_deviation_equal_statistics(values: list[float]):
    mean, std = mean_and_std(values)
    if not values:
        assert mean is None and std is None
        return
    assert mean == pytest.approx(statistics.fmean(values), rel=1e-9, abs=1e-6)
    if len(values) == 1:
        assert std is None
    else:
        assert std == pytest.approx(statistics.stdev(values), rel=1e-6, abs=1e-5)


@given(st.floats(-1e4, 1e4), st.integers(0, 3))
def test_shown_numbers_read_back_within_half_a_digit(value: float, digits: int):
    for text in (number(value, digits), signed(value, digits)):
        back = float(text.replace("−", "-").replace("\u202f", ""))
        assert abs(back - value) <= 0.5 * 10**-digits + 1e-9
        assert back != 0 or not text.startswith(("−", "+"))


def test_a_value_agrees_at_the_printed_precision():
    printed = [
        PaperNumber("", "", "", "", "", "", text, "", "", "") for text in ("57", "56.0", "0.99")
    ]
    assert agrees(56.954, printed[0]) and not agrees(56.4, printed[0])
    assert agrees(55.96, printed[1]) and not agrees(55.94, printed[1])
    assert agrees(0.99, printed[2])


def test_no_sign_that_the_pages_use_is_lost_in_latex():
    signs = {
        c
        for path in (CONFIG.parent / "reports/published").rglob("tables.md")
        for c in path.read_text()
    }
    lost = {sign for sign in signs - {"?"} if "?" in latex(sign)}
    assert "“" in signs and not lost


@given(st.text())
def test_latex_is_ascii_and_escapes_every_special(text: str):
    out = latex(text)
    assert out.isascii() and "\n" not in out
    bare = re.sub(r"\\[a-zA-Z]+\{\}|\\[{}&%$#_]|\$\\?[a-z]*-?\$", "", out)
    assert not set(bare) & set("\\{}&%$#_~^")


@given(st.text(alphabet="ab|*_`\\[]<>\n "))
def test_markdown_cells_cannot_break_a_table(text: str):
    out = markdown(text)
    assert "\n" not in out
    assert not re.search(r"(?<!\\)(\\\\)*[|*_`<>]", out)


@given(st.integers(1, 2000), st.integers(1, 300))
def test_thinning_keeps_the_mean_and_the_order(n: int, points: int):
    x = np.arange(n, dtype=float)
    tx, ty = thin(x, 2 * x, points)
    assert len(tx) == min(n, points) and np.all(np.diff(tx) > 0)
    np.testing.assert_allclose(ty, 2 * tx)
    assert x[0] <= tx[0] and tx[-1] <= x[-1]
    if n % points == 0:
        assert tx.mean() == pytest.approx(x.mean())


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_are_few_even_and_inside(low: float, span: float):
    values = ticks(low, low + span)
    assert 2 <= len(values) <= 12
    assert low - 1e-6 * span <= values[0] and values[-1] <= low + span * (1 + 1e-6)
    assert np.allclose(np.diff(values), values[1] - values[0], rtol=1e-3)


def test_a_chart_escapes_names_and_is_well_formed():
    import xml.etree.ElementTree as ET

    line = Series("<a & b>", np.array([0.0, 1.0]), np.array([1.0, 0.5]), 0)
    dot = Series("one", np.array([0.5]), np.array([0.7]), 1)
    root = ET.fromstring(line_chart([line, dot], "x < y", "loss"))
    assert [title.text for title in root.iter("title")] == ["<a & b>", "one"]
    assert len(list(root.iter("circle"))) == 1


@given(st.data())
def test_counts_that_break_off_are_one_sentence(tmp_path_factory, data: Any):
    path = tmp_path_factory.mktemp("counts") / "per_image.npz"
    ones = np.ones((3, 2), int)
    np.savez_compressed(
        path,
        ids=np.array(list("abc")),
        semantic_true_positive=ones,
        semantic_truth=ones,
        semantic_predicted=ones,
    )
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(UserError, match=r"per_image\.npz: cannot be read"):
        per_image_mean_iu(path, "semantic")


def test_per_image_mean_iu_against_a_plain_loop(tmp_path: Path):
    random = np.random.default_rng(1)
    truth = random.integers(0, 50, (6, 4))
    predicted = random.integers(0, 50, (6, 4))
    hit = np.minimum(truth, predicted)
    truth[3] = predicted[3] = hit[3] = 0
    truth[4, 2] = predicted[4, 2] = hit[4, 2] = 0
    np.savez(
        tmp_path / "p.npz",
        ids=np.array(list("abcdef")),
        semantic_true_positive=hit,
        semantic_truth=truth,
        semantic_predicted=predicted,
    )
    ids, scores = per_image_mean_iu(tmp_path / "p.npz", "semantic")
    assert ids == list("abcdef")
    for i in range(6):
        ius = [
            hit[i, c] / (truth[i, c] + predicted[i, c] - hit[i, c])
            for c in range(4)
            if truth[i, c] + predicted[i, c] > 0
        ]
        assert math.isnan(scores[i]) if not ius else scores[i] == pytest.approx(np.mean(ius))


@given(st.lists(st.floats(0, 1) | st.just(math.nan), max_size=30), st.randoms())
def test_the_choice_of_images_is_the_nearest_and_ignores_order(scores: list[float], random: Any):
    ids = [f"{i:03d}" for i in range(len(scores))]
    chosen = choose(ids, np.array(scores))
    known = {id: s for id, s in zip(ids, scores, strict=True) if not math.isnan(s)}
    assert len(chosen) == min(3, len(known)) == len({id for _, id in chosen})
    for i, (percentile, id) in enumerate(chosen):
        goal = np.percentile(list(known.values()), percentile)
        others = set(known) - {other for _, other in chosen[:i]}
        assert abs(known[id] - goal) == min(abs(known[other] - goal) for other in others)
    mixed = list(zip(ids, scores, strict=True))
    random.shuffle(mixed)
    assert chosen == choose([id for id, _ in mixed], np.array([s for _, s in mixed]))


# ---------------------------------------------------------------- the whole report


def test_numbers_in_csv_and_page_equal_an_independent_computation(tmp_path: Path):
    run = make_run("voc2011/fcn32s", (("table2", "FCN-32s"),), seeds=(0, 1, 2))
    scores = {
        0: (0.8912, 0.7331, 0.594321, 0.8144),
        1: (0.8899, 0.7313, 0.601234, 0.8101),
        2: (0.9, 0.74, 0.5771, 0.82),
    }
    for seed, four in scores.items():
        write_result(tmp_path / "results", run, seed, four, day=1 + seed)
    page, records, summary = render(make_suite(run), tmp_path)
    assert summary["scored"] == 1 and summary["problems"] == []
    names = {
        "pixel_accuracy": "pixel acc.",
        "mean_accuracy": "mean acc.",
        "mean_iu": "mean IU",
        "frequency_weighted_iu": "f.w. IU",
    }
    paper = pd.read_csv(CONFIG / "paper_numbers.csv", dtype=str)
    shown = next(line for line in page.lines("table2", "ours") if any(run.id in c for c in line))
    minus = page.lines("table2", "difference")[0]
    for i, (key, name) in enumerate(names.items()):
        values = [100 * scores[seed][i] for seed in scores]
        mean, std = statistics.fmean(values), statistics.stdev(values)
        printed = paper[
            (paper.paper_version == CVPR)
            & (paper.table == "Table 2")
            & (paper.method == "FCN-32s")
            & (paper.metric == name)
        ].value.item()
        (record,) = [
            r
            for r in records
            if r["table"] == "table2" and r["row"] == "FCN-32s" and r["metric"] == key
        ]
        assert float(record["ours_mean"]) == pytest.approx(mean, abs=1e-11)
        assert float(record["ours_std"]) == pytest.approx(std, abs=1e-11)
        assert float(record["difference"]) == pytest.approx(mean - float(printed), abs=1e-11)
        assert record["paper"] == printed and record["paper_version"] == CVPR
        assert (record["seeds"], record["n_seeds"], record["status"]) == ("0 1 2", "3", "done")
        assert record["config_hash"] == run.hash and record["run"] == run.id
        assert (record["dataset"], record["split"]) == ("voc2011", "seg11valid")
        assert f"{mean:.1f} ± {std:.1f}" in shown
        assert f"{mean - float(printed):+.1f}".replace("-", "−") in minus
    assert "n = 3" in " ".join(shown) and "736\u00a0images" in " ".join(shown)
    assert "2\u202f000\u00a0images seen" in " ".join(shown) and "21\u00a0min" in " ".join(shown)
    assert "Some GPU" in " ".join(shown)
    assert f"snakemake --cores all --config suite=test -- {run.target(0)}" in page.text
    assert "2026-02-03T10:00:00+00:00" in page.text


def test_every_paper_number_of_table_2_stands_in_its_cell(tmp_path: Path):
    page, _, _ = render(make_suite(), tmp_path)
    paper = pd.read_csv(CONFIG / "paper_numbers.csv", dtype=str)
    paper = paper[(paper.paper_version == CVPR) & (paper.table == "Table 2")]
    metrics = ["pixel acc.", "mean acc.", "mean IU", "f.w. IU"]
    lines = page.lines("table2", "paper")
    assert [line[0] for line in lines] == list(dict.fromkeys(paper.method))
    for line in lines:
        expected = paper[paper.method == line[0]].set_index("metric").value[metrics].tolist()
        assert line[1] == "CVPR 2015" and line[2:6] == expected


def test_one_seed_has_no_spread_and_says_so(tmp_path: Path):
    run = make_run("voc2011/fcn16s", (("table2", "FCN-16s"),))
    write_result(tmp_path / "results", run, 0, (0.9, 0.75, 0.62, 0.83))
    page, records, _ = render(make_suite(run), tmp_path)
    line = page.status("table2", run.id)
    assert "n = 1" in line and "62.0" in line and "±" not in line
    assert {r["ours_std"] for r in records if r["run"] == run.id} == {""}


def test_times_of_two_devices_make_no_mean(tmp_path: Path):
    run = make_run("voc2011/dense", (("dense_fc6", "fc6 14x14"),), (0, 1, 2))
    for seed, (device, rate, seconds) in enumerate(
        [("B", 90.0, 20), ("A", 4.0, 600), ("A", 6.0, 400)]
    ):
        folder = write_result(tmp_path / "results", run, seed, (0.5 + seed / 10,) * 4)
        train = json.loads((folder / "train.json").read_text())
        train["provenance"]["device"]["name"] = device
        write(folder / "train.json", {**train, "images_per_second": rate, "seconds": seconds})
    page, records, _ = render(make_suite(run), tmp_path)
    of_run = {r["metric"]: r for r in records if r["row"] == "fc6 14x14"}
    assert float(of_run["images_per_second"]["ours_mean"]) == 5.0
    assert of_run["images_per_second"]["n_seeds"] == "2"
    assert float(of_run["mean_iu"]["ours_mean"]) == pytest.approx(60)  # of all three
    text = " ".join(page.text.split())
    assert "8.3 min on A" in text and "20 s on B" in text


def test_holes_have_their_reason(tmp_path: Path):
    results = tmp_path / "results"
    runs = {
        "missing": make_run("voc2011/missing", (("table2", "FCN-32s"),)),
        "failed": make_run("voc2011/failed", (("table2", "FCN-16s"),)),
        "broken": make_run("voc2011/broken", (("table2", "FCN-8s"),)),
        "partial": make_run("voc2011/partial", (("table2", "FCN-32s-fixed"),), seeds=(0, 1, 2)),
        "stale": make_run("voc2011/stale", (("pami_table3", "FCN-32s"),)),
        "shape": make_run("voc2011/shape", (("pami_table3", "FCN-16s"),)),
        "trained": make_run("voc2011/trained", (("pami_table3", "FCN-pool3"),)),
        "mixed": make_run("voc2011/mixed", (("pami_table3", "FCN-pool4"),), seeds=(0, 1)),
    }
    log = tmp_path / "logs" / "train" / "voc2011" / "failed" / "seed0.log"
    log.parent.mkdir(parents=True)
    log.write_text("out of memory")
    broken = write_result(results, runs["broken"], 0, (0.9, 0.7, 0.6, 0.8))
    (broken / "metrics.json").write_text('{"tasks": ')
    write_result(results, runs["partial"], 0, (0.8, 0.6, 0.45, 0.7))
    write_result(results, runs["stale"], 0, (0.9, 0.7, 0.61, 0.8), config_hash="0123456789ab")
    shape = write_result(results, runs["shape"], 0, (0.9, 0.7, 0.6, 0.8))
    write(shape / "metrics.json", {"tasks": [], "config_hash": "x", "images": 3})
    trained = write_result(results, runs["trained"], 0, (0.9, 0.7, 0.6, 0.8))
    (trained / "metrics.json").unlink()
    old = tmp_path / "logs" / "train" / "voc2011" / "trained" / "seed0.log"
    old.parent.mkdir(parents=True)
    old.write_text("trained well")
    os.utime(old, (1e9, 1e9))
    write_result(results, runs["mixed"], 0, (0.9, 0.7, 0.2, 0.8), config_hash="0123456789ab")
    write_result(results, runs["mixed"], 1, (0.9, 0.7, 0.25, 0.8))
    page, records, summary = render(make_suite(*runs.values()), tmp_path)

    assert "not run" in page.status("table2", "voc2011/missing")
    assert "failed: see log logs/train/voc2011/failed/seed0.log" in page.status(
        "table2", "voc2011/failed"
    )
    line = page.status("table2", "voc2011/broken")
    assert "results/voc2011/broken/seed0/metrics.json: not valid JSON" in line
    assert str(tmp_path) not in page.text
    assert "1 of 3 seeds: 0" in page.status("table2", "voc2011/partial")
    line = page.status("pami_table3", "voc2011/stale")
    assert "from an earlier configuration" in line and "61.0" in line and "stale" in line
    assert "tasks is missing or not a dict" in page.status("pami_table3", "voc2011/shape")
    assert "trained, not evaluated" in page.status("pami_table3", "voc2011/trained")
    line = page.status("pami_table3", "voc2011/mixed")
    assert "25.0" in line and "1 of 2 seeds: 1" in line, "a stale seed must not enter the mean"
    assert summary["stale"] == 1 and len(summary["problems"]) == 2
    by_run = {r["run"]: r for r in records if r["metric"] == "mean_iu"}
    assert by_run["voc2011/stale"]["config_hash"] == "0123456789ab"
    assert by_run["voc2011/stale"]["ours_mean"] and not by_run["voc2011/stale"]["difference"]
    assert by_run["voc2011/mixed"]["difference"]
    assert len(page.lines("pami_table3", "difference")) == 1, "of the current run alone"
    assert by_run["voc2011/missing"]["status"] == "not run"
    assert by_run["voc2011/missing"]["ours_mean"] == ""
    assert by_run["voc2011/mixed"]["seeds"] == "1"


@pytest.mark.parametrize("name", ["metrics.json", "train.json", "timing.json"])
@pytest.mark.parametrize("bad", [None, "x", -1, [], {}])
def test_any_value_of_another_form_leaves_the_report_standing(
    tmp_path: Path, name: str, bad: object
):
    """Each key of a record in turn, those of its provenance too, in a run of its own."""
    model = write_result(tmp_path, make_run("voc2011/model", ()), 0, (0.9, 0.7, 0.6, 0.8))
    record = json.loads((model / name).read_text())
    record |= {"notes": ["a"], "random_layers": ["b"], "trained_on": []}
    places: list[tuple[str, ...]] = [(key,) for key in record]
    places += [("provenance", key) for key in record.get("provenance", {})]
    runs = [make_run(f"voc2011/r{i}", (("table2", "FCN-32s"),)) for i in range(len(places))]
    for place, run in zip(places, runs, strict=True):
        folder = write_result(tmp_path / "results", run, 0, (0.9, 0.7, 0.6, 0.8))
        changed = json.loads(json.dumps(record)) | {"config_hash": run.hash}
        into = changed if len(place) == 1 else changed["provenance"]
        into[place[-1]] = bad
        write(folder / name, changed)
    page, _, _ = render(make_suite(*runs), tmp_path)
    assert all(page.status("table2", run.id) for run in runs)


@pytest.mark.parametrize("name", ["loss.csv", "validation.csv", "train.json", "timing.json"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"[1, 2]", b"update,images\n1"])
def test_any_broken_file_leaves_the_report_standing(tmp_path: Path, name: str, content: bytes):
    run = make_run("voc2011/fcn32s", (("table2", "FCN-32s"),))
    folder = write_result(tmp_path / "results", run, 0, (0.9, 0.7, 0.5933, 0.8))
    (folder / name).write_bytes(content)
    page, _, summary = render(make_suite(run), tmp_path)
    assert "59.3" in page.status("table2", run.id)
    assert len(summary["problems"]) == 1
    assert f"results/voc2011/fcn32s/seed0/{name}" in summary["problems"][0]
    assert summary["problems"][0].split(":")[0] in page.text


def positions(value: Any, path: tuple = ()) -> list[tuple]:
    """Every place in a JSON value, lists by their first entry."""
    inner: list[tuple[Any, Any]] = list(value.items()) if isinstance(value, dict) else []
    inner += enumerate(value[:1]) if isinstance(value, list) else ()
    return [path, *(p for key, part in inner for p in positions(part, (*path, key)))]


def a_test(measure: str, **values: Any) -> dict[str, Any]:
    return {"what": measure, "measure": measure, "values": values, "expect": "more"}


EVERY_KIND = {
    "one-of-each": {
        "section": "4",
        "claim": "a claim that reads every kind of file",
        "tests": [
            a_test("a", a={"table": "table2", "row": "FCN-32s"}),
            a_test("a", a={"table": "table1", "row": "FCN-VGG16", "column": "forward_ms"}),
            a_test("a", a={"table": "table1", "row": "FCN-VGG16", "from": "train.seconds"}),
            a_test("a", a={"table": "table1", "row": "FCN-VGG16", "from": "architecture.gflop"}),
            a_test("a", a={"table": "figure5", "row": "full images", "loss": [0.5, 1]}),
            a_test("a", a={"bounds": "128"}),
            a_test("a", a={"bounds": "distance"}),
        ],
    }
}


@settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
@given(st.data())
def test_a_wrong_value_anywhere_leaves_the_report_standing(data: Any):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        rows = (("table2", "FCN-32s"), ("table1", "FCN-VGG16"), ("figure5", "full images"))
        run, other = make_run("voc2011/fcn32s", rows), make_run("voc2011/fcn16s", rows)
        result = write_result(root / "results", run, 0, (0.9, 0.7, 0.6, 0.8))
        write_result(root / "results", other, 0, (0.9, 0.7, 0.4321, 0.8))
        write_bounds(root / "results", {"nearest": {"128": 0.5}})
        nets = {"voc-fcn32s": {"parameters": 3, "receptive_field_note": "x"}}
        write(root / "results" / "architecture.json", {"nets": nets})
        path = data.draw(
            st.sampled_from(
                [
                    *(result / f"{name}.json" for name in ("metrics", "train", "timing")),
                    root / "results" / "voc2011" / "bounds.json",
                    root / "results" / "architecture.json",
                ]
            )
        )
        value = json.loads(path.read_text())
        place = data.draw(st.sampled_from(positions(value)))
        wrong = data.draw(st.sampled_from([None, "x", [], [1], 3, -1e300, {"a": 1}, True]))
        inner = value
        for key in place[:-1]:
            inner = inner[key]
        if place:
            inner[place[-1]] = wrong
        write(path, value if place else wrong)
        suite = make_suite(run, other)
        names = ("table1", "table2", "figure5", "bounds")
        suite = replace(suite, tables={name: TABLES[name] for name in names})
        page, _, _ = render(suite, root, config=write_config(root / "config", EVERY_KIND))
        assert "43.2" in page.status("table2", other.id)


def test_files_of_different_configurations_are_named(tmp_path: Path):
    run = make_run("voc2011/fcn32s", (("table2", "FCN-32s"),))
    folder = write_result(tmp_path / "results", run, 0, (0.9, 0.7, 0.5933, 0.8))
    train = json.loads((folder / "train.json").read_text())
    write(folder / "train.json", {**train, "config_hash": "0123456789ab"})
    page, _, summary = render(make_suite(run), tmp_path)
    assert len(summary["problems"]) == 1
    assert "train.json: made under another configuration" in page.text
    timing = json.loads((folder / "timing.json").read_text())
    for timed, problems in ((run.timed, 1), ("0123456789ab", 2)):
        write(folder / "timing.json", {**timing, "timed": timed})
        found = load_results(make_suite(run), tmp_path / "results", []).problems
        assert ["timing.json" in text for text in found] == [False, True][:problems]


@pytest.mark.parametrize("value", [True, None, "1", [1], math.nan, math.inf, -math.inf])
def test_what_is_no_finite_number_is_none(value: Any):
    assert finite(value) is None
    assert (finite(3), finite(0.5)) == (3.0, 0.5)


@pytest.mark.parametrize("suite", sorted((CONFIG / "suites").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_suite_renders_before_anything_has_run(suite: Path, tmp_path: Path):
    loaded = load_suite(suite.stem)
    page, records, summary = render(loaded, tmp_path)
    assert summary["scored"] == 0 and summary["problems"] == []
    assert loaded.title in page.text
    for run in loaded.runs.values():
        for row in run.rows:
            assert "not run" in page.status(row.table, run.id)
    assert {r["run"] for r in records if r["run"]} == set(loaded.runs)


@pytest.mark.parametrize("name", ["per_image.npz", "predictions.json.gz", "index.csv", "image"])
def test_broken_predictions_are_named(tmp_path: Path, name: str):
    run = make_run("voc2011/fcn32s", (("table2", "FCN-32s"),))
    folder = write_result(tmp_path / "results", run, 0, (0.9, 0.7, 0.5933, 0.8))
    write_predictions_of(folder, write_dataset(tmp_path / "data"), 2)
    prepared = tmp_path / "data" / "prepared" / "voc2011"
    if name == "index.csv":
        (prepared / name).unlink()
    elif name == "image":
        for path in (prepared / "images").iterdir():
            path.write_bytes(b"no JPEG")
    else:
        (folder / name).write_bytes(gzip.compress(b"{")[:-4])
    page, _, summary = render(make_suite(run), tmp_path)
    assert summary["problems"]
    for problem in summary["problems"]:
        assert ("images" if name in ("index.csv", "image") else name) in problem
    assert str(tmp_path) not in page.text


def test_a_suite_on_other_data_subtracts_nothing(tmp_path: Path):
    run = make_run("scenes/a", (("table2", "FCN-32s"),))
    write_result(tmp_path / "results", run, 0, (0.9, 0.7, 0.6, 0.8))
    write_bounds(tmp_path / "results", {"nearest": {"128": 0.5}})
    suite = dataclasses.replace(make_suite(run), compare=False)
    page, records, _ = render(suite, tmp_path)
    assert any(r["ours_mean"] for r in records if r["table"] == "bounds")
    assert all(r["difference"] == "" for r in records)
    assert not page.lines("table2", "difference")
    _, records, _ = render(make_suite(run), tmp_path)
    assert any(r["difference"] for r in records)


def test_subset_notice_and_dirty_are_on_the_face(tmp_path: Path):
    run = make_run("voc2011/fcn32s", (("table2", "FCN-32s"),), note="a choice of ours")
    write_result(tmp_path / "results", run, 0, (0.9, 0.7, 0.6, 0.8), subset=True, dirty=True)
    page, _, _ = render(make_suite(run, notice="Not the paper's numbers."), tmp_path)
    assert "Not the paper's numbers." in page.text
    assert "The run used an incomplete archive" in page.text and "VOC.tar" in page.text
    assert "1 run was made by code with uncommitted changes" in page.text
    assert "subset" in page.status("table2", run.id)
    assert "a choice of ours" in page.status("table2", run.id)
    plain, _, _ = render(make_suite(run), tmp_path / "other")
    assert "incomplete archive" not in plain.text


def test_a_line_names_every_training_set(tmp_path: Path):
    run = make_run("voc2012/fcn32s", (("table2", "FCN-32s"),))
    first = {"dataset": "voc2012", "split": "rest", "definition": "abc"}
    also = [{"dataset": "sbd", "split": "train", "definition": "def"}]
    both = replace(run, config={**run.config, "train": first, "also_train": also})
    write_result(tmp_path / "results", both, 0, (0.9, 0.7, 0.6, 0.8))
    page, _, _ = render(make_suite(both), tmp_path)
    line = page.status("table2", both.id)
    assert "trained on voc2012 rest and sbd train, 2\u202f000\u00a0images seen" in line
    untrained = replace(run, config={**run.config, "train": None})
    page, _, _ = render(make_suite(untrained), tmp_path)
    assert "weights of nobody" in page.status("table2", run.id)


def test_several_runs_of_a_row_extra_rows_and_other_runs(tmp_path: Path):
    runs = [
        make_run("voc2011/fcn32s", (("table2", "FCN-32s"), ("pami_table3", "FCN-32s"))),
        make_run("voc2012/fcn32s", (("table2", "FCN-32s"),)),
        make_run("voc2011/max", (("table2", "FCN-16s with maxima"),)),
        make_run("camvid/own"),
    ]
    for run in runs:
        write_result(tmp_path / "results", run, 0, (0.9, 0.7, 0.6, 0.8))
    page, records, _ = render(make_suite(*runs), tmp_path)
    for run in runs[:3]:
        assert "60.0" in page.status("table2", run.id)
    assert "60.0" in page.status("pami_table3", "voc2011/fcn32s")
    assert "FCN-16s with maxima not in the paper" in " ".join(page.status("table2", "max").split())
    assert "60.0" in page.status("other", "camvid/own")
    pair = [
        r["dataset"]
        for r in records
        if r["table"] == "table2" and r["row"] == "FCN-32s" and r["metric"] == "mean_iu"
    ]
    assert pair == ["voc2011", "voc2012"]
    assert "no run in this suite" in " ".join(map(" ".join, page.lines("table4", "ours")))


def test_table_1_columns_that_need_no_training(tmp_path: Path):
    nets = {
        "voc-fcn-alexnet": {
            "parameters": 56954261,
            "conv_layers": 8,
            "receptive_field": 355,
            "receptive_field_note": None,
            "max_stride": 32,
        },
        "voc-fcn-googlenet": {
            "parameters": 5995077,
            "conv_layers": 22,
            "receptive_field": 715,
            "receptive_field_note": "907 with the average pool",
            "max_stride": 32,
        },
    }
    write(tmp_path / "results" / "architecture.json", {"nets": nets})
    run = make_run("voc2011/alexnet", (("table1", "FCN-AlexNet"),))
    write_result(tmp_path / "results", run, 0, (0.9, 0.7, 0.398, 0.8))
    page, records, _ = render(make_suite(run), tmp_path)
    alexnet, vgg, googlenet = page.lines("table1", "computed")
    assert alexnet[3:7] == ["8", "57.0", "355", "32"] and "agrees" in alexnet[-1]
    assert "no net voc-fcn32s" in vgg[-1]
    assert "differs from the paper: receptive field" in googlenet[-1]
    assert "907 with the average pool" in googlenet[-1]
    found = {
        (r["row"], r["metric"], r["paper_version"]): r for r in records if r["table"] == "table1"
    }
    record = found["FCN-GoogLeNet", "receptive_field", CVPR]
    assert float(record["difference"]) == 715 - 907
    record = found["FCN-AlexNet", "forward_ms", "PAMI 2016/2017"]
    assert (record["paper"], record["ours_mean"], record["difference"]) == ("16", "12.5", "")
    line = page.status("table1", run.id)
    assert "12.5Some GPU" in line
    times = [line for line in page.lines("table1", "paper") if "Tesla K40c" in " ".join(line)]
    assert len(times) == 3


@pytest.mark.parametrize("value", [0.41, None, math.nan, "0.5"])
def test_a_metric_that_is_not_that_of_its_confusion_matrix_is_no_result(tmp_path: Path, value: Any):
    run = make_run("voc2011/fcn32s", (("table2", "FCN-32s"),))
    folder = write_result(tmp_path / "results", run, 0, (0.8, 0.6, 0.5, 0.7))
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["tasks"]["semantic"] |= counted(np.array([[50, 10], [4, 30]]))
    write(folder / "metrics.json", metrics)
    results = load_results(make_suite(run), tmp_path / "results", [])
    assert results.problems == [] and results.runs[run.id].counted
    metrics["tasks"]["semantic"]["mean_iu"] = value
    (folder / "metrics.json").write_text(json.dumps(metrics))
    results = load_results(make_suite(run), tmp_path / "results", [])
    assert results.problems == [
        "results/voc2011/fcn32s/seed0/metrics.json: mean_iu of semantic is not that of its "
        "confusion matrix; make it again."
    ]
    assert not results.runs[run.id].counted and results.runs[run.id].status.kind == "broken"


def test_a_score_of_other_weights_than_the_present_ones_is_none(tmp_path: Path):
    """Trained again, not scored again: the old number must not stand beside the new curve."""
    run = make_run("voc2011/fcn32s", (("table2", "FCN-32s"),))
    folder = write_result(tmp_path / "results", run, 0, (0.8, 0.6, 0.5, 0.7))
    metrics = json.loads((folder / "metrics.json").read_text())
    for digest, found in (("1" * 64, True), ("2" * 64, False)):
        write(folder / "metrics.json", {**metrics, "weights_sha256": digest})
        results = load_results(make_suite(run), tmp_path / "results", [])
        assert bool(results.runs[run.id].counted) == found
    assert results.problems == [
        "results/voc2011/fcn32s/seed0/metrics.json: scored other weights than train.json has; "
        "evaluate again."
    ]
    assert results.runs[run.id].status.text == "trained, not evaluated"


def test_other_averages_stand_beside_the_first(tmp_path: Path):
    """A third class is predicted and not in the truth: 30 of 33 on SIFT Flow, in small."""
    confusion = [[50, 10, 5], [4, 30, 1], [0, 0, 0]]
    first, second = 50 / 69, 30 / 45
    expected = {
        ("pami_table6", "FCN-8s (two-head)"): {
            "mean_iu": (first + second) / 2,
            "mean_iu_all": (first + second + 0) / 3,
        },
        ("context", "FCN-8s"): {
            "mean_iu": (first + second + 0) / 3,
            "mean_iu_without_background": (second + 0) / 2,
        },
        ("pami_table8", "Reference"): {
            "mean_iu_without_background": (second + 0) / 2,
            "mean_iu_objects": (30 / 35 + 0) / 2,
        },
    }
    run = make_run("voc2011/any", tuple(expected))
    folder = write_result(tmp_path / "results", run, 0, (0.8, 0.6, 0.5, 0.7))
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["tasks"]["semantic"] |= counted(np.array(confusion))
    write(folder / "metrics.json", metrics)
    page, records, _ = render(make_suite(run), tmp_path)
    for (table, row), columns in expected.items():
        found = {r["metric"]: r for r in records if (r["table"], r["row"]) == (table, row)}
        for column, value in columns.items():
            assert float(found[column]["ours_mean"]) == pytest.approx(100 * value)
            assert f"{100 * value:.1f}" in page.status(table, run.id)
    record = next(r for r in records if r["metric"] == "mean_iu_all")
    assert (record["paper"], record["difference"]) == ("", "")


def test_scores_of_the_server_stand_beside_the_papers(tmp_path: Path):
    entry = {"table": "pami_table4", "row": "FCN-8s", "voc2012_test": 66.9, "run": "voc2011/fcn8s"}
    config = write_config(tmp_path / "config")
    (config / "server_scores.yaml").write_text(
        json.dumps([{**entry, "seed": 0, "date": "2026-03-01", "note": "anonymous result 17"}])
    )
    page, records, _ = render(make_suite(), tmp_path, config=config)
    (line,) = page.lines("pami_table4", "ours")
    assert "voc2011/fcn8s, seed 0" in line and "66.9" in line
    assert "anonymous result 17" in line[-1] and "2026-03-01" in line[-1]
    assert "−0.3" in page.lines("pami_table4", "difference")[0]
    (record,) = [r for r in records if r["status"].startswith("server")]
    assert float(record["difference"]) == pytest.approx(66.9 - 67.2)
    assert "no run in this suite" in page.lines("table3", "ours")[0][-1]


def test_section_31_is_filled_from_its_own_file(tmp_path: Path):
    times = {"forward_ms": 21.9, "per_crop_batched_ms": 1.25, "per_crop_single_backward_ms": 9.0}
    write(tmp_path / "results" / "classifier.json", {**times, "device": "cuda"})
    page, records, _ = render(make_suite(), tmp_path)
    batched, alone, whole = page.lines("section31", "ours")
    assert "1.2" in batched and "9.0" in alone and "21.9" in whole and "cuda" in whole[-1]
    ours = {(r["row"], r["metric"]): r["ours_mean"] for r in records if r["table"] == "section31"}
    assert ours["the whole image", "forward_ms"] == "21.9"
    assert ours["one patch, in a batch", "backward_ms"] == ""


@pytest.mark.parametrize("key", ["net", "crop", "image", "config"])
def test_times_of_another_suites_classifier_are_left_out(tmp_path: Path, key: str):
    suite = make_suite()
    assert suite.classifier
    path = tmp_path / "results" / "classifier.json"
    own = {**suite.classifier, "config": suite.resolved_net("slim"), "forward_ms": 21.9}
    write(path, own)
    assert load_results(suite, path.parent, []).classifier == own
    others = {"net": "wide", "crop": 227, "image": 500, "config": {**own["config"], "hidden": 9}}
    write(path, {**own, key: others[key]})
    page, records, summary = render(suite, tmp_path)
    assert summary["problems"] == [
        f"results/classifier.json: its {key} is not that of this suite, so it is left out; make it "
        f"again with {suite.command} classifier."
    ]
    assert summary["problems"][0] in page.text
    assert all("not run" in line[-1] for line in page.lines("section31", "ours"))
    assert not any(r["ours_mean"] for r in records if r["table"] == "section31")


def test_a_suite_without_a_classifier_has_no_times_of_one(tmp_path: Path):
    write(tmp_path / "results" / "classifier.json", {"forward_ms": 21.9, "net": "slim"})
    write_bounds(tmp_path / "results", {"nearest": {"128": 0.5}})
    suite = replace(make_suite(), classifier=None)
    found = load_results(suite, tmp_path / "results", [])
    assert (found.classifier, found.problems) == ({}, [])
    files = publish(suite, tmp_path / "results", tmp_path / "data", tmp_path / "record")
    assert "results/classifier.json" not in files


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        ("train:   0%|   | 0/9\rtrain:  41%|####  | 4/9 [00:09<00:03]", "running, or stopped"),
        ("", "running, or stopped"),
        ("train: 41%|####  | 4/9\nTraceback (most recent call last):\nOSError: x", "failed: see"),
        ("train: 41%|####  | 4/9\ndata/x.png: no such file.", "failed: see"),
    ],
)
def test_a_run_in_progress_is_no_failure(tmp_path: Path, log: str, expected: str):
    run = make_run("voc2011/fcn32s", (("table2", "FCN-32s"),))
    path = tmp_path / "logs" / "train" / run.id / "seed0.log"
    path.parent.mkdir(parents=True)
    path.write_text(log)
    page, _, _ = render(make_suite(run), tmp_path)
    line = page.status("table2", run.id)
    assert expected in line and f"logs/train/{run.id}/seed0.log" in line
    assert ("failed" in line) == expected.startswith("failed")


def test_what_no_run_names_is_folded_or_a_line(tmp_path: Path):
    run = make_run("voc2011/sum", (("skip_fusion", "sum"),))
    write_result(tmp_path / "results", run, 0, (0.9, 0.7, 0.6, 0.8))
    page, _, _ = render(make_suite(run, bounds=False), tmp_path)
    ids = {attrs.get("id"): tag for tag, attrs in page.tags if "id" in attrs}
    assert ids["skip_fusion"] == "section" and ids["table1"] == "details"
    assert "dropout" not in ids and "Ablations that no run here makes:" in page.text
    assert "60.0" in page.status("skip_fusion", run.id)


def test_bounds_say_which_method_fits_all_six(tmp_path: Path):
    paper = {"128": 0.50949, "64": 0.7331, "32": 0.861, "16": 0.928, "8": 0.9641, "4": 0.98455}
    off = {**paper, "64": 0.7336}
    write_bounds(
        tmp_path / "results", {"nearest": off, "centre": paper, "void-out": {"128": 0.509}}
    )
    page, records, _ = render(make_suite(), tmp_path)
    centre, second, third = page.lines("bounds", "ours")  # nearest first, incomplete last
    assert centre[0] == "voc2011 seg11valid, 736 images"
    assert "off by up to 0.1" in second[-1] and "agrees with every number" in centre[-1]
    assert centre[1:8] == ["centre", "50.9", "73.3", "86.1", "92.8", "96.4", "98.5"]
    assert second[0] == "nearest" and "Nearest:" not in page.text
    assert third[:3] == ["void-out", "50.9", "–"] and "agrees" not in third[-1]
    assert "1 of 3 methods agrees with every printed number: centre." in page.text
    record = next(r for r in records if r["row"] == "64 nearest" and "PAMI" in r["paper_version"])
    assert float(record["difference"]) == pytest.approx(73.36 - 73.3)
    assert len([r for r in records if r["table"] == "bounds"]) == 36


def test_bounds_of_another_split_are_left_out(tmp_path: Path):
    write_bounds(tmp_path / "results", {"nearest": {"128": 0.509}})
    suite = replace(make_suite(), bounds=[{"dataset": "voc2011", "split": "val"}])
    page, records, summary = render(suite, tmp_path)
    (line,) = page.lines("bounds", "ours")
    assert line[0] == "voc2011 val" and line[-1].startswith("not run")
    assert not any(r["ours_mean"] for r in records if r["table"] == "bounds")
    assert summary["problems"] == [
        "results/voc2011/bounds.json: its split is not that of this suite, so it is left out; make "
        f"it again with {suite.command} bounds."
    ]


def test_examples_show_truth_and_runs_or_say_why_not(tmp_path: Path):
    runs = [
        make_run("voc2011/fcn32s", (("table2", "FCN-32s"),)),
        make_run("voc2011/fcn8s", (("table2", "FCN-8s"),)),
    ]
    truths = write_dataset(tmp_path / "data")
    for run, shift in zip(runs, (3, 2), strict=True):
        folder = write_result(tmp_path / "results", run, 0, (0.9, 0.7, 0.6, 0.8))
        write_predictions_of(folder, truths, shift)
    page, _, summary = render(make_suite(*runs), tmp_path)
    assert summary["problems"] == []
    images = [attrs for tag, attrs in page.tags if tag == "img"]
    assert len(images) == 3 * (1 + 1 + 2)
    assert all((attrs["src"] or "").startswith("data:image/") for attrs in images)
    counts = runs[1].directory(tmp_path / "results", 0) / "per_image.npz"
    ids, scores = per_image_mean_iu(counts, "semantic")
    best = dict(zip(ids, scores, strict=True))
    for _, id in choose(ids, scores):
        assert f"fcn8s, seed 0: {100 * best[id]:.1f}" in page.text
    without, _, _ = render(make_suite(*runs), tmp_path, images=False)
    assert not [tag for tag, _ in without.tags if tag == "img"]
    assert "images of the data sets are not redistributed" in without.text


def test_examples_are_of_the_main_label_set(tmp_path: Path):
    """Of a run's first: its predictions beside the truth of the same labels, in their classes."""
    semantic = write_dataset(tmp_path / "data")
    prepared = tmp_path / "data" / "prepared" / "voc2011"
    geometric = {id: np.where(t == 255, 255, t == 0).astype(np.uint8) for id, t in semantic.items()}
    lines = (prepared / "index.csv").read_text().splitlines()
    for i, (id, truth) in enumerate(geometric.items(), 1):
        Image.fromarray(truth).save(prepared / f"geometric-{id}.png")
        lines[i] += f",geometric-{id}.png"
    (prepared / "index.csv").write_text("\n".join([f"{lines[0]},geometric", *lines[1:]]) + "\n")
    names = {"semantic": CLASSES, "geometric": ["sky", "vertical", "horizontal"]}
    write(prepared / "dataset.json", {"name": "voc2011", "classes": names, "void": 255})
    runs = []
    for name, labels in (
        ("both", ["semantic", "geometric"]),
        ("geometric", ["geometric"]),
        ("turned", ["geometric", "semantic"]),
    ):
        run = make_run(f"voc2011/{name}", (("table2", "FCN-32s"),))
        run = replace(run, config={**run.config, "labels": labels})
        folder = write_result(tmp_path / "results", run, 0, (0.9, 0.7, 0.6, 0.8))
        truths = semantic if labels[0] == "semantic" else geometric
        write_predictions_of(folder, truths, 2, task=labels[0])
        runs.append(run)
    suite = make_suite(*runs)
    page, _, summary = render(suite, tmp_path)
    assert summary["problems"] == []
    assert len([tag for tag, _ in page.tags if tag == "img"]) == 3 * (2 + 1) + 3 * (2 + 2)
    assert page.text.count(": voc2011, seg11valid, geometric") == 1
    results = load_results(suite, tmp_path / "results", [])
    of = [results.runs["voc2011/geometric"], results.runs["voc2011/turned"]]
    family = build_family("", of, tmp_path / "data", results.folder)
    assert family and len(family.examples) == 3
    counts = of[1].seeds[0].directory / "per_image.npz"
    scores = dict(zip(*per_image_mean_iu(counts, "geometric"), strict=True))
    for example in family.examples:
        assert example.pictures[1] == label_map(geometric[example.id], "truth")
        assert [name for _, name in example.classes] == ["sky", "vertical", "void"]
        assert example.pictures[3].caption.endswith(f": {100 * scores[example.id]:.1f}")


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_photograph_lies_as_its_label_map(tmp_path: Path, orientation: int):
    path, pixels = tmp_path / "a.tif", np.zeros((4, 8, 3), np.uint8)
    pixels[:, :4] = 255  # the left half
    tags = {ORIENTATION: orientation}
    Image.fromarray(pixels).save(path, compression="tiff_lzw", tiffinfo=tags)
    picture = photograph(path, "a")
    data = base64.b64decode(picture.uri.partition(",")[2])
    shown = np.asarray(Image.open(io.BytesIO(data)).convert("L"))
    assert shown.shape == (picture.height, picture.width) and picture.width == 2 * picture.height
    assert shown[:, 0].min() > 200 and shown[:, -1].max() < 50


def test_runs_of_ones_own_have_examples_and_their_title(tmp_path: Path):
    """Where no table of the papers has a run."""
    runs = [replace(make_run(f"voc2011/{i}", ()), title=title) for i, title in enumerate("aab")]
    truths = write_dataset(tmp_path / "data")
    for run in runs:
        folder = write_result(tmp_path / "results", run, 0, (0.9, 0.7, 0.6, 0.8))
        write_predictions_of(folder, truths, 2)
    page, records, _ = render(make_suite(*runs), tmp_path)
    assert len([tag for tag, _ in page.tags if tag == "img"]) == 3 * (1 + 1 + 3)
    named = {record["row"] for record in records if record["table"] == "other"}
    assert named == {"voc2011/0", "voc2011/1", "b"}  # two have one title


def test_the_page_asks_for_nothing_and_its_links_arrive(tmp_path: Path):
    runs = [
        make_run("voc2011/fcn32s", (("table2", "FCN-32s"), ("figure5", "full images"))),
        make_run("voc2011/fcn_8s.x", (("table1", "FCN-VGG16"),), note='<script src="//x">'),
    ]
    truths = write_dataset(tmp_path / "data")
    for run in runs:
        write_predictions_of(
            write_result(tmp_path / "results", run, 0, (0.9, 0.7, 0.6, 0.8)), truths, 1
        )
    page, _, _ = render(make_suite(*runs), tmp_path)
    text = (tmp_path / "out" / "tables.html").read_text()
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "base"}
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    for tag, attrs in page.tags:
        for name in ("src", "href", "srcset", "action", "poster", "data", "xlink:href"):
            value = attrs.get(name)
            if value is None:
                continue
            assert value.startswith(("data:image/", "#")), f"<{tag} {name}={value[:60]!r}>"
            if value.startswith("#"):
                assert value[1:] in ids, f"nothing has the id {value[1:]}"
    assert not re.search(r"url\(|@import|https?://", text)
    anchors = [attrs["href"] for tag, attrs in page.tags if tag == "a" and attrs.get("title")]
    assert "#run-voc2011-fcn32s" in anchors, "a number must link to its provenance"
    assert "&lt;script" in text


def test_a_run_is_set_against_the_texts_that_it_names(tmp_path: Path):
    later = ("author's copy, Sept. 2015", "PAMI 2017")
    runs = []
    for name, texts in (("old", ("arXiv v2",)), ("new", later), ("all", ())):
        run = make_run(f"pascal-context/{name}", (("context", "FCN-8s"),))
        runs.append(replace(run, rows=(Row("context", "FCN-8s", texts),)))
        write_result(tmp_path / "results", runs[-1], 0, (0.9, 0.7, 0.4, 0.8))
    _, records, _ = render(make_suite(*runs), tmp_path)
    found: dict[str, list[float]] = {}
    for record in records:
        if (record["table"], record["metric"]) == ("context", "mean_iu") and record["run"]:
            found.setdefault(record["run"], []).append(float(record["difference"]))
    differences = {
        name: [round(d, 1) for d in found[f"pascal-context/{name}"]]
        for name in ("old", "new", "all")
    }
    assert differences == {"old": [4.9], "new": [2.2, 0.9], "all": [4.9, 2.2, 0.9]}


@pytest.mark.parametrize("place", ["reports", "reports/published/laptop"])
def test_the_link_to_the_deviations_arrives(tmp_path: Path, place: str):
    """Of a report in the repository; one that lies elsewhere has none."""
    run = make_run("voc2011/a", (("table2", "FCN-32s"),))
    write_result(tmp_path / "results", run, 0, (0.9, 0.7, 0.6, 0.8))
    found: list[list[str]] = []
    for where in (CONFIG.parent / place, tmp_path / place):
        fcn.report.render(
            make_suite(run), tmp_path / "results", tmp_path, tmp_path / "out", place=where
        )
        page = Page((tmp_path / "out" / "tables.html").read_text())
        hrefs = [attrs.get("href") or "" for _, attrs in page.tags]
        found.append([href for href in hrefs if href.endswith(".md")])
    (link,) = found[0]
    assert (CONFIG.parent / place / link).resolve() == CONFIG.parent / "docs/deviations.md"
    assert found[1] == [] and (CONFIG.parent / "docs/deviations.md").is_file()


def test_figure_5_has_three_panels_and_says_what_the_paper_curves_are(tmp_path: Path):
    rows = ("full images", "50% sampling", "25% sampling")
    runs = [make_run(f"voc2011/p{i}", (("figure5", row),)) for i, row in enumerate(rows)]
    for run in runs[:2]:
        write_result(tmp_path / "results", run, 0, (0.9, 0.7, 0.6, 0.8), curve=300)
    page, _, _ = render(make_suite(*runs), tmp_path)
    section = (tmp_path / "out" / "tables.html").read_text().split('<section id="figure5">')[1]
    section = section.split("</section>")[0]
    panels = section.split("<svg ")[1:]
    assert [len(re.findall(r'class="line paper', p)) for p in panels] == [3, 3, 0]
    assert [len(re.findall(r'class="line ours', p)) for p in panels] == [2, 2, 2]
    assert "not run" in page.status("figure5", "voc2011/p2")
    assert "0.432" in page.status("figure5", "voc2011/p0")
    render(make_suite(*runs, notice="demo"), tmp_path)
    section = (tmp_path / "out" / "tables.html").read_text().split('<section id="figure5">')[1]
    panels = section.split("</section>")[0].split("<svg ")[1:]
    assert [len(re.findall(r'class="line paper', p)) for p in panels] == [3, 3, 0, 0, 0]
    assert [len(re.findall(r'class="line ours', p)) for p in panels] == [0, 0, 2, 2, 2]
    assert "Ours, on other data" in section


def test_per_class_table_is_the_mean_over_seeds(tmp_path: Path):
    run = make_run("voc2011/fcn32s", (("table2", "FCN-32s"),), seeds=(0, 1))
    for seed in run.seeds:
        write_result(tmp_path / "results", run, seed, (0.9, 0.7, 0.6, 0.8))
    render(make_suite(run), tmp_path)
    section = (tmp_path / "out" / "tables.html").read_text().split('<section id="classes">')[1]
    section = section.split("</section>")[0]
    rows = dict(re.findall(r'<th scope="row">(.*?)</th><td[^>]*>(.*?)</td>', section))
    assert rows == {"background": "90.0", "aeroplane": "50.5", "bicycle": "25.0", "bird": "–"}


def test_same_input_same_bytes(tmp_path: Path):
    run = make_run("voc2011/fcn32s", (("table2", "FCN-32s"), ("figure5", "full images")))
    folder = write_result(tmp_path / "results", run, 0, (0.9, 0.7, 0.6, 0.8))
    write_predictions_of(folder, write_dataset(tmp_path / "data"), 1)
    names = ("tables.html", "tables.csv", "tables.md", "tables.tex")
    render(make_suite(run), tmp_path)
    first = {name: (tmp_path / "out" / name).read_bytes() for name in names}
    render(make_suite(run), tmp_path)
    assert first == {name: (tmp_path / "out" / name).read_bytes() for name in names}


def test_exports_hold_the_same_cells(tmp_path: Path):
    run = make_run("voc2011/fcn_32s", (("table2", "FCN-32s"),), seeds=(0, 1))
    for seed in run.seeds:
        write_result(tmp_path / "results", run, seed, (0.9, 0.7, 0.6 + 0.02 * seed, 0.8))
    render(make_suite(run), tmp_path)
    md, tex = ((tmp_path / "out" / f"tables.{kind}").read_text() for kind in ("md", "tex"))
    assert "61.0 ± 1.4" in md and r"61.0 $\pm$ 1.4" in tex
    assert r"voc2011/fcn\_32s" in md and r"voc2011/fcn\_32s" in tex
    assert tex.isascii() and r"A test \& its \textless{}suite\textgreater{}" in tex
    tables = [line for line in md.splitlines() if line.startswith("|")]
    blocks = md.split("\n\n")
    for block in blocks:
        rows = [line for line in block.splitlines() if line.startswith("|")]
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) <= 1
    assert len(tables) > 100
    for body in re.findall(r"\\begin\{longtable\}\{([^\n]*)\}\n(.*?)\\end\{longtable\}", tex, re.S):
        columns = len(re.findall(r"p\{\d+mm\}|r", re.sub(r"\\[a-z]+", "", body[0])))
        for line in body[1].splitlines():
            if line.endswith(r" \\"):
                assert len(re.findall(r"(?<!\\)&", line)) == columns - 1
    assert tex.count("{") == tex.count("}")
    commands = set(re.findall(r"\\[a-zA-Z]+", tex))
    assert commands <= {f"\\{name}" for name in LATEX_COMMANDS.split()}
    if shutil.which("pdflatex"):
        command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "tables.tex"]
        done = subprocess.run(command, cwd=tmp_path / "out", capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-500:]


def test_the_report_needs_no_torch():
    code = "import fcn.report, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=CONFIG.parent).returncode == 0


def test_a_record_holds_the_numbers_and_neither_weights_nor_images_nor_places(tmp_path: Path):
    run = make_run("voc2011/a", (("table2", "FCN-32s"),))
    write_result(tmp_path / "results", run, 0, (0.9, 0.7, 0.6, 0.8))
    folder = run.directory(tmp_path / "results", 0)
    (folder / "model.safetensors").write_bytes(b"weights")
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["provenance"]["command"] = "python -m fcn evaluate a --data-dir /home/someone/data"
    (folder / "metrics.json").write_text(json.dumps(metrics))
    out = tmp_path / "record"
    files = publish(make_suite(run, bounds=False), tmp_path / "results", tmp_path / "data", out)
    assert "tables.html" in files and "results/voc2011/a/seed0/metrics.json" in files
    assert all(Path(f).suffix in (".json", ".csv", ".npz", ".html", ".md", ".tex") for f in files)
    published = json.loads((out / "results/voc2011/a/seed0/metrics.json").read_text())
    assert published["tasks"] == metrics["tasks"]
    assert published["provenance"]["command"] == "python -m fcn evaluate a --data-dir data"
    assert not any("/home/someone" in (out / name).read_text() for name in files)
    with pytest.raises(UserError, match="no run"):
        publish(make_suite(), tmp_path / "nothing", tmp_path / "data", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_record_replaces_nothing_but_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run, results = make_run("voc2011/a", (("table2", "FCN-32s"),)), tmp_path / "work/results"
    write_result(results, run, 0, (0.9, 0.7, 0.6, 0.8))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("dear")
    (tmp_path / "file").write_text("x")
    (tmp_path / "report").mkdir()
    (tmp_path / "report/tables.html").write_text("a report is no record")

    def record(out: Path) -> None:
        publish(make_suite(run, bounds=False), results, tmp_path / "data", out)

    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(results)
    for out in ("mine", "file", "report", "work", "work/results", "work/results/record"):
        with pytest.raises(UserError, match=f"--out {tmp_path / out}: "):
            record(tmp_path / out)
    with pytest.raises(UserError, match="the results"):
        record(Path())
    (tmp_path / "work/tables.html").write_text("beside results, as in a record")
    with pytest.raises(UserError, match="in or above them"):
        record(tmp_path / "work")
    (tmp_path / "work/tables.html").unlink()
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "empty").mkdir()
    for out in ("new", "empty", "new"):
        record(tmp_path / out)
        assert (tmp_path / out / "tables.html").exists()
    (run.directory(results, 0) / "metrics.json").write_text('{"tasks"')
    with pytest.raises(UserError, match=r"metrics\.json: not valid JSON"):
        record(tmp_path / "new")
    assert (tmp_path / "new/tables.html").exists()


def test_a_subset_anywhere_makes_a_subset(tmp_path: Path):
    run = make_run("voc2011/fcn32s")
    folder = write_result(tmp_path / "results", run, 0, (0.9, 0.7, 0.6, 0.8), subset=True)
    metrics = json.loads((folder / "metrics.json").read_text())
    write(folder / "metrics.json", {**metrics, "subset": False})  # an archive of the weights is
    assert load_results(make_suite(run), tmp_path / "results", []).runs[run.id].subset


def test_the_newest_log_is_named(tmp_path: Path):
    run = make_run("voc2011/fcn32s", (("table2", "FCN-32s"),))
    for i, stage in enumerate(("evaluate", "train")):
        path = tmp_path / "logs" / stage / run.id / "seed0.log"
        path.parent.mkdir(parents=True)
        path.write_text("OSError: x")
        os.utime(path, (2e9 + i, 2e9 + i))
    page, _, _ = render(make_suite(run), tmp_path)
    assert f"failed: see log logs/train/{run.id}/seed0.log" in page.status("table2", run.id)


def test_exports_say_what_is_missing_and_a_broken_side_file_is_no_hole(tmp_path: Path):
    run = make_run("voc2011/fcn32s", (("table2", "FCN-32s"),), seeds=(0, 1))
    folder = write_result(tmp_path / "results", run, 0, (0.9, 0.7, 0.6, 0.8))
    render(make_suite(run), tmp_path)
    for kind in ("md", "tex"):
        assert "1 of 2 seeds: 0" in (tmp_path / "out" / f"tables.{kind}").read_text()
    write_result(tmp_path / "results", run, 1, (0.9, 0.7, 0.6, 0.8))
    (folder / "train.json").write_text("{")
    found = load_results(make_suite(run), tmp_path / "results", [])
    assert found.runs[run.id].status.kind == "done" and len(found.problems) == 1


def test_another_average_is_of_its_own_label_set(tmp_path: Path):
    tasks = {"semantic": [[1, 0], [0, 1]], "geometric": [[1, 1], [0, 1]]}
    metrics = {"tasks": {task: {"confusion": matrix} for task, matrix in tasks.items()}}
    seed = SeedResult(0, tmp_path, "", metrics=metrics)
    for task, value in (("semantic", 1), ("geometric", 2 / 3)):
        origin = ("metrics", "tasks", task, "pixel_accuracy")
        assert seed.number(origin, "present") == pytest.approx(value)


def test_a_record_has_every_file_that_a_report_is_made_from(tmp_path: Path):
    run, results = make_run("voc2011/a", (("table2", "FCN-32s"),)), tmp_path / "results"
    folder = write_result(results, run, 0, (0.9, 0.7, 0.6, 0.8))
    (folder / "per_image.npz").write_bytes(b"counts")
    wanted = [folder / "diverged.json", results / "architecture.json", results / "classifier.json"]
    for path in wanted:
        write(path, {})
    wanted += [folder / name for name in ("per_image.npz", "timing.json", "validation.csv")]
    wanted += [folder / name for name in ("metrics.json", "train.json", "loss.csv")]
    files = publish(make_suite(run, bounds=False), results, tmp_path / "data", tmp_path / "record")
    assert {f"results/{path.relative_to(results)}" for path in wanted} <= set(files)
