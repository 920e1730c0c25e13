"""The suites against the tables, the claims and the papers' recipes: what they promise to run."""

import csv
from itertools import combinations
from typing import Any

import pytest
import torch

from fcn.nets import FCN
from fcn.nets.trunks import CHANNELS
from fcn.options import NET_OPTIONS, RECIPE_OPTIONS, RUN_OPTIONS
from fcn.report.claims import read_claims
from fcn.report.paper import parse_tables, read_paper
from fcn.schema import CONFIG, read_yaml
from fcn.spec import Run
from fcn.suites import load_suite

TABLES = read_yaml(CONFIG / "tables.yaml")
SHIPPED = sorted(path.stem for path in (CONFIG / "suites").glob("*.yaml"))
SUITES = {name: load_suite(name) for name in SHIPPED}
COMPLETE = ("paper", "laptop")
OURS = ("paper", "demo", "laptop")

# Tables whose rows no run fills, and where they come from.
WITHOUT_RUNS = {
    "section31": "results/classifier.json",
    "bounds": "results/DATASET/bounds.json",
    "other": "runs that no table names",
    "reproductions": "paper_numbers.csv",
}
UNASKED = {"choices"}  # no paper asks: a suite may
# Tables of claims that the suite laptop cannot decide.
BEYOND_LAPTOP = {
    "table3": "the truth is the evaluation server's",
    "pami_table4": "the truth is the evaluation server's",
    "context": "a claim about PASCAL-Context, whose classes scenes do not have",
}


def rows_of_runs(table: str) -> list[str]:
    """The rows of a table that runs are to fill."""
    if table in WITHOUT_RUNS:
        return []
    return [row["name"] for row in TABLES[table]["rows"] if not row.get("reference")]


def filled(name: str) -> dict[tuple[str, str], list[Run]]:
    """(table, row) -> the runs of a suite that fill it, in its order."""
    found: dict[tuple[str, str], list[Run]] = {}
    for run in SUITES[name].runs.values():
        for row in run.rows:
            found.setdefault((row.table, row.row), []).append(run)
    return found


FILLED = {name: filled(name) for name in SHIPPED}


@pytest.mark.parametrize(("one", "other"), list(combinations(SHIPPED, 2)))
def test_suites_do_not_replace_each_other_s_results(one, other):
    """What stands in one place (a run, a data set, a backbone) is the same in both."""
    first, second = SUITES[one], SUITES[other]
    same = set(first.runs) & set(second.runs)
    if (one, other) == ("paper", "subsets"):
        same.remove("nyud/hha")  # its record is published under this name
    assert {key for key in same if first.runs[key].hash != second.runs[key].hash} == set()
    for part in ("datasets", "backbones"):
        ours, theirs = getattr(first, part), getattr(second, part)
        assert {key for key in set(ours) & set(theirs) if ours[key] != theirs[key]} == set(), part


# ---------------------------------------------------------------- rows


def test_the_tables_without_runs_have_their_source():
    assert set(WITHOUT_RUNS) <= set(TABLES)
    for table in WITHOUT_RUNS:
        rows = TABLES[table].get("rows", [])
        sourced = all("sources" in row for row in rows)
        assert TABLES[table].get("kind") in ("bounds", "other", "list") or (rows and sourced), table


@pytest.mark.parametrize("name", SHIPPED)
def test_runs_fill_rows_that_are_ours(name):
    controls = {("pami_table2", "FCN-accum, rate on the mean")}  # of what no edition prints
    controls |= {("pami_table2", "FCN-online, tenfold rate")}
    controls |= {("more_data", "FCN-32s, 142 of SBD added")}  # as many as a subset has
    # Stages before the printed ones, and the released nets before the printed one.
    nets = ("two-head", "semantic alone", "geometric alone")
    controls |= {("two_head", f"{net}, FCN-32s") for net in nets}
    controls |= {("two_head", "two-head, FCN-32s, accumulated")}
    controls |= {("pami_table6", f"FCN-{stride} (two-head)") for stride in ("32s", "16s")}
    for (table, row), runs in FILLED[name].items():
        assert row in rows_of_runs(table) or (table, row) in controls, (
            f"{runs[0].id}: {table} has no such row of ours: {row}"
        )


