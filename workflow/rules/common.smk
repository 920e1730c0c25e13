# Names that the rules share. Only what a bare Snakemake installation has is imported here.
import json
import re
import sys
from dataclasses import asdict
from pathlib import Path
from shlex import quote

from snakemake.cli import get_argument_parser
from snakemake.exceptions import WorkflowError

sys.path.insert(0, workflow.basedir)
from fcn.errors import UserError
from fcn.files import at_home, read_object
from fcn.plan import SERVER_SETS, check_targets, device_problem, gpu_count, of_classifier, preflight, server_sets, unfilled
from fcn.schema import CONFIG, check, read_yaml, unknown
from fcn.spec import fingerprint, source_hash
from fcn.suites import load_suite

config.setdefault("partial", False)
for key, value in config.items():
    config[key] = "" if value is None else value  # --config seeds=
try:
    given = {key: value for key, value in config.items() if key != "partial"}  # that is the Snakefile's own
    check(given, read_yaml(CONFIG / "schemas" / "config.yaml"), Path("--config"))
except UserError as error:
    raise WorkflowError(str(error)) from None

for key in ("mirror_is_subset", "partial"):  # --config key=true arrives as a string
    config[key] = str(config[key]).lower() == "true"
ALL_CORES = workflow.resource_settings.cores or 1  # none with --unlock, --summary, ..
SHARES = 840  # of profiles/default: divisible by 1 to 8 GPUs
GPUS = 0 if config["device"] == "cpu" else 1 if ":" in config["device"] else gpu_count()
SHARE = SHARES // min(GPUS, 8) if GPUS else 0
ONLY_LOOKING = {
    "-n", "--dry-run", "--dryrun", "--lint", "-l", "--list", "--list-rules", "--dag", "--rulegraph",
    "--filegraph", "--d3dag", "--summary", "-S", "-D", "--detailed-summary", "--unlock", "--touch", "-t",
    "--cleanup-metadata", "--list-conda-envs", "--conda-create-envs-only", "--report", "--mode",
    "--delete-all-output", "--list-input-changes", "--list-params-changes",
}


def only_looking(words):
    """Does this command start no job? ``-np`` is ``-n -p``."""
    return any(word.split("=")[0] in ONLY_LOOKING or re.fullmatch(r"-[A-Za-z]*n[A-Za-z]*", word) for word in words)


def targets_of(argv):
    """What a command asks for: `workflow` does not say so as early as here. Of another program nothing."""
    if Path(argv[0]).parts[-1:] != ("snakemake",) and Path(argv[0]).parts[-2:] != ("snakemake", "__main__.py"):
        return []
    return get_argument_parser().parse_args(argv[1:]).targets


try:
    if problem := device_problem(config["device"]):
        raise UserError(problem)
    DATA = str(at_home(config["data_dir"] or "data"))
    if Path(DATA).exists() and not Path(DATA).is_dir():
        raise UserError(f"data_dir={DATA}: a file; name a folder.")
    SUITE = load_suite(config["suite"], config["seeds"], config["precision"])
    check_targets(SUITE, targets_of(sys.argv))
    if not config["partial"] and not only_looking(sys.argv[1:]):
        preflight(
            SUITE, config["device"], config["mirror"], Path(DATA), targets=sys.argv[1:],
            subsets=config["mirror_is_subset"],
        )
except UserError as error:
    raise WorkflowError(str(error)) from None

DATA_OPTION = f"--data-dir {quote(DATA)}"
SUITE_OPTION = f"--suite {quote(SUITE.name)}"
# What changes a run's configuration, or which runs there are.
RUN_OPTION = SUITE_OPTION + (f" --precision {config['precision']}" if config["precision"] else "")
RUNS_OPTION = RUN_OPTION + (f" --seeds {quote(str(config['seeds']))}" if config["seeds"] else "")
MIRROR_OPTION = (f"--mirror {quote(config['mirror'])}" if config["mirror"] else "") + (
    " --mirror-is-subset" if config["mirror_is_subset"] else ""
)


wildcard_constraints:
    archive=r"[^/]+",
    dataset=r"[^/]+",
    backbone=r"[^/]+",
    run=r"[^/]+",
    seed=r"0|[1-9]\d*",


def archive_json(name):
    return f"{DATA}/archives/{name}.json"


def prepared(name):
    return f"{DATA}/prepared/{name}/dataset.json"


def run_of(wildcards):
    """The run that a path belongs to; a clear error where the suite has none."""
    try:
        return SUITE.run(f"{wildcards.dataset}/{wildcards.run}")
    except UserError as error:
        raise WorkflowError(str(error)) from None


def remake_unless(path, **facts):
    """Has a result made again that says otherwise of itself, or that cannot be read.

    Snakemake compares with what it remembers, and remembers neither stages run by hand nor copied results.
    A training is not thrown away for its broken sidecar: the stages and the report that read it say so.
    """
    try:
        record = read_object(path) if Path(path).exists() else {}
        remake = any(record.get(key, value) != value for key, value in facts.items())
    except UserError:
        record, remake = {}, not path.endswith("train.json")
    if remake:
        workflow.dag.forcefiles.add(path)  # as for --forcerun, but only where a target needs it
    return record


def known(kind, library, name):
    """An entry of a library of the suite; a clear error where there is none."""
    if name not in library:
        raise WorkflowError(f"{SUITE.path}: {unknown(kind, name, library)}")
    return library[name]


def each(name, runs):
    """A file of every run and seed."""
    return [f"results/{run.id}/seed{seed}/{name}" for run in runs for seed in run.seeds]
