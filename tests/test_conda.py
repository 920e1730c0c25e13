"""``--use-conda``: Snakemake builds environment.yml and runs the rules inside it.

No conda can be installed from a package registry, so a double answers the calls that Snakemake 9
makes and builds a real virtual environment. What this proves: the file is well-formed, every rule
names it, and the stages run in the environment that was built from it. That the channel has the
packages is not proved here.
"""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import yaml

from tests.test_dag import Checkout

DOUBLE = """#!{python}
import json, sys, venv
from pathlib import Path
import yaml

calls = sys.argv[1:]
with open({log!r}, "a") as log:
    print(" ".join(calls), file=log)
if calls[0] == "info":
    print(json.dumps({{"conda_prefix": {prefix!r}, "platform": "linux-64"}}))
elif calls[0] == "--version":
    print("conda 25.1.0")
elif calls[0] == "config":
    print(json.dumps({{"get": {{"channel_priority": "strict"}}}}))
elif calls[:2] == ["env", "create"]:
    asked = yaml.safe_load(Path(calls[calls.index("--file") + 1]).read_text())
    place = Path(calls[calls.index("--prefix") + 1])
    venv.create(place, symlinks=True)
    packages = next(place.glob("lib/python*/site-packages"))
    (packages / "outer.pth").write_text({site!r} + chr(10))
    # Not sitecustomize.py: Debian's Python has one of its own, which is found first.
    (packages / "used.pth").write_text(
        "import sys; print(sys.prefix, file=open({used!r}, 'a'))" + chr(10)
    )
    Path({built!r}).write_text(json.dumps({{"asked": asked, "place": str(place)}}))
elif calls[0] != "clean":
    sys.exit("the double does not know: conda " + " ".join(calls))
"""


@pytest.fixture
def conda(tmp_path: Path) -> Path:
    """A folder with ``bin/conda`` and ``bin/activate``."""
    folder = tmp_path / "conda"
    (folder / "bin").mkdir(parents=True)
    script = folder / "bin/conda"
    script.write_text(
        DOUBLE.format(
            python=sys.executable,
            prefix=str(folder),
            log=str(folder / "calls"),
            site=sysconfig.get_paths()["purelib"],
            used=str(folder / "used"),
            built=str(folder / "built.json"),
        )
    )
    script.chmod(0o755)
    (folder / "bin/activate").write_text('export CONDA_PREFIX="$1" PATH="$1/bin:$PATH"\n')
    return folder


def test_the_rules_run_in_the_environment_of_environment_yml(conda: Path, tmp_path: Path) -> None:
    checkout = Checkout(tmp_path / "checkout")
    done = checkout.snakemake(
        "--use-conda", "results/architecture.json", path=f"{conda / 'bin'}{os.pathsep}"
    )
    assert done.returncode == 0, done.stderr[-3000:]
    built = json.loads((conda / "built.json").read_text())
    assert built["asked"] == yaml.safe_load((checkout.place / "environment.yml").read_text())
    assert built["place"] in (conda / "used").read_text().split("\n")
    assert json.loads((checkout.place / "results/architecture.json").read_text())["nets"]


def test_every_rule_that_runs_a_command_names_the_environment() -> None:
    root = Path(__file__).resolve().parents[1]
    for path in (root / "workflow/rules").glob("*.smk"):
        text = path.read_text()
        assert text.count("    shell:") == text.count('"../../environment.yml"'), path


def test_without_conda_the_refusal_is_plain(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path / "checkout")
    empty = tmp_path / "bin"
    empty.mkdir()
    environment = {"PATH": f"{empty}:/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "snakemake",
            "-n",
            "--cores",
            "1",
            "--use-conda",
            "--config",
            "suite=tiny.yaml",
        ],
        cwd=checkout.place,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode != 0
    assert "conda" in done.stderr + done.stdout