@pytest.mark.parametrize("table", sorted(set(TABLES) - set(WITHOUT_RUNS) - UNASKED))
def test_paper_fills_every_row(table):
    missing = [row for row in rows_of_runs(table) if (table, row) not in FILLED["paper"]]
    assert not missing


@pytest.mark.parametrize("name", OURS)
def test_every_table_has_a_run(name):
    tables = {table for table, _ in FILLED[name]}
    absent = set(TABLES) - set(WITHOUT_RUNS) - UNASKED - tables
    assert not absent - (set(BEYOND_LAPTOP) if name == "laptop" else set())
    assert SUITES[name].classifier
    assert SUITES[name].bounds


def claimed() -> dict[tuple[str, str], set[str]]:
    """(table, row) -> the claims that refer to it."""
    found: dict[tuple[str, str], set[str]] = {}
    for key, claim in read_yaml(CONFIG / "claims.yaml")["claims"].items():
        for test in claim.get("tests", []):
            for value in test["values"].values():
                value = value if isinstance(value, dict) else {"row": value}
                names = {value["row"]} if "row" in value else set()
                names |= {value["cost"]["of"]} if "cost" in value else set()
                for row in names:
                    found.setdefault((value.get("table", test.get("table")), row), set()).add(key)
    return found


@pytest.mark.parametrize("name", COMPLETE)
def test_every_claim_has_the_runs_of_its_rows(name):
    excused = BEYOND_LAPTOP if name == "laptop" else {}
    wanted = claimed()
    assert len(wanted) > 80, "the claims are not read"
    missing = [
        (table, row, sorted(claims))
        for (table, row), claims in wanted.items()
        if (table, row) not in FILLED[name] and table not in {*excused, *WITHOUT_RUNS}
    ]
    assert not missing


# ---------------------------------------------------------------- one change at a time

