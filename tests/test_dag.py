"""The whole DAG, run by Snakemake itself on a tiny suite, and its manners."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from fcn.plan import check_targets
from fcn.suites import load_suite

ROOT = Path(__file__).resolve().parents[1]

SUITE = """
title: Tiny
notice: "Not the paper's numbers."
threads: 1
bounds: [{dataset: scenes, split: val}]
datasets:
  scenes: {reader: scenes, seed: 3, size: [40, 56], splits: {train: 12, val: 5}}
backbones:
  tiny:
    architecture: vgg16
    input: {order: rgb, mean: [124, 116, 104], std: [58, 57, 57]}
    net: &tiny {padding: tight, width: 0.06, hidden: 8, fc6_kernel: 3}
    pretrain: {seed: 1, images: 64, size: 32, epochs: 1, batch: 16, learning_rate: 1e-3}
nets:
  tiny32s: {architecture: vgg16, padding: tight, width: 0.06, hidden: 8, fc6_kernel: 3}
  tiny16s: {base: tiny32s, skips: [pool4]}
recipes:
  short: {images: 24, batch: 2, normalize: true, learning_rate: 1e-2, momentum: 0.9,
          weight_decay: 5e-4, sampling: replacement, validate: 12}
runs:
  scenes/a32s:
    {title: A, train: scenes/train, split: val, net: tiny32s, weights: {backbone: tiny},
     recipe: short, time: false, rows: [{table: table2, row: FCN-32s}]}
  scenes/a16s:
    {base: scenes/a32s, title: B, net: tiny16s, weights: {run: scenes/a32s},
     rows: [{table: table2, row: FCN-16s}]}
  scenes/other:
    {base: scenes/a32s, title: C, recipe: {mirror: true}}
