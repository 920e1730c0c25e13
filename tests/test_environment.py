"""One set of versions: pyproject.toml asks, requirements.lock pins, environment.yml agrees."""

import re
import sys
import tomllib
from importlib.metadata import version

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from fcn.schema import ROOT

LOCKS = ("requirements.lock", "requirements-uv.txt")
SYSTEMS = (
    {"sys_platform": "linux", "platform_machine": "x86_64"},
    {"sys_platform": "linux", "platform_machine": "aarch64"},
    {"sys_platform": "darwin", "platform_machine": "arm64"},
)


def pins(name):
    """(requirement, number of hashes) of each pin of a lock."""
    text = (ROOT / name).read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]
    return [
        (
            Requirement(line.split("--hash")[0].strip()),
            len(re.findall("--hash=sha256:[0-9a-f]{64}", line)),
        )
        for line in lines
    ]


def locked(python, system):
    """name -> version that the lock gives to one Python on one system; {} is this one."""
    environment = {
        **system,
        "python_version": python,
        "python_full_version": f"{python}.0",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
    }
    found = {}
    for pin, _ in pins("requirements.lock"):
        if pin.marker is None or pin.marker.evaluate(environment):
            name = canonicalize_name(pin.name)
            assert name not in found, f"{name} is pinned twice for Python {python} on {system}"
            (specifier,) = pin.specifier
            assert specifier.operator == "=="
            found[name] = specifier.version
    return found


def wanted(*extras):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *(project["optional-dependencies"][e] for e in extras)]
    return [Requirement(line) for lines in lists for line in lines]


def conda():
    """The Python of environment.yml, and name -> version of what its pip installs."""
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (python,) = (d.split("=")[1] for d in dependencies if str(d).startswith("python="))
    (lines,) = (d["pip"] for d in dependencies if isinstance(d, dict))
    pairs = [line.split("==") for line in lines]
    return python, {canonicalize_name(name): version for name, version in pairs}


@pytest.mark.parametrize("name", LOCKS)
def test_every_pin_has_hashes_and_no_address_is_named(name):
    assert pins(name)
    for pin, hashes in pins(name):
        assert hashes > 0, pin
        assert pin.url is None
    text = (ROOT / name).read_text()
    assert "://" not in text
    assert not re.search(r"^\s*-", re.sub(r"^\s+--hash=", "", text, flags=re.M), re.M), "an option"


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda s: "-".join(s.values()))
@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_the_lock_answers_pyproject(python, system):
    found = locked(python, system)
    for requirement in wanted("dev"):
        pinned = found[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(pinned), f"{requirement} against {pinned}"


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda s: "-".join(s.values()))
def test_the_conda_environment_names_the_versions_of_the_lock(system):
    python, versions = conda()
    found = locked(python, system)
    assert versions == {name: found[name] for name in versions}


def test_the_conda_environment_has_every_dependency_and_no_more():
    assert set(conda()[1]) == {canonicalize_name(r.name) for r in wanted()}


def test_the_makefile_installs_with_hashes_and_names_no_registry():
    text = (ROOT / "Makefile").read_text()
    installs = [line for line in text.splitlines() if "pip install" in line]
    assert len(installs) == 2 and all("--require-hashes" in line for line in installs)
    for name in ("Makefile", "pyproject.toml", "environment.yml", ".ci/run"):
        assert not re.search(r"index-url|://", (ROOT / name).read_text()), name


def test_the_versions_that_are_installed_are_the_locks():
    found = locked(f"{sys.version_info.major}.{sys.version_info.minor}", {})
    names = [canonicalize_name(requirement.name) for requirement in wanted("dev")]
    installed = {name: version(name).split("+")[0] for name in names}
    assert installed == {name: found[name] for name in names}