FREED = {"recipe", "weights", "train"}  # of a run that scores another's weights again
HYPER = {
    "learning rate / 10": ("learning_rate", 0.1),
    "learning rate x 10": ("learning_rate", 10),
    "momentum 0.8": ("momentum", None),
    "momentum 0.95": ("momentum", None),
    "weight decay 0": ("weight_decay", 0),
    "weight decay x 10": ("weight_decay", 10),
    "bias rate 1": ("bias_rate", None),
}
# table -> base row -> other row -> what of the configuration differs, and no more.
CHANGES: dict[str, tuple[str, dict[str, set[str]]]] = {
    "choices": (
        "base",
        {
            "padding of 100": {"net.padding"},
            "each layer's own padding": {"net.padding"},
            "float32": {"recipe.precision"},
            "images of their own sizes": {"recipe.canvas"},
        },
    ),
    "vgg": ("VGG16", {"VGG19": {"net.architecture", "weights"}}),
    "average_pool": ("without", {"with": {"net.average_pool"}}),
    "initialisation": ("zero", {"random": {"net.score_init"}}),
    "dropout": ("with", {"without": {"net.dropout"}}),
    "class_balance": ("without", {"with": {"recipe.class_balance"}}),
    "augmentation": (
        "none",
        {
            "mirror": {"recipe.mirror"},
            "jitter": {"recipe.jitter"},
            "mirror and jitter": {"recipe.mirror", "recipe.jitter"},
        },
    ),
    "loss": (
        "softmax",
        {"sigmoid": {"recipe.loss"}, "null background": {"recipe.loss", "net.null_background"}},
    ),
    "skip_fusion": ("sum", {"max": {"net.skip_fusion"}}),
    "interpolation": ("fixed", {"learned": {"net.interpolation"}}),
    "at_once": ("with scales", {"without scales": {"net.scales"}}),
    "hyperparameters": ("base", {row: {f"recipe.{key}"} for row, (key, _) in HYPER.items()}),
    "stage_rate": (
        "FCN-16s, rate / 100",
        {
            "FCN-32s, rate / 100": {"net.skips"},
            "FCN-16s, rate / 10": {"recipe.learning_rate"},
            "FCN-16s, same rate": {"recipe.learning_rate"},
        },
    ),
    "figure5": (
        "full images",
        {row: {"recipe.patch_keep"} for row in ("50% sampling", "25% sampling")},
    ),
    "pami_table2": (
        "FCN-heavy",
        {
            "FCN-online": {"recipe.momentum"},
            "FCN-accum": {"recipe.momentum", "recipe.batch", "recipe.learning_rate"},
        },
    ),
    "momentum_batch": (
        "batch 1, momentum 0.99",
        {
            "batch 5, momentum 0.951": {"recipe.batch", "recipe.momentum", "recipe.learning_rate"},
            "batch 20, momentum 0.818": {"recipe.batch", "recipe.momentum", "recipe.learning_rate"},
            "batch 20, momentum 0.99": {"recipe.batch", "recipe.learning_rate"},
        },
    ),
    "dense_scores": (
        "FCN-32s",
        {
            f"{method} {stride}": {"inference", *FREED}
            for method in ("shift-and-stitch", "rarefaction")
            for stride in (16, 8)
        },
    ),
    "pami_table8": (
        "Reference",
        {
            "Reference-FG": {"mask", *FREED},
            "Reference-BG": {"mask", *FREED},
            "FG-only": {"mask"},
            "BG-only": {"mask"},
            "Shape": {"mask"},
        },
    ),
    "dense_fc6": (
        "FCN-32s",
        {
            "fc6 14x14": {"net.pool5_stride", "net.fc6_kernel"},
            "fc6 dilated": {"net.pool5_stride", "net.fc6_dilation"},
            "smaller fc6": {"net.pool5_stride", "net.fc6_kernel"},
        },
    ),
    "pretraining": ("pretrained", {"from scratch": {"weights", "recipe.learning_rate"}}),
    "two_head": (
        "two-head",
        {"semantic alone": {"labels"}, "geometric alone": {"labels"}},
    ),
    "pami_table3": ("FCN-32s", {"FCN-32s fixed": {"recipe.train_layers"}}),
}
# What differs besides: a rate of each row's own, or as many images in stages.
BESIDES = {
    ("demo", "pami_table2"): {"recipe.learning_rate", "recipe.normalize"},
    ("laptop", "pami_table2"): {"recipe.learning_rate"},
    ("laptop", "pami_table3"): {"weights", "recipe.images"},
    ("voc-subset", "pami_table3"): {"weights", "recipe.images", "recipe.learning_rate"},
    ("voc-subset", "pretraining"): {"recipe.score_rate"},
}


def flat(run: Run) -> dict[str, Any]:
    """What a run's numbers follow from, with every option at its default where it is not set."""
    config = {**RUN_OPTIONS, **run.config}
    found = {f"net.{key}": value for key, value in {**NET_OPTIONS, **config.pop("net")}.items()}
    recipe = config.pop("recipe")
    if recipe is None:
        found["recipe"] = None
    else:
        found |= {f"recipe.{k}": v for k, v in {**RECIPE_OPTIONS, **recipe}.items()}
    return found | {key: value for key, value in config.items() if key not in ("run", "input")}


def differences(one: Run, other: Run) -> set[str]:
    a, b = flat(one), flat(other)
    if ("recipe" in a) != ("recipe" in b):  # trained and not: the recipe as a whole
        a, b = (
            {**{k: v for k, v in x.items() if not k.startswith("recipe")}, "recipe": "recipe" in x}
            for x in (a, b)
        )
    return {key for key in a.keys() | b.keys() if a.get(key) != b.get(key)}


@pytest.mark.parametrize("table", CHANGES)
@pytest.mark.parametrize("name", (*OURS, "voc-subset", "beyond"))
def test_an_ablation_changes_one_thing(name, table):
    base_row, others = CHANGES[table]
    base = FILLED[name].get((table, base_row), [None])[0]
    present = [row for row in others if (table, row) in FILLED[name]]
    if base is None or not present:
        assert name not in COMPLETE or table in UNASKED, f"{table}: no run"
        return
    for row in present:
        run = FILLED[name][table, row][0]
        expected = set(others[row])
        found = differences(base, run)
        besides = set(BESIDES.get((name, table), ()))
        if table == "two_head":  # after the first stage each net goes on from its own
            besides = {"weights"}
        assert expected <= found | besides, f"{run.id} is as {base.id}"
        assert found <= expected | besides, f"{run.id} against {base.id}"


