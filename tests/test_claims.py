"""Claims: the papers' own numbers, the bootstrap against plain loops, and planted results."""

import ast
import csv
import io
import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fcn.bench import coverage
from fcn.errors import UserError
from fcn.metrics import scores
from fcn.report.averages import AVERAGES, METRICS, average, of_confusion
from fcn.report.bootstrap import DRAWS, Bootstrap, image_weights, interval, mean_of_seeds
from fcn.report.claims import Measure, Test, Tolerance, Value, read_claims
from fcn.report.curves import level_at, mean_loss, reached
from fcn.report.exports import claim_records
from fcn.report.paper import parse_tables, read_paper
from fcn.report.parts import PartView, decide_part
from fcn.report.printed import Printed
from fcn.report.results import RunResult, SeedResult, load_results, stages
from fcn.report.samples import TIMED, Sample, Samples
from fcn.report.spread import Deviation, Spread, _within, between_seeds
from fcn.report.tables import THIN
from fcn.report.verdicts import ClaimView, TestView, _Decider, _mark_repeated, _whole, decide
from fcn.schema import CONFIG, check, read_yaml
from fcn.spec import Row, Run, Suite
from tests.test_report import make_run, make_suite, render, write, write_config, write_result

TABLES = parse_tables(read_yaml(CONFIG / "tables.yaml"))
PAPER = read_paper(CONFIG)
CLAIMS = read_claims(CONFIG, TABLES, PAPER)
CLASSES = 4


def matrices(classes: int = CLASSES) -> st.SearchStrategy[np.ndarray]:
    row = st.lists(st.integers(0, 50), min_size=classes, max_size=classes)
    return st.lists(row, min_size=classes, max_size=classes).map(np.array)


# ---------------------------------------------------------------- the claims as written


def test_all_claims_are_there_and_what_holds_them_exists():
    assert len(CLAIMS) == 38
    assert all(bool(claim.tests) != bool(claim.by_test) for claim in CLAIMS)
    for claim in CLAIMS:
        assert not claim.by_test or (CONFIG.parent / claim.by_test).is_file()


def test_the_papers_own_numbers_satisfy_every_claim():
    """An oracle for rows, signs and tolerances: decided on the printed numbers, all hold."""
    printed = Printed({table.id: table for table in TABLES}, PAPER)
    held: dict[str, list[str]] = {}
    for claim in CLAIMS:
        for test in claim.tests:
            for label, point in printed.measures(test):
                assert test.expect.verdict(point, point) == "reproduced", (claim.id, test.what)
                held.setdefault(claim.id, []).append(label)
    assert len(held) == 16 and sum(map(len, held.values())) == 52
    single = ["author's copy, Sept. 2015", "PAMI 2017"]  # and three pairs of arXiv v2
    assert held["context-skips"] == [*2 * ["arXiv v2"], *2 * single, *2 * ["arXiv v2"]]


def test_an_ablation_row_is_in_a_claim():
    """A row that no claim needs is a row that nothing decides; some are only shown beside."""
    needed = {
        (value.table, value.row) for c in CLAIMS for t in c.tests for value in t.values.values()
    }
    shown_only = {"FCN-32s", "fc6 dilated"}
    shown_only |= {"batch 20, momentum 0.99"}
    for table in TABLES:
        for row in table.rows if table.ablation and table.id != "choices" else ():
            assert (table.id, row.name) in needed or row.name in shown_only, (table.id, row.name)


def raw_claims() -> dict[str, Any]:
    return json.loads(json.dumps(read_yaml(CONFIG / "claims.yaml")))


@pytest.mark.parametrize(
    ("place", "value", "expected"),
    [
        (("tests", 0, "values", "a"), "FCN-64s", "no row 'FCN-64s'"),
        (("tests", 0, "table"), "table22", "no table 'table22'; did you mean table2"),
        (("tests", 0, "column"), "mean_ui", "no column 'mean_ui'; did you mean mean_iu"),
        (("tests", 0, "measure"), "a - c", "differ in: b, c"),
        (("tests", 0, "measure"), "a ** b", "is no measure"),
        (("tests", 0, "expect"), "moer", "no tolerance 'moer'; did you mean more"),
        (("tests", 0, "expect"), {"above": 1}, "expect"),
        (("tests", 0, "values", "a"), {"paper": {}}, "values.a"),
        (
            ("tests", 0, "values", "a"),
            {"paper": {"edition": "cvpr", "table": "Table 9", "method": "x", "metric": "y"}},
            "no number",
        ),
        (
            ("tests", 0, "values", "a"),
            {
                "paper": {
                    "edition": "cvpr",
                    "table": "Table 3",
                    "method": "SDS",
                    "metric": "mean IU",
                }
            },
            "2 numbers (name the dataset)",
        ),
        (("tests", 0, "unit"), "miles", "miles"),
        (("tests", 0, "against"), ["CVPR 2105"], "no text 'CVPR 2105'; did you mean CVPR 2015"),
        (("by_test",), "tests/x.py", "skip-pool4"),
        (
            ("tests", 0, "diverged"),
            {"z": "reproduced"},
            "diverged names letters that are no values: z",
        ),
        (
            ("tests", 0),
            {
                **raw_claims()["claims"]["skip-pool4"]["tests"][0],
                "measure": "min(a - b, b - a)",
                "expect": {"between": [-1, 1], "why": "near"},
            },
            "a min lies above or below a bound, not between",
        ),
    ],
)
def test_a_mistake_in_a_claim_is_one_sentence(
    tmp_path: Path, place: tuple, value: Any, expected: str
):
    raw = raw_claims()
    raw["claims"] = {"skip-pool4": raw["claims"]["skip-pool4"]}
    inner = raw["claims"]["skip-pool4"]
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    write(tmp_path / "claims.yaml", raw)
    with pytest.raises(UserError) as error:
        read_claims(tmp_path, TABLES, PAPER)
    assert expected in str(error.value) and "claims.yaml" in str(error.value)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------- measures and tolerances


def measures() -> st.SearchStrategy[str]:
    leaf = st.sampled_from(["a", "b", "c"]) | st.integers(1, 9).map(str)

    def grow(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        return st.tuples(inner, st.sampled_from("+-*"), inner).map(lambda p: f"({' '.join(p)})")

    plain = st.recursive(leaf, grow, max_leaves=6)
    part = plain | plain.map("abs({})".format)
    several = st.tuples(st.sampled_from(["min", "max"]), st.lists(part, min_size=2, max_size=4))
    return part | several.map(lambda p: f"{p[0]}({', '.join(p[1])})")


@given(measures(), st.lists(st.floats(-100, 100), min_size=3, max_size=3))
def test_a_measure_equals_python(text: str, numbers: list[float]):
    values = dict(zip("abc", numbers, strict=True))
    expected = eval(text, {"min": min, "max": max, "abs": abs}, values)
    measure = Measure.parse(text, "here")
    assert float(measure(values)) == pytest.approx(expected)
    drawn = measure({k: np.full(3, v) for k, v in values.items()})
    assert np.allclose(drawn, expected)
    assert measure.letters == {
        n.id for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Name)
    } - {
        "min",
        "max",
        "abs",
    }


@pytest.mark.parametrize(
    "text",
    ["a.b", "a[0]", "open(a)", "a ** b", "'a'", "a if b else c", "min(a)", "a <", "True"]
    + ["a - max(b, c)", "abs(a) - b", "min(max(a, b), c)", "abs(a, b)", "abs(min(a, b))"],
)
def test_a_measure_is_nothing_but_arithmetic(text: str):
    with pytest.raises(UserError, match="is no measure"):
        Measure.parse(text, "here")


@given(
    st.sampled_from([(0.0, math.inf), (-math.inf, 1.5), (-1.5, 1.5)]),
    st.tuples(st.floats(-5, 5), st.floats(-5, 5)).map(sorted),
)
def test_a_verdict_is_decided_only_by_the_whole_interval(bounds: tuple, ends: list[float]):
    tolerance = Tolerance(bounds[0], bounds[1], "why")
    verdict = tolerance.verdict(*ends)
    inside = [bounds[0] < x < bounds[1] for x in np.linspace(ends[0], ends[1], 50)]
    if verdict == "reproduced":
        assert all(inside)
    elif verdict == "not reproduced":
        assert not any(inside)
    else:
        low, high = bounds
        assert ends[0] <= low <= ends[1] or ends[0] <= high <= ends[1]


# ---------------------------------------------------------------- averages


def plain(metric: str, confusion: np.ndarray, rule: str) -> float | None:
    """The four metrics by loops over classes and pixels, without arrays' rules."""
    n = len(confusion)
    rows = range(1 if rule == "objects" else 0, n)
    classes = range(1 if rule in ("objects", "without_background") else 0, n)
    truth = {i: sum(int(confusion[i, j]) for j in range(n)) if i in rows else 0 for i in range(n)}
    hit = {i: int(confusion[i, i]) if i in rows else 0 for i in range(n)}
    claimed = {j: sum(int(confusion[i, j]) for i in rows) for j in range(n)}
    union = {i: truth[i] + claimed[i] - hit[i] for i in range(n)}
    pixels = sum(truth[i] for i in classes)
    if metric == "pixel_accuracy":
        return sum(hit[i] for i in classes) / pixels if pixels else None
    if metric == "frequency_weighted_iu":
        weighted = sum(truth[i] * hit[i] / union[i] for i in classes if truth[i])
        return weighted / pixels if pixels else None
    if metric == "mean_accuracy":
        values = [hit[i] / truth[i] for i in classes if truth[i]]
    else:
        counted = truth if rule == "present" else union
        values = [hit[i] / union[i] for i in classes if counted[i]]
    return sum(values) / len(values) if values else None


@given(matrices(), st.sampled_from(sorted(AVERAGES)), st.sampled_from(METRICS))
def test_averages_against_plain_loops(confusion: np.ndarray, rule: str, metric: str):
    expected, value = plain(metric, confusion, rule), of_confusion(metric, confusion, rule)
    assert value is None if expected is None else value == pytest.approx(expected)


@given(matrices())
def test_averages_equal_what_evaluation_writes(confusion: np.ndarray):
    written = scores(confusion)
    for metric in METRICS:
        expected = getattr(written, metric)
        value = of_confusion(metric, confusion.tolist(), "all")
        assert value is None if expected is None else value == pytest.approx(expected)


def test_averages_differ_where_they_should():
    """A class that is predicted and absent, and background that is taken for an object."""
    confusion = np.array([[50, 10, 0, 2], [0, 30, 0, 1], [5, 5, 20, 0], [0, 0, 0, 0]])
    values = {rule: of_confusion("mean_iu", confusion, rule) or 0.0 for rule in AVERAGES}
    assert len({round(value, 6) for value in values.values()}) == 4
    assert values["present"] > values["all"]
    assert values["objects"] > values["without_background"]


@pytest.mark.parametrize("wrong", [None, 3, "x", [[1, 2]], [[1], [2, 3]], [[math.nan]], []])
def test_what_is_no_confusion_matrix_has_no_average(wrong: Any):
    assert of_confusion("mean_iu", wrong, "present") is None


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"average": "prezent"},
            r"\.average: 'prezent' is not one of all, present, without_background, objects",
        ),
        (
            {"average": "present", "from": "train.loss"},
            r"\.from: 'train\.loss' is not of an allowed form \(average is for pixel_accuracy, mea",
        ),
        ({"average": "present", "from": None}, "the key 'from' is missing"),
    ],
)
def test_a_wrong_average_in_a_column_is_a_sentence(change: dict, expected: str):
    table = read_yaml(CONFIG / "tables.yaml")["table5"]
    column = {**table["columns"]["mean_iu"], **change}
    column = {key: value for key, value in column.items() if value is not None}
    schema = read_yaml(CONFIG / "schemas/tables.yaml")
    with pytest.raises(UserError, match=rf"tables\.yaml: table5\.columns\.mean_iu.*{expected}"):
        changed = {**table, "columns": {"mean_iu": column}}
        check({"table5": changed}, schema, CONFIG / "tables.yaml")


def test_the_schema_knows_the_averages_and_the_metrics_that_have_them():
    schema = read_yaml(CONFIG / "schemas/tables.yaml")["additionalProperties"]["properties"]
    column = schema["columns"]["additionalProperties"]
    assert column["properties"]["average"]["enum"] == list(AVERAGES)
    assert (
        f"({'|'.join(METRICS)})$"
        in column["dependentSchemas"]["average"]["properties"]["from"]["pattern"]
    )