"""


class Checkout:
    """A copy of the project's files in which Snakemake runs."""

    place: Path

    @classmethod
    def at(cls, place: Path) -> "Checkout":
        """One that is there already."""
        checkout = cls.__new__(cls)
        checkout.place = place
        return checkout

    def __init__(self, place: Path) -> None:
        self.place = place
        tracked = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split("\n")
        for name in filter(None, tracked):
            if (ROOT / name).is_file() and not name.startswith(("tests/", "reports/")):
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, place / name)
        self.write(SUITE)

    def write(self, suite: str) -> None:
        (self.place / "tiny.yaml").write_text(suite)

    def planned(self, *targets: str) -> str:
        """What a dry run would do."""
        done = self.snakemake("-n", *targets)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def snakemake(
        self,
        *arguments: str,
        path: str = "",
        env: dict | None = None,
        options: tuple[str, ...] = (),
    ) -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        environment["PATH"] = path + f"{Path(sys.executable).parent}:{environment['PATH']}"
        return subprocess.run(
            [
                sys.executable,
                "-m",
                "snakemake",
                "--cores",
                "2",
                *arguments,
                "--config",
                "suite=tiny.yaml",
                *options,
            ],
            cwd=self.place,
            env=environment | (env or {}),
            capture_output=True,
            text=True,
            timeout=540,
        )

    def metrics(self, run: str) -> dict:
        return json.loads((self.place / f"results/scenes/{run}/seed0/metrics.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    checkout = Checkout(tmp_path_factory.mktemp("dag") / "checkout")
    done = checkout.snakemake()
    assert done.returncode == 0, done.stderr[-4000:]
    return checkout


def test_the_report_holds_what_the_runs_measured(finished: Checkout) -> None:
    rows = list(csv.DictReader((finished.place / "reports/tables.csv").open()))
    for run, row in (("a32s", "FCN-32s"), ("a16s", "FCN-16s")):
        found = [
            r
            for r in rows
            if (r["table"], r["row"], r["metric"]) == ("table2", row, "mean_iu")
            and r["run"].endswith(run)
        ]
        assert len(found) == 1
        assert float(found[0]["ours_mean"]) == pytest.approx(
            100 * finished.metrics(run)["tasks"]["semantic"]["mean_iu"]
        )
    html = (finished.place / "reports/tables.html").read_text()
    assert "Not the paper&#39;s numbers." in html or "Not the paper's numbers." in html


def test_a_finished_tree_has_nothing_to_do_even_after_it_moved(finished: Checkout) -> None:
    assert "Nothing to be done" in finished.snakemake("-n").stdout + finished.snakemake("-n").stderr
    moved = finished.place.with_name("moved")
    finished.place.rename(moved)
    try:
        original, finished.place = finished.place, moved
        done = finished.snakemake("-n")
        assert "Nothing to be done" in done.stdout + done.stderr
    finally:
        finished.place = original
        moved.rename(original)


def test_a_copied_checkout_retrains_nothing(finished: Checkout, tmp_path: Path) -> None:
    shutil.copytree(finished.place, tmp_path / "copy", copy_function=shutil.copy)  # new mtimes
    done = Checkout.at(tmp_path / "copy").snakemake("-n")
    assert done.returncode == 0
    for rule in ("train", "fetch", "prepare", "backbone", "evaluate"):
        assert f"rule {rule}:" not in done.stdout + done.stderr


def test_a_deleted_result_is_made_again(finished: Checkout) -> None:
    path = finished.place / "results/scenes/other/seed0/metrics.json"
    kept = path.read_bytes()
    try:
        path.unlink()
        jobs = finished.planned()
        assert "rule evaluate" in jobs and "run=other" in jobs and "rule report" in jobs
        assert "rule train" not in jobs
    finally:
        path.write_bytes(kept)
    assert "Nothing to be done" in finished.planned() + finished.snakemake("-n").stderr


def test_deleted_weights_are_made_again_where_a_job_reads_them(
    finished: Checkout, tmp_path: Path
) -> None:
    folder = finished.place / "results/scenes/a32s/seed0"
    kept = tmp_path / "kept"  # with their times
    shutil.copytree(folder, kept)
    try:
        (folder / "model.safetensors").unlink()
        assert "Nothing to be done" in str(finished.snakemake("-n"))
        (folder / "metrics.json").unlink()
        jobs = finished.planned("results/scenes/a32s/seed0/metrics.json")
        assert jobs.count("rule train:") == jobs.count("rule evaluate:") == 1
        new = SUITE + "  scenes/new: {base: scenes/a16s, recipe: {momentum: 0.5}}\n"
        finished.write(new)
        jobs = finished.planned("results/scenes/new/seed0/train.json")
        assert re.findall(r"output: results/scenes/(\w+)/seed0/train.json", jobs) == ["a32s", "new"]
    finally:
        finished.write(SUITE)
        shutil.copytree(kept, folder, dirs_exist_ok=True)


def test_the_report_follows_the_seeds_that_are_asked_for(touched: Checkout) -> None:
    """Also where the results of all of them are older than it."""
    place = touched.place / "results/scenes"
    made = [run / "seed1" for run in place.iterdir() if run.is_dir()]
    try:
        for folder in made:
            shutil.copytree(folder.with_name("seed0"), folder)
        jobs = touched.snakemake("-n", "reports/tables.html", options=("seeds=0,1",)).stdout
        assert re.findall(r"^rule (\w+):", jobs, re.M) == ["report"]
    finally:
        for folder in made:
            shutil.rmtree(folder)


def test_what_only_looks_needs_no_cores(finished: Checkout) -> None:
    """After a kill Snakemake itself asks for ``snakemake --unlock``."""
    for option in ("--unlock", "--summary", "--rulegraph"):
        command = [sys.executable, "-m", "snakemake", option, "--config", "suite=tiny.yaml"]
        done = subprocess.run(command, cwd=finished.place, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_a_changed_run_reruns_itself_and_what_depends_on_it(finished: Checkout) -> None:
    try:
        finished.write(SUITE.replace("recipe: {mirror: true}", "recipe: {mirror: true, jitter: 2}"))
        jobs = finished.planned()
        assert "run=other" in jobs
        assert "run=a32s" not in jobs and "run=a16s" not in jobs and "rule prepare" not in jobs
        finished.write(SUITE.replace("validate: 12", "validate: 12, score_rate: 2"))
        jobs = finished.planned()
        assert all(f"run={name}" in jobs for name in ("a32s", "a16s", "other"))
        finished.write(SUITE.replace("title: A", "title: Renamed"))
        jobs = finished.planned()
        assert "rule report" in jobs and "rule train" not in jobs
        words = "scenes: {title: Streets, terms: free, reader"
        finished.write(SUITE.replace("scenes: {reader", words))
        assert "rule prepare" not in finished.planned()
    finally:
        finished.write(SUITE)


def test_results_say_themselves_of_which_configuration_they_are(
    finished: Checkout, tmp_path: Path
) -> None:
    """Of stages run by hand, and of results that were copied, Snakemake remembers nothing."""
    copy = Checkout.at(tmp_path / "copy")
    shutil.copytree(finished.place, copy.place, ignore=shutil.ignore_patterns(".snakemake"))
    for path in copy.place.rglob("*"):  # other tests made some of them again
        os.utime(path, (1e9, 1e9), follow_symlinks=False)
    assert "Nothing to be done" in str(copy.snakemake("-n"))
    copy.write(SUITE.replace("recipe: {mirror: true}", "recipe: {mirror: true, jitter: 2}"))
    assert "rule train" not in copy.planned("table2")  # which does not show the changed run
    jobs = copy.planned()
    assert jobs.count("rule train:") == jobs.count("rule evaluate:") == 1
    assert "run=other" in jobs and "rule report:" in jobs
    done = copy.snakemake()
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Nothing to be done" in str(copy.snakemake("-n"))
    metrics = copy.place / "results/scenes/a32s/seed0/metrics.json"
    metrics.write_text(json.dumps({**copy.metrics("a32s"), "weights_sha256": "of others"}))
    jobs = copy.planned("results/scenes/a32s/seed0/metrics.json")
    assert "rule evaluate:" in jobs and "rule train:" not in jobs
    metrics.write_text("[")  # costs no other run
    jobs = copy.planned("results/scenes/a32s/seed0/metrics.json")
    assert "rule evaluate:" in jobs and "rule train:" not in jobs
    metrics.with_name("train.json").write_text("[")  # the weights beside it stay
    assert "rule train:" not in copy.planned("results/scenes/a32s/seed0/metrics.json")


def test_one_new_entry_is_a_target_of_its_own(finished: Checkout) -> None:
    try:
        finished.write(SUITE + "  scenes/new: {base: scenes/a32s, recipe: {momentum: 0.5}}\n")
        jobs = finished.snakemake("-n", "results/scenes/new/seed0/metrics.json")
        assert jobs.returncode == 0
        assert jobs.stdout.count("rule train") == 1 and "run=new" in jobs.stdout
    finally:
        finished.write(SUITE)


def test_a_table_is_a_target(finished: Checkout) -> None:
    (finished.place / "reports/tables.html").unlink()
    done = finished.snakemake("table2")
    assert done.returncode == 0, done.stderr[-2000:]
    assert (finished.place / "reports/tables.html").exists()


def test_a_failed_run_costs_neither_others_nor_the_report(
    finished: Checkout, tmp_path: Path
) -> None:
    shutil.copytree(finished.place, tmp_path / "broken", symlinks=True)
    broken = Checkout.at(tmp_path / "broken")
    broken.write(
        SUITE.replace("recipe: {mirror: true}", "recipe: {learning_rate: 1e9, momentum: 0.99}")
        + "  scenes/fine: {base: scenes/a32s, title: D, recipe: {momentum: 0.5}}\n"
    )
    done = broken.snakemake(options=("seeds=0,1",))
    assert done.returncode != 0
    assert "diverged" in done.stderr + done.stdout
    assert (broken.place / "results/scenes/fine/seed0/metrics.json").exists()
    assert not (broken.place / "results/scenes/other/seed0/train.json").exists()
    html = (broken.place / "reports/tables.html").read_text()
    assert "logs/train/scenes/other/seed0.log" in html
    with (broken.place / "reports/tables.csv").open() as file:  # of the seeds that were asked for
        assert {row["seeds"] for row in csv.DictReader(file) if row["run"] == "scenes/fine"} == {
            "0 1"
        }


def test_the_paper_says_at_once_what_is_missing(finished: Checkout) -> None:
    if Path("/proc/driver/nvidia/gpus").is_dir():
        pytest.skip("this machine has a GPU")
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--cores", "2", "--config", "mirror=nowhere"],
        cwd=finished.place,
        capture_output=True,
        text=True,
        timeout=120,
        env={k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"},
    )
    assert done.returncode != 0
    text = done.stdout + done.stderr
    assert "no NVIDIA GPU" in text and "GB" in text and "hours" in text and "make demo" in text
    assert not (finished.place / "data/archives").exists()


@pytest.mark.parametrize("value", ["~nobody-here/x", "Snakefile"])
def test_a_folder_that_can_be_none_is_one_sentence(finished: Checkout, value: str) -> None:
    done = finished.snakemake("-n", options=(f"data_dir={value}",))
    said = done.stdout + done.stderr
    assert done.returncode != 0 and "RuntimeError" not in said
    assert re.search(rf"{value}.*(no such home folder|a file; name a folder)", said)


def test_a_bad_suite_is_one_sentence(finished: Checkout) -> None:
    try:
        finished.write(SUITE.replace("momentum: 0.9", "momentun: 0.9"))
        done = finished.snakemake("-n")
        assert done.returncode != 0
        assert "momentun" in done.stderr + done.stdout and "momentum" in done.stderr + done.stdout
    finally:
        finished.write(SUITE)


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("tabel2", "no target 'tabel2'; did you mean table2"),
        ("results/scenes/a23s/seed0/train.json", "no run 'scenes/a23s'; did you mean scenes/a32s"),
    ],
)
def test_a_mistyped_target_is_answered_as_by_preflight(
    finished: Checkout, target: str, told: str
) -> None:
    done = finished.snakemake("-n", target)
    assert done.returncode != 0 and told in done.stderr + done.stdout


def test_no_target_is_taken_for_a_mistyped_one(finished: Checkout) -> None:
    done = finished.snakemake("--list-target-rules")
    names = [line for line in done.stdout.splitlines() if re.fullmatch(r"\w+", line)]
    assert {"all", "report", "table1", "classifier", "released"} <= set(names)
    assert "choices" in names
    check_targets(load_suite("paper"), [name for name in names if name != "choices"])
    check_targets(load_suite("beyond"), ["choices"])  # which no paper asks about


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("suit=tiny.yaml", "there is no key 'suit' here (did you mean suite?)"),
        ("seeds=1.5", "seeds: 1.5 is not text or a whole number"),
    ],
)
def test_a_bad_option_is_one_sentence(finished: Checkout, given: str, told: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "-np", "--config", given],  # -np looks only, as -n
        cwd=finished.place,
        capture_output=True,
        text=True,
        timeout=120,
        env={k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"},
    )
    assert done.returncode != 0 and told in done.stdout + done.stderr


