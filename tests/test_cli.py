"""``python -m fcn``: help, and one sentence for each thing that is wrong or missing."""

import argparse
import errno
import json
import os
import shlex
import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcn.__main__ import _STAGES, _workers, main
from fcn.arguments import parser
from fcn.schema import ROOT
from fcn.spec import contents_hash, source_hash
from fcn.suites import load_suite

STAGES = (
    "fetch", "extract", "prepare", "backbone", "train", "evaluate", "time", "bounds",
    "architecture", "report", "publish", "plan", "preflight", "predict", "score",
)  # fmt: skip


def test_every_stage_of_the_command_line_is_there():
    (stages,) = (a for a in parser()._actions if isinstance(a, argparse._SubParsersAction))
    assert set(_STAGES) == set(stages.choices)


def test_help_does_without_pytorch_and_snakemake():
    code = (
        "import sys\n"
        "from fcn.__main__ import main\n"
        "try:\n    main(['--help'])\n"
        "finally:\n    print('torch' in sys.modules, 'snakemake' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "False False"
    assert set(STAGES) <= set(done.stdout.split())


@pytest.mark.parametrize("stage", STAGES)
def test_help_of_each_stage(stage, capsys):
    with pytest.raises(SystemExit) as stop:
        main([stage, "--help"])
    assert stop.value.code == 0
    assert f"python -m fcn {stage}" in capsys.readouterr().out


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder: nothing is fetched, prepared or trained."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "label.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "twice.yaml").write_text("title: a\ntitle: b\nruns: {}\n")
    (tmp_path / "key.yaml").write_text("title: a\nruns: {}\nrum: {}\n")
    return tmp_path