# ---------------------------------------------------------------- the bootstrap


def test_resampled_test_sets_are_test_sets():
    weights = image_weights([f"{i}" for i in range(37)])
    assert weights.shape == (DRAWS, 37)
    assert (weights.sum(1) == 37).all() and (weights >= 0).all()
    assert np.array_equal(weights, weights.round())
    # Each image is drawn about once, with the variance 1 - 1/n of multinomial counts.
    assert abs(weights.mean(0) - 1).max() < 0.15
    assert weights.var(0).mean() == pytest.approx(1 - 1 / 37, abs=0.05)
    assert np.array_equal(weights, image_weights([f"{i}" for i in range(37)]))
    assert not np.array_equal(weights, image_weights([f"{i + 1}" for i in range(37)]))


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 6), st.integers(0, 1000))
def test_a_mean_over_seeds_has_students_distribution(n: int, seed: int):
    values = np.random.default_rng(seed).normal(size=n)
    away = mean_of_seeds(list(values), range(seed, seed + n)) - values.mean()
    error = values.std(ddof=1) / math.sqrt(n)
    for level in (0.5, 0.8, 0.95):
        inside = np.mean(abs(away) < stats.t.ppf((1 + level) / 2, n - 1) * error)
        assert abs(inside - level) < 5 * math.sqrt(level * (1 - level) / DRAWS)
    assert abs(np.mean(away > 0) - 0.5) < 5 * 0.5 / math.sqrt(DRAWS)


def test_what_moves_two_runs_alike_cancels_in_their_difference():
    first, seeds = [1.0, 7.0, 4.0], [0, 1, 2]
    difference = mean_of_seeds([v + 2 for v in first], seeds) - mean_of_seeds(first, seeds)
    assert difference == pytest.approx(np.full(DRAWS, 2.0))


# ---------------------------------------------------------------- what seeds do


def trainings(runs: int, seeds: int, own: float, common: float, random: Any) -> dict:
    of_run, of_seed = random.normal(0, 10, runs), random.normal(0, common, seeds)
    rest = random.normal(0, own, (runs, seeds))
    return {
        f"run{i}": {k: float(of_run[i] + of_seed[k] + rest[i, k]) for k in range(seeds)}
        for i in range(runs)
    }


def alone(scores: dict) -> Spread | None:
    """The spread of runs none of which goes on from another."""
    return between_seeds(scores, {run: [run] for run in scores})


def alike(points: float) -> Spread:
    """Every training, staged or not, differs by as much."""
    none, own = Deviation(0.0), Deviation(points, 20)
    return Spread(none, own, none, own)


def staged(
    families: int, children: int, seeds: int, sizes: tuple[float, float, float], random: Any
) -> tuple[dict, dict]:
    """Trainings, each with runs that go on from it; scores and lineages."""
    scores, lineages = {}, {}
    for f in range(families):
        parent = random.normal(0, sizes[0], seeds)
        moved = parent + random.normal(0, sizes[1], seeds)
        scores[f"p{f}"] = dict(enumerate(30 + parent))
        lineages[f"p{f}"] = [f"p{f}"]
        for c in range(children):
            own = moved + 5 * c + random.normal(0, sizes[2], seeds)
            scores[f"p{f}c{c}"] = dict(enumerate(30 + own))
            lineages[f"p{f}c{c}"] = [f"p{f}", f"p{f}c{c}"]
    return scores, lineages


def test_the_spread_of_many_runs_is_found():
    found = alone(trainings(200, 40, 0.7, 2.0, np.random.default_rng(5)))
    assert found is not None and found.training.freedom == 199 * 39
    assert found.training.size == pytest.approx(0.7, rel=0.1)
    assert found.common.size == pytest.approx(2.0, rel=0.3)
    assert (found.family, found.stage) == (Deviation(0.0), found.training)


def test_the_spread_of_stages_is_found():
    scores, lineages = staged(60, 4, 6, (2.0, 0.8, 0.2), np.random.default_rng(9))
    found = between_seeds(scores, lineages)
    assert found is not None
    assert found.training.size == pytest.approx(2.0, rel=0.1)
    assert found.family.size == pytest.approx(0.8, rel=0.1)
    assert found.stage.size == pytest.approx(0.2, rel=0.05)
    assert (found.family.freedom, found.stage.freedom) == (60 * 5, 60 * 3 * 5)
    assert found.apart([["p"]]) == found.training.size
    assert found.apart([["p", "c"]]) == pytest.approx(math.hypot(2.0, 0.8, 0.2), rel=0.1)
    assert found.apart([["p", "c"], ["p", "d"]]) == found.stage.size
    assert found.apart([["p", "c"], ["p"]]) == pytest.approx(math.hypot(0.8, 0.2), rel=0.1)
    assert found.apart([["p"], ["q"]]) == found.training.size and found.apart([["p"], ["p"]]) == 0


def test_what_is_assumed_counts_beside_what_is_found():
    """A second seed of one run must not replace what is known by one difference."""
    assumed = Spread(Deviation(0.0), Deviation(0.6, 4), Deviation(0.3, 2), Deviation(0.1, 4))
    alone = {"a": {0: 1.0}, "b": {0: 2.0}}
    lineages = {"a": ["a"], "b": ["b"]}
    assert between_seeds(alone, lineages, assumed) == assumed
    assert between_seeds(alone, lineages) is None
    found = between_seeds({**alone, "b": {0: 2.0, 1: 8.0}}, lineages, assumed)
    assert found is not None and (found.family, found.stage) == (assumed.family, assumed.stage)
    assert found.training.freedom == 5
    assert found.training.size == pytest.approx(math.sqrt((4 * 0.36 + 18) / 5))
    scores, lineages = staged(60, 4, 6, (2.0, 0.8, 0.2), np.random.default_rng(9))
    of_scores, together = between_seeds(scores, lineages), between_seeds(scores, lineages, assumed)
    assert of_scores is not None and together is not None
    for part in ("training", "family", "stage"):  # hundreds of degrees of freedom beside four
        one, both = getattr(of_scores, part), getattr(together, part)
        assert both.freedom == one.freedom + getattr(assumed, part).freedom
        assert both.size == pytest.approx(one.size, rel=0.02)


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_a_chain_of_stages_on_the_papers_data_is_decided(seeds: int):
    """Each run goes on from another one: families of one, beside what is assumed of families."""
    assumed = Spread(Deviation(0.0), Deviation(0.6, 4), Deviation(0.3, 2), Deviation(0.1, 4))
    lineages = {"32s": ["32s"], "16s": ["32s", "16s"], "8s": ["32s", "16s", "8s"]}
    random = np.random.default_rng(3)
    scores = {
        run: dict(enumerate(60.0 + i + random.normal(0, 0.3, seeds)))
        for i, run in enumerate(lineages)
    }
    found = between_seeds(scores, lineages, assumed)
    assert found is not None and found.family == assumed.family
    apart = found.draws(lineages["16s"], [0]) - found.draws(lineages["32s"], [0])
    assert np.isfinite(apart).all() and apart.std() > 0.1


def test_a_run_that_plainly_varies_more_is_judged_by_its_own_seeds():
    """And does not make all others undecidable."""
    scores = trainings(20, 2, 0.7, 1.0, np.random.default_rng(5))
    plain = alone(scores)
    runs = list(scores)
    odd = {**scores, runs[3]: {0: 31.4, 1: 4.4}}
    found = alone(odd)
    assert plain is not None and plain.own == {} and found is not None
    assert found.own == {runs[3]: Deviation(pytest.approx(27 / math.sqrt(2)), 1)}  # type: ignore[arg-type]
    others = {run: of for run, of in odd.items() if run != runs[3]}
    assert replace(found, own={}) == alone(others)
    assert found.training.size == pytest.approx(plain.training.size, rel=0.2)
    assert found.apart([[runs[3]], [runs[0]]]) == found.own[runs[3]].size
    spread = (found.draws([runs[3]], [0, 1]) - found.draws([runs[0]], [0, 1])).std()
    assert spread > 5 * (found.draws([runs[1]], [0, 1]) - found.draws([runs[0]], [0, 1])).std()


def test_a_stage_that_plainly_varies_more_is_judged_by_its_own_seeds():
    """One that forgets what it began with, beside stages that hardly move."""
    scores, lineages = staged(4, 4, 3, (1.0, 0.3, 0.1), np.random.default_rng(8))
    plain = between_seeds(scores, lineages)
    scores["p0c0"] = {0: 30.0, 1: 38.0, 2: 33.0}
    found = between_seeds(scores, lineages)
    assert plain is not None and plain.own == {} and found is not None
    moves = [score - scores["p0"][seed] for seed, score in scores["p0c0"].items()]
    assert found.own == {"p0c0": Deviation(pytest.approx(np.std(moves, ddof=1)), 2)}  # type: ignore[arg-type]
    del scores["p0c0"]
    del lineages["p0c0"]
    assert replace(found, own={}) == between_seeds(scores, lineages)
    assert found.apart([["p0", "p0c0"], ["p0", "p0c1"]]) == found.own["p0c0"].size
    assert found.apart([["p0", "p0c2"], ["p0", "p0c1"]]) == found.stage.size


def test_of_two_stages_of_a_run_nothing_tells_which_varies_more():
    scores, lineages = staged(4, 2, 3, (1.0, 0.3, 0.1), np.random.default_rng(8))
    scores["p0c0"] = {0: 30.0, 1: 38.0, 2: 33.0}
    found = between_seeds(scores, lineages)
    assert found is not None and found.own == {}


@pytest.mark.parametrize("case", range(4))
def test_simulated_coverage_is_measured(case: int, monkeypatch: pytest.MonkeyPatch):
    """Fewer suites than of the record: where the estimate supposes the truth, 19 of 20."""
    monkeypatch.setattr(coverage, "SUITES", 60)
    chosen = [0, 2, 4, 12][case]  # alike; less varying; the others of one that varies; stages
    _, world, pair, tested = coverage.cases()[chosen]
    found = coverage.held(world, pair, 3, tested)
    assert found["held"] > 88 and found["median_width"] > 0.3
    assert found == coverage.held(world, pair, 3, tested)


def test_the_record_of_coverage_has_every_case():
    record = json.loads((CONFIG.parent / "reports" / "coverage.json").read_text())
    cases = list(dict.fromkeys(row["case"] for row in record["rows"]))
    assert cases == [name for name, *_ in coverage.cases()]


def test_rounding_is_no_spread_that_a_run_could_exceed():
    moved = dict(enumerate((0.1, 1.7, -0.3)))
    found = alone({f"r{i}": {k: 30.1 + i / 3 + v for k, v in moved.items()} for i in range(9)})
    assert found is not None and found.own == {} and found.training.size == 0


def test_few_are_taken_for_runs_that_vary_more_where_none_does():
    random = np.random.default_rng(6)
    found = [alone(trainings(12, 3, 0.7, 2.0, random)) for _ in range(60)]
    assert sum(bool(one and one.own) for one in found) <= 4  # of 60, at 1 %: more in 1 of 3000


def test_stages_of_families_of_one_keep_all_that_moved_them():
    scores, lineages = staged(80, 1, 4, (2.0, 0.8, 0.6), np.random.default_rng(10))
    found = between_seeds(scores, lineages)
    assert found is not None and found.family == Deviation(0.0)
    assert found.stage.size == pytest.approx(1.0, rel=0.1) and found.stage.freedom == 80 * 3
    del scores["p0"]  # its child is then a training like others
    assert between_seeds(scores, {**lineages, "p0c0": ["p0c0"]}) is not None


