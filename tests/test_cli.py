"""``python -m fcn``: help, and one sentence for each thing that is wrong or missing."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from fcn.__main__ import main
from fcn.schema import ROOT

STAGES = (
    "fetch", "extract", "prepare", "backbone", "train", "evaluate", "time", "bounds",
    "architecture", "report", "publish", "plan", "preflight", "predict", "score",
)  # fmt: skip


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
        (["evaluate", "voc2011/nothing"], "no run 'voc2011/nothing'"),
        (["evaluate", "voc2011/fcn32s"], "first run: python -m fcn prepare voc2011"),
        (["time", "voc2011/fcn32s"], "first run: python -m fcn prepare voc2011"),
        (["bounds", "voc2011", "val"], "first run: python -m fcn prepare voc2011"),
        (["bounds", "a", "b", "--labels", "empty"], "number of classes with --classes"),
        (["bounds", "a", "b", "--labels", "gone", "--classes", "2"], "gone: "),
        (["architecture", "--suite", "gone"], "suite 'gone': "),
        (["architecture", "--suite", "gone.yaml"], "gone.yaml"),
        (["report", "--suite", "twice.yaml"], "twice.yaml, line 2, column 1: not valid YAML"),
        (["plan", "--suite", "key.yaml"], "key.yaml: there is no key 'rum' here"),
        (["plan", "--seeds", "-1"], "seeds=-1: give a number of seeds"),
        (["plan", "--seeds", "a,b"], "seeds=a,b: give a number of seeds"),
        (["preflight", "--mirror", "empty", "--device", "cpu"], "the mirror empty lacks"),
        (["preflight", "--suite", "demo", "--device", "tpu"], "device=tpu is not one of"),
        ([*PREDICT, "gone.caffemodel"], "gone.caffemodel: cannot be read"),
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


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ([], "required: STAGE"),
        (["fly"], "invalid choice: 'fly'"),
        (["train"], "required: RUN"),
        (["train", "fcn32s", "--seed", "-1"], "'-1' is not a whole number from 0 on"),
        (["train", "fcn32s", "--threads", "two"], "'two' is not a whole number from 0 on"),
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
    command = [sys.executable, "-m", "fcn", "train", "scenes/fcn32s", "--suite", "demo"]
    done = subprocess.run(
        [*command, "--data-dir", str(here)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == (
        f"error: {here / 'prepared/scenes/dataset.json'}: no such file; "
        "first run: python -m fcn prepare scenes --suite demo.\n"
    )


def test_interrupting_leaves_no_traceback(monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("fcn.__main__.load_suite", stop)
    assert main(["plan"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_plan_and_preflight_answer(here, capsys):
    assert main(["plan", "--suite", "demo"]) == 0
    assert "To do: " in capsys.readouterr().out
    assert main(["preflight", "--suite", "demo"]) == 0
    assert capsys.readouterr().out == "demo: nothing is missing to start\n"
