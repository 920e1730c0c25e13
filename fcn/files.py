"""Files that are whole or not there: written beside their place, then renamed into it."""

import fcntl
import glob
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fcn.errors import UserError

_held: set[int] = set()  # the locks of this process


def _let_go() -> None:
    """A forked worker that outlives this process must not keep its folders locked."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_let_go)


def _name(error: OSError, path: Path) -> None:
    """An error of the system that names no file, as of a full disk, is of ``path``."""
    if error.errno is not None and error.filename is None:
        error.filename = str(path)


def _beside(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; it replaces ``path`` on success, else goes."""
    path = Path(path)
    temporary = _beside(path)
    try:
        yield temporary
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
    except OSError as error:
        _name(error, path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_dir(path: str | Path) -> Iterator[Path]:
    """Give an empty folder near ``path``; it replaces ``path`` on success, else goes.

    Raises:
        UserError: ``path`` is a file.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise UserError(f"{path}: a file where a folder is to be; move it away.")
    with folder_near(path) as new:
        yield new
        old = new.with_name("old")
        if path.exists():
            path.rename(old)
        try:
            new.rename(path)
        except BaseException:
            _give_back(old, path)
            raise


@contextmanager
def folder_near(path: str | Path) -> Iterator[Path]:
    """Give an empty folder on the file system of ``path`` that goes at the end, with all in it.

    First those go that killed processes of this machine left for the same ``path``. A living
    process holds a lock on its own; where the file system has no locks, nothing is cleared.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    name = f".{path.name}.{os.uname().nodename}."  # a lock may not be seen from another machine
    for left in path.parent.glob(f"{glob.escape(name)}????????.tmp"):
        _clear(left, path)
    outer, handle = _locked(path.with_name(name))
    try:
        inner = outer / "new"  # not locked: who writes in it may use `alone_in`
        inner.mkdir()
        yield inner
    except OSError as error:
        _name(error, path)
        raise
    finally:
        shutil.rmtree(outer, ignore_errors=True)
        _held.discard(handle)
        os.close(handle)


def _locked(start: Path) -> tuple[Path, int]:
    """A new folder whose path begins as ``start``, and its lock."""
    while True:
        folder = start.with_name(f"{start.name}{uuid.uuid4().hex[:8]}.tmp")
        folder.mkdir()
        with suppress(FileNotFoundError):
            handle = os.open(folder, os.O_RDONLY)
            with suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX)
            if folder.exists():
                _held.add(handle)
                return folder, handle
            os.close(handle)  # another start took it for a dead one's before it was locked


def _give_back(old: Path, path: Path) -> None:
    """Put back what `atomic_dir` had moved away, where nothing came into its place."""
    if old.exists() and not path.exists():
        old.rename(path)


def _clear(left: Path, path: Path) -> None:
    """Remove a folder of ``folder_near`` unless a living process holds it."""
    with suppress(OSError):
        handle = os.open(left, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _give_back(left / "old", path)
            shutil.rmtree(left)
        finally:
            os.close(handle)


@contextmanager
def alone_in(folder: str | Path, refusal: str = "") -> Iterator[None]:
    """Keep other processes that call this out of ``folder`` meanwhile.

    Waits for one that is in it or, with ``refusal``, raises a UserError of that text. Where the
    file system has no locks, nobody is kept out.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    _held.add(handle)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (fcntl.LOCK_NB if refusal else 0))
        except BlockingIOError:
            raise UserError(refusal) from None
        except OSError:
            pass
        yield
    finally:
        _held.discard(handle)
        os.close(handle)


def at_home(path: str | Path) -> Path:
    """``path`` with the home folder for its ~; a UserError where there is none."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{path}: there is no such home folder; give another path.") from None


def files_below(folder: str | Path) -> Iterator[Path]:
    """Every file below ``folder``, also through links to folders; none where there is no folder.

    A link to a folder that it is in is not followed.
    """
    above: dict[Path, tuple[tuple[int, int], ...]] = {Path(folder): ()}
    for name, folders, files in os.walk(folder, followlinks=True):
        place = Path(name)
        status = place.stat()
        this = (status.st_dev, status.st_ino)
        ways = above.pop(place)
        if this in ways:
            folders.clear()
            continue
        above |= {place / below: (*ways, this) for below in folders}
        yield from (place / file for file in files)


def write_text(path: str | Path, text: str) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file; a missing or broken one is a UserError that names it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: not valid JSON ({error}); delete it and run the stage that writes it again."
        ) from None


def read_object(path: str | Path, *keys: str) -> dict[str, Any]:
    """Read a JSON object of ours that has ``keys``; anything else is a UserError."""
    value = read_json(path)
    if not isinstance(value, dict) or any(key not in value for key in keys):
        raise UserError(f"{path}: not written by this program; delete it and run its stage again.")
    return value


def lookup(value: Any, path: tuple[str, ...]) -> Any:
    """Follow keys into nested dicts; None where one is absent."""
    for key in path:
        if not isinstance(value, dict) or key not in value:
            return None
        value = value[key]
    return value


def digest(path: str | Path, algorithm: str = "sha256") -> str:
    """Hexadecimal digest of a file's bytes."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, algorithm).hexdigest()