def test_what_goes_on_from_the_trunks_of_a_fusion_has_them_in_common(tmp_path: Path):
    """A late fusion is no training of its own kind: it begins where its trunks ended."""
    rgb = make_run("nyudv2/rgb", (("table4", "FCN-32s RGB"),), (0, 1))
    hha = make_run("nyudv2/hha", (("table4", "FCN-32s HHA"),), (0, 1))
    trunks = {"runs": {"image": rgb.id, "hha": hha.id}}
    late = make_run("nyudv2/late", (("table4", "FCN-32s RGB-HHA"),), (0, 1), weights=trunks)
    finer = make_run(
        "nyudv2/finer", (("table4", "FCN-16s RGB-HHA"),), (0, 1), weights={"run": late.id}
    )
    for run, qualities in ((rgb, (0.5, 0.6)), (hha, (0.4, 0.3)), (late, (0.55, 0.62))):
        for seed, quality in enumerate(qualities):
            planted(tmp_path / "results", run, seed, quality)
            planted(tmp_path / "results", finer, seed, 0.56 + 0.07 * seed)
    suite = make_suite(rgb, hha, late, finer)
    results = load_results(suite, tmp_path / "results", [])
    every = set(results.runs)
    assert results.lineage(finer.id, every) == [f"{hha.id} + {rgb.id}", late.id, finer.id]
    assert results.lineage(finer.id, every - {hha.id}) == [late.id, finer.id]
    test = decided(suite, tmp_path, "depth")[0].tests[6]
    assert test.verdict == "reproduced", "their difference is that of a stage"
    scores = {run: {0: 1.0, 1: 3.0 * i} for i, run in enumerate((rgb.id, hha.id, late.id))}
    found = between_seeds(scores, {run: results.lineage(run, set(scores)) for run in scores})
    assert found is not None and found.training.freedom == 1  # of the two alone


def test_what_a_seed_does_to_all_is_known_from_as_many_seeds():
    found = alone(trainings(30, 3, 0.5, 2.0, np.random.default_rng(11)))
    assert found is not None
    assert (found.training.freedom, found.common.freedom) == (29 * 2, 2)


def test_what_stages_have_in_common_cancels():
    spread = Spread(Deviation(5.0), Deviation(3.0, 4), Deviation(1.0, 2), Deviation(1e-9))
    seeds = [0, 1]
    one, two = (spread.draws(["p", child], seeds) for child in ("a", "b"))
    assert abs(one - two).max() < 1e-6 and one.std() > 1
    parent = spread.draws(["p"], seeds)
    assert np.std(one - parent) == pytest.approx(np.std(spread.family.draws("x")) / 2**0.5, rel=0.5)
    assert not np.allclose(spread.draws(["q", "a"], seeds), one)
    assert not np.allclose(spread.draws(["p", "a"], [0, 2]), one)


def test_runs_that_lack_seeds_say_what_they_can():
    scores = trainings(60, 3, 0.7, 2.0, np.random.default_rng(6))
    for i, run in enumerate(scores):
        if i % 2:
            del scores[run][i % 3]
    scores["alone"] = {0: 99.0}
    found = alone(scores)
    assert found is not None and found.training.freedom == 60 * 3 - 30 - (60 + 3 - 1)
    assert found.training.size == pytest.approx(0.7, rel=0.25)
    assert alone({"a": {0: 1.0}, "b": {1: 2.0}}) is None


def test_one_pair_of_seeds_has_one_degree_of_freedom():
    found = alone({"a": {0: 30.0, 1: 34.0}, "b": {0: 1.0}})
    assert found is not None and found.common.size == 0
    assert found.training.size == pytest.approx(4 / math.sqrt(2)) and found.training.freedom == 1


@pytest.mark.parametrize("pair", [("p0", "p1"), ("p0c0", "p0"), ("p0c0", "p0c1"), ("p0c0", "p1c0")])
def test_an_interval_covers_the_truth_19_times_of_20(pair: tuple[str, str]):
    """Of the difference of two trainings, of a stage and what it began with, of two such stages."""
    random = np.random.default_rng(11)
    held = []
    for _ in range(200):
        scores, lineages = staged(4, 3, 2, (2.0, 0.8, 0.2), random)
        spread = between_seeds(scores, lineages)
        assert spread is not None
        found = [np.mean(list(scores[run].values())) for run in pair]
        truth = [5 * int(run[-1]) if "c" in run else 0 for run in pair]
        drawn = [spread.draws(lineages[run], [0, 1]) for run in pair]
        low, high = interval(found[0] - found[1] + drawn[0] - drawn[1])
        held.append(low < truth[0] - truth[1] < high)
    assert np.mean(held) > 0.91


def test_weights_that_are_scored_again_are_moved_alike():
    spread = Spread(Deviation(2.0), Deviation(1.0, 3), Deviation(0.0), Deviation(0.0))
    assert np.array_equal(spread.draws(["a"], [0, 1]), spread.draws(["a"], [0, 1]))
    assert not np.array_equal(spread.draws(["a"], [0]), spread.draws(["b"], [0]))
    still = replace(spread, training=Deviation(1e-9))
    assert abs(still.draws(["a"], [0]) - still.draws(["b"], [0])).max() < 1e-7


def test_seeds_that_two_runs_share_cancel_and_others_do_not():
    """Means over two and four seeds: 1/2 - 1/4 of the variance if two are shared, else the sum."""
    few = Spread(Deviation(2.0), Deviation(1e-9), Deviation(0.0), Deviation(0.0))
    for seeds, variance in (([0, 1], 1 / 2 - 1 / 4), ([4, 5], 1 / 2 + 1 / 4)):
        apart = few.draws(["a"], seeds) - few.draws(["b"], [0, 1, 2, 3])
        assert apart.std() == pytest.approx(2 * variance**0.5, rel=0.04)


@given(st.lists(st.floats(-1e3, 1e3), min_size=50, max_size=50))
def test_an_interval_holds_95_percent(values: list[float]):
    low, high = interval(np.array(values))
    inside = [low <= v <= high for v in values]
    assert sum(inside) >= 0.94 * len(values) - 2
    assert min(values) <= low <= high <= max(values)


def test_an_end_of_an_interval_is_no_accident_of_the_draws():
    """Of 200 times as many draws the central 95 % lie inside of nearly every interval."""
    random = np.random.default_rng(3)
    beyond = [
        interval(random.standard_normal(DRAWS))[0] < stats.norm.ppf(0.025) for _ in range(300)
    ]
    assert np.mean(beyond) > 0.94
    widths = [np.diff(interval(random.standard_normal(DRAWS)))[0] for _ in range(50)]
    assert np.mean(widths) < 1.04 * 2 * stats.norm.ppf(0.975)


def planted(
    results: Path,
    run: Run,
    seed: int,
    quality: float,
    images: int = 60,
    names: str = "image",
    noise: int = 0,
) -> Path:
    """A run whose prediction of each image is right for about ``quality`` of its pixels."""
    random = np.random.default_rng(7)  # the same images for every run
    truth = random.integers(1, 200, (images, CLASSES))
    luck = random.normal(0, 0.05, (images, 1))
    own = np.random.default_rng([seed, noise, int(1e6 * quality)]).normal(0, 0.01, truth.shape)
    hit = np.floor(truth * np.clip(quality + luck + own, 0, 1)).astype(np.int64)
    missed = truth - hit
    matrix = np.zeros((CLASSES, CLASSES), np.int64)
    for c in range(CLASSES):
        matrix[c, c] = hit[:, c].sum()
        matrix[c, (c + 1) % CLASSES] += missed[:, c].sum()
    predicted = hit + np.roll(missed, 1, axis=1)
    first = np.zeros_like(hit)  # what is predicted where the truth is the first class
    first[:, 0], first[:, 1] = hit[:, 0], missed[:, 0]
    four = scores(matrix)
    folder = write_result(
        results,
        run,
        seed,
        tuple(float(getattr(four, metric) or 0) for metric in METRICS),  # type: ignore[arg-type]
    )
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["tasks"]["semantic"]["confusion"] = matrix.tolist()
    write(folder / "metrics.json", metrics)
    np.savez_compressed(
        folder / "per_image.npz",
        ids=np.array([f"{names}{i}" for i in range(images)]),
        semantic_true_positive=hit,
        semantic_truth=truth,
        semantic_predicted=predicted,
        semantic_predicted_on_objects=predicted - first,
    )
    return folder


def decided(
    suite: Suite,
    root: Path,
    claim: str = "skip-pool4",
    server: list | None = None,
    spread: float = 0.4,
) -> tuple[ClaimView, list[str]]:
    found = load_results(suite, root / "results", server or [])
    claims = [one for one in CLAIMS if one.id == claim]
    views, problems = decide(claims, TABLES, PAPER, found, suite.compare, alike(spread))
    return views[0], problems


def pair(seeds: tuple[int, ...] = (0,)) -> tuple[Run, Run]:
    return (
        make_run("voc2011/fcn32s", (("table2", "FCN-32s"),), seeds),
        make_run("voc2011/fcn16s", (("table2", "FCN-16s"),), seeds),
    )


def filling(name: str, row: str, against: tuple[str, ...] = (), decides: bool = True) -> Run:
    run = make_run(f"voc2011/{name}", (), (0, 1))
    return replace(run, rows=(Row("context", row, against, decides),))


def test_a_claim_on_one_text_is_tested_on_the_runs_set_against_it(tmp_path: Path):
    """Two trainings fill a row: neither stands in for the other, and they are never mixed."""
    old, new = ("arXiv v2",), ("author's copy, Sept. 2015", "PAMI 2017")
    quality = {("FCN-32s", old): 0.6, ("FCN-16s", old): 0.5, ("FCN-32s", new): 0.4}
    runs = {key: filling(f"{key[0]}-{len(key[1])}", *key) for key in quality}
    for key, run in runs.items():
        for seed in run.seeds:
            planted(tmp_path / "results", run, seed, quality[key])
    tests = decided(make_suite(*runs.values()), tmp_path, "context-skips")[0].tests
    first = {test.test.what: test for test in tests if "FCN-16s above FCN-32s" in test.test.what}
    accumulated = first["FCN-16s above FCN-32s, accumulated batches"]
    assert accumulated.verdict == "not reproduced"
    assert [run for _, _, run in accumulated.values if run] and accumulated.point
    assert [label for _, label in accumulated.paper] == ["arXiv v2"]
    single = first["FCN-16s above FCN-32s, single images"]
    assert (single.verdict, single.reason) == (
        "not run",
        "“FCN-16s”: no run",
    )
    assert [label for _, label in single.paper] == list(new)
    every = [filling("every-32s", "FCN-32s"), filling("every-16s", "FCN-16s")]
    for run, share in zip(every, (0.4, 0.6), strict=True):
        for seed in run.seeds:
            planted(tmp_path / "results", run, seed, share)
    tests = decided(make_suite(*every), tmp_path, "context-skips")[0].tests
    assert [t.verdict for t in tests if "FCN-16s above FCN-32s" in t.test.what] == [
        *["reproduced"] * 2,
        "not run",  # of 33 classes
    ]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_flipped_bit_of_the_counts_is_told_or_changes_nothing(tmp_path_factory, data):
    root = tmp_path_factory.mktemp("flip")
    run, _ = pair()
    path = planted(root / "results", run, 0, 0.7, images=20) / "per_image.npz"
    found = load_results(make_suite(run), root / "results", [])
    origin = ("metrics", "tasks", "semantic", "mean_iu")
    whole = Bootstrap(found).draws(found.runs[run.id], origin, "all")
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    bootstrap = Bootstrap(found)
    draws = bootstrap.draws(found.runs[run.id], origin, "all")
    if draws is None:
        assert "per_image.npz" in bootstrap.problems[0]
    else:  # an id, perhaps: other draws of the same images
        assert whole is not None and draws.mean() == pytest.approx(whole.mean(), abs=0.01)


def test_a_run_may_fill_a_row_without_deciding(tmp_path: Path):
    low = filling("low", "FCN-32s")
    shown, tested = filling("shown", "FCN-16s", decides=False), filling("tested", "FCN-16s")
    for run, quality in ((low, 0.5), (shown, 0.3), (tested, 0.7)):
        for seed in run.seeds:
            planted(tmp_path / "results", run, seed, quality)
    for suite, verdict in (((low, shown, tested), "reproduced"), ((low, shown), "not run")):
        test = decided(make_suite(*suite), tmp_path, "context-skips")[0].tests[0]
        assert test.verdict == verdict
    assert test.reason == "“FCN-16s”: the run here decides no claim, see its note"


def test_a_run_without_a_result_says_how_it_stands(tmp_path: Path):
    low, high = pair(seeds=(0, 1))
    planted(tmp_path / "results", low, 0, 0.6)
    suite = make_suite(low, high)
    assert decided(suite, tmp_path)[0].tests[0].reason == "“FCN-16s”: not run"
    folder = planted(tmp_path / "results", high, 0, 0.6)
    (folder / "metrics.json").unlink()
    assert decided(suite, tmp_path)[0].tests[0].reason == "“FCN-16s”: trained, not evaluated"
    (folder / "train.json").unlink()
    told = {"config_hash": high.hash, "update": 40, "updates": 300}
    write(folder / "diverged.json", told)
    reason = decided(suite, tmp_path)[0].tests[0].reason
    assert reason.startswith("“FCN-16s”: seed 0 diverged at update")


