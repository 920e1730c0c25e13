"""Files that are whole or not there."""

import fcntl
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from fcn.errors import UserError
from fcn.files import (
    alone_in,
    at_home,
    atomic_dir,
    atomic_file,
    folder_near,
    read_object,
    write_json,
)
from fcn.weights.named import save


def test_a_file_is_not_replaced_by_a_folder(tmp_path):
    (tmp_path / "a").write_text("mine")
    with (
        pytest.raises(UserError, match="a: a file where a folder is to be"),
        atomic_dir(tmp_path / "a"),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "mine"


@pytest.mark.parametrize("value", [[], {}, None, "x", {"a": 1}])
def test_objects_have_their_keys(tmp_path, value):
    write_json(tmp_path / "x.json", value)
    with pytest.raises(UserError, match=r"x\.json: not written by this program; delete it and run"):
        read_object(tmp_path / "x.json", "a", "b")
    write_json(tmp_path / "x.json", {"a": None, "b": 2})
    assert read_object(tmp_path / "x.json", "a", "b") == {"a": None, "b": 2}


def test_weights_may_be_read_by_those_who_may_read_their_neighbours(tmp_path):
    save(tmp_path / "model.safetensors", {"x": torch.zeros(2)}, {})
    write_json(tmp_path / "train.json", {})
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1


HOLD = """
import os, sys, time
from fcn.files import atomic_dir
with atomic_dir(sys.argv[1]) as folder:
    (folder / "half").write_text("x")
    if not os.fork():
        print(os.getpid(), flush=True)  # the worker itself: by now it has let go of the lock
    time.sleep(60)
"""


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_living_process_keeps_its_folder_and_a_killed_one_leaves_it_to_the_next(tmp_path):
    target = tmp_path / "voc[2011]"
    command = [sys.executable, "-c", HOLD, str(target)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout
        worker = int(other.stdout.readline())  # lives on, as those of a killed `prepare` do
        try:
            with atomic_dir(target) as folder:
                (folder / "whole").write_text("x")
            assert names(target) == ["whole"]
            (left,) = [name for name in names(tmp_path) if name != target.name]
            os.kill(other.pid, signal.SIGKILL)
            other.wait()
            with atomic_dir(tmp_path / "another"):  # whose folders are others
                pass
            assert left in names(tmp_path)
            with atomic_dir(target) as folder:
                assert left not in names(tmp_path)
            assert names(tmp_path) == ["another", target.name] and names(target) == []
        finally:
            other.kill()
            os.kill(worker, signal.SIGKILL)


def test_folders_of_one_process_leave_each_other_alone(tmp_path):
    with folder_near(tmp_path / "a") as scratch, atomic_dir(tmp_path / "a") as new:
        (scratch / "file").write_text("x")
        with atomic_dir(scratch / "inner"), alone_in(new):
            pass
        assert names(scratch) == ["file", "inner"]
        with atomic_dir(scratch):
            pass
        assert names(scratch) == []
    assert names(tmp_path) == ["a"]


def test_a_home_that_is_not_there_is_a_sentence(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert at_home("~/data") == Path("/home/me/data") and at_home("data") == Path("data")
    with pytest.raises(UserError, match="~nobody-here/data: there is no such home folder"):
        at_home("~nobody-here/data")


def test_a_failure_leaves_what_was_there(tmp_path):
    with atomic_dir(tmp_path / "a") as folder:
        (folder / "old").write_text("x")
    with pytest.raises(ZeroDivisionError), atomic_dir(tmp_path / "a"):
        _ = 1 / 0
    assert names(tmp_path) == ["a"] and names(tmp_path / "a") == ["old"]


ROOT = Path(__file__).resolve().parents[1]
FULL = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
from fcn.__main__ import main
from fcn.files import atomic_dir, write_text
import fcn.__main__ as entry
def fill(_):
    if sys.argv[1] == "file":
        write_text("big.txt", "x" * 5000)
    with atomic_dir("big") as folder:
        (folder / "part").write_text("x" * 5000)
entry._STAGES["plan"] = fill
sys.exit(main(["plan"]))
"""


@pytest.mark.parametrize(("kind", "name"), [("file", "big.txt"), ("folder", "big")])
def test_what_cannot_be_written_whole_is_named(kind, name, tmp_path):
    """As on a full disk: the system's error for a write names no file."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", FULL, kind],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (2, f"error: {name}: File too large\n")
    assert not list(tmp_path.iterdir())


def test_what_was_there_comes_back_when_the_new_cannot_take_its_place(tmp_path, monkeypatch):
    target = tmp_path / "a"
    with atomic_dir(target) as folder:
        (folder / "old").write_text("x")
    rename = Path.rename

    def failing(self, other):
        if self.name == "new":
            raise OSError("no space left")
        return rename(self, other)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", failing)
        with pytest.raises(OSError, match="no space"), atomic_dir(target):
            pass
    assert names(tmp_path) == ["a"] and names(target) == ["old"]


KILLED_BETWEEN = """
import os, sys
from pathlib import Path
from fcn.files import atomic_dir
rename = Path.rename
Path.rename = lambda self, to: os._exit(9) if self.name == "new" else rename(self, to)
with atomic_dir(sys.argv[1]) as folder:
    (folder / "new file").write_text("x")
"""


def test_what_was_there_comes_back_after_a_kill_between_the_two_renames(tmp_path):
    target = tmp_path / "a"
    with atomic_dir(target) as folder:
        (folder / "old").write_text("x")
    assert subprocess.run([sys.executable, "-c", KILLED_BETWEEN, str(target)]).returncode == 9
    assert not target.exists()
    with folder_near(target):
        assert names(target) == ["old"]
    assert names(tmp_path) == ["a"]


def test_starts_at_once_do_not_clear_each_other(tmp_path):
    """The moment between the making of a folder and its lock is the dangerous one."""

    def start(_):
        with folder_near(tmp_path / "a") as folder:
            (folder / "file").write_text("x")
            return names(folder)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(start, range(200))) == [["file"]] * 200
    assert names(tmp_path) == []


def test_a_name_is_given_to_bytes_that_are_on_the_disk(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_ino))
    with atomic_file(tmp_path / "a") as temporary:
        temporary.write_text("x")
        assert synced == []
    assert synced == [(tmp_path / "a").stat().st_ino]


def test_a_folder_that_another_start_cleared_before_it_was_locked_is_made_anew(
    tmp_path, monkeypatch
):
    flock = fcntl.flock
    cleared: list[Path] = []

    def late(handle, operation):
        if not cleared:
            cleared.extend(tmp_path.glob(".a.*.tmp"))
            cleared[0].rmdir()
        flock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with folder_near(tmp_path / "a") as folder:
        assert len(cleared) == 1 and folder.is_dir() and folder.parent != cleared[0]