@pytest.mark.parametrize("name", COMPLETE)
def test_finer_maps_have_seen_as_many_images_as_the_skip(name):
    """Or a net in two stages would win by its second one."""

    def images(run: Run) -> int:
        suite = SUITES[name]
        return run.config["recipe"]["images"] + sum(
            images(suite.runs[parent]) for parent in run.parents.values()
        )

    rows = {row: runs for (table, row), runs in FILLED[name].items() if table == "dense_fc6"}
    seen = {row: {images(run) for run in runs} for row, runs in rows.items()}
    assert len(seen) >= 4 and len(set.union(*seen.values())) == 1, seen


@pytest.mark.parametrize("name", OURS)
def test_runs_that_score_weights_again_score_those_of_the_base(name):
    for table in ("dense_scores", "pami_table8"):
        base_row, others = CHANGES[table]
        for row, keys in others.items():
            for run in FILLED[name].get((table, row), []) if keys >= FREED else []:
                assert run.parents == {"run": FILLED[name][table, base_row][0].id}
                if table == "dense_scores":
                    method, stride = row.split(" ")
                    assert run.config["inference"] == {"method": method, "stride": int(stride)}


@pytest.mark.parametrize("name", OURS)
def test_hyperparameters_are_what_their_rows_say(name):
    for row, (key, factor) in HYPER.items():
        for run in FILLED[name].get(("hyperparameters", row), []):
            base = FILLED[name]["hyperparameters", "base"][0].config["recipe"]
            value = run.config["recipe"][key]
            wanted = float(row.split(" ")[-1]) if factor is None else base[key] * factor
            assert value == pytest.approx(wanted), run.id


@pytest.mark.parametrize("name", OURS)
def test_stages_start_from_the_same_net_at_the_rates_of_their_rows(name):
    base = FILLED[name]["stage_rate", "FCN-32s"][0]
    for row, divisor in (("same rate", 1), ("rate / 10", 10), ("rate / 100", 100)):
        for net in ("FCN-32s", "FCN-16s"):
            for run in FILLED[name].get(("stage_rate", f"{net}, {row}"), []):
                assert run.parents == {"run": base.id}
                rate = base.config["recipe"]["learning_rate"] / divisor
                assert run.config["recipe"]["learning_rate"] == pytest.approx(rate), run.id


@pytest.mark.parametrize("name", COMPLETE)
def test_momentum_and_batch_lie_on_one_curve(name):
    """PAMI 6.2: p^(1/k) is equal in three pairs and not in the last; one rate on the sum."""
    rows = rows_of_runs("momentum_batch")
    recipes = [FILLED[name]["momentum_batch", row][0].config["recipe"] for row in rows]
    for row, recipe in zip(rows, recipes, strict=True):
        assert row == f"batch {recipe['batch']}, momentum {recipe['momentum']:g}"
        assert not recipe["normalize"]
        rate = recipe["learning_rate"] / recipe["batch"]  # the loss of a batch is its mean
        assert rate == pytest.approx(recipes[0]["learning_rate"])
        assert recipe["images"] == recipes[0]["images"]
    curve = [recipe["momentum"] ** (1 / recipe["batch"]) for recipe in recipes]
    assert curve[:3] == pytest.approx([curve[0]] * 3, abs=1e-4)
    assert curve[3] > 0.999


@pytest.mark.parametrize("name", COMPLETE)
def test_two_heads_and_two_nets(name):
    labels = [FILLED[name]["two_head", row][0].labels for row in rows_of_runs("two_head")]
    assert labels == [("semantic", "geometric"), ("semantic",), ("geometric",)]
    assert all(FILLED[name]["two_head", row][0].time for row in rows_of_runs("two_head"))