def test_draws_equal_a_test_set_put_together_by_hand(tmp_path: Path):
    run, _ = pair()
    folder = planted(tmp_path / "results", run, 0, 0.7, images=9)
    found = load_results(make_suite(run), tmp_path / "results", [])
    bootstrap = Bootstrap(found)
    result = found.runs[run.id]
    counts = np.load(folder / "per_image.npz")
    weights = image_weights([f"image{i}" for i in range(9)])
    for rule in AVERAGES:
        third = "predicted_on_objects" if rule == "objects" else "predicted"
        drawn = bootstrap.draws(result, ("metrics", "tasks", "semantic", "mean_iu"), rule)
        assert drawn is not None and drawn.shape == (DRAWS,)
        for k in (0, 1, DRAWS - 1):
            images = [i for i in range(9) for _ in range(int(weights[k, i]))]
            hit, truth, predicted = (
                np.sum([counts[f"semantic_{part}"][i] for i in images], 0)
                for part in ("true_positive", "truth", third)
            )
            expected = float(average("mean_iu", hit, truth, predicted, rule))
            assert drawn[k] == pytest.approx(expected, abs=1e-12)
    assert bootstrap.problems == []
    assert bootstrap.draws(result, ("train", "loss"), "all") is None


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [
        (0.6, 0.7, "reproduced"),
        (0.7, 0.6, "not reproduced"),
        (0.6500, 0.6501, "inconclusive"),
    ],
)
def test_a_planted_difference_is_found(tmp_path: Path, first: float, second: float, verdict: str):
    low, high = pair()
    planted(tmp_path / "results", low, 0, first)
    planted(tmp_path / "results", high, 0, second)
    view, problems = decided(make_suite(low, high), tmp_path)
    test, other = view.tests
    assert problems == [] and test.verdict == verdict and other.verdict == "not run"
    assert view.verdict == ("reproduced as far as run" if verdict == "reproduced" else verdict)
    assert test.point is not None and test.low is not None and test.high is not None
    points = [
        r.values(("metrics", "tasks", "semantic", "mean_iu"))[0] for _, _, r in test.values if r
    ]
    assert test.point == pytest.approx(100 * (points[0] - points[1]))
    assert test.low < test.point < test.high
    assert test.paper == [("+3.0", "CVPR 2015")] and other.paper == [("+1.4", "PAMI 2017")]
    assert test.marks == ["one seed", "seeds taken to differ by 0.4 points"]


def test_a_csv_has_the_papers_measures_unrounded(tmp_path: Path):
    view, _ = decided(make_suite(*pair()), tmp_path, "fine-tuning")
    record = claim_records([view])[1]
    assert float(record.paper) == pytest.approx(46.6 / 63.6, abs=1e-15)
    augmented, _ = decided(make_suite(*pair()), tmp_path, "at-once")
    assert float(claim_records([augmented])[0].paper) == pytest.approx(65.4 - 65.5)


@given(st.floats(0.4, 0.6).filter(lambda end: abs(end - 0.5) > 1e-4))
def test_an_end_of_an_interval_is_not_printed_as_the_bound_it_keeps_from(end: float):
    test = next(c for c in CLAIMS if c.id == "interpolation").tests[0]
    assert test.expect.high == 0.5
    view = TestView(test, "reproduced", "", [])
    assert (float(view.text(end).replace("\u2212", "-")) < 0.5) == (end < 0.5)


def test_the_end_of_an_interval_shows_on_which_side_of_0_it_is():
    test = next(claim for claim in CLAIMS if claim.id == "skip-pool4").tests[0]
    view = TestView(test, "reproduced", "", [], point=2.6, low=0.02, high=5.26)
    assert view.ours == "+2.6 [+0.02, +5.3]"
    view.low = 0.0031
    assert view.ours == "+2.6 [+0.003, +5.3]"
    view.low, view.high = -1.0, -0.04
    assert view.ours == "+2.6 [\N{MINUS SIGN}1.0, \N{MINUS SIGN}0.04]"
    assert view.text(0.0) == "0.0" and view.text(0.05) == "+0.1"


def test_the_same_images_make_the_interval_narrower(tmp_path: Path):
    """Pairing removes the luck of the images, which both runs share."""
    low, high = pair()
    planted(tmp_path / "results", low, 0, 0.65)
    widths = {}
    for names in ("image", "another"):
        planted(tmp_path / "results", high, 0, 0.66, names=names)
        test = decided(make_suite(low, high), tmp_path, spread=1e-6)[0].tests[0]
        assert test.low is not None and test.high is not None
        widths[names] = test.high - test.low
    assert widths["image"] < 0.5 * widths["another"]


def test_a_run_against_itself_has_no_difference_and_decides_nothing(tmp_path: Path):
    run = make_run("voc2011/one", (("table2", "FCN-32s"), ("table2", "FCN-16s")))
    planted(tmp_path / "results", run, 0, 0.65)
    test = decided(make_suite(run), tmp_path)[0].tests[0]
    assert (test.point, test.low, test.high) == (0, 0, 0)
    assert test.verdict == "inconclusive"


def test_seeds_that_disagree_widen_the_interval(tmp_path: Path):
    low, high = pair(seeds=(0, 1, 2))
    for seed, quality in enumerate((0.60, 0.66, 0.72)):
        planted(tmp_path / "results", low, seed, 0.65, noise=seed)
        planted(tmp_path / "results", high, seed, quality)
    view, _ = decided(make_suite(low, high), tmp_path)
    assert view.tests[0].verdict == "inconclusive" and view.tests[0].marks == ["3 seeds"]
    assert not view.one_seed
    for seed in (1, 2):
        for run in (low, high):
            folder = run.directory(tmp_path / "results", seed)
            (folder / "metrics.json").unlink()
    view, _ = decided(make_suite(low, high), tmp_path)
    assert view.tests[0].verdict == "not reproduced" and view.one_seed
    assert view.tests[0].marks[0] == "one seed"


def test_one_seed_on_data_of_which_no_spread_is_known_decides_nothing(tmp_path: Path):
    low, high = pair()
    planted(tmp_path / "results", low, 0, 0.6)
    folder = planted(tmp_path / "results", high, 0, 0.7)
    test = decided(replace(make_suite(low, high), compare=False), tmp_path)[0].tests[0]
    assert (test.verdict, test.reason) == ("inconclusive", "no run here has two seeds")
    metrics = json.loads((folder / "metrics.json").read_text())
    write(folder / "metrics.json", {**metrics, "subset": True})
    assert decided(make_suite(low, high), tmp_path)[0].tests[0].verdict == "inconclusive"
    other = make_run("voc2011/other", (), (0, 1))  # says what a seed does
    for seed, quality in enumerate((0.650, 0.651)):
        planted(tmp_path / "results", other, seed, quality)
    test = decided(make_suite(low, high, other), tmp_path)[0].tests[0]
    assert test.verdict == "reproduced" and test.marks[0] == "one seed"
    planted(tmp_path / "results", other, 1, 0.75)
    assert decided(make_suite(low, high, other), tmp_path)[0].tests[0].verdict == "inconclusive"


def test_seeds_that_move_both_runs_alike_decide(tmp_path: Path):
    low, high = pair(seeds=(0, 1, 2))
    for seed, quality in enumerate((0.50, 0.62, 0.74)):
        planted(tmp_path / "results", low, seed, quality)
        planted(tmp_path / "results", high, seed, quality + 0.03)
    test = decided(make_suite(low, high), tmp_path)[0].tests[0]
    assert test.verdict == "reproduced" and test.marks == ["3 seeds"]
    assert test.point and test.low and test.high
    assert 0 < test.low < test.point < test.high < 10


def test_only_the_seeds_that_all_runs_have_are_compared(tmp_path: Path):
    low, high = pair(seeds=(0, 1))
    planted(tmp_path / "results", low, 0, 0.70)
    planted(tmp_path / "results", low, 1, 0.40)
    folder = planted(tmp_path / "results", high, 0, 0.65)
    test = decided(make_suite(low, high), tmp_path)[0].tests[0]
    assert test.marks[0] == "one seed" and test.point and test.point < 0
    folder.rename(high.directory(tmp_path / "results", 2))  # none in common: all of each
    high = replace(high, seeds=(2,))
    test = decided(make_suite(low, high), tmp_path)[0].tests[0]
    assert test.point and test.point > 0
    assert test.marks[0] == "one seed"  # of the one with fewer


def test_weights_scored_again_differ_by_no_seed(tmp_path: Path):
    """A run without training moves with the run whose weights it scores."""
    low, high = pair()
    again = {**high.config, "recipe": None, "weights": {"run": low.id, "hash": low.hash}}
    high = replace(high, config=again)
    planted(tmp_path / "results", low, 0, 0.650)
    planted(tmp_path / "results", high, 0, 0.652)
    suite = make_suite(low, high)
    widths = []
    for spread in (0.001, 50.0):
        test = decided(suite, tmp_path, spread=spread)[0].tests[0]
        assert test.low is not None and test.high is not None
        widths.append(test.high - test.low)
    assert widths[0] == pytest.approx(widths[1], rel=1e-6)


def test_a_ratio_outside_of_its_own_interval_decides_nothing(tmp_path: Path):
    """Scores of the same weights near 0, moved by more than they are: the ratio becomes 1."""
    whole = make_run("voc2011/reference", (("pami_table8", "Reference"),))
    hidden = make_run("voc2011/reference-bg", (("pami_table8", "Reference-BG"),))
    again = {**hidden.config, "recipe": None, "weights": {"run": whole.id, "hash": whole.hash}}
    hidden = replace(hidden, config=again)
    planted(tmp_path / "results", whole, 0, 0.05)
    planted(tmp_path / "results", hidden, 0, 0.01)
    suite = make_suite(whole, hidden)
    few = decided(suite, tmp_path, "masking", spread=0.01)[0].tests[0]
    assert few.verdict == "reproduced" and few.point is not None and few.point < 0.5
    test = decided(suite, tmp_path, "masking", spread=1e4)[0].tests[0]
    assert test.point == few.point and test.low is not None and test.low > 0.9 > test.point
    assert test.verdict == "inconclusive"
    assert test.reason == "what was found lies outside of its interval: seeds differ by more"


def test_divergence_decides_where_the_claim_is_that_training_fails(tmp_path: Path):
    scaled = make_run("voc2011/scaled", (("at_once", "with scales"),))
    plain = make_run("voc2011/plain", (("at_once", "without scales"),))
    planted(tmp_path / "results", scaled, 0, 0.7)
    folder = plain.directory(tmp_path / "results", 0)
    told = {"config_hash": plain.hash, "update": 40, "updates": 300}
    write(folder / "diverged.json", told)
    suite = make_suite(scaled, plain)
    test = decided(suite, tmp_path, "at-once")[0].tests[1]
    assert test.verdict == "reproduced"
    assert test.reason == "“without scales” diverged at update 40 of 300 (seed 0)"
    assert test.marks == ["one seed"]
    page, _, _ = render(suite, tmp_path)
    assert "seed 0 diverged at update 40 of 300" in page.status("at_once", plain.id)
    write(folder / "diverged.json", {**told, "config_hash": "0" * 12})  # of another configuration
    assert decided(suite, tmp_path, "at-once")[0].tests[1].verdict == "not run"
    write(folder / "diverged.json", told)
    planted(tmp_path / "results", plain, 0, 0.71)  # trained since
    assert decided(suite, tmp_path, "at-once")[0].tests[1].verdict != "reproduced"


def test_a_verdict_says_that_it_rests_on_one_seed(tmp_path: Path):
    low, high = pair(seeds=(0, 1))
    for seed in (0, 1):
        planted(tmp_path / "results", low, seed, 0.6)
        planted(tmp_path / "results", high, seed, 0.7)
    suite = make_suite(low, high)
    assert not decided(suite, tmp_path)[0].one_seed
    render(suite, tmp_path)
    assert "on one seed" not in (tmp_path / "out" / "tables.md").read_text()
    shutil.rmtree(high.directory(tmp_path / "results", 1))
    assert decided(suite, tmp_path)[0].one_seed
    render(suite, tmp_path)
    text = (tmp_path / "out" / "tables.md").read_text()
    assert "1 reproduced as far as run (1 on one seed of a run)" in text


