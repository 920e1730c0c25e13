"""Tiny generated data sets and suites, shared by the tests of the core."""

from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import settings

from fcn.data.prepare import prepare
from fcn.schema import read_yaml
from fcn.suites import load_suite

settings.register_profile("here", deadline=None)  # a busy machine is no failure
settings.load_profile("here")

SIZES = {"tiny": [40, 56], "square": [48, 48]}
RGB = {"order": "rgb", "mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}


def tiny_suite():
    """A suite of slim nets on generated scenes, as the mapping that stands in a suite file."""
    return {
        "title": "Tiny",
        "threads": 1,
        "datasets": {
            name: {
                "title": name,
                "reader": "scenes",
                "seed": 3,
                "size": size,
                "splits": {"train": 8, "val": 4},
                "means": {"depth": [9.2]},
            }
            for name, size in SIZES.items()
        },
        "nets": {
            "slim": {
                "architecture": "vgg16",
                "padding": "tight",
                "width": 0.02,
                "hidden": 8,
                "fc6_kernel": 1,
                "dropout": 0.3,
                "skips": ["pool4", "pool3"],
            }
        },
        "recipes": {
            "short": {
                "images": 12,
                "batch": 2,
                "normalize": True,
                "learning_rate": 1e-4,
                "momentum": 0.9,
                "weight_decay": 5e-4,
                "sampling": "epochs",
            }
        },
        "runs": {
            "tiny/run": {
                "train": "tiny/train",
                "split": "val",
                "net": "slim",
                "weights": "none",
                "recipe": "short",
            }
        },
    }


def merged(base, change):
    """``base`` with the mappings of ``change`` folded in, key by key; None removes a key."""
    result = dict(base)
    for key, value in change.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = merged(result[key], value)
        else:
            result[key] = value
    return result


@pytest.fixture
def write_suite(tmp_path):
    """Write the tiny suite, changed by a mapping, to a file; gives its path."""

    def write(change=None, name="tiny.yaml"):
        path = tmp_path / name
        path.write_text(yaml.safe_dump(merged(tiny_suite(), change or {}), sort_keys=False))
        return path

    return write


@pytest.fixture
def make_run(write_suite):
    """A run of the tiny suite whose entry is changed by keywords: recipe={..}, net={..}."""

    def make(**entry):
        suite = load_suite(str(write_suite({"runs": {"tiny/run": entry}})))
        return suite.run("tiny/run")

    return make


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """The tiny data sets, prepared once. Tests that add to the folder copy it first."""
    folder = tmp_path_factory.mktemp("data")
    for name, definition in tiny_suite()["datasets"].items():
        prepare(name, definition, folder)
    return folder


@pytest.fixture(scope="session")
def named_nets():
    """The nets of config/nets.yaml, resolved, and their entries in the file."""
    suite = load_suite("voc-subset")
    entries = read_yaml(Path(__file__).resolve().parents[1] / "config" / "nets.yaml")
    return {name: (suite.resolved_net(name), entry) for name, entry in entries.items()}


@pytest.fixture
def one_thread():
    """The order of sums, and so the last bit, depends on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