@pytest.mark.parametrize("name", OURS)
def test_masks_are_those_of_the_table(name):
    """PAMI Table 8: what is kept of foreground and background, in training and in the test."""
    for row, train, test in (
        ("Reference", "none", "none"),
        ("Reference-FG", "none", "background"),
        ("Reference-BG", "none", "foreground"),
        ("FG-only", "background", "background"),
        ("BG-only", "foreground", "foreground"),
        ("Shape", "both", "both"),
    ):
        run = FILLED[name]["pami_table8", row][0]
        assert {**RUN_OPTIONS, **run.config}["mask"] == {"train": train, "test": test}


@pytest.mark.parametrize("name", COMPLETE)
def test_seconds_and_milliseconds_of_claims_are_measured(name):
    tables = parse_tables(TABLES)
    measured = {
        (table.id, column.key)
        for table in tables
        for column in table.columns
        if column.origin[:1] == ("timing",)
    }
    timed = {
        (str(value.table), str(value.row))
        for claim in read_claims(CONFIG, tables, read_paper(CONFIG))
        for test in claim.tests
        for value in test.values.values()
        if value.origin[:1] == ("timing",) or (value.table, value.column) in measured
    }
    timed = {row for row in timed if row[0] not in WITHOUT_RUNS}
    assert {table for table, _ in timed} >= {"dense_scores", "interpolation", "two_head"}
    excused = BEYOND_LAPTOP if name == "laptop" else {}
    assert not [
        row
        for row in timed
        if row[0] not in excused and not any(run.time for run in FILLED[name][row])
    ]


# ---------------------------------------------------------------- the papers' recipes

# Run, key, value, and where it stands (paper.md).
STATED: list[tuple[str, str, Any, str]] = [
    ("voc2011/alexnet", "learning_rate", 1e-3, "CVPR 4.3 (3.1)"),
    ("voc2011/vgg16", "learning_rate", 1e-4, "CVPR 4.3 (3.1)"),
    ("voc2011/googlenet", "learning_rate", 5e-5, "CVPR 4.3 (3.1)"),
    *(
        (f"voc2011/{run}", key, value, "CVPR 4.3 (3.1)")
        for run in ("alexnet", "vgg16", "googlenet", "fcn32s-accum", "fcn16s-accum")
        for key, value in (
            ("batch", 20),
            ("momentum", 0.9),
            ("weight_decay", 5e-4),
            ("bias_rate", 2),
            ("schedule", "fixed"),
            ("mirror", False),
            ("jitter", 0),
            ("class_balance", False),
        )
    ),
    ("voc2011/fcn16s-accum", "learning_rate", 1e-6, "CVPR 4.2: a hundredth (3.1)"),
    *(
        (f"{dataset}/{run}", "learning_rate", rate, "the authors' solver (3.3)")
        for dataset, run, rate in (
            ("voc2011", "fcn32s", 1e-10),
            ("voc2011", "fcn16s", 1e-12),
            ("voc2011", "fcn8s", 1e-14),
            ("voc2011", "fcn8s-atonce", 1e-10),
            ("voc2011", "alexnet-sbd-released", 1e-4),
            ("nyud", "rgb", 1e-10),
            ("nyud", "rgb-d", 1e-10),
            ("nyud", "hha", 1e-10),
            ("nyud", "rgb-hha", 1e-12),
            ("siftflow", "fcn32s", 1e-10),
            ("siftflow", "fcn16s", 1e-12),
            ("siftflow", "fcn8s", 1e-12),
            ("pascal-context", "fcn32s", 1e-10),
            ("pascal-context", "fcn16s", 1e-12),
            ("pascal-context", "fcn8s", 1e-14),
        )
    ),
    *(
        (run, key, value, "the authors' solvers (3.3)")
        for run in ("voc2011/fcn8s", "nyud/rgb-hha", "siftflow/fcn8s", "pascal-context/fcn8s")
        for key, value in (("batch", 1), ("momentum", 0.99), ("normalize", False))
    ),
    ("voc2011/fcn8s-atonce", "images", 300_000, "the authors' solver (3.3)"),
    ("voc2011/alexnet-sbd-released", "images", 2_000_000, "100,000 iterations of 20 (3.3)"),
    ("nyud/rgb", "images", 100_000, "50 x 2000 (3.3)"),
    ("siftflow/fcn8s", "images", 100_000, "50 x 2000 (3.3)"),
    ("pascal-context/fcn8s", "images", 400_000, "50 x 8000 (3.3)"),
    ("voc2011/fcn32s-jitter", "jitter", 32, "CVPR 4.3 (3.1)"),
    ("voc2011/patches-50", "patch_keep", 0.5, "Figure 5 (2.1)"),
    ("voc2011/patches-25", "patch_keep", 0.25, "Figure 5 (2.1)"),
    ("voc2011/patches-100", "batch", 20, "Figure 5 (2.1)"),
]