def test_rows_of_two_texts_that_the_same_runs_fill_are_one_test(tmp_path: Path):
    low = make_run("voc2011/a", (("table2", "FCN-32s"), ("pami_table3", "FCN-32s")))
    high = make_run("voc2011/b", (("table2", "FCN-16s"), ("pami_table3", "FCN-16s")))
    planted(tmp_path / "results", low, 0, 0.6)
    planted(tmp_path / "results", high, 0, 0.7)
    first, second = decided(make_suite(low, high), tmp_path)[0].tests
    assert "the same runs as above" in second.marks and "the same runs as above" not in first.marks
    other = make_run("voc2011/c", (("pami_table3", "FCN-16s"),))
    planted(tmp_path / "results", other, 0, 0.7)
    high = replace(high, rows=high.rows[:1])
    second = decided(make_suite(low, high, other), tmp_path)[0].tests[1]
    assert "the same runs as above" not in second.marks


def test_an_interval_wider_than_the_tolerance_says_how_many_seeds_it_lacks(tmp_path: Path):
    one = make_run("voc2011/with", (("dropout", "with"),), (0, 1))
    other = make_run("voc2011/without", (("dropout", "without"),), (0, 1))
    for seed in (0, 1):
        planted(tmp_path / "results", one, seed, 0.60 + 0.05 * seed)
        planted(tmp_path / "results", other, seed, 0.65 - 0.05 * seed)
    test = decided(make_suite(one, other), tmp_path, "dropout")[0].tests[0]
    assert test.verdict == "inconclusive" and test.low is not None and test.high is not None
    found = re.fullmatch(
        "the interval crosses the tolerance; at this value about (\\d+) seeds would decide",
        test.reason,
    )
    assert found and 2 < int(found[1]) <= math.ceil(2 * ((test.high - test.low) / 2) ** 2)


def test_values_behind_a_measure_have_their_units(tmp_path: Path):
    fine = make_run("voc2011/null", (("loss", "null background"),))
    plain = make_run("voc2011/softmax", (("loss", "softmax"),))
    planted(tmp_path / "results", fine, 0, 0.6)
    planted(tmp_path / "results", plain, 0, 0.61)
    described = {
        run.id: {"parameters": count} for run, count in ((fine, 134_000_000), (plain, 134_010_000))
    }
    write(tmp_path / "results" / "architecture.json", {"nets": {}, "runs": described})
    tests = decided(make_suite(fine, plain), tmp_path, "null-background")[0].tests
    assert next(text for _, text, _ in tests[0].values).endswith("\u00a0%")
    shown = [text for _, text, _ in tests[2].values]
    assert shown == [
        f"134{THIN}000{THIN}000\u00a0parameters",
        f"134{THIN}010{THIN}000\u00a0parameters",
    ]


def test_without_counts_of_the_images_nothing_is_decided(tmp_path: Path):
    low, high = pair()
    planted(tmp_path / "results", low, 0, 0.6)
    folder = planted(tmp_path / "results", high, 0, 0.7)
    (folder / "per_image.npz").unlink()
    view, problems = decided(make_suite(low, high), tmp_path)
    assert view.tests[0].verdict == "inconclusive" and problems == []
    assert "no counts per image" in view.tests[0].reason and view.tests[0].low is None


def masked(root: Path) -> Suite:
    """Runs of two rows of Table 8, scored."""
    runs = []
    for name, quality in (("Reference", 0.8), ("Reference-BG", 0.1)):
        runs.append(make_run(f"voc2011/{name.lower()}", (("pami_table8", name),)))
        planted(root / "results", runs[-1], 0, quality)
    return make_suite(*runs)


def test_both_readings_of_table_8_have_an_interval(tmp_path: Path):
    suite = masked(tmp_path)
    view, problems = decided(suite, tmp_path, "masking")
    objects, foreground, *others = view.tests
    assert problems == [] and {test.verdict for test in others} == {"not run"}
    for test, rule in ((objects, "objects"), (foreground, "without_background")):
        assert test.verdict == "reproduced" and test.low is not None and test.high is not None
        whole, hidden = (
            result.values(("metrics", "tasks", "semantic", "mean_iu"), rule)[0]
            for result in load_results(suite, tmp_path / "results", []).runs.values()
        )
        assert test.point == pytest.approx(hidden / whole)
        assert test.low < hidden / whole < test.high
    assert objects.point != pytest.approx(foreground.point)
    assert objects.paper == [("0.23", "PAMI 2017")] and foreground.paper == []


def test_counts_of_an_earlier_version_decide_the_other_reading(tmp_path: Path):
    suite = masked(tmp_path)
    for run in suite.runs.values():
        path = run.directory(tmp_path / "results", 0) / "per_image.npz"
        with np.load(path) as file:
            kept = {key: file[key] for key in file if not key.endswith("_on_objects")}
        np.savez_compressed(path, **kept)
    view, problems = decided(suite, tmp_path, "masking")
    objects, foreground, *_ = view.tests
    assert problems == [] and foreground.verdict == "reproduced"
    assert objects.verdict == "inconclusive" and objects.low is None and objects.point is not None
    assert objects.reason == "no counts per image for this mean, so no interval"


def test_counts_of_another_evaluation_are_not_used(tmp_path: Path):
    low, high = pair()
    planted(tmp_path / "results", low, 0, 0.6)
    folder = planted(tmp_path / "results", high, 0, 0.7)
    other = planted(tmp_path / "other", high, 0, 0.8)
    (folder / "per_image.npz").write_bytes((other / "per_image.npz").read_bytes())
    view, problems = decided(make_suite(low, high), tmp_path)
    assert view.tests[0].verdict == "inconclusive"
    assert problems == [
        "results/voc2011/fcn16s/seed0/per_image.npz: its counts are not those of metrics.json, "
        "so no interval is made from it."
    ]
    (folder / "per_image.npz").write_bytes(b"PK\x03\x04 cut")
    _, problems = decided(make_suite(low, high), tmp_path)
    assert len(problems) == 1 and "cannot be read" in problems[0]


def test_runs_of_one_test_set_are_taken_together(tmp_path: Path):
    runs = [
        make_run("voc2012/fcn32s", (("table2", "FCN-32s"),)),
        make_run("voc2011/fcn32s", (("table2", "FCN-32s"),)),
        make_run("voc2011/fcn16s", (("table2", "FCN-16s"),)),
    ]
    for run, quality in zip(runs, (0.9, 0.6, 0.7), strict=True):
        planted(tmp_path / "results", run, 0, quality)
    view, _ = decided(make_suite(*runs), tmp_path)
    assert [run.run.id for _, _, run in view.tests[0].values if run] == [
        "voc2011/fcn16s",
        "voc2011/fcn32s",
    ]
    assert view.tests[0].verdict == "reproduced"
    view, _ = decided(make_suite(runs[0], runs[2]), tmp_path)
    assert "different test images" in view.tests[0].marks


def test_subset_and_stale_are_marked(tmp_path: Path):
    low, high = pair()
    planted(tmp_path / "results", low, 0, 0.6)
    folder = planted(tmp_path / "results", high, 0, 0.7)
    metrics = json.loads((folder / "metrics.json").read_text())
    write(folder / "metrics.json", {**metrics, "subset": True, "config_hash": "0" * 12})
    view, _ = decided(make_suite(low, high), tmp_path)
    marks = view.tests[0].marks
    assert (marks[0], marks[-2:]) == ("one seed", ["subset", "stale"])


# ---------------------------------------------------------------- other kinds of values


def test_nothing_run_is_not_run_and_says_what_is_missing(tmp_path: Path):
    found = load_results(make_suite(), tmp_path / "results", [])
    views, problems = decide(CLAIMS, TABLES, PAPER, found, True, alike(0.4))
    assert problems == []
    for view in views:
        assert view.verdict == ("by test" if view.claim.by_test else "not run"), view.claim.id
        for test in view.tests:
            assert test.reason and test.ours == ""


def rates() -> tuple[Suite, list[Run]]:
    """FCN-16s at three rates, of two seeds each, not run."""
    names = ("FCN-16s, rate / 100", "FCN-16s, rate / 10", "FCN-16s, same rate")
    runs = [
        make_run(f"voc2011/{i}", (("stage_rate", name),), (0, 1)) for i, name in enumerate(names)
    ]
    return make_suite(*runs), runs


@pytest.mark.parametrize(
    ("qualities", "gone", "verdict"),
    [
        ((0.7, 0.6, 0.5), (), "reproduced"),
        ((0.6, 0.7, 0.5), (), "not reproduced"),
        ((0.7, 0.6, 0.7), (), "inconclusive"),
        ((0.7, 0.6, None), ((2, 0), (2, 1)), "reproduced"),
        ((0.6, 0.7, None), ((2, 0), (2, 1)), "not reproduced"),  # the tenth still decides
        ((0.6, 0.7, 0.5), ((2, 1),), "not reproduced"),
        ((0.7, 0.6, 0.7), ((2, 1),), "inconclusive"),  # one of two seeds diverged: of the other
        ((None, 0.6, None), ((2, 0), (2, 1), (0, 0), (0, 1)), "not reproduced"),
        ((0.7, None, None), ((1, 0), (1, 1), (2, 0), (2, 1)), "reproduced"),
    ],
)
def test_a_run_that_diverged_decides_its_part_alone(
    tmp_path: Path, qualities: tuple, gone: tuple, verdict: str
):
    suite, runs = rates()
    for i, (run, quality) in enumerate(zip(runs, qualities, strict=True)):
        for seed in run.seeds:
            if (i, seed) in gone:
                told = {"config_hash": run.hash, "update": 40, "updates": 300}
                write(run.directory(tmp_path / "results", seed) / "diverged.json", told)
            else:
                planted(tmp_path / "results", run, seed, quality, noise=10 * i + seed)
    test = decided(suite, tmp_path, "rate-drop")[0].tests[0]
    assert test.verdict == verdict, test
    if gone and qualities[2] is not None:
        assert "seed 1 of voc2011/2 diverged" in test.marks


def test_each_divergence_is_told_with_its_own_update(tmp_path: Path):
    run = make_run("voc2011/high", (("hyperparameters", "learning rate x 10"),), (0, 1, 2))
    for seed, update in enumerate((12, 18, 12)):
        stop = {"config_hash": run.hash, "update": update, "updates": 516}
        write(run.directory(tmp_path / "results", seed) / "diverged.json", stop)
    value = Value(table="hyperparameters", row="learning rate x 10")
    found = load_results(make_suite(run), tmp_path / "results", [])
    printed = Printed({table.id: table for table in TABLES}, PAPER)
    told = _Decider(printed, Samples(printed, found, True, Bootstrap(found), alike(0.4)))
    assert told.divergence(value) == (
        "“learning rate x 10” diverged at update 12 of 516 (seeds 0, 2), "
        "diverged at update 18 of 516 (seed 1)"
    )


def test_a_part_decided_by_one_divergence_marks_the_whole(tmp_path: Path):
    suite, runs = rates()
    told = {"config_hash": runs[2].hash, "update": 40, "updates": 300}
    write(runs[2].directory(tmp_path / "results", 1) / "diverged.json", told)
    for run, quality in zip(runs[:2], (0.7, 0.6), strict=True):
        for seed in run.seeds:
            planted(tmp_path / "results", run, seed, quality, noise=seed)
    view = decided(suite, tmp_path, "rate-drop")[0]
    assert view.tests[0].verdict == "reproduced" and view.one_seed
    assert "one seed" in view.tests[0].marks and "2 seeds" not in view.tests[0].marks


@given(st.sampled_from(["min", "max"]), st.booleans(), st.lists(st.tuples(*[st.floats(-5, 5)] * 2)))
def test_a_choice_is_decided_as_its_members_are(choice: str, above: bool, ends: list):
    """Against every value that the intervals leave possible."""
    tolerance = Tolerance(1.0, math.inf, "") if above else Tolerance(-math.inf, 1.0, "")
    intervals = [tuple(sorted(pair)) for pair in ends] or [(0.0, 2.0)]
    chosen = {"min": min, "max": max}[choice]
    least, most = (chosen(pair[k] for pair in intervals) for k in (0, 1))
    verdict = tolerance.of_parts(choice, [tolerance.verdict(*pair) for pair in intervals])
    assert verdict == tolerance.verdict(least, most)


