"""Archives: brought once from their servers or a mirror, verified, unpacked once."""

import fcntl
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from fcn.data import verify
from fcn.data.download import PASSING, TIMEOUT_S, DownloadError, discard, download, part_files
from fcn.data.subsets import address, undeclared
from fcn.data.unpack import unpack
from fcn.errors import UserError
from fcn.files import at_home, atomic_dir, atomic_file, read_object, write_json
from fcn.spec import UNPACKED

SUMS = "SHA256SUMS"
ABSENT = (403, 404, 410)  # object stores answer 403 of a file that is not there


def fetch(
    name: str,
    definition: dict[str, Any],
    data_dir: str | Path,
    mirror: str | None = None,
    mirror_is_subset: bool = False,
) -> dict[str, Any]:
    """Bring one archive to ``data_dir/archives/NAME`` and return its sidecar.

    ``definition`` is an entry of config/archives.yaml: ``urls`` tried in order, what is known of
    ``size`` and of the digests (``sha256``, which may be its first 8 or more digits, ``sha384``,
    ``sha1``, ``md5``), and ``accept``, other right files. ``mirror``, a folder or an http(s)
    address, is asked alone when given. A file that differs from the official one is accepted only
    from a mirror declared to hold subsets (``mirror_is_subset``); it is then checked against the
    mirror's SHA256SUMS, if there is one, and recorded as ``subset``. Everything that goes wrong is
    a UserError, and leaves at most a .part file that the next call goes on from.
    """
    path = Path(data_dir) / "archives" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with _lock(path, "is fetching"):
        if mirror_is_subset and (said := undeclared(_sidecar(path), mirror)):
            raise UserError(f"{said}.")
        present = _present(path, definition, mirror_is_subset, bool(mirror))
        if present:
            return present
        if mirror:
            return _from_mirror(path, definition, mirror, mirror_is_subset)
        return _from_urls(path, definition)


def extract(name: str, data_dir: str | Path) -> dict[str, Any]:
    """Unpack ``data_dir/archives/NAME`` to ``data_dir/extracted/NAME/`` and return its sidecar.

    Done once for one archive. A damaged archive, or one with a member that would leave the folder,
    is a UserError, and nothing is left.
    """
    if not name.endswith(UNPACKED):
        raise UserError(f"{name}: not an archive ({', '.join(UNPACKED)}); it is used as it is.")
    path = Path(data_dir) / "archives" / name
    target = Path(data_dir) / "extracted" / name
    sidecar = target.with_name(f"{name}.json")
    target.parent.mkdir(parents=True, exist_ok=True)
    with _lock(target, "is unpacking"):
        archive = read_object(_sidecar(path), "sha256", "verified_by")
        if target.is_dir() and sidecar.exists():
            done = read_object(sidecar, "archive")
            if done["archive"]["sha256"] == archive["sha256"]:
                if done["archive"] != archive:  # the same file, declared anew
                    done = {**done, "archive": archive}
                    write_json(sidecar, done)
                return done
        sidecar.unlink(missing_ok=True)
        with atomic_dir(target) as folder:
            members = unpack(path, folder, known=archive["verified_by"] != "nothing")
        done = {"archive": archive, "members": members}
        write_json(sidecar, done)
        return done


# ---- where archives come from --------------------------------------------------------------------


def _from_urls(path: Path, definition: dict[str, Any]) -> dict[str, Any]:
    urls = definition.get("urls") or []
    if not urls:
        raise UserError(
            f"{path.name}: no public address is known ({definition.get('source', 'no source')}); "
            f"put the file at {path} or name a mirror that has it."
        )
    kinds = [definition, *(definition.get("accept") or [])]
    known = {kind["size"] for kind in kinds if kind.get("size")}
    sizes = known if all(kind.get("size") for kind in kinds) else None
    reasons = []
    for url in urls:
        try:
            facts, verified_by = _download(path, url, definition, sizes)
        except DownloadError as error:
            reasons.append(f"{url}: {error}")
            continue
        return _keep(path, url, facts, False, verified_by)
    raise UserError(
        f"{path.name}: could not be fetched. {'; '.join(reasons)}. "
        f"Try later, put the file at {path}, or name a mirror that has it."
    )


