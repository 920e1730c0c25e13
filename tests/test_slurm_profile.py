"""profiles/slurm as far as it can be held without a cluster: Snakemake takes it, rules exist."""

import os
import re
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
PROFILE = ROOT / "profiles/slurm/profile.yaml"
OF_THE_PLUGIN = "executor"  # not installed for the tests


def test_rules_of_the_profile_exist():
    profile = yaml.safe_load(PROFILE.read_text())
    rules = set()
    for path in (ROOT / "workflow/rules").glob("*.smk"):
        rules |= set(re.findall(r"^rule (\w+):", path.read_text(), re.M))
    assert profile["set-resources"].keys() | profile["set-threads"].keys() <= rules
    assert profile[OF_THE_PLUGIN] == "slurm"


def test_snakemake_gives_jobs_what_the_profile_asks_for(tmp_path):
    profile = yaml.safe_load(PROFILE.read_text())
    options = {k: v for k, v in profile.items() if not k.startswith(("slurm", OF_THE_PLUGIN))}
    del options["jobs"]  # a dry run here counts cores
    (tmp_path / "profile.yaml").write_text(yaml.safe_dump(options))
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    work = tmp_path / "work"
    work.mkdir()
    for name in ("Snakefile", "workflow", "config", "fcn", "environment.yml"):
        (work / name).symlink_to(ROOT / name)
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "-n", "--cores", "64", "classifier"]
        + ["--workflow-profile", str(tmp_path), "--config", "suite=demo"],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    threads = profile["set-threads"]["classifier"]
    assert re.search(rf"^    threads: {threads}$", done.stdout, re.M)
    resources = re.search(r"^    resources: .*slurm_extra.*$", done.stdout, re.M)
    assert resources
    memory = profile["default-resources"]["mem_mb"]
    for part in ("gpu=1", "slurm_extra=--exclusive", f"mem_mb={memory}"):
        assert f"{part}," in f"{resources[0]},"
