# Names that the rules share. Only what a bare Snakemake installation has is imported here.
import json
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.utils import validate

sys.path.insert(0, workflow.basedir)
from fcn.errors import UserError
from fcn.plan import SERVER_SETS, gpu_count, preflight, server_sets
from fcn.spec import fingerprint, load_suite

validate(config, "../../config/schemas/config.yaml")

for key in ("mirror_is_subset", "partial"):  # --config key=true arrives as a string
    config[key] = str(config[key]).lower() == "true"
DATA = config["data_dir"]
SHARES = 840  # of profiles/default: divisible by 1 to 8 GPUs
GPUS = gpu_count() if config["device"] != "cpu" else 0
SHARE = SHARES // min(GPUS, 8) if GPUS else 0
ONLY_LOOKING = {
    "-n", "--dry-run", "--dryrun", "--lint", "-l", "--list", "--list-rules", "--dag", "--rulegraph",
    "--filegraph", "--d3dag", "--summary", "-S", "-D", "--detailed-summary", "--unlock", "--touch", "-t",
    "--cleanup-metadata", "--list-conda-envs", "--conda-create-envs-only", "--report", "--mode",
    "--delete-all-output", "--list-input-changes", "--list-params-changes", "--list-code-changes",
}

try:
    SUITE = load_suite(config["suite"], config["seeds"], config["precision"])
    if not config["partial"] and not ONLY_LOOKING & {word.split("=")[0] for word in sys.argv[1:]}:
        preflight(SUITE, config["device"], config["mirror"], Path(DATA), targets=sys.argv[1:])
except UserError as error:
    raise WorkflowError(str(error)) from None

SUITE_OPTION = f"--suite '{SUITE.name}'" + "".join(
    f" --{key} '{config[key]}'" for key in ("seeds", "precision") if config[key]
)
MIRROR_OPTION = (f"--mirror '{config['mirror']}'" if config["mirror"] else "") + (
    " --mirror-is-subset" if config["mirror_is_subset"] else ""
)


wildcard_constraints:
    archive=r"[^/]+",
    dataset=r"[^/]+",
    backbone=r"[^/]+",
    run=r"[^/]+",
    seed=r"\d+",


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


def each(name, runs):
    """A file of every run and seed."""
    return [f"results/{run.id}/seed{seed}/{name}" for run in runs for seed in run.seeds]