def _download(
    path: Path, url: str, definition: dict[str, Any], sizes: set[int] | None
) -> tuple[dict[str, Any], str]:
    """Download into the .part file and verify it; a wrong resumed one is tried once anew."""
    part, _ = part_files(path)
    mixed = any(definition.get(kind) for kind in verify.DIGESTS)
    for _ in range(2):
        resumed = download(url, path, sizes, mixed)
        facts = verify.measure(part, definition)
        verified_by = verify.verified_by(facts, definition)
        if verified_by == "nothing" and (wrong := verify.suspicion(part)):
            discard(path)
            raise DownloadError(wrong)
        if verified_by:
            return facts, verified_by
        discard(path)
        if not resumed:
            break
    raise DownloadError(verify.difference("its file", facts, definition))


def _from_mirror(
    path: Path, definition: dict[str, Any], mirror: str, is_subset: bool
) -> dict[str, Any]:
    if mirror.startswith(("http://", "https://")):
        source = address(mirror, path.name)
        part, _ = part_files(path)
        sums = _mirror_sums(mirror) if is_subset else {}  # before the file, which may be large
        try:
            download(source, path, None, False)
        except DownloadError as error:
            raise UserError(f"{source}: the mirror does not give it: {error}.") from None
        try:
            checked = _check_mirrored(part, path.name, source, definition, sums, is_subset)
        except UserError:
            discard(path)
            raise
        return _keep(path, source, *checked)
    file = Path(address(mirror, path.name))
    if not file.is_file():
        raise UserError(f"{file}: the mirror lacks it; put it there or fetch without `mirror`.")
    with atomic_file(path) as temporary:
        _sidecar(path).unlink(missing_ok=True)
        try:
            os.link(file.resolve(), temporary)
        except OSError:  # another file system or owner
            shutil.copyfile(file, temporary)
        sums = _mirror_sums(mirror) if is_subset else {}
        checked = _check_mirrored(temporary, path.name, str(file), definition, sums, is_subset)
    return _record(path, str(file), *checked)


def _check_mirrored(
    file: Path,
    name: str,
    source: str,
    definition: dict[str, Any],
    sums: dict[str, str],
    is_subset: bool,
) -> tuple[dict[str, Any], bool, str]:
    """The facts of a mirror's file, whether it is a subset, and what it was verified by.

    ``sums``: what the mirror's SHA256SUMS says.
    """
    facts = verify.measure(file, definition)
    verified_by = verify.verified_by(facts, definition)
    if verified_by and not (is_subset and verified_by == "nothing"):
        return facts, False, verified_by
    if not is_subset:
        raise UserError(
            f"{source}: {verify.difference('the file of the mirror', facts, definition)}; "
            "a mirror of subsets must be declared with `mirror_is_subset=true` (of a stage: "
            "--mirror-is-subset)."
        )
    listed = sums.get(name)
    if listed not in (None, facts["sha256"]):
        raise UserError(
            f"{source}: damaged: its sha256 is {facts['sha256']}, but {SUMS} of the mirror says "
            f"{listed}."
        )
    return facts, True, f"{SUMS} of the mirror" if listed else "nothing"


def _mirror_sums(mirror: str) -> dict[str, str]:
    """Digests by file name, from the mirror's SHA256SUMS; empty if it has none."""
    if mirror.startswith(("http://", "https://")):
        url = f"{mirror.rstrip('/')}/{SUMS}"
        retry = Retry(4, backoff_factor=0.5, status_forcelist=PASSING, raise_on_status=False)
        try:
            with requests.Session() as session:
                session.mount(mirror, HTTPAdapter(max_retries=retry))
                response = session.get(url, timeout=TIMEOUT_S)
        except requests.RequestException as error:
            raise UserError(f"{url}: the mirror stopped answering ({error}).") from None
        if response.status_code not in (200, *ABSENT):
            raise UserError(f"{url}: the mirror answers HTTP status {response.status_code}.")
        text = response.text if response.status_code == 200 else ""
    else:
        file = at_home(mirror) / SUMS
        try:
            text = file.read_text("utf-8") if file.is_file() else ""
        except UnicodeDecodeError as error:
            raise UserError(f"{file}: not a text file of UTF-8 ({error}).") from None
    found = re.findall(r"^([0-9a-fA-F]{64}) [ *](?:\./)?(.+?)\r?$", text, re.MULTILINE)
    bsd = re.findall(r"^SHA256 \((?:\./)?(.+)\) = ([0-9a-fA-F]{64})\r?$", text, re.MULTILINE)
    if text.strip() and not found and not bsd:
        print(f"warning: {mirror}: {SUMS} has no line of a digest and a name.", file=sys.stderr)
    return {name: digest.lower() for name, digest in [*bsd, *((n, d) for d, n in found)]}


