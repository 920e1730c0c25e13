"""Whether a suite can start here, what is missing, what it costs."""

import json
import re
import shutil
import socket
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import requests

from fcn import plan
from fcn.errors import UserError
from fcn.suites import load_suite

SUITE = """
title: Two runs and one that starts from the first
gpu: {gpu}
seeds: [0, 1]
bounds:
  - {{dataset: voc2012, split: val}}
runs:
  voc2012/first:
    train: voc2012/train
    split: val
    net: voc-fcn32s
    weights: {{backbone: vgg16-caffe}}
    recipe: heavy
    rows: [{{table: table1, row: FCN-VGG16}}]
  voc2012/second:
    base: voc2012/first
    net: voc-fcn16s
    weights: {{run: voc2012/first}}
    rows: [{{table: table2, row: FCN-16s}}]
  voc2012/other:
    base: voc2012/first
    net: voc-fcn-googlenet
    weights: {{backbone: googlenet-caffe}}
    recipe: cvpr-googlenet
"""
VOC, VGG = "VOCtrainval_11-May-2012.tar", "VGG_ILSVRC_16_layers.caffemodel"
GOOGLENET = "bvlc_googlenet.caffemodel"


@pytest.fixture
def suite(tmp_path, monkeypatch):
    """A suite for a GPU on a machine that has none, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plan, "_gpus_present", lambda: 0)
    path = tmp_path / "own.yaml"
    path.write_text(SUITE.format(gpu="true"))
    return load_suite(str(path))


@pytest.fixture
def online(monkeypatch):
    """Hosts answer, and there is room for what they have."""
    monkeypatch.setattr(plan.requests, "head", lambda *_, **__: SimpleNamespace(status_code=404))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**13))


def no_gpu_suite(suite):
    suite.path.write_text(SUITE.format(gpu="false"))
    return load_suite(suite.name)


def refused(*arguments, **options):
    with pytest.raises(UserError) as error:
        plan.preflight(*arguments, **options)
    return str(error.value)


def hours_of(run, results):
    each, _ = plan.hours(run, results, gpu=True)
    assert each is not None
    return each


def finish(suite, results, run, seed, seconds=3600.0, config_hash=None, device="cuda"):
    folder = suite.runs[run].directory(results, seed)
    folder.mkdir(parents=True)
    record = {"seconds": seconds, "config_hash": config_hash or suite.runs[run].hash}
    record["provenance"] = {"device": {"type": device}}
    (folder / "train.json").write_text(json.dumps(record))
    (folder / "metrics.json").write_text("{}")


# ---- whether it can start


def test_the_paper_without_a_gpu_is_told_what_is_missing_what_it_costs_and_the_demo(
    online, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plan, "_gpus_present", lambda: 0)
    paper = load_suite("paper")
    said = refused(paper, "auto", None, tmp_path / "data")
    assert "no NVIDIA GPU is visible" in said and "make demo" in said
    assert plan.cost(paper, tmp_path / "results", tmp_path / "data") in said
    assert "hours of training on one GPU" in said and "GB in" in said
    assert not list(tmp_path.iterdir())


def test_a_device_that_is_not_there(suite, online, tmp_path):
    data = tmp_path / "data"
    assert "device=tpu is not one of" in refused(suite, "tpu", None, data)
    for device in ("cpu", "cuda", "cuda:1"):  # a login node has no GPU, its jobs have
        plan.preflight(suite, device, None, data)
    plan.preflight(no_gpu_suite(suite), "auto", None, data)


def test_with_a_gpu_it_starts(suite, online, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "_gpus_present", lambda: 2)
    plan.preflight(suite, "auto", None, tmp_path / "data")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "no NVIDIA GPU" in refused(suite, "auto", None, tmp_path / "data")


@pytest.mark.parametrize(
    ("present", "visible", "count"),
    [
        (0, None, 0),
        (4, None, 4),
        (4, "", 0),
        (4, "-1", 0),
        (4, "2", 1),
        (4, "0, 3", 2),
        (0, "0", 0),
        (1, "MIG-a,MIG-b", 2),
    ],
)
def test_gpus_that_this_process_may_use(present, visible, count, monkeypatch):
    monkeypatch.setattr(plan, "_gpus_present", lambda: present)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert plan.gpu_count() == count


def test_nothing_is_asked_of_a_finished_suite(suite, tmp_path):
    results = tmp_path / "results"
    for run in suite.runs.values():
        for seed in run.seeds:
            finish(suite, results, run.id, seed)
    (results / "voc2012/bounds.json").write_text("{}")
    plan.preflight(suite, "auto", str(tmp_path / "gone"), tmp_path / "data", results)
    assert "To do: 0 trainings" in plan.plan(suite, results, tmp_path / "data")


def test_a_changed_configuration_is_not_finished(suite, tmp_path):
    results = tmp_path / "results"
    finish(suite, results, "voc2012/first", 0)
    finish(suite, results, "voc2012/first", 1, config_hash="0123456789ab")
    first = suite.runs["voc2012/first"]
    assert plan.unfinished([first], results) == [(first, 1)]


def test_what_is_no_run_is_in_the_plan(tmp_path):
    said = plan.plan(load_suite("paper"), tmp_path, tmp_path)
    assert re.search(r"^voc2011/bounds +upper bounds on seg11valid$", said, re.M)
    assert re.search(r"^classifier +times of voc-fcn-alexnet, of section 3.1$", said, re.M)
    assert "Targets: results/DATASET/RUN/seedN/metrics.json" in said
    said = plan.plan(load_suite("bounds"), tmp_path, tmp_path)
    assert "on seg11valid from data/seg11valid-labels.tar\n" in said and "Targets" not in said


def test_seeds_of_a_run_that_only_others_start_from(suite, tmp_path):
    """They are trained, and so counted, until what starts from them is itself trained."""
    results = tmp_path / "results"
    first, second = suite.runs["voc2012/first"], replace(suite.runs["voc2012/second"], seeds=(0, 7))
    for run, seed in ((first, 0), (first, 1), (second, 0)):
        finish(suite, results, run.id, seed)
    assert plan.unfinished([first, second], results) == [(second, 7), (first, 7)]
    assert plan.unfinished([second], results) == [(second, 7)]
    path = first.directory(results, 7) / "train.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"config_hash": first.hash}))  # not scored, which nothing asks for
    assert plan.unfinished([first, second], results) == [(second, 7)]
    path.write_text(json.dumps({"config_hash": "0123456789ab"}))
    finish(suite, results, second.id, 7)
    assert plan.unfinished([first, second], results) == []


def test_a_truncated_score_is_not_finished(suite, tmp_path):
    """It is made again, so it must not stop the whole suite."""
    results = tmp_path / "results"
    finish(suite, results, "voc2012/first", 0)
    finish(suite, results, "voc2012/first", 1)
    first = suite.runs["voc2012/first"]
    assert plan.unfinished([first], results) == []
    path = first.directory(results, 1) / "metrics.json"
    path.write_text(path.read_text()[:-9])
    assert plan.unfinished([first], results) == [(first, 1)]


def test_weights_that_were_not_scored_are_not_finished(suite, tmp_path):
    results = tmp_path / "results"
    first = suite.runs["voc2012/first"]
    for seed, scored in ((0, "1"), (1, "2")):
        finish(suite, results, first.id, seed)
        for name, digest in (("train", "1"), ("metrics", scored)):
            path = first.directory(results, seed) / f"{name}.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | {"weights_sha256": digest}))
    assert plan.unfinished([first], results) == [(first, 1)]


@pytest.mark.parametrize(
    ("targets", "runs", "archives"),
    [
        ((), 3, {VOC, VGG, GOOGLENET}),
        (("--cores", "all"), 3, {VOC, VGG, GOOGLENET}),
        (("table1",), 1, {VOC, VGG}),
        (("table2", "--cores", "1"), 2, {VOC, VGG}),
        (("results/voc2012/second/seed0/metrics.json",), 2, {VOC, VGG}),
        (("results/voc2012/other/seed1/metrics.json",), 1, {VOC, GOOGLENET}),
        (("bounds",), 0, {VOC}),
        (("results/voc2012/bounds.json",), 0, {VOC}),
        (("results/architecture.json",), 0, set()),
    ],
)
def test_targets_need_their_runs_parents_and_archives(targets, runs, archives, suite):
    asked, bounds = plan.wanted(suite, targets)
    assert len(asked) == runs
    assert set(plan.archives_needed(suite, asked, bounds)) == archives


def test_a_mirror_is_asked_only_for_what_the_targets_need(suite, tmp_path):
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    (mirror / VOC).write_bytes(b"x")
    arguments = (suite, "cpu", str(mirror), tmp_path / "data", tmp_path / "results")
    assert f"lacks {VGG}, {GOOGLENET}." in refused(*arguments)
    assert f"lacks {VGG}." in refused(*arguments, ("table1",))
    plan.preflight(*arguments, ("bounds",))
    (mirror / VGG).write_bytes(b"x")
    plan.preflight(*arguments, ("table1",))
    gone = replace_mirror(arguments, str(tmp_path / "gone"))
    assert f"mirror={tmp_path / 'gone'}: no such folder" in refused(*gone)


def replace_mirror(arguments, mirror):
    return (*arguments[:2], mirror, *arguments[3:])


def test_archives_that_are_there_are_not_asked_for(suite, tmp_path):
    folder = tmp_path / "data/archives"
    folder.mkdir(parents=True)
    (folder / f"{VOC}.json").write_text("{}")  # fetched
    (folder / VGG).write_bytes(b"")  # put there by hand
    (tmp_path / "mirror").mkdir()
    said = refused(suite, "cpu", str(tmp_path / "mirror"), tmp_path / "data")
    assert f"lacks {GOOGLENET}." in said


# ---- offline


def test_offline_is_told_at_once(suite, tmp_path, monkeypatch):
    asked = []

    def refuse(host, *_, **__):
        asked.append(host)
        raise socket.gaierror("no name resolution")

    def wait(seconds):
        raise AssertionError(f"{seconds} s of waiting")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(time, "sleep", wait)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    said = refused(suite, "cpu", None, tmp_path / "data")
    assert asked and len(asked) == len(set(asked))  # each server once
    assert "no server answers" in said and "host.robots.ox.ac.uk" in said and "mirror=" in said


def test_servers_that_never_answer_are_waited_for_once(suite, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "PROBE_SECONDS", 0.2)

    over, asked = threading.Event(), []

    def hang(url, **_):
        asked.append(url)
        over.wait(60)
        raise requests.Timeout

    monkeypatch.setattr(plan.requests, "head", hang)
    started = time.perf_counter()
    assert "no server answers" in refused(suite, "cpu", None, tmp_path / "data")
    assert asked and time.perf_counter() - started < 30  # not the minute of one of them
    over.set()


def test_one_server_that_answers_is_enough_and_a_proxys_error_is_no_answer(monkeypatch):
    codes = {"http://a/x": 502, "http://b/x": 503, "http://c/x": 403}
    monkeypatch.setattr(
        plan.requests, "head", lambda url, **_: SimpleNamespace(status_code=codes[url])
    )
    assert plan.any_answers(["http://a/x", "http://b/x", "http://c/x"])
    assert not plan.any_answers(["http://a/x", "http://b/x"])


def test_a_mirror_on_a_server_is_the_only_one_asked(suite, tmp_path, monkeypatch):
    asked = []

    def head(url, **_):
        asked.append(url)
        raise requests.ConnectionError

    monkeypatch.setattr(plan.requests, "head", head)
    assert "no server answers that has the archives (mirror.example)" in refused(
        suite, "cpu", "https://mirror.example/fcn/", tmp_path / "data"
    )
    assert asked == [f"https://mirror.example/fcn/{VOC}"]


def test_an_archive_that_came_undeclared_stops_the_targets_that_need_it(suite, tmp_path):
    mirror, data = tmp_path / "mirror", tmp_path / "data"
    mirror.mkdir()
    (data / "archives").mkdir(parents=True)
    for name in (VOC, VGG, GOOGLENET):
        sidecar = {"subset": False, "url": str(mirror / name), "verified_by": "sha256"}
        (data / f"archives/{name}.json").write_text(json.dumps(sidecar))
    arguments = (suite, "cpu", str(mirror), data, tmp_path / "results")
    plan.preflight(*arguments, subsets=True)
    (data / f"archives/{VGG}.json").write_text(json.dumps({**sidecar, "url": str(mirror / VGG),
                                                           "verified_by": "nothing"}))  # fmt: skip
    plan.preflight(*arguments)
    assert f"{VGG}: came from the mirror when it was not" in refused(*arguments, subsets=True)
    assert f"{VGG}: came from" in refused(*arguments, ("table1",), subsets=True)
    plan.preflight(*arguments, ("bounds",), subsets=True)


# ---- disk and cost


def test_too_little_disk(suite, online, tmp_path, monkeypatch):
    sizes = sum(suite.archives[name]["size"] for name in (VOC, VGG, GOOGLENET))
    free = [3 * sizes]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free[0]))
    plan.preflight(suite, "cpu", None, tmp_path / "data")
    free[0] -= 1
    assert f"archives and data sets take about {3 * sizes / 1e9:.1f} GB" in refused(
        suite, "cpu", None, tmp_path / "data"
    )


def test_a_folder_of_small_subsets_needs_little_disk(suite, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    for name in (VOC, VGG, GOOGLENET):
        (tmp_path / name).write_bytes(bytes(100))
    plan.preflight(suite, "cpu", str(tmp_path), tmp_path / "data")


def test_hours_follow_from_images_and_forward_cost(suite, tmp_path):
    first = suite.runs["voc2012/first"]
    each, measured = hours_of(first, tmp_path), plan.hours(first, tmp_path, gpu=True)[1]
    recipe = first.config["recipe"]
    assert each == pytest.approx(recipe["images"] * 3 * first.gflop / 23e3 / 3600) and not measured
    half = replace(first, config={**first.config, "recipe": {**recipe, "patch_keep": 0.5}})
    assert plan.hours(half, tmp_path, gpu=True)[0] == pytest.approx(2 * each)
    assert plan.hours(replace(first, gflop=None), tmp_path, gpu=True) == (None, False)
    released = replace(first, config={**first.config, "recipe": None})
    assert plan.hours(released, tmp_path, gpu=True)[0] == 0


def test_the_cost_is_the_sum_of_what_is_left(suite, tmp_path):
    results, data = tmp_path / "results", tmp_path / "data"
    each = {r.id: hours_of(r, results) for r in suite.runs.values()}
    gigabytes = sum(suite.archives[name]["size"] for name in (VOC, VGG, GOOGLENET)) / 1e9
    said = plan.cost(suite, results, data)
    assert said.startswith(
        f"6 trainings for 3 runs: about {2 * sum(each.values()):.1f} hours of training on one"
    )
    assert f"; {gigabytes:.1f} GB in 3 archives to download." in said
    # One seed of one run was measured: it is done, and its other seed takes as long.
    finish(suite, results, "voc2012/first", 1, seconds=7.25 * 3600)
    total = 7.25 + 2 * (each["voc2012/second"] + each["voc2012/other"])
    said = plan.cost(suite, results, data)
    assert said.startswith(f"5 trainings for 3 runs: about {total:.1f} hours")
    assert "1 from what was measured" in said
    line = next(ln for ln in plan.plan(suite, results, data).splitlines() if "voc2012/first " in ln)
    assert "14.50 h measured" in line


def test_measurements_of_another_configuration_do_not_count(suite, tmp_path):
    finish(suite, tmp_path, "voc2012/first", 0, config_hash="0123456789ab")
    assert not plan.hours(suite.runs["voc2012/first"], tmp_path, gpu=True)[1]


def test_hours_measured_on_a_gpu_are_none_of_a_cpu(suite, tmp_path):
    first = suite.runs["voc2012/first"]
    finish(suite, tmp_path, "voc2012/first", 0, seconds=7200.0)
    assert plan.hours(first, tmp_path, gpu=True) == (2.0, True)
    assert not plan.hours(first, tmp_path, gpu=False)[1]


def test_a_suite_for_the_cpu_is_not_estimated_as_a_gpus(suite, tmp_path):
    assert "hours of training on two CPU cores (estimated at 0.1 TFLOP/s)" in plan.cost(
        no_gpu_suite(suite), tmp_path, tmp_path
    )


def test_archives_of_unknown_size_are_said(suite, tmp_path):
    suite.archives[VOC] = {**suite.archives[VOC], "size": None}
    assert "(1 of unknown size)" in plan.cost(suite, tmp_path, tmp_path)


def test_the_other_targets_ask_for_their_runs():
    suite = load_suite("paper")
    runs, sets = plan.wanted(suite, ["submission"])
    assert runs and {"voc2011test", "voc2012test"} == set(sets)
    assert any(plan.server_sets(suite, run) for run in runs)
    assert {"VOC2012test.tar"} <= set(plan.archives_needed(suite, runs, sets))
    assert plan.wanted(suite, ["classifier"]) == ([], [])
    released = load_suite("released")
    assert len(plan.wanted(released, ["released"])[0]) == len(released.runs)


@pytest.mark.parametrize("text", ["[]", "null", "{}"])
def test_a_record_of_another_form_is_told(text, suite, tmp_path):
    run = suite.run("voc2012/first")
    folder = run.directory(tmp_path, 0)
    folder.mkdir(parents=True)
    (folder / "train.json").write_text(text)
    with pytest.raises(UserError, match=r"train\.json: not written by this program"):
        plan.plan(suite, tmp_path, tmp_path)


@pytest.mark.parametrize("word", ["architecture", "data/prepared/voc2012/dataset.json"])
def test_what_needs_no_run_needs_no_gpu(suite, tmp_path, word, monkeypatch):
    monkeypatch.setattr(plan, "_gpus_present", lambda: 0)
    plan.preflight(suite, "auto", None, tmp_path, tmp_path / "results", ["--cores", "1", word])
    assert plan.wanted(suite, ["--config", "data_dir=/x/prepared/y"])[0] != []


def test_a_folder_that_is_not_there_is_told_before_anything_starts(suite, tmp_path):
    mine = {"reader": "folder", "path": str(tmp_path / "gone"), "classes": ["a"], "splits": {}}
    own = replace(suite, datasets={**suite.datasets, "voc2012": mine})
    assert "data set voc2012: path" in refused(own, "cpu", None, tmp_path / "data")
    with pytest.raises(UserError, match="no target 'tabel1'; did you mean table1"):
        plan.check_targets(load_suite("demo"), ["tabel1"])
    plan.check_targets(load_suite("demo"), ["table1", "architecture", "results/a/b", "all"])
    plan.check_targets(load_suite("demo"), ["results/demo/fcn32s/seed0/metrics.json", "bounds"])
    plan.check_targets(load_suite("demo"), ["section31", "other", "reproductions"])
    with pytest.raises(UserError, match=r"no run 'demo/fcn32'; did you mean demo/fcn32s"):
        plan.check_targets(load_suite("demo"), ["results/demo/fcn32/seed0/metrics.json"])
    with pytest.raises(UserError, match="no run of the suite bounds fills the table table1"):
        plan.check_targets(load_suite("bounds"), ["table1"])
    with pytest.raises(UserError, match="no classifier of the suite bounds fills the table sec"):
        plan.check_targets(load_suite("bounds"), ["section31"])


def test_archives_of_bounds_and_of_every_training_set(suite):
    first = suite.runs["voc2012/first"]
    also = [{"dataset": "sbd", "split": "train", "definition": ""}]
    runs = [replace(first, config={**first.config, "also_train": also})]
    assert set(plan.archives_needed(suite, runs, [])) == {VOC, *suite.archives_of("sbd"), VGG}
    bounds = [{"dataset": "sbd", "split": "val", "labels": "labels.tar"}]
    by_hand = replace(suite, bounds=bounds)
    assert plan.archives_needed(by_hand, [], ["sbd"]) == []  # labels of one's own
    assert plan.archives_needed(suite, [], ["sbd"]) == suite.archives_of("sbd")
