"""One file over HTTP, byte for byte, resumed where an earlier attempt or process stopped."""

import re
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import requests
import urllib3

from fcn.errors import UserError
from fcn.files import read_json, write_json
from fcn.progress import bar

ATTEMPTS = 5  # in a row that bring nothing new
BACKOFF_S = 1.0  # before the second attempt, doubled each time
TIMEOUT_S = (20, 60)  # to connect, and between two reads
CHUNK = 1 << 16
PASSING = {408, 425, 429, 500, 502, 503, 504}  # statuses that may go away by themselves
HTML = re.compile(rb"\s*<(!doctype html|html|head|body|\?xml)", re.IGNORECASE)
WEB_PAGE = "the server sent a web page, not the file"


class DownloadError(Exception):
    """Why one address did not give the file."""


class _Passing(Exception):
    """A fault that another attempt may not meet."""


@dataclass(frozen=True)
class _State:
    """What is known of the file that a .part is the beginning of; kept beside it as .part.json."""

    url: str
    etag: str | None
    last_modified: str | None
    total: int | None


def part_files(path: Path) -> tuple[Path, Path]:
    """The unfinished download of ``path`` and the state of it."""
    return path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.part.json")


def discard(path: Path) -> None:
    """Forget the unfinished download of ``path``."""
    for file in part_files(path):
        file.unlink(missing_ok=True)


def download(url: str, path: Path, sizes: set[int] | None, mixed: bool) -> bool:
    """Bring ``url`` whole into the .part file of ``path``; the caller verifies and renames it.

    ``sizes`` are the right sizes in bytes (None: not known). A part of another address is built
    upon only if ``mixed``, that is if a digest will tell whether the two fit. Returns whether the
    last request went on from earlier bytes. Raises DownloadError if the address does not give it.
    """
    part, _ = part_files(path)
    failures, reached = 0, _size(part)
    while True:
        try:
            return _attempt(url, path, sizes, mixed)
        except (_Passing, requests.RequestException, urllib3.exceptions.HTTPError) as error:
            here = _size(part)
            failures = 1 if here > reached else failures + 1
            reached = max(reached, here)
            reason = _short(error)
            if failures >= ATTEMPTS:
                raise DownloadError(f"{reason} (after {failures} attempts)") from None
            print(f"{url}: {reason}; trying again.", file=sys.stderr)
            time.sleep(BACKOFF_S * 2 ** (failures - 1))
        except OSError as error:
            raise UserError(f"{part}: cannot be written ({error}).") from None


def _attempt(url: str, path: Path, sizes: set[int] | None, mixed: bool) -> bool:
    """One request; returns whether it added to bytes that were there."""
    part, state_file = part_files(path)
    state, have = _read_state(state_file), _size(part)
    if state is None or not (state.url == url or (mixed and state.total is not None)):
        have = 0
    headers = {"Accept-Encoding": "identity", "User-Agent": "fcn (python-requests)"}
    if have and state:
        headers["Range"] = f"bytes={have}-"
        validator = state.last_modified
        if state.etag and not state.etag.startswith("W/"):
            validator = state.etag
        if validator and state.url == url:
            headers["If-Range"] = validator
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_S) as response:
        if response.status_code == 416 and have and state:
            if _content_range(response)[1] == have and _same_file(state, response, url, have):
                return True
            discard(path)
            raise _Passing("the part here does not fit the server's file, starting over")
        if response.status_code == 206 and have and state:
            start, total = _content_range(response)
            if start != have or not _same_file(state, response, url, total):
                discard(path)
                raise _Passing("the server's file has changed, starting over")
        elif response.status_code == 200:
            have, total = 0, _number(response.headers.get("Content-Length"))
        elif response.status_code in PASSING:
            raise _Passing(f"HTTP status {response.status_code}")
        else:
            raise DownloadError(f"HTTP status {response.status_code} {response.reason}".strip())
        if sizes and total is not None and total not in sizes:
            if HTML.match(response.raw.read(CHUNK, decode_content=False)):
                raise DownloadError(WEB_PAGE)
            raise DownloadError(
                f"the server's file has {total} bytes where {_either(sizes)} are right"
            )
        expected = max(sizes) if total is None and sizes else total
        try:
            with part.open("ab" if have else "wb") as handle:
                if not have:
                    fields = (response.headers.get("ETag"), response.headers.get("Last-Modified"))
                    write_json(state_file, asdict(_State(url, *fields, total)))
                received = _receive(response, handle, path.name, have, expected)
        except DownloadError:
            discard(path)
            raise
        if received < (expected or 0) and (total is not None or received not in (sizes or ())):
            raise _Passing(f"the connection broke after {received} of {expected} bytes")
        return have > 0


def _receive(
    response: requests.Response, handle: Any, name: str, have: int, expected: int | None
) -> int:
    """Write the body as it is on the wire; returns the size of the file then.

    The content is not decoded: servers label .tgz files with a gzip encoding that is the file.
    """
    with bar(desc=name, initial=have, total=expected, unit="B", unit_scale=True) as progress:
        try:
            for chunk in response.raw.stream(CHUNK, decode_content=False):
                if have == 0 and HTML.match(chunk):
                    raise DownloadError(WEB_PAGE)
                handle.write(chunk)
                have += len(chunk)
                progress.update(len(chunk))
        except urllib3.exceptions.HTTPError:
            of = "" if expected is None else f" of {expected}"
            raise _Passing(f"the connection broke after {have}{of} bytes") from None
    return have


def _same_file(state: _State, response: requests.Response, url: str, total: int | None) -> bool:
    if state.total is not None and total is not None and state.total != total:
        return False
    if state.url != url:
        return state.total == total
    now = response.headers.get("ETag"), response.headers.get("Last-Modified")
    return all(
        old == new
        for old, new in zip((state.etag, state.last_modified), now, strict=True)
        if old and new
    )


def _read_state(path: Path) -> _State | None:
    try:
        return _State(**read_json(path))
    except (UserError, TypeError):
        return None


def _content_range(response: requests.Response) -> tuple[int | None, int | None]:
    match = re.fullmatch(
        r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", response.headers.get("Content-Range", "")
    )
    return (_number(match[1]), _number(match[2])) if match else (None, None)


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _either(sizes: set[int]) -> str:
    return " or ".join(str(size) for size in sorted(sizes))


def _short(error: Exception) -> str:
    """The innermost reason of a nested network error."""
    reason: Any = error
    while getattr(reason, "reason", None) or (
        reason.args and isinstance(reason.args[0], BaseException)
    ):
        reason = getattr(reason, "reason", None) or reason.args[0]
    text = " ".join(str(part) for part in reason.args) or type(reason).__name__
    return re.sub(r"<[^>]* at 0x[0-9a-f]+>(: )?", "", text)
