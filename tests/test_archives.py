import contextlib
import gzip
import hashlib
import http.server
import io
import itertools
import json
import random
import re
import shutil
import socket
import stat
import struct
import tarfile
import threading
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fcn.data import archives, download, unpack
from fcn.data.archives import extract, fetch
from fcn.data.dataset import SegmentationSet
from fcn.data.prepare import prepare
from fcn.data.subsets import undeclared
from fcn.data.verify import verified_by
from fcn.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[1]
MIRROR = REPOSITORY.parent / "shared" / "data" / "mirror"
real = pytest.mark.skipif(not MIRROR.is_dir(), reason="the real data (shared/data) is not here")
ARCHIVES = yaml.safe_load((REPOSITORY / "config/archives.yaml").read_text("utf-8"))
DATASETS = yaml.safe_load((REPOSITORY / "config/datasets.yaml").read_text("utf-8"))
BODY = random.Random(0).randbytes(300_000)
HALF = len(BODY) // 2


# ---- a server that misbehaves on demand ----------------------------------------------------------


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.server.log.append((self.path, self.headers.get("Range")))
        script = self.server.scripts.get(self.path, [status(404)])
        (script.pop(0) if len(script) > 1 else script[0])(self)


def answer(
    body=BODY, etag='"1"', ranges=True, stop=None, reset=False, chunked=False, encoding=None,
    length=True, shift=0,
):  # fmt: skip
    """A behaviour: serve ``body``, well or with a fault."""

    def behave(handler):
        match = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range") or "")
        unchanged = handler.headers.get("If-Range") in (None, etag)
        start = int(match[1]) if match and ranges and unchanged else 0
        if match and ranges and unchanged and start >= len(body):
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{len(body)}")
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        handler.send_response(206 if start else 200)
        if start:
            span = f"bytes {start + shift}-{len(body) - 1}/{len(body)}"
            handler.send_header("Content-Range", span)
        if etag:
            handler.send_header("ETag", etag)
        if encoding:
            handler.send_header("Content-Encoding", encoding)
        rest = body[start:]
        if chunked:
            handler.send_header("Transfer-Encoding", "chunked")
        elif length:
            handler.send_header("Content-Length", str(len(rest)))
        if not length or stop is not None or reset:
            handler.close_connection = True
            handler.send_header("Connection", "close")
        handler.end_headers()
        sent = rest if stop is None else rest[: max(0, stop - start)]
        if chunked:
            handler.wfile.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(sent), sent))
        else:
            handler.wfile.write(sent)
        handler.wfile.flush()
        if reset:
            linger = struct.pack("ii", 1, 0)
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            handler.connection.close()

    return behave


def status(code, body=b"<html>sorry</html>"):
    def behave(handler):
        handler.send_response(code)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return behave


def refuse(handler):
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def running():
    server: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None
    server.scripts, server.log = {}, []
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.setattr(download, "BACKOFF_S", 0)
        yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def server(running):
    running.scripts.clear()
    running.log.clear()
    return running


def url(server, path="/a.tar"):
    return f"http://127.0.0.1:{server.server_port}{path}"


def define(server, body=BODY, **more):
    sha256 = hashlib.sha256(body).hexdigest()
    return {"urls": [url(server)], "size": len(body), "sha256": sha256, **more}


def kept(data_dir):
    names = {p.name for p in (data_dir / "archives").iterdir()}
    return {name for name in names if not name.endswith((".lock", ".subset"))}


# ---- fetching ------------------------------------------------------------------------------------


def test_an_archive_is_fetched_once(server, tmp_path):
    server.scripts["/a.tar"] = [answer()]
    sidecar = fetch("a.tar", define(server), tmp_path)
    assert (tmp_path / "archives/a.tar").read_bytes() == BODY
    assert sidecar == {
        "name": "a.tar",
        "url": url(server),
        "size": len(BODY),
        "sha256": hashlib.sha256(BODY).hexdigest(),
        "md5": hashlib.md5(BODY).hexdigest(),
        "subset": False,
        "verified_by": "sha256, size",
    }
    assert json.loads((tmp_path / "archives/a.tar.json").read_text()) == sidecar
    assert fetch("a.tar", define(server), tmp_path) == sidecar
    assert len(server.log) == 1 and kept(tmp_path) == {"a.tar", "a.tar.json"}