# ---- what is here and whether it is right --------------------------------------------------------


def _sidecar(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _marker(path: Path) -> Path:
    """The copy of a subset's sidecar that says what it is when the sidecar is gone.

    Snakemake deletes the sidecar, a declared output, before it fetches again.
    """
    return path.with_name(f".{path.name}.subset")


def _present(
    path: Path, definition: dict[str, Any], subsets_allowed: bool, mirrored: bool
) -> dict[str, Any] | None:
    """The sidecar of an archive that is here and right; None if it is to be fetched."""
    if not path.exists():
        return None
    sidecar: dict[str, Any] = {}
    if _sidecar(path).exists():
        sidecar = read_object(_sidecar(path), "subset", "url", "size", "sha256")
        if sidecar["subset"] and not subsets_allowed:
            raise _undeclared_subset(path, sidecar["url"])
        whole = sidecar["subset"] or (
            verify.covers(sidecar, definition) and verify.verified_by(sidecar, definition)
        )
        if whole and sidecar["size"] == path.stat().st_size:
            return sidecar
    facts = verify.measure(path, definition)
    verified_by = verify.verified_by(facts, definition)
    unsure = not verified_by or (mirrored and verified_by == "nothing")
    if subsets_allowed and unsure:  # only its sidecar told a subset from damage or from the whole
        return None
    marked = _marked(path, facts)
    if marked and verified_by in ("", "nothing"):
        if not subsets_allowed:
            raise _undeclared_subset(path, marked["url"])
        return _record(path, marked["url"], facts, True, marked["verified_by"])
    if not verified_by:
        difference = verify.difference("the file here", facts, definition)
        raise UserError(f"{path}: {difference}; delete it and run again.")
    same = facts["sha256"] == sidecar.get("sha256")  # of which a digest was learned since
    url = sidecar["url"] if same else "placed by hand"
    return _record(path, url, facts, False, verified_by)


def _undeclared_subset(path: Path, url: str) -> UserError:
    return UserError(
        f"{path}: a subset of the official archive, from {url}. Declare `mirror_is_subset=true` "
        "(of a stage: --mirror-is-subset) to go on with it, or delete it to fetch the whole."
    )


def _marked(path: Path, facts: dict[str, Any]) -> dict[str, Any] | None:
    """What the marker of a subset says, where it is of the file that is here."""
    marker = _marker(path)
    if not marker.exists():
        return None
    known = read_object(marker, "url", "sha256", "verified_by")
    return known if known["sha256"] == facts["sha256"] else None


def _keep(
    path: Path, url: str, facts: dict[str, Any], subset: bool, verified_by: str
) -> dict[str, Any]:
    """Give the verified .part file its name and its sidecar."""
    part, _ = part_files(path)
    _sidecar(path).unlink(missing_ok=True)
    with part.open("rb") as handle:
        os.fsync(handle.fileno())
    part.replace(path)
    return _record(path, url, facts, subset, verified_by)


def _record(
    path: Path, url: str, facts: dict[str, Any], subset: bool, verified_by: str
) -> dict[str, Any]:
    sidecar = {
        "name": path.name,
        "url": url,
        "size": facts["size"],
        **{name: facts[name] for name in verify.DIGESTS if name in facts},
        "subset": subset,
        "verified_by": verified_by,
    }
    discard(path)
    if subset:
        write_json(_marker(path), sidecar)
    else:
        _marker(path).unlink(missing_ok=True)
    write_json(_sidecar(path), sidecar)
    return sidecar


@contextmanager
def _lock(path: Path, deed: str) -> Iterator[None]:
    """Let one process at a time work on ``path``; the others wait and say so."""
    with path.with_name(f".{path.name}.lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{path.name}: another process {deed} it; waiting for it.", file=sys.stderr)
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:
            pass  # a file system without locks: the renames still keep files whole
        yield