def test_a_changed_folder_of_images_prepares_anew(tmp_path: Path) -> None:
    """Lists, images and labels outside of archives: results of others are not current."""
    checkout = Checkout(tmp_path / "it's here")
    own = SUITE.split("backbones:")[0] + "runs: {}\n"
    folder = """
  own:
    reader: folder
    path: pictures
    splits: {train: lists/train.txt}
    classes: [a, b]
"""
    (checkout.place / "tiny.yaml").write_text(own.replace("datasets:", "datasets:" + folder, 1))
    pictures = checkout.place / "pictures"
    for name in ("JPEGImages", "SegmentationClass", "lists"):
        (pictures / name).mkdir(parents=True)
    for i in range(3):
        Image.new("RGB", (8, 8)).save(pictures / f"JPEGImages/{i}.jpg")
        Image.new("L", (8, 8)).save(pictures / f"SegmentationClass/{i}.png")
    (pictures / "lists/train.txt").write_text("0\n1\n")
    target = "data/prepared/own/dataset.json"
    done = checkout.snakemake(target)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((checkout.place / target).read_text())["splits"] == {"train": 2}
    assert "Nothing to be done" in str(checkout.snakemake("-n", target))
    (pictures / "lists/train.txt").write_text("0\n1\n2\n")
    done = checkout.snakemake(target)
    assert json.loads((checkout.place / target).read_text())["splits"] == {"train": 3}
    (pictures / ".DS_Store").write_text("of whoever looks at it")
    assert "Nothing to be done" in str(checkout.snakemake("-n", target))
    Image.new("L", (8, 8), 1).save(pictures / "SegmentationClass/2.png")
    assert "rule prepare:" in checkout.planned(target)