def test_equal_runs_are_seldom_called_different():
    """The least of two differences is biased downwards; its parts are decided one by one."""
    random, called = np.random.default_rng(8), 0
    measure, tolerance = Measure.parse("min(a - b, b - c)", "here"), Tolerance(0, math.inf, "")
    for _ in range(300):
        values = dict(zip("abc", random.standard_normal(3), strict=True))
        draws = {key: v + random.standard_normal(2000) for key, v in values.items()}
        verdicts = [tolerance.verdict(*interval(part(draws))) for part in measure.parts]
        called += tolerance.of_parts("min", verdicts) == "not reproduced"
    assert called / 300 < 0.06


def test_an_inference_time_is_measured_once_whatever_the_seeds(tmp_path: Path):
    rows = (("dense_scores", "shift-and-stitch 16"), ("dense_scores", "FCN-16s"))
    runs = [make_run(f"voc2011/{i}", (row,), (0, 1)) for i, row in enumerate(rows)]
    for run, ms in zip(runs, (40.0, 10.0), strict=True):
        for seed in (0, 1):
            folder = planted(tmp_path / "results", run, seed, 0.6)
            timing = json.loads((folder / "timing.json").read_text())
            timing["protocols"]["paper"]["mean_ms"] = ms
            write(folder / "timing.json", timing)
        (folder / "timing.json").unlink()
    test = decided(make_suite(*runs), tmp_path, "shift-and-stitch")[0].tests[4]
    assert (test.verdict, test.point, test.marks) == ("inconclusive", 4.0, [])
    assert "on both sides" in test.reason  # the other ways of timing found no difference
    folder = runs[0].directory(tmp_path / "results", 0)
    timing = json.loads((folder / "timing.json").read_text())
    timing["protocols"]["synchronised"] = dict(timing["protocols"]["paper"])
    for protocol in timing["protocols"].values():
        protocol["mean_ms"], protocol["median_ms"] = 40.0, 30.0
    write(folder / "timing.json", timing)
    folder = runs[1].directory(tmp_path / "results", 0)
    for protocol in timing["protocols"].values():
        protocol["mean_ms"], protocol["median_ms"] = 10.0, 15.0
    write(folder / "timing.json", timing)
    test = decided(make_suite(*runs), tmp_path, "shift-and-stitch")[0].tests[4]
    assert (test.verdict, test.low, test.point, test.high) == ("reproduced", 2.0, 4.0, 4.0)
    del timing["protocols"]["paper"]["median_ms"]  # of one run: a mean meets no median
    write(folder / "timing.json", timing)
    test = decided(make_suite(*runs), tmp_path, "shift-and-stitch")[0].tests[4]
    assert (test.low, test.high) == (2.0, 4.0)


def test_times_differ_by_seed_and_stay_positive(tmp_path: Path):
    dense = make_run("voc2011/dense", (("dense_fc6", "fc6 14x14"),), (0, 1, 2))
    plain = make_run("voc2011/plain", (("dense_fc6", "FCN-16s"),), (0, 1, 2))
    for rates_of, verdict in (
        (((4.0, 8.0), (4.1, 8.1), (3.9, 8.2)), "reproduced"),
        (((4.0, 8.0), (9.0, 3.0), (2.0, 8.2)), "inconclusive"),
    ):
        for seed, (slow, fast) in enumerate(rates_of):
            for run, rate in ((dense, slow), (plain, fast)):
                folder = planted(tmp_path / "results", run, seed, 0.6)
                timed_on(folder, "A", images_per_second=rate)
        test = decided(make_suite(dense, plain), tmp_path, "finer-pool5")[0].tests[2]
        assert test.verdict == verdict and test.low is not None and test.low > 0
    one = make_suite(replace(dense, seeds=(0,)), replace(plain, seeds=(0,)))
    test = decided(one, tmp_path, "finer-pool5")[0].tests[2]
    assert (test.verdict, test.reason) == (
        "inconclusive",
        "one seed tells nothing of another's time",
    )


def test_the_time_of_stages_is_that_of_the_trainings_gone_through(tmp_path: Path):
    """Rows of other trainings, longer ones say, have no part in it."""
    results, seeds = tmp_path / "results", (0, 1)
    of = {"run": "voc2011/s32"}
    runs = {
        "s32": make_run("voc2011/s32", (), seeds),
        "s16": make_run("voc2011/s16", (), seeds, of),
        "s8": make_run(
            "voc2011/s8", (("pami_table3", "FCN-8s staged"),), seeds, {"run": "voc2011/s16"}
        ),
        "on": make_run("voc2011/on", (("pami_table3", "FCN-32s"),), seeds, of),
        "half": make_run("voc2011/half", (("at_once", "half as long"),), seeds),
    }
    seconds = {"s32": 100.0, "s16": 60.0, "s8": 40.0, "on": 9999.0, "half": 110.0}
    suite = make_suite(*runs.values())

    def test() -> TestView:
        return decided(suite, tmp_path, "training-time")[0].tests[1]

    for seed, factor in zip(seeds, (1.0, 1.1), strict=True):
        for name, run in runs.items():
            timed_on(planted(results, run, seed, 0.6), "A", seconds=factor * seconds[name])
    assert (test().point, test().verdict) == (pytest.approx(110 / 200), "reproduced")
    folder = runs["s32"].directory(results, 0)
    train = json.loads((folder / "train.json").read_text())
    for spoilt in (
        {key: value for key, value in train.items() if key != "seconds"},
        {**train, "config_hash": "of before"},
    ):
        write(folder / "train.json", spoilt)  # seed 1 is left
        assert (test().point, test().reason) == (
            pytest.approx(110 / 200),
            "one seed tells nothing of another's time",
        )
    write(folder / "train.json", train)
    for seed in seeds:
        timed_on(runs["s16"].directory(results, seed), "B")
    assert test().reason == "“FCN-8s staged”: not measured"


@given(st.lists(st.sets(st.integers(0, 5), max_size=2), min_size=1, max_size=6))
def test_each_training_behind_a_run_counts_once(parents: list[set[int]]):
    """Of any descent (each run goes on from earlier ones), against a plain recursion."""
    runs: dict[str, RunResult] = {}
    for i, above in enumerate(parents):
        names = {f"part{k}": f"voc2011/r{k}" for k in above if k < i}
        weights = (
            {"runs": names} if len(names) > 1 else {"run": names.popitem()[1]} if names else None
        )
        run = make_run(f"voc2011/r{i}", weights=weights)
        train = {"config_hash": run.hash, "seconds": float(2**i)}
        runs[run.id] = RunResult(run, [SeedResult(0, Path(), "", train=train)])

    def behind(id: str) -> set[str]:
        return {id}.union(*map(behind, runs[id].run.parents.values()))

    for id, result in runs.items():
        counted = sum(runs[one].seeds[0].train["seconds"] for one in behind(id))
        assert stages(runs, result, 0)["seconds"] == counted


def test_other_data_are_not_set_against_the_papers_numbers(tmp_path: Path):
    run = make_run("scenes/alexnet", (("table1", "FCN-AlexNet"),))
    planted(tmp_path / "results", run, 0, 0.5)
    view, _ = decided(replace(make_suite(run), compare=False), tmp_path, "worst-backbone")
    assert view.verdict == "not run" and "paper's own data" in view.tests[0].reason
    view, _ = decided(make_suite(run), tmp_path, "worst-backbone")
    assert view.verdict != "not run" and view.tests[0].point is not None
    folder = run.directory(tmp_path / "results", 0)
    metrics = json.loads((folder / "metrics.json").read_text())
    write(folder / "metrics.json", {**metrics, "subset": True})
    view, _ = decided(make_suite(run), tmp_path, "worst-backbone")
    assert view.verdict == "not run" and "these are subsets" in view.tests[0].reason


@pytest.mark.parametrize(("ms", "verdict"), [(10.0, "reproduced"), (30.0, "not reproduced")])
def test_times_of_section_31_decide_by_themselves(tmp_path: Path, ms: float, verdict: str):
    whole = {"forward_ms": ms, "backward_ms": 30.0, "cells": 100}
    patches = {"per_crop_batched_ms": 1.0, "per_crop_batched_backward_ms": 2.0}
    write(tmp_path / "results" / "classifier.json", {**whole, **patches})
    view, _ = decided(make_suite(), tmp_path, "whole-image-speed")
    assert [test.verdict for test in view.tests] == [verdict, "reproduced"]
    assert view.tests[0].point == pytest.approx(100 / ms) and view.tests[0].low is None
    assert view.tests[0].paper == [("5.45", "CVPR 2015 = PAMI 2017")]
    write(tmp_path / "results" / "classifier.json", {**whole, **patches, "net": "another suite's"})
    view, _ = decided(make_suite(), tmp_path, "whole-image-speed")
    assert view.verdict == "not run"


def test_a_score_of_the_server_decides(tmp_path: Path):
    entry = {"table": "pami_table4", "row": "FCN-8s", "run": "voc2011/fcn8s", "seed": 0}
    entry = {**entry, "date": "2026-01-02", "voc2012_test": 67.0}
    view, _ = decided(make_suite(), tmp_path, "voc-test", [entry])
    assert [test.verdict for test in view.tests] == ["not run", "reproduced", "not run", "not run"]
    assert view.tests[1].point == pytest.approx(67.0 / 51.6)
    view, _ = decided(make_suite(), tmp_path, "voc-test", [entry | {"voc2011_test": 60.0}])
    assert [test.verdict for test in view.tests[2:]] == ["not run", "not reproduced"]
    assert view.tests[3].point == pytest.approx(60.0 / 52.6)


def write_curve(folder: Path, losses: np.ndarray, images: int, seconds: float) -> None:
    updates = 20 * np.arange(1, len(losses) + 1)
    frame = {"update": updates, "images": images * updates, "seconds": seconds * updates}
    pd.DataFrame({**frame, "loss": losses, "learning_rate": 1e-4}).to_csv(
        folder / "loss.csv", index=False
    )


def test_curves_of_figure_5(tmp_path: Path):
    rows = ("full images", "50% sampling", "25% sampling")
    runs = [make_run(f"voc2011/p{i}", (("figure5", row),), (0, 1)) for i, row in enumerate(rows)]
    for i, run in enumerate(runs):  # a part of each image, of as many more images
        recipe = {**(run.config["recipe"] or {}), "patch_keep": 0.5**i}
        runs[i] = replace(run, config={**run.config, "recipe": recipe})
    losses = 0.3 + np.exp(-np.arange(100) / 30)
    results = tmp_path / "results"
    for i, run in enumerate(runs):
        write_curve(planted(results, run, 0, 0.6), losses, 20 * 2**i, 2.0**i)
    view, _ = decided(make_suite(*runs), tmp_path, "patches")
    assert {test.verdict for test in view.tests} == {"inconclusive"}
    assert "one seed" in view.tests[0].reason and view.tests[0].point == pytest.approx(1)
    for i, run in enumerate(runs):
        write_curve(planted(results, run, 1, 0.6), losses * 1.01, 20 * 2**i, 2.0**i)
    view, _ = decided(make_suite(*runs), tmp_path, "patches")
    assert view.verdict == "reproduced"
    assert [round(test.point or 0, 6) for test in view.tests] == [1, 1, 2, 4, 2, 4]
    for seed in (0, 1):
        write_curve(runs[1].directory(results, seed), losses * 1.5, 40, 2.0)
    view, _ = decided(make_suite(*runs), tmp_path, "patches")
    assert view.tests[0].verdict == "not reproduced"
    assert view.tests[0].point == pytest.approx(1.5, rel=0.01)
    write_curve(runs[1].directory(results, 0), losses, 40, 2.0)
    write_curve(runs[1].directory(results, 1), losses + 5, 40, 2.0)
    view, _ = decided(make_suite(*runs), tmp_path, "patches")
    assert (view.tests[2].verdict, view.tests[3].verdict) == ("inconclusive", "reproduced")
    assert "never reaches" in view.tests[2].reason
    write_curve(runs[1].directory(results, 0), losses + 5, 40, 2.0)
    view, _ = decided(make_suite(*runs), tmp_path, "patches")
    assert view.tests[2].verdict == "not run" and "not measured" in view.tests[2].reason


