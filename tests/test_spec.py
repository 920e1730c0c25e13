"""Suites: what they resolve to, what their hashes depend on, and every way to get one wrong."""

import re
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

import fcn.suites
from fcn import schema
from fcn.__main__ import main
from fcn.data.readers import READERS
from fcn.errors import UserError
from fcn.options import NET_DEFAULTS, NET_NEEDS, RECIPE_DEFAULTS
from fcn.schema import CONFIG, check, read_yaml, suite_schema, unknown
from fcn.spec import Row, contents_hash, fingerprint
from fcn.suites import CAFFE_INPUT, load_suite
from tests.conftest import RGB, merged, tiny_suite

SUITES = sorted(path.stem for path in (CONFIG / "suites").glob("*.yaml"))


@pytest.fixture(autouse=True)
def config_is_read_once(monkeypatch):
    """The repository's own files do not change while these tests run."""
    monkeypatch.setattr(
        fcn.suites,
        "read_yaml",
        lambda path: repository_file(path) if CONFIG in path.parents else read_yaml(path),
    )


repository_file = cache(read_yaml)


# -------------------------------------------------------------------------- what the repository has


@pytest.mark.parametrize("name", SUITES)
def test_every_suite_loads(name):
    suite = load_suite(name)
    assert (suite.runs or suite.bounds) and suite.title
    for key, run in suite.runs.items():
        assert run.id == key == f"{run.dataset}/{run.name}"
        assert run.seeds and run.config["test"]["split"] == run.split
        assert set(NET_DEFAULTS) <= set(run.config["net"])
        assert run.config["recipe"] is None or set(RECIPE_DEFAULTS) <= set(run.config["recipe"])
        weights = run.config["weights"]
        for part, parent in run.parents.items():
            kept = weights["hash"] if part == "run" else weights["hashes"][part]
            assert kept == suite.runs[parent].hash


@pytest.mark.parametrize("path", sorted((CONFIG / "schemas").glob("*.yaml")), ids=lambda p: p.stem)
def test_schemas_are_schemas(path):
    schema = read_yaml(path)
    Draft202012Validator.check_schema(schema)

    def empty(value):
        parts = value.values() if isinstance(value, dict) else value
        return value is None or (isinstance(value, dict | list) and any(map(empty, parts)))

    assert not empty(schema)  # a comma in a description without quotes makes a key of the rest


def test_configuration_is_valid_by_its_schemas():
    for kind, file in (("net", "nets"), ("recipe", "recipes")):
        for name, entry in read_yaml(CONFIG / f"{file}.yaml").items():
            check(entry, {"$ref": f"#/$defs/{kind}"}, CONFIG / f"{file}.yaml: {name}")


def test_defaults_are_those_that_the_schema_knows():
    definitions = read_yaml(CONFIG / "schemas" / "suite.yaml")["$defs"]
    assert set(NET_DEFAULTS) <= set(definitions["net"]["properties"])
    assert set(RECIPE_DEFAULTS) <= set(definitions["recipe"]["properties"])


def test_defaults_are_those_of_the_authors():
    """lr_mult 1, 2 and decay_mult 1, 0 of weights and biases; BGR minus VGG's mean."""
    assert (RECIPE_DEFAULTS["bias_rate"], RECIPE_DEFAULTS["bias_decay"]) == (2, 0)
    backbones = read_yaml(CONFIG / "backbones.yaml")
    assert backbones["vgg16-caffe"]["input"] == CAFFE_INPUT


# ------------------------------------------------------------------------------------- what it does


def load(write_suite, change=None, seeds=None):
    return load_suite(str(write_suite(change)), seeds)


def tiny(write_suite, **entry):
    return load(write_suite, {"runs": {"tiny/run": entry}}).run("run")


def test_resolved(write_suite):
    run = tiny(write_suite, recipe={"base": "short", "mirror": True})
    assert run.config["recipe"] == {
        **RECIPE_DEFAULTS, **tiny_suite()["recipes"]["short"], "mirror": True,
    }  # fmt: skip
    assert run.config["net"] == {**NET_DEFAULTS, **tiny_suite()["nets"]["slim"]}
    assert run.config["train"]["dataset"] == "tiny" and run.config["train"]["split"] == "train"
    assert run.seeds == (0,) and run.title == "run" and run.note is None


def test_rates_without_a_dot_are_numbers(tmp_path):
    (tmp_path / "n.yaml").write_text("[1e-10, 5E-4, 1e4, 1.e-3, -2e+5, 1.5e3, 0.1, e5, 1e, 12]")
    assert read_yaml(tmp_path / "n.yaml") == [
        1e-10, 5e-4, 1e4, 1e-3, -2e5, 1500.0, 0.1, "e5", "1e", 12,
    ]  # fmt: skip