TIMED = SUITE.replace("time: false", "time: true").replace(
    "bounds:", "classifier: {net: tiny32s, crop: 64, image: 128}\nbounds:", 1
)
ARCHIVE = "data/archives/VOCtrainval_11-May-2012.tar.json"  # of no data set here
MADE = ("all", ARCHIVE)


@pytest.fixture(scope="module")
def touched(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """Every file of the suite, of no content, as if it had been made with these parameters."""
    checkout = Checkout(tmp_path_factory.mktemp("touched") / "checkout")
    checkout.write(TIMED)
    seed = ["train.json", "model.safetensors", "loss.csv", "validation.csv", "metrics.json"]
    seed += ("per_image.npz", "predictions.json.gz", "timing.json")
    files = [f"results/scenes/{r}/seed0/{f}" for r in ("a32s", "a16s", "other") for f in seed]
    files += [f"reports/tables.{suffix}" for suffix in ("html", "csv", "md", "tex")]
    files += [f"results/{f}.json" for f in ("architecture", "classifier", "scenes/bounds")]
    files += ["data/prepared/scenes/dataset.json", "data/backbones/tiny/backbone.json"]
    for name in (*files, ARCHIVE):
        (checkout.place / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout.place / name).write_text("{}")
    for target in MADE:
        done = checkout.snakemake("--touch", "--forceall", target)
        assert done.returncode == 0, done.stderr[-3000:]
    assert "Nothing to be done" in str(checkout.snakemake("-n", *MADE))
    return checkout


@pytest.mark.parametrize(
    ("rule", "file", "old", "new"),
    [
        ("prepare", "tiny.yaml", "seed: 3,", "seed: 4,"),
        ("backbone", "tiny.yaml", "pretrain: {seed: 1,", "pretrain: {seed: 2,"),
        ("time", "tiny.yaml", "fc6_kernel: 3}\n  tiny16s", "fc6_kernel: 5}\n  tiny16s"),
        ("upper_bounds", "tiny.yaml", "split: val}]", "split: train}]"),
        ("architecture", "tiny.yaml", "  scenes/other:", "  scenes/renamed:"),
        ("report", "tiny.yaml", "row: FCN-32s}]", "row: FCN-32s, decides: false}]"),
        ("architecture", "tiny.yaml", "  tiny16s:", "  b: {base: tiny32s, hidden: 9}\n  tiny16s:"),
        ("classifier", "tiny.yaml", "crop: 64", "crop: 80"),
        ("report", "tiny.yaml", "Not the paper's", "Nobody's"),
        ("report", "config/claims.yaml", "", "# changed\n"),
        ("report", "config/server_scores.yaml", "", "# changed\n"),
        ("fetch", "config/archives.yaml", "sha256: e14f7632", "sha256: f14f7632"),
        ("fetch", "config/archives.yaml", "md5: 6cd6e144", "md5: 7cd6e144"),
    ],
)
def test_a_change_makes_anew_what_it_changes(touched, rule, file, old, new) -> None:
    place = touched.place / file
    before = place.read_text()
    assert old in before
    try:
        place.write_text(before.replace(old, new, 1) if old else before + new)
        assert f"rule {rule}:" in touched.snakemake("-n", *MADE).stdout
    finally:
        place.write_text(before)


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("table1", "no run of the suite tiny.yaml fills the table table1."),
        ("results/scenes/a32s/seed007/metrics.json", "MissingRuleException"),
    ],
)
def test_a_target_that_nothing_makes_is_told(touched: Checkout, target, told) -> None:
    done = touched.snakemake("-n", target)
    assert done.returncode != 0 and told in done.stdout + done.stderr