@pytest.mark.parametrize("damage", ["", "header", "half", "none finite", "gone"])
def test_a_damaged_loss_curve_is_told_and_no_claim_is_tested_on_it(tmp_path: Path, damage: str):
    rows = ("full images", "50% sampling", "25% sampling")
    runs = [make_run(f"voc2011/p{i}", (("figure5", row),), (0, 1, 2)) for i, row in enumerate(rows)]
    losses, results = 0.3 + np.exp(-np.arange(100) / 30), tmp_path / "results"
    for run in runs:
        for seed in run.seeds:
            folder = planted(results, run, seed, 0.6)
            write_curve(folder, losses * (1 + 0.01 * seed), 20, 1.0)
            train = json.loads((folder / "train.json").read_text())
            write(folder / "train.json", {**train, "updates": 2000})
    path = runs[1].directory(results, 2) / "loss.csv"
    lines = path.read_text().splitlines(keepends=True)
    if damage == "gone":
        path.unlink()
    elif damage == "none finite":
        frame = pd.read_csv(path)
        frame.assign(loss=np.nan).to_csv(path, index=False)
    elif damage:
        path.write_text("".join(lines[: {"header": 1, "half": 51}[damage]]))
    view, problems = decided(make_suite(*runs), tmp_path, "patches")
    assert [test.marks[0] for test in view.tests[:2]] == [f"{2 if damage else 3} seeds", "3 seeds"]
    assert view.tests[0].point == pytest.approx(1)
    sentence = {
        "header": "empty",
        "half": "ends at update 1000 of 2000",
        "none finite": "has no finite loss",
        "gone": "missing",
    }
    told = (
        f"results/voc2011/p1/seed2/loss.csv: {sentence.get(damage)}, so no claim is tested on it."
    )
    assert problems == ([told] if damage else [])


def timed_on(folder: Path, device: str, **train: float) -> None:
    found = json.loads((folder / "train.json").read_text())
    found["provenance"]["device"]["name"] = device
    write(folder / "train.json", {**found, **train})


def test_times_of_two_devices_are_not_compared(tmp_path: Path):
    results = tmp_path / "results"
    heavy = make_run("voc2011/heavy", (("pami_table2", "FCN-heavy"),), (0, 1, 2))
    online = make_run("voc2011/online", (("pami_table2", "FCN-online"),), (0, 1, 2))
    accum = make_run("voc2011/accum", (("pami_table2", "FCN-accum"),), (0, 1, 2))
    losses = 0.3 + np.exp(-np.arange(100) / 30)
    for seed in (0, 1, 2):
        fast = seed != 1  # one seed of each on a device that is ten times as slow
        for run, seconds in ((heavy, 1.0), (online, 2.0), (accum, 3.0)):
            folder = planted(results, run, seed, 0.6)
            write_curve(folder, losses * (1 + 0.001 * seed), 1, seconds if fast else 10 * seconds)
            timed_on(folder, "fast" if fast else "slow")
    suite = make_suite(heavy, online, accum)
    test = decided(suite, tmp_path, "heavy-learning")[0].tests[1]
    assert test.point == pytest.approx(0.5, rel=1e-3) and "2 seeds" in test.marks
    for seed in (0, 1, 2):
        timed_on(heavy.directory(results, seed), "slow")
    test = decided(suite, tmp_path, "heavy-learning")[0].tests[1]  # seed 1 is left
    assert test.point == pytest.approx(0.5, rel=1e-3) and "one seed" in test.marks
    for seed in (0, 1, 2):
        timed_on(heavy.directory(results, seed), "another")
    view, _ = decided(suite, tmp_path, "heavy-learning")
    assert [test.verdict for test in view.tests][1] == "not run"
    assert view.tests[1].reason == "timed on different devices"
    assert view.tests[0].point is not None  # a score needs no clock


@given(st.lists(st.floats(0.1, 3), min_size=3, max_size=40), st.floats(0.1, 3), st.integers(1, 5))
def test_a_level_is_reached_where_a_plain_loop_says(losses: list[float], level: float, rows: int):
    x = np.arange(len(losses), dtype=float)
    means = [sum(losses[i : i + rows]) / rows for i in range(len(losses) - rows + 1)]
    i = next((i for i, mean in enumerate(means) if mean <= level), None)
    expected = None if i is None else float(i)
    if i:  # between the row before and this one
        expected = i - 1 + (means[i - 1] - level) / (means[i - 1] - means[i])
    if all(abs(mean - level) > 1e-9 for mean in means):
        found = reached(x, np.array(losses), level, rows)
        assert found == (None if expected is None else pytest.approx(expected + (rows - 1) / 2))


def test_small_batches_do_not_win_by_the_noise_of_their_curve(tmp_path: Path):
    """The same losses image by image, logged in batches of 1 and of 20: as soon to a level."""
    rows = ("FCN-online", "FCN-accum")
    runs = [make_run(f"voc2011/{row.lower()}", (("pami_table2", row),), (0, 1)) for row in rows]
    results, random, ratios = tmp_path / "results", np.random.default_rng(2), []
    for _ in range(20):
        for seed in (0, 1):
            own = 0.3 + 1.5 * np.exp(-np.arange(24_000) / 8000) + random.normal(0, 0.5, 24_000)
            for run, batch in zip(runs, (1, 20), strict=True):
                losses = own.reshape(-1, 20 * batch).mean(1)
                folder = planted(results, run, seed, 0.6)
                write_curve(folder, losses, batch, float(batch))
        test = decided(make_suite(*runs), tmp_path, "heavy-learning")[0].tests[2]
        assert test.point is not None
        ratios.append(test.point)
    assert np.median(ratios) == pytest.approx(1, abs=0.1) and min(ratios) > 0.7


def test_bounds_are_the_least_generous_method_and_the_nearest(tmp_path: Path):
    paper = {"128": 0.509, "64": 0.733, "32": 0.861, "16": 0.928, "8": 0.964, "4": 0.985}
    lower = {factor: value - 0.02 for factor, value in paper.items()}
    write(
        tmp_path / "results" / "voc2011" / "bounds.json",
        {"methods": {"lower": lower, "near": {**paper, "64": 0.738}}},
    )
    view, _ = decided(make_suite(), tmp_path, "resolution")
    assert [test.verdict for test in view.tests] == ["not run", "reproduced", "reproduced"]
    assert view.tests[1].point == pytest.approx(94.4)
    assert view.tests[2].point == pytest.approx(0.5)
    found = json.loads((tmp_path / "results" / "voc2011" / "bounds.json").read_text())
    write(tmp_path / "results" / "voc2011" / "bounds.json", {**found, "subset": True})
    view, _ = decided(make_suite(), tmp_path, "resolution")
    assert [test.verdict for test in view.tests] == ["not run"] * 3
    assert all("these are subsets" in test.reason for test in view.tests[1:])
    foreign = replace(make_suite(), compare=False)  # whose objects have another size
    view, _ = decided(foreign, tmp_path, "resolution")
    assert all("the paper's own data" in test.reason for test in view.tests[1:])


def test_the_page_and_the_exports_have_the_claims(tmp_path: Path):
    low, high = pair()
    planted(tmp_path / "results", low, 0, 0.6)
    planted(tmp_path / "results", high, 0, 0.7)
    _, records, summary = render(make_suite(low, high), tmp_path)
    assert summary["claims"] == {"reproduced as far as run": 1, "by test": 2, "not run": 35}
    text = (tmp_path / "out" / "tables.html").read_text()
    assert text.index('id="claims"') < text.index('id="reading"')
    block = text.split('id="claim-skip-pool4"')[1].split("</tbody>")[0]
    (record,) = [r for r in records if r["row"] == "11 skip-pool4" and r["status"] == "reproduced"]
    shown = f"+{float(record['ours_mean']):.1f} [+{float(record['interval_low']):.1f}, "
    shown += f"+{float(record['interval_high']):.1f}]"
    assert shown in block and "one seed" in block and 'href="#table2"' in block
    assert '<a href="#run-voc2011-fcn16s"' in block and "+3.0" in block
    for kind in ("md", "tex"):
        export = (tmp_path / "out" / f"tables.{kind}").read_text()
        assert "A skip from pool4 improves the net." in export and "reproduced" in export
    table = list(csv.DictReader(io.StringIO((tmp_path / "out" / "tables.csv").read_text())))
    assert len({r["row"] for r in table if r["table"] == "claims"}) == 38
    other, _, _ = render(replace(make_suite(low, high), compare=False), tmp_path, config=CONFIG)
    assert "on other data than the paper" in other.text
    bare, _, summary = render(
        make_suite(low, high), tmp_path, config=write_config(tmp_path / "config")
    )
    assert summary["claims"] == {} and 'id="claims"' not in bare.text


def test_a_pair_on_as_many_images_as_seg11valid(tmp_path: Path, monkeypatch):
    """736 images of 21 classes."""
    low, high = pair()
    counts = np.random.default_rng(0).integers(0, 9000, (736, 21))
    for run in (low, high):
        folder = planted(tmp_path / "results", run, 0, 0.6)
        parts = {f"semantic_{part}": counts for part in ("true_positive", "truth", "predicted")}
        ids = np.array([f"{i}" for i in range(736)])
        np.savez_compressed(folder / "per_image.npz", ids=ids, **parts)  # type: ignore[arg-type]
        metrics = json.loads((folder / "metrics.json").read_text())
        whole = dict.fromkeys(METRICS, 1.0)
        metrics["tasks"]["semantic"] |= {**whole, "confusion": np.diag(counts.sum(0)).tolist()}
        write(folder / "metrics.json", metrics)
    made: list[int] = []

    def counted(ids):
        made.append(len(ids))
        return image_weights(ids)

    monkeypatch.setattr("fcn.report.bootstrap.image_weights", counted)
    view, problems = decided(make_suite(low, high), tmp_path)
    assert view.tests[0].low is not None and problems == []
    assert made == [736]  # the costly part, once for both runs


def samples_of(suite: Suite, root: Path) -> Samples:
    found = load_results(suite, root / "results", [])
    printed, compare = Printed({table.id: table for table in TABLES}, PAPER), suite.compare
    return Samples(printed, found, compare, Bootstrap(found), alike(0.4))


def named_tests(claim: str) -> list[Test]:
    return next(one.tests for one in CLAIMS if one.id == claim)


def test_levels_and_shares_of_a_curve_include_their_ends():
    x, y = np.array([10.0, 20.0, 30.0, 40.0]), np.array([4.0, 3.0, 2.0, 1.0])
    assert mean_loss(x, y, 0.25, 0.5) == 3.5
    assert level_at(x, y, 0.5, 1) == 3.0 and level_at(x, y, 0.375, 1) == 3.5
    assert reached(x, y, 3.0, 1) == 20.0  # as a run reaches its own level


def test_a_test_that_failed_outweighs_one_that_is_undecided():
    verdicts = ("inconclusive", "not reproduced", "reproduced")
    views = [TestView(named_tests("skip-pool4")[0], verdict, "", []) for verdict in verdicts]
    assert _whole(views) == _whole(views[::-1]) == "not reproduced"
    assert _whole(views[::2]) == "inconclusive"


def test_a_method_without_a_bound_is_no_least_generous_one(tmp_path: Path):
    methods = {"whole": {"8": 0.964}, "part": {"16": 0.928}}
    write(tmp_path / "results" / "voc2011" / "bounds.json", {"methods": methods})
    view, _ = decided(make_suite(), tmp_path, "resolution")
    assert {test.verdict for test in view.tests} == {"not run"}


def test_three_rows_of_the_largest_batch_are_averaged(tmp_path: Path):
    rows = ("FCN-online", "FCN-accum")
    runs = [make_run(f"voc2011/{row.lower()}", (("pami_table2", row),)) for row in rows]
    for run, batch in zip(runs, (1, 20), strict=True):
        folder = planted(tmp_path / "results", run, 0, 0.6)
        write_curve(folder, np.ones(5), batch, 1.0)
    ours = samples_of(make_suite(*runs), tmp_path)
    assert ours.window(named_tests("heavy-learning")[2]) == 3 * 20 * 20