SCORE = ["score", "--classes", "2", "--truth"]
PREDICT = ["predict", "--net", "voc-fcn32s", "--out", "out", "label.png", "--weights"]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["fetch", "VOC2021.tar"], "no archive 'VOC2021.tar'"),
        (["fetch", "benchmark.tgz", "--mirror", "empty"], "benchmark.tgz: the mirror lacks it"),
        (["fetch", "benchmark.tgz", "--mirror", "gone"], "benchmark.tgz: the mirror lacks it"),
        (["extract", "benchmark.tgz"], "first run: python -m fcn fetch benchmark.tgz"),
        (["prepare", "voc2021"], "no data set 'voc2021'; did you mean voc2012 or voc2011"),
        (["prepare", "sbd"], "first run: python -m fcn extract benchmark.tgz"),
        (["backbone", "vgg16"], "no backbone 'vgg16'; did you mean vgg16-caffe"),
        (["backbone", "caffenet"], "run: python -m fcn fetch bvlc_reference_caffenet.caffemodel"),
        (["train", "fcn9s"], "no run 'fcn9s'"),
        (["train", "voc2011/fcn32s"], "first run: python -m fcn prepare sbd"),
        (["train", "voc2012/32s", "--suite", "voc-subset"], "prepare voc2012 --suite voc-subset"),
        (["bounds", "../evil", "test", "--labels", ".", "--classes", "2"], "no name of a data set"),
        (["evaluate", "voc2011/nothing"], "no run 'voc2011/nothing'"),
        (["evaluate", "voc2011/fcn32s"], "first run: python -m fcn prepare voc2011"),
        (["time", "voc2011/fcn32s"], "first run: python -m fcn prepare voc2011"),
        (["bounds", "voc2011", "val"], "first run: python -m fcn prepare voc2011"),
        (["bounds", "voc2021", "val"], "no data set 'voc2021'; did you mean voc2012 or voc2011"),
        (["bounds", "a", "b", "--labels", "empty"], "number of classes with --classes"),
        (["bounds", "a", "b", "--labels", "gone", "--classes", "2"], "gone: "),
        (["architecture", "--suite", "gone"], "suite 'gone': "),
        (["architecture", "--suite", "gone.yaml"], "gone.yaml"),
        (["report", "--suite", "twice.yaml"], "twice.yaml, line 2, column 1: not valid YAML"),
        (["plan", "--suite", "key.yaml"], "key.yaml: there is no key 'rum' here"),
        (["plan", "--seeds", "-1"], "seeds=-1: give a number of seeds"),
        (["plan", "--seeds", "1001"], "seeds=1001: at most 1000 seeds, none above 4294967295"),
        (["plan", "--seeds", "9" * 30], "at most 1000 seeds"),
        (["plan", "--seeds", "0,4294967296"], "none above 4294967295"),
        (["plan", "--seeds", "a,b"], "seeds=a,b: give a number of seeds"),
        (["preflight", "--mirror", "empty", "--device", "cpu"], "the mirror empty lacks"),
        (["preflight", "--suite", "demo", "--device", "tpu"], "device=tpu is not one of"),
        ([*PREDICT, "gone.caffemodel"], "gone.caffemodel: no such file"),
        ([*PREDICT, "label.png"], "label.png: truncated, or not a caffemodel"),
        ([*SCORE, "empty", "--pred", "."], "--truth empty: no PNG files in it"),
        ([*SCORE, ".", "--pred", "gone"], "--pred gone: no such folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_gives_one_sentence(command, said, here, capsys):
    before = sorted(here.rglob("*"))
    assert main(command) == 2
    said_lines = capsys.readouterr().err.splitlines()
    lines = [ln for ln in said_lines if ln and "it/s]" not in ln]  # without progress bars
    assert len(lines) == 1 and lines[0].startswith("error: ") and said in lines[0]
    made = {path.relative_to(here).parts[0] for path in set(here.rglob("*")) - set(before)}
    assert made <= {"data", "out"} and not list(here.rglob("*.json"))


def test_released_weights_are_fetched_first(write_suite, data_dir, tmp_path, capsys):
    weights = {"weights": {"released": "fcn32s-heavy-pascal"}, "net": "voc-fcn32s"}
    change = {**weights, "recipe": "none", "train": None}
    suite = str(write_suite({"runs": {"tiny/run": change}}))
    data = tmp_path / "data"
    shutil.copytree(data_dir, data)
    assert main(["train", "run", "--suite", suite, "--data-dir", str(data)]) == 2
    said = capsys.readouterr().err
    assert "first run: python -m fcn fetch fcn32s-heavy-pascal.caffemodel" in said


def test_a_name_that_is_no_text_is_printed(here, tmp_path):
    """Whatever the locale: the others are still labelled."""
    name = b"caf\xe9.jpg"
    code = "import sys; from fcn.__main__ import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "fetch", os.fsdecode(name)],
        env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"},
        cwd=ROOT,
        capture_output=True,
    )
    assert done.returncode == 2 and b"no archive 'caf\\udce9.jpg'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ([], "required: STAGE"),
        (["fly"], "invalid choice: 'fly'"),
        (["train"], "required: RUN"),
        (["train", "fcn32s", "--seed", "-1"], "'-1' is not a whole number from 0 on"),
        (["train", "fcn32s", "--threads", "two"], "'two' is not a whole number from 0 on"),
        (["train", "fcn32s", "--seed", "4294967296"], "--seed: 4294967296 is more than 4294967295"),
        (["train", "fcn32s", "--threads", "99999999999"], "99999999999 is more than 4096"),
        (["train", "fcn32s", "--workers", "4097"], "4097 is more than 4096"),
        (["plan", "--data-dir", "~nobody-at-all/x"], "no such home folder"),
        (["time", "fcn32s", "--trials", "0"], "'0' is not a whole number from 1 on"),
        (["predict", "--net", "auto", "--weights", "w", "--out", "o"], "required: IMAGE"),
        (["score", "--truth", "a", "--pred", "b"], "required: --classes"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_command_line_is_told_by_name(command, said, capsys):
    with pytest.raises(SystemExit) as stop:
        main(command)
    assert stop.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_a_process_ends_with_the_sentence_and_status_2(here):
    command = [sys.executable, "-m", "fcn", "train", "demo/fcn32s", "--suite", "demo"]
    done = subprocess.run(
        [*command, "--data-dir", str(here)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == (
        f"error: {here / 'prepared/demo/dataset.json'}: no such file; "
        f"first run: python -m fcn prepare demo --suite demo --data-dir {here}\n"
    )


def test_interrupting_leaves_no_traceback(monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("fcn.__main__.load_suite", stop)
    assert main(["plan"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("told", [True, False], ids=["linux", "macos"])
@pytest.mark.parametrize(
    ("threads", "cores", "loaders"),
    [(0, 12, 11), (0, 1, 1), (0, 128, 15), (8, 12, 7), (32, 12, 31), (2, 12, 1), (1, 12, 1)],
)
def test_loaders_on_a_gpu_are_all_threads_but_one(threads, cores, loaders, told, monkeypatch):
    """--threads 0 means the cores that this process may use, and of many no more than 16."""
    monkeypatch.setattr("os.cpu_count", lambda: 256 if told else cores)
    if told:
        monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)), raising=False)
    else:
        monkeypatch.delattr("os.sched_getaffinity", raising=False)
    args = Namespace(threads=threads, workers=None)
    assert (_workers(args, "cuda"), _workers(args, "cpu")) == (loaders, 0)
    assert _workers(Namespace(threads=threads, workers=3), "cuda") == 3


def test_what_pytorch_lacks_is_one_sentence(monkeypatch, capsys):
    import torch

    def fill(*_):
        raise error

    monkeypatch.setattr("fcn.__main__.load_suite", fill)
    error: Exception = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    assert main(["plan"]) == 2
    assert capsys.readouterr().err == (
        "error: the GPU has too little free memory; take a smaller recipe.batch, precision bf16, "
        "or another GPU (device=cuda:N).\n"
    )
    error = RuntimeError(
        "DataLoader worker (pid 7) is killed by signal: Killed. \nIt is possible that .."
    )
    assert main(["plan"]) == 2
    assert capsys.readouterr().err == (
        "error: a process that decodes images has gone (DataLoader worker (pid 7) is killed by "
        "signal: Killed), for want of memory or of /dev/shm perhaps; ask for fewer --workers. A "
        "training goes on from its checkpoint.\n"
    )
    error = RuntimeError("a fault of ours")
    with pytest.raises(RuntimeError, match="of ours"):
        main(["plan"])


def test_faults_of_stages_without_pytorch_do_not_import_it():
    code = (
        "import sys, fcn.__main__ as cli\n"
        "def fail(*_): raise ValueError('a fault of ours')\n"
        "cli.load_suite = fail\n"
        "try:\n    cli.main(['plan'])\n"
        "except ValueError as error:\n    print(error, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "a fault of ours False\n"


def test_plan_and_preflight_answer(here, capsys):
    assert main(["plan", "--suite", "demo"]) == 0
    assert "To do: " in capsys.readouterr().out
    assert main(["preflight", "--suite", "demo"]) == 0
    assert capsys.readouterr().out == "demo: nothing is missing to start\n"


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "data/x"), "data/x: Permission denied"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (OSError("unnamed"), "unnamed"),
    ],
)
def test_what_the_system_refuses_is_one_sentence(fault, said, monkeypatch, capsys):
    def refuse(*_):
        raise fault

    monkeypatch.setattr("fcn.__main__.load_suite", refuse)
    assert main(["plan"]) == 2
    assert capsys.readouterr().err == f"error: {said}\n"


def test_a_file_where_a_folder_is_to_be(here, capsys):
    assert main(["extract", "benchmark.tgz", "--data-dir", "label.png/data"]) == 2
    assert main(["report", "--suite", "demo", "--out", "label.png"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == "error: label.png: File exists"


@pytest.mark.parametrize(
    ("command", "advised"),
    [
        (["prepare", "sbd", "--suite", "demo"], "extract benchmark.tgz --data-dir 'a b'"),
        (["extract", "benchmark.tgz"], "fetch benchmark.tgz --data-dir 'a b'"),
        (["train", "demo/fcn32s", "--suite", "demo"], "prepare demo --suite demo --data-dir"),
        (["bounds", "voc2011", "val"], "prepare voc2011 --data-dir 'a b'"),
        (
            ["evaluate", "demo/fcn32s", "--suite", "demo", "--precision", "bf16", "--seed", "3"],
            "train demo/fcn32s --seed 3 --suite demo --precision bf16 --data-dir 'a b' --results",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_advised_command_can_be_run(command, advised, here, capsys):
    folders = ["--data-dir", "a b"] + (["--results", "r"] if command[0] == "evaluate" else [])
    if command[0] == "evaluate":
        prepared("a b")
    assert main([*command, *folders]) == 2
    said = capsys.readouterr().err.strip().partition("first run: ")[2]
    assert said.startswith(f"python -m fcn {advised}")
    parser().parse_args(shlex.split(said)[3:])


def prepared(data_dir, **info):
    """What tells that the demo's data set is prepared."""
    path = Path(data_dir, "prepared/demo/dataset.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(info))


def test_a_folder_that_changed_since_it_was_prepared_is_told(here, capsys, monkeypatch):
    folder = Path("own").resolve()
    folder.mkdir()
    definition = {"reader": "folder", "path": str(folder)}
    loaded = load_suite("demo")
    monkeypatch.setitem(loaded.datasets, "demo", definition)
    monkeypatch.setattr("fcn.__main__.load_suite", lambda *_: loaded)
    prepared("data", definition=contents_hash(definition), source=source_hash(definition))
    command = ["evaluate", "demo/fcn32s", "--suite", "demo"]
    assert main(command) == 2 and "has changed" not in capsys.readouterr().err
    (folder / "a.png").touch()
    assert main(command) == 2
    told = capsys.readouterr().err
    assert f"note: {folder} has changed since demo was prepared" in told
    assert "python -m fcn prepare demo --suite demo" in told
    (folder / "a.png").unlink()
    folder.rmdir()  # what was prepared is enough
    assert main(command) == 2 and "has changed" not in capsys.readouterr().err


@pytest.mark.parametrize("stage", ["train", "evaluate", "time"])
def test_a_data_set_of_another_definition_is_prepared_again(stage, here, capsys, monkeypatch):
    monkeypatch.setattr("fcn.__main__._threads", lambda _: sys.exit(7))  # past the check
    command = [stage, "demo/fcn32s", "--suite", "demo"]
    prepared("data", definition="of earlier")
    assert main(command) == 2
    said = capsys.readouterr().err
    assert said.endswith("prepare it again: python -m fcn prepare demo --suite demo\n")
    current = load_suite("demo").run("demo/fcn32s").config["test"]["definition"]
    for info in ({}, {"definition": current}):
        prepared("data", **info)
        try:
            main(command)
        except SystemExit as stop:
            assert stop.code == 7
        assert "prepare it again" not in capsys.readouterr().err


@pytest.mark.parametrize("gone", ["train.json", "model.safetensors"])
def test_what_reads_weights_names_the_stage_that_makes_them(gone, here, capsys):
    prepared("data")
    folder = Path("results/demo/fcn32s/seed0")
    folder.mkdir(parents=True)
    for name in {"train.json", "model.safetensors"} - {gone}:
        (folder / name).write_text("{}")
    assert main(["evaluate", "demo/fcn32s", "--suite", "demo"]) == 2
    assert capsys.readouterr().err == (
        f"error: {folder / gone}: no such file; "
        "first run: python -m fcn train demo/fcn32s --seed 0 --suite demo\n"
    )


def test_a_home_folder_is_found(here, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(here))
    assert main(["extract", "a.tar", "--data-dir=~/mine"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {here}/mine/archives/a.tar.json: no such")