def test_section_31_waits_for_the_times_of_the_classifier(touched: Checkout) -> None:
    assert "rule classifier:" in touched.snakemake("-n", "--forceall", "section31").stdout
    assert "rule classifier:" not in touched.snakemake("-n", "--forceall", "table2").stdout
    try:
        touched.write(SUITE)
        done = touched.snakemake("-n", "section31")
    finally:
        touched.write(TIMED)
    assert "no classifier of the suite tiny.yaml fills the table section31." in str(done)
    assert done.returncode != 0


def test_what_a_run_waits_for(touched: Checkout) -> None:
    jobs = touched.snakemake("-n", "results/scenes/a16s/seed1/metrics.json").stdout
    assert "output: results/scenes/a32s/seed1/train.json" in jobs  # its parent's of the same seed
    more = TIMED.replace("  scenes: {reader", "  more: {reader: scenes, seed: 5, size: [40, 56], "
                         "splits: {train: 12}}\n  scenes: {reader", 1)  # fmt: skip
    more += "  scenes/both: {base: scenes/a32s, train: [scenes/train, more/train]}\n"
    try:
        touched.write(more)
        jobs = touched.snakemake("-n", "results/scenes/both/seed0/metrics.json").stdout
        assert "output: data/prepared/more/dataset.json" in jobs
        touched.write(TIMED.replace("split: val}]", "split: train}]"))
        assert "rule upper_bounds:" in touched.snakemake("-n", "bounds").stdout
    finally:
        touched.write(TIMED)


def test_options_reach_the_jobs(touched: Checkout) -> None:
    options = ("seeds=0,7", "precision=bf16", "mirror=.", "mirror_is_subset=true", "device=cpu")
    jobs = touched.snakemake("-np", "--forceall", *MADE, options=options).stdout
    commands = re.findall(r"python -m fcn (\w+) (.*)", jobs)
    assert {name for name, _ in commands} >= {"fetch", "prepare", "train", "evaluate", "report"}
    for name, words in commands:
        if name not in ("extract", "bounds"):
            assert "--suite tiny.yaml" in words
        if name in ("train", "evaluate", "time", "report"):
            assert "--suite tiny.yaml --precision bf16" in words
        assert ("--seeds 0,7" in words) is (name in ("report", "architecture"))
        if name in ("train", "evaluate", "time", "classifier"):
            assert "--device cpu" in words
        assert ("--mirror . --mirror-is-subset" in words) is (name == "fetch")
    for rule in ("time", "classifier"):  # alone on the machine
        assert re.search(rf"rule {rule}:(\n    .*)*\n    threads: 2\n", jobs)