def test_each_seed_has_its_own_level_and_rows_without_a_loss_are_passed_over(tmp_path: Path):
    rows = ("full images", "50% sampling", "25% sampling")
    runs = [make_run(f"voc2011/p{i}", (("figure5", row),), (0, 1)) for i, row in enumerate(rows)]
    losses = 0.3 + np.exp(-np.arange(100) / 30)
    for factor in (1, 2):  # the second seed never comes to the losses of the first
        for run in runs:
            curve = losses * factor
            curve[99] = np.nan
            folder = planted(tmp_path / "results", run, factor - 1, 0.6)
            write_curve(folder, curve, 20, 1.0)
    view, _ = decided(make_suite(*runs), tmp_path, "patches")
    assert [test.point for test in view.tests] == pytest.approx([1, 1, 1, 1, 1, 1])
    ours = samples_of(make_suite(*runs), tmp_path)
    cost = next(v for v in named_tests("patches")[2].values.values() if v.axis)
    levels = [ours.level(cost, seed, 0.0) for seed in (0, 1)]
    assert levels[0] and levels[1] == pytest.approx(2 * levels[0])


def test_what_seeds_do_is_of_these_test_images_and_of_trainings(tmp_path: Path):
    low, high = pair()
    planted(tmp_path / "results", low, 0, 0.6)
    planted(tmp_path / "results", high, 0, 0.7)
    other = make_run("voc2012/other", (), (0, 1))
    for seed, quality in enumerate((0.650, 0.651)):
        planted(tmp_path / "results", other, seed, quality)
    suite = replace(make_suite(low, high, other), compare=False)
    test = decided(suite, tmp_path)[0].tests[0]
    assert (test.verdict, test.reason) == ("inconclusive", "no run here has two seeds")

    low, high = pair(seeds=(0, 1))
    again = {**high.config, "recipe": None, "weights": {"run": low.id, "hash": low.hash}}
    high = replace(high, config=again)  # the same two trainings, scored twice
    for seed, quality in enumerate((0.60, 0.64)):
        planted(tmp_path / "results", low, seed, quality)
        planted(tmp_path / "results", high, seed, quality)
    ours = samples_of(make_suite(low, high), tmp_path)
    value = named_tests("skip-pool4")[0].values["a"]
    found, lineage = ours.spread(value, ours.results.runs[high.id])
    assert found is not None and (found.common.size, found.training.freedom) == (0.0, 1 + 20)
    assert lineage == [low.id]
    assert found.stage == ours.assumed.stage  # scored again is no stage that moves by nothing


@given(
    st.dictionaries(
        st.sampled_from("abcdef"),
        st.dictionaries(st.integers(0, 4), st.floats(-50, 50), min_size=1, max_size=4),
        min_size=1,
    )
)
def test_the_analysis_of_variance_equals_a_fit_of_runs_and_seeds(scores: dict):
    several = {run: of for run, of in scores.items() if len(of) > 1}
    rows = [(run, seed, value) for run, of in several.items() for seed, value in of.items()]
    within, of_runs, rest, freedom = _within(scores)
    if not rows:
        assert (within, of_runs, rest, freedom) == (0.0, 0, 0.0, 0)
        return
    frame = pd.DataFrame(rows, columns=["run", "seed", "value"])
    design = pd.get_dummies(frame[["run", "seed"]].astype(str), dtype=float).to_numpy()
    fit, _, rank, _ = np.linalg.lstsq(design, frame.value, rcond=None)
    assert (of_runs, freedom) == (len(rows) - len(several), len(rows) - rank)
    assert within == pytest.approx(sum(np.var(list(v.values())) * len(v) for v in several.values()))
    left = ((frame.value - design @ fit) ** 2).sum()
    assert rest == pytest.approx(left, abs=1e-8 * (1 + within))


def test_two_seeds_of_two_runs_by_hand():
    """What a seed does to both runs, and what it does to each in another way."""
    found = alone({"a": {0: 0.0, 1: 2.0}, "b": {0: 10.0, 1: 12.0}})
    assert found is not None and found.training.freedom == 1
    assert (found.training.size, found.common.size) == pytest.approx((0.0, 2**0.5), abs=1e-9)
    found = alone({"a": {0: 0.0, 1: 2.0}, "b": {0: 12.0, 1: 10.0}})
    assert found is not None
    assert (found.training.size, found.common.size) == pytest.approx((2.0, 0.0))


def test_counts_of_every_seed_are_needed(tmp_path: Path):
    low, high = pair(seeds=(0, 1))
    for seed in (0, 1):
        planted(tmp_path / "results", low, seed, 0.6)
        folder = planted(tmp_path / "results", high, seed, 0.7)
    (folder / "per_image.npz").unlink()
    test = decided(make_suite(low, high), tmp_path)[0].tests[0]
    assert test.verdict == "inconclusive" and "no counts per image" in test.reason


def test_the_record_of_a_test_has_the_fewest_seeds_of_its_runs(tmp_path: Path):
    low, high = pair(seeds=(0, 1))
    planted(tmp_path / "results", low, 0, 0.6)
    planted(tmp_path / "results", high, 0, 0.7)
    planted(tmp_path / "results", high, 1, 0.7).rename(high.directory(tmp_path / "results", 2))
    high = replace(high, seeds=(1, 2))  # none in common: all of each
    planted(tmp_path / "results", high, 1, 0.7)
    view, _ = decided(make_suite(low, high), tmp_path)
    assert claim_records([view])[0].n_seeds == 1


def test_draws_are_of_a_result_and_not_of_what_was_drawn_before(tmp_path: Path):
    """Two results on images of the same names whose truths differ."""
    one, other = pair()
    planted(tmp_path / "results", one, 0, 0.6)
    folder = planted(tmp_path / "results", other, 0, 0.6)
    with np.load(folder / "per_image.npz") as file:
        counts = {key: values if key == "ids" else values[::-1] for key, values in file.items()}
    np.savez_compressed(folder / "per_image.npz", **counts)
    found = load_results(make_suite(one, other), tmp_path / "results", [])
    where = (("metrics", "tasks", "semantic", "mean_iu"), "all")
    both = Bootstrap(found)
    for run in (one, other):
        drawn = both.draws(found.runs[run.id], *where)
        alone = Bootstrap(found).draws(found.runs[run.id], *where)
        assert drawn is not None and alone is not None
        np.testing.assert_array_equal(drawn, alone)
    assert both.problems == []


def test_a_run_of_one_seed_says_nothing_of_what_seeds_do():
    scores = {"a": {0: 1.0, 1: 2.0}, "b": {0: 4.0, 1: 7.0}}
    assert alone({**scores, "c": {7: 9.0}, "d": {8: 9.0}}) == alone(scores)


def test_a_seed_that_the_first_training_lacks_says_nothing_of_stages():
    scores = {"p": {0: 1.0, 1: 2.0}, "q": {0: 4.0, 1: 7.0}, "pc": {0: 1.5, 1: 2.7}}
    lineages = {"p": ["p"], "q": ["q"], "pc": ["p", "pc"]}
    more = {**scores, "pc": {**scores["pc"], 2: 9.0}}
    assert between_seeds(more, lineages) == between_seeds(scores, lineages)


def test_what_two_scores_of_one_training_share_is_told_where_it_does_not_cancel(tmp_path: Path):
    """It cancels in a difference; a ratio moves with it."""
    for claim, table, rows, apart in (
        ("skip-pool4", "table2", ("FCN-32s", "FCN-16s"), 0.0),
        ("masking", "pami_table8", ("Reference", "Reference-BG"), 0.4),
    ):
        first, again = (make_run(f"voc2011/{claim}{i}", ((table, rows[i]),)) for i in (0, 1))
        scored = {**again.config, "recipe": None, "weights": {"run": first.id, "hash": first.hash}}
        again = replace(again, config=scored)
        planted(tmp_path / "results", first, 0, 0.8)
        planted(tmp_path / "results", again, 0, 0.1)
        test = decided(make_suite(first, again), tmp_path, claim, spread=0.4)[0].tests[0]
        assert f"seeds taken to differ by {apart} points" in test.marks


def test_a_test_of_another_tolerance_is_no_repetition(tmp_path: Path):
    low, high = pair()
    planted(tmp_path / "results", low, 0, 0.6)
    planted(tmp_path / "results", high, 0, 0.7)
    view = decided(make_suite(low, high), tmp_path)[0].tests[0]
    other = replace(view.test, expect=replace(view.test.expect, high=view.test.expect.low + 1))
    views = [replace(view, test=test, marks=[]) for test in (view.test, other, view.test)]
    _mark_repeated(views)
    assert [one.marks for one in views] == [[], [], ["the same runs as above"]]


def test_other_test_images_matter_to_scores_alone(tmp_path: Path):
    fine = make_run("voc2011/null", (("loss", "null background"),))
    plain = make_run("voc2012/softmax", (("loss", "softmax"),))
    described = {}
    for run, quality in ((fine, 0.6), (plain, 0.61)):
        planted(tmp_path / "results", run, 0, quality)
        described[run.id] = {"parameters": 134_000_000}
    write(tmp_path / "results" / "architecture.json", {"nets": {}, "runs": described})
    tests = decided(make_suite(fine, plain), tmp_path, "null-background")[0].tests
    assert ["different test images" in tests[i].marks for i in (0, 2)] == [True, False]


def test_an_undecided_claim_does_not_rest_on_a_seed():
    claim = next(one for one in CLAIMS if one.id == "skip-pool4")
    views = [
        TestView(claim.tests[0], verdict, "", [], marks=marks)
        for verdict, marks in (("reproduced", ["one seed"]), ("inconclusive", []))
    ]
    assert ClaimView(claim, _whole(views[:1]), views[:1], []).one_seed
    assert not ClaimView(claim, _whole(views), views, []).one_seed


def part_of(text: str, tolerance: Tolerance, **samples: Sample) -> PartView:
    test = Test("", {}, Measure.parse(text, "here"), "points", tolerance)
    return decide_part(test, test.measure.parts[0], samples)


@pytest.mark.parametrize("ends", [(-1.0, 3.0), (-3.0, 1.0), (1.0, 3.0), (-3.0, -1.0)])
def test_an_absolute_value_lies_between_those_of_the_interval(ends: tuple[float, float]):
    draws = np.linspace(*ends, DRAWS)
    found = part_of("abs(a)", Tolerance(0.5, math.inf, ""), a=Sample(sum(ends) / 2, draws))
    low, high = interval(draws)
    inside = [abs(x) for x in np.linspace(low, high, 4001)]
    assert (found.low, found.high) == pytest.approx((min(inside), max(inside)), abs=1e-3)
    assert found.verdict == ("inconclusive" if low < 0 < high else "reproduced")


def test_what_is_undefined_on_a_few_images_decides_nothing():
    ones = np.ones(DRAWS)
    zero = np.where(np.arange(DRAWS) == 3, 0.0, 1.0)
    found = part_of("a / b", Tolerance(0, 2, ""), a=Sample(1.0, ones), b=Sample(1.0, zero))
    assert (found.verdict, found.low) == ("inconclusive", None)
    assert found.reason == "undefined on some resampled images"


def test_the_seeds_that_are_lacking_are_those_of_the_run_with_the_fewest():
    draws = np.linspace(-5, 5, DRAWS)
    pair = {"a": Sample(0.0, draws, seeds=2), "b": Sample(0.0, 0 * draws, seeds=6)}
    found = part_of("a - b", Tolerance(-1, 1, ""), **pair)
    low, high = interval(draws)
    assert f"about {math.ceil(2 * ((high - low) / 2) ** 2)} seeds" in found.reason


@pytest.mark.parametrize(("point", "expected"), [(0.0, 18), (0.6, None), (2.4, 7), (1.2, None)])
def test_only_what_seeds_add_shrinks_with_them(point: float, expected: int | None):
    """By hand: half widths of 0.6 by the images and 2 in all, with 3 seeds, against -1 to 1."""
    even = np.linspace(-1, 1, DRAWS)
    scale = interval(even)[1]
    sample = Sample(point, point + 2 * even / scale, point + 0.6 * even / scale, seeds=3)
    found = part_of("a", Tolerance(-1, 1, ""), a=sample)
    assert found.verdict == "inconclusive"
    told = re.search("about (\\d+) seeds would decide", found.reason)
    assert (int(told[1]) if told else None) == expected


def test_ways_of_timing_count_where_all_were_timed_so():
    whole, quick = TIMED[0], TIMED[1]
    slow = Sample(40.0, ways={whole: 40.0, quick: 15.0})
    fast = Sample(10.0, ways={whole: 10.0})
    assert part_of("a / b", Tolerance(2, math.inf, ""), a=slow, b=fast).verdict == "reproduced"
    fast.ways[quick] = 10.0
    assert part_of("a / b", Tolerance(2, math.inf, ""), a=slow, b=fast).verdict == "inconclusive"
