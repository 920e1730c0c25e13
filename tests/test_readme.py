"""What README.md shows works: its suites load, its commands parse, its links and targets exist."""

import re
import shlex

import pytest
import yaml

from fcn.arguments import parser
from fcn.plan import cost
from fcn.schema import CONFIG, ROOT
from fcn.suites import load_suite

README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^(?:python -m fcn|snakemake|make) .*", README, re.M)
BLOCKS = re.findall(r"^```yaml\n(.*?)^```", README, re.M | re.S)


def test_the_records_have_the_verdicts_that_are_told():
    rows = re.findall(r"^\| ([\w-]+): \[page\]\((\S+?)/tables.html\).*\|([^|]*)\|$", README, re.M)
    assert {name for name, _, _ in rows} == {
        path.name for path in (ROOT / "reports/published").iterdir()
    }
    for _, folder, told in rows:
        line = re.search(r"^Claims: (.*)\.$", (ROOT / folder / "tables.md").read_text(), re.M)
        assert line
        parts = re.sub(r" \([^)]*\)", "", line[1]).split(", ")
        verdicts = [part for part in parts if not part.endswith(("by test", "not run"))]
        assert told.strip() == ", ".join(verdicts)


def test_the_cost_of_the_paper_is_the_planners(tmp_path):
    hours, texts = {}, README + (ROOT / "docs" / "speed.md").read_text()
    for precision in ("bf16", "tf32", "fp32"):
        said = cost(load_suite("paper", precision=precision), tmp_path, tmp_path)
        trainings, hours[precision] = re.search(
            r"^(\d+) trainings .* about ([\d.]+) h", said
        ).groups()  # type: ignore[union-attr]
    told = {precision: f"{float(text):.0f}" for precision, text in hours.items()}
    assert f"`paper` has {trainings} trainings in float32." in texts
    assert f"take about {told['fp32']} hours, {told['tf32']}\nwith" in texts
    assert f"and {told['bf16']} with `precision=bf16`" in texts
    everywhere = "{bf16} hours in bf16, {tf32} in TF32, {fp32} in fp32".format(**told)
    assert f"{everywhere} ({trainings} trainings)" in texts


def test_the_first_block_is_the_two_commands():
    first = re.findall(r"^```\n(.*?)^```", README, re.M | re.S)[0]
    assert README.startswith("```\n")
    assert [line.split("#")[0].strip() for line in first.splitlines()] == ["make demo", "make test"]


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("python")])
def test_commands_are_understood(command):
    parser().parse_args(shlex.split(command, comments=True)[3:])


def test_tables_and_runs_that_are_named_are_targets():
    suite = load_suite("paper")
    for word in re.findall(
        r"`(\w*table\d|figure\d|context|more_data|dropout|class_balance)`", README
    ):
        assert word in suite.tables
    fed = {row.table for run in suite.runs.values() for row in run.rows}
    spans = (("table", 1, 5), ("pami_table", 2, 6), ("pami_table", 8, 8))
    named = {f"{name}{k}" for name, first, last in spans for k in range(first, last + 1)}
    assert {table for table in fed if re.fullmatch(r"(pami_)?table\d", table)} == named
    targets = re.findall(r"^snakemake .* results/(\S+?)/seed0/metrics.json", README, re.M)
    assert targets and all(target in suite.runs for target in targets)
    for run in re.findall(r"^python -m fcn (?:train|evaluate|time) (\S+)", README, re.M):
        assert run in suite.runs


def test_the_ablation_is_a_run_of_the_paper_with_one_thing_changed(tmp_path):
    (block,) = (block for block in BLOCKS if "base: voc2011/fcn32s" in block)
    ((name, entry),) = yaml.safe_load(block).items()
    (tmp_path / "own.yaml").write_text((CONFIG / "suites/paper.yaml").read_text() + block)
    runs = load_suite(str(tmp_path / "own.yaml")).runs
    ours, base = runs[name], runs[entry["base"]]
    changed = {
        key for key in ours.config["net"] if ours.config["net"][key] != base.config["net"][key]
    }
    assert changed == {"dropout"} and ours.config["recipe"] == base.config["recipe"]
    assert f"results/{name}/seed0/metrics.json" in README


def test_the_suite_of_an_own_data_set_loads(tmp_path):
    (block,) = (block for block in BLOCKS if block.startswith("title: "))
    (tmp_path / "own.yaml").write_text(block)
    suite = load_suite(str(tmp_path / "own.yaml"))
    (run,) = suite.runs.values()
    assert run.dataset == "camvid" and len(suite.datasets["camvid"]["classes"]) == 11


def test_links_lead_to_files():
    for page in ("README.md", "reports/README.md", "docs/architecture.md", "docs/deviations.md"):
        place = ROOT / page
        for link in re.findall(r"\]\(([^)#:]+)\)", place.read_text()):
            assert (place.parent / link).exists(), f"{page}: {link}"


def test_settings_of_the_table_are_those_of_the_schema():
    schema = yaml.safe_load((CONFIG / "schemas/config.yaml").read_text())["properties"]
    shown = set(re.findall(r"^\| `(\w+)=", README, re.M))
    assert shown == set(schema) - {"partial"}