@pytest.mark.parametrize("run, key, value, source", STATED)
def test_recipes_are_the_papers(run, key, value, source):
    recipe = {**RECIPE_OPTIONS, **SUITES["paper"].run(run).config["recipe"]}
    assert recipe[key] == pytest.approx(value), source


def test_optimisation_of_pami_table_2_is_as_printed():
    with (CONFIG / "paper_numbers.csv").open(newline="") as handle:
        printed = {
            (line["method"], line["metric"]): float(line["value"])
            for line in csv.DictReader(handle)
            if line["paper_version"].startswith("PAMI") and line["table"] == "Table 2"
        }
    for row in rows_of_runs("pami_table2"):
        recipe = FILLED["paper"]["pami_table2", row][0].config["recipe"]
        assert recipe["batch"] == printed[row, "batch size"]
        assert recipe["momentum"] == printed[row, "momentum"]
        assert recipe["images"] == 100_000  # paper.md 1.3


def test_length_of_table_1():
    """At least 175 epochs of 1112 images (paper.md 1.1)."""
    for row in rows_of_runs("table1"):
        run = FILLED["paper"]["table1", row][0]
        assert run.config["recipe"]["images"] >= 175 * 1112
        assert (run.config["train"]["split"], run.split) == ("train", "val")


def test_figure_5_has_as_many_updates_whatever_is_sampled():
    runs = [FILLED["paper"]["figure5", row][0] for row in rows_of_runs("figure5")]
    updates = {r.config["recipe"]["images"] // r.config["recipe"]["batch"] for r in runs}
    assert updates == {1750}  # the axis of its left panel (paper.md 2.1)


def test_data_of_the_tables():
    """Training and test images (paper.md 5)."""
    for table, (train, test) in {
        "table2": ("sbd/train", "voc2011/seg11valid"),
        "pami_table3": ("sbd/train", "voc2011/seg11valid"),
        "pami_table5": ("nyud/trainval", "nyud/test"),
        "table4": ("nyud/trainval", "nyud/test"),
        "pami_table6": ("siftflow/trainval", "siftflow/test"),
        "table5": ("siftflow/trainval", "siftflow/test"),
    }.items():
        for row in rows_of_runs(table):
            run = FILLED["paper"][table, row][0]
            sets = [run.config[side] for side in ("train", "test")]
            assert [f"{s['dataset']}/{s['split']}" for s in sets] == [train, test], run.id


def test_late_fusion_adds_in_cvpr_and_averages_in_pami():
    """Text of CVPR; text and net of PAMI (paper.md 4.5)."""
    weights = {
        table: {**NET_OPTIONS, **FILLED["paper"][table, "FCN-32s RGB-HHA"][0].config["net"]}[
            "fusion_weights"
        ]
        for table in ("table4", "pami_table5")
    }
    assert weights == {"table4": [1, 1], "pami_table5": None}


# ---------------------------------------------------------------- the nets


@pytest.mark.parametrize("name", OURS)
def test_every_net_gives_scores_of_the_size_of_the_image(name):
    seen = []
    for run in SUITES[name].runs.values():
        net = {**NET_OPTIONS, **run.config["net"]}
        if (net, run.labels) in seen:
            continue
        seen.append((net, run.labels))
        channels = sum(CHANNELS[part] for part in net["inputs"])
        with torch.device("meta"):
            fcn = FCN(net, dict.fromkeys(run.labels, 5))
            scores = fcn(torch.empty(1, channels, 96, 128))
        assert {task: tuple(x.shape) for task, x in scores.items()} == dict.fromkeys(
            run.labels, (1, 5, 96, 128)
        ), run.id
    assert len(seen) > 10