@given(st.floats(min_value=1e-300, max_value=1e300))
def test_any_float_survives(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "float.yaml"
    for text in (repr(value), f"{value:e}", f"{value:.17g}"):
        path.write_text(f"rate: {text}\n")
        found = read_yaml(path)["rate"]
        assert float(found) == float(text) and not isinstance(found, str)


def test_whole_numbers_in_exponents_are_whole(write_suite):
    plain = tiny(write_suite, recipe={"base": "short", "images": 100000, "jitter": 4})
    path = write_suite(
        {"runs": {"tiny/run": {"recipe": {"base": "short", "images": 7, "jitter": 4}}}}
    )
    path.write_text(path.read_text().replace("images: 7", "images: 1e5"))
    exponent = load_suite(str(path)).run("tiny/run")
    assert exponent.hash == plain.hash
    assert isinstance(exponent.config["recipe"]["images"], int)
    path.write_text(path.read_text().replace("images: 1e5", "images: 7.0"))
    with pytest.raises(UserError, match=r"images: 7\.0 is not a whole number"):
        load_suite(str(path))


def test_base_of_a_run_merges_nets_and_recipes(write_suite):
    change = {
        "runs": {
            "tiny/run": {"note": "n", "title": "T", "rows": [{"table": "table2", "row": "FCN-8s"}]},
            "tiny/a": {"base": "tiny/run", "recipe": {"images": 40}, "net": {"skips": []}},
            "tiny/b": {"base": "tiny/a", "recipe": {"batch": 4}, "split": "train"},
            "tiny/c": {"base": "tiny/b", "recipe": "heavy", "net": {"base": "voc-fcn16s"}},
        }
    }
    runs = load(write_suite, change).runs
    base, a, b, c = (runs[f"tiny/{name}"].config for name in ("run", "a", "b", "c"))
    assert a["recipe"] == {**base["recipe"], "images": 40}
    assert a["net"] == {**base["net"], "skips": []}
    assert b["recipe"] == {**base["recipe"], "images": 40, "batch": 4}
    assert b["net"] == a["net"] and b["test"]["split"] == "train"
    assert c["net"]["skips"] == ["pool4"] and c["net"]["hidden"] == 4096
    assert c["recipe"]["learning_rate"] == 1e-10 and c["recipe"]["batch"] == 1
    for name in ("a", "b", "c"):  # what says where a run belongs is not inherited
        run = runs[f"tiny/{name}"]
        assert (run.rows, run.title, run.note) == ((), name, None)


def test_seeds(write_suite):
    def seeds(suite_seeds, run_seeds, forced):
        change = {"seeds": suite_seeds, "runs": {"tiny/run": {"seeds": run_seeds}}}
        return load(write_suite, change, forced).run("run").seeds

    assert seeds(None, None, None) == (0,)
    assert seeds([1, 2], None, None) == (1, 2)
    assert seeds([1, 2], [5], None) == (5,)
    assert seeds([1, 2], [5], 3) == seeds([1, 2], [5], "3") == (0, 1, 2)
    assert seeds([1, 2], [5], "0,5,7") == (0, 5, 7)
    assert seeds([1, 2], [5], "") == (5,)
    released = {"weights": {"released": "fcn32s-heavy-pascal"}, "recipe": "none",
                "net": "voc-fcn32s", "train": None}  # fmt: skip
    assert load(write_suite, {"runs": {"tiny/run": released}}, 3).run("run").seeds == (0,)


def test_another_precision_is_another_run_with_its_own_command(write_suite, monkeypatch):
    path = str(write_suite(None))
    usual, forced = load_suite(path), load_suite(path, precision="bf16")
    for run in forced.runs.values():
        was = usual.run(run.id)
        if run.config["recipe"] is None:
            assert run.hash == was.hash and run.precision == was.precision == "fp32"
        else:
            assert (was.precision, run.precision) == ("fp32", "bf16")
            assert run.config["recipe"] == {**was.config["recipe"], "precision": "bf16"}
            assert run.hash != was.hash
    for conda, words in (("", ""), ("/opt/conda", " --use-conda")):
        monkeypatch.delenv("CONDA_PREFIX", raising=False)
        if conda:
            monkeypatch.setenv("CONDA_PREFIX", conda)
        assert usual.command == f"snakemake --cores all{words} --config suite={path}"
        assert forced.command == f"{usual.command} precision=bf16"
        assert load_suite("paper").command == f"snakemake --cores all{words}"
    odd = replace(usual, name="my suites/a.yaml")
    assert odd.command.endswith("--config 'suite=my suites/a.yaml'")
    assert load_suite(path, precision="").run("run").hash == usual.run("run").hash
    with pytest.raises(UserError, match="fp16 is not one of fp32, tf32, bf16"):
        load_suite(path, precision="fp16")


def test_weights_scored_again_are_scored_as_they_were_trained(write_suite):
    again = {"base": "tiny/run", "weights": {"run": "run"}, "recipe": "none"}
    twice = {**again, "weights": {"run": "again"}}
    path = str(write_suite({"runs": {"tiny/again": again, "tiny/twice": twice}}))
    for precision in ("fp32", "bf16"):
        runs = load_suite(path, precision=precision).runs
        scored = {name: runs[f"tiny/{name}"].precision for name in ("run", "again", "twice")}
        assert set(scored.values()) == {precision}


def test_the_cost_of_a_generated_image_follows_its_size(write_suite):
    net = {"base": "slim", "gflop": 3.0}
    run = tiny(write_suite, net=net)
    height, width = tiny_suite()["datasets"]["tiny"]["size"]
    assert run.gflop == pytest.approx(3.0 * height * width / (375 * 500))
    sides = {"size": [[height - 8, height + 8], [width, width + 2]]}  # smallest and largest
    run = load(write_suite, {"datasets": {"tiny": sides}, "runs": {"tiny/run": {"net": net}}}).runs
    mean = 3.0 * height * (width + 1) / (375 * 500)
    assert run["tiny/run"].gflop == pytest.approx(mean)


def test_names_of_runs(write_suite):
    change = {"runs": {"square/run": {"base": "tiny/run"}, "tiny/other": {"base": "tiny/run"}}}
    suite = load(write_suite, change)
    assert suite.run("tiny/run").id == "tiny/run" and suite.run("other").id == "tiny/other"
    with pytest.raises(UserError, match="which run 'run': tiny/run, square/run"):
        suite.run("run")
    with pytest.raises(UserError, match="no run 'othre'; did you mean tiny/other"):
        suite.run("othre")


def test_a_run_starts_from_a_run_of_its_data_set(write_suite):
    change = {"runs": {"tiny/child": {"base": "tiny/run", "weights": {"run": "run"}}}}
    suite = load(write_suite, change)
    assert suite.run("child").parents == {"run": "tiny/run"}
    assert suite.run("child").config["input"] == suite.run("tiny/run").config["input"]


def test_released_weights_say_which_file(write_suite):
    run = tiny(write_suite, train=None, net="voc-fcn8s",
               weights={"released": "fcn8s-heavy-pascal"}, recipe="none")  # fmt: skip
    assert run.config["weights"]["archive"] == "fcn8s-heavy-pascal.caffemodel"
    assert run.released == "fcn8s-heavy-pascal" and run.backbone is None and not run.parents
    assert run.config["train"] is None and run.config["recipe"] is None


def test_nets_of_the_libraries_resolve_with_their_bases(write_suite):
    suite = load(write_suite)
    net = suite.resolved_net("voc-fcn8s-atonce")
    assert net["skips"] == ["pool4", "pool3"] and net["scales"]
    assert "gflop" not in net and "base" not in net


# ------------------------------------------------------------------------------------------- hashes

DECIDES: dict[str, list[Any]] = {
    "net": [{"base": "slim", "dropout": 0.1}, {"base": "slim", "skips": ["pool4"]}],
    "recipe": [
        {"base": "short", key: value}
        for key, value in {
            "images": 13,
            "batch": 3,
            "loss": "sigmoid",
            "normalize": False,
            "learning_rate": 2e-4,
            "schedule": "poly",
            "momentum": 0.8,
            "weight_decay": 0,
            "bias_rate": 1,
            "bias_decay": 1,
            "score_bias_rate": 3,
            "score_bias_decay": 1,
            "score_rate": 10,
            "train_layers": "score",
            "sampling": "replacement",
            "patch_keep": 0.5,
            "mirror": True,
            "jitter": 32,
            "scale": [0.5, 2],
            "canvas": 32,
            "class_balance": True,
            "precision": "bf16",
            "validate": 4,
        }.items()
    ],
    "train": ["square/train", "tiny/val", ["tiny/train", "square/train"]],
    "split": ["train"],
    "version": [2],
    "labels": [["semantic", "geometric"]],
    "mask": [{"train": "none", "test": "both"}],
}
CASES = [{key: value} for key, values in DECIDES.items() for value in values]


@pytest.mark.parametrize("change", CASES, ids=str)
def test_hash_changes_with_what_decides_numbers(write_suite, change):
    before = tiny(write_suite)
    after = tiny(write_suite, **change)
    assert after.hash != before.hash
    assert fingerprint(after.config) == after.hash


def test_every_key_of_a_recipe_is_tried():
    properties = read_yaml(CONFIG / "schemas" / "suite.yaml")["$defs"]["recipe"]["properties"]
    tried = {key for entry in DECIDES["recipe"] for key in entry}
    assert tried == set(properties) - {"source"}


@pytest.mark.parametrize(
    "change",
    [
        {"title": "Another"},
        {"note": "A note."},
        {"rows": [{"table": "table1", "row": "FCN-VGG16"}]},
        {"time": True},
        {"seeds": [4]},
        {"version": 1},
        {"recipe": {"base": "short", "source": "somewhere"}},
        {"recipe": {"base": "short", "momentum": 9e-1}},
        {"net": {"base": "slim", "gflop": 3}},
        {"labels": ["semantic"]},
        {"mask": {"train": "none", "test": "none"}},
    ],
    ids=str,
)
def test_hash_does_not_change_with_the_rest(write_suite, change):
    assert tiny(write_suite, **change).hash == tiny(write_suite).hash


def test_hash_changes_with_how_scores_are_made_dense(write_suite):
    hashes = set()
    for stride in (None, 8, 16):
        change: dict[str, Any] = {"net": {"base": "slim", "skips": []}}
        if stride:
            change["inference"] = {"method": "rarefaction", "stride": stride}
        hashes.add(load(write_suite, {"runs": {"tiny/run": change}}).runs["tiny/run"].hash)
    assert len(hashes) == 3


def test_hash_does_not_depend_on_names_or_order(write_suite):
    """The same recipe under another name, spelt out, or with its keys in another order."""
    short = tiny_suite()["recipes"]["short"]
    for recipe in (short, dict(reversed(short.items())), {"base": "again"}, "again"):
        change = {"recipes": {"again": short}, "runs": {"tiny/run": {"recipe": recipe}}}
        assert load(write_suite, change).run("run").hash == tiny(write_suite).hash


def test_hash_of_a_child_changes_with_its_parents(write_suite):
    def child(**parent):
        runs = {
            "tiny/run": parent,
            "tiny/child": {**tiny_suite()["runs"]["tiny/run"], "weights": {"run": "tiny/run"}},
            "tiny/grandchild": {"base": "tiny/child", "weights": {"run": "tiny/child"}},
        }
        suite = load(write_suite, {"runs": runs})
        return suite.run("child").hash, suite.run("grandchild").hash

    before, after = child(), child(recipe={"base": "short", "momentum": 0.5})
    assert before[0] != after[0] and before[1] != after[1]
    assert child(title="Another") == before


def test_hash_changes_with_data_sets_and_backbones(write_suite):
    own = {
        "architecture": "alexnet",
        "input": {"order": "bgr", "mean": [1.0, 2.0, 3.0], "std": [1, 1, 1]},
        "pretrain": {"seed": 1},
    }

    def hash_of(**change):
        runs = {"tiny/run": {"weights": {"backbone": "own"}, "net": "voc-fcn-alexnet"}}
        suite = merged({"backbones": {"own": own}, "runs": runs}, change)
        return load(write_suite, suite).run("run").hash

    before = hash_of()
    for change in (
        {"backbones": {"own": {"pretrain": {"seed": 2}}}},
        {"backbones": {"own": {"input": {"order": "rgb"}}}},
        {"datasets": {"tiny": {"seed": 4}}},
        {"datasets": {"tiny": {"size": [40, 64]}}},
    ):
        assert hash_of(**change) != before


# ----------------------------------------------------------------------------------------- mistakes

RUN = "runs.tiny/run"
MISTAKES = [
    # (change of the tiny suite, what the message must say)
    ({"titel": "T"}, "there is no key 'titel' here (did you mean title?); allowed: backbones"),
    ({"title": None}, "the key 'title' is missing"),
    ({"title": 3}, "title: 3 is not text (Heading of the report)"),
    ({"gpu": "yes"}, "gpu: 'yes' is not true or false"),
    ({"threads": 0}, "threads: 0 is less than the minimum of 1"),
    ({"seeds": 3}, "seeds: 3 is not a list"),
    ({"seeds": []}, "seeds: [] should be non-empty"),
    ({"seeds": [-1]}, "seeds.0: -1 is less than the minimum of 0"),
    ({"seeds": [0, 0]}, "seeds: [0, 0] has non-unique elements"),
    ({"seeds": ["a"]}, "seeds.0: 'a' is not a whole number"),
    ({"runs": []}, "runs: [] is not a mapping"),
    ({"runs": {"run": {}}}, "runs: 'run' is not the name of a run; write DATASET/RUN"),
    ({"runs": {"tiny/a b": {}}}, "runs: 'tiny/a b' is not the name of a run"),
    ({"datasets": {"my set": {"reader": "folder"}}},
     "datasets: 'my set' is not the name of a data set; take letters, digits, '_', '.' and '-'"),
    ({"backbones": {"my net": {"archive": "a"}}}, "backbones: 'my net' is not the name of a backb"),
    ({"bounds": [{"dataset": "tiny"}]}, "bounds.0: the key 'split' is missing"),
    ({"bounds": [{"dataset": "tyni", "split": "val"}]}, "bounds: no data set 'tyni'; did you mean"),
    ({"bounds": [{"dataset": "tiny", "split": "vol"}]}, "no split of tiny 'vol'; did you mean val"),
    ({"nets": {"slim": {"widht": 1}}}, "nets.slim: there is no key 'widht' here (did you mean"),
    ({"nets": {"x": {"base": "slom"}}, "runs": {"tiny/run": {"net": "x"}}},
     f"{RUN}.net: no net 'slom'; did you mean slim"),
    ({"recipes": {"short": {"loss": "hinge"}}},
     "recipes.short.loss: 'hinge' is not one of softmax, sigmoid (Per-pixel softmax"),
    ({"recipes": {"short": {"batch": 2.5}}}, "recipes.short.batch: 2.5 is not a whole number"),
    ({"recipes": {"short": {"momentum": 1}}}, "recipes.short.momentum: 1 is greater than or equal"),
    ({"recipes": {"short": {"patch_keep": 0}}}, "recipes.short.patch_keep: 0 is less than or"),
    ({"recipes": {"short": {"learning_rate": "fast"}}},
     "recipes.short.learning_rate: 'fast' is not a number"),
    ({"recipes": {"short": {"images": None}}}, f"{RUN}.recipe: the key 'images' is missing"),
    ({"recipes": {"a": {"base": "b"}, "b": {"base": "a"}}, "runs": {"tiny/run": {"recipe": "a"}}},
     f"{RUN}.recipe: the bases a -> b -> a form a circle"),
    ({"nets": {"a": {"base": "a"}}, "runs": {"tiny/run": {"net": "a"}}},
     f"{RUN}.net: the bases a -> a form a circle"),
]  # fmt: skip
RUN_MISTAKES = [
    # (change of the entry of tiny/run, what the message must say)
    (
        {"wieghts": "none"},
        ": there is no key 'wieghts' here (did you mean weights?); allowed: base, i",
    ),
    ({"net": None}, ": the key 'net' is missing"),
    ({"weights": None}, ": the key 'weights' is missing"),
    ({"recipe": None}, ": the key 'recipe' is missing"),
    ({"split": None}, ": the key 'split' is missing"),
    ({"train": None}, ": the key 'train' is missing (DATASET/SPLIT to train on)"),
    (
        {"mask": {"train": "both", "test": "none"}, "recipe": {"base": "short", "jitter": 2}},
        ".mask: with recipe.jitter the labels that say what to hide have void pixels of its own",
    ),
    (
        {"mask": {"train": "both", "test": "none"}, "recipe": {"base": "short", "patch_keep": 0.5}},
        ".mask: with recipe.patch_keep the labels",
    ),
    ({"train": "tiny"}, ".train: 'tiny' is not of an allowed form (DATASET/SPLIT to train on)"),
    ({"train": "tyni/train"}, ".train: no data set 'tyni'; did you mean tiny"),
    ({"train": "tiny/trian"}, ".train: no split of tiny 'trian'; did you mean train"),
    ({"train": "voc2011/train"}, ".train: voc2011 and tiny have different classes"),
    ({"split": "vla"}, ".split: no split of tiny 'vla'; did you mean val"),
    ({"net": "slom"}, ".net: no net 'slom'; did you mean slim"),
    ({"net": 3}, ".net: 3 is not of an allowed form (A net of config/nets.yaml, or one given"),
    ({"net": {"widht": 1}}, ".net: there is no key 'widht' here (did you mean width?)"),
    ({"net": {"width": 2}}, ".net.width: 2 is greater than the maximum of 1 (Share of the chan"),
    ({"net": {"skips": "pool4"}}, ".net.skips: 'pool4' is not a list (Features added below the"),
    ({"net": {"top": 3}}, ".net.top: 3 is not null or text"),
    ({"net": {"architecture": "resnet"}}, ".net.architecture: 'resnet' is not one of alexnet, a"),
    ({"net": {"width": 0.5}}, ".net: the key 'architecture' is missing"),
    ({"recipe": "shrot"}, ".recipe: no recipe 'shrot'; did you mean short"),
    ({"recipe": {"base": "shrot"}}, ".recipe: no recipe 'shrot'; did you mean short"),
    ({"recipe": {"learning_rat": 1}}, ".recipe: there is no key 'learning_rat' here (did you mean"),
    ({"recipe": {"batch": 1}}, ".recipe: the key 'images' is missing"),
    (
        {"weights": "nothing"},
        ".weights: 'nothing' is not of an allowed form (Where training starts: ",
    ),
    ({"weights": {"backbon": "x"}}, ".weights: {'backbon': 'x'} is not of an allowed form (Where"),
    ({"weights": {"backbone": 3}}, ".weights.backbone: 3 is not text"),
    (
        {"weights": {"backbone": "vgg16-cafe"}},
        ".weights: no backbone 'vgg16-cafe'; did you mean vgg",
    ),
    ({"weights": {"released": "x"}}, ".weights: no backbone 'x'; known: alexnet-torchvision"),
    (
        {"weights": {"backbone": "caffenet"}},
        ".weights: backbone caffenet is of architecture alexnet, the net of",
    ),
    ({"weights": {"run": "rum"}}, ".weights.run: no run 'tiny/rum'; did you mean tiny/run"),
    ({"weights": {"run": "tiny/run"}}, ".weights.run: tiny/run <- tiny/run: a run cannot start fr"),
    (
        {"weights": {"run": "run"}},
        ".weights.run: tiny/run <- tiny/run: a run cannot start from its",
    ),
    ({"base": "tiny/rum"}, ".base: no run 'tiny/rum'; did you mean tiny/run"),
    ({"rows": [{"table": "tabel1", "row": "r"}]}, ".rows: no table 'tabel1'; did you mean table1"),
    (
        {"rows": [{"table": "table2", "row": "FCN-32"}]},
        ".rows: no row of table2 'FCN-32'; did you mean FCN-32s or ",
    ),
    (
        {"rows": [{"table": "dropout", "row": "0.25"}]},
        ".rows: no row of dropout '0.25'; known: with, without. A row of your own says new: true.",
    ),
    (
        {"rows": [{"table": "table2", "row": "FCN-32s", "new": True}]},
        ".rows: table2 has the row 'FCN-32s'; leave out new: true.",
    ),
    (
        {"rows": [{"table": "bounds", "row": "128"}]},
        ".rows: no run fills the table bounds; name another or none.",
    ),
    ({"rows": [{"table": "table2", "row": "x", "new": 1}]}, ".rows.0.new: 1 is not true or false"),
    (
        {"rows": [{"table": "context", "row": "FCN-8s", "against": ["PAMI 2018"]}]},
        ".rows: no text of context 'PAMI 2018'; did you mean PAMI 2017",
    ),
    ({"rows": [{"table": "table1"}]}, ".rows.0: the key 'row' is missing"),
    ({"rows": {"table": "table1"}}, ".rows: {'table': 'table1'} is not a list"),
    ({"seeds": [1, 1]}, ".seeds: [1, 1] "),
    ({"seeds": [0.5]}, ".seeds.0: 0.5 is not a whole number"),
    ({"version": 0}, ".version: 0 is less than the minimum of 1"),
    ({"time": 1}, ".time: 1 is not true or false"),
]


GOOGLENET: dict[str, Any] = {"base": "voc-fcn-googlenet"}
IN_VAIN: list[tuple[dict[str, Any], str]] = [  # the net of an entry, and the option that is refused
    ({**GOOGLENET, "hidden": 8}, "hidden"),
    ({**GOOGLENET, "fc6_kernel": 3}, "fc6_kernel"),
    ({**GOOGLENET, "fc6_dilation": 2}, "fc6_dilation"),
    ({**GOOGLENET, "pool5_stride": 1}, "pool5_stride"),
    ({**GOOGLENET, "top": "inception_4e", "average_pool": True}, "average_pool"),
    ({**GOOGLENET, "top": "inception_4e", "dropout": 0.1}, "dropout"),
    ({"base": "slim", "average_pool": True}, "average_pool"),
    ({"base": "slim", "fusion": "late"}, "fusion"),
    ({"base": "slim", "fusion_weights": [1, 1]}, "fusion_weights"),
    ({"base": "slim", "inputs": ["image", "depth"], "fusion_weights": [1, 1]}, "fusion_weights"),
    ({"base": "slim", "skips": [], "interpolation": "learned"}, "interpolation"),
    ({"base": "slim", "skips": [], "skip_fusion": "max"}, "skip_fusion"),
    ({"base": "slim", "skips": ["pool4"], "scales": {"pool3": 0.1}}, "scales"),
    *(
        ({"base": "slim", "skips": [], "top": "pool4", option: value}, option)
        for option, value in (
            ("hidden", 9), ("fc6_kernel", 2), ("fc6_dilation", 2), ("pool5_stride", 1),
            ("dropout", 0.1),
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("net", "said"),
    [
        ({"skips": ["pool5"]}, "pool5 has stride 32, drop7 before it 32"),
        ({"skips": ["pool4"], "pool5_stride": 1}, "pool4 has stride 16, drop7 before it 16"),
        ({"top": "pool4", "skips": ["pool4"]}, "pool4 has stride 16, pool4 before it 16"),
    ],
)
def test_a_skip_is_finer_than_the_top(write_suite, net, said):
    path = write_suite({"runs": {"tiny/run": {"net": {"base": "slim", **net}}}})
    assert f"runs.tiny/run.net.skips: {said}; list the skips from coarse to fine" in sentence(path)


@pytest.mark.parametrize("classes", [["a", "b"], {"semantic": ["a", "b"]}])
def test_labels_that_a_data_set_lacks_are_refused(write_suite, classes):
    own = {"reader": "folder", "path": "own", "classes": classes, **LISTS}
    run = {"train": "own/train", "split": "train", "labels": ["geometric"]}
    change = {"datasets": {"own": own}, "runs": {"own/run": {"base": "tiny/run", **run}}}
    said = sentence(write_suite(change))
    assert "runs.own/run.labels: no labels of own 'geometric'" in said and "semantic" in said


@pytest.mark.parametrize(("key", "mean"), [("image", [1, 2]), ("hha", [1]), ("depth", [1, 2, 3])])
def test_a_mean_has_a_number_for_each_channel(write_suite, key, mean):
    own = {"reader": "folder", "path": "own", "classes": ["a"], **LISTS, "means": {key: mean}}
    assert f"means.{key}" in sentence(write_suite({"datasets": {"own": own}}))


@pytest.mark.parametrize("net, option", IN_VAIN, ids=str)
def test_an_option_without_effect_is_refused_where_it_is_set(write_suite, net, option):
    need = f"it has no effect without {NET_NEEDS[option][0]}; leave it out."
    in_a_run = write_suite({"runs": {"tiny/run": {"net": net}}})
    assert sentence(in_a_run).endswith(f": runs.tiny/run.net.{option}: {need}")
    in_a_net = write_suite({"nets": {"own": net}})
    assert sentence(in_a_net).endswith(f": nets.own.{option}: {need}")


@pytest.mark.parametrize(
    "recipe, said",
    [
        ({"scale": [2, 1]}, "recipe.scale: [2, 1]: the first is the least"),
        ({"canvas": 100000}, "recipe.canvas"),
        ({"jitter": 5000}, "recipe.jitter"),
    ],
    ids=str,
)
def test_sizes_that_no_training_can_have_are_refused(write_suite, recipe, said):
    run = load(write_suite, {}).runs["tiny/run"]
    change = {"recipe": {**run.config["recipe"], **recipe}}
    assert said in sentence(write_suite({"runs": {"tiny/run": change}}))


@pytest.mark.parametrize(
    "change, said",
    [
        ({"skips": ["pool9"]}, "net.skips: no feature 'pool9'; did you mean pool"),
        ({"top": "fc7"}, "net.top: no feature 'fc7'"),
        ({"skips": ["pool3", "pool4"]}, "pool4 has stride 16, pool3 before it 8; list"),
        ({"top": "pool3", "skips": ["pool4"]}, "pool4 has stride 16, pool3 before it 8; list"),
    ],
    ids=str,
)
def test_a_feature_that_the_net_lacks_is_told_before_anything_runs(write_suite, change, said):
    path = write_suite({"runs": {"tiny/run": {"net": {"base": "slim", **change}}}})
    assert said in sentence(path) and ": runs.tiny/run.net." in sentence(path)


@pytest.mark.parametrize(
    "net, stride, said",
    [
        ({}, 3, "inference.stride: the net's stride is 32; 3 is no smaller divisor of it."),
        ({}, 32, "inference.stride: the net's stride is 32; 32 is no smaller divisor of it."),
        ({"pool5_stride": 1, "fc6_dilation": 2}, 16, "the net's stride is 16; 16 is no smaller"),
        ({"top": "pool4"}, 16, "the net's stride is 16; 16 is no smaller"),
        ({"skips": ["pool4"]}, 16, "inference: dense scores are for a net without skips; take"),
        ({}, 8, None),
        ({"top": "pool4"}, 8, None),
    ],
    ids=str,
)
def test_scores_that_cannot_be_denser_are_refused_before_a_training(write_suite, net, stride, said):
    inference = {"method": "rarefaction", "stride": stride}
    change = {"net": {"base": "slim", "skips": [], **net}, "inference": inference}
    path = write_suite({"runs": {"tiny/run": change}})
    assert load_suite(str(path)) if said is None else said in sentence(path)


def test_an_option_of_a_base_may_lie_idle(write_suite):
    """A truncated net has the fc6 of its base, one without skips their interpolation."""
    full = {"interpolation": "learned", "scales": {"pool3": 0.1}, "fc6_dilation": 2}
    runs = {
        "tiny/run": {"net": {"base": "slim", **full}},
        "tiny/cut": {"base": "tiny/run", "net": {"top": "pool4", "skips": []}},
        "tiny/again": {"base": "tiny/cut", "net": {"score_init": "random"}},
        "tiny/usual": {"base": "tiny/cut", "net": {"interpolation": "fixed", "scales": {}}},
    }
    runs_of = load(write_suite, {"runs": runs}).runs
    assert runs_of["tiny/again"].config["net"]["hidden"] == 8
    assert runs_of["tiny/cut"].config["net"]["interpolation"] == "learned"
    assert runs_of["tiny/usual"].config["net"]["scales"] == {}


def test_the_net_of_a_backbone_is_held_to_the_same(write_suite):
    own = {"architecture": "googlenet", "input": RGB, "pretrain": {}, "net": {"hidden": 8}}
    message = sentence(write_suite({"backbones": {"own": own}}))
    assert ": backbones.own.net.hidden: it has no effect without fc6 and fc7" in message


UNTRAINED: dict[str, Any] = {"base": "tiny/run", "recipe": "none"}
AGAIN = {**UNTRAINED, "weights": {"run": "run"}}


@pytest.mark.parametrize(
    "entry, says",
    [
        ({**AGAIN, "train": "tiny/train"}, "train: it has no effect with recipe: none, which"),
        ({**AGAIN, "train": "no/such"}, "train: it has no effect with recipe: none, which trains"),
        ({**AGAIN, "mask": {"train": "both", "test": "none"}}, "mask.train: it has no effect with"),
        ({**UNTRAINED, "seeds": [0, 1, 2]}, "seeds: it has no effect with recipe: none, which"),
        ({"base": "tiny/again", "train": "tiny/val"}, "train: it has no effect with recipe: none"),
    ],
    ids=str,
)
def test_what_a_training_reads_is_refused_where_there_is_none(write_suite, entry, says):
    path = write_suite({"runs": {"tiny/again": AGAIN, "tiny/own": entry}})
    assert f": runs.tiny/own.{says}" in sentence(path)


def test_a_run_that_is_not_trained_may_inherit_a_training(write_suite):
    masked = {"mask": {"train": "both", "test": "both"}, "seeds": [0, 1]}
    again = {**AGAIN, "mask": {"train": "none", "test": "both"}, "seeds": [1]}
    runs = {"tiny/run": masked, "tiny/again": again, "tiny/random": UNTRAINED}
    found = load(write_suite, {"runs": runs}).runs
    assert found["tiny/again"].seeds == (1,) and found["tiny/again"].config["train"] is None
    assert found["tiny/random"].seeds == (0,)
    assert found["tiny/random"].config["mask"] == masked["mask"]


def test_a_row_of_ones_own_is_declared(make_run):
    run = make_run(rows=[{"table": "dropout", "row": "0.25", "new": True}])
    assert run.rows == (Row("dropout", "0.25"),)


def sentence(path, seeds=None):
    with pytest.raises(UserError) as raised:
        load_suite(str(path), seeds)
    message = str(raised.value)
    assert message.startswith(str(path)) and message.endswith((".", "?"))
    assert "\n" not in message and len(message) < 700 + len(str(path))
    assert not re.search(r"\.\.\s|\?\.|\.\.$|\(\)|valid under|does not match|of type", message)
    return message


@pytest.mark.parametrize("change, says", MISTAKES, ids=lambda v: str(v)[:60])
def test_mistakes_in_a_suite(write_suite, change, says):
    assert says in sentence(write_suite(change))


@pytest.mark.parametrize("change, says", RUN_MISTAKES, ids=lambda v: str(v)[:60])
def test_mistakes_in_a_run(write_suite, change, says):
    assert f"{RUN}{says}" in sentence(write_suite({"runs": {"tiny/run": change}}))


def test_unknown_data_set(write_suite):
    path = write_suite({"runs": {"tyni/run": tiny_suite()["runs"]["tiny/run"]}})
    assert "runs.tyni/run: no data set 'tyni'; did you mean tiny" in sentence(path)


FUSED: dict[str, Any] = {
    "tiny/deep": {"base": "tiny/run", "net": {"base": "slim", "inputs": ["depth"]}},
    "tiny/late": {
        "base": "tiny/run",
        "net": {"base": "slim", "inputs": ["image", "depth"], "fusion": "late"},
        "weights": {"runs": {"image": "run", "depth": "tiny/deep"}},
    },
}


def test_late_fusion_starts_from_a_run_for_each_input(write_suite):
    suite = load_suite(str(write_suite({"runs": FUSED})))
    late = suite.run("late")
    assert late.parents == {"image": "tiny/run", "depth": "tiny/deep"}
    assert late.config["weights"]["hashes"] == {
        "image": suite.run("run").hash, "depth": suite.run("deep").hash
    }  # fmt: skip
    assert late.config["inputs"]["depth"] == suite.run("deep").config["inputs"]["depth"]
    assert list(late.config["inputs"]) == ["image", "depth"]
    changed = {**FUSED, "tiny/deep": {**FUSED["tiny/deep"], "version": 2}}
    assert load_suite(str(write_suite({"runs": changed}))).run("late").hash != late.hash
    circle = {**FUSED, "tiny/deep": {**FUSED["tiny/deep"], "weights": {"run": "late"}}}
    assert "tiny/deep <- tiny/late <- tiny/deep: a run cannot start from itself" in sentence(
        write_suite({"runs": circle})
    )


@pytest.mark.parametrize(
    "change, says",
    [
        (
            {"weights": {"runs": {"image": "run", "depth": "tiny/run"}}},
            ".runs.depth: tiny/run does not read depth but image; name a run that reads depth.",
        ),
        (  # of every run the image's convention is known, whether it reads images or not
            {"weights": {"runs": {"image": "deep", "depth": "deep"}}},
            ".runs.image: tiny/deep does not read image but depth; name a run that reads image.",
        ),
        (
            {"weights": {"runs": {"image": "run", "hha": "deep"}}},
            ".runs: names runs for image and hha, but the net reads image and depth; a late fusion",
        ),
        (
            {"weights": {"runs": {"image": "run", "depth": "deep", "hha": "deep"}}},
            ".runs: names runs for image and depth and hha, but the net reads image and depth; a",
        ),
        (
            {"net": {"base": "slim", "inputs": ["image", "depth"]}},
            ".runs: names runs for image and depth, but the net reads image and depth in one stre",
        ),
        (
            {"net": "slim"},
            ".runs: names runs for image and depth, but the net reads image in one stream; a late",
        ),
        ({"weights": {"runs": {"run": "run", "depth": "deep"}}}, ".runs: names runs for run and"),
    ],
)
def test_late_fusion_of_runs_that_do_not_fit(write_suite, change, says):
    runs = {**FUSED, "tiny/late": {**FUSED["tiny/late"], **change}}
    assert f"runs.tiny/late.weights{says}" in sentence(write_suite({"runs": runs}))


def test_means_of_a_data_set_stand_for_a_caffe_backbones(write_suite):
    means = {"datasets": {"tiny": {"means": {"image": [1.0, 2.0, 3.0]}}}}
    assert tiny_of(write_suite(means)).config["input"]["mean"] == [1.0, 2.0, 3.0]
    slim = {"architecture": "vgg16", "input": RGB, "pretrain": {}}
    rgb = {"backbones": {"b": slim}, "runs": {"tiny/run": {"weights": {"backbone": "b"}}}}
    assert tiny_of(write_suite({**means, **rgb})).config["input"] == RGB
    deep = {"runs": FUSED, "datasets": {"tiny": {"means": None}}}
    assert "the data set has no `means.depth`" in sentence(write_suite(deep))


def tiny_of(path):
    return load_suite(str(path)).run("tiny/run")


def test_circles_of_runs(write_suite):
    entry = tiny_suite()["runs"]["tiny/run"]
    three = {
        f"tiny/{a}": {**entry, "weights": {"run": f"tiny/{b}"}}
        for a, b in (("a", "b"), ("b", "c"), ("c", "a"))
    }
    message = sentence(write_suite({"runs": three}))
    assert "runs.tiny/a.weights.run: tiny/a <- tiny/b <- tiny/c <- tiny/a: a run cannot" in message
    leading = {"tiny/into": {**entry, "weights": {"run": "a"}}, **three}  # a tail before the circle
    assert "a run cannot start from itself" in sentence(write_suite({"runs": leading}))
    bases = {f"tiny/{a}": {"base": f"tiny/{b}"} for a, b in (("a", "b"), ("b", "c"), ("c", "a"))}
    message = sentence(write_suite({"runs": bases}))
    assert "the bases tiny/a -> tiny/b -> tiny/c -> tiny/a form a circle" in message


@pytest.mark.parametrize(
    "lacks, says",
    [
        ("architecture", "backbone own lacks the key 'architecture'"),
        ("input", "backbone own lacks the key 'input'"),
        ("archive", "backbone own lacks the key 'archive'"),
    ],
)
def test_backbones_that_lack_a_key(write_suite, lacks, says):
    own = {
        "architecture": "vgg16",
        "archive": "VGG_ILSVRC_16_layers.caffemodel",
        "input": {"order": "bgr", "mean": [1, 2, 3], "std": [1, 1, 1]},
    }
    del own[lacks]
    path = write_suite(
        {"backbones": {"own": own}, "runs": {"tiny/run": {"weights": {"backbone": "own"}}}}
    )
    assert says in sentence(path)


def test_archives_that_are_not_known(write_suite):
    own = {"architecture": "vgg16", "archive": "VGG_ILSVRC_16_layer.caffemodel", "input": {}}
    path = write_suite(
        {"backbones": {"own": own}, "runs": {"tiny/run": {"weights": {"backbone": "own"}}}}
    )
    assert (
        "backbone own: no archive 'VGG_ILSVRC_16_layer.caffemodel'; did you mean VGG_ILSVRC_16_"
        in (sentence(path))
    )
    own = {"reader": "sbd", "archives": ["benchmark.tar"], "splits": {"val": "val.txt"}}
    runs = {"own/run": tiny_suite()["runs"]["tiny/run"]}
    path = write_suite({"datasets": {"own": own}, "runs": runs})
    assert "data set own: no archive 'benchmark.tar'; did you mean benchmark.tgz" in sentence(path)


@pytest.fixture
def add_to(monkeypatch):
    """Add entries to a file of config/, as it is read."""
    read = fcn.suites.read_yaml

    def add(name, entries):
        path = CONFIG / f"{name}.yaml"
        monkeypatch.setattr(
            fcn.suites,
            "read_yaml",
            lambda asked: {**read(path), **entries} if asked == path else read(asked),
        )

    return add


RIGHT = {"urls": ["https://a.org/b.tar"], "size": 1, "md5": None, "terms": "T", "source": "S"}


@pytest.mark.parametrize(
    "change, says",
    [
        (
            {"sha25": "0" * 64},
            ": there is no key 'sha25' here (did you mean sha256?); allowed: acc",
        ),
        ({}, ": the key 'sha256' is missing"),
        (
            {"sha256": "0" * 7},
            ".sha256: '0000000' is not of an allowed form (64 hexadecimal digits",
        ),
        ({"sha256": 12345678}, ".sha256: 12345678 is not null or text (64 hexadecimal digits"),
        (
            {"sha256": None, "md5": "g" * 32},
            f".md5: '{'g' * 32}' is not of an allowed form (32 hex",
        ),
        ({"sha256": None, "size": 0}, ".size: 0 is less than the minimum of 1 (Bytes"),
        (
            {"sha256": None, "urls": ["ftp://a"]},
            ".urls.0: 'ftp://a' is not of an allowed form (an ",
        ),
        ({"sha256": None, "urls": []}, ".urls: [] should be non-empty (Addresses, tried in order)"),
        (
            {"sha256": None, "accept": [{"why": "w", "size": 3}]},
            ".accept.0: {'why': 'w', 'size': 3} is not of an allowed form (another right file: why",
        ),
    ],
    ids=str,
)
def test_mistakes_in_an_archive(write_suite, monkeypatch, change, says):
    """Of an archive without any public digest the entry says so: null."""
    read = fcn.suites.read_yaml

    def with_own(content):
        monkeypatch.setattr(
            fcn.suites,
            "read_yaml",
            lambda path: (
                {**read(path), "own.tar": content}
                if path == CONFIG / "archives.yaml"
                else read(path)
            ),
        )

    path = str(write_suite())
    with_own({**RIGHT, "sha256": None})
    load_suite(path)
    with_own({**RIGHT, **change})
    with pytest.raises(UserError) as raised:
        load_suite(path)
    assert str(raised.value).startswith(f"{CONFIG / 'archives.yaml'}: own.tar{says}")


# -------------------------------------------------------------------------------------- YAML itself


@pytest.mark.parametrize(
    "text, says",
    [
        (
            "title: T\nruns: {}\ntitle: U\n",
            ", line 3, column 1: not valid YAML: the key 'title' stands",
        ),
        (
            "title: T\nruns: {a/b: {net: x, net: y}}\n",
            ", line 2, column 22: not valid YAML: the key",
        ),
        (
            "title: T\nruns: {1: {}}\n",
            "line 2, column 8: not valid YAML: the key 1 is not text; put",
        ),
        ("title: T\nruns: {yes: {}}\n", "the key True is not text; put it in quotes"),
        ("title: T\nruns: {[a]: {}}\n", "the key ['a'] is not text"),
        ("title: [T\nruns: {}\n", "not valid YAML: expected ',' or ']'"),
        ("title: T\n\truns: {}\n", ", line 2, column 1: not valid YAML"),
        (
            "title: !!python/object:os.system {}\n",
            "not valid YAML: could not determine a constructor",
        ),
        (
            "title: .inf\nruns: {}\n",
            "line 1, column 8: not valid YAML: .inf is not a finite number",
        ),
        ("title: .nan\nruns: {}\n", ".nan is not a finite number"),
        ("", "None is not a mapping"),
        ("- title\n", "['title'] is not a mapping"),
    ],
)
def test_broken_yaml(tmp_path, text, says):
    path = tmp_path / "own.yaml"
    path.write_text(text)
    assert says in sentence(path)


@pytest.mark.parametrize(
    "text",
    [
        *(path.read_text() for path in sorted(CONFIG.rglob("*.yaml"))),
        "a: [1e5, 1e-4, 0x1F, 1_000, .5, 1.5e3, ~, yes, '1e5']\nb: 2016-02-03\nc: &x [1]\nd: *x\n",
        "text: >-\n  one\n  two\n\n  three\nraw: |\n  four\n",
        '"\\u00e4": ä\n',
    ],
)
def test_both_readers_of_yaml_say_the_same(monkeypatch, text):
    fast = schema._parsed(text)
    assert schema._FastLoader is not None and schema._flat(text)
    monkeypatch.setattr(schema, "_FastLoader", None)
    assert repr(schema._parsed(text)) == repr(fast)


def test_deep_nesting_is_found_before_it_can_hurt():
    assert schema._flat("[" * schema.DEEP + "]" * schema.DEEP)
    assert not schema._flat("[" * 200_000)


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "folder.yaml").mkdir()
    assert "not a readable text file" in sentence(tmp_path / "folder.yaml")
    (tmp_path / "latin.yaml").write_bytes("title: Bäume\n".encode("latin-1"))
    assert "not a readable text file" in sentence(tmp_path / "latin.yaml")


def test_anchors_and_merge_keys_work(tmp_path):
    suite = yaml.safe_dump(tiny_suite(), sort_keys=False)
    suite = suite.replace("  short:\n", "  short: &short\n")
    suite = suite.replace("runs:\n", "  long: {<<: *short, images: 99}\nruns:\n", 1)
    path = tmp_path / "own.yaml"
    path.write_text(suite.replace("recipe: short", "recipe: long"))
    recipe = load_suite(str(path)).run("run").config["recipe"]
    assert recipe["images"] == 99 and recipe["batch"] == 2


def test_suite_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"suite 'papre': .*there are: .*voc-subset"):
        load_suite("papre")
    with pytest.raises(UserError, match=r"suite 'own\.yaml': own\.yaml does not exist"):
        load_suite("own.yaml")


@pytest.mark.parametrize("seeds", ["0", 0, -1, "a", "1,,2", "-1,2", "1.5", "1,1", ","])
def test_bad_seeds_of_the_command_line(seeds):
    with pytest.raises(UserError, match=f"seeds={seeds}: give a number of seeds \\(3\\) or a list"):
        load_suite("voc-subset", seeds)


def test_on_the_command_line_it_is_one_line(write_suite, capsys):
    path = write_suite({"runs": {"tiny/run": {"wieghts": "none"}}})
    assert main(["train", "run", "--suite", str(path), "--device", "cpu"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {path}: runs.tiny/run: there is no key 'wie")


def test_unknown_names_the_nearest():
    assert unknown("net", "voc-fcn32", ["voc-fcn32s", "x"]) == (
        "no net 'voc-fcn32'; did you mean voc-fcn32s?"
    )
    assert unknown("net", "zzz", ["b", "a"]) == "no net 'zzz'; known: a, b."


def test_words_about_a_data_set_do_not_count():
    def hashed(**change):
        return contents_hash({"reader": "voc", "title": "A", "terms": "B", **change})

    assert hashed() == hashed(title="C") == hashed(terms="D")
    assert hashed() != hashed(reader="sbd")
    assert hashed(splits={"val": "a.txt"}) != hashed(splits={"val": "b.txt"})


@pytest.mark.parametrize(
    "text, says",
    [("title: T\ndate: 2016-02-30\n", "day is out of range"), ("[" * 5000, "recursion")],
    ids=["date", "deep"],
)
def test_values_that_yaml_cannot_make(tmp_path, text, says):
    path = tmp_path / "own.yaml"
    path.write_text(text)
    assert says in sentence(path)


LISTS = {"splits": {"train": "train.txt"}}
OWN: dict[str, dict[str, Any]] = {  # a data set of each reader
    "folder": {"path": "own", "classes": ["a"], "void": 255, **LISTS},
    "voc": {"archives": ["benchmark.tgz"], "root": "own", "labels": {}, **LISTS},
    "sbd": {"archives": ["benchmark.tgz"], "root": "own", "classes": "names.txt", **LISTS},
    "siftflow": {"path": "own", "classes": {"semantic": ["a"], "geometric": ["b"]}, **LISTS},
    "context": {"path": "own", "images": "i", "labels": "l", "aliases": {"a": "b"}, **LISTS},
    "coco": {"path": "own", "splits": {"train": {"annotations": "a.json", "images": "i"}}},
    "nyud": {"path": "own", "camera": {"fx": 1, "fy": 1, "cx": 1, "cy": 1}, **LISTS},
    "nyudv2": {"path": "own", "depth": "raw", "crop": {"rows": [0, 9], "columns": [0, 9]}, **LISTS},
    "scenes": {"seed": 1, "size": [48, [48, 64]], "splits": {"train": 3}, "objects": [1, 2]},
}


def own_data(write_suite, reader, /, **change):
    own = merged({"reader": reader, "title": "T", "terms": "T", **OWN.get(str(reader), {})}, change)
    return write_suite({"datasets": {"own": own}})


@pytest.mark.parametrize("reader", OWN)
def test_every_reader_has_its_keys(write_suite, reader):
    load_suite(str(own_data(write_suite, reader, notes=["n"], means={"image": [1, 2, 3]})))
    enum = suite_schema()["$defs"]["dataset"]["properties"]["reader"]["enum"]
    assert set(enum) == set(OWN) == set(READERS)


@pytest.mark.parametrize(
    "reader, key, value",
    [
        ("sbd", "void", 255),
        ("sbd", "colours", "voc"),
        ("sbd", "images", "JPEGImages"),
        ("siftflow", "aliases", {"a": "b"}),
        ("context", "void", 0),
        ("coco", "images", "i"),
        ("nyud", "crop", {"rows": [0, 9], "columns": [0, 9]}),
        ("nyudv2", "root", "r"),
        ("nyudv2", "labels", "l"),
        *(
            (reader, key, value)
            for reader in ("folder", "voc")
            for key, value in (
                ("camera", {"fx": 1, "fy": 1, "cx": 1, "cy": 1}), ("depth", "raw"), ("seed", 1),
                ("crop", {"rows": [0, 9], "columns": [0, 9]}), ("objects", [1, 2]),
                ("aliases", {"a": "b"}), ("object_scale", 2), ("size", [48, 48]),
            )
        ),
        *(
            ("scenes", key, value)
            for key, value in (
                ("path", "p"), ("archives", []), ("classes", ["a"]), ("void", 1), ("depth", "raw"),
            )
        ),
    ],
)  # fmt: skip
def test_a_key_that_a_reader_ignores_is_refused(write_suite, reader, key, value):
    message = sentence(own_data(write_suite, reader, **{key: value}))
    assert f": datasets.own: there is no key '{key}' here" in message
    scope = "voc or folder" if reader in ("voc", "folder") else reader
    allowed = message.split(f"; allowed with reader {scope}: ")[1].rstrip(".").split(", ")
    assert set(OWN[reader]) <= set(allowed) and key not in allowed


@pytest.mark.parametrize(
    "reader, change, says",
    [
        ("folder", {"colors": "voc"}, ": there is no key 'colors' here (did you mean colours?); a"),
        ("folder", {"viod": 255}, ": there is no key 'viod' here (did you mean void?)"),
        ("sbd", {"viod": 255}, ": there is no key 'viod' here; allowed with reader sbd: archives"),
        ("scenes", {"meens": {}}, ": there is no key 'meens' here (did you mean means?)"),
        ("scenes", {"means": {"rgb": [1]}}, ".means: there is no key 'rgb' here"),
        ("folder", {"splits": ["train"]}, ".splits: ['train'] is not a mapping"),
        ("folder", {"splits": {"val": {"minus": []}}}, ".splits.val.minus: "),
        ("sbd", {"splits": {"val": {"union": []}}}, ".splits.val.union: "),
        ("folder", {"splits": {"val": ["a"]}}, ".splits.val: ['a'] is not of an allowed form (a l"),
        ("folder", {"splits": {"val": 3}}, ".splits.val: 3 is not of an allowed form (a list's p"),
        ("sbd", {"splits": None}, ": the key 'splits' is missing"),
        ("context", {"images": None}, ": the key 'images' is missing"),
        ("folder", {"path": 3}, ".path: 3 is not text"),
        ("folder", {"root": "r"}, ".root: it has no effect beside path, which is the root itself;"),
        ("sbd", {"path": "p"}, ".root: it has no effect beside path, which is the root itself; l"),
        (["voc"], {}, ".reader: ['voc'] is not one of voc, folder, sbd"),
        ("foldr", {"void": 3}, ".reader: 'foldr' is not one of voc, folder, sbd"),
        (None, {"reader": None}, ": the key 'reader' is missing"),
        ("sbd", {"archives": 5}, ".archives: 5 is not a list"),
        ("nyud", {"notes": "a"}, ".notes: 'a' is not a list"),
        ("folder", {"void": [255]}, ".void: "),
        ("folder", {"colours": [[0, 0, 0], [1, 1]]}, ".colours.1: "),
        ("folder", {"colours": "vok"}, ".colours: 'vok' is not of an allowed form"),
        ("folder", {"images": 1}, ".images: 1 is not text"),
        ("sbd", {"classes": [["a"]]}, ".classes.0: ['a'] is not text or a whole number"),
        ("context", {"labels": {"semantic": "l"}}, ".labels: {'semantic': 'l'} is not text"),
        ("scenes", {"size": "big"}, ".size: 'big' is not a list"),
    ],
    ids=str,
)
def test_mistakes_in_a_data_set(write_suite, reader, change, says):
    assert f": datasets.own{says}" in sentence(own_data(write_suite, reader, **change))


@pytest.mark.parametrize(
    "change, says",
    [
        ({"archive": 3}, ".archive: 3 is not text"),
        ({"input": "x"}, ".input: 'x' is not a mapping"),
        ({"fromat": "caffe"}, ": there is no key 'fromat' here (did you mean format?)"),
        (
            {"archive": "vgg16-397923af.pth", "pretrain": {}},
            ".archive: it has no effect beside pretrain, which trains the weights instead of readi",
        ),
        ({"format": "caffe", "pretrain": {}}, ".format: it has no effect beside pretrain, which"),
        ({"archive": "vgg16-397923af.pth", "net": {}}, ".net: it has no effect without pretrain: "),
        ({"net": {"skips": []}, "pretrain": {}}, ".net: there is no key 'skips' here; allowed: av"),
        (
            {"net": {"architecture": "vgg16"}, "pretrain": {}},
            ".net: there is no key 'architecture'",
        ),
    ],
    ids=str,
)
def test_mistakes_in_a_backbone(write_suite, change, says):
    assert f": backbones.own{says}" in sentence(write_suite({"backbones": {"own": change}}))


def test_a_time_depends_on_what_the_input_is_made_of(make_run):
    plain = make_run()
    assert make_run(mask={"train": "none", "test": "both"}).timed != plain.timed
    assert make_run(labels=["semantic", "geometric"]).timed != plain.timed
    assert make_run(title="Renamed", recipe={"base": "short", "batch": 1}).timed == plain.timed


def test_hash_changes_with_the_data_of_either_side(write_suite):
    def hash_of(**change):
        runs = {"tiny/run": {"train": "square/train"}}
        return load(write_suite, {"runs": runs, "datasets": change}).run("run").hash

    hashes = {hash_of(), hash_of(tiny={"seed": 4}), hash_of(square={"seed": 4})}
    assert len(hashes) == 3


def test_true_is_no_whole_number(write_suite):
    with pytest.raises(UserError, match="threads: True is not a whole number"):
        load(write_suite, {"threads": True})


def test_lists_of_classes_are_read_with_a_data_set(write_suite, tmp_path):
    (tmp_path / "classes.txt").write_text("a\nb\n")
    (tmp_path / "train.txt").write_text("0\n")
    own = {"reader": "folder", "path": str(tmp_path), "classes": "classes.txt",
           "splits": {"train": "train.txt"}}  # fmt: skip
    suite = load(write_suite, {"datasets": {"own": own}})
    assert suite.lists_of("own") == [str(tmp_path / n) for n in ("train.txt", "classes.txt")]


def test_a_data_set_has_one_bound(write_suite):
    """Its bounds are one file: a second split would show the numbers of the first."""
    bounds = [{"dataset": "tiny", "split": split} for split in ("val", "train")]
    with pytest.raises(UserError, match="bounds: tiny stands there twice"):
        load_suite(str(write_suite({"bounds": bounds})))
    assert len(load_suite(str(write_suite({"bounds": bounds[:1]}))).bounds) == 1


@pytest.mark.parametrize("name", ["/tmp/val", "../val", "a/b", "", "-v"])
def test_a_split_cannot_be_written_outside_of_its_folder(write_suite, name):
    own = {"reader": "folder", "path": "own", "classes": ["x", "y"]}
    change = {"datasets": {"own": {**own, "splits": {"train": "train.txt", name: "val.txt"}}}}
    with pytest.raises(UserError, match="the name of a split; take letters, digits"):
        load_suite(str(write_suite(change)))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"architecture": "googlenet", "skips": []}, "architecture: googlenet, but the weights of"),
        ({"width": 0.04}, "width: 0.04, but the weights of tiny/run are for 0.02"),
        ({"hidden": 16}, "hidden: 16, but the weights of tiny/run are for 8"),
        ({"fc6_kernel": 3}, "fc6_kernel: 3, but the weights of tiny/run are for 1"),
    ],
)
def test_a_run_that_starts_from_a_net_of_other_layers(write_suite, change, expected):
    child = {"base": "tiny/run", "weights": {"run": "tiny/run"}, "net": change}
    said = sentence(write_suite({"runs": {"tiny/child": child}}))
    assert f"runs.tiny/child.net.{expected}" in said


def test_a_truncated_net_may_go_on_from_one_with_other_fully_connected_layers(write_suite):
    other = {**tiny_suite()["nets"]["slim"], "hidden": 16, "skips": []}
    child = {"base": "tiny/run", "weights": {"run": "tiny/run"}}
    change = {"nets": {"other": other}, "runs": {"tiny/child": {**child, "net": "other"}}}
    assert "net.hidden: 16, but the weights of tiny/run" in sentence(write_suite(change))
    change["runs"]["tiny/child"]["net"] = {"base": "other", "top": "pool4"}
    suite = load_suite(str(write_suite(change)))
    assert suite.run("child").config["net"]["top"] == "pool4"


def test_a_classifier_of_an_unknown_net(write_suite):
    change = {"classifier": {"net": "slmi", "crop": 131, "image": 419}}
    said = sentence(write_suite(change))
    assert said.endswith("tiny.yaml: classifier.net: no net 'slmi'; did you mean slim?")
    change["classifier"]["net"] = "slim"
    assert load_suite(str(write_suite(change))).classifier == change["classifier"]