def test_what_verified_it_is_said(server, tmp_path):
    server.scripts["/a.tar"] = [answer()]
    known = {kind: hashlib.new(kind, BODY).hexdigest() for kind in ("md5", "sha1", "sha384")}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"md5": known["md5"]}, "md5"),
        ({"sha1": known["sha1"].upper()}, "sha1"),
        ({"sha384": known["sha384"], "size": len(BODY)}, "sha384, size"),
        ({"sha256": hashlib.sha256(BODY).hexdigest()[:8]}, "sha256 (first 8)"),
        ({"size": len(BODY), "sha256": None}, "size"),
        ({}, "nothing"),
        (
            {"sha256": "0" * 64, "size": 5, "accept": [{"md5": known["md5"], "why": "plain"}]},
            "md5 (plain)",
        ),
    ]
    for i, (given_, told) in enumerate(cases):
        definition = {"urls": [url(server)], **given_}
        assert fetch("a.tar", definition, tmp_path / str(i))["verified_by"] == told
    wrong = {"urls": [url(server)], "sha256": "00000000"}
    with pytest.raises(UserError, match="official one sha256 00000000"):
        fetch("a.tar", wrong, tmp_path)


FAULTS = {
    "truncated": answer(stop=HALF),
    "truncated without a length": answer(stop=HALF, length=False),
    "reset": answer(stop=HALF // 2, reset=True),
    "reset at once": answer(stop=0, reset=True),
    "refused": refuse,
    "500": status(500),
    "503": status(503),
    "wrong range": answer(shift=1),
    "changed": answer(body=bytes(1000) + BODY[1000:], etag='"2"', stop=HALF + 7),
    "416": status(416),
}


@given(
    faults=st.lists(st.sampled_from(sorted(FAULTS)), max_size=4),
    last=st.sampled_from([answer(), answer(ranges=False), answer(etag=None), answer(chunked=True)]),
    restart=st.integers(1, 5),
)
@settings(max_examples=50, deadline=None)
def test_passing_faults_end_with_the_right_file(running, tmp_path_factory, faults, last, restart):
    """Any row of faults, also across restarts of the process, ends in the right bytes."""
    data_dir = tmp_path_factory.mktemp("data")
    # a 416 that no range asked for is final, so the whole file stands at a second address too
    definition = define(running)
    definition["urls"] = [url(running), url(running, "/b.tar")]
    running.scripts |= {"/a.tar": [*(FAULTS[f] for f in faults), last], "/b.tar": [answer()]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(download, "ATTEMPTS", restart)
        for _ in range(6):
            with contextlib.suppress(UserError):
                sidecar = fetch("a.tar", definition, data_dir)
                break
    assert (data_dir / "archives/a.tar").read_bytes() == BODY
    assert sidecar["verified_by"] == "sha256, size"
    assert kept(data_dir) == {"a.tar", "a.tar.json"}


def test_a_download_goes_on_where_a_process_stopped(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    server.scripts["/a.tar"] = [answer(stop=HALF), answer()]
    with pytest.raises(UserError, match=f"broke after {HALF} of {len(BODY)} bytes"):
        fetch("a.tar", define(server), tmp_path)
    assert kept(tmp_path) == {"a.tar.part", "a.tar.part.json"}
    fetch("a.tar", define(server), tmp_path)
    assert [asked for _, asked in server.log] == [None, f"bytes={HALF}-"]
    assert (tmp_path / "archives/a.tar").read_bytes() == BODY


def test_a_whole_part_is_not_fetched_again(server, tmp_path):
    server.scripts["/a.tar"] = [answer()]
    fetch("a.tar", define(server), tmp_path)
    folder = tmp_path / "archives"
    (folder / "a.tar").rename(folder / "a.tar.part")
    state = {"url": url(server), "etag": '"1"', "last_modified": None, "total": len(BODY)}
    (folder / "a.tar.part.json").write_text(json.dumps(state))
    fetch("a.tar", define(server), tmp_path)
    assert server.log[1:] == [("/a.tar", f"bytes={len(BODY)}-")]


def test_a_file_without_validators_that_changed_is_fetched_anew(server, tmp_path):
    """The pieces fit in size but not in bytes: only the digest tells, and one try anew helps."""
    old = answer(body=bytes(len(BODY)), etag=None, stop=HALF)
    server.scripts["/a.tar"] = [old, answer(etag=None)]
    fetch("a.tar", define(server), tmp_path)
    assert [asked for _, asked in server.log] == [None, f"bytes={HALF}-", None]
    assert (tmp_path / "archives/a.tar").read_bytes() == BODY


def test_another_address_goes_on_with_the_part_of_the_first(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "ATTEMPTS", 2)
    server.scripts |= {"/a.tar": [answer(stop=HALF), status(500)], "/b.tar": [answer(etag='"b"')]}
    definition = define(server) | {"urls": [url(server), url(server, "/b.tar")]}
    assert fetch("a.tar", definition, tmp_path)["url"] == url(server, "/b.tar")
    assert server.log[-1] == ("/b.tar", f"bytes={HALF}-")


def test_no_progress_gives_up_but_progress_does_not(server, tmp_path):
    stops = range(0, len(BODY), len(BODY) // 20)
    server.scripts["/a.tar"] = [*(answer(stop=stop) for stop in stops), answer()]
    fetch("a.tar", define(server), tmp_path / "1")  # 20 truncations, each with some more
    server.log.clear()
    server.scripts["/a.tar"] = [answer(stop=HALF, ranges=False)]
    with pytest.raises(UserError, match="after 5 attempts"):
        fetch("a.tar", define(server), tmp_path / "2")
    assert len(server.log) == 5


def test_pauses_grow_until_something_new_comes(server, tmp_path, monkeypatch):
    paused: list[float] = []
    monkeypatch.setattr(download, "BACKOFF_S", 1.0)
    monkeypatch.setattr(download.time, "sleep", paused.append)
    server.scripts["/a.tar"] = [status(500), status(500), answer(stop=HALF), status(500), answer()]
    fetch("a.tar", define(server), tmp_path)
    assert paused == [1, 2, 1, 2]


@pytest.mark.parametrize(("etag", "sent"), [('"1"', '"1"'), ('W/"1"', None), (None, None)])
def test_only_a_strong_validator_asks_for_the_rest(server, tmp_path, etag, sent):
    asked = []

    def watched(handler):
        asked.append(handler.headers.get("If-Range"))
        answer(etag=etag, stop=HALF if len(asked) == 1 else None)(handler)

    server.scripts["/a.tar"] = [watched]
    fetch("a.tar", define(server), tmp_path)
    assert asked == [None, sent]


def test_a_part_longer_than_the_file_is_fetched_anew(server, tmp_path):
    (tmp_path / "archives").mkdir()
    (tmp_path / "archives/a.tar.part").write_bytes(BODY + b"more")
    state = {"url": url(server), "etag": '"1"', "last_modified": None, "total": None}
    (tmp_path / "archives/a.tar.part.json").write_text(json.dumps(state))
    server.scripts["/a.tar"] = [answer()]
    fetch("a.tar", {"urls": [url(server)]}, tmp_path)
    assert (tmp_path / "archives/a.tar").read_bytes() == BODY


FINAL = {
    "HTTP status 404": status(404),
    "HTTP status 403": status(403),
    "a web page, not the file": status(200, b"\n<!DOCTYPE html><html>moved</html>"),
    "has 5 bytes where 300000 are right": answer(body=b"short"),
    "size 300000, sha256 [0-9a-f]{64}, the official one size 300000, sha256": answer(
        body=BODY[::-1]
    ),
}


@pytest.mark.parametrize("reason", FINAL)
def test_lasting_faults_go_to_the_next_address_at_once(server, tmp_path, reason):
    server.scripts |= {"/a.tar": [FINAL[reason]], "/b.tar": [answer()]}
    definition = define(server) | {"urls": [url(server), url(server, "/b.tar")]}
    assert fetch("a.tar", definition, tmp_path)["url"] == url(server, "/b.tar")
    assert [path for path, _ in server.log] == ["/a.tar", "/b.tar"]


def test_the_error_names_every_address_and_its_reason(server, tmp_path):
    paths = [f"/{i}" for i in range(len(FINAL))]
    server.scripts |= {path: [FINAL[reason]] for path, reason in zip(paths, FINAL, strict=True)}
    definition = define(server) | {"urls": [url(server, path) for path in paths]}
    with pytest.raises(UserError) as error:
        fetch("a.tar", definition, tmp_path)
    unsized = {"urls": [url(server, "/2")], "md5": "0" * 32}
    with pytest.raises(UserError, match="a web page, not the file"):
        fetch("a.tar", unsized, tmp_path)
    for path, reason in zip(paths, FINAL, strict=True):
        assert re.search(f"{re.escape(url(server, path))}: [^;]*{reason}", str(error.value))
    assert kept(tmp_path) == set()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{free.getsockname()[1]}/x"
        with pytest.raises(UserError, match=rf"{closed}: [^<>]*refused"):
            fetch("a.tar", definition | {"urls": [closed]}, tmp_path)
    with pytest.raises(UserError, match=r"no public address is known \(the paper\)"):
        fetch("a.tar", {"urls": [], "source": "the paper"}, tmp_path)


def test_a_gzip_encoding_is_not_decoded(server, tmp_path):
    body = gzip.compress(BODY)
    server.scripts["/a.tar"] = [answer(body=body, encoding="x-gzip")]
    fetch("a.tar", define(server, body), tmp_path / "1")
    server.scripts["/a.tar"] = [answer(body=body, encoding="gzip")]
    fetch("a.tar", define(server, body), tmp_path / "2")
    assert (tmp_path / "2/archives/a.tar").read_bytes() == body


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"File not found.",
        b"<!-- maintenance --><html></html>",
        b"\xef\xbb\xbf<!DOCTYPE html>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
    ],
)
def test_text_is_not_taken_for_a_file_of_which_nothing_is_known(server, tmp_path, body):
    server.scripts["/a.tar"], server.scripts["/b.tar"] = [answer(body=body)], [answer()]
    unknown: dict[str, Any] = {"urls": [url(server)]}
    with pytest.raises(
        UserError, match=r"a\.tar: (the server sent (an empty file|text|a web)|the)"
    ):
        fetch("a.tar", unknown, tmp_path)
    assert kept(tmp_path) == set()
    sidecar = fetch("a.tar", {"urls": [url(server), url(server, "/b.tar")]}, tmp_path)
    assert sidecar["verified_by"] == "nothing" and sidecar["url"].endswith("/b.tar")


@pytest.mark.parametrize("kind", ["sha1", "sha384", "md5", "sha256"])
def test_a_digest_that_is_learned_later_is_compared_with_the_file_here(
    server, tmp_path, kind, monkeypatch
):
    server.scripts["/a.tar"] = [answer()]
    unknown = {"urls": [url(server)]}
    assert fetch("a.tar", unknown, tmp_path)["verified_by"] == "nothing"
    right = {**unknown, kind: hashlib.new(kind, BODY).hexdigest()}
    with pytest.raises(UserError, match=f"the file here has {kind} .*, the official one {kind}"):
        fetch("a.tar", {**unknown, kind: hashlib.new(kind, b"another").hexdigest()}, tmp_path)
    again = fetch("a.tar", right, tmp_path)
    assert again[kind] == right[kind] and again["url"] == url(server)
    monkeypatch.delattr("fcn.data.verify.measure")  # it is not read again
    assert fetch("a.tar", right, tmp_path)[kind] == right[kind]
    assert len(server.log) == 1


def test_a_file_placed_by_hand_is_verified(server, tmp_path):
    (tmp_path / "archives").mkdir()
    (tmp_path / "archives/a.tar").write_bytes(BODY)
    assert fetch("a.tar", define(server), tmp_path)["url"] == "placed by hand"
    (tmp_path / "archives/a.tar").write_bytes(BODY[:-1])
    with pytest.raises(UserError, match=r"the file here has size 299999.*delete it"):
        fetch("a.tar", define(server), tmp_path)
    assert server.log == []


def test_one_of_two_processes_waits(server, tmp_path, capfd):
    server.scripts["/a.tar"] = [answer()]
    (tmp_path / "archives").mkdir()
    with archives._lock(tmp_path / "archives/a.tar", "is fetching"):
        other = threading.Thread(target=fetch, args=("a.tar", define(server), tmp_path))
        other.start()
        other.join(0.2)
        assert other.is_alive() and server.log == []
    other.join(10)
    assert not other.is_alive() and kept(tmp_path) == {"a.tar", "a.tar.json"}
    assert "a.tar: another process is fetching it; waiting for it." in capfd.readouterr().err


def test_a_full_disk_is_told(server, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    server.scripts["/a.tar"] = [answer()]
    monkeypatch.setattr(download, "_receive", full)
    with pytest.raises(UserError, match=r"a\.tar\.part: cannot be written.*No space left"):
        fetch("a.tar", define(server), tmp_path)


# ---- mirrors -------------------------------------------------------------------------------------


@pytest.fixture(params=["folder", "http"])
def mirror(request, server, tmp_path):
    """A mirror's address, and a function that puts a file on it."""
    folder = tmp_path / "mirror"
    folder.mkdir()

    def put(name, body):
        (folder / name).write_bytes(body)
        server.scripts[f"/mirror/{name}"] = [answer(body=body)]

    address = str(folder) if request.param == "folder" else url(server, "/mirror/")
    return address, put


def test_a_mirror_alone_is_asked(mirror, server, tmp_path):
    address, put = mirror
    put("a.tar", BODY)
    sidecar = fetch("a.tar", define(server), tmp_path, address)
    assert sidecar["subset"] is False and sidecar["verified_by"] == "sha256, size"
    assert (tmp_path / "archives/a.tar").read_bytes() == BODY
    assert all(path.startswith("/mirror/") for path, _ in server.log)
    assert (tmp_path / "mirror/a.tar").exists() and kept(tmp_path) == {"a.tar", "a.tar.json"}
    with pytest.raises(UserError, match=r"b\.tar: the mirror (lacks|does not give) it"):
        fetch("b.tar", define(server), tmp_path, address)


def test_a_subset_must_be_declared(mirror, server, tmp_path):
    address, put = mirror
    put("a.tar", b"part of it")
    digest = hashlib.sha256(b"part of it").hexdigest()
    with pytest.raises(UserError, match=f"sha256 {digest}, the official one .*=true"):
        fetch("a.tar", define(server), tmp_path, address)
    assert kept(tmp_path) == set()
    sidecar = fetch("a.tar", define(server), tmp_path, address, mirror_is_subset=True)
    assert sidecar["subset"] is True and sidecar["verified_by"] == "nothing"
    assert fetch("a.tar", define(server), tmp_path, address, True) == sidecar
    with pytest.raises(UserError, match=r"a subset of the official.*delete it to fetch the whole"):
        fetch("a.tar", define(server), tmp_path, address)


def test_a_subset_is_checked_against_the_mirrors_sums(mirror, server, tmp_path):
    address, put = mirror
    put("a.tar", b"part of it")
    digest = hashlib.sha256(b"part of it").hexdigest()
    put("SHA256SUMS", f"{'0' * 64}  a.tar\n{digest} *b.tar\n".encode())
    with pytest.raises(UserError, match=f"damaged: its sha256 is {digest}, but .* says 000"):
        fetch("a.tar", define(server), tmp_path, address, True)
    assert kept(tmp_path) == set()
    for wrong in (f"{'0' * 64}  ./a.tar\n", f"SHA256 (./a.tar) = {'0' * 64}\n"):
        put("SHA256SUMS", wrong.encode())
        with pytest.raises(UserError, match="damaged"):
            fetch("a.tar", define(server), tmp_path, address, True)
    put("SHA256SUMS", f"SHA256 (a.tar) = {digest}\n".encode())
    sidecar = fetch("a.tar", define(server), tmp_path, address, True)
    assert sidecar["verified_by"] == "SHA256SUMS of the mirror" and sidecar["subset"] is True


def test_sums_that_fail_cost_no_download(server, tmp_path):
    """An object store answers 403 of what is not there; a passing fault passes."""
    server.scripts["/mirror/a.tar"] = [answer(body=b"part of it")]
    for absent in ([status(403)], [status(410)], [status(503), status(503), status(404)]):
        server.scripts["/mirror/SHA256SUMS"] = absent
        sidecar = fetch(
            "a.tar", define(server), tmp_path / str(id(absent)), url(server, "/mirror"), True
        )
        assert sidecar["verified_by"] == "nothing" and sidecar["subset"]
    server.scripts["/mirror/SHA256SUMS"] = [status(401)]
    server.log.clear()
    with pytest.raises(UserError, match="SHA256SUMS: the mirror answers HTTP status 401"):
        fetch("a.tar", define(server), tmp_path, url(server, "/mirror"), True)
    assert [path for path, _ in server.log] == ["/mirror/SHA256SUMS"]


def test_sums_without_a_line_are_told(mirror, server, tmp_path, capsys):
    address, put = mirror
    put("a.tar", b"part of it")
    put("SHA256SUMS", b"<html>a portal</html>")
    assert fetch("a.tar", define(server), tmp_path, address, True)["verified_by"] == "nothing"
    assert "SHA256SUMS has no line of a digest and a name" in capsys.readouterr().err


def test_broken_files_beside_an_archive_are_told(server, tmp_path):
    folder = tmp_path / "mirror"
    folder.mkdir()
    (folder / "a.tar").write_bytes(b"part of it")
    (folder / "SHA256SUMS").write_bytes("Bäume".encode("latin-1"))
    with pytest.raises(UserError, match=r"mirror/SHA256SUMS: not a text file of UTF-8"):
        fetch("a.tar", define(server), tmp_path, str(folder), True)
    assert kept(tmp_path) == set()
    (tmp_path / "archives/a.tar").write_bytes(BODY)
    (tmp_path / "archives/a.tar.json").write_text("null")
    for stage in (partial(fetch, definition=define(server)), extract):
        with pytest.raises(UserError, match=r"a\.tar\.json: not written by this program; delete"):
            stage("a.tar", data_dir=tmp_path)


def test_a_whole_file_of_a_mirror_of_subsets_is_whole(mirror, server, tmp_path):
    address, put = mirror
    put("a.tar", BODY)
    assert fetch("a.tar", define(server), tmp_path / "1", address, True)["subset"] is False
    # where nothing is known of the official file, the declaration decides
    assert fetch("a.tar", {"urls": []}, tmp_path / "2", address, True)["subset"] is True
    assert fetch("a.tar", {"urls": []}, tmp_path / "3", address)["subset"] is False


def test_what_came_before_the_declaration_is_not_taken_for_whole(mirror, server, tmp_path):
    address, put = mirror
    put("a.tar", tar_bytes())
    fetch("a.tar", {"urls": []}, tmp_path, address)
    extract("a.tar", tmp_path)
    with pytest.raises(
        UserError, match=r"not declared.* delete it and a\.tar\.json to fetch it as"
    ):
        fetch("a.tar", {"urls": []}, tmp_path, address, True)
    sidecar = tmp_path / "archives/a.tar.json"
    assert "came from the mirror" in undeclared(sidecar, address)
    for other in (None, str(tmp_path / "elsewhere"), "https://elsewhere.org"):
        assert undeclared(sidecar, other) == ""
    for path in (sidecar, tmp_path / "archives/a.tar"):
        path.unlink()
    assert undeclared(sidecar, address) == ""
    assert fetch("a.tar", {"urls": []}, tmp_path, address, True)["subset"] is True
    # the same bytes: not unpacked again, but what is said of them is
    (tmp_path / "extracted/a.tar/mark").touch()
    assert extract("a.tar", tmp_path)["archive"]["subset"] is True
    assert json.loads((tmp_path / "extracted/a.tar.json").read_text())["archive"]["subset"] is True
    assert (tmp_path / "extracted/a.tar/mark").exists()
    sidecar.unlink()  # as Snakemake does before it fetches again: no less a subset
    again = fetch("a.tar", {"urls": []}, tmp_path, address, True)
    assert again["subset"] is True and again["url"] != "placed by hand"


def test_an_official_file_of_an_undeclared_mirror_is_kept_without_its_sidecar(mirror, tmp_path):
    address, put = mirror
    put("a.tar", BODY)
    fetch("a.tar", {"urls": []}, tmp_path, address)
    (tmp_path / "archives/a.tar.json").unlink()
    assert fetch("a.tar", {"urls": []}, tmp_path)["url"] == "placed by hand"
    assert fetch("a.tar", {"urls": []}, tmp_path, address)["subset"] is False


def test_a_subset_is_one_also_without_its_sidecar(mirror, server, tmp_path):
    """Snakemake deletes it before it fetches again, and of many archives no digest is known."""
    address, put = mirror
    put("a.tar", b"part of it")
    path, unknown = tmp_path / "archives/a.tar", {"urls": [url(server, "/a.tar")]}
    before = fetch("a.tar", unknown, tmp_path, address, True)
    refusals = []
    for _ in range(2):
        with pytest.raises(UserError, match="a subset of the official archive, from") as told:
            fetch("a.tar", unknown, tmp_path)
        refusals.append(str(told.value))
        path.with_name("a.tar.json").unlink(missing_ok=True)
    assert refusals[0] == refusals[1]
    assert fetch("a.tar", unknown, tmp_path, mirror_is_subset=True) == before
    path.with_name("a.tar.json").unlink()
    path.write_bytes(BODY)  # another file, placed by hand: what is known of the old one is void
    assert fetch("a.tar", unknown, tmp_path)["subset"] is False
    assert kept(tmp_path) == {"a.tar", "a.tar.json"}
    assert not path.with_name(".a.tar.subset").exists()


def test_a_whole_archive_leaves_no_trace_of_a_subset(mirror, server, tmp_path):
    address, put = mirror
    put("a.tar", b"part of it")
    path, unknown = tmp_path / "archives/a.tar", {"urls": [url(server, "/a.tar")]}
    fetch("a.tar", unknown, tmp_path, address, True)
    path.unlink()
    server.scripts["/a.tar"] = [answer(body=BODY)]
    whole = fetch("a.tar", unknown, tmp_path)
    assert whole["subset"] is False and path.read_bytes() == BODY
    assert not path.with_name(".a.tar.subset").exists()
    path.with_name("a.tar.json").unlink()
    assert fetch("a.tar", unknown, tmp_path)["subset"] is False


def test_a_mirror_is_never_written_to(server, tmp_path):
    """A hard link shares its bytes with the mirror: no later step may write into it."""
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror/a.tar").write_bytes(b"subset")
    fetch("a.tar", define(server), tmp_path, str(tmp_path / "mirror"), True)
    shutil.rmtree(tmp_path / "archives")
    server.scripts["/a.tar"] = [answer(stop=HALF), answer()]
    with pytest.raises(UserError):
        fetch("a.tar", define(server), tmp_path, str(tmp_path / "mirror"))
    fetch("a.tar", define(server), tmp_path)
    assert (tmp_path / "mirror/a.tar").read_bytes() == b"subset"


# ---- unpacking -----------------------------------------------------------------------------------

FILES = {"top/a.txt": b"a" * 3000, "top/sub/b.txt": b"", "top/sub/c.bin": BODY[:5000]}


def add(tar, name, body=b"", **fields):
    info = tarfile.TarInfo(name)
    info.size = len(body)
    for key, value in fields.items():
        setattr(info, key, value)
    tar.addfile(info, io.BytesIO(body))


def tar_bytes(files=FILES, mode="w", members=()):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as tar:
        for name, body in files.items():
            add(tar, name, body)
        for name, fields in members:
            add(tar, name, **fields)
    return stream.getvalue()


def zip_bytes(files=FILES):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, body in files.items():
            archive.writestr(name, body)
    return stream.getvalue()


def place(data_dir, name, body):
    folder = data_dir / "archives"
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(body)
    (folder / f"{name}.json").unlink(missing_ok=True)
    return fetch(name, {"urls": []}, data_dir)


def unpacked(folder):
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


WHOLE = {
    "a.tar": tar_bytes(),
    "a.tar.gz": tar_bytes(mode="w:gz"),
    "a.tgz": tar_bytes(),  # a server's decoding of a.tgz
    "a.zip": zip_bytes(),
}


@pytest.mark.parametrize("name", WHOLE)
def test_archives_are_unpacked_once(tmp_path, name):
    archive = place(tmp_path, name, WHOLE[name])
    assert extract(name, tmp_path) == {"archive": archive, "members": 3}
    folder = tmp_path / "extracted" / name
    assert unpacked(folder) == FILES
    (folder / "mark").touch()
    extract(name, tmp_path)
    assert (folder / "mark").exists()
    other = tar_bytes({"other": b"1"}) if "zip" not in name else zip_bytes({"other": b"1"})
    place(tmp_path, name, other)
    assert extract(name, tmp_path)["members"] == 1 and unpacked(folder) == {"other": b"1"}


def test_folders_are_no_files(tmp_path):
    folder: list[Any] = [("d", {"type": tarfile.DIRTYPE})]
    for name, empty, one in (
        ("a.tar", tar_bytes({}, members=folder), tar_bytes({"d/f": b"1"}, members=folder)),
        ("a.zip", zip_bytes({"d/": b""}), zip_bytes({"d/": b"", "d/f": b"1"})),
    ):
        place(tmp_path, name, empty)
        with pytest.raises(UserError, match="no file is in it"):
            extract(name, tmp_path)
        place(tmp_path, name, one)
        assert extract(name, tmp_path)["members"] == 1


@pytest.mark.parametrize("name", WHOLE)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_a_truncated_archive_leaves_nothing(tmp_path_factory, name, data):
    tmp_path = tmp_path_factory.mktemp("cut")
    whole = WHOLE[name]
    # a tar is padded with zeros after its end mark of two blocks, of which the first is enough
    mark = whole.rstrip(b"\0") if name in ("a.tar", "a.tgz") else whole
    ends = [0, 1, 512, 1024, len(mark) - 1]
    cut = data.draw(st.sampled_from(ends) | st.integers(0, len(mark) - 1))
    place(tmp_path, name, whole[:cut])
    with pytest.raises(UserError, match=f"{re.escape(name)}: truncated or damaged.*fetch it again"):
        extract(name, tmp_path)
    assert {path.name for path in (tmp_path / "extracted").iterdir()} == {f".{name}.lock"}


def test_a_tar_cut_between_two_members_is_truncated(tmp_path):
    """Unless its digest said that it is whole: not every tar has an end mark."""
    body = tar_bytes()
    second = body.index(b"top/sub/b.txt")
    place(tmp_path, "a.tar", body[:second])
    sidecar = tmp_path / "archives/a.tar.json"
    facts = json.loads(sidecar.read_text())
    sidecar.write_text(json.dumps({**facts, "verified_by": "nothing"}))
    with pytest.raises(UserError, match="truncated or damaged"):
        extract("a.tar", tmp_path)
    sidecar.write_text(json.dumps({**facts, "verified_by": "md5"}))
    assert extract("a.tar", tmp_path)["members"] == 1


UNSAFE = {
    "up": ("../evil", {}),
    "up inside": ("top/../../evil", {}),
    "absolute": ("/tmp/evil", {}),
    "link up": ("top/link", {"type": tarfile.SYMTYPE, "linkname": "../../evil"}),
    "absolute link": ("top/link", {"type": tarfile.SYMTYPE, "linkname": "/etc"}),
    "hard link": ("top/link", {"type": tarfile.LNKTYPE, "linkname": "../evil"}),
    "device": ("top/null", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3}),
    "pipe": ("top/pipe", {"type": tarfile.FIFOTYPE}),
}


@pytest.mark.parametrize("kind", UNSAFE)
def test_members_that_lead_out_are_refused(tmp_path, kind):
    place(tmp_path, "a.tar", tar_bytes(members=[UNSAFE[kind]]))
    with pytest.raises(UserError, match=r"a\.tar: unsafe"):
        extract("a.tar", tmp_path)
    assert {path.name for path in (tmp_path / "extracted").iterdir()} == {".a.tar.lock"}
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize("kind", UNSAFE)
def test_python_without_filters_refuses_them_too(tmp_path, kind, monkeypatch):
    """3.11.0 to 3.11.3, as Debian 12 has it."""
    monkeypatch.setattr(unpack, "FILTER", {})
    monkeypatch.setattr(unpack, "UNSAFE", ())
    test_members_that_lead_out_are_refused(tmp_path, kind)
    place(tmp_path, "b.tar", tar_bytes())
    assert extract("b.tar", tmp_path)["members"] == 3


@pytest.mark.parametrize("name", ["../evil", "/evil", "top\\..\\..\\evil", "C:/evil"])
def test_zip_members_that_lead_out_are_refused(tmp_path, name):
    place(tmp_path, "a.zip", zip_bytes({**FILES, name: b"x"}))
    with pytest.raises(UserError, match=r"a\.zip: unsafe"):
        extract("a.zip", tmp_path)
    assert not list(tmp_path.rglob("*evil*"))


def test_links_inside_are_kept(tmp_path):
    members = [("top/link", {"type": tarfile.SYMTYPE, "linkname": "a.txt"})]
    place(tmp_path, "a.tar", tar_bytes(members=members))
    extract("a.tar", tmp_path)
    assert (tmp_path / "extracted/a.tar/top/link").read_bytes() == FILES["top/a.txt"]


def test_what_cannot_be_unpacked_is_told(tmp_path):
    with pytest.raises(UserError, match=r"net\.caffemodel: not an archive"):
        extract("net.caffemodel", tmp_path)
    with pytest.raises(UserError, match=r"a\.tar\.json: no such file"):
        extract("a.tar", tmp_path)
    place(tmp_path, "a.tar", bytes(20 * 512))
    with pytest.raises(UserError, match="no file is in it"):
        extract("a.tar", tmp_path)
    with zipfile.ZipFile(tmp_path / "z", "w") as archive:
        archive.writestr("a", BODY)
    damaged = bytearray((tmp_path / "z").read_bytes())
    damaged[HALF] ^= 1
    place(tmp_path, "a.zip", bytes(damaged))
    with pytest.raises(UserError, match=r"a\.zip: truncated or damaged.*CRC"):
        extract("a.zip", tmp_path)


# ---- the written-down archives -------------------------------------------------------------------


def test_definitions_are_well_formed():
    lengths = {"md5": 32, "sha1": 40, "sha256": 64, "sha384": 96}
    known = {"urls", "size", "terms", "source", "accept", *lengths}
    for name, definition in ARCHIVES.items():
        assert {"urls", "size", "sha256", "md5", "terms", "source"} <= set(definition) <= known
        assert definition["terms"] and definition["source"], name
        assert len(set(definition["urls"])) == len(definition["urls"]), name
        for address in definition["urls"]:
            assert re.match(r"https?://\S+$", address), name
        for kind in [definition, *definition.get("accept", [])]:
            for digest, length in lengths.items():
                value = kind.get(digest)
                short = digest == "sha256" and value and len(value) == 8
                assert value is None or short or len(value) == length, (name, digest)
                assert value is None or re.fullmatch("[0-9a-f]+", value), (name, digest)
        if re.search(r"-[0-9a-f]{8}\.pth$", name):  # torchvision names files by their digest
            assert definition["sha256"].startswith(name[-12:-4]), name
    digests = [definition["sha256"] for definition in ARCHIVES.values() if definition["sha256"]]
    assert len(set(digests)) == len(digests)
    used = itertools.chain(*(entry.get("archives", []) for entry in DATASETS.values()))
    assert set(used) <= set(ARCHIVES)


@real
def test_sbd_from_the_real_mirror(tmp_path):
    name = "benchmark.tgz"
    with pytest.raises(UserError, match="mirror of subsets must be declared"):
        fetch(name, ARCHIVES[name], tmp_path, str(MIRROR))
    sidecar = fetch(name, ARCHIVES[name], tmp_path, str(MIRROR), True)
    assert sidecar["subset"] is True and sidecar["verified_by"] == "SHA256SUMS of the mirror"
    assert extract(name, tmp_path)["members"] == 2 * 203 + 2
    info = prepare("sbd", DATASETS["sbd"], tmp_path)
    assert info["splits"] == {"train": 142, "val": 61} and info["subset"] is True
    item = SegmentationSet(tmp_path / "prepared/sbd", "val")[0]
    assert item["image"].shape[1:] == item["semantic"].shape
    assert (MIRROR / name).stat().st_size == sidecar["size"]


def test_another_right_file_is_known_by_a_digest_alone():
    """A size is no proof, and a digest that was not measured is none either."""
    other = {"sha384": "b" * 96, "size": 5, "why": "decoded"}
    definition = {"sha256": "a" * 64, "accept": [other]}
    facts = {"size": 5, "sha256": "c" * 64, "md5": "d" * 32}
    assert verified_by(facts, definition) == ""
    assert verified_by({**facts, "sha384": "b" * 96}, definition) == "sha384, size (decoded)"
    assert verified_by({**facts, "size": 6}, {"size": 5}) == ""
    assert verified_by(facts, {"size": 5}) == "size"


def test_without_a_digest_the_answers_alone_tell_what_is_missing(server, tmp_path):
    last = f"bytes={len(BODY) - 1}-"
    server.scripts["/a.tar"] = [answer(stop=HALF), answer(shift=7), answer(stop=len(BODY) - 1)]
    server.scripts["/a.tar"].append(answer())
    sidecar = fetch("a.tar", {"urls": [url(server)]}, tmp_path)
    assert sidecar["verified_by"] == "nothing"
    assert (tmp_path / "archives/a.tar").read_bytes() == BODY
    assert [asked for _, asked in server.log] == [None, f"bytes={HALF}-", None, last]


def test_links_in_a_zip_are_refused(tmp_path):
    link = zipfile.ZipInfo("top/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(link, "/etc")
    with pytest.raises(UserError, match="unsafe: its member top/link is a link"):
        unpack.unpack(path, tmp_path / "out")
